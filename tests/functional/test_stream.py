# SPDX-License-Identifier: Apache-2.0
"""The streams of two hosts have each byte of each guest, once and in order."""

import collections
import contextlib
import functools
import json
import random
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.functional.moving_server import Make, Use, numbers, other
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.stream import state

#: What is done with the servers, each as often.
_ACTIONS = ('migrate', 'migrate', 'reboot', 'stop', 'delete', 'kill', 'kill')

#: Of an object, what tests look at.
_FIELDS = ('time', 'uuid', 'port', 'text', 'partial', 'position', 'event',
           'message')


class HostStream(fixtures.Fixture):
    """A stream on a host, which can be killed and started again."""

    def __init__(self, host: LibvirtHost, directory: Path) -> None:
        super().__init__()
        self._host = host
        self._directory = directory
        self._outputs: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        #: What it has given until now, and how far its outputs were read.
        self._given: list[dict[str, Any]] = []
        self._seen: set[tuple[str, int, str]] = set()
        self._reading = self._offset = 0

    def _setUp(self) -> None:
        self._directory.mkdir()
        self.addCleanup(self.kill)
        console = self.useFixture(Console(
            self._host.uri, self._host.virtlogd_socket))
        self._command = self._host.command(
            *console.command, 'stream', '--state',
            self._directory / 'state')
        self.start()

    def start(self) -> None:
        output = self._directory / f'output.{len(self._outputs)}'
        self._outputs.append(output)
        with output.open('wb') as out, (
                self._directory / 'said').open('ab') as said:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out,
                stderr=said)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def wait_until_it_has_begun(self) -> None:
        """It writes its state file before anything else."""
        until(lambda: (self._directory / 'state').exists(), 'a state file')

    def wait_for_lines(self) -> None:
        """Until it knows the guests that are there, and gives what they
        write."""
        until(lambda: self._outputs[-1].stat().st_size > 0, 'lines')

    def objects(self) -> list[dict[str, Any]]:
        """What it has given, without what it gave again."""
        while True:
            with self._outputs[self._reading].open('rb') as output:
                output.seek(self._offset)
                # The last line may be cut off where it was killed.
                lines = output.read().split(b'\n')[:-1]
            self._offset += sum(len(line) + 1 for line in lines)
            for one in map(json.loads, lines):
                self._take({name: one[name] for name in _FIELDS
                            if name in one})
            if self._reading == len(self._outputs) - 1:
                return self._given
            self._reading, self._offset = self._reading + 1, 0

    def _take(self, one: dict[str, Any]) -> None:
        if 'position' in one:
            key = one['uuid'], one['port'], one['position']
            if key in self._seen:
                return
            self._seen.add(key)
        self._given.append(one)

    def has_left(self, uuid: str) -> bool:
        """Whether a stream that comes next knows that a guest has left."""
        known = state.load(str(self._directory / 'state')) or {}
        return (uuid, 0) in known and known[uuid, 0].left

    def said(self) -> str:
        return (self._directory / 'said').read_text()


def stays(stream: HostStream, uuid: str) -> list[list[dict[str, Any]]]:
    """What a host's stream has of a guest, one list for each stay."""
    found: list[list[dict[str, Any]]] = [[]]
    for one in stream.objects():
        if one.get('uuid') == uuid:
            found[-1].append(one)
            if one.get('event') == 'left':
                found.append([])
    return found


def text_of(objects: list[dict[str, Any]]) -> str:
    return ''.join(one['text'] + ('' if one.get('partial') else '\n')
                   for one in objects if 'text' in one)


class Crowd:
    """Servers that come, go, start again and move, and where they were."""

    def __init__(self, nova: TwoHosts, streams: dict[str, HostStream],
                 chance: random.Random, *, patient: bool) -> None:
        """
        :param patient: nothing is done while a stream is not there
        """
        self._patient = patient
        self._nova = nova
        self._streams = streams
        self._chance = chance
        self.servers: list[Server] = []
        self.visited: dict[str, list[str]] = {}

    def boot(self) -> None:
        name = self._chance.choice(('host1', 'host2'))
        server = self._nova.boot_on(name)
        self.servers.append(server)
        self.visited[server['id']] = [name]

    def act(self) -> None:
        action = self._chance.choice(_ACTIONS)
        server = self._chance.choice(self.servers)
        if action == 'kill':
            name = self._chance.choice(('host1', 'host2'))
            stream = self._streams[name]
            if self._patient:
                until(lambda: self._all_have_left(name),
                      'it is said who has left')
            stream.kill()
            stream.start()
            if self._patient and any(
                    self.visited[one['id']][-1] == name
                    for one in self.servers):
                stream.wait_for_lines()
        elif action == 'migrate':
            here = self.visited[server['id']][-1]
            if self._patient:
                until(lambda: self._has_begun(here, server['id']),
                      'its stream has begun with it')
            to = other(here)
            self._nova.move_live(server, to)
            self.visited[server['id']].append(to)
        elif action == 'reboot':
            self._nova.reboot(server)
        elif action == 'stop':
            self._nova.stop(server)
            self._nova.start(server)
        else:
            self.servers.remove(server)
            self._nova.delete(server)
            self.boot()

    def _has_begun(self, name: str, uuid: str) -> bool:
        """Whether a host's stream has something of a stay that goes on."""
        found = stays(self._streams[name], uuid)
        return (len(found) >= self.visited[uuid].count(name)
                and text_of(found[-1]) != '')

    def _all_have_left(self, name: str) -> bool:
        """Whether a host's stream has said so of all that moved away.

        What they wrote last may be gone with them before the next stream
        comes, which knows from the state file that it was given.
        """
        said = collections.Counter(
            one['uuid'] for one in self._streams[name].objects()
            if one.get('event') == 'left')
        return all(
            said[uuid] >= visited[:-1].count(name)
            and (visited[-1] == name or self._streams[name].has_left(uuid))
            for uuid, visited in self.visited.items() if name in visited)

    def union(self, server: Server) -> list[dict[str, Any]]:
        """What the streams have of a server, in the order of its stays."""
        left = {name: iter(stays(stream, server['id']))
                for name, stream in self._streams.items()}
        return [one for name in self.visited[server['id']]
                for one in next(left[name], [])]

    def is_whole(self, server: Server) -> bool:
        return text_of(self.union(server)) == self._nova.console_output(
            server)


@pytest.mark.parametrize(('servers', 'actions', 'patient'), [
    (4, 16, True), pytest.param(20, 120, False, marks=pytest.mark.long)])
def test_each_byte_once_and_in_order(
        use: Use, make: Make, tmp_path: Path, servers: int,
        actions: int, patient: bool) -> None:
    nova = make(options={
        **{('quota', name): -1 for name in ('instances', 'cores', 'ram')},
        **{(None, f'{name}_allocation_ratio'): 64.0
           for name in ('cpu', 'ram', 'disk')}})
    streams = {name: use(HostStream(host, tmp_path / f'stream-{name}'))
               for name, host in nova.hosts.items()}
    for stream in streams.values():
        stream.wait_until_it_has_begun()
    seed = secrets.randbelow(1 << 32)
    print(f'seed {seed}')
    crowd = Crowd(nova, streams, random.Random(seed),  # noqa: S311
                  patient=patient)
    for _ in range(servers):
        crowd.boot()
    for number in range(actions):
        crowd.act()
        print(f'{number + 1} of {actions}', flush=True)
    lost = 0
    for server in crowd.servers:
        nova.stop(server)
        objects = crowd.union(server)
        if any(one.get('event') == 'lost' for one in objects):
            # It moved away while the stream of its host was not there.
            assert not patient, objects
            lost += 1
            continue
        with contextlib.suppress(TimeoutError):
            until(functools.partial(crowd.is_whole, server),
                  'all of it is in the streams')
        # Told line by line, and with all that happened, where it differs.
        assert text_of(crowd.union(server)).splitlines() == (
            nova.console_output(server).splitlines()), (
                crowd.visited[server['id']], crowd.union(server))
        numbers(text_of(crowd.union(server)))
    print(f'of {lost} servers something is lost, which is said')
    for stream in streams.values():
        assert stream.said() == ''
