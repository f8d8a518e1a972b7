# SPDX-License-Identifier: Apache-2.0
"""A command waits for each file system once.

It asks of many guests, of which some have their logs on the same one.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from virtlogd_driver import exception
from virtlogd_driver.virtlogd.disk import PATIENCE, Disks, mounts

_T = TypeVar('_T')


class WaitedOnce(Disks):
    """It asks no file system that has not answered before."""

    def __init__(self, patience: float = PATIENCE,
                 mounted: Callable[[], Iterable[str]] = mounts) -> None:
        # What is mounted is looked up once, too.
        super().__init__(patience=patience, mounted=functools.cache(mounted))
        #: What was said of those that have not, by mount point.
        self._stalled: dict[str, str] = {}

    def ask(self, path: str, function: Callable[..., _T],
            *arguments: Any) -> _T:
        (mount,) = self.by_mount([path])
        if mount in self._stalled:
            raise exception.DiskStalled(
                f'{path} is not looked at. {self._stalled[mount]}')
        try:
            return super().ask(path, function, *arguments)
        except exception.DiskStalled as error:
            self._stalled[mount] = str(error)
            raise
