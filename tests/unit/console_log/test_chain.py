# SPDX-License-Identifier: Apache-2.0
"""The files of one chain are opened as far as they are one run of bytes."""

import os
import pathlib
import random
import stat
from collections.abc import Callable

import pytest

from tests.unit.console_log.rotating import MemoryDirectory
from tests.unit.console_log.schedule import Schedule
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, neighbours
from virtlogd_driver.console_log.chain import Snapshot, runs, snapshot
from virtlogd_driver.console_log.generation import MAX_BACKUPS

LIVE = 'console.log'


class Memory(MemoryDirectory):
    """Files in memory; those that were asked for are told."""

    __slots__ = ('asked', 'looked', 'searched')

    def __init__(self, *files: bytes) -> None:
        """
        :param files: what is in them, the oldest first; the last is live
        """
        super().__init__()
        #: Names that were to be opened.
        self.asked: list[str] = []
        #: How often the next backup was looked for, and where a file is now.
        self.searched = self.looked = 0
        for number, data in enumerate(files):
            backup = len(files) - 2 - number
            self.create(LIVE if backup < 0 else f'{LIVE}.{backup}',
                        0).data += data

    def open(self, name: str) -> int:
        self.asked.append(name)
        return super().open(name)

    def next_backup(self, live: str, first: int, end: int) -> int:
        self.searched += 1
        return super().next_backup(live, first, end)

    def stat(self, name: str) -> os.stat_result:
        self.looked += 1
        return super().stat(name)

    def rotate(self, more: bytes = b'') -> None:
        """As virtlogd does, all at once, once it has written more."""
        self.files[LIVE].data += more
        for number in range(len(self.files), 0, -1):
            self.rename(f'{LIVE}.{number - 1}', f'{LIVE}.{number}')
        self.rename(LIVE, f'{LIVE}.0')
        self.create(LIVE, 0)

    def read(self, found: Snapshot) -> bytes:
        """What is in the files that were opened, which are closed."""
        data = b''.join(self.pread(one.fd, one.size, 0)
                        for one in reversed(found.segments))
        assert len(data) == found.size
        found.close()
        return data


@pytest.mark.parametrize('seed', range(60))
def test_random_schedules(seed: int) -> None:
    schedule = Schedule(random.Random(seed))  # noqa: S311
    schedule.tail()
    schedule.follow(4)
    schedule.close()


class TestBegin:

    def test_only_its_user_may_read_it(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / LIVE
        chain.begin(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_ISVTX | 0o600
        assert path.stat().st_size == 0

    def test_nothing_that_is_there_is_touched(
            self, tmp_path: pathlib.Path) -> None:
        (tmp_path / 'file').write_bytes(b'1')
        (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
        for name in ('file', 'link'):
            with pytest.raises(FileExistsError):
                chain.begin(str(tmp_path / name))
        assert sorted(os.listdir(tmp_path)) == ['file', 'link']
        assert (tmp_path / 'file').read_bytes() == b'1'

    def test_a_chain_is_whole_that_has_its_first_file(self) -> None:
        directory = Memory(b'1', b'2', b'3')
        found = snapshot(directory, LIVE)
        assert not found.whole
        found.close()
        for name, whole in ((f'{LIVE}.0', False), (f'{LIVE}.1', True)):
            directory.files[name].mode |= chain.FIRST_OF_CHAIN
            found = snapshot(directory, LIVE)
            assert found.whole == whole
            assert directory.read(found) == b'123'
            # Not as far as it was opened.
            found = snapshot(directory, LIVE, limit=3)
            assert not found.whole
            assert directory.read(found) == b'123'

    def test_no_chain_is_not_whole(self) -> None:
        found = snapshot(Memory(), LIVE, live=False)
        assert (found.whole, found.complete, found.exact, found.size) == (
            False, True, True, 0)


class TestWanted:
    """No more is opened than is wanted."""

    def test_bytes(self) -> None:
        for limit, names in ((0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3),
                             (6, 3), (7, 3), (None, 3)):
            directory = Memory(b'12', b'34', b'56')
            found = snapshot(directory, LIVE, limit=limit)
            assert found.complete == (limit is None or limit > 6)
            assert found.exact
            assert directory.read(found) == b'123456'[-2 * names:]
            assert directory.asked[:names] == [
                LIVE, f'{LIVE}.0', f'{LIVE}.1'][:names]
            if not found.complete:
                assert len(directory.asked) == names

    def test_until_a_file(self) -> None:
        directory = Memory(b'12', b'34', b'56')
        for split in (runs, lambda *one, until: [
                snapshot(*one, until=until)]):
            for number, name in enumerate((LIVE, f'{LIVE}.0'), 1):
                [found] = split(
                    directory, LIVE, until=(1, directory.files[name].inode))
                assert not found.complete
                assert directory.read(found) == b'123456'[-2 * number:]
        [found] = runs(directory, LIVE, until=(1, 99))
        assert found.complete
        assert directory.read(found) == b'123456'

    @pytest.mark.parametrize(('max_backups', 'data'), [
        (-1, b'3'), (0, b'3'), (1, b'23'), (2, b'123'), (99, b'123'),
        (None, b'123')])
    def test_max_backups(self, max_backups: int | None, data: bytes) -> None:
        directory = Memory(b'1', b'2', b'3')
        assert directory.read(snapshot(
            directory, LIVE, max_backups=max_backups)) == data
        [found] = runs(directory, LIVE, max_backups=max_backups)
        assert directory.read(found) == data

    @pytest.mark.parametrize('max_backups', [None, 99])
    def test_no_more_than_virtlogd_has(self, max_backups: int | None) -> None:
        directory = Memory(*[b'%02d' % number for number in range(40)])
        found = snapshot(directory, LIVE, max_backups=max_backups)
        assert len(found.segments) == MAX_BACKUPS + 1
        assert f'{LIVE}.{MAX_BACKUPS}' not in directory.asked
        assert directory.read(found).startswith(b'07')

    def test_names_that_are_missing_are_not_tried_one_by_one(self) -> None:
        directory = Memory(b'1', b'2', b'3')
        snapshot(directory, LIVE).close()
        assert directory.asked == [LIVE, *(
            f'{LIVE}.{number}' for number in range(3))]
        assert directory.searched == 1
        # Nor those before one that is there, as its first file was.
        directory.rename(f'{LIVE}.1', f'{LIVE}.7')
        directory.rename(f'{LIVE}.0', f'{LIVE}.6')
        del directory.files[LIVE]
        directory.asked.clear()
        found = snapshot(directory, LIVE, live=False)
        assert directory.asked == [
            LIVE, f'{LIVE}.0', f'{LIVE}.6', f'{LIVE}.7']
        assert directory.read(found) == b'12'


class TestMissing:
    """A name is missing for the moment of a rotation, or for good."""

    @pytest.mark.parametrize('opens', [
        snapshot, lambda *names: runs(*names)[0]])
    def test_the_live_file_is_waited_for(
            self, opens: Callable[[Memory, str], Snapshot]) -> None:
        directory = Memory(b'1', b'2')
        file = directory.files.pop(LIVE)

        def come() -> None:
            if directory.pauses == chain.PATIENT_SCANS - 1:
                directory.files[LIVE] = file

        directory.before = come
        assert directory.read(opens(directory, LIVE)) == b'12'
        assert directory.pauses == chain.PATIENT_SCANS - 1

    @pytest.mark.parametrize('live', [True, False])
    def test_it_does_not_come(self, live: bool) -> None:
        """After a crash of virtlogd; nobody waits where no guest runs."""
        directory = Memory(b'1', b'2')
        del directory.files[LIVE]
        for found in (snapshot(directory, LIVE, live=live),
                      *runs(directory, LIVE, live=live)):
            assert (found.exact, found.settled) == (True, True)
            assert directory.read(found) == b'1'
        assert directory.pauses == 2 * chain.PATIENT_SCANS * live

    def test_a_backup_was_deleted(self) -> None:
        """It ends there; all of it is more runs than one."""
        directory = Memory(b'0', b'1', b'2', b'3', b'4')
        for name in directory.files:
            directory.files[name].ctime_ns = 5
        del directory.files[f'{LIVE}.1']
        directory.files[f'{LIVE}.2'].ctime_ns = 4
        found = snapshot(directory, LIVE)
        assert (found.exact, found.complete) == (False, True)
        assert directory.read(found) == b'34'
        assert directory.asked[-1] == f'{LIVE}.2'
        newer, older = runs(directory, LIVE)
        assert (newer.exact, older.exact) == (False, True)
        assert (newer.complete, older.complete) == (True, True)
        assert (directory.read(newer), directory.read(older)) == (
            b'34', b'01')
        assert not directory.opened
        assert directory.pauses == 0

    def test_it_may_be_a_rotation_within_a_tick_of_the_clock(self) -> None:
        """That ends soon; so it is looked again, for a while."""
        directory = Memory(b'1', b'2', b'3', b'4')
        del directory.files[f'{LIVE}.1']
        found = snapshot(directory, LIVE)
        assert (found.exact, directory.read(found)) == (False, b'34')
        assert directory.pauses == chain.PATIENT_SCANS

    def test_a_rotation_is_under_way(self) -> None:
        """The oldest has been renamed, and the next comes after it."""
        directory = Memory(b'1', b'2', b'3')
        directory.clock_ns += 1
        directory.rename(f'{LIVE}.1', f'{LIVE}.2')
        found = snapshot(directory, LIVE)
        assert (found.exact, directory.read(found)) == (True, b'123')
        assert directory.pauses == 0

    def test_a_file_was_written_for_long(self) -> None:
        """The newer one was born as it ended."""
        directory = Memory(b'1', b'2')
        older = directory.files[f'{LIVE}.0']
        older.ctime_ns = older.mtime_ns = 9 * neighbours.ROTATION_NS
        directory.files[LIVE].born_ns = older.ctime_ns
        found = snapshot(directory, LIVE)
        assert (found.exact, directory.read(found)) == (True, b'12')

    def test_runs_after_one_that_ended(self) -> None:
        """What was renamed before does not count for what is older."""
        directory = Memory(b'1', b'2', b'3', b'4', b'5')
        for number, changed in ((0, 9), (1, 9), (2, 4), (3, 4)):
            file = directory.files[f'{LIVE}.{number}']
            file.ctime_ns = changed * neighbours.ROTATION_NS
            if number < 2:
                file.mtime_ns = file.born_ns = file.ctime_ns
        directory.files[LIVE].born_ns = 9 * neighbours.ROTATION_NS
        found = [directory.read(one) for one in runs(directory, LIVE)]
        assert found == [b'345', b'12']
        found = [directory.read(one)
                 for one in runs(directory, LIVE, max_backups=3)]
        assert found == [b'345', b'2']


class TestRotated:
    """virtlogd rotates after the first file was opened, in each scan."""

    def rotating(self, *times: int) -> Memory:
        """
        :param times: how often in each; the last stands for all that follow
        """
        directory = Memory(b'1', b'2', b'3')
        scans = -1

        def rotate() -> None:
            nonlocal scans
            if len(directory.opened) == 1 and directory.pauses > scans:
                scans = directory.pauses
                for _ in range(times[min(scans, len(times) - 1)]):
                    directory.rotate()

        directory.before = rotate
        return directory

    def test_once(self) -> None:
        """There may be more to have; but nothing is wrong in what there is.
        """
        directory = self.rotating(1)
        found = snapshot(directory, LIVE)
        assert (found.exact, found.settled) == (True, True)
        assert directory.pauses == chain.PATIENT_SCANS
        assert directory.read(found) == b'123'
        directory = self.rotating(1, 1, 0)
        assert directory.read(snapshot(directory, LIVE)) == b'123'
        assert directory.pauses == 2
        # One that was alone is not any more.
        directory = self.rotating(1, 0)
        for number in range(2):
            del directory.files[f'{LIVE}.{number}']
        found = snapshot(directory, LIVE)
        assert (len(found.segments), directory.pauses) == (2, 1)
        assert directory.read(found) == b'3'
        # Nor where no more is wanted.
        directory = self.rotating(1)
        assert directory.read(snapshot(directory, LIVE, limit=2)) == b'23'
        assert directory.pauses == 0

    def test_not_quite_once(self) -> None:
        """The first file has its next name, and the live one is not there."""
        directory = self.rotating(1)
        rotate = directory.before

        def begin() -> None:
            if f'{LIVE}.2' not in directory.files:
                rotate()
                if f'{LIVE}.2' in directory.files:
                    del directory.files[LIVE]

        directory.before = begin
        assert directory.read(snapshot(directory, LIVE, limit=2)) == b'23'
        assert directory.pauses == 0

    def test_twice(self) -> None:
        """What is sure is given, and that it may not be all."""
        directory = self.rotating(2)
        found = snapshot(directory, LIVE)
        assert (found.exact, found.settled) == (False, False)
        assert directory.pauses == chain.SCANS - 1
        assert len(found.segments) == 1
        found.close()
        assert not directory.opened

    def test_once_as_it_is_looked_for_the_last_time(self) -> None:
        directory = self.rotating(*[2] * (chain.SCANS - 1), 1)
        found = snapshot(directory, LIVE)
        assert (found.exact, found.settled) == (True, True)
        assert directory.pauses == chain.SCANS - 1
        # The first has a higher number by now than virtlogd gives.
        assert directory.read(found) == b'23'

    def test_a_name_is_missing_as_it_is_looked_for_the_last_time(
            self) -> None:
        directory = self.rotating(*[2] * (chain.SCANS - 1), 0)
        rotate = directory.before

        def delete() -> None:
            if directory.pauses == chain.SCANS - 1:
                directory.files.pop(f'{LIVE}.0', None)
            rotate()

        directory.before = delete
        found = snapshot(directory, LIVE)
        assert (found.exact, len(found.segments)) == (False, 1)
        assert directory.pauses == chain.SCANS - 1
        found.close()

    @pytest.mark.parametrize(('limit', 'data', 'names'), [
        (1, b'3', 1), (2, b'3456', 2), (4, b'3456', 2), (5, b'23456', 3),
        (6, b'123456', 4), (7, b'123456', 4)])
    def test_what_was_written_before_it_was(
            self, limit: int, data: bytes, names: int) -> None:
        """It is met again, with all that it has by now."""
        directory = Memory(b'1', b'2', b'3')

        def rotate() -> None:
            if directory.asked == [LIVE, f'{LIVE}.0'] and (
                    f'{LIVE}.2' not in directory.files):
                directory.rotate(b'456')

        directory.before = rotate
        found = snapshot(directory, LIVE, limit=limit)
        assert found.complete == (limit > 6)
        assert directory.asked[:names] == [LIVE, *(
            f'{LIVE}.{number}' for number in range(names - 1))]
        assert limit > 6 or len(directory.asked) == names
        assert directory.read(found) == data

    def test_one_file_alone_is_not_looked_for_again(self) -> None:
        directory = Memory(b'1', b'2', b'3')
        snapshot(directory, LIVE, limit=1).close()
        assert directory.looked == 0
        directory = Memory(b'1')
        snapshot(directory, LIVE).close()
        assert directory.looked == 0


class TestTimes:

    @pytest.mark.parametrize('max_backups', [None, 9])
    def test_the_live_file_is_written_long_after_a_rotation(
            self, max_backups: int | None) -> None:
        """That is no rotation which an older file was left out of."""
        directory = Memory(b'1', b'2', b'3')
        live = directory.files[LIVE]
        live.ctime_ns = live.mtime_ns = 9 * neighbours.ROTATION_NS
        found = snapshot(directory, LIVE, max_backups=max_backups)
        assert (found.exact, directory.read(found)) == (True, b'123')

    @pytest.mark.parametrize(('max_backups', 'data'), [
        (None, b'3'), (9, b'123')])
    def test_nobody_says_when_a_file_was_born(
            self, max_backups: int | None, data: bytes) -> None:
        """Then virtlogd's setting says what belongs to the log."""
        directory = Memory(b'1', b'2', b'3')
        for file in directory.files.values():
            file.born_ns = None
        found = snapshot(directory, LIVE, max_backups=max_backups)
        assert found.exact == (max_backups is not None)
        assert directory.read(found) == data


def test_a_segment_is_known_by_device_and_inode() -> None:
    segment = chain.Segment(3, 1, 2, 4, 5, first=False)
    assert segment.key == (1, 2)
    for device, inode in ((1, 2), (1, 3), (3, 2)):
        status = os.stat_result((0, inode, device, 1, 0, 0, 0, 0, 0, 0))
        assert segment.is_file(status) == ((device, inode) == (1, 2))


@pytest.mark.parametrize(('size', 'expected'), [(9, 9), (4, 4), (3, 4)])
def test_the_first_file_is_brought_up_to_date(
        size: int, expected: int) -> None:
    """As it was when the others were opened; it does not shrink by that."""
    directory = Memory(b'1', b'2345')

    def resize() -> None:
        if len(directory.opened) == 2:
            directory.files[LIVE].data[:] = bytes(size)
            directory.files[LIVE].mtime_ns = 77

    directory.before = resize
    found = snapshot(directory, LIVE)
    assert found.segments[0].size == expected
    assert found.segments[0].mtime_ns == (77 if size >= 4 else 0)
    found.close()


def test_what_cannot_be_opened_ends_the_run() -> None:
    class Failing(Memory):
        __slots__ = ('name',)

        def open(self, name: str) -> int:
            if name == self.name:
                raise exception.LogDamaged('made by the test')
            return super().open(name)

    directory = Failing(b'1', b'2', b'3')
    directory.name = f'{LIVE}.1'
    for found in (snapshot(directory, LIVE), *runs(directory, LIVE)):
        assert (found.exact, found.settled) == (False, True)
        assert directory.read(found) == b'23'
    directory.name = LIVE
    with pytest.raises(exception.LogDamaged):
        snapshot(directory, LIVE)
    assert not directory.opened
