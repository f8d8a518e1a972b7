# SPDX-License-Identifier: Apache-2.0
"""The copy of what a guest wrote to another host: late, cut off, failed."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.functional.moving_server import (
    LIMIT,
    QUIET,
    Before,
    Make,
    Use,
    assert_interactive,
    files,
    numbers,
    said_in,
    type_text,
    wait_for_more,
    warnings,
)
from tests.functional.one_server import BOOT
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.history import history, transfer


class TestTheCopyFails:
    """The move ends well, and the loss is said, once."""

    @pytest.fixture
    def nova(self, make: Make) -> TwoHosts:
        return make(options={('virtlogd', 'history_timeout'): 3})

    @pytest.fixture
    def server(self, nova: TwoHosts) -> Server:
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        return server

    def make_it_long(self, nova: TwoHosts, server: Server) -> None:
        """An old backup of 40 MiB, so that the copy takes a while."""
        directory = nova.directory_on('host1', server)
        (directory / 'console.log.0').write_bytes(b'old\n' * (10 << 20))

    def assert_moved_without(self, nova: TwoHosts, server: Server,
                             reason: str) -> None:
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = warnings(nova)
        assert re.search(reason, said_in(nova, warning))
        found = numbers(nova.wait_for_output(server, 'line '))
        assert found[0] > 1
        assert found == list(range(found[0], found[0] + len(found)))
        assert files(nova, 'host2', server) == ['console.g1.log']
        # And none the worse for it.
        nova.reboot(server)
        assert_interactive(nova, server)

    def test_no_ssh_daemon(self, nova: TwoHosts, server: Server) -> None:
        nova.ssh.stop('host2')
        self.assert_moved_without(nova, server, 'Connection refused')

    def test_ssh_daemon_hangs(self, nova: TwoHosts, server: Server) -> None:
        nova.ssh.signal('host2', signal.SIGSTOP)
        self.assert_moved_without(nova, server, 'history_timeout = 3 s')
        nova.ssh.signal('host2', signal.SIGCONT)

    def test_permission_refused(self, nova: TwoHosts, server: Server
                                ) -> None:
        nova.ssh.authorized_keys.write_text('')
        self.assert_moved_without(nova, server, 'Permission denied')

    def test_disk_full(self, nova: TwoHosts, server: Server,
                       use: Use) -> None:
        host = nova.hosts['host2']
        self.make_it_long(nova, server)
        subprocess.run(host.command(
            'mount', '-t', 'tmpfs', '-o', 'size=100m', 'lab',
            nova.instances_path), check=True)
        full = nova.instances_path / 'full'

        def fill() -> None:
            subprocess.run(host.command(
                'fallocate', '--length', '75MiB', full), check=True)
        use(Before(nova.driver_of('host2'), 'pre_live_migration', fill))
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = [w for w in warnings(nova) if 'has not come' not in w]
        assert re.search('No space left|write remote', said_in(nova, warning))
        seen = subprocess.run(
            host.command('ls', nova.instances_path / server['id']),
            check=True, capture_output=True, text=True).stdout.split()
        assert [name for name in seen if name.startswith('console.')
                and name != 'console.boots'] == ['console.g1.log']
        assert 'old' not in nova.console_output(server)

    def half_way(self, nova: TwoHosts, server: Server,
                 happens: Callable[[], object]) -> threading.Thread:
        """Something that happens while the history is copied."""
        self.make_it_long(nova, server)
        directory = nova.directory_on('host2', server)

        def wait() -> None:
            def begun() -> bool:
                return any(path.stat().st_size > 0 for path in
                           directory.glob('console.moving/*.history.*'))
            until(begun, 'the copy begins', 60, 0.001)
            copying = nova.hosts['host1'].processes('scp', 'ssh')
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in copying:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                if number == signal.SIGSTOP:
                    happens()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def kill_copy(self, nova: TwoHosts) -> None:
        for pid in nova.hosts['host1'].processes('scp', 'ssh'):
            os.kill(pid, signal.SIGKILL)

    def test_killed_half_way(self, nova: TwoHosts, server: Server) -> None:
        thread = self.half_way(nova, server, lambda: self.kill_copy(nova))
        assert nova.live_migrate(server, 'host2') == 'completed'
        thread.join()
        lost, cut = sorted(warnings(nova), key=lambda w: 'not come' in w)
        assert 'the copy to host2' in lost
        assert 'console.g1.history' in cut
        assert files(nova, 'host2', server) == ['console.g1.log']
        assert 'old' not in nova.console_output(server)

    def test_changing(self, nova: TwoHosts, server: Server) -> None:
        """What is copied is not what it was at first."""
        def change() -> None:
            (staged,) = nova.instances['host1'].glob(
                f'{server["id"]}_leaving.*/console.moving/*.history.*')
            with staged.open('r+b') as file:
                file.seek(-1, os.SEEK_END)
                file.write(b'?')
        thread = self.half_way(nova, server, change)
        self.assert_moved_without(nova, server, 'has not come whole')
        thread.join()

    def test_truncated(self, nova: TwoHosts, server: Server,
                       use: Use) -> None:
        directory = nova.directory_on('host2', server)
        is_whole = transfer.is_whole

        def truncate(there: str) -> bool:
            if is_whole(there):
                (staged,) = directory.glob('console.moving/*.history.*')
                os.truncate(staged, staged.stat().st_size // 2)
            return is_whole(there)
        use(fixtures.MockPatchObject(transfer, 'is_whole', truncate))
        self.assert_moved_without(nova, server, 'has not come whole')

    def test_it_comes_late(self, make: Make) -> None:
        """The move is over by then, and everything works."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        before = nova.console_output(server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        assert nova.time_live_migration(server, 'host2') < 20
        assert nova.host_of(server).name == 'host2'
        assert_interactive(nova, server)
        assert not nova.console_output(server).startswith(before)
        nova.reboot(server)
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.wait_for_history(server)
        nova.wait_for_output(server, before)
        wait_for_more(nova, server, boots=2)
        assert nova.live_migrate(server, 'host1') == 'completed'
        wait_for_more(nova, server, boots=2)
        assert warnings(nova) == []

    @pytest.mark.parametrize('operation', ['live', 'cold', 'rebuild'])
    def test_it_comes_when_the_guest_is_to_go(
            self, make: Make, use: Use, operation: str) -> None:
        """What takes the log elsewhere waits for what follows the guest."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        late = threading.Timer(1, nova.ssh.signal, ['host2', signal.SIGCONT])
        use(Before(nova.driver_of('host2')._arrivals, 'wait_for_history',
                   late.start))
        if operation == 'live':
            assert nova.live_migrate(server, 'host1') == 'completed'
        elif operation == 'cold':
            nova.resize(server)
            nova.confirm_resize(server)
        else:
            nova.rebuild(server)
        wait_for_more(nova, server, boots=1 if operation == 'live' else 2)
        assert warnings(nova) == []

    def test_the_destination_is_restarted_meanwhile(
            self, make: Make) -> None:
        """It does not know then what comes, and loses nothing of it."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        nova.restart_compute_on('host2')
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.wait_for_history(server)
        assert 'console.moving' in files(nova, 'host2', server)
        assert nova.live_migrate(server, 'host1') == 'completed'
        wait_for_more(nova, server)
        assert warnings(nova) == []

    def test_nova_compute_is_killed(self, make: Make) -> None:
        """The copy goes on by itself; where it does not, all is here."""
        nova = make()
        for name in nova.hosts:
            (nova.instances[name] / 'uuid').mkdir()
        old = b'old\n' * (10 << 20)
        (nova.instances['host1'] / 'uuid/console.log').write_bytes(old)
        here = nova.instances_path / 'uuid'
        program = f"""
from nova.virt.libvirt import utils
from virtlogd_driver.history import history
history.History(utils.copy_image, {LIMIT}, 60, '/no/virtlogd').send(
    None, [('{here}/console.log', '{here}/console.g1.log')], 'host2')
"""
        nova_compute = subprocess.Popen(nova.hosts['host1'].command(
            sys.executable, '-W', 'ignore', '-c', program))
        there = nova.instances['host2'] / 'uuid'
        until(lambda: any(path.stat().st_size for path in
                          there.glob('console.moving/*')),
              'the copy begins', pause=0.001)
        nova_compute.kill()
        nova_compute.wait()
        until(lambda: transfer.is_whole(str(there)), 'the copy ends')
        assert transfer.receive(str(there), str(there)) == []
        assert (there / 'console.g1.history').read_bytes() == old
        (left,) = history.left_behind(str(nova.instances['host1']))
        assert transfer.is_whole(left)

    def test_of_a_cold_migration(self, make: Make, use: Use) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        type_text(nova, server, 'first')
        send = history.History.send

        def send_too_late(*args: Any) -> None:
            nova.ssh.stop('host2')
            send(*args)
        use(fixtures.MockPatchObject(history.History, 'send', send_too_late))
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.ssh.start('host2')
        (warning,) = warnings(nova)
        assert 'Connection refused' in said_in(nova, warning)
        nova.wait_for_output(server, BOOT)
        assert nova.console_output(server) == BOOT

    @pytest.mark.long
    def test_of_a_revert(self, make: Make, use: Use) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, BOOT * 2)
        nova.ssh.stop('host1')
        nova.revert_resize(server)
        (warning,) = warnings(nova)
        assert 'Connection refused' in said_in(nova, warning)
        # Not what it wrote on the other host.
        nova.wait_for_output(server, BOOT * 2)
        assert nova.console_output(server) == BOOT * 2
        assert_interactive(nova, server)


class TestTheSharedDiskIsFull:
    """There is no room for the history; for new output there is."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / 'lab'
        path.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1100m', 'lab',
                        path], check=True)
        yield path
        subprocess.run(['umount', '--lazy', path], check=True)

    def fill(self, disk: Path) -> None:
        with (disk / 'full').open('wb') as file:
            os.posix_fallocate(
                file.fileno(), 0, shutil.disk_usage(disk).free - (20 << 20))

    def test_live_migration(self, disk: Path, make: Make, use: Use) -> None:
        nova = make(shared=True)
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        directory = nova.directory_on('host1', server)
        (directory / 'console.log.0').write_bytes(b'old\n' * (10 << 20))
        use(Before(nova.driver_of('host2'), 'pre_live_migration',
                   lambda: self.fill(disk)))
        assert nova.live_migrate(server, 'host2') == 'completed'
        (warning,) = warnings(nova)
        assert 'No space left' in said_in(nova, warning)

        # It is read where it is, and the guest writes on after it.
        def lines() -> list[int]:
            old, line, output = nova.console_output(server).partition('line')
            assert old == 'old\n' * (10 << 20)
            return numbers(line + output)
        found = lines()
        until(lambda: lines() > found, 'the guest writes on')
        assert found == list(range(1, len(found) + 1))
        assert not (directory / 'console.moving').exists()

    def test_revert(self, disk: Path, make: Make) -> None:
        nova = make(QUIET, shared=True)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, BOOT * 2)
        directory = nova.directory_on('host1', server)
        (directory / 'console.g1.log.0').write_bytes(b'old\n' * (10 << 20))
        self.fill(disk)
        nova.revert_resize(server)
        (warning,) = warnings(nova)
        assert 'No space left' in said_in(nova, warning)
        nova.wait_for_output(server, BOOT * 2)
        assert nova.console_output(server) == BOOT * 2
        assert not (directory / 'console.moving').exists()
