# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console-relay`` runs as a service of a host until it is ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fixtures

from tests.lab.wait import until

#: A relay that was not run for a second still finds what the log has.
_PROGRAM = """
import sys
from socket import TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL
from virtlogd_driver.cmd import relay
from virtlogd_driver.relay import console, viewer
console._SEAM = 60
"""
_HASTY = """
viewer._KEEPALIVE = (TCP_KEEPIDLE, 1), (TCP_KEEPINTVL, 1), (TCP_KEEPCNT, 2)
viewer._UNACKNOWLEDGED = 3000
"""
_RUN = """
sys.exit(relay.main())
"""
_ROOT = str(Path(__file__).parents[2])
#: Where its guests listen.
GUEST_ADDRESS = '127.20.0.1'


class Relay(fixtures.Fixture):
    """A relay that runs.

    :ivar conf: path of its nova.conf.
    :ivar socket: path of its own socket.
    :ivar messages: path of what it says.
    :ivar metrics: path of its metrics file.

    :param uri: of libvirt
    :param address: ``[serial_console] proxyclient_address``
    :param hasty: a host that is silent counts as gone after three seconds,
        not after two minutes
    :param options: further ones of ``[virtlogd]``
    """

    def __init__(self, uri: str, address: str = '127.0.0.1',
                 hasty: bool = False, **options: object) -> None:
        super().__init__()
        self._program = _PROGRAM + (_HASTY if hasty else '') + _RUN
        self._uri = uri
        self._address = address
        self._options = options

    def _setUp(self) -> None:
        directory = Path(self.useFixture(fixtures.TempDir()).path)
        self.conf = directory / 'nova.conf'
        self.socket = directory / 'socket'
        self.messages = directory / 'messages'
        self.metrics = directory / 'relay.prom'
        self.configure(**self._options)
        self.addCleanup(self.end)
        self.start()

    def configure(self, **options: object) -> None:
        """Write its options anew, for the next start or SIGHUP."""
        self.conf.write_text(
            f'[libvirt]\nconnection_uri = {self._uri}\n'
            '[serial_console]\nenabled = true\n'
            f'proxyclient_address = {self._address}\n'
            '[virtlogd]\nrelay = true\n'
            f'relay_socket = {self.socket}\n'
            f'relay_metrics_file = {self.metrics}\n' + ''.join(
                f'{name} = {value}\n' for name, value in options.items()))

    def start(self) -> None:
        """Start it; systemd would be told that it is ready."""
        with self.messages.open('ab') as messages:
            self.process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', self._program,
                 '--config-file', str(self.conf)],
                stdin=subprocess.DEVNULL, stdout=messages, stderr=messages,
                env={**os.environ, 'PYTHONPATH': _ROOT})

    def said(self) -> str:
        """All that it has said."""
        return self.messages.read_text()

    def wait_until_said(self, text: str) -> None:
        until(lambda: text in self.said(), f'{text!r} is said')

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it.

        :returns: its exit status
        """
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)
