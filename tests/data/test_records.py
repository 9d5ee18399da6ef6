"""Records in flat arrays: the same as records one by one, read in pieces as read whole, shared through a folder."""

import gc
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.data import coco, json_stream
from mask2former_dinov3.data.batch_parsing import parse_plain
from mask2former_dinov3.data.coco import CocoData, ImageRecord, parse_coco, parse_splits, read_coco
from mask2former_dinov3.data.faults import Fault, FaultReport, Place
from mask2former_dinov3.data.json_stream import NotStreamableError, stream_lists, without_collector
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.records import load_table
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.sample_data import SAMPLE
from support.coco import make_table


def values_of(record: ImageRecord) -> object:
    """Everything in a record, comparable."""
    annotations = [
        (
            one.id,
            one.label,
            one.category_id,
            [part.tolist() for part in one.segmentation] if isinstance(one.segmentation, list) else one.segmentation,
            one.iscrowd,
            one.bbox,
            one.area,
        )
        for one in record.annotations
    ]
    return record.id, record.file_name, record.path, record.height, record.width, annotations


def all_values(data: CocoData) -> list[object]:
    return [values_of(record) for record in data.images]


def places_of(faults: list[Fault]) -> dict[tuple[str, str], set[Place]]:
    """Severity and kind -> all places; without the crowd regions of a file, which are judged by its whole number."""
    found: dict[tuple[str, str], set[Place]] = {}
    for fault in faults:
        if fault.kind == "crowd regions":
            continue
        found.setdefault((fault.severity, fault.kind), set()).update(fault.places)
    return found


def mixed_file(folder: Path, count: int = 300) -> Split:
    """A file with polygons, RLEs, crowds, several parts, and annotations that are not plain or not sound."""
    rng = random.Random(0)
    images = [{"id": 3 * i + 1, "file_name": f"bäd {i}.png", "height": 40, "width": 60} for i in range(20)]
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        left, top = rng.uniform(0, 50), rng.uniform(0, 30)
        square = [left, top, left + 8.25, top, left + 8, top + 7.5, left, top + 8]
        one: dict[str, Any] = {
            "id": number,
            "image_id": rng.choice(images)["id"],
            "category_id": rng.choice([2, 17]),
            "segmentation": [square],
            "bbox": [left, top, 8, 8],
            "area": 64,
            "iscrowd": 0,
        }
        kind = number % 12
        if kind == 1:
            one["segmentation"] = [square, [1, 2, 9, 2, 9, 9]]
        if kind == 2:
            one.update(segmentation={"size": [40, 60], "counts": [5, 7, 40 * 60 - 12]}, iscrowd=1)
        if kind == 3:
            del one["bbox"], one["area"]
        if kind == 4:
            one["segmentation"] = [[value - 45 for value in square]]  # partly or wholly outside
        if kind == 5:
            one["segmentation"] = [[1.2, 1.2, 1.3, 1.2, 1.3, 1.3]]  # covers no pixel
        if kind == 6:
            one.update(image_id=str(one["image_id"]), attributes={"boxes": [{"a": 1}, {"a": "}, {"}]})
        if kind == 7 and number > 100:
            one["category_id"] = 5
        if kind == 8 and number > 100:
            one["id"] = 8
        if kind == 9 and number > 200:
            one["segmentation"] = [[float("nan"), *square[1:]]]
        annotations.append(one)
    categories = [{"id": 17, "name": "dog"}, {"id": 2, "name": "cat"}]
    content = {
        "info": {"a": [1, {"b": "]}, {"}]},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "a.json").write_text(json.dumps(content))
    return Split("train", folder / "a.json", folder)


def streamed(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Read every file in pieces of this size."""
    monkeypatch.setattr(json_stream, "LARGE", 0)
    read = json_stream.stream_lists
    monkeypatch.setattr(coco, "stream_lists", lambda path, lists: read(path, lists, piece))


@pytest.mark.parametrize("piece", [64, 700, 10_000, 10_000_000])
def test_parse_coco__in_pieces_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    split = mixed_file(tmp_path)
    data, faults = parse_coco(split)
    assert len(data.images.columns.ids) > 200
    assert sum(len(fault.places) for fault in faults) > 40
    streamed(monkeypatch, piece)
    in_pieces, other_faults = parse_coco(split)
    assert all_values(in_pieces) == all_values(data)
    assert places_of(other_faults) == places_of(faults)


@pytest.mark.parametrize("order", ["images annotations categories", "annotations categories images"])
def test_parse_coco__sections_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    split = mixed_file(tmp_path)
    data, faults = parse_coco(split)
    content = json.loads(split.annotations.read_text())
    split.annotations.write_text(json.dumps({key: content[key] for key in order.split()}))
    streamed(monkeypatch, 3000)
    other, other_faults = parse_coco(split)
    assert all_values(other) == all_values(data)
    assert places_of(other_faults) == places_of(faults)


def test_without_collector__goes_on_behind_an_error() -> None:
    def fail() -> None:
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        without_collector()(fail)()
    assert gc.isenabled()


def test_parse_coco__many_at_a_time_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = mixed_file(tmp_path)
    data, faults = parse_coco(split)
    counts = []

    def nothing_plain(entries: Any, *others: Any) -> Any:
        plain, _ = parse_plain(entries, *others)
        counts.append(len(plain.ids))
        return parse_plain([], *others)[0], list(range(len(entries)))

    monkeypatch.setattr(coco, "parse_plain", nothing_plain)
    slow, slow_faults = parse_coco(split)
    assert sum(counts) > 100  # or nothing would be compared
    assert all_values(slow) == all_values(data)
    assert slow_faults == faults


def test_parse_coco__a_damaged_large_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = mixed_file(tmp_path)
    text = split.annotations.read_text()
    streamed(monkeypatch, 500)
    for damaged, message in (
        (text[:-4000], "invalid JSON (line 1, column"),
        (text.replace('"id": 150,', '"id" 150,'), "invalid JSON (line 1, column"),
        (text + "]", "invalid JSON (line 1, column"),
        ("[]", "got a list"),
        (text.replace('"categories"', '"classes"'), "categories: expected a list, got nothing"),
    ):
        split.annotations.write_text(damaged)
        with pytest.raises(DatasetError) as caught:
            read_coco(split)
        assert str(split.annotations) in str(caught.value)
        assert message in str(caught.value)


@pytest.mark.parametrize("change", ["images", "categories", "category id", "category name"])
def test_parse_coco__faults_of_a_large_file_in_the_words_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Also where the categories stand behind the annotations, as in COCO's own files."""
    split = mixed_file(tmp_path, 60)
    content = json.loads(split.annotations.read_text())
    if change in ("images", "categories"):
        content[change] = []
    elif change == "category id":
        content["categories"][0]["id"] = "cell"
        for one in content["annotations"]:
            one["category_id"] = "cell" if one["category_id"] == 17 else one["category_id"]
    else:
        content["categories"][0]["name"] = None
    split.annotations.write_text(json.dumps(content))
    _, faults = parse_coco(split)
    streamed(monkeypatch, 3000)
    assert sorted(map(str, parse_coco(split)[1])) == sorted(map(str, faults))


def test_stream_lists__each_entry_once_and_in_order(tmp_path: Path) -> None:
    """Texts with brackets, nested lists of objects, spaces, and characters of several bytes at every cut."""
    entries = [
        {"i": i, "é}, {": [{"x": "}, {"}, {"y": [1, {"z": "ü" * (i % 7)}]}], "t": '"\\' * (i % 3)} for i in range(90)
    ]
    for text in (json.dumps({"a": entries, "n": 1.5, "b": []}), json.dumps({"a": entries, "b": []}, indent=2)):
        (tmp_path / "x.json").write_text(text)
        for piece in range(20, 400, 7):
            found: dict[str, list[object]] = {"a": [], "b": []}
            for key, some in stream_lists(tmp_path / "x.json", {"a", "b"}, piece):
                found[key] += some
            assert found == {"a": entries, "b": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"a": [1]}',
        '{"a": [{}, 1]}',
        '{"a": {}}',
        '{"a": []} x',
        '{"a": [], "a": []}',
        '{"a": [{}]',
        '{"a" []}',
    ],
)
def test_stream_lists__anything_else_is_left_to_the_reader_of_whole_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(NotStreamableError):
        list(stream_lists(tmp_path / "x.json", {"a"}))


@pytest.mark.parametrize(
    "text", ['{"n": ' + "1" * 5000 + ', "a": []}', '{"n": ' + "[" * 10**5 + "]" * 10**5 + ', "a": []}']
)
def test_stream_lists__what_python_cannot_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(NotStreamableError):
        list(stream_lists(tmp_path / "x.json", {"a"}))


def test_stream_lists__bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": [{"n": "caf\xe9"}]}')
    with pytest.raises(ValueError, match="utf-8"):
        list(stream_lists(tmp_path / "x.json", {"a"}))


def test_parse_splits__a_shared_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mixed_file(tmp_path, 100)  # without ids that two images share
    valid = frozenset({1, 7, 58})
    train = frozenset(range(1, 60, 3)) - valid
    splits = {"train": replace(whole, image_ids=train), "valid": replace(whole, name="valid", image_ids=valid)}
    alone = {name: parse_coco(split) for name, split in splits.items()}
    reads: list[Path] = []
    read = coco.read_content  # type: ignore[attr-defined]

    def count(split: Split, report: FaultReport) -> Any:
        reads.append(split.annotations)
        return read(split, report)

    monkeypatch.setattr(coco, "read_content", count)
    together = parse_splits(splits)
    assert reads == [whole.annotations]
    for name, (data, _) in together.items():
        assert data is not None
        assert all_values(data) == all_values(alone[name][0])
    faults = [fault for _, faults in together.values() for fault in faults]
    assert places_of(faults) == places_of([fault for _, faults in alone.values() for fault in faults])
    assert [data.source.name for data, _ in together.values() if data is not None and data.source] == ["train", "valid"]
    assert together["train"][0].images.columns is together["valid"][0].images.columns  # type: ignore[union-attr]


def test_image_table__stored_opened_pickled_and_sliced(tmp_path: Path) -> None:
    data = read_coco(Split("valid", SAMPLE / "valid" / "_annotations.coco.json", SAMPLE / "valid"))
    expected = all_values(data)
    stored = data.images.take([2, 0, 1]).save(tmp_path / "index")
    opened = load_table(tmp_path / "index", stored.rows)
    assert isinstance(opened.columns.vertices, np.memmap)
    copied = pickle.loads(pickle.dumps(opened))
    assert len(pickle.dumps(opened)) < 2000  # the folder, not the arrays
    for table in (stored, opened, copied, pickle.loads(pickle.dumps(data.images.take([2, 0, 1])))):
        assert [values_of(record) for record in table] == [expected[2], expected[0], expected[1]]
    assert [values_of(one) for one in data.images[1::2]] == expected[1::2]
    assert values_of(data.images[-1]) == expected[-1]
    assert len(data.images.take([])) == 0
    with pytest.raises(IndexError):
        data.images[len(data.images)]


@pytest.mark.parametrize("odd", [None, 3.125, 1 / 3, 1e-300, -0.005])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "rare"])
def test_image_table__vertices_are_the_numbers_of_the_file(tmp_path: Path, odd: float | None, plain: bool) -> None:
    """Hundredths of a pixel, as integers, are exact; where one vertex is none, all are kept as they are."""
    rng = np.random.default_rng(0)
    polygons = [[float(f"{value:.2f}") for value in rng.uniform(-3, 99_999, 48)] for _ in range(200)]
    if odd is not None:
        polygons[120][7] = odd
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "segmentation": [polygon]}
        | ({} if plain else {"iscrowd": False})
        for number, polygon in enumerate(polygons, 1)
    ]
    image = {"id": 1, "file_name": "a.png", "height": 100_000, "width": 100_000}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}))
    (tmp_path / "a.png").touch()
    data, _ = parse_coco(Split("train", file, tmp_path))
    assert data is not None
    assert data.images.columns.vertices.dtype == (np.int32 if odd is None else np.float64)
    stored = data.images.save(tmp_path / "index")
    for table in (data.images, load_table(tmp_path / "index", stored.rows)):
        found = [one.segmentation for one in table[0].annotations]
        assert [np.ravel(part).tolist() for (part,) in found] == polygons


def test_image_table__of_records_and_its_counts(tmp_path: Path) -> None:
    data, _ = parse_coco(mixed_file(tmp_path))
    remade = make_table(list(data.images), data.categories)
    assert [values_of(one) for one in remade] == all_values(data)
    part = data.images.take([5, 0, 7])
    rows, places = part.instance_rows()
    expected = [(place, one.id) for place, image in enumerate(part) for one in image.annotations if not one.iscrowd]
    assert list(zip(places.tolist(), part.columns.ids[rows].tolist(), strict=True)) == expected
    assert part.instance_counts().tolist() == [sum(not one.iscrowd for one in image.annotations) for image in part]
    assert make_table([], data.categories).instance_counts().tolist() == []


@pytest.mark.parametrize(
    "odd",
    [
        {"segmentation": [[1, 1, True, 1, 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, False, 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, "1", 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, None, 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, [1], 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9, 1]]},
        {"segmentation": [[1, 1, 9, 9], [1, 1, 9, 1, 9, 9, 1, 9]]},
        {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9], None]},
        {"segmentation": []},
        {"segmentation": {"size": [20, 20], "counts": "x"}},
        {"bbox": [1, 1, True, 8]},
        {"bbox": [1, 1, 8]},
        {"bbox": None},
        {"area": False},
        {"area": float("nan")},
        {"iscrowd": False},
        {"iscrowd": 1},
        {"iscrowd": []},
        {"id": "3"},
        {"id": 7},
        {"id": 1},
        {"id": True},
        {"image_id": 2},
        {"image_id": [1]},
        {"category_id": 9},
        {"category_id": 1.0},
    ],
    ids=str,
)
def test_parse_plain__one_unusual_annotation_among_others(odd: dict[str, object]) -> None:
    def entry(number: int) -> dict[str, object]:
        square = [0, 0.0, 9, 1, 9.5, 9, 1.0, 9]
        usual = {"id": number, "image_id": 1, "category_id": 2, "area": 64, "bbox": [1, 1, 8, 8.5]}
        return {**usual, "segmentation": [square, square[::-1]] if number % 2 else [square]}

    entries: list[object] = [entry(1), entry(2), {**entry(3), **odd}, entry(4)]
    sizes = np.array([[20, 20]], np.int32)
    plain, others = parse_plain(entries, 10, {1: 0}, sizes, {2}, {7})
    assert others == [2]
    assert plain.ids.tolist() == [1, 2, 4]
    assert plain.positions.tolist() == [10, 11, 13]
    assert plain.part_counts.tolist() == [2, 1, 1]
    assert plain.vertices.shape == (16, 2)
    for value in (2**64, 10**400):  # too large for an array: the whole piece is left to the other parser
        large = {**entry(5), "segmentation": [[value] * 6]} if value > 2**64 else {**entry(5), "id": value}
        plain, others = parse_plain([*entries, large], 10, {1: 0}, sizes, {2}, {7})
        assert (len(plain.ids), others) == (0, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("same", [2, 2.0, "2"])
def test_parse_plain__the_later_of_two_with_one_id_is_the_duplicate(same: object) -> None:
    """Also where the earlier one is none of the plain: the other parser reports the later."""
    usual = {"image_id": 1, "category_id": 2, "area": 64, "bbox": [1, 1, 8, 8], "segmentation": [[1, 1, 9, 1, 9, 9]]}
    entries = [{**usual, "id": 1}, {**usual, "id": same, "bbox": None}, {**usual, "id": 2}, {**usual, "id": 1}]
    plain, others = parse_plain(entries, 0, {1: 0}, np.array([[20, 20]], np.int32), {2}, set())
    assert (plain.ids.tolist(), others) == ([1], [1, 2, 3])
