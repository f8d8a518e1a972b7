# SPDX-License-Identifier: Apache-2.0
"""A rotation is never taken for a lost file, nor a lost file for one."""

import os
import pathlib
import threading
import types
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.virtlogd.patience import lengthen
from virtlogd_driver import exception
from virtlogd_driver.virtlogd import unlinked
from virtlogd_driver.virtlogd.disk import Disks
from virtlogd_driver.virtlogd.unlinked import Position

DISKS = Disks()


class Virtlogd:
    """Writes one log, as virtlogd does: it rotates between two answers."""

    def __init__(self, directory: pathlib.Path, backups: int = 3) -> None:
        self.path = directory / 'console.log'
        self.backups = backups
        self.asked = 0
        self.before_answer: Callable[[], None] = lambda: None
        self._open()

    def _open(self) -> None:
        self._file = self.path.open('ab')

    def close(self) -> None:
        self._file.close()

    def write(self) -> None:
        self._file.write(b'x' * 100)
        self._file.flush()

    def rotate(self) -> None:
        for number in reversed(range(self.backups)):
            name = f'{self.path}.{number - 1}' if number else self.path
            if os.path.exists(name):
                os.rename(name, f'{self.path}.{number}')
        if not self.backups:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._open()

    def positions(self, logs: list[str]) -> Sequence[Position]:
        assert set(logs) <= {str(self.path)}
        self.asked += 1
        self.before_answer()
        status = os.fstat(self._file.fileno())
        return [(status.st_ino, status.st_size) for _ in logs]

    def found(self) -> bool:
        found = unlinked.find([str(self.path)], self.positions, DISKS)
        assert not found.unseen
        assert not found.stalled
        return bool(found.unlinked)


@pytest.fixture
def virtlogd(tmp_path: pathlib.Path):
    made = Virtlogd(tmp_path)
    yield made
    made.close()


def test_a_log_at_its_path(virtlogd: Virtlogd) -> None:
    assert not virtlogd.found()
    # No more than a call to virtlogd for all logs.
    assert virtlogd.asked == 1


def test_removed(virtlogd: Virtlogd) -> None:
    virtlogd.path.unlink()
    assert virtlogd.found()


def test_renamed(virtlogd: Virtlogd) -> None:
    virtlogd.path.rename(f'{virtlogd.path}-20261125')
    assert virtlogd.found()


def test_replaced(virtlogd: Virtlogd) -> None:
    other = virtlogd.path.with_name('other')
    other.write_bytes(b'other')
    other.rename(virtlogd.path)
    assert virtlogd.found()


def test_copied_and_truncated_is_at_its_path(virtlogd: Virtlogd) -> None:
    virtlogd.write()
    os.truncate(virtlogd.path, 0)
    assert not virtlogd.found()


def test_removed_while_the_guest_writes_all_the_time(
        virtlogd: Virtlogd) -> None:
    virtlogd.path.unlink()
    virtlogd.before_answer = virtlogd.write
    assert virtlogd.found()


def test_a_link_leads_to_it(virtlogd: Virtlogd) -> None:
    moved = virtlogd.path.with_name('elsewhere')
    virtlogd.path.rename(moved)
    virtlogd.path.symlink_to(moved)
    assert not virtlogd.found()


def test_rotation_brings_it_back(virtlogd: Virtlogd) -> None:
    virtlogd.path.unlink()
    virtlogd.rotate()
    assert not virtlogd.found()


def test_a_log_that_virtlogd_does_not_write(tmp_path: pathlib.Path) -> None:
    found = unlinked.find([str(tmp_path / 'x')], lambda logs: [(0, 0)], DISKS)
    assert found == unlinked.Found()


def test_a_path_that_cannot_be_seen_from_here() -> None:
    """Of a guest of another container."""
    found = unlinked.find(['/no/such/directory/log'], lambda logs: [(5, 5)],
                          DISKS)
    assert found == unlinked.Found()


def test_a_file_system_that_stalls_hides_its_own_logs_alone(
        virtlogd: Virtlogd, tmp_path: pathlib.Path) -> None:
    go = threading.Event()
    disks = Disks(patience=0.2, mounted=lambda: ('/', '/nfs'))
    lengthen(disks._calls, '/nfs')
    with pytest.raises(exception.DiskStalled):
        disks.ask('/nfs/x', go.wait, 60)
    virtlogd.path.unlink()
    found = unlinked.find(['/nfs/log', str(virtlogd.path)],
                          virtlogd.positions, disks)
    go.set()
    assert found.unlinked == {str(virtlogd.path)}
    assert found.unseen == {'/nfs/log'}
    assert '/nfs' in found.stalled[0]


@given(st.integers(0, 2), st.lists(st.integers(0, 4), max_size=40),
       st.lists(st.booleans(), max_size=40))
def test_no_order_of_rotations_is_a_false_alarm(
        backups: int, rotations: list[int], gaps: list[bool]) -> None:
    """Between any two looks virtlogd rotates some times; a look may fall into
    the moment in which the name is missing; and file systems use an inode
    again at once, as ext4 does, unless it is kept."""
    host = _Inodes(backups)
    when = iter(rotations)
    missing = iter(gaps)

    def positions(logs: list[str]) -> list[Position]:
        host.rotate(next(when, 0))
        return [(host.live, 5)]

    class Disk:
        def by_mount(self, paths: list[str]) -> dict[str, list[str]]:
            return {'/': list(paths)}

        def ask(self, path: str, function: Callable[..., object],
                *arguments: object) -> object:
            host.rotate(next(when, 0))
            # In the middle of one, which ends before virtlogd answers.
            gap = next(missing, False)
            try:
                if function is unlinked._inodes:
                    return {path: 0 if gap else host.live}
                if function is unlinked._keep:
                    return host.keep(gap)
                return not gap and host.is_there()
            finally:
                host.rotate(gap)

    found = unlinked.find(['/l'], positions, Disk())  # type: ignore[arg-type]
    # Only looks that all fall into the middle of a rotation could deceive.
    if not any(all(gaps[n:n + unlinked.LOOKS]) for n in range(
            len(gaps) - unlinked.LOOKS + 1)):
        assert not found.unlinked


class _Inodes:
    """A chain of files by inode; the smallest free one is used next."""

    def __init__(self, backups: int) -> None:
        self._backups = backups
        self._chain = [1]
        self._kept: int | None = None

    @property
    def live(self) -> int:
        return self._chain[0]

    def rotate(self, times: int) -> None:
        for _ in range(times):
            self._chain = self._chain[:self._backups]
            used = {*self._chain, self._kept}
            self._chain.insert(0, next(
                n for n in range(1, 99) if n not in used))

    def keep(self, gap: bool) -> object:
        self._kept = None
        if gap:
            return None
        self._kept = self.live
        inode = self.live

        class Kept:
            status = types.SimpleNamespace(st_ino=inode)
            is_there = None

        return Kept()

    def is_there(self) -> bool:
        return self._kept == self.live
