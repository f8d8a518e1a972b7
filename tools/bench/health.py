#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A health pass is timed, and so is bringing logs back.

Run it as ``python -m tests.lab.namespace python tools/bench/health.py``: it
starts a private libvirtd and virtlogd with real guests (24 MiB each) and asks
them as nova-compute does, through the privileged helper, in this process and
natively threaded. 500 guests are simulated by asking virtlogd for each real
log several times over, and by libvirt's answers repeated, parsing included.

It prints a table and writes the same as JSON, where a path is given.
"""

import argparse
import json
import logging
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from oslo_config import cfg

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver.guest import char_device
from virtlogd_driver.node import hypervisor, watch
from virtlogd_driver.virtlogd import health, periodic, privileged, viewer
from virtlogd_driver.virtlogd.health import LogState
from virtlogd_driver.virtlogd.port import Port

INTERVAL = 60
Row = dict[str, Any]


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf('SC_CLK_TCK')


def own_cpu_seconds() -> float:
    """This process's part."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def helper_pids() -> list[int]:
    """The privileged helpers of this process."""
    found = []
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / 'cmdline').read_bytes()
            except OSError:
                continue
            if b'privsep-helper' in command:
                found.append(int(entry.name))
    return found


class Bench:
    """A host with guests, and the measurements on it."""

    def __init__(self, lab: LibvirtHost, guests: int) -> None:
        self.host = lab
        self.connection = lab.connect()
        self.socket_path = str(lab.virtlogd_socket)
        self.start_guests(guests)
        self.rows: list[Row] = []

    def start_guests(self, count: int) -> None:
        """Guests that write a line of 15 bytes twice a second."""
        sector = guest.boot_sector(interval=0.5)
        logs = [self.host.log_directory / f'{number}.log'
                for number in range(count)]
        for number, log in enumerate(logs):
            self.connection.createXML(guest.domain_xml(
                self.host.directory, sector,
                [guest.tcp_serial(20000 + number, log)],
                name=f'guest{number}', memory=24))
        until(lambda: all(log.exists() and log.stat().st_size
                          for log in logs), 'all guests write', 120)

    def passes(self, name: str, list_ports: Callable[[], list[Port]],
               repeat: int) -> None:
        """Measure health passes, with some output of guests in between."""
        def once() -> health.Report:
            return health.examine(list_ports, self.socket_path, 30,
                                  list_viewers=viewer.viewers)

        report = once()
        processes = {
            'nova-compute': own_cpu_seconds,
            'helper': lambda: sum(map(cpu_seconds, helper_pids())),
            'virtlogd': lambda: cpu_seconds(self.host.virtlogd_pid),
            'libvirtd': lambda: cpu_seconds(self.host.libvirtd_pid)}
        used = dict.fromkeys(processes, 0.0)
        durations = []
        for _ in range(repeat):
            time.sleep(0.2)
            before = {one: look() for one, look in processes.items()}
            report = once()
            for one, look in processes.items():
                used[one] += look() - before[one]
            durations.append(report.duration)
        dead = report.count(LogState.DEAD)
        assert not dead, f'{dead} logs are dead'
        self.rows.append({
            'what': name, 'logs': len(report.logs),
            'median_seconds': statistics.median(durations),
            'worst_seconds': max(durations),
            **{f'{one}_cpu_seconds': seconds / repeat
               for one, seconds in used.items()},
            'share_of_a_core': sum(used.values()) / repeat / INTERVAL})

    def real(self) -> list[Port]:
        """The guests there are."""
        return watch.list_ports(self.connection)

    def simulated(self, count: int) -> list[Port]:
        """As many guests as wanted: libvirt lists the real ones again."""
        found: list[Port] = []
        round_ = 0
        while len(found) < count:
            found += [replace(port, guest=f'{port.guest}-{round_}')
                      for port in self.real()]
            round_ += 1
        return found[:count]

    def start_up(self) -> None:
        """What nova-compute asks of all guests when it starts."""
        begun, cpu = time.monotonic(), own_cpu_seconds()
        for found in hypervisor.list_guests(self.connection):
            char_device.parse(found.xml)
        taken = time.monotonic() - begun
        self.rows.append({
            'what': 'start-up: know the ports again', 'logs': len(self.real()),
            'median_seconds': taken, 'worst_seconds': taken,
            'nova-compute_cpu_seconds': own_cpu_seconds() - cpu})

    def reattach_all(self) -> None:
        """virtlogd is killed; every log is brought back."""
        self.host.stop_virtlogd(signal.SIGKILL)
        self.host.start_virtlogd()
        task = watch.health_task(
            lambda: self.connection,
            periodic.Settings(self.socket_path, INTERVAL, 30), heal=True)
        begun, cpu = time.monotonic(), own_cpu_seconds()
        report = task.run_once()
        taken = time.monotonic() - begun
        alive = report.count(LogState.ALIVE)
        assert alive == len(report.logs), f'{alive} of {len(report.logs)}'
        self.rows.append({
            'what': 'find and heal all dead logs', 'logs': alive,
            'median_seconds': taken, 'worst_seconds': taken,
            'nova-compute_cpu_seconds': own_cpu_seconds() - cpu})


def table(rows: list[Row]) -> str:
    """For people: milliseconds, and the share of a core in percent."""
    columns = [
        ('what', 'what', str),
        ('logs', 'logs', str),
        ('median ms', 'median_seconds', lambda value: f'{value * 1e3:.1f}'),
        ('worst ms', 'worst_seconds', lambda value: f'{value * 1e3:.1f}'),
        *((f'{one} cpu ms', f'{one}_cpu_seconds',
           lambda value: f'{value * 1e3:.1f}')
          for one in ('nova-compute', 'helper', 'virtlogd', 'libvirtd')),
        (f'share of a core, one pass in {INTERVAL} s', 'share_of_a_core',
         lambda value: f'{value * 100:.3f} %'),
    ]
    cells = [[title for title, _, _ in columns]]
    cells += [[form(row[key]) if key in row else '-'
               for _, key, form in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join(cell.ljust(width) if index == 0 else cell.rjust(width)
                       for index, (cell, width) in enumerate(
                           zip(line, widths, strict=True)))
             for line in cells]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--guests', type=int, default=100,
                        help='real guests of 24 MiB, which take 38 MiB each '
                             'of the host (default: 100)')
    parser.add_argument('--repeat', type=int, default=10,
                        help='passes measured (default: 10)')
    parser.add_argument('--json', type=Path, help='write the figures there')
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / 'helper.conf'
        cfg.CONF.set_override(
            'helper_command',
            f'{sys.prefix}/bin/privsep-helper --config-file {conf}',
            group=privileged.virtlogd_context.cfg_section)
        with LibvirtHost(Path(directory) / 'host') as lab:
            conf.write_text(
                '[virtlogd]\n'
                f'virtlogd_socket = {lab.virtlogd_socket}\n')
            begun = time.monotonic()
            bench = Bench(lab, arguments.guests)
            print(f'{arguments.guests} guests started in '
                  f'{time.monotonic() - begun:.1f} s')
            begun = time.monotonic()
            health.ask(bench.socket_path, [], 30)
            print('privileged helper started in '
                  f'{(time.monotonic() - begun) * 1e3:.0f} ms, once')
            bench.start_up()
            bench.passes('health pass', bench.real, arguments.repeat)
            for count in (100, 500):
                bench.passes(f'health pass, {count} simulated',
                             lambda count=count: bench.simulated(count),
                             arguments.repeat)
            bench.reattach_all()
            print(table(bench.rows))
            if arguments.json:
                arguments.json.write_text(json.dumps(bench.rows, indent=2))
    privileged.virtlogd_context.stop()


if __name__ == '__main__':
    main()
