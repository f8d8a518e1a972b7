# SPDX-License-Identifier: Apache-2.0
import logging
import os
import pathlib

import pytest

from tests.unit.virtlogd.fake_virtlogd import FakeVirtlogd
from virtlogd_driver.console_log import chain, reader
from virtlogd_driver.history import history, transfer
from virtlogd_driver.virtlogd import privileged


def _no_copy(*_args: object, **_kwargs: object) -> None:
    raise AssertionError('nothing is copied')


class TestVirtlogdIsNotDone:
    """The guest has ended, and its log may be written still."""

    @pytest.fixture
    def virtlogd(self, monkeypatch) -> FakeVirtlogd:
        virtlogd = FakeVirtlogd()
        monkeypatch.setattr(privileged, 'probe', virtlogd)
        monkeypatch.setattr(history, 'CLOSING', 0.02)
        return virtlogd

    @pytest.fixture
    def carrier(self, virtlogd) -> history.History:
        return history.History(_no_copy, 1000, 1, '/sock')

    @pytest.fixture
    def moved(self, tmp_path) -> list[transfer.Move]:
        """On shared storage: it goes on elsewhere already."""
        (tmp_path / 'console.log').write_bytes(b'old\n')
        chain.begin(str(tmp_path / 'console.g1.log'))
        return [(str(tmp_path / 'console.log'),
                 str(tmp_path / 'console.g1.log'))]

    def names(self, directory: pathlib.Path) -> list[str]:
        return sorted(path.name for path in directory.iterdir())

    @pytest.mark.parametrize('daemon', [privileged.UP, privileged.HUNG])
    def test_the_log_stays(self, virtlogd, carrier, moved, tmp_path, caplog,
                           daemon) -> None:
        virtlogd.daemon = daemon
        virtlogd.open.add(moved[0][0])
        carrier.send(None, moved, None)
        (said,) = caplog.messages
        assert 'may not follow it' in said
        assert moved[0][0] in said
        assert self.names(tmp_path) == ['console.g1.log', 'console.log']
        # What comes late is read as well, and carried at the next move.
        with (tmp_path / 'console.log').open('ab') as late:
            late.write(b'late\n')
        assert reader.read_tail(moved[0][1], 99).data == b'old\nlate\n'
        virtlogd.daemon = privileged.UP
        virtlogd.open.clear()
        carrier.send(None, transfer.moves(str(tmp_path), str(tmp_path)), None)
        assert self.names(tmp_path) == ['console.g2.history']
        assert len(caplog.messages) == 1

    @pytest.mark.parametrize(('daemon', 'warnings'), [
        (privileged.UP, 0), (privileged.DOWN, 0), (privileged.REFUSED, 1)])
    def test_it_does_not_write(self, virtlogd, carrier, moved, tmp_path,
                               caplog, daemon, warnings) -> None:
        """Or nobody can ever tell."""
        virtlogd.daemon = daemon
        with caplog.at_level(logging.WARNING):
            carrier.send(None, moved, None)
        assert len(caplog.messages) == warnings
        assert self.names(tmp_path) == ['console.g1.history',
                                        'console.g1.log']

    @pytest.mark.parametrize('way', ['stage', 'send'])
    def test_the_directory_was_renamed(self, virtlogd, carrier, tmp_path,
                                       caplog, way) -> None:
        """Of a cold migration: virtlogd knows the log by its old path."""
        written = str(tmp_path / 'here' / 'console.log')
        virtlogd.open.add(written)
        here, there = tmp_path / 'here_resize', tmp_path / 'here'
        here.mkdir()
        there.mkdir()
        (here / 'console.log').write_bytes(b'old\n')
        moves = transfer.moves(str(here), str(there))
        if way == 'stage':
            assert carrier.stage(None, moves, str(there), [written])
        else:
            carrier.send(None, moves, None, written_as=[written])
            assert (there / 'console.g1.history').read_bytes() == b'old\n'
        (said,) = caplog.messages
        assert written in said

    def test_a_log_that_is_in_use_is_not_replaced(self, carrier, moved,
                                                  tmp_path, caplog) -> None:
        """What came before is beside it, and that is said once."""
        assert carrier.stage(None, moves=moved, directory=str(tmp_path))
        for _ in range(2):
            carrier.adopt('uuid', str(tmp_path), f'{tmp_path}_console',
                          in_use=['console.log'])
        assert self.names(tmp_path) == ['console.history', 'console.log']
        (said,) = caplog.messages
        assert f'{tmp_path}/console.history' in said


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
