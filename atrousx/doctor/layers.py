"""The shapes of DeepLab's dilated layers, which the doctor and the convolution benchmark time."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops import live_fraction


@dataclass(frozen=True)
class Layer:
    """A convolution with 'same' padding and stride 1 on a square map."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    dilation: int
    extent: int  # H and W of the map
    groups: int = 1

    @property
    def padding(self) -> int:
        # It keeps the size for odd kernels, and for even kernels at an even dilation.
        return self.dilation * (self.kernel - 1) // 2

    @property
    def live_fraction(self) -> float:
        """The share of multiply-adds that touch data and not padding."""
        size = (self.extent, self.extent)
        return live_fraction(size, self.kernel, padding=self.padding, dilation=self.dilation)

    @property
    def live_operations(self) -> float:
        """The floating-point operations of one pass for one image, without those on padding."""
        dense = (
            self.out_channels * (self.in_channels // self.groups) * (self.extent * self.kernel) ** 2
        )
        return 2 * dense * self.live_fraction


def _depthwise(name: str, channels: int, dilation: int, extent: int) -> Layer:
    return Layer(name, channels, channels, 3, dilation, extent, groups=channels)


LAYERS = (
    # DeepLab v1: VGG-16, crop 321, output stride 8.
    Layer("vgg_conv5_r2", 512, 512, 3, 2, 41),
    Layer("vgg_fc6_7x7_r4", 512, 4096, 7, 4, 41),
    Layer("vgg_fc6_4x4_r4", 512, 4096, 4, 4, 41),
    Layer("vgg_fc6_4x4_r8", 512, 4096, 4, 8, 41),
    Layer("vgg_large_fov_r12", 512, 1024, 3, 12, 41),
    # DeepLab v2: four summed branches to 21 classes on ResNet-101, crop 321.
    *(Layer(f"v2_aspp_r{rate}", 2048, 21, 3, rate, 41) for rate in (6, 12, 18, 24)),
    # ResNet's last two stages at output stride 8, crop 513.
    Layer("resnet_stage4_r2", 256, 256, 3, 2, 65),
    Layer("resnet_stage5_r4", 512, 512, 3, 4, 65),
    # DeepLab v3: three concatenated branches, crop 513, output strides 16 and 8.
    *(Layer(f"v3_aspp_os16_r{rate}", 2048, 256, 3, rate, 33) for rate in (6, 12, 18)),
    *(Layer(f"v3_aspp_os8_r{rate}", 2048, 256, 3, rate, 65) for rate in (12, 24, 36)),
    # Depthwise, as in Xception at output stride 8 and in a separable ASPP.
    _depthwise("depthwise_r2", 728, 2, 65),
    _depthwise("depthwise_r4", 1536, 4, 65),
    _depthwise("depthwise_aspp_r18", 2048, 18, 33),
)
