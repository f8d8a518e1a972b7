# SPDX-License-Identifier: Apache-2.0
"""Logs stay open between reads, and every file is closed in the end."""

import contextlib
import os
import pathlib
import random
import tempfile
import threading
import time
from collections.abc import Mapping

import hypothesis
import pytest
from hypothesis import strategies

from tests.unit import descriptors
from tests.unit.console_log.rotating import MemoryDirectory, Rotator
from tests.unit.console_log.schedule import Schedule
from virtlogd_driver import exception
from virtlogd_driver.console_log import (
    chain,
    descriptor_store,
    generation,
    log,
)
from virtlogd_driver.console_log.chain import Segment
from virtlogd_driver.console_log.descriptor_store import DescriptorStore, Key
from virtlogd_driver.console_log.directory import Files, open_directory
from virtlogd_driver.console_log.log import Taken, Wanted


class Opener:
    """Opens real logs, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: str, wanted: Wanted,
                 held: Mapping[Key, Segment]) -> Taken:
        self.calls += 1
        directory, name = os.path.split(path)
        with open_directory(directory) as opened:
            taken = log.take(opened, name, wanted)
        taken.keep(held, Files())
        return taken


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(opener: Opener, clock: Clock) -> DescriptorStore:
    return DescriptorStore(opener, clock=clock, sweeper=False)


@pytest.fixture
def live(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'guest/console.log'
    path.parent.mkdir()
    path.write_bytes(b'0')
    return path


def append(path: pathlib.Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(live: pathlib.Path, backups: int = 3) -> None:
    for number in range(backups - 1, -1, -1):
        old = live.with_name(f'console.log.{number - 1}') if number else live
        if old.exists():
            old.rename(live.with_name(f'console.log.{number}'))
    live.touch()


# Exactness

@pytest.mark.parametrize('seed', range(120))
def test_random_schedules(seed: int) -> None:
    schedule = Schedule(random.Random(seed), kept=True)  # noqa: S311
    for steps in (0, 0, 1, 4, 30):
        schedule.go_on(steps)
        schedule.tail()
    schedule.follow(4)
    schedule.tail()
    schedule.close()


@pytest.mark.parametrize('backups', [1, 3])
def test_over_hundreds_of_rotations(backups: int) -> None:
    """Inodes are used again at once; reads are rare, or one a rotation."""
    directory = MemoryDirectory()
    rotator = Rotator(directory, backups)
    rotator.open()
    store = DescriptorStore(directory.open_log, directory, sweeper=False)
    for turn in range(400):
        for _ in rotator.steps(iter([7] * (1 if turn % 50 else 9))):
            pass
        rotator.write(3)
        read = store.read_tail('/memory/console.log', 99, backups)
        assert read.exact
        assert rotator.is_stream(rotator.kept_from(), read.data)
        assert len(read.data) == rotator.written - rotator.kept_from()
        # Those of before are closed.
        assert len(directory.opened) == store.descriptors() == backups + 1
    store.close()
    assert not directory.opened


# What a read costs

def test_one_call_a_rotation(store: DescriptorStore, opener: Opener,
                             live: pathlib.Path) -> None:
    path = str(live)
    position = None
    for turn in range(1, 8):
        for more in range(3):
            append(live, b'x%d' % more)
            read = store.read_tail(path, 99)
            assert read.exact
            assert read.data.endswith(b'x0x1x2'[:2 * more + 2])
            since = store.read_from(path, position, 99)
            position = since.position
            assert opener.calls <= turn + 1   # and one for the beginning
        rotate(live)
    store.close()


def test_less_and_more_than_was_read(store: DescriptorStore, opener: Opener,
                                     live: pathlib.Path) -> None:
    rotate(live)
    append(live, b'12')
    for limit, calls in ((2, 1), (1, 1), (3, 2), (99, 3), (3, 3), (99, 3)):
        assert store.read_tail(str(live), limit).data == b'012'[-limit:]
        assert opener.calls == calls
    store.close()


def test_a_history_that_comes(store: DescriptorStore,
                              live: pathlib.Path) -> None:
    """The live file is the same; what is older was not there before."""
    live.unlink()
    first = live.with_name('console.g1.log')
    chain.begin(str(first))
    append(first, b'new')
    assert store.read_tail(str(first), 99).data == b'new'
    assert store.read_tail(str(first), 99).data == b'new'
    live.with_name('console.g1.history').write_bytes(b'old')
    read = store.read_tail(str(first), 99)
    assert (read.data, read.exact) == (b'oldnew', True)
    assert store.read_from(str(first), None, 99).data == b'old'
    store.close()


#: What may come beside a log of generation 3 while it is read.
COMES = [*(generation.live_name(0, number) for number in range(3)),
         *(generation.history_name(0, number) for number in range(4))]


@hypothesis.given(strategies.permutations(COMES),
                  strategies.integers(0, len(COMES)))
@hypothesis.settings(max_examples=200)
def test_whatever_comes_it_is_read_as_if_it_had_been_there(
        names: list[str], there: int) -> None:
    with (tempfile.TemporaryDirectory() as directory,
          contextlib.closing(DescriptorStore(
              Opener(), sweeper=False)) as store):
        live = pathlib.Path(directory, 'console.g3.log')

        def come(name: str) -> None:
            chain.begin(str(live.with_name(name)))
            append(live.with_name(name), name.encode())

        for name in (*names[:there], live.name):
            come(name)
        store.read_tail(str(live), 999)
        for name in names[there:]:
            come(name)
            held = store.read_tail(str(live), 999)
            with open_directory(directory) as opened:
                anew = log.read_tail(opened, live.name, 999)
            assert held.data == anew.data


def test_a_file_that_is_truncated(store: DescriptorStore,
                                  live: pathlib.Path) -> None:
    append(live, b'123456789')
    position = store.read_tail(str(live), 99).position
    live.write_bytes(b'')
    append(live, b'ab')
    assert store.read_tail(str(live), 99).data == b'ab'
    assert store.read_from(str(live), position, 99).data == b'ab'
    # Longer than it was.
    live.write_bytes(b'another beginning')
    assert store.read_tail(str(live), 99).data == b'another beginning'
    store.close()


def test_backups_that_are_deleted(store: DescriptorStore,
                                  live: pathlib.Path) -> None:
    for data in (b'1', b'2', b'3'):
        rotate(live)
        append(live, data)
    assert store.read_tail(str(live), 99).data == b'0123'
    live.with_name('console.log.1').unlink()
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'23', False)
    store.close()


def test_a_backup_that_is_deleted_beside_a_rotation(
        store: DescriptorStore, live: pathlib.Path) -> None:
    """What is before it is there yet, and does not go on to the rest."""
    for data in (b'1', b'2', b'3'):
        rotate(live, 9)
        append(live, data)
    assert store.read_tail(str(live), 99).data == b'0123'
    live.with_name('console.log.1').unlink()
    rotate(live, 9)
    read = store.read_tail(str(live), 99)
    assert (read.data, read.exact) == (b'23', False)
    # A rotation has taken the oldest itself.
    store.close()
    rotate(live, 2)
    assert store.read_tail(str(live), 99, 2).data == b'3'
    append(live, b'4')
    rotate(live, 2)
    rotate(live, 2)
    read = store.read_tail(str(live), 99, 2)
    assert (read.data, read.exact) == (b'4', True)
    store.close()


# What is closed

def test_nothing_is_kept_of_a_guest_that_is_gone(
        store: DescriptorStore, live: pathlib.Path,
        tmp_path: pathlib.Path) -> None:
    port = live.with_name('console.port1.log')
    other = tmp_path / 'guest2/console.log'
    other.parent.mkdir()
    for path in (port, other):
        path.write_bytes(b'')
    for path in (live, port, other):
        store.read_tail(str(path), 9)
    store.forget(str(live.parent))
    assert descriptors.below(tmp_path) == [str(other)]
    store.close()
    assert descriptors.below(tmp_path) == []


def test_forgotten_while_it_is_read(store: DescriptorStore, opener: Opener,
                                    live: pathlib.Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    real = log.tail

    def tail(*arguments: object, **names: object) -> object:
        store.forget(str(live.parent))
        return real(*arguments, **names)   # type: ignore[arg-type]

    monkeypatch.setattr(log, 'tail', tail)
    assert store.read_tail(str(live), 9).data == b'0'
    assert descriptors.below(live.parent) == []


def test_what_is_not_read(store: DescriptorStore, clock: Clock,
                          live: pathlib.Path) -> None:
    store.read_tail(str(live), 9)
    clock.now += descriptor_store.IDLE - 1
    store.sweep()
    assert descriptors.below(live.parent) == [str(live)]
    store.read_tail(str(live), 9)
    clock.now += descriptor_store.IDLE - 1
    store.sweep()
    assert descriptors.below(live.parent) == [str(live)]
    clock.now += 1
    store.sweep()
    assert descriptors.below(live.parent) == []


@pytest.mark.parametrize('deleted', ['console.log', 'console.log.0'])
def test_what_is_deleted_frees_its_disk(
        store: DescriptorStore, live: pathlib.Path, deleted: str) -> None:
    rotate(live)
    store.read_tail(str(live), 9)
    live.with_name(deleted).unlink()
    store.sweep()
    assert descriptors.below(live.parent) == []


def test_somebody_sweeps(opener: Opener, live: pathlib.Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'SWEEP', 0.01)
    monkeypatch.setattr(descriptor_store, 'IDLE', 0.05)
    store = DescriptorStore(opener)
    for _ in range(2):
        store.read_tail(str(live), 9)
        deadline = time.monotonic() + 30
        while descriptors.below(live.parent):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_the_least_recently_used_makes_room(
        store: DescriptorStore, tmp_path: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'MOST', 3)
    paths = []
    for number in range(4):
        path = tmp_path / str(number) / 'console.log'
        path.parent.mkdir()
        path.write_bytes(b'%d' % number)
        paths.append(path)
    for path in (*paths[:3], paths[0], paths[3]):
        assert store.read_tail(str(path), 9).data
    assert descriptors.below(tmp_path) == [
        str(paths[number]) for number in (0, 2, 3)]
    store.close()


def test_one_log_does_not_take_all(
        store: DescriptorStore, live: pathlib.Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor_store, 'MOST_OF_ONE', 2)
    rotate(live)
    store.read_tail(str(live), 9)
    assert len(descriptors.below(live.parent)) == 2
    rotate(live)
    assert store.read_tail(str(live), 9).data == b'0'
    assert descriptors.below(live.parent) == []


def test_errors_leave_nothing_open(store: DescriptorStore,
                                   live: pathlib.Path) -> None:
    store.read_tail(str(live), 9)
    live.unlink()
    for _ in range(2):
        with pytest.raises(exception.LogNotFound):
            store.read_tail(str(live), 9)
        with pytest.raises(exception.LogNotFound):
            store.read_from(str(live), None, 9)
    live.mkdir()
    with pytest.raises(exception.LogNotRegular):
        store.read_tail(str(live), 9)
    assert descriptors.below(live.parent) == []


def test_many_threads(opener: Opener, live: pathlib.Path) -> None:
    """Each answer is a run of what was written, and nothing stays open."""
    store = DescriptorStore(opener, sweeper=False)
    line = b'%06d\n'
    live.write_bytes(b'')
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                data = store.read_tail(str(live), 70).data
                numbers = [int(found) for found in data.split(b'\n')[:-1]]
                if numbers != list(range(
                        *(numbers[0], numbers[-1] + 1) if numbers else (0,))):
                    failures.append(repr(data))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        append(live, line % number)
        if number % 7 == 6:
            rotate(live)
        if number % 100 == 50:
            store.forget(str(live.parent))
        if number % 100 == 75:
            store.sweep()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    store.close()
    assert descriptors.below(live.parent) == []


class Hanging:
    """The file system of a guest hangs as a thread closes its log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch,
                 path: pathlib.Path) -> None:
        self.go = threading.Event()
        self.waits = threading.Event()
        close = descriptor_store._Held.close

        def wait(held: descriptor_store._Held) -> None:
            if (held._path == str(path) and threading.current_thread()
                    is not threading.main_thread()):
                self.waits.set()
                assert self.go.wait(60)
            close(held)

        monkeypatch.setattr(descriptor_store._Held, 'close', wait)


@pytest.fixture
def others(live: pathlib.Path) -> list[pathlib.Path]:
    """Logs of other guests."""
    found = [live.parent.parent / name / 'console.log'
             for name in ('a', 'b', 'c')]
    for path in found:
        path.parent.mkdir()
        path.write_bytes(b'1')
    return found


def test_nobody_waits_to_have_another_log_closed(
        store: DescriptorStore, live: pathlib.Path,
        others: list[pathlib.Path], monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging(monkeypatch, live)
    monkeypatch.setattr(descriptor_store, 'MOST', 1)
    store.read_tail(str(live), 10)
    for path in others:
        assert store.read_tail(str(path), 10).data == b'1'
    assert hanging.waits.wait(60)
    assert list(store._held) == [str(others[-1])]
    hanging.go.set()


def test_others_are_swept_beside_one_that_hangs(
        opener: Opener, live: pathlib.Path, others: list[pathlib.Path],
        monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = Hanging(monkeypatch, live)
    monkeypatch.setattr(descriptor_store, 'IDLE', 0.0)
    monkeypatch.setattr(descriptor_store, 'SWEEP', 0.01)
    monkeypatch.setattr(descriptor_store, 'LONGEST_SWEEP', 0.1)
    store = DescriptorStore(opener)
    store.read_tail(str(live), 10)
    assert hanging.waits.wait(60)
    time.sleep(0.1)
    for path in others:
        store.read_tail(str(path), 10)
    deadline = time.monotonic() + 60
    while store._held:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    hanging.go.set()
