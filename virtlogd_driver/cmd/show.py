# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console show``."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, terminal
from virtlogd_driver.cmd.host import Host, serial_port
from virtlogd_driver.console_log import lines
from virtlogd_driver.console_log.lines import End
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot

_GAP = 'virtlogd-console: here output may be missing: it was rotated away'


def run(host: Host, arguments: Any) -> int:
    path = serial_port(
        host.guest(arguments.guest), arguments.port).log
    pieces = _wanted(host, path, arguments)
    first = next(pieces, b'')
    on_terminal = sys.stdout.isatty()
    neutral = None
    if on_terminal and not arguments.raw:
        neutral = control_sequences.Neutraliser(
            colour=terminal.has_colour(sys.stdout))
    with terminal.paged(not arguments.no_pager) as out:
        for piece in _with(first, pieces):
            if piece is None:
                if on_terminal:
                    out.write(f'\n{_GAP}\n'.encode())
                else:
                    print(_GAP, file=sys.stderr)
            elif neutral is not None:
                out.write(neutral.text(piece).encode())
            else:
                out.write(piece)
        if neutral is not None:
            out.write(neutral.text(b'', True).encode())
            if terminal.has_colour(sys.stdout):
                out.write(control_sequences.RESET.encode())
    return 0


def _with(first: bytes | None,
          rest: Iterator[bytes | None]) -> Iterator[bytes | None]:
    yield first
    yield from rest


def last_lines(host: Host, path: str, count: int) -> End:
    """Give the last lines of a log: see :func:`lines.last_lines`."""
    return lines.last_lines(
        functools.partial(host.read_tail, path),
        functools.partial(host.read_from, path), count)


def _wanted(host: Host, path: str, arguments: Any
            ) -> Iterator[bytes | None]:
    """Give the part of a log that was asked for.

    :raises LogError: it cannot be read
    """
    tail = functools.partial(host.read_tail, path)
    since = functools.partial(host.read_from, path)
    start = (_last_boot(path, arguments.port) if arguments.since_boot
             else None)
    if arguments.lines is not None:
        return (lines.last_lines_since(since, start, arguments.lines)
                if arguments.since_boot else
                last_lines(host, path, arguments.lines)).pieces
    if arguments.bytes is not None:
        return (lines.last_bytes_since(since, start, arguments.bytes)
                if arguments.since_boot else
                lines.last_bytes(tail, since, arguments.bytes)).pieces
    return lines.everything(since, End(iter(()), start))


def _last_boot(path: str, port: int) -> Position | None:
    """Tell where the output since the guest's last start begins.

    :raises LogError: that is not known
    """
    boots = boot.read(os.path.dirname(path))
    if not boots or port not in boots[-1].positions:
        raise exception.LogNotFound(
            f'No start of this guest is noted beside {path}: nova-compute '
            f'does that, with this driver. Leave out --since-boot.')
    return boots[-1].positions[port]
