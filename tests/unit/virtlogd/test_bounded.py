# SPDX-License-Identifier: Apache-2.0
import threading
from collections.abc import Iterator

import pytest

from virtlogd_driver.virtlogd.bounded import Calls, NoAnswer


class Hang:
    """A call that does not return until it is let go."""

    def __init__(self) -> None:
        self.began, self._go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.began.set()
        self._go.wait(60)
        return 'late'

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def hang() -> Iterator[Hang]:
    made = Hang()
    yield made
    made.let_go()


def test_what_is_returned_and_raised_is_passed_on() -> None:
    calls = Calls()
    assert calls.call('a', 60, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        calls.call('a', 60, divmod, 7, 0)
    assert calls.call('a', 60, divmod, 7, 2) == (3, 1)


def test_what_does_not_return_keeps_one_thread_and_nobody_else(
        hang: Hang) -> None:
    calls = Calls()
    with pytest.raises(NoAnswer):
        calls.call('stalled', 0.01, hang)
    hang.began.wait(60)
    for _ in range(5):
        with pytest.raises(NoAnswer):
            calls.call('stalled', 0.01, hang)
    assert hang.calls == 1
    assert calls.call('other', 60, str, 1) == '1'
    # It ends by itself, and the next call is made.
    hang.let_go()
    assert calls.call('stalled', 60, hang) == 'late'


def test_calls_of_one_key_wait_for_each_other(hang: Hang) -> None:
    calls = Calls()
    found: list[str] = []
    first = threading.Thread(
        target=lambda: found.append(calls.call('a', 60, hang)))
    first.start()
    hang.began.wait(60)
    second = threading.Thread(
        target=lambda: found.append(calls.call('a', 60, str, 'second')))
    second.start()
    hang.let_go()
    first.join(60)
    second.join(60)
    assert sorted(found) == ['late', 'second']


def test_it_is_run_as_it_is_told() -> None:
    ran = []

    def run(function, *arguments):
        ran.append(arguments)
        return function(*arguments)

    assert Calls(run).call('a', 60, str, 5) == '5'
    assert ran == [(5,)]
