# SPDX-License-Identifier: Apache-2.0
"""The health pass is made again and again beside nova-compute's work.

It runs on ``threading``'s threads, native or eventlet's, whichever the
process has. What it is given to call may block a thread, but under eventlet
must not block the process (nova_edge.outside_eventlet).

Whatever a pass waits for has a bound: the privileged helper, each file system,
each attempt to bring a log back. What does not answer is said, and the pass
goes on with the others. libvirt alone can keep a pass for good: then it is
left to itself, that is said, and no other is begun until it has ended.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.virtlogd import health, privileged, viewer
from virtlogd_driver.virtlogd.bounded import Calls, NoAnswer
from virtlogd_driver.virtlogd.disk import Disks
from virtlogd_driver.virtlogd.health import (
    LOST,
    DaemonState,
    Report,
    Stuck,
)
from virtlogd_driver.virtlogd.port import HELD_REMEDY, Port

LOG = logging.getLogger(__name__)
_T = TypeVar('_T')

#: The most passes between two attempts to bring one log back.
_MAX_PAUSE = 64
#: Seconds that the end waits for an attempt to bring a log back: half way
#: the guest has no console.
_STOP_TIMEOUT = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings say how the host is watched."""

    #: virtlogd's socket.
    socket_path: str
    #: Seconds from one pass to the next.
    interval: float
    #: Seconds for virtlogd to answer.
    timeout: float
    #: Seconds after which a stuck viewer is disconnected; 0 is never.
    viewer_timeout: float = 0
    #: Seconds after which libvirt, asked for its guests, counts as hung; and
    #: so does a privileged helper, or an attempt to bring a log back.
    patience: float = 30


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals count what happened since the start of the process."""

    died: int = 0
    reattached: int = 0
    reattach_failed: int = 0
    viewers_disconnected: int = 0


@dataclass(slots=True)
class _Attempts:
    """Attempts to bring a log back are counted, and spaced out."""

    count: int = 0
    passes_to_wait: int = 0


class HealthTask:
    """Watches virtlogd and the logs of all guests of the host.

    :param settings: how
    :param list_ports: the serial ports of all running guests; HostError where
        libvirt does not answer
    :param reattach: brings the log of a port back and returns a note for the
        operator, or raises VirtlogdError; None: do not
    :param publish: gets each report, for metrics; may raise OSError, or
        DiskStalled
    :param disks: asks file systems
    :param clean: removes what each pass is to remove
    """

    def __init__(self, settings: Settings,
                 list_ports: Callable[[], Sequence[Port]],
                 reattach: Callable[[Port], str] | None = None,
                 publish: Callable[[Report, Totals], None] | None = None,
                 disks: Disks | None = None,
                 clean: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._list_ports = list_ports
        self._reattach = reattach
        self._publish = publish
        self._disks = disks or Disks()
        self._clean = clean
        self._calls = Calls()
        self._totals = Totals()
        self._report: Report | None = None
        self._attempts: dict[Port, _Attempts] = {}
        self._healable = True
        self._disconnectable = True
        self._publishable = True
        self._cleanable = True
        # A pass that hung may end while another report is taken.
        self._lock = threading.Lock()
        # Reports that passes made, and when one got on, by time.monotonic.
        self._made = 0
        self._progress = 0.0
        # Attempts to bring a log back that are under way.
        self._under_way = 0
        self._attempt_ended = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def report(self) -> Report | None:
        """Give the newest report; None before the first pass has ended."""
        return self._report

    def start(self) -> None:
        """Begin; the first pass is made at once. Does not wait for it."""
        self._thread = threading.Thread(
            target=self._loop, name='virtlogd-health', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a pass that is under way ends by itself, unheeded.

        An attempt to bring a log back is waited for, for _STOP_TIMEOUT at
        most; no other is begun.
        """
        self._stop.set()
        with self._attempt_ended:
            ended = self._attempt_ended.wait_for(
                lambda: not self._under_way, _STOP_TIMEOUT)
        if not ended:
            LOG.error(
                'An attempt to bring a console log back has not ended within '
                '%g s; its guest may have no interactive console. See '
                'virtlogd-console reattach.', _STOP_TIMEOUT)
        if self._thread is not None:
            self._thread.join(1)

    def _loop(self) -> None:
        while not self._stop.is_set():
            done = threading.Event()
            self._progress = time.monotonic()
            try:
                threading.Thread(
                    target=self._guarded_pass, args=(done,),
                    name='virtlogd-health-pass', daemon=True).start()
            except RuntimeError as e:
                # There is none to be had: it is tried again.
                LOG.error('The health pass of virtlogd is left out: %s. See '
                          'what has so many threads (TasksMax of the unit).',
                          e)
                done.set()
            self._stop.wait(self._settings.interval)
            while not done.is_set() and not self._stop.is_set():
                try:
                    self._look_beside()
                except Exception:
                    LOG.exception('virtlogd could not be looked at')
                done.wait(self._settings.interval)

    def _guarded_pass(self, done: threading.Event) -> None:
        try:
            self.run_once()
        except Exception:
            # The next pass may do better; nova-compute must go on.
            LOG.exception('The health pass of virtlogd failed')
        finally:
            done.set()

    def _look_beside(self) -> None:
        """Look while a pass waits for libvirt, which may hang with virtlogd.

        What is found is no pass: the time of the last one stays.
        """
        made = self._made
        daemon, reason, _ = self._ask(
            self._settings.socket_path, [], self._settings.timeout,
            who='look beside')
        libvirt = ''
        if time.monotonic() - self._progress > self._settings.patience:
            libvirt = ('libvirt did not answer for '
                       f'{self._settings.patience:g} s. See whether virtlogd '
                       'or a guest hangs.')
        if daemon in (DaemonState.HUNG, DaemonState.FULL,
                      DaemonState.REFUSED) or libvirt:
            last = self._report
            self._take(Report(
                DaemonState(daemon), reason, libvirt,
                time=last.time if last else 0.0,
                duration=last.duration if last else 0.0,
                moment=last.moment if last else 0.0), made)

    def run_once(self) -> Report:
        """Make one pass: clean, look, say, heal, publish."""
        self._clean_up()
        found = self._examine()
        self._take(found)
        if not self._stop.is_set():
            healed, ended = self._heal(found), self._disconnect(found)
            if healed or ended:
                found = self._examine()
                self._take(found)
        return self._report or found

    def _clean_up(self) -> None:
        """First, as the rest may wait for libvirt."""
        if self._clean is None:
            return
        try:
            self._clean()
            self._cleanable = True
        except Exception as e:
            # The rest of the pass is for guests that live.
            if self._cleanable:
                LOG.error('Logs of deleted guests stay longer than [virtlogd] '
                          'keep_deleted says: %s', e)
            self._cleanable = False

    def _examine(self) -> Report:
        socket_path = self._settings.socket_path
        timeout = self._settings.timeout
        return health.examine(
            self._list_ports, socket_path, timeout, self._ask,
            list_viewers=viewer.viewers, listening=viewer.listening,
            find=health.find_unlinked(
                socket_path, timeout, self._disks, self._positions))

    # What may not return

    def _ask(self, *arguments: Any,
             who: str = 'pass') -> tuple[str, str, Sequence[str]]:
        """Do health.ask, where a helper that hangs is an answer, too."""
        try:
            return self._of_helper(who, health.ask, *arguments)
        except exception.VirtlogdHung as e:
            return privileged.REFUSED, str(e), []

    def _positions(self, *arguments: Any) -> Sequence[tuple[int, int]]:
        return self._of_helper('pass', privileged.positions, *arguments)

    def _of_helper(self, who: str, function: Callable[..., _T],
                   *arguments: Any) -> _T:
        """Tell what a privileged helper answers.

        :param who: asks; one call at a time
        :raises VirtlogdHung: it does not
        """
        seconds = self._settings.patience
        try:
            return self._calls.call(who, seconds, function, *arguments)
        except NoAnswer as e:
            raise exception.VirtlogdHung(
                'virtlogd cannot be asked: the privileged helper has not '
                f'answered for {seconds:g} s. See whether the process '
                'privsep-helper with virtlogd_context is stopped (kill -CONT '
                'continues it), or what it waits for; console logs are not '
                'watched until it answers.') from e

    def _take(self, found: Report, beside: int | None = None) -> None:
        """Say what has changed, and publish the report.

        :param beside: reports that passes had made when this one, which is
            none of a pass, was begun; one that was made since knows better
        """
        with self._lock:
            if self._stop.is_set() or beside not in (None, self._made):
                return
            if beside is None:
                self._made += 1
                self._progress = time.monotonic()
            changes = health.changes(self._report, found)
            self._report = health.remember(self._report, found)
            self._totals = replace(
                self._totals, died=self._totals.died + len(changes.died))
            _say(changes, found, self._disks)
            self._publish_report(self._report)

    def _publish_report(self, report: Report) -> None:
        if self._publish is None:
            return
        try:
            self._publish(report, self._totals)
            self._publishable = True
        except (OSError, exception.DiskStalled) as e:
            if self._publishable:
                LOG.error('[virtlogd] metrics_file cannot be written: %s', e)
            self._publishable = False

    # Healing

    def _heal(self, found: Report) -> bool:
        """Bring back what is lost or closed; whether anything was."""
        dead = {log.port for log in found.logs if log.state in LOST}
        if self._report is not None:
            # Since when is in what is remembered.
            dead |= set(self._report.closed) & {
                one.port for one in found.unopened}
        self._forget_attempts(dead)
        if self._reattach is None or found.daemon is not DaemonState.UP:
            return False
        back = False
        for port in sorted(dead, key=lambda port: (port.guest, port.number)):
            if self._stop.is_set():
                break
            try:
                if self._bring_back(port):
                    back = self._healable = True
            except (exception.VirtlogdDown, exception.VirtlogdHung) as e:
                if self._healable:
                    LOG.error('Console logs are not brought back for '
                              'now: %s', e)
                self._healable = False
                break
            except Exception:
                self._count_failure()
                LOG.exception(
                    'Console log %s of %s could not be brought back',
                    port.log, port, instance_uuid=port.guest)
            self._progress = time.monotonic()
        return back

    def _forget_attempts(self, dead: set[Port]) -> None:
        """A log that stays alive for long enough starts over."""
        for port in self._attempts.keys() - dead:
            self._attempts[port].passes_to_wait -= 1
            if self._attempts[port].passes_to_wait <= 0:
                del self._attempts[port]

    def _bring_back(self, port: Port) -> bool:
        """Try, if it is time to; whether the log is back.

        :raises VirtlogdDown: no log can be brought back
        :raises VirtlogdHung: likewise
        """
        attempts = self._attempts.setdefault(port, _Attempts())
        if attempts.passes_to_wait:
            attempts.passes_to_wait -= 1
            return False
        assert port.log is not None
        free = health.free_space(port.log, self._disks)
        if free is not None and free < health.FULL_BELOW:
            # It would die of its first write.
            return False
        attempts.count += 1
        attempts.passes_to_wait = min(2 ** (attempts.count - 1), _MAX_PAUSE)
        try:
            note = self._calls.call(
                port.guest, self._settings.patience, self._attempt, port)
        except NoAnswer:
            self._count_failure()
            LOG.error(
                'Console log %s of %s: an attempt to bring it back has not '
                'ended within %g s, and goes on; other logs are watched. See '
                'whether the guest or libvirt hangs.', port.log, port,
                self._settings.patience, instance_uuid=port.guest)
            return False
        except (exception.VirtlogdDown, exception.VirtlogdHung):
            # It says nothing of this log.
            attempts.count -= 1
            attempts.passes_to_wait = 0
            raise
        except (exception.VirtlogdDriverError, *health.PRIVSEP_ERRORS) as e:
            self._count_failure()
            log = LOG.error if attempts.count == 1 else LOG.debug
            log('Console log %s of %s could not be brought back: %s',
                port.log, port, e, instance_uuid=port.guest)
            return False
        self._totals = replace(
            self._totals, reattached=self._totals.reattached + 1)
        if note:
            LOG.warning('Console log %s of %s was attached again; %s.',
                        port.log, port, note, instance_uuid=port.guest)
        return True

    def _attempt(self, port: Port) -> str:
        """Bring a log back; see :meth:`stop`."""
        assert self._reattach is not None
        with self._attempt_ended:
            if self._stop.is_set():
                raise exception.ReattachFailed('nova-compute is stopped.')
            self._under_way += 1
        try:
            return self._reattach(port)
        finally:
            with self._attempt_ended:
                self._under_way -= 1
                self._attempt_ended.notify_all()

    def _count_failure(self) -> None:
        self._totals = replace(
            self._totals, reattach_failed=self._totals.reattach_failed + 1)

    def _disconnect(self, found: Report) -> bool:
        """End the connections of viewers that stop a guest for too long."""
        limit = self._settings.viewer_timeout
        ended = [self._end(stuck, limit) for stuck in found.stuck
                 if limit and stuck.viewer.stuck(limit)]
        return any(ended)

    def _end(self, stuck: Stuck, limit: float) -> bool:
        try:
            ended = bool(self._calls.call(
                'viewer helper', self._settings.patience,
                privileged.disconnect, stuck.viewer.socket_id, limit))
        except (NoAnswer, exception.VirtlogdDriverError,
                *health.PRIVSEP_ERRORS) as e:
            if self._disconnectable:
                LOG.error(
                    '[virtlogd] viewer_timeout cannot be kept: %s',
                    str(e) or 'the privileged helper does not answer. See '
                    'the process privsep-helper with viewer_context.')
            self._disconnectable = False
            return False
        self._disconnectable = True
        if ended:
            LOG.warning(
                'Viewer %s:%s of %s had not read for %.0f s and was '
                'disconnected.', *stuck.viewer.peer, stuck.port,
                stuck.viewer.silent, instance_uuid=stuck.port.guest)
            self._totals = replace(
                self._totals, viewers_disconnected=(
                    self._totals.viewers_disconnected + 1))
        return ended


def _say(changes: health.Changes, found: Report, disks: Disks) -> None:
    """Log each change once: errors as errors, what is well again as info."""
    if changes.daemon:
        if found.daemon is DaemonState.UP:
            LOG.info('virtlogd answers.')
        else:
            LOG.error('virtlogd is %s: %s', found.daemon, found.reason)
    if changes.libvirt:
        if found.libvirt:
            LOG.error('Console logs are not watched: %s', found.libvirt)
        else:
            LOG.info('Console logs are watched again: libvirt answers.')
    if changes.viewers:
        if found.viewers:
            LOG.error('Viewers of consoles are not watched: %s',
                      found.viewers)
        else:
            LOG.info('Viewers of consoles are watched again.')
    for port in changes.died:
        LOG.error(
            'Console log %s of %s is dead: what the guest writes is lost. %s',
            port.log, port, _why_dead(port, disks), instance_uuid=port.guest)
    for port in changes.unlinked:
        LOG.error(
            'Console log %s of %s is not at its path any more: it was '
            'removed, renamed or replaced, and what the guest writes is lost. '
            'See [virtlogd] reattach; "virtlogd-console reattach %s" begins '
            'a new file there. Leave rotation to virtlogd.',
            port.log, port, port.name, instance_uuid=port.guest)
    for port in changes.held:
        LOG.error(
            'Console log %s of %s is open at virtlogd, though the guest is '
            'off: it will not start ("Device or resource busy"). %s',
            port.log, port, HELD_REMEDY, instance_uuid=port.guest)
    for port in changes.unclear:
        LOG.warning('Not all of %s is understood: %s', port, port.unclear,
                    instance_uuid=port.guest)
    for reason in changes.stalled:
        LOG.error('Console logs are not all looked at: %s', reason)
    if changes.answering:
        LOG.info('The file systems of all console logs answer again.')
    for port in changes.back:
        LOG.info('Console log %s of %s is back.', port.log, port,
                 instance_uuid=port.guest)
    for port in changes.closed:
        LOG.error(
            'Nobody listens on %s:%s, the interactive console of %s. See '
            '[virtlogd] reattach; "virtlogd-console reattach %s" opens it '
            'again.', *port.listener or ('', 0), port, port.name,
            instance_uuid=port.guest)
    for port in changes.opened:
        LOG.info('%s has its interactive console again.', port,
                 instance_uuid=port.guest)
    if changes.unrelayed:
        LOG.error(
            'Nobody can look at %d interactive consoles (%s): they are '
            'relayed, and the relay does not run, or cannot listen for their '
            'viewers. Start virtlogd-console-relay.service, and see its log; '
            'the guests and their logs go on.', len(changes.unrelayed),
            _some([port.name for port in changes.unrelayed]))
    if changes.relayed:
        LOG.info('The relay listens for the viewers of %d interactive '
                 'consoles again (%s).', len(changes.relayed),
                 _some([port.name for port in changes.relayed]))
    if changes.unrotated:
        LOG.warning(
            'QEMU writes %d console logs itself, without bound (%s): set '
            'stdio_handler to "logd" in qemu.conf, restart libvirtd (or '
            'virtqemud), and stop and start the guests.',
            len(changes.unrotated),
            _some([str(port.log) for port in changes.unrotated]))
    for stuck in changes.stuck:
        if stuck.port.relay is not None:
            LOG.error(
                'The relay has not read what %s writes for %.0f s: the guest '
                'and its log wait for it. Restart '
                'virtlogd-console-relay.service.', stuck.port,
                stuck.viewer.silent, instance_uuid=stuck.port.guest)
            continue
        LOG.warning(
            'Viewer %s:%s of %s has not read for %.0f s: the output of the '
            'guest, and its log, wait for it. Disconnect it, or see '
            '[virtlogd] viewer_timeout.', *stuck.viewer.peer, stuck.port,
            stuck.viewer.silent, instance_uuid=stuck.port.guest)
    for port in changes.freed:
        LOG.info('No viewer stops %s any more.', port,
                 instance_uuid=port.guest)


def _why_dead(port: Port, disks: Disks) -> str:
    free = health.free_space(port.log or '', disks)
    if free is not None and free < health.FULL_BELOW:
        return 'Its file system is full: free some space.'
    return ('virtlogd was restarted (reload it instead), or its disk was '
            f'full. "virtlogd-console reattach {port.name}" brings it back; '
            'see [virtlogd] reattach. A managed save and start, or a live '
            'migration, does so as well.')


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ', '.join(names[:most])
    return shown if len(names) <= most else f'{shown}, ...'
