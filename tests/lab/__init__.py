# SPDX-License-Identifier: Apache-2.0
"""Tests get real daemons, guests and a whole nova, apart from the host."""
