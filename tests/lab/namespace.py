# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.lab.namespace COMMAND...`` runs it apart from the host.

The command gets mount, pid, network, UTS and IPC namespaces of its own:

* a private /run (no D-Bus, no systemd), and private directories where
  libvirt keeps its state, so the system's libvirt is neither seen nor touched;
* a small /dev without /dev/kvm: where KVM opens but cannot run a guest,
  libvirt would probe QEMU again for every domain;
* a loopback interface and nothing else;
* an /etc/hosts of its own (``add_host_name``): libvirt looks its host name up,
  and without a resolver that takes half a minute.

All that the command starts ends with it, whatever it does: the kernel ends
every process of a pid namespace with its first one.

Inside such a namespace the command is simply executed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

#: Where a namespace keeps what belongs to it: short paths, as the name of a
#: socket has at most 107 bytes. Only inside; the file says that we are.
DIRECTORY = Path('/run/virtlogd-lab')
_HOSTS = DIRECTORY / 'hosts'

_PRIVATE = ('/etc/libvirt', '/var/cache/libvirt', '/var/lib/libvirt',
            '/var/log/libvirt')
_DEVICES = ('full', 'null', 'random', 'tty', 'urandom', 'zero')

# linux/sched.h, linux/prctl.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1


def inside() -> bool:
    """Whether this process runs in a namespace that this module made."""
    return _HOSTS.exists()


def require() -> None:
    """:raises RuntimeError: outside of a namespace."""
    if not inside():
        raise RuntimeError(
            'this would touch the libvirt of the host: run it with '
            '"python -m tests.lab.namespace COMMAND..."')


def add_host_name(name: str, address: str = '127.0.0.1') -> None:
    """Make a host name resolve, inside."""
    require()
    line = f'{address} {name}\n'
    if line not in _HOSTS.read_text():
        with _HOSTS.open('a') as hosts:
            hosts.write(line)


def _libc(function: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f'{function}: {os.strerror(error)}')


def _mount(*args: str | Path) -> None:
    subprocess.run(['mount', *map(str, args)], check=True)


def _tmpfs(target: str | Path, mode: str = '0755') -> None:
    _mount('-t', 'tmpfs', '-o', f'mode={mode}', 'lab', target)


def _private_devices() -> None:
    new = Path('/run/dev')
    new.mkdir()
    _tmpfs(new)
    for name in _DEVICES:
        (new / name).touch()
        _mount('--bind', f'/dev/{name}', new / name)
    for name in ('pts', 'shm'):
        (new / name).mkdir()
    _mount('-t', 'devpts', '-o', 'newinstance,mode=0620,ptmxmode=0666',
           'lab', new / 'pts')
    _tmpfs(new / 'shm', '1777')
    for link, target in (('ptmx', 'pts/ptmx'), ('fd', '/proc/self/fd'),
                         ('stdin', 'fd/0'), ('stdout', 'fd/1'),
                         ('stderr', 'fd/2')):
        (new / link).symlink_to(target)
    _mount('--rbind', new, '/dev')


def _set_up() -> None:
    """In the first process of the namespaces: mounts, network, names."""
    _mount('--make-rprivate', '/')
    _mount('-t', 'proc', 'proc', '/proc')
    # /sys of this network namespace, and without the host's control groups.
    subprocess.run(['umount', '--recursive', '--lazy', '/sys'], check=False,
                   stderr=subprocess.DEVNULL)
    _mount('-t', 'sysfs', 'sysfs', '/sys')
    _tmpfs('/run')
    Path('/run/lock').mkdir()
    _private_devices()
    for path in _PRIVATE:
        Path(path).mkdir(parents=True, exist_ok=True)
        _tmpfs(path)
    DIRECTORY.mkdir()
    _HOSTS.write_text('127.0.0.1 localhost\n::1 localhost\n')
    _mount('--bind', _HOSTS, '/etc/hosts')
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    subprocess.run(['hostname', 'lab'], check=True)
    add_host_name('lab')


def _status(wait_status: int) -> int:
    """The exit status as a shell has it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def _reap_until(pid: int) -> int:
    """As the first process: adopt and reap orphans, until ``pid`` ended."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return _status(status)


def _first_process(command: Sequence[str]) -> int:
    _libc('prctl', _PR_SET_PDEATHSIG, signal.SIGKILL)
    _set_up()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _execute(command)

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    return _reap_until(pid)


def _execute(command: Sequence[str]) -> None:
    try:
        os.execvp(command[0], list(command))  # noqa: S606
    except OSError as error:
        print(f'{command[0]}: {error.strerror}', file=sys.stderr)
        os._exit(127)


def main(command: Sequence[str]) -> int:
    """Run a command in namespaces of its own; its exit status."""
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    if inside():
        _execute(command)
    if os.geteuid() != 0:
        print('tests.lab.namespace: namespaces, private daemons and guests '
              'need root; try it with sudo', file=sys.stderr)
        return 1
    try:
        _libc('unshare', _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC
              | _CLONE_NEWPID | _CLONE_NEWNET)
    except OSError as error:
        print(f'tests.lab.namespace: {error.strerror}: the kernel, or the '
              'container that this runs in, refuses namespaces to root',
              file=sys.stderr)
        return 1
    # A terminal sends SIGINT to the command as well: it decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os._exit(_first_process(command))

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    return _reap_until(pid)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
