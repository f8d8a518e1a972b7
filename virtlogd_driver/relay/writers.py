# SPDX-License-Identifier: Apache-2.0
"""All of a console's viewers may type, or only the first one."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from virtlogd_driver.relay.settings import Writers as Policy

V = TypeVar('V', bound=Hashable)


class Writers(Generic[V]):
    """The viewers of a serial port that would type are kept in order.

    With "all" each of them may type, with "first" only who has been there
    longest, until it leaves, or another takes its turn.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        # Those that would type, the one that may first.
        self._order: list[V] = []

    def join(self, viewer: V) -> None:
        """Note that a viewer has come."""
        self._order.append(viewer)

    def leave(self, viewer: V) -> V | None:
        """Note that a viewer has gone, or only watches from now on.

        :returns: who may type now and might not before
        """
        before = self.writer
        if viewer in self._order:
            self._order.remove(viewer)
        return self.writer if self.writer is not before else None

    def take(self, viewer: V) -> V | None:
        """Let a viewer type now, whoever came before it.

        :returns: who might type before and may not now
        """
        before = self.writer
        if viewer in self._order:
            self._order.remove(viewer)
        self._order.insert(0, viewer)
        return before if before is not viewer else None

    @property
    def writer(self) -> V | None:
        """Give the one that may type; None: nobody, or each may."""
        if self._policy == 'all' or not self._order:
            return None
        return self._order[0]

    def may_type(self, viewer: V) -> bool:
        """Tell whether what a viewer types reaches the guest."""
        if self._policy == 'all':
            return viewer in self._order
        return bool(self._order) and self._order[0] is viewer
