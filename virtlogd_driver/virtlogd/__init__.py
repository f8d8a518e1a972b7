# SPDX-License-Identifier: Apache-2.0
"""virtlogd writes the logs; its settings, health and protocol are here."""
