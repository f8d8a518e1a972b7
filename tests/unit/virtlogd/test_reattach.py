# SPDX-License-Identifier: Apache-2.0
"""Each log belongs to one device; the rest needs a real QEMU."""

import os
import socket
from typing import NoReturn

import libvirt_qemu
import pytest

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import privileged, reattach
from virtlogd_driver.virtlogd.disk import Disks

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


# The pipe of virtlogd

@pytest.mark.skipif(os.geteuid() != 0, reason='a stranger is made by root')
@pytest.mark.parametrize('sent', [True, False])
def test_a_descriptor_of_a_stranger_is_not_taken(
        monkeypatch: pytest.MonkeyPatch, sent: bool) -> None:
    """Names of abstract sockets are listed for all in /proc/net/unix."""
    strangers: list[socket.socket] = []

    def open_log(_path: str, _domain: str, _name: str, _log: str,
                 receiver: str, _timeout: float) -> None:
        os.seteuid(65534)
        try:
            _connect(receiver, strange)
        finally:
            os.seteuid(0)
        _connect(receiver, pipe if sent else None)

    def _connect(receiver: str, descriptor: int | None) -> None:
        channel = socket.socket(socket.AF_UNIX)
        strangers.append(channel)
        channel.connect(f'\0{receiver}')
        if descriptor is not None:
            socket.send_fds(channel, [b'\0'], [descriptor])

    read_end, pipe = os.pipe()
    strange = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(reattach.privileged, 'open_log', open_log)
    try:
        if sent:
            got = reattach._open_pipe('/sock', 'uuid', 'guest', '/log', 5)
            assert os.path.samestat(os.fstat(got), os.fstat(pipe))
            assert not os.get_inheritable(got)
            os.close(got)
        else:
            with pytest.raises(exception.ReattachFailed, match='somebody'):
                reattach._open_pipe('/sock', 'uuid', 'guest', '/log', 5)
    finally:
        for channel in strangers:
            channel.close()
        for descriptor in (read_end, pipe, strange):
            os.close(descriptor)


class Guest:
    """A domain whose log is dead."""

    def name(self) -> str:
        return 'instance-a'

    def UUIDString(self) -> str:
        return 'a'

    def XMLDesc(self) -> str:
        return (f"<domain><devices><serial type='pty'><log file='{LOG}'/>"
                "<alias name='serial0'/></serial></devices></domain>")


def test_a_log_on_a_disk_that_hangs_is_not_asked_for(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper would hang with it, a thread with each attempt."""
    def probe(*_: object) -> tuple[str, str, list[str]]:
        return privileged.UP, '', [privileged.CLOSED]

    def open_log(*_: object) -> NoReturn:
        raise AssertionError

    class Stalled(Disks):
        def ask(self, path: str, *_: object) -> NoReturn:  # type: ignore[override]
            raise exception.DiskStalled(f'{path} does not answer.')

    monkeypatch.setattr(privileged, 'probe', probe)
    monkeypatch.setattr(privileged, 'open_log', open_log)
    monkeypatch.setattr(libvirt_qemu, 'qemuMonitorCommandWithFiles', None,
                        raising=False)
    with pytest.raises(exception.ReattachFailed,
                       match=f'{LOG} does not answer'):
        reattach.reattach(Guest(), LOG, '/sock', 1, disks=Stalled())
