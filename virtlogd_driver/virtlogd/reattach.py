# SPDX-License-Identifier: Apache-2.0
"""A dead log is brought back without restarting the guest.

libvirt has no call for it, so three things that it does at a guest's start
are done anew: virtlogd opens the log and returns a pipe, QEMU gets the pipe
as an fdset, and the character device is changed in place, for one that logs
there. libvirt marks the domain as tainted (custom-monitor), for as long as
its QEMU process lives.

What the guest wrote while the log was dead is lost. What it writes meanwhile
is not: the device is changed for one that only logs first, as the TCP port
has to be free before a new device can listen on it. A viewer is disconnected.

A log whose file is not at its path any more (unlinked.py) is let go first:
the device drops it, virtlogd closes it, and a new file is begun.
"""

import contextlib
import itertools
import json
import os
import socket
import struct
import time
import uuid
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu
from lxml import etree

from virtlogd_driver import exception, peer
from virtlogd_driver.virtlogd import privileged, unlinked, viewer
from virtlogd_driver.virtlogd.bounded import Run, direct
from virtlogd_driver.virtlogd.disk import DISKS, Disks
from virtlogd_driver.virtlogd.port import is_open, numeric, tcp_port

_FD = struct.Struct('i')
#: Those that wait to be looked at, of strangers included.
_CONNECTIONS = 16

#: fdsets of libvirt count from 0; ours start where libvirt's never get.
_FIRST_FDSET = 1 << 20
#: Seconds to wait for the TCP port to be free again.
_PORT_TIMEOUT = 5.0
_REMEDY = ('A new QEMU process has a live log again: managed save and start '
           '(the guest does not notice), or a live migration.')
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


@dataclass(frozen=True, slots=True)
class Device:
    """A device is what a guest's QEMU process has."""

    #: QEMU's id of it.
    chardev: str
    #: What chardev-change takes, without the log.
    backend: dict[str, Any]
    #: The pseudo terminal's path; None for TCP.
    pty: str | None

    def listens(self) -> bool:
        """Tell whether it has its listener, as far as the kernel tells."""
        if self.pty is not None:
            return is_open(self.pty)
        address = self.backend['data'].get('addr', {})
        if address.get('type') == 'unix':
            return os.path.exists(address['data']['path'])
        if address.get('type') != 'inet':
            return True
        try:
            listener = numeric(address['data']['host'],
                               tcp_port(address['data']['port']))
            return bool(viewer.listening([listener]))
        except (OSError, ValueError):
            return True


class _MonitorError(Exception):
    """QEMU refuses a command."""


_REFUSALS = (_MonitorError, libvirt.libvirtError)


def find_device(xml: str, log: str) -> Device:
    """Give the device of a running guest that has this log.

    :param xml: the live XML of the domain
    :param log: the path in its ``<log file>``
    :raises ReattachFailed: there is none, or it is neither a listener, a
        pseudo terminal nor a file
    """
    root = etree.fromstring(xml.encode(), _PARSER)
    for element in root.iterfind('devices/*'):
        if (element.tag not in ('serial', 'console')
                or _log_path(element) != log):
            continue
        alias = element.find('alias')
        if alias is None:
            raise exception.ReattachFailed(
                f'The guest of {log} does not run: its log starts with it.')
        chardev = f'char{alias.get("name")}'
        source = element.find('source')
        kind = element.get('type')
        if kind == 'pty':
            path = source.get('path') if source is not None else None
            return Device(chardev, {'type': 'pty', 'data': {}}, path)
        if kind == 'file':
            return Device(chardev, {'type': 'file', 'data': {}}, None)
        if kind in ('tcp', 'unix') and source is not None:
            return Device(chardev, _socket_backend(element, source, log),
                          None)
        raise exception.ReattachFailed(
            f'The device of {log} is of type {kind}, which cannot be attached '
            f'again. {_REMEDY}')
    raise exception.ReattachFailed(f'The guest has no device with log {log}.')


def _log_path(element: etree._Element) -> str | None:
    log, source = element.find('log'), element.find('source')
    path: str | None = None
    if log is not None:
        path = log.get('file')
    elif element.get('type') == 'file' and source is not None:
        path = source.get('path')
    return path


def _socket_backend(element: etree._Element, source: etree._Element,
                    log: str) -> dict[str, Any]:
    protocol = element.find('protocol')
    protocol_type = protocol.get('type') if protocol is not None else 'raw'
    if (source.get('mode') != 'bind' or source.get('tls') == 'yes'
            or protocol_type not in ('raw', 'telnet')):
        raise exception.ReattachFailed(
            f'The device of {log} uses TLS, {protocol_type}, or '
            f'connects out; that cannot be attached again. {_REMEDY}')
    address = {'type': 'inet', 'data': {
        'host': source.get('host'), 'port': source.get('service')}}
    if element.get('type') == 'unix':
        address = {'type': 'unix', 'data': {'path': source.get('path')}}
    return {'type': 'socket', 'data': {
        'addr': address,
        'server': True, 'wait': False,
        'telnet': protocol_type == 'telnet'}}


def _qmp(domain: libvirt.virDomain, command: str,
         files: list[int] | None = None, **arguments: object) -> Any:
    request = json.dumps({
        'execute': command, 'arguments': {
            name.replace('_', '-'): value
            for name, value in arguments.items()}})
    if files:
        answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(
            domain, request, files, 0)
    else:
        answer = libvirt_qemu.qemuMonitorCommand(domain, request, 0)
    reply = json.loads(answer)
    if 'error' in reply:
        raise _MonitorError(f'{command}: {reply["error"].get("desc")}')
    return reply.get('return')


def _change(domain: libvirt.virDomain, chardev: str,
            backend: dict[str, Any], logfile: str | None) -> Any:
    data = dict(backend['data'])
    if backend['type'] == 'file':
        if logfile is None:
            backend = {'type': 'null'}
        else:
            data = {'out': logfile, 'append': True}
    elif logfile is not None:
        data |= {'logfile': logfile, 'logappend': True}
    return _qmp(domain, 'chardev-change', id=chardev,
                backend={'type': backend['type'], 'data': data})


def attach(domain: libvirt.virDomain, device: Device, pipe: int) -> str:
    """Let a running guest's device log into a pipe.

    Blocks, for some milliseconds as a rule.

    :param pipe: descriptor of the pipe's write end
    :returns: what an operator should know, or an empty string
    :raises ReattachFailed: the device is as it was
    """
    _check_can_listen(domain, device)
    try:
        fdset = _free_fdset(_qmp(domain, 'query-fdsets'))
        _add_fd(domain, fdset, pipe)
        try:
            note = _exchange(domain, device, f'/dev/fdset/{fdset}')
        except BaseException:
            # What has failed before says more.
            with contextlib.suppress(*_REFUSALS):
                _qmp(domain, 'remove-fd', fdset_id=fdset)
            raise
        # The device holds a duplicate; without one, the pipe closes.
        _qmp(domain, 'remove-fd', fdset_id=fdset)
        return note
    except _REFUSALS as e:
        raise exception.ReattachFailed(
            f'Device {device.chardev} of guest {domain.UUIDString()} could '
            f'not be attached to its log again ({e}). {_REMEDY}') from e


def _check_can_listen(domain: libvirt.virDomain, device: Device) -> None:
    """Refuse a unix socket: libvirt gives QEMU the listener, so it may not be
    allowed to make one by itself.

    :raises ReattachFailed: it is not; nothing was touched
    """
    address = device.backend['data'].get('addr', {})
    if address.get('type') != 'unix':
        return
    path = os.path.join(os.path.dirname(address['data']['path']), '.v')
    try:
        _qmp(domain, 'chardev-add', id='virtlogd-driver', backend={
            'type': 'socket', 'data': {
                'addr': {'type': 'unix', 'data': {'path': path}},
                'server': True, 'wait': False}})
        _qmp(domain, 'chardev-remove', id='virtlogd-driver')
    except _REFUSALS as e:
        raise exception.ReattachFailed(
            f'QEMU may not listen in {os.path.dirname(path)} ({e}), where '
            f'the console of guest {domain.UUIDString()} is; its log is not '
            f'attached again. {_REMEDY}') from e


def _free_fdset(fdsets: list[dict[str, Any]]) -> int:
    """Find a number for an fdset. QEMU keeps empty ones; those serve again."""
    taken = {one['fdset-id'] for one in fdsets if one['fds']}
    return next(number for number in itertools.count(_FIRST_FDSET)
                if number not in taken)


def _add_fd(domain: libvirt.virDomain, fdset: int, pipe: int) -> None:
    try:
        _qmp(domain, 'add-fd', [pipe], fdset_id=fdset)
    except _MonitorError:
        # QEMU has received the pipe all the same, and keeps it until it is
        # sent another descriptor; virtlogd would take the log for alive.
        with open(os.devnull, 'rb') as null:
            _qmp(domain, 'getfd', [null.fileno()], fdname='virtlogd-driver')
        _qmp(domain, 'closefd', fdname='virtlogd-driver')
        raise


def _exchange(domain: libvirt.virDomain, device: Device,
              logfile: str) -> str:
    if device.backend['type'] == 'file':
        _change(domain, device.chardev, device.backend, logfile)
        return ''
    try:
        _change(domain, device.chardev, {'type': 'null', 'data': {}}, logfile)
        result = _open_again(domain, device, logfile)
    except BaseException:
        _restore(domain, device)
        raise
    pty = (result or {}).get('pty')
    if device.pty is not None and pty != device.pty:
        return (f'its console moved from {device.pty} to {pty}, which '
                'libvirt does not know: virsh console works again after the '
                'next start of the guest')
    return ''


def _restore(domain: libvirt.virDomain, device: Device) -> None:
    """Restore what it was before: interactive without a log.

    Where libvirt fails, rather than QEMU, it is not known how far QEMU got;
    it makes a new device before it drops the old one.
    """
    try:
        if _is_null(domain, device):
            _open_again(domain, device, None)
    except _REFUSALS as e:
        raise _MonitorError(
            f'{e}; its interactive console is gone, it is not interactive '
            f'until "virtlogd-console reattach {domain.name()}" opens it '
            'again, or until its next start') from e


def _is_null(domain: libvirt.virDomain, device: Device) -> bool:
    """Tell whether QEMU has the device that is there only meanwhile."""
    return {one['label']: one['filename']
            for one in _qmp(domain, 'query-chardev')
            }.get(device.chardev) == 'null'


def _open_listener(domain: libvirt.virDomain, device: Device) -> None:
    """End what an attempt left that was cut off; the log is dead after it.

    :raises ReattachFailed: the device is as it was
    """
    try:
        if not _is_null(domain, device):
            raise exception.ReattachFailed(
                f'QEMU says that device {device.chardev} is open, and the '
                'kernel that it is not where libvirt takes it to be. Run this '
                'where the guest runs. A pseudo terminal that has moved is '
                'found again after the next start of the guest.')
        _open_again(domain, device, None)
        for fdset in _qmp(domain, 'query-fdsets'):
            if fdset['fdset-id'] >= _FIRST_FDSET and fdset['fds']:
                _qmp(domain, 'remove-fd', fdset_id=fdset['fdset-id'])
    except _REFUSALS as e:
        raise exception.ReattachFailed(
            f'The interactive console of guest {domain.UUIDString()} could '
            f'not be opened again ({e}). {_REMEDY}') from e


def _let_go(domain: libvirt.virDomain, device: Device) -> None:
    """Have the device drop its log, so that virtlogd closes it.

    :raises ReattachFailed: the device is as it was, unless the message says
        that its interactive console is gone
    """
    _check_can_listen(domain, device)
    try:
        if not _qmp(domain, 'query-status')['running']:
            raise exception.ReattachFailed(
                f'Guest {domain.UUIDString()} is paused, and its QEMU keeps '
                'the old log open as long as it is: resume it first.')
        for fdset in _fdsets_of_log(domain, device):
            _qmp(domain, 'remove-fd', fdset_id=fdset)
        try:
            _change(domain, device.chardev, {'type': 'null', 'data': {}},
                    None)
            _open_again(domain, device, None)
        except BaseException:
            _restore(domain, device)
            raise
    except _REFUSALS as e:
        raise exception.ReattachFailed(
            f'Device {device.chardev} of guest {domain.UUIDString()} could '
            f'not be parted from its old log ({e}). {_REMEDY}') from e


def _fdsets_of_log(domain: libvirt.virDomain, device: Device) -> list[int]:
    """Tell where QEMU keeps what libvirt gave it for the log of a device.

    libvirt calls it by the device's alias (src/qemu/qemu_command.c, since
    8.1).

    :raises ReattachFailed: it cannot be told which it is
    """
    alias = device.chardev.removeprefix('char')
    names = (f'{alias}-log', f'{alias}-source')
    found = []
    for fdset in _qmp(domain, 'query-fdsets'):
        known = {fd.get('opaque') for fd in fdset['fds']}
        if fdset['fdset-id'] < _FIRST_FDSET and None in known:
            raise exception.ReattachFailed(
                'libvirt does not say for what it gave QEMU descriptors (it '
                f'is older than 8.1). {_REMEDY}')
        if known & set(names):
            found.append(fdset['fdset-id'])
    return found


def _open_again(domain: libvirt.virDomain, device: Device,
                logfile: str | None) -> Any:
    """Go back to the backend; its port may take a moment to be free."""
    deadline = time.monotonic() + _PORT_TIMEOUT
    while True:
        try:
            return _change(domain, device.chardev, device.backend, logfile)
        except _MonitorError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _open_pipe(socket_path: str, domain: str, name: str, log: str,
               timeout: float) -> int:
    """Have virtlogd open the log; the descriptor of its pipe."""
    receiver = f'{privileged.RECEIVER}{uuid.uuid4()}'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(timeout)
        listener.bind(f'\0{receiver}')
        listener.listen(_CONNECTIONS)
        privileged.open_log(socket_path, domain, name, log, receiver, timeout)
        # It has been sent by now.
        listener.setblocking(False)
        for _ in range(_CONNECTIONS + 1):
            with contextlib.suppress(BlockingIOError):
                pipe = _take_pipe(listener)
                if pipe is not None:
                    return pipe
    raise exception.ReattachFailed(
        f'The pipe of {log} did not come to {receiver}: somebody else '
        'connects there. Try it again.')


def _take_pipe(listener: socket.socket) -> int | None:
    """Tell what a connection brings; None: it is not the helper's.

    Anybody in the same network namespace can connect: a descriptor of his
    would be given to QEMU, to write the guest's output to.
    """
    channel, _ = listener.accept()
    with channel:
        channel.setblocking(False)
        _, user = peer.credentials(channel)
        if user not in (0, os.geteuid()):
            return None
        # A program that is started meanwhile would keep the log open.
        # socket.recv_fds does not heed its flags.
        _, ancillary, _, _ = channel.recvmsg(
            1, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int(_FD.unpack_from(data)[0])
    return None


def reattach(domain: libvirt.virDomain, log: str, socket_path: str,
             timeout: float, run: Run[Any] = direct,
             disks: Disks = DISKS) -> str:
    """Bring the dead log of a running guest back.

    :param domain: the guest, of a local libvirt connection
    :param log: the path in its ``<log file>``
    :param socket_path: virtlogd's socket
    :param timeout: seconds for virtlogd to answer each time
    :param run: runs what blocks in libvirt
    :param disks: asks file systems
    :returns: what an operator should know, or an empty string; also where
        the log is alive already, and the device listens
    :raises ReattachFailed: the guest is as it was, unless the message says
        that its interactive console is gone
    :raises VirtlogdError: virtlogd refuses, is down or hung
    """
    try:
        name, domain_uuid, xml = run(_look_at, domain)
    except libvirt.libvirtError as e:
        raise exception.ReattachFailed(
            f'The guest of {log} cannot be looked at: {e}.') from e
    state = _log_state(socket_path, name, log, timeout)
    device = find_device(xml, log)
    elsewhere = (state == privileged.OPEN
                 and _is_unlinked(socket_path, log, timeout, disks))
    if state == privileged.OPEN and device.listens() and not elsewhere:
        return ''
    if state == privileged.FILE:
        raise exception.ReattachFailed(
            f'{log} is written by QEMU itself: set stdio_handler to "logd" in '
            f'qemu.conf and restart libvirtd (or virtqemud). {_REMEDY}')
    if not hasattr(libvirt_qemu, 'qemuMonitorCommandWithFiles'):
        raise exception.ReattachFailed(
            'libvirt-python is older than 8.2, and cannot give QEMU a '
            f'descriptor: install a newer one. {_REMEDY}')
    try:
        # Where that hangs, each attempt would cost the privileged helper one
        # of its threads, until it answers nobody.
        disks.ask(log, os.path.lexists, log)
    except exception.DiskStalled as e:
        raise exception.ReattachFailed(str(e)) from e
    if state == privileged.OPEN:
        run(_let_go if device.listens() else _open_listener, domain, device)
        _wait_until_closed(socket_path, name, log, timeout)
    pipe = _open_pipe(socket_path, domain_uuid, name, log, timeout)
    try:
        note = str(run(attach, domain, device, pipe))
    finally:
        os.close(pipe)
    if _log_state(socket_path, name, log, timeout) != privileged.OPEN:
        raise exception.ReattachFailed(
            f'QEMU took {log}, but virtlogd does not write it. {_REMEDY}')
    if elsewhere and _is_unlinked(socket_path, log, timeout, disks):
        raise exception.ReattachFailed(
            f'virtlogd writes {log} anew, but the file is not to be seen '
            'here. Run this where virtlogd runs.')
    return note


def _is_unlinked(socket_path: str, log: str, timeout: float,
                 disks: Disks) -> bool:
    """Tell whether virtlogd writes a log into a file that is not at its path.

    :raises ReattachFailed: its directory is gone, or does not answer
    """
    def positions(logs: list[str]) -> list[tuple[int, int]]:
        return [(inode, offset) for inode, offset in privileged.positions(
            socket_path, logs, timeout)]

    directory = os.path.dirname(log)
    try:
        if not unlinked.is_unlinked(log, positions, disks):
            return False
        if disks.ask(log, os.path.isdir, directory):
            return True
    except exception.DiskStalled as e:
        raise exception.ReattachFailed(str(e)) from e
    raise exception.ReattachFailed(
        f'{directory} is not there: no log can be begun in it. Make it, with '
        'its former owner.')


def _look_at(domain: libvirt.virDomain) -> tuple[str, str, str]:
    """Give a guest's name, UUID and XML."""
    return domain.name(), domain.UUIDString(), domain.XMLDesc()


def _wait_until_closed(socket_path: str, name: str, log: str,
                       timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while _log_state(socket_path, name, log, timeout) == privileged.OPEN:
        if time.monotonic() > deadline:
            raise exception.ReattachFailed(
                f'Something else still writes to {log}: it is not opened '
                f'again. {_REMEDY}')
        time.sleep(0.05)


def _log_state(socket_path: str, name: str, log: str, timeout: float) -> str:
    state, reason, answers = privileged.probe(
        socket_path, [(name, log)], timeout)
    if state == privileged.UP:
        return str(answers[0])
    raise {privileged.DOWN: exception.VirtlogdDown,
           privileged.HUNG: exception.VirtlogdHung}.get(
               state, exception.VirtlogdError)(reason)
