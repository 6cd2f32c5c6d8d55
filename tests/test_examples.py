"""The programs under examples/: what they write and answer, on the CPU, with a network whose classes mean something."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from stock import timm_model

import mobilevit_kernels as mvk
from mobilevit_kernels.images import read_image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
WAIT_S = 120  # for a program to start or to end, on a machine with other work

sys.path.insert(0, str(EXAMPLES))


def example(name: str) -> ModuleType:
    """An example as a module; the test is skipped where a package that it needs is missing."""
    for package in {"serve": ["fastapi", "uvicorn"], "ray_classify": ["ray.data"], "segment": ["transformers"]}.get(
        name, []
    ):
        pytest.importorskip(package)
    return importlib.import_module(name)


def call(name: str, *arguments: object) -> tuple[int, str]:
    """Runs an example in this process: (exit code, what it printed)."""
    result = CliRunner().invoke(example(name).main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def start(name: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Starts an example as a program."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env.update(options.pop("env", {}))
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE, start_new_session=True, **options)


def picture(index: int, height: int, width: int) -> np.ndarray:
    """Colours that run across the picture, with some noise: uint8 (height, width, 4)."""
    rng = np.random.default_rng(index)
    corners = rng.integers(0, 256, (4, 2))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    mixed = corners[:, 0] * (1 - y) * (1 - x) + corners[:, 1] * y + corners[::-1, 0] * (1 - y) * x
    return (mixed + rng.integers(-20, 21, (height, width, 4))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of odd sizes and kinds, a broken one, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub, folder").mkdir()
    for index, (name, height, width, mode) in enumerate(
        [
            ("a.jpg", 300, 401, "RGB"),
            ("b.PNG", 97, 513, "RGB"),
            ("d.jpeg", 31, 33, "RGB"),
            ("e.bmp", 256, 256, "RGB"),
            ("sub, folder/grey.png", 120, 91, "L"),
            ("sub, folder/rgba.png", 284, 290, "RGBA"),
            ("sub, folder/palette.gif", 64, 65, "P"),
        ]
    ):
        pixels = Image.fromarray(picture(index, height, width))
        pixels.convert(mode).save(folder / name)
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("no image\n")
    return folder


NAMES = [
    "a.jpg", "b.PNG", "c.jpg", "d.jpeg", "e.bmp",
    "sub, folder/grey.png", "sub, folder/palette.gif", "sub, folder/rgba.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm weights for the XXS model whose classes differ between the images of ``folder``."""
    model: Any = timm_model("mobilevit_xxs")
    images = torch.stack([read_image(folder / name) for name in NAMES if name != "c.jpg"])
    with torch.no_grad():
        model.head.fc.bias -= model(images.permute(0, 3, 1, 2) / 255).mean(0)
        model.head.fc.weight *= 20
        model.head.fc.bias *= 20
    path = tmp_path_factory.mktemp("weights") / "xxs.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path, checkpoint: Path) -> dict[str, tuple[list[float], list[int]]]:
    """The three best probabilities and their classes of each image, one by one."""
    network = mvk.load("mobilevit_xxs", checkpoint, normalize=((0, 0, 0), (1, 1, 1)))
    results = {}
    for name in NAMES:
        if name != "c.jpg":
            with torch.inference_mode():
                best = network(read_image(folder / name).unsqueeze(0)).softmax(-1)[0].topk(3)
            results[name] = (best.values.tolist(), best.indices.tolist())
    assert len({tuple(classes) for _, classes in results.values()}) > 3, "the images must differ for the tests to tell"
    return results


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_rows(rows: list[dict[str, str]], expected: dict[str, tuple[list[float], list[int]]]) -> None:
    assert [row["path"] for row in rows] == NAMES
    for row in rows:
        if row["path"] == "c.jpg":
            assert row["error"].startswith("cannot be read as an image (")
            assert row["class_1"] == row["probability_1"] == ""
            continue
        probabilities, classes = expected[row["path"]]
        assert row["error"] == ""
        assert [int(row[f"class_{i}"]) for i in (1, 2, 3)] == classes
        assert [float(row[f"probability_{i}"]) for i in (1, 2, 3)] == pytest.approx(probabilities, abs=2e-5)


def network_options(checkpoint: Path) -> tuple[object, ...]:
    return ("--model", "mobilevit_xxs", "--checkpoint", checkpoint, "--top", 3)


# classify_folder


def test_classify_folder(folder: Path, checkpoint: Path, expected: Any, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    output = tmp_path / "new folder" / "results.csv"
    options = (*network_options(checkpoint), "--batch", 3, "--workers", 0, "--device", "cpu")
    code, printed = call("classify_folder", folder, output, *options)
    assert code == 0
    assert "8 of 8 images to do" in printed
    assert "8 images, 1 of them unreadable" in printed
    rows = read_rows(output)
    check_rows(rows, expected)
    assert rows[0]["name_1"]
    assert {row["weights"] for row in rows} == {f"mobilevit_xxs, {checkpoint}"}
    content = output.read_bytes()
    code, printed = call("classify_folder", folder, output, *options)
    assert code == 0
    assert "0 of 8 images to do" in printed
    assert output.read_bytes() == content


def test_classify_folder_with_random_weights_names_no_class(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.csv"
    code, printed = call("classify_folder", folder, output, "--model", "mobilevit_xxs", "--workers", 0, "--top", 1)
    assert code == 0
    assert "random weights" in printed
    assert list(read_rows(output)[0]) == ["path", "class_1", "probability_1", "error", "weights"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_classify_folder_goes_on_after_a_kill(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    pictures = {f"{i}.png": Image.fromarray(picture(i, 60 + i, 70)).convert("RGB") for i in range(8)}
    for name, image in pictures.items():
        image.save(images / name)
    options = (*network_options(checkpoint), "--batch", 2, "--device", "cpu")
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert call("classify_folder", images, whole, *options, "--workers", 0)[0] == 0

    # A pipe that nobody writes to holds up the third batch, so that the kill finds the job half done.
    pipe = images / "5.png"
    pipe.unlink()
    os.mkfifo(pipe)
    process = start("classify_folder", images, killed, *options, "--workers", 1)
    try:
        deadline = time.monotonic() + WAIT_S
        while not killed.exists() or killed.read_bytes().count(b"\n") < 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no rows after a long while"
            time.sleep(0.05)
        process.kill()
        assert process.wait(WAIT_S) == -signal.SIGKILL
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the worker hangs in the pipe
        process.communicate()
    pipe.unlink()
    pictures["5.png"].save(pipe)
    partial = killed.read_bytes()
    assert 3 <= partial.count(b"\n") < 9
    assert whole.read_bytes().startswith(partial)

    code, printed = call("classify_folder", images, killed, *options, "--workers", 0)
    assert code == 0
    assert f"{9 - partial.count(bytes([10]))} of 8 images to do" in printed
    assert killed.read_bytes() == whole.read_bytes()


def test_classify_folder_cuts_off_a_torn_row(tmp_path: Path) -> None:
    module = example("classify_folder")
    header = ["path", "class_1", "probability_1", "error", "weights"]
    lines = [",".join(header), "a.png,1,0.5,,w", '"b, ""x"".png",,,broken,w', '"c\nd.png",2,0.5,,w', "ü.png,3,0.5,,w"]
    paths = ["a.png", 'b, "x".png', "c\nd.png", "ü.png"]
    ends = [len("".join(f"{line}\n" for line in lines[:i]).encode()) for i in range(len(lines) + 1)]
    content = "".join(f"{line}\n" for line in lines).encode()
    output = tmp_path / "results.csv"
    for cut in range(len(content) + 1):
        output.write_bytes(content[:cut])
        whole = max(i for i, end in enumerate(ends) if end <= cut)
        assert module.finished_paths(output, header, "w") == set(paths[: max(0, whole - 1)]), cut
        assert output.read_bytes() == content[: ends[whole]], cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("other,columns\n1,2\n", "has other columns"),
        ("x", "has other columns"),
        ("path,error,weights\na,,other\n", "has results of other, not of w"),
        ("path,error,weights\na\nb,,w\n", "row 1 of "),
    ],
)
def test_classify_folder_leaves_other_files_alone(tmp_path: Path, content: str, message: str) -> None:
    import click

    module = example("classify_folder")
    output = tmp_path / "results.csv"
    output.write_text(content)
    with pytest.raises(click.UsageError, match=message):
        module.finished_paths(output, ["path", "error", "weights"], "w")
    assert output.read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint {folder}/notes.txt", "notes.txt"),
        ("--device nonsense", "--device: 'nonsense' cannot be used"),
        ("--backend cuda --device cpu", "cuda"),
        ("--batch 0", "--batch"),
        ("--device cpu --graph", "CUDA graphs need"),
    ],
)
def test_wrong_arguments(folder: Path, tmp_path: Path, options: str, message: str) -> None:
    arguments = options.format(folder=folder).split()
    code, printed = call("classify_folder", folder, tmp_path / "x.csv", "--model", "mobilevit_xxs", *arguments)
    assert code == 2
    assert message in printed
    assert not (tmp_path / "x.csv").exists()


def test_a_folder_without_images(tmp_path: Path) -> None:
    code, printed = call("classify_folder", tmp_path, tmp_path / "x.csv", "--model", "mobilevit_xxs")
    assert code == 2
    assert "expected images below" in printed


@pytest.mark.gpu
def test_classify_folder_on_a_gpu(folder: Path, checkpoint: Path, expected: Any, tmp_path: Path) -> None:
    for options in ((), ("--graph",)):
        output = tmp_path / f"results{len(options)}.csv"
        code, _ = call(
            "classify_folder", folder, output, *network_options(checkpoint), *options,
            "--batch", 3, "--workers", 2, "--device", "cuda",
        )  # fmt: skip
        assert code == 0
        for row in read_rows(output):
            if not row["error"]:
                assert float(row["probability_1"]) == pytest.approx(expected[row["path"]][0][0], abs=0.05)


# images


def test_read_image_refuses_what_would_not_fit_into_memory() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2000)).save(file, "png")
    with pytest.raises(
        ValueError, match=r"image: expected a longer side of at most 100 times the shorter, got 2 × 2000"
    ):
        read_image(file)
    with pytest.raises(ValueError, match=r"expected at most 1000 pixels, got 2 × 2000"):
        read_image(file, max_pixels=1000)


def test_read_image_sizes(folder: Path) -> None:
    assert read_image(str(folder / "a.jpg")).shape == (256, 256, 3)
    assert read_image(folder / "b.PNG", size=64, short_side=64).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="short_side: expected at least size = 64, got 63"):
        read_image(folder / "b.PNG", size=64, short_side=63)


# segment


@pytest.mark.parametrize("pretrained", [False, True])
def test_segment(folder: Path, tmp_path: Path, pretrained: bool) -> None:
    pytest.importorskip("matplotlib")
    module = example("segment")
    options: list[object] = ["--model", "mobilevit_xxs"]
    if pretrained:
        module.stock_model("mobilevit_xxs", None).save_pretrained(tmp_path / "model")
        options = ["--pretrained", tmp_path / "model", "--image", folder / "a.jpg"]
    output = tmp_path / "plots" / "maps.png"
    code, printed = call("segment", *options, "--size", 96, "--rounds", 1, "--device", "cpu", "--output", output)
    assert code == 0, printed
    assert ("random weights" in printed) is not pretrained
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if " % " in line}
    assert set(rows) == {"stock", "optimize", "replace_blocks"}
    for name in ("optimize", "replace_blocks"):
        assert 0 < float(rows[name][1]) < 1e-4
        assert float(rows[name][2]) > 99
    assert "replace_blocks: 7 blocks replaced, 0 left" in printed
    with Image.open(output) as image:
        assert image.size[0] > 1000


def test_segment_says_that_maps_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    module = example("segment")
    right = module.fused_models

    def broken(*arguments: Any) -> Any:
        models, report = right(*arguments)
        models["optimize"] = module.stock_model("mobilevit_xxs", None)  # with the class biases that were balanced away
        return models, report

    monkeypatch.setattr(module, "fused_models", broken)
    code, printed = call(
        "segment", "--model", "mobilevit_xxs", "--size", 96, "--rounds", 1, "--device", "cpu",
        "--output", tmp_path / "maps.png",
    )  # fmt: skip
    assert code == 1
    assert "the maps differ" in printed
    assert "withheld" in printed


@pytest.mark.gpu
def test_segment_on_a_gpu(tmp_path: Path) -> None:
    code, printed = call("segment", "--size", 256, "--device", "cuda", "--output", tmp_path / "maps.png")
    assert code == 0, printed


# serve


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(index, 50, 60)).convert("RGB").save(file, "png")
    return file.getvalue()


class Server:
    """serve.py as a program of its own on a free port."""

    def __init__(self, *arguments: object) -> None:
        example("serve")
        self.httpx = pytest.importorskip("httpx")
        self.process = start("serve", "--port", 0, "--device", "cpu", *arguments)
        self.log: list[str] = []
        self.url = ""
        ready = threading.Event()

        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.log.append(line)
                if found := re.search(r"running on (http://127.0.0.1:\d+)", line):
                    self.url = found[1]
                    ready.set()
            ready.set()

        self._reader = threading.Thread(target=read)
        self._reader.start()
        if not ready.wait(WAIT_S) or not self.url:
            self.stop()
            pytest.fail("".join(self.log))

    def post(self, body: bytes, **options: Any) -> Any:
        return self.httpx.post(f"{self.url}/classify", content=body, timeout=WAIT_S, **options)

    def get(self, path: str) -> Any:
        return self.httpx.get(f"{self.url}{path}", timeout=WAIT_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks the server to end, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()
            self._reader.join()


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Server]:
    server = Server(
        *network_options(checkpoint), "--max-batch", 4, "--max-wait-ms", 300, "--queue", 6, "--max-body-mb", 0.5
    )
    yield server
    server.stop()


def test_serve_forms_batches(server: Server, checkpoint: Path) -> None:
    before = server.get("/stats").json()
    bodies = [png(i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(server.post, bodies))
    assert [answer.status_code for answer in answers] == [200] * 6
    network = mvk.load("mobilevit_xxs", checkpoint, normalize=((0, 0, 0), (1, 1, 1)))
    seen = set()
    for body, answer in zip(bodies, answers, strict=True):
        with torch.inference_mode():
            best = network(read_image(io.BytesIO(body)).unsqueeze(0)).softmax(-1)[0].topk(3)
        classes = answer.json()["classes"]
        assert [entry["index"] for entry in classes] == best.indices.tolist()
        assert [entry["probability"] for entry in classes] == pytest.approx(best.values.tolist(), abs=2e-5)
        assert all(entry["name"] for entry in classes)
        seen.add(tuple(best.indices.tolist()))
    assert len(seen) > 2, "an exchange of answers must show"
    stats = server.get("/stats").json()
    assert stats["images"] - before["images"] == 6
    assert max(map(int, stats["batches"])) > 1
    assert max(map(int, stats["batches"])) <= 4
    assert stats["answers"]["200"] >= 6
    assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p99"]
    assert stats["requests_inside"] == 0


def test_serve_health(server: Server, checkpoint: Path) -> None:
    health = server.get("/health")
    assert health.status_code == 200
    assert health.json() == {"status": "ok", "weights": f"mobilevit_xxs, {checkpoint}", "device": "cpu"}


def test_serve_refuses_an_empty_body(server: Server) -> None:
    answer = server.post(b"")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "body: expected an image file, got nothing"


@pytest.mark.parametrize("body", [b"no image", png(0)[:300]])
def test_serve_refuses_a_bad_image(server: Server, body: bytes) -> None:
    answer = server.post(body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("image: cannot be read as an image (")
    assert "0x" not in answer.json()["detail"], "no addresses of objects"


def test_serve_refuses_too_many_pixels(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "png")
    answer = server.post(file.getvalue())
    assert answer.status_code == 400
    assert "expected at most 50000000 pixels, got 10000 × 6000" in answer.json()["detail"]


def test_serve_refuses_a_large_body(server: Server) -> None:
    answer = server.post(bytes(2**20))
    assert answer.status_code == 413
    assert answer.json()["detail"] == f"body: expected at most {2**19} bytes, got {2**20}"


def test_serve_refuses_a_form(server: Server) -> None:
    answer = server.httpx.post(f"{server.url}/classify", files={"image": png(0)}, timeout=WAIT_S)
    assert answer.status_code == 415
    assert "multipart" in answer.json()["detail"]


def test_serve_is_busy_when_its_queue_is_full(server: Server) -> None:
    body = png(0)
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    slow = [socket.create_connection(address, WAIT_S) for _ in range(6)]
    try:
        for connection in slow:  # inside, and not complete
            connection.sendall(head + body[:10])
        deadline = time.monotonic() + WAIT_S
        while server.get("/stats").json()["requests_inside"] < 6:
            assert time.monotonic() < deadline
        refused = server.post(body)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        for connection in slow[1:]:
            connection.sendall(body[10:])
        for connection in slow[1:]:
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        assert server.post(body).status_code == 200
        slow[0].close()  # a client that goes away gives its place back
        while server.get("/stats").json()["requests_inside"]:
            assert time.monotonic() < deadline
    finally:
        for connection in slow:
            connection.close()


def test_serve_answers_what_is_inside_before_it_ends() -> None:
    server = Server("--model", "mobilevit_xxs", "--max-wait-ms", 1500, "--top", 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(server.post, png(0))
            deadline = time.monotonic() + WAIT_S
            while not server.get("/stats").json()["requests_inside"]:
                assert time.monotonic() < deadline
            code = server.stop()
            answer = pending.result()
    finally:
        server.stop()
    assert answer.status_code == 200
    assert answer.json()["weights"] == "mobilevit_xxs, random weights"
    assert set(answer.json()["classes"][0]) == {"index", "probability"}
    assert code in (0, -signal.SIGTERM)  # uvicorn raises the signal again when all is done
    assert any("Application shutdown complete" in line for line in server.log)
    assert not any("Traceback" in line for line in server.log)


class Recorder:
    """Stands in for a network: the class of an image is its first pixel; a call waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.shapes: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.entered.set()
        assert self.go.wait(WAIT_S)
        self.shapes.append(len(images))
        first = images[:, 0, 0, 0].long()
        if 255 in first:
            raise RuntimeError("a kernel failed")
        return torch.nn.functional.one_hot(first, 256).float()


def plain(value: int) -> torch.Tensor:
    return torch.full((256, 256, 3), value, dtype=torch.uint8)


@pytest.mark.parametrize(("sizes", "shapes"), [([], [1, 3, 4]), ([1, 2, 4], [1, 4, 4]), ([4], [4, 4, 4])])
def test_batcher_fills_batches_up(sizes: list[int], shapes: list[int]) -> None:
    network = Recorder()
    batcher = example("serve").Batcher(network, torch.device("cpu"), 1, max_batch=4, max_wait_s=0.0, sizes=sizes)
    futures = [batcher.submit(plain(9))]
    assert network.entered.wait(WAIT_S)
    futures += [batcher.submit(plain(value)) for value in range(8)]
    assert futures[3].cancel()  # the image 2: nobody waits for it any more
    network.go.set()
    batcher.stop()
    assert not batcher.alive
    results = [future.result()[1] for future in futures if not future.cancelled()]
    assert results == [[9], [0], [1], [3], [4], [5], [6], [7]]
    assert network.shapes == shapes
    assert batcher.batches == {1: 1, 3: 1, 4: 1}


def test_batcher_outlives_a_failure() -> None:
    network = Recorder()
    network.go.set()
    batcher = example("serve").Batcher(network, torch.device("cpu"), 1, max_batch=4, max_wait_s=0.0)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        batcher.submit(plain(255)).result(WAIT_S)
    assert batcher.error == "RuntimeError: a kernel failed"
    assert batcher.submit(plain(3)).result(WAIT_S)[1] == [3]
    assert batcher.error is None
    batcher.stop()


def test_batch_sizes() -> None:
    batch_sizes = example("serve").batch_sizes
    assert [batch_sizes(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


@pytest.mark.gpu
def test_batcher_on_a_gpu_with_graphs(checkpoint: Path, expected: Any, folder: Path) -> None:
    from _shared import build_network

    device = torch.device("cuda")
    network = build_network("mobilevit_xxs", checkpoint, device, capture=[1, 2, 4])
    batcher = example("serve").Batcher(network, device, 3, max_batch=4, max_wait_s=0.1, sizes=[1, 2, 4])
    futures = {name: batcher.submit(read_image(folder / name)) for name in expected}
    for name, future in futures.items():
        assert future.result(WAIT_S)[0][0] == pytest.approx(expected[name][0][0], abs=0.05)
    batcher.stop()


# ray_classify


def test_ray_classify(folder: Path, checkpoint: Path, expected: Any, tmp_path: Path) -> None:
    example("ray_classify")
    output = tmp_path / "results.csv"
    # Its token goes under HOME; its sockets must not lie as deep as tmp_path does.
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:
        process = start(
            "ray_classify", folder, output, *network_options(checkpoint),
            "--batch", 3, "--address", "local", "--cpus", 2, "--actors", 2,
            env={"HOME": str(tmp_path), "RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
        try:
            _, log = process.communicate(timeout=WAIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log
    assert "8 images, 1 of them unreadable" in log
    assert not list(tmp_path.glob(".results*"))
    check_rows(read_rows(output), expected)
    assert call("classify_folder", folder, tmp_path / "here.csv", *network_options(checkpoint), "--workers", 0)[0] == 0
    for row, same in zip(read_rows(output), read_rows(tmp_path / "here.csv"), strict=True):
        assert {name: cell for name, cell in row.items() if not name.startswith("probability")} == {
            name: cell for name, cell in same.items() if not name.startswith("probability")
        }


def write_half(module: ModuleType, output: Path) -> None:
    with module.written_whole(output) as file:
        file.write_text("half of it")
        raise IndexError("no more")


def test_ray_classify_writes_parquet(tmp_path: Path) -> None:
    module = example("ray_classify")
    parquet = pytest.importorskip("pyarrow.parquet")
    from _shared import columns, result_row

    blocks = [
        [result_row("a.png", "", [0.5, 0.25], [1, 0], ["x", "y"], "w")],
        [result_row("b.png", "broken", [0.0, 0.0], [0, 0], ["x", "y"], "w")],
    ]
    output = tmp_path / "new" / "results.parquet"
    with module.written_whole(output) as file:
        module.write_parquet(file, columns(2, named=True), iter(blocks))
        assert not output.exists()
    table = parquet.read_table(output)
    common = {"weights": "w"}
    assert table.to_pylist() == [
        {"path": "a.png", "class_1": 1, "probability_1": 0.5, "name_1": "y",
         "class_2": 0, "probability_2": 0.25, "name_2": "x", "error": None, **common},
        {"path": "b.png", "class_1": None, "probability_1": None, "name_1": None,
         "class_2": None, "probability_2": None, "name_2": None, "error": "broken", **common},
    ]  # fmt: skip
    with pytest.raises(IndexError, match="no more"):
        write_half(module, output)
    assert os.listdir(output.parent) == ["results.parquet"]
    assert parquet.read_table(output) == table
