# SPDX-License-Identifier: Apache-2.0
"""The page on a reboot that is refused shows what is really to be seen."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode, Server
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], fixtures.Fixture]

#: What the page shows; --regenerate-output writes it.
SHOWN = Path(__file__).with_name('refused_reboot')
ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'doc/source/operator/refused_reboot.rst'

_SERVER = ('status', 'OS-EXT-STS:task_state', 'OS-EXT-STS:power_state',
           'fault')
_ACTION = ('action', 'message', 'events')
_EVENT = ('event', 'result', 'details', 'host')


def _picked(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


class Sight:
    """What is seen of a server, without what is another each time."""

    def __init__(self, nova: NovaNode, server: Server) -> None:
        self._nova = nova
        self._names = {
            server['id']: '8f7d3c52-0a41-4c1f-9b1e-6d2c7a5e9b10',
            nova.guest(server).name(): 'instance-0000002a',
            str(nova.host.virtlogd_socket): '/run/libvirt/virtlogd-sock',
            str(nova.instances_path): '/var/lib/nova/instances',
            f'"{nova.host.name}"': '"compute1"'}
        self._server = server

    def known(self, text: str) -> str:
        for name, shown in self._names.items():
            text = text.replace(name, shown)
        text = re.sub(r'req-[0-9a-f-]{36}( [0-9a-f]+)?',
                      'req-3f0e8a5c-7d16-4a93-8e2b-5c1f0d9b7a64', text)
        return re.sub(r'^\d{4}-\d\d-\d\d [\d:,.]+', '2026-11-25 13:37:42,120',
                      text, flags=re.MULTILINE)

    def server(self) -> str:
        return self._json(_picked(
            self._nova.api.get_server(self._server['id']), _SERVER))

    def action(self, admin: bool) -> str:
        action = _picked(self._nova.last_action(self._server, admin), _ACTION)
        action['events'] = [_picked(one, _EVENT)
                            for one in action['events']]
        return self._json(action)

    def log(self) -> str:
        """What nova-compute says of it: warnings, and worse."""
        return ''.join(
            f'{line}\n' for line in self.known(self._nova.log()).splitlines()
            if re.search(r' (WARNING|ERROR) .*(virtlogd|Reboot)', line))

    def listed(self) -> str:
        """On an 80 columns terminal, without the columns that tell nothing."""
        with Console(self._nova.host.uri,
                     self._nova.host.virtlogd_socket) as console:
            done = console.run('list')
        lines = self.known(done.stdout.decode()).splitlines()
        end = lines[0].index('SIZE')
        return ''.join(f'{line[:end].rstrip()}\n' for line in lines
                       ) + self.known(done.stderr.decode())

    def _json(self, values: Any) -> str:
        return self.known(json.dumps(values, indent=2)) + '\n'


def test_what_is_seen(libvirt_host: LibvirtHost, tmp_path: Path,
                      request: pytest.FixtureRequest, use: Use) -> None:
    nova = use(NovaNode(libvirt_host, tmp_path / 'nova', options={
        ('serial_console', 'port_range'): '10000:10000',
        ('virtlogd', 'health_interval'): 1}))
    server = nova.boot()
    sight = Sight(nova, server)
    nova.host.stop_virtlogd()
    until(lambda: 'is dead' in nova.log(), 'the health pass has said it')
    nova.reboot(server, hard=True)
    until(lambda: len(nova.last_action(server)['events']) > 1
          and all(one['finish_time']
                  for one in nova.last_action(server)['events']),
          'nova has given up')
    seen = {
        'tenant.json': sight.action(admin=False),
        'server.json': sight.server(),
        'administrator.json': sight.action(admin=True),
        'nova-compute.log': sight.log(),
        'list.txt': sight.listed()}
    if request.config.getoption('--regenerate-output'):
        SHOWN.mkdir(exist_ok=True)
        for name, text in seen.items():
            (SHOWN / name).write_text(text)
    for name, text in seen.items():
        assert text == (SHOWN / name).read_text(), name
        assert f'functional/refused_reboot/{name}' in PAGE.read_text()
