# SPDX-License-Identifier: Apache-2.0
"""A thread for each guest that has come puts in place what comes after it."""

import threading
import time
from collections.abc import Callable


class _Arrival:
    """A guest has come."""

    def __init__(self) -> None:
        #: By time.monotonic.
        self.since = time.monotonic()
        #: Set when nobody is to wait for its history any more.
        self.ended = threading.Event()
        #: Set when its history is in place, or does not come.
        self.done = threading.Event()


class Arrivals:
    """Guests have come, and what they wrote before comes after them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: dict[str, _Arrival] = {}

    def start(self, uuid: str,
              receive: Callable[[threading.Event], None]) -> None:
        """Put in place what comes, in a thread.

        :param receive: does it, until the event that it is given is set
        """
        arrival = _Arrival()

        def run() -> None:
            try:
                receive(arrival.ended)
            finally:
                arrival.done.set()
                with self._lock:
                    if self._guests.get(uuid) is arrival:
                        del self._guests[uuid]

        with self._lock:
            if uuid in self._guests:
                return
            # Where there can be no more threads, there is nothing to wait for.
            threading.Thread(target=run, name='virtlogd-arrival',
                             daemon=True).start()
            self._guests[uuid] = arrival

    def forget(self, uuid: str) -> None:
        """The guest has gone, or another thread waits for its history."""
        with self._lock:
            arrival = self._guests.pop(uuid, None)
        if arrival is not None:
            arrival.ended.set()

    def stop(self) -> None:
        """nova-compute ends; the next one goes on."""
        for uuid in list(self._guests):
            self.forget(uuid)

    def wait(self, uuid: str, seconds: float) -> None:
        """Wait until what comes for a guest is in place, or does not come.

        :param seconds: since the guest has come, at most
        """
        with self._lock:
            arrival = self._guests.get(uuid)
        if arrival is not None:
            arrival.done.wait(arrival.since + seconds - time.monotonic())
