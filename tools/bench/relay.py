#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the relay costs, beside a connection to QEMU itself.

Run it as ``python -m tests.lab.namespace python tools/bench/relay.py``: it
starts a private libvirtd and virtlogd, the relay, and real guests. Where the
two are compared there are two guests alike, one that viewers reach through the
relay and one that they reach directly, and they run in turns, so that both
have the same machine.

It prints a table and writes the same as JSON, where a path is given. It fails
where a viewer that reads does not get every byte, or where something leaks.
"""

import argparse
import contextlib
import json
import os
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import libvirt

from tests.functional.by_hand import define, log_of
from tests.lab import guest
from tests.lab.daemons import LibvirtHost
from tests.lab.relay import GUEST_ADDRESS, Relay
from tests.lab.wait import until

#: Where viewers connect to.
ADDRESS = '127.0.0.1'
MIB = 1024 * 1024
#: Serial ports of a guest that has several; the PC's own are four.
PORTS = 4
#: A guest that sends back each byte that it is sent, and sleeps meanwhile: a
#: processor that looks again and again keeps QEMU from its connections.
ECHO = bytes.fromhex(
    'fa31c08ed88ed0bc007c'          # no segments, a stack
    'c70630002d7ca33200'            # the interrupt of COM1
    'baf903b001eebafc03b00bee'      # COM1: one for each byte received
    'baf803ece42124efe621'          # forget what came before; let it in
    'fbf4ebfc'                      # sleep
    'baf803ecee'                    # its handler: take a byte, send it
    'b020e620cf')
ECHO_SECTOR = ECHO.ljust(510, b'\0') + b'\x55\xaa'


@dataclass(frozen=True, slots=True)
class Length:
    """So long is what is measured: in seconds, or how often."""

    rounds: int
    flat_out: float
    keystrokes: int
    connects: int
    consoles: int
    quiet: float
    storm: float


FULL = Length(rounds=5, flat_out=10, keystrokes=400, connects=300,
              consoles=500, quiet=120, storm=60)
QUICK = Length(rounds=2, flat_out=3, keystrokes=50, connects=50,
               consoles=40, quiet=10, storm=5)


@dataclass(frozen=True, slots=True)
class Row:
    """A row says what was measured, and what was aimed at."""

    what: str
    direct: str
    relay: str
    aim: str
    reached: bool | None


class Process:
    """The relay's process, as the kernel sees it."""

    def __init__(self, pid: int) -> None:
        self._at = Path(f'/proc/{pid}')

    def cpu(self) -> float:
        """Give seconds of a core so far, of all threads that there are."""
        used = 0
        for thread in (self._at / 'task').iterdir():
            with contextlib.suppress(OSError):
                used += int((thread / 'schedstat').read_text().split()[0])
        return used / 1e9

    def memory(self) -> int:
        """Give bytes in memory."""
        (kib,) = [line.split()[1] for line
                  in (self._at / 'status').read_text().splitlines()
                  if line.startswith('VmRSS:')]
        return int(kib) * 1024

    def descriptors(self) -> int:
        return len(list((self._at / 'fd').iterdir()))

    def threads(self) -> int:
        return len(list((self._at / 'task').iterdir()))


class Viewers:
    """Viewers of one console, all of whom read what comes."""

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.seen = [bytearray() for _ in range(count)]
        for seen in self.seen:
            connected = viewer(port)
            connected.setblocking(False)
            self._selector.register(connected, selectors.EVENT_READ, seen)

    def read(self, seconds: float) -> None:
        """Read for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                data = key.fileobj.recv(MIB)
                if not data:
                    raise ConnectionError('a viewer was disconnected')
                key.data.extend(data)

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


def viewer(port: int) -> socket.socket:
    return socket.create_connection((ADDRESS, port), 10)


def wait_for_relay(ports: list[int]) -> None:
    """Wait until viewers of these consoles are let in."""
    def listens(port: int) -> bool:
        with contextlib.suppress(OSError):
            viewer(port).close()
            return True
        return False
    for port in ports:
        until(lambda port=port: listens(port), 'the relay listens', 120)


@contextlib.contextmanager
def running(domain: libvirt.virDomain) -> Iterator[None]:
    """Let a guest run for now."""
    domain.resume()
    try:
        yield
    finally:
        domain.suspend()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests alike: one that is relayed, and one that is not."""

    direct: libvirt.virDomain
    relayed: libvirt.virDomain
    direct_port: int
    relayed_port: int
    relayed_log: Path

    @classmethod
    def start(cls, host: LibvirtHost, name: str, sector: bytes,
              ready: bytes = b'') -> 'Pair':
        """Start them, and suspend them.

        :param ready: is in their logs once they are to be suspended
        """
        ports, domains = [], []
        for address in (ADDRESS, GUEST_ADDRESS):
            own = f'{name}-{len(ports)}'
            ports.append(guest.free_port())
            domains.append(define(host, sector, [guest.tcp_serial(
                ports[-1], log_of(host, own), address=address)], own))
            domains[-1].create()
        for number, domain in enumerate(domains):
            log = log_of(host, f'{name}-{number}')
            until(lambda log=log: log.exists() and ready in log.read_bytes(),
                  'the guest has started')
            domain.suspend()
        wait_for_relay(ports[1:])
        return cls(*domains, *ports, log_of(host, f'{name}-1'))

    def end(self) -> None:
        for domain in (self.direct, self.relayed):
            domain.destroy()


class Bench:
    """A host with its relay, and what was measured there."""

    def __init__(self, host: LibvirtHost, relay: Relay,
                 length: Length) -> None:
        self.host = host
        self.process = Process(relay.process.pid)
        self.length = length
        self.rows: list[Row] = []

    def row(self, what: str, direct: str, relay: str, aim: str = '',
            reached: bool | None = None) -> None:
        self.rows.append(Row(what, direct, relay, aim, reached))
        print(f'{what}: {direct or "-"} / {relay}', file=sys.stderr,
              flush=True)

    # One guest flat out

    def throughput(self) -> None:
        """Compare what a guest writes flat out, as its viewers get it."""
        pair = Pair.start(self.host, 'flat-out',
                          guest.boot_sector(burst=255), b'line 00000001\r\n')
        direct, one, ten, used = [], [], [], []
        for _ in range(self.length.rounds):
            direct.append(self._rate(
                pair.direct, pair.direct_port, 1))
            before = self.process.cpu()
            one.append(self._rate(
                pair.relayed, pair.relayed_port, 1, pair.relayed_log))
            used.append((self.process.cpu() - before) / self.length.flat_out)
            with self._stopped_viewer(pair):
                ten.append(self._rate(
                    pair.relayed, pair.relayed_port, 9, pair.relayed_log))
        pair.end()
        ratios = [_ratio(direct, one), _ratio(direct, ten)]
        for what, rates, ratio in (
                ('flat out, one viewer', one, ratios[0]),
                ('flat out, ten viewers, one of them stopped', ten,
                 ratios[1])):
            self.row(what, f'{statistics.median(direct) / 1e3:.0f} kB/s',
                     f'{statistics.median(rates) / 1e3:.0f} kB/s '
                     f'({ratio:.2f} of direct)', '0.9 of direct',
                     ratio >= 0.9)
        self.row('the same, each of the nine and the log', '',
                 'every byte', 'every byte', True)
        self.row('the relay meanwhile, one viewer', '',
                 f'{statistics.median(used) * 100:.1f} % of a core')

    def _rate(self, domain: libvirt.virDomain, port: int, count: int,
              log: Path | None = None) -> float:
        """Give bytes a second that reach each viewer, and the log.

        :raises RuntimeError: they are not the same bytes
        """
        viewers = Viewers(port, count)
        viewers.read(0.5)   # what was written before
        before = len(viewers.seen[0])
        with running(domain):
            begun = time.monotonic()
            viewers.read(self.length.flat_out)
        taken = time.monotonic() - begun
        viewers.read(1)   # what is on its way
        seen = viewers.seen
        viewers.close()
        if any(one != seen[0] for one in seen):
            raise RuntimeError('viewers have seen different bytes')
        if log is not None:
            with log.open('rb') as logged:
                logged.seek(-len(seen[0]), os.SEEK_END)
                if logged.read() != seen[0]:
                    raise RuntimeError('the log has other bytes')
        return (len(seen[0]) - before) / taken

    @contextlib.contextmanager
    def _stopped_viewer(self, pair: Pair) -> Iterator[None]:
        with socket.socket() as stopped:
            stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stopped.connect((ADDRESS, pair.relayed_port))
            yield

    # From a key to what it shows

    def keystrokes(self) -> None:
        """Compare how long a key takes to the guest and back."""
        pair = Pair.start(self.host, 'echo', ECHO_SECTOR)
        times: list[list[float]] = [[], []]
        sides = ((pair.direct, pair.direct_port),
                 (pair.relayed, pair.relayed_port))
        for _ in range(self.length.rounds):
            for side, (domain, port) in enumerate(sides):
                times[side] += self._echoes(domain, port)
        pair.end()
        for what, figure, aim in (
                ('median', statistics.median, 1.0),
                ('99 %', lambda found: sorted(found)[
                    int(len(found) * 0.99)], 5.0)):
            direct, relay = (figure(found) * 1e3 for found in times)
            self.row(f'from key to echo, {what}', f'{direct:.2f} ms',
                     f'{relay:.2f} ms', f'{aim:g} ms more',
                     relay - direct <= aim)

    def _echoes(self, domain: libvirt.virDomain, port: int) -> list[float]:
        found = []
        with viewer(port) as keys, running(domain):
            keys.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What was seen so far, and the guest that just began.
            self._echo(keys, b'\x01')
            for number in range(self.length.keystrokes):
                key = b'%c' % (0x61 + number % 26)
                begun = time.perf_counter()
                self._echo(keys, key)
                found.append(time.perf_counter() - begun)
                time.sleep(0.005)
        return found

    @staticmethod
    def _echo(keys: socket.socket, key: bytes) -> None:
        keys.settimeout(30)
        keys.sendall(key)
        while not (data := keys.recv(MIB)).endswith(key):
            if not data:
                raise ConnectionError('a viewer was disconnected')

    # Who comes late

    def context(self) -> None:
        """Measure how soon a new viewer sees something."""
        pair = Pair.start(self.host, 'context', guest.boot_sector(count=500),
                          b'line 00000500\r\n')
        times = []
        for _ in range(self.length.connects):
            begun = time.perf_counter()
            with viewer(pair.relayed_port) as connected:
                if not connected.recv(1):
                    raise ConnectionError('a viewer was disconnected')
            times.append(time.perf_counter() - begun)
            time.sleep(0.01)
        median = statistics.median(times) * 1e3
        late = sorted(times)[int(len(times) * 0.99)] * 1e3
        self.row('from connecting to the first byte, median', '',
                 f'{median:.2f} ms', '10 ms', median <= 10)
        self.row('from connecting to the first byte, 99 %', '',
                 f'{late:.2f} ms', '10 ms', late <= 10)
        self._storm(pair.relayed_port)
        pair.end()

    def _storm(self, port: int) -> None:
        """Connect a hundred times a second; nothing may be left of it."""
        def once() -> None:
            with viewer(port) as connected:
                connected.recv(1)
        for _ in range(100):
            once()
        time.sleep(2)
        before = self._resources()
        begun, late = time.monotonic(), 0
        count = int(100 * self.length.storm)
        for number in range(count):
            pause = begun + number / 100 - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            else:
                late += 1
            once()
        rate = count / (time.monotonic() - begun)
        time.sleep(2)
        after = self._resources()
        more = after[2] - before[2]
        leaks = after[0] > before[0] or after[1] > before[1] or more > MIB
        self.row(f'{rate:.0f} connections a second for '
                 f'{self.length.storm:g} s', '',
                 f'{after[0] - before[0]} descriptors, '
                 f'{after[1] - before[1]} threads, {more / 1024:.0f} KiB more',
                 '100 a second, nothing leaks', not leaks and rate > 99)
        if leaks:
            raise RuntimeError(f'before {before}, after {after}')

    def _resources(self) -> tuple[int, int, int]:
        return (self.process.descriptors(), self.process.threads(),
                self.process.memory())

    # Many that are quiet

    def quiet(self) -> None:
        """Measure what consoles cost where nothing happens."""
        domains, ports = [], []
        for number in range(self.length.consoles // PORTS):
            name = f'quiet-{number}'
            # Side by side they are free at the same time.
            own = [30000 + len(ports) + index for index in range(PORTS)]
            serials = [guest.tcp_serial(
                port, log_of(self.host, name).with_suffix(f'.{index}'),
                address=GUEST_ADDRESS) for index, port in enumerate(own)]
            domain = define(self.host, guest.boot_sector(
                count=1, ports=PORTS), serials, name)
            domain.create()
            until(lambda name=name: log_of(self.host, name).with_suffix(
                f'.{PORTS - 1}').stat().st_size, 'it writes', 120)
            # The host's cores are for the relay.
            domain.suspend()
            domains.append(domain)
            ports += own
        wait_for_relay(ports)
        time.sleep(5)
        self._idle(f'{len(ports)} quiet consoles', '0.5 % of a core, 80 MiB')
        viewers = [viewer(port) for port in ports]
        time.sleep(5)
        self._idle('the same with a viewer each')
        for one in viewers:
            one.close()
        for domain in domains:
            domain.destroy()

    def _idle(self, what: str, aim: str = '') -> None:
        before, begun = self.process.cpu(), time.monotonic()
        time.sleep(self.length.quiet)
        share = (self.process.cpu() - before) / (time.monotonic() - begun)
        memory = self.process.memory() / MIB
        self.row(what, '', f'{share * 100:.2f} % of a core, '
                 f'{memory:.0f} MiB', aim,
                 (share <= 0.005 and memory <= 80) if aim else None)


def _ratio(direct: list[float], relay: list[float]) -> float:
    """Give the median of the rounds' ratios."""
    return statistics.median(
        one / other for one, other in zip(relay, direct, strict=True))


def table(rows: list[Row]) -> str:
    """Give the figures for people."""
    cells = [('', 'direct', 'through the relay', 'aim', 'reached')]
    cells += [(row.what, row.direct or '-', row.relay, row.aim or '-',
               '-' if row.reached is None else
               'yes' if row.reached else 'NO') for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join('  '.join(
        cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip() for line in cells)


def main() -> None:
    """Run all of it, or the parts that are named."""
    parts: dict[str, Callable[[Bench], None]] = {
        'throughput': Bench.throughput, 'keystrokes': Bench.keystrokes,
        'context': Bench.context, 'quiet': Bench.quiet}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('parts', nargs='*', metavar='PART',
                        help=f'of {", ".join(parts)} (all)')
    parser.add_argument('--quick', action='store_true',
                        help='short, with fewer consoles: to see that it '
                             'works')
    parser.add_argument('--json', type=Path, help='write the figures there')
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - parts.keys():
        parser.error(f'no such part: {", ".join(sorted(wrong))}')
    with (tempfile.TemporaryDirectory() as directory,
          # One file of a log, so that all of it can be compared.
          LibvirtHost(Path(directory) / 'host', max_size=1 << 30) as host,
          Relay(host.uri, ADDRESS, relay_host_viewers=1000) as relay):
        bench = Bench(host, relay, QUICK if arguments.quick else FULL)
        for name in arguments.parts or parts:
            parts[name](bench)
    print(table(bench.rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(
            [asdict(row) for row in bench.rows], indent=2))


if __name__ == '__main__':
    main()
