"""Find the annotation files and image folders of a data set: in one of the common layouts, or given by options.

| layout | annotations | images |
|---|---|---|
| Roboflow | DIR/{train,valid,val,test}/_annotations.coco.json | beside them |
| COCO | DIR/annotations/instances_{train,val,test}*.json | DIR/{train,val,test}*/ or DIR/images/{train,val,test}*/ |
| CVAT | DIR/annotations/instances_default.json | DIR/images/default/ |
| Label Studio | DIR/result.json | DIR/images/ |
| FiftyOne | DIR/labels.json, or DIR/{train,valid,val,test}/labels.json | data/ beside it |
| labelme2coco | DIR/{train,val}.json, or DIR/dataset.json | DIR/, DIR/images/ or DIR/{train,val}/ |
| one file | DIR/_annotations.coco.json, the only COCO file in DIR, or the file itself | beside it, images/, data/ |

A zip file of any of these is unpacked (`zip_files`).

Folders of other formats are found by their readers (`formats/`), and divided in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import DatasetError, OptionError, mismatch
from .coco_json import list_image_entries
from .faults import FaultReport, count_of
from .formats.format_table import ambiguity, expected_files, find_formats, find_named, format_of, read_content
from .formats.source_content import Part, Reading
from .image_folders import is_hidden
from .locate import locate_images
from .numbers import identifier
from .read_rules import ReadRules
from .siblings import choose_groups, describe_groups, join_equal_files, sibling_keys
from .zip_files import is_zip, unpack

SPLIT_NAMES = ("train", "valid", "test")
_FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}
_ROBOFLOW_FILE, _FIFTYONE_FILE = "_annotations.coco.json", "labels.json"
_LONGEST_HEAD = 2**16  # bytes of a JSON file in which the keys of COCO are looked for


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set: its name (train, valid or test), its annotation file, the folder of its images.

    image_ids: the images of the file that belong to this part; None means all of them. only_images: the user named the
    folder of the images, so files elsewhere are never taken. rules: how the annotations are read. format: of the
    annotations, see `formats.format_table`. subset: the part of a file that holds several (a key of data.yaml).
    classes: which classes are renamed, merged and left out, see `formats.class_map`. reading: what was read already, of
    another format.
    """

    name: str
    annotations: Path
    images: Path
    image_ids: frozenset[int] | None = None
    only_images: bool = False
    rules: ReadRules = field(default_factory=ReadRules)
    format: str = "coco"
    subset: str = ""
    classes: Mapping[str, str | None] | None = None
    reading: Reading | None = field(default=None, compare=False, repr=False)


def name_of_data(annotations: Path, subset: str = "") -> str:
    """A short name of the data in an annotation file, the same for training and evaluation: "nuclei/valid".

    The last two folders, or, where the file has a name of its own, the folder of the data set and that name
    ("fruits/instances_val"). Cards of models are public, so they show no more of a path. subset: see `Split`.
    """
    path = annotations.absolute() if annotations.exists() else annotations
    if not path.suffix:
        parts = path.parts
    elif path.name in (_ROBOFLOW_FILE, _FIFTYONE_FILE):
        parts = path.parts[:-1]
    else:
        folders = [one for one in path.parts[:-1] if one != "annotations"]
        parts = (*folders, path.stem)
    shown = [one for one in parts if one != path.anchor][-2:]
    return "/".join([*shown, *([subset] if subset else [])]) or path.name


def find_splits(
    dataset: Path | str | None,
    *,
    train_annotations: Path | str | None = None,
    train_images: Path | str | None = None,
    valid_annotations: Path | str | None = None,
    valid_images: Path | str | None = None,
    test_annotations: Path | str | None = None,
    test_images: Path | str | None = None,
    valid_split: float = 0.1,
    rules: ReadRules | None = None,
    dataset_format: str = "auto",
    classes: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, Split], list[str]]:
    """The splits of a data set by name (some of train, valid, test), and notes on what was decided, to be logged.

    A path given by option replaces what the folder `dataset` holds for that split; paths that do not exist under the
    current folder are looked for under `dataset`. Without validation annotations, a fraction `valid_split` of the
    training images is held out (0: none), the same images in every run and on every machine; images of one picture
    (`siblings`) stay on one side. rules: for all splits. dataset_format: a name of `FORMAT_NAMES`; auto: what lies in
    the folder. classes: see `Split`.
    Raises DatasetError if nothing is found or more than one file fits; OptionError for a path that does not exist, and
    for options that do not fit together.
    """
    if not 0 <= valid_split < 1:
        raise OptionError("valid_split", "a fraction of the images from 0 to below 1", valid_split)
    root = None if dataset is None else Path(dataset)
    unpacked = []
    if root is not None and is_zip(root):
        folder = unpack(root)
        unpacked.append(f"{root} is unpacked in {folder}")
        root = folder
    given = {
        "train": (train_annotations, train_images),
        "valid": (valid_annotations, valid_images),
        "test": (test_annotations, test_images),
    }
    explicit = any(file is not None for file, _ in given.values())
    if root is None and not explicit:
        raise OptionError(
            "dataset_name", "the folder of a data set", "nothing", "set it, or --train-annotations and --train-images"
        )
    splits = {} if root is None else _find_layout(root, dataset_format, required=not explicit)
    for name, (file, images) in given.items():
        if file is not None:
            splits[name] = _split_of_options(name, file, images, root, dataset_format)
        elif images is not None:
            if name not in splits:
                raise OptionError(f"{name}_images", f"--{name}-annotations beside it", "none")
            splits[name] = _with_images(splits[name], _find_path(images, root, f"{name}_images", folder=True))
    rules = ReadRules() if rules is None else rules
    splits = {name: replace(split, rules=rules, classes=classes) for name, split in splits.items()}
    splits, notes = _hold_out_valid(splits, valid_split)
    return splits, unpacked + notes


def _split_of_options(
    name: str, annotations: Path | str, images: Path | str | None, root: Path | None, dataset_format: str
) -> Split:
    """The split that the options name; without the option for images, they lie beside the annotations."""
    file = _find_path(annotations, root, f"{name}_annotations", folder=dataset_format not in ("auto", "coco") and None)
    folder = None if images is None else _find_path(images, root, f"{name}_images", folder=True)
    found = _find_other_formats(file, dataset_format, folder)
    if not found:
        return Split(name, file, folder or _images_beside(file), only_images=folder is not None)
    split = found.get(name) or next(iter(found.values()))
    return replace(split, name=name) if folder is None else _with_images(replace(split, name=name), folder)


def _with_images(split: Split, folder: Path) -> Split:
    """The split with its images in another folder. Raises OptionError where the format itself says where they are."""
    if split.format != "coco" and not format_of(split.format).other_images:
        expected = f"nothing: {split.annotations} says where the images are ({split.format})"
        raise OptionError(f"{split.name}_images", expected, str(folder))
    return replace(split, images=folder, only_images=True)


def _find_path(path: Path | str, root: Path | None, option: str, *, folder: bool | None) -> Path:
    """The path itself or the one under `root`, whichever exists as a file or folder; folder None: as either."""
    candidates = [Path(path)] if root is None else [Path(path), root / path]
    for candidate in candidates:
        if candidate.exists() if folder is None else candidate.is_dir() if folder else candidate.is_file():
            return candidate
    kind = "file or folder" if folder is None else "folder" if folder else "file"
    raise missing_path(option, candidates, kind)


def missing_path(option: str, candidates: Sequence[Path], kind: str) -> OptionError:
    """The error for an option that names a file or folder, its `kind`, which is at none of the candidates."""
    other = "file" if kind == "folder" else "folder"
    is_other = any(candidate.exists() for candidate in candidates)
    got = f"{' and '.join(map(str, candidates))}: " + (f"a {other}" if is_other else f"no such {kind}")
    return OptionError(option, f"a {kind} that exists", got)


def _find_layout(root: Path, dataset_format: str, *, required: bool) -> dict[str, Split]:
    """The splits that a folder (or a single file) holds: in another format, or by the layouts at the top."""
    others = _find_other_formats(root, dataset_format)
    if others:
        return others
    if root.is_file():
        return {"train": Split("train", root, _images_beside(root))}
    if not root.is_dir():
        advice = "a data set on the Hugging Face hub needs --format datasets" * (len(root.parts) == 2)
        expected = "the folder of a data set, or a JSON file"
        raise DatasetError(f"{root}: {mismatch(expected, 'no such file or folder', advice)}")
    splits = _find_coco_layout(root)
    if not splits and required:
        inside = ", ".join(sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())[:12]) or "nothing"
        expected = (
            f"one of {{train,valid,val,test}}/{_ROBOFLOW_FILE}, "
            f"annotations/instances_{{train,val,test,default}}*.json, {{train,val}}.json, result.json, labels.json, "
            f"dataset.json and {_ROBOFLOW_FILE}, one COCO file, or files of another format ({expected_files()})"
        )
        advice = "name the files with --train-annotations, --train-images, --valid-annotations and --valid-images"
        raise DatasetError(f"{root}: {mismatch(expected, inside, advice)}")
    return splits


def _find_other_formats(root: Path, dataset_format: str, images: Path | None = None) -> dict[str, Split]:
    """The splits in a format that is not COCO's; none where the option, or the files, say COCO.

    Raises DatasetError where several formats fit, or nothing of the format that the option names is there.
    """
    if dataset_format == "coco":
        return {}
    if dataset_format == "auto":
        found = find_formats(root)
        coco = root.is_dir() and bool(found) and bool(_find_coco_layout(root))
        names = ["coco"] * coco + list(found)
        if len(names) > 1:
            raise DatasetError(ambiguity(root, names))
        if not found:
            return {}
        dataset_format, parts = next(iter(found.items()))
    else:
        parts = find_named(dataset_format, root, images)
        if not parts:
            raise DatasetError(f"{root}: {mismatch(format_of(dataset_format).files, 'no such files')}")
    return {name: _split_of_part(name, dataset_format, part) for name, part in parts.items()}


def _split_of_part(name: str, dataset_format: str, part: Part) -> Split:
    return Split(name, part.annotations, part.images, format=dataset_format, subset=part.subset)


def _find_coco_layout(root: Path) -> dict[str, Split]:
    """The splits of COCO files in one of the common layouts."""
    return _find_in_folders(root) or _find_coco(root) or _find_by_name(root) or _find_single_file(root)


def _find_in_folders(root: Path) -> dict[str, Split]:
    """Roboflow's and FiftyOne's files in a folder for each split."""
    splits: dict[str, Split] = {}
    for name, folders in _FOLDERS.items():
        places = [root / folder / file for folder in folders for file in (_ROBOFLOW_FILE, _FIFTYONE_FILE)]
        found = [file for file in places if file.is_file()]
        if len(found) > 1:
            raise _ambiguity_error(root, name, found)
        if found:
            beside = found[0].parent if found[0].name == _ROBOFLOW_FILE else _images_beside(found[0])
            splits[name] = Split(name, found[0], beside)
    return splits


def _find_by_name(root: Path) -> dict[str, Split]:
    """Files that are called after their split: labelme2coco's train.json and val.json."""
    splits: dict[str, Split] = {}
    for name, words in _FOLDERS.items():
        found = [file for word in words if (file := root / f"{word}.json").is_file() and _is_coco(file)]
        if len(found) > 1:
            raise _ambiguity_error(root, name, found)
        if found:
            splits[name] = Split(name, found[0], _find_coco_images(root, found[0].stem, words))
    return splits


def _find_coco(root: Path) -> dict[str, Split]:
    """COCO's and CVAT's annotations/instances_<subset>.json; a subset `default` alone is a file without a split."""
    found = sorted((root / "annotations").glob("instances_*.json"))
    files = {path.stem.removeprefix("instances_"): path for path in found}
    splits: dict[str, Split] = {}
    for name, folders in _FOLDERS.items():
        subsets = [subset for subset in files if subset.lower().startswith(folders)]
        if len(subsets) > 1:
            raise _ambiguity_error(root, name, [files[subset] for subset in subsets])
        if subsets:
            splits[name] = Split(name, files[subsets[0]], _find_coco_images(root, subsets[0], folders))
    if not splits and len(files) == 1:
        subset, path = next(iter(files.items()))
        splits["train"] = Split("train", path, _find_coco_images(root, subset, (subset.lower(),)))
    return splits


def _find_coco_images(root: Path, subset: str, starts: tuple[str, ...]) -> Path:
    """The image folder of a subset: the one of its name, else the only one whose name begins with one of `starts`."""
    parents = [parent for parent in (root, root / "images") if parent.is_dir()]
    for parent in parents:
        if (parent / subset).is_dir():
            return parent / subset
    for parent in parents:
        found = [entry for entry in parent.iterdir() if entry.is_dir() and entry.name.lower().startswith(starts)]
        if len(found) == 1:
            return found[0]
    return parents[-1]  # DIR/images, else DIR: file names may carry the folder


def _find_single_file(root: Path) -> dict[str, Split]:
    """A file without a split: of Label Studio, Roboflow, FiftyOne, labelme2coco; else the only COCO file."""
    names = ("result.json", _ROBOFLOW_FILE, _FIFTYONE_FILE, "dataset.json")
    found = [file for name in names if (file := root / name).is_file()]
    if not found:
        found = [file for file in sorted(root.glob("*.json")) if not is_hidden(file.name) and _is_coco(file)]
        if len(found) > 1:
            raise _ambiguity_error(root, "train", found)
    return {"train": Split("train", found[0], _images_beside(found[0]))} if found else {}


def _is_coco(file: Path) -> bool:
    """Whether a JSON file begins or ends as a COCO annotation file does: with lists under two of its keys."""
    if not file.is_file():  # a link to nowhere
        return False
    with file.open("rb") as opened:
        head = opened.read(_LONGEST_HEAD)
        opened.seek(max(0, file.stat().st_size - _LONGEST_HEAD))
        text = head + opened.read()
    return len(set(re.findall(rb'"(images|annotations|categories)"\s*:\s*\[', text))) > 1


def _images_beside(file: Path) -> Path:
    """DIR/images or DIR/data where there is one, else the folder of the annotation file."""
    folders = (file.parent / "images", file.parent / "data")
    return next((folder for folder in folders if folder.is_dir()), file.parent)


def _ambiguity_error(root: Path, name: str, paths: list[Path]) -> DatasetError:
    found = ", ".join(str(path.relative_to(root)) for path in paths)
    return DatasetError(
        f"{root}: {mismatch(f'one annotation file for {name}', found, f'choose with --{name}-annotations')}"
    )


def _hold_out_valid(splits: dict[str, Split], valid_split: float) -> tuple[dict[str, Split], list[str]]:
    """Hold a validation split out of the training images, unless there is one or valid_split is 0."""
    ordered = {name: splits[name] for name in SPLIT_NAMES if name in splits}
    if "train" not in ordered:
        return ordered, ["there is no train split: training is not possible"]
    if "valid" in ordered:
        return ordered, []
    train = ordered["train"]
    if valid_split == 0:
        return ordered, ["there is no valid split and valid_split is 0: training runs without evaluation"]
    train, names = _file_names(train)
    if len(names) < 2:
        count = count_of(len(names), "image")
        return ordered, [f"no valid split, and {count} cannot be divided: training runs without evaluation"]
    number = min(max(round(valid_split * len(names)), 1), len(names) - 1)
    files = list(names.values())
    paths, _ = locate_images(names, train, FaultReport(str(train.annotations)))
    joined = join_equal_files(sibling_keys(files), list(paths.values()))
    keys = dict(zip(names, joined, strict=True))
    valid_ids = choose_groups(keys, number)
    together = describe_groups(names, keys)
    if not valid_ids:  # all images are siblings
        valid_ids = choose_groups({image_id: f"{name}\n{image_id}" for image_id, name in names.items()}, number)
        together = f"; all of them come from one picture by their names or content ({files[0]}): expect too high scores"
    train_ids = frozenset(names) - valid_ids
    chosen = f"{len(valid_ids)} of its {len(names)} images, chosen by a hash of the file name"
    note = (
        f"{train.annotations} has no validation split: {chosen}, are held out as valid (valid_split={valid_split:g})"
        f"{together}"
    )
    held_out = {
        "train": replace(train, image_ids=train_ids),
        "valid": replace(train, name="valid", image_ids=valid_ids),
    }
    return held_out | {name: split for name, split in ordered.items() if name == "test"}, [note]


def _file_names(split: Split) -> tuple[Split, dict[int, str]]:
    """The split, with what was read of it, and image id -> file name of the images that have both.

    `parse_coco` reports the others.
    """
    if split.format == "coco":
        images = list_image_entries(split.annotations)
    else:
        report = FaultReport(str(split.annotations))
        content = read_content(replace(split, classes=None), report)
        split = replace(split, reading=Reading(content, tuple(report.faults), report.places))
        found = content.get("images")
        images = found if isinstance(found, list) else []
    names: dict[int, str] = {}
    for image in images:
        if isinstance(image, dict):
            image_id = identifier(image.get("id"))
            if image_id is not None and isinstance(image.get("file_name"), str):
                names[image_id] = image["file_name"]
    return split, names
