# SPDX-License-Identifier: Apache-2.0
"""Every operation that moves a log is stopped before each changing call.

Then each of what may come next finishes it: nothing of the log is lost,
doubled or out of order. A kill, a full disk and a broken one, for one call
and from it on; each from a sound state and from what an earlier crash left.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from oslo_concurrency import processutils

from tests.unit.history import crash
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.history import (
    boot,
    files,
    history,
    inbox,
    logs,
    outbox,
)

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
LIMIT = 1 << 20
BEFORE = b'one\ntwo\nthree\nfour\n'
#: What a guest writes at the other host, and after all.
THERE, AFTER = b'there\n', b'after\n'


@dataclass
class Host:
    """A host's instances_path, and the driver on it, which can be killed."""

    path: pathlib.Path
    other: 'Host | None' = None
    kept: history.History = field(init=False)
    live: str = ''

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        self.kept = history.History(
            self.copy, LIMIT, 0.01, '/no/virtlogd')

    @property
    def directory(self) -> str:
        return str(self.path / GUEST)

    @property
    def resized(self) -> str:
        return f'{self.directory}_resize'

    def place(self, directory: str | None = None) -> inbox.Place:
        return inbox.Place(directory or self.directory, LIMIT)

    def copy(self, source: str, destination: str, *, host: str,
             receive: bool = False, **_: object) -> None:
        """As "scp -r" does, between the directories of two hosts."""
        assert self.other is not None
        try:
            if receive:
                _copy(source.replace(host, str(self.other.path)),
                      destination)
            else:
                _copy(source, destination.replace(
                    host, str(self.other.path)))
        except FileNotFoundError as e:
            raise processutils.ProcessExecutionError(stderr=str(e)) from e

    def recover(self, *, idle: bool = True) -> None:
        self.kept.recover(None, GUEST, inbox.Place(
            self.directory, LIMIT, in_use=None if idle else {}))

    def start(self, least: int = 0) -> None:
        """As a hard reboot does."""
        os.makedirs(self.directory, exist_ok=True)
        self.recover()
        self.live = os.path.join(self.directory, generation.live_name(
            0, max(least, logs.live_generation(self.directory, 0))))
        with contextlib.suppress(OSError):
            history.begin_logs([self.live])

    def write(self, data: bytes) -> None:
        """What the guest writes, through virtlogd."""
        with open(self.live, 'ab') as file:
            file.write(data)

    def text(self) -> bytes:
        (name,) = logs.newest(self.directory) or ['console.log']
        return reader.read_tail(
            os.path.join(self.directory, name), LIMIT).data

    def files(self) -> bytes:
        """All that there is, in order, where it need not be sure that it is
        contiguous: where no file can be begun, for one."""
        names = files.names(self.directory)
        return b''.join(
            pathlib.Path(self.directory, name).read_bytes()
            for number in range(10)
            for name in generation.files_of(names, 0, number))

    def nova_deletes(self, directory: str | None = None) -> None:
        directory = directory or self.directory
        with contextlib.suppress(OSError):
            os.rename(directory, f'{self.directory}_del')
        with contextlib.suppress(OSError):
            shutil.rmtree(f'{self.directory}_del')

    def attempt(self, where: history.Where) -> None:
        for path in outbox.paths(str(self.path), GUEST):
            for _ in range(3):
                if self.kept.attempt(path, where) is None:
                    break
                if self.other is not None:
                    for directory in (self.other.directory,
                                      self.other.resized):
                        self.other.kept.receive(
                            None, GUEST, self.other.place(directory))


def _copy(source: str, destination: str) -> None:
    there = os.path.join(destination, os.path.basename(source))
    if os.path.isdir(source):
        shutil.copytree(source, there, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, there)


def fill(directory: str, number: int = 0) -> None:
    """A guest's log with a backup, and the starts of the guest."""
    os.makedirs(directory, exist_ok=True)
    live = os.path.join(directory, generation.live_name(0, number))
    boot.write(directory, [boot.Boot(1.0, {0: None})])
    while True:
        chain.begin(live)
        pathlib.Path(live).write_bytes(BEFORE[:8])
        os.rename(live, f'{live}.0')
        pathlib.Path(live).write_bytes(BEFORE[8:])
        if reader.read_tail(live, LIMIT).data == BEFORE:
            break
        # This process has paused where virtlogd would not, in a rotation
        # (neighbours.py).
        os.unlink(live)
        os.unlink(f'{live}.0')
    boot.add(directory, boot.Boot(2.0, {
        0: reader.read_tail(live, LIMIT).position}))
    pathlib.Path(directory, 'disk').write_bytes(b'disk')


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: tests/functional/test_power.py does that."""
    monkeypatch.setattr(os, 'fsync', lambda fd: None)
    monkeypatch.setattr(history.health, 'wait_until_closed',
                        lambda *_: True)


# What a crash has left before

def sound(host: Host) -> None:
    fill(host.directory)


def half_aside(host: Host) -> None:
    """A rebuild was killed amid its renames."""
    fill(host.directory)
    os.mkdir(logs.aside_directory(host.directory))
    os.rename(f'{host.directory}/console.log.0',
              f'{logs.aside_directory(host.directory)}/console.log.0')


def all_aside(host: Host) -> None:
    """A rebuild was killed after nova had deleted the directory."""
    fill(host.directory)
    os.rename(host.directory, logs.aside_directory(host.directory))
    os.mkdir(host.directory)


def half_resized(host: Host) -> None:
    fill(host.directory)
    os.rename(host.directory, host.resized)
    os.mkdir(host.directory)
    os.rename(f'{host.resized}/console.log', f'{host.directory}/console.log')


STATES = {f.__name__: f for f in (sound, half_aside, all_aside,
                                  half_resized)}


# What nova and the driver do

def rebuild(host: Host) -> None:
    with host.kept.alone(GUEST):
        host.kept.set_aside(None, host.directory)
        host.nova_deletes()
        host.kept.put_back(None, host.directory)


def resize_here(host: Host) -> None:
    host.recover()
    if os.path.exists(host.resized):
        shutil.rmtree(host.resized)
    os.rename(host.directory, host.resized)
    os.mkdir(host.directory)
    host.kept.take_along(None, GUEST, host.resized, host.directory)


def revert_here(host: Host) -> None:
    """Of a resize that has gone well."""
    resize_here(host)
    finish_revert(host)


def finish_revert(host: Host) -> None:
    """As nova-compute does by itself, too, when it starts amid a resize."""
    if not os.path.isdir(host.resized):
        return
    if os.path.isdir(host.directory):
        host.kept.bring_back(None, GUEST, host.directory)
        if logs.names(host.directory):
            return
        shutil.rmtree(host.directory)
    os.rename(host.resized, host.directory)


HERE = {f.__name__: f for f in (rebuild, resize_here, revert_here)}


# What comes next

def read(host: Host) -> None:
    host.recover(idle=False)


def start(host: Host) -> None:
    host.start()


def another_rebuild(host: Host) -> None:
    os.makedirs(host.directory, exist_ok=True)
    rebuild(host)


def a_resize(host: Host) -> None:
    os.makedirs(host.directory, exist_ok=True)
    resize_here(host)


def start_of_nova_compute(host: Host) -> None:
    finish_revert(host)
    host.recover()


NEXT = {f.__name__: f for f in (read, start, another_rebuild, a_resize,
                                start_of_nova_compute)}


def _boots(host: Host) -> list[float]:
    return [noted.time for noted in boot.read(host.directory)]


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('operation', HERE)
def test_on_one_host(operation: str, state: str, tmp_path: pathlib.Path,
                     record_property: Callable[[str, object], None]) -> None:
    counted = crash.Machine()
    host = Host(tmp_path / 'count')
    STATES[state](host)
    assert counted.run(lambda: HERE[operation](host))
    host.start()
    host.write(AFTER)
    assert host.text() == BEFORE + AFTER
    number = 0
    for at, kind, lasting in crash.points(counted.calls):
        for following in NEXT:
            number += 1
            host = Host(tmp_path / str(number))
            STATES[state](host)
            machine = crash.Machine(at, kind, lasting)
            point = (f'{kind} at {counted.calls[at]}, '
                     f'{"lasting, " if lasting else ""}then {following}')
            with contextlib.suppress(OSError):
                machine.run(lambda host=host: HERE[operation](host))
            host.restart()
            NEXT[following](host)
            host.start()
            host.write(AFTER)
            assert host.text() == BEFORE + AFTER, point
            assert _boots(host) == [1.0, 2.0], point
            shutil.rmtree(host.path)
    record_property('points', number)
    print(f'{operation} from {state}: {number} points')


# Between two hosts

#: Stands for the other host's instances_path.
ADDRESS = '192.0.2.9'
THERE_DIRECTORY = f'{ADDRESS}/{GUEST}'


def to(directory: str = THERE_DIRECTORY) -> history.Where:
    """Where the guest is."""
    return lambda departure: history.Target(ADDRESS, directory)


def departure(stint: dict[int, int] | None = None) -> outbox.Departure:
    return outbox.begin_departure(
        GUEST, ADDRESS, 'other', THERE_DIRECTORY, {0: 1}, stint)


class Pair:
    """A source and a destination, and where the guest is."""

    def __init__(self, path: pathlib.Path) -> None:
        path.mkdir()
        self.source = Host(path / 'source')
        self.destination = Host(path / 'destination', self.source)
        self.source.other = self.destination
        self.at = self.source
        self.written = b''

    def write_there(self) -> None:
        self.at = self.destination
        self.destination.write(THERE)
        self.written = THERE

    def arrive_cold(self) -> None:
        """finish_migration of a driver that was told what will come."""
        there = self.destination
        there.kept.receive(None, GUEST, there.place())
        with contextlib.suppress(OSError):
            if not logs.ports(there.directory):
                chain.begin(f'{there.directory}/console.g1.log')
        there.start(least=1)
        self.write_there()

    def restart(self) -> None:
        """Both are started again, and try until all is done."""
        for host in (self.source, self.destination):
            host.restart()
            inbox.discard_incomplete(host.place())
            if os.path.isdir(host.directory):
                host.kept.receive(None, GUEST, host.place())
            for directory in outbox.unsent(str(host.path)):
                if self.at is not host:
                    host.kept.prepare(None, directory, departure())
            for path in outbox.paths(str(host.path), GUEST):
                host.kept.resume(
                    path, None if self.at is host else departure())
            host.attempt(to())


def live(pair: Pair) -> None:
    source, there = pair.source, pair.destination
    os.mkdir(there.directory)
    there.live = f'{there.directory}/console.g1.log'
    history.begin_logs([there.live])
    path = source.kept.prepare(None, source.directory, departure())
    pair.write_there()
    path = source.kept.leave(None, GUEST, path, source.directory)
    source.nova_deletes()
    assert path is None or os.path.isdir(path)
    source.attempt(to())


def cold(pair: Pair) -> None:
    source = pair.source
    os.rename(source.directory, source.resized)
    os.mkdir(pair.destination.directory)
    path = source.kept.prepare(None, source.directory, departure())
    if path is not None:
        source.kept.attempt(path, to())
    pair.arrive_cold()
    source.attempt(to())


def confirmed(pair: Pair) -> None:
    cold(pair)
    confirm(pair)


def confirm(pair: Pair) -> None:
    source = pair.source
    source.kept.confirm(None, GUEST, source.directory)
    shutil.rmtree(source.resized, ignore_errors=True)


TO_ANOTHER = {f.__name__: f for f in (live, cold, confirmed)}


@pytest.mark.parametrize('operation', TO_ANOTHER)
def test_to_another_host(operation: str, tmp_path: pathlib.Path) -> None:
    counted = crash.Machine()
    pair = Pair(tmp_path / 'count')
    fill(pair.source.directory)
    assert counted.run(lambda: TO_ANOTHER[operation](pair))
    assert outbox.waiting(str(pair.source.path)) == []
    assert pair.destination.text() == BEFORE + THERE
    number = 0
    for at, kind, lasting in crash.points(counted.calls):
        number += 1
        pair = Pair(tmp_path / str(number))
        fill(pair.source.directory)
        point = (f'{kind} at {counted.calls[at]}, '
                 f'{"lasting" if lasting else ""}')
        with contextlib.suppress(OSError):
            crash.Machine(at, kind, lasting).run(
                lambda pair=pair: TO_ANOTHER[operation](pair))
        if pair.at is pair.source:
            finish_revert(pair.source)
        pair.restart()
        pair.restart()
        pair.at.start()
        pair.at.write(AFTER)
        expected = BEFORE + pair.written + AFTER
        if not lasting and not counted.calls[at].endswith(".g1.log'"):
            assert pair.at.text() == expected, point
        elif lasting and os.path.isdir(pair.source.directory) and (
                pair.at is pair.destination):
            # Nova could not delete it either.
            assert pair.source.files() + pair.at.files() == expected, point
        else:
            assert pair.at.files() == expected, point
        if not lasting:
            assert _boots(pair.at) == [1.0, 2.0], point
        assert [w for host in (pair.source, pair.destination)
                for w in outbox.waiting(str(host.path))] == [], point
        shutil.rmtree(tmp_path / str(number))
    print(f'{operation}: {number} points')
