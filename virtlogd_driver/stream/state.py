# SPDX-License-Identifier: Apache-2.0
"""A state file says how far a stream has come with each log.

One JSON file, which is replaced as a whole. What it holds of a log is where
its last read ended, what has come of its unfinished line, and some times with
the positions of what came then.
"""

import base64
import fcntl
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot, files
from virtlogd_driver.stream.lines import LONGEST

VERSION = 1
#: Bytes of a file that are read at most: a million logs without a rest.
_MAX_SIZE = 1 << 30
#: Times that are kept of a log: about one for each doubling of its age.
MOST_MARKS = 16
#: Seconds between two times at least.
MARK_INTERVAL = 60.0

#: UUID of a guest, and the number of its serial port.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark says when a place in a log was reached."""

    #: Seconds since the epoch.
    time: float
    position: Position


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress is what a stream has given of one log."""

    #: Name of its guest.
    guest: str
    #: Path of the live file.
    path: str
    #: libvirt's number of the run of its guest; -1: it did not run.
    run: int
    #: Where the last read ended; LIVE_GENERATION: nothing was read.
    position: Position
    #: What has come of a line that is not finished, and when its first byte
    #: was received, in seconds since the epoch.
    rest: bytes = b''
    begun: float = 0.0
    #: The newest start that was passed, in seconds since the epoch; None:
    #: that is not known.
    boot: float | None = None
    marks: tuple[Mark, ...] = ()
    #: The guest has left this host, and all was given.
    left: bool = False
    #: The unfinished line is cut here: it was given so, or is about to be.
    cut: bool = False


def with_mark(marks: tuple[Mark, ...], mark: Mark) -> tuple[Mark, ...]:
    """Add a time, unless the last one is recent; older ones thin out."""
    if marks and 0 <= mark.time - marks[-1].time < MARK_INTERVAL:
        return marks
    marks = (*marks, mark)
    if len(marks) <= MOST_MARKS:
        return marks
    # The one whose neighbours are closest, for its age, goes.
    closest = min(range(1, len(marks) - 1), key=lambda index: (
        (marks[index + 1].time - marks[index - 1].time)
        / (1.0 + abs(mark.time - marks[index].time))))
    return marks[:closest] + marks[closest + 1:]


def claim(path: str) -> int:
    """Keep other streams from a state file, for as long as this one runs.

    :returns: a descriptor, which holds the lock until it is closed
    :raises HostError: another has it
    :raises InvalidState: its lock cannot be made
    """
    try:
        fd = os.open(f'{path}.lock', os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
                     | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise exception.InvalidState(
            path, error.strerror or str(error),
            exception.InvalidState.MEND) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise exception.HostError(
            f'Another stream keeps its state in {path}. End that one, or give '
            f'this one a state file of its own.') from error
    return fd


def load(path: str) -> dict[Key, Progress] | None:
    """Read a state file.

    :returns: None: there is none
    :raises InvalidState: it is none of this program, or cannot be read
    """
    try:
        values = json.loads(files.read(path, _MAX_SIZE))
        if values['version'] != VERSION:
            raise ValueError(f'its version is {values["version"]!r}')
        return dict(map(_parse, values['logs']))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise exception.InvalidState(
            path, error.strerror or str(error),
            exception.InvalidState.MEND) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError,
            RecursionError, exception.InvalidPosition) as error:
        raise exception.InvalidState(
            path, f'it is no state of this program ({error})') from error


def save(path: str, logs: Mapping[Key, Progress]) -> None:
    """Replace a state file, so that a power cut leaves the one or the other.

    :raises OSError: it cannot be written
    """
    lines = ',\n'.join(itertools.starmap(_pack, logs.items()))
    files.replace(os.path.abspath(path), (
        f'{{"version": {VERSION}, "logs": [\n{lines}\n]}}\n').encode('ascii'))


def _pack(key: Key, progress: Progress) -> str:
    return json.dumps({
        'uuid': key[0], 'port': key[1], 'guest': progress.guest,
        'path': progress.path, 'run': progress.run,
        'position': str(progress.position),
        'rest': base64.b64encode(progress.rest).decode('ascii'),
        'begun': progress.begun, 'boot': progress.boot,
        'left': progress.left, 'cut': progress.cut,
        'marks': [(mark.time, str(mark.position))
                  for mark in progress.marks]})


def _parse(values: Mapping[str, Any]) -> tuple[Key, Progress]:
    """:raises ValueError: and others, as the values are not checked yet"""
    rest = base64.b64decode(values['rest'], validate=True)
    if len(rest) > LONGEST + 3:
        raise ValueError('a line is too long')
    key = _text(values['uuid']), int(values['port'])
    return key, Progress(
        _text(values['guest']), _text(values['path']), int(values['run']),
        Position.parse(values['position']), rest, _time(values['begun']),
        None if values['boot'] is None else _time(values['boot']),
        tuple(Mark(_time(time), Position.parse(token))
              for time, token in values['marks'][:MOST_MARKS]),
        values['left'] is True,
        # Earlier versions did not say so.
        values.get('cut') is True)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is no text')
    if b'\0' in value.encode('utf-8', 'surrogateescape'):
        raise ValueError(f'{value!r} is in no path')
    return value


def _time(value: Any) -> float:
    time = float(value)
    if not 0 <= time < boot.LATEST:
        raise ValueError(f'{value!r} is no time')
    return time
