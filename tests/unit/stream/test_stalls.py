# SPDX-License-Identifier: Apache-2.0
"""Nothing of one guest waits for another's disk."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.stream import test_service
from tests.unit.stream.hanging import CALLS, Hanging
from tests.unit.stream.test_service import UUID, rotate, write
from virtlogd_driver.stream import service
from virtlogd_driver.virtlogd.turns import MOST_OF_ONE, PATIENCE

OTHER = '1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed'


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is soon said that a disk hangs."""
    monkeypatch.setattr(service, 'STALLED', 0.3)
    monkeypatch.setattr(service, '_COMPARE', 0.3)
    monkeypatch.setattr(service, 'SAVE_INTERVAL', 0.2)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    made = Hanging(monkeypatch)
    yield made
    made.release_all()


class Host(test_service.Host):
    """Its disks may hang once its stream has begun."""

    def begin(self) -> None:
        super().begin()
        self.patience = self._stream._turns._patience = PATIENCE


@pytest.fixture
def host(tmp_path: Path, hanging: Hanging) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    hanging.release_all()
    made.stop()


def directory(host: Host) -> Path:
    return host.log().parent


def two_guests(host: Host) -> None:
    host.guest()
    host.guest(OTHER, name='other')
    host.begin()


def of(host: Host, uuid: str) -> list[str]:
    return [one['text'] for one in host.output.objects
            if one.get('uuid') == uuid and 'text' in one]


def events_of(host: Host, uuid: str) -> list[str]:
    return [one['event'] for one in host.output.objects
            if one.get('uuid') == uuid and 'event' in one]


def is_stalled(host: Host) -> bool:
    return 'stalled' in events_of(host, UUID)


def others(events: list[str]) -> list[str]:
    """Events without those of disks: on a busy machine all may be slow."""
    return [event for event in events if event not in ('stalled', 'answers')]


@pytest.mark.parametrize('call', CALLS)
def test_others_go_on(host: Host, hanging: Hanging, call: str,
                      caplog: pytest.LogCaptureFixture) -> None:
    two_guests(host)
    write(host.log(), b'first\n')
    host.until(lambda: of(host, UUID) == ['first'])
    hanging.hang(directory(host), call)
    # One call or another is needed for this.
    rotate(host.log())
    write(host.log(), b'second\n')
    host.until(lambda: hanging.waiting > 0)
    for number in range(5):
        write(host.log(OTHER), b'%d\n' % number)
        rotate(host.log(OTHER))
        host.until(lambda number=number: of(host, OTHER) == [   # type: ignore[misc]
            str(n) for n in range(number + 1)])
        write(host.log(), b'while it hangs %d\n' % number)
    host.until(lambda: events_of(host, UUID)[-1:] == ['stalled'])
    # How far it has come with the other one is kept meanwhile.
    host.until(lambda: any(
        log['uuid'] == OTHER and log['position'].split('-')[2] == '2'
        for log in json.loads(host.state.read_text())['logs']))
    assert of(host, UUID) == ['first']
    assert events_of(host, UUID)[-1] == 'stalled'
    hanging.release_all()
    host.until(lambda: len(of(host, UUID)) == 7)
    assert of(host, UUID) == ['first', 'second', *[
        f'while it hangs {number}' for number in range(5)]]
    host.until(lambda: events_of(host, UUID)[-1] == 'answers')
    # On a busy machine it may be slow once more until then.
    host.stop()
    found = events_of(host, UUID)
    assert found == (['stalled', 'answers'] * len(found))[:len(found)]
    # Once each time.
    assert caplog.text.count('guest guest does not answer') == found.count(
        'stalled')


@pytest.mark.parametrize('call', CALLS)
def test_it_ends_at_once(host: Host, hanging: Hanging, call: str) -> None:
    two_guests(host)
    write(host.log(), b'first\n')
    host.until(lambda: of(host, UUID) == ['first'])
    hanging.hang(directory(host), call)
    rotate(host.log())
    write(host.log(), b'second\n')
    write(host.log(OTHER), b'here\n')
    host.until(lambda: hanging.waiting > 0 and bool(of(host, OTHER)))
    begin = time.monotonic()
    host.stop()
    # Not when the disk answers, which is not within this test.
    assert time.monotonic() - begin < 30
    hanging.release_all()
    host.start()
    write(host.log(OTHER), b'again\n')
    host.until(lambda: len(of(host, OTHER)) == 2)
    host.until(lambda: len(of(host, UUID)) == 2)
    assert of(host, OTHER) == ['here', 'again']
    assert of(host, UUID) == ['first', 'second']


def test_one_that_hangs_as_the_stream_begins(host: Host,
                                             hanging: Hanging) -> None:
    two_guests(host)
    host.stop()
    write(host.log(), b'one\n')
    hanging.hang(directory(host))
    host.start()
    write(host.log(OTHER), b'two\n')
    host.until_text('two')
    host.guest('new', name='new')
    write(host.log('new'), b'three\n')
    host.report()
    host.until_text('two', 'three')
    hanging.release_all()
    host.until_text('two', 'three', 'one')


def test_one_that_left_while_nothing_ran(
        host: Host, hanging: Hanging, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said whose log hangs, and where: others are not held back."""
    monkeypatch.setattr(service, '_PATIENCE', 0.5)
    two_guests(host)
    host.stop()
    write(host.log(), b'one\n')
    del host.guests[UUID]
    hanging.hang(directory(host))
    host.start()
    host.until(lambda: is_stalled(host))
    assert f'what is read of {host.log()} has not come' in caplog.text
    hanging.release_all()
    host.until(lambda: others(events_of(host, UUID)) == ['left'])
    assert of(host, UUID) == ['one']


def test_its_events_come_behind_its_lines(host: Host,
                                          hanging: Hanging) -> None:
    two_guests(host)
    hanging.hang(directory(host))
    write(host.log(), b'the last\n')
    host.until(lambda: hanging.waiting > 0)
    host.guest(run=-1)
    host.report()
    host.guest(OTHER, run=-1, name='other')
    host.report()
    host.until(lambda: 'stopped' in host.events())
    hanging.release_all()
    host.until(lambda: host.events().count('stopped') == 2)
    mine = [one for one in host.output.objects if one.get('uuid') == UUID
            and others([one.get('event', 'line')])]
    assert [one.get('event') for one in mine] == [None, 'stopped']


def test_one_that_leaves_and_comes_back_meanwhile(
        host: Host, hanging: Hanging) -> None:
    two_guests(host)
    write(host.log(), b'first\n')
    host.until(lambda: of(host, UUID) == ['first'])
    hanging.hang(directory(host))
    write(host.log(), b'second\n')
    host.until(lambda: hanging.waiting > 0)
    kept = host.guests.pop(UUID)
    host.report()
    guest = host._stream._guests[UUID]
    host.until(lambda: guest.gone is not None)
    guest.gone = -1000.0   # for longer than nova takes to define it again
    host.until(lambda: guest.leaving)
    host.guests[UUID] = kept
    host.report()
    write(host.log(OTHER), b'here\n')
    host.until(lambda: of(host, OTHER) == ['here'])
    hanging.release_all()
    host.until(lambda: 'left' in host.events())
    write(host.log(), b'third\n')
    host.until(lambda: of(host, UUID) == ['first', 'second', 'third'])
    assert others(host.events()) == ['left', 'started']


def test_one_that_cannot_be_read_when_it_answers_and_leaves(
        host: Host, hanging: Hanging, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once more of one that comes back."""
    monkeypatch.setattr(service, '_PATIENCE', 0.0)
    host.guest()
    host.begin()
    for count in (1, 2):
        host.guest(run=count)
        host.report()
        host.until(lambda: not host.is_unknown(UUID))
        before = events_of(host, UUID).count('stalled')
        hanging.hang(directory(host))
        write(host.log(), b'x\n')
        host.until(lambda before=before: events_of(host, UUID).count(
            'stalled') > before)
        # A link is not read.
        host.log().unlink()
        host.log().symlink_to('/dev/null')
        del host.guests[UUID]
        host.report()
        hanging.release(directory(host))
        host.until(lambda count=count: events_of(host, UUID).count(
            'left') == count)
        host.until(lambda: host.is_unknown(UUID))
        assert host._stream._stalled == set()
        host.log().unlink()
        assert (caplog.text.count('guest guest does not answer')
                == events_of(host, UUID).count('stalled'))


def test_what_is_rotated_away_while_it_hangs_is_said(
        host: Host, hanging: Hanging) -> None:
    two_guests(host)
    hanging.hang(directory(host))
    write(host.log(), b'lost\n')
    host.until(lambda: hanging.waiting > 0)
    for _ in range(4):
        rotate(host.log(), most=2)
        write(host.log(), b'new\n')
    host.until(lambda: is_stalled(host))
    assert of(host, UUID) == []
    hanging.release_all()
    host.until(lambda: of(host, UUID)[-1:] == ['new'])
    host.until(lambda: 'answers' in host.events())
    assert host.events().count('lost') == 1
    assert 'lost' not in of(host, UUID)


def _turns() -> int:
    """Threads that give turns."""
    return sum(thread.name == 'turns' for thread in threading.enumerate())


def test_many_that_hang_cost_few_threads(host: Host,
                                         hanging: Hanging) -> None:
    count = MOST_OF_ONE - 2
    for number in range(count):
        host.guest(f'{number}', name=f'guest-{number}')
    host.guest(OTHER, name='other')
    host.begin()
    before = _turns()
    for number in range(count):
        hanging.hang(host.log(f'{number}').parent)
        write(host.log(f'{number}'), b'mine\n')
    write(host.log(OTHER), b'here\n')
    host.until(lambda: of(host, OTHER) == ['here'])
    host.until(lambda: hanging.waiting == count)
    # The other one may have been left for a moment, too.
    host.until(lambda: _turns() <= before + count)
    write(host.log(OTHER), b'and here\n')
    host.until(lambda: of(host, OTHER) == ['here', 'and here'])
    hanging.release_all()
    host.until(lambda: len(host.texts()) == count + 2)


def test_a_state_file_whose_disk_hangs(
        host: Host, hanging: Hanging,
        caplog: pytest.LogCaptureFixture) -> None:
    host.state = host.path / 'states' / 'state'
    host.state.parent.mkdir()
    two_guests(host)
    hanging.hang(host.state.parent)
    for number in range(5):
        write(host.log(), b'%d\n' % number)
        host.until(lambda number=number: len(   # type: ignore[misc]
            host.texts()) == number + 1)
        time.sleep(0.1)
    host.until(lambda: 'file system does not answer' in caplog.text)
    hanging.release_all()
    host.stop()
    host.start()
    write(host.log(), b'on\n')
    host.until_text('0', '1', '2', '3', '4', 'on')


def test_it_does_not_wait_for_a_state_file_for_ever(
        host: Host, hanging: Hanging,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    host.state = host.path / 'states' / 'state'
    host.state.parent.mkdir()
    two_guests(host)
    monkeypatch.setattr(service, '_SAVE_LAST', 0.2)
    hanging.hang(host.state.parent)
    write(host.log(), b'one\n')
    host.until_text('one')
    host.stop()
    assert 'file system does not answer' in caplog.text


def test_one_that_libvirt_does_not_tell_of(host: Host) -> None:
    """It was here before, so nothing of it is new, nor has it left."""
    two_guests(host)
    write(host.log(), b'first\n')
    host.until_text('first')
    host.stop()
    write(host.log(), b'second\n')
    kept = host.guests.pop(UUID)
    host.unknown = frozenset([UUID])
    host.start()
    write(host.log(OTHER), b'here\n')
    host.until_text('first', 'here')
    host.guests[UUID] = kept
    host.unknown = frozenset()
    host.report()
    host.until_text('first', 'here', 'second')
    assert others(host.events()) == []
    # Without a state file it is given from now on, as those told of before.
    host.stop()
    host.state.unlink()
    del host.guests[UUID]
    host.unknown = frozenset([UUID])
    host.start()
    write(host.log(), b'before it is told of\n')
    host.guests[UUID] = kept
    host.unknown = frozenset()
    host.report()
    host.until(lambda: str(host.log()) in host._stream._followed.streams)
    write(host.log(), b'after\n')
    host.until(lambda: host.texts()[-1:] == ['after'])
    assert host.texts()[3:] == ['after']
