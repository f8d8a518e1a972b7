# SPDX-License-Identifier: Apache-2.0
"""A server's log, port and boots are as documented, whatever happens to it.

One test for each row of the table in doc/source/operator/life_cycle.rst;
what moves a guest to another host is in test_live_migration.py and
test_cold_migration.py.
"""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import libvirt
import pytest

from tests.functional.one_server import (
    BOOT,
    PORT,
    assert_boots,
    assert_one_port_with_its_log,
    assert_works_after,
    boot,
    output_of_boots,
    type_text,
    wait_for_boot,
)
from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode, Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.history import boot as boots

Use = Callable[[fixtures.Fixture], Any]


def assert_still_running(nova: NovaNode, server: Server) -> None:
    """Not booted anew: the same log goes on."""
    assert_one_port_with_its_log(nova, server)
    type_text(nova, server, 'second')
    assert nova.console_output(server) == f'{BOOT}first\nsecond\n'
    assert_boots(nova, server, [f'{BOOT}first\nsecond\n'])


def test_hard_reboot(nova: NovaNode) -> None:
    server = boot(nova)
    nova.reboot(server, hard=True)
    assert_works_after(nova, server)


def test_soft_reboot_of_a_guest_that_does_not_listen(nova: NovaNode) -> None:
    server = boot(nova)
    nova.reboot(server, hard=False)
    assert_works_after(nova, server)


def test_soft_reboot(libvirt_host: LibvirtHost, tmp_path: Path,
                     use: Use) -> None:
    """A guest that listens to ACPI is started again as it was defined."""
    nova = use(NovaNode(
        libvirt_host, tmp_path / 'nova',
        image=guest.disk_image(guest.boot_sector(count=10, button=True)),
        options={('serial_console', 'port_range'): f'{PORT}:{PORT}',
                 ('libvirt', 'wait_soft_reboot_seconds'): 60}))
    server = boot(nova)
    name = nova.guest(server).name()
    before = libvirt_host.qemu_pid(name)
    nova.reboot(server, hard=False)
    assert_works_after(nova, server)
    assert libvirt_host.qemu_pid(name) != before
    assert 'Instance soft rebooted successfully.' in nova.log()
    assert_boots(nova, server, [
        f'{BOOT}first\n{BOOT}second\n', f'{BOOT}second\n'])


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
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'resized')
    nova.confirm_resize(server)
    assert_one_port_with_its_log(nova, server)
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
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server, f'{BOOT}first\n{BOOT}resized\n')
    type_text(nova, server, 'reverted')


def test_rebuild(nova: NovaNode) -> None:
    server = boot(nova)
    nova.rebuild(server)
    assert_one_port_with_its_log(nova, server)
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


def test_delete_with_rotated_files_and_generations(
        tmp_path: Path, use: Use) -> None:
    """Of both directories, as it is deleted before a resize is confirmed."""
    host = use(LibvirtHost(tmp_path / 'host1', max_size=4096, max_backups=3))
    nova = use(NovaNode(
        host, tmp_path / 'nova',
        image=guest.disk_image(guest.boot_sector(count=2000))))
    server = nova.boot()
    nova.wait_for_output(server, 'line 00002000\n')
    directory = nova.instance_directory(server)
    resized = directory.with_name(f'{directory.name}_resize')
    nova.rebuild(server)
    nova.resize(server)
    until(lambda: (directory / 'console.log.2').exists(), 'rotated')
    assert not list(resized.glob('console*'))
    nova.delete(server)
    assert not list(nova.instances_path.glob(f'{server["id"]}*'))


def test_reset_inside_the_guest(nova: NovaNode) -> None:
    server = boot(nova)
    nova.guest(server).reset()
    assert_works_after(nova, server)


def test_pause_and_unpause(nova: NovaNode) -> None:
    server = boot(nova)
    nova.action(server, 'pause', 'PAUSED')
    assert nova.console_output(server) == f'{BOOT}first\n'
    nova.action(server, 'unpause', 'ACTIVE')
    assert_still_running(nova, server)


def test_suspend_and_resume(nova: NovaNode) -> None:
    server = boot(nova)
    nova.action(server, 'suspend', 'SUSPENDED')
    assert nova.console_output(server) == f'{BOOT}first\n'
    nova.action(server, 'resume', 'ACTIVE')
    assert_still_running(nova, server)


def test_crash_and_start_by_hand(nova: NovaNode,
                                 libvirt_host: LibvirtHost) -> None:
    server = boot(nova)
    os.kill(libvirt_host.qemu_pid(nova.guest(server).name()), signal.SIGKILL)
    until(lambda: not nova.guest(server).isActive(), 'guest ended')
    assert nova.console_output(server) == f'{BOOT}first\n'
    # Not by nova: it is noted as well, when nova hears of it. What the guest
    # has written until then is taken for older, so it may not write yet.
    nova.guest(server).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    directory = nova.instance_directory(server)
    until(lambda: len(boots.read(str(directory))) == 2, 'start is noted')
    nova.guest(server).resume()
    assert_works_after(nova, server)
    assert_boots(nova, server, [
        f'{BOOT}first\n{BOOT}second\n', f'{BOOT}second\n'])


def test_crash_and_automatic_restart(libvirt_host: LibvirtHost,
                                     tmp_path: Path, use: Use) -> None:
    """The whole host goes down, and comes up again."""
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('serial_console', 'port_range'): f'{PORT}:{PORT}',
        (None, 'resume_guests_state_on_host_boot'): True}))
    server = boot(nova)
    os.kill(libvirt_host.qemu_pid(nova.guest(server).name()), signal.SIGKILL)
    until(lambda: not nova.guest(server).isActive(), 'guest ended')
    nova.restart_compute()
    until(lambda: nova.guest(server).isActive(), 'guest started')
    assert_works_after(nova, server)


def test_shelve_without_offload(libvirt_host: LibvirtHost, tmp_path: Path,
                                use: Use) -> None:
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('serial_console', 'port_range'): f'{PORT}:{PORT}',
        (None, 'shelved_offload_time'): -1}))
    server = boot(nova)
    nova.action(server, 'shelve', 'SHELVED')
    nova.action(server, 'unshelve', 'ACTIVE')
    assert_works_after(nova, server)


def test_shelve_with_offload(nova: NovaNode) -> None:
    """The directory is deleted with the guest: the log starts anew."""
    server = boot(nova)
    nova.action(server, 'shelve', 'SHELVED_OFFLOADED')
    assert not list(nova.instances_path.glob(f'{server["id"]}*'))
    nova.action(server, 'unshelve', 'ACTIVE')
    assert_one_port_with_its_log(nova, server)
    until(lambda: len(output_of_boots(nova, server)) == 1, 'one boot')
    # The stand-in of glance keeps no snapshot: this guest has nothing to say.
    assert 'first' not in nova.console_output(server)


def test_boots_are_told_apart(nova: NovaNode) -> None:
    """Across restarts of nova-compute and moves of the log."""
    server = boot(nova)
    nova.reboot(server)
    assert_works_after(nova, server)
    nova.resize(server)
    wait_for_boot(nova, server, f'{BOOT}first\n{BOOT}second\n')
    nova.confirm_resize(server)
    type_text(nova, server, 'third')
    nova.restart_compute()
    nova.stop(server)
    nova.start(server)
    wait_for_boot(nova, server,
                  f'{BOOT}first\n{BOOT}second\n{BOOT}third\n')
    of_each = [f'{BOOT}first\n', f'{BOOT}second\n', f'{BOOT}third\n', BOOT]
    assert_boots(nova, server, [
        ''.join(of_each[n:]) for n in range(4)])


@pytest.mark.parametrize('shared', [False, True], ids=['separate', 'shared'])
def test_evacuate(tmp_path: Path, use: Use, shared: bool) -> None:
    """The log is where the storage is; two hosts never write one file."""
    nova = use(TwoHosts(
        tmp_path / 'lab', shared=shared,
        image=guest.disk_image(guest.boot_sector(count=10))))
    server = nova.boot_on('host1')
    wait_for_boot(nova, server)
    type_text(nova, server, 'first')
    nova.lose('host1')
    nova.evacuate(server, 'host2')
    before = f'{BOOT}first\n' if shared else ''
    wait_for_boot(nova, server, before)
    type_text(nova, server, 'second')
    assert nova.console_output(server) == f'{before}{BOOT}second\n'
    (log,) = nova.guest_xml(server).iterfind('devices/serial/log')
    assert Path(log.get('file')).name == (
        'console.g1.log' if shared else 'console.log')
    assert nova.driver_of('host2')._consoles.ports.held() == {
        ('127.0.0.2', PORT): server['id']}


def test_evacuate_again_and_again(tmp_path: Path, use: Use) -> None:
    """Of the hosts that are lost only the last one may write on."""
    nova = use(TwoHosts(
        tmp_path / 'lab', shared=True,
        image=guest.disk_image(guest.boot_sector(count=10))))
    server = nova.boot_on('host1')
    wait_for_boot(nova, server)
    output = BOOT
    for number in range(1, 4):
        name = nova.host_of(server).name
        other = {'host1': 'host2', 'host2': 'host1'}[name]
        nova.lose(name)
        nova.evacuate(server, other)
        wait_for_boot(nova, server, output)
        output += BOOT
        # nova itself makes an empty console.log.
        logs = {path.name for path in nova.directory_on(
            other, server).glob('console.*[gy]') if path.stat().st_size}
        assert logs == {'console.log', *[
            f'console.g{n + 1}.log' for n in range(number)]}
        nova.find(name)
    assert nova.console_output(server) == output
    assert_boots(nova, server, [
        BOOT * count for count in (4, 3, 2, 1)])
