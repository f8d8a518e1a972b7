# SPDX-License-Identifier: Apache-2.0
"""``virtlogd-console check`` makes the checks of ``virtlogd-driver-status``.

On a host without nova, those that are not about nova.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg

from virtlogd_driver.cmd import configuration, terminal
from virtlogd_driver.cmd.host import Host

#: Checks of what only nova-compute has.
_OF_NOVA = frozenset({'Driver in nova', 'Privileged helpers', 'Serial ports',
                      'Health pass', 'Histories'})
_WORDS = (('ok', terminal.GREEN), ('warning', terminal.YELLOW),
          ('FAILURE', terminal.RED))
_INDENT = 19


def run(host: Host, arguments: Any) -> int:
    configuration.check(cfg.CONF)
    found = list(_results(host, cfg.CONF))
    if arguments.json:
        json.dump([{'check': name, 'result': _WORDS[code][0].lower(),
                    'details': details}
                   for name, code, details in found], sys.stdout, indent=2)
        print()
    else:
        for name, code, details in found:
            _print(name, code, details)
    return max(code for _, code, _ in found)


def _results(host: Host, config: cfg.ConfigOpts
             ) -> Iterator[tuple[str, int, str]]:
    """Give name, code and details of each check."""
    # Heavy, and used by this command alone.
    from virtlogd_driver.cmd import status
    from virtlogd_driver.node import checks
    from virtlogd_driver.node.survey import survey
    with_nova = bool(config.compute_driver)
    if with_nova:
        host.init_helpers()
    else:
        host.ask_directly()
    found = survey(status.options(config), host.connect, with_nova)
    for name, function in checks.CHECKS:
        if with_nova or name not in _OF_NOVA:
            result = function(found)
            yield name, int(result.code), result.details or ''


def _print(name: str, code: int, details: str) -> None:
    word, colour = _WORDS[code]
    word = terminal.paint(f'{word:8}', colour,
                          terminal.has_colour(sys.stdout))
    lines = textwrap.wrap(
        details, max(40, terminal.width() - _INDENT - 10)) or ['']
    print(f'{name:{_INDENT}}{word}  {lines[0]}'.rstrip())
    for line in lines[1:]:
        print(' ' * (_INDENT + 10) + line)
