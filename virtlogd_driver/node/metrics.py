# SPDX-License-Identifier: Apache-2.0
"""A health report is written as a text file for Prometheus.

node_exporter's textfile collector reads it. It is replaced as a whole.
"""

import os
import stat
from dataclasses import dataclass

import prometheus_client
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from virtlogd_driver.virtlogd.health import (
    LOST,
    DaemonState,
    LogState,
    Report,
)
from virtlogd_driver.virtlogd.periodic import Totals

#: Each name in the file begins with this.
PREFIX = 'virtlogd_driver'
LAST_PASS = f'{PREFIX}_health_pass_timestamp_seconds'
NOT_KEPT = f'{PREFIX}_deleted_logs_not_kept'
#: Characters that are read of a file: one of the driver's has some thousands.
_MOST_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of deleted guests, in numbers."""

    #: Logs.
    count: int
    #: Bytes of them.
    size: int
    #: When the guest of the oldest was deleted, in seconds since the epoch;
    #: None: there is none.
    oldest: float | None
    #: More can be kept.
    usable: bool
    #: Guests whose log was not kept, or not all of it.
    failed: int


class _Collected:
    """prometheus_client asks this for metrics."""

    def __init__(self, report: Report, totals: Totals,
                 kept: Kept | None) -> None:
        self._report = report
        self._totals = totals
        self._kept = kept

    def collect(self) -> list[Metric]:
        report, totals = self._report, self._totals
        daemon = GaugeMetricFamily(
            f'{PREFIX}_virtlogd', 'Whether virtlogd is in this state.',
            labels=['state'])
        for state in DaemonState:
            daemon.add_metric([state], report.daemon is state)
        logs = GaugeMetricFamily(
            f'{PREFIX}_console_logs', 'Console logs of running guests.',
            labels=['state'])
        for log_state in LogState:
            logs.add_metric([log_state], report.count(log_state))
        alive = GaugeMetricFamily(
            f'{PREFIX}_console_log_alive',
            'Whether what a guest writes on a serial port is logged.',
            labels=['guest', 'port'])
        for log in report.logs:
            if log.state in (LogState.ALIVE, *LOST):
                alive.add_metric([log.port.guest, str(log.port.number)],
                                 log.state is LogState.ALIVE)
        return [
            daemon, logs, alive,
            GaugeMetricFamily(
                f'{PREFIX}_stuck_viewers',
                'Viewers that stop the output of a guest.',
                len(report.stuck)),
            GaugeMetricFamily(
                f'{PREFIX}_closed_consoles',
                'Interactive consoles that nobody listens on.',
                len(report.closed)),
            GaugeMetricFamily(
                f'{PREFIX}_unrelayed_consoles',
                'Interactive consoles that the relay does not listen for.',
                len(report.without_relay)),
            GaugeMetricFamily(
                f'{PREFIX}_libvirt_up',
                'Whether libvirt told its guests to the health pass.',
                not report.libvirt),
            GaugeMetricFamily(
                LAST_PASS, 'When the last health pass was made.',
                report.time),
            GaugeMetricFamily(
                f'{PREFIX}_health_pass_duration_seconds',
                'What the last health pass took.', report.duration),
            CounterMetricFamily(
                f'{PREFIX}_console_logs_died', 'Console logs that died.',
                totals.died),
            CounterMetricFamily(
                f'{PREFIX}_console_logs_reattached',
                'Console logs that were brought back.', totals.reattached),
            CounterMetricFamily(
                f'{PREFIX}_console_log_reattachments_failed',
                'Attempts to bring a console log back that failed.',
                totals.reattach_failed),
            CounterMetricFamily(
                f'{PREFIX}_viewers_disconnected',
                'Viewers that were disconnected because they did not read.',
                totals.viewers_disconnected),
            *_of_deleted(self._kept),
        ]


def _of_deleted(kept: Kept | None) -> list[Metric]:
    if kept is None:
        return []
    oldest = [] if kept.oldest is None else [GaugeMetricFamily(
        f'{PREFIX}_deleted_logs_oldest_timestamp_seconds',
        'When the guest was deleted whose log is kept for longest.',
        kept.oldest)]
    return [
        GaugeMetricFamily(
            f'{PREFIX}_deleted_logs', 'Console logs of deleted guests.',
            kept.count),
        GaugeMetricFamily(
            f'{PREFIX}_deleted_logs_bytes', 'Bytes of them.', kept.size),
        *oldest,
        GaugeMetricFamily(
            f'{PREFIX}_deleted_logs_usable',
            'Whether logs of deleted guests can be kept.', kept.usable),
        CounterMetricFamily(
            NOT_KEPT, 'Console logs of deleted guests that were not kept, or '
            'not whole.', kept.failed)]


def write(path: str, report: Report, totals: Totals,
          kept: Kept | None = None) -> None:
    """Write the metrics file, readable for node_exporter's user.

    :param kept: what is kept of deleted guests; None: nothing is, nor is to
        be, or that is not known
    :raises OSError: it cannot be written
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(_Collected(report, totals, kept))
    prometheus_client.write_to_textfile(path, registry)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, mode | stat.S_IRGRP | stat.S_IROTH)


def last_pass(path: str) -> float | None:
    """Tell when the health pass that wrote a metrics file was made.

    :returns: seconds since the epoch; None for a file without it
    :raises OSError, ValueError: it cannot be read
    """
    return _value(path, LAST_PASS)


def not_kept(path: str) -> int:
    """Tell how many logs of deleted guests were not kept, or not whole.

    :returns: since nova-compute was started; 0 for a file without it
    :raises OSError, ValueError: it cannot be read
    """
    return int(_value(path, f'{NOT_KEPT}_total') or 0)


def _value(path: str, wanted: str) -> float | None:
    with open(path, encoding='utf-8') as metrics:
        for line in metrics.read(_MOST_READ).splitlines():
            name, _, value = line.partition(' ')
            if name == wanted:
                return float(value)
    return None
