# SPDX-License-Identifier: Apache-2.0
"""The relay lets many view one console, and none of them stops the guest."""
