"""The cases of the convolution benchmark: DeepLab's layers, a quick list, and a sweep of rates."""

from __future__ import annotations

from atrousx.doctor.layers import LAYERS, Layer

QUICK = (
    "vgg_large_fov_r12",
    "v2_aspp_r24",
    "resnet_stage4_r2",
    "v3_aspp_os16_r6",
    "v3_aspp_os16_r18",
    "depthwise_r2",
)


# One branch of DeepLab v3's ASPP at many rates. It shows how speed depends on skipped padding.
SWEEP = tuple(
    Layer(f"sweep_{extent}_r{rate}", 2048, 256, 3, rate, extent)
    for extent, rates in ((33, (1, 3, 6, 9, 12, 15, 18, 24, 30)), (65, (1, 6, 12, 18, 24, 36, 48)))
    for rate in rates
)


def choose(which: str, contains: str | None) -> list[Layer]:
    """Returns the "quick", "sweep" or "whole" list. Keeps names with any comma-separated string."""
    wanted = contains.split(",") if contains else [""]
    return [
        layer
        for layer in (SWEEP if which == "sweep" else LAYERS)
        if (which != "quick" or layer.name in QUICK) and any(w in layer.name for w in wanted)
    ]
