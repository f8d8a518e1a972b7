# SPDX-License-Identifier: Apache-2.0
"""The power fails while what a guest wrote is moved, on a real ext4.

The file system is on a loop device. Before each changing system call of an
operation its image is copied, as the device has it at that moment: what the
kernel has not written out yet is not there. Each copy is mounted, and what
comes next after a power cut is done.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.history import crash, test_deleted
from tests.unit.history.hosts import (
    AFTER,
    BEFORE,
    Host,
    Pair,
    fill,
    finish_revert,
)
from tests.unit.history.test_crash_points import HERE, TO_ANOTHER
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import boot, deleted, history

#: Of the image; ext4 has a journal from there on.
SIZE = 8 << 20


@pytest.fixture(autouse=True)
def _no_virtlogd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history.health, 'wait_until_closed',
                        lambda *_: True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'image'
    with path.open('wb') as file:
        file.truncate(SIZE)
    subprocess.run(['mkfs.ext4', '-q', '-F', path], check=True)
    # There are none in the /dev of these tests.
    for name, kind, number in [
            ('loop-control', 'c', (10, 237)),
            *[(f'loop{n}', 'b', (7, n)) for n in range(16)]]:
        if not os.path.lexists(f'/dev/{name}'):
            subprocess.run(['mknod', f'/dev/{name}', kind,
                            *map(str, number)], check=True)
    return path


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    where = image.with_suffix('.mounted')
    where.mkdir(exist_ok=True)
    # It writes nothing out by itself for as long as a test takes.
    subprocess.run(['mount', '-o', 'loop,commit=1000', image, where],
                   check=True)
    try:
        yield where
    finally:
        # Logs are held open for a while after they were read.
        reader._store.close()
        subprocess.run(['umount', where], check=True)


def cut_at_each_call(image: Path, program: Callable[[], object],
                     machine: crash.Machine) -> list[Path]:
    """Copies of the image, one for each call and one for the end."""
    copies: list[Path] = []

    def cut() -> None:
        copies.append(image.with_name(f'cut{len(copies)}'))
        subprocess.run(['cp', '--sparse=always', image, copies[-1]],
                       check=True)
    machine.before = cut
    assert machine.run(program)
    cut()
    return copies


def mapped(host: Host, where: Path) -> Host:
    return Host(where / host.path.name)


@pytest.mark.parametrize('operation', HERE)
def test_on_one_host(image: Path, operation: str) -> None:
    with mounted(image) as where:
        host = Host(where / 'host')
        fill(host.directory)
        os.sync()
        machine = crash.Machine(sync=True)
        copies = cut_at_each_call(
            image, lambda: HERE[operation](host), machine)
    for number, copy in enumerate(copies):
        point = (machine.calls[number] if number < len(machine.calls)
                 else 'the end')
        with mounted(copy) as where:
            host = Host(where / 'host')
            finish_revert(host)
            host.start()
            host.write(AFTER)
            assert host.text() == BEFORE + AFTER, point
            assert [noted.time for noted in boot.read(
                host.directory)] == [1.0, 2.0], point
        copy.unlink()
    print(f'{operation}: the power was cut {len(copies)} times')


class Settled(Pair):
    """What the guest itself writes is on the disk by then."""

    def write_there(self) -> None:
        super().write_there()
        os.sync()
        self.moved_at.append(len(self.machine.calls))

    def __init__(self, path: Path, machine: crash.Machine) -> None:
        super().__init__(path)
        self.machine = machine
        self.moved_at: list[int] = []


@pytest.mark.parametrize('operation', TO_ANOTHER)
def test_to_another_host(image: Path, operation: str) -> None:
    with mounted(image) as where:
        machine = crash.Machine(sync=True)
        pair = Settled(where / 'pair', machine)
        fill(pair.source.directory)
        os.sync()
        copies = cut_at_each_call(
            image, lambda: TO_ANOTHER[operation](pair), machine)
        (moved,) = pair.moved_at
    for number, copy in enumerate(copies):
        point = (machine.calls[number] if number < len(machine.calls)
                 else 'the end')
        with mounted(copy) as where:
            path = where / 'pair'
            aside = where / 'aside'
            path.rename(aside)
            pair = Pair(path)
            shutil.rmtree(path)
            aside.rename(path)
            if number >= moved:
                pair.at = pair.destination
                pair.written = b'there\n'
            else:
                finish_revert(pair.source)
            pair.restart()
            pair.restart()
            pair.at.start()
            pair.at.write(AFTER)
            assert pair.at.text() == BEFORE + pair.written + AFTER, point
        copy.unlink()
    print(f'{operation}: the power was cut {len(copies)} times')


@pytest.fixture
def _at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the logs of deleted guests, which are kept for a while."""
    monkeypatch.setattr(history.time, 'time', lambda: test_deleted.NOW)


@pytest.mark.usefixtures('_at_a_time')
@pytest.mark.parametrize('state', test_deleted.BEGINNINGS)
def test_the_log_of_a_deleted_guest(image: Path, state: str) -> None:
    """nova-compute starts, and deletes the server again."""
    with mounted(image) as where:
        host = Host(where / 'host')
        test_deleted.BEGINNINGS[state](host)
        os.sync()
        machine = crash.Machine(sync=True)
        copies = cut_at_each_call(
            image, lambda: test_deleted.delete(host), machine)
    for number, copy in enumerate(copies):
        point = (machine.calls[number] if number < len(machine.calls)
                 else 'the end')
        with mounted(copy) as where:
            host = Host(where / 'host')
            test_deleted.start_then_delete(host)
            test_deleted.look_around(host)
            (one,) = test_deleted.kept(host)
            assert test_deleted.text(one) == BEFORE, point
            assert [noted.time for noted in boot.read(one.entry.path)] == [
                1.0, 2.0], point
            assert os.listdir(host.path) == [deleted.DIRECTORY], point
        copy.unlink()
    print(f'{state}: the power was cut {len(copies)} times')


@pytest.mark.usefixtures('_at_a_time')
def test_cleaning(image: Path) -> None:
    """What is half removed is shown to nobody, and what stays is whole."""
    with mounted(image) as where:
        host = Host(where / 'host')
        for ago in (test_deleted.HOUR, 0):
            fill(host.directory)
            deleted.keep(test_deleted.keeping(host), host.directory,
                         test_deleted.ABOUT, test_deleted.NOW - ago)
            host.nova_deletes()
        os.sync()
        machine = crash.Machine(sync=True)
        copies = cut_at_each_call(
            image, lambda: test_deleted.look_around(host), machine)
    for number, copy in enumerate(copies):
        point = (machine.calls[number] if number < len(machine.calls)
                 else 'the end')
        with mounted(copy) as where:
            host = Host(where / 'host')
            for one in test_deleted.kept(host):
                assert test_deleted.text(one) == BEFORE, point
            test_deleted.look_around(host)
            (one,) = test_deleted.kept(host)
            assert one.entry.when == test_deleted.NOW * 1000, point
            assert test_deleted.text(one) == BEFORE, point
        copy.unlink()
    print(f'the power was cut {len(copies)} times')
