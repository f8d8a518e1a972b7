# SPDX-License-Identifier: Apache-2.0
"""virtlogd.conf and qemu.conf are read as libvirt itself reads them.

The language is that of libvirt's src/util/virconf.c: ``name = value``, one
statement a line (or after ``;``), ``#`` comments, integers, strings in single,
double or triple double quotes with no escapes, and lists. The first of two
assignments to one name counts. A file with a mistake is refused as a whole,
as the daemons refuse to start with it.

The monolithic libvirtd and the modular virtqemud read the same qemu.conf.
"""

import enum
import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import conf_keys
from virtlogd_driver.virtlogd.conf_keys import Value

#: libvirt refuses a longer file (virconf.c, MAX_CONFIG_FILE_SIZE), in bytes.
_MAX_FILE_SIZE = 10 * 1024 * 1024

#: Lists within a list, and digits of a number: libvirt has no bound of its
#: own (a longer number overflows), and no setting has any use for more.
_DEPTH, _DIGITS = 64, 20

#: virtlogd opens no log at all with more (src/util/virrotatingfile.c,
#: VIR_MAX_MAX_BACKUP), and a reload, which opens them anew, ends it.
MAX_BACKUPS = 32

_TOKEN = re.compile(
    r'(?P<blank>[ \t]+)'
    r'|(?P<eol>[\r\n][ \t\r\n]*)'
    r'|(?P<comment>#[^\r\n]*)'
    r'|(?P<triple>"""(?P<triple_text>.*?)""")'
    r'|(?P<double>"(?P<double_text>[^"\r\n]*)")'
    r"|(?P<single>'(?P<single_text>[^'\r\n]*)')"
    r'|(?P<number>[-+]?[0-9]+)'
    r'|(?P<name>[A-Za-z][A-Za-z0-9_]*)'
    r'|(?P<mark>[=\[\],;])',
    re.DOTALL)


class StdioHandler(enum.StrEnum):
    """``stdio_handler`` in qemu.conf says who writes a ``<log file>``."""

    LOGD = 'logd'
    FILE = 'file'
    #: qemu.conf may not be read, or libvirt would not start with it.
    UNKNOWN = 'unknown'


class _Tokens:
    """A configuration file is split into tokens, without blanks."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._tokens = self._scan()
        self._line = 1
        self.kind = ''
        self.text = ''
        self.advance()

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        position, line = 0, 1
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                self._line = line
                raise self.error('a value, a name or "=" is expected')
            kind = match.lastgroup or ''
            text = match[0]
            if match['triple'] or match['double'] or match['single']:
                text = (match['triple_text'] or match['double_text']
                        or match['single_text'] or '')
                kind = 'string'
            if kind != 'blank':
                yield kind, text, line
            line += match[0].count('\n')
            position = match.end()

    def advance(self) -> None:
        self.kind, self.text, self._line = next(
            self._tokens, ('end', '', self._line))

    def skip_lines(self) -> None:
        while self.kind == 'eol':
            self.advance()

    def at_mark(self, mark: str) -> bool:
        return self.kind == 'mark' and self.text == mark

    def error(self, expected: str) -> exception.InvalidConfFile:
        return exception.InvalidConfFile(self._path, self._line, expected)


def _parse_value(tokens: _Tokens, depth: int = 0) -> Value:
    kind, text = tokens.kind, tokens.text
    if kind == 'number':
        digits = text.lstrip('+-').lstrip('0')
        if len(digits) > _DIGITS:
            raise tokens.error(
                f'a number of at most {_DIGITS} digits is expected')
        tokens.advance()
        return int(digits or '0') * (-1 if text.startswith('-') else 1)
    if kind == 'string':
        tokens.advance()
        return text
    if not tokens.at_mark('['):
        raise tokens.error('a value is expected')
    if depth == _DEPTH:
        raise tokens.error('no list within that many lists is expected')
    tokens.advance()
    values: list[Value] = []
    tokens.skip_lines()
    while not tokens.at_mark(']'):
        if values:
            if not tokens.at_mark(','):
                raise tokens.error('"," or "]" is expected in a list')
            tokens.advance()
            tokens.skip_lines()
            if tokens.at_mark(']'):
                break
        values.append(_parse_value(tokens, depth + 1))
        tokens.skip_lines()
    tokens.advance()
    return values


def parse(text: str, path: str = 'configuration') -> dict[str, Value]:
    """Give the settings of a libvirt configuration file.

    :param text: its content
    :param path: its name, for messages
    :raises InvalidConfFile: where libvirt would refuse it
    """
    settings: dict[str, Value] = {}
    if text and not text.strip(' \t\r\n'):
        # libvirt takes an empty file, but not one of blanks alone.
        raise exception.InvalidConfFile(path, 1, 'a name is expected')
    tokens = _Tokens(path, text)
    while tokens.kind != 'end':
        tokens.skip_lines()
        if tokens.kind == 'comment':
            tokens.advance()
        else:
            name = tokens.text
            if tokens.kind != 'name':
                raise tokens.error('a name is expected')
            tokens.advance()
            if not tokens.at_mark('='):
                raise tokens.error('"=" is expected')
            tokens.advance()
            settings.setdefault(name, _parse_value(tokens))
            if tokens.kind == 'comment':
                tokens.advance()
        if tokens.at_mark(';'):
            tokens.advance()
        elif tokens.kind not in ('eol', 'end'):
            raise tokens.error('the end of the line or ";" is expected')
        tokens.skip_lines()
    return settings


def _read(path: str) -> dict[str, Value]:
    try:
        with open(path, encoding='utf-8', errors='surrogateescape',
                  newline='', opener=_open_at_once) as conf:
            if stat.S_ISFIFO(os.fstat(conf.fileno()).st_mode):
                raise exception.InvalidConfFile(path, 0, 'it is a FIFO')
            text = conf.read(_MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        return {}
    except IsADirectoryError as e:
        raise exception.InvalidConfFile(path, 0, 'it is a directory') from e
    if len(text) > _MAX_FILE_SIZE:
        raise exception.InvalidConfFile(path, 1, 'at most 10 MiB are allowed')
    return parse(text, path)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a FIFO would wait for somebody who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_stdio_handler(path: str) -> StdioHandler:
    """Read ``stdio_handler`` of a qemu.conf; a changed file alone.

    A missing file or a missing setting is libvirt's default, logd
    (src/qemu/qemu_conf.c).

    :raises InvalidConfFile: libvirt would not start with it
    :raises OSError: it may not be read
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return StdioHandler.LOGD
    return _stdio_handler(path, status.st_dev, status.st_ino,
                          status.st_size, status.st_ctime_ns)


@functools.lru_cache(maxsize=4)
def _stdio_handler(path: str, *_version: int) -> StdioHandler:
    """Read it, of one version of the file: libvirt's own takes 14 ms."""
    value = _read(path).get('stdio_handler', StdioHandler.LOGD)
    try:
        return StdioHandler(str(value))
    except ValueError as e:
        raise exception.InvalidConfFile(
            path, 0, 'stdio_handler must be "logd" or "file"') from e


def check_qemu_conf(path: str) -> None:
    """Tell whether libvirt's QEMU driver would start with a qemu.conf.

    :raises InvalidConfFile: it would not
    :raises OSError: the file may not be read
    """
    read_stdio_handler(path)
    _refuse(path, _read(path), conf_keys.QEMU)


def _refuse(path: str, values: Mapping[str, Value],
            keys: Mapping[str, conf_keys.Kind]) -> None:
    found = '; '.join(conf_keys.mistakes(values, keys))
    if found:
        raise exception.InvalidConfFile(path, 0, found)


@dataclass(frozen=True, slots=True)
class VirtlogdSettings:
    """Settings say how far virtlogd lets a log grow.

    The defaults are virtlogd's own (src/logging/log_daemon_config.c; the same
    in every libvirt that nova 31 or newer runs on).
    """

    #: Bytes of one file before it is rotated; 0 is without bound.
    max_size: int = 2 * 1024 * 1024
    #: Rotated files that are kept beside the current one.
    max_backups: int = 3
    #: max_size is in quotes.
    quoted: bool = False

    @property
    def bounded(self) -> bool:
        return self.max_size > 0

    @property
    def chain_size(self) -> int | None:
        """Give the most bytes that one log takes; None: it has no bound."""
        if not self.bounded:
            return None
        return (self.max_backups + 1) * self.max_size


def read_virtlogd_settings(path: str) -> VirtlogdSettings:
    """Read the rotation settings of a virtlogd.conf; it may be missing.

    :raises InvalidConfFile: virtlogd would not start with it
    :raises OSError: it may not be read
    """
    found = _read(path)
    _refuse(path, found, conf_keys.VIRTLOGD)
    default = VirtlogdSettings()
    size = found.get('max_size', default.max_size)
    backups = found.get('max_backups', default.max_backups)
    return VirtlogdSettings(
        conf_keys.bytes_of(size) or 0,
        backups if isinstance(backups, int) else default.max_backups,
        quoted=isinstance(size, str))


def read_max_clients(path: str) -> int:
    """Tell how many connections virtlogd accepts. Never raises.

    :param path: of virtlogd.conf; where it cannot be read, or says nothing of
        it, virtlogd's own default counts
    """
    try:
        value = _read(path).get('max_clients')
    except (OSError, exception.InvalidConfFile):
        value = None
    return value if isinstance(value, int) and value >= 0 else 1024


def disk_budget(settings: VirtlogdSettings, logs: int) -> int | None:
    """Give the most bytes that so many logs take together; None is unbounded.

    :param logs: guests x serial ports
    """
    if settings.chain_size is None:
        return None
    return logs * settings.chain_size
