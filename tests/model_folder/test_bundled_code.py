"""Code that travels with a model: whole, unchanged but for its imports, and enough where the package is missing."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import mask2former_dinov3
from mask2former_dinov3.errors import CheckpointError
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model_folder.bundled_code import CODE_LICENSE_FILE, ENTRIES, PACKAGE, flat_modules, write_code
from mask2former_dinov3.model_folder.transformers_version import NEEDED_TRANSFORMERS
from mask2former_dinov3.pipeline import InstanceSegmentationPipeline
from support.paths import ROOT

# What the code may ask of an environment; torch and transformers bring the others along but for the last three.
# safetensors comes with transformers.
NEEDED = {"PIL", "numpy", "torch", "transformers", "scipy", "cv2", "faster_coco_eval"}
COMMIT = "0123456789" * 4

# Runs where the package is not: argv are the packages' folder, the model, another model, the output, images.
ELSEWHERE = """
import sys
packages, model_id, other, output, *images = sys.argv[1:]
sys.path.append(packages)
try:
    import mask2former_dinov3
except ImportError:
    pass
else:
    raise SystemExit("the package is there")
import numpy, torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

def instances(found):
    return [(one.rles, one.labels.tolist(), one.scores.tolist()) for one in found]

def run(name):
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    model = AutoModelForUniversalSegmentation.from_pretrained(name, trust_remote_code=True)
    batch = processor(images)
    with torch.no_grad():
        outputs = model(**batch)
    found = processor.post_process(outputs, batch["original_sizes"])
    return processor, model, outputs, instances(found)

def piped(task, **options):
    pipe = pipeline(task, model=model_id, trust_remote_code=True, device="cpu", threshold=0.0, **options)
    return [[(one["label"], one["score"], numpy.asarray(one["mask"])) for one in image] for image in pipe(images)]

processor, model, outputs, found = run(model_id)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
ours, stock = piped("instance-segmentation"), piped("image-segmentation", subtask="instance")
model.save_pretrained(output + "-again")
processor.save_pretrained(output + "-again")
assert run(output + "-again")[3] == found
*_, other_outputs, _ = run(other)  # code of two models in one process
torch.save({
    "logits": (outputs.class_queries_logits, outputs.masks_queries_logits),
    "other": (other_outputs.class_queries_logits, other_outputs.masks_queries_logits),
    "instances": found, "ours": ours, "stock": stock,
}, output)
"""


@pytest.fixture(scope="module")
def with_code(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its code; nothing in the folder is to be changed."""
    folder = tmp_path_factory.mktemp("with") / "tiny-model.v1"
    shutil.copytree(model_folder, folder)
    write_code(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index, size in enumerate(((40, 60, 3), (90, 30, 3))):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{index}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to all that is installed here, except this package (and the .pth files that lead to it)."""
    folder = tmp_path_factory.mktemp("packages")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for file in Path(place).iterdir():
            if file.suffix != ".pth" and "mask2former_dinov3" not in file.name:
                (folder / file.name).symlink_to(file)
    return folder


def run_elsewhere(packages: Path, home: Path, *words: str | Path) -> Any:
    """What `ELSEWHERE` saved: an interpreter of its own, without site-packages and with a cache of its own."""
    output = home / "found.pt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    model, other, *images = map(str, words)
    command = [sys.executable, "-I", "-S", "-c", ELSEWHERE, str(packages), model, other, str(output), *images]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(output, weights_only=False)


def assert_the_same_as_here(found: Any, folder: Path, pictures: list[str]) -> None:
    processor = Mask2FormerDinov3ImageProcessor.from_pretrained(folder)
    model = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(folder)
    batch = processor(pictures)
    with torch.no_grad():
        outputs = model(**batch)
    for logits, expected in zip(
        found["logits"], (outputs.class_queries_logits, outputs.masks_queries_logits), strict=True
    ):
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    instances = processor.post_process(outputs, batch["original_sizes"])
    assert all(len(one) > 0 for one in instances)
    assert found["instances"] == [(one.rles, one.labels.tolist(), one.scores.tolist()) for one in instances]
    for task, options in (("ours", {}), ("stock", {"subtask": "instance"})):
        name = "instance-segmentation" if task == "ours" else "image-segmentation"
        here = pipeline(name, model=str(folder), device="cpu", threshold=0.0, **options)(pictures)
        assert all(here)
        for there, image in zip(found[task], here, strict=True):
            assert [one[:2] for one in there] == [(one["label"], one["score"]) for one in image]
            assert all(np.array_equal(mask, one["mask"]) for (*_, mask), one in zip(there, image, strict=True))


def test_write_code__works_from_a_folder_where_the_package_is_missing(
    with_code: Path, pictures: list[str], packages: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(with_code, other)
    model = Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(with_code)
    with torch.no_grad():
        model.head.transformer_decoder.class_predictor.bias += 1.0
    model.save_pretrained(other)
    write_code(other)
    found = run_elsewhere(packages, tmp_path, with_code, other, *pictures)
    assert_the_same_as_here(found, with_code, pictures)
    torch.testing.assert_close(found["other"][1], found["logits"][1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found["other"][0], found["logits"][0] + 1.0, atol=1e-5, rtol=1e-5)


def test_write_code__works_from_the_hub_where_the_package_is_missing(
    with_code: Path, pictures: list[str], packages: Path, tmp_path: Path
) -> None:
    """As the hub's client leaves a downloaded repository; there transformers checks the imports of every module."""
    repository = tmp_path / "hub" / "models--someone--tiny-model"
    shutil.copytree(with_code, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    found = run_elsewhere(packages, tmp_path, "someone/tiny-model", with_code, *pictures)
    assert_the_same_as_here(found, with_code, pictures)


def test_write_code__changes_nothing_where_the_package_is(
    with_code: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", pytest.fail)  # transformers asks whether it may run code
    for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        model = AutoModelForUniversalSegmentation.from_pretrained(with_code, **options)
        processor = AutoImageProcessor.from_pretrained(with_code, **options)
        assert type(model) is Mask2FormerDinov3ForInstanceSegmentation
        assert type(processor) is Mask2FormerDinov3ImageProcessor
        for task in ("instance-segmentation", "image-segmentation"):
            pipe = pipeline(task, model=str(with_code), device="cpu", **options)
            assert type(pipe.model) is Mask2FormerDinov3ForInstanceSegmentation
            assert (type(pipe) is InstanceSegmentationPipeline) == (task == "instance-segmentation")
    # Saved again without its code, the folder does not speak of any.
    for source in (with_code, model_folder):
        Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(source).save_pretrained(tmp_path / source.name)
        Mask2FormerDinov3ImageProcessor.from_pretrained(source).save_pretrained(tmp_path / source.name)
    for name in ENTRIES:
        saved, expected = ((tmp_path / source.name / name).read_text() for source in (with_code, model_folder))
        assert saved == expected


def test_write_code__adds_to_the_folder_and_may_be_repeated(with_code: Path, model_folder: Path) -> None:
    write_code(with_code)
    before, after = ({path.name for path in folder.iterdir()} for folder in (model_folder, with_code))
    assert after - before == {CODE_LICENSE_FILE, *(f"{name}.py" for name in flat_modules())}
    assert (with_code / CODE_LICENSE_FILE).read_text() == (ROOT / "LICENSE").read_text()
    for name, entries in ENTRIES.items():
        old, new = (json.loads((folder / name).read_text()) for folder in (model_folder, with_code))
        assert new == old | entries
    weights = "model.safetensors"
    assert (with_code / weights).read_bytes() == (model_folder / weights).read_bytes()


def test_flat_modules__are_the_package_with_other_imports(with_code: Path) -> None:
    sources = {path.stem: path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    modules = flat_modules()
    assert {"configuration", "modeling", "image_processing", "pipeline", "rle", "deformable_triton"} <= modules.keys()
    assert not {"train", "config", "cli", "predict", "evaluate", "dataset"} & modules.keys()
    for name, text in modules.items():
        imported = {
            alias.name: node.module
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }
        imported.pop("__name__", None)  # only names a module, for versions that copy what a file names
        for wanted, module in imported.items():  # one level up, from a module that is there and binds the name
            assert wanted in {item for item in bound_names(modules[str(module)])}, (name, module, wanted)
        assert without_relative_imports(text) == without_relative_imports(sources[name].read_text(encoding="utf-8"))
        assert f"mask2former-dinov3 {mask2former_dinov3.__version__}, MIT licence" in text.splitlines()[0]
    for entries in ENTRIES.values():
        for reference in entries["auto_map"].values():
            module, name = reference.split(".")
            assert name in bound_names(modules[module])


def test_flat_modules__ask_for_no_package_beyond_the_documented(with_code: Path) -> None:
    asked = {name for file in with_code.glob("*.py") for name in get_imports(file)} - sys.stdlib_module_names
    assert asked == NEEDED
    for root in ("modeling.py", "pipeline.py"):
        followed = {Path(file) for file in get_relative_import_files(with_code / root)}
        assert all(file.is_file() for file in followed)
    page = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
    for package in ("torch", "transformers", "scipy", "pillow", "opencv-python-headless", "faster-coco-eval"):
        assert package in page


def test_flat_modules__say_which_transformers_they_need_before_anything_else(with_code: Path, tmp_path: Path) -> None:
    """transformers 4 copies the modules that the first file names, hashes all that they name in turn, and runs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"transformers>={NEEDED_TRANSFORMERS}" in project["dependencies"]
    for place, root in enumerate(("configuration", "modeling", "image_processing", "pipeline")):
        package = tmp_path / f"copied_{place}"
        package.mkdir()
        for name in (root, *get_relative_imports(with_code / f"{root}.py")):
            shutil.copyfile(with_code / f"{name}.py", package / f"{name}.py")
        assert all(Path(file).is_file() for file in get_relative_import_files(package / f"{root}.py"))
        code = f"import transformers; transformers.__version__ = '4.57.3'; import {package.name}.{root}"
        found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        expected = f"expected transformers >= {NEEDED_TRANSFORMERS}, got 4.57.3; upgrade it with: pip install -U"
        assert expected in found.stderr.splitlines()[-1]


def without_relative_imports(text: str) -> str:
    class Rest(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
            return None if node.level else node

        def visit_If(self, node: ast.If) -> ast.If | None:
            is_never = isinstance(node.test, ast.Constant) and node.test.value is False
            return None if is_never else node

    return ast.dump(Rest().visit(ast.parse(text)))


def bound_names(text: str) -> set[str]:
    """What the top level of a module defines."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def test_write_code__refuses_what_is_no_model_folder_of_ours(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"got a folder without config\.json and preprocessor_config\.json;",
    ):
        write_code(tmp_path)
    shutil.copyfile(model_folder / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    for content, said in (
        ("{", r"config\.json: expected a JSON object, got invalid JSON \(line 1, column 2: "),
        ("[]", "expected a JSON object, got a list$"),
        ('{"model_type": "mask2former"}', "config.json: expected model_type 'mask2former_dinov3', got 'mask2former'$"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=said):
            write_code(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "preprocessor_config.json"]


OLD_CONFIG_ENTRIES: dict[str, Any] = {  # as earlier versions wrote them into config.json
    "auto_map": {
        "AutoConfig": "configuration.Mask2FormerDinov3Config",
        "AutoModelForImageSegmentation": "modeling.Mask2FormerDinov3ForInstanceSegmentation",
        "AutoModelForUniversalSegmentation": "modeling.Mask2FormerDinov3ForInstanceSegmentation",
    },
    "custom_pipelines": {
        "instance-segmentation": {
            "impl": "pipeline.InstanceSegmentationPipeline",
            "pt": ["AutoModelForUniversalSegmentation"],
            "type": "image",
        }
    },
}
OLD_PROCESSOR_ENTRIES = {"auto_map": {"AutoImageProcessor": "image_processing.Mask2FormerDinov3ImageProcessor"}}


def test_write_code__entries_of_earlier_versions_load_and_are_still_written(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(model_folder, folder)
    for name, entries in (("config.json", OLD_CONFIG_ENTRIES), ("preprocessor_config.json", OLD_PROCESSOR_ENTRIES)):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stored | entries))
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is Mask2FormerDinov3ForInstanceSegmentation
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor) is Mask2FormerDinov3ImageProcessor
    pipe = pipeline("instance-segmentation", model=str(folder), device="cpu", trust_remote_code=True)
    assert type(pipe) is InstanceSegmentationPipeline
    write_code(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_pipelines"] == OLD_CONFIG_ENTRIES["custom_pipelines"]
    assert config["auto_map"].items() >= OLD_CONFIG_ENTRIES["auto_map"].items()  # same modules, same classes
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    assert stored["auto_map"] == OLD_PROCESSOR_ENTRIES["auto_map"]
