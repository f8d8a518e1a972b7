# SPDX-License-Identifier: Apache-2.0
"""When nova deletes a guest's files: whether its log is kept."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from nova import objects
from nova.compute import task_states, vm_states
from nova.conf import CONF

from tests.unit.compute.given import UUID
from virtlogd_driver.compute import deletions, health
from virtlogd_driver.history import deleted, history, outbox
from virtlogd_driver.node import metrics
from virtlogd_driver.virtlogd import periodic, privileged

Delete = Callable[..., list[deleted.Kept]]


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        privileged, 'probe', lambda *_: (privileged.UP, '', ()))
    monkeypatch.setattr(history, 'CLOSING', 0.02)


@pytest.fixture
def delete(make_driver: Any, instance: objects.Instance, conf: Any,
           directory: pathlib.Path) -> Delete:
    """What is kept once nova has deleted the guest's files."""
    conf.config(group='virtlogd', keep_deleted=3600)
    (directory / 'console.log').write_bytes(b'written')
    (directory / 'disk').write_bytes(b'disk')
    made = make_driver()

    def run(error: ValueError | None = None,
            **fields: Any) -> list[deleted.Kept]:
        for name, value in fields.items():
            setattr(instance, name, value)
        if error is None:
            assert made.delete_instance_files(instance)
        else:
            try:
                raise error
            except ValueError:
                assert made.delete_instance_files(instance)
        assert not directory.exists()
        return deleted.kept(str(directory.parent))
    return run


@pytest.mark.parametrize('fails', [False, True])
def test_what_is_kept_and_what_is_not_is_counted(
        delete: Delete, conf: Any, directory: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch, make_driver: Any, fails: bool,
        tmp_path: pathlib.Path) -> None:
    """The disk is full as the log is to be put where it is kept."""
    file = tmp_path / 'virtlogd.prom'
    conf.config(group='virtlogd', metrics_file=str(file))
    monkeypatch.setattr(periodic.HealthTask, 'start', lambda _: None)
    # The driver that deletes is the one that was made last.
    made = make_driver()
    if fails:
        monkeypatch.setattr(
            deleted, '_commit', lambda *_: (_ for _ in ()).throw(
                OSError(28, 'No space left on device')))
    instance = objects.Instance(
        uuid=UUID, deleted=True, task_state=None, vm_state=None)
    made._histories.deletions.files(instance)
    task = health.start(made._options, made._connection,
                        made._histories.deletions)
    assert task is not None
    task.run_once()
    text = file.read_text()
    assert f'\nvirtlogd_driver_deleted_logs {float(not fails)}\n' in text
    assert ('\nvirtlogd_driver_deleted_logs_not_kept_total '
            f'{float(fails)}\n') in text
    assert metrics.not_kept(str(file)) == fails


DELETED: list[dict[str, Any]] = [
    {'task_state': task_states.DELETING},
    # While nova-compute was down: _run_pending_deletes, or "reap".
    {'deleted': True, 'task_state': None},
    # In an incomplete migration: it was on another host.
    {'deleted': True, 'host': 'elsewhere'},
    # Reclaimed: there is no task then.
    {'vm_state': vm_states.SOFT_DELETED, 'task_state': None,
     'host': 'here'},
]


@pytest.mark.parametrize('fields', DELETED, ids=str)
def test_deleted(delete: Delete, conf: Any, fields: dict[str, Any]) -> None:
    conf.config(host='here')
    (kept,) = delete(project_id='project', display_name='web', **fields)
    assert (kept.uuid, kept.name) == (
        UUID, CONF.instance_name_template % 7)
    assert kept.about.why == 'deleted'
    assert (kept.about.project, kept.about.display_name) == (
        'project', 'web')
    assert kept.host == 'here'
    assert {*os.listdir(kept.entry.path)} == {'console.log', 'deleted.json'}


@pytest.mark.parametrize('state', [
    task_states.SPAWNING, task_states.REBUILD_SPAWNING,
    task_states.RESIZE_FINISH])
def test_a_failed_boot(delete: Delete, state: str) -> None:
    """While nova handles why it failed."""
    (kept,) = delete(ValueError('no\nport'), task_state=state,
                     vm_state=vm_states.BUILDING)
    assert kept.about.why == 'boot failed: no port'


@pytest.mark.parametrize(('error', 'fields'), [
    # A host that was lost and is back: it is just evacuated, or was, or was
    # soft-deleted elsewhere since.
    (None, {'task_state': task_states.REBUILD_SPAWNING}),
    (None, {'task_state': task_states.REBUILDING}),
    (None, {'task_state': None, 'vm_state': vm_states.ACTIVE}),
    (None, {'task_state': None, 'vm_state': vm_states.SOFT_DELETED,
            'host': 'elsewhere'}),
    (None, {'task_state': task_states.SHELVING_OFFLOADING}),
    (None, {'task_state': task_states.MIGRATING}),
    (ValueError(), {'task_state': task_states.MIGRATING}),
    (None, {'task_state': task_states.RESIZE_REVERTING}),
    (None, {'task_state': None, 'vm_state': vm_states.RESIZED}),
])
def test_the_server_lives_on(delete: Delete, error: ValueError | None,
                             fields: dict[str, Any]) -> None:
    assert delete(error, **fields) == []


@pytest.mark.parametrize('seconds', [0, 3600])
def test_what_lies_beside(delete: Delete, directory: pathlib.Path, conf: Any,
                          seconds: int) -> None:
    """It goes along, or is removed."""
    conf.config(group='virtlogd', keep_deleted=seconds)
    aside = directory.with_name(f'{UUID}_console')
    begun = directory.with_name(f'{UUID}_deleted')
    left = outbox.make(str(directory), outbox.begin_departure(
        UUID, '192.0.2.7', 'other', str(directory), {}))
    for path, name in ((aside, 'console.log.0'), (begun, 'console.log.2'),
                       (pathlib.Path(left), 'console.log.3')):
        path.mkdir(exist_ok=True)
        (path / name).write_bytes(b'before')
    kept = delete(task_state=task_states.DELETING)
    assert [p.name for p in directory.parent.glob(f'{UUID}*')] == []
    if seconds:
        assert {*os.listdir(kept[0].entry.path)} == {
            'console.log', 'console.log.0', 'console.log.2',
            'console.log.3', 'deleted.json'}
    else:
        assert kept == []


def test_shelved(delete: Delete, directory: pathlib.Path) -> None:
    """No host keeps its log, as nova's own driver."""
    directory.with_name(f'{UUID}_console').mkdir()
    assert delete(task_state=task_states.SHELVING_OFFLOADING) == []
    assert [*directory.parent.glob(f'{UUID}*')] == []


def test_a_disk_that_fails_holds_up_no_deletion(
        delete: Delete, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, 'Input/output error', '/somewhere')
    monkeypatch.setattr(deleted.files, 'make_directory', fail)
    assert delete(task_state=task_states.DELETING) == []
    assert 'is not kept as [virtlogd] keep_deleted says' in caplog.text
    assert 'Input/output error' in caplog.text


class TestLeft:
    """What the guest wrote before it left waits here; it is deleted there."""

    @pytest.fixture
    def made(self, make_driver: Any, conf: Any, instance: objects.Instance,
             directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        conf.config(group='virtlogd', keep_deleted=3600)
        (directory / 'console.log').write_bytes(b'written')
        path = outbox.make(str(directory), outbox.begin_departure(
            UUID, '192.0.2.7', 'other', str(directory), {}))
        outbox.fill(path, str(directory))
        directory.rmdir()
        instance.deleted = True
        instance.host = 'other'
        monkeypatch.setattr(objects.Instance, 'get_by_uuid',
                            lambda *_: instance)
        return make_driver()

    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """The disk is full, until this is called."""
        make_directory = deleted.files.make_directory

        def fail(path: str) -> None:
            raise OSError(28, 'No space left on device', path)
        monkeypatch.setattr(deleted.files, 'make_directory', fail)
        return lambda: monkeypatch.setattr(
            deleted.files, 'make_directory', make_directory)

    def kept(self, directory: pathlib.Path) -> deleted.Kept:
        assert outbox.paths(str(directory.parent)) == []
        (kept,) = deleted.kept(str(directory.parent))
        assert kept.about.why == 'deleted, on another host'
        return kept

    def test_as_it_is_tried_again(self, made: Any,
                                  directory: pathlib.Path) -> None:
        (path,) = outbox.paths(str(directory.parent))
        assert made._histories.kept().attempt(
            path, made._histories._where) is None
        assert self.kept(directory).name == CONF.instance_name_template % 7

    def test_as_nova_compute_starts(self, made: Any,
                                    directory: pathlib.Path) -> None:
        made._histories.adopt({})
        self.kept(directory)

    @pytest.mark.parametrize('starts', [False, True])
    def test_it_cannot_be_kept_yet(
            self, made: Any, directory: pathlib.Path, starts: bool,
            full: Callable[[], None]) -> None:
        """It waits: nobody else removes it."""
        (path,) = outbox.paths(str(directory.parent))
        carried = []
        if starts:
            made._histories.send = carried.append
            made._histories.adopt({})
            assert carried == [path]
        else:
            assert made._histories.kept().attempt(
                path, made._histories._where)
            (waits,) = outbox.waiting(str(directory.parent))
            assert 'cannot be kept yet' in waits.reason
        assert made._histories.deletions.failed == 0
        full()
        assert made._histories.kept().attempt(
            path, made._histories._where) is None
        self.kept(directory)

    @pytest.mark.parametrize('deleted_here', [False, True])
    def test_nor_what_was_set_aside(
            self, made: Any, directory: pathlib.Path, deleted_here: bool,
            full: Callable[[], None], instance: objects.Instance) -> None:
        """It lies beside the directory that nova deletes."""
        (path,) = outbox.paths(str(directory.parent))
        aside = directory.with_name(f'{UUID}_console')
        os.rename(path, aside)
        for _ in range(2):
            if deleted_here:
                made.delete_instance_files(instance)
            else:
                made._histories.look_around()
            assert (aside / 'console.log').read_bytes() == b'written'
        full()
        made._histories.look_around()
        self.kept(directory)


class TestLookAround:

    @pytest.mark.parametrize(('interval', 'starting', 'stays'), [
        (0, False, False), (60, False, True), (60, True, False)])
    def test_what_is_over(self, make_driver: Any, conf: Any,
                          directory: pathlib.Path, interval: int,
                          starting: bool, stays: bool) -> None:
        """Where no health pass removes it."""
        conf.config(group='virtlogd', health_interval=interval,
                    keep_deleted=3600)
        made = make_driver()
        keeping = deletions.keeping_of(made._options)
        (directory / 'console.log').write_bytes(b'written')
        entry = deleted.keep(keeping, str(directory), deleted.About(), 7.0)
        assert entry is not None
        if starting:
            made._histories.adopt({})
        else:
            made._histories.look_around()
        assert os.path.exists(entry.path) == stays

    def test_what_was_begun(self, make_driver: Any, conf: Any,
                            directory: pathlib.Path) -> None:
        conf.config(group='virtlogd', keep_deleted=3600)
        begun = directory.with_name(f'{UUID}_deleted')
        directory.rename(begun)
        (begun / 'console.log').write_bytes(b'written')
        make_driver()._histories.look_around()
        (kept,) = deleted.kept(str(directory.parent))
        assert kept.uuid == UUID
        assert not begun.exists()


@pytest.mark.parametrize('limit', [1 << 20, 0])
def test_a_health_pass(make_driver: Any, conf: Any, directory: pathlib.Path,
                       monkeypatch: pytest.MonkeyPatch,
                       caplog: pytest.LogCaptureFixture, limit: int) -> None:
    """What has been there for too long goes, and what is too much."""
    conf.config(group='virtlogd', keep_deleted=3600,
                keep_deleted_bytes=limit)
    monkeypatch.setattr(periodic.HealthTask, 'start', lambda _: None)
    made = make_driver()
    keeping = deletions.keeping_of(made._options)
    found = []
    for when in (time.time() - 3601, time.time() - 3500):
        (directory / 'console.log').write_bytes(b'written')
        found.append(deleted.keep(
            keeping, str(directory), deleted.About(), when))
    task = health.start(made._options, made._connection,
                        made._histories.deletions)
    assert task is not None
    caplog.set_level('INFO')
    task.run_once()
    assert [entry is not None and os.path.exists(entry.path)
            for entry in found] == [False, limit > 0]
    assert ('before its time, for [virtlogd] keep_deleted_bytes = 0'
            in caplog.text) == (limit == 0)
