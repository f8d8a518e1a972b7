# SPDX-License-Identifier: Apache-2.0
"""Each check finds one thing that can be wrong with a node's consoles.

``Survey`` holds all that is known about the host; each check is a function
from it to a result, and ``CHECKS`` lists them. Every result but a success
names the remedy.
"""

import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oslo_upgradecheck.upgradecheck import Code, Result

from virtlogd_driver import exception
from virtlogd_driver.guest.serial_port import PortRange
from virtlogd_driver.node import release
from virtlogd_driver.node.hypervisor import QUOTED_SIZES, ConsoleCapability
from virtlogd_driver.node.release import Support
from virtlogd_driver.node.selinux import OF_MODULE, Denial
from virtlogd_driver.virtlogd import health, settings
from virtlogd_driver.virtlogd.health import DaemonState, LogState, Report
from virtlogd_driver.virtlogd.port import HELD_REMEDY
from virtlogd_driver.virtlogd.settings import StdioHandler, VirtlogdSettings

#: The driver's module, as nova finds it.
NOVA_NAME = 'nova.virt.virtlogd_driver'
#: Loads it as nova does.
LOAD = f'from {NOVA_NAME} import VirtlogdDriver'
#: What is before the reason where this driver refuses the nova.
REFUSED = 'UnsupportedNova: '
#: How nova is to name this driver.
COMPUTE_DRIVER = 'virtlogd_driver.VirtlogdDriver'
#: File systems of one host alone. Any other may be on another machine, or
#: written by several: virtlogd that waits for one stops guests.
LOCAL = frozenset({
    'bcachefs', 'btrfs', 'ext2', 'ext3', 'ext4', 'f2fs', 'jfs', 'nilfs2',
    'overlay', 'ramfs', 'reiserfs', 'rootfs', 'tmpfs', 'xfs', 'zfs'})
_REATTACH = ('"virtlogd-console reattach GUEST" brings it back without a '
             'restart, as does [virtlogd] reattach = true by itself; a '
             'managed save and start, or a live migration, does so too. Run '
             'it.')
_FILTERS = 'etc/nova/rootwrap.d/virtlogd-driver.filters'


def _filters() -> str:
    """Tell where pip has put the filters; a checkout has them as well."""
    installed = os.path.join(sysconfig.get_path('data'), _FILTERS)
    return installed if os.path.exists(installed) else _FILTERS


@dataclass(frozen=True, slots=True)
class OverBound:
    """A log takes more than virtlogd.conf allows."""

    path: str
    #: Bytes of all its files.
    size: int


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system holds logs."""

    #: Where it is mounted; where it was not asked, a directory on it.
    path: str
    #: The kernel's name of its type.
    type: str
    #: Bytes that are free; None: one that is local did not answer, another
    #: was not asked.
    free: int | None
    #: Logs of running guests on it.
    logs: int
    #: Bytes that those take already, rotated files included.
    used: int
    over_bound: tuple[OverBound, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptLogs:
    """The logs of deleted guests that this host keeps."""

    count: int
    #: Bytes of them, and those that they may take.
    size: int
    limit: int
    #: Seconds since the oldest of them was deleted; None: there is none.
    age: float | None
    #: Those that are to be kept, which has failed until now.
    late: int
    #: Those that were not kept, or not whole, as far as that is known.
    failed: int
    #: Why none can be kept, and what to do; '': they can be.
    fault: str


#: What is wrong with a file of libvirt's: libvirt refuses it, or nobody can
#: read it.
ConfError = exception.InvalidConfFile | str


@dataclass(frozen=True, slots=True)
class Survey:
    """A survey tells how a compute node was found, or why it is unknown."""

    #: Of the installed nova; None: there is none in this Python environment.
    nova_version: str | None
    #: What came of loading the driver as nova does; empty: it works.
    load_error: str
    #: ``[DEFAULT] compute_driver``.
    compute_driver: str
    #: This process is root, which may more than nova-compute.
    as_root: bool
    #: What came of starting the privileged helpers; empty: they work.
    helper_error: str
    #: The helper passes open logs to this process; None: it was not asked.
    files_passed: bool | None
    capability: ConsoleCapability | str
    stdio_handler: StdioHandler
    qemu_conf_error: ConfError | None
    rotation: VirtlogdSettings | ConfError
    report: Report
    #: Names of running guests whose ``<log>``, or file, has append="off".
    not_appended: tuple[str, ...]
    file_systems: tuple[FileSystem, ...]
    #: ``[serial_console] enabled``.
    serial_console: bool
    #: ``[serial_console] port_range``.
    port_range: str
    #: What is wrong with ``[serial_console] proxyclient_address``, or empty.
    address_error: str
    #: ``[virtlogd] health_interval``, in seconds.
    health_interval: float
    #: ``[virtlogd] metrics_file``.
    metrics_file: str | None
    #: Seconds since the last health pass, or why that is not known.
    last_pass_age: float | str
    #: What SELinux does not let virtlogd do below ``instances_path``.
    selinux: Denial | None = None
    #: What has not followed guests that have left this host, and why.
    waiting: tuple[str, ...] = ()
    #: None: ``[virtlogd] keep_deleted`` is 0, and none are left.
    kept: KeptLogs | None = None


def _success(details: str | None = None) -> Result:
    return Result(Code.SUCCESS, details)


def _warning(details: str) -> Result:
    return Result(Code.WARNING, details)


def _failure(details: str) -> Result:
    return Result(Code.FAILURE, details)


def _size(count: int) -> str:
    """Give bytes for people."""
    value, unit = float(count), 'bytes'
    for larger in ('KiB', 'MiB', 'GiB', 'TiB'):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f'{value:.4g} {unit}'


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ', '.join(names[:most])
    if len(names) > most:
        shown += f' and {len(names) - most} more'
    return shown


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def versions(host: Survey) -> Result:
    """Check that libvirt and QEMU can do both consoles at once."""
    if isinstance(host.capability, str):
        return _failure(host.capability)
    if not host.capability.capable:
        # Of a handler the capability itself says what to set.
        remedy = ('' if host.capability.stdio_handler == StdioHandler.FILE
                  else ' Upgrade it.')
        return _warning(f'{host.capability}.{remedy} Until then new guests '
                        'get [virtlogd] fallback_device.')
    return _success(str(host.capability))


def loadable(host: Survey) -> Result:
    """Check that the installed nova loads this driver, and is told to."""
    if host.nova_version is None:
        return _failure(
            'nova is not installed in the Python environment of this command: '
            'install virtlogd-driver into the environment of nova-compute and '
            'run the command from there.')
    support = release.support(host.nova_version)
    if support is Support.TOO_OLD:
        return _failure(
            f'nova {host.nova_version} is too old. Use nova '
            f'{release.supported()}.')
    if REFUSED in host.load_error:
        return _failure(host.load_error.partition(REFUSED)[2])
    if host.load_error:
        return _failure(
            f'nova {host.nova_version} does not load the driver '
            f'({host.load_error}). {_load_remedy(host.load_error)}')
    if host.compute_driver != COMPUTE_DRIVER:
        return _warning(
            f'[DEFAULT] compute_driver is {host.compute_driver!r}: set it to '
            f'{COMPUTE_DRIVER} and restart nova-compute. If the host is to '
            'stay so, take the trait CUSTOM_CONSOLE_LOG_VIRTLOGD off its '
            'resource provider, where flavors that require it are still '
            'scheduled to: see "Go back" of the installation guide.')
    if support is Support.NEWER:
        return _warning(
            f'nova {host.nova_version} is newer than {release.NEWEST}, the '
            'newest that this driver was tried on. What the driver relies on '
            'is as it was, so it starts; upgrade virtlogd-driver to one that '
            'supports this nova.')
    return _success(f'nova {host.nova_version}')


def _load_remedy(error: str) -> str:
    if NOVA_NAME in error:
        return ('Install it into a site directory, whose .pth files Python '
                'reads: not with pip --target, and not under python -S.')
    return (f'Run "{LOAD}" in the Python of nova-compute, and mend what it '
            'says.')


def helpers(host: Survey) -> Result:
    """Check that the privileged helpers start and answer."""
    if host.helper_error:
        return _failure(
            f'{host.helper_error}. {_helper_remedy(host.helper_error)}')
    if host.files_passed is False:
        return _warning(
            'they cannot pass open console logs to nova-compute, so that each '
            'read of one costs a privileged call. See that they run in the '
            'same network namespace, and that no security module forbids it.')
    if host.as_root:
        return _success(
            'as root: not shown whether nova-compute may start them. Run this '
            'as its user: sudo -u nova virtlogd-driver-status check')
    return _success()


def _helper_remedy(error: str) -> str:
    """Find the remedy by the words of sudo and of rootwrap."""
    if 'not answer' in error:
        # helper.py says what is to be seen to.
        return 'Nothing is missing for it to start: see to that.'
    if 'no filter matched' in error:
        return f'Copy {_filters()} to /etc/nova/rootwrap.d.'
    if 'command not found' in error or 'No such file' in error:
        return ('Say in helper_command of [virtlogd_privileged] and '
                '[virtlogd_privileged_daemon] what starts privsep-helper, '
                'with its whole path.')
    if 'sudo:' in error or 'not allowed to' in error:
        return ('Let nova-compute\'s user run it, in sudoers: nova ALL = '
                '(root) NOPASSWD: /usr/bin/nova-rootwrap '
                '/etc/nova/rootwrap.conf *')
    return (f'Copy {_filters()} to /etc/nova/rootwrap.d, see that '
            'nova-compute may use sudo, and see helper_command.')


def daemon(host: Survey) -> Result:
    """Check that virtlogd answers."""
    if host.report.daemon is DaemonState.UP:
        return _success()
    return _failure(host.report.reason)


def stdio_handler(host: Survey) -> Result:
    """Check that QEMU's output goes through virtlogd."""
    if isinstance(host.qemu_conf_error, exception.InvalidConfFile):
        return _failure(str(host.qemu_conf_error))
    if host.stdio_handler is StdioHandler.LOGD:
        return _success()
    if host.stdio_handler is StdioHandler.FILE:
        return _warning(
            'stdio_handler is "file" in qemu.conf: QEMU writes logs itself, '
            'without bound. Set it to "logd", restart libvirtd (or '
            'virtqemud), and stop and start the guests.')
    return _warning(
        'stdio_handler is not known, and not taken for "file": '
        + (host.qemu_conf_error or 'see [virtlogd] qemu_conf.'))


def rotation(host: Survey) -> Result:
    """Check that virtlogd can read its file, and bounds each log."""
    if isinstance(host.rotation, exception.InvalidConfFile):
        return _failure(str(host.rotation))
    if isinstance(host.rotation, str):
        return _warning(host.rotation)
    if host.rotation.max_backups > settings.MAX_BACKUPS:
        return _failure(
            f'max_backups is {host.rotation.max_backups} in virtlogd.conf: '
            'virtlogd opens no log with more than '
            f'{settings.MAX_BACKUPS}, no guest starts, and a reload ends '
            f'virtlogd. Set it to {settings.MAX_BACKUPS} or less, then reload '
            'virtlogd.')
    if host.rotation.quoted and (
            isinstance(host.capability, str)
            or host.capability.libvirt < QUOTED_SIZES):
        return _failure(
            'max_size is in quotes in virtlogd.conf, which virtlogd takes '
            'from libvirt 12.8 on: an older one ends when it is reloaded, and '
            'the logs of all running guests with it. Set it to '
            f'{host.rotation.max_size}, without quotes.')
    chain = host.rotation.chain_size
    if chain is None:
        return _failure(
            'max_size is 0 in virtlogd.conf: a guest can fill the disk. Set '
            'it to 2097152 and reload virtlogd (never restart it).')
    return _success(f'at most {_size(chain)} a log')


def disk_budget(host: Survey) -> Result:
    """Check that logs of running guests have room to grow to their bound."""
    for found in host.file_systems:
        if found.free is not None and found.free < health.FULL_BELOW:
            return _failure(
                f'{found.path} is full: logs on it die and new guests get '
                'none. Free some space.')
    most = 0
    for found in host.file_systems:
        budget = (settings.disk_budget(host.rotation, found.logs)
                  if isinstance(host.rotation, VirtlogdSettings) else None)
        if budget is None:
            return _warning('It is not known how far logs grow. First do '
                            'what Rotation says.')
        if found.free is None:
            return _warning(f'Not known for {found.path}. First do what Log '
                            'directories says.')
        missing = budget - found.used - found.free
        if missing > 0:
            return _warning(
                f'{_count(found.logs, "log")} on {found.path} may grow to '
                f'{_size(budget)}, which is {_size(missing)} more '
                'than there is room for. Lower max_size or max_backups in '
                'virtlogd.conf and reload virtlogd, or add space.')
        most += budget
    over = [f'{log.path} ({_size(log.size)})'
            for found in host.file_systems for log in found.over_bound]
    if over:
        return _warning(
            f'Larger than virtlogd.conf allows: {_count(len(over), "log")}, '
            f'{_some(over)}. What was written before virtlogd bounded it goes '
            'with the last of max_backups further rotations. Free the room at '
            'once, if it is needed: export the log, then remove its rotated '
            'files, which end in a number.')
    logs = sum(found.logs for found in host.file_systems)
    return _success(f'{_count(logs, "log")}, at most {_size(most)}')


def logs_alive(host: Survey) -> Result:
    """Check that what guests write is logged, and no viewer stops them."""
    report = host.report
    if report.libvirt:
        return _failure(report.libvirt)
    dead = [str(log.port) for log in report.logs
            if log.state is LogState.DEAD]
    if dead:
        return _failure(f'Dead: {_count(len(dead), "log")}, {_some(dead)}. '
                        f'{_REATTACH}')
    unlinked = [str(log.port) for log in report.logs
                if log.state is LogState.UNLINKED]
    if unlinked:
        return _failure(
            f'Not at its path any more, as it was removed, renamed or '
            f'replaced: {_count(len(unlinked), "log")}, {_some(unlinked)}. '
            'Run "virtlogd-console reattach GUEST", or set [virtlogd] '
            'reattach = true; and leave rotation to virtlogd.')
    if report.stalled:
        return _failure(' '.join(report.stalled))
    if report.daemon is not DaemonState.UP:
        return _warning('Not known, as virtlogd cannot be asked. First do '
                        'what the check virtlogd says.')
    if report.stuck:
        found = [f'{stuck.port} by {stuck.viewer.peer[0]}:'
                 f'{stuck.viewer.peer[1]}' for stuck in report.stuck]
        return _warning(
            'A viewer that does not read stops '
            f'{_count(len(found), "guest")}: {_some(found)}. Disconnect it, '
            'or set [virtlogd] viewer_timeout.')
    held = [str(log.port) for log in report.logs
            if log.state is LogState.HELD]
    if held:
        return _warning(
            'The log is open at virtlogd though the guest is off, which keeps '
            f'it from starting ("Device or resource busy"): {_some(held)}. '
            f'{HELD_REMEDY}')
    if report.unopened:
        closed = [str(one.port) for one in report.unopened]
        return _warning(
            f'Nobody listens on the console of {_some(closed)}. Run '
            '"virtlogd-console reattach GUEST".')
    if report.viewers:
        return _warning(report.viewers)
    unclear = [f'{log.port}: {log.port.unclear}' for log in report.logs
               if log.port.unclear]
    if unclear:
        return _warning(f'Not all is understood of {_some(unclear)} See its '
                        'domain XML (virsh dumpxml).')
    unrotated = [str(log.port) for log in report.logs
                 if log.state is LogState.UNROTATED]
    if unrotated:
        return _warning(
            f'QEMU writes {_count(len(unrotated), "log")} itself, unbounded: '
            f'{_some(unrotated)}. Stop and start the guests once '
            'stdio_handler is "logd" in qemu.conf.')
    without = [str(log.port) for log in report.logs
               if log.state is LogState.NOT_LOGGING]
    if without:
        return _warning(f'No log: {_count(len(without), "serial port")}, '
                        f'{_some(without)}. Reboot the guests hard.')
    if host.not_appended:
        return _warning(
            f'append="off": {_count(len(host.not_appended), "guest")} lose '
            'the log when they are rebooted softly, suspended and resumed, '
            f'or snapshot cold: {_some(host.not_appended)}. Reboot them hard, '
            'or migrate them live.')
    return _success(_count(len(report.logs), 'log'))


def log_directories(host: Survey) -> Result:
    """Check that logs are on this host's disks, for virtlogd to write."""
    for found in host.file_systems:
        where = f'{found.path}, with {_count(found.logs, "log")},'
        if found.type not in LOCAL:
            return _warning(
                f'{where} is not known to be on a disk of this host '
                f'({found.type}): guests stop while it stalls, and two hosts '
                'may write one file. Keep instances_path on a local disk.')
        if found.free is None:
            return _failure(
                f'{where} does not answer: guests stop. See whether it leads '
                'to a file system of another machine, or what the kernel '
                'says of the disk. Do not kill virtlogd.')
    if host.selinux is not None:
        return _failure(
            f'{host.selinux}. No guest with a log there starts. Install '
            'etc/selinux/virtlogd_nova.te'
            + ('' if host.selinux.target == OF_MODULE else
               f' with {host.selinux.target} in place of {OF_MODULE}')
            + ', as the page "Security modules" says.')
    return _success()


def ports(host: Survey) -> Result:
    """Check that serial consoles have an address and free TCP ports."""
    if not host.serial_console:
        return _success('[serial_console] enabled is false')
    if host.address_error:
        return _warning(
            f'Guests are not started with a serial console until it is '
            f'there: {host.address_error}')
    try:
        allowed = PortRange.parse(host.port_range)
    except exception.InvalidOption as e:
        return _failure(f'{e} Correct it.')
    unrelayed = sorted({one.port.name for one in host.report.unrelayed})
    if unrelayed:
        return _failure(
            'Nobody can look at the serial consoles of '
            f'{_count(len(unrelayed), "guest")}: {_some(unrelayed)}.'
            ' They are relayed, and the relay does not run, or cannot listen. '
            'Start virtlogd-console-relay.service, and see its log.')
    used = {log.port.listener[1] for log in host.report.logs
            if log.port.listener is not None}
    free = len(allowed) - sum(port in allowed for port in used)
    if free * 10 < len(allowed):
        return _warning(
            f'{free} of {len(allowed)} ports are free. Widen '
            '[serial_console] port_range.')
    return _success(f'{free} of {len(allowed)} ports are free')


def health_pass(host: Survey) -> Result:
    """Check that nova-compute watches the logs."""
    if not host.health_interval:
        return _warning('[virtlogd] health_interval is 0: nobody notices a '
                        'log that dies. Set it to 60.')
    if not host.metrics_file:
        return _success('[virtlogd] metrics_file is not set: the time of the '
                        'last pass is not known')
    if isinstance(host.last_pass_age, str):
        return _warning(host.last_pass_age)
    age = host.last_pass_age
    if abs(age) > 3 * host.health_interval:
        when = (f'was {age:.0f} s ago' if age > 0 else
                f'is of {-age:.0f} s from now, as the clock was set back')
        return _failure(f'The last health pass {when}. See whether '
                        'nova-compute runs, and what its log says.')
    return _success(f'{max(age, 0):.0f} s ago')


def histories(host: Survey) -> Result:
    """Check that what guests wrote has followed them."""
    if host.waiting:
        return _warning(
            f'{_count(len(host.waiting), "guest")} went to another host and '
            f'left older output here, which is tried again: '
            f'{_some(host.waiting)}. See "virtlogd-console history".')
    return _success()


def kept_logs(host: Survey) -> Result:
    """Check that logs of deleted guests are kept, where that is wished."""
    kept = host.kept
    if kept is None:
        return _success('[virtlogd] keep_deleted is 0')
    if kept.fault:
        return _warning(f'Logs of deleted guests cannot be kept: '
                        f'{kept.fault}')
    if kept.failed:
        return _warning(
            f'{_count(kept.failed, "log")} of deleted guests could not be '
            'kept, or not whole, since nova-compute was started. See its log '
            'for "is not kept", and the file system of instances_path.')
    if kept.late:
        return _warning(
            f'{_count(kept.late, "log")} of deleted guests could not be put '
            'where they are kept, which is tried again. See the log of '
            'nova-compute for "is not kept", and the file system of '
            'instances_path.')
    oldest = ('' if kept.age is None else
              f', the oldest of {kept.age / 3600:.1f} hours ago')
    return _success(f'{_count(kept.count, "log")}, {_size(kept.size)} of '
                    f'{_size(kept.limit)}{oldest}')


Check = Callable[[Survey], Result]

CHECKS: tuple[tuple[str, Check], ...] = (
    ('Versions', versions),
    ('Driver in nova', loadable),
    ('Privileged helpers', helpers),
    ('virtlogd', daemon),
    ('Stdio handler', stdio_handler),
    ('Rotation', rotation),
    ('Disk budget', disk_budget),
    ('Logs', logs_alive),
    ('Log directories', log_directories),
    ('Serial ports', ports),
    ('Health pass', health_pass),
    ('Histories', histories),
    ('Kept logs', kept_logs),
)
