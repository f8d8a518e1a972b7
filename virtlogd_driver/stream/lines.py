# SPDX-License-Identifier: Apache-2.0
"""A guest's bytes become lines. Pure: bytes in, lines out."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: Most bytes of a line, up to the end of a character (UTF-8); a longer one is
#: given as several.
LONGEST = 1 << 16
#: Seconds without a byte after which an unfinished line is given.
QUIET = 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a guest wrote, or a part of one."""

    #: Without its line end.
    data: bytes
    #: When its first byte was received, in seconds since the epoch.
    time: float
    #: Offset of its end, behind the line end, in what was fed last.
    end: int
    #: It was cut: what follows goes on with it.
    partial: bool = False


class Splitter:
    """It holds what has come of a line until the line ends.

    :param rest: the beginning of a line, as :attr:`rest` was
    :param begun: when that was received, in seconds since the epoch
    """

    def __init__(self, rest: bytes = b'', begun: float = 0.0,
                 clock: Callable[[], float] = time.time) -> None:
        self.rest = rest
        self.begun = begun
        self._clock = clock

    def feed(self, data: bytes) -> Iterator[Line]:
        """Take what follows, and give the lines that have ended."""
        now = self._clock()
        if not self.rest:
            self.begun = now
        before = len(self.rest)
        data = self.rest + data
        start = 0
        while True:
            end = data.find(b'\n', start, start + LONGEST + 1)
            if end >= 0:
                yield Line(without_return(data[start:end]), self.begun,
                           end + 1 - before)
                start = end + 1
            else:
                end = _character(data, start + LONGEST)
                if end >= len(data):
                    break
                yield Line(data[start:end], self.begun, end - before, True)
                start = end
            self.begun = now
        self.rest = data[start:]

    def quiet(self) -> Line | None:
        """Give the unfinished line: nothing came for long, or will."""
        if not self.rest:
            return None
        line = Line(self.rest, self.begun, 0, True)
        self.rest = b''
        return line


def without_return(line: bytes) -> bytes:
    """Give a line without the carriage return of its line end."""
    return line[:-1] if line.endswith(b'\r') else line


def _character(data: bytes, offset: int) -> int:
    """Give the first beginning of a character (UTF-8) from an offset on."""
    end = offset + 3
    while offset < min(end, len(data)) and data[offset] & 0xc0 == 0x80:
        offset += 1
    return offset
