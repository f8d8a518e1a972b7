# SPDX-License-Identifier: Apache-2.0
"""The decision table holds, row by row, against golden files.

After a wanted change: ``python -m pytest tests/unit/guest/test_plan.py
--regenerate-output``, then read the difference.
"""

import pathlib
import subprocess

import libvirt
import pytest
from lxml import etree

from tests.unit import fake_libvirt
from virtlogd_driver import exception
from virtlogd_driver.guest import char_device, plan

GOLDEN = pathlib.Path(__file__).with_name('golden')

BASE = {'capable': True, 'serial_console': True, 'fallback': 'file',
        'architecture': 'x86_64', 'ports': 1}
ROWS = {
    'capable-serial': {},
    'capable-serial-4-ports': {'ports': 4},
    'capable-pty': {'serial_console': False, 'ports': 4},
    'fallback-file': {'capable': False, 'ports': 2},
    'fallback-tcp': {'capable': False, 'fallback': 'tcp', 'ports': 2},
    'fallback-without-serial': {'capable': False, 'serial_console': False},
    's390x-capable-serial-3-ports': {'architecture': 's390x', 'ports': 3},
    's390x-capable-pty': {'architecture': 's390x', 'serial_console': False},
    's390x-fallback-file': {'architecture': 's390x', 'capable': False},
    'aarch64-capable-serial-2-ports': {'architecture': 'aarch64',
                                       'ports': 2},
    'container-capable': {'container': True},
    'container-not-capable': {'container': True, 'capable': False},
}


def _domain(row: str) -> str:
    values = BASE | ROWS[row]
    wanted = plan.plan(**values)
    names = ['console.log'] + [f'console.port{n}.log' for n in range(1, 32)]
    devices = wanted.devices(
        [f'/instances/uuid/{name}' for name in names], '127.0.0.1',
        range(10000, 10000 + wanted.ports) if wanted.backend == 'tcp' else ())
    domain = etree.fromstring(fake_libvirt.domain_xml(
        name=row, arch=values['architecture']))
    for device in devices:
        domain.find('devices').append(device.to_element())
    etree.indent(domain)
    return etree.tostring(domain, encoding='unicode') + '\n'


@pytest.mark.parametrize('row', ROWS)
def test_row(row: str, request: pytest.FixtureRequest) -> None:
    golden = GOLDEN / f'{row}.xml'
    if request.config.getoption('--regenerate-output'):
        golden.write_text(_domain(row))
    assert _domain(row) == golden.read_text()


def test_every_golden_file_has_its_row() -> None:
    assert {p.stem for p in GOLDEN.glob('*.xml')} == set(ROWS)


@pytest.mark.parametrize('row', ROWS)
def test_libvirt_keeps_every_device(row: str) -> None:
    text = (GOLDEN / f'{row}.xml').read_text()
    connection = libvirt.open('test:///default')
    domain = connection.defineXML(text)
    try:
        kept = char_device.parse(domain.XMLDesc())
    finally:
        domain.undefine()
        connection.close()
    wanted = char_device.parse(text)
    assert [(d.type, d.source, d.log) for d in kept] == [
        (d.type, d.source, d.log) for d in wanted]


@pytest.mark.parametrize('row', ROWS)
def test_libvirt_schema_allows_it(row: str) -> None:
    done = subprocess.run(
        ['virt-xml-validate', GOLDEN / f'{row}.xml', 'domain'],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('row', ROWS)
def test_every_log_is_appended_to(row: str) -> None:
    devices = char_device.parse((GOLDEN / f'{row}.xml').read_text())
    assert devices
    for device in devices:
        if device.log is not None:
            assert device.log.append
        if device.type == 'file':
            assert device.source.append


@pytest.mark.parametrize(('architecture', 'ports', 'allowed'), [
    ('x86_64', 5, 4), ('x86_64', 0, 4), ('x86_64', -1, 4),
    ('aarch64', 5, 4), ('s390x', 33, 32)])
def test_more_than_the_machine_has(architecture, ports, allowed) -> None:
    with pytest.raises(exception.TooManySerialPorts) as raised:
        plan.plan(**BASE | {'architecture': architecture, 'ports': ports})
    assert f'has 1 to {allowed}' in str(raised.value)
    assert 'hw:serial_port_count' in str(raised.value)


def test_ports_do_not_matter_without_serial_consoles() -> None:
    values = BASE | {'serial_console': False, 'ports': 99}
    assert plan.plan(**values).ports == 1
