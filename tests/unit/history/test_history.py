# SPDX-License-Identifier: Apache-2.0
"""A copy is tried again until the other host has the history."""

import os
import pathlib
import shutil
import threading
import time

import pytest
from oslo_concurrency import processutils

from tests.unit.history import staged
from tests.unit.history.test_crash_points import (
    ADDRESS,
    BEFORE,
    GUEST,
    THERE,
    Host,
    Pair,
    cold,
    departure,
    fill,
    finish_revert,
    live,
    to,
)
from tests.unit.virtlogd.fake_virtlogd import FakeVirtlogd
from virtlogd_driver.console_log import chain
from virtlogd_driver.history import (
    carrier,
    exclusive,
    files,
    history,
    inbox,
    logs,
    outbox,
)
from virtlogd_driver.virtlogd import privileged


@pytest.fixture(autouse=True)
def virtlogd(monkeypatch) -> FakeVirtlogd:
    fake = FakeVirtlogd()
    monkeypatch.setattr(privileged, 'probe', fake)
    monkeypatch.setattr(history, 'CLOSING', 0.02)
    return fake


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> Pair:
    made = Pair(tmp_path / 'pair')
    fill(made.source.directory)
    return made


def waiting(host: Host) -> list[outbox.Waiting]:
    return outbox.waiting(str(host.path))


def refuse(host: Host, reason: str = 'Connection refused') -> None:
    def copy(*_: object, **__: object) -> None:
        raise processutils.ProcessExecutionError(stderr=reason)
    host.copy = copy
    host.restart()


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
        delays = [pair.source.kept.attempt(path, to()) for _ in range(12)]
        assert delays[0] == 10.0
        assert delays == sorted(delays)
        assert delays[-1] == history.LONGEST

    def test_by_hand_it_is_tried_after_who_tries_just_now(self, pair) -> None:
        """That may have begun before what is wrong was mended."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        del pair.source.copy
        pair.source.restart()
        kept, before = pair.source.kept, outbox.load_state(path)
        with files.locked(path, 0):
            assert kept.attempt(path, to()) == history.RETRY
            by_hand = threading.Thread(
                target=kept.attempt, args=(path, to(), 60.0))
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
        for _ in range(8):
            pair.source.kept.attempt(path, to())
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
        assert pair.source.kept.attempt(path, to()) is None
        assert copied == []
        assert waiting(pair.source) == []
        assert pair.destination.text() == BEFORE + THERE
        assert not os.path.lexists(
            os.path.join(pair.destination.directory, logs.MOVING))

    def test_the_instance_is_deleted(self, pair) -> None:
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        assert pair.source.kept.attempt(path, lambda _: None) is None
        assert os.listdir(pair.source.path) == []

    def test_the_guest_has_moved_on(self, pair) -> None:
        """Where it belongs would be a guess: it stays, and that is said."""
        refuse(pair.source)
        live(pair)
        del pair.source.copy
        pair.source.restart()
        (path,) = outbox.paths(str(pair.source.path))
        pair.source.kept.attempt(path, lambda _: history.Target(
            ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True))
        (kept,) = waiting(pair.source)
        assert 'went on to' in kept.reason
        # As it is if the host that it left had it: it says so for it.
        found = outbox.load(path)
        assert found is not None
        logs.note_received(pair.destination.directory, {found.id: ''})
        assert pair.source.kept.attempt(path, lambda _: history.Target(
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
            assert pair.source.kept.attempt(path, lambda _: history.Target(
                ADDRESS, f'{ADDRESS}/{GUEST}', moving=True))
        assert not os.path.lexists(pair.destination.directory)
        # It has, before that was seen.
        refuse(pair.source, 'No such file')
        targets = iter([history.Target(ADDRESS, f'{ADDRESS}/{GUEST}'),
                        history.Elsewhere('it is here')])
        assert pair.source.kept.attempt(path, lambda _: next(targets))
        assert 'has not followed' not in caplog.text
        # It stays, and has nothing there.
        assert pair.source.kept.attempt(path, to())
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
        for attempt in range(1, history.ASKED + 1):
            assert pair.source.kept.attempt(path, lambda _: history.Target(
                ADDRESS, f'{ADDRESS}/{GUEST}', moved_on=True))
            assert (attempt == history.ASKED) == (
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

        def hold(_: outbox.Departure) -> history.Elsewhere:
            entered.set()
            go.wait()
            return history.Elsewhere('x')
        thread = threading.Thread(target=pair.source.kept.attempt,
                                  args=[path, hold])
        thread.start()
        entered.wait()
        asked = []
        assert pair.source.kept.attempt(path, asked.append) == history.RETRY
        assert asked == []
        go.set()
        thread.join()

    def test_it_stays(self, pair) -> None:
        path = pair.source.kept.prepare(
            None, pair.source.directory, departure())
        assert path is not None
        assert waiting(pair.source) == []
        pair.source.kept.forget(None, path)
        assert os.listdir(pair.source.path) == [GUEST]

    def test_it_comes_back_from_novas_own_driver(self, pair) -> None:
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        open(f'{pair.source.directory}/console.log', 'x').close()
        pair.source.kept.take_back(None, GUEST, pair.source.directory, [])
        assert pair.source.text() == BEFORE
        assert waiting(pair.source) == []

    def test_what_finds_no_place_stays_in_the_outbox(
            self, pair, monkeypatch) -> None:
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        monkeypatch.setattr(logs, 'move', lambda *_: False)
        pair.source.kept.take_back(None, GUEST, pair.source.directory, [])
        (kept,) = waiting(pair.source)
        assert outbox.is_filled(kept.path)

    def test_where_it_is_now_is_not_known(self, pair) -> None:
        """It stays, whatever nova's database says of the guest now."""
        refuse(pair.source)
        live(pair)
        (path,) = outbox.paths(str(pair.source.path))
        pauses = [pair.source.kept.attempt(
            path, lambda _: history.Elsewhere('unknown')) for _ in range(20)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == history.LONGEST
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

        def on_its_way(_: outbox.Departure) -> history.Elsewhere:
            return history.Elsewhere('')
        assert pair.source.kept.attempt(path, on_its_way) == 1.0
        staged.as_now(pathlib.Path(pair.source.directory),
                      {0: BEFORE + THERE}, received=[found.id])
        inbox.receive(pair.source.place())
        assert pair.source.kept.attempt(path, on_its_way) is None
        assert waiting(pair.source) == []
        assert pair.source.text() == BEFORE + THERE
        assert 'has not followed' not in caplog.text

    def test_not_from_this_one(self, pair) -> None:
        """What it wrote there comes as well."""
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        chain.begin(f'{pair.source.directory}/console.g1.log')
        pair.source.kept.take_back(
            None, GUEST, pair.source.directory, ['console.g1.log'])
        assert len(waiting(pair.source)) == 1

    def test_whole_or_cut(self, pair) -> None:
        """It is said of a history whether it is all that was written."""
        for limit, whole in ((1 << 20, True), (5, False)):
            path = outbox.make(pair.source.directory, departure())
            outbox.fill(path, pair.source.directory)
            staging = outbox.stage(
                path, limit, lambda log, limit: history.reader.read_tail(
                    log, limit).data, lambda *_: None)
            found = history.record.parse(
                pathlib.Path(staging, 'record.json').read_bytes(), 1 << 20)
            assert [one.whole for one in found.histories] == [whole]
            logs.move(path, pair.source.directory)
            outbox.discard(path)


class TestRevert:

    def test_it_comes_back(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_comes_late(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == b'back\n'
        there.attempt(to())
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_wrote_nothing_there(self, pair) -> None:
        cold(pair)
        there = pair.destination
        os.truncate(f'{there.directory}/console.g1.log', 0)
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + b'back\n'


class TestArrival:

    def test_it_is_waited_for(self, pair) -> None:
        there = pathlib.Path(pair.source.directory)
        for path in there.iterdir():
            path.unlink()
        chain.begin(str(there / 'console.g1.log'))
        pair.source.kept = history.History(
            pair.source.copy, 1 << 20, 60, '/no')
        late = threading.Timer(0.2, staged.as_now, [there, {0: b'then'}])
        late.start()
        pair.source.kept.wait_until_received(
            None, GUEST, pair.source.place(), ['console.g1.log'])
        assert (there / 'console.g1.history').read_bytes() == b'then'

    def test_in_vain_once(self, pair) -> None:
        there = pathlib.Path(pair.source.directory)
        for path in there.iterdir():
            path.unlink()
        chain.begin(str(there / 'console.g1.log'))
        for _ in range(2):
            pair.source.kept.wait_until_received(
                None, GUEST, pair.source.place(), ['console.g1.log'])
        assert 'waited for in vain' in logs.received(str(there))['-']

    def test_nothing_is_digested_while_it_comes(self, pair,
                                                monkeypatch) -> None:
        """Names and sizes are looked at; what has come is read once."""
        there = pathlib.Path(pair.source.directory)
        (there / 'console.log').unlink()
        listed = staged.as_now(there, {0: b'then'})
        whole = listed.read_bytes()
        listed.unlink()
        digested = []
        digest = inbox._has_digest
        monkeypatch.setattr(inbox, '_has_digest', lambda *args: (
            digested.append(args), digest(*args))[1])
        threading.Timer(0.3, listed.write_bytes, [whole]).start()
        pair.source.kept = history.History(
            pair.source.copy, 1 << 20, 60, '/no')
        pair.source.kept.wait_until_received(
            None, GUEST, pair.source.place(), [])
        assert len(digested) == 1

    def test_arrivals(self) -> None:
        arrivals = history.Arrivals()
        ended: list[threading.Event] = []
        started = threading.Event()

        def settle(event: threading.Event) -> None:
            ended.append(event)
            started.set()
            event.wait()
        arrivals.start('a', settle)
        arrivals.start('a', settle)
        started.wait()
        arrivals.wait('b', 60)
        arrivals.wait('a', 0.01)
        arrivals.forget('a')
        arrivals.stop()
        assert len(ended) == 1


class TestVirtlogdIsNotDone:
    """The guest has ended, and its log may be written still."""

    def test_what_it_writes_goes_where_the_file_goes(
            self, pair, virtlogd) -> None:
        log = f'{pair.source.directory}/console.log'
        virtlogd.open.add(log)
        with open(log, 'ab') as late:
            live(pair)
            late.write(b'late')
        assert virtlogd.open == {log}
        assert waiting(pair.source) == []


class TestCarrier:

    def test_until_it_is_done(self) -> None:
        tries = []
        done = threading.Event()

        def attempt(path: str) -> float | None:
            tries.append(path)
            if len(tries) < 3:
                return 0.0
            done.set()
            return None
        made = carrier.Carrier(attempt)
        made.start('x')
        assert done.wait(60)
        assert made.wait('x', 60)
        assert tries == ['x'] * 3
        made.stop()

    def test_no_guest_waits_for_another(self) -> None:
        go, done = threading.Event(), threading.Event()

        def attempt(path: str) -> float | None:
            if path == 'slow':
                go.wait()
            else:
                done.set()
            return None
        made = carrier.Carrier(attempt)
        made.start('slow')
        made.start('fast')
        assert done.wait(60)
        go.set()
        made.stop()

    def test_now(self) -> None:
        """Not when its interval is over."""
        tries: list[str] = []
        twice = threading.Event()

        def attempt(path: str) -> float | None:
            tries.append(path)
            if len(tries) == 2:
                twice.set()
            return 3600.0
        made = carrier.Carrier(attempt)
        made.start('x')
        while not tries:
            time.sleep(0.001)
        made.start('x')
        assert twice.wait(60)
        made.stop()
        made.start('x')
        assert len(tries) == 2


def test_exclusive() -> None:
    guests = exclusive.Exclusive()
    with guests.guest('a', 0) as got:
        assert got
        with guests.guest('a', 0) as again:
            assert again
        found = []

        def other() -> None:
            for uuid in ('a', 'b'):
                with guests.guest(uuid, 0) as had:
                    found.append(had)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found == [False, True]
    assert guests._guests == {}


def test_either_all_logs_are_begun_or_none(tmp_path, monkeypatch) -> None:
    paths = [str(tmp_path / f'console.port{n}.g1.log') for n in (1, 2, 3)]
    (tmp_path / 'console.port1.g1.log').write_bytes(b'is there')
    begin = chain.begin

    def fail(path: str) -> None:
        if path == paths[2]:
            raise PermissionError
        begin(path)
    monkeypatch.setattr(chain, 'begin', fail)
    with pytest.raises(PermissionError):
        history.begin_logs(paths)
    assert os.listdir(tmp_path) == ['console.port1.g1.log']
    monkeypatch.undo()
    history.begin_logs(paths)
    assert len(os.listdir(tmp_path)) == 3
