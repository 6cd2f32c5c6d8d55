"""What is measured: the jobs, and the implementations that each is measured with."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from mobilevit_kernels import verify
from mobilevit_kernels.bench.work import Work, network_work, stage_work
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.verify import StageCase

__all__ = [
    "IMPLS",
    "NEIGHBOURS",
    "STAGES",
    "SUITES",
    "Choice",
    "Job",
    "Plan",
    "Variant",
    "breakdown",
    "plan",
    "stage_cases",
]

SUITES = ("models", "stages", "neighbours", "batch-sweep", "size-sweep")
NEIGHBOURS = ("deit_tiny_patch16_224", "resnet50", "mobilenetv2_100")  # timm's names; all take 224×224

SWEEP_BATCHES = tuple(2**i for i in range(11))  # 1…1024
SWEEP_SIZES = (192, 224, 256, 320, 384, 448, 512)
SIZE_SWEEP_BATCH = 32
MAX_CPU_BATCH = 8

STAGES = ("stem", "conv3x3", "inverted_residual", "transformer", "unfold_attention_fold", "head")
EAGER = ("eager", "eager-channels_last")
COMPILED = ("compile-default", "compile-reduce-overhead", "compile-max-autotune")
IMPLS = (*EAGER, "sdpa", "cudnn", *COMPILED, "tensorrt", "ours")


@dataclass(frozen=True)
class Variant:
    """One way to do a job.

    Attributes:
        impl: as in a :class:`~mobilevit_kernels.bench.results.Record`.
        backend: of ours; "auto" stands for the stages' best backends together.
        graph: through :meth:`MobileViT.capture`.
    """

    impl: str
    backend: str = "torch"
    graph: bool = False

    def __str__(self) -> str:
        return f"{self.impl} ({self.backend}{', graph' if self.graph else ''})" if self.impl == "ours" else self.impl


@dataclass(frozen=True)
class Job:
    """One computation on one input shape and dtype.

    Attributes:
        model: timm's name of a whole network, or None.
        case: a stage's case at its batch, or None.
        dtype: of the computation.
        batch: images. height, width: of the input.
        suites: what it is part of.
        variants: how it is done, in the order in which they are prepared.
    """

    model: str | None
    case: StageCase | None
    dtype: torch.dtype
    batch: int
    height: int
    width: int
    suites: tuple[str, ...]
    variants: tuple[Variant, ...]

    @property
    def dtype_name(self) -> str:
        """Without ``torch.``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def case_name(self) -> str | None:
        """A stage's sizes and options: ``16-64-32,s1``."""
        if self.case is None:
            return None
        options = self.case.options
        parts = ["-".join(map(str, self.case.sizes or (self.case.x_shape[1],)))]
        if "stride" in options:
            parts.append(f"s{options['stride']}")
        if options.get("residual"):
            parts.append("residual")
        if "x2_channels" in options:
            parts.append(f"x2-{options['x2_channels']}")
        if "num_heads" in options:
            parts.append(f"h{options['num_heads']}")
        return ",".join(parts)

    @property
    def id(self) -> str:
        """Unique in a suite: ``model/mobilevit_s/b256/256x256/float16``."""
        name = f"model/{self.model}" if self.case is None else f"stage/{self.case.stage}/{self.case_name}"
        return f"{name}/b{self.batch}/{self.height}x{self.width}/{self.dtype_name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        return (self.batch, 3, self.height, self.width) if self.case is None else self.case.x_shape

    @property
    def work(self) -> Work | None:
        """What it needs at least; None for networks that are not ours."""
        if self.case is not None:
            return stage_work(self.case)
        if self.model in CONFIGS:
            return network_work(self.model, self.batch, self.height, self.width)
        return None


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, in order of worth, and sentences on what of the suite is not among them."""

    jobs: tuple[Job, ...]
    left_out: tuple[str, ...]


def stage_cases(models: Iterable[str] = tuple(CONFIGS), batch: int = 1, size: int = 256) -> Iterator[StageCase]:
    """Every stage shape of the networks once, and the attention of each transformer stage alone."""
    seen = set()
    for _, _, case in verify.network_cases(tuple(models), batch=batch, height=size, width=size):
        found = [case]
        if case.stage == "transformer":
            _, _, height, width = case.x_shape
            patch_height, patch_width = case.options["patch_size"]
            whole = (-(-height // patch_height) * patch_height, -(-width // patch_width) * patch_width)
            shape = (batch, 3 * case.sizes[1], *whole)
            found.append(StageCase("unfold_attention_fold", (), shape, dict(case.options)))
        for one in found:
            if str(one) not in seen:
                seen.add(str(one))
                yield one


@dataclass(frozen=True)
class Choice:
    """What of the suite to run; an empty field means all of it.

    Attributes:
        quick: the few jobs that say most.
        models: networks, and the networks whose stages are measured; neighbours too.
        stages: stages; then no whole networks, unless ``suites`` asks for them.
        batches, sizes: images a call and their height and width; then no sweeps, unless ``suites`` asks for them.
        dtypes: by default float16 and bfloat16; on a CPU, which emulates both, float32.
        suites: of ``SUITES``.
        impls: of ``IMPLS``.
        backends: of ours; by default "auto" and, on a GPU, each one.
        only: patterns of job ids, as a shell's: ``model/*/b256/*``.
    """

    quick: bool = False
    models: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    suites: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def plan(device: torch.device | str, choice: Choice = Choice()) -> Plan:
    """The jobs to run on a device.

    Raises:
        ValueError: nothing is left to measure.
    """
    suite = _Suite(torch.device(device).type == "cuda", choice)
    jobs: list[Job] = []
    for job in suite.quick() if choice.quick else _merged(suite.full()):
        variants = tuple(variant for variant in job.variants if not choice.impls or variant.impl in choice.impls)
        if not suite.wanted & set(job.suites) or not variants:
            continue
        if not choice.only or any(fnmatch.fnmatch(job.id, pattern) for pattern in choice.only):
            jobs.append(replace(job, variants=variants))
    if not jobs:
        raise ValueError("nothing to measure: the options leave no job of the suite")
    return Plan(tuple(jobs), tuple(suite.left_out()))


def _merged(jobs: Iterable[Job]) -> list[Job]:
    """A job that belongs to several suites once, with all their variants."""
    by_id: dict[str, Job] = {}
    for job in jobs:
        if (seen := by_id.get(job.id)) is not None:
            suites = tuple(dict.fromkeys(seen.suites + job.suites))
            job = replace(seen, suites=suites, variants=tuple(dict.fromkeys(seen.variants + job.variants)))
        by_id[job.id] = job
    return list(by_id.values())


class _Suite:
    """The suite on a kind of device, narrowed to a choice."""

    def __init__(self, on_gpu: bool, choice: Choice) -> None:
        self.on_gpu, self.choice = on_gpu, choice
        self.models = tuple(name for name in CONFIGS if name in choice.models or not choice.models)
        self.neighbours = tuple(name for name in NEIGHBOURS if name in choice.models or not choice.models)
        self.stages = choice.stages or STAGES
        self.batches = choice.batches or ((256, 32, 8, 1) if on_gpu else (1,) if choice.quick else (MAX_CPU_BATCH, 1))
        self.sizes = choice.sizes or (256,)
        self.dtypes = choice.dtypes or ((torch.float16, torch.bfloat16) if on_gpu else (torch.float32,))
        self.backends = choice.backends or (("auto", "cuda", "triton", "torch") if on_gpu else ("auto",))
        narrowed = choice.batches or choice.sizes
        default = ("stages",) if choice.stages else SUITES[:3] if narrowed else SUITES
        self.wanted = set(choice.suites or default)

    def left_out(self) -> Iterator[str]:
        """Sentences on what a run on this device does not do."""
        if self.choice.quick:
            yield "most of the suite: --quick"
        if self.on_gpu:
            return
        yield "CUDA graphs, host time, peak memory, cuDNN: there is no GPU"
        if not self.choice.impls:
            yield "torch.compile and TensorRT: on a CPU a compile takes minutes (--impl compile-default asks for it)"
        if not self.choice.dtypes:
            yield "float16 and bfloat16: most CPUs emulate them (--dtype float16 asks for them)"
        if not self.choice.batches:
            yield f"batches above {MAX_CPU_BATCH}: seconds a call on a CPU (--batch 256 asks for them)"

    def compilers(self, *names: str) -> tuple[Variant, ...]:
        """On a CPU only those that were named."""
        return tuple(Variant(name) for name in names if self.on_gpu or name in self.choice.impls)

    def ours(self, graphs: bool) -> tuple[Variant, ...]:
        with_graph = (False, True) if graphs and self.on_gpu else (False,)
        return tuple(Variant("ours", backend, graph) for backend in self.backends for graph in with_graph)

    def model(self, name: str, batch: int, size: int, dtype: torch.dtype, suite: str, *compilers: str) -> Job:
        eager = EAGER[:1] if name.startswith("deit") else EAGER  # a ViT has no image-shaped maps to lay out
        ours = self.ours(graphs=True) if name in CONFIGS else ()
        variants = (*map(Variant, eager), *ours, *self.compilers(*compilers))
        return Job(name, None, dtype, batch, size, size, (suite,), variants)

    def stage(self, case: StageCase, dtype: torch.dtype, *compilers: str) -> Job:
        peers: tuple[str, ...] = EAGER
        if case.stage in ("stem", "conv3x3") and self.on_gpu:
            peers = ("eager", "cudnn")
        elif case.stage in ("transformer", "unfold_attention_fold"):
            peers = (*EAGER, "sdpa")
        variants = (*map(Variant, peers), *self.ours(graphs=False), *self.compilers(*compilers))
        batch, _, height, width = case.x_shape
        return Job(None, case, dtype, batch, height, width, ("stages",), variants)

    def stage_jobs(self, models: tuple[str, ...], batch: int, dtype: torch.dtype, *compilers: str) -> Iterator[Job]:
        for size in self.sizes:
            for case in stage_cases(models, batch, size):
                if case.stage in self.stages:
                    yield self.stage(case, dtype, *compilers)

    def quick(self) -> Iterator[Job]:
        """In order of worth, so that a run that is cut short has measured what matters most.

        A job that comes again, with more compilers, adds to its earlier records.
        """
        dtype, size = self.dtypes[0], self.sizes[0]
        models = self.models[::-1]  # S first
        batches = tuple(b for b in self.batches if b in (256, 1)) or self.batches

        def mode(batch: int) -> tuple[str, ...]:
            return (("compile-default" if batch > 1 else "compile-reduce-overhead"),) if self.on_gpu else ()

        for name in models[:1]:  # the figures that the project is judged by, compilers and all
            for batch in batches:
                yield self.model(name, batch, size, dtype, "models", *mode(batch))
        for name in models[1:]:
            for batch in batches:
                yield self.model(name, batch, size, dtype, "models")
        yield from self.stage_jobs(models[:1], batches[0], dtype)
        if self.on_gpu:
            for name in models[1:]:
                for batch in batches:
                    yield self.model(name, batch, size, dtype, "models", *mode(batch))
            for batch in batches[1:]:
                yield from self.stage_jobs(models[:1], batch, dtype)
            for name in models[:1]:
                whole = self.model(name, batches[0], size, dtype, "models", "compile-max-autotune")
                alone = tuple(v for v in whole.variants if v.impl in ("eager", "compile-max-autotune"))
                yield replace(whole, variants=alone)

    def full(self) -> Iterator[Job]:
        """Everything."""
        peers = (*COMPILED, "tensorrt")
        for dtype in self.dtypes:
            for name in self.models[::-1]:  # S first
                for size in self.sizes:
                    for batch in self.batches:
                        yield self.model(name, batch, size, dtype, "models", *peers)
        for dtype in self.dtypes:
            for batch in self.batches:
                # Stages are timed by graph replay, which is what reduce-overhead would add.
                yield from self.stage_jobs(self.models, batch, dtype, "compile-default", "compile-max-autotune")
        dtype = self.dtypes[0]
        for name in self.neighbours:
            for batch in self.batches:
                yield self.model(name, batch, 224, dtype, "neighbours", *peers)
        for name in self.models:
            for batch in SWEEP_BATCHES:
                if self.on_gpu or batch <= MAX_CPU_BATCH:
                    yield self.model(name, batch, 256, dtype, "batch-sweep", "compile-default")
        for name in self.models:
            for size in SWEEP_SIZES:
                batch = SIZE_SWEEP_BATCH if self.on_gpu else 1
                yield self.model(name, batch, size, dtype, "size-sweep", "compile-default")


def breakdown(model: str, batch: int, dtype: torch.dtype, size: int = 256) -> list[tuple[str, str, str]]:
    """A network's stages in order: (dotted path, stage, id of the job that measures it)."""
    rows = []
    for _, path, case in verify.network_cases((model,), batch=batch, height=size, width=size):
        _, _, height, width = case.x_shape
        rows.append((path, case.stage, Job(None, case, dtype, batch, height, width, ("stages",), ()).id))
    return rows
