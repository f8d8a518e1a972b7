# SPDX-License-Identifier: Apache-2.0
"""attach refuses what it cannot attach to, and says why."""

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import attach
from virtlogd_driver.cmd.host import serial_port
from virtlogd_driver.node.hypervisor import Guest

_SOURCE = "<source mode='{}' host='127.0.0.1' service='1' tls='{}'/>"


def _tcp(mode: str = 'bind', tls: str = 'no', protocol: str = 'raw') -> str:
    return (f"<serial type='tcp'>{_SOURCE.format(mode, tls)}"
            f"<protocol type='{protocol}'/></serial>")


@pytest.mark.parametrize(('device', 'says'), [
    (_tcp('connect'), r'connects out \(mode="connect"\), to 127.0.0.1:1:'),
    (_tcp(tls='yes'), r'is encrypted \(TLS\)'),
    # libvirt 12.8 defines no such guest any more.
    (_tcp(protocol='tls'), r'is encrypted \(TLS\)'),
    (_tcp(protocol='telnets'), r'is encrypted \(TLS\)'),
    ("<serial type='null'/>", 'is of type null: it is not interactive'),
    ("<serial type='tcp'/>", 'is of type tcp: it is not interactive'),
])
def test_what_cannot_be_attached_to(device: str, says: str) -> None:
    port = serial_port(Guest('uuid', 'guest1', True, 'running',
                             fake_libvirt.domain_xml(device)), 0)
    with pytest.raises(exception.HostError,
                       match=f'Serial port 0 of guest guest1 {says}'):
        attach.check(port)


@pytest.mark.parametrize('device', [
    _tcp(), _tcp(protocol='telnet'), "<serial type='pty'/>",
    "<serial type='unix'><source mode='bind' path='/x'/></serial>"])
def test_what_can_be_attached_to(device: str) -> None:
    attach.check(serial_port(Guest('uuid', 'guest1', True, 'running',
                                   fake_libvirt.domain_xml(device)), 0))
