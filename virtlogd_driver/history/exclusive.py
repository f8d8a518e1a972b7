# SPDX-License-Identifier: Apache-2.0
"""One thread at a time changes where a guest's logs lie."""

import contextlib
import threading
from collections.abc import Iterator


class Exclusive:
    """Each guest has a lock, by UUID. No guest waits for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: With each, how many have it or wait for it.
        self._guests: dict[str, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def guest(self, uuid: str, seconds: float) -> Iterator[bool]:
        """Have the lock of a guest; a thread that has it gets it again.

        :param seconds: that it is waited for
        :returns: whether it was got in time
        """
        with self._lock:
            lock, count = self._guests.get(uuid, (None, 0))
            if lock is None:
                lock = threading.RLock()
            self._guests[uuid] = lock, count + 1
        got = lock.acquire(timeout=seconds) if seconds else (
            lock.acquire(blocking=False))
        try:
            yield got
        finally:
            if got:
                lock.release()
            with self._lock:
                lock, count = self._guests[uuid]
                if count == 1:
                    del self._guests[uuid]
                else:
                    self._guests[uuid] = lock, count - 1
