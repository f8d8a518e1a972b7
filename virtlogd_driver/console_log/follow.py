# SPDX-License-Identifier: Apache-2.0
"""Wait for more of some logs, across rotation.

The kernel tells when a file is written and when a name appears (inotify(7)),
so nothing is read, and nearly nothing done, while guests are quiet. It does
not tell what another host does on shared storage, and not everything may be
watched; so files are compared with what they were as well, once a second, and
more often where a log is not watched.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import LogSince, Position

#: Gives what the log with a path has from a position on, at most so many
#: bytes (reader.read_from).
Read = Callable[[str, Position | None, int], LogSince]

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
_MODIFY, _CREATE, _MOVED_TO = 0x2, 0x100, 0x80
_ONLYDIR, _DONT_FOLLOW = 0x1000000, 0x2000000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct('iIII')


class _Inotify:
    """The kernel's watches; where there are none, ``add`` answers None."""

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
        """Watch, mask and name of each event."""
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
    #: inode and size when it was looked at last.
    seen: tuple[int, int] | None = None
    file_watch: int | None = None
    directory_watch: int | None = None


class Follower:
    """Some logs, each read from where the last read ended.

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
        """Paths of the logs that may have more, at once or after a while.

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
        """The next bytes of a log; None where it has no file right now.

        :raises LogError: it cannot be read
        """
        log = self._logs[path]
        self._ready.pop(path, None)
        try:
            since = self._read(path, log.position, CHUNK)
        except exception.LogNotFound:
            return None
        log.position = since.position
        if since.behind:
            self._ready[path] = None
        return since

    def _watch(self, log: _Log) -> None:
        """Watch what has the names of a log now."""
        directory = os.path.dirname(log.path)
        log.directory_watch = self._inotify.add(
            directory, _CREATE | _MOVED_TO | _ONLYDIR)
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
                 if mask & (_CREATE | _MOVED_TO)}
        for log in self._logs.values():
            if log.file_watch in watches:
                self._ready[log.path] = None
            if (log.directory_watch, os.path.basename(log.path)) in names:
                # First the watch, then the read: nothing falls between.
                self._watch(log)
                self._ready[log.path] = None

    def _until_compared(self) -> float:
        watched = all(log.file_watch is not None
                      and log.directory_watch is not None
                      for log in self._logs.values())
        pause = COMPARE_WATCHED if watched else COMPARE_UNWATCHED
        return max(0.0, self._compared + pause - time.monotonic())

    def _compare(self) -> None:
        self._compared = time.monotonic()
        for log in self._logs.values():
            seen = _look(log.path)
            if seen == log.seen and (seen is None
                                     or log.file_watch is not None):
                continue
            if seen != log.seen:
                log.seen = seen
                self._ready[log.path] = None
            self._watch(log)


def _look(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size
