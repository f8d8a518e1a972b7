# SPDX-License-Identifier: Apache-2.0
"""Which device a log belongs to; the rest needs a real QEMU."""

import pytest

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import reattach

LOG = '/a/console.log'


def device(serial: str, log: str = LOG) -> reattach.Device:
    return reattach.find_device(f"""
        <domain><devices>
          <disk type='file'><log file='{LOG}'/></disk>
          <serial type='pty'><log file='/other'/><alias name='no'/></serial>
          {serial}
        </devices></domain>""", log)


def test_tcp_listener() -> None:
    assert device(f"""
        <serial type='tcp'>
          <source mode='bind' host='::1' service='10000' tls='no'/>
          <protocol type='raw'/><log file='{LOG}' append='on'/>
          <alias name='serial0'/>
        </serial>""") == reattach.Device(
            'charserial0', {'type': 'socket', 'data': {
                'addr': {'type': 'inet',
                         'data': {'host': '::1', 'port': '10000'}},
                'server': True, 'wait': False, 'telnet': False}}, None)


def test_pseudo_terminal_of_a_console() -> None:
    assert device(f"""
        <console type='pty' tty='/dev/pts/4'>
          <source path='/dev/pts/4'/><log file='{LOG}'/>
          <target type='sclp'/><alias name='console0'/>
        </console>""") == reattach.Device(
            'charconsole0', {'type': 'pty', 'data': {}}, '/dev/pts/4')


def test_unix_socket_service_name_and_file() -> None:
    unix = device(f"""
        <serial type='unix'><source mode='bind' path='/s'/>
          <log file='{LOG}'/><alias name='serial0'/></serial>""")
    assert unix.backend['data']['addr'] == {
        'type': 'unix', 'data': {'path': '/s'}}
    assert not unix.listens()
    named = device(f"""
        <serial type='tcp'>
          <source mode='bind' host='127.0.0.1' service='http-alt'/>
          <log file='{LOG}'/><alias name='serial0'/></serial>""")
    assert named.backend['data']['addr']['data']['port'] == 'http-alt'
    file = device(f"<serial type='file'><source path='{LOG}'/>"
                  "<alias name='serial0'/></serial>")
    assert file.backend == {'type': 'file', 'data': {}}
    assert file.listens()


@pytest.mark.parametrize(('serial', 'said'), [
    ('', 'no device'),
    (f"<serial type='pty'><log file='{LOG}'/></serial>", 'does not run'),
    (f"<serial type='tcp'><source mode='connect' host='h' service='1'/>"
     f"<log file='{LOG}'/><alias name='s'/></serial>", 'connects out'),
    (f"<serial type='tcp'><source mode='bind' host='h' service='1' "
     f"tls='yes'/><log file='{LOG}'/><alias name='s'/></serial>", 'TLS'),
    (f"<serial type='unix'><source mode='connect' path='/s'/>"
     f"<log file='{LOG}'/><alias name='s'/></serial>", 'connects out'),
    (f"<serial type='udp'><log file='{LOG}'/><alias name='s'/></serial>",
     'type udp'),
])
def test_device_that_cannot_be_attached_again(serial: str,
                                              said: str) -> None:
    with pytest.raises(exception.ReattachFailed, match=said):
        device(serial)
