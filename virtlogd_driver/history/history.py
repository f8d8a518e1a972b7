# SPDX-License-Identifier: Apache-2.0
"""A guest's output from before follows it, or it goes on without.

Nothing here fails: what cannot be done is said once, in the log.
"""

import contextlib
import glob
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oslo_concurrency import processutils
from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.console_log import chain, generation, reader
from virtlogd_driver.guest import char_device
from virtlogd_driver.history import transfer
from virtlogd_driver.virtlogd import health

LOG = logging.getLogger(__name__)

#: Seconds for virtlogd to write out what a guest that has ended wrote last.
CLOSING = 2.0

#: Between an instance directory's name and a random one: its history is there
#: until it has been copied to another host.
LEAVING = '_leaving.'

#: Where logs end, by serial port; None: there is nothing in it.
Ends = dict[int, reader.Position | None]

#: nova.virt.libvirt.utils.copy_image.
Copy = Callable[..., None]


@dataclass(frozen=True, slots=True)
class History:
    """Carries what guests wrote to where they go on."""

    #: Copies a directory to a host: (source, destination, host=...).
    copy: Copy
    #: The most bytes that follow a serial port.
    limit: int
    #: Seconds that a copy to another host may take.
    timeout: float
    #: virtlogd's.
    socket_path: str

    def stage(self, instance: Any, moves: list[transfer.Move],
              directory: str, written_as: Sequence[str] = ()) -> bool:
        """Whether there is something to be received.

        :param written_as: the paths under which virtlogd knows the logs,
            where their directory was renamed since
        """
        with never_fatal(instance):
            self._is_closed(instance, moves, written_as)
        return self._stage(instance, moves, directory)

    def _stage(self, instance: Any, moves: list[transfer.Move],
               directory: str) -> bool:
        with never_fatal(instance):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            for error in transfer.stage(
                    moves, directory, self.limit,
                    lambda path, limit: reader.read_tail(path, limit).data,
                    _following):
                _warn_of_loss(instance, error)
            return True
        shutil.rmtree(os.path.join(directory, transfer.STAGING),
                      ignore_errors=True)
        return False

    def send(self, instance: Any, moves: list[transfer.Move],
             to_host: str | None, written_as: Sequence[str] = ()) -> None:
        """Carry the history of a guest.

        :param to_host: None: this one, or one that shares its storage
        :param written_as: as of stage
        """
        self.pack(instance, moves, to_host, written_as)()

    def pack(self, instance: Any, moves: list[transfer.Move],
             to_host: str | None,
             written_as: Sequence[str] = ()) -> Callable[[], None]:
        """Make the history of a guest ready to be carried.

        :param to_host, written_as: as of send
        :returns: carries it to another host. Nothing is read any more where
            the guest was
        """
        if not moves:
            return _nothing
        here, there = (os.path.dirname(path) for path in moves[0])
        closed = False
        with never_fatal(instance):
            closed = self._is_closed(instance, moves, written_as)
        if to_host is None:
            # One that is still written is read where it is, to its end, until
            # the next move.
            if (closed or here != there) and self._stage(
                    instance, moves, there):
                self.receive(instance, there)
            return _nothing
        with never_fatal(instance):
            aside = tempfile.mkdtemp(
                prefix=os.path.basename(here) + LEAVING,
                dir=os.path.dirname(here))
            if self._stage(instance, moves, aside):
                return lambda: self._carry(instance, aside, there, to_host)
            os.rmdir(aside)
        return _nothing

    def _carry(self, instance: Any, aside: str, there: str,
               to_host: str) -> None:
        deadline = _Deadline(self.timeout)
        with never_fatal(instance):
            try:
                self.copy(
                    os.path.join(aside, transfer.STAGING), f'{there}/',
                    host=to_host, compression=False,
                    on_execute=deadline.start, on_completion=deadline.stop)
            except processutils.ProcessExecutionError as e:
                _warn_of_loss(instance, (
                    f'the copy to {to_host} took longer than [virtlogd] '
                    f'history_timeout = {self.timeout} s'
                    if deadline.passed else f'the copy to {to_host}: {e}'))
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def receive(self, instance: Any, directory: str,
                in_use: Collection[str] = ()) -> None:
        """:param in_use: names of the logs that the guest's domain has"""
        with never_fatal(instance):
            for name in transfer.receive(directory, directory, in_use):
                _warn_of_loss(instance, f'{name} has not come whole')

    def begin_evacuated(self, instance: Any, directory: str) -> None:
        """Let a guest go on in new logs: the lost host may come back.

        :param directory: path of its instance directory, if that is shared
        """
        self.send(instance, transfer.superseded(directory), None)
        with never_fatal(instance):
            begin_logs([there for here, there in transfer.moves(
                directory, directory) if os.path.exists(here)
                and not transfer.is_as_begun(here)])

    def adopt(self, uuid: str, directory: str, aside: str,
              in_use: Collection[str]) -> None:
        """Put in place what came while this host had nova's own driver.

        :param directory: path of the instance directory
        :param aside: path of where a rebuild has left its logs, perhaps
        :param in_use: names of the logs that the guest's domain has
        """
        with never_fatal(None, f'The old output of guest {uuid} is not put '
                               f'in place'):
            known = transfer.detached(directory)
            # What still comes is left alone.
            if transfer.is_whole(directory):
                transfer.receive(directory, directory, in_use)
            overtaken = ([] if transfer.is_coming(directory)
                         else transfer.overtaken(directory, in_use))
            if overtaken and self._stage(None, overtaken, directory):
                transfer.receive(directory, directory, in_use)
            for path in transfer.detached(directory) - known:
                LOG.warning('The log of guest %s was begun anew by another '
                            'driver. What it wrote before is in %s, until it '
                            'moves', uuid, path)
            if os.path.isdir(aside):
                transfer.receive(aside, directory)

    def wait_until_closed(self, logs: list[str]) -> bool:
        """What guests that have ended wrote last is in their logs.

        :returns: whether virtlogd says that it writes none of them
        """
        return health.wait_until_closed(self.socket_path, logs, CLOSING)

    def _is_closed(self, instance: Any, moves: list[transfer.Move],
                   written_as: Sequence[str]) -> bool:
        """False: virtlogd may go on writing, and that is said."""
        logs = list(written_as) or [here for here, _ in moves]
        # Where there is no virtlogd, nobody writes.
        state: str = health.DaemonState.DOWN

        def ask(socket_path: str, asked: list[tuple[str, str]],
                timeout: float) -> tuple[str, str, Sequence[str]]:
            nonlocal state
            state, reason, answers = health.ask(socket_path, asked, timeout)
            return state, reason, answers

        if (health.wait_until_closed(self.socket_path, logs, CLOSING, ask)
                or state == health.DaemonState.DOWN):
            return True
        LOG.warning('What the guest wrote last may not follow it: virtlogd '
                    'does not say that it has closed %s', ', '.join(logs),
                    instance=instance)
        # It may be so at each move: that is no reason to keep ever more.
        return state == health.DaemonState.REFUSED


def _nothing() -> None:
    """Nothing is to be carried, or all is there."""


class _Deadline:
    """Ends the process of a copy that takes too long."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def start(self, process: 'subprocess.Popen[bytes]') -> None:
        def end() -> None:
            self.passed = True
            # A signal that scp and rsync hand on to the ssh they started.
            process.terminate()

        self._timer = threading.Timer(self._seconds, end)
        self._timer.daemon = True
        self._timer.start()

    def stop(self, process: 'subprocess.Popen[bytes]') -> None:
        assert self._timer is not None
        self._timer.cancel()


_LOST = 'The output of the guest from before does not follow it'


@contextlib.contextmanager
def never_fatal(instance: Any, failure: str = _LOST) -> Iterator[None]:
    """Whatever becomes of its log, the guest goes on.

    :param failure: what is said, with the reason
    """
    try:
        yield
    except (exception.VirtlogdDriverError, OSError) as e:
        LOG.warning('%s: %s', failure, e, instance=instance)
    except Exception:
        LOG.exception('%s', failure, instance=instance)


def _warn_of_loss(instance: Any, reason: object) -> None:
    LOG.warning('%s: %s', _LOST, reason, instance=instance)


def left_behind(instances_path: str) -> list[str]:
    """Paths of histories that have not been copied to another host."""
    return sorted(glob.glob(os.path.join(
        glob.escape(instances_path), f'*{LEAVING}*')))


def begin_logs(log_files: list[str]) -> None:
    """Mark where each log begins, before virtlogd opens it.

    :raises OSError: one cannot be made; then none is
    """
    with contextlib.ExitStack() as begun:
        for log_file in log_files:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                chain.begin(log_file)
                begun.callback(os.unlink, log_file)
        begun.pop_all()


def guest_logs(domain_xml: str) -> dict[int, str]:
    """Path of the log of each serial port, if this driver has named it."""
    found = {}
    for device in char_device.parse(domain_xml):
        file = generation.parse(os.path.basename(device.log_file or ''))
        if device.log_file is not None and file is not None:
            found[file.port] = device.log_file
    return found


def ends(logs: dict[int, str]) -> Ends:
    """Where logs end now, by serial port; None: there is nothing in it."""
    found: Ends = {}
    for port, path in logs.items():
        found[port] = None
        with contextlib.suppress(exception.LogNotFound):
            last = reader.read_tail(path, 1)
            found[port] = last.position if last.data else None
    return found


def _following(path: str, position: reader.Position) -> int | None:
    """Bytes of a log that follow a position."""
    since = reader.read_from(path, position, 0)
    return None if since.missed is None else since.behind
