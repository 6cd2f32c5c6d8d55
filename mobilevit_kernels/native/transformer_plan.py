"""Which instance of the transformer kernel serves a shape, and in how many launches: pure functions of the sizes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mobilevit_kernels.native.clusters import clusters_at_once

__all__ = [
    "CLUSTER_BLOCKS",
    "CLUSTER_INSTANCES",
    "DEFAULT_HEADS",
    "INSTANCES",
    "MAX_DIM",
    "MAX_HEAD_DIM",
    "WGMMA_INSTANCES",
    "ClusterInstance",
    "ClusterPlan",
    "Instance",
    "Plan",
    "WgmmaInstance",
    "WgmmaPlan",
    "cluster_instances_for",
    "instances_for",
    "lay_out",
    "lay_out_clusters",
    "most_sequences",
    "plan",
    "plan_clusters",
    "plan_wgmma",
    "small_blocks",
    "tiles_of",
    "wgmma_instances_for",
]

MAX_DIM = 256
MAX_HEAD_DIM = 128
DEFAULT_HEADS = 4  # of all published networks


@dataclass(frozen=True)
class Instance:
    """One compiled kernel; csrc/transformer_launch.cuh has the same table.

    Attributes:
        dim: channels of a row.
        head_tiles: 8-channel tiles of a head; smaller heads are padded with zeros.
        rows: of a block.
        padded: serves narrower rows, padded with zeros, too.
    """

    dim: int
    head_tiles: int
    rows: int
    padded: bool = False

    @property
    def panels(self) -> int:
        """Panels or slabs of a chunk (``TransformerConfig::kPanels``): the packing needs to know it."""
        return 4 if self.dim <= 120 or self.dim == 192 else 2

    @property
    def joined(self) -> bool:
        """Whether the last channels of a head's K and V, at most four each, share a tile
        (``TransformerConfig::kJoined``)."""
        return not self.padded and 1 <= self.dim // DEFAULT_HEADS % 8 <= 4


# Large, for throughput: eight warps, of 32 rows where the registers allow it, so that each weight fragment serves two
# products; at d ≥ 192 the accumulators of the MLP leave room for 16. Small: four warps of 16 rows; the same work is
# more blocks, and they fit into 99 KB of shared memory. Then those that serve every other size, padded.
INSTANCES = (
    Instance(64, 2, 256),
    Instance(80, 3, 256),
    Instance(96, 3, 256),
    Instance(120, 4, 256),
    Instance(144, 5, 256),
    Instance(192, 6, 128),
    Instance(240, 8, 128),
    Instance(64, 2, 64),
    Instance(80, 3, 64),
    Instance(96, 3, 64),
    Instance(120, 4, 64),
    Instance(144, 5, 64),
    Instance(192, 6, 64),
    Instance(240, 8, 64),
    Instance(64, 8, 64, padded=True),
    Instance(128, 16, 64, padded=True),
    Instance(256, 8, 64, padded=True),
    Instance(256, 16, 64, padded=True),
)


@dataclass(frozen=True)
class Plan:
    """How a stage is launched.

    Attributes:
        instance: the kernel.
        split: the layers are launches of their own and K and V go through global memory; else one launch does all.
        sequence_rows: rows of a sequence, padding included.
        block_rows: rows of sequences that a block owns.
        blocks: of the grid.
        launches: kernels one after the other.
    """

    instance: Instance
    split: bool
    sequence_rows: int
    block_rows: int
    blocks: int
    launches: int

    @property
    def name(self) -> str:
        """For the Report."""
        return f"{self.instance.rows} rows a block" + (", a launch a layer" if self.split else "")


def tiles_of(dim: int, num_heads: int) -> int:
    """8-channel tiles of a head."""
    return -(-(dim // num_heads) // 8)


@functools.cache
def instances_for(dim: int, num_heads: int) -> tuple[Instance, ...]:
    """The instances that hold ``dim`` channels in ``num_heads`` heads with the least padding, large ones first.

    All of them take the same packed weights. () where there is none.
    """
    head_tiles = tiles_of(dim, num_heads)
    fitting = [
        i for i in INSTANCES if (i.dim == dim or (i.padded and i.dim > dim)) and i.head_tiles >= head_tiles
    ]  # fmt: skip
    least = min(((i.dim, i.head_tiles) for i in fitting), default=None)
    return tuple(i for i in fitting if (i.dim, i.head_tiles) == least)


def lay_out(instance: Instance, tokens: int, sequences: int, num_layers: int) -> Plan:
    """Rows and blocks of one instance: one launch where a sequence fits into a block, else one a layer and one before.

    In one launch a block takes as many whole sequences as fit. A sequence is padded to 16 rows or to a multiple of 32,
    so that its keys are taken in the same steps wherever it lies: an image's result is the same, bit for bit, in every
    place of every batch, and by small and by large blocks.
    """
    padded = 16 if tokens <= 16 else -(-tokens // 32) * 32
    if padded <= instance.rows:
        per_block = instance.rows // padded
        return Plan(instance, False, padded, per_block * padded, -(-sequences // per_block), 1)
    blocks_a_sequence = -(-tokens // instance.rows)
    rows = blocks_a_sequence * instance.rows
    return Plan(instance, True, rows, instance.rows, blocks_a_sequence * sequences, num_layers + 1)


def small_blocks(large: Instance, split: bool) -> int:
    """Up to how many small blocks a multiprocessor are taken rather than those of ``large``."""
    return 1 if large.rows == 128 and not split else 2


@functools.lru_cache(maxsize=1024)
def plan(candidates: tuple[Instance, ...], tokens: int, sequences: int, num_layers: int, multiprocessors: int) -> Plan:
    """The launch of a shape.

    The small instance while it has no more than two blocks a multiprocessor, which run at once: a small batch is spread
    over the GPU, and each step takes less time. Where the large one has 128 rows and takes whole sequences, while it
    has one. Beyond that the large one, which reads each weight for two to four times as many rows and keeps K and V on
    the chip. Measured on an H200 (132 multiprocessors, float16, µs small and large): d = 80, 128 blocks 66 and 105,
    256 blocks 76 and 104; d = 144 with 16 tokens, 64 blocks 106 and 174, 256 blocks 122 and 173, with 256 tokens, 256
    blocks 140 and 159, 512 blocks 274 and 161; d = 192, 128 blocks 178 and 207, 256 blocks 226 and 208; d = 240, 64
    blocks 205 and 243, 256 blocks 262 and 244.

    Args:
        candidates: of :func:`instances_for`, without those that do not fit into shared memory; not empty.
        tokens: of a sequence, N.
        sequences: B·P.
        num_layers: encoder layers.
        multiprocessors: of the GPU.
    """
    small = lay_out(candidates[-1], tokens, sequences, num_layers)
    if small.blocks <= small_blocks(candidates[0], small.split) * multiprocessors:
        return small
    return lay_out(candidates[0], tokens, sequences, num_layers)


CLUSTER_BLOCKS = 8  # the most that every GPU with clusters takes


@dataclass(frozen=True)
class ClusterInstance:
    """One compiled kernel on clusters; csrc/transformer_cluster_launch.cuh has the same table.

    Attributes:
        dim: channels of a row; heads have a fourth of them.
        rows: of the sequences of a cluster. 256: csrc/transformer_cluster_long.cuh, else csrc/transformer_cluster.cuh.
        row_groups: into which these are split.
    """

    dim: int
    rows: int
    row_groups: int

    @property
    def head_tiles(self) -> int:
        """8-channel tiles of a head."""
        return tiles_of(self.dim, DEFAULT_HEADS)

    @property
    def long(self) -> bool:
        """One long sequence a cluster: a block owns rows in most products, where else it owns columns."""
        return self.rows > 64

    @property
    def chunk_steps(self) -> int:
        """Long: k-steps of 16 in a chunk of weights with D columns (``TransformerClusterLongConfig::kChunkSteps``)."""
        return 8 if self.dim <= 64 else 6

    @property
    def column_blocks(self) -> int:
        """Blocks that share the columns of each product; all that the packing needs to know beside ``dim``."""
        return CLUSTER_BLOCKS // self.row_groups

    @property
    def dim_slice(self) -> int:
        """8-column tiles of X that a block computes."""
        return -(-(self.dim // 8) // self.column_blocks)

    @property
    def hidden_slice(self) -> int:
        """8-column tiles of the MLP's hidden layer that a block computes."""
        return -(-(self.dim // 4) // self.column_blocks)

    @property
    def attention_slice(self) -> int:
        """8-column tiles of the Q, K and V of a head that a block computes."""
        return -(-3 * self.head_tiles * DEFAULT_HEADS // self.column_blocks)

    @property
    def max_in_channels(self) -> int:
        """W_in takes the place of a layer's W_2, and x that of the hidden layer."""
        return 2 * self.dim

    @property
    def max_out_channels(self) -> int:
        """W_out takes the place of a layer's W_q, W_k and W_v; long: of its W_1."""
        return 2 * self.dim if self.long else 8 * self.attention_slice * self.column_blocks


# The published shapes: 256 tokens; 64 tokens, rows in two groups, which halves what blocks exchange; 16 tokens, one
# sequence a cluster for the smallest batches, and four, whose products read each weight for four times as many rows.
CLUSTER_INSTANCES = (
    ClusterInstance(64, 256, 2),
    ClusterInstance(96, 256, 2),
    ClusterInstance(144, 256, 2),
    ClusterInstance(80, 64, 2),
    ClusterInstance(120, 64, 2),
    ClusterInstance(192, 64, 2),
    ClusterInstance(96, 16, 1),
    ClusterInstance(144, 16, 1),
    ClusterInstance(240, 16, 1),
    ClusterInstance(96, 64, 1),
    ClusterInstance(144, 64, 1),
    ClusterInstance(240, 64, 1),
)


@dataclass(frozen=True)
class ClusterPlan:
    """How a stage is launched on clusters.

    Attributes:
        instance: the kernel.
        sequence_rows: rows of a sequence, padding included.
        clusters: of the grid.
        sends: the blocks send to each other, without cluster barriers. The bits are the same.
    """

    instance: ClusterInstance
    sequence_rows: int
    clusters: int
    sends: bool = False

    @property
    def name(self) -> str:
        """For the Report."""
        return f"clusters of {self.instance.rows} rows" + (", sends" if self.sends else "")


@functools.cache
def cluster_instances_for(dim: int, num_heads: int, mlp_dim: int) -> tuple[ClusterInstance, ...]:
    """The instances for exactly these sizes, smallest clusters first. () where there is none."""
    if num_heads != DEFAULT_HEADS or mlp_dim != 2 * dim:
        return ()
    return tuple(sorted((i for i in CLUSTER_INSTANCES if i.dim == dim), key=lambda i: i.rows))


def most_sequences(instance: ClusterInstance, tokens: int, multiprocessors: int) -> tuple[int, int]:
    """How many sequences of ``tokens`` an instance is for, and the rows of each, padding included; 0: none.

    A cluster takes eight multiprocessors, so that a small batch spreads over the GPU; it pays for two rounds of
    clusters. Measured on an H200 (float16), a round takes a fourth to a half of the time of the other kernels, and
    three mostly take longer: µs of one round, of three and of the fastest other, with 256 tokens 24, 69 and 59 at
    d = 64, 47, 134 and 111 at d = 144; with 64 tokens 43, 126 and 99 at d = 120, 57, 165 and 141 at d = 192. Clusters
    of 64 rows and four sequences of 16 tokens take more, but two rounds of them, 103 at d = 144 and 135 at d = 240, are
    still below the others' 106 and 155. Clusters of 16 rows are for one round: 64 rows take less time than two.
    """
    rounds = 1 if instance.rows == 16 else 2
    at_most = rounds * clusters_at_once(multiprocessors, CLUSTER_BLOCKS)
    if instance.long:  # one sequence, less than half of its rows padding
        return (at_most if instance.rows < 2 * tokens <= 2 * instance.rows else 0), instance.rows
    rows = 16 if tokens <= 16 else -(-tokens // 32) * 32
    return at_most * (instance.rows // rows), rows


def lay_out_clusters(instance: ClusterInstance, sequence_rows: int, sequences: int) -> ClusterPlan:
    """As many whole sequences a cluster as fit."""
    return ClusterPlan(instance, sequence_rows, -(-sequences // (instance.rows // sequence_rows)))


@functools.lru_cache(maxsize=1024)
def plan_clusters(
    candidates: tuple[ClusterInstance, ...], tokens: int, sequences: int, multiprocessors: int
) -> ClusterPlan | None:
    """The launch of a shape on clusters; None: the batch is too large for them, or no instance fits the sequence.

    Args:
        candidates: of :func:`cluster_instances_for`, without those that do not fit into shared memory.
        tokens: of a sequence, N.
        sequences: B·P.
        multiprocessors: of the GPU.
    """
    for instance in candidates:
        most, rows = most_sequences(instance, tokens, multiprocessors)
        if sequences <= most:
            return lay_out_clusters(instance, rows, sequences)
    return None


@dataclass(frozen=True)
class WgmmaInstance:
    """One compiled kernel on wgmma; csrc/transformer_wgmma.cu has the same table.

    Attributes:
        dim: channels of a row; heads have a fourth of them, the MLP twice as many.
        tokens: of a sequence.
        rows: of whole sequences in a block.
        hidden: columns of W_1 and W_out, and rows of W_2, in a chunk of weights.
        depth: k-steps of 16 in a chunk of the other weights.
    """

    dim: int
    tokens: int
    rows: int
    hidden: int
    depth: int

    @property
    def head_tiles(self) -> int:
        """8-channel tiles of a head."""
        return tiles_of(self.dim, DEFAULT_HEADS)

    @property
    def steps(self) -> int:
        """K-steps of 16 in a row."""
        return -(-self.dim // 16)

    @property
    def spread_rows(self) -> int:
        """Rows of sequences a multiprocessor up to which blocks of 64 rows on ``mma.sync`` take less time."""
        if self.rows == 128 or self.tokens == 256:
            return 0
        return 128 if self.tokens == 64 else 64


# The published shapes. The weights of a width are packed once for whatever number of tokens.
WGMMA_INSTANCES = (
    WgmmaInstance(64, 256, 256, 64, 4),
    WgmmaInstance(96, 256, 256, 64, 6),
    WgmmaInstance(144, 256, 256, 48, 3),
    WgmmaInstance(80, 64, 256, 80, 5),
    WgmmaInstance(120, 64, 256, 48, 4),
    WgmmaInstance(192, 64, 128, 64, 4),
    WgmmaInstance(96, 16, 256, 64, 6),
    WgmmaInstance(144, 16, 256, 48, 3),
    WgmmaInstance(240, 16, 128, 48, 3),
)


@dataclass(frozen=True)
class WgmmaPlan:
    """How a stage is launched on wgmma: in one launch, as many whole sequences a block as fit."""

    instance: WgmmaInstance

    @property
    def name(self) -> str:
        """For the Report."""
        return f"wgmma, {self.instance.rows} rows a block"


@functools.cache
def wgmma_instances_for(dim: int, num_heads: int, mlp_dim: int) -> tuple[WgmmaInstance, ...]:
    """The instances for exactly these sizes, one a number of tokens. () where there is none."""
    if num_heads != DEFAULT_HEADS or mlp_dim != 2 * dim:
        return ()
    return tuple(i for i in WGMMA_INSTANCES if i.dim == dim)


def plan_wgmma(
    candidates: tuple[WgmmaInstance, ...], tokens: int, sequences: int, multiprocessors: int
) -> WgmmaPlan | None:
    """The launch of a shape on wgmma, after :func:`plan_clusters`; None: too small a batch for it, or no instance.

    A block takes 0.6 to 0.8 of the time of the other kernel's large one, so that it is taken wherever that would be.
    The small blocks may still spread a batch over the GPU better. Measured on an H200 (float16), µs a stage: with 256
    tokens they need a launch a layer, 62 to 68 where wgmma takes 59 at d = 64, 116 to 140 for 110 at d = 144, and
    at d ≥ 192 a block of wgmma has but twice their rows, 178 for 139 and 205 for 152: always wgmma. With 64 tokens it
    takes 1.3 times as long as they do, one a multiprocessor, and 1.1 times as long as two (86 for 66 and 76 at d = 80,
    130 for 99 and 120 at d = 120). With 16 tokens it is 1.1 and 0.9 to 1.0 times (66 for 58 and 67 at d = 96, 113 for
    106 and 122 at d = 144). bfloat16 was not measured and goes by the same rule.

    Args:
        candidates: of :func:`wgmma_instances_for`, without those that do not fit into shared memory; () where the
            device has no wgmma.
        tokens: of a sequence, N.
        sequences: B·P.
        multiprocessors: of the GPU.
    """
    for instance in candidates:
        if instance.tokens == tokens and sequences * tokens > instance.spread_rows * multiprocessors:
            return WgmmaPlan(instance)
    return None
