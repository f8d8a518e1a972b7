# SPDX-License-Identifier: Apache-2.0
"""Notes tell which start of a guest a byte of its log was written after.

The starts are noted beside the log (history/boot.py), by their positions; a
byte is given here by the file that it is in and its offset there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Part
from virtlogd_driver.history import boot


@dataclass(frozen=True, slots=True)
class Start:
    """A start of a guest is known by its number."""

    #: From 1, as of boot.Boot.
    number: int
    #: Seconds since the epoch.
    time: float


class Starts:
    """The starts of a guest, as they were when refreshed last.

    :param directory: path of the instance directory
    :param port: number of the serial port
    """

    def __init__(self, directory: str, port: int) -> None:
        self._directory = directory
        self._path = os.path.join(directory, boot.FILE)
        self._port = port
        self._seen: tuple[int, int, int] | None = None
        self._boots: Sequence[boot.Boot] = ()
        #: By file, index and offset of those that are in it.
        self._places: dict[tuple[int, int, int], list[tuple[int, int]]] = {}

    def noted(self, time: float) -> Start | None:
        """Give the one of a time; None: it is not noted."""
        self.refresh()
        boots = self._boots
        return next((_start(boots, index) for index, one in enumerate(boots)
                     if one.time == time), None)

    def within(self, part: Part) -> list[tuple[int, Start]]:
        """Give those in some bytes of a file, in their order.

        :returns: the offset in the file that each begins at; it may be the
            end of the bytes
        """
        _, _, _, end, size = part
        boots = self._boots
        return [(offset, _start(boots, index))
                for index, offset in self._places.get(part[:3], ())
                if end - size <= offset <= end]

    def before(self, part: Part, *, newest: bool) -> Start | None:
        """Give the one that some bytes of a file go on with.

        :param newest: no bytes are known behind them
        :returns: None: that is not known
        """
        _, _, _, end, size = part
        boots = self._boots
        if not boots:
            return None
        here = self._places.get(part[:3], ())
        passed = [index for index, offset in here if offset <= end - size]
        if passed:
            return _start(boots, passed[-1])
        if here:
            index = here[0][0] - 1
        elif newest:
            index = len(boots) - 1
        else:
            # The first of a guest is at the beginning of all.
            index = max((index for index, one in enumerate(boots)
                         if one.positions.get(self._port, True) is None),
                        default=-1)
        return _start(boots, index) if index >= 0 else None

    def refresh(self) -> None:
        """Read them anew, if they have changed."""
        try:
            status = os.stat(self._path)
            seen = status.st_ino, status.st_size, status.st_mtime_ns
            if seen == self._seen:
                return
            boots = boot.read(self._directory)
        except (OSError, exception.LogError):
            # The guest has left, or has noted none: what was known stays.
            return
        self._boots, self._seen, self._places = boots, seen, {}
        for index, one in enumerate(boots):
            position = one.positions.get(self._port)
            if position is not None:
                self._places.setdefault((
                    position.device, position.inode, position.mark >> 32),
                    []).append((index, position.offset))


def _start(boots: Sequence[boot.Boot], index: int) -> Start:
    return Start(boots[index].number, boots[index].time)
