# SPDX-License-Identifier: Apache-2.0
"""bash itself completes the commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.command import PLAIN_PYTHON, Console
from tests.unit import fake_libvirt

_ROOT = Path(__file__).parents[3]
_SCRIPT = _ROOT / 'etc/bash_completion.d/virtlogd-console'
COMMANDS = ('list', 'show', 'follow', 'stream', 'export', 'attach',
            'viewers', 'reattach', 'history', 'check')


@pytest.fixture
def uri(tmp_path: Path) -> str:
    node = tmp_path / 'node.xml'
    node.write_text(fake_libvirt.NODE.format(domains=''.join(
        fake_libvirt.domain_xml(name=name) for name in ('one', 'other'))))
    return f'test://{node}'


@pytest.fixture
def command(uri: str, tmp_path: Path) -> Path:
    """A command of that name that runs the real one."""
    with Console(uri) as console:
        script = tmp_path / 'virtlogd-console'
        script.write_text('#!/bin/sh\nexport PYTHONPATH={}\nexec {} "$@"\n'
                          .format(_ROOT, ' '.join(console.command[:3])))
        script.chmod(0o755)
    return script


def complete(command: Path, *words: str) -> set[str]:
    script = (
        f'source {_SCRIPT}\nCOMP_WORDS=("$@")\nCOMP_CWORD=$(($# - 1))\n'
        '_virtlogd_console\nprintf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(
        ['bash', '-c', script, 'bash', str(command), *words], check=True,
        capture_output=True, text=True)
    assert done.stderr == ''
    return set(done.stdout.split())


def options(command: Path, *words: str) -> set[str]:
    shown = subprocess.run(
        [command, *words, '--help'], check=True, capture_output=True,
        text=True, env={**os.environ, **PLAIN_PYTHON}).stdout
    return set(re.findall(r'^  (?:-\S+, )?(--[a-z-]+)', shown,
                          re.MULTILINE)) | {'--help'}


def test_commands(command: Path) -> None:
    assert complete(command, '') == set(COMMANDS)
    assert complete(command, 's') == {'show', 'stream'}
    assert complete(command, '--connect', 'x:///', 're') == {'reattach'}


def test_guests(command: Path, uri: str) -> None:
    found = complete(command, '--connect', uri, 'show', 'o')
    assert found == {'one', 'other'}
    assert complete(command, '-c', uri, 'follow', 'one', 'ot') == {'other'}


@pytest.mark.parametrize('name', COMMANDS)
def test_every_option_of_a_command(command: Path, name: str) -> None:
    assert complete(command, name, '--') == options(command, name)
