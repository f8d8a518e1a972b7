# SPDX-License-Identifier: Apache-2.0
"""A viewer that has just come sees the last lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.relay.context import Recent, common, earlier

BIG = 1 << 30


def _recent(data: bytes, limit: int) -> Recent:
    made = Recent(limit)
    made.add(data)
    return made


def test_all_of_it_where_there_is_room() -> None:
    assert _recent(b'half\nof', 10).text() == b'half\nof'


def test_whole_lines() -> None:
    assert _recent(b'one\ntwo\nthree', 8).text() == b'three'
    assert _recent(b'one\ntwo\nthree', 9).text() == b'two\nthree'


def test_a_long_line_is_cut_between_characters() -> None:
    text = 'ä€𝄞' * 9
    for limit in range(4, 30):
        assert text.endswith(_recent(text.encode(), limit).text().decode())


def test_what_was_cut_off_before_ends_in_a_line() -> None:
    recent = _recent(b'live', 100)
    recent.begin_with(b'f a line\nwhole\n', cut=True)
    assert recent.text() == b'whole\nlive'


def test_the_first_line_of_a_log_is_whole() -> None:
    recent = _recent(b'live', 100)
    recent.begin_with(b'first\n', cut=False)
    assert recent.text() == b'first\nlive'


def test_memory_has_a_bound() -> None:
    recent = Recent(100)
    for _ in range(1000):
        recent.add(b'x' * 9 + b'\n')
        assert len(recent) <= 200
    assert recent.text() == (b'x' * 9 + b'\n') * 10
    recent.begin_with(b'much too early', cut=False)
    assert b'early' not in recent.data


def test_common() -> None:
    assert common(b'abcab', b'abx', BIG) == (2, 0)
    assert common(b'abcab', b'x', BIG) == (0, 0)
    assert common(b'aaaa', b'aaaa', BIG) == (4, 3)
    # Only two bytes were logged since.
    assert common(b'aaaa', b'aaaa', 2) == (2, 1)
    for nothing in ((b'', b'a', BIG), (b'a', b'', BIG), (b'a', b'a', -1)):
        assert common(*nothing) == (0, 0)


#: Of few bytes, so that much of it repeats itself.
_REPETITIVE = st.lists(st.sampled_from(b'ab'), max_size=60).map(bytes)


@given(_REPETITIVE, _REPETITIVE, st.integers(0, 60))
def test_common_is_the_longest_and_the_next(log, live, most) -> None:
    possible = [n for n in range(min(len(log), len(live), most) + 1)
                if log.endswith(live[:n])]
    assert common(log, live, most) == (
        possible[-1], possible[-2] if len(possible) > 1 else 0)


class _Counted(bytes):
    """Bytes that count how often one of them is looked at."""

    looks = 0

    def startswith(self, prefix):
        _Counted.looks += len(prefix)
        return super().startswith(prefix)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return _Counted(super().__getitem__(key))
        _Counted.looks += 1
        return super().__getitem__(key)


@pytest.mark.parametrize('log', [
    b'a' * 4096, b'a' * 4095 + b'b', b'ab' * 2048, b'aab' * 1365 + b'a'])
def test_a_guest_cannot_make_it_slow(log, monkeypatch) -> None:
    """All consoles wait meanwhile."""
    monkeypatch.setattr(_Counted, 'looks', 0)
    live = _Counted(b'a' * 4095 + b'c')
    common(log, live, BIG)
    assert _Counted.looks <= 12 * len(live)


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_no_byte_is_missing_or_twice_while_the_guest_writes(
        before, since, late) -> None:
    """The log is behind what is live, by any number of bytes."""
    written = b''.join(b'line %d\n' % n for n in range(100))
    logged = written[:before + since]
    live = written[before:before + since + late]
    found = earlier(logged, live, since + 20, settled=False)
    assert found is None if since < 64 else found == written[:before]


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_once_both_are_quiet_it_is_exact(before, since) -> None:
    """Also where the guest writes the same all the time."""
    assert earlier(before + since, since, BIG, settled=True) == before


def test_a_log_that_is_late_ends_with_what_was_written_before() -> None:
    """virtlogd was not run meanwhile; the guest writes the same again."""
    assert earlier(b'boots\n', b'boots\n', 0, settled=True) is None
    assert earlier(b'boots\n' * 2, b'boots\n', 6, settled=True) == b'boots\n'


def test_a_log_that_does_not_have_what_is_live() -> None:
    """It is dead, say."""
    assert earlier(b'old', b'new', BIG, settled=True) is None
