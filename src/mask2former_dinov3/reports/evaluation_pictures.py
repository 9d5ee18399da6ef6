"""The pictures of a report: the worst, the best and the most disputed images, and crops of labels in doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..data.faults import count_of
from ..data.fitting import PixelArray
from ..evaluation.coco_files import ScoredMask
from ..evaluation.doubtful_labels import DoubtfulLabel, count_kinds
from ..evaluation.error_kinds import ERROR_KINDS
from ..evaluation.image_ranking import ImageCount, best_images, disputed_images, worst_images
from ..evaluation.report_numbers import Findings
from .html_page import Html, element, figure, folded, grid, join, paragraph, section, table
from .image_source import ImageSource
from .layered_pictures import LAYER_COLOURS, Layer, Outlined, layered_figure
from .picture_store import PictureStore
from .pictures import View, draw_layer, square_around, view_of

ShowPicture = Callable[[str, PixelArray], None]
"""Takes a name and a picture (h, w, 3)."""
WORST, BEST, DISPUTED = 12, 6, 6  # images shown of each kind
FIRST = 4  # of each kind, outside the page
MORE = 120  # further ones with errors, as small pictures
CROPS = 4  # of the worst objects of an image
SIDE_OF_IMAGE = 1000  # pixels of a whole image
SIDE_OF_CROP = 320
SIDE_OF_FIRST = 512
DOUBTS = 60  # labels in doubt with a picture
ROWS = 500  # of a table


class EvaluationPictures:
    """Draws the images of an evaluation. source: reads them; store: takes the pictures."""

    def __init__(self, findings: Findings, source: ImageSource, store: PictureStore) -> None:
        self.findings, self.source, self.store = findings, source, store
        self.right, self.wrong = findings.matches.right, findings.matches.wrong  # each is computed again when asked for
        self.objects = _by_image(findings.overlaps.object_image)
        self.found = _by_image(findings.overlaps.result_image)
        self.drawn = 0

    def name(self, category: int) -> str:
        """The name of a class by its number."""
        return self.findings.truth.names[category - 1]

    def images_section(self) -> Html:
        """The worst, best and most disputed images, each with its layers; crops of the worst objects first."""
        counts = self.findings.numbers.images
        note = (
            "Green: results that find an object. Red: results that find none. Orange, filled: objects missed. All at "
            "the thresholds of the classes and an IoU of 0.5. The check boxes switch layers on and off; rest the "
            "pointer on an outline to read what it is."
        )
        parts: list[Html] = [paragraph(note)]
        for title, chosen, crops in (
            ("Worst images", worst_images(counts, WORST), CROPS),
            ("Most disputed images", disputed_images(counts, DISPUTED), 0),
            ("Best images", best_images(counts, BEST), 0),
        ):
            if chosen:
                parts.append(element("h3", title))
                parts += [self._image(one, crops) for one in chosen]
        if more := worst_images(counts, WORST + MORE)[WORST:]:
            small = [self._small(one) for one in more]
            parts.append(folded(f"{count_of(len(more), 'more image')} with errors, the worst first", grid(small)))
        parts.append(folded("all images in numbers", self._table(counts)))
        return section("Pictures", *parts, anchor="pictures")

    def _table(self, counts: Sequence[ImageCount]) -> Html:
        names = self.findings.file_names
        ordered = worst_images(counts, len(counts))[:ROWS]
        rows = [(names[one.image], one.right, one.wrong, one.missed, round(one.f1, 3)) for one in ordered]
        left = f"; the worst {ROWS:,} of {len(counts):,}, report.json has all" if len(counts) > ROWS else ""
        head = ["image", "right", "wrong", "missed", "F1"]
        return table(head, rows, caption=f"images with errors, the worst first{left}")

    def show_first(self, show: ShowPicture) -> None:
        """Draw the first of the worst and of the best images of the page, with the layers that it shows at first."""
        counts = self.findings.numbers.images
        for kind, chosen in (("worst", worst_images(counts, FIRST)), ("best", best_images(counts, FIRST))):
            for number, one in enumerate(chosen, start=1):
                picture, _ = self._draw(one, SIDE_OF_FIRST)
                show(f"{kind} images/{number} {self.findings.file_names[one.image]}", picture)

    def _small(self, one: ImageCount) -> Html:
        """A small picture of an image, with its errors drawn in."""
        picture, fault = self._draw(one, SIDE_OF_CROP)
        name = self.findings.file_names[one.image]
        text = f"{one.right} right, {one.wrong} wrong, {one.missed} missed"
        caption = join([name, text, *([fault] if fault else [])], "<br>")
        return figure(self.store.add(picture), f"{name}: {text}", caption, picture.shape[:2])

    def _draw(self, one: ImageCount, side: int) -> tuple[PixelArray, str]:
        """An image with the layers that are shown at first, and why it is grey, "" if it is not."""
        pixels, fault = self.source.read(one.image)
        view = view_of(pixels, None, side)
        picture = view.pixels.copy()
        for layer in self._layers(one.image):
            if layer.shown:
                masks, colour = [mask.segmentation for mask in layer.masks], LAYER_COLOURS[layer.key]
                draw_layer(picture, view, masks, colour, filled=layer.key == "missed")
        return picture, fault

    def _image(self, one: ImageCount, crops: int) -> Html:
        """One image: crops of its worst objects, then the whole."""
        pixels, fault = self.source.read(one.image)
        name = self.findings.file_names[one.image]
        f1 = f", F1 {one.f1:.2f}" if one.f1 >= 0 else ""
        text = f"{one.right} right, {one.wrong} wrong, {one.missed} missed{f1}"
        caption = join([name, text, *([fault] if fault else [])], "<br>")
        layers = self._layers(one.image)
        parts = []
        for box, what in self._worst_objects(layers)[:crops]:
            view = view_of(pixels, square_around([box], pixels.shape[:2]), SIDE_OF_CROP)
            parts.append(self._figure(view, layers, what, f"{name}: {what}", switches=False))
        whole = self._figure(view_of(pixels, None, SIDE_OF_IMAGE), layers, caption, f"{name}: {text}")
        return element("div", *([grid(parts)] if parts else []), whole, class_="image")

    def _figure(
        self, view: View, layers: Sequence[Layer], caption: str | Html, alt: str, switches: bool = True
    ) -> Html:
        self.drawn += 1
        return layered_figure(view, layers, caption, alt, f"p{self.drawn}", self.store.add, switches=switches)

    def _layers(self, image: int) -> list[Layer]:
        """True positives, false positives, missed objects; all objects and all results, hidden at first."""
        findings = self.findings
        matches, shown = findings.matches, findings.shown
        objects, results = self.objects.get(image, []), self.found.get(image, [])
        right = [one for one in results if shown[one] and self.right[one]]
        wrong = [one for one in results if shown[one] and self.wrong[one]]
        taken = {int(matches.object_of[one]) for one in right}
        whole = [one for one in objects if not findings.overlaps.crowd[one]]
        return [
            Layer("right", "right", True, [self._result(one) for one in right]),
            Layer("wrong", "wrong", True, [self._result(one) for one in wrong]),
            Layer("missed", "missed", True, [self._object(one) for one in whole if one not in taken]),
            Layer("truth", "labels", False, [self._object(one) for one in objects]),
            Layer("found", "results", False, [self._result(one) for one in (*right, *wrong)]),
        ]

    def _object(self, index: int) -> Outlined:
        mask = self.findings.truth.annotations[index]
        crowd = ", crowd region" if mask["iscrowd"] else ""
        return _outlined(mask, f"label: {self.name(mask['category_id'])}{crowd}")

    def _result(self, index: int) -> Outlined:
        findings = self.findings
        mask = findings.results[int(findings.overlaps.result_row[index])]
        kind = int(findings.errors.kind[index])
        end = f"IoU {findings.matches.iou_of[index]:.2f}" if kind < 0 else f"error: {ERROR_KINDS[kind]}"
        score = findings.overlaps.score[index]
        return _outlined(mask, f"result: {self.name(mask['category_id'])}, score {score:.2f}, {end}")

    def _worst_objects(self, layers: Sequence[Layer]) -> list[tuple[Sequence[float], str]]:
        """Boxes of the errors of an image with words: missed objects by their area, then wrong results by score."""
        masks = {layer.key: layer.masks for layer in layers}
        missed = sorted(masks["missed"], key=lambda one: -one.box[2] * one.box[3])
        wrong = masks["wrong"]  # best first
        half = max(CROPS // 2, CROPS - len(wrong))
        found: list[tuple[Sequence[float], str]] = []
        for one in (*missed[:half], *wrong):
            if not any(_same_place(one.box, other) for other, _ in found):
                found.append((one.box, one.text.replace("label:", "missed:").replace("result:", "wrong:")))
        return found

    def doubts_section(self) -> Html:
        """The labels in doubt, the most suspicious first, with pictures of the first ones."""
        doubts = self.findings.numbers.doubts
        if not doubts:
            text = "No label is contradicted by a confident result."
            return section("Labels in doubt", paragraph(text), anchor="doubts")
        counts = ", ".join(f"{count} {kind}" for kind, count in count_kinds(doubts).items() if count)
        note = (
            f"{count_of(len(doubts), 'label')} in doubt: {counts}. The suspicion is the score of the result times the "
            "precision of its class, less what the overlap takes off; an object that is never found has at most 0.5, "
            "less where the model misses many. "
            "Orange: the label. Pink: the result. labels_in_doubt.csv and labels_in_doubt.json (COCO) beside this page "
            "hold all of them, for a labelling tool."
        )
        figures = [self._doubt(one) for one in doubts[:DOUBTS]]
        shown = f"The first {DOUBTS} are shown." if len(doubts) > DOUBTS else ""
        return section("Labels in doubt", paragraph(note), paragraph(shown), grid(figures), anchor="doubts")

    def _doubt(self, one: DoubtfulLabel) -> Html:
        """The crop of one label in doubt."""
        findings = self.findings
        labels = [findings.truth.annotations[index] for index in (one.item, one.other) if index >= 0]
        results = [findings.results[one.result]] if one.result >= 0 else []
        pixels, fault = self.source.read(one.image)
        boxes = [mask["bbox"] for mask in (*labels, *results)]
        view = view_of(pixels, square_around(boxes, pixels.shape[:2]), SIDE_OF_CROP)
        layers = [
            Layer("subject", "label", True, [_outlined(mask, self.name(mask["category_id"])) for mask in labels]),
            Layer("claim", "result", True, [_outlined(mask, self.name(mask["category_id"])) for mask in results]),
        ]
        lines = [f"{one.kind}, suspicion {one.suspicion:.2f}", self.describe(one), findings.file_names[one.image]]
        lines += [fault] if fault else []
        return self._figure(view, layers, join(lines, "<br>"), ", ".join(lines[:3]), switches=False)

    def describe(self, one: DoubtfulLabel) -> str:
        """What is contradicted, in words."""
        said = f"{self.name(one.suggested)} at {one.score:.2f}" if one.result >= 0 else ""
        if one.kind == "other class":
            return f"labelled {self.name(one.category)}, found as {said}"
        if one.kind == "no label":
            return f"{said} where nothing is labelled"
        if one.kind == "never found":
            return f"{self.name(one.category)}, which nothing finds"
        if one.kind == "other outline":
            return f"{said}, IoU {one.iou:.2f} with the label"
        return f"{self.name(one.category)} on {self.name(one.suggested)}"


def _same_place(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one picture shows both boxes (left, top, width, height): the middle of one lies in the other."""
    x, y = one[0] + one[2] / 2, one[1] + one[3] / 2
    return other[0] <= x <= other[0] + other[2] and other[1] <= y <= other[1] + other[3]


def _outlined(mask: ScoredMask, text: str) -> Outlined:
    return Outlined(mask["segmentation"], mask["bbox"], text)


def _by_image(images: np.ndarray) -> Mapping[int, list[int]]:
    """Image -> indices, in their order."""
    found: dict[int, list[int]] = {}
    for index, image in enumerate(images.tolist()):
        found.setdefault(image, []).append(index)
    return found
