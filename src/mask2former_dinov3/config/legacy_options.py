"""Options of older training scripts, accepted so that a JSON file written for them still runs, and always said aloud.

They are Hugging Face's `run_instance_segmentation_no_trainer.py` and the first DINOv3 + Mask2Former scripts, whose
`model` key names a Python file such as `models/mask2former_dinov3_vitsmallplus_pyramid.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .presets import HUB_BACKBONES

IGNORED = {
    "do_reduce_labels": "labels are always contiguous here, whatever the category ids are",
    "trust_remote_code": "no code is ever loaded from a hub",
    "cache_dir": "set the environment variable HF_HOME to move the cache",
    "ignore_mismatched_sizes": "the class layer is made for the data set at hand",
    "use_auth_token": "log in with `hf auth login`",
}


def translate_old_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """The options under today's names, a note for each old one, and the faults found on the way.

    A key that is also given under its new name keeps the new one's value.
    """
    translated, notes, faults = dict(options), [], []
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
        mapped = _model_file(path)
        if mapped:
            translated = {**mapped, **translated}
            said = ", ".join(f"{key}={translated[key]!r}" for key in mapped)
            notes.append(f"model: {path!r} is read as {said}")
        else:
            known = "a name with vitsmallplus or vitlarge, and _pyramid or not"
            faults.append(f"model: {path!r} is no model file that we know ({known}); give backbone and neck instead")
    return translated, notes, faults


def _model_file(path: str) -> dict[str, Any]:
    """What a model file of the first scripts stood for: one DINOv3 backbone, and its neck; empty when unknown."""
    name = re.split(r"[\\/]", path)[-1].lower()
    found = re.search(r"vit_?(smallplus|large)", name)
    if found is None:
        return {}
    neck = "pyramid" if "pyramid" in name else "plain"
    # Those models were built without the backbone's final norm, so their weights need it off.
    return {"backbone": HUB_BACKBONES[found[1]], "neck": neck, "backbone_norm": False}
