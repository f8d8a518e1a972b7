# SPDX-License-Identifier: Apache-2.0
import pytest

from virtlogd_driver import exception
from virtlogd_driver.virtlogd.port import Port, serial_ports


def ports(devices: str) -> list[Port]:
    return serial_ports(
        'uuid', 'name', f'<domain><devices>{devices}</devices></domain>')


def test_ports_with_their_logs_and_listeners() -> None:
    assert ports("""
        <serial type='tcp'>
          <source mode='bind' host='127.0.0.1' service='10000' tls='no'/>
          <protocol type='raw'/>
          <log file='/a/console.log' append='on'/>
        </serial>
        <serial type='tcp'>
          <source mode='bind' host='fd00:0::1' service='10001'/>
        </serial>
        <serial type='pty'>
          <source path='/dev/pts/3'/><log file='/a/2' append='on'/>
        </serial>
        <serial type='file'><source path='/a/3'/></serial>
        <serial type='null'/>
        <console type='tcp'>
          <source mode='bind' host='127.0.0.1' service='10000'/>
          <log file='/a/console.log' append='on'/>
        </console>
    """) == [
        Port('uuid', 'name', 0, '/a/console.log', ('127.0.0.1', 10000)),
        Port('uuid', 'name', 1, None, ('fd00::1', 10001)),
        Port('uuid', 'name', 2, '/a/2'),
        Port('uuid', 'name', 3, '/a/3'),
        Port('uuid', 'name', 4, None),
    ]


def test_consoles_where_there_are_no_serial_ports() -> None:
    assert ports("""
        <console type='pty'>
          <log file='/a/0'/><target type='sclp' port='0'/>
        </console>""") == [Port('uuid', 'name', 0, '/a/0')]


@pytest.mark.parametrize(('source', 'listener'), [
    ("mode='bind' host='localhost' service='1'", ('::', 1)),
    ("mode='bind' service='1'", ('::', 1)),
    ("mode='connect' host='127.0.0.1' service='1'", None),
    ("mode='bind' host='127.0.0.1' service='tty'", None),
    ("mode='bind' host='127.0.0.1'", None),
])
def test_listener(source: str, listener: tuple[str, int] | None) -> None:
    (port,) = ports(f"<serial type='tcp'><source {source}/></serial>")
    assert port.listener == listener


@pytest.mark.parametrize('xml', ['', '<domain>', 'no XML'])
def test_xml_that_is_none(xml: str) -> None:
    with pytest.raises(exception.InvalidGuestXML, match='name'):
        serial_ports('uuid', 'name', xml)


def test_guest_without_devices() -> None:
    assert serial_ports('uuid', 'name', '<domain/>') == []
    assert ports('') == []
