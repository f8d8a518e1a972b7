# SPDX-License-Identifier: Apache-2.0
"""The file systems of this host are asked without waiting for ever.

One that stalls (a disk, NFS, fsfreeze) keeps whoever asks it in the kernel,
where no signal reaches. Which file system a path is on is told by its name
alone, which touches none of them.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from virtlogd_driver import exception
from virtlogd_driver.virtlogd.bounded import Calls, NoAnswer, Run, direct

_T = TypeVar('_T')

_MOUNTINFO = Path('/proc/self/mountinfo')

#: Seconds for a file system to answer.
PATIENCE = 5.0


def mounts() -> dict[str, str]:
    """Give types of file systems by mount point (proc(5), mountinfo)."""
    found = {'/': 'unknown'}
    # Of what can end a line the kernel escapes in a path only \n.
    for line in os.fsdecode(_MOUNTINFO.read_bytes()).split('\n')[:-1]:
        mount, _, optional = line.partition(' - ')
        path = mount.split(' ')[4]
        for octal in ('\\040', '\\011', '\\012', '\\134'):
            path = path.replace(octal, chr(int(octal[1:], 8)))
        found[path] = optional.split(' ')[0]
    return found


def by_mount(paths: Iterable[str],
             mounted: Iterable[str]) -> dict[str, list[str]]:
    """Give paths by the mount point that they are below, as they are written.

    :param mounted: the mount points, the root among them
    """
    known = set(mounted)
    found: dict[str, list[str]] = {}
    for path in paths:
        # abspath may leave two slashes.
        mount = '/' + os.path.abspath(os.path.dirname(path)).lstrip('/')
        while mount not in known:
            mount = os.path.dirname(mount)
        found.setdefault(mount, []).append(path)
    return found


class Disks:
    """Asks file systems, each in a thread of its own.

    :param run: runs what blocks
    :param patience: seconds for a file system to answer
    :param mounted: gives the mount points of this host
    """

    def __init__(self, run: Run[Any] = direct, patience: float = PATIENCE,
                 mounted: Callable[[], Iterable[str]] = mounts) -> None:
        self._calls = Calls(run)
        self._patience = patience
        self._mounted = mounted

    def by_mount(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """Give paths by the mount point of their file system."""
        return by_mount(paths, self._mounted())

    def ask(self, path: str, function: Callable[..., _T],
            *arguments: Any) -> _T:
        """Call a function that looks at a path.

        :raises DiskStalled: its file system does not answer in time
        """
        (mount,) = self.by_mount([path])
        try:
            return self._calls.call(
                mount, self._patience, function, *arguments)
        except NoAnswer as e:
            raise exception.DiskStalled(
                f'The file system of {os.path.dirname(path)}, mounted at '
                f'{mount}, has not answered for {self._patience:g} s: guests '
                'with a log there stop, and libvirt may hang with them. See '
                'what the kernel says of it (dmesg), and whether it is frozen '
                '(fsfreeze) or of another machine. Do not kill virtlogd.'
            ) from e


#: Where nothing else is given: for a process without eventlet.
DISKS = Disks()
