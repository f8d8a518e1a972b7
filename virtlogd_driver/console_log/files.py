# SPDX-License-Identifier: Apache-2.0
"""The files of one log are listed as they lie in its directory, for people.

Names and sizes at one moment, not a snapshot: a rotation in between may show
a file twice or not at all. What is read goes through chain.py.
"""

import os
import re
import stat
from dataclasses import dataclass

from virtlogd_driver.console_log import generation
from virtlogd_driver.console_log.directory import directory_error

_BACKUP = re.compile(r'\.(?:0|[1-9]|[12][0-9]|3[01])')


@dataclass(frozen=True, slots=True)
class Usage:
    """A log takes so much, all its generations together."""

    #: Files that are there.
    files: int
    #: Files that are written no more: backups, and what older generations
    #: left.
    rotated: int
    #: Bytes in all of them.
    size: int
    #: When it was written to last, in seconds since the epoch; None: it is
    #: not there, or empty.
    last_write: float | None


def usage(path: str) -> Usage:
    """Count the files of a log.

    :param path: path of the live file
    :raises LogRefused: its directory may not be looked into, or is none
    :raises LogError: the file system does not answer (ESTALE, EIO)
    """
    directory, live = os.path.split(path)
    found = []
    for name in _names(directory, live):
        try:
            status = os.lstat(os.path.join(directory, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise directory_error(error, path) from error
        if stat.S_ISREG(status.st_mode):
            found.append((name, status))
    written = [status.st_mtime for _, status in found if status.st_size]
    return Usage(
        len(found), sum(name != live for name, _ in found),
        sum(status.st_size for _, status in found),
        max(written, default=None))


def _names(directory: str, live: str) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise directory_error(error, directory) from error
    file = generation.parse(live)
    if file is None:
        return [name for name in names if name == live or (
            name.startswith(live) and _BACKUP.fullmatch(name[len(live):]))]
    return [name for name in names
            if (other := generation.parse(name)) is not None
            and other.port == file.port]
