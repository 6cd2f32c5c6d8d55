"""How many thread-block clusters a GPU runs at once: a pure function of its multiprocessors."""

from __future__ import annotations

__all__ = ["clusters_at_once"]

# Multiprocessors lie in groups (GPCs), and a cluster lies in one of them. How many a group has differs from chip to
# chip; 18 is the most on compute capability 9.0.
_GROUP = 18


def clusters_at_once(multiprocessors: int, blocks: int) -> int:
    """Clusters of ``blocks`` blocks, one block a multiprocessor, that are taken to run at once.

    As if all groups but the last were full. Measured on an H200 (132 multiprocessors): clusters of eight take a second
    round from 16 on and a third between 17 and 32, those of four a second from 32 at the latest; this gives 14 and 29.
    """
    groups, rest = divmod(multiprocessors, _GROUP)
    return groups * (_GROUP // blocks) + rest // blocks
