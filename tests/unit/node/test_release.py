# SPDX-License-Identifier: Apache-2.0
"""The supported releases of nova are named at one place."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.peers import seams
from virtlogd_driver.node import release
from virtlogd_driver.node.release import NEWEST, OLDEST, Support

ROOT = Path(__file__).parents[3]
RELEASES = list(range(OLDEST, NEWEST + 1))


@pytest.mark.parametrize(('version', 'support'), [
    (f'{OLDEST}.0.0', Support.SUPPORTED),
    (f'{OLDEST}.0.0.0rc1', Support.SUPPORTED),
    (f'{NEWEST}.3.1', Support.SUPPORTED),
    (f'{NEWEST + 1}.0.0.0rc1', Support.NEWER),
    ('100.0.0', Support.NEWER),
    (f'{OLDEST - 1}.1.2', Support.TOO_OLD), ('9.0.0', Support.TOO_OLD),
    ('', Support.TOO_OLD), ('unknown', Support.TOO_OLD)])
def test_support(version: str, support: Support) -> None:
    assert release.support(version) is support


def test_the_shell_is_told() -> None:
    """Without what the package needs."""
    said = subprocess.run(
        [sys.executable, '-S', ROOT / 'virtlogd_driver/node/release.py'],
        check=True, capture_output=True, text=True, env={}).stdout
    assert said.split() == list(map(str, RELEASES))
    assert '$(python3 virtlogd_driver/node/release.py)' in (
        ROOT / 'tools/matrix.sh').read_text()


def test_the_extra_of_the_package() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    nova, *_ = project['project']['optional-dependencies']['nova']
    assert nova == f'nova>={OLDEST},<{NEWEST + 1}'


def test_each_has_its_libraries_and_its_seams() -> None:
    assert [path.name for path in sorted(
        (ROOT / 'tools/constraints').glob('nova*.txt'))] == [
            f'nova{number}.txt' for number in RELEASES]
    record = seams.Record.load(ROOT / 'tests/peers/seams.json')
    assert list(record.releases) == RELEASES


def test_the_test_environments() -> None:
    tox = (ROOT / 'tox.ini').read_text()
    assert f'[testenv:nova{{{",".join(map(str, RELEASES))}}}]' in tox
    assert f'nova>={NEWEST},<{NEWEST + 1}' in tox
    for number in RELEASES:
        assert f'nova{number}: {{tox_root}}/tools/matrix.sh' in tox


@pytest.mark.parametrize('name', [
    'README.rst', 'CONTRIBUTING.rst', 'doc/source/install.rst',
    'doc/source/packagers.rst'])
def test_the_documents(name: str) -> None:
    """Where they name a range of releases, it is this one."""
    found = re.findall(r'\b(\d\d) to\s+(\d\d)\b', (ROOT / name).read_text())
    assert {' to '.join(one) for one in found} == {release.supported()}
