"""Golden tests of the primitives in csrc/common, on the simulator and on a GPU.

Kernels, packing and simulator share one understanding of the fragment layouts; the formulas here are written from the
PTX ISA's figures again, and the hardware has the last word.
"""

from __future__ import annotations

import ctypes

import numpy as np
import ptx_extension
import pytest
import torch

from mobilevit_kernels import registry, simt

INPUTS, OUTPUTS = 12, 4  # words a lane, as in csrc/testing/testing.h

# "ptx": what nvcc makes of the GPU's bodies, interpreted (tests/ptx_extension.py).
on_devices = pytest.mark.parametrize("backend", ["simt", "ptx", pytest.param("cuda", marks=pytest.mark.gpu)])


def golden(backend: str, name: str, words: np.ndarray) -> np.ndarray:
    """Runs the primitive test ``name``: (warps, 32, INPUTS) words in, (warps, 32, OUTPUTS) words out."""
    problem = ptx_extension.obstacle() if backend == "ptx" else None
    if backend != "ptx" and not (status := registry.backends()[backend]).available:
        problem = status.reason
    if problem is not None:
        pytest.skip(f"{backend}: {problem}")
    warps = words.shape[0]
    source = torch.from_numpy(np.ascontiguousarray(words).view(np.int32))
    target = torch.full((warps, 32, OUTPUTS), -1, dtype=torch.int32)
    if backend == "simt":
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (source, target)]
        simt.library().run_raw("mvk_golden", [name.encode(), *pointers, warps], {"in": source}, {"out": target})
    elif backend == "ptx":
        library = ptx_extension.library()
        with library.reach([("in", source)], {"out": target}):
            library.extension.golden(0, 0, name, source.data_ptr(), target.data_ptr(), warps)
    else:
        source, target = source.cuda(), target.cuda()
        stream = torch.cuda.current_stream().cuda_stream
        registry.load("cuda").library().extension.golden(0, stream, name, source.data_ptr(), target.data_ptr(), warps)
    return target.cpu().numpy().view(np.uint32)


def inputs(warps: int = 1) -> np.ndarray:
    return np.zeros((warps, 32, INPUTS), dtype=np.uint32)


def to_bits16(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Values as 16-bit patterns in uint32."""
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16).astype(np.uint32)


def from_bits16(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(dtype).double().numpy()


def pairs(words: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """(…,) words → (…, 2) values, the low half first."""
    return np.stack([from_bits16(words & 0xFFFF, dtype), from_bits16(words >> 16, dtype)], axis=-1)


def a_place(lane: int, reg: int, half: int) -> tuple[int, int]:
    """(row, column) of A held in a half of a register: figure "m16n8k16 A" (and m16n8k8, registers 0 and 1)."""
    row = lane // 4 if reg % 2 == 0 else lane // 4 + 8
    column = lane % 4 * 2 + half + (8 if reg >= 2 else 0)
    return row, column


def b_place(lane: int, reg: int, half: int) -> tuple[int, int]:
    """(row, column) of B: figure "m16n8k16 B"."""
    return lane % 4 * 2 + half + 8 * reg, lane // 4


def c_place(lane: int, index: int) -> tuple[int, int]:
    """(row, column) of C and D: figure "m16n8 C"."""
    return lane // 4 + (8 if index >= 2 else 0), lane % 4 * 2 + index % 2


@on_devices
@pytest.mark.parametrize(
    ("name", "depth", "dtype"),
    [
        ("mma_m16n8k16_float16", 16, torch.float16),
        ("mma_m16n8k16_bfloat16", 16, torch.bfloat16),
        ("mma_m16n8k8_float16", 8, torch.float16),
        ("mma_m16n8k8_bfloat16", 8, torch.bfloat16),
        ("mma_m16n8k16_half_sums", 16, torch.float16),
    ],
)
def test_mma(backend: str, name: str, depth: int, dtype: torch.dtype) -> None:
    """Every element of A, B and C weighs differently, so that no two places can be exchanged."""
    random = np.random.default_rng(0)
    # Small integers: every product and sum is exact in float16 and float32, in any order.
    a = random.integers(-3, 4, (16, depth)).astype(np.float32)
    b = random.integers(-3, 4, (depth, 8)).astype(np.float32)
    c = random.integers(-64, 64, (16, 8)).astype(np.float32)
    words = inputs()
    half_sums = name.endswith("half_sums")
    for lane in range(32):
        for reg in range(depth // 4):
            bits = to_bits16(np.array([a[a_place(lane, reg, half)] for half in (0, 1)]), dtype)
            words[0, lane, reg] = bits[0] | bits[1] << 16
        for reg in range(depth // 8):
            bits = to_bits16(np.array([b[b_place(lane, reg, half)] for half in (0, 1)]), dtype)
            words[0, lane, 4 + reg] = bits[0] | bits[1] << 16
        sums = np.array([c[c_place(lane, index)] for index in range(4)], dtype=np.float32)
        if half_sums:
            bits = to_bits16(sums, dtype)
            words[0, lane, 6:8] = bits[0::2] | bits[1::2] << 16
        else:
            words[0, lane, 6:10] = sums.view(np.uint32)
    out = golden(backend, name, words)[0]
    expected = a @ b + c
    for lane in range(32):
        values = pairs(out[lane, :2], dtype).flatten() if half_sums else out[lane].view(np.float32)
        for index in range(4):
            assert values[index] == expected[c_place(lane, index)], (lane, index)


@on_devices
@pytest.mark.parametrize("name", ["load_matrix_x4", "load_matrix_x4_transposed", "load_matrix_x2"])
def test_load_matrix(backend: str, name: str) -> None:
    rows = np.arange(32 * 8, dtype=np.uint32).reshape(32, 8)  # row l is stored by lane l
    words = inputs()
    words[0, :, :4] = rows[:, 0::2] | rows[:, 1::2] << 16
    out = golden(backend, name, words)[0]
    matrices = rows.reshape(4, 8, 8)
    if "transposed" in name:
        matrices = matrices.transpose(0, 2, 1)
    for lane in range(32):
        for matrix in range(2 if name.endswith("x2") else 4):
            low, high = matrices[matrix, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[lane, matrix] == low | high << 16, (lane, matrix)


@on_devices
def test_async_copy_fills_with_zeros(backend: str) -> None:
    words = inputs(2)
    words[:] = np.random.default_rng(1).integers(1, 2**32, words.shape, dtype=np.uint32)
    out = golden(backend, "async_copy", words)
    for lane in range(32):
        source = (lane + 1) % 32
        expected = words[:, source, :4] if source % 3 != 0 else 0
        assert (out[:, lane] == expected).all(), lane


@on_devices
def test_cluster_exchanges_shared_memory(backend: str) -> None:
    if backend == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    blocks = np.arange(8)
    words = inputs(8)  # two clusters of four
    words[:] = np.random.default_rng(3).integers(1, 2**28, words.shape, dtype=np.uint32)
    out = golden(backend, "cluster", words)
    writer = words[blocks // 4 * 4 + (blocks + 3) % 4]
    owner = words[blocks // 4 * 4 + (blocks + 2) % 4]
    four = writer[..., 0] ^ writer[..., 1] << 1 ^ writer[..., 2] << 2 ^ writer[..., 3] << 3
    assert np.array_equal(out[..., 0], four)
    assert np.array_equal(out[..., 1], writer[..., 4] ^ writer[..., 5] << 1 ^ writer[..., 6] << 2)
    assert np.array_equal(out[..., 2], owner[..., 7] ^ owner[..., 8] << 1 ^ owner[..., 9] << 2)
    assert (out[..., 3] == (blocks % 4 * 16 + 4)[:, None]).all()


@on_devices
def test_cluster_sends_to_barriers(backend: str) -> None:
    if backend == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    words = inputs(8)  # two clusters of four
    words[:] = np.random.default_rng(5).integers(0, 2**32, words.shape, dtype=np.uint32)
    out = golden(backend, "send", words)
    by_rank = words.reshape(2, 4, 32, 12)
    state = by_rank[..., 7].copy()
    for round_ in range(3):
        four, two, one = by_rank[..., :4].copy(), by_rank[..., 4:6].copy(), by_rank[..., 6] - state
        four[..., round_] ^= state
        two[..., 1] += state
        four, two, one = np.roll(four, 1, axis=1), np.roll(two, 2, axis=1), np.roll(one, 3, axis=1)
        state = state * 5 + (four[..., 0] ^ four[..., 1] << 1 ^ four[..., 2] << 2 ^ four[..., 3] << 3)
        state = state * 3 + (two[..., 0] ^ two[..., 1] << 1)
        state = state * 7 + one
    for i in range(4):
        assert np.array_equal(out[..., i].reshape(2, 4, 32), state + np.uint32(i))


@on_devices
def test_bulk_copies_and_barriers(backend: str) -> None:
    if backend == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("mbarriers need compute capability 9.0")
    words = inputs(16)  # two blocks of eight warps
    words[:] = np.random.default_rng(4).integers(0, 2**32, words.shape, dtype=np.uint32)
    out = golden(backend, "barriers", words).reshape(2, 8, 32, 4)
    blocks = words.reshape(2, 8, 32, 12)
    warps = np.arange(8, dtype=np.uint32)
    even, odd = np.zeros((2, 32), np.uint32), np.zeros((2, 32), np.uint32)
    exchanged = np.zeros((2, 8, 32), np.uint32)
    for round_ in range(3):
        slot = blocks[:, 2 * round_]
        even += slot[:, :, ::2].sum(-1, dtype=np.uint32)
        odd += np.roll(slot, -1, axis=1)[:, :, 1::2].sum(-1, dtype=np.uint32)
        exchanged = exchanged * np.uint32(3) + even[:, None] + (warps // 4 * 4 + (warps + 1) % 4)[None, :, None]
    assert np.array_equal(out[..., 0], np.broadcast_to(even[:, None], (2, 8, 32)))
    assert np.array_equal(out[..., 1], np.broadcast_to(odd[:, None], (2, 8, 32)))
    assert np.array_equal(out[..., 2], exchanged)


@on_devices
def test_shuffles(backend: str) -> None:
    words = inputs()
    words[0, :, 0] = np.arange(32) * 11 + 5
    out = golden(backend, "shuffle", words)[0]
    lanes = np.arange(32)
    sources = [lanes * 7 % 32, np.where(lanes < 3, lanes, lanes - 3), np.where(lanes > 26, lanes, lanes + 5), lanes ^ 9]
    for column, source in enumerate(sources):
        assert (out[:, column] == words[0, source, 0]).all(), column


def assert_relative(values: np.ndarray, exact: np.ndarray, bound: float) -> None:
    assert (np.abs(values - exact) <= bound * np.abs(exact)).all(), np.max(np.abs(values - exact) / np.abs(exact))


@on_devices
def test_approximate_functions_of_float32(backend: str) -> None:
    x = np.linspace(2.0**-6, 9.0, 32 * 64, dtype=np.float32).reshape(64, 32)
    words = inputs(64)
    words[..., 0] = x.view(np.uint32)
    out = golden(backend, "float_functions", words).view(np.float32).astype(np.float64)
    exact = x.astype(np.float64)
    assert_relative(out[..., 0], np.tanh(exact), 2.0**-10.9)
    assert_relative(out[..., 1], np.exp2(exact), 2.0**-21.5)
    assert_relative(out[..., 2], 1 / exact, 2.0**-22)
    assert_relative(out[..., 3], exact**-0.5, 2.0**-22)
    # A simulator without the approximations' errors would promise what the hardware may not keep: theirs is the
    # documented size, where an H200's is 1.0e-5 at most.
    if backend != "cuda":
        assert np.max(np.abs(out[..., 0] / np.tanh(exact) - 1)) > 2.0**-14


@on_devices
def test_approximate_functions_of_float16_pairs(backend: str) -> None:
    x = np.linspace(-6.0, 6.0, 2 * 32 * 32).astype(np.float32).reshape(32, 32, 2)
    words = inputs(32)
    bits = to_bits16(x, torch.float16)
    words[..., 0] = bits[..., 0] | bits[..., 1] << 16
    exact = pairs(words[..., 0], torch.float16)
    out = golden(backend, "half_functions", words)
    assert np.abs(pairs(out[..., 0], torch.float16) - np.tanh(exact)).max() <= 2.0**-10.9
    assert_relative(pairs(out[..., 1], torch.float16), np.exp2(exact), 2.0**-9.8)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_pair_arithmetic_rounds_once(backend: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(2)
    values = random.normal(size=(16, 32, 3, 2)).astype(np.float32)
    bits = to_bits16(values, dtype)
    words = inputs(16)
    words[..., :3] = bits[..., 0] | bits[..., 1] << 16
    floats = np.concatenate(
        [random.normal(size=500) * 10.0 ** random.uniform(-9, 6, 500), [65519.9, 65520.0, 0.0, -0.0]]
    )
    floats = np.resize(floats.astype(np.float32), (16, 32, 2))
    words[..., 3:5] = floats.view(np.uint32)
    out = golden(backend, f"pairs_{str(dtype).removeprefix('torch.')}", words)
    a, b, c = (torch.from_numpy(pairs(words[..., i], dtype)) for i in range(3))
    for column, exact in enumerate((a * b + c, a * b, a + b)):
        assert np.array_equal(pairs(out[..., column], dtype), exact.to(dtype).double().numpy()), column
    converted = to_bits16(floats, dtype)
    assert np.array_equal(out[..., 3], converted[..., 0] | converted[..., 1] << 16)


def c_matrix_place(thread: int, index: int) -> tuple[int, int]:
    """(row, column) of D: figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D"."""
    warp, lane = divmod(thread, 32)
    return 16 * warp + lane // 4 + 8 * (index // 2 % 2), 8 * (index // 4) + 2 * (lane % 4) + index % 2


@on_devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("a_from", ["shared", "registers"])
def test_wgmma(backend: str, a_from: str, transposed: bool, dtype: torch.dtype) -> None:
    """Every element of A, B and D has its place: core matrices, and the fragments of the four warps."""
    if backend == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip(f"wgmma is of compute capability 9.0, this is {torch.cuda.get_device_capability()}")
    random = np.random.default_rng(1)
    # Small integers: every product and sum is exact, in any order.
    a = random.integers(-3, 4, (64, 32)).astype(np.float32)
    b = random.integers(-3, 4, (32, 72)).astype(np.float32)
    d = random.integers(-64, 64, (64, 72)).astype(np.float32)
    image = np.full(5280, 0x7FFF, dtype=np.uint16)  # a NaN wherever nothing belongs
    for row in range(64):
        for k in range(32):
            image[row // 8 * 72 + k // 8 * 592 + row % 8 * 8 + k % 8] = to_bits16(a[row, k : k + 1], dtype)[0]
    for k in range(32):
        for column in range(72):
            inside = k % 8 * 8 + column % 8 if transposed else column % 8 * 8 + k % 8
            image[2368 + column // 8 * 80 + k // 8 * 728 + inside] = to_bits16(b[k, column : column + 1], dtype)[0]
    for adds in (0, 1):
        words = inputs(48).reshape(-1)
        words[:2640] = image.view(np.uint32)
        for thread in range(128):
            own = words[2640 + 44 * thread :]
            for step in range(2):
                for reg in range(4):
                    places = [a_place(thread % 32, reg, half) for half in (0, 1)]
                    values = [a[16 * (thread // 32) + row, 16 * step + column] for row, column in places]
                    bits = to_bits16(np.array(values, dtype=np.float32), dtype)
                    own[4 * step + reg] = bits[0] | bits[1] << 16
            own[8:44] = np.array([d[c_matrix_place(thread, i)] for i in range(36)], dtype=np.float32).view(np.uint32)
        words[2640 + 44 * 128] = adds
        name = f"wgmma_{a_from}{'_transposed' * transposed}_{str(dtype).removeprefix('torch.')}"
        out = golden(backend, name, words.reshape(48, 32, INPUTS)).reshape(-1)[: 128 * 36].view(np.float32)
        expected = a @ b + adds * d
        for thread in range(128):
            for index in range(36):
                place = c_matrix_place(thread, index)
                assert out[36 * thread + index] == expected[place], (adds, thread, index, place)
