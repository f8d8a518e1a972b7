# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console list`` shows the serial ports of this host's guests."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import (
    control_sequences,
    deleted,
    history,
    table,
    terminal,
)
from virtlogd_driver.cmd.disks import WaitedOnce
from virtlogd_driver.cmd.host import (
    Host,
    SerialPort,
    serial_ports,
)
from virtlogd_driver.console_log import files
from virtlogd_driver.node import hypervisor
from virtlogd_driver.virtlogd.disk import Disks
from virtlogd_driver.virtlogd.port import HELD_REMEDY, text

_HEAD = ('NAME', 'STATE', 'PORT', 'DEVICE', 'ADDRESS', 'LOG', 'SIZE',
         'ROTATED', 'WRITTEN', 'UUID', 'FILE')
#: Of guests that are relayed; before LOG.
_VIEWERS = 'VIEWERS'
_RIGHT = frozenset({'PORT', _VIEWERS, 'SIZE', 'ROTATED', 'WRITTEN'})
_COLOURS = {'alive': terminal.GREEN, 'dead': terminal.RED,
            'unlinked': terminal.RED, 'held': terminal.YELLOW,
            'unrotated': terminal.YELLOW, 'unknown': terminal.YELLOW,
            'shut off': terminal.DIM, 'crashed': terminal.RED}


@dataclass(frozen=True, slots=True)
class Row:
    """A row shows a serial port of a guest, or a guest without one."""

    guest: hypervisor.Guest
    port: SerialPort | None
    #: See Host.log_states.
    log: str
    #: None: there is no log, or it may not be looked at.
    usage: files.Usage | None
    #: What of it cannot be told, and why; empty: all can.
    unclear: str = ''
    #: How many are at its console; None: the relay is not, or the kernel does
    #: not tell.
    viewers: int | None = None

    @property
    def name(self) -> str:
        return self.port.label if self.port else self.guest.name

    @property
    def matter(self) -> str:
        """Tell what needs doing, or cannot be told; empty: nothing."""
        said = [self.unclear] if self.unclear else []
        if self.log == 'unlinked':
            said.append(
                'its log file is not at its path any more: it was removed, '
                'renamed or replaced, and what the guest writes is lost. Run '
                f'"virtlogd-console reattach {self.guest.name}".')
        if self.log == 'held':
            said.append(
                'its log is open at virtlogd though the guest is off, which '
                'will not start ("Device or resource busy"). '
                f'{HELD_REMEDY}')
        return ' '.join(said)

    @property
    def address(self) -> str:
        """Tell where an operator finds the console."""
        device = self.port.device if self.port else None
        if device is None:
            return ''
        if device.address is not None:
            return text(device.address)
        if device.type == 'pty' and device.source is not None:
            return device.source.path or ''
        return device.socket_path or ''


def run(host: Host, arguments: Any) -> int:
    if arguments.deleted:
        return deleted.show_list(arguments)
    if arguments.names:
        for guest in host.guests():
            print(guest.name, guest.uuid, sep='\n')
        return 0
    state, reason = host.virtlogd()
    if state == 'hung':
        raise exception.VirtlogdHung(
            f'{reason} libvirt is not asked, as it may hang with it.')
    disks = WaitedOnce()
    found = rows(host, disks)
    if arguments.json:
        json.dump([_json(row) for row in found], sys.stdout, indent=2)
        print()
        return 0
    for line in _lines(found):
        print(line)
    for port in host.closed([row.port for row in found if row.port
                             and row.log in ('alive', 'dead', 'unlinked')]):
        _say(f'{port.label}: nobody listens on its console. Run '
             f'"virtlogd-console reattach {port.guest.name}".')
    for row in found:
        if row.matter:
            _say(f'{row.name}: {row.matter}')
    for line in history.said(cfg.CONF.instances_path, disks):
        _say(line)
    if state != 'up':
        print(reason if state == 'refused' else
              f'virtlogd is {state}: {reason}', file=sys.stderr)
    return 0


def _say(text: str) -> None:
    print(control_sequences.visible(text), file=sys.stderr)


def rows(host: Host, disks: Disks) -> list[Row]:
    """Give all ports of all guests, with their logs.

    What is the matter with one guest, its XML or its files, is said of it, and
    takes nothing from the others.

    :param disks: asks file systems
    :raises HostError: libvirt does not answer
    """
    found: list[tuple[hypervisor.Guest, SerialPort | None, str]] = []
    for guest in host.guests():
        try:
            ports = serial_ports(guest)
        except exception.InvalidGuestXML as error:
            found.append((guest, None, str(error)))
            continue
        found += [(guest, port, port.device.unclear)
                  for port in ports] or [(guest, None, '')]
    known = [port for _, port, _ in found if port]
    states = iter(host.log_states(known, disks))
    viewers = iter(_viewers(host, known))
    return [_row(guest, port, next(states), unclear, disks, next(viewers))
            if port else _row(guest, None, 'unknown' if unclear else 'none',
                              unclear, disks)
            for guest, port, unclear in found]


def _viewers(host: Host, ports: Sequence[SerialPort]) -> list[int | None]:
    """Count how many are at each console that is relayed."""
    relayed = [one.device.address is not None
               and host.is_relayed(one.device.address[0]) for one in ports]
    if any(relayed):
        # Where it cannot be told, nothing else is left out.
        with contextlib.suppress(exception.VirtlogdDriverError):
            return [len(found) if is_relayed else None for found, is_relayed
                    in zip(host.viewers(ports), relayed, strict=True)]
    return [None] * len(ports)


def _row(guest: hypervisor.Guest, port: SerialPort | None, log: str,
         unclear: str, disks: Disks, viewers: int | None = None) -> Row:
    path = port.device.log_file if port else None
    usage = None
    try:
        usage = disks.ask(path, files.usage, path) if path else None
    except (exception.LogError, exception.DiskStalled) as error:
        unclear = f'{unclear} {error}'.strip()
    except (OSError, ValueError) as error:
        # A file system that fails, or a name that the locale cannot say.
        reason = getattr(error, 'strerror', None) or error
        unclear = f'{unclear} {path} cannot be looked at: {reason}.'.strip()
    return Row(guest, port, log, usage, unclear, viewers)


def _json(row: Row) -> dict[str, Any]:
    device = row.port.device if row.port else None
    written = row.usage.last_write if row.usage else None
    return {
        'name': row.guest.name,
        'uuid': row.guest.uuid,
        'state': row.guest.state,
        'port': row.port.number if row.port else None,
        'device': device.type if device else None,
        'address': row.address or None,
        'viewers': row.viewers,
        'log': row.log,
        'file': device.log_file if device else None,
        'size': row.usage.size if row.usage else None,
        'rotated': row.usage.rotated if row.usage else None,
        'unclear': row.unclear or None,
        'last_write': None if written is None else
        table.date(written, 'milliseconds'),
    }


def _cells(row: Row, now: float) -> tuple[str, ...]:
    device = row.port.device if row.port else None
    written = row.usage.last_write if row.usage else None
    return tuple(control_sequences.visible(cell) or '-' for cell in (
        row.guest.name, row.guest.state,
        str(row.port.number) if row.port else '',
        device.type if device else '', row.address,
        '' if row.viewers is None else str(row.viewers), row.log,
        table.size(row.usage.size) if row.usage else '',
        str(row.usage.rotated) if row.usage else '',
        '' if written is None else table.since(written, now),
        row.guest.uuid, device.log_file or '' if device else ''))


def _lines(found: Sequence[Row]) -> list[str]:
    """Give the table; on a narrow terminal without its last columns.

    What is left out is in the other columns of a wider one, and in --json.
    """
    now = time.time()
    head, cells = list(_HEAD), [_cells(row, now) for row in found]
    before = head.index('LOG')
    if any(row.viewers is not None for row in found):
        head.insert(before, _VIEWERS)
    else:
        cells = [(*row[:before], *row[before + 1:]) for row in cells]
    if sys.stdout.isatty():
        for columns in (len(head), len(head) - 1, len(head) - 2):
            lines = table.lines(head[:columns],
                                [row[:columns] for row in cells], _RIGHT)
            if max(map(len, lines)) <= terminal.width():
                break
    else:
        lines = table.lines(head, cells, _RIGHT)
    if terminal.has_colour(sys.stdout):
        lines = [_paint(line, row) for line, row in
                 zip(lines, (None, *found), strict=True)]
    return lines


def _paint(line: str, row: Row | None) -> str:
    if row is None:
        return terminal.paint(line, terminal.DIM, True)
    for word in (row.guest.state, row.log):
        colour = _COLOURS.get(word)
        if colour is not None:
            line = line.replace(
                f'  {word} ', f'  {terminal.paint(word, colour, True)} ', 1)
    return line
