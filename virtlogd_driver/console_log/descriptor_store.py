# SPDX-License-Identifier: Apache-2.0
"""The files of logs that are read again and again stay open.

Opening a log takes privilege and a scan (chain.py); reading what is open takes
neither. So the files stay open, and a read begins with one stat of the live
name. An inode of an open file is not given to another: where the name has the
inode that is held, nothing was rotated since, and what is held, up to the size
that the stat gave, is one run that ends at an instant of the call, whatever is
renamed or removed meanwhile. So what somebody deletes is read until the log is
closed, SWEEP seconds later at most. Where the name has another inode, the
files from the new one to the one that is held are opened, and put before what
is held, less what was deleted.

Nothing here locks: a log that is in use is out of the table, which is changed
by single operations of a dict alone. So it does not matter whether threads are
native or eventlet's. Two that read one log at once open it twice.
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from virtlogd_driver import exception
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.chain import Segment, Snapshot
from virtlogd_driver.console_log.log import (
    LogRead,
    LogSince,
    Passed,
    Position,
    Taken,
    Wanted,
)

#: Descriptors in all: half of what systemd lets a service have by default. A
#: read of 100 KiB needs one or two of a guest.
MOST = 512

#: Descriptors of one log: all that one chain has, and an older one.
MOST_OF_ONE = 66

#: Seconds without a read after which a log is closed, so that files which were
#: deleted meanwhile free their disk.
IDLE = 60.0

#: Seconds from one look for idle logs and deleted files to the next.
SWEEP = 15.0

#: Seconds that the look at one log may take until others are looked at beside
#: it: its file system hangs.
LONGEST_SWEEP = 30.0

#: Seconds that who reads a log waits for another to be closed.
_PATIENCE = 0.05

Key = tuple[int, int]

#: Opens what is wanted of the log with a path. Files that are given are held:
#: they are in the answer instead of ones that would be opened again.
Open = Callable[[str, Wanted, Mapping[Key, Segment]], Taken]


class Names(Protocol):
    """Names tell what can be known without privilege."""

    def look(self, path: str) -> os.stat_result | None:
        """Give the file that has a name; None: none, or it is not known."""

    def exists(self, path: str) -> bool: ...


class _Names:

    def look(self, path: str) -> os.stat_result | None:
        try:
            return os.stat(path, follow_symlinks=False)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return os.access(path, os.F_OK)


def _is_doubtful(taken: Taken, status: os.stat_result) -> bool:
    """Tell whether a file that was empty may not go on from the one before.

    Either is written now: virtlogd may still write one that was renamed.
    """
    # Runs of one chain, where bytes may be missing between two.
    newest, *older = [segment for unit, _ in taken.units[:taken.runs]
                      for segment in unit.segments]
    if newest.size or not older:
        return False
    try:
        return (status.st_size > 0
                or taken.live.files.fstat(older[0].fd).st_size > older[0].size)
    except OSError:
        return True   # opened anew it says why


class _Held:
    """A log is held open, in the hands of one thread."""

    __slots__ = ('_names', '_open', '_path', 'changed', 'count',
                 'max_backups', 'taken', 'used')

    def __init__(self, path: str, names: Names, open_: Open,
                 max_backups: int | None) -> None:
        self._path = path
        self._names = names
        self._open = open_
        self.max_backups = max_backups
        self.taken: Taken | None = None
        #: Descriptors that it has, as it was given back.
        self.count: int
        #: When it was given back last, by time.monotonic.
        self.used: float
        #: Other files than before are held.
        self.changed = False

    def segments(self) -> list[Segment]:
        return [] if self.taken is None else [
            segment for unit, _ in self.taken.units
            for segment in unit.segments]

    def close(self) -> None:
        if self.taken is not None:
            self.taken.close()
            self.taken = None

    def reopen(self, *, limit: int | None = None,
               until: Key | None = None, joined: bool = False) -> Taken:
        """Open what is wanted; what is held and not in it is closed."""
        held = {segment.key: segment for segment in self.segments()}
        taken = self._open(self._path, Wanted(
            limit, until, self.max_backups, joined), held)
        self._replace(taken)
        return taken

    def refresh(self, limit: int | None) -> None:
        """Bring what is held up to date.

        :param limit: bytes that are enough
        """
        taken = self.taken
        if taken is None or not taken.live.segments:
            self.close()
            return
        newest = taken.live.segments[0]
        status = self._names.look(self._path)
        if status is not None and newest.is_file(status):
            # A file that is smaller than it was has been truncated.
            if status.st_size < newest.size or _is_doubtful(taken, status):
                self.close()
            newest.look_at(status.st_size, status.st_mtime_ns)
        elif not taken.live.exact:
            # It may be clearer now.
            self.close()
        else:
            self._rotated(taken, newest, limit)

    def rest(self, position: Position, limit: int) -> LogSince | None:
        """Give what follows a position in what is held, whatever its names.

        :returns: None: the position is not in it
        :raises LogError: a file cannot be read
        """
        taken = self.taken
        if taken is None or not taken.live.segments:
            return None
        newest = taken.live.segments[0]
        try:
            status = taken.live.files.fstat(newest.fd)
        except OSError as error:
            raise log.failed(taken.path, error) from error
        newest.look_at(status.st_size, status.st_mtime_ns)
        answer = log.since(taken, position, limit)
        return None if answer is None or answer.missed is None else answer

    def serves_tail(self, limit: int) -> bool:
        """Tell whether the newest bytes need nothing to be opened."""
        taken = self.taken
        if taken is None:
            return False
        total = 0
        for unit, joins in taken.units:
            for segment in unit.segments:
                total += segment.size
                if total >= limit:
                    return True
            if not unit.settled or unit.failure is not None:
                return False
            if not joins:
                break
        return (taken.ended or taken.cut) and self._nothing_came(taken)

    def serves_from(self, key: Key | None) -> bool:
        """Tell whether what follows a position needs nothing to be opened.

        :param key: of its file; None: for the oldest bytes
        """
        taken = self.taken
        if taken is None:
            return False
        if key is not None:
            return any(segment.key == key for segment in self.segments())
        return taken.ended and self._nothing_came(taken)

    def _nothing_came(self, taken: Taken) -> bool:
        """Tell whether no history has come since the log was opened."""
        directory = os.path.dirname(self._path)
        return not any(self._names.exists(f'{directory}/{name}')
                       for name in taken.absent)

    def _rotated(self, taken: Taken, newest: Segment,
                 limit: int | None) -> None:
        """Open what is newer than what is held, and put it before that."""
        (first, joins), *older = taken.units
        # What was rotated away, or deleted: so is what is older. It is looked
        # for before the newer files are: what goes later was there.
        kept = list(itertools.takewhile(
            lambda segment: (segment is newest
                             or not _is_deleted(first, segment)),
            first.segments))
        gone = first.segments[len(kept):]
        # A rotation takes the oldest: somebody else has deleted another.
        only_the_oldest = all(
            _is_deleted(first, segment) for segment in gone)
        come = self._open(self._path, Wanted(
            limit, newest.key, self.max_backups, joined=True),
            {newest.key: newest})
        live = come.live
        if not any(unit.segments for unit, _ in come.units):
            raise log.not_found(taken.path)
        if not live.segments or live.segments[-1] is not newest:
            # So many rotations, or so many bytes: it stands for itself.
            self._replace(come)
            return
        exact = live.exact and only_the_oldest
        self.changed = True
        for segment in gone:
            first.files.close(segment.fd)
        merged = Snapshot(
            live.files, [*live.segments, *kept[1:]],
            complete=first.complete, exact=exact, settled=True,
            failure=first.failure)
        joins = joins and merged.whole
        cut = taken.cut or not exact
        if not joins:
            cut = cut or any(unit.segments for unit, _ in older)
            for unit, _ in older:
                unit.close()
            older = []
        self.taken = Taken(
            taken.path, [(merged, joins), *older],
            ended=taken.ended and not cut, cut=cut, absent=taken.absent)

    def _replace(self, taken: Taken) -> None:
        kept = {segment.key for unit, _ in taken.units
                for segment in unit.segments}
        old, self.taken = self.taken, taken
        self.changed = True
        if old is None:
            return
        for unit, _ in old.units:
            for segment in unit.segments:
                if segment.key not in kept:
                    unit.files.close(segment.fd)


class DescriptorStore:
    """Reads logs, and keeps them open for a while.

    :param open_: opens a log
    :param names: for tests
    :param clock: seconds, from any start
    :param sweeper: somebody calls :meth:`sweep` while there is a log to close
    """

    def __init__(self, open_: Open, names: Names | None = None,
                 clock: Callable[[], float] = time.monotonic, *,
                 sweeper: bool = True) -> None:
        self._open = open_
        self._names = names or _Names()
        self._clock = clock
        # The least recently used first.
        self._held: dict[str, _Held] = {}
        # Another one each time that logs are forgotten.
        self._era = object()
        self._sweeps = sweeper
        #: Who sweeps now, and when it was seen to get on.
        self._sweeper: object | None = None
        self._swept = 0.0

    def read_tail(self, path: str, limit: int,
                  max_backups: int | None = None) -> LogRead:
        """Give the newest bytes of a log: see :func:`log.read_tail`."""
        era = self._era
        held = self._take(path, max_backups)
        try:
            answer = self._tail(held, limit)
        except exception.LogNotFound:
            self._keep(path, held, era)
            raise
        except BaseException:
            held.close()
            raise
        self._give_back(path, held, era)
        return answer

    def read_from(self, path: str, position: Position | None, limit: int,
                  max_backups: int | None = None,
                  passed: Collection[Passed] | None = None) -> LogSince:
        """Give what follows a position in a log: see :func:`log.read_from`."""
        era = self._era
        held = self._take(path, max_backups)
        try:
            answer = self._since(held, path, position, limit, passed)
        except exception.LogNotFound:
            self._keep(path, held, era)
            raise
        except BaseException:
            held.close()
            raise
        self._give_back(path, held, era)
        return answer

    def read_held(self, path: str, position: Position,
                  limit: int) -> LogSince | None:
        """Give what follows a position in the files that are open.

        Their names may be gone, as their guest has left.

        :returns: None: the position is in none of them
        :raises LogError: a file cannot be read
        """
        era = self._era
        held = self._held.pop(path, None)
        if held is None:
            return None
        try:
            answer = held.rest(position, limit)
        except BaseException:
            held.close()
            raise
        self._give_back(path, held, era)
        return answer

    def _tail(self, held: _Held, limit: int) -> LogRead:
        held.refresh(limit)
        for turn in range(log.READS + 1):
            opened = bool(turn) or not held.serves_tail(limit)
            if opened:
                held.reopen(limit=limit, joined=True)
            assert held.taken is not None
            try:
                answer = log.tail(
                    held.taken, limit, shrinking=turn == log.READS)
            except exception.LogError:
                # Its names may lead to what is still there (NFS: ESTALE).
                if opened:
                    raise
                held.close()
                continue
            if answer is not None:
                if opened or answer.failure is None:
                    return answer
                held.close()   # as above
        raise AssertionError('one that shrinks is answered')

    def _since(self, held: _Held, path: str, position: Position | None,
               limit: int, passed: Collection[Passed] | None) -> LogSince:
        until = None if position is None else (
            position.device, position.inode)
        held.refresh(None)
        for turn in range(log.READS + 1):
            opened = turn > 0 or not held.serves_from(until)
            if opened:
                held.reopen(until=until)
            assert held.taken is not None
            try:
                answer = log.since(held.taken, position, limit, passed)
            except exception.LogError:
                # As in _tail.
                if opened:
                    raise
                held.close()
                continue
            if answer is not None and (
                    opened or answer.missed is not None):
                return answer
            # Its file is there, and it is not in it: another has its inode,
            # or it was truncated, and there may be a copy.
            if not opened or not held.taken.ended:
                until = None
        directory, name = os.path.split(path)
        return log.unmoved(directory, name, position)

    def forget(self, directory: str) -> None:
        """Close the logs in a directory: their guest is gone from it."""
        self._era = object()
        for path in list(self._held):
            if os.path.dirname(path) == directory:
                self._close(path)

    def close(self) -> None:
        """Close all logs."""
        self._era = object()
        for path in list(self._held):
            self._close(path)

    def descriptors(self) -> int:
        """Count how many are open, of logs that are not in use."""
        return sum([held.count for held in list(self._held.values())])

    def sweep(self) -> None:
        """Close what was not read for a while, and what was deleted."""
        for path in list(self._held):
            era = self._era
            held = self._held.pop(path, None)
            if held is None:
                continue
            self._swept = time.monotonic()
            if (self._clock() - held.used >= IDLE
                    or held.taken is None or _has_deleted(held.taken)):
                held.close()
            else:
                self._put(path, held, era)

    def _take(self, path: str, max_backups: int | None) -> _Held:
        """Give a log for this thread alone, as it was left or closed."""
        held = self._held.pop(path, None)
        if held is not None:
            if max_backups is None or held.max_backups == max_backups:
                return held
            held.close()
        return _Held(path, self._names, self._open, max_backups)

    def _give_back(self, path: str, held: _Held, era: object) -> None:
        """
        :param era: what it was when the log was taken
        """
        changed, held.changed = held.changed, False
        if changed:
            held.count = len(held.segments())
            if held.count > MOST_OF_ONE:
                held.close()
                return
        held.used = self._clock()
        self._put(path, held, era)
        if changed:
            self._make_room()
        if changed or self._sweeper is None:
            self._watch()

    def _keep(self, path: str, held: _Held, era: object) -> None:
        """Keep what is open of a log whose names are gone: see read_held.

        What its guest wrote last may be in it, and be read nowhere else.
        """
        if held.taken is not None:
            self._give_back(path, held, era)

    def _put(self, path: str, held: _Held, era: object) -> None:
        # It may have been forgotten while it was not there; or another thread
        # may have opened it as well.
        if (era is not self._era
                or self._held.setdefault(path, held) is not held):
            held.close()
        elif era is not self._era:
            self._close(path)

    def _close(self, path: str) -> None:
        held = self._held.pop(path, None)
        if held is not None:
            held.close()

    def _make_room(self) -> None:
        """Close what was not read for longest.

        In a thread of its own, as its file system may hang.
        """
        left = self.descriptors()
        most: list[_Held] = []
        for path in list(self._held):
            if left <= MOST:
                break
            held = self._held.pop(path, None)
            if held is not None:
                left -= held.count
                most.append(held)
        if most:
            threads, _ = _native()
            thread = threads.Thread(target=_close_all, args=(most,),
                                    name='console-logs', daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # There is none to be had, and nobody else closes them.
                _close_all(most)
                return
            thread.join(_PATIENCE)

    def _watch(self) -> None:
        """Have somebody sweep as long as there is something to be swept."""
        if not self._sweeps or (
                self._sweeper is not None
                and time.monotonic() - self._swept < LONGEST_SWEEP):
            return
        me = self._sweeper = object()
        self._swept = time.monotonic()
        threads, clock = _native()

        def watch() -> None:
            while self._sweeper is me:
                while self._held and self._sweeper is me:
                    clock.sleep(SWEEP)
                    self._swept = time.monotonic()
                    self.sweep()
                if self._sweeper is not me:
                    return
                self._sweeper = None
                # What has come since found that somebody sweeps.
                if self._held and self._sweeper is None:
                    self._sweeper = me

        try:
            threads.Thread(
                target=watch, name='console-logs', daemon=True).start()
        except RuntimeError:
            # There is none to be had: the next read tries again.
            self._sweeper = None


def _close_all(logs: list[_Held]) -> None:
    for held in logs:
        held.close()


def _is_deleted(unit: Snapshot, segment: Segment) -> bool:
    """Also where its file system does not have it any more (NFS: ESTALE)."""
    try:
        return unit.files.fstat(segment.fd).st_nlink == 0
    except OSError:
        return True


def _has_deleted(taken: Taken) -> bool:
    return any(_is_deleted(unit, segment) for unit, _ in taken.units
               for segment in unit.segments)


def _native() -> tuple[Any, Any]:
    """Give the system's threading and time: eventlet's needs a hub."""
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is None:
        return threading, time
    return patcher.original('threading'), patcher.original('time')
