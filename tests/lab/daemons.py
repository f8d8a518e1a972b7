# SPDX-License-Identifier: Apache-2.0
"""A hypervisor host has a private libvirtd or virtqemud, virtlogd and guests.

Only within ``tests.lab.namespace``. Each host has a mount and a UTS namespace
of its own, so that several run side by side, each with its own sockets, state,
host name and host UUID, and can migrate guests to each other over loopback.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import termios
import uuid
from collections.abc import Iterator
from pathlib import Path

import fixtures
import libvirt
from oslo_config import cfg

from tests.lab import namespace
from tests.lab.wait import until
from virtlogd_driver import conf
from virtlogd_driver.virtlogd import rpc

#: What libvirt found out about QEMU, shared by the hosts of one run: probing
#: takes seconds. Each host works on a copy, as libvirtd does not expect others
#: to write there.
_PROBED = namespace.DIRECTORY / 'capabilities'

#: The daemon with libvirt's driver of QEMU, and its socket: libvirt's own
#: choice today is virtqemud, one daemon of several; Debian has libvirtd alone.
SOCKETS = {'libvirtd': 'libvirt-sock', 'virtqemud': 'virtqemud-sock'}
#: Which of them hosts have; VIRTLOGD_LAB_DAEMON names one.
DAEMON = os.environ.get('VIRTLOGD_LAB_DAEMON') or (
    'virtqemud' if shutil.which('libvirtd') is None else 'libvirtd')

_DAEMON_CONF = """\
host_uuid = "{host_uuid}"
unix_sock_dir = "/run/libvirt"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/{daemon}.log"
"""
# The host's control groups are out of sight, guests run as root in the
# directories of the test, and extended attributes would outlive them.
_QEMU_CONF = """\
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
security_driver = "none"
remember_owner = 0
migration_port_min = {migration_port}
migration_port_max = {migration_port_max}
"""
_VIRTLOGD_CONF = """\
log_outputs = "2:file:/var/log/libvirt/virtlogd.log"
"""

#: The host's directories, below ``LibvirtHost.directory``, and where its
#: daemons see them.
_MOUNTS = {
    'etc': '/etc/libvirt',
    'run': '/run/libvirt',
    'cache': '/var/cache/libvirt',
    'lib': '/var/lib/libvirt',
    'log': '/var/log/libvirt',
}


def _ignore_error(context: object, error: object) -> None:
    """libvirt prints every error by default, also the expected ones."""


libvirt.registerErrorHandler(_ignore_error, None)


def listens(path: Path) -> bool:
    """Its name is there a moment before anybody can connect to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def _pipes_are_empty(pid: int) -> bool:
    """Whether a process has read all that was written into its pipes."""
    # One that it has closed since is a file that it has rotated.
    with contextlib.suppress(FileNotFoundError):
        for path in Path(f'/proc/{pid}/fd').iterdir():
            if os.readlink(path).startswith('pipe:'):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    if fcntl.ioctl(fd, termios.FIONREAD, bytes(4)) != bytes(4):
                        return False
                finally:
                    os.close(fd)
        return True
    return False


def _start_code(pid: int) -> str:
    """Where the program of a process lies: exec puts it elsewhere (PIE)."""
    _, _, fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')
    return fields.split()[23]


def _catches(pid: int, number: int) -> bool:
    status = Path(f'/proc/{pid}/status').read_text()
    caught = int(status.partition('SigCgt:')[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


class LibvirtHost(fixtures.Fixture):
    """A private libvirt and virtlogd; all that they started ends with it.

    :ivar directory: everything of this host; kept for a look afterwards.
    :ivar state: the same for sockets and configuration: a short path.
    :ivar log_directory: an empty directory for the logs of guests.
    :ivar uri: for ``libvirt.open``.
    :ivar virtlogd_socket: as reachable from this process.
    :ivar virtlogd_conf: virtlogd's configuration file.
    :ivar qemu_conf: libvirt's QEMU configuration file.
    :ivar virtlogd_pid: its process.
    :ivar libvirtd_pid: of the daemon with the guests, libvirtd or virtqemud.
    :ivar libvirt_socket: that daemon's.

    :param directory: made if it is missing; of this host alone.
    :param max_size: bytes a log file may have; ``None``: virtlogd's default.
    :param max_backups: rotated files; ``None``: virtlogd's default.
    :param stdio_handler: "logd" or "file"; ``None``: libvirt's default.
    :param name: the host's name, and what tells hosts of one test apart.
    :param address: what the name resolves to, one of the loopback interface.
    :param daemon: "libvirtd" or "virtqemud".
    """

    _count = 0

    def __init__(self, directory: str | os.PathLike[str],
                 max_size: int | None = None,
                 max_backups: int | None = None,
                 stdio_handler: str | None = None,
                 name: str = 'host1',
                 address: str = '127.0.0.1',
                 daemon: str = DAEMON) -> None:
        super().__init__()
        self.daemon = daemon
        self.directory = Path(directory)
        self.name = name
        self.address = address
        self.max_size = max_size
        self.max_backups = max_backups
        self.stdio_handler = stdio_handler
        self.host_uuid = str(uuid.uuid4())
        self.log_directory = self.directory / 'guests'
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def _setUp(self) -> None:
        namespace.require()
        namespace.add_host_name(self.name, self.address)
        LibvirtHost._count += 1
        self.state = namespace.DIRECTORY / f'{LibvirtHost._count}-{self.name}'
        self.libvirt_socket = self.state / 'run' / SOCKETS[self.daemon]
        self.uri = f'qemu+unix:///system?socket={self.libvirt_socket}'
        self.virtlogd_socket = self.state / 'run' / 'virtlogd-sock'
        self.virtlogd_conf = self.state / 'etc' / 'virtlogd.conf'
        self.qemu_conf = self.state / 'etc' / 'qemu.conf'
        self.addCleanup(shutil.rmtree, self.state, ignore_errors=True)
        self._make_directories()
        self.configure()
        self._make_namespaces()
        self.addCleanup(self.end)
        self.start_virtlogd()
        self.start_libvirtd()

    def _make_directories(self) -> None:
        self.log_directory.mkdir(parents=True, exist_ok=True)
        for name in ('etc', 'run'):
            (self.state / name).mkdir(parents=True)
        for name in ('cache', 'lib', 'log'):
            (self.directory / name).mkdir(exist_ok=True)
            (self.state / name).symlink_to(self.directory / name)
        # virtlogd does not make it, and it holds QEMU's own messages.
        (self.directory / 'log' / 'qemu').mkdir(exist_ok=True)
        if _PROBED.exists():
            shutil.copytree(_PROBED, self.directory / 'cache',
                            dirs_exist_ok=True)

    def configure(self) -> None:
        """Write the configuration files anew, for the next daemon start."""
        port = 49152 + 64 * LibvirtHost._count
        (self.state / 'etc' / f'{self.daemon}.conf').write_text(
            _DAEMON_CONF.format(host_uuid=self.host_uuid, daemon=self.daemon))
        qemu_conf = _QEMU_CONF.format(
            migration_port=port, migration_port_max=port + 63)
        if self.stdio_handler is not None:
            qemu_conf += f'stdio_handler = "{self.stdio_handler}"\n'
        self.qemu_conf.write_text(qemu_conf)
        virtlogd_conf = _VIRTLOGD_CONF
        if self.max_size is not None:
            virtlogd_conf += f'max_size = {self.max_size}\n'
        if self.max_backups is not None:
            virtlogd_conf += f'max_backups = {self.max_backups}\n'
        self.virtlogd_conf.write_text(virtlogd_conf)

    def _make_namespaces(self) -> None:
        """A process that holds the namespaces open, with the mounts made."""
        script = [f'hostname {self.name}', 'mount --make-rprivate /']
        for name, target in _MOUNTS.items():
            script += [f'mkdir -p {target}',
                       f'mount --bind {self.state}/{name} {target}']
        script += ['echo ready', 'exec sleep infinity']
        self._holder = subprocess.Popen(
            ['unshare', '--mount', '--uts', 'sh', '-ec', '\n'.join(script)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.addCleanup(self._holder.wait)
        self.addCleanup(self._holder.kill)
        assert self._holder.stdout is not None
        self.addCleanup(self._holder.stdout.close)
        if self._holder.stdout.readline() != b'ready\n':
            raise RuntimeError(f'{self.name}: no namespaces of its own')

    @property
    def pid(self) -> int:
        """A process in the namespaces of this host."""
        return self._holder.pid

    def command(self, *command: str | os.PathLike[str]) -> list[str]:
        """The same command, so that it runs on this host."""
        return ['nsenter', f'--target={self._holder.pid}', '--mount', '--uts',
                *map(os.fspath, command)]

    def make_own(self) -> None:
        """Have this process take this host's virtlogd for its own.

        Until the end of the fixture. Only a virtlogd that is configured is
        asked for anything.
        """
        conf.register_opts(cfg.CONF)
        cfg.CONF.set_override('virtlogd_socket', str(self.virtlogd_socket),
                              group='virtlogd')
        self.addCleanup(cfg.CONF.clear_override, 'virtlogd_socket',
                        group='virtlogd')

    # The daemons

    def _start(self, daemon: str, path: Path) -> None:
        running = self._daemons.get(daemon)
        if running is not None and running.poll() is None:
            return
        path.unlink(missing_ok=True)
        output = self.directory / 'log' / f'{daemon}.output'
        with output.open('ab') as file:
            process = subprocess.Popen(
                self.command(daemon, '--pid-file',
                             f'/run/libvirt/{daemon}.pid'),
                stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self._daemons[daemon] = process

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError(
                    f'{daemon} of {self.name} ended at once, with status '
                    f'{process.returncode}: {output.read_text().strip()}')
            # virtlogd listens before a signal is anything but its end.
            return listens(path) and (
                daemon != 'virtlogd'
                or _catches(process.pid, signal.SIGUSR1))
        until(up, f'{daemon} of {self.name} up')

    def _stop(self, daemon: str, number: int) -> None:
        process = self._daemons.pop(daemon, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _pid(self, daemon: str) -> int:
        process = self._daemons.get(daemon)
        # A signal to process 0 would be one to whoever runs the tests.
        if process is None or process.poll() is not None:
            raise RuntimeError(f'{daemon} of {self.name} does not run')
        return process.pid

    @property
    def virtlogd_pid(self) -> int:
        return self._pid('virtlogd')

    @property
    def libvirtd_pid(self) -> int:
        return self._pid(self.daemon)

    def start_virtlogd(self) -> None:
        """Start it if it does not run; returns when it listens."""
        self._start('virtlogd', self.virtlogd_socket)

    def reload_virtlogd(self) -> None:
        """Let it execute itself anew; returns when it could do so again.

        A signal in between has its default effect, and ends it.
        """
        pid = self.virtlogd_pid
        before = _start_code(pid)
        os.kill(pid, signal.SIGUSR1)
        until(lambda: (_start_code(pid) != before
                       and _catches(pid, signal.SIGUSR1)),
              f'virtlogd of {self.name} executed anew')

    def wait_until_written(self) -> None:
        """Wait until what guests that are paused wrote is in their logs."""
        until(lambda: _pipes_are_empty(self.virtlogd_pid),
              f'virtlogd of {self.name} has read all')
        # It answers when it has written what it has read.
        with rpc.Connection(str(self.virtlogd_socket), 30) as virtlogd:
            virtlogd.ping()

    def stop_virtlogd(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal; returns when it is gone."""
        self._stop('virtlogd', number)

    def start_libvirtd(self) -> None:
        """Start it if it does not run; returns when it answers."""
        self._start(self.daemon, self.libvirt_socket)
        self.connect().close()
        self._share_capabilities()

    def stop_libvirtd(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal; guests go on. Returns when it is gone."""
        self._stop(self.daemon, number)

    def _share_capabilities(self) -> None:
        if _PROBED.exists():
            return
        connection = self.connect()
        connection.getCapabilities()
        connection.close()
        new = _PROBED.with_suffix('.new')
        shutil.copytree(self.directory / 'cache', new)
        new.rename(_PROBED)

    # Guests

    def connect(self) -> libvirt.virConnect:
        """A new connection; closed at the end of the fixture."""
        connection = libvirt.open(self.uri)

        def close() -> None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

        self.addCleanup(close)
        return connection

    def qemu_pid(self, guest: str) -> int:
        """The process of a running guest.

        :param guest: its name
        :raises FileNotFoundError: it does not run.
        """
        file = self.state / 'run' / 'qemu' / f'{guest}.pid'
        return int(file.read_text())

    def processes(self, *names: str) -> list[int]:
        """What runs on this host under one of these names."""
        found = []
        for pid in self._processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f'/proc/{pid}/comm').read_text().strip() in names:
                    found.append(pid)
        return found

    # The end

    def _processes(self) -> Iterator[int]:
        """What runs on this host, in whatever way it was started."""
        own = os.stat(f'/proc/{self._holder.pid}/ns/mnt').st_ino
        for entry in os.listdir('/proc'):
            if not entry.isdigit() or int(entry) == self._holder.pid:
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if os.stat(f'/proc/{entry}/ns/mnt').st_ino == own:
                    yield int(entry)

    def end(self) -> None:
        """End every process of this host: daemons, guests, what else."""
        def none_left() -> bool:
            left = list(self._processes())
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._daemons.values():
                process.poll()
            return not left
        until(none_left, f'{self.name}: all processes ended')
        for process in self._daemons.values():
            process.wait()
        self._daemons.clear()
