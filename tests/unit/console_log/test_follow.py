# SPDX-License-Identifier: Apache-2.0
"""A reader waits for more, on real files."""

import contextlib
import gc
import os
import resource
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.console_log import follow, log, neighbours
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.follow import Follower
from virtlogd_driver.console_log.log import LogSince, Passed, Position


def read(path: str, position: Position | None, limit: int,
         passed: Collection[Passed] | None = None) -> LogSince:
    directory_path, name = os.path.split(path)
    with open_directory(directory_path) as directory:
        return log.read_from(
            directory, name, position, limit, passed=passed)


@pytest.fixture(params=['watched', 'unwatched', 'many descriptors'])
def follower(request: pytest.FixtureRequest) -> Iterator[Follower]:
    with contextlib.ExitStack() as at_the_end:
        if request.param == 'many descriptors':
            # More than select(2) takes.
            at_the_end.enter_context(descriptors.many())
        made = Follower(read)
        at_the_end.callback(made.close)
        if request.param == 'unwatched':
            # As where all of the kernel's watches are taken.
            made._inotify.close()
        yield made


def drain(follower: Follower, path: Path, timeout: float = 3.0) -> bytes:
    """What has come, waiting for its beginning."""
    data = b''
    while follower.wait(timeout):
        since = follower.read(str(path))
        if since is not None:
            data += since.data
        if data and not (since and since.behind):
            break
    return data


def append(path: Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(path: Path) -> None:
    for number in range(8, -1, -1):
        backup = path.with_name(f'{path.name}.{number}')
        if backup.exists():
            backup.rename(path.with_name(f'{path.name}.{number + 1}'))
    path.rename(path.with_name(f'{path.name}.0'))
    path.touch()


def test_across_rotation(follower: Follower, tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.write_bytes(b'begin ')
    follower.add(str(path), None)
    assert drain(follower, path) == b'begin '
    append(path, b'one ')
    rotate(path)
    append(path, b'two ')
    rotate(path)
    append(path, b'three ')
    assert drain(follower, path) == b'one two three '


def test_a_file_that_is_new_is_watched(tmp_path: Path) -> None:
    """It need not be looked at."""
    path = tmp_path / 'console.log'
    path.touch()
    watched = Follower(read, compare=3600)
    watched.add(str(path), None)
    assert drain(watched, path, 0.1) == b''
    for data in (b'one', b'two'):
        rotate(path)
        append(path, data)
        assert drain(watched, path, 60) == data
    append(path, b'three')
    assert drain(watched, path, 60) == b'three'
    watched.close()


def test_a_log_that_is_not_there_yet(follower: Follower,
                                     tmp_path: Path) -> None:
    path = tmp_path / 'instance' / 'console.log'
    follower.add(str(path), None)
    assert follower.wait(0.1) == [str(path)]
    assert follower.read(str(path)) is None
    assert follower.wait(0.2) == []
    path.parent.mkdir()
    path.write_bytes(b'here')
    assert drain(follower, path) == b'here'


def test_a_directory_that_is_made_anew(follower: Follower,
                                       tmp_path: Path) -> None:
    path = tmp_path / 'instance' / 'console.log'
    path.parent.mkdir()
    path.write_bytes(b'before')
    follower.add(str(path), None)
    assert drain(follower, path) == b'before'
    path.parent.rename(tmp_path / 'instance_resize')
    path.parent.mkdir()
    path.write_bytes(b'after')
    assert drain(follower, path) == b'after'


def test_several_logs_in_one_directory(follower: Follower,
                                       tmp_path: Path) -> None:
    paths = [tmp_path / f'{name}.log' for name in 'abc']
    for path in paths:
        path.touch()
        follower.add(str(path), None)
    while follower.wait(1.5):
        for name in follower.wait(0):
            follower.read(name)
    follower.remove(str(paths[0]))
    append(paths[0], b'unseen')
    append(paths[2], b'seen')
    assert follower.wait(3) == [str(paths[2])]
    since = follower.read(str(paths[2]))
    assert since is not None
    assert since.data == b'seen'


def test_more_than_one_read(follower: Follower, tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    data = os.urandom(3 * follow.CHUNK + 5)
    path.write_bytes(data)
    follower.add(str(path), None)
    assert drain(follower, path) == data


def test_it_wakes_up_at_once(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.touch()
    follower = Follower(read, compare=3600)
    follower.add(str(path), None)
    follower.read(str(path))
    while follower.wait(0.1):
        follower.read(str(path))
    threading.Timer(0.3, append, (path, b'x')).start()
    assert follower.wait(60)
    follower.close()


class TestOneWhoseFileIsRoots:
    """The kernel says when it is rotated, and not when it is written."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(follow, 'time', SimpleNamespace(
            monotonic=lambda: now[0], sleep=lambda _: None))
        return now

    @pytest.fixture
    def named(self, clock: list[float],
              monkeypatch: pytest.MonkeyPatch) -> Iterator[Follower]:
        add = follow._Inotify.add
        monkeypatch.setattr(
            follow._Inotify, 'add', lambda self, path, mask: (
                add(self, path, mask) if mask & follow._ONLYDIR else None))
        made = Follower(read, compare=3600, pace=0.5, looks=False)
        yield made
        made.close()

    @pytest.fixture
    def path(self, named: Follower, tmp_path: Path) -> Path:
        """Of one that is followed, and has nothing yet."""
        path = tmp_path / 'console.log'
        path.touch()
        named.add(str(path), None)
        self.reads(named, path)
        return path

    def reads(self, named: Follower, path: Path) -> bytes | None:
        """What it gives if it is to be read or looked at; None: neither."""
        if named.wait(0) != [str(path)]:
            return None
        since = named.read(str(path)) if named.is_ready(str(path)) else None
        return since.data if since else b''

    def test_looked_at_as_often_as_it_is_read(
            self, clock: list[float], named: Follower, path: Path) -> None:
        given = []
        for number in range(100):
            clock[0] += 0.1
            append(path, b'%2d' % number)
            given.append(self.reads(named, path))
        assert sum(data is not None for data in given) <= 10 / 0.5 + 1
        written = b''.join(b'%2d' % number for number in range(100))
        assert written.startswith(b''.join(filter(None, given)))
        # None of them came later than it had to.
        assert len(b''.join(filter(None, given))) >= 2 * 95

    def test_one_that_has_much_is_looked_at_more_often(
            self, clock: list[float], named: Follower, path: Path) -> None:
        given = []
        for _ in range(50):
            clock[0] += 0.11
            append(path, b'x' * follow._LITTLE)
            given.append(self.reads(named, path))
        assert all(given[10:])
        # It is quiet now, and is looked at as others are.
        given = []
        for _ in range(50):
            clock[0] += 0.1
            given.append(self.reads(named, path))
        assert sum(data is not None for data in given) <= 5 / 0.5 + 2

    def test_what_was_rotated_is_read_at_once(
            self, clock: list[float], named: Follower, path: Path) -> None:
        for number in range(20):
            clock[0] += 0.01
            append(path, b'%2d' % number)
            rotate(path)
            append(path, b'.')
            assert (self.reads(named, path) or b'')[-3:] == b'%2d.' % number

    def test_one_that_is_new_need_not_be_found_by_a_look_at_all(
            self, clock: list[float], named: Follower,
            tmp_path: Path) -> None:
        path = tmp_path / 'console.log'
        named.add(str(path), None)
        while self.reads(named, path) is not None:
            clock[0] += 0.1
        path.write_bytes(b'new')
        assert self.reads(named, path) == b'new'
        append(path, b'more')
        given = []
        for _ in range(11):
            clock[0] += 0.1
            given.append(self.reads(named, path))
        assert b'more' in given


def test_without_a_change_next_to_nothing_is_done(tmp_path: Path) -> None:
    follower = Follower(read)
    for number in range(100):
        path = tmp_path / f'{number}.log'
        path.write_bytes(b'x')
        follower.add(str(path), None)
    while paths := follower.wait(1.5):
        for name in paths:
            follower.read(name)
    gc.disable()   # what is there is other tests'
    try:
        before = resource.getrusage(resource.RUSAGE_THREAD)
        assert follower.wait(3) == []
        after = resource.getrusage(resource.RUSAGE_THREAD)
    finally:
        gc.enable()
    took = (after.ru_utime + after.ru_stime
            - before.ru_utime - before.ru_stime)
    assert took < 0.05 * 3
    follower.close()


def test_after_lost_events_every_log_is_looked_at(tmp_path: Path) -> None:
    """The kernel's queue of them was full."""
    follower = Follower(read)
    paths = [tmp_path / 'a.log', tmp_path / 'b.log']
    for path in paths:
        path.write_bytes(b'old')
        follower.add(str(path), read(str(path), None, 100).position)
    follower._heed([(-1, follow._OVERFLOW, '')])
    assert follower.wait(0) == [str(path) for path in paths]
    follower.close()


class Files:
    """A log that virtlogd writes, and that others put their hands on.

    What is written are lines with numbers.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / 'console.log'
        self.count = 0
        #: Bytes that no file has any more, or that are out of order.
        self.harmed = False
        self._open()

    def _open(self) -> None:
        self._fd = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def close(self) -> None:
        os.close(self._fd)

    def write(self) -> None:
        for _ in range(3):
            os.write(self._fd, b'the line with number %06d of the guest%s\n'
                     % (self.count, b'!' * (self.count % 11)))
            self.count += 1

    def rotate(self) -> None:
        """virtlogd does, whatever the live name is by now."""
        os.close(self._fd)
        self._shift(0)
        self._open()
        self.write()

    def rename(self) -> None:
        """logrotate, without copytruncate: virtlogd writes on."""
        self._shift(1)

    def rename_and_create(self) -> None:
        self._shift(1)
        with contextlib.suppress(FileExistsError):
            self.path.touch(exist_ok=False)

    def copy_and_truncate(self) -> None:
        if self.path.exists():
            copied = self.path.read_bytes()
            self._shift(1)
            first = self._backup(1)
            if first.exists() and not self.path.exists():
                # The live file keeps its name.
                first.rename(self.path)
            self._backup(1).write_bytes(copied)
            os.truncate(self.path, 0)

    def truncate(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, 0)
        self.harmed = True

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.harmed = True

    def replace(self) -> None:
        """An editor writes it anew."""
        with contextlib.suppress(FileNotFoundError):
            new = self.path.with_name('new')
            new.write_bytes(self.path.read_bytes())
            new.replace(self.path)
        self.harmed = True

    def remove_a_backup(self) -> None:
        self._backup(0).unlink(missing_ok=True)
        self.harmed = True

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f'console.log.{number}')

    def _shift(self, first: int) -> None:
        for number in range(25, first - 1, -1):
            with contextlib.suppress(FileNotFoundError):
                self._backup(number).rename(self._backup(number + 1))
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(self._backup(first))


_WHAT = ('write', 'rotate', 'rename', 'rename_and_create',
         'copy_and_truncate', 'truncate', 'remove', 'replace',
         'remove_a_backup')
#: Give a file the name ``.1``, be there a ``.0`` or not.
_BELOW = ('rename', 'rename_and_create', 'copy_and_truncate')


@settings(max_examples=60)
@given(st.lists(st.sampled_from(('poll', 'write', *_WHAT)), max_size=20),
       st.booleans(), st.booleans())
def test_whatever_is_done_to_the_files_each_line_is_seen_once(
        done: list[str], late: bool, apart: bool) -> None:
    """In its order, and all that show shows has been seen.

    Between two looks nothing is lost that is still in a file, unless one was
    put in place of another.
    """
    # As if much time had gone by in between: files are not taken for
    # neighbours that virtlogd did not make one after the other.
    rotation = 0 if apart else neighbours.ROTATION_NS
    with (tempfile.TemporaryDirectory() as directory,
          mock.patch.object(neighbours, 'ROTATION_NS', rotation)):
        files = Files(Path(directory))
        follower = Follower(read)
        old: set[bytes] = set()
        position = None
        if late:
            # Only what comes from now on.
            for _ in range(3):
                files.write()
                files.rotate()
            since = read(str(files.path), None, 1 << 20)
            old, position = set(since.data.splitlines()), since.position
        follower.add(str(files.path), position)
        seen = b''
        for what in (*done, 'poll', 'write', 'poll'):
            if what not in ('poll', *_BELOW):
                getattr(files, what)()
                continue
            if what != 'poll':
                # A file of which nothing has been seen, and which gets an
                # older name than virtlogd's newest backup, is in no order.
                files.write()
            seen += look(follower, files.path)
            lines = seen.splitlines()
            assert lines == sorted(set(lines).difference(old))
            with contextlib.suppress(exception.LogNotFound):
                shown = read(str(files.path), None, 1 << 20).data
                assert set(shown.splitlines()) <= old.union(lines)
            if what != 'poll':
                getattr(files, what)()
        if not files.harmed:
            assert len(lines) + len(old) == files.count
        follower.close()
        files.close()


def look(follower: Follower, path: Path) -> bytes:
    """All that there is now, as after a while."""
    data = b''
    for compared in follower._compared:
        compared.last = 0.0
    while follower.wait(0):
        since = follower.read(str(path))
        data += since.data if since else b''
    return data


def test_a_file_that_was_renamed_is_still_followed(
        follower: Follower, tmp_path: Path) -> None:
    """Nobody has told virtlogd, so that no file has the live name."""
    path = tmp_path / 'console.log'
    path.write_bytes(b'before ')
    follower.add(str(path), None)
    assert drain(follower, path) == b'before '
    with path.open('ab', buffering=0) as virtlogd:
        path.rename(tmp_path / 'console.log.1')
        follower.wait(0.5)
        virtlogd.write(b'after ')
        assert drain(follower, path) == b'after '
        path.touch()
        follower.wait(0.5)
        virtlogd.write(b'more')
        assert drain(follower, path) == b'more'


def test_a_log_that_may_not_be_looked_at_is_read_all_the_same(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a privileged helper, once a second."""
    path = tmp_path / 'console.log'
    path.write_bytes(b'one')
    follower = Follower(read)
    follower._inotify.close()

    def refuse(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr('os.lstat', refuse)
    follower.add(str(path), None)
    assert drain(follower, path) == b'one'
    append(path, b'two')
    assert drain(follower, path) == b'two'
    follower.close()


def test_a_log_that_has_little_is_read_at_a_pace(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.touch()
    paced = Follower(read, pace=60.0)
    try:
        paced.add(str(path), None)
        assert paced.wait(5) == [str(path)]
        paced.read(str(path))
        append(path, b'a little')
        assert paced.wait(0.2) == []
        # What it has may soon be rotated away.
        rotate(path)
        assert paced.wait(5) == [str(path)]
        since = paced.read(str(path))
        assert since is not None
        assert since.data == b'a little'
    finally:
        paced.close()


@pytest.mark.parametrize('unread', [0, 700])
def test_how_much_was_rotated_away(tmp_path: Path, unread: int) -> None:
    path = tmp_path / 'console.log'
    path.write_bytes(b'x' * (1000 - unread))
    watched = Follower(read)
    try:
        watched.add(str(path), None)
        watched.wait(5)
        watched.read(str(path))
        append(path, b'x' * unread)
        for number in range(12):
            rotate(path)
            path.write_bytes(b'%d' % (number % 10) * 1000)
        rotate(path)
        watched.wait(5)
        since = watched.read(str(path))
        assert since is not None
        # Ten backups are kept.
        assert since.missed == 2000 + unread
        assert since.data[:1] == b'2'
        # It is as exact after that.
        while since is not None and since.behind:
            since = watched.read(str(path))
        for _ in range(11):
            path.write_bytes(b'y' * 1000)
            rotate(path)
        watched.wait(5)
        since = watched.read(str(path))
        assert since is not None
        assert since.missed == 1000
    finally:
        watched.close()


def test_how_much_is_not_known_where_files_differ(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.write_bytes(b'x' * 1000)
    watched = Follower(read)
    try:
        watched.add(str(path), None)
        watched.wait(5)
        watched.read(str(path))
        for number in range(12):
            rotate(path)
            path.write_bytes(b'y' * (1000 + number))
        watched.wait(5)
        since = watched.read(str(path))
        assert since is not None
        assert since.missed is None
    finally:
        watched.close()


@pytest.mark.parametrize('many', [False, True])
def test_another_thread_ends_a_wait(many: bool) -> None:
    """Though the process has more files open than select(2) takes."""
    with contextlib.ExitStack() as at_the_end:
        if many:
            at_the_end.enter_context(descriptors.many())
        wake, wakes = os.pipe()
        at_the_end.callback(os.close, wake)
        at_the_end.callback(os.close, wakes)
        waiting = Follower(read, wake=wake)
        at_the_end.callback(waiting.close)
        threading.Timer(0.1, os.write, (wakes, b'x')).start()
        begin = time.monotonic()
        assert waiting.wait(30) == []
        assert time.monotonic() - begin < 10


def test_it_knows_what_was_written_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.touch()
    watched = Follower(read)
    try:
        watched.add(str(path), None)
        watched.wait(5)
        watched.read(str(path))
        assert not watched.is_unread(str(path))
        append(path, b'more')
        path.unlink()
        watched.wait(5)
        assert watched.read(str(path)) is None
        assert watched.is_unread(str(path))
    finally:
        watched.close()
