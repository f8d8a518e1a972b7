# SPDX-License-Identifier: Apache-2.0
"""What the driver relies on in nova is found in its source, and in nova's.

Nothing is imported: releases that are not installed can be looked at too.
"""

import ast
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Reads a file of nova's, named from "nova/"; None where there is none.
Reader = Callable[[str], str | None]

#: The class that the driver extends, and where its methods may come from.
BASE = 'nova.virt.libvirt.driver.LibvirtDriver'
BASES = (BASE, 'nova.virt.driver.ComputeDriver')

#: What the driver itself is told of the newest supported release.
RUNNING = (Path(__file__).parents[2]
           / 'virtlogd_driver/compute/seams.json')

#: What is reached through objects that nova hands in or keeps.
REACHED = (
    'nova.virt.libvirt.guest.Guest.get_xml_desc',
    'nova.virt.libvirt.host.Host.get_connection',
    'nova.virt.libvirt.host.Host.get_guest',
    'nova.virt.libvirt.host.Host.list_instance_domains',
    'nova.virt.libvirt.migration.get_updated_guest_xml',
)


@dataclass(frozen=True, slots=True)
class Seam:
    """A function, a class or a name of nova as one release has it."""

    #: As it is written; "" for what is not a function.
    signature: str
    #: Digest of its source.
    source: str


def driver_source(root: Path) -> str:
    """All of the driver that imports nova."""
    return '\n'.join(path.read_text() for path in sorted(
        (root / 'virtlogd_driver/compute').glob('*.py')))


def relied_on(driver: str) -> set[str]:
    """Names of nova that the source of the driver uses or overrides."""
    tree = ast.parse(driver)
    modules = dict(_imported(tree))
    found = {name for node in ast.walk(tree)
             if (name := _dotted(node, modules)) is not None}
    for node in tree.body:
        if (isinstance(node, ast.ClassDef)
                and BASE in {_dotted(b, modules) for b in node.bases}):
            found |= {f'{BASE}.{name}' for name in _of_base(node)}
    found |= set(REACHED)
    return {name for name in found
            if not any(other.startswith(f'{name}.') for other in found)}


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that modules of nova have in the driver."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith('nova.'):
                    yield 'nova', 'nova'
        elif (isinstance(node, ast.ImportFrom)
                and (node.module or '').split('.')[0] == 'nova'):
            for alias in node.names:
                yield alias.asname or alias.name, f'{node.module}.{alias.name}'


def _dotted(node: ast.AST, modules: dict[str, str]) -> str | None:
    """``vconfig.LibvirtConfigGuestSerial`` with nova's name of vconfig."""
    if not (isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)):
        return None
    names = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    if isinstance(value, ast.Name) and value.id in modules:
        return '.'.join([modules[value.id], *reversed(names)])
    return None


def _of_base(driver: ast.ClassDef) -> Iterator[str]:
    """Methods that the class overrides, and attributes it takes."""
    own = {n.name for n in driver.body if isinstance(n, ast.FunctionDef)}
    yield from own
    for node in ast.walk(driver):
        if (isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == 'self'):
            yield node.attr


def look_up(name: str, read: Reader) -> Seam | None:
    """Find one name in a release of nova.

    :param name: dotted; a method of the base class may be inherited
    :returns: None where the release has no such thing
    """
    name = re.sub(r'^nova\.objects\.(?=[A-Z])(\w+)', _registered, name)
    path, _, attribute = name.rpartition('.')
    for base in BASES if path == BASE else (path,):
        seam = _look_up(f'{base}.{attribute}'.split('.'), read)
        if seam is not None:
            return seam
    return None


def _registered(match: re.Match[str]) -> str:
    """nova.objects.ComputeNode is in nova/objects/compute_node.py."""
    words = re.findall('[A-Z][a-z0-9]+', match[1])
    return f'nova.objects.{"_".join(words).lower()}.{match[1]}'


def _look_up(names: list[str], read: Reader) -> Seam | None:
    for count in range(len(names) - 1, 0, -1):
        stem = '/'.join(names[:count])
        for path in (f'{stem}.py', f'{stem}/__init__.py'):
            text = read(path)
            if text is not None:
                return _in_module(text, names[count:], read)
    return None


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def _lines(text: str) -> list[str]:
    return text.splitlines()


def _in_module(text: str, names: list[str], read: Reader) -> Seam | None:
    scope: ast.Module | ast.ClassDef = _parse(text)
    for position, name in enumerate(names):
        node = _named(scope, name)
        if isinstance(node, ast.ImportFrom | ast.Import):
            return _look_up([*_origin(node, name),
                             *names[position + 1:]], read)
        if not isinstance(node, ast.ClassDef) or name == names[-1]:
            return None if node is None else _seam(node, text)
        scope = node
    return None


def _origin(node: ast.ImportFrom | ast.Import, name: str) -> list[str]:
    for alias in node.names:
        if name in (alias.asname, alias.name):
            module = getattr(node, 'module', None)
            return f'{module}.{alias.name}'.split('.') if module else [name]
    raise KeyError(name)


def _named(scope: ast.Module | ast.ClassDef, name: str) -> ast.stmt | None:
    """The last statement of a module or a class that makes a name."""
    found = None
    for node in _statements(scope):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = {node.name}
        elif isinstance(node, ast.Assign):
            names = {_target(t) for t in node.targets}
        elif isinstance(node, ast.AnnAssign):
            names = {_target(node.target)}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = {a.asname or a.name for a in node.names}
        else:
            continue
        if name in names:
            found = node
    return found


def _statements(scope: ast.Module | ast.ClassDef) -> Iterator[ast.stmt]:
    """Those of a class also in its __init__, which makes attributes."""
    for node in scope.body:
        if (isinstance(scope, ast.ClassDef)
                and isinstance(node, ast.FunctionDef)
                and node.name == '__init__'):
            for inside in ast.walk(node):
                if isinstance(inside, ast.Assign | ast.AnnAssign):
                    yield inside
        yield node


def _target(node: ast.expr) -> str:
    if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            and node.value.id == 'self'):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ''


def _seam(node: ast.stmt, text: str) -> Seam:
    signature = ''
    if isinstance(node, ast.FunctionDef):
        signature = f'({", ".join(_arguments(node.args))})'
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Name):
                signature = f'@{decorator.id} {signature}'
    source = '\n'.join(_lines(text)[node.lineno - 1:node.end_lineno])
    return Seam(signature, hashlib.sha256(source.encode()).hexdigest()[:16])


def _arguments(args: ast.arguments) -> Iterator[str]:
    """Names, and which have a default; annotations are left out."""
    positional = [*args.posonlyargs, *args.args]
    required = len(positional) - len(args.defaults)
    for number, argument in enumerate(positional):
        yield argument.arg + ('' if number < required else '=')
    if args.vararg is not None:
        yield f'*{args.vararg.arg}'
    for argument, default in zip(args.kwonlyargs, args.kw_defaults,
                                 strict=True):
        yield f'{argument.arg}:' + ('' if default is None else '=')
    if args.kwarg is not None:
        yield f'**{args.kwarg.arg}'


def seams(driver: list[str], read: Reader) -> dict[str, Seam]:
    """Everything that the driver relies on, in one release of nova."""
    found = {name: look_up(name, read) for name in relied_on(driver)}
    return {name: seam for name, seam in found.items() if seam is not None}


def installed(site: Path) -> Reader:
    """Read the nova of a site directory."""
    def read(path: str) -> str | None:
        file = site / path
        return file.read_text() if file.is_file() else None
    return read


def wheel(path: Path) -> Reader:
    """Read the nova of a wheel."""
    archive = zipfile.ZipFile(path)
    names = set(archive.namelist())

    def read(name: str) -> str | None:
        return archive.read(name).decode() if name in names else None
    return read


@dataclass(frozen=True, slots=True)
class Record:
    """The seams of each supported release, as they were looked at."""

    #: The release that was looked at, by major version.
    releases: Mapping[int, str]
    seams: Mapping[int, Mapping[str, Seam]]

    @classmethod
    def load(cls, path: Path) -> 'Record':
        data = json.loads(path.read_text())
        releases = {int(r): v for r, v in data['releases'].items()}
        found: dict[int, dict[str, Seam]] = {r: {} for r in releases}
        for name, variants in data['seams'].items():
            for variant in variants:
                for release in variant['in']:
                    found[release][name] = Seam(variant['signature'],
                                                variant['source'])
        return cls(releases, found)

    def dump(self, path: Path) -> None:
        data: dict[str, list[dict[str, object]]] = {}
        for name in sorted({n for found in self.seams.values()
                            for n in found}):
            variants: dict[Seam, list[int]] = {}
            for release in sorted(self.releases):
                if name in self.seams[release]:
                    variants.setdefault(
                        self.seams[release][name], []).append(release)
            data[name] = [
                {'in': releases, 'signature': seam.signature,
                 'source': seam.source}
                for seam, releases in variants.items()]
        path.write_text(json.dumps(
            {'releases': self.releases, 'seams': data}, indent=1) + '\n')

    def called(self, release: int) -> dict[str, str]:
        """How each is called, without decorators; for the running driver."""
        return {name: seam.signature[seam.signature.find('('):]
                if seam.signature else ''
                for name, seam in sorted(self.seams[release].items())}

    def changes(self, version: str, found: Mapping[str, Seam]
                ) -> dict[str, str]:
        """What is not as it was looked at, by name.

        :param version: of the nova that ``found`` is from; one that is newer
            than every release on record is compared with the newest
        """
        release = min(int(version.split('.')[0]), max(self.releases))
        known = self.seams[release]
        told = {}
        for name in sorted(known.keys() | found.keys()):
            before, now = known.get(name), found.get(name)
            if before == now:
                continue
            if before is None:
                what = 'is relied on, and not on record'
            elif now is None:
                what = 'is not there, or not relied on any more'
            elif before.signature != now.signature:
                what = f'was {before.signature}, is {now.signature}'
            else:
                what = 'has another body'
            told[name] = (f'{name} in nova {version} {what} (compared with '
                          f'{self.releases[release]}). See whether the '
                          f'driver still does right, then run '
                          f'tools/peers/seams.py.')
        return told
