# SPDX-License-Identifier: Apache-2.0
import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.guest import char_device
from virtlogd_driver.guest.char_device import CharDevice, Log, Source, Target

TCP = CharDevice(
    tag='serial', type='tcp',
    source=Source(mode='bind', host='127.0.0.1', service=10000),
    log=Log('/i/console.log'), target=Target(0, None))


def _text(device: CharDevice) -> str:
    return etree.tostring(device.to_element(), encoding='unicode')


def test_written_with_append_on_always() -> None:
    assert _text(TCP) == (
        '<serial type="tcp">'
        '<source mode="bind" host="127.0.0.1" service="10000"/>'
        '<protocol type="raw"/>'
        '<log file="/i/console.log" append="on"/>'
        '<target port="0"/></serial>')


def test_libvirt_gives_back_what_was_written() -> None:
    devices = (
        TCP,
        CharDevice(tag='serial', type='file',
                   source=Source(path='/i/console.port1.log', append=True),
                   target=Target(1, None)))
    xml = fake_libvirt.domain_xml(''.join(map(_text, devices)))
    connection = libvirt.open('test:///default')
    domain = connection.defineXML(xml)
    try:
        found = char_device.parse(domain.XMLDesc())
    finally:
        domain.undefine()
        connection.close()
    assert [d.log_file for d in found] == [
        '/i/console.log', '/i/console.port1.log']
    assert [d.log for d in found] == [d.log for d in devices]
    assert [d.source for d in found] == [d.source for d in devices]


names = st.text('abcdefghijklmnopqrstuvwxyz/.-_ äß&<>"\'', min_size=1)


@given(st.builds(
    CharDevice,
    tag=st.sampled_from(['serial', 'console']),
    type=st.sampled_from(['tcp', 'pty', 'file', 'unix']),
    source=st.none() | st.builds(
        Source, mode=st.none() | st.just('bind'), host=st.none() | names,
        service=st.none() | st.integers(1, 65535), path=st.none() | names,
        append=st.none() | st.booleans(), tls=st.booleans()),
    log=st.none() | st.builds(Log, names, st.booleans()),
    target=st.none() | st.builds(
        Target, st.none() | st.integers(0, 40),
        st.none() | st.sampled_from(['sclp', 'isa-serial']))))
def test_read_back_as_written(device: CharDevice) -> None:
    assert char_device.from_element(
        etree.fromstring(_text(device))) == device


def test_the_console_that_mirrors_a_serial_port_is_no_port() -> None:
    xml = fake_libvirt.domain_xml(
        fake_libvirt.serial(1, 10001) + fake_libvirt.serial(0, 10000)
        + "<console type='tcp'><source mode='bind' host='127.0.0.1' "
          "service='10000'/><target type='serial' port='0'/></console>")
    found = char_device.parse(xml)
    assert char_device.addresses(found) == [
        ('127.0.0.1', 10000), ('127.0.0.1', 10001)]


def test_consoles_are_the_ports_of_a_machine_without_serial() -> None:
    xml = fake_libvirt.domain_xml(
        "<console type='pty'><log file='/l' append='on'/>"
        "<target type='sclp' port='0'/></console>", arch='s390x')
    (found,) = char_device.parse(xml)
    assert (found.tag, found.log_file) == ('console', '/l')


def test_no_serial_at_all() -> None:
    assert char_device.parse(fake_libvirt.domain_xml()) == ()


def test_a_log_without_append_is_off_as_libvirt_takes_it() -> None:
    xml = fake_libvirt.domain_xml(
        "<serial type='pty'><log file='/l'/></serial>")
    assert char_device.parse(xml)[0].log == Log('/l', append=False)


def test_connecting_devices_do_not_listen() -> None:
    xml = fake_libvirt.domain_xml(
        "<serial type='tcp'><source mode='connect' host='h' service='1'/>"
        "</serial>")
    assert char_device.addresses(char_device.parse(xml)) == []


@pytest.mark.parametrize(('xml', 'message'), [
    ('', 'not well-formed'),
    ('<domain', 'not well-formed'),
    ('<network/>', 'not a <domain>'),
    ('<domain>\ud800</domain>', 'not well-formed'),
    ('<domain>' + '<a>' * 5000, 'not well-formed'),
])
def test_malformed(xml: str, message: str) -> None:
    with pytest.raises(exception.InvalidGuestXML, match=message):
        char_device.parse(xml)


def test_entities_are_not_resolved(tmp_path) -> None:
    secret = tmp_path / 'secret'
    secret.write_text('99')
    xml = (f'<!DOCTYPE d [<!ENTITY e SYSTEM "file://{secret}">]>'
           '<domain><devices><serial type="pty"><log file="/l"/>'
           '<target port="0"/>&e;</serial></devices></domain>')
    (found,) = char_device.parse(xml)
    assert '99' not in repr(found)


def _one(device: str, arch: str = 'x86_64') -> CharDevice:
    (found,) = char_device.parse(fake_libvirt.domain_xml(device, arch=arch))
    return found


def test_a_tcp_port_by_its_name() -> None:
    """services(5), as QEMU looks for it."""
    found = _one("<serial type='tcp'><source mode='bind' host='127.0.0.1' "
                 "service='http-alt'/><log file='/l'/></serial>")
    assert (found.address, found.log_file) == (('127.0.0.1', 8080), '/l')
    assert 'service="http-alt"' in _text(found)


@pytest.mark.parametrize('service', [
    'no-such-service', '-1', '65536', '9' * 5000, '', '\u0661', '1 ', '0'])
def test_a_tcp_port_that_is_not_understood_is_said(service: str) -> None:
    found = _one("<serial type='tcp'><source mode='bind' host='127.0.0.1' "
                 f"service='{service}'/><log file='/l'/></serial>")
    assert (found.address, found.log_file) == (None, '/l')
    assert '/etc/services' in found.unclear
    assert len(found.unclear) < 120


@pytest.mark.parametrize('port', ['-1', 'x', '9' * 5000, '2147483648'])
def test_a_number_that_is_none_is_said(port: str) -> None:
    found = _one("<serial type='pty'><log file='/l'/>"
                 f"<target port='{port}'/></serial>")
    assert (found.number, found.log_file) == (0, '/l')
    assert 'no number' in found.unclear


def test_protocol_tls_and_alias() -> None:
    found = _one(
        "<serial type='tcp'><source mode='bind' host='h' service='1' "
        "tls='yes'/><protocol type='telnet'/><alias name='serial0'/>"
        '</serial>')
    assert found.source is not None
    assert (found.protocol, found.source.tls, found.alias) == (
        'telnet', True, 'serial0')
    assert _one("<serial type='tcp'/>").protocol == 'raw'


def test_a_unix_socket() -> None:
    found = _one("<serial type='unix'><source mode='bind' path='/s'/>"
                 "<log file='/l'/></serial>")
    assert (found.socket_path, found.address) == ('/s', None)
    assert _one("<serial type='unix'><source mode='connect' path='/s'/>"
                '</serial>').socket_path is None


@pytest.mark.parametrize(('devices', 'numbers'), [
    # The guest has a ttyS1 and no ttyS0.
    ("<serial><target port='1'/></serial>", [('serial', 1)]),
    ("<serial><target port='0'/></serial><console>"
     "<target type='serial' port='0'/></console><console>"
     "<target type='virtio' port='1'/></console>",
     [('serial', 0), ('console', 1)]),
    # One target's number is that of another.
    ("<serial><target port='0'/></serial><serial><target port='1'/></serial>"
     "<console><target type='serial' port='0'/></console><console>"
     "<target type='virtio' port='1'/></console>",
     [('serial', 0), ('serial', 1), ('console', 2)]),
    ("<console><target type='sclp' port='0'/></console><console>"
     "<target type='virtio' port='1'/></console>",
     [('console', 0), ('console', 1)]),
    ('<serial/><serial/>', [('serial', 0), ('serial', 1)]),
    ("<serial><target port='3'/></serial><serial><target port='3'/></serial>",
     [('serial', 3), ('serial', 4)]),
])
def test_numbers(devices: str, numbers: list[tuple[str, int]]) -> None:
    found = char_device.parse(fake_libvirt.domain_xml(devices))
    assert [(d.tag, d.number) for d in found] == numbers


@given(st.lists(st.tuples(
    st.sampled_from(['serial', 'console']),
    st.none() | st.integers(-1, 5) | st.just('x'),
    st.sampled_from(['serial', 'virtio', 'sclp']))))
def test_no_two_devices_have_one_number(
        devices: list[tuple[str, object, str]]) -> None:
    xml = ''.join(f"<{tag}><target type='{kind}'"
                  + ('' if port is None else f" port='{port}'")
                  + f'/></{tag}>' for tag, port, kind in devices)
    numbers = [d.number for d in char_device.parse(
        f'<domain><devices>{xml}</devices></domain>')]
    assert numbers == sorted(set(numbers))
