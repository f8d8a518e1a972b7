# SPDX-License-Identifier: Apache-2.0
"""Whatever comes from a guest, a peer or a file is understood or refused.

``python -m tests.fuzz`` tries input after input for a while.
"""
