# SPDX-License-Identifier: Apache-2.0
"""libvirt's configuration files are read for a process that may not itself.

qemu.conf is root's alone (0600) on Debian and Ubuntu, /etc/libvirt (0700) on
RHEL. Where this process is refused, the privileged helper is asked for what is
needed of the file; the file itself stays where it is.
"""

import contextlib
import functools
import math
import os
import time

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import privileged, settings
from virtlogd_driver.virtlogd.health import PRIVSEP_ERRORS
from virtlogd_driver.virtlogd.settings import StdioHandler, VirtlogdSettings

#: Seconds until a helper is asked again that did not answer.
_RETRY = 60.0
#: When that is, by path of the file that it was to read (time.monotonic).
_hangs: dict[str, float] = {}


def stdio_handler(path: str) -> StdioHandler:
    """Read ``stdio_handler`` of the qemu.conf that is configured.

    UNKNOWN where nobody can read it, or libvirt would not start with it.
    Never raises.
    """
    try:
        with contextlib.suppress(PermissionError):
            return settings.read_stdio_handler(path)
        return StdioHandler(privileged.stdio_handler(path))
    except (exception.VirtlogdDriverError, *PRIVSEP_ERRORS):
        return StdioHandler.UNKNOWN


def check_qemu_conf(path: str) -> None:
    """Tell whether libvirt would start with the qemu.conf that is configured.

    :raises InvalidConfFile: it would not
    :raises VirtlogdError: another one is configured for the helper
    :raises OSError: nobody can read it
    :raises FailedToDropPrivileges: the helper does not start
    """
    with contextlib.suppress(PermissionError):
        settings.check_qemu_conf(path)
        return
    privileged.check_qemu_conf(path)


def virtlogd_settings(path: str) -> VirtlogdSettings:
    """Give the settings of the virtlogd.conf that is configured.

    :raises InvalidConfFile: virtlogd would not start with it
    :raises VirtlogdError: another one is configured for the helper
    :raises OSError: nobody can read it
    :raises FailedToDropPrivileges: the helper does not start
    """
    with contextlib.suppress(PermissionError):
        return settings.read_virtlogd_settings(path)
    return VirtlogdSettings(*privileged.virtlogd_settings(path))


def max_backups(path: str) -> int | None:
    """Tell how many backups virtlogd keeps; reads a changed file alone.

    None: it is not known. There is no such file, so virtlogd may have been
    given another one; or nobody can read it; or its directory is closed to
    this process, which could not tell when it has changed. Never raises.

    :param path: of virtlogd.conf
    """
    if time.monotonic() < _hangs.get(path, -math.inf):
        return None
    try:
        status = os.stat(path)
        return _max_backups(path, status.st_ino, status.st_size,
                            status.st_mtime_ns)
    except TimeoutError:
        # Who reads a log does not wait for that each time.
        _hangs[path] = time.monotonic() + _RETRY
        return None
    except (exception.VirtlogdDriverError, *PRIVSEP_ERRORS):
        return None


@functools.lru_cache(maxsize=1)
def _max_backups(path: str, *_version: int) -> int | None:
    """Read it, of one version of the file; None: virtlogd refuses it.

    :raises VirtlogdError, OSError, FailedToDropPrivileges: it cannot be read,
        which may pass
    """
    try:
        return virtlogd_settings(path).max_backups
    except exception.InvalidConfFile:
        return None
