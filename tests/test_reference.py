"""The reference is MobileViT: the paper's claims about its operations, and agreement with timm in float64."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import python_ref
from python_ref import InvertedResidual, MobileViT, MobileViTBlock, VisionTransformer

PATCH_SIZES = [1, 2, 4, (2, 2), (1, 2), (2, 4), (4, 2), (3, 2)]
PARAMETERS = {"xxs": 1_272_024, "xs": 2_317_848, "s": 5_578_632}
FLOAT64_TOLERANCE = 1e-12

M = TypeVar("M", bound=nn.Module)


def relative_error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    return float(((result - expected).norm() / expected.norm()).detach())


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomize(model: M, seed: int) -> M:
    """Float64, inference mode, with random parameters; seeds the global generator too, for the inputs."""
    torch.manual_seed(seed)
    return python_ref.randomize_weights(model.double().eval(), seed)


def random_block(seed: int, **arguments: Any) -> MobileViTBlock:
    return randomize(MobileViTBlock(**arguments), seed)


def pixel_dependence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(H_out, W_out, H, W): whether an output pixel depends on an input pixel, read off the Jacobian at ``x``."""
    jacobian: Tensor = torch.func.jacrev(function)(x)  # (1, C_out, H_out, W_out, 1, C, H, W)
    return (jacobian != 0).any(dim=5).any(dim=4).any(dim=1).squeeze(0)


def neighbourhood(height: int, width: int, reach: int = 1, stride: int = 1) -> Tensor:
    """(H_out, W_out, H, W): the pixels within ``reach`` rows and columns of each output's centre."""
    rows, columns = torch.arange(height), torch.arange(width)
    row_near = (rows[::stride, None] - rows).abs() <= reach
    column_near = (columns[::stride, None] - columns).abs() <= reach
    return row_near[:, None, :, None] & column_near[None, :, None, :]


def same_phase(height: int, width: int, patch: int) -> Tensor:
    """(H, W, H, W): whether two pixels sit at the same position of their patches."""
    rows, columns = torch.arange(height) % patch, torch.arange(width) % patch
    return (rows[:, None] == rows)[:, None, :, None] & (columns[:, None] == columns)[None, :, None, :]


class TestUnfoldAndFold:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
    @pytest.mark.parametrize("patch_size", PATCH_SIZES, ids=str)
    def test_fold_undoes_unfold_exactly(self, patch_size: int | tuple[int, int], dtype: torch.dtype) -> None:
        x = (100 * torch.randn(3, 5, 12, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
        patches = python_ref.unfold(x, patch_size)
        assert patches.dtype == dtype
        assert torch.equal(python_ref.fold(patches, patch_size, (12, 8)), x)

    @pytest.mark.parametrize("patch_size", PATCH_SIZES, ids=str)
    def test_unfold_undoes_fold_exactly(self, patch_size: int | tuple[int, int]) -> None:
        height, width = python_ref.transformer.as_pair(patch_size)
        patches = torch.randn(2 * height * width, 15, 7)
        x = python_ref.fold(patches, patch_size, (3 * height, 5 * width))
        assert torch.equal(python_ref.unfold(x, patch_size), patches)

    def test_order_of_patches_and_pixels_is_kept(self) -> None:
        batch, channels, height, width = 2, 3, 6, 8
        x = torch.arange(batch * channels * height * width).reshape(batch, channels, height, width)
        patches = python_ref.unfold(x, 2)
        assert patches.shape == (batch * 4, height * width // 4, channels)
        for b in range(batch):
            for i in range(height // 2):
                for j in range(width // 2):
                    for row in range(2):
                        for column in range(2):
                            sequence, token = 4 * b + 2 * row + column, i * (width // 2) + j
                            assert torch.equal(patches[sequence, token], x[b, :, 2 * i + row, 2 * j + column])

    def test_order_in_patches_that_are_not_square(self) -> None:
        x = torch.arange(6 * 8).reshape(1, 1, 6, 8)
        patches = python_ref.unfold(x, (3, 2))
        assert patches.shape == (6, 8, 1)
        for row in range(3):
            for column in range(2):
                expected = x[0, 0, row::3, column::2].reshape(-1)
                assert torch.equal(patches[2 * row + column, :, 0], expected)

    def test_memory_layout_does_not_matter(self) -> None:
        x = torch.randn(2, 6, 4, 8)
        strided = torch.randn(2, 6, 8, 16)[:, :, ::2, ::2].copy_(x)
        expected = python_ref.unfold(x, 2)
        assert torch.equal(python_ref.unfold(x.to(memory_format=torch.channels_last), 2), expected)
        assert torch.equal(python_ref.unfold(strided, 2), expected)
        assert torch.equal(python_ref.fold(expected.transpose(1, 2).contiguous().transpose(1, 2), 2, (4, 8)), x)

    def test_empty_batch(self) -> None:
        patches = python_ref.unfold(torch.empty(0, 5, 4, 6), 2)
        assert patches.shape == (0, 6, 5)
        assert python_ref.fold(patches, 2, (4, 6)).shape == (0, 5, 4, 6)

    def test_attention_within_sequences_is_attention_between_pixels_of_one_phase(self) -> None:
        """Unfold, attend, fold is attention over the whole map, masked to the pixels whole patches away."""
        torch.manual_seed(1)
        height, width, dim = 6, 4, 8
        attention = python_ref.Attention(dim, num_heads=2).double()
        x = torch.randn(2, dim, height, width, dtype=torch.float64)
        folded = python_ref.fold(attention(python_ref.unfold(x, 2)), 2, (height, width))

        mask = same_phase(height, width, 2).reshape(height * width, height * width)
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (t.unflatten(-1, (2, dim // 2)).transpose(1, 2) for t in attention.qkv(tokens).chunk(3, dim=-1))
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        masked = attention.proj(heads.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
        assert relative_error(folded, masked) <= FLOAT64_TOLERANCE


class TestConvolutionIsUnfoldMatmulFold:
    @pytest.mark.parametrize(
        ("kernel_size", "stride", "dilation", "height", "width"),
        [(3, 1, 1, 8, 8), (3, 2, 1, 8, 10), (3, 1, 2, 9, 7), (1, 1, 1, 5, 6), (5, 1, 1, 9, 8)],
    )
    def test_equals_conv2d(self, kernel_size: int, stride: int, dilation: int, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(kernel_size + stride + dilation)
        x = torch.randn(2, 4, height, width, dtype=torch.float64, generator=generator)
        weight = torch.randn(6, 4, kernel_size, kernel_size, dtype=torch.float64, generator=generator)
        padding = dilation * (kernel_size - 1) // 2
        expected = F.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)

        columns = F.unfold(x, kernel_size, dilation=dilation, padding=padding, stride=stride)  # (B, C·k², N)
        product = weight.flatten(1) @ columns  # (B, C_out, N)
        assert relative_error(F.fold(product, expected.shape[2:], 1), expected) <= FLOAT64_TOLERANCE


class TestReceptiveField:
    """Which input pixels an output pixel depends on: all of them in a MobileViT block, a few in a convolution."""

    @pytest.mark.parametrize("fusion", [True, False])
    @pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7)])
    def test_mobilevit_block_sees_every_pixel(self, height: int, width: int, fusion: bool) -> None:
        block = random_block(2, in_channels=3, transformer_dim=8, depth=1, num_heads=2, fusion=fusion)
        x = torch.randn(1, 3, height, width, dtype=torch.float64)
        assert pixel_dependence(block, x).all()

    def test_perturbing_one_pixel_changes_every_output_pixel(self) -> None:
        block = random_block(3, in_channels=3, transformer_dim=8, depth=1, num_heads=2)
        x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        perturbed = x.clone()
        perturbed[0, :, 7, 0] += 10
        with torch.no_grad():
            assert ((block(perturbed) - block(x)).abs().amax(dim=1) > 0).all()

    def test_transformer_stage_alone_sees_the_pixels_whole_patches_away(self) -> None:
        block = random_block(4, in_channels=3, transformer_dim=8, depth=2, num_heads=2)

        def stage(x: Tensor) -> Tensor:
            return python_ref.transformer_stage(x, block.conv_1x1, block.transformer, block.norm, block.conv_proj, 2)

        x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
        assert torch.equal(pixel_dependence(stage, x), same_phase(4, 6, 2))

    def test_patch_wider_than_the_local_convolution_leaves_gaps(self) -> None:
        block = random_block(5, in_channels=3, transformer_dim=8, depth=1, num_heads=2, patch_size=4, fusion=False)
        dependence = pixel_dependence(block, torch.randn(1, 3, 8, 8, dtype=torch.float64))
        assert dependence.any(dim=(0, 1)).all()
        assert not dependence.all()

    @pytest.mark.parametrize("dilation", [1, 2])
    def test_convolution_sees_its_neighbourhood(self, dilation: int) -> None:
        convolution = randomize(python_ref.Conv3x3(3, 4, dilation=dilation), 6)
        dependence = pixel_dependence(convolution, torch.randn(1, 3, 7, 8, dtype=torch.float64))
        expected = neighbourhood(7, 8, reach=dilation)
        if dilation == 2:
            expected = expected & same_phase(7, 8, 2)
        assert not expected.all()
        assert torch.equal(dependence, expected)

    @pytest.mark.parametrize(("stride", "height", "width"), [(1, 6, 7), (2, 6, 8), (2, 7, 5)])
    def test_inverted_residual_sees_its_neighbourhood(self, stride: int, height: int, width: int) -> None:
        block = randomize(InvertedResidual(3, 3, stride=stride), 7)
        dependence = pixel_dependence(block, torch.randn(1, 3, height, width, dtype=torch.float64))
        assert torch.equal(dependence, neighbourhood(height, width, stride=stride))


class TestParameterCounts:
    @pytest.mark.parametrize(("size", "expected"), PARAMETERS.items())
    def test_mobilevit(self, size: str, expected: int) -> None:
        assert count_parameters(MobileViT(size)) == expected
        assert count_parameters(MobileViT(f"mobilevit_{size}")) == expected

    def test_xs_is_less_than_half_of_deit_tiny(self) -> None:
        deit_tiny = VisionTransformer()
        assert count_parameters(deit_tiny) == 5_717_416
        assert 2 * count_parameters(MobileViT("xs")) < count_parameters(deit_tiny)
        dims = [block.norm.weight.numel() for block in MobileViT("xs").modules() if isinstance(block, MobileViTBlock)]
        assert dims == [96, 120, 144]
        assert max(dims) < deit_tiny.norm.weight.numel() == 192


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def layers(timm: Any) -> Any:
    """timm's layer factory as its MobileViT configures it: SiLU everywhere, where the default is ReLU."""
    conv_norm_act = functools.partial(timm.layers.ConvNormAct, act_layer=nn.SiLU)
    return timm.models.byobnet.LayerFn(conv_norm_act=conv_norm_act, act=nn.SiLU)


class TestAgainstTimm:
    @pytest.mark.parametrize("size", PARAMETERS)
    def test_mobilevit(self, timm: Any, size: str) -> None:
        reference = randomize(MobileViT(size), 10)
        stock = timm.create_model(f"mobilevit_{size}").double().eval()
        stock.load_state_dict(reference.state_dict())
        x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE
            assert relative_error(reference.forward_features(x), stock.forward_features(x)) <= FLOAT64_TOLERANCE

    @pytest.mark.parametrize(("size", "height", "width"), [("xxs", 57, 71), ("xs", 96, 40), ("s", 103, 90)])
    def test_weights_from_timm_and_odd_maps(self, timm: Any, size: str, height: int, width: int) -> None:
        stock = randomize(timm.create_model(f"mobilevit_{size}", num_classes=10), 11)
        reference = MobileViT(size, num_classes=10).double().eval()
        reference.load_state_dict(stock.state_dict())
        x = torch.rand(2, 3, height, width, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE

    def test_pooled_features(self, timm: Any) -> None:
        reference = randomize(MobileViT("xxs", num_classes=0), 12)
        stock = timm.create_model("mobilevit_xxs", num_classes=0).double().eval()
        stock.load_state_dict(reference.state_dict())
        x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            assert reference(x).shape == (1, 320)
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE

    @pytest.mark.parametrize(
        ("arguments", "stock_arguments", "height", "width"),
        [
            ({"dilation": 2}, {"dilation": (2, 2)}, 12, 16),
            ({"fusion": False}, {"no_fusion": True}, 12, 16),
            ({"patch_size": 4}, {"patch_size": 4}, 12, 16),
            ({"patch_size": 4, "fusion": False}, {"patch_size": 4, "no_fusion": True}, 9, 14),
            ({"patch_size": (2, 4), "dilation": 2}, {"patch_size": (2, 4), "dilation": (2, 2)}, 7, 10),
            ({"num_heads": 2, "mlp_ratio": 3}, {"num_heads": 2, "mlp_ratio": 3.0}, 1, 1),
        ],
        ids=["dilation", "no-fusion", "patch4", "patch4-odd", "patch2x4-dilation-odd", "one-pixel"],
    )
    def test_block(
        self,
        timm: Any,
        layers: Any,
        arguments: dict[str, Any],
        stock_arguments: dict[str, Any],
        height: int,
        width: int,
    ) -> None:
        reference = random_block(13, in_channels=16, transformer_dim=24, depth=2, **arguments)
        stock_arguments = {"patch_size": 2, **stock_arguments}
        stock = timm.models.mobilevit.MobileVitBlock(
            16, transformer_dim=24, transformer_depth=2, layers=layers, **stock_arguments
        )
        stock.double().eval().load_state_dict(reference.state_dict())
        x = torch.randn(2, 16, height, width, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE

    @pytest.mark.parametrize(
        ("in_channels", "out_channels", "stride", "expand_ratio", "dilation"),
        [(16, 16, 1, 2, 1), (16, 32, 1, 4, 1), (16, 24, 2, 4, 1), (12, 12, 1, 2, 2), (12, 20, 2, 3, 2)],
    )
    def test_inverted_residual(
        self,
        timm: Any,
        layers: Any,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: int,
        dilation: int,
    ) -> None:
        reference = InvertedResidual(in_channels, out_channels, stride, expand_ratio, dilation)
        randomize(reference, 14)
        stock = timm.models.byobnet.BottleneckBlock(
            in_channels,
            out_channels,
            stride=stride,
            dilation=(dilation, dilation),
            bottle_ratio=expand_ratio,
            group_size=1,
            downsample="",
            bottle_in=True,
            linear_out=True,
            layers=layers,
        )
        assert reference.residual == (stock.shortcut is not None)
        stock.double().eval().load_state_dict(reference.state_dict())
        x = torch.randn(2, in_channels, 9, 12, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE

    def test_deit_tiny(self, timm: Any) -> None:
        reference = randomize(VisionTransformer(), 15)
        stock = timm.create_model("deit_tiny_patch16_224").double().eval()
        stock.load_state_dict(reference.state_dict())
        x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(reference(x), stock(x)) <= FLOAT64_TOLERANCE
        VisionTransformer().load_state_dict(stock.state_dict())


class TestModules:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50)])
    def test_dtypes_stay_and_approximate_float64(self, dtype: torch.dtype, height: int, width: int) -> None:
        model = randomize(MobileViT("xxs", num_classes=10), 20)
        x = torch.rand(1, 3, height, width, dtype=torch.float64)
        with torch.no_grad():
            expected = model(x)
            result = model.to(dtype)(x.to(dtype))
        assert result.dtype == dtype
        assert relative_error(result.double(), expected) <= 16 * torch.finfo(dtype).eps

    def test_empty_batch(self) -> None:
        assert MobileViT("xxs", num_classes=10).eval()(torch.empty(0, 3, 64, 64)).shape == (0, 10)

    def test_an_image_does_not_depend_on_its_neighbours(self) -> None:
        model = randomize(MobileViT("xxs", num_classes=10), 21)
        x = torch.rand(3, 3, 40, 64, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(model(x)[1:2], model(x[1:2])) <= FLOAT64_TOLERANCE

    def test_attention_is_the_papers_equation(self) -> None:
        torch.manual_seed(22)
        attention = python_ref.Attention(12, num_heads=3).double()
        x = torch.randn(2, 5, 12, dtype=torch.float64)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        heads = []
        for head in range(3):
            rows = [slice(12 * part + 4 * head, 12 * part + 4 * (head + 1)) for part in range(3)]
            q, k, v = (x @ weight[r].T + bias[r] for r in rows)
            weights = (torch.einsum("snd,smd->snm", q, k) / 2).exp()  # √head_dim = 2
            heads.append(torch.einsum("snm,smd->snd", weights / weights.sum(dim=2, keepdim=True), v))
        expected = attention.proj(torch.cat(heads, dim=2))
        assert relative_error(attention(x), expected) <= FLOAT64_TOLERANCE

    def test_attributes_that_describe_a_block(self) -> None:
        block = MobileViTBlock(8, 12, depth=3, num_heads=2, patch_size=(2, 4), dilation=2, fusion=False)
        assert (block.patch_size, block.num_heads, block.dilation, block.conv_fusion) == ((2, 4), 2, 2, None)
        assert isinstance(block.transformer, nn.Sequential)
        assert len(block.transformer) == 3
        assert MobileViTBlock(8, 12, depth=1).patch_size == (2, 2)

    @pytest.mark.parametrize(
        ("in_channels", "out_channels", "stride", "expand_ratio", "hidden_channels", "residual"),
        [(16, 16, 1, 2, 32, True), (16, 16, 2, 2, 32, False), (16, 24, 1, 4, 64, False), (5, 5, 1, 1.5, 8, True)],
    )
    def test_attributes_that_describe_an_inverted_residual(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expand_ratio: float,
        hidden_channels: int,
        residual: bool,
    ) -> None:
        block = InvertedResidual(in_channels, out_channels, stride, expand_ratio, dilation=2)
        assert block.conv1_1x1.conv.out_channels == hidden_channels
        assert block.conv2_kxk.conv.groups == hidden_channels
        assert (block.residual, block.stride, block.dilation) == (residual, stride, 2)

    @pytest.mark.parametrize("size", PARAMETERS)
    def test_fresh_network_tells_images_apart(self, size: str) -> None:
        """Without this, comparisons of untrained networks would compare little more than their last biases."""
        torch.manual_seed(23)
        model = MobileViT(size).eval()
        randomized = python_ref.randomize_weights(MobileViT(size), 23).eval()
        x = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            for logits in (model(x), python_ref.randomize_batch_norm(model, 23)(x), randomized(x)):
                assert relative_error(logits[0], logits[1]) > 0.02

    @pytest.mark.parametrize(("channels", "expected"), [(1, 8), (11, 16), (19, 24), (35, 32), (75, 72), (76, 80)])
    def test_make_divisible(self, channels: int, expected: int) -> None:
        assert python_ref.inverted_residual.make_divisible(channels) == expected

    def test_depends_on_torch_alone(self) -> None:
        code = (
            "import sys, python_ref; "
            "print([name for name in ('timm', 'transformers', 'mobilevit_kernels') if name in sys.modules])"
        )
        root = Path(__file__).resolve().parents[1]
        result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == "[]"


class TestRandomStatistics:
    def test_ranges(self) -> None:
        values = python_ref.randomize_batch_norm(nn.BatchNorm2d(4096), 0).state_dict()
        for key in ("running_mean", "bias"):
            assert abs(float(values[key].mean())) < 0.02
            assert float(values[key].std()) == pytest.approx(0.2, rel=0.05)
        for key, low, high in (("running_var", 0.5, 2.0), ("weight", 0.6, 1.4)):
            assert low <= float(values[key].min()) < low + 0.01
            assert high - 0.01 < float(values[key].max()) <= high

    def test_seed_decides(self) -> None:
        first, same, other = (
            python_ref.randomize_batch_norm(nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm1d(8)), seed)
            for seed in (1, 1, 2)
        )
        for key, value in first.state_dict().items():
            assert torch.equal(value, same.state_dict()[key])
            assert key.endswith("num_batches_tracked") or not torch.equal(value, other.state_dict()[key])
        values = first.state_dict()
        assert not torch.equal(values["0.running_mean"], values["1.running_mean"])

    def test_same_values_in_every_dtype(self) -> None:
        double, half = (
            python_ref.randomize_batch_norm(nn.BatchNorm2d(64).to(dtype), 3).weight
            for dtype in (torch.float64, torch.float16)
        )
        assert torch.equal(double.half(), half)

    def test_layers_without_statistics_or_affine_part(self) -> None:
        bare = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        python_ref.randomize_batch_norm(bare, 0)
        assert not bare.state_dict()

    def test_weights(self) -> None:
        model = nn.Sequential(nn.Conv2d(8, 512, 3), nn.Linear(64, 1024), nn.BatchNorm2d(512), nn.LayerNorm(512))
        fresh = {key: value.clone() for key, value in model.state_dict().items()}
        values = python_ref.randomize_weights(model, 0).state_dict()
        assert float(values["0.weight"].std()) == pytest.approx((2 / 72) ** 0.5, rel=0.05)
        assert float(values["1.weight"].std()) == pytest.approx((1 / 64) ** 0.5, rel=0.05)
        assert float(values["1.bias"].std()) == pytest.approx(0.2, rel=0.1)
        for key, value in values.items():
            assert key.endswith("num_batches_tracked") or (value != fresh[key]).all()

    def test_layer_norm(self) -> None:
        values = python_ref.randomize_layer_norm(nn.LayerNorm(4096), 0).state_dict()
        assert 0.6 <= float(values["weight"].min()) < 0.61
        assert 1.39 < float(values["weight"].max()) <= 1.4
        assert float(values["bias"].std()) == pytest.approx(0.2, rel=0.05)
        python_ref.randomize_layer_norm(nn.LayerNorm(4, elementwise_affine=False), 0)


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "argument"),
        [
            (lambda: python_ref.unfold(torch.zeros(1, 2, 7, 8), 2), "x"),
            (lambda: python_ref.unfold(torch.zeros(1, 2, 8, 7), 2), "x"),
            (lambda: python_ref.unfold(torch.zeros(1, 2, 8, 8), (2, 3)), "x"),
            (lambda: python_ref.unfold(torch.zeros(2, 8, 8), 2), "x"),
            (lambda: python_ref.unfold(torch.zeros(1, 2, 8, 8), 0), "patch_size"),
            (lambda: python_ref.unfold(torch.zeros(1, 2, 8, 8), (2, 2, 2)), "patch_size"),  # type: ignore[arg-type]
            (lambda: python_ref.unfold(torch.zeros(1, 2, 8, 8), 2.0), "patch_size"),  # type: ignore[arg-type]
            (lambda: python_ref.fold(torch.zeros(4, 16, 2), 2, (7, 8)), "output_size"),
            (lambda: python_ref.fold(torch.zeros(4, 16, 2), 2, (8, 9)), "output_size"),
            (lambda: python_ref.fold(torch.zeros(5, 16, 2), 2, (8, 8)), "patches"),
            (lambda: python_ref.fold(torch.zeros(4, 15, 2), 2, (8, 8)), "patches"),
            (lambda: python_ref.fold(torch.zeros(4, 16), 2, (8, 8)), "patches"),
            (lambda: python_ref.fold(torch.zeros(4, 16, 2), -2, (8, 8)), "patch_size"),
            (lambda: MobileViTBlock(8, 10, depth=1, num_heads=4), "num_heads"),
            (lambda: MobileViTBlock(8, 12, depth=1, num_heads=0), "num_heads"),
            (lambda: MobileViTBlock(8, 12, depth=1, patch_size=0), "patch_size"),
            (lambda: InvertedResidual(8, 8, stride=3), "stride"),
            (lambda: python_ref.ConvBNAct(8, 8, kernel_size=2), "kernel_size"),
            (lambda: MobileViT("m"), "name"),
            (lambda: MobileViT("mobilevitv2_050"), "name"),
            (lambda: MobileViT("xxs", num_classes=-1), "num_classes"),
            (lambda: VisionTransformer(image_size=100), "image_size"),
            (lambda: VisionTransformer(depth=1)(torch.zeros(1, 3, 256, 256)), "x"),
        ],
    )
    def test_value_error_names_the_argument(self, call: Callable[[], object], argument: str) -> None:
        with pytest.raises(ValueError, match=rf"^{argument}: expected .*, got "):
            call()
