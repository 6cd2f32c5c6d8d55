"""The Triton kernels compiled ahead of time for sm_80, sm_90 and sm_100: limits, spills, the committed tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent
ARCHITECTURES = (80, 90, 100)


def committed(arch: int) -> tuple[str, dict[tuple[str, str], dict[str, Any]]]:
    """The committed table of an architecture: Triton's version, and rows by kernel and dtype."""
    table = json.loads((ROOT / "docs" / f"triton-aot-sm{arch}.json").read_text())
    return table["triton"], {(row["name"], row["dtype"]): row for row in table["kernels"]}


def compiled(arch: int, matches: list[str], output: Path) -> None:
    """Compiles the kernels that match, and compares them with the contract and the committed table."""
    import triton

    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "mobilevit_kernels.triton.aot", "--arch", str(arch), "--jobs", "1"]
    command += [part for match in matches for part in ("--match", match)] + ["--output", str(output)]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    version, rows = committed(arch)
    found = json.loads(output.read_text())["kernels"]
    assert len(found) >= len(matches)
    if triton.__version__ == version:  # another release allocates other registers; the contract holds for all
        assert found == [rows[row["name"], row["dtype"]] for row in found], "`make aot` writes the table anew"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_committed_table_is_of_the_kernels_that_are_launched(arch: int) -> None:
    from mobilevit_kernels.triton import aot

    rows = committed(arch)[1]
    assert set(rows) == {(case.name, case.dtype) for case in aot.cases(arch)}
    assert [row["name"] for row in rows.values() if aot.problems(aot.Usage(**row))] == []


def test_all_kernels_compile_for_sm_90_in_float16(tmp_path: Path) -> None:
    compiled(90, [" fp16"], tmp_path / "table.json")


@pytest.mark.parametrize(("arch", "dtype"), [(80, "fp16"), (90, "bf16"), (90, "fp32"), (100, "fp16")])
def test_the_largest_kernels_compile(arch: int, dtype: str, tmp_path: Path) -> None:
    largest: dict[str, dict[str, Any]] = {}
    for row in committed(arch)[1].values():
        kernel = row["name"].split("(")[0]
        if row["dtype"] == dtype and row["registers"] >= largest.get(kernel, row)["registers"]:
            largest[kernel] = row
    compiled(arch, [f"{row['name']} {row['dtype']}" for row in largest.values()], tmp_path / "table.json")


def test_spills_are_told_apart_by_loops() -> None:
    from mobilevit_kernels.triton.aot import _in_loops

    code = [
        (0x00, "LDL R1, [R2]"),
        (0x10, "STL [R2], R1"),
        (0x20, "@P0 BRA 0x10"),
        (0x30, "LDL R1, [R2]"),
        (0x40, "BRA 0x40"),
    ]
    assert _in_loops(code) == 1
