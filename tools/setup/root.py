# SPDX-License-Identifier: Apache-2.0
"""A command runs in a root of another release of Debian or Ubuntu.

The root is made once by debootstrap, below ~/.cache/virtlogd-driver (or
$CACHE), and brought up to date each time. The command runs in a copy of the
work tree there, with mounts and processes of its own: all of them end with it,
whatever happens. At the end a table says what was there and what passed.

Packages come from where this machine's apt takes them; $MIRROR names another
place, which another distribution needs. What pip is told on this machine, and
the files that this names, are there as well.

Nothing but the standard library: it runs before anything is installed.
"""

import argparse
import ast
import contextlib
import datetime
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tools.setup import counts

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path('/usr/share/debootstrap/scripts')
#: In the root: the work tree, and what the tests have counted.
TREE = '/src'
COUNTS = '/var/tmp/virtlogd-counts'  # noqa: S108  # a root of our own
#: Both are tried, whatever becomes of the first.
EVERYTHING = ('sh', '-c', 'failed=0; ./tools/demo.sh || failed=1; '
              'PLATFORM= ./tools/test.sh && exit $failed')
#: What the root needs before tools/setup/bindep.sh can run in it.
PACKAGES = ('ca-certificates', 'python3', 'python3-venv', 'sudo')
#: The environment that goes along; the rest is this machine's.
PASSED_ON = re.compile(
    r'CI|TERM|PIP_.*|VIRTLOGD_.*|SECONDS_OF_.*|.*_proxy|SSL_CERT_FILE'
    r'|REQUESTS_CA_BUNDLE', re.IGNORECASE)
#: Each with the processes and the mounts of its own, which end with it.
APART = ('setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', '--pid',
         '--fork', '--kill-child', '--propagation', 'private')

#: Arguments: the root, "--", directories to be seen in it, "--", the command.
#: chroot does not do: nsenter, which the lab uses, leaves it.
_ENTER = """\
root=$1
shift 2
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
while [ "$1" != -- ]; do
    mkdir -p ".$1"
    mount --bind -o ro "$1" ".$1"
    shift
done
shift
mkdir -p .old
pivot_root . .old
umount --lazy /.old
cd {tree}
exec "$@"
"""


class Failed(Exception):
    """The root cannot be made or entered; the message says why."""


def main() -> int:
    args = _parse()
    try:
        with _locked(args.cache, args.name) as directory:
            if args.fresh and directory.exists():
                _remove(directory)
            if not directory.exists():
                _make(directory, args.name, args.mirror or _mirror())
            return _run(directory, args.name, args.command or EVERYTHING)
    except (Failed, OSError) as e:
        print(f'platform.sh: {e}', file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='tools/platform.sh', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fresh', action='store_true',
                        help='make the root anew')
    parser.add_argument('name', metavar='NAME', help=(
        'a release, as debootstrap knows it: trixie, sid'))
    parser.add_argument('command', metavar='COMMAND', nargs='...', help=(
        'default: ./tools/demo.sh and ./tools/test.sh'))
    args = parser.parse_args()
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    args.cache = Path(os.environ.get('CACHE')
                      or Path(home) / 'virtlogd-driver')
    args.mirror = os.environ.get('MIRROR')
    if os.geteuid() != 0:
        parser.error('a root with mounts of its own needs root; try sudo')
    if shutil.which('debootstrap') is None:
        parser.error('debootstrap is missing: install it')
    if not re.fullmatch(r'[a-z][a-z0-9.-]*', args.name) or not (
            SCRIPTS / args.name).exists():
        parser.error(f'debootstrap knows no release {args.name!r}; those '
                     f'that it knows are in {SCRIPTS}')
    return args


def _say(text: str) -> None:
    print(f'\n-- {text}', flush=True)


@contextlib.contextmanager
def _locked(cache: Path, name: str) -> Iterator[Path]:
    """The root's directory, for one run at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f'{name}.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Failed(f'{cache / name} is in use by another run: wait '
                         'for it') from e
        yield cache / name


def _remove(directory: Path) -> None:
    subprocess.run(['rm', '-rf', '--one-file-system', directory], check=True)


# The root


def _mirror() -> str:
    """Where this machine's apt takes its own release from."""
    release = re.search(r'^VERSION_CODENAME=(\S+)$',
                        Path('/etc/os-release').read_text(), re.MULTILINE)
    known = subprocess.run(
        ['apt-get', 'indextargets', '--format', '$(CODENAME) $(REPO_URI)',
         'Created-By: Packages'], check=True, capture_output=True,
        text=True).stdout
    for line in known.splitlines():
        name, _, address = line.partition(' ')
        if release and name == release[1]:
            return address
    raise Failed('apt names no mirror of this release (try "apt-get '
                 'update"); MIRROR=ADDRESS names one')


def _make(directory: Path, name: str, mirror: str) -> None:
    _say(f'Making {directory}: a few minutes')
    new = directory.with_name(f'{name}.new')
    log = directory.with_name(f'{name}.log')
    _remove(new)
    _logged(log, 'debootstrap', [
        *APART, 'debootstrap', '--variant=minbase',
        f'--include={",".join(PACKAGES)}', name, str(new), mirror])
    # Installing a daemon does not start it.
    policy = new / 'usr/sbin/policy-rc.d'
    policy.write_text('#!/bin/sh\nexit 101\n')
    policy.chmod(0o755)
    new.rename(directory)


def _logged(log: Path, what: str, command: Sequence[str],
            environment: Mapping[str, str] | None = None) -> None:
    with log.open('wb') as output:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, env=environment)
    if done.returncode:
        end = log.read_text(errors='replace').splitlines()[-5:]
        raise Failed(f'{what} failed. All that was said is in {log}; it ends '
                     'with:\n' + '\n'.join(end))


def _take_settings(directory: Path) -> list[Path]:
    """Tell apt and pip in the root what they are told here.

    :returns: directories of this machine that pip is told of
    """
    told = subprocess.run(['apt-config', 'dump'], check=True,
                          capture_output=True, text=True).stdout
    (directory / 'etc/apt/apt.conf.d/99host').write_text(''.join(
        f'{line}\n' for line in told.splitlines()
        if line.startswith('Acquire::') and not line.endswith(' "";')))
    files = [Path('/etc/resolv.conf'), Path('/etc/pip.conf'),
             Path('/etc/xdg/pip/pip.conf')]
    directories = []
    for path in _named_by_pip():
        (files if path.is_file() else directories).append(path)
    for file in files:
        if file.exists():
            copy = directory / str(file).lstrip('/')
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            shutil.copyfile(file, copy)
    return sorted(set(directories))


def _named_by_pip() -> Iterator[Path]:
    """What is on this machine of pip's configuration and environment."""
    told = subprocess.run(
        [sys.executable, '-m', 'pip', 'config', 'list'], check=False,
        capture_output=True, text=True).stdout
    for line in told.splitlines():
        value = ast.literal_eval(line.partition('=')[2])
        for word in value.split():
            path = Path(word.removeprefix('file://'))
            if path.is_absolute() and path.exists():
                # An index and what it lists are side by side.
                yield path.parent if path.name == 'simple' else path


def _copy_tree(directory: Path) -> None:
    """The work tree as it is, without what git ignores.

    What the last run has installed in its copy stays.
    """
    tree = directory / TREE.lstrip('/')
    tree.mkdir(exist_ok=True)
    for entry in tree.iterdir():
        if not entry.name.startswith('.venv'):
            _remove(entry)
    listed = subprocess.run(
        ['git', 'ls-files', '-z', '--cached', '--others',
         '--exclude-standard'], cwd=ROOT, check=True,
        capture_output=True).stdout
    for name in map(os.fsdecode, filter(None, listed.split(b'\0'))):
        if os.path.lexists(ROOT / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)


# What runs in it


def _run(directory: Path, name: str, command: Sequence[str]) -> int:
    shared = _take_settings(directory)

    def enter(*command: str) -> list[str]:
        return [*APART, '--uts', '--ipc', 'sh', '-ec',
                _ENTER.format(tree=TREE), 'enter', str(directory), '--',
                *map(str, shared), '--', *command]

    environment = {
        'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        'HOME': '/root', 'LANG': 'C.UTF-8',
        'DEBIAN_FRONTEND': 'noninteractive',
        **{name: value for name, value in os.environ.items()
           if PASSED_ON.fullmatch(name)},
        counts.VARIABLE: COUNTS}
    counted = directory / COUNTS.lstrip('/')
    counted.unlink(missing_ok=True)
    _copy_tree(directory)
    _say(f'{name}: its packages')
    try:
        # Of a release that moves the newest is what is asked for.
        _logged(directory.with_name(f'{name}.log'), 'installing packages',
                enter('sh', '-ec', 'apt-get -qq update\n'
                      'apt-get -qq --yes dist-upgrade\n'
                      'exec tools/setup/bindep.sh'), environment)
        begin = datetime.datetime.now(datetime.UTC)
        _say(f'{name}: {" ".join(command)}')
        status = subprocess.run(enter(*command), check=False,
                                env=environment).returncode
        _say(f'{name}: status {status}')
        versions = dict(_versions(enter, environment))
    finally:
        for left in (directory / 'tmp').iterdir():
            _remove(left)
    found = counts.read(counted)
    print('\n'.join(_report(name, versions, begin, found)))
    for group, of_group in found.items():
        counts.add(f'{name}, {group}', of_group)
    return status


def _versions(enter: Callable[..., list[str]],
              environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the tests ran on there; "none" for what is not there."""
    for what, command in (
            ('Python', '.venv/bin/python --version || python3 --version'),
            ('libvirt', 'libvirtd --version || virtqemud --version'),
            ('QEMU', 'qemu-system-x86_64 --version'),
            ('nova', '.venv/bin/python -m pip --disable-pip-version-check '
                     'show nova')):
        said = subprocess.run(
            enter('sh', '-c', command), check=False, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        number = re.search(r'\d+\.\d+(\.\d+)?', said)
        yield what, number[0] if number else 'none'


def _report(name: str, versions: dict[str, str], begin: datetime.datetime,
            found: dict[str, counts.Counts]) -> Iterator[str]:
    """One table, in reStructuredText."""
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=12'], cwd=ROOT,
        check=False, capture_output=True, text=True).stdout.strip()
    platform = (f'{name}: ' + ', '.join(
        f'{what} {number}' for what, number in versions.items()))
    yield ''
    yield f'{platform}; {begin:%Y-%m-%d}, commit {commit}'
    if found:
        yield ''
        yield from counts.table(counts.rows(found))


if __name__ == '__main__':
    sys.exit(main())
