# SPDX-License-Identifier: Apache-2.0
"""Random schedules, as many as asked for: ``--schedules 1000000``.

Every other one keeps its log open from read to read, over many rotations.
"""

import random
import time

import pytest

from tests.unit.console_log.schedule import Schedule


@pytest.mark.soak
def test_random_schedules(schedules: int) -> None:
    began = time.monotonic()
    shorter = lost = 0
    every = max(schedules // 50, 1)
    for seed in range(schedules):
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
        if (seed + 1) % every == 0:
            seconds = time.monotonic() - began
            left = seconds / (seed + 1) * (schedules - seed - 1)
            print(f'{seed + 1} schedules, 0 wrong, {shorter} shorter, '
                  f'{lost} positions rotated away, {seconds:.0f} s, '
                  f'{left:.0f} s left')
