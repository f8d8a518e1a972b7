# SPDX-License-Identifier: Apache-2.0
"""An sdist and a wheel are released, with what they need."""

import pathlib
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
STEM = f'virtlogd_driver-{PROJECT["version"]}'


def _run(*command: object) -> str:
    done = subprocess.run(
        [str(c) for c in command], cwd='/', text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory of an sdist, and of a wheel that was built from it."""
    directory = tmp_path_factory.mktemp('dist')
    _run(sys.executable, '-m', 'build', '--no-isolation',
         '--outdir', directory, ROOT)
    assert {path.name for path in directory.iterdir()} == {
        f'{STEM}.tar.gz', f'{STEM}-py3-none-any.whl'}
    return directory


def test_they_can_be_published(built: pathlib.Path) -> None:
    _run(sys.executable, '-m', 'twine', 'check', '--strict',
         *built.iterdir())


def test_the_sdist_has_the_tests_and_the_documents(
        built: pathlib.Path) -> None:
    with tarfile.open(built / f'{STEM}.tar.gz') as archive:
        names = {name.removeprefix(f'{STEM}/') for name in archive.getnames()}
    assert {'LICENSE', 'README.rst', 'tests/unit/test_rooms.py',
            'tools/test.sh', 'doc/source/index.rst', 'tox.ini',
            'etc/nova/virtlogd-driver.conf.sample'} <= names
    assert not [name for name in names if '.venv' in name
                or name.endswith('.pyc')]


def test_the_wheel_has_what_goes_elsewhere(built: pathlib.Path) -> None:
    with zipfile.ZipFile(built / f'{STEM}-py3-none-any.whl') as archive:
        names = set(archive.namelist())
    data = f'{STEM}.data/data'
    assert {
        'virtlogd_driver_nova.pth',
        'virtlogd_driver/compute/seams.json',
        f'{data}/etc/nova/rootwrap.d/virtlogd-driver.filters',
        f'{data}/share/bash-completion/completions/virtlogd-console',
        f'{data}/share/virtlogd-driver/virtlogd_nova.te',
        f'{data}/share/virtlogd-driver/systemd/'
        'virtlogd-console-relay.service',
        f'{data}/share/virtlogd-driver/systemd/'
        'virtlogd-console-stream.service',
        f'{data}/share/virtlogd-driver/rsyslog.d/'
        'virtlogd-console.conf'} <= names
    assert not [name for name in names if name.startswith('tests')]


def test_it_is_installed_into_an_empty_environment(
        built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With what it says that it needs; nova is not among that."""
    venv.create(tmp_path / 'env', with_pip=False)
    python = tmp_path / 'env/bin/python'
    _run(sys.executable, '-m', 'pip', '--quiet', '--python', python,
         'install', built / f'{STEM}-py3-none-any.whl')
    for name in PROJECT['scripts']:
        command = tmp_path / 'env/bin' / name
        assert name in _run(command, '--help')
    assert PROJECT['version'] in _run(
        tmp_path / 'env/bin/virtlogd-console', '--version')
    assert (tmp_path / 'env/etc/nova/rootwrap.d/virtlogd-driver.filters'
            ).exists()
    # The .pth file is read by every process, nova or not.
    assert _run(python, '-c', 'print("quiet")') == 'quiet\n'
