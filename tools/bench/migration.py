# SPDX-License-Identifier: Apache-2.0
"""A live migration is timed with and without the log: downtime and wall time.

Two private hosts under a whole nova, with nova's own driver and with this one
in turn; a guest that writes all the while goes there and back, with no, 1 MiB
and 8 MiB of output from before. Run it as::

    python -m tests.lab.namespace python tools/bench/migration.py

Downtime is what libvirt says of the finished migration; wall time is from the
request to the REST API until nova has done with it. The history follows the
guest so many seconds after that, or, where they are negative, before. nova
looks twice a second whether the guest has moved, so that wall times jump by
half a second, and means say more than medians.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import fixtures

from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from virtlogd_driver.history import history

# isort: split
import libvirt

DRIVERS = {'nova': 'libvirt.LibvirtDriver',
           'this': 'virtlogd_driver.VirtlogdDriver'}
MIB = 1024 * 1024
HISTORIES = (0, 1, 8)
#: What a move may take longer with this driver, in seconds.
WALL_GOAL = 0.3

Results = dict[tuple[str, int], dict[str, list[float]]]


def move(nova: TwoHosts, server: Server) -> dict[str, float]:
    """To the other host."""
    to = {'host1': 'host2', 'host2': 'host1'}[nova.host_of(server).name]
    received = []
    receive = history.History.receive

    def noted(*args: Any) -> None:
        receive(*args)
        received.append(time.monotonic())

    with fixtures.MockPatchObject(history.History, 'receive', noted):
        begin = time.monotonic()
        wall = nova.time_live_migration(server, to)
        nova.wait_for_history(server)
    if nova.host_of(server).name != to:
        raise RuntimeError(nova.log())
    stats = nova.guest(server).jobStats(
        libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    return {'downtime_ms': float(stats['downtime']),
            'libvirt_ms': float(stats['time_elapsed']), 'wall_s': wall,
            **({'follows_s': received[0] - begin - wall} if received else {})}


def measure(driver: str, moves: int, results: Results) -> None:
    """One lab, a server for each size of history; they move in turn.

    The first move of each does not count, as caches are cold.
    """
    image = guest.disk_image(guest.boot_sector(interval=0.05))
    with tempfile.TemporaryDirectory() as directory, TwoHosts(
            Path(directory) / 'lab', image=image,
            options={(None, 'compute_driver'): DRIVERS[driver]}) as nova:
        servers = {}
        for size in HISTORIES:
            server = servers[size] = nova.boot_on('host1')
            nova.wait_for_output(server, 'line ')
            if size:
                old = nova.directory_on('host1', server) / 'console.log.0'
                old.write_bytes(b'old\n' * (size * MIB // 4))
            move(nova, server)
        for _ in range(moves):
            for size, server in servers.items():
                for name, value in move(nova, server).items():
                    results.setdefault((driver, size), {}).setdefault(
                        name, []).append(value)


def table(results: Results) -> str:
    lines = ['history  driver     downtime ms        wall s         follows s',
             '             median  min  max     mean  min   max   mean   max']
    for size in HISTORIES:
        for driver in DRIVERS:
            found = results[driver, size]
            down, wall = found['downtime_ms'], found['wall_s']
            lines.append(
                f'{size:3d} MiB  {driver:5s}'
                f'{statistics.median(down):7.1f}{min(down):5.0f}'
                f'{max(down):5.0f}{statistics.mean(wall):9.2f}'
                f'{min(wall):6.2f}{max(wall):6.2f}' + (
                    f'{statistics.mean(found["follows_s"]):7.2f}'
                    f'{max(found["follows_s"]):6.2f}'
                    if 'follows_s' in found else ''))
    return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--moves', type=int, default=4,
                        help='of each server, in each round')
    parser.add_argument('--rounds', type=int, default=3,
                        help='of both drivers')
    parser.add_argument('--json', type=Path, help='write all values there')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    results: Results = {}
    for _ in range(args.rounds):
        for driver in DRIVERS:
            measure(driver, args.moves, results)
    print(table(results))
    more = [
        statistics.mean(results['this', size]['wall_s'])
        - statistics.mean(results['nova', size]['wall_s'])
        for size in HISTORIES]
    print('wall time more than nova, s:',
          ', '.join(f'{value:+.2f}' for value in more))
    if args.json:
        args.json.write_text(json.dumps([
            {'driver': driver, 'history_mib': size, **found}
            for (driver, size), found in results.items()], indent=1))
    return int(max(more) > WALL_GOAL)


if __name__ == '__main__':
    sys.exit(main())
