# SPDX-License-Identifier: Apache-2.0
"""The guest console of an OpenStack compute node: a nova compute driver."""
