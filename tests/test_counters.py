"""Committed bounds on what the CUDA kernels do, and on the registers they take."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import skip_unless_available

from mobilevit_kernels import counters
from mobilevit_kernels.cli import cli

ROOT = Path(__file__).resolve().parent.parent

# Ratios to the floor at 256×256; the networks' own shapes reach 1.06, 1.25, 1.25.
MAX_BYTES_WASTE, MAX_MMA_WASTE, MAX_MUFU_WASTE = 1.15, 1.3, 1.3
# Cycles lost to bank conflicts over all shared-memory cycles; ldmatrix loses none.
MAX_SHARED_CONFLICTS = 0.06


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_inverted_residual_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    rows = list(counters.rows([model], "inverted_residual"))
    assert len(rows) == 6
    for row in rows:
        assert 1 <= row.bytes_waste <= MAX_BYTES_WASTE, row
        assert 1 <= row.mma_waste <= MAX_MMA_WASTE, row
        assert 1 <= row.mufu_waste <= MAX_MUFU_WASTE, row
        assert row.matrix_conflicts == 0, row
        assert row.shared_conflicts <= MAX_SHARED_CONFLICTS * row.shared_wavefronts, row


@pytest.mark.parametrize("model", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"])
def test_conv3x3_stays_within_its_bounds(model: str) -> None:
    skip_unless_available("simt")
    rows = list(counters.rows([model], "conv3x3"))
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
    (row,) = counters.rows([model], "head")
    assert 1 <= row.bytes_waste <= 1.01, row
    # One image fills a sixteenth of the classifier's rows; the convolution wastes nothing.
    assert row.mufu_waste == 1, row
    assert row.matrix_conflicts == row.shared_conflicts == 0, row


def test_stem_stays_within_its_bounds() -> None:
    skip_unless_available("simt")
    (row,) = counters.rows(["mobilevit_s"], "stem")
    assert 1 <= row.bytes_waste <= 1.01, row
    assert row.mma_waste == 32 / 27, row
    assert row.mufu_waste == 1, row
    assert row.matrix_conflicts == row.shared_conflicts == 0, row
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


def test_the_committed_table_has_no_local_memory_traffic_in_loops() -> None:
    table = json.loads(_resources().TABLE.read_text())
    assert set(table) == {"sm_80", "sm_90a"}
    for architecture, rows in table.items():
        kernels = Counter(name.split()[0] for name in rows)
        assert kernels == {
            "inverted_residual": 32,  # 2 dtypes × 2 strides × 4 widths × 2 tiles
            "conv3x3": 14,  # 2 dtypes × (3 tiles + 4 widths of the large one)
            "head_classifier": 4,  # 2 dtypes × 2 sizes
            "head_features": 8,  # 2 dtypes × 2 sizes × (pool, map)
            "stem": 8,  # 2 dtypes × 4 image types
        }
        for name, row in rows.items():
            assert row["local_accesses_in_loops"] == 0, (architecture, name)
            assert row["stack_bytes"] <= 16, (architecture, name)


@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_the_compiler_agrees_with_the_committed_table(architecture: str) -> None:
    tool = _resources()
    missing = [name for name in ("nvcc", "nvdisasm", "cuobjdump") if tool.find_tool(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    committed = json.loads(tool.TABLE.read_text())[f"sm_{architecture}"]
    measured = tool.measure(architecture)
    assert measured.keys() == committed.keys()
    for name, row in measured.items():
        # Another compiler release may allocate a few registers differently; it may not spill in a loop.
        assert row["local_accesses_in_loops"] == 0, name
        assert abs(row["registers"] - committed[name]["registers"]) <= 16, name


def test_the_loop_detector_sees_a_spill() -> None:
    loop = ".L_x_1:\n  LDL R1, [R2] ;\n  IADD3 R3, R3, 1, RZ ;\n  @P0 BRA `(.L_x_1) ;\n  EXIT ;\n"
    loop += ".L_x_2:\n  BRA `(.L_x_2) ;\n"
    assert _resources().local_accesses_in_loops(loop) == 1
    assert _resources().local_accesses_in_loops(loop.replace("LDL", "LDS")) == 0
    assert _resources().local_accesses_in_loops("  STL [R1], R2 ;\n" + loop.replace("LDL", "LDS")) == 0
