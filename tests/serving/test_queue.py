"""The queue before the model: what is predicted together, what is dropped, what one image's failure does to others."""

from __future__ import annotations

import asyncio
import io
import math
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.inference.image_processing import Prepared
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Passes
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.serving.limits import Busy, Limits, ModelFailed, TooLarge, Wanted, check_header
from mask2former_dinov3.serving.queue import ModelQueue

PASSES = Passes((64, 64), factor=None, tile=None, overlap=0.2)
WANTED = Wanted(InferenceSettings(threshold=0.0, max_detections=8))


def want(**settings: Any) -> Wanted:
    """WANTED with other settings."""
    return Wanted(replace(WANTED.settings, **settings))


class Counts:
    """Sizes of the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def count_batch(self, images: int) -> None:
        self.batches.append(images)


class HeldPredictor(Predictor):
    """A real one that waits for `go` before each batch, and refuses images of 13 pixels of height."""

    def __init__(self, folder: Path) -> None:
        model = Predictor.from_pretrained(folder, "cpu")
        super().__init__(model.model, model.processor)
        self.go = threading.Event()
        self.begun = threading.Event()

    def predict_prepared(self, prepared: Sequence[Prepared], settings: Any) -> list[Instances]:
        self.begun.set()
        self.go.wait(30)
        if any(one.original_size[0] == 13 for one in prepared):
            raise RuntimeError("thirteen")
        return super().predict_prepared(prepared, settings)


def picture(height: int = 40, width: int = 50, seed: int = 0) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


NO_IMAGE = "a: expected an image in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP, got bytes that are none"


@pytest.fixture
def predictor(model_folder: Path) -> HeldPredictor:
    return HeldPredictor(model_folder)


def assert_equal(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.labels.tolist() == expected.labels.tolist()
    for index in range(len(found)):  # a batch's sums may differ in the last bit, and so a pixel at the level
        assert (found.mask(index) != expected.mask(index)).mean() < 0.01


def test_model_queue__predicts_together_what_waits(predictor: HeldPredictor) -> None:
    counts = Counts()
    files = [picture(seed=seed) for seed in range(5)]

    async def run() -> list[Instances]:
        queue = ModelQueue(predictor, Limits(batch_size=4, max_wait=2000), counts)
        async with queue.running():
            predictor.go.set()
            found = await asyncio.gather(*(queue.predict(file, "a", WANTED) for file in files))
        return [instances for instances, _ in found]

    found = asyncio.run(run())
    assert counts.batches == [4, 1]
    for file, instances in zip(files, found, strict=True):
        alone = Predictor(predictor.model, predictor.processor)
        assert_equal(instances, alone(Image.open(io.BytesIO(file)), threshold=0.0, max_detections=8))


def test_model_queue__requests_with_other_settings_share_a_batch(predictor: HeldPredictor) -> None:
    counts = Counts()

    async def run() -> list[Instances]:
        queue = ModelQueue(predictor, Limits(max_wait=300), counts)
        async with queue.running():
            predictor.go.set()
            wanted = [WANTED, want(threshold=0.2), want(max_detections=3)]
            return [one for one, _ in await asyncio.gather(*(queue.predict(picture(), "a", each) for each in wanted))]

    every, above, few = asyncio.run(run())
    assert counts.batches == [3]
    assert len(few) <= 3 < len(every)
    assert few.left_out.limit > 0
    assert_equal(above, every[every.scores >= 0.2])


def test_model_queue__one_failing_image_spoils_no_other(
    predictor: HeldPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[tuple[Instances, bytes | None] | BaseException]:
        queue = ModelQueue(predictor, Limits(max_wait=2000, batch_size=3), Counts())
        async with queue.running():
            predictor.go.set()
            files = (picture(), picture(13, 20), picture(20, 30))
            return await asyncio.gather(*(queue.predict(file, "a", WANTED) for file in files), return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert isinstance(first, tuple)
    assert isinstance(third, tuple)
    assert isinstance(second, ModelFailed)
    assert "thirteen" not in str(second)  # what went wrong inside is for the log
    assert "thirteen" in caplog.text


def test_model_queue__drops_what_is_cancelled_before_it_begins(predictor: HeldPredictor) -> None:
    counts = Counts()

    async def run() -> None:
        queue = ModelQueue(predictor, Limits(max_wait=0), counts)
        async with queue.running():
            first = asyncio.create_task(queue.predict(picture(), "a", WANTED))
            await asyncio.to_thread(predictor.begun.wait, 30)
            second, third = (asyncio.create_task(queue.predict(picture(), "a", WANTED)) for _ in range(2))
            while len(queue._waiting) < 2:
                await asyncio.sleep(0.01)
            second.cancel()
            first.cancel()  # the model is at it: its result goes nowhere
            predictor.go.set()
            await third

    asyncio.run(run())
    assert counts.batches == [1, 1]


def test_model_queue__holds_few_images_as_pixels(predictor: HeldPredictor) -> None:
    limits = Limits(batch_size=1, max_wait=0)
    prepared: list[str] = []

    class Queue(ModelQueue):
        def _prepare(self, data: bytes, name: str, wanted: Wanted) -> object:  # type: ignore[override]
            prepared.append(name)
            return super()._prepare(data, name, wanted)

    async def run() -> None:
        queue = Queue(predictor, limits, Counts())
        async with queue.running():
            tasks = [asyncio.create_task(queue.predict(picture(), str(number), WANTED)) for number in range(6)]
            await asyncio.to_thread(predictor.begun.wait, 30)
            await asyncio.sleep(0.3)
            assert len(prepared) == 2 * limits.batch_size
            predictor.go.set()
            await asyncio.gather(*tasks)

    asyncio.run(run())
    assert prepared == [str(number) for number in range(6)]


def test_model_queue__is_bounded_and_says_when_to_come_back(predictor: HeldPredictor) -> None:
    queue = ModelQueue(predictor, Limits(max_queue=2), Counts())
    with queue.place():
        with queue.place(), pytest.raises(Busy, match="2 requests are waiting already") as full, queue.place():
            pass
        assert full.value.retry_after >= 1
        with queue.place():  # a place is given back
            pass
    queue.closing = True
    with pytest.raises(Busy, match="shutting down"), queue.place():
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 0), ("max_queue", 0), ("max_bytes", 0), ("max_pixels", 0)),
        *(("timeout", 0.0), ("timeout", math.nan), ("timeout", math.inf), ("max_wait", -1.0), ("max_wait", math.nan)),
    ],
)
def test_limits__refuse_what_lets_nothing_through(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"^{name}: expected a .*number.*, got {value}$"):
        replace(Limits(), **{name: value})  # type: ignore[arg-type]


def test_check_header__looks_at_sizes_before_any_pixel() -> None:
    check_header(picture(40, 50), "a.png", 2000, PASSES)
    with pytest.raises(
        TooLarge, match=r"a\.png: expected an image of at most 1,999 pixels, got 40 x 50 \(height x width\)"
    ):
        check_header(picture(40, 50), "a.png", 1999, PASSES)


@pytest.mark.parametrize("side", [10_000, 30_000, 2_000_000_000])
def test_check_header__refuses_bombs(side: int) -> None:
    data = bytearray(picture(1, 1))
    data[16:24] = side.to_bytes(4) * 2  # IHDR: width, height
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    with pytest.raises(TooLarge, match=r"bomb\.png: expected an image of at most 50,000,000 pixels"):
        check_header(bytes(data), "bomb.png", 50_000_000, PASSES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", NO_IMAGE),
        (b"no image", NO_IMAGE),
        (picture()[:20], "a: expected a complete image, got damaged or incomplete data"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", NO_IMAGE),
    ],
    ids=["empty", "text", "cut", "postscript"],
)
def test_check_header__refuses_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=f"^{message}"):
        check_header(data, "a", 1000, PASSES)


def test_check_header__refuses_too_many_tiles() -> None:
    check_header(picture(40, 1000), "a", 10**6, PASSES._replace(tile=32))
    with pytest.raises(TooLarge, match="a: expected at most 1000 tiles, got 2025; use larger tiles"):
        check_header(picture(1000, 1000), "a", 10**6, PASSES._replace(tile=32, overlap=0.3))


def test_model_queue__tiles_wait_among_other_images(predictor: HeldPredictor) -> None:
    counts = Counts()
    large, small = picture(90, 200), picture()
    tiled = want(tile=64, threshold=0.05)

    async def run() -> Instances:
        queue = ModelQueue(predictor, Limits(batch_size=3, max_wait=100), counts)
        async with queue.running():
            first = asyncio.create_task(queue.predict(large, "a", tiled))
            await asyncio.to_thread(predictor.begun.wait, 30)
            second = asyncio.create_task(queue.predict(small, "b", WANTED))
            predictor.go.set()
            await second
            assert not first.done()
            return (await first)[0]

    found = asyncio.run(run())
    alone = Predictor(predictor.model, predictor.processor)
    expected = alone(Image.open(io.BytesIO(large)), threshold=0.05, max_detections=8, tile=64, batch_size=3)
    assert sum(counts.batches) == 2 * 4 + 1
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_model_queue__takes_no_one_whom_it_would_give_up_later(predictor: HeldPredictor) -> None:
    tiled = want(tile=32, threshold=0.9)

    async def run() -> None:
        queue = ModelQueue(predictor, Limits(timeout=20), Counts())
        async with queue.running():
            with queue.place():
                task = asyncio.create_task(queue.predict(picture(300, 300), "a", tiled))
                await asyncio.to_thread(predictor.begun.wait, 30)
                assert queue.ahead == 144  # tiles, of a fifth of a second each as long as nobody knows better
                with pytest.raises(Busy) as full, queue.place():
                    pass
                assert 10 < full.value.retry_after < 20
                predictor.go.set()
                await task
        assert queue.ahead == queue.inside == 0

    asyncio.run(run())
