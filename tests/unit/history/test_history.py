# SPDX-License-Identifier: Apache-2.0
"""A copy is tried again until the other host has the history."""

import os
import pathlib
import threading

import pytest

from tests.unit.history import staged
from tests.unit.history.hosts import (
    ADDRESS,
    BEFORE,
    GUEST,
    THERE,
    cold,
    departure,
    finish_revert,
    live,
    refuse,
    to,
    waiting,
)
from virtlogd_driver.console_log import chain
from virtlogd_driver.history import (
    history,
    inbox,
    logs,
    outbox,
)


class TestLeaving:

    def test_it_stays(self, pair) -> None:
        path = pair.source.kept.prepare(
            None, pair.source.directory, departure())
        assert path is not None
        assert waiting(pair.source) == []
        pair.source.kept.forget(None, path)
        assert os.listdir(pair.source.path) == [GUEST]

    def test_it_comes_back_from_novas_own_driver(self, pair) -> None:
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        open(f'{pair.source.directory}/console.log', 'x').close()
        pair.source.kept.take_back(None, GUEST, pair.source.directory, [])
        assert pair.source.text() == BEFORE
        assert waiting(pair.source) == []

    def test_what_finds_no_place_stays_in_the_outbox(
            self, pair, monkeypatch) -> None:
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        monkeypatch.setattr(logs, 'move', lambda *_: False)
        pair.source.kept.take_back(None, GUEST, pair.source.directory, [])
        (kept,) = waiting(pair.source)
        assert outbox.is_filled(kept.path)

    def test_not_from_this_one(self, pair) -> None:
        """What it wrote there comes as well."""
        refuse(pair.source)
        live(pair)
        os.mkdir(pair.source.directory)
        chain.begin(f'{pair.source.directory}/console.g1.log')
        pair.source.kept.take_back(
            None, GUEST, pair.source.directory, ['console.g1.log'])
        assert len(waiting(pair.source)) == 1


class TestRevert:

    def test_it_comes_back(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_comes_late(self, pair) -> None:
        cold(pair)
        there = pair.destination
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == b'back\n'
        there.attempt(to())
        assert pair.source.text() == BEFORE + THERE + b'back\n'
        assert waiting(there) == []

    def test_it_wrote_nothing_there(self, pair) -> None:
        cold(pair)
        there = pair.destination
        os.truncate(f'{there.directory}/console.g1.log', 0)
        path = there.kept.prepare(None, there.directory, departure({0: 1}))
        there.kept.leave(None, GUEST, path, there.directory)
        there.nova_deletes()
        there.attempt(to(f'{ADDRESS}/{GUEST}_resize'))
        finish_revert(pair.source)
        pair.source.start()
        pair.source.write(b'back\n')
        assert pair.source.text() == BEFORE + b'back\n'


class TestArrival:

    def test_it_is_waited_for(self, pair) -> None:
        there = pathlib.Path(pair.source.directory)
        for path in there.iterdir():
            path.unlink()
        chain.begin(str(there / 'console.g1.log'))
        pair.source.kept = history.History(
            pair.source.copy, 1 << 20, 60, '/no')
        late = threading.Timer(0.2, staged.as_now, [there, {0: b'then'}])
        late.start()
        pair.source.kept.wait_until_received(
            None, GUEST, pair.source.place(), ['console.g1.log'])
        assert (there / 'console.g1.history').read_bytes() == b'then'

    def test_in_vain_once(self, pair) -> None:
        there = pathlib.Path(pair.source.directory)
        for path in there.iterdir():
            path.unlink()
        chain.begin(str(there / 'console.g1.log'))
        for _ in range(2):
            pair.source.kept.wait_until_received(
                None, GUEST, pair.source.place(), ['console.g1.log'])
        assert 'waited for in vain' in logs.received(str(there))['-']

    def test_nothing_is_digested_while_it_comes(self, pair,
                                                monkeypatch) -> None:
        """Names and sizes are looked at; what has come is read once."""
        there = pathlib.Path(pair.source.directory)
        (there / 'console.log').unlink()
        listed = staged.as_now(there, {0: b'then'})
        whole = listed.read_bytes()
        listed.unlink()
        digested = []
        digest = inbox._has_digest
        monkeypatch.setattr(inbox, '_has_digest', lambda *args: (
            digested.append(args), digest(*args))[1])
        threading.Timer(0.3, listed.write_bytes, [whole]).start()
        pair.source.kept = history.History(
            pair.source.copy, 1 << 20, 60, '/no')
        pair.source.kept.wait_until_received(
            None, GUEST, pair.source.place(), [])
        assert len(digested) == 1


class TestVirtlogdIsNotDone:
    """The guest has ended, and its log may be written still."""

    def test_what_it_writes_goes_where_the_file_goes(
            self, pair, virtlogd) -> None:
        log = f'{pair.source.directory}/console.log'
        virtlogd.open.add(log)
        with open(log, 'ab') as late:
            live(pair)
            late.write(b'late')
        assert virtlogd.open == {log}
        assert waiting(pair.source) == []


def test_either_all_logs_are_begun_or_none(tmp_path, monkeypatch) -> None:
    paths = [str(tmp_path / f'console.port{n}.g1.log') for n in (1, 2, 3)]
    (tmp_path / 'console.port1.g1.log').write_bytes(b'is there')
    begin = chain.begin

    def fail(path: str) -> None:
        if path == paths[2]:
            raise PermissionError
        begin(path)
    monkeypatch.setattr(chain, 'begin', fail)
    with pytest.raises(PermissionError):
        history.begin_logs(paths)
    assert os.listdir(tmp_path) == ['console.port1.g1.log']
    monkeypatch.undo()
    history.begin_logs(paths)
    assert len(os.listdir(tmp_path)) == 3
