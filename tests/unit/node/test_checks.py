# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re
from typing import Any

import pytest
from oslo_upgradecheck.upgradecheck import Code

from virtlogd_driver import exception
from virtlogd_driver.node import checks, hypervisor
from virtlogd_driver.node.checks import FileSystem, Survey
from virtlogd_driver.node.selinux import Denial
from virtlogd_driver.virtlogd import health, viewer
from virtlogd_driver.virtlogd.health import DaemonState, Log, LogState, Report
from virtlogd_driver.virtlogd.port import Port
from virtlogd_driver.virtlogd.settings import StdioHandler, VirtlogdSettings

MIB = 1024 * 1024
PORTS = [Port(f'uuid-{number}', f'guest{number}', 0, f'/{number}',
              ('127.0.0.1', 10000 + number)) for number in range(10)]


def logs(*states: LogState) -> tuple[Log, ...]:
    return tuple(map(Log, PORTS, states))


GOOD = Survey(
    nova_version='34.0.0',
    load_error='',
    compute_driver='virtlogd_driver.VirtlogdDriver',
    as_root=False,
    helper_error='',
    files_passed=True,
    capability=hypervisor.ConsoleCapability((9, 0, 0), (7, 2, 0), 'logd'),
    stdio_handler=StdioHandler.LOGD,
    qemu_conf_error=None,
    rotation=VirtlogdSettings(),
    report=Report(DaemonState.UP,
                  logs=logs(LogState.ALIVE, LogState.ALIVE)),
    not_appended=(),
    file_systems=(FileSystem('/var', 'ext4', 100 * MIB, 2, 3 * MIB),),
    serial_console=True,
    port_range='10000:10019',
    address_error='',
    health_interval=60,
    metrics_file='/virtlogd.prom',
    last_pass_age=30.0)

STUCK = health.Stuck(PORTS[0], viewer.Viewer(
    ('127.0.0.1', 10000), ('192.0.2.7', 999), 60, True, b''))


def disk(**changes: Any) -> dict[str, Any]:
    return {'file_systems': (dataclasses.replace(
        GOOD.file_systems[0], **changes),)}


def report(daemon: DaemonState = DaemonState.UP,
           **changes: Any) -> dict[str, Any]:
    return {'report': Report(daemon, **{
        'reason': '' if daemon is DaemonState.UP else 'Not up. Start it.',
        **changes})}


def kept(**changes: Any) -> dict[str, Any]:
    return {'kept': dataclasses.replace(checks.KeptLogs(
        3, 5 * MIB, 1024 * MIB, 5400.0, 0, 0, ''), **changes)}


# What is wrong, the check that says so, how badly, what is wrong, the remedy.
BROKEN: list[tuple[dict[str, Any], str, Code, str, str]] = [
    ({'capability': 'libvirt could not be asked: no. Check that libvirtd (or '
                    'virtqemud) is running.'},
     'Versions', Code.FAILURE, 'could not be asked', 'Check that libvirtd'),
    ({'capability': hypervisor.ConsoleCapability(
        (1, 3, 2), (2, 7, 0), 'logd')},
     'Versions', Code.WARNING, '1.3.2', 'Upgrade it'),
    ({'capability': hypervisor.ConsoleCapability(
        (9, 0, 0), (7, 2, 0), 'file')},
     'Versions', Code.WARNING, '"file" in qemu.conf', 'set it to "logd". Un'),
    ({'nova_version': None},
     'Driver in nova', Code.FAILURE, 'not installed', 'install'),
    ({'nova_version': '30.1.0'},
     'Driver in nova', Code.FAILURE, '30.1.0 is too old', 'Use nova 31 to 34'),
    ({'nova_version': '35.0.0.0rc1'},
     'Driver in nova', Code.WARNING, '35.0.0.0rc1 is newer than 34',
     'upgrade virtlogd-driver'),
    ({'nova_version': '35.0.0',
      'load_error': 'virtlogd_driver.exception.UnsupportedNova: nova 35.0.0 '
                    'is newer, and nova.x is not there: install another.'},
     'Driver in nova', Code.FAILURE, 'nova.x is not there',
     'install another.'),
    ({'load_error': 'ModuleNotFoundError: nova.virt.virtlogd_driver'},
     'Driver in nova', Code.FAILURE, 'ModuleNotFoundError', 'site directory'),
    ({'load_error': 'ImportError: libvirt-qemu.so'},
     'Driver in nova', Code.FAILURE, 'libvirt-qemu.so',
     'Run "from nova.virt.virtlogd_driver import VirtlogdDriver"'),
    ({'load_error': 'it took more than 120 s'},
     'Driver in nova', Code.FAILURE, '120 s', 'Run "from nova'),
    ({'compute_driver': 'libvirt.LibvirtDriver'},
     'Driver in nova', Code.WARNING, 'libvirt.LibvirtDriver',
     'set it to virtlogd_driver.VirtlogdDriver'),
    ({'helper_error': 'exit status 99'},
     'Privileged helpers', Code.FAILURE, '99', 'virtlogd-driver.filters'),
    ({'helper_error': 'it exited (99): Unauthorized command: privsep-helper '
                      '(no filter matched)'},
     'Privileged helpers', Code.FAILURE, 'Unauthorized', 'Copy '),
    ({'helper_error': 'it exited (1): sudo: a password is required'},
     'Privileged helpers', Code.FAILURE, 'password', 'in sudoers: nova ALL'),
    ({'helper_error': 'it exited (1): sudo: nova-rootwrap: command not '
                      'found'},
     'Privileged helpers', Code.FAILURE, 'not found', 'Say in helper_command'),
    ({'helper_error': "[Errno 2] No such file or directory: 'sudo'"},
     'Privileged helpers', Code.FAILURE, "'sudo'", 'Say in helper_command'),
    ({'helper_error': 'the privileged helper did not answer within 10 s: its '
                      'process (pgrep -af x) is stopped'},
     'Privileged helpers', Code.FAILURE, 'is stopped', 'see to that'),
    ({'files_passed': False},
     'Privileged helpers', Code.WARNING, 'each read',
     'same network namespace'),
    (report(DaemonState.DOWN, reason='Down. Start it.'),
     'virtlogd', Code.FAILURE, 'Down', 'Start it'),
    (report(DaemonState.REFUSED, reason='Another. Set its socket.'),
     'virtlogd', Code.FAILURE, 'Another', 'Set its socket'),
    ({**report(DaemonState.REFUSED, reason='No helper. Install filters.'),
      'helper_error': 'sudo'},
     'virtlogd', Code.FAILURE, 'No helper', 'Install filters.'),
    (report(DaemonState.HUNG, reason='Hung. See SIGCONT.'),
     'virtlogd', Code.FAILURE, 'Hung', 'SIGCONT'),
    ({'stdio_handler': StdioHandler.FILE},
     'Stdio handler', Code.WARNING, '"file"', 'Set it to "logd"'),
    ({'stdio_handler': StdioHandler.UNKNOWN,
      'qemu_conf_error': 'q cannot be read. First do it.'},
     'Stdio handler', Code.WARNING, 'not known', 'First do it'),
    ({'stdio_handler': StdioHandler.UNKNOWN},
     'Stdio handler', Code.WARNING, 'not known', 'see [virtlogd] qemu_conf'),
    ({'qemu_conf_error': exception.InvalidConfFile('q', 0, 'user must')},
     'Stdio handler', Code.FAILURE, 'q: user must', 'Correct it'),
    ({'rotation': VirtlogdSettings(max_size=0)},
     'Rotation', Code.FAILURE, 'max_size is 0', 'Set it to 2097152'),
    ({'rotation': VirtlogdSettings(max_size=4096, quoted=True)},
     'Rotation', Code.FAILURE, 'ends when it is reloaded', 'Set it to 4096'),
    ({'rotation': VirtlogdSettings(quoted=True),
      'capability': 'libvirt does not answer. Start it.'},
     'Rotation', Code.FAILURE, 'from libvirt 12.8 on', 'without quotes'),
    ({'rotation': VirtlogdSettings(max_backups=33)},
     'Rotation', Code.FAILURE, 'max_backups is 33', 'Set it to 32 or less'),
    ({'rotation': exception.InvalidConfFile('virtlogd.conf', 3, 'a name')},
     'Rotation', Code.FAILURE, 'virtlogd.conf:3', 'Correct it'),
    ({'rotation': 'virtlogd.conf cannot be read. First do that.'},
     'Rotation', Code.WARNING, 'cannot be read', 'First do'),
    (disk(free=4096),
     'Disk budget', Code.FAILURE, '/var is full', 'Free some space'),
    ({'file_systems': (
        *GOOD.file_systems, FileSystem('/full', 'xfs', 0, 1, 0))},
     'Disk budget', Code.FAILURE, '/full is full', 'Free some space'),
    (disk(over_bound=(checks.OverBound('/a/console.log', 40 * MIB),)),
     'Disk budget', Code.WARNING, '/a/console.log (40 MiB)', 'Free the room'),
    (disk(free=4 * MIB),
     'Disk budget', Code.WARNING, '9 MiB more', 'add space'),
    ({'rotation': VirtlogdSettings(max_size=0)},
     'Disk budget', Code.WARNING, 'not known', 'do what Rotation says'),
    (report(logs=logs(LogState.ALIVE, LogState.DEAD)),
     'Logs', Code.FAILURE, 'uuid-1 (guest1)',
     '"virtlogd-console reattach GUEST" brings it back'),
    (report(logs=(Log(dataclasses.replace(PORTS[0], active=False),
                      LogState.HELD),)),
     'Logs', Code.WARNING, '): guest uuid-0 (guest0)', 'lsof'),
    ({'not_appended': ('guest1', 'guest2')},
     'Logs', Code.WARNING, '2 guests lose the log', 'Reboot them hard'),
    (report(logs=logs(LogState.ALIVE, LogState.UNLINKED)),
     'Logs', Code.FAILURE, 'guest1', 'virtlogd-console reattach'),
    (report(stalled=('The file system of /x does not answer. See dmesg.',)),
     'Logs', Code.FAILURE, 'does not answer', 'See dmesg'),
    (report(logs=(Log(dataclasses.replace(
        PORTS[0], unclear="No TCP port is called '?'."), LogState.ALIVE),)),
     'Logs', Code.WARNING, "'?'", 'virsh dumpxml'),
    (report(DaemonState.DOWN, logs=logs(LogState.DEAD)),
     'Logs', Code.FAILURE, 'uuid-0', 'managed save'),
    (report(DaemonState.HUNG),
     'Logs', Code.WARNING, 'Not known',
     'First do what the check virtlogd says'),
    (report(libvirt='libvirtd is down: start it'),
     'Logs', Code.FAILURE, 'down', 'start it'),
    (report(logs=logs(LogState.ALIVE), stuck=(STUCK,)),
     'Logs', Code.WARNING, '192.0.2.7:999', 'viewer_timeout'),
    (report(logs=logs(LogState.ALIVE), unopened=(
        health.Unopened(PORTS[0], 0.0),)),
     'Logs', Code.WARNING, 'Nobody listens on the console of', 'reattach'),
    (report(logs=logs(LogState.ALIVE), viewers='Not told. Load a module.'),
     'Logs', Code.WARNING, 'Not told', 'Load a module'),
    (report(logs=logs(LogState.UNROTATED)),
     'Logs', Code.WARNING, 'uuid-0', 'Stop and start'),
    (report(logs=logs(LogState.NOT_LOGGING)),
     'Logs', Code.WARNING, 'uuid-0', 'Reboot the guests hard'),
    (report(logs=logs(*[LogState.DEAD] * 8)),
     'Logs', Code.FAILURE, 'and 3 more', 'reattach'),
    *((disk(type=kind, free=None),
       'Log directories', Code.WARNING, f'({kind})', 'local disk')
      for kind in ('nfs4', 'cifs', 'virtiofs', 'fuse.glusterfs',
                   'fuse.vstorage', 'fuse.ceph-fuse', 'beegfs', 'gfs2',
                   'autofs', 'unknown')),
    (disk(free=None),
     'Log directories', Code.FAILURE, '/var, with 2 logs, does not answer',
     'See whether'),
    (disk(free=None),
     'Disk budget', Code.WARNING, 'Not known for /var',
     'First do what Log directories says'),
    ({'selinux': Denial('/instances', 'virtlogd_t', 'nova_var_lib_t',
                        ('file append',))},
     'Log directories', Code.FAILURE, 'SELinux does not let virtlogd',
     'Install etc/selinux/virtlogd_nova.te, as the page'),
    ({'selinux': Denial('/instances', 'virtlogd_t', 'nfs_t', ())},
     'Log directories', Code.FAILURE, '(nfs_t)',
     'with nfs_t in place of nova_var_lib_t'),
    (report(unrelayed=(health.Unopened(PORTS[0], 0),)),
     'Serial ports', Code.FAILURE, 'consoles of 1 guest: guest0',
     'Start virtlogd-console-relay.service'),
    ({'address_error': 'No such address: set it'},
     'Serial ports', Code.WARNING,
     'not started with a serial console until it is there', 'set it'),
    ({'port_range': '20000:10000'},
     'Serial ports', Code.FAILURE, '20000:10000', 'it must be <first>:<last>'),
    ({'port_range': '10000:10001'},
     'Serial ports', Code.WARNING, '0 of 2', 'Widen'),
    ({'health_interval': 0},
     'Health pass', Code.WARNING, 'nobody notices', 'Set it to 60'),
    ({'last_pass_age': 'x.prom cannot be read: see nova-compute'},
     'Health pass', Code.WARNING, 'x.prom', 'see'),
    ({'last_pass_age': 200.0},
     'Health pass', Code.FAILURE, '200 s ago', 'See whether nova-compute'),
    ({'last_pass_age': -3600.0},
     'Health pass', Code.FAILURE, '3600 s from now, as the clock was set back',
     'See whether nova-compute'),
    ({'waiting': ('6ba7b810 (the copy to host2: refused)',)},
     'Histories', Code.WARNING, 'refused', 'See "virtlogd-console history'),
    (kept(fault='/x is full. Free some space.'),
     'Kept logs', Code.WARNING, 'cannot be kept: /x is full', 'Free'),
    (kept(failed=2),
     'Kept logs', Code.WARNING, '2 logs of deleted guests could not be kept',
     'See its log'),
    (kept(late=1),
     'Kept logs', Code.WARNING, '1 log of deleted guests could not be put',
     'See the log'),
]


def test_what_is_kept_of_deleted_guests() -> None:
    for changes, details in (
            ({}, '[virtlogd] keep_deleted is 0'),
            (kept(), '3 logs, 5 MiB of 1 GiB, the oldest of 1.5 hours ago'),
            (kept(count=0, size=0, age=None), '0 logs, 0 bytes of 1 GiB')):
        result = checks.kept_logs(dataclasses.replace(GOOD, **changes))
        assert (result.code, result.details) == (Code.SUCCESS, details)


@pytest.mark.parametrize(('changes', 'check', 'code', 'fault', 'remedy'),
                         BROKEN)
def test_fault_is_named_with_its_remedy(
        changes: dict[str, Any], check: str, code: Code, fault: str,
        remedy: str) -> None:
    result = dict(checks.CHECKS)[check](dataclasses.replace(GOOD, **changes))
    assert result.code is code
    assert result.details is not None
    assert fault in result.details
    assert remedy in result.details


#: What a remedy begins with: an order.
ORDERS = re.compile(
    r'(?:^|[.:;,] (?:and |or |then )?)(?:Check|Copy|Correct|Disconnect|'
    r'Find|First do|Free|Install|Keep|Let|Load|Lower|Reboot|Restart|Run|Say|'
    r'See|Set|Start|Stop|Upgrade|Use|Widen)\b', re.IGNORECASE)


@pytest.mark.parametrize('changes', [changes for changes, *_ in BROKEN])
def test_whatever_a_check_says_of_a_fault_has_an_order(
        changes: dict[str, Any]) -> None:
    survey = dataclasses.replace(GOOD, **changes)
    for name, check in checks.CHECKS:
        result = check(survey)
        assert result.code is Code.SUCCESS or ORDERS.search(
            result.details), (name, result.details)


@pytest.mark.parametrize(('name', 'check'), checks.CHECKS)
def test_good_host(name: str, check: checks.Check) -> None:
    assert check(GOOD).code is Code.SUCCESS


def test_what_root_does_not_show_is_said() -> None:
    result = checks.helpers(dataclasses.replace(GOOD, as_root=True))
    assert result.code is Code.SUCCESS
    assert 'not shown whether nova-compute may' in result.details
    assert 'sudo -u nova' in result.details


@pytest.mark.parametrize(('name', 'check'), checks.CHECKS)
def test_every_check_can_fail(name: str, check: checks.Check) -> None:
    assert any(name == one for _, one, _, _, _ in BROKEN)


@pytest.mark.parametrize('changes', [
    {'serial_console': False, 'address_error': 'no matter'},
    {'metrics_file': None, 'last_pass_age': ''},
    {'last_pass_age': -1.0},
    {'nova_version': '31.3.1'},
    {'file_systems': ()},
    {'rotation': VirtlogdSettings(max_size=4096, max_backups=32)},
    {'as_root': True},
    {'files_passed': None},
    disk(used=16 * MIB, free=MIB),
    *(disk(type=kind) for kind in ('xfs', 'zfs', 'tmpfs', 'overlay')),
])
def test_what_is_no_fault(changes: dict[str, Any]) -> None:
    survey = dataclasses.replace(GOOD, **changes)
    assert {check(survey).code for _, check in checks.CHECKS} == {
        Code.SUCCESS}
