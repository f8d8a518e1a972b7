# SPDX-License-Identifier: Apache-2.0
"""What the relay does is written as a text file for Prometheus.

node_exporter's textfile collector reads it. It is replaced as a whole.
"""

import copy
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)

from virtlogd_driver.relay.console import Console, Counts, SerialPort

#: Each name in the file begins with this.
PREFIX = 'virtlogd_driver_relay'
_LABELS = ('guest', 'port')
_COUNTERS = (
    ('written_bytes', 'Bytes that guests have written.', 'written'),
    ('typed_bytes', 'Bytes that viewers have typed.', 'typed'),
    ('viewers_came', 'Viewers that were let in.', 'viewers'),
    ('viewers_refused', 'Viewers that were not let in.', 'refused'),
    ('viewers_disconnected', 'Viewers that were disconnected because they '
     'took nothing.', 'disconnected'),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A console is as it was seen at a moment, for any thread."""

    port: SerialPort
    counts: Counts
    #: Viewers that were there.
    viewers: int


def see(console: Console) -> Seen:
    """Look at a console."""
    counts = copy.copy(console.counts)
    counts.dropped = console.dropped
    return Seen(console.port, counts, len(console.viewers))


class _Collected:
    """prometheus_client asks this for metrics."""

    def __init__(self, consoles: Sequence[Seen], past: Counts) -> None:
        self._consoles = consoles
        self._past = past

    def collect(self) -> list[Metric]:
        viewers = GaugeMetricFamily(
            f'{PREFIX}_viewers', 'Viewers of a serial port.', labels=_LABELS)
        dropped = CounterMetricFamily(
            f'{PREFIX}_dropped_bytes',
            'Bytes that viewers were too slow for.', labels=_LABELS)
        # Counters of a host do not fall when a guest goes away.
        found: list[Metric] = [viewers, dropped]
        for console in self._consoles:
            labels = [console.port.guest, str(console.port.number)]
            viewers.add_metric(labels, console.viewers)
            dropped.add_metric(labels, console.counts.dropped)
        for name, text, attribute in _COUNTERS:
            family = CounterMetricFamily(
                f'{PREFIX}_{name}', text, labels=_LABELS)
            for console in self._consoles:
                family.add_metric(
                    [console.port.guest, str(console.port.number)],
                    getattr(console.counts, attribute))
            found.append(family)
        for name, text, attribute in (*_COUNTERS, (
                'dropped_bytes', 'Bytes that viewers were too slow for.',
                'dropped')):
            now = sum(getattr(console.counts, attribute)
                      for console in self._consoles)
            found.append(CounterMetricFamily(
                f'{PREFIX}_host_{name}', f'{text} Of all guests, those that '
                f'are gone too.', getattr(self._past, attribute) + now))
        return found


class File:
    """The file is written again and again.

    Where nothing has changed it is only touched: that tells that the relay
    lives, and many quiet consoles cost nothing.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._written: list[Any] = []

    def write(self, consoles: Sequence[Seen], past: Counts) -> None:
        """Write the metrics file, readable for node_exporter's user.

        :param past: the counts of consoles that are gone
        :raises OSError: it cannot be written
        """
        now = [copy.copy(past), *consoles]
        if now == self._written and os.path.exists(self.path):
            os.utime(self.path)
            return
        registry = prometheus_client.CollectorRegistry()
        registry.register(_Collected(consoles, past))
        prometheus_client.write_to_textfile(self.path, registry)
        mode = stat.S_IMODE(os.stat(self.path).st_mode)
        os.chmod(self.path, mode | stat.S_IRGRP | stat.S_IROTH)
        self._written = now
