# SPDX-License-Identifier: Apache-2.0
"""A thread for each departure sends what waits, until it is there.

A guest whose host does not answer costs no other guest anything.
"""

import threading
from collections.abc import Callable

#: Tries once; seconds until the next time, None: it is done.
Attempt = Callable[[str], float | None]

#: Seconds that the end of nova-compute waits for a copy. What has not come
#: by then is tried again by the next one.
STOP_TIMEOUT = 5.0


class Carrier:
    """Carries outboxes, by their paths."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._lock = threading.Lock()
        self._threads: dict[str, tuple[threading.Thread,
                                       threading.Event]] = {}
        self._stopped = False

    def start(self, path: str, delay: float = 0) -> None:
        """Carry an outbox from now on; now, if it waits for its next try.

        :param delay: seconds until the first try
        """
        with self._lock:
            if self._stopped:
                return
            if path in self._threads:
                self._threads[path][1].set()
                return
            wake = threading.Event()
            thread = threading.Thread(
                target=self._run, args=[path, wake, delay],
                name='virtlogd-departure', daemon=True)
            # Where there can be no more threads, there is nothing to wait for.
            thread.start()
            self._threads[path] = thread, wake

    def stop(self) -> None:
        """Make no further try; one that is made goes on for a moment."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads.values())
        for _, wake in threads:
            wake.set()
        for thread, _ in threads:
            thread.join(STOP_TIMEOUT)

    def wait(self, path: str, seconds: float) -> bool:
        """Whether an outbox is carried no more, or is so in time."""
        with self._lock:
            thread, _ = self._threads.get(path, (None, None))
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def _run(self, path: str, wake: threading.Event,
             delay: float | None) -> None:
        try:
            while delay is not None:
                wake.wait(delay)
                if self._stopped:
                    return
                wake.clear()
                delay = self._attempt(path)
        finally:
            with self._lock:
                self._threads.pop(path, None)
