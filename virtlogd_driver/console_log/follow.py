# SPDX-License-Identifier: Apache-2.0
"""Wait for more of some logs, across rotation.

The kernel tells when a file is written and when a name appears (inotify(7)),
so nothing is read, and nearly nothing done, while guests are quiet. It does
not tell what another host does on shared storage, and not everything may be
watched; so files are compared with what they were as well, once a second, and
more often where a log is not watched.

Others move these files, too: logrotate renames or truncates them, an operator
removes them. A file is therefore known by its inode, not by its name: what was
read to its end is passed, and is not read again wherever it turns up.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from virtlogd_driver import exception
from virtlogd_driver.console_log.generation import MAX_BACKUPS, backup_name
from virtlogd_driver.console_log.log import LogSince, Passed, Position


class Read(Protocol):
    """Gives what a log has from a position on: log.read_from."""

    def __call__(self, path: str, position: Position | None, limit: int,
                 passed: Collection[Passed], /) -> LogSince:
        """Give at most ``limit`` bytes, none of them of files passed."""


#: Bytes of one read.
CHUNK = 1 << 18

#: Seconds between two looks at the files themselves.
COMPARE_WATCHED = 1.0
COMPARE_UNWATCHED = 0.1

#: Seconds to let more bytes come before they are read. A guest that writes
#: flat out (800 kB/s) fills 4 KiB in 5 ms.
GATHER = 0.003

# sys/inotify.h
_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000
_MODIFY, _CREATE, _DELETE = 0x2, 0x100, 0x200
_MOVED_FROM, _MOVED_TO = 0x40, 0x80
_NAMES = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO
_ONLYDIR, _DONT_FOLLOW = 0x1000000, 0x2000000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct('iIII')


class _Inotify:
    """The kernel watches paths; where it does not, ``add`` answers None."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        fd = self._libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        self.fd: int | None = fd if fd >= 0 else None

    def add(self, path: str, mask: int) -> int | None:
        """Watch a path; None where that cannot be had."""
        if self.fd is None:
            return None
        watch = self._libc.inotify_add_watch(
            self.fd, os.fsencode(path), mask | _DONT_FOLLOW)
        return watch if watch >= 0 else None

    def remove(self, watch: int) -> None:
        if self.fd is not None:
            self._libc.inotify_rm_watch(self.fd, watch)

    def wait(self, timeout: float) -> list[tuple[int, int, str]]:
        """Give watch, mask and name of each event."""
        if self.fd is None:
            time.sleep(timeout)
            return []
        if not select.select([self.fd], [], [], timeout)[0]:
            return []
        time.sleep(GATHER)
        events = []
        data = os.read(self.fd, 1 << 16)
        while data:
            watch, mask, _, length = _EVENT.unpack_from(data)
            end = _EVENT.size + length
            name = os.fsdecode(data[_EVENT.size:end].rstrip(b'\0'))
            events.append((watch, mask, name))
            data = data[end:]
        return events

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


@dataclass(slots=True)
class _Log:
    path: str
    position: Position | None
    #: Files older than the one that the position is in.
    passed: frozenset[Passed] = frozenset()
    #: What was there when it was looked at last: see :func:`_look`.
    seen: tuple[Passed, ...] | None = ()
    #: The file with the live name is the one that is read.
    live: bool = True
    file_watch: int | None = None
    directory_watch: int | None = None


class Follower:
    """Some logs are read, each from where its last read ended.

    :param read: reads a log
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._inotify = _Inotify()
        self._logs: dict[str, _Log] = {}
        self._ready: dict[str, None] = {}
        self._compared = 0.0

    def close(self) -> None:
        self._inotify.close()

    def add(self, path: str, position: Position | None) -> None:
        """Follow a log too.

        :param path: path of the live file, which need not be there
        :param position: where to go on; None: its very beginning
        """
        log = self._logs[path] = _Log(path, position)
        self._watch(log)
        if position is not None:
            _pass(log)
        self._ready[path] = None

    def remove(self, path: str) -> None:
        """Follow a log no more."""
        log = self._logs.pop(path)
        self._ready.pop(path, None)
        if log.file_watch is not None:
            self._inotify.remove(log.file_watch)
        if log.directory_watch is not None and not any(
                other.directory_watch == log.directory_watch
                for other in self._logs.values()):
            self._inotify.remove(log.directory_watch)

    def wait(self, timeout: float) -> list[str]:
        """Give paths of the logs that may have more, at once or after a while.

        :param timeout: seconds until an empty answer
        """
        deadline = time.monotonic() + timeout
        while True:
            left = 0.0 if self._ready else max(
                0.0, min(deadline - time.monotonic(), self._until_compared()))
            self._heed(self._inotify.wait(left))
            if not self._until_compared():
                self._compare()
            if self._ready or time.monotonic() >= deadline:
                return list(self._ready)

    def read(self, path: str) -> LogSince | None:
        """Give the next bytes of a log; None where it has no file right now.

        :raises LogError: it cannot be read
        """
        log = self._logs[path]
        self._ready.pop(path, None)
        try:
            since = self._read(path, log.position, CHUNK, log.passed)
        except exception.LogNotFound:
            return None
        before, log.position = log.position, since.position
        if (since.missed is None
                or _file(before) != _file(log.position)):
            _pass(log)
        if since.behind:
            self._ready[path] = None
        return since

    def _watch(self, log: _Log) -> None:
        """Watch what has the names of a log now."""
        directory = os.path.dirname(log.path)
        log.directory_watch = self._inotify.add(
            directory, _NAMES | _ONLYDIR)
        watch = self._inotify.add(log.path, _MODIFY)
        if log.file_watch is not None and log.file_watch != watch:
            self._inotify.remove(log.file_watch)
        log.file_watch = watch

    def _heed(self, events: list[tuple[int, int, str]]) -> None:
        if not events:
            return
        if any(mask & _OVERFLOW for _, mask, _ in events):
            for log in self._logs.values():
                self._watch(log)
                self._ready[log.path] = None
            return
        watches = {watch for watch, mask, _ in events if not mask & _IGNORED}
        names = {(watch, name) for watch, mask, name in events
                 if mask & _NAMES}
        for log in self._logs.values():
            if log.file_watch in watches:
                self._ready[log.path] = None
            if (log.directory_watch, os.path.basename(log.path)) in names:
                # First the watch, then the read: nothing falls between.
                self._watch(log)
                self._ready[log.path] = None
                log.live = False

    def _until_compared(self) -> float:
        watched = all(log.seen is None or (
            log.live and log.file_watch is not None
            and log.directory_watch is not None)
            for log in self._logs.values())
        pause = COMPARE_WATCHED if watched else COMPARE_UNWATCHED
        return max(0.0, self._compared + pause - time.monotonic())

    def _compare(self) -> None:
        self._compared = time.monotonic()
        for log in self._logs.values():
            seen = _look(log)
            changed = seen is None or seen != log.seen
            if changed:
                log.seen = seen
                self._ready[log.path] = None
            if changed or log.file_watch is None:
                self._watch(log)


def _file(position: Position | None) -> tuple[int, int] | None:
    return None if position is None else (position.device, position.inode)


def _pass(log: _Log) -> None:
    """Note which files are older than the one that is read now."""
    found = _files(log.path) or []
    passed = log.passed.intersection(found)
    for index, file in enumerate(found):
        if file[:2] == _file(log.position):
            passed = passed.union(found[index + 1:]).difference([file])
            break
    log.passed = passed


def _look(log: _Log) -> tuple[Passed, ...] | None:
    """Give what tells that a log has changed; None: that may not be looked at.

    The live file alone, as long as it is the one that is read.
    """
    try:
        live = _identity(log.path)
        log.live = (live is not None
                    and _file(log.position) in (None, live[:2]))
        if live is not None and log.live:
            return (live,)
    except OSError:
        return None
    found = _files(log.path)
    return None if found is None else tuple(found)


def _files(path: str) -> list[Passed] | None:
    """Give its files, the newest first; None: they may not be looked at."""
    names = [path, *(backup_name(path, number)
                     for number in range(MAX_BACKUPS))]
    try:
        found = [_identity(name) for name in names]
    except OSError:
        return None
    # One that was renamed meanwhile is met twice.
    return list(dict.fromkeys(file for file in found if file is not None))


def _identity(path: str) -> Passed | None:
    """Tell one file from another; None: there is no such file.

    :raises OSError: it may not be looked at
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (status.st_dev, status.st_ino, status.st_size,
            status.st_mtime_ns)
