"""The process of a trial waits for another one that still saves the same run."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from mask2former_dinov3.config.train_config import TrainConfig
from mask2former_dinov3.folder_lock import hold_folder
from mask2former_dinov3.tuning.search_space import OF_THE_RUN, SCORED_ON
from mask2former_dinov3.tuning.trial_process import wait_for_folder

MODULE = "mask2former_dinov3.tuning.trial_process"


def test_wait_for_folder__waits_for_the_lock(tmp_path: Path) -> None:
    with hold_folder(tmp_path, "output_dir", "train"):
        wait_for_folder(tmp_path, 0.1)  # given up
        thread = threading.Thread(target=wait_for_folder, args=(tmp_path,))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(100)
    assert not thread.is_alive()


def test_trial_process__ends_with_standard_input(tmp_path: Path) -> None:
    """Before `train` handles signals, so by SIGTERM itself."""
    with hold_folder(tmp_path, "output_dir", "train"):
        process = subprocess.Popen([sys.executable, "-m", MODULE, str(tmp_path), "train"], stdin=subprocess.PIPE)
        time.sleep(0.2)
        assert process.poll() is None
        process.communicate(timeout=200)
    assert process.returncode == -15


def test_options_that_cannot_be_searched__exist() -> None:
    assert {*SCORED_ON, *OF_THE_RUN} <= TrainConfig.model_fields.keys()
