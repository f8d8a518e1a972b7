# SPDX-License-Identifier: Apache-2.0
"""A console log is one run of bytes, over its files and its generations.

What is returned is contiguous, always: it is what the guest wrote, with no
byte missing within, none twice and none in another order. Generations are
joined only where that is sure: the newer chain must still have its first file
(:func:`virtlogd_driver.console_log.chain.begin`). Where it is not, a tail ends
at the border, and :func:`read_from` says that bytes may have been missed.
"""

import contextlib
import io
import logging
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from virtlogd_driver import exception
from virtlogd_driver.console_log.chain import (
    Segment,
    Snapshot,
    damage,
    runs,
    snapshot,
)
from virtlogd_driver.console_log.directory import (
    Directory,
    Files,
    open_directory,
)
from virtlogd_driver.console_log.generation import (
    generations,
    history_name,
    live_name,
    parse,
)

LOG = logging.getLogger(__name__)

#: Reads until a shorter answer is given. One fails if a file shrinks in it.
READS = 4

#: Files that a read has open at most: a service may have 1024 open by default,
#: and others read as well. That is 15 generations with as many backups as
#: virtlogd can keep, or 128 with as many as it does keep.
MOST_OPEN = 512

#: Bytes before a position that identify the file, as its inode alone doesn't:
#: a file system hands out the inode of the oldest backup again at once.
MARKED_BYTES = 64
#: Bytes up to which it is cheaper to join the parts of an answer, for all
#: that they are in memory twice.
_SMALL = 256 * 1024
#: The bits of a mark that are the checksum of these bytes.
_CHECKSUM = 0xffffffff


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a log stays valid while its file is rotated.

    ``str()`` gives a token, :meth:`parse` takes it.
    """

    device: int
    inode: int
    #: Bytes from the start of that file.
    offset: int
    #: The file's version, and a checksum of the bytes before the offset.
    mark: int

    def __str__(self) -> str:
        return (f'{self.device:x}-{self.inode:x}-{self.offset:x}-'
                f'{self.mark:x}')

    @classmethod
    def parse(cls, token: str) -> Self:
        """Read a token.

        :raises InvalidPosition: it is none
        """
        if re.fullmatch(r'[0-9a-f]{1,16}(-[0-9a-f]{1,16}){3}', token) is None:
            raise exception.InvalidPosition(
                f'{token!r} is no position in a console log. Take one that a '
                f'read has returned, or read from the beginning.')
        return cls(*[int(part, 16) for part in token.split('-')])


#: Where the generation begins that the guest writes: what it has written since
#: it came to this host. No file has this inode.
LIVE_GENERATION = Position(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class LogRead:
    """The end of a log is read."""

    data: bytes
    #: Where the data ends; None if there is no file.
    position: Position | None
    #: False: there may be older bytes that belong to it within the limit, but
    #: it is not sure that they are contiguous.
    exact: bool
    #: Why the file system does not give the bytes before these, which belong
    #: to them; None: that is not so.
    failure: str | None = None


#: A part of some data: device, inode and version of its file, the offset there
#: where it ends, and its size in bytes.
Part = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class LogSince:
    """What a log has from a position on is read."""

    data: bytes
    #: Where the data ends; None if that is not known yet.
    position: Position | None
    #: Bytes between the position asked for and the data that were rotated
    #: away unseen: 0, or None where how many (if any) can't be known.
    missed: int | None
    #: There are at least as many bytes after the data already.
    behind: int
    #: The files that the data is of, the oldest first.
    parts: tuple[Part, ...] = field(default=(), compare=False)


#: A file that is written no more: device, inode, size in bytes, and when it
#: was written last (nanoseconds), as an inode is soon used again.
Passed = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The files of a log that are to be opened are named, newest first."""

    #: Bytes that are enough; None: all there are.
    limit: int | None = None
    #: Device and inode of the oldest file that is wanted.
    until: tuple[int, int] | None = None
    #: virtlogd's, where known.
    max_backups: int | None = None
    #: Not beyond a border where bytes may be missing.
    joined: bool = False


class Taken:
    """A log is open: chains and histories, the newest first."""

    __slots__ = ('absent', 'cut', 'ended', 'path', 'runs', 'units')

    def __init__(
            self, path: str, units: list[tuple[Snapshot, bool]], *,
            ended: bool, cut: bool, absent: tuple[str, ...],
            runs: int = 1) -> None:
        #: Of the live file.
        self.path = path
        #: With each, whether it surely goes on from the next one.
        self.units = units
        #: How many of them are of the chain that the guest writes.
        self.runs = runs
        #: There is none that is older, or none that could be read.
        self.ended = ended
        #: There is older output, which was not opened: it is not sure that
        #: nothing is missing before what was, or it cannot be read.
        self.cut = cut
        #: Files that would have been opened instead of, or before, older ones,
        #: had they been there.
        self.absent = absent

    @property
    def live(self) -> Snapshot:
        """Give the newest run of the chain that the guest writes."""
        return self.units[0][0]

    def keep(self, held: Mapping[tuple[int, int], Segment],
             files: Files) -> None:
        """Make it independent of the directory that it was opened in.

        :param held: files that were open already, which are used instead
        :param files: the system calls on its files from now on
        """
        for unit, _ in self.units:
            unit.files = files
            for index, segment in enumerate(unit.segments):
                known = held.get(segment.key)
                if known is not None:
                    files.close(segment.fd)
                    known.look_at(segment.size, segment.mtime_ns)
                    unit.segments[index] = known

    def close(self) -> None:
        for unit, _ in self.units:
            unit.close()


#: An open file, and the offset and size in bytes of a part of it.
_Piece = tuple[Segment, int, int]


class _Replaced(Exception):
    """A history was put in place, and what it is made of goes away."""


def read_tail(
        directory: Directory, name: str, limit: int, *,
        max_backups: int | None = None) -> LogRead:
    """Read the newest bytes of a log.

    :param name: name of the live file
    :param limit: most bytes to return, and to hold in memory
    :param max_backups: virtlogd's, where known: see chain.snapshot
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is no regular file
    :raises LogRefused: a file that is needed may not be read
    :raises LogError: anything else
    """
    wanted = Wanted(limit, max_backups=max_backups, joined=True)
    for turn in range(READS + 1):
        taken = take(directory, name, wanted)
        try:
            answer = tail(taken, limit, shrinking=turn == READS)
        finally:
            taken.close()
        if answer is not None:
            return answer
    raise AssertionError('one that shrinks is answered')


def read_from(
        directory: Directory, name: str, position: Position | None,
        limit: int, *, max_backups: int | None = None,
        passed: Collection[Passed] | None = None) -> LogSince:
    """Read the bytes of a log that follow a position.

    Where the position is not there any more, the data begins with the oldest
    byte of the live generation; where its file was truncated, with what came
    after it, in a copy (logrotate's copytruncate) and in the file. One read
    doesn't go over the border between two generations; the next one does.

    :param name: name of the live file
    :param position: where the last read ended; None: the very beginning;
        LIVE_GENERATION: the oldest byte of that
    :param limit: most bytes to return, and to hold in memory
    :param max_backups: virtlogd's, where known: see chain.snapshot
    :param passed: files of the live generation that a caller who reads all
        along has read to their end: they are left out, wherever renames have
        put them. None: it does not
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is no regular file
    :raises LogRefused: a file that is needed may not be read
    :raises LogError: anything else
    """
    until = None if position is None else (position.device, position.inode)
    for _ in range(READS):
        taken = take(directory, name, Wanted(None, until, max_backups))
        try:
            answer = since(taken, position, limit, passed)
            # Its file is there, and it is not in it: another has its inode.
            if not taken.ended:
                until = None
        finally:
            taken.close()
        if answer is not None:
            return answer
    return unmoved(directory.path, name, position)


def unmoved(
        directory: str, name: str, position: Position | None) -> LogSince:
    """Give the answer where the files move too fast to be read on."""
    LOG.debug('%s/%s can be read no further for now', directory, name)
    return LogSince(b'', position, 0, 0)


def open_log(path: str, wanted: Wanted,
             held: Mapping[tuple[int, int], Segment]) -> Taken:
    """Open what is wanted of a log as this process may, for longer.

    :param path: path of the live file
    :param held: files that are open already, and are used instead
    :returns: the caller closes it
    :raises LogError: see :func:`take`
    """
    directory_path, _, name = path.rpartition('/')
    with open_directory(directory_path or '/') as directory:
        taken = take(directory, name, wanted)
    taken.keep(held, Files())
    return taken


def take(directory: Directory, name: str, wanted: Wanted) -> Taken:
    """Open the files of a log that are wanted.

    :param name: name of the live file
    :returns: the caller closes it
    :raises LogNotRegular: the newest file is no regular file
    :raises LogRefused: a file that is needed may not be read
    :raises LogError: anything else
    """
    try:
        for _ in range(READS):
            with contextlib.suppress(_Replaced):
                return _take(directory, name, wanted)
        return _take(directory, name, wanted, alone=True)
    except OSError as error:
        raise failed(f'{directory.path}/{name}', error) from error


def _take(directory: Directory, name: str, wanted: Wanted, *,
          alone: bool = False) -> Taken:
    """
    :param alone: the live chain only
    :raises _Replaced: a history was put in place meanwhile
    """
    taken = Taken(f'{directory.path}/{name}', [], ended=not alone, cut=alone,
                  absent=())
    older = _Older(directory, name)
    joined = True
    total = count = 0
    try:
        for unit, joins, live in _units(directory, name, wanted, older):
            if alone and not live:
                unit.close()
                break
            if wanted.joined and not joined:
                taken.cut = taken.cut or bool(unit.segments)
                unit.close()
                if taken.cut:
                    taken.ended = False
                    break
                continue
            taken.units.append((unit, joins))
            if wanted.joined and not unit.exact:
                taken.cut, taken.ended = True, False
            taken.runs += live and len(taken.units) > 1
            total += unit.size
            count += len(unit.segments)
            joined = joins
            if (wanted.limit is not None and total >= wanted.limit) or any(
                    segment.key == wanted.until for segment in unit.segments):
                taken.ended = False
                break
            if count > MOST_OPEN:
                too_many = (
                    f'{taken.path} has more than {MOST_OPEN} older files '
                    f'beside it, which are too many to be read at once. Move '
                    f'those away that are not of the guest, or its oldest.')
                if not wanted.joined:
                    raise exception.LogError(too_many)
                unit.failure = too_many
                taken.cut, taken.ended = True, False
                break
        if not alone:
            older.check()
        taken.cut = taken.cut or older.unreadable
        taken.absent = tuple(older.absent)
    except BaseException:
        taken.close()
        raise
    return taken


def position_at(directory: Directory, name: str, offset: int) -> Position:
    """Give a place in a file that nobody writes any more, such as a history.

    :param offset: bytes from its start
    :raises FileNotFoundError: there is no such file
    :raises LogNotRegular: it is no regular file
    :raises LogRefused: it may not be read
    """
    fd = directory.open(name)
    try:
        status = directory.fstat(fd)
        directory.check(status, name)
        return _position(directory, Segment(
            fd, status.st_dev, status.st_ino, status.st_size,
            status.st_mtime_ns, first=False), offset)
    finally:
        directory.close(fd)


def tail(taken: Taken, limit: int, *,
         shrinking: bool = False) -> LogRead | None:
    """Give the newest bytes of an open log.

    :param shrinking: read the newest file alone and take what it has
    :returns: None: a file has become shorter than it was when it was opened
    :raises LogNotFound: the log has no file
    :raises LogDamaged: the file system does not give any
    :raises LogError: the newest file cannot be read
    """
    pieces: list[_Piece] = []
    newest: Segment | None = None
    exact = joined = True
    failure: str | None = None
    left = limit
    for unit, joins in taken.units:
        if not joined:
            if not unit.segments:
                continue
            exact = False
            break
        for segment in unit.segments:
            size = segment.size
            # Not the start of an empty file, where nothing tells it from a
            # later one with its inode.
            if newest is None or (newest.size == 0 and size > 0):
                newest = segment
            size = min(size, left)
            if size > 0:
                pieces.append((segment, segment.size - size, size))
                left -= size
            if left == 0 or shrinking:
                break
        if left == 0 or (shrinking and newest is not None):
            break
        exact = exact and unit.exact
        joined = joins
        failure = unit.failure
    else:
        exact = exact and not taken.cut
    if newest is None:
        raise (not_found(taken.path) if failure is None
               else exception.LogDamaged(failure))
    files = taken.live.files
    pieces.reverse()
    try:
        data, lost = _read_last(files, pieces)
        if lost:
            failure = _lost(taken.path, *lost[-1])
        end = newest.size
        if len(data) + sum(piece[2] for piece, _ in lost) < limit - left:
            if not shrinking:
                return None
            end = pieces[0][1] + len(data)
        return LogRead(data, _position(files, newest, end, data),
                       exact and not shrinking and not lost, failure)
    except OSError as error:
        raise failed(taken.path, error) from error


def since(taken: Taken, position: Position | None, limit: int,
          passed: Collection[Passed] | None = None) -> LogSince | None:
    """Give what follows a position in an open log: see :func:`read_from`.

    :param taken: opened without a limit, as far as the file of the position
    :returns: None: its files have changed too fast, or the position is not in
        it while not all of the log is open
    :raises LogNotFound: the log has no file
    :raises LogError: a file cannot be read
    """
    try:
        return _since(taken, position, limit, passed)
    except OSError as error:
        raise failed(taken.path, error) from error


def _since(taken: Taken, position: Position | None, limit: int,
           passed: Collection[Passed] | None) -> LogSince | None:
    files = taken.live.files
    newer: list[Segment] = []
    joined = True
    behind = 0
    for unit, joins in taken.units:
        if not unit.settled:
            return None
        index = _find(files, unit, position)
        if position is not None and index is not None:
            pieces = _first([*_without(unit.segments[:index], passed),
                             unit.segments[index]], position.offset)
            if pieces or not newer:
                return _answer(files, pieces, position, limit, 0, behind)
            pieces = _first(newer, 0)
            return _answer(
                files, pieces, position, limit,
                0 if joined or not pieces else None, behind - _size(newer))
        unread = _without(unit.segments, passed)
        joined = joins and (joined or _size(unread) > 0)
        # Not an empty one before it: the position would stay for ever.
        if _size(unread) > 0 or not newer:
            newer = unread
            behind += _size(unread)
    if not taken.ended:
        return None
    if not taken.live.segments and (position is not None or not newer):
        raise not_found(taken.path)
    if position is None:
        if not newer:   # all were passed
            return LogSince(b'', None, 0, 0)
        return _answer(
            files, _first(newer, 0), _position(files, newer[-1], 0), limit, 0,
            behind - _size(newer))
    if position == LIVE_GENERATION:
        return _live_generation(taken, limit)
    unread = _without([
        segment for unit, _ in taken.units[:taken.runs]
        for segment in unit.segments], passed)
    resumed = _resume(files, unread, position, passed is not None)
    if resumed is not None:
        return _answer(files, *resumed, limit, None)
    if passed:
        oldest = unread[-1] if unread else taken.live.segments[0]
        return _answer(
            files, _first(unread, 0), _position(
                files, oldest, 0 if unread else oldest.size), limit, None)
    newer = taken.live.segments
    return _answer(
        files, _first(newer, 0), _position(files, newer[-1], 0), limit, None)


def _live_generation(taken: Taken, limit: int) -> LogSince | None:
    """Give the first bytes of the generation that the guest writes."""
    *newer, first = [unit for unit, _ in taken.units[:taken.runs]]
    # A lone file that was not begun by this driver has lost nothing.
    whole = first.whole or (not newer and first.complete and first.exact
                            and len(first.segments) == 1)
    return _answer(
        first.files, _first(first.segments, 0),
        _position(first.files, first.segments[-1], 0), limit,
        0 if whole else None, sum(unit.size for unit in newer))


class _Older:
    """The generations before a log's own are found by their names."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        file = parse(name)
        #: None: the log's name says nothing of generations.
        self.live = (
            None if file is None or file.history or file.backup is not None
            else file)
        self._found: dict[int, bool] | None = None
        #: See Taken.
        self.absent: list[str] = []
        #: A history or a chain is there, and is no regular file or damaged.
        self.unreadable = False

    def list(self) -> dict[int, bool]:
        """List the generations, newest first: whether each has a history."""
        self._found = self._list()
        return self._found

    def _list(self) -> dict[int, bool]:
        assert self.live is not None
        return {
            number: history for number, history in generations(
                self._directory.names(), self.live.port).items()
            if number <= self.live.generation}

    def check(self) -> None:
        """Check that no history has come since, in place of what was opened.

        :raises _Replaced: one has
        """
        if self._found is not None and _histories(
                self._list()) != _histories(self._found):
            raise _Replaced


def _histories(found: dict[int, bool]) -> list[int]:
    return [number for number, history in found.items() if history]


def _units(
        directory: Directory, name: str, wanted: Wanted, older: _Older
) -> Iterator[tuple[Snapshot, bool, bool]]:
    """Give the live chain, then older histories and chains: the newest first.

    With each, whether it surely goes on from the next one, and whether it is
    of the live chain. One that has no file has lost nothing where its history
    is there: that was put in place for a guest which then had no log (on a
    host that cannot have both consoles), and virtlogd leaves files of whatever
    it has written. Where there is neither of them, they are lost, with what
    was in them.

    The caller closes them. A log that isn't named as a guest's own has only
    the one chain. Nothing joins a history of generation 0 (generation.py).
    Which generations there are is listed once: what it costs does not depend
    on their numbers. What is no regular file, or is damaged, ends the log.
    """
    live = older.live
    units = _chain(directory, name, wanted, wanted.max_backups)
    last = units[-1]
    whole = last.whole
    for unit in units:
        yield unit, live is not None and unit is last and (
            not unit.segments or whole), True
    if live is None or (whole and live.generation == 0):
        return
    number, joins = live.generation, whole or not last.segments
    try:
        found = older.list()
        while True:
            history = history_name(live.port, number)
            if found.get(number):
                for unit in _chain(directory, history, wanted, 0, live=False):
                    yield unit, False, False
                return
            older.absent.append(history)
            before = next((one for one in found if one < number), None)
            if number > 0 and before != number - 1:
                # What a guest wrote on a host that it came back from.
                older.absent += (live_name(live.port, number - 1),
                                 history_name(live.port, number - 1))
            if before is None:
                return
            if before < number - 1:
                last, joins = Snapshot(directory, []), False
                yield last, joins, False
            number = before
            # The chain is removed once the history that replaces it is there.
            units = _chain(directory, live_name(live.port, number), wanted,
                           wanted.max_backups, live=False)
            last = units[-1]
            if not last.segments:
                older.absent.append(live_name(live.port, number))
            joins = number > 0 and (
                last.whole or (not last.segments and found[number]))
            for unit in units:
                yield unit, joins and unit is last, False
    except (exception.LogNotRegular, exception.LogDamaged) as error:
        LOG.debug('What is older is not read: %s', error)
        older.unreadable = True
        if joins:
            last.failure = damage(error)


def _chain(directory: Directory, name: str, wanted: Wanted,
           max_backups: int | None = None, *,
           live: bool = True) -> list[Snapshot]:
    if wanted.joined:
        return [snapshot(
            directory, name, limit=wanted.limit, until=wanted.until,
            max_backups=max_backups, live=live)]
    return runs(directory, name, until=wanted.until, max_backups=max_backups,
                live=live)


def _find(
        files: Files, unit: Snapshot, position: Position | None
) -> int | None:
    """Tell which file of a snapshot a position is in."""
    if position is None:
        return None
    for index, segment in enumerate(unit.segments):
        if segment.key == (position.device, position.inode):
            if (position.offset <= segment.size
                    and position == _position(
                        files, segment, position.offset)):
                return index
            return None
    return None


def _without(segments: list[Segment],
             passed: Collection[Passed] | None) -> list[Segment]:
    if not passed:
        return segments
    return [segment for segment in segments if (
        segment.device, segment.inode, segment.size, segment.mtime_ns)
        not in passed]


def _resume(
        files: Files, segments: list[Segment], position: Position,
        replaced: bool) -> tuple[list[_Piece], Position] | None:
    """Give what follows a position whose file was truncated, or replaced.

    logrotate's copytruncate copies a file, and truncates it: the copy is the
    next older one then, and has the same bytes before the position. Without a
    copy nothing before the truncation is read again. None: the file is gone,
    and no other goes on from the position.

    :param replaced: another file with these bytes is taken for a copy, too,
        such as an editor puts in place of the first
    """
    emptied = next((
        index for index, segment in enumerate(segments)
        if segment.key == (position.device, position.inode)
        and _version(files, segment) == position.mark >> 32), None)
    offset = position.offset
    if emptied is None:
        copies = list(range(len(segments))) if (
            replaced and offset >= MARKED_BYTES) else []
    else:
        copies = [index for index in range(emptied + 1, len(segments))
                  if segments[index].size][:1]
    for index in copies:
        if offset <= segments[index].size:
            found = _position(files, segments[index], offset)
            if found.mark & _CHECKSUM == position.mark & _CHECKSUM:
                return _first(segments[:index + 1], offset), found
    if emptied is None:
        return None
    return (_first(segments[:emptied + 1], 0),
            _position(files, segments[emptied], 0))


def _version(files: Files, segment: Segment) -> int:
    if segment.version is None:
        segment.version = files.version(segment.fd)
    return segment.version


def _position(files: Files, segment: Segment, offset: int,
              data: bytes = b'') -> Position:
    """
    :param data: what ends at the offset, as far as it was read
    """
    before = min(offset, MARKED_BYTES)
    marked = (data[-before:] if len(data) >= before > 0
              else files.pread(segment.fd, before, offset - before))
    return Position(segment.device, segment.inode, offset,
                    _version(files, segment) << 32 | zlib.crc32(marked))


def _size(segments: list[Segment]) -> int:
    return sum(segment.size for segment in segments)


def _first(segments: list[Segment], offset: int) -> list[_Piece]:
    """Give all bytes of such files from an offset in the oldest on."""
    pieces = []
    for segment in reversed(segments):
        if segment.size > offset:
            pieces.append((segment, offset, segment.size - offset))
        offset = 0
    return pieces


def _answer(
        files: Files, pieces: list[_Piece], start: Position,
        limit: int, missed: int | None, behind: int = 0
) -> LogSince | None:
    """Give the first bytes of the pieces. None: a file has become shorter."""
    total = sum(size for _, _, size in pieces)
    wanted = []
    for segment, offset, size in pieces:
        size = min(size, limit)
        if size > 0:
            wanted.append((segment, offset, size))
            limit -= size
    data = _read(files, wanted)
    if len(data) < sum(size for _, _, size in wanted):
        return None
    position = start
    if wanted:
        segment, offset, size = wanted[-1]
        position = _position(files, segment, offset + size, data[-size:])
    return LogSince(
        data, position, missed, behind + total - len(data),
        tuple((*segment.key, _version(files, segment), offset + size, size)
              for segment, offset, size in wanted))


def _read_last(
        files: Files, pieces: list[_Piece]
) -> tuple[bytes, list[tuple[_Piece, OSError]]]:
    """Read pieces, less what is before one that cannot be read.

    :returns: the bytes, and what was left out, the last of which cannot be
        read
    :raises OSError: the last piece cannot be read
    """
    lost: list[tuple[_Piece, OSError]] = []
    while True:
        try:
            return _read(files, pieces), lost
        except OSError as error:
            # The first that fails is the oldest: what is newer may do.
            if len(pieces) == 1:
                raise
            LOG.debug('What is older is not read: %s', error.strerror)
            piece, *pieces = pieces
            lost.append((piece, error))


def _read(files: Files, pieces: list[_Piece]) -> bytes:
    """Read pieces into one object, once; shorter if a file has become so."""
    if len(pieces) == 1:
        [(segment, offset, size)] = pieces
        return files.pread(segment.fd, size, offset)
    wanted = sum(size for _, _, size in pieces)
    if wanted <= _SMALL:
        return b''.join([files.pread(segment.fd, size, offset)
                         for segment, offset, size in pieces])
    buffer = io.BytesIO(bytes(wanted))
    filled = 0
    with buffer.getbuffer() as view:
        for segment, offset, size in pieces:
            end = filled + size
            while filled < end:
                got = files.preadv(
                    segment.fd, view[filled:end], offset + size - end + filled)
                if got == 0:
                    break
                filled += got
            if filled < end:
                break
    buffer.truncate(filled)
    return buffer.getvalue()


def _lost(path: str, piece: _Piece, error: OSError) -> str:
    return (f'A rotated file of {path} (inode {piece[0].inode}) cannot be '
            f'read: {error.strerror}. See to the file system that it is on.')


def not_found(path: str) -> exception.LogNotFound:
    """Give the error for a log that has no file at all."""
    return exception.LogNotFound(
        f'There is no console log {path}. It is written from the first start '
        f'of a guest with a <log> on.')


def failed(path: str, error: OSError) -> exception.LogError:
    """Give the error for a log that the file system does not give."""
    return exception.LogError(
        f'{path} cannot be read: {error.strerror}. See to the file system '
        f'that it is on.')
