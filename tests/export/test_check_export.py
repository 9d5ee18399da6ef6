"""`check-export` and the record beside a file: what agrees, what differs, runtimes that are missing or fall back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.evaluation.evaluate import evaluate_model
from mask2former_dinov3.export import onnx_export as exporting
from mask2former_dinov3.export.ap_check import ApComparison
from mask2former_dinov3.export.check_export import check_export
from mask2former_dinov3.export.file_metadata import compare_metadata, set_metadata
from mask2former_dinov3.export.onnx_check import Agreement
from mask2former_dinov3.export.parity import FileComparison, add_parity, parity_file, read_parity
from mask2former_dinov3.inference import onnx_session
from mask2former_dinov3.inference.onnx_model import OnnxModel
from mask2former_dinov3.inference.onnx_session import open_session
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.sample_data import SAMPLE
from support.processes import run_python

VALID = SAMPLE / "valid"
MODEL = SAMPLE / "model"
AGREES = Agreement("fp32", ((1, 3, 64, 64),), True, {"a": 1.0}, {"a": 0.0}, 8, 1.0, 0.0, 0.0, 1.0, "")


@pytest.fixture(scope="session")
def one_image(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """One validation image of the sample with its annotations, as a data set."""
    folder = tmp_path_factory.mktemp("one")
    content = json.loads((VALID / "_annotations.coco.json").read_text())
    content["images"] = content["images"][:1]
    shutil.copy(VALID / content["images"][0]["file_name"], folder)
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == content["images"][0]["id"]]
    (folder / "truth.json").write_text(json.dumps(content))
    return Split("evaluate", folder / "truth.json", folder, only_images=True)


def words_of(file: Path, data: Split, *words: object, model: Path = MODEL) -> list[str]:
    return ["check-export", str(file), "--model", str(model), "--images", str(data.images), *map(str, words)]


def test_check_export__repeats_the_comparison_and_adds_ap_of_evaluate(
    sample_file: Path, one_image: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(sample_file, tmp_path / "model.onnx"))
    assert main(words_of(file, one_image, "--annotations", one_image.annotations)) == 0
    printed = capsys.readouterr().out
    (entry,), about = read_parity(parity_file(file))
    assert entry["agrees"]
    assert entry["runtime"] == "onnxruntime:CPUExecutionProvider"
    assert entry["operators"]["CPUExecutionProvider"] > 1000
    assert entry["instances"]["compared"] > 20
    assert entry["instances"]["the_same"] == 1.0
    assert (about["precision"], about["opset"], about["size"]) == ("fp32", {"ai.onnx": 20}, [256, 256])
    metrics = evaluate_model(MODEL, one_image, None, tmp_path / "evaluation", device="cpu")
    scores = entry["average_precision"]
    assert scores["model"] == {name: metrics[name] for name in ("AP", "AP50", "detections")}
    assert scores["file"]["AP"] == pytest.approx(metrics["AP"], abs=0.002)
    assert f"AP              {metrics['AP']:.4f}" in printed


def test_check_export__says_what_another_network_changes(
    sample_file: Path, one_image: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network: Any = load_network(MODEL, "cpu")[0]
    with torch.no_grad():
        network.head.transformer_decoder.class_predictor.bias += 0.5 * torch.tensor([1.0, -1.0])
    network.config.score_threshold = 0.75
    unsigned = shutil.ignore_patterns("*.sha256")  # of the weights that are replaced
    other = shutil.copytree(MODEL, tmp_path / "other", ignore=unsigned)
    network.save_pretrained(other)
    file = Path(shutil.copy(sample_file, tmp_path / "model.onnx"))
    assert main(words_of(file, one_image, model=other)) == 1
    error = capsys.readouterr().err
    assert f"error: {file} differs from {other} in onnxruntime:CPUExecutionProvider" in error
    assert "score_threshold: expected 0.75 as in the model, got" in error
    assert "class_queries_logits: expected 95% of the logits within 0.001, got" in error
    assert "instances: expected 98% the same in fp32, got" in error
    (entry,), _ = read_parity(parity_file(file))
    assert not entry["agrees"]
    assert len(entry["differences"]) == 3


def test_check_export__refuses_a_file_of_a_network_of_other_sizes(sample_file: Path, model_folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"expected an export of .*, got a file of another network.*\n.*classes: "
    ):
        check_export(sample_file, model_folder)


def test_check_export__a_provider_that_computes_nothing_is_an_error(
    sample_file: Path, one_image: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    """Azure's provider takes operators of its own only: onnxruntime accepts it, and uses the CPU without a word."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no operator")
    before = read_parity(parity_file(sample_file))
    assert main(words_of(sample_file, one_image, "--runtime", "onnxruntime:AzureExecutionProvider")) == 1
    error = capsys.readouterr().err
    assert "--runtime: expected AzureExecutionProvider for operators of the file, got CPUExecutionProvider" in error
    assert read_parity(parity_file(sample_file)) == before


@pytest.mark.parametrize("runtime", ["onnxruntime:NoExecutionProvider", "openvino:GPU", "tensorrt", "onnxruntime:"])
def test_open_runtime__names_those_that_are_there(
    runtime: str, sample_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "is_installed", lambda name: name == "onnxruntime")
    if runtime == "onnxruntime:":  # as without the colon
        assert onnx_session.open_runtime(sample_file, runtime).runtime == "onnxruntime:CPUExecutionProvider"
        return
    with pytest.raises(OptionError) as caught:
        onnx_session.open_runtime(sample_file, runtime)
    assert "expected one of those on this machine (" in str(caught.value)
    assert f"onnxruntime:CPUExecutionProvider), got {runtime}; " in str(caught.value)


def test_run__an_error_of_the_runtime_names_it(sample_file: Path) -> None:
    session = onnx_session.open_runtime(sample_file, "onnxruntime")
    with pytest.raises(
        CheckpointError, match=r"^onnxruntime:CPUExecutionProvider: expected the file to run, got an err"
    ):
        session.run({"pixel_values": np.zeros((1, 3, 32, 32), np.float32)}, ("class_queries_logits",))


def test_open_session__does_not_fall_back_from_a_gpu_in_silence(
    sample_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An onnxruntime that lists CUDA without being able to use it, as onnxruntime-gpu does without CUDA's libraries."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(OptionError) as caught:
        open_session(sample_file, "cuda")
    assert str(caught.value).startswith("device: expected cpu for an .onnx file here, got cuda; expected CUDAExecution")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert open_session(sample_file).runtime == "onnxruntime:CPUExecutionProvider"
    assert "the CPU is used" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--annotations", "none.json", "--images", "."], "--annotations: expected "),
        (["--annotations", "truth.json", "--images", "none"], "--images: expected "),
    ],
)
@pytest.mark.parametrize("verb", ["export", "check-export"])
def test_verbs__annotations_must_be_there(
    verb: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("truth.json").write_text("{}")
    own = ["--output", "m.onnx"] if verb == "export" else ["m.onnx"]
    assert main([verb, *own, "--model", str(MODEL), *words]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([verb, *own, "--model", str(MODEL), *words[:2]])
    assert "error: --annotations: expected --images beside it" in capsys.readouterr().err


def test_export__compares_ap_and_writes_the_record(
    sample_file: Path, one_image: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "trace", lambda _, __, path, *rest, **flags: shutil.copy(sample_file, path))
    output = tmp_path / "model.onnx"
    done = exporting.export(MODEL, output, images=one_image.images, annotations=one_image)
    (entry,), about = read_parity(parity_file(output))
    assert (entry["command"], entry["agrees"], about["bytes"]) == ("export", True, done.size)
    assert entry["average_precision"]["model"]["AP"] > 0.3
    assert entry["versions"].keys() >= {"mask2former-dinov3", "torch", "onnx", "onnxruntime"}
    before = parity_file(output).read_bytes()
    other = ApComparison(Path("a.json"), 1, (0.5, 0.75, 30), (0.4, 0.75, 30), 0.002)
    monkeypatch.setattr(exporting, "check_agreement", lambda *_: AGREES)
    monkeypatch.setattr(exporting, "compare_ap", lambda *_, **__: other)
    with pytest.raises(CheckpointError, match=r"exported file: AP: expected 0.5000 of the model within 0.002, got 0.4"):
        exporting.export(MODEL, output, images=one_image.images, annotations=one_image)
    assert parity_file(output).read_bytes() == before


def test_ap_comparison__differs_beyond_the_tolerance_and_shows_a_table() -> None:
    found = ApComparison(Path("a.json"), 3, (0.5, 0.75, 30), (0.497, 0.75, 31), 0.005)
    assert not found.differences()
    assert found.text().splitlines()[1].split() == ["AP", "0.5000", "0.4970", "-0.0030"]
    assert found.text().splitlines()[3].split() == ["detections", "30", "31", "+1"]
    assert replace(found, tolerance=0.002).differences() == [
        "AP: expected 0.5000 of the model within 0.002, got 0.4970"
    ]


def test_compare_metadata__says_which_thresholds_and_values_a_file_has_not(sample_file: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(sample_file, tmp_path / "model.onnx"))
    own = OnnxModel(file, "cpu").metadata
    changed = replace(own, score_threshold={"nucleus": 0.25}, value_range="percentile", image_scale=2.0)
    set_metadata(file, changed)
    assert compare_metadata(changed, OnnxModel(file, "cpu").metadata) == []
    assert [line.partition(":")[0] for line in compare_metadata(own, OnnxModel(file, "cpu").metadata)] == [
        "value_range",
        "score_threshold",
        "image_scale",
    ]


def test_parity__entries_are_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    one = FileComparison("check-export", "m", None, "onnxruntime:CPUExecutionProvider", True, AGREES)
    assert add_parity(file, {"sha256": "1"}, one) == (tmp_path / "model.onnx.parity.json", 0)
    other = replace(one, agreement=replace(AGREES, finite=False, within={}, largest={}, matched=0.0))
    assert add_parity(file, {"sha256": "1"}, other)[1] == 0
    entries, _ = read_parity(parity_file(file))
    assert [entry["agrees"] for entry in entries] == [True, False]
    assert entries[1]["differences"][0] == "expected finite logits in fp32, got NaN or infinity"
    assert add_parity(file, {"sha256": "2"}, one)[1] == 2  # the file was exported again
    entries, about = read_parity(parity_file(file))
    assert (len(entries), about["sha256"], about["name"]) == (1, "2", "model.onnx")
    parity_file(file).write_text("[]")
    with pytest.raises(CheckpointError, match="expected the record that `export` writes"):
        add_parity(file, {"sha256": "2"}, one)


def test_check_export__agrees_in_openvino(sample_file: Path, one_image: Split, tmp_path: Path) -> None:
    """In a process of its own: OpenVINO may unmap the stack of signal handlers of one that goes on."""
    pytest.importorskip("openvino")
    file = Path(shutil.copy(sample_file, tmp_path / "model.onnx"))
    words = ["-m", "mask2former_dinov3", *words_of(file, one_image, "--runtime", "openvino")]
    done = run_python(words, tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,), _ = read_parity(parity_file(file))
    assert (entry["runtime"], list(entry["operators"])) == ("openvino:CPU", ["CPU"])
    assert entry["agrees"]
    assert "openvino" in entry["versions"]
    assert onnx.load(file).metadata_props
