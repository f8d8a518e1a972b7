# SPDX-License-Identifier: Apache-2.0
"""Our kinds of values are those of the getters of the installed libvirt."""

import ctypes
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from virtlogd_driver.virtlogd import conf_keys, settings

_LIBVIRT = ctypes.CDLL('libvirt.so.0')
_LIBVIRT.virInitialize()
_LIBVIRT.virConfReadString.restype = ctypes.c_void_p
_LIBVIRT.virConfReadString.argtypes = [ctypes.c_char_p, ctypes.c_uint]


def _getter(name: str, result: type,
            *more: int) -> Callable[[str], bool | None]:
    """Whether libvirt takes a value; None: it is no file at all."""
    get = getattr(_LIBVIRT, f'virConfGetValue{name}')
    get.argtypes = [ctypes.c_void_p, ctypes.c_char_p,
                    *(ctypes.c_bool for _ in more), ctypes.c_void_p]

    def takes(text: str) -> bool | None:
        conf = _LIBVIRT.virConfReadString(f'a = {text}\n'.encode(), 0)
        if not conf:
            return None
        found = result()
        taken = get(conf, b'a', *more, ctypes.byref(found)) >= 0
        _LIBVIRT.virConfFree(ctypes.c_void_p(conf))
        return bool(taken)
    return takes


KINDS = {
    'BOOL': _getter('Bool', ctypes.c_bool),
    'INT': _getter('Int', ctypes.c_int),
    'UINT': _getter('UInt', ctypes.c_uint),
    'SIZE': _getter('SizeT', ctypes.c_size_t),
    'STRING': _getter('String', ctypes.c_void_p),
    'STRINGS': _getter('StringList', ctypes.c_void_p, False),
    'STRING_OR_STRINGS': _getter('StringList', ctypes.c_void_p, True),
}
VALUES = st.one_of(
    st.integers(-2 ** 33, 2 ** 63 - 1).map(str),
    st.sampled_from(['0', '1', '2', '-1', '+1', '4294967295', '4294967296',
                     '2147483647', '2147483648', '-2147483648',
                     '-2147483649', '""', '"1"', "'x y'", '[]', '[ "a" ]',
                     '[ "a", "b", ]', '[ 1 ]', '[ "a", 1 ]', '[ [ "a" ] ]']))


@pytest.mark.parametrize('number', [2 ** 63, 2 ** 64, 10 ** 20])
def test_a_number_that_libvirt_cannot_hold(number: int) -> None:
    """libvirt takes another for it; nor can privsep carry it."""
    for kind in (conf_keys.SIZE, conf_keys.BYTES):
        assert kind.takes(2 ** 63 - 1)
        assert not kind.takes(number)


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(text=VALUES)
@hypothesis.settings(max_examples=200)
def test_a_kind_takes_what_libvirt_takes(kind: str, text: str) -> None:
    value = settings.parse(f'a = {text}\n')['a']
    assert getattr(conf_keys, kind).takes(value) == KINDS[kind](text)


_SCALE = _LIBVIRT.virScaleInteger
_SCALE.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_ulonglong,
                   ctypes.c_ulonglong]


@hypothesis.given(
    number=st.integers(0, 2 ** 64 - 1),
    unit=st.sampled_from(['', *(
        letter + end for letter in 'bkmgtpexKMGTPE'
        for end in ('', 'b', 'B', 'ib', 'iB', 'IB', 'i', 'yte', 'ytes', ' '))
    ]))
@hypothesis.settings(max_examples=500)
def test_a_size_is_scaled_as_libvirt_does(number: int, unit: str) -> None:
    value = ctypes.c_ulonglong(number)
    taken = _SCALE(ctypes.byref(value), unit.encode(), 1, 2 ** 64 - 1) >= 0
    assert conf_keys.bytes_of(f' +0{number}{unit}') == (
        value.value if taken else None)


@pytest.mark.parametrize('value', [
    -1, '', 'M', '-1', '1.5M', '2 MiB', '0x10', str(2 ** 64), '9' * 5000,
    '\u0663', '2\u212a', ['1'], []])
def test_no_size(value: conf_keys.Value) -> None:
    assert conf_keys.bytes_of(value) is None


def said(keys: str, text: str) -> list[str]:
    known = {'virtlogd': conf_keys.VIRTLOGD, 'qemu': conf_keys.QEMU}[keys]
    return list(conf_keys.mistakes(settings.parse(text), known))


#: What virtlogd takes, and what it ends with; tests/functional asks it.
TAKEN = (
    'log_level = 0', 'log_level = 4', 'log_filters = ""',
    'log_filters = "3:util 4:rpc"', 'log_filters = " 1:+qemu  2:a:b "',
    'log_outputs = ""', 'log_outputs = "1:stderr 2:journald"',
    'log_outputs = "3:syslog:virtlogd"', 'max_clients = 4294967295',
    'max_clients = +3', 'admin_max_clients = 0', 'max_size = 1',
    'max_backups = 0', 'a_key_of_libvirt_20 = [ 1 ]')
REFUSED = (
    'log_level = "3"', 'log_level = 5', 'log_level = -1',
    'log_level = [ 3 ]', 'log_filters = 3', 'log_filters = [ "3:util" ]',
    'log_filters = "util"', 'log_filters = "9:util"', 'log_filters = "3:"',
    'log_outputs = "2:journal"', 'log_outputs = "stderr"',
    'log_outputs = "5:stderr"', 'log_outputs = "1:stderr:x"',
    'log_outputs = "1:syslog"', 'log_outputs = "1:stderr,2:journald"',
    'log_outputs = 3', 'max_clients = "1024"', 'max_clients = -1',
    'max_clients = 4294967296', 'admin_max_clients = -5',
    'admin_max_clients = [ ]', 'max_size = "x"', 'max_size = -1',
    'max_size = "2 MiB"', 'max_backups = "3"', 'max_backups = [ 3 ]')


#: What virtlogd 12.8 takes, and older ones end with.
TAKEN_LATER = ('max_size = "1"', 'max_size = "2MiB"')


@pytest.mark.parametrize('text', [*TAKEN, *TAKEN_LATER])
def test_virtlogd_takes(text: str) -> None:
    assert said('virtlogd', f'{text}\n') == []


@pytest.mark.parametrize('text', REFUSED)
def test_virtlogd_ends_with(text: str) -> None:
    (mistake,) = said('virtlogd', f'{text}\n')
    assert mistake.startswith(f'{text.partition(" ")[0]} must be ')


@pytest.mark.parametrize(('text', 'mistake'), [
    ('user = 0', 'user must be a string in quotes'),
    ('dynamic_ownership = "yes"', 'dynamic_ownership must be 0 or 1'),
    ('cgroup_controllers = "cpu"',
     'cgroup_controllers must be a list of strings'),
    ('max_core = "all"', 'max_core must be "unlimited" or an integer from 0'),
    ('security_driver = 0',
     'security_driver must be a string or a list of strings'),
    ('max_files = -1', 'max_files must be an integer from 0 to 4294967295')])
def test_qemu_conf(text: str, mistake: str) -> None:
    assert said('qemu', f'{text}\nuser_of_libvirt_20 = [ 1 ]\n') == [mistake]


def test_qemu_conf_that_is_well() -> None:
    assert said('qemu', 'user = "root"\ncgroup_controllers = []\n'
                'security_driver = "none"\nhugetlbfs_mount = [ "/a" ]\n'
                'max_core = "unlimited"\nstdio_handler = "logd"\n') == []
