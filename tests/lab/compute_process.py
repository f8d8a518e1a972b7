# SPDX-License-Identifier: Apache-2.0
"""A process has the driver as nova-compute has it, and nothing else of nova.

nova-compute itself waits for a conductor; its driver does not. It is root, in
a virtual environment, and nothing is said of how helpers are started.
"""

import os
import subprocess
import sys
from pathlib import Path

import fixtures

from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until

_ROOT = Path(__file__).parents[2]
#: As nova/cmd/compute.py begins.
PROGRAM = """\
import shlex, signal, sys
from nova import conf, config, objects, utils
from oslo_log import log as logging
from oslo_privsep import priv_context
config.parse_args(['nova-compute', '--config-file', sys.argv[1]],
                  configure_db=False, init_rpc=False)
logging.setup(conf.CONF, 'nova')
priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
objects.register_all()
from nova.virt import driver
driver.load_compute_driver(None).init_host('host')
signal.pause()
"""


class ComputeProcess(fixtures.Fixture):
    """Runs from its set-up on; killed at the end, if not before.

    :param directory: for its files; made if it is missing.
    :param options: of ``[virtlogd]``.
    """

    def __init__(self, host: LibvirtHost, directory: Path,
                 **options: object) -> None:
        super().__init__()
        self._host = host
        self._log = directory / 'nova-compute.log'
        self._conf = directory / 'nova.conf'
        self._options = {
            'virtlogd_socket': host.virtlogd_socket,
            'virtlogd_conf': host.virtlogd_conf,
            'qemu_conf': host.qemu_conf, **options}

    def _setUp(self) -> None:
        self._conf.parent.mkdir(parents=True, exist_ok=True)
        options = ''.join(f'{name} = {value}\n'
                          for name, value in self._options.items())
        self._conf.write_text(
            '[DEFAULT]\n'
            'compute_driver = virtlogd_driver.VirtlogdDriver\n'
            f'instances_path = {self._conf.parent}\n'
            f'state_path = {self._conf.parent}\n'
            'my_ip = 127.0.0.1\n'
            f'[libvirt]\nvirt_type = qemu\n'
            f'connection_uri = {self._host.uri}\n'
            '[serial_console]\nenabled = true\n'
            f'[virtlogd]\n{options}')
        with self._log.open('wb') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', PROGRAM, self._conf],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, 'PYTHONPATH': str(_ROOT),
                     'OS_NOVA_DISABLE_EVENTLET_PATCHING': '1'})
        self.addCleanup(self.kill)

    def kill(self) -> None:
        """End it at once, as the kernel does where memory is short."""
        self._process.kill()
        self._process.wait()

    def said(self, text: str) -> list[str]:
        """Lines of its log with this text.

        :raises RuntimeError: it has ended by itself
        """
        log = self._log.read_text()
        if self._process.poll() not in (None, -9):
            raise RuntimeError(log)
        return [line for line in log.splitlines() if text in line]

    def until_said(self, text: str, seconds: float = 30.0) -> str:
        return until(lambda: self.said(text), f'"{text}" said', seconds)[0]
