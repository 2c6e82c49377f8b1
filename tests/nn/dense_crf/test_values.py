"""Literal cases, pydensecrf's results, the float64 oracle, gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import atrousx
from tests.nn.dense_crf.cases import SIGMAS, random_case
from tests.ops.common import to_float64
from tests.reference import permutohedral as reference

DATA = Path(__file__).parents[2] / "goldens" / "pydensecrf"


# Where H W is not a multiple of 4, results depend on pydensecrf's padding points.
GOLDENS = sorted(DATA.glob("Q_s_48x64x5_*.npz"))


ITERATION_0 = sorted(DATA.glob("Q_*_it0.npz"))


NAMES = {"sym": "symmetric", "after": "after", "before": "before", "none": "none"}


def golden_crf(meta, labels):
    options = {"iterations": meta["iters"], "normalization": NAMES[meta["normalization"]]}
    bilateral, gaussian = meta["bilateral"], meta["gaussian"]
    if bilateral is None:
        options["bilateral_weight"] = None
    else:
        weight = bilateral["compat"]
        if isinstance(weight, list):  # pydensecrf's matrices are costs
            options["compatibility"] = (torch.tensor(weight), None)
            weight = 1.0
        options["bilateral_weight"] = weight
        options["bilateral_sigma_xy"] = bilateral["sxy"]
        options["bilateral_sigma_rgb"] = bilateral["srgb"]
    if gaussian is None:
        options["gaussian_weight"] = 0
    else:
        options["gaussian_weight"] = gaussian["compat"]
        options["gaussian_sigma_xy"] = gaussian["sxy"]
    return atrousx.DenseCRF(labels, **options)


@pytest.mark.parametrize("path", GOLDENS + ITERATION_0, ids=lambda p: p.stem)
def test_pydensecrf_golden(device, path):
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    given = np.load(DATA / meta["input"])
    logits = -torch.from_numpy(given["unary"])[None].to(device)
    image = torch.from_numpy(given["image"]).permute(2, 0, 1)[None].to(device)
    result = golden_crf(meta, logits.shape[1]).to(device)(logits, image)
    np.testing.assert_allclose(result[0].cpu().numpy(), golden["Q"], rtol=0, atol=1e-4)


def oracle(logits, image, crf, normalization="symmetric"):
    """Computes the reference result. It takes only the constructor's numbers from the module."""
    out = np.empty(logits.shape)
    labels, height, width = logits.shape[1:]
    y, x = np.mgrid[:height, :width]
    for n in range(len(logits)):
        rows = to_float64(logits[n]).reshape(labels, -1).T
        log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        colours = to_float64(image[n])
        kernels = []
        for kernel, axes in ((crf.gaussian, [x, y]), (crf.bilateral, [x, y, *colours])):
            if kernel is not None:
                features = np.stack(axes, -1).reshape(height * width, -1) / kernel.fixed_sigma
                mu = 1 - np.eye(labels)
                if kernel.compatibility is not None:
                    mu = to_float64(kernel.compatibility)
                kernels.append((features, kernel.fixed_weight * mu))
        q = reference.mean_field(log_p, kernels, crf.iterations, normalization)
        out[n] = q.T.reshape(labels, height, width)
    return out


OPTIONS = [
    {"normalization": "symmetric"},
    {"normalization": "after"},
    {"normalization": "before"},
    {"normalization": "none", "bilateral_weight": 0.1, "gaussian_weight": 0.2},
    {"bilateral_weight": None},
    {"gaussian_weight": 0},
    {"bilateral_weight": 0, "gaussian_weight": None},
    {"gaussian_sigma_xy": (1.7, 2.9), "bilateral_sigma_rgb": (31.0, 20.0, 45.0)},
    {"compatibility": torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.5], [1.0, 4.0, -1.0]])},
    {"iterations": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_oracle(device, options):
    logits, image = random_case(size=(5, 7), batch=2, device=device)
    # With these sigmas no pixel lies between two simplices, where either neighbour would be right.
    defaults = {
        "bilateral_sigma_xy": (5.3, 4.1),
        "bilateral_sigma_rgb": 23.7,
        "gaussian_sigma_xy": (1.9, 2.3),
        "iterations": 3,
    }
    crf = atrousx.DenseCRF(3, **{**defaults, **options}).to(device)
    exact = oracle(logits, image, crf, options.get("normalization", "symmetric"))
    result = crf(logits, image)
    np.testing.assert_allclose(to_float64(result), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [1, 3, 8, 21, 41])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[4], "matrix"], ids=str)
def test_inference_is_what_training_computes(device, labels, options, dtype):
    logits, image = random_case((9, 11), labels, 2, dtype, device)
    logits[:, 0, 0] = -math.inf  # a label that is excluded
    if labels == 1:
        logits[:, 0, 0] = 7
    if options == "matrix":
        options = {"compatibility": torch.randn(labels, labels), "gaussian_weight": 0.3}
    crf = atrousx.DenseCRF(labels, iterations=4, bilateral_sigma_rgb=40.0, **options).to(device)
    expected = crf(logits.clone().requires_grad_(), image)
    assert expected.requires_grad
    result = crf(logits, image)
    assert not result.requires_grad
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(result, expected.detach(), rtol=tolerance, atol=tolerance)


def test_nan_stays_where_it_is_heard(device):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    logits[0, 1, 2, 3] = math.nan
    assert atrousx.DenseCRF(3, iterations=1)(logits, image)[0, :, 2, 3].isnan().all()


def test_certain_labels_and_large_logits(device):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    labels = logits.argmax(1)
    result = atrousx.DenseCRF(3, iterations=2)(1e6 * logits, image)
    assert torch.equal(result.argmax(1), labels)
    torch.testing.assert_close(result.sum(1), torch.ones_like(result[:, 0]))


def test_no_neighbours_by_hand(device):
    # A single pixel receives only its own message: symmetric K is 1, so Potts adds the weights
    # times Q.
    logits = torch.tensor([0.0, 1.0], device=device).view(1, 2, 1, 1)
    image = torch.zeros(1, 3, 1, 1, device=device)
    crf = atrousx.DenseCRF(2, bilateral_weight=2.0, gaussian_weight=3.0, iterations=1)
    difference = 1 + 5 * math.tanh(0.5)  # Q_1 - Q_0 = tanh(1/2)
    probability = 1 / (1 + math.exp(-difference))
    expected = torch.tensor([1 - probability, probability], device=device).view(1, 2, 1, 1)
    torch.testing.assert_close(crf(logits, image), expected)


def test_labels_follow_the_edge_of_the_image(device):
    image = torch.zeros(1, 3, 12, 16, device=device)
    image[..., 7:] = 200
    logits = torch.zeros(1, 2, 12, 16, device=device)
    logits[:, 0, :, :5] = logits[:, 1, :, 5:] = 1  # the border of the labels is two columns off
    labels = atrousx.DenseCRF(2)(logits, image).argmax(1)
    assert torch.equal(labels, (image[:, 0] > 0).long())


def test_constant_image_and_tiny_sigma(device):
    logits = torch.randn(1, 3, 8, 9, device=device)
    image = torch.full((1, 3, 8, 9), 128, device=device)
    result = atrousx.DenseCRF(3, bilateral_sigma_xy=1e9)(logits, image)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 9, device=device))
    # With sigmas far below a pixel, every pixel receives only its own message, like a 1x1 image.
    tiny = atrousx.DenseCRF(
        3, bilateral_sigma_xy=1e-3, bilateral_sigma_rgb=1e-3, gaussian_sigma_xy=1e-3
    )
    together = tiny(logits, image)
    alone = tiny(logits[:, :, 3:4, 4:5], image[:, :, 3:4, 4:5])
    torch.testing.assert_close(together[:, :, 3:4, 4:5], alone)


@pytest.mark.parametrize("normalization", NAMES.values())
def test_gradient_of_logits(device, normalization):
    logits, image = random_case((3, 4), device=device)
    crf = atrousx.DenseCRF(
        3,
        bilateral_weight=0.4,
        bilateral_sigma_xy=5.0,
        bilateral_sigma_rgb=30.0,
        gaussian_weight=0.3,
        iterations=3,
        normalization=normalization,
    )
    inputs = (logits.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda v: crf(v, image), inputs, fast_mode=True)


@pytest.mark.parametrize("normalization", NAMES.values())
def test_gradients_of_image_and_parameters(device, normalization):
    logits, image = random_case((3, 3), device=device)
    image = image.double().requires_grad_()
    options = {"normalization": normalization, **SIGMAS}
    crf = atrousx.DenseCRF(
        3, bilateral_weight=0.9, gaussian_weight=0.7, iterations=2, trainable=True, **options
    )
    crf.double().to(device)
    assert len(list(crf.parameters())) == 6
    inputs = (logits.requires_grad_(), image, *crf.parameters())
    assert torch.autograd.gradcheck(lambda v, i, *_: crf(v, i), inputs, fast_mode=True)


@pytest.mark.parametrize("trainable", [False, True])
def test_training_keeps_one_q_of_an_iteration(device, trainable):
    logits, image = random_case((9, 12), 8, dtype=torch.float32, device=device)
    logits.requires_grad_()
    kept = []
    for iterations in (2, 6):
        saved = {}

        def note(t, saved=saved):
            saved[t.untyped_storage().data_ptr()] = t  # kept alive so that addresses stay distinct
            return t

        crf = atrousx.DenseCRF(8, iterations=iterations, trainable=trainable, **SIGMAS).to(device)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            crf(logits, image)
        kept.append(sum(t.untyped_storage().nbytes() for t in saved.values()))
    assert kept[1] - kept[0] == 4 * logits.nbytes


def test_trainable_starts_where_the_fixed_one_is(device):
    logits, image = random_case((6, 7), device=device)
    fixed, trainable = atrousx.DenseCRF(3), atrousx.DenseCRF(3, trainable=True).double().to(device)
    # A trainable CRF stores the logarithms of its sigmas in float32.
    torch.testing.assert_close(trainable(logits, image), fixed(logits, image), rtol=0, atol=1e-3)
    assert not fixed.state_dict()
