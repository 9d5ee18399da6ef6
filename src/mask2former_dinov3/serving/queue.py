"""Bounded queue with dynamic batching: images that wait at the same time are predicted in one batch.

All state belongs to one event loop, so there are no locks; threads decode images and run the model. A request that is
cancelled (timeout, closed connection) before the model starts on its image never reaches the model.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import check_channel_count, decode_image
from ..inference.files.writers import shrink_image
from ..inference.image_processing import Prepared
from ..inference.predictor import Predictor
from ..inference.tiles.grid import WHOLE_SIDES, Passes, Region
from ..inference.tiles.merging import Merger
from ..inference.tiles.part_reader import ImageReader
from ..instances import Instances
from ..visualize import draw_instances, enlargement, rgb_view
from .limits import Busy, Limits, ModelFailed, Wanted, check_header

logger = logging.getLogger(__name__)

READERS = 2  # threads that decode, prepare and draw
FIRST_GUESS = 0.2  # seconds of the model per image, before any was measured
SMOOTHING = 0.2  # weight of the newest batch in the average time per image
LONGEST_PREVIEW = 2048  # pixels
PNG_LEVEL = 1  # of zlib: a third of the time of Pillow's level 6, and a quarter more bytes
SECONDS_TO_RESTART = 10  # Retry-After of a server that shuts down

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Meter(Protocol):
    """Where the queue counts its batches: `ServerMetrics` in a server."""

    def count_batch(self, images: int) -> None: ...


@dataclass(eq=False)
class _Job:
    """One image, or one tile of an image, that waits for the model."""

    image: Prepared
    wanted: Wanted
    answer: asyncio.Future[Instances]


class ModelQueue:
    """From the bytes of images to instances, in batches. Use it inside `async with queue.running()`.

    inside: requests in the server, whose bodies are being received, which wait, or which are in the model. ahead:
    images and tiles of these requests. closing: True makes `place` refuse all further requests.
    """

    def __init__(self, predictor: Predictor, limits: Limits, meter: Meter) -> None:
        self.predictor = predictor
        self.limits = limits
        self.inside = 0
        self.ahead = 0
        self.closing = False
        self._meter = meter
        self._waiting: list[_Job] = []
        self._arrived = asyncio.Event()
        self._seconds = FIRST_GUESS
        # Queued bodies stay encoded; at most two batches are decoded: one in the model, the next one prepared.
        self._decoded = asyncio.Semaphore(2 * limits.batch_size)
        self._running: dict[object, tuple[str, float]] = {}  # calls in the threads: kind of thread, time of the start
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place in the queue for one request, before its body is read. Raises Busy when there is none."""
        if self.closing:
            raise Busy("the server is shutting down; try again later, or another server", SECONDS_TO_RESTART)
        if self.stuck:
            raise Busy("the server works on an image for longer than its timeout; try again later", SECONDS_TO_RESTART)
        # A request that would time out in the queue is refused at once, so that its client can go elsewhere.
        if self.inside >= self.limits.max_queue or self._seconds * self.ahead > self.limits.timeout / 2:
            raise Busy(f"{self.inside} requests are waiting already; try again later", self.seconds_to_wait())
        self.inside += 1
        try:
            with self._count_ahead(1):
                yield
        finally:
            self.inside -= 1

    @contextmanager
    def _count_ahead(self, images: int) -> Iterator[None]:
        self.ahead += images
        try:
            yield
        finally:
            self.ahead -= images

    @property
    def stuck(self) -> bool:
        """Whether no request can be answered: the model, or all readers, have been at one call beyond the timeout."""
        oldest = time.monotonic() - self.limits.timeout
        late = [name for name, since in list(self._running.values()) if since < oldest]
        return "model" in late or late.count("reader") >= READERS

    @property
    def working(self) -> int:
        """How many threads are at work."""
        return len(self._running)

    def _noting(self, name: str, function: Callable[[], _T]) -> Callable[[], _T]:
        """`function`, which notes since when it is running, in the thread that runs it."""

        def run() -> _T:
            mark = object()
            self._running[mark] = name, time.monotonic()
            try:
                return function()
            finally:
                del self._running[mark]

        return run

    def seconds_to_wait(self) -> int:
        """Whole seconds until half of the images ahead should be done, at the average speed so far."""
        return max(1, math.ceil(self._seconds * self.ahead / 2))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the model on what arrives; images that are still in the queue at the end are dropped."""
        work = asyncio.create_task(self._work())
        try:
            yield
        finally:
            work.cancel()
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._model.shutdown(wait=False, cancel_futures=True)

    async def predict(self, data: bytes, name: str, wanted: Wanted) -> tuple[Instances, bytes | None]:
        """Instances in the bytes of an image file, best first, and the overlay as a PNG if it is wanted.

        name: how messages call the image. Raises TooLarge, DatasetError for bytes that are not an image, ModelFailed.
        """
        async with self._decoded:
            rgb: NDArray[np.uint8] | None
            if self.passes(wanted).may_cut:
                rgb = pixels = await self._read(self._decode, data, name, wanted)
                found = await self._predict_in_tiles(pixels, wanted)
            else:
                rgb, prepared = await self._read(self._prepare, data, name, wanted)
                found = await self._run_model(prepared, wanted)
            if wanted.classes is not None:
                found = found[np.array([name in wanted.classes for name in found.names], dtype=bool)]
            picture = await self._read(_draw_png, rgb, found) if wanted.overlay and rgb is not None else None
        return found, picture

    async def preview(self, data: bytes, name: str, wanted: Wanted) -> bytes:
        """The image as the model gets it, in RGB (`rgb_view`), as a PNG of at most `LONGEST_PREVIEW` pixels a side."""
        async with self._decoded:
            pixels = await self._read(self._decode, data, name, wanted)
            return await self._read(_preview_png, pixels)

    def passes(self, wanted: Wanted) -> Passes:
        """How the images of a request are cut. Raises OptionError for tiles larger than the default.

        Clients may ask for smaller ones only: at an image's own scale a large tile takes a large machine.
        """
        processor, most = self.predictor.processor, self.predictor.passes(wanted.settings).most
        return Passes.of(processor.size, processor.read_options, wanted.settings, min(WHOLE_SIDES, most))

    async def _read(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function in a thread that reads images."""
        call = self._noting("reader", partial(function, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._readers, call)

    def _decode(self, data: bytes, name: str, wanted: Wanted) -> NDArray[np.uint8]:
        processor = self.predictor.processor
        options, channels = processor.read_options, processor.num_channels
        check_header(data, name, self.limits.max_pixels, self.passes(wanted), options, channels)
        pixels = decode_image(data, name, options)
        check_channel_count(name, channels, pixels.shape[2])
        return pixels

    def _prepare(self, data: bytes, name: str, wanted: Wanted) -> tuple[NDArray[np.uint8] | None, Prepared]:
        """The pixels (H, W, C) (None unless an overlay is wanted), and the image on the model's canvas."""
        rgb = self._decode(data, name, wanted)
        return rgb if wanted.overlay else None, self.predictor.processor.prepare(rgb)

    async def _predict_in_tiles(self, rgb: NDArray[np.uint8], wanted: Wanted) -> Instances:
        """As `Predictor` in tiles, but each tile waits in the queue, so that a large image does not block small ones.

        rgb (H, W, C).
        """
        settings = self.predictor.fill(wanted.settings)
        grid = self.passes(wanted).grid(rgb.shape[0], rgb.shape[1])
        merger = Merger(grid, self.predictor.categories, settings)
        of_tiles = replace(wanted, settings=settings.for_parts())

        async def predict(tile: Region) -> Instances:
            prepared = await self._read(self.predictor.processor.prepare, rgb[tile.y0 : tile.y1, tile.x0 : tile.x1])
            return await self._run_model(prepared, of_tiles)

        with self._count_ahead(grid.number_of_tiles - 1):  # `place` has counted one
            for row in range(len(grid.tops)):
                found: list[Instances] = []
                for tiles in grid.batches(row, self.limits.batch_size):
                    found += await asyncio.gather(*map(predict, tiles))
                await self._read(merger.add_row, row, found)
        return await self._read(merger.instances)

    async def _run_model(self, prepared: Prepared, wanted: Wanted) -> Instances:
        """Instances of one image or tile, once the model has predicted the batch with it."""
        job = _Job(prepared, wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        return await job.answer

    async def _work(self) -> None:
        """Predict batch after batch and hand out the results, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            begun = loop.time()
            results = await loop.run_in_executor(self._model, self._noting("model", partial(self._predict, batch)))
            self._seconds += SMOOTHING * ((loop.time() - begun) / len(batch) - self._seconds)
            self._meter.count_batch(len(batch))
            for job, result in zip(batch, results, strict=True):
                if job.answer.done():  # cancelled while the model worked on it
                    continue
                if isinstance(result, Exception):
                    job.answer.set_exception(result)
                else:
                    job.answer.set_result(result)
            del batch, results, job, result  # otherwise they would keep this batch's pixels until the next batch

    async def _next_batch(self) -> list[_Job]:
        """The image that has waited longest, and others; waits for these at most max_wait milliseconds."""
        while True:
            while not self._waiting_jobs():
                await self._wait_for_job()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.max_wait / 1000):
                    while len(self._waiting_jobs()) < self.limits.batch_size:
                        await self._wait_for_job()
            if batch := self._waiting_jobs()[: self.limits.batch_size]:  # empty if all were cancelled meanwhile
                self._waiting = [job for job in self._waiting if job not in batch]
                return batch

    def _waiting_jobs(self) -> list[_Job]:
        """All jobs that could be in the next batch; cancelled ones are removed from the queue."""
        self._waiting = [job for job in self._waiting if not job.answer.done()]
        return self._waiting

    async def _wait_for_job(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _predict(self, jobs: list[_Job]) -> list[Instances | Exception]:
        """Run the model, in its thread. A batch that fails is repeated image by image, to find those that fail."""
        settings = [job.wanted.settings for job in jobs]
        try:
            return list(self.predictor.predict_prepared([job.image for job in jobs], settings))
        except Exception:
            if len(jobs) > 1:
                return [result for job in jobs for result in self._predict([job])]
            logger.exception("the model failed on an image")
            return [ModelFailed("the model failed on this image; the log of the server has the reason")]


def _preview_png(pixels: NDArray[np.uint8]) -> bytes:
    factor = math.ceil(max(pixels.shape[:2]) / LONGEST_PREVIEW)
    return _to_png(shrink_image(ImageReader.of(pixels), factor))


def _draw_png(pixels: NDArray[np.uint8], found: Instances) -> bytes:
    return _to_png(draw_instances(rgb_view(pixels), found, scale=enlargement(found)))


def _to_png(pixels: NDArray[np.uint8]) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG", compress_level=PNG_LEVEL)
    return picture.getvalue()
