# SPDX-License-Identifier: Apache-2.0
"""Which start of a guest some bytes were written after."""

from pathlib import Path

import pytest

from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot
from virtlogd_driver.stream.boots import Start, Starts


def at(inode: int, offset: int) -> Position:
    return Position(1, inode, offset, 7 << 32 | 99)


def part(inode: int, begin: int, end: int) -> tuple[int, int, int, int, int]:
    return 1, inode, 7, end, end - begin


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    """At the beginning, twice in file 5, once in file 6; not port 1's."""
    for time, position in enumerate((None, at(5, 10), at(5, 20), at(6, 0))):
        boot.add(str(tmp_path), boot.Boot(float(time), {
            0: position, 1: at(9, 9)}))
    made = Starts(str(tmp_path), 0)
    made.refresh()
    return made


@pytest.mark.parametrize(('inode', 'begin', 'end', 'found'), [
    (5, 0, 9, []), (5, 0, 10, [(10, 2)]), (5, 5, 30, [(10, 2), (20, 3)]),
    (5, 10, 12, [(10, 2)]), (5, 11, 19, []), (6, 0, 5, [(0, 4)]),
    (9, 0, 99, [])])
def test_within(starts: Starts, inode: int, begin: int, end: int,
                found: list[tuple[int, int]]) -> None:
    assert [(offset, start.number) for offset, start in starts.within(
        part(inode, begin, end))] == found


@pytest.mark.parametrize(('inode', 'begin', 'newest', 'number'), [
    (5, 0, False, 1), (5, 10, False, 2), (5, 15, True, 2), (5, 99, True, 3),
    (6, 50, False, 4), (8, 0, True, 4), (8, 0, False, 1)])
def test_before(starts: Starts, inode: int, begin: int, newest: bool,
                number: int) -> None:
    start = starts.before(part(inode, begin, begin + 1), newest=newest)
    assert start is not None
    assert start.number == number


def test_noted(starts: Starts) -> None:
    assert starts.noted(2.0) == Start(3, 2.0)
    assert starts.noted(2.5) is None


def test_the_number_goes_on(tmp_path: Path) -> None:
    for number in range(boot.KEPT + 5):
        boot.add(str(tmp_path), boot.Boot(float(number), {0: at(5, number)}))
    made = Starts(str(tmp_path), 0)
    assert made.noted(104.0) == Start(105, 104.0)


def test_none_is_noted(tmp_path: Path) -> None:
    none = Starts(str(tmp_path / 'gone'), 0)
    none.refresh()
    assert none.within(part(5, 0, 9)) == []
    assert none.before(part(5, 0, 9), newest=True) is None


def test_what_cannot_be_read_stays_as_it_was(
        starts: Starts, tmp_path: Path) -> None:
    (tmp_path / boot.FILE).unlink()
    (tmp_path / boot.FILE).mkdir()
    starts.refresh()
    assert starts.noted(1.0) == Start(2, 1.0)
