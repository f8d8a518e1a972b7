# SPDX-License-Identifier: Apache-2.0
"""Looks at a compute node, for the checks.

Nothing here raises or hangs for what is wrong with the host: that is what is
to be found out.
"""

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

from virtlogd_driver import exception, host, metrics, watch
from virtlogd_driver.checks import FileSystem, Survey
from virtlogd_driver.console_log import privileged
from virtlogd_driver.virtlogd import health, settings, viewer
from virtlogd_driver.virtlogd.health import DaemonState, Report
from virtlogd_driver.virtlogd.port import Port

_T = TypeVar('_T')

#: Seconds for libvirt to answer.
_LIBVIRT_TIMEOUT = 10.0
#: Seconds for a Python process to load nova's libvirt driver.
_LOAD_TIMEOUT = 120.0
_LOAD = 'from nova.virt.virtlogd_driver import VirtlogdDriver'


@dataclass(frozen=True, slots=True)
class Options:
    """What nova's configuration says, as far as it is needed here."""

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


def survey(options: Options, connect: Callable[[], Any]) -> Survey:
    """All that is to be known of this host.

    :param connect: opens a libvirt connection; HostError where it cannot
    """
    rotation = _rotation(options.virtlogd_conf)
    stdio_handler = settings.read_stdio_handler(options.qemu_conf)
    found: list[Port] = []

    def list_ports() -> Sequence[Port]:
        found[:] = _within(_LIBVIRT_TIMEOUT,
                           lambda: watch.list_ports(connect()))
        return found

    report = health.examine(
        list_ports, options.virtlogd_socket, options.health_timeout,
        list_viewers=viewer.viewers)
    return Survey(
        nova_version=_nova_version(),
        load_error=_load_error(),
        compute_driver=options.compute_driver,
        helper_error=_helper_error(options, report),
        capability=_capability(report, connect, stdio_handler),
        stdio_handler=stdio_handler,
        rotation=rotation,
        report=report,
        file_systems=tuple(_file_systems(
            [port.log for port in found if port.log],
            options.instances_path)),
        serial_console=options.serial_console,
        port_range=options.port_range,
        address_error=_address_error(options.proxyclient_address),
        health_interval=options.health_interval,
        metrics_file=options.metrics_file,
        last_pass_age=_last_pass_age(options.metrics_file))


def _within(seconds: float, function: Callable[[], _T]) -> _T:
    """Call a function that may hang for good, in libvirt.

    :raises HostError: it has not returned in time
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
        raise exception.HostError(
            f'libvirt did not answer within {seconds:g} s. See whether '
            'virtlogd or a guest hangs; restart libvirtd (guests go on).')
    return results[0]


def _capability(report: Report, connect: Callable[[], Any],
                stdio_handler: str) -> host.ConsoleCapability | str:
    if report.daemon is DaemonState.HUNG or report.libvirt:
        return report.libvirt or (
            'libvirt was not asked, as it may hang with virtlogd.')
    try:
        return _within(_LIBVIRT_TIMEOUT, lambda: host.console_capability(
            connect(), stdio_handler))
    except exception.HostError as e:
        return str(e)


def _nova_version() -> str | None:
    try:
        return importlib.metadata.version('nova')
    except importlib.metadata.PackageNotFoundError:
        return None


def _load_error() -> str:
    """Load the driver as nova-compute does, in a process of its own."""
    try:
        loaded = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', _LOAD], check=False,
            capture_output=True, text=True, timeout=_LOAD_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f'it took more than {_LOAD_TIMEOUT:g} s'
    if loaded.returncode == 0:
        return ''
    return (loaded.stderr.strip().splitlines() or ['no message'])[-1]


def _helper_error(options: Options, report: Report) -> str:
    if report.daemon is DaemonState.REFUSED:
        return report.reason.rstrip('.')
    # A log that is not there: a helper that works says so.
    try:
        privileged.read_tail(
            os.path.join(options.instances_path, 'none', 'console.log'), 1,
            None)
    except exception.LogError:
        return ''
    except health.PRIVSEP_ERRORS as e:
        return f'Logs of root cannot be read: {e}'
    return ''


def _rotation(path: str) -> settings.VirtlogdSettings | str:
    try:
        return settings.read_virtlogd_settings(path)
    except exception.InvalidConfFile as e:
        return str(e)
    except OSError as e:
        return (f'{path} cannot be read ({e.strerror}): let nova-compute read '
                'it.')


def _address_error(address: str) -> str:
    try:
        host.is_free(address, 0)
    except exception.InvalidAddress as e:
        return str(e)
    return ''


def _last_pass_age(metrics_file: str | None) -> float | str:
    if not metrics_file:
        return ''
    try:
        last = metrics.last_pass(metrics_file)
    except (OSError, ValueError) as e:
        return (f'{metrics_file} cannot be read ({e}): no health pass was '
                'made yet, or nova-compute may not write it.')
    if last is None:
        return f'{metrics_file} was not written by this driver.'
    return time.time() - last


def _file_systems(logs: Sequence[str],
                  instances_path: str) -> Iterator[FileSystem]:
    """The file systems of the logs; that of instances_path in any case."""
    mounts = _mounts()
    by_mount: dict[str, list[str]] = {}
    if os.path.isdir(instances_path):
        by_mount[_mount_of(instances_path, mounts)] = []
    for log in logs:
        by_mount.setdefault(_mount_of(os.path.dirname(log), mounts),
                            []).append(log)
    for mount, on_it in by_mount.items():
        free = health.free_space(os.path.join(mount, ''))
        if free is not None:
            yield FileSystem(mount, mounts[mount], free, len(on_it),
                             sum(map(_used, on_it)))


def _used(log: str) -> int:
    total = 0
    for path in (log, *glob.glob(f'{glob.escape(log)}.*[0-9]')):
        try:
            total += os.lstat(path).st_blocks * 512
        except OSError:
            continue
    return total


def _mounts() -> dict[str, str]:
    """Types of mounted file systems by mount point (proc(5), mountinfo)."""
    found = {'/': 'unknown'}
    with open('/proc/self/mountinfo', encoding='utf-8',
              errors='surrogateescape') as mountinfo:
        for line in mountinfo:
            mount, _, optional = line.partition(' - ')
            path = mount.split(' ')[4]
            for octal in ('\\040', '\\011', '\\012', '\\134'):
                path = path.replace(octal, chr(int(octal[1:], 8)))
            found[path] = optional.split(' ')[0]
    return found


def _mount_of(directory: str, mounts: dict[str, str]) -> str:
    path = os.path.realpath(directory)
    while path not in mounts:
        path = os.path.dirname(path)
    return path
