"""One job of `batch-predict`: prediction on Ray Data whose results are written shard by shard.

The list of images is cut into shards, and each shard into batches. Tasks read batches, an actor on each GPU (or each
node) predicts them, and this process alone gathers the batches of a shard and writes it. A worker that dies therefore
loses only batches that are not written; they are repeated. A batch that is predicted twice is written once.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, UserError, mismatch
from ..extras import require
from ..folder_lock import hold_folder
from ..inference.predictor import Predictor, load_model, refuse_extra_images
from ..inference.score_calibration import UNCHANGED
from ..inference.settings import DEFAULTS, InferenceSettings, describe_threshold
from ..inference.tiles.grid import Passes
from ..progress_bar import ProgressBar
from ..read_options import AS_SAVED, ReadChanges, ReadOptions
from .connection import connect_ray, live_nodes
from .gathering import Batches, BatchSummary, Gathering
from .image_list import filesystem_of, is_local, list_images
from .reading import ResultRow
from .resources import Workers, plan_workers
from .shards import ShardFolder
from .workers import OUT_OF_MEMORY, ModelFiles, Pass

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef

logger = logging.getLogger(__name__)
ATTEMPTS = 3
MOST_TASKS = 20_000
"""Maximum number of reading tasks per job: it bounds the state that Ray keeps of them, for ten million images too."""
IMAGES_PER_TASK = 16
"""Minimum number of images that a task reads."""
WATCH_SECONDS = 10
"""After this time without a result the nodes of the cluster are counted."""


def batch_predict(
    model: str | Path,
    inputs: Sequence[str],
    output: str,
    *,
    settings: InferenceSettings = DEFAULTS,
    column: str | None = None,
    device: str | None = None,
    reading: ReadChanges = AS_SAVED,
    ray_address: str | None = None,
    actors: int | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    shard_size: int = 1000,
    retry_failed: bool = False,
    progress: bool = False,
) -> BatchSummary:
    """Find instances in all images of `inputs` (see `list_images`) and write them to `output` (see `shards`).

    Images that `output` holds already are skipped; failed ones are repeated with retry_failed. The results equal those
    of `predict`. settings: as in `Predictor`; with tiles a batch is one image. column: of Parquet lists. device: "cpu"
    or "cuda", None for GPUs if the cluster has any. reading: how images are read, where that is not as saved with the
    model. ray_address: of a cluster ("auto": the one on this machine); None for RAY_ADDRESS or, if it is not set, for a
    new cluster that ends with the call. If Ray is initialised already, its cluster is used. actors, cpus_per_actor,
    gpus_per_actor: see `plan_workers`. shard_size: images per shard. progress: show a progress bar.
    Raises UserError for what the user can fix, and KeyboardInterrupt; complete shards are kept.
    """
    require("ray", "batch-predict", "ray", "pyarrow", "fsspec")
    _check_options(device, actors, cpus_per_actor, gpus_per_actor, shard_size)
    predictor = Predictor(*load_model(model, "cpu", reading))  # one that cannot be used fails before the cluster starts
    refuse_extra_images(predictor.processor, "batch-predict")
    given, settings = settings, predictor.fill(settings)
    files = ModelFiles.read(_find_files(model))
    with _hold_output(output):
        folder = ShardFolder(output, _describe_results(files, settings, predictor, reading))
        if retry_failed:
            folder.forget_failures()
        images, summary = _select_remaining(list_images(inputs, column), folder)
        _note_settings(summary, given, predictor)
        if not len(images):
            return summary
        batches = Batches(images, shard_size, 1 if settings.tile else settings.batch_size)
        gpus = {"cpu": 0.0, "cuda": gpus_per_actor or 1.0}.get(device or "", gpus_per_actor)
        bar = ProgressBar(total=len(images), desc="predict", unit="image", disable=not progress, from_first=True)
        with bar, connect_ray(ray_address):
            import ray

            job = Job.of(batches, ray.put(files), predictor, settings)
            del files, predictor
            gathering = Gathering(batches, folder, summary, bar.update)
            try:
                plan = partial(plan_workers, count=actors, cpus=cpus_per_actor, gpus=gpus)
                _predict_all(job, gathering, lambda: plan(list(live_nodes().values())))
            except KeyboardInterrupt:
                done = summary.images + summary.failed
                message = f"stopped after {done} images in {output}; the same command continues from there"
                raise KeyboardInterrupt(message) from None
    return summary


def _note_settings(summary: BatchSummary, given: InferenceSettings, predictor: Predictor) -> None:
    """What the summary says about the settings. given: without the model's own values."""
    used = predictor.fill(given)
    summary.threshold = describe_threshold(given, predictor.model.config)
    summary.tiles, summary.max_detections = predictor.passes(used).may_cut, used.max_detections or 0


@contextmanager
def _hold_output(output: str) -> Iterator[None]:
    """Lock an output folder of this machine; an object store has no locks, which is said."""
    filesystem, root = filesystem_of(output)
    if not is_local(filesystem):
        logger.warning("%s: object stores have no locks; start no second job with this output", output)
    with hold_folder(Path(root), "output", "batch-predict") if is_local(filesystem) else nullcontext():
        yield


@dataclass(frozen=True)
class Job:
    """Batches, and what is needed to predict them. passes: how images are cut. options: how images are read, with so
    many channels."""

    batches: Batches
    model: ObjectRef[ModelFiles]
    passes: Passes
    options: ReadOptions
    settings: InferenceSettings
    channels: int = 3

    @classmethod
    def of(
        cls, batches: Batches, model: ObjectRef[ModelFiles], predictor: Predictor, settings: InferenceSettings
    ) -> Job:
        """The job of a model, which `predictor` holds and `model` has in Ray's object store."""
        processor = predictor.processor
        passes = predictor.passes(settings)
        return cls(batches, model, passes, processor.read_options, settings, processor.num_channels)


def _predict_all(job: Job, gathering: Gathering, plan: Callable[[], Workers]) -> None:
    """Pass over the missing batches until none is missing; a batch that is lost in ATTEMPTS passes has failed.

    Raises UserError if a model runs out of memory or no batch at all gets done, RuntimeError with the traceback of the
    worker if a model fails.
    """
    import ray

    attempt = 0  # passes that ended normally
    lost = 0  # passes in a row that failed without a result: after the death of a node Ray may lose the next one too
    while len(numbers := gathering.missing()) and attempt < ATTEMPTS:
        try:
            for row in _results(job, numbers, plan(), careful=attempt > 0):
                if row["trouble"] == OUT_OF_MEMORY:
                    expected = "a batch that fits into the memory of the device"
                    raise OptionError("batch_size", expected, job.settings.batch_size, "lower it")
                if row["trouble"]:
                    raise RuntimeError(f"the model failed on a worker\n{row['trouble']}")
                gathering.add(row["number"], pickle.loads(row["tables"]))
        except ray.exceptions.RayError as error:
            lost = lost + 1 if len(gathering.missing()) == len(numbers) else 0
            if lost == ATTEMPTS:
                reason = str(error).strip().splitlines()[-1]
                got = f"{ATTEMPTS} failures in a row ({reason})"
                raise UserError(f"Ray: {mismatch('results from the workers', got)}") from error
            logger.warning("Ray lost a pass; continuing with the missing batches")
            continue
        except NodeLostError as error:
            logger.warning("%s; continuing with the others", error)
            continue
        attempt, lost = attempt + 1, 0
        missing = len(gathering.missing())
        if missing == len(numbers) and attempt == 1:
            advice = "they most likely ran out of memory: lower batch_size, or use fewer actors"
            raise UserError(f"Ray: {mismatch('results from the workers', 'the death of all workers', advice)}")
        if missing and attempt < ATTEMPTS:
            logger.warning("%d batches were lost with a worker that died; they are repeated", missing)
    gathering.give_up(f"its worker died in {ATTEMPTS} attempts, most likely out of memory")


class NodeLostError(Exception):
    """A node of the cluster that the plan counted on has left."""


def _results(job: Job, numbers: NDArray[np.int64], workers: Workers, *, careful: bool) -> Iterator[ResultRow]:
    """One pass over the batches `numbers`. Raises NodeLostError if no result comes and a node has left.

    Ray restarts the actors of a lost node on another node. There they may take the last CPU from the reading tasks, and
    then both wait for ever. Also, an actor may outlive its pass. So each pass is a process of its own: killing it ends
    all that it started.
    """
    import pyarrow as pa
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = len(numbers) if careful else min(-(-len(numbers) * job.batches.batch_size // IMAGES_PER_TASK), MOST_TASKS)
    # Arrow tables, made one at a time: as Python strings all names together would take many times the memory.
    parts = [
        ray.put(pa.table({"number": part, "images": [job.batches.images_of(number) for number in part.tolist()]}))
        for part in np.array_split(numbers, min(tasks, len(numbers)))
    ]
    planned = live_nodes().keys()
    # On the node of this process: it cannot be lost while this process lives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    run = ray.remote(num_cpus=0, scheduling_strategy=here)(Pass).remote()
    rows = run.results.options(num_returns="streaming").remote(
        parts, [job.model], job.passes, job.options, job.settings, workers, channels=job.channels, careful=careful
    )
    try:
        while True:
            ready, _ = ray.wait([rows], timeout=WATCH_SECONDS)
            if ready:
                yield ray.get(next(rows))
            elif lost := planned - live_nodes().keys():
                raise NodeLostError(f"{len(lost)} of {len(planned)} nodes have left the cluster")
    except StopIteration:
        return
    finally:
        ray.kill(run)


def _check_options(
    device: str | None,
    actors: int | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float | None,
    shard_size: int,
) -> None:
    """Raise OptionError for a value that no job can use."""
    for name, value in (("actors", actors), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise OptionError(name, "a whole number above 0", value)
    if device not in (None, "cpu", "cuda"):
        raise OptionError("device", "cpu or cuda", device, "Ray gives every actor a GPU of its own")
    if cpus_per_actor is not None and not 0 < cpus_per_actor < math.inf:
        raise OptionError("cpus_per_actor", "a number above 0", cpus_per_actor)
    if gpus_per_actor is not None and not 0 <= gpus_per_actor <= 1:
        raise OptionError("gpus_per_actor", "a number from 0 to 1", gpus_per_actor, "a model runs on one GPU")


def _find_files(model: str | Path) -> Path:
    """The folder or file of a model that has just been loaded; for a hub id its folder in the cache."""
    from huggingface_hub import snapshot_download

    path = Path(model)
    return path if path.exists() else Path(snapshot_download(str(model), local_files_only=True))


def _describe_results(
    files: ModelFiles, settings: InferenceSettings, predictor: Predictor, reading: ReadChanges
) -> dict[str, object]:
    """Everything that the results depend on, for settings.json; what is read as saved with the model is left out."""
    digest = hashlib.sha256()
    for name, data in files.files.items():
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    values = asdict(settings)
    del values["batch_size"]  # changes the speed only
    if settings.copy_overlap == 1:  # nothing is dropped, as in results of earlier versions
        del values["copy_overlap"]
    if settings.tta == "none":
        del values["tta"]
    if settings.score_calibration in (None, UNCHANGED):
        del values["score_calibration"]
    return {
        "model_sha256": digest.hexdigest(),
        **values,
        **reading.given,
        "categories": [{"id": id_, "name": name} for id_, name in predictor.categories],
    }


def _select_remaining(images: pa.LargeStringArray, folder: ShardFolder) -> tuple[pa.LargeStringArray, BatchSummary]:
    """The images that are in no complete shard, and a summary that counts the others."""
    import pyarrow.compute as pc

    done, failed = folder.done()
    is_done, has_failed = (pc.is_in(images, value_set=some) for some in (done, failed))
    remaining = images.filter(pc.invert(pc.or_(is_done, has_failed)))
    earlier, failed_earlier = (pc.sum(some).as_py() or 0 for some in (is_done, has_failed))
    return remaining, BatchSummary(folder.output, earlier=earlier, failed_earlier=failed_earlier)
