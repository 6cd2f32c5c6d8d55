"""Ahead-of-time compiles: what each kernel costs on an architecture, without a GPU.

``python -m mobilevit_kernels.triton.aot --arch 90`` plans the published networks on tensors of the meta device, at
batch 1 and 256, 256×256, and compiles each distinct kernel × configuration × dtype of the plan once, in its widest
form. For each it reports registers, shared memory, stack, matrix instructions and local-memory instructions, those
inside a loop apart: spills in a loop are an error, as is shared memory beyond what the architecture has.

Needs triton's own tools only (ptxas, cuobjdump and nvdisasm come with the package), and TRITON_INTERPRET unset.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.canonical import StageWeights
from mobilevit_kernels.config import CONFIGS
from mobilevit_kernels.packed import Packed
from mobilevit_kernels.triton import DTYPES, _launch, stage_module

__all__ = ["SHARED_LIMITS", "Case", "Usage", "cases", "compile_case", "main", "plan_network", "problems"]

SHARED_LIMITS = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
_TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.uint8: "u8",
}
_MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\b")
_LOCAL = re.compile(r"\b(LDL|STL)\b")
_ADDRESS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")


@dataclass(frozen=True)
class Case:
    """One kernel to compile: its launch as recorded, and the name it goes by in the table."""

    name: str
    dtype: str
    recorded: _launch.Recorded


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes.

    Attributes:
        name, dtype, arch: of the case.
        registers: a thread.
        shared_bytes: a block, static and dynamic.
        stack_bytes: a thread, spills included.
        matrix_instructions: in the code, not executed.
        local_instructions, local_in_loops: loads and stores of local memory in the code; those inside a loop.
    """

    name: str
    dtype: str
    arch: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    matrix_instructions: int
    local_instructions: int
    local_in_loops: int


def _packed_on_meta(stage: str, weights: StageWeights, dtype: torch.dtype, sizes: tuple[int, ...]) -> Packed:
    meta = torch.device("meta")
    tensors = stage_module(stage).pack(weights, dtype, torch.device("cpu"))
    return Packed(stage, "triton", dtype, meta, tuple(tensor.to(meta) for tensor in tensors), sizes)


def plan_network(
    name: str, dtype: torch.dtype, *, batch: int = 1, size: int = 256, arch: int = 90
) -> list[_launch.Recorded]:
    """The launches of one forward of a published network, in order, without running any."""
    from mobilevit_kernels.verify import network_cases, random_weights

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), _launch.recording(arch) as record:
        for _, _, case in network_cases((name,), batch=batch, height=size, width=size):
            packed = _packed_on_meta(case.stage, random_weights(case.stage, case.sizes, generator), dtype, case.sizes)
            options: dict[str, Any] = dict(case.options)
            shape = case.x_shape
            if case.stage == "stem":
                options = {"mean": [], "std": []}
            elif case.stage == "conv3x3":
                channels = options.pop("x2_channels", None)
                x2 = None if channels is None else _map((batch, channels, *shape[2:]), dtype)
                options = {"x2": x2, "dilation": 1, "activation": "silu"}
            elif case.stage == "inverted_residual":
                options = {"stride": options["stride"], "dilation": 1, "residual": options["residual"]}
            elif case.stage == "head":
                options = {"pool": True}
            stage_module(case.stage).run(_map(shape, dtype), packed, **options)
    return record


def _map(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)


def _plan_images(dtype: torch.dtype, arch: int) -> list[_launch.Recorded]:
    """The stem on uint8 images with normalisation, which no network's plan holds."""
    from mobilevit_kernels.verify import random_weights

    weights = random_weights("stem", (3, 16), torch.Generator().manual_seed(0))
    packed = _packed_on_meta("stem", weights, dtype, (3, 16))
    with _launch.recording(arch) as record:
        for batch in (1, 256):
            image = torch.empty((batch, 256, 256, 3), dtype=torch.uint8, device="meta")
            stage_module("stem").run(image, packed, mean=[0.5] * 3, std=[0.5] * 3)
    return record


def _features(recorded: _launch.Recorded) -> Iterator[str]:
    """What of a launch changes the code beyond tile sizes and widths."""
    arguments = recorded.arguments
    for flag in ("NORMALIZE", "SILU", "BYTES"):
        if arguments.get(flag):
            yield flag.lower()
    if arguments.get("STRIDE", 1) != 1:
        yield f"stride{arguments['STRIDE']}"
    for name in ("bias", "residual", "x2", "statistics"):
        if arguments.get(f"{name}_ptr") is not None:
            yield name


def _name(recorded: _launch.Recorded) -> str:
    return f"{recorded.kernel.fn.__name__}({','.join(_features(recorded))}) {recorded.config}"


def _width(recorded: _launch.Recorded) -> int:
    widths = (recorded.arguments.get(name, 1) for name in ("K", "N", "C", "C1", "HIDDEN", "D", "HEAD_DIM"))
    return functools.reduce(lambda product, width: product * max(1, width), widths, 1)


@functools.cache
def cases(arch: int) -> tuple[Case, ...]:
    """Every distinct kernel × configuration × dtype that the published networks launch on ``arch``."""
    widest: dict[tuple[str, str], Case] = {}
    for dtype in DTYPES:
        launches = _plan_images(dtype, arch)
        for network in CONFIGS:
            for batch in (1, 256):
                launches += plan_network(network, dtype, batch=batch, arch=arch)
        for recorded in launches:
            key = _name(recorded), _TYPE_NAMES[dtype]
            if key not in widest or _width(recorded) > _width(widest[key].recorded):
                widest[key] = Case(*key, recorded)
    return tuple(widest[key] for key in sorted(widest))


def _signature(recorded: _launch.Recorded) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[Any]]]:
    """Types, constants and alignment hints of a launch, as the just-in-time compiler would infer them."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[Any]] = {}
    for i, name in enumerate(recorded.kernel.arg_names):
        value = recorded.arguments[name]
        if isinstance(value, Tensor):
            signature[name] = f"*{_TYPE_NAMES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif name.isupper() or value is None:
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
    return signature, constants, attributes


def _in_loops(code: list[tuple[int, str]]) -> int:
    """Local-memory instructions between a backward branch and its target."""
    loops = []
    for address, text in code:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target.group(1), 16) < address:
            loops.append((int(target.group(1), 16), address))
    return sum(any(first <= address <= last for first, last in loops) for address, text in code if _LOCAL.search(text))


def compile_case(case: Case, arch: int) -> Usage:
    """Compiles one case and reads what it takes from the binary."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _signature(case.recorded)
    source = ASTSource(case.recorded.kernel, signature, constants, attributes)
    config = case.recorded.config
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages, **_launch.COMPILE_OPTIONS},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources = _tool("cuobjdump", "--dump-resource-usage", file.name)
        disassembly = _tool("cuobjdump", "--dump-sass", file.name)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", resources)}
    code = [(int(address, 16), text) for address, text in _ADDRESS.findall(disassembly)]
    return Usage(
        name=case.name,
        dtype=case.dtype,
        arch=arch,
        registers=found["REG"],
        shared_bytes=max(found.get("SHARED", 0), compiled.metadata.shared),
        stack_bytes=found["STACK"],
        matrix_instructions=sum(bool(_MATRIX.search(text)) for _, text in code),
        local_instructions=sum(bool(_LOCAL.search(text)) for _, text in code),
        local_in_loops=_in_loops(code),
    )


def _tool(name: str, *arguments: str) -> str:
    from triton import knobs

    path = getattr(knobs.nvidia, name).path
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def problems(usage: Usage) -> list[str]:
    """What breaks the contract in one compiled kernel; empty: nothing does."""
    found = []
    limit = SHARED_LIMITS.get(usage.arch)
    if limit is not None and usage.shared_bytes > limit:
        found.append(f"{usage.shared_bytes} bytes of shared memory, sm_{usage.arch} has {limit}")
    if usage.local_in_loops:
        found.append(f"{usage.local_in_loops} local-memory instructions inside loops")
    if usage.dtype != "fp32" and not usage.matrix_instructions:
        found.append("no matrix instruction")
    return found


def _compile_by_index(job: tuple[int, int]) -> Usage:
    arch, index = job
    return compile_case(cases(arch)[index], arch)


def main(arguments: list[str] | None = None) -> int:
    """Compiles the plan of an architecture and prints or writes the table; returns 1 where a kernel has a problem."""
    parser = argparse.ArgumentParser(prog="python -m mobilevit_kernels.triton.aot", description=main.__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability as one number (default: 90)")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="compiles at a time")
    parser.add_argument("--output", type=Path, help="write the table there, as JSON")
    parser.add_argument("--match", action="append", help="only kernels whose name and dtype contain this, or another")
    options = parser.parse_args(arguments)
    import triton

    from mobilevit_kernels.triton._device import INTERPRETED

    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels cannot be compiled in Triton's interpreter")

    jobs = [
        (options.arch, i)
        for i, case in enumerate(cases(options.arch))
        if any(match in f"{case.name} {case.dtype}" for match in options.match or [""])
    ]
    start = time.monotonic()
    rows, failures = [], 0
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for usage in pool.imap(_compile_by_index, jobs):
            rows.append(usage)
            found = problems(usage)
            failures += bool(found)
            print(
                f"{usage.registers:4d} regs {usage.shared_bytes:7d} B shared {usage.stack_bytes:5d} B stack "
                f"{usage.matrix_instructions:4d} mma {usage.local_instructions:4d} local "
                f"({usage.local_in_loops} in loops)  {usage.dtype} {usage.name}" + "".join(f"  ! {f}" for f in found),
                flush=True,
            )
    print(f"sm_{options.arch}: {len(rows)} kernels, {failures} with problems, {time.monotonic() - start:.0f} s")
    if options.output is not None:
        lines = ",\n".join(json.dumps(asdict(usage)) for usage in rows)
        options.output.write_text(f'{{"triton": "{triton.__version__}", "kernels": [\n{lines}\n]}}\n')
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
