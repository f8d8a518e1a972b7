# SPDX-License-Identifier: Apache-2.0
"""This compute node: its libvirt, its health, its checks."""
