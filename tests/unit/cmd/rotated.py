# SPDX-License-Identifier: Apache-2.0
"""A log was rotated, and is read by a command: in another process, which has
its own word on how long a rotation takes.
"""

import time
from pathlib import Path

from virtlogd_driver.console_log.neighbours import ROTATION_NS


def make(live: Path, older: bytes, newer: bytes) -> None:
    """Have a live file and a backup, made as fast as virtlogd makes them."""
    backup = Path(f'{live}.0')
    while True:
        begun = time.monotonic_ns()
        live.write_bytes(older)
        live.rename(backup)
        live.write_bytes(newer)
        if time.monotonic_ns() - begun < ROTATION_NS:
            return
        # This process has paused.
        backup.rename(live)
