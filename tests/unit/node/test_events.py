# SPDX-License-Identifier: Apache-2.0
"""Guests as libvirt tells of them, while it fails for one."""

from typing import Any

import libvirt
import pytest

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.node.events import Report, Running, Watch


class Domain:
    """A guest that runs, or that libvirt fails for."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self.code: int | None = None
        self.run = 1

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


class Connection:
    def __init__(self, *domains: Domain) -> None:
        self._domains = {domain.UUIDString(): domain for domain in domains}
        self.alive = 1

    def isAlive(self) -> int:
        return self.alive

    def listAllDomains(self, flags: int) -> list[Domain]:
        assert flags == libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
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


def test_one_that_was_never_seen_is_left_out(watch, reports) -> None:
    busy = Domain('1')
    busy.code = libvirt.VIR_ERR_OPERATION_TIMEOUT
    watch._look_at_all(Connection(busy, Domain('2')))
    assert _runs(reports) == {'2': 1}


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
