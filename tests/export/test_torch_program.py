"""`export --output FILE.pt2`: the program of torch.export against the folder, run without this package too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.export.onnx_export import export
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import DETECTIONS, LOGITS, OnnxModel
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.sample_data import SAMPLE
from support.models import padded_mask, small_model
from support.paths import DOCS

# One worker of pytest-xdist: the file is exported once.
pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.xdist_group("program")]
IMAGE = SAMPLE / "valid" / "97126a9791f0c117.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and a canvas of 64 x 96."""
    path = tmp_path_factory.mktemp("model")
    small_model("seeds", encoder_layers=1, decoder_layers=2, backbone_taps=[1, 1, 1, 2]).save_pretrained(path)
    Mask2FormerDinov3ImageProcessor({"height": 64, "width": 96}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as a .pt2 file of all sizes, with instances, made by the command."""
    output = tmp_path_factory.mktemp("program") / "model.pt2"
    words = ["export", "--model", str(folder), "--output", str(output), "--dynamic", "--with-postprocess"]
    assert main(words) == 0
    return output


# The program of docs/export.md, which needs only torch, on several inputs.
PROGRAM = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
ALONE = """
import sys

import torch

first, *others = torch.load("inputs.pt")
values, real = first
PROGRAM
with torch.no_grad():
    found = [outputs, *(dict(zip(meta["outputs"], program(*pair), strict=True)) for pair in others)]
assert not {"mask2former_dinov3", "transformers"} & set(sys.modules)
torch.save(found, "outputs.pt")
print(json.dumps(meta))
"""


def test_program__says_alone_what_the_network_says(file: Path, folder: Path, tmp_path: Path) -> None:
    pairs = [
        (torch.randn(batch, 3, height, width), padded_mask(batch, height, width, (height - 9, width - 17)).bool())
        for batch, height, width in ((1, 64, 64), (3, 160, 96), (2, 128, 192))
    ]
    torch.save(pairs, tmp_path / "inputs.pt")
    program = ALONE.replace("PROGRAM", PROGRAM).replace("model.pt2", str(file))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    meta = json.loads(done.stdout)
    assert (meta["outputs"], meta["canvas"], meta["precision"]) == ([*LOGITS, *DETECTIONS], [64, 96], "fp32")
    network = load_network(folder, "cpu")[0]
    for (pixels, mask), outputs in zip(pairs, torch.load(tmp_path / "outputs.pt"), strict=True):
        with torch.no_grad():
            expected = network(pixel_values=pixels, pixel_mask=mask)
        for name in LOGITS:
            torch.testing.assert_close(outputs[name], getattr(expected, name), atol=1e-3, rtol=1e-3)
        assert outputs["masks"].shape == (len(pixels), outputs["scores"].shape[1], *pixels.shape[2:])


def test_program__predicts_as_the_folder_does(file: Path, folder: Path) -> None:
    found, expected = (Predictor.from_pretrained(model, "cpu")(IMAGE, threshold=0.0) for model in (file, folder))
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    assert (found.masks != expected.masks).mean() < 0.001


def test_program__is_checked_and_checked_again(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-export", str(file), "--model", str(folder)]
    assert main(words) == 0
    assert "operators on CPU" in capsys.readouterr().out
    record = json.loads(file.with_name("model.pt2.parity.json").read_text())
    assert [entry["command"] for entry in record["comparisons"]][:2] == ["export", "check-export"]
    assert all(entry["agrees"] and entry["runtime"] == "torch:CPU" for entry in record["comparisons"])
    assert (record["file"]["opset"], record["file"]["dynamic"]) == (None, True)
    assert main([*words, "--runtime", "openvino"]) == 1
    assert "runtime: expected torch for a .pt2 file, got openvino" in capsys.readouterr().err


def test_program__refuses_what_it_cannot_be(folder: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"precision: expected fp32 for a \.pt2 file, got fp16"):
        export(folder, tmp_path / "model.pt2", precision="fp16")
    with pytest.raises(OptionError, match=r"device: expected cpu for a \.pt2 file, got cuda"):
        OnnxModel(file, "cuda")
    short: Any = tmp_path / "short.pt2"
    short.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"short\.pt2: expected a \.pt2 file of `mask2former-dinov3 export`, got"):
        OnnxModel(short)
