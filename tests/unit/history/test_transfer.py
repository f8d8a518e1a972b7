# SPDX-License-Identifier: Apache-2.0
import errno
import os
import pathlib
import shutil
import stat

import pytest

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, log, reader
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot, history, transfer

LIMIT = 1000


def _read(path: str, limit: int) -> bytes:
    return reader.read_tail(path, limit).data


def _following(path: str, position: reader.Position) -> int | None:
    since = reader.read_from(path, position, 0)
    return None if since.missed is None else since.behind


def _names(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def here(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'here'
    path.mkdir()
    (path / 'console.log').write_bytes(b'newer\n')
    (path / 'console.log.0').write_bytes(b'older\n')
    (path / 'console.port1.g2.log').write_bytes(b'port 1\n')
    (path / 'disk').write_bytes(b'none of a log')
    return path


@pytest.fixture
def there(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'there'
    path.mkdir()
    return path


def test_moves(here, there) -> None:
    assert transfer.moves(str(here), str(there)) == [
        (f'{here}/console.log', f'{there}/console.g1.log'),
        (f'{here}/console.port1.g2.log', f'{there}/console.port1.g3.log')]
    assert transfer.moves(f'{here}/gone', str(there)) == []


def _stage(here, there, directory, limit=LIMIT) -> list[exception.LogError]:
    return transfer.stage(transfer.moves(str(here), str(there)),
                          str(directory), limit, _read, _following)


class TestSameHost:

    def test_the_history_is_read_before_what_follows(self, here,
                                                     there) -> None:
        assert _stage(here, there, there) == []
        assert transfer.receive(str(there), str(there)) == []
        assert _names(there) == ['console.g1.history',
                                 'console.port1.g3.history']
        chain.begin(str(there / 'console.g1.log'))
        with (there / 'console.g1.log').open('ab') as live:
            live.write(b'newest\n')
        assert _read(str(there / 'console.g1.log'), LIMIT) == (
            b'older\nnewer\nnewest\n')

    def test_bounded(self, here, there) -> None:
        _stage(here, there, there, 8)
        transfer.receive(str(there), str(there))
        assert (there / 'console.g1.history').read_bytes() == b'r\nnewer\n'

    def test_a_port_that_cannot_be_read_leaves_the_others(self, here,
                                                          there) -> None:
        (here / 'console.log').unlink()
        (here / 'console.log').symlink_to('disk')
        (failed,) = _stage(here, there, there)
        assert isinstance(failed, exception.LogNotRegular)
        transfer.receive(str(there), str(there))
        assert _names(there) == ['console.port1.g3.history']

    def test_disk_full(self, here, there) -> None:
        there.rmdir()
        with pytest.raises(OSError, match='No such file'):
            _stage(here, there, there)

    def test_a_link_in_the_way_is_not_written_through(self, here, there,
                                                      tmp_path) -> None:
        victim = tmp_path / 'victim'
        victim.mkdir()
        (there / 'console.g1.history').symlink_to(victim / 'file')
        (there / transfer.STAGING).symlink_to(victim)
        with pytest.raises(FileExistsError):
            _stage(here, there, there)
        (there / transfer.STAGING).unlink()
        _stage(here, there, there)
        transfer.receive(str(there), str(there))
        assert _names(victim) == []
        assert (there / 'console.g1.history').read_bytes() == (
            b'older\nnewer\n')

    def test_set_aside_while_the_directory_is_made_anew(self, here,
                                                        tmp_path) -> None:
        aside = tmp_path / 'here_console'
        aside.mkdir()
        _stage(here, here, aside)
        shutil.rmtree(here)
        here.mkdir()
        transfer.receive(str(aside), str(here))
        assert _names(here) == ['console.g1.history',
                                'console.port1.g3.history']
        assert not aside.exists()


class TestOtherHost:

    @pytest.fixture
    def sent(self, here, there) -> pathlib.Path:
        """As "scp -r" and "rsync -r" copy it."""
        _stage(here, there, here)
        return pathlib.Path(shutil.copytree(
            here / transfer.STAGING, there / transfer.STAGING))

    def test_received_whole(self, sent, there) -> None:
        assert transfer.receive(str(there), str(there)) == []
        assert _names(there) == ['console.g1.history',
                                 'console.port1.g3.history']

    @pytest.mark.parametrize('damage', ['cut off', 'hole'])
    def test_half_a_file_is_never_shown(self, sent, there, damage) -> None:
        (staged,) = sent.glob('console.g1.history.*')
        if damage == 'cut off':
            os.truncate(staged, 6)
        else:
            # As scp leaves it where the disk was full for a moment.
            with staged.open('r+b') as file:
                file.write(bytes(6))
        (there / 'console.g1.log').write_bytes(b'newest\n')
        assert _read(str(there / 'console.g1.log'), LIMIT) == b'newest\n'
        assert transfer.receive(str(there), str(there)) == [staged.name]
        assert _names(there) == ['console.g1.log',
                                 'console.port1.g3.history']

    def test_whole(self, here, there) -> None:
        """Whatever comes first, and however much of each."""
        _stage(here, there, here)
        boot.write(str(here), [boot.Boot(1.0, {0: None})])
        _stage(here, there, here)
        assert not transfer.is_coming(str(there))
        (there / transfer.STAGING).mkdir()
        assert transfer.is_coming(str(there))
        staged = list((here / transfer.STAGING).iterdir())
        for file in staged:
            whole = file.read_bytes()
            copy = there / transfer.STAGING / file.name
            for part in (b'', whole[:-1], bytes(len(whole))):
                copy.write_bytes(part)
                assert not transfer.is_whole(str(there))
            copy.write_bytes(whole)
        assert len(staged) == 4
        assert transfer.is_whole(str(there))
        for file in staged:
            copy = there / transfer.STAGING / file.name
            copy.rename(there / 'aside')
            assert not transfer.is_whole(str(there))
            (there / 'aside').rename(copy)

    def test_nothing_that_is_whole(self, tmp_path, there) -> None:
        (tmp_path / 'console.g3.log').write_bytes(b'')
        _stage(tmp_path, there, there)
        assert transfer.is_whole(str(there))
        assert transfer.receive(str(there), str(there)) == []
        assert _names(there) == []

    def test_nothing_was_sent(self, there) -> None:
        assert transfer.receive(str(there), str(there)) == []


class TestDeparture:

    def test_a_new_directory_starts_with_generation_1(self, here) -> None:
        leaving = transfer.Departure('host2', str(here), shared=False)
        assert leaving.next_log(1, f'{here}/console.port1.g2.log') == (
            f'{here}/console.port1.g1.log')
        assert leaving.next_log(0, f'{here}/console.log') == (
            f'{here}/console.g1.log')
        assert leaving.moves() == [
            (f'{here}/console.log', f'{here}/console.g1.log'),
            (f'{here}/console.port1.g2.log', f'{here}/console.port1.g1.log')]

    @pytest.mark.parametrize('begun', [False, True])
    def test_a_shared_directory_goes_on(self, here, begun) -> None:
        if begun:
            chain.begin(str(here / 'console.port1.g3.log'))
        leaving = transfer.Departure('host2', str(here), shared=True)
        assert leaving.next_log(1, f'{here}/console.port1.g2.log') == (
            f'{here}/console.port1.g3.log')

    def test_a_guest_without_a_log_keeps_what_there_is(self, here) -> None:
        leaving = transfer.Departure('host2', str(here), shared=True)
        assert leaving.next_log(1, None) == f'{here}/console.port1.g3.log'
        assert leaving.moves() == [
            (f'{here}/console.port1.g2.log', f'{here}/console.port1.g3.log')]


class TestNextGeneration:
    """On shared storage, what both hosts take for the next log."""

    def arrive(self, directory: pathlib.Path) -> str:
        """What the destination begins before the guest moves."""
        name = generation.live_name(
            0, transfer.next_generation(str(directory), 0))
        history.begin_logs([str(directory / name)])
        return name

    def leave(self, directory: pathlib.Path, name: str | None) -> str:
        """Where the source lets the guest go on."""
        departure = transfer.Departure('host2', str(directory), shared=True)
        return os.path.basename(departure.next_log(
            0, None if name is None else str(directory / name)))

    @pytest.mark.parametrize('logged', [True, False])
    def test_migrations_that_fail(self, here, logged) -> None:
        """With a source that cannot remove what was begun."""
        here_log = 'console.log' if logged else None
        for _ in range(3):
            assert self.arrive(here) == 'console.g1.log'
            assert self.leave(here, here_log) == 'console.g1.log'
        assert [name for name in _names(here) if '.g' in name] == [
            'console.g1.log', 'console.port1.g2.log']

    @pytest.mark.parametrize('at', ['before', 'meanwhile', 'never'])
    def test_a_guest_that_is_quiet(self, here, at) -> None:
        """Its own log is empty, and two hosts never write one file."""
        (here / 'console.g1.history').write_bytes(b'old\n')
        live = here / 'console.g1.log'
        chain.begin(str(live))
        if at == 'before':
            live.write_bytes(b'newer\n')
        self.arrive(here)
        if at == 'meanwhile':
            live.write_bytes(b'newer\n')
        assert self.leave(here, 'console.g1.log') == 'console.g2.log'
        with (here / 'console.g2.log').open('ab') as log:
            log.write(b'newest\n')
        read = reader.read_tail(str(here / 'console.g2.log'), LIMIT)
        assert read.exact
        assert read.data == (b'old\nnewest\n' if at == 'never'
                             else b'old\nnewer\nnewest\n')

    @pytest.mark.parametrize('backups', [0, 1])
    def test_a_log_that_has_just_rotated(self, here, backups) -> None:
        """It is not as it was begun."""
        (here / 'console.g1.log').write_bytes(b'')
        if backups:
            (here / 'console.g1.log.0').write_bytes(b'rotated\n')
        assert self.arrive(here) == 'console.g2.log'
        assert self.leave(here, 'console.g1.log') == 'console.g2.log'

    def test_a_guest_without_a_log(self, here) -> None:
        """What is older is carried, and not what follows it."""
        (here / 'console.g1.history').write_bytes(b'old\n')
        (here / 'console.log').unlink()
        (here / 'console.log.0').unlink()
        assert self.arrive(here) == 'console.g2.log'
        departure = transfer.Departure('host2', str(here), shared=True)
        assert departure.next_log(0, None) == f'{here}/console.g2.log'
        (here / 'console.g2.log').write_bytes(b'newer\n')
        transfer.stage(departure.moves(), str(here), LIMIT, _read, _following)
        transfer.receive(str(here), str(here))
        assert (here / 'console.g2.history').read_bytes() == b'old\n'
        assert 'console.g1.history' not in _names(here)

    def test_a_guest_without_a_log_and_with_its_history(self, here) -> None:
        (here / 'console.g1.history').write_bytes(b'old\n')
        assert self.arrive(here) == 'console.g2.log'
        (here / 'console.g2.history').write_bytes(b'old\n')
        assert self.arrive(here) == 'console.g2.log'
        departure = transfer.Departure('host2', str(here), shared=True)
        departure.next_log(0, None)
        transfer.stage(departure.moves(), str(here), LIMIT, _read, _following)
        transfer.receive(str(here), str(here))
        assert (here / 'console.g2.history').read_bytes() == b'old\n'

    def test_nothing_can_be_begun(self, here) -> None:
        """Less is joined then, and the guest moves."""
        departure = transfer.Departure('host2', f'{here}/gone', shared=True)
        assert departure.next_log(0, None) == f'{here}/gone/console.g1.log'


def test_old_files_stay_until_their_history_is_there(here) -> None:
    chain.begin(str(here / 'console.g1.log'))
    transfer.receive(str(here), str(here))
    assert 'console.log.0' in _names(here)
    _stage(here, here, here)
    transfer.receive(str(here), str(here))
    assert _names(here) == ['console.g2.history', 'console.port1.g3.history',
                            'disk']
    assert (here / 'console.g2.history').read_bytes() == b'older\nnewer\n'


def test_a_generation_without_a_log_loses_nothing(tmp_path) -> None:
    """The guest was on a host that cannot have both consoles."""
    (tmp_path / 'console.g1.history').write_bytes(b'old\n')
    chain.begin(str(tmp_path / 'console.g2.log'))
    _stage(tmp_path, tmp_path, tmp_path)
    transfer.receive(str(tmp_path), str(tmp_path))
    assert _names(tmp_path) == ['console.g3.history']
    assert (tmp_path / 'console.g3.history').read_bytes() == b'old\n'


def test_no_history_where_there_is_nothing(tmp_path, there) -> None:
    (tmp_path / 'console.g1.history').write_bytes(b'old\n')
    # Nothing surely goes on from it.
    (tmp_path / 'console.g3.log').write_bytes(b'')
    _stage(tmp_path, there, tmp_path)
    (listed,) = _names(tmp_path / transfer.STAGING)
    assert listed.startswith('console.staged.')
    transfer.receive(str(tmp_path), str(tmp_path))
    assert 'console.g1.history' in _names(tmp_path)


def test_an_empty_history_replaces_nothing(tmp_path) -> None:
    (tmp_path / 'console.g1.history').write_bytes(b'old\n')
    (tmp_path / 'console.g2.history').write_bytes(b'')
    transfer.receive(str(tmp_path), str(tmp_path))
    assert 'console.g1.history' in _names(tmp_path)


def test_starts_stay_where_nothing_is_carried(tmp_path) -> None:
    (tmp_path / 'console.g1.history').write_bytes(b'first\nsecond\n')
    chain.begin(str(tmp_path / 'console.g3.log'))
    with open_directory(str(tmp_path)) as opened:
        noted = boot.Boot(1.0, {0: log.position_at(
            opened, 'console.g1.history', 6)})
    boot.write(str(tmp_path), [noted])
    assert _stage(tmp_path, tmp_path, tmp_path) == []
    transfer.receive(str(tmp_path), str(tmp_path))
    assert boot.read(str(tmp_path)) == [noted]


def test_starts_in_a_log_that_cannot_be_read(here, there) -> None:
    """The other ports' histories are carried all the same."""
    position = reader.read_tail(str(here / 'console.log'), 1).position
    boot.write(str(here), [boot.Boot(1.0, {0: position, 1: None})])
    (here / 'console.log').unlink()
    (here / 'console.log').symlink_to('disk')
    (failed,) = _stage(here, there, there)
    assert isinstance(failed, exception.LogNotRegular)
    transfer.receive(str(there), str(there))
    assert _names(there) == [boot.FILE, 'console.port1.g3.history']
    assert boot.read(str(there)) == [boot.Boot(1.0, {0: None, 1: None})]


def _modes(directory: pathlib.Path) -> set[int]:
    return {stat.S_IMODE((directory / name).stat().st_mode)
            for name in _names(directory)}


@pytest.mark.parametrize('copied_as', [0o644, 0o777])
def test_nobody_else_may_read_a_history(here, there, copied_as) -> None:
    """As nobody else could read the log that it is made of."""
    boot.write(str(here), [boot.Boot(1.0, {0: None})])
    _stage(here, there, there)
    assert _modes(there / transfer.STAGING) == {0o600}
    for staged in (there / transfer.STAGING).iterdir():
        staged.chmod(copied_as)
    transfer.receive(str(there), str(there))
    (there / boot.FILE).unlink()
    assert _modes(there) == {0o600}
    assert _read(str(there / 'console.g1.log'), LIMIT) == b'older\nnewer\n'


def test_starts_are_put_in_place_where_half_a_file_fills_the_disk(
        here, there, monkeypatch) -> None:
    boot.write(str(here), [boot.Boot(1.0, {0: None})])
    _stage(here, there, there)
    (half,) = (there / transfer.STAGING).glob('console.g1.*')
    os.truncate(half, 6)
    write = boot.write

    def write_where_there_is_room(*args) -> None:
        if half.exists():
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(*args)
    monkeypatch.setattr(boot, 'write', write_where_there_is_room)
    assert transfer.receive(str(there), str(there)) == [half.name]
    assert _names(there) == [boot.FILE, 'console.port1.g3.history']


class TestInUse:
    """The domain of a guest names a log: rebooted by nova's own driver."""

    @pytest.fixture
    def came(self, here, there) -> pathlib.Path:
        """Histories of both ports, not in place yet, and a live log."""
        boot.write(str(here), [boot.Boot(1.0, {0: None})])
        _stage(here, there, there)
        (there / 'console.log').write_bytes(b'live\n')
        (there / 'console.log.0').write_bytes(b'rotated\n')
        return there

    def test_is_not_removed(self, came) -> None:
        """What came before is not joined with it, and nothing is lost."""
        assert transfer.receive(str(came), str(came),
                                in_use=['console.log']) == []
        assert _names(came) == [boot.FILE, 'console.history', 'console.log',
                                'console.log.0', 'console.port1.g3.history']
        live = str(came / 'console.log')
        assert _read(live, LIMIT) == b'rotated\nlive\n'
        first = reader.read_from(live, None, LIMIT)
        assert first.data == b'older\nnewer\n'
        then = reader.read_from(live, first.position, LIMIT)
        assert (then.data, then.missed) == (b'rotated\nlive\n', None)
        assert transfer.detached(str(came)) == {f'{came}/console.history'}

    def test_beside_one_that_is_in_place(self, came) -> None:
        (came / 'console.g1.history').write_bytes(b'old\n')
        (came / 'console.g1.log').write_bytes(b'')
        transfer.receive(str(came), str(came), in_use=['console.log'])
        assert _names(came) == [boot.FILE, 'console.history', 'console.log',
                                'console.log.0', 'console.port1.g3.history']

    def test_beside_one_that_is_written_elsewhere(self, here) -> None:
        """The guest is leaving, on shared storage."""
        chain.begin(str(here / 'console.g1.log'))
        assert transfer.overtaken(str(here), ['console.log']) == []

    def test_it_was_in_place_already(self, here) -> None:
        chain.begin(str(here / 'console.g1.log'))
        (here / 'console.g1.log').write_bytes(b'then\n')
        (here / 'console.g1.history').write_bytes(b'old\n')
        in_use = ['console.log', 'console.port1.g2.log']
        moves = transfer.overtaken(str(here), in_use)
        assert moves == [(f'{here}/console.g1.log', f'{here}/console.log')]
        assert transfer.stage(moves, str(here), LIMIT, _read,
                              _following) == []
        assert transfer.receive(str(here), str(here), in_use=in_use) == []
        assert _names(here) == ['console.history', 'console.log',
                                'console.log.0', 'console.port1.g2.log',
                                'disk']
        assert (here / 'console.history').read_bytes() == b'old\nthen\n'
        assert transfer.overtaken(str(here), in_use) == []

    def test_one_that_goes_on_from_the_history(self, came) -> None:
        transfer.receive(str(came), str(came), in_use=['console.g1.log'])
        assert _names(came) == [boot.FILE, 'console.g1.history',
                                'console.port1.g3.history']

    def test_set_aside(self, here, tmp_path) -> None:
        aside = tmp_path / 'here_console'
        aside.mkdir()
        _stage(here, here, aside)
        transfer.receive(str(aside), str(here), in_use=['console.log'])
        assert 'console.log' in _names(here)
        assert 'console.history' in _names(here)
        assert not aside.exists()


class TestSuperseded:
    """A guest that is evacuated again and again, on shared storage."""

    def evacuate(self, directory: pathlib.Path) -> None:
        moves = transfer.superseded(str(directory))
        transfer.stage(moves, str(directory), LIMIT, _read, _following)
        transfer.receive(str(directory), str(directory))
        history.begin_logs([str(directory / generation.live_name(
            0, transfer.next_generation(str(directory), 0)))])

    def test_the_log_of_the_lost_host_stays(self, here) -> None:
        assert transfer.superseded(str(here)) == []
        self.evacuate(here)
        assert 'console.log.0' in _names(here)

    def test_only_that(self, here) -> None:
        (here / 'console.port1.g2.log').unlink()
        position = reader.read_tail(str(here / 'console.log'), 1).position
        boots = [boot.Boot(0.0, {0: None}), boot.Boot(1.0, {0: position})]
        written = 'older\nnewer\n'
        for number in range(1, 5):
            self.evacuate(here)
            live = here / f'console.g{number}.log'
            with live.open('ab') as out:
                out.write(b'%d\n' % number)
            written += f'{number}\n'
            boots.append(boot.Boot(
                2.0, {0: reader.read_tail(str(live), 1).position}))
            boot.write(str(here), [
                *boot.read(str(here)),
                *(boots if number == 1 else boots[-1:])])
            assert _read(str(live), LIMIT).decode() == written
        assert _names(here) == [
            boot.FILE, 'console.g3.history', 'console.g3.log',
            'console.g4.log', 'disk']
        starts = [noted.positions[0] for noted in boot.read(str(here))]
        assert [_following(str(live), start) for start in starts[1:]] == [
            len('1\n2\n3\n4\n'), len('2\n3\n4\n'), len('3\n4\n'),
            len('4\n'), 0]

    def test_a_start_that_failed_begins_no_other(self, here) -> None:
        for _ in range(3):
            self.evacuate(here)
        assert 'console.g1.log' in _names(here)
        assert 'console.g2.log' not in _names(here)
        assert 'console.log.0' in _names(here)


def test_remove_begun(here) -> None:
    """Of a guest that logs one of its ports."""
    for name in ('console.g1.log', 'console.port1.g3.log', 'console.g3.log'):
        chain.begin(str(here / name))
    (here / 'console.g2.log').write_bytes(b'somebody wrote this')
    (here / 'console.port1.g3.log.0').write_bytes(b'and this')
    transfer.remove_begun(str(here), ['console.g3.log'])
    assert _names(here) == [
        'console.g1.log', 'console.g2.log', 'console.g3.log', 'console.log',
        'console.log.0', 'console.port1.g2.log', 'console.port1.g3.log.0',
        'disk']
