# SPDX-License-Identifier: Apache-2.0
"""A console log is read by nova's code, by this driver's and by bare calls.

All on the same files, in one process, one after the other in turns; figures
are medians, in microseconds. "bare" is open, fstat, pread and close of as many
files as are needed, as the limit of what can be had. "daemon" is with the
files readable by root alone and this process being nobody, through each one's
privsep daemon; "direct" is without. A history no larger than the limit is one
whose files are all needed. Messages are logged as nova-compute does by
default, INFO and above (nova has one for each log longer than the limit).

    python -m tests.lab.namespace python tools/bench/console_log.py [--quick]

Writes report/bench_console_log.json, and with --svg FILE a drawing of the
ratios. Needs root; the whole calls on a real domain need the namespace.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab import concurrency  # noqa: F401

# isort: split
import argparse
import contextlib
import json
import logging
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import libvirt
import nova.conf
import nova.privsep
import nova.privsep.path
from nova import objects
from nova.virt.libvirt import driver as nova_driver

from tests.lab import guest, namespace
from tests.lab.backup import leave_backup
from tests.lab.daemons import LibvirtHost
from tests.lab.wait import until
from virtlogd_driver import conf
from virtlogd_driver.console_log import privileged, reader

CONF = nova.conf.CONF

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
FILES = (1, 2, 4, 11, 33)
LIMITS = (KIB, 100 * KIB, 8 * MIB)
HISTORIES = (MIB, 32 * MIB, GIB)
NOBODY = 65534
NAME = 'console.log'

Read = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Row:
    """One chain and limit, read in three ways; times in microseconds."""

    mode: str
    files: int
    #: Bytes in all files.
    history: int
    #: Bytes to read at most.
    limit: int
    nova: float
    ours: float
    bare: float | None

    @property
    def times_nova(self) -> float:
        """How many times as fast as nova."""
        return self.nova / self.ours

    @property
    def of_bare(self) -> float | None:
        return None if self.bare is None else self.ours / self.bare


def make_chain(directory: Path, files: int, history: int) -> None:
    """Files of equal size, with holes where the history is large."""
    directory.mkdir(mode=0o755)
    size = -(-history // files)
    real = min(size, 8 * MIB)
    for number in range(files):
        path = directory / (f'{NAME}.{number - 1}' if number else NAME)
        with path.open('wb') as file:
            file.seek(size - real)
            file.write(os.urandom(real))
        path.chmod(0o600)


def bare(paths: Sequence[str], limit: int) -> bytes:
    parts = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        length = os.fstat(fd).st_size
        data = os.pread(fd, limit, max(length - limit, 0))
        os.close(fd)
        parts.append(data)
        limit -= len(data)
        if limit == 0:
            break
    return parts[0] if len(parts) == 1 else b''.join(reversed(parts))


def readers(directory: Path, limit: int, mode: str) -> dict[str, Read]:
    path = str(directory / NAME)

    def nova_read() -> bytes:
        nova_driver.MAX_CONSOLE_BYTES = limit
        data: bytes = nova_driver.LibvirtDriver._get_console_output_file(
            None, None, path)
        return data

    found: dict[str, Read] = {
        'nova': nova_read,
        'ours': lambda: reader.read_tail(path, limit).data}
    if mode == 'direct':
        paths = [path, *(
            str(directory / f'{NAME}.{number}')
            for number in range(len(list(directory.iterdir())) - 1))]
        found['bare'] = lambda: bare(paths, limit)
    return found


def medians(reads: dict[str, Read], seconds: float) -> dict[str, float]:
    """Microseconds of one call each, taken in turns for so long."""
    times: dict[str, list[int]] = {name: [] for name in reads}
    answers = {name: read() for name, read in reads.items()}
    assert len(set(answers.values())) == 1, {
        name: len(answer) for name, answer in answers.items()}
    answers.clear()
    end = time.monotonic() + seconds
    while time.monotonic() < end or min(map(len, times.values())) < 5:
        for name, read in reads.items():
            for _ in range(3):
                began = time.perf_counter_ns()
                read()
                times[name].append(time.perf_counter_ns() - began)
    return {name: statistics.median(found) / 1000
            for name, found in times.items()}


@contextlib.contextmanager
def unprivileged(mode: str) -> Iterator[None]:
    if mode == 'daemon':
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def helper_command(directory: Path, name: str) -> str:
    """What starts privsep daemons that are known by a configuration file."""
    configuration = directory / name
    configuration.write_text(
        f'[DEFAULT]\nstate_path = {directory}\n'
        f'instances_path = {directory}\n')
    return shlex.join([
        'env', f'PYTHONPATH={os.pathsep.join(sys.path)}',
        sys.executable, '-W', 'ignore', '-c',
        'from oslo_privsep.daemon import helper_main; helper_main()',
        '--config-file', str(configuration)])


def start_daemons(directory: Path) -> None:
    """One privsep daemon for nova's context and one for ours, both root's."""
    command = helper_command(directory, 'nova.conf')
    for context, section in (
            (nova.privsep.sys_admin_pctxt, 'nova_sys_admin'),
            (privileged.context, 'virtlogd_privileged')):
        CONF.set_override('helper_command', command, group=section)
        context.start()


def set_mode(mode: str) -> None:
    for context in (nova.privsep.sys_admin_pctxt, privileged.context):
        context.set_client_mode(mode == 'daemon')


def chains(
        directory: Path, files: Sequence[int], histories: Sequence[int],
        limits: Sequence[int], seconds: float) -> list[Row]:
    rows = []
    print(f'{"mode":7}{"files":>6}{"history":>9}{"limit":>9}{"nova":>10}'
          f'{"ours":>10}{"bare":>10}{"nova/ours":>11}{"ours/bare":>11}')
    for mode in ('direct', 'daemon'):
        set_mode(mode)
        for count in files:
            cases = [(history, limit) for limit in limits
                     for history in sorted({limit, *histories})]
            for history, limit in cases:
                place = directory / f'{count}-{history}'
                if not place.exists():
                    make_chain(place, count, history)
                with unprivileged(mode):
                    found = medians(readers(place, limit, mode), seconds)
                row = Row(
                    mode, count, history, limit, found['nova'],
                    found['ours'], found.get('bare'))
                rows.append(row)
                show(row)
    return rows


def show(row: Row) -> None:
    of_bare = '' if row.of_bare is None else f'{row.of_bare:.2f}'
    raw = '' if row.bare is None else f'{row.bare:.1f}'
    print(f'{row.mode:7}{row.files:6}{size(row.history):>9}'
          f'{size(row.limit):>9}{row.nova:10.1f}{row.ours:10.1f}{raw:>10}'
          f'{row.times_nova:11.2f}{of_bare:>11}', flush=True)


def size(count: int) -> str:
    for unit, name in ((GIB, 'GiB'), (MIB, 'MiB'), (KIB, 'KiB')):
        if count >= unit:
            return f'{count / unit:.0f} {name}'
    return f'{count} B'


# Rotation

@dataclass(frozen=True, slots=True)
class Rotated:
    """One chain that is rotated between reads; times in microseconds."""

    files: int
    limit: int
    #: Reads from one rotation to the next; None: it is not rotated.
    every: int | None
    nova: float
    ours: float
    #: CPU of this process and of the helper, each read.
    nova_cpu: tuple[float, float]
    our_cpu: tuple[float, float]

    @property
    def times_nova(self) -> float:
        """How many times as fast as nova, by the mean."""
        return self.nova / self.ours

    @property
    def of_cpu(self) -> float:
        """How many times as many reads as nova for the same CPU time."""
        return sum(self.nova_cpu) / sum(self.our_cpu)


def rotate(directory: Path, files: int, content: bytes) -> None:
    """As virtlogd does; the new live file is full."""
    live = directory / NAME
    for number in range(files - 2, -1, -1):
        (live.with_name(f'{NAME}.{number - 1}') if number else live).rename(
            live.with_name(f'{NAME}.{number}'))
    if files == 1:
        live.unlink()
    fd = os.open(live, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, content)
    os.close(fd)


def rotations(directory: Path, files: Sequence[int], limits: Sequence[int],
              reads: int) -> list[Rotated]:
    """Through the daemons, where the log is rotated between reads."""
    set_mode('daemon')
    helpers = {'nova': helper_of(nova.privsep.sys_admin_pctxt),
               'ours': helper_of(privileged.context)}
    rows = []
    print(f'{"rotated":10}{"files":>6}{"limit":>9}{"nova":>10}{"ours":>10}'
          f'{"nova/ours":>11}{"by CPU":>9}')
    for every in (None, 10, 1):
        for count in files:
            for limit in limits:
                place = directory / f'rotated-{every}-{count}-{limit}'
                make_chain(place, count, limit)
                found = {}
                for name, read in readers(place, limit, 'daemon').items():
                    found[name] = _rotated(
                        place, count, limit, every, reads, read,
                        helpers[name])
                row = Rotated(
                    count, limit, every, found['nova'][0], found['ours'][0],
                    found['nova'][1:], found['ours'][1:])
                rows.append(row)
                often = {None: 'never', 1: 'each read'}.get(
                    every, f'each {every}th')
                print(f'{often:10}{count:6}{size(limit):>9}{row.nova:10.1f}'
                      f'{row.ours:10.1f}{row.times_nova:11.2f}'
                      f'{row.of_cpu:9.2f}', flush=True)
    return rows


def passing(reads: int) -> float:
    """Give the median of a call that passes on /dev/null, in microseconds.

    No read for which a file is opened with privilege can take less.
    """
    set_mode('daemon')
    took = []
    for _ in range(reads):
        begun = time.perf_counter_ns()
        assert reader.can_pass()
        took.append(time.perf_counter_ns() - begun)
    median = statistics.median(took) / 1000
    print(f'nothing but an open /dev/null passed on: {median:.1f} us',
          flush=True)
    return median


def _rotated(place: Path, count: int, limit: int, every: int | None,
             reads: int, read: Read, helper: int
             ) -> tuple[float, float, float]:
    """Mean of a read, and the CPU that it took here and in the helper."""
    content = os.urandom(-(-limit // count))
    took = own = 0
    read_at = cpu_of(helper)
    for number in range(reads):
        if every is not None and number % every == 0:
            rotate(place, count, content)
        with unprivileged('daemon'):
            own -= time.process_time_ns()
            took -= time.perf_counter_ns()
            data = read()
            took += time.perf_counter_ns()
            own += time.process_time_ns()
        assert len(data) == limit, (len(data), limit)
    return (took / reads / 1000, own / reads / 1000,
            (cpu_of(helper) - read_at) / reads)


def cpu_of(process: int) -> float:
    """Microseconds of CPU that a process has had."""
    with open(f'/proc/{process}/stat') as file:
        fields = file.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf(
        'SC_CLK_TCK')


def helper_of(context: Any) -> int:
    """The process of a context's privsep daemon."""
    for name in os.listdir('/proc'):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                command = Path(f'/proc/{name}/cmdline').read_bytes()
                if (b'helper_main' in command
                        and context.pypath.encode() in command.split(b'\0')):
                    return int(name)
    raise AssertionError('the helper is not there')


# Memory

_MEASURE = """
import sys
from virtlogd_driver.console_log import privileged, reader
path, limit = sys.argv[1], int(sys.argv[2])
def status(key):
    with open('/proc/self/status') as file:
        for line in file:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
reader.read_tail(path, 1000)
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')
idle = status('VmRSS')
reader.read_tail(path, limit)
print(status('VmHWM') - idle)
"""


def peak(directory: Path, limit: int) -> int:
    """Bytes of memory above idle that one read in its own process takes."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _MEASURE,
         str(directory / NAME), str(limit)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True)
    return int(done.stdout)


def memory(directory: Path) -> dict[str, int]:
    found = {}
    for files, limit in ((1, 8 * MIB), (4, 8 * MIB), (33, 8 * MIB),
                         (4, 64 * MIB)):
        place = directory / f'{files}-{GIB}'
        if not place.exists():
            make_chain(place, files, GIB)
        above = peak(place, limit)
        found[f'{files} files, {size(limit)}'] = above
        print(f'peak memory of {size(limit)} from {files} files of 1 GiB: '
              f'{above / MIB:.2f} MiB above idle, '
              f'{above / limit:.3f} of the limit', flush=True)
    return found


_MEASURE_BOTH = """
import glob, os, sys
from oslo_config import cfg
from virtlogd_driver.console_log import privileged, reader
path, limit, command, mark = sys.argv[1:]
cfg.CONF.set_override(
    'helper_command', command, group='virtlogd_privileged')
privileged.context.start()
daemon = [os.path.dirname(found) for found in glob.glob('/proc/[0-9]*/cmdline')
          if mark.encode() in open(found, 'rb').read()
          and found.split('/')[2] != str(os.getpid())]
assert len(daemon) == 1, daemon
ends = '/proc/self', daemon[0]
def status(end, key):
    for line in open(end + '/status'):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
def read(limit):
    os.seteuid(65534)
    assert len(reader.read_tail(path, limit).data) == limit
    os.seteuid(0)
read(1000)
for end in ends:
    open(end + '/clear_refs', 'w').write('5')
idle = [status(end, 'VmRSS') for end in ends]
read(int(limit))
print(*[status(end, 'VmHWM') - before for end, before in zip(ends, idle)])
privileged.context.stop()
"""


def daemon_memory(directory: Path, limit: int) -> dict[str, int]:
    """Bytes above idle at both ends of one read through the daemon.

    In processes of its own: what a process has freed it may use again.
    """
    command = helper_command(directory, 'memory.conf')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _MEASURE_BOTH,
         str(directory / f'4-{GIB}' / NAME), str(limit), command,
         str(directory / 'memory.conf')],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, text=True, check=True)
    found = {}
    for name, above in zip(
            ('service', 'daemon'), map(int, done.stdout.split()), strict=True):
        found[f'{name}, {size(limit)} through privsep'] = above
        print(f'peak memory of the {name} for {size(limit)} through privsep: '
              f'{above / MIB:.2f} MiB above idle, '
              f'{above / limit:.3f} of the limit', flush=True)
    return found


# The whole call

def whole_calls(directory: Path, seconds: float) -> list[dict[str, Any]]:
    """``get_console_output`` of a running domain, look-up and XML included."""
    from virtlogd_driver.compute import driver

    conf.register_opts(CONF)
    rows = []
    with LibvirtHost(directory / 'host') as host:
        path = host.log_directory / NAME
        host.log_directory.chmod(0o755)
        connection = host.connect()
        domain = connection.createXML(guest.domain_xml(
            host.directory, guest.boot_sector(count=10),
            [guest.tcp_serial(guest.free_port(), path)]))
        until(lambda: path.exists()
              and path.read_bytes().endswith(guest.lines(10, 10)), 'the log')
        instance = objects.Instance(
            uuid=domain.UUIDString(), id=1, task_state=None)
        drivers = {}
        for name, kind in (
                ('nova', nova_driver.LibvirtDriver),
                ('ours', driver.VirtlogdDriver)):
            drivers[name] = kind(None)
            drivers[name]._host._wrapped_conn = libvirt.open(host.uri)
        CONF.set_override(
            'log_directories', [str(host.log_directory)], group='virtlogd')
        nova_driver.MAX_CONSOLE_BYTES = CONF.virtlogd.max_console_bytes
        print(f'{"whole call":13}{"nova":>10}{"ours":>10}{"nova/ours":>11}')
        backups = 0
        for files in (1, 2, 4, 11):
            while backups < files - 1:
                leave_backup(path, os.urandom(9 * KIB), backups)
                backups += 1
            # A backup comes by a rotation alone, and there was none.
            reader.forget(str(path.parent))
            for mode in ('direct', 'daemon'):
                set_mode(mode)
                with unprivileged(mode):
                    found = medians({
                        name: lambda one=one: one.get_console_output(
                            None, instance)
                        for name, one in drivers.items()}, seconds)
                rows.append({'mode': mode, 'files': files, **found})
                print(f'{mode:7}{files:6}{found["nova"]:10.0f}'
                      f'{found["ours"]:10.0f}'
                      f'{found["nova"] / found["ours"]:11.2f}', flush=True)
        domain.destroy()
    return rows


# The drawing

def draw(rows: Sequence[Row], title: str) -> str:
    """How many times as fast as nova, where all files are needed: an SVG."""
    limits = sorted({row.limit for row in rows})
    files = sorted({row.files for row in rows})
    colours = ('#4477aa', '#ee6677', '#228833')
    width, height, bar = 720, 300, 11
    top = 64
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{2 * height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{2 * height}" fill="white"/>',
        f'<text x="16" y="22" font-size="15">{title}</text>']
    for index, limit in enumerate(limits):
        x = 16 + 150 * index
        parts.append(
            f'<rect x="{x}" y="34" width="12" height="12" '
            f'fill="{colours[index % 3]}"/>'
            f'<text x="{x + 18}" y="44">limit {size(limit)}</text>')
    for panel, mode in enumerate(('direct', 'daemon')):
        shown = [row for row in rows
                 if row.mode == mode and row.history == row.limit]
        if not shown:
            continue
        highest = max(row.times_nova for row in shown) * 1.15
        base = panel * (height - 20) + height - 16
        tall = height - top - 60

        def y_of(value: float, base: int = base, tall: int = tall,
                 highest: float = highest) -> float:
            return base - 24 - value / highest * tall

        parts.append(
            f'<text x="16" y="{base - tall - 36}" font-weight="bold">{mode}, '
            f'all files needed</text>')
        parts.append(
            f'<line x1="60" x2="{width - 16}" y1="{y_of(1):.1f}" '
            f'y2="{y_of(1):.1f}" stroke="#888" stroke-dasharray="4 3"/>'
            f'<text x="16" y="{y_of(1) + 4:.1f}">nova</text>')
        for place, count in enumerate(files):
            left = 80 + place * 128
            parts.append(
                f'<text x="{left}" y="{base - 8}">{count} '
                f'file{"s" if count > 1 else ""}</text>')
            for row in shown:
                if row.files != count:
                    continue
                index = limits.index(row.limit)
                x = left + index * (bar + 24)
                y = y_of(row.times_nova)
                parts.append(
                    f'<rect x="{x}" y="{y:.1f}" width="{bar}" '
                    f'height="{base - 24 - y:.1f}" '
                    f'fill="{colours[index % 3]}"/>'
                    f'<text x="{x - 4}" y="{y - 4:.1f}" font-size="10">'
                    f'{row.times_nova:.1f}x</text>')
    parts.append('</svg>\n')
    return '\n'.join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--quick', action='store_true', help='fewer chains, shorter')
    parser.add_argument(
        '--report', type=Path, default=Path('report'), metavar='DIRECTORY',
        help='where the JSON goes (default: report)')
    parser.add_argument('--svg', type=Path, help='draw the ratios there')
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit('bench_console_log.py: root is needed, for the daemons')
    logging.basicConfig(filename=os.devnull, level=logging.INFO)
    CONF([], project='nova', default_config_files=[])
    directory = Path(tempfile.mkdtemp(prefix='bench-console-log-'))
    directory.chmod(0o755)
    seconds = 0.1 if options.quick else 0.5
    try:
        start_daemons(directory)
        rows = chains(
            directory,
            FILES if not options.quick else (1, 2, 11),
            HISTORIES if not options.quick else (MIB, GIB),
            LIMITS if not options.quick else LIMITS[:2], seconds)
        rotated = rotations(
            directory, (1, 2, 4, 11) if not options.quick else (1, 4, 11),
            LIMITS[:2], 2000 if not options.quick else 300)
        passed = passing(2000 if not options.quick else 300)
        peaks = memory(directory)
        peaks |= daemon_memory(directory, 8 * MIB)
        whole = (
            whole_calls(directory, 4 * seconds) if namespace.inside() else [])
    finally:
        for context in (nova.privsep.sys_admin_pctxt, privileged.context):
            context.stop()
        shutil.rmtree(directory)
    versions = {
        'nova': metadata.version('nova'),
        'oslo.privsep': metadata.version('oslo.privsep'),
        'python': platform.python_version(),
        'kernel': platform.release()}
    options.report.mkdir(parents=True, exist_ok=True)
    (options.report / 'bench_console_log.json').write_text(json.dumps({
        'versions': versions,
        'chains': [asdict(row) for row in rows],
        'rotated': [asdict(row) for row in rotated],
        'passed_on_us': passed,
        'peak_bytes_above_idle': peaks,
        'whole_calls': whole}, indent=1) + '\n')
    if options.svg is not None:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(draw(
            rows, f'Times as fast as nova {versions["nova"]}, medians'))


if __name__ == '__main__':
    main()
