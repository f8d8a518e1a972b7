# SPDX-License-Identifier: Apache-2.0
"""nova's own tests, run against this driver (``tools/nova_peers.py``)."""
