# SPDX-License-Identifier: Apache-2.0
"""The relay behind a whole nova, and nova's own serial proxy before it."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import fixtures
import pytest

from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode
from tests.lab.relay import GUEST_ADDRESS, Relay
from tests.lab.serial_proxy import SerialProxy, WebTerminal
from tests.lab.terminal import Terminal
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

#: Of this network namespace: what the kernel keeps for a connection, in bytes.
_BUFFERS = [Path('/proc/sys/net/ipv4') / name
            for name in ('tcp_rmem', 'tcp_wmem')]


@pytest.fixture
def small_buffers() -> Iterator[None]:
    """Who does not read is full soon."""
    before = [path.read_text() for path in _BUFFERS]
    for path in _BUFFERS:
        path.write_text('4096 16384 65536')
    yield
    for path, text in zip(_BUFFERS, before, strict=True):
        path.write_text(text)


@pytest.mark.usefixtures('small_buffers')
def test_browsers_at_one_console(libvirt_host: LibvirtHost, tmp_path: Path,
                                 use: Use) -> None:
    """Two see all of it and type; one that never reads stops nobody."""
    nova = use(NovaNode(
        libvirt_host, tmp_path / 'nova', image=guest.disk_image(
            guest.boot_sector(interval=0.05, burst=255)), options={
            ('virtlogd', 'relay'): True,
            ('virtlogd', 'relay_guest_address'): GUEST_ADDRESS}))
    relay = use(Relay(libvirt_host.uri))
    proxy = use(SerialProxy()).address
    server = nova.boot()
    host, port = nova.console_address(server)
    assert host == '127.0.0.1'

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex((host, port)) == 0
    until(listens, 'the relay listens')
    never = WebTerminal(proxy, nova.console_url(server))
    one, two = (WebTerminal(proxy, nova.console_url(server))
                for _ in range(2))
    with never, one, two:
        # So much that its own buffers are full; what comes then, nova's proxy
        # keeps in its memory. Who stops the relay itself: test_relay.py.
        for who in (one, two):
            who.read_until(b'line 00020000\r\n', 120)
        for who, text in ((one, b'typed by one'), (two, b'and by two')):
            who.type(text + b'\r')
            for other in (one, two):
                other.read_until(text + b'\r\n', 120)
        assert relay.process.poll() is None
    for seen in (one.seen, two.seen):
        found = [int(n) for n in re.findall(rb'line (\d{8})\r\n', seen)]
        assert found == list(range(found[0], found[0] + len(found)))
    # A token of nobody opens nothing.
    with pytest.raises(ConnectionError), WebTerminal(
            proxy, 'ws://127.0.0.1/?token=0') as stranger:
        stranger.read_until(b'line')
    # And without the proxy it is the relay that is there.
    with Terminal(host, port) as direct:
        direct.read_until(b'line')
