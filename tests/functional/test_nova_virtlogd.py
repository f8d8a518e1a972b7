# SPDX-License-Identifier: Apache-2.0
"""Servers go on when virtlogd fails, and operators are told."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemons import LibvirtHost
from tests.lab.nova_node import NovaNode, Server
from tests.lab.wait import until
from virtlogd_driver.virtlogd import health

BOOT = ''.join(f'line {n:08d}\n' for n in range(1, 11))


@pytest.fixture
def nova(libvirt_host: LibvirtHost, tmp_path: Path) -> Iterator[NovaNode]:
    with NovaNode(libvirt_host, tmp_path / 'nova', options={
            ('virtlogd', 'health_interval'): 1,
            ('virtlogd', 'metrics_file'): str(tmp_path / 'virtlogd.prom'),
            ('virtlogd', 'reattach'): True,
            ('workarounds', 'disable_libvirt_livesnapshot'): True}) as node:
        yield node


def said(nova: NovaNode, text: str) -> int:
    """How many lines of nova-compute's log say so."""
    return sum(text in line for line in nova.log().splitlines()
               if 'virtlogd_driver' in line)


def told(nova: NovaNode, server: Server, event: str) -> str:
    """What the newest action says to administrators, and to the user."""
    def event_of(admin: bool) -> dict[str, Any] | None:
        return next((
            one for one in nova.last_action(server, admin)['events']
            if one['event'] == event and one['finish_time']), None)

    for_user = until(lambda: event_of(admin=False), event)
    for_admin = event_of(admin=True)
    assert for_user
    assert for_admin
    assert for_user['result'] == for_admin['result'] == 'Error'
    assert 'details' not in for_user
    details: str = for_admin['details']
    return details


def test_fault_down_the_user_is_told_and_running_guests_are_left_alone(
        nova: NovaNode) -> None:
    server = nova.boot()
    nova.wait_for_output(server, BOOT)
    domain = nova.guest(server)
    number = domain.ID()
    nova.host.stop_virtlogd()
    until(lambda: said(nova, 'virtlogd is down') == 1, 'it is said')
    with pytest.raises(RuntimeError, match='virtlogd does not listen on'):
        nova.boot()
    # nova would have ended it before it found that it cannot be started.
    nova.reboot(server, hard=True)
    until(lambda: 'Reboot failed but instance is running'
          in nova.log(), 'the reboot is refused')
    assert domain.ID() == number
    assert 'virtlogd does not listen' in told(
        nova, server, 'compute_virtlogd_down')
    nova.stop(server)
    nova.api.post_server_action(server['id'], {'os-start': None})
    assert 'virtlogd does not listen' in told(
        nova, server, 'compute_start_instance')
    nova.host.start_virtlogd()
    until(lambda: said(nova, 'virtlogd answers') == 1, 'it is said')
    assert said(nova, 'virtlogd is down') == 1
    nova.boot()


def test_fault_hung_no_start_hangs_with_it(nova: NovaNode) -> None:
    nova.boot()
    pid = nova.host.virtlogd_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeError, match='virtlogd did not answer on'):
            nova.boot()
    finally:
        os.kill(pid, signal.SIGCONT)
    nova.boot()


@pytest.mark.parametrize(('event', 'action'), [
    ('compute_virtlogd_hung', {'reboot': {'type': 'HARD'}}),
    ('compute_virtlogd_hung', {'reboot': {'type': 'SOFT'}}),
    ('compute_virtlogd_hung', {'createImage': {'name': 'cold'}}),
    ('compute_resize_instance', {'resize': {'flavorRef': 'large'}}),
], ids=['hard reboot', 'soft reboot', 'snapshot', 'resize'])
def test_fault_hung_a_running_guest_is_left_alone(
        nova: NovaNode, event: str,
        action: dict[str, dict[str, str]]) -> None:
    """It is not ended for what cannot start it again."""
    server = nova.boot()
    nova.wait_for_output(server, BOOT)
    domain = nova.guest(server)
    number = domain.ID()
    pid = nova.host.virtlogd_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for arguments in action.values():
            if 'flavorRef' in arguments:
                arguments['flavorRef'] = nova.flavors['large']
        nova.api.post_server_action(server['id'], action)
        until(lambda: 'virtlogd did not answer on' in nova.log(), 'it is said')
        until(lambda: nova.api.get_server(
            server['id'])['OS-EXT-STS:task_state'] is None, 'nova gave up')
    finally:
        os.kill(pid, signal.SIGCONT)
    assert domain.ID() == number
    assert nova.api.get_server(server['id'])['status'] == 'ACTIVE'
    assert 'virtlogd did not answer' in told(nova, server, event)


def test_fault_full_disk(tmp_path: Path) -> None:
    """A new guest is refused, one that there is already is started."""
    instances = tmp_path / 'nova' / 'instances'
    instances.mkdir(parents=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1100m', 'lab',
                    instances], check=True)
    with LibvirtHost(tmp_path / 'host1') as host, NovaNode(
            host, tmp_path / 'nova', options={
                (None, 'disk_allocation_ratio'): 16.0,
                (None, 'resume_guests_state_on_host_boot'): True}) as nova:
        server = nova.boot()
        nova.wait_for_output(server, BOOT)
        with open(instances / 'ballast', 'wb') as ballast:
            free = os.statvfs(instances)
            # nova itself needs a little.
            os.posix_fallocate(
                ballast.fileno(), 0,
                free.f_bfree * free.f_frsize - health.FULL_BELOW + 4096)
        with pytest.raises(RuntimeError, match='is full'):
            nova.boot()
        event = 'compute_console_log_disk_full'
        nova.reboot(server)
        assert 'is full' in told(nova, server, event)
        nova.start(nova.stop(server))
        assert 'Free some space' in told(nova, server, event)
        assert sum('WARNING [virtlogd_driver.compute.starts]' in line
                   and 'is full' in line
                   for line in nova.log().splitlines()) == 2
        # The host boots: nobody has asked for it, the newest action says so.
        nova.action(server, 'pause', 'PAUSED')
        nova.action(server, 'unpause', 'ACTIVE')
        nova.guest(server).destroy()
        nova.restart_compute()
        assert 'is full' in told(nova, server, event)
        assert nova.guest(server).isActive()
        (instances / 'ballast').unlink()
        nova.boot()


def test_reattach_a_dead_log_comes_back_by_itself(
        nova: NovaNode, tmp_path: Path) -> None:
    server = nova.boot()
    nova.wait_for_output(server, BOOT)
    nova.host.stop_virtlogd(signal.SIGKILL)
    nova.host.start_virtlogd()
    until(lambda: said(nova, 'is back') == 1, 'the log is back')
    assert said(nova, 'is dead') == 1
    with nova.serial_console(server) as terminal:
        terminal.type(b'typed after\r')
        terminal.read_until(b'typed after\r\n')
    nova.wait_for_output(server, 'typed after\n')
    assert nova.console_output(server) == f'{BOOT}typed after\n'
    until(lambda: 'virtlogd_driver_console_logs_reattached_total 1.0' in (
        tmp_path / 'virtlogd.prom').read_text(), 'it is counted')
