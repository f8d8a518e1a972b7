# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import stat

import pytest
from prometheus_client import parser

from virtlogd_driver.node import metrics
from virtlogd_driver.virtlogd import health, viewer
from virtlogd_driver.virtlogd.health import DaemonState, LogState
from virtlogd_driver.virtlogd.periodic import Totals
from virtlogd_driver.virtlogd.port import Port

PORTS = [Port('uuid', 'name', number, f'/{number}') for number in range(4)]
REPORT = health.Report(
    DaemonState.UP,
    logs=(health.Log(PORTS[0], LogState.ALIVE),
          health.Log(PORTS[1], LogState.DEAD),
          health.Log(PORTS[2], LogState.UNROTATED),
          health.Log(PORTS[3], LogState.NOT_LOGGING)),
    stuck=(health.Stuck(PORTS[0], viewer.Viewer(
        ('127.0.0.1', 1), ('127.0.0.1', 2), 60, True, b'')),),
    unopened=(health.Unopened(PORTS[1], 100),
              health.Unopened(PORTS[0], 100 - health.CLOSED_AFTER)),
    time=1792800000.25, duration=0.0625, moment=100)


def samples(path: pathlib.Path) -> dict[tuple[str, tuple[str, ...]], float]:
    families = parser.text_string_to_metric_families(path.read_text())
    return {(sample.name.removeprefix('virtlogd_driver_'),
             tuple(sample.labels.values())): sample.value
            for family in families for sample in family.samples}


def test_every_metric(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'virtlogd.prom'
    metrics.write(str(path), REPORT, Totals(5, 4, 3, 2))
    assert samples(path) == {
        ('virtlogd', ('up',)): 1,
        ('virtlogd', ('down',)): 0,
        ('virtlogd', ('hung',)): 0,
        ('virtlogd', ('refused',)): 0,
        ('virtlogd', ('full',)): 0,
        ('console_logs', ('alive',)): 1,
        ('console_logs', ('dead',)): 1,
        ('console_logs', ('unrotated',)): 1,
        ('console_logs', ('not-logging',)): 1,
        ('console_logs', ('unknown',)): 0,
        ('console_logs', ('unlinked',)): 0,
        ('console_logs', ('held',)): 0,
        ('console_log_alive', ('uuid', '0')): 1,
        ('console_log_alive', ('uuid', '1')): 0,
        ('stuck_viewers', ()): 1,
        ('closed_consoles', ()): 1,
        ('unrelayed_consoles', ()): 0,
        ('libvirt_up', ()): 1,
        ('health_pass_timestamp_seconds', ()): 1792800000.25,
        ('health_pass_duration_seconds', ()): 0.0625,
        ('console_logs_died_total', ()): 5,
        ('console_logs_reattached_total', ()): 4,
        ('console_log_reattachments_failed_total', ()): 3,
        ('viewers_disconnected_total', ()): 2,
    }
    assert metrics.last_pass(str(path)) == 1792800000.25


@pytest.mark.parametrize(('oldest', 'count'), [(None, 0), (1e9, 3)])
def test_logs_of_deleted_guests(tmp_path: pathlib.Path, oldest: float | None,
                                count: int) -> None:
    path = tmp_path / 'virtlogd.prom'
    metrics.write(str(path), REPORT, Totals(), metrics.Kept(
        count, 4096, oldest, False, 2))
    assert {name: value for (name, _), value in samples(path).items()
            if 'deleted' in name} == {
        'deleted_logs': count,
        'deleted_logs_bytes': 4096,
        'deleted_logs_usable': 0,
        'deleted_logs_not_kept_total': 2,
        **({} if oldest is None else {
            'deleted_logs_oldest_timestamp_seconds': oldest})}
    assert metrics.not_kept(str(path)) == 2
    metrics.write(str(path), REPORT, Totals())
    assert metrics.not_kept(str(path)) == 0


def test_file_is_replaced_whole_and_others_may_read_it(
        tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'virtlogd.prom'
    path.write_text('old')
    with path.open() as reader:
        umask = os.umask(0o077)
        try:
            metrics.write(str(path), REPORT, Totals())
        finally:
            os.umask(umask)
        assert reader.read() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_directory_that_is_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match='No such file'):
        metrics.write(str(tmp_path / 'none' / 'a.prom'), REPORT, Totals())


def test_last_pass_of_another_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'other.prom'
    path.write_text('up 1\n')
    assert metrics.last_pass(str(path)) is None
    # It has no end.
    assert metrics.last_pass('/dev/zero') is None
