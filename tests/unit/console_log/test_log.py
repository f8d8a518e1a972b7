# SPDX-License-Identifier: Apache-2.0
"""Whole logs on real files are joined, and a position finds its place."""

import contextlib
import dataclasses
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
from virtlogd_driver.console_log.directory import open_directory


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

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()
        reader.forget(str(self.directory))

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

    @pytest.mark.parametrize('max_backups', [None, 3])
    def test_an_empty_file_is_in_place_of_a_renamed_one(
            self, files: Files, max_backups: int | None) -> None:
        """As logrotate does with create; virtlogd writes on into the first."""
        files.write('console.log', b'first')
        (files.directory / 'console.log').rename(
            files.directory / 'console.log.1')
        files.write('console.log', b'')
        read = files.tail(max_backups=max_backups)
        assert (read.data, read.exact) == (b'first', False)
        files.write('console.log.1', b'second')
        assert files.tail(max_backups=max_backups).data == b'firstsecond'
        assert files.since(read.position).data == b'second'
        files.write('console.log', b'third')
        assert files.tail(max_backups=max_backups).data == b'third'

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
        assert files.tail('console.g2.log', limit=3).data == b'd12'

    def test_beginning_was_rotated_away(self, files: Files) -> None:
        """History and chain are not adjacent: they are not joined."""
        files.write('console.g1.history', b'old')
        files.begin('console.g1.log')
        for number in range(6):
            files.write('console.g1.log', b'%d' % number)
            files.rotate('console.g1.log', backups=2)
        read = files.tail('console.g1.log')
        assert (read.data, read.exact) == (b'45', False)

    def test_files_that_were_put_there(
            self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        """They take no descriptors from whoever else reads."""
        monkeypatch.setattr(log, 'MOST_OPEN', 4)
        for number in range(1, 5):
            files.write(f'console.g{number}.log', b'%d' % number)
        assert files.since(None, 'console.g4.log').data == b'1'
        reader.forget(str(files.directory))
        files.write('console.g5.log', b'5')
        with pytest.raises(exception.LogError, match='more than 4 older'):
            files.since(None, 'console.g5.log')
        assert descriptors.below(files.directory) == []
        read = files.tail('console.g5.log')
        assert read.data == b'5'
        assert files.since(read.position, 'console.g5.log').data == b''

    def test_a_position_in_the_last_file_that_is_opened(
            self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 4):
            files.write(f'console.g{number}.log', b'%d' % number)
        since = files.since(None, 'console.g3.log')
        assert since.data == b'1'
        reader.forget(str(files.directory))
        monkeypatch.setattr(log, 'MOST_OPEN', 2)
        assert files.since(since.position, 'console.g3.log').data == b'2'

    def test_no_more_files_than_may_be_open(
            self, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 6):
            files.begin(f'console.g{number}.log')
            files.write(f'console.g{number}.log', b'%d' % number)
        read = files.tail('console.g5.log')
        assert (read.data, read.exact) == (b'12345', True)
        reader.forget(str(files.directory))
        monkeypatch.setattr(log, 'MOST_OPEN', 3)
        read = files.tail('console.g5.log')
        assert (read.data, read.exact) == (b'2345', False)
        # What is sent elsewhere is not cut, and then removed.
        assert 'more than 3 older files' in str(read.failure)
        assert files.tail('console.g5.log', limit=4).exact

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
        files.remove('console.g2.log')
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
        files.remove('console.log')
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

    @pytest.mark.parametrize('older', ['log', 'g1.log'])
    def test_the_end_of_a_log_that_is_open_beyond_a_gap(
            self, older: str) -> None:
        """It ends at the gap, as if it had been opened up to there."""
        directory = Memory(g2_log=b'3')
        directory.write(older, b'1')
        for limit, exact in ((1, True), (9, False)):
            with contextlib.closing(log.take(
                    directory, 'console.g2.log', log.Wanted())) as taken:
                read = log.tail(taken, limit)
            assert read == directory.tail(limit, 'console.g2.log')
            assert read is not None
            assert (read.data, read.exact) == (b'3', exact)

    def test_the_file_that_the_guest_writes_is_waited_for(self) -> None:
        """It is missing for a moment in a rotation; no older one is."""
        directory = Memory(g1_history=b'old', log_0=b'1', g2_log_0=b'2')
        directory.write('g1.log.0', b'1', first=True)
        since = directory.since(None, name='console.g2.log')
        assert (since.data, since.behind) == (b'old', 2)
        assert directory.pauses == chain.PATIENT_SCANS

        class Going(Memory):
            __slots__ = ()

            def names(self) -> list[str]:
                return [*super().names(), 'console.g1.history']

        directory = Going(g1_log=b'1')
        assert directory.tail(name='console.g1.log').data == b'1'
        assert directory.since(None, name='console.g1.log').data == b'1'
        assert directory.pauses == 0

    def test_the_end_of_a_log_that_is_open_beyond_it(self) -> None:
        directory = Memory(log_0=bytes(100), log=LONG)
        with contextlib.closing(log.take(
                directory, 'console.log', log.Wanted())) as taken:
            for limit in (1, 64, 100, 200):
                read = log.tail(taken, limit)
                assert read is not None
                assert (read.data, read.exact) == (LONG[-limit:], True)

    def test_a_history_that_shrinks_where_there_is_no_live_file(self) -> None:
        directory = MemoryDirectory()
        directory.create('console.g2.history', 0).data += b'old'
        with contextlib.closing(log.take(
                directory, 'console.g2.log', log.Wanted())) as taken:
            read = log.tail(taken, 99, shrinking=True)
        assert read is not None
        assert (read.data, read.exact) == (b'old', False)

    def test_of_a_log_that_shrinks_the_newest_file_alone_is_read(self) -> None:
        directory = Memory(log_0=b'before', log=b'newest')
        with contextlib.closing(log.take(
                directory, 'console.log', log.Wanted())) as taken:
            read = log.tail(taken, 99, shrinking=True)
        assert read is not None
        assert (read.data, read.exact) == (b'newest', False)
        assert directory.since(read.position).data == b''

    def test_an_empty_file_is_no_place(self) -> None:
        """Nothing tells it from a later one with its inode."""
        directory = Memory(log_0=b'1', log=b'')
        read = directory.tail()
        assert read.position is not None
        assert (read.data, read.position.inode) == (
            b'1', directory.files['console.log.0'].inode)

    @pytest.mark.parametrize('older', [{}, {'history': b'no'}])
    def test_beyond_a_backup_that_is_missing_nothing_is_opened(
            self, older: dict[str, bytes]) -> None:
        directory = Memory(**older, g1_log_2=b'no', g1_log_0=b'1', g1_log=b'2')
        with contextlib.closing(log.take(
                directory, 'console.g1.log',
                log.Wanted(joined=True))) as taken:
            assert (taken.cut, taken.ended) == (True, False)
            read = log.tail(taken, 99)
        assert read is not None
        assert (read.data, read.exact) == (b'12', False)

    def test_a_history_is_read_from_its_beginning_without_a_live_file(
            self) -> None:
        directory = Memory(g1_history=b'old')
        since = directory.since(None, name='console.g1.log')
        assert (since.data, since.missed) == (b'old', 0)
        with pytest.raises(exception.LogNotFound):
            Memory().since(None, name='console.g1.log')

    def test_no_file_is_read_that_is_not_wanted(self) -> None:
        directory = Memory(log_1=b'1', log_0=b'22', log=b'333')
        with contextlib.closing(log.take(
                directory, 'console.log', log.Wanted())) as taken:
            log.tail(taken, 3)
            assert directory.reads == [3]
            log.tail(taken, 4)
            assert directory.reads == [3, 1, 3]

    def test_what_would_be_read_if_it_came(self) -> None:
        """Names before which, or instead of which, older files were opened.

        None of them is there.
        """
        directory = Memory(g4_log=b'4', g2_log=b'2', g1_history=b'old')
        with contextlib.closing(log.take(
                directory, 'console.g4.log', log.Wanted())) as taken:
            assert taken.absent == (
                'console.g4.history', 'console.g3.log', 'console.g3.history',
                'console.g2.history', 'console.g1.log')
        directory = Memory(log=b'0', g1_log=b'1')
        with contextlib.closing(log.take(
                directory, 'console.g1.log', log.Wanted())) as taken:
            assert taken.absent == ('console.g1.history', 'console.history')
        directory = Memory(g1_log=b'1')
        with contextlib.closing(log.take(
                directory, 'console.g1.log', log.Wanted())) as taken:
            assert taken.absent == (
                'console.g1.history', 'console.log', 'console.history')

    def test_a_name_that_says_nothing_of_generations(self) -> None:
        directory = Memory(g1_history=b'old', log=b'0')
        for name, data in (('vm.log.0', b'1'), ('vm.log', b'2')):
            directory.create(name, 0).data += data
        for name, data in (('vm.log', b'12'), ('console.g1.history', b'old'),
                           ('vm.log.0', b'1')):
            read = directory.tail(name=name)
            assert (read.data, read.exact) == (data, True)
            since = directory.since(None, name=name)
            assert (since.data, since.missed) == (data, 0)
        directory.write('g1.log.0', b'1')
        read = directory.tail(name='console.g1.log.0')
        assert (read.data, read.exact) == (b'1', True)

    def test_nothing_is_older_than_the_first_file(self) -> None:
        """A history beside it is another log's, and is not looked for."""
        directory = Memory(history=b'old')
        directory.write('log', b'1', first=True)
        read = directory.tail()
        assert (read.data, read.exact) == (b'1', True)
        since = directory.since(None)
        assert (since.data, since.missed, since.behind) == (b'1', 0, 0)

    def test_an_older_generation_has_lost_its_beginning(self) -> None:
        directory = Memory(g1_history=b'old', g1_log_0=b'1')
        directory.write('g2.log', b'2', first=True)
        read = directory.tail(name='console.g2.log')
        assert (read.data, read.exact) == (b'12', False)
        since = directory.since(None, 3, name='console.g2.log')
        since = directory.since(since.position, name='console.g2.log')
        assert (since.data, since.missed) == (b'1', None)

    def test_a_generation_before_one_that_has_lost_its_beginning(
            self) -> None:
        directory = Memory(g1_history=b'old', g2_log=b'22')
        directory.write('g1.log', b'1', first=True)
        got = []
        position = None
        for _ in range(3):
            since = directory.since(position, name='console.g2.log')
            position = since.position
            got.append((since.data, since.missed, since.behind))
        assert got == [(b'old', 0, 3), (b'1', 0, 2), (b'22', None, 0)]

    @pytest.mark.parametrize('newer', [True, False])
    def test_a_file_is_missing_in_one_that_has_its_beginning(
            self, newer: bool) -> None:
        """It goes on from its history all the same."""
        directory = Memory(g1_history=b'old')
        directory.write('g1.log.2', b'1', first=True)
        directory.write('g1.log.0', b'2')
        directory.write('g1.log', b'3')
        if newer:
            directory.write('g2.log', b'', first=True)
        got = []
        position = None
        for _ in range(3):
            since = directory.since(
                position, name=f'console.g{2 if newer else 1}.log')
            position = since.position
            got.append((since.data, since.missed, since.behind))
        assert got == [(b'old', 0, 3), (b'1', 0, 2), (b'23', None, 0)]

    def test_a_history_has_no_backups(self) -> None:
        directory = Memory(g1_history=b'old', g1_history_0=b'no')
        directory.write('g1.log', b'1', first=True)
        assert directory.tail(name='console.g1.log').data == b'old1'

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


class Memory(MemoryDirectory):
    """Files in memory; those that were opened are told, and what was read.
    """

    __slots__ = ('asked', 'reads')

    def __init__(self, **files: bytes) -> None:
        """
        :param files: what is in them, under the ends of their names
        """
        super().__init__()
        self.asked: list[str] = []
        #: How many bytes were wanted each time.
        self.reads: list[int] = []
        for end, data in files.items():
            self.write(end, data)

    def open(self, name: str) -> int:
        fd = super().open(name)
        self.asked.append(name)
        return fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self.reads.append(size)
        return super().pread(fd, size, offset)

    def write(self, end: str, data: bytes, *, first: bool = False) -> None:
        """
        :param first: it is the first of its chain
        """
        self.create(f'console.{end.replace("_", ".")}', 0,
                    0o600 | chain.FIRST_OF_CHAIN * first).data += data

    def truncate(self) -> None:
        """As logrotate does with copytruncate, and a copy may be there."""
        self.files['console.log'].data.clear()

    def passed(self, *names: str) -> set[log.Passed]:
        """What a follower says of files that it has read to their ends."""
        return {(1, file.inode, len(file.data), file.mtime_ns)
                for file in map(self.files.__getitem__, names)}

    def since(self, position: log.Position | None, limit: int = 9999,
              passed: set[log.Passed] | None = None,
              name: str = 'console.log') -> log.LogSince:
        since = log.read_from(self, name, position, limit, passed=passed)
        assert not self.opened
        return since

    def tail(self, limit: int = 9999,
             name: str = 'console.log') -> log.LogRead:
        read = log.read_tail(self, name, limit)
        assert not self.opened
        return read


#: Of more bytes than identify a place.
LONG = bytes(range(200))


class TestPlace:
    """A position is the same, however a reader has come to it."""

    def test_by_whatever_read(self) -> None:
        directory = Memory(log=LONG)
        for offset in (0, 1, 63, 64, 65, 199, 200):
            expected = log.position_at(directory, 'console.log', offset)
            assert expected.offset == offset
            start = log.position_at(directory, 'console.log', 0)
            for first in (1, 62, 63, 64, 65, 198, offset):
                since = directory.since(start, first)
                if 0 < first < offset:
                    since = directory.since(since.position, offset - first)
                if first <= offset:
                    assert since.position == expected
        assert not directory.opened

    def test_of_the_end(self) -> None:
        for size in (1, 63, 64, 65, 200):
            directory = Memory(log=LONG[:size])
            expected = log.position_at(directory, 'console.log', size)
            for limit in (0, 1, 63, 64, 65, 199, 200, 300):
                read = directory.tail(limit)
                assert read.position == expected
                assert read.data == (LONG[:size][-limit:] if limit else b'')
                assert read.exact

    def test_of_the_end_of_more_files_than_one(self) -> None:
        for last in (b'1', b'123'):
            directory = Memory(log_1=LONG, log_0=b'', log=last)
            expected = log.position_at(directory, 'console.log', len(last))
            for limit in (len(last), 4, 100, 203, 300):
                read = directory.tail(limit)
                assert (read.data, read.position, read.exact) == (
                    (LONG + last)[-limit:], expected, True)

    def test_in_a_file_that_is_empty(self) -> None:
        """A position before it is kept: another may have its inode soon."""
        directory = Memory(log_0=LONG, log=b'')
        assert directory.tail().position == log.position_at(
            directory, 'console.log.0', 200)
        directory = Memory(log_0=b'', log=b'')
        assert directory.tail().position == log.position_at(
            directory, 'console.log', 0)

    def test_it_says_the_version_of_the_file(self) -> None:
        directory = Memory(log=LONG)
        directory.files['console.log'].version = 0xfedcba98
        for position in (directory.tail(100).position,
                         directory.tail().position,
                         directory.since(None).position):
            assert position is not None
            assert position.mark >> 32 == 0xfedcba98

    def test_where_nothing_is_wanted(self) -> None:
        """It is the oldest byte that a read would begin with."""
        directory = Memory(log_1=LONG, log_0=b'12', log=b'3')
        lost = log.Position(1, 99, 1, 5)
        oldest = log.position_at(directory, 'console.log.1', 0)
        for start in (None, lost, log.LIVE_GENERATION):
            since = directory.since(start, 0)
            assert since.position == oldest
            assert (since.data, since.behind) == (b'', 203)
        since = directory.since(
            lost, 0, directory.passed('console.log.1'))
        assert since.position == log.position_at(
            directory, 'console.log.0', 0)

    @pytest.mark.parametrize('at', [0, 1, 199, 200])
    def test_in_a_file_that_nobody_writes(self, at: int) -> None:
        """What is read from there on is what follows in it, and the rest."""
        directory = Memory(g1_history=LONG)
        directory.write('g1.log', b'new', first=True)
        position = log.position_at(directory, 'console.g1.history', at)
        assert not directory.opened
        since = directory.since(position, name='console.g1.log')
        assert since.data == (LONG[at:] or b'new')
        assert since.missed == 0

    def test_there_is_no_such_file(self, tmp_path: pathlib.Path) -> None:
        (tmp_path / 'console.history').mkdir()
        with open_directory(str(tmp_path)) as directory:
            with pytest.raises(FileNotFoundError):
                log.position_at(directory, 'console.g1.history', 0)
            with pytest.raises(exception.LogNotRegular):
                log.position_at(directory, 'console.history', 0)
        assert descriptors.below(tmp_path) == []

    def test_a_file_that_begins_with_the_same_bytes(self) -> None:
        """One byte after them the position is not taken for its own."""
        directory = Memory(log=b'abc')
        position = directory.tail().position
        directory.files['console.log'].data[:] = b'abx, more'
        since = directory.since(position)
        assert (since.data, since.missed) == (b'abx, more', None)

    def test_no_more_is_opened_than_is_needed(self) -> None:
        directory = Memory(g1_history=b'old', g1_log_0=b'1')
        directory.write('g1.log', b'2', first=True)
        newest = directory.tail(1, 'console.g1.log').position
        assert directory.asked == ['console.g1.log']
        directory.asked.clear()
        assert directory.since(newest, name='console.g1.log').data == b''
        assert directory.asked == ['console.g1.log']
        directory.asked.clear()
        assert directory.tail(2, 'console.g1.log').data == b'12'
        assert directory.asked == ['console.g1.log', 'console.g1.log.0']
        # Nor less.
        directory = Memory(g1_history=b'old')
        directory.write('g1.log', b'1', first=True)
        for limit, data in ((1, b'1'), (2, b'd1'), (3, b'ld1')):
            assert directory.tail(limit, 'console.g1.log').data == data
        # Nor beyond what shows that there is a gap.
        directory = Memory(g2_log=b'2', g1_log=b'1', log=b'0')
        assert directory.tail(9, 'console.g2.log').data == b'2'
        assert 'console.g1.log' in directory.asked
        assert 'console.log' not in directory.asked

    def test_the_parts_of_an_answer(self) -> None:
        """Each says where in its file it ends, and its size."""
        directory = Memory(log_1=b'abc', log_0=b'', log=b'defg')
        oldest, newest = (directory.files[f'console.log{end}']
                          for end in ('.1', ''))
        start = log.position_at(directory, 'console.log.1', 1)
        for limit, sizes in ((1, (1,)), (2, (2,)), (3, (2, 1)), (9, (2, 4))):
            since = directory.since(start, limit)
            assert since.data == b'bcdefg'[:limit]
            assert since.behind == 6 - len(since.data)
            assert since.parts == (
                (1, oldest.inode, oldest.version, 1 + sizes[0], sizes[0]),
                *((1, newest.inode, newest.version, size, size)
                  for size in sizes[1:]))
            # It is the same answer to whoever does not ask for them.
            assert since == dataclasses.replace(since, parts=())


class TestLiveGeneration:
    """What the guest has written since it came to this host."""

    def since(self, directory: Memory, limit: int = 99,
              name: str = 'console.g1.log') -> tuple[bytes, int | None, int]:
        since = directory.since(log.LIVE_GENERATION, limit, name=name)
        return since.data, since.missed, since.behind

    def test_it_is_no_place_in_any_file(self) -> None:
        assert log.Position.parse('0-0-0-0') == log.LIVE_GENERATION

    def test_all_of_it(self) -> None:
        directory = Memory(g1_history=b'old')
        directory.write('g1.log.0', b'12', first=True)
        directory.write('g1.log', b'3')
        assert self.since(directory) == (b'123', 0, 0)
        assert self.since(directory, 2) == (b'12', 0, 1)

    def test_its_beginning_was_rotated_away(self) -> None:
        directory = Memory(g1_history=b'old', g1_log_0=b'12', g1_log=b'3')
        assert self.since(directory) == (b'123', None, 0)

    def test_one_that_another_driver_has_begun(self) -> None:
        """As long as it has one file, nothing was rotated away."""
        directory = Memory(log=b'1')
        assert self.since(directory, name='console.log') == (b'1', 0, 0)
        directory = Memory(log_0=b'1', log=b'2')
        assert self.since(directory, name='console.log') == (b'12', None, 0)
        # It is not alone where a file is missing between it and the others.
        directory = Memory(log_1=b'1', log=b'2')
        directory.files['console.log'].ctime_ns = 1
        assert self.since(directory, name='console.log') == (b'1', None, 1)

    def test_a_generation_is_missing_before_it(self) -> None:
        directory = Memory(log=b'0')
        directory.write('g2.log', b'2', first=True)
        assert self.since(directory, name='console.g2.log') == (b'2', 0, 0)

    def test_a_file_is_missing_in_it(self) -> None:
        """The next read goes on, and says that something may be missing."""
        directory = Memory(g1_history=b'old')
        directory.write('g1.log.2', b'12', first=True)
        directory.write('g1.log.0', b'345')
        directory.write('g1.log', b'6')
        since = directory.since(
            log.LIVE_GENERATION, 1, name='console.g1.log')
        assert (since.data, since.missed, since.behind) == (b'1', 0, 5)
        since = directory.since(since.position, 1, name='console.g1.log')
        assert (since.data, since.missed, since.behind) == (b'2', 0, 4)
        since = directory.since(since.position, 1, name='console.g1.log')
        assert (since.data, since.missed, since.behind) == (b'3', None, 3)

    def test_the_guest_has_no_log_here(self) -> None:
        directory = Memory(g1_history=b'old')
        with pytest.raises(exception.LogNotFound):
            self.since(directory)


class TestPassed:
    """Files that a follower has read to their ends are left out."""

    def test_a_file_that_was_read_and_renamed(self) -> None:
        directory = Memory(log_1=b'1', log_0=b'22', log=b'333')
        names = ('console.log.1', 'console.log.0', 'console.log')
        for count, data in enumerate((b'122333', b'22333', b'333', b'')):
            since = directory.since(
                None, passed=directory.passed(*names[:count]))
            assert (since.data, since.missed, since.behind) == (data, 0, 0)
        # In whatever place.
        since = directory.since(None, passed=directory.passed(names[1]))
        assert since.data == b'1333'
        position = log.position_at(directory, names[0], 0)
        since = directory.since(position, 2, directory.passed(names[1]))
        assert (since.data, since.missed, since.behind) == (b'13', 0, 2)

    def test_all_were_read(self) -> None:
        directory = Memory(log=b'1')
        since = directory.since(None, passed=directory.passed('console.log'))
        assert (since.data, since.position, since.missed) == (b'', None, 0)

    def test_the_file_of_the_position_is_gone(self) -> None:
        """What was not passed is read from its beginning."""
        directory = Memory(log_0=b'1', log=b'2')
        position = log.Position(1, 99, 1, 5)
        passed = directory.passed('console.log.0')
        since = directory.since(position, 99, passed)
        assert (since.data, since.missed) == (b'2', None)
        since = directory.since(position, 0, passed)
        assert since.position == log.position_at(directory, 'console.log', 0)
        passed = directory.passed('console.log.0', 'console.log')
        since = directory.since(position, 99, passed)
        assert (since.data, since.missed) == (b'', None)
        assert since.position == log.position_at(directory, 'console.log', 1)
        since = directory.since(position, 99, set())
        assert (since.data, since.missed) == (b'12', None)

    def test_what_was_not_read_of_an_older_generation(self) -> None:
        """It is not there for a position that is lost, passed or not."""
        directory = Memory(g1_history=b'old')
        directory.write('g1.log', b'1', first=True)
        since = directory.since(log.Position(1, 99, 1, 5), 99,
                                {(1, 98, 1, 1)}, 'console.g1.log')
        assert (since.data, since.missed) == (b'1', None)


class TestCopied:
    """logrotate's copytruncate copies the live file, and empties it."""

    def followed(self, read: int = 100) -> tuple[Memory, log.Position]:
        """A log, and the position of who has read so much of it."""
        directory = Memory(log=LONG[:read])
        position = directory.tail().position
        assert position is not None
        return directory, position

    @pytest.mark.parametrize('read', [1, 64, 100])
    @pytest.mark.parametrize('more', [0, 50])
    def test_the_rest_is_read_in_the_copy(self, read: int, more: int) -> None:
        directory, position = self.followed(read)
        directory.write('log.0', LONG[:read + more])
        directory.truncate()
        since = directory.since(position)
        assert (since.data, since.missed) == (LONG[read:read + more], None)
        assert since.position == log.position_at(
            directory, *(('console.log.0', read + more)))
        directory.files['console.log'].data += b'new'
        since = directory.since(position, more + 1)
        assert (since.data, since.missed, since.behind) == (
            LONG[read:read + more] + b'n', None, 2)

    def test_an_empty_file_is_no_copy(self) -> None:
        """The copy is the next older one that has anything."""
        directory, position = self.followed()
        directory.write('log.1', LONG)
        directory.write('log.0', b'')
        directory.truncate()
        assert directory.since(position).data == LONG[100:]

    @pytest.mark.parametrize('other', [
        LONG[:99], bytes(100), LONG[:99] + b'x' + LONG])
    def test_another_file_is_no_copy(self, other: bytes) -> None:
        """What came after the truncation is read alone."""
        directory, position = self.followed()
        directory.write('log.1', LONG)
        directory.write('log.0', other)
        directory.truncate()
        directory.files['console.log'].data += b'new'
        since = directory.since(position)
        assert (since.data, since.missed) == (b'new', None)
        since = directory.since(position, 0)
        assert since.position == log.position_at(directory, 'console.log', 0)

    @pytest.mark.parametrize('bit', [0, 31])
    def test_other_bytes_before_the_position_are_no_copy(
            self, bit: int) -> None:
        directory, position = self.followed()
        directory.write('log.0', LONG)
        directory.truncate()
        other = dataclasses.replace(position, mark=position.mark ^ 1 << bit)
        assert directory.since(other).data == b''
        assert directory.since(position).data == LONG[100:]

    def test_a_file_that_is_newer_is_no_copy(self) -> None:
        """The one that was emptied may have been rotated since."""
        directory, position = self.followed()
        directory.truncate()
        directory.rename('console.log', 'console.log.0')
        directory.write('log', LONG)
        since = directory.since(position)
        assert (since.data, since.missed) == (LONG, None)

    def test_another_file_has_its_inode(self) -> None:
        """Its version tells: nothing was truncated, the file is gone."""
        directory, position = self.followed()
        directory.write('log.0', LONG)
        directory.truncate()
        directory.files['console.log'].version += 1
        since = directory.since(position)
        assert (since.data, since.missed) == (LONG, None)

    @pytest.mark.parametrize(('read', 'found'), [(64, True), (63, False)])
    def test_a_copy_is_put_in_place_of_the_file(
            self, read: int, found: bool) -> None:
        """By an editor: enough bytes before the position tell it.

        For who reads all along; to another it says nothing.
        """
        directory, position = self.followed(read)
        del directory.files['console.log']
        directory.write('other', b'')   # has the inode
        directory.write('log.1', b'older')
        directory.write('log.0', LONG)
        directory.write('log', b'new')
        since = directory.since(position, passed=set())
        assert since.missed is None
        assert since.data == (
            LONG[read:] + b'new' if found else b'older' + LONG + b'new')
        since = directory.since(position)
        assert (since.data, since.missed) == (
            b'older' + LONG + b'new', None)


class TestMoving:
    """Files change while they are read."""

    def test_histories_come_all_the_time(self) -> None:
        """The live chain is given, and that there may be more."""
        class Replaced(Memory):
            __slots__ = ('looks',)

            def names(self) -> list[str]:
                self.looks += 1
                return [*super().names(), *(
                    ['console.g2.history'] if self.looks % 2 == 0 else [])]

        directory = Replaced(g1_log=b'old', log=b'older')
        directory.files['console.g1.log'].mode |= chain.FIRST_OF_CHAIN
        directory.looks = 0
        directory.write('g2.log', b'new', first=True)
        read = directory.tail(name='console.g2.log')
        assert (read.data, read.exact) == (b'new', False)
        assert directory.looks == 2 * log.READS + 1
        assert directory.asked.count('console.log') == log.READS
        # The next read of a follower has it.
        since = directory.since(None, name='console.g2.log')
        assert since == log.LogSince(b'', None, 0, 0)
        position = read.position
        since = directory.since(position, name='console.g2.log')
        assert since == log.LogSince(b'', position, 0, 0)

    @pytest.mark.parametrize(('times', 'exact'), [
        (log.READS - 1, True), (log.READS, False), (99, False)])
    def test_a_file_that_is_shorter_than_it_was(
            self, times: int, exact: bool) -> None:
        """Each time that it is read; what it has is given in the end."""
        class Shrinking(Memory):
            __slots__ = ('times',)

            def pread(self, fd: int, size: int, offset: int) -> bytes:
                if self.times and size > log.MARKED_BYTES:
                    self.times -= 1
                    del self.files['console.log'].data[-10:]
                return super().pread(fd, size, offset)

        for limit in (9999, 500):
            directory = Shrinking(log=STREAM[:1000])
            directory.times = times
            read = directory.tail(limit)
            assert read.exact == exact
            directory.times = 0
            written = bytes(directory.files['console.log'].data)
            assert len(read.data) >= min(limit, len(written)) - 10
            assert written.endswith(read.data)
            since = directory.since(read.position)
            assert (since.data, since.missed) == (b'', 0)
        directory = Shrinking(log=STREAM[:1000])
        directory.times = times
        assert bool(directory.since(None).data) == exact

    def test_a_large_log_is_read_whole(self) -> None:
        """Whatever the kernel gives at once."""
        class Slow(Memory):
            __slots__ = ()

            def preadv(self, fd: int, into: memoryview, offset: int) -> int:
                return super().preadv(fd, into[:70_001], offset)

        stream = STREAM[:600_000]
        directory = Slow(log_2=stream[:200_000], log_1=stream[200_000:200_001],
                         log_0=stream[200_001:500_000], log=stream[500_000:])
        assert directory.tail(600_000).data == stream
        assert directory.tail(500_001).data == stream[-500_001:]
        position = log.position_at(directory, 'console.log.2', 150_000)
        since = directory.since(position, 600_000)
        assert since.data == stream[150_000:]
        assert since.position == directory.tail(1).position

    @pytest.mark.parametrize('short', [1, 2, 3])
    def test_a_large_log_has_no_hole(self, short: int) -> None:
        """One of its files is shorter than it was when it was opened."""
        class Short(Memory):
            __slots__ = ('calls',)

            def preadv(self, fd: int, into: memoryview, offset: int) -> int:
                self.calls += 1
                return super().preadv(
                    fd, into[:len(into) - 1] if self.calls == short
                    else into[:0] if self.calls == short + 1 else into,
                    offset)

        stream = STREAM[:900_000]
        directory = Short(log_1=stream[:300_000],
                          log_0=stream[300_000:600_000],
                          log=stream[600_000:])
        directory.calls = 0
        since = directory.since(None, 900_000)
        assert (since.data, since.missed) == (stream, 0)
        assert directory.calls == short + 1 + 3
        directory.calls = 0
        assert directory.tail(900_000).data == stream

    def test_a_file_that_cannot_be_read(self) -> None:
        """There are older bytes, though nobody can have them."""
        class Failing(Memory):
            __slots__ = ()

            def pread(self, fd: int, size: int, offset: int) -> bytes:
                if self.opened[fd] is self.files['console.log.1']:
                    raise OSError(5, 'made by the test')
                return super().pread(fd, size, offset)

        directory = Failing(log_1=b'12345', log_0=b'67', log=b'8')
        read = directory.tail()
        assert (read.data, read.exact) == (b'678', False)
        read = directory.tail(5)
        assert (read.data, read.exact) == (b'678', False)
        with pytest.raises(exception.LogError, match='made by the test'):
            directory.since(None)


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
