# SPDX-License-Identifier: Apache-2.0
"""The survey looks at no more than it has to; as a whole: cmd/test_status."""

import contextlib
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from virtlogd_driver import exception
from virtlogd_driver.console_log import privileged, reader
from virtlogd_driver.node import survey
from virtlogd_driver.node.checks import FileSystem, KeptLogs
from virtlogd_driver.virtlogd import disk, health
from virtlogd_driver.virtlogd import privileged as daemon_privileged
from virtlogd_driver.virtlogd.health import LogState
from virtlogd_driver.virtlogd.port import Port

Mounts = Callable[..., None]


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Mounts:
    """Have these file systems mounted, type by mount point."""
    def mount(**by_name: str) -> None:
        monkeypatch.setattr(disk, 'mounts', lambda: {
            '/': 'ext4', **{f'/{name}': kind
                            for name, kind in by_name.items()}})
    return mount


class Stalled:
    """File systems that do not answer, below some path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        self.touched: list[str] = []
        self.let_go = threading.Event()
        for module, name in ((os.path, 'realpath'), (os.path, 'isdir'),
                             (os, 'lstat'), (health, 'free_space')):
            monkeypatch.setattr(
                module, name, self._stalling(getattr(module, name), path))

    def _stalling(self, function: Callable[..., Any],
                  below: str) -> Callable[..., Any]:
        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            if str(path).startswith(below):
                self.touched.append(path)
                self.let_go.wait(10)
            return function(path, *args, **kwargs)
        return call


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch
            ) -> Iterator[Callable[[str], Stalled]]:
    made: list[Stalled] = []
    monkeypatch.setattr(survey, '_DISK_TIMEOUT', 0.1)

    def stall(path: str) -> Stalled:
        made.append(Stalled(monkeypatch, path))
        return made[-1]
    yield stall
    for one in made:
        one.let_go.set()


@pytest.mark.parametrize('instances_path', ['/nfs/instances', '//nfs/../nfs'])
def test_a_remote_file_system_is_not_touched(
        mounts: Mounts, stalled: Callable[[str], Stalled],
        instances_path: str) -> None:
    mounts(nfs='nfs4')
    nfs = stalled('/nfs')
    assert list(survey._file_systems(
        ['/nfs/a/console.log', '/nfs/b/console.log'], instances_path)) == [
            FileSystem(instances_path, 'nfs4', None, 2, 0)]
    assert nfs.touched == []


def test_the_longest_mount_point_counts(mounts: Mounts) -> None:
    mounts(**{'a': 'xfs', 'a/b': 'nfs4', 'a/bc': 'ext4'})
    found = survey._file_systems(['/a/b/x/y.log', '/a/bcd/y.log'], '/none')
    assert [(one.path, one.type, one.logs) for one in found] == [
        ('/a/b/x', 'nfs4', 1)]


def test_a_link_into_a_stalled_one_is_said_in_time(
        mounts: Mounts, stalled: Callable[[str], Stalled]) -> None:
    mounts()
    stalled('/link/instances')
    assert list(survey._file_systems(
        ['/link/instances/a/console.log'], '/link/instances')) == [
            FileSystem('/link/instances', 'ext4', None, 1, 0)]


def test_a_link_to_a_remote_one(
        tmp_path: pathlib.Path, mounts: Mounts) -> None:
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    mounts(**{str(tmp_path / 'real')[1:]: 'fuse.glusterfs'})
    assert list(survey._file_systems([], str(tmp_path / 'link'))) == [
        FileSystem(str(tmp_path / 'real'), 'fuse.glusterfs', None, 0, 0)]


def test_a_stalled_disk_is_said_in_time(
        tmp_path: pathlib.Path, mounts: Mounts,
        monkeypatch: pytest.MonkeyPatch,
        stalled: Callable[[str], Stalled]) -> None:
    mounts()
    stalled('/')
    monkeypatch.setattr(survey, '_resolve', list)
    assert list(survey._file_systems([], str(tmp_path))) == [
        FileSystem(str(tmp_path), 'ext4', None, 0, 0)]


def test_a_good_disk(tmp_path: pathlib.Path, mounts: Mounts,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    # What others write meanwhile is none of this test's.
    monkeypatch.setattr(
        health, 'free_space',
        lambda path: 4711 if path == f'{tmp_path}/' else None)
    mounts(**{str(tmp_path)[1:]: 'xfs'})
    log = tmp_path / 'a' / 'console.log'
    log.parent.mkdir()
    for name in ('', '.0', '.1', '.offset'):
        with open(f'{log}{name}', 'wb', buffering=0) as file:
            file.write(b'x' * 10000)
            # Some file systems give it its blocks as late as this.
            os.fsync(file)
    (disk,) = survey._file_systems([str(log)], str(tmp_path))
    assert (disk.path, disk.type, disk.logs) == (str(tmp_path), 'xfs', 1)
    assert disk.used == 3 * log.stat().st_blocks * 512
    assert disk.free == 4711


def test_instances_path_that_is_not_there(
        tmp_path: pathlib.Path, mounts: Mounts) -> None:
    mounts()
    assert list(survey._file_systems([], str(tmp_path / 'none'))) == []


OPTIONS = survey.Options(
    '', '/nfs', False, '', '', '', '', '/none', 60, 1, None)


@pytest.mark.parametrize('error', [
    exception.LogRefused('no helper'), FileNotFoundError('sudo')])
def test_a_helper_that_does_not_answer_is_not_said_twice(
        monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def can_pass() -> bool:
        raise error
    monkeypatch.setattr(reader, 'can_pass', can_pass)
    assert survey._files_passed() is None


def _refused(reason: str) -> health.Report:
    return health.Report(health.DaemonState.REFUSED, reason)


def test_a_virtlogd_that_is_not_understood_is_no_fault_of_the_helper(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(*args: object) -> tuple[str, str, list[str]]:
        return daemon_privileged.REFUSED, 'another protocol', []
    monkeypatch.setattr(daemon_privileged, 'probe', probe)
    monkeypatch.setattr(privileged.context, 'client_mode', False)
    assert survey._helper_error(OPTIONS, _refused('another protocol')) == ''


def test_a_helper_that_does_not_start(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(*args: object) -> None:
        raise FileNotFoundError('sudo')
    monkeypatch.setattr(daemon_privileged, 'probe', probe)
    assert survey._helper_error(OPTIONS, _refused('the helper')) == (
        'virtlogd cannot be asked: sudo')


def test_the_helper_is_not_asked_for_what_is_on_a_disk(
        monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(privileged, 'open_below',
                        lambda root, below: opened.append(root))
    monkeypatch.setattr(privileged, 'roots', lambda: ('/nfs',))
    monkeypatch.setattr(privileged.context, 'client_mode', False)
    assert survey._helper_error(
        OPTIONS, health.Report(health.DaemonState.UP)) == ''
    assert opened == []


def test_pseudo_terminals_that_are_closed(tmp_path: pathlib.Path) -> None:
    """Where there are none at all, they are out of sight."""
    (tmp_path / 'pts').mkdir()
    (tmp_path / 'pts' / '0').touch()
    gone, *others = [
        health.Log(Port('uuid', 'name', number, '/log', pty=str(path)), state)
        for number, (path, state) in enumerate((
            (tmp_path / 'pts' / '1', LogState.ALIVE),
            (tmp_path / 'pts' / '0', LogState.ALIVE),
            (tmp_path / 'none' / '0', LogState.ALIVE),
            (tmp_path / 'pts' / '2', LogState.UNKNOWN)))]
    report = health.Report(health.DaemonState.UP, logs=(gone, *others))
    assert [one.port for one in survey._with_closed_ptys(report).unopened
            ] == [gone.port]


def test_a_metrics_file_that_does_not_answer(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, '_DISK_TIMEOUT', 0.1)
    path = tmp_path / 'x.prom'
    os.mkfifo(path)
    said = []
    looks = threading.Thread(target=lambda: said.extend([
        survey._last_pass_age(str(path)),
        survey._kept(dataclasses.replace(
            OPTIONS, metrics_file=str(path),
            kept=lambda: KeptLogs(1, 2, 3, None, 0, 0, '')))]), daemon=True)
    looks.start()
    looks.join(60)
    answered = list(said)
    # Let go whoever reads, one after the other.
    for _ in range(2):
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        looks.join(1)
    age, kept = answered
    assert isinstance(age, str)
    assert age.startswith(f'{path} does not answer: ')
    assert kept == KeptLogs(1, 2, 3, None, 0, 0, '')


def test_nothing_is_imported_from_the_directory_that_root_is_in(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may have put it there, as into /tmp."""
    (tmp_path / 'nova.py').write_text('raise SystemExit("not nova")\n')
    monkeypatch.chdir(tmp_path)
    assert survey._load_error() == ''
