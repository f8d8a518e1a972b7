# SPDX-License-Identifier: Apache-2.0
"""An outbox is carried until what is in it is there."""

import threading
import time

from virtlogd_driver.history import carrier


class TestCarrier:

    def test_until_it_is_done(self) -> None:
        tries = []
        done = threading.Event()

        def attempt(path: str) -> float | None:
            tries.append(path)
            if len(tries) < 3:
                return 0.0
            done.set()
            return None
        made = carrier.Carrier(attempt)
        made.start('x')
        assert done.wait(60)
        assert made.wait('x', 60)
        assert tries == ['x'] * 3
        made.stop()

    def test_no_guest_waits_for_another(self) -> None:
        go, done = threading.Event(), threading.Event()

        def attempt(path: str) -> float | None:
            if path == 'slow':
                go.wait()
            else:
                done.set()
            return None
        made = carrier.Carrier(attempt)
        made.start('slow')
        made.start('fast')
        assert done.wait(60)
        go.set()
        made.stop()

    def test_now(self) -> None:
        """Not when its interval is over."""
        tries: list[str] = []
        twice = threading.Event()

        def attempt(path: str) -> float | None:
            tries.append(path)
            if len(tries) == 2:
                twice.set()
            return 3600.0
        made = carrier.Carrier(attempt)
        made.start('x')
        while not tries:
            time.sleep(0.001)
        made.start('x')
        assert twice.wait(60)
        made.stop()
        made.start('x')
        assert len(tries) == 2
