# SPDX-License-Identifier: Apache-2.0
"""A guest's serial ports and consoles are read from and written to domain XML.

Only what this project needs of libvirt's character devices
(https://libvirt.org/formatdomain.html#consoles-serial-parallel-channel-devices):
``<serial>`` and ``<console>`` with source, protocol, log, target and alias.

Whatever libvirt runs is read. What is not understood of a device is left
empty, and ``CharDevice.unclear`` says what it is; only a document that is none
of a domain is refused.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from lxml import etree

from virtlogd_driver import exception

Tag = Literal['serial', 'console']

# Domain XML comes from libvirt, but parts of it are a tenant's words.
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source is the host's end of the device.

    A TCP device has mode, host and service; a unix socket mode and path; a
    file has a path and append; a pty has a path while the guest runs.
    """

    #: "bind": it listens; "connect": it connects out.
    mode: str | None = None
    host: str | None = None
    #: Number of the TCP port; None also where its name is not known.
    service: int | None = None
    path: str | None = None
    append: bool | None = None
    #: What the XML has in place of the port's number: a name (services(5)).
    service_name: str | None = None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """virtlogd writes the device's output to this file.

    ``append`` is always written out: libvirt takes its absence for "off", and
    "off" deletes the log and its backups at every start of the guest.
    """

    file: str
    append: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """The target is the guest's end of the device: type and number."""

    port: int | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CharDevice:
    """A character device is a ``<serial>`` or ``<console>``."""

    tag: Tag
    #: libvirt's name of its kind: "tcp", "pty", "file", "unix", "null", ...
    type: str
    source: Source | None = None
    log: Log | None = None
    target: Target | None = None
    #: What a TCP device speaks: "raw", "telnet", "telnets" or "tls".
    protocol: str = 'raw'
    #: libvirt's name of the device of a running guest.
    alias: str | None = None
    #: What an operator calls it: see :func:`parse`.
    number: int = 0
    #: What of it is not understood, in sentences; empty: all is.
    unclear: str = ''

    @property
    def log_file(self) -> str | None:
        """Give the path of what the guest writes, if it is kept in a file."""
        if self.log is not None:
            return self.log.file
        if self.type == 'file' and self.source is not None:
            return self.source.path
        return None

    @property
    def is_appended(self) -> bool:
        """Tell whether a new QEMU process leaves what is in that file."""
        if self.log is not None:
            return self.log.append
        return self.source is not None and bool(self.source.append)

    @property
    def address(self) -> tuple[str, int] | None:
        """Give host and port that a TCP device listens on."""
        if self.type != 'tcp' or self.source is None:
            return None
        host, service = self.source.host, self.source.service
        if self.source.mode != 'bind' or host is None or service is None:
            return None
        return host, service

    @property
    def socket_path(self) -> str | None:
        """Give the unix socket that the device listens on."""
        if (self.type != 'unix' or self.source is None
                or self.source.mode != 'bind'):
            return None
        return self.source.path

    def to_element(self) -> etree._Element:
        """Give the device as an XML element, in libvirt's own order."""
        device = etree.Element(self.tag, type=self.type)
        if self.source is not None:
            _add(device, 'source', mode=self.source.mode,
                 host=self.source.host,
                 service=self.source.service_name or self.source.service,
                 path=self.source.path, append=self.source.append,
                 tls='yes' if self.source.tls else None)
        if self.type == 'tcp':
            _add(device, 'protocol', type=self.protocol)
        if self.log is not None:
            _add(device, 'log', file=self.log.file, append=self.log.append)
        if self.target is not None:
            _add(device, 'target', type=self.target.type,
                 port=self.target.port)
        if self.alias is not None:
            _add(device, 'alias', name=self.alias)
        return device


def _add(parent: etree._Element, tag: str, /,
         **attributes: str | int | bool | None) -> None:
    element = etree.SubElement(parent, tag)
    for key, value in attributes.items():
        if isinstance(value, bool):
            value = 'on' if value else 'off'
        if value is not None:
            element.set(key, str(value))


def parse_document(domain_xml: str) -> etree._Element:
    """Give the root element of a domain's XML.

    :raises InvalidGuestXML: it is not the XML of a domain
    """
    try:
        root = etree.fromstring(domain_xml.encode(), _PARSER)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as e:
        raise exception.InvalidGuestXML(
            f'The domain XML is not well-formed: {e}.') from e
    if root.tag != 'domain':
        raise exception.InvalidGuestXML(
            f'The XML is a <{root.tag}>, not a <domain>.')
    return root


def from_element(element: etree._Element) -> CharDevice:
    """Read one ``<serial>`` or ``<console>`` element; its number is 0."""
    tag: Tag = 'console' if element.tag == 'console' else 'serial'
    kind = element.get('type', 'pty')
    source = element.find('source')
    protocol = element.find('protocol')
    log = element.find('log')
    target = element.find('target')
    alias = element.find('alias')
    log_file = None if log is None else log.get('file')
    unclear: list[str] = []
    return CharDevice(
        tag=tag, type=kind,
        source=None if source is None else _source(source, kind, unclear),
        log=None if log is None or log_file is None else Log(
            log_file, bool(_switch(log, 'append'))),
        target=None if target is None else Target(
            _port(target, unclear), target.get('type')),
        protocol='raw' if protocol is None else protocol.get('type', 'raw'),
        alias=None if alias is None else alias.get('name'),
        unclear=' '.join(unclear))


def _source(source: etree._Element, kind: str, unclear: list[str]) -> Source:
    text = source.get('service')
    # 0 is any port, which QEMU alone knows.
    service = None if text is None else _number(text, 65535) or None
    name = text if service is None else None
    if name is not None:
        service = _service_number(name)
        if service is None and kind == 'tcp':
            unclear.append(f'No TCP port is called {_short(name)} on this '
                           'host (/etc/services).')
    return Source(
        mode=source.get('mode'), host=source.get('host'), service=service,
        path=source.get('path'), append=_switch(source, 'append'),
        service_name=name, tls=source.get('tls') == 'yes')


def _service_number(name: str) -> int | None:
    try:
        return socket.getservbyname(name, 'tcp')
    except (OSError, ValueError):
        return None


def _port(target: etree._Element, unclear: list[str]) -> int | None:
    text = target.get('port')
    if text is None:
        return None
    number = _number(text, 2 ** 31 - 1)
    if number is None:
        unclear.append(f'{_short(text)} is no number of a serial port.')
    return number


def _number(text: str, most: int) -> int | None:
    """Give a number in digits; None: it is none, or larger than that."""
    digits = text.lstrip('0') or text[:1]
    if not text.isascii() or not text.isdigit() or len(digits) > 10:
        return None
    number = int(digits)
    return number if number <= most else None


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else f'{text[:40]}...')


def _switch(element: etree._Element, name: str) -> bool | None:
    text = element.get(name)
    return None if text is None else text == 'on'


def parse(domain_xml: str) -> tuple[CharDevice, ...]:
    """Read a guest's serial ports and consoles, by their numbers.

    The number of a ``<serial>`` is that of its target: 1 is the guest's second
    port (ttyS1), whether it has a first one or not. A ``<console>`` of a
    machine without serial ports (s390x) has its target's number likewise; one
    beside serial ports (virtio) is counted on from the last of them. The
    ``<console>`` that mirrors a serial port is none by itself.

    :raises InvalidGuestXML: not the XML of a domain
    """
    found = read_elements(parse_document(domain_xml))
    return tuple(sorted((device for _, device in found),
                        key=lambda device: device.number))


def read_elements(domain: etree._Element
                  ) -> list[tuple[etree._Element, CharDevice]]:
    """Give the XML elements of a guest's devices, and what they say.

    They are those of :func:`parse`, in the order of the document; no two have
    one number.
    """
    serials = domain.findall('./devices/serial')
    consoles = domain.findall('./devices/console')
    if not serials:
        return _numbered(consoles)
    found = _numbered(serials)
    following = 1 + max(device.number for _, device in found)
    beside = [console for console in consoles
              if console.find("target[@type='serial']") is None]
    return found + [
        (console, replace(from_element(console), number=number))
        for number, console in enumerate(beside, following)]


def _numbered(elements: Iterable[etree._Element]
              ) -> list[tuple[etree._Element, CharDevice]]:
    """Number them as their targets are; one without gets the next free.
    """
    used: set[int] = set()
    found = []
    for element in elements:
        device = from_element(element)
        number = None if device.target is None else device.target.port
        if number is None or number in used:
            number = max(used, default=-1) + 1
        used.add(number)
        found.append((element, replace(device, number=number)))
    return found


def log_names(devices: Iterable[CharDevice]) -> list[str]:
    """Give name of the log of each device that has one."""
    return [os.path.basename(d.log_file) for d in devices
            if d.log_file is not None]


def addresses(devices: Iterable[CharDevice]) -> list[tuple[str, int]]:
    """Give host and port of each device that listens on TCP."""
    return [d.address for d in devices if d.address is not None]
