# SPDX-License-Identifier: Apache-2.0
"""The runner breaks the modules of the checkout that it is in.

``__main__.py`` starts it in a copy. What takes longest of a short test run is
to import pytest and the libraries: this process does so once, and is forked
for each change.
"""

import contextlib
import difflib
import gc
import importlib
import importlib.util
import math
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import pytest
from cosmic_ray import mutating, plugins
from cosmic_ray.ast import ast_nodes, get_ast

from tests.mutation.modules import MODULES

ROOT = pathlib.Path(__file__).parents[2]
EXPLAINED = pathlib.Path(__file__).with_name('survivors.toml')
#: Tests of a broken module that take longer never end, which is noticed:
#: seconds, and how many times what they take while nothing is broken; of the
#: processor, and by the clock on a machine that is busy with other things.
PROCESSOR, CLOCK = (2, 4), (30, 10)
#: What is not tried: it changes annotations, or nothing that a caller sees,
#: or is no more likely to survive than its neighbour that is tried.
LEFT_OUT = [
    r'core/ReplaceBinaryOperator_(?!(Add_Sub|Sub_Add|Mul_FloorDiv)$).*',
    r'core/ReplaceComparisonOperator_(?!(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt'
    r'|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)$).*',
    r'core/ReplaceUnaryOperator_(?!Delete_Not$).*',
    'core/(RemoveDecorator|VariableReplacer|VariableInserter)',
]

_FORK = multiprocessing.get_context('fork')


def main(modules: list[str]) -> int:
    explained = _explained()
    rows, wrong = [], 0
    for module in modules:
        begun = time.monotonic()
        tried, survivors = _try(module)
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


def _try(module: str) -> tuple[int, Counter[str]]:
    """How many changes were tried, and those that nobody noticed."""
    path = ROOT / f'virtlogd_driver/{module}.py'
    code = path.read_text()
    limits = _prepare(module)
    survivors: Counter[str] = Counter()
    number = 0
    try:
        for number, changed in enumerate(_broken(code), 1):
            path.write_text(changed)
            noticed = _run(module, limits) != 0
            if not noticed:
                survivors[_change(code, changed)] += 1
                print(_change(code, changed))
            if not noticed or number % 20 == 0:
                print(f'{module}: {number} tried, {survivors.total()} '
                      'survived', flush=True)
    finally:
        path.write_text(code)
    return number, survivors


def _broken(code: str) -> Iterator[str]:
    """A module's code with one thing changed, for each thing."""
    nodes = list(ast_nodes(get_ast(code)))
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments() or any(re.match(rule, name) for rule in LEFT_OUT):
            continue
        count = sum(len(list(kind().mutation_positions(node)))
                    for node in nodes)
        for occurrence in range(count):
            # cosmic-ray 8.4 cannot replace what is in "except (a, b.c)".
            with contextlib.suppress(AttributeError):
                yield mutating.mutate_code(code, kind(), occurrence)


@dataclass(frozen=True, slots=True)
class _Limits:
    """Tests may take so many seconds."""

    processor: int = resource.RLIM_INFINITY
    clock: float | None = None


def _prepare(module: str) -> _Limits:
    """Import what the tests of a module import, but for what is broken.

    :returns: what they may take
    :raises RuntimeError: they fail while nothing is broken
    """
    begun = time.monotonic()
    here, there = _FORK.Pipe(duplex=False)
    with here, there:
        status = _run(module, loaded=there)
        if status != 0:
            raise RuntimeError(
                f'the tests of {module} fail with status {status} while '
                'nothing is broken')
        libraries, processor = here.recv()
    clock = time.monotonic() - begun
    for library in libraries:
        with contextlib.suppress(Exception):
            importlib.import_module(library)
    assert f'virtlogd_driver.{module.replace("/", ".")}' not in sys.modules
    # It may be as old and as long as what is broken.
    pathlib.Path(importlib.util.cache_from_source(str(
        ROOT / f'virtlogd_driver/{module}.py'))).unlink(missing_ok=True)
    # No child looks through all that again.
    gc.collect()
    gc.freeze()
    return _Limits(PROCESSOR[0] + math.ceil(PROCESSOR[1] * processor),
                   CLOCK[0] + CLOCK[1] * clock)


def _run(module: str, limits: _Limits = _Limits(),
         loaded: Connection | None = None) -> int | None:
    """The exit status of a module's tests, in a process of their own.

    :param loaded: is sent the names of the libraries that they have imported,
        and the seconds of the processor that they took
    """
    process = _FORK.Process(target=_test, args=(module, limits, loaded))
    process.start()
    process.join(limits.clock)
    # With all that it has started.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.ident or 0, signal.SIGKILL)
    process.join()
    return process.exitcode


def _test(module: str, limits: _Limits,
          loaded: Connection | None) -> None:
    os.setsid()
    resource.setrlimit(
        resource.RLIMIT_CPU, (limits.processor, limits.processor))
    # What is broken is not kept.
    sys.dont_write_bytecode = loaded is None
    if loaded is None:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    before, begun = set(sys.modules), time.process_time()
    tests = MODULES[module]
    # To look for plugins takes as long as to run most tests.
    hypothesis = (
        ['-p', '_hypothesis_pytestplugin', '--hypothesis-profile=ci'] if any(
            'hypothesis' in (ROOT / test).read_text() for test in tests)
        else [])
    status = pytest.main([
        '-x', '-q', '--disable-warnings', '-p', 'no:cacheprovider',
        '--tb=short' if loaded else '--tb=no',
        f'--basetemp={ROOT.parent / "tests"}', *hypothesis, *tests])
    if loaded is not None:
        loaded.send((sorted(
            name for name in set(sys.modules) - before
            if name.partition('.')[0] not in (
                'tests', 'tools', 'conftest', 'virtlogd_driver')),
            time.process_time() - begun))
    sys.exit(status)


def _change(code: str, changed: str) -> str:
    """What is changed: the lines of a diff, without where they are."""
    return '\n'.join(
        f'{line[0]} {line[1:].strip()}' for line in difflib.unified_diff(
            code.splitlines(), changed.splitlines(), lineterm='', n=0)
        if re.match(r'[-+](?![-+]{2} )', line))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
