# SPDX-License-Identifier: Apache-2.0
"""A process is stopped, or fails, at one of its changing system calls."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

#: Calls that change a disk; those of them that need room there.
CHANGING = ('rename', 'replace', 'unlink', 'remove', 'link', 'symlink',
            'mkdir', 'rmdir', 'write', 'fsync', 'chmod', 'fchmod',
            'truncate', 'ftruncate')
NEEDS_ROOM = ('mkdir', 'write', 'open', 'fsync', 'symlink')
#: Those that tell what is there.
LOOKING = ('lstat', 'stat', 'fstat', 'access', 'listdir', 'pread', 'preadv')

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """Nothing catches it, and nothing more is done."""


class Machine:
    """Counts the changing calls of a process, and interferes at one."""

    def __init__(self, at: int | None = None, kind: str = 'kill',
                 lasting: bool = False, sync: bool = False,
                 looks: bool = False) -> None:
        """
        :param sync: let fsync do its work, which is slow
        :param looks: it is one of the calls that tell what is there
        :param at: the number of the call, from 0; None: none
        :param kind: 'kill', 'ENOSPC' or 'EIO'
        :param lasting: it is so from that call on
        """
        self.at = at
        self.kind = kind
        self.lasting = lasting
        self.sync = sync
        self.looks = looks
        self.count = 0
        #: The calls that there were, with their first argument.
        self.calls: list[str] = []
        #: Called before each call; a power cut is taken there.
        self.before: Callable[[], object] = lambda: None

    def _wrap(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == 'open' and bool(
                    args[1] & _WRITING) is self.looks:
                return real(*args, **kwargs)
            try:
                self._happens(name, args)
            except OSError:
                if name == 'access':
                    return False
                raise
            if name == 'fsync' and not self.sync:
                # Slow, and of no use where no power is cut.
                return None
            return real(*args, **kwargs)
        return mock.patch.object(os, name, call)

    def _happens(self, name: str, args: tuple[Any, ...]) -> None:
        self.before()
        number, self.count = self.count, self.count + 1
        self.calls.append(f'{name} {args[0]!r}')
        if self.at is None or number < self.at:
            return
        if self.kind == 'kill':
            raise Killed
        if number > self.at and not self.lasting:
            return
        if self.kind == 'ENOSPC' and name not in NEEDS_ROOM:
            return
        raise OSError(getattr(errno, self.kind), os.strerror(
            getattr(errno, self.kind)))

    def run(self, program: Callable[[], object]) -> bool:
        """Whether it came to its end."""
        patches = [self._wrap(name) for name in (
            *(LOOKING if self.looks else CHANGING), 'open')]
        for patch in patches:
            patch.start()
        try:
            program()
        except Killed:
            return False
        finally:
            for patch in patches:
                patch.stop()
        return True


FAULTS = (('kill', False), ('ENOSPC', False), ('ENOSPC', True),
          ('EIO', False), ('EIO', True))


def points(calls: list[str]) -> Iterator[tuple[int, str, bool]]:
    """Each call, with each fault that there can be."""
    for at, call in enumerate(calls):
        for kind, lasting in FAULTS:
            if (kind != 'ENOSPC' or lasting
                    or call.partition(' ')[0] in NEEDS_ROOM):
                yield at, kind, lasting
