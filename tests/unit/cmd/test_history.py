# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console history`` shows what waits here, as a table and as JSON.

Trying again is in tests/functional/test_history_copy.py: it forks, and copies
by ssh.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from virtlogd_driver import exception
from virtlogd_driver.cmd import history
from virtlogd_driver.history import outbox
from virtlogd_driver.virtlogd import disk

GUEST = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
OTHER = '6ba7b810-9dad-11d1-80b4-00c04fd430c9'
HOST: Any = None


@pytest.fixture
def instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cfg, 'CONF', SimpleNamespace(
        instances_path=str(tmp_path)))
    return tmp_path


def left(instances: Path, guest: str, since: float,
         reason: str = 'Connection refused') -> str:
    """A guest has left; its history has been tried three times."""
    path = outbox.make(str(instances / guest), outbox.Departure(
        outbox.new_id(), guest, '192.0.2.7', 'compute7',
        str(instances / guest), {0: 1}, None, since))
    (Path(path) / 'console.log').write_bytes(b'then')
    outbox.save_state(path, outbox.State(3, False, reason))
    return path


def arguments(guest: str | None = None, **more: bool) -> Any:
    return SimpleNamespace(guest=guest, retry=False, json=False, **more)


def test_nothing_waits(instances: Path,
                       capsys: pytest.CaptureFixture[str]) -> None:
    assert history.run(HOST, arguments()) == 0
    assert capsys.readouterr() == ('', '')


def test_what_waits_the_oldest_first(
        instances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    paths = [left(instances, OTHER, now - 7200), left(instances, GUEST, now)]
    assert history.run(HOST, arguments()) == 0
    shown = capsys.readouterr()
    head, *rows = [line.split() for line in shown.out.splitlines()]
    assert head == ['GUEST', 'TO', 'SINCE', 'TRIES']
    assert [row[:2] for row in rows] == [
        [OTHER, 'compute7'], [GUEST, 'compute7']]
    assert [row[-1] for row in rows] == ['3', '3']
    assert shown.err.splitlines() == [
        f'{path}: Connection refused' for path in paths]


def test_a_reason_does_not_reach_the_terminal_as_it_is(
        instances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be what another host has said."""
    left(instances, GUEST, 0, '\x1b[2Jgone')
    history.run(HOST, arguments())
    assert '\x1b' not in capsys.readouterr().err


def test_json(instances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left(instances, GUEST, 1790000000)
    assert history.run(HOST, SimpleNamespace(
        guest='6ba7', retry=False, json=True)) == 0
    assert json.loads(capsys.readouterr().out) == [{
        'uuid': GUEST, 'path': path, 'host': 'compute7',
        'since': '2026-09-21T14:13:20+00:00', 'tries': 3,
        'reason': 'Connection refused'}]


@pytest.mark.parametrize('since', [
    -1e300, 1e300, 1e12, float('inf'), float('nan')])
def test_what_is_no_date_takes_nothing_from_the_others(
        monkeypatch: pytest.MonkeyPatch, instances: Path,
        capsys: pytest.CaptureFixture[str], since: float) -> None:
    waiting = [outbox.Waiting(guest, '/path', 'compute7', when, 3, 'refused')
               for guest, when in ((GUEST, since), (OTHER, 1790000000))]
    monkeypatch.setattr(outbox, 'waiting', lambda _: waiting)
    assert history.run(HOST, SimpleNamespace(
        guest=None, retry=False, json=True)) == 0
    assert [one['since'] for one in json.loads(capsys.readouterr().out)] == [
        None, '2026-09-21T14:13:20+00:00']
    assert history.run(HOST, arguments()) == 0
    _, row, other = capsys.readouterr().out.splitlines()
    assert row.split() == [GUEST, 'compute7', '-', '3']
    assert other.startswith(OTHER)


def test_nothing_of_this_guest_waits(instances: Path) -> None:
    left(instances, GUEST, 0)
    with pytest.raises(exception.GuestNotFound, match='Nothing of a guest f'):
        history.run(HOST, arguments('f'))


def test_what_is_on_its_way_is_not_said(instances: Path) -> None:
    left(instances, GUEST, time.time())
    path = left(instances, OTHER, time.time() - 61)
    (line,) = history.said(str(instances))
    assert line.startswith(f'{OTHER}: ')
    assert path in line
    assert f'"virtlogd-console history {OTHER} --retry"' in line


def test_a_disk_that_stalls_is_not_waited_for(
        instances: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stalled(*args: object) -> None:
        raise exception.DiskStalled('/x does not answer')
    left(instances, GUEST, 0)
    monkeypatch.setattr(disk.DISKS, 'ask', stalled)
    assert history.late(str(instances)) == []
