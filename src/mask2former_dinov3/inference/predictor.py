"""A trained model in use: one call for images in memory and image files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import overload

import torch
from transformers.utils.logging import disable_progress_bar

from ..data.faults import count_of
from ..data.images import check_channel_count, read_header
from ..errors import CheckpointError, OptionError, mismatch
from ..instances import Instances
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.contents import check_model_folder
from ..read_options import AS_SAVED, ImageScale, ReadChanges
from ..weights.loading import (
    check_processor_config,
    explain_failures,
    load_network_config,
    load_pretrained,
    read_source_json,
)
from .compiled_predict import compile_network
from .image_inputs import TIMEOUT, HeldImage, check_timeout, each_image, is_one_image, to_image
from .image_passes import ImagePasses
from .image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from .load_images import ImageLike, load_image
from .network import Network
from .onnx_model import load_onnx
from .onnx_session import TORCH_PROGRAM
from .settings import InferenceSettings, Threshold, Tta
from .tiles.image_reader import open_image
from .tiles.part_reader import ImageReader

logger = logging.getLogger(__name__)

_PROCESSOR_FILE = "preprocessor_config.json"
DEVICES = "cpu, cuda or cuda:N (N: index of a GPU)"


class Predictor(ImagePasses):
    """A model with its image processor: image in, `Instances` at the image's own size out.

    categories: (category id of the training data, name) for every label.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        *,
        value_range: str | None = None,
        page: int | None = None,
        channels: tuple[int, ...] | str | None = None,
        extra_images: str | None = None,
        image_scale: ImageScale | None = None,
        compile_model: bool = False,
    ) -> Predictor:
        """A folder saved by training, a hub id, or an exported file (.onnx, .pt2).

        device: None for a GPU if there is one. value_range, page, channels, image_scale: read and scale images so (see
        `ReadOptions`) instead of as saved with the model.
        extra_images: where the second file of each image is, for a model that was trained with such files.
        compile_model: compile the network at the first image, which takes a minute or more; the others are then faster.
        Raises CheckpointError when there is no such model or it is of another kind, OptionError for a device that
        cannot be used, and for values that `ReadOptions` refuses.
        """
        reading = ReadChanges(value_range, page, channels, extra_images, image_scale)
        return cls(*load_model(model, device, reading, compile_model=compile_model))

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is one image, although it is a sequence of str
        self,
        images: HeldImage,
        *,
        threshold: Threshold | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
        tile: int | None = ...,
        overlap: float = ...,
        copy_overlap: float | None = ...,
        tta: Tta = ...,
        bgr: bool = ...,
        timeout: float = ...,
    ) -> Instances: ...

    @overload
    def __call__(
        self,
        images: Iterable[HeldImage],
        *,
        threshold: Threshold | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
        tile: int | None = ...,
        overlap: float = ...,
        copy_overlap: float | None = ...,
        tta: Tta = ...,
        bgr: bool = ...,
        timeout: float = ...,
    ) -> list[Instances]: ...

    def __call__(
        self,
        images: HeldImage | Iterable[HeldImage],
        *,
        threshold: Threshold | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = 0.2,
        copy_overlap: float | None = None,
        tta: Tta = "none",
        bgr: bool = False,
        timeout: float = TIMEOUT,
    ) -> Instances | list[Instances]:
        """Instances with a score of at least `threshold`, best first: one result for one image, a list for several.

        An image is a path, an address (http, https), the bytes of an image file or an open one, a PIL image, an array
        or a tensor (see `image_inputs`); several are a list, a generator, or an array of four dimensions. Masks may
        overlap.
        threshold: None for the one that the model stores, 0.5 if it stores none; one number, or one for each class, by
        name or in the order of the labels. max_detections: None for the number of the model's queries. copy_overlap:
        see `InferenceSettings`; so tta. What the limits leave out is in `Instances.left_out`.
        tile: split images that are larger into tiles of so many pixels a side, predict on each tile, and merge the
        results; each tile shares the fraction `overlap` with its neighbours. `max_detections` and `batch_size` then
        count per tile. None: images that are fitted into the canvas are not split; images at their own scale
        (`image_scale` of the model) are split as `Passes` says. bgr: the colours of arrays and tensors are in OpenCV's
        order. timeout: seconds for an address. Several threads may call this at the same time, and a process that was
        forked. Raises OptionError for a value out of range (see `InferenceSettings`) and for what is no image or has
        several meanings, DatasetError for a file that cannot be read as an image.
        """
        check_timeout(timeout)
        settings = self.fill(InferenceSettings(threshold, max_detections, batch_size, tile, overlap, copy_overlap, tta))
        self._check_process()
        options, channels = self.processor.read_options, self.processor.num_channels
        held = (to_image(image, options, channels, bgr=bgr, timeout=timeout) for image in each_image(images))
        found = [instances for _, instances in self.predict_each(self._open_each(held, settings), settings)]
        return found[0] if is_one_image(images) else found

    def _open_each(
        self, images: Iterable[ImageLike], settings: InferenceSettings
    ) -> Iterator[tuple[int, Prepared | ImageReader]]:
        """Images for `predict_each`; a file that may be cut stays open while it is predicted."""
        options, channels = self.processor.read_options, self.processor.num_channels
        for number, image in enumerate(images):
            if not isinstance(image, str | PathLike) or not self.passes(settings).may_cut:
                yield number, self.ready(ImageReader.of(load_image(image, options, channels)), settings)
                continue
            check_channel_count(str(image), channels, read_header(str(image), options).channels)
            with open_image(Path(image), options) as reader:
                yield number, self.ready(reader, settings)


def load_model(
    model: str | Path,
    device: str | torch.device | None = None,
    reading: ReadChanges = AS_SAVED,
    *,
    compile_model: bool = False,
) -> tuple[Network, Mask2FormerDinov3ImageProcessor]:
    """A model with its image processor: an exported file (`load_onnx`), a model folder or a hub id (`load_network`).

    reading: what replaces the saved way to read image files; a difference is logged in one line. compile_model: see
    `compiled_predict`. Raises OptionError for an exported file that is to be compiled.
    """
    path = Path(model)
    is_exported = path.suffix in (".onnx", TORCH_PROGRAM) and not path.is_dir()
    if is_exported and compile_model:
        raise OptionError("compile", "a model folder, which torch runs", f"the {path.suffix} file {path}")
    network, processor = load_onnx(path, device) if is_exported else load_network(model, device)
    if isinstance(network, Mask2FormerDinov3ForInstanceSegmentation) and compile_model:
        compile_network(network)
    saved = processor.read_options
    if difference := reading.describe(saved):
        logger.info("%s", difference)
    processor.read_options = reading.apply(saved)
    if processor.num_channels != network.config.num_channels:
        expected = f"image_mean and image_std of {network.config.num_channels} channels, as the network takes"
        raise CheckpointError(f"{model}: {mismatch(expected, f'of {processor.num_channels}')}")
    return network, processor


def check_extra_images(processor: Mask2FormerDinov3ImageProcessor) -> None:
    """Raise OptionError unless `extra_images` is given where a model needs second files, and nowhere else.

    For callers that read image files; arrays hold all channels.
    """
    count, given = processor.extra_channels, processor.read_options.extra_images
    if count and given is None:
        number = count_of(count, "channel")
        expected = f"where the second file of each image is, since the model takes {number} from it"
        raise OptionError(
            "extra_images", expected, "none", "give a folder, or a pattern such as {folder}/../depth/{stem}.png"
        )
    if not count and given is not None:
        raise OptionError("extra_images", "none, since the model was trained without second files", given)


def refuse_extra_images(processor: Mask2FormerDinov3ImageProcessor, verb: str) -> None:
    """Raise OptionError for a model that takes channels from second files, and for `extra_images`.

    verb: one that gets one file an image.
    """
    if count := processor.extra_channels:
        got = f"one that takes {count_of(count, 'channel')} from a second file of each image"
        raise OptionError("model", f"a model of one file an image, as {verb} gets", got, "predict reads second files")
    check_extra_images(processor)


def load_network(
    model: str | Path, device: str | torch.device | None = None
) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3ImageProcessor]:
    """A model folder (or hub id) on a device and in evaluation mode, with its processor; every weight must be there.

    device: None for a GPU if there is one. Raises CheckpointError or HubError that says what is missing, OptionError
    for a device that cannot be used.
    """
    name = str(model)
    target = usable_device(device)
    processor = load_processor(name)
    disable_progress_bar()  # of transformers: a local file is read at once
    # Weights stored in half precision are used in float32; `autocast` is the way to compute faster.
    config = load_network_config(name)
    network = load_pretrained(Mask2FormerDinov3ForInstanceSegmentation, name, config, whole=True)
    for field in ("value_range", "image_scale"):
        stored, own = getattr(processor, field), getattr(config, field)
        if own != stored:
            expected = f"{field} {stored!r} as in {_PROCESSOR_FILE}"
            raise CheckpointError(f"{name}: config.json: {mismatch(expected, repr(own))}")
    return network.to(target).eval(), processor


def load_processor(name: str) -> Mask2FormerDinov3ImageProcessor:
    """The image processor of a model folder or hub id. Raises CheckpointError or HubError that says what is missing."""
    folder = Path(name)
    if folder.is_dir():
        check_model_folder(folder)
    elif folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        expected = "a model folder that training saved, or a hub id such as user/model"
        raise CheckpointError(f"{name}: {mismatch(expected, 'a file' if folder.exists() else 'a path to nothing')}")
    check_processor_config(f"{name}: {_PROCESSOR_FILE}", read_source_json(name, _PROCESSOR_FILE), with_size=True)
    with explain_failures(name):
        try:
            found: Mask2FormerDinov3ImageProcessor = Mask2FormerDinov3ImageProcessor.from_pretrained(name)
        except OptionError as error:  # of the file's values, not of an option
            raise CheckpointError(f"{name}: {_PROCESSOR_FILE}: {error}") from error
    return found


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device by its name, or the GPU if there is one. Raises OptionError for one that this machine does not have."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found).cpu()  # fails on "meta", which holds no numbers
    except Exception as error:  # torch's backends raise errors of many classes
        count = torch.cuda.device_count()
        have = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
        raise OptionError("device", DEVICES, device, f"usable here: {have}") from error
    return found


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16; otherwise torch computes in bf16 on one thread, very slowly."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
