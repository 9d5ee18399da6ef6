"""Optional packages: whether they are installed, and the error with the command that installs them."""

from __future__ import annotations

import importlib.util

from .errors import MissingExtraError


def require(extra: str, feature: str, *modules: str) -> None:
    """Raise MissingExtraError unless all `modules` can be imported; none of them is imported here.

    extra: the extra of the distribution that installs them, such as "export". feature: what needs them, as the subject
    of the sentence, such as "export" or "lora_rank".
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise MissingExtraError(
            f"{feature} needs {' and '.join(missing)}, not installed here; "
            f"run pip install 'mask2former-dinov3[{extra}]' in this environment"
        )


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a module that is blocked, or half removed
        return False
