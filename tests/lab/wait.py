# SPDX-License-Identifier: Apache-2.0
"""A test waits for what happens elsewhere: a daemon, a guest, a file."""

import select
import socket
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


def readable(file: int | socket.socket, seconds: float = 0.0) -> bool:
    """Tell whether something can be read, at once or after a while.

    Its number may be above 1023, which select.select does not take.
    """
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
