# SPDX-License-Identifier: Apache-2.0
"""Messages to operators are true on their platform, whichever it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / 'virtlogd_driver').rglob('*.py'))
PAGES = [*sorted((ROOT / 'doc/source').glob('operator/*.rst')),
         ROOT / 'doc/source/install.rst', ROOT / 'README.rst']


def messages(path: Path) -> Iterator[str]:
    """The texts of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)}
    inside = {id(part) for node in ast.walk(tree)
              if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in docstrings | inside:
            continue
        if isinstance(node, ast.JoinedStr):
            yield ''.join(str(part.value) for part in node.values
                          if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_are_found() -> None:
    found = [text for path in MODULES for text in messages(path)]
    assert any('restart libvirtd (or virtqemud)' in text for text in found)


@pytest.mark.parametrize(
    'path', MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_who_names_libvirtd_names_virtqemud(path: Path) -> None:
    """The modular one is what libvirt and RHEL 9 recommend."""
    assert [text for text in messages(path)
            if 'libvirtd' in text and 'virtqemud' not in text] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_pages_do_so_too(page: Path) -> None:
    for paragraph in page.read_text().split('\n\n'):
        for item in paragraph.split('\n   * -'):
            assert 'libvirtd' not in item or 'virtqemud' in item
