"""Batches and shards: every image once, whatever order results come in; and the folder that they are written to."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from mask2former_dinov3.cluster.gathering import Batches, BatchSummary, Gathering
from mask2former_dinov3.cluster.shards import ShardFolder, tables_of
from mask2former_dinov3.errors import CheckpointError, UserError
from mask2former_dinov3.inference.score_calibration import ScoreCalibration
from mask2former_dinov3.instances import Instances

SETTINGS = {"threshold": 0.5, "model_sha256": "abc"}


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An output folder on disk, and one in an object store."""
    if request.param == "local":
        yield str(tmp_path / "out")
    else:
        yield "memory://shards"
        filesystem = fsspec.filesystem("memory")
        if filesystem.exists("/shards"):
            filesystem.rm("/shards", recursive=True)


def batches_of(count: int, shard_size: int, batch_size: int) -> Batches:
    names = pa.array([f"/images/{number:04d}.png" for number in range(count)], pa.large_string())
    return Batches(names, shard_size, batch_size)


def one_instance() -> Instances:
    mask = np.zeros((1, 6, 8), dtype=bool)
    mask[0, 1:3, 2:7] = True
    return Instances.from_masks(mask, [1], [0.9], ((3, "disc"), (7, "bar")))


def gathering_of(batches: Batches, folder: ShardFolder) -> Gathering:
    return Gathering(batches, folder, BatchSummary(folder.output), lambda images: None)


def rows(output: str, kind: str) -> list[dict[str, Any]]:
    filesystem, root = fsspec.core.url_to_fs(output)
    if not filesystem.exists(f"{root}/{kind}"):
        return []
    found: list[dict[str, Any]] = (
        pyarrow.dataset.dataset(f"{root}/{kind}", filesystem=filesystem, format="parquet").to_table().to_pylist()
    )
    return found


@pytest.mark.parametrize(("count", "shard", "batch"), [(1, 1, 1), (10, 4, 3), (12, 4, 2), (13, 5, 8), (100, 7, 3)])
def test_batches__have_every_image_once_and_end_with_their_shard(count: int, shard: int, batch: int) -> None:
    batches = batches_of(count, shard, batch)
    images = [name for number in range(len(batches)) for name in batches.images_of(number)]
    assert images == batches.images.to_pylist()
    shards = -(-count // shard)
    numbers = [number for one in range(shards) for number in batches.of_shard(one)]
    assert numbers == list(range(len(batches)))
    for one in range(shards):
        inside = [name for number in batches.of_shard(one) for name in batches.images_of(number)]
        assert inside == batches.images[one * shard : (one + 1) * shard].to_pylist()


def test_gathering__writes_whole_shards_in_any_order_and_nothing_twice(output: str) -> None:
    batches = batches_of(23, 6, 4)
    folder = ShardFolder(output, SETTINGS)
    gathering = gathering_of(batches, folder)
    numbers = [*range(len(batches))] * 2  # every batch comes twice
    random.Random(0).shuffle(numbers)
    for number in numbers:
        images = batches.images_of(number)
        gathering.add(
            number, tables_of([(image, one_instance(), 0.5) for image in images[1:]], [(images[0], "broken")])
        )
        finished = {row["image"] for kind in ("images", "failures") for row in rows(output, kind)}
        assert len(finished) in (0, 5, 6, 11, 12, 17, 18, 23)  # whole shards
    assert len(gathering.missing()) == 0
    good, bad = ([row["image"] for row in rows(output, kind)] for kind in ("images", "failures"))
    assert sorted(good + bad) == batches.images.to_pylist()
    assert [row["image"] for row in rows(output, "instances")] == good
    summary = gathering.summary
    assert (summary.images, summary.failed, summary.instances) == (len(good), len(bad), len(good))
    done, failed = folder.done()
    assert (done.to_pylist(), failed.to_pylist()) == (good, bad)


def test_gathering__what_never_comes_has_failed(output: str) -> None:
    batches = batches_of(5, 5, 2)
    gathering = gathering_of(batches, ShardFolder(output, SETTINGS))
    gathering.add(1, tables_of([(image, one_instance(), 0.5) for image in batches.images_of(1)], []))
    assert rows(output, "images") == []
    gathering.give_up("gone")
    assert [row["image"] for row in rows(output, "images")] == batches.images_of(1)
    assert rows(output, "failures") == [
        {"image": image, "reason": f"{image}: gone"} for image in batches.images_of(0) + batches.images_of(2)
    ]
    assert "3 failed" in gathering.summary.text()


def test_tables_of__columns_are_those_of_the_documentation() -> None:
    found = tables_of([("a.png", one_instance(), 0.25), ("b.png", one_instance()[[]], 0.5)], [])
    (row,) = found.instances.to_pylist()
    assert row["segmentation"] == dict(one_instance().rles[0])
    assert (row["category_id"], row["class"], row["score"]) == (7, "bar", pytest.approx(0.9))
    assert (row["box"], row["area"]) == ([2, 1, 7, 3], 10)
    none_left_out = {"limit": 0, "full": 0, "copies": 0}
    assert found.images.to_pylist() == [
        {"image": "a.png", "height": 6, "width": 8, "instances": 1, "seconds": 0.25, **none_left_out},
        {"image": "b.png", "height": 6, "width": 8, "instances": 0, "seconds": 0.5, **none_left_out},
    ]


def test_shard_folder__refuses_other_settings_and_other_folders(output: str) -> None:
    ShardFolder(output, SETTINGS)
    ShardFolder(output, SETTINGS)
    with pytest.raises(
        UserError, match=r"(?s)expected results of the same settings, got others.*threshold: 0.5 there, 0.4 now$"
    ):
        ShardFolder(output, {**SETTINGS, "threshold": 0.4})
    filesystem, root = fsspec.core.url_to_fs(output)
    filesystem.rm_file(f"{root}/settings.json")
    filesystem.makedirs(f"{root}/images", exist_ok=True)
    filesystem.pipe_file(f"{root}/images/a.parquet", b"x")
    with pytest.raises(
        UserError,
        match=r"expected an empty folder, or results of .*, got results without settings\.json; choose another",
    ):
        ShardFolder(output, SETTINGS)


def test_shard_folder__goes_on_with_settings_that_json_stores_in_another_type(output: str) -> None:
    several = {**SETTINGS, "threshold": (0.5, 0.4), "score_calibration": ScoreCalibration(1.5, -2.0)}
    ShardFolder(output, several)
    ShardFolder(output, several)
    with pytest.raises(UserError, match=r"score_calibration: \[1.5, -2.0\] there, \[1.5, -1.0\] now$"):
        ShardFolder(output, {**several, "score_calibration": ScoreCalibration(1.5, -1.0)})


def test_shard_folder__drops_what_a_killed_run_left_half_written(output: str) -> None:
    folder = ShardFolder(output, SETTINGS)
    folder.write("whole", tables_of([("a.png", one_instance(), 1.0)], [("b.png", "broken")]))
    filesystem, root = fsspec.core.url_to_fs(output)
    for name in ("instances/half.parquet", "failures/half.parquet", "images/.half.parquet.writing"):
        filesystem.pipe_file(f"{root}/{name}", b"x")
    again = ShardFolder(output, SETTINGS)
    left = sorted(path.removeprefix(f"{root}/") for path in filesystem.find(root))
    assert left == [
        "failures/whole.parquet",
        "images/whole.parquet",
        "instances/whole.parquet",
        "settings.json",
    ]
    again.forget_failures()
    done, failed = again.done()
    assert (done.to_pylist(), failed.to_pylist()) == (["a.png"], [])


def test_shard_folder__says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be made"):
        ShardFolder(str(tmp_path / "file" / "out"), SETTINGS)
    for content, got in (("{", r"invalid JSON \(line 1"), ("[]", "a list"), ("\ufeff{}", None)):
        (tmp_path / "settings.json").write_text(content, encoding="utf-8")
        message = (
            rf"settings\.json: expected settings of batch-predict \(JSON\), got {got}" if got else "the same settings"
        )
        with pytest.raises(UserError, match=message):
            ShardFolder(str(tmp_path), SETTINGS)


def test_settings__are_readable(tmp_path: Path) -> None:
    ShardFolder(str(tmp_path), SETTINGS)
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS
