# SPDX-License-Identifier: Apache-2.0
"""Native threads or eventlet are chosen as in nova-compute. Import it first.

nova-compute runs on native threads since nova 34, on eventlet before. nova
decides that once, and some libraries choose by what is loaded already.
"""

import importlib.metadata
import os
import sys
import threading
from types import ModuleType

if int(importlib.metadata.version('nova').split('.')[0]) >= 34:
    # nova's tests have another default than nova-compute.
    os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', '1')

import nova.tests.functional  # noqa: F401


def native_threading() -> ModuleType:
    """The threads of the system, which eventlet puts others in place of."""
    patcher = sys.modules.get('eventlet.patcher')
    if patcher is None:
        return threading
    original: ModuleType = patcher.original('threading')
    return original
