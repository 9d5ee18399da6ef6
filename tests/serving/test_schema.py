"""The API against its own OpenAPI description, with requests that schemathesis makes up, good and bad ones."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

from support.server import Server

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")  # for each kind of request; more by hand

# A body that fits its description is mostly no image: 422 is the right answer then.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 422]
"""


def test_api__keeps_to_its_description(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [
        f"{sysconfig.get_path('scripts')}/schemathesis",
        "--config-file",
        "schemathesis.toml",
        "run",
        "--no-color",
    ]
    with Server(model_folder, "--device", "cpu", "--image-scale", "fit", "--max-wait", "0") as server:
        url = f"http://127.0.0.1:{server.port}/openapi.json"
        words = [*command, url, "--checks", "all", "--max-examples", EXAMPLES, "--seed", "1"]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "3 selected / 3 total" in done.stdout
        assert server.metric('requests_total{route="/predict",status="422"}') > 10
        assert server.metric('requests_total{route="/predict",status="500"}') == 0
