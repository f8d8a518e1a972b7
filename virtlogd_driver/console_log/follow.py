# SPDX-License-Identifier: Apache-2.0
"""A follower waits for more of some logs, across rotation.

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
import math
import os
import select
import struct
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
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

#: Bytes of a read that are little: at a hundred of such a second no log is
#: rotated in that time.
_LITTLE = 4096

#: Looks at the files of a log until one falls between two rotations.
_TRIES = 5

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


def _poll(*fds: int | None) -> select.poll:
    """Give what waits for descriptors of any number.

    select(2) takes none above 1023. A process that keeps the logs of a host
    open has more.
    """
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return poll


class _Inotify:
    """The kernel watches paths; where it does not, ``add`` answers None."""

    def __init__(self, wake: int | None) -> None:
        """:param wake: a descriptor that ends a wait, too"""
        self._libc = ctypes.CDLL(None, use_errno=True)
        fd = self._libc.inotify_init1(_CLOEXEC | _NONBLOCK)
        self.fd: int | None = fd if fd >= 0 else None
        self._poll = _poll(self.fd, wake)

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

    def wait(self, timeout: float) -> bool:
        """Tell whether there are events, at once or after a while."""
        ready = self._poll.poll(math.ceil(timeout * 1000))
        return self.fd in [fd for fd, _ in ready]

    def take(self) -> list[tuple[int, int, str]]:
        """Give watch, mask and name of each event that has come."""
        if self.fd is None:
            return []
        events = []
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        while data:
            watch, mask, _, length = _EVENT.unpack_from(data)
            end = _EVENT.size + length
            name = os.fsdecode(data[_EVENT.size:end].rstrip(b'\0'))
            events.append((watch, mask, name))
            data = data[end:]
        return events

    def close(self) -> None:
        if self.fd is not None:
            self._poll.unregister(self.fd)
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
    #: The kernel has said that it was written since it was read to its end.
    unread: bool = False
    #: When it may be read again, by time.monotonic.
    due: float = 0.0
    #: How many files were begun after the one that is read; None: the kernel
    #: has not told.
    newer: int | None = None
    file_watch: int | None = None
    directory_watch: int | None = None
    #: Other files have its names than those that are watched.
    renamed: bool = False
    #: It was given to be read, and was not since.
    given: bool = False
    #: What was read of it last was not little.
    busy: bool = False
    #: It could not be read when that was tried last.
    failed: bool = False

    @property
    def watched(self) -> bool:
        """Tell whether the kernel says what happens to it on this host."""
        return self.seen is None or (
            self.directory_watch is not None
            and (not self.seen if self.file_watch is None else self.live))

    @property
    def named(self) -> bool:
        """Tell whether it is enough to hear when it is rotated.

        The kernel says no more of a file of root's in a directory that is not.
        """
        return (self.directory_watch is not None and self.live
                and not self.busy)


@dataclass(slots=True)
class _Compared:
    """Some logs are compared with what they were, at intervals."""

    logs: dict[str, _Log]
    #: Seconds; and when that was done last, by time.monotonic.
    interval: float
    last: float = 0.0


class Follower:
    """Some logs are read, each from where its last read ended.

    One thread waits. Each log may be read in another one, if in one at a time:
    none of them waits for the file system of another's.
    """

    def __init__(self, read: Read, *, gather: float = GATHER,
                 compare: float = COMPARE_WATCHED, pace: float = 0.0,
                 wake: int | None = None, looks: bool = True,
                 chunk: int = CHUNK) -> None:
        """
        :param read: reads a log
        :param gather: seconds to let more bytes come before they are read
        :param compare: seconds between two looks at files that are watched
        :param pace: seconds between two reads, about, of a log that has
            little; one that has more, or was rotated, is read at once
        :param wake: a descriptor that ends a wait when it can be read
        :param looks: who waits looks at files; if not, :meth:`wait` touches
            none, and gives each log that is to be looked at, or may have
            more, once until :meth:`is_ready` is called
        :param chunk: most bytes of one read
        """
        self._read = read
        self._chunk = chunk
        self._gather = gather
        self._pace = pace
        self._woken = _poll(wake)
        self._looks = looks
        self._inotify = _Inotify(wake)
        #: What follows, and what is noted of a log by others than its reader.
        #: No file is touched while it is held.
        self._lock = threading.RLock()
        self._logs: dict[str, _Log] = {}
        #: Those that the kernel does not watch; and those that need no look
        #: more often than they are read, as it says when they are rotated.
        self._unwatched = _Compared({}, COMPARE_UNWATCHED)
        self._named = _Compared({}, max(COMPARE_UNWATCHED, pace))
        self._compared = (
            _Compared(self._logs, compare), self._named, self._unwatched)
        #: By each watch, the logs that it is of.
        self._by_watch: dict[int, dict[str, _Log]] = {}
        self._ready: dict[str, None] = {}
        #: Those whose files it is time to look at.
        self._to_look: dict[str, None] = {}

    def close(self) -> None:
        self._inotify.close()

    def add(self, path: str, position: Position | None) -> None:
        """Follow a log too.

        :param path: path of the live file, which need not be there
        :param position: where to go on; None: its very beginning
        """
        log = _Log(path, position)
        with self._lock:
            self._logs[path] = log
        self._watch(log)
        if position is not None:
            _pass(log)
            self._count_newer(log)
        with self._lock:
            self._ready[path] = None

    def remove(self, path: str) -> None:
        """Follow a log no more."""
        with self._lock:
            log = self._logs.pop(path)
            self._ready.pop(path, None)
            self._to_look.pop(path, None)
            self._unwatched.logs.pop(path, None)
            self._named.logs.pop(path, None)
            unused = [*self._unwatch(log, log.file_watch),
                      *self._unwatch(log, log.directory_watch)]
        for watch in unused:
            self._inotify.remove(watch)

    def wait(self, timeout: float) -> list[str]:
        """Give paths of the logs that may have more, at once or after a while.

        :param timeout: seconds until an empty answer
        """
        deadline = time.monotonic() + timeout
        while True:
            left = min(deadline - time.monotonic(), self._until_compared(),
                       self._until_due())
            if self._inotify.wait(max(0.0, left)):
                time.sleep(self._gather)
            self._take_events()
            for log in self._to_compare():
                self._look(log)
            ready = self._due()
            if (ready or time.monotonic() >= deadline
                    or self._is_woken()):
                return ready

    def _due(self) -> list[str]:
        """Give the logs that may have more, and are to be read now."""
        now = time.monotonic()
        with self._lock:
            found = [path for path in self._ready
                     if self._is_due(self._logs[path], now)]
            if self._looks:
                return found
            found += [path for path in self._to_look
                      if not self._logs[path].given
                      and path not in self._ready]
            for path in found:
                self._logs[path].given = True
        return found

    def _is_due(self, log: _Log, now: float) -> bool:
        return not log.given and (not self._pace or log.due <= now)

    def _until_due(self) -> float:
        """Give the seconds until a log is to be read that may have more."""
        with self._lock:
            logs = [self._logs[path] for path in self._ready]
        return min((log.due for log in logs if not log.given),
                   default=math.inf) - time.monotonic()

    def _is_woken(self) -> bool:
        return bool(self._woken.poll(0))

    def is_ready(self, path: str) -> bool:
        """Tell whether a log may have more, looking at its files if it is
        time to.
        """
        log = self._logs[path]
        with self._lock:
            log.given = False
            looks = self._to_look.pop(path, self) is None
        if looks:
            self._look(log)
        return path in self._ready

    def is_unread(self, path: str) -> bool:
        """Tell whether a log is known to have more than was read of it."""
        return self._logs[path].unread

    def go_on(self, path: str, since: LogSince) -> None:
        """Take what others have read of a log, to where its file ends."""
        log = self._logs[path]
        newer = {part[:2] for part in since.parts} - {_file(log.position)}
        with self._lock:
            if log.newer is not None:
                log.newer = max(0, log.newer - len(newer))
        log.position, log.unread = since.position, False

    def begin_at(self, path: str, position: Position) -> None:
        """Read a log from a position on, whatever was read of it."""
        log = self._logs[path]
        log.position, log.passed = position, frozenset()

    def is_rotated(self, path: str) -> bool:
        """Tell whether a log has files that are newer than what was read."""
        return bool(self._logs[path].newer)

    def read(self, path: str) -> LogSince | None:
        """Give the next bytes of a log; None where it has no file right now.

        :raises LogError: it cannot be read
        """
        log = self._logs[path]
        with self._lock:
            # What comes from now on is noted anew.
            self._ready.pop(path, None)
            unread, log.unread = log.unread, False
            renamed, log.renamed = log.renamed, False
        try:
            if renamed:
                # First the watch, then the read: nothing falls between.
                self._watch(log)
            since = self._read(path, log.position, self._chunk,
                               log.passed)
        except exception.LogError as error:
            log.unread = log.unread or unread
            log.failed = not isinstance(error, exception.LogNotFound)
            if log.failed:
                raise
            return None
        log.failed = False
        if log.file_watch is None and not log.seen:
            # It has a file, which the kernel does not watch.
            self._look(log)
        before = log.position
        if since.missed is None and before is not None:
            since = replace(since, missed=self._count_lost(
                log, before, since))
        log.position = since.position
        if (since.missed != 0
                or _file(before) != _file(log.position)):
            _pass(log)
            self._count_newer(log)
        log.busy = len(since.data) >= _LITTLE or since.behind > 0
        if self._pace and not log.busy:
            # All at the same moments: who waits then wakes once for them all.
            log.due = self._pace * math.ceil(
                (time.monotonic() + self._pace / 2) / self._pace)
        if since.behind:
            with self._lock:
                log.unread = True
                self._ready[path] = None
        return since

    def _count_lost(self, log: _Log, before: Position,
                    since: LogSince) -> int | None:
        """Tell how many bytes were rotated away between two reads.

        virtlogd rotates a file when it has just as many bytes as the others.

        :param before: where the first read ended
        :returns: None: that is not known
        """
        found = self._settled_files(log)
        sizes = {size for _, _, size, _ in found[1:]}
        index = next((index for index, file in enumerate(found)
                      if since.parts and file[:2] == since.parts[0][:2]),
                     None)
        if log.newer is None or index is None or len(sizes) != 1:
            return None
        _, _, _, end, size = since.parts[0]
        if end != size:   # not from the beginning of its file
            return None
        lost = (log.newer - index) * sizes.pop() - before.offset
        return lost if lost > 0 else None

    def _count_newer(self, log: _Log) -> None:
        """Note how many files are newer than the one that is read now."""
        log.newer = 0
        found = self._settled_files(log)
        newer = next((index for index, file in enumerate(found)
                      if file[:2] == _file(log.position)), None)
        with self._lock:
            # Others may have heeded what came since.
            log.newer = newer if log.newer == 0 else None

    def _settled_files(self, log: _Log) -> list[Passed]:
        """Give the files of a log, the newest first, and heed events until.

        :returns: empty: it is rotated too fast to tell, or not watched
        """
        for _ in range(_TRIES if log.directory_watch is not None else 0):
            self._take_events()
            newer = log.newer
            found = _files(log.path)
            self._take_events()
            if log.newer == newer:
                return found or []
        return []

    def _watch(self, log: _Log) -> None:
        """Watch what has the names of a log now."""
        now = (self._inotify.add(os.path.dirname(log.path),
                                 _NAMES | _ONLYDIR),
               self._inotify.add(log.path, _MODIFY))
        unused = []
        with self._lock:
            before = log.directory_watch, log.file_watch
            log.directory_watch, log.file_watch = now
            for watch in now:
                if watch is not None:
                    self._by_watch.setdefault(watch, {})[log.path] = log
            for watch in before:
                if watch not in now:
                    unused += self._unwatch(log, watch)
            self._sort(log)
        for watch in unused:
            self._inotify.remove(watch)

    def _unwatch(self, log: _Log, watch: int | None) -> list[int]:
        """Give the watch if nobody needs it any more."""
        if watch is None:
            return []
        logs = self._by_watch.get(watch, {})
        logs.pop(log.path, None)
        if logs:
            return []
        self._by_watch.pop(watch, None)
        return [watch]

    def _sort(self, log: _Log) -> None:
        """Note whether it is watched."""
        with self._lock:
            for compared in (self._unwatched, self._named):
                compared.logs.pop(log.path, None)
            if not log.watched:
                compared = self._named if log.named else self._unwatched
                compared.logs[log.path] = log

    def _take_events(self) -> None:
        """Heed what the kernel has told since."""
        with self._lock:
            self._heed(self._inotify.take())

    def _heed(self, events: list[tuple[int, int, str]]) -> None:
        if not events:
            return
        if any(mask & _OVERFLOW for _, mask, _ in events):
            for log in self._logs.values():
                self._rename(log)
                log.unread = True
                log.newer = None
            return
        for watch, mask, name in events:
            if mask & _NAMES:
                for path, log in self._by_watch.get(watch, {}).items():
                    if os.path.basename(path) == name:
                        self._rename(log)
                        log.live = False
                        log.due = 0.0
                        if mask & _MOVED_TO:
                            log.newer = None   # it may be an older one
                        elif mask & _CREATE and log.newer is not None:
                            log.newer += 1
            elif not mask & _IGNORED:
                for log in self._by_watch.get(watch, {}).values():
                    self._ready[log.path] = None
                    log.unread = True

    def _rename(self, log: _Log) -> None:
        """Have it watched anew as it is read next."""
        log.renamed = True
        self._ready[log.path] = None

    def _until_compared(self) -> float:
        with self._lock:
            next_look = min((compared.last + compared.interval
                             for compared in self._compared if compared.logs),
                            default=math.inf)
        return max(0.0, next_look - time.monotonic())

    def _to_compare(self) -> list[_Log]:
        """Give the logs whose files are to be looked at now."""
        now = time.monotonic()
        logs: dict[str, _Log] = {}
        with self._lock:
            for compared in self._compared:
                if now >= compared.last + compared.interval:
                    # At the moments at which logs are read that have a pace.
                    compared.last = now - now % compared.interval
                    logs |= compared.logs
                    if compared.logs is self._logs:
                        # The kernel does not tell when a disk is mended.
                        self._ready |= {path: None for path, log
                                        in self._logs.items() if log.failed}
            if self._looks:
                return list(logs.values())
            self._to_look |= dict.fromkeys(logs)
            return []

    def _look(self, log: _Log) -> None:
        """See whether the files of a log have changed."""
        seen = _look(log)
        changed = seen is None or seen != log.seen
        if changed:
            log.seen = seen
            with self._lock:
                self._ready[log.path] = None
        else:
            log.busy = False
        if changed or log.file_watch is None:
            self._watch(log)
        else:
            self._sort(log)


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
