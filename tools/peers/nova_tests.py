# SPDX-License-Identifier: Apache-2.0
"""nova's own tests are run against this driver, beside nova's own.

Each test that fails with this driver has to be in tests/peers/differs.toml,
with the reason, and none that is there may pass. The installed nova is the
one that is tested, in the concurrency mode that its nova-compute has by
default: eventlet up to release 33, native threads from 34.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import subunit
import testtools

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.peers import differs  # noqa: E402
from tools.setup import counts  # noqa: E402

UNIT = ('unit.virt.libvirt.test_driver',)
#: What boots, moves and ends guests, and what changes their devices. Not
#: here: what only schedules and reports (NUMA, PCI, traits, SEV).
FUNCTIONAL = (
    *(f'functional.libvirt.test_{name}' for name in (
        'device_bus_migration', 'evacuate', 'live_migration', 'machine_type',
        'migration_addr', 'numa_live_migration', 'power_manage',
        'rescue_deleted_base', 'server_shares', 'shared_resource_provider',
        'stateless_firmware', 'uefi', 'vgpu', 'vif_model', 'vpmem', 'vtpm')),
    # Live migration: with serial consoles, rolled back, with volumes, pinned;
    # resize; evacuation.
    *(f'functional.regressions.test_bug_{number}' for number in (
        1595962, 1741364, 1888395, 1899835, 1939545, 1944619, 1983753,
        2007968, 2085975, 2139351, 2152697, 2153425)))
#: Seconds between two lines of progress.
PROGRESS = 30.0
#: What a driver of consoles touches first.
CONSOLES = r'console|serial|logd|public_api_signatures'

SUITES = {
    'all': (*UNIT, *FUNCTIONAL),
    'consoles': UNIT,
    'functional': FUNCTIONAL,
    'unit': UNIT,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite with one of the two drivers."""

    outcomes: Mapping[str, differs.Outcome]
    seconds: float

    def counted(self) -> dict[str, float]:
        counts = Counter(o.status for o in self.outcomes.values())
        return {
            'tests': len(self.outcomes),
            'passed': counts.pop('success', 0),
            'skipped': counts.pop('skip', 0),
            'expected failures': counts.pop('xfail', 0),
            'failed': sum(counts.values()),
            'seconds': round(self.seconds),
        }


def main() -> int:
    args = _parse()
    release = metadata.version('nova')
    major = int(release.split('.')[0])
    backend = args.backend or ('threading' if major >= 34 else 'eventlet')
    modules = SUITES[args.suite]
    pattern = CONSOLES if args.suite == 'consoles' else args.pattern
    differences = differs.load(ROOT / 'tests/peers/differs.toml')

    runs = {name: _run(name, modules, pattern, backend, args.workers)
            for name in (('ours',) if args.ours_only
                         else ('upstream', 'ours'))}
    upstream = runs.get('upstream')
    complaints = [
        *differs.missing(differences, ROOT),
        *differs.judge(upstream and upstream.outcomes, runs['ours'].outcomes,
                       differences, major, () if pattern else modules)]

    print(f'nova {release}, {backend}, suite {args.suite}')
    _print_table(runs)
    _print_failures(differences, runs['ours'].outcomes)
    for complaint in complaints:
        print(f'WRONG: {complaint}')
    _count(f'nova {release}, {args.suite}', runs['ours'].outcomes,
           {d.id for d in differences})
    if args.json:
        args.json.write_text(json.dumps({
            'nova': release, 'backend': backend, 'suite': args.suite,
            'runs': {name: run.counted() for name, run in runs.items()},
            'wrong': complaints}, indent=1) + '\n')
    return 1 if complaints else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--suite', choices=sorted(SUITES), default='all',
                        help='default: all')
    parser.add_argument('--ours-only', action='store_true',
                        help="leave out the run with nova's own driver")
    parser.add_argument('--backend', choices=('eventlet', 'threading'),
                        help="default: that of the release's nova-compute")
    parser.add_argument('--workers', type=int, default=2, metavar='N',
                        help='processes at a time, default 2')
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='write the figures there')
    parser.add_argument('pattern', nargs='?',
                        help='only tests whose name this expression matches')
    return parser.parse_args()


def _run(name: str, modules: Sequence[str], pattern: str | None,
         backend: str, workers: int) -> Run:
    """Run the modules with driver ``name``, each test once."""
    started = time.monotonic()
    outcomes = _stestr(name, modules, pattern, backend, workers)
    return Run(outcomes, time.monotonic() - started)


def _stestr(name: str, modules: Sequence[str], pattern: str | None,
            backend: str, workers: int) -> dict[str, differs.Outcome]:
    environment = {
        **os.environ,
        'VIRTLOGD_PEERS': ' '.join(modules),
        'VIRTLOGD_PEERS_DRIVER': name,
        'OS_NOVA_DISABLE_EVENTLET_PATCHING':
            'true' if backend == 'threading' else 'false',
        # nova's fixture of cells can wait for itself where a test lasts long
        # enough for its services to report (fasteners' lock is not fair to
        # who reads twice).
        'OS_TEST_TIMEOUT': os.environ.get('OS_TEST_TIMEOUT', '300'),
        # Of the workers; stestr asks the environment first.
        'PYTHON': sys.executable,
    }
    with (tempfile.TemporaryDirectory(prefix='peers-') as directory,
          tempfile.TemporaryFile() as errors):
        command = [
            sys.executable, '-m', 'stestr', '--top-dir', str(ROOT),
            '--test-path', str(ROOT / 'tests/peers'),
            '--repo-url', directory, 'run', '--subunit',
            '--concurrency', str(workers), *([pattern] if pattern else [])]
        with subprocess.Popen(command, cwd=ROOT, env=environment,
                              stdout=subprocess.PIPE, stderr=errors) as done:
            assert done.stdout is not None
            outcomes = _outcomes(done.stdout, name)
        # 1: a test has failed.
        if not outcomes or done.returncode not in (0, 1):
            print(f'stestr ended with status {done.returncode}')
            errors.seek(0)
            sys.stdout.write(errors.read().decode(errors='replace'))
    return outcomes


def _outcomes(stream: IO[bytes], name: str) -> dict[str, differs.Outcome]:
    """What became of each test of a subunit stream, by its name in nova.

    :param name: of the run, for a line of progress now and then
    """
    found: dict[str, differs.Outcome] = {}
    started = said = time.monotonic()

    def say() -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < PROGRESS:
            return
        said = now
        ended = [o for o in found.values() if o.status != 'not run']
        print(f'{name}: {len(ended)} tests, '
              f'{sum(not o.good for o in ended)} failed, '
              f'{now - started:.0f} s', file=sys.stderr, flush=True)

    def finished(test: dict[str, Any]) -> None:
        test_name = test['id'].removeprefix('nova.tests.')
        if test['status'] == 'exists':
            # Announced; it stays so if its worker dies before it is run.
            found.setdefault(test_name, differs.Outcome('not run'))
        else:
            found[test_name] = differs.Outcome(
                test['status'],
                _last_lines(test['details'], 'traceback', 12),
                _last_lines(test['details'], 'pythonlogging', 400))
            say()

    result = testtools.StreamToDict(finished)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(
        stream, non_subunit_name='stdout').run(result)
    result.stopTestRun()
    return found


def _last_lines(details: Mapping[str, Any], kind: str, lines: int) -> str:
    """The end of what a test has printed of a kind."""
    text = '\n'.join(content.as_text() for name, content in details.items()
                     if kind in name)
    shown = [line[:300] for line in text.splitlines() if line.strip()]
    return '\n'.join(shown[-lines:])


def _count(group: str, outcomes: Mapping[str, differs.Outcome],
           listed: Collection[str]) -> None:
    """For the summary of tools/test.sh."""
    skipped = sum(o.status in ('skip', 'not run') for o in outcomes.values())
    failed = sum(not o.good and o.status != 'not run' and test not in listed
                 for test, o in outcomes.items())
    counts.add(group, counts.Counts(
        len(outcomes) - skipped - failed, failed, skipped))


def _print_table(runs: Mapping[str, Run]) -> None:
    counted = {name: run.counted() for name, run in runs.items()}
    print(f'{"":20}' + ''.join(f'{name:>10}' for name in runs))
    for row in next(iter(counted.values())):
        print(f'{row:20}'
              + ''.join(f'{counts[row]:>10}' for counts in counted.values()))


def _print_failures(differences: Sequence[differs.Difference],
                    outcomes: Mapping[str, differs.Outcome]) -> None:
    listed = {d.id: d for d in differences}
    for test, outcome in sorted(outcomes.items()):
        if outcome.good:
            continue
        if test in listed and listed[test].failure in outcome.text:
            print(f'differs: {test}\n    {listed[test].reason}')
            for own in listed[test].ours:
                print(f'    {own}')
        else:
            print(f'{test}\n{outcome.text}\n{outcome.log}')


if __name__ == '__main__':
    sys.exit(main())
