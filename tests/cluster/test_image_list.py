"""What `batch-predict` is given becomes one list of images, each once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mask2former_dinov3.cluster.image_list import filesystem_of, list_images
from mask2former_dinov3.errors import DatasetError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them deeper, and a file that is none."""
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deeper/c.tif", "notes.md"):
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of an object store, as fsspec's memory file system."""
    filesystem = fsspec.filesystem("memory")
    for name in ("one/a.png", "one/deeper/b.jpg", "one/readme"):
        filesystem.pipe_file(f"/bucket/{name}", b"x")
    yield "memory:///bucket"
    filesystem.rm("/bucket", recursive=True)


def test_list_images__takes_files_folders_and_patterns_each_image_once(folder: Path) -> None:
    everything = [str(folder / name) for name in ("a.JPG", "b.png", "deeper/c.tif")]
    assert list_images([str(folder)]).to_pylist() == everything
    assert list_images([str(folder / "*.png"), f"file://{folder}", str(folder / "b.png")]).to_pylist() == [
        everything[1],
        everything[0],
        everything[2],
    ]
    # What is named is taken at its word, whatever its ending; the folder that the pattern meets is searched.
    assert list_images([str(folder / "*")]).to_pylist() == [*everything, str(folder / "notes.md")]


def test_list_images__leaves_hidden_names_alone_and_logs_what_it_passes_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("._b.png", ".cache/d.png", "__MACOSX/e.png", "table.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "plain").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = ["a.JPG", "b.png", "deeper/c.tif", "plain"]
    assert list_images([str(folder)]).to_pylist() == [str(folder / name) for name in names]
    assert caplog.messages == [f"{folder}: passed over: 2 files (.md 1, .csv 1) and 3 hidden"]


def test_list_images__takes_uris(bucket: str) -> None:
    assert list_images([f"{bucket}/one"]).to_pylist() == [f"{bucket}/one/a.png", f"{bucket}/one/deeper/b.jpg"]
    assert list_images([f"{bucket}/*/*.png"]).to_pylist() == [f"{bucket}/one/a.png"]


def test_list_images__reads_text_lists(folder: Path, bucket: str) -> None:
    (folder / "list.txt").write_text(
        f"b.png\r\n\n../x.png\n/absolute/y.png\ns3://bucket/z.png\nfile://{folder}/a.JPG\n"
    )
    assert list_images([str(folder / "list.txt")]).to_pylist() == [
        str(folder / "b.png"),
        str(folder.parent / "x.png"),
        "/absolute/y.png",
        "s3://bucket/z.png",
        str(folder / "a.JPG"),
    ]
    for encoding in ("utf-8-sig", "utf-16"):  # as Notepad and PowerShell write lists, with a byte order mark
        (folder / "marked.txt").write_text("b.png\na.JPG\n", encoding=encoding)
        assert list_images([str(folder / "marked.txt")]).to_pylist() == [str(folder / "b.png"), str(folder / "a.JPG")]
    with fsspec.open(f"{bucket}/list.txt", "wt") as file:
        file.write("one/a.png\n")
    assert list_images([f"{bucket}/list.txt"]).to_pylist() == [f"{bucket}/one/a.png"]


def test_list_images__reads_parquet_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "parts.parquet").mkdir()
    for part in range(2):
        names = [f"s3://bucket/{part}-{number}.jpg" for number in range(3)]
        table = pa.table({"id": [1, 2, 3], "url": names, "licence": ["CC0"] * 3})
        pq.write_table(table, tmp_path / "parts.parquet" / f"{part}.parquet")
    found = list_images([str(tmp_path / "parts.parquet")]).to_pylist()
    assert found == [f"s3://bucket/{part}-{number}.jpg" for part in range(2) for number in range(3)]
    one = str(tmp_path / "parts.parquet" / "0.parquet")
    assert list_images([one], column="licence").to_pylist() == [str(tmp_path / "parts.parquet" / "CC0")]
    pq.write_table(pa.table({"anything": pa.array(["/a.png"], pa.large_string())}), tmp_path / "only.parquet")
    assert list_images([str(tmp_path / "only.parquet")]).to_pylist() == ["/a.png"]


def test_list_images__says_what_is_wrong_with_a_list(tmp_path: Path) -> None:
    path = str(tmp_path / "list.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"], "size": [1]}), path)
    with pytest.raises(DatasetError, match=r"called image or uri or url or path, got a \(string\).*--column"):
        list_images([path])
    with pytest.raises(DatasetError, match="column of strings called size"):
        list_images([path], column="size")
    pq.write_table(pa.table({"image": ["x", None]}), path)
    with pytest.raises(
        DatasetError, match="column image: expected a value in every row, got 1 rows without one; remove these rows"
    ):
        list_images([path])
    Path(path).write_bytes(b"no Parquet")
    with pytest.raises(
        DatasetError, match=r"list\.parquet: expected an input that can be read, got an error \(Error creating dataset"
    ):
        list_images([path])
    (tmp_path / "list.txt").write_bytes(b"a.png\n\xff\n")
    with pytest.raises(DatasetError, match=r"expected an input that can be read, got an error \('utf-8'"):
        list_images([str(tmp_path / "list.txt")])


@pytest.mark.parametrize("name", ["list.csv", "annotations.JSON"])
def test_list_images__says_which_lists_it_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a.png")
    with pytest.raises(
        DatasetError, match=rf"{name}: expected .*\.txt .*\.parquet\), got a {Path(name).suffix.lower()} file"
    ):
        list_images([str(tmp_path / name)])


def test_list_images__refuses_an_input_without_images(tmp_path: Path, folder: Path) -> None:
    for given in (tmp_path / "nowhere", tmp_path / "*.gif"):
        with pytest.raises(
            DatasetError, match=r"expected an image, a folder, .*\.txt .*\.parquet\), got nothing of that name"
        ):
            list_images([str(folder), str(given)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: expected at least one image, got none"):
        list_images([str(folder), str(tmp_path / "empty")])


def test_filesystem_of__names_the_package_that_a_protocol_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        UserError, match=r"^s3://bucket/a\.png: expected a protocol .*, got none; Install s3fs to access S3, with pip"
    ):
        filesystem_of("s3://bucket/a.png")
    with pytest.raises(
        UserError, match=r"^nonsense://a: expected a path, .*, got an error \(Protocol not known: nonsense\)"
    ):
        filesystem_of("nonsense://a")
