# SPDX-License-Identifier: Apache-2.0
"""libvirt's configuration files are read here as libvirt reads them.

libvirt.so, which the Python binding loads anyway, carries the parser.
"""

import ctypes
import os
import pathlib
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import settings


class LibvirtParser:
    """virConfReadString and the getters of the installed libvirt.so."""

    _STRING = 3
    _LIST = 4

    def __init__(self) -> None:
        library = ctypes.CDLL('libvirt.so.0')
        library.virInitialize()
        library.virConfReadString.restype = ctypes.c_void_p
        library.virConfReadString.argtypes = [ctypes.c_char_p, ctypes.c_uint]
        for name, result in (('virConfGetValueString', ctypes.c_char_p),
                             ('virConfGetValueLLong', ctypes.c_longlong)):
            getattr(library, name).argtypes = [
                ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(result)]
        library.virConfGetValueType.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p]
        library.virConfFree.argtypes = [ctypes.c_void_p]
        self._library = library

    def parse(self, text: str, names: str) -> dict[str, object] | None:
        conf = self._library.virConfReadString(text.encode(), 0)
        if not conf:
            return None
        found: dict[str, object] = {}
        for name in names:
            key = name.encode()
            kind = self._library.virConfGetValueType(conf, key)
            if kind == self._LIST:
                found[name] = list
            elif kind == self._STRING:
                string = ctypes.c_char_p()
                self._library.virConfGetValueString(conf, key, string)
                found[name] = (string.value or b'').decode()
            elif kind:
                number = ctypes.c_longlong()
                self._library.virConfGetValueLLong(conf, key, number)
                found[name] = number.value
        self._library.virConfFree(conf)
        return found


LIBVIRT = LibvirtParser()


def ours(text: str, names: str) -> dict[str, object] | None:
    try:
        parsed = settings.parse(text)
    except exception.InvalidConfFile:
        return None
    return {name: list if isinstance(value, list) else value
            for name, value in parsed.items() if name in tuple(names)}


PIECES = st.sampled_from([
    'a', 'b', '=', ' = ', '1', '-2', '+3', '"x"', "'y'", '"""z\n"q" """',
    '""', '[', ']', ',', ';', '\n', '\r\n', '# c', ' ', '\t', '"', "'", 'é',
    '-', 'a = 1\n', 'b = "s"\n', 'b = [ 1, "2", ]\n', 'a=007', 'b_c = 1\n'])


@hypothesis.given(st.lists(PIECES, max_size=10).map(''.join))
@hypothesis.settings(max_examples=2000)
def test_parse_reads_what_libvirt_reads(text: str) -> None:
    assert ours(text, 'ab') == LIBVIRT.parse(text, 'ab')


@pytest.mark.parametrize('text', [
    '', '\n', ' ', 'a = 1', 'a = 1 # c', 'a = 1; b = "x"', 'a = 1\na = 2\n',
    '# c\n\n  a = """1\n2"""\n', 'a = [\n 1,\n 2\n]\n', 'a = [1 2]', 'a = 1 2',
    'a', 'a =', 'a = "1', '= 1', 'a = [1', '1 = 2', 'a = yes', 'a = "x\ny"',
    'a = 12345678901', 'a = -', 'a = [ , ]', '# only a comment'])
def test_parse_agrees_on_the_corners(text: str) -> None:
    assert ours(text, 'ab') == LIBVIRT.parse(text, 'ab')


def test_parse_names_the_line_at_fault() -> None:
    with pytest.raises(exception.InvalidConfFile, match=r'^q\.conf:3: '):
        settings.parse('a = 1\n\nb = oops\n', 'q.conf')
    with pytest.raises(exception.InvalidConfFile, match=r'^q\.conf:2: '):
        settings.parse('a = 1\nb = ?\n', 'q.conf')


def _conf(directory: pathlib.Path, text: str) -> str:
    path = directory / 'libvirt.conf'
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(('text', 'handler'), [
    ('', settings.StdioHandler.LOGD),
    ('#stdio_handler = "file"\n', settings.StdioHandler.LOGD),
    ('stdio_handler = "logd"\n', settings.StdioHandler.LOGD),
    ("stdio_handler='file' # why\n", settings.StdioHandler.FILE),
    ('stdio_handler = "file"\nstdio_handler = "logd"\n',
     settings.StdioHandler.FILE),
])
def test_stdio_handler(tmp_path: pathlib.Path, text: str,
                       handler: settings.StdioHandler) -> None:
    assert settings.read_stdio_handler(_conf(tmp_path, text)) is handler


def test_stdio_handler_of_a_missing_file_is_the_default(
        tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / 'none' / 'qemu.conf')
    assert settings.read_stdio_handler(path) is settings.StdioHandler.LOGD


@pytest.mark.parametrize('text', [
    'stdio_handler = "syslog"\n', 'stdio_handler = file\n',
    'stdio_handler = ["file"]\n'])
def test_stdio_handler_that_libvirt_refuses(
        tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(exception.InvalidConfFile):
        settings.read_stdio_handler(_conf(tmp_path, text))


def test_stdio_handler_of_an_unreadable_file(tmp_path: pathlib.Path) -> None:
    loop = tmp_path / 'loop'
    os.symlink(loop, loop)
    with pytest.raises(OSError, match='symbolic links'):
        settings.read_stdio_handler(str(loop))


def test_qemu_conf_is_looked_at_as_a_whole(tmp_path: pathlib.Path) -> None:
    settings.check_qemu_conf(str(tmp_path / 'none'))
    settings.check_qemu_conf(_conf(
        tmp_path, 'stdio_handler = "logd"\nsome_key_of_libvirt_20 = [ 1 ]\n'))
    with pytest.raises(exception.InvalidConfFile,
                       match=r'max_files must be .*; user must be a string'):
        settings.check_qemu_conf(_conf(
            tmp_path, 'max_files = "many"\nuser = 0\n'))


def test_stdio_handler_is_read_again_when_the_file_changes(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _conf(tmp_path, 'stdio_handler = "file"\n')
    assert settings.read_stdio_handler(path) is settings.StdioHandler.FILE
    with monkeypatch.context() as patch:
        patch.delattr(settings, '_read')
        assert settings.read_stdio_handler(path) is settings.StdioHandler.FILE
    replaced = tmp_path / 'new'
    replaced.write_text('stdio_handler = "logd"\n')
    replaced.rename(path)
    assert settings.read_stdio_handler(path) is settings.StdioHandler.LOGD
    os.unlink(path)
    assert settings.read_stdio_handler(path) is settings.StdioHandler.LOGD


def test_virtlogd_settings(tmp_path: pathlib.Path) -> None:
    read = settings.read_virtlogd_settings
    assert read(str(tmp_path / 'none')) == settings.VirtlogdSettings(
        max_size=2097152, max_backups=3)
    assert read(_conf(tmp_path, 'max_size = 4096\n')) == (
        settings.VirtlogdSettings(max_size=4096, max_backups=3))
    assert read(_conf(tmp_path, f'max_size = +{"0" * 5000}7\n')
                ).max_size == 7
    assert read(_conf(tmp_path, 'max_size = "2KiB"\n')) == (
        settings.VirtlogdSettings(max_size=2048, quoted=True))
    unbounded = read(_conf(tmp_path, 'max_size = 0\nmax_backups = 0\n'))
    assert not unbounded.bounded
    assert unbounded.chain_size is None


@pytest.mark.parametrize('text', [
    'max_size = -1\n', 'max_size = "1 M"\n', 'max_backups = [1]\n',
    'max_size = 1M\n', f'max_size = {"9" * 5000}\n',
    f'max_size = {"[" * 5000}', f'x = {"[" * 5000}{"]" * 5000}\n'],
    ids=lambda text: text[:20])
def test_virtlogd_settings_refuse_what_virtlogd_refuses(
        tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(exception.InvalidConfFile, match=r'libvirt\.conf'):
        settings.read_virtlogd_settings(_conf(tmp_path, text))


def test_disk_budget() -> None:
    default = settings.VirtlogdSettings()
    assert settings.disk_budget(default, 100) == 100 * 4 * 2097152
    assert settings.disk_budget(default, 0) == 0
    assert settings.disk_budget(
        settings.VirtlogdSettings(max_size=0), 1) is None


@pytest.mark.parametrize(('make', 'what'), [
    (os.mkfifo, 'a FIFO'), (os.mkdir, 'a directory')])
def test_what_is_no_file_is_told_and_not_waited_for(
        tmp_path: pathlib.Path, make: Callable[[str], None],
        what: str) -> None:
    path = str(tmp_path / 'virtlogd.conf')
    make(path)
    with pytest.raises(exception.InvalidConfFile, match=f'it is {what}'):
        settings.read_virtlogd_settings(path)
