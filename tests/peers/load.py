# SPDX-License-Identifier: Apache-2.0
"""A process of tools/bench/load.py runs one driver.

Its last line on standard output is the report, as JSON.
"""

# First, because it decides about eventlet before anything else is loaded.
import nova.tests.unit  # noqa: F401, I001

import argparse
import contextlib
import gc
import json
import os
import random
import re
import statistics
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from nova import exception as nova_exception

from tests.peers.compute import Compute
from tests.peers.virtlogd import LINE, held

#: What may stay open, or grow, without being a leak.
SPARE_DESCRIPTORS = 2
SPARE_MEMORY = 8 << 20
#: Seconds in which a log is closed whose guest is gone: two sweeps.
LONGEST_SWEEP = 30
#: Seconds between two lines of progress.
PROGRESS = 30.0

OPERATIONS = ('console read', 'serial console', 'boot', 'delete')


@dataclass(frozen=True)
class Usage:
    """What a process uses of its host."""

    #: But those of console logs, which are kept open between reads.
    descriptors: int
    threads: int
    #: Bytes of resident memory.
    memory: int

    @classmethod
    def settled(cls) -> 'Usage':
        """Once the idle threads of nova's pools have ended."""
        gc.collect()
        threads = [0, 1]
        while len(set(threads[-5:])) > 1 and len(threads) < 60:
            time.sleep(1)
            threads.append(cls.now().threads)
        return cls.now()

    @classmethod
    def now(cls) -> 'Usage':
        process = psutil.Process()
        return cls(process.num_fds() - open_logs(), process.num_threads(),
                   process.memory_info().rss)


def open_logs() -> int:
    """How many descriptors are of a guest's log, there or deleted."""
    count = 0
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            count += '/console.log' in os.readlink(f'/proc/self/fd/{name}')
    return count


def _left_open() -> int:
    """How many are once all guests are gone, and logs were swept."""
    for _ in range(LONGEST_SWEEP):
        if not open_logs():
            return 0
        time.sleep(1)
    return open_logs()


class Timings:
    """How long an operation took; what it takes itself does not grow."""

    KEPT = 1 << 17

    def __init__(self) -> None:
        self._seconds = array('d', bytes(8 * self.KEPT))
        self.count = 0

    def add(self, seconds: float) -> None:
        self._seconds[self.count % self.KEPT] = seconds
        self.count += 1

    def newest(self) -> list[float]:
        return list(self._seconds[:self.count])


@dataclass
class Load:
    """Guests, and the threads that use them."""

    compute: Compute
    running: Path
    #: Instance and TCP port by UUID, of guests that are not being deleted.
    guests: dict[str, tuple[Any, int]] = field(default_factory=dict)
    timings: dict[str, Timings] = field(
        default_factory=lambda: {name: Timings() for name in OPERATIONS})
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def boot(self) -> None:
        with self._measured('boot'):
            instance = self.compute.boot()
        port = self.compute.port(instance)
        with held(self.running, instance.uuid):
            self.guests[instance.uuid] = instance, port

    def delete(self) -> None:
        """One guest, whichever."""
        with self._lock:
            guest = random.choice(list(self.guests))  # noqa: S311
            instance, _ = self.guests.pop(guest)
        with held(self.running, guest):
            (self.running / guest).unlink()
        with self._measured('delete'):
            self.compute.delete(instance)

    def read(self) -> None:
        """The log of one guest, and sometimes its serial console."""
        guest = random.choice(list(self.guests))  # noqa: S311
        instance, port = self.guests.get(guest, (None, 0))
        if instance is None:
            return
        with self._measured('console read'):
            data = self.compute.output(instance)
        self.counts[judge(data, guest)] += 1
        if random.random() < 0.1:  # noqa: S311
            with self._measured('serial console'):
                now = self.compute.port(instance)
            self.counts['ports of another guest'] += now != port

    @contextlib.contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[operation].add(time.perf_counter() - started)

    def _reader(self, pause: float) -> None:
        while not self._stop.is_set():
            before = set(self.guests)
            try:
                self.read()
            except nova_exception.NovaException as e:
                # One that is deleted meanwhile has no console, of course.
                if before <= self.guests.keys():
                    self._error(e)
            except Exception as e:
                self._error(e)
            # Green threads give way only when asked to.
            time.sleep(pause)

    def _churn(self) -> None:
        while not self._stop.is_set():
            try:
                self.delete()
                self.boot()
            except Exception as e:
                self._error(e)
            time.sleep(0)

    def _error(self, error: Exception) -> None:
        self.errors[f'{type(error).__name__}: {error}'[:200]] += 1

    def run(self, seconds: float, readers: int, churn: int, pause: float,
            sample: Callable[[float], None]) -> float:
        """
        :param sample: is called now and then, with the seconds since the start
        :returns: the seconds that it took
        """
        threads = [
            *[threading.Thread(target=self._reader, args=(pause,))
              for _ in range(readers)],
            *[threading.Thread(target=self._churn) for _ in range(churn)]]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - started < seconds:
            time.sleep(min(1.0, seconds / 20))
            sample(time.monotonic() - started)
        self._stop.set()
        for thread in threads:
            thread.join()
        return time.monotonic() - started


def judge(data: bytes, guest: str) -> str:
    """What is wrong with a console log; a first and a last line may be cut."""
    if not data:
        return 'logs without a line'
    start = (0 if data.startswith(guest.encode())
             else data.find(b'\n') + 1)
    lines = data[start:data.rfind(b'\n') + 1]
    count = len(lines) // LINE
    if not lines:
        return 'logs without a line'
    if len(lines) % LINE or lines.count(guest.encode()) != count:
        owners = set(re.findall(rb'^[0-9a-f-]{36}(?= )', lines, re.M))
        return ('logs of another guest' if owners - {guest.encode()}
                else 'logs with a hole')
    first = _number(lines, 0)
    for place in (count // 4, count // 2, 3 * count // 4, count - 1):
        if _number(lines, place) != first + place:
            return 'logs with a hole'
    return 'whole logs'


def _number(lines: bytes, place: int) -> int:
    return int(lines[place * LINE + 37:place * LINE + 46])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('driver')
    parser.add_argument('directory', type=Path)
    parser.add_argument('seconds', type=int)
    parser.add_argument('guests', type=int)
    parser.add_argument('readers', type=int)
    parser.add_argument('churn', type=int)
    parser.add_argument('pause', type=float)
    args = parser.parse_args()
    running = args.directory / 'running'
    running.mkdir()
    with Compute(args.driver, str(args.directory)) as compute:
        load = Load(compute, running)
        for _ in range(args.guests):
            load.boot()
        for _ in range(args.guests):
            load.read()
        load.delete()
        load.boot()
        for timings in load.timings.values():
            timings.count = 0
        before = Usage.settled()
        samples: list[Usage] = []
        said = 0.0

        def sample(elapsed: float) -> None:
            nonlocal said
            # What waits for Python's collector, a minute or so, is no leak.
            gc.collect()
            samples.append(Usage.now())
            if elapsed - said >= PROGRESS:
                said = elapsed
                reads = load.timings['console read'].count
                print(f'{args.driver}: {elapsed:.0f} of {args.seconds} s, '
                      f'{reads:,} console reads', file=sys.stderr, flush=True)

        gc.freeze()
        took = load.run(args.seconds, args.readers, args.churn, args.pause,
                        sample)
        after = Usage.settled()
        print(json.dumps(_report(load, took, before, samples, after)))


def _report(load: Load, took: float, before: Usage, samples: list[Usage],
            after: Usage) -> dict[str, Any]:
    used = load.compute.used_ports()
    leaked = len(load.compute.held_ports().symmetric_difference(used))
    twice = len(used) - len(set(used))
    while load.guests:
        load.delete()
    leaked += len(load.compute.held_ports())
    quarter = max(1, len(samples) // 4)
    memory = round(
        statistics.median(s.memory for s in samples[-quarter:])
        - statistics.median(s.memory for s in samples[quarter:2 * quarter]))
    counts = {name: load.counts[name] for name in (
        'whole logs', 'logs without a line', 'logs with a hole',
        'logs of another guest', 'ports of another guest')}
    counts |= {
        'errors': sum(load.errors.values()),
        'ports held by two guests': twice,
        'ports leaked': leaked,
        'directories left': len(os.listdir(load.compute.instances_path)),
        'descriptors more than before':
            after.descriptors - before.descriptors,
        'logs left open': _left_open(),
        'threads more than before': after.threads - before.threads,
        'KiB of memory more than before': memory >> 10,
    }
    wrong = [f'{name}: {count}' for name, count in counts.items()
             if count > _allowed(name)]
    wrong += [f'{error} ({count} times)'
              for error, count in load.errors.most_common(10)]
    if not counts['whole logs']:
        wrong.append('no log was read')
    return {'operations': {name: _figures(load.timings[name], took)
                           for name in OPERATIONS},
            'counts': counts, 'wrong': wrong}


def _allowed(count: str) -> float:
    """How much of it is right."""
    return {
        'whole logs': float('inf'),
        # The moment between a guest's boot and its first line.
        'logs without a line': float('inf'),
        'descriptors more than before': SPARE_DESCRIPTORS,
        'KiB of memory more than before': SPARE_MEMORY >> 10,
    }.get(count, 0)


def _figures(timings: Timings, took: float) -> dict[str, float]:
    seconds = sorted(timings.newest())
    if not seconds:
        return dict.fromkeys(('per second', 'median ms', 'p99 ms'), 0.0)
    return {
        'per second': round(timings.count / took, 1),
        'median ms': round(1000 * statistics.median(seconds), 2),
        'p99 ms': round(1000 * seconds[int(len(seconds) * 0.99)], 2),
    }


if __name__ == '__main__':
    main()
