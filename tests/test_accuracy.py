"""``optimize(…, accuracy_check=…)``, ``accuracy`` and the figures behind them."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import weakref

import cvnets_standin
import pytest
import torch
from stock import logits, stock_model, timm_model, transformers_model
from torch import nn

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels.accuracy import Comparison

STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def images(batch: int = 3, height: int = 64, width: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(seed))


def wrong_head(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Makes the torch backend's head return ``change`` of its right result."""
    import mobilevit_kernels.torch.head as head

    right = head.run
    monkeypatch.setattr(head, "run", lambda *args, **kwargs: change(right(*args, **kwargs)))


def cvnets_model() -> nn.Module:
    return python_ref.randomize_weights(cvnets_standin.MobileViT("mobilevit_xxs", num_classes=11).eval(), 0)


KINDS = {
    "timm": (lambda: timm_model("mobilevit_xxs"), True, True),
    "timm max pool": (lambda: timm_model("mobilevit_xxs", global_pool="max", num_classes=9), True, True),
    "timm features": (lambda: timm_model("mobilevit_xxs", features_only=True), False, False),
    "timm without a classifier": (lambda: timm_model("mobilevit_xxs", num_classes=0), False, False),
    "transformers classifier": (lambda: transformers_model("mobilevit_xxs", num_labels=13), True, True),
    "transformers tuples": (lambda: transformers_model("mobilevit_xxs", num_labels=4, return_dict=False), True, True),
    "transformers features": (lambda: transformers_model("mobilevit_xxs", "Model"), False, False),
    "transformers hidden states": (
        lambda: transformers_model("mobilevit_xxs", "Model", output_hidden_states=True),
        False,
        False,
    ),
    "transformers segmentation": (
        lambda: transformers_model("mobilevit_xxs", "ForSemanticSegmentation", output_stride=16, num_labels=21),
        True,
        False,
    ),
    "ml-cvnets": (cvnets_model, True, True),
    "reference": (lambda: python_ref.randomize_weights(python_ref.MobileViT("xxs", 7), 0), True, True),
    "ours": (lambda: mvk.create_model("mobilevit_xxs", num_classes=6), True, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind: str) -> None:
    make, top1, top5 = KINDS[kind]
    stock = make()
    accuracy = mvk.report(mvk.optimize(stock, accuracy_check=[images(2), images(1, seed=1)])).accuracy
    assert accuracy is not None
    assert accuracy.images == 3
    assert (accuracy.stock_dtype, accuracy.dtype, accuracy.device) == ("float32", "float32", "cpu")
    assert accuracy.relative_l2_error <= 1e-5
    assert 0 <= accuracy.mean_abs_error <= accuracy.max_abs_error < 1e-3
    assert accuracy.max_abs_error > 0 or kind == "ours"
    assert accuracy.top1_agreement == (1.0 if top1 else None)
    assert accuracy.top5_agreement == (1.0 if top5 else None)
    assert (accuracy.non_finite, accuracy.stock_non_finite) == (0, 0)


def test_figures_are_those_of_a_computation_by_hand() -> None:
    stock = timm_model("mobilevit_xxs", num_classes=50)
    batches = [images(2), images(3, 48, 80, seed=1), images(0)]
    fast = mvk.optimize(stock, dtype=torch.bfloat16, accuracy_check=iter(batches))
    with torch.inference_mode():
        expected = torch.cat([stock(x) for x in batches[:2]])
        result = torch.cat([fast(x) for x in batches[:2]])
    error = (result - expected).double()
    accuracy = mvk.report(fast).accuracy
    assert accuracy is not None
    assert accuracy.images == 5
    assert accuracy.dtype == "bfloat16"
    assert accuracy.max_abs_error == pytest.approx(error.abs().max().item())
    assert accuracy.mean_abs_error == pytest.approx(error.abs().mean().item())
    assert accuracy.relative_l2_error == pytest.approx((error.norm() / expected.double().norm()).item())
    assert accuracy.relative_l2_error > 1e-4
    assert accuracy.top1_agreement == (result.argmax(1) == expected.argmax(1)).double().mean().item()
    shared = [
        len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) / 5
        for a, b in zip(expected, result, strict=True)
    ]
    assert accuracy.top5_agreement == pytest.approx(sum(shared) / 5)


def test_agreements() -> None:
    comparison = Comparison("float32", "float16", "cpu")
    stock = torch.arange(10.0).repeat(4, 1)
    fused = stock.clone()
    fused[1] = stock[1].flip(0)  # no class in common
    fused[2, 9] = -1.0  # another first class, four of five in common
    fused[3, 0] = float("nan")
    comparison.update({"logits": stock}, {"logits": fused}, "logits")
    accuracy = comparison.result()
    assert accuracy.top1_agreement == 0.25
    assert accuracy.top5_agreement == pytest.approx((1 + 0 + 0.8 + 0) / 4)


def test_segmentation_agreement_is_by_pixel() -> None:
    comparison = Comparison("float32", "float16", "cpu")
    stock = torch.zeros(1, 3, 2, 2)
    stock[:, 1] = 1
    fused = stock.clone()
    fused[0, 2, 0, 1] = 2
    comparison.update({"logits": stock}, {"logits": fused}, "logits")
    assert comparison.result().top1_agreement == 0.75
    assert comparison.result().top5_agreement is None


def test_worst_output_is_reported() -> None:
    comparison = Comparison("float32", "float16", "cpu")
    stock = {"a": torch.ones(1, 4), "b": torch.full((1, 4), 100.0)}
    comparison.update(stock, {"a": torch.ones(1, 4) + 0.5, "b": stock["b"] + 1})
    accuracy = comparison.result()
    assert accuracy.worst_output == "a"
    assert accuracy.relative_l2_error == pytest.approx(0.5)
    assert accuracy.max_abs_error == pytest.approx(1.0)
    assert accuracy.mean_abs_error == pytest.approx(1.0)


def test_wrong_feature_map_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_head(monkeypatch, lambda y: y * 1.01)
    stock = timm_model("mobilevit_xxs", features_only=True)
    accuracy = mvk.report(mvk.optimize(stock, accuracy_check=images())).accuracy
    assert accuracy is not None
    assert accuracy.worst_output == "output.4"
    assert accuracy.relative_l2_error == pytest.approx(0.01, rel=1e-3)
    assert "output.4" in str(accuracy)


def test_values_that_are_not_finite_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    stock = timm_model("mobilevit_xxs", num_classes=10)
    x[1, 0, 5, 5] = float("nan")  # in both
    accuracy = mvk.accuracy(stock, mvk.optimize(stock), x)
    assert (accuracy.non_finite, accuracy.stock_non_finite) == (10, 10)
    assert accuracy.relative_l2_error <= 1e-5, "over the other two images"
    assert accuracy.top1_agreement == pytest.approx(2 / 3)
    assert "NOT FINITE: 10 values fused, 10 stock" in str(accuracy)

    accuracy = mvk.accuracy(stock, mvk.optimize(stock), x[1:2])
    assert math.isnan(accuracy.relative_l2_error), "nothing to compare with"

    def spoil(y: torch.Tensor) -> torch.Tensor:
        y[0, 3] = float("inf")
        return y

    wrong_head(monkeypatch, spoil)
    accuracy = mvk.accuracy(stock, mvk.optimize(stock), images())
    assert (accuracy.non_finite, accuracy.stock_non_finite) == (1, 0)
    assert accuracy.max_abs_error == accuracy.mean_abs_error == accuracy.relative_l2_error == math.inf


def test_worst_of_several_outputs_with_nothing_to_compare_is_nan() -> None:
    comparison = Comparison("float32", "float16", "cpu")
    stock = {"a": torch.full((1, 4), float("nan")), "b": torch.ones(1, 4)}
    comparison.update(stock, {"a": torch.ones(1, 4), "b": torch.ones(1, 4)})
    accuracy = comparison.result()
    assert math.isnan(accuracy.relative_l2_error)
    assert math.isnan(accuracy.max_abs_error)
    assert accuracy.worst_output == "a"


@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_uint8_images_with_normalize(source: str) -> None:
    stock = stock_model(source, "mobilevit_xxs")
    x = torch.randint(0, 256, (2, 65, 96, 3), dtype=torch.uint8)
    fast = mvk.optimize(stock, normalize=STATISTICS, accuracy_check=x)
    accuracy = mvk.report(fast).accuracy
    assert accuracy is not None
    assert accuracy.relative_l2_error <= 1e-5
    assert accuracy.top1_agreement == 1.0
    floats = x.permute(0, 3, 1, 2) / 255
    again = mvk.accuracy(stock, fast, floats)
    assert again.relative_l2_error <= 1e-5
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in STATISTICS)
    with torch.inference_mode():
        error = (logits(fast(x)) - logits(stock((floats - mean) / std))).abs().max()
    assert accuracy.max_abs_error == pytest.approx(error.item(), rel=0.5)


def test_stock_keeps_its_modes_dtype_and_weights() -> None:
    stock = timm_model("mobilevit_xxs", num_classes=5).bfloat16()
    stock.train()
    stock.stages[1].eval()
    flags = [module.training for module in stock.modules()]
    before = copy.deepcopy(stock.state_dict())
    x = images().requires_grad_()
    fast = mvk.optimize(stock, dtype=torch.float32, accuracy_check=x)
    accuracy = mvk.report(fast).accuracy
    assert accuracy is not None
    assert (accuracy.stock_dtype, accuracy.dtype) == ("bfloat16", "float32")
    assert 1e-4 < accuracy.relative_l2_error < 0.1, "compared in eval mode"
    assert [module.training for module in stock.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in stock.state_dict().items()), "and its statistics"


def test_modes_are_restored_after_an_error() -> None:
    stock = timm_model("mobilevit_xxs", num_classes=5).train()
    with pytest.raises(TypeError, match="accuracy_check"):
        mvk.optimize(stock, accuracy_check=[images(), "photo.jpg"])
    assert stock.training
    assert stock.stages.training


def test_one_batch_of_results_is_held() -> None:
    """Nothing of a batch's results is alive when the next batch is asked for."""
    stock = timm_model("mobilevit_xxs", features_only=True)
    results: list[weakref.ref] = []
    stock.register_forward_hook(lambda module, args, output: results.extend(weakref.ref(t) for t in output))
    fast = mvk.optimize(timm_model("mobilevit_xxs", features_only=True))

    def batches():
        for seed in range(3):
            gc.collect()
            assert not any(reference() is not None for reference in results)
            yield images(1, seed=seed)

    assert mvk.accuracy(stock, fast, batches()).images == 3
    assert len(results) == 15


def test_replaced_blocks() -> None:
    stock = timm_model("mobilevit_xxs", num_classes=8)
    network = copy.deepcopy(stock)
    mvk.replace_blocks(network, dtype=torch.bfloat16)
    accuracy = mvk.accuracy(stock, network, images())
    assert accuracy.dtype == "bfloat16"
    assert 1e-4 < accuracy.relative_l2_error < 0.1
    assert accuracy.top5_agreement is not None


def test_report_prints_and_keeps_it() -> None:
    stock = timm_model("mobilevit_xxs", num_classes=8)
    assert mvk.report(mvk.optimize(stock)).accuracy is None
    assert mvk.report(mvk.optimize(stock)).to_dict()["accuracy"] is None
    fast = mvk.optimize(stock, accuracy_check=images(1))
    report = mvk.report(fast)
    text = str(report)
    assert "accuracy: 1 image, float32 against the stock model in float32 on cpu: max error" in text
    assert "top-1 agreement 100.00 %, top-5 agreement 100.00 %" in text
    assert json.loads(json.dumps(report.to_dict()))["accuracy"]["images"] == 1
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert mvk.report(copied).accuracy == report.accuracy
    fast.to(torch.bfloat16)  # what was measured is not what runs now
    assert mvk.report(fast).accuracy is None
    assert "accuracy: checked in float32, not in bfloat16" in str(mvk.report(fast))


def test_own_model_keeps_its_normalize() -> None:
    stock = mvk.create_model("mobilevit_xxs", num_classes=8, normalize=STATISTICS)
    x = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    fast = mvk.optimize(stock, accuracy_check=x)
    with torch.inference_mode():
        assert torch.equal(fast(x), stock(x))
    accuracy = mvk.report(fast).accuracy
    assert accuracy is not None
    assert accuracy.max_abs_error == 0
    with pytest.raises(ValueError, match="accuracy_check: cannot compare, because the model normalizes"):
        mvk.optimize(stock, normalize=((0.0,) * 3, (1.0,) * 3), accuracy_check=x)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (3, TypeError, r"expected images \(B, 3, H, W\) or an iterable of such batches, got int"),
        ("photo.jpg", TypeError, "got str"),
        ({"images": torch.rand(1, 3, 64, 64)}, TypeError, "got dict"),
        ([], ValueError, "expected at least one image, got none"),
        (torch.rand(0, 3, 64, 64), ValueError, "expected at least one image, got none"),
        ([(torch.rand(1, 3, 64, 64), torch.zeros(1))], TypeError, "batch 0 is a tuple; of .* give the images alone"),
        (torch.rand(3, 64, 64), ValueError, "expected a 4-D tensor"),
        ([torch.rand(1, 3, 64, 64), torch.rand(3, 64, 64)], ValueError, "expected a 4-D tensor"),
        (torch.rand(1, 4, 64, 64), ValueError, "expected 3 channels in axis 1, got 4"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), TypeError, "integer images need normalize"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.complex64), TypeError, "complex64"),
    ],
    ids=[
        "number",
        "path",
        "dict",
        "no_batches",
        "no_images",
        "pairs",
        "3-D",
        "3-D_batch",
        "channels",
        "uint8",
        "complex",
    ],
)
def test_bad_images_name_the_argument(wrong: object, error: type[Exception], message: str) -> None:
    stock = stock_model("timm", "mobilevit_xxs")
    with pytest.raises(error, match=f"^accuracy_check: .*{message}"):
        mvk.optimize(stock, accuracy_check=wrong)
    with pytest.raises(error, match=f"^images: .*{message}"):
        mvk.accuracy(stock, mvk.optimize(stock), wrong)


def test_other_outputs_are_refused() -> None:
    fast = mvk.optimize(timm_model("mobilevit_xxs", num_classes=8))
    with pytest.raises(ValueError, match="images: expected the same outputs of both models"):
        mvk.accuracy(timm_model("mobilevit_xxs", num_classes=9), fast, images())


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_on_a_gpu(graph: bool) -> None:
    """Images from the CPU; float16 kernels against the stock model in float32."""
    stock = copy.deepcopy(stock_model("timm", "mobilevit_xxs")).cuda()
    fast = mvk.optimize(stock, graph=graph, accuracy_check=[images(4, 128, 128, seed=seed) for seed in range(3)])
    accuracy = mvk.report(fast).accuracy
    assert accuracy is not None
    assert (accuracy.images, accuracy.dtype, accuracy.stock_dtype) == (12, "float16", "float32")
    assert accuracy.device == "cuda:0"
    assert 0 < accuracy.relative_l2_error < 1e-2
    assert accuracy.non_finite == 0
