"""Committed bounds on what the CUDA kernels do, and on the registers they take."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import skip_unless_available
from test_inverted_residual_cuda import TWO_PASSES

from mobilevit_kernels import counters, simt
from mobilevit_kernels.bench.work import stage_work
from mobilevit_kernels.cli import cli
from mobilevit_kernels.verify import StageCase

ROOT = Path(__file__).resolve().parent.parent

# Ratios to the floor at 256×256. The networks' own shapes reach 1.01, and 1.26 on maps of 64 × 64 and more; on smaller
# ones 1.33, as at these batches their strips of 15 columns are not full. Two passes move their sums through device
# memory and read x twice; the smaller of them has 16 columns of 8 × 8 maps, and fills steps of 16 by half: 1.68.
MAX_BYTES_WASTE, MAX_MMA_WASTE, MAX_MUFU_WASTE = 1.15, 1.5, 1.5
MAX_LARGE_MAP_WASTE = 1.3  # of mma and MUFU
MAX_BYTES_WASTE_OF_TWO_PASSES, MAX_WASTE_OF_TWO_PASSES = 2.1, 1.7
# Cycles lost to bank conflicts over all shared-memory cycles; ldmatrix loses none.
MAX_SHARED_CONFLICTS = 0.06
# Bytes that shared memory moves for a matrix instruction, shuffles included. An SM moves 128 a cycle and issues 0.62
# matrix instructions: what is above 206 binds before the tensor cores do. The tile kernel, which serves 128 input
# channels, moves 440 to 2,200 on these shapes.
MAX_SHARED_BYTES_PER_MMA = {
    (16, 64, 32): 475,
    (32, 128, 64): 400,
    (64, 256, 64): 270,
    (64, 256, 96): 265,
    (96, 384, 128): 220,
    (128, 512, 160): 460,
    (32, 128, 48): 415,
    (48, 192, 48): 330,
    (48, 192, 64): 320,
    (64, 256, 80): 270,
    (80, 320, 96): 240,
    (16, 32, 16): 760,
    (16, 32, 24): 730,
    (24, 48, 24): 560,
    (24, 48, 48): 505,
    (48, 96, 64): 320,
    (64, 128, 80): 270,
}


@pytest.mark.parametrize(("model", "batch"), [("mobilevit_s", 4), ("mobilevit_xs", 4), ("mobilevit_xxs", 8)])
def test_inverted_residual_stays_within_its_bounds(model: str, batch: int) -> None:
    skip_unless_available("simt")
    cases = list(counters.cases(model, "inverted_residual", batch=batch))
    assert len(cases) == 6
    for path, case in cases:
        row = counters.count(path, case)
        large, two_passes = case.x_shape[2] >= 64, case.sizes in TWO_PASSES
        most_mma = MAX_LARGE_MAP_WASTE if large else MAX_WASTE_OF_TWO_PASSES if two_passes else MAX_MMA_WASTE
        most_mufu = MAX_LARGE_MAP_WASTE if large else MAX_WASTE_OF_TWO_PASSES if two_passes else MAX_MUFU_WASTE
        assert 1 <= row.bytes_waste <= (MAX_BYTES_WASTE_OF_TWO_PASSES if two_passes else MAX_BYTES_WASTE), row
        assert 1 <= row.mma_waste <= most_mma, row
        assert 1 <= row.mufu_waste <= most_mufu, row
        assert row.shared_bytes_per_mma <= MAX_SHARED_BYTES_PER_MMA[case.sizes], row
        assert row.matrix_conflicts == 0, row
        assert row.shared_conflicts <= MAX_SHARED_CONFLICTS * row.shared_wavefronts, row
        if case.sizes[0] < 128:  # the row kernel: weights once a block, nothing in shared memory collides
            assert row.blocks == (2 if two_passes else 1), row
            assert row.weight_reread_bytes == 0, row
            assert row.shared_conflicts == 0, row


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs"])
def test_dealing_costs_shared_memory_and_nothing_else(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row kernel's form for few pixels, on one image: the sums of eight warps meet in shared memory. At stride 2
    clusters would come first."""
    skip_unless_available("simt")
    monkeypatch.setattr(simt.library(), "has_clusters", lambda device: False)
    cases = [
        c for c in counters.cases(model, "inverted_residual", batch=1) if c[1].sizes[0] < 80 and c[1].x_shape[2] > 32
    ]
    for path, case in cases:
        dealt, undealt = (counters.count(path, case, small_batch=small) for small in (True, False))
        if case.sizes[1] < 192:  # tiles instead at stride 1, nothing at stride 2
            assert (dealt == undealt) == (case.options["stride"] == 2)
            continue
        assert dealt.barriers > undealt.barriers == 1
        assert 1 <= dealt.bytes_waste <= 1.01, dealt
        assert 1 <= dealt.mma_waste <= min(1.5, undealt.mma_waste), dealt
        assert dealt.weight_reread_bytes == dealt.matrix_conflicts == dealt.shared_conflicts == 0, dealt
        assert dealt.shared_bytes_per_mma <= 720, dealt


# Head dims that are no multiples of 8 are padded: 20 to 24, 36 to 40.
TRANSFORMER_BOUNDS = {
    # d: (mma, MUFU)
    64: (1.01, 1.15),
    80: (1.08, 1.15),
    96: (1.03, 1.16),
    120: (1.05, 1.12),
    144: (1.06, 1.13),
    192: (1.01, 1.1),
    240: (1.03, 1.1),
}
MAX_TRANSFORMER_BYTES_WASTE = 1.05


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_transformer_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    cases = list(counters.cases(model, "transformer"))
    assert len(cases) == 3
    for path, case in cases:
        row = counters.count(path, case)
        mma_waste, mufu_waste = TRANSFORMER_BOUNDS[case.sizes[1]]
        assert 0.99 <= row.mma_waste <= mma_waste, row
        assert 1 <= row.mufu_waste <= mufu_waste, row
        assert row.matrix_conflicts == 0, row
        assert row.shared_conflicts == 0, row
        assert row.reread_bytes == 0, row
        # Device memory sees x, y and the packed weights once each, however many images there are.
        image_bytes = 2 * stage_work(case).activations // case.x_shape[0]
        for batch in (1, case.x_shape[0], 32):
            more = (batch - case.x_shape[0]) * image_bytes
            assert 1 <= (row.bytes + more) / (row.floor_bytes + more) <= MAX_TRANSFORMER_BYTES_WASTE, (batch, row)


def test_more_images_cost_a_transformer_their_own_bytes_only() -> None:
    skip_unless_available("simt")
    case = StageCase("transformer", (16, 80, 160, 1, 16), (4, 16, 8, 8), {"num_heads": 4, "patch_size": (2, 2)})
    whole = counters.count("", case)
    more = counters.count("", dataclasses.replace(case, x_shape=(12, *case.x_shape[1:])))
    assert (whole.blocks, more.blocks) == (1, 3)
    assert more.bytes - whole.bytes == 8 * 2 * 16 * 8 * 8 * 2
    assert more.floor_bytes - whole.floor_bytes == more.bytes - whole.bytes


# A block of a cluster at 256×256 and batch 1, a layer: KB received from other blocks, KB of weights read.
CLUSTER_BOUNDS = {
    # (d, tokens): (exchange, weights)
    (64, 256): (24, 49),
    (80, 64): (23, 31),
    (96, 16): (15, 22),
    (96, 256): (35, 108),
    (120, 64): (33, 65),
    (144, 16): (23, 52),
    (144, 256): (55, 247),
    (192, 64): (52, 147),
    (240, 16): (37, 123),
}


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_transformer_on_clusters_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    for path, case in counters.cases(model, "transformer", batch=1):
        _, dim, _, layers, _ = case.sizes
        case = dataclasses.replace(case, x_shape=(1, *case.x_shape[1:]))
        row = counters.count(path, case, small_batch=True)
        assert row.blocks == 32, row  # a cluster of eight for each of four sequences
        tokens = case.x_shape[2] * case.x_shape[3] // 4
        assert row.cluster_barriers == 4 * (3 * layers + 1 if tokens == 256 else 5 * layers + 2), row
        exchange, weights = CLUSTER_BOUNDS[dim, tokens]
        # X after the first 1×1 convolution is sent too, and the weights of both convolutions are read.
        assert row.remote_bytes <= 1024 * (layers + 0.25) * exchange * row.blocks, row
        assert row.weight_bytes <= 1024 * (layers + 0.3) * weights * row.blocks, row
        assert row.reread_bytes <= 7 * row.floor_bytes, row  # x, by every block
        assert row.matrix_conflicts == 0, row
        assert row.shared_conflicts <= 0.02 * row.shared_wavefronts, row


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_conv3x3_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    rows = list(counters.rows([model], "conv3x3", batch=1))
    assert len(rows) == 6
    for row in rows:
        assert 1 <= row.bytes_waste <= 1.01, row
        assert row.mma_waste == 1, row
        assert row.mufu_waste == 1, row
        assert row.matrix_conflicts == row.shared_conflicts == 0, row
        assert row.sector_ratio <= 1.15, row
        # What a block reads for itself, halo and weights, is at most 104 KB.
        assert row.reread_bytes + row.weight_reread_bytes <= 104 * 1024 * row.blocks, row


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_head_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    (row,) = counters.rows([model], "head", batch=1)
    assert 1 <= row.bytes_waste <= 1.01, row
    # One image fills a sixteenth of the classifier's rows; the convolution wastes nothing.
    assert row.mufu_waste == 1, row
    assert row.matrix_conflicts == row.shared_conflicts == 0, row


def test_stem_stays_within_its_bounds() -> None:
    skip_unless_available("simt")
    (row,) = counters.rows(["mobilevit_s"], "stem", batch=1)
    assert 1 <= row.bytes_waste <= 1.01, row
    assert row.mma_waste == 32 / 27, row
    assert row.mufu_waste == 1, row
    assert row.matrix_conflicts == 0, row
    # Where values come in vectors, two of a warp's four rows meet in each bank while the tile is stored.
    assert row.shared_conflicts <= 0.2 * row.shared_wavefronts, row
    # The halo of a tile: 17 × 65 pixels read for 16 × 64, less at the border.
    assert row.reread_bytes <= 0.08 * 3 * 256 * 256 * 2, row


def test_command_prints_json() -> None:
    skip_unless_available("simt")
    arguments = ["counters", "--model", "mobilevit_xxs", "--stage", "inverted_residual", "--size", "64", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 6
    assert all(row["mma_waste"] >= 1 for row in rows)


def _resources():
    spec = importlib.util.spec_from_file_location("kernel_resources", ROOT / "tools" / "kernel_resources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# In loops, by SASS instructions; by architecture and how the name begins and ends. A few a head, a chunk of the MLP or
# a step of rows; none for each key, and none for each chunk of a step.
LOCAL_ACCESSES = [
    ("sm_80", "transformer ", "144 channels, heads of 40, 256 rows a block", 8),
    ("sm_90a", "transformer_wgmma bfloat16 120", "64 tokens, 256 rows a block", 5),
    ("sm_90a", "transformer_wgmma bfloat16 144", "tokens, 256 rows a block", 14),
    ("", "inverted_residual_rows float16 stride 1, 16", "12 warps", 2),
    ("", "inverted_residual_rows float16 stride 1, 24", "12 warps", 7),
    ("", "inverted_residual_rows", "80 → 96, 2 × 32 pixels, 8 warps, first pass", 6),
    ("", "inverted_residual_rows", "80 → 96, 2 × 32 pixels, 8 warps, last pass", 6),
    ("", "inverted_residual_rows float16", "96 → 128, 2 × 32 pixels, 8 warps, first pass", 35),
    ("", "inverted_residual_rows float16", "96 → 128, 2 × 32 pixels, 8 warps, last pass", 45),
    ("", "inverted_residual_rows bfloat16", "96 → 128, 2 × 32 pixels, 8 warps, first pass", 80),
    ("", "inverted_residual_rows bfloat16", "96 → 128, 2 × 32 pixels, 8 warps, last pass", 85),
]


def most_local_accesses(architecture: str, name: str) -> int:
    applies = (
        most
        for on, begin, end, most in LOCAL_ACCESSES
        if on in architecture and name.startswith(begin) and name.endswith(end)
    )
    return max(applies, default=0)


def test_the_committed_table_has_no_local_memory_traffic_in_loops() -> None:
    table = json.loads(_resources().TABLE.read_text())
    assert set(table) == {"sm_80", "sm_90a", "sm_100"}
    for architecture, rows in table.items():
        kernels = Counter(name.split()[0] for name in rows)
        if architecture != "sm_80":
            assert kernels.pop("transformer_cluster") == 48  # 2 dtypes × 12 instances × 2 forms
            if architecture == "sm_90a":
                assert kernels.pop("transformer_wgmma") == 18  # 2 dtypes × 9 instances
                assert kernels.pop("conv3x3_wgmma") == 16  # 2 dtypes × 2 tiles × 4 widths
            assert kernels.pop("inverted_residual_cluster") == 16  # 2 dtypes × 2 strides × 2 widths × 2 chunks
        assert kernels == {
            "inverted_residual": 40,  # 2 dtypes × 2 strides × 5 widths × 2 tiles
            "inverted_residual_rows": 46,  # 2 dtypes × (12 shapes + 7 that can be dealt + 2 in two passes)
            "transformer": 36,  # 2 dtypes × 18 instances
            "resize": 2,  # 2 dtypes
            "unfold_attention_fold": 14,  # 2 dtypes × 7 head widths
            "conv3x3": 14,  # 2 dtypes × (3 tiles + 4 widths of the large one)
            "head_classifier": 4,  # 2 dtypes × 2 sizes
            "head_features": 8,  # 2 dtypes × 2 sizes × (pool, map)
            "stem": 8,  # 2 dtypes × 4 image types
        }
        for name, row in rows.items():
            most = most_local_accesses(architecture, name)
            assert row["local_accesses_in_loops"] <= most, (architecture, name)
            assert row["stack_bytes"] <= max(16, 3 * most), (architecture, name)


# Five minutes of a core each, where the installed extension is not built from these very sources for that architecture.
ARCHITECTURES = ["90a", "80", "100"] if os.environ.get("MVK_RESOURCES") == "full" else ["90a"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compiler_agrees_with_the_committed_table(architecture: str) -> None:
    tool = _resources()
    missing = [name for name in ("nvcc", "nvdisasm", "cuobjdump") if tool.find_tool(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    committed = json.loads(tool.TABLE.read_text())[f"sm_{architecture}"]
    measured = tool.measure(architecture, tool.built_library(architecture))
    assert measured.keys() == committed.keys()
    for name, row in measured.items():
        # Another compiler release may allocate a few registers differently; it may not spill in a loop.
        assert row["local_accesses_in_loops"] <= most_local_accesses(f"sm_{architecture}", name), name
        assert abs(row["registers"] - committed[name]["registers"]) <= 16, name


def test_the_loop_detector_sees_a_spill() -> None:
    loop = ".L_x_1:\n  LDL R1, [R2] ;\n  IADD3 R3, R3, 1, RZ ;\n  @P0 BRA `(.L_x_1) ;\n  EXIT ;\n"
    loop += ".L_x_2:\n  BRA `(.L_x_2) ;\n"
    assert _resources().local_accesses_in_loops(loop) == 1
    assert _resources().local_accesses_in_loops(loop.replace("LDL", "LDS")) == 0
    assert _resources().local_accesses_in_loops("  STL [R1], R2 ;\n" + loop.replace("LDL", "LDS")) == 0


def test_the_detector_of_serialized_products() -> None:
    product, wait = "  HGMMA.64x96x16.F32 R24, gdesc[UR4], R24 ;\n", "  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n"
    assert _resources().serialized_products(2 * (product + wait))
    assert not _resources().serialized_products(2 * product + wait)
    assert not _resources().serialized_products("  HMMA.16816.F32 R4, R8, R12, R4 ;\n")
