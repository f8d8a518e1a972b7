# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console export`` copies a guest's logs for somebody else."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, deleted, table
from virtlogd_driver.cmd.host import Host, serial_ports
from virtlogd_driver.console_log import export, generation
from virtlogd_driver.console_log.export import (
    DirectoryTarget,
    Exported,
    TarTarget,
)

#: Seconds that nobody needs to be told about.
_SHORT = 0.5
_BAR = 30

_Export = Callable[[export.Target], Exported]


def run(host: Host, arguments: Any) -> int:
    guest = deleted.guest_or_kept(host, arguments)
    if isinstance(guest, deleted.Kept):
        logs, about = deleted.logs(guest), deleted.about(guest)
    else:
        logs = [(port.number, port.log) for port in serial_ports(guest)
                if port.device.log_file is not None]
        logs += _left(logs)
        about = {'guest': guest.name, 'uuid': guest.uuid,
                 'state': guest.state, 'host': socket.gethostname()}
    bar = _Progress(export.size(logs))

    def copy(target: export.Target) -> Exported:
        try:
            return export.export(logs, target, about, bar.more)
        finally:
            bar.end()

    try:
        exported = _to(arguments.target, guest.name, copy)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        wanted = ('the name of what is not there yet'
                  if isinstance(error, FileExistsError) else
                  'a place that can be written, with room for it')
        raise exception.LogError(
            f'{arguments.target} cannot be written: {error.strerror}. Give '
            f'{wanted}.') from error
    _say(exported, arguments.target)
    return 0


def _left(logs: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Give logs of ports that the guest had, beside those of what it has."""
    present: dict[str, set[int]] = {}
    for _, path in logs:
        file = generation.parse(os.path.basename(path))
        if file is not None:
            present.setdefault(os.path.dirname(path), set()).add(file.port)
    found: list[tuple[int, str]] = []
    for directory, ports in present.items():
        try:
            names = os.listdir(directory)
        except OSError:
            # What the guest has now is read from there: that says it.
            continue
        for port in sorted({file.port for file in map(generation.parse, names)
                            if file is not None} - ports):
            newest = generation.newest(names, port)
            assert newest is not None
            found.append((port, os.path.join(
                directory, generation.live_name(port, newest))))
    return found


def _to(target: str, name: str, copy: _Export) -> Exported:
    """Copy to what a target names; what is there is there whole.

    :raises OSError: it cannot be written, or is there already
    """
    prefix = f'console-{name}'.replace('/', '_')
    if target == '-':
        if sys.stdout.isatty():
            raise exception.LogError(
                'An archive is not for a terminal: redirect it, or give the '
                'name of a file.')
        with TarTarget(sys.stdout.buffer, prefix) as archive:
            return copy(archive)
    target = target.rstrip('/')
    if os.path.lexists(target):
        raise FileExistsError(0, 'it is there already')
    part = f'{target}.part-{os.getpid()}'
    try:
        if target.endswith(('.tar.gz', '.tgz')):
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                              0o600), 'wb') as out, TarTarget(
                                  out, prefix) as archive:
                exported = copy(archive)
        else:
            os.mkdir(part, mode=0o700)
            exported = copy(DirectoryTarget(part))
        os.rename(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if os.path.lexists(part):
            os.unlink(part)
        raise
    return exported


class _Progress:
    """A bar shows on standard error how far a long export is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._begun = time.monotonic()
        self._shown = 0.0 if sys.stderr.isatty() else float('inf')

    def more(self, count: int) -> None:
        """Show that so many more bytes were copied."""
        self._done += count
        now = time.monotonic()
        if now - self._begun < _SHORT or now - self._shown < 0.1:
            return
        self._shown = now
        share = min(1.0, self._done / self._total) if self._total else 1.0
        filled = round(share * _BAR)
        print(f'\r[{"#" * filled}{"." * (_BAR - filled)}] {share:4.0%} of '
              f'{table.size(self._total)} ', end='', file=sys.stderr,
              flush=True)

    def end(self) -> None:
        """Take the bar away."""
        if 0.0 < self._shown < float('inf'):
            print('\r\x1b[K', end='', file=sys.stderr, flush=True)


def _say(exported: Exported, target: str) -> None:
    entries = exported.entries
    total = sum(entry.size for entry in entries)
    files = '1 file' if len(entries) == 1 else f'{len(entries)} files'
    where = '' if target == '-' else f': {target}'
    print(f'{table.size(total)} in {files} and {export.MANIFEST}{where}',
          file=sys.stderr)
    unread = {entry.name: sum(size for _, size in entry.unread)
              for entry in entries}
    for name, reason in exported.unreadable.items():
        missing = (f'{unread[name]} bytes of {name} are NULs'
                   if unread.get(name) else f'{name} is left out')
        print(control_sequences.visible(f'{missing}: {reason}'),
              file=sys.stderr)
