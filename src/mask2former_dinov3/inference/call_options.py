"""Keywords that programs written for other image processors give in a call, such as `do_resize` and `size`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import OptionError

STEPS = ("do_resize", "do_rescale", "do_normalize")
# Keywords of other processors for steps that this one always does so, with the values that say just that.
ALWAYS: dict[str, tuple[object, ...]] = {
    "do_pad": (True,),
    "do_convert_rgb": (True, False),  # what has the model's channels is not converted
    "rescale_factor": (1 / 255,),
    "data_format": ("channels_first",),
    "device": ("cpu",),
    "disable_grouping": (True, False),
}
OWN = (*STEPS, "size", "image_mean", "image_std", "input_data_format")
_SIZES = '{"height": ..., "width": ...}, or one number for both'


@dataclass(frozen=True)
class CallOptions:
    """What one call changes.

    do_resize: fit the image into the canvas; False: it is put there as it is. do_rescale: values are 0..255; False:
    floats in 0..1. do_normalize: subtract the mean, divide by the standard deviation; False: values in 0..1.
    size: of the canvas, None for the processor's. image_mean, image_std: None for the processor's. channels_first: of
    arrays and tensors; False leaves it to their shape.
    """

    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    size: dict[str, int] | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    channels_first: bool = False

    def arranged(self, image: Any) -> Any:
        """An array or tensor with its channels last, if the call says where they are; anything else as it is.

        Raises OptionError for do_rescale=False and what is not floats in 0..1.
        """
        is_array = isinstance(image, np.ndarray | torch.Tensor)
        if not self.do_rescale:
            values = np.asarray(image.detach().cpu().float() if isinstance(image, torch.Tensor) else image)
            if not is_array or values.dtype.kind != "f" or not 0 <= float(values.min()) <= float(values.max()) <= 1:
                got = f"{values.dtype} {values.shape}" if is_array else type(image).__name__
                raise OptionError("do_rescale", "True, or arrays or tensors of floats in 0..1", f"False with {got}")
        if not is_array or not self.channels_first or image.ndim != 3:
            return image
        return image.movedim(0, 2) if isinstance(image, torch.Tensor) else np.moveaxis(image, 0, 2)


def read_call_options(given: Mapping[str, Any], defaults: Mapping[str, bool]) -> CallOptions:
    """The options of a call; None counts as not given. defaults: the processor's own steps.

    Raises TypeError for a keyword that is unknown, OptionError for one that asks for what the model was not trained on.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(asked.keys() - set(OWN) - ALWAYS.keys()):
        raise TypeError(f"image processor: expected {', '.join(sorted((*OWN, *ALWAYS)))}, got {', '.join(unknown)}")
    for name in ALWAYS.keys() & asked.keys():
        if str(asked[name]) not in map(str, ALWAYS[name]):
            raise OptionError(name, " or ".join(map(repr, ALWAYS[name])), repr(asked[name]), "the model knows no other")
    for name in STEPS:
        if not isinstance(asked.get(name, True), bool):
            raise OptionError(name, "True or False", repr(asked[name]))
    order = asked.get("input_data_format")
    order = getattr(order, "value", order)
    if order not in (None, "channels_first", "channels_last"):
        raise OptionError("input_data_format", '"channels_first" or "channels_last"', repr(order))
    return CallOptions(
        **{name: asked.get(name, defaults[name]) for name in STEPS},
        size=canvas_of(asked["size"]) if "size" in asked else None,
        image_mean=asked.get("image_mean"),
        image_std=asked.get("image_std"),
        channels_first=order == "channels_first",
    )


def canvas_of(size: Any) -> dict[str, int]:
    """{"height", "width"} of a canvas, from the forms of other processors that say the same. Raises OptionError."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    given = dict(size) if isinstance(size, Mapping) or hasattr(size, "items") else {}
    if set(given) == {"longest_edge"}:
        return {"height": given["longest_edge"], "width": given["longest_edge"]}
    if set(given) == {"max_height", "max_width"}:
        return {"height": given["max_height"], "width": given["max_width"]}
    if set(given) != {"height", "width"}:
        raise OptionError("size", _SIZES, size)
    return {"height": given["height"], "width": given["width"]}
