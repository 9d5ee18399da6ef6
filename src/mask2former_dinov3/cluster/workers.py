"""What runs on the workers of `batch-predict`: actors that hold a model and predict batches, and one pass on Ray.

Only actors with a model import torch: importing it takes seconds, and every pass is a new process.
"""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ..allocator import keep_freed_memory
from ..errors import DatasetError
from ..inference.settings import InferenceSettings
from ..inference.tiles.grid import Passes
from ..read_options import ReadOptions
from .reading import FittedImage, ReadImage, ReadRow, ResultRow, read_batch
from .resources import READER_CPUS, Workers
from .shards import ShardTables, tables_of

if TYPE_CHECKING:
    from ray import ObjectRef

    from ..inference.predictor import Predictor
    from ..instances import Instances

BLOCK_BYTES = 32 * 2**20
"""Approximate size of what an actor is given at once, and loses when it dies."""
OUT_OF_MEMORY = "out of memory on the device"


class ModelFiles(NamedTuple):
    """A model as the bytes of its files, so that the machines need no shared folder.

    name: of the .onnx file, empty for a model folder. files: name -> bytes.
    """

    name: str
    files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> ModelFiles:
        """Read a model folder, or an .onnx file with the weights that may lie beside it."""
        from ..inference.onnx_model import data_file

        if path.is_file():
            parts = (path, data_file(path))
            return cls(path.name, {part.name: part.read_bytes() for part in parts if part.exists()})
        names = [*path.glob("*.json"), *path.glob("*.safetensors")]
        return cls("", {name.name: name.read_bytes() for name in sorted(names)})

    def load(self, device: str) -> Predictor:
        """The model on a device."""
        from ..inference.predictor import Predictor

        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                (Path(folder) / name).write_bytes(data)
            return Predictor.from_pretrained(Path(folder, self.name), device)


class BatchPredictor:
    """A Ray actor: predicts batches with a model that stays loaded. model: `ModelFiles` in Ray's object store.

    options: how images are read.
    """

    def __init__(
        self, model: ObjectRef[ModelFiles], settings: InferenceSettings, options: ReadOptions, device: str
    ) -> None:
        import ray

        keep_freed_memory()
        files: ModelFiles = ray.get(model)
        self.predictor = files.load(device)
        self.predictor.processor.read_options = options
        self.settings = settings

    def __call__(self, row: ReadRow) -> ResultRow:
        import torch

        tables, trouble = b"", ""
        try:
            tables = pickle.dumps(self.predict(pickle.loads(row["read"])))
        except torch.OutOfMemoryError:
            trouble = OUT_OF_MEMORY
        except Exception:  # Ray would drop the batch as if the worker had died, and hide the traceback
            trouble = traceback.format_exc()
        return {"number": row["number"], "tables": tables, "trouble": trouble}

    def predict(self, read: Sequence[ReadImage]) -> ShardTables:
        """Results of one batch: fitted images in one forward pass, images in tiles one after the other."""
        images: list[tuple[str, Instances, float]] = []
        failures = [(image, content) for image, content in read if isinstance(content, str)]
        start = time.perf_counter()
        if fitted := [(image, content) for image, content in read if isinstance(content, FittedImage)]:
            prepared = [self.predictor.processor.on_canvas(*content) for _, content in fitted]
            found = self.predictor.predict_prepared(prepared, self.settings)
            seconds = (time.perf_counter() - start) / len(fitted)
            images = [(image, instances, seconds) for (image, _), instances in zip(fitted, found, strict=True)]
        for image, content in read:
            if isinstance(content, bytes):
                start = time.perf_counter()
                try:
                    images.append((image, self.predict_in_tiles(image, content), time.perf_counter() - start))
                except DatasetError as error:
                    failures.append((image, str(error)))
        return tables_of(images, failures)

    def predict_in_tiles(self, image: str, content: bytes) -> Instances:
        """Instances of an image of any size. From a local file the predictor can read one window at a time."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, PurePosixPath(image).name)
            file.write_bytes(content)
            options = asdict(self.settings)
            del options["score_calibration"]  # of the model, which the predictor has, too
            try:
                return self.predictor(file, **options)
            except DatasetError as error:
                raise DatasetError(str(error).replace(str(file), image)) from error


class Pass:
    """One pass over batches on Ray Data, in a process (a Ray actor) of its own."""

    def results(
        self,
        parts: list[ObjectRef[object]],
        model: list[ObjectRef[ModelFiles]],
        passes: Passes,
        options: ReadOptions,
        settings: InferenceSettings,
        workers: Workers,
        *,
        channels: int,
        careful: bool,
    ) -> Iterator[ResultRow]:
        """Results of batches in any order; batches that an actor had when it died are missing.

        parts: Arrow tables with the columns of `BatchRow`. model: one reference, in a list since Ray replaces plain
        arguments by their values. passes: how images are cut. options: how the model's images are read, with so many
        channels. careful: give each actor one batch at a time, so that it loses only that one when it dies.

        Ray would give a batch that killed its worker to the same worker again and again; so no batch is retried here.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK_BYTES
        context.max_errored_blocks = -1
        context.execution_no_progress_timeout_s = -1  # a cluster may be busy for hours, and so may one image of tiles
        rows = (
            ray.data.from_arrow_refs(parts)
            .map(partial(read_batch, passes=passes, options=options, channels=channels), num_cpus=READER_CPUS)
            .map(
                BatchPredictor,
                fn_constructor_args=(model[0], settings, options, "cuda" if workers.gpus else "cpu"),
                compute=ray.data.ActorPoolStrategy(
                    size=min(workers.count, len(parts)), max_tasks_in_flight_per_actor=1 if careful else None
                ),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                ray_remote_args_fn=_restart_without_retry,
            )
        )
        yield from rows.iter_rows()


def _restart_without_retry() -> dict[str, int]:
    """An actor that died is started again; its batches are not retried."""
    return {"max_restarts": -1, "max_task_retries": 0}
