# SPDX-License-Identifier: Apache-2.0
"""As many random schedules run as are asked for: ``--schedules 1000000``.

Every other one keeps its log open from read to read, over many rotations.
Each processor has a process of its own.
"""

import random
import time
from concurrent import futures

import pytest

from tests.unit.console_log.schedule import Schedule

#: Schedules that a process runs before it says so.
BLOCK = 250


@pytest.mark.soak
def test_random_schedules(schedules: int) -> None:
    began = time.monotonic()
    done = shorter = lost = 0
    said = 0.0
    blocks = [range(first, min(first + BLOCK, schedules))
              for first in range(0, schedules, BLOCK)]
    with futures.ProcessPoolExecutor() as pool:
        running = [pool.submit(run, block) for block in blocks]
        try:
            for block in futures.as_completed(running):
                counts = block.result()
                done += counts[0]
                shorter += counts[1]
                lost += counts[2]
                seconds = time.monotonic() - began
                if seconds - said > 30 or done == schedules:
                    said = seconds
                    left = seconds / done * (schedules - done)
                    print(f'{done} schedules, 0 wrong, {shorter} shorter, '
                          f'{lost} positions rotated away, {seconds:.0f} s, '
                          f'{left:.0f} s left')
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run(seeds: range) -> tuple[int, int, int]:
    """Run these schedules: how many, shorter answers, lost positions."""
    shorter = lost = 0
    for seed in seeds:
        schedule = Schedule(
            random.Random(seed),  # noqa: S311
            kept=bool(seed % 2))
        try:
            shorter += not schedule.tail()
            if schedule.store is not None:
                for steps in (0, 1, 3, 40, 400 if seed % 64 == 1 else 10):
                    schedule.go_on(steps)
                    shorter += not schedule.tail()
            if seed % 16 < 2:
                lost += schedule.follow(8)
            schedule.close()
        except BaseException:
            print(f'\nschedule {seed}')
            raise
    return len(seeds), shorter, lost
