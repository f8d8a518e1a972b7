# SPDX-License-Identifier: Apache-2.0
"""A console log as one run of bytes, over its files and its generations.

What is returned is contiguous, always: it is what the guest wrote, with no
byte missing within, none twice and none in another order. Generations are
joined only where that is sure: the newer chain must still have its first file
(:func:`virtlogd_driver.console_log.chain.begin`). Where it is not, a tail ends
at the border, and :func:`read_from` says that bytes may have been missed.
"""

import io
import logging
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

from virtlogd_driver import exception
from virtlogd_driver.console_log.chain import Segment, Snapshot, snapshot
from virtlogd_driver.console_log.directory import Directory, is_regular
from virtlogd_driver.console_log.generation import (
    history_name,
    live_name,
    parse,
)

LOG = logging.getLogger(__name__)

#: Reads until a shorter answer is given. One fails if a file shrinks in it.
READS = 4

#: Bytes before a position that identify the file, as its inode alone doesn't:
#: a file system hands out the inode of the oldest backup again at once.
MARKED_BYTES = 64
#: The bits of a mark that are the checksum of these bytes.
_CHECKSUM = 0xffffffff


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a log that stays valid while its file is rotated.

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
        """:raises InvalidPosition: it is no token"""
        if re.fullmatch(r'[0-9a-f]{1,16}(-[0-9a-f]{1,16}){3}', token) is None:
            raise exception.InvalidPosition(
                f'{token!r} is no position in a console log. Take one that a '
                f'read has returned, or read from the beginning.')
        return cls(*[int(part, 16) for part in token.split('-')])


@dataclass(frozen=True, slots=True)
class LogRead:
    """The end of a log."""

    data: bytes
    #: Where the data ends; None if there is no file.
    position: Position | None
    #: False: there may be older bytes that belong to it within the limit, but
    #: it is not sure that they are contiguous.
    exact: bool
    #: There are at least as many bytes before the data. 0 says nothing.
    older: int


@dataclass(frozen=True, slots=True)
class LogSince:
    """What a log has from a position on."""

    data: bytes
    #: Where the data ends; None if that is not known yet.
    position: Position | None
    #: Bytes between the position asked for and the data that were rotated
    #: away unseen: 0, or None where how many (if any) can't be known.
    missed: int | None
    #: There are at least as many bytes after the data already.
    behind: int


#: A file that is written no more: device, inode, size in bytes, and when it
#: was written last (nanoseconds), as an inode is soon used again.
Passed = tuple[int, int, int, int]

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
    :param max_backups: virtlogd's, where known: older leftovers are ignored
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is no regular file
    :raises LogRefused: a file that is needed may not be read
    """
    try:
        answer = _of_live_file(directory, name, limit)
        if answer is not None:
            return answer
        for _ in range(READS):
            answer = _tail(directory, name, limit, max_backups)
            if answer is not None:
                return answer
        LOG.debug('%s/%s shrinks while it is read', directory.path, name)
        answer = _tail(directory, name, limit, max_backups, shrinking=True)
        assert answer is not None
        return answer
    except OSError as error:
        raise _failed(directory, name, error) from error


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
    :param position: where the last read ended; None: the very beginning
    :param limit: most bytes to return, and to hold in memory
    :param max_backups: virtlogd's, where known: older leftovers are ignored
    :param passed: files of the live generation that a caller who reads all
        along has read to their end: they are left out, wherever renames have
        put them. None: it does not
    :raises LogNotFound: the log has no file
    :raises LogNotRegular: the newest file is no regular file
    :raises LogRefused: a file that is needed may not be read
    """
    try:
        for _ in range(READS):
            answer = _since(
                directory, name, position, limit, max_backups, passed)
            if answer is not None:
                return answer
    except OSError as error:
        raise _failed(directory, name, error) from error
    LOG.debug('%s/%s can be read no further for now', directory.path, name)
    return LogSince(b'', position, 0, 0)


def position_at(directory: Directory, name: str, offset: int) -> Position:
    """A place in a file that nobody writes any more, such as a history.

    :param offset: bytes from its start
    :raises FileNotFoundError: there is no such file
    :raises LogRefused: it may not be read
    """
    fd = directory.open(name)
    try:
        return _position(
            directory, Segment(fd, directory.fstat(fd)), offset)
    finally:
        directory.close(fd)


def _of_live_file(
        directory: Directory, name: str, limit: int) -> LogRead | None:
    """The answer where one file is enough, as it mostly is; None elsewhere.

    What comes of the renames doesn't matter then.
    """
    try:
        fd = directory.open(name)
    except FileNotFoundError:
        return None
    try:
        status = directory.fstat(fd)
        if not is_regular(status):
            raise directory.not_regular(name)
        size = status.st_size
        if size < limit or limit < MARKED_BYTES:
            return None
        data = directory.pread(fd, limit, size - limit)
        if len(data) < limit:
            return None
        position = Position(
            status.st_dev, status.st_ino, size,
            directory.version(fd) << 32 | zlib.crc32(data[-MARKED_BYTES:]))
        return LogRead(data, position, True, size - limit)
    finally:
        directory.close(fd)


def _tail(
        directory: Directory, name: str, limit: int,
        max_backups: int | None, *, shrinking: bool = False
) -> LogRead | None:
    """None: a file has become shorter than it was when it was opened, or a
    history was put in place.

    :param shrinking: read the newest file alone and take what it has
    """
    units: list[Snapshot] = []
    exact = joined = True
    total = 0
    try:
        for unit, joins in _units(
                directory, name, limit=limit, max_backups=max_backups):
            if not joined:
                older = bool(unit.segments)
                unit.close()
                if not older:
                    continue
                exact = False
                break
            units.append(unit)
            total += unit.size
            exact = exact and unit.exact
            joined = joins
            if shrinking or total >= limit:
                break
        segments = [segment for unit in units for segment in unit.segments]
        if not segments:
            raise directory.not_found(name)
        if shrinking:
            segments = segments[:1]
            exact = False
        pieces = _last(segments, limit)
        data = _read(directory, pieces)
        if len(data) < sum(size for _, _, size in pieces) and not shrinking:
            return None
        # Not the start of an empty file, where nothing tells it from a later
        # one with its inode.
        newest = next(filter(_has_bytes, segments), segments[0])
        end = newest.size
        if shrinking and pieces:
            end = pieces[0][1] + len(data)
        return LogRead(
            data, _position(directory, newest, end), exact,
            total - len(data))
    except _Replaced:
        return None
    finally:
        for unit in units:
            unit.close()


def _since(
        directory: Directory, name: str, position: Position | None,
        limit: int, max_backups: int | None,
        passed: Collection[Passed] | None) -> LogSince | None:
    """None: the files changed too fast."""
    until = None if position is None else (position.device, position.inode)
    newer: Snapshot | None = None
    joined = True
    behind = 0
    opened: list[Snapshot] = []
    try:
        for unit, joins in _units(
                directory, name, until=until, max_backups=max_backups):
            opened.append(unit)
            if not unit.settled:
                return None
            index = _find(directory, unit, position)
            if position is not None and index is not None:
                pieces = _first(
                    [*_without(unit.segments[:index], passed),
                     unit.segments[index]], position.offset)
                if pieces or newer is None:
                    return _answer(
                        directory, pieces, position, limit, 0, behind)
                return _answer(
                    directory, _first(newer.segments, 0), position, limit,
                    0 if joined else None, behind - newer.size)
            joined = joins and (joined or unit.size > 0)
            # Not an empty one before it: the position would stay for ever.
            if unit.size > 0 or (unit.segments and newer is None):
                if newer is not None:
                    opened.remove(newer)
                    newer.close()
                newer = unit
                behind += unit.size
        if position is not None:
            newer = snapshot(directory, name, max_backups=max_backups)
            opened.append(newer)
            behind = newer.size
            if not newer.settled:
                return None
        if newer is None or not newer.segments:
            raise directory.not_found(name)
        if position is not None:
            unread = _without(newer.segments, passed)
            resumed = _resume(
                directory, unread, position, passed is not None)
            if resumed is not None:
                return _answer(directory, *resumed, limit, None)
            if passed:
                oldest = unread[-1] if unread else newer.segments[0]
                return _answer(
                    directory, _first(unread, 0), _position(
                        directory, oldest, 0 if unread else oldest.size),
                    limit, None)
        return _answer(
            directory, _first(newer.segments, 0),
            _position(directory, newer.segments[-1], 0), limit,
            0 if position is None else None, behind - newer.size)
    except _Replaced:
        return None
    finally:
        for unit in opened:
            unit.close()


def _units(
        directory: Directory, name: str, *, max_backups: int | None,
        limit: int | None = None, until: tuple[int, int] | None = None
) -> Iterator[tuple[Snapshot, bool]]:
    """The live chain, then older histories and chains: the newest first.

    With each, whether it surely goes on from the next one. One that has no
    file has lost nothing where its history is there: that was put in place
    for a guest which then had no log (on a host that cannot have both
    consoles), and virtlogd leaves files of whatever it has written. Where
    there is neither of them, they are lost, with what was in them.

    The caller closes them. A log that isn't named as a guest's own has only
    the one chain. Nothing joins a history of generation 0 (generation.py).
    """
    unit = snapshot(
        directory, name, limit=limit, until=until, max_backups=max_backups)
    live = parse(name)
    if live is None or live.history or live.backup is not None:
        yield unit, False
        return
    whole = unit.whole
    yield unit, not unit.segments or (whole and live.generation > 0)
    if whole and live.generation == 0:
        return
    absent: list[str] = []
    for generation in range(live.generation, -1, -1):
        history = history_name(live.port, generation)
        if not directory.exists(history):
            if generation == 0:
                return
            older = snapshot(
                directory, live_name(live.port, generation - 1),
                limit=limit, until=until, live=False)
            # The chain is removed once the history that replaces it is there.
            if not directory.exists(history):
                joins = generation > 1 and (older.whole or (
                    not older.segments and directory.exists(
                        history_name(live.port, generation - 1))))
                _check_absent(directory, absent, older)
                absent.append(history)
                yield older, joins
                continue
            older.close()
        older = snapshot(
            directory, history, limit=limit, until=until, max_backups=0,
            live=False)
        _check_absent(directory, absent, older)
        yield older, False
        return


def _check_absent(directory: Directory, names: list[str],
                  unit: Snapshot) -> None:
    """No history has come that replaces the unit, and what is newer.

    :raises _Replaced: the unit is closed
    """
    if any(directory.exists(name) for name in names):
        unit.close()
        raise _Replaced


def _find(
        directory: Directory, unit: Snapshot, position: Position | None
) -> int | None:
    """Which file of a snapshot a position is in."""
    if position is None:
        return None
    for index, segment in enumerate(unit.segments):
        if ((segment.device, segment.inode)
                == (position.device, position.inode)):
            if (position.offset <= segment.size
                    and position == _position(
                        directory, segment, position.offset)):
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
        directory: Directory, segments: list[Segment], position: Position,
        replaced: bool) -> tuple[list[_Piece], Position] | None:
    """What follows a position whose file was truncated, or replaced.

    logrotate's copytruncate copies a file, and truncates it: the copy is the
    next older one then, and has the same bytes before the position. Without a
    copy nothing before the truncation is read again. None: the file is gone,
    and no other goes on from the position.

    :param replaced: another file with these bytes is taken for a copy, too,
        such as an editor puts in place of the first
    """
    emptied = next((
        index for index, segment in enumerate(segments)
        if (segment.device, segment.inode)
        == (position.device, position.inode)
        and directory.version(segment.fd) == position.mark >> 32), None)
    offset = position.offset
    if emptied is None:
        copies = list(range(len(segments))) if (
            replaced and offset >= MARKED_BYTES) else []
    else:
        copies = [index for index in range(emptied + 1, len(segments))
                  if segments[index].size][:1]
    for index in copies:
        if 0 < offset <= segments[index].size:
            found = _position(directory, segments[index], offset)
            if found.mark & _CHECKSUM == position.mark & _CHECKSUM:
                return _first(segments[:index + 1], offset), found
    if emptied is None:
        return None
    return (_first(segments[:emptied + 1], 0),
            _position(directory, segments[emptied], 0))


def _position(
        directory: Directory, segment: Segment, offset: int) -> Position:
    before = min(offset, MARKED_BYTES)
    return Position(
        segment.device, segment.inode, offset,
        directory.version(segment.fd) << 32 | zlib.crc32(
            directory.pread(segment.fd, before, offset - before)))


def _has_bytes(segment: Segment) -> bool:
    return segment.size > 0


def _last(segments: list[Segment], limit: int) -> list[_Piece]:
    """The last bytes of files that are given from the newest to the oldest."""
    pieces = []
    for segment in segments:
        size = min(segment.size, limit)
        if size > 0:
            pieces.append((segment, segment.size - size, size))
            limit -= size
    pieces.reverse()
    return pieces


def _first(segments: list[Segment], offset: int) -> list[_Piece]:
    """All bytes of such files, less those before an offset in the oldest."""
    pieces = []
    for segment in reversed(segments):
        if segment.size > offset:
            pieces.append((segment, offset, segment.size - offset))
        offset = 0
    return pieces


def _answer(
        directory: Directory, pieces: list[_Piece], start: Position,
        limit: int, missed: int | None, behind: int = 0
) -> LogSince | None:
    """The first bytes of the pieces. None: a file has become shorter."""
    total = sum(size for _, _, size in pieces)
    wanted = []
    for segment, offset, size in pieces:
        size = min(size, limit)
        if size > 0:
            wanted.append((segment, offset, size))
            limit -= size
    data = _read(directory, wanted)
    if len(data) < sum(size for _, _, size in wanted):
        return None
    position = start
    if wanted:
        segment, offset, size = wanted[-1]
        position = _position(directory, segment, offset + size)
    return LogSince(data, position, missed, behind + total - len(data))


def _read(directory: Directory, pieces: list[_Piece]) -> bytes:
    """Read pieces into one object, once; shorter where a file has ended."""
    if len(pieces) == 1:
        segment, offset, size = pieces[0]
        return directory.pread(segment.fd, size, offset)
    buffer = io.BytesIO(bytes(sum(size for _, _, size in pieces)))
    filled = 0
    with buffer.getbuffer() as view:
        for segment, offset, size in pieces:
            end = filled + size
            while filled < end:
                got = directory.preadv(
                    segment.fd, view[filled:end], offset + size - end + filled)
                if got == 0:
                    break
                filled += got
            if filled < end:
                break
    buffer.truncate(filled)
    return buffer.getvalue()


def _failed(
        directory: Directory, name: str,
        error: OSError) -> exception.LogError:
    return exception.LogError(
        f'{directory.path}/{name} cannot be read: {error.strerror}. See to '
        f'the file system that it is on.')
