# SPDX-License-Identifier: Apache-2.0
import dataclasses
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from oslo_privsep import daemon as privsep

from tests.unit.virtlogd.fake_virtlogd import FakeVirtlogd, port
from virtlogd_driver import exception
from virtlogd_driver.virtlogd import health, privileged, unlinked
from virtlogd_driver.virtlogd.disk import Disks
from virtlogd_driver.virtlogd.health import DaemonState, LogState
from virtlogd_driver.virtlogd.port import Port
from virtlogd_driver.virtlogd.viewer import STUCK_AFTER, Viewer


def examine(virtlogd: FakeVirtlogd, *ports: Port,
            viewers: Sequence[Viewer] = ()) -> health.Report:
    return health.examine(
        lambda: ports, '/sock', 1, virtlogd, lambda listeners: list(viewers),
        confirm_after=0)


def states(report: health.Report) -> list[LogState]:
    return [log.state for log in report.logs]


def test_every_state_of_a_log_in_one_pass() -> None:
    virtlogd = FakeVirtlogd('/a/0')
    virtlogd.by_qemu = {'/a/2'}
    report = examine(virtlogd, port(0), port(1), port(2), port(3, None))
    assert report.daemon is DaemonState.UP
    assert states(report) == [LogState.ALIVE, LogState.DEAD,
                              LogState.UNROTATED, LogState.NOT_LOGGING]
    assert report.count(LogState.DEAD) == 1
    assert report.time == pytest.approx(time.time(), abs=10)


def test_a_report_tells_what_its_pass_took(
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])

    def list_ports() -> Sequence[Port]:
        now[0] += 2.5
        return [port(0)]

    report = health.examine(list_ports, '/sock', 1, FakeVirtlogd('/a/0'))
    assert report.duration == 2.5
    # One that no pass has made took none.
    assert health.Report(DaemonState.UP).duration == 0


def test_host_without_guests() -> None:
    report = examine(FakeVirtlogd())
    assert report.daemon is DaemonState.UP
    assert report.logs == ()


def test_daemon_that_is_down_leaves_every_log_dead() -> None:
    virtlogd = FakeVirtlogd('/a/0')
    virtlogd.daemon = privileged.DOWN
    virtlogd.by_qemu = {'/a/1'}
    report = examine(virtlogd, port(0), port(1), port(2, None))
    assert report.daemon is DaemonState.DOWN
    assert report.reason == 'because'
    assert states(report) == [LogState.DEAD, LogState.UNROTATED,
                              LogState.NOT_LOGGING]


@pytest.mark.parametrize('state', [privileged.HUNG, privileged.REFUSED])
def test_libvirt_is_not_asked_while_virtlogd_does_not_answer(
        state: str) -> None:
    virtlogd = FakeVirtlogd()
    virtlogd.daemon = state

    def list_ports() -> Sequence[Port]:
        raise AssertionError('libvirt may hang with virtlogd')

    report = health.examine(list_ports, '/sock', 1, virtlogd)
    assert report.daemon == state
    assert report.logs == ()


def test_daemon_that_hangs_in_the_middle_of_a_pass() -> None:
    virtlogd = FakeVirtlogd('/a/0')

    def list_ports() -> Sequence[Port]:
        virtlogd.daemon = privileged.HUNG
        return [port(0), port(1, None)]

    report = health.examine(list_ports, '/sock', 1, virtlogd)
    assert report.daemon is DaemonState.HUNG
    assert states(report) == [LogState.UNKNOWN, LogState.NOT_LOGGING]


def test_guest_that_ends_during_a_pass_is_no_dead_log() -> None:
    virtlogd = FakeVirtlogd('/a/0')
    lists = iter([[port(0), port(0, guest='b')], [port(0)]])
    report = health.examine(lambda: next(lists), '/sock', 1, virtlogd,
                            confirm_after=0)
    assert [log.port for log in report.logs] == [port(0)]


def test_guest_that_starts_is_no_dead_log() -> None:
    def starting(socket_path: str, logs: list[tuple[str, str]],
                 timeout: float) -> tuple[str, str, Sequence[str]]:
        return privileged.UP, '', [privileged.STARTING] * len(logs)

    found = health.examine(lambda: [port(0)], '/sock', 1, starting)
    assert states(found) == [LogState.UNKNOWN]
    assert health.changes(None, found) == NOTHING


def test_guest_that_restarts_during_a_pass_is_no_dead_log() -> None:
    virtlogd = FakeVirtlogd()
    lists = iter([[port(0)], [port(0)]])

    def list_ports() -> Sequence[Port]:
        ports = next(lists)
        if virtlogd.calls > 1:
            virtlogd.open.add('/a/0')
        return ports

    report = health.examine(list_ports, '/sock', 1, virtlogd, confirm_after=0)
    assert states(report) == [LogState.ALIVE]


def viewer(number: int, silent: float, full: bool = True,
           identity: bytes = b'1') -> Viewer:
    return Viewer(('127.0.0.1', 10000 + number), ('192.0.2.1', 999), silent,
                  full, identity)


def test_stuck_viewer_is_found_at_its_port() -> None:
    virtlogd = FakeVirtlogd('/a/0', '/a/1', '/a/2')
    stuck = viewer(1, STUCK_AFTER)
    report = examine(
        virtlogd, port(0), port(1), port(2),
        viewers=[viewer(0, 1), stuck, viewer(2, 1000, full=False)])
    assert report.stuck == (health.Stuck(port(1), stuck),)
    assert states(report) == [LogState.ALIVE] * 3


def test_stuck_viewer_of_a_guest_that_listens_everywhere() -> None:
    everywhere = Port('a', 'a', 0, '/a/0', ('::', 10000))
    report = examine(FakeVirtlogd('/a/0'), everywhere,
                     viewers=[viewer(0, 60)])
    assert report.stuck[0].port == everywhere


class Passes:
    """Passes one after another, as HealthTask makes them."""

    def __init__(self) -> None:
        self.virtlogd = FakeVirtlogd()
        self.report: health.Report | None = None

    def next(self, *ports: Port,
             viewers: Sequence[Viewer] = ()) -> health.Changes:
        found = examine(self.virtlogd, *ports, viewers=viewers)
        changes = health.changes(self.report, found)
        self.report = health.remember(self.report, found)
        return changes


NOTHING = health.Changes(False, False, (), (), (), (), ())


def test_a_log_that_dies_is_said_once_and_so_is_its_return() -> None:
    passes = Passes()
    passes.virtlogd.open = {'/a/0', '/a/1'}
    assert passes.next(port(0), port(1)) == NOTHING
    passes.virtlogd.open = {'/a/0'}
    assert passes.next(port(0), port(1)).died == (port(1),)
    assert passes.next(port(0), port(1)) == NOTHING
    passes.virtlogd.open = {'/a/0', '/a/1'}
    assert passes.next(port(0), port(1)).back == (port(1),)
    assert passes.next(port(0), port(1)) == NOTHING


def test_what_is_broken_at_the_first_pass_is_said() -> None:
    passes = Passes()
    passes.virtlogd.by_qemu = {'/a/1'}
    changes = passes.next(port(0), port(1), viewers=[viewer(0, 60)])
    assert changes.died == (port(0),)
    assert changes.unrotated == (port(1),)
    assert [stuck.port for stuck in changes.stuck] == [port(0)]
    assert not changes.daemon
    assert passes.next(port(0), port(1), viewers=[viewer(0, 120)]) == NOTHING


def test_daemon_down_and_up_is_said_once_each() -> None:
    passes = Passes()
    passes.virtlogd.open = {'/a/0'}
    passes.next(port(0))
    passes.virtlogd.daemon = privileged.DOWN
    changes = passes.next(port(0))
    assert changes.daemon
    assert changes.died == (port(0),)
    assert passes.next(port(0)) == NOTHING
    passes.virtlogd.daemon = privileged.UP
    passes.virtlogd.open = set()
    changes = passes.next(port(0))
    assert changes.daemon
    assert changes.died == ()


def test_dead_log_is_not_said_again_after_virtlogd_hung() -> None:
    passes = Passes()
    passes.next(port(0), viewers=[viewer(0, 60)])
    passes.virtlogd.daemon = privileged.HUNG
    for _ in range(2):
        changes = passes.next(port(0))
        assert changes.died == changes.freed == ()
    assert passes.report is not None
    assert states(passes.report) == [LogState.DEAD]
    passes.virtlogd.daemon = privileged.UP
    changes = passes.next(port(0), viewers=[viewer(0, 120)])
    assert changes.daemon
    assert changes.died == changes.stuck == ()


def test_log_of_a_guest_that_is_gone_is_forgotten() -> None:
    passes = Passes()
    passes.next(port(0))
    assert passes.next() == NOTHING
    assert passes.next(port(0)).died == (port(0),)


def test_libvirt_that_does_not_answer_is_said_once() -> None:
    passes = Passes()
    passes.next(port(0), viewers=[viewer(0, 60)])

    def list_ports() -> Sequence[Port]:
        raise exception.HostError('libvirtd is down')

    for first in (True, False):
        found = health.examine(list_ports, '/sock', 1, passes.virtlogd)
        assert found.libvirt == 'libvirtd is down'
        changes = health.changes(passes.report, found)
        passes.report = health.remember(passes.report, found)
        assert changes.libvirt is first
        assert changes.died == changes.freed == ()
        assert states(passes.report) == [LogState.DEAD]
    # Nor is it said to answer where it is not asked.
    for state in (privileged.HUNG, privileged.FULL, privileged.REFUSED):
        passes.virtlogd.daemon = state
        assert not passes.next().libvirt
    passes.virtlogd.daemon = privileged.UP
    changes = passes.next(port(0), viewers=[viewer(0, 60)])
    assert changes.libvirt
    assert changes.died == changes.stuck == ()


def test_ready_for_a_guest(tmp_path: pathlib.Path) -> None:
    virtlogd = FakeVirtlogd()
    health.check_ready('/sock', [str(tmp_path / 'log')], 1, virtlogd)
    # A directory that is not there yet, or out of sight, says nothing.
    health.check_ready('/sock', ['/no/such/log'], 1, virtlogd)
    virtlogd.daemon = privileged.REFUSED
    health.check_ready('/sock', [], 1, virtlogd)


@pytest.mark.parametrize(('state', 'error'), [
    (privileged.DOWN, exception.VirtlogdDown),
    (privileged.HUNG, exception.VirtlogdHung)])
def test_not_ready_for_a_guest(state: str,
                               error: type[Exception]) -> None:
    virtlogd = FakeVirtlogd()
    virtlogd.daemon = state
    with pytest.raises(error, match='because'):
        health.check_ready('/sock', [], 1, virtlogd)


def test_helper_that_does_not_work_is_an_answer(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise privsep.FailedToDropPrivileges('exit status 1')

    monkeypatch.setattr(privileged, 'probe', fails)
    state, reason, answers = health.ask('/sock', [], 1)
    assert state == privileged.REFUSED
    assert 'virtlogd_privileged_daemon' in reason
    assert answers == []


def test_helper_that_does_not_answer_is_not_installed_anew(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise TimeoutError('the privileged helper did not answer within 10 s')

    monkeypatch.setattr(privileged, 'probe', fails)
    assert health.ask('/sock', [], 1) == (
        privileged.REFUSED, 'virtlogd cannot be asked: the privileged helper '
        'did not answer within 10 s.', [])


@pytest.mark.parametrize('error', [
    PermissionError(1, 'Operation not permitted'), TimeoutError('timed out')])
def test_viewers_that_the_kernel_does_not_tell_are_said_once(
        error: OSError) -> None:
    def fails(listeners: object) -> list[Viewer]:
        raise error

    passes = Passes()
    passes.virtlogd.open = {'/a/0'}
    passes.next(port(0), viewers=[viewer(0, 60)])
    for first in (True, False):
        found = health.examine(
            lambda: [port(0)], '/sock', 1, passes.virtlogd, fails)
        assert states(found) == [LogState.ALIVE]
        assert str(error) in found.viewers
        changes = health.changes(passes.report, found)
        assert changes.viewers is first
        assert changes.freed == ()
        passes.report = health.remember(passes.report, found)
    passes.virtlogd.daemon = privileged.HUNG
    assert not passes.next(port(0)).viewers
    passes.virtlogd.daemon = privileged.UP
    changes = passes.next(port(0))
    assert changes.viewers
    assert changes.freed == (port(0),)


def test_viewer_that_leaves_is_said() -> None:
    passes = Passes()
    passes.virtlogd.open = {'/a/0'}
    passes.next(port(0), viewers=[viewer(0, 60, identity=b'1')])
    changes = passes.next(port(0), viewers=[viewer(0, 60, identity=b'2')])
    assert changes.freed == (port(0),)
    assert [stuck.viewer.socket_id for stuck in changes.stuck] == [b'2']


class Listeners:
    """Passes over two guests' ports, with what is listened on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.virtlogd = FakeVirtlogd('/a/0')
        self.open = {port(0).listener, port(1).listener}
        self.report: health.Report | None = None
        self._time = 0.0
        self.ports = [port(0), port(1)]
        self.stalled: list[str] = []
        self.refused = False
        monkeypatch.setattr(time, 'monotonic', lambda: self._time)

    def viewers(self, listeners: object) -> list[Viewer]:
        if self.refused:
            raise OSError('no sock_diag')
        return []

    def next(self, seconds: float = 0) -> health.Changes:
        self._time += seconds
        found = health.examine(
            lambda: self.ports, '/sock', 1, self.virtlogd, self.viewers, 0,
            lambda listeners: {one for one in listeners if one in self.open},
            _find(unseen=self.stalled))
        changes = health.changes(self.report, found)
        self.report = health.remember(self.report, found)
        return changes


@pytest.mark.parametrize('number', [0, 1], ids=['alive', 'dead'])
def test_port_that_nobody_listens_on_for_long_is_said_once(
        monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    passes = Listeners(monkeypatch)
    passes.next()
    passes.open.remove(port(number).listener)
    assert passes.next(60) == NOTHING
    assert passes.next(health.CLOSED_AFTER - 1) == NOTHING
    assert passes.next(1).closed == (port(number),)
    assert passes.next(60) == NOTHING
    passes.virtlogd.daemon = privileged.HUNG
    assert passes.next(60).opened == ()
    passes.virtlogd.daemon = privileged.UP
    assert passes.next(60).closed == ()
    passes.open.add(port(number).listener)
    assert passes.next(60).opened == (port(number),)
    assert passes.next(60) == NOTHING


def test_port_of_which_nothing_is_known_just_now_is_as_it_was(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.open.remove(port(0).listener)
    passes.next()
    assert passes.next(60).closed == (port(0),)
    passes.stalled = ['/a/0']
    assert passes.next(60) == NOTHING
    assert passes.report is not None
    assert passes.report.closed == (port(0),)
    passes.stalled = []
    assert passes.next(60) == NOTHING
    passes.open.add(port(0).listener)
    assert passes.next(60).opened == (port(0),)


def test_a_closed_port_where_the_clock_is_set_back(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes, hours = Listeners(monkeypatch), [2]
    monkeypatch.setattr(
        time, 'time', lambda: 3600 * hours[0] + time.monotonic())
    passes.open.remove(port(0).listener)
    passes.next()
    assert passes.next(60).closed == (port(0),)
    hours[0] = 1
    assert passes.next(60) == NOTHING


def test_port_of_a_guest_that_is_gone_is_not_closed(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.open.remove(port(0).listener)
    passes.next()
    passes.next(60)
    passes.refused = True
    passes.next(60)
    assert passes.report is not None
    assert passes.report.closed == (port(0),)
    passes.ports = [port(1)]
    passes.next(60)
    assert passes.report.closed == ()


class Relayed(Listeners):
    """The same, where the first guest is relayed."""

    OUTER = ('192.0.2.7', 10000)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.virtlogd.open.add('/a/1')
        self.ports = [dataclasses.replace(port(0), relay=self.OUTER), port(1)]
        self.open.add(self.OUTER)


def test_a_relay_that_does_not_listen_is_said_once(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Relayed(monkeypatch)
    assert passes.next() == NOTHING
    passes.open.remove(passes.OUTER)
    assert passes.next(60) == NOTHING
    assert passes.next(health.CLOSED_AFTER).unrelayed == (port(0),)
    assert passes.next(60) == NOTHING
    # It is not known where it listens: nothing is said of it.
    passes.virtlogd.daemon = privileged.HUNG
    assert passes.next(60).relayed == ()
    passes.virtlogd.daemon = privileged.UP
    assert passes.next(60).unrelayed == ()
    passes.open.add(passes.OUTER)
    assert passes.next(60).relayed == (port(0),)
    assert passes.next(60) == NOTHING


def test_a_guest_that_does_not_listen_is_no_matter_of_the_relay(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Relayed(monkeypatch)
    passes.open -= {passes.OUTER, port(0).listener}
    passes.next()
    assert passes.next(60).unrelayed == ()
    assert passes.report is not None
    assert passes.report.closed == (port(0),)


def test_where_the_relay_is_tells_no_port_from_another() -> None:
    """A name may not resolve for a while: no log dies again of that."""
    assert dataclasses.replace(port(0), relay=('192.0.2.7', 1)) == port(0)


def test_port_that_is_listened_on_after_a_moment_is_not_said(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.next()
    for _ in range(2):
        passes.open.remove(port(0).listener)
        assert passes.next(60) == NOTHING
        passes.open.add(port(0).listener)
        assert passes.next(60) == NOTHING


def test_guests_of_another_network_namespace_are_not_judged(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.next()
    passes.open.clear()
    for _ in range(3):
        assert passes.next(60) == NOTHING


def test_the_only_guest_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.ports = [port(0)]
    passes.open.clear()
    passes.next()
    assert passes.next(60).closed == (port(0),)


def test_a_log_that_virtlogd_does_not_write_is_judged_by_that(
        monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Listeners(monkeypatch)
    passes.virtlogd.by_qemu = {'/a/1'}
    passes.open.remove(port(1).listener)
    passes.next()
    assert passes.next(60) == NOTHING


def test_a_log_that_seems_dead_is_looked_at_again_soon(
        monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, 'sleep', pauses.append)
    health.examine(lambda: [port(0)], '/sock', 1, FakeVirtlogd())
    [pause] = pauses
    assert 0 < pause < 1


def test_a_pass_asks_as_often_for_500_guests_as_for_two() -> None:
    calls = []
    for count in (2, 500):
        ports = [port(0, guest=str(number)) for number in range(count)]
        virtlogd = FakeVirtlogd(*[one.log for one in ports[1:] if one.log])
        report = examine(virtlogd, *ports)
        assert report.count(LogState.ALIVE) == count - 1
        calls.append(virtlogd.calls)
    assert calls[0] == calls[1]


class Stalled(Disks):
    """Each file system stalls."""

    def ask(self, path: str, *_: object) -> NoReturn:  # type: ignore[override]
        raise exception.DiskStalled(f'{path} does not answer.')


def test_the_disk_of_a_log_stalls() -> None:
    assert health.free_space('/a/0', Stalled()) is None
    with pytest.raises(exception.VirtlogdHung, match='/a/0 does not answer'):
        health.check_ready('/sock', ['/a/0'], 1, FakeVirtlogd(),
                           Stalled())


def test_no_thread_can_be_had_to_look_at_one_disk(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to refuse a guest; that another disk is full is."""
    class Threadless(Disks):
        def ask(self, path: str, *args: Any) -> Any:
            if path == '/a/0':
                raise RuntimeError("can't start new thread")
            return super().ask(path, *args)
    monkeypatch.setattr(health, '_free', {'/b': 0}.__getitem__)
    disks = Threadless()
    assert health.free_space('/a/0', disks) is None
    health.check_ready('/sock', ['/a/0'], 1, FakeVirtlogd(), disks)
    with pytest.raises(exception.LogDiskFull, match='/b is full'):
        health.check_ready('/sock', ['/a/0', '/b/0'], 1, FakeVirtlogd(), disks)


def test_the_disk_of_a_log_is_full(
        monkeypatch: pytest.MonkeyPatch) -> None:
    free = {'/a': health.FULL_BELOW, '/b': health.FULL_BELOW - 1}
    monkeypatch.setattr(health, '_free', free.__getitem__)
    assert health.free_space('/b/0') == free['/b']
    health.check_ready('/sock', ['/a/0'], 1, FakeVirtlogd())
    with pytest.raises(exception.LogDiskFull, match='/b is full'):
        health.check_ready('/sock', ['/a/0', '/b/0'], 1, FakeVirtlogd())


class TestWaitUntilClosed:

    def test_as_long_as_it_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A last time when the time is over, however long virtlogd takes."""
        now, timeouts, pauses = 100.0, [], []
        monkeypatch.setattr(time, 'monotonic', lambda: now)
        monkeypatch.setattr(time, 'sleep', pauses.append)

        def probe(path: str, logs: list[tuple[str, str]],
                  timeout: float) -> tuple[str, str, Sequence[str]]:
            nonlocal now
            now += 2.5
            timeouts.append(timeout)
            return privileged.UP, '', [privileged.OPEN]
        assert not health.wait_until_closed('/sock', ['/a/0'], 5, probe)
        assert timeouts == [5.0, 2.5, 0.1]
        assert all(0 < pause < 0.1 for pause in pauses)

    def test_none_is_open(self) -> None:
        assert health.wait_until_closed('/sock', ['/a/0'], 1, FakeVirtlogd())

    def test_closed_meanwhile(self) -> None:
        virtlogd = FakeVirtlogd('/a/0')

        def probe(path: str, logs: list[tuple[str, str]],
                  timeout: float) -> tuple[str, str, Sequence[str]]:
            answer = virtlogd(path, logs, timeout)
            virtlogd.open.clear()
            return answer
        assert health.wait_until_closed('/sock', ['/a/0'], 1, probe)

    def test_does_not_wait_for_ever(self) -> None:
        assert not health.wait_until_closed(
            '/sock', ['/a/0'], 0.02, FakeVirtlogd('/a/0'))

    def test_down(self) -> None:
        virtlogd = FakeVirtlogd('/a/0')
        virtlogd.daemon = privileged.DOWN
        assert not health.wait_until_closed('/sock', ['/a/0'], 1, virtlogd)


def _off(number: int) -> Port:
    return dataclasses.replace(port(number), active=False)


def test_log_that_is_open_though_its_guest_is_off() -> None:
    passes = Passes()
    passes.virtlogd.open = {'/a/0'}
    changes = passes.next(_off(0), _off(1))
    assert changes.held == (_off(0),)
    assert passes.report is not None
    # One that is off, and nothing is wrong with, is not in the report.
    assert states(passes.report) == [LogState.HELD]
    assert passes.next(_off(0), _off(1)) == NOTHING


@pytest.mark.parametrize('then', [
    # virtlogd closes it: the guest had just ended.
    [[_off(0)], [_off(0)], [_off(0)]],
    # The guest starts, after the first list or after the second.
    [[_off(0)], [port(0)], [port(0)]],
    [[_off(0)], [_off(0)], [port(0)]],
])
def test_guest_that_ends_or_starts_is_not_held(
        then: list[list[Port]]) -> None:
    virtlogd = FakeVirtlogd('/a/0')
    lists = iter(then)

    def list_ports() -> Sequence[Port]:
        ports = next(lists)
        if ports == then[-1] and virtlogd.calls > 1 and then[1] == then[2]:
            virtlogd.open.clear()
        return ports

    report = health.examine(list_ports, '/sock', 1, virtlogd, confirm_after=0)
    assert LogState.HELD not in states(report)


def _find(*elsewhere: str, unseen: Sequence[str] = (),
          stalled: tuple[str, ...] = ()) -> health.FindUnlinked:
    def find(logs: Sequence[str]) -> unlinked.Found:
        return unlinked.Found(frozenset(elsewhere) & set(logs),
                              frozenset(unseen), stalled)
    return find


def test_unlinked_log_is_said_once_and_so_is_its_return() -> None:
    virtlogd = FakeVirtlogd('/a/0', '/a/1')

    def look(find: health.FindUnlinked) -> health.Report:
        return health.examine(lambda: [port(0), port(1)], '/s', 1, virtlogd,
                              confirm_after=0, find=find)

    first = look(_find('/a/1'))
    assert states(first) == [LogState.ALIVE, LogState.UNLINKED]
    assert health.changes(None, first).unlinked == (port(1),)
    assert health.changes(first, look(_find('/a/1'))) == NOTHING
    # A file system that stalls hides what is there, and changes nothing.
    hidden = look(_find(unseen=['/a/0', '/a/1'], stalled=('It stalls.',)))
    changes = health.changes(first, hidden)
    assert (changes.stalled, changes.back) == (('It stalls.',), ())
    known = health.remember(first, hidden)
    assert states(known) == [LogState.ALIVE, LogState.UNLINKED]
    assert health.changes(known, hidden) == NOTHING
    changes = health.changes(known, look(_find()))
    assert changes.back == (port(1),)
    assert changes.answering


def test_dead_logs_are_not_looked_for() -> None:
    asked: list[str] = []

    def find(logs: Sequence[str]) -> unlinked.Found:
        asked.extend(logs)
        return unlinked.Found()

    health.examine(lambda: [port(0), port(1), port(2, None)], '/s', 1,
                   FakeVirtlogd('/a/0'), confirm_after=0, find=find)
    assert asked == ['/a/0']


@pytest.mark.parametrize('given', [False, True])
def test_what_virtlogd_does_not_answer_hides_logs(
        given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Sequence[tuple[int, int]]:
        raise exception.VirtlogdHung('no')

    def other(*_: object) -> Sequence[tuple[int, int]]:
        raise AssertionError
    monkeypatch.setattr(privileged, 'positions', other if given else refuse)
    found = health.find_unlinked(
        '/s', 1, positions=refuse if given else None)
    here = str(pathlib.Path(__file__))
    assert found([here]).unseen == {here}


def test_what_is_not_understood_is_said_once() -> None:
    passes = Passes()
    odd = dataclasses.replace(port(0, None), unclear='Odd.')
    assert passes.next(odd).unclear == (odd,)
    assert passes.report is not None
    assert states(passes.report) == [LogState.UNKNOWN]
    assert passes.next(odd) == NOTHING


def test_a_log_is_not_said_again_after_libvirt_failed_for_its_guest() -> None:
    passes = Passes()
    passes.next(port(0), port(1), port(2, guest='b'),
                viewers=[viewer(0, 60)])
    odd = dataclasses.replace(port(0, None), unclear='libvirt fails for it.',
                              failing=True)
    for _ in range(2):
        changes = passes.next(odd, port(2, guest='b'))
        assert changes.died == changes.freed == ()
        assert passes.report is not None
        assert [(log.port, log.state) for log in passes.report.logs] == [
            (odd, LogState.UNKNOWN), (port(2, guest='b'), LogState.DEAD),
            (port(0), LogState.DEAD), (port(1), LogState.DEAD)]
    passes.virtlogd.open = {'/a/1'}
    changes = passes.next(port(0), port(1), port(2, guest='b'),
                          viewers=[viewer(0, 120)])
    assert changes == dataclasses.replace(NOTHING, back=(port(1),))
    passes.next()
    assert passes.report.logs == ()


def test_a_log_is_forgotten_with_the_port_of_a_guest_that_is_known() -> None:
    """It has been started anew, with a port that is not understood."""
    passes = Passes()
    passes.next(port(0), port(2, guest='b'))
    odd = dataclasses.replace(port(0, None), unclear='Odd.')
    passes.next(odd)
    assert passes.report is not None
    assert [log.port for log in passes.report.logs] == [odd]


def test_a_console_that_was_seen_once_is_not_closed_for_long() -> None:
    """As its guest was just being started; then its disk stalls."""
    one = port(0)
    before = health.Report(
        health.DaemonState.UP, logs=(health.Log(one, LogState.ALIVE),),
        unopened=(health.Unopened(one, 100.0),), moment=100.0)
    unknown = (health.Log(one, LogState.UNKNOWN),)
    later = health.remember(before, health.Report(
        health.DaemonState.UP, logs=unknown, moment=160.0))
    assert later.closed == ()
    # One that lasts is remembered.
    before = dataclasses.replace(before, moment=160.0)
    later = health.remember(before, health.Report(
        health.DaemonState.UP, logs=unknown, moment=220.0))
    assert later.closed == (one,)


def test_full_virtlogd_refuses_a_start() -> None:
    virtlogd = FakeVirtlogd()
    virtlogd.daemon = privileged.FULL
    with pytest.raises(exception.VirtlogdHung, match='because'):
        health.check_ready('/s', [], 1, virtlogd)


def test_no_thread_can_be_had_to_look_at_a_log(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """What virtlogd itself says of it is given all the same."""
    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, 'start', start)
    found = health.examine(
        lambda: [port(0), port(1)], '/sock', 1, FakeVirtlogd('/a/0'),
        confirm_after=0, find=health.find_unlinked(
            '/sock', 1, Disks(), lambda *_: []))
    assert states(found) == [LogState.UNKNOWN, LogState.DEAD]
