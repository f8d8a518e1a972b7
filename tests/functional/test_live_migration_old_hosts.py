# SPDX-License-Identifier: Apache-2.0
"""Guests migrate live from and to hosts that cannot have both consoles."""

from typing import Any, ClassVar

import pytest

from tests.functional.moving_server import (
    Make,
    assert_exact,
    assert_interactive,
    both_storages,
    devices,
    files,
    held,
    numbers,
    wait_for_more,
    warnings,
)
from tests.lab.wait import until


class TestOldDestination:
    """A host that cannot have both consoles, or has nova's own driver."""

    CAPABILITY: ClassVar[dict[str, Any]] = {
        'host_settings': {'host2': {'stdio_handler': 'file'}}}
    DRIVER: ClassVar[dict[str, Any]] = {
        'host_options': {'host2': {
            (None, 'compute_driver'): 'libvirt.LibvirtDriver'}}}
    SERIAL_OFF: ClassVar[dict[str, Any]] = {
        'host_options': {'host2': {('serial_console', 'enabled'): False}}}

    def test_interactive_and_the_old_log_stays(self, make: Make) -> None:
        nova = make(**self.CAPABILITY)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        before = nova.console_output(server)
        assert_exact(nova, server)
        nova.move_live(server, 'host1')
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        assert nova.console_output(server) == before
        nova.reboot(server)
        assert devices(nova, server) == [
            ('tcp', '127.0.0.1', 'console.g1.log')]
        output = nova.wait_for_output(server, before + 'line 00000001\n')
        numbers(output)

    def test_novas_own_driver(self, make: Make) -> None:
        nova = make(**self.DRIVER)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        # Nobody puts it in place there, but there it is, and whole.
        (history,) = nova.directory_on('host2', server).glob(
            'console.moving/history.0')
        found = numbers(history.read_text().replace('\r', ''))
        assert found == list(range(1, len(found) + 1))
        # Back home it keeps what it has until it is rebooted.
        nova.move_live(server, 'host1')
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        assert_interactive(nova, server)
        nova.reboot(server)
        assert devices(nova, server)[0][0] == 'tcp'
        wait_for_more(nova, server, boots=2)

    @pytest.mark.parametrize('middle', ['CAPABILITY', 'DRIVER'])
    def test_there_and_back_on_shared_storage(self, make: Make,
                                              middle: str) -> None:
        """Two hosts have the old log in their hands, and it is all there."""
        nova = make(shared=True, **getattr(self, middle))
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        # Where nova's own driver does not delete it.
        aside = nova.directory_on('host2', server).with_name(
            f'{server["id"]}_console')
        assert (aside / 'console.log').exists() == (middle == 'DRIVER')
        assert assert_exact(nova, server) if middle != 'DRIVER' else True
        nova.move_live(server, 'host1')
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        before = nova.console_output(server)
        assert assert_exact(nova, server) > 0
        nova.reboot(server)
        nova.wait_for_output(server, before + 'line 00000001\n')
        # Once more, with what it wrote since.
        for name in ('host2', 'host1'):
            nova.move_live(server, name)
        output = nova.console_output(server)
        assert output.startswith(before + 'line 00000001\n')
        assert warnings(nova) == []

    @both_storages
    def test_upgraded_on_its_way_back(self, make: Make,
                                      shared: bool) -> None:
        """Its new log goes on from the old one, though it had none there."""
        nova = make(shared=shared, **self.CAPABILITY, options={
            ('virtlogd', 'upgrade_on_migration'): True})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        before = nova.console_output(server)
        assert assert_exact(nova, server) > 0
        nova.move_live(server, 'host1')
        assert devices(nova, server) == [
            ('tcp', '127.0.0.1', 'console.g1.log')]
        until(lambda: len(nova.console_output(server)) > len(before),
              'the guest writes on')
        assert nova.console_output(server).startswith(before)

    def test_the_host_is_upgraded_later(self, make: Make) -> None:
        nova = make(**self.DRIVER)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.live_migrate(server, 'host2')
        nova.host_options['host2'] = {}
        nova.restart_compute_on('host2')
        assert_exact(nova, server)
        nova.reboot(server)
        assert devices(nova, server) == [
            ('tcp', '127.0.0.2', 'console.g1.log')]
        wait_for_more(nova, server, boots=2)

    def test_the_host_is_upgraded_under_a_rebooted_guest(
            self, make: Make) -> None:
        """nova's own driver has named its log; the old one is beside it."""
        nova = make(**self.DRIVER)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        before = numbers(nova.console_output(server))
        nova.live_migrate(server, 'host2')
        nova.reboot(server)
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'console.log')]
        nova.host_options['host2'] = {}
        nova.restart_compute_on('host2')

        def in_place() -> bool:
            # Its source may have copied it again meanwhile: whoever reads
            # the log next removes that.
            nova.console_output(server)
            return files(nova, 'host2', server) == [
                'console.history', 'console.log']
        until(in_place, 'it is in its place, and nothing else is left')
        (said,) = warnings(nova, 'was begun anew by another driver')
        old = nova.directory_on('host2', server) / 'console.history'
        assert str(nova.instances_path / server['id'] / old.name) in said
        found = numbers(old.read_text().replace('\r', ''))
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= len(before)
        wait_for_more(nova, server)

    def test_without_serial_consoles(self, make: Make) -> None:
        nova = make(**self.CAPABILITY, **self.SERIAL_OFF)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        wait_for_more(nova, server)

    @both_storages
    def test_novas_own_driver_without_serial_consoles(
            self, make: Make, shared: bool) -> None:
        nova = make(shared=shared, host_options={'host2': {
            **self.DRIVER['host_options']['host2'],
            **self.SERIAL_OFF['host_options']['host2']}})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        # nova shows what its file has: what was written since.
        def found() -> list[int]:
            return numbers(nova.wait_for_output(server, '\nline '),
                           begins_anywhere=True)
        first = found()
        until(lambda: found() > first, 'the guest writes on')


class TestOldSource:

    @pytest.mark.parametrize('upgrade', [False, True])
    def test_not_capable(self, make: Make, upgrade: bool) -> None:
        """What it wrote follows it, with or without an upgrade."""
        nova = make(
            host_settings={'host1': {'stdio_handler': 'file'}},
            options={('virtlogd', 'upgrade_on_migration'): upgrade})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert devices(nova, server) == [('file', 'None', 'console.log')]
        nova.move_live(server, 'host2')
        upgraded = [('tcp', '127.0.0.2', 'console.g1.log')]
        assert devices(nova, server) == (
            upgraded if upgrade else [('file', 'None', 'console.g1.log')])
        wait_for_more(nova, server)
        if not upgrade:
            nova.reboot(server)
            assert devices(nova, server) == upgraded
        assert_interactive(nova, server)

    def test_novas_own_driver(self, make: Make) -> None:
        """As it was configured, until it is rebooted."""
        nova = make(host_options={'host1': {
            (None, 'compute_driver'): 'libvirt.LibvirtDriver'}})
        server = nova.boot_on('host1')
        nova.wait_for_output(server, 'line ')
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'console.log')]
        numbers(nova.wait_for_output(server, '\nline '), begins_anywhere=True)
        assert_interactive(nova, server)
        assert held(nova, 'host2') == {server['id']}
        nova.reboot(server)
        assert devices(nova, server) == [
            ('tcp', '127.0.0.2', 'console.g1.log')]


class TestBetweenOldHosts:
    """As nova does: a guest keeps what it has, and its log follows."""

    def test_interactive(self, make: Make) -> None:
        old = {'stdio_handler': 'file'}
        nova = make(
            host_settings={'host1': old, 'host2': old},
            options={('virtlogd', 'fallback_device'): 'tcp'})
        server = nova.boot_on('host1')
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        assert held(nova, 'host1') == set()
        assert held(nova, 'host2') == {server['id']}
        assert warnings(nova) == []

    def test_into_a_file(self, make: Make) -> None:
        old = {'stdio_handler': 'file'}
        nova = make(host_settings={'host1': old, 'host2': old})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert devices(nova, server) == [('file', 'None', 'console.log')]
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        wait_for_more(nova, server)
        assert warnings(nova) == []


class TestSerialConsolesOnOneHostOnly:

    def test_there_and_back(self, make: Make) -> None:
        nova = make(host_options={
            'host2': {('serial_console', 'enabled'): False}})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [('pty', 'None', 'console.g1.log')]
        assert held(nova, 'host1') == held(nova, 'host2') == set()
        wait_for_more(nova, server)
        nova.move_live(server, 'host1')
        # It keeps what it has, and the port is there for the next boot.
        assert devices(nova, server) == [('pty', 'None', 'console.g1.log')]
        wait_for_more(nova, server)
        nova.reboot(server)
        assert devices(nova, server) == [
            ('tcp', '127.0.0.1', 'console.g1.log')]
        assert_interactive(nova, server)

    def test_upgraded(self, make: Make) -> None:
        nova = make(
            host_options={'host1': {('serial_console', 'enabled'): False}},
            options={('virtlogd', 'upgrade_on_migration'): True})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert devices(nova, server) == [('pty', 'None', 'console.log')]
        nova.move_live(server, 'host2')
        assert devices(nova, server) == [
            ('tcp', '127.0.0.2', 'console.g1.log')]
        wait_for_more(nova, server)
        assert_interactive(nova, server)
