# SPDX-License-Identifier: Apache-2.0
"""What comes after a guest is put in place by a thread of its own."""

import threading
import time
import types
from collections.abc import Iterator

import pytest

from virtlogd_driver.history import arrivals


class Waited(threading.Event):
    """Notes for how long it is waited for, and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return self.is_set()


class Receiver:
    """Puts in place what comes, once it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.threads: list[threading.Thread] = []
        self.ended: list[threading.Event] = []

    def __call__(self, ended: threading.Event) -> None:
        self.threads.append(threading.current_thread())
        self.ended.append(ended)
        assert self.let.wait(60)

    def finish(self) -> None:
        self.let.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.finish()


def begin(made: arrivals.Arrivals, receiver: Receiver, uuid: str) -> None:
    """Start, and wait until its thread is there."""
    before = len(receiver.ended)
    made.start(uuid, receiver)
    deadline = time.monotonic() + 60
    while (len(receiver.ended) == before and time.monotonic() < deadline
            and any(thread.name == 'virtlogd-arrival'
                    for thread in threading.enumerate())):
        time.sleep(0.001)
    assert len(receiver.ended) > before


def test_a_guest_has_one_thread(receiver) -> None:
    made = arrivals.Arrivals()
    begin(made, receiver, 'a')
    made.start('a', receiver)
    begin(made, receiver, 'b')
    assert len(receiver.threads) == 2
    receiver.finish()
    # What comes later is put in place as well.
    begin(made, receiver, 'a')


def test_the_end_of_nova_compute_waits_for_none(receiver) -> None:
    made = arrivals.Arrivals()
    begin(made, receiver, 'a')
    begin(made, receiver, 'b')
    made.stop()
    assert all(thread.daemon for thread in receiver.threads)
    assert [ended.is_set() for ended in receiver.ended] == [True, True]


def test_a_guest_that_has_gone(receiver) -> None:
    """It has gone, and none is told of another."""
    made = arrivals.Arrivals()
    begin(made, receiver, 'a')
    begin(made, receiver, 'b')
    made.forget('a')
    made.forget('c')
    assert [ended.is_set() for ended in receiver.ended] == [True, False]


def test_a_guest_that_comes_again(receiver) -> None:
    """The thread of before, which ends late, does not end this one."""
    made, before = arrivals.Arrivals(), Receiver()
    begin(made, before, 'a')
    made.forget('a')
    begin(made, receiver, 'a')
    before.finish()
    made.start('a', receiver)
    made.forget('a')
    assert [ended.is_set() for ended in receiver.ended] == [True]


def test_a_reader_waits_until_it_is_in_place(receiver) -> None:
    made = arrivals.Arrivals()
    receiver.let.set()
    made.start('a', receiver)
    made.wait('a', 3600)
    made.wait('b', 3600)


def test_a_reader_waits_for_no_longer(receiver, monkeypatch) -> None:
    """It is counted since the guest has come."""
    clock = types.SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(arrivals, 'time', clock)
    made = arrivals.Arrivals()
    begin(made, receiver, 'a')
    made._guests['a'].done = done = Waited()
    for now in (100.0, 100.25, 107.0):
        clock.monotonic = lambda now=now: now
        made.wait('a', 1.0)
    assert done.seconds[:2] == [1.0, 0.75]
    assert not threading.Event().wait(done.seconds[2])
