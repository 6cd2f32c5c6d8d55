"""CUDA graphs of whole forwards, one for each input shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["GraphCache"]

MAX_GRAPHS = 16
WARM_UP_RUNS = 2


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    static_input: Tensor
    static_outputs: list[Tensor]
    done: torch.cuda.Event  # of the last replay's copies: the static buffers are free again


class GraphCache:
    """Captured forwards by input shape, dtype, device and options; the least recently used leaves at MAX_GRAPHS.

    Safe with several threads and streams: replays of one graph are ordered, and results are copies, never the graph's
    own buffers.

    Args:
        automatic: capture each shape when it is first seen.
    """

    def __init__(self, automatic: bool = False) -> None:
        self.automatic = automatic
        self._captured: OrderedDict[tuple[Any, ...], _Captured] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A graph belongs to its process, device and weights: copies and pickles start without any.
        return {"automatic": self.automatic}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["automatic"])  # type: ignore[misc]

    def clear(self) -> None:
        """Forgets every graph; for when the weights behind them are gone."""
        with self._lock:
            self._captured.clear()

    @staticmethod
    def _key(x: Tensor, options: dict[str, Any]) -> tuple[Any, ...]:
        return (tuple(x.shape), x.dtype, x.device, *sorted(options.items()))

    def call(self, run: Callable[..., list[Tensor]], x: Tensor, **options: Any) -> list[Tensor]:
        """``run(x, **options)``, through its graph where there is one.

        Raises:
            RuntimeError: ``automatic``, and ``x`` is not on a CUDA device.
        """
        if not self._captured and not self.automatic:
            return run(x, **options)
        if torch.compiler.is_compiling() or x.shape[0] == 0:
            return run(x, **options)
        captured = self._captured.get(self._key(x, options))
        if captured is None:
            if not self.automatic:
                return run(x, **options)
            captured = self.capture(run, x, **options)
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(captured.done)
            captured.static_input.copy_(x)
            captured.graph.replay()
            outputs = [output.clone() for output in captured.static_outputs]
            captured.done.record(stream)
        return outputs

    def capture(self, run: Callable[..., list[Tensor]], x: Tensor, **options: Any) -> _Captured:
        """Captures ``run`` for inputs like ``x``.

        Raises:
            RuntimeError: ``x`` is not on a CUDA device.
        """
        if x.device.type != "cuda":
            raise RuntimeError(f"graph: CUDA graphs need a CUDA device, the input is on {x.device}")
        with self._lock, torch.cuda.device(x.device):
            static_input = x.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm up: lazy initialisation must not happen under capture
                for _ in range(WARM_UP_RUNS):
                    run(static_input, **options)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                static_outputs = run(static_input, **options)
            captured = _Captured(graph, static_input, static_outputs, torch.cuda.Event())
            captured.done.record()
            self._captured[self._key(x, options)] = captured
            while len(self._captured) > MAX_GRAPHS:
                self._captured.popitem(last=False)
        return captured
