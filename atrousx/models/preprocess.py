"""Converts photographs to the input that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Mean of ImageNet's training images in 0..255; blue, green, red.
BGR_MEAN = (104.008, 116.669, 122.675)
# Mean and standard deviation of ImageNet's training images in 0..1; red, green, blue.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    r"""Normalises photographs for a network.

    .. math:: y_c = (x_{\pi(c)} - \mu_c) / \sigma_c

    where :math:`\pi` is the network's order of colours. The constants :math:`\mu` and
    :math:`\sigma` are not in the ``state_dict``.

    Args:
        mean: one value for each channel of the network, in the photograph's units, 0..255.
        std: one value for each channel of the network, in the photograph's units, 0..255.
        bgr: whether the network expects blue, green, red, as networks trained with Caffe do.

    Shape:
        Takes RGB in 0..255, ``[N, 3, H, W]`` or ``[3, H, W]``, uint8 or floating. Returns the same
        shape in the dtype of the constants, which ``module.to(dtype)`` changes.

    Example:
        >>> import torch
        >>> from atrousx.models import Preprocess
        >>> red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> Preprocess.caffe()(red).flatten().round().tolist()
        [-104.0, -117.0, 132.0]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        ordered = image.flip(-3) if self.bgr else image
        return (ordered.to(self.mean.dtype) - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"bgr={self.bgr}"

    @classmethod
    def caffe(cls) -> Preprocess:
        """Returns the first two papers' preprocessing: BGR in 0..255 minus ImageNet's mean."""
        return cls(BGR_MEAN, (1.0, 1.0, 1.0), bgr=True)

    @classmethod
    def imagenet(cls) -> Preprocess:
        """Returns torchvision's preprocessing: RGB in 0..1 minus ImageNet's mean, over its std."""
        return cls([255 * v for v in IMAGENET_MEAN], [255 * v for v in IMAGENET_STD])

    @classmethod
    def tensorflow(cls) -> Preprocess:
        """Returns the preprocessing of the authors' Xception: RGB from 0..255 to -1..1."""
        return cls((127.5,) * 3, (127.5,) * 3)
