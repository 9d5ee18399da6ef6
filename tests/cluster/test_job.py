"""`batch-predict` on real Ray clusters of this machine: the results of `predict`, whatever dies in between."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from mask2former_dinov3.cluster import job
from mask2former_dinov3.cluster.gathering import Batches, BatchSummary, Gathering
from mask2former_dinov3.cluster.job import batch_predict
from mask2former_dinov3.cluster.reading import BatchRow, read_batch
from mask2former_dinov3.cluster.resources import Workers, plan_workers
from mask2former_dinov3.cluster.shards import ShardFolder, tables_of
from mask2former_dinov3.cluster.workers import ModelFiles
from mask2former_dinov3.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    MissingExtraError,
    OptionError,
    UserError,
)
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Passes
from mask2former_dinov3.read_options import ReadOptions
from mask2former_dinov3.sample_data import SAMPLE
from support.processes import start_python
from support.ray_cluster import ENVIRONMENT, HEAD, STORE, running_cluster

EVERYTHING = InferenceSettings(threshold=0.0)
PASSES = Passes((64, 64), factor=None, tile=None, overlap=0.2)
IMAGES = 94  # six tasks of reading, two failures among them: enough to be in the middle of
# Ray leaves sockets and files of the cluster's processes to the garbage collector.
pytestmark = [
    pytest.mark.xdist_group("ray"),  # one cluster for this file and the tests of `tune`
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(900),  # every process of a cluster imports torch, six or more of them on two cores
]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Workers find the package; torch computes in one thread here as there, so that numbers are the same."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


def started(cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[Cluster]:
    """Two nodes of one CPU each, which Ray is connected to."""
    cluster = running_cluster()
    started(cluster)
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGES pictures of several sizes, one cut short, one that is no image."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        height, width = 40 + number % 7 * 8, 90 - number % 5 * 8
        picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        picture[8:30, number % 30 : number % 30 + 20] = rng.integers(100, 255, 3)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    (folder / "broken.png").write_bytes((folder / "000.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no image")
    return folder


def rows(output: Path, kind: str) -> list[dict[str, Any]]:
    """All rows of one kind, in an order that does not depend on that of the files."""
    folder = output / kind
    if not folder.exists():
        return []
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table()
    found = [{key: value for key, value in row.items() if key != "seconds"} for row in table.to_pylist()]
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True))


def assert_same_results(output: Path, other: Path) -> None:
    for kind in ("images", "instances", "failures"):
        mine, theirs = rows(output, kind), rows(other, kind)
        assert mine == theirs, kind
    names = [row["image"] for kind in ("images", "failures") for row in rows(output, kind)]
    assert len(names) == len(set(names)) == IMAGES + 2


@pytest.fixture(scope="module")
def straight(cluster: Cluster, images: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that nothing disturbed. The model's folder is gone before a worker could read it."""
    folder = tmp_path_factory.mktemp("straight")
    model = folder / "model"
    shutil.copytree(model_folder, model)

    def remove_and_plan(nodes: Any, **options: Any) -> Any:
        shutil.rmtree(model)
        return plan_workers(nodes, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "plan_workers", remove_and_plan)
        summary = batch_predict(model, [str(images)], str(folder / "out"), settings=EVERYTHING, shard_size=7)
    assert (summary.images, summary.failed, summary.earlier) == (IMAGES, 2, 0)
    assert summary.instances == len(rows(folder / "out", "instances")) > IMAGES
    assert "2 failed" in summary.text()
    assert str(images / "broken.png") in summary.text()
    return folder / "out"


def test_batch_predict__finds_what_predict_finds(straight: Path, images: Path, model_folder: Path) -> None:
    predictor = Predictor.from_pretrained(model_folder, "cpu")
    found = rows(straight, "instances")
    for row in rows(straight, "images"):
        expected = predictor(row["image"], threshold=0.0)
        mine = [one for one in found if one["image"] == row["image"]]
        mine.sort(key=lambda one: -one["score"])
        assert (row["height"], row["width"], row["instances"]) == (expected.height, expected.width, len(expected))
        assert [one["category_id"] for one in mine] == [one["category_id"] for one in expected.to_coco(0)]
        np.testing.assert_allclose([one["score"] for one in mine], expected.scores, atol=1e-5)
        for one, area in zip(mine, expected.areas, strict=True):
            assert one["area"] == pytest.approx(area, rel=0.01, abs=2)
    reasons = {Path(row["image"]).name: row["reason"] for row in rows(straight, "failures")}
    assert "damaged or cut short" in reasons["broken.png"]
    assert "got another kind of file" in reasons["text.jpg"]


def test_batch_predict__does_what_is_left(
    straight: Path, cluster: Cluster, images: Path, model_folder: Path, tmp_path: Path
) -> None:
    """More images than last time, failed ones once more; other settings are refused."""
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    inputs, again = [str(images)], dict[str, Any](settings=EVERYTHING, shard_size=4)
    summary = batch_predict(model_folder, inputs, str(output), **again)
    assert (summary.images, summary.earlier, summary.failed_earlier) == (0, IMAGES, 2)
    assert f"{IMAGES} images were done before\n2 failed before; --retry-failed" in summary.text()
    assert_same_results(output, straight)

    shutil.copy(images / "001.png", tmp_path / "new.png")
    (tmp_path / "list.txt").write_text("new.png\nmissing.png\n")
    more = [*inputs, str(tmp_path / "list.txt")]
    summary = batch_predict(
        model_folder, more, str(output), shard_size=4, settings=replace(EVERYTHING, batch_size=2), retry_failed=True
    )
    assert (summary.images, summary.earlier, summary.failed) == (1, IMAGES, 3)
    assert {Path(row["image"]).name for row in rows(output, "failures")} == {"broken.png", "text.jpg", "missing.png"}
    twin = [row for row in rows(output, "instances") if row["image"] == str(tmp_path / "new.png")]
    original = [row for row in rows(output, "instances") if row["image"] == str(images / "001.png")]
    assert len(twin) == len(original) > 0
    with pytest.raises(
        UserError, match=r"(?s)results of the same settings, got others.*max_detections: 8 there, 5 now"
    ):
        batch_predict(model_folder, more, str(output), settings=InferenceSettings(threshold=0.0, max_detections=5))


def test_batch_predict__tiles_are_those_of_the_predictor(cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (150, 200, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "large.png").read_bytes()[:999])
    summary = batch_predict(
        model_folder,
        [f"file://{tmp_path}"],
        str(tmp_path / "out"),
        settings=replace(EVERYTHING, tile=96, batch_size=3),
        device="cpu",
    )
    expected = Predictor.from_pretrained(model_folder, "cpu")(tmp_path / "large.png", threshold=0.0, tile=96)
    assert (summary.images, summary.instances, summary.failed) == (1, len(expected), 1)
    (failure,) = rows(tmp_path / "out", "failures")
    reason = "expected a readable image file, got one that is damaged"
    assert failure["reason"].startswith(f"{tmp_path / 'broken.png'}: {reason}")


def disturb(output: Path, shards: int, deed: Callable[[], None]) -> threading.Thread:
    """Do something once `shards` shards are finished."""

    def wait() -> None:
        while len(list(output.glob("images/*.parquet"))) < shards:
            time.sleep(0.02)
        deed()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def actors() -> list[psutil.Process]:
    """Processes of the tests' clusters that hold a model, those that predict at this moment first.

    Not those that still load it, which have no batch to lose.
    """
    found: list[tuple[bool, psutil.Process]] = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])  # Ray writes the running method into it
            if "BatchPredictor" in title and "__init__" not in title:
                found.append((".submit" in title, process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda one: not one[0])]


def test_batch_predict__a_killed_worker_loses_and_doubles_nothing(
    straight: Path, cluster: Cluster, images: Path, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for process in actors()[:1]:
            process.kill()
            killed.append(process.pid)

    thread = disturb(tmp_path / "out", 2, kill)
    with caplog.at_level(logging.WARNING):
        batch_predict(model_folder, [str(images)], str(tmp_path / "out"), settings=EVERYTHING, shard_size=7)
    thread.join(timeout=5)
    assert len(killed) == 1
    assert "batches were lost with a worker that died" in caplog.text
    assert_same_results(tmp_path / "out", straight)


def test_batch_predict__a_killed_node_loses_and_doubles_nothing(
    straight: Path,
    cluster: Cluster,
    images: Path,
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "WATCH_SECONDS", 2)
    other = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()
    thread = disturb(tmp_path / "out", 2, lambda: cluster.remove_node(other, allow_graceful=False))
    with caplog.at_level(logging.WARNING):
        batch_predict(model_folder, [str(images)], str(tmp_path / "out"), settings=EVERYTHING, shard_size=7, actors=3)
    thread.join(timeout=5)
    assert_same_results(tmp_path / "out", straight)


def test_batch_predict__says_what_it_cannot_do(
    cluster: Cluster, images: Path, model_folder: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    with pytest.raises(CheckpointError, match="expected a model folder"):
        batch_predict(tmp_path / "nowhere", [str(images)], output)
    with pytest.raises(DatasetError, match=r"expected an image, a folder, .*got nothing of that name"):
        batch_predict(model_folder, [str(tmp_path / "nowhere")], output)
    for options, message in (
        ({"device": "cuda:1"}, "device: expected cpu or cuda, got cuda:1; Ray gives every actor a GPU of its own$"),
        ({"gpus_per_actor": 2}, "gpus_per_actor: expected a number from 0 to 1, got 2; a model runs on one GPU$"),
        ({"cpus_per_actor": 0}, "cpus_per_actor: expected a number above 0, got 0$"),
        ({"shard_size": 0}, "shard_size: expected a whole number above 0, got 0$"),
        ({"actors": 0}, "actors: expected a whole number above 0, got 0$"),
        ({"device": "cuda"}, "Ray cluster: expected a node with a CPU and 1 GPUs per actor, got "),
        ({"cpus_per_actor": 64}, "cpus_per_actor: expected at most .*, got 64 on a cluster of 1 CPUs"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            batch_predict(model_folder, [str(images)], output, **options)


def test_batch_predict__needs_the_extra(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtraError, match=r"^batch-predict needs pyarrow, .*pip install 'mask2former-dinov3\[ray\]'"
    ):
        batch_predict(model_folder, [str(tmp_path)], str(tmp_path / "out"))


def test_read_batch__an_image_that_cannot_be_had_stops_nothing(images: Path) -> None:
    names = [str(images / "000.png"), str(images / "gone.png"), str(images), "nonsense://x.png"]
    read = pickle.loads(read_batch({"number": 3, "images": names}, passes=PASSES)["read"])
    assert [one.image for one in read] == names
    assert (read[0].content.pixels.shape, read[0].content.original_size) == ((28, 64, 3), (40, 90))
    assert read[1].content == f"{names[1]}: expected an image file, got no such file"
    assert read[2].content == f"{names[2]}: expected an image file, got a folder"
    assert read[3].content.startswith("nonsense://x.png: expected a path, or a URI that fsspec knows, got an error (")


def test_read_batch__leaves_to_the_predictor_what_is_cut_at_its_own_scale(tmp_path: Path) -> None:
    for name, size in (("small.png", (60, 20)), ("large.png", (90, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    row: BatchRow = {"number": 0, "images": [str(tmp_path / "small.png"), str(tmp_path / "large.png")]}
    small, large = pickle.loads(read_batch(row, passes=PASSES._replace(factor=1.0))["read"])
    assert (small.content.pixels.shape, small.content.original_size) == ((20, 60, 3), (20, 60))
    assert large.content == (tmp_path / "large.png").read_bytes()
    small, large = pickle.loads(read_batch(row, passes=PASSES._replace(factor=0.5))["read"])
    assert (small.content.pixels.shape, large.content.pixels.shape) == ((10, 30, 3), (20, 45, 3))


def test_model_files__carry_an_exported_model(sample_file: Path, tmp_path: Path) -> None:
    image = next((SAMPLE / "valid").glob("*.png"))
    shutil.copy(sample_file, tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    files = pickle.loads(pickle.dumps(ModelFiles.read(tmp_path / "m.onnx")))
    shutil.rmtree(tmp_path)
    assert (files.name, {*files.files}) == ("m.onnx", {"m.onnx", "m.onnx.data"})
    expected = Predictor.from_pretrained(sample_file, "cpu")(image)
    assert files.load("cpu")(image).rles == expected.rles


@pytest.fixture
def five(tmp_path: Path) -> tuple[job.Job, Gathering]:
    """A job of five batches of one image, and what gathers it; its passes are those that a test makes up."""
    batches = Batches(pa.array([f"/{number}.png" for number in range(5)], pa.large_string()), 2, 1)
    gathering = Gathering(batches, ShardFolder(str(tmp_path / "out"), {}), BatchSummary(""), lambda images: None)
    return job.Job(batches, None, PASSES, ReadOptions(), InferenceSettings()), gathering


def row_of(number: int, trouble: str = "") -> dict[str, Any]:
    return {
        "number": number,
        "tables": pickle.dumps(tables_of([], [(f"/{number}.png", "no file")])),
        "trouble": trouble,
    }


def test_predict_all__a_batch_that_kills_its_workers_has_failed(
    five: tuple[job.Job, Gathering], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passes: list[tuple[list[int], bool]] = []

    def results(_: job.Job, numbers: Any, workers: Any, *, careful: bool) -> Iterator[dict[str, Any]]:
        passes.append((numbers.tolist(), careful))
        if len(passes) == 1:
            yield row_of(0)
            raise ray.exceptions.RayError("lost")  # of the pass itself: no batch is to blame
        if len(passes) < 4:
            raise ray.exceptions.RayError("lost before it began")
        yield from (row_of(number) for number in numbers.tolist() if number != 3)

    monkeypatch.setattr(job, "_results", results)
    job._predict_all(*five, lambda: Workers(1, 1, 0))
    assert passes == [([0, 1, 2, 3, 4], False), *[([1, 2, 3, 4], False)] * 3, ([3], True), ([3], True)]
    reasons = {row["image"]: row["reason"] for row in rows(tmp_path / "out", "failures")}
    assert len(reasons) == 5
    assert reasons["/3.png"] == "/3.png: its worker died in 3 attempts, most likely out of memory"


@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("", UserError, "^Ray: expected results from the workers, got the death of all workers; they most likely ran"),
        ("ray", UserError, r"^Ray: expected results from the workers, got 3 failures in a row \(gone\)$"),
        ("out of memory on the device", OptionError, "^batch_size: expected a batch that fits .*, got 1; lower it$"),
        ("Traceback: KeyError", RuntimeError, "(?s)the model failed on a worker.*KeyError"),
    ],
)
def test_predict_all__stops_when_nothing_gets_done(
    trouble: str,
    error: type[Exception],
    message: str,
    five: tuple[job.Job, Gathering],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results(*_: Any, careful: bool) -> Iterator[dict[str, Any]]:
        if trouble == "ray":
            raise ray.exceptions.RayError("no actor\ngone")
        yield from [row_of(0, trouble)] if trouble else []

    monkeypatch.setattr(job, "_results", results)
    with pytest.raises(error, match=message):
        job._predict_all(*five, lambda: Workers(1, 1, 0))


@pytest.mark.parametrize("module", ["reading", "workers"])
def test_reading_and_passes__load_no_torch(module: str) -> None:
    code = f"import sys, mask2former_dinov3.cluster.{module}; print({{'torch', 'transformers'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(("cpus", "each"), [(1, 0.5), (2, 1)])
def test_batch_predict__actors_leave_cpus_to_the_readers(
    cpus: int,
    each: float,
    straight: Path,
    images: Path,
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Four actors asked for where one fits: they would take the CPUs from the readers that they wait for."""
    ray.shutdown()  # of the cluster of this module, whose straight run is all that is still needed
    small = Cluster(initialize_head=True, head_node_args={**HEAD, "num_cpus": cpus})
    try:
        started(small)
        options = dict[str, Any](settings=EVERYTHING, shard_size=20, actors=4, cpus_per_actor=each)
        with caplog.at_level(logging.WARNING):
            batch_predict(model_folder, [str(images)], str(tmp_path / "out"), **options)
    finally:
        ray.shutdown()
        small.shutdown()
    assert f"only 1 of 4 actors with {each:g} CPUs and 0 GPUs each fit" in caplog.text
    assert_same_results(tmp_path / "out", straight)


def command(model: Path, images: Path, output: Path) -> list[str]:
    verb = ["-m", "mask2former_dinov3", "batch-predict", str(images), "--output", str(output)]
    return [*verb, "--model", str(model), "--threshold", "0", "--shard-size", "7"]


def finished(output: Path) -> int:
    return len(list(output.glob("images/*.parquet")))


def test_command__goes_on_after_ctrl_c_and_after_kill_9(
    straight: Path, images: Path, model_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ways = [signal.SIGINT, signal.SIGKILL, None]
    for way in ways:
        before = finished(output)
        process = start_python(command(model_folder, images, output), tmp_path, ENVIRONMENT)
        family = [psutil.Process(process.pid)]
        while way and finished(output) < before + 2:
            assert process.poll() is None, process.finish()
            time.sleep(0.02)
        # Of a killed cluster the agents notice late that they are alone.
        family += [one for one in family[0].children(recursive=True) if not one.name().endswith("Agent")]
        if way == signal.SIGINT:
            os.killpg(process.pid, way)  # as a terminal does
        elif way:
            os.kill(process.pid, way)
        done = process.finish(300)
        said, complained = done.stdout, done.stderr
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left  # Ray ends with its driver
        if way == signal.SIGINT:
            assert done.returncode == 130, complained
            assert any(line.startswith("stopped after ") for line in complained.splitlines())
            assert "the same command continues from there" in complained
        if way:
            assert before + 2 <= finished(output) < (IMAGES + 2) / 7
    assert done.returncode == 1, complained  # two images cannot be read
    assert [line for line in complained.splitlines() if not line.startswith("predict: ")] == []  # lines of progress
    assert "images were done before" in said
    assert "broken.png" in said
    assert_same_results(output, straight)
