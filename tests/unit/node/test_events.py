# SPDX-License-Identifier: Apache-2.0
"""libvirt's events tell of guests, also while libvirt fails for one."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import libvirt
import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.node import events
from virtlogd_driver.node.events import Report, Running, Watch
from virtlogd_driver.virtlogd import turns


class Domain:
    """A guest that runs, or that libvirt fails for."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self.code: int | None = None
        self.run = 1
        self.persistent = 1

    def UUIDString(self) -> str:
        return self._uuid

    def name(self) -> str:
        return f'name of {self._uuid}'

    def ID(self) -> int:
        if self.code is not None:
            raise fake_libvirt.real_error(self.code)
        return self.run

    def XMLDesc(self) -> str:
        return '<domain/>'

    def state(self) -> tuple[int, int]:
        return (libvirt.VIR_DOMAIN_RUNNING,
                libvirt.VIR_DOMAIN_RUNNING_BOOTED)

    def isPersistent(self) -> int:
        return self.persistent


class Connection:
    def __init__(self, *domains: Domain) -> None:
        self._domains = {domain.UUIDString(): domain for domain in domains}
        self.alive = 1

    def isAlive(self) -> int:
        return self.alive

    def listAllDomains(self, flags: int) -> list[Domain]:
        assert flags in (0, libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return list(self._domains.values())

    def lookupByUUIDString(self, uuid: str) -> Domain:
        if uuid not in self._domains:
            raise fake_libvirt.real_error(libvirt.VIR_ERR_NO_DOMAIN)
        return self._domains[uuid]


@pytest.fixture
def reports() -> list[Report]:
    return []


@pytest.fixture
def watch(reports: list[Report]) -> Any:
    return Watch('test:///default', 60, reports.append)


def _runs(reports: list[Report]) -> dict[str, int]:
    guests = reports[-1].guests
    assert guests is not None
    return {uuid: guest.run for uuid, guest in guests.items()}


def test_one_that_libvirt_fails_for_stays_as_it_was(watch, reports) -> None:
    busy, other = Domain('1'), Domain('2')
    connection = Connection(busy, other)
    watch._look_at_all(connection)
    busy.code = libvirt.VIR_ERR_OPERATION_TIMEOUT
    other.run = 7
    watch._look_at_all(connection)
    assert _runs(reports) == {'1': 1, '2': 7}
    other.run = 8
    for uuid in ('1', '2', 'gone'):
        watch.look_at(uuid)
    watch._look_at_changed(connection)
    assert _runs(reports) == {'1': 1, '2': 8}
    assert reports[-1].looked_at == {'1', '2', 'gone'}


@pytest.fixture
def all_watched(reports: list[Report]) -> Watch:
    return Watch('test:///default', 60, reports.append, everything=True)


STOPPED = libvirt.VIR_DOMAIN_EVENT_STOPPED


def test_one_that_was_migrated_away_is_here_no_more(
        all_watched, reports) -> None:
    """libvirt has it for a moment, or for ever, and then says nothing."""
    moved, stopped = Domain('1'), Domain('2')
    moved.run = stopped.run = -1
    connection = Connection(moved, stopped)
    all_watched._happened(None, moved, STOPPED,
                          libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED, None)
    all_watched._happened(None, stopped, STOPPED,
                          libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, None)
    all_watched._look_at_changed(connection)
    assert _runs(reports) == {'2': -1}
    all_watched._look_at_all(connection)
    assert _runs(reports) == {'2': -1}
    assert reports[-1].unknown == frozenset()
    # It comes back.
    moved.run = 4
    all_watched._happened(None, moved, libvirt.VIR_DOMAIN_EVENT_STARTED,
                          libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED, None)
    all_watched._look_at_changed(connection)
    moved.run = -1
    all_watched._look_at_all(connection)
    assert _runs(reports) == {'1': -1, '2': -1}


def test_who_was_migrated_away_is_not_kept_for_ever(all_watched) -> None:
    all_watched._happened(None, Domain('1'), STOPPED,
                          libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED, None)
    all_watched._look_at_all(Connection())
    assert not all_watched._moved


def test_one_that_is_not_persistent_has_gone_when_it_stops(
        all_watched, reports) -> None:
    """As on a host to which a migration has failed."""
    guest = Domain('1')
    guest.persistent = 0
    all_watched._look_at_all(Connection(guest))
    assert _runs(reports) == {'1': 1}
    guest.run = -1
    all_watched.look_at('1')
    all_watched._look_at_changed(Connection(guest))
    assert _runs(reports) == {}


def test_one_that_libvirt_fails_for_is_looked_at_again(
        watch, reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, '_PAUSE', 0.01)
    guest = Domain('1')
    guest.code = libvirt.VIR_ERR_OPERATION_TIMEOUT

    async def follow() -> None:
        watch._wake = asyncio.Event()
        watch._loop = asyncio.get_running_loop()
        later = mock.patch.object(watch._loop, 'call_later',
                                  wraps=watch._loop.call_later)
        with later as asked:
            for _ in range(3):
                watch._look_at_all(Connection(guest))
        # However often it fails meanwhile.
        assert asked.call_count == 1
        guest.code = None
        await watch._wake.wait()
        watch._look_at_changed(Connection(guest))
    asyncio.run(asyncio.wait_for(follow(), 60))
    assert _runs(reports) == {'1': 1}


def test_one_that_was_never_seen_is_left_out(watch, reports) -> None:
    busy = Domain('1')
    busy.code = libvirt.VIR_ERR_OPERATION_TIMEOUT
    watch._look_at_all(Connection(busy, Domain('2')))
    assert _runs(reports) == {'2': 1}


class Hanging(Domain):
    """A guest that libvirt does not answer for, until it may."""

    def __init__(self, uuid: str) -> None:
        super().__init__(uuid)
        self.go = threading.Event()

    def XMLDesc(self) -> str:
        assert self.go.wait(60)
        return super().XMLDesc()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt has little time for a guest.

    On a busy machine it is too little for one that it answers for, too: that
    one is told of after a later look.
    """
    monkeypatch.setattr(events, 'PATIENCE', 0.05)


def until(holds: Callable[[], bool], look: Callable[[], None]) -> None:
    """Look until something holds."""
    deadline = time.monotonic() + 60
    look()
    while not holds():
        assert time.monotonic() < deadline
        look()


def at_most(count: int, before: set[threading.Thread]) -> None:
    """Wait until no more threads of turns are left that have come since.

    Those end that are not needed; threads of other tests come and go.
    """
    until(lambda: sum(thread not in before and thread.name == 'turns'
                      for thread in threading.enumerate()) <= count,
          lambda: time.sleep(0.01))


def test_one_that_libvirt_does_not_answer_for(soon, watch, reports) -> None:
    """All others are told of; it is as it was, or not known yet."""
    before = set(threading.enumerate())
    hung, other = Hanging('1'), Domain('2')
    connection = Connection(hung, other)

    def look_at_both() -> None:
        for uuid in ('1', '2'):
            watch.look_at(uuid)
        watch._look_at_changed(connection)

    for run in (1, 2):
        other.run = run
        until(lambda run=run: _runs(reports) == {'2': run},
              lambda: watch._look_at_all(connection))
        assert reports[-1].unknown == {'1'}
        assert not reports[-1].tells_of('1')
        assert reports[-1].tells_of('2')
        assert reports[-1].tells_of('gone')
    other.run = 3
    until(lambda: _runs(reports) == {'2': 3}, look_at_both)
    assert not reports[-1].tells_of('1')
    assert not reports[-1].tells_of('gone')
    assert reports[-1].tells_of('2')
    # The one that waits for it, and the one for the others.
    at_most(2, before)
    hung.go.set()
    until(lambda: _runs(reports) == {'1': 1, '2': 3},
          lambda: watch._look_at_changed(connection))
    assert reports[-1].unknown == frozenset()
    assert reports[-1].tells_of('1')
    # It is known now, and stays so while it hangs again.
    hung.go.clear()
    hung.run, other.run = 9, 4
    until(lambda: _runs(reports) == {'1': 1, '2': 4},
          lambda: watch._look_at_all(connection))
    assert reports[-1].unknown == frozenset()
    hung.go.set()


def test_one_thread_is_left_with_one_that_hangs(soon, watch) -> None:
    hung = Hanging('1')
    connection = Connection(hung, Domain('2'))
    watch._look_at_all(connection)
    before = set(threading.enumerate())
    for _ in range(5):
        watch.look_at('1')
        watch._look_at_changed(connection)
        watch._look_at_all(connection)
    at_most(1, before)
    hung.go.set()


def test_libvirt_does_not_answer_at_all(
        watch, reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, 'LONGEST', 0.2)
    go = threading.Event()
    connection = Connection(Domain('1'))
    connection.listAllDomains = lambda flags: go.wait(60)
    with pytest.raises(exception.HostError, match='has not answered for'):
        watch._look_at_all(connection)
    go.set()
    assert reports == []


def test_one_that_was_held_back_is_told_of_later(
        soon, watch, reports, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt was asked for all guests while many did not answer."""
    hung = [Hanging(str(number)) for number in range(turns.MOST_OF_ONE)]
    connection = Connection(*hung, Domain('other'))
    until(lambda: len(watch._turns.left()) == len(hung),
          lambda: watch._look_at_all(connection))
    monkeypatch.setattr(events, 'LONGEST', 0.01)
    with pytest.raises(exception.HostError, match='has not answered for'):
        watch._look_at_all(connection)
    for one in hung:
        one.go.set()
    monkeypatch.setattr(events, 'LONGEST', 60)
    until(lambda: not reports[-1].unknown,
          lambda: watch._look_at_all(connection))
    assert _runs(reports)['other'] == 1


def test_what_a_connection_has_answered_is_old_once_it_is_lost(
        watch, reports) -> None:
    lost, other = Domain('1'), Domain('2')
    connection = Connection(lost, other)
    watch._look_at_all(connection)
    # libvirtd ends amid a look at all guests, and comes back.
    lost.code = libvirt.VIR_ERR_INTERNAL_ERROR
    connection.alive = 0
    with pytest.raises(exception.HostError):
        watch._look_at_all(connection)
    lost.code = None
    other.run = 5
    watch._look_at_all(Connection(lost, other))
    assert _runs(reports) == {'1': 1, '2': 5}


def test_libvirt_itself_is_gone(watch, reports) -> None:
    lost = Domain('1')
    lost.code = libvirt.VIR_ERR_INTERNAL_ERROR
    connection = Connection(lost)
    connection.alive = 0
    with pytest.raises(exception.HostError):
        watch._look_at_all(connection)
    assert reports == []


def test_one_that_has_ended(watch, reports) -> None:
    ended = Domain('1')
    connection = Connection(ended)
    watch._look_at_all(connection)
    assert reports[-1].guests == {
        '1': Running('1', 'name of 1', 1, '<domain/>')}
    ended.run = -1
    watch.look_at('1')
    watch._look_at_changed(connection)
    assert _runs(reports) == {}


class Counted(Connection):
    """A connection that is open while anybody has it, as libvirt's own."""

    users = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.users += 1

    def listAllDomains(self, flags: int) -> list[Domain]:
        self.alive = 0
        return super().listAllDomains(flags)

    def registerCloseCallback(self, function: Any, opaque: Any) -> None:
        Counted.users += 1

    def setKeepAlive(self, interval: int, count: int) -> None:
        raise fake_libvirt.real_error(libvirt.VIR_ERR_NO_SUPPORT)

    def unregisterCloseCallback(self) -> None:
        Counted.users -= 1

    def domainEventRegisterAny(self, domain: Any, event: int, function: Any,
                               opaque: Any) -> int:
        Counted.users += 1
        return 0

    def domainEventDeregisterAny(self, callback: int) -> None:
        assert callback == 0
        Counted.users -= 1
        raise fake_libvirt.real_error(libvirt.VIR_ERR_RPC)

    def close(self) -> int:
        Counted.users -= 1
        return Counted.users


def test_nothing_keeps_a_connection_that_was_lost(
        monkeypatch: pytest.MonkeyPatch, reports) -> None:
    monkeypatch.setattr(libvirt, 'openReadOnly', lambda uri: Counted())
    watch = Watch('test:///default', 0, reports.append)

    async def follow() -> None:
        watch._wake = asyncio.Event()
        await watch._follow()

    with pytest.raises(exception.HostError, match='was lost'):
        asyncio.run(follow())
    assert Counted.users == 0
