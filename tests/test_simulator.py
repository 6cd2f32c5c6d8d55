"""The SIMT simulator: planted faults are caught and named, correct kernels pass under every schedule."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from mobilevit_kernels import simt
from mobilevit_kernels.simt import Counters, SimulatorFault, _build

pytestmark = pytest.mark.skipif(not simt.status().available, reason=simt.status().reason)

# In the order of csrc/testing/planted.cu: name, what the message has to say (None: nothing is reported).
PLANTED = [
    ("none", None),
    # A reader that runs ahead of the writer meets memory that is not there yet, one that runs behind it meets a race.
    (
        "missing block barrier",
        r"planted.cu:\d+: warp \d lane \d+, block \(0, 0\): "
        r"(race on shared region 'ring'.*sync_block|"
        r".*'ring' byte \d+: read.*(nothing was written|before the copy_async))",
    ),
    (
        "wait dropped",
        r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: read before the copy_async_wait .*planted.cu",
    ),
    (
        "wait off by one",
        r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: read before the copy_async_wait .*planted.cu",
    ),
    (
        "slot reused too early",
        r"planted.cu:\d+: warp \d lane \d+.*(race on shared region 'ring'|'ring' byte \d+: read before)",
    ),
    (
        "skipped barrier",
        r"skipped barrier: .* warp 1 (all )?lanes.* left the kernel|"
        r"deadlock(.|\n)*warp 0 all lanes: waiting at sync_block",
    ),
    ("divergent barrier", r"planted.cu:\d+: warp \d lane \d+.*divergent barrier: .*planted.cu:\d+"),
    (
        "missing warp barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*"
        r"(race on shared region 'words'.*sync_warp|'words' byte \d+: read, but nothing)",
    ),
    (
        "missing warp barrier before ldmatrix",
        r"planted.cu:\d+: warp 0 lane \d+.*race on shared region 'rows'.*sync_warp",
    ),
    (
        "overlapping regions",
        r"planted.cu:\d+: warp 0 lane \d+.*'words' byte \d+: .*last written as region 'rows'.*overlap",
    ),
    ("shared out of bounds", r"planted.cu:\d+: warp 0 lane 31.*'words' out of bounds: bytes 128 … 131 of 128"),
    ("uninitialised shared", r"planted.cu:\d+: warp 0 lane \d+.*'rows' byte \d+: read, but nothing was written"),
    ("global read out of bounds", r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'in' out of bounds: .* of 1024"),
    ("global write out of bounds", r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'out' out of bounds: .* of 1024"),
    ("misaligned", r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'in' misaligned: 8 bytes"),
    ("two blocks, one output", r"planted.cu:\d+: warp 0 lane \d+, block \(1, 0\): race on global buffer 'out'"),
    ("divergent shuffle", r"divergence: lane \d+ is at \w+ here while lane \d+ waits at"),
    (
        "unwritten global",
        r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'out' byte \d+: read, but nothing was written",
    ),
    ("write to input", r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'in' is an input and is written"),
    (
        "early exit",
        r"deadlock(.|\n)*warp 0 lanes? 0-6 8-31: waiting at shuffle_xor \(planted.cu:\d+\)"
        r"(.|\n)*lanes? 7: left the kernel",
    ),
    ("write under copy", r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: written while .*copy_async"),
    (
        "read before earlier launches",
        r"planted.cu:\d+: warp \d lane \d+.*global buffer 'in' byte \d+: read before wait_for_earlier_launches",
    ),
    ("no wait for earlier launches", r"warp \d lane \d+.*left the kernel without wait_for_earlier_launches"),
    (
        "missing cluster barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*(race on shared region '(in|out)box'.*sync_cluster\(\) between"
        r"|'(in|out)box' byte \d+: read, but nothing was written)",
    ),
    (
        "missing first cluster barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*'inbox' of block [01]: accessed before the first sync_cluster",
    ),
    (
        "remote write without a barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*race on shared region 'inbox' byte \d+: written here and by block [01] "
        r"warp 0 lane \d+ at planted.cu:\d+, no sync_cluster\(\) between",
    ),
    ("remote out of bounds", r"planted.cu:\d+: warp 0 lane \d+.*'inbox' out of bounds: bytes \d+ … \d+ of 256"),
    ("remote rank out of bounds", r"planted.cu:\d+: warp 0 lane \d+.*'outbox' of block 2: the cluster has 2"),
    ("remote uninitialised", r"planted.cu:\d+: warp 0 lane \d+.*'inbox' byte \d+: read, but nothing was written"),
    ("remote read under copy", r"planted.cu:\d+: warp 0 lane \d+.*'outbox' byte \d+: read before the copy_async_wait"),
    (
        "skipped cluster barrier",
        r"skipped barrier: .* sync_cluster\(\) and block 1 warp 0 (all )?lanes.* left the kernel|"
        r"deadlock(.|\n)*block 0 warp 0 all lanes: waiting at sync_cluster(.|\n)*block 1 .*: left the kernel"
        r"(.|\n)*in the cluster from block \(0, 0\) on",
    ),
    (
        "divergent cluster barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*divergent barrier: this thread is at sync_cluster\(\) here while block [01] "
        r"warp 0 lane \d+ waits at the one in planted.cu:\d+",
    ),
    (
        "block leaves early",
        r"planted.cu:\d+: (block [01] of the cluster accesses shared memory of block [01], which leaves the kernel|"
        r"warp 0 .*'outbox' of block [01]: accessed, but the block has left the kernel)",
    ),
    (
        "global exchange without a barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*global buffer 'out' byte \d+: (read, but nothing was written|"
        r"(read|written) here(,| and) (read|written) by block [01], no sync_cluster\(\) between)",
    ),
    (
        "global overwrite without a barrier",
        r"planted.cu:\d+: warp 0 lane \d+.*race on global buffer 'out' byte \d+: (read|written) here(,| and) "
        r"(read|written) by block [01], no sync_cluster\(\) between",
    ),
    (
        "wgmma of what was not published",
        r"planted.cu:\d+: warp \d lane \d+.*'(left|right)' byte \d+: read by wgmma, but warp \d lane \d+ has not "
        r"called publish_matrices\(\) since its write at planted.cu:\d+",
    ),
    ("wgmma without a fence", r"planted.cu:\d+: warp \d lane \d+.*wgmma: no wgmma_fence\(\) since"),
    ("wgmma without a commit", r"planted.cu:\d+: warp \d lane \d+.*wgmma_wait\(\) without a wgmma_commit\(\)"),
    ("wgmma without a wait", r"planted.cu:\d+: warp \d lane \d+.*left the kernel while a wgmma is under way"),
    (
        "operand of wgmma overwritten",
        r"planted.cu:\d+: warp \d lane \d+.*('right' was overwritten before this wait for the wgmma at line \d+"
        r"|race on shared region 'right')",
    ),
    (
        "fragment of wgmma overwritten",
        r"planted.cu:\d+: warp \d lane \d+.*lane \d+ overwrote its fragment of A before this wait for the wgmma",
    ),
    ("wgmma misaligned", r"planted.cu:\d+: warp \d lane \d+.*cores of 'left' at byte \d+ in steps of 128 and 1024"),
    ("wgmma out of bounds", r"planted.cu:\d+: warp \d lane \d+.*'left' out of bounds: bytes \d+ … \d+ of 2048"),
    ("wgmma by part of a warpgroup", r"planted.cu:\d+: warp \d lane \d+.*whole warpgroups of 128 .* has 96 threads"),
    (
        "bulk copy read before the wait",
        r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: read before the barrier_wait",
    ),
    (
        "bulk copy read after another's wait",
        r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: (read before the barrier_wait for the copy_bulk at|"
        r"(copied to|written|read) (here|while).*(copy_bulk at planted.cu:\d+, no barrier_wait|read by warp))",
    ),
    ("bulk copy of more than announced", r"planted.cu:\d+: warp 0 lane 0.*of 256 bytes to a barrier that expects 240"),
    (
        "bulk copy of less than announced",
        r"deadlock(.|\n)*waiting at barrier_wait \(planted.cu:\d+\) for 0 of 1 arrivals and 16 bytes",
    ),
    ("bulk copy of an odd size", r"planted.cu:\d+: warp 0 lane 0.*copy_bulk of 248 bytes: expected a multiple of 16"),
    (
        "bulk copy to a slot that is read",
        r"planted.cu:\d+: warp \d lane \d+.*'ring' byte \d+: (read before the barrier_wait for|"
        r"(read|written) here.*(no barrier_wait|read by (warp|lane)))",
    ),
    ("bulk copy left under way", r"the block left the kernel while a copy_bulk is under way"),
    ("barrier without init", r"planted.cu:\d+: warp \d lane \d+.*byte 1552 of shared memory is no barrier"),
    ("barrier not published", r"planted.cu:\d+: warp 0 lane 0.*no publish_barriers\(\) since the barrier's init"),
    (
        "barrier used before a block barrier",
        r"planted.cu:\d+: warp \d lane \d+.*(no sync_block\(\) since warp 0 lane 0 initialised|is no barrier that was)",
    ),
    (
        "arrival missing",
        r"deadlock(.|\n)*warp \d all lanes: waiting at barrier_wait \(planted.cu:\d+\) for 1 of 8 arrivals and 0 bytes",
    ),
    ("one arrival too many", r"planted.cu:\d+: warp 0 lane 0.*barrier_arrive: arrival 2 in a phase that 1 end"),
    (
        "arrival without a warp barrier",
        r"planted.cu:\d+: warp \d lane \d+.*race on shared region 'handed' byte \d+: read here, written by warp",
    ),
    (
        "missing warpgroup barrier",
        r"planted.cu:\d+: warp \d lane \d+.*'handed' byte \d+: (read, but nothing was written|"
        r"(read|written) here,? (and|read|written) by)",
    ),
    (
        "skipped warpgroup barrier",
        r"planted.cu:\d+: warp \d lane \d+.*(divergent barrier: this thread is at sync_warpgroup|'handed' byte)",
    ),
    (
        "place that is not free",
        r"planted.cu:\d+: warp \d lane \d+.*'inbox' byte \d+: "
        r"(sent to here, read by block [01] warp \d at planted.cu:\d+, nothing between|sent to while the send of "
        r"planted.cu:\d+ is under way|read before the barrier_wait for the send at|read here, written by send at)",
    ),
    (
        "read of what is sent before the wait",
        r"planted.cu:\d+: warp 1 lane \d+.*'inbox' byte \d+: read(, but nothing was| before the barrier_wait| here)",
    ),
    (
        "send without a warp barrier",
        r"planted.cu:\d+: warp \d lane \d+.*'inbox' byte \d+: sent to here, read by block [01] warp \d at planted",
    ),
    ("more sent than announced", r"planted.cu:\d+: warp \d lane \d+.*4 bytes more were sent in this phase than its"),
    (
        "less sent than announced",
        r"deadlock(.|\n)*waiting at barrier_wait \(planted.cu:\d+\) for 0 of 2 arrivals and 4 bytes",
    ),
    (
        "two sends in a phase",
        r"planted.cu:\d+: warp \d lane 3.*'inbox' byte \d+: sent to twice in one phase, before at planted.cu",
    ),
    (
        "send to a barrier that is not ready",
        r"planted.cu:\d+: warp \d lane \d+.*(no sync_cluster\(\) since block [01] initialised the barrier|byte 512 of "
        r"block [01]'s shared memory is no barrier|no publish_barriers\(\) since)",
    ),
    ("wait that is not for the cluster", r"planted.cu:\d+: warp \d lane \d+.*which takes a barrier_wait_for_cluster"),
    ("bank conflicts", None),
]


def run_planted(fault: int, seed: int) -> Counters:
    library = simt.library()
    library.set_seed(seed)
    library.reset_counters()
    source = torch.arange(256, dtype=torch.int32)
    target = torch.full((256,), -1, dtype=torch.int32)
    arguments = [fault, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(target.data_ptr())]
    library.run_raw("mvk_planted", arguments, {"in": source}, {"out": target})
    return library.counters()


@pytest.mark.parametrize("fault", range(1, len(PLANTED)), ids=[name.replace(" ", "_") for name, _ in PLANTED[1:]])
def test_a_planted_fault_is_named_under_every_schedule(fault: int) -> None:
    message = PLANTED[fault][1]
    if message is None:
        pytest.skip("shown by a counter, not by a report")
    for seed in range(10):
        with pytest.raises(SimulatorFault, match=message):
            run_planted(fault, seed)


def test_correct_kernels_pass_under_100_schedules() -> None:
    expected = run_planted(0, 0)
    for seed in range(1, 100):
        assert run_planted(0, seed) == expected  # the counters do not depend on the schedule either


def test_counters_of_a_known_kernel() -> None:
    counted = run_planted(0, 0)
    assert counted.blocks == 2 + 2 + 2 + 1 + 1 + 2
    # Ring: 2 blocks × 64 threads × 4 copies of 16 bytes; exchange: 2 blocks × 32 lanes × 4 bytes; cluster: the same
    # twice; wgmma: 128 threads × 4 bytes; barrier: four bulk copies of 256 bytes; send: 2 blocks × 64 threads × 4.
    assert counted.global_read_bytes == 2 * 64 * 4 * 16 + 3 * 2 * 32 * 4 + 128 * 4 + 4 * 256 + 2 * 64 * 4
    assert counted.global_write_bytes == 2 * 64 * 4 + 3 * 2 * 32 * 4 + 32 * 4 + 32 * 4
    assert counted.global_write_sectors == (2 * 64 + 3 * 2 * 32 + 32 + 32) * 4 // 32
    # Two lanes fetch the same 16 bytes, which lie 64 bytes apart: 16 sectors a warp and copy.
    assert counted.global_read_sectors == 2 * 2 * 4 * 16 + 3 * 2 * 4 + 16 + 4 * 8 + 2 * 2 * 4
    assert counted.block_barriers == 2 * 9 + 2 + 1
    assert counted.warp_barriers == 2 * 3 + 8 * 5 + 2 * 2 * 3 * 2
    assert counted.warpgroup_barriers == 2 * 2
    assert counted.bulk_copies == 4
    assert counted.bulk_copy_bytes == 4 * 256
    assert counted.shuffles == 2
    assert counted.matrix_load_wavefronts == 2 * 4
    assert counted.cluster_barriers == 4 + 1
    assert counted.remote_read_bytes == 2 * 32 * 4
    assert counted.remote_write_bytes == 2 * 32 * 4 + 2 * 64 * 3 * 4
    assert counted.wgmma_m16n8k16 == 2 * 4 * 2  # 2 products × 4 warps × 16 columns
    assert counted.wgmma_shared_bytes == 64 * 16 * 2 + 2 * 16 * 16 * 2


def test_bank_conflicts_show_in_the_counter() -> None:
    assert run_planted(0, 0).matrix_load_conflicts == 0
    # Rows 64 bytes apart: of eight rows four fall on the same banks, in each of the four matrices.
    assert run_planted(len(PLANTED) - 1, 0).matrix_load_conflicts == 2 * 4 * 3


def test_faults_leave_the_simulator_usable() -> None:
    expected = run_planted(0, 3)
    with pytest.raises(SimulatorFault):
        run_planted(1, 3)
    assert run_planted(0, 3) == expected


def test_memory_that_nobody_registered_is_refused() -> None:
    source = torch.zeros(256, dtype=torch.int32)
    arguments = [0, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(source.data_ptr() + (1 << 30))]
    with pytest.raises(SimulatorFault, match="no registered buffer"):
        simt.library().run_raw("mvk_planted", arguments, {"in": source}, {})


SANITIZED = """
import ctypes, sys
from pathlib import Path
import torch
from mobilevit_kernels.simt import SimtLibrary, SimulatorFault, _build
library = SimtLibrary(_build.build(sanitize=True))
source, target = torch.arange(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
for fault in (0, 1, 5, 0):
    arguments = [fault, ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(target.data_ptr())]
    try:
        library.run_raw("mvk_planted", arguments, {"in": source}, {"out": target})
    except SimulatorFault:
        assert fault != 0
from mobilevit_kernels import simt
simt.library = lambda: library
from mobilevit_kernels import ops
from mobilevit_kernels.verify import StageCase
for case in (
    StageCase("inverted_residual", (24, 40, 24), (1, 24, 9, 7)),  # the row kernel
    StageCase("inverted_residual", (24, 40, 48), (1, 24, 9, 7), {"stride": 2}),
    StageCase("inverted_residual", (24, 40, 40), (1, 24, 9, 7)),  # the tile kernel
    StageCase("inverted_residual", (24, 40, 40), (1, 24, 9, 7), {"stride": 2}),
    StageCase("conv3x3", (40, 24), (1, 40, 9, 7)),
    StageCase("head", (24, 40, 5), (2, 24, 9, 8)),
    StageCase("stem", (3, 24), (1, 3, 19, 70)),
):
    x, weights, options = case.build()
    getattr(ops, case.stage)(x.half(), weights, **options, backend="simt")
print("clean")
"""


def test_sanitizers_find_nothing() -> None:
    """The simulator and a whole stage under AddressSanitizer and UBSan, in a process that preloads libasan."""
    compiler = (_build.find_compiler() or "g++").split()[0]
    preload = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(preload):
        pytest.skip("this compiler comes without libasan")
    # With the C++ library beside it: AddressSanitizer looks for __cxa_throw before anything loads it.
    runtime = subprocess.run(
        [compiler, "-print-file-name=libstdc++.so.6"], capture_output=True, text=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{preload} {runtime}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:exitcode=1",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
    }
    done = subprocess.run([sys.executable, "-c", SANITIZED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "clean" in done.stdout
