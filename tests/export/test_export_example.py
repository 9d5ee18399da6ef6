"""The programs of docs/export.md, run as printed: without torch and without this package."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle_codec
from PIL import Image

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.inference.onnx_model import LOGITS, OnnxModel
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.instances import encode_masks
from mask2former_dinov3.sample_data import SAMPLE
from support.paths import DOCS

pytestmark = pytest.mark.timeout(900)  # whichever test asks first makes the file
TEXT = (DOCS / "export.md").read_text(encoding="utf-8")
PROGRAM, OPENVINO, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SOURCE = SAMPLE / "valid" / "97126a9791f0c117.png"

# Runs the program in its own arguments, in an environment that has nothing else.
ISOLATED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "mask2former_dinov3", "cv2", "scipy", "onnx"):
            raise ImportError(name + " must not be imported")

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), "instances.py", "exec"))
"""


def run_isolated(program: str, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    (folder / "instances.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-c", ISOLATED, str(folder / "instances.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of an image that is as large as the canvas: the bundled model cuts larger ones into tiles."""
    path = tmp_path_factory.mktemp("image") / "part.png"
    Image.open(SOURCE).crop((0, 0, 256, 256)).save(path)
    return path


def test_example__is_short_and_the_environment_has_no_torch(tmp_path: Path) -> None:
    assert len(PROGRAM.splitlines()) <= 45
    assert "torch must not be imported" in run_isolated("import torch", tmp_path).stderr


def test_example__finds_what_predictor_finds(sample_file: Path, image: Path, tmp_path: Path) -> None:
    done = run_isolated(PROGRAM, tmp_path, sample_file, image)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "instances.npz") as found:
        masks, scores, labels = found["masks"], found["scores"], found["labels"]
    expected = Predictor.from_pretrained(SAMPLE / "model", "cpu")(image)
    assert len(done.stdout.splitlines()) == len(masks) > 10
    assert set(labels) == {0}
    assert abs(len(masks) - len(expected)) <= 1  # one may stand on the threshold
    rles = [dict(rle) for rle in encode_masks(masks)]
    iou = np.asarray(rle_codec.iou(rles, [dict(rle) for rle in expected.rles], [0] * len(expected)))
    assert (iou.max(1) > 0.95).mean() > 0.95
    np.testing.assert_allclose(scores[iou.max(1) > 0.95], expected.scores[iou.argmax(1)][iou.max(1) > 0.95], atol=0.01)


# OpenVINO sets a stack for signal handlers and may unmap it while a process still has it: it gets one of its own.
AROUND = """
import numpy as np

inputs = np.load("inputs.npz")
values, real = inputs["values"], inputs["real"]
{}
np.savez("outputs.npz", **{{name: outputs[name] for name in ("class_queries_logits", "masks_queries_logits")}})
"""


def test_openvino__reads_the_same_file(sample_file: Path, image: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    exported = OnnxModel(sample_file, "cpu")
    inputs = exported.metadata.processor().preprocess(image)
    np.savez(tmp_path / "inputs.npz", values=inputs["pixel_values"].numpy(), real=inputs["pixel_mask"].numpy())
    done = run_isolated(AROUND.format(OPENVINO.replace("model.onnx", str(sample_file))), tmp_path)
    assert done.returncode == 0, done.stderr
    expected = exported(inputs["pixel_values"], inputs["pixel_mask"])
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name in LOGITS:
            error = (torch.from_numpy(outputs[name]) - getattr(expected, name)).abs()
            assert float((error <= 1e-3 * getattr(expected, name).abs().clamp(min=1)).double().mean()) > 0.95


OF_ALL_IMAGES = """
import numpy as np
import openvino

model = openvino.compile_model({file!r}, "CPU")  # in its own default precision: bf16 where the CPU has it
with np.load("inputs.npz") as inputs:
    pairs = zip(inputs["values"][:, None], inputs["real"][:, None])
    outputs = [model({{"pixel_values": values, "pixel_mask": real}}) for values, real in pairs]
    names = ("class_queries_logits", "masks_queries_logits")
    np.savez("outputs.npz", **{{name: np.concatenate([one[name] for one in outputs]) for name in names}})
"""


def test_openvino__has_the_ap_of_the_file_in_its_default_precision(sample_file: Path, tmp_path: Path) -> None:
    """What does not survive bf16, positions and the ellipses of the seeds, is computed with whole numbers."""
    pytest.importorskip("openvino")
    exported = OnnxModel(sample_file, "cpu")
    # Whole images instead of tiles: what is compared is the precision.
    processor = replace(exported.metadata, image_scale="fit").processor()
    file = SAMPLE / "valid" / "_annotations.coco.json"
    data = read_coco(Split("valid", file, file.parent))
    inputs = processor.preprocess([record.path for record in data.images])
    np.savez(tmp_path / "inputs.npz", values=inputs["pixel_values"].numpy(), real=inputs["pixel_mask"].numpy())
    done = run_isolated(OF_ALL_IMAGES.format(file=str(sample_file)), tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as saved:
        outputs = SimpleNamespace(**{name: torch.from_numpy(saved[name]) for name in LOGITS}, pixel_mask=None)

    def average_precision(outputs: Any) -> float:
        found = processor.post_process(outputs, inputs["original_sizes"], inputs["pixel_mask"])
        results = [
            {**result, "category_id": 1}
            for record, one in zip(data.images, found, strict=True)
            for result in one.to_coco(record.id)
        ]
        return float(evaluate_coco(file, results)["AP"])

    pairs = zip(inputs["pixel_values"].split(1), inputs["pixel_mask"].split(1), strict=True)
    each = [exported(*pair) for pair in pairs]  # one at a time: a batch of all takes much memory
    together = {name: torch.cat([getattr(one, name) for one in each]) for name in LOGITS}
    expected = average_precision(SimpleNamespace(**together, pixel_mask=None))
    assert expected > 0.3
    assert average_precision(outputs) == pytest.approx(expected, abs=0.01)
