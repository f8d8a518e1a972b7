# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console viewers`` shows who is at a guest's consoles.

The kernel knows: its connections are those of QEMU, or of the relay.
"""

from collections.abc import Sequence
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import control_sequences, table
from virtlogd_driver.cmd.host import Host, SerialPort, serial_ports
from virtlogd_driver.virtlogd import port, viewer
from virtlogd_driver.virtlogd.viewer import Viewer

_HEAD = ('CONSOLE', 'VIEWER', 'READS')


def run(host: Host, arguments: Any) -> int:
    guest = host.guest(arguments.guest)
    ports = serial_ports(guest)
    found = list(zip(ports, host.viewers(ports), strict=True))
    if arguments.disconnect is not None:
        return _disconnect(guest.name, arguments.disconnect, [
            one for _, viewers in found for one in viewers])
    for line in _lines(found):
        print(control_sequences.visible(line))
    return 0


def _lines(found: Sequence[tuple[SerialPort, Sequence[Viewer]]]) -> list[str]:
    """Give the table, without what has no viewers."""
    return table.lines(_HEAD, [
        (serial.label, port.text(one.peer), f'nothing for {one.silent:.0f} s'
         if one.full else 'yes')
        for serial, viewers in found for one in viewers])


def _disconnect(guest: str, word: str, viewers: Sequence[Viewer]) -> int:
    """End the connections of a viewer.

    :param word: its address, with its port or without
    :raises HostError: there is none of that name
    :raises VirtlogdDriverError: the kernel refuses
    """
    meant = [one for one in viewers if word in (
        port.text(one.peer), one.peer[0])]
    if not meant:
        raise exception.HostError(
            f'{word} is not at a console of guest {guest}. '
            f'"virtlogd-console viewers {guest}" shows who is.')
    for one in meant:
        viewer.disconnect(one.socket_id)
        print(f'{port.text(one.peer)} is disconnected')
    return 0
