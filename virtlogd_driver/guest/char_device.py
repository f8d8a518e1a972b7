# SPDX-License-Identifier: Apache-2.0
"""A guest's serial ports and consoles, read from and written to domain XML.

Only what this project needs of libvirt's character devices
(https://libvirt.org/formatdomain.html#consoles-serial-parallel-channel-devices):
``<serial>`` and ``<console>`` with source, log and target.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lxml import etree

from virtlogd_driver import exception

Tag = Literal['serial', 'console']

# Domain XML comes from libvirt, but parts of it are a tenant's words.
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the host's end of the device is.

    A TCP device has mode, host and service; a file has a path and append;
    a pty has a path while the guest runs.
    """

    mode: str | None = None
    host: str | None = None
    service: int | None = None
    path: str | None = None
    append: bool | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """The file that virtlogd writes the device's output to.

    ``append`` is always written out: libvirt takes its absence for "off", and
    "off" deletes the log and its backups at every start of the guest.
    """

    file: str
    append: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """The guest's end of the device: its type and its number."""

    port: int | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CharDevice:
    """A ``<serial>`` or ``<console>`` device."""

    tag: Tag
    type: str
    source: Source | None = None
    log: Log | None = None
    target: Target | None = None

    @property
    def log_file(self) -> str | None:
        """The path of what the guest writes, if it is kept in a file."""
        if self.log is not None:
            return self.log.file
        if self.type == 'file' and self.source is not None:
            return self.source.path
        return None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that a TCP device listens on."""
        if self.type != 'tcp' or self.source is None:
            return None
        host, service = self.source.host, self.source.service
        if self.source.mode != 'bind' or host is None or service is None:
            return None
        return host, service

    def to_element(self) -> etree._Element:
        """The device as an XML element, in libvirt's own order."""
        device = etree.Element(self.tag, type=self.type)
        if self.source is not None:
            _add(device, 'source', mode=self.source.mode,
                 host=self.source.host, service=self.source.service,
                 path=self.source.path, append=self.source.append)
        if self.type == 'tcp':
            _add(device, 'protocol', type='raw')
        if self.log is not None:
            _add(device, 'log', file=self.log.file, append=self.log.append)
        if self.target is not None:
            _add(device, 'target', type=self.target.type,
                 port=self.target.port)
        return device


def _add(parent: etree._Element, name: str,
         **attributes: str | int | bool | None) -> None:
    element = etree.SubElement(parent, name)
    for key, value in attributes.items():
        if isinstance(value, bool):
            value = 'on' if value else 'off'
        if value is not None:
            element.set(key, str(value))


def parse_document(domain_xml: str) -> etree._Element:
    """The root element of a domain's XML.

    :raises InvalidGuestXML: it is not the XML of a domain
    """
    try:
        root = etree.fromstring(domain_xml.encode(), _PARSER)
    except etree.XMLSyntaxError as e:
        raise exception.InvalidGuestXML(
            f'The domain XML is not well-formed: {e}.') from e
    if root.tag != 'domain':
        raise exception.InvalidGuestXML(
            f'The XML is a <{root.tag}>, not a <domain>.')
    return root


def from_element(element: etree._Element) -> CharDevice:
    """Read one ``<serial>`` or ``<console>`` element.

    :raises InvalidGuestXML: a port or a service is not a number
    """
    tag: Tag = 'console' if element.tag == 'console' else 'serial'
    source = element.find('source')
    log = element.find('log')
    target = element.find('target')
    log_file = None if log is None else log.get('file')
    return CharDevice(
        tag=tag,
        type=element.get('type', 'pty'),
        source=None if source is None else Source(
            mode=source.get('mode'), host=source.get('host'),
            service=_number(source, 'service'), path=source.get('path'),
            append=_switch(source, 'append')),
        log=None if log is None or log_file is None else Log(
            log_file, bool(_switch(log, 'append'))),
        target=None if target is None else Target(
            _number(target, 'port'), target.get('type')))


def _number(element: etree._Element, name: str) -> int | None:
    text = element.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise exception.InvalidGuestXML(
            f'In the domain XML <{element.tag} {name}={text!r}> is not a '
            f'number.')
    return int(text)


def _switch(element: etree._Element, name: str) -> bool | None:
    text = element.get(name)
    return None if text is None else text == 'on'


def parse(domain_xml: str) -> tuple[CharDevice, ...]:
    """The guest's serial ports, in the order of their numbers.

    These are its ``<serial>`` devices; a machine without any (s390x) has
    ``<console>`` devices in their place. The ``<console>`` that libvirt
    shows beside ``<serial>`` devices mirrors the first of them (or is a
    virtio console, which is none of ours).

    :raises InvalidGuestXML: not a domain, or numbers that are none
    """
    devices = elements(parse_document(domain_xml))
    return tuple(sorted((from_element(e) for e in devices), key=_port_number))


def elements(domain: etree._Element) -> list[etree._Element]:
    """The XML elements of the guest's serial ports (see :func:`parse`)."""
    return list(domain.findall('./devices/serial')
                or domain.findall('./devices/console'))


def _port_number(device: CharDevice) -> int:
    if device.target is None or device.target.port is None:
        return 0
    return device.target.port


def log_names(devices: Iterable[CharDevice]) -> list[str]:
    """Name of the log of each device that has one."""
    return [os.path.basename(d.log_file) for d in devices
            if d.log_file is not None]


def addresses(devices: Iterable[CharDevice]) -> list[tuple[str, int]]:
    """Host and port of each device that listens on TCP."""
    return [d.address for d in devices if d.address is not None]
