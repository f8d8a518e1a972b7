# SPDX-License-Identifier: Apache-2.0
"""A test waits for what happens elsewhere: a daemon, a guest, a file."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')


def until(look: Callable[[], T], what: str, seconds: float = 30.0,
          pause: float = 0.05) -> T:
    """Call ``look`` until its answer is true, and return that answer.

    :param what: what is waited for, for the message.
    :raises TimeoutError: after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f'{what}: not within {seconds:g} s')
        time.sleep(pause)
