#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ``virtlogd-console stream`` costs, and how soon it has a new line.

Run it as ``python -m tests.lab.namespace python tools/bench/stream.py``. Many
guests are domains of libvirt's own test driver, whose logs this program writes
as virtlogd does; the one that writes flat out is a real guest with a real
virtlogd. It prints a table and writes the same as JSON, where a path is given.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.command import Console
from tests.lab.daemons import LibvirtHost
from tests.lab.nova_user import NovaUser
from tests.lab.wait import until
from tests.unit import fake_libvirt

Row = dict[str, Any]

#: A line of 60 bytes, five times a second: 300 bytes/s.
_LINE = b'[  123.456789] systemd[1]: Started a unit of some length.\r\n '[:60]
_PACE = 5
_QUIET, _BUSY, _OLD = 1000, 100, 500
_OLD_SIZE = 8 << 20


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


class Guests:
    """Domains of the test driver, each with a log."""

    def __init__(self, directory: Path, count: int, size: int = 0) -> None:
        self.logs = []
        domains = []
        for number in range(count):
            log = directory / f'guest-{number}' / 'console.log'
            log.parent.mkdir()
            log.touch()
            os.truncate(log, size)
            self.logs.append(log)
            domains.append(fake_libvirt.domain_xml(
                fake_libvirt.serial(log=str(log)), name=f'guest-{number}'))
        node = directory / 'node.xml'
        node.write_text(fake_libvirt.NODE.format(domains=''.join(domains)))
        self.uri = f'test://{node}'


@contextmanager
def streaming(uri: str, directory: Path, *arguments: str,
              virtlogd_socket: Path | None = None
              ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A stream that runs, and where it writes."""
    output = directory / 'output'
    with Console(uri, virtlogd_socket) as console:
        process = console.start('stream', '--state', str(directory / 'state'),
                                *arguments, output=output,
                                messages=directory / 'said')
        yield process, output
        process.terminate()
        process.wait()


def measured(process: subprocess.Popen[bytes], seconds: float) -> Row:
    before = cpu_seconds(process.pid)
    time.sleep(seconds)
    return {'cpu': (cpu_seconds(process.pid) - before) / seconds,
            'memory': resident(process.pid)}


def wait_until_it_follows(log: Path, output: Path) -> float:
    """Seconds until what is written comes."""
    begin = time.monotonic()
    for number in itertools.count():
        with log.open('ab') as file:
            file.write(b'probe %d\n' % number)
        with_probe = time.monotonic() + 0.25
        while time.monotonic() < with_probe:
            if b'probe ' in output.read_bytes():
                return time.monotonic() - begin
            time.sleep(0.01)
    raise AssertionError


def quiet(directory: Path, seconds: float) -> Row:
    guests = Guests(directory, _QUIET)
    with streaming(guests.uri, directory) as (process, output):
        wait_until_it_follows(guests.logs[0], output)
        time.sleep(10)
        return measured(process, seconds)


def followed(directory: Path, seconds: float) -> Row:
    """By ``virtlogd-console follow``, which looks at libvirt likewise."""
    guests = Guests(directory, _BUSY)
    output = directory / 'output'
    with Console(guests.uri) as console:
        process = console.start(
            'follow', *(f'guest-{n}' for n in range(_BUSY)),
            output=output, messages=directory / 'said')
        wait_until_it_follows(guests.logs[0], output)
        time.sleep(10)
        return measured(process, seconds)


def busy(directory: Path, seconds: float) -> Row:
    guests = Guests(directory, _BUSY)
    with streaming(guests.uri, directory) as (process, output):
        wait_until_it_follows(guests.logs[0], output)
        with writing(guests.logs):
            before = output.stat().st_size
            row = measured(process, seconds)
            row['lines'] = output.read_bytes()[before:].count(
                b'\n') / seconds
        return row


def busy_as_nova(directory: Path, seconds: float) -> Row:
    """The same as nova's user, whose helper opens root's files."""
    directory.chmod(0o755)
    guests = Guests(directory, _BUSY)
    for log in guests.logs:
        log.chmod(0o600)
    state = directory / 'own'
    state.mkdir()
    with NovaUser(
            f'[DEFAULT]\ninstances_path = {directory}\n[libvirt]\n'
            f'connection_uri = {guests.uri}\n', [directory]) as user:
        os.chown(state, user.uid, -1)
        output = directory / 'output'
        user.start('virtlogd-console', 'stream', '--state',
                   str(state / 'state'), log=output)
        wait_until_it_follows(guests.logs[0], output)
        with writing(guests.logs):
            before = _all_of(user.uid)
            time.sleep(seconds)
            return {'cpu': (_all_of(user.uid) - before) / seconds}


def _all_of(uid: int) -> float:
    """CPU seconds of a user's processes, and of helpers that they have."""
    used = 0.0
    for path in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            command = (path / 'cmdline').read_bytes()
            if (path.stat().st_uid == uid
                    or b'privsep-helper' in command):
                used += cpu_seconds(int(path.name))
    return used


@contextmanager
def writing(logs: list[Path]) -> Iterator[None]:
    """All logs are written, at 300 bytes/s each."""
    writer = subprocess.Popen(
        [sys.executable, __file__, '--write', *map(str, logs)])
    try:
        time.sleep(3)
        yield
    finally:
        writer.terminate()
        writer.wait()


def write(logs: list[str]) -> None:
    """Write 300 bytes/s to each log, as virtlogd does: when they come."""
    files = [os.open(log, os.O_WRONLY | os.O_APPEND) for log in logs]
    pause = 1 / (_PACE * len(files))
    due = time.monotonic()
    for file in itertools.cycle(files):
        os.write(file, _LINE)
        due += pause
        time.sleep(max(0.0, due - time.monotonic()))


def begin(directory: Path) -> Row:
    guests = Guests(directory, _OLD, _OLD_SIZE)
    with streaming(guests.uri, directory) as (_, output):
        wait_until_it_follows(guests.logs[-1], output)
        time.sleep(6)
    (directory / 'output').unlink()
    with streaming(guests.uri, directory) as (_, output):
        return {'seconds': wait_until_it_follows(guests.logs[0], output)}


def flat_out(directory: Path, seconds: float) -> Row:
    """One real guest, whose log virtlogd rotates at 64 KiB."""
    with LibvirtHost(directory / 'host', max_size=64 << 10) as host:
        path = log_of(host)
        domain = define(host, guest.boot_sector(), [guest.pty_serial(path)])
        rates = {}
        for name in ('alone', 'streamed'):
            (directory / name).mkdir()
            domain.create()
            until(path.exists, 'a log')
            if name == 'alone':
                time.sleep(2)
                rates[name] = _rate(path, seconds)
                domain.destroy()
                for file in path.parent.glob(f'{path.name}*'):
                    file.unlink()
                continue
            state = directory / name / 'state'
            state.write_text('{"version": 1, "logs": []}')
            with streaming(host.uri, directory / name,
                           virtlogd_socket=host.virtlogd_socket) as (
                               process, output):
                until(lambda: output.stat().st_size > 0, 'lines')
                before = cpu_seconds(process.pid)
                rates[name] = _rate(path, seconds)
                cpu = (cpu_seconds(process.pid) - before) / seconds
                domain.destroy()
                time.sleep(3)
            objects = [json.loads(line)
                       for line in output.read_bytes().splitlines()]
    # Where the one before was ended within a line, the next one goes on.
    numbers = [int(one['text'][5:]) for one in objects
               if re.fullmatch(r'line \d{8}', one.get('text', ''))
               and not one.get('partial')]
    return {'rate': rates['streamed'], 'alone': rates['alone'], 'cpu': cpu,
            'missing': numbers[-1] - numbers[0] + 1 - len(numbers),
            'lost': sum(one.get('event') == 'lost' for one in objects)}


def _rate(path: Path, seconds: float) -> float:
    """Bytes a second that a guest writes, by the number of its lines."""
    def last() -> int:
        while True:
            lines = path.read_bytes().splitlines()
            if len(lines) > 2:
                return int(lines[-2][5:])
    before = last()
    begin = time.monotonic()
    time.sleep(seconds)
    return (last() - before) * 15 / (time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=30.0,
                        help='of each measurement (30)')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--write', nargs='+', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return
    rows: dict[str, Row] = {}
    for name, measure in (
            ('quiet', lambda path: quiet(path, arguments.seconds)),
            ('followed', lambda path: followed(path, arguments.seconds)),
            ('busy', lambda path: busy(path, arguments.seconds)),
            ('busy_as_nova',
             lambda path: busy_as_nova(path, arguments.seconds)),
            ('begin', begin),
            ('flat_out', lambda path: flat_out(path, arguments.seconds))):
        print(f'{name} ...', file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir='/var/tmp') as directory:
            rows[name] = measure(Path(directory))
    print(f'{"what":44}{"measured":>22}{"aim":>14}')
    for what, found, aim in (
            (f'{_QUIET} quiet guests: of a core',
             f'{rows["quiet"]["cpu"]:.2%}', '<= 0.5 %'),
            (f'{_QUIET} quiet guests: memory',
             f'{rows["quiet"]["memory"] / (1 << 20):.0f} MiB', '<= 100 MiB'),
            (f'{_BUSY} quiet guests followed: of a core',
             f'{rows["followed"]["cpu"]:.2%}', '<= 5 %'),
            (f'{_BUSY} guests at 300 bytes/s: of a core',
             f'{rows["busy"]["cpu"]:.2%}', '<= 5 %'),
            (f'{_BUSY} guests at 300 bytes/s: lines/s',
             f'{rows["busy"]["lines"]:.0f}', ''),
            ('the same as nova\'s user: to that of root',
             f'{rows["busy_as_nova"]["cpu"] / rows["busy"]["cpu"]:.2f}',
             '<= 2'),
            (f'{_OLD} guests of 8 MiB: first new line',
             f'{rows["begin"]["seconds"]:.2f} s', '<= 2 s'),
            ('flat out, 64 KiB: lines missing',
             f'{rows["flat_out"]["missing"]}', '0'),
            ('flat out, 64 KiB: rate to that without',
             f'{rows["flat_out"]["rate"] / rows["flat_out"]["alone"]:.2f}',
             '1'),
            ('flat out, 64 KiB: rate',
             f'{rows["flat_out"]["rate"] / 1000:.0f} kB/s', ''),
            ('flat out, 64 KiB: of a core',
             f'{rows["flat_out"]["cpu"]:.2%}', '')):
        print(f'{what:44}{found:>22}{aim:>14}')
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
