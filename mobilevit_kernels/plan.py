"""A network's launches for one input shape, with every activation at its place in one workspace."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from mobilevit_kernels.native.launches import Alternatives, Launch, Library, Slot, call

__all__ = ["ALIGNMENT", "Forward", "Lifetime", "Plan", "Recorded", "Runner", "Step", "place", "run_one_by_one"]

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
        """A slot's tensor in a run: the input ``x``, an output, some images of these, or a view of the workspace."""
        root = slot.root
        if root is not self.input and root not in outputs:
            return slot.view(workspace, self.offsets[root] + slot.offset)
        tensor = x if root is self.input else outputs[root]
        return tensor if root is slot else tensor.narrow(0, slot.first, slot.shape[0])

    @classmethod
    def of(cls, source: Slot, launches: Iterable[Launch], outputs: Iterable[Slot]) -> Plan:
        """Places every slot that is neither the input nor an output, nor a part of another one.

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
                if value.root is not source and value.root not in first:
                    raise ValueError(f"launches: {launch.launcher} reads {name}, which no launch before it writes")
                last[value.root] = i
            first.setdefault(launch.output.root, i)
            last[launch.output.root] = i
        if any(output not in first for output in outputs):
            raise ValueError("outputs: expected slots that the launches write")
        slots = [slot for slot in first if slot not in outputs]
        pieces = [Lifetime(slot.bytes, first[slot], last[slot]) for slot in slots]
        pieces += [Lifetime(launch.workspace_bytes, i, i) for i, launch in enumerate(launches)]
        begins, total = place(pieces)
        offsets = dict(zip(slots, begins, strict=False))
        return cls(source, outputs, launches, offsets, tuple(begins[len(slots) :]), total)


@dataclass(frozen=True, eq=False)
class Step:
    """A stage of a recorded forward.

    Attributes:
        problem: that it poses: its sizes, options, dtype and shape, in words.
        alternatives: the ways to launch it.
        serving: the one that serves.
        launches: of that one.
    """

    problem: str
    alternatives: Alternatives
    serving: str
    launches: Sequence[Launch]

    @property
    def output(self) -> Slot:
        """What it leaves for other stages."""
        return self.launches[-1].output

    @property
    def reads(self) -> set[Slot]:
        """Every activation that its launches read."""
        return {value for launch in self.launches for value in launch.inputs.values() if isinstance(value, Slot)}


@dataclass(frozen=True, eq=False)
class Recorded:
    """Stands for an activation while a network is recorded: its stages take it in place of a tensor.

    Attributes:
        slot: the activation.
        chosen: the alternative that is to serve, for some of the problems that stages pose.
        steps: of the recording that it is a part of, so far and in order.
    """

    slot: Slot
    chosen: Mapping[str, str]
    steps: list[Step]

    @staticmethod
    def input(x: Tensor, chosen: Mapping[str, str] | None = None) -> Recorded:
        """The beginning of a recording."""
        return Recorded(Slot.like(x), chosen or {}, [])

    def then(self, problem: str, alternatives: Alternatives) -> Recorded:
        """The result of a stage that poses a problem and can be launched in these ways.

        The chosen one serves, or the first where none is chosen or there is none such.
        """
        chosen = self.chosen.get(problem)
        serving = next(iter(alternatives)) if chosen is None or chosen not in alternatives else chosen
        step = Step(problem, alternatives, serving, alternatives[serving])
        self.steps.append(step)
        return Recorded(step.output, self.chosen, self.steps)


@dataclass(frozen=True, eq=False)
class Forward:
    """A recorded forward.

    Attributes:
        source: the images' slot.
        outputs: what it returns.
        steps: in the order of their run.
        slices: of the batch that the first ``sliced_steps`` stages run for, one after the other.
        sliced_steps: these; 0: none.
    """

    source: Slot
    outputs: tuple[Slot, ...]
    steps: Sequence[Step]
    slices: int = 1
    sliced_steps: int = 0

    @staticmethod
    def of(source: Recorded, outputs: Iterable[Recorded]) -> Forward:
        """What was recorded."""
        return Forward(source.slot, tuple(output.slot for output in outputs), source.steps)

    def plan(self) -> Plan:
        """Its launches, placed."""
        launches = [launch for step in self.steps for launch in step.launches]
        return Plan.of(self.source, launches, self.outputs)

    def steps_to_largest(self) -> int:
        """How many steps there are up to the last one that reads the largest activation; of equal ones, the last."""
        largest = max((step.output for step in reversed(self.steps[:-1])), key=lambda slot: slot.bytes)
        return 1 + max(i for i, step in enumerate(self.steps) if largest in step.reads)

    def in_slices(self, slices: Sequence[Forward], count: int) -> Forward:
        """The same forward, whose first ``count`` steps run for one slice of the batch after the other.

        What these steps leave to each other then needs the memory of one slice; what they leave to later ones is a part
        of the whole forward's activation.

        Args:
            slices: the same network recorded on parts of the images, which lie side by side and are all of them.
            count: steps, at least one.
        """
        kept = set(self.outputs).union(*(step.reads for step in self.steps[count:]))
        steps: list[Step] = []
        begin = 0
        for forward in slices:
            images = forward.source.shape[0]
            replaced = {forward.source: self.source.part(begin, images)}
            for step, whole in zip(forward.steps[:count], self.steps, strict=False):
                if whole.output in kept:
                    replaced[step.output] = whole.output.part(begin, images)
                steps.append(replace(step, launches=[launch.with_slots(replaced) for launch in step.launches]))
            begin += images
        return Forward(self.source, self.outputs, (*steps, *self.steps[count:]), len(slices), count)


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
