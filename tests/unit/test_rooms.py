# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, as doc/source/contributor/house.rst draws it."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / 'virtlogd_driver'
ROOMS = ('guest', 'console_log', 'virtlogd')
LIBVIRT = {'host.py', 'virtlogd/reattach.py'}


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


@pytest.mark.parametrize('module', MODULES)
def test_only_the_driver_and_its_edge_import_nova(module: str) -> None:
    found = {n for n in MODULES[module] if n.split('.')[0] == 'nova'}
    assert not found or module in ('driver.py', 'nova_edge.py')


@pytest.mark.parametrize('module', MODULES)
def test_only_the_edge_imports_libvirt(module: str) -> None:
    found = {n for n in MODULES[module]
             if n.split('.')[0].startswith('libvirt')}
    assert not found or module in LIBVIRT


@pytest.mark.parametrize(
    'module', [m for m in MODULES if m.split('/')[0] in ROOMS])
def test_a_room_imports_no_other_room(module: str) -> None:
    room = module.split('/')[0]
    ours = {n for n in MODULES[module]
            if n.split('.')[0] == 'virtlogd_driver'}
    allowed = [f'virtlogd_driver.{room}', 'virtlogd_driver.exception']
    if 'privileged' in module:   # the edge of a process of its own
        allowed.append('virtlogd_driver.conf')
    assert not {n for n in ours if not n.startswith(tuple(allowed))}


@pytest.mark.parametrize('module', ['console_log/chain.py',
                                    'console_log/generation.py'])
def test_standard_library_only(module: str) -> None:
    found = {n.split('.')[0] for n in MODULES[module]}
    assert found <= set(sys.stdlib_module_names) | {'virtlogd_driver'}


def test_rooms_do_not_read_the_configuration() -> None:
    """Except where a process of its own begins: the privileged entries."""
    for module, names in MODULES.items():
        if module.split('/')[0] in ROOMS and 'privileged' not in module:
            assert not {n for n in names if n.startswith('oslo_config')}, (
                module)
