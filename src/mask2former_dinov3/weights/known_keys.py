"""Reduce a config.json to the fields of its network's configuration.

transformers acts on further keys: it fetches attention kernels from a hub, quantizes, or loads the weights from another
place. A file from elsewhere must not decide that, so only fields of the configuration's class are read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..errors import CheckpointError, mismatch

logger = logging.getLogger(__name__)

NESTED = "backbone_config"
ALIASES = frozenset({"out_features", "out_indices", "torch_dtype", "num_labels"})  # properties over fields
# What transformers and this package note beside the network, without effect on what is loaded.
NOTES = frozenset(
    {"_name_or_path", "model_type", "transformers_version", "auto_map", "custom_pipelines", "stage_names"}
    | {"output_attentions"}
    | {"hidden_size", "num_layers"}  # Swin and others compute them from their fields
)
_SHOWN = 8  # names in the message


def known_config(where: str, stored: Mapping[str, object]) -> dict[str, object]:
    """The fields of `stored` that its configuration's class has; all others are dropped, and named in a warning.

    where: how messages call the file. Raises CheckpointError for a kind of network that transformers does not know.
    """
    dropped: list[str] = []
    found = _known(where, stored, "", dropped)
    if dropped:
        names = ", ".join(dropped[:_SHOWN]) + ", …" * (len(dropped) > _SHOWN)
        logger.warning("%s: %d keys do not describe the network and are not read: %s", where, len(dropped), names)
    return found


def _known(where: str, stored: Mapping[str, object], prefix: str, dropped: list[str]) -> dict[str, object]:
    kind = stored.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        got = "none" if kind is None else repr(kind)
        raise CheckpointError(f"{where}: {prefix}model_type: {mismatch('a network that transformers knows', got)}")
    names = _field_names(CONFIG_MAPPING[kind])
    found: dict[str, object] = {}
    for key, value in stored.items():
        if key == NESTED and isinstance(value, dict) and key in names:
            found[key] = {**_known(where, value, f"{NESTED}.", dropped), "model_type": value["model_type"]}
        elif key in names:
            found[key] = value
        elif key not in NOTES or (key == "auto_map" and "--" in str(value)):  # code in another repository
            dropped.append(prefix + key)
    return found


def _field_names(kind: type[PreTrainedConfig]) -> frozenset[str]:
    """The keys that a configuration of this class takes."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return frozenset(name for name in fields if not name.startswith("_")) | ALIASES | set(kind.attribute_map)
