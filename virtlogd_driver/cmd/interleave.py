# SPDX-License-Identifier: Apache-2.0
"""Output of several guests in one stream, line by line."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass

from virtlogd_driver.cmd import control_sequences

#: Seconds that a line may take to be finished. A prompt never is.
PATIENCE = 0.25
#: Bytes of a line that is not waited for.
LONGEST = 1 << 16


@dataclass(slots=True)
class _Line:
    """What has come of a line, and when its first byte did."""

    data: bytes
    time: float
    #: When it is written as it is (monotonic).
    due: float


class Interleaved:
    """Writes whole lines, each with its guest's label and its time.

    :param write: gets what is to be written
    :param stamps: write when each line was received
    :param terminal: a line must not reach into the label of another
    """

    def __init__(self, write: Callable[[bytes], object], *,
                 stamps: bool, terminal: bool) -> None:
        self._write = write
        self._stamps = stamps
        self._terminal = terminal
        self._lines: dict[str, _Line] = {}

    def feed(self, label: str, data: bytes) -> None:
        """Take bytes of a guest.

        :param label: what its lines begin with
        """
        line = self._lines.pop(label, None)
        begun = line.time if line else time.time()
        *whole, rest = ((line.data if line else b'') + data).split(b'\n')
        for complete in whole:
            self._put(label, begun, complete + b'\n')
            begun = time.time()
        if len(rest) > LONGEST:
            self._put(label, begun, rest + b'\n')
        elif rest:
            self._lines[label] = _Line(
                rest, begun, time.monotonic() + PATIENCE)

    def flush(self, everything: bool = False) -> float | None:
        """Write lines that were waited for long enough.

        :returns: seconds until the next one is; None: there is none
        """
        now = time.monotonic()
        for label, line in list(self._lines.items()):
            if everything or line.due <= now:
                del self._lines[label]
                self._put(label, line.time, line.data + b'\n')
        return min((line.due - now for line in self._lines.values()),
                   default=None)

    def _put(self, label: str, begun: float, line: bytes) -> None:
        prefix = f'{stamp(begun)} ' if self._stamps else ''
        begin = f'{prefix}{label}'.encode()
        if self._terminal:
            text = line.rstrip(b'\r\n')
            end = control_sequences.RESET.encode() if b'\x1b' in text else b''
            line = text.replace(b'\r', b'\r' + begin) + end + b'\n'
        self._write(begin + line)


def stamp(seconds: float) -> str:
    """A time of this host's clock, to the millisecond (RFC 3339)."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(
        timespec='milliseconds')
