# SPDX-License-Identifier: Apache-2.0
"""A privileged helper is started, called and replaced.

oslo.privsep starts it with ``helper_command``, or else with what the service
gave to ``priv_context.init``: nova-compute gives ``sudo nova-rootwrap``
(nova/cmd/compute.py). Its error names a number alone; sudo's and rootwrap's
own words go to the log, and so do those of each further attempt.

oslo.privsep waits without bound for a helper: to start, to answer, to take a
call, to end. Here each of them has one. A helper that does not answer, a ping
neither, is let go: the next call starts another. It ends when it goes on, as
its socket is closed; so many may be left like that, and no more are started.
"""

import functools
import inspect
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from oslo_privsep import comm, daemon, priv_context

from virtlogd_driver import privileged_process

_P = ParamSpec('_P')
_T = TypeVar('_T')

#: Seconds for the thread of oslo.privsep that reads what a helper says, which
#: has ended by then.
_READ = 2.0
#: The thread's name, and what it logs each line with (oslo_privsep/daemon.py,
#: _fd_logger).
_READER, _LINE = 'fd_logger', 'privsep log: %s'
_PROGRAM = 'privsep-helper'

#: Seconds that a helper has to start; sudo may ask a directory service.
START = 30.0
#: Seconds that a call has, unless it says itself what it takes.
ANSWER = 30.0
#: Seconds that an answer has beyond what the function takes itself.
GRACE = 5.0
#: Seconds that a helper has to answer a ping: whether one call hangs, or all.
PING = 2.0
#: Helpers of one context that may be left without an answer.
MOST_LEFT = 4


class _Channel(daemon.RootwrapClientChannel):
    """A channel connects to a helper; nothing waits without bound there."""

    def __init__(self, context: 'Context') -> None:
        try:
            super().__init__(context)
        except BaseException:
            # It is connected, and does not even answer the first ping.
            if hasattr(self, 'reader_thread'):
                self.close()
                context.left.append(self.is_left)
            raise

    def send_recv(self, msg: Any, timeout: float | None = None) -> Any:
        """Send a message, and wait for the answer.

        :raises PrivsepTimeout: it is not even taken
        """
        seconds = timeout or ANSWER
        # The thread that reads goes on where this has passed.
        self.writer.writesock.settimeout(seconds)
        try:
            return super().send_recv(msg, seconds)
        except TimeoutError as e:
            raise comm.PrivsepTimeout from e

    def answers(self) -> bool:
        """Tell whether the helper answers a ping: it works, if not on all."""
        try:
            reply = self.send_recv((comm.Message.PING.value,), PING)
        except (comm.PrivsepTimeout, OSError):
            return False
        return bool(reply[0] == comm.Message.PONG)

    def close(self) -> None:
        """End the helper, waiting for nothing.

        What it still works on it may answer.
        """
        with suppress(OSError):
            self.writer.close()

    def is_left(self) -> bool:
        """Tell whether the helper is there, after it was closed."""
        return bool(self.reader_thread.is_alive())


class _Start:
    """A start is one attempt to start a helper."""

    def __init__(self) -> None:
        self.channel: futures.Future[_Channel] = futures.Future()
        self._deadline = time.monotonic() + START

    def seconds_left(self) -> float:
        """Give seconds that it may still take."""
        return self._deadline - time.monotonic()

    def is_over(self) -> bool:
        """Tell whether it has ended, or has had its time."""
        return self.channel.done() or self.seconds_left() <= 0

    def is_left(self) -> bool:
        """Tell whether it has not ended."""
        return not self.channel.done()


class Context(priv_context.PrivContext):
    """A context of oslo.privsep gets bounds, and errors that say why.

    In the process that privsep-helper makes for it, it checks the
    configuration and gives up what it does not need: privileged_process.
    """

    def __init__(self, prefix: str, *, cfg_section: str, pypath: str,
                 capabilities: list[int]) -> None:
        super().__init__(prefix, cfg_section=cfg_section, pypath=pypath,
                         capabilities=capabilities, timeout=ANSWER)
        self._failed = False
        self._guard = threading.Lock()
        self._start: _Start | None = None
        #: Of helpers that were let go, or are long in starting: whether they
        #: are still there.
        self.left: list[Callable[[], bool]] = []
        if privileged_process.is_for(pypath):
            privileged_process.begin(cfg_section)

    def helper_command(self, sockpath: str) -> list[str]:
        """Give the command that starts the helper.

        Root needs no sudo, which need not be there, and which finds nothing
        in a virtual environment.
        """
        command: list[str] = super().helper_command(sockpath)
        if os.geteuid() or self.conf.helper_command:
            return command
        return [_program(), *command[command.index(_PROGRAM) + 1:]]

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Start the helper, and connect to it; without a bound.

        What is logged of a first attempt is not logged of those after it, as
        long as they fail.

        :raises FailedToDropPrivileges: it does not start; with the words of
            what was to start it
        :raises OSError: there is no such command
        """
        if self.channel is None:
            self._open()

    def _open(self) -> _Channel:
        with _heard(silent=self._failed) as words:
            try:
                channel = _Channel(self)
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
        with self._guard:
            if not isinstance(self.channel, _Channel):
                self.channel = channel
                return channel
            faster = self.channel   # a later attempt
        channel.close()
        return faster

    def stop(self) -> None:
        """End the helper, waiting for nothing."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def timed_entrypoint(self, steps: int = 1
                         ) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
        """Make an entrypoint with an argument ``timeout``, of each step.

        It is in seconds; the answer has GRACE more.
        """
        def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
            entrypoint = self.entrypoint(function)
            signature = inspect.signature(function)

            @functools.wraps(function)
            def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
                timeout = signature.bind(*args, **kwargs).arguments['timeout']
                answer: _T = entrypoint(
                    *args, _wrap_timeout=steps * timeout + GRACE, **kwargs)
                return answer

            # By this oslo.privsep knows what may be called.
            setattr(call, priv_context._ENTRYPOINT_ATTR, self)
            return call
        return decorate

    def _wrap(self, func: Callable[..., Any], *args: Any,
              _wrap_timeout: float | None = None, **kwargs: Any) -> Any:
        if not self.client_mode:
            return func(*args, **kwargs)
        seconds = _wrap_timeout or self.timeout
        channel = self._connected()
        try:
            return channel.remote_call(
                f'{func.__module__}.{func.__name__}', args, kwargs, seconds)
        except comm.PrivsepTimeout as e:
            if channel.answers():
                raise TimeoutError(
                    f'the privileged helper of [{self.cfg_section}] did not '
                    f'answer within {seconds:g} s, though it is well: the '
                    'disk, or the daemon, that it waits for hangs') from e
            self._leave(channel)
            raise TimeoutError(
                f'the privileged helper of [{self.cfg_section}] did not '
                f'answer within {seconds:g} s, and the next call starts '
                f'another: {self._hangs()}') from e

    def _connected(self) -> _Channel:
        """Give the helper, which is started where there is none.

        :raises TimeoutError: it does not start in time, or too many hang
        :raises FailedToDropPrivileges, OSError: as start
        """
        with self._guard:
            if isinstance(self.channel, _Channel) and self.channel.running:
                return self.channel
            # It has ended.
            self.stop()
            if self._start is None or self._start.is_over():
                self._start = self._begin()
            start = self._start
        try:
            channel: _Channel = start.channel.result(
                max(start.seconds_left(), 0))
        except futures.TimeoutError as e:
            if start.channel.done():   # it has raised one itself
                raise
            raise TimeoutError(
                f'the privileged helper of [{self.cfg_section}] did not start '
                f'within {START:g} s: see what sudo, or its command, waits '
                'for') from e
        return channel

    def _begin(self) -> '_Start':
        """Start the helper in a thread, which nobody has to wait for."""
        if self._start is not None and not self._start.channel.done():
            self.left.append(self._start.is_left)
        self.left = [is_left for is_left in self.left if is_left()]
        if len(self.left) >= MOST_LEFT:
            raise TimeoutError(
                f'{len(self.left)} privileged helpers of '
                f'[{self.cfg_section}] do not answer, so no other is started: '
                f'{self._hangs()}')
        start = _Start()

        def run() -> None:
            try:
                start.channel.set_result(self._open())
            except BaseException as e:   # for who waits for it
                start.channel.set_exception(e)

        threading.Thread(target=run, name='privsep start',
                         daemon=True).start()
        return start

    def _leave(self, channel: _Channel) -> None:
        with self._guard:
            if self.channel is channel:
                self.channel = None
                channel.close()
                self.left.append(channel.is_left)

    def _hangs(self) -> str:
        return (f'its process (pgrep -af {self.pypath}) is stopped, which '
                'kill -CONT ends, or the disk that it reads hangs')


def _program() -> str:
    """Find privsep-helper of this Python environment, or else of PATH."""
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
    """Wait until what was said is read: the pipe ends with the helper."""
    for thread in threading.enumerate():
        if thread.name == _READER and thread not in others:
            thread.join(_READ)
