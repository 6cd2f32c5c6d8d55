"""What must not be lost or half done: casts that are refused, heads that are kept, flags, hooks, threads."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch
from conftest import skip_unless_available

import mobilevit_kernels as mvk

timm = pytest.importorskip("timm")

ONES, HALVES = [1.0] * 3, [0.5] * 3


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("mobilevit_xxs", num_classes=10).eval()


@pytest.fixture(scope="module")
def other_head() -> torch.nn.Module:
    """Pools by the maximum: its head is kept as it is."""
    torch.manual_seed(0)
    return timm.create_model("mobilevit_xxs", num_classes=10, global_pool="max").eval()


def test_a_refused_cast_changes_nothing(stock: torch.nn.Module) -> None:
    skip_unless_available("simt")
    x, map_ = torch.rand(1, 3, 32, 32), torch.rand(1, 48, 8, 8)
    for module, image in (
        (mvk.optimize(stock, dtype=torch.float16, backend="simt"), x),
        (mvk.MobileViTBlock.from_module(stock.stages[2][1], dtype=torch.float16, backend="simt"), map_),
    ):
        before = module(image)
        with pytest.raises(mvk.BackendUnavailable):
            module.float()
        assert torch.equal(module(image), before)
        assert module.compute_dtype == torch.float16
        if isinstance(module, mvk.MobileViT):
            with pytest.raises(mvk.BackendUnavailable):
                module.configure(dtype=torch.float32, backend="simt")
            assert torch.equal(module(image), before)


def test_a_normalisation_is_the_models_own(stock: torch.nn.Module) -> None:
    x = torch.rand(1, 3, 32, 32)
    expected = mvk.optimize(stock, normalize=(ONES, HALVES))(x)
    for given in ((map(float, ONES), map(float, HALVES)), (torch.tensor(ONES), torch.tensor(HALVES))):
        fast = mvk.optimize(stock, normalize=given)
        assert torch.equal(fast(x), expected)
        assert torch.equal(torch.export.export(fast, (x,)).module()(x), expected)
    mean = list(ONES)
    fast = mvk.optimize(stock, normalize=(mean, HALVES))
    mean[0] = 0.0
    assert torch.equal(fast(x), expected)
    assert torch.equal(mvk.MobileViT.from_module(fast)(x), expected)


def test_from_module_refuses_a_head_that_it_would_lose(other_head: torch.nn.Module) -> None:
    for module in (other_head, mvk.optimize(other_head)):
        with pytest.raises(mvk.Unsupported, match=r"module: expected a network that ends with .*optimize\(module\)"):
            mvk.MobileViT.from_module(module)


def test_a_kept_head_is_for_inference(other_head: torch.nn.Module) -> None:
    fast = mvk.optimize(other_head)
    x = torch.rand(2, 3, 64, 64)
    assert not fast(x).requires_grad
    assert fast.num_classes == 10
    assert mvk.accuracy(fast, fast, x).top1_agreement == 1
    assert not any(module.training for module in fast.train().stock_head.modules())
    identity = copy.deepcopy(other_head)
    identity.head = torch.nn.Identity()
    assert isinstance(mvk.optimize(identity).get_classifier(), torch.nn.Identity)


def test_a_segmentation_head_is_for_inference() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTConfig(
        hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0, num_labels=5
    )
    fast = mvk.optimize(transformers.MobileViTForSemanticSegmentation(config).eval())
    out = fast(pixel_values=torch.rand(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    assert not out.logits.requires_grad
    assert not out.loss.requires_grad
    assert not any(module.training for module in fast.train().segmentation_head.modules())


def test_intermediates_come_in_the_order_of_the_network(stock: torch.nn.Module) -> None:
    x = torch.rand(1, 3, 64, 64)
    fast = mvk.optimize(stock)
    for indices in ([4, 1], [1, 1], [0, 2]):
        expected = stock.forward_intermediates(x, indices=indices, intermediates_only=True)
        found = fast.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert [tuple(map_.shape) for map_ in found] == [tuple(map_.shape) for map_ in expected]


def test_restore_keeps_every_modules_own_flag(stock: torch.nn.Module) -> None:
    network = copy.deepcopy(stock).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    before = {name: module.training for name, module in network.named_modules()}
    mvk.replace_blocks(network)
    mvk.restore(network)
    assert {name: module.training for name, module in network.named_modules()} == before
    mvk.replace_blocks(network)
    network.eval()
    mvk.restore(network)
    assert not any(module.training for module in network.modules())


def test_a_graph_serves_no_network_with_hooks(stock: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = mvk.optimize(stock)
    x = torch.rand(1, 3, 64, 64)
    options = {"pool": True, "taps": ()}
    expected = fast(x)
    fast.engine._graphs[fast.engine._key(x, options)] = object()
    monkeypatch.setattr(fast.engine, "_replay", lambda captured, x: pytest.fail("replayed"))
    seen = []
    fast.stem.register_forward_hook(lambda *args: seen.append(1))
    assert torch.equal(fast(x), expected)
    assert seen == [1]
    monkeypatch.setattr(fast.engine, "_on_gpu", lambda x: True)
    with pytest.raises(RuntimeError, match="graph: expected a network without forward hooks"):
        fast.engine.capture(fast, x, **options)


def test_threads_that_see_new_weights_clear_once(stock: torch.nn.Module) -> None:
    fast = mvk.optimize(stock)
    engine = fast.engine
    started = threading.Event()

    def check() -> None:
        started.set()
        engine._check_weights(fast)

    with engine._lock:
        thread = threading.Thread(target=check)
        thread.start()
        started.wait()
        thread.join(0.2)  # it waits for the lock
        engine._check_weights(fast)
        engine._plans["of this thread"] = "plan"
    thread.join()
    assert list(engine._plans) == ["of this thread"]


def test_a_model_made_in_inference_mode_takes_weights(stock: torch.nn.Module) -> None:
    state = mvk.optimize(stock).state_dict()
    with torch.inference_mode():
        fast = mvk.optimize(stock)
    fast.load_state_dict(state)


def test_figures_that_are_not_finite_are_no_json(stock: torch.nn.Module) -> None:
    fast = mvk.optimize(stock, accuracy_check=torch.full((1, 3, 32, 32), float("inf")))
    assert "NaN" not in json.dumps(mvk.report(fast).to_dict())


def test_what_is_no_module_name_or_stride(stock: torch.nn.Module) -> None:
    with pytest.raises(TypeError, match=r"fast: expected a torch.nn.Module, got str"):
        mvk.accuracy(stock, "x", torch.rand(1, 3, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"module: expected a torch.nn.Module, got str"):
        mvk.InvertedResidual.from_module("a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name: expected one of .*, got \['mobilevit_s'\]"):
        mvk.create_model(["mobilevit_s"])  # type: ignore[arg-type]
    for stride in (1.0, True):
        with pytest.raises(ValueError, match=r"stride: expected 1 or 2, got"):
            mvk.InvertedResidual.from_config(16, 16, stride=stride)  # type: ignore[arg-type]
    block = mvk.MobileViTBlock.from_config(16, 32, 1)
    x = torch.rand(1, 16, 8, 8)
    with pytest.raises(ValueError, match=r"x2: expected a tensor on cpu, as x is, got one on meta"):
        mvk.ops.conv3x3(x, block.fusion.packed, x2=x.to("meta"))


def test_a_model_is_made_on_its_device(tmp_path, stock: torch.nn.Module) -> None:
    torch.save(stock.state_dict(), tmp_path / "model.pt")
    x = torch.rand(1, 3, 32, 32)
    loaded = mvk.load("mobilevit_xxs", tmp_path / "model.pt", device="cpu", backend="torch")
    assert torch.equal(loaded(x), mvk.optimize(stock)(x))
    torch.manual_seed(0)
    created = mvk.create_model("mobilevit_xxs", device=torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(created(x), mvk.create_model("mobilevit_xxs")(x))
    for device in ("nowhere", 1.5):
        with pytest.raises(ValueError, match=r"device: expected a torch device such as 'cuda', got"):
            mvk.create_model("mobilevit_xxs", device=device)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_backend_of_the_gpu_can_be_named(tmp_path, stock: torch.nn.Module) -> None:
    torch.save(stock.state_dict(), tmp_path / "model.pt")
    x = torch.rand(1, 3, 64, 64, device="cuda")
    for model in (
        mvk.load("mobilevit_xxs", tmp_path / "model.pt", device="cuda", backend="cuda"),
        mvk.create_model("mobilevit_xxs", device="cuda", backend="cuda"),
    ):
        assert model(x).isfinite().all()
        assert {row.backend for row in mvk.report(model).rows} == {"cuda"}
