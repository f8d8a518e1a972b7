# SPDX-License-Identifier: Apache-2.0
"""A command waits for each file system once.

It asks of many guests, of which some have their logs on the same one.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from virtlogd_driver import exception
from virtlogd_driver.virtlogd.disk import Disks

_T = TypeVar('_T')


class WaitedOnce(Disks):
    """It asks no file system that has not answered before."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
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
