# SPDX-License-Identifier: Apache-2.0
import threading
import time

from virtlogd_driver import history


def test_once() -> None:
    """By many at a time: each of them returns when it is done."""
    calls = []

    def slow() -> None:
        time.sleep(0.05)
        calls.append(1)

    once = history.Once(slow)
    seen = []

    def call() -> None:
        once()
        seen.append(len(calls))
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
