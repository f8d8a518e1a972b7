# SPDX-License-Identifier: Apache-2.0
"""The rootwrap filters let each privileged daemon start, and nothing else."""

import importlib
import pathlib
import pkgutil

import pytest
from oslo_privsep import priv_context
from oslo_rootwrap import wrapper

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


def _allowed(command: list[str]) -> bool:
    # Newer releases of oslo.rootwrap let any privsep-helper start: their own
    # filter, the last, is not what is tested here.
    filters = [f for f in wrapper.load_filters([str(FILTERS)])
               if f.name != 'privsep-helper']
    try:
        # The helper is only looked for in the directories given.
        wrapper.match_filter(filters, command, exec_dirs=[])
    except wrapper.NoFilterMatched:
        return False
    except wrapper.FilterMatchNotExecutable:
        return True
    return True


def _command(*config: str, context: str) -> list[str]:
    return ['privsep-helper', *config, '--privsep_context', context,
            '--privsep_sock_path', SOCKET]


@pytest.mark.parametrize('context', [c.pypath for c in _contexts()])
@pytest.mark.parametrize('config', [
    ('--config-file', '/etc/nova/nova.conf'),
    ('--config-file', '/etc/nova/nova.conf',
     '--config-file', '/etc/nova/nova-compute.conf'),
    ('--config-file', '/etc/nova/nova.conf',
     '--config-dir', '/etc/nova/nova-compute.conf.d'),
])
def test_every_context_may_start(context, config) -> None:
    assert _allowed(_command(*config, context=context))


@pytest.mark.parametrize('command', [
    _command('--config-file', '/etc/nova/nova.conf',
             context='virtlogd_driver.compute.driver.x'),
    _command('--config-file', '/etc/../home/x/nova.conf',
             context=_contexts()[0].pypath),
    _command('--config-file', '/home/x/nova.conf',
             context=_contexts()[0].pypath),
    _command('--config-file', '/etc/nova/nova.conf',
             context=_contexts()[0].pypath.replace('.', '_')),
    ['cat', '/etc/shadow'],
])
def test_nothing_else_may(command) -> None:
    assert not _allowed(command)
