"""docs/instances.cpp, built with the compiler of this machine and run on the sample model.

Wheels of onnxruntime have its library without its headers. The test takes them from ONNXRUNTIME_INCLUDE (the folder
`include` of onnxruntime's release archive) or from the system, and is skipped where there are none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from faster_coco_eval.core import mask as rle_codec
from PIL import Image

from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.sample_data import SAMPLE
from support.paths import DOCS

HEADER = "onnxruntime_cxx_api.h"
SYSTEM = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/local/include", "/usr/include")
FOLDERS = [Path(folder) for folder in (os.environ.get("ONNXRUNTIME_INCLUDE"), *SYSTEM) if folder]
INCLUDE = next((folder for folder in FOLDERS if (folder / HEADER).is_file()), None)
COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(INCLUDE is None, reason="no headers of onnxruntime: set ONNXRUNTIME_INCLUDE"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program, beside the library of the installed onnxruntime."""
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    words = [COMPILER, "-std=c++17", "-O2", "-Wall", "-Werror", f"-isystem{INCLUDE}", DOCS / "instances.cpp"]
    words += [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", folder / "instances"]
    subprocess.run([str(word) for word in words], check=True)
    return folder / "instances"


@pytest.mark.parametrize("size", [(256, 220), (250, 170)])  # width, height: as large as the canvas allows, and smaller
def test_cpp_example__finds_what_predictor_finds(
    program: Path, sample_file: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    image = tmp_path / "image.ppm"
    Image.open(SAMPLE / "valid" / "97126a9791f0c117.png").convert("RGB").crop((0, 0, *size)).save(image)
    done = subprocess.run([program, sample_file, image], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = Predictor.from_pretrained(SAMPLE / "model", "cpu")(image)
    assert len(found) == len(expected) > 0
    assert [one["label"] for one in found] == expected.names
    rles = [rle_codec.frPyObjects({"size": one["size"], "counts": one["counts"]}, *one["size"]) for one in found]
    iou = np.asarray(rle_codec.iou(rles, [dict(rle) for rle in expected.rles], [0] * len(expected)))
    same = iou.argmax(1)
    assert sorted(same) == list(range(len(expected)))
    assert iou.max(1).min() >= 0.98
    np.testing.assert_allclose([one["score"] for one in found], expected.scores[same], atol=1e-3)
    corners = np.concatenate([expected.boxes[:, :2], expected.boxes[:, 2:] - expected.boxes[:, :2]], axis=1)
    np.testing.assert_allclose([one["bbox"] for one in found], corners[same], atol=2)


def test_cpp_example__says_what_it_cannot_read(program: Path, sample_file: Path, tmp_path: Path) -> None:
    (tmp_path / "image.ppm").write_bytes(b"P6 4 4 255\n123")
    Image.new("RGB", (300, 20)).save(tmp_path / "wide.ppm")
    for words, message in (
        ([], "expected a model and an image"),
        ([sample_file, tmp_path / "image.ppm"], "image.ppm: cut short"),
        ([sample_file, tmp_path / "wide.ppm"], "no larger than the canvas"),
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
