"""From a model to its COCO AP: predict all images of a split at their own size, and score the results.

Masks stay RLE between the model and the score, also between processes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from ..atomic_files import check_writable, write_json, write_text
from ..data.check import UNLISTED, check_data
from ..data.coco import CocoData, ImageRecord
from ..data.coco_json import class_name
from ..data.coco_types import CocoResult, Metrics
from ..data.faults import FaultReport
from ..data.formats.class_map import ClassMap, applicable, class_names, leave_out
from ..data.formats.format_table import read_content
from ..data.formats.source_content import Reading
from ..data.images import check_channel_count, check_image_size, read_image
from ..data.layout import Split, missing_path
from ..data.read_rules import ReadRules
from ..errors import ConfigError, DatasetError
from ..folder_lock import hold_folder
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.network import Network
from ..inference.predictor import Predictor, check_extra_images, load_model
from ..inference.prefetch import prefetch
from ..inference.score_calibration import UNCHANGED
from ..inference.settings import InferenceSettings, Tta
from ..inference.tiles.part_reader import ImageReader
from ..progress_bar import ProgressBar
from ..read_options import AS_SAVED, ReadChanges, ReadOptions
from .coco_ap import ceiling_notes, cut_notes, score_predictions, score_results
from .coco_files import GroundTruth, read_ground_truth, read_results
from .operating_point import BEST_F1, Aim
from .result_ids import read_both_forms, write_names
from .stored_evaluation import EVALUATION_FILE, write_evaluation


def match_categories(id2label: Mapping[int, str], data: CocoData) -> list[int | None]:
    """For each label 0..K-1 of the model, the category id that the data set has for the class of the same name.

    None for a class that the data set does not have: its detections are not scored. id2label: label -> class name, from
    the model's configuration; names are compared as `class_name` makes them. Raises DatasetError listing both sides if
    the data set has a class that the model does not, or the model two classes of one name. (A data set in which two
    classes share a name is refused when it is read.)
    """
    of_model = [class_name(str(id2label[label])) or str(id2label[label]) for label in range(len(id2label))]
    of_data = [category.name for category in data.categories]
    if not set(of_data) <= set(of_model) or len(set(of_model)) < len(of_model):
        missing = sorted((Counter(of_data) - Counter(of_model)).elements())
        extra = sorted((Counter(of_model) - Counter(of_data)).elements())
        raise DatasetError(
            f"{data.annotations}: expected the classes of the model, got others\n"
            f"  annotations: {_join(of_data)}\n  model:       {_join(of_model)}\n"
            f"  not in the model: {_join(missing)}; not in the annotations: {_join(extra)}\n"
            "  classes are matched by name: rename the categories, or use the model trained on this data set"
        )
    by_name = {category.name: category.id for category in data.categories}
    return [by_name.get(name) for name in of_model]


def predict_split(
    model: Network,
    processor: Mask2FormerDinov3ImageProcessor,
    data: CocoData,
    *,
    batch_size: int = 1,
    max_detections: int = 100,
    tta: Tta = "none",
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
    unreadable: dict[int, str] | None = None,
    network_scores: bool = False,
) -> list[CocoResult]:
    """COCO results of every image i of `data` with i % world == rank, for `evaluate_coco`.

    The lists of all ranks, joined in any order, give the score that one process gives. Memory: two batches of images
    and what `post_process` may take; of an image only RLE stays. The model runs in evaluation mode and without
    gradients; every module is left in the mode that it came in. unreadable: gets the images that cannot be read,
    id -> reason, which have no results then. network_scores: those before the model's calibration.
    Raises DatasetError for classes that are not the model's and, without `unreadable`, for an image that cannot be read
    or is not of the size in the annotations; OptionError for batch_size or max_detections below 1.
    """
    settings = InferenceSettings(0.0, max_detections, batch_size, copy_overlap=1.0, tta=tta)
    settings = replace(settings, score_calibration=UNCHANGED) if network_scores else settings
    ids = match_categories(model.config.id2label, data)
    absent = min((category for category in ids if category is not None), default=0) - 1  # no id of the file
    categories = tuple(
        (absent if category is None else category, str(model.config.id2label[label]))
        for label, category in enumerate(ids)
    )
    records = data.images[rank::world]
    results: list[CocoResult] = []
    with (
        _in_evaluation_mode(model),
        ProgressBar(total=len(records), desc="evaluate", unit="image", disable=not progress, leave=False) as bar,
    ):
        predictor = Predictor(model, processor, categories)
        with closing(_load(records, predictor, settings, unreadable)) as loaded:
            for record, instances in predictor.predict_each(loaded, settings):
                own = cast("list[CocoResult]", instances.to_coco(record.id))  # the image id is an int
                results.extend(result for result in own if result["category_id"] != absent)
                bar.update()
    return results


def split_for(split: Split, names: Collection[str], class_map: ClassMap | None) -> Split:
    """The split with the classes that a model was trained on, where its annotations still have the original names.

    names: the model's classes. class_map: the map that its training data were read with. A split whose classes are
    the model's already, or that has a map of its own, stays as it is.
    """
    if class_map is None or split.classes is not None:
        return split
    report = FaultReport(str(split.annotations))
    content = read_content(split, report)
    known = replace(split, reading=Reading(content, tuple(report.faults), report.places))
    found = class_names(content)
    return known if set(found) == set(names) else replace(known, classes=applicable(class_map, found))


def in_common(split: Split, data: CocoData, names: Collection[str]) -> Split:
    """The split without the classes that the model lacks, whose objects are then background, which a note says.

    The split itself where the model has all classes, or none, which `match_categories` refuses. data: what was read of
    it. names: the model's classes.
    """
    of_model = {class_name(str(name)) for name in names}
    extra = {category.name for category in data.categories if category.name not in of_model}
    if not extra or len(extra) == len(data.categories):
        return split
    found = class_names(read_content(replace(split, classes=None), FaultReport(str(split.annotations))))
    return replace(split, classes=leave_out(split.classes, found, extra))


def evaluate_model(
    model: str | Path | None,
    annotations: Path | Split,
    images: Path | None,
    output: Path,
    *,
    max_detections: int = 100,
    batch_size: int = 1,
    tta: Tta = "none",
    device: str | None = None,
    predictions: Path | None = None,
    rules: ReadRules | None = None,
    aim: Aim = BEST_F1,
    reading: ReadChanges = AS_SAVED,
    compile_model: bool = False,
    progress: bool = False,
) -> Metrics:
    """Score a model (as `load_model` takes it) on a COCO file with its images, or the results file `predictions`.

    annotations: the file, or a split of any format, whose own images are then used. images: the only folder in which
    those of a file are looked for; all are checked before the first prediction. reading: how images are read, where
    that is not as saved with the model. rules: what crowd flags and incomplete images mean, for a file. compile_model:
    see `compiled_predict`. Where a model was trained with `classes`, a file that has the original names is read with
    the same map. aim: what the score threshold is chosen for. max_detections: of COCO's metrics; the model predicts at
    least as many as it has queries, and all of them count for the operating point. tta: see `InferenceSettings`.
    Writes metrics.json, predictions.json, images.json, which names the images and classes of its ids, and
    evaluation.json, which names the ground truth, into `output`, each atomically, and returns the metrics.
    Raises ConfigError if neither a model with images nor predictions are given, OptionError for batch_size or
    max_detections below 1 and while another command is writing to `output`, DatasetError and CheckpointError for what
    cannot be read.
    """
    # Checks the values before any work.
    limits = InferenceSettings(max_detections=max_detections, batch_size=batch_size, tta=tta)
    if isinstance(annotations, Split):
        split = annotations
    else:
        rules = ReadRules() if rules is None else rules
        split = Split("evaluate", Path(annotations), images or Path(), only_images=True, rules=rules)
    if predictions is None and (model is None or (images is None and not isinstance(annotations, Split))):
        raise ConfigError("evaluate: expected a model and the folder of the images, or a file of predictions")
    with hold_folder(output, "output", "evaluate"):
        if predictions is not None:
            metrics = _score_file(split, predictions, output, max_detections, aim)
        else:
            load = partial(load_model, str(model), device, reading, compile_model=compile_model)
            metrics = _score_model(str(model), load, split, output, limits, aim, progress)
        write_json(output / "metrics.json", metrics)
    return metrics


def _score_model(
    model: str,
    load: Callable[[], tuple[Network, Mask2FormerDinov3ImageProcessor]],
    split: Split,
    output: Path,
    limits: InferenceSettings,
    aim: Aim,
    progress: bool,
) -> Metrics:
    """Predict and score a split; writes predictions.json, images.json and evaluation.json.

    load: loads `model`. limits: max_detections of COCO's metrics, batch_size and tta.
    """
    check_paths(split)  # before the model, which takes time to load and says how the images are read
    network, processor = load()
    check_extra_images(processor)
    mapped, data = read_for_model(split, network, processor)
    check_writable(output)
    start = time.perf_counter()
    results = predict_for_score(network, processor, data, limits, progress=progress)
    write_text(output / "predictions.json", json.dumps(results) + "\n")
    truth = read_ground_truth(mapped)
    write_names(output, truth.listed)
    write_evaluation(output, mapped, truth, limits.max_detections or 0, model)
    metrics = score_network(network, processor, data, truth, results, limits, aim)
    if calibration := metrics["operating_point"].get("calibration"):
        calibration["before"] = list(network.config.score_calibration or UNCHANGED)
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    return metrics


def read_for_model(
    split: Split, network: Network, processor: Mask2FormerDinov3ImageProcessor
) -> tuple[Split, CocoData]:
    """A split with the classes that a model can be scored on (`split_for`, `in_common`), and its records.

    All images are there; warnings and notes are logged. Raises DatasetError for data that cannot be read.
    """
    names = network.config.id2label.values()
    mapped = split_for(split, names, network.config.class_map)
    data = _read_checked(mapped, processor.read_options)
    common = in_common(mapped, data, names)
    return (mapped, data) if common is mapped else (common, _read_checked(common, processor.read_options))


def predict_for_score(
    network: Network,
    processor: Mask2FormerDinov3ImageProcessor,
    data: CocoData,
    limits: InferenceSettings,
    *,
    progress: bool = False,
) -> list[CocoResult]:
    """`predict_split` for COCO's metrics and the operating point. limits: as for `score_network`."""
    most = max(limits.max_detections or 0, network.config.num_queries)
    return predict_split(
        network,
        processor,
        data,
        batch_size=limits.batch_size,
        max_detections=most,
        tta=limits.tta,
        progress=progress,
    )


def score_network(
    network: Network,
    processor: Mask2FormerDinov3ImageProcessor,
    data: CocoData,
    truth: GroundTruth,
    results: list[CocoResult],
    limits: InferenceSettings,
    aim: Aim = BEST_F1,
) -> Metrics:
    """The content of metrics.json, but `seconds`: of the `results` that `predict_for_score` has for `data`.

    truth: of the same split. limits: max_detections of COCO's metrics, batch_size and tta.
    """
    max_detections, num_queries = limits.max_detections or 0, network.config.num_queries
    metrics = score_results(truth, read_results(results, truth), max_detections, aim)
    if num_queries < max_detections and processor.read_options.factor is None:  # otherwise a limit of each tile
        metrics["notes"] += ceiling_notes(truth, num_queries, "the model's num_queries")
    if limits.tta != "none":
        metrics["notes"].append(f"tta: {limits.tta}; without it the results are others, and so is the best threshold")
    ids = match_categories(network.config.id2label, data)
    unscored = [str(network.config.id2label[label]) for label, category in enumerate(ids) if category is None]
    if unscored:
        metrics["notes"].append(f"classes of the model that the annotations lack are not scored: {_join(unscored)}")
    return metrics


def _score_file(split: Split, predictions: Path, output: Path, max_detections: int, aim: Aim) -> Metrics:
    """Score a results file, and copy it to the output with the names of its ids."""
    check_writable(output)
    start = time.perf_counter()
    truth = read_ground_truth(split)
    found = read_both_forms(predictions)
    metrics = score_predictions(truth, found, max_detections, aim)
    if not (predictions.parent / EVALUATION_FILE).exists():  # `evaluate` cuts nothing off
        metrics["notes"] += cut_notes(found.entries)
    metrics["seconds"] = round(time.perf_counter() - start, 3)
    if not (output / "predictions.json").exists() or not predictions.samefile(output / "predictions.json"):
        write_text(output / "predictions.json", json.dumps(found.entries) + "\n")
        write_names(output, found.names or truth.listed)
    write_evaluation(output, split, truth, max_detections, predictions)
    return metrics


def check_paths(split: Split) -> None:
    """Raise OptionError where the annotations or the folder of the images are not there."""
    if split.format == "coco" and not split.annotations.exists():
        raise missing_path("annotations", [split.annotations], "file")
    if split.annotations.exists() and not split.images.is_dir():
        raise missing_path("images", [split.images], "folder")


def _read_checked(split: Split, options: ReadOptions) -> CocoData:
    """The records of a split whose images are all there; warnings and notes are logged. Raises the errors of both."""
    report = check_data({split.name: split}, num_queries=None, options=options, full=False)
    report.raise_errors()
    report.log_faults(skip=UNLISTED)
    return report.data[split.name]


def _join(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def _in_evaluation_mode(model: Network) -> Iterator[None]:
    """Set evaluation mode, then restore each module's own: parts that were in evaluation mode (frozen ones) stay so."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _load(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    settings: InferenceSettings,
    unreadable: dict[int, str] | None,
) -> Generator[tuple[ImageRecord, Prepared | ImageReader], None, None]:
    """Images that `Predictor.predict_each` takes; while the model works on a batch, the next is loaded."""
    processor = predictor.processor

    def load(record: ImageRecord) -> tuple[ImageRecord, Prepared | ImageReader | DatasetError]:
        try:
            image = read_image(record.path, processor.read_options)
            where = f"image {record.id}, {record.path}"
            check_image_size(where, (record.height, record.width), image.shape[:2])
            check_channel_count(where, processor.num_channels, image.shape[2])
            return record, predictor.ready(ImageReader.of(image), settings)
        except DatasetError as error:
            if unreadable is None:
                raise
            return record, error

    with closing(prefetch(records, load, ahead=settings.batch_size)) as loaded:
        for record, one in loaded:
            if not isinstance(one, DatasetError):
                yield record, one
            elif unreadable is not None:
                unreadable[record.id] = str(one)
