# SPDX-License-Identifier: Apache-2.0
"""The log of a deleted server is kept for a while, as a whole nova deletes."""

import glob
import json
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest
from nova.conf import CONF
from nova.virt.libvirt import driver as libvirt_driver
from oslo_config.fixture import Config

from tests.functional.moving_server import QUIET, Make, type_text
from tests.functional.one_server import BOOT, boot, wait_for_boot
from tests.functional.test_history_copy import (
    wait_until_it_has_followed,
    waiting,
)
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode, Server
from tests.lab.wait import until
from virtlogd_driver.compute import deletions
from virtlogd_driver.history import deleted

Use = Callable[[fixtures.Fixture], Any]

HOUR = 3600
KEEP = 2 * HOUR


class Clock:
    """The clock that says whether the time of a kept log is over."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Iterator[Clock]:
    moved = Clock()
    with fixtures.MockPatchObject(deletions, 'time', types.SimpleNamespace(
            time=moved.time)):
        yield moved


@pytest.fixture
def nova(libvirt_host: LibvirtHost, tmp_path: Path, clock: Clock,
         use: Use) -> NovaNode:
    """It keeps logs for two hours, and makes a health pass each second."""
    node: NovaNode = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('virtlogd', 'keep_deleted'): KEEP,
        ('virtlogd', 'health_interval'): 1}))
    return node


@pytest.fixture
def command(nova: NovaNode, use: Use) -> Console:
    console: Console = use(Console(
        nova.host.uri, nova.host.virtlogd_socket, nova.instances_path))
    return console


def kept(nova: NovaNode) -> list[deleted.Kept]:
    return deleted.kept(str(nova.instances_path))


def pass_health(nova: NovaNode) -> None:
    """Until a health pass that begins from now on has ended."""
    task = nova.driver._health
    begun = time.time()
    until(lambda: task.report is not None and task.report.time > begun,
          'a health pass')
    # That one may have begun before.
    begun = time.time()
    until(lambda: task.report.time > begun, 'another health pass')


def show(command: Console, server: Server, *options: str) -> str:
    shown = command.output('show', server['id'], *options).decode()
    return shown.replace('\r', '')


def assert_read_until_its_time(
        nova: NovaNode, command: Console, clock: Clock, server: Server,
        expected: str, why: str, tmp_path: Path) -> None:
    """Read an hour later, and gone a second after keep_deleted."""
    directory = nova.instance_directory(server)
    assert not list(nova.instances_path.glob(f'{directory.name}*'))
    clock.ahead = HOUR
    pass_health(nova)
    (listed,) = json.loads(command.output('list', '--deleted', '--json'))
    assert (listed['uuid'], listed['server']) == (server['id'], 'server')
    assert listed['project']
    assert why in listed['why']
    assert show(command, server, '--deleted') == expected
    assert show(command, server) == expected
    assert show(command, server, '--since-boot') == expected[
        expected.rindex(BOOT):]
    target = tmp_path / 'log.tar.gz'
    command.output('export', server['id'], str(target))
    with tarfile.open(target) as archive:
        (log, _) = archive.getmembers()
        assert archive.extractfile(log).read().decode().replace(
            '\r', '') == expected
    clock.ahead = KEEP - HOUR / 2
    pass_health(nova)
    assert len(kept(nova)) == 1
    clock.ahead = KEEP + 1
    # It is renamed, and then removed.
    directory = nova.instances_path / deleted.DIRECTORY
    # pathlib's own fails where one goes meanwhile.
    until(lambda: not glob.glob(f'{directory}/*/*', include_hidden=True),
          'its time is over')
    assert not list(nova.instances_path.rglob('console.log*'))
    assert command.run('show', server['id']).returncode == 1


def test_a_server_that_ran(nova: NovaNode, command: Console, clock: Clock,
                           tmp_path: Path) -> None:
    server = boot(nova)
    nova.reboot(server)
    wait_for_boot(nova, server, f'{BOOT}first\n')
    nova.delete(server)
    # What nova cleans up by itself.
    manager = nova._nova.compute.manager
    with nova._cell() as context:
        for task in ('_run_image_cache_manager_pass', '_run_pending_deletes',
                     '_cleanup_incomplete_migrations',
                     '_cleanup_running_deleted_instances'):
            getattr(manager, task)(context)
    assert_read_until_its_time(nova, command, clock, server,
                               f'{BOOT}first\n{BOOT}', 'deleted', tmp_path)


@pytest.mark.parametrize('failing', ['_create_guest', 'spawn'])
def test_a_server_that_failed_to_boot(
        nova: NovaNode, command: Console, clock: Clock, tmp_path: Path,
        failing: str) -> None:
    """Its guest had started: nova cleans up at once, or a moment later."""
    real = getattr(nova.driver, failing)

    def fail(context: Any, second: Any, third: Any, *args: Any,
             **kwargs: Any) -> None:
        real(context, second, third, *args, **kwargs)
        instance = third if failing == '_create_guest' else second
        log = nova.instances_path / instance.uuid / 'console.log'
        until(lambda: log.exists() and log.read_text().replace(
            '\r', '') == BOOT, 'it has booted')
        raise RuntimeError('the network\nis not there')

    with (fixtures.MockPatchObject(nova.driver, failing, fail),
          pytest.raises(RuntimeError)):
        nova.boot()
    (server,) = nova.api.get_servers()
    assert server['status'] == 'ERROR'
    assert nova.host.connect().listAllDomains() == []
    # And then nobody has looked at why.
    nova.delete(server)
    assert_read_until_its_time(
        nova, command, clock, server, BOOT,
        'boot failed: the network is not there', tmp_path)


def test_what_cannot_be_kept_is_complained_of(
        nova: NovaNode, use: Use, tmp_path: Path) -> None:
    metrics_file = tmp_path / 'virtlogd.prom'
    use(Config(CONF)).config(
        group='virtlogd', metrics_file=str(metrics_file))
    nova.restart_compute()

    def measured() -> dict[str, str]:
        return {name.removeprefix('virtlogd_driver_deleted_logs'): value
                for name, _, value in (
                    line.partition(' ')
                    for line in metrics_file.read_text().splitlines())
                if name.startswith('virtlogd_driver_deleted_logs')}

    nova.delete(boot(nova))
    pass_health(nova)
    found = measured()
    assert (found[''], found['_usable'], found['_not_kept_total']) == (
        '1.0', '1.0', '0.0')
    assert float(found['_bytes']) >= len(f'{BOOT}first\n')
    assert time.time() - float(found['_oldest_timestamp_seconds']) < HOUR
    directory = nova.instances_path / deleted.DIRECTORY
    directory.rename(directory.with_name('aside'))
    directory.touch()
    server = boot(nova)
    nova.delete(server)
    pass_health(nova)
    found = measured()
    assert (found['_usable'], found['_not_kept_total']) == ('0.0', '1.0')
    # It is put in its place as soon as there is one.
    directory.unlink()
    directory.with_name('aside').rename(directory)
    nova.restart_compute()
    pass_health(nova)
    found = measured()
    assert (found[''], found['_usable'], found['_not_kept_total']) == (
        '2.0', '1.0', '0.0')


class Killed(Exception):
    """Nothing of ours runs any more."""


def test_nova_compute_is_killed_amid_the_deletion(
        nova: NovaNode, command: Console) -> None:
    server = boot(nova)
    directory = nova.instance_directory(server)
    begun = directory.with_name(f'{directory.name}_deleted')

    def rename_one(*_: Any) -> None:
        (directory / 'console.log').rename(begun / 'console.log')

    def killed(*_: Any) -> None:
        raise Killed

    with (fixtures.MockPatchObject(deleted.logs, 'gather', rename_one),
          fixtures.MockPatchObject(deleted, '_commit', killed),
          fixtures.MockPatchObject(
              libvirt_driver.LibvirtDriver, 'delete_instance_files', killed)):
        nova.api.delete_server(server['id'])
        nova.wait(server, 'ERROR')
    assert {path.name for path in begun.iterdir()} == {
        'console.log', 'deleted.json'}
    nova.restart_compute()
    # Its domain is there, so it may live on.
    assert not begun.exists()
    assert kept(nova) == []
    nova.delete(server)
    assert [path.name for path in nova.instances_path.glob(
        f'{server["id"]}*')] == []
    assert show(command, server, '--since-boot') == f'{BOOT}first\n'


def test_off(libvirt_host: LibvirtHost, tmp_path: Path, use: Use) -> None:
    """As it is by default; what was kept goes when it is turned off."""
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova'))
    nova.delete(boot(nova))
    assert not (nova.instances_path / deleted.DIRECTORY).exists()
    CONF.set_override('keep_deleted', KEEP, 'virtlogd')
    nova.delete(boot(nova))
    assert len(kept(nova)) == 1
    CONF.set_override('keep_deleted', 0, 'virtlogd')
    nova.restart_compute()
    assert kept(nova) == []


def test_what_had_not_followed_it(make: Make) -> None:
    """The guest has left, and is deleted where it is: all of it is kept."""
    nova = make(QUIET, options={('virtlogd', 'keep_deleted'): KEEP})
    server = nova.boot_on('host1')
    nova.wait_for_output(server, BOOT)
    nova.ssh.stop('host2')
    nova.move_live(server, 'host2')
    type_text(nova, server, 'there')
    assert len(waiting(nova, 'host1')) == 1
    nova.delete(server)
    wait_until_it_has_followed(nova, 'host1')
    found = {name: deleted.kept(str(instances))
             for name, instances in nova.instances.items()}
    assert {name: [(one.uuid, one.host, one.about.why) for one in kept]
            for name, kept in found.items()} == {
        'host1': [(server['id'], 'host1', 'deleted, on another host')],
        'host2': [(server['id'], 'host2', 'deleted')]}
    (here,), (there,) = found['host1'], found['host2']
    assert Path(here.entry.path, 'console.log').read_text().replace(
        '\r', '') == BOOT
    assert Path(there.entry.path, 'console.g1.log').read_text().replace(
        '\r', '') == 'there\n'
