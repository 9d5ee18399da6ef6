"""Labels of a batch in the forms that callers hold them, made into the one form that the criterion reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# B batch, N instances of an image, K classes, H and W input size

PADDING_CLASS = -100  # class of rows that only bring images to one number of instances, as transformers' Trainer pads

Labels = Sequence[Tensor] | Tensor
"""Of B images: one tensor each, or all of them stacked, images with fewer instances padded (see `convert_labels`)."""


def convert_labels(
    mask_labels: Labels | None, class_labels: Labels | None, num_labels: int, canvas: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks B x (N, H, W) bool and classes B x (N,) int64, on the device of the canvas: pixel_values (B, C, H, W).

    mask_labels: B x (N, H, W) or stacked (B, N, H, W) of any type; what is not 0 belongs to the instance, as in Hugging
    Face's processors, which make float masks. class_labels: B x (N,) or stacked (B, N), whole numbers of any type, 0 to
    num_labels - 1; rows of class -100 are padding and left out, with their masks.
    Raises ValueError, with the image's place in the batch, for labels that do not fit each other, the canvas or the
    number of classes, for NaN, and for classes that are not whole numbers.
    """
    if mask_labels is None or class_labels is None:
        raise ValueError("mask_labels, class_labels: expected both or neither, got one of them")
    batch, _, height, width = canvas.shape
    for name, labels in (("mask_labels", mask_labels), ("class_labels", class_labels)):
        if len(labels) != batch:
            raise ValueError(f"{name}: expected those of {batch} images, as pixel_values have, got {len(labels)}")
    masks, classes = [torch.as_tensor(one) for one in mask_labels], [torch.as_tensor(one) for one in class_labels]
    classes = [one if one.is_floating_point() else one.long() for one in classes]
    for image, (own, classes_of) in enumerate(zip(masks, classes, strict=True)):
        if classes_of.ndim != 1:
            raise ValueError(f"class_labels[{image}]: expected shape (N,), got {tuple(classes_of.shape)}")
        if own.shape != (len(classes_of), height, width):
            raise ValueError(
                f"mask_labels[{image}]: expected shape {(len(classes_of), height, width)} "
                f"({len(classes_of)} class_labels on this canvas), got {tuple(own.shape)}"
            )
    counts = [len(one) for one in classes]
    together = torch.cat(classes)
    on_host = together.cpu()  # one transfer for all checks
    kept = [_check_classes(image, one, num_labels) for image, one in enumerate(on_host.split(counts))]
    together = together.to(canvas.device, torch.int64, non_blocking=True)
    found_masks, found_classes = [], []
    for image, (own, of_image, keep) in enumerate(zip(masks, together.split(counts), kept, strict=True)):
        if not bool(keep.all()):
            own, of_image = own[keep.to(own.device)], of_image[keep.to(of_image.device)]
        if own.is_floating_point() and bool(own.isnan().any()):
            raise ValueError(f"mask_labels[{image}]: expected numbers, 0 outside the instance, got NaN")
        found_masks.append((own if own.dtype == torch.bool else own != 0).to(canvas.device, non_blocking=True))
        found_classes.append(of_image)
    return found_masks, found_classes


def _check_classes(image: int, classes: Tensor, num_labels: int) -> Tensor:
    """Which classes (N,) are not padding, bool. Raises ValueError for those that are none of the model's."""
    numbers = classes.double()
    is_whole = numbers == numbers.round()  # False for NaN
    if not bool(is_whole.all()):
        wrong = float(numbers[~is_whole][0])
        raise ValueError(f"class_labels[{image}]: expected whole numbers, the classes of the instances, got {wrong}")
    keep = numbers != PADDING_CLASS
    is_known = (numbers >= 0) & (numbers < num_labels)
    if not bool((is_known | ~keep).all()):
        wrong = int(numbers[keep & ~is_known][0])
        expected = f"labels from 0 to {num_labels - 1}, the model's classes ({PADDING_CLASS} for padding)"
        raise ValueError(f"class_labels[{image}]: expected {expected}, got {wrong}")
    return keep
