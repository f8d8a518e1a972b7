# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from typing import Any

import pytest

from tools.setup import counts

#: What a report of pytest's is counted as.
_COUNTED = {'passed': 'passed', 'xfailed': 'not_run', 'failed': 'failed',
            'error': 'failed', 'xpassed': 'failed', 'skipped': 'not_run',
            'deselected': 'not_run'}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--regenerate-output', action='store_true',
        help='write golden files anew instead of comparing with them')


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """For the summary of tools/test.sh, by directory."""
    found: dict[str, Counter[str]] = {}
    for outcome, counted in _COUNTED.items():
        for report in terminalreporter.stats.get(outcome, ()):
            _, group, *_ = [*report.nodeid.split('/'), 'tests']
            found.setdefault(group, Counter())[counted] += 1
    for group, numbers in found.items():
        counts.add(group, counts.Counts(
            numbers['passed'], numbers['failed'], numbers['not_run']))
