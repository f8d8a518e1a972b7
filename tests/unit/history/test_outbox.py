# SPDX-License-Identifier: Apache-2.0
"""An outbox keeps what a guest wrote here until its new host has it."""

import errno
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import pytest

from tests.unit.history.test_logs import write
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, reader
from virtlogd_driver.history import boot, files, inbox, logs, outbox, record

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
OTHER = '6ba7b811-9dad-11d1-80b4-00c04fd430c8'
ID = 'ab' * 16
LIMIT = 1000


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / GUEST
    path.mkdir()
    return path


@pytest.fixture
def resized(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / f'{GUEST}_resize'
    path.mkdir()
    return path


def departure(**changes: Any) -> outbox.Departure:
    values: dict[str, Any] = {
        'id': ID, 'guest': GUEST, 'address': '192.0.2.9', 'host': 'other',
        'directory': f'/there/{GUEST}', 'generations': {0: 3},
        'stint': None, 'since': 100.0}
    return outbox.Departure(**(values | changes))


def make(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    return pathlib.Path(outbox.make(str(directory), departure(**changes)))


def names(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory))


class Removals:
    """Notes which names are removed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for name in ('unlink', 'rmdir'):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))

    def _noting(self, call: Any) -> Any:
        def noting(path: str) -> None:
            call(path)
            self.names.append(os.path.basename(path))
        return noting


class TestDeparture:

    @pytest.mark.parametrize('stint', [None, {}, {0: 2, 1: 0}])
    def test_what_is_written_down_is_read(self, directory, stint) -> None:
        path = make(directory, stint=stint, generations={0: 3, 1: 1})
        assert path.name == f'{GUEST}_leaving.{ID}'
        assert path.stat().st_mode & 0o777 == 0o700
        assert names(path) == ['departure.json']
        assert outbox.load(str(path)) == departure(
            stint=stint, generations={0: 3, 1: 1})
        assert outbox.guest_of(str(path)) == GUEST

    def test_another_address(self, directory) -> None:
        """What a crash has left of an earlier one is in nobody's way."""
        path = make(directory)
        (path / 'departure.json.new').write_bytes(b'half')
        outbox.address(str(path), departure(address='192.0.2.7'))
        assert names(path) == ['departure.json']
        found = outbox.load(str(path))
        assert found is not None
        assert found.address == '192.0.2.7'

    @pytest.mark.parametrize('bad', [
        b'', b'{', b'[]', b'7', b'null', b'{}', b'[' * 100_000])
    def test_one_that_cannot_be_read(self, directory, bad) -> None:
        path = make(directory)
        (path / 'departure.json').write_bytes(bad)
        assert outbox.load(str(path)) is None

    @pytest.mark.parametrize(('key', 'value'), [
        ('generations', {'0': 1e400}), ('generations', {'0': -1}),
        ('generations', {'0': 10 ** 9}), ('stint', {'-1': 0}),
        ('stint', {str(10 ** 9): 0}), ('since', 1e400), ('since', -0.5),
        ('since', boot.LATEST)])
    def test_one_with_a_number_that_is_none(self, directory, key,
                                            value) -> None:
        path = make(directory)
        values = json.loads((path / 'departure.json').read_bytes())
        (path / 'departure.json').write_text(json.dumps(
            values | {key: value}).replace('Infinity', '1e400'))
        assert outbox.load(str(path)) is None
        assert len(outbox.waiting(str(directory.parent))) == 1

    @pytest.mark.parametrize(('key', 'value'), [
        ('generations', {'0': 0, '999999999': 999_999_999}),
        ('stint', {'0': 0}), ('since', 0.0)])
    def test_one_with_numbers_that_may_be(self, directory, key,
                                          value) -> None:
        path = make(directory)
        values = json.loads((path / 'departure.json').read_bytes())
        (path / 'departure.json').write_text(json.dumps(
            values | {key: value}))
        assert outbox.load(str(path)) is not None

    def test_one_of_a_later_version(self, directory) -> None:
        path = make(directory)
        values = json.loads((path / 'departure.json').read_bytes())
        assert values['version'] == 1
        (path / 'departure.json').write_text(json.dumps(
            values | {'version': 2}))
        assert outbox.load(str(path)) is None

    @pytest.mark.parametrize('key', [
        'version', 'id', 'guest', 'address', 'host', 'directory',
        'generations', 'stint', 'since'])
    def test_one_with_a_value_missing_or_wrong(self, directory, key) -> None:
        path = make(directory)
        values = json.loads((path / 'departure.json').read_bytes())
        del values[key]
        (path / 'departure.json').write_text(json.dumps(values))
        assert outbox.load(str(path)) is None
        if key in ('generations', 'stint', 'since'):
            (path / 'departure.json').write_text(json.dumps(
                values | {key: 'x'}))
            assert outbox.load(str(path)) is None

    def test_nothing_is_left_where_it_cannot_be_made(
            self, directory, monkeypatch) -> None:
        def fail(*_: object) -> None:
            raise OSError
        monkeypatch.setattr(files, 'write', fail)
        with pytest.raises(OSError):  # noqa: PT011 - any
            make(directory)
        assert names(directory.parent) == [GUEST]

    def test_no_two_have_the_same_id(self) -> None:
        one, two = outbox.new_id(), outbox.new_id()
        assert one != two
        assert re.fullmatch('[0-9a-f]{32}', one)


class TestState:

    def test_what_is_written_down_is_read(self, directory) -> None:
        path = str(make(directory))
        assert outbox.load_state(path) == outbox.State(0, False, '', False)
        for state in (outbox.State(7, True, 'x' * 1000, False),
                      outbox.State(0, False, '', True)):
            outbox.save_state(path, state)
            assert outbox.load_state(path) == state

    def test_it_is_tried_once_more(self) -> None:
        """It is as before, or something else is in the way."""
        before = outbox.State(3, True, 'refused', final=True)
        assert before.again() == outbox.State(4, True, 'refused')
        assert before.again('lost') == outbox.State(4, True, 'lost')
        assert before.again('') == outbox.State(4, True)

    def test_a_long_reason_is_cut(self, directory) -> None:
        path = str(make(directory))
        outbox.save_state(path, outbox.State(1, reason='x' * 1001))
        assert outbox.load_state(path).reason == 'x' * 1000

    @pytest.mark.parametrize('bad', [
        b'', b'{', b'[]', b'7', b'null', b'{}', b'[' * 100_000,
        b'{"attempts": null}', b'{"attempts": "x"}',
        b'{"attempts": 1e400, "copied": true, "reason": "", "final": true}'])
    def test_one_that_cannot_be_read(self, directory, bad) -> None:
        """It is tried as if for the first time."""
        path = make(directory)
        (path / 'state.json').write_bytes(bad)
        assert outbox.load_state(str(path)) == outbox.State()

    def test_fewer_attempts_than_none(self, directory) -> None:
        """The next would follow at once, again and again."""
        path = str(make(directory))
        outbox.save_state(path, outbox.State(-9, reason='refused'))
        assert outbox.load_state(path) == outbox.State(0, reason='refused')


def test_a_start_of_a_port_that_there_cannot_be(directory) -> None:
    """A line that is damaged: the other host would refuse all for it."""
    path = make(directory)
    write(path, 'console.log', b'x')
    write(path, boot.FILE, b'{"time": 1, "positions": {"-1": null, "0": null,'
                           b' "63": null, "64": null}}\n')
    staging = pathlib.Path(outbox.stage(
        str(path), 99, lambda *_: b'x', lambda *_: 1))
    sent = record.parse((staging / record.FILE).read_bytes(), 99)
    assert [set(noted.following) for noted in sent.boots] == [{0, 63}]


class TestWaiting:

    def test_the_oldest_first(self, directory) -> None:
        parent = str(directory.parent)
        tried = make(directory, id='1' * 32, since=300.0)
        outbox.save_state(str(tried), outbox.State(4, reason='refused'))
        filled = make(directory, id='2' * 32, since=200.0, host='')
        write(filled, 'console.log', b'x')
        begun = make(directory, id='3' * 32)
        old = directory.parent / f'{OTHER}_leaving.{"4" * 32}'
        old.mkdir()
        os.utime(old, (100, 100))
        assert outbox.waiting(parent) == [
            outbox.Waiting(
                OTHER, str(old), '', 100.0, 0,
                'nova-compute looks where to at its next start'),
            outbox.Waiting(GUEST, str(filled), '192.0.2.9', 200.0, 0,
                           'it is on its way'),
            outbox.Waiting(GUEST, str(tried), 'other', 300.0, 4, 'refused')]
        assert outbox.paths(parent) == [
            str(path) for path in (tried, filled, begun, old)]
        assert outbox.paths(parent, OTHER) == [str(old)]

    def test_a_disk_does_not_tell_of_one(self, directory,
                                         monkeypatch) -> None:
        """The others are told of, and so is that one."""
        made = [make(directory, id=digit * 32, since=300.0)
                for digit in '12']
        for path in made:
            write(path, 'console.log', b'x')
        os.utime(made[0], (100, 100))
        listdir = os.listdir

        def fail(path: str) -> list[str]:
            if path == str(made[0]):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return listdir(path)
        monkeypatch.setattr(os, 'listdir', fail)
        assert [(one.path, one.since, one.attempts, one.reason)
                for one in outbox.waiting(str(directory.parent))] == [
            (str(made[0]), 100.0, 0,
             'it cannot be looked at: Input/output error'),
            (str(made[1]), 300.0, 0, 'it is on its way')]

    def test_one_has_just_gone(self, directory, monkeypatch) -> None:
        """The others are told of."""
        gone, old = (directory.parent / f'{OTHER}_leaving.{digit * 32}'
                     for digit in '12')
        for path in (gone, old):
            path.mkdir()
        lstat = os.lstat

        def fail(path: str) -> os.stat_result:
            if path == str(gone):
                raise FileNotFoundError(path)
            return lstat(path)
        monkeypatch.setattr(os, 'lstat', fail)
        assert [one.path for one in outbox.waiting(
            str(directory.parent))] == [str(old)]

    def test_other_directories(self, directory, resized) -> None:
        (directory.parent / '_base').mkdir()
        (directory.parent / f'x_leaving.{ID}').mkdir()
        assert outbox.paths(str(directory.parent)) == []
        assert outbox.paths(f'{directory}-not-there') == []


class TestFill:

    def test_it_was_made(self, directory) -> None:
        write(directory, 'console.log', b'then')
        (directory / 'disk').touch()
        path = make(directory)
        assert not outbox.is_filled(str(path))
        assert outbox.fill(str(path), str(directory)) == str(path)
        assert outbox.is_filled(str(path))
        assert names(directory) == ['disk']
        assert (path / 'console.log').read_bytes() == b'then'

    @pytest.mark.parametrize('suffix', ['', '_resize'])
    def test_there_was_no_room_for_it(self, directory, resized,
                                      suffix) -> None:
        """The logs stay, and nothing else that nova would have deleted."""
        here = resized if suffix else directory
        write(here, 'console.log', b'then')
        (here / 'disk').touch()
        (here / 'console.moving').mkdir()
        path = pathlib.Path(outbox.fill(None, str(here)))
        assert not here.exists()
        assert outbox.paths(str(directory.parent), GUEST) == [str(path)]
        assert names(path) == ['console.log']

    def test_where_the_logs_are(self, directory, tmp_path) -> None:
        path = make(directory)
        assert outbox.source(str(path)) == str(path)
        resized = tmp_path / f'{GUEST}_resize'
        write(resized, 'console.log', b'then')
        assert outbox.source(str(path)) == str(resized)
        write(path, 'console.g1.log', b'x')
        assert outbox.source(str(path)) == str(path)


class TestFinish:
    """The logs stay in nova's directory until a migration is confirmed."""

    def test_the_guest_would_go_on_in_another_log(self, directory,
                                                  resized) -> None:
        """There is room for what it writes meanwhile between the two."""
        write(resized, 'console.g1.log', b'then')
        write(resized, 'console.port1.log', b'port 1')
        path = make(directory)
        assert not outbox.is_delivered(str(resized))
        outbox.finish(str(path), departure())
        assert names(resized) == [
            'console.g1.log', 'console.g3.log', 'console.port1.g2.log',
            'console.port1.log']
        assert outbox.is_delivered(str(resized))
        assert not path.exists()

    def test_not_twice(self, directory, resized) -> None:
        write(resized, 'console.log', b'then')
        for _ in range(2):
            outbox.finish(str(make(directory)), departure())
        assert names(resized) == ['console.g2.log', 'console.log']

    def test_after_a_crash_amid_it(self, directory, resized) -> None:
        write(resized, 'console.log', b'then')
        chain.begin(str(resized / 'console.g2.log'))
        write(resized, 'console.port1.log', b'port 1')
        outbox.finish(str(make(directory)), departure())
        assert names(resized) == [
            'console.g2.log', 'console.log', 'console.port1.log']

    def test_what_goes_back(self, directory, resized) -> None:
        """The rest is there already, and the guest as well."""
        write(resized, 'console.log', b'then')
        outbox.finish(str(make(directory)), departure(stint={0: 1}))
        assert names(resized) == ['console.log']

    def test_the_logs_are_in_the_outbox(self, directory) -> None:
        path = make(directory)
        write(path, 'console.log', b'then')
        outbox.finish(str(path), departure())
        assert names(directory.parent) == [GUEST]

    @pytest.mark.parametrize(('present', 'delivered'), [
        ([], False), (['console.log'], False), (['console.g1.log'], False),
        (['console.g2.log'], True),
        (['console.g2.log', 'console.log'], True),
        (['console.g2.log', 'console.g1.log'], False),
        (['console.g2.log', 'console.g1.log.0'], False),
        (['console.g2.log', 'console.port1.log'], True)])
    def test_what_says_so(self, resized, present, delivered) -> None:
        """An empty log after a gap, which nothing else makes."""
        for name in present:
            chain.begin(str(resized / name))
        assert outbox.is_delivered(str(resized)) == delivered
        if present:
            (resized / present[0]).write_bytes(b'x')
            assert not outbox.is_delivered(str(resized))

    def test_what_says_so_is_removed_last(self, resized,
                                          monkeypatch) -> None:
        write(resized, 'console.log', b'then')
        write(resized, 'console.log.0', b'before')
        write(resized, 'console.g2.log', b'')
        write(resized, 'console.port1.log', b'x')
        write(resized, 'console.port1.g2.log', b'')
        boot.write(str(resized), [boot.Boot(1.0, {})])
        (resized / 'disk').touch()
        removed = Removals(monkeypatch)
        outbox.remove_delivered(str(resized))
        assert set(removed.names[-2:]) == {
            'console.g2.log', 'console.port1.g2.log'}
        assert len(removed.names) == 6
        assert names(resized) == ['disk']


class TestUnsent:

    @pytest.fixture(autouse=True)
    def filled(self, resized: pathlib.Path) -> None:
        write(resized, 'console.log', b'then')

    def test_there_was_no_room_for_an_outbox(self, resized) -> None:
        assert outbox.unsent(str(resized.parent)) == [
            str(resized.parent / GUEST)]

    def test_the_guest_is_here(self, directory, resized) -> None:
        assert outbox.unsent(str(resized.parent)) == []

    def test_there_is_one(self, resized) -> None:
        make(resized.parent / GUEST)
        assert outbox.unsent(str(resized.parent)) == []

    def test_it_is_delivered(self, resized) -> None:
        chain.begin(str(resized / 'console.g2.log'))
        assert outbox.unsent(str(resized.parent)) == []

    def test_there_are_no_logs(self, resized) -> None:
        (resized / 'console.log').rename(resized / 'disk')
        assert outbox.unsent(str(resized.parent)) == []

    def test_the_same_beside_it(self, resized) -> None:
        """The logs are elsewhere: that is no departure."""
        resized.rename(resized.parent / f'{GUEST}_console')
        assert outbox.unsent(str(resized.parent)) == []


def test_where_to_is_removed_last(directory, monkeypatch) -> None:
    """The rest means nothing without it; what is copied goes first."""
    path = make(directory)
    (path / 'console.moving').mkdir()
    (path / 'console.moving/history.0').touch()
    (path / 'fetched').mkdir()
    write(path, 'console.log', b'x')
    outbox.save_state(str(path), outbox.State(1))
    removed = Removals(monkeypatch)
    outbox.discard(str(path))
    assert not path.exists()
    assert removed.names[:2] == ['history.0', 'console.moving']
    assert removed.names[-2:] == ['departure.json', path.name]


def read(path: str, limit: int) -> bytes:
    try:
        return reader.read_tail(path, limit).data
    except exception.LogNotFound:
        reader.forget(os.path.dirname(path))
        raise


def stage(path: pathlib.Path, limit: int = LIMIT,
          following: outbox.Following = lambda *_: None
          ) -> tuple[pathlib.Path, record.Record]:
    staging = pathlib.Path(outbox.stage(str(path), limit, read, following))
    reader.forget(str(path))
    return staging, record.parse(
        (staging / record.FILE).read_bytes(), LIMIT)


class TestStage:

    def test_each_port(self, directory) -> None:
        path = make(directory, generations={1: 5})
        write(path, 'console.log', b'then')
        write(path, 'console.g1.log', b'now')
        write(path, 'console.port1.log', b'port 1')
        staging, sent = stage(path)
        assert staging == path / 'console.moving'
        assert (sent.departure, sent.stint) == (ID, False)
        assert [(one.port, one.generation, one.size, one.whole)
                for one in sent.histories] == [
                    (0, 1, 7, True), (1, 5, 6, True)]
        assert names(staging) == ['history.0', 'history.1', 'record.json']
        assert staging.stat().st_mode & 0o777 == 0o700
        for one, data in zip(sent.histories, (b'thennow', b'port 1'),
                             strict=True):
            assert (staging / one.file).read_bytes() == data
            assert one.digest == record.digest([data])

    def test_once(self, directory) -> None:
        """The other host may have the half of it already."""
        path = make(directory)
        write(path, 'console.log', b'then')
        staging, sent = stage(path)
        write(path, 'console.log', b'more')
        assert stage(path) == (staging, sent)
        assert (staging / 'history.0').read_bytes() == b'then'

    def test_after_a_crash(self, directory) -> None:
        path = make(directory)
        write(path, 'console.log', b'then')
        (path / 'console.moving.new').mkdir()
        (path / 'console.moving.new/history.0').write_bytes(b'half')
        staging, _ = stage(path)
        assert (staging / 'history.0').read_bytes() == b'then'
        assert not (path / 'console.moving.new').exists()

    def test_nothing_was_written(self, directory) -> None:
        path = make(directory)
        write(path, 'console.log', b'')
        write(path, 'console.port1.log.0', b'')
        _, sent = stage(path)
        assert sent.histories == ()

    def test_no_port_holds_up_another(self, directory) -> None:
        """One whose log is gone, and one that wrote nothing."""
        path = make(directory)
        for port in range(3):
            write(path, f'console{f".port{port}" if port else ""}.log', b'')

        def none_or_nothing(log: str, limit: int) -> bytes:
            if log.endswith('/console.log'):
                raise exception.LogNotFound('x')
            return b'' if 'port1' in log else b'port 2'
        outbox.stage(str(path), LIMIT, none_or_nothing, lambda *_: None)
        assert names(path / 'console.moving') == ['history.2', 'record.json']

    @pytest.mark.parametrize(('limit', 'whole'), [(4, True), (3, False)])
    def test_a_bound(self, directory, limit, whole) -> None:
        path = make(directory)
        write(path, 'console.log', b'then')
        staging, sent = stage(path, limit)
        assert [one.whole for one in sent.histories] == [whole]
        assert (staging / 'history.0').read_bytes() == b'then'[-limit:]

    def test_virtlogd_had_removed_some(self, directory) -> None:
        path = make(directory)
        (path / 'console.log').write_bytes(b'then')
        write(path, 'console.g1.log', b'now')
        _, sent = stage(path)
        assert [one.whole for one in sent.histories] == [False]

    @pytest.mark.parametrize(('limit', 'data', 'whole'), [
        (LIMIT, b'therelast', True), (4, b'last', False)])
    def test_what_goes_back(self, directory, limit, data, whole) -> None:
        """What the other host has is left out, the bound as elsewhere."""
        path = make(directory, stint={0: 2}, generations={})
        for name, text in (
                ('console.g1.history', b'then'), ('console.g1.log', b'then'),
                ('console.g2.history', b'then'), ('console.g2.log', b'there'),
                ('console.g3.log', b'last')):
            write(path, name, text)
        staging, sent = stage(path, limit)
        assert sent.stint
        assert (staging / 'history.0').read_bytes() == data
        assert [one.whole for one in sent.histories] == [whole]

    def test_what_goes_back_is_empty(self, directory) -> None:
        """It says that nothing is missing between."""
        path = make(directory, stint={0: 1})
        write(path, 'console.g1.log', b'')
        _, sent = stage(path)
        assert [(one.size, one.whole) for one in sent.histories] == [
            (0, True)]

    def test_of_a_port_that_the_other_host_has_not(self, directory) -> None:
        path = make(directory, stint={1: 7})
        write(path, 'console.log', b'all')
        staging, _ = stage(path)
        assert (staging / 'history.0').read_bytes() == b'all'

    def test_what_these_contain(self, directory) -> None:
        """What was refused, or not waited for, is not in them."""
        path = make(directory)
        write(path, 'console.log', b'then')
        logs.note_received(str(path), {
            'c' * 32: '', 'd' * 32: 'refused', '-': ''})
        _, sent = stage(path)
        assert sent.received == ('c' * 32,)

    def test_boots(self, directory) -> None:
        """By how many bytes follow; those of the newest."""
        path = make(directory)
        write(path, 'console.log', b'1st2nd')
        position = reader.read_tail(str(path / 'console.log'), 3).position
        boot.write(str(path), [
            boot.Boot(1.0, {0: None}),
            boot.Boot(2.0, {0: position, 1: position})])
        asked = []

        def following(log: str, place: object) -> int:
            asked.append((log, place))
            return 3
        _, sent = stage(path, following=following)
        assert sent.boots == (record.Boot(1.0, {0: None}, 1),
                              record.Boot(2.0, {0: 3, 1: None}, 2))
        assert asked == [(str(path / 'console.log'), position)]

    def test_a_boot_in_a_log_that_cannot_be_read(self, directory) -> None:
        def following(*_: object) -> int:
            raise exception.LogError('x')
        path = make(directory)
        write(path, 'console.log', b'1st2nd')
        position = reader.read_tail(str(path / 'console.log'), 3).position
        boot.write(str(path), [boot.Boot(2.0, {0: position})])
        _, sent = stage(path, following=following)
        assert sent.boots == (record.Boot(2.0, {0: None}, 1),)


class TestOfAnEarlierVersion:

    def fill(self, directory: pathlib.Path, data: bytes
             ) -> pathlib.Path:
        path = pathlib.Path(outbox.path_of(str(directory), ID))
        staging = path / 'console.moving'
        staging.mkdir(parents=True)
        for port, text in enumerate((b'then', b'port 1')):
            digest = hashlib.blake2b(text, digest_size=16).hexdigest()
            name = f'console{".port1" if port else ""}.g3.history'
            (staging / f'{name}.{digest}').write_bytes(
                text if port else data)
        (staging / 'console.boots.x').touch()
        (path / 'disk').touch()
        return path

    def test_it_is_taken(self, directory) -> None:
        path = self.fill(directory, b'then')
        outbox.adopt_old(str(path))
        assert names(path) == ['console.log', 'console.port1.log']
        assert (path / 'console.log').read_bytes() == b'then'

    def test_half_of_one_is_not(self, directory) -> None:
        path = self.fill(directory, b'th')
        outbox.adopt_old(str(path))
        assert names(path) == ['console.port1.log']

    def test_a_link_is_not(self, directory, tmp_path) -> None:
        path = self.fill(directory, b'then')
        for one in (path / 'console.moving').glob('console.g3*'):
            one.rename(tmp_path / 'victim')
            one.symlink_to(tmp_path / 'victim')
        outbox.adopt_old(str(path))
        assert names(path) == ['console.port1.log']

    def test_there_is_none(self, directory) -> None:
        path = self.fill(directory, b'th')
        for one in (path / 'console.moving').glob('console.port1*'):
            one.unlink()
        outbox.adopt_old(str(path))
        assert not outbox.is_filled(str(path))
        assert names(path) == ['console.moving', 'disk']

    def test_the_name_of_what_is_whole(self, directory) -> None:
        path = self.fill(directory, b'th') / 'console.moving'
        found = {name: inbox.old_name(str(path), name)
                 for name in names(path)}
        assert sorted(found.values(), key=str) == [
            None, None, 'console.port1.g3.history']
