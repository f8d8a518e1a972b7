# SPDX-License-Identifier: Apache-2.0
"""What is promised to a guest is waited for, before it goes on."""

import dataclasses
import errno
import os
import pathlib
import shutil
import threading
from collections.abc import Callable

import pytest

from tests.unit.history import crash, staged
from tests.unit.history.hosts import GUEST, Host, Pair
from virtlogd_driver.console_log import chain
from virtlogd_driver.history import files, history, inbox, logs


class Clock:
    """Time passes as it is waited for, and things happen meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        #: When, in seconds from the beginning, and what.
        self.due: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if len(self.pauses) > 10_000:
            # Nothing catches it.
            raise crash.Killed
        self.pauses.append(seconds)
        self.now += seconds
        while self.due and self.passed >= self.due[0][0]:
            self.due.pop(0)[1]()

    @property
    def passed(self) -> float:
        return self.now - 1000.0


class Ended(threading.Event):
    """It is set as nobody waits any more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self._clock.sleep(timeout)
        return self.is_set()


class TestPromised:

    TIMEOUT = 60.0

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        made = Clock()
        monkeypatch.setattr(history, 'time', made)
        return made

    @pytest.fixture
    def host(self, pair: Pair) -> Host:
        return pair.source

    @pytest.fixture
    def there(self, host: Host) -> pathlib.Path:
        """A guest has come, and what it wrote before is promised."""
        host.kept = dataclasses.replace(host.kept, timeout=self.TIMEOUT)
        shutil.rmtree(host.directory)
        path = pathlib.Path(host.directory)
        path.mkdir()
        chain.begin(str(path / 'console.g1.log'))
        return path

    @staticmethod
    def wait(host: Host, ended: threading.Event | None = None, *,
             promised: bool = True, **may_come: bool) -> None:
        host.kept.wait_until_received(
            None, GUEST, host.place(),
            ['console.g1.log'] if promised else [], ended, **may_come)

    @staticmethod
    def come(there: pathlib.Path) -> None:
        staged.as_now(there, {0: b'then'})

    @staticmethod
    def has_come(there: pathlib.Path) -> bool:
        return (there / 'console.g1.history').exists()

    def test_it_is_waited_for(self, host, there, clock) -> None:
        clock.due = [(self.TIMEOUT - 1, lambda: self.come(there))]
        self.wait(host)
        assert self.has_come(there)
        assert clock.passed < self.TIMEOUT

    def test_in_vain_once(self, host, there, clock) -> None:
        self.wait(host)
        assert (self.TIMEOUT < clock.passed
                < self.TIMEOUT + 2 * history.LONGEST_LOOK)
        assert 'waited for in vain' in logs.received(str(there))['-']
        clock.pauses.clear()
        self.wait(host)
        assert clock.pauses == []

    def test_it_is_looked_for_less_and_less_often(self, host, there,
                                                  clock) -> None:
        """Seldom once it is late; and it is put in place even then."""
        clock.due = [(100 * self.TIMEOUT, lambda: self.come(there))]
        self.wait(host, Ended(clock))
        assert self.has_come(there)
        assert clock.pauses == sorted(clock.pauses)
        in_time = [pause for pause in clock.pauses
                   if pause <= history.LONGEST_LOOK]
        assert in_time[0] < in_time[-1]
        assert self.TIMEOUT <= sum(in_time) <= self.TIMEOUT + 1
        assert clock.pauses[-1] == history.LATE_LOOK

    def test_nobody_waits_any_more(self, host, there, clock) -> None:
        """As the guest goes on: nothing is given up for that."""
        ended = Ended(clock)
        clock.due = [(10.0, ended.set)]
        self.wait(host, ended)
        assert 10 <= clock.passed <= 10 + history.LONGEST_LOOK
        assert logs.received(str(there)) == {}

    def test_nothing_is_promised(self, host, there, clock) -> None:
        self.wait(host, promised=False)
        assert clock.pauses == []

    def test_something_may_come(self, host, there, clock) -> None:
        """From a host whose guests have no log: for so long, no longer."""
        self.wait(host, Ended(clock), promised=False, may_come=True)
        assert (self.TIMEOUT <= clock.passed
                < self.TIMEOUT + 2 * history.LONGEST_LOOK)
        assert logs.received(str(there)) == {}

    def test_something_has_come(self, host, there, clock) -> None:
        """Nothing else may."""
        clock.due = [(10.0, lambda: self.come(there))]
        self.wait(host, Ended(clock), promised=False, may_come=True)
        assert self.has_come(there)
        assert clock.passed <= 10 + history.LONGEST_LOOK

    def test_what_comes_first_is_none(self, host, there, clock,
                                      caplog) -> None:
        """It is removed, and what is promised still waited for."""
        def come() -> None:
            staging = there / logs.MOVING
            staging.mkdir()
            (staging / 'record.json').mkdir()
        clock.due = [(10.0, come), (20.0, lambda: self.come(there))]
        self.wait(host)
        (said,) = caplog.messages
        assert 'is not put in place' in said
        assert self.has_come(there)

    def test_it_cannot_be_put_in_place(self, host, there, clock, caplog,
                                       monkeypatch) -> None:
        """That is said once, and not tried again at once."""
        tried = []

        def fail(place: inbox.Place) -> list[str]:
            tried.append(place)
            if len(tried) > 1:
                raise crash.Killed
            raise OSError(errno.ENOSPC, 'No space left on device')
        self.come(there)
        monkeypatch.setattr(inbox, 'receive', fail)
        self.wait(host)
        (said,) = caplog.messages
        assert 'No space left on device' in said

    @pytest.mark.parametrize('nobody', [True, False])
    def test_whether_it_comes_cannot_be_seen(self, host, there, clock, caplog,
                                             monkeypatch, nobody) -> None:
        """The disk gives the names, and nothing of what they are of."""
        tried = []

        def fail(path: str, *_: object, **__: object) -> bytes:
            tried.append(path)
            if len(tried) > 100:
                raise crash.Killed
            raise OSError(errno.EIO, 'Input/output error', path)
        monkeypatch.setattr(files, 'read', fail)
        monkeypatch.setattr(os, 'unlink', fail)
        self.wait(host, None if nobody else Ended(clock))
        (said,) = caplog.messages
        assert 'Input/output error' in said

    def test_nothing_is_digested_while_it_comes(self, host, there, clock,
                                                monkeypatch) -> None:
        """Names and sizes are looked at; what has come is read once."""
        self.come(there)
        listed = there / logs.MOVING / 'record.json'
        whole = listed.read_bytes()
        listed.unlink()
        digested = []
        digest = inbox._has_digest
        monkeypatch.setattr(inbox, '_has_digest', lambda *args: (
            digested.append(args), digest(*args))[1])
        clock.due = [(10.0, lambda: listed.write_bytes(whole))]
        self.wait(host)
        assert len(digested) == 1
        assert self.has_come(there)
