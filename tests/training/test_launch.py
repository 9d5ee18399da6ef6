"""What is refused before anything is read: processes that know nothing of each other, and ways to divide a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask2former_dinov3.errors import ConfigError, is_shared
from mask2former_dinov3.training.launch import SHARDING, start_accelerator
from support.small_run import small_config


@pytest.mark.parametrize("variable", SHARDING)
def test_start_accelerator__refuses_to_divide_the_model(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    message = rf"^accelerate: expected data parallelism \(DDP\), .*, got settings for {SHARDING[variable]}; choose"
    with pytest.raises(ConfigError, match=message) as caught:
        start_accelerator(small_config(tmp_path, tmp_path / "run"))
    assert is_shared(caught.value)
    assert "\n" not in str(caught.value)
