# SPDX-License-Identifier: Apache-2.0
"""Times of two files, made up or real, tell whether they are neighbours."""

import os
import pathlib
import time
from collections.abc import Callable

import pytest

from virtlogd_driver.console_log import log, neighbours, reader
from virtlogd_driver.console_log.directory import Directory, open_directory
from virtlogd_driver.console_log.neighbours import Times, Verdict

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
#: Renamed with the newer one, written until that was born.
OLDER = Times(size=777, changed=MINUTE, written=MINUTE, born=0)
NEWER = Times(size=5, changed=MINUTE + 1, written=2 * MINUTE, born=MINUTE)


def verdict(older: Times = OLDER, newer: Times = NEWER, *,
            renamed: int = 0, filled: int = 2 * MINUTE,
            missing: bool = False, bounded: bool = False) -> Verdict:
    return neighbours.verdict(
        older, newer, renamed=renamed, filled=filled, missing=missing,
        bounded=bounded)


def changed(times: Times, **values: int | None) -> Times:
    fields = {name: getattr(times, name)
              for name in ('size', 'changed', 'written', 'born')}
    return Times(**(fields | values))


@pytest.mark.parametrize('bounded', [True, False])
def test_neighbours(bounded: bool) -> None:
    assert verdict(bounded=bounded) is Verdict.YES
    assert verdict(renamed=MINUTE, bounded=bounded) is Verdict.YES


@pytest.mark.parametrize('bounded', [True, False])
@pytest.mark.parametrize('older', [
    # Left of a higher max_backups: not renamed with the newer ones.
    changed(OLDER, changed=MINUTE - SECOND),
    # Or so, and the owner or label of all was changed since.
    changed(OLDER, written=MINUTE - SECOND),
    # And it was written once, as it was created.
    changed(OLDER, written=MINUTE - SECOND, born=MINUTE - SECOND),
    # Or the clock was set back since.
    changed(OLDER, written=30 * MINUTE, changed=30 * MINUTE)])
def test_leftovers(older: Times, bounded: bool) -> None:
    assert verdict(older, renamed=MINUTE, bounded=bounded) is Verdict.NO


def test_however_long_renames_take() -> None:
    """The disk was slow, or a crash came between, and a move long after."""
    for filled in (MINUTE - SECOND, MINUTE):
        assert verdict(renamed=60 * MINUTE, filled=filled) is Verdict.YES
    assert verdict(renamed=60 * MINUTE, filled=MINUTE + 1) is Verdict.NO


@pytest.mark.parametrize('times', [
    {'born': None}, {'size': 2048, 'written': 1}, {'size': 0, 'written': 1},
    {'born': 2 * MINUTE, 'written': 1}])
def test_times_that_say_nothing(times: dict[str, int | None]) -> None:
    """No time of birth; filled to its last byte; copied."""
    assert verdict(changed(OLDER, **times), bounded=True) is Verdict.YES
    assert verdict(changed(OLDER, **times)) is Verdict.NO


def test_a_name_that_is_missing() -> None:
    """A rotation that is under way has renamed the older one last."""
    later = changed(OLDER, changed=NEWER.changed + 1)
    assert verdict(later, missing=True) is Verdict.YES
    assert verdict(missing=True) is Verdict.NO
    same = changed(OLDER, changed=NEWER.changed)
    assert verdict(same, missing=True) is Verdict.LOOK_AGAIN


# On real files

def write(path: pathlib.Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def rotate(directory: pathlib.Path, backups: int) -> None:
    live = directory / 'console.log'
    for number in range(backups - 1, -1, -1):
        old = live.with_name(f'console.log.{number - 1}') if number else live
        if old.exists():
            old.rename(live.with_name(f'console.log.{number}'))
    write(live, b'')


def chown(directory: pathlib.Path) -> None:
    """``chown -R``, or restorecon: it sets the change time of all."""
    for path in sorted(directory.iterdir(), reverse=True):
        os.chown(path, os.geteuid(), os.getegid())


def nothing(directory: pathlib.Path) -> None:
    pass


@pytest.mark.parametrize('then', [nothing, chown])
@pytest.mark.parametrize('how', ['lowered', 'deleted'])
def test_older_files_that_are_not_joined(
        how: str, then: Callable[[pathlib.Path], None],
        tmp_path: pathlib.Path) -> None:
    """max_backups was lowered, or one was deleted; rotated since."""
    live = tmp_path / 'console.log'
    for data in (b'a', b'b', b'c', b'd'):
        write(live, data)
        if data == b'b':   # its time is not within one rotation
            later = time.time_ns() + 2 * neighbours.ROTATION_NS
            os.utime(live, ns=(later, later))
        rotate(tmp_path, 4)
    write(live, b'e')
    if how == 'deleted':
        (tmp_path / 'console.log.1').unlink()
    rotate(tmp_path, 4 if how == 'deleted' else 2)
    write(live, b'f')
    assert {path.read_bytes() for path in tmp_path.iterdir()} >= {b'b', b'd'}
    then(tmp_path)
    for max_backups in (None, 4):
        reader.forget(str(tmp_path))
        read = reader.read_tail(str(live), 99, max_backups=max_backups)
        assert (read.data, read.exact) == (b'def', False)
        assert reader.read_tail(str(live), 3, max_backups=max_backups).exact


@pytest.mark.parametrize('at', range(5))
def test_a_rotation_pauses(at: int, tmp_path: pathlib.Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two renames of files that are full, on a host that is slow."""
    monkeypatch.setattr(neighbours, 'ROTATION_NS', SECOND // 20)
    for number in range(9):
        write(tmp_path / 'console.log', b'%d' % number * 1024)
        if number == 8:
            renames = 0

            def rename(here: pathlib.Path, there: pathlib.Path) -> None:
                nonlocal renames
                if renames == at:
                    time.sleep(neighbours.ROTATION_NS / 1e9 * 1.2)
                renames += 1
                os.rename(here, there)
            monkeypatch.setattr(pathlib.Path, 'rename', rename)
        rotate(tmp_path, 5)
    assert renames == 5
    read = reader.read_tail(
        str(tmp_path / 'console.log'), 9999, max_backups=5)
    assert (read.data[::1024], read.exact) == (b'45678', True)


def test_a_log_in_use_is_whole(tmp_path: pathlib.Path) -> None:
    for number in range(9):
        write(tmp_path / 'console.log', b'%d' % number)
        rotate(tmp_path, 4)
    chown(tmp_path)
    read = reader.read_tail(str(tmp_path / 'console.log'), 99)
    assert (read.data, read.exact) == (b'5678', True)


class WithoutBirth(Directory):
    """A file system such as NFS."""

    __slots__ = ()

    def born(self, fd: int) -> int | None:
        return None


def test_without_times_of_birth(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        write(tmp_path / 'console.log', b'%d' % number)
        rotate(tmp_path, 4)
    write(tmp_path / 'console.log', b'live')
    with WithoutBirth(os.open(tmp_path, os.O_PATH), str(tmp_path)) as found:
        read = log.read_tail(found, 'console.log', 99, max_backups=4)
        assert (read.data, read.exact) == (b'012live', True)
        read = log.read_tail(found, 'console.log', 99)
        assert (read.data, read.exact) == (b'live', False)


def test_time_of_birth(tmp_path: pathlib.Path) -> None:
    before = time.time_ns()
    write(tmp_path / 'file', b'')
    after = time.time_ns()
    time.sleep(0.05)
    write(tmp_path / 'file', b'later')
    chown(tmp_path)
    with open_directory(str(tmp_path)) as directory:
        fd = directory.open('file')
        try:
            born = directory.born(fd)
            if born is None:
                pytest.skip('the file system does not say')
            # The kernel's clock ticks a hundred times a second or more.
            assert before - 10_000_000 <= born <= after
        finally:
            directory.close(fd)
        assert directory.born(-1) is None
