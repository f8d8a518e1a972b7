# SPDX-License-Identifier: Apache-2.0
"""The operator's terminal has an encoding, a pager, colours, a raw mode."""

import codecs
import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import IO

from virtlogd_driver.cmd import control_sequences

DIM, RED, GREEN, YELLOW = '2', '31', '32', '33'
#: To tell guests apart.
PALETTE = ('36', '33', '35', '32', '34', '31')

#: What git gives less too: end if one screen is enough, show colours, leave
#: the text on the screen.
_LESS = 'FRX'


def has_colour(stream: IO[str]) -> bool:
    """Tell whether to write colours (https://no-color.org)."""
    return (stream.isatty() and not os.environ.get('NO_COLOR')
            and os.environ.get('TERM') != 'dumb')


def paint(text: str, colour: str, wanted: bool) -> str:
    """Paint a text in a colour, if colours are wanted."""
    return f'\x1b[{colour}m{text}{control_sequences.RESET}' if wanted else text


def width() -> int:
    """Count the columns of the terminal."""
    return shutil.get_terminal_size().columns


def encode(text: str, errors: str = 'backslashreplace') -> bytes:
    """Give the bytes that standard output takes for a text.

    A terminal reads them in its own encoding: what is a harmless character in
    UTF-8 may have a control character (C1) in it there. Programs and files
    have UTF-8.

    :param errors: what becomes of characters that the encoding does not have
    """
    encoding = _encoding()
    if controls := _controls(encoding):
        text = text.translate(controls)
    return text.encode(encoding, errors)


def takes_utf8() -> bool:
    """Whether standard output takes any character, as UTF-8."""
    return codecs.lookup(_encoding()).name == 'utf-8'


def had(text: str) -> str:
    """Give a text of the characters that standard output has."""
    return text if takes_utf8() else encode(text).decode(_encoding())


def _encoding() -> str:
    return sys.stdout.encoding if sys.stdout.isatty() else 'utf-8'


@functools.cache
def _controls(encoding: str) -> dict[int, str]:
    """Give escapes of the characters that an encoding has in place of C1.

    xterm, and the console of Linux, obey C1 in any such encoding.
    """
    given = {}
    for byte in range(0x80, 0xa0):
        # In one of several bytes for a character this may be none.
        with contextlib.suppress(UnicodeDecodeError):
            code = ord(bytes((byte,)).decode(encoding))
            given[code] = f'\\u{code:04x}'
    return given


@contextlib.contextmanager
def paged(wanted: bool = True) -> Iterator[IO[bytes]]:
    """Give standard output, on a terminal through a pager as git does.

    ``PAGER`` names it; empty or "cat" is none. Leaving the pager early ends
    the block quietly.

    :param wanted: False: no pager
    """
    command = shlex.split(os.environ.get('PAGER', 'less'))
    if (not wanted or not sys.stdout.isatty() or not command
            or command == ['cat'] or shutil.which(command[0]) is None):
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    pager = subprocess.Popen(
        command, stdin=subprocess.PIPE,
        env={**os.environ, 'LESS': os.environ.get('LESS', _LESS)})
    assert pager.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
            yield pager.stdin
    finally:
        # The pager has the terminal: it decides what Ctrl-C is to do.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):
            pager.stdin.close()
        pager.wait()
        signal.signal(signal.SIGINT, handler)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Give a terminal that hands on every key; as it was, whatever happens.

    :param fd: a descriptor of the terminal
    """
    before = termios.tcgetattr(fd)
    handlers = {number: signal.signal(number, _end)
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        # Not to be stopped by a terminal whose other end is gone.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
