# SPDX-License-Identifier: Apache-2.0
"""Directories hang: who asks for anything in them waits, but the test."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from virtlogd_driver.console_log import follow

#: System calls on a path or a descriptor.
CALLED = ('stat', 'lstat', 'open', 'access', 'listdir', 'fstat', 'pread',
          'close')
#: What hangs: each by itself, and all of them.
CALLS = ('stat', 'lstat', 'open', 'pread', 'inotify', 'all')


class Hanging:
    """Some directories hang, as long as they are said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go: dict[str, threading.Event] = {}
        self._calls: dict[str, str] = {}
        #: Threads that wait.
        self.waiting = 0
        for name in CALLED:
            self._patch(monkeypatch, name)
        add = follow._Inotify.add

        def watch(inotify: follow._Inotify, path: str,
                  mask: int) -> int | None:
            self._wait('inotify', path)
            return add(inotify, path, mask)

        monkeypatch.setattr(follow._Inotify, 'add', watch)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(os, name)

        def call(where: Any, *arguments: Any, **names: Any) -> Any:
            if self._go:
                path = _path_of(where)
                if names.get('dir_fd') is not None:
                    path = f'{_path_of(names["dir_fd"])}/{path}'
                self._wait(name, path)
            return real(where, *arguments, **names)

        monkeypatch.setattr(os, name, call)

    def _wait(self, name: str, path: str) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        for directory, go in list(self._go.items()):
            if (self._calls[directory] in (name, 'all')
                    and f'{path}/'.startswith(f'{directory}/')):
                self.waiting += 1
                assert go.wait(60)
                self.waiting -= 1

    def hang(self, directory: Path, call: str = 'all') -> None:
        """Have a system call hang there."""
        self._calls[str(directory)] = call
        self._go[str(directory)] = threading.Event()

    def release(self, directory: Path) -> None:
        self._go.pop(str(directory)).set()

    def release_all(self) -> None:
        for directory in list(self._go):
            self.release(Path(directory))


def _path_of(where: Any) -> str:
    try:
        return (os.readlink(f'/proc/self/fd/{where}')
                if isinstance(where, int) else os.fsdecode(where or '.'))
    except OSError:   # closed already
        return ''
