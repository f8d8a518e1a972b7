# SPDX-License-Identifier: Apache-2.0
"""Break a module line by line, and see that its unit tests notice.

cosmic-ray breaks a copy of the checkout. What nobody notices is a survivor,
and has to be explained in survivors.toml, or a test written that notices it.
"""

import argparse
import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome

from tests.mutation.modules import MODULES

ROOT = pathlib.Path(__file__).parents[2]
EXPLAINED = pathlib.Path(__file__).with_name('survivors.toml')
#: Seconds for the tests of a module; one that never ends is noticed.
TIMEOUT = 120.0
#: What is not tried: it changes annotations, or nothing that a caller sees,
#: or is no more likely to survive than its neighbour that is tried.
LEFT_OUT = [
    r'core/ReplaceBinaryOperator_(?!(Add_Sub|Sub_Add|Mul_FloorDiv)$).*',
    r'core/ReplaceComparisonOperator_(?!(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt'
    r'|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)$).*',
    r'core/ReplaceUnaryOperator_(?!Delete_Not$).*',
    'core/(RemoveDecorator|VariableReplacer|VariableInserter)',
]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tests.mutation', description=__doc__)
    parser.add_argument(
        'module', nargs='*', metavar='MODULE',
        help=f'such as {next(iter(MODULES))} (all of them)')
    arguments = parser.parse_args()
    unknown = set(arguments.module) - set(MODULES)
    if unknown:
        parser.error(f'no tests are named for {", ".join(sorted(unknown))}; '
                     f'there are {", ".join(MODULES)}')
    explained = _explained()
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as directory:
        copy = _copy(pathlib.Path(directory))
        for module in arguments.module or MODULES:
            begun = time.monotonic()
            tried, survivors = _try(copy, module)
            survivors = Counter(
                change for change in survivors.elements() if not any(
                    re.fullmatch(rule, change) for rule in explained['any']))
            known = explained.get(module, Counter())
            for change in (survivors - known).elements():
                print(f'{module}.py: nobody notices\n{change}\n')
            for change in (known - survivors).elements():
                print(f'{module}.py: does not survive any more, or is not '
                      f'made; take it out of {EXPLAINED.name}\n{change}\n')
            wrong += ((survivors - known) + (known - survivors)).total()
            rows.append((module, tried, survivors.total(), (
                survivors - known).total(), time.monotonic() - begun))
    print(f'{"module":32}{"tried":>7}{"survived":>10}{"unexplained":>13}'
          f'{"seconds":>9}')
    for module, tried, survived, unexplained, seconds in rows:
        print(f'{module:32}{tried:7}{survived:10}{unexplained:13}'
              f'{seconds:9.0f}')
    return int(wrong > 0)


def _explained() -> dict[str, Counter[str]]:
    """Changes that may survive, by module; regular expressions under any.

    One that can be made in two equal lines has to be there twice.
    """
    found: dict[str, Counter[str]] = {'any': Counter()}
    for survivor in tomllib.loads(EXPLAINED.read_text())['survivor']:
        assert survivor['why']
        found.setdefault(survivor['module'], Counter()).update(
            [survivor['change'].strip('\n')])
    return found


def _copy(directory: pathlib.Path) -> pathlib.Path:
    """A copy that may be broken: a run that is cut off leaves nothing."""
    copy = directory / 'checkout'
    names = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def _try(copy: pathlib.Path, module: str) -> tuple[int, Counter[str]]:
    """How many changes were tried, and those that nobody noticed."""
    tests = ' '.join(MODULES[module])
    config, session = copy / 'mutation.toml', copy / 'mutation.sqlite'
    session.unlink(missing_ok=True)
    left_out = ''.join(f'  {rule!r},\n' for rule in LEFT_OUT)
    config.write_text(
        '[cosmic-ray]\n'
        f'module-path = "virtlogd_driver/{module}.py"\n'
        f'timeout = {TIMEOUT}\n'
        'excluded-modules = []\n'
        f'test-command = "env PYTHONPATH={copy} {sys.executable} -m pytest '
        '-x -q --disable-warnings -p no:cacheprovider '
        f'--hypothesis-profile=ci {tests}"\n'
        '[cosmic-ray.distributor]\n'
        'name = "local"\n'
        '[cosmic-ray.filters.operators-filter]\n'
        f'exclude-operators = [\n{left_out}]\n')

    def run(*command: object) -> None:
        subprocess.run([str(word) for word in command], cwd=copy, check=True)
    run('cosmic-ray', 'init', config, session)
    run('cr-filter-operators', session, config)
    # The tests pass as long as nothing is broken.
    run('cosmic-ray', 'baseline', config)
    with subprocess.Popen(['cosmic-ray', 'exec', config, session],
                          cwd=copy) as process:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            done, all_of_them, survivors = _results(session)
            print(f'{module}: {done} of {all_of_them} tried, '
                  f'{survivors.total()} survived', flush=True)
            if process.returncode is not None:
                break
    if process.returncode:
        raise RuntimeError(f'cosmic-ray: exit status {process.returncode}')
    return done, survivors


def _results(session: pathlib.Path) -> tuple[int, int, Counter[str]]:
    """How many are tried, how many there are, and what has survived."""
    with use_db(str(session), WorkDB.Mode.open) as database:
        results = [result for _, result in database.results]
        count = database.num_work_items
    tried = [result for result in results
             if result.worker_outcome != WorkerOutcome.SKIPPED]
    return (len(tried), count - (len(results) - len(tried)),
            Counter(_change(result.diff or '') for result in tried
                    if not result.is_killed))


def _change(diff: str) -> str:
    """What is changed: the lines of a diff, without where they are."""
    return '\n'.join(_changed_lines(diff))


def _changed_lines(diff: str) -> Iterator[str]:
    for line in diff.splitlines():
        if re.match(r'[-+](?![-+]{2} )', line):
            yield f'{line[0]} {line[1:].strip()}'


if __name__ == '__main__':
    sys.exit(main())
