# SPDX-License-Identifier: Apache-2.0
"""``python tools/setup/counts.py FILE`` counts the tests of each group.

Whatever runs tests adds lines to the file that ``VIRTLOGD_COUNTS`` names
(tests/conftest.py, tools/peers/nova_tests.py, tools/demo.py); several of one
group add up. Nothing but the standard library: it runs on every machine.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The environment variable that names the file.
VARIABLE = 'VIRTLOGD_COUNTS'


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the tests of a group.

    :ivar passed: as they should
    :ivar failed: or could not be begun
    :ivar not_run: skipped, or not asked for
    """

    passed: int
    failed: int
    not_run: int

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(self.passed + other.passed, self.failed + other.failed,
                      self.not_run + other.not_run)


def add(group: str, counts: Counts) -> None:
    """Note what became of some tests, if anybody asked for it."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, 'a') as file:
            file.write(f'{group}\t{counts.passed}\t{counts.failed}\t'
                       f'{counts.not_run}\n')


def read(path: Path) -> dict[str, Counts]:
    """What was noted, by group, in the order of the first of each.

    :returns: nothing if the file is not there
    """
    found: dict[str, Counts] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        group, *numbers = line.split('\t')
        found[group] = found.get(group, Counts(0, 0, 0)) + Counts(
            *map(int, numbers))
    return found


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A simple table of reStructuredText; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = '  '.join('=' * width for width in widths)
    lines = ['  '.join(cell.ljust(width) for cell, width in
                       zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return iter([rule, lines[0], rule, *lines[1:], rule])


def rows(counts: dict[str, Counts]) -> list[tuple[str, ...]]:
    """What ``table`` shows of them."""
    return [('', 'passed', 'failed', 'not run'), *(
        (group, str(c.passed), str(c.failed), str(c.not_run))
        for group, c in counts.items())]


def main() -> int:
    print('\n'.join(table(rows(read(Path(sys.argv[1]))))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
