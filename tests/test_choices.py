"""Which alternative serves a stage: all of them give one result, measurements choose, tables keep what they chose."""

from __future__ import annotations

import gc
import importlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import backend_params, skip_unless_available
from test_plan import network

import mobilevit_kernels as mvk
from mobilevit_kernels import cuda, engine, native
from mobilevit_kernels.cache import table_path
from mobilevit_kernels.canonical import Conv3x3Weights
from mobilevit_kernels.cli import cli
from mobilevit_kernels.native import choices, conv3x3, inverted_residual, tuning
from mobilevit_kernels.native.choices import Outcome
from mobilevit_kernels.native.launches import Launch, Slot, execute, map_slot
from mobilevit_kernels.registry import Status

CPU = torch.device("cpu")
OUTPUTS: dict[str, Any] = {"pool": True, "taps": ()}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No table of an earlier run; the simulator's library stays where it is."""
    path = tmp_path / "choice-tables"
    monkeypatch.setattr(choices, "default_path", lambda gpu: path / f"{gpu}.json")
    monkeypatch.delenv("MVK_CHOICE_TABLE", raising=False)
    choices.clear()
    yield
    choices.clear()


@pytest.fixture
def fast() -> mvk.MobileViT:
    skip_unless_available("simt")
    return network("xxs", "simt", "cpu")


def steps(calls: Sequence[Callable[[], object]]) -> list[float]:
    """A pretended timer: every call is faster than the one before it."""
    return [1000.0 / (i + 1) for i in range(len(calls))]


def by_rule(library, problem, alternatives, device, measure) -> Outcome:
    """In place of :func:`tuning.tune_stage`: runs nothing."""
    return tuning.fastest(problem, dict.fromkeys(alternatives, 1.0), {})


# --- alternatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))
def test_every_alternative_of_a_network_gives_the_default_result(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    x = torch.rand(2, 3, 32, 32, device=device)
    before = fast(x)
    found = list(fast.engine.tune(fast, x.half(), measure=steps, **OUTPUTS))
    assert {outcome.problem.split()[0] for outcome in found} == {"conv3x3", "inverted_residual", "transformer"}
    assert not [outcome for outcome in found if outcome.rejected]
    assert all(outcome.best == list(outcome.us)[-1] != outcome.default for outcome in found)
    by_stage: dict[str, set[str]] = {}
    for outcome in found:
        by_stage.setdefault(outcome.problem.split()[0], set()).update(outcome.us)
    own = {"tiny tiles", "small tiles", "medium tiles", "large tiles"}
    if native.library(backend).has_wgmma(torch.device(device)):
        own |= {"wgmma, 128 pixels", "wgmma, 256 pixels"}
    assert by_stage["conv3x3"] == own | {conv3x3.PYTORCH}
    forms = {inverted_residual.ROWS, inverted_residual.TILES, inverted_residual.split(2)}
    assert forms <= by_stage["inverted_residual"]
    assert {"clusters of 16 rows", "64 rows a block", "256 rows a block"} <= by_stage["transformer"]
    # The network takes what was measured, and says so.
    result = fast(x)
    assert float((result - before).norm() / before.norm()) < 2e-2
    (note,) = [note for note in mvk.report(fast).notes if note.startswith("plan for (2, 3, 32, 32)")]
    assert note.count(conv3x3.PYTORCH) == 6
    # Seven stages, two of them the same problem; at stride 1 tiles are the rules' own choice.
    assert note.count(f": {inverted_residual.TILES}") == 4
    assert note.count(f": {inverted_residual.ROWS}") == 2
    fast.engine.clear()
    with torch.inference_mode():
        assert torch.equal(fast(x), result)
    assert torch.equal(fast(x), result)  # in the workspace that was made in inference mode
    # Another shape goes by the rules.
    assert torch.equal(fast(x[:1]), fast.run(x[:1].half())[0].float())


def test_weights_come_back_from_their_fragments() -> None:
    weight = torch.randn(24, 40, 3, 3, dtype=torch.float16)
    assert torch.equal(conv3x3.unpack_fragments(conv3x3.pack_fragments(weight), 40, 24), weight)


def test_plans_share_what_pytorch_reads_and_may_go_before_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available("simt")
    weights = Conv3x3Weights(torch.randn(8, 8, 3, 3), torch.randn(8))
    packed = mvk.pack(weights, dtype=torch.float16, backend="simt")
    read: list[torch.Tensor] = []
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(conv3x3.F, "conv2d", lambda x, w, b, **kw: read.extend((w, b)) or convolve(x, w, b, **kw))
    for size in (1, 4):
        x = torch.rand(3, 8, size, size, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
        slot = Slot.like(x)
        ways = native.alternatives(slot, packed, dilation=1, activation="none")
        execute("simt", ways[conv3x3.PYTORCH], {slot: x})
    assert read[0] is read[2]
    assert read[1] is read[3]
    alive = [weakref.ref(tensor) for tensor in read]
    read.clear()
    del ways, slot
    assert all(reference() is not None for reference in alive)  # the plans are gone, a graph may still be there
    fresh = replace(packed, device=torch.device("cuda"))
    del packed
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = map_slot(1, 8, 2, 2, torch.float16)
    (launch,) = native.alternatives(x, fresh, dilation=1, activation="none")[conv3x3.PYTORCH]
    assert launch.function is not None
    with pytest.raises(RuntimeError, match="is not ready for the capture of a CUDA graph; call the model once before"):
        launch.function({"x": torch.empty(0)}, torch.empty(0))


def test_wrong_and_failing_alternatives_never_win() -> None:
    skip_unless_available("simt")
    x = map_slot(1, 8, 2, 2, torch.float16)

    def launch(function: Callable[[torch.Tensor], torch.Tensor]) -> list[Launch]:
        y = map_slot(1, 8, 2, 2, torch.float16)
        run = lambda inputs, output: output.copy_(function(inputs["x"]))  # noqa: E731
        return [Launch("test", {"x": x}, y, {}, torch.float16, function=run)]

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("too many\nresources")

    ways = {
        "plain": launch(lambda x: x * 2),
        "same": launch(lambda x: x + x),
        "wrong": launch(lambda x: x * 2.1),
        "nan": launch(lambda x: x * float("nan")),
        "failing": launch(fail),
        "huge": [replace(launch(lambda x: x * 2)[0], workspace_bytes=1 << 60)],
    }
    outcome = tuning.tune_stage(native.library("simt"), "p", ways, CPU, steps)
    assert outcome.best == "same"
    assert outcome.us == {"plain": 1000.0, "same": 500.0}
    assert outcome.rejected["failing"] == "RuntimeError: too many resources"
    assert outcome.rejected["wrong"].startswith("another result than the default's: relative error ")
    assert {"nan", "huge"} <= set(outcome.rejected)
    # Short work does not wait for the host.
    outcome = tuning.tune_stage(native.library("simt"), "p", ways, CPU, lambda calls: [10.0, 1.0])
    assert outcome.best == "plain"
    assert outcome.rejected["same"] == "1.0 µs, but a step in PyTorch takes the host 40 µs"


def test_what_is_not_faster_by_two_percent_does_not_win() -> None:
    assert tuning.fastest("p", {"a": 100.0, "b": 98.5, "c": 99.0}, {}).best == "a"
    assert tuning.fastest("p", {"a": 100.0, "b": 97.0, "c": 99.0}, {}).best == "b"


# --- slices ----------------------------------------------------------------------------------------------------------


def test_slices_bring_a_batch_near_the_l2() -> None:
    megabyte = 1 << 20
    assert tuning.slice_counts(1, megabyte, 50 * megabyte) == (1,)
    assert tuning.slice_counts(8, 13 * megabyte, 50 * megabyte) == (1,)  # it fits
    counts = tuning.slice_counts(256, 400 * megabyte, 50 * megabyte)
    assert counts[0] == 1
    assert all(256 % count == 0 and 50 / 8 <= 400 / count <= 100 for count in counts[1:])
    assert 3 <= len(counts) <= 5
    assert tuning.slice_counts(251, 400 * megabyte, 50 * megabyte) == (1,)  # a prime


def test_a_forward_in_slices_gives_the_bits_of_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available("simt")
    fast = network("xxs", "simt", "cpu", num_classes=7)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float16)
    monkeypatch.setattr(type(native.library("simt")), "l2_bytes", lambda self, device: 40_000)

    monkeypatch.setattr(tuning, "tune_stage", by_rule)
    *_, outcome = fast.engine.tune(fast, x, measure=lambda calls: [3.0, 1.0], **OUTPUTS)
    assert outcome.problem.startswith("slices of a batch, forward ")
    assert (outcome.default, outcome.best, list(outcome.us)) == ("1", "2", ["1", "2"])
    options = {"pool": True, "taps": (0, 3)}
    halves = [fast.run(half, **options) for half in x.chunk(2)]
    sliced = fast.engine.call(fast, x, **options)
    for output, parts in zip(sliced, zip(*halves, strict=True), strict=True):
        assert torch.equal(output, torch.cat(parts))
    (note,) = [note for note in mvk.report(fast).notes if note.startswith("plan for (2, ")]
    assert note.endswith(" stages in 2 slices of the batch")


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_step_in_pytorch_parts_the_compiled_plan(fast: mvk.MobileViT) -> None:
    extension = pytest.importorskip("mobilevit_kernels._C", reason="the extension is not built here: no nvcc")
    x = torch.rand(1, 3, 32, 32)
    whole = fast.engine.plan(fast, x, **OUTPUTS)
    assert whole is not None
    assert [len(part) for part in cuda._CompiledPlan(cuda.CudaLibrary(extension), whole)._parts] == [whole.kernels]
    for _ in fast.engine.tune(fast, x.half(), stages=["conv3x3"], measure=steps, **OUTPUTS):
        pass
    plan = fast.engine.plan(fast, x, **OUTPUTS)
    assert plan is not None
    parts = cuda._CompiledPlan(cuda.CudaLibrary(extension), plan)._parts
    kinds = ["step" if isinstance(part, Launch) else len(part) for part in parts]
    assert kinds.count("step") == 6
    assert kinds[0] == 6  # stem and inverted residuals
    assert sum(kind for kind in kinds if kind != "step") == len(plan.launches) - 6


def test_other_backends_cannot_be_tuned() -> None:
    fast = network("xxs", "torch", "cpu")
    with pytest.raises(RuntimeError, match=r"tune: expected a network .* CUDA kernels .*, got backends torch"):
        list(fast.engine.tune(fast, torch.rand(1, 3, 32, 32), **OUTPUTS))
    with pytest.raises(RuntimeError, match="tune: expected the model on a CUDA device, it is on cpu"):
        fast.tune(1)


def test_a_network_with_hooks_is_not_tuned(fast: mvk.MobileViT) -> None:
    fast.stages()[3].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="tune: expected a network without forward hooks"):
        list(fast.engine.tune(fast, torch.rand(1, 3, 32, 32), **OUTPUTS))


# --- tables ----------------------------------------------------------------------------------------------------------

ENTRY = Outcome("p", "a", "b", {"a": 2.0, "b": 1.0}, {"c": "it spills"})
META = {"gpu": "simulator", "version": mvk.__version__, "torch": "2.11", "date": "2026-11-26T00:00:00+00:00"}


def test_a_table_is_read_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices.chosen(CPU) == {}
    assert choices.origin(CPU) == ""
    path = choices.default_path("simulator")
    choices.write(path, META, [ENTRY])
    assert choices.read(path) == (META, [ENTRY])
    assert choices.kept(path, CPU) == {"p": ENTRY}
    choices.clear()
    assert choices.chosen(CPU) == {"p": "b"}
    assert choices.origin(CPU) == f"choice table of 2026-11-26 ({path})"
    monkeypatch.setenv("MVK_CHOICE_TABLE", "none")
    choices.clear()
    assert choices.chosen(CPU) == {}
    monkeypatch.setenv("MVK_CHOICE_TABLE", str(path))
    choices.clear()
    assert choices.chosen(CPU) == {"p": "b"}
    monkeypatch.delenv("MVK_CHOICE_TABLE")
    choices.write(path, META | {"version": "0.0.1"}, [ENTRY])
    choices.clear()
    assert choices.chosen(CPU) == choices.kept(path, CPU) == {}
    assert "passed over" in choices.origin(CPU)
    assert f"expected a table of version {mvk.__version__}, got one of 0.0.1" in choices.origin(CPU)
    monkeypatch.setenv("MVK_CHOICE_TABLE", str(path))
    choices.clear()
    with pytest.raises(ValueError, match=r"MVK_CHOICE_TABLE: .*expected a table of version"):
        choices.chosen(CPU)


def test_a_user_without_a_cache_folder_goes_by_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", locked)
        assert choices.chosen(CPU) == {}
        assert choices.origin(CPU) == ""
    # No HOME, and a user whom the system does not know.
    for name in ("MVK_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    assert table_path("choice-tables", "simulator").name == "simulator.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not a choice table"),
        ("[]", 'expected "format": 1'),
        (json.dumps({"format": 1, **META}), "'entries' is missing"),
        (json.dumps({"format": 1, **META, "entries": [{"problem": "p"}]}), "not a choice table"),
        (json.dumps({"format": 1, **META, "entries": [ENTRY.to_dict() | {"best": 3}]}), "expected strings"),
        (json.dumps({"format": 1, **META, "gpu": 3, "entries": []}), "expected strings"),
    ],
)
def test_what_is_no_table_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        choices.read(path)
    assert str(path) in str(error.value)


def test_a_choice_that_this_device_does_not_have_does_not_count(
    fast: mvk.MobileViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "tune_stage", by_rule)
    x = torch.rand(1, 3, 32, 32)
    expected = fast(x)
    for outcome in list(fast.engine.tune(fast, x.half(), measure=steps, **OUTPUTS)):
        choices.add(CPU, [Outcome(outcome.problem, outcome.default, "clusters of a thousand rows", {})])
    fast.engine.clear()
    assert torch.equal(fast(x), expected)
    assert [engine._slices(count, 6) for count in ("1", "2", "3", "6", "4", "12", "0", "-2", "two", "")] == [
        *(1, 2, 3, 6), *[1] * 6,
    ]  # fmt: skip


def test_the_command_writes_a_table_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    choices.write(path, META, [Outcome("old", "a", "a", {"a": 1.0})])
    tune_command = importlib.import_module("mobilevit_kernels.cli.tune")
    monkeypatch.setattr(tune_command, "_obstacle", lambda name: None if name == "cuda" else "no Triton")
    monkeypatch.setattr(tune_command._common, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(choices, "gpu_name", lambda device: "simulator")
    monkeypatch.setattr(tune_command.machine, "describe", lambda device: META)
    given = []

    def outcomes(model, batch, dtype, size, device, stages) -> Iterator[Outcome]:
        given.append((model, batch, dtype, size, stages))
        choices.add(CPU, [ENTRY])
        assert choices.chosen(CPU) == {"p": "b"}
        yield ENTRY
        assert [o.problem for o in choices.read(path)[1]] == ["old", "p"]

    monkeypatch.setattr(tune_command, "_outcomes", outcomes)
    monkeypatch.setenv("MVK_CHOICE_TABLE", "/nowhere/table.json")
    arguments = ["tune", "--model", "mobilevit_xs", "--batch", "8", "--batch", "1", "--output", str(path), "--json"]
    run = CliRunner().invoke
    done = run(cli, arguments)
    assert done.exit_code == 0, done.output
    assert given == [("mobilevit_xs", batch, torch.float16, 256, ()) for batch in (8, 1)]
    assert json.loads(done.stdout)["cuda"]["entries"] == [ENTRY.to_dict()]
    done = run(cli, ["tune", "--backend", "triton"])
    assert done.exit_code == 2
    assert "--backend triton: no Triton" in done.output
    done = run(cli, ["tune", "--dtype", "float32"])
    assert done.exit_code == 2
    assert "cuda: the CUDA kernels have --dtype float16 and bfloat16" in done.output
    done = run(cli, ["tune", "--backend", "cuda", "--dtype", "float32", "--dtype", "float16"])
    assert "--backend cuda: the CUDA kernels have --dtype float16 and bfloat16" in done.output
    done = run(cli, [*arguments[:-1], "--budget-s", "0"])
    assert "cuda: 1 problems" in done.stdout
    assert "2.00" in done.stdout
    with pytest.raises(ValueError, match=r"/nowhere/table\.json: cannot be read"):
        choices.chosen(CPU)


def test_the_command_tunes_networks_that_the_cuda_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the simulator in the place of the extension, which refuses networks that have not been moved yet."""
    skip_unless_available("simt")
    moved = []
    to = mvk.MobileViT.to
    monkeypatch.setattr(mvk.MobileViT, "to", lambda self, device: moved.append(device) or to(self, device))
    monkeypatch.setattr(cuda, "status", lambda: Status(True, "the simulator"))
    monkeypatch.setattr(cuda, "refusal", lambda *args: None if moved else "not on a GPU")
    monkeypatch.setattr(cuda, "library", lambda: native.library("simt"))
    monkeypatch.setattr(tuning, "tune_stage", by_rule)
    tune_command = importlib.import_module("mobilevit_kernels.cli.tune")
    found = list(tune_command._outcomes("mobilevit_xxs", 1, torch.float16, 32, CPU, ["conv3x3"]))
    assert {outcome.problem.split()[0] for outcome in found} == {"conv3x3"}
    assert moved == [CPU]


@pytest.mark.gpu
def test_on_the_gpu(tmp_path: Path) -> None:
    skip_unless_available("cuda")
    fast = network("xxs", "cuda", "cuda")
    x = torch.rand(16, 3, 256, 256, device="cuda", dtype=torch.float16)
    before = fast(x)
    with torch.inference_mode():
        found = list(fast.engine.tune(fast, x, **OUTPUTS))
    assert all(outcome.us[outcome.best] <= outcome.us[outcome.default] for outcome in found)
    assert all(us > 0 for outcome in found for us in outcome.us.values())
    result = fast.tune(2).capture(16)(x)
    assert float((result - before).norm() / before.norm()) < 2e-2
