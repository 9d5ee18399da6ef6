"""Rules of the repository that a tool can check."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from PIL import Image

import mask2former_dinov3
from mask2former_dinov3.config.cross_checks import PLACEHOLDER
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.errors import ConfigError
from support.paths import PACKAGE, ROOT

SAMPLE = PACKAGE / "sample"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("mask2former_dinov3_*_no_trainer_coco.py"))
RECIPES = sorted(ROOT.glob("mask2former-dinov3_*_train_args.json"))

# Adding an option is a visible decision: it changes this list.
OPTIONS = """
adam_beta1 adam_beta2 adam_epsilon backbone backbone_lr_multiplier backbone_norm backbone_taps blur channels
checkpointing_steps class_weights classes color_jitter copy_paste crowd dataloader_num_workers dataset_format
dataset_name decoder_layers description early_stopping_patience ema_decay encoder_layers extra_images flip
freeze_backbone frozen_blocks gamma_jitter gradient_accumulation_steps gradient_checkpointing head hub_model_id
hub_private_repo hub_token image_height image_scale image_width incomplete_images invert jpeg_quality layer_decay
learning_rate logging_steps lora_alpha lora_rank lora_targets lr_scheduler_type mask_feature_size mask_loss
mask_stride matching max_bad_images max_detections max_grad_norm max_hours max_train_steps metric_for_best_model
mixed_precision neck noise num_queries num_train_epochs num_warmup_steps output_dir page per_device_eval_batch_size
per_device_train_batch_size process_group_timeout push_to_hub query_init recipe repeat_factor report_to
resume_from_checkpoint rotation save_total_limit scale_max scale_min seed test_annotations test_images torch_compile
train_annotations train_images valid_annotations valid_images valid_split value_range weight_decay with_code
with_tracking
"""


def name_of(path: Path) -> str:
    """`data/coco.py` -> `data.coco`; the package itself is empty."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(path: Path, *, at_top: bool) -> Iterator[str]:
    """Our own modules that a file imports as it is loaded (at_top), or anywhere, as `data.coco`."""
    names = {name_of(module) for module in MODULES}
    package = path.relative_to(PACKAGE).parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            source = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*source, alias.name])
                yield whole if whole in names else ".".join(source)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            assert "mask2former_dinov3" not in ast.unparse(node), f"{path}: imports of our own are relative"


def test_modules__files_and_functions_are_short() -> None:
    long: list[str] = []
    for path in [*MODULES, *(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            long.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > 60:
                long.append(f"{path.name}: {node.name} has {length} lines")
    assert not long


# Room (a folder of the package, or a module in its root) -> the rooms that it may import, inside functions too.
GROUND = frozenset(
    {"allocator", "atomic_files", "canvas", "errors", "extras", "folder_lock", "json_files", "read_options"}
    | {"progress_bar", "sample_data", "version"}
)
MODEL_USE = GROUND | {"data", "instances", "model", "model_folder", "visualize", "weights"}
ROOMS: dict[str, frozenset[str]] = {
    "allocator": frozenset(),
    "atomic_files": frozenset({"errors"}),
    "canvas": frozenset({"errors"}),
    "errors": frozenset(),
    "extras": frozenset({"errors"}),
    "folder_lock": frozenset({"atomic_files", "errors", "json_files"}),
    "json_files": frozenset({"errors"}),
    "progress_bar": frozenset(),
    "read_options": frozenset({"errors"}),
    "sample_data": frozenset(),
    "version": frozenset(),
    "config": GROUND,
    "data": GROUND,
    "model": frozenset(),
    "weights": GROUND | {"model"},
    "instances": frozenset({"data", "errors", "extras"}),
    "visualize": frozenset({"errors", "instances"}),
    "model_folder": GROUND | {"data", "instances", "model", "visualize", "weights"},
    "inference": MODEL_USE,
    "pipeline": frozenset({"inference", "instances"}),
    "evaluation": MODEL_USE | {"inference"},
    "reports": GROUND | {"data", "evaluation", "instances", "visualize"},
    "export": MODEL_USE | {"evaluation", "inference"},
    "benchmark": MODEL_USE | {"evaluation", "export", "inference"},
    "browser": MODEL_USE | {"export", "inference"},
    "serving": MODEL_USE | {"browser", "inference"},
    "cluster": MODEL_USE | {"inference"},
    "training": MODEL_USE | {"config", "evaluation", "inference", "reports"},
    "tuning": GROUND | {"cluster", "config", "data", "training"},
    "cli": MODEL_USE
    | {
        "benchmark",
        "browser",
        "cluster",
        "config",
        "evaluation",
        "export",
        "inference",
        "reports",
        "serving",
        "training",
        "tuning",
    },
}


def room_of(name: str) -> str:
    return name.split(".")[0]


def test_rooms__every_module_is_in_one_and_imports_what_it_may() -> None:
    for path in MODULES:
        name = name_of(path)
        if name in ("", "__main__"):  # the public names, and the command line
            continue
        room = room_of(name)
        assert room in ROOMS, f"{name}: not in the table of rooms"
        entered = {room_of(one) for one in imports_of(path, at_top=False) if one} - {room}
        assert entered <= ROOMS[room], f"{name} imports {sorted(entered - ROOMS[room])}"
    assert ROOMS.keys() == {room_of(name_of(path)) for path in MODULES} - {"", "__main__"}


def test_rooms__are_shown_in_architecture() -> None:
    """ARCHITECTURE.md has a row for every room: its name, what it is for, the rooms that it may import."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Rooms")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    shown: dict[str, frozenset[str]] = {}
    for names, _, imports in rows:
        may = frozenset(re.findall(r"`(\w+)`", imports))
        for name in re.findall(r"`(\w+)`", names):
            shown[name] = may | GROUND if "ground" in imports else may
    assert shown == ROOMS


def test_rooms__make_no_circle() -> None:
    done: set[str] = set()
    while waiting := ROOMS.keys() - done:
        ready = {room for room in waiting if ROOMS[room] <= done}
        assert ready, f"rooms in a circle: {sorted(waiting)}"
        done |= ready


def test_modules__imports_make_no_circle() -> None:
    graph = {name_of(path): set(imports_of(path, at_top=True)) for path in MODULES}
    done = {""}  # the package itself loads its names lazily
    while waiting := graph.keys() - done:
        ready = {name for name in waiting if not graph[name] - done - {name}}
        assert ready, f"imports in a circle: {sorted(waiting)}"
        done |= ready


def test_modules__no_two_share_a_name() -> None:
    stems = [path.stem for path in MODULES if path.stem != "__init__"]
    assert sorted(set(stems)) == sorted(stems)  # the code in a model folder lies in one flat folder


def defined_names(path: Path) -> set[str]:
    """Public names that a module defines at its top level, not those that it imports."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")} - {"logger"}


def test_modules__a_public_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for name in defined_names(path):
            places.setdefault(name, []).append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_modules__use_any_sparingly() -> None:
    """At most 3 in 1,000 lines: what predicts, COCO's results and saved states have types."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES]
    used = sum(isinstance(node, ast.Name) and node.id == "Any" for tree in trees for node in ast.walk(tree))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES)
    assert used <= 3 * lines / 1000


def test_modules__torchvision_is_never_imported() -> None:
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "torchvision" not in ast.unparse(node), path


def test_modules__import_without_any_extra() -> None:
    blocked = [
        "datasets",
        "peft",
        "supervision",
        "trackio",
        "wandb",
        "onnx",
        "onnxruntime",
        "fastapi",
        "gradio",
        "uvicorn",
        "ray",
    ]
    blocked += ["torchvision", "pycocotools", "triton"]
    # Imported on a GPU, where triton is; by `serve` and `tune`, which have asked for their packages by then.
    skipped = (
        "__main__.py",
        "deformable_triton.py",
        "app.py",
        "page.py",
        "middleware.py",
        "connections.py",
        "doors.py",
        "ray_trials.py",
    )
    names = [f"mask2former_dinov3.{name_of(path)}".rstrip(".") for path in MODULES if path.name not in skipped]
    code = (
        f"import importlib, sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Parts of declared packages that are packages of their own.
BROUGHT_ALONG = {"pydantic_core": "pydantic", "starlette": "fastapi", "triton": "torch"}


def test_modules__import_only_declared_packages() -> None:
    """The tests' environment has many more packages than a user's, who gets those of pyproject.toml alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    declared = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    names = {canonicalize_name(re.split(r"[>=\[;]", line)[0]) for line in declared}
    installed = packages_distributions()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {name.split(".")[0] for name in imported} - sys.stdlib_module_names:
                providers = set(map(canonicalize_name, installed.get(module, [module])))
                assert providers & names or module in BROUGHT_ALONG, f"{path}: {module} is not in pyproject.toml"


def test_package__public_names_are_a_short_list_that_loads() -> None:
    assert mask2former_dinov3.__all__ == [
        "Instances",
        "Mask2FormerDinov3Config",
        "Mask2FormerDinov3ForInstanceSegmentation",
        "Mask2FormerDinov3ImageProcessor",
        "Predictor",
        "TrainConfig",
        "__version__",
        "evaluate_coco",
        "train",
    ]
    for name in mask2former_dinov3.__all__:
        assert name == "__version__" or getattr(mask2former_dinov3, name).__name__ == name
        assert name in dir(mask2former_dinov3)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        importlib.import_module("mask2former_dinov3").Nothing  # noqa: B018 (the access is what is tested)


def test_tests__are_named_after_unit_and_behaviour() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                assert re.fullmatch(r"test_\w*[a-z0-9]__[a-z0-9]\w*", node.name), f"{path.name}: {node.name}"


def test_tests__mirror_the_rooms_and_share_helpers_in_support() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        assert (PACKAGE / path.relative_to(ROOT / "tests").parent).is_dir(), f"{path}: no room of this name"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.search(r"\b(test_\w+|conftest)\b", ast.unparse(node)), (
                    f"{path}: imports another test file"
                )


def test_train_config__options_are_counted_and_explained() -> None:
    assert sorted(TrainConfig.model_fields) == OPTIONS.split()
    for name, field in TrainConfig.model_fields.items():
        assert (field.description or "").endswith("."), name
        assert "|" not in (field.description or ""), name  # it stands in a Markdown table


def test_launch_scripts__differ_in_one_line_and_are_short() -> None:
    small, large = (path.read_text(encoding="utf-8").splitlines() for path in reversed(SCRIPTS))
    assert len(small) == len(large) <= 15
    assert sum(one != other for one, other in zip(small, large, strict=True)) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launch_scripts__use_their_own_recipe(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    name = f"mask2former-dinov3_{script.name.split('_')[2]}_1024_train_args.json"
    assert done.stderr.startswith(f"error: {ROOT / name}: dataset_name: expected the folder of your COCO data")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes__load_and_say_what_they_are(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected the folder of your COCO data set, got the placeholder \"path/to/"):
        load_config(recipe)
    config, notes = load_config(recipe, {"dataset_name": "data"})
    assert json.loads(recipe.read_text())["dataset_name"].startswith(PLACEHOLDER)
    assert notes == []
    assert (config.image_height, config.image_width) == (1024, 1024)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16
    assert config.backbone.startswith("facebook/dinov3-")
    assert len(config.description) > 100


@pytest.mark.parametrize(("swin", "dinov3"), [("small", "smallplus"), ("large", "large")])
def test_recipes__of_the_swins_differ_in_the_backbone_alone(swin: str, dinov3: str) -> None:
    one, other = (
        json.loads((ROOT / f"mask2former-{name}_1024_train_args.json").read_text())
        for name in (f"swin_{swin}", f"dinov3_{dinov3}")
    )
    config, notes = load_config(ROOT / f"mask2former-swin_{swin}_1024_train_args.json", {"dataset_name": "data"})
    assert notes == []
    assert (config.neck, config.backbone.split("-")[1]) == ("none", swin)
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differ == {"backbone", "neck", "backbone_norm", "output_dir", "description"}


def test_recipes__are_two_and_the_demos_loads_too() -> None:
    assert len(SCRIPTS) == len(RECIPES) == 2
    for name in ("train_args.json", "from_scratch_args.json"):
        config, _ = load_config(SAMPLE / name, {"dataset_name": "data", "output_dir": "out"})
        assert config.description
    assert config.backbone == "tiny"


def test_sample__is_small_and_attributed() -> None:
    files = [path for path in SAMPLE.rglob("*") if path.is_file() and path.parent.name != "model"]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert len(list((SAMPLE / "train").glob("*.png"))) == 40
    assert len(list((SAMPLE / "valid").glob("*.png"))) == 12
    assert "CC0" in (SAMPLE / "ATTRIBUTION.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("split", "digest"), [("train", "8cf3db08c02719d3"), ("valid", "89564b23c4c7f0a6")])
def test_sample__annotations_and_pixels_are_those_of_the_source(split: str, digest: str) -> None:
    assert digest_of(SAMPLE / split, None) == digest


def digest_of(folder: Path, names: set[str] | None) -> str:
    """A hash over records, annotations and RGB pixels of the images named; the same for sample and source."""
    coco: dict[str, Any] = json.loads((folder / "_annotations.coco.json").read_text(encoding="utf-8"))
    images = [image for image in coco["images"] if names is None or image["file_name"] in names]
    ids = {str(image["id"]) for image in images}
    annotations = [one for one in coco["annotations"] if str(one["image_id"]) in ids]
    found = hashlib.sha256(json.dumps([coco["categories"], images, annotations], sort_keys=True).encode())
    for image in images:
        found.update(np.asarray(Image.open(folder / image["file_name"]).convert("RGB")).tobytes())
    return found.hexdigest()[:16]


def test_files__none_is_above_500_kb() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / line for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    files += [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    large = [path for path in files if path.is_file() and path.stat().st_size > 500_000]
    assert not [path for path in large if SAMPLE not in path.parents]  # the sample has a limit of its own


def test_version__is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == mask2former_dinov3.__version__
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == mask2former_dinov3.__version__


def test_constraints__pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    extras = project["optional-dependencies"]
    tested = ("dev", "datasets", "export", "large", "peft", "ray", "serve")
    for wanted in [*project["dependencies"], *(line for extra in tested for line in extras[extra])]:
        assert re.split(r"[>=\[]", wanted)[0].lower() in pinned | {"mask2former-dinov3"}, wanted
    assert set(extras) == {*tested, "openvino", "pandas", "supervision", "trackers"}
    assert f"mask2former-dinov3[{','.join(tested[1:])}]" in extras["dev"]  # what the tests use


def files_of(room: Path) -> set[str]:
    """The modules and sub-packages of a room."""
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in room.glob("*/__init__.py")}


@pytest.mark.parametrize("room", sorted(path.parent for path in PACKAGE.rglob("*/__init__.py")), ids=lambda x: x.name)
def test_rooms__say_what_they_are_for_and_list_their_files(room: Path) -> None:
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    purpose, heading, listed = text.partition("Read in this order:")
    assert heading, room.name
    assert purpose.count(".") >= 3, room.name  # what it is for, what comes in, what goes out
    names = [line.split()[0] for line in listed.splitlines() if re.match(r"    \w", line)]
    assert len(names) == len(set(names)), room.name
    assert set(names) == files_of(room), room.name


def test_documents__links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), SAMPLE / "ATTRIBUTION.md"]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"
