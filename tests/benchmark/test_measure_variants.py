"""The verb `benchmark`: every row is measured or says why not; agreement and AP are those of other code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mask2former_dinov3.benchmark import asked_process, measure_variants, variant_process, variants
from mask2former_dinov3.benchmark.asked_process import AskedProcess, ProcessFailedError
from mask2former_dinov3.benchmark.row_table import benchmark_table
from mask2former_dinov3.benchmark.variant_process import Task, VariantRun, load_task
from mask2former_dinov3.benchmark.variants import REFERENCE, BenchmarkSettings, Variant, why_unavailable
from mask2former_dinov3.cli import main
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import OptionError, UserError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.sample_data import SAMPLE
from support.processes import PipedPython

Start = Callable[..., Any]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of variants are forks: each would otherwise import torch and transformers again."""
    monkeypatch.setattr(asked_process, "subprocess", SimpleNamespace(Popen=PipedPython, PIPE=subprocess.PIPE))


def task_of(model: Path, files: Path, canvas: tuple[int, int] = (128, 128)) -> Task:
    return Task(
        model=str(model),
        device="cpu",
        canvas=canvas,
        files=str(files),
        images=str(SAMPLE / "valid"),
        calibration_images=str(SAMPLE / "valid"),
        annotations=str(SAMPLE / "valid" / "_annotations.coco.json"),
        extra_images=None,
        batch_size=2,
    )


@pytest.mark.usefixtures("forks")
def test_measure_variants__has_a_row_for_each_with_numbers_or_the_reason(
    model_folder: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = toy_dataset / "valid"
    file = valid / "_annotations.coco.json"
    monkeypatch.setattr(variants, "is_installed", lambda module: module != "openvino")
    monkeypatch.setattr(variants, "cpu_has_bf16", lambda: False)
    settings = BenchmarkSettings(
        ((64, 64),), ("torch", "openvino"), device="cpu", batch_size=2, repeat=2, images=valid, annotations=file
    )
    steps: list[str] = []
    first, *others = measure_variants.measure_variants(model_folder, settings, steps.append)
    assert (first["runtime"], first["precision"], first["height"], first["width"]) == ("torch", "fp32", 64, 64)
    assert first["images_per_second"] == pytest.approx(2 / first["latency_p50_seconds"])
    assert first["latency_p95_seconds"] >= first["latency_p50_seconds"] > 0
    assert 0.05 < first["peak_gb"] < 4
    assert steps == ["64x64: torch in fp32"]
    assert {(row["runtime"], row["precision"]): row["note"] for row in others} == {
        ("torch", "fp16"): "fp16 needs a GPU",
        ("torch", "bf16"): "this CPU has no instructions for bf16",
        **{("openvino", one): "not installed: pip install openvino" for one in ("fp32", "bf16", "int8")},
    }
    network, processor = load_network(model_folder, "cpu")
    processor.size = {"height": 64, "width": 64}
    data = read_coco(Split("valid", file, valid))
    assert first["AP"] == pytest.approx(evaluate_coco(file, predict_split(network, processor, data))["AP"], abs=1e-9)


@pytest.mark.usefixtures("forks")
def test_measure_variants__keeps_measuring_after_a_failure_and_names_what_a_user_can_fix(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_variants, "why_unavailable", lambda variant, device: None)
    monkeypatch.setattr(measure_variants._CanvasRun, "_write_files", lambda self, precisions: ({"fp32": 1.0}, {}))
    settings = BenchmarkSettings(((64, 64),), ("onnxruntime",), ("fp32",), "cpu", repeat=1)
    first, second = measure_variants.measure_variants(model_folder, settings)
    assert first["latency_p50_seconds"] > 0
    assert "note" not in first
    assert "preprocessor_config.json" in second["note"]  # there is no file at all
    assert "latency_p50_seconds" not in second
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        list(measure_variants.measure_variants(model_folder, replace(settings, images=tmp_path / "empty")))


def test_compare__is_the_share_of_instances_with_a_counterpart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_process, "COMPARED_IMAGES", 2)
    task = task_of(SAMPLE / "model", tmp_path)
    reference = VariantRun(task, REFERENCE)
    assert reference.compare() == {}
    same = VariantRun(task, Variant("torch", "none"))
    found = same.compare()
    assert found["instances"] > 20
    assert found["same_instances"] == 1
    with torch.no_grad():
        for parameter in same.network.network.head.parameters():  # type: ignore[attr-defined]
            parameter.mul_(1.03)
    changed = same.compare()
    assert 0 < changed["same_instances"] < 1


def test_time__runs_the_batch_from_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = VariantRun(task_of(SAMPLE / "model", tmp_path, (64, 96)), REFERENCE)
    seen: list[tuple[int, ...]] = []
    forward = run.network.forward  # type: ignore[attr-defined]

    def watch(pixel_values: torch.Tensor, **options: Any) -> Any:
        seen.append(tuple(pixel_values.shape))
        return forward(pixel_values, **options)

    monkeypatch.setattr(run.network, "forward", watch)
    assert run.time()["seconds"] > 0
    assert seen == [(2, 3, 64, 96)]


def test_task__survives_the_command_line(tmp_path: Path) -> None:
    task = replace(task_of(SAMPLE / "model", tmp_path), variant=("torch", "fp32"))
    assert Task.read(task.words()[-1]).place == task.place
    assert set(load_task(replace(task, canvas=(32, 32)))) == {"time", "memory", "compare", "score"}


ANSWERS = """
import os, signal
from mask2former_dinov3.benchmark.asked_process import answer_questions
from mask2former_dinov3.errors import OptionError

def fail(): raise OptionError("size", "a size", "none")
def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def leave(): print("last words", file=__import__("sys").stderr); os._exit(3)
def noise(): print("a library talks"); return {"value": 1}
def own(): return {"pid": os.getpid()}
answer_questions(lambda: {"fail": fail, "crash": crash, "leave": leave, "noise": noise, "id": own})
"""


def test_asked_process__answers_errors_and_says_how_it_ended(tmp_path: Path) -> None:
    errors = tmp_path / "stderr"
    with AskedProcess(["-c", ANSWERS], errors) as process:
        assert process.ask("noise") == {"value": 1}
        with pytest.raises(ProcessFailedError, match=r"^size: expected a size, got none$") as told:
            process.ask("fail")
        assert told.value.of_user
        pid = process.ask("id")["pid"]  # it still answers
        assert pid == process.process.pid
        with pytest.raises(ProcessFailedError, match=r"^its process ended with 3: last words$"):
            process.ask("leave")
        with pytest.raises(ProcessFailedError):
            process.ask("noise")
    for question, reason in (("crash", f"ended with {-signal.SIGSEGV}"), ("nonsense", "nonsense")):
        with AskedProcess(["-c", ANSWERS], errors) as process, pytest.raises(ProcessFailedError, match=reason):
            process.ask(question)


def test_asked_process__ends_when_nobody_asks_any_more() -> None:
    process = AskedProcess(["-c", ANSWERS])
    started = process.process
    assert started.stdin is not None
    assert started.stdout is not None
    started.stdin.close()
    assert started.wait(60) == 0
    started.stdout.close()


def test_settings__refuse_what_cannot_be(tmp_path: Path) -> None:
    for wrong, option in (
        ({"canvases": ((64, 65),)}, "size"),
        ({"runtimes": ("tensorrt",)}, "runtime"),
        ({"precisions": ("fp8",)}, "precision"),
        ({"repeat": 0}, "repeat"),
        ({"batch_size": 0}, "batch_size"),
        ({"annotations": tmp_path}, "images"),
        ({"annotations": tmp_path / "none.json", "images": tmp_path}, "annotations"),
        ({"images": tmp_path / "none"}, "images"),
    ):
        values: dict[str, Any] = wrong
        with pytest.raises(OptionError) as error:
            BenchmarkSettings(**values)
        assert error.value.option == option


def test_variants__start_with_torch_in_float32_whatever_is_chosen() -> None:
    settings = BenchmarkSettings(runtimes=("openvino", "torch-compiled"), precisions=("int8", "fp32"))
    pairs = [(one.runtime, one.precision) for one in settings.variants()]
    compiled = [("torch-compiled", "fp32")]
    assert pairs == [("torch", "fp32"), *compiled, ("openvino", "fp32"), ("openvino", "int8")]
    cuda = torch.device("cuda")
    assert why_unavailable(Variant("torch", "fp16"), cuda) is None
    assert why_unavailable(Variant("openvino", "fp32"), cuda) == "measured on a CPU only: add --device cpu"


def test_benchmark__ctrl_c_keeps_the_rows_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"height": 64, "width": 96, "runtime": "torch", "precision": "fp32", "latency_p50_seconds": 0.01234}

    def interrupted(*_: object) -> Iterator[dict[str, Any]]:
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr(measure_variants, "measure_variants", interrupted)
    file = tmp_path / "rows.json"
    assert main(["benchmark", "--model", "m", "--device", "cpu", "--json", str(file)]) == 130
    assert "| 64x96  | torch   | fp32      | —        | 12.34" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["rows"] == [row]
    assert content["machine"]["torch"] == str(torch.__version__)


def test_benchmark_table__shows_ap_and_reasons_only_where_there_are_some() -> None:
    row = {"height": 64, "width": 64, "runtime": "torch", "precision": "fp32"}
    assert "AP" not in benchmark_table([row])
    assert "note" not in benchmark_table([row])
    table = benchmark_table(
        [row | {"AP": 0.5, "same_instances": 0.975, "instances": 40}, row | {"note": "not installed"}]
    )
    head, _, first, second = table.splitlines()
    assert "AP" in head
    assert "| 0.5000 " in first
    assert "| 97.5% of 40 " in first
    assert second.endswith("| not installed |")


def test_imports__of_the_verb_are_light() -> None:
    code = "import sys; import mask2former_dinov3.cli.benchmark_options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
