# SPDX-License-Identifier: Apache-2.0
"""What a guest wrote outlives what goes wrong in the middle.

A rebuild that is cut off, a full disk, a peer's malformed record, a clock that
is behind, a host that is lost too early. The copy to another host is in
test_history_copy.py, the power in test_power.py.
"""

import contextlib
import json
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest
from nova.conf import CONF

from tests.functional.moving_server import (
    QUIET,
    Before,
    Make,
    Use,
    devices,
)
from tests.functional.one_server import (
    BOOT,
    PORT,
    assert_one_port_with_its_log,
    assert_works_after,
    boot,
    type_text,
    wait_for_boot,
)
from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import DRIVER, NovaNode, Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.compute import starts
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import boot as boots
from virtlogd_driver.history import history, inbox, record
from virtlogd_driver.node import hypervisor, survey

NOVAS_OWN_DRIVER = 'libvirt.LibvirtDriver'


class Killed(Exception):
    """Nothing of ours runs any more."""


def cut_off_a_rebuild(nova: NovaNode, server: Server) -> None:
    """nova-compute is killed when nova has deleted the directory."""
    def killed(kept: history.History, *args: Any) -> None:
        raise Killed

    with fixtures.MockPatchObject(history.History, 'put_back', killed), \
            pytest.raises(RuntimeError):
        nova.rebuild(server)
    assert not nova.instance_directory(server).exists()
    assert [path.name for path in nova.instances_path.glob(
        f'{server["id"]}*')] == [f'{server["id"]}_console']
    nova.restart_compute()


class TestARebuildIsCutOff:

    def test_and_the_server_is_rebuilt_again(self, nova: NovaNode) -> None:
        server = boot(nova)
        cut_off_a_rebuild(nova, server)
        nova.rebuild(server)
        assert_works_after(nova, server)
        assert not list(nova.instances_path.glob('*_console'))

    def test_and_again_and_the_server_is_rebuilt(self, nova: NovaNode
                                                 ) -> None:
        """What is aside stays there while a second one is cut off."""
        server = boot(nova)
        for _ in range(2):
            cut_off_a_rebuild(nova, server)
        nova.rebuild(server)
        assert_works_after(nova, server)

    def test_and_the_server_runs_again_before_nova_compute_knows(
            self, nova: NovaNode) -> None:
        """The log that virtlogd has open stays, and what is aside precedes
        it."""
        server = boot(nova)
        cut_off_a_rebuild(nova, server)

        def nothing(*args: Any, **kwargs: Any) -> None:
            """As a nova-compute that could not bring anything back."""
        with fixtures.MockPatchObject(history.History, 'recover', nothing), \
                fixtures.MockPatchObject(history.History, 'put_back',
                                         nothing):
            nova.rebuild(server)
            nova.wait_for_output(server, BOOT)
        nova.restart_compute()
        nova.wait_for_output(server, f'{BOOT}first\n{BOOT}')
        type_text(nova, server, 'second')
        assert nova.console_output(server) == f'{BOOT}first\n{BOOT}second\n'


@pytest.fixture
def instances(tmp_path: Path) -> Iterator[Path]:
    """An instances_path on a disk of 32 MiB of its own."""
    path = tmp_path / 'nova' / 'instances'
    path.mkdir(parents=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=32m', 'lab', path],
                   check=True)
    yield path
    subprocess.run(['umount', '--lazy', path], check=True)


def test_a_rebuild_on_a_full_disk(instances: Path, libvirt_host: LibvirtHost,
                                  tmp_path: Path, use: Use) -> None:
    """The log is renamed: it needs no room, however large it is."""
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('serial_console', 'port_range'): f'{PORT}:{PORT}'}))
    server = boot(nova)
    full = instances / 'full'

    def fill() -> None:
        with full.open('wb', buffering=0) as file, \
                contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    use(Before(history.History, 'set_aside', fill))
    put_back = history.History.put_back

    def freed(*args: Any) -> None:
        put_back(*args)
        full.unlink()
    use(fixtures.MockPatchObject(history.History, 'put_back', freed))
    nova.rebuild(server)
    assert_works_after(nova, server)
    assert not full.exists()


# What comes from a host that cannot be trusted

def hostile(**values: Any) -> bytes:
    """A record that is whole, and has these values."""
    sent = record.Record('0' * 32, False, (), (), ()).format()
    text = json.dumps({**json.loads(sent.partition(b'\n')[2]),
                       **values}).encode()
    return record.digest([text]).encode() + b'\n' + text


@pytest.mark.parametrize('sent', [
    hostile(histories=[{'port': '../disk'}]), hostile(histories={'port': 0}),
    hostile(boots=[{'time': 'now'}]), hostile(received=['../../disk'])],
    ids=['name', 'no list', 'time', 'path'])
def test_a_malformed_record(nova: NovaNode, sent: bytes) -> None:
    """It is refused, said and removed, and nothing waits for it."""
    server = boot(nova)
    directory = nova.instance_directory(server)
    disk = (directory / 'disk').read_bytes()
    staged = directory / inbox.MOVING
    staged.mkdir()
    (staged / 'disk').write_bytes(b'evil')
    (staged / 'history.0').write_bytes(b'evil')
    (staged / record.FILE).write_bytes(sent)
    assert nova.console_output(server) == f'{BOOT}first\n'
    assert not staged.exists()
    assert (directory / 'disk').read_bytes() == disk
    assert 'is not put in place' in nova.log()
    nova.reboot(server)
    assert_works_after(nova, server)


# Clocks, and several writers

def test_a_start_on_a_host_whose_clock_is_behind(make: Make,
                                                 use: Use) -> None:
    """The starts stay in their order, and each is where it was."""
    nova = make(QUIET)
    here = time.time

    def behind() -> float:
        return here() - (3600 if nova.places.here() == 'host2' else 0)
    server = nova.boot_on('host1')
    nova.wait_for_output(server, BOOT)
    # Of no other module: nova's libraries wait by the clock.
    use(fixtures.MockPatchObject(starts, 'time', types.SimpleNamespace(
        **{**vars(time), 'time': behind})))
    nova.move_live(server, 'host2')
    nova.wait_for_output(server, BOOT)
    nova.reboot(server)
    nova.wait_for_output(server, BOOT * 2)
    nova.move_live(server, 'host1')
    nova.wait_for_output(server, BOOT * 2)
    directory = nova.directory_on('host1', server)
    until(lambda: len(boots.read(str(directory))) == 2,
          'both starts are noted')
    first, second = boots.read(str(directory))
    assert first.time > second.time
    assert output_since(nova, server, second) == BOOT


def output_since(nova: TwoHosts, server: Server, noted: boots.Boot) -> str:
    path = nova.directory_on(
        nova.host_of(server).name, server) / devices(nova, server)[0][2]
    return reader.read_from(
        str(path), noted.positions[0], 1 << 20).data.decode().replace(
            '\r', '')


NOTES_STARTS = """\
import math, sys
from virtlogd_driver.history import boot
# How long so many take is the disk's affair.
boot.LOCK_TIMEOUT = math.inf
for n in range(25):
    boot.add(sys.argv[1], boot.Boot(int(sys.argv[2]) * 100.0 + n, {0: None}))
"""


def test_several_processes_note_starts(tmp_path: Path) -> None:
    """As two nova-computes that share a directory do: each start is kept."""
    processes = [subprocess.Popen(
        [sys.executable, '-c', NOTES_STARTS, tmp_path, str(number)])
        for number in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(noted.time for noted in boots.read(str(tmp_path))) == [
        number * 100.0 + n for number in range(4) for n in range(25)]


# A host that is lost

def test_evacuated_before_it_has_written_anything(make: Make) -> None:
    """Its empty log is that of the host that is lost, which may be back."""
    nova = make(guest.disk_image(guest.boot_sector(count=0)), shared=True)
    server = nova.boot_on('host1')
    assert devices(nova, server)[0][2] == 'console.log'
    nova.lose('host1')
    nova.evacuate(server, 'host2')
    assert devices(nova, server)[0][2] == 'console.g1.log'
    with nova.serial_console(server) as terminal:
        terminal.type(b'typed\r')
        terminal.read_until(b'typed\r\n')
    nova.wait_for_output(server, 'typed\n')
    assert nova.console_output(server) == 'typed\n'
    assert (nova.directory_on('host2', server) / 'console.log'
            ).stat().st_size == 0


# A guest of nova's own driver

@pytest.mark.parametrize('operation', ['hard reboot', 'rebuild'])
def test_a_guest_of_novas_own_driver(
        libvirt_host: LibvirtHost, tmp_path: Path, use: Use,
        operation: str) -> None:
    """Its log is kept from the first start by this driver on."""
    nova = use(NovaNode(
        libvirt_host, tmp_path / 'nova', compute_driver=NOVAS_OWN_DRIVER,
        options={('serial_console', 'port_range'): f'{PORT}:{PORT}'}))
    server = nova.boot()
    nova.wait_for_output(server, BOOT)
    CONF.set_override('compute_driver', DRIVER)
    nova.restart_compute()
    # What the status check counts.
    name = nova.guest(server).name()
    connection = libvirt_host.connect()
    assert list(survey._not_appended(
        hypervisor.list_guests(connection))) == [name]
    if operation == 'rebuild':
        nova.rebuild(server)
    else:
        nova.reboot(server)
    wait_for_boot(nova, server, BOOT)
    assert_one_port_with_its_log(nova, server)
    assert not list(survey._not_appended(hypervisor.list_guests(connection)))
