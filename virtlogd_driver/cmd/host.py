# SPDX-License-Identifier: Apache-2.0
"""The commands see this host with its guests, their ports and logs.

Root reads logs and asks virtlogd itself; anybody else goes through the
privileged helpers that nova-compute uses.
"""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from virtlogd_driver import exception
from virtlogd_driver.cmd import guest_name
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.descriptor_store import DescriptorStore
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.console_log.log import LogRead, LogSince, Passed, Position
from virtlogd_driver.guest.char_device import CharDevice
from virtlogd_driver.node import hypervisor
from virtlogd_driver.relay import settings as relay_settings
from virtlogd_driver.virtlogd import settings, viewer
from virtlogd_driver.virtlogd.disk import DISKS, Disks
from virtlogd_driver.virtlogd.port import Port, is_open, numeric

#: What an answer of virtlogd means for a log (virtlogd/health.py).
_STATES = {'open': 'alive', 'closed': 'dead', 'file': 'unrotated',
           'starting': 'unknown'}


@dataclass(frozen=True, slots=True)
class SerialPort:
    """A serial port belongs to a guest, and may have a log."""

    guest: hypervisor.Guest
    #: From 0.
    number: int
    device: CharDevice

    @property
    def label(self) -> str:
        return (f'{self.guest.name}:{self.number}' if self.number
                else self.guest.name)

    @property
    def log(self) -> str:
        """Give path of its log.

        :raises LogNotFound: it has none
        """
        path = self.device.log_file
        if path is None:
            raise exception.LogNotFound(
                f'Serial port {self.number} of guest {self.guest.name} has no '
                f'log: there is no <log> in its domain. "virtlogd-console '
                f'attach" shows what it writes from now on.')
        return path


def serial_ports(guest: hypervisor.Guest) -> list[SerialPort]:
    """Give a guest's ports.

    :raises InvalidGuestXML: its XML cannot be understood
    """
    return [SerialPort(guest, device.number, device)
            for device in guest.devices()]


def serial_port(guest: hypervisor.Guest, number: int) -> SerialPort:
    """Give one port of a guest.

    :raises GuestNotFound: the guest has no such port
    """
    ports = serial_ports(guest)
    for port in ports:
        if port.number == number:
            return port
    numbers = ', '.join(str(port.number) for port in ports)
    raise exception.GuestNotFound(
        f'Guest {guest.name} has no serial port {number}: it has '
        f'{numbers or "none"}.')


def _is_open(device: CharDevice) -> bool:
    """Tell whether it is there; False: its pseudo terminal is gone."""
    return (device.type != 'pty' or device.source is None
            or device.source.path is None or is_open(device.source.path))


class Host:
    """A host is known by its libvirt and its virtlogd."""

    def __init__(self, uri: str, virtlogd_socket: str, timeout: float,
                 root_helper: Sequence[str] = (),
                 relay: tuple[str, str] | None = None,
                 relay_socket: str = '',
                 virtlogd_conf: str | None = None,
                 name: str = '') -> None:
        """
        :param uri: of libvirt
        :param virtlogd_socket: virtlogd's socket
        :param timeout: seconds for virtlogd to answer
        :param root_helper: what privileged helpers are started with; empty:
            oslo.privsep's own default
        :param relay: the address that relayed guests listen on, and the one
            where the relay does
        :param relay_socket: path of the relay's own socket
        :param virtlogd_conf: path of virtlogd.conf, for how many backups a
            log has; None: that is not known
        :param name: of this host, as nova knows it
        """
        self.uri = uri
        self.name = name
        self._relay = relay
        self.relay_socket = relay_socket
        self._virtlogd_conf = virtlogd_conf
        self.virtlogd_socket = virtlogd_socket
        self.timeout = timeout
        self._root_helper = list(root_helper)

    def is_relayed(self, address: str) -> bool:
        """Tell whether many may be at a console.

        :param address: that the guest listens on
        """
        return self._relay is not None and address == self._relay[0]

    def viewers_address(self, address: str) -> str:
        """Tell where viewers connect to.

        :param address: that the guest listens on
        :raises InvalidAddress, InvalidOption: as of check_outer, of the relay
        """
        return self._relay_address if self.is_relayed(address) else address

    @functools.cached_property
    def _relay_address(self) -> str:
        """Give it in digits: a name could be any address, QEMU's too."""
        assert self._relay is not None
        return relay_settings.check_outer(self._relay[1])

    def connect(self) -> Any:
        """Give a new libvirt connection.

        :raises HostError: libvirt does not answer
        """
        return hypervisor.connect(self.uri)

    @functools.cached_property
    def connection(self) -> Any:
        """Give the connection of this process: see :meth:`connect`."""
        return self.connect()

    def forget_connection(self) -> None:
        """Connect anew when the connection is needed the next time."""
        self.__dict__.pop('connection', None)

    def guests(self) -> list[hypervisor.Guest]:
        """Give all guests, by name.

        :raises HostError: libvirt does not answer
        """
        with _interruptible():
            return sorted(hypervisor.list_guests(self.connection),
                          key=lambda guest: guest.name)

    def guest(self, word: str) -> hypervisor.Guest:
        """Find a guest.

        :raises GuestNotFound: see :func:`guest_name.find`
        """
        return guest_name.find(self.guests(), word)

    # Logs

    def read_tail(self, path: str, limit: int) -> LogRead:
        """Read the newest bytes.

        :raises LogError: see :func:`log.read_tail`
        """
        if not _is_root():
            read: LogRead = self._reader().read_tail(
                path, limit, max_backups=self._max_backups)
            return read
        directory_path, name = os.path.split(path)
        with open_directory(directory_path) as directory:
            return log.read_tail(directory, name, limit,
                                 max_backups=self._max_backups)

    @functools.cached_property
    def _max_backups(self) -> int | None:
        """Tell how many; None: this process does not know, or may not."""
        path = self._virtlogd_conf
        if path is None or not os.path.exists(path):
            return None
        try:
            return settings.read_virtlogd_settings(path).max_backups
        except (exception.InvalidConfFile, OSError):
            return None

    def read_from(self, path: str, position: Position | None, limit: int,
                  passed: Collection[Passed] | None = None) -> LogSince:
        """Read on.

        :raises LogError: see :func:`log.read_from`
        """
        if not _is_root():
            since: LogSince = self._reader().read_from(
                path, position, limit, max_backups=self._max_backups,
                passed=passed)
            return since
        directory_path, name = os.path.split(path)
        with open_directory(directory_path) as directory:
            return log.read_from(directory, name, position, limit,
                                 max_backups=self._max_backups,
                                 passed=passed)

    def ask_directly(self) -> None:
        """Ask virtlogd without a privileged helper, where that can be."""
        self._health()

    def virtlogd(self) -> tuple[str, str]:
        """Ask whether virtlogd answers.

        :returns: "up", "down", "hung", "full" or "refused", and why it is
            not up
        """
        state, reason, _ = self._ask([])
        return state, reason

    def log_states(self, ports: Sequence[SerialPort],
                   disks: Disks = DISKS) -> list[str]:
        """Tell what becomes of what is written on each port.

        :param disks: asks file systems
        :returns: "alive", "dead", "unlinked", as its file is not at its path
            any more, "unrotated"; "unknown", as virtlogd cannot be asked, or
            as the guest just starts or ends; "none", as there is no log;
            "-", as the guest does not run, or "held", as it is open all the
            same
        """
        asked = [(port.guest.name, port.device.log_file) for port in ports
                 if port.device.log_file]
        _, _, answers = self._ask(asked)
        found = iter([_STATES[answer] for answer in answers]
                     or ['unknown'] * len(asked))
        states = ['none' if not port.device.log_file else next(found)
                  for port in ports]
        unlinked = self._health().find_unlinked(
            self.virtlogd_socket, self.timeout, disks)([
                port.log for port, state in zip(ports, states, strict=True)
                if state == 'alive' and port.guest.active]).unlinked
        return [_state(port, state, port.device.log_file in unlinked)
                for port, state in zip(ports, states, strict=True)]

    def states_of_logs(self, logs: Mapping[str, str]
                       ) -> tuple[str, dict[str, str]]:
        """Tell what becomes of what running guests write.

        :param logs: their guests' names, by path
        :returns: why virtlogd does not answer, empty where it does; and by
            path "alive", "dead", "unlinked", "unrotated" or "unknown"
        """
        _, reason, answers = self._ask(
            [(name, path) for path, name in logs.items()])
        states = dict(zip(logs, (_STATES[answer] for answer in answers),
                          strict=False))
        unlinked = self._health().find_unlinked(
            self.virtlogd_socket, self.timeout)([
                path for path, state in states.items()
                if state == 'alive']).unlinked
        return reason, states | dict.fromkeys(unlinked, 'unlinked')

    def kept_open(self) -> Any:
        """Give what reads logs and keeps their files open for a while.

        :returns: console_log/reader.py, or what root has in its place
        """
        return DescriptorStore(log.open_log) if _is_root() else self._reader()

    def closed(self, ports: Sequence[SerialPort]) -> list[SerialPort]:
        """Give those whose console nobody is seen to listen on."""
        addresses = {index: numeric(*port.device.address)
                     for index, port in enumerate(ports)
                     if port.device.address is not None}
        try:
            listening = viewer.listening(addresses.values())
        except OSError:
            listening = set(addresses.values())
        return [port for index, port in enumerate(ports)
                if not (addresses[index] in listening if index in addresses
                        else _is_open(port.device))]

    def viewers(self, ports: Sequence[SerialPort]
                ) -> list[list[viewer.Viewer]]:
        """Tell who is connected to each port; nobody, where it is not TCP.

        :raises HostError: the kernel does not tell
        :raises InvalidAddress, InvalidOption: as of viewers_address
        """
        addresses = [numeric(self.viewers_address(port.device.address[0]),
                             port.device.address[1])
                     if port.device.address is not None and port.guest.active
                     else None for port in ports]
        try:
            found = viewer.viewers(filter(None, addresses))
        except OSError as error:
            raise exception.HostError(
                'The kernel does not tell who is connected '
                f'({error.strerror or error}). Load its module '
                'tcp_diag.') from error
        return [[] if address is None else
                [one for one in found if viewer.is_at(one, address)]
                for address in addresses]

    def reattach(self, port: Port) -> str:
        """Bring a log and its console back: see :func:`watch.reattach_log`.

        :raises VirtlogdDriverError: it cannot be done
        """
        self._health()
        from virtlogd_driver.node import watch
        return watch.reattach_log(self.connection, port,
                                  self.virtlogd_socket, self.timeout)

    # What goes through a privileged helper is imported where it is needed:
    # oslo.privsep takes half a second.

    def _reader(self) -> Any:
        self.init_helpers()
        from virtlogd_driver.console_log import reader
        return reader

    def _health(self) -> Any:
        self.init_helpers()
        from virtlogd_driver.virtlogd import health, privileged
        privileged.virtlogd_context.set_client_mode(not _is_root())
        return health

    def init_helpers(self) -> None:
        """Have privileged helpers started as nova-compute starts them."""
        from oslo_privsep import priv_context
        priv_context.init(root_helper=self._root_helper)

    def _ask(self, logs: Sequence[tuple[str, str | None]]
             ) -> tuple[str, str, Sequence[str]]:
        health = self._health()
        answer: tuple[str, str, Sequence[str]] = health.ask(
            self.virtlogd_socket, list(logs), self.timeout)
        return answer


def _state(port: SerialPort, state: str, unlinked: bool) -> str:
    if port.guest.active:
        return 'unlinked' if unlinked else state
    if state == 'none':
        return state
    return 'held' if state == 'alive' else '-'


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once: in libvirt Python misses it.

    Not in a thread: the main one does not miss it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _is_root() -> bool:
    return os.geteuid() == 0
