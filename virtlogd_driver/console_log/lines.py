# SPDX-License-Identifier: Apache-2.0
"""The last lines or bytes of a log are read in bounded memory.

What is short is read at once, from its end. For more the log is gone through
twice: to find where that much begins, and to give it piece by piece. A line
that is longer than LONGEST counts as several.
"""

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from virtlogd_driver.console_log.log import LogRead, LogSince, Position

#: Bytes of a line.
LONGEST = 1 << 16
#: Most bytes that are read at once.
AT_ONCE = 1 << 22
#: Bytes that are read first, and of each piece of a longer read.
_FIRST = 1 << 16
_PIECE = 1 << 20

#: Give the end of a log, of so many bytes (log.read_tail), and what follows a
#: position (log.read_from).
ReadTail = Callable[[int], LogRead]
ReadFrom = Callable[[Position | None, int], LogSince]


@dataclass(slots=True)
class End:
    """An end is the last bytes of a log, in pieces."""

    #: Its bytes; None where some may be missing, as they were rotated away.
    pieces: Iterator[bytes | None]
    #: Where the pieces that were taken end; None: the log has no file.
    position: Position | None = None


def last_lines(tail: ReadTail, since: ReadFrom, count: int) -> End:
    """Give the last lines of a log; the very last may be unfinished.

    :raises LogError: it cannot be read, also while pieces are taken
    """
    limit = _FIRST if count else 0
    while limit <= AT_ONCE:
        read = tail(limit)
        start = _start(read.data, count)
        if start or len(read.data) < limit or not count:
            return End(iter((read.data[start:],)), read.position)
        limit *= 4
    return last_lines_since(since, None, count)


def last_lines_since(since: ReadFrom, start: Position | None,
                     count: int) -> End:
    """Give the last lines of what follows a position.

    :raises LogError: it cannot be read, also while pieces are taken
    """
    end = End(iter(()), start)
    #: The places that the lines may begin after: line ends before them, and
    #: bytes of a line since the last of these.
    places = collections.deque([(start, 0, 0)])
    ends = run = skipped = 0
    for data in everything(since, end):
        found, run = _line_ends(data or b'', run)
        ends += found
        places.append((end.position, ends, run))
        skipped = max(0, ends - count + (run > 0))
        while len(places) > 1 and places[1][1:] <= (skipped, 0):
            places.popleft()
    end.position, before, run = places[0]
    end.pieces = _after_lines(
        everything(since, end), skipped - before, run)
    return end


def last_bytes(tail: ReadTail, since: ReadFrom, count: int) -> End:
    """Give the last bytes of a log.

    :raises LogError: it cannot be read, also while pieces are taken
    """
    if count <= AT_ONCE:
        read = tail(count)
        return End(iter((read.data,)), read.position)
    return last_bytes_since(since, None, count)


def last_bytes_since(since: ReadFrom, start: Position | None,
                     count: int, total: int | None = None) -> End:
    """Give the last bytes of what follows a position.

    :param total: how many bytes follow it; None: the log says
    :raises LogError: it cannot be read, also while pieces are taken
    """
    end = End(iter(()), start)
    end.pieces = _after_bytes(
        everything(since, end),
        (since(start, 0).behind if total is None else total) - count)
    return end


def everything(since: ReadFrom, end: End) -> Iterator[bytes | None]:
    """Give what follows the position of an end now, which is moved with it.

    :raises LogError: the log cannot be read
    """
    left: int | None = None
    while left is None or left > 0:
        found = since(end.position, _PIECE)
        if left is None:
            left = len(found.data) + found.behind
        if found.missed != 0:
            yield None
        end.position = found.position
        if not found.data:
            return
        left -= len(found.data)
        yield found.data


def until(since: ReadFrom, stop: Position) -> ReadFrom:
    """Give a log that ends at a position, as if nothing followed that.

    Where its file was rotated away all that is left came after it; where that
    was truncated, it is in the copy.
    """

    def read(position: Position | None, limit: int) -> LogSince:
        nonlocal stop
        if position == stop:
            return LogSince(b'', stop, 0, 0)
        found = since(position, limit)
        size = _size_before(found, stop)
        if size is None:
            # Where what follows it begins now.
            stop = since(stop, 0).position or stop
            size = _size_before(found, stop)
        return found if size is None else LogSince(
            found.data[:size], stop, found.missed, 0)

    return read


def _size_before(found: LogSince, stop: Position) -> int | None:
    """Count the bytes that are before a position; None: it is not in them."""
    file = stop.device, stop.inode, stop.mark >> 32
    start = 0
    for device, inode, version, end, size in found.parts:
        if (device, inode, version) == file and (
                end - size <= stop.offset <= end):
            return start + stop.offset - end + size
        start += size
    return None


def count_bytes(since: ReadFrom, start: Position | None) -> int:
    """Count what follows a position.

    :raises LogError: it cannot be read
    """
    return sum(len(data or b'')
               for data in everything(since, End(iter(()), start)))


def _start(data: bytes, count: int) -> int:
    """Tell where the last lines begin; 0: not within the data."""
    start = len(data)
    end = start - data.endswith(b'\n')
    for _ in range(count):
        newline = data.rfind(b'\n', max(0, end - LONGEST), end)
        if newline < 0 and end <= LONGEST:
            return 0
        end = newline if newline >= 0 else end - LONGEST
        start = newline + 1 or _character(data, end)
    return start


def _line_ends(data: bytes, run: int) -> tuple[int, int]:
    """Count the lines that end in a piece, and the bytes after the last.

    :param run: bytes of the line before the piece
    """
    ends = 0
    *lines, rest = data.split(b'\n')
    for line in lines:
        ends += 1 + max(0, run + len(line) - 1) // LONGEST
        run = 0
    run += len(rest)
    cuts = max(0, run - 1) // LONGEST
    return ends + cuts, run - cuts * LONGEST


def _after_lines(pieces: Iterator[bytes | None], skip: int, run: int
                 ) -> Iterator[bytes | None]:
    """Cut off so many lines at their beginning.

    :param run: bytes of a line before the pieces
    """
    cut = False
    for data in pieces:
        if data is None:
            skip = 0
            yield None
            continue
        start = 0
        while skip and start < len(data):
            most = start + LONGEST - run
            newline = data.find(b'\n', start, most + 1)
            cut = newline < 0
            if cut and most >= len(data):
                run += len(data) - start
                start = len(data)
            else:
                start, run = (most if cut else newline + 1), 0
                skip -= 1
        if cut and not skip:
            start = _character(data, start)
            cut = start == len(data)
        yield data[start:]


def _after_bytes(pieces: Iterator[bytes | None], skip: int
                 ) -> Iterator[bytes | None]:
    """Cut off so many bytes at their beginning."""
    for data in pieces:
        if data is not None and skip > 0:
            skip, data = skip - len(data), data[skip:]
        yield data


def _character(data: bytes, offset: int) -> int:
    """Give the first beginning of a character (UTF-8) from an offset on."""
    end = min(offset + 3, len(data))
    while offset < end and data[offset] & 0xc0 == 0x80:
        offset += 1
    return offset
