# SPDX-License-Identifier: Apache-2.0
"""nova's test modules, for unittest's discovery.

``VIRTLOGD_PEERS`` names them; ``VIRTLOGD_PEERS_DRIVER`` is "ours" or
"upstream": which class they find as ``LibvirtDriver``.
"""

import importlib
import os
import sys
import unittest

PACKAGE = 'nova.tests.'


def _prepare() -> None:
    # First, because it decides about eventlet before anything else is loaded.
    importlib.import_module('nova.tests.unit')
    from nova.conf import paths
    # The wheel's api-paste.ini; nova's tests expect a checkout.
    for option in paths.ALL_OPTS:
        if option.name == 'state_path':
            option.default = sys.prefix
    if os.environ['VIRTLOGD_PEERS_DRIVER'] == 'ours':
        _rebind()


def _rebind() -> None:
    from nova.virt.libvirt import driver as module

    from tests.peers import without_host
    from tests.peers.rebind import rebind
    from virtlogd_driver import driver
    without_host.install()
    rebind(module, module.LibvirtDriver, driver.VirtlogdDriver)


def load_tests(loader: unittest.TestLoader, _tests: unittest.TestSuite,
               _pattern: str | None) -> unittest.TestSuite:
    _prepare()
    return loader.loadTestsFromNames(
        [PACKAGE + name for name in os.environ['VIRTLOGD_PEERS'].split()])
