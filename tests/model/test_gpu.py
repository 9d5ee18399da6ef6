"""The network, its losses and a training run on a CUDA device, against the same on the CPU. Run by hand, as all that is
marked `gpu`: `make test TESTS='-m gpu'`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from support.models import labels, mean_of_50_losses, padded_mask, small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # other versions of everything may be installed beside a GPU
]


@pytest.fixture(autouse=True)
def _plain_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32 in convolutions, which is torch's default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def same_points(*size: int, device: torch.device) -> Tensor:
    """The same numbers on every device."""
    return torch.rand(*size, generator=torch.Generator().manual_seed(size[1])).to(device)


def results(model: Mask2FormerDinov3ForInstanceSegmentation, device: str, counts: list[int]) -> dict[str, Tensor]:
    """Logits, losses and gradients of one padded batch, on the CPU again."""
    model = model.to(device).eval()  # in train mode DINOv3 jitters its positions
    model.zero_grad()
    model.criterion.rand = same_points
    batch = labels(counts, device=device)
    images = torch.randn(len(counts), 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(device)
    output = model(images, pixel_mask=padded_mask(len(counts), 64, 96, (64, 80)).to(device), **batch)
    output.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {"classes": output.class_queries_logits, "masks": output.masks_queries_logits, **output.loss_dict}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("neck", ["pyramid", "plain", "seeds"])
@pytest.mark.parametrize("counts", [[3, 2], [0, 9]], ids=["some", "none-and-too-many"])
def test_model__equals_the_cpu(neck: str, counts: list[int]) -> None:
    model = small_model(neck)
    expected, got = results(model, "cpu", counts), results(model, "cuda", counts)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        difference = (got[name] - value).abs().max()
        assert difference <= 2e-4 * max(1.0, float(value.abs().max())), f"{name}: {difference}"


def test_mixed_precision__trains_50_steps_close_to_float32() -> None:
    full = mean_of_50_losses(None, "cuda")
    for dtype in (torch.bfloat16, torch.float16):
        assert abs(mean_of_50_losses(dtype, "cuda") - full) / full < 0.02, dtype


def test_compile__inductor_gives_the_logits_and_gradients() -> None:
    model = small_model().cuda()
    model.freeze_backbone()
    model.train()
    model.criterion.rand = same_points
    images = torch.randn(2, 3, 64, 96, device="cuda")
    compiled: Any = torch.compile(model)
    for counts in ([3, 2], [1, 4], [0, 0]):
        batch = labels(counts, device="cuda")
        gradients = []
        networks: list[Any] = [model, compiled]
        for network in networks:
            model.zero_grad()
            network(images, **batch).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-3, rtol=1e-3)
    model.eval()
    with torch.no_grad():
        whole: Any = torch.compile(model, fullgraph=True)
        got, expected = whole(images), model(images)
    torch.testing.assert_close(got.masks_queries_logits, expected.masks_queries_logits, atol=1e-3, rtol=1e-3)


def test_gradient_checkpointing__takes_less_memory() -> None:
    def peak(checkpointing: bool) -> int:
        config = Mask2FormerDinov3Config.preset("tiny", num_labels=3, train_num_points=512)
        model = Mask2FormerDinov3ForInstanceSegmentation(config).cuda().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        images, batch = torch.randn(4, 3, 512, 512, device="cuda"), labels([3, 2, 1, 2], 512, 512, "cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(images, **batch).loss.backward()
        return torch.cuda.max_memory_allocated() - before

    peak(False)  # what the libraries take once
    assert peak(True) < 0.9 * peak(False)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_train__a_run_and_its_resumption(precision: str, toy_dataset: Path, tmp_path: Path) -> None:
    words = ["train", "--dataset_name", str(toy_dataset), "--output_dir", str(tmp_path / "run"), "--backbone", "tiny"]
    words += ["--image_height", "96", "--image_width", "96", "--mixed_precision", precision, "--logging_steps", "1"]
    words += ["--checkpointing_steps", "2", "--per_device_train_batch_size", "2", "--num_queries", "20"]
    for more in (["--max_train_steps", "4"], ["--max_train_steps", "6", "--resume_from_checkpoint", "latest"]):
        command = [sys.executable, "-m", "mask2former_dinov3", *words, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert any("AP" in line for line in lines)
