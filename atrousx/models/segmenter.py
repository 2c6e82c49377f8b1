"""What the three DeepLabs share: inference on photographs and the loss, as the papers have them."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..nn import DenseCRF
from ..ops import upsample_argmax, upsample_bilinear2d, upsample_cross_entropy
from ..ops._check import check_rank
from .multi_scale import MultiScale, Prediction, checked_photograph
from .preprocess import Preprocess

# A call of torch's interpolate(mode="bilinear"): ours, or in a model for export, PyTorch's.
Resample = Callable[..., Tensor]


class Segmenter(nn.Module):
    """A network with ``forward(images) -> OrderedDict(out=logits)`` that can label photographs.

    ``preprocess`` and ``crf`` belong to the model but not to its ``state_dict``.
    """

    fusion: ClassVar[Literal["mean", "max"]]
    # Whether the paper brings labels to the logits' size for its loss, not logits to the labels'.
    downsamples_labels: ClassVar[bool] = False
    # Arguments for the dense CRF with the paper's networks, where they are not DenseCRF's defaults.
    crf_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
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
        *,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
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
                ignore_index=ignore_index,
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
            >>> confusion = atrousx.metrics.ConfusionMatrix(3)
            >>> images, target = torch.rand(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
            >>> 0 <= confusion.update(model.labels(images), target).mean_iou() <= 1
            True
        """
        wanted = (images.shape[-2], images.shape[-1]) if size is None else size
        coarse = self.coarse_logits(images)["out"]
        return upsample_argmax(coarse, wanted, align_corners=self.align_corners)

    @torch.inference_mode()
    def predict(
        self,
        image: Tensor,
        scales: Sequence[float] = (1.0,),
        *,
        flip: bool = False,
        crf: DenseCRF | bool | None = True,
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
        inference = MultiScale.checked(scales, flip, tile, overlap)
        photograph = checked_photograph(image).to(self.preprocess.mean.device)
        if crf is not None and not isinstance(crf, (bool, nn.Module)):
            raise TypeError(f"crf must be a DenseCRF, a bool or None, got {type(crf).__name__}")
        refiner = (self.crf if crf else None) if isinstance(crf, bool) else crf
        with _evaluating(self):
            probabilities = inference.probabilities(self, photograph)
            labels = probabilities.argmax(1)
            if refiner is None:
                return Prediction(labels, None, probabilities)
            # A certain class has the logarithm of 0 for the others: kept finite.
            floor = torch.finfo(probabilities.dtype).tiny
            refined = refiner(probabilities.clamp_min(floor).log(), photograph)
            return Prediction(labels, refined.argmax(1), refined)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module then has its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


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
