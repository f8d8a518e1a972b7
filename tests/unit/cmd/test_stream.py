# SPDX-License-Identifier: Apache-2.0
"""``stream`` as an operator runs it, with guests of libvirt's test driver."""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.command import Console
from tests.lab.wait import until
from tests.unit import fake_libvirt
from tests.unit.stream.schema import VALIDATOR
from virtlogd_driver.cmd import stream
from virtlogd_driver.console_log import log
from virtlogd_driver.console_log.directory import open_directory
from virtlogd_driver.history import boot
from virtlogd_driver.stream.lines import Line
from virtlogd_driver.stream.service import News


class Guests:
    """Two guests with logs, and the command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.logs = [directory / name / 'console.log'
                     for name in ('one', 'two')]
        for path in self.logs:
            path.parent.mkdir()
            path.write_bytes(b'before\n')
        node = directory / 'node.xml'
        node.write_text(fake_libvirt.NODE.format(domains=''.join(
            fake_libvirt.domain_xml(fake_libvirt.serial(log=str(path)),
                                    name=path.parent.name)
            for path in self.logs)))
        self.console = Console(f'test://{node}')
        self.state = directory / 'state'
        self._out = directory / 'out'

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it; what is written from now on is in its output."""
        self.state.unlink(missing_ok=True)
        process = self.console.start(
            'stream', '--state', str(self.state), *arguments,
            output=self._out, messages=self.directory / 'said')
        self.until_followed(0)
        return process

    def until_followed(self, number: int) -> None:
        """Until what is written to a log from now on is given."""
        probe = b'probe %d' % number

        def follows() -> bool:
            write(self.logs[number], probe + b'\n')
            return probe in self._out.read_bytes()
        until(follows, f'it follows log {number}')

    def until_written(self, text: bytes) -> bytes:
        until(lambda: text in self._out.read_bytes(), repr(text))
        return self._out.read_bytes()

    def objects(self) -> list[dict[str, Any]]:
        found = [json.loads(line)
                 for line in self._out.read_bytes().splitlines()]
        for one in found:
            VALIDATOR.validate(one)
        return found


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Guests]:
    made = Guests(tmp_path)
    with made.console:
        yield made


def write(path: Path, data: bytes) -> None:
    with path.open('ab') as file:
        file.write(data)


def test_objects(guests: Guests) -> None:
    process = guests.start()
    guests.until_followed(1)
    write(guests.logs[1], b'\xff of two\r\n')
    guests.until_written(b'of two')
    process.terminate()
    assert process.wait(30) == 0
    assert (guests.directory / 'said').read_bytes() == b''
    found = guests.objects()
    assert 'before' not in [one.get('text') for one in found]
    (two,) = [one for one in found if one.get('guest') == 'two'
              and 'probe' not in one.get('text', '')]
    assert (two['text'], two['raw']) == ('\N{REPLACEMENT CHARACTER} of two',
                                         '/yBvZiB0d28=')


def test_text(guests: Guests) -> None:
    guests.start('--format', 'text', 'two', 'one')
    guests.until_followed(1)
    write(guests.logs[1], b'\x1b[31mred\x1b[0m \x1b]0;title\x07 100\r99\r\n')
    shown = guests.until_written(b'^M99').decode()
    assert 'two | ' in shown
    # No terminal: no colours.
    assert 'red ^[]0;title^G 100^M99\n' in shown


def test_plain_text(guests: Guests) -> None:
    guests.start('--format', 'text', '--plain')
    guests.until_followed(1)
    write(guests.logs[1], b'\x1b[31mred\x1b[0m\n100%\rdone\x1b[K\n')
    shown = guests.until_written(b'done').decode()
    assert 'two | red\n' in shown
    assert 'two | done\n' in shown


def test_one_guest_alone(guests: Guests) -> None:
    guests.start('one')
    write(guests.logs[1], b'of two\n')
    write(guests.logs[0], b'of one\n')
    guests.until_written(b'of one')
    assert {one['guest'] for one in guests.objects()} == {'one'}


@pytest.mark.parametrize('arguments', [
    ('--since', '2001-01-01T00:00:00Z'), ('--boot', '1')])
def test_it_begins_earlier(guests: Guests, arguments: tuple[str, ...]) -> None:
    path = guests.logs[1]
    with open_directory(str(path.parent)) as directory:
        end = log.read_tail(directory, path.name, 0).position
    for time, position in ((10.0, None), (2e9, end)):
        boot.add(str(path.parent), boot.Boot(time, {0: position}))
    guests.start(*arguments)
    guests.until_written(b'"before"')
    assert [one['text'] for one in guests.objects()
            if one['guest'] == 'two'] == ['before']


def test_show_has_the_same_beginnings(guests: Guests) -> None:
    path = guests.logs[1]
    with open_directory(str(path.parent)) as directory:
        end = log.read_tail(directory, path.name, 0).position
    for time, position in ((10.0, None), (20.0, end)):
        boot.add(str(path.parent), boot.Boot(time, {0: position}))
    write(path, b'after \x1b[1mit\n')
    output = guests.console.output
    assert output('show', 'two', '--boot', '1') == b'before\n'
    assert output('show', 'two', '--boot', '-1') == b'before\n'
    assert output('show', 'two', '--boot', '0') == b'after \x1b[1mit\n'
    assert output('show', 'two', '--boot', '0', '--plain') == b'after it\n'
    assert output('show', 'two', '--boot', '1', '--bytes', '3') == b're\n'
    assert output('show', 'two', '--boot', '1', '--lines', '9') == (
        b'before\n')
    since = guests.console.run(
        'show', 'two', '--since', '1970-01-01T00:00:15Z')
    assert since.stdout == b'before\nafter \x1b[1mit\n'
    assert b'from 1970-01-01T' in since.stderr
    missing = guests.console.run('show', 'two', '--boot', '3')
    assert missing.returncode == 1
    assert b'there are 1 to 2' in missing.stderr


@pytest.mark.parametrize(('state', 'says'), [
    ('no JSON', b'Move it away'), (None, b'No such file or directory. See')])
def test_a_state_file_that_cannot_be_used(
        guests: Guests, state: str | None, says: bytes) -> None:
    path = guests.state if state else guests.directory / 'none' / 'state'
    if state:
        path.write_text(state)
    done = guests.console.run('stream', '--state', str(path))
    assert done.returncode == 1
    assert says in done.stderr
    assert str(path).encode() in done.stderr
    # What was not given yet would be lost with what can be read later.
    assert (b'Move it away' in done.stderr) == bool(state)


def test_a_state_file_is_of_one_stream(guests: Guests) -> None:
    process = guests.start()
    second = guests.console.run('stream', '--state', str(guests.state))
    assert second.returncode == 1
    assert b'Another stream keeps its state in' in second.stderr
    # However the first one ends.
    process.kill()
    process.wait(30)
    guests.start()


def test_what_it_says_gets_to_people(guests: Guests) -> None:
    guests.logs[1].rename(guests.directory / 'elsewhere')
    guests.logs[1].symlink_to(guests.directory / 'elsewhere')
    guests.start()
    until(lambda: f'virtlogd-console: {guests.logs[1]} is not a regular file'
          in (guests.directory / 'said').read_text(), 'it is said')


@pytest.mark.parametrize('plain', [False, True])
def test_no_line_of_a_guest_is_without_its_name(plain: bool) -> None:
    """Nor is a row that its control characters have made too long."""
    waiting: list[str] = []
    sink = stream._TextSink('one |', waiting, colour=False, plain=plain)
    forged = b'2026-01-31T12:00:00.000+00:00 two | of two'
    sink.line(Line(b'\x7f' * 33_000 + b'\r' + forged, 0.0, 0), None, '')
    sink.line(Line(b'x' * (1 << 16), 0.0, 0), None, '')
    lines = ''.join(waiting).splitlines()
    assert len(lines) == 2
    assert all(' one | ' in line[:40] for line in lines)


def test_it_ends_while_nobody_reads(guests: Guests) -> None:
    read, out = os.pipe()
    with contextlib.ExitStack() as at_the_end:
        at_the_end.callback(os.close, read)
        at_the_end.callback(os.close, out)
        process = at_the_end.enter_context(subprocess.Popen(
            [*guests.console.command, 'stream'], stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.PIPE,
            env=guests.console._environment({})))
        at_the_end.callback(process.kill)

        def is_full() -> bool:
            write(guests.logs[0], b'x' * 10_000 + b'\n')
            # Not counted in bytes: what is written begins a page of its own
            # where it does not fit in the last, so that a pipe may be full
            # with far less than its 64 KiB.
            return not select.select([], [out], [], 0)[1]
        until(is_full, 'it waits for a reader')
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b''


@pytest.mark.parametrize('before', [
    b'', b'{"text": "one"}\n', b'{"text": "one"}\n{"tex'])
def test_a_line_that_was_cut_in_a_file_spoils_no_other(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        before: bytes) -> None:
    """A kill has cut it, or a full disk: it is given again."""
    path = tmp_path / 'out'
    path.write_bytes(before)
    news = News()
    with path.open('ab', buffering=0) as out:
        monkeypatch.setattr('sys.stdout', out)
        writer = stream._Writer(news)
        writer.write([])
        writer.write(['{"text": "two"}\n'])
        writer.write(['{"text": "three"}\n'])
    news.close()
    lines = path.read_bytes().splitlines()
    assert lines == [*before.splitlines(), b'{"text": "two"}',
                     b'{"text": "three"}']


def test_a_start_that_is_not_noted_begins_with_now(guests: Guests) -> None:
    """As is said; a guest that has none is not given whole."""
    boot.write(str(guests.logs[1].parent), [
        boot.Boot(1.0, {0: None}), boot.Boot(2.0, {0: None})])
    guests.start('--boot', '2')
    guests.until_followed(1)
    texts = [(one['guest'], one['text']) for one in guests.objects()
             if 'text' in one]
    assert ('one', 'before') not in texts
    assert ('two', 'before') in texts
    said = (guests.directory / 'said').read_text()
    assert said.startswith('virtlogd-console: Start 2 of this guest is not '
                           f'noted beside {guests.logs[0]}: ')
    assert said.count('\n') == 1


@pytest.mark.parametrize('mode', ['ab', 'wb'])
def test_a_file_that_is_truncated_goes_on_at_its_start(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """logrotate does so (copytruncate), whether it was opened by >> or >."""
    path = tmp_path / 'out'
    news = News()
    with path.open(mode, buffering=0) as out:
        monkeypatch.setattr('sys.stdout', out)
        writer = stream._Writer(news)
        writer.write(['{"text": "one"}\n'])
        os.truncate(path, 0)
        writer.write(['{"text": "two"}\n'])
    news.close()
    assert path.read_bytes() == b'{"text": "two"}\n'


def test_it_ends_with_its_reader(guests: Guests) -> None:
    process = subprocess.Popen(
        [*guests.console.command, 'stream'], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=guests.console._environment({}))
    assert process.stdout is not None
    process.stdout.close()

    def has_ended() -> bool:
        write(guests.logs[0], b'x\n')
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        return process.returncode is not None
    until(has_ended, 'it has ended')
    assert process.returncode == 141
