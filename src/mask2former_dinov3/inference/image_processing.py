"""The image processor: fits images into the model's canvas as training did, and turns logits into instances.

It uses the functions that the data set uses in training: no torchvision, no second way to resize. `prepare` and
`collate` are the way in; the two `post_process` methods only forward to `postprocess`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ..canvas import check_canvas, padded_size
from ..data.fitting import fit_image, to_pixel_values
from ..errors import OptionError
from ..instances import Instances
from ..model import Mask2FormerDinov3Config
from ..model.configuration import IMAGENET
from ..read_options import AS_STORED, ImageScale, ReadOptions, as_channels
from .call_options import STEPS, CallOptions, canvas_of, read_call_options
from .image_inputs import TIMEOUT, HeldImage, each_image, to_image
from .image_text import bytes_of_text
from .load_images import ImageLike, load_image
from .postprocess import Logits, logits_of, pixel_mask_of, post_process, real_sizes
from .segment_maps import Segments, to_binary_masks, to_coco_rles, to_segment_map
from .settings import InferenceSettings

_Number = TypeVar("_Number", bound=np.generic)
DEFAULT_CANVAS = {"height": 1024, "width": 1024}


class Prepared(NamedTuple):
    """One image on its canvas: values (C, H, W) float32, mask (H, W) bool, original (height, width)."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    original_size: tuple[int, int]


class Mask2FormerDinov3ImageProcessor(BaseImageProcessor):
    """Puts images on the training canvas, top left, and pads right and bottom.

    With image_scale "fit" they are fitted into it (up or down, aspect kept). With "native", or a factor, they keep
    their own scale, times the factor; the tensor of an image larger than the canvas has the image's size, in multiples
    of 32. `Predictor` cuts such images into tiles.

    size: {"height", "width"} of the canvas, multiples of 16; tensors are padded to multiples of 32. image_mean,
    image_std: of the C channels (RGB for three) in 0..1. value_range, page, channels, image_scale: how images are read
    and scaled (`ReadOptions`). extra_channels: how many of the channels come from a second file of each image; where
    that file is is set in `read_options` and not stored. These are the values that the weights were trained with,
    stored in preprocessor_config.json. A call may change them (`call_options`), for other weights or a look at the
    input.

    The padding always fills the whole canvas, so the result for an image does not depend on its batch. Only `collate`
    of images of several sizes pads to the largest; `Predictor` runs each size on its own.
    """

    model_input_names = ("pixel_values", "pixel_mask")
    do_resize = do_rescale = do_normalize = do_pad = True

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = IMAGENET[0],
        image_std: Sequence[float] = IMAGENET[1],
        value_range: str = AS_STORED.value_range,
        page: int = AS_STORED.page,
        channels: Sequence[int] | str | None = None,
        extra_channels: int = 0,
        image_scale: ImageScale = AS_STORED.image_scale,
        **kwargs: object,
    ) -> None:
        """Raises OptionError for an invalid size, mean or std, or an invalid `ReadOptions`."""
        if self._auto_class is None:  # these keys describe code in the folder this was read from (`bundled_code`)
            kwargs = {key: value for key, value in kwargs.items() if key not in ("auto_map", "video_processor_type")}
        super().__init__(**kwargs)
        size = canvas_of(size or DEFAULT_CANVAS)
        check_canvas(size["height"], size["width"], options=("size", "size"))
        if not image_mean:
            raise OptionError("image_mean", "a number for each channel", image_mean)
        if len(image_std) != len(image_mean) or min(image_std) <= 0:
            raise OptionError("image_std", f"{len(image_mean)} numbers above 0, one for each channel", image_std)
        if not 0 <= extra_channels < len(image_mean):
            raise OptionError("extra_channels", f"a number from 0 to below {len(image_mean)}", extra_channels)
        self.size = {"height": int(size["height"]), "width": int(size["width"])}
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.extra_channels = int(extra_channels)
        self.read_options = ReadOptions(value_range, page, as_channels(channels), image_scale=image_scale)

    @property
    def read_options(self) -> ReadOptions:
        """How image files are read; everything that reads files for this model takes it from here."""
        channels = as_channels(self.channels)
        return ReadOptions(self.value_range, self.page, channels, self._extra_images, image_scale=self.image_scale)

    @read_options.setter
    def read_options(self, options: ReadOptions) -> None:
        self.value_range, self.page, self.image_scale = options.value_range, options.page, options.image_scale
        # As JSON gives it back.
        self.channels = list(options.channels) if isinstance(options.channels, tuple) else options.channels
        self._extra_images = options.extra_images

    @property
    def num_channels(self) -> int:
        """C, the channels of `pixel_values`."""
        return len(self.image_mean)

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json stores."""
        stored: dict[str, Any] = super().to_dict()
        stored.pop("_extra_images", None)  # a path of this machine
        return stored

    def preprocess(
        self, images: HeldImage | Iterable[HeldImage], return_tensors: str | None = "pt", **options: object
    ) -> BatchFeature:
        """One image or several, in any form that `image_inputs` lists or as data URI or base64, as a batch.

        Returns pixel_values (B, C, H, W) float32, pixel_mask (B, H, W) bool, True on real pixels, and original_sizes,
        B times (height, width), for `post_process`. return_tensors: "pt", or None or "np" for arrays. options: see
        `CallOptions`, with the names that they have in other processors (input_data_format for the channels' place).
        Raises DatasetError for a file that cannot be read as an image, OptionError for an array that is no such image,
        and for options that cannot be.
        """
        if return_tensors not in ("pt", "np", None):
            raise OptionError("return_tensors", '"pt", "np" or None', repr(return_tensors))
        asked = read_call_options(options, {name: getattr(self, name) for name in STEPS})
        changed = self._changed(asked)
        held = [changed.to_image(asked.arranged(image)) for image in each_image(images)]
        batch = self.collate([changed.prepare(image) if asked.do_resize else changed._put(image) for image in held])
        if return_tensors != "pt":
            for name in self.model_input_names:
                batch[name] = batch[name].numpy()
        return batch

    def to_image(self, image: object, timeout: float = TIMEOUT) -> ImageLike:
        """A path, a PIL image or an array (H, W, C) uint8, see `image_inputs`; text may also be a data URI or base64.

        timeout: seconds for an address.
        """
        data = bytes_of_text(image) if isinstance(image, str) else None
        given = image if data is None else data
        return to_image(given, self.read_options, self.num_channels, bgr=False, timeout=timeout)

    def _changed(self, asked: CallOptions) -> Mask2FormerDinov3ImageProcessor:
        """This processor with the values of one call."""
        if asked == CallOptions():
            return self
        mean = self.image_mean if asked.image_mean is None else asked.image_mean
        std = self.image_std if asked.image_std is None else asked.image_std
        if not asked.do_normalize:
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        changed = Mask2FormerDinov3ImageProcessor(asked.size or self.size, mean, std)
        changed.extra_channels, changed.read_options = self.extra_channels, self.read_options
        return changed

    def _put(self, image: ImageLike) -> Prepared:
        """As `prepare`, without a change of size. Raises OptionError for an image that the canvas does not hold."""
        pixels = load_image(image, self.read_options, self.num_channels)
        height, width = pixels.shape[:2]
        if height > self.size["height"] or width > self.size["width"]:
            canvas = f"{self.size['height']}x{self.size['width']}"
            raise OptionError("do_resize", f"True for an image larger than the canvas of {canvas}", f"{height}x{width}")
        return self.on_canvas(pixels, (height, width))

    def prepare(self, image: ImageLike) -> Prepared:
        """Load one image and put it on the canvas. Threads may call this at the same time."""
        options = self.read_options
        pixels = load_image(image, options, self.num_channels)
        fitted = fit_image(pixels, self.size["height"], self.size["width"], options.factor)
        return self.on_canvas(fitted, (pixels.shape[0], pixels.shape[1]))

    def on_canvas(self, fitted: NDArray[np.uint8], original_size: tuple[int, int]) -> Prepared:
        """The second half of `prepare`: normalise and pad an image that `fit_image` has resized for the canvas."""
        canvas = padded_size(max(self.size["height"], fitted.shape[0]), max(self.size["width"], fitted.shape[1]))
        return Prepared(*to_pixel_values(fitted, *canvas, self.image_mean, self.image_std), original_size)

    def collate(self, prepared: Sequence[Prepared]) -> BatchFeature:
        """Stack prepared images into one batch of tensors, as `preprocess` returns it."""
        if not prepared:
            raise OptionError("images", "at least one", "none")
        return BatchFeature(
            {
                "pixel_values": torch.from_numpy(_stack([one.values for one in prepared])),
                "pixel_mask": torch.from_numpy(_stack([one.mask for one in prepared])),
                "original_sizes": [one.original_size for one in prepared],
            }
        )

    def post_process(
        self,
        outputs: Logits,
        target_sizes: Sequence[tuple[int, int]] | Tensor,
        pixel_mask: Tensor | None = None,
        threshold: float | Sequence[float] = 0.0,
        max_detections: int | None = None,
        categories: tuple[tuple[int, str], ...] | None = None,
        copy_overlap: float | None = None,
    ) -> list[Instances]:
        """One `Instances` per image from the model's output, best score first; see `postprocess.post_process`.

        pixel_mask: None for the one in `outputs`. max_detections: None for the number of queries.
        """
        return post_process(
            *logits_of(outputs),
            target_sizes,
            pixel_mask_of(outputs) if pixel_mask is None else pixel_mask,
            settings=InferenceSettings(threshold, max_detections, copy_overlap=copy_overlap),
            categories=categories,
        )

    def post_process_instance_segmentation(
        self,
        outputs: Logits,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        pixel_mask: Tensor | None = None,
    ) -> list[Segments]:
        """The same instances in the format of Hugging Face's Mask2Former: per image `segmentation`, `segments_info`.

        segmentation: (H, W) int32 map of segment ids, -1 on background, the better instance on top where two overlap;
        or, with return_binary_maps, (N, H, W) bool, each mask whole; or, with return_coco_annotation, N COCO RLEs, each
        mask whole. Without an instance: all -1, an array with N = 0, an empty list.
        segments_info: dicts of id, label_id, was_fused (always False) and score, best first, in the order of the masks.
        target_sizes: None for the size of the (unpadded) canvas. overlap_mask_area_threshold: instances of which a
        smaller fraction stays visible are left out of the map (Hugging Face's argument of this name has no effect).
        pixel_mask: as for `post_process`.
        """
        if return_coco_annotation and return_binary_maps:
            raise OptionError("return_coco_annotation", "False together with return_binary_maps", True)
        class_logits, mask_logits = logits_of(outputs)
        pixel_mask = pixel_mask_of(outputs) if pixel_mask is None else pixel_mask
        if target_sizes is None:
            canvas = (self.size["height"], self.size["width"])
            target_sizes = [canvas] * len(mask_logits) if pixel_mask is None else real_sizes(pixel_mask)
        found = post_process(
            class_logits,
            mask_logits,
            target_sizes,
            pixel_mask,
            settings=InferenceSettings(threshold=threshold, max_detections=mask_logits.shape[1]),
            mask_threshold=mask_threshold,
        )
        if return_binary_maps:
            return [to_binary_masks(one) for one in found]
        if return_coco_annotation:
            return [to_coco_rles(one) for one in found]
        return [to_segment_map(one, overlap_mask_area_threshold) for one in found]


def _stack(arrays: Sequence[NDArray[_Number]]) -> NDArray[_Number]:
    """Stack (..., H, W), padded with zeros at the bottom and right to the largest height and width."""
    height, width = (max(array.shape[axis] for array in arrays) for axis in (-2, -1))
    if all(array.shape[-2:] == (height, width) for array in arrays):
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), *arrays[0].shape[:-2], height, width), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[..., : array.shape[-2], : array.shape[-1]] = array
    return stacked


if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):  # code in a model folder serves that folder alone
    AutoImageProcessor.register(
        Mask2FormerDinov3Config, image_processor_classes={"pil": Mask2FormerDinov3ImageProcessor}, exist_ok=True
    )
