# SPDX-License-Identifier: Apache-2.0
"""What a peer sends is checked, whatever it is."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.history import record

LIMIT = 1000
GOOD: dict[str, Any] = {
    'version': 1, 'departure': 'ab' * 16, 'stint': False, 'received': [],
    'histories': [{'port': 0, 'generation': 1, 'size': 3,
                   'digest': 'cd' * 16, 'whole': True}],
    'boots': [{'time': 1.5, 'following': {'0': 2, '1': None}}]}

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20)


def framed(text: bytes) -> bytes:
    return record.digest([text]).encode() + b'\n' + text


def test_what_is_formatted_is_parsed() -> None:
    sent = record.Record('ab' * 16, True, (
        record.History(0, 3, 10, 'cd' * 16, False),), (
            record.Boot(1.5, {0: 7, 1: None}),), ('ef' * 16,))
    data = sent.format()
    assert record.is_whole(data)
    assert record.parse(data, LIMIT) == sent
    for end in range(len(data)):
        assert not record.is_whole(data[:end])
    assert not record.is_whole(bytes(len(data)))


def changed(path: str, value: object) -> bytes:
    values = json.loads(json.dumps(GOOD))
    *parents, name = path.split('.')
    inner = values
    for parent in parents:
        inner = inner[int(parent) if parent.isdigit() else parent]
    inner[name] = value
    return framed(json.dumps(values).encode())


@pytest.mark.parametrize(('path', 'value'), [
    ('version', 2), ('version', True), ('version', None),
    ('departure', '../../x'), ('departure', 'AB' * 16), ('departure', 7),
    ('stint', 1), ('received', {}), ('received', ['x']),
    ('received', ['ab' * 16] * 101), ('histories', None),
    ('histories', [GOOD['histories'][0]] * 2), ('histories', [7]),
    ('histories.0.port', -1), ('histories.0.port', 64),
    ('histories.0.port', '0'), ('histories.0.port', False),
    ('histories.0.generation', -1), ('histories.0.generation', 10 ** 9),
    ('histories.0.size', LIMIT + 1), ('histories.0.size', -1),
    ('histories.0.size', 1.5), ('histories.0.digest', 'x'),
    ('histories.0.whole', 'yes'), ('boots', [GOOD['boots'][0]] * 101),
    ('boots.0.time', '1'), ('boots.0.time', -1), ('boots.0.time', 1e300),
    ('boots.0.time', True), ('boots.0.following', []),
    ('boots.0.following', {'x': 1}), ('boots.0.following', {'64': 1}),
    ('boots.0.following', {'0': -1}), ('boots.0.following', {'0': 1.5}),
    ('boots.0.following', {str(n): 1 for n in range(65)})])
def test_refused(path: str, value: object) -> None:
    with pytest.raises(record.InvalidRecord):
        record.parse(changed(path, value), LIMIT)


@pytest.mark.parametrize('text', [
    b'', b'{', b'\xff', b'[' * 200_000, b'{"version": ' + b'9' * 5000 + b'}',
    b'{"version": NaN}', b'null', b'7', b'"x"', b'[]', b'{}',
    b' ' * (record.MAX_SIZE + 1), b'{"version": 1e999}'])
def test_no_record_at_all(text: bytes) -> None:
    with pytest.raises(record.InvalidRecord):
        record.parse(framed(text), LIMIT)


@given(_JSON)
def test_any_json(value: object) -> None:
    with contextlib.suppress(record.InvalidRecord):
        record.parse(framed(json.dumps(value).encode()), LIMIT)


@given(st.sampled_from(list(GOOD)), _JSON)
def test_any_value(name: str, value: object) -> None:
    try:
        found = record.parse(framed(json.dumps(
            {**GOOD, name: value}).encode()), LIMIT)
    except record.InvalidRecord:
        return
    assert all(0 <= h.size <= LIMIT and 0 <= h.port < record.MAX_PORTS
               for h in found.histories)


@pytest.mark.parametrize(('path', 'most', 'more'), [
    ('histories.0.port', record.MAX_PORTS - 1, record.MAX_PORTS),
    ('histories.0.size', LIMIT, LIMIT + 1),
    ('histories.0.generation', 10 ** 8, 10 ** 8 + 1),
    ('received', ['ab' * 16] * 100, ['ab' * 16] * 101),
    ('boots', GOOD['boots'] * record.MAX_BOOTS,
     GOOD['boots'] * (record.MAX_BOOTS + 1)),
    ('boots.0.time', 0, -1), ('boots.0.time', 249999999999.9, 2.5e11),
    ('boots.0.following', dict.fromkeys(map(str, range(64))),
     dict.fromkeys(map(str, range(65)))),
    ('boots.0.following', {'0': 1 << 62}, {'0': (1 << 62) + 1}),
])
def test_the_most_that_is_taken(path: str, most: object,
                                more: object) -> None:
    record.parse(changed(path, most), LIMIT)
    with pytest.raises(record.InvalidRecord):
        record.parse(changed(path, more), LIMIT)


def test_no_file_is_larger_whatever_the_limit() -> None:
    record.parse(changed('histories.0.size', 1 << 62), 1 << 63)
    with pytest.raises(record.InvalidRecord):
        record.parse(changed('histories.0.size', (1 << 62) + 1), 1 << 63)


def test_as_many_histories_as_there_may_be_ports() -> None:
    histories = [{**GOOD['histories'][0], 'port': port}
                 for port in range(record.MAX_PORTS)]
    assert len(record.parse(changed(
        'histories', histories), LIMIT).histories) == record.MAX_PORTS


def test_a_start_has_a_number() -> None:
    """0: it is not known, as where an earlier version has sent none."""
    for number in (0, 1, 7, 1 << 62):
        sent = {**GOOD['boots'][0], 'number': number}
        [boot] = record.parse(changed('boots', [sent]), LIMIT).boots
        assert boot.number == number
    for wrong in ((1 << 62) + 1, -1, True, '7', None):
        with pytest.raises(record.InvalidRecord, match='number'):
            record.parse_boot({**GOOD['boots'][0], 'number': wrong})
    for boot in (record.Boot(1.5, {}), record.parse_boot(GOOD['boots'][0])):
        assert boot.number == 0


def test_the_longest_number_that_is_read() -> None:
    assert record.load(b'9' * 19) == int('9' * 19)
    with pytest.raises(record.InvalidRecord, match='no reasonable number'):
        record.load(b'9' * 20)


@pytest.mark.parametrize('sign', ['', '-'])
def test_a_number_without_end(sign: str) -> None:
    """int() has an error of its own for it; a long one is not said whole."""
    assert record.load(b'1e308') == 1e308
    text = f'{sign}1e{"9" * 30}'
    with pytest.raises(record.InvalidRecord) as said:
        record.load(text.encode())
    assert f' {text[:20]} is no reasonable number' in str(said.value)


def test_the_longest_text_that_is_read() -> None:
    text = b'"' + b'x' * (record.MAX_SIZE - 2) + b'"'
    assert len(record.load(text)) == record.MAX_SIZE - 2
    with pytest.raises(record.InvalidRecord, match='bytes'):
        record.load(text[:-1] + b'x"')


def test_the_digest_that_other_hosts_make() -> None:
    """As b2sum -l 128 does; in however many pieces it is read."""
    expected = '11d33ab7390e3b446b44e81b79fdb510'
    assert record.digest([b'then', b'now']) == expected
    assert record.digest([b'thennow']) == expected
