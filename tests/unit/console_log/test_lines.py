# SPDX-License-Identifier: Apache-2.0
"""The end of a log is read, on a log in memory."""

import itertools
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver.console_log import lines, log
from virtlogd_driver.console_log.directory import Directory, open_directory
from virtlogd_driver.console_log.lines import End
from virtlogd_driver.console_log.log import LogRead, LogSince, Position


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with open_directory(str(tmp_path)) as opened:
        yield opened


class Log:
    """A log of these bytes; a position is its offset."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        #: The most bytes that were given at once.
        self.most = 0

    def tail(self, limit: int) -> LogRead:
        data = self.data[max(0, len(self.data) - limit):]
        self.most = max(self.most, len(data))
        return LogRead(data, Position(1, 1, len(self.data), 0), True)

    def since(self, position: Position | None, limit: int) -> LogSince:
        start = position.offset if position else 0
        data = self.data[start:start + limit]
        self.most = max(self.most, len(data))
        end = start + len(data)
        return LogSince(data, Position(1, 1, end, 0), 0, len(self.data) - end)


def taken(end: End) -> bytes:
    return b''.join(piece or b'' for piece in end.pieces)



_TEXT = st.lists(st.sampled_from(
    (b'a', b'\n', b'line\n', b'\r\n', 'ü'.encode())), max_size=60).map(
        b''.join)


@pytest.fixture(params=[4, 64, 1 << 22])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
          ) -> None:
    monkeypatch.setattr(lines, '_FIRST', 2)
    monkeypatch.setattr(lines, '_PIECE', 5)
    monkeypatch.setattr(lines, 'AT_ONCE', request.param)


@pytest.mark.usefixtures('small')
def test_the_last_lines() -> None:
    @given(_TEXT, st.integers(0, 12))
    def check(data: bytes, count: int) -> None:
        whole = Log(data)
        end = lines.last_lines(whole.tail, whole.since, count)
        wanted = data.split(b'\n')
        last = wanted.pop()
        unfinished = [last] if last else []
        kept = ([line + b'\n' for line in wanted] + unfinished)
        assert taken(end) == b''.join(kept[len(kept) - count:]
                                      if count < len(kept) else kept)
        assert end.position is not None
        assert end.position.offset == len(data)
        assert whole.most <= lines.AT_ONCE + 5

    check()


@pytest.mark.usefixtures('small')
def test_the_last_bytes() -> None:
    data = bytes(range(200))
    for count in (0, 1, 5, 63, 64, 65, 199, 200, 300):
        whole = Log(data)
        assert taken(lines.last_bytes(
            whole.tail, whole.since, count)) == data[-count or 200:]
        start = Position(1, 1, 150, 0)
        assert taken(lines.last_bytes_since(
            whole.since, start, count)) == data[150:][-count or 50:]


@pytest.mark.usefixtures('small')
def test_a_line_that_is_too_long_counts_as_several(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, 'LONGEST', 6)
    for data in (b'x' * 100, b'x' * 100 + b'\n', b'one\n' + b'x' * 100,
                 'ü'.encode() * 50, b'y' + 'ü'.encode() * 50):
        whole = Log(data)
        for count in (1, 2, 3):
            shown = taken(lines.last_lines(whole.tail, whole.since, count))
            assert data.endswith(shown)
            assert 0 < len(shown) <= 6 * count + 1
            shown.decode()


def test_a_log_without_line_ends_is_not_held_in_memory(
        tmp_path: Path, directory: Directory) -> None:
    size = 200_000_000
    path = tmp_path / 'console.log'
    with path.open('wb') as file:
        file.truncate(size)

    def tail(limit: int) -> LogRead:
        return log.read_tail(directory, 'console.log', limit)

    def since(position: Position | None, limit: int) -> LogSince:
        return log.read_from(directory, 'console.log', position, limit)

    tracemalloc.start()
    assert len(taken(lines.last_lines(tail, since, 10))) == (
        10 * lines.LONGEST)
    end = lines.last_lines(tail, since, 10_000_000)
    assert sum(len(piece or b'') for piece in end.pieces) == size
    end = lines.last_bytes(tail, since, size - 1)
    assert sum(len(piece or b'') for piece in end.pieces) == size - 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * lines.AT_ONCE


def _between(directory: Directory, start: Position | None,
             stop: Position) -> list[bytes | None]:
    def since(position: Position | None, limit: int) -> LogSince:
        return log.read_from(directory, 'console.log', position, limit)

    return list(lines.everything(
        lines.until(since, stop), End(iter(()), start)))


def test_what_ends_at_a_place_that_is_gone_is_nothing_that_is_left(
        tmp_path: Path, directory: Directory) -> None:
    """virtlogd keeps two backups: what it has removed came before these."""
    path = tmp_path / 'console.log'
    path.touch()
    places: list[Position | None] = []
    for start in range(5):
        places.append(log.read_tail(directory, 'console.log', 0).position)
        path.write_bytes(b'start %d\n' % start + b'x' * 100)
        for number in (1, 0):
            if (older := tmp_path / f'console.log.{number}').exists():
                older.rename(tmp_path / f'console.log.{number + 1}')
        path.rename(tmp_path / 'console.log.0')
        path.touch()
        (tmp_path / 'console.log.2').unlink(missing_ok=True)
    shown = [_between(directory, start, stop)
             for start, stop in itertools.pairwise(places)
             if stop is not None]
    assert shown == [[None], [None], [None], [b'start 3\n' + b'x' * 100]]


def test_what_ends_at_a_place_that_was_copied_ends_in_the_copy(
        tmp_path: Path, directory: Directory) -> None:
    """As logrotate's copytruncate does."""
    path = tmp_path / 'console.log'
    path.write_bytes(b'first\n' * 20)
    stop = log.read_tail(directory, 'console.log', 0).position
    assert stop is not None
    path.write_bytes(path.read_bytes() + b'second\n')
    (tmp_path / 'console.log.0').write_bytes(path.read_bytes())
    os.truncate(path, 0)
    with path.open('ab') as file:
        file.write(b'third\n')
    assert _between(directory, None, stop) == [b'first\n' * 20]
