# SPDX-License-Identifier: Apache-2.0
"""Another machine on a cable, which can be pulled."""

import os
import subprocess
import sys
import textwrap

import fixtures

_CONNECT = textwrap.dedent("""
    import socket, sys
    host, *ports = sys.argv[1:]
    kept = [socket.create_connection((host, int(port))) for port in ports]
    print('connected', flush=True)
    sys.stdin.read()
    """)


class OtherMachine(fixtures.Fixture):
    """A network namespace with one address, which sees only this machine.

    :ivar address: this machine's, on that cable.
    :ivar other: its own.
    """

    address, other = '192.0.2.1', '192.0.2.2'

    def _setUp(self) -> None:
        self._process = subprocess.Popen(
            ['unshare', '--net', 'sleep', 'infinity'])
        self.addCleanup(self._process.wait)
        self.addCleanup(self._process.kill)
        self._inside = ['nsenter', f'--net=/proc/{self._process.pid}/ns/net']
        # It is there once its network is another one.
        while self._network() == self._network('self'):
            if self._process.poll() is not None:
                raise RuntimeError('no network namespace')
        self._run('ip', 'link', 'add', 'lab0', 'type', 'veth', 'peer', 'name',
                  'lab1', 'netns', str(self._process.pid))
        self.addCleanup(self._run, 'ip', 'link', 'delete', 'lab0')
        self._run('ip', 'address', 'add', f'{self.address}/24', 'dev', 'lab0')
        self._run('ip', 'link', 'set', 'lab0', 'up')
        self._run(*self._inside, 'ip', 'address', 'add', f'{self.other}/24',
                  'dev', 'lab1')
        self._run(*self._inside, 'ip', 'link', 'set', 'lab1', 'up')

    def _network(self, process: str = '') -> int:
        path = f'/proc/{process or self._process.pid}/ns/net'
        with open(path) as found:
            return os.fstat(found.fileno()).st_ino

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True)

    def connect(self, *ports: int) -> None:
        """Connect from there, and keep the connections; nothing is read."""
        process = subprocess.Popen(
            [*self._inside, sys.executable, '-c', _CONNECT, self.address,
             *map(str, ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        assert process.stdin is not None
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        if process.stdout.readline() != b'connected\n':
            raise ConnectionError(f'{ports}')

    def pull(self) -> None:
        """No packet goes either way from now on, and nobody is told."""
        self._run(*self._inside, 'ip', 'link', 'set', 'lab1', 'down')
