# SPDX-License-Identifier: Apache-2.0
"""The driver runs without virtlogd, and with a mock for libvirt.

nova's tests have neither; what this driver asks of them is answered here, so
that everything else can be tested.
"""

from typing import Any

from nova.tests.fixtures import libvirt as fakelibvirt

from virtlogd_driver.node import hypervisor, watch
from virtlogd_driver.virtlogd import conf_files, health

_asked = hypervisor.console_capability


class _NoTask:

    def start(self) -> None:
        """Nothing to watch."""

    def stop(self) -> None:
        """Nothing to watch."""


def _capability(connection: Any,
                stdio_handler: str) -> hypervisor.ConsoleCapability:
    """The version of a mock is no number: such a host is capable."""
    versions = [getattr(connection, name, int)()
                for name in ('getLibVersion', 'getVersion')]
    if all(isinstance(v, int) and v for v in versions):
        return _asked(connection, stdio_handler)
    return hypervisor.ConsoleCapability(
        hypervisor.MIN_LIBVIRT_VERSION, hypervisor.MIN_QEMU_VERSION,
        stdio_handler)


def _nothing(*_: Any, **__: Any) -> None:
    """All is well with virtlogd."""


def _state(domain: Any, _flags: int = 0) -> list[int]:
    """libvirt's virDomain.state, which nova's fake does not have."""
    return [domain.info()[0], 0]


_list_domains = fakelibvirt.Connection.listAllDomains
_xml = fakelibvirt.Domain.XMLDesc


def _list_all_domains(connection: Any, flags: int | None = None) -> Any:
    """No flags are all domains in libvirt, and an error in nova's fake."""
    return _list_domains(connection, flags or (
        fakelibvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        | fakelibvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE))


def _xml_desc(domain: Any, flags: int = 0) -> str:
    """nova's fake wants flags, which libvirt does not.

    libvirt would have refused its TCP port; its log is in no directory.
    """
    xml: str = _xml(domain, flags)
    return xml.replace('host="-1" service="-1"',
                       'host="127.0.0.1" service="10000"').replace(
                           "'dummy.log'", "'/nowhere/dummy.log'")


def without_virtlogd() -> None:
    """No virtlogd is asked, and none is watched."""
    health.check_ready = _nothing
    # nova's tests replace open() for good.
    conf_files.max_backups = lambda _: 3
    health.wait_until_closed = _nothing
    watch.health_task = lambda *_, **__: _NoTask()


def install() -> None:
    without_virtlogd()
    # As nova's fixture does with nova's own modules.
    hypervisor.libvirt = fakelibvirt
    fakelibvirt.Connection.listAllDomains = _list_all_domains
    fakelibvirt.Domain.XMLDesc = _xml_desc
    fakelibvirt.Domain.state = _state
    hypervisor.console_capability = _capability
