# SPDX-License-Identifier: Apache-2.0
"""Where in a log to begin, by starts and times."""

import argparse
import datetime
from pathlib import Path

import pytest

from virtlogd_driver import exception
from virtlogd_driver.cmd import interleave, when
from virtlogd_driver.cmd.when import Span
from virtlogd_driver.console_log.log import Position
from virtlogd_driver.history import boot
from virtlogd_driver.stream.state import Mark

FIRST, SECOND, MARKED = (Position(1, 2, offset, 4) for offset in (10, 20, 15))


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A log of a guest that was started at 100, 200 and 300."""
    for time, position in ((100.0, None), (200.0, FIRST), (300.0, SECOND)):
        boot.add(str(tmp_path), boot.Boot(time, {0: position}))
    return str(tmp_path / 'console.log')


@pytest.mark.parametrize(('number', 'span'), [
    (1, Span(None, FIRST, 100.0)), (2, Span(FIRST, SECOND, 200.0)),
    (3, Span(SECOND, None, 300.0)), (0, Span(SECOND, None, 300.0)),
    (-1, Span(FIRST, SECOND, 200.0)), (-2, Span(None, FIRST, 100.0))])
def test_of_boot(path: str, number: int, span: Span) -> None:
    assert when.of_boot(path, 0, number) == span


@pytest.mark.parametrize('number', [4, -3, 10**9])
def test_a_start_that_is_not_noted(path: str, number: int) -> None:
    with pytest.raises(exception.LogNotFound, match='there are 1 to 3'):
        when.of_boot(path, 0, number)


def test_no_start_is_noted(tmp_path: Path) -> None:
    with pytest.raises(exception.LogNotFound, match='Leave out --boot'):
        when.of_boot(str(tmp_path / 'console.log'), 0, 0)


@pytest.mark.parametrize(('moment', 'marks', 'span'), [
    (250.0, (), Span(FIRST, None, 200.0)),
    (300.0, (), Span(SECOND, None, 300.0)),
    (150.0, (), Span(None, None, 100.0)),
    (50.0, (), Span()),
    (250.0, (Mark(240.0, MARKED),), Span(MARKED, None, 240.0)),
    (230.0, (Mark(240.0, MARKED),), Span(FIRST, None, 200.0))])
def test_since(path: str, moment: float, marks: tuple[Mark, ...],
               span: Span) -> None:
    assert when.since(path, 0, moment, marks) == span


NOW = datetime.datetime(2026, 11, 25, 12, 30).timestamp()


@pytest.mark.parametrize(('text', 'moment'), [
    ('90s', NOW - 90), ('5m', NOW - 300), ('2h ago', NOW - 7200),
    ('-1d', NOW - 86400), ('12:00', NOW - 1800), ('12:29:59', NOW - 1),
    ('2026-11-25 12:00', NOW - 1800), ('2026-11-25T12:30:00', NOW)])
def test_times(text: str, moment: float) -> None:
    assert when.parse_time(text, NOW) == moment


@pytest.mark.parametrize('text', [
    '999999d', '999999999d ago', '1753-01-01', '9999-12-31T23:59:59-12:00',
    '9999-12-31T23:59:59Z', '0001-01-01T00:00:00+14:00'])
def test_any_time_can_be_shown(text: str) -> None:
    assert interleave.stamp(when.parse_time(text))


def test_a_time_with_an_offset() -> None:
    assert when.parse_time('1970-01-01T01:00:10+01:00') == 10.0
    assert when.parse_time('1970-01-01T00:00:10Z') == 10.0


@pytest.mark.parametrize('text', ['', 'yesterday', '5x', '25:00', '9' * 30])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match='is no time: use'):
        when.parse_time(text)
