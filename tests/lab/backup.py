# SPDX-License-Identifier: Apache-2.0
"""A backup is left beside a log as virtlogd leaves it."""

import os
from pathlib import Path

from virtlogd_driver.console_log.directory import open_directory


def leave_backup(log: Path, data: bytes, number: int = 0) -> None:
    """Make a backup that was written last when the newer file was made.

    :param log: the live file
    :param number: of the backup; the newer file is the one before it
    """
    newer = log.with_name(f'{log.name}.{number - 1}') if number else log
    backup = log.with_name(f'{log.name}.{number}')
    backup.write_bytes(data)
    with open_directory(str(log.parent)) as opened:
        fd = opened.open(newer.name)
        born = opened.born(fd)
        opened.close(fd)
    if born is not None:
        os.utime(backup, ns=(born, born))
