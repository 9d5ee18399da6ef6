"""Models on the Hugging Face hub: a repository made ready before a run, a model folder uploaded after it.

huggingface_hub uploads and goes on: files that are there already are not sent again, and every request about files is
retried with growing pauses. What it sends only once (making a repository, checking access, the commit where the
package hf_xet is not in use) is retried here. The token is never written down and never part of a message.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, HubError
from .folder import check_model_folder

T = TypeVar("T")
RUN_FILES = ["optimizer.pt", "rng.pt", "state.json"]  # of a checkpoint-*, for resuming only
PAUSES = (1, 2, 4, 8)  # seconds between two tries
PASSING = (408, 429, 500, 502, 503, 504)
SENT_ONCE = r"/api/repos/create$|/auth-check/write$|/api/validate-yaml$|/api/models/[^/]+/[^/]+$|/commit/"
LOGIN = "log in with `hf auth login` or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"


def prepare_repository(repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Make the model repository `repo` unless it is there, and see that the token may write to it.

    repo: USER/NAME, or NAME under the token's own user. token: None for HF_TOKEN, or that of `hf auth login`.
    Returns USER/NAME. Raises HubError saying what to do.
    """
    if token is None and get_token() is None:
        raise HubError(f"{repo}: no token for the hub; {LOGIN}")
    api = HfApi(token=token)
    with explained(repo):
        visibility = True if private else None  # None: public, unless the organisation has it otherwise
        name = patiently(lambda: api.create_repo(repo, private=visibility, exist_ok=True)).repo_id
        patiently(lambda: api.auth_check(name, write=True))
        if private and not patiently(lambda: api.model_info(name)).private:
            raise HubError(
                f"{name}: a private repository was asked for, but this one is there already and everybody can read it; "
                f"change that in its settings, or choose another name"
            )
    return name


def push(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model folder to `repo`, see `prepare_repository`; returns the address of its page.

    Files that are there already are not sent again. Raises CheckpointError when it is no model folder of ours or its
    weights are damaged, HubError when the hub refuses or cannot be reached.
    """
    check_model_folder(folder, ("config.json", "preprocessor_config.json", "model.safetensors"))
    try:
        with safe_open(folder / "model.safetensors", framework="np"):
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: model.safetensors is damaged ({error}); nothing was uploaded") from error
    repo = prepare_repository(repo, private=private, token=token)
    api = HfApi(token=token)
    with explained(repo, folder):
        patiently(
            lambda: api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Upload model of mask2former-dinov3",
                ignore_patterns=list(RUN_FILES),
            )
        )
    return f"{api.endpoint}/{repo}"


def push_command(folder: Path, repo: str, *, private: bool) -> str:
    """The command that uploads a folder."""
    words = ["mask2former-dinov3", "push", "--model", str(folder), "--repo", repo]
    return shlex.join(words + ["--private"] * private)


def push_finished(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """`push` at the end of a run, of which nothing is lost: HubError and KeyboardInterrupt name the command that
    goes on."""
    later = f"go on with: {push_command(folder, repo, private=private)}"
    try:
        return push(folder, repo, private=private, token=token)
    except HubError as error:
        raise HubError(f"the run is finished and saved, but {folder} is not on the hub: {error}\n  {later}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the run is finished and saved, the upload was interrupted; {later}") from None


def patiently(job: Callable[[], T]) -> T:
    """The job's result, tried again when a request that huggingface_hub sends only once met a passing fault."""
    for pause in PAUSES:
        try:
            return job()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if not _worth_another_try(error):
                raise
            time.sleep(pause)
    return job()


def _worth_another_try(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    if answer is not None and answer.status_code not in PASSING:
        return False
    request = error.request if answer is None else answer.request
    return re.search(SENT_ONCE, request.url.path) is not None


@contextmanager
def explained(repo: str, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into a HubError that says what to do."""
    try:
        yield
    except HubError:
        raise
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:  # also those of hf_xet
        raise HubError(f"{repo}: {_reason(error, repo, folder)}") from error


def _reason(error: Exception, repo: str, folder: Path | None) -> str:
    """What happened and what to do, from the error or the one that it was raised from."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return "HF_HUB_OFFLINE is set, so that the hub is not asked; unset it"
    answers = [one for one in chain if isinstance(one, HfHubHTTPError)]
    said = " ".join(str(error).split()) or type(error).__name__
    if not answers:
        if any(isinstance(one, httpx2.TransportError) for one in chain):
            return f"the hub cannot be reached ({chain[-1]}); look at the network, then try again"
        if isinstance(error, PermissionError):  # hf_xet's
            return f"the hub refuses this token ({said}); {LOGIN}"
        return said if chain[-1] is error else f"{said} ({chain[-1]})"
    status = answers[0].response.status_code
    told = answers[0].server_message or said
    if status == 401:
        return f"the hub does not accept this token, or you may not see the repository (401: {told}); {LOGIN}"
    if status == 403:
        return f"this token may not write here (403: {told}); it needs write permission for {repo}; {LOGIN}"
    if status == 404:
        return f"no such user, organisation or repository, or this token may not see it (404: {told})"
    if status == 413:
        return f"{_too_large(error, folder)} is too large for the hub (413: {told})"
    if status in PASSING:
        return f"the hub is busy or out of order ({status}: {told}), also after several tries; try again later"
    return f"the hub refuses ({status}: {told})"


def _too_large(error: Exception, folder: Path | None) -> str:
    """The file that a 413 is about: the one that the error names, or else the largest."""
    named = re.search(r"uploading '(.+)' to the Hub", str(error))
    if folder is None:
        return "the request"
    file = folder / named[1] if named else max(folder.glob("*.*"), key=lambda path: path.stat().st_size)
    return f"{file} ({file.stat().st_size / 1e6:.1f} MB)"
