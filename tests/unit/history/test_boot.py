# SPDX-License-Identifier: Apache-2.0
import concurrent.futures
import errno
import json
import math
import os
import pathlib
import shutil

import pytest

from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, reader
from virtlogd_driver.history import boot, inbox, logs, outbox, record

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'


def _end(path: pathlib.Path) -> reader.Position | None:
    return reader.read_tail(str(path), 1).position


def _following(path: str, position: reader.Position) -> int | None:
    since = reader.read_from(path, position, 0)
    return None if since.missed is None else since.behind


def _since(path: pathlib.Path, noted: boot.Boot, port: int = 0) -> bytes:
    """What a reader gets from a boot on."""
    data = b''
    position = noted.positions[port]
    while True:
        since = reader.read_from(str(path), position, 1000)
        data += since.data
        position = since.position
        if not since.data and not since.behind:
            return data


def _append(path: pathlib.Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


@pytest.fixture
def here(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three boots: 'one', 'two', and 'three' after a rotation."""
    path = tmp_path / 'here'
    path.mkdir()
    live = path / 'console.log'
    chain.begin(str(live))
    boot.add(str(path), boot.Boot(1.5, {0: None}))
    _append(live, b'one\n')
    boot.add(str(path), boot.Boot(2.5, {0: _end(live)}))
    _append(live, b'two\n')
    live.rename(path / 'console.log.0')
    _append(live, b'rest of two\n')
    boot.add(str(path), boot.Boot(3.5, {0: _end(live)}))
    _append(live, b'three\n')
    return path


def _carry(here: pathlib.Path, there: pathlib.Path,
           limit: int = 1000) -> pathlib.Path:
    """As if to another host; the live file there."""
    there.mkdir(exist_ok=True)
    path = outbox.make(str(here), outbox.begin_departure(
        GUEST, 'address', 'host2', str(there), {0: 1}))
    outbox.fill(path, str(here))
    staged = outbox.stage(
        path, limit, lambda path, limit: reader.read_tail(path, limit).data,
        _following)
    shutil.copytree(staged, there / logs.MOVING)
    live = there / 'console.g1.log'
    chain.begin(str(live))
    assert inbox.receive(inbox.Place(str(there), limit)) == []
    return live


def test_survive_rotation(here) -> None:
    boots = boot.read(str(here))
    assert [noted.time for noted in boots] == [1.5, 2.5, 3.5]
    live = here / 'console.log'
    assert [_since(live, noted) for noted in boots] == [
        b'one\ntwo\nrest of two\nthree\n', b'two\nrest of two\nthree\n',
        b'three\n']


def test_survive_a_move(here, tmp_path) -> None:
    live = _carry(here, tmp_path / 'there')
    _append(live, b'moved\n')
    boot.add(str(live.parent), boot.Boot(4.5, {0: _end(live)}))
    _append(live, b'four\n')
    boots = boot.read(str(live.parent))
    assert [noted.time for noted in boots] == [1.5, 2.5, 3.5, 4.5]
    assert [_since(live, noted) for noted in boots[1:]] == [
        b'two\nrest of two\nthree\nmoved\nfour\n',
        b'three\nmoved\nfour\n', b'four\n']


def test_what_is_cut_off_begins_at_the_beginning(here, tmp_path) -> None:
    live = _carry(here, tmp_path / 'there', limit=20)
    boots = boot.read(str(live.parent))
    assert boots[1].positions == {0: None}
    assert _since(live, boots[1]) == b'o\nrest of two\nthree\n'
    assert _since(live, boots[2]) == b'three\n'


def test_a_start_while_the_others_are_on_their_way_stays(
        here, tmp_path) -> None:
    there = tmp_path / 'there'
    there.mkdir()
    boot.add(str(there), boot.Boot(9.5, {0: None}))
    live = _carry(here, there)
    assert [noted.time for noted in boot.read(str(live.parent))] == [
        1.5, 2.5, 3.5, 9.5]


def test_bounded(tmp_path) -> None:
    for n in range(boot.KEPT + 5):
        boot.add(str(tmp_path), boot.Boot(float(n), {0: None}))
    boots = boot.read(str(tmp_path))
    assert [noted.time for noted in boots] == [
        float(n) for n in range(5, boot.KEPT + 5)]
    assert os.listdir(tmp_path) == [boot.FILE]


def test_the_number_goes_on(tmp_path) -> None:
    directory = str(tmp_path)
    for number in range(boot.KEPT + 20):
        boot.add(directory, boot.Boot(float(number), {}))
    noted = boot.read(directory)
    assert [one.number for one in noted] == list(range(21, boot.KEPT + 21))
    assert [one.time + 1 for one in noted] == [one.number for one in noted]


def test_a_start_is_the_same_whatever_its_number() -> None:
    """Each is counted anew where older ones come."""
    noted = boot.Boot(1.5, {0: None})
    assert noted == boot.Boot(1.5, {0: None}, 3)
    # It is the next, until it is noted.
    assert noted.number == 0


def test_an_earlier_version_has_noted_no_numbers(tmp_path) -> None:
    file = tmp_path / boot.FILE
    file.write_text('{"time": 1.0, "positions": {}}\n' * 2)
    assert [one.number for one in boot.read(str(tmp_path))] == [1, 2]
    boot.add(str(tmp_path), boot.Boot(3.0, {}))
    assert [one.number for one in boot.read(str(tmp_path))] == [1, 2, 3]
    # It reads what this one has written: it takes what it knows.
    assert all({'time', 'positions'} <= json.loads(line).keys()
               for line in file.read_text().splitlines())


def test_older_ones_that_come_are_counted_before(tmp_path) -> None:
    for name, times in (('older', range(150)), ('newer', (200, 201))):
        (tmp_path / name).mkdir()
        for time in times:
            boot.add(str(tmp_path / name), boot.Boot(float(time), {}))
    boot.merge(str(tmp_path / 'older'), str(tmp_path / 'newer'))
    noted = boot.read(str(tmp_path / 'newer'))
    assert [(one.number, one.time) for one in noted[-3:]] == [
        (150, 149.0), (151, 200.0), (152, 201.0)]


def test_none_was_noted(tmp_path) -> None:
    assert boot.read(str(tmp_path)) == []
    assert boot.read(str(tmp_path / 'gone')) == []


@pytest.mark.parametrize('line', [
    b'', b'{', b'[]', b'7', b'null', b'{"time": 1}', b'{"time": "x"}',
    b'{"time": 1, "positions": []}', b'{"time": 1, "positions": {"a": null}}',
    b'{"time": 1, "positions": {"0": "no token"}}', b'\xff\xfe',
    b'[' * 5000, b'{"time": NaN, "positions": {}}', b'9' * 5000,
    b'{"time": 2.5e11, "positions": {}}', b'{"time": -1, "positions": {}}',
    b'{"time": 1' + b'0' * 400 + b', "positions": {}}',
    b'{"time": 1, "positions": {"' + b'9' * 5000 + b'": null}}'],
    ids=lambda line: line[:20])
def test_a_damaged_line_is_left_out(tmp_path, line) -> None:
    boot.add(str(tmp_path), boot.Boot(1.5, {0: None}))
    with (tmp_path / boot.FILE).open('ab') as file:
        file.write(line + b'\n')
    boot.add(str(tmp_path), boot.Boot(2.5, {0: None}))
    assert [noted.time for noted in boot.read(str(tmp_path))] == [1.5, 2.5]


def test_a_link_is_not_followed(tmp_path) -> None:
    victim = tmp_path / 'victim'
    victim.write_text('{"time": 1, "positions": {}}')
    (tmp_path / boot.FILE).symlink_to(victim)
    with pytest.raises(exception.LogRefused):
        boot.read(str(tmp_path))
    (tmp_path / f'{boot.FILE}.new').symlink_to(victim)
    boot.write(str(tmp_path), [])
    assert victim.read_text() == '{"time": 1, "positions": {}}'


@pytest.mark.parametrize('make', [pathlib.Path.mkdir, os.mkfifo])
def test_what_is_no_file_of_ours(tmp_path, make) -> None:
    """It is refused at once, and nothing stays open."""
    make(tmp_path / boot.FILE)
    with pytest.raises(exception.LogRefused, match='remove it'):
        boot.read(str(tmp_path))
    assert descriptors.below(tmp_path) == []


@pytest.mark.parametrize(('number', 'kind', 'remedy'), [
    (errno.EACCES, exception.LogRefused, 'run as root'),
    (errno.EIO, exception.LogError, 'see to the file system')])
def test_a_file_that_cannot_be_read(tmp_path, monkeypatch, number, kind,
                                    remedy) -> None:
    def fails(*_: object, **__: object) -> bytes:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(boot.files, 'read', fails)
    with pytest.raises(exception.LogError) as said:
        boot.read(str(tmp_path))
    assert type(said.value) is kind
    assert (f'console.boots cannot be read ({os.strerror(number)}): {remedy}'
            in str(said.value))


def test_of_a_file_that_has_grown_the_beginning_is_read(tmp_path) -> None:
    """It is written anew with the next start."""
    boot.add(str(tmp_path), boot.Boot(1.5, {0: None}))
    with (tmp_path / boot.FILE).open('ab') as file:
        file.write(b'x' * (boot._MAX_SIZE + 1))
    boot.add(str(tmp_path), boot.Boot(2.5, {0: None}))
    assert [noted.time for noted in boot.read(str(tmp_path))] == [1.5, 2.5]
    assert (tmp_path / boot.FILE).stat().st_size < 1000


def test_starts_that_are_noted_at_once(tmp_path, monkeypatch) -> None:
    """A guest is started while its history comes."""
    # How long so many take is the disk's affair.
    monkeypatch.setattr(boot, 'LOCK_TIMEOUT', math.inf)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        noted = [pool.submit(boot.add, str(tmp_path),
                             boot.Boot(time, {0: None}))
                 for time in range(boot.KEPT)]
    for note in noted:
        note.result()
    assert {noted.time for noted in boot.read(str(tmp_path))} == set(
        range(boot.KEPT))


@pytest.mark.parametrize('number', [
    '"7"', 'true', '-1', '1.5', 'null', str(1 << 62), str(1 << 63),
    '1' * 4000])
def test_a_number_that_is_none_takes_no_start_along(
        tmp_path, number: str) -> None:
    """Nor one that is too large for the record of a history."""
    (tmp_path / boot.FILE).write_text(
        f'{{"time": 1.0, "positions": {{}}, "number": {number}}}\n')
    boot.add(str(tmp_path), boot.Boot(2.0, {}))
    noted = boot.read(str(tmp_path))
    assert [one.time for one in noted] == [1.0, 2.0]
    for one in noted:
        record.parse_boot({
            'time': one.time, 'following': {}, 'number': one.number})
