"""An HTTP server that classifies images, several requests at a time in one batch.

    python examples/serve.py --checkpoint mobilevit_s.safetensors --port 8000
    curl --data-binary @photo.jpg localhost:8000/classify

Threads decode what arrives; one thread gathers decoded images, until there are --max-batch of them or the first has
waited --max-wait-ms, and runs them as one batch. At most --queue requests are inside at once; one more gets 503. With
--graph, batches are filled up to a few sizes, each of which has its CUDA graph.
"""

from __future__ import annotations

import asyncio
import io
import queue
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import torch
import uvicorn
from _shared import (
    best_classes,
    build_network,
    class_names,
    device_option,
    network_options,
    pick_device,
    weights_label,
)
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect
from torch import Tensor

import mobilevit_kernels as mvk
from mobilevit_kernels.images import IMAGE_SIZE, read_image

MAX_PIXELS = 50_000_000  # of a picture before it is resized: its memory is not bounded by the size of the body
BODY_TIMEOUT_S = 30.0  # a client that sends nothing more must not keep its place in the queue


def batch_sizes(max_batch: int) -> list[int]:
    """The powers of two below ``max_batch``, and ``max_batch`` itself."""
    return [*(1 << i for i in range((max_batch - 1).bit_length())), max_batch]


class Batcher:
    """Runs images in batches, in a thread of its own.

    Args:
        network: takes uint8 (B, 256, 256, 3) and returns logits.
        device: where it runs.
        top: classes an image.
        max_batch: images a batch at most.
        max_wait_s: how long the first image of a batch waits for others.
        sizes: batch sizes that batches are filled up to; empty: they run as they are.
    """

    def __init__(
        self,
        network: mvk.MobileViT,
        device: torch.device,
        top: int,
        max_batch: int,
        max_wait_s: float,
        sizes: Sequence[int] = (),
    ) -> None:
        self.network = network
        self.device = device
        self.top = top
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.sizes = sorted(sizes)
        self.batches: Counter[int] = Counter()  # how many batches had so many images
        self.error: str | None = None  # of the last batch
        self._queue: queue.Queue[tuple[Tensor, Future[Any]] | None] = queue.Queue()
        shape = (max_batch, IMAGE_SIZE, IMAGE_SIZE, 3)
        self._staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, image: Tensor) -> Future[tuple[list[float], list[int]]]:
        """Queues a uint8 (256, 256, 3) image; the future has its best probabilities and their classes."""
        future: Future[tuple[list[float], list[int]]] = Future()
        self._queue.put((image, future))
        return future

    def stop(self) -> None:
        """Finishes what is queued, then ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        stopping = False
        while not stopping:
            entry = self._queue.get()
            deadline = time.monotonic() + self.max_wait_s
            entries = []
            while entry is not None:
                entries.append(entry)
                if len(entries) == self.max_batch:
                    break
                try:
                    entry = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
            stopping = entry is None
            # A request may have been cancelled while it waited.
            entries = [(image, future) for image, future in entries if future.set_running_or_notify_cancel()]
            if entries:
                self._run(entries)

    def _run(self, entries: list[tuple[Tensor, Future[Any]]]) -> None:
        try:
            results = self._forward([image for image, _ in entries])
        except Exception as error:  # the requests get it; the thread lives on
            self.error = f"{type(error).__name__}: {error}"
            for _, future in entries:
                future.set_exception(error)
            return
        self.error = None
        self.batches[len(entries)] += 1
        for (_, future), result in zip(entries, results, strict=True):
            future.set_result(result)

    def _forward(self, images: list[Tensor]) -> list[tuple[list[float], list[int]]]:
        count = len(images)
        for i, image in enumerate(images):
            self._staging[i] = image
        filled = next((size for size in self.sizes if size >= count), count)  # an image's result is its own
        with torch.inference_mode():
            logits = self.network(self._staging[:filled].to(self.device, non_blocking=True))
            probabilities, classes = best_classes(logits[:count], self.top)
        return list(zip(probabilities.tolist(), classes.tolist(), strict=True))


class Statistics:
    """Counts of answers by status, and the latest latencies."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.answers: Counter[int] = Counter()
        self.latencies_ms: deque[float] = deque(maxlen=1000)

    def to_dict(self, batches: Counter[int], waiting: int) -> dict[str, Any]:
        """What GET /stats returns."""
        latencies = list(self.latencies_ms)
        percentiles = statistics.quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else None
        images = sum(size * number for size, number in batches.items())
        return {
            "uptime_s": round(time.monotonic() - self.begin, 1),
            "answers": {str(status): number for status, number in sorted(self.answers.items())},
            "requests_inside": waiting,
            "images": images,
            "batches": {str(size): number for size, number in sorted(batches.items())},
            "images_per_batch": round(images / batches.total(), 2) if batches else None,
            "latency_ms": None if percentiles is None else {"p50": percentiles[49], "p99": percentiles[98]},
        }


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The request's body; 413 for one that is larger than ``max_bytes``.

    A body that is too large is read to its end all the same, and dropped: a client whose connection is closed while it
    sends may never see the answer.
    """
    body = bytearray()
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= max_bytes:
            body += part
        else:
            body.clear()
    if size == 0:
        raise HTTPException(400, "body: expected an image file, got nothing")
    if size > max_bytes:
        raise HTTPException(413, f"body: expected at most {max_bytes} bytes, got {size}")
    return bytes(body)


def decode(body: bytes) -> Tensor:
    """The image in a request's body; 400 where there is none."""
    try:
        return read_image(io.BytesIO(body), max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def make_app(
    batcher: Batcher, names: list[str] | None, weights: str, *, max_inside: int, max_bytes: int, decoders: int
) -> FastAPI:
    """The server around a batcher, which it stops when it is shut down.

    Args:
        batcher: runs the images.
        names: of the classes; None: there are none.
        weights: what /health says of them.
        max_inside: requests that may be read, decoded, waiting or running at once.
        max_bytes: of a body.
        decoders: threads that decode.
    """
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="decoder")
    counts = Statistics()
    inside = 0  # only the event loop's thread changes it

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        # uvicorn has answered every request by now, or has given up on it.
        pool.shutdown(cancel_futures=True)
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(title="MobileViT", lifespan=lifespan)

    async def answer(request: Request) -> dict[str, Any]:
        try:
            body = await asyncio.wait_for(read_body(request, max_bytes), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"body: not complete after {BODY_TIMEOUT_S:.0f} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "body: the connection was closed before its end") from None
        image = await asyncio.get_running_loop().run_in_executor(pool, decode, body)
        probabilities, classes = await asyncio.wrap_future(batcher.submit(image))
        return {
            "weights": weights,
            "classes": [
                {"index": index, "probability": probability, **({"name": names[index]} if names else {})}
                for probability, index in zip(probabilities, classes, strict=True)
            ],
        }

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        nonlocal inside
        begin = time.perf_counter()
        status = 500
        inside += 1
        try:
            if request.headers.get("content-type", "").startswith("multipart/"):
                raise HTTPException(415, "content-type: expected the image itself as the body, got a multipart form")
            if inside > max_inside:
                raise HTTPException(503, f"busy: {max_inside} requests are inside", headers={"Retry-After": "1"})
            result = await answer(request)
            status = 200
            counts.latencies_ms.append(1e3 * (time.perf_counter() - begin))
            return result
        except HTTPException as refusal:
            status = refusal.status_code
            raise
        finally:
            inside -= 1
            counts.answers[status] += 1

    @app.get("/health")
    async def health() -> dict[str, Any]:
        if batcher.error is not None or not batcher.alive:
            raise HTTPException(503, batcher.error or "the batcher's thread has ended")
        return {"status": "ok", "weights": weights, "device": str(batcher.device)}

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        return counts.to_dict(Counter(batcher.batches), inside)

    return app


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@click.option("--max-batch", type=click.IntRange(1), default=32, show_default=True, help="Images a batch at most.")
@click.option("--max-wait-ms", type=click.FloatRange(0), default=5.0, show_default=True, help="For others to join.")
@click.option("--queue", "max_inside", type=click.IntRange(1), default=256, show_default=True, help="Requests inside.")
@click.option("--max-body-mb", type=click.FloatRange(0.001), default=16.0, show_default=True, help="Of an image file.")
@click.option("--decoders", type=click.IntRange(1), default=4, show_default=True, help="Threads that decode.")
@click.option("--graph", is_flag=True, help="Run batches as CUDA graphs, filled up to a few sizes.")
@device_option
@network_options
def main(
    host: str,
    port: int,
    max_batch: int,
    max_wait_ms: float,
    max_inside: int,
    max_body_mb: float,
    decoders: int,
    graph: bool,
    device: str | None,
    model: str,
    checkpoint: Path | None,
    backend: str,
    top: int,
) -> None:
    """Serve POST /classify (the image file is the body), GET /health and GET /stats."""
    where = pick_device(device)
    sizes = batch_sizes(max_batch) if graph else []
    network = build_network(model, checkpoint, where, backend, capture=sizes)
    with torch.inference_mode():  # the first call of a shape builds what it needs: not while a client waits
        network(torch.zeros((max_batch, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, device=where))
    batcher = Batcher(network, where, top, max_batch, max_wait_ms / 1e3, sizes)
    app = make_app(
        batcher,
        class_names(checkpoint, network.num_classes),
        weights_label(model, checkpoint),
        max_inside=max_inside,
        max_bytes=int(max_body_mb * 2**20),
        decoders=decoders,
    )
    uvicorn.run(app, host=host, port=port, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
