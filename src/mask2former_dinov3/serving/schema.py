"""Request options and answers of the HTTP API, as pydantic models and as OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..inference.tiles.grid import SMALLEST_TILE

RAW = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif", "application/octet-stream")


FORM = "multipart/form-data"


MOST_DETECTIONS = 10_000


LARGEST_TILE = 8192


class Options(BaseModel):
    """What is asked of an image, all in the query."""

    model_config = ConfigDict(extra="forbid")

    threshold: Annotated[float, Field(ge=0, le=1, description="Least score.")] = 0.5
    max_detections: Annotated[
        int, Field(ge=1, le=MOST_DETECTIONS, description="Most instances; with tiles, of each tile.")
    ] = 100
    tile: Annotated[
        int | None,
        Field(ge=SMALLEST_TILE, le=LARGEST_TILE, description="Predict in tiles of so many pixels and merge them."),
    ] = None
    overlap: Annotated[float, Field(ge=0, lt=0.5, description="Part of a tile that its neighbour shows as well.")] = 0.2
    classes: Annotated[list[str] | None, Field(description="Only these classes, by name; repeat for several.")] = None
    overlay: Annotated[bool, Field(description="Also a PNG with the instances drawn in, as base64.")] = False


class ImageInfo(BaseModel):
    id: int
    file_name: str
    height: int
    width: int


class Category(BaseModel):
    id: int
    name: str


class Segmentation(BaseModel):
    """COCO's compressed run lengths; size: height, width."""

    size: tuple[int, int]
    counts: str


class Annotation(BaseModel):
    """One instance; bbox: x, y, width, height; area in pixels."""

    id: int
    image_id: int
    category_id: int
    segmentation: Segmentation
    score: float
    bbox: tuple[float, float, float, float]
    area: int
    iscrowd: int


class Prediction(BaseModel):
    """A COCO file of one image, its instances best first."""

    images: list[ImageInfo]
    categories: list[Category]
    annotations: list[Annotation]
    overlay: Annotated[str | None, Field(description="PNG as base64, where it was asked for.")] = None


class Health(BaseModel):
    status: str
    model: str
    device: str
    version: str


class Failure(BaseModel):
    error: str
    request_id: str


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for errors."""
    texts = {
        400: "The body is no multipart form.",
        408: "The body did not arrive in time.",
        413: "Too many bytes or pixels.",
        415: "Neither a form nor an image type.",
        422: "Wrong options, or not an image.",
        500: "The model failed.",
        503: "No room: try again after Retry-After seconds.",
        504: "No answer in time: try again after Retry-After seconds.",
    }
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return {
        status: {"model": Failure, "description": texts[status], **({"headers": retry} if status in (503, 504) else {})}
        for status in statuses
    }


BODY = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
                "additionalProperties": False,
            }
        },
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in RAW},
    },
}
