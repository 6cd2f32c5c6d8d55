"""How a network's forward is run: by a plan where every stage is a CUDA kernel, through CUDA graphs, or stage by stage.

A plan (:mod:`mobilevit_kernels.plan`) is made once for each input shape. A forward then is one call into the compiled
library, which launches every kernel; nothing is allocated but the result, and activations lie in a workspace that is
kept for each stream. A CUDA graph replays the same launches without their host time.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobilevit_kernels import native
from mobilevit_kernels.native import choices, tuning
from mobilevit_kernels.native.choices import Outcome
from mobilevit_kernels.native.launches import Library, Slot
from mobilevit_kernels.plan import Forward, Plan, Recorded, Runner

if TYPE_CHECKING:
    from mobilevit_kernels.models import MobileViT
    from mobilevit_kernels.packed import Packed

__all__ = ["CAPTURING", "Engine", "Workspaces"]

MAX_GRAPHS = 16
MAX_PLANS = 64
MAX_STREAMS = 16
WARM_UP_RUNS = 2
# A forward of 256 images of 256×256 takes its most memory where maps are largest. The stages up to there run for one
# slice of the batch after the other, slices of at least this many pixels of images: smaller ones would leave
# multiprocessors without work at the end of each launch. More slices than these would save nothing, as other maps then
# need more.
SLICE_PIXELS = 80 * 256 * 256
MAX_SLICES = 4
_NATIVE = ("cuda", "simt")

# PyTorch allows one capture at a time in a process.
CAPTURING = threading.Lock()

Key = tuple[Any, ...]


class Workspaces:
    """Memory for activations, one piece a stream, as large as the largest plan that has run there needs.

    A stream's launches run one after another, so plans of all shapes can share its piece. It is kept between calls. The
    piece of the stream that was used longest ago goes at MAX_STREAMS.
    """

    def __init__(self) -> None:
        self._pieces: OrderedDict[tuple[torch.device, int], Tensor] = OrderedDict()

    def get(self, device: torch.device, stream: int, size: int) -> Tensor:
        """At least ``size`` bytes; to be called, and launched on, under one lock."""
        key = (device, stream)
        piece = self._pieces.get(key)
        if piece is None or piece.numel() < size:
            # On the stream that is current: the allocator hands memory on in the order of that stream.
            self._pieces.pop(key, None)
            with torch.inference_mode(False):  # an inference tensor could not be written outside of inference mode
                piece = self._pieces[key] = torch.empty(size, dtype=torch.uint8, device=device)
        self._pieces.move_to_end(key)
        while len(self._pieces) > MAX_STREAMS:
            self._pieces.popitem(last=False)
        return piece

    def clear(self) -> None:
        """Gives all memory back."""
        self._pieces.clear()

    @property
    def bytes(self) -> int:
        """All pieces together."""
        return sum(piece.numel() for piece in self._pieces.values())

    def __len__(self) -> int:
        return len(self._pieces)


@dataclass
class _Planned:
    """A plan, ready to run."""

    plan: Plan
    library: Library
    run: Runner
    finished: bool  # what the launches write is what the network returns: `finish` has nothing to do
    notes: tuple[str, ...]  # slices, and where a measurement chose another alternative than the rules

    def allocate(self, device: torch.device) -> dict[Slot, Tensor]:
        """Its outputs."""
        return {slot: slot.allocate(device) for slot in self.plan.outputs}

    def note(self, shape: tuple[int, ...]) -> str:
        """A sentence for the Report."""
        text = f"plan for {shape}: {self.plan.kernels} kernels, workspace {self.plan.workspace_bytes / 1e6:.3g} MB"
        return "; ".join((text, *self.notes))


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    static_input: Tensor
    static_outputs: list[Tensor]
    done: torch.cuda.Event  # of the last replay's copies: the static buffers are free again
    bytes: int  # of the static buffers and the workspace


class Engine:
    """Runs a network's forwards. Safe with several threads, streams and devices at once.

    Plans are kept by input shape, layout, dtype, device and options, graphs by the same but for the layout. The least
    recently used leave at MAX_PLANS and MAX_GRAPHS, and all of them go when a stage's weights have been packed anew. A
    captured graph returns copies, never its own buffers.

    Args:
        automatic: capture a graph for each shape when it is first seen.
    """

    def __init__(self, automatic: bool = False) -> None:
        self.automatic = automatic
        self._plans: OrderedDict[Key, _Planned] = OrderedDict()
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()
        self._workspaces = Workspaces()
        self._packed: list[Packed] = []  # the weights behind plans and graphs
        self._normalize: Any = None  # the stem's, which is in them too
        self._backend: str | None = None  # the one of CUDA kernels that serves all of them
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # Plans and graphs belong to their process, device and weights: copies and pickles start without any.
        return {"automatic": self.automatic}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["automatic"])  # type: ignore[misc]

    def clear(self) -> None:
        """Forgets every plan and graph and gives their memory back."""
        with self._lock:
            for captured in self._graphs.values():
                captured.done.synchronize()
            self._graphs.clear()
            self._plans.clear()
            self._workspaces.clear()

    def notes(self) -> list[str]:
        """Sentences for the Report: plans, workspaces, graphs."""
        with self._lock:
            notes = [planned.note(tuple(shape)) for (_, shape, *_), planned in self._plans.items()]
            if self._packed and self._backend is not None and (origin := choices.origin(self._packed[0].device)):
                notes.append(origin)
            if len(self._workspaces):
                notes.append(f"workspaces: {self._workspaces.bytes / 1e6:.3g} MB on {len(self._workspaces)} streams")
            if self._graphs:
                size = sum(captured.bytes for captured in self._graphs.values())
                notes.append(f"CUDA graphs: {len(self._graphs)}, {size / 1e6:.3g} MB")
        return notes

    def call(self, network: MobileViT, x: Tensor, **options: Any) -> list[Tensor]:
        """``network.run(x, **options)``, in the fastest way there is for this shape.

        Raises:
            RuntimeError: ``automatic``, and ``x`` is not on a CUDA device.
        """
        if torch.compiler.is_compiling() or type(x) is not Tensor or x.shape[0] == 0:
            return network.run(x, **options)
        self._check_weights(network)
        # Into a capture of the caller's own go the launches themselves: it cannot take a graph.
        # Hooks see one stage after the other.
        if (self._graphs or self.automatic) and not self._is_capturing(x) and not network.has_hooks():
            captured = self._captured(self._key(x, options))
            if captured is None and self.automatic:
                captured = self.capture(network, x, **options)
            if captured is not None:
                return self._replay(captured, x)
        return self._run(network, x, options, keep=True)

    def static_input(self, x: Tensor, **options: Any) -> Tensor | None:
        """The tensor that the graph for inputs like ``x`` reads; a call with it needs no copy. None: no such graph."""
        captured = self._graphs.get(self._key(x, options))
        return None if captured is None else captured.static_input

    def plan(self, network: MobileViT, x: Tensor, **options: Any) -> Plan | None:
        """The plan for inputs like ``x``; None where a stage is served by another backend than the CUDA kernels'."""
        self._check_weights(network)
        return None if self._backend is None else self._planned(network, x, options)[0].plan

    # --- plans -------------------------------------------------------------------------------------------------------

    def _check_weights(self, network: MobileViT) -> None:
        """Drops plans and graphs of weights that have been packed anew since, or of another normalisation."""
        packed, normalize = [stage.packed for stage in network.stages()], network.stem.normalize
        if packed == self._packed and normalize is self._normalize:  # weights are equal where they are the same objects
            return
        with self._lock:
            if packed == self._packed and normalize is self._normalize:  # another thread has seen to it meanwhile
                return
            self.clear()
            # Stages that differ in more run one by one, where each checks what it gets.
            kinds = {(p.backend, p.dtype, p.device) for p in packed}
            backend = packed[0].backend
            self._backend = backend if len(kinds) == 1 and backend in _NATIVE else None
            self._packed, self._normalize = packed, normalize

    @staticmethod
    def _key(x: Tensor, options: dict[str, Any]) -> Key:
        return (x.shape, x.dtype, x.device, *sorted(options.items()))

    def _planned(self, network: MobileViT, x: Tensor, options: dict[str, Any]) -> tuple[_Planned, Tensor]:
        """The plan for ``x``, and ``x`` as it reads it."""
        key = (x.stride(), *self._key(x, options))
        with self._lock:
            # Images like some that a plan reads already have passed the same checks, and are read as they are. Bytes
            # come as (B, H, W, C) and are read as (B, C, H, W).
            planned = self._plans.get(key) if x.dtype != torch.uint8 else None
            if planned is None:
                x = network.prepare(x)
                key = (x.stride(), *self._key(x, options))
                planned = self._plans.get(key)
                if planned is None:
                    planned = self._plans[key] = self._plan(network, x, options, choices.chosen(x.device))
            self._plans.move_to_end(key)
            while len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return planned, x

    def _plan(self, network: MobileViT, image: Tensor, options: dict[str, Any], chosen: Mapping[str, str]) -> _Planned:
        assert self._backend is not None
        forward = _record(network, image, options, chosen)
        plan = forward.plan()
        notes = []
        if forward.slices > 1:
            notes.append(f"{forward.sliced_steps} stages in {forward.slices} slices of the batch")
        for step in forward.steps:
            if step.serving != next(iter(step.alternatives)):
                notes.append(f"measured: {step.problem}: {step.serving}")
        written = [slot.allocate(torch.device("meta")) for slot in plan.outputs]
        finished = all(map(operator.is_, network.finish(list(written), **options), written))
        library = native.library(self._backend)
        return _Planned(plan, library, library.compile(plan), finished, tuple(dict.fromkeys(notes)))

    def tune(
        self,
        network: MobileViT,
        x: Tensor,
        *,
        stages: Sequence[str] = (),
        measure: tuning.Measure | None = None,
        **options: Any,
    ) -> Iterator[Outcome]:
        """Measures what can serve inputs like ``x``: the alternatives of every stage, and slices of the batch.

        Each outcome is known to the process, and so to every engine, from when it is yielded. In the end the engine's
        plans and graphs are gone, so that the next forward takes what was measured.

        Args:
            network, x, options: as for :meth:`call`.
            stages: only these, and no slices; empty: all.
            measure: what times a list of calls; None: :func:`tuning.measure`, on a GPU.

        Raises:
            RuntimeError: a stage is served by another backend than the CUDA kernels', or has forward hooks.
        """
        self._check_weights(network)
        if self._backend is None:
            raise RuntimeError(
                "tune: expected a network whose stages are all served by the CUDA kernels in one dtype, got backends "
                f"{', '.join(sorted({packed.backend for packed in self._packed}))}"
            )
        if network.has_hooks():
            raise RuntimeError(
                "tune: expected a network without forward hooks on its blocks and stages, which see one stage after "
                "the other as the rules have it; remove them first"
            )
        library, image = native.library(self._backend), network.prepare(x)
        device, batch = image.device, image.shape[0]
        measure = measure or functools.partial(tuning.measure, device)
        whole = _record(network, image, options, {})
        forward = _forward_problem(whole)
        counts = tuning.slice_counts(batch, whole.plan().workspace_bytes, library.l2_bytes(device))
        calls = {}
        try:
            for slices in (1,) if stages else counts:
                in_slices = {forward: str(slices)}
                steps = _record(network, image, options, in_slices).steps
                for problem, alternatives in {step.problem: step.alternatives for step in steps}.items():
                    if len(alternatives) > 1 and (not stages or problem.split()[0] in stages):
                        outcome = tuning.tune_stage(library, problem, alternatives, device, measure)
                        choices.add(device, [outcome])
                        yield outcome
                planned = self._plan(network, image, options, {**choices.chosen(device), **in_slices})
                workspace = torch.empty(max(planned.plan.workspace_bytes, 1), dtype=torch.uint8, device=device)
                outputs = planned.allocate(device)
                calls[str(slices)] = functools.partial(planned.run, image, workspace, outputs)
            if len(calls) > 1:
                us = dict(zip(calls, measure(list(calls.values())), strict=True))
                outcome = tuning.fastest(forward, us, {})
                choices.add(device, [outcome])
                yield outcome
        finally:
            self.clear()

    def _run(self, network: MobileViT, x: Tensor, options: dict[str, Any], keep: bool) -> list[Tensor]:
        """By the plan where there can be one. ``keep``: in the stream's workspace, else in memory of its own."""
        if self._backend is None or network.has_hooks():
            return network.run(x, **options)
        planned, image = self._planned(network, x, options)
        plan, device = planned.plan, image.device
        tensors = planned.allocate(device)
        size = max(plan.workspace_bytes, 1)
        if keep and not self._is_capturing(x):
            _, stream = planned.library.place(image)
            with self._lock:  # of two threads on one stream, one launches all of its kernels before the other
                planned.run(image, self._workspaces.get(device, stream, size), tensors)
        else:
            planned.run(image, torch.empty(size, dtype=torch.uint8, device=device), tensors)
        written = [tensors[slot] for slot in plan.outputs]
        return written if planned.finished else network.finish(written, **options)

    # --- graphs ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _on_gpu(x: Tensor) -> bool:
        return x.is_cuda

    def _is_capturing(self, x: Tensor) -> bool:
        return self._on_gpu(x) and torch.cuda.is_current_stream_capturing()

    def _captured(self, key: Key) -> _Captured | None:
        with self._lock:
            captured = self._graphs.get(key)
            if captured is not None:
                self._graphs.move_to_end(key)
        return captured

    def _replay(self, captured: _Captured, x: Tensor) -> list[Tensor]:
        with self._lock:  # all that follows works on the stream's device, whichever is current
            stream = torch.cuda.current_stream(x.device)
            stream.wait_event(captured.done)
            place = captured.static_input
            offset = x.data_ptr() - place.data_ptr()
            if offset != 0 or x.stride() != place.stride():
                inside = 0 <= offset < place.nbytes  # another view of it
                place.copy_(x.clone() if inside else x)
            captured.graph.replay()
            outputs = [output.clone() for output in captured.static_outputs]
            captured.done.record(stream)
        return outputs

    def capture(self, network: MobileViT, x: Tensor, *, keep: bool = False, **options: Any) -> _Captured:
        """Captures the forward for inputs like ``x``.

        Args:
            network, x, options: as for :meth:`call`.
            keep: ``x`` itself becomes the graph's input; else a copy.

        Raises:
            RuntimeError: ``x`` is not on a CUDA device, or the network has forward hooks.
        """
        if not self._on_gpu(x):
            raise RuntimeError(f"graph: CUDA graphs need a CUDA device, the input is on {x.device}")
        if network.has_hooks():
            raise RuntimeError(
                "graph: expected a network without forward hooks on its blocks and stages, which a graph would not "
                "run; remove them first"
            )
        self._check_weights(network)
        key = self._key(x, options)
        with self._lock, torch.cuda.device(x.device):
            captured = self._captured(key)
            if captured is not None:  # by another thread in the meantime
                return captured
            # No inference tensor: those cannot be written outside of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                static_input = x if keep and not x.is_inference() else x.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm up: lazy initialisation must not happen under capture
                for _ in range(WARM_UP_RUNS):
                    self._run(network, static_input, options, keep=False)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what would break a capture of the whole process. The stream is not PyTorch's
            # own for captures, on which another thread may be capturing.
            with CAPTURING, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                static_outputs = self._run(network, static_input, options, keep=False)
            plan = self.plan(network, static_input, **options)
            buffers = {t.data_ptr(): t.numel() * t.element_size() for t in (static_input, *static_outputs)}
            size = sum(buffers.values()) + (0 if plan is None else plan.workspace_bytes)
            captured = _Captured(graph, static_input, static_outputs, torch.cuda.Event(), size)
            captured.done.record()
            self._graphs[key] = captured
            while len(self._graphs) > MAX_GRAPHS:
                _, oldest = self._graphs.popitem(last=False)
                oldest.done.synchronize()  # its memory is free only when its last replay has ended
        return captured


def _record(network: MobileViT, image: Tensor, options: dict[str, Any], chosen: Mapping[str, str]) -> Forward:
    """A forward for ``image``, in the slices that were chosen, or that save memory."""

    def record(part: Tensor) -> Forward:
        source = Recorded.input(part, chosen)
        return Forward.of(source, network.run(source, **options))

    whole = record(image)
    batch, _, height, width = image.shape
    slices, steps = _slices(chosen.get(_forward_problem(whole), "1"), batch), len(whole.steps)
    if slices == 1:
        slices, steps = min(batch, batch * height * width // SLICE_PIXELS, MAX_SLICES), whole.steps_to_largest()
    if slices <= 1:
        return whole
    return whole.in_slices([record(part) for part in image.tensor_split(slices)], steps)


def _slices(chosen: str, batch: int) -> int:
    """A table's count of slices; 1 where it is none for this batch, as with a stage's alternative that is not there."""
    count = int(chosen) if chosen.isdecimal() else 0
    return count if count > 0 and batch % count == 0 else 1


def _forward_problem(forward: Forward) -> str:
    """A whole forward, by the problems of its stages: how many slices to cut the batch into."""
    problems = list(dict.fromkeys(step.problem for step in forward.steps))
    digest = hashlib.sha256("\n".join(problems).encode()).hexdigest()[:12]
    return f"slices of a batch, forward {digest}: {problems[0]}, …"
