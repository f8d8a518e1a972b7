# SPDX-License-Identifier: Apache-2.0
"""Unit tests get a libvirt connection: libvirt's own test driver.

``test:///FILE`` keeps the domains of our own XML file and raises real
libvirtError codes. What it cannot show is stubbed: versions, and domains that
go away or fail between two calls.
"""

import pathlib
import uuid

import fixtures
import libvirt

NODE = """\
<node>
  <cpu><mhz>1000</mhz><model>x</model><active>1</active><nodes>1</nodes>
  <sockets>1</sockets><cores>1</cores><threads>1</threads></cpu>
  <memory>8000000</memory>
  {domains}
</node>
"""

DOMAIN = """\
<domain type='test'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory>8192</memory>
  <os><type arch='{arch}'>hvm</type></os>
  <devices>{devices}</devices>
</domain>
"""


def domain_xml(devices: str = '', name: str = 'guest', arch: str = 'x86_64',
               guest_uuid: str | None = None) -> str:
    """A domain of libvirt's test driver with these devices."""
    guest_uuid = guest_uuid or str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return DOMAIN.format(name=name, uuid=guest_uuid, arch=arch,
                         devices=devices)


def serial(port: int = 0, service: int = 10000, host: str = '127.0.0.1',
           log: str | None = '/var/log/guest.log',
           append: str = 'on') -> str:
    """A TCP serial port, with a log unless that is None."""
    log_element = f"<log file='{log}' append='{append}'/>" if log else ''
    return (f"<serial type='tcp'><source mode='bind' host='{host}' "
            f"service='{service}'/><protocol type='raw'/>{log_element}"
            f"<target port='{port}'/></serial>")


class Connection:
    """A real connection with some answers replaced."""

    def __init__(self, connection: libvirt.virConnect,
                 libvirt_version: int, qemu_version: int) -> None:
        self._connection = connection
        self.libvirt_version = libvirt_version
        self.qemu_version = qemu_version
        self.error: libvirt.libvirtError | None = None

    def __getattr__(self, name: str) -> object:
        if self.error is not None:
            raise self.error
        return getattr(self._connection, name)

    def getLibVersion(self) -> int:
        if self.error is not None:
            raise self.error
        return self.libvirt_version

    def getVersion(self) -> int:
        if self.error is not None:
            raise self.error
        return self.qemu_version


def real_error(code: int) -> libvirt.libvirtError:
    """A libvirtError as libvirt raises it, with the code given."""
    error = libvirt.libvirtError('made for a test')
    error.err = (code, libvirt.VIR_FROM_NONE, f'error of code {code}',
                 libvirt.VIR_ERR_ERROR, None, None, None, -1, -1)
    return error


class FakeLibvirt(fixtures.Fixture):
    """``connection``: libvirt's test driver with the domains given."""

    def __init__(self, *domains: str, libvirt_version: int = 9_000_000,
                 qemu_version: int = 7_002_000) -> None:
        self._domains = domains
        self._versions = libvirt_version, qemu_version

    def _setUp(self) -> None:
        directory = self.useFixture(fixtures.TempDir()).path
        path = pathlib.Path(directory, 'node.xml')
        path.write_text(NODE.format(domains='\n'.join(self._domains)))
        # The test driver reports each error on stderr as well.
        libvirt.registerErrorHandler(lambda *_: None, None)
        connection = libvirt.open(f'test://{path}')
        self.addCleanup(connection.close)
        self.connection = Connection(connection, *self._versions)
