"""Kernels and host code as nvcc compiles them, run by the PTX interpreter (ptx_extension.py, tools/ptx).

By default the kernels of some small translation units are compiled and run; the primitives are in test_primitives.py.
With MVK_PTX=full everything is, and the tests with the backend "simt" among their parameters run on PTX too.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ptx_extension
import pytest
import test_inverted_residual_cuda as inverted
import torch
from conftest import blocks, clusters, judge
from ptx_extension import PtxLibrary
from test_conv3x3_cuda import launch as conv3x3_launch
from test_sanitize import CASES
from test_transformer_wgmma_cuda import case_of as wgmma_case
from test_transformer_wgmma_cuda import launch as wgmma_launch

import mobilevit_kernels as mvk
import python_ref
from mobilevit_kernels import verify
from mobilevit_kernels.native import conv3x3_tiling
from mobilevit_kernels.native.transformer_plan import CLUSTER_INSTANCES, INSTANCES, WGMMA_INSTANCES
from mobilevit_kernels.verify import StageCase

pytestmark = pytest.mark.skipif(ptx_extension.obstacle() is not None, reason=f"PTX: {ptx_extension.obstacle()}")

full = pytest.mark.skipif(not ptx_extension.FULL, reason="compiles every kernel, in minutes: MVK_PTX=full")
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture
def library() -> PtxLibrary:
    return ptx_extension.library()


# --- kernels and networks --------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.stage in ptx_extension.SMALL_UNITS else [full], id=str(case))
        for case in CASES
    ],
)
def test_a_kernel_agrees_with_the_simulator(case: StageCase, dtype: torch.dtype) -> None:
    """Both are within the contract and close to each other: order of sums and approximations differ."""
    x, weights, options = case.build()
    own = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    own_x = x if x.dtype == torch.uint8 else x.to(dtype)
    arguments = [] if weights is None else [mvk.pack(weights, dtype, "cpu", "simt")]
    own |= {"backend": "simt"} if weights is None else {}

    def run() -> torch.Tensor:
        if case.stage == "transformer" and case.sizes[2] == 2 * case.sizes[1]:
            variant = clusters("simt", "cpu")
        else:
            variant = blocks("simt", "large" if 144 in case.sizes else "small")
        with variant:
            return getattr(mvk.ops, case.stage)(own_x, *arguments, **own)

    simulated = run()
    with ptx_extension.in_place_of_the_simulator() as library:
        y = run()
        library.control.ptx_set_seed(1)  # another order of warps
        try:
            assert torch.equal(run(), y)
        finally:
            library.control.ptx_set_seed(0)
    result = judge(case, y, own_x, dtype)
    assert result.passed, f"error {result.error:.2e}, stock {result.stock_error:.2e}, ratio {result.ratio:.2f}"
    assert distance(y, simulated) <= DIGITS[dtype]


@dtypes
@pytest.mark.parametrize("instance", WGMMA_INSTANCES, ids=str)
def test_a_kernel_on_wgmma_agrees_with_the_simulator(instance, dtype: torch.dtype) -> None:
    """The descriptors that nvcc's code makes, decoded by the interpreter."""
    case = wgmma_case(instance)
    simulated = wgmma_launch(case, dtype)
    with ptx_extension.in_place_of_the_simulator():
        y = wgmma_launch(case, dtype)
    assert judge(case, y, case.build()[0].to(dtype), dtype).passed
    assert distance(y, simulated) <= DIGITS[dtype]


@dtypes
@pytest.mark.parametrize("tile", conv3x3_tiling.WGMMA_TILES)
@pytest.mark.parametrize("width", [48, 64, 80, 96])
def test_conv3x3_on_wgmma_agrees_with_the_simulator(width: int, tile: int, dtype: torch.dtype) -> None:
    case = StageCase("conv3x3", (24, width), (3, 24, 9, 11))
    simulated = conv3x3_launch(case, tile, dtype=dtype)
    with ptx_extension.in_place_of_the_simulator():
        y = conv3x3_launch(case, tile, dtype=dtype)
    assert judge(case, y, case.build()[0].to(dtype), dtype).passed
    assert distance(y, simulated) <= DIGITS[dtype]


DIGITS = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def every_instance(dtype: torch.dtype) -> Iterator[verify.Result]:
    """Runs a stage by every instance of every kernel."""

    def check(case: StageCase) -> verify.Result:
        return verify.check_stage(case, "simt", dtype)

    normalize = {"normalize": ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))}
    yield check(StageCase("stem", (3, 16), (1, 15, 18, 3), normalize, image="uint8"))
    for image in (torch.float16, torch.bfloat16, torch.float32):
        case = StageCase("stem", (3, 16), (1, 3, 15, 18))
        x, weights, _ = case.build()
        x = x.to(image)
        yield judge(case, mvk.ops.stem(x, mvk.pack(weights, dtype, "cpu", "simt")), x, dtype)

    yield check(StageCase("transformer", (16, 64, 128, 1, 8), (2, 16, 7, 9)))  # with resizes around it
    for instance in INSTANCES:
        heads = instance.dim // (8 * instance.head_tiles) if instance.padded else 4
        sizes = (16, instance.dim, 2 * instance.dim, 1, 16)
        with blocks("simt", "small" if instance.rows == 64 else "large"):
            yield check(StageCase("transformer", sizes, (1, 16, 8, 10), {"num_heads": heads}))
    for cluster in CLUSTER_INSTANCES:
        sizes = (16, cluster.dim, 2 * cluster.dim, 1, 16)
        short = cluster.row_groups == 1  # up to 16 tokens, on clusters of 16 or 64 rows
        height, width = (6, 8) if short else (24, 24) if cluster.rows == 256 else (12, 10)
        for sends in (False, True):
            with clusters("simt", "cpu", at_once=1 if short and cluster.rows == 64 else 1_000_000, sends=sends):
                yield check(StageCase("transformer", sizes, (1, 16, height, width), {"num_heads": 4}))

    for instance in WGMMA_INSTANCES:
        case = wgmma_case(instance)
        yield judge(case, wgmma_launch(case, dtype), case.build()[0].to(dtype), dtype)

    large = itertools.product((3, *conv3x3_tiling.WGMMA_TILES), (48, 64, 80, 96))
    for tile, width in ((0, 24), (1, 24), (2, 24), *large):
        case = StageCase("conv3x3", (24, width), (2, 24, 9, 11))
        yield judge(case, conv3x3_launch(case, tile, dtype=dtype), case.build()[0].to(dtype), dtype)

    for stride, width, kernel in itertools.product((1, 2), (24, 56, 88, 104, 136), (inverted.SMALL, inverted.LARGE)):
        case = StageCase("inverted_residual", (24, 80, width), (1, 24, 9, 19), {"stride": stride})
        yield judge(case, inverted.launch(case, kernel, dtype=dtype), case.build()[0].to(dtype), dtype)
    for stride, width, chunk in itertools.product((1, 2), (40, 136), (inverted.SMALL, inverted.LARGE)):
        case = StageCase("inverted_residual", (24, 152, width), (1, 24, 9, 11), {"stride": stride})
        yield judge(case, inverted.launch(case, (chunk, 2), dtype=dtype), case.build()[0].to(dtype), dtype)
    for sizes, stride, residual in inverted.SERVED_BY_ROWS:
        case = StageCase("inverted_residual", sizes, (1, sizes[0], 9, 19), {"stride": stride, "residual": residual})
        for form in (inverted.ROWS, inverted.DEALT)[: 1 + ((sizes, stride, residual) in inverted.CAN_BE_DEALT)]:
            yield judge(case, inverted.launch(case, form, dtype=dtype), case.build()[0].to(dtype), dtype)

    yield check(StageCase("head", (24, 136, 35), (265, 24, 1, 2)))
    yield check(StageCase("head", (24, 136, 10), (1, 24, 5, 7)))
    yield check(StageCase("head", (24, 40, 10), (1, 24, 5, 7), {"pool": False}))
    yield check(StageCase("head", (8, 1408, 0), (1, 8, 39, 43), {"pool": False}))
    for tiles in (2, 3, 4, 5, 6, 8, 16):
        yield check(StageCase("unfold_attention_fold", (), (1, 3 * 8 * tiles, 8, 6), {"num_heads": 1}))


@full
@dtypes
def test_every_instance_is_within_the_contract(dtype: torch.dtype) -> None:
    with ptx_extension.in_place_of_the_simulator() as library:
        before = {kernel.name: kernel.launches for kernel in library.coverage()}
        for result in every_instance(dtype):
            assert result.passed, f"{result.name}: error {result.error:.2e}, stock {result.stock_error:.2e}"
        idle = {kernel.name for kernel in library.coverage() if kernel.launches == before[kernel.name]}
    name = str(dtype).removeprefix("torch.")
    assert not {kernel for kernel in idle if kernel.split()[1:2] == [name]}


@full
@dtypes
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_network_runs_by_its_plan(batch: int, dtype: torch.dtype) -> None:
    """One call into the extension for the whole network; the result is close to the torch backend's."""
    torch.manual_seed(0)
    stock = python_ref.MobileViT("xxs", num_classes=10)
    python_ref.randomize_weights(stock, seed=0)
    x = torch.rand(batch, 3, 64, 64)
    exact = mvk.optimize(stock.eval(), dtype=torch.float32, backend="torch")(x)
    fast = mvk.optimize(stock, dtype=dtype, backend="simt")
    simulated = fast(x)
    fast = mvk.optimize(stock, dtype=dtype, backend="simt")  # plans are kept
    with ptx_extension.in_place_of_the_simulator() as library:
        before = sum(kernel.launches for kernel in library.coverage())
        y = fast(x)
        (planned,) = fast.engine._plans.values()
        assert sum(kernel.launches for kernel in library.coverage()) - before == planned.plan.kernels
    assert distance(y, exact) <= 2 * distance(simulated, exact)
    assert distance(y, simulated) <= 4 * DIGITS[dtype]


# --- launches that the runtime would refuse --------------------------------------------------------------------------


def golden(library: PtxLibrary, name: str, warps: int) -> None:
    source, target = torch.zeros(warps, 32, 12, dtype=torch.int32), torch.zeros(warps, 32, 4, dtype=torch.int32)
    with library.reach([("in", source)], {"out": target}):
        library.extension.golden(0, 0, name, source.data_ptr(), target.data_ptr(), warps)


def test_impossible_launches_are_refused(library: PtxLibrary) -> None:
    with pytest.raises(RuntimeError, match="golden: the launch is refused: a grid of 0 × 1 × 1 blocks"):
        golden(library, "shuffle", 0)
    with pytest.raises(RuntimeError, match="clusters of 4 blocks in a grid of 6"):
        golden(library, "cluster", 6)
    with pytest.raises(RuntimeError, match="cannot use CUDA device 1"):
        library.extension.golden(1, 0, "shuffle", 0, 0, 1)


def test_code_of_an_older_architecture_has_no_clusters(library: PtxLibrary, tmp_path: Path) -> None:
    """A build with PTX of compute capability 8.0 alone, on a newer GPU: launches neither overlap nor form clusters."""
    copy = PtxLibrary(Path(shutil.copy(library.extension.__file__, tmp_path)))
    copy.control.ptx_set_version(80)
    golden(copy, "shuffle", 2)
    with pytest.raises(RuntimeError, match="golden: clusters need a GPU of compute capability"):
        golden(copy, "cluster", 8)
    golden(library, "cluster", 8)


def test_memory_out_of_reach_is_reported(library: PtxLibrary) -> None:
    source, target = torch.zeros(1, 32, 12, dtype=torch.int32), torch.zeros(1, 32, 4, dtype=torch.int32)
    with (
        library.reach([("in", source)], {"out": target[:, :31]}),
        pytest.raises(RuntimeError, match=r"write of 4 bytes .* in no buffer \(byte 496 of 'out', which has 496\)"),
    ):
        library.extension.golden(0, 0, "shuffle", source.data_ptr(), target.data_ptr(), 1)


# --- the interpreter itself ------------------------------------------------------------------------------------------

HEADER = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 128 .b8 memory[];
.visible .entry kernel(.param .align 8 .b8 parameters[16])
{
.reg .pred %p<4>;
.reg .b32 %r<20>;
.reg .b64 %rd<6>;
mov.u32 %r1, %tid.x;
mov.u32 %r2, memory;
shl.b32 %r3, %r1, 2;
add.s32 %r4, %r2, %r3;
setp.lt.s32 %p1, %r1, 16;
ld.param.u64 %rd1, [parameters];
ld.param.u64 %rd2, [parameters+8];
mul.wide.u32 %rd5, %r1, 4;
add.s64 %rd2, %rd2, %rd5;
"""


def run(library: PtxLibrary, body: str, threads: int = 32, cluster: int = 1) -> tuple[str, np.ndarray]:
    """Runs a body behind HEADER with %r1 the thread, %r4 its word of 256 bytes of shared memory, %rd1 an input of 32
    words (their squares) and %rd2 the thread's word of the output; its problem and the output."""
    text = HEADER + textwrap.dedent(body) + "}\n"
    source = torch.arange(32, dtype=torch.int32) ** 2
    target = torch.zeros(64, dtype=torch.int32)
    parameters = (ctypes.c_uint64 * 2)(source.data_ptr(), target.data_ptr())
    with library.reach([("in", source)], {"out": target}):
        problem = library.control.ptx_run(text.encode(), cluster, threads, cluster, 256, parameters)
    return problem.decode(), target.numpy()


WAIT = "griddepcontrol.wait;\n"
STORE = "st.global.u32 [%rd2], %r5;\nret;\n"


def test_lanes_that_part_meet_again(library: PtxLibrary) -> None:
    """A loop with another number of turns in each lane, then a shuffle of all."""
    problem, out = run(
        library,
        WAIT
        + """
        mov.u32 %r5, 0;
        mov.u32 %r6, 0;
        $again:
        add.s32 %r5, %r5, %r6;
        add.s32 %r6, %r6, 1;
        setp.le.s32 %p2, %r6, %r1;
        @%p2 bra $again;
        shfl.sync.down.b32 %r5|%p3, %r5, 1, 31, -1;
        """
        + STORE,
    )
    assert problem == ""
    lanes = np.minimum(np.arange(32) + 1, 31)
    assert np.array_equal(out[:32], lanes * (lanes + 1) // 2)


def test_a_copy_arrives_with_its_wait(library: PtxLibrary) -> None:
    """The second of two groups is not waited for; lanes 8 … 15 ask for zeros behind 4 bytes."""
    copy = """
        setp.ge.s32 %p2, %r1, 8;
        selp.b32 %r6, 4, 16, %p2;
        shl.b32 %r7, %r1, 4;
        add.s32 %r7, %r7, %r2;
        and.b32 %r8, %r1, 7;
        mul.wide.u32 %rd3, %r8, 16;
        add.s64 %rd3, %rd3, %rd1;
        @%p1 cp.async.cg.shared.global [%r7], [%rd3], 16, %r6;
        cp.async.commit_group;
        cp.async.commit_group;
        """
    read = (
        "bar.warp.sync -1;\nld.shared.u32 %r5, [%r4];\nld.shared.u32 %r6, [%r4+128];\nst.global.u32 [%rd2+128], %r6;\n"
    )
    problem, out = run(library, WAIT + copy + "cp.async.wait_group 1;\n" + read + STORE)
    assert problem == ""
    squares = np.arange(32) ** 2
    assert np.array_equal(out, np.concatenate([squares, np.where(np.arange(32) % 4 == 0, squares, 0)]))
    problem, _ = run(library, WAIT + copy + "cp.async.wait_group 2;\n" + read + STORE)
    assert "which a cp.async is on its way to" in problem
    assert "PTX line" in problem


def test_blocks_of_a_cluster_reach_each_other(library: PtxLibrary) -> None:
    barrier = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n"
    send = """
        mov.u32 %r6, %cluster_ctarank;
        xor.b32 %r7, %r6, 1;
        mapa.shared::cluster.u32 %r8, %r4, %r7;
        add.s32 %r9, %r6, %r1;
        st.shared::cluster.b32 [%r8], %r9;
        """
    receive = "ld.shared.u32 %r5, [%r4];\nmul.wide.u32 %rd3, %r6, 128;\nadd.s64 %rd2, %rd2, %rd3;\n" + STORE
    problem, out = run(library, WAIT + barrier + send + barrier + receive, cluster=2)
    assert problem == ""
    assert np.array_equal(out, np.concatenate([np.arange(32) + 1, np.arange(32)]))
    assert "before any cluster barrier" in run(library, WAIT + send + barrier + receive, cluster=2)[0]
    assert "block 1 of a cluster of 1" in run(library, WAIT + barrier + send + barrier + receive)[0]
    skipped = (
        WAIT + "mov.u32 %r6, %cluster_ctarank;\nsetp.eq.s32 %p2, %r6, 1;\n@%p2 bra $end;\n" + barrier + "$end:\nret;\n"
    )
    assert "warps wait at a barrier that others never reach" in run(library, skipped, cluster=2)[0]


FAULTS = {
    "misaligned": (WAIT + "ld.global.v2.u32 {%r5, %r6}, [%rd1+4];\n" + STORE, "which is not aligned"),
    "global": (WAIT + "ld.global.u32 %r5, [%rd1+128];\n" + STORE, "byte 128 of 'in', which has 128"),
    "write to an input": (WAIT + "st.global.u32 [%rd1], %r1;\nret;\n", "write to 'in', which is an input"),
    "shared": (WAIT + "st.shared.u32 [%r4+256], %r1;\nret;\n", "4 bytes of shared memory at byte 256 of 256"),
    "unwritten": (WAIT + "ld.shared.u32 %r5, [%r4];\n" + STORE, "which nothing was written to"),
    "before the wait": ("ld.global.u32 %r5, [%rd1];\n" + WAIT + STORE, "read of 'in' before griddepcontrol.wait"),
    "no wait": ("ret;\n", "the end of the kernel without griddepcontrol.wait"),
    "divergent shuffle": (
        WAIT + "@!%p1 bra $end;\nshfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, -1;\n$end:\n" + STORE,
        "lanes 0x0000ffff at PTX line",
    ),
    "divergent barrier": (WAIT + "@%p1 bra $end;\nbar.sync 0;\n$end:\nret;\n", "lanes of a warp are not together"),
    "inactive source": (WAIT + "@%p1 shfl.sync.idx.b32 %r5|%p2, %r1, 20, 31, 65535;\n" + STORE, "shfl from lane 20"),
    "unknown": ("mov.u32 %r5, %laneid;\nret;\n", "there is no register %laneid that is known"),
    "opcode": ("popc.b32 %r5, %r1;\nret;\n", "the instruction 'popc.b32' is not implemented"),
    "width": ("add.s32 %r5, %r1, %rd1;\nret;\n", "operand 3 has 8 bytes, where 'add.s32' takes 4"),
    "division": (WAIT + "div.s32 %r5, 1, %r1;\n" + STORE, "an integer division by zero"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported(fault: str, library: PtxLibrary) -> None:
    body, report = FAULTS[fault]
    assert report in run(library, body)[0]


def test_a_barrier_that_a_warp_never_reaches(library: PtxLibrary) -> None:
    body = WAIT + "setp.lt.s32 %p2, %r1, 32;\n@%p2 bra $end;\nbar.sync 0;\n$end:\nret;\n"
    problem, _ = run(library, body, threads=64)
    assert "warps wait at a barrier that others never reach" in problem
    assert "rank 0, warp 0: at its end" in problem
    assert "rank 0, warp 1: PTX line" in problem
