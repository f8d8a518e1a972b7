# SPDX-License-Identifier: Apache-2.0
"""The rootwrap filters let each privileged daemon start, and nothing else."""

import functools
import importlib
import os
import pathlib
import pkgutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oslo_privsep import priv_context
from oslo_rootwrap import filters, wrapper

import virtlogd_driver

FILTERS = pathlib.Path(__file__).parents[2] / 'etc/nova/rootwrap.d'
SOCKET = '/tmp/tmp12345678/privsep.sock'  # noqa: S108


def _contexts() -> list[priv_context.PrivContext]:
    found = {}
    for module in pkgutil.walk_packages(virtlogd_driver.__path__,
                                        'virtlogd_driver.'):
        if 'privileged' in module.name:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, priv_context.PrivContext):
                    found[value.pypath] = value
    return list(found.values())


@functools.cache
def _filters() -> list[filters.CommandFilter]:
    # oslo.rootwrap lets any privsep-helper start: its own filter, the last, is
    # not what is tested here.
    return [f for f in wrapper.load_filters([str(FILTERS)])
            if f.name != 'privsep-helper']


def _allowed(command: list[str]) -> bool:
    try:
        # The helper is only looked for in the directories given.
        wrapper.match_filter(_filters(), command, exec_dirs=[])
    except wrapper.NoFilterMatched:
        return False
    except wrapper.FilterMatchNotExecutable:
        return True
    return True


def _command(*config: str, context: str, socket: str = SOCKET) -> list[str]:
    return ['privsep-helper', *config, '--privsep_context', context,
            '--privsep_sock_path', socket]


CONTEXTS = [c.pypath for c in _contexts()]
NOVA = ('--config-file', '/etc/nova/nova.conf')
COMPUTE = ('--config-file', '/etc/nova/nova-compute.conf')
DIST = ('--config-file', '/usr/share/nova/nova-dist.conf')


@pytest.mark.parametrize('context', CONTEXTS)
@pytest.mark.parametrize('config', [
    NOVA,
    (*NOVA, *COMPUTE),
    (*NOVA, '--config-dir', '/etc/nova/nova-compute.conf.d'),
    (*NOVA, *COMPUTE, '--config-dir', '/etc/nova/nova.conf.d/'),
    (*DIST, *NOVA, *COMPUTE),
    (*DIST, *NOVA, '--config-dir', '/etc/nova/conf.d/nova-compute'),
    ('--config-file', '/etc/nova/nova-cpu.conf'),
    ('--config-file', '/etc/nova/cell1/nova.conf'),
])
def test_every_context_may_start(context, config) -> None:
    """As Debian's, Ubuntu's and RDO's packages, Kolla and others start it."""
    assert _allowed(_command(*config, context=context))
    for socket in ('/tmp/tmpab_9x0de/privsep.sock',  # noqa: S108
                   '/var/tmp/tmpab_9x0de/privsep.sock'):  # noqa: S108
        assert _allowed(_command(*config, context=context, socket=socket))


@pytest.mark.parametrize('command', [
    _command('--config-file', '/etc/nova/nova.conf',
             context='virtlogd_driver.compute.driver.x'),
    _command('--config-file', '/etc/../home/x/nova.conf',
             context=CONTEXTS[0]),
    _command('--config-file', '/home/x/nova.conf',
             context=CONTEXTS[0]),
    _command('--config-file', '/etc/nova/nova.conf',
             context=CONTEXTS[0].replace('.', '_')),
    ['cat', '/etc/shadow'],
])
def test_nothing_else_may(command) -> None:
    assert not _allowed(command)


#: What a path may be spelled with, to get out of a directory.
PARTS = st.one_of(
    st.sampled_from(['', '.', '..', '...', '.x', 'nova', 'nova.conf', 'etc',
                     'usr', 'share', 'nova-dist.conf', 'tmp', 'x y', '\n',
                     'nova.conf\n', '..\n', '-x', '~', '%2e%2e', '\\..',
                     'privsep.sock', 'tmpab', '\u2024\u2024', 'c,d']),
    st.text(max_size=4))
PATHS = st.builds(
    '{}{}'.format,
    st.sampled_from(['/etc/nova/', '/etc/', '/usr/share/nova/', '/tmp/',  # noqa: S108
                     '/tmp/tmpab/', '/', '', '//etc/nova/']),  # noqa: S108
    st.lists(PARTS, max_size=6).map('/'.join))


def _stays_in(path: str, *directories: str) -> bool:
    """Where the kernel takes it to, with or without the links in it."""
    plain = os.path.normpath(path)
    return any(plain.startswith(f'{directory}/') for directory in directories
               ) and '..' not in path.split('/')


@given(path=PATHS, option=st.sampled_from(['--config-file', '--config-dir']),
       context=st.sampled_from(CONTEXTS), place=st.integers(0, 2))
@example('/etc/ssl/../../tmp/evil.conf', '--config-file', CONTEXTS[0], 0)
@example('/etc/nova/x/../../../tmp/e', '--config-file', CONTEXTS[0], 0)
@example('/etc//../tmp/x', '--config-file', CONTEXTS[0], 1)
@example('/etc/./../x', '--config-dir', CONTEXTS[0], 1)
@example('/etc/nova/nova.conf\n', '--config-file', CONTEXTS[0], 0)
@example('/usr/share/nova/nova-distXconf', '--config-file', CONTEXTS[0], 0)
@example('/etc/passwd', '--config-file', CONTEXTS[0], 0)
@settings(max_examples=200)
def test_no_spelling_of_a_configuration_leads_out(
        path: str, option: str, context: str, place: int) -> None:
    config = [*NOVA, *COMPUTE]
    config[2 * place:2 * place] = [option, path]
    if _allowed(_command(*config, context=context)):
        assert path == DIST[1] or _stays_in(path, '/etc/nova')
        assert '\n' not in path


@given(path=PATHS, context=st.sampled_from(CONTEXTS))
@example('/tmp/../etc/x/privsep.sock', CONTEXTS[0])  # noqa: S108
@example('/tmp/tmpab/../../run/privsep.sock', CONTEXTS[0])  # noqa: S108
@example('/tmp/tmpab/privsep.sock\n', CONTEXTS[0])  # noqa: S108
@example('/tmp/tmpab/x/privsep.sock', CONTEXTS[0])  # noqa: S108
@settings(max_examples=200)
def test_no_spelling_of_a_socket_leads_out(path: str, context: str) -> None:
    if _allowed(_command(*NOVA, context=context, socket=path)):
        assert _stays_in(path, '/tmp', '/var/tmp')  # noqa: S108
        assert path.endswith('/privsep.sock')
        assert path.count('/') == (4 if path.startswith('/var/') else 3)


@given(st.lists(st.one_of(
    st.sampled_from([*_command(*NOVA, context=CONTEXTS[0]), '--debug',
                     '--log-file', '--log_config_append', '/etc/nova/x',
                     '--config-file=/etc/nova/nova.conf']),
    PATHS), max_size=10))
@settings(max_examples=200)
def test_no_other_option_passes(arguments: list[str]) -> None:
    """Neither more of them, nor in another order."""
    command = ['privsep-helper', *arguments]
    if _allowed(command):
        *config, context, name, option, _ = arguments
        assert (context, option) == (
            '--privsep_context', '--privsep_sock_path')
        assert name in CONTEXTS
        assert set(config[::2]) <= {'--config-file', '--config-dir'}
        assert all(_stays_in(path, '/etc/nova') for path in config[1::2])


@pytest.mark.parametrize('context', CONTEXTS)
@pytest.mark.parametrize('other', ['{}\n', '{}x', 'x{}', '{}.x', ''])
def test_no_other_context_passes(context: str, other: str) -> None:
    assert not _allowed(_command(*NOVA, context=other.format(context)))


def test_oslo_rootwrap_itself_lets_any_helper_start() -> None:
    """doc/source/operator/privileges.rst says so, and what to do."""
    (own,) = [f for f in wrapper.load_filters([str(FILTERS)])
              if f.name == 'privsep-helper']
    assert own.match(['privsep-helper', '--config-file', '/home/x'])
