# SPDX-License-Identifier: Apache-2.0
"""A live migration that is refused, fails or is aborted changes nothing."""

import re
import socket
import subprocess

from tests.functional.moving_server import (
    Before,
    Make,
    Use,
    assert_interactive,
    both_storages,
    devices,
    files,
    held,
    wait_for_more,
)
from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.compute import cold_migration


class TestItDoesNotMove:
    """The source logs on, and the destination is as it was."""

    def assert_as_before(self, nova: TwoHosts, server: Server) -> None:
        assert nova.migrations(server)[0]['status'] in (
            'error', 'failed', 'cancelled')
        assert nova.host_of(server).name == 'host1'
        if 'Live Migration failure' in nova.log():
            # So nova 34 does with a guest that has stayed.
            nova.wait(server, 'ERROR')
            nova.action(server, 'os-resetState', 'ACTIVE',
                        {'state': 'active'})
        wait_for_more(nova, server)
        assert devices(nova, server) == [
            ('tcp', '127.0.0.1', 'console.log')]
        assert files(nova, 'host1', server) == ['console.log']
        if not nova.shared:
            # nova-compute there is told to, and not waited for.
            until(lambda: not nova.directory_on('host2', server).exists(),
                  'cleaned up')
        assert held(nova, 'host1') == {server['id']}
        with nova.places.at('host2'):
            nova.driver_of('host2')._consoles.release_unused(
                cold_migration.is_expected)
        assert held(nova, 'host2') == set()
        assert_interactive(nova, server)

    def assert_refused(self, nova: TwoHosts, server: Server,
                       reason: str) -> None:
        """Before anything was done."""
        assert nova.live_migrate(server, 'host2') == 'error'
        assert re.search(f'MigrationPreCheckError.*{reason}', nova.log())
        assert held(nova, 'host2') == set()
        self.assert_as_before(nova, server)

    def test_virtlogd_is_down(self, make: Make) -> None:
        nova = make()
        server = nova.boot_on('host1')
        nova.hosts['host2'].stop_virtlogd()
        self.assert_refused(nova, server, 'host2: .*virtlogd')

    def test_no_port_is_left(self, make: Make) -> None:
        nova = make(host_options={
            'host2': {('serial_console', 'port_range'): '10000:10000'}})
        server = nova.boot_on('host1')
        nova.boot_on('host2')
        assert nova.live_migrate(server, 'host2') == 'error'
        assert re.search('MigrationPreCheckError.*host2: No 1 free TCP ports',
                         nova.log())
        wait_for_more(nova, server)
        assert not nova.directory_on('host2', server).exists()
        assert server['id'] not in held(nova, 'host2')

    def test_no_room(self, make: Make) -> None:
        nova = make()
        server = nova.boot_on('host1')
        subprocess.run(nova.hosts['host2'].command(
            'mount', '-t', 'tmpfs', '-o', 'size=1m', 'lab',
            nova.instances_path), check=True)
        self.assert_refused(nova, server, 'host2: .*free')

    @both_storages
    def test_virtlogd_goes_down_later(self, make: Make, use: Use,
                                      shared: bool) -> None:
        nova = make(shared=shared)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        use(Before(nova.driver_of('host2'), 'pre_live_migration',
                   nova.hosts['host2'].stop_virtlogd))
        nova.live_migrate(server, 'host2')
        self.assert_as_before(nova, server)

    @both_storages
    def test_port_is_taken_meanwhile(self, make: Make, use: Use,
                                     shared: bool) -> None:
        nova = make(shared=shared)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        listener = socket.socket()

        def take() -> None:
            listener.bind(('127.0.0.2', 10000))
            listener.listen()
        operation = Before(
            nova.driver_of('host1'), '_live_migration_operation', take)
        use(operation)
        nova.live_migrate(server, 'host2')
        listener.close()
        self.assert_as_before(nova, server)

    @both_storages
    def test_aborted(self, make: Make, shared: bool) -> None:
        # So it does not end before it is aborted.
        full = guest.disk_image(guest.boot_sector(
            interval=0.05, burst=2, full=True))
        nova = make(full, shared=shared, options={
            ('libvirt', 'live_migration_bandwidth'): 1})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.start_live_migration(server, 'host2')
        until(lambda: nova.migrations(server)
              and nova.migrations(server)[0]['status'] == 'running',
              'migration is running')
        # nova says so before libvirt has anything that can be aborted.
        until(lambda: nova.guest(server).jobStats().get('memory_processed'),
              'memory is carried')
        nova.api.api_delete(f'/servers/{server["id"]}/migrations/'
                            f'{nova.migrations(server)[0]["id"]}')
        nova.wait_for_migration(server)
        self.assert_as_before(nova, server)
        # It can move after all.
        nova.set_option(('libvirt', 'live_migration_bandwidth'), 0)
        nova.move_live(server, 'host2')
        wait_for_more(nova, server)
        assert held(nova, 'host1') == set()

    @both_storages
    def test_the_destination_fails_before_the_guest_moves(
            self, make: Make, use: Use, shared: bool) -> None:
        nova = make(shared=shared)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)

        def fail() -> None:
            raise OSError('made by the test')
        use(Before(nova.driver_of('host2')._arrivals, 'prepare', fail))
        nova.live_migrate(server, 'host2')
        assert 'made by the test' in nova.log()
        self.assert_as_before(nova, server)
