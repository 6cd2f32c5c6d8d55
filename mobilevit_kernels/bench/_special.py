"""A kernel that does nothing but exponentials; apart, since it needs triton to be imported."""

import triton
import triton.language as tl

__all__ = ["BLOCK", "STEPS", "chain"]

BLOCK = 1024  # values a program: 8 independent chains a thread at 4 warps hide the unit's latency
STEPS = 1024


@triton.jit
def chain(out_ptr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Applies x → 2^(−x) STEPS times in registers; the values stay between 0.5 and 1, away from denormals."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = 0.5 + (offsets % 1024).to(tl.float32) / 2048
    for _ in range(STEPS):
        x = tl.exp2(-x)
    tl.store(out_ptr + offsets, x)
