# SPDX-License-Identifier: Apache-2.0
"""Modules import each other as doc/source/contributor/house.rst draws it."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / 'virtlogd_driver'
#: Which rooms a room may import, besides itself and exception.
BELOW = {
    'compute': {'relay', 'history', 'node', 'guest', 'console_log', 'virtlogd',
                'conf'},
    'cmd': {'relay', 'stream', 'history', 'node', 'guest', 'console_log',
            'virtlogd', 'conf'},
    'relay': {'node', 'guest', 'console_log'},
    'stream': {'history', 'node', 'guest', 'console_log', 'virtlogd'},
    'history': {'guest', 'console_log', 'virtlogd'},
    'node': {'guest', 'console_log', 'virtlogd'},
    'guest': set(),
    'console_log': {'peer'},
    'virtlogd': {'peer'},
    'conf': set(),
    # Starts and calls a helper, which begins in privileged_process.
    'helper': {'privileged_process'},
    'privileged_process': {'peer', 'safe_path'},
    'peer': set(),
    'safe_path': set(),
    'exception': set(),
}
#: The faces read the configuration; the other rooms are given values.
FACES = ('compute', 'cmd')
LIBVIRT = {'node/hypervisor.py', 'node/events.py', 'virtlogd/reattach.py'}
LONGEST_DRIVER = 300
LONGEST_OVERRIDE = 12


def _imports(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


MODULES = {str(p.relative_to(PACKAGE)): _imports(p)
           for p in sorted(PACKAGE.rglob('*.py'))}


def _room(module: str) -> str:
    return module.split('/')[0].removesuffix('.py')


def _rooms_imported(module: str) -> set[str]:
    return {n.split('.')[1] for n in MODULES[module]
            if n.startswith('virtlogd_driver.')}


def test_every_module_is_in_a_room() -> None:
    assert {_room(m) for m in MODULES} == {*BELOW, '__init__'}


@pytest.mark.parametrize('module', [m for m in MODULES
                                    if m != '__init__.py'])
def test_arrows_point_down_only(module: str) -> None:
    room = _room(module)
    allowed = {room, 'exception', *BELOW[room]}
    if 'privileged' in module:   # the edge of a process of its own
        allowed |= {'conf', 'helper', 'privileged_process', 'safe_path'}
    assert _rooms_imported(module) <= allowed


@pytest.mark.parametrize('module', MODULES)
def test_only_the_compute_room_imports_nova(module: str) -> None:
    found = {n for n in MODULES[module] if n.split('.')[0] == 'nova'}
    assert not found or _room(module) == 'compute'


@pytest.mark.parametrize('module', MODULES)
def test_only_the_edge_imports_libvirt(module: str) -> None:
    found = {n for n in MODULES[module]
             if n.split('.')[0].startswith('libvirt')}
    assert not found or module in LIBVIRT


@pytest.mark.parametrize('module', ['console_log/chain.py',
                                    'console_log/generation.py'])
def test_standard_library_only(module: str) -> None:
    found = {n.split('.')[0] for n in MODULES[module]}
    assert found <= set(sys.stdlib_module_names) | {'virtlogd_driver'}


def test_rooms_do_not_read_the_configuration() -> None:
    """Except where a process of its own begins: the privileged entries."""
    for module, names in MODULES.items():
        if (_room(module) not in (*FACES, 'conf')
                and 'privileged' not in module):
            assert not {n for n in names if n.startswith('oslo_config')}, (
                module)


@pytest.mark.parametrize('module', MODULES)
def test_a_descriptor_may_have_any_number(module: str) -> None:
    """select(2) takes none above 1023; a host has more logs than that."""
    assert 'select.select' not in (PACKAGE / module).read_text()


def test_the_driver_is_a_table_of_contents() -> None:
    text = (PACKAGE / 'compute/driver.py').read_text()
    assert len(text.splitlines()) < LONGEST_DRIVER
    (made,) = [node for node in ast.parse(text).body
               if isinstance(node, ast.ClassDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1
               for node in made.body if isinstance(node, ast.FunctionDef)}
    assert not {name: length for name, length in lengths.items()
                if length > LONGEST_OVERRIDE}


def test_the_driver_reads_no_configuration() -> None:
    """It hands nova's on, and that is all."""
    text = (PACKAGE / 'compute/driver.py').read_text()
    assert 'CONF.' not in text.replace('nova.conf.CONF', '')


@pytest.mark.parametrize('module', [
    m for m in MODULES if m.startswith('compute/')])
def test_no_collaborator_reaches_back_into_the_driver(module: str) -> None:
    names = MODULES[module]
    assert module == 'compute/driver.py' or not {
        n for n in names if n == 'virtlogd_driver.compute.driver'
        or n.startswith(('virtlogd_driver.compute.driver.',
                         'nova.virt.libvirt.driver'))}
