# SPDX-License-Identifier: Apache-2.0
import dataclasses
import logging
import pathlib
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from oslo_privsep import daemon as privsep

from tests.unit.virtlogd.fake_virtlogd import FakeVirtlogd, port
from tests.unit.virtlogd.patience import lengthen
from virtlogd_driver import exception
from virtlogd_driver.virtlogd import health, periodic, privileged, viewer
from virtlogd_driver.virtlogd.health import DaemonState, LogState, Report
from virtlogd_driver.virtlogd.port import Port


@pytest.fixture
def virtlogd(monkeypatch: pytest.MonkeyPatch) -> FakeVirtlogd:
    fake = FakeVirtlogd('/a/0', '/a/1')
    monkeypatch.setattr(privileged, 'probe', fake)
    monkeypatch.setattr(viewer, 'viewers', lambda listeners: [])
    monkeypatch.setattr(viewer, 'listening', set)
    real = health.examine

    def examine(*args: object, **kwargs: object) -> Report:
        return real(*args, confirm_after=0, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(health, 'examine', examine)
    return fake


class Host:
    """A task with its surroundings."""

    def __init__(self, virtlogd: FakeVirtlogd,
                 caplog: pytest.LogCaptureFixture) -> None:
        self.virtlogd = virtlogd
        self.caplog = caplog
        self.ports: Sequence[Port] = [port(0), port(1)]
        self.published: list[tuple[Report, periodic.Totals]] = []
        self.attempts: list[Port] = []
        self.failing: Exception | None = None
        self.note = ''
        caplog.set_level(logging.INFO)

    def list_ports(self) -> Sequence[Port]:
        return self.ports

    def reattach(self, one: Port) -> str:
        self.attempts.append(one)
        if self.failing:
            raise self.failing
        assert one.log
        self.virtlogd.open.add(one.log)
        return self.note

    def publish(self, report: Report, totals: periodic.Totals) -> None:
        self.published.append((report, totals))

    def task(self, heal: bool = False, interval: float = 60,
             viewer_timeout: float = 0,
             patience: float = 30) -> periodic.HealthTask:
        return periodic.HealthTask(
            periodic.Settings('/sock', interval, 1, viewer_timeout,
                              patience=patience),
            self.list_ports, self.reattach if heal else None, self.publish)

    def said(self) -> list[str]:
        """Levels and messages since the last time."""
        found = [f'{record.levelname} {record.getMessage()}'
                 for record in self.caplog.records]
        self.caplog.clear()
        return found


@pytest.fixture
def host(virtlogd: FakeVirtlogd,
         caplog: pytest.LogCaptureFixture) -> Host:
    return Host(virtlogd, caplog)


def test_one_error_when_a_log_dies_and_one_info_when_it_is_back(
        host: Host) -> None:
    task = host.task()
    task.run_once()
    assert host.said() == []
    host.virtlogd.open.remove('/a/1')
    task.run_once()
    (said,) = host.said()
    assert said.startswith('ERROR Console log /a/1 of guest a')
    assert 'managed save' in said
    task.run_once()
    assert host.said() == []
    host.virtlogd.open.add('/a/1')
    task.run_once()
    (said,) = host.said()
    assert said.startswith('INFO Console log /a/1 of guest a')
    assert host.published[-1][1] == periodic.Totals(died=1)


def test_daemon_is_said_with_its_reason(host: Host) -> None:
    task = host.task()
    host.virtlogd.daemon = privileged.HUNG
    task.run_once()
    task.run_once()
    assert host.said() == ['ERROR virtlogd is hung: because']
    host.virtlogd.daemon = privileged.UP
    task.run_once()
    assert host.said() == ['INFO virtlogd answers.']


def test_unrotated_logs_are_one_warning(host: Host) -> None:
    host.virtlogd.open = set()
    host.virtlogd.by_qemu = {f'/a/{number}' for number in range(5)}
    host.ports = [port(number) for number in range(5)]
    task = host.task()
    task.run_once()
    task.run_once()
    (said,) = host.said()
    assert said.startswith('WARNING QEMU writes 5 console logs')


def test_dead_log_is_healed_in_the_pass_that_finds_it(host: Host) -> None:
    task = host.task(heal=True)
    host.virtlogd.open.remove('/a/0')
    report = task.run_once()
    assert report.count(LogState.ALIVE) == 2
    assert [said.split()[0] for said in host.said()] == ['ERROR', 'INFO']
    assert host.published[-1][1] == periodic.Totals(died=1, reattached=1)


def test_note_of_healing_is_passed_on(host: Host) -> None:
    host.note = 'its console moved'
    host.virtlogd.open.remove('/a/0')
    host.task(heal=True).run_once()
    assert any('its console moved' in said for said in host.said())


def test_nothing_is_healed_unless_asked_for(host: Host) -> None:
    host.virtlogd.open.remove('/a/0')
    host.task().run_once()
    assert host.attempts == []


@pytest.mark.parametrize('state', [privileged.DOWN, privileged.HUNG])
def test_nothing_is_healed_without_virtlogd(host: Host, state: str) -> None:
    host.virtlogd.daemon = state
    host.task(heal=True).run_once()
    assert host.attempts == []


def test_failed_healing_is_said_once_and_tried_ever_more_rarely(
        host: Host) -> None:
    task = host.task(heal=True)
    host.failing = exception.ReattachFailed('QEMU refuses')
    host.virtlogd.open.remove('/a/0')
    passes = []
    for number in range(20):
        before = len(host.attempts)
        task.run_once()
        if len(host.attempts) > before:
            passes.append(number)
    assert passes == [0, 2, 5, 10, 19]
    assert [said for said in host.said() if 'QEMU refuses' in said] == [
        'ERROR Console log /a/0 of guest a (instance-a), serial port 0 could '
        'not be brought back: QEMU refuses']
    assert host.published[-1][1].reattach_failed == 4


@pytest.mark.parametrize('error', [
    OSError('the helper is gone'), privsep.FailedToDropPrivileges('no sudo'),
    ValueError('a bug')])
def test_error_of_one_guest_leaves_healing_to_the_others(
        host: Host, error: Exception) -> None:
    task = host.task(heal=True)
    host.failing = error
    host.virtlogd.open.clear()
    task.run_once()
    assert host.attempts == [port(0), port(1)]
    said = host.said()
    assert len([line for line in said if 'could not be brought' in line]) == 2
    task.run_once()
    assert host.published[-1][1].reattach_failed == 2


@pytest.mark.parametrize('error', [
    exception.VirtlogdDown('it is down'), exception.VirtlogdHung('it hangs')])
def test_virtlogd_that_goes_away_ends_healing_for_this_pass(
        host: Host, error: Exception) -> None:
    task = host.task(heal=True)
    host.virtlogd.open.clear()
    task.run_once()
    host.attempts.clear()
    host.said()
    host.failing = error
    host.virtlogd.open.clear()
    for _ in range(4):
        task.run_once()
    # Again in each pass, as it says nothing of the log itself.
    assert host.attempts == [port(0)] * 3
    assert [line for line in host.said() if str(error) in line] == [
        f'ERROR Console logs are not brought back for now: {error}']
    host.failing = None
    assert task.run_once().count(LogState.ALIVE) == 2


def test_log_that_dies_again_and_again_is_healed_ever_more_rarely(
        host: Host) -> None:
    task = host.task(heal=True)
    for _ in range(20):
        host.virtlogd.open.discard('/a/0')
        task.run_once()
    assert len(host.attempts) < 8


def test_console_that_is_not_looked_at_just_now_is_left_alone(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(listeners: object) -> list[viewer.Viewer]:
        raise OSError('no sock_diag')

    monkeypatch.setattr(health, 'CLOSED_AFTER', 0)
    monkeypatch.setattr(viewer, 'listening',
                        lambda listeners: {port(1).listener})
    task = host.task(heal=True)
    task.run_once()
    assert host.attempts == [port(0)]
    monkeypatch.setattr(viewer, 'viewers', refuse)
    for _ in range(3):
        task.run_once()
    assert host.attempts == [port(0)]
    assert task.report is not None
    assert task.report.closed == (port(0),)


def test_log_that_stayed_alive_is_healed_at_once_again(host: Host) -> None:
    task = host.task(heal=True)
    host.virtlogd.open.remove('/a/0')
    task.run_once()
    task.run_once()
    host.virtlogd.open.remove('/a/0')
    task.run_once()
    assert len(host.attempts) == 2


def test_log_is_not_healed_into_a_full_disk(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, 'free_space', lambda log, disks: 4096)
    host.virtlogd.open.remove('/a/0')
    host.task(heal=True).run_once()
    assert host.attempts == []
    assert 'file system is full' in host.said()[0]


def stuck_at(one: Port, silent: float) -> viewer.Viewer:
    assert one.listener
    return viewer.Viewer(one.listener, ('192.0.2.1', 999), silent, True,
                         b'id')


@pytest.mark.parametrize(('limit', 'silent', 'ended'), [
    (0, 1000, False), (60, 59, False), (60, 60, True)])
def test_stuck_viewer_is_said_and_disconnected_in_time(
        host: Host, monkeypatch: pytest.MonkeyPatch, limit: float,
        silent: float, ended: bool) -> None:
    found = [stuck_at(port(1), silent)]
    calls: list[tuple[object, ...]] = []

    def disconnect(*args: object) -> bool:
        calls.append(args)
        found.clear()
        return True

    monkeypatch.setattr(viewer, 'viewers', lambda listeners: list(found))
    monkeypatch.setattr(privileged, 'disconnect', disconnect)
    host.task(viewer_timeout=limit).run_once()
    said = host.said()
    assert said[0].startswith('WARNING Viewer 192.0.2.1:999 of guest a')
    assert bool(calls) is ended
    if ended:
        assert calls == [(b'id', limit)]
        assert 'was disconnected' in said[1]
        assert said[2].startswith('INFO No viewer stops guest a')
        assert host.published[-1][1].viewers_disconnected == 1


def test_a_relay_that_is_down_is_said_for_all_guests_at_once(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = [('192.0.2.7', 10000 + number) for number in range(2)]
    host.ports = [dataclasses.replace(port(number), relay=outer[number])
                  for number in range(2)]
    up: set[object] = {one.listener for one in host.ports}
    monkeypatch.setattr(viewer, 'listening', lambda asked: set(asked) & up)
    monkeypatch.setattr(health, 'CLOSED_AFTER', 0)
    task = host.task()
    task.run_once()
    task.run_once()
    (said,) = host.said()
    assert said.startswith('ERROR Nobody can look at 2 interactive consoles '
                           '(instance-a, instance-a)')
    assert 'Start virtlogd-console-relay.service' in said
    up.update(outer)
    task.run_once()
    (said,) = host.said()
    assert said.startswith('INFO The relay listens for the viewers of 2')


def test_a_relay_that_hangs_is_no_viewer(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.ports = [dataclasses.replace(port(1), relay=('192.0.2.7', 10001))]
    monkeypatch.setattr(viewer, 'listening', set)
    monkeypatch.setattr(viewer, 'viewers',
                        lambda listeners: [stuck_at(port(1), 30)])
    host.task().run_once()
    (said,) = host.said()
    assert said.startswith('ERROR The relay has not read')
    assert 'Restart virtlogd-console-relay.service' in said


def test_disconnecting_that_fails_is_said_once(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def disconnect(*args: object) -> bool:
        raise exception.VirtlogdDriverError('needs CAP_NET_ADMIN')

    monkeypatch.setattr(viewer, 'viewers',
                        lambda listeners: [stuck_at(port(0), 100)])
    monkeypatch.setattr(privileged, 'disconnect', disconnect)
    task = host.task(viewer_timeout=60)
    task.run_once()
    task.run_once()
    assert len([said for said in host.said() if 'CAP_NET_ADMIN' in said]) == 1


def test_viewers_that_are_not_watched_are_said(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(listeners: object) -> list[viewer.Viewer]:
        raise PermissionError(1, 'Operation not permitted')

    task = host.task()
    with monkeypatch.context() as patch:
        patch.setattr(viewer, 'viewers', fails)
        assert task.run_once().count(LogState.ALIVE) == 2
        task.run_once()
    task.run_once()
    assert [line.split(':')[0] for line in host.said()] == [
        'ERROR Viewers of consoles are not watched',
        'INFO Viewers of consoles are watched again.']


def test_metrics_that_cannot_be_written_are_said_once(
        host: Host, tmp_path: pathlib.Path) -> None:
    def publish(report: Report, totals: periodic.Totals) -> None:
        raise PermissionError(13, 'Permission denied', '/metrics.prom')

    task = periodic.HealthTask(periodic.Settings('/sock', 60, 1),
                               host.list_ports, None, publish)
    task.run_once()
    task.run_once()
    (said,) = host.said()
    assert 'metrics_file' in said
    assert '/metrics.prom' in said


# The thread

@pytest.fixture
def started(host: Host) -> Iterator[Callable[..., periodic.HealthTask]]:
    tasks: list[periodic.HealthTask] = []

    def start(interval: float, patience: float = 60) -> periodic.HealthTask:
        task = host.task(interval=interval, patience=patience)
        # That is for libvirt: the helper may be slow on a busy host.
        lengthen(task._calls)
        tasks.append(task)
        task.start()
        return task

    yield start
    for task in tasks:
        task.stop()


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_passes_are_made_at_once_and_every_interval(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    task = started(0.05)
    wait_for(lambda: len(host.published) >= 3)
    task.stop()
    # A pass that was under way may publish yet.
    assert task._thread is not None
    task._thread.join(60)
    for thread in threading.enumerate():
        if thread.name == 'virtlogd-health-pass':
            thread.join(60)
    made = len(host.published)
    time.sleep(0.2)
    assert len(host.published) == made


def test_pass_that_fails_is_not_the_last(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    host.ports = [None]  # type: ignore[list-item]
    task = started(0.05)
    wait_for(lambda: any('Traceback' in (record.exc_text or '')
                         or record.exc_info
                         for record in host.caplog.records))
    host.ports = [port(0)]
    wait_for(lambda: host.published)
    assert task.report is not None


def test_a_pass_without_a_thread_is_not_the_last(
        host: Host, started: Callable[..., periodic.HealthTask],
        monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [2]

    def start_some(thread: threading.Thread) -> None:
        if thread.name == 'virtlogd-health-pass' and left[0]:
            left[0] -= 1
            raise RuntimeError('can\'t start new thread')
        start(thread)

    monkeypatch.setattr(threading.Thread, 'start', start_some)
    task = started(0.05)
    wait_for(lambda: host.published)
    task.stop()
    assert len(_logged(host, 'is left out: can\'t start new thread')) == 2


def test_libvirt_that_hangs_is_said_once_and_hangs_nothing_else(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    release = threading.Event()
    ports = host.ports
    passes = []

    def hang() -> Sequence[Port]:
        passes.append(None)
        release.wait(30)
        return ports

    host.list_ports = hang  # type: ignore[method-assign]
    start = time.monotonic()
    task = started(0.1, patience=0.3)
    # It hangs for 30.
    assert time.monotonic() - start < 20
    wait_for(lambda: task.report and task.report.libvirt)
    assert time.monotonic() - start > 0.3
    wait_for(lambda: passes and len(host.published) >= 3)
    assert len(passes) == 1
    host.virtlogd.daemon = privileged.HUNG
    wait_for(lambda: task.report
             and task.report.daemon is DaemonState.HUNG)
    host.virtlogd.daemon = privileged.UP
    release.set()
    wait_for(lambda: task.report and not task.report.libvirt)
    said = _logged(host, 'Console logs are')
    assert [line.split(':')[0] for line in said] == [
        'ERROR Console logs are not watched',
        'INFO Console logs are watched again']


def test_virtlogd_that_hangs_is_found_while_libvirt_is_waited_for(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    release = threading.Event()
    ports = host.ports

    def hang() -> Sequence[Port]:
        host.virtlogd.daemon = privileged.HUNG
        release.wait(30)
        return ports

    host.list_ports = hang  # type: ignore[method-assign]
    task = started(0.1)
    wait_for(lambda: task.report)
    assert task.report is not None
    assert task.report.daemon is DaemonState.HUNG
    assert not task.report.libvirt
    release.set()


def test_slow_libvirt_is_not_said(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    ports = host.ports

    def slow() -> Sequence[Port]:
        # One call is the pass's own, the others look beside it.
        wait_for(lambda: host.virtlogd.calls > 2)
        return ports

    host.list_ports = slow  # type: ignore[method-assign]
    task = started(0.05)
    wait_for(lambda: task.report)
    task.stop()
    assert host.said() == []


def test_look_beside_that_fails_does_not_end_the_passes(
        host: Host, started: Callable[..., periodic.HealthTask],
        monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = threading.Event(), threading.Event()
    ports = host.ports

    def hang() -> Sequence[Port]:
        begun.set()
        release.wait(30)
        return ports

    def fails(*args: object) -> None:
        raise RuntimeError('can\'t start new thread')

    host.list_ports = hang  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        task = started(0.1)
        assert begun.wait(10)
        patch.setattr(health, 'ask', fails)
        wait_for(lambda: host.said())
    release.set()
    wait_for(lambda: task.report
             and task.report.count(LogState.ALIVE) == 2)


def test_look_beside_is_no_pass(
        host: Host, started: Callable[..., periodic.HealthTask]) -> None:
    answering, hanging = threading.Event(), threading.Event()
    answering.set()
    ports = host.ports

    def list_ports() -> Sequence[Port]:
        while not answering.wait(0.01):
            hanging.set()
        return ports

    host.list_ports = list_ports  # type: ignore[method-assign]
    task = started(0.1, patience=0.3)
    wait_for(lambda: task.report)
    answering.clear()
    assert hanging.wait(10)
    assert task.report is not None
    before, moment = task.report.time, task.report.moment
    wait_for(lambda: task.report and task.report.libvirt)
    assert task.report.time == before
    assert task.report.moment == moment
    answering.set()
    wait_for(lambda: task.report and task.report.time > before)


def test_look_beside_that_is_late_is_not_heeded(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass has ended while it was asking."""
    task = host.task()

    real = health.ask

    def late(*args: Any) -> tuple[str, str, Sequence[str]]:
        monkeypatch.setattr(health, 'ask', real)
        task.run_once()
        return privileged.HUNG, 'because', []

    monkeypatch.setattr(health, 'ask', late)
    task._look_beside()
    assert task.report is not None
    assert task.report.daemon is DaemonState.UP
    assert host.said() == []


def test_healing_that_takes_long_is_no_libvirt_that_hangs(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.ports = [port(number) for number in range(6)]
    host.virtlogd.open.clear()
    real = host.reattach
    now = 0.0

    def slow(one: Port) -> str:
        nonlocal now
        now += 50
        task._look_beside()
        return real(one)

    host.reattach = slow  # type: ignore[method-assign]
    monkeypatch.setattr(periodic, 'time',
                        types.SimpleNamespace(monotonic=lambda: now))
    task = host.task(heal=True, patience=60)
    task.run_once()
    assert len(host.attempts) == 6
    assert not any('watched' in line for line in host.said())


def test_stop_waits_for_the_attempt_under_way_and_begins_no_other(
        host: Host) -> None:
    host.virtlogd.open.clear()
    real = host.reattach
    begun = threading.Event()

    def slow(one: Port) -> str:
        begun.set()
        task._stop.wait(60)
        # Who does not wait is back by then.
        time.sleep(0.2)
        return real(one)

    host.reattach = slow  # type: ignore[method-assign]
    task = host.task(heal=True)
    task.start()
    assert begun.wait(10)
    task.stop()
    assert host.attempts == [port(0)]
    time.sleep(0.2)
    assert host.attempts == [port(0)]


def test_stop_does_not_wait_for_ever_for_an_attempt(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, '_STOP_TIMEOUT', 0.2)
    host.virtlogd.open.clear()
    begun, release = threading.Event(), threading.Event()

    def hang(one: Port) -> str:
        begun.set()
        release.wait(30)
        return ''

    host.reattach = hang  # type: ignore[method-assign]
    task = host.task(heal=True)
    task.start()
    assert begun.wait(10)
    start = time.monotonic()
    task.stop()
    assert time.monotonic() - start < 20   # it hangs for 30
    release.set()
    assert any('virtlogd-console reattach' in line for line in host.said())


def test_stop_does_not_wait_for_a_pass_that_hangs(host: Host) -> None:
    release = threading.Event()

    def hang() -> Sequence[Port]:
        release.wait(30)
        return []

    host.list_ports = hang  # type: ignore[method-assign]
    task = host.task()
    task.start()
    start = time.monotonic()
    task.stop()
    assert time.monotonic() - start < 20   # it hangs for 30
    release.set()
    time.sleep(0.1)
    assert host.published == [], 'unheeded'


def _logged(host: Host, text: str) -> list[str]:
    return [said for said in host.said() if text in said]


def test_a_helper_that_hangs_is_said_once_and_ends_no_watch(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    answer = privileged.probe

    def hang(*args: Any) -> Any:
        go.wait(60)
        return answer(*args)

    monkeypatch.setattr(privileged, 'probe', hang)
    task = host.task(patience=0.3)
    task.run_once()
    task.run_once()
    (said,) = _logged(host, 'privileged helper has not answered')
    assert 'kill -CONT' in said
    assert task.report is not None
    assert task.report.daemon is DaemonState.REFUSED
    go.set()
    # What hung has to return before it is asked again.
    lengthen(task._calls)
    assert task.run_once().daemon is DaemonState.UP
    assert _logged(host, 'virtlogd answers')


def test_an_attempt_that_hangs_ends_no_watch(host: Host) -> None:
    """A guest whose monitor hangs; another's log is brought back."""
    go = threading.Event()
    reattach = host.reattach

    def hang(one: Port) -> str:
        if one.number == 0:
            go.wait(60)
        return reattach(one)

    host.reattach = hang  # type: ignore[method-assign]
    host.ports = [port(0), port(1, guest='b')]
    host.virtlogd.open = set()
    task = host.task(heal=True, patience=0.3)
    lengthen(task._calls, 'a')
    task.run_once()
    assert [log.state for log in task.report.logs] == [
        LogState.DEAD, LogState.ALIVE]
    assert _logged(host, 'has not ended')
    go.set()
    until(lambda: '/a/0' in host.virtlogd.open)
    task.stop()


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_log_that_is_elsewhere_is_said_and_brought_back(
        host: Host, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / 'console.log'
    log.touch()
    host.ports = [port(0, str(log))]
    host.virtlogd.open = {str(log)}
    inode = log.stat().st_ino
    monkeypatch.setattr(privileged, 'positions',
                        lambda path, logs, timeout: [(inode, 0)] * len(logs))
    task = host.task(heal=True)
    task.run_once()
    assert host.said() == []
    # Nothing uses its inode again.
    log.rename(tmp_path / 'console.log-20261125')

    def reattach(one: Port) -> str:
        nonlocal inode
        log.touch()
        inode = log.stat().st_ino
        return ''

    task._reattach = reattach
    task.run_once()
    lost, back = host.said()
    assert 'not at its path any more' in lost
    assert 'is back' in back


def test_what_a_pass_removes(host: Host, virtlogd: FakeVirtlogd) -> None:
    """It comes first; where it fails that is said once, and watched on."""
    failing: list[Exception] = []
    removed: list[int] = []

    def clean() -> None:
        removed.append(len(host.published))
        for error in failing:
            raise error
    task = periodic.HealthTask(
        periodic.Settings('/sock', 60, 1), host.list_ports, None,
        host.publish, clean=clean)
    task.run_once()
    assert (removed, len(host.published)) == ([0], 1)
    host.said()
    failing.append(exception.DiskStalled('it stalls'))
    for _ in range(2):
        task.run_once()
    assert host.said() == [
        'ERROR Logs of deleted guests stay longer than [virtlogd] '
        'keep_deleted says: it stalls']
    assert len(host.published) == 3
    failing[:] = []
    task.run_once()
    failing.append(OSError(5, 'Input/output error', '/x'))
    task.run_once()
    assert len(host.said()) == 1
