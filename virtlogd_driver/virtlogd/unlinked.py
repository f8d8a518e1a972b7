# SPDX-License-Identifier: Apache-2.0
"""virtlogd may write a log whose file is not at its path any more.

It was removed, renamed (logrotate without copytruncate) or replaced. virtlogd
does not notice: it writes the file that it has open, until the next rotation.

That a name and virtlogd's file differ for a moment is part of each rotation.
It is told apart by rule, not by how long it lasts: virtlogd answers in the
thread that rotates, so never in the middle of a rotation; and a rotation
never puts a file back under the name that it had.

* Another file is at the path: that was there before virtlogd was asked and is
  there afterwards, and its inode is kept from being used again meanwhile. So
  it was there when virtlogd answered that it writes another one.
* None is there, at each of several looks, while virtlogd writes one and the
  same file that only grows. A rotation lasts microseconds and begins another
  file: it would have to be under way at each look, and each time come back to
  the inode that it had, at no smaller size.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.virtlogd.disk import Disks

#: Inode and size of the file that virtlogd writes, as privileged.positions;
#: (0, 0): it does not write this log.
Position = tuple[int, int]
#: Asks virtlogd where it writes logs, by their paths.
Positions = Callable[[list[str]], Sequence[Position]]

#: How often a path is looked at.
LOOKS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """This was found out about some logs."""

    #: Paths of those whose file is elsewhere.
    unlinked: frozenset[str] = frozenset()
    #: Paths of those that could not be looked at.
    unseen: frozenset[str] = frozenset()
    #: Why not.
    stalled: tuple[str, ...] = ()


class _Kept:
    """The file at a path is kept, so that its inode is not used again."""

    def __init__(self, path: str) -> None:
        self.path = path
        # Takes no permission on the file, which is root's.
        self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.status = os.fstat(self._fd)

    def __del__(self) -> None:
        # Also where nobody has waited for it.
        if hasattr(self, '_fd'):
            os.close(self._fd)

    def is_there(self) -> bool:
        """Tell whether its path still leads to it."""
        try:
            return os.path.samestat(self.status, os.stat(self.path))
        except OSError:
            return False


def find(logs: Iterable[str], positions: Positions, disks: Disks) -> Found:
    """Tell which of the logs that virtlogd writes have their file elsewhere.

    One whose path cannot be seen from here is taken to be well.

    :raises VirtlogdError: virtlogd cannot be asked
    """
    here: dict[str, int] = {}
    unlinked, unseen, stalled = set(), set(), []
    for paths in disks.by_mount(logs).values():
        try:
            here |= disks.ask(paths[0], _inodes, paths)
        except exception.DiskStalled as e:
            unseen.update(paths)
            stalled.append(str(e))
    there = positions(list(here)) if here else []
    for log, (inode, _) in zip(here, there, strict=True):
        if inode not in (0, here[log]):
            try:
                if is_unlinked(log, positions, disks):
                    unlinked.add(log)
            except exception.DiskStalled as e:
                unseen.add(log)
                stalled.append(str(e))
    return Found(frozenset(unlinked), frozenset(unseen),
                 tuple(dict.fromkeys(stalled)))


def _inodes(paths: Sequence[str]) -> dict[str, int]:
    """Look up the inode at each path; 0: none. One that cannot be seen
    is left out."""
    found = {}
    for path in paths:
        try:
            found[path] = os.stat(path).st_ino
        except FileNotFoundError:
            if os.path.isdir(os.path.dirname(path)):
                found[path] = 0
        except OSError:
            continue
    return found


def _keep(path: str) -> _Kept | None:
    """Keep what is there; None: nothing is.

    :raises OSError: it cannot be seen
    """
    try:
        return _Kept(path)
    except FileNotFoundError:
        return None


def is_unlinked(log: str, positions: Positions, disks: Disks) -> bool:
    """Tell whether virtlogd writes a log into a file that is not at its path.

    False where it does not write this log at all, and where the path cannot
    be seen.

    :raises DiskStalled: its file system does not answer
    :raises VirtlogdError: virtlogd cannot be asked
    """
    (before,) = positions([log])
    missing = 0
    for _ in range(LOOKS):
        try:
            kept = disks.ask(log, _keep, log)
        except OSError:
            return False
        (after,) = positions([log])
        if after == (0, 0) or (kept and kept.status.st_ino == after[0]):
            return False
        if kept is not None:
            missing = 0
            if disks.ask(log, kept.is_there):
                return True
        elif before[0] != after[0] or before[1] > after[1]:
            return False
        else:
            missing += 1
        before = after
    return missing == LOOKS
