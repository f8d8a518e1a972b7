# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.lab.linux_guest DIRECTORY`` builds a small real Linux.

A bootable raw disk image: the distribution's own kernel for virtual machines,
and busybox as everything else, with a shell on the first serial port. Built
without root, once; prints the path of the image.

It needs busybox-static, cpio, dosfstools, mtools and syslinux, and for the
kernel either apt-get or a kernel in /boot. The image has to be built outside
of ``tests.lab.namespace``: there is no network inside.
"""

import gzip
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Packages that stand for the newest kernel: Debian's, Ubuntu's.
_KERNEL_PACKAGES = ('linux-image-cloud-amd64', 'linux-image-virtual',
                    'linux-image-amd64', 'linux-image-generic')
_MBR = Path('/usr/lib/syslinux/mbr/mbr.bin')
_BUSYBOX = ('/bin/busybox', '/usr/bin/busybox')
_TOOLS = ('cpio', 'mcopy', 'mkfs.fat', 'syslinux')

_SECTOR = 512
_PARTITION_START = 2048     # sectors
_FAT16_LBA = 0x0e

#: What the guest says when its shell is about to start.
READY = 'guest ready'
PROMPT = 'guest# '

_INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname guest
dmesg -n 4
echo "$(uname -s) $(uname -r), $(busybox | head -n 1 | cut -d ' ' -f 1-2)"
echo "{READY} after $(cut -d ' ' -f 1 /proc/uptime) s" >/dev/ttyS0
# Not "sh -i": it asks the terminal where its cursor is.
while true; do
    setsid -c sh -c 'while printf "{PROMPT}"; read -r line; do
        eval "$line"
    done' <>/dev/ttyS0 >&0 2>&1
done
"""
_SYSLINUX_CFG = """\
SERIAL 0 115200
DEFAULT linux
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.gz
  APPEND console=ttyS0,115200 panic=5 mitigations=off
"""


class BuildError(Exception):
    """The image could not be built; the message says what is missing."""


def _run(*command: str | Path, cwd: Path | None = None,
         stdin: bytes | None = None) -> bytes:
    try:
        return subprocess.run(
            [str(part) for part in command], cwd=cwd, input=stdin, check=True,
            capture_output=True).stdout
    except subprocess.CalledProcessError as e:
        raise BuildError(f'{command[0]}: {e.stderr.decode().strip()}') from e


def _concrete(package: str) -> list[str]:
    """What a package of the kernel's names needs of the kernel itself.

    A package without a number only depends on the newest; in Debian 14 what
    that names has no kernel in it either, but depends on "linux-binary-...".
    """
    try:
        depends = _run('apt-cache', 'depends', package).decode()
    except (BuildError, FileNotFoundError):
        return []
    return re.findall(r'Depends: (linux-(?:image|binary)-\S*\d\S*)', depends)


def _extract(package: str, directory: Path) -> Path | None:
    """The kernel that a package has; None: it has none.

    :raises BuildError: it cannot be downloaded
    """
    work = directory / package
    work.mkdir()
    # apt's own user downloads, if root asks.
    work.chmod(0o755)
    _run('apt-get', 'download', package, cwd=work)
    for file in work.glob('*.deb'):
        _run('dpkg-deb', '--extract', file, work / 'content')
    return _newest(work / 'content')


def _newest(root: Path) -> Path | None:
    kernels = sorted(
        [*root.glob('boot/vmlinuz-*'),
         *root.glob('usr/lib/modules/*/vmlinuz')],
        key=lambda path: path.stat().st_mtime)
    return kernels[-1] if kernels else None


def _kernel(directory: Path) -> Path:
    """A kernel of the distribution's; the machine's own where it has none.

    :raises BuildError: there is none; with what was tried
    """
    images = next(filter(None, map(_concrete, _KERNEL_PACKAGES)), [])
    tried = []
    for package in [*images, *(more for image in images
                               for more in _concrete(image))]:
        try:
            kernel = _extract(package, directory)
        except BuildError as e:
            tried.append(f'{package} cannot be downloaded: {e}')
            continue
        if kernel is not None:
            return kernel
        tried.append(f'{package} has no kernel in it')
    if not images:
        tried = ['apt knows none of ' + ', '.join(_KERNEL_PACKAGES)
                 + ' (try "apt-get update")']
    kernel = _newest(Path('/'))
    if kernel is None:
        raise BuildError('no kernel for the guest: ' + '; '.join(
            [*tried, 'this machine has none in /boot']))
    return kernel


def _initramfs(directory: Path) -> bytes:
    busybox = next((path for path in _BUSYBOX if Path(path).exists()), None)
    if busybox is None:
        raise BuildError('busybox is missing: install busybox-static')
    root = directory / 'root'
    for name in ('bin', 'dev', 'proc', 'sys'):
        (root / name).mkdir(parents=True)
    shutil.copy2(busybox, root / 'bin' / 'busybox')
    (root / 'init').write_text(_INIT)
    (root / 'init').chmod(0o755)
    names = '\n'.join(str(path.relative_to(root))
                      for path in sorted(root.rglob('*'))) + '\n'
    archive = _run('cpio', '--create', '--format=newc', '--owner=0:0',
                   '--quiet', cwd=root, stdin=names.encode())
    return gzip.compress(archive, mtime=0)


def _disk(directory: Path, files: list[Path]) -> bytes:
    """A partition with a FAT filesystem that SYSLINUX boots."""
    size = sum(file.stat().st_size for file in files) + 4 * 1024 * 1024
    megabytes = max(17, -(-size // 2**20))      # fewer would be FAT12
    partition = directory / 'partition'
    with partition.open('wb') as file:
        file.truncate(megabytes * 2**20)
    _run('mkfs.fat', '-F', '16', '-h', str(_PARTITION_START), partition)
    _run('syslinux', '--install', partition)
    _run('mcopy', '-i', partition, *files, '::')
    content = partition.read_bytes()
    entry = bytes([0x80, 0xfe, 0xff, 0xff, _FAT16_LBA, 0xfe, 0xff, 0xff])
    entry += _PARTITION_START.to_bytes(4, 'little')
    entry += (len(content) // _SECTOR).to_bytes(4, 'little')
    mbr = (_MBR.read_bytes().ljust(446, b'\0') + entry + bytes(48)
           + b'\x55\xaa')
    return mbr.ljust(_PARTITION_START * _SECTOR, b'\0') + content


def build(directory: Path) -> Path:
    """The image's path below ``directory``; built if it is not there.

    :raises BuildError: something is missing.
    """
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    image = directory / f'linux-guest-{source[:12]}.img'
    if image.exists():
        return image
    if platform.machine() != 'x86_64':
        raise BuildError('the guest is made from this machine\'s packages, '
                         'and has to be x86_64')
    missing = [tool for tool in _TOOLS if shutil.which(
        tool, path='/usr/sbin:/sbin:/usr/bin:/bin') is None]
    if missing or not _MBR.exists():
        raise BuildError('missing: ' + ', '.join(missing or [str(_MBR)])
                         + '; "tools/setup/bindep.sh" installs it')
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as name:
        work = Path(name)
        # apt's own user downloads, if root asks.
        work.chmod(0o755)
        files = [work / 'vmlinuz', work / 'initrd.gz', work / 'syslinux.cfg']
        shutil.copyfile(_kernel(work), files[0])
        files[1].write_bytes(_initramfs(work))
        files[2].write_text(_SYSLINUX_CFG)
        new = work / image.name
        new.write_bytes(_disk(work, files))
        new.rename(image)
    return image


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(build(Path(sys.argv[1]).absolute()))
    except BuildError as e:
        print(f'{sys.argv[0]}: {e}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
