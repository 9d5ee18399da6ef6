"""Nothing that was trained is lost: the order of saving, errors, kills at operations of the file system, power cuts."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_dinov3.atomic_files import sweep
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.errors import CheckpointError, DatasetError, OptionError, UserError
from mask2former_dinov3.evaluation import evaluate
from mask2former_dinov3.training import rehearsal, run
from mask2former_dinov3.training import train as training
from mask2former_dinov3.training.batches import start_workers
from mask2former_dinov3.training.checkpoint import find_checkpoint, find_damage, list_checkpoints
from mask2former_dinov3.training.train import train
from support.crashes import PowerCuts, end_at
from support.small_run import metric_lines, small_config, weights_equal

EVERY_STEP = {"checkpointing_steps": 1, "save_total_limit": None}


@pytest.fixture(scope="module")
def straight(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a test split, from start to end. Read only."""
    folder = tmp_path_factory.mktemp("straight")
    train(small_config(toy_dataset, folder / "run", **EVERY_STEP, **with_test(toy_dataset)))
    return folder / "run"


def with_test(dataset: Path) -> dict[str, Any]:
    return {"test_annotations": str(dataset / "valid" / "_annotations.coco.json")}


def truncate(path: Path) -> None:
    """Cut a file."""
    path.write_bytes(path.read_bytes()[:100])


def cut_later(patch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Cut files as soon as the data set is read and checked."""
    load = training.load_data

    def load_and_cut(*args: Any) -> Any:
        data = load(*args)
        for path in paths:
            truncate(path)
        return data

    patch.setattr(training, "load_data", load_and_cut)


def test_train__saves_a_step_before_it_is_evaluated(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation image is cut during the run: nothing of the trained step is lost, and a repaired file goes on."""
    data, folder = make_toy_dataset(), tmp_path / "run"
    options = {**EVERY_STEP, "max_bad_images": 0.0}
    whole = (data / "valid" / "001.png").read_bytes()
    save = vars(run)["save_checkpoint"]

    def cut_then_save(*args: Any) -> Path:
        truncate(data / "valid" / "001.png")
        saved: Path = save(*args)
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_checkpoint", cut_then_save)
        with pytest.raises(DatasetError, match=r"001\.png"):
            train(small_config(data, folder, **options))
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-1"]
    (data / "valid" / "001.png").write_bytes(whole)
    train(small_config(data, folder, **options, resume_from_checkpoint="latest"))
    assert [line["step"] for line in metric_lines(folder) if "AP" in line] == [1, 2]
    assert (folder / "best").is_dir()


def test_train__goes_on_without_a_few_unreadable_images(
    make_toy_dataset: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One image of each split is cut: named, counted, remembered and not scored."""
    data = make_toy_dataset()
    cut_later(monkeypatch, data / "train" / "001.png", data / "valid" / "002.png")
    metrics = train(small_config(data, tmp_path / "run", max_train_steps=6))
    assert metrics["images"] == 3
    assert "1 of 4 images could not be read and are not scored" in metrics["notes"]
    assert "an image is skipped, another takes its place: " in caplog.text
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "state.json").read_text())
    assert list(state["unreadable"]) == ["11"]
    assert "001.png" in state["unreadable"]["11"]


def test_train__ends_saved_when_too_many_images_are_unreadable(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = make_toy_dataset(), tmp_path / "run"
    cut_later(monkeypatch, *(data / "train" / f"00{number}.png" for number in (1, 4)))
    with pytest.raises(DatasetError, match=r"^train: expected at most 1 of 6 images that cannot be read \(max_bad"):
        train(small_config(data, folder, max_train_steps=12, checkpointing_steps=None))
    (saved,) = list_checkpoints(folder)
    assert find_damage(saved) is None


@pytest.mark.parametrize(
    ("kind", "told"), [(UserError, UserError), (RuntimeError, RuntimeError), (MemoryError, UserError)]
)
def test_train__saves_the_last_finished_step_after_any_error(
    kind: type[Exception],
    told: type[Exception],
    straight: Path,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second step fails; the first was not to be saved, yet resuming gives what a straight run gives."""
    folder, read = tmp_path / "run", vars(training)["read_window"]

    def fail_later(one: run.Run, batches: Any) -> Any:
        if one.state.step == 1:
            raise kind("something else")
        return read(one, batches)

    options = {"checkpointing_steps": None, **with_test(toy_dataset)}
    with monkeypatch.context() as patch:
        patch.setattr(training, "read_window", fail_later)
        with pytest.raises(told, match="something else"):
            train(small_config(toy_dataset, folder, **options))
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-1"]
    train(small_config(toy_dataset, folder, **options, resume_from_checkpoint="latest"))
    assert weights_equal(folder / "last", straight / "last")


def test_train__a_signal_in_an_evaluation_is_served_at_once(
    straight: Path, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation of step 1 would take for ever; after the signal its checkpoint is there, and resuming does it."""
    folder, predict = tmp_path / "run", vars(run)["predict_split"]
    options = {**EVERY_STEP, **with_test(toy_dataset)}

    def endless(*args: Any, **named: Any) -> Any:
        if (folder / "checkpoint-1").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
            raise AssertionError("the signal was not served")
        return predict(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(run, "predict_split", endless)
        with pytest.raises(KeyboardInterrupt, match=r"stopped at step 1; resume with --resume-from-checkpoint .*-1$"):
            train(small_config(toy_dataset, folder, **options))
    train(small_config(toy_dataset, folder, **options, resume_from_checkpoint="latest"))
    assert metric_lines(folder) == metric_lines(straight)


@pytest.mark.long
def test_train__does_what_is_left_after_a_kill_at_any_operation(
    straight: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    """A child ends at every 19th of its renames, flushes and removals behind its first checkpoint."""
    options = {**EVERY_STEP, **with_test(toy_dataset), "resume_from_checkpoint": "latest"}
    code, number = 9, 0
    while code:
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("checkpoint-1", "metrics.jsonl", "best"):
            (shutil.copytree if (straight / name).is_dir() else shutil.copy)(straight / name, folder / name)
        config = small_config(toy_dataset, folder, **options)
        child = os.fork()
        if not child:
            end_at(number)
            train(config)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        train(config)
        for name in ("best", "last"):
            assert weights_equal(folder / name, straight / name), (number, name)
        assert metric_lines(folder) == metric_lines(straight), number
        assert not list(folder.glob(".*"))
        number += 19
    assert number > 50
    train(config)  # all is done: said, and no error


def test_save_checkpoint__leaves_a_usable_one_after_a_power_cut_at_any_moment(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps with one checkpoint kept: each state of the disk between them holds a whole one, which is found."""
    folder = tmp_path / "run"
    options = {"checkpointing_steps": 1, "save_total_limit": 1}
    train(small_config(toy_dataset, folder, max_train_steps=1, **options))
    cuts = PowerCuts(folder, tmp_path / "store")
    with cuts.watch():
        train(small_config(toy_dataset, folder, **options, resume_from_checkpoint="latest"))
    found = []
    for state in cuts.states(tmp_path / "state"):
        sweep(state)
        path = find_checkpoint("latest", state)
        assert find_damage(path) is None
        assert find_damage(state / "best") == f"{state / 'best'}: without state.json, optimizer.pt, rng.pt"
        assert (state / "best" / "model.safetensors").stat().st_size > 1000
        found.append(path.name)
    assert set(found) == {"checkpoint-1", "checkpoint-2"}
    assert len(found) > 20


def test_find_checkpoint__takes_the_newest_whole_one_and_says_so(
    straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What power cuts leave: files that are empty, cut, or have a hole of zeros, in the middle or everywhere."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    assert find_checkpoint("latest", folder) == folder / "checkpoint-2"
    files = ("optimizer.pt", "rng.pt", "model.safetensors", "state.json", "config.json", "preprocessor_config.json")
    for name in files:
        file = folder / "checkpoint-2" / name
        content = file.read_bytes()
        middle = len(content) // 2
        hole = content[: middle - 8] + bytes(16) + content[middle + 8 :]
        for damaged in (b"", content[:100], content[:middle], bytes(len(content)), hole):
            assert damaged != content
            file.write_bytes(damaged)
            caplog.clear()
            assert find_checkpoint("latest", folder) == folder / "checkpoint-1"
            assert f"an older checkpoint is used: {folder / 'checkpoint-2'}" in caplog.text
            assert name in caplog.text
        file.unlink()
        assert find_checkpoint("latest", folder) == folder / "checkpoint-1"
        file.mkdir()
        assert find_checkpoint("latest", folder) == folder / "checkpoint-1"
        file.rmdir()
        file.write_bytes(content)
    assert find_checkpoint("latest", folder) == folder / "checkpoint-2"


def test_rehearse__finds_before_the_first_step_what_would_fail_later(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_toy_dataset()
    free = shutil.disk_usage(tmp_path)

    def refused(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            train(small_config(data, tmp_path / "run", **options))
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free._replace(free=10_000_000))
        assert "run: expected room for 1 checkpoints of 0." in refused()
        patch.setattr(rehearsal, "check_room", lambda _: None)
        message = refused(dataloader_num_workers=60, image_height=512, image_width=512)
        assert message.startswith("dataloader_num_workers: expected workers whose batches fit into /dev/shm (10 MB are")
        assert "--shm-size 8g or --ipc=host" in message
    message = "metric_for_best_model: expected a metric that is defined on the validation data, got APl, of which"
    assert refused(metric_for_best_model="APl").startswith(message)
    assert refused(max_hours=0.0001).startswith("max_hours: expected more than the ")  # no step before the evaluation
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "save_model_folder", fail_to_write)
        assert "the disk is full" in refused()
    cut_later(monkeypatch, *(data / "valid" / f"00{number}.png" for number in range(4)))
    assert refused().startswith("valid: expected at most 1 of 4 images that cannot be read (max_bad_images), got 2")


def fail_to_write(*args: object) -> None:
    raise CheckpointError("rehearsal: the disk is full")


def test_predict_split__keeps_unreadable_images_apart(
    model_folder: Path, make_toy_dataset: Callable[..., Path]
) -> None:
    from mask2former_dinov3.data.coco import read_coco
    from mask2former_dinov3.inference.predictor import load_model
    from support.formats import find_split

    root = make_toy_dataset()
    data = read_coco(find_split(root, "valid"))
    truncate(root / "valid" / "001.png")
    model, processor = load_model(str(model_folder), "cpu")
    unreadable: dict[int, str] = {}
    results = evaluate.predict_split(model, processor, data, batch_size=2, unreadable=unreadable)
    assert list(unreadable) == [11]
    assert {result["image_id"] for result in results} <= {10, 12, 13}
    with pytest.raises(DatasetError, match=r"001\.png"):
        evaluate.predict_split(model, processor, data)


def test_train__refuses_a_folder_in_use(toy_dataset: Path, tmp_path: Path) -> None:
    from mask2former_dinov3.folder_lock import hold_folder

    message = r"^output_dir: expected a folder that no other command is writing to, got .*/run, in use by"
    with hold_folder(tmp_path / "run", "output_dir", "train"), pytest.raises(OptionError, match=message):
        train(small_config(toy_dataset, tmp_path / "run"))


class _Frozen(torch.utils.data.Dataset[int]):
    """How many objects Python's collector leaves alone where a record is read."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return gc.get_freeze_count()


def test_start_workers__the_collector_leaves_alone_what_workers_share() -> None:
    before = gc.get_freeze_count()
    loader = torch.utils.data.DataLoader(_Frozen(), num_workers=1, multiprocessing_context="fork")
    counts = [int(count) for count in start_workers(loader)]
    assert min(counts) > 10_000  # all that was imported
    assert gc.get_freeze_count() <= before  # this process collects as before


def test_read_batches__a_dead_worker_ends_the_run_at_once(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two workers dies as in a full /dev/shm, with the lock of their queue; what was done is saved."""
    get = CocoInstanceDataset.__getitem__

    def die_later(dataset: CocoInstanceDataset, key: Any) -> Any:
        if key[0] > 0 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGBUS)
        return get(dataset, key)

    monkeypatch.setattr(CocoInstanceDataset, "__getitem__", die_later)
    options = {"max_train_steps": 100, "checkpointing_steps": None, "dataloader_num_workers": 2}
    with pytest.raises(UserError, match=r"expected processes that read images, got the death of one .*Bus error.*ipc"):
        train(small_config(toy_dataset, tmp_path / "run", **options))
    assert not multiprocessing.active_children()
    (saved,) = list_checkpoints(tmp_path / "run")
    assert find_damage(saved) is None
