"""Options of random changes of training images, each as a type with its range and its help sentence.

`data/transforms.Augmentation` applies them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .option_types import Fraction, NotNegativeFloat, PositiveFloat, Share

ScaleMin = Annotated[
    PositiveFloat,
    Field(description="Smallest random scale of a training image, times the scale that `image_scale` gives it."),
]
ScaleMax = Annotated[PositiveFloat, Field(description="Largest random scale of a training image.")]
Flip = Annotated[
    Literal["horizontal", "both", "all", "none"],
    Field(
        description="Random flips: `horizontal`; `both` horizontal and vertical, for images without a top and a "
        "bottom; `all` flips and quarter turns."
    ),
]
Rotation = Annotated[
    float,
    Field(
        ge=0,
        le=180,
        description="Largest random rotation, in degrees to either side, about the middle of what the canvas shows; 0: "
        "none. Empty corners get the colour of the padding. With `flip` `all`, 45 gives every direction.",
    ),
]
ColorJitter = Annotated[
    Fraction, Field(description="Brightness, contrast and saturation change by up to this fraction; 0: no change.")
]
GammaJitter = Annotated[
    NotNegativeFloat,
    Field(
        description="Random gamma: values v in 0..1 become v ** g, with g between 1 / (1 + `gamma_jitter`) and "
        "1 + `gamma_jitter`; 0: no change."
    ),
]
Invert = Annotated[
    Share, Field(description="Fraction of training images whose values are inverted: dark becomes bright; 0: none.")
]
Blur = Annotated[
    float,
    Field(
        ge=0,
        le=100,
        description="Largest standard deviation of a Gaussian blur, in pixels of the canvas, applied to half of the "
        "training images; 0: none.",
    ),
]
Noise = Annotated[
    Fraction,
    Field(
        description="Largest standard deviation of Gaussian noise, as a fraction of the range from black to white, "
        "applied to half of the training images; 0: none."
    ),
]
JpegQuality = Annotated[
    int | None,
    Field(
        ge=1,
        le=100,
        description="Lowest quality of a JPEG compression (up to 100), applied to half of the training images; null: "
        "none.",
    ),
]
CopyPaste = Annotated[
    Share,
    Field(
        description="Fraction of training images onto which instances of another image are pasted; for opaque objects."
    ),
]
