# SPDX-License-Identifier: Apache-2.0
"""A whole nova with two compute hosts runs in one process.

Each nova-compute lives in the mount and UTS namespaces of its own libvirtd.
Namespaces belong to threads, and threads and processes inherit those of the
thread that starts them. So the hosts can have their instances at the same
path, as live block migration demands, and yet not share them; a command such
as scp runs where it should; and the namespace of a thread that asks for an
option tells whose value it gets.

They reach each other by ssh, with keys made on the spot.
"""

from tests.lab import concurrency  # noqa: F401

# isort: split
import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fixtures
import futurist
import libvirt
import nova.privsep
from nova.conf import CONF
from oslo_config import cfg

from tests.lab import namespace, nova_node
from tests.lab.daemons import DAEMON, SOCKETS, LibvirtHost
from tests.lab.nova_node import NovaNode, Options, Server
from tests.lab.wait import until
from virtlogd_driver.console_log import privileged as log_privileged
from virtlogd_driver.history import outbox
from virtlogd_driver.virtlogd import privileged as daemon_privileged

# linux/sched.h
_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000

#: What a live migration comes to.
_ENDED = ('completed', 'error', 'failed', 'cancelled')

_libc = ctypes.CDLL(None, use_errno=True)

_SSHD_CONFIG = """\
ListenAddress {address}
HostKey {directory}/key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""
_SSH_CONFIG = """\
Host *
    IdentityFile {directory}/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    BatchMode yes
"""


def _call(function: str, *args: int) -> None:
    if getattr(_libc, function)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f'{function}: {os.strerror(error)}')


class _Place:
    """The mount and UTS namespaces of a process, for a thread to be in."""

    def __init__(self, pid: int) -> None:
        self._fds = {
            kind: os.open(f'/proc/{pid}/ns/{name}', os.O_RDONLY)
            for kind, name in ((_CLONE_NEWNS, 'mnt'), (_CLONE_NEWUTS, 'uts'))}
        self.inode = os.fstat(self._fds[_CLONE_NEWNS]).st_ino

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def enter(self) -> None:
        """For this thread, and for what it starts."""
        directory = os.getcwd()
        _call('unshare', _CLONE_FS)
        for kind, fd in self._fds.items():
            _call('setns', fd, kind)
        os.chdir(directory)


def _here() -> int:
    return os.stat('/proc/thread-self/ns/mnt').st_ino


class Places(fixtures.Fixture):
    """Threads of this process on several hosts, each with its options."""

    def __init__(self, hosts: Mapping[str, LibvirtHost],
                 options: Mapping[str, Options]) -> None:
        super().__init__()
        self._hosts = hosts
        self._options = options

    def _setUp(self) -> None:
        pids = {None: os.getpid(),
                **{name: host.pid for name, host in self._hosts.items()}}
        self._places = {name: _Place(pid) for name, pid in pids.items()}
        for place in self._places.values():
            self.addCleanup(place.close)
        self._names = {
            place.inode: name for name, place in self._places.items()}
        self._keep_in_pools()
        self._tell_options_apart()

    def here(self) -> str | None:
        """The host that this thread is on; None: on none of them."""
        return self._names[_here()]

    @contextlib.contextmanager
    def at(self, name: str | None) -> Iterator[None]:
        """Be on a host; None: on none of them."""
        before = self.here()
        if name == before:
            yield
            return
        self._places[name].enter()
        try:
            yield
        finally:
            self._places[before].enter()

    def bind(self, name: str | None,
             function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, called on a host."""
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.at(name):
                return function(*args, **kwargs)
        return call

    def _keep_in_pools(self) -> None:
        """A pool's thread works where the work was given to it."""
        submit = futurist.ThreadPoolExecutor.submit

        def submit_here(pool: Any, function: Callable[..., Any],
                        *args: Any, **kwargs: Any) -> Any:
            return submit(pool, self.bind(self.here(), function),
                          *args, **kwargs)

        self.useFixture(fixtures.MockPatchObject(
            futurist.ThreadPoolExecutor, 'submit', submit_here))

    def _tell_options_apart(self) -> None:
        get = cfg.ConfigOpts._get
        differing = {key for own in self._options.values() for key in own}

        def get_here(conf: Any, name: str, group: Any = None,
                     namespace: Any = None) -> Any:
            key = (getattr(group, 'name', group), name)
            if conf is CONF and key in differing:
                own = self._options.get(self.here() or '', {})
                if key in own:
                    return own[key]
            return get(conf, name, group, namespace)

        self.useFixture(fixtures.MockPatchObject(
            cfg.ConfigOpts, '_get', get_here))


class Ssh(fixtures.Fixture):
    """An ssh daemon on each host, that all hosts may log in to.

    :ivar authorized_keys: the keys that may.
    """

    def __init__(self, directory: Path,
                 hosts: Mapping[str, LibvirtHost]) -> None:
        super().__init__()
        self._directory = directory
        self._hosts = hosts
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.authorized_keys = directory / 'authorized_keys'

    def _setUp(self) -> None:
        self._directory.mkdir()
        Path('/run/sshd').mkdir(exist_ok=True)
        subprocess.run(
            ['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f',
             self._directory / 'key'], check=True)
        shutil.copy(self._directory / 'key.pub', self.authorized_keys)
        etc = self._directory / 'etc'
        etc.mkdir()
        (etc / 'ssh_config').write_text(
            _SSH_CONFIG.format(directory=self._directory))
        for name, host in self._hosts.items():
            (self._directory / f'{name}.conf').write_text(
                _SSHD_CONFIG.format(directory=self._directory,
                                    address=host.address))
            subprocess.run(host.command(
                'mount', '--bind', etc, '/etc/ssh'), check=True)
            self.start(name)
            self.addCleanup(self.stop, name)

    def start(self, name: str) -> None:
        host = self._hosts[name]
        (self._directory / f'{name}.log').write_text('')
        with (self._directory / f'{name}.log').open('ab') as log:
            process = subprocess.Popen(host.command(
                '/usr/sbin/sshd', '-D', '-e', '-f',
                self._directory / f'{name}.conf'),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._daemons[name] = process
        text = f'Server listening on {host.address}'

        def up() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f'sshd of {name} ended at once: {said()}')
            return text in said()

        def said() -> str:
            return (self._directory / f'{name}.log').read_text()
        until(up, f'sshd of {name} up')

    def stop(self, name: str) -> None:
        process = self._daemons.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def signal(self, name: str, number: int) -> None:
        self._daemons[name].send_signal(number)

    def limit(self, name: str, size: int = resource.RLIM_INFINITY) -> None:
        """Bound the files that are written for whoever logs in from now on.

        A process that goes on at this size is killed.
        """
        resource.prlimit(self._daemons[name].pid, resource.RLIMIT_FSIZE,
                         (size, resource.RLIM_INFINITY))


class _TwoComputes(nova_node._Nova):
    """Starts each nova-compute where it belongs."""

    def __init__(self, configure: Callable[[nova_node._Nova], None],
                 places: Places, names: list[str]) -> None:
        super().__init__(configure, names[0])
        self._places = places
        self._host_names = names

    def _setup_compute_service(self) -> Any:
        for name in self._host_names:
            self.start_compute_on(name)
        return self.computes[self._host_names[0]]

    def start_compute_on(self, name: str) -> None:
        with self._places.at(name):
            driver = self._start_compute(name).driver
        # All hosts' libvirt events come in one thread of this process.
        driver._host._lifecycle_event_handler = self._places.bind(
            name, driver.emit_event)
        # libvirt can't see that the hosts are one machine in truth.
        driver._live_migration_flags |= libvirt.VIR_MIGRATE_UNSAFE
        driver._block_migration_flags |= libvirt.VIR_MIGRATE_UNSAFE


class _LiveMigration:
    """What a nova-compute does in one live migration, and until when.

    :ivar is_under_way: it has begun and has not ended.
    :ivar ended: when it ended, in seconds of time.monotonic; None before.
    """

    def __init__(self, migrate: Callable[..., None]) -> None:
        self._migrate = migrate
        self.is_under_way = False
        self.ended: float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.is_under_way = True
        try:
            self._migrate(*args, **kwargs)
        finally:
            self.ended = time.monotonic()
            self.is_under_way = False


class TwoHosts(NovaNode):
    """A nova with two compute hosts, 'host1' and 'host2'.

    :ivar hosts: the LibvirtHosts by their names.
    :ivar instances: by name of the host, where its instances are when they
        are looked at from this process; the same directory where shared.
    :ivar places: to be on a host.
    :ivar ssh: the hosts' ssh daemons.

    :param directory: for the hosts' files and nova's; made if it is missing.
    :param shared: the instance directories are on storage that both share.
    :param host_settings: arguments of LibvirtHost, by host.
    :param host_options: options of nova.conf that only one host has.
    """

    def __init__(self, directory: str | os.PathLike[str],
                 shared: bool = False,
                 host_settings: Mapping[str, Mapping[str, Any]] | None = None,
                 host_options: Mapping[str, Options] | None = None,
                 image: bytes | None = None,
                 options: Options | None = None) -> None:
        directory = Path(directory)
        settings = host_settings or {}
        self.hosts = {
            name: LibvirtHost(
                directory / name, name=name, address=address,
                **settings.get(name, {}))
            for name, address in (('host1', '127.0.0.1'),
                                  ('host2', '127.0.0.2'))}
        super().__init__(self.hosts['host1'], directory / 'nova', image=image,
                         options={**self._common_options(), **(options or {})})
        self.shared = shared
        self.host_options = dict(host_options or {})

    @staticmethod
    def _common_options() -> Options:
        return {
            ('libvirt', 'live_migration_uri'):
                f'qemu+unix:///system?socket={namespace.DIRECTORY}'
                f'/%s/run/{SOCKETS[DAEMON]}',
            ('virtlogd', 'health_interval'): 0,
        }

    def _setUp(self) -> None:
        for host in self.hosts.values():
            self.useFixture(host)
            link = namespace.DIRECTORY / host.name
            link.symlink_to(host.state)
            self.addCleanup(link.unlink)
        self._place_instances()
        self.ssh = self.useFixture(Ssh(self.directory / 'ssh', self.hosts))
        self._own_options: dict[str, dict[tuple[str | None, str], Any]] = {}
        for name in self.hosts:
            (self.directory / f'state-{name}').mkdir()
            self._own_options[name] = self._options_of(name)
        self.places = self.useFixture(Places(self.hosts, self._own_options))
        for context in (nova.privsep.sys_admin_pctxt, log_privileged.context,
                        daemon_privileged.virtlogd_context,
                        daemon_privileged.viewer_context):
            # A daemon would be on one host.
            self.useFixture(fixtures.MockPatchObject(
                context, 'client_mode', False))
        # nova keeps it once for the process.
        self.useFixture(fixtures.MockPatch(
            'nova.virt.node.get_local_node_uuid',
            lambda: self.hosts[self.places.here()].host_uuid))
        super()._setUp()

    def _place_instances(self) -> None:
        self.directory.mkdir(parents=True)
        self.instances_path.mkdir()
        self.instances = {}
        for name, host in self.hosts.items():
            if self.shared:
                self.instances[name] = self.instances_path
                continue
            self.instances[name] = host.directory / 'instances'
            self.instances[name].mkdir()
            subprocess.run(host.command(
                'mount', '--bind', self.instances[name],
                self.instances_path), check=True)

    def _options_of(self, name: str) -> dict[tuple[str | None, str], Any]:
        host = self.hosts[name]
        return {
            (None, 'host'): name,
            (None, 'my_ip'): host.address,
            (None, 'state_path'): str(self.directory / f'state-{name}'),
            ('libvirt', 'connection_uri'): host.uri,
            ('serial_console', 'proxyclient_address'): host.address,
            ('virtlogd', 'qemu_conf'): str(host.qemu_conf),
            ('virtlogd', 'virtlogd_socket'): str(host.virtlogd_socket),
            **self.host_options.get(name, {})}

    def set_option(self, key: tuple[str | None, str], value: Any) -> None:
        """Change an option of both hosts."""
        CONF.set_override(key[1], value, key[0])

    def restart_compute_on(self, name: str) -> None:
        """End nova-compute on a host; start it with its new options."""
        with self.places.at(name):
            self._nova.computes[name].stop()
        self.driver_of(name)._host._lifecycle_event_handler = None
        self._own_options[name] = self._options_of(name)
        self._nova.start_compute_on(name)

    def _make_nova(self) -> nova_node._Nova:
        return _TwoComputes(self._configure, self.places, list(self.hosts))

    def lose(self, name: str) -> None:
        """A host goes down, and nova has been told."""
        with self.places.at(name):
            self._nova.computes[name].stop()
        self.hosts[name].end()
        self._force_down(name, True)

    def evacuate(self, server: Server, to: str) -> None:
        """Build a server of a lost host anew on another one, ACTIVE there."""
        self.action(server, 'evacuate', 'ACTIVE', {'host': to})
        # That is where it is a moment after it is ACTIVE.
        until(lambda: self.host_of(server).name == to, f'server on {to}')

    def find(self, name: str) -> None:
        """A host that was lost is up again."""
        self.hosts[name].start_virtlogd()
        self.hosts[name].start_libvirtd()
        self._nova.start_compute_on(name)
        self._force_down(name, False)

    def _force_down(self, name: str, down: bool) -> None:
        (service,) = self.api.api_get(
            f'/os-services?host={name}&binary=nova-compute').body['services']
        self.api.api_put(f'/os-services/{service["id"]}',
                         {'forced_down': down})

    # Servers

    def host_of(self, server: Server) -> LibvirtHost:
        """The host that nova says a server is on."""
        now = self.api.get_server(server['id'])
        return self.hosts[now['OS-EXT-SRV-ATTR:host']]

    def driver_of(self, name: str) -> Any:
        """The compute driver of a host."""
        return self._nova.computes[name].driver

    def boot_on(self, name: str, flavor: str = 'small') -> Server:
        """A new server on a host, ACTIVE."""
        request = {
            'name': 'server', 'imageRef': self._image_id,
            'flavorRef': self.flavors[flavor], 'networks': 'none',
            'availability_zone': f'nova:{name}'}
        return self.wait(self.api.post_server({'server': request}), 'ACTIVE')

    def live_migrate(self, server: Server, to: str) -> str:
        """Returns when it has ended, with what follows; 'completed'."""
        self.start_live_migration(server, to)
        status = self.wait_for_migration(server)
        self.wait_for_history(server)
        return status

    def move_live(self, server: Server, to: str) -> None:
        """Live-migrate a server, which succeeds.

        :raises AssertionError: it does not; with what was logged
        """
        status = self.live_migrate(server, to)
        assert status == 'completed', f'{status}:\n{self.log()}'

    def wait_for_history(self, server: Server) -> None:
        """Until what the server wrote before has followed it, or cannot."""
        def ended(path: str, destination: Any) -> bool:
            state = outbox.load_state(path)
            # nova's own driver puts nothing in place.
            return bool(state.reason or (
                state.copied and not hasattr(destination, '_histories')))

        def settled() -> bool:
            destination = self.driver_of(self.host_of(server).name)
            return all(
                ended(path, destination) for instances in
                self.instances.values() for path in outbox.paths(
                    str(instances), server['id']))
        until(settled, 'the history is there', pause=0.02)

    def time_live_migration(self, server: Server, to: str) -> float:
        """Seconds from the request until nova-compute has done with it."""
        start = time.monotonic()
        self.start_live_migration(server, to)
        self.wait_for_migration(server)
        ended = self._migration.ended
        assert ended is not None, self.log()
        return ended - start

    def start_live_migration(self, server: Server, to: str) -> None:
        self._begun = len(self.migrations(server))
        manager = self._nova.computes[self.host_of(server).name].manager
        vars(manager).pop('_do_live_migration', None)
        self._migration = _LiveMigration(manager._do_live_migration)
        manager._do_live_migration = self._migration
        self.api.post_server_action(server['id'], {'os-migrateLive': {
            'host': to, 'block_migration': 'auto'}})

    def wait_for_migration(self, server: Server,
                           seconds: float = 120.0) -> str:
        """Until the live migration that was started has ended; its status.

        nova-compute has done with it: after the status of a guest that has
        stayed, nova 34 may still put the guest into error.
        """
        def ended() -> str | None:
            found = self.migrations(server)
            if (len(found) > self._begun and found[0]['status'] in _ENDED
                    and not self._migration.is_under_way):
                return str(found[0]['status'])
            return None
        status = until(ended, 'migration ended', seconds, 0.1)
        assert status is not None
        until(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None, 'nothing under way')
        return status

    def migrations(self, server: Server) -> list[dict[str, Any]]:
        """The migrations of a server, the newest first."""
        found: list[dict[str, Any]] = self.api.api_get(
            f'/os-migrations?instance_uuid={server["id"]}').body['migrations']
        return found

    def guest(self, server: Server) -> libvirt.virDomain:
        """The server's domain, on the host that nova says it is on."""
        return self.host_of(server).connect().lookupByUUIDString(server['id'])

    def instance_directory(self, server: Server) -> Path:
        return self.directory_on(self.host_of(server).name, server)

    def directory_on(self, name: str, server: Server) -> Path:
        """A server's directory on a host."""
        return self.instances[name] / str(server['id'])
