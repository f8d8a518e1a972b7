# SPDX-License-Identifier: Apache-2.0
import threading
import time
from collections.abc import Iterator

import pytest

from virtlogd_driver.virtlogd import turns
from virtlogd_driver.virtlogd.turns import Turns

MOUNTS = ('/', '/nfs')


class Taker:
    """Its turn lasts until it may end."""

    def __init__(self, path: str = '/a', *, hangs: bool = False,
                 size: int = 0) -> None:
        self.path = path
        self.size = size
        self.entered, self.go = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.count = 0
        self.thread = 0
        if not hangs:
            self.go.set()

    def turn(self) -> None:
        self.count += 1
        self.thread = threading.get_ident()
        self.entered.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error


class Given:
    """Turns are given, and it is counted how many that were left ended."""

    def __init__(self) -> None:
        self.ended = threading.Semaphore(0)
        self.turns = Turns(self.ended.release, 100, patience=0.05,
                           mounted=lambda: MOUNTS)
        self.made: list[Taker] = []

    def make(self, path: str = '/a', *, hangs: bool = False,
             size: int = 0) -> Taker:
        self.made.append(Taker(path, hangs=hangs, size=size))
        return self.made[-1]

    def run(self, *takers: Taker) -> list[turns.Taker]:
        """Until those have had their turns that do not hang.

        On a busy machine their turns may be left, too.
        """
        done = self.turns.run(takers, lambda: False)
        while any(self.turns.has(taker) and taker.go.is_set()
                  for taker in takers) and not self.turns.interrupted:
            time.sleep(0.01)
            done += self.turns.run((), lambda: False)
        return done

    def end(self, taker: Taker) -> None:
        """Have a turn end that was left; others may have been, too."""
        taker.go.set()
        left = [taker]
        while taker in left:
            assert self.ended.acquire(timeout=60)
            left = [one for one, _ in self.turns.left()]


@pytest.fixture
def given() -> Iterator[Given]:
    made = Given()
    yield made
    made.turns.close()
    for taker in made.made:
        taker.go.set()


def at_most(count: int, before: set[threading.Thread]) -> None:
    """Wait until no more threads are left that have come since.

    Those end that are not needed. On a busy machine a turn that does not hang
    may be left, too; its thread ends with it. Threads of other tests come and
    go meanwhile.
    """
    def since() -> list[str]:
        return [thread.name for thread in threading.enumerate()
                if thread not in before and thread.name == 'turns']
    deadline = time.monotonic() + 30
    while len(since()) > count:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_each_has_a_turn(given: Given) -> None:
    given.turns._patience = 60.0
    takers = [given.make() for _ in range(20)]
    assert given.run(*takers) == takers
    assert given.run() == []
    assert given.run(takers[0]) == [takers[0]]
    assert [taker.count for taker in takers] == [2] + [1] * 19


def test_all_in_one_thread_as_long_as_none_hangs(given: Given) -> None:
    given.turns._patience = 60.0
    for _ in range(50):
        given.run(given.make(), given.make())
    assert len({taker.thread for taker in given.made}) == 1


def test_others_go_on_beside_one_that_hangs(given: Given) -> None:
    hung, others = given.make(hangs=True), [given.make() for _ in range(3)]
    assert set(given.run(others[0], hung, *others[1:])) == set(others)
    assert given.turns.has(hung)
    assert [taker for taker, _ in given.turns.left()] == [hung]
    begin = time.monotonic()
    assert set(given.run(*others)) == set(others)
    # Nobody waits for it again.
    assert time.monotonic() - begin < 30
    given.end(hung)
    assert given.run() == [hung]
    assert not given.turns.has(hung)
    assert given.turns.left() == []
    assert given.run(hung) == [hung]


def test_threads_end_with_the_turns_that_they_were_left_with(
        given: Given) -> None:
    before = set(threading.enumerate())
    for _ in range(5):
        hung = given.make(hangs=True)
        given.run(hung)
        given.end(hung)
        given.run()
    at_most(1, before)


def test_as_many_as_may_be_left_at_one_file_system(given: Given) -> None:
    hung = [given.make(f'/nfs/{n}/log', hangs=True)
            for n in range(turns.MOST_OF_ONE + 5)]
    here = given.make('/here/log')
    before = set(threading.enumerate())
    assert given.run(*hung, here) == [here]
    assert len(given.turns.left()) == turns.MOST_OF_ONE
    assert given.turns.held_back() == hung[turns.MOST_OF_ONE:]
    at_most(turns.MOST_OF_ONE + 1, before)
    assert given.run(here) == [here]
    assert all(given.turns.has(one) for one in hung)
    assert all(one.entered.wait(60) for one in hung[:turns.MOST_OF_ONE])
    assert [one.count for one in hung] == (
        [1] * turns.MOST_OF_ONE + [0] * 5)
    # As soon as one has ended the others are tried.
    for one in hung[turns.MOST_OF_ONE:]:
        one.go.set()
    given.end(hung[0])
    done = set(given.run())
    while len(done) < 6:
        time.sleep(0.01)
        done.update(given.run())
    assert done == {hung[0], *hung[turns.MOST_OF_ONE:]}
    assert given.turns.held_back() == []


def test_as_many_as_may_be_left_in_all(
        given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, 'MOST', 20)
    given.turns._mounted = lambda: ['/', *(f'/{n}' for n in range(30))]
    hung = [given.make(f'/{n}/log', hangs=True) for n in range(25)]
    given.run(*hung)
    assert len(given.turns.left()) == 20
    assert given.turns.held_back() == hung[20:]


def test_what_is_collected_is_fetched_before_more_is(given: Given) -> None:
    given.turns._patience = 60.0
    takers = [given.make(size=40) for _ in range(5)]
    assert given.run(*takers) == takers[:3]
    assert given.turns.interrupted
    assert given.run() == takers[3:]
    assert not given.turns.interrupted


def test_what_a_turn_raises_is_raised(given: Given) -> None:
    for hangs in (False, True):
        taker = given.make(hangs=hangs)
        taker.error = ValueError('in a turn')
        if hangs:
            given.run(taker)
            given.end(taker)
        with pytest.raises(ValueError, match='in a turn'):
            given.run(*(() if hangs else (taker,)))


def test_nobody_waits_longer_than_to_the_end(given: Given) -> None:
    hung = given.make(hangs=True)
    given.turns._patience = 60.0
    begin = time.monotonic()
    assert given.turns.run([hung], lambda: True) == []
    assert time.monotonic() - begin < 30


def test_a_last_turn(given: Given) -> None:
    last, hung = given.make(), given.make(hangs=True)
    given.run(hung)
    assert given.turns.finish(last, 60)
    assert not given.turns.finish(hung, 0.1)
    assert hung.entered.wait(60)
    assert last.count == hung.count == 1
    given.end(hung)
    # It has the turn that was to be its last one as well.
    assert given.turns.finish(hung, 60)
    assert hung.count == 2


def test_nothing_is_told_after_the_end(given: Given) -> None:
    hung = given.make(hangs=True)
    given.run(hung)
    assert not given.turns.close()
    hung.go.set()
    assert not given.ended.acquire(timeout=0.2)
    other = Given()
    other.turns._patience = 60.0
    other.run(other.make())
    assert other.turns.close()
