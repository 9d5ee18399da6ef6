"""Uploads, against a stand-in for the hub: what arrives, what is sent again, what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils._http as http
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import CheckpointError, HubError
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.model import Mask2FormerDinov3Config
from mask2former_dinov3.model_folder import hub as hub_module
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.model_folder.hub import prepare_repository, push, push_finished
from mask2former_dinov3.version import MODEL_TYPE
from support.hub_stand_in import HubStandIn, running_hub
from support.processes import run_python, start_two

TOKEN = "hf_writes"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # httpx2, of huggingface_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A hub that huggingface_hub asks, logged in; its pauses are counted, not waited for."""
    with running_hub() as stand_in:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no_tokens"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        http.close_session()
        yield stand_in
    http.close_session()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before each new try, of huggingface_hub and of this package."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr(http, "time", clock)
    monkeypatch.setattr(hub_module, "time", clock)
    return waited


@pytest.fixture(scope="module")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with two files that are sent by LFS."""
    best = tmp_path_factory.mktemp("saved") / "best"
    save_model_folder(*load_network(model_folder, "cpu"), best, {"AP": 0.5})
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(best / "overlay.jpg")
    return best


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(saved, tmp_path / "run" / "best"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def uploaded_part(folder: Path) -> dict[str, bytes]:
    """What a repository gets of a model folder of a run: all but what resuming needs."""
    return {name: content for name, content in contents(folder).items() if name != "score.json"}


def oid_of(folder: Path, name: str) -> str:
    """What LFS calls a file."""
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_push__brings_the_folder_byte_for_byte_and_sends_nothing_twice(hub: HubStandIn, folder: Path) -> None:
    assert push(folder, "ada/cells") == f"{hub.endpoint}/ada/cells"
    assert hub.repositories["ada/cells"] == contents(folder)
    assert hub.verified == {oid_of(folder, "model.safetensors"), oid_of(folder, "overlay.jpg")}
    assert not hub.private["ada/cells"]
    hub.requests.clear()
    push(folder, "ada/cells")
    assert not hub.sent("PUT")
    assert len(hub.commits) == 1
    (folder / "README.md").write_text("---\nlibrary_name: x\n---\nnew\n")
    push(folder, "ada/cells")
    assert hub.commits[1:] == [["README.md"]]
    assert not hub.sent("PUT")


def test_push__leaves_out_what_only_resuming_needs(hub: HubStandIn, folder: Path) -> None:
    kept = contents(folder)
    for name in ("optimizer.pt", "rng.pt", "state.json"):
        (folder / name).write_bytes(b"{}")
    push(folder, "ada/cells")
    assert hub.repositories["ada/cells"] == kept


def test_push__after_a_cut_connection_sends_only_what_is_missing(
    hub: HubStandIn, folder: Path, pauses: list[float]
) -> None:
    before = contents(folder)
    large, small = (f"PUT /storage/{oid_of(folder, name)}" for name in ("model.safetensors", "overlay.jpg"))
    hub.fail("PUT", oid_of(folder, "model.safetensors"), None)
    with pytest.raises(HubError, match="the hub cannot be reached"):
        push(folder, "ada/cells")
    assert hub.sent("PUT").count(large) == 6
    assert pauses == [1, 2, 4, 8, 8]
    assert hub.sent("PUT").count(small) == 1
    assert hub.repositories["ada/cells"] == {}
    assert contents(folder) == before
    hub.faults.clear()
    hub.requests.clear()
    push(folder, "ada/cells")
    assert hub.sent("PUT") == [large]
    assert hub.repositories["ada/cells"] == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/storage/"),
        ("POST", "/preupload/"),
        ("POST", "/commit/"),
        ("POST", "/repos/create"),
        ("GET", "/auth-check/write"),
    ],
)
@pytest.mark.parametrize("status", [500, None])
def test_push__passing_faults_are_waited_out(
    method: str, path: str, status: int | None, hub: HubStandIn, folder: Path, pauses: list[float]
) -> None:
    hub.fail(method, path, status, times=2)
    push(folder, "ada/cells")
    assert hub.repositories["ada/cells"] == contents(folder)
    assert sum(pauses) in (2, 3)  # 1 and 2 seconds, or 1 for each of two files at once


def test_prepare_repository__waits_where_it_is_told_to_slow_down(hub: HubStandIn, pauses: list[float]) -> None:
    hub.fail("POST", "/repos/create", 429, times=4)
    assert prepare_repository("ada/cells") == "ada/cells"
    assert pauses == [1, 2, 4, 8]


def test_push__gives_up_on_a_hub_that_stays_out_of_order(hub: HubStandIn, folder: Path, pauses: list[float]) -> None:
    hub.fail("POST", "/preupload/", 503)
    with pytest.raises(HubError, match=r"ada/cells: the hub is busy or fails \(503: .*try again later"):
        push(folder, "ada/cells")
    assert pauses == [1, 2, 4, 8, 8]  # huggingface_hub's own; ours do not multiply them


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/repos/create", 401, "does not accept this token.*hf auth login"),
        ("GET", "/auth-check/", 403, "may not write here.*needs write permission for ada/cells.*hf auth login"),
        ("POST", "/commit/", 404, "no such user, organisation or repository"),
        ("PUT", "/storage/", 413, r"(model\.safetensors|overlay\.jpg) \([\d.]+ MB\) is too large for the hub"),
        ("POST", "/commit/", 413, r"model\.safetensors \([\d.]+ MB\) is too large for the hub"),
        ("POST", "/commit/", 400, r"the hub refuses \(400: told to answer 400"),
    ],
)
def test_push__says_what_the_hub_refuses(
    method: str, path: str, status: int, message: str, hub: HubStandIn, folder: Path, pauses: list[float]
) -> None:
    hub.fail(method, path, status)
    with pytest.raises(HubError, match=message) as caught:
        push(folder, "ada/cells")
    assert pauses == []
    assert TOKEN not in str(caught.value)


def test_push__says_what_is_wrong_with_a_card(hub: HubStandIn, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    with pytest.raises(HubError, match=r"the hub refuses \(400: license other needs license_name and license_link\)"):
        push(folder, "ada/cells")
    assert not hub.sent("PUT")


def test_push__needs_a_token_that_may_write(hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens |= {"hf_reads": ("ada", False), "hf_other": ("bob", True)}
    push(folder, "ada/cells")
    for token, message in (("hf_reads", "403"), ("hf_other", "403"), ("hf_unknown", "401")):
        with pytest.raises(HubError, match=message):
            push(folder, "ada/cells", token=token)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no token for the hub; log in with `hf auth login` or set HF_TOKEN"):
        push(folder, "ada/cells")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # as `hf auth login` leaves it
    push(folder, "ada/cells")


def test_push__says_when_there_is_no_network(folder: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"ada/cells: the hub cannot be reached \(.*refused\)"):
        push(folder, "ada/cells")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(folder, "ada/cells")


def test_push__with_xet_says_what_the_hub_refuses(
    hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("POST", "/preupload/", 403)
    with pytest.raises(HubError, match="may not write here"):
        push(folder, "ada/cells")
    hub.faults.clear()
    hub.fail("GET", "/xet-write-token/", 401)
    with pytest.raises(HubError, match="ada/cells: "):
        push(folder, "ada/cells")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_push__refuses_what_is_no_model_folder(name: str, hub: HubStandIn, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"expected a model folder, got a folder without {name}; training saves"):
        push(folder, "ada/cells")
    assert hub.requests == []


def test_push__refuses_another_model_and_damaged_weights(hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
    assert Mask2FormerDinov3Config.model_type == MODEL_TYPE
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps({"model_type": "mask2former"}))
    with pytest.raises(CheckpointError, match=r"config\.json: expected model_type 'mask2former_dinov3', got 'mask2f"):
        push(other, "ada/cells")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"expected a whole model\.safetensors, got a damaged one.*; nothing was"):
        push(folder, "ada/cells")
    assert hub.requests == []


def test_push__brings_the_shards_of_a_large_model(hub: HubStandIn, folder: Path) -> None:
    whole, network = folder / "model.safetensors", load_network(folder, "cpu")[0]
    whole.unlink()
    network.save_pretrained(folder, max_shard_size="2MB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    push(folder, "ada/cells")
    assert hub.verified >= {oid_of(folder, shard.name) for shard in shards}
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"expected a whole {shards[0].name}, got a damaged one"):
        push(folder, "ada/cells")


def test_push_finished__interrupted_names_the_command(
    hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(http, "time", SimpleNamespace(sleep=interrupt))
    hub.fail("POST", "/preupload/", 500)
    with pytest.raises(KeyboardInterrupt, match=f"push --model {folder} --repo ada/cells --private"):
        push_finished(folder, "ada/cells", private=True, token=None)


def test_prepare_repository__names_and_privacy(hub: HubStandIn) -> None:
    assert prepare_repository("cells", private=True) == "ada/cells"
    assert hub.private == {"ada/cells": True}
    assert prepare_repository("ada/cells", private=True) == "ada/cells"
    prepare_repository("open")
    with pytest.raises(
        HubError,
        match=r"ada/open: expected a private repository, got one that .* everybody can read",
    ):
        prepare_repository("ada/open", private=True)
    with pytest.raises(HubError, match="no name"):
        prepare_repository("no name")


def variables_of(hub: HubStandIn, folder: Path, token: str = TOKEN) -> dict[str, str]:
    """What a user of a hub sets. folder: for its cache."""
    here = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return {**here, "HF_HOME": str(folder / "home"), "HF_TOKEN": token}


def run_push(hub: HubStandIn, folder: Path, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own. folder: for its files."""
    command = ["-m", "mask2former_dinov3", "push", *words]
    return run_python(command, folder, variables_of(hub, folder, token))


def test_run_push__uploads_and_prints_the_page(hub: HubStandIn, folder: Path, tmp_path: Path) -> None:
    words = ("--model", str(folder), "--repo", "ada/cells", "--private")
    done = run_push(hub, tmp_path, *words)
    assert (done.returncode, done.stdout) == (0, f"{hub.endpoint}/ada/cells\n"), done.stderr
    assert hub.repositories["ada/cells"] == contents(folder)
    assert hub.private["ada/cells"]
    refused = run_push(hub, tmp_path, *words, token="hf_wrong")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ada/cells: the hub does not accept this token")
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stderr


def test_processes__only_the_main_one_asks_the_hub(hub: HubStandIn, toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "cells"
    words = train_words(toy_dataset, run, hub_token="none", per_device_train_batch_size=1, with_tracking=False)
    environment = {**variables_of(hub, tmp_path), "ACCELERATE_USE_CPU": "true"}
    done = [one.finish(200) for one in start_two(["-m", "mask2former_dinov3", *words], tmp_path, environment)]
    said = "".join(one.stderr for one in done)
    assert [one.returncode for one in done] == [0, 0], said[-3000:]
    assert hub.repositories["ada/cells"] == uploaded_part(run / "best")
    assert len(hub.commits) == 1
    assert len(hub.sent("POST /api/repos/create")) == 2  # before the first step, and for the upload
    assert said.count(f"uploaded: {hub.endpoint}/ada/cells") == 1


def train_words(dataset: Path, run: Path, **options: Any) -> list[str]:
    settings = {
        **{"dataset_name": dataset, "output_dir": run, "backbone": "tiny", "image_height": 64, "image_width": 96},
        **{"max_train_steps": 1, "dataloader_num_workers": 0, "mixed_precision": "no", "push_to_hub": True},
        **{"with_tracking": True, "hub_token": "hf_run", **options},
    }
    return ["train", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def test_train__pushes_best_and_writes_the_token_nowhere(
    hub: HubStandIn, toy_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.tokens = {"hf_run": ("ada", True)}
    run = tmp_path / "cells-1"
    assert main(train_words(toy_dataset, run, hub_private_repo=True)) == 0
    assert hub.repositories["ada/cells-1"] == uploaded_part(run / "best")
    assert hub.private["ada/cells-1"]
    assert {"overlay.jpg", "train_config.json", "README.md"} <= hub.repositories["ada/cells-1"].keys()
    captured = capfd.readouterr()
    assert not [path for path, content in contents(run).items() if b"hf_run" in content]
    assert "hf_run" not in captured.out + captured.err
    assert ModelCard((run / "best" / "README.md").read_text()).data["model_name"] == "cells-1"


def test_train__ends_at_once_when_it_may_not_push(
    hub: HubStandIn, toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        ({}, "error: run: the hub does not accept this token"),
        ({"hub_token": TOKEN, "hub_model_id": "bob/cells"}, "error: bob/cells: this token may not write here"),
        ({"hub_token": TOKEN, "hub_model_id": "a/b/c"}, "error: a/b/c: "),
    ):
        assert main(train_words(toy_dataset, tmp_path / "run", **options)) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train__failed_upload_loses_nothing_and_names_the_command(
    hub: HubStandIn, toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    hub.fail("PUT", "/storage/", 413)
    assert main(train_words(toy_dataset, run, hub_token=TOKEN, hub_model_id="ada/cells")) == 1
    said = capsys.readouterr().err
    command = f"mask2former-dinov3 push --model {run / 'best'} --repo ada/cells"
    assert said.splitlines()[-2].startswith(f"error: the run is finished and saved, but {run / 'best'} is not on")
    assert said.splitlines()[-1].strip() == f"upload it with: {command}"
    assert {"best", "last", "checkpoint-1", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    hub.faults.clear()
    assert main(command.split()[1:]) == 0
    assert hub.repositories["ada/cells"] == uploaded_part(run / "best")
