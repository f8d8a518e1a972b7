# SPDX-License-Identifier: Apache-2.0
"""A process opens what it may itself, and asks for the rest.

The privileged helper's part is done in this process (test_privileged.py has a
real one).
"""

import errno
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from oslo_privsep import comm
from oslo_privsep import daemon as privsep_daemon

from tests.unit import descriptors
from virtlogd_driver import exception
from virtlogd_driver.console_log import (
    directory,
    handover,
    log,
    opened,
    privileged,
    reader,
)


class Helper:
    """Counts what the helper is asked for, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ('read_tail', 'read_from', 'open_log', 'open_nothing'):
            monkeypatch.setattr(
                privileged, name,
                self._counting(name, getattr(privileged, name)))

    def _counting(self, name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            comm.msgpack.packb(arguments)   # as privsep does
            return function(*arguments)
        return call


@pytest.fixture
def guest(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    path = tmp_path / 'instances/guest'
    path.mkdir(parents=True)
    (path / 'console.log').write_bytes(b'log')
    yield path
    reader.forget(str(path))
    assert descriptors.below(path) == []


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch,
           tmp_path: pathlib.Path) -> Iterator[Helper]:
    monkeypatch.setattr(privileged.context, 'client_mode', False)
    monkeypatch.setattr(
        privileged, 'roots', lambda: (str(tmp_path / 'instances'),))
    monkeypatch.setattr(reader, '_passing', reader._Passing())
    monkeypatch.setattr(reader, '_receivers', [])
    sender = handover.Sender(os.getpid())
    monkeypatch.setattr(privileged, '_sender', lambda: sender)
    yield Helper(monkeypatch)
    sender.close()
    for receiver in reader._receivers:
        receiver.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nova-compute, to which root's files are closed."""
    monkeypatch.setattr(os, 'geteuid', lambda: 4711)
    access = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode, **names: (
        mode == os.F_OK and access(path, mode, **names)))


def path_in(guest: pathlib.Path) -> str:
    return str(guest / 'console.log')


class TestWhoOpens:

    def test_the_process_itself(self, guest, helper) -> None:
        assert reader.read_tail(path_in(guest), 9).data == b'log'
        assert reader.read_from(path_in(guest), None, 9).data == b'log'
        assert helper.calls == []

    def test_the_helper(self, guest, helper, closed) -> None:
        """Once, for as long as the log stays open."""
        read = reader.read_tail(path_in(guest), 9)
        assert read.data == b'log'
        assert reader.read_from(path_in(guest), None, 9).data == b'log'
        assert helper.calls == ['open_log']

    @pytest.mark.parametrize('passed', [True, False])
    def test_any_limit(self, guest, helper, closed, monkeypatch,
                       passed) -> None:
        """max_console_bytes, or --bytes, may be more than any file has."""
        if not passed:
            monkeypatch.setattr(
                handover.Receiver, 'take', lambda receiver, count: None)
        limit = 10 ** 30
        assert reader.read_tail(path_in(guest), limit).data == b'log'
        assert reader.read_from(path_in(guest), None, limit).data == b'log'

    def test_a_file_that_others_may_read(self, guest, helper,
                                         monkeypatch) -> None:
        monkeypatch.setattr(os, 'geteuid', lambda: 4711)
        assert reader.read_tail(path_in(guest), 9).data == b'log'
        assert helper.calls == []

    def test_root_is_not_asked_what_it_may(self, guest, helper,
                                           monkeypatch) -> None:
        monkeypatch.setattr(os, 'geteuid', lambda: 0)
        access = os.access
        monkeypatch.setattr(os, 'access', lambda path, mode, **names: (
            mode == os.F_OK and access(path, mode, **names)))
        assert reader.read_tail(path_in(guest), 9).data == b'log'
        assert helper.calls == []

    def test_it_is_asked_as_which_user_it_reads(self, guest, helper,
                                                monkeypatch) -> None:
        """The effective one: a service may have been started as root."""
        asked = []

        def access(path: str, mode: int, *, dir_fd: int | None = None,
                   effective_ids: bool = False) -> bool:
            if path == path_in(guest):
                asked.append(effective_ids)
                return mode == os.F_OK
            return False
        monkeypatch.setattr(os, 'geteuid', lambda: 4711)
        monkeypatch.setattr(os, 'access', access)
        reader.read_tail(path_in(guest), 9)
        assert asked == [True, True]

    def test_what_is_not_there_is_not_asked_for(self, guest, helper,
                                                closed) -> None:
        with pytest.raises(exception.LogNotFound):
            reader.read_tail(f'{guest}/console.port1.log', 9)
        assert helper.calls == []

    def test_a_backup_is_refused(self, guest, helper, monkeypatch) -> None:
        """The helper opens the log as a whole then."""
        def refused(*_: object) -> log.Taken:
            raise exception.LogRefused('x')
        monkeypatch.setattr(log, 'open_log', refused)
        assert reader.read_tail(path_in(guest), 9).data == b'log'
        assert helper.calls == ['open_log']


class TestPassed:

    def test_it_can(self, helper, tmp_path, monkeypatch) -> None:
        """What was passed to see that is closed."""
        null = tmp_path / 'null'
        null.touch()
        monkeypatch.setattr(os, 'devnull', str(null))
        for _ in range(2):
            assert reader.can_pass()
            assert descriptors.below(null) == []
        assert helper.calls == ['open_nothing'] * 2
        assert len(reader._receivers) == 1

    @pytest.mark.parametrize('said', [True, False])
    def test_it_cannot(self, helper, monkeypatch, said) -> None:
        """Nothing is sent, whatever the helper says."""
        monkeypatch.setattr(privileged, 'open_nothing', lambda address: said)
        assert not reader.can_pass()

    def test_it_does_not_come(self, helper, monkeypatch) -> None:
        monkeypatch.setattr(
            handover.Receiver, 'take', lambda receiver, count: None)
        assert not reader.can_pass()

    @pytest.mark.parametrize('come', [True, False])
    def test_bytes_come_instead(self, guest, helper, closed, monkeypatch,
                                caplog, come) -> None:
        """The answers are the same, and it is tried again in a while."""
        (guest / 'console.log.0').write_bytes(b'before')
        expected = _answers(guest, log.read_tail, log.read_from)
        now = [100.0]
        monkeypatch.setattr(
            reader, '_passing', reader._Passing(lambda: now[0]))
        take = handover.Receiver.take
        if come:
            monkeypatch.setattr(
                privileged, 'open_log', lambda *_: helper.calls.append(
                    'open_log'))
        else:
            monkeypatch.setattr(
                handover.Receiver, 'take', lambda receiver, count: None)
        for _ in range(2):
            helper.calls.clear()
            for _ in range(2):
                read, since = _read(guest)
                assert (read, since, since.parts) == expected
            assert helper.calls == [
                'open_log', 'read_tail', 'read_from', 'read_tail',
                'read_from']
            assert reader._receivers == [] or come
            now[0] += reader.RETRY
        assert len([one for one in caplog.messages
                    if 'cannot pass' in one]) == 1
        monkeypatch.setattr(handover.Receiver, 'take', take)

    def test_what_is_left_out(self, guest, helper, closed,
                              monkeypatch) -> None:
        """The files that a reader has already, where bytes come as well."""
        (guest / 'console.g1.log').write_bytes(b'newer')
        path = f'{guest}/console.g1.log'
        status = os.stat(path_in(guest))
        passed = [(status.st_dev, status.st_ino, status.st_size,
                   status.st_mtime_ns)]
        asked = []
        monkeypatch.setattr(privileged, 'open_log', lambda *_: None)
        monkeypatch.setattr(privileged, 'read_from', lambda *arguments: (
            asked.append(arguments), (b'', None, 0, 0, []))[1])
        reader.read_from(path, None, 9, max_backups=3, passed=set(passed))
        reader.read_from(path, None, 9)
        assert asked == [(path, None, 9, 3, passed),
                         (path, None, 9, None, None)]

    def test_other_files_than_are_said(self, guest, helper, closed,
                                       monkeypatch) -> None:
        """They are closed, and no log is made of them."""
        def another(packed: Any, held: Any, come: Any, files: Any) -> None:
            raise exception.LogError('another file')
        monkeypatch.setattr(opened, 'unpack', another)
        with pytest.raises(exception.LogError, match='another file'):
            reader.read_tail(path_in(guest), 9)
        assert descriptors.below(guest) == []

    def test_a_file_that_its_server_has_no_more(self, guest, helper, closed,
                                                monkeypatch) -> None:
        """Every file that has come is closed, the sound one as well."""
        (guest / 'console.log.0').write_bytes(b'before')

        class Stale(directory.Files):

            def fstat(self, fd: int) -> os.stat_result:
                status = super().fstat(fd)
                if status.st_size == 6:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                return status
        monkeypatch.setattr(reader, 'Files', Stale)
        for read in (reader.read_tail, _from_the_beginning):
            with pytest.raises(
                    exception.LogError,
                    match=r'guest/console\.log cannot be read: Stale'):
                read(path_in(guest), 9)
            assert descriptors.below(guest) == []
        assert helper.calls == ['open_log'] * 2

    def test_it_is_said_once(self, caplog) -> None:
        caplog.set_level('INFO')
        now = [50.0]
        passing = reader._Passing(lambda: now[0])
        passing.worked()
        assert passing.is_to_be_tried()
        for _ in range(2):
            passing.failed()
            assert [one.levelname for one in caplog.records] == ['WARNING']
            assert not passing.is_to_be_tried()
            now[0] += reader.RETRY - 1
            assert not passing.is_to_be_tried()
            now[0] += 1
            assert passing.is_to_be_tried()
        for _ in range(2):
            passing.worked()
            assert passing.is_to_be_tried()
        assert [one.levelname for one in caplog.records] == [
            'WARNING', 'INFO']


def _from_the_beginning(path: str, limit: int) -> reader.LogSince:
    return reader.read_from(path, None, limit)


def _read(guest: pathlib.Path) -> tuple[reader.LogRead, reader.LogSince]:
    read = reader.read_tail(path_in(guest), 4)
    return read, reader.read_from(path_in(guest), None, 99)


def _answers(guest: pathlib.Path, tail: Callable[..., Any],
             since: Callable[..., Any]) -> tuple[Any, ...]:
    from virtlogd_driver.console_log.directory import open_directory
    with open_directory(str(guest)) as directory:
        found = since(directory, 'console.log', None, 99)
        return tail(directory, 'console.log', 4), found, found.parts


class TestReceivers:

    def test_one_after_the_other_has_the_same(self, helper) -> None:
        with reader._receiver() as first:
            pass
        with reader._receiver() as second, reader._receiver() as third:
            assert second is first
            assert third is not first
        assert set(reader._receivers) == {first, third}

    def test_no_more_than_some_are_kept(self, helper) -> None:
        def hold(number: int) -> None:
            with reader._receiver():
                if number:
                    hold(number - 1)
        hold(9)
        assert len(reader._receivers) == 8
        assert not any(one.closed for one in reader._receivers)

    def test_one_that_was_closed_is_not(self, helper) -> None:
        with reader._receiver() as receiver:
            receiver.close()
        assert reader._receivers == []

    def test_nor_one_of_a_read_that_has_failed(self, helper) -> None:
        """Something for that read may come to it yet."""
        with pytest.raises(KeyError), reader._receiver() as receiver:
            raise KeyError
        assert receiver.closed
        assert reader._receivers == []

    def test_the_process_may_have_no_more_sockets(
            self, helper, monkeypatch) -> None:
        def full(*_: object) -> socket.socket:
            raise OSError(24, 'too many')
        monkeypatch.setattr(socket, 'socket', full)
        assert not reader.can_pass()
        assert not reader._passing.is_to_be_tried()


class TestThereIsNoHelper:

    @pytest.mark.parametrize('error', [
        privsep_daemon.FailedToDropPrivileges('why'),
        comm.PrivsepTimeout('why'), OSError('why')])
    def test_it_is_said_what_to_do(self, guest, helper, closed, monkeypatch,
                                   error) -> None:
        def none(*_: object) -> None:
            raise error
        monkeypatch.setattr(privileged, 'open_log', none)
        with pytest.raises(
                exception.LogRefused,
                match=r'console\.log may only.*why.*helper_command'):
            reader.read_tail(path_in(guest), 9)
        monkeypatch.setattr(privileged, 'open_nothing', none)
        with pytest.raises(exception.LogRefused, match='of a guest'):
            reader.can_pass()

    def test_another_error_is_its_own(self, helper, monkeypatch) -> None:
        def refused(*_: object) -> None:
            raise exception.LogNotRegular('a device')
        monkeypatch.setattr(privileged, 'open_nothing', refused)
        with pytest.raises(exception.LogNotRegular):
            reader.can_pass()


class TestHeld:

    def test_whatever_the_names_are(self, guest, helper) -> None:
        read = reader.read_tail(path_in(guest), 2)
        assert read.position is not None
        with (guest / 'console.log').open('ab') as file:
            file.write(b', more')
        (guest / 'console.log').rename(guest / 'away')
        since = reader.read_held(path_in(guest), read.position, 99)
        assert since is not None
        assert since.data == b', more'
        reader.forget(str(guest))
        assert reader.read_held(path_in(guest), read.position, 99) is None
