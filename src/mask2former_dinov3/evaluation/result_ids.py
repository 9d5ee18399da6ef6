"""Bring the ids of a results file to those of an annotation file, by the names of images and classes.

`predict` numbers the images as it finds them. Its COCO data set (`predictions.json`) says itself what each number
means; of a bare list of results the file `images.json` beside it does. Others have to have the annotation file's own
ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic_files import write_json
from ..data.faults import count_of, quote
from ..data.numbers import whole_number
from ..errors import DatasetError, mismatch
from ..json_files import describe, read_json, read_json_object

IMAGES_FILE = "images.json"
_SHOWN = 3  # names in a message


class NamedImages(NamedTuple):
    """What a file with `images` and `categories` calls its ids. images: id -> file name, height, width."""

    images: dict[int, tuple[str, object, object]]
    categories: dict[int, str]


class NamedResults(NamedTuple):
    """Results as they were read. entries: the list. names: `images` and `categories` of their ids, empty if unknown.

    beside: where the names stand. name: of the file of the results, empty for content.
    """

    entries: list[Any]
    names: Mapping[str, object]
    beside: Path
    name: str


def translate_results(
    results: NamedResults, content: Mapping[str, object], name: str
) -> tuple[list[object], list[str]]:
    """The entries of results with the ids of an annotation file (`content`, called `name`), and notes on that.

    Without names, or where the ids are the annotation file's already, entries stay as they are. Results of images that
    the annotation file does not have are left out, counted. Raises DatasetError if no image has the name of one of the
    annotation file.
    """
    entries, names, beside, file = results
    if not names:
        return entries, []
    of_results = _names_of(names)
    of_truth = _names_of(content)
    used = {whole_number(entry.get("image_id")) for entry in entries if isinstance(entry, Mapping)}
    if not used <= of_results.images.keys():
        own = Path(file).name if file else "the annotations"
        note = f"{beside} does not name all images of {own} and was not used: ids are taken as they are"
        return entries, [note]
    images = match_names(of_results.images, of_truth.images)
    if not images and of_results.images:
        expected, got = f"names of images in {name} ({_list_names(of_truth)})", _list_names(of_results)
        raise DatasetError(
            f"{beside}: {mismatch(expected, got, 'score the results on the annotations of their images')}"
        )
    categories = _match_categories(of_results.categories, of_truth.categories)
    if all(key == other for one in (images, categories) for key, other in one.items()) and used <= images.keys():
        return entries, []
    kept: list[object] = []
    left_out: set[int] = set()
    for entry in entries:
        image_id = whole_number(entry.get("image_id")) if isinstance(entry, Mapping) else None
        if image_id is None:
            kept.append(entry)  # whoever reads it reports it
        elif image_id in images:
            category_id = whole_number(entry.get("category_id"))
            changed = {"category_id": categories[category_id]} if category_id in categories else {}
            kept.append({**entry, **changed, "image_id": images[image_id]})
        else:
            left_out.add(image_id)
    return kept, list(_describe(beside, name, len(images), of_results, left_out))


def read_both_forms(predictions: Path | Mapping[str, object]) -> NamedResults:
    """A file of COCO results, or a COCO data set as `predict` writes it: a file, or its content.

    Names are those of the data set, or of the `images.json` that `predict` and `evaluate` write beside results. Raises
    DatasetError for anything else.
    """
    expected = "COCO results (a list of objects), or a COCO data set (images, categories and annotations)"
    name = str(predictions) if isinstance(predictions, Path) else ""
    place = Path(name or "predictions")
    found = read_json(place, expected, raises=DatasetError) if name else predictions
    entries, names = found, {}
    if isinstance(found, Mapping):
        entries = found.get("annotations")
        names = {key: found[key] for key in ("images", "categories") if key in found}
    elif (place.parent / IMAGES_FILE).is_file():
        described = "images.json of predict (a JSON object with images and categories)"
        place = place.parent / IMAGES_FILE
        names = read_json_object(place, described, raises=DatasetError)
    if not isinstance(entries, list):
        raise DatasetError(f"{name or place}: {mismatch(expected, describe(found))}")
    return NamedResults(entries, names, place, name)


def _describe(beside: Path, name: str, matched: int, of_results: NamedImages, left_out: set[int]) -> Iterable[str]:
    yield f"ids of images and classes were matched by name: {count_of(matched, 'image')} of {beside} with {name}"
    if left_out:
        first = ", ".join(of_results.images[image_id][0] for image_id in sorted(left_out)[:_SHOWN])
        yield f"results of {count_of(len(left_out), 'image')} that {name} does not have were left out: {first}"


def _names_of(content: Mapping[str, object]) -> NamedImages:
    """The names in `images` and `categories`; entries without an id or a name are passed over."""
    found: dict[str, dict[int, Mapping[str, object]]] = {}
    for section, key in (("images", "file_name"), ("categories", "name")):
        found[section] = {}
        for entry in _list_of(content, section):
            if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
                continue
            if (entry_id := whole_number(entry.get("id"))) is not None:
                found[section].setdefault(entry_id, entry)
    return NamedImages(
        {key: (str(one["file_name"]), one.get("height"), one.get("width")) for key, one in found["images"].items()},
        {key: str(one["name"]).strip() for key, one in found["categories"].items()},
    )


def match_names(
    results: Mapping[int, tuple[str, object, object]], truth: Mapping[int, tuple[str, object, object]]
) -> dict[int, int]:
    """Id in the results -> id in the annotation file, of the images with the same name.

    Names are the same if they are equal, or if one of them is the end of the other, folder by folder. Raises
    DatasetError for images of different sizes, and where a name fits several images of either file.
    """
    by_end: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for image_id, (name, _, _) in truth.items():
        parts = _parts(name)
        for start in range(len(parts)):
            by_end[parts[start:]].append(image_id)
    exact: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for image_id, (name, _, _) in truth.items():
        exact[_parts(name)].append(image_id)
    matched: dict[int, int] = {}
    for image_id, (name, height, width) in results.items():
        parts = _parts(name)
        fitting = exact.get(parts) or by_end.get(parts, [])
        if not fitting:  # the results' name has more folders
            ends = (parts[start:] for start in range(1, len(parts)))
            fitting = next((exact[end] for end in ends if end in exact), [])
        if len(fitting) > 1:
            others = ", ".join(truth[one][0] for one in fitting[:_SHOWN])
            raise DatasetError(f"image {name}: {mismatch('one image of that name in the annotations', others)}")
        if fitting:
            _check_sizes(name, (height, width), truth[fitting[0]][1:])
            matched[image_id] = fitting[0]
    twice = [one for one, count in Counter(matched.values()).items() if count > 1]
    if twice:
        names = ", ".join(results[key][0] for key, one in matched.items() if one == twice[0])
        expected = f"one image with results for {truth[twice[0]][0]} of the annotations"
        raise DatasetError(
            f"images.json: {mismatch(expected, names, 'predict on the folder of the annotations alone')}"
        )
    return matched


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _check_sizes(name: str, of_results: tuple[object, ...], of_truth: tuple[object, ...]) -> None:
    sizes = [tuple(map(whole_number, size)) for size in (of_results, of_truth)]
    if None not in (*sizes[0], *sizes[1]) and sizes[0] != sizes[1]:
        expected = f"the size of the annotations, {sizes[1][0]} x {sizes[1][1]} pixels (height x width)"
        raise DatasetError(f"image {name}: {mismatch(expected, f'results for {sizes[0][0]} x {sizes[0][1]}')}")


def _match_categories(results: Mapping[int, str], truth: Mapping[int, str]) -> dict[int, int]:
    """Category id in the results -> in the annotation file, by name.

    A class whose name the annotation file does not have keeps its id, unless that id means another class there: it then
    becomes one that the file does not have, which is refused when it is read.
    """
    by_name: dict[str, int] = {}
    for category_id, name in truth.items():
        by_name.setdefault(name, category_id)
    unknown = min(truth, default=0) - 1
    return {key: by_name.get(name, unknown if key in truth else key) for key, name in results.items()}


def _list_names(named: NamedImages) -> str:
    names = [name for name, _, _ in list(named.images.values())[:_SHOWN]]
    return ", ".join(names) + ", …" * (len(named.images) > _SHOWN) if names else "none"


def describe_wrong_ids(wrong: Sequence[object], number: int, known: Iterable[int], name: str) -> str:
    """The error for many results with image ids that the annotation file does not have."""
    shown = ", ".join(list(dict.fromkeys(map(quote, wrong)))[:_SHOWN])
    ids = ", ".join(map(str, sorted(known)[:_SHOWN]))
    expected = f"the ids of images in {name} ({ids}, …)"
    got = f"others in {len(wrong)} of {number} results ({shown}, …)"
    advice = "results of `predict` are matched by name if its images.json lies beside them"
    return f"image_id: {mismatch(expected, got, advice)}"


def write_names(folder: Path, content: Mapping[str, object]) -> None:
    """Write images.json beside a results file with the annotation file's own ids; one of an earlier run goes."""
    images = [
        {key: one[key] for key in ("id", "file_name", "height", "width") if key in one}
        for one in _list_of(content, "images")
        if isinstance(one, Mapping)
    ]
    named = {"images": images, "categories": _list_of(content, "categories")}
    write_json(folder / IMAGES_FILE, named)


def _list_of(content: Mapping[str, object], section: str) -> list[object]:
    value = content.get(section)
    return value if isinstance(value, list) else []
