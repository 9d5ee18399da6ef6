"""Files that are not what they should be, and devices that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mask2former_dinov3.errors import CheckpointError, MissingExtraError, OptionError
from mask2former_dinov3.inference.onnx_model import FORMAT_VERSION, OnnxMetadata
from mask2former_dinov3.inference.predictor import load_model
from mask2former_dinov3.read_options import ReadOptions

METADATA = OnnxMetadata(
    format_version=FORMAT_VERSION,
    producer={"mask2former-dinov3": "0"},
    classes=["disc"],
    category_ids=[3],
    mean=[0.5] * 3,
    std=[0.2] * 3,
    canvas=[64, 96],
    precision="fp32",
    mask_stride=4,
    num_queries=8,
    licence={"code": "MIT", "weights": "mine"},
)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A valid file of somebody else."""
    value = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 64, 96])
    output = helper.make_tensor_value_info("same", TensorProto.FLOAT, ["batch", 3, 64, 96])
    graph = helper.make_graph([helper.make_node("Identity", ["pixel_values"], ["same"])], "foreign", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


def described(file: Path, **changed: str) -> Path:
    """The same file with metadata as ours, some of them changed."""
    model = onnx.load(file)
    helper.set_model_props(model, {**METADATA.to_properties(), **changed})
    onnx.save(model, file)
    return file


def test_load_model__reads_what_a_file_says_of_itself(foreign: Path) -> None:
    model, processor = load_model(described(foreign), "cpu")
    assert model.config.id2label == {0: "disc"}
    assert model.config.category_ids == [3]
    assert (model.config.num_queries, model.config.mask_stride) == (8, 4)
    assert (processor.size, processor.image_std) == ({"height": 64, "width": 96}, [0.2] * 3)


def test_load_model__takes_how_files_are_read(foreign: Path) -> None:
    _, processor = load_model(described(foreign, value_range='"percentile"', page="3", channels="[2]"), "cpu")
    assert processor.read_options == ReadOptions("percentile", 3, (2,))


def test_load_model__reads_files_of_earlier_versions(foreign: Path) -> None:
    """They say nothing of how images are read."""
    model = onnx.load(foreign)
    new = {"value_range", "page", "channels"}
    helper.set_model_props(model, {key: text for key, text in METADATA.to_properties().items() if key not in new})
    onnx.save(model, foreign)
    assert load_model(foreign, "cpu")[1].read_options == ReadOptions()


def test_from_properties__takes_a_class_map_and_files_without_one() -> None:
    texts = METADATA.to_properties()
    mapped = {**texts, "class_map": '{"circle": "disc", "dust": null}'}
    assert OnnxMetadata.from_properties(mapped).class_map == {"circle": "disc", "dust": None}
    del texts["class_map"]
    assert OnnxMetadata.from_properties(texts) == METADATA


def test_load_model__refuses_files_that_are_not_ours(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"foreign.onnx: expected a file of `mask2former-dinov3 export`"):
        load_model(foreign, "cpu")
    with pytest.raises(CheckpointError, match=r"nowhere.onnx: expected an .onnx file, got no such file"):
        load_model(tmp_path / "nowhere.onnx", "cpu")
    for content in (b"", b"no model at all", foreign.read_bytes()[:60]):
        (tmp_path / "cut.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cut.onnx: expected an ONNX file, got .* was cut short"):
            load_model(tmp_path / "cut.onnx", "cpu")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_version": "2"}, "expected metadata of version 1, got 2; export the model again"),
        ({"classes": "disc"}, "expected a file of"),
        ({"canvas": "[64]"}, "expected metadata that describe an image processor, got metadata that do not"),
        ({"std": "[0, 0, 0]"}, "expected metadata that describe an image processor, got metadata that do not"),
    ],
)
def test_load_model__refuses_broken_metadata(changed: dict[str, str], message: str, foreign: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(described(foreign, **changed), "cpu")


def test_load_model__says_which_devices_there_are(foreign: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    kinds = "cpu, cuda or cuda:N (N: index of a GPU) for an .onnx file"
    no_cuda = "cpu for an .onnx file here, got cuda; this onnxruntime has no CUDA: use cpu, or install onnxruntime-gpu"
    told = {"cuda": no_cuda, "mps": f"{kinds}, got mps", "quantum": f"{kinds}, got quantum"}
    for device, expected in told.items():
        with pytest.raises(OptionError) as caught:
            load_model(described(foreign), device)
        assert str(caught.value) == f"device: expected {expected}"


def test_load_model__says_how_to_install_onnxruntime(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"onnxruntime, not installed .* 'mask2former-dinov3\[export\]'"):
        load_model(foreign, "cpu")
