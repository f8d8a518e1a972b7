# SPDX-License-Identifier: Apache-2.0
"""What comes from another host is put in place, or refused and removed."""

import errno
import json
import os
import pathlib
import tracemalloc

import pytest

from tests.unit.history import staged
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.history import boot, files, inbox, logs, record

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
LIMIT = 1000


@pytest.fixture
def there(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / GUEST
    path.mkdir()
    return path


def receive(there: pathlib.Path, **changes) -> list[str]:
    return inbox.receive(inbox.Place(str(there), LIMIT, **changes))


def is_complete(there: pathlib.Path) -> bool:
    return inbox.is_complete(inbox.Place(str(there), LIMIT))


def names(there: pathlib.Path) -> list[str]:
    return sorted(set(os.listdir(there)) - {logs.RECEIVED})


def begin(there: pathlib.Path, name: str = 'console.g1.log',
          data: bytes = b'now') -> None:
    chain.begin(str(there / name))
    (there / name).write_bytes(data)


def text(there: pathlib.Path, name: str = 'console.g1.log') -> bytes:
    return reader.read_tail(str(there / name), LIMIT).data


def breaks(monkeypatch: pytest.MonkeyPatch, path: pathlib.Path) -> None:
    """A disk does not give one file."""
    real = os.open

    def broken(name: str, *args: int) -> int:
        if os.path.basename(name) == path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return real(name, *args)
    monkeypatch.setattr(os, 'open', broken)


class TestPutInPlace:

    def test_before_the_guest_starts(self, there) -> None:
        """Of a cold migration: it says which generation is to go on."""
        staged.as_now(there, {0: b'then', 1: b'port 1'}, generation=3)
        assert is_complete(there)
        assert receive(there) == []
        assert names(there) == ['console.g3.history',
                                'console.port1.g3.history']
        assert logs.received(str(there)) == {staged.DEPARTURE: ''}
        assert (there / 'console.g3.history').stat().st_mode & 0o777 == 0o600

    def test_late(self, there) -> None:
        """It goes before what is there, whatever number it was to get."""
        begin(there)
        begin(there, 'console.g2.log', b'moved')
        staged.as_now(there, {0: b'then'}, generation=7)
        assert receive(there) == []
        assert text(there, 'console.g2.log') == b'thennowmoved'

    def test_beside_an_empty_log_that_nova_makes(self, there) -> None:
        (there / 'console.log').touch()
        begin(there)
        staged.as_now(there, {0: b'then'})
        assert receive(there) == []
        assert text(there) == b'thennow'

    def test_in_place_of_an_empty_history(self, there) -> None:
        begin(there)
        (there / 'console.g1.history').touch()
        staged.as_now(there, {0: b'then'})
        assert receive(there) == []
        assert text(there) == b'thennow'

    def test_a_log_of_another_driver_stays(self, there) -> None:
        (there / 'console.log').write_bytes(b'now')
        staged.as_now(there, {0: b'then'})
        assert receive(there) == []
        assert names(there) == ['console.history', 'console.log']
        assert (there / 'console.log').read_bytes() == b'now'

    def test_between_what_was_before_and_after(self, there) -> None:
        """A stint at the host that a guest has come back from."""
        begin(there, 'console.log', b'before')
        begin(there, 'console.g2.log', b'after')
        staged.as_now(there, {0: b'between'}, stint=True)
        assert receive(there) == []
        assert text(there, 'console.g2.log') == b'beforebetweenafter'
        assert names(there) == [
            'console.g1.log', 'console.g2.log', 'console.log']

    @pytest.mark.parametrize('order', [(2, 4), (4, 2)])
    def test_two_stints(self, there, order) -> None:
        """Each goes where it belongs, whichever comes first."""
        begin(there, 'console.log', b'0')
        begin(there, 'console.g2.log', b'2')
        begin(there, 'console.g4.log', b'4')
        for number in order:
            staged.as_now(there, {0: b'%d' % (number - 1)}, stint=True,
                          generation=number, departure=f'{number:032}')
            assert receive(there) == []
        assert text(there, 'console.g4.log') == b'01234'

    def test_a_stint_before_the_guest_starts(self, there) -> None:
        """It does not go on in that file."""
        begin(there, 'console.log', b'before')
        staged.as_now(there, {0: b'between'}, stint=True, generation=7)
        assert receive(there) == []
        assert logs.live_generation(str(there), 0) == 2
        assert text(there, 'console.g2.log') == b'beforebetween'

    def test_an_empty_stint_before_the_guest_starts(self, there) -> None:
        """It does go on in that file."""
        begin(there, 'console.log', b'before')
        staged.as_now(there, {0: b''}, stint=True)
        assert receive(there) == []
        assert names(there) == ['console.g1.log', 'console.log']
        assert logs.live_generation(str(there), 0) == 1
        assert text(there) == b'before'

    def test_a_stint_and_what_was_before_is_gone(self, there) -> None:
        staged.as_now(there, {0: b'between'}, stint=True, generation=7)
        assert receive(there) == []
        assert names(there) == ['console.g7.log', 'console.g8.log']
        assert text(there, 'console.g8.log') == b'between'

    def test_a_stint_of_a_guest_that_went_on(self, there) -> None:
        begin(there, 'console.log', b'before, after')
        staged.as_now(there, {0: b'between'}, stint=True)
        (said,) = receive(there, in_use={0: 0})
        assert 'gone on' in said
        assert names(there) == ['console.log']
        assert logs.received(str(there)) == {staged.DEPARTURE: said}

    def test_twice(self, there) -> None:
        begin(there)
        for _ in range(2):
            staged.as_now(there, {0: b'then'})
            assert receive(there) == []
            assert text(there) == b'thennow'
        assert names(there) == ['console.g1.history', 'console.g1.log']

    def test_of_another_departure(self, there) -> None:
        """Where it belongs is not known: it stays where it is."""
        begin(there)
        staged.as_now(there, {0: b'then'})
        receive(there)
        staged.as_now(there, {0: b'other'}, departure='f' * 32)
        (said,) = receive(there)
        assert 'another history' in said
        assert text(there) == b'thennow'
        assert logs.received(str(there)) == {
            staged.DEPARTURE: '', 'f' * 32: said}

    def test_what_it_contains_is_received_as_well(self, there) -> None:
        staged.as_now(there, {0: b'then'}, received=['c' * 32])
        receive(there)
        assert logs.received(str(there)) == {
            staged.DEPARTURE: '', 'c' * 32: ''}

    def test_it_is_the_newest_of_all_that_has_come(self, there) -> None:
        """Of a guest that has moved a hundred times before."""
        begin(there, 'console.log', b'before')
        for _ in range(2):
            staged.as_now(there, {0: b', there'}, stint=True, received=[
                f'{number:032x}' for number in range(100)])
            assert receive(there) == []
            (name,) = logs.newest(str(there))
            assert text(there, name) == b'before, there'

    def test_nothing_was_written(self, there) -> None:
        staged.as_now(there, {})
        assert receive(there) == []
        assert names(there) == []
        assert logs.received(str(there)) == {staged.DEPARTURE: ''}

    def test_boots(self, there) -> None:
        """By a clock that is behind, too: none is lost."""
        begin(there)
        boot.write(str(there), [boot.Boot(5.0, {0: None})])
        staged.as_now(there, {0: b'1st2nd'}, boots=[
            record.Boot(50.0, {0: 7, 1: 0}),
            record.Boot(100.0, {0: None}), record.Boot(200.0, {0: 3})])
        receive(there)
        # Of what was cut off, and of a port that nothing has come of.
        before, *noted = boot.read(str(there))
        assert before.positions == {0: None, 1: None}
        assert [one.time for one in noted] == [100.0, 200.0, 5.0]
        position = noted[1].positions[0]
        assert reader.read_from(
            str(there / 'console.g1.log'), position, LIMIT).data == b'2nd'

    @pytest.mark.parametrize('stint', [False, True])
    def test_a_boot_at_the_beginning_of_what_has_come(
            self, there, stint) -> None:
        """It begins there, whatever is older."""
        begin(there, 'console.log', b'before') if stint else begin(there)
        staged.as_now(there, {0: b'then'}, stint=stint, boots=[
            record.Boot(100.0, {0: 4})])
        assert receive(there) == []
        (noted,) = boot.read(str(there))
        assert noted.positions[0] is not None
        live = logs.newest(str(there))[0]
        assert reader.read_from(
            str(there / live), noted.positions[0], LIMIT).data == b'then'

    def test_it_is_on_the_disk_before_it_has_come(
            self, there, monkeypatch) -> None:
        """Each file, and the names, before the rename that says so."""
        synced: list[str] = []
        fsync, rename = os.fsync, os.rename

        def synced_first(here: str, to: str) -> None:
            if to.endswith(inbox.PLACING):
                arrived = there / inbox.ARRIVED
                assert {str(path) for path in arrived.iterdir()} | {
                    str(arrived)} <= set(synced)
            if to.endswith(inbox.PLACED):
                assert str(there) in synced
                assert logs.received(str(there)) != {}
            synced.clear()
            rename(here, to)

        def noted(fd: int) -> None:
            synced.append(os.readlink(f'/proc/self/fd/{fd}'))
            fsync(fd)
        monkeypatch.setattr(os, 'fsync', noted)
        monkeypatch.setattr(os, 'rename', synced_first)
        staged.as_now(there, {0: b'then', 1: b'port 1'})
        assert receive(there) == []
        assert len(names(there)) == 2

    def test_as_earlier_versions_staged_it(self, there) -> None:
        begin(there)
        listed = staged.as_old(there, {'console.g1.history': b'then'}, [
            {'time': 1.5, 'following': {'0': 2}}])
        assert is_complete(there)
        listed.rename(there / 'aside')
        assert not is_complete(there)
        (there / 'aside').rename(listed)
        assert receive(there) == []
        assert text(there) == b'thennow'
        assert [one.time for one in boot.read(str(there))] == [1.5]
        # It does not say whether it has all that was ever written.
        assert not logs.is_first(str(there / 'console.g1.history'))


class TestStillComing:

    def test_whatever_comes_first_and_however_much_of_each(
            self, there) -> None:
        staged.as_now(there, {0: b'then', 1: b'port 1'})
        for path in (there / 'console.moving').iterdir():
            whole = path.read_bytes()
            for part in (b'', whole[:-1]):
                path.write_bytes(part)
                assert not is_complete(there)
                assert receive(there) == []
            path.unlink()
            assert not is_complete(there)
            path.write_bytes(whole)
        assert is_complete(there)

    def test_half_of_what_an_earlier_version_sends(self, there) -> None:
        """It says no size: it is whole once it has its digest."""
        staged.as_old(there, {'console.g1.history': b'then'}, [
            {'time': 1.5, 'following': {'0': 2}}])
        for path in (there / 'console.moving').iterdir():
            whole = path.read_bytes()
            for part in (b'', whole[:-1], bytes(len(whole))):
                path.write_bytes(part)
                assert not is_complete(there)
                assert receive(there) == []
            path.unlink()
            assert not is_complete(there)
            assert receive(there) == []
            path.write_bytes(whole)
        assert is_complete(there)

    @pytest.mark.parametrize('name', [
        inbox.ARRIVED, inbox.PLACING, inbox.PLACED])
    def test_what_is_put_in_place_has_come(self, there, name) -> None:
        """Whatever more is coming."""
        assert not is_complete(there)
        assert not inbox.is_coming(str(there))
        (there / name).mkdir()
        (there / inbox.MOVING).mkdir()
        assert is_complete(there)
        assert inbox.is_coming(str(there))
        (there.parent / 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6').mkdir()
        (there.parent / 'other' / name).mkdir(parents=True)
        assert inbox.coming(str(there.parent)) == [GUEST]

    @pytest.mark.parametrize('lost', ['record.json', 'history.0'])
    def test_what_had_begun_to_come_when_the_power_was_cut(
            self, there, lost) -> None:
        """Nobody would make it whole: it is copied again."""
        place = inbox.Place(str(there), LIMIT)
        staged.as_now(there, {0: b'then'})
        assert not inbox.discard_incomplete(place)
        (there / 'console.moving' / lost).write_bytes(b'')
        assert inbox.discard_incomplete(place)
        assert names(there) == []

    def test_what_an_earlier_version_sends_stays(self, there) -> None:
        """Its source has kept nothing."""
        listed = staged.as_old(there, {'console.g1.history': b'then'})
        listed.unlink()
        assert not inbox.discard_incomplete(inbox.Place(str(there), LIMIT))
        assert names(there) == ['console.moving']

    def test_what_cannot_be_read_has_not_come(self, there,
                                              monkeypatch) -> None:
        staged.as_now(there, {0: b'then'})

        def broken(path: str) -> int:
            raise OSError(5, path)
        monkeypatch.setattr(files, 'open_to_read', broken)
        (said,) = receive(there)
        assert 'as it was sent' in said
        assert names(there) == []

    def test_a_record_that_cannot_be_read(self, there, monkeypatch) -> None:
        """It is sent again."""
        path = staged.as_now(there, {0: b'then'})
        breaks(monkeypatch, path)
        (said,) = receive(there)
        assert 'Input/output error' in said
        assert names(there) == []
        assert logs.received(str(there)) == {}

    @pytest.mark.parametrize('what', ['console.staged.*', 'console.g1.*',
                                      'console.boots.*'])
    def test_what_an_earlier_version_has_sent_cannot_be_read(
            self, there, monkeypatch, what) -> None:
        """Its source has it no more: it stays, and is tried again."""
        staged.as_old(there, {'console.g1.history': b'then'}, [
            {'time': 1.5, 'following': {'0': 2}}])
        for name in (inbox.MOVING, inbox.ARRIVED):
            if name != inbox.MOVING:
                (there / inbox.MOVING).rename(there / name)
            (path,) = (there / name).glob(what)
            with monkeypatch.context() as broken:
                breaks(broken, path)
                with pytest.raises(OSError, match='Input/output error'):
                    receive(there)
            assert names(there) == [name]
        assert receive(there) == []
        assert text(there, 'console.g1.history') == b'then'

    def test_what_has_come_already_cannot_be_looked_up(
            self, there, monkeypatch) -> None:
        """It does not come a second time for that."""
        staged.as_now(there, {0: b'then'}, stint=True)
        assert receive(there) == []
        staged.as_now(there, {0: b'then'}, stint=True)
        with monkeypatch.context() as broken:
            breaks(broken, there / logs.RECEIVED)
            with pytest.raises(OSError, match='Input/output error'):
                receive(there)
        assert receive(there) == []
        assert names(there) == ['console.g1.log', 'console.g2.log']

    def test_a_hole(self, there) -> None:
        """It is sent again: nothing is noted."""
        staged.as_now(there, {0: b'then'})
        (there / 'console.moving/history.0').write_bytes(bytes(4))
        assert is_complete(there)
        (said,) = receive(there)
        assert 'as it was sent' in said
        assert names(there) == []
        assert logs.received(str(there)) == {}

    @pytest.mark.parametrize('error', [
        PermissionError(errno.EACCES, ''), FileNotFoundError(errno.ENOENT, ''),
        OSError(errno.ELOOP, '')])
    def test_what_is_no_file_to_be_read_has_not_come(
            self, there, monkeypatch, error) -> None:
        """Whoever has sent it: that does not pass."""
        staged.as_old(there, {'console.g1.history': b'then'})
        (there / inbox.MOVING).rename(there / inbox.ARRIVED)

        def refused(path: str) -> int:
            raise error
        monkeypatch.setattr(files, 'open_to_read', refused)
        (said,) = receive(there)
        assert 'as it was sent' in said
        assert names(there) == []

    def test_an_earlier_version_has_not_sent_all_that_it_lists(
            self, there) -> None:
        staged.as_old(there, {'console.g1.history': b'then'})
        (there / inbox.MOVING).rename(there / inbox.ARRIVED)
        (path,) = (there / inbox.ARRIVED).glob('console.g1.*')
        path.unlink()
        assert receive(there) == ['it has no record']
        assert names(there) == []

    @pytest.mark.parametrize('following', [0, 2])
    def test_an_earlier_versions_is_half_in_place(self, there,
                                                  following) -> None:
        """As a crash has left it; where in it a start was is not known."""
        staged.as_old(there, {'console.g1.history': b'then',
                              'console.port1.g1.history': b'more'}, [
            {'time': 1.5, 'following': {'0': following, '1': 2}}])
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text(json.dumps({
            '0': 'console.g1.history', '1': 'console.port1.g1.history'}))
        (path,) = staging.glob('console.g1.history.*')
        path.rename(there / 'console.g1.history')
        assert receive(there) == []
        assert text(there, 'console.g1.history') == b'then'
        assert text(there, 'console.port1.g1.history') == b'more'
        (noted,) = boot.read(str(there))
        assert noted.positions[0] is None
        assert noted.positions[1] is not None
        assert noted.positions[1].offset == 2


class TestUntrusted:

    def test_a_port_that_the_guest_does_not_have(self, there) -> None:
        staged.as_now(there, {0: b'then', 2: b'more'})
        (said,) = receive(there, ports=2)
        assert 'no serial port 2' in said
        assert names(there) == []

    @pytest.mark.parametrize('bad', [
        b'[]', b'{}', b'[' * 100_000, b'{"version": 1}'])
    def test_a_bad_record(self, there, bad) -> None:
        """It is removed, and keeps nothing else from coming."""
        path = staged.as_now(there, {0: b'then'})
        path.write_bytes(record.digest([bad]).encode() + b'\n' + bad)
        assert is_complete(there)
        assert len(receive(there)) == 1
        assert names(there) == []
        staged.as_now(there, {0: b'then'})
        assert receive(there) == []
        assert names(there) == ['console.g1.history']

    @pytest.mark.parametrize('bad', [b'{}', b'[7]', b'["../x.' + b'a' * 32
                                     + b'"]', b'[' * 100_000])
    def test_a_bad_list_of_an_earlier_version(self, there, bad) -> None:
        staging = there / 'console.moving'
        staging.mkdir()
        (staging / f'console.staged.{record.digest([bad])}').write_bytes(bad)
        assert is_complete(there)
        assert len(receive(there)) == 1
        assert names(there) == []

    @pytest.mark.parametrize(('ports', 'refused'), [
        (record.MAX_PORTS, 0), (record.MAX_PORTS + 1, 1)])
    def test_the_longest_list_of_an_earlier_version(
            self, there, ports, refused) -> None:
        """A history of each port, and the starts."""
        staged.as_old(there, {
            f'console{f".port{port}" if port else ""}.g1.history': b'then'
            for port in range(ports)}, [{'time': 1.5, 'following': {}}])
        assert len(receive(there, ports=999)) == refused
        assert len(names(there)) == (0 if refused else ports + 1)

    @pytest.mark.parametrize('name', ['history.0', 'record.json'])
    def test_a_link(self, there, tmp_path, name) -> None:
        staged.as_now(there, {0: b'then'})
        path = there / 'console.moving' / name
        path.rename(tmp_path / 'victim')
        path.symlink_to(tmp_path / 'victim')
        receive(there)
        assert not (there / 'console.g1.history').exists()
        assert (tmp_path / 'victim').exists()

    @pytest.mark.parametrize('listed', [
        ['console.g1.history', 'console.g2.history'], ['console.g1.log'],
        ['console.g1.history', 'console.g1.log.0']])
    def test_another_list_than_an_earlier_version_makes(
            self, there, listed) -> None:
        """One history of each port, and no log that would be written."""
        staged.as_old(there, dict.fromkeys(listed, b'then'))
        (said,) = receive(there)
        assert 'not expected' in said
        assert names(there) == []

    def test_a_list_that_is_a_link(self, there, tmp_path) -> None:
        path = staged.as_old(there, {'console.g1.history': b'then'})
        path.rename(tmp_path / 'victim')
        path.symlink_to(tmp_path / 'victim')
        (said,) = receive(there)
        assert 'no regular file' in said
        assert names(there) == []

    def test_a_link_with_the_digest_of_what_it_leads_to(
            self, there, tmp_path) -> None:
        staged.as_old(there, {'console.g1.history': b'then'})
        (path,) = (there / 'console.moving').glob('console.g1*')
        path.rename(tmp_path / 'victim')
        path.symlink_to(tmp_path / 'victim')
        assert not is_complete(there)
        assert receive(there) == []
        assert names(there) == ['console.moving']

    def test_a_link_that_was_put_there_after_the_check(
            self, there, tmp_path) -> None:
        staged.as_now(there, {0: b'then'})
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text('{"0": "console.g1.history"}')
        victim = tmp_path / 'victim'
        victim.write_bytes(b'then')
        victim.chmod(0o644)
        (staging / 'history.0').unlink()
        (staging / 'history.0').symlink_to(victim)
        (said,) = receive(there)
        assert 'has not 4 bytes' in said
        assert names(there) == []
        assert victim.stat().st_mode & 0o7777 == 0o644

    @pytest.mark.parametrize(('target', 'stint'), [
        ('disk', False), ('console.log', False), ('console.g1.log', False),
        ('console.port1.g1.history', False), ('console.g1.log.0', True),
        ('console.g1.history', True), ('console.g7.log', True),
        ('console.g8.log', True),
        ('../victim', False), ('/victim', False), ('', False),
        (None, False), (['console.g1.history'], False)])
    def test_another_host_says_where_it_is_to_go(
            self, there, tmp_path, target, stint) -> None:
        """That is for this host to say; the guest writes g7."""
        if target == '/victim':
            target = f'{tmp_path}/victim'
        staged.as_now(there, {0: b'then'}, stint=stint)
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text(json.dumps({'0': target}))
        for path in (tmp_path / 'victim', there / 'disk',
                     there / 'console.g7.log'):
            path.touch()
        (said,) = receive(there, in_use={0: 7})
        assert 'is not to become' in said or 'gone on in the same' in said
        assert (tmp_path / 'victim').stat().st_size == 0
        assert names(there) == ['console.g7.log', 'disk']
        assert [path.stat().st_size for path in there.glob('*g7*')] == [0]
        assert logs.received(str(there)) == {staged.DEPARTURE: said}

    @pytest.mark.parametrize('spoil', [
        lambda staging: (staging / 'targets').unlink(),
        lambda staging: (staging / 'targets').write_text('[' * 9999),
        lambda staging: (staging / 'targets').write_text('[]'),
        lambda staging: (staging / 'record.json').unlink(),
        lambda staging: (staging / 'record.json').write_text('x'),
        lambda staging: (staging / 'history.0').write_bytes(b'longer'),
        lambda staging: (staging / 'history.0').rename(
            staging / 'history.1')])
    @pytest.mark.parametrize(('stint', 'name'), [
        (False, 'console.g1.history'), (True, 'console.g1.log')])
    def test_what_another_host_calls_checked(self, there, spoil, stint,
                                             name) -> None:
        """It holds up nothing that comes later."""
        staged.as_now(there, {0: b'then'}, stint=stint)
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text(json.dumps({'0': name}))
        spoil(staging)
        receive(there)
        assert names(there) == []
        staged.as_now(there, {0: b'then'}, stint=stint, departure='f' * 32)
        assert receive(there) == []
        assert text(there, name) == b'then'

    def test_the_guest_goes_on_in_what_a_crash_has_left_in_place(
            self, there) -> None:
        """It is in its place, and its host is told so."""
        staged.as_now(there, {0: b'then'}, stint=True)
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text('{"0": "console.g1.log"}')
        (staging / 'history.0').rename(there / 'console.g1.log')
        assert receive(there, in_use={0: 1}) == []
        assert logs.received(str(there)) == {staged.DEPARTURE: ''}
        assert text(there) == b'then'

    def test_an_earlier_version_sends_too_much(self, there) -> None:
        staged.as_old(there, {'console.g1.history': bytes(LIMIT + 1)})
        with pytest.raises(exception.LogError,
                           match='max_history_bytes = 1000'):
            receive(there)
        assert names(there) == [inbox.MOVING]
        # Its source has it no more.
        assert inbox.receive(inbox.Place(str(there), LIMIT + 1)) == []
        assert names(there) == ['console.g1.history']

    @pytest.mark.parametrize('stage', [
        lambda there: staged.as_now(there, {0: b'then', 1: b'more'}),
        lambda there: staged.as_old(there, {
            'console.g1.history': b'then',
            'console.port1.g1.history': b'more'})])
    @pytest.mark.parametrize(('limit', 'ports'), [(3, 2), (LIMIT, 1)])
    def test_options_are_others_since_some_of_it_is_in_place(
            self, there, stage, limit, ports) -> None:
        """Nothing is refused for that: nova-compute was killed amid it."""
        stage(there)
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text(json.dumps({
            '0': 'console.g1.history', '1': 'console.port1.g1.history'}))
        (path,) = [*staging.glob('history.0'), *staging.glob('console.g1.*')]
        path.rename(there / 'console.g1.history')
        if limit < LIMIT:
            with pytest.raises(exception.LogError,
                               match='max_history_bytes = 3'):
                inbox.receive(inbox.Place(str(there), limit, ports=ports))
            assert names(there) == ['console.g1.history', inbox.PLACING]
        assert receive(there, ports=ports) == []
        assert names(there) == ['console.g1.history',
                                'console.port1.g1.history']

    @pytest.mark.parametrize(('highest', 'name'), [
        (5_000_000, 'console.g4999999.log'),
        (999_999_999, 'console.g999999998.log')])
    def test_numbers_cost_nothing(self, there, highest, name) -> None:
        """However far they are from each other."""
        for number in (0, highest):
            begin(there, generation.live_name(0, number))
        staged.as_now(there, {0: b'then'}, stint=True, generation=0)
        tracemalloc.start()
        try:
            assert receive(there) == []
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 22
        assert text(there, name) == b'then'

    @pytest.mark.parametrize('present', [[0, 1], [1, 2]])
    def test_no_number_is_free_between_others(self, there, present) -> None:
        for number in present:
            begin(there, generation.live_name(0, number))
        staged.as_now(there, {0: b'then'}, stint=True, generation=9)
        assert receive(there) == []
        assert text(there, generation.live_name(
            0, present[-1] + 1))[-4:] == b'then'

    def test_a_long_name_is_cut(self, there) -> None:
        staged.as_now(there, {0: b'then'})
        staging = there / inbox.PLACING
        (there / inbox.MOVING).rename(staging)
        (staging / 'targets').write_text(json.dumps({'0': 'x' * 101}))
        (said,) = receive(there)
        assert said.endswith(f"to become '{'x' * 100}'")

    def test_there_is_no_higher_number(self, there) -> None:
        begin(there, 'console.g999999999.log')
        staged.as_now(there, {0: b'then'}, stint=True)
        with pytest.raises(exception.LogError, match='remove or rename it'):
            receive(there)
        (there / 'console.g999999999.log').unlink()
        assert receive(there) == []
        assert text(there, 'console.g1.log') == b'then'

    @pytest.mark.parametrize('name', [
        'console.moving', 'console.arrived', 'console.placing'])
    def test_a_link_to_a_directory(self, there, tmp_path, name) -> None:
        victim = tmp_path / 'victim'
        victim.mkdir()
        staged.as_now(victim, {0: b'then'})
        (there / name).symlink_to(victim / 'console.moving')
        assert receive(there) == []
        assert 'console.g1.history' not in names(there)
        assert len(os.listdir(victim / 'console.moving')) == 2

    def test_what_else_there_is(self, there) -> None:
        staged.as_now(there, {0: b'then'})
        staging = there / 'console.moving'
        (staging / 'console.g9.log').write_bytes(b'x')
        (staging / 'below').mkdir()
        (staging / 'below/disk').write_bytes(b'x')
        os.mkfifo(staging / 'fifo')
        assert receive(there) == []
        assert names(there) == ['console.g1.history']


class TestPromised:

    @pytest.mark.parametrize(('present', 'named', 'promised'), [
        (['console.g1.log'], ['console.g1.log'], True),
        (['console.g1.log', 'console.log'], ['console.g1.log'], True),
        (['console.g1.log', 'console.g1.history'], ['console.g1.log'],
         False),
        (['console.g2.log', 'console.g1.log'], ['console.g2.log'], False),
        (['console.log'], ['console.log'], False),
        ([], [], False)])
    def test_by_the_name_of_its_log(self, there, present, named,
                                    promised) -> None:
        for name in present:
            # nova makes an empty console.log.
            (there / name).write_bytes(
                b'' if name == 'console.log' and len(present) > 1 else b'x')
        assert inbox.is_promised(str(there), named) == promised

    def test_awaited_is_what_is_promised_and_what_comes(self, there) -> None:
        named = ['console.g1.log']
        (there / 'console.g1.log').write_bytes(b'x')
        assert inbox.is_awaited(str(there), named)
        assert not inbox.is_awaited(str(there), ['console.log'])
        (there / inbox.MOVING).mkdir()
        assert inbox.is_awaited(str(there), ['console.log'])

    def test_not_once_it_has_come_or_was_given_up(self, there) -> None:
        begin(there)
        assert inbox.is_promised(str(there), ['console.g1.log'])
        inbox.give_up(str(there))
        assert not inbox.is_promised(str(there), ['console.g1.log'])
        staged.as_now(there, {0: b'then'})
        assert receive(there) == []
        assert text(there) == b'thennow'


class TestOrphans:

    @pytest.mark.parametrize(('made', 'orphan'), [
        (['console.moving/record.json', 'console.received'], True),
        # As legacy scp makes the directory anew.
        (['record.json', 'history.0'], True),
        ([f'console.g1.history.{"a" * 32}'], True),
        (['console.moving/x', 'disk'], False),
        (['console.g1.log', 'console.moving/x'], False)])
    def test_nothing_but_what_was_sent(self, there, tmp_path, made,
                                       orphan) -> None:
        for name in made:
            (there / name).parent.mkdir(exist_ok=True)
            (there / name).write_bytes(b'x')
        assert inbox.orphans(str(tmp_path)) == (
            [str(there)] if orphan else [])

    def test_only_what_is_named_by_a_uuid(self, tmp_path) -> None:
        for name in ('_base', 'locks', 'compute_nodes', 'x_console'):
            (tmp_path / name).mkdir()
        assert inbox.orphans(str(tmp_path)) == []
