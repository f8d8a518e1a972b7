# SPDX-License-Identifier: Apache-2.0
"""The options object reads nova's configuration, as far as consoles need it.

The collaborators of the driver are given this object, and read no
configuration themselves; a test gives them any object with these attributes.
"""

import contextlib
from typing import Any

from oslo_log import log as logging

from virtlogd_driver import exception
from virtlogd_driver.node import hypervisor
from virtlogd_driver.node.watch import Relay
from virtlogd_driver.relay import settings

LOG = logging.getLogger(__name__)


class Options:
    """Options have the names that this project has for them.

    An option is read when it is asked for, so a value that nova reloads
    counts from then on.
    """

    def __init__(self, conf: Any) -> None:
        """
        :param conf: nova's ``CONF``, with the options of conf.py registered
        """
        self._conf = conf

    def check(self) -> None:
        """Read each option of ``[virtlogd]``, so a bad value fails at once.

        An address that this host does not have may come later, as its network
        does: that is said, and no guest gets a serial port until then.

        :raises ValueError: oslo.config's, naming the option
        :raises InvalidOption: guests cannot be relayed on these addresses
        """
        for option in self._conf.virtlogd:
            getattr(self._conf.virtlogd, option)
        if self.serial_console and self.virtlogd.relay:
            self._check_relay()
        if self.serial_console:
            try:
                hypervisor.is_free(self.proxyclient_address, 0)
            except exception.InvalidAddress as e:
                LOG.error('%s Until then guests with serial consoles do not '
                          'start.', e)

    def _check_relay(self) -> None:
        """:raises InvalidOption: see relay/settings.py"""
        # A name may not resolve yet: the relay says so.
        with contextlib.suppress(exception.InvalidAddress):
            settings.check_inner(self.virtlogd.relay_guest_address,
                                 settings.check_outer(
                                     self.proxyclient_address))

    @property
    def virtlogd(self) -> Any:
        """Our own group, ``[virtlogd]``: see conf.py."""
        return self._conf.virtlogd

    @property
    def host(self) -> str:
        """The name of this compute host, as nova's database has it."""
        return str(self._conf.host)

    @property
    def instances_path(self) -> str:
        """Path of the directory that has each instance's directory."""
        return str(self._conf.instances_path)

    @property
    def virt_type(self) -> str:
        """"kvm", "qemu", "lxc" or "parallels"."""
        return str(self._conf.libvirt.virt_type)

    @property
    def serial_console(self) -> bool:
        """Whether guests have interactive serial consoles."""
        return bool(self._conf.serial_console.enabled)

    @property
    def port_range(self) -> str:
        """The TCP ports of serial consoles, as "first:last"."""
        return str(self._conf.serial_console.port_range)

    @property
    def proxyclient_address(self) -> str:
        """The address of this host that serial consoles listen on."""
        return str(self._conf.serial_console.proxyclient_address)

    @property
    def guest_address(self) -> str:
        """The address that guests listen on which start from now on: where
        they are relayed, only this host reaches it.
        """
        return (str(self.virtlogd.relay_guest_address)
                if self.virtlogd.relay else self.proxyclient_address)

    def relay(self) -> Relay | None:
        """Tell where the relay listens, on both sides.

        A guest may be relayed that was started before ``relay`` was turned
        off. A name is looked up each time.

        :returns: None: guests have no serial consoles, or the address cannot
            be told just now
        """
        if not self.serial_console:
            return None
        with contextlib.suppress(exception.InvalidAddress,
                                 exception.InvalidOption):
            return Relay(
                str(self.virtlogd.relay_guest_address),
                settings.check_outer(self.proxyclient_address))
        return None

    def viewers_address(self, address: str) -> str:
        """The address that viewers of a guest connect to.

        :param address: that the guest itself listens on
        """
        return (self.proxyclient_address
                if address == self.virtlogd.relay_guest_address else address)
