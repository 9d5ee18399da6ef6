"""A zip file is unpacked once, into the cache; archives that could do harm are refused before a file is written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.zip_files import unpack
from mask2former_dinov3.errors import DatasetError
from support.formats import write_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mask2former-dinov3" / "unpacked"


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_find_splits__reads_a_zip_file_as_its_folder(tmp_path: Path, cache: Path) -> None:
    write_image(tmp_path / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 24, "width": 32}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
    }
    image = (tmp_path / "1.png").read_bytes()
    files = {"set/data/1.png": image, "set/labels.json": json.dumps(content).encode(), "__MACOSX/set/._1.png": b"x"}
    file = packed(tmp_path / "set.zip", files)
    splits, notes = find_splits(file, valid_split=0)
    folder = splits["train"].annotations.parent
    assert notes[0] == f"{file} is unpacked in {folder}"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == ["data/1.png", "labels.json"]
    (record,) = read_coco(splits["train"]).images
    assert record.path.read_bytes() == image
    before = (folder / "labels.json").stat().st_ino
    assert find_splits(file, valid_split=0)[0]["train"].annotations.stat().st_ino == before  # not unpacked again
    assert [path.name.startswith("set-") for path in cache.iterdir()] == [True]
    packed(file, {**files, "set/labels.json": json.dumps(content | {"info": {}}).encode()})
    assert find_splits(file, valid_split=0)[0]["train"].annotations.parent != folder


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:/a.png"])
def test_unpack__refuses_names_that_lead_elsewhere(tmp_path: Path, cache: Path, name: str) -> None:
    file = packed(tmp_path / "a.zip", {"fine.txt": b"", name: b"x"})
    with pytest.raises(DatasetError, match=r"a\.zip: expected names of files inside the archive, got '"):
        unpack(file)
    assert not cache.exists()


def test_unpack__refuses_bombs_links_and_passwords(tmp_path: Path, cache: Path) -> None:
    bomb = packed(tmp_path / "bomb.zip", {"a": b""})
    with zipfile.ZipFile(bomb) as archive:
        entry = archive.infolist()[0]
        assert entry.file_size == 0
    # A size as a bomb states it, without its gigabytes.
    data = bytearray(bomb.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    bomb.write_bytes(data)
    with pytest.raises(DatasetError, match=r"bomb\.zip: expected files of at most 100 times .* got 2 GiB in"):
        unpack(bomb)
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DatasetError, match=r"link\.zip: link: expected a file, got a link"):
        unpack(tmp_path / "link.zip")
    locked = packed(tmp_path / "locked.zip", {"a": b"x"})
    data = bytearray(locked.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    locked.write_bytes(data)
    with pytest.raises(DatasetError, match=r"locked\.zip: a: expected a file without a password, got an encrypted one"):
        unpack(locked)
    assert not cache.exists()


def test_unpack__leaves_nothing_of_a_damaged_file(tmp_path: Path, cache: Path) -> None:
    file = packed(tmp_path / "a.zip", {"a.txt": bytes(range(256)) * 40})
    data = bytearray(file.read_bytes())
    data[60] ^= 255
    file.write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.zip: expected a zip file that can be read, got"):
        unpack(file)
    assert list(cache.iterdir()) == []
    file.write_bytes(b"no zip file")
    with pytest.raises(DatasetError, match="expected a zip file that can be read, got File is not a zip file"):
        unpack(file)
