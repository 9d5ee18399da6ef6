"""Names of the presets and of the backbones on the hub."""

from __future__ import annotations

HUB_BACKBONES = {
    "smallplus": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
}
