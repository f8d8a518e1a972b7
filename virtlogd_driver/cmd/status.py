# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-driver-status check``: is this compute node's console well?

Exit status as nova-status has it: 0 all well, 1 a warning, 2 a failure, 255
an error of the command itself.
"""

import functools
import importlib.util
import logging
import os
import sys
from typing import Any

from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from virtlogd_driver import conf
from virtlogd_driver.node import checks, hypervisor
from virtlogd_driver.node.survey import Options, survey


def _beside_nova() -> str:
    """nova's default of state_path, which no package leaves as it is."""
    spec = importlib.util.find_spec('nova')
    if spec is None or not spec.origin:
        return '/var/lib/nova'
    return os.path.dirname(os.path.dirname(spec.origin))


#: nova's own options that are needed here, as nova defines them: this command
#: works where nova does not, to say why.
NOVA_OPTS: dict[str | None, list[cfg.Opt]] = {
    None: [
        cfg.StrOpt('compute_driver'),
        cfg.StrOpt('state_path', default=_beside_nova()),
        cfg.StrOpt('instances_path', default='$state_path/instances'),
    ],
    'libvirt': [
        cfg.StrOpt('connection_uri', default=''),
    ],
    'serial_console': [
        cfg.BoolOpt('enabled', default=False),
        cfg.StrOpt('port_range', default='10000:20000'),
        cfg.StrOpt('proxyclient_address', default='127.0.0.1'),
    ],
}


def _result(commands: 'StatusCommands',
            function: checks.Check) -> upgradecheck.Result:
    return function(commands.survey)


# oslo.upgradecheck calls each function with the commands and the keywords.
_CHECKS = tuple((name, (_result, {'function': function}))
                for name, function in checks.CHECKS)


class StatusCommands(upgradecheck.UpgradeCommands):
    """The checks, as oslo.upgradecheck wants them."""

    display_title = 'virtlogd-driver: Status of This Compute Node'

    def __init__(self, config: cfg.ConfigOpts) -> None:
        super().__init__()
        self._config = config

    @functools.cached_property
    def survey(self) -> checks.Survey:
        """What is known of the host; looked at once."""
        return survey(options(self._config), self._connect)

    def _connect(self) -> Any:
        return hypervisor.connect(
            self._config.libvirt.connection_uri or 'qemu:///system')

    _upgrade_checks = _CHECKS


def options(config: cfg.ConfigOpts) -> Options:
    own, serial = config.virtlogd, config.serial_console
    return Options(
        config.compute_driver or '', config.instances_path, serial.enabled,
        serial.port_range, serial.proxyclient_address, own.qemu_conf,
        own.virtlogd_conf, own.virtlogd_socket, own.health_interval,
        own.health_timeout, own.metrics_file)


def _register(config: cfg.ConfigOpts) -> None:
    for group, opts in NOVA_OPTS.items():
        config.register_opts(opts, group=group)
    conf.register_opts(config)

    def add_parsers(subparsers: Any) -> None:
        parser = subparsers.add_parser(
            'check', help='look at this compute node; exit status 0, 1 '
                          '(warning) or 2 (failure)')
        parser.add_argument(
            '--json', action='store_true',
            help='print the results as JSON; the default is a table')
        parser.set_defaults(action_fn=StatusCommands(config).check)

    config.register_cli_opt(cfg.SubCommandOpt(
        'command', title='commands', handler=add_parsers))


def main() -> int:
    """Entry point."""
    # What the privileged helpers say on standard error is in the results.
    logging.getLogger().addHandler(logging.NullHandler())
    # They read the same configuration.
    config = cfg.CONF
    _register(config)
    config(sys.argv[1:], project='nova', prog='virtlogd-driver-status')
    upgradecheck.CONF = config
    return int(upgradecheck.run(config))


if __name__ == '__main__':
    sys.exit(main())
