"""The output folder of `batch-predict`: Parquet files, each written atomically, and the list of what is done.

    settings.json            the model (by hash) and the settings of all results in this folder
    images/NAME.parquet      one row per image: image, height, width, instances (their number), seconds, and what is not
                             among them: limit, full, copies (see `Unreported`)
    instances/NAME.parquet   one row per instance: image, category_id, class, score, segmentation (COCO RLE: size,
                             counts), box (x0, y0, x1, y1 in pixels), area
    failures/NAME.parquet    one row per image that could not be read: image, reason; missing if there are none

The three files of one NAME are a shard. `images/` is written last: a shard is complete when that file exists, and an
image is in one complete shard only. The folder may be a URI that fsspec knows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ..atomic_files import check_writable, write_bytes
from ..errors import UserError, mismatch
from ..instances import Instances
from ..json_files import parse_json_object
from .image_list import filesystem_of, is_local

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("instances", "failures", "images")  # in the order in which they are written
LEFT_OUT = ("limit", "full", "copies")  # columns of images


class ShardTables(NamedTuple):
    """Results of some images: three Arrow tables with the columns above."""

    instances: pa.Table
    failures: pa.Table
    images: pa.Table


def tables_of(
    images: Sequence[tuple[str, Instances, float]],
    failures: Sequence[tuple[str, str]],
) -> ShardTables:
    """Tables of predicted images (image, its instances, seconds) and of failed ones (image, reason)."""
    schemas = _schemas()
    rows: dict[str, list[dict[str, object]]] = {
        "instances": [row for image, instances, _ in images for row in _instance_rows(image, instances)],
        "failures": [{"image": image, "reason": reason} for image, reason in failures],
        "images": [
            {
                "image": image,
                "height": instances.height,
                "width": instances.width,
                "instances": len(instances),
                "seconds": seconds,
                **{name: getattr(instances.left_out, name) for name in LEFT_OUT},
            }
            for image, instances, seconds in images
        ],
    }
    return ShardTables(**{kind: schemas[kind].empty_table().from_pylist(rows[kind], schemas[kind]) for kind in KINDS})


def _instance_rows(image: str, instances: Instances) -> list[dict[str, object]]:
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


def _schemas() -> dict[str, pa.Schema]:
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
                **{name: pa.int32() for name in LEFT_OUT},
            }
        ),
    }


def name_shard(images: Sequence[str]) -> str:
    """A name that depends on the images only, so that a shard that is written again replaces itself."""
    return hashlib.sha256("\n".join(images).encode()).hexdigest()[:24]


class ShardFolder:
    """An output folder, created or opened for results of certain settings.

    Opening it removes what an interrupted job left of an incomplete shard. Raises UserError if it holds results of
    other settings, or cannot be written.
    """

    def __init__(self, output: str, settings: Mapping[str, object]) -> None:
        self.output = output
        self.filesystem, self.root = filesystem_of(output)
        self.is_local = is_local(self.filesystem)
        if self.is_local:
            check_writable(Path(self.root))
        try:
            self.filesystem.invalidate_cache()
            self._check_settings(settings)
            self._remove_incomplete()
        except UserError:
            raise
        except Exception as error:  # clients of object stores raise errors of their own classes
            got = f"an error ({error})"
            raise UserError(f"{output}: {mismatch('a folder that can be read and written', got)}") from error

    def write(self, name: str, tables: ShardTables) -> None:
        """Write one complete shard. Raises CheckpointError (local) or what the client of the object store raises."""
        import pyarrow.parquet

        for kind in KINDS:
            table = getattr(tables, kind)
            if kind == "failures" and not table.num_rows:
                continue
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(table, buffer, compression="zstd")
            self._put(f"{kind}/{name}.parquet", buffer.getvalue())

    def done(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """(predicted images, failed images) of complete shards: their URIs as strings."""
        return self._images("images"), self._images("failures")

    def forget_failures(self) -> None:
        """Forget which images failed, so that they are predicted again."""
        for name in self._names("failures"):
            self.filesystem.rm_file(f"{self.root}/failures/{name}")

    def _check_settings(self, settings: Mapping[str, object]) -> None:
        path, text = f"{self.root}/settings.json", json.dumps(settings, indent=2, ensure_ascii=False)
        settings = json.loads(text)  # as the stored ones are read: a tuple is a list
        if not self.filesystem.exists(path):
            if any(self._names(kind) for kind in KINDS):
                expected, got = "an empty folder, or results of this command", "results without settings.json"
                raise UserError(f"{self.output}: {mismatch(expected, got, 'choose another output')}")
            self._put("settings.json", text.encode())
            return
        stored = parse_json_object(self.filesystem.cat_file(path), path, "settings of batch-predict (JSON)")
        different = [key for key in {**stored, **settings} if stored.get(key) != settings.get(key)]
        if different:
            raise UserError(
                f"{self.output}: {mismatch('results of the same settings', 'others', 'use those, or another output')}\n"
                + "\n".join(f"  {key}: {stored.get(key)} there, {settings.get(key)} now" for key in different)
            )

    def _remove_incomplete(self) -> None:
        """Remove the files of shards that a killed job did not complete."""
        complete = {name for name in self._names("images") if not name.startswith(".")}
        for kind in KINDS:
            for name in self._names(kind):
                if name not in complete:
                    self.filesystem.rm_file(f"{self.root}/{kind}/{name}")

    def _names(self, kind: str) -> list[str]:
        folder = f"{self.root}/{kind}"
        if not self.filesystem.isdir(folder):
            return []
        return sorted(PurePosixPath(path).name for path in self.filesystem.ls(folder, detail=False))

    def _images(self, kind: str) -> pa.ChunkedArray:
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
            write_bytes(Path(path), data)
        else:
            self.filesystem.pipe_file(path, data)  # object stores write atomically
