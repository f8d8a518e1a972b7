# SPDX-License-Identifier: Apache-2.0
"""Whole logs on real files are joined, and a position finds its place."""

import os
import pathlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import descriptors
from tests.unit.console_log.rotating import (
    STREAM,
    MemoryDirectory,
    Rotator,
    ends,
)
from virtlogd_driver import exception
from virtlogd_driver.console_log import (
    chain,
    generation,
    log,
    neighbours,
    reader,
)


def link(path: pathlib.Path) -> None:
    path.symlink_to('/etc/passwd')


class Files:
    """A directory with a guest's logs."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory

    def write(self, name: str, data: bytes) -> None:
        with (self.directory / name).open('ab') as file:
            file.write(data)

    def begin(self, name: str) -> None:
        chain.begin(str(self.directory / name))

    def rotate(self, name: str = 'console.log', backups: int = 3) -> None:
        for number in range(backups - 1, -1, -1):
            old = self.directory / (
                f'{name}.{number - 1}' if number else name)
            if old.exists():
                old.rename(self.directory / f'{name}.{number}')
        self.write(name, b'')

    def tail(
            self, name: str = 'console.log', limit: int = 1000,
            max_backups: int | None = None) -> log.LogRead:
        return reader.read_tail(
            str(self.directory / name), limit, max_backups=max_backups)

    def since(
            self, position: log.Position | None, name: str = 'console.log',
            limit: int = 1000) -> log.LogSince:
        return reader.read_from(str(self.directory / name), position, limit)


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Files:
    return Files(tmp_path)


class TestTail:

    def test_one_file(self, files: Files) -> None:
        files.write('console.log', b'abcdef')
        assert files.tail(limit=4).data == b'cdef'
        assert files.tail(limit=4).older == 2
        assert files.tail().data == b'abcdef'
        assert files.tail().exact

    def test_nothing_written_yet(self, files: Files) -> None:
        files.write('console.log', b'')
        assert files.tail().data == b''

    def test_no_bytes_wanted(self, files: Files) -> None:
        files.write('console.log', b'abc')
        assert files.tail(limit=0).data == b''

    def test_all_backups(self, files: Files) -> None:
        for number in range(31, -1, -1):
            files.write(f'console.log.{number}', b'%02d' % number)
        files.write('console.log', b'live')
        whole = b''.join(b'%02d' % number for number in range(31, -1, -1))
        assert files.tail().data == whole + b'live'
        assert files.tail(limit=7).data == b'100live'

    @pytest.mark.parametrize('max_backups', [None, 3])
    @pytest.mark.parametrize('gone', [0, 1])
    def test_a_backup_was_deleted(self, files: Files, gone: int,
                                  max_backups: int | None) -> None:
        """What is beyond the hole is not contiguous: it is left out."""
        for number in (2, 1, 0):
            files.write(f'console.log.{number}', b'%d' % number)
        files.write('console.log', b'live')
        (files.directory / f'console.log.{gone}').unlink()
        read = files.tail(max_backups=max_backups)
        assert (read.data, read.exact) == ((b'0' if gone else b'') + b'live',
                                           False)
        assert files.tail(limit=3, max_backups=max_backups).exact

    def test_live_file_is_missing_after_a_crash(self, files: Files) -> None:
        files.write('console.log.1', b'1')
        files.write('console.log.0', b'2')
        assert files.tail().data == b'12'

    def test_no_log(self, files: Files) -> None:
        with pytest.raises(exception.LogNotFound, match=r'console\.log'):
            files.tail()

    def test_no_directory(self, files: Files) -> None:
        with pytest.raises(exception.LogNotFound, match='no directory'):
            files.tail('gone/console.log')

    def test_any_bytes(self, files: Files) -> None:
        data = bytes(range(256)) * 3
        files.write('console.log', data)
        assert files.tail().data == data

    def test_max_backups_was_lowered(self, files: Files) -> None:
        """Known by the setting: leftovers are no part of the log."""
        files.write('console.log.1', b'leftover')
        files.write('console.log.0', b'1')
        files.write('console.log', b'2')
        assert files.tail(max_backups=1).data == b'12'
        assert files.tail(max_backups=1).exact
        assert files.tail(max_backups=0).data == b'2'
        assert files.tail(max_backups=99).data == b'leftover12'

    def test_max_backups_was_lowered_unknown_to_the_reader(self) -> None:
        """Known by the change times: the others were renamed since."""
        directory = MemoryDirectory()
        rotator = Rotator(directory, 4)
        rotator.open()
        for _ in rotator.steps(iter([5] * 6)):
            pass
        rotator.max_backups = 2
        assert len(log.read_tail(directory, 'console.log', 99).data) == 20
        directory.clock_ns += 2 * neighbours.ROTATION_NS
        for _ in rotator.steps(iter([5])):
            pass
        read = log.read_tail(directory, 'console.log', 99)
        assert read.data == STREAM[rotator.written - 10:rotator.written]
        assert not read.exact

    def test_other_files_of_the_directory(self, files: Files) -> None:
        files.write('console.log', b'1')
        files.write('console.log.x', b'x')
        files.write('console.logs', b'x')
        files.write('console.port1.log', b'x')
        assert files.tail().data == b'1'


class TestGenerations:

    def test_history_and_chain(self, files: Files) -> None:
        files.write('console.g2.history', b'old')
        files.begin('console.g2.log')
        files.write('console.g2.log', b'1')
        files.rotate('console.g2.log')
        files.write('console.g2.log', b'2')
        read = files.tail('console.g2.log')
        assert (read.data, read.exact) == (b'old12', True)
        assert files.tail('console.g2.log', limit=4).data == b'ld12'

    def test_beginning_was_rotated_away(self, files: Files) -> None:
        """History and chain are not adjacent: they are not joined."""
        files.write('console.g1.history', b'old')
        files.begin('console.g1.log')
        for number in range(6):
            files.write('console.g1.log', b'%d' % number)
            files.rotate('console.g1.log', backups=2)
        read = files.tail('console.g1.log')
        assert (read.data, read.exact) == (b'45', False)

    def test_chain_of_the_generation_before(self, files: Files) -> None:
        files.write('console.log.0', b'1')
        files.write('console.log', b'2')
        files.begin('console.g1.log')
        files.write('console.g1.log', b'3')
        files.begin('console.g2.log')
        assert files.tail('console.g2.log').data == b'123'

    def test_history_replaces_the_chain_it_was_made_of(
            self, files: Files) -> None:
        files.write('console.log', b'1')
        files.write('console.g1.history', b'1')
        files.begin('console.g1.log')
        assert files.tail('console.g1.log').data == b'1'

    def test_not_started_on_this_host_yet(self, files: Files) -> None:
        files.write('console.g1.history', b'old')
        assert files.tail('console.g1.log').data == b'old'

    def test_generation_that_is_lost(self, files: Files) -> None:
        files.write('console.log', b'1')
        files.begin('console.g2.log')
        files.write('console.g2.log', b'3')
        read = files.tail('console.g2.log')
        assert (read.data, read.exact) == (b'3', False)
        since = files.since(None, 'console.g2.log')
        assert since.data == b'1'
        since = files.since(since.position, 'console.g2.log')
        assert (since.data, since.missed) == (b'3', None)

    @pytest.mark.parametrize('written', [b'', b'3'])
    def test_generation_without_a_log(self, files: Files,
                                      written: bytes) -> None:
        """The guest has been on a host that could not have both consoles."""
        files.write('console.g1.history', b'old')
        files.begin('console.g2.log')
        files.write('console.g2.log', written)
        read = files.tail('console.g2.log')
        assert (read.data, read.exact) == (b'old' + written, True)
        since = files.since(None, 'console.g2.log')
        assert (since.data, since.missed) == (b'old', 0)
        since = files.since(since.position, 'console.g2.log')
        assert (since.data, since.missed) == (written, 0)

    def test_generations_without_a_log(self, files: Files) -> None:
        files.write('console.g1.history', b'old')
        files.begin('console.g1.log')
        files.write('console.g1.log', b'1')
        files.begin('console.g2.log')
        files.begin('console.g3.log')
        assert files.tail('console.g3.log').data == b'old1'
        (files.directory / 'console.g2.log').unlink()
        read = files.tail('console.g3.log')
        assert (read.data, read.exact) == (b'', False)

    def test_beyond_a_border_that_may_have_a_gap(self, files: Files) -> None:
        files.write('console.g1.history', b'old')
        files.write('console.g2.log', b'3')
        read = files.tail('console.g2.log')
        assert (read.data, read.exact) == (b'3', False)
        since = files.since(None, 'console.g2.log')
        since = files.since(since.position, 'console.g2.log')
        assert (since.data, since.missed) == (b'3', None)

    @pytest.mark.parametrize('order', [1, -1])
    def test_history_is_put_in_place_meanwhile(self, order: int) -> None:
        """At any system call of a read; what it replaces goes one by one."""
        replaced = ['console.g1.history', 'console.g1.log.0',
                    'console.g1.log'][::order]
        for at in range(1, 80):
            for gone in range(len(replaced) + 1):
                read = self.read_while_replaced(at, replaced[:gone])
                assert (read.data, read.exact) == (b'1234', True), at

    def read_while_replaced(self, at: int, gone: list[str]) -> log.LogRead:
        directory = MemoryDirectory()
        for name, data, first in (
                ('console.g1.history', b'1', False),
                ('console.g1.log.0', b'2', True),
                ('console.g1.log', b'3', False),
                ('console.g2.log', b'4', True)):
            directory.create(
                name, 0, 0o600 | chain.FIRST_OF_CHAIN * first).data += data
        calls = 0

        def replace() -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                directory.create('console.g2.history', 0).data += b'123'
                for name in gone:
                    directory.files.pop(name)
        directory.before = replace
        read = log.read_tail(directory, 'console.g2.log', 99)
        assert not directory.opened
        return read

    def test_beside_the_log_of_another_driver(self, files: Files) -> None:
        """Nothing says that it goes on from there."""
        files.write('console.history', b'old')
        files.write('console.log', b'1')
        files.begin('console.g1.log')
        files.write('console.g1.log', b'2')
        assert files.tail('console.log').data == b'1'
        read = files.tail('console.g1.log')
        assert (read.data, read.exact) == (b'12', False)
        (files.directory / 'console.log').unlink()
        read = files.tail('console.g1.log')
        assert (read.data, read.exact) == (b'2', False)
        assert files.tail('console.log').data == b'old'

    def test_the_cost_does_not_depend_on_the_number(self) -> None:
        """Names that are there are listed, numbers are not counted."""
        calls = []
        for number in (5, 3000, generation.MAX_GENERATION):
            directory = MemoryDirectory()
            for name in (f'console.g{number}.log', 'console.g2.log'):
                directory.create(name, 0).data += b'x'
            count = 0

            def called() -> None:
                nonlocal count
                count += 1
            directory.before = called
            read = log.read_tail(directory, f'console.g{number}.log', 99)
            assert (read.data, read.exact) == (b'x', False)
            since = log.read_from(
                directory, f'console.g{number}.log', None, 99)
            assert (since.data, since.behind) == (b'x', 1)
            calls.append(count)
        assert calls == [calls[0]] * 3

    @pytest.mark.parametrize('kind', [os.mkdir, os.mkfifo, link])
    @pytest.mark.parametrize('name', [
        'console.g2.history', 'console.g1.history', 'console.g1.log.0',
        'console.g1.log', 'console.log'])
    def test_an_older_file_that_is_none(
            self, files: Files, name: str,
            kind: Callable[[pathlib.Path], None]) -> None:
        """What is newer is shown, and nothing is left open."""
        if name != 'console.log':
            files.write('console.log', b'0')
        if 'g1.log.0' in name:
            files.write('console.g1.log', b'1')
        elif 'g1.log' not in name:
            files.begin('console.g1.log')
        kind(files.directory / name)
        files.begin('console.g2.log')
        files.write('console.g2.log', b'2')
        for _ in range(20):
            reader.forget(str(files.directory))
            read = files.tail('console.g2.log')
            assert read.data in (b'2', b'12')
            assert not read.exact
            since = files.since(None, 'console.g2.log')
            assert since.data in (b'2', b'1', b'0')
        reader.forget(str(files.directory))
        assert descriptors.below(files.directory) == []

    def test_ports_are_apart(self, files: Files) -> None:
        files.write('console.g1.history', b'0')
        files.begin('console.port1.g1.log')
        files.write('console.port1.g1.history', b'1')
        assert files.tail('console.port1.g1.log').data == b'1'

    def test_begin_twice(self, files: Files) -> None:
        files.begin('console.log')
        with pytest.raises(FileExistsError):
            files.begin('console.log')

    def test_read_on_over_the_borders(self, files: Files) -> None:
        files.write('console.g1.history', b'old')
        files.begin('console.g1.log')
        files.write('console.g1.log', b'1')
        files.rotate('console.g1.log')
        files.write('console.g1.log', b'2')
        got, behind, position = [], [], None
        for _ in range(4):
            since = files.since(position, 'console.g1.log', limit=2)
            assert since.missed == 0
            position = since.position
            got.append(since.data)
            behind.append(since.behind)
        assert got == [b'ol', b'd', b'12', b'']
        assert behind == [3, 2, 0, 0]

    def test_read_on_over_an_empty_generation(self, files: Files) -> None:
        """A migration has failed, and nothing was there to remove it."""
        files.write('console.log', b'1')
        files.begin('console.g1.log')
        files.begin('console.g2.log')
        files.write('console.g2.log', b'3')
        since = files.since(None, 'console.g2.log')
        assert (since.data, since.missed, since.behind) == (b'1', 0, 1)
        since = files.since(since.position, 'console.g2.log')
        assert (since.data, since.missed, since.behind) == (b'3', 0, 0)

    def test_border_that_may_have_a_gap(self, files: Files) -> None:
        files.write('console.g1.history', b'old')
        files.write('console.g1.log', b'1')
        since = files.since(None, 'console.g1.log')
        assert since.data == b'old'
        since = files.since(since.position, 'console.g1.log')
        assert (since.data, since.missed) == (b'1', None)


class TestPosition:

    def test_token(self, files: Files) -> None:
        files.write('console.log', b'abc')
        position = files.tail().position
        assert position is not None
        assert log.Position.parse(str(position)) == position

    @pytest.mark.parametrize('token', [
        '', 'x', '1-2-3', '1-2-3-', '1-2-3-4-5', '-1-2-3-4', '1-2-3-G',
        '1-2-3-4\n', '11111111111111111-2-3-4'])
    def test_no_token(self, token: str) -> None:
        with pytest.raises(exception.InvalidPosition, match='no position'):
            log.Position.parse(token)

    def test_follows_rotation(self, files: Files) -> None:
        files.write('console.log', b'abc')
        position = files.tail().position
        files.write('console.log', b'de')
        files.rotate()
        files.write('console.log', b'f')
        files.rotate()
        files.write('console.log', b'g')
        since = files.since(position)
        assert (since.data, since.missed) == (b'defg', 0)
        since = files.since(since.position)
        assert (since.data, since.missed, since.behind) == (b'', 0, 0)

    def test_pages(self, files: Files) -> None:
        for data in (b'abc', b'', b'defgh', b'ij'):
            files.write('console.log', data)
            files.rotate(backups=9)
        data, position = b'', None
        while True:
            since = files.since(position, limit=2)
            if not since.data:
                break
            assert len(since.data) == 2
            data += since.data
            assert since.behind == 10 - len(data)
            position = since.position
        assert data == b'abcdefghij'

    def test_rotated_away(self, files: Files) -> None:
        files.write('console.log', b'abc')
        position = files.tail().position
        for data in (b'1', b'2', b'3'):
            files.rotate(backups=2)
            files.write('console.log', data)
        since = files.since(position)
        assert (since.data, since.missed) == (b'123', None)

    def test_inode_is_used_again(self) -> None:
        """The file of a position is gone; another has its inode."""
        directory = MemoryDirectory()
        for version in (0, 1):
            directory.files.clear()
            directory.create('console.log', 0).data += b'first' * 20
            position = log.read_tail(directory, 'console.log', 1).position
            assert position is not None
            directory.files.clear()
            file = directory.create('console.log', 0)
            file.version = version
            file.data += (b'first', b'other')[not version] * 30
            assert file.inode == position.inode
            since = log.read_from(directory, 'console.log', position, 1000)
            assert (since.missed, len(since.data)) == (None, 150)

    def test_truncated(self, files: Files) -> None:
        files.write('console.log', b'abc')
        position = files.tail().position
        os.truncate(files.directory / 'console.log', 1)
        since = files.since(position)
        assert (since.data, since.missed) == (b'a', None)

    def test_nothing_yet(self, files: Files) -> None:
        files.write('console.log', b'')
        since = files.since(None)
        assert (since.data, since.missed) == (b'', 0)
        files.write('console.log', b'abc')
        assert files.since(since.position).data == b'abc'

    def test_no_log(self, files: Files) -> None:
        files.write('console.log', b'abc')
        position = files.tail().position
        (files.directory / 'console.log').unlink()
        for at in (None, position):
            with pytest.raises(exception.LogNotFound):
                files.since(at)


@settings(max_examples=300)
@given(
    max_backups=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 40), max_size=12),
    crashes=st.sets(st.integers(0, 60), max_size=3),
    limit=st.integers(0, 120),
    last=st.integers(0, 30))
def test_any_log_at_rest(
        max_backups: int, sizes: list[int], crashes: set[int], limit: int,
        last: int) -> None:
    """Whatever has happened to it before, what is there is read."""
    directory = MemoryDirectory()
    rotator = Rotator(directory, max_backups)
    rotator.open()
    step = 0
    for size in sizes:
        for _ in rotator.steps(iter([size])):
            step += 1
            if step in crashes:
                rotator.open()
                break
    rotator.open()
    rotator.write(last)
    kept = rotator.written - rotator.kept_from()
    read = log.read_tail(directory, 'console.log', limit)
    assert ends(read.data, rotator.written, rotator.written)
    since = log.read_from(directory, 'console.log', None, limit)
    # What a crash has left may look as if a backup had been deleted.
    assert crashes or read.exact
    if read.exact:
        assert len(read.data) == min(limit, kept)
    if not crashes:
        assert rotator.is_stream(rotator.kept_from(), since.data)
        assert len(since.data) == min(limit, kept)
        assert since.behind == kept - len(since.data)
