"""The implementations of a job: stock PyTorch, its compilers, and ours."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import python_ref
from mobilevit_kernels import canonical, ops, registry, verify
from mobilevit_kernels.bench.suite import Job, Variant
from mobilevit_kernels.bench.timing import Call
from mobilevit_kernels.canonical import StageWeights
from mobilevit_kernels.optimize import optimize
from mobilevit_kernels.registry import BackendUnavailable
from mobilevit_kernels.stages import Stage

__all__ = ["NetworkSubject", "StageSubject", "Subject", "subject_of"]

NUM_INPUTS = 4  # rotated from call to call


class Subject:
    """A job's weights and inputs on a device, from which its implementations are built.

    Attributes:
        inputs: what every implementation is called with, rotated.
        rows: the images that are checked against float64.
        max_ratio: the contract: error against that of stock eager.
    """

    inputs: list[Tensor]
    max_ratio: float

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device
        count = job.batch
        self.rows = sorted({*range(min(2, count)), *range(max(0, count - 2), count)})  # both ends of the batch

    def build(self, variant: Variant) -> tuple[Call, str]:
        """The call of an implementation and the backend that serves it.

        Raises:
            BackendUnavailable: it cannot do this job.
            Exception: whatever else goes wrong.
        """
        raise NotImplementedError

    def truth(self) -> Tensor:
        """float64 result of the checked images of ``inputs[0]``."""
        raise NotImplementedError

    def redrawn(self, seed: int) -> Subject | None:
        """The same job and inputs with other weights; None: one draw is enough to judge by."""
        return None

    def _converted(self, run: Call) -> Call:
        """``run`` on channels_last inputs, converted once for all implementations."""
        return lambda x: run(self._channels_last[id(x)])

    def _lay_out(self) -> None:
        """To be called when ``inputs`` are there: what is converted here is no implementation's own memory."""
        self._channels_last = {id(x): x.contiguous(memory_format=torch.channels_last) for x in self.inputs}


def subject_of(job: Job, device: torch.device) -> Subject:
    """Draws a job's weights and inputs."""
    return NetworkSubject(job, device) if job.case is None else StageSubject(job, device)


def compiled(run: Callable[..., Any], mode: str) -> Call:
    """``torch.compile`` in a mode, with static shapes and the weights frozen."""
    options = {**torch._inductor.list_mode_options(mode), "freezing": True}
    call = torch.compile(run, fullgraph=True, dynamic=False, options=options)
    frozen = False

    def step(x: Tensor) -> object:
        nonlocal frozen
        torch.compiler.cudagraph_mark_step_begin()
        if frozen:
            return call(x)
        # Dynamo reads the global setting, not the options: with these alone the weights stay inputs of the graph.
        with torch._inductor.config.patch(freezing=True):
            result = call(x)
        frozen = True
        return result

    return step


class NetworkSubject(Subject):
    """A timm network with random weights."""

    max_ratio = verify.MAX_NETWORK_RATIO

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        self._draw_weights(seed=0)
        generator = torch.Generator().manual_seed(0)
        self.inputs = [
            torch.rand(job.shape, generator=generator).to(device, job.dtype)
            for _ in range(min(NUM_INPUTS, max(2, 1024 // job.batch)))
        ]
        self._lay_out()

    def _draw_weights(self, seed: int) -> None:
        import timm

        stock = timm.create_model(self.job.model).eval()
        python_ref.randomize_weights(stock, seed=seed)
        self.stock = stock.to(self.device)
        self.low = copy.deepcopy(self.stock).to(self.job.dtype)

    def redrawn(self, seed: int) -> Subject:
        other = copy.copy(self)  # shares the inputs
        other._draw_weights(seed)
        return other

    def truth(self) -> Tensor:
        return copy.deepcopy(self.stock).double()(self.inputs[0][self.rows].double())

    def build(self, variant: Variant) -> tuple[Call, str]:
        if variant.impl == "eager":
            return copy.deepcopy(self.low), "torch"  # its weights count as those of the others do
        if variant.impl == "eager-channels_last":
            return self._converted(copy.deepcopy(self.low).to(memory_format=torch.channels_last)), "torch"
        if variant.impl.startswith("compile-"):
            return compiled(copy.deepcopy(self.low), variant.impl.removeprefix("compile-")), "torch"
        if variant.impl == "tensorrt":
            return self._tensorrt(), "tensorrt"
        fast: Any = optimize(self.stock, dtype=self.job.dtype, backend=variant.backend)
        backends = sorted({module.packed.backend for module in fast.modules() if isinstance(module, Stage)})
        if variant.graph:
            fast.capture(self.job.batch, height=self.job.height, width=self.job.width)
        return fast, "+".join(backends)

    def _tensorrt(self) -> Call:
        try:
            torch_tensorrt = importlib.import_module("torch_tensorrt")
        except ImportError as error:
            raise BackendUnavailable(f"torch_tensorrt is not importable ({error})") from error
        engine: Call = torch_tensorrt.compile(
            copy.deepcopy(self.low), inputs=[self.inputs[0]], enabled_precisions={self.job.dtype}
        )
        return engine


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class StageSubject(Subject):
    """One stage with random weights; its maps are channels_last, as they are inside a network."""

    max_ratio = verify.MAX_STAGE_RATIO

    def __init__(self, job: Job, device: torch.device) -> None:
        super().__init__(job, device)
        assert job.case is not None
        self.case = job.case
        x, weights, options = job.case.build()
        x = x.to(device, job.dtype)
        self.weights = None if weights is None else _map(weights, lambda tensor: tensor.to(device))
        self.inputs = [x, *(x.roll(i, -1) for i in range(1, NUM_INPUTS))]
        self._lay_out()
        self.options: dict[str, Any] = {
            n: v.to(device, job.dtype, memory_format=torch.channels_last) if isinstance(v, Tensor) else v
            for n, v in options.items()
        }

    def truth(self) -> Tensor:
        options: dict[str, Any] = {n: v[self.rows] if isinstance(v, Tensor) else v for n, v in self.options.items()}
        return verify.reference(self.case.stage, self.inputs[0][self.rows], self.weights, **options)

    def build(self, variant: Variant) -> tuple[Call, str]:
        if variant.impl == "ours":
            return self._ours(variant.backend)
        if variant.impl == "eager":
            return self._stock(torch.contiguous_format), "torch"
        if variant.impl == "cudnn":
            return self._converted(self._cudnn()), "torch"
        if variant.impl in ("tensorrt", "compile-reduce-overhead"):
            raise BackendUnavailable("measured with whole networks")
        if variant.impl == "eager-channels_last":
            return self._converted(self._stock(torch.channels_last)), "torch"
        attends = self.case.stage in ("transformer", "unfold_attention_fold")
        run = self._stock(torch.channels_last, **({"attention": _sdpa} if attends else {}))
        if variant.impl.startswith("compile-"):
            # Without the mode's own CUDA graphs: the stage is timed by replaying one of the whole call. The weights are
            # inputs here, in the layout that the compiler wants: there is nothing to freeze.
            mode = {"compile-default": "default", "compile-max-autotune": "max-autotune-no-cudagraphs"}
            run = compiled(run, mode[variant.impl])
        return self._converted(run), "torch"

    def _stock(self, layout: torch.memory_format, **extra: Any) -> Call:
        def laid_out(tensor: Tensor) -> Tensor:
            return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor

        options = {n: laid_out(v) if isinstance(v, Tensor) else v for n, v in self.options.items()}
        weights = None if self.weights is None else _map(self.weights, lambda t: laid_out(t.to(self.job.dtype)))
        return verify.stock(self.case.stage, weights, self.job.dtype, self.device, **options, **extra)

    def _cudnn(self) -> Call:
        if self.device.type != "cuda":
            raise BackendUnavailable("cuDNN needs a GPU")
        weights: Any = self.weights
        stride, dilation = (2, 1) if self.case.stage == "stem" else (1, self.options.get("dilation", 1))
        weight = weights.weight.to(self.job.dtype, memory_format=torch.channels_last)
        bias, x2 = weights.bias.to(self.job.dtype), self.options.get("x2")

        def call(x: Tensor) -> Tensor:
            x = x if x2 is None else torch.cat([x, x2], dim=1)
            return F.silu(F.conv2d(x, weight, bias, stride, dilation, dilation), inplace=True)

        return call

    def _ours(self, backend: str) -> tuple[Call, str]:
        stage, options, dtype = self.case.stage, self.options, self.job.dtype
        op = getattr(ops, stage)
        name = registry.choose(backend, stage, self.weights, dtype, self.device).backend
        if self.weights is None:
            return self._converted(lambda x: op(x, **options, backend=name)), name
        packed = ops.pack(self.weights, dtype, self.device, name)

        def run(x: Tensor) -> Tensor:
            result: Tensor = op(x, packed, **options)
            return result

        # Images come as they are; what is between stages is channels_last.
        return (run if stage == "stem" else self._converted(run)), name


def _map(weights: StageWeights, function: Callable[[Tensor], Tensor]) -> StageWeights:
    tensors = {name: function(tensor) for name, tensor in canonical.named_tensors(weights)}
    others = {"eps": weights.eps} if isinstance(weights, canonical.TransformerWeights) else {}
    return canonical.from_tensors(type(weights), tensors, **others)
