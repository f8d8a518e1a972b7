# SPDX-License-Identifier: Apache-2.0
"""Only root may use virtlogd's socket, or end a stranger's connection.

virtlogd answers root only, and goes by the user id: no capability is needed
to be root, so the first context has none. Ending a TCP connection of another
process takes CAP_NET_ADMIN and has a context, and so a daemon, of its own.

As these are the edge of another process they take nobody's word for where
virtlogd is: a caller that could name the socket could name the status files
beside it as well, and with them what virtlogd opens as root.

privsep carries numbers, strings, lists and tuples; so these functions take
and return those.
"""

import contextlib
import os
import re
import socket
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree

from oslo_config import cfg
from oslo_privsep import capabilities

from virtlogd_driver import (
    conf,
    exception,
    helper,
    peer,
    privileged_process,
    safe_path,
)
from virtlogd_driver.virtlogd import clients, rpc, settings, viewer
from virtlogd_driver.virtlogd.port import Address, numeric, tcp_port

#: Root without capabilities: connects to virtlogd, reads root's own files.
virtlogd_context = helper.Context(
    'virtlogd_driver',
    cfg_section='virtlogd_privileged_daemon',
    pypath=f'{__name__}.virtlogd_context',
    capabilities=[])

#: Ends connections of viewers that stop a guest.
viewer_context = helper.Context(
    'virtlogd_driver',
    cfg_section='virtlogd_privileged_viewer',
    pypath=f'{__name__}.viewer_context',
    capabilities=[capabilities.CAP_NET_ADMIN])

#: How the status of a guest says that its logs are virtlogd's
#: (src/qemu/qemu_domain.c; libvirt 3.1 to 11).
_LOGD = '<chardevStdioLogd/>'
#: And that its logs are not open yet.
_STARTING = " reason='starting up' "

#: Bytes of a status file that are read. What a tenant decides of it, such as
#: metadata, nova and libvirt bound at much less.
_MOST_STATUS = 16 * 1024 * 1024

#: Seconds from one attempt to the next; and the most that a caller may ask
#: for.
_SHORTEST, _LONGEST = 0.05, 600.0

#: What the socket of a caller is called, to which a pipe is sent.
RECEIVER = 'virtlogd-driver-'
_RECEIVER = re.compile(RECEIVER + '[0-9a-f-]{36}')

# Answers of probe.
UP, DOWN, HUNG, REFUSED, FULL = 'up', 'down', 'hung', 'refused', 'full'
OPEN, CLOSED, FILE, STARTING = 'open', 'closed', 'file', 'starting'


def _own(option: str) -> str:
    """Give a path of [virtlogd], by the configuration of this process.

    nova's own, or that of a command; a daemon has the files that
    privsep-helper was given, where a path may refer to nova's.
    """
    conf.register_opts(cfg.CONF)
    if privileged_process.option('privsep_context'):
        cfg.CONF.register_opts(conf.nova_paths())
    path: str = cfg.CONF.virtlogd[option]
    return path


def _check_own(option: str, path: str) -> None:
    """Refuse all but its own.

    :raises VirtlogdError: another one is asked for
    """
    own = _own(option)
    if path != own:
        raise exception.VirtlogdError(
            f'{path} is not what is configured: option [virtlogd] {option} = '
            f'{own} where it is asked. Give the configuration file that sets '
            f'it to helper_command in [{virtlogd_context.cfg_section}] as '
            'well, and start the service anew.')


def _status_file(socket_path: str, name: str) -> Path | None:
    """Give the path of libvirt's status file of a running guest."""
    if '/' in name or '\0' in name or name in ('', '.', '..'):
        return None
    return Path(socket_path).parent / 'qemu' / f'{name}.xml'


def _not_open(socket_path: str, name: str) -> str:
    """Tell why virtlogd does not write a log: FILE, STARTING, or CLOSED."""
    path = _status_file(socket_path, name)
    if path is None or not path.parent.is_dir():
        return CLOSED
    try:
        status = _read(path).decode(errors='replace')
    except FileNotFoundError:
        # libvirt writes it once the logs are open, and removes it at the end.
        return STARTING
    except OSError:
        return CLOSED
    # What follows has words of the tenant's, such as the server's name.
    status, _, _ = status.partition('<domain ')
    if _STARTING in status:
        return STARTING
    return CLOSED if _LOGD in status else FILE


def _read(path: Path) -> bytes:
    """Read libvirt's status file, which root alone can write.

    :raises OSError: it cannot be read, or is too long for one
    """
    with path.open('rb') as file:
        status = file.read(_MOST_STATUS + 1)
    if len(status) > _MOST_STATUS:
        raise OSError(f'{path} has more than {_MOST_STATUS} bytes')
    return status


def _root_element(path: Path) -> ElementTree.Element:
    """Give the same, parsed.

    :raises OSError, ParseError: as _read; it is no XML
    """
    return ElementTree.fromstring(_read(path))  # noqa: S314


def _within_reason(seconds: float) -> float:
    """Bound a time that a caller has named; nan is none."""
    return min(max(_SHORTEST, seconds), _LONGEST)


def _probe_once(socket_path: str, logs: list[tuple[str, str]],
                timeout: float) -> list[str]:
    answers = []
    with rpc.Connection(socket_path, timeout) as virtlogd:
        virtlogd.ping()
        for name, log in logs:
            if virtlogd.position(log) is not None:
                answers.append(OPEN)
            else:
                answers.append(_not_open(socket_path, name))
    return answers


@virtlogd_context.timed_entrypoint()
def probe(socket_path: str, logs: list[tuple[str, str]],
          timeout: float) -> tuple[str, str, list[str]]:
    """Ask virtlogd which logs it writes.

    :param socket_path: virtlogd's socket, as it is configured here
    :param logs: name of the guest and path of the log
    :param timeout: seconds for all of it
    :returns: UP, DOWN, HUNG, REFUSED or FULL; the reason of the latter four;
        where it is up or down, for each log OPEN, CLOSED, FILE for one that
        QEMU writes itself, or STARTING where the guest just starts or ended
    """
    try:
        _check_own('virtlogd_socket', socket_path)
    except exception.VirtlogdError as e:
        return REFUSED, str(e), []
    timeout = _within_reason(timeout)
    deadline = time.monotonic() + timeout
    # virtlogd loses a reply that it has not sent when it executes itself anew.
    patience = timeout / 2
    while True:
        left = max(deadline - time.monotonic(), _SHORTEST)
        try:
            return UP, '', _probe_once(socket_path, logs, min(left, patience))
        except rpc.ConnectionClosed as e:
            # A connection does not always survive virtlogd's re-exec.
            if time.monotonic() > deadline:
                return DOWN, str(e), _answers_while_down(socket_path, logs)
        except exception.VirtlogdDown as e:
            return DOWN, str(e), _answers_while_down(socket_path, logs)
        except exception.VirtlogdHung:
            if patience == timeout:
                full = clients.refused(socket_path, settings.read_max_clients(
                    _own('virtlogd_conf')))
                return (FULL if full else HUNG,
                        full or str(rpc.hung(socket_path, timeout)), [])
            patience = timeout
        except exception.VirtlogdError as e:
            return REFUSED, str(e), []
        time.sleep(_SHORTEST)


@virtlogd_context.timed_entrypoint()
def positions(socket_path: str, logs: list[str],
              timeout: float) -> list[tuple[int, int]]:
    """Ask virtlogd which file it writes as each log, and how far it is.

    :param socket_path: virtlogd's socket, as it is configured here
    :param logs: paths
    :param timeout: seconds for all of it
    :returns: inode and size in bytes; 0 and 0 of a log that it does not write
    :raises VirtlogdError: as :meth:`rpc.Connection.position`
    """
    _check_own('virtlogd_socket', socket_path)
    with rpc.Connection(
            socket_path, _within_reason(timeout)) as virtlogd:
        found = [virtlogd.position(log) for log in logs]
    return [(one.inode, one.offset) if one else (0, 0) for one in found]


def _answers_while_down(socket_path: str,
                        logs: list[tuple[str, str]]) -> list[str]:
    return [_not_open(socket_path, name) for name, _ in logs]


def _check_log_of_guest(socket_path: str, domain: str, name: str,
                        log: str) -> None:
    """Refuse all but what libvirt lets this running guest log into.

    virtlogd opens whatever path root asks for, so the word of the calling
    process is not enough.

    :raises ReattachFailed: it is not a log of this guest
    """
    path = _status_file(socket_path, name)
    try:
        if path is None:
            raise ValueError('no name of a guest')
        status = _root_element(path)
    except (OSError, ValueError, ElementTree.ParseError) as e:
        raise exception.ReattachFailed(
            f'Guest {name}: libvirt\'s status file {path} cannot be read '
            f'({e}); is the guest running?') from e
    logs = {element.get('file')
            for element in status.iterfind('domain/devices/*/log')}
    logs |= {source.get('path') for kind in ('serial', 'console')
             for source in status.iterfind(
                 f"domain/devices/{kind}[@type='file']/source")}
    if status.findtext('domain/uuid') != domain or log not in logs:
        raise exception.ReattachFailed(
            f'Guest {name} ({domain}) has no log {log}, says {path}.')


@virtlogd_context.timed_entrypoint(steps=2)
def open_log(socket_path: str, domain: str, name: str, log: str,
             receiver: str, timeout: float) -> None:
    """Have virtlogd open a guest's log; its pipe is sent to the caller.

    privsep passes no descriptors; so the pipe goes by an abstract socket. It
    is not sent before it is known where it leads: virtlogd opens the log by
    its path, as root, and whoever may write its directory can put something
    else there meanwhile. virtlogd has written nothing by then.

    :param socket_path: virtlogd's socket, as it is configured here
    :param domain: UUID of the running guest
    :param name: its libvirt name
    :param log: the path in one of its ``<log file>``
    :param receiver: name of the abstract socket that the caller listens on:
        RECEIVER and a UUID
    :param timeout: of each step, in seconds
    :raises VirtlogdError: virtlogd refuses, is down or hung, or is another
    :raises ReattachFailed: this is not a log of this guest, or not one that
        root may append to
    """
    _check_own('virtlogd_socket', socket_path)
    _check_log_of_guest(socket_path, domain, name, log)
    before = _check_file(name, log)
    if _RECEIVER.fullmatch(receiver) is None:
        raise exception.ReattachFailed(
            f'Guest {name}: a pipe is sent to a socket {RECEIVER}UUID alone.')
    timeout = _within_reason(timeout)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout)
        channel.connect(f'\0{receiver}')
        # Its name is for all to see, and free once the caller has given up.
        _, listener = peer.credentials(channel)
        if listener not in (0, privileged_process.caller()[1]):
            raise exception.ReattachFailed(
                f'Guest {name}: user {listener} listens at {receiver}, not '
                'who asked for the pipe, so it is not sent. Try it again.')
        with rpc.Connection(socket_path, timeout) as virtlogd:
            pipe, position = virtlogd.open_log(
                'qemu', uuid.UUID(domain), name, log)
        try:
            after = _check_file(name, log)
            if after is None or after.st_ino != position.inode or (
                    before is not None
                    and not os.path.samestat(before, after)):
                raise exception.ReattachFailed(
                    f'Guest {name}: {log} was exchanged while virtlogd opened '
                    'it, so nothing is written there. See what does that, and '
                    'try it again.')
            socket.send_fds(channel, [b'\0'], [pipe])
        finally:
            os.close(pipe)


def _check_file(name: str, log: str) -> os.stat_result | None:
    """Check a file.

    :raises ReattachFailed: root is not to append to this one
    """
    try:
        return safe_path.check_log(log)
    except safe_path.Untrusted as e:
        raise exception.ReattachFailed(
            f'Guest {name}: virtlogd is not to write {log} as root: {e}. '
            'Put a directory in place of a link to one, and remove what is '
            'no file of a console log.') from e
    except OSError as e:
        raise exception.ReattachFailed(
            f'Guest {name}: the directory of {log} cannot be opened '
            f'({e.strerror}): it has to be there, and each above it to be '
            'searched by root without capabilities (chmod o+x).') from e


# libvirt's configuration files: root's alone on some hosts. Nothing of them
# goes out but what is named here.

@virtlogd_context.entrypoint
def stdio_handler(path: str) -> str:
    """Do :func:`settings.read_stdio_handler`."""
    _check_own('qemu_conf', path)
    return str(settings.read_stdio_handler(path))


@virtlogd_context.entrypoint
def check_qemu_conf(path: str) -> None:
    """Do :func:`settings.check_qemu_conf`."""
    _check_own('qemu_conf', path)
    settings.check_qemu_conf(path)


@virtlogd_context.entrypoint
def virtlogd_settings(path: str) -> tuple[int, int, bool]:
    """Do :func:`settings.read_virtlogd_settings`."""
    _check_own('virtlogd_conf', path)
    found = settings.read_virtlogd_settings(path)
    return found.max_size, found.max_backups, found.quoted


def _listeners() -> list[Address]:
    """Tell where guests' serial ports listen, by libvirt's own files."""
    found = []
    for path in (Path(_own('virtlogd_socket')).parent / 'qemu').glob('*.xml'):
        try:
            status = _root_element(path)
        except (OSError, ValueError, ElementTree.ParseError):
            continue   # its guest has ended
        for kind in ('serial', 'console'):
            for source in status.iterfind(
                    f"domain/devices/{kind}[@type='tcp']"
                    "/source[@mode='bind']"):
                # One without a number takes nothing from the others.
                with contextlib.suppress(ValueError):
                    found.append(numeric(source.get('host', ''),
                                         tcp_port(source.get('service', ''))))
    return found


@viewer_context.entrypoint
def disconnect(socket_id: bytes, seconds: float) -> bool:
    """End a viewer's connection to a guest's serial port, if it is stuck.

    :param socket_id: of the Viewer
    :param seconds: how long it has to have stopped the guest; STUCK_AFTER at
        least
    :returns: whether it was, and is disconnected
    :raises VirtlogdDriverError: the kernel refuses
    """
    seconds = max(viewer.STUCK_AFTER, seconds)
    for found in viewer.viewers(_listeners()):
        if found.socket_id == socket_id and found.stuck(seconds):
            viewer.disconnect(socket_id)
            return True
    return False
