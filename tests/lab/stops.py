# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin stops daemons at random, so that races show themselves::

    STOPS=virtlogd,qemu-system-x86 tools/functional.sh -p tests.lab.stops
    STOPS=virtlogd_driver.cmd.relay tools/functional.sh -p tests.lab.stops

It stops one at a time, by SIGSTOP, of those that STOPS names: as
``/proc/PID/comm`` has it, or by a word of the command line, such as the module
of a Python program. So a host is slow without being busy. A test that fails
then has looked too early, or has taken a daemon that is slow for one that
hangs, unless it says how long something takes.

No process outside of the run's namespaces can be stopped: /proc has none. What
a test has stopped or continued meanwhile, by os.kill, stays as it is.
"""

import contextlib
import os
import random
import signal
from pathlib import Path
from types import ModuleType

import pytest

from tests.lab import namespace

#: Seconds of a stop, at least and at most, and between two, at most.
SHORTEST, LONGEST = 1.0, 3.0
BETWEEN = 1.5

_NAMES = set(os.environ.get('STOPS', 'virtlogd,qemu-system-x86').split(','))


def pytest_collection_finish(session: pytest.Session) -> None:
    namespace.require()
    # Now nova is loaded, as in pauses.py. Green threads would wait for what
    # is stopped.
    from tests.lab.concurrency import native_threading
    stops = _Stops(native_threading())
    session.config.add_cleanup(stops.end)
    stops.start()


class _Stops:

    def __init__(self, threads: ModuleType) -> None:
        self._kill = os.kill
        self._lock = threads.Lock()
        self._ended = threads.Event()
        self._thread = threads.Thread(target=self._run, daemon=True)
        #: What is stopped here, and by nobody else.
        self._stopped: int | None = None

    def start(self) -> None:
        os.kill = self._kill_for_test
        self._thread.start()

    def end(self) -> None:
        """Continue what is stopped."""
        self._ended.set()
        self._thread.join()
        os.kill = self._kill

    def _kill_for_test(self, pid: int, number: int) -> None:
        with self._lock:
            if pid == self._stopped and number in (
                    signal.SIGSTOP, signal.SIGCONT):
                self._stopped = None
            self._kill(pid, number)

    def _run(self) -> None:
        while not self._ended.wait(random.uniform(0, BETWEEN)):  # noqa: S311
            with self._lock, contextlib.suppress(ProcessLookupError):
                found = _running()
                if not found:
                    continue
                self._stopped = random.choice(found)  # noqa: S311
                self._kill(self._stopped, signal.SIGSTOP)
            self._ended.wait(random.uniform(SHORTEST, LONGEST))  # noqa: S311
            with self._lock, contextlib.suppress(ProcessLookupError):
                if self._stopped is not None:
                    self._kill(self._stopped, signal.SIGCONT)
                    self._stopped = None


def _running() -> list[int]:
    """What has one of the names, and is not stopped."""
    found = []
    for entry in map(Path, os.scandir('/proc')):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        # One that has ended meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            begin, _, fields = (entry / 'stat').read_text().rpartition(')')
            words = (entry / 'cmdline').read_bytes().split(b'\0')
            if fields.split()[0] not in 'TZ' and not _NAMES.isdisjoint(
                    [begin.partition('(')[2], *map(os.fsdecode, words)]):
                found.append(int(entry.name))
    return found
