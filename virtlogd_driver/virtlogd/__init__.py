# SPDX-License-Identifier: Apache-2.0
"""The daemon that writes the logs: its settings, its health, its protocol."""
