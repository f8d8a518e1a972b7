# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil

import pytest

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, reader, transfer

LIMIT = 1000


def _read(path: str, limit: int) -> bytes:
    return reader.read_tail(path, limit).data


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


class TestCarryHere:

    def test_the_history_is_read_before_what_follows(self, here,
                                                     there) -> None:
        for move in transfer.moves(str(here), str(there)):
            transfer.carry(move, LIMIT, _read)
        assert _names(there) == ['console.g1.history',
                                 'console.port1.g3.history']
        chain.begin(str(there / 'console.g1.log'))
        with (there / 'console.g1.log').open('ab') as live:
            live.write(b'newest\n')
        assert _read(str(there / 'console.g1.log'), LIMIT) == (
            b'older\nnewer\nnewest\n')

    def test_bounded(self, here, there) -> None:
        move = transfer.moves(str(here), str(there))[0]
        transfer.carry(move, 8, _read)
        assert (there / 'console.g1.history').read_bytes() == b'r\nnewer\n'

    def test_no_log(self, here, there) -> None:
        with pytest.raises(exception.LogNotFound):
            transfer.carry((f'{here}/console.port3.log',
                            f'{there}/console.port3.g1.log'), LIMIT, _read)
        assert _names(there) == []

    def test_disk_full(self, here, there) -> None:
        move = transfer.moves(str(here), str(there))[0]
        there.rmdir()
        there.symlink_to('/dev/full')   # a directory that takes nothing
        with pytest.raises(exception.LogError, match='could not be written'):
            transfer.carry(move, LIMIT, _read)

    def test_a_link_in_the_way_is_not_written_through(self, here, there,
                                                      tmp_path) -> None:
        victim = tmp_path / 'victim'
        victim.write_bytes(b'mine')
        for name in ('console.g1.history', 'console.g1.history.new'):
            (there / name).symlink_to(victim)
        transfer.carry(transfer.moves(str(here), str(there))[0], LIMIT, _read)
        assert victim.read_bytes() == b'mine'
        assert (there / 'console.g1.history').read_bytes() == (
            b'older\nnewer\n')


class TestCarryElsewhere:

    def test_received_whole(self, here, there) -> None:
        for move in transfer.moves(str(here), str(there)):
            transfer.carry(move, LIMIT, _read, shutil.copyfile)
        assert _names(there) == ['console.g1.history.arriving-12',
                                 'console.port1.g3.history.arriving-7']
        assert transfer.receive(str(there)) == []
        assert _names(there) == ['console.g1.history',
                                 'console.port1.g3.history']
        assert not [n for n in _names(here) if 'leaving' in n]

    def test_half_a_file_is_never_shown(self, here, there) -> None:
        def half(source: str, target: str) -> None:
            data = pathlib.Path(source).read_bytes()
            pathlib.Path(target).write_bytes(data[:len(data) // 2])
            raise OSError(28, 'No space left on device')

        move = transfer.moves(str(here), str(there))[0]
        with pytest.raises(exception.LogError, match='No space left'):
            transfer.carry(move, LIMIT, _read, half)
        (there / 'console.g1.log').write_bytes(b'newest\n')
        assert _read(str(there / 'console.g1.log'), LIMIT) == b'newest\n'
        assert transfer.receive(str(there)) == [
            'console.g1.history.arriving-12']
        assert _names(there) == ['console.g1.log']
        assert not [n for n in _names(here) if 'leaving' in n]


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


def test_prune_waits_for_the_history(here) -> None:
    (here / 'console.g1.log').touch()
    transfer.prune(str(here))
    assert 'console.log' in _names(here)
    transfer.store(str(here), 'console.g1.history', b'older\nnewer\n')
    transfer.prune(str(here))
    assert _names(here) == ['console.g1.history', 'console.g1.log',
                            'console.port1.g2.log', 'disk']


def test_remove_empty(here) -> None:
    chain.begin(str(here / 'console.g1.log'))
    (here / 'console.g2.log').write_bytes(b'somebody wrote this')
    transfer.remove_empty(str(here), 'console.log')
    assert 'console.g1.log' not in _names(here)
    assert 'console.g2.log' in _names(here)
    assert 'console.log' in _names(here)


def test_put_back(here, there) -> None:
    transfer.store(str(there), 'console.g1.history', b'x')
    shutil.rmtree(here)
    transfer.put_back(str(there), str(here))
    assert _names(here) == ['console.g1.history']
    assert not there.exists()
