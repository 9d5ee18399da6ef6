"""Upload model folders to the Hugging Face hub: prepare a repository before a run, upload the folder after it.

huggingface_hub sends only files that the repository lacks, and retries every request about files with growing pauses.
Requests that it sends only once (creating a repository, checking access, and the commit if the package hf_xet is not
used) are retried here. The token is never written to a file and never part of a message.
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

from ..errors import CheckpointError, HubError, mismatch
from ..weights.files import shapes_in
from ..weights.loading import find_weights
from .contents import check_model_folder

_T = TypeVar("_T")
RUN_FILES = ["optimizer.pt", "rng.pt", "state.json", "score.json"]  # files of a run that only resuming needs
PAUSES = (1, 2, 4, 8)  # seconds between two tries
TEMPORARY = (408, 429, 500, 502, 503, 504)
SENT_ONCE = r"/api/repos/create$|/auth-check/write$|/api/validate-yaml$|/api/models/[^/]+/[^/]+$|/commit/"
LOGIN = "log in with `hf auth login` or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"


def prepare_repository(repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Create the model repository `repo` unless it exists, and check that the token may write to it.

    repo: USER/NAME, or NAME under the token's own user. token: None for HF_TOKEN or the token of `hf auth login`.
    Returns USER/NAME. Raises HubError, saying what to do.
    """
    if token is None and get_token() is None:
        raise HubError(f"{repo}: no token for the hub; {LOGIN}")
    api = HfApi(token=token)
    with explain_hub_errors(repo):
        visibility = True if private else None  # None: public, or the organisation's default
        name = retry(lambda: api.create_repo(repo, private=visibility, exist_ok=True)).repo_id
        retry(lambda: api.auth_check(name, write=True))
        if private and not retry(lambda: api.model_info(name)).private:
            raise HubError(
                f"{name}: expected a private repository, got one that exists already and that everybody can read; "
                f"make it private in its settings, or choose another name"
            )
    return name


def push(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model folder to `repo` (see `prepare_repository`) and return the address of the repository's page.

    Sends only files that the repository lacks. Raises CheckpointError when `folder` is not a model folder of this
    package or its weights are damaged, HubError when the hub refuses or cannot be reached.
    """
    index = "model.safetensors.index.json"
    weights = index if (folder / index).is_file() else "model.safetensors"
    check_model_folder(folder, ("config.json", "preprocessor_config.json", weights))
    for file in find_weights(str(folder.resolve())):
        try:
            shapes_in(file)
        except (OSError, CheckpointError) as error:
            fault = mismatch(f"a whole {file.name}", f"a damaged one ({error})", "nothing was uploaded")
            raise CheckpointError(f"{folder}: {fault}") from error
    repo = prepare_repository(repo, private=private, token=token)
    api = HfApi(token=token)
    with explain_hub_errors(repo, folder):
        retry(
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
    """Upload at the end of a run. HubError and KeyboardInterrupt name the command that uploads the folder later."""
    later = f"upload it with: {push_command(folder, repo, private=private)}"
    try:
        return push(folder, repo, private=private, token=token)
    except HubError as error:
        raise HubError(f"the run is finished and saved, but {folder} is not on the hub: {error}\n  {later}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the run is finished and saved, the upload was interrupted; {later}") from None


def retry(job: Callable[[], _T]) -> _T:
    """Call `job`, again after a pause when a request that huggingface_hub does not retry failed temporarily."""
    for pause in PAUSES:
        try:
            return job()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if not _is_temporary(error):
                raise
            time.sleep(pause)
    return job()


def _is_temporary(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    if answer is not None and answer.status_code not in TEMPORARY:
        return False
    request = error.request if answer is None else answer.request
    return re.search(SENT_ONCE, request.url.path) is not None


@contextmanager
def explain_hub_errors(repo: str, folder: Path | None = None) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub into a HubError that says what to do."""
    try:
        yield
    except HubError:
        raise
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:  # hf_xet raises the first three
        raise HubError(f"{repo}: {_reason(error, repo, folder)}") from error


def _reason(error: Exception, repo: str, folder: Path | None) -> str:
    """What happened and what to do, from the error and its causes."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return "HF_HUB_OFFLINE is set, so that nothing is sent to the hub; unset it"
    answers = [one for one in chain if isinstance(one, HfHubHTTPError)]
    said = " ".join(str(error).split()) or type(error).__name__
    if not answers:
        if any(isinstance(one, httpx2.TransportError) for one in chain):
            return f"the hub cannot be reached ({chain[-1]}); check the network, then try again"
        if isinstance(error, PermissionError):  # hf_xet's
            return f"the hub refuses this token ({said}); {LOGIN}"
        return said if chain[-1] is error else f"{said} ({chain[-1]})"
    status = answers[0].response.status_code
    answer = answers[0].server_message or said
    if status == 401:
        return f"the hub does not accept this token, or you may not see the repository (401: {answer}); {LOGIN}"
    if status == 403:
        return f"this token may not write here (403: {answer}); it needs write permission for {repo}; {LOGIN}"
    if status == 404:
        return f"no such user, organisation or repository, or this token may not see it (404: {answer})"
    if status == 413:
        return f"{_name_too_large_file(error, folder)} is too large for the hub (413: {answer})"
    if status in TEMPORARY:
        return f"the hub is busy or fails ({status}: {answer}), also after several tries; try again later"
    return f"the hub refuses ({status}: {answer})"


def _name_too_large_file(error: Exception, folder: Path | None) -> str:
    """The file that status 413 is about: the one that the error names, otherwise the largest."""
    named = re.search(r"uploading '(.+)' to the Hub", str(error))
    if folder is None:
        return "the request"
    file = folder / named[1] if named else max(folder.glob("*.*"), key=lambda path: path.stat().st_size)
    return f"{file} ({file.stat().st_size / 1e6:.1f} MB)"
