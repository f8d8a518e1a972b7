# SPDX-License-Identifier: Apache-2.0
"""What a terminal is sent is in its own encoding, and does no more there.

A byte of a harmless character in UTF-8 is what begins a control sequence
(C1) for a terminal that reads ISO 8859-1.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab.command import Console
from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.cmd import attach, follow, interactive, stream, terminal
from virtlogd_driver.cmd.control_sequences import Neutraliser
from virtlogd_driver.node.hypervisor import Guest
from virtlogd_driver.stream.service import News

#: In ISO 8859-1 these bytes erase what was scrolled away.
WRITTEN = 'Û3J 中'.encode()
SHOWN = b'\xdb3J \\u4e2d'
C1 = frozenset(range(0x80, 0xa0))


class Terminal(io.TextIOWrapper):
    """A terminal, or what is none, and what it was sent."""

    def __init__(self, path: Path, encoding: str = 'iso8859-1',
                 is_terminal: bool = True) -> None:
        super().__init__(path.open('wb'), encoding=encoding,
                         errors='backslashreplace', newline='')
        self._is_terminal = is_terminal
        self._path = path

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def seen(self) -> bytes:
        self.flush()
        return self._path.read_bytes()


@pytest.fixture(params=[True, False], ids=['terminal', 'file'])
def out(request: pytest.FixtureRequest, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv('TERM', 'xterm')
    with Terminal(tmp_path / 'seen', is_terminal=request.param) as made:
        yield made


@pytest.mark.parametrize('encoding', [
    'ascii', 'iso8859-1', 'iso8859-15', 'koi8-r', 'cp1251', 'cp1252'])
def test_no_character_is_a_control_character_there(
        encoding: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ''.join(map(chr, range(0x10000))).encode(errors='replace')
    text = Neutraliser().text(everything, True)
    with Terminal(tmp_path / 'seen', encoding) as out:
        monkeypatch.setattr('sys.stdout', out)
        sent = terminal.encode(text)
        assert not C1 & set(sent)
        assert terminal.had(text) == sent.decode(encoding)
        assert terminal.encode(terminal.had(text)) == sent


@pytest.mark.parametrize(('encoding', 'text'), [
    ('utf-8', 'Û 中'), ('koi8-r', 'привет'), ('shift_jis', '中ソ'),
    ('gb18030', '中文')])
def test_what_a_terminal_has_is_shown(
        encoding: str, text: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    with Terminal(tmp_path / 'seen', encoding) as out:
        monkeypatch.setattr('sys.stdout', out)
        assert terminal.encode(text).decode(encoding) == text
        assert terminal.had(text) == text


@pytest.mark.parametrize('options', [(), ('--plain',)])
def test_show(tmp_path: Path, options: tuple[str, ...]) -> None:
    log = tmp_path / 'console.log'
    log.write_bytes(WRITTEN)
    node = tmp_path / 'node.xml'
    node.write_text(fake_libvirt.NODE.format(domains=fake_libvirt.domain_xml(
        fake_libvirt.serial(log=str(log)), name='guest1')))
    with Console(f'test://{node}') as console:
        for pager in ('cat', 'tee'):
            on_terminal = console.on_terminal(
                'show', 'guest1', *options, PYTHONIOENCODING='iso8859-1',
                PAGER=pager)
            assert on_terminal.wait() == 0
            assert on_terminal.seen.startswith(SHOWN)
        assert console.output('show', 'guest1', *options) == WRITTEN


@pytest.mark.parametrize('several', [False, True])
@pytest.mark.parametrize('plain', [False, True])
def test_follow(out: Terminal, monkeypatch: pytest.MonkeyPatch,
                several: bool, plain: bool) -> None:
    monkeypatch.setattr('sys.stdout', out)
    labels = {'log': 'a| ', 'other': 'b| '} if several else {'log': ''}
    screen = follow._Screen(labels, stamps=False, raw=False, plain=plain)
    screen.put('log', WRITTEN + b'\n')
    screen.close()
    assert out.seen.startswith(labels['log'].encode() + (
        SHOWN if out.isatty() else WRITTEN) + b'\n')


def test_a_row_that_has_not_ended_fits_as_it_is_shown(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise not all of it can be taken away."""
    monkeypatch.setenv('COLUMNS', '20')
    monkeypatch.setattr('virtlogd_driver.cmd.interleave.PATIENCE', 0.0)
    with Terminal(tmp_path / 'seen') as out:
        monkeypatch.setattr('sys.stdout', out)
        screen = follow._Screen({'log': 'a| ', 'other': 'b| '},
                                stamps=False, raw=False)
        screen.put('log', '中'.encode() * 9)
        screen.flush()
        assert out.seen == b'\r\x1b[Ka| \\u4e2d\\u4e2d\\u4e'


def test_raw_output_is_as_it_is(
        out: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('sys.stdout', out)
    screen = follow._Screen({'log': ''}, stamps=False, raw=out.isatty())
    screen.put('log', WRITTEN + b'\xff\xc3')
    screen.flush()
    assert out.seen == WRITTEN + b'\xff\xc3'


def test_attach(out: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_console: object, _connect: object, show: Any, _escape: bytes,
            _keys: int, screen: int, **_: object) -> bool:
        os.write(screen, show(WRITTEN))
        if out.isatty():
            interactive._say(screen, 'guest Û is gone')
        return True

    def missing(*_: object) -> None:
        raise exception.LogNotFound('there is none')

    monkeypatch.setattr('sys.stdout', out)
    guest = Guest('uuid', 'guest1', True, 'running', fake_libvirt.domain_xml(
        "<serial type='pty'><source path='/dev/pts/1'/></serial>"))
    host: Any = SimpleNamespace(
        guest=lambda _: guest, is_relayed=lambda _: False,
        read_tail=missing, read_from=missing)
    monkeypatch.setattr(attach, '_connect', lambda *_: None)
    monkeypatch.setattr(interactive, 'run', run)
    with contextlib.closing(open(os.devnull)) as keys:
        monkeypatch.setattr('sys.stdin', keys)
        assert attach.run(host, SimpleNamespace(
            guest='guest1', port=0, raw=False, watch=False, take_over=False,
            lines=0, escape=b'\x1d')) == 0
    assert out.seen.startswith(SHOWN if out.isatty() else WRITTEN)
    assert not out.isatty() or b'[guest \xdb is gone]' in out.seen


def test_stream(out: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('sys.stdout', out)
    news = News()
    stream._Writer(news).write(['{"text": "Û3J 中"}\n'])
    news.close()
    assert out.seen == (b'{"text": "\xdb3J ?"}\n' if out.isatty()
                        else '{"text": "Û3J 中"}\n'.encode())
