# SPDX-License-Identifier: Apache-2.0
"""Tests of one server share these functions, which call nova's REST API."""

from pathlib import Path

from tests.lab.nova_node import NovaNode, Server
from tests.lab.wait import until
from virtlogd_driver.console_log import reader
from virtlogd_driver.history import boot as history_boot

#: The only TCP port of the fixture ``nova``.
PORT = 10000
#: What its guests write when they boot; then they send back what is typed.
BOOT = ''.join(f'line {n:08d}\n' for n in range(1, 11))

_LIMIT = 1 << 20


def devices(nova: NovaNode, server: Server) -> list[dict[str, str | None]]:
    """The serial ports of the guest, as far as nova chooses."""
    found = []
    for serial in nova.guest_xml(server).findall('devices/serial'):
        source, log = serial.find('source'), serial.find('log')
        found.append({
            'type': serial.get('type'),
            'port': None if source is None else source.get('service'),
            'log': None if log is None else log.get('file'),
            'append': None if log is None else log.get('append')})
    return found


def assert_one_port_with_its_log(nova: NovaNode, server: Server,
                                 log: str = 'console.log') -> None:
    assert devices(nova, server) == [{
        'type': 'tcp', 'port': str(PORT), 'append': 'on',
        'log': str(nova.instance_directory(server) / log)}]


def type_text(nova: NovaNode, server: Server, text: str) -> None:
    """Typed at the serial console, and seen on both consoles."""
    with nova.serial_console(server) as terminal:
        terminal.type(f'{text}\r'.encode())
        terminal.read_until(f'{text}\r\n'.encode())
        # While somebody is connected.
        nova.wait_for_output(server, f'{text}\n')


def wait_for_boot(nova: NovaNode, server: Server, before: str = '') -> None:
    """Until the output is what there was, and the messages of a boot."""
    nova.wait_for_output(server, before + BOOT)
    assert nova.console_output(server) == before + BOOT


def boot(nova: NovaNode) -> Server:
    """A server, and 'first' typed into it."""
    server = nova.boot()
    wait_for_boot(nova, server)
    type_text(nova, server, 'first')
    return server


def assert_works_after(nova: NovaNode, server: Server) -> None:
    """Started anew, with the log from before, and both consoles."""
    assert_one_port_with_its_log(nova, server)
    wait_for_boot(nova, server, f'{BOOT}first\n')
    type_text(nova, server, 'second')
    assert nova.console_output(server) == f'{BOOT}first\n{BOOT}second\n'


def output_of_boots(nova: NovaNode, server: Server) -> list[str]:
    """What was written from each start of the guest on."""
    directory = nova.instance_directory(server)
    written = nova.guest_xml(server).find('devices/serial/log').get('file')
    log = str(directory / Path(written).name)
    found = []
    for noted in history_boot.read(str(directory)):
        data, position = b'', noted.positions[0]
        while True:
            since = reader.read_from(log, position, _LIMIT)
            assert since.missed == 0
            data, position = data + since.data, since.position
            if not since.data:
                break
        found.append(data.decode().replace('\r', ''))
    return found


def assert_boots(nova: NovaNode, server: Server,
                 outputs: list[str]) -> None:
    """These are the starts that are noted, soon after the guest writes."""
    until(lambda: len(output_of_boots(nova, server)) == len(outputs),
          f'{len(outputs)} starts are noted')
    assert output_of_boots(nova, server) == outputs
