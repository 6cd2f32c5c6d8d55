"""Which instance of the transformer kernel serves a shape, and in how many launches: pure functions of the sizes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "DEFAULT_HEADS",
    "INSTANCES",
    "MAX_DIM",
    "MAX_HEAD_DIM",
    "Instance",
    "Plan",
    "instance_for",
    "plan",
    "tiles_of",
]

MAX_DIM = 256
DEFAULT_HEADS = 4  # of all published networks
MAX_HEAD_DIM = 128
_WARPS = 8


@dataclass(frozen=True)
class Instance:
    """One compiled kernel; csrc/transformer.cu has the same table.

    Attributes:
        dim: channels of a row.
        head_tiles: 8-channel tiles of a head; smaller heads are padded with zeros.
        row_tiles: 16-row tiles of a warp.
        padded: serves narrower rows, padded with zeros, too.
    """

    dim: int
    head_tiles: int
    row_tiles: int
    padded: bool = False

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return _WARPS * 16 * self.row_tiles

    @property
    def panels(self) -> int:
        """Panels or slabs of a chunk (``TransformerConfig::kPanels``)."""
        return 4 if self.dim <= 96 else 2


# The published networks' own, with 32 rows a warp where the registers allow it: each weight fragment then serves two
# products. At d ≥ 192 the accumulators of the MLP leave room for 16 rows. Then those that serve the rest, padded.
INSTANCES = (
    Instance(64, 2, 2),
    Instance(80, 3, 2),
    Instance(96, 3, 2),
    Instance(120, 4, 2),
    Instance(144, 5, 2),
    Instance(192, 6, 1),
    Instance(240, 8, 1),
    Instance(64, 8, 1, padded=True),
    Instance(128, 16, 1, padded=True),
    Instance(256, 8, 1, padded=True),
    Instance(256, 16, 1, padded=True),
)


@dataclass(frozen=True)
class Plan:
    """How a stage is launched.

    Attributes:
        split: the layers are launches of their own and K and V go through global memory; else one launch does all.
        sequence_rows: rows of a sequence, padding included.
        block_rows: rows of sequences that a block owns.
        blocks: of the grid.
        launches: kernels one after the other.
    """

    split: bool
    sequence_rows: int
    block_rows: int
    blocks: int
    launches: int


def tiles_of(dim: int, num_heads: int) -> int:
    """8-channel tiles of a head."""
    return -(-(dim // num_heads) // 8)


def instance_for(dim: int, num_heads: int) -> Instance | None:
    """The smallest instance that holds ``dim`` channels in ``num_heads`` heads; None where there is none."""
    head_tiles = tiles_of(dim, num_heads)
    fitting = [i for i in INSTANCES if (i.dim == dim or (i.padded and i.dim > dim)) and i.head_tiles >= head_tiles]
    return min(fitting, key=lambda i: (i.dim, i.head_tiles), default=None)


def plan(instance: Instance, tokens: int, sequences: int, num_layers: int) -> Plan:
    """One launch where a sequence fits into a block, else a launch a layer and one before.

    In one launch a block takes as many whole sequences as fit, so the batch decides how many blocks there are: the
    result of an image does not depend on it.

    Args:
        instance: the kernel.
        tokens: of a sequence, N.
        sequences: B·P.
        num_layers: encoder layers.
    """
    padded = -(-tokens // 16) * 16
    if padded <= instance.rows or num_layers == 0:
        padded = min(padded, instance.rows)
        per_block = instance.rows // padded
        return Plan(False, padded, per_block * padded, -(-sequences // per_block), 1)
    blocks_a_sequence = -(-tokens // instance.rows)
    rows = blocks_a_sequence * instance.rows
    return Plan(True, rows, instance.rows, blocks_a_sequence * sequences, num_layers + 1)
