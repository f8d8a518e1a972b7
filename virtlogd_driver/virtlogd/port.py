# SPDX-License-Identifier: Apache-2.0
"""The serial ports of a running guest, as far as their logs are concerned."""

import ipaddress
from dataclasses import dataclass

from lxml import etree

from virtlogd_driver import exception

Address = tuple[str, int]

_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


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


def serial_ports(guest: str, name: str, xml: str) -> list[Port]:
    """The ports of a guest.

    They are its ``<serial>`` devices; a guest without any (s390x) has its
    ``<console>`` devices instead. libvirt shows the first serial port once
    more as a console.

    :param xml: its live XML
    :raises InvalidGuestXML: it cannot be understood
    """
    try:
        devices = etree.fromstring(xml.encode(), _PARSER).find('devices')
    except etree.XMLSyntaxError as e:
        raise exception.InvalidGuestXML(
            f'The XML of guest {name} is not well-formed: {e}.') from e
    found = devices.findall('serial') if devices is not None else []
    if not found and devices is not None:
        found = devices.findall('console')
    return [Port(guest, name, number, _log(element), _listener(element))
            for number, element in enumerate(found)]


def _log(element: etree._Element) -> str | None:
    log = element.find('log')
    if log is not None:
        return log.get('file')
    source = element.find('source')
    if element.get('type') == 'file' and source is not None:
        return source.get('path')
    return None


def _listener(element: etree._Element) -> Address | None:
    source = element.find('source')
    if (element.get('type') != 'tcp' or source is None
            or source.get('mode') != 'bind'):
        return None
    try:
        number = int(source.get('service', ''))
    except ValueError:
        return None
    host = source.get('host', '')
    try:
        return str(ipaddress.ip_address(host)), number
    except ValueError:
        # A name: the number alone tells it.
        return '::', number
