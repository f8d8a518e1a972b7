# SPDX-License-Identifier: Apache-2.0
"""SELinux is asked whether virtlogd may write logs, before a guest needs it.

The kernel says what its policy allows a process on an object, through files
in /sys/fs/selinux (security/selinux/selinuxfs.c): nothing is tried, and
nothing is written to the audit log.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Where the kernel answers, while there is a policy.
SELINUXFS = Path('/sys/fs/selinux')
#: What virtlogd does to a directory with logs, and to a log; the same as in
#: etc/selinux/virtlogd_nova.te.
NEEDED = {
    'dir': ('add_name', 'getattr', 'remove_name', 'search', 'write'),
    'file': ('append', 'create', 'getattr', 'open', 'rename', 'unlink'),
}
#: The type of nova's directories, which the module names.
OF_MODULE = 'nova_var_lib_t'
#: Of a virtlogd that does not run: what its unit starts it in.
_CONTEXT = 'system_u:system_r:virtlogd_t:s0'


@dataclass(frozen=True, slots=True)
class Denial:
    """An enforcing policy does not let virtlogd do this."""

    #: The directory that logs are in.
    directory: str
    #: SELinux types: of virtlogd, and of the directory or a file in it.
    source: str
    target: str
    #: ``file append``, class and permission; sorted.
    permissions: tuple[str, ...]

    def __str__(self) -> str:
        return (f'SELinux does not let virtlogd ({self.source}) write logs '
                f'in {self.directory} ({self.target}): '
                + ', '.join(self.permissions))


class Policy:
    """The policy is that of the running kernel.

    :param selinuxfs: where the kernel answers
    """

    def __init__(self, selinuxfs: Path = SELINUXFS) -> None:
        self._selinuxfs = selinuxfs

    def enforcing(self) -> bool:
        """Tell whether SELinux refuses what it does not allow."""
        try:
            return (self._selinuxfs / 'enforce').read_text().strip() == '1'
        except OSError:
            return False

    def denied(self, source: str, target: str, kind: str) -> Iterator[str]:
        """Tell which of the needed permissions are not allowed.

        :param source: context of the process
        :param target: context of the object
        :param kind: its class, a key of NEEDED
        :raises OSError: the policy knows no such context, or this process may
            not ask
        """
        allowed = int(self._ask('access', source, target, kind).split()[0], 16)
        permissions = self._selinuxfs / 'class' / kind / 'perms'
        for name in NEEDED[kind]:
            bit = int((permissions / name).read_text())
            if not allowed & 1 << (bit - 1):
                yield name

    def created(self, source: str, directory: str) -> str:
        """Give the context of a file that a process makes in a directory.

        :raises OSError: as ``denied`` does
        """
        return self._ask('create', source, directory, 'file').rstrip('\0')

    def _ask(self, question: str, source: str, target: str, kind: str) -> str:
        number = (self._selinuxfs / 'class' / kind / 'index').read_text()
        return self.transact(
            question, f'{source} {target} {number.strip()}')

    def transact(self, question: str, text: str) -> str:
        """Write into a file of selinuxfs, and read the answer there."""
        fd = os.open(self._selinuxfs / question, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
            return os.read(fd, 4096).decode()
        finally:
            os.close(fd)


def denial(directory: str, policy: Policy | None = None,
           virtlogd: str | None = None) -> Denial | None:
    """Tell what SELinux would refuse when a guest with a log there starts.

    :param directory: that logs are in
    :param policy: default: the running kernel's
    :param virtlogd: context of virtlogd; default: that of the running one
    :returns: None: nothing, or SELinux is not enforcing, or the directory has
        no label, or nobody says what is allowed
    """
    policy = policy or Policy()
    if not policy.enforcing():
        return None
    source = virtlogd or _context_of_virtlogd() or _CONTEXT
    try:
        target = os.getxattr(directory, 'security.selinux').decode(
            ).rstrip('\0')
        files = {target, policy.created(source, target)}
        denied = {
            *(('dir', name) for name in policy.denied(source, target, 'dir')),
            *(('file', name) for context in files
              for name in policy.denied(source, context, 'file'))}
    except OSError:
        return None
    if not denied:
        return None
    return Denial(directory, _type(source), _type(target),
                  tuple(' '.join(one) for one in sorted(denied)))


def _type(context: str) -> str:
    """Give ``virtlogd_t`` of ``system_u:system_r:virtlogd_t:s0``."""
    return [*context.split(':'), '', ''][2]


def _context_of_virtlogd(proc: Path = Path('/proc')) -> str | None:
    """Give the context of the virtlogd that runs; None: none does."""
    for process in proc.glob('[0-9]*'):
        try:
            # Any process may have given itself a name that is no text.
            if (process / 'comm').read_bytes() == b'virtlogd\n':
                return (process / 'attr/current').read_text().rstrip('\0\n')
        except OSError:
            continue
    return None
