# SPDX-License-Identifier: Apache-2.0
"""A guest gets other serial ports on the host that it is migrated to.

libvirt lets every backend of a character device change in the XML for the
destination, as long as the number of devices and their targets stay
(measured with libvirt 9.0.0; backends are not part of the guest's ABI).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lxml import etree

from virtlogd_driver.guest.char_device import (
    CharDevice,
    Log,
    Source,
    parse_document,
    read_elements,
)


@dataclass(frozen=True, slots=True)
class Destination:
    """The source knows this of the host that a guest moves to."""

    #: It runs this driver, and can have both consoles.
    capable: bool
    #: Where its TCP serial ports listen; None: serial consoles are off.
    address: str | None
    #: The TCP ports that it has reserved for this guest.
    tcp_ports: Sequence[int] = ()


def for_destination(domain_xml: str, destination: Destination,
                    next_log: Callable[[int, str | None], str],
                    upgrade: bool = False) -> str:
    """Rewrite a guest's serial ports for its destination.

    ============ ======== ======== =====================================
    destination  serial   guest    becomes
    ============ ======== ======== =====================================
    capable      on       tcp+log  tcp+log (N+1 -> N+1)
    capable      on       tcp      tcp, as it was (N -> N+1)
    capable      off      tcp(+log) pty(+log)
    capable      any      pty, file as it was
    not capable  any      file     as it was (N -> N)
    not capable  on       others   tcp, no log (N+1 -> N)
    not capable  off      others   file
    ============ ======== ======== =====================================

    What no host of this driver's gives a guest stays what it is, but for its
    log: a ``<console>`` beside serial ports, and a port that connects out.

    Every log and every file gets a new name on the destination
    (``next_log``), so that two hosts never write one file. With ``upgrade``
    a guest that had no log, or no TCP port, gets on a capable host what it
    would be booted with there.

    :param domain_xml: migratable XML of the running guest
    :param destination: the host that it moves to
    :param next_log: path of the log there, from the number of the port and
        the path of its log here
    :param upgrade: ``[virtlogd] upgrade_on_migration``
    :returns: the domain XML for the destination
    :raises InvalidGuestXML: not the XML of a domain
    """
    domain = parse_document(domain_xml)
    found = sorted(read_elements(domain), key=lambda one: one[1].number)
    kind = found[0][1].tag if found else None
    for index, (element, here) in enumerate(found):
        log_file = next_log(here.number, here.log_file)
        there = _there(here, index, destination, log_file, upgrade) if (
            here.tag == kind and not _connects(here)) else _kept(
                here, destination, log_file)
        _rewrite(element, here, there)
        # libvirt shows the first serial port as a console as well, and nova
        # looks at that for addresses.
        if element is domain.find('./devices/serial'):
            for console in domain.iterfind(
                    "./devices/console/target[@type='serial']/.."):
                _rewrite(console, None, there)
    return str(etree.tostring(domain, encoding='unicode'))


def _connects(device: CharDevice) -> bool:
    return device.source is not None and device.source.mode == 'connect'


def _kept(here: CharDevice, destination: Destination,
          log_file: str) -> CharDevice:
    if here.type == 'file':
        return replace(here, source=Source(path=log_file, append=True))
    return replace(here, log=Log(log_file) if here.log is not None
                   and destination.capable else None)


def _there(here: CharDevice, index: int, destination: Destination,
           log_file: str, upgrade: bool) -> CharDevice:
    listen = None
    if destination.address is not None and index < len(destination.tcp_ports):
        listen = Source(mode='bind', host=destination.address,
                        service=destination.tcp_ports[index])
    log = Log(log_file)
    if not destination.capable:
        if listen is not None and here.type != 'file':
            return replace(here, type='tcp', source=listen, log=None)
        return replace(here, type='file', log=None,
                       source=Source(path=log_file, append=True))
    if upgrade:
        if listen is not None:
            return replace(here, type='tcp', source=listen, log=log)
        return replace(here, type='pty', source=None, log=log)
    kept = None if here.log is None else log
    if here.type == 'tcp':
        if listen is not None:
            return replace(here, source=listen, log=kept)
        return replace(here, type='pty', source=None, log=kept)
    if here.type == 'file':
        return replace(here, source=Source(path=log_file, append=True))
    return replace(here, log=kept)


def _rewrite(element: etree._Element, before: CharDevice | None,
             device: CharDevice) -> None:
    """Give an element another backend; address, alias and model stay.

    :param before: what the element says; None: it does not matter
    """
    changed = ['log']
    if before is None or (before.type, before.source) != (
            device.type, device.source):
        changed += ['source', 'protocol']
    # Else there may be more in them than is understood.
    element.set('type', device.type)
    for name in changed:
        for old in element.findall(name):
            element.remove(old)
    position = len(element.findall('source') + element.findall('protocol'))
    backend = [child for child in device.to_element() if child.tag in changed]
    for offset, child in enumerate(backend):
        element.insert(position + offset, child)
