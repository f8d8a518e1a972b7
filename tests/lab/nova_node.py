# SPDX-License-Identifier: Apache-2.0
"""A whole nova runs in this process, on a real libvirtd.

API, conductor, scheduler and placement are nova's own, on SQLite; RPC stays
within the process; keystone, glance, neutron and cinder are the stand-ins of
nova's functional tests. nova-compute is real to the bottom: its driver, its
privsep daemons, libvirt, QEMU and the guest.
"""

from tests.lab import concurrency

# isort: split
import contextlib
import io
import logging
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import fixtures
import futurist
import libvirt
import os_brick.privileged
import os_vif
from lxml import etree
from nova import context as nova_context
from nova import objects
from nova.compute import rpcapi as compute_rpcapi
from nova.conf import CONF
from nova.console import serial as nova_serial
from nova.tests import fixtures as nova_fixtures
from nova.tests.functional import integrated_helpers
from nova.tests.functional.api import client as api_client
from nova.virt.libvirt import host as libvirt_host
from oslo_privsep import priv_context

from tests.lab.daemons import LibvirtHost
from tests.lab.guest import boot_sector, disk_image
from tests.lab.terminal import Terminal
from tests.lab.wait import until
from virtlogd_driver import conf
from virtlogd_driver.virtlogd import privileged as daemon_privileged

#: What the REST API answers when it refuses.
ApiError = api_client.OpenStackApiException
#: A server, as the REST API shows it.
Server: TypeAlias = dict[str, Any]
#: Options of nova.conf: {(group or None, name): value}
Options: TypeAlias = Mapping[tuple[str | None, str], Any]

DRIVER = 'virtlogd_driver.VirtlogdDriver'
MICROVERSION = '2.79'

# nova's tests forbid what is the point here: libvirt, its event thread, the
# real /sys and network interfaces, privsep daemons.
_FORBIDDING = ('PoisonFunctions', 'GenericPoisonFixture',
               'SysFsPoisonFixture', 'ImportModulePoisonFixture',
               'PrivsepNoHelperFixture')


def _database_of_the_cell(databases: Any, context: Any) -> Any:
    """Give the database that a service of a cell has, where none is named.

    nova's fixture gives the one that was named last by anybody: a
    nova-compute that looks up a server while the API lists those of another
    cell is told that there is no such server.
    """
    return (getattr(context, 'db_connection', None)
            or databases._default_ctxt_mgr)


_add_a_thread = futurist.ThreadPoolExecutor._maybe_spin_up


def _add_a_thread_if_needed(pool: futurist.ThreadPoolExecutor) -> bool:
    """Add no thread to a pool that has some to spare.

    futurist adds one for each piece of work until a pool is full. Services
    that have a process each do not mind; all of them in one have hundreds of
    threads after a few moves, which wake each second, all at once, and take a
    third of a processor and more.
    """
    if pool.get_num_idle_workers() > pool.queue_size + 1:
        return False
    added: bool = _add_a_thread(pool)
    return added


class _NoFixture(fixtures.Fixture):
    """Instead of a fixture that forbids."""

    def __init__(self, *args: object) -> None:
        super().__init__()


def _run_libvirt_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _start_libvirt_events() -> None:
    """One event loop for the process: each nova would start one more."""
    threads = concurrency.native_threading()
    if not any(thread.name == 'libvirt events'
               for thread in threads.enumerate()):
        libvirt.virEventRegisterDefaultImpl()
        threads.Thread(target=_run_libvirt_events, name='libvirt events',
                       daemon=True).start()


class _LibvirtEvents(fixtures.Fixture):
    """nova's event threads, so that they end with the test."""

    def _setUp(self) -> None:
        _start_libvirt_events()
        self._ended = False
        self._hosts: list[Any] = []
        for owner in ('_EventletLibvirtEventHandler',
                      '_ThreadingLibvirtEventHandler', 'Host'):
            handler = getattr(libvirt_host, owner, None)
            if hasattr(handler, '_native_thread'):
                self.useFixture(fixtures.MockPatchObject(
                    handler, '_native_thread', lambda handler: None))
        self.useFixture(fixtures.MockPatchObject(
            libvirt_host.Host, '_conn_event_thread',
            lambda host: self._dispatch(host)))
        self.addCleanup(self._end)

    def _dispatch(self, host: Any) -> None:
        self._hosts.append(host)
        while not self._ended:
            host._dispatch_conn_event()

    def _end(self) -> None:
        self._ended = True
        for host in self._hosts:
            host._conn_event_handler_queue.put(lambda: None)


def _keep_thread_pools() -> None:
    """No service of a test closes the pools of this process for good.

    nova's fixture sees to that, but not for one that takes so long to end that
    the fixture is gone: no other nova can be started then.
    """
    # nova 34 has it.
    with contextlib.suppress(ImportError):
        from nova import thread_pool_factory
        thread_pool_factory.shutdown_all_executors = lambda: None


class _Nova(integrated_helpers._IntegratedTestBase):  # type: ignore[misc]
    """nova's own functional test set-up, for its services."""

    ADMIN_API = True
    CAST_AS_CALL = False
    microversion = MICROVERSION

    def __init__(self, configure: Callable[['_Nova'], None],
                 host: str) -> None:
        super().__init__('runTest')
        self._configure = configure
        self._host = host

    def runTest(self) -> None:
        """A test case has a test."""

    def _setup_services(self) -> None:
        self._configure(self)
        super()._setup_services()

    def _setup_compute_service(self) -> Any:
        return self._start_compute(self._host)

    def tear_down(self) -> None:
        """What a test runner does after a test."""
        errors = []
        while self._cleanups:
            function, args, kwargs = self._cleanups.pop()
            try:
                function(*args, **kwargs)
            except Exception as e:
                errors.append(e)
        if errors:
            raise ExceptionGroup('nova did not stop cleanly', errors)


class NovaNode(fixtures.Fixture):
    """A nova with one compute host.

    :ivar api: nova's REST API, as its functional tests call it.
    :ivar driver: the compute driver that was loaded.
    :ivar instances_path: one directory for each server.
    :ivar flavors: their ids by name: 'small' and 'large'.

    :param host: with its daemons running.
    :param directory: for nova's files; made if it is missing.
    :param compute_driver: as in nova.conf.
    :param image: the content of the image that servers boot; ``None``: the
        boot sector that writes ten lines and then echoes what is typed.
    :param options: more options of nova.conf.
    """

    def __init__(self, host: LibvirtHost,
                 directory: str | os.PathLike[str],
                 compute_driver: str = DRIVER,
                 image: bytes | None = None,
                 options: Options | None = None) -> None:
        super().__init__()
        self.host = host
        self.directory = Path(directory)
        self.compute_driver = compute_driver
        self._image = disk_image(boot_sector(count=10)) if image is None \
            else image
        self._options = options or {}
        self.instances_path = self.directory / 'instances'

    def _setUp(self) -> None:
        self.instances_path.mkdir(parents=True, exist_ok=True)
        _keep_thread_pools()
        # nova 34 has native threads.
        if hasattr(futurist.ThreadPoolExecutor, 'get_num_idle_workers'):
            self.useFixture(fixtures.MockPatchObject(
                futurist.ThreadPoolExecutor, '_maybe_spin_up',
                _add_a_thread_if_needed))
        # Before and after nova's own, which keeps the log of its services.
        self.useFixture(fixtures.FakeLogger(level=logging.WARNING))
        # privsep daemons of this environment's nova.
        self.useFixture(fixtures.EnvironmentVariable('PATH', os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ['PATH']])))
        priv_context.init(root_helper=['env'])
        self._make_helpers()
        self.useFixture(fixtures.MockPatchObject(
            os_brick.privileged.default, 'client_mode', False))
        for name in _FORBIDDING:
            self.useFixture(fixtures.MockPatch(
                f'nova.tests.fixtures.{name}', _NoFixture))
        self.useFixture(fixtures.MockPatchObject(
            nova_fixtures.CellDatabases, '_wrap_get_context_manager',
            _database_of_the_cell))
        self.useFixture(fixtures.MockPatchObject(
            nova_serial, 'ALLOCATED_PORTS', set()))
        os_vif.initialize()
        self._nova = self._make_nova()
        self.addCleanup(self._nova.tear_down)
        self._nova.setUp()
        self.api = self._nova.api
        self.driver = self._nova.compute.driver
        self._add_image()
        self.flavors: dict[str, str] = {}
        self.create_flavor('small')
        self.create_flavor('large', memory=256)

    def _make_helpers(self) -> None:
        """Helpers with a configuration file, as they go by that alone."""
        file = self.directory / 'helper.conf'
        file.write_text(
            f'[virtlogd]\nvirtlogd_socket = {self.host.virtlogd_socket}\n')
        self._helper_command = (
            f'{sys.prefix}/bin/privsep-helper --config-file {file}')
        for context in (daemon_privileged.virtlogd_context,
                        daemon_privileged.viewer_context):
            # One of another test has another file.
            context.stop()
            self.addCleanup(context.stop)

    def _make_nova(self) -> _Nova:
        return _Nova(self._configure, self.host.name)

    def _configure(self, nova: _Nova) -> None:
        # Ends after the services, and before nova waits for its threads.
        nova.useFixture(_LibvirtEvents())
        conf.register_opts(CONF)
        options: dict[tuple[str | None, str], Any] = {
            (None, 'allow_resize_to_same_host'): True,
            (None, 'compute_driver'): self.compute_driver,
            (None, 'instances_path'): str(self.instances_path),
            (None, 'my_ip'): '127.0.0.1',
            # A boot sector does not listen to ACPI.
            (None, 'shutdown_timeout'): 0,
            (None, 'state_path'): str(self.directory / 'state'),
            (None, 'use_cow_images'): False,
            ('libvirt', 'connection_uri'): self.host.uri,
            ('libvirt', 'cpu_mode'): 'none',
            ('libvirt', 'images_type'): 'raw',
            ('libvirt', 'inject_partition'): -2,
            ('libvirt', 'virt_type'): 'qemu',
            ('libvirt', 'wait_soft_reboot_seconds'): 1,
            ('serial_console', 'enabled'): True,
            ('spice', 'enabled'): False,
            ('vnc', 'enabled'): False,
            ('virtlogd', 'qemu_conf'): str(self.host.qemu_conf),
            ('virtlogd', 'virtlogd_conf'): str(self.host.virtlogd_conf),
            ('virtlogd', 'virtlogd_socket'): str(self.host.virtlogd_socket),
            **{(context.cfg_section, 'helper_command'): self._helper_command
               for context in (daemon_privileged.virtlogd_context,
                               daemon_privileged.viewer_context)},
            ('wsgi', 'api_paste_config'):
                f'{sys.prefix}/etc/nova/api-paste.ini',
            **self._options,
        }
        if 'manager_shutdown_timeout' in CONF:
            # nova 34 cleans up the host beside what stops the service, and
            # with nova's fixtures waits 0 seconds for it.
            options[None, 'manager_shutdown_timeout'] = 20
        for (group, name), value in options.items():
            CONF.set_override(name, value, group)

    def _add_image(self) -> None:
        image = {
            'name': 'guest', 'disk_format': 'raw', 'container_format': 'bare',
            'size': len(self._image), 'min_ram': 0, 'min_disk': 0,
            'visibility': 'public', 'properties': {}}
        self._image_id = self._nova.glance.create(
            None, image, io.BytesIO(self._image))['id']

    def create_flavor(self, name: str, memory: int = 192,
                      extra_specs: Mapping[str, str] | None = None) -> None:
        """A flavor, ``memory`` in MiB; its id is in ``flavors``.

        Its disk is as large as the image: QEMU 10 allocates the whole of it
        on the target of a live migration.
        """
        self.flavors[name] = self._nova._create_flavor(
            memory_mb=memory, vcpu=1, disk=0, ephemeral=0, name=name,
            extra_spec=extra_specs)

    def restart_compute(self) -> None:
        """End nova-compute, and start it anew: it knows nothing more."""
        # In its own process it would hear no more from libvirt.
        self.driver._host._lifecycle_event_handler = None
        self._nova.compute = self._nova.restart_compute_service(
            self._nova.compute, keep_hypervisor_state=False)
        self._nova.computes[self.host.name] = self._nova.compute
        self.driver = self._nova.compute.driver

    # Servers

    def boot(self, flavor: str = 'small') -> Server:
        """A new server, ACTIVE.

        :raises RuntimeError: it went to ERROR; with nova's reason.
        """
        request = {
            'name': 'server', 'imageRef': self._image_id,
            'flavorRef': self.flavors[flavor], 'networks': 'none'}
        return self.wait(self.api.post_server({'server': request}), 'ACTIVE')

    def wait(self, server: Server, status: str,
             seconds: float = 60.0) -> Server:
        """Until the server has this status and nothing is under way.

        :raises RuntimeError: it went to ERROR; with nova's reason.
        :raises TimeoutError: it did not; with what was logged
        """
        def reached() -> Server | None:
            now: Server = self.api.get_server(server['id'])
            if now['status'] == 'ERROR' != status:
                raise RuntimeError(
                    f'{now.get("fault", {}).get("message")}\n{self.log()}')
            if (now['status'] == status
                    and now['OS-EXT-STS:task_state'] is None):
                return now
            return None
        try:
            reached_server = until(reached, f'server {status}', seconds, 0.1)
        except TimeoutError as e:
            raise TimeoutError(f'{e}\n{self.log()}') from e
        assert reached_server is not None
        return reached_server

    def action(self, server: Server, name: str, status: str,
               arguments: Mapping[str, Any] | None = None) -> Server:
        """A server action of the REST API, and the status it leads to."""
        self.api.post_server_action(server['id'], {name: arguments})
        return self.wait(server, status)

    def reboot(self, server: Server, hard: bool = True) -> Server:
        return self.action(server, 'reboot', 'ACTIVE',
                           {'type': 'HARD' if hard else 'SOFT'})

    def stop(self, server: Server) -> Server:
        return self.action(server, 'os-stop', 'SHUTOFF')

    def start(self, server: Server) -> Server:
        return self.action(server, 'os-start', 'ACTIVE')

    def rescue(self, server: Server) -> Server:
        return self.action(server, 'rescue', 'RESCUE', {})

    def unrescue(self, server: Server) -> Server:
        return self.action(server, 'unrescue', 'ACTIVE')

    def resize(self, server: Server, flavor: str = 'large') -> Server:
        """To flavor 'large' or 'small'; to be confirmed or reverted."""
        return self.action(server, 'resize', 'VERIFY_RESIZE',
                           {'flavorRef': self.flavors[flavor]})

    def confirm_resize(self, server: Server) -> Server:
        return self.action(server, 'confirmResize', 'ACTIVE')

    def revert_resize(self, server: Server) -> Server:
        return self.action(server, 'revertResize', 'ACTIVE')

    def rebuild(self, server: Server) -> Server:
        return self.action(server, 'rebuild', 'ACTIVE',
                           {'imageRef': self._image_id})

    def last_action(self, server: Server,
                    admin: bool = True) -> dict[str, Any]:
        """The newest action on a server with its events, the newest first.

        As "openstack server event show" has it; details are for
        administrators.
        """
        api = self.api if admin else self._nova.api_fixture.api
        with fixtures.MockPatchObject(api, 'microversion', '2.84'):
            path = f'/servers/{server["id"]}/os-instance-actions'
            newest = api.api_get(path).body['instanceActions'][0]
            action: dict[str, Any] = api.api_get(
                f'{path}/{newest["request_id"]}').body['instanceAction']
        return action

    def delete(self, server: Server) -> None:
        """Returns when the API does not know it any more."""
        self.api.delete_server(server['id'])

        def gone() -> bool:
            try:
                self.api.get_server(server['id'])
            except api_client.OpenStackApiNotFoundException:
                return True
            return False
        until(gone, 'server deleted', 60)

    # Consoles

    def console_output(self, server: Server) -> str:
        """What os-getConsoleOutput answers."""
        answer: str = self.api.post_server_action(
            server['id'], {'os-getConsoleOutput': {}})['output']
        return answer

    def wait_for_output(self, server: Server, text: str,
                        seconds: float = 60.0) -> str:
        """The console output, once it contains ``text``."""
        seen = ''

        def contains() -> bool:
            nonlocal seen
            seen = self.console_output(server)
            return text in seen
        until(contains, f'{text!r} in the console output', seconds, 0.1)
        return seen

    def console_url(self, server: Server) -> str:
        """What the API returns for a browser."""
        url: str = self.api.api_post(
            f'/servers/{server["id"]}/remote-consoles',
            {'remote_console': {'protocol': 'serial', 'type': 'serial'}},
        ).body['remote_console']['url']
        return url

    def console_address(self, server: Server) -> tuple[str, int]:
        """Where the serial console is, as nova-serialproxy finds it.

        The URL that the API returns holds a token; the proxy looks it up, and
        asks the compute host whether the port still is the server's.

        :raises PermissionError: it is not.
        """
        token = urllib.parse.parse_qs(urllib.parse.urlparse(
            self.console_url(server)).query)['token'][0]
        with self._cell() as context:
            console = objects.ConsoleAuthToken.validate(context, token)
            instance = objects.Instance.get_by_uuid(context, server['id'])
            if not compute_rpcapi.ComputeAPI().validate_console_port(
                    context, instance, str(console.port),
                    console.console_type):
                raise PermissionError(f'{console.host}:{console.port}')
        return console.host, int(console.port)

    def serial_console(self, server: Server) -> Terminal:
        """Connected to the serial console, through what the API returned.

        Another connection waits until this one is closed:
        ``with node.serial_console(server) as terminal: ...``.
        """
        return Terminal(*self.console_address(server))

    @contextlib.contextmanager
    def _cell(self) -> Iterator[nova_context.RequestContext]:
        with nova_context.target_cell(
                nova_context.get_admin_context(),
                self._nova.cell_mappings['cell1']) as context:
            yield context

    # Below the API

    def guest(self, server: Server) -> libvirt.virDomain:
        """The server's domain."""
        return self.host.connect().lookupByUUIDString(server['id'])

    def guest_xml(self, server: Server) -> etree._Element:
        """The server's domain, as it runs, or as it is defined."""
        return etree.fromstring(self.guest(server).XMLDesc())

    def instance_directory(self, server: Server) -> Path:
        return self.instances_path / str(server['id'])

    def log(self) -> str:
        """What nova's services logged."""
        output: str = self._nova.stdlog.logger.output
        return output
