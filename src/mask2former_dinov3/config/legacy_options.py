"""Options of older training scripts, accepted with a note so that a JSON file written for them still runs.

The scripts are Hugging Face's `run_instance_segmentation_no_trainer.py` and the first DINOv3 + Mask2Former scripts,
whose key `model` names a Python file such as `models/mask2former_dinov3_vitsmallplus_pyramid.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from ..errors import mismatch
from .presets import HUB_BACKBONES

IGNORED = {
    "do_reduce_labels": "labels are always 0 to K-1 here, whatever the category ids are",
    "trust_remote_code": "code from a hub is never run",
    "cache_dir": "set the environment variable HF_HOME to move the cache",
    "ignore_mismatched_sizes": "the class layer always fits the classes of the data set",
    "use_auth_token": "log in with `hf auth login`",
}


def translate_old_options(
    options: Mapping[str, object], name: Callable[[str], str] = str
) -> tuple[dict[str, object], list[str], dict[str, str]]:
    """The options under today's names, a note for each old one, and faults: old option -> reason.

    name: option -> the option as the user would write it.
    Where an option is also given under its new name, the new one's value counts.
    """
    translated, notes, faults = dict(options), [], {}
    for key, reason in IGNORED.items():
        if key in translated:
            del translated[key]
            notes.append(f"{key}: ignored; {reason}")
    if "model_name_or_path" in translated:
        head = translated.pop("model_name_or_path")
        if translated.setdefault("head", head) == head:
            notes.append(f"model_name_or_path: read as head={head!r}")
        else:
            notes.append(f"model_name_or_path: ignored; head={translated['head']!r} is given")
    if "model" in translated:
        path = str(translated.pop("model"))
        mapped = _translate_model_file(path)
        if mapped:
            translated = {**mapped, **translated}
            pairs = ", ".join(f"{key}={translated[key]!r}" for key in mapped)
            notes.append(f"model: {path!r} is read as {pairs}")
        else:
            advice = f"give {name('backbone')} and {name('neck')} instead"
            expected = "a file name with vitsmallplus or vitlarge, with or without _pyramid"
            faults["model"] = mismatch(expected, json.dumps(path), advice)
    return translated, notes, faults


def _translate_model_file(path: str) -> dict[str, object]:
    """The options for a model file of the first scripts, which stood for a backbone and a neck; empty when unknown."""
    name = re.split(r"[\\/]", path)[-1].lower()
    size = re.search(r"vit_?(smallplus|large)", name)
    if size is None:
        return {}
    neck = "pyramid" if "pyramid" in name else "plain"
    # Those models did not apply the backbone's final norm, so their weights need it off.
    return {"backbone": HUB_BACKBONES[size[1]], "neck": neck, "backbone_norm": False}
