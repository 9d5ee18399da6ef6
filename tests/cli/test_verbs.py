"""The command line: exit codes, one clear message, and help that loads nothing heavy."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.cli import demo as demo_module
from mask2former_dinov3.cli import main
from mask2former_dinov3.cli import verbs as cli
from mask2former_dinov3.cli.arguments import SAVEABLE
from mask2former_dinov3.cli.demo import choose_threshold, demo, find_free_folder
from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.inference.files.writers import OUTPUTS
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.sample_data import SAMPLE

VERBS = (
    "train",
    "evaluate",
    "predict",
    "check-data",
    "compare",
    "rank-images",
    "convert-data",
    "convert",
    "export",
    "check-export",
    "benchmark",
    "serve",
    "batch-predict",
    "push",
    "demo",
)
VALID = SAMPLE / "valid" / "_annotations.coco.json"

# Fails on import of a heavy or optional module, then prints the help of every verb.
HELP_WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " must not be imported for --help")

sys.meta_path.insert(0, Blocked())
from mask2former_dinov3.cli import main
for words in (["--help"], ["--version"], *([verb, "--help"] for verb in {verbs})):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
"""


def test_main__help_of_every_verb_loads_nothing_heavy() -> None:
    blocked = {"torch", "transformers", "numpy", "scipy", "cv2", "PIL", "accelerate", "tqdm", "faster_coco_eval"}
    code = HELP_WITHOUT.format(blocked=blocked, verbs=VERBS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"usage: mask2former-dinov3 {verb}" in done.stdout
    assert "--learning-rate" in done.stdout  # the help of train lists the fields of the configuration
    assert done.stdout.count("written with dashes or with underscores") == 1 + len(VERBS)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "nonsense",
        "demo --unknown",
        "predict --output x image.png",
        "predict --model m image.png",
        "predict --model m --output x --batch-size 0 image.png",
        "evaluate --annotations a --output o",
        "evaluate --annotations a --output o --model m",
        "evaluate --annotations a --output o --predictions p --model m",
        "evaluate --annotations a --output o --predictions p --model m --images i",
        "evaluate --output o --predictions p",
        "check-data",
        "push --model m",
        "serve",
        "serve --model m --max-queue 0",
        "export --model m",
        "export --model m --output m.onnx --size 64",
        "export --model m --output m.onnx --size 64 64 --dynamic",
        "export --model m --output m.onnx --precision bf16",
        "benchmark",
        "benchmark --model m --size 64",
        "benchmark --model m --runtime tensorrt",
    ],
)
def test_main__wrong_usage_exits_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    usage, _, message = capsys.readouterr().err.rpartition("error: ")
    assert usage.startswith("usage: mask2former-dinov3")
    assert "error" not in usage
    assert message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "train --learning_rte 1 --output_dir o --dataset_name d",
            "--learning_rte: unknown option; nearest is --learning_rate",
        ),
        ("train --config none.json", "none.json: expected a JSON object of options, got no such file"),
        ("train --output_dir o --dataset_name no_such_folder --backbone tiny", "no_such_folder"),
        ("evaluate --annotations none.json --predictions p.json --output o", "none.json"),
        ("evaluate --annotations none.json --images i --model no_such_model --output o", "none.json"),
        ("predict --model no_such_model --output o none.png", "none.png"),
        ("check-data no_such_folder", "no_such_folder"),
        ("serve --model no_such_model --port 0", "no_such_model: expected a model folder"),
        ("serve --model no_such_model --timeout 0", "--timeout: expected a number of seconds above 0, got 0"),
        ("export --model no_such_folder --output m.onnx", "no_such_folder: expected a model folder"),
        (
            "export --model no_such_folder --output m.onnx --precision int8",
            "--calibration-images: expected a folder of images",
        ),
        ("predict --model none.onnx --output o none.png", "none.png"),
        ("benchmark --model no_such_folder", "no_such_folder: expected a model folder"),
        ("benchmark --model m --size 64 65", "--size: expected a multiple of 16, got 65"),
        ("benchmark --model m --annotations a.json", "--images: expected the folder with the images"),
        ("push --model no_such_folder --repo user/name", "no_such_folder: expected a model folder"),
        ("convert '' --output o", "SOURCE: expected a value, got none"),
        ("push --model m --repo=", "--repo: expected a value, got none"),
        ("predict --model '' --output o a.png", "--model: expected a value, got none"),
        ("predict --model m --output o --device '' a.png", "--device: expected a value, got none"),
        ("predict --model m --output o ''", "INPUT: expected a value, got none"),
        (
            "predict --model m --output o none.png",
            "INPUT: expected at least one image, got none:\n  none.png: expected im",
        ),
        ("check-data no_such_folder --json .", "--json: expected a file to write, got ., a folder"),
        ("demo --output c.json/x", "c.json"),
    ],
)
def test_main__users_mistake_exits_with_1_and_one_message(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text("{}")
    assert main(shlex.split(words)) == 1
    captured = capsys.readouterr()
    shown = captured.err
    assert message in shown
    assert captured.out == ""
    assert shown.count("error: ") == 1
    assert all(line.startswith("note: ") for line in shown.partition("error: ")[0].splitlines())
    assert "Error" not in shown  # a class of Python
    assert "Traceback" not in shown


def test_main__traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2F_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"none\.json"):
        main(["train", "--config", "none.json"])


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, verb: str = "demo") -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, f"run_{verb.replace('-', '_')}", run)


def test_main__interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt("stopped at step 3; resume with --resume-from-checkpoint latest"))
    assert main(["demo"]) == 130
    assert "stopped at step 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("predict --model m --output o x", "predict in tiles with --tile, or lower --batch-size"),
        ("evaluate --model m --images i --annotations a --output o", "lower --batch-size"),
        ("export --model m --output o", "lower --size"),
        ("demo", "free memory on the device"),
        (
            "train --config c",
            "lower --per-device-train-batch-size and raise --gradient-accumulation-steps by the same factor, or lower "
            "--image-height and --image-width, or set --gradient-checkpointing true",
        ),
    ],
)
def test_main__out_of_memory_names_the_options_to_change(
    words: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class OutOfMemoryError(RuntimeError):  # the name of torch's own, without torch
        pass

    fail_with(monkeypatch, OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nmore"), words.split()[0])
    assert main(words.split()) == 1
    first = "out of memory on the device: CUDA out of memory. Tried to allocate 3 GiB"
    assert capsys.readouterr().err == f"error: {first}; {advice}\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tr"
            ),
            "can't allocate memory: you tr",
        ),
        (MemoryError("Unable to allocate 9 TiB for an array"), "Unable to allocate 9 TiB for an array"),
        (MemoryError(), "no memory left"),
    ],
)
def test_main__out_of_memory_on_a_cpu_is_told_too(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error, "predict")
    assert main(["predict", "--model", "m", "--output", "o", "x"]) == 1
    advice = "predict in tiles with --tile, or lower --batch-size"
    assert capsys.readouterr().err == f"error: out of memory on the device: {reason}; {advice}\n"


@pytest.mark.parametrize("error", [RuntimeError("a fault of this package"), ValueError("shapes differ"), KeyError("x")])
def test_main__our_own_errors_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        main(["demo"])
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "out/a.json"), "out/a.json: permission denied"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (FileExistsError(17, "File exists", "a", None, "b"), "a and b: file exists"),
        (OSError("the hub has no such model"), "the hub has no such model"),
        (DatasetError("a.png: cut short"), "a.png: cut short"),
    ],
)
def test_main__files_are_named_with_a_reason_in_plain_words(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, error)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("words", "option", "name"),
    [
        ("predict --model m --output o --max-detections 3 x", "max_detections", "--max-detections"),
        ("predict --model m --output o --max_detections=3 x", "max_detections", "--max_detections"),
        ("predict --model m --output o x", "max_detections", "--max-detections"),
        ("predict --model m --output o x", "inputs", "INPUT"),
        ("predict --model m --output o x", "image_height", "image_height"),  # none of this verb
        ("convert nothing --output o", "source", "SOURCE"),
        ("check-data nothing", "dataset_name", "PATH"),
        ("export --model m --output o --size 100 96", "size", "--size"),
        ("train --config c.json --head x", "head", "--head"),
        ("train --config c.json --backbone-norm", "backbone_norm", "--backbone-norm"),
        ("train --config c.json", "head", "c.json: head"),
        ("train --config c.json", "seed", "seed"),  # neither a flag nor in the file
    ],
)
def test_main__an_option_is_named_as_typed(
    words: str,
    option: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text('{"head": "y"}')
    fail_with(monkeypatch, OptionError(option, "a good value", 3, "give one"), words.split()[0])
    assert main(words.split()) == 1
    assert capsys.readouterr().err == f"error: {name}: expected a good value, got 3; give one\n"


def test_run_train__second_process_repeats_no_configuration_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--config", "none.json"]) == 1
    assert capsys.readouterr().err == ""


def test_run_check_data__sample_is_clean_and_the_report_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(SAMPLE), "--json", str(tmp_path / "new" / "report.json")]) == 0
    assert json.loads((tmp_path / "new" / "report.json").read_text())["errors"] == 0
    assert "nucleus" in capsys.readouterr().out


def test_run_check_data__fault_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_sample(tmp_path)
    next((tmp_path / "train").glob("*.png")).unlink()
    assert main(["check-data", str(tmp_path)]) == 1
    assert ".png" in capsys.readouterr().out


def test_run_evaluate__scores_a_predictions_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.json").write_text("[]")
    words = ["--annotations", str(VALID), "--predictions", str(tmp_path / "none.json"), "--output", str(tmp_path / "o")]
    assert main(["evaluate", *words]) == 0
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["AP"] == 0
    assert "boundary_AP" in capsys.readouterr().out


def test_print_metrics__undefined_is_a_word_and_notes_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    metrics: dict[str, Any] = {"AP": 0.25, "APl": -1.0, "per_class": {"date": 0.5, "fig": 0.0}}
    cli.print_metrics({**metrics, "images": 2, "detections": 9, "max_detections": 100, "notes": ["mind this"]})
    said = capsys.readouterr().out
    for line in ("AP           0.2500", "APl          undefined", "  date  0.5000", "note: mind this"):
        assert line in said


def test_find_free_folder__never_takes_a_folder_with_content(tmp_path: Path) -> None:
    assert find_free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    assert find_free_folder(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "file").touch()
    assert find_free_folder(tmp_path / "demo") == tmp_path / "demo-3"


@pytest.mark.parametrize(
    ("scores", "expected"), [([], (0.5, 0)), ([0.9, 0.8, 0.01], (0.5, 2)), ([0.31239, 0.2, 0.1], (0.2, 2))]
)
def test_choose_threshold__as_many_as_there_are_instances(
    scores: list[float], expected: tuple[float, int], tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"score": score} for score in scores]))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [{}, {}]}))
    assert choose_threshold(tmp_path / "p.json", tmp_path / "a.json") == expected


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_demo__stops_at_the_step_that_fails(failing: int, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    said: list[str] = []

    def run(words: list[str]) -> int:
        commands.append(words)
        return 7 if len(commands) > failing else 0

    assert demo(tmp_path / "demo", say=said.append, run=run) == 7
    assert [words[0] for words in commands] == ["check-data", "evaluate", "train", "evaluate"][: failing + 1]
    assert len(said) == failing + 1
    assert f"$ mask2former-dinov3 {commands[-1][0]}" in said[-1]


def small_sample(folder: Path) -> None:
    """The sample with three images a split, and two optimiser steps."""
    for split in ("train", "valid"):
        coco = json.loads((SAMPLE / split / "_annotations.coco.json").read_text())
        coco["images"] = [image for image in coco["images"] if image["height"] == 256][:3]
        ids = {str(image["id"]) for image in coco["images"]}
        coco["annotations"] = [one for one in coco["annotations"] if str(one["image_id"]) in ids]
        (folder / split).mkdir(parents=True)
        (folder / split / "_annotations.coco.json").write_text(json.dumps(coco))
        for image in coco["images"]:
            shutil.copy(SAMPLE / split / image["file_name"], folder / split)
    shutil.copytree(SAMPLE / "model", folder / "model")
    config = json.loads((SAMPLE / "train_args.json").read_text())
    small = {"max_train_steps": 2, "num_warmup_steps": 0, "checkpointing_steps": 2, "dataloader_num_workers": 0}
    (folder / "train_args.json").write_text(json.dumps({**config, **small, "per_device_train_batch_size": 1}))


def test_run_predict__passes_checked_settings_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    class Summary:
        failed: tuple[str, ...] = ()
        failed_earlier = 0

        def text(self) -> str:
            return "done"

    def record(*arguments: object, **options: object) -> Summary:
        calls.append((arguments, options))
        return Summary()

    monkeypatch.setattr("mask2former_dinov3.inference.files.predict_files.predict_files", record)
    monkeypatch.setattr("mask2former_dinov3.cluster.job.batch_predict", record)
    options = "--model m --output o --threshold 0.25 --tile 512 --overlap 0.1 --batch_size 3 --max-detections 7 a b"
    wanted = InferenceSettings(threshold=0.25, tile=512, overlap=0.1, batch_size=3, max_detections=7)
    for verb, output in (("predict", Path("o")), ("batch-predict", "o")):
        assert main([verb, *options.split()]) == 0
        arguments, given = calls.pop()
        assert arguments == ("m", ["a", "b"], output)
        assert given["settings"] == wanted
        for option in ("--threshold=nan", "--threshold=5", "--overlap=0.9", "--tile=1"):
            capsys.readouterr()
            assert main([verb, *options.split(), option]) == 1
            assert capsys.readouterr().err.startswith(f"error: {option.partition('=')[0]}: expected ")
        assert calls == []


def test_saveable__is_what_predict_can_write() -> None:
    """`--help` may not import the writers."""
    assert SAVEABLE == OUTPUTS


def test_run_demo__whole_path_on_a_small_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_sample(tmp_path / "sample")
    monkeypatch.setattr(demo_module, "SAMPLE", tmp_path / "sample")
    output = tmp_path / "run"
    assert main(["demo", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "COCO mask AP" in said
    assert str(output / "prediction" / "overlays") in said
    assert {path.name for path in output.iterdir()} >= {"best", "last", "metrics.jsonl", "train_config.json"}
    assert (output / "evaluation" / "metrics.json").is_file()
    assert len(list((output / "prediction" / "overlays").iterdir())) == 3
