# SPDX-License-Identifier: Apache-2.0
"""Many viewers at one interactive console, none of whom stops the guest."""
