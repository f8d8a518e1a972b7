# SPDX-License-Identifier: Apache-2.0
"""Tests of a server that moves between two hosts share these functions."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fixtures
import pytest

from tests.lab import guest
from tests.lab.nova_node import Server
from tests.lab.two_hosts import TwoHosts
from tests.lab.wait import until

Use = Callable[[fixtures.Fixture], Any]
Make = Callable[..., TwoHosts]

#: As much as the tests ever write.
LIMIT = 64 * 1024 * 1024
UNCUT = {('virtlogd', 'max_console_bytes'): LIMIT,
         ('virtlogd', 'max_history_bytes'): LIMIT}
#: Writes numbered lines for as long as it runs.
WRITER = guest.disk_image(guest.boot_sector(interval=0.05, burst=2))
#: Ten lines, then what is typed: no line is cut off when it is switched off.
QUIET = guest.disk_image(guest.boot_sector(count=10))

#: What a guest writes, but for the number.
_LINE = 'line 00000000'
#: Any beginning of a line, where the guest starts again.
_CUT_OFF = re.compile(
    r'^(?:l|li|lin|line|line \d{0,8}\r?)(?=line 00000001$)', re.MULTILINE)

both_storages = pytest.mark.parametrize(
    'shared', [False, True], ids=['separate', 'shared'])
#: nova copies the whole disk where the directories are separate.
cold_storages = pytest.mark.parametrize(
    'shared', [pytest.param(False, marks=pytest.mark.long), True],
    ids=['separate', 'shared'])


class Before(fixtures.Fixture):
    """Something that happens just before a method of a driver is called."""

    def __init__(self, driver: Any, method: str,
                 happens: Callable[[], object]) -> None:
        super().__init__()
        self._driver = driver
        self._method = method
        self._happens = happens

    def _setUp(self) -> None:
        called = getattr(self._driver, self._method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._happens()
            return called(*args, **kwargs)
        self.useFixture(fixtures.MockPatchObject(
            self._driver, self._method, call))


def numbers(output: str, begins_anywhere: bool = False) -> list[int]:
    """The numbers of all lines; the last one may not be whole yet.

    Without what assert_interactive has left, and without the line that a
    start of the guest cuts off: it went where there is no log, or was never
    written.

    :param begins_anywhere: what was written before a move is elsewhere, and
        the guest has moved in the middle of a line, which is left out
    """
    if begins_anywhere:
        begun, _, output = output.partition('\n')
        assert _is_line(_LINE[:len(_LINE) - len(begun)] + begun), repr(begun)
    output = _CUT_OFF.sub('', output.replace('typed text\n', ''))
    lines = output.split('\n')[:-1]
    for line in lines:
        assert _is_line(line), repr(line)
    return [int(line[5:]) for line in lines]


def _is_line(line: str) -> bool:
    return re.fullmatch(r'line \d{8}', line) is not None


def assert_exact(nova: TwoHosts, server: Server, boots: int = 1) -> int:
    """No line lost, doubled or out of order; the number of lines."""
    found = numbers(nova.console_output(server))
    starts = [index for index, n in enumerate(found) if n == 1]
    assert len(starts) == boots, starts
    for first, end in zip(starts, [*starts[1:], len(found)], strict=True):
        assert found[first:end] == list(range(1, end - first + 1))
    return len(found)


def wait_for_more(nova: TwoHosts, server: Server, boots: int = 1) -> None:
    """Until the guest has written something where it is now."""
    until(lambda: nova.console_output(server).count(
        'line 00000001\n') == boots, f'the guest has started {boots} times',
        60)
    count = assert_exact(nova, server, boots)
    until(lambda: assert_exact(nova, server, boots) > count,
          'the guest writes on')


def other(name: str) -> str:
    return {'host1': 'host2', 'host2': 'host1'}[name]


def files(nova: TwoHosts, name: str, server: Server) -> list[str]:
    """The files of the server's logs on a host.

    Without the list of its starts, which may be about to be replaced.
    """
    return sorted(path.name for path in nova.directory_on(
        name, server).glob('console*') if path.name not in (
            'console.boots', 'console.boots.new', 'console.received'))


def devices(nova: TwoHosts, server: Server) -> list[tuple[str, ...]]:
    """Of each serial port: its type, its address, its log's name."""
    found = []
    for serial in nova.guest_xml(server).findall('devices/serial'):
        source, log = serial.find('source'), serial.find('log')
        written = log if log is not None else source
        path = None if written is None else (
            written.get('file') or written.get('path'))
        found.append((
            str(serial.get('type')),
            str(None if source is None else source.get('host')),
            str(path and Path(path).name if serial.get('type') != 'pty'
                or log is not None else None)))
    return found


def held(nova: TwoHosts, name: str) -> set[str]:
    """The guests that hold TCP ports of a host."""
    return set(nova.driver_of(name)._consoles.ports.held().values())


def warnings(nova: TwoHosts,
             text: str = 'has not followed it yet|not in its place yet'
             '|is not put in place|is not sent after') -> list[str]:
    """Lines of nova's log that match; without more of a guest's output that
    has not followed it yet, or is not in its place yet."""
    return [line for line in nova.log().splitlines()
            if re.search(text, line)]


def said_in(nova: TwoHosts, line: str) -> str:
    """A line of nova's log with what the message goes on with."""
    after = nova.log().split(line)[1]
    return line + re.split(r'\n\d{4}-\d\d-\d\d ', after)[0]


def assert_interactive(nova: TwoHosts, server: Server) -> None:
    with nova.serial_console(server) as terminal:
        terminal.type(b'typed text\r')
        terminal.read_until(b'typed text\r\n')


def type_text(nova: TwoHosts, server: Server, text: str) -> None:
    with nova.serial_console(server) as terminal:
        terminal.type(f'{text}\r'.encode())
        terminal.read_until(f'{text}\r\n'.encode())
    nova.wait_for_output(server, f'{text}\n')
