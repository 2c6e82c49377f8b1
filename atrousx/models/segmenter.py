"""The base class of the DeepLabs: inference on photographs and loss, as in the papers."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from .._processes import rank_and_world
from ..nn import DenseCRF
from ..ops import upsample_argmax, upsample_bilinear2d
from .loss import Criterion, SegmentationLoss, warn_of_unshared_gradients
from .multi_scale import MultiScale, Prediction, checked_photograph
from .parameter_groups import Multipliers, parameter_groups
from .preprocess import Preprocess

# Bilinear resampling: atrousx's function, or PyTorch's in a model for export.
Resample = Callable[..., Tensor]


class Segmenter(nn.Module):
    """A network that can label photographs and compute its training loss.

    ``forward(images)`` returns ``OrderedDict(out=logits)``; ``forward(images, target)`` the loss.

    ``preprocess`` and ``crf`` belong to the model but not to its ``state_dict``.
    """

    fusion: ClassVar[Literal["mean", "max"]]
    # The paper's learning rates.
    published: ClassVar[Multipliers]
    # Whether the paper's loss downsamples the labels to the logits' size. Else it upsamples logits.
    downsamples_labels: ClassVar[bool] = False
    # Arguments of the dense CRF for the paper's networks that differ from DenseCRF's defaults.
    crf_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    align_corners: bool = False  # of the last upsampling
    resample: Resample = staticmethod(upsample_bilinear2d)

    def __init__(self, preprocess: Preprocess, crf: DenseCRF | None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.crf = crf

    def coarse_logits(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Returns the logits of ``forward`` before upsampling, at the features' size.

        The dictionary has "out" and all other logits that the loss uses, in both modes of the
        module.
        """
        raise NotImplementedError

    @overload
    def forward(self, input: Tensor, target: None = None) -> OrderedDict[str, Tensor]: ...

    @overload
    def forward(self, input: Tensor, target: Tensor, **options: Any) -> Tensor: ...

    def forward(
        self, input: Tensor, target: Tensor | None = None, **options: Any
    ) -> OrderedDict[str, Tensor] | Tensor:
        """Returns the logits; with ``target`` the loss, with the ``options`` of ``loss``."""
        if target is not None:
            return self.loss(self.coarse_logits(input), target, **options)
        if options:
            raise TypeError(f"{', '.join(options)}: needs a target, as the loss does")
        return self.outputs(input)

    def outputs(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Returns what ``forward`` returns without a target: the logits at the images' size."""
        size, corners = images.shape[-2:], self.align_corners
        logits = self.coarse_logits(images)
        return OrderedDict(
            (name, self.resample(z, size, align_corners=corners)) for name, z in logits.items()
        )

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
        criterion: Criterion | None = None,
        step_targets: Sequence[Tensor] | None = None,
        across_processes: bool = False,
    ) -> Tensor:
        r"""Returns the training loss of the model's paper, without logits at the images' size.

        .. math::
            L = \sum_k a_k \, \mathrm{mean}_i\, \ell\big(U(z_k)_i, t_i\big)
            \quad\text{or}\quad L = \sum_k a_k \, \mathrm{mean}_i\, \ell\big(z_{k,i}, D(t)_i\big)

        The sum is over the model's logits :math:`z_k`. Version 1 has one. Version 2 has the fused
        logits and those of each scale. Versions 3 and 3+ have one, and the auxiliary classifier's
        logits with the factor :math:`a_k` = ``aux_weight``; all other factors are 1. :math:`\ell`
        is the cross-entropy. DeepLab v3 and v3+ upsample the logits (:math:`U`), in
        ``ops.upsample_cross_entropy``. Versions 1 and 2 downsample the labels to the nearest pixel
        (:math:`D`).

        ``model(images, target, ...)`` returns the same loss. In several processes call the wrapped
        model in this way: ``DistributedDataParallel(model)(images, target)``. Its forward must
        compute the loss, or gradients are not shared and logits have the images' size.

        Args:
            images_or_logits: images ``[N, 3, H, W]`` as ``preprocess`` makes them; or the result of
                ``forward`` or ``coarse_logits``.
            target: labels ``[N, H, W]``, int64, int32 or uint8.
            weight: ``[classes]``, a factor for each class.
            ignore_index: the label of pixels that do not count.
            label_smoothing: the share of the loss that is spread over all classes.
            downsample_labels: True downsamples the labels, False upsamples the logits, None does as
                the model's paper.
            aux_weight: factor of the auxiliary classifier's loss; the default is torchvision's.
            criterion: another loss than the cross-entropy: a function of logits ``[N, C, H, W]``
                and labels ``[N, OH, OW]``. It replaces ``weight``, ``ignore_index`` and
                ``label_smoothing``, which it must apply itself.
            step_targets: the labels of all micro-batches of one step of the optimizer, with this
                one. The sum over this micro-batch is then divided by the number of labelled pixels
                of the whole step, so that adding up the gradients gives those of one large batch.
                Without labelled pixels the loss is 0, not NaN.
            across_processes: whether to count the labelled pixels of all processes of
                ``torch.distributed``. All processes must call this function together. The mean
                of their losses is then that of one large batch.

        Returns:
            A scalar.

        Raises:
            TypeError, ValueError: as in ``ops.upsample_cross_entropy``.

        Source: arXiv:1412.7062 section 4, arXiv:1606.00915 section 4, arXiv:1706.05587 section 4.1.

        Example:
            >>> import torch, atrousx
            >>> model = atrousx.models.deeplab_v3(num_classes=3, aux=True, width=0.1)
            >>> images, target = torch.rand(2, 3, 33, 33), torch.randint(3, (2, 33, 33))
            >>> loss = model.loss(images, target)
            >>> loss.backward()
        """
        given = images_or_logits
        if isinstance(given, Tensor):
            if self.training and torch.is_grad_enabled() and rank_and_world()[1] > 1:
                warn_of_unshared_gradients()
            given = self.coarse_logits(given)
        shrink = self.downsamples_labels if downsample_labels is None else downsample_labels
        loss = SegmentationLoss(
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            downsample_labels=shrink,
            aux_weight=aux_weight,
            criterion=criterion,
            step_targets=step_targets,
            across_processes=across_processes,
            align_corners=self.align_corners,
        )
        return loss(given, target)

    def parameter_groups(
        self,
        lr: float | None = None,
        weight_decay: float | None = None,
        *,
        head: float | None = None,
        bias: float | None = None,
        aux: float | None = None,
        decay_all: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Returns parameter groups for an optimizer, by default with the paper's learning rates.

        Frozen parameters are in no group. The defaults are, by version:

        ======= ======= ============ ==== ==== === =========
        version lr      weight_decay head bias aux decay_all
        ======= ======= ============ ==== ==== === =========
        v1      0.001   0.0005       10   2    1   False
        v2      0.00025 0.0005       10   2    1   False
        v3      0.007   0.0001       1    2    1   False
        v3+     0.007   0.00004      1    2    1   False
        ======= ======= ============ ==== ==== === =========

        Args:
            lr: the learning rate.
            weight_decay: the weight decay.
            head: factor of the learning rate for the layers that make the logits.
            bias: factor for the biases of convolutions, in addition to ``head`` or ``aux``.
            aux: factor for the auxiliary classifier of v3; torchvision uses 10.
            decay_all: whether biases and the parameters of normalisation decay as well.

        Returns:
            Dictionaries with "params", "lr" and "weight_decay", the smallest learning rate first.

        Source: arXiv:1412.7062 section 4.1, arXiv:1606.00915 section 4.1, arXiv:1706.05587
        section 4.1; for ``bias`` and ``decay_all`` the authors' released configurations.

        Example:
            >>> import torch, atrousx
            >>> model = atrousx.models.deeplab_v2(2, "vgg16", "large_fov", width=0.1)
            >>> optimizer = torch.optim.SGD(model.parameter_groups(), momentum=0.9)
            >>> [round(group["lr"], 5) for group in optimizer.param_groups]
            [0.00025, 0.0005, 0.0025, 0.005]
        """
        given: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "head": head,
            "bias": bias,
            "aux": aux,
            "decay_all": decay_all,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return parameter_groups(self, self.published._replace(**changes))

    @torch.inference_mode()
    def labels(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        r"""Returns the most likely class of every pixel, without logits at the images' size.

        .. math:: y = \arg\max_c \, U(z)_c

        This function is for evaluation on a data set. It does not change the module's mode, so call
        ``eval()`` first. ``predict`` also takes photographs, scales, mirror images and the CRF.

        Args:
            images: ``[N, 3, H, W]`` as ``preprocess`` makes them.
            size: height and width of the labels; by default those of the images.

        Returns:
            ``[N, H, W]`` int64.

        Raises:
            TypeError, ValueError: as in ``ops.upsample_argmax``.

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
        r"""Labels photographs of any size, in evaluation mode whatever the module's mode is.

        .. math::
            P = \tfrac{1}{|S|}\sum_{s \in S} \mathrm{softmax}(z_s)
            \quad\text{or}\quad P = \mathrm{softmax}(\max_{s \in S} z_s)

        The network sees the photograph resized by the scale :math:`s`, mirrored or not.
        :math:`z_s` are its logits, resized to the photograph's size. DeepLab v2 takes the maximum
        of the logits. The others average the probabilities.

        Args:
            image: ``[N, 3, H, W]`` or ``[3, H, W]``, RGB in 0..255, uint8 or floating. It is moved
                to the model's device.
            scales: sizes at which the network sees the photograph, relative to the photograph's own
                size. The third paper uses (0.5, 0.75, 1, 1.25, 1.5, 1.75).
            flip: whether the network also sees the mirror image of each scale.
            crf: a CRF that refines the result. True is the model's own CRF, if it has one (v1 and
                v2). False and None are no CRF.
            tile: the most pixels in height and width that the network sees at a time, for images
                too large for the memory. The logits of tiles fade into each other where the tiles
                overlap, so no seams appear.
            overlap: the least number of pixels that neighbouring tiles share; by default a quarter
                of ``tile``. Next to a border with a neighbour, the outer quarter of the shared
                pixels does not count. The result equals the untiled result under two conditions:
                the network sees no further around a pixel than this quarter, and the sizes of tile
                and image have the same remainder modulo 32. Otherwise the result near borders is a
                blend of two neighbouring tiles. The image pooling of DeepLab v3 sees the tile
                instead of the image.

        Returns:
            The labels before and after the CRF, and the probabilities.

        Raises:
            TypeError: ``image`` is not a tensor; ``crf`` is not a module, a bool or None; or
                ``tile`` or ``overlap`` is not an int or None.
            ValueError: the shape of ``image`` is wrong, a scale is not positive, or ``tile`` does
                not exceed ``overlap`` by 32 pixels and by a third of itself.

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
        with evaluating(self):
            probabilities = inference.probabilities(self, photograph)
            labels = probabilities.argmax(1)
            if refiner is None:
                return Prediction(labels, None, probabilities)
            # If one class is certain, the others have probability 0; its logarithm must be finite.
            floor = torch.finfo(probabilities.dtype).tiny
            refined = refiner(probabilities.clamp_min(floor).log(), photograph)
            return Prediction(labels, refined.argmax(1), refined)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode inside the context; afterwards every module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
