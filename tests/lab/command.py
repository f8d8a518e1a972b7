# SPDX-License-Identifier: Apache-2.0
"""An operator runs ``virtlogd-console`` in a pipe, or on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import fixtures

from tests.lab.wait import readable

_MODULE = 'virtlogd_driver.cmd.console'
_ROOT = str(Path(__file__).parents[2])

#: Variables of whoever runs the tests that say whether output is coloured.
COLOURS = ('NO_COLOR', 'FORCE_COLOR', 'PYTHON_COLORS')
#: Python itself colours no help and no traceback, as it does from 3.13 and
#: 3.14 on; what the commands colour is theirs.
PLAIN_PYTHON = {'PYTHON_COLORS': '0'}


class Console(fixtures.Fixture):
    """Runs ``virtlogd-console``.

    :param uri: of libvirt
    :param virtlogd_socket: virtlogd's socket; None: there is none
    :param instances_path: nova's; None: there is none
    """

    def __init__(self, uri: str,
                 virtlogd_socket: str | os.PathLike[str] | None = None,
                 instances_path: str | os.PathLike[str] | None = None
                 ) -> None:
        super().__init__()
        self._uri = uri
        self._instances_path = instances_path
        self._socket = virtlogd_socket

    def _setUp(self) -> None:
        directory = Path(self.useFixture(fixtures.TempDir()).path)
        conf = directory / 'nova.conf'
        conf.write_text(
            '[DEFAULT]\n'
            f'instances_path = {self._instances_path or directory / "none"}\n'
            '[virtlogd]\n'
            f'virtlogd_socket = {self._socket or directory / "none"}\n'
            f'qemu_conf = {directory}/qemu.conf\n'
            f'virtlogd_conf = {directory}/virtlogd.conf\n')
        self.command = [sys.executable, '-m', _MODULE,
                        '--config-file', str(conf), '--connect', self._uri]
        self._running: list[subprocess.Popen[bytes]] = []
        self.addCleanup(self._end)

    def _end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items()
                if name not in ('PAGER', 'LESS', *COLOURS)}
        return {**kept, 'PYTHONPATH': _ROOT, 'TERM': 'xterm', **PLAIN_PYTHON,
                **more}

    def run(self, *arguments: str, seconds: float = 60.0,
            cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end, with pipes."""
        return subprocess.run(
            [*self.command, *arguments], check=False, capture_output=True,
            stdin=subprocess.DEVNULL, timeout=seconds, cwd=cwd,
            env=self._environment({}))

    def output(self, *arguments: str) -> bytes:
        """What it prints.

        :raises AssertionError: it failed
        """
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start(self, *arguments: str, output: Path, messages: Path
              ) -> subprocess.Popen[bytes]:
        """Start it; what it prints, and what it says, goes into files."""
        with output.open('wb') as out, messages.open('wb') as error:
            process = subprocess.Popen(
                [*self.command, *arguments], stdin=subprocess.DEVNULL,
                stdout=out, stderr=error, env=self._environment({}))
        self._running.append(process)
        return process

    def on_terminal(self, *arguments: str, columns: int = 80,
                    **environment: str) -> 'PseudoTerminal':
        """Start it on a terminal of its own."""
        terminal = PseudoTerminal(
            [*self.command, *arguments], columns,
            self._environment(environment))
        self._running.append(terminal.process)
        self.addCleanup(terminal.close)
        return terminal


class PseudoTerminal:
    """A terminal with a program on it.

    :ivar seen: all bytes that the terminal was sent.
    """

    def __init__(self, command: Sequence[str], columns: int,
                 environment: Mapping[str, str]) -> None:
        self.seen = b''
        self._fd, terminal = pty.openpty()
        self.before = termios.tcgetattr(terminal)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ,
                    struct.pack('HHHH', 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal,
            env={**environment, 'COLUMNS': str(columns)},
            start_new_session=True, preexec_fn=_take_terminal)
        self._terminal = terminal

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._terminal)

    @property
    def attributes(self) -> list[object]:
        """What the terminal is set to."""
        return termios.tcgetattr(self._terminal)

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self._fd, text)

    def read_until(self, text: bytes, seconds: float = 30.0) -> bytes:
        """Look until a text appears; all that was seen.

        :raises TimeoutError: it does not
        """
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            if not self._read(deadline):
                raise TimeoutError(f'{text!r}: not within {seconds:g} s; '
                                   f'seen: {self.seen[-2000:]!r}')
        return self.seen

    def wait(self, seconds: float = 30.0) -> int:
        """Look until the program ends; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self._read(min(deadline, time.monotonic() + 0.05))
            if time.monotonic() > deadline:
                raise TimeoutError(f'seen: {self.seen[-2000:]!r}')
        while self._read(time.monotonic()):
            pass
        return self.process.returncode

    def _read(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if not readable(self._fd, left):
            return False
        self.seen += os.read(self._fd, 1 << 16)
        return True


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
