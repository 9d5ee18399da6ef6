"""CVAT's XML files: every shape gives its pixels, groups are joined, and malformed elements are named by their line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError
from support.formats import find_split, masks_of, read_split, write_image

LABELS = "<meta><task><labels><label><name>crack</name></label><label><name>hole</name></label></labels></task></meta>"
SQUARE = "8.00,6.00;24.00,6.00;24.00,18.00;8.00,18.00"


def write(root: Path, *shapes: str, labels: str = LABELS, name: str = "a.png", head: str = "") -> Path:
    """One image; the first shape begins on line 5."""
    write_image(root / "images" / "a.png")
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", f"<version>1.1</version>{labels}"]
    lines += [f'<image id="0" name="{name}" width="32" height="24">{head}', *shapes, "</image>", "</annotations>"]
    (root / "annotations.xml").write_text("\n".join(lines))
    return root


def polygon(points: str = SQUARE, label: str = "crack", rest: str = "") -> str:
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0" {rest}></polygon>'


def mask(runs: str, place: str = 'left="3" top="2" width="4" height="3"', rest: str = "") -> str:
    return f'<mask label="hole" rle="{runs}" {place} z_order="1" occluded="1" {rest}></mask>'


def square() -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    found = np.zeros((24, 32), dtype=bool)
    found[6:18, 8:24] = True
    return found


def test_read_cvat__polygons_boxes_ellipses_and_masks(tmp_path: Path) -> None:
    box = (
        '<box label="crack" xtl="8" ytl="6" xbr="24" ybr="18" occluded="0"><attribute name="deep">yes</attribute></box>'
    )
    turned = '<box label="crack" xtl="8" ytl="6" xbr="24" ybr="18" rotation="90" />'
    ellipse = '<ellipse label="crack" cx="16" cy="12" rx="8" ry="4" />'
    write(tmp_path, polygon(), box, turned, ellipse, mask("1,2,4,3,2"))
    splits, _ = find_splits(tmp_path, valid_split=0)
    assert splits["train"].format == "cvat"
    data = read_split(tmp_path)
    assert [(one.id, one.name) for one in data.categories] == [(1, "crack"), (2, "hole")]
    assert data.images[0].path == tmp_path / "images" / "a.png"
    found = [one for _, one in masks_of(data)["a.png"]]
    np.testing.assert_array_equal(found[0], square())
    np.testing.assert_array_equal(found[1], square())
    assert found[2][4:20, 10:22].all()  # turned by a quarter around its centre
    assert found[2].sum() == 16 * 12
    rows, columns = np.mgrid[:24, :32] + 0.5
    distance = ((columns - 16) / 8) ** 2 + ((rows - 12) / 4) ** 2
    assert found[3][distance < 0.7].all()
    assert not found[3][distance > 1.3].any()
    whole = np.zeros((24, 32), dtype=bool)
    whole[2:5, 3:7] = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]], dtype=bool)  # runs along the rows
    np.testing.assert_array_equal(found[4], whole)


def test_read_cvat__a_box_around_the_shapes_of_its_group_is_no_part(tmp_path: Path) -> None:
    """As Datumaro writes COCO's masks: each with its box, in one group."""
    group = 'group_id="3"'
    box = f'<box label="hole" xtl="4" ytl="2" xbr="7" ybr="5" {group} />'
    other = f'<box label="crack" xtl="0" ytl="0" xbr="7" ybr="5" {group} />'
    write(tmp_path, mask("1,2,4,3,2", rest=group), box, other, polygon(rest=group))
    found = masks_of(read_split(tmp_path))["a.png"]
    assert [(name, int(one.sum())) for name, one in found] == [("hole", 5), ("crack", 16 * 12 + 35)]
    notes = check_data({"train": find_split(tmp_path)}).text()
    assert "boxes around the other shapes of their group are left out: 1" in notes
    write(tmp_path, mask("1,2,4,3,2", rest=group), mask("12", rest=group), box.replace('xtl="4"', 'xtl="0"'))
    assert [int(one.sum()) for _, one in masks_of(read_split(tmp_path))["a.png"]] == [
        7 * 3
    ]  # one of its masks is empty


def test_read_cvat__a_group_of_one_label_is_one_object(tmp_path: Path) -> None:
    group = 'group_id="3"'
    shapes = [polygon(rest=group), polygon("0,0;4,0;4,4;0,4", rest=group), polygon(label="hole", rest=group)]
    write(tmp_path, *shapes, mask("0,12", rest=group), polygon(rest='group_id="0"'))
    found = masks_of(read_split(tmp_path))["a.png"]
    assert [name for name, _ in found] == ["crack", "hole", "crack"]
    expected = square()
    expected[:4, :4] = True
    np.testing.assert_array_equal(found[0][1], expected)
    expected = square()
    expected[2:5, 3:7] = True
    np.testing.assert_array_equal(found[1][1], expected)


def test_read_cvat__counts_shapes_without_an_area(tmp_path: Path) -> None:
    write(
        tmp_path,
        polygon(),
        '<points label="crack" points="1,1" />',
        '<polyline label="crack" points="1,1;2,2" />',
        '<tag label="crack" />',
    )
    _, faults = parse_coco(find_split(tmp_path))
    assert [(one.severity, str(one)) for one in faults] == [
        ("warning", "shapes without an area are left out: 1 polyline, 1 points, 1 tag")
    ]


def test_read_cvat__every_malformed_element_is_named_by_its_line(tmp_path: Path) -> None:
    inside = 'left="30" top="2" width="4" height="3"'
    wrong = [
        (polygon("1,1;2,2"), "points: expected at least 3 points, got 2"),
        (polygon("1,1;2;3,3"), 'points: expected x,y;x,y;…, got "2"'),
        (polygon("1,1;nan,2;3,3"), 'points: expected x,y;x,y;…, got "nan,2"'),
        (polygon(label="crak"), 'class: expected one of the classes ["crack", "hole"], got "crak"; nearest is crack'),
        (mask("1,2"), "rle: expected runs that cover 3 x 4 = 12 pixels, got 3"),
        (mask(f"1,{10**30}"), "rle: expected runs that cover 3 x 4 = 12 pixels, got 1000000"),
        (mask("1,x"), 'rle: expected whole numbers of 0 and more, got "1,x"'),
        (mask("0,12", inside), "expected a rectangle in an image of 32 x 24 pixels (width x height), got x 30 to 34"),
        ('<box label="crack" xtl="8" ytl="6" xbr="24" />', "expected numbers in xtl, ytl, xbr, ybr, got"),
        (polygon("900,1;2,2;3,3"), "points: expected coordinates in an image of 32 x 24 pixels"),
    ]
    write(tmp_path, *(shape for shape, _ in wrong))
    _, faults = parse_coco(find_split(tmp_path))
    texts = [str(fault) for fault in faults if fault.severity == "error"]
    assert len(texts) == len(wrong)
    for line, (_, reason) in enumerate(wrong, start=5):
        assert any(text.startswith(f"annotations.xml:{line}: {reason}") for text in texts), (line, reason)


def test_read_cvat__missing_images_tracks_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r'annotations.xml:4: expected the image "lost.png", got none in'):
        read_split(write(tmp_path / "lost", polygon(), name="lost.png"))
    write_image(write(tmp_path / "size", polygon()) / "images" / "a.png", 32, 24)
    with pytest.raises(DatasetError, match=r"annotations.xml:4: a.png: expected 24 x 32 pixels .* got 32 x 24"):
        read_split(tmp_path / "size")
    video = write(tmp_path / "video", "</image><track id='0'></track><image name='b' width='1' height='1'>")
    with pytest.raises(DatasetError, match="expected annotated images, got 1 track of a video; export the task as"):
        read_split(video)
    with pytest.raises(DatasetError, match="expected an XML file of CVAT, got mismatched tag"):
        read_split(write(tmp_path / "cut", "<polygon>"))
    bomb = write(tmp_path / "bomb")
    text = (
        (bomb / "annotations.xml").read_text().replace("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]>\n<annotations>')
    )
    (bomb / "annotations.xml").write_text(text)
    with pytest.raises(DatasetError, match="expected XML without entities"):
        read_split(bomb)
