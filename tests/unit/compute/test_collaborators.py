# SPDX-License-Identifier: Apache-2.0
"""What the driver consists of works without nova's LibvirtDriver."""

import contextlib
import dataclasses
import errno
import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states
from nova.console import serial as nova_serial
from nova.objects import migrate_data as migrate_data_obj
from nova.virt import event as virtevent

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.compute import cold_migration, live_migration
from virtlogd_driver.compute import consoles as consoles_module
from virtlogd_driver.compute import starts as starts_module
from virtlogd_driver.compute.cold_migration import ColdMigration
from virtlogd_driver.compute.consoles import Consoles, live_log
from virtlogd_driver.compute.histories import Histories
from virtlogd_driver.compute.live_migration import Destination, Source
from virtlogd_driver.compute.starts import Starts
from virtlogd_driver.guest import char_device, plan
from virtlogd_driver.history import boot, delivery, history, outbox
from virtlogd_driver.node import hypervisor
from virtlogd_driver.virtlogd import privileged
from virtlogd_driver.virtlogd.disk import Disks

UUID = '00000000-0000-4000-8000-000000000007'
INSTANCE = types.SimpleNamespace(uuid=UUID)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / UUID
    path.mkdir()
    for module in (consoles_module, starts_module):
        monkeypatch.setattr(
            module, 'get_instance_path', lambda _: str(path))
    return path


@pytest.fixture
def options(tmp_path: Path) -> Any:
    return types.SimpleNamespace(
        host='host1', instances_path=str(tmp_path), virt_type='qemu',
        serial_console=True, port_range='10000:10003',
        proxyclient_address='127.0.0.1', guest_address='127.0.0.1',
        viewers_address=lambda address: address,
        virtlogd=types.SimpleNamespace(
            qemu_conf=str(tmp_path / 'qemu.conf'), fallback_device='file',
            virtlogd_conf=str(tmp_path / 'virtlogd.conf'),
            max_console_bytes=1000, keep_deleted=0, keep_deleted_bytes=0,
            health_interval=60))


def _xml(directory: Path) -> str:
    return fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(directory / 'console.log')),
        guest_uuid=UUID)


@pytest.fixture
def asked() -> list[str]:
    """Whose XML libvirt was asked for."""
    return []


@pytest.fixture
def consoles(options: Any, directory: Path, asked: list[str]) -> Consoles:
    def domain_xml(instance: Any) -> str:
        asked.append(instance.uuid)
        return _xml(directory)

    return Consoles(options, lambda: None, domain_xml, lambda _: 'x86_64')


def test_libvirt_is_asked_once_for_both_consoles(
        consoles: Consoles, directory: Path, asked: list[str]) -> None:
    (directory / 'console.log').write_bytes(b'output')
    for _ in range(3):
        assert consoles.output(INSTANCE) == b'output'
        assert consoles.interactive(INSTANCE).host == '127.0.0.1'
    assert asked == [UUID]
    consoles.changed(UUID)
    assert consoles.output(INSTANCE) == b'output'
    assert asked == [UUID] * 2


def test_a_log_that_cannot_be_made(
        consoles: Consoles, directory: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which, and what to do; and no port stays reserved."""
    def full(path: str) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device', path)
    monkeypatch.setattr(history.chain, 'begin', full)
    monkeypatch.setattr(consoles, 'plan', lambda *_: plan.plan(
        capable=True, serial_console=True, fallback='file',
        architecture='x86_64', ports=2))
    with pytest.raises(exception.LogNotBegun,
                       match=r'console\.log cannot be made \(No space'):
        consoles.devices(INSTANCE, None, None)
    assert consoles.ports.held() == {}
    assert os.listdir(directory) == []


def test_a_guest_that_is_about_to_come_keeps_its_ports(
        consoles: Consoles, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given them, and not defined yet, as the database answers."""
    monkeypatch.setattr(hypervisor, 'guest_uuids', lambda _: [])
    consoles.ports.adopt(UUID, [('127.0.0.1', 10000)])
    coming = [True]

    def is_expected(uuid: str) -> bool:
        if coming:
            coming.clear()
            consoles.ports.acquire(uuid, '127.0.0.1', 1)
        return False
    consoles.release_unused(is_expected)
    assert consoles.ports.owners() == {UUID}
    consoles.release_unused(is_expected)
    assert consoles.ports.owners() == set()


def test_a_log_whose_place_is_not_known(
        consoles: Consoles, directory: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the start that fails: nobody has asked for the console."""
    def stale(path: str) -> list[str]:
        raise OSError(errno.ESTALE, 'Stale file handle', path)
    monkeypatch.setattr(os, 'listdir', stale)
    monkeypatch.setattr(consoles, 'plan', lambda *_: plan.plan(
        capable=True, serial_console=True, fallback='file',
        architecture='x86_64', ports=1))
    with pytest.raises(exception.LogNotBegun,
                       match=r'not started: .*Stale .*see to the file'):
        consoles.devices(INSTANCE, None, None)
    assert consoles.ports.held() == {}


def test_a_directory_that_cannot_be_listed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: str) -> list[str]:
        raise OSError(errno.ESTALE, 'Stale file handle', path)
    assert live_log(str(tmp_path / 'gone')).endswith('gone/console.log')
    monkeypatch.setattr(os, 'listdir', stale)
    with pytest.raises(exception.LogError, match=r'Stale .*see to the file'):
        live_log(str(tmp_path))


def _started(uuid: str = UUID) -> virtevent.LifecycleEvent:
    return virtevent.LifecycleEvent(
        uuid, virtevent.EVENT_LIFECYCLE_STARTED)


@pytest.fixture
def starts(options: Any, consoles: Consoles, directory: Path,
           monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        starts_module.hypervisor, 'booted_xml',
        lambda _, uuid: _xml(directory) if uuid == UUID else None)
    made = Starts(options, consoles, lambda: None, lambda: None)
    yield made
    made.stop()


def test_a_start_is_noted(starts: Starts, directory: Path) -> None:
    (directory / 'console.log').write_bytes(b'older')
    starts.event(_started())
    starts.wait_until_noted()
    (noted,) = boot.read(str(directory))
    assert noted.positions[0].offset == len(b'older')


def test_there_can_be_no_more_threads(
        starts: Starts, directory: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    """nova has the event all the same, and the start is noted later."""
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, 'start', fail)
        starts.event(_started())
    assert 'is not noted before another guest starts' in caplog.text
    starts.event(_started())
    starts.wait_until_noted()
    assert len(boot.read(str(directory))) == 2


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file system of the guests does not answer."""
    go = threading.Event()

    def stall(*_: object) -> None:
        go.wait(5)
        raise OSError(errno.EIO, 'Input/output error')
    for name in ('access', 'listdir', 'statvfs'):
        monkeypatch.setattr(os, name, stall)
    for module in (starts_module, live_migration):
        monkeypatch.setattr(module, 'DISKS', Disks(patience=0.2))
    monkeypatch.setattr(privileged, 'probe',
                        lambda *_: (privileged.UP, '', ()))
    yield
    go.set()


def test_a_start_does_not_wait_for_a_disk(
        starts: Starts, consoles: Consoles, options: Any, stalled: None,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles, 'capability', lambda: types.SimpleNamespace(
        capable=True))
    options.virtlogd.virtlogd_socket = '/none'
    options.virtlogd.health_timeout = 1
    for check in (starts.check, starts.check_new):
        with pytest.raises(nova_exception.InternalError,
                           match=r'file system of .* has not answered'):
            check(INSTANCE)


def test_an_event_does_not_wait_for_a_disk(
        starts: Starts, directory: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    """All events of a host come in one thread."""
    goes_on = threading.Event()
    noted = []

    def stalls(directory: str, start: boot.Boot) -> None:
        goes_on.wait()
        noted.append(start)
    monkeypatch.setattr(boot, 'add', stalls)
    monkeypatch.setattr(starts_module, 'MOST_WAITING', 3)
    for _ in range(starts_module.MOST_WAITING):
        starts.event(_started())
    # Returns, as a call that waits would not.
    goes_on.set()
    starts.wait_until_noted()
    assert len(noted) == 3


def test_what_waits_is_bounded(
        options: Any, consoles: Consoles, directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(starts_module, 'MOST_WAITING', 2)
    monkeypatch.setattr(starts_module.hypervisor, 'booted_xml',
                        lambda *_: goes_on.wait() and None)
    made = Starts(options, consoles, lambda: None, lambda: None)
    for number in range(5):
        made.event(_started(f'guest{number}'))
    # One may be noted already, when is for its thread to say.
    assert 2 <= caplog.text.count('is not noted') <= 3
    goes_on.set()
    made.wait_until_noted()
    made.stop()


def test_the_end_does_not_wait_for_a_disk(
        options: Any, consoles: Consoles,
        monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(starts_module, 'MOST_WAITING', 1)
    monkeypatch.setattr(starts_module.hypervisor, 'booted_xml',
                        lambda *_: goes_on.wait() and None)
    made = Starts(options, consoles, lambda: None, lambda: None)
    for _ in range(3):
        made.event(_started())
    made.stop()
    goes_on.set()
    made.wait_until_noted()
    made.stop()


def test_a_guest_without_an_interactive_console(
        consoles: Consoles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles, '_domain_xml',
                        lambda _: fake_libvirt.domain_xml(''))
    with pytest.raises(nova_exception.ConsoleTypeUnavailable):
        consoles.interactive(INSTANCE)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What nova's database has: one guest, or none."""
    rows: list[Any] = []

    def find(context: Any, uuid: str) -> Any:
        assert uuid == UUID
        if not rows or (rows[0].deleted
                        and context.read_deleted != 'yes'):
            raise nova_exception.InstanceNotFound(instance_id=uuid)
        return rows[0]
    monkeypatch.setattr(objects.Instance, 'get_by_uuid', find)
    return rows


def _row(**values: Any) -> Any:
    return types.SimpleNamespace(**{
        'uuid': UUID, 'host': 'host2', 'task_state': None,
        'deleted': False, **values})


class TestReservedPorts:
    """Whose TCP ports stay reserved, by nova's database."""

    @pytest.fixture
    def held(self, consoles: Consoles,
             monkeypatch: pytest.MonkeyPatch) -> Any:
        """Gives the owners of ports after those of nobody are free."""
        monkeypatch.setattr(hypervisor, 'guest_uuids', lambda _: [])
        consoles.ports.adopt(UUID, [('127.0.0.1', 10000)])

        def look() -> set[str]:
            consoles.release_unused(cold_migration.is_expected)
            return consoles.ports.owners()
        return look

    def test_it_is_on_its_way(self, held, known) -> None:
        known.append(_row(task_state=task_states.MIGRATING))
        assert held() == {UUID}

    def test_it_does_not_come(self, held, known) -> None:
        known.append(_row())
        assert held() == set()

    @pytest.mark.parametrize('task', [None, task_states.DELETING])
    def test_deleted(self, held, known, task) -> None:
        known.append(_row(deleted=True, task_state=task))
        assert held() == set()

    def test_a_database_that_does_not_know_it(self, held, known) -> None:
        """Another cell's, or the wrong one: it may be on its way."""
        assert known == []
        assert held() == {UUID}


class TestHistories:
    """Where what a guest wrote goes, by nova's database alone."""

    DEPARTURE = outbox.begin_departure(
        UUID, '192.0.2.7', 'host2', f'/instances/{UUID}', {})

    @pytest.fixture
    def histories(self, options: Any, consoles: Consoles,
                  monkeypatch: pytest.MonkeyPatch) -> Histories:
        monkeypatch.setattr(hypervisor, 'runs', lambda *_: False)

        def kept() -> Any:
            raise AssertionError('nothing is moved')
        return Histories(options, consoles, lambda: None, kept)

    def test_to_its_host(self, histories, known) -> None:
        known.append(_row())
        assert histories._where(self.DEPARTURE) == delivery.Target(
            '192.0.2.7', f'/instances/{UUID}')

    def test_to_one_that_it_may_just_leave(self, histories, known) -> None:
        known.append(_row(task_state='migrating'))
        assert histories._where(self.DEPARTURE) == delivery.Target(
            '192.0.2.7', f'/instances/{UUID}', moving=True)

    def test_it_has_moved_on(self, histories, known, monkeypatch) -> None:
        """To the compute node that is there, not to a deleted one."""
        def node(context: Any, host: str) -> Any:
            assert (context.read_deleted, host) == ('no', 'host3')
            return objects.ComputeNode(host_ip='192.0.2.9')
        monkeypatch.setattr(
            objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
            node)
        known.append(_row(host='host3'))
        assert histories._where(self.DEPARTURE) == delivery.Target(
            '192.0.2.9', f'/instances/{UUID}', moved_on=True)

    @pytest.mark.parametrize('host', ['host2', ''])
    def test_it_is_shelved(self, histories, known, host) -> None:
        """On no host, none that it may have left for either."""
        known.append(_row(host=None))
        departure = dataclasses.replace(self.DEPARTURE, host=host)
        assert histories._where(departure) == delivery.Elsewhere(
            'the guest is shelved, and on no host')

    def test_it_is_here_again(self, histories, known) -> None:
        known.append(_row(host='host1'))
        assert histories._where(self.DEPARTURE) == delivery.Elsewhere(
            'the guest is on this host again')

    def test_it_is_here_again_and_the_rest_still_comes(
            self, histories, known, tmp_path, monkeypatch) -> None:
        """It may be among that: nothing is in the way yet."""
        (tmp_path / 'console.moving').mkdir()
        monkeypatch.setattr('virtlogd_driver.compute.histories'
                            '.get_instance_path', lambda _: str(tmp_path))
        known.append(_row(host='host1'))
        assert histories._where(self.DEPARTURE) == delivery.Elsewhere('')

    def test_deleted(self, histories, known) -> None:
        known.append(_row(deleted=True))
        assert histories._where(self.DEPARTURE) is None

    def test_a_database_that_does_not_know_it(self, histories,
                                              known) -> None:
        """Another cell's, or the wrong one: no reason to remove a log."""
        assert known == []
        assert isinstance(
            histories._where(self.DEPARTURE), delivery.Elsewhere)

    @pytest.mark.parametrize('known', [True, False])
    def test_it_has_come_back(self, histories, consoles, options, directory,
                              monkeypatch, known) -> None:
        """None of its logs makes room that virtlogd may have open."""
        options.virtlogd.max_history_bytes = 1000
        monkeypatch.setattr('virtlogd_driver.compute.histories'
                            '.get_instance_path', lambda _: str(directory))
        monkeypatch.setattr(histories, 'place', lambda *_: None)
        if not known:
            monkeypatch.setattr(consoles, '_domain_xml', lambda _: '')
        kept = Kept()
        histories.kept = lambda: kept
        histories.arrived(INSTANCE)
        histories._arrivals.wait(UUID, 60)
        assert kept.asked == ['take_back'] * known + [
            'cut', 'wait_until_received']

    def test_there_can_be_no_more_threads(
            self, histories, options, monkeypatch, caplog,
            tmp_path) -> None:
        """A guest that has come stays all the same, and is said."""
        options.virtlogd.max_history_bytes = 1000
        received: list[str] = []
        histories.kept = lambda: types.SimpleNamespace(
            wait_until_received=lambda *_, **__: received.append(UUID))

        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, 'start', fail)
            histories.receive_in_background(None, UUID, str(tmp_path), [])
        (said,) = caplog.records
        assert said.instance == {'uuid': UUID}
        histories.receive_in_background(None, UUID, str(tmp_path), [])
        histories._arrivals.wait(UUID, 60)
        assert received == [UUID]

    @pytest.mark.parametrize('row', ['none', 'deleted', 'there'])
    def test_orphans(self, histories, known, row, options) -> None:
        """They go with their guest, and with nothing less."""
        orphan = Path(options.instances_path, UUID, 'console.moving')
        orphan.mkdir(parents=True)
        if row != 'none':
            known.append(_row(deleted=row == 'deleted'))
        histories.look_around()
        assert orphan.exists() == (row != 'deleted')


class Kept:
    """What keeps histories: what it was asked for, in that order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*_: Any, **__: Any) -> Any:
            self.asked.append(name)
            return (contextlib.nullcontext() if name == 'before_deletion'
                    else None)
        return ask


@pytest.fixture
def kept() -> Kept:
    return Kept()


class TestColdMigration:
    """What becomes of the logs of a guest that is off, by where it goes."""

    @pytest.fixture
    def moves(self, options: Any, consoles: Consoles, starts: Starts,
              kept: Kept, directory: Path,
              monkeypatch: pytest.MonkeyPatch) -> ColdMigration:
        monkeypatch.setattr(cold_migration, 'get_instance_path',
                            lambda _: str(directory))
        monkeypatch.setattr(
            objects.Migration, 'get_by_instance_and_status',
            lambda *_: types.SimpleNamespace(dest_compute='host2'))
        histories: Any = types.SimpleNamespace(
            kept=lambda: kept, prepare=lambda *_: '/outbox',
            departure=lambda *_, **__: None,
            wait_for_history=lambda _: kept.asked.append('wait'),
            gone=lambda _: kept.asked.append('gone'),
            deleted=lambda *_: kept.asked.append('deleted'),
            try_now=lambda path, target: kept.asked.append(
                f'{path} to {target.address}'))
        return ColdMigration(options, consoles, starts, histories)

    CONTEXT: Any = types.SimpleNamespace(elevated=lambda: None)

    def test_resized_on_its_host(self, moves, kept) -> None:
        moves.leave(self.CONTEXT, INSTANCE, '192.0.2.1', '192.0.2.1')
        assert kept.asked == ['take_along']

    def test_to_another_host(self, moves, kept, directory) -> None:
        directory.rmdir()
        moves.leave(self.CONTEXT, INSTANCE, '192.0.2.7', '192.0.2.1')
        assert kept.asked == ['/outbox to 192.0.2.7']

    @pytest.mark.parametrize(('stat', 'asked'), [
        ('True', ['take_along', 'begin_next']), (None, ['leave_aside'])])
    def test_on_shared_storage(self, moves, kept, monkeypatch, stat,
                               asked) -> None:
        """Where nova's own driver begins the log anew it goes aside."""
        monkeypatch.setattr(cold_migration, 'stat_of', lambda *_: stat)
        moves.leave(self.CONTEXT, INSTANCE, '192.0.2.7', '192.0.2.1')
        assert kept.asked == asked

    def test_rebuilt(self, moves, kept, monkeypatch) -> None:
        """It is aside while nova deletes, whatever comes of that."""
        monkeypatch.setattr(objects.MigrationList, 'get_by_filters',
                            lambda *_: [])
        rebuilt: Any = _Instance(task_states.REBUILDING)

        def delete() -> None:
            assert kept.asked == ['wait', 'before_deletion', 'set_aside']
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), moves.saved(
                self.CONTEXT, rebuilt, destroy_disks=True):
            delete()
        assert kept.asked[3:] == ['put_back']
        # It is no evacuation then.
        moves.evacuated(rebuilt)
        assert len(kept.asked) == 4

    def test_rebuilt_or_evacuated(self, moves, kept, monkeypatch) -> None:
        """The database does not say which: nova does not delete it."""
        def fail(*_: object) -> None:
            raise OSError('no conductor')
        monkeypatch.setattr(objects.MigrationList, 'get_by_filters', fail)
        rebuilt: Any = _Instance(task_states.REBUILDING)
        with moves.saved(self.CONTEXT, rebuilt, destroy_disks=True):
            assert kept.asked == ['wait', 'before_deletion', 'set_aside']
        # No directory is left on a host that the guest has left.
        assert len(kept.asked) == 3
        moves.evacuated(rebuilt)
        assert kept.asked[3:] == ['begin_next', 'cut']

    def test_evacuated_from_here(self, moves, kept, monkeypatch) -> None:
        monkeypatch.setattr(objects.MigrationList, 'get_by_filters',
                            lambda *_: [objects.Migration()])
        with moves.saved(self.CONTEXT, _Instance(task_states.REBUILDING),
                         destroy_disks=True):
            pass
        assert kept.asked == ['gone']

    def test_rebuilt_where_it_was_evacuated_to(self, moves, kept,
                                               monkeypatch) -> None:
        """Its old host is back, and deletes it: nothing is put back there."""
        monkeypatch.setattr(objects.MigrationList, 'get_by_filters',
                            lambda *_: [])
        with moves.saved(self.CONTEXT, _Instance(
                task_states.REBUILDING, host='host2'), destroy_disks=True):
            pass
        assert kept.asked == ['gone']

    def test_evacuated_to_here(self, moves, kept) -> None:
        moves.evacuated(INSTANCE)
        assert kept.asked == ['begin_next', 'cut']

    @pytest.mark.parametrize(('disks', 'asked'), [
        (True, ['gone']), (False, [])])
    def test_deleted(self, moves, kept, disks, asked) -> None:
        """It is waited for no more; its log: test_deletions.py."""
        with moves.saved(self.CONTEXT, _Instance(task_states.DELETING),
                         destroy_disks=disks):
            pass
        assert kept.asked == asked


class _Instance(types.SimpleNamespace):
    """nova's Instance, with a task state."""

    def __init__(self, task_state: str, host: str = 'host1') -> None:
        super().__init__(uuid=UUID, task_state=task_state, host=host)

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, name, default)


class TestSource:
    """The host that a guest leaves, running."""

    @pytest.fixture
    def source(self, options: Any, consoles: Consoles, kept: Kept,
               directory: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
        monkeypatch.setattr(live_migration.libvirt_utils,
                            'get_instance_path', lambda _: str(directory))
        monkeypatch.setattr(live_migration, 'stat_of', lambda *_: 'True')
        kept.leave = lambda *_: '/outbox'
        options.virtlogd.upgrade_on_migration = False
        histories: Any = types.SimpleNamespace(
            kept=lambda: kept, departure=lambda *_: None,
            prepare=lambda *_: '/outbox', send=kept.asked.append)
        return Source(options, consoles, histories)

    @staticmethod
    def _data(**values: Any) -> Any:
        return migrate_data_obj.LibvirtLiveMigrateData(**values)

    def test_its_log_is_the_next_one_there(self, source, directory) -> None:
        rewrite = source.prepare(None, INSTANCE, 'host2', self._data(
            is_shared_instance_path=False, serial_listen_addr='192.0.2.7',
            serial_listen_ports=[10005]))
        (device,) = char_device.parse(rewrite(_xml(directory)))
        assert device.address == ('192.0.2.7', 10005)
        assert device.log_file == str(directory / 'console.g1.log')

    def test_what_it_wrote_is_sent_once(self, source, kept) -> None:
        source.prepare(None, INSTANCE, 'host2', self._data(
            is_shared_instance_path=False))
        for _ in range(2):
            source.left(UUID)
        assert kept.asked == ['before_deletion', '/outbox',
                              'before_deletion']

    @pytest.mark.parametrize(('stat', 'asked'), [
        ('True', ['before_deletion']),
        (None, ['before_deletion', 'leave_aside'])])
    def test_on_shared_storage(self, source, kept, monkeypatch, stat,
                               asked) -> None:
        monkeypatch.setattr(live_migration, 'stat_of', lambda *_: stat)
        source.prepare(None, INSTANCE, 'host2', self._data(
            is_shared_instance_path=True))
        source.left(UUID)
        assert kept.asked == asked

    def test_what_is_written_there_is_not_put_aside(
            self, source, directory, monkeypatch) -> None:
        """nova's own driver shows it, by its name; the rest it may delete."""
        made = history.History(lambda **_: None, 1000, 1, '/none')
        monkeypatch.setattr(source._histories, 'kept', lambda: made)
        monkeypatch.setattr(live_migration, 'stat_of', lambda *_: None)
        monkeypatch.setattr(history, 'CLOSING', 0.01)
        for name in ('console.log', 'console.log.0', 'console.port1.log'):
            (directory / name).write_bytes(b'here')
        rewrite = source.prepare(None, INSTANCE, 'host2', self._data(
            is_shared_instance_path=True))
        (device,) = char_device.parse(rewrite(_xml(directory)))
        live = directory / 'console.g1.log'
        assert (device.type, device.log_file) == ('file', str(live))
        (directory / 'console.g1.log.0').write_bytes(b'there')
        source.left(UUID)
        assert sorted(os.listdir(directory)) == [live.name, f'{live.name}.0']
        assert sorted(os.listdir(f'{directory}_console')) == [
            'console.log', 'console.log.0', 'console.port1.log']

    def test_it_stays(self, source, kept) -> None:
        data = self._data(is_shared_instance_path=False)
        source.prepare(None, INSTANCE, 'host2', data)
        source.stayed(INSTANCE, data)
        assert kept.asked == ['forget']
        source.left(UUID)
        assert kept.asked == ['forget', 'before_deletion']


class TestDestination:
    """The host that a guest comes to, running."""

    @pytest.fixture
    def destination(self, options: Any, consoles: Consoles,
                    monkeypatch: pytest.MonkeyPatch) -> Destination:
        monkeypatch.setattr(consoles, 'plan', lambda *_: plan.plan(
            capable=True, serial_console=True, fallback='file',
            architecture='x86_64', ports=1))
        options.virtlogd.max_history_bytes = 1000
        options.virtlogd.virtlogd_socket = '/none'
        options.virtlogd.health_timeout = 1
        return Destination(options, consoles)

    INSTANCE = types.SimpleNamespace(
        uuid=UUID, flavor=None, image_meta=None)

    def test_it_gets_ports_and_a_log_of_its_own(
            self, destination, directory, consoles, monkeypatch) -> None:
        monkeypatch.setattr(
            live_migration.libvirt_utils, 'get_instance_path_at_destination',
            lambda *_: str(directory))
        data = migrate_data_obj.LibvirtLiveMigrateData()
        destination.prepare(self.INSTANCE, data, '127.0.0.1')
        assert os.listdir(directory) == ['console.g1.log']
        (port,) = data.serial_listen_ports
        assert consoles.ports.held() == {('127.0.0.1', port): UUID}

    def test_what_cannot_come_leaves_nothing(
            self, destination, directory, consoles, monkeypatch) -> None:
        monkeypatch.setattr(
            live_migration.libvirt_utils, 'get_instance_path_at_destination',
            lambda *_: str(directory))

        def full(_: object) -> None:
            raise OSError(errno.ENOSPC, 'No space left on device')
        monkeypatch.setattr(live_migration.history, 'begin_logs', full)
        with pytest.raises(nova_exception.InternalError,
                           match=r'console log .* made \(No space'):
            destination.prepare(
                self.INSTANCE, migrate_data_obj.LibvirtLiveMigrateData(),
                '127.0.0.1')
        assert consoles.ports.held() == {}

    def test_without_room_for_what_it_wrote(self, destination,
                                            monkeypatch) -> None:
        monkeypatch.setattr(live_migration.health, 'check_ready',
                            lambda *_, **__: None)
        monkeypatch.setattr(live_migration.health, 'free_space',
                            lambda *_: 999)
        with pytest.raises(exception.LogDiskFull, match='may take 1000'):
            destination.check(self.INSTANCE)

    @pytest.mark.parametrize('capable', [True, False])
    def test_it_does_not_wait_for_a_disk(
            self, destination, consoles, stalled, monkeypatch,
            capable) -> None:
        monkeypatch.setattr(consoles, 'plan', lambda *_: plan.plan(
            capable=capable, serial_console=True, fallback='file',
            architecture='x86_64', ports=1))
        with pytest.raises(exception.VirtlogdDriverError,
                           match=r'file system of .* has not answered'):
            destination.check(self.INSTANCE)

    def test_novas_ports_are_given_back(self, destination) -> None:
        """It searches at an address that nobody has."""
        data = migrate_data_obj.LibvirtLiveMigrateData(
            serial_listen_addr='192.0.2.7')
        port = 10001
        nova_serial.ALLOCATED_PORTS.add(
            (live_migration.NOBODYS_ADDRESS, port))
        with destination.without_novas_ports(data) as address:
            assert address == '192.0.2.7'
            assert data.serial_listen_addr == live_migration.NOBODYS_ADDRESS
            data.serial_listen_ports = [port]
        assert (live_migration.NOBODYS_ADDRESS,
                port) not in nova_serial.ALLOCATED_PORTS
        assert data.serial_listen_addr == '127.0.0.1'
