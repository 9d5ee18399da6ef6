"""Options and answers of the HTTP API, as pydantic models and as entries of its OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..errors import mismatch
from ..inference.settings import DEFAULTS, LARGEST_OVERLAP, SMALLEST_TILE, InferenceSettings

RAW = ("image/*", "application/octet-stream")  # a file says itself what it is; its type has many names
FORM = "multipart/form-data"
MOST_DETECTIONS = 10_000
LARGEST_TILE = 8192


class Options(BaseModel):
    """Options of /predict, all in the query."""

    model_config = ConfigDict(extra="forbid")

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="Minimum score of a reported instance; by default the model's own."),
    ] = None
    max_detections: Annotated[
        int | None,
        Field(
            ge=1,
            le=MOST_DETECTIONS,
            description="Maximum number of instances; with tiles, per tile; by default the number of queries.",
        ),
    ] = None
    tile: Annotated[
        int | None,
        Field(ge=SMALLEST_TILE, le=LARGEST_TILE, description="Predict in tiles of this side in pixels and merge them."),
    ] = DEFAULTS.tile
    overlap: Annotated[
        float, Field(ge=0, lt=LARGEST_OVERLAP, description="Fraction of a tile that it shares with each neighbour.")
    ] = DEFAULTS.overlap
    classes: Annotated[
        list[str] | None, Field(description="Names of the classes to report; repeat the option for several.")
    ] = None
    overlay: Annotated[bool, Field(description="Also return a PNG with the instances drawn in, as base64.")] = False
    preview: Annotated[
        bool,
        Field(description="Also return the image as a PNG of at most 2048 pixels a side, for browsers, as base64."),
    ] = False

    def settings(self) -> InferenceSettings:
        """The options that `Predictor` takes."""
        return InferenceSettings(
            threshold=self.threshold, max_detections=self.max_detections, tile=self.tile, overlap=self.overlap
        )


# For messages: what each option takes; the bounds are those of `Options`.
EXPECTED = {
    "threshold": "a score from 0 to 1",
    "max_detections": f"a whole number from 1 to {MOST_DETECTIONS}",
    "tile": f"a whole number of pixels from {SMALLEST_TILE} to {LARGEST_TILE}",
    "overlap": f"a fraction from 0 to below {LARGEST_OVERLAP}",
    "classes": "names of classes",
    "overlay": "true or false",
    "preview": "true or false",
}


class ImageInfo(BaseModel):
    id: int
    file_name: str
    height: int
    width: int


class Prediction(BaseModel):
    """A COCO file of one image, its instances best first."""

    # Nested: other modules have classes of these names, and the OpenAPI document names its schemas after the classes.
    class Category(BaseModel):
        id: int
        name: str

    class Annotation(BaseModel):
        """One instance; bbox: x, y, width, height; area in pixels."""

        class Segmentation(BaseModel):
            """COCO's compressed run lengths; size: height, width."""

            size: tuple[int, int]
            counts: str

        id: int
        image_id: int
        category_id: int
        segmentation: Segmentation
        score: float
        bbox: tuple[float, float, float, float]
        area: int
        iscrowd: int

    images: list[ImageInfo]
    categories: list[Category]
    annotations: list[Annotation]
    thresholds: Annotated[list[float], Field(description="Minimum score of each category, in their order.")]
    left_out: Annotated[dict[str, float], Field(description="Counts of what is not among the annotations.")]
    notes: Annotated[list[str], Field(description="Sentences on what is not among the annotations.")]
    overlay: Annotated[str | None, Field(description="PNG as base64, if the request asked for it.")] = None
    preview: Annotated[str | None, Field(description="PNG as base64, if the request asked for it.")] = None


class Health(BaseModel):
    status: str
    model: str
    device: str
    version: str


class Failure(BaseModel):
    error: str
    request_id: str


def describe_faults(errors: Iterable[Mapping[str, object]]) -> str:
    """Pydantic's errors on `Options` in the wording of this package, all in one line."""
    return "; ".join(_describe_fault(error) for error in errors)


def _describe_fault(error: Mapping[str, object]) -> str:
    location = error["loc"]  # ("query", option, and the place in it where it is a list)
    assert isinstance(location, Sequence)
    option = str(location[1])
    if error["type"] == "extra_forbidden":
        return f"{option}: {mismatch('one of the options ' + ', '.join(EXPECTED), 'an unknown one')}"
    return f"{option}: {mismatch(EXPECTED[option], error['input'] or 'an empty value')}"


def describe_failures(*statuses: int) -> dict[int | str, dict[str, object]]:
    """OpenAPI's entries for answers with these error statuses."""
    texts = {
        400: "The body is not a multipart form.",
        408: "The body did not arrive in time.",
        413: "Too many bytes, pixels or tiles.",
        415: "Neither a form nor an image type, or a compressed body.",
        422: "Wrong options, or not an image.",
        500: "The model failed.",
        503: "The queue is full; try again after Retry-After seconds.",
        504: "No answer in time; try again after Retry-After seconds.",
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
