# SPDX-License-Identifier: Apache-2.0
"""Output of guests is written line by line, each with its guest or its time.

A line is written in one piece, however long its guest pauses within it. Of
several guests it is therefore kept until it ends; a terminal shows as its last
row what has come of it, such as a prompt, and takes that away before it writes
something else. Of one guest nothing needs to be kept.
"""

import datetime
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds until an unfinished line is shown. A prompt is never finished.
PATIENCE = 0.25
#: Most bytes of a line that are kept; a longer one is written as several.
LONGEST = 1 << 16

_ERASE_ROW = b'\r\x1b[K'
_SEQUENCE = re.compile(r'\x1b\[[0-9;:]*m')


@dataclass(slots=True)
class _Line:
    """A line keeps what has come of it, and when its first byte did."""

    data: bytes
    #: Seconds since the epoch.
    time: float
    #: When it is shown although it is not finished (monotonic).
    due: float


class Interleaved:
    """Writes lines, each with its guest's label and its time.

    :param write: gets what is to be written
    :param stamps: write when the first byte of each line was received
    :param alone: all is of one guest, and is written as it comes
    :param terminal: show a carriage return within a line as ``^M``: what it
        would overwrite is the label
    :param reset: what ends a line that has control sequences
    :param columns: of the terminal; 0: show no unfinished lines
    """

    def __init__(self, write: Callable[[bytes], object], *,
                 stamps: bool, alone: bool = False, terminal: bool = False,
                 reset: bytes = b'', columns: int = 0) -> None:
        self._write = write
        self._stamps = stamps
        self._alone = alone
        self._terminal = terminal
        self._reset = reset
        self._columns = columns
        #: Of several guests: what is kept, by label; the newest is the last.
        self._lines: dict[str, _Line] = {}
        #: The unfinished line that the terminal shows.
        self._shown = b''
        #: Of one guest: a line has begun, has a control sequence, and ends
        #: in a carriage return that is not written yet.
        self._open = self._special = self._returned = False

    def feed(self, label: str, data: bytes) -> None:
        """Take bytes of a guest.

        :param label: what its lines begin with
        """
        if self._alone:
            *whole, rest = data.split(b'\n')
            self._write(b''.join(
                [*(self._part(label, part, True) for part in whole),
                 self._part(label, rest, False)]))
            return
        line = self._lines.pop(label, None)
        begun = line.time if line else time.time()
        *whole, rest = ((line.data if line else b'') + data).split(b'\n')
        for complete in whole:
            self._put(label, begun, self._shorten(label, begun, complete))
            begun = time.time()
        rest = self._shorten(label, begun, rest)
        if rest:
            self._lines[label] = _Line(
                rest, begun, time.monotonic() + PATIENCE)

    def flush(self) -> float | None:
        """Show a line that is unfinished for long enough.

        :returns: seconds until the next one is; None: there is none
        """
        now = time.monotonic()
        if not self._columns:
            return None
        for label, line in reversed(self._lines.items()):
            if line.due > now:
                return line.due - now
            shown = self._row(label, line)
            if shown != self._shown:
                self._write(_ERASE_ROW + shown)
                self._shown = shown
            break
        return None

    def pause(self) -> None:
        """Go to the beginning of a row, for something else to be written."""
        if self._shown:
            self._write(_ERASE_ROW)
            self._shown = b''
        if self._open and self._terminal:
            self._write(self._end() + b'\r\n')

    def close(self) -> None:
        """Write what is kept: nothing follows."""
        for label, line in self._lines.items():
            self._put(label, line.time, line.data)
        self._lines.clear()
        self.pause()

    def _begin(self, label: str, begun: float) -> bytes:
        prefix = f'{stamp(begun)} ' if self._stamps else ''
        return f'{prefix}{label}'.encode(errors='backslashreplace')

    def _shorten(self, label: str, begun: float, line: bytes) -> bytes:
        """Write what of a line is too much; the rest of it."""
        while len(line) > LONGEST:
            end = character_start(line, LONGEST)
            self._put(label, begun, line[:end])
            line = line[end:]
        return line

    def _put(self, label: str, begun: float, line: bytes) -> None:
        """Write a line of several guests, without its line end."""
        self.pause()
        if self._terminal:
            line = line.strip(b'\r').replace(b'\r', b'^M')
        end = self._reset if b'\x1b' in line else b''
        self._write(self._begin(label, begun) + line + end + b'\n')

    def _part(self, label: str, part: bytes, ended: bool) -> bytes:
        """Print a part of a line of the only guest."""
        if self._terminal:
            if self._returned:
                part = b'\r' + part
            text = part.rstrip(b'\r') if self._open else part.strip(b'\r')
            self._returned = self._open and len(text) < len(part)
            part = text.replace(b'\r', b'^M')
        begin = b''
        if not self._open and (part or ended):
            begin = self._begin(label, time.time())
            self._open = True
        self._special = self._special or b'\x1b' in part
        return begin + part + (self._end() + b'\n' if ended else b'')

    def _end(self) -> bytes:
        end = self._reset if self._special else b''
        self._open = self._special = self._returned = False
        return end

    def _row(self, label: str, line: _Line) -> bytes:
        """Give an unfinished line, as far as it surely fits into one row."""
        begin = self._begin(label, line.time)
        left = self._columns - 1 - sum(map(
            _width, _SEQUENCE.sub('', begin.decode())))
        if left < 0:
            return b''
        # The beginning will do: a row has some hundred characters.
        text = line.data[:1 << 12].decode(errors='ignore').strip('\r')
        shown = ''
        for character in _SEQUENCE.sub('', text):
            left -= _width(character)
            if left < 0:
                break
            shown += character if character.isprintable() else '?'
        return begin + shown.encode()


def _width(character: str) -> int:
    """Give the most columns that a character takes."""
    return 1 + (unicodedata.east_asian_width(character) in 'WFA')


def character_start(data: bytes, offset: int) -> int:
    """Give the offset, or that of the character (UTF-8) that it is within."""
    for start in range(offset, max(0, offset - 4), -1):
        if data[start] & 0xc0 != 0x80:
            return start
    return offset


def stamp(seconds: float) -> str:
    """Give a time of this host's clock, to the millisecond (RFC 3339)."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(
        timespec='milliseconds')
