"""Whole networks and blocks against the stock models, on every backend that can run here."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import threading

import pytest
import torch
from conftest import backend_params, skip_unless_available
from stock import NAMES, logits, stock_model, timm_model, transformers_model
from torch import nn

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels import verify
from mobilevit_kernels.verify import MAX_NETWORK_RATIO, relative_error

SIZES = [(256, 256), (224, 224), (192, 320), (257, 255), (64, 64)]
LAYOUTS = ["contiguous", "channels_last", "strided"]


def images(batch: int, height: int, width: int, layout: str = "contiguous", seed: int = 0) -> torch.Tensor:
    x = torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, -x], dim=-1)[..., 0]
    return x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["timm", "transformers", "reference"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "×".join(map(str, size)))
def test_optimize_matches_in_float32(source: str, name: str, size: tuple[int, int]) -> None:
    stock = stock_model(source, name)
    fast = mvk.optimize(stock, backend="torch")
    # Every batch and layout is met by every size, but not in every combination.
    for batch, layout in zip((1, 3, 0), LAYOUTS, strict=True):
        x = images(batch, *size, layout)
        with torch.inference_mode():
            result = logits(fast(x))
            # The stock models fail on an empty batch; it has to give what any batch gives, with no rows.
            expected = logits(stock(x)) if batch else result.new_empty(0, 1000)
        assert result.shape == expected.shape
        assert result.dtype == torch.float32
        assert relative_error(result, expected) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["timm", "transformers"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "×".join(map(str, size)))
def test_replace_blocks_matches_in_float32(source: str, name: str, size: tuple[int, int]) -> None:
    stock = stock_model(source, name)
    replaced = copy.deepcopy(stock)
    report = mvk.replace_blocks(replaced, backend="torch")
    assert not report.not_replaced
    for batch, layout in zip((3, 1, 0), LAYOUTS, strict=True):
        x = images(batch, *size, layout, seed=1)
        with torch.inference_mode():
            result = logits(replaced(x))
            expected = logits(stock(x)) if batch else result.new_empty(0, 1000)
        assert result.shape == expected.shape
        assert relative_error(result, expected) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["timm", "transformers"])
@pytest.mark.parametrize("whole", [True, False], ids=["optimize", "replace_blocks"])
def test_error_in_bfloat16_over_16_seeds(source: str, name: str, whole: bool) -> None:
    """Geometric mean of the error ratios ≤ 1.05, worst ≤ 1.3."""
    ratios = []
    for seed in range(16):
        # Layer 5 has 4 tokens a sequence at 128×128; an odd map every fourth time.
        size = 120 if seed % 4 == 3 else 128
        x = images(4, size, size, seed=seed).bfloat16()
        stock = (timm_model if source == "timm" else transformers_model)(name, seed=seed)
        low = copy.deepcopy(stock).bfloat16()
        if whole:
            fast = mvk.optimize(stock, dtype=torch.bfloat16, backend="torch")
        else:
            fast = copy.deepcopy(stock)
            mvk.replace_blocks(fast, dtype=torch.bfloat16, backend="torch")
        with torch.inference_mode():
            truth = logits(stock.double()(x.double()))
            result = logits(fast(x if whole else x.float()))
            ratios.append(relative_error(result, truth) / relative_error(logits(low(x)), truth))
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    assert mean <= 1.05, ratios
    assert max(ratios) <= MAX_NETWORK_RATIO, ratios


@pytest.mark.parametrize(("backend", "device"), backend_params())
@pytest.mark.parametrize("name", NAMES)
def test_small_image_on_every_backend(name: str, backend: str, device: str) -> None:
    skip_unless_available(backend)
    dtype = torch.float16 if backend in ("cuda", "simt") else torch.float32
    stock = copy.deepcopy(stock_model("timm", name)).to(device)
    try:
        fast = mvk.optimize(stock, dtype=dtype, backend=backend)
    except mvk.BackendUnavailable as refusal:
        pytest.skip(str(refusal))  # cuda and simt do not serve every stage yet
    x = images(1, 33, 40).to(device)  # maps of odd sides before two of the transformers
    with torch.inference_mode():
        truth = copy.deepcopy(stock).double()(x.to(dtype).double())
        low = copy.deepcopy(stock).to(dtype)(x.to(dtype))
        error = relative_error(fast(x.to(dtype)), truth)
    assert error <= (1e-5 if dtype == torch.float32 else MAX_NETWORK_RATIO * relative_error(low, truth))
    assert {row.backend for row in mvk.report(fast).rows} == {backend}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_output_stride(source: str, output_stride: int) -> None:
    make = timm_model if source == "timm" else transformers_model
    stock = make("mobilevit_xxs", output_stride=output_stride)
    x = images(1, 96, 80)
    with torch.inference_mode():
        expected, result = logits(stock(x)), logits(mvk.optimize(stock)(x))
        mvk.replace_blocks(stock)
        replaced = logits(stock(x))
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(replaced, expected) <= 1e-5


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 0},
        {"num_classes": 0, "global_pool": ""},
        {"num_classes": 7},
        {"global_pool": "max"},
        {"global_pool": "catavgmax", "num_classes": 5},
    ],
    ids=str,
)
def test_timm_heads(kwargs: dict) -> None:
    stock = timm_model("mobilevit_xs", **kwargs)
    fast = mvk.optimize(stock)
    x = images(2, 96, 64)
    with torch.inference_mode():
        for part in (lambda m: m(x), lambda m: m.forward_features(x), lambda m: m.forward_head(m.forward_features(x))):
            expected, result = part(stock), part(fast)
            assert result.shape == expected.shape
            assert relative_error(result, expected) <= 1e-5
        pre = stock.forward_head(stock.forward_features(x), pre_logits=True)
        assert relative_error(fast.forward_head(fast.forward_features(x), pre_logits=True), pre) <= 1e-5


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 3), (4,), (0, 2)], ids=str)
def test_timm_features_only(out_indices: tuple[int, ...]) -> None:
    stock = timm_model("mobilevit_s", features_only=True, out_indices=out_indices)
    fast = mvk.optimize(stock)
    assert fast.feature_info.channels() == stock.feature_info.channels()
    x = images(2, 96, 64)
    with torch.inference_mode():
        expected, result = stock(x), fast(x)
    assert [tuple(r.shape) for r in result] == [tuple(e.shape) for e in expected]
    assert all(relative_error(r, e) <= 1e-5 for r, e in zip(result, expected, strict=True))


def test_timm_forward_intermediates() -> None:
    stock = timm_model("mobilevit_xxs")
    fast = mvk.optimize(stock)
    x = images(1, 64, 96)
    more = ({"indices": [0, 2], "stop_early": True}, {"exclude_final_conv": True}, {"indices": 1, "stop_early": True})
    with torch.inference_mode():
        for kwargs in ({}, {"indices": 2}, {"indices": [1, 3], "intermediates_only": True}, *more):
            expected, result = (m.forward_intermediates(x, **kwargs) for m in (stock, fast))
            if not kwargs.get("intermediates_only"):
                assert relative_error(result[0], expected[0]) <= 1e-5
                expected, result = expected[1], result[1]
            assert [r.shape for r in result] == [e.shape for e in expected]
            assert all(relative_error(r, e) <= 1e-5 for r, e in zip(result, expected, strict=True))


@pytest.mark.parametrize("task", ["Model", "ForImageClassification", "ForSemanticSegmentation"])
@pytest.mark.parametrize("hidden_states", [False, True])
@pytest.mark.parametrize("return_dict", [True, False])
def test_transformers_outputs(task: str, hidden_states: bool, return_dict: bool) -> None:
    config = {"output_stride": 16, "num_labels": 21} if task == "ForSemanticSegmentation" else {}
    stock = transformers_model("mobilevit_xxs", task, **config)
    fast = mvk.optimize(stock)
    x = images(2, 96, 64)
    options = {"output_hidden_states": hidden_states, "return_dict": return_dict}
    with torch.inference_mode():
        expected, result = stock(x, **options), fast(pixel_values=x, **options)
    assert type(result) is type(expected)
    assert list(inspect.signature(fast.forward).parameters) == list(inspect.signature(stock.forward).parameters)
    expected, result = (out.to_tuple() if return_dict else out for out in (expected, result))
    assert len(expected) == len(result)

    def compare(a: object, b: object) -> None:
        if isinstance(a, tuple):
            assert len(a) == len(b)
            for pair in zip(a, b, strict=True):
                compare(*pair)
        else:
            assert a.shape == b.shape
            assert relative_error(b, a) <= 1e-5

    compare(tuple(expected), tuple(result))


@pytest.mark.parametrize("task", ["ForImageClassification", "ForSemanticSegmentation"])
def test_transformers_loss(task: str) -> None:
    stock = transformers_model("mobilevit_xxs", task, num_labels=5)
    fast = mvk.optimize(stock)
    x = images(2, 64, 64)
    labels = torch.tensor([1, 3]) if task == "ForImageClassification" else torch.randint(0, 5, (2, 64, 64))
    with torch.inference_mode():
        expected, result = stock(x, labels=labels).loss, fast(x, labels=labels).loss
    assert relative_error(result, expected) <= 1e-5


def test_model_without_expanded_output() -> None:
    transformers = pytest.importorskip("transformers")
    stock = transformers.MobileViTModel(transformers.MobileViTConfig(), expand_output=False).eval()
    python_ref.randomize_weights(stock, 0)
    fast = mvk.optimize(stock)
    x = images(1, 64, 64)
    with torch.inference_mode():
        expected, result = stock(x), fast(x)
    assert result.pooler_output is None
    assert relative_error(result.last_hidden_state, expected.last_hidden_state) <= 1e-5


def test_ml_cvnets_stand_in() -> None:
    """ml-cvnets is on no registry: a stand-in with its module structure takes its place."""
    import cvnets_standin

    stock = cvnets_standin.MobileViT("mobilevit_xxs").eval()
    python_ref.randomize_weights(stock, 0)
    x = images(1, 96, 64)
    with torch.inference_mode():
        expected, result = stock(x), mvk.optimize(stock)(x)
        mvk.replace_blocks(stock)
        replaced = stock(x)
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(replaced, expected) <= 1e-5


@pytest.mark.parametrize("options", [{"no_fusion": True}, {"patch_size": 4}, {"patch_size": (2, 3)}, {"num_heads": 2}])
def test_timm_block_options(options: dict) -> None:
    module = pytest.importorskip("timm.models.mobilevit")
    layers = importlib.import_module("timm.models.byobnet").get_layer_fns(module.model_cfgs["mobilevit_s"])
    options = {"patch_size": 2, "layers": layers, **options}
    block = module.MobileVitBlock(32, transformer_dim=48, transformer_depth=2, **options).eval()
    python_ref.randomize_weights(block, 0)
    x = torch.randn(2, 32, 13, 9)
    with torch.inference_mode():
        expected = block(x)
        assert relative_error(mvk.MobileViTBlock.from_module(block)(x), expected) <= 1e-5
    network = nn.Sequential(nn.Conv2d(3, 32, 3), block)
    assert len(mvk.replace_blocks(network).replaced) == (2 if options.get("no_fusion") else 3)
    with torch.inference_mode():
        assert relative_error(network[1](x), expected) <= 1e-5


def test_optimize_again_keeps_the_call_signature() -> None:
    """Options are those of the second call; the normalisation stays unless it is given anew."""
    statistics = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    features = mvk.optimize(timm_model("mobilevit_xxs", features_only=True), normalize=statistics)
    pooled = mvk.optimize(timm_model("mobilevit_xxs", global_pool="max", num_classes=7), normalize=statistics)
    segmenter = mvk.optimize(transformers_model("mobilevit_xxs", "ForSemanticSegmentation", num_labels=5))
    x = images(1, 64, 64)
    with torch.inference_mode():
        for first in (features, pooled, segmenter):
            again, expected = mvk.optimize(first), first(x)
            result = again(x)
            assert type(result) is type(expected)
            pairs = (
                [(result, expected)] if isinstance(result, torch.Tensor) else list(zip(result, expected, strict=True))
            )
            if result.__class__.__name__ == "SemanticSegmenterOutput":
                pairs = [(result.logits, expected.logits)]
            assert all(torch.equal(r, e) for r, e in pairs)
            half = mvk.optimize(first, dtype=torch.bfloat16)
            assert mvk.report(half).notes == ["compute dtype: bfloat16"]
            assert mvk.report(first).notes == ["compute dtype: float32"]
            half(x)
    assert mvk.optimize(features).stem.normalize == statistics


def test_original_is_untouched_and_not_shared() -> None:
    stock = timm_model("mobilevit_xxs")
    before = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    fast = mvk.optimize(stock)
    x = images(1, 64, 64)
    with torch.inference_mode():
        expected = fast(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items())
    with torch.no_grad():
        for tensor in stock.state_dict().values():
            tensor.zero_()
    with torch.inference_mode():
        assert torch.equal(fast(x), expected)


class Detector(nn.Module):
    """A user's network: a MobileViT backbone somewhere inside, blocks of other families beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm_model("mobilevit_xxs", features_only=True)
        self.neck = nn.Sequential(python_ref.InvertedResidual(320, 64, expand_ratio=2), nn.Conv2d(64, 8, 1))
        self.shared = python_ref.InvertedResidual(8, 8)
        self.other = timm_model("mobilevitv2_050", num_classes=0, global_pool="")
        python_ref.randomize_weights(self.neck, 1)
        python_ref.randomize_weights(self.shared, 2)
        self.again = self.shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.neck(self.backbone(x)[-1])
        return self.again(self.shared(y)).mean() + self.other(x).mean()


def test_replace_blocks_inside_a_larger_network_and_restore() -> None:
    network = Detector().eval()
    keys = list(network.state_dict())
    x = images(1, 96, 96)
    with torch.inference_mode():
        expected = network(x)
        report = mvk.replace_blocks(network)
        result = network(x)
    assert relative_error(result, expected) <= 1e-5
    replaced = {row.name for row in report.replaced}
    assert {"neck.0.stage", "shared.stage", "again.stage"} <= replaced
    assert network.shared is network.again, "a block in two places stays one block"
    left = {row.name: row.reason for row in report.not_replaced}
    assert left, "MobileViTv2's blocks must be named"
    assert all(name.startswith("other.") for name in left)
    assert any("MobileViTv2" in reason or "MobileVitV2" in reason for reason in left.values())
    assert mvk.report(network).rows
    assert "neck.0.stage" in str(report)
    assert report.to_dict()["rows"][0]["backend"] == "torch"

    assert mvk.restore(network) > 0
    assert list(network.state_dict()) == keys
    with torch.inference_mode():
        assert torch.equal(network(x), expected)
    with pytest.raises(ValueError, match="model"):
        mvk.report(network)


def test_restored_blocks_have_the_dtype_that_the_network_was_cast_to() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), python_ref.InvertedResidual(16, 16)).eval()
    x = images(1, 8, 8)
    with torch.inference_mode():
        expected = network(x)
        mvk.replace_blocks(network, dtype=torch.bfloat16)  # not a cast of the network
        mvk.restore(network)
        assert torch.equal(network(x), expected)
        mvk.replace_blocks(network)
        network.double()
        mvk.restore(network)
        assert relative_error(network(x.double()), expected) <= 1e-6


def test_replacing_twice_changes_nothing() -> None:
    network = nn.Sequential(python_ref.InvertedResidual(16, 16)).eval()
    mvk.replace_blocks(network)
    block = network[0]
    assert not mvk.replace_blocks(network).rows
    assert network[0] is block


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_result_has_the_inputs_dtype(dtype: torch.dtype, compute: torch.dtype) -> None:
    fast = mvk.optimize(stock_model("timm", "mobilevit_xxs"), dtype=compute)
    with torch.inference_mode():
        assert fast(images(1, 64, 64).to(dtype)).dtype == dtype


@pytest.mark.parametrize("statistics", [((0.0,) * 3, (1.0,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_uint8_images(statistics: tuple) -> None:
    stock = stock_model("timm", "mobilevit_xxs")
    fast = mvk.optimize(stock, normalize=statistics)
    x = torch.randint(0, 256, (2, 65, 96, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in statistics)
    floats = x.permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = stock((floats - mean) / std)
        assert relative_error(fast(x), expected) <= 1e-5
        assert relative_error(fast(floats), expected) <= 1e-5
        assert fast(x).dtype == torch.float32
        assert fast.to(torch.bfloat16)(x).dtype == torch.bfloat16


def test_state_dict_is_float32_whatever_the_compute_dtype() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    before = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    fast.half()
    assert fast.compute_dtype == torch.float16
    fast.to(torch.bfloat16)
    assert fast.compute_dtype == torch.bfloat16
    assert fast.stem.packed.dtype == torch.bfloat16
    after = fast.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    fast.float()
    other = mvk.create_model("mobilevit_xxs", num_classes=10)
    x = images(1, 64, 64)
    with torch.inference_mode():
        assert not torch.equal(other(x), fast(x))
        other.load_state_dict(fast.state_dict())
        assert torch.equal(other(x), fast(x))
        third = mvk.create_model("mobilevit_xxs", num_classes=10)
        third.load_state_dict({k: v.half() for k, v in fast.state_dict().items()}, assign=True)
        assert all(tensor.dtype == torch.float32 for tensor in third.state_dict().values())
        assert relative_error(third(x), fast(x)) < 0.1


def test_copies_and_pickles(tmp_path) -> None:
    import pickle

    x = images(1, 64, 64)
    hf = transformers_model("mobilevit_xxs")
    for fast in (mvk.optimize(stock_model("timm", "mobilevit_xxs"), dtype=torch.bfloat16), mvk.optimize(hf)):
        with torch.inference_mode():
            expected = logits(fast(x))
            assert torch.equal(logits(copy.deepcopy(fast)(x)), expected)
            data = pickle.dumps(fast)
            assert torch.equal(logits(pickle.loads(data)(x)), expected)
            torch.save(fast, tmp_path / "fast.pt")
            assert torch.equal(logits(torch.load(tmp_path / "fast.pt", weights_only=False)(x)), expected)
    weights = sum(tensor.nbytes for tensor in fast.state_dict().values())
    assert len(data) < 1.2 * weights, "packed weights must not be saved"


def test_torch_compile_fullgraph() -> None:
    """Each size compiled for itself: symbolic heights and widths of a whole network take PyTorch minutes to solve."""
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.inference_mode():
        for batch, size in ((2, 64), (3, 64), (2, 70)):
            x = images(batch, size, size)
            assert relative_error(compiled(x), fast(x)) <= 1e-5


def test_no_recompilation_for_a_dynamic_batch() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    with torch.inference_mode():
        for batch in (2, 3, 5):
            x = images(batch, 64, 64)
            torch._dynamo.mark_dynamic(x, 0)
            compiled(x)
    assert len(compilations) == 1


def test_torch_export() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(fast, (images(2, 64, 96),), dynamic_shapes=({0: batch},))
        for count in (2, 5):
            x = images(count, 64, 96, seed=count)
            assert relative_error(program.module()(x), fast(x)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_without_data_give_the_shape(dtype: torch.dtype) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    fast = mvk.create_model("mobilevit_xxs", num_classes=10, dtype=dtype)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = fast(mode.from_tensor(images(2, 64, 64).to(dtype)))
    assert result.shape == (2, 10)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_op_that_packs_in_the_call_compiles(dtype: torch.dtype) -> None:
    weights = verify.random_weights("conv3x3", (16, 24), torch.Generator().manual_seed(0))
    x = torch.rand(1, 16, 8, 8).to(dtype)

    def run(x: torch.Tensor) -> torch.Tensor:
        return mvk.ops.conv3x3(x, weights)

    with torch.inference_mode():
        expected = run(x)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert relative_error(compiled, expected) <= 4 * torch.finfo(dtype).eps


def test_autocast_does_not_change_the_compute_dtype() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    x = images(1, 64, 64)
    with torch.inference_mode():
        expected = fast(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = fast(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_threads_at_once() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=10)
    inputs = [images(1 + i % 2, 64, 64 + 32 * (i % 3), seed=i) for i in range(12)]
    with torch.inference_mode():
        expected = [fast(x) for x in inputs]
    results: dict[int, torch.Tensor] = {}

    def work(part: int) -> None:
        with torch.inference_mode():
            for i in range(part, len(inputs), 2):
                results[i] = fast(inputs[i])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(relative_error(results[i], expected[i]) <= 1e-5 for i in range(len(inputs)))


def test_nan_stays_nan_and_leaves_the_neighbours_alone() -> None:
    fast = mvk.optimize(stock_model("timm", "mobilevit_xxs"))
    x = images(3, 64, 64)
    with torch.inference_mode():
        clean = fast(x)
        x[1, 0, 20, 20] = float("nan")
        result = fast(x)
    assert result[1].isnan().all()
    assert relative_error(result[[0, 2]], clean[[0, 2]]) <= 1e-5


def test_from_config_blocks() -> None:
    x = torch.randn(2, 24, 9, 10)
    with torch.inference_mode():
        assert mvk.InvertedResidual.from_config(24, 40, stride=2)(x).shape == (2, 40, 5, 5)
        residual = mvk.InvertedResidual.from_config(24, 24)
        assert residual.spec.residual
        assert mvk.MobileViTBlock.from_config(24, 48, 2)(x).shape == x.shape
        block = mvk.MobileViTBlock.from_config(24, 36, 1, num_heads=3, patch_size=(3, 2), fusion=False, dilation=2)
        assert block.fusion is None
        assert block(x).shape == x.shape


@pytest.mark.parametrize(("name", "parameters"), [("mobilevit_xxs", 1_272_024), ("mobilevit_s", 5_578_632)])
def test_create_model_has_the_published_size(name: str, parameters: int) -> None:
    """BatchNorm folded: each normalised channel keeps its bias and loses its scale."""
    stock = python_ref.MobileViT(name)
    assert sum(p.numel() for p in stock.parameters()) == parameters
    scales = sum(m.weight.numel() for m in stock.modules() if isinstance(m, nn.BatchNorm2d))
    folded = sum(b.numel() for b in mvk.create_model(name).buffers())
    assert folded == parameters - scales


def test_capture_needs_cuda() -> None:
    fast = mvk.create_model("mobilevit_xxs")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    for model in (fast, mvk.optimize(transformers_model("mobilevit_xxs"))):
        with pytest.raises(RuntimeError, match="capture: expected the model on a CUDA device, it is on cpu"):
            model.capture(1)
        with pytest.raises(RuntimeError, match="graph_input: expected the model on a CUDA device"):
            model.graph_input(1)
    with pytest.raises(RuntimeError, match="CUDA"):
        mvk.optimize(python_ref.MobileViT("xxs"), graph=True)


@pytest.mark.gpu
def test_captured_graph_returns_fresh_tensors() -> None:
    fast = mvk.optimize(copy.deepcopy(stock_model("timm", "mobilevit_xxs")).cuda(), dtype=torch.float16)
    x = images(2, 64, 64).cuda().half()
    with torch.inference_mode():
        expected = fast(x).clone()
        fast.capture(2, 64, 64)
        first = fast(x)
        second = fast(-x)
        assert torch.equal(first, expected)
        assert not torch.equal(first, second)
        assert fast(images(3, 64, 96).cuda().half()).shape == (3, 1000)  # another shape still runs
