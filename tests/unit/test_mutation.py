# SPDX-License-Identifier: Apache-2.0
"""``tox -e mutation`` breaks what is there, and each survivor is explained."""

import pathlib
import re
import tomllib

import pytest

from tests.mutation.modules import MODULES

ROOT = pathlib.Path(__file__).parents[2]
SURVIVORS = tomllib.loads(
    (ROOT / 'tests/mutation/survivors.toml').read_text())['survivor']


@pytest.mark.parametrize('module', MODULES)
def test_modules_and_their_tests_are_there(module: str) -> None:
    assert (ROOT / f'virtlogd_driver/{module}.py').is_file()
    assert [test for test in MODULES[module]
            if not (ROOT / test).is_file()] == []


@pytest.mark.parametrize('survivor', SURVIVORS)
def test_a_survivor_is_of_a_line_that_is_there(
        survivor: dict[str, str]) -> None:
    assert survivor['why']
    if survivor['module'] == 'any':
        re.compile(survivor['change'])
        return
    text = (ROOT / f'virtlogd_driver/{survivor["module"]}.py').read_text()
    lines = {line.strip() for line in text.splitlines()}
    broken = [line[1:].strip() for line in survivor['change'].splitlines()
              if line.startswith('-')]
    assert broken
    assert set(broken) <= lines
