"""The task "instance-segmentation" of transformers' `pipeline`, which keeps every instance's mask whole.

Importing this module registers the model with transformers: `AutoConfig`, `AutoModelForUniversalSegmentation`,
`AutoImageProcessor`, and this task. The stock task "image-segmentation" works as well, but assigns each pixel to one
instance only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .inference.image_inputs import TIMEOUT, HeldImage, check_timeout
from .inference.image_passes import ImagePasses
from .inference.image_processing import Mask2FormerDinov3ImageProcessor
from .inference.limit_notes import limit_lines
from .inference.load_images import load_image
from .inference.postprocess import logits_of, pixel_mask_of, post_process
from .inference.settings import InferenceSettings
from .inference.tiles.grid import Passes
from .inference.tiles.part_reader import ImageReader
from .instances import Instances

logger = logging.getLogger(__name__)
TASK = "instance-segmentation"


class PipelineSettings(TypedDict, total=False):
    """Arguments of the task beside those of `Pipeline`; what is not given has the value of `InferenceSettings`."""

    threshold: float | Mapping[str, float]
    max_detections: int
    copy_overlap: float


class PipelineArguments(PipelineSettings, total=False):
    """The settings, and timeout: seconds for an image behind an address."""

    timeout: float


class PipelineInstance(TypedDict):
    """One instance. mask: "L", 255 inside, of the image's size; box: xmin, ymin, xmax, ymax in pixels."""

    score: float
    label: str
    mask: Image.Image
    box: dict[str, int]


class InstanceSegmentationPipeline(Pipeline):
    """Image in, a list of its instances out, best first: the same as those of `Predictor`.

    Takes a path, an address, a data URI or base64, a PIL image, an array or a tensor (see `image_inputs`), or a list,
    data set or generator of them. Arguments, at construction or in a call: threshold, max_detections, copy_overlap (by
    default the model's own values, as in `Predictor`), timeout, and those of `Pipeline`, such as batch_size.

    Each instance is a dict: score; label, the class name; mask, a PIL image ("L", 255 inside) of the image's size; box,
    {"xmin", "ymin", "xmax", "ymax"} in pixels around the mask, xmax and ymax exclusive. Masks may overlap.
    Raises OptionError for a threshold or max_detections out of range, DatasetError for a file that is no image,
    ValueError for anything else that is no image.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False
    image_processor: Mask2FormerDinov3ImageProcessor

    def _sanitize_parameters(
        self, **parameters: Unpack[PipelineArguments]
    ) -> tuple[dict[str, object], PipelineSettings, dict[str, object]]:
        known = [*PipelineSettings.__annotations__, "timeout"]
        unknown = sorted(parameters.keys() - {*known})
        if unknown:
            raise TypeError(f"{TASK}: expected {', '.join(known)}, got {', '.join(unknown)}")
        loading: dict[str, object] = {}
        if (timeout := parameters.pop("timeout", None)) is not None:
            check_timeout(timeout)
            loading["timeout"] = timeout
        settings = cast("PipelineSettings", parameters)
        InferenceSettings(**settings).for_model(self.model.config)  # checks the values
        return loading, settings, {}

    def preprocess(self, input_: HeldImage, timeout: float = TIMEOUT) -> dict[str, object]:
        """One image as a batch of one; as it is where images may be cut into tiles."""
        processor = self.image_processor
        image = processor.to_image(input_, timeout)
        if Passes.of(processor.size, processor.read_options).may_cut:
            return {"image": load_image(image, processor.read_options, processor.num_channels)}
        inputs = processor.collate([processor.prepare(image)])
        return {**inputs.to(self.dtype)}

    def _forward(
        self, input_tensors: dict[str, object], **parameters: Unpack[PipelineSettings]
    ) -> dict[str, list[Instances]]:
        """Masks are made here, on the model's device, and encoded as RLE, which is smaller to move than the logits."""
        settings = InferenceSettings(**parameters).for_model(self.model.config)
        if "image" in input_tensors:
            found = self._predict(cast("NDArray[np.uint8] | list[NDArray[np.uint8]]", input_tensors["image"]), settings)
            return {"instances": self._noted(found, settings)}
        # transformers batches what is not a tensor as a list of each image's value: here lists with one size each.
        stored = cast("list[tuple[int, int] | list[tuple[int, int]]]", input_tensors.pop("original_sizes"))
        sizes = [size[0] if isinstance(size, list) else size for size in stored]
        outputs = self.model(**input_tensors)
        found = post_process(*logits_of(outputs), sizes, pixel_mask_of(outputs), settings=settings)
        return {"instances": self._noted(found, settings)}

    def _predict(
        self, images: NDArray[np.uint8] | list[NDArray[np.uint8]], settings: InferenceSettings
    ) -> list[Instances]:
        """Instances of one image (H, W, C), or of as many as transformers put into a batch."""
        predictor = ImagePasses(self.model, self.image_processor)
        batch = images if isinstance(images, list) else [images]
        settings = replace(settings, batch_size=len(batch))
        ready = ((number, predictor.ready(ImageReader.of(pixels), settings)) for number, pixels in enumerate(batch))
        return [replace(one, categories=None) for _, one in predictor.predict_each(ready, settings)]

    def _noted(self, found: list[Instances], settings: InferenceSettings) -> list[Instances]:
        """The same instances; what is not among them is logged."""
        for one in found:
            for line in limit_lines(one.left_out, settings.max_detections or 0):
                logger.warning(line)
        return found

    def postprocess(self, model_outputs: dict[str, Instances | list[Instances]]) -> list[PipelineInstance]:
        """The instances of one image as dicts."""
        found = model_outputs["instances"]
        if isinstance(found, list):  # without batch_size; from a batch transformers takes one image's instances
            (found,) = found
        return [
            {
                "score": float(score),
                "label": str(self.model.config.id2label[int(label)]),
                "mask": Image.fromarray(found.mask(index)).convert("L"),
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(int, box), strict=True)),
            }
            for index, (score, label, box) in enumerate(zip(found.scores, found.labels, found.boxes, strict=True))
        ]


if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):  # a model folder's own code must not change the registry
    PIPELINE_REGISTRY.register_pipeline(
        TASK, InstanceSegmentationPipeline, pt_model=AutoModelForUniversalSegmentation, type="image"
    )
    # With this attribute `save_pretrained` would copy this file into the folder, without the modules it imports.
    del InstanceSegmentationPipeline._registered_impl
