# SPDX-License-Identifier: Apache-2.0
"""The file system of one guest's log hangs; the others' lines come on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until

HANGS, OTHER = 'guest1', 'guest2'


class Streamed:
    """Two guests that write, and a stream that sees a mirror of one's log."""

    def __init__(self, host: LibvirtHost, console: Console,
                 directory: Path) -> None:
        self._host = host
        self._pid = directory / 'pid'
        self.state = directory / 'state'
        self._output, self._said = directory / 'output', directory / 'said'
        for name in (HANGS, OTHER):
            path = log_of(host, name)
            define(host, guest.boot_sector(interval=0.1),
                   [guest.pty_serial(path)], name=name).create()
            until(path.exists, 'a log')
        # All is given from its beginning.
        self.state.write_text('{"version": 1, "logs": []}')
        with self._output.open('wb') as output, self._said.open('wb') as said:
            self.process = subprocess.Popen(
                host.command(
                    sys.executable, '-m', 'tests.lab.mirror',
                    log_of(host, HANGS).parent, self._pid,
                    *console.command, 'stream', '--state', self.state),
                stdin=subprocess.DEVNULL, stdout=output, stderr=said)
        self.until_more(HANGS, OTHER)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        os.kill(int(self._pid.read_text()), signal.SIGSTOP)

    def release(self) -> None:
        os.kill(int(self._pid.read_text()), signal.SIGCONT)

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in
                self._output.read_bytes().split(b'\n')[:-1]]

    def lines(self, name: str) -> list[str]:
        return [one['text'] for one in self.objects()
                if one['guest'] == name and 'text' in one]

    def events(self, name: str) -> list[str]:
        return [one['event'] for one in self.objects()
                if one['guest'] == name and 'event' in one]

    def said(self) -> str:
        return self._said.read_text()

    def until_more(self, *names: str, count: int = 10) -> None:
        """Until so many more lines of some guests have come."""
        before = {name: len(self.lines(name)) for name in names}
        until(lambda: all(len(self.lines(name)) >= before[name] + count
                          for name in names),
              f'more of {names}, beside: {self.said()}')

    def assert_whole(self, name: str) -> None:
        """Each line once and in order, from the first one on."""
        lines = self.lines(name)
        assert lines == [f'line {number:08d}'
                         for number in range(1, len(lines) + 1)]


@pytest.fixture
def streamed(libvirt_host: LibvirtHost, console: Console,
             tmp_path: Path) -> Iterator[Streamed]:
    made = Streamed(libvirt_host, console, tmp_path)
    yield made
    made.close()


def position(streamed: Streamed, name: str) -> str:
    """How far a state file says that the stream has come."""
    (found,) = [log['position'] for log in
                json.loads(streamed.state.read_text())['logs']
                if log['guest'] == name]
    return str(found)


def test_the_others_come_on(streamed: Streamed) -> None:
    streamed.hang()
    streamed.until_more(OTHER)
    until(lambda: 'stalled' in streamed.events(HANGS), 'it is said')
    before = streamed.lines(HANGS)
    streamed.until_more(OTHER, count=30)
    assert streamed.lines(HANGS) == before
    # It is kept how far the other one has come.
    saved = position(streamed, OTHER)
    until(lambda: position(streamed, OTHER) != saved, 'it is saved')
    streamed.release()
    streamed.until_more(HANGS, OTHER, count=30)
    for name in (HANGS, OTHER):
        streamed.assert_whole(name)
    assert streamed.events(HANGS)[-2:] == ['stalled', 'answers']
    assert set(streamed.events(OTHER)) <= {'started'}
    assert streamed.said().count('does not answer') == 1
    assert f'The log of guest {HANGS} does not answer' in streamed.said()


def test_it_ends_while_a_file_system_hangs(streamed: Streamed) -> None:
    streamed.hang()
    streamed.until_more(OTHER)
    until(lambda: 'stalled' in streamed.events(HANGS), 'it is said')
    streamed.until_more(OTHER)
    end = streamed.lines(OTHER)
    streamed.process.send_signal(signal.SIGTERM)
    # The file system hangs for as long as the test lasts.
    assert streamed.process.wait(60) == 0
    streamed.assert_whole(OTHER)
    assert streamed.lines(OTHER)[:len(end)] == end
    # The state is of what was written last: the next one goes on there.
    *_, last = [one for one in streamed.objects()
                if one['guest'] == OTHER and 'position' in one]
    offset = int(last['position'].split('-')[3], 16)
    assert int(position(streamed, OTHER).split('-')[2], 16) == offset
