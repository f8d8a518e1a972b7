# SPDX-License-Identifier: Apache-2.0
"""What may differ from nova's own driver is listed, and nothing else does."""

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Statuses of subunit's test dictionaries that are as they should be.
GOOD = frozenset({'success', 'skip', 'xfail'})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test."""

    #: Of subunit's test dictionaries, or "not run".
    status: str
    #: The end of the traceback.
    text: str = ''
    #: The end of what nova logged meanwhile.
    log: str = ''

    @property
    def good(self) -> bool:
        return self.status in GOOD


@dataclass(frozen=True, slots=True)
class Difference:
    """One of nova's tests that this driver fails on purpose."""

    #: Name of the test below nova.tests.
    id: str
    reason: str
    #: What the end of its traceback says: another failure is not this one.
    failure: str
    #: Our own tests that state the wanted behaviour (path::Class::test).
    ours: tuple[str, ...]
    #: nova's releases (major versions) that have the test; empty is all.
    nova: tuple[int, ...] = ()


def load(path: Path) -> tuple[Difference, ...]:
    """Read the list.

    :raises ValueError: an entry without a reason, a failure, our own test
    """
    found = []
    for entry in tomllib.loads(path.read_text())['test']:
        difference = Difference(entry['id'], entry['reason'],
                                entry['failure'], tuple(entry['ours']),
                                tuple(entry.get('nova', ())))
        if not (difference.reason and difference.failure
                and difference.ours):
            raise ValueError(f'{path}: {difference.id} gives no reason, no '
                             'failure, or no test of our own')
        found.append(difference)
    return tuple(found)


def missing(differences: Sequence[Difference], root: Path) -> Iterator[str]:
    """Complaints about tests of our own that are named and do not exist."""
    for difference in differences:
        for test in difference.ours:
            path, *names = test.split('::')
            if not _has(root / path, names):
                yield f'{difference.id}: there is no {test}'


def _has(path: Path, names: Sequence[str]) -> bool:
    if not path.is_file():
        return False
    inside: ast.AST = ast.parse(path.read_text())
    for name in names:
        for node in ast.iter_child_nodes(inside):
            if (isinstance(node, ast.ClassDef | ast.FunctionDef)
                    and node.name == name):
                inside = node
                break
        else:
            return False
    return True


def judge(upstream: Mapping[str, Outcome] | None,
          ours: Mapping[str, Outcome], differences: Sequence[Difference],
          release: int, whole: Sequence[str] = ()) -> Iterator[str]:
    """Complaints about a run; none means that it is as it should be.

    :param upstream: what became of each test with nova's own driver, or None
        where that was not run; a test that fails there is not held against
        ours
    :param ours: the same with this driver
    :param release: nova's major version
    :param whole: the test modules that were run without leaving tests out:
        a listed test that is not in one of them has gone
    """
    listed = {d.id: d for d in differences}
    if not ours:
        yield 'no test was run'
    for test, outcome in sorted(ours.items()):
        if test in listed:
            if outcome.good:
                yield f'{test}: is listed as different, and passes'
            elif listed[test].failure not in outcome.text:
                yield f'{test}: fails in another way than is listed'
        elif not outcome.good and (upstream is None or test not in upstream
                                   or upstream[test].good):
            yield f'{test}: {outcome.status}'
    if upstream is not None:
        for test in sorted(upstream.keys() ^ ours.keys()):
            yield f'{test}: was not run with both drivers'
    for difference in differences:
        if (difference.id not in ours
                and (not difference.nova or release in difference.nova)
                and difference.id.startswith(
                    tuple(f'{module}.' for module in whole))):
            yield f'{difference.id}: is listed, and nova has no such test'
