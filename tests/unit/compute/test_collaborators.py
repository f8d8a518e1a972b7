# SPDX-License-Identifier: Apache-2.0
"""What the driver consists of works without nova's LibvirtDriver."""

import errno
import os
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.virt import event as virtevent

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.compute import consoles as consoles_module
from virtlogd_driver.compute import starts as starts_module
from virtlogd_driver.compute.consoles import Consoles, live_log
from virtlogd_driver.compute.histories import Histories
from virtlogd_driver.compute.starts import Starts
from virtlogd_driver.guest import plan
from virtlogd_driver.history import boot, history, outbox
from virtlogd_driver.node import hypervisor

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
            max_console_bytes=1000))


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
    assert 'guest4 is not noted' in caplog.text
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


def test_a_guest_without_an_interactive_console(
        consoles: Consoles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consoles, '_domain_xml',
                        lambda _: fake_libvirt.domain_xml(''))
    with pytest.raises(nova_exception.ConsoleTypeUnavailable):
        consoles.interactive(INSTANCE)


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

    @pytest.fixture
    def known(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
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

    @staticmethod
    def _row(**values: Any) -> Any:
        return types.SimpleNamespace(**{
            'uuid': UUID, 'host': 'host2', 'task_state': None,
            'deleted': False, **values})

    def test_to_its_host(self, histories, known) -> None:
        known.append(self._row())
        assert histories._where(self.DEPARTURE) == history.Target(
            '192.0.2.7', f'/instances/{UUID}')

    def test_it_is_here_again(self, histories, known) -> None:
        known.append(self._row(host='host1'))
        assert isinstance(
            histories._where(self.DEPARTURE), history.Elsewhere)

    def test_deleted(self, histories, known) -> None:
        known.append(self._row(deleted=True))
        assert histories._where(self.DEPARTURE) is None

    def test_a_database_that_does_not_know_it(self, histories,
                                              known) -> None:
        """Another cell's, or the wrong one: no reason to remove a log."""
        assert known == []
        assert isinstance(
            histories._where(self.DEPARTURE), history.Elsewhere)

    @pytest.mark.parametrize('row', ['none', 'deleted', 'there'])
    def test_orphans(self, histories, known, row, options) -> None:
        """They go with their guest, and with nothing less."""
        orphan = Path(options.instances_path, UUID, 'console.moving')
        orphan.mkdir(parents=True)
        if row != 'none':
            known.append(self._row(deleted=row == 'deleted'))
        histories.look_around()
        assert orphan.exists() == (row != 'deleted')
