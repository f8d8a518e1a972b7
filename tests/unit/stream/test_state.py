# SPDX-License-Identifier: Apache-2.0
"""How far a stream has come, on the disk and back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver import exception
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.stream import state
from virtlogd_driver.stream.lines import LONGEST
from virtlogd_driver.stream.state import Mark, Progress

POSITION = Position(1, 2, 3, 4)


def test_there_and_back(tmp_path: Path) -> None:
    logs = {
        ('a', 0): Progress('guest', '/x/console.log', 3, POSITION,
                           b'\xff half', 1.5, 2.25,
                           (Mark(1.0, POSITION), Mark(2.0, POSITION))),
        ('a', 1): Progress('g\u00e4st', '/y', -1, POSITION, left=True),
        ('a', 2): Progress('g', '/z', 1, POSITION, b'login: ', cut=True)}
    state.save(str(tmp_path / 'state'), logs)
    assert state.load(str(tmp_path / 'state')) == logs
    state.save(str(tmp_path / 'state'), {})
    assert state.load(str(tmp_path / 'state')) == {}
    assert [path.name for path in tmp_path.iterdir()] == ['state']


def test_there_is_none(tmp_path: Path) -> None:
    assert state.load(str(tmp_path / 'state')) is None


@pytest.mark.parametrize('text', [
    '', 'no JSON', '[]', '{}', '{"version": 2, "logs": []}',
    '{"version": 1}', '{"version": 1, "logs": [1]}',
    '{"version": 1, "logs": [{}]}', '[' * 100_000])
def test_what_is_no_state(tmp_path: Path, text: str) -> None:
    path = tmp_path / 'state'
    path.write_text(text)
    with pytest.raises(exception.InvalidState) as raised:
        state.load(str(path))
    assert str(path) in str(raised.value)
    assert 'Move it away' in str(raised.value)


@pytest.mark.parametrize(('name', 'value'), [
    ('position', '"../x"'), ('rest', '"?"'), ('rest', '1'), ('begun', 'NaN'),
    ('run', '"x"'), ('uuid', '1'), ('path', 'null'), ('marks', '[[1]]'),
    ('marks', '[[1e999, "1-2-3-4"]]'), ('boot', '"x"'), ('begun', '1e12'),
    ('begun', '-1'), ('path', r'"/x\u0000/y"'), ('path', r'"/x\ud800/y"'),
    ('uuid', r'"\u0000"')])
def test_values_are_checked(tmp_path: Path, name: str, value: str) -> None:
    path = tmp_path / 'state'
    values = {
        'uuid': '"a"', 'port': '0', 'guest': '"g"', 'path': '"/x"',
        'run': '1', 'position': '"1-2-3-4"', 'rest': '""', 'begun': '0',
        'boot': 'null', 'left': 'false', 'marks': '[]'}

    def write() -> None:
        path.write_text('{"version": 1, "logs": [{' + ', '.join(
            f'"{key}": {one}' for key, one in values.items()) + '}]}')

    write()
    assert state.load(str(path)) is not None
    values[name] = value
    write()
    with pytest.raises(exception.InvalidState):
        state.load(str(path))


def test_a_line_is_bounded(tmp_path: Path) -> None:
    path = str(tmp_path / 'state')
    state.save(path, {('a', 0): Progress('g', '/x', 1, POSITION,
                                         b'x' * (LONGEST + 4))})
    with pytest.raises(exception.InvalidState, match='too long'):
        state.load(path)


@pytest.mark.parametrize('kind', ['link', 'directory', 'fifo'])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'state'
    if kind == 'link':
        path.symlink_to('/dev/zero')
    elif kind == 'directory':
        path.mkdir()
    else:
        import os
        os.mkfifo(path)
    with pytest.raises(exception.InvalidState):
        state.load(str(path))


@given(st.lists(st.floats(0, 1e6), max_size=60))
def test_marks_are_few_and_in_order(steps: list[float]) -> None:
    marks: tuple[Mark, ...] = ()
    now = 0.0
    for step in steps:
        now += step
        marks = state.with_mark(marks, Mark(now, POSITION))
        assert len(marks) <= state.MOST_MARKS
        assert now - marks[-1].time < state.MARK_INTERVAL
    times = [mark.time for mark in marks]
    assert times == sorted(times)


def test_marks_reach_back() -> None:
    marks: tuple[Mark, ...] = ()
    for minute in range(10_000):
        marks = state.with_mark(marks, Mark(minute * 60.0, POSITION))
    assert marks[0].time == 0.0
    ages = [marks[-1].time - mark.time for mark in marks]
    # Each age has a mark that is not much older.
    for wanted in (600, 3600, 86400):
        assert any(wanted <= age <= 4 * wanted + 600 for age in ages)


def test_a_clock_that_is_set_back() -> None:
    marks = state.with_mark((Mark(1000.0, POSITION),), Mark(10.0, POSITION))
    assert [mark.time for mark in marks] == [1000.0, 10.0]


def test_a_clock_that_is_set_back_while_marks_are_many() -> None:
    marks = tuple(Mark(minute * 60.0, POSITION)
                  for minute in range(state.MOST_MARKS))
    # A second before one of them.
    now = marks[8].time - 1.0
    marks = state.with_mark(marks, Mark(now, POSITION))
    assert len(marks) == state.MOST_MARKS
    assert marks[-1].time == now
