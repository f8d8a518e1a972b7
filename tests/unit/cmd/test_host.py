# SPDX-License-Identifier: Apache-2.0
"""What the commands see of a host depends on who runs them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit import fake_libvirt
from virtlogd_driver.cmd import host
from virtlogd_driver.cmd.host import Host, serial_port
from virtlogd_driver.node.hypervisor import Guest
from virtlogd_driver.virtlogd import viewer


@pytest.mark.parametrize('root', [True, False])
def test_a_log_is_read_by_root_and_by_others(
        root: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, '_is_root', lambda: root)
    log = tmp_path / 'console.log'
    log.write_bytes(b'one two')
    this = Host('test:///default', '/nowhere', 1.0)
    read = this.read_tail(str(log), 3)
    assert read.data == b'two'
    log.write_bytes(b'one two three')
    assert this.read_from(str(log), read.position, 100).data == b' three'


def test_a_thread_sees_the_guests_too() -> None:
    """attach asks libvirt in one: it may hang."""
    this = Host('test:///default', '/nowhere', 1.0)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(this.guests).result(30) == this.guests()


def _port(devices: str) -> host.SerialPort:
    return serial_port(Guest('uuid', 'guest', True, 'running',
                             fake_libvirt.domain_xml(devices)), 0)


def test_who_cannot_ask_does_not_say_that_nobody_listens(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(viewer, 'listening', fail)
    host = Host('test:///default', '/nowhere', 1.0)
    assert host.closed([_port(fake_libvirt.serial()),
                        _port("<serial type='pty'/>")]) == []


def test_what_nobody_listens_on(monkeypatch: pytest.MonkeyPatch,
                                tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(
        viewer, 'listening',
        lambda found: asked.append(set(found)) or {('127.0.0.1', 10001)})
    ports = [_port(devices) for devices in (
        fake_libvirt.serial(service=10000), fake_libvirt.serial(service=10001),
        *(f"<serial type='pty'><source path='{tmp_path}{name}'/></serial>"
          for name in ('/gone', '')))]
    host = Host('test:///default', '/nowhere', 1.0)
    assert host.closed(ports) == [ports[0], ports[2]]
    assert asked == [{('127.0.0.1', 10000), ('127.0.0.1', 10001)}]
