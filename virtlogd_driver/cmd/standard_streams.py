# SPDX-License-Identifier: Apache-2.0
"""A command has standard input, output and error as it was started."""

import contextlib
import io
import os
import sys


def prepare() -> None:
    """Make all three streams be there, and take every text.

    One that was closed goes nowhere: otherwise the next file that is opened
    would be it, as one may be already that a library has opened when it was
    imported. A character that the locale does not have is written as its
    escape sequence.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest that is free: this one.
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or _nowhere('r')
    sys.stdout = sys.stdout or _nowhere('w')
    sys.stderr = sys.stderr or _nowhere('w')
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')


def _nowhere(mode: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open(os.devnull, f'{mode}b'), encoding='utf-8')


def abandon_output() -> None:
    """Write nothing more, so that the end of the interpreter does not."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
