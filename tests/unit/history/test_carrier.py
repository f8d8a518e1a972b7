# SPDX-License-Identifier: Apache-2.0
"""An outbox is carried until what is in it is there."""

import threading
import time
import types
from collections.abc import Callable
from typing import Any

import pytest

from virtlogd_driver.history import carrier


class Held:
    """A thread that does not run by itself."""

    made: list['Held']

    def __init__(self, *, target: Callable[..., None], args: list[Any],
                 name: str, daemon: bool) -> None:
        self.daemon = daemon
        self.wake: threading.Event = args[1]
        self.delay: float = args[2]
        self.run = lambda: target(*args)
        self.made.append(self)

    def start(self) -> None:
        pass

    def join(self, timeout: float) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[Held]:
    Held.made = []
    monkeypatch.setattr(carrier, 'threading', types.SimpleNamespace(
        Thread=Held, Event=threading.Event, Lock=threading.Lock))
    return Held.made


def test_it_is_tried_until_it_is_done(held) -> None:
    """At once, if nothing else is said."""
    tries: list[str] = []
    delays = [0.0, 0.0, None]

    def attempt(path: str) -> float | None:
        tries.append(path)
        return delays.pop(0)
    made = carrier.Carrier(attempt)
    made.start('x')
    made.start('y', 7.0)
    assert [thread.delay for thread in held] == [0, 7.0]
    held[0].run()
    assert tries == ['x'] * 3


def test_there_can_be_no_more_threads(held, monkeypatch) -> None:
    """It is carried when somebody asks for it again."""
    def fail(_: Held) -> None:
        raise RuntimeError("can't start new thread")
    made = carrier.Carrier(lambda _: None)
    with monkeypatch.context() as full:
        full.setattr(Held, 'start', fail)
        with pytest.raises(RuntimeError):
            made.start('x')
    assert made.wait('x', 0)
    made.start('x')
    assert len(held) == 2
    made.stop()


def test_it_is_not_tried_once_it_is_stopped(held) -> None:
    tries: list[str] = []
    made = carrier.Carrier(lambda path: tries.append(path))
    made.start('x', 3600.0)
    made.stop()
    made.start('y')
    (thread,) = held
    assert thread.wake.is_set()
    thread.run()
    assert tries == []


def test_the_end_of_the_process_waits_for_none(held) -> None:
    """As it does for a moment in stop."""
    carrier.Carrier(lambda _: None).start('x')
    assert held[0].daemon


def test_what_is_being_tried_goes_on_for_a_moment(monkeypatch) -> None:
    monkeypatch.setattr(carrier, 'STOP_TIMEOUT', 60.0)
    entered = threading.Event()
    done = []

    def attempt(path: str) -> None:
        entered.set()
        deadline = time.monotonic() + 60
        while not made._stopped and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        done.append(path)
    made = carrier.Carrier(attempt)
    made.start('x')
    assert entered.wait(60)
    made.stop()
    assert done == ['x']


def test_who_waits_is_told_whether_it_is_done() -> None:
    go = threading.Event()
    made = carrier.Carrier(lambda _: go.wait(60) and None)
    made.start('x')
    assert not made.wait('x', 0.01)
    assert made.wait('another', 0.01)
    go.set()
    assert made.wait('x', 60)
    made.stop()


def test_no_guest_waits_for_another() -> None:
    go, done = threading.Event(), threading.Event()

    def attempt(path: str) -> float | None:
        if path == 'slow':
            go.wait(60)
        else:
            done.set()
        return None
    made = carrier.Carrier(attempt)
    made.start('slow')
    made.start('fast')
    assert done.wait(60)
    go.set()
    made.stop()


def test_now() -> None:
    """Not when its interval is over."""
    tries: list[str] = []
    once, twice = threading.Event(), threading.Event()

    def attempt(path: str) -> float | None:
        tries.append(path)
        (once if len(tries) == 1 else twice).set()
        return 3600.0
    made = carrier.Carrier(attempt)
    made.start('x')
    assert once.wait(60)
    made.start('x')
    assert twice.wait(60)
    made.stop()
    assert len(tries) == 2
