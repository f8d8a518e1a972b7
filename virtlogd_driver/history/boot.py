# SPDX-License-Identifier: Apache-2.0
"""When a guest was started, and where in its logs that was.

A log that is appended to runs the boots of a guest together. Nothing is
written into the guest's bytes; one JSON line for each start goes into a small
file beside the log::

    {"time": 1790000000.123, "positions": {"0": "fe01-c0ffee-1f40-2a"}}

A position is a token (log.Position), which stays valid while the log is
rotated. When the log goes on elsewhere, transfer.py carries it as the number
of bytes that follow it.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Position

FILE = 'console.boots'

#: The newest starts that are kept.
KEPT = 100

#: Bytes of the file that are read at most.
_MAX_SIZE = 1024 * 1024

_changing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Boot:
    """One start of a guest."""

    #: Seconds since the epoch.
    time: float
    #: By serial port, where in its log the output of this boot begins. None:
    #: at the beginning of what there is.
    positions: Mapping[int, Position | None]


def read(directory: str) -> list[Boot]:
    """The starts of a guest, the oldest first.

    The log may have been rotated beyond a position: read_from says so.

    :param directory: path of the instance directory
    :raises LogRefused: the file may not be read
    """
    path = os.path.join(directory, FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                     | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise exception.LogRefused(
            f'{path} cannot be read ({e.strerror}): run as root, or as the '
            f'user of nova-compute, who writes it.') from e
    with os.fdopen(fd, 'rb') as file:
        lines = file.read(_MAX_SIZE).splitlines()
    return [boot for boot in map(_parse, lines) if boot is not None]


def _parse(line: bytes) -> Boot | None:
    """None: not a line of ours, such as one that was cut off."""
    try:
        values = json.loads(line)
        return Boot(float(values['time']), {
            int(port): None if token is None else Position.parse(token)
            for port, token in values['positions'].items()})
    except (ValueError, TypeError, KeyError, AttributeError,
            exception.InvalidPosition):
        return None


def add(directory: str, boot: Boot) -> None:
    """Note a start; the oldest ones make room for it.

    :raises LogRefused: the file may not be read
    :raises OSError: nothing can be written
    """
    change(directory, lambda present: [*present, boot])


def change(directory: str,
           changed: Callable[[list[Boot]], list[Boot]]) -> None:
    """Replace the starts of a guest, one thread after the other.

    :raises LogRefused: the file may not be read
    :raises OSError: nothing can be written
    """
    with _changing:
        write(directory, changed(read(directory)))


def write(directory: str, boots: Iterable[Boot]) -> None:
    """Replace the file, as a whole.

    :raises OSError: nothing can be written
    """
    new = os.path.join(directory, f'{FILE}.new')
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    with open(new, 'x', encoding='ascii') as file:
        for boot in list(boots)[-KEPT:]:
            file.write(json.dumps({
                'time': boot.time,
                'positions': {
                    str(port): None if position is None else str(position)
                    for port, position in boot.positions.items()}}) + '\n')
    os.rename(new, os.path.join(directory, FILE))
