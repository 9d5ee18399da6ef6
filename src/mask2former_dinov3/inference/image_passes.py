"""Images through a network, whole or in tiles: what `Predictor` and the pipeline have in common."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from ..errors import OptionError
from ..instances import Instances
from .image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from .network import Network
from .postprocess import logits_of, post_process
from .settings import InferenceSettings
from .tiles.grid import Grid, Passes
from .tiles.merging import merge_rows
from .tiles.part_reader import ImageReader
from .views import VIEWS, merge_views, settings_of_views, turn, undo_turn

Key = TypeVar("Key")


class ImagePasses:
    """A network with its image processor; images are in memory, or read in parts.

    categories: (category id of the training data, name) for every label.
    """

    def __init__(
        self,
        model: Network,
        processor: Mask2FormerDinov3ImageProcessor,
        categories: tuple[tuple[int, str], ...] | None = None,
    ) -> None:
        """categories: of the data that results are compared with; None: those of the training data."""
        self.model = model.eval()
        self.processor = processor
        self._process = os.getpid()
        names, ids = model.config.id2label, model.config.category_ids
        self.categories = categories or tuple((int(id_), str(names[label])) for label, id_ in enumerate(ids))

    def _check_process(self) -> None:
        """Use one thread after a fork: torch waits without end for the threads that the first process had."""
        if self._process == os.getpid():
            return
        if self.model.device.type == "cuda":
            got = "one of the process that was forked, which CUDA cannot use"
            raise OptionError("model", "a model loaded in this process", got, "load it here, or start with spawn")
        torch.set_num_threads(1)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_process"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()

    def fill(self, settings: InferenceSettings) -> InferenceSettings:
        """The settings with the model's own values for what is None."""
        return settings.for_model(self.model.config)

    def passes(self, settings: InferenceSettings) -> Passes:
        """How images are cut for this model: the one place that decides it. Raises OptionError for a tile too large."""
        most = 1.0 if getattr(self.model, "fixed", False) else math.inf  # of an exported file
        return Passes.of(self.processor.size, self.processor.read_options, settings, most)

    def ready(self, image: ImageReader, settings: InferenceSettings) -> Prepared | ImageReader:
        """An image prepared for the network, or, if it is to be cut into tiles, as it came."""
        grid = self.passes(settings).grid(image.height, image.width)
        return image if grid.number_of_tiles > 1 else self.processor.prepare(image.read(grid.whole))

    def predict_each(
        self, images: Iterable[tuple[Key, Prepared | ImageReader]], settings: InferenceSettings
    ) -> Iterator[tuple[Key, Instances]]:
        """The instances of images that `ready` returned, in order: whole ones in batches, others in tiles."""
        settings = self.fill(settings)
        waiting: list[tuple[Key, Prepared]] = []

        def predict_waiting() -> Iterator[tuple[Key, Instances]]:
            found = self.predict_prepared([one for _, one in waiting], settings) if waiting else []
            yield from zip([key for key, _ in waiting], found, strict=True)
            waiting.clear()

        for key, image in images:
            if isinstance(image, Prepared):
                waiting.append((key, image))
                if len(waiting) == settings.batch_size:
                    yield from predict_waiting()
                continue
            yield from predict_waiting()
            grid = self.passes(settings).grid(image.height, image.width)
            rows = self.predict_rows(image, grid, settings)
            yield key, merge_rows(rows, grid, self.categories, settings)
        yield from predict_waiting()

    def predict_rows(
        self, reader: ImageReader, grid: Grid, settings: InferenceSettings, first: int = 0
    ) -> Iterator[list[Instances]]:
        """Instances of each tile, in the tile's own coordinates: one list per row of the grid, from row `first` on.

        `merge_rows` makes one `Instances` of them, calibrates their scores and drops copies.
        """
        settings = self.fill(settings).for_parts()
        for row in range(first, len(grid.tops)):
            found: list[Instances] = []
            for tiles in grid.batches(row, settings.batch_size):
                prepared = [self.processor.prepare(reader.read(tile)) for tile in tiles]
                found.extend(self.predict_prepared(prepared, settings))
            yield found

    @torch.no_grad()
    def predict_prepared(
        self, prepared: Sequence[Prepared], settings: InferenceSettings | Sequence[InferenceSettings]
    ) -> list[Instances]:
        """Instances of images that `processor.prepare` has put on the canvas, as one batch.

        settings: of all images or of each; with the model's own values for what is None.
        """
        each = [settings] * len(prepared) if isinstance(settings, InferenceSettings) else settings
        asked = [self.fill(one) for one in each]
        if any(one.tta != "none" for one in asked):
            return [self._predict_views(one, own) for one, own in zip(prepared, asked, strict=True)]
        # Images of one size go together: padding to a common size would change what the network says.
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(prepared):
            groups.setdefault(one.values.shape, []).append(place)
        found: dict[int, Instances] = {}
        for places in groups.values():
            inputs = self.processor.collate([prepared[place] for place in places]).to(self.model.device)
            values = inputs["pixel_values"].to(getattr(self.model, "dtype", torch.float32))
            outputs = self.model(pixel_values=values, pixel_mask=inputs["pixel_mask"])
            results = post_process(
                *logits_of(outputs),
                inputs["original_sizes"],
                inputs["pixel_mask"],
                settings=[asked[place] for place in places],
                categories=self.categories,
            )
            found.update(zip(places, results, strict=True))
        return [found[place] for place in range(len(prepared))]

    def _predict_views(self, prepared: Prepared, settings: InferenceSettings) -> Instances:
        """Instances of one image, merged from its views (`InferenceSettings.tta`); settings: filled."""
        height, width = prepared.mask.shape
        if settings.tta == "all" and height != width and getattr(self.model, "fixed", False):
            got = "all, for an exported file that takes no other size than its own, which is not square"
            raise OptionError("tta", "none, horizontal or both", got)
        views, alone = VIEWS[settings.tta], settings_of_views(settings)
        each: list[Instances] = []
        for start in range(0, len(views), settings.batch_size):
            some = views[start : start + settings.batch_size]
            found = self.predict_prepared([turn(prepared, view) for view in some], alone)
            each.extend(undo_turn(one, view) for one, view in zip(found, some, strict=True))
        return merge_views(each, settings, self.model.config.num_queries)
