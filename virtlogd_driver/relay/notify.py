# SPDX-License-Identifier: Apache-2.0
"""A service tells systemd how it is doing: sd_notify(3)."""

import os
import socket


def notify(state: str) -> None:
    """Send a state, such as "READY=1"; nothing where nobody listens."""
    path = os.environ.get('NOTIFY_SOCKET', '')
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect('\0' + path[1:] if path[0] == '@' else path)
            sender.sendall(state.encode())
        except OSError:
            return


def watchdog_interval() -> float | None:
    """Give seconds between two signs of life; None: nobody waits for any.

    Half of what systemd waits for, as sd_watchdog_enabled(3) recommends.
    """
    if os.environ.get('WATCHDOG_PID', str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get('WATCHDOG_USEC', '')
    return int(microseconds) / 2e6 if microseconds.isdigit() else None
