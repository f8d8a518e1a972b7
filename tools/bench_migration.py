# SPDX-License-Identifier: Apache-2.0
"""What the log costs a live migration: downtime and wall time.

Two private hosts under a whole nova, with nova's own driver and with this one
in turn; a guest that writes all the while goes there and back, with no, 1 MiB
and 8 MiB of output from before. Run it as::

    python -m tests.lab.namespace python tools/bench_migration.py

Downtime is what libvirt says of the finished migration; wall time is from the
request to the REST API until nova has done with it. nova looks twice a second
whether the guest has moved, so that wall times jump by half a second, and
means say more than medians.
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts

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
    wall = nova.time_live_migration(server, to)
    if nova.host_of(server).name != to:
        raise RuntimeError(nova.log())
    stats = nova.guest(server).jobStats(
        libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    return {'downtime_ms': float(stats['downtime']),
            'libvirt_ms': float(stats['time_elapsed']), 'wall_s': wall}


def measure(driver: str, moves: int, results: Results) -> None:
    """One lab, a server for each size of history; they move in turn.

    The first move of each does not count, as caches are cold.
    """
    image = guest.disk_image(guest.boot_sector(interval=0.05))
    with tempfile.TemporaryDirectory() as directory, TwoHosts(
            Path(directory) / 'lab', image=image,
            options={(None, 'compute_driver'): DRIVERS[driver]}) as nova:
        servers = {}
        for history in HISTORIES:
            server = servers[history] = nova.boot_on('host1')
            nova.wait_for_output(server, 'line ')
            if history:
                old = nova.directory_on('host1', server) / 'console.log.0'
                old.write_bytes(b'old\n' * (history * MIB // 4))
            move(nova, server)
        for _ in range(moves):
            for history, server in servers.items():
                for name, value in move(nova, server).items():
                    results.setdefault((driver, history), {}).setdefault(
                        name, []).append(value)


def table(results: Results) -> str:
    lines = ['history  driver     downtime ms        wall s',
             '             median  min  max     mean  min   max']
    for history in HISTORIES:
        for driver in DRIVERS:
            found = results[driver, history]
            down, wall = found['downtime_ms'], found['wall_s']
            lines.append(
                f'{history:3d} MiB  {driver:5s}'
                f'{statistics.median(down):7.1f}{min(down):5.0f}'
                f'{max(down):5.0f}{statistics.mean(wall):9.2f}'
                f'{min(wall):6.2f}{max(wall):6.2f}')
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
        statistics.mean(results['this', history]['wall_s'])
        - statistics.mean(results['nova', history]['wall_s'])
        for history in HISTORIES]
    print('wall time more than nova, s:',
          ', '.join(f'{value:+.2f}' for value in more))
    if args.json:
        args.json.write_text(json.dumps([
            {'driver': driver, 'history_mib': history, **found}
            for (driver, history), found in results.items()], indent=1))
    return int(max(more) > WALL_GOAL)


if __name__ == '__main__':
    sys.exit(main())
