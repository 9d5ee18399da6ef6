"""The output folder of `batch-predict`: Parquet files, each written whole or not at all, and what they say is done.

    settings.json        the model (by hash) and the settings that all results here come from
    images/NAME.parquet      one row per image: image, height, width, instances (how many), seconds
    instances/NAME.parquet   one row per instance: image, category_id, class, score, segmentation (COCO RLE: size,
                             counts), box (x0, y0, x1, y1 in pixels), area
    failures/NAME.parquet    one row per image that could not be read: image, reason; only where there are any

The three files of one NAME are a shard. `images/` is written last: a shard is finished when that file is there, and an
image is in one finished shard only. The folder may be a URI that fsspec knows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..atomic_files import check_writable, write_bytes
from ..errors import UserError
from ..instances import Instances
from .image_list import filesystem_of, is_local

KINDS = ("instances", "failures", "images")  # in the order in which they are written


class Found(NamedTuple):
    """What became of some images: three Arrow tables with the columns above."""

    instances: Any
    failures: Any
    images: Any


def found_of(
    images: Sequence[tuple[str, Instances, float]],
    failures: Sequence[tuple[str, str]],
) -> Found:
    """Tables of (image, its instances, seconds) and (image, why it could not be read)."""
    schemas = _schemas()
    rows: dict[str, list[dict[str, Any]]] = {
        "instances": [row for image, instances, _ in images for row in _instance_rows(image, instances)],
        "failures": [{"image": image, "reason": reason} for image, reason in failures],
        "images": [
            {
                "image": image,
                "height": instances.height,
                "width": instances.width,
                "instances": len(instances),
                "seconds": seconds,
            }
            for image, instances, seconds in images
        ],
    }
    return Found(**{kind: schemas[kind].empty_table().from_pylist(rows[kind], schemas[kind]) for kind in KINDS})


def _instance_rows(image: str, instances: Instances) -> list[dict[str, Any]]:
    return [
        {
            "image": image,
            "category_id": result["category_id"],
            "class": name,
            "score": result["score"],
            "segmentation": result["segmentation"],
            "box": box,
            "area": area,
        }
        for result, name, box, area in zip(
            instances.to_coco(image), instances.names, instances.boxes.tolist(), instances.areas.tolist(), strict=True
        )
    ]


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    rle = pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()})
    return {
        "instances": pa.schema(
            {
                "image": pa.string(),
                "category_id": pa.int64(),
                "class": pa.string(),
                "score": pa.float32(),
                "segmentation": rle,
                "box": pa.list_(pa.float32()),
                "area": pa.int64(),
            }
        ),
        "failures": pa.schema({"image": pa.string(), "reason": pa.string()}),
        "images": pa.schema(
            {
                "image": pa.string(),
                "height": pa.int32(),
                "width": pa.int32(),
                "instances": pa.int32(),
                "seconds": pa.float32(),
            }
        ),
    }


def shard_name(images: Sequence[str]) -> str:
    """The same name for the same images, so that a shard that is written again replaces itself."""
    return hashlib.sha256("\n".join(images).encode()).hexdigest()[:24]


class ShardFolder:
    """An output folder, made or opened for results of certain settings.

    Raises UserError when it holds results of others, or cannot be written.
    """

    def __init__(self, output: str, settings: Mapping[str, Any]) -> None:
        self.output = output
        self.filesystem, self.root = filesystem_of(output)
        self.is_local = is_local(self.filesystem)
        if self.is_local:
            check_writable(Path(self.root))
        try:
            self.filesystem.invalidate_cache()
            self._check_settings(settings)
            self._remove_unfinished()
        except UserError:
            raise
        except Exception as error:  # file systems of object stores raise what their clients raise
            raise UserError(f"{output}: cannot be used ({type(error).__name__}: {error})") from error

    def write(self, name: str, found: Found) -> None:
        """Leave one finished shard. Raises CheckpointError (local) or what the object store raises."""
        import pyarrow.parquet

        for kind in KINDS:
            table = getattr(found, kind)
            if kind == "failures" and not table.num_rows:
                continue
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(table, buffer, compression="zstd")
            self._put(f"{kind}/{name}.parquet", buffer.getvalue())

    def done(self) -> tuple[Any, Any]:
        """(images that were predicted, images that failed) in finished shards: two Arrow arrays of strings."""
        return self._images("images"), self._images("failures")

    def forget_failures(self) -> None:
        """Failed images count as not done from now on."""
        for name in self._names("failures"):
            self.filesystem.rm_file(f"{self.root}/failures/{name}")

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        path = f"{self.root}/settings.json"
        if not self.filesystem.exists(path):
            if any(self._names(kind) for kind in KINDS):
                raise UserError(f"{self.output}: holds results but no settings.json; choose another output")
            self._put("settings.json", json.dumps(settings, indent=2, ensure_ascii=False).encode())
            return
        there = json.loads(self.filesystem.cat_file(path))
        differ = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
        if differ:
            raise UserError(
                f"{self.output}: holds results of other settings, which are not mixed; use those, or another output\n"
                + "\n".join(f"  {key}: {there.get(key)} there, {settings.get(key)} now" for key in differ)
            )

    def _remove_unfinished(self) -> None:
        """What a run left that was killed while it wrote a shard."""
        finished = {name for name in self._names("images") if not name.startswith(".")}
        for kind in KINDS:
            for name in self._names(kind):
                if name not in finished:
                    self.filesystem.rm_file(f"{self.root}/{kind}/{name}")

    def _names(self, kind: str) -> list[str]:
        folder = f"{self.root}/{kind}"
        if not self.filesystem.isdir(folder):
            return []
        return sorted(PurePosixPath(path).name for path in self.filesystem.ls(folder, detail=False))

    def _images(self, kind: str) -> Any:
        import pyarrow as pa
        import pyarrow.dataset

        paths = [f"{self.root}/{kind}/{name}" for name in self._names(kind)]
        if not paths:
            return pa.chunked_array([], pa.large_string())
        table = pyarrow.dataset.dataset(paths, filesystem=self.filesystem, format="parquet")
        return table.to_table(columns=["image"]).column("image").cast(pa.large_string())

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self.root}/{name}"
        if self.is_local:
            Path(path).parent.mkdir(exist_ok=True)
            write_bytes(Path(path), data)
        else:
            self.filesystem.pipe_file(path, data)  # an object is there whole or not at all
