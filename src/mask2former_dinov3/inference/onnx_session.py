"""What runs an exported file: onnxruntime with one of its providers, OpenVINO on one of its devices, or torch.

A runtime that cannot do what was asked raises an error. onnxruntime by itself would use its CPU provider instead, and
say so in a log at most.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import CheckpointError, OptionError, mismatch
from ..extras import is_installed, require

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Options with which a provider computes an fp32 file in fp32; by itself CUDA rounds factors of products to 10 bits.
_FULL_PRECISION = {CUDA: {"use_tf32": "0"}}
_ONNXRUNTIME, _OPENVINO, _TORCH = "onnxruntime", "openvino", "torch"
TORCH_PROGRAM = ".pt2"  # the files that torch runs


class Session(Protocol):
    """A file that is ready to run.

    runtime: as `open_runtime` takes it. properties: metadata of the file. input_shape: of `pixel_values`; an open
    dimension is a name or None. outputs: names of the file's outputs.
    """

    runtime: str
    properties: Mapping[str, str]
    input_shape: list[int | str | None]
    outputs: list[str]

    def run(self, feed: Mapping[str, NDArray[np.generic]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        """Compute the named outputs, and nothing that only the other outputs need. Raises as `explain_run`."""
        ...

    def count_places(self) -> dict[str, int]:
        """Where the operators of the first run were computed: provider or device -> number of operators, if known."""
        ...


class OnnxRuntimeSession:
    """onnxruntime's session of a file; see `Session`. is_profiled: until the first run has ended."""

    def __init__(self, session: InferenceSession, provider: str, is_profiled: bool) -> None:
        self.runtime = f"{_ONNXRUNTIME}:{provider}"
        self.properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
        self.input_shape = list(session.get_inputs()[0].shape)
        self.outputs = [output.name for output in session.get_outputs()]
        self._session, self._is_profiled = session, is_profiled
        self._places: dict[str, int] = {}

    def run(self, feed: Mapping[str, NDArray[np.generic]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        with explain_run(self.runtime):
            found: list[NDArray[Any]] = self._session.run(list(names), dict(feed))
        if self._is_profiled:  # the first run only: a profile grows with every run
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
            places = Counter(
                event["args"]["provider"]
                for event in events
                if event.get("cat") == "Node" and event.get("args", {}).get("provider")
            )
            self._places = dict(places.most_common())
            self._is_profiled = False
        return found

    def count_places(self) -> dict[str, int]:
        return self._places


class OpenVinoSession:
    """OpenVINO's compiled model of a file; see `Session`."""

    def __init__(self, path: Path, device: str, full_precision: bool) -> None:
        import onnx
        import openvino

        self.runtime = f"{_OPENVINO}:{device}"
        graph = onnx.load(path, load_external_data=False)
        self.properties: Mapping[str, str] = {entry.key: entry.value for entry in graph.metadata_props}
        dimensions = graph.graph.input[0].type.tensor_type.shape.dim
        self.input_shape: list[int | str | None] = [one.dim_param or one.dim_value for one in dimensions]
        self.outputs = [output.name for output in graph.graph.output]
        hints = {"INFERENCE_PRECISION_HINT": "f32"} if full_precision else {}
        self._model = openvino.Core().compile_model(str(path), device, hints)

    def run(self, feed: Mapping[str, NDArray[np.generic]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        with explain_run(self.runtime):
            found = self._model(dict(feed))
        return [np.array(found[name]) for name in names]

    def count_places(self) -> dict[str, int]:
        """The device of the compiled model, and the number of its operators."""
        count = len(self._model.get_runtime_model().get_ops())
        return dict.fromkeys(self._model.get_property("EXECUTION_DEVICES"), count)


@contextmanager
def explain_run(runtime: str) -> Iterator[None]:
    """Raise CheckpointError for an error of a runtime, such as a full memory or an operator that its provider lacks."""
    try:
        yield
    except Exception as error:  # their errors have no common class
        raise CheckpointError(
            f"{runtime}: {mismatch('the file to run', f'an error ({_first_line(error)})')}"
        ) from error


def open_session(path: Path, device: str | torch.device | None = None) -> Session:
    """onnxruntime on a device of torch's naming, "cpu" or "cuda"; None for a GPU if onnxruntime can use one.

    A .pt2 file is run by torch, on the CPU. Raises OptionError for a device that cannot be used, CheckpointError for
    what is no exported file, MissingExtraError without onnxruntime.
    """
    if path.suffix == TORCH_PROGRAM:
        if device is not None and str(device) != "cpu":
            raise OptionError("device", "cpu for a .pt2 file", device)
        return open_runtime(path, _TORCH)
    require("export", "an .onnx file", "onnxruntime")
    import onnxruntime

    has_cuda = CUDA in onnxruntime.get_available_providers()
    kind = _check_device(device or ("cuda" if has_cuda else "cpu"), has_cuda)
    if kind.type == "cpu":
        return _open_onnxruntime(path, CPU, {})
    try:
        return _open_onnxruntime(path, CUDA, {"device_id": str(kind.index or 0)})
    except OptionError as error:
        if device is not None:
            raise OptionError("device", "cpu for an .onnx file here", device, error.reason) from error
        logger.warning("%s: the CPU is used: %s", path, error.reason)
        return _open_onnxruntime(path, CPU, {})


def open_runtime(path: Path, runtime: str, *, full_precision: bool = True, profile: Path | None = None) -> Session:
    """A file in a runtime: "onnxruntime:PROVIDER" or "openvino:DEVICE"; without what follows the colon, on the CPU.

    A .pt2 file has the runtime "torch", other files do not.
    full_precision: compute an fp32 file in fp32, where the runtime would otherwise use a lower precision and has an
    option for it. profile: a folder for temporary files, to count the operators of each provider. Raises OptionError
    for a runtime that is not there, or that onnxruntime replaces by another; CheckpointError for a file that it cannot
    read.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {mismatch('an exported file', 'no such file')}")
    name, _, place = runtime.partition(":")
    if path.suffix == TORCH_PROGRAM:
        if runtime not in (_TORCH, f"{_TORCH}:CPU"):
            raise OptionError("runtime", f"{_TORCH} for a {TORCH_PROGRAM} file", runtime)
        from .torch_program import TorchSession

        return TorchSession(path)
    if name == _OPENVINO:
        require("openvino", "the runtime openvino", "onnx", "openvino")
    place = place or {_ONNXRUNTIME: CPU, _OPENVINO: "CPU"}.get(name, "")
    if place not in _places_of(name):
        have = [f"{one}:{where}" for one in (_ONNXRUNTIME, _OPENVINO) for where in _places_of(one)]
        advice = "a provider comes with its own build of onnxruntime, a device with its driver"
        raise OptionError("runtime", f"one of those on this machine ({', '.join(have)})", runtime, advice)
    if name == _ONNXRUNTIME:
        options = _FULL_PRECISION.get(place, {}) if full_precision else {}
        return _open_onnxruntime(path, place, options, profile)
    try:
        return OpenVinoSession(path, place, full_precision)
    except Exception as error:  # its errors have no common class
        raise _unreadable(path, "OpenVINO", error) from error


def _places_of(name: str) -> list[str]:
    """The providers of onnxruntime, or the devices of OpenVINO; none where it is not installed, or of another name."""
    if name == _ONNXRUNTIME and is_installed("onnxruntime"):
        import onnxruntime

        return list(onnxruntime.get_available_providers())
    if name == _OPENVINO and is_installed("openvino"):
        import openvino

        return list(openvino.Core().available_devices)
    return []


def _open_onnxruntime(
    path: Path, provider: str, options: Mapping[str, str], profile: Path | None = None
) -> OnnxRuntimeSession:
    """onnxruntime's session, with as many threads as torch uses. Raises OptionError if it does not use the provider."""
    import onnxruntime

    if not path.is_file():
        raise CheckpointError(f"{path}: {mismatch('an .onnx file', 'no such file')}")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    if provider == "DmlExecutionProvider":  # DirectML takes neither memory patterns nor parallel execution
        settings.enable_mem_pattern = False
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile / "profile")
    providers: list[str | tuple[str, dict[str, str]]] = [(provider, dict(options))]
    if provider != CPU:
        providers.append(CPU)  # for the operators that the provider does not have
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers, enable_fallback=0)
    except Exception as error:  # its errors have no common class, and a file that was cut short may raise any of them
        if provider == CPU:
            raise _unreadable(path, "onnxruntime", error) from error
        _open_onnxruntime(path, CPU, {})  # raises the error of the file, if it is the file's
        raise OptionError("runtime", f"{provider} to work", f"an error ({_first_line(error)})") from error
    used = session.get_providers()[0]
    if used != provider:
        advice = f"{provider} is part of this onnxruntime, but could not be loaded: check its libraries and drivers"
        raise OptionError("runtime", f"{provider} to work", f"{used}, which onnxruntime uses instead", advice)
    return OnnxRuntimeSession(session, provider, profile is not None)


def _unreadable(path: Path, runtime: str, error: Exception) -> CheckpointError:
    got = f"a file that {runtime} cannot read ({_first_line(error)})"
    advice = "it is no ONNX file, was cut short, or its .data file is missing; `export` makes one"
    return CheckpointError(f"{path}: {mismatch('an ONNX file', got, advice)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_device(device: str | torch.device, has_cuda: bool) -> torch.device:
    """The device by its name. Raises OptionError unless onnxruntime can use it."""
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda"):
        raise OptionError("device", "cpu, cuda or cuda:N (N: index of a GPU) for an .onnx file", device)
    if kind.type == "cuda" and not has_cuda:
        advice = "this onnxruntime has no CUDA: use cpu, or install onnxruntime-gpu"
        raise OptionError("device", "cpu for an .onnx file here", device, advice)
    return kind
