"""Where a backbone comes from: every format, the mean and std that travel along, and what is said when it fails."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    SwinConfig,
    SwinForImageClassification,
)

from mask2former_dinov3.model.configuration import IMAGENET
from mask2former_dinov3.weights import from_backbone
from mask2former_dinov3.weights.backbones import SATELLITE, load_backbone, pixel_statistics
from mask2former_dinov3.weights.formats import from_origin
from support.models import hf_mask2former, small_convnext, small_vit
from support.origins import as_timm, small_state
from support.processes import run_python

META = "meta dinov3_vits16plus"


@pytest.fixture(scope="module")
def meta_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pth` file as Meta sends it. Not to be changed."""
    path = tmp_path_factory.mktemp("meta") / "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth"
    torch.save(small_state(META), path)
    return path


def assert_same_weights(loaded: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    own = loaded.state_dict()
    assert own.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(own[key], tensor), key


def test_load_backbone__reads_metas_file(meta_file: Path) -> None:
    assert_same_weights(load_backbone(str(meta_file)), from_origin(small_state(META))[1])
    assert pixel_statistics(str(meta_file)) == IMAGENET


@pytest.mark.parametrize("around", ["state_dict", "teacher", "model"])
def test_load_backbone__takes_a_backbone_out_of_a_training_script_s_file(tmp_path: Path, around: str) -> None:
    state = {f"backbone.{key}": x for key, x in small_state(META).items()} | {"dino_head.weight": torch.zeros(1)}
    torch.save({around: state, "iteration": 7}, tmp_path / "teacher_checkpoint.pth")
    assert_same_weights(load_backbone(str(tmp_path / "teacher_checkpoint.pth")), from_origin(small_state(META))[1])


def test_load_backbone__reads_timms_folder_and_file(tmp_path: Path) -> None:
    timm = as_timm(small_state(META))
    save_file(timm, tmp_path / "model.safetensors")
    expected = from_origin(timm)[1]
    assert_same_weights(load_backbone(str(tmp_path / "model.safetensors")), expected)
    assert_same_weights(load_backbone(str(tmp_path)), expected)  # the only file of a folder
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    described = {"architecture": "vit_small_plus_patch16_dinov3_qkvb", "pretrained_cfg": own}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert_same_weights(load_backbone(str(tmp_path)), expected)
    assert pixel_statistics(str(tmp_path)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_load_backbone__reads_convnexts_of_all_origins(tmp_path: Path) -> None:
    state = small_state("meta dinov3_convnext_tiny")
    torch.save(state, tmp_path / "meta.pth")
    save_file(as_timm(state), tmp_path / "timm.safetensors")
    expected = {key: x for key, x in from_origin(state)[1].items() if not key.startswith("layer_norm.")}
    for name in ("meta.pth", "timm.safetensors"):
        assert_same_weights(load_backbone(str(tmp_path / name)), expected)
        model = from_backbone(str(tmp_path / name), num_labels=2).eval()
        assert model.config.neck == "none"
        assert model(torch.randn(1, 3, 64, 96)).masks_queries_logits.shape == (1, 100, 16, 24)
    whole = DINOv3ConvNextModel(small_convnext())
    whole.save_pretrained(tmp_path / "transformers")
    kept = {key: x for key, x in whole.state_dict().items() if not key.startswith("layer_norm.")}
    assert_same_weights(load_backbone(str(tmp_path / "transformers")), kept)


def test_load_backbone__takes_swin_from_a_classifier_and_out_of_a_mask2former(tmp_path: Path) -> None:
    """As in microsoft/swin-small-... and facebook/mask2former-swin-...-coco-instance."""
    config = SwinConfig(embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    classifier = SwinForImageClassification(config)
    classifier.save_pretrained(tmp_path / "swin")
    swin = load_backbone(str(tmp_path / "swin"))
    for key, tensor in classifier.swin.state_dict().items():
        if key.startswith("encoder."):
            assert torch.equal(swin.state_dict()[f"swin.{key}"], tensor), key
    theirs = hf_mask2former()
    theirs.save_pretrained(tmp_path / "mask2former")
    encoder = theirs.model.pixel_level_module.encoder
    assert_same_weights(load_backbone(str(tmp_path / "mask2former")), encoder.state_dict())
    model = from_backbone(str(tmp_path / "mask2former"), num_labels=2).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixel_values).feature_maps
        for got, want in zip(model.feature_maps(pixel_values), expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "vit-l-eadcf0ff.pth"])
def test_pixel_statistics__a_satellite_file_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    torch.save(small_state(META), tmp_path / name)
    assert pixel_statistics(str(tmp_path / name)) == SATELLITE


def test_pixel_statistics__a_satellite_vit_l_is_known_by_its_untied_norm(tmp_path: Path) -> None:
    torch.save({"local_cls_norm.weight": torch.ones(1024), "norm.weight": torch.ones(1024)}, tmp_path / "renamed.pth")
    assert pixel_statistics(str(tmp_path / "renamed.pth")) == SATELLITE
    torch.save({"local_cls_norm.weight": torch.ones(4096)}, tmp_path / "renamed.pth")  # every 7B has one
    assert pixel_statistics(str(tmp_path / "renamed.pth")) == IMAGENET


class Malicious:
    """Unpickled freely, this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("whole", [True, False], ids=["torch", "pickle"])
def test_load_backbone__runs_nothing_that_a_file_brings(tmp_path: Path, whole: bool) -> None:
    file, trace = tmp_path / "weights.pth", tmp_path / "trace"
    if whole:
        torch.save({"cls_token": Malicious(trace)}, file)
    else:
        file.write_bytes(pickle.dumps({"cls_token": Malicious(trace)}, protocol=2))
    with pytest.raises(
        ValueError,
        match=r"expected a plain state dict, got .* more than weights \(.*system.*\); none of it was run",
    ):
        load_backbone(str(file))
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.5, 0.999])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_load_backbone__says_that_a_file_is_cut(tmp_path: Path, kind: str, share: float) -> None:
    file = tmp_path / f"cut.{kind}"
    if kind == "pth":
        torch.save(small_state(META), file)
    else:
        save_file(as_timm(small_state(META)), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(
        ValueError,
        match=rf"cut\.{kind}: expected a whole file, got one that is cut or damaged, [\d,]+ bytes .* fetch it again",
    ):
        load_backbone(str(file))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "got an empty file"),
        (b"<!DOCTYPE html><html>", "got a web page; links to Meta's weights expire"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "got a pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n", r"a file that begins with b'\\x89PNG"),
        (b'{"a": 1}', "got JSON"),
    ],
)
def test_load_backbone__says_what_a_wrong_file_looks_like(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        load_backbone(str(tmp_path / "w.pth"))


def test_load_backbone__says_what_other_weights_look_like(tmp_path: Path) -> None:
    torch.save({"pos_embed": torch.zeros(1), "cls_token": torch.zeros(1)}, tmp_path / "dinov2.pth")
    with pytest.raises(
        ValueError, match="timm's DINOv3 ConvNeXt, got a ViT with position embeddings of a fixed size, such as DINOv2"
    ):
        load_backbone(str(tmp_path / "dinov2.pth"))
    torch.save({"epoch": 3, "args": "x"}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected a state dict, names and tensors, got a dict of 'epoch', 'args'"):
        load_backbone(str(tmp_path / "other.pth"))


def test_load_backbone__a_path_that_is_not_there_is_no_hub_id() -> None:
    for path in ("weights/dinov3.pth", "./folder", "/a/b/c"):
        with pytest.raises(ValueError, match=f"^{path}: expected a folder, a file of weights or a hub id, got none; "):
            load_backbone(path)


def test_load_backbone__wants_one_file_where_there_is_no_config(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save(small_state(META), tmp_path / name)
    with pytest.raises(ValueError, match=r"got no config.json and 2 files of weights \(a.pth, b.pth\)"):
        load_backbone(str(tmp_path))


def test_load_backbone__refuses_another_kind_of_network(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="or a Swin, got model_type 'bert' in config"):
        load_backbone(str(tmp_path))


def test_load_backbone__names_a_folder_without_weights(tmp_path: Path) -> None:
    small_vit().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors or pytorch_model\.bin, got no file of weights; copy the file"
    ):
        load_backbone(str(tmp_path))


def test_load_backbone__counts_missing_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    DINOv3ViTModel(small_vit()).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    cut = {key: tensor for key, tensor in state.items() if ".7." not in key}
    save_file(cut, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"got {len(state) - len(cut)} missing weights, e.g. "):
        load_backbone(str(tmp_path))


class GatedHub(BaseHTTPRequestHandler):
    """The hub's answers for a gated repository: to a stranger 401, to an account without access 403."""

    answers: ClassVar[set[int]] = set()

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        known = self.headers.get("Authorization") is not None
        self.answers.add(403 if known else 401)
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


def messages_of_load(endpoint: str, cache: Path, *tokens: str) -> list[str]:
    """What `load_backbone` says to each of these accounts, "" for a stranger.

    All in one process, whose hub is `endpoint`, and which does not sleep between its attempts to reach it.
    """
    code = (
        "import json, os, sys, time\n"
        "from mask2former_dinov3.weights.backbones import load_backbone\n"
        "time.sleep = lambda seconds: None\n"
        "messages = []\n"
        "for token in sys.argv[1:]:\n"
        "    os.environ['HF_TOKEN'] = token\n"
        "    try:\n        load_backbone('facebook/dinov3-vits16plus-pretrain-lvd1689m')\n"
        "    except ValueError as error:\n        messages.append(str(error))\n"
        "print(json.dumps(messages))\n"
    )
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    messages = json.loads(output_of(code, cache, environment, *tokens))
    assert len(messages) == len(tokens)
    return [str(message) for message in messages]


def output_of(code: str, folder: Path, environment: dict[str, str], *words: str) -> str:
    """What a program prints in a process of its own. folder: for its file."""
    (folder / "program.py").write_text(code)
    done = run_python([str(folder / "program.py"), *words], folder, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_backbone__takes_timms_weights_by_their_hub_id(tmp_path: Path) -> None:
    """From the hub's cache, without a network: `config.json` has no model_type, only timm's architecture."""
    name = "vit_small_plus_patch16_dinov3_qkvb.sat493m"
    repository = tmp_path / "hub" / f"models--timm--{name}"
    folder = repository / "snapshots" / "1"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    save_file(as_timm(small_state(META)), folder / "model.safetensors")
    described = {"architecture": name.split(".")[0], "pretrained_cfg": {"mean": SATELLITE[0], "std": SATELLITE[1]}}
    (folder / "config.json").write_text(json.dumps(described))
    code = (
        "from mask2former_dinov3.weights.backbones import load_backbone, pixel_statistics\n"
        f"model = load_backbone('timm/{name}')\n"
        "print(model.config.hidden_size, model.norm.weight.sum().item())\n"
        f"print(pixel_statistics('timm/{name}'))\n"
    )
    printed = output_of(code, tmp_path, {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    weight = small_state(META)["norm.weight"].sum().item()
    assert printed == f"64 {weight}\n{SATELLITE}\n"


def test_load_backbone__explains_a_gated_repository(gated_hub: str, tmp_path: Path) -> None:
    """To a stranger, whom the hub answers with 401, and to an account without access: 403."""
    messages = messages_of_load(gated_hub, tmp_path, "", "hf_of_somebody_without_access")
    assert GatedHub.answers == {401, 403}
    for message in messages:
        assert "gated" in message
        assert "https://huggingface.co/facebook/dinov3-vits16plus-pretrain-lvd1689m" in message
        assert "hf auth login" in message
        assert "local folder" in message


def test_load_backbone__explains_a_missing_network(tmp_path: Path) -> None:
    (message,) = messages_of_load("http://127.0.0.1:9", tmp_path, "")
    assert "cannot be reached" in message
    assert "local folder" in message
