"""Necks: four ViT maps at stride 16 become the four maps that the head reads."""

from __future__ import annotations

from torch import Tensor, nn

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
                    nn.GroupNorm(32, half),
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
