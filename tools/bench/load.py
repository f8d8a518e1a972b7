# SPDX-License-Identifier: Apache-2.0
"""Many readers read many guests' logs, by nova's driver and by this one.

Each driver gets a process of its own with a number of guests on libvirt's
test driver. Threads read console logs (and ask for serial consoles) as fast
as they can, others delete guests and boot new ones, while a virtlogd of this
tool's own writes every guest's log and rotates it.

It fails if this driver gives a guest the log or the port of another, a log
with a hole in it, or an error; or if it leaks ports, file descriptors,
threads or memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.peers.virtlogd import Virtlogd  # noqa: E402

#: Column of the report, and how the driver is called in it.
DRIVERS = {'nova': 'nova', 'virtlogd_driver': 'this driver'}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=int, default=300, metavar='N',
                        help='for each driver; default 300')
    parser.add_argument('--guests', type=int, default=200, metavar='N')
    parser.add_argument('--readers', type=int, default=50, metavar='N')
    parser.add_argument('--churn', type=int, default=2, metavar='N',
                        help='threads that delete and boot; default 2')
    parser.add_argument('--pause', type=float, default=0, metavar='SECONDS',
                        help='of a reader between two reads; default none')
    parser.add_argument('--backend', choices=('eventlet', 'threading'),
                        help="default: that of the release's nova-compute")
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='write the report there')
    args = parser.parse_args()
    release = metadata.version('nova')
    backend = args.backend or (
        'threading' if int(release.split('.')[0]) >= 34 else 'eventlet')
    reports = {driver: _run(driver, backend, args) for driver in DRIVERS}
    print(f'nova {release}, {backend}: {args.guests} guests, {args.readers} '
          f'readers (pause {args.pause} s), {args.churn} that delete and '
          f'boot, {args.seconds} s')
    _print_table(reports)
    wrong = reports['virtlogd_driver']['wrong']
    for driver, report in reports.items():
        for complaint in report['wrong']:
            print(f'WRONG ({DRIVERS[driver]}): {complaint}')
    if args.json:
        args.json.write_text(json.dumps(
            {'nova': release, 'backend': backend, 'guests': args.guests,
             'readers': args.readers, 'churn': args.churn,
             'pause': args.pause, 'seconds': args.seconds,
             'drivers': reports}, indent=1) + '\n')
    return 1 if wrong else 0


def _run(driver: str, backend: str,
         args: argparse.Namespace) -> dict[str, Any]:
    """One driver under load, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix='load-') as directory:
        stop = threading.Event()
        writer = threading.Thread(
            target=Virtlogd(Path(directory)).run, args=(stop,))
        writer.start()
        try:
            done = subprocess.run(
                [sys.executable, '-m', 'tests.peers.load', driver, directory,
                 str(args.seconds), str(args.guests), str(args.readers),
                 str(args.churn), str(args.pause)],
                cwd=ROOT, check=True, stdout=subprocess.PIPE, env={
                    **os.environ, 'OS_NOVA_DISABLE_EVENTLET_PATCHING':
                    'true' if backend == 'threading' else 'false'})
        finally:
            stop.set()
            writer.join()
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _print_table(reports: Mapping[str, Mapping[str, Any]]) -> None:
    print(f'{"":34}' + ''.join(f'{name:>14}' for name in DRIVERS.values()))
    for operation in reports['nova']['operations']:
        for figure in ('per second', 'median ms', 'p99 ms'):
            _print_row(f'{operation}, {figure}', [
                report['operations'][operation][figure]
                for report in reports.values()])
    for kind in reports['nova']['counts']:
        _print_row(kind, [report['counts'][kind]
                          for report in reports.values()])


def _print_row(name: str, values: Sequence[float]) -> None:
    print(f'{name:34}' + ''.join(f'{value:>14,}' for value in values))


if __name__ == '__main__':
    sys.exit(main())
