"""Tuned launch tables: the search with a timer of the test's own, the file, and who reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import verify
from mobilevit_kernels.cli import main
from mobilevit_kernels.verify import StageCase

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
in_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a GPU, which candidates spill is its own affair"
)
STEM = StageCase("stem", (3, 16), (2, 3, 8, 8))


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    skip_unless_available("triton")
    from mobilevit_kernels.triton import tuned

    monkeypatch.setenv("MVK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MVK_LAUNCH_TABLE", raising=False)
    tuned.clear()
    yield
    tuned.clear()


def cost(config) -> float:
    """Microseconds of the pretended GPU: it likes wide tiles, eight warps and few stages."""
    return 1000 / dict(config.blocks)["BLOCK_M"] + abs(config.num_warps - 8) + config.num_stages


def pretended(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    return [cost(call.args[0]) for call in calls]


def tune(path: Path, *cases: StageCase, dtype: torch.dtype = torch.float16, **options: Any) -> list[Any]:
    from mobilevit_kernels.triton import tune as tuning

    plan = [(case, dtype) for case in cases]
    return [o for step in tuning.tune(plan, DEVICE, path, **{"measure": pretended, **options}) for o in step]


def recorded(case: StageCase = STEM, dtype: torch.dtype = torch.float16):
    from mobilevit_kernels.triton import tune as tuning

    return tuning._record(case, dtype, DEVICE)


# --- the search ------------------------------------------------------------------------------------------------------


@in_interpreter
def test_the_fastest_configuration_wins_and_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import tuned

    path = tmp_path / "table.json"
    (outcome,) = tune(path, STEM)
    assert outcome.best.config["BLOCK_M"] == 256
    assert (outcome.best.config.num_warps, outcome.best.config.num_stages) == (8, 1)
    assert outcome.speedup == pytest.approx(cost(outcome.default.config) / cost(outcome.best.config))
    assert len(outcome.candidates) == len({c.config for c in outcome.candidates}) > 5
    assert recorded()[0].config == outcome.default.config
    monkeypatch.setenv("MVK_LAUNCH_TABLE", str(path))
    tuned.clear()
    assert recorded()[0].config == outcome.best.config
    assert verify.check_stage(STEM, "triton", torch.float16, DEVICE).passed
    assert recorded(dtype=torch.float32)[0].config == outcome.default.config, "another dtype is another problem"


@in_interpreter
def test_every_kernel_can_be_tuned(tmp_path: Path) -> None:
    from mobilevit_kernels.triton import launch_table, tuned

    cases = [
        STEM,
        StageCase("conv3x3", (32, 16), (1, 16, 4, 4), {"x2_channels": 16}),
        StageCase("inverted_residual", (16, 32, 16), (1, 16, 4, 4), {"residual": True}),
        StageCase("transformer", (16, 24, 48, 1, 16), (1, 16, 4, 4)),
        StageCase("head", (16, 32, 10), (1, 16, 4, 4)),
    ]
    outcomes = tune(tmp_path / "table.json", *cases, quick=True)
    assert {outcome.problem.kernel for outcome in outcomes} == set(launch_table.KERNELS)
    assert all(outcome.best.us < outcome.default.us for outcome in outcomes)
    assert not [c.rejected for outcome in outcomes for c in outcome.candidates if c.rejected]
    table = tuned.read(tmp_path / "table.json")
    assert table.launches == {outcome.problem: outcome.best.config for outcome in outcomes}


def test_what_is_not_faster_by_two_percent_does_not_win(tmp_path: Path) -> None:
    def level(calls: Sequence[Any], rounds: int) -> list[float]:
        return [10 - 0.001 * call.args[0]["BLOCK_M"] for call in calls]

    (outcome,) = tune(tmp_path / "table.json", STEM, measure=level)
    assert outcome.best is outcome.default


@in_interpreter
def test_wrong_failing_and_spilling_candidates_are_recorded_and_never_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilevit_kernels.triton._launch import Recorded

    run = Recorded.run

    def flawed(self, config):
        if config.num_stages == 2:
            raise RuntimeError("out of resource: shared memory,\nrequired: 300000")
        result = run(self, config)
        if config["BLOCK_M"] == 128:
            self.arguments["out_ptr"].mul_(1.01)
        return SimpleNamespace(n_spills=7) if config.num_warps == 8 else result

    monkeypatch.setattr(Recorded, "run", flawed)
    path = tmp_path / "table.json"
    (outcome,) = tune(path, STEM)
    assert (outcome.best.config["BLOCK_M"], outcome.best.config.num_warps) == (64, 4)
    why = {c.rejected.split(":")[0] for c in outcome.candidates if c.rejected}
    assert why == {"RuntimeError", "another result than the default's", "spills 7 registers"}
    assert all((c.us is None) == bool(c.rejected) for c in outcome.candidates)
    (entry,) = json.loads(path.read_text())["entries"]
    assert "RuntimeError: out of resource: shared memory, required: 300000" in json.dumps(entry)


def test_outputs_are_put_back() -> None:
    # An MLP adds to its input: a second problem on the same tensors must not see what timing the first left there.
    from mobilevit_kernels.triton import tune as tuning

    launches = recorded(StageCase("transformer", (16, 24, 48, 1, 16), (1, 16, 4, 4)))
    (mlp,) = [launch for launch in launches if launch.problem.kernel == "mlp"]
    before = mlp.arguments["tokens_ptr"].clone()

    def running(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
        for call in calls:
            call()
        return pretended(calls, rounds)

    tuning.tune_launch(mlp, 90, measure=running, steps=1)
    assert torch.equal(mlp.arguments["tokens_ptr"], before)


@in_interpreter
def test_a_budget_ends_the_search_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import tune as tuning
    from mobilevit_kernels.triton import tuned

    assert tune(tmp_path / "none.json", STEM, budget=0) == []
    assert not (tmp_path / "none.json").exists()
    clock = iter(range(1000))
    monkeypatch.setattr(tuning.time, "monotonic", lambda: next(clock))
    cases = [STEM, StageCase("head", (16, 32, 10), (1, 16, 4, 4))]
    outcomes = tune(tmp_path / "some.json", *cases, budget=5)
    assert [outcome.problem.kernel for outcome in outcomes] == ["stem"]
    assert len(tuned.read(tmp_path / "some.json").launches) == 1


def test_earlier_entries_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tune(path, STEM, quick=True)
    tune(path, StageCase("head", (16, 32, 0), (1, 16, 4, 4)), quick=True)
    tune(path, STEM, quick=True)
    assert [entry["kernel"] for entry in json.loads(path.read_text())["entries"]] == ["stem", "head"]
    assert list(tmp_path.glob("*.tmp")) == []


# --- the file --------------------------------------------------------------------------------------------------------


def stem_variant() -> str:
    weights = STEM.build()[1]
    packed = mvk.pack(weights, torch.float16, DEVICE, "triton")
    from mobilevit_kernels.triton import stem

    return stem.variant(packed)


def test_the_default_path_is_read_and_named_in_the_report() -> None:
    from mobilevit_kernels.triton import tuned

    assert stem_variant().endswith("static launch table")
    path = tuned.default_path(tuned.identity(DEVICE)[0])
    (outcome,) = tune(path, STEM)
    tuned.clear()
    assert f"launch table tuned {json.loads(path.read_text())['date'][:10]} ({path})" in stem_variant()
    assert recorded()[0].config == outcome.best.config


def test_the_static_table_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import tuned

    (outcome,) = tune(tuned.default_path(tuned.identity(DEVICE)[0]), STEM)
    monkeypatch.setenv("MVK_LAUNCH_TABLE", "static")
    tuned.clear()
    assert recorded()[0].config == outcome.default.config
    assert stem_variant().endswith("static launch table (MVK_LAUNCH_TABLE)")


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edited


FLAWS = {
    "not JSON": (lambda text: text[:100], "not a launch table"),
    "another JSON": (lambda text: "[]", 'expected a launch table with "format": 1'),
    "no date": (edit(lambda data: data.pop("date")), "'date' is missing"),
    "another GPU": (edit(lambda data: data.update(gpu="NVIDIA T4")), "got one of NVIDIA T4"),
    "another arch": (edit(lambda data: data.update(capability="1.0")), "got one of 1.0"),
    "another Triton": (edit(lambda data: data.update(triton="2.0.0")), "got one of 2.0.0"),
    "no tiles": (edit(lambda data: data["entries"][0]["config"].pop("blocks")), "'blocks' is missing"),
    "an odd tile": (edit(lambda data: data["entries"][0]["config"]["blocks"].update(BLOCK_M=48)), "got 48"),
    "other tiles": (edit(lambda data: data["entries"][0]["config"]["blocks"].update(WIDTH=16)), "WIDTH"),
    "odd warps": (edit(lambda data: data["entries"][0]["config"].update(num_warps=3)), "num_warps of 1, 2, 4"),
    "unknown kernel": (edit(lambda data: data["entries"][0].update(kernel="gemm")), "'gemm'"),
    "unknown size": (edit(lambda data: data["entries"][0].update(problem={"width": 1})), "out_width"),
    "unknown dtype": (edit(lambda data: data["entries"][0].update(dtype="int8")), "'int8'"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_table_that_does_not_fit(flaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import tuned

    spoil, complaint = FLAWS[flaw]
    path = tuned.default_path(tuned.identity(DEVICE)[0])
    (outcome,) = tune(path, STEM)
    path.write_text(spoil(path.read_text()))
    tuned.clear()
    # By itself it is passed over, which the Report shows; asked for by name it is an error.
    assert f"static launch table (passed over: {path}: " in stem_variant()
    assert complaint in stem_variant()
    assert recorded()[0].config == outcome.default.config
    monkeypatch.setenv("MVK_LAUNCH_TABLE", str(path))
    tuned.clear()
    with pytest.raises(ValueError, match="MVK_LAUNCH_TABLE") as caught:
        mvk.optimize(mvk.create_model("mobilevit_xxs").to(DEVICE), backend="triton")
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_a_named_table_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVK_LAUNCH_TABLE", "/nowhere/table.json")
    with pytest.raises(ValueError, match=r"/nowhere/table\.json: cannot be read"):
        stem_variant()


# --- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["tune", *argv])
    captured = capsys.readouterr()
    return int(caught.value.code), captured.out, captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys)
    assert code == 2
    assert err == "mobilevit-kernels: error: tune needs a CUDA device, and there is none\n"
    assert run(capsys, "--device", "cpu")[2].endswith("tune needs a CUDA device, got cpu\n")


def test_the_command_prints_what_it_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilevit_kernels import registry
    from mobilevit_kernels.cli import _common
    from mobilevit_kernels.triton import tune as tuning
    from mobilevit_kernels.triton import tuned

    search = tuning.tune
    monkeypatch.setattr(_common, "pick_device", lambda name: torch.device("cuda"))
    status = {"cuda": registry.Status(False, "not built"), "triton": registry.Status(True, "pretended")}
    monkeypatch.setattr(registry, "backends", lambda: status)
    monkeypatch.setattr(tuned, "identity", lambda device: ("NVIDIA Test 1", 90))
    monkeypatch.setattr(
        tuning, "tune", lambda jobs, device, path, **options: search(jobs, DEVICE, path, measure=pretended, **options)
    )
    options = ("--model", "mobilevit_xxs", "--stage", "stem", "--batch", "1", "--size", "32", "--quick")
    code, out, _ = run(capsys, *options)
    assert code == 0
    assert "stem out_width=16 float16" in out
    path = tmp_path / "cache" / "launch-tables" / "nvidia-test-1.json"
    assert tuned.read(path).meta["gpu"] == "NVIDIA Test 1"
    code, out, _ = run(capsys, *options, "--json", "--output", str(tmp_path / "out.json"))
    assert code == 0
    data = json.loads(out)["triton"]
    assert data["path"] == str(tmp_path / "out.json")
    assert data["entries"] == json.loads((tmp_path / "out.json").read_text())["entries"]


@pytest.mark.gpu
def test_on_the_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import tuned

    path = tmp_path / "table.json"
    code, out, _ = run(
        capsys, "--backend", "triton", "--model", "mobilevit_xxs", "--batch", "8", "--size", "64", "--quick", "--json",
        "--output", str(path),
    )  # fmt: skip
    assert code == 0
    entries = json.loads(out)["triton"]["entries"]
    assert {entry["kernel"] for entry in entries} == {
        "stem", "linear", "conv3x3", "depthwise_project", "mlp", "attention", "head",
    }  # fmt: skip
    assert all(0 < entry["us"] <= entry["default_us"] for entry in entries)
    monkeypatch.setenv("MVK_LAUNCH_TABLE", str(path))
    tuned.clear()
    for case in (STEM, StageCase("transformer", (48, 64, 128, 2, 48), (8, 48, 8, 8))):
        assert verify.check_stage(case, "triton", torch.float16, "cuda").passed
