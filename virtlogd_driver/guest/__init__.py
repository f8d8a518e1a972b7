# SPDX-License-Identifier: Apache-2.0
"""What a guest gets. Values in, values out, no I/O."""
