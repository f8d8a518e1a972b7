# SPDX-License-Identifier: Apache-2.0
"""virtlogd fails in each way that it can, for real, with guests running.

For each: is the guest unharmed, is it found within one interval, is it said
once, is it back after healing, and are only the lines of the dead period
missing, in a number that is known.
"""

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import libvirt
import pytest

from tests.lab import guest
from tests.lab.compute_process import ComputeProcess
from tests.lab.daemons import LibvirtHost
from tests.lab.terminal import Terminal
from tests.lab.wait import readable, until
from virtlogd_driver import exception
from virtlogd_driver.node import watch
from virtlogd_driver.virtlogd import health, periodic, privileged, reattach
from virtlogd_driver.virtlogd import viewer as viewers
from virtlogd_driver.virtlogd.health import DaemonState, LogState, Report

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

#: Seconds from one health pass to the next, here.
INTERVAL = 0.5
#: Seconds for virtlogd to answer, here: it may be late, and does not hang.
TIMEOUT = 30.0
#: Passes within which a fault must be found: the one that was, one that it
#: comes amid, the next, and another in which its log is brought back.
FOUND_WITHIN = 4
#: Where the kernel or a viewer takes its time first: as many as it takes.
LATER = sys.maxsize


@pytest.fixture(autouse=True)
def _in_process() -> Iterator[None]:
    """The tests are root already; the helper has tests of its own."""
    contexts = (privileged.virtlogd_context, privileged.viewer_context)
    for context in contexts:
        context.set_client_mode(False)
    yield
    for context in contexts:
        context.set_client_mode(True)


class Watched(fixtures.Fixture):
    """A host with a guest on it, and what nova-compute says about them."""

    def __init__(self, host: LibvirtHost,
                 caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self.host = host
        self.caplog = caplog
        self.log = host.log_directory / 'console.log'
        self.port = guest.free_port()

    def _setUp(self) -> None:
        self.caplog.set_level(logging.INFO)
        self.host.make_own()
        self.connection = self.host.connect()
        self.task: periodic.HealthTask | None = None

    def start_guest(self, interval: float = 0.1, **kwargs: int
                    ) -> libvirt.virDomain:
        """A guest that writes numbered lines on a TCP port with a log."""
        domain = self.connection.createXML(guest.domain_xml(
            self.host.directory,
            guest.boot_sector(interval=interval, **kwargs),
            [guest.tcp_serial(self.port, self.log)]))
        until(lambda: self.log.exists() and self.log.stat().st_size > 100,
              'the guest writes')
        return domain

    def watch(self, heal: bool = False, viewer_timeout: float = 0,
              timeout: float = TIMEOUT) -> periodic.HealthTask:
        """As when nova-compute starts, once its first pass has ended."""
        self.stop_watching()
        self.task = watch.health_task(
            lambda: self.connection, periodic.Settings(
                str(self.host.virtlogd_socket), INTERVAL, timeout,
                viewer_timeout), heal)
        self.task.start()
        self.addCleanup(self.task.stop)
        until(lambda: self.task and self.task.report, 'the first pass')
        return self.task

    def stop_watching(self) -> None:
        if self.task is not None:
            self.task.stop()

    def reattach(self) -> str:
        """By command, as it were."""
        (port,) = watch.list_ports(self.connection)
        return watch.reattach_log(self.connection, port,
                                  str(self.host.virtlogd_socket), TIMEOUT)

    def said(self, text: str) -> list[str]:
        """Lines with this text, so far."""
        return [f'{record.levelname} {record.getMessage()}'
                for record in self.caplog.records
                if text in record.getMessage()]

    def told(self, *texts: str) -> list[str]:
        """Which of these texts was said each time, so far."""
        return [text for line in self.said('') for text in texts
                if text in line]

    def until_said(self, text: str, passes: int = FOUND_WITHIN) -> str:
        seen: list[Report | None] = []

        def look() -> list[str]:
            report = self.task and self.task.report
            if not seen or seen[-1] is not report:
                seen.append(report)
            return self.said(text)
        found = until(look, f'"{text}" said', 120)
        assert len(seen) <= passes, text
        return found[0]

    def passes(self, count: int = 3) -> None:
        """Let some more passes go by."""
        assert self.task is not None
        for _ in range(count):
            before = self.task.report
            until(lambda before=before: self.task and (
                self.task.report is not before), 'another pass')

    def state(self) -> LogState:
        assert self.task is not None
        assert self.task.report is not None
        (log,) = self.task.report.logs
        return log.state

    def whole_log(self) -> bytes:
        """The log and what was rotated, oldest first."""
        backups = sorted(self.log.parent.glob(f'{self.log.name}.*'),
                         key=lambda path: -int(path.suffix[1:]))
        return b''.join(path.read_bytes() for path in [*backups, self.log])

    def grows(self, seconds: float = 10) -> None:
        """:raises TimeoutError: nothing is added to the log."""
        size = len(self.whole_log())
        until(lambda: len(self.whole_log()) > size + 100, 'the log grows',
              seconds)


@pytest.fixture
def watched(libvirt_host: LibvirtHost, use: Use,
            caplog: pytest.LogCaptureFixture) -> Watched:
    return use(Watched(libvirt_host, caplog))


def numbers(log: bytes) -> list[int]:
    """The numbers of the whole lines."""
    return [int(found) for found in re.findall(rb'line (\d{8})\r\n', log)]


def contiguous(found: list[int]) -> bool:
    return found == list(range(found[0], found[0] + len(found)))


def in_turn(told: list[str], *texts: str) -> bool:
    """Each is said once, until the other is."""
    return told == list(texts * len(told))[:len(told)]


def gaps(found: list[int]) -> list[tuple[int, int]]:
    """Neighbours that are not."""
    return [(one, other) for one, other in itertools.pairwise(found)
            if other != one + 1]


class Witness(Terminal):
    """A viewer that takes all that comes: what the guest has written."""

    def _setUp(self) -> None:
        super()._setUp()
        until(self.line, 'a whole line')

    def line(self) -> int:
        """Number of the last whole line until now; 0: there was none."""
        with contextlib.suppress(ConnectionError):
            while readable(self.socket):
                data = self.socket.recv(65536)
                if not data:
                    break
                self.seen += data
        return (numbers(self.seen) or [0])[-1]

    def until_logged(self, watched: Watched) -> int:
        """The last line until now, once it is in the log."""
        line = self.line()
        until(lambda: numbers(watched.whole_log())[-1] >= line,
              'what was seen is in the log')
        return line

    def see_a_line(self) -> None:
        """A whole one, of which nothing had been written before."""
        line = self.line()
        until(lambda: self.line() > line + 1, 'another line')


def lost_lines(watched: Watched, witness: Witness, before: int) -> int:
    """The lines of the dead period are missing in the log, and no other.

    A line that was written in part counts as missing.

    :param witness: there from before the fault until the log was attached
        again, which disconnects viewers
    :param before: a line that was in the log before the fault
    :returns: how many they are
    """
    found = numbers(watched.whole_log())
    assert found[0] == 1
    assert found == sorted(set(found))
    ((last, first),) = gaps(found)
    assert last >= before
    # QEMU sends a character to a viewer before it logs it.
    assert first <= witness.line() + 2
    lost = set(range(last + 1, first))
    assert lost - {last + 1, first - 1} <= set(numbers(witness.seen))
    return len(lost)


def none_lost(watched: Watched) -> None:
    """All that the guest has written is in the log, in order."""
    found = numbers(watched.whole_log())
    assert found[0] == 1
    assert contiguous(found)


def answers(watched: Watched) -> None:
    """The guest is unharmed: it echoes what is typed."""
    with Terminal('127.0.0.1', watched.port) as terminal:
        terminal.type(b'are you well?\r')
        terminal.read_until(b'are you well?\r\n')


def test_reexec_while_the_guest_writes_loses_nothing_and_is_not_said(
        watched: Watched) -> None:
    watched.start_guest(interval=0.055, burst=20)
    # A reply that virtlogd loses is waited for so long.
    watched.watch(timeout=10)
    for _ in range(20):
        watched.host.reload_virtlogd()
    watched.passes()
    assert watched.state() is LogState.ALIVE
    watched.stop_watching()
    none_lost(watched)
    assert watched.caplog.messages == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_log_that_died_with_virtlogd_is_found_said_and_brought_back(
        watched: Watched, use: Use, number: signal.Signals) -> None:
    watched.start_guest()
    watched.watch(heal=True)
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    watched.host.stop_virtlogd(number)
    watched.until_said('virtlogd is down')
    watched.until_said('is dead')
    assert watched.state() is LogState.DEAD
    witness.type(b'are you well?\r')
    witness.read_until(b'are you well?\r\n')
    witness.see_a_line()

    watched.host.start_virtlogd()
    watched.until_said('is back')
    watched.grows()
    watched.passes()
    answers(watched)
    watched.stop_watching()
    assert lost_lines(watched, witness, before) > 0
    for text in ('virtlogd is down', 'is dead', 'virtlogd answers',
                 'is back'):
        assert len(watched.said(text)) == 1, text


def test_restart_between_two_passes_is_found_as_well(
        watched: Watched, use: Use) -> None:
    watched.start_guest()
    watched.watch()
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    watched.host.stop_virtlogd()
    died = witness.line()
    watched.host.start_virtlogd()
    assert watched.until_said('is dead').startswith('ERROR')
    watched.passes()
    assert len(watched.said('is dead')) == 1
    assert watched.state() is LogState.DEAD
    witness.see_a_line()
    dead = witness.line()
    assert watched.reattach() == ''
    watched.until_said('is back')
    watched.grows()
    answers(watched)
    watched.stop_watching()
    assert lost_lines(watched, witness, before) >= dead - died - 2


def test_nova_compute_restarted_says_a_dead_log_once_more_and_heals_it(
        watched: Watched, use: Use) -> None:
    watched.start_guest()
    watched.watch()
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    watched.host.stop_virtlogd()
    watched.host.start_virtlogd()
    watched.until_said('is dead')
    witness.see_a_line()
    watched.watch(heal=True)
    watched.until_said('is back')
    watched.passes()
    assert len(watched.said('is dead')) == 2
    assert len(watched.said('is back')) == 1
    watched.grows()
    answers(watched)
    watched.stop_watching()
    assert lost_lines(watched, witness, before) > 0


def test_nova_compute_killed_and_restarted_while_a_log_dies(
        watched: Watched, use: Use, tmp_path: Path) -> None:
    """As real processes, which load the driver as nova does."""
    watched.start_guest()
    first = use(ComputeProcess(
        watched.host, tmp_path / 'first', health_interval=1, reattach=False))
    first.until_said('Guest consoles')
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    watched.host.stop_virtlogd()
    watched.host.start_virtlogd()
    first.until_said('is dead')
    witness.see_a_line()
    first.kill()
    metrics_file = tmp_path / 'virtlogd.prom'
    second = use(ComputeProcess(
        watched.host, tmp_path / 'second', health_interval=1, reattach=True,
        metrics_file=metrics_file))
    second.until_said('is back')
    watched.grows()
    answers(watched)
    assert lost_lines(watched, witness, before) > 0
    assert len(first.said('is dead')) == len(second.said('is dead')) == 1
    assert len(second.said('is back')) == 1
    until(lambda: 'console_logs_reattached_total 1.0'
          in metrics_file.read_text(), 'it is counted')


def test_stopped_virtlogd_is_found_and_nothing_hangs_with_it(
        watched: Watched) -> None:
    watched.start_guest(interval=0.055, burst=10)
    task = watched.watch(heal=True, timeout=1)
    os.kill(watched.host.virtlogd_pid, signal.SIGSTOP)
    try:
        watched.until_said('virtlogd is hung')
        with pytest.raises(exception.VirtlogdHung,
                           match=r'within 1 s.*SIGCONT'):
            health.check_ready(str(watched.host.virtlogd_socket), [], 1)
        watched.passes()
        assert task.report
        assert task.report.daemon is DaemonState.HUNG
    finally:
        os.kill(watched.host.virtlogd_pid, signal.SIGCONT)
    once = ['virtlogd is hung', 'virtlogd answers']
    until(lambda: watched.told(*once)[-1] == once[1], 'it answers')
    watched.grows()
    watched.passes()
    assert watched.state() is LogState.ALIVE
    assert watched.said('is dead') == []
    # A host that is slow may hang now and then.
    assert in_turn(watched.told(*once), *once)
    answers(watched)
    watched.stop_watching()
    none_lost(watched)


def test_libvirt_that_hangs_with_virtlogd_does_not_hang_the_pass(
        watched: Watched) -> None:
    """Worst case: virtlogd stops while a guest starts."""
    watched.start_guest()
    task = watched.watch(timeout=1)
    other = watched.host.connect()
    xml = guest.domain_xml(
        watched.host.directory, guest.boot_sector(interval=1),
        [guest.pty_serial(watched.host.log_directory / 'other.log')],
        name='guest2')
    os.kill(watched.host.virtlogd_pid, signal.SIGSTOP)
    starting = threading.Thread(target=other.createXML, args=(xml,))
    starting.start()
    try:
        watched.until_said('virtlogd is hung')
        # Its guest is not there at once.
        until(lambda: subprocess.run(
            ['timeout', '3', 'virsh', '-c', watched.host.uri, 'dumpxml',
             'guest2'], capture_output=True, check=False).returncode == 124,
            'libvirt hangs')
        watched.passes(2)
        assert task.report is not None
        assert task.report.daemon is DaemonState.HUNG
    finally:
        os.kill(watched.host.virtlogd_pid, signal.SIGCONT)
    starting.join(30)
    assert not starting.is_alive()
    watched.until_said('virtlogd answers')
    until(lambda: task.report and task.report.count(LogState.ALIVE) == 2,
          'both guests')
    assert len(task.report.logs) == 2
    assert watched.said('is dead') == []


@pytest.fixture
def small_disk(tmp_path: Path, use: Use, caplog: pytest.LogCaptureFixture
               ) -> Iterator[Watched]:
    """A host whose guests log to a file system of 1 MiB."""
    directory = tmp_path / 'host' / 'guests'
    directory.mkdir(parents=True)
    # Before the host takes its own copy of the mounts.
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'disk',
                    str(directory)], check=True)
    try:
        with LibvirtHost(tmp_path / 'host') as host:
            yield use(Watched(host, caplog))
    finally:
        subprocess.run(['umount', '--lazy', str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Take all that is left of a file system."""
    filler = directory / 'filler'
    with filler.open('wb', buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(65536)):
                pass
        with contextlib.suppress(OSError):
            while file.write(b'x'):
                pass
    return filler


def test_disk_full_and_freed(small_disk: Watched, use: Use) -> None:
    watched = small_disk
    watched.start_guest(interval=0.055, burst=10)
    watched.watch(heal=True)
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    filler = fill(watched.log.parent)
    said = watched.until_said('is dead', LATER)
    assert 'file system is full' in said
    with pytest.raises(exception.LogDiskFull, match='full'):
        health.check_ready(str(watched.host.virtlogd_socket),
                           [str(watched.log)], TIMEOUT)
    watched.passes()
    assert watched.state() is LogState.DEAD
    witness.type(b'are you well?\r')
    witness.read_until(b'are you well?\r\n')
    witness.see_a_line()

    filler.unlink()
    watched.until_said('is back')
    watched.grows()
    watched.passes()
    answers(watched)
    watched.stop_watching()
    assert lost_lines(watched, witness, before) > 0
    for text in ('is dead', 'is back'):
        assert len(watched.said(text)) == 1, text
    assert watched.said('could not be brought back') == []


def test_virtlogd_absent_at_a_start(watched: Watched) -> None:
    watched.watch()
    watched.host.stop_virtlogd()
    watched.until_said('virtlogd is down')
    with pytest.raises(exception.VirtlogdDown, match='systemctl start'):
        health.check_ready(str(watched.host.virtlogd_socket), [], TIMEOUT)
    with pytest.raises(libvirt.libvirtError, match='virtlogd-sock'):
        watched.start_guest()
    watched.host.start_virtlogd()
    watched.until_said('virtlogd answers')
    health.check_ready(str(watched.host.virtlogd_socket),
                       [str(watched.log)], TIMEOUT)
    watched.start_guest()
    watched.passes()
    assert watched.state() is LogState.ALIVE
    assert watched.said('is dead') == []
    answers(watched)
    watched.stop_watching()
    none_lost(watched)


def test_file_handler_is_found_and_not_taken_for_dead(
        tmp_path: Path, use: Use,
        caplog: pytest.LogCaptureFixture) -> None:
    host = use(LibvirtHost(tmp_path / 'host', stdio_handler='file'))
    watched = use(Watched(host, caplog))
    domain = watched.start_guest()
    watched.watch(heal=True)
    watched.passes()
    assert watched.state() is LogState.UNROTATED
    assert len(watched.said('without bound')) == 1
    with pytest.raises(exception.ReattachFailed, match='stdio_handler'):
        reattach.reattach(domain, str(watched.log),
                          str(host.virtlogd_socket), TIMEOUT)
    # The same where virtlogd is down: QEMU does not need it.
    host.stop_virtlogd()
    watched.until_said('virtlogd is down')
    assert watched.state() is LogState.UNROTATED
    watched.grows()
    none_lost(watched)


def test_viewer_that_never_reads(
        watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    once = ['has not read', 'No viewer stops']
    monkeypatch.setattr(health, 'STUCK_AFTER', 3.0)
    domain = watched.start_guest(interval=0)
    watched.watch()
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.connect(('127.0.0.1', watched.port))
        said = watched.until_said('has not read', LATER)
        assert f'127.0.0.1:{viewer.getsockname()[1]}' in said

        def waits() -> bool:
            size = len(watched.whole_log())
            time.sleep(1)
            return len(watched.whole_log()) == size

        # The kernels' buffers may take some more, now and then.
        until(waits, 'the guest waits')
        assert watched.state() is LogState.ALIVE
        watched.stop_watching()
        # Once each time that it stops the guest: a buffer of the kernel may
        # be enlarged meanwhile.
        first = watched.told(*once)
        assert in_turn(first, *once)
        watched.watch(viewer_timeout=viewers.STUCK_AFTER)
        watched.until_said('was disconnected', LATER)
        until(lambda: watched.told(*once)[-1] == once[1], 'the guest goes on')
        watched.grows()
        with pytest.raises(ConnectionError):
            all(iter(lambda: viewer.recv(1 << 20), b''))
    watched.stop_watching()
    answers(watched)
    domain.suspend()
    watched.host.wait_until_written()
    # The character that QEMU's UART was trying to send when the connection
    # ended is lost, as it is when a viewer leaves by itself.
    assert [other - one for one, other in gaps(
        numbers(watched.whole_log()))] in ([], [2])
    assert len(watched.said('was disconnected')) == 1
    later = watched.told(*once)[len(first):]
    assert later == once * (len(later) // 2)


def test_libvirtd_killed_and_restarted(watched: Watched) -> None:
    watched.start_guest()
    watched.watch(heal=True)
    watched.host.stop_libvirtd(signal.SIGKILL)
    watched.until_said('are not watched')
    watched.grows()
    watched.passes()
    watched.host.start_libvirtd()
    watched.connection = watched.host.connect()
    watched.until_said('are watched again')
    watched.passes()
    assert watched.state() is LogState.ALIVE
    assert len(watched.said('are not watched')) == 1
    assert watched.said('is dead') == []
    answers(watched)
    watched.stop_watching()
    none_lost(watched)


def test_dead_log_while_libvirtd_is_down_is_healed_when_it_is_back(
        watched: Watched, use: Use) -> None:
    watched.start_guest()
    watched.watch(heal=True)
    witness = use(Witness('127.0.0.1', watched.port))
    before = witness.until_logged(watched)
    watched.host.stop_libvirtd(signal.SIGKILL)
    watched.until_said('are not watched')
    watched.host.stop_virtlogd(signal.SIGKILL)
    witness.see_a_line()
    watched.host.start_virtlogd()
    watched.host.start_libvirtd()
    watched.connection = watched.host.connect()
    watched.until_said('is back')
    watched.grows()
    answers(watched)
    watched.stop_watching()
    assert lost_lines(watched, witness, before) > 0


def test_guests_that_come_and_go_are_no_dead_logs(
        watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    real = health._confirm
    ending = threading.Lock()

    def confirm(*args: Any) -> Any:
        # libvirt may take longer to end a guest than a pass waits.
        with ending:
            return real(*args)

    monkeypatch.setattr(health, '_confirm', confirm)
    watched.watch()
    for _ in range(6):
        domain = watched.start_guest()
        with ending:
            domain.destroy()
        time.sleep(0.1)
    watched.passes()
    assert watched.caplog.records == []
