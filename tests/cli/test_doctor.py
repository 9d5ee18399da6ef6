"""The options of `check-data` beside its text: recipes, flags before files, refusals before the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.cli.doctor import options_of_check
from mask2former_dinov3.cli.verbs import build_parser


def options(*words: str) -> dict[str, object]:
    return dict(options_of_check(build_parser().parse_args(["check-data", *words])).model_dump())


def test_options_of_check__flags_go_before_the_recipe_and_the_recipe_before_defaults(tmp_path: Path) -> None:
    recipe = {"dataset_name": "path/to/data", "image_height": 512, "image_width": 256, "num_queries": "auto"}
    recipe |= {"scale_min": 0.5, "valid_split": 0.3, "output_dir": "run"}
    (tmp_path / "c.json").write_text(json.dumps(recipe))
    found = options("mine", "--config", str(tmp_path / "c.json"), "--image-width", "64", "--valid-split", "0.2")
    names = ("dataset_name", "image_height", "image_width", "num_queries", "scale_min", "valid_split")
    assert [found[name] for name in names] == ["mine", 512, 64, "auto", 0.5, 0.2]
    plain = options("mine")
    assert [plain[name] for name in names] == ["mine", 1024, 1024, 100, 0.1, 0.1]


def test_run_check_data__takes_the_data_of_a_recipe(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"dataset_name": str(toy_dataset), "image_height": 32, "image_width": 32, "scale_min": 0.05}
    (tmp_path / "c.json").write_text(json.dumps(recipe))
    assert main(["check-data", "--config", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "objects cover less than one pixel of the canvas of 32 x 32" in shown
    assert "more than num_queries" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "nothing --image-height 100",
            "--image-height: expected a multiple of 16, got 100; 96 and 112 are the nearest",
        ),
        ("nothing --config none.json", "none.json: expected a JSON object of options, got no such file"),
        ("nothing --suggest .", "--suggest: expected a file to write, got ., a folder"),
        ("nothing --suggest c.json", "--suggest: expected a new file, got c.json, which exists; choose another name"),
        ("nothing --fix c.json", "--fix: expected a new or empty folder, got c.json, a file; nothing is overwritten"),
        ("data --report c.json", "--report: expected a folder, got c.json, a file"),
    ],
)
def test_run_check_data__refuses_outputs_and_options_before_the_work(
    words: str,
    message: str,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text("{}")
    Path("data").symlink_to(toy_dataset)
    assert main(["check-data", *words.split()]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
