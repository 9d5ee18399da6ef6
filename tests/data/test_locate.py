"""Image files are found where the user and the annotations say, and never replaced by others of a similar name."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mask2former_dinov3.cli.verbs import main
from mask2former_dinov3.data.coco import CocoData, parse_coco
from mask2former_dinov3.data.faults import Fault
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.evaluation.evaluate import evaluate_model

NFC = unicodedata.normalize("NFC", "café.png")
NFD = unicodedata.normalize("NFD", "café.png")


def write(path: Path, names: Sequence[str]) -> Path:
    """An annotation file of images with these names, one object each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": name, "height": 8, "width": 8} for n, name in enumerate(names, start=1)]
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "segmentation": square} for n in range(1, len(names) + 1)]
    categories = [{"id": 1, "name": "cell"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def locate(root: Path, names: Sequence[str], files: Sequence[str], **kwargs: Any) -> tuple[CocoData, list[Fault]]:
    """The records of `names`, with `files` below root/data; the images are in root/data/images."""
    for file in files:
        (root / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / file).touch()
    (root / "data" / "images").mkdir(parents=True, exist_ok=True)
    return parse_coco(Split("train", write(root / "data" / "a.json", names), root / "data" / "images", **kwargs))


def found(data: CocoData) -> list[str]:
    """Where the images are, below the folder of the annotations; "-" for a file that does not exist."""
    root = data.annotations.parent
    return [os.path.relpath(one.path, root) if one.path.is_file() else "-" for one in data.images]


@pytest.mark.parametrize(
    ("name", "file", "only", "expected"),
    [
        ("a.png", "images/a.png", True, "images/a.png"),
        ("sub/a.png", "images/sub/a.png", True, "images/sub/a.png"),
        ("sub\\a.png", "images/sub/a.png", True, "images/sub/a.png"),
        ("sub\\a.png", "images/sub\\a.png", True, "-"),  # a file of the whole name is none of a folder
        ("./a.png", "images/a.png", True, "images/a.png"),
        ("images/a.png", "images/a.png", True, "images/a.png"),  # the name below the folder above
        ("a.png", "a.png", False, "a.png"),  # beside the annotations
        ("a.png", "a.png", True, "-"),
        ("other/a.png", "other/a.png", False, "other/a.png"),
        ("other/a.png", "other/a.png", True, "-"),
        ("../other/a.png", "other/a.png", True, "-"),
        ("images/../a.png", "a.png", True, "-"),
    ],
)
def test_locate_images__a_named_folder_is_the_only_one(
    name: str, file: str, only: bool, expected: str, tmp_path: Path
) -> None:
    data, faults = locate(tmp_path, [name], [file], only_images=only)
    if only and name.startswith("../"):
        assert len(data.images) == 0
        assert "expected an image file below" in faults[0].reason
        return
    assert found(data) == [expected]
    outside = not expected.startswith(("images/", "-"))
    assert [fault.kind for fault in faults] == ["file outside the image folder"] * outside
    if outside:
        path = tmp_path / "data" / file
        assert faults[0].reason.endswith(f"found elsewhere: {path}")


def test_locate_images__a_bare_name_is_not_looked_for_above_the_image_folder(tmp_path: Path) -> None:
    """There it is another picture, perhaps of another split."""
    (tmp_path / "a.png").touch()
    (tmp_path / "train").mkdir()
    data, faults = parse_coco(Split("train", write(tmp_path / "train" / "a.json", ["a.png"]), tmp_path / "train"))
    assert data.images[0].path == tmp_path / "train" / "a.png"
    assert faults == []


def test_locate_images__absolute_names(tmp_path: Path) -> None:
    """An absolute path is taken if it exists; where the user named a folder, only below it."""
    outside, inside = str(tmp_path / "data" / "x" / "a.png"), str(tmp_path / "data" / "images" / "b.png")
    data, faults = locate(tmp_path, [outside, inside], ["x/a.png", "images/b.png"])
    assert (found(data), faults) == (["x/a.png", "images/b.png"], [])
    data, faults = locate(tmp_path, [outside, inside], [], only_images=True)
    assert found(data) == ["images/b.png"]
    images = tmp_path / "data" / "images"
    assert [str(fault) for fault in faults] == [
        f"image 1: {outside}: expected an image file below {images}, got a path outside it, and no file of its name"
    ]
    data, faults = locate(tmp_path, [outside, inside], ["images/a.png"], only_images=True)
    assert found(data) == ["images/a.png", "images/b.png"]
    assert [(fault.severity, fault.kind, fault.image_id) for fault in faults] == [
        ("note", "file found by the end of its name", 1)
    ]


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize(
    "foreign",
    [
        "/home/someone/export/a.png",
        "C:\\Users\\someone\\a.png",
        "../../media/upload/1/a.png",
        "https://example.org/files/a.png",
        "file:///srv/a.png",
        "~/a.png",
    ],
)
def test_locate_images__names_of_other_machines_are_found_by_their_end_and_counted(
    foreign: str, only: bool, tmp_path: Path
) -> None:
    data, faults = locate(tmp_path, [foreign, "b.png"], ["images/a.png", "images/b.png"], only_images=only)
    assert found(data) == ["images/a.png", "images/b.png"]
    (note,) = faults
    assert (note.severity, note.image_id) == ("note", 1)
    images = tmp_path / "data" / "images"
    assert note.reason == (
        f"1 image file not where the name says, found in {images} by the end of it: {foreign} is {images / 'a.png'}"
    )


def test_locate_images__the_longest_end_of_a_name_counts(tmp_path: Path) -> None:
    names = ["/x/day1/0001.png", "/x/day2/0001.png", "D:\\y\\day3\\0001.png"]
    files = [f"images/day{day}/0001.png" for day in (1, 2, 3)]
    data, faults = locate(tmp_path, names, files)
    assert found(data) == files
    assert [(fault.severity, len(fault.places)) for fault in faults] == [("note", 3)]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["C:\\data\\day1\\0001.png", "C:\\data\\day2\\0001.png"], ["0001.png"]),
        (["/data/day1/0001.png", "/data/day2/0001.png", "/data/day3/0001.png"], ["0001.png"]),
        (["0001.png", "/data/day2/0001.png"], ["0001.png"]),
        (["day1/0001.png", "/data/day2/0001.png"], ["0001.png", "day1/0001.png"]),
        (["/data/day2/0001.png"], ["0001.png", "day1/0001.png"]),
        (["/data/day2/caf%C3%A9.png", f"/data/day1/{NFD}"], [NFC]),
    ],
)
def test_locate_images__a_file_that_may_be_anothers_is_not_taken(
    names: list[str], files: list[str], tmp_path: Path
) -> None:
    data, faults = locate(tmp_path, names, [f"images/{file}" for file in files])
    errors = [fault for fault in faults if fault.severity == "error"]
    (error,) = errors
    wrong = [number for number, name in enumerate(names, start=1) if name.startswith(("/", "C:"))]
    assert [image_id for image_id, _ in error.places] == wrong
    assert error.kind == "image file not found"
    assert "no such file; " in error.reason
    assert "is not taken instead" in error.reason
    assert [image.id for image in data.images] == [n for n in range(1, len(names) + 1) if n not in wrong]
    assert all(path.is_file() for path in data.elsewhere)


@pytest.mark.parametrize("names", [["day1/0001.png", "day2/0001.png"], ["day1/0001.png", "/x/0001.png"]])
def test_locate_images__one_file_never_stands_for_two_names(names: list[str], tmp_path: Path) -> None:
    """Also where no image of the file is found under its own name."""
    data, faults = locate(tmp_path, names, ["images/0001.png"])
    assert len(data.images) == 0
    assert [(fault.severity, fault.places) for fault in faults] == [("error", [(1, None), (2, None)])]


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("missing", ["day2/0001.png", "day2\\0001.png", "deep/er/0001.png"])
def test_locate_images__a_missing_file_is_not_replaced_by_one_of_its_bare_name(
    missing: str, only: bool, tmp_path: Path
) -> None:
    data, faults = locate(tmp_path, ["a.png", missing], ["images/a.png", "images/0001.png"], only_images=only)
    assert found(data) == ["images/a.png", "-"]
    assert data.images[1].path == tmp_path / "data" / "images" / missing.replace("\\", "/")
    assert faults == []  # the check of the image files reports it


def test_locate_images__folders_that_are_nowhere_are_a_warning(tmp_path: Path) -> None:
    """All names of a file begin with a folder of the tool's own; each fits one file."""
    data, faults = locate(tmp_path, ["batch/a.png", "batch/b.png"], ["images/a.png", "images/b.png"])
    assert found(data) == ["images/a.png", "images/b.png"]
    assert [(fault.severity, len(fault.places)) for fault in faults] == [("warning", 2)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("a%20b.png", "a b.png"),
        ("a b.png", "a%20b.png"),
        ("caf%C3%A9.png", NFD),
        ("caf%c3%a9.png", NFC),
        (f"{NFC[:4]}/a.png", f"{NFD[:-4]}/a.png"),
        ("my%20folder/1.png", "my folder/1.png"),
    ],
)
@pytest.mark.parametrize("only", [False, True])
def test_locate_images__other_spellings_are_found_and_counted(name: str, file: str, only: bool, tmp_path: Path) -> None:
    data, faults = locate(tmp_path, [name, "z.png"], [f"images/{file}", "images/z.png"], only_images=only)
    assert [Path(path).as_posix() for path in found(data)] == [f"images/{file}", "images/z.png"]
    (note,) = faults
    assert (note.severity, note.kind, note.image_id) == ("note", "file name spelled otherwise", 1)
    assert note.reason.isascii()  # two forms look the same
    assert note.reason.startswith("1 image file found under another spelling of the name (Unicode form or %20): ")


def test_locate_images__an_exact_name_goes_before_other_spellings(tmp_path: Path) -> None:
    names = [NFC, NFD, "a%20b.png", "a b.png"]
    data, faults = locate(tmp_path, names, [f"images/{name}" for name in names])
    assert found(data) == [f"images/{name}" for name in names]
    assert faults == []


def test_locate_images__a_spelling_of_two_files_is_not_guessed(tmp_path: Path) -> None:
    data, _ = locate(tmp_path, ["caf%C3%A9.png", "z.png"], [f"images/{NFC}", f"images/{NFD}", "images/z.png"])
    assert found(data) == ["-", "images/z.png"]


@pytest.mark.parametrize(
    ("names", "link"),
    [
        (["a.png", "a.png"], None),
        (["a.png", "./a.png"], None),
        (["a.png", "images/a.png"], None),
        (["sub/a.png", "sub\\a.png"], None),
        (["sub/a.png", "sub/../sub/a.png"], None),
        ([NFC, NFD], None),
        (["a.png", "b.png"], "images/b.png"),
        (["a.png", "linked/a.png"], "images/linked"),
        (["missing.png", "./missing.png"], None),
    ],
)
def test_locate_images__two_entries_of_one_file_are_a_warning(
    names: list[str], link: str | None, tmp_path: Path
) -> None:
    files = ["images/a.png", "images/sub/a.png", f"images/{NFC}"]
    locate(tmp_path, [], files)
    if link is not None:
        target = "a.png" if link.endswith(".png") else "."
        (tmp_path / "data" / link).symlink_to(target)
    data, faults = locate(tmp_path, names, files)
    assert [image.id for image in data.images] == [1, 2]
    (warning,) = [fault for fault in faults if fault.kind == "one file for several images"]
    assert (warning.severity, warning.image_id) == ("warning", 2)
    assert warning.reason == f"{names[1]}: the same file as image 1; check whether its instances are split"


def test_locate_images__links_that_lead_nowhere_and_folders_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "folder.png").mkdir(parents=True)
    (tmp_path / "data" / "images" / "gone.png").symlink_to("nothing")
    data, _ = locate(tmp_path, ["folder.png", "gone.png", "sub/", "a\0.png"], [])
    assert found(data) == ["-"] * 4


def test_locate_images__asks_for_folders_not_for_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """118,287 images must not cost a call of the system each."""
    names = [f"sub{number % 3}/{number}.png" for number in range(600)]
    file = write(tmp_path / "a.json", names)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    calls: list[str] = []
    for owner, name in ((os, "scandir"), (os.path, "isfile"), (os.path, "realpath"), (os, "stat"), (os, "lstat")):
        original = getattr(owner, name)

        def counted(*args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    data, faults = parse_coco(Split("train", file, tmp_path))
    monkeypatch.undo()
    assert len(calls) < 60
    assert calls.count("scandir") == 3
    assert faults == []
    assert [image.path for image in data.images] == [tmp_path / name for name in names]


def pictures(folder: Path, count: int) -> Path:
    file = write(folder / "_annotations.coco.json", [f"{number}.png" for number in range(count)])
    for number in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return file


def test_check_data__reads_only_the_folder_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the complete pictures beside the annotations, as the folder `enhanced` lacks one."""
    file = pictures(tmp_path / "data", 3)
    (tmp_path / "enhanced").mkdir()
    for number in (0, 1):
        Image.new("RGB", (8, 8)).save(tmp_path / "enhanced" / f"{number}.png")
    words = ["check-data", "--train-annotations", str(file), "--valid-split", "0", "--train-images"]
    assert main([*words, str(tmp_path / "enhanced")]) == 1
    assert (
        f"image 3: {tmp_path / 'enhanced' / '2.png'}: expected an image file, got no such file"
        in capsys.readouterr().out
    )
    assert main([*words, str(tmp_path / "nowhere")]) == 1
    expected = f"error: --train-images: expected a folder that exists, got {tmp_path / 'nowhere'}: no such folder\n"
    assert capsys.readouterr().err == expected
    assert main([*words, str(file)]) == 1
    assert capsys.readouterr().err.endswith(f"{file}: a file\n")
    assert main([*words[:-1]]) == 0


def test_evaluate_model__reads_only_the_folder_that_is_named(model_folder: Path, tmp_path: Path) -> None:
    file = pictures(tmp_path / "data", 2)
    (tmp_path / "enhanced").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "enhanced" / "0.png")
    with pytest.raises(OptionError, match=r"^images: expected a folder that exists, got .*nowhere: no such folder$"):
        evaluate_model("no-model", file, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match=r"image 2: .*enhanced/1\.png: expected an image file, got no such file"):
        evaluate_model(model_folder, file, tmp_path / "enhanced", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
