"""A task of transformers' `pipeline`: "instance-segmentation", with every instance whole.

Importing this module makes the model known to transformers: `AutoConfig`, `AutoModelForUniversalSegmentation`,
`AutoImageProcessor`, and this task. The stock task "image-segmentation" works as well, but gives each pixel to one
instance only.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import AutoModelForUniversalSegmentation, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .inference.image_processing import Mask2FormerDinov3ImageProcessor
from .instances import Instances

TASK = "instance-segmentation"


class InstanceSegmentationPipeline(Pipeline):
    """Image in, a list of its instances out, best first: the ones that `Predictor` gives.

    Takes a path, a PIL image or an RGB array (H, W, 3) of uint8, or a list, data set or generator of them. Arguments,
    at construction or in a call: threshold (0.5), max_detections (100), and all of `Pipeline`, such as batch_size.

    Each instance is a dict: score; label, the class's name; mask, a PIL image ("L", 255 inside) of the image's own
    size; box, {"xmin", "ymin", "xmax", "ymax"} in pixels around the mask, the far edges not in it. Masks may overlap.
    Raises DatasetError for a file that is no image, ValueError for what else is none.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False
    image_processor: Mask2FormerDinov3ImageProcessor

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(parameters.keys() - {"threshold", "max_detections"})
        if unknown:
            raise TypeError(f"{TASK}: does not take {', '.join(unknown)}; expected threshold, max_detections")
        return {}, parameters, {}

    def preprocess(self, input_: Any) -> dict[str, Any]:
        inputs = self.image_processor.collate([self.image_processor.prepare(input_)])
        return {**inputs.to(self.dtype)}

    def _forward(
        self, input_tensors: dict[str, Any], threshold: float = 0.5, max_detections: int = 100
    ) -> dict[str, list[Instances]]:
        """Masks are made here, on the model's device, and leave as RLE: far less to move than their logits."""
        sizes = input_tensors.pop("original_sizes")
        # transformers batches what is no tensor as a list of what was there for each image: lists of one size.
        sizes = [size[0] if isinstance(size, list) else size for size in sizes]
        outputs = self.model(**input_tensors)
        found = self.image_processor.post_process(outputs, sizes, threshold=threshold, max_detections=max_detections)
        return {"instances": found}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        found = model_outputs["instances"]
        if isinstance(found, list):  # not in a batch, of which transformers has picked one image
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


if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):  # code in a model folder is for that folder alone
    PIPELINE_REGISTRY.register_pipeline(
        TASK, InstanceSegmentationPipeline, pt_model=AutoModelForUniversalSegmentation, type="image"
    )
    # With this attribute `save_pretrained` would copy the package's file into the folder, without what it imports.
    del InstanceSegmentationPipeline._registered_impl
