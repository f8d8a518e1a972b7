# SPDX-License-Identifier: Apache-2.0
"""Options of the unit tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--schedules', type=int, default=500, metavar='N',
        help='random schedules of rotation to read a console log under')


@pytest.fixture
def schedules(pytestconfig: pytest.Config) -> int:
    """How many random schedules to try."""
    return int(pytestconfig.getoption('--schedules'))
