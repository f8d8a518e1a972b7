# SPDX-License-Identifier: Apache-2.0
"""A copy is tried again until the other host has the history."""

import contextlib
import dataclasses
import errno
import itertools
import os
import pathlib
import shutil
import threading
import time
import types
from typing import Any

import pytest
from oslo_concurrency import processutils

from tests.unit.history import staged
from tests.unit.history.hosts import (
    ADDRESS,
    BEFORE,
    GUEST,
    THERE,
    Pair,
    departure,
    live,
    refuse,
    to,
    waiting,
)
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import (
    boot,
    delivery,
    files,
    inbox,
    logs,
    outbox,
    record,
)


class Broken:
    """A disk does not give one file, until it is mended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str,
                 inode: int) -> None:
        self.inode = inode
        self.mended = False
        real = getattr(os, call)

        def broken(what: Any, *args: Any, **kwargs: Any) -> Any:
            with contextlib.suppress(FileNotFoundError):
                if not self.mended and os.stat(
                        what, dir_fd=kwargs.get('dir_fd')
                        ).st_ino == self.inode:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(what, *args, **kwargs)
        monkeypatch.setattr(os, call, broken)


class TestDeparture:

    def test_it_is_kept_while_the_copy_fails(self, pair, caplog) -> None:
        refuse(pair.source)
        live(pair)
        (kept,) = waiting(pair.source)
        assert (kept.guest, kept.host) == (GUEST, 'other')
        assert 'Connection refused' in kept.reason
        assert kept.attempts > 1
        (said,) = [m for m in caplog.messages if 'has not followed' in m]
        assert kept.path in said
        del pair.source.copy
        pair.restart()
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE
        assert os.listdir(pair.source.path) == []

    def test_intervals_grow(self, pair) -> None:
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State())
        delays = [pair.source.sender.attempt(path, to()) for _ in range(12)]
        assert delays[0] == 10.0
        assert delays == sorted(delays)
        assert delays[-1] == delivery.LONGEST

    def test_it_is_removed_meanwhile(self, pair, caplog) -> None:
        """Its guest has been deleted: nothing is late."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State(copied=True))
        caplog.clear()

        def where(left: outbox.Departure) -> delivery.Target | None:
            shutil.rmtree(path)
            return to()(left)
        assert pair.source.sender.attempt(path, where) is None
        assert caplog.messages == []

    def test_a_file_of_it_is_missing(self, pair, caplog) -> None:
        """What else is there is kept, and it is said."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))

        def where(left: outbox.Departure) -> delivery.Target | None:
            raise FileNotFoundError('one is missing')
        assert pair.source.sender.attempt(path, where) is not None
        assert outbox.load_state(path).reason == 'one is missing'
        assert 'one is missing' in caplog.text

    def test_it_is_removed_by_who_carries_it(self, pair) -> None:
        """And by nobody else meanwhile."""
        host = pair.source
        path = host.kept.prepare(None, host.directory, departure())
        with files.locked(path, 0):
            host.kept.forget(None, path)
            assert outbox.load(path) is not None
        host.kept.forget(None, path)
        assert not os.path.exists(path)

    def test_by_hand_it_is_tried_after_who_tries_just_now(self, pair) -> None:
        """That may have begun before what is wrong was mended."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        del pair.source.copy
        pair.source.restart()
        made, before = pair.source.sender, outbox.load_state(path)
        with files.locked(path, 0):
            assert made.attempt(path, to()) == delivery.RETRY
            by_hand = threading.Thread(
                target=made.attempt, args=(path, to(), 60.0))
            by_hand.start()
            by_hand.join(0.2)
            assert outbox.load_state(path) == before
        by_hand.join()
        assert (before.copied, outbox.load_state(path).copied) == (
            False, True)

    def test_nova_has_another_driver_there(self, pair) -> None:
        """It is copied once, and asked for."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        copied = []
        copy = pair.source.copy

        def counted(source: str, *args: object, **kwargs: object) -> None:
            if not kwargs.get('receive'):
                copied.append(source)
            copy(source, *args, **kwargs)
        pair.source.copy = counted
        pair.source.restart()
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        for _ in range(delivery.ASKED):
            # It may yet be put in place.
            assert (outbox.load_state(path).attempts < delivery.ASKED) == (
                outbox.load_state(path).reason == '')
            pair.source.sender.attempt(path, to())
        (kept,) = waiting(pair.source)
        assert 'another driver' in kept.reason
        assert len(copied) == 1
        # It is upgraded.
        del pair.destination.place
        pair.restart()
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE

    def test_the_copy_is_deleted_there(self, pair) -> None:
        """While its directory is deleted, say: it is sent again."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        live(pair)
        staging = pathlib.Path(pair.destination.directory, logs.MOVING)
        (staging / 'record.json').unlink()
        del pair.destination.place
        pair.source.attempt(to())
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE

    def test_it_is_put_in_place_while_it_is_asked_for(self, pair) -> None:
        """It is not copied again, to lie there for nothing."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        live(pair)
        copied = []
        copy = pair.source.copy

        def upgraded(source: str, *args: object, **kwargs: object) -> None:
            if not kwargs.get('receive'):
                copied.append(source)
            elif logs.MOVING in source:
                del pair.destination.place
                pair.destination.kept.receive(
                    None, GUEST, pair.destination.place())
            copy(source, *args, **kwargs)
        pair.source.copy = upgraded
        pair.source.restart()
        (path,) = outbox.paths(str(pair.source.path))
        assert pair.source.sender.attempt(path, to()) is None
        assert copied == []
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE
        assert not os.path.lexists(
            os.path.join(pair.destination.directory, logs.MOVING))

    def test_the_instance_is_deleted(self, pair) -> None:
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        assert pair.source.sender.attempt(path, lambda _: None) is None
        assert os.listdir(pair.source.path) == []

    def test_the_guest_has_moved_on(self, pair) -> None:
        """Where it belongs would be a guess: it stays, and that is said."""
        refuse(pair.source)
        live(pair)
        del pair.source.copy
        pair.source.restart()
        (path,) = outbox.paths(str(pair.source.path))
        pair.source.sender.attempt(path, lambda _: delivery.Target(
            ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True))
        (kept,) = waiting(pair.source)
        assert 'went on to' in kept.reason
        # As it is if the host that it left had it: it says so for it.
        found = outbox.load(path)
        assert found is not None
        logs.note_received(pair.destination.directory, {found.id: ''})
        assert pair.source.sender.attempt(path, lambda _: delivery.Target(
            ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True)) is None
        assert waiting(pair.source) == []

    def test_the_guest_is_just_moving_on(self, pair, caplog) -> None:
        """Its directory there is gone, and nothing is copied to it."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        assert outbox.load_state(path).copied
        shutil.rmtree(pair.destination.directory)
        caplog.clear()
        for _ in range(3):
            assert pair.source.sender.attempt(path, lambda _: delivery.Target(
                ADDRESS, f'{ADDRESS}/{GUEST}', moving=True))
        assert not os.path.lexists(pair.destination.directory)
        # It has, before that was seen.
        refuse(pair.source, 'No such file')
        targets = iter([delivery.Target(ADDRESS, f'{ADDRESS}/{GUEST}'),
                        delivery.Elsewhere('it is here')])
        assert pair.source.sender.attempt(path, lambda _: next(targets))
        assert 'has not followed' not in caplog.text
        # It stays, and has nothing there.
        assert pair.source.sender.attempt(path, to())
        assert 'No such file' in caplog.text

    def test_what_had_been_copied_may_still_come_from_there(
            self, pair, caplog) -> None:
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State(copied=True))
        shutil.rmtree(pair.destination.directory)
        caplog.clear()
        for attempt in range(1, delivery.ASKED + 1):
            assert pair.source.sender.attempt(path, lambda _: delivery.Target(
                ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True))
            assert (attempt == delivery.ASKED) == (
                'before it had followed it' in caplog.text)

    def test_it_is_refused(self, pair) -> None:
        pathlib.Path(pair.destination.path, GUEST).mkdir()
        staged.as_now(pathlib.Path(pair.destination.directory),
                      {0: b'another'})
        inbox.receive(pair.destination.place())
        path = pair.source.kept.prepare(
            None, pair.source.directory, departure())
        pair.source.kept.leave(None, GUEST, path, pair.source.directory)
        pair.source.attempt(to())
        (kept,) = waiting(pair.source)
        assert 'another history' in kept.reason
        assert outbox.load_state(kept.path).final

    def test_two_processes_do_not_carry_one(self, pair) -> None:
        """The command and nova-compute."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        entered, go = threading.Event(), threading.Event()

        def hold(_: outbox.Departure) -> delivery.Elsewhere:
            entered.set()
            go.wait(60)
            return delivery.Elsewhere('x')
        thread = threading.Thread(target=pair.source.sender.attempt,
                                  args=[path, hold])
        thread.start()
        assert entered.wait(60)
        asked = []
        assert pair.source.sender.attempt(
            path, asked.append) == delivery.RETRY
        assert asked == []
        go.set()
        thread.join()

    def test_where_it_is_now_is_not_known(self, pair) -> None:
        """It stays, whatever nova's database says of the guest now."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        pauses = [pair.source.sender.attempt(
            path, lambda _: delivery.Elsewhere('unknown')) for _ in range(20)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == delivery.LONGEST
        (kept,) = waiting(pair.source)
        assert kept.reason == 'unknown'
        assert outbox.is_filled(path)

    def test_it_has_come_back_with_the_guest(self, pair, caplog) -> None:
        """The host that it went to had it, and was not asked in time."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State(copied=True))
        found = outbox.load(path)
        assert found is not None
        os.mkdir(pair.source.directory)
        caplog.clear()

        def on_its_way(_: outbox.Departure) -> delivery.Elsewhere:
            return delivery.Elsewhere('')
        assert pair.source.sender.attempt(path, on_its_way) == 1.0
        staged.as_now(pathlib.Path(pair.source.directory),
                      {0: BEFORE + THERE}, received=[found.id])
        inbox.receive(pair.source.place())
        assert pair.source.sender.attempt(path, on_its_way) is None
        assert waiting(pair.source) == []
        assert pair.source.text() == BEFORE + THERE
        assert 'has not followed' not in caplog.text

    def test_who_tries_just_now_is_not_waited_for(
            self, pair, monkeypatch) -> None:
        """There is a next time, and other guests have their turn."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        waited = []
        monkeypatch.setattr(files, 'time', types.SimpleNamespace(
            monotonic=itertools.count().__next__, sleep=waited.append))
        with files.locked(path, 0):
            assert pair.source.sender.attempt(path, to()) == delivery.RETRY
        assert waited == []

    def test_it_is_gone(self, pair) -> None:
        """Another process has carried it."""
        assert pair.source.sender.attempt(
            f'{pair.source.directory}_leaving.{staged.DEPARTURE}', to()
            ) is None

    @pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE,
                                        errno.EMFILE])
    def test_it_cannot_be_seen_just_now(self, pair, monkeypatch,
                                        number) -> None:
        """It is there again in a moment."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))

        def fail(path: str, *_: object, **__: object) -> int:
            raise OSError(number, os.strerror(number), path)
        with monkeypatch.context() as broken:
            broken.setattr(os, 'open', fail)
            broken.setattr(os, 'access', lambda *_, **__: False)
            assert pair.source.sender.attempt(path, to()) == delivery.RETRY
        assert outbox.is_filled(path)

    @pytest.mark.parametrize('call', ['open', 'pread'])
    def test_the_disk_does_not_give_an_older_file(
            self, pair, monkeypatch, call) -> None:
        """What is newer is not sent in its place, as the rest would be
        removed with it; nor is anything lost if it is mended, or given up.
        """
        older = f'{pair.source.directory}/console.log.0'
        broken = Broken(monkeypatch, call, os.stat(older).st_ino)
        live(pair)
        (kept,) = waiting(pair.source)
        assert ('console.log.0 cannot be read: Input/output error'
                if call == 'open' else
                f'(inode {broken.inode}) cannot be read: Input/output error'
                ) in kept.reason
        assert 'what is newer follows the guest then' in kept.reason
        assert pair.destination.text() == THERE
        broken.mended = True
        pair.restart()
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE

    def test_what_the_disk_does_not_give_is_given_up(
            self, pair, monkeypatch) -> None:
        older = f'{pair.source.directory}/console.log.0'
        Broken(monkeypatch, 'open', os.stat(older).st_ino)
        live(pair)
        (kept,) = waiting(pair.source)
        os.unlink(f'{kept.path}/console.log.0')
        pair.restart()
        assert waiting(pair.source) == []
        assert pair.destination.files() == BEFORE[8:] + THERE

    def test_where_to_is_not_written_down(self, pair) -> None:
        """Nothing is asked or removed until that is known."""
        path = outbox.fill(None, pair.source.directory)
        asked: list[outbox.Departure] = []
        assert pair.source.sender.attempt(
            path, asked.append) == delivery.LONGEST
        assert asked == []
        assert outbox.is_filled(path)

    def test_a_failure_that_nobody_foresaw(self, pair, caplog) -> None:
        """It is said with all that is known, and it is tried again."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        before = outbox.load_state(path)

        def fail(_: outbox.Departure) -> delivery.Target:
            raise ZeroDivisionError('no host')
        delays = [pair.source.sender.attempt(path, fail) for _ in range(2)]
        assert delays == sorted(set(delays))
        (kept,) = waiting(pair.source)
        assert (kept.reason, kept.attempts) == (
            "ZeroDivisionError('no host')", before.attempts + 2)
        assert 'Traceback' in caplog.text
        assert outbox.is_filled(path)

    @pytest.mark.parametrize(('host', 'named'), [
        ('other', 'other'), ('', ADDRESS)])
    def test_it_has_followed_after_all(self, pair, caplog, host,
                                       named) -> None:
        """Who was told that it had not is told."""
        caplog.set_level('INFO')
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        found = outbox.load(path)
        assert found is not None
        outbox.address(path, dataclasses.replace(found, host=host))
        del pair.source.copy
        pair.source.restart()
        pair.source.attempt(to())
        assert waiting(pair.source) == []
        (said,) = [m for m in caplog.messages if 'has followed' in m]
        assert GUEST in said
        assert said.endswith(f' {named}')

    def test_nobody_is_warned_where_nothing_is_wrong(self, pair,
                                                     caplog) -> None:
        live(pair)
        assert waiting(pair.source) == []
        assert [said for said in caplog.records
                if said.levelname != 'INFO'] == []

    def test_it_is_asked_for_soon_after_it_was_copied(self, pair) -> None:
        """However often the copy had failed before."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        del pair.source.copy
        pair.source.restart()
        assert pair.source.sender.attempt(path, to()) == delivery.ASK
        assert pair.source.sender.attempt(path, to()) == 2 * delivery.ASK

    def test_what_is_lost_there_again_and_again(self, pair) -> None:
        """It is copied less and less often."""
        pair.destination.place = lambda directory=None: inbox.Place(
            '/none', 1)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        delays = []
        for _ in range(3):
            shutil.rmtree(f'{pair.destination.directory}/{logs.MOVING}')
            delays.append(pair.source.sender.attempt(path, to()))
        assert delays == sorted(set(delays))

    def test_it_is_more_than_the_other_host_takes(self, pair, caplog) -> None:
        """Both say so, and it follows once that host takes more."""
        there = pair.destination
        there.place = lambda directory=None: inbox.Place(
            directory or there.directory, len(BEFORE) - 1)
        live(pair)
        for _ in range(delivery.ASKED):
            pair.source.attempt(to())
        (kept,) = waiting(pair.source)
        assert 'the log of nova-compute there says why' in kept.reason
        assert caplog.text.count(kept.reason) == 1
        # Nothing was copied since, until that host is there again.
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State(99, True, 'no route'))
        pair.source.sender.attempt(path, to())
        assert outbox.load_state(path).reason == ''
        assert (f'has {len(BEFORE)} bytes, and this host takes [virtlogd] '
                f'max_history_bytes = {len(BEFORE) - 1}') in caplog.text
        del there.place
        pair.source.attempt(to())
        assert waiting(pair.source) == []
        assert there.text() == BEFORE + THERE

    @pytest.mark.parametrize('state', [outbox.State(),
                                       outbox.State(copied=True)])
    def test_it_is_being_started_there(self, pair, state) -> None:
        """Its directory there is renamed: nothing is copied to it."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, state)
        del pair.source.copy
        pair.source.restart()
        pair.source.sender.attempt(path, lambda _: delivery.Target(
            ADDRESS, f'{ADDRESS}/{GUEST}', busy=True))
        assert outbox.load_state(path) == dataclasses.replace(
            state, attempts=1)
        assert not os.path.lexists(
            f'{pair.destination.directory}/{logs.MOVING}')

    def test_it_had_moved_on_before_the_first_try(self, pair) -> None:
        """The host that it went on to may have it: that is asked first."""
        refuse(pair.source)
        live(pair)
        del pair.source.copy
        pair.source.restart()
        (path,) = outbox.paths(str(pair.source.path))
        outbox.save_state(path, outbox.State())
        found = outbox.load(path)
        assert found is not None
        logs.note_received(pair.destination.directory, {found.id: ''})
        assert pair.source.sender.attempt(path, lambda _: delivery.Target(
            ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True)) is None
        assert waiting(pair.source) == []

    def test_starts_are_found_there(self, pair) -> None:
        """But for one whose place in the log is gone."""
        live_log = pathlib.Path(pair.source.directory, 'console.log')
        before = boot.read(pair.source.directory)
        lost = reader.read_tail(str(live_log), 1 << 20).position
        os.rename(f'{live_log}.0', f'{live_log}.1')
        os.rename(live_log, f'{live_log}.0')
        live_log.write_bytes(b'first\n')
        found = reader.read_tail(str(live_log), 1 << 20).position
        with live_log.open('ab') as file:
            file.write(b'second\n')
        os.unlink(f'{live_log}.0')
        os.unlink(f'{live_log}.1')
        assert before
        boot.write(pair.source.directory, [
            boot.Boot(1.0, {0: lost}), boot.Boot(2.0, {0: found})])
        live(pair)
        first, second = boot.read(pair.destination.directory)
        assert first.positions == {0: None}
        assert reader.read_from(
            pair.destination.live, second.positions[0], 1 << 20
            ).data == b'second\n'

    def test_nobody_else_reads_what_is_fetched(self, pair) -> None:
        modes = []
        copy = pair.source.copy

        def looked(source: str, destination: str, **kwargs: object) -> None:
            if kwargs['receive']:
                modes.append(os.stat(destination).st_mode & 0o777)
            copy(source, destination, **kwargs)
        pair.source.copy = looked
        pair.source.restart()
        live(pair)
        assert set(modes) == {0o700}

    def test_whole_or_cut(self, pair) -> None:
        """It is said of a history whether it is all that was written."""
        for limit, whole in ((1 << 20, True), (5, False)):
            path = outbox.make(pair.source.directory, departure())
            outbox.fill(path, pair.source.directory)
            staging = outbox.stage(
                path, limit, lambda log, limit: reader.read_tail(
                    log, limit).data, lambda *_: None)
            found = record.parse(
                pathlib.Path(staging, 'record.json').read_bytes(), 1 << 20)
            assert [one.whole for one in found.histories] == [whole]
            logs.move(path, pair.source.directory)
            outbox.discard(path)


class TestCopy:
    """What nova copies with is a command."""

    def delivered(self, pair: Pair, timeout: float, *command: str) -> str:
        """Why it was not delivered by a command that copies nothing."""
        def copy(*_: object, on_execute: Any, on_completion: Any,
                 **__: object) -> None:
            processutils.execute(*command, on_execute=on_execute,
                                 on_completion=on_completion)
        path = outbox.make(pair.source.directory, departure())
        outbox.fill(path, pair.source.directory)
        delivery.Delivery(copy, 1 << 20, timeout).attempt(path, to())
        return outbox.load_state(path).reason

    def test_one_that_hangs_is_ended(self, pair) -> None:
        begun = time.monotonic()
        assert 'took longer than [virtlogd] history_timeout = 0.01 s' in (
            self.delivered(pair, 0.01, 'sleep', '300'))
        assert time.monotonic() - begun < 200

    def test_what_it_says_is_one_line(self, pair) -> None:
        assert self.delivered(
            pair, 3600, 'sh', '-c', 'echo "lost\nconnection" >&2; exit 1'
            ) == f'the copy to {ADDRESS}: lost connection'

    def test_what_it_says_can_be_logged(self, pair) -> None:
        """The banner of another host, say; in whatever encoding."""
        said = self.delivered(
            pair, 3600, 'sh', '-c',
            r'printf "\033[2Jlost \377%05000d" 7 >&2; exit 1')
        assert said.startswith(f'the copy to {ADDRESS}: ?[2Jlost ?')
        assert said.isprintable()
        assert len(said) < 1100

    def test_it_is_not_there(self, pair) -> None:
        assert 'No such file' in self.delivered(pair, 3600, '/no/scp')

    def test_nobody_is_left_to_end_it(self, pair) -> None:
        """Nor does the end of nova-compute wait for it."""
        before, meanwhile = set(threading.enumerate()), set()

        def copy(*_: object, on_execute: Any, on_completion: Any,
                 **__: object) -> None:
            on_execute(None)
            meanwhile.update(
                thread for thread in threading.enumerate()
                if isinstance(thread, threading.Timer))
            on_completion(None)
        path = outbox.make(pair.source.directory, departure())
        outbox.fill(path, pair.source.directory)
        delivery.Delivery(copy, 1 << 20, 3600).attempt(path, to())
        (timer,) = meanwhile - before
        assert timer.daemon
        timer.join(60)
        assert not timer.is_alive()
