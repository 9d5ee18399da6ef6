"""transformers' `from_pretrained`, with sizes compared before memory is allocated, and every weight required.

A source is a local folder or a hub id. Every failure that a user can cause is a CheckpointError or HubError that names
the source.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from ..errors import CheckpointError, HubError, UserError, mismatch
from ..json_files import describe, is_integer, is_number, read_json_object
from .files import CHECKSUM_SUFFIX, check_checksum, read_own_state, shapes_in, shapes_of
from .known_keys import known_config

SLACK = 1_000_000  # numbers that a network may have beyond its file: output norms of a Swin, positions
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
OFFLINE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError"}
FOLDER_ADVICE = "or give a local folder with config.json and model.safetensors, or Meta's .pth file"


def load_network_config(source: str, token: str | None = None) -> PreTrainedConfig:
    """The network's configuration of a folder or hub id.

    Raises CheckpointError for a value that cannot be, and when it asks for more layers than its file has tensors: that
    is checked before transformers reads it, since transformers lists the layers.
    """
    check_source(source, "a folder or a hub id")
    if Path(source).is_file():
        raise CheckpointError(f"{source}: {mismatch('a folder or a hub id', 'a file')}")
    stored = read_source_json(source, "config.json", token)
    _check_config(f"{source}: config.json", stored)
    known = known_config(f"{source}: config.json", stored)
    file = find_weights_file(source, token)
    if file is not None and file.suffix == ".safetensors":
        deepest = _max_layers(stored)
        tensors = len(shapes_in(file))
        if deepest > tensors:
            raise CheckpointError(
                f"{source}: {mismatch(f'config.json to fit {file.name}', _claims(deepest, tensors), 'the file is cut')}"
            )
    with explain_failures(source):
        try:
            config: PreTrainedConfig = CONFIG_MAPPING[str(stored["model_type"])].from_dict(known)
        except (ValueError, StrictDataclassError) as error:  # a configuration refuses its values by ValueError
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1].removeprefix("TypeError: ") if isinstance(error, StrictDataclassError) else lines[0]
            raise CheckpointError(f"{source}: config.json: {reason}") from error
    return config


def _check_config(where: str, stored: Mapping[str, object]) -> None:
    """Raise CheckpointError for the fields of config.json that transformers uses without checking them."""
    for name in ("id2label", "label2id", "auto_map", "backbone_config", "quantization_config"):
        if stored.get(name) is not None and not isinstance(stored[name], dict):
            raise CheckpointError(f"{where}: {name}: {mismatch('an object', describe(stored[name]))}")
    labels = stored.get("id2label")
    for label in labels if isinstance(labels, dict) else ():
        if not label.isdecimal():
            raise CheckpointError(f"{where}: id2label: {mismatch('label numbers as keys', repr(label))}")
    for name in ("dtype", "torch_dtype"):
        value = stored.get(name)
        if isinstance(value, str) and not isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype):
            raise CheckpointError(f"{where}: {name}: {mismatch('a data type of torch, such as float32', repr(value))}")


def check_processor_config(where: str, stored: Mapping[str, object], with_size: bool) -> None:
    """Raise CheckpointError for values in preprocessor_config.json that are not of the kind their field has.

    where: how messages call the file. with_size: also check the canvas, which only models of this package have.
    """
    size = stored.get("size")
    if with_size and size is not None:
        expected = '{"height": ..., "width": ...} in whole numbers'
        if not isinstance(size, dict):
            raise CheckpointError(f"{where}: size: {mismatch(expected, describe(size))}")
        if not all(map(is_integer, size.values())):
            raise CheckpointError(f"{where}: size: {mismatch(expected, str(size))}")
    check_statistics(where, stored, "image_mean", "image_std")


def check_statistics(where: str, stored: Mapping[str, object], mean: str, std: str) -> None:
    """Raise CheckpointError unless the fields `mean` and `std`, where they are given, are three numbers each.

    A model of this package may have as many as its images have channels, in both.
    """
    own = stored.get("image_processor_type") == "Mask2FormerDinov3ImageProcessor"
    given = [value for name in (mean, std) if isinstance(value := stored.get(name), list)]
    count = len(given[0]) if own and given else 3
    for name in (mean, std):
        if name not in stored:
            continue
        value = stored[name]
        numbers = value if isinstance(value, list) and value and len(value) == count else [None]
        if not all(is_number(number) and math.isfinite(number) and (name == mean or number > 0) for number in numbers):
            expected = ("three numbers" if count == 3 else "numbers") + ("" if name == mean else " above 0")
            expected += "" if count == 3 else ", one for each channel"
            raise CheckpointError(f"{where}: {name}: {mismatch(expected, str(value))}")


def _claims(layers: int, tensors: int) -> str:
    return f"one that asks for {layers:,} layers where the file has {tensors:,} tensors"


def load_pretrained(
    kind: type[PreTrainedModel],
    source: str,
    config: PreTrainedConfig,
    token: str | None = None,
    may_lack: tuple[str, ...] = (),
    whole: bool = False,
) -> PreTrainedModel:
    """A network of class `kind` in float32 from a folder or hub id.

    may_lack: prefixes of names that may be missing in the file. whole: refuse names in the file that the network does
    not have, such as a classifier.

    Raises CheckpointError when config and weights do not fit each other, HubError for the hub's failures.
    """
    skeleton = _build_skeleton(kind, source, config)
    with explain_failures(source):
        files = find_weights(source, token)
        check_size(skeleton, files)
        state = {name: tensor for file in files for name, tensor in read_own_state(file).items()}
    model: PreTrainedModel
    with _silence(), explain_failures(source):  # transformers' report of unused names does not apply to parts of models
        # The weights are given: transformers would look for adapters, shards and files of other names by itself.
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below
        )
    _check_shapes(source, report["mismatched_keys"])
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(may_lack))
    if missing:
        advice = "the file is cut, or it holds another network than its config.json says"
        got = f"{len(missing)} missing weights, e.g. {', '.join(missing[:3])}"
        raise CheckpointError(f"{source}: {mismatch('all weights of the network', got, advice)}")
    left = sorted(report["unexpected_keys"]) if whole else []
    if left:
        got = f"{len(left)} others, e.g. {', '.join(left[:3])}"
        raise CheckpointError(f"{source}: {mismatch('only weights of the network in config.json', got)}")
    model.config.name_or_path = source
    with explain_failures(source):
        for file in files:
            if (checksum := find_file(source, file.name + CHECKSUM_SUFFIX, token)) is not None:
                check_checksum(file, checksum)
    return model


def _build_skeleton(kind: type[PreTrainedModel], source: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The network without memory for its weights. Raises CheckpointError when transformers' own refuses its config.

    A network of this package checks its configuration itself; any other error in it is a fault of this package.
    """
    try:
        with torch.device("meta"):
            return kind(config)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        if not kind.__module__.startswith("transformers."):
            raise
        got = f"an error of it ({str(error).partition(chr(10))[0] or 'without a reason'})"
        raise CheckpointError(f"{source}: config.json: {mismatch(f'values for a {kind.__name__}', got)}") from error


def _check_shapes(source: str, differing: set[tuple[str, torch.Size, torch.Size]]) -> None:
    """Raise CheckpointError for weights of another shape: (name, shape in the file, shape in the network)."""
    if differing:
        texts = [f"{name} {tuple(stored)} instead of {tuple(own)}" for name, stored, own in sorted(differing)[:3]]
        got = f"{len(differing)} of another shape, e.g. {', '.join(texts)}"
        raise CheckpointError(f"{source}: {mismatch('the weights of the network in config.json', got)}")


def find_weights(source: str, token: str | None = None) -> list[Path]:
    """The files of weights of a folder or hub id: one, or those that an index names, all of them in the same folder.

    Raises CheckpointError when there are none, for an index that is not one, and for a file elsewhere.
    """
    if (file := find_weights_file(source, token)) is not None:
        return [file]
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        file = find_file(source, index, token)
        if file is not None:
            suffix = Path(index.removesuffix(".index.json")).suffix
            return [_find_shard(source, file, name, suffix, token) for name in _shard_names(file)]
    expected = "model.safetensors or pytorch_model.bin"
    adapters = find_file(source, "adapter_config.json", token) is not None
    got, advice = "no file of weights", "copy the file into the folder, or use another model"
    if adapters:
        got, advice = "adapters alone (adapter_config.json)", "merge the adapters into their model first"
    raise CheckpointError(f"{source}: {mismatch(expected, got, advice)}")


def _shard_names(index: Path) -> list[str]:
    files = read_json_object(index, raises=CheckpointError).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(one, str) for one in files.values()):
        expected = "an object `weight_map` from names to files"
        raise CheckpointError(f"{index}: {mismatch(expected, 'another content')}")
    return sorted(set(files.values()))


def _find_shard(source: str, index: Path, name: str, suffix: str, token: str | None) -> Path:
    if Path(name).name != name or "\\" in name or not name.endswith(suffix):
        expected = f"names of {suffix} files beside it in `weight_map`"
        raise CheckpointError(f"{index}: {mismatch(expected, repr(name))}")
    file = find_file(source, name, token)
    if file is None:
        raise CheckpointError(f"{source}: {mismatch(f'all files of {index.name}', f'none called {name}')}")
    return file


def is_path(source: str) -> bool:
    """Whether a source is a file or folder, existing or not, rather than a hub id."""
    path = Path(source)
    looks = path.suffix in WEIGHT_SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") != 1
    return looks or path.exists()


def check_source(source: str, expected: str) -> None:
    """Raise CheckpointError for a path that does not exist. expected: the kinds of source, for the message."""
    if is_path(source) and not Path(source).exists():
        raise CheckpointError(f"{source}: {mismatch(expected, 'none', 'check the path; a hub id is USER/NAME')}")


def find_weights_file(source: str, token: str | None = None) -> Path | None:
    """The one file of weights of a folder or hub id, None if there are several or none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = find_file(source, name, token)
        if found is not None:
            return found
    return None


def find_file(source: str, name: str, token: str | None = None) -> Path | None:
    """A file of a folder or hub id, None if it has none of this name. Raises HubError when the hub fails."""
    with explain_failures(source):
        found = cached_file(source, name, token=token, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def read_source_json(source: str, name: str, token: str | None = None) -> dict[str, object]:
    """The JSON object in a file of a folder or hub id. Raises CheckpointError or HubError when it cannot be read."""
    with explain_failures(source):
        found = cached_file(source, name, token=token)
    # transformers gives None, where it raises an error for other names, if a folder has no config.json.
    file = Path(source, name) if found is None else Path(found)
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise CheckpointError(f"{file}: {mismatch('a file', 'a named pipe or a device, which may never end')}")
    return dict(read_json_object(file, raises=CheckpointError))


def check_size(skeleton: PreTrainedModel, files: Sequence[Path]) -> None:
    """Raise CheckpointError, before memory is taken, when the network has more weights than the files."""
    stored = sum(math.prod(shape) for file in files for shape in shapes_of(file).values())
    wanted = sum(parameter.numel() for parameter in skeleton.parameters())
    if wanted > 1.1 * stored + SLACK:
        expected = f"the {wanted:,} numbers of the network in config.json"
        where = files[0] if len(files) == 1 else f"{len(files)} files in {files[0].parent}"
        advice = "the file is cut, or of another network"
        raise CheckpointError(f"{where}: {mismatch(expected, f'{stored:,}', advice)}")


@contextmanager
def explain_failures(source: str) -> Iterator[None]:
    """Turn what transformers and the hub's client raise for `source` into a CheckpointError or HubError.

    Only what files and connections cause: any other error is a fault of this package and keeps its traceback.
    """
    try:
        yield
    except (OSError, httpx2.HTTPError, HFValidationError, SafetensorError) as error:
        raise _explain(source, error) from error


def _explain(source: str, error: Exception) -> UserError:
    """One message with what to do, from the error and its causes."""
    chain = _causes(error)
    names = {type(one).__name__ for one in chain}
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    page = f"https://huggingface.co/{source}"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(source).exists():
        return CheckpointError(f"{source}: {mismatch('a model that transformers can read', f'an error ({reason})')}")
    if "GatedRepoError" in names or 403 in statuses:
        advice = f"accept the DINOv3 licence at {page}, log in with `hf auth login` (or set HF_TOKEN), {FOLDER_ADVICE}"
        return HubError(
            f"{source}: {mismatch('access to this gated repository', 'a refusal for this account', advice)}"
        )
    if "RepositoryNotFoundError" in names or 401 in statuses:
        advice = (
            f"check the name; if it is private or gated, accept its licence at {page} and log in with "
            f"`hf auth login`, {FOLDER_ADVICE}"
        )
        expected = "a preset, a folder, or a hub repository that this account can see"
        return HubError(f"{source}: {mismatch(expected, 'none of these', advice)}")
    if names & OFFLINE:
        advice = f"run `hf download {source}` where there is a network and copy the folder here, {FOLDER_ADVICE}"
        got = "neither: the hub cannot be reached from this machine"
        return HubError(f"{source}: {mismatch('weights in the local cache or on the hub', got, advice)}")
    return CheckpointError(f"{source}: {mismatch('a model that transformers can read', f'an error ({reason})')}")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and everything that caused it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


@contextmanager
def _silence() -> Iterator[None]:
    """Only errors of transformers are logged inside the block."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _max_layers(values: object, name: str = "") -> int:
    """The largest number of layers that a configuration asks for anywhere in it."""
    if isinstance(values, dict):
        return max((_max_layers(value, str(key)) for key, value in values.items()), default=0)
    if isinstance(values, list | tuple):
        return max((_max_layers(value, name) for value in values), default=0)
    return values if isinstance(values, int) and ("layers" in name or name == "depths") else 0
