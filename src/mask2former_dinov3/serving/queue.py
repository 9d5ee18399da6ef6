"""Many requests, one model: images wait in a bounded house, and what waits is predicted together.

Everything here belongs to one event loop, so nothing needs a lock; decoding and the model run in threads of its own.
What was cancelled (its time is over, its client is gone) before the model began on it is never begun.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import decode_image
from ..inference.image_processing import Prepared
from ..inference.predictor import Predictor
from ..inference.tiles.grid import Grid, Region
from ..inference.tiles.merging import Merger
from ..instances import Instances
from ..visualize import draw_instances, enlargement
from .limits import Busy, Limits, ModelFailed, Wanted, check_header

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")

READERS = 2  # threads that decode, prepare and draw


class Meter(Protocol):
    """Where counts go; `serve_watch.Metrics` in a server."""

    def predicted(self, images: int) -> None: ...


@dataclass(eq=False)
class _Job:
    """One image, or one tile of it, before the model."""

    image: Prepared
    wanted: Wanted
    answer: asyncio.Future[Instances]

    def fits(self, other: _Job) -> bool:
        """Whether both can be in one batch; the model ranks all its detections by how many are wanted."""
        return self.wanted.max_detections == other.wanted.max_detections


class ModelQueue:
    """Bytes of images to instances, in batches; to be used inside `async with queue.running()`."""

    def __init__(self, predictor: Predictor, limits: Limits, meter: Meter) -> None:
        self.predictor = predictor
        self.limits = limits
        self.inside = 0  # requests in the house: their bodies are read, they wait, or the model works on them
        self.ahead = 0  # the images and tiles of these
        self.closing = False
        self._meter = meter
        self._waiting: list[_Job] = []
        self._arrived = asyncio.Event()
        self._seconds = 0.2  # that the model spends on an image, smoothed; a guess until the first
        # Bodies wait as they came; only so many are pixels at a time: one batch in the model, the next one prepared.
        self._decoded = asyncio.Semaphore(2 * limits.batch_size)
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the house for one request. Raises Busy when there is none."""
        if self.closing:
            raise Busy("the server is shutting down; try another one, or later", 10)
        # Whoever would be taken only to be given up later is better told at once.
        if self.inside >= self.limits.max_queue or self._seconds * self.ahead > self.limits.timeout / 2:
            raise Busy(f"{self.inside} requests are waiting already; try again later", self.seconds_to_wait())
        self.inside += 1
        try:
            with self._ahead(1):
                yield
        finally:
            self.inside -= 1

    @contextmanager
    def _ahead(self, images: int) -> Iterator[None]:
        self.ahead += images
        try:
            yield
        finally:
            self.ahead -= images

    def seconds_to_wait(self) -> int:
        """Whole seconds until half of what is in the house should be done, by the speed seen so far."""
        return max(1, math.ceil(self._seconds * self.ahead / 2))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The model at work; at the end whatever is still in the house is dropped."""
        work = asyncio.create_task(self._work())
        try:
            yield
        finally:
            work.cancel()
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._model.shutdown(wait=False, cancel_futures=True)

    async def predict(self, data: bytes, name: str, wanted: Wanted) -> tuple[Instances, bytes | None]:
        """Instances in an image file's bytes, best first, and the PNG with them drawn in where it is wanted.

        name: what errors call the image. Raises TooLarge, DatasetError for what is no image, ModelFailed.
        """
        async with self._decoded:
            if wanted.tile is None:
                rgb, prepared = await self._read(self._prepare, data, name, wanted)
                found = await self._through_model(prepared, wanted)
            else:
                rgb = await self._read(self._decode, data, name, wanted)
                found = await self._tiled(rgb, wanted)
            if wanted.classes is not None:
                found = found[np.array([name in wanted.classes for name in found.names], dtype=bool)]
            picture = await self._read(_overlay, rgb, found) if wanted.overlay and rgb is not None else None
        return found, picture

    async def _read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    def _decode(self, data: bytes, name: str, wanted: Wanted) -> NDArray[np.uint8]:
        check_header(data, name, self.limits.max_pixels, wanted)
        return decode_image(data, name)

    def _prepare(self, data: bytes, name: str, wanted: Wanted) -> tuple[NDArray[np.uint8] | None, Prepared]:
        """The picture, where something is to be drawn into it, and the image on its canvas."""
        rgb = self._decode(data, name, wanted)
        return rgb if wanted.overlay else None, self.predictor.processor.prepare(rgb)

    async def _tiled(self, rgb: NDArray[np.uint8], wanted: Wanted) -> Instances:
        """As `Predictor` does it, but that the tiles wait among other images: a large one does not stop the small."""
        assert wanted.tile is not None
        height, width = rgb.shape[:2]
        grid = Grid.of(height, width, wanted.tile, wanted.overlap)
        merger = Merger(grid, self.predictor.categories)

        async def instances(tile: Region) -> Instances:
            prepared = await self._read(self.predictor.processor.prepare, rgb[tile.y0 : tile.y1, tile.x0 : tile.x1])
            return await self._through_model(prepared, wanted)

        with self._ahead(len(grid.tops) * len(grid.lefts) - 1):
            for row in range(len(grid.tops)):
                tiles, found = list(grid.row(row)), list[Instances]()
                for start in range(0, len(tiles), self.limits.batch_size):
                    found += await asyncio.gather(*map(instances, tiles[start : start + self.limits.batch_size]))
                await self._read(merger.add_row, row, found)
        return await self._read(merger.instances)

    async def _through_model(self, prepared: Prepared, wanted: Wanted) -> Instances:
        job = _Job(prepared, wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        found = await job.answer
        return found[found.scores >= wanted.threshold]

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            begun = loop.time()
            results = await loop.run_in_executor(self._model, self._predict, batch)
            self._seconds += 0.2 * ((loop.time() - begun) / len(batch) - self._seconds)
            self._meter.predicted(len(batch))
            for job, result in zip(batch, results, strict=True):
                if job.answer.done():  # cancelled while the model was at it
                    continue
                if isinstance(result, Exception):
                    job.answer.set_exception(result)
                else:
                    job.answer.set_result(result)
            del batch, results, job, result  # or the last batch's pixels would stay until the next one

    async def _next_batch(self) -> list[_Job]:
        """The image that waits longest, with others that fit, which it awaits for at most max_wait milliseconds."""
        while True:
            while not self._fitting():
                await self._arrival()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.max_wait / 1000):
                    while len(self._fitting()) < self.limits.batch_size:
                        await self._arrival()
            if batch := self._fitting()[: self.limits.batch_size]:  # none, if all were cancelled meanwhile
                self._waiting = [job for job in self._waiting if job not in batch]
                return batch

    def _fitting(self) -> list[_Job]:
        """All that could be in the next batch; what was cancelled is forgotten."""
        self._waiting = [job for job in self._waiting if not job.answer.done()]
        return [job for job in self._waiting if job.fits(self._waiting[0])]

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _predict(self, jobs: list[_Job]) -> list[Instances | Exception]:
        """In the model's thread. What fails as a batch is tried image by image, so that one spoils no other."""
        try:
            return list(self._together(jobs))
        except Exception as error:
            if len(jobs) > 1:
                return [result for job in jobs for result in self._predict([job])]
            LOG.exception("the model failed on an image")
            return [ModelFailed(f"the model failed on this image ({type(error).__name__})")]

    def _together(self, jobs: list[_Job]) -> list[Instances]:
        # The least threshold serves all: who asked for more drops the rest, and no score depends on it.
        least = min(job.wanted.threshold for job in jobs)
        return self.predictor.predict_prepared([job.image for job in jobs], least, jobs[0].wanted.max_detections)


def _overlay(rgb: NDArray[np.uint8], found: Instances) -> bytes:
    picture = io.BytesIO()
    Image.fromarray(draw_instances(rgb, found, scale=enlargement(found))).save(picture, "PNG")
    return picture.getvalue()
