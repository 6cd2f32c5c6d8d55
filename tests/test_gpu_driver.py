"""tools/gpu.py with fake steps: order, limits, what is left of a step that fails, outruns its time or is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobilevit_kernels.bench import results
from mobilevit_kernels.bench.results import Record

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("mvk_tools_gpu", ROOT / "tools" / "gpu.py")
assert _spec is not None
assert _spec.loader is not None
gpu = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = gpu  # dataclasses look their module up
_spec.loader.exec_module(gpu)


def fake(name: str, code: str, **options):
    """A step that runs a line of Python."""
    return gpu.Step(name, options.pop("log", f"{name}.log"), lambda _: [sys.executable, "-c", code], **options)


@pytest.fixture
def drive(tmp_path: Path, capsys):
    """Runs fake steps: (exit code, summary.json, stdout)."""

    def run(*steps, budget: float | None = 20.0, **options):
        options = {"reserve": 0.2, "grace": 1.0, "minimum": 0.3, **options}
        runner = gpu.Runner(tmp_path, budget, dict(os.environ), **options)
        code = gpu.drive(runner, steps, "GPU, commit 0123", {"gpu": "GPU", "commit": "0123"})
        return code, json.loads((tmp_path / "summary.json").read_text()), capsys.readouterr().out

    return run


def statuses(summary) -> dict[str, str]:
    return {step["name"]: step["status"] for step in summary["steps"]}


def test_all_steps_pass(drive, tmp_path: Path) -> None:
    code, summary, out = drive(fake("build", "print('compiled')"), fake("tests", "print('fine')"))
    assert code == 0
    assert summary["passed"]
    assert statuses(summary) == {"build": "ok", "tests": "ok"}
    assert [step["headline"] for step in summary["steps"]] == ["compiled", "fine"]
    assert (tmp_path / "build.log").read_text().endswith("compiled\n")
    assert out.index("build: running") < out.index("build: ok") < out.index("tests: running")
    assert out.endswith((tmp_path / "summary.txt").read_text())  # the table comes last


def test_a_failing_step_loses_nothing_else(drive) -> None:
    code, summary, _ = drive(
        fake("build", "print('no compiler'); raise SystemExit(3)"),
        gpu.Step("missing", "missing.log", lambda _: ["/nowhere/tool"]),
        fake("tests", "print('fine')"),
    )
    assert code == 1
    assert not summary["passed"]
    assert statuses(summary) == {"build": "failed", "missing": "failed", "tests": "ok"}
    assert summary["steps"][0]["headline"] == "no compiler (exit code 3)"
    assert "No such file" in summary["steps"][1]["headline"]


def died(pid: int) -> bool:
    """Whether the process ends within seconds; it may stay a zombie that nobody waits for."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_step_that_outruns_its_limit_is_killed_with_its_children(drive, tmp_path: Path) -> None:
    # The parent and the child both ignore SIGTERM.
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); print('started', flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    exit_code, summary, out = drive(
        fake("tests", code, cap=1.5), fake("bench", "print('measured')"), grace=0.5, heartbeat=0.4
    )
    assert time.monotonic() - begin < 10
    assert exit_code == 1
    assert statuses(summary) == {"tests": "timed out", "bench": "ok"}
    assert "started" in summary["steps"][0]["headline"]
    assert "started" in (tmp_path / "tests.log").read_text()  # its log so far is kept
    assert "tests: … started" in out
    assert died(int((tmp_path / "child").read_text()))


def test_what_a_step_leaves_behind_is_killed(drive, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))"
    )
    assert drive(fake("bench", code))[0] == 0
    assert died(int((tmp_path / "child").read_text()))


def test_a_step_ends_itself_on_sigterm(drive) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *a: (print('kept'), exit(0))); time.sleep(60)"
    _, summary, _ = drive(fake("bench", code, cap=1.0), grace=5.0)
    assert summary["steps"][0]["status"] == "timed out"
    assert summary["steps"][0]["headline"].endswith(": kept")
    assert summary["steps"][0]["seconds"] < 4


def test_the_budget_holds_and_later_steps_keep_their_share(drive) -> None:
    endless = "import time; time.sleep(60)"
    begin = time.monotonic()
    code, summary, _ = drive(
        fake("build", endless, cap=1.0),
        fake("tests", endless),
        fake("bench", "print('measured')", share=1.5),
        fake("late", endless, share=0.0),
        budget=6.0,
        grace=0.3,
    )
    assert time.monotonic() - begin < 6.0
    assert code == 1
    assert statuses(summary) == {"build": "timed out", "tests": "timed out", "bench": "ok", "late": "timed out"}
    limits = {step["name"]: step["limit_s"] for step in summary["steps"]}
    assert limits["build"] == 1.0
    assert limits["tests"] < 6.0 - 1.0 - 1.5
    assert limits["bench"] > 1.0


def test_no_time_left(drive) -> None:
    code, summary, _ = drive(fake("build", "import time; time.sleep(60)"), fake("tests", ""), budget=2.0, grace=0.2)
    assert code == 1
    assert statuses(summary) == {"build": "timed out", "tests": "skipped"}
    assert summary["steps"][1]["headline"] == "no time left"


@pytest.mark.parametrize("excused", [True, False])
def test_a_step_that_cannot_run(drive, excused: bool) -> None:
    code, summary, _ = drive(fake("memcheck", "", obstacle=lambda: "no tool", excused=excused))
    assert statuses(summary) == {"memcheck": "skipped"}
    assert summary["steps"][0]["headline"] == "no tool"
    assert code == (0 if excused else 1)


def test_an_interrupt_ends_the_run_with_a_table(drive) -> None:
    before = signal.signal(signal.SIGTERM, gpu._interrupt)
    try:
        killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"])
        code, summary, out = drive(fake("tests", "import time; time.sleep(60)"), fake("bench", ""))
        killer.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    assert statuses(summary) == {"tests": "failed", "bench": "skipped"}
    assert out.count("interrupted") >= 2


def test_leftovers_of_an_earlier_run_and_of_a_killed_write_go(drive, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "notes").write_text("the user's")
    drive(fake("bench", f"open({str(tmp_path / 'bench.jsonab12.tmp')!r}, 'w')", log="bench.log"))
    assert {path.name for path in tmp_path.iterdir()} == {"bench.log", "notes", "summary.json", "summary.txt"}


# --- this project's steps ---------------------------------------------------------------------------------------------


def test_the_plan_writes_eight_files_at_most(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "/usr/local/cuda/bin/compute-sanitizer")
    steps = gpu.plan(tmp_path, full=False, budget=540.0, gpu="NVIDIA H200", offline=True)
    assert [step.name for step in steps] == [
        "build",
        "tests",
        "tune",
        "warm",
        "bench",
        "peers",
        "memcheck",
        "racecheck",
        "report",
    ]
    assert len(gpu.FILES) == 8
    assert {step.log for step in steps} < set(gpu.FILES)
    named = [part for step in steps for part in step.command(100.0) if str(tmp_path) in part]
    assert {Path(part).name for part in named} <= set(gpu.FILES)
    assert "--no-build-isolation" in steps[0].command(100.0)
    assert steps[4].command(100.0)[-2:] == ["--budget-s", "75"]
    # What is left to the benchmarks where everything before them takes as long as it may.
    assert gpu.QUICK_BUDGET_S - 10 - sum(step.cap for step in steps[:4]) - sum(s.share for s in steps[6:]) > 100
    tight = gpu.plan(tmp_path, full=False, budget=60.0, gpu="NVIDIA H200", offline=True)
    assert sum(step.share for step in tight) < 40  # the first steps are not skipped for the later ones
    full = gpu.plan(tmp_path, full=True, budget=None, gpu="NVIDIA H200", offline=False)
    assert full[3].command(float("inf"))[-2:] == ["--output", str(tmp_path / "bench.json")]
    assert "--no-build-isolation" not in full[0].command(100.0)


def test_the_report_of_tuning_names_what_the_rules_chose_wrongly() -> None:
    def entry(problem: str, default: float, other: float) -> dict[str, object]:
        best = "tiles" if default <= other else "wgmma"
        return {"problem": problem, "default": "tiles", "best": best, "us": {"tiles": default, "wgmma": other}}

    entries = [entry("a", 10.0, 12.0), entry("b", 100.0, 60.5), entry("c", 50.0, 45.0)]
    text = json.dumps({"cuda": {"path": "x", "seconds": 3.2, "entries": entries}}, indent=2)
    report = gpu.report_tune(f"a warning\n{text}\nanother")
    assert report.headline == "3 problems in 3 s, 2 of them faster than by rule"
    assert report.details == ("b: wgmma 60.5 µs, tiles 100.0", "c: wgmma 45.0 µs, tiles 50.0")
    assert gpu.report_tune("mobilevit-kernels: error: no GPU\n").headline == "mobilevit-kernels: error: no GPU"
    assert gpu.report_tune('{\n "cuda": {').headline == '"cuda": {'


def test_peers_are_measured_alone_where_a_kernel_took_the_gpu(tmp_path: Path) -> None:
    peers = gpu.plan(tmp_path, full=False, budget=540.0, gpu="GPU", offline=True)[5]
    assert peers.obstacle() is None, "the benchmarks left nothing"
    for reason, needed in (("the GPU was lost to ours (cuda)", True), ("", False)):
        text = json.dumps({"records": [{"reason": reason}]})
        (tmp_path / "bench.json").write_text(text)
        assert (peers.obstacle() is None) == needed
    command = peers.command(100.0)
    assert "--resume" in command
    assert "ours" not in command
    assert command.count("--impl") == 4


def test_the_sanitizer_runs_what_was_built(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: "/tool")
    memcheck = gpu.plan(tmp_path, full=False, budget=540.0, gpu="GPU", offline=True)[6]
    assert memcheck.obstacle() == "the extension was not built"
    (tmp_path / "build.log").write_text("-- mobilevit_kernels: no nvcc on the PATH\nSuccessfully installed\n")
    assert memcheck.obstacle() == "the extension was not built"
    (tmp_path / "build.log").write_text("-- mobilevit_kernels: CUDA kernels for 90a with nvcc\nerror: ninja failed\n")
    assert memcheck.obstacle() == "the extension was not built"
    (tmp_path / "build.log").write_text(
        "-- mobilevit_kernels: CUDA kernels for 90a with nvcc\nSuccessfully installed x\n"
    )
    assert memcheck.obstacle() is None
    assert gpu.plan(tmp_path, full=False, budget=540.0, gpu=None, offline=True)[6].obstacle() == "no GPU"


def test_the_sanitizer_s_options_are_those_that_it_knows(tmp_path: Path) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '  --kernel-name arg  --launch-timeout arg'\n")
    tool.chmod(0o755)
    command = gpu.sanitizer_command("python3", str(tool), "memcheck")
    assert command[: command.index("python3")] == [
        str(tool), "--tool", "memcheck", "--error-exitcode", "86", "--target-processes", "application-only",
        "--launch-timeout", "0", "--kernel-name", "kns=mvk",
    ]  # fmt: skip
    assert "--kernel-name" not in gpu.sanitizer_command("python3", "/nowhere", "memcheck")
    assert all((ROOT / name).is_file() for name in gpu.SANITIZED)


def test_no_gpu(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda python: None)
    monkeypatch.delenv("MVK_ALLOW_CPU", raising=False)
    monkeypatch.delenv("MVK_BUDGET_S", raising=False)
    assert gpu.main([]) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "no GPU found" in out
    monkeypatch.setattr(gpu, "find_gpu", lambda python: "NVIDIA H200")
    assert gpu.main(["--check"]) == 0


def test_find_gpu(tmp_path: Path, monkeypatch) -> None:
    def script(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    script("nvidia-smi", "echo NVIDIA H200; echo NVIDIA H200")
    assert gpu.find_gpu(script("with-torch", "echo NVIDIA A100")) == "NVIDIA A100"
    assert gpu.find_gpu(script("blind-torch", "echo")) is None
    assert gpu.find_gpu(script("no-torch", "exit 1")) == "NVIDIA H200"
    script("nvidia-smi", "exit 9")
    assert gpu.find_gpu(script("no-torch", "exit 1")) is None


def test_the_budget_s_value(monkeypatch, capsys) -> None:
    monkeypatch.delenv("MVK_BUDGET_S", raising=False)
    assert gpu.read_budget(full=False) == 540
    assert gpu.read_budget(full=True) is None
    monkeypatch.setenv("MVK_BUDGET_S", "90.5")
    assert gpu.read_budget(full=True) == 90.5
    for text in ("soon", "0", "-3", "inf", "nan"):
        monkeypatch.setenv("MVK_BUDGET_S", text)
        assert gpu.main([]) == 2
        assert capsys.readouterr().err == f"MVK_BUDGET_S: expected a number of seconds, got {text!r}\n"


def test_the_children_s_environment(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("MVK_COMMIT", "0123abc")
    environment = gpu.children_environment()
    assert "TRITON_INTERPRET" not in environment
    assert environment["MVK_COMMIT"] == "0123abc"
    assert environment["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setattr(gpu, "ROOT", Path("/nowhere"))
    assert gpu.commit() == "0123abc"
    monkeypatch.delenv("MVK_COMMIT")
    assert gpu.commit() == "unknown"


# --- what the outputs say ---------------------------------------------------------------------------------------------

TESTS = """\
import pytest
def test_a(): pass
@pytest.mark.parametrize("case", ["stem 3→16 2×3×8×8", "head"])
def test_b(case): assert case == "head", "wrong"
@pytest.mark.skip(reason="needs a GPU")
def test_c(): pass
@pytest.fixture
def broken(): raise RuntimeError("setup")
def test_d(broken): pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_report_of_pytest(tmp_path: Path, workers: int) -> None:
    (tmp_path / "test_x.py").write_text(TESTS)
    command = gpu.pytest_command(sys.executable, "-n", str(workers), str(tmp_path))
    command[command.index("gpu")] = "not gpu"
    environment = {**gpu.children_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command[3:3] = ["-p", "xdist.plugin", "-c", os.devnull, "--rootdir", str(tmp_path)]
    text = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path).stdout
    report = gpu.report_tests(text)
    assert report.headline == "1 failed, 2 passed, 1 skipped, 1 error"
    names = sorted(report.details)
    assert names[0] == "ERROR test_x.py::test_d"
    assert names[1].startswith("FAILED test_x.py::test_b[stem 3")
    assert len(names) == 2
    killed = text[: text.index("====", text.index("test_d"))]
    assert gpu.report_tests(killed).headline.endswith(" so far")
    assert set(gpu.report_tests(killed).details) == set(names)


MEMCHECK = """\
========= COMPUTE-SANITIZER
tests/test_primitives.py::test_mma[cuda-mma_m16n8k16_float16-16-dtype0] PASSED            [  5%]
========= Invalid __global__ write of size 2 bytes
=========     at mvk::inverted_residual_kernel+0x1230
=========     by thread (31,0,0) in block (3,0,0)
tests/test_sanitize.py::test_small_case[cuda-cuda-inverted_residual-float16] FAILED       [100%]
================= 1 failed, 1 passed, 12 deselected in 21.33s =================
========= Target application returned an error
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
tests/test_primitives.py::test_mma[cuda-mma_m16n8k16_float16-16-dtype0] PASSED            [100%]
============================== 1 passed in 30.01s ==============================
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""


def test_report_of_the_sanitizer() -> None:
    report = gpu.report_sanitizer(MEMCHECK)
    assert report.headline == "1 error; 1 failed, 1 passed, 12 deselected"
    assert report.details == (
        "Invalid __global__ write of size 2 bytes",
        "Target application returned an error",
        "FAILED tests/test_sanitize.py::test_small_case[cuda-cuda-inverted_residual-float16]",
    )
    report = gpu.report_sanitizer(RACECHECK)
    assert report.headline == "0 hazards displayed (0 errors, 0 warnings); 1 passed"
    assert report.details == ()
    assert not report.failed
    nothing = gpu.report_sanitizer("========= COMPUTE-SANITIZER\n")
    assert nothing.headline.startswith("no summary")
    assert nothing.failed
    skipped = RACECHECK.replace("PASSED", "SKIPPED").replace("passed", "skipped")
    assert gpu.report_sanitizer(skipped).failed  # nothing was checked


def test_a_report_can_fail_a_step(drive) -> None:
    code, summary, _ = drive(fake("tests", "print('=== 20 skipped in 1.0s ===')", report=gpu.report_gpu_tests))
    assert code == 1
    assert statuses(summary) == {"tests": "failed"}
    assert summary["steps"][0]["headline"] == "20 skipped"


def test_report_of_the_build() -> None:
    text = "-- mobilevit_kernels: CUDA kernels for 90a with /usr/bin/nvcc\nSuccessfully installed mobilevit-kernels\n"
    assert gpu.report_build(text).headline == "CUDA kernels for 90a with /usr/bin/nvcc"
    failed = "a.cu(3): error: expected a ';'\nninja: build stopped\nerror: metadata-generation-failed\n"
    assert gpu.report_build(failed).details == ("a.cu(3): error: expected a ';'", "error: metadata-generation-failed")


def test_at_most_ten_details(drive) -> None:
    _, summary, _ = drive(fake("tests", "", report=lambda _: gpu.Report("12 failed", tuple(map(str, range(12))))))
    details = summary["steps"][0]["details"]
    assert len(details) == 10
    assert details[-1] == "and 3 more, in tests.log"


def record(impl: str, ms: float | None, status: str = "ok", model: str | None = "mobilevit_s", **more) -> Record:
    return Record(
        job=f"model/{model}/b256" if model else "stage/stem", model=model, stage=None if model else "stem", case=None,
        suites=("models",), shape=(256, 3, 256, 256), impl=impl, dtype="float16", batch=256, height=256, width=256,
        status=status, ms=ms, **{"backend": "torch", "graph": False, **more},
    )  # fmt: skip


def test_figures(drive, tmp_path: Path) -> None:
    errors = {"rel_l2_err": 2.0e-3, "stock_rel_l2_err": 2.1e-3}
    records = [
        record("eager", 40.0),
        record("compile-default", 20.0),
        record("compile-max-autotune", 16.0),
        record("compile-reduce-overhead", 9.0, "parity failed"),
        record("ours", 5.0, backend="triton", floor_fraction=0.4, **errors),
        record("ours", 4.0, backend="triton", graph=True, floor_fraction=0.5, **errors),
        record("ours", 1.0, "parity failed", backend="cuda", rel_l2_err=0.3),
        record("compile-default", 7.0, model="mobilevit_xs"),
        record("ours", 2.0, "parity failed", model="mobilevit_xs", rel_l2_err=0.5, stock_rel_l2_err=1e-3),
        record("compile-default", None, "out of memory", model="mobilevit_xxs"),
        record("ours", 3.0, model="mobilevit_xxs", **errors),
        record("compile-default", 3.0, model="resnet50"),
        record("ours", None, "left out", model="mobilevit_m"),
        record("ours", 1.0, model=None),
    ]
    meta = dict.fromkeys(results.META)
    results.write(tmp_path / "source.json", meta, records)
    copy = f"import shutil; shutil.copy({str(tmp_path / 'source.json')!r}, {str(tmp_path / 'bench.json')!r})"
    _, summary, out = drive(fake("bench", copy, report=lambda _: gpu.report_bench(tmp_path / "bench.json")))
    assert summary["steps"][0]["headline"] == "14 records: 9 ok, 3 parity failed, 1 out of memory, 1 left out"
    assert "parity failed: model/mobilevit_s/b256 ours (cuda)" in summary["steps"][0]["details"]
    rows = {row["model"]: row for row in summary["figures"]}
    assert list(rows) == ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"]
    assert rows["mobilevit_s"]["compile"] == "max-autotune"
    assert rows["mobilevit_s"]["ours"] == "ours (triton, graph)"
    assert rows["mobilevit_s"]["ratio"] == 4.0
    assert rows["mobilevit_xs"]["ratio"] is None
    assert rows["mobilevit_xs"]["ours_ms"] is None
    assert rows["mobilevit_xs"]["note"] == "ours: parity failed"
    assert rows["mobilevit_xxs"]["note"] == "torch.compile: out of memory"
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("mobilevit")}
    assert lines["mobilevit_s"].split()[4:] == [
        "max-autotune", "16.000", "ours", "(triton,", "graph)", "4.000", "4.00x", "2.0e-03", "2.1e-03", "50%",
    ]  # fmt: skip
    assert lines["mobilevit_xs"].endswith("ours: parity failed")


def test_figures_of_a_broken_file(drive, tmp_path: Path) -> None:
    broken = f"open({str(tmp_path / 'bench.json')!r}, 'w').write('{{')"
    code, summary, _ = drive(fake("bench", broken, report=lambda _: gpu.report_bench(tmp_path / "bench.json")))
    assert code == 0
    assert summary["figures"] == []
    assert summary["steps"][0]["headline"] == "0 records"
