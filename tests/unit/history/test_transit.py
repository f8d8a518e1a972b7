# SPDX-License-Identifier: Apache-2.0
import threading
import time

import pytest

from virtlogd_driver.history import transit

UUID = 'uuid'


class Copy:
    """What packs the history of a guest and carries it, when it may."""

    def __init__(self) -> None:
        self.may_pack = threading.Event()
        self.may_carry = threading.Event()
        self.done: list[str] = []

    def pack(self):
        assert self.may_pack.wait(10)
        self.done.append('packed')
        return self.carry

    def carry(self) -> None:
        assert self.may_carry.wait(10)
        self.done.append('carried')


class TestDepartures:

    @pytest.fixture
    def copy(self) -> Copy:
        return Copy()

    @pytest.fixture
    def departures(self, copy) -> transit.Departures:
        made = transit.Departures()
        made.prepare(UUID, copy.pack)
        return made

    def test_it_can_be_waited_for(self, departures, copy) -> None:
        """Until it is packed; and when nova-compute ends, until it is there.

        Whoever is first has it packed: nova's monitor or its operation.
        """
        seen = []

        def wait() -> None:
            departures.wait_until_packed(UUID)
            seen.append(list(copy.done))
        waiting = threading.Thread(target=wait)
        waiting.start()
        departures.start(UUID)
        waiting.join(0.05)
        assert waiting.is_alive()
        copy.may_pack.set()
        waiting.join()
        assert seen == [['packed']]
        departures.wait_until_packed(UUID)
        copy.may_carry.set()
        departures.finish()
        assert copy.done == ['packed', 'carried']

    def test_it_stays(self, departures, copy) -> None:
        departures.forget(UUID)
        departures.start(UUID)
        departures.wait_until_packed(UUID)
        departures.finish()
        assert copy.done == []

    @pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnhandledThreadExceptionWarning')
    def test_it_cannot_be_packed(self, departures) -> None:
        """The guest has moved all the same."""
        def fail():
            raise RuntimeError('made by the test')
        departures.prepare(UUID, fail)
        departures.wait_until_packed(UUID)
        departures.finish()


class TestArrivals:

    @pytest.fixture
    def arrivals(self, monkeypatch) -> transit.Arrivals:
        monkeypatch.setattr(transit, 'INTERVAL', 0.01)
        monkeypatch.setattr(transit, 'BEGIN', 0.1)
        return transit.Arrivals()

    @pytest.fixture
    def whole(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def received(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def start(self, arrivals, whole, received):
        """A guest comes, with its history after it."""
        def begin(timeout: float = 10) -> None:
            arrivals.expect(UUID)
            arrivals.start(UUID, whole.is_set, received.set, timeout)
        return begin

    def test_nothing_is_expected(self, arrivals, whole, received) -> None:
        arrivals.start(UUID, whole.is_set, received.set, 10)
        assert received.is_set()

    def test_received_when_it_is_whole(self, arrivals, start, whole,
                                       received) -> None:
        start()
        arrivals.wait(UUID, 0.05)
        assert arrivals.is_awaited(UUID)
        assert not received.is_set()
        whole.set()
        arrivals.wait(UUID, 10)
        assert received.is_set()

    def test_a_reader_waits_for_a_moment_after_the_guest_came(
            self, arrivals, start) -> None:
        start()
        begin = time.monotonic()
        for _ in range(50):
            arrivals.wait(UUID, 0.2)
        assert 0.15 < time.monotonic() - begin < 5

    def test_a_reader_before_the_guest_has_come(self, arrivals) -> None:
        arrivals.expect(UUID)
        begin = time.monotonic()
        arrivals.wait(UUID, 60)
        arrivals.settle(UUID, lambda: True)
        assert not arrivals.is_awaited(UUID)
        assert time.monotonic() - begin < 30

    def test_what_has_come_by_then_is_taken(self, start, received) -> None:
        """The copy has failed."""
        start(timeout=0.05)
        assert received.wait(10)

    def test_it_cannot_be_looked_at(self, arrivals, received) -> None:
        """Whoever receives it says so, and the guest can leave again."""
        def fail() -> bool:
            raise PermissionError
        arrivals.expect(UUID)
        arrivals.start(UUID, fail, received.set, 10)
        arrivals.settle(UUID, lambda: True)
        assert received.is_set()

    @pytest.mark.parametrize('is_coming', [True, False])
    def test_settled(self, arrivals, start, whole, received,
                     is_coming) -> None:
        """Before the guest leaves again."""
        start()
        timer = threading.Timer(0.4, whole.set)
        timer.start()
        arrivals.settle(UUID, lambda: is_coming)
        assert received.is_set() == is_coming
        timer.cancel()

    def test_it_has_gone(self, arrivals, start, whole, received) -> None:
        start()
        arrivals.forget(UUID)
        whole.set()
        assert not received.wait(0.1)

    def test_it_comes_again(self, arrivals, start, whole, received) -> None:
        """The last one counts."""
        start(timeout=0.05)
        start()
        assert not received.wait(0.2)
        whole.set()
        arrivals.wait(UUID, 10)
        assert received.is_set()
