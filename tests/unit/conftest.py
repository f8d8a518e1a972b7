# SPDX-License-Identifier: Apache-2.0
"""Unit tests have options, and are checked to leave nothing behind."""

from collections.abc import Iterator
from unittest import mock

import hypothesis
import pytest

from virtlogd_driver.console_log import neighbours, reader

# How long an example takes is for the machine to say: it may be busy.
hypothesis.settings.register_profile(
    'busy', hypothesis.settings(), deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile('busy')

# No thread of an earlier test has a log in its hands that a test reads; what
# it has read is closed as it ends (_close_logs).
reader._store._sweeps = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--schedules', type=int, default=500, metavar='N',
        help='random schedules of rotation to read a console log under')


def pytest_configure(config: pytest.Config) -> None:
    """A file or a socket that is left open fails the test."""
    for rule in (
            'error::ResourceWarning',
            # Where it is found by the garbage collector.
            'error::pytest.PytestUnraisableExceptionWarning',
            # oslo.privsep's own, of a helper that did not start.
            r"ignore:unclosed file <_io.TextIOWrapper name=\d+ mode='[rw]' "
            ':ResourceWarning',
            'ignore:unclosed <socket.*privsep.sock:ResourceWarning'):
        config.addinivalue_line('filterwarnings', rule)


@pytest.fixture(autouse=True)
def _slow_rotations(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test may pause between two real files where virtlogd does not."""
    # Where there are none, time is made up, and means what it does.
    with mock.patch.object(
            neighbours, 'ROTATION_NS', 3600 * 10 ** 9
            if 'tmp_path' in request.fixturenames
            else neighbours.ROTATION_NS):
        yield


@pytest.fixture(autouse=True)
def _close_logs() -> Iterator[None]:
    yield
    reader._store.close()


@pytest.fixture
def schedules(pytestconfig: pytest.Config) -> int:
    """How many random schedules to try."""
    return int(pytestconfig.getoption('--schedules'))
