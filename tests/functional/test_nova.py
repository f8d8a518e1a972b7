# SPDX-License-Identifier: Apache-2.0
"""A server's life, through the REST API of a whole nova.

Whatever happens to the server, its guest keeps its serial port and its log.
There is only one TCP port to give out: an operation that leaks it, or that
takes a second one, fails.
"""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures
import pytest

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import ApiError, NovaNode, Server

PORT = 10000
BOOT = ''.join(f'line {n:08d}\n' for n in range(1, 11))
LAST_LINE = 'line 00000010\n'

Use = Callable[[fixtures.Fixture], fixtures.Fixture]


@pytest.fixture
def nova(libvirt_host: LibvirtHost, tmp_path: Path) -> Iterator[NovaNode]:
    """Its guests write ten lines, then send back what is typed."""
    with NovaNode(libvirt_host, tmp_path / 'nova',
                  options={('serial_console', 'port_range'): f'{PORT}:{PORT}'}
                  ) as node:
        yield node


def devices(nova: NovaNode, server: Server) -> list[dict[str, str | None]]:
    """The serial ports of the guest, as far as nova chooses."""
    found = []
    for serial in nova.guest_xml(server).findall('devices/serial'):
        source, log = serial.find('source'), serial.find('log')
        found.append({
            'type': serial.get('type'),
            'port': None if source is None else source.get('service'),
            'log': None if log is None else log.get('file'),
            'append': None if log is None else log.get('append')})
    return found


def assert_one_port_with_its_log(nova: NovaNode, server: Server,
                                 log: str = 'console.log') -> None:
    assert devices(nova, server) == [{
        'type': 'tcp', 'port': str(PORT), 'append': 'on',
        'log': str(nova.instance_directory(server) / log)}]


def type_text(nova: NovaNode, server: Server, text: str) -> None:
    """Typed at the serial console, and seen on both consoles."""
    with nova.serial_console(server) as terminal:
        terminal.type(f'{text}\r'.encode())
        terminal.read_until(f'{text}\r\n'.encode())
        # While somebody is connected.
        nova.wait_for_output(server, f'{text}\n')


def wait_for_boot(nova: NovaNode, server: Server, before: str = '') -> None:
    """Until the output is what there was, and the messages of a boot."""
    nova.wait_for_output(server, before + BOOT)
    assert nova.console_output(server) == before + BOOT


def boot(nova: NovaNode) -> Server:
    """A server, and 'first' typed into it."""
    server = nova.boot()
    wait_for_boot(nova, server)
    type_text(nova, server, 'first')
    return server


def assert_works_after(nova: NovaNode, server: Server) -> None:
    """Started anew, with the log from before, and both consoles."""
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'second')
    assert nova.console_output(server) == f'{BOOT}first\n{BOOT}second\n'


def test_both_consoles_at_once(nova: NovaNode) -> None:
    server = nova.boot()
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server)
    type_text(nova, server, 'typed text')
    assert nova.console_output(server) == f'{BOOT}typed text\n'


def test_hard_reboot(nova: NovaNode) -> None:
    server = boot(nova)
    nova.reboot(server, hard=True)
    assert_works_after(nova, server)


def test_soft_reboot_of_a_guest_that_does_not_listen(nova: NovaNode) -> None:
    server = boot(nova)
    nova.reboot(server, hard=False)
    assert_works_after(nova, server)


def test_rescue_and_unrescue(nova: NovaNode) -> None:
    server = boot(nova)
    nova.rescue(server)
    assert_works_after(nova, server)
    nova.unrescue(server)
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server, f'{BOOT}first\n{BOOT}second\n')
    type_text(nova, server, 'third')


def test_resize_on_the_same_host_confirmed(nova: NovaNode) -> None:
    server = boot(nova)
    nova.resize(server)
    assert_one_port_with_its_log(nova, server, 'console.g1.log')
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'resized')
    nova.confirm_resize(server)
    assert_one_port_with_its_log(nova, server, 'console.g1.log')
    type_text(nova, server, 'confirmed')
    nova.reboot(server)
    wait_for_boot(nova, server,
                  f'{BOOT}first\n{BOOT}resized\nconfirmed\n')


def test_resize_on_the_same_host_reverted(nova: NovaNode) -> None:
    server = boot(nova)
    nova.resize(server)
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'resized')
    nova.revert_resize(server)
    assert_one_port_with_its_log(nova, server, 'console.g2.log')
    wait_for_boot(nova, server, f'{BOOT}first\n{BOOT}resized\n')
    type_text(nova, server, 'reverted')


def test_rebuild(nova: NovaNode) -> None:
    server = boot(nova)
    nova.rebuild(server)
    assert_one_port_with_its_log(nova, server, 'console.g1.log')
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'rebuilt')
    assert not list(nova.instances_path.glob('*_console'))


def test_stop_and_start(nova: NovaNode) -> None:
    server = boot(nova)
    nova.stop(server)
    assert nova.console_output(server) == f'{BOOT}first\n'
    assert_one_port_with_its_log(nova, server)
    nova.start(server)
    assert_works_after(nova, server)


def test_a_guest_that_crashed_leaves_its_log(nova: NovaNode) -> None:
    server = boot(nova)
    nova.guest(server).destroy()
    assert nova.console_output(server) == f'{BOOT}first\n'


def test_delete(nova: NovaNode) -> None:
    server = boot(nova)
    directory = nova.instance_directory(server)
    assert directory.is_dir()
    nova.delete(server)
    assert not list(nova.instances_path.glob(f'{directory.name}*'))
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', PORT))
    # The only port is there for the next one.
    boot(nova)


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
        assert log.read_bytes() == guest.lines(1, 10)


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
