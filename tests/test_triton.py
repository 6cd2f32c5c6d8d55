"""What is the Triton backend's own: availability, packing, launch plans, slices, shapes off the shared test's path."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import skip_unless_available

import mobilevit_kernels as mvk
from mobilevit_kernels import verify
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.triton import launch_table
from mobilevit_kernels.verify import StageCase

ROOT = Path(__file__).parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []  # on a GPU machine everything here runs there
on_gpu = pytest.mark.gpu
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@pytest.fixture(autouse=True)
def _triton() -> None:
    skip_unless_available("triton")


def run_python(code: str, **environment: str) -> str:
    """Runs a fresh interpreter, without TRITON_INTERPRET unless given, and returns what it prints."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | environment
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), variables.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- availability ----------------------------------------------------------------------------------------------------


def test_importing_the_package_does_not_import_triton() -> None:
    # Torch may import triton on its own account: what counts is that this package's kernels do not.
    out = run_python("import sys, mobilevit_kernels; print('mobilevit_kernels.triton._device' in sys.modules)")
    assert out == "False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is available either way")
def test_without_a_gpu_the_interpreter_must_have_been_chosen_before_the_import() -> None:
    ask = "import mobilevit_kernels as m; s = m.backends()['triton']; print(s.available, s.reason)"
    assert run_python(ask).startswith("False torch.cuda.is_available() is False")
    late = "import triton, os; os.environ['TRITON_INTERPRET'] = '1'; " + ask
    assert run_python(late).startswith("False")
    assert run_python(ask, TRITON_INTERPRET="1").startswith("True Triton")


def test_float64_is_refused_by_name() -> None:
    weights = StageCase("conv3x3", (16, 16), (1, 16, 4, 4)).build()[1]
    with pytest.raises(mvk.BackendUnavailable, match="float64"):
        mvk.pack(weights, torch.float64, "cpu", "triton")


def test_a_head_too_wide_is_refused_by_name() -> None:
    with pytest.raises(mvk.BackendUnavailable, match="at most 256 channels, got 272"):
        mvk.ops.unfold_attention_fold(torch.zeros(1, 3 * 272, 2, 2, device=DEVICE), num_heads=1, backend="triton")


# --- pure functions --------------------------------------------------------------------------------------------------


def test_folding_layer_norm_keeps_the_function() -> None:
    from mobilevit_kernels.triton._linear import fold_layer_norm

    generator = torch.Generator().manual_seed(0)
    weight, bias, gamma, beta, x = (
        torch.randn(shape, generator=generator) for shape in ((48, 32), (48,), (32,), (32,), (7, 32))
    )
    folded, folded_bias = fold_layer_norm(weight, bias, gamma, beta)
    x = x.double()
    expected = torch.nn.functional.layer_norm(x, (32,), gamma.double(), beta.double()) @ weight.double().T + bias
    result = torch.nn.functional.layer_norm(x, (32,)) @ folded.double().T + folded_bias
    assert folded.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", range(1, 257))
def test_split_width_covers_with_least_padding(width: int) -> None:
    main, tail = launch_table.split_width(width)
    assert main + tail >= width
    assert main & (main - 1) == 0
    assert tail & (tail - 1) == 0
    assert main + tail <= max(16, launch_table.next_power_of_two(width))


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 255])
@pytest.mark.parametrize("megabytes", [0.1, 2, 100])
def test_slices_fit_the_l2_and_are_even(batch: int, megabytes: float) -> None:
    images = launch_table.images_per_slice(batch, int(megabytes * 2**20), 50 * 2**20)
    assert 1 <= images <= batch
    assert images == 1 or images * megabytes * 2**20 <= 25 * 2**20 + 1
    slices = math.ceil(batch / images)
    assert batch - (slices - 1) * images >= images - slices + 1


def test_slices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.triton import _launch

    # Images of whole tiles: on a CPU, NumPy's float32 product may round a row by its place in the tile.
    case = StageCase("inverted_residual", (16, 32, 16), (3, 16, 8, 8), {"residual": True})
    x, weights, options = case.build()
    x = x.to(DEVICE)
    whole = mvk.ops.inverted_residual(x, weights, **options, backend="triton")
    monkeypatch.setattr(_launch, "l2_bytes", lambda x: 1)
    with _launch.recording() as record:
        sliced = mvk.ops.inverted_residual(x, weights, **options, backend="triton")
    assert len(record) == 6
    assert torch.equal(sliced, whole)


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [1, 7, 16, 20, 24, 30, 36, 48, 60, 100, 128, 144])
def test_any_head_dim(head_dim: int) -> None:
    case = StageCase("unfold_attention_fold", (), (1, 3 * 2 * head_dim, 6, 10), {"num_heads": 2})
    assert verify.check_stage(case, "triton", torch.float16, DEVICE).passed


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 34), (26, 22)])
def test_any_number_of_tokens(height: int, width: int) -> None:
    case = StageCase("unfold_attention_fold", (), (1, 3 * 16, height, width), {"num_heads": 1})
    assert verify.check_stage(case, "triton", torch.float32, DEVICE).passed


@pytest.mark.parametrize(
    "case",
    [
        StageCase("unfold_attention_fold", (), (1, 3 * 32, 64, 64), {"num_heads": 1, "patch_size": (1, 1)}),
        StageCase("transformer", (16, 32, 64, 1, 16), (1, 16, 64, 64), {"num_heads": 1, "patch_size": (1, 1)}),
    ],
    ids=lambda case: case.stage,
)
def test_sequences_of_4096_tokens(case: StageCase) -> None:
    assert verify.check_stage(case, "triton", torch.float16, DEVICE).passed


def test_large_scores_do_not_overflow() -> None:
    case = StageCase("unfold_attention_fold", (), (1, 3 * 32, 8, 8), {"num_heads": 2, "scale": 30.0})
    assert verify.check_stage(case, "triton", torch.float32, DEVICE).passed


@pytest.mark.parametrize("dim", [8, 320])
def test_any_transformer_width(dim: int) -> None:
    case = StageCase("transformer", (24, dim, 2 * dim, 1, 24), (1, 24, 4, 6))
    assert verify.check_stage(case, "triton", torch.float16, DEVICE).passed


def test_layer_norm_of_rows_far_from_zero() -> None:
    # A sum of squares would cancel here: the mean is 300 times the deviation.
    case = StageCase("transformer", (32, 32, 64, 1, 32), (1, 32, 4, 4))
    x, weights, options = case.build()
    x = x.to(DEVICE) + 300
    truth = verify.reference(case.stage, x, weights, **options)
    stock = verify.reference(case.stage, x, weights, dtype=torch.float32, **options)
    result = mvk.ops.transformer(x, weights, **options, backend="triton")
    assert verify.relative_error(result, truth) <= max(1e-5, 2 * verify.relative_error(stock, truth))


MARGIN_CASES = [
    StageCase("conv3x3", (40, 24), (1, 40, 5, 7)),
    StageCase("head", (24, 40, 0), (1, 24, 5, 3), {"pool": False}),
    StageCase("inverted_residual", (24, 48, 40), (2, 24, 5, 7), {"stride": 2}),
    StageCase("transformer", (24, 40, 80, 1, 24), (1, 24, 6, 6)),
    StageCase("unfold_attention_fold", (), (1, 3 * 40, 6, 6), {"num_heads": 2}),
]


@pytest.mark.parametrize("case", MARGIN_CASES, ids=lambda case: case.stage)
def test_nothing_is_written_outside_the_output(case: StageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"mobilevit_kernels.triton.{case.stage}")
    buffers = []

    def guarded(like: torch.Tensor, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        count, margin = like.shape[0] * channels * height * width, 4096
        buffer = torch.full((count + 2 * margin,), 12345.0, dtype=dtype, device=DEVICE)
        buffer[margin : margin + count] = float("nan")
        buffers.append((buffer, margin, count))
        return buffer[margin : margin + count].view(like.shape[0], height, width, channels).permute(0, 3, 1, 2)

    monkeypatch.setattr(module, "empty_nhwc", guarded)
    x, weights, options = case.build()
    x = x.to(DEVICE)
    op = getattr(mvk.ops, case.stage)
    op(x, **options, backend="triton") if weights is None else op(x, weights, **options, backend="triton")
    assert buffers
    for buffer, margin, count in buffers:
        assert (buffer[:margin] == 12345.0).all()
        assert (buffer[margin + count :] == 12345.0).all()
        assert buffer[margin : margin + count].isfinite().all()


def test_tf32_only_where_pytorch_allows_it() -> None:
    from mobilevit_kernels.triton._launch import precision

    allowed = torch.backends.cuda.matmul.allow_tf32
    try:  # monkeypatch cannot: the attribute is made up by its module's __getattr__
        torch.backends.cuda.matmul.allow_tf32 = False
        assert precision(torch.float32) == "ieee"
        torch.backends.cuda.matmul.allow_tf32 = True
        assert precision(torch.float32) == "tf32"
        assert precision(torch.float16) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


# --- launches --------------------------------------------------------------------------------------------------------


def test_mobilevit_s_at_batch_1_launches_at_most_66_kernels() -> None:
    from mobilevit_kernels.triton.aot import plan_network

    assert len(plan_network("mobilevit_s", torch.float16, batch=1, size=256)) <= 66


# Images of whole tiles; the batch takes every input, hidden and output map past 2³¹ values.
LARGE_CASES = [
    (StageCase("stem", (3, 16), (1, 3, 32, 32)), 2**20),
    (StageCase("conv3x3", (64, 64), (1, 32, 8, 8), {"x2_channels": 32}), 2**20 + 1),
    (StageCase("inverted_residual", (32, 64, 32), (1, 32, 8, 8), {"residual": True}), 2**20 + 1),
    (StageCase("inverted_residual", (32, 64, 128), (1, 32, 16, 16), {"stride": 2}), 2**18 + 1),
    (StageCase("transformer", (32, 32, 64, 1, 32), (1, 32, 8, 8)), 2**20 + 1),
    (StageCase("unfold_attention_fold", (), (1, 3 * 32, 8, 8), {"num_heads": 2}), 2**20 + 1),
    (StageCase("head", (32, 2048, 0), (1, 32, 8, 8)), 2**20 + 1),
    (StageCase("head", (32, 64, 0), (1, 32, 8, 8), {"pool": False}), 2**20 + 1),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the whole batch, below")
@pytest.mark.parametrize(("case", "batch"), LARGE_CASES, ids=str)
def test_the_last_image_beyond_32_bits(case: StageCase, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the programs of the last image run, so that of these tensors little more than its pages is ever touched.
    from triton.runtime.interpreter import interpreter_builder

    from mobilevit_kernels.triton import _launch

    monkeypatch.setattr(launch_table, "MANY_ROWS", 2**62)  # one image and a batch take the same tiles
    monkeypatch.setattr(_launch, "l2_bytes", lambda x: 2**62)
    x, weights, options = case.build()
    packed = None if weights is None else mvk.pack(weights, torch.float16, "cpu", "triton")

    def run(x: torch.Tensor) -> torch.Tensor:
        op = getattr(mvk.ops, case.stage)
        others = options | ({"x2": x} if "x2" in options else {})
        return op(x, **others, backend="triton") if packed is None else op(x, packed, **others)

    whole = torch.empty((batch, *x.shape[1:]), dtype=torch.float16, memory_format=torch.channels_last)
    assert whole.numel() >= 2**31
    whole[-1:] = x
    expected = run(whole[-1:])
    run_all = _launch._run

    def run_last(kernel, grid, *args) -> None:
        programs, rest = divmod(grid[0], batch)
        assert rest == 0
        first = grid[0] - programs
        monkeypatch.setattr(
            interpreter_builder,
            "set_grid_idx",
            lambda x, y, z: setattr(interpreter_builder, "grid_idx", (x + first, y, z)),
        )
        run_all(kernel, (programs,), *args)

    monkeypatch.setattr(_launch, "_run", run_last)
    assert torch.equal(run(whole)[-1:], expected)


@on_gpu
@pytest.mark.parametrize(("case", "batch"), LARGE_CASES, ids=str)
def test_offsets_beyond_32_bits(case: StageCase, batch: int) -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    x, weights, options = case.build()
    packed = None if weights is None else mvk.pack(weights, torch.float16, "cuda", "triton")

    def run(x: torch.Tensor) -> torch.Tensor:
        op = getattr(mvk.ops, case.stage)
        others = options | ({"x2": x} if "x2" in options else {})
        return op(x, **others, backend="triton") if packed is None else op(x, packed, **others)

    x = x.to("cuda", torch.float16).expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    last = 1024  # enough images for the tiles of a large batch
    with torch.inference_mode():
        assert torch.equal(run(x)[-last:], run(x[-last:]))


def test_grids_of_huge_batches_fit_32_bits() -> None:
    from mobilevit_kernels.triton.aot import plan_network

    plan = plan_network("mobilevit_xxs", torch.float16, batch=8192, size=512)
    assert max(launch.grid(launch.config)[0] for launch in plan) < 2**31


# --- graphs ----------------------------------------------------------------------------------------------------------

GRAPH_CASES = [
    StageCase("stem", (3, 16), (2, 3, 8, 8)),
    StageCase("conv3x3", (32, 16), (2, 16, 4, 4), {"x2_channels": 16}),
    StageCase("inverted_residual", (16, 32, 16), (2, 16, 4, 4), {"residual": True}),
    StageCase("transformer", (16, 32, 64, 1, 16), (2, 16, 4, 4)),
    StageCase("unfold_attention_fold", (), (2, 3 * 32, 4, 4), {"num_heads": 2}),
    StageCase("head", (16, 32, 10), (2, 16, 4, 4)),
]


def closure(case: StageCase, dtype: torch.dtype = torch.float32):
    """The op as a function of its input, and that input."""
    x, weights, options = case.build()
    x = x.to(DEVICE, dtype)
    op = getattr(mvk.ops, case.stage)
    if weights is None:
        return lambda x: op(x, **options, backend="triton"), x
    packed = mvk.pack(weights, dtype, DEVICE, "triton")
    if "x2" in options:  # its batch has to follow x's
        return lambda x: op(x, packed, x2=-x), x
    return lambda x: op(x, packed, **options), x


def kernel_nodes(graph: torch.fx.Graph) -> list[str]:
    """The names of this library's ops in a graph, in order."""
    return [str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("mobilevit_kernels.")]


def of_batch(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x[torch.arange(batch) % x.shape[0]].contiguous()


graph_cases = pytest.mark.parametrize("case", GRAPH_CASES, ids=lambda case: case.stage)


@graph_cases
def test_one_node_under_torch_compile(case: StageCase) -> None:
    function, x = closure(case)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(x), function(x))


@graph_cases
def test_a_dynamic_batch_is_compiled_once(case: StageCase) -> None:
    function, x = closure(case)
    graphs = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.inference_mode():
        for batch in (2, 3, 5):
            part = of_batch(x, batch)
            torch._dynamo.mark_dynamic(part, 0)
            assert torch.equal(compiled(part), function(part))
    assert [kernel_nodes(graph) for graph in graphs] == [[case.stage]]


@graph_cases
def test_one_node_under_torch_export(case: StageCase) -> None:
    function, x = closure(case)

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
        assert kernel_nodes(program.graph) == [case.stage]
        for count in (2, 5):
            part = of_batch(x, count)
            assert torch.equal(program.module()(part), function(part))


@graph_cases
def test_opcheck(case: StageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"mobilevit_kernels.ops.{case.stage}")
    function, x = closure(case)
    calls = []
    launch = module._launch
    monkeypatch.setattr(module, "_launch", lambda *args: calls.append(args) or launch(*args))
    function(x)
    (arguments,) = calls
    torch.library.opcheck(getattr(torch.ops.mobilevit_kernels, case.stage).default, arguments)


# --- networks --------------------------------------------------------------------------------------------------------


def test_a_network_with_a_dynamic_batch_is_compiled_once_and_exported() -> None:
    # What is compiled here does not run: the ops' results are compared above, and a network takes long in the
    # interpreter.
    torch.manual_seed(0)
    fast = mvk.optimize(mvk.create_model("mobilevit_xxs", num_classes=10).to(DEVICE), backend="triton")
    graphs = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(module.graph)
        return lambda *args: (torch.zeros(1, 10, device=DEVICE),)

    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(fast, (torch.rand(2, 3, 64, 64, device=DEVICE),), dynamic_shapes=({0: batch},))
        for count in (2, 3, 5):
            x = torch.rand(count, 3, 64, 64, device=DEVICE)
            torch._dynamo.mark_dynamic(x, 0)
            compiled(x)
    assert len(graphs) == 1
    for graph in (*graphs, program.graph):
        nodes = kernel_nodes(graph)
        blocks = [name for name in nodes if name not in ("conv3x3", "transformer")]
        assert blocks == ["stem", *7 * ["inverted_residual"], "head"]
        assert (nodes.count("conv3x3"), nodes.count("transformer")) == (6, 3)


# --- on a GPU: what the interpreter has not, and the tiles of large batches ------------------------------------------


@on_gpu
@dtypes
@pytest.mark.parametrize("name", list(CONFIGS))
def test_networks_at_full_size(name: str, dtype: torch.dtype) -> None:
    case = verify.NetworkCase(name, (2, 3, 256, 256))
    result = verify.check_network(case, "triton", dtype, "cuda")
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"


@on_gpu
@dtypes
@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_stage_with_the_tiles_of_large_batches(name: str, dtype: torch.dtype) -> None:
    cases = {}
    for _, _, case in verify.network_cases((name,)):
        _, channels, height, width = case.x_shape
        pixels = height * width // (4 if case.stage == "stem" or case.options.get("stride") == 2 else 1)
        batch = math.ceil(launch_table.MANY_ROWS / pixels)
        cases[str(case)] = dataclasses.replace(case, x_shape=(batch, channels, height, width))
    results = [verify.check_stage(case, "triton", dtype, "cuda") for case in cases.values()]
    assert [result for result in results if not result.passed] == []


@on_gpu
def test_mobilevit_s_launches_at_most_66_kernels_on_the_gpu() -> None:
    fast = mvk.optimize(mvk.create_model("mobilevit_s").cuda(), backend="triton")
    x = torch.rand(1, 3, 256, 256, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        fast(x)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            fast(x)
            torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event.name for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]
    assert 0 < len(kernels) <= 66, kernels


@on_gpu
@dtypes
@graph_cases
def test_stages_in_a_cuda_graph(case: StageCase, dtype: torch.dtype) -> None:
    function, x = closure(case, dtype)
    with torch.inference_mode():
        expected = function(x)
        static = torch.zeros_like(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(static)
        static.copy_(x)
        graph.replay()
    assert torch.equal(result, expected)


@on_gpu
def test_a_captured_network() -> None:
    fast = mvk.optimize(mvk.create_model("mobilevit_xxs").cuda(), backend="triton")
    x, y = torch.rand(2, 4, 3, 256, 256, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        expected = fast(x), fast(y)
        fast.capture(4)
        results = fast(x), fast(y)
    assert all(map(torch.equal, results, expected))


@on_gpu
@graph_cases
def test_streams_at_once(case: StageCase) -> None:
    function, x = closure(case, torch.float16)
    inputs = [x * scale for scale in (1.0, 0.5, 0.25, 2.0)]
    with torch.inference_mode():
        expected = [function(part) for part in inputs]
        streams = [torch.cuda.Stream() for _ in inputs]
        torch.cuda.synchronize()
        results: list[list[torch.Tensor]] = [[] for _ in inputs]
        for _ in range(20):
            for stream, part, found in zip(streams, inputs, results, strict=True):
                with torch.cuda.stream(stream):
                    found.append(function(part))
        torch.cuda.synchronize()
    for want, found in zip(expected, results, strict=True):
        assert all(torch.equal(result, want) for result in found)


@on_gpu
def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = StageCase("transformer", (16, 32, 64, 1, 16), (2, 16, 4, 4))
    assert verify.check_stage(case, "triton", torch.float16, "cuda:1").passed


@on_gpu
def test_a_network_under_inductor() -> None:
    fast = mvk.optimize(mvk.create_model("mobilevit_xxs").cuda(), backend="triton")
    x = torch.rand(2, 3, 256, 256, device="cuda", dtype=torch.float16)
    torch._dynamo.reset()
    with torch.inference_mode():
        assert torch.equal(torch.compile(fast, fullgraph=True)(x), fast(x))
