# SPDX-License-Identifier: Apache-2.0
"""Hosts have each a directory, and the driver on it, which can be killed.

A pair of them stands for what nova does as a guest goes from one to another.
"""

import contextlib
import os
import pathlib
import shutil
from dataclasses import dataclass, field

from oslo_concurrency import processutils

from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.history import (
    boot,
    delivery,
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
    sender: delivery.Delivery = field(init=False)
    live: str = ''

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)
        self.restart()

    def restart(self) -> None:
        self.kept = history.History(
            self.copy, LIMIT, 0.01, '/no/virtlogd')
        self.sender = delivery.Delivery(self.copy, LIMIT, 0.01)

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
        # What was deleted stays open for a while.
        reader.forget(self.directory)
        (name,) = logs.newest(self.directory) or ['console.log']
        return reader.read_tail(
            os.path.join(self.directory, name), LIMIT).data

    def files(self) -> bytes:
        """All that there is, as of written."""
        return written(self.directory)

    def nova_deletes(self, directory: str | None = None) -> None:
        directory = directory or self.directory
        with contextlib.suppress(OSError):
            os.rename(directory, f'{self.directory}_del')
        with contextlib.suppress(OSError):
            shutil.rmtree(f'{self.directory}_del')

    def attempt(self, where: delivery.Where) -> None:
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


def written(directory: str) -> bytes:
    """All that a directory has of a log, in order, where it need not be sure
    that it is contiguous: where no file can be begun, or one was by another
    driver.
    """
    names = files.names(directory)
    return b''.join(
        pathlib.Path(directory, name).read_bytes()
        for number in range(10)
        for name in generation.files_of(names, 0, number))


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


#: Stands for the other host's instances_path.
ADDRESS = '192.0.2.9'
THERE_DIRECTORY = f'{ADDRESS}/{GUEST}'


def to(directory: str = THERE_DIRECTORY) -> delivery.Where:
    """Where the guest is."""
    return lambda departure: delivery.Target(ADDRESS, directory)


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
    source.kept.leave(None, GUEST, path, source.directory)
    source.nova_deletes()
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


def waiting(host: Host) -> list[outbox.Waiting]:
    return outbox.waiting(str(host.path))


def refuse(host: Host, reason: str = 'Connection refused') -> None:
    """Let every copy fail, until host.copy is deleted."""
    def copy(*_: object, **__: object) -> None:
        raise processutils.ProcessExecutionError(stderr=reason)
    host.copy = copy
    host.restart()
