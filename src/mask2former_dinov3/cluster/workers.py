"""What runs on the workers of `batch-predict`: a pass over batches, and actors that hold a model and find instances."""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from ..allocator import keep_freed_memory
from ..errors import DatasetError
from ..inference.onnx_model import data_file
from ..inference.predictor import Predictor
from ..instances import Instances
from .reading import Fitted, Read, Row, read_batch
from .resources import READER_CPUS, Workers
from .shards import Found, found_of

BLOCK_BYTES = 32 * 2**20
"""About what an actor is given at once, and loses when it dies."""
OUT_OF_MEMORY = "out of memory on the device"


@dataclass(frozen=True)
class Search:
    """What is looked for in an image, as `Predictor` takes it; together with the model it decides the results."""

    threshold: float
    max_detections: int
    tile: int | None
    overlap: float


class ModelFiles(NamedTuple):
    """A model as the bytes of its files, which need no folder that all machines see."""

    name: str  # of the folder or file
    files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """A model folder, or an .onnx file with the weights that may lie beside it."""
        if path.is_file():
            parts = (path, data_file(path))
            return cls(path.name, {part.name: part.read_bytes() for part in parts if part.exists()})
        names = [*path.glob("*.json"), *path.glob("*.safetensors")]
        return cls("", {name.name: name.read_bytes() for name in sorted(names)})

    def load(self, device: str) -> Predictor:
        """The model on a device."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                (Path(folder) / name).write_bytes(data)
            return Predictor.from_pretrained(Path(folder, self.name), device)


class FindInBatch:
    """`read` to `found`, by a model that stays loaded; `trouble` says what happened where the model itself failed.

    model: a reference in Ray's object store to `ModelFiles`. batch_size: tiles at once.
    """

    def __init__(self, model: Any, search: Search, device: str, batch_size: int) -> None:
        import ray

        keep_freed_memory()
        files: ModelFiles = ray.get(model)
        self.predictor = files.load(device)
        self.search = search
        self.batch_size = batch_size

    def __call__(self, row: Row) -> Row:
        found, trouble = b"", ""
        try:
            found = pickle.dumps(self.find(pickle.loads(row["read"])))
        except torch.OutOfMemoryError:
            trouble = OUT_OF_MEMORY
        except Exception:  # raised here it would only cost the batch: it would pass for the death of a worker
            trouble = traceback.format_exc()
        return {"number": row["number"], "found": found, "trouble": trouble}

    def find(self, read: Sequence[Read]) -> Found:
        """Instances of a batch: images on the canvas together, images of tiles one by one."""
        images: list[tuple[str, Instances, float]] = []
        failures = [(image, content) for image, content in read if isinstance(content, str)]
        start = time.perf_counter()
        if fitted := [(image, content) for image, content in read if isinstance(content, Fitted)]:
            prepared = [self.predictor.processor.on_canvas(*content) for _, content in fitted]
            found = self.predictor.predict_prepared(prepared, self.search.threshold, self.search.max_detections)
            seconds = (time.perf_counter() - start) / len(fitted)
            images = [(image, instances, seconds) for (image, _), instances in zip(fitted, found, strict=True)]
        for image, content in read:
            if isinstance(content, bytes):
                start = time.perf_counter()
                try:
                    images.append((image, self.find_in_tiles(image, content), time.perf_counter() - start))
                except DatasetError as error:
                    failures.append((image, str(error)))
        return found_of(images, failures)

    def find_in_tiles(self, image: str, content: bytes) -> Instances:
        """Instances of an image of any size; a file of its own lets the predictor read window by window."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, PurePosixPath(image).name)
            file.write_bytes(content)
            try:
                return self.predictor(file, batch_size=self.batch_size, **asdict(self.search))
            except DatasetError as error:
                raise DatasetError(str(error).replace(str(file), image)) from error


class Pass:
    """The job on Ray Data, in a process (a Ray actor) of its own."""

    def results(
        self,
        parts: list[Any],
        model: list[Any],
        canvas: tuple[int, int],
        search: Search,
        workers: Workers,
        *,
        batch_size: int,
        careful: bool,
    ) -> Iterator[Row]:
        """Rows of `FindInBatch` in any order; those of workers that die do not come.

        parts: references to Arrow tables of `number` and `images`. model: one reference, in a list that Ray passes on
        as it is. Ray would send a batch that died with its worker to the same worker again and again; so nothing is
        tried twice here. careful: an actor has only one batch at a time to lose.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.max_errored_blocks = -1
        context.execution_no_progress_timeout_s = -1  # a cluster may be busy for hours, an image of many tiles take one
        read = partial(read_batch, canvas=None if search.tile else canvas)
        rows = (
            ray.data.from_arrow_refs(parts)
            .map(read, num_cpus=READER_CPUS)
            .map(
                FindInBatch,
                fn_constructor_args=(model[0], search, "cuda" if workers.gpus else "cpu", batch_size),
                compute=ray.data.ActorPoolStrategy(
                    size=min(workers.count, len(parts)), max_tasks_in_flight_per_actor=1 if careful else None
                ),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                ray_remote_args_fn=_no_second_try,
            )
        )
        yield from rows.iter_rows()


def _no_second_try() -> dict[str, int]:
    """An actor that died is started again, what it had to do is not."""
    return {"max_restarts": -1, "max_task_retries": 0}
