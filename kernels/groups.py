"""Groups of neighbouring neurons: on a GPU the taps leave each group's maximum beside the record."""

from __future__ import annotations

GROUP = 16
"""Neurons of a group: 32 bytes of a 16-bit type, the smallest transfer from a GPU's memory."""


def groups_per_layer(width: int) -> int:
    """Return how many groups a layer of this width has; the last one may be shorter."""
    return -(-width // GROUP)
