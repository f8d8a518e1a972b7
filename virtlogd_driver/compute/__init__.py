# SPDX-License-Identifier: Apache-2.0
"""What nova calls: the compute driver, and what it is made of."""
