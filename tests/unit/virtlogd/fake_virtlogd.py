# SPDX-License-Identifier: Apache-2.0
"""A fake virtlogd gives the answers that a test needs."""

from collections.abc import Sequence

from virtlogd_driver.virtlogd import privileged
from virtlogd_driver.virtlogd.port import Port


class FakeVirtlogd:
    """Writes some logs; called, it answers as privileged.probe does."""

    def __init__(self, *logs: str) -> None:
        self.daemon = privileged.UP
        self.open = set(logs)
        self.by_qemu: set[str] = set()
        self.calls = 0

    def __call__(self, socket_path: str, logs: list[tuple[str, str]],
                 timeout: float) -> tuple[str, str, Sequence[str]]:
        self.calls += 1
        if self.daemon in (privileged.HUNG, privileged.REFUSED,
                           privileged.FULL):
            return self.daemon, 'because', []
        closed = [privileged.FILE if log in self.by_qemu
                  else privileged.CLOSED for _, log in logs]
        if self.daemon == privileged.DOWN:
            return self.daemon, 'because', closed
        return self.daemon, '', [
            privileged.OPEN if log in self.open else answer
            for (_, log), answer in zip(logs, closed, strict=True)]


def port(number: int, log: str | None = '', guest: str = 'a') -> Port:
    """A serial port that listens on TCP port 10000 + number."""
    path = f'/{guest}/{number}' if log == '' else log
    return Port(guest, f'instance-{guest}', number, path,
                ('127.0.0.1', 10000 + number))
