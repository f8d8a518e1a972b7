# SPDX-License-Identifier: Apache-2.0
"""The documentation is true of the code."""

import ast
import os
import pathlib
import re
import subprocess
import textwrap

import pytest

from virtlogd_driver import conf
from virtlogd_driver.compute import live_migration
from virtlogd_driver.console_log import generation
from virtlogd_driver.guest import plan
from virtlogd_driver.history import record
from virtlogd_driver.node import metrics
from virtlogd_driver.virtlogd.health import DaemonState, Report
from virtlogd_driver.virtlogd.periodic import Totals

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / 'doc/source'
PAGES = [*sorted(SOURCE.rglob('*.rst')), ROOT / 'README.rst']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_an_option_that_is_named_is_one(page: pathlib.Path) -> None:
    known = {option.name for option in conf.OPTS}
    named = re.findall(r'``\[virtlogd\]\s+([a-z_]+)', page.read_text())
    assert set(named) <= known


def test_going_back_leaves_the_other_traits(tmp_path: pathlib.Path) -> None:
    """The step of the page, as bash runs it; placement: tests/functional."""
    (step,) = re.findall(
        r'code-block:: bash\n\n((?: +.*\n)+)',
        (SOURCE / 'install.rst').read_text())
    client = tmp_path / 'openstack'
    client.write_text(f'''#!/bin/sh
        echo "$OS_PLACEMENT_API_VERSION $@" >> {tmp_path}/asked
        case "$*" in
        "resource provider list --name compute1"*) echo UUID;;
        *"trait list UUID"*) echo HW_CPU_X86_SSE
            echo {live_migration.TRAIT}; echo {live_migration.TRAIT}_OTHER;;
        esac''')
    client.chmod(0o755)
    subprocess.run(['bash', '-ec', textwrap.dedent(step)], check=True,
                   env={'PATH': f'{tmp_path}:{os.environ["PATH"]}'})
    assert (tmp_path / 'asked').read_text().splitlines()[-1] == (
        '1.6 resource provider trait set UUID --trait=HW_CPU_X86_SSE '
        f'--trait={live_migration.TRAIT}_OTHER')


def test_the_house_has_every_module() -> None:
    house = (SOURCE / 'contributor/house.rst').read_text()
    package = ROOT / 'virtlogd_driver'
    modules = {path.name for path in package.glob('*.py')} - {'__init__.py'}
    rooms = {f'{path.parent.name}/'
             for path in package.glob('*/__init__.py')}
    named = set(re.findall(r'``([a-z_]+(?:\.py|/))``', house))
    assert modules | rooms <= named


def test_each_module_says_in_one_line_what_it_is() -> None:
    """Whether that is a sentence with a verb only a reader can tell."""
    said = {path: (ast.get_docstring(ast.parse(path.read_text())) or '')
            for room in ('virtlogd_driver', 'tools')
            for path in (ROOT / room).rglob('*.py')}
    assert not [path for path, docstring in said.items()
                if not docstring.split('\n')[0].endswith('.')]


def test_every_metric_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / 'metrics.prom'
    metrics.write(str(file), Report(DaemonState.UP), Totals())
    page = (SOURCE / 'operator/health.rst').read_text()
    made = set(re.findall(rf'^# TYPE {metrics.PREFIX}_(\w+)',
                          file.read_text(), re.MULTILINE))
    named = set(re.findall(r'``(\w+?)(?:_total)?(?:\{[a-z,]+\})?``', page))
    assert {name.removesuffix('_total') for name in made} <= named


def test_every_file_that_is_made_is_named() -> None:
    """Of a guest: security modules, and other software, have to know."""
    page = (SOURCE / 'operator/security_modules.rst').read_text()
    made = {generation.history_name(0, 0)} | {
        name(port, moves) for name in (generation.live_name,
                                       generation.history_name)
        for port in (0, 1) for moves in (0, 1)
        if name is generation.live_name or moves}
    for path in (ROOT / 'virtlogd_driver').glob('*/*.py'):
        if path.parent.name not in ('compute', 'history'):
            continue
        made |= {
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            and re.fullmatch(
                r'console\.[a-z]+|_[a-z]+\.|\.new|_console|fetched|targets'
                r'|(?!seams)[a-z]+\.json', node.value)}
    made.add(record.History(0, 1, 0, '', True).file)
    assert {'console.boots', '_leaving.', '_console', '.new', 'record.json',
            'departure.json', 'state.json', 'fetched', 'targets'} <= made
    assert {name for name in made if name not in page} == set()
    assert f'``.{generation.MAX_BACKUPS - 1}``' in page


def test_the_ports_of_each_machine() -> None:
    page = (SOURCE / 'operator/consoles.rst').read_text()
    for architecture in ('x86_64', *plan.MACHINES):
        row = re.search(
            rf'\* - [^*]*\b{architecture}\b[^*]*?\n     - (\d+)\n', page)
        assert row is not None, architecture
        assert int(row[1]) == plan.machine(architecture).max_ports


def test_the_decision_table() -> None:
    page = (SOURCE / 'operator/consoles.rst').read_text()
    rows = re.findall(
        r'\* - (capable|not capable)\n     - (true|false)\n     -(.*)\n'
        r'     - (.*)\n', page)
    assert len(rows) == 5
    for capable, serial, fallback, gets in rows:
        wanted = plan.plan(
            capable=capable == 'capable', serial_console=serial == 'true',
            fallback=fallback.strip() or 'file', architecture='x86_64',
            ports=3)
        word = {'tcp': 'TCP port', 'pty': 'pseudo terminal',
                'file': 'file'}[wanted.backend]
        assert gets.startswith(('n ' if wanted.ports == 3 else 'one ')
                               + word), (capable, serial, gets)
        assert wanted.logged == ('a log' in gets and 'file' not in gets)


def test_each_file_that_the_house_names_is_there() -> None:
    house = (SOURCE / 'contributor/house.rst').read_text()
    named = re.findall(r'``((?:[a-z_]+/)+[a-z_]+\.py)``', house)
    assert named
    assert not [name for name in named
                if not (ROOT / 'virtlogd_driver' / name).exists()
                and not (ROOT / name).exists()]


def test_each_row_of_the_threat_model_has_tests() -> None:
    page = (SOURCE / 'operator/privileges.rst').read_text()
    table = page.split('Who can do what')[1].split('``get_serial_console``')[0]
    rows = re.split(r'\n   \* - ', table)[2:]
    assert len(rows) == 5
    for row in rows:
        named = re.findall(r'``((?:unit|functional)/[\w/]+\.py)``', row)
        assert named, row
        assert [name for name in named
                if not (ROOT / 'tests' / name).exists()] == []


def test_who_wants_to_change_something_is_sent_to_one_file() -> None:
    house = (SOURCE / 'contributor/house.rst').read_text()
    table = house.split('Where would I change X?')[1]
    rows = re.findall(r'\* - (.+)\n     - (.+)\n', table)[1:]
    assert len(rows) >= 15
    assert all(re.fullmatch(r'``[a-z_]+(/[a-z_]+)?\.py``', where)
               for _, where in rows)
