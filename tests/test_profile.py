"""The profile command: PyTorch's profiler on a CPU, ncu's output from a sample, one line for a wrong argument."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch

from mobilevit_kernels.bench import profile as profiling
from mobilevit_kernels.bench.profile import NcuError, Target
from mobilevit_kernels.cli import profile as command

RAW = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "inverted_residual_kernel" - 0: 0%....50%....100% - 6 passes
"a line of the program itself"
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.sum","dram__bytes_write.sum","gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",\
"gpu__time_duration.sum","l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum","launch__registers_per_thread",\
"sm__warps_active.avg.pct_of_peak_sustained_active"
"","","","","","","","","","","","byte","byte","%","ns","","register/thread","%"
"0","4242","python3.12","127.0.0.1","void mvk::inverted_residual_kernel<mvk::Config<__half, 1, 8, 1>>(mvk::Params)",\
"1","7","(256, 1, 1)","(1024, 1, 1)","0","9.0","33,554,432","16,777,216","41.25","12,345","1,024","168","24.5"
"1","4242","python3.12","127.0.0.1","_attention_kernel","1","7","(128, 1, 1)","(64, 1, 1)","0","9.0","n/a","4,096",\
"3.5","2,000","0","255","12.5"
==PROF== Disconnected from process 4242
"""
TARGET = Target("mobilevit_xxs", "layers.2.1.transformer", 1, 32, "float32", "torch", "cpu")


@pytest.fixture
def run(capsys):
    """Runs the command: (exit code, stdout, error)."""

    def call(*argv: object) -> tuple[int, str, str]:
        try:
            code = command.profile.main([str(part) for part in argv], standalone_mode=False)
            error = ""
        except click.ClickException as raised:
            code, error = 2, raised.format_message()
        except SystemExit as raised:
            code, error = raised.code, ""
        captured = capsys.readouterr()
        return code or 0, captured.out, error or captured.err

    return call


def test_a_stage_on_a_cpu(run, tmp_path: Path) -> None:
    output = tmp_path / "trace.json"
    options = ("--model", "mobilevit_xxs", "--stage", "transformer", "--batch", 1, "--size", 32, "--device", "cpu")
    code, out, _ = run(*options, "--calls", 2, "--output", output, "--json")
    assert code == 0
    data = json.loads(out)
    assert data["target"]["path"] == "layers.2.1.transformer"
    assert data["target"]["served_by"] == "torch"
    kernels = {kernel["name"]: kernel for kernel in data["kernels"]}
    assert kernels["aten::addmm"]["calls"] == 9
    assert sum(kernel["share"] for kernel in data["kernels"]) == pytest.approx(1)
    times = [kernel["total_us"] for kernel in data["kernels"]]
    assert times == sorted(times, reverse=True)
    assert kernels["aten::addmm"]["mean_us"] == pytest.approx(kernels["aten::addmm"]["total_us"] / 9)
    assert any(event.get("name") == "aten::addmm" for event in json.loads(output.read_text())["traceEvents"])
    code, out, _ = run(*options, "--calls", 1)
    assert code == 0
    assert "aten::addmm" in out
    assert "mobilevit_xxs layers.2.1.transformer" in out.splitlines()[0]


def test_a_whole_network(run) -> None:
    code, out, _ = run(
        "--model", "mobilevit_xxs", "--batch", 1, "--size", 32, "--calls", 1, "--json", "--device", "cpu"
    )
    assert code == 0
    assert json.loads(out)["target"]["path"] is None


def test_every_stage_can_be_prepared() -> None:
    first = {stage: path for path, stage in reversed(profiling.stage_paths("mobilevit_xxs").items())}
    assert set(first) == set(command.STAGES)
    first["conv3x3"] = "layers.2.1.fusion"  # the one with two inputs
    for path in first.values():
        call, served_by = profiling.prepare(Target("mobilevit_xxs", path, 1, 32, "float32", "auto", "cpu"))
        assert isinstance(call(), torch.Tensor)
        assert served_by == "torch"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--path layers.9", "--path: expected one of mobilevit_s: stem,"),
        ("--stage head --path stem", "--path: expected one of mobilevit_s with stage head: head; got stem"),
        ("--stage frob", "'frob' is not one of"),
        ("--batch 0", "--batch"),
        ("--output nowhere/trace.json", "--output: "),
        ("--ncu --device cpu", "--ncu: expected a GPU, got cpu"),
    ],
)
def test_wrong_arguments(run, argv: str, said: str) -> None:
    code, _, error = run(*argv.split())
    assert code == 2
    assert said in error
    assert "\n" not in error


def test_a_backend_that_cannot_serve() -> None:
    with pytest.raises(RuntimeError, match="cannot serve"):
        profiling.prepare(Target("mobilevit_xxs", "stem", 1, 32, "float32", "cuda", "cpu"))


def test_read_ncu() -> None:
    first, second = profiling.read_ncu(RAW)
    assert first.kernel.startswith("void mvk::inverted_residual_kernel<")
    assert (first.grid, first.block) == ("(1024, 1, 1)", "(256, 1, 1)")
    assert first.values == {
        "time": (12345.0, "ns"),
        "DRAM read": (33554432.0, "byte"),
        "DRAM written": (16777216.0, "byte"),
        "DRAM": (41.25, "%"),
        "bank conflicts": (1024.0, ""),
        "occupancy": (24.5, "%"),
        "registers": (168.0, "register/thread"),
    }
    assert "DRAM read" not in second.values
    assert profiling.read_ncu("==ERROR== nothing\n") == []


def fake_ncu(folder: Path, text: str, error: str = "", code: int = 0) -> str:
    """An ncu that prints ``text`` and writes its arguments to a file."""
    (folder / "out").write_text(text)
    (folder / "err").write_text(error)
    path = folder / "ncu"
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{folder}/arguments\ncat {folder}/out\ncat {folder}/err >&2\nexit {code}\n'
    )
    path.chmod(0o755)
    return str(path)


def test_count(tmp_path: Path) -> None:
    launches = profiling.count(TARGET, fake_ncu(tmp_path, RAW))
    assert [launch.kernel.split("<")[0] for launch in launches] == [
        "void mvk::inverted_residual_kernel", "_attention_kernel",
    ]  # fmt: skip
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("--profile-from-start") + 1] == "off"
    assert arguments[arguments.index("--clock-control") + 1] == "none"
    assert arguments[arguments.index("--metrics") + 1].split(",") == list(profiling.COUNTERS.values())
    assert Target(**json.loads(arguments[-1])) == TARGET


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n",
            "",
            "ERR_NVGPUCTRPERM",
        ),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", "warning\n", "LibraryNotLoaded"),
        (
            "==PROF== Connected\n==ERROR== The application returned an error code (1).\n",
            "Traceback\nBackendUnavailable: backend='cuda' cannot serve stem\n",
            "BackendUnavailable: backend='cuda' cannot serve stem",
        ),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "", "No kernels were profiled."),
        ("", "", "no output"),
    ],
)
def test_no_counters(tmp_path: Path, text: str, error: str, said: str) -> None:
    with pytest.raises(NcuError) as caught:
        profiling.count(TARGET, fake_ncu(tmp_path, text, error, 1))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_counters_as_a_table(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(profiling, "find_ncu", lambda: fake_ncu(tmp_path, RAW))
    command._show_counters(TARGET, "title", False)
    out = capsys.readouterr().out
    assert out.startswith("title: 2 launches")
    assert "12.3 µs" in out
    assert "33.55 MB" in out
    assert "41.2 %" in out
    assert "168" in out
    command._show_counters(TARGET, "title", True)
    rows = json.loads(capsys.readouterr().out)["launches"]
    assert rows[0]["values"]["time"] == {"metric": "gpu__time_duration.sum", "value": 12345.0, "unit": "ns"}


def test_ncu_missing_or_without_permission(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(profiling, "find_ncu", lambda: None)
    with pytest.raises(click.UsageError, match="no ncu on the PATH"):  # the command line exits 2
        command._show_counters(TARGET, "title", False)
    monkeypatch.setattr(profiling, "find_ncu", lambda: fake_ncu(tmp_path, "==ERROR== ERR_NVGPUCTRPERM\n", "", 1))
    with pytest.raises(SystemExit) as caught:
        command._show_counters(TARGET, "title", False)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ERR_NVGPUCTRPERM" in error


def test_find_ncu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = fake_ncu(tmp_path, "")
    assert profiling.find_ncu() == path
