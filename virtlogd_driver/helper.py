# SPDX-License-Identifier: Apache-2.0
"""How a privileged helper is started, and what is said if it does not start.

oslo.privsep starts it with ``helper_command``, or else with what the service
gave to ``priv_context.init``: nova-compute gives ``sudo nova-rootwrap``
(nova/cmd/compute.py). Its error names a number alone; sudo's and rootwrap's
own words go to the log, and so do those of each further attempt.
"""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oslo_privsep import daemon, priv_context

#: Seconds for the thread of oslo.privsep that reads what a helper says, which
#: has ended by then.
_READ = 2.0
#: The thread's name, and what it logs each line with (oslo_privsep/daemon.py,
#: _fd_logger).
_READER, _LINE = 'fd_logger', 'privsep log: %s'
_PROGRAM = 'privsep-helper'


class Context(priv_context.PrivContext):
    """A context of oslo.privsep that tells why its helper does not start."""

    _failed = False

    def helper_command(self, sockpath: str) -> list[str]:
        """The command that starts the helper.

        Root needs no sudo, which need not be there, and which finds nothing
        in a virtual environment.
        """
        command: list[str] = super().helper_command(sockpath)
        if os.geteuid() or self.conf.helper_command:
            return command
        return [_program(), *command[command.index(_PROGRAM) + 1:]]

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start the helper, and connect to it.

        What is logged of a first attempt is not logged of those after it, as
        long as they fail.

        :raises FailedToDropPrivileges: it does not start; with the words of
            what was to start it
        :raises OSError: there is no such command
        """
        with _heard(silent=self._failed) as words:
            try:
                super().start(*args, **kwargs)
            except daemon.FailedToDropPrivileges as e:
                self._failed = True
                _await_readers(words.others)
                said = ' '.join(words.lines)
                raise daemon.FailedToDropPrivileges(
                    f'{e}: {said}' if said else str(e)) from e
            except OSError:
                self._failed = True
                raise
        self._failed = False


def _program() -> str:
    """privsep-helper of this Python environment, or else of PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), _PROGRAM)
    return beside if os.access(beside, os.X_OK) else (
        shutil.which(_PROGRAM) or _PROGRAM)


class _Words(logging.Filter):
    """Takes out of the log what a helper says on its standard error."""

    def __init__(self, silent: bool) -> None:
        super().__init__()
        self._silent = silent
        self.lines: list[str] = []
        #: Threads that read what other helpers say.
        self.others = set(threading.enumerate())

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == _LINE:
            line = record.getMessage().removeprefix(_LINE[:-2]).strip()
            if line:
                self.lines.append(line)
            return False
        return not self._silent


@contextmanager
def _heard(silent: bool) -> Iterator[_Words]:
    words = _Words(silent)
    logger: logging.Logger = daemon.LOG.logger
    logger.addFilter(words)
    try:
        yield words
    finally:
        logger.removeFilter(words)


def _await_readers(others: set[threading.Thread]) -> None:
    """Until what was said is read: the pipe ends with the helper."""
    for thread in threading.enumerate():
        if thread.name == _READER and thread not in others:
            thread.join(_READ)
