# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console show``."""

import os
import sys
from collections.abc import Iterator
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, terminal
from virtlogd_driver.cmd.host import Host, serial_port
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot

#: Bytes of one read.
_CHUNK = 1 << 20
#: Bytes that are read first for the last lines.
_LINES_CHUNK = 1 << 16

_GAP = 'virtlogd-console: here output may be missing: it was rotated away'


def run(host: Host, arguments: Any) -> int:
    path = serial_port(
        host.guest(arguments.guest), arguments.port).log
    if arguments.bytes is not None:
        pieces: Iterator[bytes | None] = iter(
            [host.read_tail(path, arguments.bytes).data])
    elif arguments.lines is not None:
        pieces = iter([last_lines(host, path, arguments.lines)[0]])
    elif arguments.since_boot:
        pieces = _all(host, path, _last_boot(path, arguments.port))
    else:
        pieces = _all(host, path)
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


def last_lines(host: Host, path: str, count: int
               ) -> tuple[bytes, Position | None]:
    """The last lines of a log, and where they end.

    The last of them may be unfinished.

    :raises LogError: it cannot be read
    """
    limit = _LINES_CHUNK if count else 0
    while True:
        read = host.read_tail(path, limit)
        data = read.data
        start = len(data) - data.endswith(b'\n')
        for _ in range(count):
            start = data.rfind(b'\n', 0, start)
            if start < 0:
                break
        if start >= 0 or len(data) < limit or not count:
            return data[start + 1:], read.position
        limit *= 4


def _last_boot(path: str, port: int) -> Position | None:
    """Where the output since the guest's last start begins.

    :raises LogError: that is not known
    """
    boots = boot.read(os.path.dirname(path))
    if not boots or port not in boots[-1].positions:
        raise exception.LogNotFound(
            f'No start of this guest is noted beside {path}: nova-compute '
            f'does that, with this driver. Leave out --since-boot.')
    return boots[-1].positions[port]


def _all(host: Host, path: str,
         start: Position | None = None) -> Iterator[bytes | None]:
    """What is in a log now; None where bytes may be missing.

    :param start: where to begin; None: its very beginning
    :raises LogError: it cannot be read
    """
    since = host.read_from(path, start, _CHUNK)
    left = len(since.data) + since.behind
    if since.missed != 0:
        yield None
    yield since.data
    left -= len(since.data)
    while left > 0:
        since = host.read_from(path, since.position, _CHUNK)
        if since.missed != 0:
            yield None
        if not since.data:
            return
        yield since.data
        left -= len(since.data)
