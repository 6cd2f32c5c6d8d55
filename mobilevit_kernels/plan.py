"""A network's launches for one input shape, with every activation at its place in one workspace."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from mobilevit_kernels.native.launches import Alternatives, Launch, Library, Slot, call

__all__ = ["ALIGNMENT", "Lifetime", "Plan", "Recorded", "Recording", "Runner", "place", "run_one_by_one"]

ALIGNMENT = 256  # bytes; what PyTorch's own allocations begin at multiples of, within a block


@dataclass(frozen=True)
class Lifetime:
    """A piece of memory and the launches, by number, from its first use to its last."""

    bytes: int
    first: int
    last: int


def place(pieces: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Where each piece begins, such that pieces alive at the same launch do not overlap, and the bytes of it all.

    Large pieces first, each at the lowest place that is free during its life ("greedy by size", arXiv 2001.03288).
    """
    begins = [0] * len(pieces)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(pieces)), key=lambda i: (-pieces[i].bytes, i)):
        piece = pieces[i]
        alive = sorted(
            (begins[j], begins[j] + pieces[j].bytes)
            for j in placed
            if pieces[j].first <= piece.last and pieces[j].last >= piece.first
        )
        begin = 0
        for other_begin, other_end in alive:
            if begin + piece.bytes <= other_begin:
                break
            begin = max(begin, -(-other_end // ALIGNMENT) * ALIGNMENT)
        begins[i] = begin
        placed.append(i)
        total = max(total, begin + piece.bytes)
    return begins, total


@dataclass(frozen=True, eq=False)
class Plan:
    """Launches in order, and where their activations lie.

    Attributes:
        input: the images' slot.
        outputs: the slots that a run returns; they have memory of their own.
        launches: in the order of their run.
        offsets: of every other slot, in bytes from the workspace's begin.
        workspaces: for each launch where its own workspace begins.
        workspace_bytes: size of it all.
    """

    input: Slot
    outputs: tuple[Slot, ...]
    launches: tuple[Launch, ...]
    offsets: Mapping[Slot, int] = field(repr=False)
    workspaces: tuple[int, ...] = field(repr=False)
    workspace_bytes: int

    @property
    def kernels(self) -> int:
        """How many kernels a run starts."""
        return sum(launch.kernels for launch in self.launches)

    def tensor_of(self, x: Tensor, workspace: Tensor, outputs: Mapping[Slot, Tensor], slot: Slot) -> Tensor:
        """A slot's tensor in a run: the input ``x``, an output, or a view of the workspace."""
        if slot is self.input:
            return x
        return outputs[slot] if slot in outputs else slot.view(workspace, self.offsets[slot])

    @classmethod
    def of(cls, source: Slot, launches: Iterable[Launch], outputs: Iterable[Slot]) -> Plan:
        """Places every slot that is neither the input nor an output.

        Args:
            source: the network's input.
            launches: in order; each reads slots that are ``source`` or written before.
            outputs: what the run returns.

        Raises:
            ValueError: a launch reads, or an output is, a slot that nothing writes.
        """
        launches, outputs = tuple(launches), tuple(outputs)
        first: dict[Slot, int] = {}
        last: dict[Slot, int] = {}
        for i, launch in enumerate(launches):
            for name, value in launch.inputs.items():
                if not isinstance(value, Slot):
                    continue
                if value is not source and value not in first:
                    raise ValueError(f"launches: {launch.launcher} reads {name}, which no launch before it writes")
                last[value] = i
            first[launch.output] = last[launch.output] = i
        if any(output not in first for output in outputs):
            raise ValueError("outputs: expected slots that the launches write")
        slots = [slot for slot in first if slot not in outputs]
        pieces = [Lifetime(slot.bytes, first[slot], last[slot]) for slot in slots]
        pieces += [Lifetime(launch.workspace_bytes, i, i) for i, launch in enumerate(launches)]
        begins, total = place(pieces)
        offsets = dict(zip(slots, begins, strict=False))
        return cls(source, outputs, launches, offsets, tuple(begins[len(slots) :]), total)


class Recording:
    """A forward that is being recorded.

    Attributes:
        chosen: the alternative that is to serve, for some of the problems that stages pose.
        launches: so far, in order.
        problems: posed so far, in order, each with its alternatives.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.chosen = chosen
        self.launches: list[Launch] = []
        self.problems: dict[str, Alternatives] = {}

    def serving(self, problem: str) -> str:
        """The alternative that serves: the chosen one, or the first where none is chosen or there is none such."""
        alternatives, chosen = self.problems[problem], self.chosen.get(problem)
        return next(iter(alternatives)) if chosen is None or chosen not in alternatives else chosen


@dataclass(frozen=True, eq=False)
class Recorded:
    """Stands for an activation while a network is recorded: its stages take it in place of a tensor.

    Attributes:
        slot: the activation.
        recording: that it is a part of.
    """

    slot: Slot
    recording: Recording

    @staticmethod
    def input(x: Tensor, chosen: Mapping[str, str] | None = None) -> Recorded:
        """The beginning of a recording."""
        return Recorded(Slot.like(x), Recording(chosen or {}))

    def then(self, problem: str, alternatives: Alternatives) -> Recorded:
        """The result of a stage that poses a problem and can be launched in these ways."""
        self.recording.problems[problem] = alternatives
        launches = alternatives[self.recording.serving(problem)]
        self.recording.launches.extend(launches)
        return Recorded(launches[-1].output, self.recording)


class Runner(Protocol):
    """A plan that a library has made ready to run."""

    def __call__(self, x: Tensor, workspace: Tensor, outputs: Mapping[Slot, Tensor]) -> None:
        """Launches everything on the current stream.

        Args:
            x: of the input slot's shape and layout.
            workspace: uint8, at least ``plan.workspace_bytes``.
            outputs: tensors of the output slots.
        """


def run_one_by_one(library: Library, plan: Plan, x: Tensor, workspace: Tensor, outputs: Mapping[Slot, Tensor]) -> None:
    """Runs a plan by a call a launch, each on views of the workspace."""
    tensor_of = functools.partial(plan.tensor_of, x, workspace, outputs)
    for launch, begin in zip(plan.launches, plan.workspaces, strict=True):
        own = workspace[begin : begin + launch.workspace_bytes] if launch.workspace_bytes else None
        call(library, launch, tensor_of, own)
