"""Whether pretrained weights of the hub can be had here, asked without a download."""

from __future__ import annotations

from huggingface_hub import HfApi, try_to_load_from_cache

from .loading import explain_failures

_WEIGHTS = "model.safetensors"


def check_access(source: str, token: str | None = None) -> None:
    """Return if the weights of a hub id are in the local cache, or the hub would send them to this account.

    Raises HubError that says why not, and what to do.
    """
    if isinstance(try_to_load_from_cache(source, _WEIGHTS), str):
        return
    with explain_failures(source):
        HfApi().auth_check(source, token=token)
