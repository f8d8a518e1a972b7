# SPDX-License-Identifier: Apache-2.0
"""The fixtures of the functional tests need ``tests.lab.namespace``."""

from tests.lab import concurrency  # noqa: F401

# isort: split
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.functional.moving_server import UNCUT, WRITER, Make, Use
from tests.lab import namespace
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode
from tests.lab.two_hosts import TwoHosts


def pytest_configure(config: pytest.Config) -> None:
    if not namespace.inside():
        raise pytest.UsageError(
            'functional tests start daemons of their own: run '
            '"python -m tests.lab.namespace python -m pytest '
            'tests/functional" as root, or "tox -e functional"')
    if config.option.log_level is None:
        # nova says ten thousand things at DEBUG in each test.
        config.option.log_level = 'INFO'


@pytest.fixture
def use() -> Iterator[Callable[[fixtures.Fixture], fixtures.Fixture]]:
    """Set a fixture up, and clean it up after the test: ``use(Fixture())``."""
    with fixtures.Fixture() as test:
        yield test.useFixture


@pytest.fixture
def libvirt_host(tmp_path: Path) -> Iterator[LibvirtHost]:
    """One hypervisor host, with libvirt's default settings."""
    with LibvirtHost(tmp_path / 'host1') as host:
        yield host


@pytest.fixture
def console(libvirt_host: LibvirtHost) -> Iterator[Console]:
    """The command on that host."""
    with Console(libvirt_host.uri, libvirt_host.virtlogd_socket) as fixture:
        yield fixture


@pytest.fixture
def nova(libvirt_host: LibvirtHost, tmp_path: Path) -> Iterator[NovaNode]:
    """Its guests write ten lines, then send back what is typed.

    There is only one TCP port to give out: an operation that leaks it, or
    that takes a second one, fails.
    """
    with NovaNode(libvirt_host, tmp_path / 'nova', options={
            ('serial_console', 'port_range'): '10000:10000'}) as node:
        yield node


@pytest.fixture
def make(use: Use, tmp_path: Path) -> Make:
    """Makes a nova with two compute hosts, whose guests write on and on."""
    def made(image: bytes = WRITER, **arguments: Any) -> TwoHosts:
        options = {**UNCUT, **arguments.pop('options', {})}
        nova: TwoHosts = use(TwoHosts(
            tmp_path / 'lab', image=image, options=options, **arguments))
        return nova
    return made
