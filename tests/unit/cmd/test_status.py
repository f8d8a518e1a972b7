# SPDX-License-Identifier: Apache-2.0
"""The status command runs without a host; tests/functional has real ones."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from tests.unit.node.test_checks import GOOD, disk
from virtlogd_driver.cmd import status
from virtlogd_driver.node import checks

#: The output that the documentation shows; --regenerate-output writes it.
EXAMPLE = pathlib.Path(__file__).resolve().parent / 'status_check.txt'
ROOT = EXAMPLE.parents[3]


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
        survey: checks.Survey, *arguments: str) -> int:
    conf = tmp_path / 'nova.conf'
    conf.write_text('[DEFAULT]\ninstances_path = /instances\n')
    monkeypatch.setattr(status, 'survey', lambda *args: survey)
    monkeypatch.setattr(cfg, 'CONF', cfg.ConfigOpts())
    monkeypatch.setattr(upgradecheck, 'CONF', None)
    monkeypatch.setattr(sys, 'argv', [
        'virtlogd-driver-status', '--config-file', str(conf), *arguments])
    return status.main()


TO_MEND = dataclasses.replace(
    GOOD,
    **disk(path='/var/lib/nova/instances', type='nfs4', free=None),
    health_interval=0)


def test_the_documented_example(
        monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
        capsys: pytest.CaptureFixture[str],
        request: pytest.FixtureRequest) -> None:
    assert run(monkeypatch, tmp_path, TO_MEND, 'check') == 1
    output = capsys.readouterr().out
    if request.config.getoption('--regenerate-output'):
        EXAMPLE.write_text(output)
    assert output == EXAMPLE.read_text()
    assert all(len(line) <= 80 for line in output.splitlines())
    page = (ROOT / 'doc/source/operator/health.rst')
    (shown,) = re.findall(
        r'literalinclude:: (.*status_check.*)', page.read_text())
    assert (page.parent / shown).resolve() == EXAMPLE


@pytest.mark.parametrize(('changes', 'code'), [
    ({}, 0), ({'compute_driver': ''}, 1), ({'helper_error': 'no'}, 2)])
def test_exit_status_is_the_worst(
        monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
        changes: dict[str, Any], code: int) -> None:
    survey = dataclasses.replace(GOOD, **changes)
    assert run(monkeypatch, tmp_path, survey, 'check') == code


def test_json(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
              capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tmp_path, TO_MEND, 'check', '--json') == 1
    found = json.loads(capsys.readouterr().out)['checks']
    assert [one['check'] for one in found] == [
        name for name, _ in checks.CHECKS]
    assert {one['check'] for one in found if one['result']} == {
        'Disk budget', 'Log directories', 'Health pass'}


def test_error_of_the_command_itself_is_255(
        monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tmp_path, None, 'check') == 255  # type: ignore[arg-type]
    assert 'Traceback' in capsys.readouterr().out


@pytest.mark.parametrize(('output', 'said'), [
    ('/dev/full', 'No space left on device'), (None, '')])
@pytest.mark.parametrize('form', [[], ['--json']])
def test_a_result_that_cannot_be_written_is_no_warning(
        tmp_path: pathlib.Path, form: list[str], output: str | None,
        said: str) -> None:
    """Nor one line that nobody reads, as with "| head"."""
    done = checked(tmp_path, output, form)
    assert done.returncode == 255
    assert 'Traceback' not in done.stderr
    assert said in done.stderr
    assert bool(done.stderr) is bool(said)


def test_every_text_can_be_written(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / 'gr\xf6\xdfer'
    directory.mkdir()
    done = checked(directory, '/dev/null')
    assert (done.returncode, done.stderr) == (2, '')


def checked(directory: pathlib.Path, output: str | None,
            form: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run it, where there is no virtlogd; None: into a closed pipe."""
    conf = directory / 'nova.conf'
    conf.write_text(f'[virtlogd]\nvirtlogd_socket = {directory}/socket\n'
                    '[libvirt]\nconnection_uri = test:///default\n')
    reader, writer = os.pipe()
    os.close(reader)
    with (open(writer, 'w') as pipe,
          open(output or os.devnull, 'w') as file):
        return subprocess.run(
            [sys.executable, '-W', 'ignore', '-m',
             'virtlogd_driver.cmd.status', 'check', '--config-file',
             str(conf), *form], stdout=file if output else pipe,
            stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, 'PYTHONIOENCODING': 'ascii'})


def test_help_fits_a_terminal() -> None:
    shown = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'virtlogd_driver.cmd.status',
         'check', '--help'], capture_output=True, text=True, check=True,
        env={'COLUMNS': '80'})
    assert '--json' in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
