# SPDX-License-Identifier: Apache-2.0
"""Log systems take what a stream writes, as the page shows it."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost, listens
from tests.lab.wait import until

_ROOT = Path(__file__).parents[2]
_JOURNALD = '/lib/systemd/systemd-journald'


@pytest.fixture
def writer(libvirt_host: LibvirtHost) -> Iterator[None]:
    """A guest that writes a line every half second."""
    path = log_of(libvirt_host)
    domain = define(libvirt_host, guest.boot_sector(
        text=b'\x1b[31mred\x1b[0m\r\n', interval=0.5),
        [guest.pty_serial(path)])
    domain.create()
    yield
    domain.destroy()


def stream_into(host: LibvirtHost, console: Console, state: Path,
                consumer: str) -> subprocess.Popen[bytes]:
    """A stream into a consumer, as the page has them."""
    # One that is there is taken from its beginning.
    state.write_text('{"version": 1, "logs": []}')
    return subprocess.Popen(host.command(
        'sh', '-c', f'exec "$@" | {consumer}', 'sh', *console.command,
        'stream', '--state', str(state)),
        stdin=subprocess.DEVNULL, start_new_session=True)


def end(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_rsyslog(libvirt_host: LibvirtHost, console: Console,
                 writer: None, tmp_path: Path) -> None:
    shipped = (_ROOT / 'etc/rsyslog.d/virtlogd-console.conf').read_text()
    log, socket = tmp_path / 'log', tmp_path / 'socket'
    conf = tmp_path / 'rsyslog.conf'
    conf.write_text(shipped.replace('/var/log/virtlogd-console.log', str(log))
                    .replace('/run/virtlogd-console.socket', str(socket)))
    rsyslogd = subprocess.Popen(
        ['rsyslogd', '-n', '-f', conf, '-i', tmp_path / 'pid'],
        stdin=subprocess.DEVNULL)
    try:
        until(lambda: listens(socket), 'rsyslogd listens')
        stream = stream_into(libvirt_host, console, tmp_path / 'state',
                             f'socat -u - UNIX-CONNECT:{socket}')
        until(lambda: log.exists() and 'line 00000003' in log.read_text(),
              'lines in the log')
        end(stream)
    finally:
        end(rsyslogd)
    lines = log.read_text().splitlines()
    assert all(re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \S+ guest1 [0-9a-f-]{36}: '
        r'.*', line) for line in lines)
    numbers = [int(line[-8:]) for line in lines if ': line 0' in line]
    assert numbers == list(range(1, len(numbers) + 1))


def test_journald(libvirt_host: LibvirtHost, console: Console,
                  writer: None, tmp_path: Path) -> None:
    run = tmp_path / 'run'
    run.mkdir()
    journal = run / 'log/journal'
    # In a namespace of its own, where its sockets are nobody else's.
    journald = subprocess.Popen(
        ['unshare', '--mount', 'sh', '-c',
         'mount --bind "$1" /run && mkdir -p /run/systemd/journal && '
         'mount -t cgroup2 cgroup2 /sys/fs/cgroup && '
         f'exec {_JOURNALD}', 'sh', run], stdin=subprocess.DEVNULL)
    output = run / 'systemd/journal/stdout'
    try:
        until(lambda: listens(output), 'journald listens')
        stream = stream_into(
            libvirt_host, console, tmp_path / 'state',
            f'unshare --mount sh -c \'mount --bind "{run}" /run && '
            f'exec systemd-cat -t virtlogd-console\'')

        def messages() -> list[str]:
            done = subprocess.run(
                ['journalctl', '-D', journal, '-t', 'virtlogd-console', '-o',
                 'json'], check=False, capture_output=True)
            return [json.loads(line)['MESSAGE']
                    for line in done.stdout.splitlines()]

        until(lambda: any('line 00000003' in message
                          for message in messages()), 'lines in the journal')
        end(stream)
    finally:
        end(journald)
    found = [json.loads(message) for message in messages()]
    numbers = [int(one['text'][5:]) for one in found
               if one.get('text', '').startswith('line')]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {one['guest'] for one in found} == {'guest1'}
