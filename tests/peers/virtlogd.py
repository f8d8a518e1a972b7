# SPDX-License-Identifier: Apache-2.0
"""A stand-in for virtlogd writes and rotates logs of guests without QEMU.

A guest runs while there is a file of its name in ``running``; whoever starts
or stops it holds a lock on that file meanwhile.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a line, its number and the newline included.
LINE = 100
MAX_SIZE = 32 << 10
MAX_BACKUPS = 3


def line(guest: str, number: int) -> bytes:
    """A line of a guest's output: it says whose it is, and which one."""
    return f'{guest} {number:09} '.encode().ljust(LINE - 1, b'.') + b'\n'


@contextlib.contextmanager
def held(running: Path, guest: str) -> Iterator[None]:
    """No line of this guest is written meanwhile."""
    with open(running / guest, 'ab') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Virtlogd:
    """Writes ``instances/<guest>/console.log`` below a directory."""

    def __init__(self, directory: Path, lines: int = 10) -> None:
        self._running = directory / 'running'
        self._instances = directory / 'instances'
        self._lines = lines
        self._next: dict[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            if self._running.is_dir():
                for guest in os.listdir(self._running):
                    self._pass(guest)

    def _pass(self, guest: str) -> None:
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(open(self._running / guest, 'rb'))
            except FileNotFoundError:
                return
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self._running / guest).exists():
                return
            first = self._next.get(guest, 0)
            self._next[guest] = first + self._lines
            self._write(
                self._instances / guest / 'console.log',
                b''.join(line(guest, number) for number
                         in range(first, first + self._lines)))

    def _write(self, path: Path, data: bytes) -> None:
        """As virtlogd: files of exactly the size, whatever is in them."""
        while data:
            with open(path, 'ab') as out:
                room = MAX_SIZE - out.tell()
                out.write(data[:room])
            data = data[room:]
            if data:
                for number in range(MAX_BACKUPS - 1, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f'{path}.{number - 1}', f'{path}.{number}')
                os.rename(path, f'{path}.0')
