# SPDX-License-Identifier: Apache-2.0
"""Logs stay open between reads, and every file is closed in the end."""

import contextlib
import errno
import itertools
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from tests.unit import descriptors
from tests.unit.console_log.rotating import MemoryDirectory, Rotator
from tests.unit.console_log.schedule import Schedule
from virtlogd_driver import exception
from virtlogd_driver.console_log import (
    chain,
    descriptor_store,
    generation,
    log,
)
from virtlogd_driver.console_log.chain import Segment
from virtlogd_driver.console_log.descriptor_store import DescriptorStore, Key
from virtlogd_driver.console_log.directory import Files, open_directory
from virtlogd_driver.console_log.log import Taken, Wanted


class Opener:
    """Opens real logs, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        #: What was open already, at the last call.
        self.held: list[Key] = []

    def __call__(self, path: str, wanted: Wanted,
                 held: Mapping[Key, Segment]) -> Taken:
        self.calls += 1
        self.held = list(held)
        directory, name = os.path.split(path)
        with open_directory(directory) as opened:
            taken = log.take(opened, name, wanted)
        taken.keep(held, Files())
        return taken


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(opener: Opener, clock: Clock) -> DescriptorStore:
    return DescriptorStore(opener, clock=clock, sweeper=False)


@pytest.fixture
def live(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'guest/console.log'
    path.parent.mkdir()
    path.write_bytes(b'0')
    return path


@pytest.fixture
def others(live: pathlib.Path) -> list[pathlib.Path]:
    """Logs of other guests."""
    found = [live.parent.parent / name / 'console.log'
             for name in ('a', 'b', 'c')]
    for path in found:
        path.parent.mkdir()
        path.write_bytes(b'1')
    return found


def append(path: pathlib.Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(live: pathlib.Path, backups: int = 3) -> None:
    for number in range(backups - 1, -1, -1):
        old = live.with_name(f'console.log.{number - 1}') if number else live
        if old.exists():
            old.rename(live.with_name(f'console.log.{number}'))
    live.touch()


# Exactness

@pytest.mark.parametrize('seed', range(120))
def test_random_schedules(seed: int) -> None:
    schedule = Schedule(random.Random(seed), kept=True)  # noqa: S311
    for steps in (0, 0, 1, 4, 30):
        schedule.go_on(steps)
        schedule.tail()
    schedule.follow(4)
    schedule.tail()
    schedule.close()


@pytest.mark.parametrize('backups', [1, 3])
def test_over_hundreds_of_rotations(backups: int) -> None:
    """Inodes are used again at once; reads are rare, or one a rotation."""
    directory = MemoryDirectory()
    rotator = Rotator(directory, backups)
    rotator.open()
    store = DescriptorStore(directory.open_log, directory, sweeper=False)
    for turn in range(400):
        for _ in rotator.steps(iter([7] * (1 if turn % 50 else 9))):
            pass
        rotator.write(3)
        read = store.read_tail('/memory/console.log', 99, backups)
        assert read.exact
        assert rotator.is_stream(rotator.kept_from(), read.data)
        assert len(read.data) == rotator.written - rotator.kept_from()
        # Those of before are closed.
        assert len(directory.opened) == store.descriptors() == backups + 1
    store.close()
    assert not directory.opened


# What a read costs

def test_one_call_a_rotation(store: DescriptorStore, opener: Opener,
                             live: pathlib.Path) -> None:
    path = str(live)
    position = None
    for turn in range(1, 8):
        for more in range(3):
            append(live, b'x%d' % more)
            read = store.read_tail(path, 99)
            assert read.exact
            assert read.data.endswith(b'x0x1x2'[:2 * more + 2])
            since = store.read_from(path, position, 99)
            position = since.position
            assert opener.calls <= turn + 1   # and one for the beginning
        rotate(live)
    store.close()


def test_what_is_held_is_not_opened_again(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    """After a rotation, the file that is new."""
    rotate(live)
    append(live, b'1')
    store.read_tail(str(live), 99)
    before = live.stat()
    rotate(live)
    assert store.read_tail(str(live), 99).data == b'01'
    assert opener.held == [(before.st_dev, before.st_ino)]
    assert opener.calls == 2
    store.close()


def test_what_is_not_wanted_is_not_opened(
        store: DescriptorStore, live: pathlib.Path) -> None:
    """However many files have come since."""
    store.read_tail(str(live), 3)
    for data in (b'123', b'456', b'789'):
        rotate(live)
        append(live, data)
    assert store.read_tail(str(live), 3).data == b'789'
    assert descriptors.below(live.parent) == [str(live)]
    store.close()


def test_a_rotated_log_goes_on_from_its_history(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    live.unlink()
    live.with_name('console.g1.history').write_bytes(b'old')
    live = live.with_name('console.g1.log')
    chain.begin(str(live))
    append(live, b'1')
    assert store.read_tail(str(live), 99).data == b'old1'
    live.rename(live.with_name('console.g1.log.0'))
    live.write_bytes(b'2')
    for _ in range(2):
        read = store.read_tail(str(live), 99)
        assert (read.data, read.exact) == (b'old12', True)
        assert opener.calls == 2
    # Until its beginning is not there any more.
    live.with_name('console.g1.log.0').unlink()
    live.rename(live.with_name('console.g1.log.0'))
    live.write_bytes(b'3')
    for _ in range(2):
        read = store.read_tail(str(live), 99)
        assert (read.data, read.exact) == (b'23', False)
        assert descriptors.below(live.parent) == [
            str(live), f'{live}.0']
    store.close()


def test_as_much_of_a_history_as_was_read(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    live.unlink()
    for name in ('console.g1.history', 'console.g2.history'):
        live.with_name(name).write_bytes(b'old')
    live = live.with_name('console.g2.log')
    chain.begin(str(live))
    append(live, b'1')
    for _ in range(2):
        assert store.read_tail(str(live), 3).data == b'ld1'
        assert opener.calls == 1
    store.close()


def test_one_that_is_not_sure_is_not_so_after_a_rotation(
        store: DescriptorStore, live: pathlib.Path) -> None:
    for data in (b'1', b'2', b'3'):
        rotate(live, 9)
        append(live, data)
    live.with_name('console.log.1').unlink()
    for data in (b'23', b'23'):
        read = store.read_tail(str(live), 99)
        assert (read.data, read.exact) == (data, False)
        rotate(live, 9)
    store.close()


def test_less_and_more_than_was_read(store: DescriptorStore, opener: Opener,
                                     live: pathlib.Path) -> None:
    rotate(live)
    append(live, b'12')
    for limit, calls in ((2, 1), (1, 1), (2, 1), (3, 2), (99, 3), (3, 3),
                         (99, 3)):
        assert store.read_tail(str(live), limit).data == b'012'[-limit:]
        assert opener.calls == calls
    store.close()


def test_the_oldest_bytes_again(store: DescriptorStore, opener: Opener,
                                live: pathlib.Path) -> None:
    rotate(live)
    append(live, b'12')
    for _ in range(3):
        assert store.read_from(str(live), None, 2).data == b'01'
        assert opener.calls == 1
    store.close()


def test_another_max_backups(store: DescriptorStore, opener: Opener,
                             live: pathlib.Path) -> None:
    """The files are others then; where none is named they are as before."""
    for data in (b'1', b'2'):
        rotate(live)
        append(live, data)
    for max_backups, data, calls in (
            (3, b'012', 1), (3, b'012', 1), (None, b'012', 1),
            (1, b'12', 2), (1, b'12', 2), (None, b'12', 2), (3, b'012', 3)):
        read = store.read_tail(str(live), 99, max_backups)
        assert (read.data, opener.calls) == (data, calls)
    store.close()


def test_a_history_that_comes(store: DescriptorStore,
                              live: pathlib.Path) -> None:
    """The live file is the same; what is older was not there before."""
    live.unlink()
    first = live.with_name('console.g1.log')
    chain.begin(str(first))
    append(first, b'new')
    assert store.read_tail(str(first), 99).data == b'new'
    assert store.read_tail(str(first), 99).data == b'new'
    assert store.read_from(str(first), None, 99).data == b'new'
    live.with_name('console.g1.history').write_bytes(b'old')
    assert store.read_from(str(first), None, 99).data == b'old'
    read = store.read_tail(str(first), 99)
    assert (read.data, read.exact) == (b'oldnew', True)
    assert store.read_from(str(first), None, 99).data == b'old'
    store.close()


def test_the_oldest_bytes_are_those_before_a_gap(
        store: DescriptorStore, live: pathlib.Path) -> None:
    newer = live.with_name('console.g1.log')
    newer.write_bytes(b'1')
    since = store.read_from(str(newer), None, 99)
    assert (since.data, since.missed, since.behind) == (b'0', 0, 1)
    since = store.read_from(str(newer), since.position, 99)
    assert (since.data, since.missed) == (b'1', None)
    store.close()


def test_files_that_moved_too_fast_are_opened_again() -> None:
    """As soon as somebody asks: they may be still by now."""
    directory = MemoryDirectory()
    rotator = Rotator(directory, 3)
    rotator.open()
    steps = rotator.steps(itertools.repeat(5))

    def go_on() -> None:
        for _ in range(20):
            next(steps)

    store = DescriptorStore(directory.open_log, directory, sweeper=False)
    position = None
    for read in (lambda: store.read_tail('/memory/console.log', 99).data,
                 lambda: store.read_from(
                     '/memory/console.log', position, 99).data):
        go_on()
        directory.before = go_on
        assert len(read()) < 15
        directory.before = lambda: None
        assert len(read()) >= 15
        store.close()


def test_what_was_cut_short_is_not_all_there_is(live: pathlib.Path) -> None:
    """Its newest file is the same when it is asked for again."""
    rotate(live)
    append(live, b'1')
    opened = []

    def open_(path: str, wanted: Wanted,
              held: Mapping[Key, Segment]) -> Taken:
        taken = log.open_log(path, wanted, held)
        opened.append(path)
        if len(opened) == 1:
            # As where the files move too fast.
            unit = taken.live
            unit.settled = unit.exact = taken.ended = False
            taken.cut = True
            unit.files.close(unit.segments.pop().fd)
        return taken

    with contextlib.closing(DescriptorStore(open_, sweeper=False)) as store:
        assert store.read_tail(str(live), 99).data == b'1'
        assert store.read_tail(str(live), 99).data == b'01'


#: What may come beside a log of generation 3 while it is read.
COMES = [*(generation.live_name(0, number) for number in range(3)),
         *(generation.history_name(0, number) for number in range(4))]


@hypothesis.given(strategies.permutations(COMES),
                  strategies.integers(0, len(COMES)))
@hypothesis.settings(max_examples=200)
def test_whatever_comes_it_is_read_as_if_it_had_been_there(
        names: list[str], there: int) -> None:
    with (tempfile.TemporaryDirectory() as directory,
          contextlib.closing(DescriptorStore(
              Opener(), sweeper=False)) as store):
        live = pathlib.Path(directory, 'console.g3.log')

        def come(name: str) -> None:
            chain.begin(str(live.with_name(name)))
            append(live.with_name(name), name.encode())

        for name in (*names[:there], live.name):
            come(name)
        store.read_tail(str(live), 999)
        for name in names[there:]:
            come(name)
            held = store.read_tail(str(live), 999)
            with open_directory(directory) as opened:
                anew = log.read_tail(opened, live.name, 999)
            assert held.data == anew.data


def test_a_file_that_is_truncated(store: DescriptorStore,
                                  live: pathlib.Path) -> None:
    append(live, b'123456789')
    position = store.read_tail(str(live), 99).position
    live.write_bytes(b'')
    append(live, b'ab')
    assert store.read_tail(str(live), 99).data == b'ab'
    assert store.read_from(str(live), position, 99).data == b'ab'
    # Longer than it was.
    live.write_bytes(b'another beginning')
    assert store.read_tail(str(live), 99).data == b'another beginning'
    store.close()


def test_a_position_that_is_not_in_its_file_any_more(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    """All of the log is opened then, once: there may be a copy."""
    append(live, b'123456789')
    position = store.read_from(str(live), None, 99).position
    live.write_bytes(b'another beginning')
    since = store.read_from(str(live), position, 99)
    assert (since.data, since.missed) == (b'another beginning', None)
    assert opener.calls == 2
    store.close()
    # As where nothing was open.
    since = store.read_from(str(live), position, 99)
    assert (since.data, since.missed) == (b'another beginning', None)
    store.close()


def test_backups_that_are_deleted(store: DescriptorStore,
                                  live: pathlib.Path) -> None:
    """They are read as long as the log is held, which sweeping ends."""
    for data in (b'1', b'2', b'3'):
        rotate(live)
        append(live, data)
    assert store.read_tail(str(live), 99).data == b'0123'
    live.with_name('console.log.1').unlink()
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'0123', True)
    store.sweep()
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'23', False)
    store.close()


def test_a_backup_that_is_deleted_beside_a_rotation(
        store: DescriptorStore, live: pathlib.Path) -> None:
    """What is before it is there yet, and does not go on to the rest."""
    for data in (b'1', b'2', b'3'):
        rotate(live, 9)
        append(live, data)
    assert store.read_tail(str(live), 99).data == b'0123'
    live.with_name('console.log.1').unlink()
    rotate(live, 9)
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'23', False)
    # A rotation has taken the oldest itself.
    store.close()
    rotate(live, 2)
    assert store.read_tail(str(live), 99, 2).data == b'3'
    append(live, b'4')
    rotate(live, 2)
    rotate(live, 2)
    read = store.read_tail(str(live), 99, 2)
    assert (read.data, read.exact) == (b'4', True)
    store.close()


def test_what_is_before_a_gap_is_nothing_to_the_end(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    newer = live.with_name('console.g1.log')
    newer.write_bytes(b'1')
    store.read_from(str(newer), None, 99)
    live.unlink()
    read = store.read_tail(str(newer), 99)
    assert (read.data, read.exact, opener.calls) == (b'1', False, 1)
    store.close()


def test_a_backup_that_is_deleted_after_a_position(
        store: DescriptorStore, live: pathlib.Path) -> None:
    rotate(live)
    append(live, b'1')
    rotate(live)
    append(live, b'2')
    position = store.read_from(str(live), None, 1).position
    assert store.read_from(str(live), position, 99).data == b'12'
    live.with_name('console.log.0').unlink()
    since = store.read_from(str(live), position, 99)
    assert (since.data, since.missed) == (b'12', 0)
    store.sweep()
    since = store.read_from(str(live), position, 99)
    assert (since.data, since.missed) == (b'2', None)
    store.close()


def test_a_log_that_was_renamed_is_read_on(store: DescriptorStore,
                                           live: pathlib.Path) -> None:
    """logrotate has made an empty one; virtlogd writes on into the first."""
    append(live, b'1')
    assert store.read_tail(str(live), 99).exact
    moved = live.with_name('console.log.1')
    live.rename(moved)
    live.touch()
    # As it is when logrotate comes.
    os.utime(moved, (1, 1))
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'01', False)
    since = store.read_from(str(live), None, 99)
    for data in (b'2', b'3', b'4'):
        append(moved, data)
        since = store.read_from(str(live), since.position, 99)
        assert since.data == data
    store.close()


# What is held, whatever its names

def test_a_log_without_names_stays_open(
        store: DescriptorStore, live: pathlib.Path) -> None:
    """Whoever asked for it last by its name: its guest has just left."""
    append(live, b'1')
    position = store.read_tail(str(live), 99).position
    assert position is not None
    append(live, b'2')
    live.unlink()
    for read in (lambda: store.read_from(str(live), position, 99),
                 lambda: store.read_tail(str(live), 99)):
        with pytest.raises(exception.LogNotFound):
            read()
    since = store.read_held(str(live), position, 99)
    assert since is not None
    assert since.data == b'2'
    store.sweep()
    assert store.read_held(str(live), position, 99) is None
    assert store.descriptors() == 0


def test_a_log_without_names_is_read_on(
        store: DescriptorStore, opener: Opener, live: pathlib.Path) -> None:
    rotate(live)
    append(live, b'.')
    position = store.read_tail(str(live), 99).position
    assert position is not None
    append(live, b'12')
    live.rename(live.with_name('away'))
    since = store.read_held(str(live), position, 1)
    assert since is not None
    assert (since.data, since.missed, since.behind) == (b'1', 0, 1)
    assert since.position is not None
    since = store.read_held(str(live), since.position, 99)
    assert since is not None
    assert (since.data, since.missed, since.behind) == (b'2', 0, 0)
    assert opener.calls == 1
    store.close()


def test_a_position_that_is_in_none_of_what_is_held(
        store: DescriptorStore, live: pathlib.Path) -> None:
    nowhere = log.Position(1, 2, 3, 4)
    assert store.read_held(str(live), nowhere, 99) is None
    position = store.read_tail(str(live), 99).position
    assert position is not None
    assert store.read_held(str(live), nowhere, 99) is None
    # It was truncated: what follows is not known.
    live.write_bytes(b'')
    assert store.read_held(str(live), position, 99) is None
    store.close()
    assert store.read_held(str(live), position, 99) is None
    # Nothing was written on this host.
    live.with_name('console.g1.history').write_bytes(b'old')
    path = str(live.with_name('console.g1.log'))
    assert store.read_tail(path, 99).data == b'old'
    assert store.read_held(path, position, 99) is None
    store.close()


def test_what_is_held_cannot_be_read(
        store: DescriptorStore, live: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed, and the error is the reader's."""
    position = store.read_tail(str(live), 99).position
    assert position is not None

    def fail(*_: object) -> bytes:
        raise OSError(5, 'made by the test')

    monkeypatch.setattr(Files, 'pread', fail)
    with pytest.raises(exception.LogError, match='made by the test'):
        store.read_held(str(live), position, 99)
    assert descriptors.below(live.parent) == []


@pytest.fixture
def stale(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Inodes of files that NFS has lost, as another host has removed them."""
    lost: set[int] = set()
    fstat = Files.fstat

    def look(self: Files, fd: int) -> os.stat_result:
        status = fstat(self, fd)
        if status.st_ino in lost:
            raise OSError(errno.ESTALE, 'Stale file handle')
        return status

    monkeypatch.setattr(Files, 'fstat', look)
    return lost


def test_a_file_that_its_server_has_lost(
        store: DescriptorStore, live: pathlib.Path,
        stale: set[int]) -> None:
    """What there is now is read; what was held is closed."""
    rotate(live)
    append(live, b'1')
    position = store.read_tail(str(live), 99).position
    oldest = live.with_name('console.log.0')
    stale.add(oldest.stat().st_ino)
    oldest.unlink()
    append(live, b'2')
    rotate(live)
    append(live, b'3')
    assert store.read_from(str(live), position, 99).data == b'23'
    assert store.read_tail(str(live), 99).data == b'123'
    assert len(descriptors.below(live.parent)) == 2
    store.close()


@pytest.mark.parametrize('read', [
    lambda store, path: store.read_tail(path, 99),
    lambda store, path: store.read_from(path, None, 99)])
def test_the_newest_file_is_another_on_its_server(
        store: DescriptorStore, live: pathlib.Path, read: Any,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held of it gives nothing any more; its name leads there."""
    assert read(store, str(live)).data == b'0'
    stale = os.open(live, os.O_RDONLY)
    pread = Files.pread

    def lost(self: Files, fd: int, size: int, offset: int) -> bytes:
        if lost_once and os.path.sameopenfile(fd, stale):
            lost_once.pop()
            raise OSError(errno.ESTALE, 'Stale file handle')
        return pread(self, fd, size, offset)

    lost_once = [True]
    monkeypatch.setattr(Files, 'pread', lost)
    assert read(store, str(live)).data == b'0'
    assert lost_once == []
    os.close(stale)
    store.close()
    assert descriptors.below(live.parent) == []


def test_one_whose_name_is_gone_as_well(
        store: DescriptorStore, live: pathlib.Path,
        stale: set[int]) -> None:
    position = store.read_tail(str(live), 99).position
    assert position is not None
    stale.add(live.stat().st_ino)
    with pytest.raises(exception.LogError, match='Stale file handle'):
        store.read_held(str(live), position, 99)
    assert descriptors.below(live.parent) == []


def test_files_that_their_server_has_lost_are_swept(
        store: DescriptorStore, live: pathlib.Path,
        others: list[pathlib.Path], stale: set[int]) -> None:
    for path in (live, *others):
        store.read_tail(str(path), 9)
        stale.add(path.stat().st_ino)
    store.sweep()
    assert descriptors.below(live.parent.parent) == []


# An empty file in place of a log that is written on


@pytest.mark.parametrize('oldest', [b'1', b'12345'])
def test_what_was_renamed_is_written_on(
        store: DescriptorStore, live: pathlib.Path, oldest: bytes) -> None:
    """As after logrotate's create, whatever there is that is older."""
    rotate(live)
    live.with_name('console.log.0').write_bytes(oldest)
    append(live, b'a')
    rotate(live)
    assert store.read_tail(str(live), 99).data == oldest + b'a'
    append(live.with_name('console.log.0'), b'b')
    assert store.read_tail(str(live), 99).data == oldest + b'ab'
    store.close()


def test_the_empty_file_is_written_later(
        store: DescriptorStore, live: pathlib.Path) -> None:
    """That it goes on from the one before is not sure, from one byte on."""
    live.rename(live.with_name('console.log.1'))
    live.touch()
    assert store.read_tail(str(live), 99).data == b'0'
    append(live, b'1')
    assert store.read_tail(str(live), 99).data == b'1'
    store.close()


def test_what_was_renamed_is_lost_by_its_server(
        store: DescriptorStore, live: pathlib.Path, stale: set[int]) -> None:
    renamed = live.with_name('console.log.0')
    rotate(live)
    assert store.read_tail(str(live), 99).data == b'0'
    stale.add(renamed.stat().st_ino)
    renamed.unlink()
    assert store.read_tail(str(live), 99).data == b''
    store.close()


# A file that becomes shorter

class Shrinking(MemoryDirectory):
    """The live file becomes shorter as all of it is read, so many times."""

    __slots__ = ('times',)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        file = self.opened[fd]
        if self.times and size > 1 and len(file.data) >= offset + size:
            self.times -= 1
            del file.data[len(file.data) * 9 // 10:]
        return super().pread(fd, size, offset)


@pytest.fixture
def shrinking() -> Shrinking:
    directory = Shrinking()
    directory.create('console.log', 0).data += b'x' * 1000
    return directory


@pytest.mark.parametrize(('times', 'exact'), [
    (log.READS, False), (log.READS - 1, True), (1000, False)])
def test_the_end_of_a_file_that_becomes_shorter(
        shrinking: Shrinking, times: int, exact: bool) -> None:
    """There is an answer, however often; it is said not to be sure."""
    store = DescriptorStore(shrinking.open_log, shrinking, sweeper=False)
    shrinking.times = times
    read = store.read_tail('/memory/console.log', 9999)
    assert set(read.data) == {ord('x')}
    assert read.exact == exact
    store.close()


@pytest.mark.parametrize('held', [True, False])
@pytest.mark.parametrize('times', [log.READS, log.READS + 1])
def test_a_file_that_becomes_shorter_is_read_on(
        shrinking: Shrinking, times: int, held: bool) -> None:
    """Not by this read, if it is so each time."""
    store = DescriptorStore(shrinking.open_log, shrinking, sweeper=False)
    shrinking.times = 0
    if held:
        store.read_from('/memory/console.log', None, 9999)
    shrinking.times = times
    since = store.read_from('/memory/console.log', None, 9999)
    assert bool(since.data) == (times == log.READS)
    assert since.missed == 0
    store.close()


# What is closed

def test_nothing_is_kept_of_a_guest_that_is_gone(
        store: DescriptorStore, live: pathlib.Path,
        tmp_path: pathlib.Path) -> None:
    port = live.with_name('console.port1.log')
    other = tmp_path / 'guest2/console.log'
    other.parent.mkdir()
    for path in (port, other):
        path.write_bytes(b'')
    for path in (live, port, other):
        store.read_tail(str(path), 9)
    store.forget(str(live.parent))
    assert descriptors.below(tmp_path) == [str(other)]
    store.close()
    assert descriptors.below(tmp_path) == []


def test_forgotten_while_it_is_read(store: DescriptorStore, opener: Opener,
                                    live: pathlib.Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    real = log.tail

    def tail(*arguments: object, **names: object) -> object:
        store.forget(str(live.parent))
        return real(*arguments, **names)   # type: ignore[arg-type]

    monkeypatch.setattr(log, 'tail', tail)
    assert store.read_tail(str(live), 9).data == b'0'
    assert descriptors.below(live.parent) == []


def test_what_is_not_read(store: DescriptorStore, clock: Clock,
                          live: pathlib.Path) -> None:
    store.read_tail(str(live), 9)
    clock.now += descriptor_store.IDLE - 1
    store.sweep()
    assert descriptors.below(live.parent) == [str(live)]
    store.read_tail(str(live), 9)
    clock.now += descriptor_store.IDLE - 1
    store.sweep()
    assert descriptors.below(live.parent) == [str(live)]
    clock.now += 1
    store.sweep()
    assert descriptors.below(live.parent) == []


def test_one_that_is_gone_while_others_are_swept(
        store: DescriptorStore, live: pathlib.Path,
        others: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (live, *others):
        store.read_tail(str(path), 9)

    def clock() -> float:
        store.forget(str(others[0].parent))
        return descriptor_store.IDLE

    monkeypatch.setattr(store, '_clock', clock)
    store.sweep()
    assert descriptors.below(live.parent.parent) == []


@pytest.mark.parametrize('deleted', ['console.log', 'console.log.0'])
def test_what_is_deleted_frees_its_disk(
        store: DescriptorStore, live: pathlib.Path, deleted: str) -> None:
    rotate(live)
    store.read_tail(str(live), 9)
    live.with_name(deleted).unlink()
    store.sweep()
    assert descriptors.below(live.parent) == []


def test_somebody_sweeps(opener: Opener, live: pathlib.Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'SWEEP', 0.01)
    monkeypatch.setattr(descriptor_store, 'IDLE', 0.05)
    store = DescriptorStore(opener)
    for _ in range(2):
        store.read_tail(str(live), 9)
        deadline = time.monotonic() + 30
        while descriptors.below(live.parent):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_least_recently_used_makes_room(
        store: DescriptorStore, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'MOST', 3)
    monkeypatch.setattr(descriptor_store, '_PATIENCE', 60)
    paths = []
    for number in range(4):
        path = tmp_path / str(number) / 'console.log'
        path.parent.mkdir()
        path.write_bytes(b'%d' % number)
        paths.append(path)
    for path in (*paths[:3], paths[0], paths[3]):
        assert store.read_tail(str(path), 9).data
    assert descriptors.below(tmp_path) == [
        str(paths[number]) for number in (0, 2, 3)]
    store.close()


def test_a_log_that_is_as_it_was_makes_no_room(
        store: DescriptorStore, live: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of what is open does not depend on the number of logs."""
    counted = []
    monkeypatch.setattr(
        store, 'descriptors', lambda: counted.append(None) or 0)
    for _ in range(3):
        store.read_tail(str(live), 9)
        append(live, b'1')
    assert len(counted) == 1
    rotate(live)
    for _ in range(3):
        store.read_tail(str(live), 9)
    assert len(counted) == 2
    store.close()


def test_one_log_does_not_take_all(
        store: DescriptorStore, live: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'MOST_OF_ONE', 2)
    rotate(live)
    store.read_tail(str(live), 9)
    assert len(descriptors.below(live.parent)) == 2
    rotate(live)
    assert store.read_tail(str(live), 9).data == b'0'
    assert descriptors.below(live.parent) == []


def test_errors_leave_nothing_open(store: DescriptorStore,
                                   live: pathlib.Path) -> None:
    store.read_tail(str(live), 9)
    live.unlink()
    for _ in range(2):
        with pytest.raises(exception.LogNotFound):
            store.read_tail(str(live), 9)
        with pytest.raises(exception.LogNotFound):
            store.read_from(str(live), None, 9)
    live.mkdir()
    with pytest.raises(exception.LogNotRegular):
        store.read_tail(str(live), 9)
    assert descriptors.below(live.parent) == []


def test_a_read_on_that_fails_leaves_nothing_open(
        store: DescriptorStore, live: pathlib.Path) -> None:
    position = store.read_tail(str(live), 9).position
    live.unlink()
    live.mkdir()
    with pytest.raises(exception.LogNotRegular):
        store.read_from(str(live), position, 9)
    assert descriptors.below(live.parent) == []


def test_a_link_to_what_is_held_is_not_read(
        store: DescriptorStore, live: pathlib.Path) -> None:
    store.read_tail(str(live), 9)
    live.rename(live.with_name('away'))
    live.symlink_to(live.with_name('away'))
    with pytest.raises(exception.LogNotRegular):
        store.read_tail(str(live), 9)
    assert descriptors.below(live.parent) == []


def test_many_threads(opener: Opener, live: pathlib.Path) -> None:
    """Each answer is a run of what was written, and nothing stays open."""
    store = DescriptorStore(opener, sweeper=False)
    line = b'%06d\n'
    live.write_bytes(b'')
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                data = store.read_tail(str(live), 70).data
                numbers = [int(found) for found in data.split(b'\n')[:-1]]
                if numbers != list(range(
                        *(numbers[0], numbers[-1] + 1) if numbers else (0,))):
                    failures.append(repr(data))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        append(live, line % number)
        if number % 7 == 6:
            rotate(live)
        if number % 100 == 50:
            store.forget(str(live.parent))
        if number % 100 == 75:
            store.sweep()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    store.close()
    assert descriptors.below(live.parent) == []


class Hanging:
    """The file system of a guest hangs as a thread closes its log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch,
                 path: pathlib.Path) -> None:
        self.go = threading.Event()
        self.waits = threading.Event()
        close = descriptor_store._Held.close

        def wait(held: descriptor_store._Held) -> None:
            if (held._path == str(path) and threading.current_thread()
                    is not threading.main_thread()):
                self.waits.set()
                assert self.go.wait(60)
            close(held)

        monkeypatch.setattr(descriptor_store._Held, 'close', wait)


def test_nobody_waits_to_have_another_log_closed(
        store: DescriptorStore, live: pathlib.Path,
        others: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging(monkeypatch, live)
    monkeypatch.setattr(descriptor_store, 'MOST', 1)
    store.read_tail(str(live), 10)
    for path in others:
        assert store.read_tail(str(path), 10).data == b'1'
    assert hanging.waits.wait(60)
    assert list(store._held) == [str(others[-1])]
    hanging.go.set()


def test_others_are_swept_beside_one_that_hangs(
        opener: Opener, live: pathlib.Path, others: list[pathlib.Path],
        monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging(monkeypatch, live)
    monkeypatch.setattr(descriptor_store, 'IDLE', 0.0)
    monkeypatch.setattr(descriptor_store, 'SWEEP', 0.01)
    monkeypatch.setattr(descriptor_store, 'LONGEST_SWEEP', 0.1)
    store = DescriptorStore(opener)
    store.read_tail(str(live), 10)
    assert hanging.waits.wait(60)
    time.sleep(0.1)
    for path in others:
        store.read_tail(str(path), 10)
    deadline = time.monotonic() + 60
    while store._held:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hanging.go.set()


_UNDER_EVENTLET = '''
import sys
import eventlet
eventlet.monkey_patch()
from eventlet import patcher
from tests.unit.console_log.test_descriptor_store import Opener
from virtlogd_driver.console_log import descriptor_store

descriptor_store.IDLE, descriptor_store.SWEEP = 0.0, 0.01
store = descriptor_store.DescriptorStore(Opener())
store.read_tail(sys.argv[1], 10)
clock = patcher.original('time')
deadline = clock.monotonic() + 60
while store._held and clock.monotonic() < deadline:
    clock.sleep(0.01)
print(len(store._held))
'''


def test_logs_are_closed_while_a_green_thread_keeps_the_others_from_running(
        live: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _UNDER_EVENTLET, str(live)],
        check=True, capture_output=True, text=True)
    assert done.stdout == '0\n'


class Threads:
    """Threads are counted, and run when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets: list[Callable[..., None]] = []
        #: What they are given, and whether the process waits for their ends.
        self.given: list[tuple[object, ...]] = []
        self.waited_for: list[bool] = []
        #: What happens while a thread sleeps, which it does not for ever.
        self.slept: Callable[[], None] = lambda: None
        self.sleeps = 0
        monkeypatch.setattr(descriptor_store, '_native', lambda: (self, self))

    def Thread(self, *, target: Callable[..., None], name: str, daemon: bool,
               args: tuple[object, ...] = ()) -> 'Threads':
        self.targets.append(target)
        self.given.append(args)
        self.waited_for.append(not daemon)
        return self

    def start(self) -> None:
        pass

    def join(self, timeout: float) -> None:
        pass

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        assert self.sleeps < 9
        self.slept()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


class Table(dict[str, descriptor_store._Held]):
    """A log may come just as none was found, which nobody looks at for ever.
    """

    def __init__(self, come: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.looks = 0
        self.come = come

    def __len__(self) -> int:
        self.looks += 1
        assert self.looks < 99
        found = super().__len__()
        if not found:
            self.come()
        return found


def test_one_thread_sweeps_all_logs(
        threads: Threads, opener: Opener, clock: Clock, live: pathlib.Path,
        others: list[pathlib.Path]) -> None:
    store = DescriptorStore(opener, clock=clock)
    store._held = Table()
    for path in (live, *others):
        store.read_tail(str(path), 9)
    assert len(threads.targets) == 1
    turns = []

    def slept() -> None:
        turns.append(len(descriptors.below(live.parent.parent)))
        clock.now += descriptor_store.IDLE / 2

    threads.slept = slept
    threads.targets[0]()
    assert turns == [4, 4]
    assert descriptors.below(live.parent.parent) == []
    # What is read later has somebody, too.
    store.read_tail(str(live), 9)
    assert len(threads.targets) == 2
    store.close()


def test_a_log_that_comes_as_the_last_was_closed_is_swept(
        threads: Threads, opener: Opener, clock: Clock, live: pathlib.Path,
        others: list[pathlib.Path]) -> None:
    """Who came with it found that somebody sweeps."""
    store = DescriptorStore(opener, clock=clock)
    left = list(others)

    def come() -> None:
        if left:
            store.read_tail(str(left.pop()), 9)

    store._held = Table(come)
    store.read_tail(str(live), 9)

    def slept() -> None:
        clock.now += descriptor_store.IDLE

    threads.slept = slept
    threads.targets[0]()
    assert left == []
    assert descriptors.below(live.parent.parent) == []
    assert len(threads.targets) == 1


@pytest.mark.parametrize('older', [False, True])
def test_the_beginning_is_before_what_an_end_was_read_of(
        tmp_path: pathlib.Path, older: bool) -> None:
    """A backup was deleted: the end is what follows it, and not all."""
    live = tmp_path / ('console.g1.log' if older else 'console.log')
    first = tmp_path / 'console.log'
    for path, data in (
            (first.with_name('console.log.2'), b'first '),
            (first.with_name('console.log.0'), b'third '), (first, b'fourth')):
        path.write_bytes(data)
    if older:
        chain.begin(str(live))
    store = DescriptorStore(log.open_log, sweeper=False)
    assert store.read_tail(str(live), 99, 3).data == b'third fourth'
    read = store.read_from(str(live), None, 99, 3)
    assert (read.data, read.missed) == (b'first ', 0)
    read = store.read_from(str(live), read.position, 99, 3)
    assert (read.data, read.missed) == (b'third fourth', None)
    # And what was read of all is no end that has less.
    assert store.read_tail(str(live), 99, 3).data == b'third fourth'
    store.close()


def test_the_beginning_is_before_what_was_deleted_between(
        tmp_path: pathlib.Path) -> None:
    """A backup is deleted, and the next rotation is seen."""
    live = tmp_path / 'console.log'
    for path, data in (
            (live.with_name('console.log.1'), b'first '),
            (live.with_name('console.log.0'), b'second '), (live, b'third ')):
        path.write_bytes(data)
    store = DescriptorStore(log.open_log, sweeper=False)
    assert store.read_tail(str(live), 99, 3).data == b'first second third '
    live.with_name('console.log.0').unlink()
    live.rename(live.with_name('console.log.0'))
    live.write_bytes(b'fourth')
    assert store.read_tail(str(live), 99, 3).data == b'third fourth'
    read = store.read_from(str(live), None, 6, 3)
    assert (read.data, read.missed) == (b'first ', 0)
    store.close()


def test_there_can_be_no_more_threads(
        threads: Threads, opener: Opener, live: pathlib.Path,
        others: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is given; nothing stays open for it, or unswept."""
    def fail(_: Threads) -> None:
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(descriptor_store, 'MOST', 1)
    store = DescriptorStore(opener)
    with monkeypatch.context() as full:
        full.setattr(Threads, 'start', fail)
        for path in (live, others[0]):
            assert store.read_tail(str(path), 9).data == path.read_bytes()[-9:]
    assert descriptors.below(live.parent.parent) == [str(others[0])]
    before = len(threads.targets)
    store.read_tail(str(others[0]), 9)
    store.read_tail(str(others[0]), 9)
    assert len(threads.targets) == before + 1
    store.close()


def test_a_process_ends_though_a_file_system_hangs(
        threads: Threads, opener: Opener, live: pathlib.Path,
        others: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits neither for who sweeps nor for who makes room."""
    monkeypatch.setattr(descriptor_store, 'MOST', 1)
    store = DescriptorStore(opener)
    store.read_tail(str(live), 9)
    store.read_tail(str(others[0]), 9)
    assert threads.waited_for == [False, False]
    assert descriptors.below(live.parent.parent) == [
        str(others[0]), str(live)]
    threads.targets[1](*threads.given[1])
    assert descriptors.below(live.parent.parent) == [str(others[0])]
    store.close()
