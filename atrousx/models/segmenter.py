"""What the three DeepLabs share: inference on photographs and the loss, as the papers have them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import DenseCRF
from ..ops import (
    upsample_argmax,
    upsample_bilinear2d,
    upsample_cross_entropy,
    upsample_softmax_add_,
)
from ..ops._check import check_rank, check_tensor
from .preprocess import Preprocess
from .tiling import check_tile, tiled

# A call of torch's interpolate(mode="bilinear"): ours, or in a model for export, PyTorch's.
Resample = Callable[..., Tensor]
Tiles = tuple[int, int]  # size and overlap


class Prediction(NamedTuple):
    """What ``predict`` returns.

    Attributes:
        labels: ``[N, H, W]`` int64, the likeliest class of every pixel, before the CRF.
        refined: ``[N, H, W]`` int64, the same after the CRF; None where there is none.
        probabilities: ``[N, L, H, W]``, after the CRF where there is one.

    Example:
        >>> import torch
        >>> from atrousx.models import Prediction
        >>> Prediction(torch.zeros(1, 2, 2), None, torch.ones(1, 1, 2, 2)).labels.shape
        torch.Size([1, 2, 2])
    """

    labels: Tensor
    refined: Tensor | None
    probabilities: Tensor


class Segmenter(nn.Module):
    """A network with ``forward(images) -> OrderedDict(out=logits)`` that can label photographs.

    ``preprocess`` and ``crf`` belong to the model but not to its ``state_dict``.
    """

    fusion: ClassVar[Literal["mean", "max"]]
    # Whether the paper brings labels to the logits' size for its loss, not logits to the labels'.
    downsamples_labels: ClassVar[bool] = False
    align_corners: bool = False  # of the last upsampling
    resample: Resample = staticmethod(upsample_bilinear2d)

    def __init__(self, preprocess: Preprocess, crf: DenseCRF | None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.crf = crf

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The logits at the size at which the network makes them: forward's, not yet upsampled.

        "out", and what else the loss is taken of, in either mode of the module.
        """
        raise NotImplementedError

    def loss(
        self,
        images_or_logits: Tensor | Mapping[str, Tensor],
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
        *,
        downsample_labels: bool | None = None,
        aux_weight: float = 0.5,
    ) -> Tensor:
        r"""The training loss of the model's paper, without logits at the images' size.

        .. math::
            L = \sum_k a_k \, \mathrm{mean}_i\, \ell\big(U(z_k)_i, t_i\big)
            \quad\text{or}\quad L = \sum_k a_k \, \mathrm{mean}_i\, \ell\big(z_{k,i}, D(t)_i\big)

        over the model's logits :math:`z_k`: v1's one; v2's, fused and of each scale; v3's and,
        times ``aux_weight``, the auxiliary classifier's. :math:`\ell` is the cross-entropy. DeepLab
        v3 upsamples the logits, in ``ops.upsample_cross_entropy``; v1 and v2 downsample the labels,
        to the nearest.

        Args:
            images_or_logits: ``[N, 3, H, W]`` as ``preprocess`` makes them; or what ``forward`` or
                ``coarse_logits`` returned, for instance through ``DistributedDataParallel``.
            target: labels ``[N, H, W]``, int64, int32 or uint8.
            weight: ``[classes]``, a factor for each class.
            ignore_index: the label of pixels that do not count.
            label_smoothing: the share of the loss spread over all classes.
            downsample_labels: True and False choose one of the two; None is the paper's way.
            aux_weight: of the auxiliary classifier's loss; by default torchvision's.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: as ``ops.upsample_cross_entropy``.

        Source: arXiv:1412.7062 section 4, arXiv:1606.00915 section 4, arXiv:1706.05587 section 4.1.

        Example:
            >>> import torch, atrousx
            >>> model = atrousx.models.deeplab_v3(num_classes=3, aux=True)
            >>> images, target = torch.rand(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
            >>> loss = model.loss(images, target)
            >>> loss.backward()
        """
        given = images_or_logits
        logits = self.coarse_logits(given) if isinstance(given, Tensor) else given
        shrink = self.downsamples_labels if downsample_labels is None else downsample_labels
        if shrink:
            check_rank("target", target, 3, "[N, H, W]")
        terms = []
        for name, scores in logits.items():
            labels = _shrunk(target, scores.shape[-2:], self.align_corners) if shrink else target
            term = upsample_cross_entropy(
                scores,
                labels,
                weight,
                ignore_index,
                label_smoothing=label_smoothing,
                align_corners=self.align_corners,
            )
            terms.append(aux_weight * term if name == "aux" else term)
        return torch.stack(terms).sum()

    @torch.inference_mode()
    def labels(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        r"""The likeliest class of every pixel, without logits at the images' size.

        .. math:: y = \arg\max_c \, U(z)_c

        with the module's mode as it is: call ``eval()`` first. For photographs, scales, mirror
        images and the CRF there is ``predict``; this is what evaluation needs.

        Args:
            images: ``[N, 3, H, W]`` as ``preprocess`` makes them.
            size: height and width of the labels, by default the images'.

        Returns:
            ``[N, H, W]`` int64.

        Raises:
            TypeError, ValueError: as ``ops.upsample_argmax``.

        Source: arXiv:1706.05587 section 4.

        Example:
            >>> import torch, atrousx
            >>> model = atrousx.models.deeplab_v3(num_classes=3).eval()
            >>> confusion = atrousx.models.ConfusionMatrix(3)
            >>> images, target = torch.rand(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
            >>> 0 <= confusion.update(model.labels(images), target).mean_iou() <= 1
            True
        """
        wanted = (images.shape[-2], images.shape[-1]) if size is None else size
        labels = upsample_argmax(self.coarse_logits(images)["out"], wanted, self.align_corners)
        assert isinstance(labels, Tensor)
        return labels

    @torch.inference_mode()
    def predict(
        self,
        image: Tensor,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        crf: DenseCRF | bool | None = True,
        *,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Prediction:
        r"""Labels photographs of any size, in evaluation mode whatever the module's.

        .. math::
            P = \tfrac{1}{|S|}\sum_{s \in S} \mathrm{softmax}(z_s)
            \quad\text{or}\quad P = \mathrm{softmax}(\max_{s \in S} z_s)

        where :math:`z_s` are the logits of the photograph resized by the scale :math:`s`, mirrored
        or not, back at its own size. DeepLab v1 and v3 average, v2 takes the maximum.

        Args:
            image: ``[N, 3, H, W]`` or ``[3, H, W]``, RGB in 0..255, uint8 or floating; it is moved
                to the model's device.
            scales: sizes at which the network sees the photograph, relative to its own. The third
                paper has (0.5, 0.75, 1, 1.25, 1.5, 1.75).
            flip: the network also sees each one's mirror image.
            crf: a CRF to refine with; True is the model's own, where it has one (v1 and v2), False
                and None are none.
            tile: the network sees no more than so many pixels in height and width at a time, for
                images larger than memory allows. Logits of tiles fade into each other where they
                overlap, so no seams appear.
            overlap: at least so many pixels are shared by neighbouring tiles; by default a quarter
                of ``tile``. A pixel further than a quarter of what is shared from a tile's border
                counts: where the network looks no further around itself than that, and the sizes
                of tile and image leave the same remainder by 32, the result is the untiled one;
                else near borders it is the blend of what two neighbours see. DeepLab v3's image
                pooling sees the tile in place of the image.

        Returns:
            The labels before and after the CRF, and the probabilities.

        Raises:
            TypeError: ``image`` is no tensor, ``crf`` no module, bool or None, ``tile`` no int.
            ValueError: its shape differs, a scale is not positive, or ``tile`` does not exceed
                ``overlap`` by 32 pixels and by a third of itself.

        Source: arXiv:1412.7062 section 4, arXiv:1606.00915 section 3.2, arXiv:1706.05587 section 4.

        Example:
            >>> import torch, atrousx
            >>> model = atrousx.models.deeplab_v1(num_classes=3)
            >>> photograph = torch.randint(256, (1, 3, 33, 41), dtype=torch.uint8)
            >>> before, after, _ = model.predict(photograph)
            >>> before.shape, after.shape
            (torch.Size([1, 33, 41]), torch.Size([1, 33, 41]))
        """
        photograph = _photograph(image).to(self.preprocess.mean.device)
        if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise ValueError(f"scales must be positive numbers, at least one, got {scales!r}")
        if crf is not None and not isinstance(crf, (bool, nn.Module)):
            raise TypeError(f"crf must be a DenseCRF, a bool or None, got {type(crf).__name__}")
        tiles = check_tile(tile, overlap)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            probabilities = self._fused(photograph, scales, flip, tiles)
            labels = probabilities.argmax(1)
            refiner = (self.crf if crf else None) if isinstance(crf, bool) else crf
            if refiner is None:
                return Prediction(labels, None, probabilities)
            # A certain class has the logarithm of 0 for the others: kept finite.
            floor = torch.finfo(probabilities.dtype).tiny
            refined = refiner(probabilities.clamp_min(floor).log(), photograph)
            return Prediction(labels, refined.argmax(1), refined)
        finally:
            for module, training in modes.items():
                module.training = training

    def _fused(
        self, photograph: Tensor, scales: Sequence[float], flip: bool, tiles: Tiles | None
    ) -> Tensor:
        """Probabilities [N, L, H, W] over all scales and mirror images."""
        sides = (False, True) if flip else (False,)
        looks = [(scale, mirrored) for scale in scales for mirrored in sides]
        size, fused = photograph.shape[-2:], None
        for scale, mirrored in looks:
            scores = self._scores(photograph, scale, mirrored, tiles)
            if self.fusion == "mean":
                if fused is None:
                    dtype = torch.promote_types(scores.dtype, torch.float32)
                    fused = scores.new_zeros((*scores.shape[:2], *size), dtype=dtype)
                upsample_softmax_add_(fused, scores, 1 / len(looks), mirrored)
                continue
            scores = self.resample(scores, size) if scale != 1 else scores
            scores = scores.flip(-1) if mirrored else scores
            fused = scores if fused is None else torch.maximum(fused, scores)
        assert fused is not None
        return fused if self.fusion == "mean" else fused.softmax(1)

    def _scores(
        self, photograph: Tensor, scale: float, mirrored: bool, tiles: Tiles | None
    ) -> Tensor:
        """The network's answer to the photograph at another size, or to its mirror image."""
        images = self.preprocess(photograph)
        if scale != 1:
            size = [max(1, round(scale * extent)) for extent in photograph.shape[-2:]]
            images = self.resample(images, size)
        seen = images.flip(-1) if mirrored else images
        return self._logits(seen) if tiles is None else tiled(self._logits, seen, *tiles)

    def _logits(self, images: Tensor) -> Tensor:
        logits: OrderedDict[str, Tensor] = self(images)
        return logits["out"]


def _photograph(image: Tensor) -> Tensor:
    check_tensor("image", image)
    if image.dim() == 3:
        image = image[None]
    check_rank("image", image, 4, "[N, 3, H, W] or [3, H, W]")
    if image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must be [N, 3, H, W] or [3, H, W], got {tuple(image.shape)}")
    return image if image.is_floating_point() else image.to(torch.float32)


def _shrunk(target: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Labels at the pixels nearest to where logits of a size lie."""
    for dim, count in zip((1, 2), size, strict=True):
        extent, places = target.shape[dim], torch.arange(count, device=target.device)
        if align_corners and count > 1:
            places = (2 * places * (extent - 1) + count - 1) // (2 * (count - 1))
        elif not align_corners:
            places = (2 * places + 1) * extent // (2 * count)
        target = target.index_select(dim, places)
    return target


def fit(features: Tensor, height: int, width: int) -> Tensor:
    """Cuts features, or extends them by zeros, at the bottom and right to a size."""
    return F.pad(features, (0, width - features.shape[-1], 0, height - features.shape[-2]))
