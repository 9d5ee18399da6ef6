"""Write the page of `compare`: differences with intervals, curves over each other, pictures of what changed, recipes.

Every number on it is also in `compare.json`, which is written beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..atomic_files import check_writable, write_json
from ..data.faults import count_of
from ..data.fitting import PixelArray
from ..evaluation.comparison import (
    INTERVAL_NAME,
    TOO_FEW,
    ComparedResults,
    Comparison,
    PairComparison,
    describe_difference,
)
from ..evaluation.image_changes import ImageChange, SideOfImage
from ..evaluation.paired_bootstrap import Difference
from ..evaluation.scored_model import describe_model
from ..evaluation.stored_evaluation import digest_of_truth, names_of_images
from ..read_options import AS_STORED
from .compare_charts import Curve, Interval, interval_chart, overlaid_curves
from .html_page import Html, badge, element, end_of_path, figure, join, page, paragraph, section, table, write_page
from .image_source import ImageSource, paths_of_images
from .pictures import View, data_uri, draw_layer, surround, view_of
from .svg_charts import charts

COMPARE_PAGE, COMPARE_JSON = "compare.html", "compare.json"
MOST_PICTURES = 24  # images with pictures, of each comparison
FOUND, WRONG, MISSED, ANNOTATED = (30, 160, 255), (255, 125, 20), (255, 60, 190), (255, 220, 0)
_SIDE = 420  # pixels of a picture
_CLASSES_DRAWN = 40
_BADGES = {"better": "good", "worse": "error", "no difference": "note", TOO_FEW: "note"}


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write compare.json and compare.html to `folder`; returns the path of the page.

    Images are read as the model of the first results reads them. One that cannot be read is grey, with the reason.
    Memory: one image at a time. Raises CheckpointError when the folder cannot be written.
    """
    stored = comparison.base.source.stored
    options = AS_STORED if stored is None else describe_model(stored.scored)[1]
    check_writable(folder)
    write_json(folder / COMPARE_JSON, comparison.to_json())
    names = [one.source.name for one in comparison.all]
    parts = [_numbers(comparison), _curves(comparison)]
    source = ImageSource(paths_of_images(comparison.truth, comparison.split), comparison.truth.sizes, options)
    parts += [_pictures(comparison, pair, source) for pair in comparison.pairs]
    parts += [_recipes(comparison), _sources(comparison)]
    path = folder / COMPARE_PAGE
    write_page(path, page(f"Comparison: {', '.join(names)}", _verdicts(comparison), parts))
    return path


def _verdicts(comparison: Comparison) -> Html:
    """One sentence on each comparison."""
    lines = []
    for pair in comparison.pairs:
        one = pair.differences.overall["AP"]
        text = f" {pair.after.source.name} against {comparison.base.source.name}: AP {describe_difference(one)}."
        lines.append(paragraph(badge(pair.verdict, _BADGES[pair.verdict]), text))
    images = count_of(len(comparison.truth.sizes), "image")
    return join([*lines, paragraph(f"On {images} of {comparison.truth.data}.")])


def _numbers(comparison: Comparison) -> Html:
    """Differences of AP with their intervals, overall and per class."""
    settings = comparison.settings
    drawn = comparison.pairs[0].differences.samples
    about = paragraph(
        f"Intervals: paired bootstrap over the images, {drawn:,} draws, seed {settings.seed}. A difference "
        "whose interval holds 0 can come from the choice of the images alone. What another seed of the training would "
        "change is not in them."
        + " Of 20 classes without a difference, one misses 0 by chance."
        * (len(comparison.truth.names) > 1)
    )
    parts: list[Html] = [about]
    for pair in comparison.pairs:
        before, after = comparison.base.source.name, pair.after.source.name
        head = ["", before, after, "difference", INTERVAL_NAME, ""]
        rows = [_row(key, one) for key, one in pair.differences.overall.items()]
        parts.append(table(head, rows, caption=f"{after} against {before}, all classes"))
        per_class = list(zip(comparison.truth.names, pair.differences.per_class, strict=True))
        if len(per_class) > 1:
            parts += _classes(per_class, head, f"{after} against {before}")
    notes = [element("li", note) for note in comparison.all_notes]
    return section("Differences", *parts, element("ul", *notes) if notes else Html(""))


def _classes(per_class: Sequence[tuple[str, Difference]], head: list[str], title: str) -> list[Html]:
    """Chart and table of the classes, the largest difference first; undefined ones last."""
    ordered = sorted(per_class, key=lambda one: (math.isnan(one[1].difference), -abs(one[1].difference), one[0]))
    drawn = [
        Interval(name, one.difference, one.low, one.high)
        for name, one in ordered
        if not math.isnan(one.difference) and not math.isnan(one.low)
    ]
    decided = sum(one.better or one.worse for _, one in per_class)
    summary = f"{decided} of {count_of(len(per_class), 'class', 'classes')} differ beyond noise."
    if len(drawn) > _CLASSES_DRAWN:
        summary += f" The {_CLASSES_DRAWN} largest differences are drawn; the table has all."
    chart = interval_chart(f"AP per class: {title}", drawn[:_CLASSES_DRAWN], summary)
    return [charts([chart]), table(["class", *head[1:]], [_row(name, one) for name, one in ordered])]


def _row(name: str, one: Difference) -> list[object]:
    if math.isnan(one.difference):
        return [name, "undefined", "undefined", "", "", "no object"]
    word = "better" if one.better else "worse" if one.worse else ""
    interval = f"{one.low:+.3f} to {one.high:+.3f}"
    return [name, f"{one.before:.3f}", f"{one.after:.3f}", f"{one.difference:+.3f}", interval, word]


def _curves(comparison: Comparison) -> Html:
    """Precision over recall, and what the logs of the runs hold."""
    drawn = []
    recalls = np.linspace(0, 1, 101).tolist()
    for iou in comparison.base.precision:
        curves = [
            Curve(one.source.name, list(zip(recalls, one.precision[iou].tolist(), strict=True)))
            for one in comparison.all
        ]
        summary = "Interpolated as in COCO, mean over the classes. A higher curve is better."
        drawn.append(
            overlaid_curves(
                f"Precision over recall at IoU {iou:g}", curves, ("recall", "precision"), summary, unit_square=True
            )
        )
    threshold = f"Results at or above the score, IoU {comparison.settings.iou:g}, all classes together."
    pairs = [(one.source.name, one.scores) for one in comparison.all]
    f1 = [Curve(name, list(zip(one.scores[::-1].tolist(), one.f1[::-1].tolist(), strict=True))) for name, one in pairs]
    drawn.append(overlaid_curves("F1 over the score threshold", f1, ("score", "F1"), threshold, unit_square=True))
    for key, title, better in (("AP", "AP during training", "higher"), ("loss", "Loss during training", "lower")):
        histories = [Curve(one.source.name, one.source.history(key)) for one in comparison.all]
        if any(len(one.points) > 1 for one in histories):
            summary = f"On the run's own data; a {better} curve is better."
            drawn.append(overlaid_curves(title, histories, ("step", key), summary))
    return section("Curves", charts(drawn))


def _pictures(comparison: Comparison, pair: PairComparison, source: ImageSource) -> Html:
    """The images with the largest changes: truth, A and B side by side."""
    before, after = comparison.base.source.name, pair.after.source.name
    title = f"Images that changed: {after} against {before}"
    settings = comparison.settings
    rule = f"results with a score of at least {settings.threshold:g}; an object is found from IoU {settings.iou:g}"
    if not pair.changes:
        return section(title, paragraph(f"No image changed ({rule})."))
    shown = pair.changes[:MOST_PICTURES]
    counts = f"{count_of(len(pair.changes), 'image')} changed ({rule})"
    rest = (
        f"; the {len(shown)} with the largest changes are shown, compare.json lists all"
        if len(shown) < len(pair.changes)
        else ""
    )
    legend = paragraph(
        _swatch(FOUND),
        " found, ",
        _swatch(WRONG),
        " wrong, ",
        _swatch(MISSED),
        " missed, ",
        _swatch(ANNOTATED),
        " annotated. Filled: only in this set of results; outlined: in both.",
    )
    blocks: list[Html] = []
    for change in shown:
        blocks += _blocks(comparison, pair, change, source)
    return section(title, paragraph(f"{counts}{rest}."), legend, *blocks)


def _swatch(colour: tuple[int, int, int]) -> Html:
    style = (
        f"display:inline-block;width:.9em;height:.9em;border-radius:.2em;vertical-align:-.1em;background:rgb{colour}"
    )
    return element("span", style=style, aria_hidden="true")


def _blocks(comparison: Comparison, pair: PairComparison, change: ImageChange, source: ImageSource) -> Iterator[Html]:
    """Heading and pictures of one image."""
    name = names_of_images(comparison.truth).get(change.image, f"image {change.image}")
    words = [
        f"{count_of(count, noun)} {state}"
        for count, noun, state in (
            (change.gained, "object", "gained"),
            (change.lost, "object", "lost"),
            (change.new_wrong, "wrong result", "new"),
            (change.gone_wrong, "wrong result", "gone"),
        )
        if count
    ]
    yield element("h3", f"{name}: {', '.join(words)}")
    captions = ["ground truth", comparison.base.source.name, pair.after.source.name]
    image, reason = source.read(change.image)
    if reason:
        yield paragraph(f"{reason}.")
    view = view_of(image, surround(_boxes_of_change(comparison, pair, change), image.shape[:2]), _SIDE)
    pictures = [_draw_truth(comparison, change, view)]
    for side, own in ((comparison.base, change.before), (pair.after, change.after)):
        pictures.append(_draw_side(comparison, side, own, view))
    figures = [
        figure(data_uri(picture), f"{caption} on {name}", caption, picture.shape[:2])
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    yield element(
        "div", *figures, class_="grid", style="grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))"
    )


def _boxes_of_change(comparison: Comparison, pair: PairComparison, change: ImageChange) -> list[list[float]]:
    """The boxes of everything that changed on an image."""
    boxes = []
    for side, own in ((comparison.base, change.before), (pair.after, change.after)):
        boxes += [side.results[row]["bbox"] for row in (*own.found_only, *own.wrong_only)]
        boxes += [comparison.truth.annotations[index]["bbox"] for index in own.missed_only]
    return boxes


def _draw_truth(comparison: Comparison, change: ImageChange, view: View) -> PixelArray:
    picture = view.pixels.copy()
    own = [one["segmentation"] for one in comparison.truth.annotations if one["image_id"] == change.image]
    draw_layer(picture, view, own, ANNOTATED, line=2)
    return picture


def _draw_side(comparison: Comparison, side: ComparedResults, own: SideOfImage, view: View) -> PixelArray:
    """One set of results on an image: outlines of what is in both, then what is only here, filled."""
    picture = view.pixels.copy()
    results, objects = side.results, comparison.truth.annotations
    for found, wrong, missed, filled in (
        (own.found, own.wrong, own.missed, False),
        (own.found_only, own.wrong_only, own.missed_only, True),
    ):
        draw_layer(picture, view, [objects[index]["segmentation"] for index in missed], MISSED, filled=filled, line=2)
        draw_layer(picture, view, [results[row]["segmentation"] for row in found], FOUND, filled=filled, line=2)
        draw_layer(picture, view, [results[row]["segmentation"] for row in wrong], WRONG, filled=filled, line=2)
    return picture


def _recipes(comparison: Comparison) -> Html:
    """Options in which the recipes differ."""
    known = [bool(one.source.recipe()) for one in comparison.all]
    if sum(known) < 2:
        lacking = ", ".join(one.source.name for one, has in zip(comparison.all, known, strict=True) if not has)
        return section("Recipes", paragraph(f"Not compared: no train_config.json is known for {lacking}."))
    if not comparison.recipes:
        return section("Recipes", paragraph("The runs have the same options."))
    rows = [[key, *(json.dumps(value, ensure_ascii=False) for value in values)] for key, values in comparison.recipes]
    return section("Recipes", table(["option", *(one.source.name for one in comparison.all)], rows))


def _sources(comparison: Comparison) -> Html:
    """Where everything is from."""
    rows = [
        [one.source.name, end_of_path(one.source.predictions), len(one.results), "; ".join(one.notes)]
        for one in comparison.all
    ]
    truth, digest = comparison.truth.data, digest_of_truth(comparison.truth)
    about = paragraph(
        f"Ground truth: {truth}, SHA-256 of its content {digest[:12]}. Whole paths are in {COMPARE_JSON}."
    )
    return section("Sources", about, table(["name", "results", "number", "notes"], rows))
