# SPDX-License-Identifier: Apache-2.0
"""follow goes on while others move and remove what virtlogd writes."""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver.console_log.log import MARKED_BYTES


@pytest.fixture
def log(libvirt_host: LibvirtHost,
        request: pytest.FixtureRequest) -> Iterator[Path]:
    """The log of a guest that writes a line every tenth of a second.

    The parameter is how many; none: without end.
    """
    path = log_of(libvirt_host)
    path.with_name('console.log.0').write_bytes(b'from before\n')
    sector = guest.boot_sector(count=getattr(request, 'param', None),
                               interval=0.1)
    domain = define(libvirt_host, sector, [guest.pty_serial(path)])
    domain.create()
    until(lambda: path.exists() and b'line' in path.read_bytes(), 'it writes')
    yield path
    domain.destroy()


class Follow:
    """A follow that runs, and what it has written."""

    def __init__(self, console: Console, directory: Path,
                 *arguments: str) -> None:
        self._out, self._said = directory / 'out', directory / 'said'
        console.start('follow', *arguments, 'guest1',
                      output=self._out, messages=self._said)
        self.wait_for_more()

    @property
    def shown(self) -> bytes:
        return self._out.read_bytes()

    @property
    def lines(self) -> list[bytes]:
        """Those that have ended."""
        return self.shown.rpartition(b'\n')[0].splitlines()

    @property
    def said(self) -> str:
        return self._said.read_text()

    def wait_for_more(self, count: int = 5) -> None:
        wanted = len(self.lines) + count
        until(lambda: len(self.lines) >= wanted, 'more lines')

    def assert_each_line_once(self, gaps: int = 0) -> None:
        numbers = [int(line.removeprefix(b'line ')) for line in self.lines
                   if re.fullmatch(rb'line 0\d{7}', line)]
        steps = [after - before for before, after in
                 itertools.pairwise(numbers)]
        assert all(step > 0 for step in steps), self._out.read_text()
        assert sum(step > 1 for step in steps) <= gaps


@pytest.fixture
def follow(console: Console, tmp_path: Path, log: Path) -> Follow:
    return Follow(console, tmp_path)


@pytest.mark.parametrize('create', [False, True])
def test_renamed_and_nobody_tells_virtlogd(
        console: Console, log: Path, follow: Follow, create: bool) -> None:
    """logrotate without copytruncate; with and without "create"."""
    for _ in range(2):
        if log.with_name('console.log.1').exists():
            log.with_name('console.log.1').rename(
                log.with_name('console.log.2'))
        if log.exists():
            log.rename(log.with_name('console.log.1'))
        if create:
            log.touch()
        follow.wait_for_more()
    follow.assert_each_line_once()
    shown = console.output('show', 'guest1').splitlines()
    until(lambda: shown[-2] in follow.lines, 'what show shows')


def test_copytruncate(log: Path, follow: Follow) -> None:
    for _ in range(2):
        if log.with_name('console.log.1').exists():
            log.with_name('console.log.1').rename(
                log.with_name('console.log.2'))
        shutil.copy(log, log.with_name('console.log.1'))
        with log.open('wb'):
            pass
        follow.wait_for_more()
    # What was written between copying and truncating is nowhere.
    follow.assert_each_line_once(gaps=2)


@pytest.mark.parametrize('how', ['copytruncate', 'nocreate', 'create'])
def test_logrotate_itself(log: Path, follow: Follow, tmp_path: Path,
                          how: str) -> None:
    conf = tmp_path / 'logrotate.conf'
    conf.write_text(
        f'{log} {{\nrotate 3\nmissingok\n{how}\nsu root root\n}}\n')
    for _ in range(3):
        subprocess.run(['logrotate', '-f', '-s', tmp_path / 'state', conf],
                       check=True)
        follow.wait_for_more()
    follow.assert_each_line_once(gaps=3 if how == 'copytruncate' else 0)


@pytest.mark.parametrize('log', [8], indirect=True)
@pytest.mark.parametrize('change', [['rm'], ['sed', '-i', 's/no/yes/']])
def test_removed_or_replaced(log: Path, follow: Follow,
                             change: list[str]) -> None:
    """What is written to the file of that name next is not lost.

    What replaces it is known by its bytes, if it has all that was shown, and
    that is enough to tell.
    """
    until(lambda: follow.shown.endswith(guest.lines(8, 8)), 'its last line')
    assert log.stat().st_size >= MARKED_BYTES
    seen = follow.lines
    subprocess.run([*change, log], check=True)
    with log.open('ab') as file:
        file.write(b'line 99999999\n')
    until(lambda: follow.lines[-1] == b'line 99999999', 'what is there now')
    follow.assert_each_line_once()
    assert follow.lines[:len(seen)] == seen
    assert follow.lines.count(b'from before') <= 1


def test_a_line_that_pauses(console: Console, libvirt_host: LibvirtHost,
                            tmp_path: Path) -> None:
    """Nor is it cut within a character."""
    log = log_of(libvirt_host)
    log.touch()
    define(libvirt_host, guest.boot_sector(), [guest.pty_serial(log)])
    out, said = tmp_path / 'out', tmp_path / 'said'
    console.start('follow', '-t', 'guest1', output=out, messages=said)
    pieces = (b'gr\303', b'\266\303\237e\r\n', b'Loading initrd ', b'.',
              b' done\r\n')
    for count, piece in enumerate(pieces, 1):
        with log.open('ab') as file:
            file.write(piece)
        written = b''.join(pieces[:count])
        # Also, so that all that was waited for has been written.
        until(lambda wanted=written: text(out) == wanted, 'the piece alone')
    out.read_text()


def text(out: Path) -> bytes:
    """Without the times."""
    return re.sub(rb'(?m)^[0-9-]{10}T\S+ ', b'', out.read_bytes())
