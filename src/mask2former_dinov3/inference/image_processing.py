"""Images of any kind to what the model takes, and what the model gives to instances: transformers' image processor.

It does in use what the data set does in training, by the same functions: no torchvision, no second resize.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ..canvas import check_canvas, padded_size
from ..data.images import read_image, to_rgb
from ..data.transforms import fit_image, to_pixel_values
from ..instances import Instances
from ..model import Mask2FormerDinov3Config
from ..model.configuration import IMAGENET
from .postprocess import post_process

ImageLike: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.uint8]

CANVAS = {"height": 1024, "width": 1024}


class Prepared(NamedTuple):
    """One image on its canvas: values (3, H, W) float32, mask (H, W) bool, original (height, width)."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    original_size: tuple[int, int]


class Mask2FormerDinov3ImageProcessor(BaseImageProcessor):
    """Fits images into the training canvas (up or down, aspect kept), top left, and pads right and bottom.

    size: {"height", "width"} of the canvas, multiples of 16; tensors are padded to multiples of 32. image_mean,
    image_std: of RGB in 0..1. All of it is what the weights were trained with, kept in preprocessor_config.json; there
    are no switches to turn a step off, since the weights know no other input.

    The padding always fills the whole canvas, so that what an image gives does not depend on its batch.
    """

    model_input_names = ("pixel_values", "pixel_mask")

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = IMAGENET[0],
        image_std: Sequence[float] = IMAGENET[1],
        **kwargs: Any,
    ) -> None:
        """Raises ValueError for a canvas or a mean and std that cannot be."""
        if self._auto_class is None:  # they are about code in the folder this was read from (see `bundled_code`)
            kwargs = {key: value for key, value in kwargs.items() if key not in ("auto_map", "video_processor_type")}
        super().__init__(**kwargs)
        size = dict(size or CANVAS)
        if set(size) != {"height", "width"}:
            raise ValueError(f'size: expected {{"height": ..., "width": ...}} of the canvas, got {size}')
        check_canvas(size["height"], size["width"])
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise ValueError(
                f"image_mean, image_std: expected three numbers each, std above 0, got {image_mean} and {image_std}"
            )
        self.size = {"height": int(size["height"]), "width": int(size["width"])}
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]

    def preprocess(
        self, images: ImageLike | Sequence[ImageLike], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One image or a list of them (path, PIL image, RGB uint8 array (H, W, 3)) as a batch for the model.

        Returns pixel_values (B, 3, H, W) float32, pixel_mask (B, H, W) bool, True on real pixels, and original_sizes,
        B times (height, width), for `post_process`. return_tensors: "pt", or None or "np" for arrays.
        Raises DatasetError for a file that is no image, ValueError for an array that is no RGB image.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(kwargs)}: its steps are those of training")
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f'return_tensors: expected "pt", "np" or None, got {return_tensors!r}')
        batch = self.collate([self.prepare(image) for image in as_list(images)])
        if return_tensors != "pt":
            for name in self.model_input_names:
                batch[name] = batch[name].numpy()
        return batch

    def prepare(self, image: ImageLike) -> Prepared:
        """One image on its canvas; safe to call from several threads."""
        rgb = load_image(image)
        return self.on_canvas(fit_image(rgb, self.size["height"], self.size["width"]), (rgb.shape[0], rgb.shape[1]))

    def on_canvas(self, fitted: NDArray[np.uint8], original_size: tuple[int, int]) -> Prepared:
        """The second half of `prepare`: from an image that `fit_image` has brought to its size on the canvas."""
        canvas = padded_size(self.size["height"], self.size["width"])
        return Prepared(*to_pixel_values(fitted, *canvas, self.image_mean, self.image_std), original_size)

    def collate(self, prepared: Sequence[Prepared]) -> BatchFeature:
        """Prepared images as one batch of tensors, as `preprocess` returns it."""
        if not prepared:
            raise ValueError("images: expected at least one")
        return BatchFeature(
            {
                "pixel_values": torch.from_numpy(np.stack([one.values for one in prepared])),
                "pixel_mask": torch.from_numpy(np.stack([one.mask for one in prepared])),
                "original_sizes": [one.original_size for one in prepared],
            }
        )

    def post_process(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor,
        pixel_mask: Tensor | None = None,
        threshold: float = 0.0,
        max_detections: int = 100,
        categories: tuple[tuple[int, str], ...] | None = None,
    ) -> list[Instances]:
        """The model's output as one `Instances` per image, best first; see `postprocess.post_process`.

        pixel_mask: None for the one that the output carries.
        """
        return post_process(
            outputs.class_queries_logits,
            outputs.masks_queries_logits,
            target_sizes,
            _pixel_mask(outputs, pixel_mask),
            threshold=threshold,
            max_detections=max_detections,
            categories=categories,
        )

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        pixel_mask: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """The same instances in the shape of Hugging Face's Mask2Former: per image `segmentation`, `segments_info`.

        segmentation: (H, W) int32 map of segment ids, -1 where there is none, the better instance on top where two
        overlap; or, with return_binary_maps, (N, H, W) bool, each mask whole; or, with return_coco_annotation, N COCO
        RLEs, each mask whole. Without an instance: all -1, an array with N = 0, an empty list.
        segments_info: dicts of id, label_id, was_fused (always False) and score, best first, in the order of the masks.
        target_sizes: None for the size of the (unpadded) canvas. overlap_mask_area_threshold: instances of which less
        than this part stays visible are left out of the map (Hugging Face has the argument without an effect).
        pixel_mask: as for `post_process`.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError("return_coco_annotation and return_binary_maps cannot both be set")
        logits = outputs.masks_queries_logits
        pixel_mask = _pixel_mask(outputs, pixel_mask)
        if target_sizes is None:
            if pixel_mask is not None:
                target_sizes = [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in pixel_mask.bool()]
            else:
                target_sizes = [(self.size["height"], self.size["width"])] * len(logits)
        found = post_process(
            outputs.class_queries_logits,
            logits,
            target_sizes,
            pixel_mask,
            threshold=threshold,
            max_detections=logits.shape[1],
            mask_threshold=mask_threshold,
        )
        if return_binary_maps:
            return [_described(torch.from_numpy(one.masks), one) for one in found]
        if return_coco_annotation:
            return [_described([dict(rle) for rle in one.rles], one) for one in found]
        return [_flattened(one, overlap_mask_area_threshold) for one in found]


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list; an array of four dimensions is several."""
    if isinstance(images, str | PathLike | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    return list(images)


def load_image(image: ImageLike) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a path, a PIL image or such an array itself, all by the rules of `data.images`."""
    if isinstance(image, str | PathLike):
        return read_image(str(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image: expected a path, a PIL image or an RGB array (height, width, 3) of uint8, got {got}")
    if 0 in image.shape:
        raise ValueError(f"image: expected at least one pixel, got {image.shape[0]}x{image.shape[1]}")
    return image


def _pixel_mask(outputs: Any, given: Tensor | None) -> Tensor | None:
    """Which pixels are real: as given, or as the model was told (without it the padding would be taken for image)."""
    carried: Tensor | None = getattr(outputs, "pixel_mask", None)
    return carried if given is None else given


def _described(segmentation: Any, found: Instances) -> dict[str, Any]:
    """Hugging Face's result of one image."""
    info = [
        {"id": index, "label_id": int(label), "was_fused": False, "score": round(float(score), 6)}
        for index, (label, score) in enumerate(zip(found.labels, found.scores, strict=True))
    ]
    return {"segmentation": segmentation, "segments_info": info}


def _flattened(found: Instances, least_visible: float) -> dict[str, Any]:
    """A label map of instances that come best first; ids count those that are in it."""
    free = np.ones((found.height, found.width), dtype=bool)
    flat = np.full((found.height, found.width), -1, dtype=np.int32)
    kept: list[int] = []
    for index, area in enumerate(found.areas):
        visible = found.mask(index) & free
        if not visible.any() or visible.sum() < least_visible * area:
            continue
        flat[visible] = len(kept)
        free &= ~visible
        kept.append(index)
    return _described(torch.from_numpy(flat), found[kept])


if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):  # code in a model folder is for that folder alone
    AutoImageProcessor.register(
        Mask2FormerDinov3Config, image_processor_classes={"pil": Mask2FormerDinov3ImageProcessor}, exist_ok=True
    )
