"""Taps equal transformers' hidden states; loading explains a gate, a missing network and a wrong folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, DINOv3ViTConfig, DINOv3ViTModel, SwinBackbone, SwinConfig

from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.backbone import load_backbone, tapped_maps


def small_vit(**kwargs: object) -> DINOv3ViTConfig:
    return DINOv3ViTConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            **kwargs,
        }
    )


def randomised(model: DINOv3ViTModel) -> DINOv3ViTModel:
    """Every weight random, so that norms and biases count too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_taps__equal_dinov3_hidden_states(size: tuple[int, int], norm: bool) -> None:
    vit = randomised(DINOv3ViTModel(small_vit()))
    config = Mask2FormerDinov3Config(backbone_config=vit.config, backbone_norm=norm)
    assert config.backbone_taps == [2, 4, 6, 8]
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = tapped_maps(vit, config, pixel_values)
        # The reference: block after block by hand, and the model's own last state.
        tokens = vit.embeddings(pixel_values)
        position = vit.rope_embeddings(pixel_values)
        expected = []
        for number, block in enumerate(vit.model.layer, start=1):
            tokens = block(tokens, position_embeddings=position)
            if number in (2, 4, 6, 8):
                expected.append(vit.norm(tokens) if norm else tokens)
        last = vit(pixel_values).last_hidden_state
    h, w = size[0] // 16, size[1] // 16
    for got, want in zip(maps, expected, strict=True):
        assert got.shape == (2, 64, h, w)
        torch.testing.assert_close(got.flatten(2).transpose(1, 2), want[:, 5:], atol=1e-5, rtol=0)
    if norm:
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), last[:, 5:], atol=1e-5, rtol=0)


def test_presets__have_the_shapes_of_the_paper() -> None:
    for name, width, depth, heads in (("smallplus", 384, 12, 6), ("large", 1024, 24, 16), ("tiny", 192, 4, 3)):
        backbone = Mask2FormerDinov3Config.preset(name).backbone_config
        assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == (width, depth, heads)
        assert backbone.num_register_tokens == 4
    assert Mask2FormerDinov3Config.preset("smallplus").backbone_config.use_gated_mlp
    assert Mask2FormerDinov3Config.preset("large").backbone_taps == [6, 12, 18, 24]
    with pytest.raises(ValueError, match="tiny, smallplus, large"):
        Mask2FormerDinov3Config.preset("huge")


def test_tiny_preset__fits_in_16_mb_of_fp16() -> None:
    model = Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.preset("tiny"))
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 <= 16e6


def test_from_backbone__takes_the_weights_of_a_local_folder(tmp_path: Path) -> None:
    vit = randomised(DINOv3ViTModel(small_vit()))
    vit.save_pretrained(tmp_path / "vit")
    model = Mask2FormerDinov3ForInstanceSegmentation.from_backbone(str(tmp_path / "vit"), num_labels=3)
    assert model.config.backbone_source == str(tmp_path / "vit")
    assert model.config.num_labels == 3
    for name, tensor in vit.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name


def test_from_backbone__makes_swin_a_pyramid(tmp_path: Path) -> None:
    swin = SwinBackbone(SwinConfig(embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4))
    swin.save_pretrained(tmp_path)
    model = Mask2FormerDinov3ForInstanceSegmentation.from_backbone(str(tmp_path), num_labels=2).eval()
    assert model.config.neck == "none"
    assert model(torch.randn(1, 3, 64, 64)).masks_queries_logits.shape == (1, 100, 16, 16)


def test_load_backbone__refuses_another_kind_of_network(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bert'"):
        load_backbone(str(tmp_path))


def test_load_backbone__names_a_folder_without_weights(tmp_path: Path) -> None:
    small_vit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="could not be read"):
        load_backbone(str(tmp_path))


def test_load_backbone__counts_missing_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    DINOv3ViTModel(small_vit()).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    cut = {key: tensor for key, tensor in state.items() if ".7." not in key}
    save_file(cut, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{len(state) - len(cut)} weights are missing"):
        load_backbone(str(tmp_path))


class GatedHub(BaseHTTPRequestHandler):
    """The hub's answers for a gated repository: to a stranger 401, to an account without access 403."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        known = self.headers.get("Authorization") is not None
        body = json.dumps({"error": "Access to this repository is restricted."}).encode()
        self.send_response(403 if known else 401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this repository is restricted.")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def gated_hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GatedHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def message_of_load(endpoint: str, cache: Path, **environment: str) -> str:
    """What `load_backbone` says in a fresh process whose hub is `endpoint` (the client reads it on import)."""
    code = (
        "from mask2former_dinov3.model.backbone import load_backbone\n"
        "try:\n    load_backbone('facebook/dinov3-vits16plus-pretrain-lvd1689m')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**keep, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("environment", [{}, {"HF_TOKEN": "hf_of_somebody_without_access"}], ids=["401", "403"])
def test_load_backbone__explains_a_gated_repository(
    gated_hub: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    message = message_of_load(gated_hub, tmp_path, **environment)
    assert "gated" in message
    assert "https://huggingface.co/facebook/dinov3-vits16plus-pretrain-lvd1689m" in message
    assert "hf auth login" in message
    assert "local folder" in message


def test_load_backbone__explains_a_missing_network(tmp_path: Path) -> None:
    message = message_of_load("http://127.0.0.1:9", tmp_path)
    assert "cannot be reached" in message
    assert "local folder" in message
