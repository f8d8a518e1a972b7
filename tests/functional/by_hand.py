# SPDX-License-Identifier: Apache-2.0
"""Tests start and end guests by hand, without nova."""

from pathlib import Path

import libvirt

from tests.lab import guest
from tests.lab.daemons import LibvirtHost


def define(host: LibvirtHost, sector: bytes, serials: list[object],
           name: str = 'guest1') -> libvirt.virDomain:
    """Define a guest with these serial ports."""
    return host.connect().defineXML(
        guest.domain_xml(host.directory, sector, serials, name=name))


def log_of(host: LibvirtHost, name: str = 'guest1') -> Path:
    """Path of a guest's log, in a directory of its own."""
    directory = host.log_directory / name
    directory.mkdir(exist_ok=True)
    return directory / 'console.log'
