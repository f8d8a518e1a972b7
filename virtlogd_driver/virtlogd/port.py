# SPDX-License-Identifier: Apache-2.0
"""The serial ports of a running guest, as far as their logs are concerned."""

import ipaddress
from dataclasses import dataclass

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Port:
    """A serial port of a running guest."""

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

    def __str__(self) -> str:
        return f'guest {self.guest} ({self.name}), serial port {self.number}'


def numeric(host: str, number: int) -> Address:
    """The address of a listener, as the kernel shows it."""
    try:
        return str(ipaddress.ip_address(host)), number
    except ValueError:
        # A name: the number alone tells it.
        return '::', number
