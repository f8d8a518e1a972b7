# SPDX-License-Identifier: Apache-2.0
"""A compute node is looked at: its libvirt, its health, its checks."""
