# SPDX-License-Identifier: Apache-2.0
"""The survey looks at a compute node, for the checks.

Nothing here raises or hangs for what is wrong with the host: that is what is
to be found out.
"""

import contextlib
import dataclasses
import functools
import glob
import importlib.metadata
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from virtlogd_driver import exception
from virtlogd_driver.console_log import privileged, reader
from virtlogd_driver.guest import char_device
from virtlogd_driver.node import hypervisor, metrics, selinux, watch
from virtlogd_driver.node.checks import (
    LOAD,
    LOCAL,
    ConfError,
    FileSystem,
    KeptLogs,
    OverBound,
    Survey,
)
from virtlogd_driver.virtlogd import conf_files, disk, health, settings, viewer
from virtlogd_driver.virtlogd import privileged as virtlogd_privileged
from virtlogd_driver.virtlogd.health import DaemonState, LogState, Report
from virtlogd_driver.virtlogd.port import Port, is_open

_T = TypeVar('_T')

#: Seconds for libvirt to answer.
_LIBVIRT_TIMEOUT = 10.0
#: Seconds for virtlogd to close the log of a guest that has ended.
_ENDING = 1.0
#: Seconds for a disk to answer.
_DISK_TIMEOUT = 5.0
#: Has it look at nova as well, as it does when nova-compute starts.
_START = f"""{LOAD}
from nova import version
from virtlogd_driver.compute import seams
seams.announce(version.version_string())
"""
#: Seconds for a Python process to load nova's libvirt driver.
_LOAD_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """nova's configuration says this, as far as it is needed here."""

    compute_driver: str
    instances_path: str
    serial_console: bool
    port_range: str
    proxyclient_address: str
    qemu_conf: str
    virtlogd_conf: str
    virtlogd_socket: str
    health_interval: float
    health_timeout: float
    metrics_file: str | None
    #: What has not followed guests that have left this host, and why.
    waiting: tuple[str, ...] = ()
    #: Where the relay listens; None: that cannot be told.
    relay: watch.Relay | None = None
    #: Looks at the logs of deleted guests; DiskStalled, as files may.
    kept: Callable[[], KeptLogs | None] = lambda: None


def survey(options: Options, connect: Callable[[], Any],
           with_nova: bool = True) -> Survey:
    """Give all that is to be known of this host.

    :param connect: opens a libvirt connection; HostError where it cannot
    :param with_nova: look at nova-compute, and start its privileged helpers,
        too
    """
    rotation = _rotation(options.virtlogd_conf)
    stdio_handler = conf_files.stdio_handler(options.qemu_conf)
    found: list[Port] = []

    def list_ports() -> Sequence[Port]:
        found[:] = _of_libvirt(lambda: watch.list_ports(
            connect(), off=True, relay=options.relay))
        return found

    report = _with_closed_ptys(health.examine(
        list_ports, options.virtlogd_socket, options.health_timeout,
        list_viewers=viewer.viewers, confirm_after=_ENDING,
        listening=viewer.listening,
        find=health.find_unlinked(options.virtlogd_socket,
                                  options.health_timeout)))
    running = [port for port in found if port.active]
    helper_error = _helper_error(options, report) if with_nova else ''
    return Survey(
        nova_version=_nova_version(),
        load_error=_load_error() if with_nova else '',
        compute_driver=options.compute_driver,
        as_root=os.geteuid() == 0,
        helper_error=helper_error,
        files_passed=_files_passed() if with_nova and not helper_error
        else None,
        capability=_capability(report, connect, stdio_handler),
        stdio_handler=stdio_handler,
        qemu_conf_error=_qemu_conf_error(options.qemu_conf),
        rotation=rotation,
        report=report,
        not_appended=tuple(_not_appended(_guests(report, connect))),
        file_systems=tuple(_file_systems(
            [port.log for port in running if port.log],
            options.instances_path, _bound(rotation))),
        serial_console=options.serial_console,
        port_range=options.port_range,
        address_error=_address_error(options.proxyclient_address),
        health_interval=options.health_interval,
        metrics_file=options.metrics_file,
        last_pass_age=_last_pass_age(options.metrics_file),
        selinux=_selinux(options.instances_path),
        waiting=options.waiting,
        kept=_kept(options))


def _kept(options: Options) -> KeptLogs | None:
    """Give what is kept of deleted guests, with what is known of the rest."""
    try:
        found = options.kept()
    except exception.DiskStalled as e:
        return KeptLogs(0, 0, 0, None, 0, 0, str(e))
    failed = 0
    if found is not None and options.metrics_file:
        with contextlib.suppress(OSError, ValueError):
            failed = _within(_DISK_TIMEOUT, functools.partial(
                metrics.not_kept, options.metrics_file))
    return found and dataclasses.replace(found, failed=failed)


def _within(seconds: float, function: Callable[[], _T]) -> _T:
    """Call a function that may hang for good.

    :raises TimeoutError: it has not returned in time
    """
    results: list[_T] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            results.append(function())
        except Exception as e:
            errors.append(e)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _of_libvirt(function: Callable[[], _T]) -> _T:
    """Tell what libvirt answers.

    :raises HostError: it does not, or not in time
    """
    try:
        return _within(_LIBVIRT_TIMEOUT, function)
    except TimeoutError as e:
        raise exception.HostError(
            f'libvirt did not answer within {_LIBVIRT_TIMEOUT:g} s. See '
            'whether virtlogd or a guest hangs; restart libvirtd (or '
            'virtqemud; guests go on).') from e


def _with_closed_ptys(report: Report) -> Report:
    """Add closed ptys, which nova-compute does not look for."""
    return dataclasses.replace(report, unopened=report.unopened + tuple(
        health.Unopened(log.port, report.moment) for log in report.logs
        if log.state in (LogState.ALIVE, LogState.DEAD)
        and log.port.pty is not None and not is_open(log.port.pty)))


def _capability(report: Report, connect: Callable[[], Any],
                stdio_handler: str) -> hypervisor.ConsoleCapability | str:
    if report.daemon is DaemonState.HUNG or report.libvirt:
        return report.libvirt or (
            'libvirt was not asked, as it may hang with virtlogd. First do '
            'what the check virtlogd says.')
    try:
        return _of_libvirt(
            lambda: hypervisor.console_capability(connect(), stdio_handler))
    except exception.HostError as e:
        return str(e)


def _nova_version() -> str | None:
    try:
        return importlib.metadata.version('nova')
    except importlib.metadata.PackageNotFoundError:
        return None


def _load_error() -> str:
    """Load the driver as nova-compute does, in a process of its own.

    Whatever directory root is in: nothing is imported from there (-P).
    """
    try:
        loaded = subprocess.run(
            [sys.executable, '-P', '-W', 'ignore', '-c', _START], check=False,
            capture_output=True, text=True, timeout=_LOAD_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f'it took more than {_LOAD_TIMEOUT:g} s'
    if loaded.returncode == 0:
        return ''
    return (loaded.stderr.strip().splitlines() or ['no message'])[-1]


def _helper_error(options: Options, report: Report) -> str:
    if report.daemon is DaemonState.REFUSED:
        # By the helper's failure, or by virtlogd itself.
        try:
            virtlogd_privileged.probe(options.virtlogd_socket, [],
                                      options.health_timeout)
        except health.PRIVSEP_ERRORS as e:
            return f'virtlogd cannot be asked: {e}'
    # The path of no log: a helper that works says so, and touches no disk.
    try:
        privileged.read_tail('', 1, None)
    except exception.LogError:
        return ''
    except health.PRIVSEP_ERRORS as e:
        return f'Logs of root cannot be read: {e}'
    return ''


def _files_passed() -> bool | None:
    """Tell whether the helper passes open logs; None: it does not answer."""
    try:
        return reader.can_pass()
    except (exception.LogError, *health.PRIVSEP_ERRORS):
        return None


def _rotation(path: str) -> settings.VirtlogdSettings | ConfError:
    try:
        return conf_files.virtlogd_settings(path)
    except exception.InvalidConfFile as e:
        return e
    except (exception.VirtlogdError, *health.PRIVSEP_ERRORS) as e:
        return _unreadable(path, e)


def _qemu_conf_error(path: str) -> ConfError | None:
    try:
        conf_files.check_qemu_conf(path)
    except exception.InvalidConfFile as e:
        return e
    except (exception.VirtlogdError, *health.PRIVSEP_ERRORS) as e:
        return _unreadable(path, e)
    return None


def _unreadable(path: str, error: Exception) -> str:
    return (f'{path} cannot be read, by the privileged helper neither '
            f'({error}). First do what Privileged helpers says.')


def _bound(rotation: settings.VirtlogdSettings | ConfError) -> int | None:
    """Give the most bytes of one log; None: no bound is known."""
    return (rotation.chain_size
            if isinstance(rotation, settings.VirtlogdSettings) else None)


def _guests(report: Report,
            connect: Callable[[], Any]) -> list[hypervisor.Guest]:
    """Give every guest, running or not; none where libvirt does not tell."""
    if report.daemon is DaemonState.HUNG or report.libvirt:
        return []
    try:
        return _of_libvirt(lambda: hypervisor.list_guests(connect()))
    except exception.HostError:
        return []


def _devices(guest: hypervisor.Guest) -> Sequence[char_device.CharDevice]:
    try:
        return guest.devices()
    except exception.InvalidGuestXML:
        return ()


def _not_appended(guests: Sequence[hypervisor.Guest]) -> Iterator[str]:
    """Find running guests whose log libvirt deletes at the next start."""
    for guest in guests:
        if guest.active and any(
                device.log_file is not None and not device.is_appended
                for device in _devices(guest)):
            yield guest.name


def _address_error(address: str) -> str:
    try:
        hypervisor.is_free(address, 0)
    except exception.InvalidAddress as e:
        return str(e)
    return ''


def _last_pass_age(metrics_file: str | None) -> float | str:
    if not metrics_file:
        return ''
    try:
        last = _within(_DISK_TIMEOUT, functools.partial(
            metrics.last_pass, metrics_file))
    except TimeoutError:
        return (f'{metrics_file} does not answer: its file system hangs, or '
                'it is a FIFO. Set [virtlogd] metrics_file to a file on a '
                'local disk, and restart nova-compute.')
    except (OSError, ValueError) as e:
        return (f'{metrics_file} cannot be read ({e}): no health pass was '
                'made yet, or nova-compute may not write it. See whether '
                'nova-compute runs, and what its log says.')
    if last is None:
        return (f'{metrics_file} was not written by this driver. Set '
                '[virtlogd] metrics_file to a file of its own, and restart '
                'nova-compute.')
    return time.time() - last


def _file_systems(logs: Sequence[str], instances_path: str,
                  bound: int | None = None) -> Iterator[FileSystem]:
    """Give the file systems of the logs; that of instances_path in any case.

    One of another machine is not touched, as it may never answer. A link can
    still lead to one, and a disk of this host can stall.

    :param bound: bytes that one log may take; None: there is no bound
    """
    mounts = disk.mounts()
    resolved: list[str] = []
    # As if instances_path were a log without a name.
    paths = [os.path.join(instances_path, ''), *logs]
    for mount, there in disk.by_mount(paths, mounts).items():
        real = _of_disk(mounts[mount], functools.partial(_resolve, there))
        if real is None:
            yield _not_asked(mounts[mount], there)
        else:
            resolved += real
    for mount, there in disk.by_mount(resolved, mounts).items():
        measured = _of_disk(
            mounts[mount], functools.partial(_measure, mount, there))
        if measured is None:
            yield _not_asked(mounts[mount], there)
        elif measured.free is not None:
            yield FileSystem(
                mount, mounts[mount], measured.free, _count(there),
                sum(log.used for log in measured.logs),
                tuple(OverBound(log.path, log.size) for log in measured.logs
                      if bound is not None and log.size > bound))


def _selinux(instances_path: str) -> selinux.Denial | None:
    try:
        return _within(_DISK_TIMEOUT, functools.partial(
            selinux.denial, instances_path))
    except TimeoutError:
        return None


def _of_disk(kind: str, function: Callable[[], _T]) -> _T | None:
    """Tell what a file system answers; None: it was not asked, or stalls."""
    if kind not in LOCAL:
        return None
    try:
        return _within(_DISK_TIMEOUT, function)
    except TimeoutError:
        return None


def _not_asked(kind: str, paths: Sequence[str]) -> FileSystem:
    return FileSystem(os.path.dirname(paths[0]), kind, None, _count(paths), 0)


def _count(paths: Sequence[str]) -> int:
    return sum(map(bool, map(os.path.basename, paths)))


def _resolve(paths: Sequence[str]) -> list[str]:
    """Resolve links; the path of a directory only if it is there."""
    return [os.path.join(os.path.realpath(directory), name)
            for directory, name in map(os.path.split, paths)
            if name or os.path.isdir(directory)]


@dataclass(frozen=True, slots=True)
class _Log:
    """A log has files, those of its rotation included."""

    path: str
    #: Bytes that are written, and that they take of the disk.
    size: int
    used: int


@dataclass(frozen=True, slots=True)
class _Measured:
    """A file system was measured, with the logs on it."""

    #: Free bytes; None: it does not tell.
    free: int | None
    logs: tuple[_Log, ...]


def _measure(mount: str, paths: Sequence[str]) -> _Measured:
    return _Measured(
        health.free_space(os.path.join(mount, '')),
        tuple(_measure_log(path) for path in paths if os.path.basename(path)))


def _measure_log(log: str) -> _Log:
    size = used = 0
    for path in (log, *glob.glob(f'{glob.escape(log)}.*[0-9]')):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        size += status.st_size
        used += status.st_blocks * 512
    return _Log(log, size, used)
