# SPDX-License-Identifier: Apache-2.0
"""Each parser keeps what it promises for input that nobody would write.

Only the errors that its contract names may come out of one.
"""

import contextlib
import json
import math
import os
import socket
import struct
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from tests.unit import descriptors as open_descriptors
from tests.unit import fake_libvirt
from tests.unit.cmd.test_control_sequences import assert_harmless
from virtlogd_driver import exception
from virtlogd_driver.cmd import interactive, interleave, table
from virtlogd_driver.cmd.control_sequences import Neutraliser
from virtlogd_driver.cmd.interleave import Interleaved
from virtlogd_driver.cmd.plain import Plain
from virtlogd_driver.cmd.telnet import Telnet
from virtlogd_driver.console_log import generation, lines
from virtlogd_driver.console_log.log import LogRead, LogSince, Position
from virtlogd_driver.guest import char_device, metadata
from virtlogd_driver.history import boot, inbox, outbox, record
from virtlogd_driver.stream import lines as stream_lines
from virtlogd_driver.stream import state
from virtlogd_driver.stream.lines import Splitter
from virtlogd_driver.virtlogd import rpc, settings

Check = Callable[..., None]

#: By name: makes a check that hypothesis runs.
TARGETS: dict[str, Callable[[], Check]] = {}


def target(*inputs: st.SearchStrategy[Any]) -> Callable[[Check], Check]:
    """What a check is given."""
    def register(check: Check) -> Check:
        TARGETS[check.__name__] = lambda: given(*inputs)(check)
        return check

    return register


#: Numbers as text: more digits than Python converts (4300), signs, none.
_NUMBERS = st.one_of(
    st.integers().map(str), st.integers(4000, 6000).map(lambda n: '9' * n),
    st.sampled_from(('', '-1', '+1', ' 1', '0x1', '1e9', '٣', '²', '007')))
#: Brackets, deeper than Python's stack.
_DEEP = st.integers(900, 6000)
_TEXT = st.text(max_size=20)


def joined(*pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts that are put together from pieces, in any number and order."""
    return st.lists(st.one_of(*pieces), max_size=30).map(''.join)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, cut at these places (modulo its length)."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in
            zip([0, *ends], [*ends, len(data)], strict=True)]


_PLACES = st.lists(st.integers(0, 10_000), max_size=8)


# Files of libvirt

_ATTRIBUTES = st.dictionaries(
    st.sampled_from(('type', 'mode', 'host', 'service', 'path', 'append',
                     'file', 'port', 'name', 'tls', 'seclabel')),
    st.one_of(_NUMBERS, st.sampled_from(
        ('tcp', 'pty', 'unix', 'bind', 'connect', 'on', 'http-alt', 'serial',
         'virtio', 'telnet', '&#0;', '&amp;', '&x;', '\ud800')),
        st.text('ab/.\x9b\u202e', max_size=8)), max_size=4)


@st.composite
def _element(draw: st.DrawFn, names: tuple[str, ...],
             inner: st.SearchStrategy[str]) -> str:
    name = draw(st.sampled_from(names))
    attributes = ''.join(f' {key}="{value}"'
                         for key, value in draw(_ATTRIBUTES).items())
    return f'<{name}{attributes}>{draw(inner)}</{name}>'


_PARTS = st.lists(_element(
    ('source', 'target', 'log', 'protocol', 'alias'), st.just('')),
    max_size=4).map(''.join)
_DEVICES = st.lists(_element(('serial', 'console', 'channel'), _PARTS),
                    max_size=5).map(''.join)
_DOMAINS = st.one_of(
    _DEVICES.map(lambda found: fake_libvirt.domain_xml(found)),
    _TEXT,
    _DEEP.map(lambda depth: fake_libvirt.domain_xml(
        '<serial>' * depth + '</serial>' * depth)),
    joined(st.sampled_from(
        ('<domain>', '</domain>', '<devices>', '<serial', ' type="tcp"', '>',
         '/>', '<!DOCTYPE x [<!ENTITY x "y">]>', '<?xml version="1.0"?>',
         '<?xml version="1.0" encoding="utf-16"?>', '&x;', '<!--', '-->')),
        _TEXT))


@target(_DOMAINS)
def domain_xml(text: str) -> None:
    """Devices, each with a number of its own, or InvalidGuestXML."""
    try:
        devices = char_device.parse(text)
    except exception.InvalidGuestXML:
        return
    assert len({device.number for device in devices}) == len(devices)
    for device in devices:
        assert device.number >= 0
        assert device.address is None or 0 <= device.address[1] < 65536
        assert device.log_file is None or isinstance(device.log_file, str)
        device.to_element()


_CONF = joined(
    st.sampled_from(('max_size', 'max_backups', 'stdio_handler', 'x', '=',
                     ' = ', '"', '"""', "'", '\n', '\r\n', ';', '#', ',', '[',
                     ']', '"logd"', '"file"', ' ', '\t', '\0', '\ud800')),
    _NUMBERS, _TEXT, _DEEP.map(lambda depth: 'x = ' + '[' * depth),
    _DEEP.map(lambda depth: f'max_size = {"[" * depth}{"]" * depth}\n'))


@target(_DOMAINS)
def nova_metadata(text: str) -> None:
    """Whatever libvirt has, there is metadata, or none of nova's."""
    metadata.parse(text)


@target(_CONF)
def libvirt_conf(text: str) -> None:
    """Settings, or InvalidConfFile; the same of the file as of the text."""
    with contextlib.suppress(exception.InvalidConfFile):
        settings.parse(text)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / 'libvirt.conf'
        path.write_bytes(text.encode(errors='surrogatepass'))
        for read in (settings.read_virtlogd_settings,
                     settings.read_stdio_handler, settings.check_qemu_conf):
            with contextlib.suppress(exception.InvalidConfFile):
                read(str(path))


# virtlogd

_HEADER = struct.Struct('>IIIiiIi')
_WORDS = st.sampled_from((0, 1, 2, 3, 5, 16, 28, 0x87539319, 0x7fffffff,
                          -1 & 0xffffffff))


@st.composite
def _reply(draw: st.DrawFn) -> bytes:
    payload = draw(st.one_of(
        st.binary(max_size=60),
        st.lists(_WORDS, max_size=8).map(
            lambda words: b''.join(word.to_bytes(4, 'big')
                                   for word in words))))
    return _HEADER.pack(
        draw(st.one_of(st.just(28 + len(payload)),
                       st.integers(0, 2 ** 32 - 1))),
        0x87539319, 1, draw(st.sampled_from((1, 2, 2, 2, 7))),
        draw(st.sampled_from((0, 1, 2, 5))), draw(st.integers(0, 2)),
        draw(st.integers(0, 3))) + payload


@target(st.one_of(_reply(), st.binary(max_size=200)), st.integers(0, 4),
       st.booleans())
def rpc_reply(reply: bytes, descriptors: int, opens: bool) -> None:
    """An answer, or a VirtlogdError; no descriptor is left open."""
    with (tempfile.TemporaryDirectory() as directory,
          open(os.memfd_create('sent')) as sent):
        path = os.path.join(directory, 'socket')
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            connection = rpc.Connection(path, 5.0)
            virtlogd, _ = listener.accept()
        with virtlogd, connection:
            virtlogd.sendall(reply)
            if descriptors:
                socket.send_fds(
                    virtlogd, [b'x'], [sent.fileno()] * descriptors)
            virtlogd.shutdown(socket.SHUT_WR)
            with contextlib.suppress(exception.VirtlogdError):
                if opens:
                    pipe, _ = connection.open_log(
                        'qemu', uuid.UUID(int=1), 'guest', '/log')
                    os.close(pipe)
                else:
                    connection.position('/log')
        assert open_descriptors.of(sent.fileno()) == 1


# What is beside a log

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), _TEXT,
              st.just('fe01-c0ffee-1f40-2a'), st.integers(300, 400).map(
                  lambda digits: 10 ** digits)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(_TEXT, _NUMBERS, st.sampled_from(
            ('time', 'positions', '0', '1'))), inner, max_size=3)),
    max_leaves=10)


@target(st.one_of(
    _JSON.map(json.dumps),
    st.tuples(_JSON, st.dictionaries(_NUMBERS, _JSON, max_size=3)).map(
        lambda found: json.dumps({'time': found[0], 'positions': found[1]})),
    _NUMBERS, _NUMBERS.map(lambda number: f'{{"time": {number}, '
                           '"positions": {}}'),
    _DEEP.map(lambda depth: '[' * depth), _TEXT,
    _DEEP.map(lambda depth: '{"time": 1, "positions": ' + '{"0":' * depth)))
def boots(line: str) -> None:
    """A start at a time that there is, or None; nothing is raised."""
    found = boot._parse(line.encode(errors='surrogatepass'))
    if found is not None:
        assert math.isfinite(found.time)


def _mostly(*good: Any) -> st.SearchStrategy[Any]:
    """A value that is good, or any."""
    return st.one_of(*[st.just(value) for value in (*good, *good)], _JSON)


_RECORD = st.fixed_dictionaries({
    'version': _mostly(record.VERSION),
    'departure': _mostly('ab' * 16), 'stint': _mostly(False, True),
    'received': _mostly([], ['cd' * 16]),
    'histories': st.lists(st.fixed_dictionaries({
        'port': _mostly(0, 1, record.MAX_PORTS), 'generation': _mostly(0, 7),
        'size': _mostly(0, 1 << 20, (1 << 20) + 1),
        'digest': _mostly('ef' * 16), 'whole': _mostly(True, False)}),
        max_size=2),
    'boots': st.lists(st.fixed_dictionaries({
        'time': _mostly(0, 1.5, 1e12, -1),
        'following': _mostly({}, {'0': None}, {'1': 7}, {'99': 1})}),
        max_size=2)})


@target(st.one_of(
    st.binary(max_size=200),
    _RECORD.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda depth: b'[' * depth, _DEEP),
    _NUMBERS.map(lambda number: f'{{"version": {number}}}'.encode())))
def peers_record(text: bytes) -> None:
    """What another host sends is understood whole, or refused."""
    data = record.digest([text]).encode() + b'\n' + text
    try:
        found = record.parse(data, 1 << 20)
    except record.InvalidRecord:
        return
    assert all(history.size <= 1 << 20 for history in found.histories)
    assert record.parse(found.format(), 1 << 20) == found


def _named(name: str, data: bytes) -> str:
    return f'{name}.{record.digest([data])}'


@target(
    st.lists(st.sampled_from((
        'console.history', 'console.g1.history', 'console.port1.g1.history',
        'console.boots', 'console.log', 'disk', 'console.g1.log')),
        max_size=4, unique=True),
    st.lists(st.one_of(_JSON, st.just('../console.history.' + '0' * 32),
                       st.just('disk.' + '0' * 32)), max_size=2),
    st.one_of(st.binary(max_size=60), st.just(
        b'{"time": 1, "positions": {"0": null}}')),
    st.booleans())
def old_list(names: list[str], more: list[Any], data: bytes,
             bare: bool) -> None:
    """Of what an earlier version sends, histories and boots come in place.

    And nothing else, whatever its list says.
    """
    with tempfile.TemporaryDirectory() as directory:
        staging = Path(directory, inbox.MOVING)
        staging.mkdir()
        (Path(directory) / 'disk').write_bytes(b'its disk')
        for name in names:
            (staging / _named(name, data)).write_bytes(data)
        listed = json.dumps(more if bare else [
            *(_named(name, data) for name in names), *more]).encode()
        (staging / _named('console.staged', listed)).write_bytes(listed)
        place = inbox.Place(directory, 1 << 20, ports=2)
        if inbox.is_complete(place):
            inbox.receive(place)
        assert (Path(directory) / 'disk').read_bytes() == b'its disk'
        assert {path.name for path in Path(directory).iterdir()} <= {
            'disk', 'console.history', 'console.g1.history',
            'console.port1.history', 'console.port1.g1.history',
            'console.boots', 'console.received', inbox.MOVING}


@target(_RECORD, _mostly('console.g1.history', 'console.g1.log', 'disk',
                         '../victim', 'console.g9.log'),
        st.sampled_from((b'then', b'')))
def called_checked(values: dict[str, Any], name: Any, data: bytes) -> None:
    """What another host calls checked gets names of histories, and no other.
    """
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory, 'guest')
        staging = there / inbox.PLACING
        staging.mkdir(parents=True)
        for path in (there / 'disk', there / 'console.g9.log',
                     Path(directory) / 'victim'):
            path.write_bytes(b'')
        for history in values['histories']:
            history |= {'size': len(data), 'digest': record.digest([data])}
            if history['port'] in (0, 1):
                (staging / f'history.{int(history["port"])}').write_bytes(data)
        text = json.dumps(values).encode()
        (staging / record.FILE).write_bytes(
            record.digest([text]).encode() + b'\n' + text)
        (staging / 'targets').write_text(json.dumps({
            '0': name, '1': 'console.port1.g1.history'}))
        inbox.receive(inbox.Place(str(there), 1 << 20, in_use={0: 9}))
        assert {path.name for path in there.iterdir()} <= {
            'disk', 'console.g1.history', 'console.g1.log', 'console.g2.log',
            'console.g9.log', 'console.port1.g1.history', 'console.boots',
            'console.received'}
        for path in (there / 'disk', there / 'console.g9.log',
                     Path(directory) / 'victim'):
            assert path.stat().st_size == 0


_DEPARTURE = st.fixed_dictionaries({
    'version': _mostly(1), 'id': _mostly('ab' * 16), 'guest': _mostly('guest'),
    'address': _mostly('192.0.2.1'), 'host': _mostly(''),
    'directory': _mostly('/there'), 'generations': _mostly({'0': 1}),
    'stint': _mostly(None, {'0': 0}), 'since': _mostly(1.5, 1e300)})
_STATE = st.fixed_dictionaries({
    'attempts': _mostly(0, -1, 7), 'copied': _mostly(True),
    'reason': _mostly(''), 'final': _mostly(False)})


@target(_DEPARTURE, _STATE)
def outbox_files(departure: dict[str, Any], state: dict[str, Any]) -> None:
    """An outbox that is damaged is told of like the others."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f'{uuid.UUID(int=1)}_leaving.0')
        path.mkdir()
        for name, values in (('departure.json', departure),
                             ('state.json', state)):
            # Python reads the one as infinite, and writes it as the other.
            (path / name).write_text(
                json.dumps(values).replace('Infinity', '1e400'))
        (path / 'console.log').touch()
        (waiting,) = outbox.waiting(directory)
        assert waiting.attempts >= 0
        assert table.date(waiting.since) is not None


_NAMES = joined(
    st.sampled_from(('console', '.log', '.port', '.g', '.history', '.', '0',
                     '1', '31', '999999999', '-', '/', '\n', '٣')), _NUMBERS)


@target(_NAMES)
def file_name(name: str) -> None:
    """What the name says, which is the name again, or None."""
    found = generation.parse(name)
    if found is not None:
        assert str(found) == name
        generation.newest([name], found.port)
        assert generation.files_of(
            [name], found.port, found.generation) == [name]


@target(st.one_of(
    _TEXT, _NUMBERS, joined(st.sampled_from(
        ('-', '0', 'f', 'ffffffffffffffff', 'F', '\n', '+', '_')))))
def position_token(token: str) -> None:
    """A position, whose token is one of the same, or InvalidPosition."""
    try:
        position = Position.parse(token)
    except exception.InvalidPosition:
        return
    assert Position.parse(str(position)) == position


# What a guest writes

_BYTES = st.lists(st.one_of(
    st.binary(max_size=6), st.sampled_from((
        b'\x1b', b'\x1b[', b'\x1b]', b'\x1b(', b'\x1bP', b'\x07', b'\x1b\\',
        b'\x9b', b'\xc2\x9b', b'8', b';', b':', b'm', b'J', b'?', b'h',
        b'38;5;', b'\r', b'\n', b'\r\n', b'\xe2\x80', b'\xae', b'\xff',
        b'\xff\xfb', b'\xff\xfa', b'\xff\xf0', b'\b', b'\t', b'text' * 9,
        b'\r' * 51))),
    max_size=30).map(b''.join)


@target(_BYTES, _PLACES, st.booleans(), st.booleans(), st.booleans())
def terminal(data: bytes, places: list[int], screen: bool, colour: bool,
             overstrike: bool) -> None:
    """Nothing but what is on the list, wherever the bytes are cut."""
    options = {'screen': screen, 'colour': colour, 'overstrike': overstrike}
    neutral = Neutraliser(**options)
    shown = ''.join(map(neutral.text, cut(data, places)))
    shown += neutral.text(b'', True)
    assert_harmless(shown, screen)
    whole = Neutraliser(**options)
    assert shown == whole.text(data) + whole.text(b'', True)


#: The longest line, so that there are longer ones.
_LONGEST = 50


@target(_BYTES, _PLACES, st.booleans())
def labelled_lines(data: bytes, places: list[int], alone: bool) -> None:
    """Every byte once; each line begins with its label."""
    written: list[bytes] = []
    with mock.patch.object(interleave, 'LONGEST', _LONGEST):
        out = Interleaved(written.append, stamps=False, alone=alone)
        for piece in cut(data, places):
            out.feed('\x00', piece)
        out.close()
    found = b''.join(written)
    came = data.replace(b'\x00', b'')
    if alone:
        assert found.replace(b'\x00', b'') == came
    else:
        assert found.replace(b'\x00', b'').replace(b'\n', b'') == (
            came.replace(b'\n', b''))
        assert all(line.startswith(b'\x00')
                   for line in found.split(b'\n')[:-1])
        assert all(len(line) <= _LONGEST + 2 for line in written)


@target(_BYTES, _PLACES)
def telnet(data: bytes, places: list[int]) -> None:
    """The same wherever it is cut; what is typed comes whole."""
    parts, whole = Telnet(), Telnet()
    found = [parts.received(piece) for piece in cut(data, places)]
    assert (b''.join(shown for shown, _ in found),
            b''.join(answer for _, answer in found)) == whole.received(data)
    assert Telnet().received(Telnet.typed(data)) == (data, b'')


@target(_BYTES, st.integers(0, 20))
def last_lines(data: bytes, count: int) -> None:
    """The end of the log, so many lines of it, from its end or through it."""
    def tail(limit: int) -> LogRead:
        return LogRead(data[max(0, len(data) - limit):],
                       Position(1, 1, len(data), 0), True)

    def since(position: Position | None, limit: int) -> LogSince:
        start = position.offset if position else 0
        piece = data[start:start + min(limit, 7)]
        end = start + len(piece)
        return LogSince(piece, Position(1, 1, end, 0), 0, len(data) - end)

    with mock.patch.object(lines, 'LONGEST', _LONGEST):
        for end in (lines.last_lines(tail, since, count),
                    lines.last_lines_since(since, None, count)):
            shown = b''.join(piece or b'' for piece in end.pieces)
            assert data.endswith(shown)
            assert len(shown) <= count * (_LONGEST + 1)
            assert shown.count(b'\n') <= count


@target(_BYTES, _PLACES)
def plain_text(data: bytes, places: list[int]) -> None:
    """The same wherever it is cut, and nothing that controls a terminal."""
    parts = Plain()
    found = ''.join(parts.text(piece) for piece in cut(data, places))
    assert found + parts.text(b'', True) == Plain().text(data, True)
    assert_harmless(found)


@target(_BYTES, _PLACES)
def streamed_lines(data: bytes, places: list[int]) -> None:
    """All of it, in lines that end at the same places wherever it is cut."""
    def ends(pieces: list[bytes]) -> list[tuple[bytes, int, bool]]:
        splitter = Splitter(clock=float)
        found, before = [], 0
        for piece in pieces:
            found += [(line.data, before + line.end, line.partial)
                      for line in splitter.feed(piece)]
            before += len(piece)
        return [*found, (splitter.rest, before, True)]

    with mock.patch.object(stream_lines, 'LONGEST', _LONGEST):
        assert ends(cut(data, places)) == ends([data])
        start = 0
        for line, end, partial in ends([data]):
            written = data[start:end]
            start = end
            assert line == (written if partial else
                            stream_lines.without_return(written[:-1]))
        assert start == len(data)


@target(st.one_of(
    st.binary(max_size=200), _DEEP.map(lambda n: b'[' * n),
    st.builds(lambda entry: json.dumps(
        {'version': 1, 'logs': [entry]}).encode(), st.fixed_dictionaries({
            name: _mostly(good) for name, good in (
                ('uuid', 'a'), ('port', 0), ('guest', 'g'), ('path', '/x'),
                ('run', 1), ('position', '1-2-3-4'), ('rest', ''),
                ('begun', 0.0), ('boot', None), ('left', False),
                ('marks', [[1.0, '1-2-3-4']]))}))))
def stream_state(data: bytes) -> None:
    """Progress that can be written again, or InvalidState."""
    with (tempfile.TemporaryDirectory() as directory,
          contextlib.suppress(exception.InvalidState)):
        path = f'{directory}/state'
        Path(path).write_bytes(data)
        found = state.load(path)
        assert found is not None
        state.save(path, found)
        assert state.load(path) == found


@target(_TEXT)
def escape_key(text: str) -> None:
    """One byte, or ValueError."""
    with contextlib.suppress(ValueError):
        assert len(interactive.parse_escape(text)) == 1
