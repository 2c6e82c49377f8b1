"""Dtypes, devices, compiling, exporting, bad input, warnings."""

from __future__ import annotations

import math

import pytest
import torch

import atrousx
from tests.nn.dense_crf.cases import SIGMAS, random_case
from tests.ops.common import FLOATING, assert_same_bits_with_any_threads


@pytest.mark.parametrize("options", [{"compatibility": torch.eye(3)}, {"trainable": True}], ids=str)
def test_a_module_on_another_device_raises(device, options):
    logits, image = random_case(dtype=torch.float32, device="meta")
    crf = atrousx.DenseCRF(3, **options).to(device)
    with pytest.raises(RuntimeError, match=r"DenseCRF's .* must be on the device of logits"):
        crf(logits, image)
    assert crf.to("meta")(logits, image).shape == logits.shape


def test_the_compatibility_moves_with_the_module():
    crf = atrousx.DenseCRF(3, compatibility=(torch.eye(3), None)).to("meta")
    assert crf.bilateral.compatibility.is_meta


def test_opcheck_of_inference(device):
    logits, image = random_case((4, 5), device=device)
    crf = atrousx.DenseCRF(3)
    features = image.double().flatten(2)
    term = crf.bilateral.term(torch.cat([features[:, :2], features], 1), "after")
    tensors = [*term.lattice, *(t if t is not None else logits.new_empty(0) for t in term.scales)]
    matrix = torch.rand(3, 3, dtype=torch.float64, device=device)
    arguments = (logits.flatten(2), [*tensors, matrix], [2.0], 2)
    torch.library.opcheck(torch.ops.atrousx._mean_field.default, arguments)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_are_kept(device, dtype, memory_format):
    logits, image = random_case((6, 7), dtype=dtype, device=device)
    crf = atrousx.DenseCRF(3, iterations=2)
    result = crf(logits.to(memory_format=memory_format), image)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=memory_format)
    computed = crf(logits if dtype == torch.float64 else logits.float(), image)
    assert torch.equal(result, computed.to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_image_dtypes(device, dtype):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    crf = atrousx.DenseCRF(3, iterations=2)
    assert torch.equal(crf(logits, image.to(dtype)), crf(logits, image))


def test_autocast_leaves_it_alone(device):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    matrix = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.5], [1.0, 4.0, -1.0]], device=device)
    crf = atrousx.DenseCRF(3, iterations=2, compatibility=matrix)
    expected = crf(logits, image)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(crf(logits, image), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 3, 0, 5)])
def test_empty(device, shape):
    image = torch.zeros(shape, dtype=torch.uint8, device=device)
    assert atrousx.DenseCRF(3)(torch.zeros(shape, device=device), image).shape == shape


def test_same_bits():
    logits, image = random_case((30, 40), 21, dtype=torch.float32)
    logits.requires_grad_()
    crf = atrousx.DenseCRF(21, trainable=True, **SIGMAS)

    def results():
        q = crf(logits, image)
        gradients = torch.autograd.grad(q.square().sum(), [logits, *crf.parameters()])
        return torch.cat([t.flatten() for t in (q, *gradients)])

    assert_same_bits_with_any_threads(results)


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_training(device, recompute):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    crf = atrousx.DenseCRF(3, iterations=2, trainable=True, recompute=recompute, **SIGMAS)
    crf.to(device)
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    logits.requires_grad_()
    inputs = (logits, *crf.parameters())
    actual, expected = (
        torch.autograd.grad(f(logits, image).square().sum(), inputs) for f in (compiled, crf)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_compiles_whole(device):
    logits, image = random_case((6, 7), dtype=torch.float32, device=device)
    crf = atrousx.DenseCRF(3, iterations=2)
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, image), crf(logits, image))


def test_exports_with_any_batch_and_height(device):
    logits, image = random_case((6, 7), batch=2, dtype=torch.float32, device=device)
    crf = atrousx.DenseCRF(3, iterations=2)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}
    program = torch.export.export(crf, (logits, image), dynamic_shapes=(dims, dims))
    logits, image = random_case((9, 7), batch=3, dtype=torch.float32, device=device)
    torch.testing.assert_close(program.module()(logits, image), crf(logits, image))


def test_meta_tensors_have_the_result_s_shape():
    logits = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    result = atrousx.DenseCRF(3)(logits, logits)
    assert result.shape == logits.shape
    assert result.stride() == logits.stride()


L, IMAGE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((L[0], IMAGE), ValueError, r"logits must have 4 dimensions \[N, L, H, W\]"),
        ((L[:, :2], IMAGE), ValueError, r"logits must have num_labels = 3 channels"),
        ((L.long(), IMAGE), TypeError, r"logits must be float32, .* got int64"),
        ((L, IMAGE.numpy()), TypeError, r"image must be a torch.Tensor, got ndarray"),
        ((L, IMAGE.bool()), TypeError, r"image must be of an integer or floating dtype"),
        ((L, IMAGE[:, :, :3]), ValueError, r"image must have the shape \(2, 3, 4, 5\) .* 3, 5\)"),
        ((L, IMAGE[:1]), ValueError, r"image must have the shape .* got \(1, 3, 4, 5\)"),
        ((L, IMAGE + math.nan), ValueError, r"image must be finite, got NaN or infinity"),
        ((L, IMAGE.to("meta")), RuntimeError, r"image must be on the device of logits"),
    ],
)
def test_rejections(arguments, error, message):
    with pytest.raises(error, match=message):
        atrousx.DenseCRF(3)(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 0}, "num_labels must be a positive int, got 0"),
        ({"iterations": -1}, "iterations must be an int, 0 to 2147483647, got -1"),
        ({"bilateral_sigma_xy": -3.0}, "bilateral_sigma_xy must be one or 2 positive numbers"),
        ({"bilateral_sigma_rgb": (1.0, 2.0)}, "bilateral_sigma_rgb must be one or 3 positive"),
        ({"gaussian_sigma_xy": math.nan}, "gaussian_sigma_xy must be a finite number, got nan"),
        ({"gaussian_weight": math.inf}, "gaussian_weight must be a finite number, got inf"),
        ({"compatibility": torch.eye(2)}, r"compatibility must be a finite \[3, 3\] matrix"),
        ({"compatibility": 2.0}, "compatibility must be a tensor or a pair of them, got float"),
        ({"normalization": "sym"}, "normalization must be one of"),
    ],
)
def test_constructor_rejections(options, message):
    with pytest.raises(ValueError, match=message):
        atrousx.DenseCRF(**{"num_labels": 3, **options})


def test_an_image_in_0_to_1_is_warned_of_once():
    crf = atrousx.DenseCRF(3, iterations=1)
    with pytest.warns(UserWarning, match=r"image lie in 0\.\.1; DenseCRF expects 0\.\.255"):
        crf(L, torch.rand(2, 3, 4, 5))
    crf(L, torch.rand(2, 3, 4, 5))  # a second warning would be an error


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(2, 3, 4, 5),  # black in any range
        torch.rand(2, 3, 4, 5) - 0.5,
        255 * torch.rand(2, 3, 4, 5),
        torch.ones(2, 3, 4, 5, dtype=torch.uint8),
    ],
)
def test_other_images_are_not_warned_of(image):
    atrousx.DenseCRF(3, iterations=1)(L, image)


def test_traced_code_does_not_look_at_the_range_of_an_image():
    crf = atrousx.DenseCRF(3, iterations=1)
    image = torch.rand(2, 3, 4, 5)
    torch.compile(crf, fullgraph=True, backend="aot_eager")(L, image)
    torch.export.export(crf, (L, image))
    with pytest.warns(UserWarning, match="0..255"):
        crf(L, image)


def test_all_but_the_number_of_labels_goes_by_name():
    with pytest.raises(TypeError, match="positional argument"):
        atrousx.DenseCRF(3, 4.0)
