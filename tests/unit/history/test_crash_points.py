# SPDX-License-Identifier: Apache-2.0
"""Every operation that moves a log is stopped before each changing call.

Then each of what may come next finishes it: nothing of the log is lost,
doubled or out of order. A kill, a full disk and a broken one, for one call
and from it on; each from a sound state and from what an earlier crash left.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from tests.unit.history import crash
from tests.unit.history.hosts import (
    AFTER,
    BEFORE,
    GUEST,
    THERE,
    Host,
    Pair,
    cold,
    departure,
    fill,
    finish_revert,
    live,
    written,
)
from virtlogd_driver.history import (
    boot,
    deleted,
    history,
    logs,
    outbox,
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: tests/functional/test_power.py does that."""
    monkeypatch.setattr(os, 'fsync', lambda fd: None)
    monkeypatch.setattr(history.health, 'wait_until_closed',
                        lambda *_: True)


# What a crash has left before

def sound(host: Host) -> None:
    fill(host.directory)


def half_aside(host: Host) -> None:
    """A rebuild was killed amid its renames."""
    fill(host.directory)
    os.mkdir(logs.aside_directory(host.directory))
    os.rename(f'{host.directory}/console.log.0',
              f'{logs.aside_directory(host.directory)}/console.log.0')


def all_aside(host: Host) -> None:
    """A rebuild was killed after nova had deleted the directory."""
    fill(host.directory)
    os.rename(host.directory, logs.aside_directory(host.directory))
    os.mkdir(host.directory)


def half_resized(host: Host) -> None:
    fill(host.directory)
    os.rename(host.directory, host.resized)
    os.mkdir(host.directory)
    os.rename(f'{host.resized}/console.log', f'{host.directory}/console.log')


STATES = {f.__name__: f for f in (sound, half_aside, all_aside,
                                  half_resized)}


# What nova and the driver do

def rebuild(host: Host) -> None:
    with host.kept.alone(GUEST):
        host.kept.set_aside(None, host.directory)
        host.nova_deletes()
        host.kept.put_back(None, host.directory)


def resize_here(host: Host) -> None:
    host.recover()
    if os.path.exists(host.resized):
        shutil.rmtree(host.resized)
    os.rename(host.directory, host.resized)
    os.mkdir(host.directory)
    host.kept.take_along(None, GUEST, host.resized, host.directory)


def revert_here(host: Host) -> None:
    """Of a resize that has gone well."""
    resize_here(host)
    finish_revert(host)


HERE = {f.__name__: f for f in (rebuild, resize_here, revert_here)}


# What comes next

def read(host: Host) -> None:
    host.recover(idle=False)


def start(host: Host) -> None:
    host.start()


def another_rebuild(host: Host) -> None:
    os.makedirs(host.directory, exist_ok=True)
    rebuild(host)


def a_resize(host: Host) -> None:
    os.makedirs(host.directory, exist_ok=True)
    resize_here(host)


def start_of_nova_compute(host: Host) -> None:
    finish_revert(host)
    host.recover()


NEXT = {f.__name__: f for f in (read, start, another_rebuild, a_resize,
                                start_of_nova_compute)}


def _boots(host: Host) -> list[float]:
    return [noted.time for noted in boot.read(host.directory)]


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('operation', HERE)
def test_on_one_host(operation: str, state: str, tmp_path: pathlib.Path,
                     record_property: Callable[[str, object], None]) -> None:
    counted = crash.Machine()
    host = Host(tmp_path / 'count')
    STATES[state](host)
    assert counted.run(lambda: HERE[operation](host))
    host.start()
    host.write(AFTER)
    assert host.text() == BEFORE + AFTER
    number = 0
    for at, kind, lasting in crash.points(counted.calls):
        for following in NEXT:
            number += 1
            host = Host(tmp_path / str(number))
            STATES[state](host)
            machine = crash.Machine(at, kind, lasting)
            point = (f'{kind} at {counted.calls[at]}, '
                     f'{"lasting, " if lasting else ""}then {following}')
            with contextlib.suppress(OSError):
                machine.run(lambda host=host: HERE[operation](host))
            host.restart()
            NEXT[following](host)
            host.start()
            host.write(AFTER)
            assert host.text() == BEFORE + AFTER, point
            assert _boots(host) == [1.0, 2.0], point
            shutil.rmtree(host.path)
    record_property('points', number)
    print(f'{operation} from {state}: {number} points')


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('operation', HERE)
def test_a_disk_that_does_not_tell_what_it_has(
        operation: str, state: str, tmp_path: pathlib.Path) -> None:
    """For a moment: that is not to say that it has nothing."""
    counted = crash.Machine(looks=True)
    host = Host(tmp_path / 'count')
    STATES[state](host)
    assert counted.run(lambda: HERE[operation](host))
    for at, call in enumerate(counted.calls):
        host = Host(tmp_path / str(at))
        STATES[state](host)
        with contextlib.suppress(OSError):
            crash.Machine(at, 'EIO', looks=True).run(
                lambda host=host: HERE[operation](host))
        host.restart()
        start_of_nova_compute(host)
        host.start()
        host.write(AFTER)
        assert host.text() == BEFORE + AFTER, f'{at}: {call}'
        assert _boots(host) == [1.0, 2.0], f'{at}: {call}'
        shutil.rmtree(host.path)
    print(f'{operation} from {state}: {len(counted.calls)} points')


Begun = Callable[[], object]


def leave(host: Host) -> Begun:
    """There is no room for an outbox."""
    return lambda: host.kept.leave(None, GUEST, None, host.directory)


def left_aside(host: Host) -> Begun:
    return lambda: host.kept.leave_aside(
        None, GUEST, host.directory, host.directory)


def brought_back(host: Host) -> Begun:
    os.rename(host.directory, host.resized)
    os.mkdir(host.directory)
    return lambda: host.kept.bring_back(None, GUEST, host.directory)


def brought_back_with_more(host: Host) -> Begun:
    os.mkdir(host.resized)
    return lambda: host.kept.bring_back(None, GUEST, host.directory)


def kept_as_it_is_deleted(host: Host) -> Begun:
    return lambda: host.kept.keep_deleted(
        None, host.directory,
        deleted.Keeping(str(host.path), 'host', 3600, 1 << 30),
        deleted.About())


def confirmed_without_outbox(host: Host) -> Begun:
    os.rename(host.directory, host.resized)
    return lambda: _confirm(host)


def confirmed_as_it_was_tried(host: Host) -> Begun:
    path = host.kept.prepare(None, host.directory, departure())
    assert path is not None
    os.rename(host.directory, host.resized)
    outbox.save_state(path, outbox.State(1, reason='refused'))
    return lambda: _confirm(host)


def _confirm(host: Host) -> None:
    with history.errors_logged(None):
        host.kept.confirm(None, GUEST, host.directory)


@pytest.mark.parametrize('looks', [True, False])
@pytest.mark.parametrize('operation', [
    leave, left_aside, brought_back, brought_back_with_more,
    kept_as_it_is_deleted, confirmed_without_outbox,
    confirmed_as_it_was_tried])
def test_what_leaves_a_disk_that_fails_for_a_moment(
        operation: Callable[[Host], Begun], looks: bool,
        tmp_path: pathlib.Path) -> None:
    """Whether it is asked or changed: nova deletes what is left there."""
    counted = crash.Machine(looks=looks)
    host = Host(tmp_path / 'count')
    fill(host.directory)
    assert counted.run(operation(host))
    for at, call in enumerate(counted.calls):
        host = Host(tmp_path / str(at))
        fill(host.directory)
        begun = operation(host)
        with contextlib.suppress(OSError):
            crash.Machine(at, 'EIO', looks=looks).run(begun)
        host.nova_deletes()
        if operation.__name__.startswith('confirmed'):
            host.nova_deletes(host.resized)
        found = sorted(map(os.path.dirname, host.path.rglob('console.log*')))
        assert b''.join(map(written, dict.fromkeys(found))) == BEFORE, (
            f'{at}: {call}')
        shutil.rmtree(host.path)
    print(f'{operation.__name__}: {len(counted.calls)} points')


# Between two hosts

def confirmed(pair: Pair) -> None:
    cold(pair)
    confirm(pair)


def confirm(pair: Pair) -> None:
    source = pair.source
    with history.errors_logged(None):
        source.kept.confirm(None, GUEST, source.directory)
    shutil.rmtree(source.resized, ignore_errors=True)


TO_ANOTHER = {f.__name__: f for f in (live, cold, confirmed)}


def _go_on(pair: Pair) -> bytes:
    """Let all end that was begun, and give what the guest has written."""
    if pair.at is pair.source:
        finish_revert(pair.source)
    pair.restart()
    pair.restart()
    pair.at.start()
    pair.at.write(AFTER)
    return BEFORE + pair.written + AFTER


@pytest.mark.parametrize('operation', TO_ANOTHER)
def test_to_another_host(operation: str, tmp_path: pathlib.Path) -> None:
    counted = crash.Machine()
    pair = Pair(tmp_path / 'count')
    fill(pair.source.directory)
    assert counted.run(lambda: TO_ANOTHER[operation](pair))
    assert outbox.waiting(str(pair.source.path)) == []
    assert pair.destination.text() == BEFORE + THERE
    number = 0
    for at, kind, lasting in crash.points(counted.calls):
        number += 1
        pair = Pair(tmp_path / str(number))
        fill(pair.source.directory)
        point = (f'{kind} at {counted.calls[at]}, '
                 f'{"lasting" if lasting else ""}')
        with contextlib.suppress(OSError):
            crash.Machine(at, kind, lasting).run(
                lambda pair=pair: TO_ANOTHER[operation](pair))
        expected = _go_on(pair)
        if not lasting and not counted.calls[at].endswith(".g1.log'"):
            assert pair.at.text() == expected, point
        elif lasting and os.path.isdir(pair.source.directory) and (
                pair.at is pair.destination):
            # Nova could not delete it either.
            assert pair.source.files() + pair.at.files() == expected, point
        else:
            assert pair.at.files() == expected, point
        if not lasting:
            assert _boots(pair.at) == [1.0, 2.0], point
        assert [w for host in (pair.source, pair.destination)
                for w in outbox.waiting(str(host.path))] == [], point
        shutil.rmtree(tmp_path / str(number))
    print(f'{operation}: {number} points')


@pytest.mark.parametrize('operation', TO_ANOTHER)
def test_to_another_host_from_a_disk_that_does_not_tell_what_it_has(
        operation: str, tmp_path: pathlib.Path) -> None:
    counted = crash.Machine(looks=True)
    pair = Pair(tmp_path / 'count')
    fill(pair.source.directory)
    assert counted.run(lambda: TO_ANOTHER[operation](pair))
    for at, call in enumerate(counted.calls):
        pair = Pair(tmp_path / str(at))
        fill(pair.source.directory)
        with contextlib.suppress(OSError):
            crash.Machine(at, 'EIO', looks=True).run(
                lambda pair=pair: TO_ANOTHER[operation](pair))
        expected = _go_on(pair)
        assert pair.at.files() == expected, f'{at}: {call}'
        assert [w for host in (pair.source, pair.destination)
                for w in outbox.waiting(str(host.path))] == [], call
        shutil.rmtree(tmp_path / str(at))
    print(f'{operation}: {len(counted.calls)} points')
