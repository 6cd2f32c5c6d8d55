"""Plans: where activations lie, what is launched, and the same results as stage by stage."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import backend_params, skip_unless_available
from hypothesis import given, settings
from hypothesis import strategies as st

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels import cuda
from mobilevit_kernels import engine as engines
from mobilevit_kernels import plan as plans
from mobilevit_kernels.engine import Engine
from mobilevit_kernels.native.launches import Launch, Slot, map_slot
from mobilevit_kernels.plan import ALIGNMENT, Lifetime, Plan, place

on_kernels = pytest.mark.parametrize(("backend", "device"), backend_params("simt", "cuda"))


# --- where activations lie -------------------------------------------------------------------------------------------


def overlaps(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6)).map(
            lambda t: Lifetime(t[0], t[1], t[1] + t[2])
        ),
        max_size=24,
    )
)
def test_pieces_that_are_alive_together_do_not_overlap(pieces: list[Lifetime]) -> None:
    begins, total = place(pieces)
    for i, a in enumerate(pieces):
        assert begins[i] % ALIGNMENT == 0
        assert begins[i] + a.bytes <= total
        for j in range(i):
            b = pieces[j]
            if overlaps(a, b) and a.bytes and b.bytes:
                assert begins[i] + a.bytes <= begins[j] or begins[j] + b.bytes <= begins[i]
    # Never less than what is alive at once; more than all of it would be no reuse at all.
    alive = [sum(p.bytes for p in pieces if p.first <= i <= p.last) for i in range(19)]
    rounded = sum(-(-p.bytes // ALIGNMENT) * ALIGNMENT for p in pieces)
    assert max(alive, default=0) <= total <= rounded


def chain(*channels: int) -> tuple[Slot, list[Launch]]:
    """Launches one behind the other on 4×4 maps."""
    source = slot = map_slot(1, channels[0], 4, 4, torch.float16)
    launches = []
    for count in channels[1:]:
        output = map_slot(1, count, 4, 4, torch.float16)
        launches.append(Launch("step", {"x": slot}, output, {}, torch.float16))
        slot = output
    return source, launches


def test_a_chain_takes_turns() -> None:
    source, launches = chain(8, 64, 32, 64, 32, 8)
    plan = Plan.of(source, launches, [launches[-1].output])
    assert plan.workspace_bytes == (64 + 32) * 16 * 2  # two neighbours; input and output have memory of their own
    assert launches[-1].output not in plan.offsets
    assert plan.kernels == 5


def test_a_tap_keeps_its_own_memory() -> None:
    source, launches = chain(8, 64, 32, 64)
    plan = Plan.of(source, launches, [launches[0].output, launches[-1].output])
    assert set(plan.offsets) == {launches[1].output}


def test_parts_of_a_slot_lie_in_it() -> None:
    whole = map_slot(5, 8, 4, 4, torch.float16)
    first, second = whole.part(0, 3), whole.part(3, 2)
    assert second.part(1, 1).root is whole
    assert (second.shape, second.offset, second.part(1, 1).offset) == ((2, 8, 4, 4), 3 * 256, 4 * 256)
    inner = [map_slot(count, 64, 4, 4, torch.float16) for count in (3, 2)]
    between, output = map_slot(5, 8, 4, 4, torch.float16), map_slot(5, 8, 4, 4, torch.float16)
    launches = []
    for part, slot in zip((first, second), inner, strict=True):
        launches.append(Launch("widen", {"x": part}, slot, {}, torch.float16))
        launches.append(Launch("narrow", {"x": slot}, between.part(part.first, part.shape[0]), {}, torch.float16))
    launches.append(Launch("step", {"x": between}, output, {}, torch.float16))
    plan = Plan.of(whole, launches, [output])
    assert plan.workspace_bytes == inner[0].bytes + between.bytes  # the second part's takes the place of the first's
    assert set(plan.offsets) == {between, *inner}
    x, workspace = torch.rand(5, 8, 4, 4, dtype=torch.float16), torch.zeros(plan.workspace_bytes, dtype=torch.uint8)
    outputs = {output: output.allocate(x.device)}
    assert torch.equal(plan.tensor_of(x, workspace, outputs, second), x[3:])
    assert plan.tensor_of(x, workspace, outputs, output.part(3, 2)).data_ptr() == outputs[output][3:].data_ptr()
    plan.tensor_of(x, workspace, outputs, between.part(3, 2)).fill_(1)
    assert plan.tensor_of(x, workspace, outputs, between).sum((1, 2, 3)).tolist() == [0, 0, 0, 128, 128]


def test_what_nothing_writes_is_refused() -> None:
    source, launches = chain(8, 16, 24)
    with pytest.raises(ValueError, match="step reads x, which no launch before it writes"):
        Plan.of(source, launches[1:], [launches[-1].output])
    with pytest.raises(ValueError, match="outputs: expected slots that the launches write"):
        Plan.of(source, launches, [source])


# --- whole networks --------------------------------------------------------------------------------------------------


def network(size: str, backend: str, device: str, num_classes: int = 10, **options: object) -> mvk.MobileViT:
    torch.manual_seed(0)
    stock = python_ref.MobileViT(size, num_classes=num_classes)
    python_ref.randomize_weights(stock, seed=0)
    return mvk.optimize(stock.eval().to(device), dtype=torch.float16, backend=backend, **options)


def plan_of(fast: mvk.MobileViT, x: torch.Tensor, **options: object) -> Plan:
    found = fast.engine.plan(fast, x, **({"pool": True, "taps": ()} | options))
    assert found is not None
    return found


@on_kernels
@pytest.mark.parametrize(("size", "megabytes"), [("xxs", 140), ("xs", 235), ("s", 269)])
def test_launches_of_a_forward(size: str, megabytes: float, backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network(size, backend, device)
    single = plan_of(fast, torch.empty(1, 3, 256, 256, device=device))
    some = plan_of(fast, torch.empty(64, 3, 256, 256, device=device))
    many = plan_of(fast, torch.empty(256, 3, 256, 256, device=device))
    assert single.kernels <= 25
    assert some.kernels <= 25
    # The workspace is what is alive at once: an input and an output of a stage, and no sum over the network.
    outputs = [launch.output.bytes for launch in some.launches]
    largest = max(a + b for a, b in itertools.pairwise(outputs))
    assert largest <= some.workspace_bytes <= 1.1 * largest
    # A large batch's first three stages run in three slices: with 12, 22 and 49 MiB of packed weights less than a
    # quarter of the 644, 1287 and 1295 MiB that torch.compile needed on an H200.
    assert many.kernels <= 25 + 2 * 3
    assert 0.9e6 * megabytes <= many.workspace_bytes <= 1e6 * megabytes
    odd = plan_of(fast, torch.empty(1, 3, 224, 224, device=device))
    assert [launch.launcher for launch in odd.launches].count("resize") == 2  # 7×7 maps; 28×28 and 14×14 are whole


def poisoned(runner: plans.Runner) -> plans.Runner:
    """The runner on a workspace and outputs full of NaN."""

    def run(x, workspace, outputs) -> None:
        workspace.fill_(0xFF)
        for output in outputs.values():
            output.fill_(float("nan"))
        runner(x, workspace, outputs)

    return run


@on_kernels
@pytest.mark.parametrize(
    ("batch", "size", "options"),
    [
        (2, (32, 32), {}),
        (1, (33, 40), {"taps": (0, 2, 3, 5)}),  # odd maps go through the resize
        (1, (32, 32), {"pool": False, "taps": (5,)}),
    ],
    ids=str,
)
def test_a_plan_gives_the_same_bits_as_stage_by_stage(
    batch: int, size: tuple[int, int], options: dict, backend: str, device: str
) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device, num_classes=7)  # an odd number of classes is padded inside
    options = {"pool": True, "taps": ()} | options
    x = torch.rand(batch, 3, *size, device=device)
    expected = fast.run(x, **options)
    plan_of(fast, x, **options)
    for planned in fast.engine._plans.values():
        planned.run = poisoned(planned.run)
    for _ in range(2):
        outputs = fast.engine.call(fast, x, **options)
        assert len(outputs) == len(expected)
        for output, stage_by_stage in zip(outputs, expected, strict=True):
            assert output.isfinite().all()
            assert torch.equal(output, stage_by_stage)
            assert output.stride() == stage_by_stage.stride()
    assert fast(x).shape == (batch, 7)


@on_kernels
@pytest.mark.parametrize("layout", ["contiguous", "strided", "uint8"])
@pytest.mark.parametrize("options", [{"taps": (0, 1, 2, 5)}, {"pool": False}], ids=str)
def test_the_first_stages_of_a_large_batch_run_in_slices(
    options: dict, layout: str, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_available(backend)
    fast, *_ = normalizing(backend, device)
    options = {"pool": True, "taps": ()} | options
    if layout == "uint8":
        x = torch.randint(0, 256, (7, 32, 40, 3), dtype=torch.uint8, device=device)
    else:
        x = torch.rand(7, 3, 32, 48, device=device)[..., 3:43]
        x = x if layout == "strided" else x.contiguous()
    expected = fast.run(x, **options)
    monkeypatch.setattr(engines, "SLICE_PIXELS", 2 * 32 * 40)
    plan_of(fast, x, **options)
    (planned,) = fast.engine._plans.values()
    planned.run = poisoned(planned.run)
    # The stem, and two inverted residuals: the second one reads the last of the largest maps.
    batches = [launch.output.shape[0] for launch in planned.plan.launches]
    assert batches[: 3 * 3 + 1] == [3, 3, 3, 2, 2, 2, 2, 2, 2, 7]
    (note,) = [note for note in fast.engine.notes() if note.startswith("plan for (7, ")]
    assert note.endswith("; 3 stages in 3 slices of the batch")
    for output, whole in zip(fast.engine.call(fast, x, **options), expected, strict=True):
        assert torch.equal(output, whole)
        assert output.stride() == whole.stride()


def normalizing(backend: str, device: str):
    """A network that normalises, and the same images as bytes and as floats."""
    fast = network("xxs", backend, device, normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, device=device)
    floats = images.permute(0, 3, 1, 2).float() / 255
    return fast, images, floats


@on_kernels
def test_layouts_and_image_types_have_plans_of_their_own(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast, images, floats = normalizing(backend, device)
    expected = fast(images).float()
    layouts = [floats.contiguous(), floats, floats[:, :, :, :].half(), floats.double()]
    strided = torch.empty(1, 3, 32, 40, device=device)
    strided[..., :32] = floats
    for x in (*layouts, strided[..., :32]):
        result = fast(x)
        assert result.dtype == x.dtype
        assert torch.allclose(result.float(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    assert 4 <= len(fast.engine._plans) <= 5


@on_kernels
def test_new_weights_make_new_plans(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    x = torch.rand(1, 3, 32, 32, device=device)
    before = fast(x)
    assert fast.engine.notes()
    with torch.no_grad():
        fast.head.get_buffer("fc_bias").add_(1.0)
    fast.head.repack()
    assert torch.allclose(fast(x), before + 1, atol=2e-2)
    fast.load_state_dict(network("xxs", backend, device).state_dict())
    assert torch.equal(fast(x), before)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not twin.engine.notes()
        assert torch.equal(twin(x), before)
        assert all(a is not b for a, b in zip(twin.stages(), fast.stages(), strict=True))
        assert twin.stages()[0] is twin.stem


@on_kernels
def test_another_normalisation_makes_new_plans(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device, normalize=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    x = torch.rand(1, 3, 32, 32, device=device)
    fast(x)
    fast.stem.normalize = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert torch.equal(fast(x).half(), fast.run(x)[0])


@on_kernels
def test_images_that_do_not_fit_are_refused(backend: str, device: str) -> None:
    """A plan launches without the ops' checks: a kernel would read past the end of the image."""
    skip_unless_available(backend)
    fast = network("xxs", backend, device, normalize=((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    for channels in (1, 4):
        with pytest.raises(ValueError, match=f"x: expected 3 channels in axis 1, got {channels}"):
            fast(torch.rand(1, channels, 32, 32, device=device))
        with pytest.raises(ValueError, match=f"x: expected 3 channels in axis 3, got {channels}"):
            fast(torch.zeros(1, 32, 32, channels, dtype=torch.uint8, device=device))
    for other in ("meta", *(["cpu"] if device == "cuda" else [])):
        with pytest.raises(ValueError, match=f"x: expected a tensor on {device}.*, as the weights are, got .* {other}"):
            fast(torch.rand(1, 3, 32, 32, device=other))
    fast.stem.normalize = ((0.0,) * 4, (1.0,) * 4)
    with pytest.raises(ValueError, match="normalize: expected 3 values of mean, got 4"):
        fast(torch.rand(1, 3, 32, 32, device=device))
    assert not fast.engine._plans


@on_kernels
def test_a_plan_vouches_for_no_other_images(backend: str, device: str) -> None:
    """Images like those that a plan reads are not checked again."""
    skip_unless_available(backend)
    fast, images, floats = normalizing(backend, device)
    fast(images)
    fast(floats)
    with pytest.raises(ValueError, match=r"x: expected uint8 images \(B, H, W, 3\)"):
        fast(images.permute(0, 3, 1, 2))  # just what the plan for bytes reads
    with pytest.raises(RuntimeError, match="x: mobilevit_kernels is for inference only"):
        fast(floats.clone().requires_grad_())
    fast.stem.normalize = ((0.0,) * 4, (1.0,) * 4)
    with pytest.raises(ValueError, match="normalize: expected 3 values of mean, got 4"):
        fast(floats)


@on_kernels
def test_the_order_of_options_makes_no_plan_of_its_own(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    x = torch.empty(1, 3, 32, 32, device=device)
    assert plan_of(fast, x) is fast.engine.plan(fast, x, taps=(), pool=True)


@on_kernels
def test_stages_of_two_dtypes_have_no_plan(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    fast.head.bfloat16()
    with pytest.raises(TypeError, match=r"x: expected torch.bfloat16, as the weights are packed, got torch.float16"):
        fast(torch.rand(1, 3, 32, 32, device=device))


@on_kernels
def test_hooks_see_every_stage_of_every_forward(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    x = torch.rand(1, 3, 32, 32, device=device)
    expected = fast(x)
    seen = []
    handle = fast.head.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    for count in (1, 2):
        assert torch.equal(fast(x), expected)
        assert [(tuple(map_.shape), tuple(logits.shape)) for map_, logits in seen] == [((1, 80, 1, 1), (1, 10))] * count
    handle.remove()
    fast(x)
    assert len(seen) == 2
    blocks = []
    block = fast.layers[2][1]
    handle = block.register_forward_hook(lambda module, args, output: blocks.append(output.shape))
    assert torch.equal(fast(x), expected)
    assert blocks == [(1, 48, 4, 4)]


# --- the plan inside the extension, without a GPU --------------------------------------------------------------------


class Recorder:
    """A library that writes down what it is told to launch."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, float]]] = []

    def launch(self, launcher, inputs, output, sizes, bfloat16, workspace=None) -> None:
        pointers = {name: tensor.data_ptr() for name, tensor in inputs.items()} | {"y": output.data_ptr()}
        if workspace is not None:
            pointers["workspace"] = workspace.data_ptr()
        self.calls.append((launcher, {**sizes, **pointers, "bfloat16": bfloat16}))


@pytest.fixture
def extension():
    return pytest.importorskip("mobilevit_kernels._C", reason="the extension is not built here: no nvcc")


@pytest.mark.parametrize(
    ("batch", "size", "taps"), [(1, 256, ()), (1, 224, (0, 2, 5)), (5, 64, ()), (5, 64, (0, 1))], ids=str
)
def test_the_compiled_plan_launches_the_same(
    batch: int, size: int, taps: tuple[int, ...], extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_available("simt")
    monkeypatch.setattr(engines, "SLICE_PIXELS", 2 * 64 * 64)
    fast = network("s", "simt", "cpu")
    x = torch.empty(batch, 3, size, size)
    plan = plan_of(fast, x, taps=taps)
    assert any(launch.output.whole for launch in plan.launches) == (batch == 5)
    outputs = {slot: slot.allocate(x.device) for slot in plan.outputs}
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8)
    recorder = Recorder()
    plans.run_one_by_one(recorder, plan, x, workspace, outputs)

    (compiled,) = cuda._CompiledPlan(cuda.CudaLibrary(extension), plan)._parts
    addresses = [workspace.data_ptr(), x.data_ptr(), *(output.data_ptr() for output in outputs.values())]
    assert len(compiled) == len(recorder.calls)
    for i, (launcher, arguments) in enumerate(recorder.calls):
        values = compiled.values(i, addresses)
        expected = {name: 0 for name in values if name in ("x2", "workspace", "table")} | arguments
        assert values.keys() == expected.keys(), launcher
        for name, value in values.items():
            if isinstance(value, int):  # an address
                assert value == expected[name], (launcher, name)
            else:  # floats pass through a float32
                assert value == pytest.approx(float(expected[name]), rel=1e-6), (launcher, name)


def test_the_extension_names_what_is_wrong(extension) -> None:
    plan = extension.Plan()
    resize = dict.fromkeys(("batch", "height", "width", "out_height", "out_width"), 1)
    resize |= {"channels": 8, "silu": True, "bfloat16": False, "x": (2, 0), "y": (3, 0)}
    plan.add("resize", resize)
    for launcher, values, error, message in (
        ("rezise", resize, ValueError, "launcher: there is none called 'rezise'"),
        ("resize", {**resize, "stride": 1}, TypeError, "resize: an argument that it does not have, among .*'stride'"),
        ("resize", {k: v for k, v in resize.items() if k != "y"}, TypeError, "resize: missing argument 'y'"),
        ("resize", {**resize, "batch": "one"}, TypeError, "resize: batch: cannot take 'one'"),
    ):
        with pytest.raises(error, match=message):
            plan.add(launcher, values)
    assert len(plan) == 1
    with pytest.raises(ValueError, match="addresses: expected 3, got 1"):
        plan.run(device=0, stream=0, addresses=[16], overlap=True)
    with pytest.raises(TypeError, match="resize: missing argument 'x'"):
        extension.resize(device=0, stream=0, batch=1)


# --- graphs, on a stand-in for torch.cuda ----------------------------------------------------------------------------


class FakeCuda:
    """Streams, events and graphs on a CPU: a replay computes anew what was captured, into the same memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        self.capturing, self.waits, self.captures = False, 0, 0
        self.captured: tuple = ()
        run = engine._run

        def recorded(network, x, options, keep):
            outputs = run(network, x, options, keep)
            if self.capturing:
                assert not keep, "a graph must not use the stream's workspace"
                self.captured = (network, x, options, outputs)
            return outputs

        class Graph:
            @torch.inference_mode()  # a graph writes past PyTorch, whatever kind of tensor it is
            def replay(graph) -> None:
                network, x, options, outputs = graph.captured
                for output, fresh in zip(outputs, run(network, x, options, keep=False), strict=True):
                    output.copy_(fresh)

        @contextlib.contextmanager
        def capture(graph, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"
            assert isinstance(stream, Stream)  # PyTorch's own for captures may be of another device, or in use
            assert engines.CAPTURING.locked()
            self.capturing = True
            yield
            self.capturing = False
            self.captures += 1
            graph.captured = self.captured

        class Event:
            def record(event, stream=None) -> None:
                assert not self.capturing

            def synchronize(event) -> None:
                self.waits += 1

        class Stream:
            cuda_stream = 7

            def wait_stream(stream, other) -> None:
                assert not self.capturing

            wait_event = wait_stream

        monkeypatch.setattr(engine, "_run", recorded)
        monkeypatch.setattr(engine, "_on_gpu", lambda x: True)
        for name, value in {
            "CUDAGraph": Graph, "graph": capture, "Event": Event, "Stream": Stream,
            "current_stream": lambda device=None: Stream(), "stream": lambda which: contextlib.nullcontext(),
            "device": lambda which: contextlib.nullcontext(),
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("backend", ["simt", "torch"])
def test_graphs_return_copies_and_take_any_layout(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, "cpu")
    options = {"pool": True, "taps": (5,)}
    x, other = torch.rand(2, 1, 3, 32, 32).half().unbind()
    expected, expected_other = fast.run(x, **options), fast.run(other, **options)
    cuda = FakeCuda(monkeypatch, fast.engine)
    captured = fast.engine.capture(fast, x, **options)
    assert fast.engine.capture(fast, other, **options) is captured
    first = fast.engine.call(fast, x, **options)
    second = fast.engine.call(fast, other.contiguous(memory_format=torch.channels_last), **options)
    for result, truth in zip((*first, *second), (*expected, *expected_other), strict=True):
        assert torch.equal(result, truth)
    own = {buffer.data_ptr() for buffer in captured.static_outputs}
    assert not own & {result.data_ptr() for result in (*first, *second)}
    place = fast.engine.static_input(x, **options)
    assert place is captured.static_input
    place.copy_(x)
    assert torch.equal(fast.engine.call(fast, place, **options)[1], expected[1])
    assert cuda.captures == 1
    assert torch.equal(fast.engine.call(fast, x, pool=True, taps=())[0], expected[1])  # other options: no graph
    assert fast.engine.static_input(x, pool=True, taps=()) is None
    (note,) = [note for note in fast.engine.notes() if note.startswith("CUDA graphs: 1, ")]
    assert float(note.split()[3]) > 0


def test_a_graph_captured_in_inference_mode_serves_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = network("xxs", "torch", "cpu")
    options = {"pool": True, "taps": ()}
    x, other = torch.rand(2, 1, 3, 32, 32).half().unbind()
    FakeCuda(monkeypatch, fast.engine)
    with torch.inference_mode():
        captured = fast.engine.capture(fast, x.clone(), **options)
    assert torch.equal(fast.engine.call(fast, other, **options)[0], fast.run(other, **options)[0])
    captured.static_input.copy_(x)


def test_a_graph_copies_its_input_unless_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = network("xxs", "torch", "cpu")
    options = {"pool": True, "taps": ()}
    FakeCuda(monkeypatch, fast.engine)
    x = torch.rand(1, 3, 32, 32).half()
    assert fast.engine.capture(fast, x, **options).static_input.data_ptr() != x.data_ptr()
    x = torch.rand(2, 3, 32, 32).half()
    assert fast.engine.capture(fast, x, keep=True, **options).static_input is x
    with torch.inference_mode():  # could not be written outside of it
        x = torch.rand(3, 3, 32, 32).half()
        assert not fast.engine.capture(fast, x, keep=True, **options).static_input.is_inference()


def test_a_view_of_a_graphs_input_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = network("xxs", "torch", "cpu")
    options = {"pool": True, "taps": ()}
    x = torch.rand(1, 3, 32, 32).half()
    FakeCuda(monkeypatch, fast.engine)
    place = fast.engine.capture(fast, x, **options).static_input
    expected = fast.run(x.transpose(2, 3), **options)[0]
    assert not torch.equal(expected, fast.run(x, **options)[0])
    assert torch.equal(fast.engine.call(fast, place.transpose(2, 3), **options)[0], expected)


def test_no_graph_is_replayed_into_a_capture_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = network("xxs", "torch", "cpu")
    fast.engine.automatic = True
    x = torch.rand(1, 3, 32, 32).half()
    FakeCuda(monkeypatch, fast.engine)
    expected = fast(x)
    monkeypatch.setattr(fast.engine, "_is_capturing", lambda x: True)
    monkeypatch.setattr(fast.engine, "_replay", lambda captured, x: pytest.fail("a graph inside a capture"))
    assert torch.equal(fast(x), expected)


def test_automatic_graphs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = network("xxs", "torch", "cpu")
    fast.engine.automatic = True
    cuda = FakeCuda(monkeypatch, fast.engine)
    monkeypatch.setattr(engines, "MAX_GRAPHS", 3)
    images = [torch.rand(batch, 3, 32, 32).half() for batch in (1, 2, 3)]
    for x in images:
        fast(x)
    fast(images[0])  # the first is the one used last now
    fast(torch.rand(4, 3, 32, 32).half())
    assert cuda.captures == 4
    assert cuda.waits == 1  # for the last replay of the one that left
    fast(images[0])
    assert cuda.captures == 4
    fast(images[1])
    assert cuda.captures == 5
    fast.head.repack()
    fast(images[0])
    assert cuda.captures == 6
    assert len(fast.engine._graphs) == 1


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu() -> mvk.MobileViT:
    skip_unless_available("cuda")
    return network("xxs", "cuda", "cuda")


@pytest.mark.gpu
def test_overlapping_launches_give_the_same_bits(on_gpu: mvk.MobileViT) -> None:
    """A kernel that reads before the one ahead has written would show up here, if not every time."""
    for batch, size in ((1, 256), (8, 224), (64, 256)):
        x = torch.rand(batch, 3, size, size, device="cuda")
        expected = on_gpu.run(x)[0]  # stage by stage, without overlap
        for _ in range(50):
            assert torch.equal(on_gpu.engine.call(on_gpu, x, pool=True, taps=())[0], expected)


@pytest.mark.gpu
def test_a_forward_allocates_nothing_but_its_output(on_gpu: mvk.MobileViT) -> None:
    x = torch.rand(2, 3, 256, 256, device="cuda", dtype=torch.float16)
    on_gpu(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    y = on_gpu(x)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before == 1
    assert y.shape == (2, 10)


@pytest.mark.gpu
def test_a_graph_takes_its_input_in_place_or_copies_it(on_gpu: mvk.MobileViT) -> None:
    x = torch.rand(2, 3, 64, 64, device="cuda", dtype=torch.float16)
    expected = on_gpu(x)
    on_gpu.capture(2, 64, 64)
    assert torch.equal(on_gpu(x), expected)
    assert torch.equal(on_gpu(x.contiguous(memory_format=torch.channels_last)), expected)
    place = on_gpu.graph_input(2, 64, 64)
    place.copy_(x.flip(0))
    assert torch.equal(on_gpu(place), expected.flip(0))
    assert torch.equal(on_gpu(x[:1]), expected[:1])  # not captured: it runs all the same
    with pytest.raises(ValueError, match="expected a captured shape, got 3, 64, 64 in float16"):
        on_gpu.graph_input(3, 64, 64)
    assert any(note.startswith("CUDA graphs: 1, ") for note in mvk.report(on_gpu).notes)


@pytest.mark.gpu
def test_a_forward_in_a_capture_of_the_caller(on_gpu: mvk.MobileViT) -> None:
    """With and without a graph of its own for the shape."""
    x, other = torch.rand(2, 2, 3, 64, 64, device="cuda", dtype=torch.float16).unbind()
    for captured in (False, True):
        if captured:
            on_gpu.capture(2, 64, 64)
        place = x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            on_gpu(place)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = on_gpu(place)
        place.copy_(other)
        graph.replay()
        assert torch.equal(result, on_gpu(other))


@pytest.mark.gpu
def test_graphs_on_the_second_device() -> None:
    skip_unless_available("cuda")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for device in ("cuda:0", "cuda:1"):
        fast = network("xxs", "cuda", device)
        x = torch.rand(2, 3, 64, 64, device=device, dtype=torch.float16)
        expected = fast(x)
        fast.capture(2, 64, 64)
        assert torch.equal(fast(x), expected)
        assert torch.equal(fast(x.flip(0)), expected.flip(0))


@pytest.mark.gpu
def test_graphs_are_bounded_and_follow_the_weights() -> None:
    from mobilevit_kernels.engine import MAX_GRAPHS

    skip_unless_available("cuda")
    fast = network("xxs", "cuda", "cuda", graph=True)
    for batch in range(1, MAX_GRAPHS + 4):
        fast(torch.rand(batch, 3, 32, 32, device="cuda"))
    assert len(fast.engine._graphs) == MAX_GRAPHS
    x = torch.rand(1, 3, 32, 32, device="cuda")
    before = fast(x)
    with torch.no_grad():
        fast.head.get_buffer("fc_bias").add_(1.0)
    fast.head.repack()
    assert torch.allclose(fast(x), before + 1, atol=2e-2)
    assert len(fast.engine._graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["plans", "graphs"])
def test_threads_on_streams_of_their_own(graph: bool) -> None:
    skip_unless_available("cuda")
    fast = network("xxs", "cuda", "cuda", graph=graph)
    inputs = [torch.rand(batch, 3, size, size, device="cuda") for batch, size in ((1, 64), (3, 96), (2, 72), (5, 64))]
    expected = [fast.run(x)[0] for x in inputs]
    torch.cuda.synchronize()

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(40):
                which = (number + i) % len(inputs)
                assert torch.equal(fast(inputs[which]).half(), expected[which])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_workspaces_are_one_a_stream_and_grow_only() -> None:
    from mobilevit_kernels.engine import MAX_STREAMS, Workspaces

    workspaces = Workspaces()
    cpu = torch.device("cpu")
    first = workspaces.get(cpu, 1, 100)
    assert workspaces.get(cpu, 1, 50) is first
    assert workspaces.get(cpu, 2, 50) is not first
    assert workspaces.get(cpu, 1, 101).numel() == 101
    assert workspaces.bytes == 151
    for stream in range(3, 3 + MAX_STREAMS):
        workspaces.get(cpu, stream, 10)
    assert len(workspaces) == MAX_STREAMS
    assert workspaces.bytes == 10 * MAX_STREAMS


def test_other_backends_run_stage_by_stage() -> None:
    fast = network("xxs", "torch", "cpu")
    x = torch.rand(1, 3, 32, 32)
    assert fast.engine.plan(fast, x, pool=True, taps=()) is None
    assert torch.equal(fast.engine.call(fast, x, pool=True, taps=())[0], fast.run(x)[0])


@on_kernels
def test_the_report_tells_the_plan_and_its_memory(backend: str, device: str) -> None:
    skip_unless_available(backend)
    fast = network("xxs", backend, device)
    fast(torch.rand(1, 3, 32, 32, device=device))
    notes = mvk.report(fast).notes
    assert any(note.startswith("plan for (1, 3, 32, 32): ") and "kernels" in note for note in notes), notes
    assert any(note.startswith("workspaces: ") for note in notes), notes
