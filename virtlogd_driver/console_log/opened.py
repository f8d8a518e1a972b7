# SPDX-License-Identifier: Apache-2.0
"""An open log crosses the edge of a process as what msgpack can carry.

The descriptors go beside it (handover.py). What comes is checked against them:
each is the regular file that it is said to be.
"""

import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.console_log.chain import Segment, Snapshot
from virtlogd_driver.console_log.directory import Files
from virtlogd_driver.console_log.log import (
    Position,
    Taken,
    Wanted,
    failed,
)

#: Tuples of tuples, numbers and strings.
Packed = tuple[Any, ...]

#: Device and inode of an open file.
Key = tuple[int, int]


def pack_wanted(wanted: Wanted) -> Packed:
    # No file is longer, and msgpack carries no larger number.
    limit = None if wanted.limit is None else min(wanted.limit, sys.maxsize)
    return limit, wanted.until, wanted.max_backups, wanted.joined


def unpack_wanted(values: Packed) -> Wanted:
    limit, until, max_backups, joined = values
    return Wanted(limit, until, max_backups, joined)


def pack_position(position: Position | None) -> tuple[int, ...] | None:
    if position is None:
        return None
    return (
        position.device, position.inode, position.offset, position.mark)


def unpack_position(values: tuple[int, ...] | None) -> Position | None:
    return None if values is None else Position(*values)


def pack(taken: Taken, held: frozenset[Key]) -> tuple[Packed, list[int]]:
    """Give an open log, and the descriptors that go with it.

    :param held: the files that the other side has open
    """
    descriptors = []
    units = []
    for unit, joins in taken.units:
        segments = []
        for segment in unit.segments:
            if segment.key not in held:
                descriptors.append(segment.fd)
            segments.append(
                (*segment.key, segment.size, segment.mtime_ns,
                 segment.first))
        units.append((tuple(segments), unit.complete, unit.exact,
                      unit.settled, unit.failure, joins))
    return (taken.path, tuple(units), taken.ended, taken.cut,
            taken.absent, taken.runs, len(descriptors)), descriptors


def count(packed: Packed) -> int:
    """Count how many descriptors go with it."""
    number: int = packed[-1]
    return number


def unpack(packed: Packed, held: Mapping[Key, Segment],
           descriptors: Sequence[int], files: Files) -> Taken:
    """Give an open log, on this side.

    :param held: the files that were open here already
    :param descriptors: those that have come, which the answer owns
    :param files: the system calls on them
    :raises LogError: they are not what is said of them, or cannot be looked at
    """
    path, units, ended, cut, absent, runs, _ = packed
    come = iter(descriptors)
    taken = Taken(path, [], ended=ended, cut=cut, absent=absent, runs=runs)
    for segments, complete, exact, settled, failure, joins in units:
        found = []
        for device, inode, size, mtime_ns, first in segments:
            segment = held.get((device, inode))
            if segment is None:
                segment = Segment(next(come), device, inode, size, mtime_ns,
                                  first=first)
                _check(segment, path, files)
            segment.look_at(size, mtime_ns)
            found.append(segment)
        taken.units.append((Snapshot(
            files, found, complete=complete, exact=exact, settled=settled,
            failure=failure), joins))
    return taken


def _check(segment: Segment, path: str, files: Files) -> None:
    try:
        status = files.fstat(segment.fd)
    except OSError as error:
        raise failed(path, error) from error
    if not (stat.S_ISREG(status.st_mode)
            and segment.key == (status.st_dev, status.st_ino)):
        raise exception.LogError(
            f'The privileged helper has sent another file than it says for '
            f'{path}. Start nova-compute anew.')
