# SPDX-License-Identifier: Apache-2.0
"""The log follows a guest through cold migration and resize."""

from typing import Any, ClassVar

import pytest

from tests.functional.moving_server import (
    LIMIT,
    QUIET,
    Make,
    assert_interactive,
    cold_storages,
    devices,
    files,
    held,
    other,
    type_text,
    warnings,
)
from tests.functional.one_server import BOOT
from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.console_log import reader


class TestColdMigration:

    @pytest.fixture
    def nova(self, make: Make, request: pytest.FixtureRequest) -> TwoHosts:
        shared, transport = request.param
        return make(QUIET, shared=shared, options={
            ('libvirt', 'remote_filesystem_transport'): transport})

    ways = pytest.mark.parametrize(
        'nova', [(False, 'ssh'), (False, 'rsync'), (True, 'ssh')],
        indirect=True, ids=['ssh', 'rsync', 'shared'])

    def migrate(self, nova: TwoHosts) -> tuple[Server, str]:
        """A server that has moved to host2, and its output until then."""
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        type_text(nova, server, 'first')
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        assert nova.host_of(server).name == 'host2'
        nova.wait_for_output(server, f'{BOOT}first\n{BOOT}')
        type_text(nova, server, 'moved')
        output = f'{BOOT}first\n{BOOT}moved\n'
        assert nova.console_output(server) == output
        return server, output

    @ways
    def test_confirmed(self, nova: TwoHosts) -> None:
        server, output = self.migrate(nova)
        nova.confirm_resize(server)
        type_text(nova, server, 'confirmed')
        nova.reboot(server)
        nova.wait_for_output(server, f'{output}confirmed\n{BOOT}')
        assert held(nova, 'host1') == set()
        assert held(nova, 'host2') == {server['id']}
        assert warnings(nova) == []

    @ways
    def test_reverted(self, nova: TwoHosts) -> None:
        server, output = self.migrate(nova)
        nova.revert_resize(server)
        assert nova.host_of(server).name == 'host1'
        nova.wait_for_output(server, output + BOOT)
        type_text(nova, server, 'reverted')
        assert nova.console_output(server) == f'{output}{BOOT}reverted\n'
        assert held(nova, 'host1') == {server['id']}
        assert held(nova, 'host2') == set()
        assert warnings(nova) == []
        nova.delete(server)
        # What host2 has sent stays there until it has asked whether it came:
        # after twice as long each time, so less than the test has taken.
        for name in nova.hosts:
            until(lambda path=nova.instances[name]: not list(
                path.glob(f'{server["id"]}*')), 'nothing is left', 120.0)


class TestColdMigrationWithOldHosts:
    """One cannot have both consoles, or has nova's own driver."""

    OLD: ClassVar[dict[str, Any]] = {'stdio_handler': 'file'}
    NOVAS: ClassVar[dict[tuple[None, str], str]] = {
        (None, 'compute_driver'): 'libvirt.LibvirtDriver'}

    def boot(self, nova: TwoHosts, name: str) -> Server:
        server = nova.boot_on(name)
        nova.wait_for_output(server, BOOT)
        return server

    def move(self, nova: TwoHosts, server: Server) -> None:
        name = other(nova.host_of(server).name)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': name})
        assert nova.host_of(server).name == name

    def wait_for_all(self, nova: TwoHosts, server: Server, output: str,
                     log: str) -> None:
        """Until that is the output, in a log of this type and name."""
        nova.wait_for_output(server, output)
        assert nova.console_output(server) == output
        kind, _, name = devices(nova, server)[0]
        assert f'{kind} {name}' == log

    @cold_storages
    def test_to_one_that_is_not_capable_and_back(self, make: Make,
                                                 shared: bool) -> None:
        nova = make(QUIET, shared=shared, host_settings={'host2': self.OLD})
        server = self.boot(nova, 'host1')
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT * 2, 'file console.g1.log')
        nova.confirm_resize(server)
        assert held(nova, 'host1') == held(nova, 'host2') == set()
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT * 3, 'tcp console.g2.log')
        assert_interactive(nova, server)
        nova.confirm_resize(server)
        assert held(nova, 'host1') == {server['id']}
        assert warnings(nova) == []

    @cold_storages
    @pytest.mark.parametrize('old', [
        pytest.param('host1', marks=pytest.mark.long), 'host2'])
    def test_reverted(self, make: Make, shared: bool, old: str) -> None:
        nova = make(QUIET, shared=shared, host_settings={old: self.OLD})
        server = self.boot(nova, 'host1')
        self.move(nova, server)
        kinds = {name: 'file' if name == old else 'tcp'
                 for name in nova.hosts}
        self.wait_for_all(nova, server, BOOT * 2, (
            f'{kinds["host2"]} console.g1.log'))
        nova.revert_resize(server)
        self.wait_for_all(nova, server, BOOT * 3, (
            f'{kinds["host1"]} console.g2.log'))
        assert held(nova, 'host1') == (
            {server['id']} if old == 'host2' else set())
        assert held(nova, 'host2') == set()
        assert warnings(nova) == []

    @pytest.mark.long
    def test_interactive_where_it_cannot_be_logged(self, make: Make) -> None:
        """What it wrote before stays, though it writes no log there."""
        nova = make(QUIET, host_settings={'host2': self.OLD}, options={
            ('virtlogd', 'fallback_device'): 'tcp'})
        server = self.boot(nova, 'host1')
        self.move(nova, server)
        nova.confirm_resize(server)
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        assert nova.console_output(server) == BOOT
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT * 2, 'tcp console.g1.log')
        assert warnings(nova) == []

    @cold_storages
    def test_to_novas_own_driver(self, make: Make, shared: bool) -> None:
        """It begins the log anew, beside what came."""
        nova = make(QUIET, shared=shared, host_options={'host2': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        nova.confirm_resize(server)
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
        nova.host_options['host2'] = {}
        nova.restart_compute_on('host2')
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
        directory = nova.directory_on('host2', server)
        old = (directory.with_name(f'{directory.name}_console')
               / 'console.log' if shared else directory / 'console.history')
        assert old.read_text().replace('\r', '') == f'{BOOT}first\n'
        assert warnings(nova, 'was begun anew by another driver')
        assert warnings(nova) == []
        if shared:
            # As soon as nobody writes it, it goes on from what was before.
            nova.reboot(server)
            assert devices(nova, server)[0][2] == 'console.g1.log'
            assert files(nova, 'host2', server) == [
                'console.g1.log', 'console.log']

    @pytest.mark.long
    @cold_storages
    def test_reverted_from_novas_own_driver(self, make: Make,
                                            shared: bool) -> None:
        """What was before stays. What it wrote there does not come back,
        where that is another directory; else it goes between."""
        nova = make(QUIET, shared=shared, host_options={'host2': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
        nova.revert_resize(server)
        if shared:
            # That does not surely go on from what was before.
            self.wait_for_all(nova, server, BOOT * 2, 'tcp console.g2.log')
            assert files(nova, 'host1', server) == [
                'console.g1.log', 'console.g2.log', 'console.log']
        else:
            self.wait_for_all(nova, server, f'{BOOT}first\n{BOOT}',
                              'tcp console.log')
        assert_interactive(nova, server)
        assert held(nova, 'host1') == {server['id']}

    @cold_storages
    def test_from_novas_own_driver(self, make: Make, shared: bool) -> None:
        nova = make(QUIET, shared=shared, host_options={'host1': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        # Where it is there, it is kept.
        before = f'{BOOT}first\n' if shared else ''
        self.wait_for_all(nova, server, before + BOOT, 'tcp console.log')
        nova.confirm_resize(server)
        assert_interactive(nova, server)
        assert held(nova, 'host2') == {server['id']}
        assert warnings(nova) == []

    @pytest.mark.long
    @cold_storages
    def test_reverted_to_novas_own_driver(self, make: Make,
                                          shared: bool) -> None:
        """It leaves the guest without a console until a hard reboot."""
        nova = make(QUIET, shared=shared, host_options={'host1': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        before = f'{BOOT}first\n' if shared else ''
        self.wait_for_all(nova, server, before + BOOT, 'tcp console.log')
        nova.revert_resize(server)
        assert devices(nova, server) == []
        nova.reboot(server)
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
        assert_interactive(nova, server)
        assert held(nova, 'host2') == set()
        assert warnings(nova) == []


class TestResizeToAnotherHost:
    """Other memory, and one more serial port; both logs go along."""

    @pytest.fixture
    def nova(self, make: Make, request: pytest.FixtureRequest) -> TwoHosts:
        nova = make(guest.disk_image(guest.boot_sector(
            count=10, burst=10, ports=2)), shared=request.param)
        for ports, memory in ((2, 192), (3, 256)):
            nova.create_flavor(f'{ports} ports', memory, {
                'hw:serial_port_count': str(ports)})
        # It is the other host, or none.
        nova.set_option((None, 'allow_resize_to_same_host'), False)
        return nova

    both = pytest.mark.parametrize(
        'nova', [pytest.param(False, marks=pytest.mark.long), True],
        indirect=True, ids=['separate', 'shared'])

    def wait_for_boots(self, nova: TwoHosts, server: Server, name: str,
                       count: int, ports: int) -> None:
        """Until this is what each log has, in its newest generation."""
        assert nova.host_of(server).name == name
        logs = [nova.directory_on(name, server) / log
                for _, _, log in devices(nova, server)]
        assert len(logs) == ports
        for log in logs[:2]:
            until(lambda log=log: reader.read_tail(
                str(log), LIMIT).data.decode().replace('\r', '')
                == BOOT * count, f'{log} has {count} boots')
        # The guest does not write on this one.
        for log in logs[2:]:
            assert log.stat().st_size == 0

    @both
    def test_confirmed_and_back(self, nova: TwoHosts) -> None:
        server = nova.boot_on('host1', '2 ports')
        self.wait_for_boots(nova, server, 'host1', 1, 2)
        nova.resize(server, '3 ports')
        assert nova.guest(server).maxMemory() == 256 * 1024
        self.wait_for_boots(nova, server, 'host2', 2, 3)
        nova.confirm_resize(server)
        nova.resize(server, '2 ports')
        self.wait_for_boots(nova, server, 'host1', 3, 2)
        nova.confirm_resize(server)
        assert len(nova.driver_of('host1')._consoles.ports.held()) == 2
        assert held(nova, 'host2') == set()
        assert warnings(nova) == []

    @both
    def test_reverted(self, nova: TwoHosts) -> None:
        server = nova.boot_on('host1', '2 ports')
        self.wait_for_boots(nova, server, 'host1', 1, 2)
        nova.resize(server, '3 ports')
        self.wait_for_boots(nova, server, 'host2', 2, 3)
        nova.revert_resize(server)
        assert nova.guest(server).maxMemory() == 192 * 1024
        self.wait_for_boots(nova, server, 'host1', 3, 2)
        assert len(nova.driver_of('host1')._consoles.ports.held()) == 2
        assert held(nova, 'host2') == set()
        assert warnings(nova) == []
