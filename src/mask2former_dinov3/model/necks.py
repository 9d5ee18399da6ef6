"""Necks: make the four maps that the head takes from four ViT maps at stride 16."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .configuration import NORM_GROUPS

STEM_CHANNELS = (32, 64, 128, 128, 128)  # at strides 2, 4, 8, 16, 32: half of ViT-Adapter's

# B batch, D width of the ViT, C_i channels of map i, h = H/16, w = W/16


class PlainNeck(nn.Module):
    """One 1x1 projection per tap; every map stays at stride 16 (the original project's default)."""

    def __init__(self, in_channels: int, out_channels: list[int]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, out, 1) for out in out_channels)

    def forward(self, feature_maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w) -> four maps (B, C_i, h, w)."""
        return [project(x) for project, x in zip(self.projections, feature_maps, strict=True)]


class SimpleFeaturePyramid(nn.Module):
    """Strides 4, 8, 16, 32 from a plain ViT (ViTDet, arXiv:2203.16527, section 3).

    Differs from the paper: each scale is made from its own tap (shallow taps for fine scales) instead of all from the
    last map, and a single 1x1 convolution follows, since the pixel decoder projects and normalises every map again.
    """

    def __init__(self, in_channels: int, out_channels: list[int]) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.resamplers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    nn.GroupNorm(NORM_GROUPS, half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, stride=2),
            ]
        )
        widths = [quarter, half, in_channels, in_channels]
        self.projections = nn.ModuleList(
            nn.Conv2d(width, out, 1) for width, out in zip(widths, out_channels, strict=True)
        )

    def forward(self, feature_maps: list[Tensor]) -> list[Tensor]:
        """Four maps (B, D, h, w) -> (B, C_0, 4h, 4w), (B, C_1, 2h, 2w), (B, C_2, h, w), (B, C_3, h/2, w/2)."""
        return [
            project(resample(x))
            for project, resample, x in zip(self.projections, self.resamplers, feature_maps, strict=True)
        ]


class AdapterNeck(nn.Module):
    """ViTDet's pyramid plus the maps of a convolutional stem at the same strides.

    The stem is ViT-Adapter's spatial prior module (arXiv:2205.08534, section 3.2). Differs from the paper: the two are
    added, without injectors and extractors, which cost several times as much as the head; group norm instead of batch
    norm; two convolutions at stride 2 instead of three and a pooling. detail: also return the stem's map at stride 2.
    """

    def __init__(self, in_channels: int, out_channels: list[int], detail: bool, num_channels: int = 3) -> None:
        """num_channels: of the images."""
        super().__init__()
        self.detail = detail
        self.pyramid = SimpleFeaturePyramid(in_channels, out_channels)
        stem = [_convolution(*pair, stride=2) for pair in pairwise((num_channels, *STEM_CHANNELS))]
        stem[0] += _convolution(STEM_CHANNELS[0], STEM_CHANNELS[0], stride=1)
        self.stem = nn.ModuleList(stem)
        self.stem_projections = nn.ModuleList(
            nn.Conv2d(width, out, 1) for width, out in zip(STEM_CHANNELS[1:], out_channels, strict=True)
        )
        self.channels = [*STEM_CHANNELS[:detail], *out_channels]

    def forward(self, feature_maps: list[Tensor], pixel_values: Tensor) -> list[Tensor]:
        """Four maps (B, D, h, w), pixel_values (B, C, H, W) -> maps (B, C_i, ...) at strides 4, 8, 16, 32.

        With `detail` the stem's map (B, 32, H/2, W/2) comes before them.
        """
        halved = [pixel_values]
        for halve in self.stem:
            halved.append(halve(halved[-1]))
        pairs = zip(self.pyramid(feature_maps), self.stem_projections, halved[2:], strict=True)
        maps = [of_vit + project(of_stem) for of_vit, project, of_stem in pairs]
        return [halved[1], *maps] if self.detail else maps


def _convolution(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.ReLU(inplace=True),
    )
