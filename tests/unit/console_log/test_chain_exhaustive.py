# SPDX-License-Identifier: Apache-2.0
"""A reader is right in every interleaving of its system calls with virtlogd's.

The oracle is the stream of bytes that the guest wrote: an answer is a run of
it, ends where it ended at an instant of the call, and is as long as the limit
allows, or as what there was at every instant of the call.
"""

import itertools
from collections.abc import Iterator

import pytest

from tests.unit.console_log.rotating import (
    MemoryDirectory,
    Rotator,
    ends,
)
from virtlogd_driver import exception
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.descriptor_store import DescriptorStore

SIZES = (5, 9, 4, 7, 8, 3)


class Choices:
    """Runs something with every sequence of choices, depth first."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = []
        self._at = 0

    def take(self, bound: int) -> int:
        """One of 0 .. bound."""
        if self._at == len(self._taken):
            self._taken.append((0, bound))
        self._at += 1
        return self._taken[self._at - 1][0]

    def next(self) -> bool:
        """Go on to the next sequence; False after the last."""
        self._at = 0
        while self._taken and self._taken[-1][0] == self._taken[-1][1]:
            self._taken.pop()
        if not self._taken:
            return False
        choice, bound = self._taken.pop()
        self._taken.append((choice + 1, bound))
        return True


class Scene:
    """A log with some files, and a rotator with some steps to go."""

    def __init__(
            self, choices: Choices, *, max_backups: int, files: int,
            steps: int, whole: bool = False, crash: int = 0) -> None:
        self.choices = choices
        self.directory = MemoryDirectory()
        self.rotator = Rotator(self.directory, max_backups)
        self.rotator.open()
        sizes = itertools.cycle(SIZES)
        for _ in range(files):
            for _ in self.rotator.steps(iter([next(sizes)])):
                pass
        if crash:
            list(itertools.islice(
                self.rotator.steps(iter([next(sizes)])), crash))
            self.rotator.open()
        self.rotator.write(2)
        self._steps = self._rotations(sizes) if whole else (
            self.rotator.steps(sizes))
        self._left = steps
        self.directory.before = self._advance

    def _rotations(self, sizes: Iterator[int]) -> Iterator[None]:
        for size in sizes:
            for _ in self.rotator.steps(iter([size])):
                pass
            yield

    def _advance(self) -> None:
        count = self.choices.take(self._left)
        self._left -= count
        for _ in range(count):
            next(self._steps)


    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            next(self._steps)


def _nothing() -> None:
    pass


def tails(
        limit: int, max_backups: int, *, held: int | None = None,
        **scene: int | bool) -> Iterator[bool]:
    """Read under every schedule; yields whether the answer was exact.

    :param held: steps of virtlogd since the log was read, and kept open
    """
    choices = Choices()
    while True:
        now = Scene(
            choices, max_backups=max_backups,
            **scene)  # type: ignore[arg-type]
        rotator = now.rotator
        store = DescriptorStore(
            now.directory.open_log, now.directory, sweeper=False)
        path = f'/memory/{rotator.name}'
        if held is not None:
            advance, now.directory.before = now.directory.before, _nothing
            store.read_tail(path, limit, max_backups)
            now.go_on(held)
            now.directory.before = advance
        before = rotator.written
        rotator.least = before - rotator.kept_from()
        try:
            read = (log.read_tail(
                now.directory, rotator.name, limit, max_backups=max_backups)
                if held is None
                else store.read_tail(path, limit, max_backups))
        except exception.LogNotFound:
            assert max_backups == 0, 'otherwise there is always a file'
            read = log.LogRead(b'', None, True)
        found = ends(read.data, before, rotator.written)
        assert found, read
        assert len(read.data) <= limit
        if read.exact:
            assert len(read.data) >= min(limit, rotator.least), read
        store.close()
        assert not now.directory.opened
        yield read.exact
        if not choices.next():
            return


@pytest.mark.parametrize(
    ('max_backups', 'files', 'steps', 'limit'), [
        (1, 0, 5, 1000), (1, 2, 5, 1000), (1, 2, 6, 6),
        (2, 1, 5, 1000), (2, 4, 5, 1000), (2, 4, 6, 12),
        (3, 2, 5, 1000), (3, 5, 5, 1000), (3, 5, 6, 15)])
def test_every_system_call(
        max_backups: int, files: int, steps: int, limit: int) -> None:
    outcomes = list(tails(
        limit, max_backups=max_backups, files=files, steps=steps))
    assert all(outcomes)
    assert len(outcomes) > 200


@pytest.mark.parametrize('limit', [12, 1000])
@pytest.mark.parametrize('max_backups', [1, 2, 3])
def test_rotations_faster_than_the_reader(
        max_backups: int, limit: int) -> None:
    assert all(tails(
        limit, max_backups=max_backups, files=4, steps=3, whole=True))


@pytest.mark.parametrize('crash', [1, 2, 3, 5, 6])
def test_after_a_crash_within_a_rotation(crash: int) -> None:
    assert all(tails(1000, max_backups=3, files=6, steps=5, crash=crash))


def test_after_a_crash_that_looks_as_if_a_backup_was_deleted() -> None:
    """.0 has become .1, and the live file, which is still, was appended to."""
    outcomes = list(tails(1000, max_backups=3, files=6, steps=5, crash=4))
    assert not all(outcomes)


def test_without_backups() -> None:
    """max_backups 0: the live file is deleted and created anew."""
    assert all(tails(1000, max_backups=0, files=2, steps=6))


@pytest.mark.parametrize(
    ('max_backups', 'files', 'steps', 'limit'), [
        (1, 2, 4, 1000), (2, 1, 5, 6), (2, 4, 3, 1000), (3, 5, 4, 15)])
@pytest.mark.parametrize('held', [0, 1, 5, 12, 30])
def test_what_is_held(max_backups: int, files: int, steps: int, limit: int,
                      held: int) -> None:
    """Read again after no, one, some or many rotations."""
    assert all(tails(limit, max_backups=max_backups, files=files,
                     steps=steps, held=held))


@pytest.mark.parametrize('held', [0, 7])
def test_what_is_held_and_rotations_faster_than_the_reader(held: int) -> None:
    assert all(tails(1000, max_backups=2, files=4, steps=3, held=held))
