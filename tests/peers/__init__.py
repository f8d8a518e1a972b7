# SPDX-License-Identifier: Apache-2.0
"""nova's own tests are run against this driver (tools/peers/nova_tests.py)."""
