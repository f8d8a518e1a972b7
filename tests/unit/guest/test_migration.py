# SPDX-License-Identifier: Apache-2.0
import os

import pytest
from lxml import etree

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.guest import char_device, migration
from virtlogd_driver.guest.char_device import Log, Source

LIVE = """
<serial type='{type}'>{backend}
  <target type='isa-serial' port='0'><model name='isa-serial'/></target>
  <alias name='serial0'/>
  <address type='isa' iobase='0x3f8' irq='4'/>
</serial>
<console type='pty'><target type='serial' port='0'/></console>
"""
TCP = ("<source mode='bind' host='192.0.2.1' service='10000'/>"
       "<protocol type='raw'/>")
LOG = "<log file='/i/console.log' append='on'/>"

ON = migration.Destination(True, '192.0.2.2', (20000,))
OFF = migration.Destination(True, None)
OLD_ON = migration.Destination(False, '192.0.2.2', (20000,))
OLD_OFF = migration.Destination(False, None)

THERE = Source(mode='bind', host='192.0.2.2', service=20000)
NEXT = Log('/i/next-0')
FILE = Source(path='/i/next-0', append=True)

CASES = [
    # N+1 -> N+1
    ('tcp', TCP + LOG, ON, False, ('tcp', THERE, NEXT)),
    ('tcp', TCP + LOG, OFF, False, ('pty', None, NEXT)),
    ('pty', LOG, ON, False, ('pty', None, NEXT)),
    ('pty', LOG, OFF, False, ('pty', None, NEXT)),
    # N -> N+1: as it was, unless it is to be upgraded
    ('tcp', TCP, ON, False, ('tcp', THERE, None)),
    ('tcp', TCP, OFF, False, ('pty', None, None)),
    ('pty', '', ON, False, ('pty', None, None)),
    ('file', "<source path='/i/console.log'/>", ON, False,
     ('file', FILE, None)),
    ('tcp', TCP, ON, True, ('tcp', THERE, NEXT)),
    ('pty', '', ON, True, ('tcp', THERE, NEXT)),
    ('file', "<source path='/i/console.log'/>", ON, True,
     ('tcp', THERE, NEXT)),
    ('tcp', TCP, OFF, True, ('pty', None, NEXT)),
    # N -> N: as it was
    ('tcp', TCP, OLD_ON, False, ('tcp', THERE, None)),
    ('file', "<source path='/i/console.log'/>", OLD_ON, False,
     ('file', FILE, None)),
    # N+1 -> N
    ('tcp', TCP + LOG, OLD_ON, False, ('tcp', THERE, None)),
    ('tcp', TCP + LOG, OLD_ON, True, ('tcp', THERE, None)),
    ('pty', LOG, OLD_ON, False, ('tcp', THERE, None)),
    ('tcp', TCP + LOG, OLD_OFF, False, ('file', FILE, None)),
    ('pty', LOG, OLD_OFF, True, ('file', FILE, None)),
]


def _next(port: int, here: str | None) -> str:
    return os.path.join(os.path.dirname(here or '/i/x'), f'next-{port}')


@pytest.mark.parametrize(
    ('type_', 'backend', 'destination', 'upgrade', 'expected'), CASES)
def test_table(type_, backend, destination, upgrade, expected) -> None:
    xml = fake_libvirt.domain_xml(LIVE.format(type=type_, backend=backend))
    moved = migration.for_destination(xml, destination, _next, upgrade)
    (device,) = char_device.parse(moved)
    assert (device.type, device.source, device.log) == expected


def test_what_the_guest_sees_stays() -> None:
    xml = fake_libvirt.domain_xml(LIVE.format(type='tcp', backend=TCP + LOG))
    moved = etree.fromstring(
        migration.for_destination(xml, OLD_ON, _next))
    serial = moved.find('./devices/serial')
    assert [child.tag for child in serial] == [
        'source', 'protocol', 'target', 'alias', 'address']
    assert serial.find('target/model').get('name') == 'isa-serial'
    assert serial.find('address').get('iobase') == '0x3f8'
    before = etree.fromstring(xml)
    for document in before, moved:
        for child in list(document.find('devices')):
            document.find('devices').remove(child)
    assert etree.tostring(before) == etree.tostring(moved)


def test_the_console_that_mirrors_the_first_port_follows() -> None:
    xml = fake_libvirt.domain_xml(
        f"<serial type='tcp'>{TCP}{LOG}<target port='0'/></serial>"
        f"<console type='tcp'>{TCP}{LOG}<target type='serial' port='0'/>"
        '</console>'
        "<console type='pty'><target type='virtio' port='1'/></console>")
    moved = etree.fromstring(migration.for_destination(xml, OFF, _next))
    serial, mirror, other = (
        moved.findall('./devices/serial') + moved.findall('./devices/console'))
    for element in serial, mirror:
        assert element.get('type') == 'pty'
        assert [child.tag for child in element] == ['log', 'target']
    assert [child.tag for child in other] == ['target']


def test_every_port_gets_its_own() -> None:
    xml = fake_libvirt.domain_xml(
        fake_libvirt.serial(0, 10000, log='/i/console.log')
        + fake_libvirt.serial(1, 10001, log='/i/console.port1.log'))
    moved = char_device.parse(migration.for_destination(
        xml, migration.Destination(True, '::1', (20000, 20001)), _next))
    assert char_device.addresses(moved) == [('::1', 20000), ('::1', 20001)]
    assert [d.log_file for d in moved] == ['/i/next-0', '/i/next-1']


def test_a_port_that_the_destination_did_not_reserve_is_a_pty() -> None:
    """The flavor's number of ports may have changed since the guest booted.

    A guessed TCP port could be another guest's.
    """
    xml = fake_libvirt.domain_xml(
        fake_libvirt.serial(0) + fake_libvirt.serial(1, 10001))
    moved = char_device.parse(migration.for_destination(xml, ON, _next))
    assert [d.type for d in moved] == ['tcp', 'pty']


def test_consoles_of_s390x() -> None:
    xml = fake_libvirt.domain_xml(
        f"<console type='tcp'>{TCP}{LOG}<target type='sclp' port='0'/>"
        '</console>', arch='s390x')
    (device,) = char_device.parse(
        migration.for_destination(xml, ON, _next))
    assert (device.tag, device.address) == ('console', ('192.0.2.2', 20000))


def test_a_guest_without_serial_is_left_alone() -> None:
    xml = fake_libvirt.domain_xml("<disk><source file='/d'/></disk>")
    moved = migration.for_destination(xml, OLD_ON, _next)
    assert etree.fromstring(moved).findtext('name') == 'guest'
    assert char_device.parse(moved) == ()


def test_malformed() -> None:
    with pytest.raises(exception.InvalidGuestXML):
        migration.for_destination('<domain', ON, _next)


def test_the_only_port_is_the_guests_second_one() -> None:
    """Its number names the log; its place chooses the TCP port."""
    xml = fake_libvirt.domain_xml(fake_libvirt.serial(1, log='/i/l'))
    (device,) = char_device.parse(migration.for_destination(xml, ON, _next))
    assert (device.number, device.address, device.log_file) == (
        1, ('192.0.2.2', 20000), '/i/next-1')


def test_what_this_driver_gives_nobody_stays_but_for_its_log() -> None:
    xml = fake_libvirt.domain_xml(
        f"<serial type='tcp'>{TCP}{LOG}<target port='0'/></serial>"
        "<serial type='tcp'><source mode='connect' host='h' service='1'>"
        "<reconnect enabled='yes'/></source><protocol type='telnet'/>"
        "<log file='/i/a'/><target port='1'/></serial>"
        "<console type='unix'><source mode='bind' path='/s'/>"
        "<log file='/i/b'/><target type='virtio' port='1'/></console>")
    moved = migration.for_destination(
        xml, migration.Destination(True, '::1', (20000, 20001)), _next, True)
    first, second, console = char_device.parse(moved)
    assert first.address == ('::1', 20000)
    assert (second.type, second.log_file) == ('tcp', '/i/next-1')
    assert "<reconnect enabled=\"yes\"/>" in moved
    assert 'telnet' in moved
    assert (console.socket_path, console.log_file) == ('/s', '/i/next-2')


def test_what_writes_into_a_file_beside_a_serial_port_is_appended_to() -> None:
    xml = fake_libvirt.domain_xml(
        f"<serial type='pty'>{LOG}<target port='0'/></serial>"
        "<console type='file'><source path='/i/c'/>"
        "<target type='virtio' port='1'/></console>")
    _, console = char_device.parse(migration.for_destination(xml, ON, _next))
    assert console.source == Source(path='/i/next-1', append=True)
