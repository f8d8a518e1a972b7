# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console reattach`` brings a log back that virtlogd has lost."""

import sys
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd.host import (
    Host,
    serial_port,
    serial_ports,
)
from virtlogd_driver.virtlogd.port import HELD_REMEDY, Port


def run(host: Host, arguments: Any) -> int:
    guest = host.guest(arguments.guest)
    ports = (serial_ports(guest) if arguments.port is None
             else [serial_port(guest, arguments.port)])
    state, reason = host.virtlogd()
    if state != 'up':
        raise exception.VirtlogdDown(reason)
    if not guest.active:
        held = 'held' in host.log_states(ports)
        raise exception.ReattachFailed(
            f'Guest {guest.name} is {guest.state}: its logs are opened when '
            'it starts'
            + (f', but one is open at virtlogd already. {HELD_REMEDY}'
               if held else '.'))
    failed = False
    all_closed = host.closed(ports)
    for port, state in zip(ports, host.log_states(ports), strict=True):
        closed = state == 'alive' and port in all_closed
        if state not in ('dead', 'unlinked') and not closed:
            print(f'{port.label}: the log is {state}, nothing to do')
            continue
        try:
            note = host.reattach(Port(
                guest.uuid, guest.name, port.number, port.log))
        except exception.VirtlogdError as error:
            failed = True
            print(f'{port.label}: {error}', file=sys.stderr)
            continue
        print(f'{port.label}: '
              + ('the console is open again' if closed
                 else 'the log is alive again')
              + (f'; {note}' if note else ''))
    return int(failed)
