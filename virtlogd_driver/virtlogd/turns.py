# SPDX-License-Identifier: Apache-2.0
"""Who has to wait for disks takes turns, and nobody waits for another's disk.

One thread gives the turns, one after the other, so that a turn costs next to
nothing. One that does not end soon is left to its thread: another thread goes
on with those that follow, and whoever has that turn gets no other until it has
ended. So a disk that hangs costs one thread, up to a bound for each file
system and one for all: what it may not have in threads has to wait.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from virtlogd_driver.virtlogd import disk

#: Seconds that a turn has until others go on beside it; and while one has
#: been left: the next may well be at the same disk.
PATIENCE, _SHORT_PATIENCE = 0.5, 0.1
#: Turns that may be left at one file system, and in all.
MOST_OF_ONE, MOST = 16, 256
#: Seconds between two looks whether to end, while a turn is waited for.
_LOOK = 0.25


class Taker(Protocol):
    """A taker has turns, one at a time."""

    @property
    def path(self) -> str:
        """A path by whose name it is told which file system it is at."""

    @property
    def size(self) -> int:
        """Bytes that it has collected in its turn."""

    def turn(self) -> None:
        """Do what is to be done, in some thread."""


class _Worker:
    """A thread gives turns."""

    __slots__ = ('begun', 'taker')

    def __init__(self) -> None:
        self.taker: Taker | None = None
        #: When its turn has begun, by time.monotonic.
        self.begun = 0.0


class Turns:
    """Turns are given to those that have something to do.

    All but the turns themselves is for one thread.
    """

    def __init__(self, ended: Callable[[], None], limit: int, *,
                 patience: float = PATIENCE,
                 mounted: Callable[[], Iterable[str]] = disk.mounts) -> None:
        """
        :param ended: is called when a turn that was left has ended, in its
            thread
        :param limit: bytes that may be collected until they are fetched
        :param patience: seconds that a turn has until it is left
        :param mounted: gives the mount points of this host
        """
        self._ended = ended
        self._limit = limit
        self._patience = patience
        self._mounted = mounted
        self._changed = threading.Condition(threading.Lock())
        self._worker: _Worker | None = None
        self._todo: deque[Taker] = deque()
        #: Those that would probably be left as well.
        self._held_back: list[Taker] = []
        self._left: dict[Taker, float] = {}
        self._done: list[tuple[Taker, BaseException | None]] = []
        self._size = 0
        self._taking: set[Taker] = set()
        self._closed = False

    def has(self, taker: Taker) -> bool:
        """Tell whether its turn has not ended, or is still to come."""
        return taker in self._taking

    @property
    def interrupted(self) -> bool:
        """Tell whether some wait for what was collected to be fetched."""
        return self._worker is not None and bool(self._todo)

    def held_back(self) -> list[Taker]:
        """Give those that have to wait, as too many turns were left."""
        with self._changed:
            return list(self._held_back)

    def left(self) -> list[tuple[Taker, float]]:
        """Give those whose turn was left, and its seconds so far."""
        now = time.monotonic()
        with self._changed:
            return [(taker, now - begun)
                    for taker, begun in self._left.items()]

    def run(self, takers: Collection[Taker],
            ending: Callable[[], bool]) -> list[Taker]:
        """Give each a turn, and wait until it has had it, or was left.

        It may be called again without any, to fetch what has ended since, and
        to go on where so much was collected that it was to be fetched first.

        :param ending: tells whether to wait no more
        :returns: those whose turn has ended, also ones that had been left
        :raises BaseException: what a turn has raised
        """
        self._taking.update(takers)
        with self._changed:
            self._todo.extend(takers)
            self._size = 0
            self._set_to_work()
            while self._is_at_work() and not ending():
                self._changed.wait(self._until_left())
                if self._until_left() <= 0:
                    self._leave()
            done, self._done = self._done, []
        for taker, _ in done:
            self._taking.discard(taker)
        for _, error in done:
            if error is not None:
                raise error
        return [taker for taker, _ in done]

    def finish(self, taker: Taker, seconds: float) -> bool:
        """Give one a last turn before all others, and wait for its end.

        Where it has one just now that is waited for first.

        :returns: whether it came in time
        """
        deadline = time.monotonic() + seconds

        def over() -> bool:
            return time.monotonic() >= deadline

        with self._changed:
            self._taking.difference_update(self._todo, self._held_back)
            self._todo.clear()
            self._held_back.clear()
        for takers in ((), (taker,)):
            self.run(takers, over)
            while taker in self._taking:
                if over():
                    return False
                with self._changed:
                    if not self._done:
                        self._changed.wait(_LOOK)
                self.run((), over)
        return True

    def close(self) -> bool:
        """End; whether no turn goes on."""
        with self._changed:
            self._closed = True
            over = not self._left and (
                self._worker is None or self._worker.taker is None)
            self._worker = None
            self._changed.notify_all()
        return over

    # All of this with the lock held

    def _is_at_work(self) -> bool:
        if self._worker is None:
            return False
        return self._worker.taker is not None or (
            bool(self._todo) and self._size < self._limit)

    def _set_to_work(self) -> None:
        """Have a thread give turns to those that have something to do."""
        self._hold_back()
        if not self._todo:
            return
        if self._worker is not None:
            self._changed.notify_all()
            return
        worker = self._worker = _Worker()
        try:
            threading.Thread(target=self._work, args=(worker,),
                             name='turns', daemon=True).start()
        except RuntimeError:
            # There is none to be had: it is tried again.
            self._worker = None

    def _until_left(self) -> float:
        worker = self._worker
        if worker is None or worker.taker is None:
            return _LOOK
        patience = (min(self._patience, _SHORT_PATIENCE) if self._left
                    else self._patience)
        return min(_LOOK, worker.begun + patience - time.monotonic())

    def _leave(self) -> None:
        """Leave a turn to its thread, and go on in another one."""
        worker, self._worker = self._worker, None
        assert worker is not None
        assert worker.taker is not None
        self._left[worker.taker] = worker.begun
        self._set_to_work()

    def _hold_back(self) -> None:
        """Give no turn where enough were left."""
        if len(self._left) < MOST_OF_ONE or not self._todo:
            return
        mounted = list(self._mounted())
        full = {mount for mount, paths in disk.by_mount(
            (taker.path for taker in self._left), mounted).items()
            if len(paths) >= MOST_OF_ONE}
        wait = {path for mount, paths in disk.by_mount(
            (taker.path for taker in self._todo), mounted).items()
            if mount in full or len(self._left) >= MOST for path in paths}
        todo, self._todo = self._todo, deque()
        for taker in todo:
            (self._held_back if taker.path in wait
             else self._todo).append(taker)

    # In the threads

    def _work(self, worker: _Worker) -> None:
        while self._next(worker):
            taker = worker.taker
            assert taker is not None
            error: BaseException | None = None
            try:
                taker.turn()
            except BaseException as raised:   # for who has given the turn
                error = raised
            if not self._end(worker, taker, error):
                return

    def _next(self, worker: _Worker) -> bool:
        """Take the next one, as soon as there is one."""
        with self._changed:
            while worker is self._worker:
                if self._todo and self._size < self._limit:
                    worker.taker = self._todo.popleft()
                    worker.begun = time.monotonic()
                    return True
                self._changed.notify_all()
                self._changed.wait()
            return False

    def _end(self, worker: _Worker, taker: Taker,
             error: BaseException | None) -> bool:
        """Take note that a turn has ended; whether to go on."""
        with self._changed:
            worker.taker = None
            self._done.append((taker, error))
            self._size += taker.size
            if worker is self._worker:
                return True
            self._left.pop(taker, None)
            self._todo.extend(self._held_back)
            self._held_back.clear()
            self._changed.notify_all()
            if not self._closed:
                self._ended()
            return False
