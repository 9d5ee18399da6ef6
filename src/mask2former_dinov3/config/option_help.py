"""The options of `train` by topic, with type and default in words, for `train --help` and docs/configuration.md."""

from __future__ import annotations

import json
import textwrap
from typing import NamedTuple

from .parsing import write_bound, write_flag
from .presets import LARGEST
from .train_config import TrainConfig

# The first option of each topic, in the order of the class.
TOPICS = {
    "description": "The run",
    "dataset_name": "The data",
    "backbone": "The model",
    "image_height": "The image",
    "num_train_epochs": "The optimisation",
    "per_device_eval_batch_size": "Evaluation, checkpoints, logs",
}


class OptionText(NamedTuple):
    """One option in words. kinds: its JSON types or values. choices: the values of an enumerated one. default: JSON."""

    name: str
    topic: str
    kinds: list[str]
    choices: list[str]
    default: str
    meaning: str


def list_options() -> list[OptionText]:
    """All options in the order of the class."""
    properties = TrainConfig.model_json_schema()["properties"]
    topic, options = "", []
    for name, field in TrainConfig.model_fields.items():
        topic = TOPICS.get(name, topic)
        default = "required" if field.is_required() else json.dumps(field.default)
        kinds: list[str] = []
        choices: list[str] = []
        for schema in properties[name].get("anyOf", [properties[name]]):
            values = [str(value) for value in schema.get("enum", [schema["const"]] if "const" in schema else [])]
            choices += values
            kinds += [f"`{value}`" for value in values] or [_describe_range(schema)]
        options.append(OptionText(name, topic, kinds, choices, default, field.description or ""))
    return options


def _describe_range(schema: dict[str, str | float]) -> str:
    """A type of JSON schema in words, such as "whole number > 0"."""
    words = str(schema["type"]).replace("integer", "whole number")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [(sign, float(schema[key])) for key, sign in bounds.items() if key in schema]
    return words + ",".join(f" {sign} {write_bound(bound)}" for sign, bound in found if bound < LARGEST)


_PLACEHOLDERS = {
    "string": "TEXT",
    "whole": "N",
    "number": "X",
    "array": "LIST",
    "boolean": "true,false",
    "object": "JSON",
}


def format_options() -> str:
    """The options as flags by topic, for `train --help`."""
    lines: list[str] = []
    topic = ""
    for option in list_options():
        if option.topic != topic:
            topic = option.topic
            lines += ["", f"{topic.lower()}:"]
        lines.append(f"  {write_flag(option.name)} {_format_value(option)}")
        default = "required" if option.default == "required" else "default: " + (option.default.strip('"') or "empty")
        text = f"{option.meaning.replace('`', '')} ({default})"
        lines.append(textwrap.fill(text, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines) + "\n"


def _format_value(option: OptionText) -> str:
    """What follows the flag: a placeholder, or the values to choose from in braces."""
    words = [_PLACEHOLDERS.get(kind.split()[0], kind.strip("`")) for kind in option.kinds]
    if option.choices or "boolean" in option.kinds:
        return f"{{{','.join(words)}}}"
    return words[0]
