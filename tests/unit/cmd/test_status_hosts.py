# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-driver-status check`` passes a good host, and no broken one.

The whole command runs, configuration and survey included; only the facts of
the host are made: its files, what libvirt, virtlogd and the kernel answer.
"""

import builtins
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import fixtures
import libvirt
import pytest
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from tests.unit.fake_libvirt import (
    FakeLibvirt,
    domain_xml,
    real_error,
    serial,
)
from tests.unit.node.test_checks import ORDERS
from virtlogd_driver import exception
from virtlogd_driver.cmd import status
from virtlogd_driver.console_log import privileged as log_privileged
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import deleted, outbox
from virtlogd_driver.node import checks, hypervisor, metrics, survey
from virtlogd_driver.virtlogd import (
    disk,
    health,
    periodic,
    privileged,
    rpc,
    viewer,
)

GIB = 1024 ** 3


class Host(fixtures.Fixture):
    """A compute node on which all is well; a test breaks one thing."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self.directory = directory
        self.instances = directory / 'instances'
        self.options: dict[str, dict[str, Any]] = {
            'DEFAULT': {
                'compute_driver': 'virtlogd_driver.VirtlogdDriver',
                'instances_path': self.instances},
            'serial_console': {
                'enabled': True, 'port_range': '10000:10019'},
            'libvirt': {'connection_uri': 'qemu:///system'},
            'virtlogd': {
                'virtlogd_conf': directory / 'virtlogd.conf',
                'qemu_conf': directory / 'qemu.conf',
                'virtlogd_socket': directory / 'virtlogd-sock',
                'metrics_file': directory / 'metrics.prom'},
        }
        self.nova_version: str | None = '34.0.0'
        self.load = subprocess.CompletedProcess([], 0, '', '')
        self.user = 1000
        self.virtlogd: tuple[str, str] = (privileged.UP, '')
        self.log = privileged.OPEN
        self.helper: Exception | None = None
        self.passed = True
        self.helper_of_virtlogd: Exception | None = None
        self.viewers: list[viewer.Viewer] | None = []
        self.listening = True
        self.file_system = 'ext4'
        self.free = 100 * GIB
        self.uris: list[str] = []

    def _setUp(self) -> None:
        log = self.instances / 'a' / 'console.log'
        log.parent.mkdir(parents=True)
        log.touch()
        self.libvirt = self.useFixture(FakeLibvirt(
            domain_xml(serial(log=str(log))))).connection
        self.made_pass(0)
        for target, name, fact in (
                (importlib.metadata, 'version', self._version),
                (survey.subprocess, 'run', lambda *_, **__: self.load),
                (os, 'geteuid', lambda: self.user),
                (hypervisor, 'connect', self._connect),
                (privileged, 'probe', self._probe),
                (privileged, 'positions', lambda _, logs, __: [
                    (os.stat(log).st_ino, 0) for log in logs]),
                (log_privileged, 'read_tail', self._read_tail),
                (reader, 'can_pass', lambda: self.passed),
                (viewer, 'viewers', lambda _: self._of_kernel(self.viewers)),
                (viewer, 'listening',
                 lambda asked: set(asked) if self.listening else set()),
                (disk, 'mounts', lambda: {'/': self.file_system}),
                (health, 'free_space', lambda _: self.free),
                (survey, '_ENDING', 0)):
            self.useFixture(fixtures.MonkeyPatch(
                f'{target.__name__}.{name}', fact))

    def made_pass(self, seconds_ago: float) -> None:
        metrics.write(
            str(self.directory / 'metrics.prom'),
            health.Report(health.DaemonState.UP,
                          time=time.time() - seconds_ago), periodic.Totals())

    def _version(self, package: str) -> str:
        if self.nova_version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return self.nova_version

    def _connect(self, uri: str) -> Any:
        self.uris.append(uri)
        return self.libvirt

    def _probe(self, socket_path: str, logs: list[tuple[str, str]],
               timeout: float) -> tuple[str, str, list[str]]:
        if self.helper_of_virtlogd is not None:
            raise self.helper_of_virtlogd
        answers = [] if self.virtlogd[0] in (
            privileged.HUNG, privileged.REFUSED) else [self.log] * len(logs)
        return *self.virtlogd, answers

    def _of_kernel(
            self, found: list[viewer.Viewer] | None) -> list[viewer.Viewer]:
        if found is None:
            raise OSError('no such module')
        return found

    def _read_tail(self, *args: object) -> None:
        raise self.helper or exception.LogRefused('not a log')

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def check(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Run the command; its exit status."""
        conf = self.directory / 'nova.conf'
        conf.write_text('\n'.join(
            f'[{group}]\n' + '\n'.join(
                f'{name} = {value}' for name, value in options.items())
            for group, options in self.options.items()))
        monkeypatch.setattr(cfg, 'CONF', cfg.ConfigOpts())
        monkeypatch.setattr(upgradecheck, 'CONF', None)
        monkeypatch.setattr(sys, 'argv', [
            'virtlogd-driver-status', '--config-file', str(conf), 'check',
            '--json'])
        return status.main()


@pytest.fixture
def node(tmp_path: pathlib.Path) -> Any:
    with Host(tmp_path) as made:
        yield made


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is wrong with a host."""

    name: str
    make: Callable[[Host], object]
    code: int
    #: Each check that is no success, and its remedy.
    remedies: dict[str, str]


def option(group: str, name: str, value: object) -> Callable[[Host], object]:
    return lambda node: node.options[group].update({name: value})


def fact(name: str, value: object) -> Callable[[Host], object]:
    return lambda node: setattr(node, name, value)


def file(name: str, text: str) -> Callable[[Host], object]:
    return lambda node: node.write(name, text)


def _failing(path: pathlib.Path) -> rpc.Connection:
    return rpc.Connection(str(path), 1)


def _down(node: Host) -> None:
    """What the real client says of a socket that is not there."""
    with pytest.raises(exception.VirtlogdDown) as raised:
        _failing(node.directory / 'virtlogd-sock')
    node.virtlogd = privileged.DOWN, str(raised.value)
    node.log = privileged.CLOSED


def _hung(node: Host) -> None:
    node.virtlogd = privileged.HUNG, str(rpc.hung('/virtlogd-sock', 1))


def _not_kept(node: Host) -> None:
    node.options['virtlogd']['keep_deleted'] = 60
    metrics.write(
        str(node.directory / 'metrics.prom'),
        health.Report(health.DaemonState.UP, time=time.time()),
        periodic.Totals(), metrics.Kept(0, 0, None, True, 1))


def _no_use(node: Host) -> None:
    node.options['virtlogd']['keep_deleted'] = 60
    (node.instances / deleted.DIRECTORY).touch()


def _hang(node: Host, name: str) -> None:
    """Have a function hang until the test is over."""
    over = threading.Event()
    node.addCleanup(over.set)
    node.useFixture(fixtures.MonkeyPatch(name, lambda _: over.wait()))


def _libvirt_hangs(node: Host) -> None:
    _hang(node, f'{hypervisor.__name__}.connect')
    node.useFixture(fixtures.MonkeyPatch(
        f'{survey.__name__}._LIBVIRT_TIMEOUT', 0.2))


def _libvirt_fails(node: Host) -> None:
    node.libvirt.error = real_error(libvirt.VIR_ERR_SYSTEM_ERROR)


def _stalled(node: Host) -> None:
    _hang(node, f'{health.__name__}.free_space')
    ask = survey._of_disk

    def ask_shortly(kind: str, function: Callable[[], object]) -> object:
        # Other files are waited for as ever.
        with mock.patch.object(survey, '_DISK_TIMEOUT', 0.2):
            return ask(kind, function)

    node.useFixture(fixtures.MonkeyPatch(
        f'{survey.__name__}._of_disk', ask_shortly))


def _stuck(node: Host) -> None:
    node.viewers = [viewer.Viewer(('127.0.0.1', 10000), ('192.0.2.7', 9), 60,
                                  True, b'')]


def _without_log(node: Host) -> None:
    node.libvirt = node.useFixture(FakeLibvirt(
        domain_xml(serial(log=None)))).connection


def _not_appended(node: Host) -> None:
    """As nova's own driver starts a guest."""
    node.libvirt = node.useFixture(FakeLibvirt(domain_xml(
        serial(log='/a/console.log', append='off')))).connection


def _file_not_appended(node: Host) -> None:
    node.libvirt = node.useFixture(FakeLibvirt(domain_xml(
        "<serial type='file'><source path='/a/console.log'/>"
        "<target port='0'/></serial>"))).connection


def _held(node: Host) -> None:
    """virtlogd says of each log that it is open."""
    node.libvirt.lookupByName('guest').destroy()


def _large(node: Host) -> None:
    node.write('virtlogd.conf', 'max_size = 65536\n')
    with (node.instances / 'a' / 'console.log.0').open('wb') as backup:
        backup.truncate(40 * 1024 ** 2)


def _left(node: Host) -> None:
    guest = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
    path = outbox.make(str(node.instances / guest), outbox.Departure(
        'ab' * 16, guest, '192.0.2.7', 'host2',
        str(node.instances / guest), {}, None, 0.0))
    outbox.save_state(path, outbox.State(1, reason='no route to host2'))



OK, WARNING, FAILURE = 0, 1, 2
AFTER_VIRTLOGD = 'First do what the check virtlogd says'
FAULTS = (
    Fault('libvirt fails', _libvirt_fails, FAILURE, {
        'Versions': 'Check that libvirtd (or virtqemud) is running',
        'Logs': 'Check that libvirtd (or virtqemud) is running'}),
    Fault('libvirt hangs', _libvirt_hangs, FAILURE, {
        'Versions': 'restart libvirtd (or virtqemud',
        'Logs': 'restart libvirtd (or virtqemud'}),
    Fault('an old QEMU',
          lambda node: setattr(node.libvirt, 'qemu_version', 2_006_000),
          WARNING, {'Versions': 'Upgrade it'}),
    Fault('no nova', fact('nova_version', None), FAILURE, {
        'Driver in nova': 'install virtlogd-driver into the environment of'}),
    Fault('an old nova', fact('nova_version', '30.0.0'), FAILURE, {
        'Driver in nova': 'Use nova 31 to 34'}),
    Fault('nova does not find it', fact(
        'load', subprocess.CompletedProcess(
            [], 1, '', "No module named 'nova.virt.virtlogd_driver'")),
        FAILURE, {'Driver in nova': 'Install it into a site directory'}),
    Fault('it does not load', fact(
        'load', subprocess.CompletedProcess([], 1, '', 'SyntaxError: x')),
        FAILURE, {'Driver in nova': 'Run "from nova.virt.virtlogd_driver'}),
    Fault("nova's own driver",
          option('DEFAULT', 'compute_driver', 'libvirt.LibvirtDriver'),
          WARNING, {'Driver in nova':
                    'set it to virtlogd_driver.VirtlogdDriver'}),
    Fault('no helper for logs', fact('helper', FileNotFoundError('sudo')),
          FAILURE, {'Privileged helpers': 'filters to /etc/nova'}),
    Fault('open logs are not passed', fact('passed', False),
          WARNING, {'Privileged helpers': 'same network namespace'}),
    Fault('no helper for virtlogd',
          fact('helper_of_virtlogd', FileNotFoundError('sudo')), FAILURE, {
              'Privileged helpers': 'filters to /etc/nova',
              'virtlogd': 'Install the rootwrap filters',
              'Logs': AFTER_VIRTLOGD}),
    Fault('virtlogd is down', _down, FAILURE, {
        'virtlogd': 'Start it: systemctl start virtlogd.socket',
        'Logs': '"virtlogd-console reattach GUEST"'}),
    Fault('virtlogd hangs', _hung, FAILURE, {
        'virtlogd': 'See whether its process is stopped',
        'Versions': AFTER_VIRTLOGD, 'Logs': AFTER_VIRTLOGD}),
    Fault('another protocol',
          fact('virtlogd', (privileged.REFUSED, 'Another. Set its socket.')),
          FAILURE, {'virtlogd': 'Set its socket',
                    'Logs': AFTER_VIRTLOGD}),
    Fault('stdio_handler is file', file('qemu.conf', 'stdio_handler="file"'),
          WARNING, {'Versions': 'set it to "logd"',
                    'Stdio handler': 'Set it to "logd", restart libvirtd '
                                     '(or virtqemud)'}),
    Fault('qemu.conf is wrong', file('qemu.conf', 'stdio_handler = file'),
          FAILURE, {'Stdio handler': 'Correct it'}),
    Fault('another key of qemu.conf is wrong',
          file('qemu.conf', 'max_files = "x"'),
          FAILURE, {'Stdio handler': 'max_files must be'}),
    Fault('qemu.conf cannot be read',
          lambda node: (node.directory / 'qemu.conf').symlink_to(
              'qemu.conf'),
          WARNING, {'Stdio handler': 'First do what Privileged helpers'}),
    Fault('virtlogd.conf is wrong', file('virtlogd.conf', 'max_size = 2M'),
          FAILURE, {'Rotation': 'Correct it',
                    'Disk budget': 'First do what Rotation says'}),
    *(Fault(f'virtlogd.conf says {line}', file(
        'virtlogd.conf', f'max_size = 65536\n{line}\n'),
        FAILURE, {'Rotation': f'{line.partition(" ")[0]} must be',
                  'Disk budget': 'First do what Rotation says'})
      for line in ('admin_max_clients = -5', 'log_level = "3"',
                   'log_outputs = "2:journal"', 'max_clients = "1024"')),
    Fault('virtlogd.conf cannot be read',
          lambda node: (node.directory / 'virtlogd.conf').symlink_to(
              'virtlogd.conf'),
          WARNING, {'Rotation': 'First do what Privileged helpers',
                    'Disk budget': 'First do what Rotation says'}),
    Fault('unbounded', file('virtlogd.conf', 'max_size = 0'), FAILURE, {
        'Rotation': 'Set it to 2097152',
        'Disk budget': 'First do what Rotation says'}),
    Fault('too many backups', file('virtlogd.conf', 'max_backups = 33'),
          FAILURE, {'Rotation': 'Set it to 32 or less'}),
    Fault('the disk is full', fact('free', 4096), FAILURE, {
        'Disk budget': 'Free some space'}),
    Fault('the disk is small', fact('free', 7 * 1024 ** 2), WARNING, {
        'Disk budget': 'Lower max_size or max_backups'}),
    Fault('another machine', fact('file_system', 'nfs4'), WARNING, {
        'Disk budget': 'First do what Log directories says',
        'Log directories': 'Keep instances_path on a local disk'}),
    Fault('the disk stalls', _stalled, FAILURE, {
        'Disk budget': 'First do what Log directories says',
        'Log directories': 'See whether it leads'}),
    Fault('a dead log', fact('log', privileged.CLOSED), FAILURE, {
        'Logs': '"virtlogd-console reattach GUEST"'}),
    Fault('append is off', _not_appended, WARNING, {
        'Logs': 'Reboot them hard, or migrate them live'}),
    Fault('a file that is not appended to', _file_not_appended, WARNING, {
        'Logs': 'append="off": 1 guest lose the log'}),
    Fault('the pipe of a log is held', _held, WARNING, {
        'Logs': 'Do not restart virtlogd'}),
    Fault('a log from before its bound', _large, WARNING, {
        'Disk budget': 'remove its rotated files'}),
    Fault('an unrotated log', fact('log', privileged.FILE), WARNING, {
        'Logs': 'Stop and start the guests'}),
    Fault('a guest without a log', _without_log, WARNING, {
        'Logs': 'Reboot the guests hard'}),
    Fault('a viewer that does not read', _stuck, WARNING, {
        'Logs': 'set [virtlogd] viewer_timeout'}),
    Fault('viewers that are not told', fact('viewers', None), WARNING, {
        'Logs': 'Load its modules'}),
    Fault('a console that is closed', fact('listening', False), WARNING, {
        'Logs': 'Run "virtlogd-console reattach'}),
    Fault('a foreign address', option(
        'serial_console', 'proxyclient_address', '192.0.2.1'), WARNING, {
            'Serial ports': 'set it to an address of this host'}),
    Fault('a wrong range', option(
        'serial_console', 'port_range', '2:1'), FAILURE, {
            'Serial ports': 'Correct it'}),
    Fault('no free port', option(
        'serial_console', 'port_range', '10000:10000'), WARNING, {
            'Serial ports': 'Widen [serial_console] port_range'}),
    Fault('nobody watches', option('virtlogd', 'health_interval', 0),
          WARNING, {'Health pass': 'Set it to 60'}),
    Fault('no pass yet', option('virtlogd', 'metrics_file', '/none/x.prom'),
          WARNING, {'Health pass': 'See whether nova-compute runs'}),
    Fault('metrics of another', file('metrics.prom', 'node_load1 1\n'),
          WARNING, {'Health pass': 'Set [virtlogd] metrics_file'}),
    Fault('a history that has not gone', _left, WARNING, {
        'Histories': 'See "virtlogd-console history"'}),
    Fault('logs of deleted guests that were not kept', _not_kept, WARNING, {
        'Kept logs': 'See its log for "is not kept"'}),
    Fault('no logs of deleted guests can be kept', _no_use, WARNING, {
        'Kept logs': 'Let nova-compute make one'}),
    Fault('no pass any more', lambda node: node.made_pass(1000), FAILURE, {
        'Health pass': 'See whether nova-compute runs'}),
)


def _found(text: str) -> dict[str, tuple[int, str]]:
    return {one['check']: (one['result'], one['details'])
            for one in json.loads(text)['checks'] if one['result']}


def test_a_good_host(node: Host, monkeypatch: pytest.MonkeyPatch,
                     capsys: pytest.CaptureFixture[str]) -> None:
    assert node.check(monkeypatch) == OK
    output = capsys.readouterr().out
    assert _found(output) == {}
    assert 'as root' not in output


def test_a_good_host_as_root(node: Host, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    node.user = 0
    assert node.check(monkeypatch) == OK
    assert 'sudo -u nova virtlogd-driver-status' in capsys.readouterr().out


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_a_broken_host(node: Host, monkeypatch: pytest.MonkeyPatch,
                       capsys: pytest.CaptureFixture[str],
                       fault: Fault) -> None:
    fault.make(node)
    code = node.check(monkeypatch)
    found = _found(capsys.readouterr().out)
    assert code == fault.code == max(code for code, _ in found.values())
    assert found.keys() == fault.remedies.keys()
    for check, remedy in fault.remedies.items():
        assert remedy in found[check][1]
        assert ORDERS.search(found[check][1])


def test_every_check_is_broken_once() -> None:
    assert {check for fault in FAULTS for check in fault.remedies} == {
        name for name, _ in checks.CHECKS}


def test_modular_daemons(node: Host, monkeypatch: pytest.MonkeyPatch,
                         capsys: pytest.CaptureFixture[str]) -> None:
    """virtqemud reads the same qemu.conf, virtlogd the same virtlogd.conf.

    libvirt is reached through [libvirt] connection_uri alone: no socket, no
    process and no file of libvirtd's is looked for.
    """
    asked: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(str(path))
            return function(path, *args, **kwargs)
        return call
    uri = 'qemu+unix:///system?socket=/run/libvirt/virtqemud-sock'
    node.options['libvirt']['connection_uri'] = uri
    node.write('qemu.conf', 'stdio_handler = "logd"\n')
    node.write('virtlogd.conf', 'max_size = 4096\n')
    with monkeypatch.context() as patch:
        for module, name in ((builtins, 'open'), (os, 'stat'),
                             (os, 'lstat'), (os, 'listdir')):
            patch.setattr(module, name, noted(getattr(module, name)))
        assert node.check(monkeypatch) == OK
    assert set(node.uris) == {uri}
    assert {str(node.directory / name)
            for name in ('qemu.conf', 'virtlogd.conf')} <= set(asked)
    assert [path for path in asked if 'libvirtd' in path
            or path.startswith(('/run/libvirt', '/etc/libvirt'))] == []
    assert 'at most 16 KiB' in capsys.readouterr().out
