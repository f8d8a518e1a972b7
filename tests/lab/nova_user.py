# SPDX-License-Identifier: Apache-2.0
"""nova's user is not root and gets its helpers by sudo and rootwrap.

Only within ``tests.lab.namespace``: the user, its sudoers file and /etc/nova
are in a copy of /etc that a mount namespace of their own has.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import fixtures

from tests.lab import namespace

#: As packages of nova call it.
NAME = 'nova'

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.prefix) / 'bin'
_FILTERS = 'etc/nova/rootwrap.d/virtlogd-driver.filters'
_ROOTWRAP_CONF = f"""\
[DEFAULT]
filters_path = /etc/nova/rootwrap.d
exec_dirs = {_BIN}
"""
#: As nova's packages have it, but for where the environment is.
_SUDOERS = f"""\
Defaults:{NAME} !requiretty
Defaults:{NAME} secure_path = "{_BIN}:/usr/sbin:/usr/bin:/sbin:/bin"
{NAME} ALL = (root) NOPASSWD: {_BIN}/nova-rootwrap /etc/nova/rootwrap.conf *
"""


class NovaUser(fixtures.Fixture):
    """A system user that may do what nova's may, and nothing else.

    :ivar etc: its /etc, to be changed.
    :ivar uid: its number.

    :param conf: nova.conf. It need not say how the helpers are started.
    :param visible: directories that it is to see whatever is above them.
    """

    def __init__(self, conf: str, visible: Iterable[Path]) -> None:
        super().__init__()
        self._conf = conf
        self._visible = [*visible, _ROOT, Path(sys.prefix),
                         Path(sys.base_prefix)]

    def _setUp(self) -> None:
        namespace.require()
        directory = namespace.DIRECTORY / 'nova-user'
        directory.mkdir()
        self.addCleanup(shutil.rmtree, directory)
        self.etc = directory / 'etc'
        subprocess.run(['cp', '--archive', '/etc', self.etc], check=True)
        self._configure()
        self._make_namespace(directory)
        subprocess.run(self._inside(
            'useradd', '--system', '--no-create-home', '--shell', '/bin/sh',
            '--home-dir', '/nonexistent', NAME), check=True)
        passwd = (self.etc / 'passwd').read_text().splitlines()
        (self.uid,) = [int(line.split(':')[2]) for line in passwd
                       if line.startswith(f'{NAME}:')]

    def _configure(self) -> None:
        for name in ('passwd', 'shadow', 'group', 'gshadow'):
            # One that is there already is another's.
            file = self.etc / name
            if file.exists():
                file.write_text(''.join(
                    line for line in file.read_text().splitlines(True)
                    if not line.startswith(f'{NAME}:')))
        shutil.rmtree(self.etc / 'nova', ignore_errors=True)
        filters = self.etc / 'nova' / 'rootwrap.d'
        filters.mkdir(parents=True)
        shutil.copy(_ROOT / _FILTERS, filters)
        (self.etc / 'nova' / 'rootwrap.conf').write_text(_ROOTWRAP_CONF)
        (self.etc / 'nova' / 'nova.conf').write_text(self._conf)
        self.sudoers = self.etc / 'sudoers.d' / NAME
        self.sudoers.write_text(_SUDOERS)
        self.sudoers.chmod(0o440)

    def _make_namespace(self, directory: Path) -> None:
        script = ['mount --make-rprivate /',
                  f'mount --bind {self.etc} /etc',
                  *_opened(self._visible, directory),
                  'echo ready', 'exec sleep infinity']
        self._holder = subprocess.Popen(
            ['unshare', '--mount', 'sh', '-ec', '\n'.join(script)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.addCleanup(self._holder.wait)
        self.addCleanup(self._holder.kill)
        assert self._holder.stdout is not None
        self.addCleanup(self._holder.stdout.close)
        if self._holder.stdout.readline() != b'ready\n':
            raise RuntimeError('no namespace for the user of nova')

    @property
    def pid(self) -> int:
        """A process in its namespace."""
        return self._holder.pid

    def _inside(self, *command: str | os.PathLike[str]) -> list[str]:
        return ['nsenter', f'--target={self._holder.pid}', '--mount',
                *map(os.fspath, command)]

    def run(self, *command: str, seconds: float = 120.0
            ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, to its end."""
        return subprocess.run(
            self._as_user(*command), check=False, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, timeout=seconds,
            env=self._environment())

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Run a command as this user, to the end of the fixture."""
        with log.open('wb') as file:
            process = subprocess.Popen(
                self._as_user(*command), stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, env=self._environment())
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def _as_user(self, *command: str) -> list[str]:
        return self._inside(
            'runuser', '--user', NAME, '--', 'env', '--chdir=/',
            f'PATH={_BIN}:/usr/bin:/bin', *command)

    def _environment(self) -> dict[str, str]:
        return {'LANG': 'C.UTF-8', 'PATH': os.environ['PATH'],
                'PYTHONPATH': str(_ROOT)}


def _opened(wanted: Iterable[Path], directory: Path) -> Iterator[str]:
    """Commands after which directories are seen by all, and no other.

    Homes, and the temporary directories of tests, are closed to others: what
    is closed gets an empty one over it, with what is wanted in its place.
    """
    by_closed: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(one.resolve() for one in wanted):
        for above in reversed(path.parents):
            if not above.stat().st_mode & stat.S_IXOTH:
                by_closed.setdefault(above, []).append(path)
                break
    for number, (closed, paths) in enumerate(by_closed.items()):
        kept = [(directory / f'{number}-{index}', path)
                for index, path in enumerate(paths)]
        for aside, path in kept:
            yield f'mkdir {aside}; mount --bind {path} {aside}'
        yield f'mount -t tmpfs -o mode=0755 lab {closed}'
        for aside, path in kept:
            yield f'mkdir -p {path}; mount --bind {aside} {path}'
