# SPDX-License-Identifier: Apache-2.0
"""A history follows its guest from host to host."""
