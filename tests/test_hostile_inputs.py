"""Files made to do harm: each is named with a clear reason, the others are done, and nothing is written elsewhere.

What decodes files runs in a process of its own, whose memory is measured.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.atomic_files import write_text
from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.evaluation.evaluate import evaluate_model
from mask2former_dinov3.inference.files.find_images import escape_unprintable, find_images
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.files.writers import place
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings

pytest.importorskip("rasterio")

ALL = InferenceSettings(threshold=0.0)  # random weights are not sure of anything

RGB = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)

# Opens every file as `predict --tile` does; says what came of it and how much memory it took.
READ = """
import json, sys
from pathlib import Path
import numpy, PIL.Image, rasterio
from mask2former_dinov3.inference.tiles.grid import Region
from mask2former_dinov3.inference.tiles.image_reader import open_image
from mask2former_dinov3.errors import DatasetError

def high_water():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024

from mask2former_dinov3.inference.tiles import image_reader
image_reader.WHOLE_PIXELS = int(sys.argv.pop(1))
before = high_water()
said = {}
for name in sys.argv[1:]:
    try:
        with open_image(Path(name)) as image:
            image.read(Region(0, 0, min(64, image.height), min(64, image.width)))
            image.read(Region(max(image.height - 64, 0), 0, image.height, min(64, image.width)))
            said[name] = "read"
    except DatasetError as error:
        said[name] = str(error)
print(json.dumps([high_water() - before, said]))
"""


def png(width: int, height: int, lines: bytes, kind: int = 2) -> bytes:
    """A PNG that declares this size; lines: what is deflated into it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, tile: int = 0, pages: int = 1, loop: bool = False) -> bytes:
    """A grey TIFF that declares this size: one strip, or one tile of `tile` pixels, that is not there."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    for page in range(pages):
        entries = [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (277, 3, 1, 1),
        ]
        if tile:
            entries += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, 100)]
        else:
            entries += [(273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 100)]
        directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        last = page == pages - 1
        following = 8 if last and loop else 0 if last else len(data) + len(directory) + 4
        data.extend(directory + struct.pack("<I", following))
    return bytes(data)


def saved(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(RGB).save(path, **options)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])

    return write


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    return None


BOMB = r"refused as a possible bomb|may be a decompression bomb"
OTHER = "got another kind of file"
CUT = "damaged or cut short"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "declared.png": (content(png(100_000, 100_000, b"\0" * 1000)), BOMB),
    "swollen.png": (content(png(30_000, 30_000, b"\0" * 90_000_000)), BOMB),
    "huge.tif": (content(tiff(100_000, 100_000)), BOMB),
    "absurd.tif": (content(tiff(2**31 - 1, 2**31 - 1, tile=16)), f"{BOMB}|{CUT}"),
    "one_pixel_tiles.tif": (content(tiff(60_000, 60_000, tile=1)), f"{BOMB}|{CUT}"),
    "zero.tif": (content(tiff(0, 0)), CUT),
    "zero.png": (content(png(0, 0, b"")), f"{CUT}|{OTHER}"),
    "empty.png": (content(b""), "got an empty file"),
    "text.jpg": (content(b"no image at all"), OTHER),
    "cut.png": (saved(), CUT),
    "cut.jpg": (saved(quality=95), CUT),
    "cut.tif": (saved(compression="tiff_lzw"), CUT),
    "cut.jp2": (saved(), CUT),
    "cut.webp": (saved(lossless=True), CUT),
    "cut.bmp": (saved(), CUT),
    "cut.gif": (saved(), CUT),
}


def test_open_image__refuses_files_made_to_do_harm_within_memory(tmp_path: Path) -> None:
    for name, (write, _) in HOSTILE.items():
        write(tmp_path / name)
    (tmp_path / "pages.tif").write_bytes(tiff(60, 80, pages=60_000))
    (tmp_path / "loop.tif").write_bytes(tiff(60, 80, pages=3, loop=True))
    (tmp_path / "vrt.tif").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"/>')
    for whole_pixels in (2**25, 100):  # small files read by Pillow, then in parts as large ones
        said, megabytes = read_all(sorted(tmp_path.iterdir()), whole_pixels)
        assert megabytes < 300
        for name, (_, reason) in HOSTILE.items():
            text = said[name]
            assert text.startswith(f"{tmp_path / name}: "), text
            assert re.search(reason, text), (name, text)
        assert OTHER in said["vrt.tif"]


def read_all(paths: list[Path], whole_pixels: int) -> tuple[dict[str, str], int]:
    """What READ says of each file by its name, and the memory it took, MB."""
    words = [sys.executable, "-c", READ, str(whole_pixels), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    megabytes, said = json.loads(done.stdout)
    return {Path(name).name: text for name, text in said.items()}, megabytes


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, "cpu")


def images_in(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(RGB).save(folder / name)
    return folder


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_predict__names_what_it_cannot_read_does_the_rest_and_exits_with_1(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_in(tmp_path / "in", "a.png", "b.png")
    for name in ("declared.png", "cut.jpg", "huge.tif"):
        HOSTILE[name][0](folder / name)
    words = [
        "predict",
        "--model",
        str(model_folder),
        str(folder),
        "--output",
        str(tmp_path / "out"),
        "--tile",
        "64",
    ]
    assert main([*words, "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "in 2 images" in said
    assert "3 failed:" in said
    for name in ("declared.png", "cut.jpg", "huge.tif"):
        assert f"  {folder / name}: " in said
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "b.png"]


def test_predict_files__follows_links_for_reading(predictor: Predictor, tmp_path: Path) -> None:
    outside = images_in(tmp_path / "outside", "c.png", "d.png")
    folder = images_in(tmp_path / "in", "a.png")
    (folder / "link.png").symlink_to(outside / "c.png")
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder").symlink_to(outside)  # what it leads to is not searched
    before = everything_in(outside)
    summary = predict_files(predictor, [folder], tmp_path / "out", settings=ALL)
    assert [path.name for path in summary.overlays] == ["a.png", "link.png"]
    assert everything_in(outside) == before
    alone = predict_files(predictor, [folder / "loop.png", folder / "a.png"], tmp_path / "again", settings=ALL)
    assert (alone.images, len(alone.failed)) == (1, 1)


@pytest.mark.parametrize(
    "link",
    ["overlays", "overlays/sub", "masks", "geojson", "yolo", "yolo/labels"],
    ids=lambda name: name.replace("/", "-"),
)
def test_predict_files__writes_nothing_where_a_link_in_the_output_leads(
    link: str, predictor: Predictor, tmp_path: Path
) -> None:
    folder = images_in(tmp_path / "in" / "sub", "a.png").parent
    images_in(folder, "b.png")
    outside = images_in(tmp_path / "outside", "kept.png")
    place_of_link = tmp_path / "out" / link
    place_of_link.parent.mkdir(parents=True)
    place_of_link.symlink_to(outside)
    before = everything_in(outside)
    save = ("overlays", "masks", "coco", "geojson", "yolo")
    if link == "yolo":  # its data.yaml is written first
        with pytest.raises(DatasetError, match="expected a place inside the output folder, got a link to"):
            predict_files(predictor, [folder], tmp_path / "out", settings=ALL, save=save)
    else:
        summary = predict_files(predictor, [folder], tmp_path / "out", settings=ALL, save=save)
        assert summary.failed
        assert all("expected a place inside the output folder, got a link to" in reason for _, reason in summary.failed)
        assert summary.images + len(summary.failed) == 2
    assert everything_in(outside) == before


def test_predict_files__replaces_links_in_place_of_its_files(predictor: Predictor, tmp_path: Path) -> None:
    folder = images_in(tmp_path / "in", "a.png")
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    names = ["predictions.json", "images.json", ".predict-progress.jsonl", ".probe", "overlays/a.png", "yolo/data.yaml"]
    names += [".predictions.json.writing", "..probe.writing", "geojson/.a.geojson.writing", "yolo/labels/a.txt"]
    for name in names:
        link = tmp_path / "out" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept)
    (tmp_path / "out" / "masks" / "a").mkdir(parents=True)
    os.link(kept, tmp_path / "out" / "geojson" / "a.geojson")
    summary = predict_files(
        predictor, [folder], tmp_path / "out", settings=ALL, save=("overlays", "masks", "coco", "geojson", "yolo")
    )
    assert summary.failed == []
    assert kept.read_text() == "kept"
    assert (tmp_path / "out" / "overlays" / "a.png").stat().st_size > 100


def test_predict_files__bears_names_of_any_kind(predictor: Predictor, tmp_path: Path) -> None:
    names = [
        "line\nbreak.png",
        "x" * 250 + ".png",
        "ä" * 120 + ".png",
        " .png",
        "-.png",
        "a;b|c.png",
        "..b.png",
        "[1].png",
    ]
    folder = images_in(tmp_path / "in", *names)
    for suffix in (".png", ".bmp", ".tif"):
        Image.fromarray(RGB).save(folder / f"same{suffix}")
    save = ("overlays", "masks", "coco", "geojson", "yolo")
    given = [folder, folder / "..b.png"]  # in a folder it is hidden
    summary = predict_files(predictor, given, tmp_path / "out", settings=InferenceSettings(threshold=1.0), save=save)
    assert summary.failed == []
    assert len(summary.without_detection) == len(names) + 3
    assert len({path.name for path in summary.overlays}) == len(names) + 3
    assert {"same.png", "same-2.png", "same-3.png"} <= {path.name for path in summary.overlays}
    assert all(path.is_file() and path.parent == tmp_path / "out" / "overlays" for path in summary.overlays)
    assert "line\\nbreak.png" in summary.text()
    assert len(summary.text().splitlines()) == 4 + len(names) + 3
    assert "passed over: 1 hidden file" in summary.text()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_find_images__refuses_names_that_cannot_be_and_takes_dots(tmp_path: Path) -> None:
    folder = images_in(tmp_path / "in" / "deep", "a.png")
    failed: list[tuple[str, str]] = []
    found = find_images(["zero\0byte.png", "y" * 5000, str(folder / ".." / "deep" / "a.png")], tmp_path / "out", failed)
    assert [one.name for one in found] == ["a.png"]
    assert [given for given, _ in failed] == ["zero\0byte.png", "y" * 5000]
    assert escape_unprintable("a\nb\x1b[31mc") == "a\\nb\\x1b[31mc"
    (up,) = find_images([str(folder / "..")], tmp_path / "out", failed)
    assert up.name == os.path.join("deep", "a.png")


def test_place__stays_below_the_output_folder(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    assert place(output, "overlays", "deep/a.png") == output / "overlays" / "deep" / "a.png"
    for name in ("../a.png", "deep/../../a.png", str(tmp_path / "a.png")):
        with pytest.raises(DatasetError, match="expected a place inside the output folder, got a link to"):
            place(output, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_write_text__does_not_follow_a_link_left_in_its_way(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    (tmp_path / ".a.txt.writing").symlink_to(kept)
    (tmp_path / "a.txt").symlink_to(kept)
    write_text(tmp_path / "a.txt", "new")
    assert (kept.read_text(), (tmp_path / "a.txt").read_text()) == ("kept", "new")
    assert not (tmp_path / "a.txt").is_symlink()


def test_evaluate_model__writes_nothing_by_the_names_of_a_coco_file(model_folder: Path, tmp_path: Path) -> None:
    """`..` may stay in the folder of the images but not lead out of it; results go by ids."""
    images_in(tmp_path / "elsewhere", "a.png")
    folder = images_in(tmp_path / "images", "b.png")
    images_in(tmp_path / "images" / "sub", "a.png")
    annotations = tmp_path / "truth.json"

    def name_images(*names: str) -> None:
        content = {
            "images": [{"id": index, "file_name": name, "height": 60, "width": 80} for index, name in enumerate(names)],
            "annotations": [{"id": 1, "image_id": 0, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
            "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "bar"}],
        }
        annotations.write_text(json.dumps(content))

    name_images("../elsewhere/a.png", "b.png")
    before = everything_in(tmp_path)
    with pytest.raises(
        DatasetError, match=r"image 0: \.\./elsewhere/a\.png: expected an image file below .*images, got a"
    ):
        evaluate_model(model_folder, annotations, folder, tmp_path / "out", device="cpu")
    assert everything_in(tmp_path) == before
    name_images("sub/../sub/../../images/sub/a.png", "b.png")
    before = everything_in(tmp_path)
    evaluate_model(model_folder, annotations, folder, tmp_path / "out", device="cpu")
    after = everything_in(tmp_path)
    new = {Path(name).relative_to(tmp_path).parts[0] for name in after.keys() - before.keys()}
    assert new == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json",
        "images.json",
        "metrics.json",
        "predictions.json",
    }
    assert {name: after[name] for name in before} == before


def test_check_data__shows_names_that_no_encoding_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_in(tmp_path, "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
        "categories": [{"id": 1, "name": "half \ud83d"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    report = tmp_path / "report.json"
    assert main(["check-data", str(tmp_path / "a.json"), "--valid-split", "0", "--json", str(report)]) == 1
    expected = r'category 1: expected a name, got "half \ud83d"'  # training could not save it
    assert expected in capsys.readouterr().out
    assert expected in [one["reason"] for one in json.loads(report.read_text())["splits"]["train"]["faults"]]


def test_check_data__refuses_sizes_that_no_image_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_in(tmp_path, "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 2e20, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9e4]]}],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["check-data", str(tmp_path / "a.json"), "--valid-split", "0"]) == 1
    expected = "a.png: height and width: expected at most 1,000,000 pixels, got 2e+20 and 80"
    assert expected in capsys.readouterr().out
