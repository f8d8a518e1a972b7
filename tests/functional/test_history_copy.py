# SPDX-License-Identifier: Apache-2.0
"""A guest's output reaches the other host, though copies are cut off or fail.

It is kept at the source until the destination has it.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fixtures
import pytest

from tests.functional.moving_server import (
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
from tests.lab.backup import leave_backup
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until
from virtlogd_driver.history import delivery, inbox, outbox

NOT_YET = 'has not followed it yet'


def waiting(nova: TwoHosts, name: str) -> list[outbox.Waiting]:
    return outbox.waiting(str(nova.instances[name]))


def try_again(nova: TwoHosts, name: str) -> None:
    """At once, as the passing of time does."""
    for path in outbox.paths(str(nova.instances[name])):
        with nova.places.at(name):
            nova.driver_of(name)._histories.send(
                str(nova.instances_path / Path(path).name))


def look_around(nova: TwoHosts) -> None:
    """At once, as nova-compute does each minute."""
    for name in nova.hosts:
        with nova.places.at(name):
            nova.driver_of(name)._histories.look_around()


def wait_until_it_has_followed(nova: TwoHosts, name: str) -> None:
    def followed() -> bool:
        try_again(nova, name)
        look_around(nova)
        # Listed no more is what is still being removed.
        return outbox.paths(str(nova.instances[name])) == []
    until(followed, 'it has followed', pause=0.2)


class TestTheCopyFails:
    """The move ends well; what was written is kept, which is said once."""

    @pytest.fixture
    def nova(self, make: Make) -> TwoHosts:
        return make()

    @pytest.fixture
    def server(self, nova: TwoHosts) -> Server:
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        return server

    def make_it_long(self, nova: TwoHosts, server: Server) -> None:
        """An old backup of 40 MiB, so that the copy takes a while."""
        directory = nova.directory_on('host1', server)
        leave_backup(directory / 'console.log', b'old\n' * (10 << 20))

    def assert_kept(self, nova: TwoHosts, server: Server,
                    reason: str) -> None:
        nova.move_live(server, 'host2')
        (warning,) = warnings(nova, NOT_YET)
        assert re.search(reason, said_in(nova, warning))
        (kept,) = waiting(nova, 'host1')
        assert kept.guest == server['id']
        assert re.search(reason, kept.reason)
        nova.wait_for_output(server, '\nline ')
        found = until(lambda: numbers(
            nova.console_output(server), begins_anywhere=True), 'a whole line')
        assert found[0] > 1
        assert found == list(range(found[0], found[0] + len(found)))
        # And none the worse for it.
        nova.reboot(server)
        assert_interactive(nova, server)

    def assert_follows(self, nova: TwoHosts, server: Server) -> None:
        wait_until_it_has_followed(nova, 'host1')
        wait_for_more(nova, server, boots=2)

    def test_no_ssh_daemon(self, nova: TwoHosts, server: Server) -> None:
        nova.ssh.stop('host2')
        self.assert_kept(nova, server, 'Connection refused')
        nova.ssh.start('host2')
        self.assert_follows(nova, server)

    def test_ssh_daemon_hangs(self, make: Make) -> None:
        nova = make(options={('virtlogd', 'history_timeout'): 3})
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        self.assert_kept(nova, server, 'history_timeout = 3 s')
        nova.ssh.signal('host2', signal.SIGCONT)
        self.assert_follows(nova, server)

    def test_permission_refused(self, nova: TwoHosts, server: Server
                                ) -> None:
        keys = nova.ssh.authorized_keys.read_text()
        nova.ssh.authorized_keys.write_text('')
        self.assert_kept(nova, server, 'Permission denied')
        nova.ssh.authorized_keys.write_text(keys)
        self.assert_follows(nova, server)

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
        nova.move_live(server, 'host2')
        (warning,) = warnings(nova, NOT_YET)
        assert re.search('No space left|write remote', said_in(nova, warning))
        assert 'old' not in nova.console_output(server)
        assert len(waiting(nova, 'host1')) == 1
        subprocess.run(host.command('rm', full), check=True)
        wait_until_it_has_followed(nova, 'host1')
        assert nova.console_output(server).startswith('old\n' * (10 << 20))

    def move_half(self, nova: TwoHosts, server: Server) -> None:
        """Its history's copy ends amid it, until nova.ssh.limit lifts that.

        Who receives it is killed.
        """
        self.make_it_long(nova, server)
        nova.ssh.limit('host2', 20 << 20)
        nova.move_live(server, 'host2')
        come = (nova.directory_on('host2', server) / 'console.moving'
                / 'history.0')
        # Each try begins with an empty file.
        until(lambda: come.stat().st_size, 'half of it has come')

    def test_killed_half_way(self, nova: TwoHosts, server: Server) -> None:
        self.move_half(nova, server)
        (warning,) = warnings(nova, NOT_YET)
        assert 'the copy to 127.0.0.2' in said_in(nova, warning)
        # Half a file is not shown.
        assert 'old' not in nova.console_output(server)
        nova.ssh.limit('host2')
        wait_until_it_has_followed(nova, 'host1')
        assert nova.console_output(server).startswith('old\n' * (10 << 20))

    def test_changing(self, nova: TwoHosts, server: Server) -> None:
        """What has come is not what was sent: it is sent again."""
        self.move_half(nova, server)
        (staged,) = nova.instances['host1'].glob(
            f'{server["id"]}_leaving.*/console.moving/history.0')
        whole = staged.read_bytes()
        # In place: it always has its size, whenever it is copied.
        with staged.open('r+b', buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            file.write(b'?')
            nova.ssh.limit('host2')
            try_again(nova, 'host1')
            until(lambda: warnings(nova, 'is not put in place'),
                  'it is refused')
            file.seek(-1, os.SEEK_END)
            file.write(whole[-1:])
        wait_until_it_has_followed(nova, 'host1')
        assert nova.console_output(server).startswith('old\n' * (10 << 20))

    def test_while_it_comes_it_is_looked_at_and_not_read(
            self, nova: TwoHosts, server: Server, use: Use) -> None:
        """It is read once, when it is there."""
        read: list[str] = []
        looked: list[None] = []
        digests = inbox._has_digest

        def counted(path: str, digest: str) -> bool:
            read.append(path)
            return digests(path, digest)
        use(fixtures.MockPatchObject(inbox, '_has_digest', counted))
        use(Before(inbox, 'is_complete', lambda: looked.append(None)))
        self.move_half(nova, server)
        seen = len(looked)
        until(lambda: len(looked) > seen + 5, 'it is looked at')
        assert read == []
        nova.ssh.limit('host2')
        wait_until_it_has_followed(nova, 'host1')
        assert nova.console_output(server).startswith('old\n' * (10 << 20))
        assert len(read) == 1

    def test_it_is_tried_by_hand(self, nova: TwoHosts, server: Server,
                                 tmp_path: Path) -> None:
        """With virtlogd-console, as an operator does who knows it is time."""
        conf = tmp_path / 'nova.conf'
        conf.write_text(f'[DEFAULT]\ninstances_path={nova.instances_path}\n')

        def history(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(nova.hosts['host1'].command(
                sys.executable, '-m', 'virtlogd_driver.cmd.console',
                '--config-file', conf, 'history', server['id'], *arguments),
                check=False, capture_output=True, text=True)
        nova.ssh.stop('host2')
        nova.move_live(server, 'host2')
        shown = history()
        assert shown.returncode == 0
        assert server['id'] in shown.stdout
        assert 'Connection refused' in shown.stderr
        failed = history('--retry')
        assert failed.returncode == 1
        assert 'Connection refused' in failed.stderr
        nova.ssh.start('host2')
        done = history('--retry')
        assert (done.returncode, done.stdout) == (
            0, f'{server["id"]}: it has followed\n'), done.stderr
        assert waiting(nova, 'host1') == []
        wait_for_more(nova, server)

    def test_the_guest_is_deleted(self, nova: TwoHosts, server: Server
                                  ) -> None:
        """Nothing of its output stays, wherever it waits."""
        nova.ssh.stop('host2')
        nova.move_live(server, 'host2')
        assert len(waiting(nova, 'host1')) == 1
        nova.delete(server)
        nova.ssh.start('host2')
        wait_until_it_has_followed(nova, 'host1')
        for instances in nova.instances.values():
            assert not list(instances.glob(f'{server["id"]}*'))

    def test_of_a_cold_migration(self, make: Make) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        type_text(nova, server, 'first')
        histories = nova.driver_of('host1')._histories
        try_now = histories.try_now

        def too_late(*arguments: object) -> None:
            nova.ssh.stop('host2')
            try_now(*arguments)
        histories.try_now = too_late
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        (warning,) = warnings(nova, NOT_YET)
        assert 'Connection refused' in said_in(nova, warning)
        nova.wait_for_output(server, BOOT)
        assert nova.console_output(server) == BOOT
        nova.confirm_resize(server)
        assert nova.console_output(server) == BOOT
        nova.ssh.start('host2')
        wait_until_it_has_followed(nova, 'host1')
        assert nova.console_output(server) == f'{BOOT}first\n{BOOT}'

    @pytest.mark.long
    def test_of_a_revert(self, make: Make) -> None:
        nova = make(QUIET)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        type_text(nova, server, 'first')
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, f'{BOOT}first\n{BOOT}')
        type_text(nova, server, 'second')
        nova.wait_for_history(server)
        nova.ssh.stop('host1')
        nova.revert_resize(server)
        (warning,) = warnings(nova, NOT_YET)
        assert 'Connection refused' in said_in(nova, warning)
        # Not what it wrote on the other host.
        nova.wait_for_output(server, BOOT)
        assert 'second' not in nova.console_output(server)
        assert_interactive(nova, server)
        nova.ssh.start('host1')
        wait_until_it_has_followed(nova, 'host2')
        assert nova.console_output(server).startswith(
            f'{BOOT}first\n{BOOT}second\n{BOOT}')


class TestItComesLate:

    @pytest.fixture
    def make(self, make: Make) -> Make:
        """However late: that is not what these are about."""
        return functools.partial(
            make, options={('virtlogd', 'history_timeout'): 600})

    def test_when_the_move_is_over(self, make: Make) -> None:
        """And everything works."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        before = nova.console_output(server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        # It has not waited for the copy, which goes on.
        (path,) = outbox.paths(str(nova.instances['host1']))
        assert outbox.load_state(path) == outbox.State()
        assert nova.host_of(server).name == 'host2'
        assert_interactive(nova, server)
        assert not nova.console_output(server).startswith(before)
        nova.reboot(server)
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.wait_for_history(server)
        nova.wait_for_output(server, before)
        wait_for_more(nova, server, boots=2)
        nova.move_live(server, 'host1')
        wait_for_more(nova, server, boots=2)
        assert warnings(nova) == []

    @pytest.mark.parametrize('operation', ['live', 'cold', 'rebuild'])
    def test_it_comes_when_the_guest_is_to_go(
            self, make: Make, use: Use, operation: str) -> None:
        """What takes the log elsewhere waits for what was promised."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        histories = nova.driver_of('host2')._histories
        use(Before(histories, 'wait_for_history', lambda: nova.ssh.signal(
            'host2', signal.SIGCONT)))
        if operation == 'live':
            nova.move_live(server, 'host1')
        elif operation == 'cold':
            nova.resize(server)
            nova.confirm_resize(server)
        else:
            nova.rebuild(server)
        wait_for_more(nova, server, boots=1 if operation == 'live' else 2)
        assert warnings(nova) == []

    def test_its_source_asks_as_the_guest_comes_back(
            self, make: Make, use: Use) -> None:
        """It learns of itself that it had been there, and not before."""
        use(fixtures.MockPatchObject(delivery, 'ASK', delivery.LONGEST))
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.time_live_migration(server, 'host2')
        (path,) = outbox.paths(str(nova.instances['host1']))
        until(lambda: outbox.load_state(path).copied, 'it is copied')
        histories = nova.driver_of('host1')._histories
        # Its own thread could be so slow that it asks afterwards.
        use(Before(nova.driver_of('host1'),
                   'post_live_migration_at_destination',
                   lambda: histories._departures._attempt(
                       str(nova.instances_path / Path(path).name))))
        nova.time_live_migration(server, 'host1')
        assert outbox.load_state(path).attempts == 1
        until(lambda: try_again(nova, 'host1') or not waiting(nova, 'host1'),
              'an outbox that is not needed')
        try_again(nova, 'host2')
        wait_for_more(nova, server)
        assert warnings(nova) == []

    def test_the_destination_is_restarted_meanwhile(
            self, make: Make) -> None:
        """It loses nothing of what comes."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        nova.restart_compute_on('host2')
        nova.ssh.signal('host2', signal.SIGCONT)
        nova.move_live(server, 'host1')
        wait_for_more(nova, server)
        assert warnings(nova) == []

    def test_the_source_is_restarted_meanwhile(self, make: Make) -> None:
        """It goes on where it was ended."""
        nova = make()
        server = nova.boot_on('host1')
        wait_for_more(nova, server)
        nova.ssh.signal('host2', signal.SIGSTOP)
        nova.time_live_migration(server, 'host2')
        nova.restart_compute_on('host1')
        nova.ssh.signal('host2', signal.SIGCONT)
        wait_until_it_has_followed(nova, 'host1')
        wait_for_more(nova, server)


class TestTheSharedDiskIsFull:
    """There is no room for a history, and none is needed."""

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
        leave_backup(directory / 'console.log', b'old\n' * (10 << 20))
        use(Before(nova.driver_of('host2'), 'pre_live_migration',
                   lambda: self.fill(disk)))
        nova.move_live(server, 'host2')

        # It is read where it is, and the guest writes on after it.
        def lines() -> list[int]:
            old, line, output = nova.console_output(server).partition('line')
            assert old == 'old\n' * (10 << 20)
            return numbers(line + output)
        found = lines()
        until(lambda: lines() > found, 'the guest writes on')
        assert found == list(range(1, len(found) + 1))
        assert warnings(nova) == []

    def test_revert(self, disk: Path, make: Make) -> None:
        nova = make(QUIET, shared=True)
        server = nova.boot_on('host1')
        nova.wait_for_output(server, BOOT)
        nova.action(server, 'migrate', 'VERIFY_RESIZE', {'host': 'host2'})
        nova.wait_for_output(server, BOOT * 2)
        directory = nova.directory_on('host1', server)
        leave_backup(directory / 'console.log', b'old\n' * (10 << 20))
        self.fill(disk)
        nova.revert_resize(server)
        expected = 'old\n' * (10 << 20) + BOOT * 3
        nova.wait_for_output(server, expected)
        assert nova.console_output(server) == expected
        assert warnings(nova) == []
        assert files(nova, 'host1', server) == [
            'console.g1.log', 'console.g2.log', 'console.log',
            'console.log.0']
