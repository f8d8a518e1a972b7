# SPDX-License-Identifier: Apache-2.0
"""Real daemons, guests and a whole nova for the tests, apart from the host."""
