# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console show`` shows a guest's console log."""

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import (
    control_sequences,
    deleted,
    interleave,
    terminal,
    when,
)
from virtlogd_driver.cmd.host import Host, serial_port
from virtlogd_driver.cmd.plain import Plain
from virtlogd_driver.cmd.when import Span
from virtlogd_driver.console_log import lines
from virtlogd_driver.console_log.lines import End
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot
from virtlogd_driver.stream import state

_GAP = 'virtlogd-console: here output may be missing: it was rotated away'


def run(host: Host, arguments: Any) -> int:
    guest = deleted.guest_or_kept(host, arguments)
    path = (deleted.log(guest, arguments.port)
            if isinstance(guest, deleted.Kept)
            else serial_port(guest, arguments.port).log)
    span = _span(path, arguments, guest.uuid)
    pieces = _wanted(host, path, arguments, span)
    first = next(pieces, b'')
    if arguments.since is not None:
        _say_begin(arguments.since, span)
    on_terminal = sys.stdout.isatty()
    text = None
    if arguments.plain:
        text = Plain().text
    elif on_terminal and not arguments.raw:
        text = control_sequences.Neutraliser(
            colour=terminal.has_colour(sys.stdout)).text
    with terminal.paged(not arguments.no_pager) as out:
        for piece in _with(first, pieces):
            if piece is None:
                if on_terminal:
                    out.write(f'\n{_GAP}\n'.encode())
                else:
                    print(_GAP, file=sys.stderr)
            elif text is not None:
                out.write(terminal.encode(text(piece)))
            else:
                out.write(piece)
        if text is not None:
            out.write(terminal.encode(text(b'', True)))
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


def _span(path: str, arguments: Any, uuid: str) -> Span:
    """Give the part of a log that was asked for, by starts and times.

    :raises LogError: it is not known
    :raises InvalidState: the state file of a stream cannot be read
    """
    if arguments.since_boot:
        return Span(_last_boot(path, arguments.port))
    if arguments.boot is not None:
        return when.of_boot(path, arguments.port, arguments.boot)
    if arguments.since is not None:
        return when.since(path, arguments.port, arguments.since, _marks(
            arguments.state, (uuid, arguments.port)))
    return Span()


def _marks(state_file: str | None, key: tuple[str, int]
           ) -> tuple[state.Mark, ...]:
    """Give the times that a stream has noted of a log."""
    if state_file is None:
        return ()
    logs = state.load(state_file)
    if logs is None:
        raise exception.InvalidState(
            state_file, 'there is no such file',
            'Give the one that "virtlogd-console stream --state" keeps.')
    return logs[key].marks if key in logs else ()


def _say_begin(wanted: float, span: Span) -> None:
    """Say where it begins, which is where a start or a stream's time is."""
    begin = ('the beginning of the log, as no earlier time is noted'
             if span.time is None else interleave.stamp(span.time))
    print(f'virtlogd-console: from {begin}, for what came since '
          f'{interleave.stamp(wanted)}', file=sys.stderr)


def _wanted(host: Host, path: str, arguments: Any, span: Span
            ) -> Iterator[bytes | None]:
    """Give what was asked for of a part of a log.

    :raises LogError: it cannot be read
    """
    tail = functools.partial(host.read_tail, path)
    since: lines.ReadFrom = functools.partial(host.read_from, path)
    if span.stop is not None:
        since = lines.until(since, span.stop)
    if arguments.lines is not None:
        return (last_lines(host, path, arguments.lines) if span == Span() else
                lines.last_lines_since(since, span.start, arguments.lines)
                ).pieces
    if arguments.bytes is not None:
        if span == Span():
            return lines.last_bytes(tail, since, arguments.bytes).pieces
        return lines.last_bytes_since(
            since, span.start, arguments.bytes,
            None if span.stop is None else
            lines.count_bytes(since, span.start)).pieces
    return lines.everything(since, End(iter(()), span.start))


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
