# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from virtlogd_driver import exception
from virtlogd_driver.guest.serial_port import PortPool, PortRange

HOST = '127.0.0.1'


def _pool(text: str = '10000:10003', busy: tuple[int, ...] = ()) -> PortPool:
    return PortPool(PortRange.parse(text), lambda _, port: port not in busy)


def test_range_includes_its_last_port() -> None:
    assert list(PortRange.parse('10000:10002')) == [10000, 10001, 10002]
    assert list(PortRange.parse('10000:10000')) == [10000]
    assert len(PortRange.parse('1:65535')) == 65535


@pytest.mark.parametrize('text', [
    '', '10000', '10000:', ':10000', '10001:10000', '0:10', '1:65536',
    '-1:5', 'a:b', '10000:10001 '])
def test_bad_range_names_the_option(text: str) -> None:
    with pytest.raises(exception.InvalidOption) as raised:
        PortRange.parse(text)
    assert '[serial_console] port_range' in str(raised.value)
    assert repr(text) in str(raised.value)


def test_busy_ports_are_passed_over() -> None:
    assert _pool(busy=(10000, 10002)).acquire('a', HOST, 2) == (10001, 10003)


def test_a_guest_keeps_its_ports() -> None:
    pool = _pool()
    first = pool.acquire('a', HOST, 2)
    pool.acquire('b', HOST, 1)
    assert pool.acquire('a', HOST, 2) == first
    assert pool.acquire('a', HOST, 1) == first[:1]
    assert pool.acquire('a', HOST, 3) == (*first, 10003)


def test_ports_in_use_by_the_guest_itself_are_not_asked_for_again() -> None:
    """A rescue makes the new XML while the old guest still runs."""
    busy: set[int] = set()
    pool = PortPool(PortRange.parse('10000:10003'),
                    lambda _, port: port not in busy)
    ports = pool.acquire('a', HOST, 2)
    busy.update(ports)
    assert pool.acquire('a', HOST, 2) == ports


def test_another_address_is_another_port() -> None:
    pool = _pool('10000:10000')
    assert pool.acquire('a', HOST, 1) == pool.acquire('b', '::1', 1)


def test_all_or_nothing() -> None:
    pool = _pool()
    pool.acquire('a', HOST, 3)
    with pytest.raises(exception.PortRangeExhausted) as raised:
        pool.acquire('b', HOST, 2)
    assert '10000:10003' in str(raised.value)
    assert '3 of 4 are held' in str(raised.value)
    assert pool.acquire('b', HOST, 1) == (10003,)


def test_a_second_release_frees_nobody_elses_port() -> None:
    pool = _pool('10000:10000')
    pool.acquire('a', HOST, 1)
    pool.release('a')
    pool.acquire('b', HOST, 1)
    pool.release('a')
    with pytest.raises(exception.PortRangeExhausted):
        pool.acquire('c', HOST, 1)


def test_adopted_ports_are_held() -> None:
    pool = _pool()
    pool.adopt('a', [(HOST, 10000), (HOST, 25000)])
    assert pool.acquire('b', HOST, 1) == (10001,)
    assert pool.acquire('a', HOST, 1) == (10000,)
    pool.release('a')
    assert pool.held() == {(HOST, 10001): 'b'}


def test_ports_outside_a_changed_range_are_not_given_again() -> None:
    pool = _pool()
    pool.adopt('a', [(HOST, 25000)])
    assert pool.acquire('a', HOST, 1) == (10000,)


def test_threads_never_share_a_port() -> None:
    pool = _pool('10000:10199')
    got: list[int] = []

    def boot(name: str) -> None:
        for n in range(10):
            got.extend(pool.acquire(f'{name}-{n}', HOST, 2))

    threads = [threading.Thread(target=boot, args=(str(n),))
               for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(10000, 10200))


class PoolMachine(RuleBasedStateMachine):
    """Any order of acquire, release and adopt against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = _pool('10000:10005')
        self.model: dict[int, str] = {}

    @rule(owner=st.sampled_from('abcd'), count=st.integers(1, 4))
    def acquire(self, owner: str, count: int) -> None:
        mine = {p for p, who in self.model.items() if who == owner}
        free = 6 - len(self.model)
        if count - len(mine) > free:
            with pytest.raises(exception.PortRangeExhausted):
                self.pool.acquire(owner, HOST, count)
            return
        ports = self.pool.acquire(owner, HOST, count)
        assert len(set(ports)) == count
        for port in ports:
            assert self.model.setdefault(port, owner) == owner

    @rule(owner=st.sampled_from('abcd'))
    def release(self, owner: str) -> None:
        self.pool.release(owner)
        self.model = {p: who for p, who in self.model.items()
                      if who != owner}

    @rule(owner=st.sampled_from('abcd'), port=st.integers(10000, 10005))
    def adopt(self, owner: str, port: int) -> None:
        self.pool.adopt(owner, [(HOST, port)])
        self.model.setdefault(port, owner)

    @invariant()
    def as_the_model(self) -> None:
        assert self.pool.held() == {
            (HOST, port): who for port, who in self.model.items()}


TestPoolMachine = PoolMachine.TestCase


def test_check_gives_nothing() -> None:
    pool = _pool('10000:10001')
    pool.check('a', HOST, 2)
    assert pool.held() == {}
    pool.acquire('b', HOST, 1)
    with pytest.raises(exception.PortRangeExhausted):
        pool.check('a', HOST, 2)
    pool.check('b', HOST, 2)
