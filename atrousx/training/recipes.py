"""The recipes of the papers and of public code."""

from __future__ import annotations

from .recipe import Recipe

# The authors released v1 and v2 as Caffe networks: biases learn twice as fast and do not decay.
_CAFFE = Recipe(
    model="v1",
    backbone="vgg16",
    iterations=6000,
    batch_size=20,
    crop=(321, 321),
    scale=(1.0, 1.0),
    lr=1e-3,
    schedule="step",
    step_size=2000,
    weight_decay=5e-4,
    head_multiplier=10,
    bias_multiplier=2,
    decay_all=False,
)
# arXiv:1706.05587 section 4.1, training on PASCAL VOC. For the weight decay of a ResNet, the biases
# and the steps of the scale see the authors' TensorFlow code.
_V3 = Recipe(
    model="v3",
    backbone="resnet101",
    output_stride=16,
    scale_step=0.25,
    weight_decay=1e-4,
    bias_multiplier=2,
    decay_all=False,
    sync_bn=True,
    bn_momentum=3e-4,
)

RECIPES = {
    # arXiv:1412.7062 section 4.1, DeepLab-LargeFOV.
    "v1": _CAFFE,
    # arXiv:1606.00915 section 4.1 and table 4.
    "v2_vgg16": _CAFFE.replace(
        model="v2", head="aspp_l", iterations=20000, batch_size=10, schedule="poly"
    ),
    "v2_resnet101": _CAFFE.replace(
        model="v2",
        backbone="resnet101",
        head="aspp_l",
        multi_scale=True,
        freeze_bn=True,
        iterations=20000,
        batch_size=10,
        lr=2.5e-4,
        schedule="poly",
        scale=(0.5, 1.5),
        scale_step=0.25,
    ),
    "v3_os16": _V3,
    # The second half of the training: from the result of v3_os16, with frozen normalisation.
    "v3_os8": _V3.replace(output_stride=8, lr=1e-3, freeze_bn=True, sync_bn=False),
    # arXiv:1802.02611 section 4, on PASCAL VOC. For the weight decay of Xception and the biases see
    # the authors' TensorFlow code.
    "v3plus": _V3.replace(model="v3plus", backbone="xception65", weight_decay=4e-5),
    # references/segmentation of torchvision, on 8 GPUs with 4 images each: 30 epochs of the 10582
    # images of train_aug are 9921 iterations.
    "torchvision": Recipe(
        layout="torchvision",
        aux=True,
        iterations=9921,
        batch_size=32,
        crop=(480, 480),
        lr=0.02,
        weight_decay=1e-4,
        aux_multiplier=10,
        aux_weight=0.5,
        sync_bn=True,
    ),
    # configs/deeplabv3 of mmsegmentation, on PASCAL VOC with 4 GPUs.
    "mmseg": Recipe(
        layout="mmseg",
        aux=True,
        iterations=40000,
        batch_size=16,
        crop=(512, 512),
        lr=0.01,
        min_lr=1e-4,
        weight_decay=5e-4,
        aux_weight=0.4,
        sync_bn=True,
    ),
}
"""Recipes by name. ``atrousx train --recipe`` takes these names."""
