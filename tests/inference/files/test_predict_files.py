"""Prediction on files: bad inputs stop no others, a stopped run continues, and nothing is written elsewhere."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.folder_lock import hold_folder
from mask2former_dinov3.inference.files import predict_files as module
from mask2former_dinov3.inference.files.find_images import find_images
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.files.progress import FinishedImage, Progress, fingerprint
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.visualize import draw_instances
from support.crashes import PowerCuts
from support.processes import run_python

ALL = InferenceSettings(threshold=0.0)
ALL_IN_TILES = InferenceSettings(threshold=0.0, tile=64)


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, "cpu")


def picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_predict_files__does_all_it_can_and_reports_the_rest(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(picture(0)).save(folder / "a.png")
    Image.fromarray(picture(1)).save(folder / "deeper" / "a.jpg")
    Image.fromarray(picture(2)).save(folder / "b.bmp")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image, and not one to try")
    summary = predict_files(
        predictor,
        [folder, tmp_path / "missing.png", str(folder / "*.bmp")],
        tmp_path / "out",
        settings=InferenceSettings(threshold=0.0, batch_size=2),
        save=("overlays", "masks", "coco"),
    )
    assert summary.images == 3
    assert sorted(Path(name).name for name, _ in summary.failed) == ["broken.png", "missing.png"]
    assert summary.without_detection == []
    assert "2 failed" in summary.text()
    assert "broken.png" in summary.text()
    overlays = sorted(str(path.relative_to(tmp_path / "out")) for path in summary.overlays)
    assert overlays == ["overlays/a.png", "overlays/b.png", "overlays/deeper/a.jpg"]
    assert all(path.is_file() for path in summary.overlays)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(one["id"], one["file_name"]) for one in written["images"]] == [
        (1, "a.png"),
        (2, "b.bmp"),
        (4, "deeper/a.jpg"),
    ]
    results = written["annotations"]
    assert len(results) == summary.detections > 0
    for image, name in ((1, "a"), (4, "deeper/a")):
        masks = sorted((tmp_path / "out" / "masks" / name).glob("*.png"))
        assert len(masks) == sum(result["image_id"] == image for result in results)
        with Image.open(masks[0]) as mask:
            assert (mask.size, mask.mode) == ((60, 40), "1")
    assert evaluate_coco(written, tmp_path / "out" / "predictions.json")["images"] == 3


def test_predict_files__says_threshold_limits_and_best_scores(predictor: Predictor, tmp_path: Path) -> None:
    for seed in range(3):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    every = [predictor(picture(seed), threshold=0.0, max_detections=16) for seed in range(3)]
    text = predict_files(
        predictor, [tmp_path], tmp_path / "a", settings=InferenceSettings(0.0, 5, copy_overlap=0.5), save=("coco",)
    ).text()
    assert "\nscore threshold 0, as given\n" in text
    assert "note: max_detections: 33 instances above the threshold left out in 3 images, beyond 5 per image" in text
    assert "dropped as copies" in text
    text = predict_files(predictor, [tmp_path], tmp_path / "b", settings=InferenceSettings(1.0), save=("coco",)).text()
    for seed, found in enumerate(every):
        assert f"{tmp_path}/{seed}.png (best score {found.scores.max():.2g})" in text
    text = predict_files(predictor, [tmp_path], tmp_path / "c", save=("coco",)).text()
    assert "\nscore threshold 0.5: the model stores none; `evaluate` finds the best\n" in text
    tiled = predict_files(
        predictor, [tmp_path], tmp_path / "d", settings=InferenceSettings(0.0, 3, tile=32), save=("coco",)
    ).text()
    assert "beyond 3 per tile; raise it to keep them" in tiled


def test_predict_files__counts_files_that_are_read_in_part(predictor: Predictor, tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(seed)) for seed in range(5)]
    for name in ("a.tif", "b.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "c.gif", save_all=True, append_images=pages[1:3])
    pages[0].save(tmp_path / "d.png")
    text = predict_files(predictor, [tmp_path], tmp_path / "out", settings=ALL, save=("coco",)).text()
    notes = [line for line in text.splitlines() if line.startswith("note: ") and "read" in line]
    assert notes == [
        "note: 2 images: 5 pages, the first is read",
        f"note: {tmp_path}/c.gif: 3 frames, the first is read",
    ]


def test_predict_files__names_images_without_a_detection(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    summary = predict_files(
        predictor, [tmp_path / "a.png"], tmp_path / "out", settings=InferenceSettings(threshold=1.0)
    )
    assert [path.name for path in summary.without_detection] == ["a.png"]
    assert "no detection in 1 of them:" in summary.text()
    assert re.search(r"a\.png \(best score 0\.\d+\)", summary.text())
    assert "score threshold 1" in summary.text()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"] == []


def test_predict_files__does_again_what_it_did_and_not_its_own_overlays(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    counts = [
        predict_files(predictor, [tmp_path], tmp_path / "out", settings=settings, save=("overlays", "masks")).images
        for settings in (ALL, InferenceSettings(threshold=1.0))
    ]
    assert counts == [1, 1]
    assert list((tmp_path / "out" / "masks" / "a").iterdir()) == []  # of the first run
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_predict_files__keeps_what_is_done_when_interrupted(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        Image.fromarray(picture()).save(tmp_path / f"{name}.png")
    done: list[int] = []
    draw = draw_instances

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return draw(*arguments, **options)

    monkeypatch.setattr("mask2former_dinov3.inference.files.writers.draw_instances", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped: 2 of 3 images are finished; the same command continues"):
        predict_files(predictor, [tmp_path], tmp_path / "out", settings=ALL)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 2


def test_predict_files__takes_names_that_are_not_utf_8(predictor: Predictor, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    summary = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert (summary.images, summary.failed) == (1, [])
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]["file_name"] == name


def test_predict_files__says_what_it_cannot_do(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError,
        match=r"(?s)^inputs: expected at least one image, got none:\n  nowhere/\*\.png: expected images, got no such.*"
        r"got a folder without.*\n  \"\": expected images, got no such file",
    ):
        predict_files(predictor, ["nowhere/*.png", tmp_path, ""], tmp_path / "out")
    names = "overlays, masks, coco, coco-results, csv, label-studio, geojson, yolo"
    with pytest.raises(OptionError, match=f"save: expected some of {names}, got video"):
        predict_files(predictor, [tmp_path], tmp_path / "out", save=("video",))
    with pytest.raises(OptionError, match=f"save: expected some of {names}, got nothing"):
        predict_files(predictor, [tmp_path], tmp_path / "out", save=())
    with pytest.raises(CheckpointError, match="none: expected a model folder"):
        predict_files(tmp_path / "none", [SAMPLE / "valid"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []  # no output folder


def test_predict_files__leaves_hidden_names_alone_and_counts_what_it_passes_over(
    predictor: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "._a.png", "@eaDir/T.png", ".thumbnails/a.png", "__MACOSX/._a.png", "...png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(folder / name, "PNG")
    for name, kind in (("b.jfif", "JPEG"), ("c.jp2", "JPEG2000"), ("plain", "PNG"), ("scan.0001", "TIFF")):
        Image.fromarray(picture()).save(folder / name, kind)
    for name in ("x.txt", "y.TXT", "README"):
        (folder / name).write_text("no image")
    summary = predict_files(predictor, [folder], tmp_path / "out", settings=ALL)
    assert summary.failed == []
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [one["file_name"] for one in images] == ["a.png", "b.jfif", "c.jp2", "plain", "scan.0001"]
    assert [one["path"] for one in images] == [str((folder / one["file_name"]).resolve()) for one in images]
    assert "passed over: 3 files (.txt 2, no ending 1) and 5 hidden" in summary.text()


def test_predict_files__an_output_that_cannot_be_written_is_a_fault_of_its_file(
    predictor: Predictor, tmp_path: Path
) -> None:
    """A folder stands where the overlay of b.png goes; `...png`, which the user names, is saved under another name."""
    for name in ("a.png", "b.png", "c.png", "...png"):
        Image.fromarray(picture()).save(tmp_path / name, "PNG")
    (tmp_path / "out" / "overlays" / "b.png").mkdir(parents=True)
    summary = predict_files(predictor, [tmp_path / "...png", str(tmp_path / "*.png")], tmp_path / "out", settings=ALL)
    ((given, reason),) = summary.failed
    assert given == str((tmp_path / "b.png").resolve())
    assert "b.png: expected outputs that can be written, got an error (" in reason
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert {one["file_name"]: one.get("name_in_output") for one in images} == {
        "...png": "file...png",
        "a.png": None,
        "c.png": None,
    }
    assert {path.name for path in summary.overlays} == {"file...png", "a.png", "c.png"}
    assert all(path.is_file() for path in summary.overlays)


def test_predict_files__a_full_disk_ends_the_run(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr("mask2former_dinov3.inference.files.predict_files.save_image", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", settings=ALL)


def test_find_images__gives_each_file_once_with_a_name_of_its_own(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "a.JPG", "b.tif"):
            (tmp_path / folder / name).write_bytes(b"")
    failed: list[tuple[str, str]] = []
    found = find_images([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.tif"], tmp_path / "out", failed)
    assert failed == []
    assert len({one.path for one in found}) == len(found) == 6
    assert [one.name for one in found] == ["a.JPG", "a-2.JPG", "a-3.png", "a-4.png", "b.tif", "b-2.tif"]
    assert [one.file_name for one in found] == [
        os.path.join(folder, name) for name in ("a.JPG", "a.png", "b.tif") for folder in ("one", "two")
    ]
    (single,) = find_images([tmp_path / "one" / "notes.txt", str(tmp_path / "**" / "b.tif")], tmp_path, failed)[:1]
    assert single.name == "b.tif"
    assert failed[0][1].endswith("no such file, folder or pattern")


@pytest.mark.parametrize("threshold", [50.0, -0.1, float("nan")])
def test_inference_settings__refuse_a_threshold_that_is_no_score(threshold: float) -> None:
    with pytest.raises(OptionError, match=f"threshold: expected a score from 0 to 1, got {threshold}"):
        InferenceSettings(threshold=threshold)


def results_of(output: Path) -> str:
    return (output / "predictions.json").read_text()


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 60)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        Image.fromarray(picture(seed, *size)).save(folder / f"{seed}.png")
    return folder


def test_predict_files__writes_every_kind_of_output_for_tiles(predictor: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    folder = write_pictures(tmp_path / "in", 2, (100, 130))
    Image.fromarray(picture(9)).save(folder / "small.png")
    save = ("overlays", "masks", "coco", "geojson", "yolo")
    summary = predict_files(
        predictor, [folder], tmp_path / "out", settings=InferenceSettings(0.0, tile=64, batch_size=3), save=save
    )
    assert summary.failed == []
    results = json.loads(results_of(tmp_path / "out"))["annotations"]
    for number, name in enumerate(("0", "1", "small"), start=1):
        found = predictor(folder / f"{name}.png", threshold=0.0, tile=64, batch_size=3)
        own = [result for result in results if result["image_id"] == number]
        if name != "small":  # which was in a batch of its own here and there
            assert own == found.to_coco_annotations(number, own[0]["id"])
        assert len(list((tmp_path / "out" / "masks" / name).glob("*.png"))) == len(own)
        features = json.loads((tmp_path / "out" / "geojson" / f"{name}.geojson").read_text())["features"]
        assert [feature["properties"]["score"] for feature in features] == [result["score"] for result in own]
        assert len((tmp_path / "out" / "yolo" / "labels" / f"{name}.txt").read_text().splitlines()) == len(own)
    assert '0: "disc"' in (tmp_path / "out" / "yolo" / "data.yaml").read_text()


def test_predict_files__draws_large_images_smaller_and_cuts_their_masks(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former_dinov3.inference.tiles.image_reader.WHOLE_PIXELS", 1000)
    monkeypatch.setattr("mask2former_dinov3.inference.files.writers.LONGEST_OVERLAY", 50)
    folder = write_pictures(tmp_path / "in", 1, (100, 130))
    found = predictor(folder / "0.png", threshold=0.0, tile=64)
    settings = InferenceSettings(threshold=0.0, tile=64)
    predict_files(predictor, [folder], tmp_path / "out", settings=settings, save=("overlays", "masks"))
    with Image.open(tmp_path / "out" / "overlays" / "0.png") as overlay:
        assert overlay.size == (44, 34)  # a third, rounded up
    first = sorted((tmp_path / "out" / "masks" / "0").glob("*.png"))[0]
    _, left, top = re.fullmatch(r"(.+)_x(\d+)_y(\d+)", first.stem).groups()  # type: ignore[union-attr]
    window = found.window(0)
    assert (int(top), int(left)) == (window.top, window.left)
    with Image.open(first) as mask:
        np.testing.assert_array_equal(np.asarray(mask), window.pixels.astype(bool))


RUN = """
import sys
from pathlib import Path
from mask2former_dinov3.inference.files import progress
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.settings import InferenceSettings

append, lines = progress.Progress._append, []

def killed(self, line):
    place = append(self, line)
    lines.append(line)
    if len(lines) == int(sys.argv[4]):
        self._file.write(b'{"key": "half a li')
        self._file.flush()
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return place

progress.Progress._append = killed
settings = InferenceSettings(threshold=0.0, tile=64)
predict_files(sys.argv[1], [sys.argv[2]], Path(sys.argv[3]), settings=settings, device="cpu")
"""


def test_predict_files__a_stopped_run_remembers_the_file_of_its_model(
    model_folder: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of an .onnx file are not in memory: another file must not continue what it has begun."""
    seen: list[Path | None] = []

    def record(network: Any, file: Path | None) -> str:
        seen.append(file)
        return fingerprint(network, file)

    monkeypatch.setattr(module, "fingerprint", record)
    folder = write_pictures(tmp_path / "in", 1)
    models: list[str | Path | Predictor] = [model_folder, str(model_folder), predictor]
    for number, model in enumerate(models):
        predict_files(model, [folder], tmp_path / f"out{number}", settings=ALL, device="cpu", save=("coco",))
    assert seen == [model_folder, model_folder, None]


def test_predict_files__continues_after_a_kill_and_ends_as_a_straight_run(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed (SIGKILL) after two images and two of the three rows of tiles of the next."""
    folder = write_pictures(tmp_path / "in", 2)
    for seed in (2, 3):
        Image.fromarray(picture(seed, 150, 100)).save(folder / f"{seed}.png")
    predict_files(model_folder, [folder], tmp_path / "straight", settings=ALL_IN_TILES, device="cpu")
    words = [str(model_folder), str(folder), str(tmp_path / "out"), "7"]  # settings, 2 for each of two images, two rows
    (tmp_path / "killed.py").write_text(RUN)
    done = run_python([str(tmp_path / "killed.py"), *words], tmp_path)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out" / "predictions.json").exists()
    asked: list[int] = []
    predict = Predictor.predict_prepared

    def counted(self: Predictor, prepared: Any, *options: Any) -> list[Instances]:
        asked.append(len(prepared))
        return predict(self, prepared, *options)

    monkeypatch.setattr(Predictor, "predict_prepared", counted)
    caplog.set_level("INFO")
    summary = predict_files(model_folder, [folder], tmp_path / "out", settings=ALL_IN_TILES, device="cpu")
    assert "continuing an earlier run: 2 images are finished, 1 in part" in caplog.text
    assert len(asked) == 2 + 3 * 2  # the last row of the third image, and the fourth
    assert results_of(tmp_path / "out") == results_of(tmp_path / "straight")
    assert (summary.images, len(summary.overlays)) == (4, 4)
    assert all(path.is_file() for path in summary.overlays)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"threshold": 0.1}, "threshold"),
        ({"tile": 48}, "tile"),
        ({"overlap": 0.3}, "tile"),
        ({"max_detections": 9}, "max_"),
    ],
)
def test_predict_files__does_not_mix_settings(
    changed: dict[str, Any], word: str, predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    before, save = ALL_IN_TILES, ("coco",)
    stop_after(1, lambda: predict_files(predictor, [folder], tmp_path / "out", settings=before, save=save))
    settings = replace(before, **changed)
    predict_files(predictor, [folder], tmp_path / "out", settings=settings, save=save)
    assert re.search(rf"starting again: an earlier, unfinished run had another {word}", caplog.text)
    predict_files(predictor, [folder], tmp_path / "straight", settings=settings, save=save)
    assert results_of(tmp_path / "out") == results_of(tmp_path / "straight")


def test_predict_files__does_not_mix_models_or_images(
    predictor: Predictor, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    other = Predictor.from_pretrained(model_folder, "cpu")
    next(iter(other.model.state_dict().values()))[0] += 1
    stop_after(2, lambda: predict_files(other, [folder], tmp_path / "out", settings=ALL))
    stop_after(2, lambda: predict_files(predictor, [folder], tmp_path / "out", settings=ALL))
    assert "another model" in caplog.text
    Image.fromarray(picture(7)).save(folder / "0.png")  # done already, but it is another one now
    predict_files(predictor, [folder], tmp_path / "out", settings=ALL)
    predict_files(predictor, [folder], tmp_path / "straight", settings=ALL)
    assert results_of(tmp_path / "out") == results_of(tmp_path / "straight")


def stop_after(count: int, run: Any) -> None:
    """Ctrl-C once so many images are done."""
    finish, done = Progress.finish, []

    def stopped(self: Progress, key: str, entry: FinishedImage, results: Any) -> None:
        finish(self, key, entry, results)
        done.append(key)
        if len(done) == count:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "finish", stopped)
        with pytest.raises(KeyboardInterrupt, match=f"stopped: {count} of"):
            run()


def test_predict_files__refuses_an_output_in_use(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    message = r"^output: expected a folder that no other command is writing to, got .*/out, in use by"
    with hold_folder(tmp_path / "out", "output", "predict"), pytest.raises(OptionError, match=message):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    assert predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out").images == 1
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


def test_predict_files__what_it_calls_finished_is_there_after_a_power_cut(predictor: Predictor, tmp_path: Path) -> None:
    """In each state that a cut may leave: of images whose line is in the progress file, the overlay is whole."""
    for index in range(2):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    cuts = PowerCuts(out, tmp_path / "store")
    with cuts.watch():
        predict_files(predictor, [tmp_path / "0.png", tmp_path / "1.png"], out, settings=ALL)
    counts = set()
    for state in cuts.states(tmp_path / "state"):
        progress = state / ".predict-progress.jsonl"
        text = progress.read_bytes() if progress.exists() else b""
        finished = [json.loads(line) for line in text.splitlines() if b'"image"' in line]
        done = [name for entry in finished for name in [Path(json.loads(entry["key"])[1]).name]]
        for name in done:
            with Image.open(state / "overlays" / f"{Path(name).stem}.png") as image:
                image.load()
        counts.add(len(done))
        if (state / "predictions.json").exists():
            assert "annotations" in json.loads((state / "predictions.json").read_text())
    assert counts >= {0, 2}
