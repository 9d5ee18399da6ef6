"""The page of `compare`, through the verb: exit codes, pictures of what changed, numbers as in compare.json."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.reports.compare_charts import Curve, Interval, interval_chart, overlaid_curves
from mask2former_dinov3.reports.compare_page import FOUND, MISSED, WRONG


@pytest.fixture
def two(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Evaluations of the toy data's own annotations as results, and of half of them with a wrong one."""
    root = make_toy_dataset(train=1, valid=8)
    file = root / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    whole = [one for one in truth["annotations"] if one["segmentation"] and not one["iscrowd"]]
    results = [
        {key: one[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.9 - 0.01 * place}
        for place, one in enumerate(whole)
    ]
    folders = []
    box = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]
    wrong = {"image_id": truth["images"][-1]["id"], "category_id": results[0]["category_id"], "score": 0.99}
    for name, own in (("good", results), ("bad", [*results[::3], {**wrong, "segmentation": [box]}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
        words = ["--annotations", str(file), "--predictions", str(tmp_path / f"{name}.json")]
        assert main(["evaluate", *words, "--output", str(tmp_path / name)]) == 0
        folders.append(tmp_path / name)
    return folders[0], folders[1]


def test_compare__writes_a_page_with_pictures_of_what_changed(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    output = tmp_path / "out"
    assert main(["compare", *map(str, two), "--output", str(output), "--samples", "200"]) == 0
    printed = capsys.readouterr().out
    text = (output / "compare.html").read_text(encoding="utf-8")
    content = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    ap = content["differences"][0]["overall"]["AP"]
    assert ap["high"] < 0
    assert content["differences"][0]["verdict"] == "worse"
    assert f"bad - good: AP {ap['difference']:+.4f}" in printed
    assert f"<td>{ap['difference']:+.3f}</td>" in text.replace(' class=""', "")
    changed = content["differences"][0]["changed_images"]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]*)" alt="([^"]*)"', text)
    assert len(pictures) == 3 * len(changed) > 6
    assert pictures[0][1] == f"ground truth on {changed[0]['file_name']}"
    colours = {colour: 0 for colour in (FOUND, WRONG, MISSED)}
    for data, alt in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
        for colour in colours:
            near = (np.abs(pixels - colour).sum(axis=2) < 90).sum()
            colours[colour] += int(near) * ("ground truth" not in alt)
    assert min(colours.values()) > 50, colours
    assert not re.search(r"(?<!data:)https?://(?!www.w3.org)", text)
    assert "no train_config.json is known for good, bad" in text
    assert str(tmp_path) not in text  # people send the page to others
    assert "On 8 images of toy/valid.</p>" in text
    stored = json.loads((two[0] / "evaluation.json").read_text(encoding="utf-8"))
    assert f"Ground truth: toy/valid, SHA-256 of its content {stored['digest'][:12]}." in text
    assert content["ground_truth"] == stored["annotations"]


def test_compare__test_fails_when_worse_and_passes_otherwise(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = map(str, two)
    words = ["--output", str(tmp_path / "out"), "--samples", "200", "--test"]
    assert main(["compare", good, bad, *words]) == 1
    assert "test failed: bad worse than good beyond noise" in capsys.readouterr().out
    assert main(["compare", bad, good, *words]) == 0
    assert "test passed: none is worse than bad beyond noise" in capsys.readouterr().out
    assert main(["compare", good, good, *words]) == 0
    assert "no difference beyond noise" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["compare", good, good, "--images", good, *words])


def test_compare__test_is_undecided_on_very_few_images(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_toy_dataset(train=1, valid=5) / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    whole = [one for one in truth["annotations"] if one["segmentation"] and not one["iscrowd"]]
    keys = ("image_id", "category_id", "segmentation")
    for name, share in (("good", 1), ("bad", 4)):
        own = [{key: one[key] for key in keys} | {"score": 0.9} for one in whole[::share]]
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    words = ["--annotations", str(file), "--output", str(tmp_path / "out"), "--test"]
    assert main(["compare", str(tmp_path / "good.json"), str(tmp_path / "bad.json"), *words]) == 0
    said = capsys.readouterr().out
    assert "too few images to tell" in said
    assert said.endswith("test undecided: too few images to tell; it counts as passed\n")
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "too few images" in page
    assert "5 images are too few to tell a difference from noise; 6 are the least" in page


def test_compare__shows_the_reason_where_an_image_is_gone(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "toy" / "valid").glob("*.[pj][np]*g"):
        path.unlink()
    assert main(["compare", *map(str, two), "--output", str(tmp_path / "out"), "--samples", "200"]) == 0
    text = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert text.count("the image cannot be shown: ") > 2
    assert text.count("<img") == 3 * text.count("the image cannot be shown: ")  # the masks are drawn on grey
    assert capsys.readouterr().err == ""


def test_charts__draw_every_curve_and_interval_with_escaped_names() -> None:
    curves = [Curve("<b>", [(0.0, 1.0), (1.0, 0.5), (2.0, float("nan"))]), Curve("empty", [])]
    text = overlaid_curves("AP", curves, ("step", "AP"), "A summary.")
    assert text.count("<polyline") == 2
    assert "<b>" not in text
    assert "nan" not in text
    intervals = [Interval("up", 0.2, 0.1, 0.3), Interval("down", -0.2, -0.3, -0.1), Interval("none", 0.0, -0.1, 0.1)]
    text = interval_chart("Classes", intervals, "A summary.")
    assert text.count("<circle") == 3
    assert [text.count(f"fill:var(--{name})") for name in ("good", "error", "card")] == [1, 1, 1]
