# SPDX-License-Identifier: Apache-2.0
"""The stream of a host, on real files, with guests as libvirt reports them."""

import errno
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit import fake_libvirt
from tests.unit.stream.schema import VALIDATOR
from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, log
from virtlogd_driver.console_log.descriptor_store import DescriptorStore
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.log import (
    LIVE_GENERATION,
    LogSince,
    Passed,
    Position,
)
from virtlogd_driver.history import boot, outbox
from virtlogd_driver.node.events import Report, Running
from virtlogd_driver.stream import guest, service, state
from virtlogd_driver.stream.guest import CHUNK, Logs
from virtlogd_driver.stream.objects import ObjectSink, Source, host_event
from virtlogd_driver.stream.service import News, Stream

UUID = '9d0e2f4a-4b7f-4f5e-9b59-2f3c1d5e6a7b'
OTHER = '1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed'


def end_of(path: str, _port: int = 0) -> Position:
    directory_path, name = os.path.split(path)
    with open_directory(directory_path) as directory:
        return log.read_tail(directory, name, 0).position or LIVE_GENERATION


def _store() -> DescriptorStore:
    # Its sweeper would outlive the test by a minute.
    return DescriptorStore(log.open_log, sweeper=False)


def _logs(store: DescriptorStore) -> Logs:
    """Logs are read as root reads them."""
    def read_on(path: str, position: Position | None, limit: int,
                passed: Collection[Passed]) -> LogSince:
        return store.read_from(path, position, limit, passed=passed)

    return Logs(read_on, end_of, store.read_held, store.forget)


class Output:
    """The output keeps what it is given, once that is written."""

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        #: Nobody takes anything while it is clear.
        self.taken = threading.Event()
        self.taken.set()
        #: Is called before something is written.
        self.before: Callable[[], object] = lambda: None

    def sink(self, source: Source, waiting: list[str]) -> ObjectSink:
        return ObjectSink(source, waiting)

    def event(self, event: str, time: float, message: str) -> str:
        return host_event({'host': 'host'}, event, time, message)

    def write(self, waiting: list[str]) -> None:
        if waiting:
            self.taken.wait()
            self.before()
        for text in waiting:
            one = json.loads(text)
            VALIDATOR.validate(one)
            self.objects.append(one)
        waiting.clear()


class Host:
    """A host has guests, and a stream of what they write."""

    def __init__(self, path: Path) -> None:
        self.path = path / 'instances'
        self.path.mkdir()
        self.state = path / 'state'
        self.output = Output()
        self.guests: dict[str, Running] = {}
        #: UUIDs of those that libvirt does not tell of.
        self.unknown: frozenset[str] = frozenset()
        #: Seconds of a turn: however slow this host is, no disk of it hangs.
        self.patience = 60.0
        self._news: News | None = None
        self._store = _store()
        self._thread: threading.Thread | None = None
        #: What has ended the stream.
        self._error: BaseException | None = None

    def log(self, uuid: str = UUID) -> Path:
        return self.path / uuid / 'console.log'

    def guest(self, uuid: str = UUID, run: int = 1, *, name: str = 'guest',
              booted: bool = True, path: Path | None = None) -> None:
        """Have a guest, whose log is begun."""
        path = path or self.log(uuid)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.touch()
        self.guests[uuid] = Running(uuid, name, run, fake_libvirt.domain_xml(
            fake_libvirt.serial(log=str(path)), name=name), booted)

    def begin(self) -> None:
        """Have a stream that goes on from an earlier one."""
        self.start()
        self.stop()
        self.start()

    def quiet(self, seconds: float) -> None:
        """Let a line wait for its end for longer."""
        self._stream._quiet = seconds

    def report(self) -> None:
        assert self._news is not None
        self._news.reported(Report(dict(self.guests), None,
                                   unknown=self.unknown))

    def asked(self, reason: str = '', **states: str) -> None:
        assert self._news is not None
        self._news.asked(reason, {
            str(self.log()): one for one in states.values()})

    def start(self, *words: str, quiet: float = 0.2) -> None:
        self._news = News()
        self._stream = Stream(
            'host', self.output, _logs(self._store),
            self._news, words=words, progress=state.load(str(self.state)),
            state_file=str(self.state), quiet=quiet)
        self._stream._turns._patience = self.patience
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.report()
        self.until(lambda: not self._stream._first_report)

    def _run(self) -> None:
        try:
            self._stream.run()
        except BaseException as error:
            self._error = error
            raise

    def stop(self) -> None:
        if self._thread is not None and self._news is not None:
            self._news.end()
            self.output.taken.set()
            self._thread.join(60)
            assert not self._thread.is_alive()
            self._news.close()
            self._store.close()
            self._thread = None

    def kill(self, state_before: bytes) -> None:
        """End it, with what its state file was at some moment."""
        self.stop()
        self.state.write_bytes(state_before)

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert self._error is None, self._error
            assert time.monotonic() < deadline, self.output.objects
            time.sleep(0.01)

    def is_unknown(self, uuid: str) -> bool:
        return uuid not in self._stream._guests

    def texts(self) -> list[str]:
        return [one['text'] for one in self.output.objects if 'text' in one]

    def events(self) -> list[str]:
        return [one['event'] for one in self.output.objects
                if 'event' in one]

    def until_text(self, *texts: str) -> None:
        self.until(lambda: self.texts() == list(texts))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.stop()


def write(path: Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(path: Path, most: int = 8) -> None:
    for number in range(most, -1, -1):
        backup = path.with_name(f'{path.name}.{number}')
        if backup.exists():
            if number == most:
                backup.unlink()
            else:
                backup.rename(path.with_name(f'{path.name}.{number + 1}'))
    path.rename(path.with_name(f'{path.name}.0'))
    path.touch()


def test_a_start_that_has_no_date(host: Host) -> None:
    """Another host has sent it: it ends no stream of all guests."""
    host.guest()
    host.begin()
    host.log().with_name(boot.FILE).write_text(
        '{"time": 2e9, "positions": {"0": null}}\n'
        '{"time": 9e11, "positions": {"0": null}}\n')
    write(host.log(), b'one\n')
    host.until_text('one')
    (one,) = host.output.objects
    assert one['boot'] == {'number': 1, 'start': '2033-05-18T03:33:20.000Z'}


def test_from_now_on(host: Host) -> None:
    host.guest()
    write(host.log(), b'before\n')
    host.start()
    # A later guest is given from its beginning.
    host.guest('other')
    write(host.log('other'), b'here\n')
    host.report()
    host.until_text('here')
    write(host.log(), b'after\r\n')
    host.until_text('here', 'after')
    (one,) = [one for one in host.output.objects
              if one.get('text') == 'after']
    assert (one['host'], one['guest'], one['uuid'], one['port']) == (
        'host', 'guest', UUID, 0)
    assert host.events() == ['started']


def test_an_unfinished_line_is_given_when_it_is_quiet(host: Host) -> None:
    host.guest()
    host.start()
    host.guest('other')
    host.report()
    host.until(lambda: host.events() == ['started'])
    write(host.log(), b'login: ')
    host.until_text('login: ')
    write(host.log(), b'root\n')
    host.until_text('login: ', 'root')
    assert [one.get('partial') for one in host.output.objects
            if 'text' in one] == [True, None]


def test_it_goes_on_where_it_stopped(host: Host) -> None:
    host.guest()
    host.start()
    host.guest('other')
    host.report()
    host.until(lambda: bool(host.events()))
    write(host.log(), b'one\ntwo\nthr')
    host.until(lambda: len(host.texts()) >= 2)
    host.stop()
    write(host.log(), b'ee\n')
    rotate(host.log())
    write(host.log(), b'four\n')
    host.start()
    host.until(lambda: host.texts()[-1:] == ['four'])
    assert ''.join(host.texts()) == 'onetwothreefour'
    assert host.events() == ['started']


def test_a_line_given_again_has_the_same_position(host: Host) -> None:
    host.guest()
    host.start()
    host.stop()
    before = host.state.read_bytes()
    host.start()
    for number in range(20):
        write(host.log(), b'%d\n' % number)
        if number % 3 == 0:
            rotate(host.log())
    host.until(lambda: len(host.texts()) == 20)
    host.kill(before)
    host.start()
    host.until(lambda: len(host.texts()) == 40)
    given = [one for one in host.output.objects if 'text' in one]
    assert len({one['position'] for one in given}) == 20
    assert [one['position'] for one in given[:20]] == [
        one['position'] for one in given[20:]]
    assert host.texts()[:20] == [str(number) for number in range(20)]


def test_a_line_that_has_begun_goes_on_in_the_next_stream(
        host: Host) -> None:
    host.guest()
    host.begin()
    host.quiet(3600.0)
    write(host.log(), b'whole\nli')
    host.until_text('whole')
    host.stop()
    write(host.log(), b'ne\n')
    host.start(quiet=3600.0)
    host.until_text('whole', 'line')


def _gives_again(host: Host, state_before: bytes, *texts: str) -> None:
    """After a kill the last lines have the positions that they had."""
    count = len(host.texts())
    host.kill(state_before)
    host.start()
    host.until(lambda: host.texts()[count:] == list(texts))
    given = [(one['text'], one['position'], one.get('partial'))
             for one in host.output.objects if 'text' in one]
    assert given[count - len(texts):count] == given[count:]


def test_a_line_that_was_quiet_is_cut_there_after_a_kill(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it comes: no byte is given in two lines."""
    monkeypatch.setattr(service, 'SAVE_INTERVAL', 3600.0)
    host.guest()
    host.begin()
    write(host.log(), b'whole\nlogin: ')
    states: list[bytes] = []
    host.output.before = lambda: states.append(host.state.read_bytes())
    host.until_text('whole', 'login: ')
    before = states[-1]
    write(host.log(), b'root\n')
    host.until_text('whole', 'login: ', 'root')
    _gives_again(host, before, 'login: ', 'root')


def _stop(host: Host) -> None:
    host.guest(run=-1)
    host.report()


def _lose_log(host: Host) -> None:
    host.asked(log='dead')


@pytest.mark.parametrize(('ends', 'event'), [
    (_stop, 'stopped'), (_lose_log, 'died')])
def test_a_line_that_an_end_cuts_is_cut_there_after_a_kill(
        host: Host, monkeypatch: pytest.MonkeyPatch,
        ends: Callable[[Host], None], event: str) -> None:
    """virtlogd may have some more of it to write."""
    monkeypatch.setattr(service, 'SAVE_INTERVAL', 3600.0)
    host.guest()
    host.begin()
    host.quiet(3600.0)
    write(host.log(), b'whole\nPow')
    host.until_text('whole')
    states: list[bytes] = []
    host.output.before = lambda: states.append(host.state.read_bytes())
    ends(host)
    host.until(lambda: host.events() == [event])
    assert host.texts() == ['whole', 'Pow']
    before = states[0]
    write(host.log(), b'er down\n')
    host.until_text('whole', 'Pow', 'er down')
    _gives_again(host, before, 'Pow', 'er down')


def test_a_start_that_is_told_of_late_cuts_no_line(host: Host) -> None:
    host.guest(run=-1)
    host.begin()
    host.quiet(3600.0)
    write(host.log(), b'one\ntw')
    host.until_text('one')
    host.guest(run=1)
    host.report()
    host.until(lambda: host.events() == ['started'])
    write(host.log(), b'o\n')
    host.until_text('one', 'two')


def test_what_is_rotated_away_is_said(host: Host) -> None:
    host.guest()
    host.start()
    host.stop()
    write(host.log(), b'lost\n')
    for _ in range(4):
        rotate(host.log(), most=2)
    write(host.log(), b'here\n')
    host.start()
    host.until_text('here')
    assert host.events() == ['lost']


def test_a_consumer_that_stops_stops_only_the_stream(host: Host) -> None:
    host.guest()
    host.begin()
    host.output.taken.clear()
    for number in range(10):
        write(host.log(), b'%d\n' % number)
        time.sleep(0.03)
    assert host.texts() == []
    for _ in range(12):
        rotate(host.log(), most=3)
        write(host.log(), b'x' * 5000 + b'\n')
    host.output.taken.set()
    host.until(lambda: len(host.texts()) >= 4)
    host.until(lambda: 'lost' in host.events())


def test_a_guest_that_stops_and_starts(host: Host) -> None:
    host.guest()
    host.begin()
    host.guest(run=-1)
    host.report()
    host.until(lambda: host.events() == ['stopped'])
    host.guest(run=2)
    host.report()
    host.until(lambda: host.events() == ['stopped', 'started'])
    # In one report.
    host.guest(run=3)
    host.report()
    host.until(lambda: host.events()[2:] == ['stopped', 'started'])
    # While it is not there.
    host.stop()
    host.guest(run=4)
    host.start()
    host.until(lambda: host.events()[4:] == ['stopped', 'started'])
    assert host.texts() == []


def test_what_it_wrote_last_comes_before_that_it_has_stopped(
        host: Host) -> None:
    """Though it was just read, so that its log is not due yet."""
    host.guest()
    host.begin()
    for number in range(20):
        write(host.log(), b'%d\n' % number)
        host.until(lambda: len(host.texts()) == 2 * number + 1)   # noqa: B023
        # It ends within a line.
        write(host.log(), b'the last')
        host.guest(run=-1)
        host.report()
        host.until(
            lambda: host.events().count('stopped') == number + 1)   # noqa: B023
        assert host.texts()[-1] == 'the last'
        host.guest(run=number + 2)
        host.report()
        host.until(
            lambda: host.events().count('started') == number + 1)   # noqa: B023


def test_nova_undefines_a_guest_for_a_moment(host: Host) -> None:
    host.guest()
    host.begin()
    kept = host.guests.pop(UUID)
    host.report()
    write(host.log(), b'the last\n')
    host.until_text('the last')
    host.guests[UUID] = kept
    host.report()
    write(host.log(), b'and on\n')
    host.until_text('the last', 'and on')
    assert host.events() == []


def test_a_guest_that_comes_is_given_from_its_arrival(host: Host) -> None:
    """What it wrote at another host is in that host's stream."""
    host.begin()
    path = host.log().with_name('console.g1.log')
    path.parent.mkdir()
    path.with_name('console.g1.history').write_bytes(b'elsewhere\n')
    path.write_bytes(b'here\n')
    host.guest(booted=False, path=path)
    host.report()
    host.until_text('here')
    assert host.events() == ['came']


def test_the_rest_of_a_guest_that_left(host: Host) -> None:
    host.guest()
    host.begin()
    host.output.taken.clear()
    write(host.log(), b'first\n')
    time.sleep(0.1)
    write(host.log(), b'second\n')
    left = host.path / f'{UUID}_leaving.0f'
    host.log().parent.rename(left)
    del host.guests[UUID]
    host.report()
    host.output.taken.set()
    host.until(lambda: host.events() == ['left'])
    assert host.texts() == ['first', 'second']


@pytest.mark.parametrize('rotated', [False, True])
def test_the_rest_of_a_log_that_is_removed(host: Host, rotated: bool) -> None:
    """As nova does right after the guest has written its last."""
    host.guest()
    host.begin()
    write(host.log(), b'first\n')
    host.until_text('first')
    host.output.taken.clear()
    write(host.log(), b'second\n')
    # It reads nothing more until that is taken.
    host.until(lambda: 'second' in str(host._stream._waiting))
    write(host.log(), b'third\n')
    if rotated:
        rotate(host.log())
        write(host.log(), b'the last\n')
    for path in host.log().parent.glob('console.log*'):
        path.unlink()
    del host.guests[UUID]
    host.report()
    host.output.taken.set()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['first', 'second', 'third']
    assert host.events() == (['lost', 'left'] if rotated else ['left'])


@pytest.mark.parametrize('place', [
    f'{UUID}_resize', f'{UUID}_leaving.0f', f'{UUID}_deleted',
    f'deleted_console_logs/host/{UUID}.1790000000000.60.9'])
def test_the_rest_of_a_guest_that_left_while_nothing_ran(
        host: Host, place: str) -> None:
    host.guest()
    host.guest('gone')
    host.start()
    host.stop()
    write(host.log(), b'the rest\n')
    (host.path / place).parent.mkdir(parents=True, exist_ok=True)
    host.log().parent.rename(host.path / place)
    host.log('gone').unlink()
    host.guests.clear()
    host.start()
    host.until(lambda: host.events().count('left') == 2)
    assert host.texts() == ['the rest']
    # What the other one wrote, if anything, is lost.
    assert sorted(host.events()) == ['left', 'left', 'lost']
    # That is said once.
    host.stop()
    host.start()
    host.guest('new')
    host.report()
    host.until(lambda: host.events()[3:] == ['started'])


def test_the_rest_of_one_that_left_is_given_though_some_is_lost(
        host: Host) -> None:
    host.guest()
    host.start()
    host.stop()
    for number in range(5):
        write(host.log(), b'%d\n' % number)
        rotate(host.log(), most=2)
    host.log().parent.rename(host.path / f'{UUID}_leaving.0f')
    host.guests.clear()
    host.start()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['2', '3', '4']
    assert host.events() == ['lost', 'left']


def leave_behind(host: Host, rest: bytes) -> Path:
    """Let a guest leave while no stream runs; where its log waits."""
    host.guest()
    host.start()
    host.stop()
    write(host.log(), rest)
    left = host.path / f'{UUID}_leaving.0f'
    host.log().parent.rename(left)
    host.guests.clear()
    return left


def fail_to_read(monkeypatch: pytest.MonkeyPatch, directory: Path,
                 times: int) -> list[str]:
    """Let the disk not give what is in a directory; what was asked of it."""
    asked: list[str] = []
    open_ = os.open

    def opening(path: str, *arguments: Any, **named: Any) -> int:
        if path == str(directory) and len(asked) < times:
            asked.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_(path, *arguments, **named)
    monkeypatch.setattr(os, 'open', opening)
    return asked


@pytest.mark.parametrize(('times', 'given'), [
    (1, True), (guest.LOOKS - 1, True), (999, False)])
def test_the_rest_is_where_a_disk_does_not_give_it(
        host: Host, monkeypatch: pytest.MonkeyPatch, times: int,
        given: bool) -> None:
    """An error is not taken for that it is not there."""
    left = leave_behind(host, b'the rest\n')
    asked = fail_to_read(monkeypatch, left, times)
    host.start()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['the rest'] * given
    assert host.events() == (['left'] if given else ['lost', 'left'])
    assert len(asked) >= min(times, guest.LOOKS)
    if not given:
        [lost] = [one for one in host.output.objects
                  if one.get('event') == 'lost']
        assert lost['bytes'] is None
        assert ('may be missing here, as the guest has left: '
                f'{left}' in lost['message'])
        assert 'Input/output error' in lost['message']


@pytest.mark.parametrize(('times', 'given'), [(2, True), (999, False)])
def test_a_disk_does_not_tell_where_the_rest_is(
        host: Host, monkeypatch: pytest.MonkeyPatch, times: int,
        given: bool) -> None:
    leave_behind(host, b'the rest\n')
    names, failed = outbox.paths, 0

    def paths(*arguments: Any) -> list[str]:
        nonlocal failed
        failed += 1
        if failed <= times:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return names(*arguments)
    monkeypatch.setattr(outbox, 'paths', paths)
    host.start()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['the rest'] * given
    assert host.events() == (['left'] if given else ['lost', 'left'])
    if not given:
        assert 'Input/output error' in str(host.output.objects)


def test_an_error_within_the_rest_gives_no_line_again(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where that was."""
    monkeypatch.setattr(guest, 'CHUNK', 6)
    leave_behind(host, b'line1\nline2\nline3\n')
    pread, read = os.pread, 0

    def failing(fd: int, size: int, offset: int) -> bytes:
        nonlocal read
        if size == 6 and offset == 6:
            read += 1
            if read == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)
    monkeypatch.setattr(os, 'pread', failing)
    host.start()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['line1', 'line2', 'line3']
    assert host.events() == ['left']
    assert read > 1


def test_that_one_has_left_is_known_to_the_next_stream(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon this one is killed: its log may be gone by then."""
    monkeypatch.setattr(service, 'SAVE_INTERVAL', 3600.0)
    host.guest()
    host.begin()
    write(host.log(), b'all\n')
    host.until_text('all')
    host.log().unlink()
    del host.guests[UUID]
    host.report()
    host.until(lambda: (state.load(str(host.state)) or {})[UUID, 0].left)
    host.kill(host.state.read_bytes())
    host.start()
    host.stop()
    assert host.events() == ['left']


def test_that_one_has_come_is_known_to_the_next_stream(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon this one is killed: it may leave by then, too."""
    monkeypatch.setattr(service, 'SAVE_INTERVAL', 3600.0)
    host.begin()

    def run() -> int:
        known = (state.load(str(host.state)) or {}).get((UUID, 0))
        return -1 if known is None or known.left else known.run

    for number, text in enumerate(('first', 'second'), 1):
        path = host.log().with_name(f'console.g{2 * number}.log')
        host.guest(run=number, path=path)
        path.unlink()
        host.report()
        host.until(lambda number=number: run() == number)
        host.kill(host.state.read_bytes())
        write(path, f'{text}\n'.encode())
        host.log().parent.rename(host.path / f'{UUID}_leaving.{number}')
        del host.guests[UUID]
        host.start()
        host.until(lambda number=number: (
            host.events().count('left') == number))
    assert host.texts() == ['first', 'second']


def test_a_port_that_a_guest_has_no_more(host: Host) -> None:
    """What it wrote while no stream ran is given; the guest is here."""
    host.guest()
    one = host.guests[UUID]
    second = host.log().with_name('console.p1.log')
    second.touch()
    host.guests[UUID] = Running(UUID, 'guest', 1, fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(host.log()))
        + fake_libvirt.serial(1, log=str(second))))
    host.begin()
    host.stop()
    write(second, b'of the second port\n')
    host.guests[UUID] = one
    host.start()
    write(host.log(), b'of the first\n')
    host.until(lambda: 'of the first' in host.texts())
    assert sorted(host.texts()) == ['of the first', 'of the second port']
    assert host.events() == []


def test_a_guest_that_was_rotated_and_leaves_loses_nothing(
        host: Host) -> None:
    """All of its files are open, so all is given when their names are gone."""
    host.guest()
    host.begin()
    host.output.taken.clear()
    write(host.log(), b'first\n')
    # It reads nothing more until that is taken.
    host.until(lambda: bool(host._stream._waiting))
    write(host.log(), b'%s\n' % (b'x' * 1023) * 300)
    rotate(host.log())
    write(host.log(), b'last\n')
    half, go_on = threading.Event(), threading.Event()

    def before() -> None:
        if host.texts() == ['first']:
            half.set()
            assert go_on.wait(60)

    host.output.before = before
    host.output.taken.set()
    assert half.wait(60)
    for name in os.listdir(host.log().parent):
        host.log().with_name(name).unlink()
    del host.guests[UUID]
    host.report()
    go_on.set()
    host.until(lambda: host.events()[-1:] == ['left'])
    assert len(host.texts()) == 302
    assert host.texts()[-1] == 'last'
    assert host.events() == ['left']


def test_one_that_is_undefined_as_a_stream_begins_has_not_left(
        host: Host) -> None:
    """nova does so in a hard reboot: its log is where it was."""
    host.guest()
    host.begin()
    write(host.log(), b'first\n')
    host.until_text('first')
    host.stop()
    del host.guests[UUID]
    write(host.log(), b'last\n')
    host.start()
    host.report()
    host.until(lambda: not host._stream._first_report)
    assert host.is_unknown(UUID)
    host.guest(run=2)
    write(host.log(), b'again\n')
    host.report()
    host.until_text('first', 'last', 'again')
    assert host.events() == ['stopped', 'started']


def test_one_that_stays_undefined_has_left(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log may stay where it was, as on shared storage."""
    host.guest()
    host.begin()
    host.stop()
    del host.guests[UUID]
    write(host.log(), b'last\n')
    monkeypatch.setattr(service, '_PATIENCE', 0.2)
    host.start()
    host.until(lambda: host.events() == ['left'])
    host.until_text('last')


def test_a_guest_that_comes_back_goes_on(host: Host) -> None:
    host.guest()
    host.begin()
    write(host.log(), b'first\n')
    host.until_text('first')
    kept = host.log().read_bytes()
    host.log().unlink()
    del host.guests[UUID]
    host.report()
    host.until(lambda: host.events() == ['left'])
    host.stop()
    path = host.log().with_name('console.g2.log')
    path.with_name('console.g2.history').write_bytes(kept + b'elsewhere\n')
    path.write_bytes(b'back\n')
    host.guest(run=5, booted=False, path=path)
    host.start()
    host.until_text('first', 'back')
    assert host.events() == ['left', 'came']


@pytest.mark.parametrize('late', [False, True])
def test_a_guest_that_writes_again_what_it_wrote(
        host: Host, late: bool) -> None:
    """It comes back, and boots as it did before: that is no copy."""
    boots = b'Loading initial ramdisk ...\n' + b'-' * 60 + b'\nlogin:\n'
    lines = boots.decode().splitlines()
    host.guest()
    host.begin()
    write(host.log(), boots)
    host.until_text(*lines)
    # Kept, so that no other file has its inode.
    host.log().rename(host.path / 'away')
    del host.guests[UUID]
    host.report()
    host.until(lambda: host.events() == ['left'])
    path = host.log().with_name('console.g2.log')
    host.guest(run=5, path=path)
    if late:
        path.unlink()
        host.report()
        host.until(lambda: host.events() == ['left', 'started'])
    write(path, boots + b'more\n')
    host.report()
    host.until(lambda: host.texts()[-1:] == ['more'])
    assert host.texts() == [*lines, *lines, 'more']
    assert 'lost' not in host.events()


@pytest.mark.parametrize('begun', [False, True])
def test_a_guest_that_leaves_before_it_was_read(
        host: Host, begun: bool) -> None:
    """Also where it may be that some was rotated away before."""
    host.begin()
    host.guest()
    host.log().unlink()
    host.report()
    host.until(lambda: host.events() == ['started'])
    # It lies where its guest leaves it, before anybody has looked.
    kept = host.path / f'{UUID}_deleted'
    kept.mkdir()
    if begun:
        chain.begin(str(kept / 'console.log'))
    write(kept / 'console.log', b'one\n')
    rotate(kept / 'console.log')
    write(kept / 'console.log', b'two\n')
    del host.guests[UUID]
    host.report()
    host.until(lambda: 'left' in host.events())
    assert host.texts() == ['one', 'two']


def test_guests_that_come_and_leave_while_nobody_takes_lines(
        host: Host) -> None:
    """As one whose boot fails: its log is kept."""
    host.guest()
    host.begin()
    host.output.taken.clear()
    write(host.log(), b'one\n')
    # It takes no news until that is taken.
    host.until(lambda: bool(host._stream._waiting))
    assert host._news is not None
    for uuid in (OTHER, OTHER.replace('1', '2')):
        host.guest(uuid)
        host.report()
        write(host.log(uuid), f'of {uuid}\n'.encode())
        host.log(uuid).parent.rename(host.path / f'{uuid}_deleted')
        del host.guests[uuid]
        # libvirt fails in between.
        host._news.reported(Report(None, None, 'made by the test'))
        host.report()
    host.output.taken.set()
    host.until(lambda: host.events().count('left') == 2)
    assert sorted(host.texts()) == sorted([
        'one', f'of {OTHER}', f'of {OTHER.replace("1", "2")}'])
    assert sorted(host.events()) == ['left', 'left', 'started', 'started']


def test_no_more_of_those_that_left_are_kept_than_are_remembered() -> None:
    news = News()
    for number in range(service.MOST_LEFT + 5):
        news.reported(Report({str(number): Running(
            str(number), 'guest', 1, '')}, None))
    report, passed, _ = news.take()
    assert report is not None
    assert report.guests is not None
    assert [*passed, *report.guests] == [
        str(number) for number in range(4, service.MOST_LEFT + 5)]
    # A report is taken once.
    news.reported(Report({}, None))
    assert news.take()[1] == {}
    news.close()


def test_a_guest_that_comes_back_and_leaves_before_it_was_read(
        host: Host) -> None:
    """What it wrote before waits for another host, and is not given again."""
    host.guest()
    host.begin()
    write(host.log(), b'first\n')
    host.until_text('first')
    host.log().parent.rename(host.path / f'{UUID}_leaving.1')
    del host.guests[UUID]
    host.report()
    host.until(lambda: host.events() == ['left'])
    path = host.log().with_name('console.g2.log')
    host.guest(run=5, path=path)
    path.unlink()
    host.report()
    host.until(lambda: host.events() == ['left', 'started'])
    kept = host.path / f'{UUID}_deleted'
    kept.mkdir()
    write(kept / path.name, b'second\n')
    del host.guests[UUID]
    host.report()
    host.until(lambda: host.events() == ['left', 'started', 'left'])
    assert host.texts() == ['first', 'second']


@pytest.mark.parametrize('late', [False, True])
def test_a_guest_that_has_its_old_log_again(host: Host, late: bool) -> None:
    """libvirt did not know it for a while: nothing is given twice."""
    host.guest()
    host.begin()
    write(host.log(), b'first\n')
    host.until_text('first')
    away = host.log().rename(host.path / 'away')
    del host.guests[UUID]
    host.report()
    host.until(lambda: host.events() == ['left'])
    if not late:
        away.rename(host.log())
    host.guest(run=5, path=host.log() if not late else None)
    if late:
        host.log().unlink()
        host.report()
        host.until(lambda: host.events() == ['left', 'started'])
        away.rename(host.log())
    write(host.log(), b'second\n')
    host.report()
    host.until_text('first', 'second')
    # From now on what is lost is said.
    for _ in range(2):
        rotate(host.log(), most=0)
    write(host.log(), b'third\n')
    host.until(lambda: host.texts()[-1:] == ['third'])


def test_a_guest_that_goes_on_at_another_path(host: Host) -> None:
    """In the same directory, as where nova's own driver had the guest."""
    host.guest()
    host.begin()
    write(host.log(), b'one\n')
    host.until_text('one')
    write(host.log(), b'two\n')
    path = host.log().with_name('console.g1.log')
    chain.begin(str(path))
    host.guest(run=2, path=path)
    write(path, b'three\n')
    host.report()
    host.until_text('one', 'two', 'three')


def test_what_it_wrote_last_before_its_log_was_elsewhere(host: Host) -> None:
    """Its domain was edited while it ran: that counts from its stop on."""
    host.guest()
    host.begin()
    write(host.log(), b'one\n')
    host.until_text('one')
    write(host.log(), b'two\n')
    path = host.path / 'elsewhere' / 'guest.log'
    host.guest(run=-1, path=path)
    host.report()
    host.until(lambda: 'stopped' in host.events())
    write(path, b'three\n')
    host.until_text('one', 'two', 'three')


def test_each_line_has_its_start(host: Host) -> None:
    host.guest()
    boot.add(str(host.log().parent), boot.Boot(1000.0, {0: None}))
    host.begin()
    write(host.log(), b'of the first\nof the fir')
    host.until(lambda: len(host.texts()) == 2)
    boot.add(str(host.log().parent),
             boot.Boot(2000.0, {0: end_of(str(host.log()))}))
    write(host.log(), b'of the second\n')
    host.until(lambda: len(host.texts()) == 3)
    assert [one['boot'] for one in host.output.objects] == [
        {'number': 1, 'start': '1970-01-01T00:16:40.000Z'},
        {'number': 1, 'start': '1970-01-01T00:16:40.000Z'},
        {'number': 2, 'start': '1970-01-01T00:33:20.000Z'}]


def test_starts_within_one_read(host: Host) -> None:
    host.guest()
    host.start()
    host.stop()
    for number in range(3):
        boot.add(str(host.log().parent), boot.Boot(
            float(number), {0: end_of(str(host.log())) if number else None}))
        write(host.log(), b'%d\n' % number)
        if number == 1:
            rotate(host.log())
    host.start()
    host.until_text('0', '1', '2')
    assert [one['boot']['number'] for one in host.output.objects] == [
        1, 2, 3]


def test_a_log_that_died(host: Host) -> None:
    host.guest()
    host.begin()
    write(host.log(), b'x\n')
    host.until_text('x')
    host.asked(log='alive')
    host.asked('virtlogd is down', log='unknown')
    host.until(lambda: host.events() == ['virtlogd_down'])
    host.asked(log='dead')
    host.until(lambda: host.events()[1:] == ['virtlogd_up', 'died'])
    host.asked(log='alive')
    host.until(lambda: host.events()[3:] == ['revived'])


def test_a_log_that_is_dead_for_longer_than_virtlogd(host: Host) -> None:
    """What is said of it is true, and said once."""
    host.guest()
    host.begin()
    host.asked(log='dead')
    host.until(lambda: host.events() == ['died'])
    host.asked('virtlogd is down')
    host.until(lambda: host.events()[1:] == ['virtlogd_down'])
    host.asked(log='unknown')
    host.until(lambda: host.events()[2:] == ['virtlogd_up'])
    host.asked('virtlogd is down again', log='dead')
    host.until(lambda: len(host.events()) > 3)
    host.asked(log='alive')
    host.until(lambda: host.events()[3:] == [
        'virtlogd_down', 'virtlogd_up', 'revived'])


def test_only_the_guests_that_are_named(host: Host) -> None:
    host.start('web', 'ABCD')
    host.stop()
    host.start('web', 'ABCD')
    for uuid, name in (('1', 'web-1'), ('abcd-2', 'db'), ('3', 'mail')):
        host.guest(uuid, name=name)
        write(host.log(uuid), b'%s\n' % name.encode())
    host.report()
    host.until(lambda: len(host.texts()) == 2)
    assert sorted(host.texts()) == ['db', 'web-1']


def test_libvirt_that_does_not_answer_ends_nothing(host: Host) -> None:
    host.guest()
    host.begin()
    write(host.log(), b'one\n')
    host.until_text('one')
    assert host._news is not None
    host._news.reported(Report(None, None, 'libvirt is down.'))
    write(host.log(), b'two\n')
    host.until_text('one', 'two')
    assert host.events() == []


def test_a_state_file_that_cannot_be_written(host: Host) -> None:
    host.state = host.path / 'none' / 'state'
    host._news = News()
    stream = Stream('host', host.output,
                    _logs(_store()), host._news,
                    state_file=str(host.state))
    with pytest.raises(exception.InvalidState,
                       match=r'No such file.*See to its directory'):
        stream.run()


def test_a_log_that_cannot_be_read_for_a_while(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest may write no more: what it wrote is given all the same."""
    monkeypatch.setattr(service, '_COMPARE', 0.05)
    host.guest()
    host.begin()
    write(host.log(), b'before\n')
    host.until_text('before')
    failed = 0

    def fail(*_: int) -> bytes:
        nonlocal failed
        failed += 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, 'pread', fail)
        write(host.log(), b'panic\n')
        # Its file was looked at since, and has not changed.
        host.until(lambda: failed > 4)
    host.until_text('before', 'panic')
    assert host.events() == []


def test_two_guests_with_one_log(
        host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.begin()
    host.guest()
    host.guest('other', name='other', path=host.log())
    host.report()
    write(host.log(), b'whose?\n')
    host.until_text('whose?')
    assert 'Give each a log of its own' in caplog.text
    for uuid in ('other', UUID):
        del host.guests[uuid]
        host.log().rename(host.log().with_name('console.gone'))
        host.report()
        host.until(functools.partial(host.is_unknown, uuid))
        host.log().touch()
    assert host.texts() == ['whose?']


def test_what_two_guests_with_one_log_wrote_is_given_once(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, '_PATIENCE', 0.3)
    host.guest()
    host.begin()
    write(host.log(), b'one\n')
    host.until_text('one')
    host.guest(OTHER, path=host.log())
    host.report()
    write(host.log(), b'both\n')
    host.until_text('one', 'both')
    del host.guests[UUID]
    host.report()
    host.until(lambda: 'left' in host.events())
    write(host.log(), b'other\n')
    host.until_text('one', 'both', 'other')
    assert [one['uuid'] for one in host.output.objects if 'text' in one] == [
        UUID, UUID, OTHER]


def test_a_guest_that_is_defined_anew_with_another_uuid(
        host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log is where that of the old one was, and is."""
    monkeypatch.setattr(service, '_PATIENCE', 0.3)
    host.guest()
    host.begin()
    write(host.log(), b'old\n')
    host.until_text('old')
    del host.guests[UUID]
    host.guest(OTHER, path=host.log())
    host.report()
    host.until(lambda: 'left' in host.events())
    write(host.log(), b'new\n')
    host.until(lambda: 'new' in host.texts())
    assert [(one['uuid'], one['text']) for one in host.output.objects
            if 'text' in one] == [(UUID, 'old'), (OTHER, 'new')]
    # As it was until now.
    host.stop()
    host.start()
    write(host.log(), b'more\n')
    host.until_text('old', 'new', 'more')


def test_what_is_read_at_once_is_bounded(host: Host) -> None:
    """However many guests have written while nobody took anything."""
    host.begin()
    line = b'x' * 49_999 + b'\n'
    for number in range(20):
        host.guest(f'{number}', name=f'guest-{number}')
        write(host.log(f'{number}'), line * 20)
    most = 0
    take = host.output.write

    def measure(waiting: list[str]) -> None:
        nonlocal most
        most = max(most, sum(map(len, waiting)))
        take(waiting)

    host.output.write = measure   # type: ignore[method-assign]
    host.report()
    host.until(lambda: len(host.texts()) == 400)
    assert 1 << 19 < most < 3 << 20


def test_line_ends_alone_are_bounded_as_other_lines_are(host: Host) -> None:
    """Each is an object, of some hundred times its size."""
    host.begin()
    for number in range(3):
        host.guest(f'{number}', name=f'guest-{number}')
        write(host.log(f'{number}'), b'\n' * (3 * CHUNK))
    most = given = 0

    def measure(waiting: list[str]) -> None:
        nonlocal most, given
        most = max(most, len(waiting))
        given += sum('"text": ""' in one for one in waiting)
        waiting.clear()

    host.output.write = measure   # type: ignore[method-assign]
    host.report()
    host.until(lambda: given == 9 * CHUNK)
    assert most < 3 * CHUNK
