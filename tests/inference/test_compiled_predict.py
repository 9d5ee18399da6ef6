"""A compiled network: one graph, the results of the eager one, and eager work where compiling fails.

The graphs are those of torch's tracer; they run eagerly here, because compiling them takes minutes on a CPU.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_dinov3.cli import main
from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.inference import compiled_predict
from mask2former_dinov3.inference.compiled_predict import CompiledPredict, compile_network, without_compiling
from mask2former_dinov3.inference.onnx_model import LOGITS
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from support.models import labels, padded_mask, small_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within torch
Model = Mask2FormerDinov3ForInstanceSegmentation
SIDE = 64


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of operations of the graphs that are compiled; each graph is run as it is."""
    torch.compiler.reset()
    found: list[int] = []

    def backend(graph: Any, inputs: object) -> Any:
        found.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(compiled_predict, "BACKEND", backend)
    return found


def pair_of_models() -> tuple[Model, Model]:
    """An eager and a compiled network with the same weights."""
    eager = small_model(encoder_layers=1, decoder_layers=2).eval()
    compiled = copy.deepcopy(eager)
    compile_network(compiled)
    return eager, compiled


def same_logits(eager: Model, compiled: Model, batch: int, height: int = SIDE, width: int = SIDE) -> bool:
    pixels, mask = torch.randn(batch, 3, height, width), padded_mask(batch, height, width, (height, width - 16))
    with torch.no_grad():
        found = [model(pixels, pixel_mask=mask) for model in (eager, compiled)]
    return all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in LOGITS)


@pytest.mark.long
def test_compile_network__predicts_with_one_graph_and_says_how_long_it_took(
    graphs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    eager, compiled = pair_of_models()
    with caplog.at_level(logging.INFO, logger=compiled_predict.__name__):
        assert all(same_logits(eager, compiled, 2) for _ in range(3))
    assert len(graphs) == 1
    assert graphs[0] > 300  # the whole network
    said = [record.getMessage() for record in caplog.records if record.name == compiled_predict.__name__]
    assert said[0].startswith("torch_compile: compiling, which takes a minute or more (cached in ")
    assert said[1].startswith(f"torch_compile: compiled prediction for batches of 2x3x{SIDE}x{SIDE} in ")
    assert len(said) == 2


@pytest.mark.long
def test_compile_network__fills_smaller_batches_up(graphs: list[int]) -> None:
    eager, compiled = pair_of_models()
    assert same_logits(eager, compiled, 1)
    assert same_logits(eager, compiled, 4)  # no graph holds them
    assert all(same_logits(eager, compiled, batch) for batch in (3, 1, 2))
    assert len(graphs) == vars(compiled)["predict"].graphs == 2


@pytest.mark.long
def test_compile_network__cuts_all_outputs_of_a_filled_batch(graphs: list[int]) -> None:
    eager, compiled = pair_of_models()
    wanted = {"output_auxiliary_logits": True, "output_hidden_states": True, "output_attentions": True}
    pixels = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        compiled(pixels, **wanted)
        found, expected = (model(pixels[:2], return_dict=False, **wanted) for model in (compiled, eager))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1


@pytest.mark.long
def test_compile_network__training_has_the_losses_and_gradients_of_eager(graphs: list[int]) -> None:
    eager, compiled = pair_of_models()
    for model in (eager, compiled):
        model.freeze_backbone()
        model.train()
    for counts in ([3, 2], [1, 4], [0, 0], [2]):
        batch, pixels = labels(counts, SIDE, SIDE), torch.randn(len(counts), 3, SIDE, SIDE)
        losses = []
        for model in (eager, compiled):
            torch.manual_seed(0)
            model.zero_grad()
            output = model(pixels, **batch)
            output.loss.backward()
            losses.append(output.loss)
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
        theirs = dict(eager.named_parameters())
        for name, parameter in compiled.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)
    assert len(graphs) == 1


def test_compile_network__leaves_weights_copies_and_pickles_as_they_are() -> None:
    eager, compiled = pair_of_models()
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for another in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        predict = vars(another)["predict"]
        assert isinstance(predict, CompiledPredict)
        assert predict.network is another


def test_compile_network__saves_what_the_eager_network_saves(tmp_path: Path) -> None:
    eager, compiled = pair_of_models()
    for model, name in ((eager, "eager"), (compiled, "compiled")):
        model.save_pretrained(tmp_path / name)
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("eager", "compiled")]
    assert files[0] == files[1]


def test_compile_network__goes_on_without_compiling_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager, compiled = pair_of_models()
    calls = 0

    def fail(*_: object, **__: object) -> Any:
        nonlocal calls
        calls += 1
        from torch._dynamo.exc import BackendCompilerFailed

        raise BackendCompilerFailed("backend", RuntimeError("no C++ compiler found\nset CXX"), None)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    assert same_logits(eager, compiled, 1)
    assert same_logits(eager, compiled, 2)
    assert calls == 1
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("torch_compile: compiling failed (")
    assert "no C++ compiler found" in warning
    assert warning.endswith("; going on without it")


def test_compile_network__says_once_that_torchs_limit_is_reached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    eager, compiled = pair_of_models()
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def fake(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        def run(pixels: torch.Tensor, *others: object) -> Any:
            if pixels.shape[-1] != SIDE:
                raise FailOnRecompileLimitHit("recompile_limit reached with fullgraph=True")
            return function(pixels, *others)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    for width in (SIDE, 96, 128, 96, SIDE):
        assert same_logits(eager, compiled, 1, SIDE, width)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"batches of 1x3x{SIDE}x96 and others that need a further graph are computed without compiling" in warning


def test_compile_network__other_errors_are_those_of_the_network(graphs: list[int]) -> None:
    _, compiled = pair_of_models()
    with pytest.raises(ValueError, match="expected a height that is a multiple of 32, got 65"):
        compiled(torch.zeros(1, 3, 65, 64))
    assert graphs == []


def test_without_compiling__runs_eagerly_and_ends(graphs: list[int]) -> None:
    eager, compiled = pair_of_models()
    with without_compiling(compiled), without_compiling(eager):
        assert same_logits(eager, compiled, 1)
    assert graphs == []
    assert not vars(compiled)["predict"].is_paused
    assert "predict" not in vars(eager)


@pytest.mark.parametrize(
    ("words", "value"), [("", False), ("--compile", True), ("--compile false", False), ("--torch-compile", True)]
)
def test_torch_compile__is_an_option_with_a_short_flag(words: str, value: bool) -> None:
    config, _ = load_config(None, ["--dataset_name", "d", "--output_dir", "o", *words.split()])
    assert config.torch_compile is value


def test_compile__is_refused_for_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.png"
    image.touch()
    assert main(["predict", "--compile", "--model", "m.onnx", "--output", str(tmp_path / "out"), str(image)]) == 1
    assert "--compile: expected a model folder, which torch runs, got the .onnx file m.onnx" in capsys.readouterr().err
