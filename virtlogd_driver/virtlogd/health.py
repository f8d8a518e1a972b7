# SPDX-License-Identifier: Apache-2.0
"""A report tells whether virtlogd answers, and whether each log is alive.

Exact, not guessed from sizes: virtlogd itself says which logs it writes, the
kernel which viewer stops a guest. ``examine`` makes one report of what was
found; ``changes`` tells what became of it since the report before, so that
each thing is said once.
"""

import dataclasses
import enum
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from oslo_privsep import comm
from oslo_privsep import daemon as privsep

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import privileged, unlinked
from virtlogd_driver.virtlogd.disk import DISKS, Disks
from virtlogd_driver.virtlogd.port import Address, Port
from virtlogd_driver.virtlogd.viewer import STUCK_AFTER, Viewer

#: A port that nobody listened on for so many seconds stays so: an attempt to
#: bring its log back was cut off, or could not open it again.
CLOSED_AFTER = 10.0

#: A file system with fewer free bytes is full, as far as a log is concerned:
#: so much may be in a log's pipe.
FULL_BELOW = 65536

#: What a call raises whose privileged helper does not work.
PRIVSEP_ERRORS = (privsep.FailedToDropPrivileges, comm.PrivsepTimeout,
                  OSError)

#: As privileged.probe.
Probe = Callable[[str, list[tuple[str, str]], float],
                 tuple[str, str, Sequence[str]]]


class DaemonState(enum.StrEnum):
    """The state is what virtlogd does with a call."""

    UP = 'up'
    #: Nothing listens: no guest can be started, every log is dead.
    DOWN = 'down'
    #: No answer in time: guests stop, libvirt follows.
    HUNG = 'hung'
    #: It has as many connections as it takes: logs go on, no guest starts.
    FULL = 'full'
    #: It cannot be asked: no permission, or another protocol.
    REFUSED = 'refused'


#: virtlogd told nothing, and libvirt was not asked.
_UNASKED = (DaemonState.HUNG, DaemonState.FULL, DaemonState.REFUSED)


class LogState(enum.StrEnum):
    """The state is what becomes of what a guest writes on a port."""

    #: virtlogd writes it.
    ALIVE = 'alive'
    #: Nobody does: it is lost until the log is attached again.
    DEAD = 'dead'
    #: virtlogd writes it, but not into the file at its path: that was removed,
    #: renamed or replaced.
    UNLINKED = 'unlinked'
    #: Its guest is off, and something else has it open at virtlogd: the guest
    #: does not start.
    HELD = 'held'
    #: QEMU writes it itself, without bound: stdio_handler = "file".
    UNROTATED = 'unrotated'
    #: The port has no log.
    NOT_LOGGING = 'not-logging'
    #: virtlogd or the file system could not be asked, the guest is just
    #: starting or ending, or its XML is not understood.
    UNKNOWN = 'unknown'


#: What the guest writes is lost, or nobody finds it.
LOST = (LogState.DEAD, LogState.UNLINKED)


@dataclass(frozen=True, slots=True)
class Log:
    """A serial port's log has a state."""

    port: Port
    state: LogState


@dataclass(frozen=True, slots=True)
class Stuck:
    """A viewer stops a guest, at one of its ports."""

    port: Port
    viewer: Viewer


@dataclass(frozen=True, slots=True)
class Unopened:
    """Nobody listens on a TCP port, though its guest runs."""

    port: Port
    #: Moment of the pass that found it first.
    since: float

    def lasts(self, now: float) -> bool:
        """Tell whether it is so for long, and not just for now."""
        return now - self.since >= CLOSED_AFTER


@dataclass(frozen=True, slots=True)
class Report:
    """A report is what one pass over the host found."""

    daemon: DaemonState
    #: Why the daemon is not up, and the remedy.
    reason: str = ''
    #: Why libvirt could not be asked for its guests; empty where it could.
    libvirt: str = ''
    logs: tuple[Log, ...] = ()
    stuck: tuple[Stuck, ...] = ()
    #: Why the kernel did not tell who is connected; empty where it did.
    viewers: str = ''
    #: Ports without an interactive console, if they stay so.
    unopened: tuple[Unopened, ...] = ()
    #: Ports that listen for the relay alone, which listens for none of their
    #: viewers, if it stays so.
    unrelayed: tuple[Unopened, ...] = ()
    #: Why the files of some logs were not looked at.
    stalled: tuple[str, ...] = ()
    #: When the pass was, by time.monotonic, as the clock may be set.
    moment: float = field(default_factory=time.monotonic)
    #: Time of the pass, in seconds since the epoch.
    time: float = field(default_factory=time.time)
    #: What the pass took, in seconds.
    duration: float = 0.0

    def count(self, state: LogState) -> int:
        """Count how many logs are in a state."""
        return sum(log.state is state for log in self.logs)

    @property
    def closed(self) -> tuple[Port, ...]:
        """Give ports without an interactive console, and not just for now.

        One listens a moment after its log is opened; and none does for
        another moment while its log is brought back.
        """
        return tuple(one.port for one in self.unopened
                     if one.lasts(self.moment))

    @property
    def without_relay(self) -> tuple[Port, ...]:
        """Give ports that nobody can look at, and not just for now.

        The relay listens a moment after QEMU does.
        """
        return tuple(one.port for one in self.unrelayed
                     if one.lasts(self.moment))


def ask(socket_path: str, logs: list[tuple[str, str]],
        timeout: float) -> tuple[str, str, Sequence[str]]:
    """Do privileged.probe; a helper that does not work is an answer."""
    try:
        state, reason, answers = privileged.probe(socket_path, logs, timeout)
    except TimeoutError as e:
        # helper.py says what it waits for: it is installed.
        return privileged.REFUSED, f'virtlogd cannot be asked: {e}.', []
    except PRIVSEP_ERRORS as e:
        return privileged.REFUSED, (
            f'virtlogd cannot be asked: the privileged helper does not work '
            f'({e}). Install the rootwrap filters virtlogd-driver.filters, '
            f'and see helper_command in [{_SECTION}].'), []
    return state, reason, answers


_SECTION = privileged.virtlogd_context.cfg_section
_BY_ANSWER = {privileged.OPEN: LogState.ALIVE,
              privileged.CLOSED: LogState.DEAD,
              privileged.FILE: LogState.UNROTATED,
              privileged.STARTING: LogState.UNKNOWN}


#: A port and its log's state.
_Seen = list[tuple[Port, LogState]]


def _look(ports: Sequence[Port], socket_path: str, probe: Probe,
          timeout: float) -> tuple[DaemonState, str, _Seen]:
    """Ask virtlogd about ports; of a guest that is off only HELD is told."""
    logging = [(port.name, port.log) for port in ports if port.log]
    daemon, reason, answers = probe(socket_path, logging, timeout)
    # virtlogd that is gone has closed every pipe.
    found = iter([_BY_ANSWER[answer] for answer in answers]
                 or [LogState.UNKNOWN] * len(logging))
    seen = []
    for port in ports:
        state = next(found) if port.log else LogState.NOT_LOGGING
        if not port.log and port.unclear:
            state = LogState.UNKNOWN
        if port.active:
            seen.append((port, state))
        elif state is LogState.ALIVE:
            seen.append((port, LogState.HELD))
    return DaemonState(daemon), reason, seen


#: Finds logs whose file is elsewhere among those that virtlogd writes.
FindUnlinked = Callable[[Sequence[str]], unlinked.Found]


#: As privileged.positions.
Positions = Callable[[str, list[str], float], Sequence[unlinked.Position]]


def find_unlinked(socket_path: str, timeout: float, disks: Disks = DISKS,
                  positions: Positions | None = None) -> FindUnlinked:
    """Give what :func:`examine` finds unlinked logs with.

    :param socket_path: virtlogd's socket
    :param timeout: seconds for virtlogd to answer each time
    :param disks: asks file systems
    :param positions: asks virtlogd; None: privileged.positions
    """
    def ask_once(logs: list[str]) -> Sequence[unlinked.Position]:
        # privsep makes lists of tuples, or the other way round.
        return [(inode, offset) for inode, offset in (
            positions or privileged.positions)(socket_path, logs, timeout)]

    def find(logs: Sequence[str]) -> unlinked.Found:
        try:
            return unlinked.find(logs, ask_once, disks)
        except (exception.VirtlogdError, RuntimeError, *PRIVSEP_ERRORS):
            # The next pass says what is wrong with virtlogd; or there is no
            # thread to be had just now.
            return unlinked.Found(unseen=frozenset(logs))

    return find


def examine(list_ports: Callable[[], Sequence[Port]], socket_path: str,
            timeout: float, probe: Probe = ask,
            list_viewers: Callable[[list[Address]], list[Viewer]]
            | None = None, confirm_after: float = 0.2,
            listening: Callable[[list[Address]], set[Address]]
            | None = None, find: FindUnlinked | None = None) -> Report:
    """Make one pass over all guests of the host.

    Where virtlogd does not answer, libvirt is not asked at all: it may hang
    with virtlogd.

    :param list_ports: the serial ports of guests; HostError where libvirt
        does not answer
    :param socket_path: virtlogd's socket
    :param timeout: seconds for virtlogd to answer all that it is asked
    :param probe: asks virtlogd
    :param list_viewers: who is connected; None: do not look
    :param confirm_after: seconds after which a log that seems dead is looked
        at again; its guest may just have ended
    :param listening: what is listened on; None: do not look
    :param find: finds logs whose file is elsewhere; None: do not look
    """
    start = time.monotonic()
    seen: _Seen = []
    libvirt = ''
    daemon, reason, _ = _look((), socket_path, probe, timeout)
    if daemon not in _UNASKED:
        try:
            daemon, reason, seen = _look(
                list_ports(), socket_path, probe, timeout)
            if daemon is DaemonState.UP:
                daemon, reason, seen = _confirm(
                    seen, list_ports, lambda ports: _look(
                        ports, socket_path, probe, timeout), confirm_after)
        except exception.HostError as e:
            libvirt, seen = str(e), []
    stalled: tuple[str, ...] = ()
    if find is not None and daemon is DaemonState.UP:
        found = find([port.log for port, state in seen
                      if state is LogState.ALIVE and port.log])
        stalled = found.stalled
        seen = [(port, LogState.UNLINKED if port.log in found.unlinked
                 else LogState.UNKNOWN if port.log in found.unseen
                 else state) for port, state in seen]
    stuck: tuple[Stuck, ...] = ()
    unopened: Sequence[Port] = ()
    unrelayed: Sequence[Port] = ()
    viewers = ''
    if list_viewers is not None:
        try:
            stuck = tuple(_stuck([port for port, _ in seen if port.active],
                                 list_viewers))
            if listening is not None:
                unopened = _unopened(seen, listening)
                unrelayed = _unrelayed([port for port, _ in seen], listening)
        except OSError as e:
            viewers = (f'The kernel does not tell who is connected ({e}). '
                       'Load its modules inet_diag and tcp_diag.')
    now = time.monotonic()
    return Report(daemon, reason, libvirt,
                  tuple(Log(port, state) for port, state in seen), stuck,
                  viewers, tuple(Unopened(port, now) for port in unopened),
                  tuple(Unopened(port, now) for port in unrelayed), stalled,
                  duration=now - start, moment=now)


def _stuck(ports: Sequence[Port],
           list_viewers: Callable[[list[Address]], list[Viewer]]
           ) -> Iterator[Stuck]:
    by_listener = {port.listener: port for port in ports if port.listener}
    for viewer in list_viewers(list(by_listener)):
        port = _port_of(viewer, by_listener)
        if port is not None and viewer.stuck(STUCK_AFTER):
            yield Stuck(port, viewer)


def _unopened(seen: _Seen,
              listening: Callable[[list[Address]], set[Address]]
              ) -> list[Port]:
    wanted = {port: port.listener for port, state in seen
              if port.listener is not None
              and state in (LogState.ALIVE, *LOST)}
    found = listening(list(wanted.values()))
    if len(wanted) > 1 and not found:
        # Guests listen in another network namespace than this process.
        return []
    return [port for port, listener in wanted.items() if listener not in found]


def _unrelayed(ports: Sequence[Port],
               listening: Callable[[list[Address]], set[Address]]
               ) -> list[Port]:
    """Give ports that wait for the relay, which does not listen."""
    relayed = {port: port.relay for port in ports
               if port.active and port.listener is not None
               and port.relay is not None}
    found = listening([address for port, relay in relayed.items()
                       for address in (port.listener, relay) if address])
    # One that does not listen itself is another matter, or is in another
    # network namespace.
    return [port for port, relay in relayed.items()
            if port.listener in found and relay not in found]


#: May be so for a moment, while a guest starts or ends.
_PASSING = (LogState.DEAD, LogState.HELD)


def _confirm(seen: _Seen, list_ports: Callable[[], Sequence[Port]],
             look: Callable[[Sequence[Port]],
                            tuple[DaemonState, str, _Seen]],
             confirm_after: float) -> tuple[DaemonState, str, _Seen]:
    """Look again at what seems dead, or held: its guest may just end.

    virtlogd closes a log whose pipe has ended before it answers to another
    connection; so one that it still has then is open elsewhere, if the guest
    was off before and is off afterwards.
    """
    doubtful = {port for port, state in seen if state in _PASSING}
    if not doubtful:
        return DaemonState.UP, '', seen
    time.sleep(confirm_after)
    daemon, reason, again = look(
        [port for port in list_ports() if port in doubtful])
    if any(state is LogState.HELD for _, state in again):
        off = set(list_ports())
        again = [(port, state) for port, state in again
                 if state is not LogState.HELD or port in off]
    confirmed = dict(again)
    return daemon, reason, [
        (port, confirmed.get(port, state)) for port, state in seen
        if port not in doubtful or port in confirmed]


def _port_of(viewer: Viewer, by_listener: dict[Address, Port]) -> Port | None:
    address, number = viewer.local
    for host in (address, '0.0.0.0', '::'):  # noqa: S104
        if (host, number) in by_listener:
            return by_listener[host, number]
    return None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes are what became of the host since the last report."""

    #: The daemon's state changed; False at a first pass that finds it up.
    daemon: bool
    #: libvirt began or ceased to answer.
    libvirt: bool
    died: tuple[Port, ...]
    back: tuple[Port, ...]
    unrotated: tuple[Port, ...]
    stuck: tuple[Stuck, ...]
    #: Ports that a viewer does not stop any more.
    freed: tuple[Port, ...]
    #: The kernel began or ceased to tell who is connected.
    viewers: bool = False
    #: Ports that have no interactive console, and that have one again.
    closed: tuple[Port, ...] = ()
    opened: tuple[Port, ...] = ()
    #: Ports that the relay does not listen for, and does again.
    unrelayed: tuple[Port, ...] = ()
    relayed: tuple[Port, ...] = ()
    #: Ports whose log is in a file that is not at its path.
    unlinked: tuple[Port, ...] = ()
    #: Ports of guests that are off, whose log is open all the same.
    held: tuple[Port, ...] = ()
    #: Ports of which something is not understood.
    unclear: tuple[Port, ...] = ()
    #: Why logs are not looked at from now on; and whether all are again.
    stalled: tuple[str, ...] = ()
    answering: bool = False


def changes(before: Report | None, now: Report) -> Changes:
    """Compare two reports.

    Before the first report all is taken to have been well, so that what is
    broken when nova-compute starts is said, once.
    """
    old = {log.port: log.state for log in before.logs} if before else {}
    old_stuck = ({stuck.viewer.socket_id for stuck in before.stuck}
                 if before else set())

    def became(state: LogState) -> tuple[Port, ...]:
        return tuple(log.port for log in now.logs
                     if log.state is state and old.get(log.port) is not state)
    # What could not be found out this time is as it was.
    known = remember(before, now)
    still_stuck = {stuck.viewer.socket_id for stuck in known.stuck}
    return Changes(
        daemon=now.daemon is not (before.daemon if before
                                  else DaemonState.UP),
        libvirt=bool(known.libvirt) is not bool(before and before.libvirt),
        died=became(LogState.DEAD),
        back=tuple(log.port for log in now.logs
                   if log.state is LogState.ALIVE
                   and old.get(log.port) in LOST),
        unrotated=became(LogState.UNROTATED),
        stuck=tuple(stuck for stuck in now.stuck
                    if stuck.viewer.socket_id not in old_stuck),
        freed=tuple(stuck.port for stuck in before.stuck
                    if stuck.viewer.socket_id not in still_stuck)
        if before else (),
        viewers=bool(known.viewers) is not bool(before and before.viewers),
        closed=tuple(port for port in known.closed
                     if before is None or port not in before.closed),
        opened=tuple(log.port for log in now.logs
                     if before and log.port in before.closed
                     and log.port not in known.closed),
        unrelayed=tuple(port for port in known.without_relay
                        if before is None
                        or port not in before.without_relay),
        relayed=tuple(log.port for log in now.logs
                      if before and log.port in before.without_relay
                      and log.port not in known.without_relay),
        unlinked=became(LogState.UNLINKED),
        held=became(LogState.HELD),
        unclear=tuple(log.port for log in now.logs
                      if log.port.unclear and log.port not in old),
        stalled=tuple(reason for reason in now.stalled
                      if before is None or reason not in before.stalled),
        answering=bool(before and before.stalled and not known.stalled))


def remember(before: Report | None, now: Report) -> Report:
    """Fill up the newest report with what only the old one has.

    While virtlogd hangs nothing is known of the logs, and a log that was said
    to be dead must not be said again afterwards.
    """
    if before is None:
        return now
    unasked = now.daemon in _UNASKED or bool(now.libvirt)
    if unasked and not now.logs:
        return dataclasses.replace(now, libvirt=now.libvirt or before.libvirt,
                                   logs=before.logs, stuck=before.stuck,
                                   viewers=before.viewers,
                                   unopened=before.unopened,
                                   unrelayed=before.unrelayed,
                                   stalled=before.stalled)
    here = {log.port for log in now.logs}
    # libvirt may fail for a guest just now: its ports are as they were.
    failing = {log.port.guest for log in now.logs if log.port.failing}
    hidden = {log.port for log in before.logs if log.port.guest in failing
              and not log.port.unclear} - here
    now = dataclasses.replace(now, logs=now.logs + tuple(
        log for log in before.logs if log.port in hidden))
    if now.viewers:
        hidden |= here
        now = dataclasses.replace(now, stuck=(), unopened=(), unrelayed=())
    # Only of a port whose log's state is known it is told whether it is
    # listened on.
    unseen = hidden | {log.port for log in now.logs
                       if log.state is LogState.UNKNOWN}
    now = dataclasses.replace(
        now, stuck=now.stuck + tuple(
            one for one in before.stuck if one.port in hidden),
        unopened=now.unopened + tuple(
            one for one in before.unopened
            if one.port in unseen and one.lasts(before.moment)),
        unrelayed=now.unrelayed + tuple(
            one for one in before.unrelayed if one.port in hidden))
    closed = {one.port: one for one in before.unopened}
    waiting = {one.port: one for one in before.unrelayed}
    old = {log.port: log for log in before.logs}
    return dataclasses.replace(
        now, logs=tuple(
            old.get(log.port, log) if log.state is LogState.UNKNOWN else log
            for log in now.logs),
        unopened=tuple(closed.get(one.port, one) for one in now.unopened),
        unrelayed=tuple(waiting.get(one.port, one)
                        for one in now.unrelayed))


def free_space(log: str, disks: Disks = DISKS) -> int | None:
    """Count free bytes where a log is, for root; None: not known.

    virtlogd runs as root: what is reserved for root counts as free.
    """
    try:
        return disks.ask(log, _free, os.path.dirname(log))
    except (exception.DiskStalled, RuntimeError):
        return None


def _free(directory: str) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bfree * found.f_frsize


def check_ready(socket_path: str, logs: Sequence[str], timeout: float,
                probe: Probe = ask, disks: Disks = DISKS) -> None:
    """Check before a guest starts that its logs will be written.

    libvirt starts no guest while virtlogd is down, hangs with it without
    limit, and with a file system that stalls; and starts one into a dead log
    where the disk is full. This takes as long as virtlogd and each file
    system may take to answer, and no longer.

    :param logs: the paths that the guest is going to log to
    :raises VirtlogdDown: virtlogd is down
    :raises VirtlogdHung: it did not answer in time, takes no connection, or
        would hang with a file system that does not answer
    :raises LogDiskFull: there is no room for a log
    """
    state, reason, _ = probe(socket_path, [], timeout)
    if state == DaemonState.DOWN:
        raise exception.VirtlogdDown(reason)
    if state in (DaemonState.HUNG, DaemonState.FULL):
        raise exception.VirtlogdHung(reason)
    for log in logs:
        try:
            free = disks.ask(log, _free, os.path.dirname(log))
        except exception.DiskStalled as e:
            raise exception.VirtlogdHung(str(e)) from e
        except RuntimeError:
            # No thread can be started to look: no reason to refuse a guest.
            continue
        if free is not None and free < FULL_BELOW:
            raise exception.LogDiskFull(
                f'The file system of {os.path.dirname(log)} is full ({free} '
                'bytes free): the guest would start without its console log, '
                'for good. Free some space.')


def wait_until_closed(socket_path: str, logs: Sequence[str], timeout: float,
                      probe: Probe = ask) -> bool:
    """Wait until what guests that have ended wrote is in their logs.

    virtlogd closes a log when it has read its pipe to the end, which may be a
    moment after QEMU is gone.

    :param timeout: seconds, for virtlogd to answer and to close them
    :returns: whether virtlogd says that it writes none of them
    """
    deadline = time.monotonic() + timeout
    while True:
        state, _, answers = probe(
            socket_path, [('', log) for log in logs],
            max(0.1, deadline - time.monotonic()))
        if state != DaemonState.UP or privileged.OPEN not in answers:
            return state == DaemonState.UP
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
