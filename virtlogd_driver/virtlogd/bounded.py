# SPDX-License-Identifier: Apache-2.0
"""Nobody waits for ever for a call that may never return.

A file system that stalls, or a helper that is stopped, keeps the thread that
waits for it. Each thing that can stall has one such thread at most, so that
what stalls costs one thread, and what does not is not kept waiting.
"""

import functools
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_T = TypeVar('_T')

#: Calls what may block the process, with these arguments: in this thread, or
#: outside of eventlet (nova_edge.outside_eventlet). What is called uses the
#: connection, or the domain, that it is given, and no other.
Run = Callable[..., _T]


class NoAnswer(Exception):
    """A call has not returned in time; it goes on by itself."""


def direct(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call it in this thread."""
    return function(*arguments)


class Calls:
    """Calls may never return; each key has one at a time.

    Safe to use from many threads.

    :param run: runs what blocks, in the thread that is kept
    """

    def __init__(self, run: Run[Any] = direct) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._busy: dict[Hashable, threading.Lock] = {}

    def call(self, key: Hashable, seconds: float,
             function: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function, in a thread of its own.

        :param key: what may stall; calls with one key wait for each other
        :param seconds: for this call, and those before it
        :raises NoAnswer: it has not returned by then
        """
        deadline = time.monotonic() + seconds
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        if not busy.acquire(timeout=seconds):
            raise NoAnswer
        outcome: list[Callable[[], _T]] = []
        done = threading.Event()

        def work() -> None:
            try:
                found: _T = self._run(function, *arguments)
                outcome.append(lambda: found)
            except BaseException as e:
                outcome.append(functools.partial(_raise, e))
            finally:
                busy.release()
                done.set()

        try:
            threading.Thread(target=work, name=f'virtlogd-driver {key}',
                             daemon=True).start()
        except BaseException:
            busy.release()
            raise
        if not done.wait(max(deadline - time.monotonic(), 0)):
            raise NoAnswer
        return outcome[0]()


def _raise(error: BaseException) -> Any:
    raise error
