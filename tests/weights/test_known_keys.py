"""Nothing in a model folder turns loading elsewhere: other keys are named and not read, weights are those that were."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mask2former_dinov3.errors import CheckpointError
from mask2former_dinov3.inference.predictor import load_model
from mask2former_dinov3.weights.files import write_checksum
from mask2former_dinov3.weights.known_keys import known_config

HOSTILE = {
    "_attn_implementation": "someone/kernels",
    "attn_implementation": "someone/kernels",
    "_experts_implementation": "someone/kernels",
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "transformers_weights": "../../other.safetensors",
    "auto_map": {"AutoModel": "someone/elsewhere--modeling.Model"},
    "base_model_tp_plan": {"*": "colwise"},
    "fusion_config": {"a": 1},
}


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def same_weights(folder: Path, other: Path) -> None:
    found, expected = load_model(folder, "cpu")[0].state_dict(), load_model(other, "cpu")[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_load_model__reads_no_key_but_the_networks(
    folder: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", {**HOSTILE, "backbone_config": stored["backbone_config"] | HOSTILE})
    with caplog.at_level(logging.WARNING):
        model = load_model(folder, "cpu")[0]
    assert len(caplog.records) == 1
    assert f"config.json: {2 * len(HOSTILE)} keys do not describe the network and are not read: " in caplog.text
    assert "backbone_config._attn_implementation" in caplog.text
    assert not set(HOSTILE) - {"auto_map"} & set(model.config.to_dict())  # type: ignore[attr-defined]
    same_weights(folder, model_folder)


def test_load_model__of_our_own_folder_names_no_key(model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(model_folder, "cpu")
    assert not caplog.records


def test_load_model__takes_the_weights_of_its_folder_beside_an_adapter(folder: Path, model_folder: Path) -> None:
    """transformers would load the model that adapter_config.json names."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    same_weights(folder, model_folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"got adapters alone \(adapter_config\.json\); merge the adapters"):
        load_model(folder, "cpu")


def shard(folder: Path, names: tuple[str, str]) -> None:
    """Split the weights into two files, and write their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = (list(weights)[::2], list(weights)[1::2])
    for name, half in zip(names, halves, strict=True):
        save_file({key: weights[key] for key in half}, folder / name)
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_load_model__reads_shards_of_its_folder_only(folder: Path, model_folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    shard(folder, ("a.safetensors", "b.safetensors"))
    same_weights(folder, model_folder)
    (folder / "b.safetensors").rename(folder.parent / "elsewhere/b.safetensors")
    with pytest.raises(CheckpointError, match=r"all files of model\.safetensors\.index\.json, got none called b\.safe"):
        load_model(folder, "cpu")
    index = folder / "model.safetensors.index.json"
    for name in ("../elsewhere/b.safetensors", str(folder.parent / "elsewhere/b.safetensors"), "b.bin", ".."):
        change(index, {"weight_map": {"x": name}})
        with pytest.raises(CheckpointError, match=r"expected names of \.safetensors files beside it in `weight_map`"):
            load_model(folder, "cpu")


def test_load_model__takes_no_memory_for_shards_that_a_config_only_claims(folder: Path) -> None:
    shard(folder, ("a.safetensors", "b.safetensors"))
    change(folder / "config.json", {"num_queries": 2**40})
    with pytest.raises(CheckpointError, match=r"2 files in .*: expected the [\d,]+ numbers of the network"):
        load_model(folder, "cpu")


def test_load_model__checks_the_sum_of_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    write_checksum(file)
    checksum = folder / "model.safetensors.sha256"
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "-c", checksum.name], cwd=folder, capture_output=True).returncode == 0
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    file.write_bytes(data)
    message = (
        r"model\.safetensors: expected the SHA-256 in model\.safetensors\.sha256, [0-9a-f]{12}…, got [0-9a-f]{12}…; "
        r"fetch it again; if you have changed the weights yourself, remove model\.safetensors\.sha256$"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu")
    checksum.write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected the SHA-256"):
        load_model(folder, "cpu")
    checksum.unlink()  # as folders of older versions
    load_model(folder, "cpu")


def test_known_config__refuses_a_network_that_nobody_knows() -> None:
    for stored, got in (({}, "none"), ({"model_type": "x"}, "'x'"), ({"model_type": []}, r"\[\]")):
        with pytest.raises(CheckpointError, match=f"c: model_type: expected a network .*, got {got}"):
            known_config("c", stored)
    nested = {"model_type": "mask2former", "backbone_config": {"model_type": 3}}
    with pytest.raises(CheckpointError, match=r"c: backbone_config\.model_type: expected a network"):
        known_config("c", nested)
