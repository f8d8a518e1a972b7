# SPDX-License-Identifier: Apache-2.0

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlogd_driver import exception
from virtlogd_driver.console_log import generation
from virtlogd_driver.console_log.generation import FileName


@pytest.mark.parametrize(('name', 'file'), [
    ('console.log', FileName(0, 0)),
    ('console.log.0', FileName(0, 0, 0)),
    ('console.g1.log', FileName(0, 1)),
    ('console.g12.log.31', FileName(0, 12, 31)),
    ('console.port1.log', FileName(1, 0)),
    ('console.port3.g2.log.1', FileName(3, 2, 1)),
    ('console.g1.history', FileName(0, 1, history=True)),
    ('console.port1.g1.history', FileName(1, 1, history=True)),
    ('console.history', FileName(0, 0, history=True)),
])
def test_names(name: str, file: FileName) -> None:
    assert generation.parse(name) == file
    assert str(file) == name


@pytest.mark.parametrize('name', [
    '', 'disk', 'console', 'console.logs', 'console.log.', 'console.log.01',
    'console.log.-1', 'console.g0.log', 'console.port0.log',
    'console.g1.history.0', 'console.g1.history.tmp', 'console.log\n',
    'console.log.1.gz', 'xconsole.log', 'console.g1.port1.log',
])
def test_other_files(name: str) -> None:
    assert generation.parse(name) is None


@given(st.integers(0, 99), st.integers(0, 99), st.none() | st.integers(0, 31))
def test_every_name_is_understood(
        port: int, number: int, backup: int | None) -> None:
    file = FileName(port, number, backup)
    assert generation.parse(str(file)) == file


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    file = generation.parse(text)
    assert file is None or str(file) == text


def test_one_generation_in_the_order_it_was_written() -> None:
    names = [
        'console.g1.log', 'console.log', 'console.g1.log.10', 'disk',
        'console.g1.log.0', 'console.g1.history', 'console.g1.log.2',
        'console.port1.g1.log', 'console.g2.log']
    assert generation.files_of(names, 0, 1) == [
        'console.g1.history', 'console.g1.log.10', 'console.g1.log.2',
        'console.g1.log.0', 'console.g1.log']
    assert generation.newest(names, 0) == 2
    assert generation.newest(names, 1) == 1
    assert generation.newest(names, 2) is None


@given(st.permutations([
    'console.history', 'console.log.10', 'console.log.2', 'console.log.1',
    'console.log.0', 'console.log']))
def test_the_order_does_not_depend_on_that_of_the_directory(
        names: list[str]) -> None:
    assert generation.files_of(names, 0, 0) == [
        'console.history', 'console.log.10', 'console.log.2',
        'console.log.1', 'console.log.0', 'console.log']


def test_no_such_port() -> None:
    with pytest.raises(ValueError, match='port -1'):
        generation.live_name(-1, 0)
    with pytest.raises(ValueError, match='generation -1'):
        generation.live_name(0, -1)


def test_the_highest_numbers() -> None:
    highest = f'console.port{generation.MAX_PORT}.g{generation.MAX_GENERATION}'
    assert generation.parse(f'{highest}.log') == FileName(
        generation.MAX_PORT, generation.MAX_GENERATION)
    assert generation.live_name(
        generation.MAX_PORT, generation.MAX_GENERATION) == f'{highest}.log'
    for port, number in ((generation.MAX_PORT + 1, 0),
                         (0, generation.MAX_GENERATION + 1)):
        for name in (generation.live_name, generation.history_name):
            with pytest.raises(exception.LogError, match='remove or rename'):
                name(port, number)
    # What is understood as a name can be made.
    assert generation.live_name(0, 999_999_999) == 'console.g999999999.log'
    assert generation.parse('console.g1000000000.log') is None


def test_generations_that_have_a_file() -> None:
    names = ['console.g9.log.3', 'console.g4.history', 'console.g4.log',
             'disk', 'console.port1.g7.log', 'console.g2.history']
    assert list(generation.generations(names, 0).items()) == [
        (9, False), (4, True), (2, True)]
    assert generation.generations(names, 2) == {}
