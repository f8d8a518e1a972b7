# SPDX-License-Identifier: Apache-2.0
"""Waiting for more, on real files."""

import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtlogd_driver.console_log import follow, log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.follow import Follower
from virtlogd_driver.console_log.log import LogSince, Position


def read(path: str, position: Position | None, limit: int) -> LogSince:
    directory_path, name = os.path.split(path)
    with open_directory(directory_path) as directory:
        return log.read_from(directory, name, position, limit)


@pytest.fixture(params=['watched', 'unwatched'])
def follower(request: pytest.FixtureRequest) -> Iterator[Follower]:
    made = Follower(read)
    if request.param == 'unwatched':
        # As where all of the kernel's watches are taken.
        made._inotify.close()
    yield made
    made.close()


def drain(follower: Follower, path: Path, timeout: float = 3.0) -> bytes:
    """What has come, waiting for its beginning."""
    data = b''
    while follower.wait(timeout):
        since = follower.read(str(path))
        if since is not None:
            data += since.data
        if data and not (since and since.behind):
            break
    return data


def append(path: Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(path: Path) -> None:
    for number in range(8, -1, -1):
        backup = path.with_name(f'{path.name}.{number}')
        if backup.exists():
            backup.rename(path.with_name(f'{path.name}.{number + 1}'))
    path.rename(path.with_name(f'{path.name}.0'))
    path.touch()


def test_across_rotation(follower: Follower, tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.write_bytes(b'begin ')
    follower.add(str(path), None)
    assert drain(follower, path) == b'begin '
    append(path, b'one ')
    rotate(path)
    append(path, b'two ')
    rotate(path)
    append(path, b'three ')
    assert drain(follower, path) == b'one two three '
    # The new file is watched now.
    append(path, b'four')
    begin = time.monotonic()
    assert drain(follower, path) == b'four'
    assert time.monotonic() - begin < 0.5


def test_a_log_that_is_not_there_yet(follower: Follower,
                                     tmp_path: Path) -> None:
    path = tmp_path / 'instance' / 'console.log'
    follower.add(str(path), None)
    assert follower.wait(0.1) == [str(path)]
    assert follower.read(str(path)) is None
    assert follower.wait(0.2) == []
    path.parent.mkdir()
    path.write_bytes(b'here')
    assert drain(follower, path) == b'here'


def test_a_directory_that_is_made_anew(follower: Follower,
                                       tmp_path: Path) -> None:
    path = tmp_path / 'instance' / 'console.log'
    path.parent.mkdir()
    path.write_bytes(b'before')
    follower.add(str(path), None)
    assert drain(follower, path) == b'before'
    path.parent.rename(tmp_path / 'instance_resize')
    path.parent.mkdir()
    path.write_bytes(b'after')
    assert drain(follower, path) == b'after'


def test_several_logs_in_one_directory(follower: Follower,
                                       tmp_path: Path) -> None:
    paths = [tmp_path / f'{name}.log' for name in 'abc']
    for path in paths:
        path.touch()
        follower.add(str(path), None)
    while follower.wait(1.5):
        for name in follower.wait(0):
            follower.read(name)
    follower.remove(str(paths[0]))
    append(paths[0], b'unseen')
    append(paths[2], b'seen')
    assert follower.wait(3) == [str(paths[2])]
    since = follower.read(str(paths[2]))
    assert since is not None
    assert since.data == b'seen'


def test_more_than_one_read(follower: Follower, tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    data = os.urandom(3 * follow.CHUNK + 5)
    path.write_bytes(data)
    follower.add(str(path), None)
    assert drain(follower, path) == data


def test_it_wakes_up_at_once(tmp_path: Path) -> None:
    path = tmp_path / 'console.log'
    path.touch()
    follower = Follower(read)
    follower.add(str(path), None)
    follower.read(str(path))
    follower.wait(1.5)
    follower.read(str(path))
    threading.Timer(0.3, append, (path, b'x')).start()
    begin = time.monotonic()
    while not follower.wait(5):
        pass
    assert time.monotonic() - begin < 0.8
    follower.close()


def test_without_a_change_next_to_nothing_is_done(tmp_path: Path) -> None:
    follower = Follower(read)
    for number in range(100):
        path = tmp_path / f'{number}.log'
        path.write_bytes(b'x')
        follower.add(str(path), None)
    while paths := follower.wait(1.5):
        for name in paths:
            follower.read(name)
    before = resource.getrusage(resource.RUSAGE_THREAD)
    assert follower.wait(3) == []
    after = resource.getrusage(resource.RUSAGE_THREAD)
    took = (after.ru_utime + after.ru_stime
            - before.ru_utime - before.ru_stime)
    assert took < 0.05 * 3
    follower.close()


def test_after_lost_events_every_log_is_looked_at(tmp_path: Path) -> None:
    """The kernel's queue of them was full."""
    follower = Follower(read)
    paths = [tmp_path / 'a.log', tmp_path / 'b.log']
    for path in paths:
        path.write_bytes(b'old')
        follower.add(str(path), read(str(path), None, 100).position)
    follower._heed([(-1, follow._OVERFLOW, '')])
    assert follower.wait(0) == [str(path) for path in paths]
    follower.close()
