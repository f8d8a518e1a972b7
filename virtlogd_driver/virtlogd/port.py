# SPDX-License-Identifier: Apache-2.0
"""A serial port of a guest is described as far as its log is concerned."""

import ipaddress
import os
import socket
from dataclasses import dataclass, field

Address = tuple[str, int]

#: What to do about a log that is held.
HELD_REMEDY = (
    'A process that is not QEMU has the log\'s pipe. Find it as root with '
    '"lsof +E -p $(pidof virtlogd)", and end it. Do not restart virtlogd: all '
    'other logs would be dead.')


@dataclass(frozen=True, slots=True)
class Port:
    """A port is a serial port of a guest."""

    #: UUID of the guest.
    guest: str
    #: libvirt's name of it.
    name: str
    #: Number of the port, from 0.
    number: int
    #: Path of what virtlogd is to write: of ``<log file>``, or of the file of
    #: a file-backed port. None: nobody is to.
    log: str | None
    #: Where it listens for viewers: numeric address and port. None: it does
    #: not.
    listener: Address | None = None
    #: Path of its pseudo terminal; None: it has none.
    pty: str | None = None
    #: The guest runs.
    active: bool = True
    #: What of the port, or of its guest, is not understood; empty: all is.
    unclear: str = ''
    #: Where the relay is to listen for its viewers; None: it is not relayed,
    #: or that is not known just now.
    relay: Address | None = field(default=None, compare=False)
    #: libvirt fails for its guest, so that nothing else is known of it.
    failing: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f'guest {self.guest} ({self.name}), serial port {self.number}'


def text(address: Address) -> str:
    """Give an address as people write it: "192.0.2.7:10000", "[::1]:10000"."""
    host, number = address
    return f'[{host}]:{number}' if ':' in host else f'{host}:{number}'


def is_open(pty: str) -> bool:
    """Tell whether there is such a pseudo terminal: it goes with its maker.

    Not known, and so True, where this process has none of the host's.
    """
    directory = os.path.dirname(pty)
    return os.path.exists(pty) or not os.path.isdir(directory)


def tcp_port(service: str) -> int:
    """Give the number of a TCP port from digits or a name (services(5)).

    :raises ValueError: there is none of this name
    """
    if service.isascii() and service.isdigit() and len(service) <= 5:
        return int(service)
    try:
        return socket.getservbyname(service, 'tcp')
    except OSError as e:
        raise ValueError(f'no TCP port {service[:40]!r}') from e


def numeric(host: str, number: int) -> Address:
    """Give the address of a listener, as the kernel shows it: no interface,
    and one of IPv4 as such.
    """
    try:
        address = ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        # A name: the number alone tells it.
        return '::', number
    return str(getattr(address, 'ipv4_mapped', None) or address), number
