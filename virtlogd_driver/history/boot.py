# SPDX-License-Identifier: Apache-2.0
"""A boot is noted: when a guest was started, and where in its logs that was.

A log that is appended to runs the boots of a guest together. Nothing is
written into the guest's bytes; one JSON line for each start goes into a small
file beside the log::

    {"time": 1790000000.123, "positions": {"0": "fe01-c0ffee-1f40-2a"},
     "number": 7}

A position is a token (log.Position), which stays valid while the log is
rotated. When the log goes on at another host, record.py carries it as the
number of bytes that follow it.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import files

FILE = 'console.boots'

#: The newest starts that are kept.
KEPT = 100

#: Seconds since the epoch before which a start is: later years, as a peer may
#: send them, are no date that can be told.
LATEST = 250_000_000_000

#: Starts of a guest are fewer; what a peer has sent may say otherwise.
_MOST = 1 << 62

#: Bytes of the file that are read at most.
_MAX_SIZE = 1024 * 1024

#: Seconds that another process may take to note a start.
LOCK_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot is one start of a guest."""

    #: Seconds since the epoch.
    time: float
    #: By serial port, where in its log the output of this boot begins. None:
    #: at the beginning of what there is.
    positions: Mapping[int, Position | None]
    #: Which one it is of the guest's, from 1; 0: the next. It goes on where
    #: older ones are not kept any more.
    number: int = field(default=0, compare=False)


def read(directory: str) -> list[Boot]:
    """The starts of a guest, the oldest first.

    The log may have been rotated beyond a position: read_from says so.

    :param directory: path of the instance directory
    :raises LogError: the file cannot be read
    """
    path = os.path.join(directory, FILE)
    try:
        lines = files.read(path, _MAX_SIZE, cut=True).splitlines()
    except FileNotFoundError:
        return []
    except ValueError as e:
        raise exception.LogRefused(
            f'{e}, so it is none of nova-compute\'s: remove it. When the '
            f'guest was started is noted from then on.') from e
    except PermissionError as e:
        raise exception.LogRefused(
            f'{path} cannot be read ({e.strerror}): run as root, or as the '
            f'user of nova-compute, who writes it.') from e
    except OSError as e:
        raise exception.LogError(
            f'{path} cannot be read ({e.strerror}): see to the file system '
            f'that it is on.') from e
    return _numbered(boot for boot in map(_parse, lines) if boot is not None)


def _numbered(boots: Iterable[Boot]) -> list[Boot]:
    """Give each its number, which is larger than that of the one before.

    An earlier version has noted none; and where older ones have come to newer
    ones, which were counted without them, these count on.
    """
    found: list[Boot] = []
    for boot in boots:
        least = found[-1].number + 1 if found else 1
        found.append(replace(
            boot, number=min(_MOST, max(least, boot.number))))
    return found


def _parse(line: bytes) -> Boot | None:
    """None: not a line of ours, such as one that was cut off."""
    try:
        values = json.loads(line)
        time = float(values['time'])
        positions = {
            int(port): None if token is None else Position.parse(token)
            for port, token in values['positions'].items()}
        number = values.get('number', 0)
        if isinstance(number, bool) or not isinstance(number, int) or (
                number > _MOST):
            number = 0
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError,
            RecursionError, exception.InvalidPosition):
        return None
    return Boot(time, positions, number) if 0 <= time < LATEST else None


def add(directory: str, boot: Boot) -> None:
    """Note a start; the oldest ones make room for it.

    :raises LogError: the file cannot be read
    :raises OSError: nothing can be written
    """
    change(directory, lambda present: [*present, boot])


def change(directory: str,
           changed: Callable[[list[Boot]], list[Boot]]) -> None:
    """Replace the starts of a guest, one process after the other.

    :raises LogError: the file cannot be read
    :raises OSError: nothing can be written, or others take too long
    """
    with files.locked(directory, LOCK_TIMEOUT):
        write(directory, changed(read(directory)))


def merge(older: str, newer: str) -> None:
    """Put the starts noted in one directory before those in another.

    To do so twice does no harm.

    :raises LogError, OSError: as of change
    """
    before = read(older)
    change(newer, lambda present: joined(before, present))


def joined(older: list[Boot], newer: list[Boot]) -> list[Boot]:
    """Starts in the order in which they were noted, each once.

    Not in that of their times: those are of the clocks of several hosts.
    """
    known = {noted.time for noted in older}
    return [*older, *[noted for noted in newer if noted.time not in known]]


def write(directory: str, boots: Iterable[Boot]) -> None:
    """Replace the file, as a whole.

    :raises OSError: nothing can be written
    """
    files.replace(os.path.join(directory, FILE), ''.join(
        json.dumps({'time': boot.time, 'positions': {
            str(port): None if position is None else str(position)
            for port, position in boot.positions.items()},
            'number': boot.number}) + '\n'
        for boot in _numbered(boots)[-KEPT:]).encode('ascii'))
