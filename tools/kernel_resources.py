"""Registers, spills, shared memory and local-memory traffic in loops of every kernel, per architecture.

    python tools/kernel_resources.py            compiles csrc/*.cu and prints the table
    python tools/kernel_resources.py --write    … and writes csrc/resources.json, which the tests hold the kernels to

Needs nvcc, and nvdisasm and cuobjdump (the triton package has both). Dynamic shared memory depends on the shape and is
in ``mobilevit-kernels counters``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc" / "resources.json"
ARCHITECTURES = ("80", "90a", "100")


def find_tool(name: str) -> str | None:
    """A CUDA tool on the PATH or in the triton package."""
    if found := shutil.which(name):
        return found
    triton = importlib.util.find_spec("triton")
    for folder in (triton.submodule_search_locations or []) if triton else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return str(path)
    return None


def run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def short_name(mangled: str) -> str:
    """A readable name from a mangled one: ``inverted_residual float16 stride 2, 8 tiles, large`` (output tiles, tile of
    pixels), ``inverted_residual_cluster float16 stride 2, 16 tiles, chunks of 64`` (output tiles, hidden channels),
    ``inverted_residual_rows float16 stride 1, 64 → 64, 3 × 16 pixels, 8 warps`` (channels, a warp's step),
    ``transformer float16 144 channels, heads of 40, 256 rows a block``."""
    dtype = "float16" if "ConfigI6__half" in mangled else "bfloat16"
    if tile := re.search(r"InvertedResidualConfigI\w+?Li(\d+)ELi(\d+)ELb([01])ELb([01])E", mangled):
        stride, tiles, large, split = tile.groups()
        if split == "1":
            chunk = 64 if large == "1" else 32
            return f"inverted_residual_cluster {dtype} stride {stride}, {tiles} tiles, chunks of {chunk}"
        return f"inverted_residual {dtype} stride {stride}, {tiles} tiles, {'large' if large == '1' else 'small'}"
    if config := re.search(r"InvertedResidualRowsConfigI\w+?" + r"Li(\d+)E" * 7 + r"E+LNS_8RowsFormE(\d)E", mangled):
        stride, in_channels, out_channels, tiles, step_rows, warps, _, form = config.groups()
        of_form = ("", ", dealt", ", first pass", ", last pass")[int(form)]
        return (
            f"inverted_residual_rows {dtype} stride {stride}, {in_channels} → {out_channels}, "
            f"{step_rows} × {16 * int(tiles)} pixels, {warps} warps{of_form}"
        )
    if config := re.search(r"TransformerConfigI\w+?Li(\d+)ELi(\d+)ELi(\d+)ELi(\d+)ELb([01])E", mangled):
        dim, head_tiles, row_tiles, warps, padded = config.groups()
        size = f"{'up to ' if padded == '1' else ''}{dim} channels, heads of {8 * int(head_tiles)}"
        return f"transformer {dtype} {size}, {16 * int(row_tiles) * int(warps)} rows a block"
    if config := re.search(r"TransformerClusterConfigI\w+?" + r"Li(\d+)E" * 4 + r"Lb([01])E", mangled):
        dim, _, rows, groups, sends = config.groups()
        split = f"{groups} row group{'s' * (groups != '1')}" + ", sends" * (sends == "1")
        return f"transformer_cluster {dtype} {dim} channels, {rows} rows, {split}"
    if config := re.search(r"TransformerClusterLongConfigI\w+?Li(\d+)ELi\d+ELb([01])E", mangled):
        return f"transformer_cluster {dtype} {config[1]} channels, 256 rows" + ", sends" * (config[2] == "1")
    if config := re.search(r"TransformerWgmmaConfigI\w+?" + r"Li(\d+)E" * 3, mangled):
        dim, tokens, warpgroups = config.groups()
        return f"transformer_wgmma {dtype} {dim} channels, {tokens} tokens, {64 * int(warpgroups)} rows a block"
    if config := re.search(r"UnfoldAttentionFoldConfigI\w+?Li(\d+)E", mangled):
        return f"unfold_attention_fold {dtype} heads of {8 * int(config[1])}"
    if config := re.search(r"Conv3x3ConfigI\w+?Li(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E", mangled):
        sub_tiles, channel_warps, depth_groups, width = map(int, config.groups())
        return f"conv3x3 {dtype} {64 * sub_tiles} pixels, {8 * channel_warps * width} channels, depth {depth_groups}"
    if config := re.search(r"Conv3x3WgmmaConfigI\w+?Li(\d+)ELi(\d+)E", mangled):
        sub_tiles, width = map(int, config.groups())
        return f"conv3x3_wgmma {dtype} {128 * sub_tiles} pixels, {8 * width} channels"
    if config := re.search(r"HeadConfigI\w+?Li(\d+)ELi(\d+)ELb([01])E", mangled):
        groups, tiles, pool = config.groups()
        return f"head_features {dtype} {groups} groups, {32 * int(tiles)} channels, {'pool' if pool == '1' else 'map'}"
    if config := re.search(r"HeadClassifierConfigI\w+?Li(\d+)ELi(\d+)E", mangled):
        row_tiles, width = map(int, config.groups())
        return f"head_classifier {dtype} {16 * row_tiles} × {8 * width}"
    if config := re.search(r"StemConfigI(?:6__half|13__nv_bfloat16)(h|f|6__half|13__nv_bfloat16|S\d?_)E", mangled):
        image = {"h": "uint8", "f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
        return f"stem {dtype} from {image.get(config[1], dtype)}"
    if config := re.search(r"resize_kernelI(6__half|13__nv_bfloat16)E", mangled):
        return f"resize {'float16' if config[1] == '6__half' else 'bfloat16'}"
    return mangled


def local_accesses_in_loops(sass: str) -> int:
    """LDL and STL between the target of a backward branch and the branch."""
    labels: dict[str, int] = {}
    lines = sass.splitlines()
    for i, line in enumerate(lines):
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = i
    in_loop: set[int] = set()
    for i, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        # A branch to itself after EXIT pads the code; it is no loop.
        if branch and labels.get(branch[1], i) < i - 1:
            in_loop.update(range(labels[branch[1]], i))
    return sum(bool(re.search(r"\b(LDL|STL)\b", lines[i])) for i in in_loop)


def generic_accesses(sass: str) -> int:
    """Loads that do not know whether they go to global or to shared memory."""
    return len(re.findall(r"\bLD(?:\.\S+)? ", sass))


def serialized_products(sass: str) -> bool:
    """Whether each wgmma waits for itself, as ptxas makes it where registers are touched too early or too few."""
    count = {word: len(re.findall(rf"\b{word}\b", sass)) for word in ("HGMMA", "WARPGROUP.DEPBAR")}
    return 0 < count["HGMMA"] <= count["WARPGROUP.DEPBAR"]


def compile_all(architecture: str, scratch: Path) -> list[Path]:
    """The cubin of every csrc/*.cu that has kernels on the architecture."""
    nvcc = find_tool("nvcc")
    assert nvcc is not None
    absent = {"_cluster": int(architecture.rstrip("a")) < 90, "_wgmma": architecture != "90a"}
    cubins = []
    for source in sorted((ROOT / "csrc").glob("*.cu")):
        cubin = scratch / f"{source.stem}.cubin"
        gencode = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        run(nvcc, "-std=c++17", "-O3", gencode, '-DMVK_ARCHITECTURES=""', "-cubin", "-o", str(cubin), str(source))
        if not any(part in source.stem and is_absent for part, is_absent in absent.items()):  # else a return at once
            cubins.append(cubin)
    return cubins


def built_library(architecture: str) -> Path | None:
    """The installed extension, where it is built for the architecture from the sources as they are."""
    spec = importlib.util.find_spec("mobilevit_kernels._C")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin)
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    if library.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        return None
    architectures: str = importlib.import_module("mobilevit_kernels._C").architectures
    return library if architecture in architectures.split("/") else None


def extract_all(library: Path, architecture: str, scratch: Path) -> list[Path]:
    """The cubins in a library."""
    cuobjdump = find_tool("cuobjdump")
    assert cuobjdump is not None
    run(cuobjdump, "-xelf", "all", str(library), folder=scratch)
    return sorted(scratch.glob(f"*.sm_{architecture}.cubin"))


def measure(architecture: str, library: Path | None = None) -> dict[str, dict[str, int]]:
    """The figures of every kernel for one architecture, out of ``library`` or, without one, compiled from csrc/*.cu."""
    rows: dict[str, dict[str, int]] = {}
    nvdisasm, cuobjdump = find_tool("nvdisasm"), find_tool("cuobjdump")
    if find_tool("nvcc") is None or nvdisasm is None or cuobjdump is None:
        raise RuntimeError("nvcc, nvdisasm and cuobjdump are needed")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        cubins = compile_all(architecture, scratch) if library is None else extract_all(library, architecture, scratch)
        for cubin in map(str, cubins):
            usages = run(cuobjdump, "--dump-resource-usage", cubin)
            if "golden_" in usages:
                continue  # of csrc/testing
            for name, usage in re.findall(r"Function (\w+):\n\s*(.*)", usages):
                figures = dict(re.findall(r"(\w+):(\d+)", usage))
                rows[short_name(name)] = {
                    "registers": int(figures["REG"]),
                    "stack_bytes": int(figures["STACK"]),
                    "static_shared_bytes": int(figures["SHARED"]),
                }
            for section in re.split(r"(?=\.section\s+\.text\.)", run(nvdisasm, "-c", cubin))[1:]:
                name = re.match(r"\.section\s+\.text\.(\w+)", section)
                assert name is not None
                rows[short_name(name[1])]["local_accesses_in_loops"] = local_accesses_in_loops(section)
                if generic_accesses(section):
                    raise RuntimeError(f"{short_name(name[1])}: generic loads, by a pointer whose memory is not known")
                if serialized_products(section):
                    raise RuntimeError(f"{short_name(name[1])}: each wgmma waits for itself; ptxas's note says why")
    return dict(sorted(rows.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    table = {f"sm_{architecture}": measure(architecture) for architecture in ARCHITECTURES}
    for architecture, rows in table.items():
        for name, figures in rows.items():
            print(f"{architecture:8} {name:70} " + "  ".join(f"{key} {value}" for key, value in figures.items()))
    if arguments.write:
        TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {TABLE}", file=sys.stderr)


if __name__ == "__main__":
    main()
