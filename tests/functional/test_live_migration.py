# SPDX-License-Identifier: Apache-2.0
"""The log follows a guest that is live migrated, under a whole nova."""

import re

import pytest

from tests.functional.moving_server import (
    LIMIT,
    QUIET,
    Make,
    both_storages,
    devices,
    files,
    held,
    numbers,
    other,
    type_text,
    wait_for_more,
    warnings,
)
from tests.functional.one_server import BOOT, assert_boots
from tests.lab import guest
from tests.lab.wait import until
from virtlogd_driver.console_log import reader


@pytest.mark.long
@both_storages
def test_there_and_back_15_times(make: Make, shared: bool) -> None:
    """Rotating all the while, nothing lost, doubled or out of order."""
    settings = {'max_size': 65536, 'max_backups': 32}
    nova = make(
        guest.disk_image(guest.boot_sector(interval=0.05, burst=255)),
        shared=shared,
        host_settings={'host1': settings, 'host2': settings})
    server = nova.boot_on('host1')
    name = 'host1'
    for _ in range(15):
        wait_for_more(nova, server)
        name = other(name)
        nova.start_live_migration(server, name)
        assert nova.wait_for_migration(server) == 'completed'
        assert nova.host_of(server).name == name
    wait_for_more(nova, server)
    assert warnings(nova) == []
    assert {file for file in files(nova, name, server)
            if not re.search(r'\.log\.\d+$', file)} == (
        {'console.log', *[f'console.g{n + 1}.log' for n in range(15)]}
        if shared else {'console.g1.history', 'console.g1.log'})
    assert held(nova, name) == {server['id']}
    assert held(nova, other(name)) == set()


@both_storages
def test_two_serial_ports(make: Make, shared: bool) -> None:
    """Each log follows, and each goes on."""
    nova = make(guest.disk_image(guest.boot_sector(
        interval=0.05, burst=2, ports=2)), shared=shared)
    nova.create_flavor('ports', extra_specs={'hw:serial_port_count': '2'})
    server = nova.boot_on('host1', 'ports')
    wait_for_more(nova, server)
    nova.move_live(server, 'host2')
    assert devices(nova, server) == [
        ('tcp', '127.0.0.2', 'console.g1.log'),
        ('tcp', '127.0.0.2', 'console.port1.g1.log')]
    wait_for_more(nova, server)
    assert files(nova, 'host2', server) == sorted([
        'console.g1.log', 'console.port1.g1.log', *(
            # Where they are they stay.
            ['console.log', 'console.port1.log'] if shared else
            ['console.g1.history', 'console.port1.g1.history'])])
    log = nova.directory_on('host2', server) / 'console.port1.g1.log'
    here = log.stat().st_size
    until(lambda: log.stat().st_size > here, 'port 1 writes on')
    here = log.stat().st_size
    read = reader.read_tail(str(log), LIMIT)
    found = numbers(read.data.decode().replace('\r', ''))
    assert read.exact
    assert found == list(range(1, len(found) + 1))
    assert len(read.data) > here
    assert warnings(nova) == []


@both_storages
def test_boots_are_told_apart(make: Make, shared: bool) -> None:
    """Those before a live migration, and those after it."""
    nova = make(QUIET, shared=shared)
    server = nova.boot_on('host1')
    nova.wait_for_output(server, BOOT)
    type_text(nova, server, 'first')
    nova.reboot(server)
    nova.wait_for_output(server, f'{BOOT}first\n{BOOT}')
    type_text(nova, server, 'second')
    nova.move_live(server, 'host2')
    assert devices(nova, server)[0][2] == 'console.g1.log'
    type_text(nova, server, 'moved')
    of_each = [f'{BOOT}first\n', f'{BOOT}second\nmoved\n']
    # It was not started there.
    assert_boots(nova, server, [''.join(of_each), of_each[1]])
    nova.reboot(server)
    nova.wait_for_output(server, ''.join(of_each) + BOOT)
    of_each.append(BOOT)
    assert_boots(nova, server, [
        ''.join(of_each[n:]) for n in range(3)])
    # And back, with a start of which the other host has told.
    nova.move_live(server, 'host1')
    assert_boots(nova, server, [
        ''.join(of_each[n:]) for n in range(3)])


def test_a_guest_that_writes_nothing(make: Make) -> None:
    """Its empty log is its own: no other host may take it."""
    nova = make(QUIET, shared=True)
    server = nova.boot_on('host1')
    nova.wait_for_output(server, BOOT)
    for moves, name in enumerate(['host2', 'host1', 'host2'], 1):
        nova.move_live(server, name)
        assert devices(nova, server)[0][2] == f'console.g{moves}.log'
    type_text(nova, server, 'moved')
    assert nova.console_output(server) == f'{BOOT}moved\n'
    assert files(nova, 'host2', server) == [
        'console.g1.log', 'console.g2.log', 'console.g3.log', 'console.log']


@pytest.mark.long
def test_history_is_cut_to_its_bound(make: Make) -> None:
    """The newest bytes follow, as many as are allowed, and none is missing."""
    bound = 5000
    nova = make(
        guest.disk_image(guest.boot_sector(count=1000)),
        options={('virtlogd', 'max_history_bytes'): bound})
    server = nova.boot_on('host1')
    nova.wait_for_output(server, 'line 00001000\n')
    written = guest.lines(1, 1000)
    nova.move_live(server, 'host2')
    with nova.serial_console(server) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')

    def whole() -> bytes:
        return reader.read_tail(str(nova.directory_on(
            nova.host_of(server).name, server) / devices(
                nova, server)[0][2]), LIMIT).data

    moved = written[-bound:] + b'typed\r\n'
    until(lambda: whole() == moved, 'the newest bytes follow')
    nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host1'})
    until(lambda: whole() == moved[-bound:] + written,
          'the newest bytes follow again')
    assert warnings(nova) == []
