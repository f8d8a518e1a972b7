# SPDX-License-Identifier: Apache-2.0
"""Errors, devices and events of this project become those that nova expects.

Also the few objects of nova's that the driver's collaborators are built from:
its libvirt connection, its way to copy files to another host.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import nova.conf
from nova import exception as nova_exception
from nova.compute import utils as compute_utils
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.compute.options import Options
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import exclusive, history
from virtlogd_driver.virtlogd import conf_files
from virtlogd_driver.virtlogd.disk import Disks

LOG = logging.getLogger(__name__)
CONF = nova.conf.CONF


@contextlib.contextmanager
def nova_errors(instance: Any = None) -> Iterator[None]:
    """Turn this project's errors into the ones that nova expects.

    :param instance: nova's Instance that they are about; None: no guest
    """
    try:
        yield
    except (exception.InvalidOption, exception.InvalidAddress) as e:
        raise nova_exception.InvalidConfiguration(str(e)) from e
    except exception.TooManySerialPorts as e:
        error = nova_exception.SerialPortNumberLimitExceeded(
            str(e), virt_type=CONF.libvirt.virt_type)
        raise error from e
    except exception.PortRangeExhausted as e:
        raise nova_exception.SocketPortRangeExhaustedException(
            str(e), host=CONF.serial_console.proxyclient_address) from e
    except exception.GuestNotFound as e:
        raise nova_exception.InstanceNotFound(
            instance_id=instance and instance.uuid) from e
    except exception.HostError as e:
        raise nova_exception.HypervisorUnavailable(str(e)) from e
    except exception.LogError as e:
        # The API passes the message on to the tenant: no path of this host.
        LOG.error('The console log of the guest cannot be read, and its '
                  'user is told that it is not available: %s', e,
                  instance=instance)
        raise nova_exception.ConsoleNotAvailable() from e
    except exception.VirtlogdDriverError as e:
        raise nova_exception.InternalError(str(e)) from e


#: What an event of a server's action is called that tells a user what is wrong
#: with virtlogd: names are for all to see, details for administrators only.
_EVENTS = {exception.VirtlogdDown: 'compute_virtlogd_down',
           exception.VirtlogdHung: 'compute_virtlogd_hung',
           exception.LogDiskFull: 'compute_console_log_disk_full'}


def tell_user(context: Any, instance: Any,
              error: exception.VirtlogdError) -> None:
    """Add an error to the action of a server that is under way.

    Its user sees it with "openstack server event show". The action goes on,
    also where the error cannot be added.

    :param error: VirtlogdDown, VirtlogdHung or LogDiskFull
    """
    told = nova_exception.InternalError(str(error))
    try:
        with compute_utils.EventReporter(
                context, _EVENTS[type(error)], CONF.host, instance.uuid):
            raise told
    except nova_exception.InstanceActionNotFound:
        LOG.debug('No action of a user is under way that this could be added '
                  'to: %s', error, instance=instance)
    except Exception as e:
        if e is not told:
            LOG.exception(
                "The server's user does not see this among the events of the "
                'action, as it could not be added there: %s', error,
                instance=instance)


@contextlib.contextmanager
def rolled_back() -> Iterator[None]:
    """Tell nova that what fails in the block has not changed the guest."""
    try:
        yield
    except nova_exception.NovaException as e:
        raise nova_exception.InstanceFaultRollback(e) from e


@contextlib.contextmanager
def refused_beforehand(host: str) -> Iterator[None]:
    """Refuse a live migration for what fails in the block.

    :param host: name of the destination, for the message
    """
    try:
        yield
    except exception.VirtlogdDriverError as e:
        raise nova_exception.MigrationPreCheckError(
            reason=f'{host}: {e}') from e


@contextlib.contextmanager
def failure_told(context: Any, instance: Any) -> Iterator[None]:
    """Tell a server's user what fails in the block, where nova itself says
    nothing as the guest goes on."""
    try:
        yield
    except nova_exception.NovaException as e:
        if type(e.__cause__) in _EVENTS:
            tell_user(context, instance, e.__cause__)
        raise


class _CharDeviceConfig:
    """A serial device is put among those of nova's guest configuration.

    It is of nova's own class and has its attributes, for nova's code that
    looks at them; its XML is this project's.
    """

    def __init__(self, device: char_device.CharDevice) -> None:
        super().__init__()
        self.type = device.type
        self._device = device
        if device.source is not None:
            self.source_path = device.source.path
            self.listen_host = device.source.host
            self.listen_port = device.source.service
        if device.log is not None:
            self.log = vconfig.LibvirtConfigGuestCharDeviceLog()
            self.log.file = device.log.file
            self.log.append = 'on' if device.log.append else 'off'
        if device.target is not None:
            self.target_port = device.target.port
            self.target_type = device.target.type

    def format_dom(self) -> Any:
        return self._device.to_element()


class _SerialConfig(_CharDeviceConfig, vconfig.LibvirtConfigGuestSerial):
    pass


class _ConsoleConfig(_CharDeviceConfig, vconfig.LibvirtConfigGuestConsole):
    pass


_CONFIGS = {'serial': _SerialConfig, 'console': _ConsoleConfig}


def device_config(device: char_device.CharDevice) -> Any:
    """A device as nova's guest configuration takes it."""
    return _CONFIGS[device.tag](device)


class _Instead:
    """An object stands for one of nova's, with some attributes replaced.

    nova's methods take what they work on as arguments, so what they see can
    be changed without a copy of their code.
    """

    def __init__(self, original: Any, **attributes: Any) -> None:
        self._original = original
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def departing(guest: Any, rewrite: Callable[[str], str]) -> Any:
    """Stand for nova's Guest in a live migration, with another XML for its
    destination.

    :param rewrite: gives that XML, of the domain's own
    """
    def get_xml_desc(*args: Any, **kwargs: Any) -> str:
        domain_xml: str = guest.get_xml_desc(*args, **kwargs)
        if kwargs.get('dump_migratable'):
            return rewrite(domain_xml)
        return domain_xml

    return _Instead(guest, get_xml_desc=get_xml_desc)


def launching(driver: Any, before_launch: Callable[[str], None]) -> Any:
    """Stand for nova's driver, where that starts a domain that is defined.

    :param before_launch: is called with the domain's XML just before
    """
    def get_guest(instance: Any) -> Any:
        guest = driver._host.get_guest(instance)

        def launch(*args: Any, **kwargs: Any) -> Any:
            before_launch(guest.get_xml_desc())
            return guest.launch(*args, **kwargs)

        return _Instead(guest, launch=launch)

    return _Instead(
        driver, _host=_Instead(driver._host, get_guest=get_guest))


def connection_of(host: Any) -> Callable[[], Any]:
    """What gives the libvirt connection of nova's Host.

    :returns: raises HostError where there is none
    """
    def connection() -> Any:
        try:
            return host.get_connection()
        except nova_exception.HypervisorUnavailable as e:
            raise exception.HostError(str(e)) from e

    return connection


def domain_xml_of(host: Any) -> Callable[[Any], str]:
    """What gives the domain XML of an instance, by nova's Host.

    :returns: raises InstanceNotFound, nova's, where there is no domain
    """
    def domain_xml(instance: Any) -> str:
        found: str = host.get_guest(instance).get_xml_desc()
        return found

    return domain_xml


def history_of(options: Options) -> Callable[[], history.History]:
    """What keeps histories, and copies them by nova's own way."""
    guests = exclusive.Exclusive()

    def kept() -> history.History:
        ours = options.virtlogd
        return history.History(
            libvirt_utils.copy_image, ours.max_history_bytes,
            ours.history_timeout, ours.virtlogd_socket, guests,
            conf_files.max_backups(ours.virtlogd_conf))

    return kept


def field(data: Any, name: str) -> Any:
    """A field of one of nova's objects; None where its sender left it out."""
    return getattr(data, name) if data.obj_attr_is_set(name) else None


def outside_eventlet(function: Callable[..., Any], *arguments: Any) -> Any:
    """What may block: in a thread of the system's under eventlet.

    The function is given what is behind a proxy of nova's connection. A call
    on the proxy, in such a thread, waits for ever if this process forks at
    that moment: eventlet until 0.40.0 does not know its own threads then
    (fix_threading_active of eventlet/patcher.py, execute of tpool.py).
    """
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is None or not patcher.is_monkey_patched('thread'):
        return function(*arguments)
    from eventlet import tpool
    return tpool.execute(function, *(
        argument._obj if isinstance(argument, tpool.Proxy) else argument
        for argument in arguments))


#: The file systems of this host: one that stalls holds up nothing else.
DISKS = Disks(outside_eventlet)
