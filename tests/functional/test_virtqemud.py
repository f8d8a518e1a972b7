# SPDX-License-Identifier: Apache-2.0
"""A host's libvirt is modular: it has virtqemud, and no libvirtd.

VIRTLOGD_LAB_DAEMON=virtqemud runs the other functional tests on one as well.
"""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.terminal import Terminal
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], Any]

pytestmark = pytest.mark.skipif(
    shutil.which('virtqemud') is None,
    reason='virtqemud is not here: Debian and Ubuntu have libvirtd alone')


@pytest.fixture
def host(tmp_path: Path, use: Use) -> LibvirtHost:
    found: LibvirtHost = use(LibvirtHost(
        tmp_path / 'host', daemon='virtqemud'))
    assert found.processes('libvirtd') == []
    return found


@pytest.fixture
def console(host: LibvirtHost, use: Use) -> Console:
    found: Console = use(Console(host.uri, host.virtlogd_socket))
    return found


@pytest.fixture
def log(host: LibvirtHost, use: Use) -> Path:
    """The log of a guest that runs, with an interactive console."""
    log = host.log_directory / 'console.log'
    port = guest.free_port()
    host.connect().createXML(guest.domain_xml(
        host.directory, guest.boot_sector(count=3),
        [guest.tcp_serial(port, log)], name='one'))
    until(lambda: log.exists() and log.read_bytes() == guest.lines(1, 3),
          'all lines')
    terminal = use(Terminal('127.0.0.1', port))
    terminal.type(b'typed\r')
    terminal.read_until(b'typed\r\n')
    until(lambda: log.read_bytes().endswith(b'typed\r\n'), 'echo in the log')
    return log


@pytest.mark.usefixtures('log')
def test_the_commands(console: Console) -> None:
    (found,) = json.loads(console.output('list', '--json'))
    assert (found['name'], found['log']) == ('one', 'alive')
    assert console.output('show', '--raw', 'one').endswith(b'typed\r\n')


def test_a_dead_log_is_brought_back(
        host: LibvirtHost, console: Console, log: Path) -> None:
    host.stop_virtlogd(signal.SIGKILL)
    host.start_virtlogd()
    console.output('reattach', 'one')
    (found,) = json.loads(console.output('list', '--json'))
    assert found['log'] == 'alive'


def test_it_is_restarted(
        host: LibvirtHost, console: Console, log: Path) -> None:
    """The guest and its log go on."""
    host.stop_libvirtd(signal.SIGKILL)
    host.start_libvirtd()
    (found,) = json.loads(console.output('list', '--json'))
    assert found['log'] == 'alive'
