"""Bad input: one clear error that names the argument, what was expected and what came."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from stock import timm_model, transformers_model
from torch import nn
from torch.nn.utils import parametrize

import mobilevit_kernels as mvk
import python_ref


@pytest.fixture(scope="module")
def fast() -> nn.Module:
    return mvk.create_model("mobilevit_xxs", num_classes=10)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.rand(3, 64, 64), ValueError, "x: expected a 4-D tensor"),
        (torch.rand(1, 1, 64, 64), ValueError, "expected 3 channels"),
        (torch.rand(1, 4, 64, 64), ValueError, "expected 3 channels"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), TypeError, "normalize"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), TypeError, "normalize"),
        (torch.rand(1, 3, 0, 64), ValueError, "no empty axis"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.complex64), TypeError, "complex64"),
        ([[1.0]], TypeError, "list"),
        (None, TypeError, "None"),
    ],
    ids=["3-D", "grey", "RGBA", "uint8", "int64", "empty", "complex", "list", "None"],
)
def test_bad_images(fast: nn.Module, x: object, error: type[Exception], words: str) -> None:
    with torch.inference_mode(), pytest.raises(error, match=words):
        fast(x)


def test_bad_images_with_normalize() -> None:
    fast = mvk.create_model("mobilevit_xxs", normalize=((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(TypeError, match="uint8"):
        fast(torch.zeros(1, 64, 64, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, H, W, 3\)"):
        fast(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    for bad in (((0.0,), (1.0,)), (0.5, 0.5), ((0.0,) * 3, (0.0,) * 3), ((0.0,) * 3,)):
        with pytest.raises((ValueError, TypeError), match=r"normalize|float"):
            mvk.create_model("mobilevit_xxs", normalize=bad)(torch.rand(1, 3, 32, 32))


def test_training_mode_and_gradients(fast: nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="requires grad"):
        fast(x.clone().requires_grad_())
    network = nn.Sequential(fast)
    network.train()  # does not raise
    with pytest.raises(RuntimeError, match="training mode"):
        network(x)
    with torch.no_grad():
        network(x.clone().requires_grad_())
    network.eval()
    network(x)

    blocks = nn.Sequential(nn.Conv2d(16, 16, 1), python_ref.InvertedResidual(16, 16)).eval()
    mvk.replace_blocks(blocks)
    maps = torch.rand(1, 16, 8, 8)
    with pytest.raises(RuntimeError, match="requires grad"):
        blocks(maps)  # the convolution's parameters require grad
    with torch.inference_mode():
        blocks(maps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 3),
        lambda: timm_model("resnet18"),
        lambda: timm_model("mobilevitv2_050"),
        lambda: timm_model("semobilevit_s") if "semobilevit_s" in __import__("timm").list_models() else nn.ReLU(),
        lambda: torch.compile(python_ref.MobileViT("xxs")),
        lambda: nn.DataParallel(python_ref.MobileViT("xxs")),
    ],
    ids=["Linear", "ResNet", "MobileViTv2", "SE", "compiled", "DataParallel"],
)
def test_not_a_mobilevit(make) -> None:
    with pytest.raises(mvk.Unsupported) as caught:
        mvk.optimize(make())
    assert isinstance(caught.value, ValueError)


def test_transformers_mobilevitv2_is_refused_by_name() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.MobileViTV2Model(transformers.MobileViTV2Config(width_multiplier=0.5))
    with pytest.raises(mvk.Unsupported, match=r"(?i)mobilevitv2"):
        mvk.optimize(model)


@pytest.mark.parametrize("kind", ["hook", "pre_hook", "parametrization", "weight_norm"])
@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_modules_that_cannot_be_honoured_are_named(kind: str, source: str) -> None:
    model = timm_model("mobilevit_xxs") if source == "timm" else transformers_model("mobilevit_xxs")
    if source == "timm":
        path, block = "stages.2.1.conv_proj.conv", model.stages[2][1].conv_proj.conv
    else:
        path = "encoder.layer.2.conv_projection.convolution"
        block = model.mobilevit.encoder.layer[2].conv_projection.convolution
    if kind == "hook":
        block.register_forward_hook(lambda *args: None)
    elif kind == "pre_hook":
        block.register_forward_pre_hook(lambda *args: None)
    elif kind == "parametrization":
        parametrize.register_parametrization(block, "weight", nn.Identity())
    else:
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(block)
    with pytest.raises(mvk.Unsupported, match=path.replace(".", r"\.")):
        mvk.optimize(model)
    before = dict(model.named_modules())
    report = mvk.replace_blocks(model)
    assert len(report.not_replaced) == 1
    assert report.replaced
    name = report.not_replaced[0].name
    assert model.get_submodule(name) is before[name]


def test_unknown_names_and_options() -> None:
    model = python_ref.MobileViT("xxs")
    for backend in ("tensorrt", "", None, 3):
        with pytest.raises(ValueError, match="backend"):
            mvk.optimize(model, backend=backend)
        with pytest.raises(ValueError, match="backend"):
            mvk.replace_blocks(nn.Sequential(model), backend=backend)
    for name in ("mobilevit_m", "mobilevitv2_100", "", None):
        with pytest.raises(ValueError, match="name"):
            mvk.create_model(name)
    for dtype in (torch.int8, "float16", torch.complex64):
        with pytest.raises(ValueError, match="dtype"):
            mvk.optimize(model, dtype=dtype)
    with pytest.raises(TypeError, match="model"):
        mvk.optimize("mobilevit_s")
    with pytest.raises(ValueError, match="from_module"):
        mvk.replace_blocks(python_ref.InvertedResidual(8, 8))
    with pytest.raises(ValueError, match="num_heads"):
        mvk.MobileViTBlock.from_config(24, 50, 2, num_heads=4)
    for ratio in (0, -1.0, float("nan"), "2"):
        with pytest.raises(ValueError, match="expand_ratio: expected a positive number"):
            mvk.InvertedResidual.from_config(8, 8, expand_ratio=ratio)
        with pytest.raises(ValueError, match="mlp_ratio: expected a positive number"):
            mvk.MobileViTBlock.from_config(24, 48, 2, mlp_ratio=ratio)
    for classes in (-1, 2.0, None):
        with pytest.raises(ValueError, match="num_classes: expected 0 or a positive integer"):
            mvk.create_model("mobilevit_xxs", classes)
    for function in (mvk.restore, mvk.report, mvk.replace_blocks):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got str"):
            function("mobilevit_s")
    with pytest.raises(TypeError, match="checkpoint: expected a path, got NoneType"):
        mvk.load("mobilevit_xxs", None)
    with pytest.raises(ValueError, match="backend"):
        mvk.load("mobilevit_xxs", "none.pt", backend="tensorrt")


@pytest.mark.parametrize("backend", ["cuda", "triton", "simt"])
def test_absent_backend_raises_with_its_reason(backend: str) -> None:
    status = mvk.backends()[backend]
    if status.available:
        pytest.skip(f"{backend} is available here")
    assert status.reason
    with pytest.raises(mvk.BackendUnavailable) as caught:
        mvk.optimize(python_ref.MobileViT("xxs"), backend=backend)
    assert status.reason in str(caught.value)
    with pytest.raises(mvk.BackendUnavailable):
        mvk.ops.unfold_attention_fold(torch.rand(1, 48, 4, 4), num_heads=4, backend=backend)


def test_op_arguments() -> None:
    spec = mvk.InvertedResidual.from_config(16, 16).spec
    x = torch.rand(1, 16, 8, 8)
    ops = mvk.ops
    with torch.no_grad():
        with pytest.raises(ValueError, match="stride"):
            ops.inverted_residual(x, spec.weights, stride=3)
        with pytest.raises(ValueError, match="residual"):
            ops.inverted_residual(x, spec.weights, stride=2, residual=True)
        with pytest.raises(ValueError, match="dilation"):
            ops.inverted_residual(x, spec.weights, dilation=0)
        with pytest.raises(TypeError, match="weights"):
            ops.conv3x3(x, spec.weights)
        with pytest.raises(TypeError, match="weights"):
            mvk.pack("weights")
        for dtype in (torch.int8, torch.float8_e4m3fn, "float16"):
            with pytest.raises(ValueError, match="dtype"):
                mvk.pack(spec.weights, dtype)
        packed = mvk.pack(spec.weights, torch.bfloat16, "cpu", "torch")
        with pytest.raises(TypeError, match="bfloat16"):
            ops.inverted_residual(x, packed)
        with pytest.raises(TypeError, match="inverted_residual"):
            ops.head(x, packed)
        with pytest.raises(ValueError, match="backend"):
            ops.inverted_residual(x.bfloat16(), packed, backend="triton")
        with pytest.raises(ValueError, match="channels"):
            ops.inverted_residual(x[:, :8], spec.weights)
        with pytest.raises(ValueError, match="num_heads"):
            ops.unfold_attention_fold(torch.rand(1, 48, 4, 4), num_heads=5)
        with pytest.raises(TypeError, match="scale: expected a number"):
            ops.unfold_attention_fold(torch.rand(1, 48, 4, 4), num_heads=4, scale="1")
        with pytest.raises(ValueError, match="patch_size"):
            ops.unfold_attention_fold(torch.rand(1, 48, 5, 4), num_heads=4)
        conv = mvk.MobileViTBlock.from_config(8, 16, 1).spec.fusion
        with pytest.raises(ValueError, match="x2"):
            ops.conv3x3(x[:, :8], conv, x2=x[:, :8, :4])
        with pytest.raises(ValueError, match="activation"):
            ops.conv3x3(x, conv, activation="relu")


@pytest.mark.parametrize("field", ["weight", "bias"])
@pytest.mark.parametrize(
    "wrong", [torch.rand(7), torch.rand(8, 8, 5, 5), None, [1.0], torch.ones(8, dtype=torch.int64)]
)
def test_weights_that_do_not_fit_each_other(field: str, wrong: object) -> None:
    """Backends read sizes off one tensor and would take the others for what they are not."""
    weights = mvk.canonical.Conv3x3Weights(torch.rand(8, 8, 3, 3), torch.rand(8))
    wrong_weights = dataclasses.replace(weights, **{field: wrong})
    with pytest.raises((TypeError, ValueError), match=rf"^weights\.{field}: expected a .*tensor \(C_out.*, got "):
        mvk.ops.conv3x3(torch.rand(1, 8, 4, 4), wrong_weights)


def test_transformer_and_head_weights_that_do_not_fit() -> None:
    spec = mvk.create_model("mobilevit_xxs", num_classes=5).spec
    transformer, head = spec.layers[2][1].transformer, spec.head
    layers = (transformer.layers[0], dataclasses.replace(transformer.layers[1], qkv_weight=torch.rand(64, 64)))
    for wrong, words in (
        (dataclasses.replace(transformer, layers=layers), r"layers\[1\]\.qkv_weight: .*\(3·D = 192, D = 64\)"),
        (dataclasses.replace(transformer, layers=(None,)), r"layers\[0\]: expected EncoderLayerWeights, got NoneType"),
        (dataclasses.replace(transformer, out_weight=torch.rand(48, 60, 1, 1)), r"out_weight: .*D = 64"),
        (dataclasses.replace(head, fc_weight=torch.rand(5, 7)), r"fc_weight: .*hidden = 320"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^weights\.{words}"):
            mvk.pack(wrong)
    for heads in (0, 5, "4"):
        with pytest.raises(ValueError, match=r"^num_heads: expected a "):
            mvk.pack(transformer, num_heads=heads)
    without_bias, zeros = (dataclasses.replace(head, fc_bias=bias) for bias in (None, torch.zeros(5)))
    x = torch.rand(2, 80, 3, 3)
    assert torch.equal(mvk.ops.head(x, without_bias), mvk.ops.head(x, zeros))


def test_import_is_light() -> None:
    """Neither timm, transformers, triton, rich nor matplotlib; no longer than torch itself plus 0.2 s."""
    import subprocess
    import sys

    # CPU time, so that a busy machine does not count.
    code = (
        "import sys, time, torch; before = set(sys.modules); t = time.process_time(); import mobilevit_kernels; "
        "took = time.process_time() - t; new = set(sys.modules) - before; "
        "heavy = [m for m in ('timm', 'transformers', 'triton', 'rich', 'matplotlib', 'PIL', 'click') if m in new]; "
        "print(took, heavy)"
    )
    took = float("inf")
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds, heavy = output.split(maxsplit=1)
        took = min(took, float(seconds))
        assert heavy.strip() == "[]"
        if took < 0.2:
            break
    assert took < 0.2


@pytest.mark.parametrize(
    "normalize",
    [
        True,
        (0.5, 0.5),
        (("a", 0, 0), (1, 1, 1)),
        ((0, 0, math.nan), (1, 1, 1)),
        ((0, 0, 0), (1, 1, math.inf)),
        ((0, 0, 0), (0, 1, 1)),
        ((0, 0), (1, 1)),
        ((0, 0, 0),),
    ],
    ids=str,
)
def test_a_bad_normalize_is_refused_at_once(normalize: object) -> None:
    with pytest.raises(ValueError, match=r"^normalize: expected "):
        mvk.create_model("mobilevit_xxs", num_classes=3, normalize=normalize)


def test_arrays_and_lists_are_named_without_their_values() -> None:
    fast = mvk.create_model("mobilevit_xxs", num_classes=3)
    x = torch.rand(2, 3, 64, 64)
    for wrong, what in ((x.numpy(), r"ndarray of shape \(2, 3, 64, 64\)$"), ([x, x], "list ")):
        with pytest.raises(TypeError, match=f"x: expected a tensor .*{what}") as caught:
            fast(wrong)
        assert len(str(caught.value)) < 250


def test_replace_blocks_says_that_there_was_nothing() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3))
    assert any("none of MobileViT's blocks" in note for note in mvk.replace_blocks(network).notes)
    import python_ref

    network = torch.nn.Sequential(python_ref.InvertedResidual(16, 16)).eval()
    assert mvk.replace_blocks(network).notes == ["1 blocks replaced"]
    assert mvk.replace_blocks(network).notes[1].startswith("1 blocks were replaced already; ")


def test_channels_first_bytes_are_told_how_to_turn() -> None:
    fast = mvk.create_model("mobilevit_xxs", normalize=((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, H, W, 3\), got .*x.permute\(0, 2, 3, 1\) brings"):
        fast(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_stock_module_in_place_of_weights_is_told_the_way() -> None:
    with pytest.raises(TypeError, match=r"got Conv2d; those of a stock module: MobileViTBlock.from_module\(block\)"):
        mvk.ops.conv3x3(torch.rand(1, 8, 4, 4), torch.nn.Conv2d(8, 8, 3))


def test_pytorch_counts_the_same_flops_in_every_dtype() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for dtype in (torch.float32, torch.bfloat16):
        fast = mvk.create_model("mobilevit_xxs", dtype=dtype)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            fast(torch.rand(1, 3, 64, 64))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
