# SPDX-License-Identifier: Apache-2.0
"""What guests wrote, on its way from this host, and to it.

A copy to another host takes what ssh takes, and a host that does not answer
costs all the time that a copy may take. The guest runs on its destination by
then, so nova's move does not wait for it: the source packs what is to go, and
it goes in a thread; at the destination another puts in place what comes. What
needs it whole waits: a reader for a moment, whatever takes it elsewhere until
it is there or given up.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

#: Makes ready what is to go, and returns what carries it.
Pack = Callable[[], Callable[[], None]]

#: Seconds between two looks at what has come.
INTERVAL = 0.1

#: Seconds after a move within which a copy that is made has begun to come.
BEGIN = 5.0


@dataclass(eq=False)
class _Departure:
    pack: Pack
    packed: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class Departures:
    """Guests that leave this host, by UUID."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._departures: dict[str, _Departure] = {}
        self._threads: set[threading.Thread] = set()

    def prepare(self, uuid: str, pack: Pack) -> None:
        """A guest is about to leave."""
        self._departures[uuid] = _Departure(pack)

    def forget(self, uuid: str) -> None:
        """It has stayed. What is on its way goes on."""
        self._departures.pop(uuid, None)

    def start(self, uuid: str) -> None:
        """It has left. To say so twice does no harm."""
        with self._lock:
            departure = self._departures.get(uuid)
            if departure is None or departure.thread is not None:
                return
            departure.thread = threading.Thread(
                target=self._run, args=[departure],
                name='virtlogd-departure', daemon=True)
            self._threads.add(departure.thread)
            departure.thread.start()

    def wait_until_packed(self, uuid: str) -> None:
        """Nothing is read any more where the guest was."""
        self.start(uuid)
        departure = self._departures.pop(uuid, None)
        if departure is not None:
            departure.packed.wait()

    def finish(self) -> None:
        """Until nothing is on its way any more."""
        for thread in list(self._threads):
            thread.join()

    def _run(self, departure: _Departure) -> None:
        try:
            try:
                carry = departure.pack()
            finally:
                departure.packed.set()
            carry()
        finally:
            self._threads.discard(threading.current_thread())


@dataclass(eq=False)
class _Arrival:
    started: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class Arrivals:
    """Guests whose history may still be on its way to this host, by UUID."""

    def __init__(self) -> None:
        self._arrivals: dict[str, _Arrival] = {}

    def expect(self, uuid: str) -> None:
        """A guest comes, and its history after it."""
        self.forget(uuid)
        self._arrivals[uuid] = _Arrival()

    def forget(self, uuid: str) -> None:
        """It has not come, or has gone."""
        arrival = self._arrivals.pop(uuid, None)
        if arrival is not None:
            arrival.ended.set()

    def stop(self) -> None:
        """nova-compute ends; the next one goes on."""
        for uuid in list(self._arrivals):
            self.forget(uuid)

    def is_awaited(self, uuid: str) -> bool:
        """Whether what comes for a guest will be put in place."""
        arrival = self._arrivals.get(uuid)
        return arrival is not None and arrival.started is not None

    def start(self, uuid: str, is_whole: Callable[[], bool],
              receive: Callable[[], None], timeout: float) -> None:
        """The guest has come.

        :param is_whole: whether all of its history has come
        :param receive: puts in place what has come; in a thread if the
            history is expected, and at once otherwise
        :param timeout: seconds after which nothing comes any more
        """
        arrival = self._arrivals.get(uuid)
        if arrival is None:
            receive()
            return
        arrival.started = time.monotonic()

        def run() -> None:
            deadline = time.monotonic() + timeout
            try:
                # What cannot be looked at is said by who receives it.
                with contextlib.suppress(OSError):
                    while not is_whole() and time.monotonic() < deadline:
                        if arrival.ended.wait(INTERVAL):
                            return
                receive()
            finally:
                arrival.ended.set()
                if self._arrivals.get(uuid) is arrival:
                    del self._arrivals[uuid]

        threading.Thread(target=run, name='virtlogd-arrival',
                         daemon=True).start()

    def wait(self, uuid: str, seconds: float) -> None:
        """Until all of a guest's history is there.

        :param seconds: since the guest has come, at most
        """
        arrival = self._arrivals.get(uuid)
        if arrival is not None and arrival.started is not None:
            arrival.ended.wait(
                max(0.0, arrival.started + seconds - time.monotonic()))

    def settle(self, uuid: str, is_coming: Callable[[], bool]) -> None:
        """Until nothing comes any more.

        :param is_coming: whether something has begun to come
        """
        self.wait(uuid, BEGIN)
        arrival = self._arrivals.get(uuid)
        if (arrival is not None and arrival.started is not None
                and is_coming()):
            arrival.ended.wait()
