# SPDX-License-Identifier: Apache-2.0
"""The REST API of a whole nova gives both consoles of a server."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fixtures
import pytest

from tests.functional.one_server import (
    BOOT,
    PORT,
    assert_one_port_with_its_log,
    boot,
    devices,
    type_text,
    wait_for_boot,
)
from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import ApiError, NovaNode
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


def test_both_consoles_at_once(nova: NovaNode) -> None:
    server = nova.boot()
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server)
    type_text(nova, server, 'typed text')
    assert nova.console_output(server) == f'{BOOT}typed text\n'


def test_no_port_left(nova: NovaNode) -> None:
    first = boot(nova)
    with pytest.raises(RuntimeError, match=r'(?i)port'):
        nova.boot()
    # The one that has the port keeps it.
    assert_one_port_with_its_log(nova, first)
    type_text(nova, first, 'second')


def test_nova_compute_restarts(libvirt_host: LibvirtHost,
                               tmp_path: Path, use: Use) -> None:
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('serial_console', 'port_range'): f'{PORT}:{PORT + 1}'}))
    servers = [nova.boot()]
    wait_for_boot(nova, servers[0])
    nova.guest(servers[0]).suspend()
    nova.restart_compute()
    nova.guest(servers[0]).resume()
    servers.append(nova.boot())
    assert [devices(nova, server)[0]['port'] for server in servers] == [
        str(PORT), str(PORT + 1)]
    for server in servers:
        type_text(nova, server, server['id'])


def test_two_serial_ports(libvirt_host: LibvirtHost, tmp_path: Path,
                          use: Use) -> None:
    nova = use(NovaNode(
        libvirt_host, tmp_path / 'nova',
        image=guest.disk_image(guest.boot_sector(count=10, ports=2))))
    nova.create_flavor('ports', extra_specs={'hw:serial_port_count': '2'})
    server = nova.boot(flavor='ports')
    wait_for_boot(nova, server)
    found = devices(nova, server)
    assert [device['type'] for device in found] == ['tcp', 'tcp']
    assert [device['append'] for device in found] == ['on', 'on']
    directory = nova.instance_directory(server)
    assert [device['log'] for device in found] == [
        str(directory / 'console.log'), str(directory / 'console.port1.log')]
    for device in found:
        log = Path(str(device['log']))
        until(lambda log=log:  # type: ignore[misc]
              log.read_bytes() == guest.lines(1, 10), 'its lines')


def test_more_ports_than_the_machine_has(nova: NovaNode) -> None:
    nova.create_flavor('ports', extra_specs={'hw:serial_port_count': '5'})
    with pytest.raises(RuntimeError, match='serial ports'):
        nova.boot(flavor='ports')
    assert nova.host.connect().listAllDomains() == []


def test_a_rotated_log(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host1', max_size=4096, max_backups=3))
    nova = use(NovaNode(
        host, tmp_path / 'nova',
        image=guest.disk_image(guest.boot_sector(count=2000))))
    server = nova.boot()
    output = nova.wait_for_output(server, 'line 00002000\n')
    # Kept are four files of up to 4 KiB.
    assert 3 * 4096 < len(guest.lines(1, 1)) * output.count('\n') <= 4 * 4096
    first = int(output.splitlines()[1].removeprefix('line '))
    assert output.splitlines()[1:] == [
        f'line {n:08d}' for n in range(first, 2001)]


def test_a_host_without_virtlogd(tmp_path: Path, use: Use) -> None:
    host = use(LibvirtHost(tmp_path / 'host1', stdio_handler='file'))
    nova = use(NovaNode(host, tmp_path / 'nova'))
    server = nova.boot()
    wait_for_boot(nova, server)
    assert devices(nova, server)[0]['type'] == 'file'
    with pytest.raises(ApiError, match='400'):
        nova.serial_console(server)


def test_serial_console_off(libvirt_host: LibvirtHost, tmp_path: Path,
                            use: Use) -> None:
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova',
                        options={('serial_console', 'enabled'): False}))
    server = nova.boot()
    wait_for_boot(nova, server)
    found = devices(nova, server)
    assert [(device['type'], device['append']) for device in found] == [
        ('pty', 'on')]


def test_the_log_is_gone(nova: NovaNode) -> None:
    """No log is no reason to fail: there is nothing to show."""
    server = boot(nova)
    nova.stop(server)
    shutil.move(nova.instance_directory(server) / 'console.log',
                nova.directory / 'elsewhere')
    assert nova.console_output(server) == ''
