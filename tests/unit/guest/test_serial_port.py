# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from virtlogd_driver import exception
from virtlogd_driver.guest.serial_port import PortPool, PortRange, overlap

HOST = '127.0.0.1'
ANYWHERE = '0.0.0.0'  # noqa: S104


def _pool(text: str = '10000:10003', busy: tuple[int, ...] = ()) -> PortPool:
    return PortPool(PortRange.parse(text), lambda _, port: port not in busy)


def test_range_includes_its_last_port() -> None:
    assert list(PortRange.parse('10000:10002')) == [10000, 10001, 10002]
    assert list(PortRange.parse('10000:10000')) == [10000]
    assert len(PortRange.parse('1:65535')) == 65535


@pytest.mark.parametrize('text', [
    '', '10000', '10000:', ':10000', '10001:10000', '0:10', '1:65536',
    '-1:5', 'a:b', '10000:10001 ', '1:' + '9' * 5000, '\u0661:\u0662'])
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
    assert pool.acquire('a', HOST, 2, running=True) == ports


def test_a_held_port_that_another_process_has_taken_is_not_given() -> None:
    """Its guest is stopped, and is rescued."""
    busy: set[int] = {10000}
    pool = PortPool(PortRange.parse('10000:10003'),
                    lambda _, port: port not in busy)
    pool.adopt('a', [(HOST, 10000)])
    assert pool.acquire('a', HOST, 1) == (10001,)
    # Its domain still names the old one, and gets it back after the rescue.
    busy.clear()
    assert pool.acquire('b', HOST, 1) == (10002,)
    assert pool.acquire('a', HOST, 1) == (10000,)


@pytest.mark.parametrize(('one', 'other', 'expected'), [
    ('127.0.0.1', '127.0.0.1', True),
    ('127.0.0.1', '127.0.0.2', False),
    ('127.0.0.1', ANYWHERE, True),
    ('127.0.0.1', '::', True),
    ('127.0.0.1', '::1', False),
    ('127.0.0.1', '::ffff:127.0.0.1', True),
    ('::ffff:0.0.0.0', '127.0.0.1', True),
    ('::1', ANYWHERE, False),
    ('::1', '::', True),
    ('::1', '0:0::1', True),
    (ANYWHERE, '::', True),
    ('fe80::1%eth0', 'fe80::1%2', True),
    ('localhost', '192.0.2.1', True),
    ('node1', 'node2', True),
    ('', '192.0.2.1', True),
])
def test_addresses_that_overlap(one: str, other: str,
                                expected: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


@pytest.mark.parametrize('address', [
    '127.0.0.1', ANYWHERE, '::', 'localhost', '::ffff:127.0.0.1'])
def test_a_port_is_not_given_twice_whatever_its_address_is_called(
        address: str) -> None:
    """proxyclient_address was corrected while a guest was suspended."""
    pool = _pool()
    pool.adopt('suspended', [(HOST, 10000)])
    assert pool.acquire('new', address, 1) == (10001,)


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


def test_what_was_given_since_it_was_looked_is_not_taken_back() -> None:
    pool = _pool()
    assert pool.given == 0
    pool.acquire('a', HOST, 1)
    looked = pool.given
    assert looked == 1
    pool.acquire('a', HOST, 2)
    assert not pool.release('a', looked)
    assert pool.held() == {(HOST, 10000): 'a', (HOST, 10001): 'a'}
    assert pool.release('a', pool.given)
    assert pool.held() == {}
    assert pool.release('a')


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


ADDRESSES = ['127.0.0.1', '192.0.2.1', ANYWHERE, '::1', '::',
             'localhost', '::ffff:127.0.0.1']
OWNERS = 'abcd'


class PoolMachine(RuleBasedStateMachine):
    """Any order of what happens on a host, against a plain model.

    An address of an older configuration may be held by two guests; nothing is
    ever given that makes it so.
    """

    def __init__(self) -> None:
        super().__init__()
        #: What other processes listen on.
        self.busy: set[tuple[str, int]] = set()
        self.pool = PortPool(PortRange.parse('10000:10005'), self.is_free)
        self.model: dict[str, set[tuple[str, int]]] = {
            owner: set() for owner in OWNERS}

    def is_free(self, host: str, port: int) -> bool:
        return not any(overlap(host, at) and port == number
                       for at, number in self.busy)

    def others(self, owner: str, host: str) -> set[int]:
        return {port for who, held in self.model.items() if who != owner
                for at, port in held if overlap(at, host)}

    @rule(owner=st.sampled_from(OWNERS), host=st.sampled_from(ADDRESSES),
          count=st.integers(1, 4), running=st.booleans())
    def acquire(self, owner: str, host: str, count: int,
                running: bool) -> None:
        mine = {port for at, port in self.model[owner] if overlap(at, host)}
        good = {port for port in range(10000, 10006)
                if port not in self.others(owner, host)
                and ((running and port in mine)
                     or self.is_free(host, port))}
        if len(good) < count:
            with pytest.raises(exception.PortRangeExhausted):
                self.pool.acquire(owner, host, count, running)
            return
        ports = self.pool.acquire(owner, host, count, running)
        assert len(set(ports)) == count
        assert set(ports) <= good
        # Its own first.
        assert len(set(ports) & mine) == min(count, len(mine & good))
        self.model[owner] |= {(host, port) for port in ports}

    @rule(owner=st.sampled_from(OWNERS))
    def release(self, owner: str) -> None:
        self.pool.release(owner)
        self.model[owner] = set()

    @rule(owner=st.sampled_from(OWNERS), host=st.sampled_from(ADDRESSES),
          port=st.integers(10000, 10005))
    def adopt(self, owner: str, host: str, port: int) -> None:
        self.pool.adopt(owner, [(host, port)])
        self.model[owner].add((host, port))

    @rule(host=st.sampled_from(ADDRESSES), port=st.integers(10000, 10005))
    def another_process_listens(self, host: str, port: int) -> None:
        self.busy.add((host, port))

    @rule()
    def other_processes_end(self) -> None:
        self.busy.clear()

    @invariant()
    def as_the_model(self) -> None:
        assert set(self.pool.held()) == set().union(*self.model.values())
        assert self.pool.owners() == {
            owner for owner, held in self.model.items() if held}


TestPoolMachine = PoolMachine.TestCase


def test_what_a_guest_holds_and_somebody_else_listens_on_is_not_counted(
        ) -> None:
    pool = _pool('10000:10001', busy=(10000,))
    pool.adopt('a', [(HOST, 10000)])
    pool.check('a', HOST, 1)
    with pytest.raises(exception.PortRangeExhausted):
        pool.check('a', HOST, 2)


def test_check_gives_nothing() -> None:
    pool = _pool('10000:10001')
    pool.check('a', HOST, 2)
    assert pool.held() == {}
    pool.acquire('b', HOST, 1)
    with pytest.raises(exception.PortRangeExhausted):
        pool.check('a', HOST, 2)
    pool.check('b', HOST, 2)
