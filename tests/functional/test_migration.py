# SPDX-License-Identifier: Apache-2.0
"""The log follows a guest that moves between two hosts, under a whole nova."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fixtures
import pytest

from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.compute import cold_migration
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import boot, history, transfer

Use = Callable[[fixtures.Fixture], Any]
Make = Callable[..., TwoHosts]

#: As much as the tests ever write.
LIMIT = 64 * 1024 * 1024
UNCUT = {('virtlogd', 'max_console_bytes'): LIMIT,
         ('virtlogd', 'max_history_bytes'): LIMIT}
#: Writes numbered lines for as long as it runs.
WRITER = guest.disk_image(guest.boot_sector(interval=0.05, burst=2))


class Before(fixtures.Fixture):
    """Something that happens just before a method of a driver is called."""

    def __init__(self, driver: Any, method: str,
                 happens: Callable[[], object]) -> None:
        super().__init__()
        self._driver = driver
        self._method = method
        self._happens = happens

    def _setUp(self) -> None:
        called = getattr(self._driver, self._method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._happens()
            return called(*args, **kwargs)
        self.useFixture(fixtures.MockPatchObject(
            self._driver, self._method, call))


@pytest.fixture
def make(use: Use, tmp_path: Path) -> Make:
    def made(image: bytes = WRITER, **arguments: Any) -> TwoHosts:
        options = {**UNCUT, **arguments.pop('options', {})}
        nova: TwoHosts = use(TwoHosts(
            tmp_path / 'lab', image=image, options=options, **arguments))
        return nova
    return made


def numbers(output: str) -> list[int]:
    """The numbers of all lines; the last one may not be whole yet.

    Without what assert_interactive has left.
    """
    lines = output.replace('typed text\n', '').split('\n')[:-1]
    for line in lines:
        assert re.fullmatch(r'line \d{8}', line), repr(line)
    return [int(line[5:]) for line in lines]


def assert_exact(nova: TwoHosts, server: Server, boots: int = 1) -> int:
    """No line lost, doubled or out of order; the number of lines."""
    found = numbers(nova.console_output(server))
    starts = [index for index, n in enumerate(found) if n == 1]
    assert len(starts) == boots, starts
    for first, end in zip(starts, [*starts[1:], len(found)], strict=True):
        assert found[first:end] == list(range(1, end - first + 1))
    return len(found)


def wait_for_more(nova: TwoHosts, server: Server, boots: int = 1) -> None:
    """Until the guest has written something where it is now."""
    nova.wait_for_output(server, 'line 00000001\n')
    count = assert_exact(nova, server, boots)
    until(lambda: assert_exact(nova, server, boots) > count,
          'the guest writes on')


def other(name: str) -> str:
    return {'host1': 'host2', 'host2': 'host1'}[name]


def files(nova: TwoHosts, name: str, server: Server) -> list[str]:
    """The files of the server's logs on a host."""
    return sorted(path.name for path in nova.directory_on(
        name, server).glob('console*') if path.name != 'console.boots')


def devices(nova: TwoHosts, server: Server) -> list[tuple[str, ...]]:
    """Of each serial port: its type, its address, its log's name."""
    found = []
    for serial in nova.guest_xml(server).findall('devices/serial'):
        source, log = serial.find('source'), serial.find('log')
        written = log if log is not None else source
        path = None if written is None else (
            written.get('file') or written.get('path'))
        found.append((
            str(serial.get('type')),
            str(None if source is None else source.get('host')),
            str(path and Path(path).name if serial.get('type') != 'pty'
                or log is not None else None)))
    return found


def held(nova: TwoHosts, name: str) -> set[str]:
    """The guests that hold TCP ports of a host."""
    return set(nova.driver_of(name)._consoles.ports.held().values())


def warnings(nova: TwoHosts, text: str = 'does not follow it') -> list[str]:
    return [line for line in nova.log().splitlines() if text in line]


def said_in(nova: TwoHosts, line: str) -> str:
    """A line of nova's log with what the message goes on with."""
    after = nova.log().split(line)[1]
    return line + re.split(r'\n\d{4}-\d\d-\d\d ', after)[0]


def assert_interactive(nova: TwoHosts, server: Server) -> None:
    with nova.serial_console(server) as terminal:
        terminal.type(b'typed text\r')
        terminal.read_until(b'typed text\r\n')


both_storages = pytest.mark.parametrize(
    'shared', [False, True], ids=['separate', 'shared'])


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
    # One generation and its history are what is left.
    assert [file for file in files(nova, name, server)
            if not re.search(r'\.log\.\d+$', file)] == (
        ['console.g15.history', 'console.g15.log'] if shared
        else ['console.g1.history', 'console.g1.log'])
    assert held(nova, name) == {server['id']}
    assert held(nova, other(name)) == set()


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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        before = nova.console_output(server)
        assert_exact(nova, server)
        assert nova.live_migrate(server, 'host1') == 'completed'
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert_interactive(nova, server)
        # Nobody puts it in place there, but there it is, and whole.
        (history,) = nova.directory_on('host2', server).glob(
            'console.moving/console.g1.history.*')
        found = numbers(history.read_text().replace('\r', ''))
        assert found == list(range(1, len(found) + 1))
        # Back home it keeps what it has until it is rebooted.
        assert nova.live_migrate(server, 'host1') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        assert_interactive(nova, server)
        nova.reboot(server)
        assert devices(nova, server)[0][0] == 'tcp'
        wait_for_more(nova, server)

    @pytest.mark.parametrize('middle', ['CAPABILITY', 'DRIVER'])
    def test_there_and_back_on_shared_storage(self, make: Make,
                                              middle: str) -> None:
        """Two hosts have the old log in their hands, and it is all there."""
        nova = make(shared=True, **getattr(self, middle))
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'None')]
        assert 'console.g1.history' in files(nova, 'host2', server)
        assert nova.live_migrate(server, 'host1') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.1', 'None')]
        before = nova.console_output(server)
        assert assert_exact(nova, server) > 0
        nova.reboot(server)
        nova.wait_for_output(server, before + 'line 00000001\n')
        # Once more, with what it wrote since.
        for name in ('host2', 'host1'):
            assert nova.live_migrate(server, name) == 'completed'
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        before = nova.console_output(server)
        assert assert_exact(nova, server) > 0
        assert nova.live_migrate(server, 'host1') == 'completed'
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
        assert files(nova, 'host2', server) == [
            'console.history', 'console.log']
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        wait_for_more(nova, server)

    def test_novas_own_driver_without_serial_consoles(
            self, make: Make) -> None:
        nova = make(host_options={'host2': {
            **self.DRIVER['host_options']['host2'],
            **self.SERIAL_OFF['host_options']['host2']}})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        # nova shows what its file has: what was written since.
        first = numbers(nova.wait_for_output(server, 'line '))
        until(lambda: numbers(nova.console_output(server)) > first,
              'the guest writes on')


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
        assert nova.live_migrate(server, 'host2') == 'completed'
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('tcp', '127.0.0.2', 'console.log')]
        numbers(nova.wait_for_output(server, 'line '))
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
        assert nova.live_migrate(server, 'host2') == 'completed'
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('file', 'None', 'console.g1.log')]
        wait_for_more(nova, server)
        assert warnings(nova) == []


class TestSerialConsolesOnOneHostOnly:

    def test_there_and_back(self, make: Make) -> None:
        nova = make(host_options={
            'host2': {('serial_console', 'enabled'): False}})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [('pty', 'None', 'console.g1.log')]
        assert held(nova, 'host1') == held(nova, 'host2') == set()
        wait_for_more(nova, server)
        assert nova.live_migrate(server, 'host1') == 'completed'
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
        assert nova.live_migrate(server, 'host2') == 'completed'
        assert devices(nova, server) == [
            ('tcp', '127.0.0.2', 'console.g1.log')]
        wait_for_more(nova, server)
        assert_interactive(nova, server)


@both_storages
def test_two_serial_ports(make: Make, shared: bool) -> None:
    """Each log follows, and each goes on."""
    nova = make(guest.disk_image(guest.boot_sector(
        interval=0.05, burst=2, ports=2)), shared=shared)
    nova.create_flavor('ports', extra_specs={'hw:serial_port_count': '2'})
    server = nova.boot_on('host1', 'ports')
    wait_for_more(nova, server)
    assert nova.live_migrate(server, 'host2') == 'completed'
    assert devices(nova, server) == [
        ('tcp', '127.0.0.2', 'console.g1.log'),
        ('tcp', '127.0.0.2', 'console.port1.g1.log')]
    wait_for_more(nova, server)
    assert files(nova, 'host2', server) == [
        'console.g1.history', 'console.g1.log',
        'console.port1.g1.history', 'console.port1.g1.log']
    log = nova.directory_on('host2', server) / 'console.port1.g1.log'
    here = log.stat().st_size
    until(lambda: log.stat().st_size > here, 'port 1 writes on')
    read = reader.read_tail(str(log), LIMIT)
    found = numbers(read.data.decode().replace('\r', ''))
    assert read.exact
    assert found == list(range(1, len(found) + 1))
    assert len(read.data) > log.stat().st_size
    assert warnings(nova) == []


#: Ten lines, then what is typed: no line is cut off when it is switched off.
QUIET = guest.disk_image(guest.boot_sector(count=10))
BOOT = ''.join(f'line {n:08d}\n' for n in range(1, 11))


def type_text(nova: TwoHosts, server: Server, text: str) -> None:
    with nova.serial_console(server) as terminal:
        terminal.type(f'{text}\r'.encode())
        terminal.read_until(f'{text}\r\n'.encode())
    nova.wait_for_output(server, f'{text}\n')


def output_of_boots(nova: TwoHosts, server: Server) -> list[str]:
    """What was written from each start of the guest on."""
    directory = nova.directory_on(nova.host_of(server).name, server)
    log = str(directory / devices(nova, server)[0][2])
    found = []
    for noted in boot.read(str(directory)):
        data, position = b'', noted.positions[0]
        while True:
            since = reader.read_from(log, position, LIMIT)
            assert since.missed == 0
            data, position = data + since.data, since.position
            if not since.data:
                break
        found.append(data.decode().replace('\r', ''))
    return found


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
    assert nova.live_migrate(server, 'host2') == 'completed'
    assert devices(nova, server)[0][2] == 'console.g1.log'
    type_text(nova, server, 'moved')
    of_each = [f'{BOOT}first\n', f'{BOOT}second\nmoved\n']
    # It was not started there.
    assert output_of_boots(nova, server) == [
        ''.join(of_each), of_each[1]]
    nova.reboot(server)
    nova.wait_for_output(server, ''.join(of_each) + BOOT)
    of_each.append(BOOT)
    assert output_of_boots(nova, server) == [
        ''.join(of_each[n:]) for n in range(3)]
    # And back, with a start of which the other host has told.
    assert nova.live_migrate(server, 'host1') == 'completed'
    assert output_of_boots(nova, server) == [
        ''.join(of_each[n:]) for n in range(3)]


def test_a_guest_that_writes_nothing(make: Make) -> None:
    """Its empty log is its own: no other host may take it."""
    nova = make(QUIET, shared=True)
    server = nova.boot_on('host1')
    nova.wait_for_output(server, BOOT)
    for moves, name in enumerate(['host2', 'host1', 'host2'], 1):
        assert nova.live_migrate(server, name) == 'completed'
        assert devices(nova, server)[0][2] == f'console.g{moves}.log'
    type_text(nova, server, 'moved')
    assert nova.console_output(server) == f'{BOOT}moved\n'
    assert files(nova, 'host2', server) == [
        'console.g3.history', 'console.g3.log']


#: nova copies the whole disk where the directories are separate.
cold_storages = pytest.mark.parametrize(
    'shared', [pytest.param(False, marks=pytest.mark.long), True],
    ids=['separate', 'shared'])


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
        for name in nova.hosts:
            assert not list(nova.instances[name].glob(f'{server["id"]}*'))


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
    assert nova.live_migrate(server, 'host2') == 'completed'
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
        self.wait_for_all(nova, server, BOOT * 2, 'tcp console.g2.log')
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
        assert files(nova, 'host2', server) == [
            'console.history', 'console.log']
        old = nova.directory_on('host2', server) / 'console.history'
        assert old.read_text().replace('\r', '') == f'{BOOT}first\n'
        assert len(warnings(nova, 'was begun anew by another driver')) == 1
        assert warnings(nova) == []

    @pytest.mark.long
    @cold_storages
    def test_reverted_from_novas_own_driver(self, make: Make,
                                            shared: bool) -> None:
        """What it wrote there does not come back; what was before stays."""
        nova = make(QUIET, shared=shared, host_options={'host2': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
        nova.revert_resize(server)
        self.wait_for_all(
            nova, server, f'{BOOT}first\n{BOOT}',
            'tcp console.g2.log' if shared else 'tcp console.log')
        assert_interactive(nova, server)
        assert held(nova, 'host1') == {server['id']}

    @cold_storages
    def test_from_novas_own_driver(self, make: Make, shared: bool) -> None:
        nova = make(QUIET, shared=shared, host_options={'host1': self.NOVAS})
        server = self.boot(nova, 'host1')
        type_text(nova, server, 'first')
        self.move(nova, server)
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
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
        self.wait_for_all(nova, server, BOOT, 'tcp console.log')
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


class TestTheCopyFails:
    """The move ends well, and the loss is said, once."""

    @pytest.fixture
    def nova(self, make: Make) -> TwoHosts:
        return make(options={('virtlogd', 'history_timeout'): 3})

    @pytest.fixture
    def server(self, nova: TwoHosts) -> Server:
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        return server

    def make_it_long(self, nova: TwoHosts, server: Server) -> None:
        """An old backup of 40 MiB, so that the copy takes a while."""
        directory = nova.directory_on('host1', server)
        (directory / 'console.log.0').write_bytes(b'old\n' * (10 << 20))

    def assert_moved_without(self, nova: TwoHosts, server: Server,
                             reason: str) -> None:
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = warnings(nova)
        assert re.search(reason, said_in(nova, warning))
        found = numbers(nova.wait_for_output(server, 'line '))
        assert found[0] > 1
        assert found == list(range(found[0], found[0] + len(found)))
        assert files(nova, 'host2', server) == ['console.g1.log']
        # And none the worse for it.
        nova.reboot(server)
        assert_interactive(nova, server)

    def test_no_ssh_daemon(self, nova: TwoHosts, server: Server) -> None:
        nova.ssh.stop('host2')
        self.assert_moved_without(nova, server, 'Connection refused')

    def test_ssh_daemon_hangs(self, nova: TwoHosts, server: Server) -> None:
        nova.ssh.signal('host2', signal.SIGSTOP)
        self.assert_moved_without(nova, server, 'history_timeout = 3 s')
        nova.ssh.signal('host2', signal.SIGCONT)

    def test_permission_refused(self, nova: TwoHosts, server: Server
                                ) -> None:
        nova.ssh.authorized_keys.write_text('')
        self.assert_moved_without(nova, server, 'Permission denied')

    def test_disk_full(self, nova: TwoHosts, server: Server,
                       use: Use) -> None:
        host = nova.hosts['host2']
        self.make_it_long(nova, server)
        subprocess.run(host.command(
            'mount', '-t', 'tmpfs', '-o', 'size=100m', 'lab',
            nova.instances_path), check=True)
        full = nova.instances_path / 'full'

        def fill() -> None:
            subprocess.run(host.command(
                'fallocate', '--length', '75MiB', full), check=True)
        use(Before(nova.driver_of('host2'), 'pre_live_migration', fill))
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = [w for w in warnings(nova) if 'has not come' not in w]
        assert re.search('No space left|write remote', said_in(nova, warning))
        seen = subprocess.run(
            host.command('ls', nova.instances_path / server['id']),
            check=True, capture_output=True, text=True).stdout.split()
        assert [name for name in seen if name.startswith('console.')
                and name != 'console.boots'] == ['console.g1.log']
        assert 'old' not in nova.console_output(server)

    def half_way(self, nova: TwoHosts, server: Server,
                 happens: Callable[[], object]) -> threading.Thread:
        """Something that happens while the history is copied."""
        self.make_it_long(nova, server)
        directory = nova.directory_on('host2', server)

        def wait() -> None:
            def begun() -> bool:
                return any(path.stat().st_size > 0 for path in
                           directory.glob('console.moving/*.history.*'))
            until(begun, 'the copy begins', 60, 0.001)
            copying = nova.hosts['host1'].processes('scp', 'ssh')
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in copying:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                if number == signal.SIGSTOP:
                    happens()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def kill_copy(self, nova: TwoHosts) -> None:
        for pid in nova.hosts['host1'].processes('scp', 'ssh'):
            os.kill(pid, signal.SIGKILL)

    def test_killed_half_way(self, nova: TwoHosts, server: Server) -> None:
        thread = self.half_way(nova, server, lambda: self.kill_copy(nova))
        assert nova.live_migrate(server, 'host2') == 'completed'
        thread.join()
        lost, cut = sorted(warnings(nova), key=lambda w: 'not come' in w)
        assert 'the copy to host2' in lost
        assert 'console.g1.history' in cut
        assert files(nova, 'host2', server) == ['console.g1.log']
        assert 'old' not in nova.console_output(server)

    def test_changing(self, nova: TwoHosts, server: Server) -> None:
        """What is copied is not what it was at first."""
        def change() -> None:
            (staged,) = nova.instances['host1'].glob(
                f'{server["id"]}_leaving.*/console.moving/*.history.*')
            with staged.open('r+b') as file:
                file.seek(-1, os.SEEK_END)
                file.write(b'?')
        thread = self.half_way(nova, server, change)
        self.assert_moved_without(nova, server, 'has not come whole')
        thread.join()

    def test_truncated(self, nova: TwoHosts, server: Server,
                       use: Use) -> None:
        directory = nova.directory_on('host2', server)
        is_whole = transfer.is_whole

        def truncate(there: str) -> bool:
            if is_whole(there):
                (staged,) = directory.glob('console.moving/*.history.*')
                os.truncate(staged, staged.stat().st_size // 2)
            return is_whole(there)
        use(fixtures.MockPatchObject(transfer, 'is_whole', truncate))
        self.assert_moved_without(nova, server, 'has not come whole')

    def test_it_comes_late(self, make: Make) -> None:
        """The move is over by then, and everything works."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        before = nova.console_output(server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        assert nova.time_live_migration(server, 'host2') < 20
        assert nova.host_of(server).name == 'host2'
        assert_interactive(nova, server)
        assert not nova.console_output(server).startswith(before)
        nova.reboot(server)
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.wait_for_history(server)
        nova.wait_for_output(server, before)
        wait_for_more(nova, server, boots=2)
        assert nova.live_migrate(server, 'host1') == 'completed'
        wait_for_more(nova, server, boots=2)
        assert warnings(nova) == []

    @pytest.mark.parametrize('operation', ['live', 'cold', 'rebuild'])
    def test_it_comes_when_the_guest_is_to_go(
            self, make: Make, use: Use, operation: str) -> None:
        """What takes the log elsewhere waits for what follows the guest."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        late = threading.Timer(1, nova.ssh.signal, ['host2', signal.SIGCONT])
        use(Before(nova.driver_of('host2'), '_settle', late.start))
        if operation == 'live':
            assert nova.live_migrate(server, 'host1') == 'completed'
        elif operation == 'cold':
            nova.resize(server)
            nova.confirm_resize(server)
        else:
            nova.rebuild(server)
        wait_for_more(nova, server, boots=1 if operation == 'live' else 2)
        assert warnings(nova) == []

    def test_the_destination_is_restarted_meanwhile(
            self, make: Make) -> None:
        """It does not know then what comes, and loses nothing of it."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        nova.restart_compute_on('host2')
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.wait_for_history(server)
        assert 'console.moving' in files(nova, 'host2', server)
        assert nova.live_migrate(server, 'host1') == 'completed'
        wait_for_more(nova, server)
        assert warnings(nova) == []

    def test_nova_compute_is_killed(self, make: Make) -> None:
        """The copy goes on by itself; where it does not, all is here."""
        nova = make()
        for name in nova.hosts:
            (nova.instances[name] / 'uuid').mkdir()
        old = b'old\n' * (10 << 20)
        (nova.instances['host1'] / 'uuid/console.log').write_bytes(old)
        here = nova.instances_path / 'uuid'
        program = f"""
from nova.virt.libvirt import utils
from virtlogd_driver.history import history
history.History(utils.copy_image, {LIMIT}, 60, '/no/virtlogd').send(
    None, [('{here}/console.log', '{here}/console.g1.log')], 'host2')
"""
        nova_compute = subprocess.Popen(nova.hosts['host1'].command(
            sys.executable, '-W', 'ignore', '-c', program))
        there = nova.instances['host2'] / 'uuid'
        until(lambda: any(path.stat().st_size for path in
                          there.glob('console.moving/*')),
              'the copy begins', pause=0.001)
        nova_compute.kill()
        nova_compute.wait()
        until(lambda: transfer.is_whole(str(there)), 'the copy ends')
        assert transfer.receive(str(there), str(there)) == []
        assert (there / 'console.g1.history').read_bytes() == old
        (left,) = history.left_behind(str(nova.instances['host1']))
        assert transfer.is_whole(left)

    def test_of_a_cold_migration(self, make: Make, use: Use) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        type_text(nova, server, 'first')
        send = history.History.send

        def send_too_late(*args: Any) -> None:
            nova.ssh.stop('host2')
            send(*args)
        use(fixtures.MockPatchObject(history.History, 'send', send_too_late))
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.ssh.start('host2')
        (warning,) = warnings(nova)
        assert 'Connection refused' in said_in(nova, warning)
        nova.wait_for_output(server, BOOT)
        assert nova.console_output(server) == BOOT

    @pytest.mark.long
    def test_of_a_revert(self, make: Make, use: Use) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, BOOT * 2)
        nova.ssh.stop('host1')
        nova.revert_resize(server)
        (warning,) = warnings(nova)
        assert 'Connection refused' in said_in(nova, warning)
        # Not what it wrote on the other host.
        nova.wait_for_output(server, BOOT * 2)
        assert nova.console_output(server) == BOOT * 2
        assert_interactive(nova, server)


class TestTheSharedDiskIsFull:
    """There is no room for the history; for new output there is."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / 'lab'
        path.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1100m', 'lab',
                        path], check=True)
        yield path
        subprocess.run(['umount', '--lazy', path], check=True)

    def fill(self, disk: Path) -> None:
        with (disk / 'full').open('wb') as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(disk).free - (20 << 20))

    def test_live_migration(self, disk: Path, make: Make, use: Use) -> None:
        nova = make(shared=True)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        directory = nova.directory_on('host1', server)
        (directory / 'console.log.0').write_bytes(b'old\n' * (10 << 20))
        use(Before(nova.driver_of('host2'), 'pre_live_migration',
                   lambda: self.fill(disk)))
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = warnings(nova)
        assert 'No space left' in said_in(nova, warning)

        # It is read where it is, and the guest writes on after it.
        def lines() -> list[int]:
            old, line, output = nova.console_output(server).partition('line')
            assert old == 'old\n' * (10 << 20)
            return numbers(line + output)
        found = lines()
        until(lambda: lines() > found, 'the guest writes on')
        assert found == list(range(1, len(found) + 1))
        assert not (directory / 'console.moving').exists()

    def test_revert(self, disk: Path, make: Make) -> None:
        nova = make(QUIET, shared=True)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, BOOT * 2)
        directory = nova.directory_on('host1', server)
        (directory / 'console.g1.log.0').write_bytes(b'old\n' * (10 << 20))
        self.fill(disk)
        nova.revert_resize(server)
        (warning,) = warnings(nova)
        assert 'No space left' in said_in(nova, warning)
        nova.wait_for_output(server, BOOT * 2)
        assert nova.console_output(server) == BOOT * 2
        assert not (directory / 'console.moving').exists()


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
            assert not nova.directory_on('host2', server).exists()
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
        nova = make(shared=shared, options={
            ('libvirt', 'live_migration_bandwidth'): 1})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.start_live_migration(server, 'host2')
        until(lambda: nova.migrations(server)
              and nova.migrations(server)[0]['status'] == 'running',
              'migration is running')
        nova.api.api_delete(f'/servers/{server["id"]}/migrations/'
                            f'{nova.migrations(server)[0]["id"]}')
        nova.wait_for_migration(server)
        self.assert_as_before(nova, server)
        # It can move after all.
        nova.set_option(('libvirt', 'live_migration_bandwidth'), 0)
        assert nova.live_migrate(server, 'host2') == 'completed'
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
        use(Before(nova.driver_of('host2'), '_prepare_arrival', fail))
        nova.live_migrate(server, 'host2')
        assert 'made by the test' in nova.log()
        self.assert_as_before(nova, server)
