// The schemas of all operators: the table of contents. Kernels are registered next to their code,
// in <operator>/cpu/ and <operator>/cuda/. Autograd, fake kernels and autocast are in
// atrousx/ops/<operator>.py.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"

STABLE_TORCH_LIBRARY(atrousx, m) {
  // Facts about each library. CPU: the instruction set in use, and the PyTorch version whose
  // headers it was compiled with. CUDA: the GPU architectures it was compiled for, and the CUDA
  // version. Both CUDA strings are empty if the CUDA library is not loaded.
  m.def("_cpu_build_info() -> (str instruction_set, str built_with_torch)");
  m.def("_cuda_build_info() -> (str architectures, str built_with_cuda)");

  // padding: top, left, bottom, right. allow_tf32: float32 may be rounded to TF32 on GPUs that
  // multiply TF32 faster.
  m.def(
      "atrous_conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, "
      "SymInt[4] padding, SymInt[2] dilation, SymInt groups, bool allow_tf32=False) -> Tensor");
  // The same convolution for the backend "measure". Each pass runs atrousx's kernels or PyTorch's
  // convolution, whichever was measured to be faster. It is composed of other operators, in
  // atrousx/ops.
  m.def(
      "_measured_conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, "
      "SymInt[4] padding, SymInt[2] dilation, SymInt groups, bool allow_tf32) -> Tensor");
  // Packs the filters in the order in which the CPU's matrix products read them, for later calls.
  // The content depends on the CPU. The result is empty on a GPU, and if groups are too narrow for
  // a matrix product. points: if given, the filters are also transformed for Winograd
  // (winograd_plan.h); only calls that use the same points can read them.
  m.def("_atrous_conv2d_pack_weight(Tensor weight, int groups, int[] points=[]) -> Tensor");
  // Returns the algorithm of a pass (0 forward, 1 grad-input, 2 grad-weight) on the device and in
  // the dtype of `like`: a ConvAlgorithm of atrous_conv2d/algorithm.h, then the Winograd points.
  m.def(
      "_atrous_conv2d_algorithm(Tensor like, int pass_number, int[4] input_size, "
      "int[4] weight_size, int[2] stride, int[4] padding, int[2] dilation, int groups, "
      "bool channels_last, bool frozen, bool allow_tf32) -> int[]");
  // Whether Winograd's error stays small for these 3x3 filters (operand_check.h).
  m.def("_atrous_conv2d_suits_filters(Tensor weight) -> bool");
  // A hash of a weight's bytes. A packed weight compares it to detect that the weight has changed.
  m.def("_fingerprint(Tensor weight) -> int");
  // Turns Winograd off on the CPU if `highest`, otherwise on, for the whole process.
  m.def("_set_highest_precision(bool highest) -> ()");
  // For inference: relu(convolution + residual) in one store; relu and residual are optional.
  // packed: the result of _atrous_conv2d_pack_weight for the same weight.
  m.def(
      "_atrous_conv2d_fused(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, bool "
      "relu, SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups, "
      "bool allow_tf32=False, Tensor? packed=None) -> Tensor");
  m.def(
      "_atrous_conv2d_backward_input(Tensor grad_output, Tensor weight, SymInt[4] input_size, "
      "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups, "
      "bool allow_tf32=False) -> Tensor");
  m.def(
      "_atrous_conv2d_backward_weight(Tensor grad_output, Tensor input, SymInt[4] weight_size, "
      "SymInt[2] stride, SymInt[4] padding, SymInt[2] dilation, SymInt groups, "
      "bool allow_tf32=False) -> Tensor");

  // Convolutions of one input at several dilations, with stride 1 and the same output size. Their
  // channels are concatenated or, with `sum`, added.
  m.def(
      "multi_rate_conv2d(Tensor input, Tensor[] weights, Tensor? bias, SymInt[] dilations, bool "
      "sum, bool allow_tf32) -> Tensor");
  m.def(
      "_multi_rate_conv2d_relu(Tensor input, Tensor[] weights, Tensor? bias, SymInt[] dilations, "
      "bool sum, bool allow_tf32, Tensor[] packed) -> Tensor");

  // scales: output size over input size as the caller gave them. None: computed from the sizes.
  m.def(
      "upsample_bilinear2d(Tensor input, SymInt[2] output_size, bool align_corners, "
      "float? scale_h=None, float? scale_w=None) -> Tensor");
  m.def(
      "_upsample_bilinear2d_backward(Tensor grad_output, SymInt height, SymInt width, "
      "bool align_corners, float? scale_h=None, float? scale_w=None) -> Tensor");

  // Returns the labels (uint8 if `narrow`) and their probabilities (empty unless requested).
  m.def(
      "_upsample_argmax(Tensor logits, SymInt[2] output_size, bool align_corners, "
      "bool with_probability, bool narrow) -> (Tensor, Tensor)");

  // sum += alpha * softmax(upsampled logits). With `flip` the mirror image is added.
  m.def(
      "_upsample_softmax_add_(Tensor(a!) sum, Tensor logits, float alpha, bool flip, "
      "bool align_corners) -> ()");

  // Returns the loss, reduced by `reduction` (0 "none", 1 "mean", 2 "sum"), the sum of the class
  // weights, and each pixel's log-sum of exponentials. The backward needs the last two. grad has
  // the shape of the loss.
  m.def(
      "_upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
      "float label_smoothing, bool align_corners, int reduction) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor total_weight, Tensor log_sum, int ignore_index, float label_smoothing, "
      "bool align_corners, int reduction) -> Tensor");

  // The lattice of a batch of images with features [N, D, P]. Per corner: its vertex and its
  // weight. Per vertex: its points and their weights, as compressed rows. Per axis: both neighbours
  // of each vertex. _permutohedral_build checks the features, then calls _permutohedral_assemble.
  // On the CPU that is one kernel. On CUDA it is composed, in atrousx/ops, of the other operators
  // below and PyTorch's sort.
  m.def(
      "_permutohedral_build(Tensor features) -> (Tensor corner_weights, Tensor corner_vertices, "
      "Tensor starts, Tensor entry_points, Tensor entry_weights, Tensor neighbours)");
  m.def(
      "_permutohedral_assemble(Tensor features) -> (Tensor corner_weights, Tensor corner_vertices, "
      "Tensor starts, Tensor entry_points, Tensor entry_weights, Tensor neighbours)");
  m.def("_permutohedral_embed(Tensor features) -> (Tensor base, Tensor rank, Tensor weights)");
  m.def("_permutohedral_embed_backward(Tensor grad_weights, Tensor rank) -> Tensor");
  m.def(
      "_permutohedral_pack(Tensor base, Tensor rank, int[] words, int[] strides, int[] minima) -> "
      "Tensor");
  m.def("_permutohedral_neighbours(Tensor keys, Tensor steps) -> Tensor");
  // Slice(Blur(Splat(values))), with values [N P, C]. splat_scale multiplies points before the
  // splat, slice_scale after the slice.
  m.def(
      "_permutohedral_apply(Tensor values, Tensor corner_weights, Tensor corner_vertices, "
      "Tensor starts, Tensor entry_points, Tensor entry_weights, Tensor neighbours, "
      "Tensor? splat_scale, Tensor? slice_scale, bool transpose) -> Tensor");
  // Inner products of `rows` with Blur(Splat(values)) at the vertices around each point.
  m.def(
      "_permutohedral_corner_product(Tensor rows, Tensor values, Tensor corner_weights, "
      "Tensor corner_vertices, Tensor starts, Tensor entry_points, Tensor entry_weights, "
      "Tensor neighbours, bool transpose) -> Tensor");

  // Mean-field inference over points, with logits [N, L, P]. Each term has nine tensors: the six of
  // its lattice, the two scales of its filter, and its compatibility. Each of the last three is
  // empty if it does not exist. On CUDA a compatibility may be [L], a diagonal.
  m.def("_mean_field(Tensor logits, Tensor[] terms, float[] weights, int iterations) -> Tensor");
  // _mean_field_states also returns Q before and after each iteration, which the gradient needs. Q
  // has rows of labels in the layout of the device. _mean_field_backward returns:
  // - the gradient of the logits;
  // - per term an [L, L] matrix, from which Python computes the gradients of its weight and of its
  //   compatibility (with Potts costs only the diagonal is filled);
  // - the gradients of the corner weights, all terms concatenated;
  // - per term the gradients of its scales, [2, N P].
  // Tensors that were not requested are empty.
  m.def(
      "_mean_field_states(Tensor logits, Tensor[] terms, float[] weights, int iterations) -> "
      "(Tensor, Tensor states)");
  m.def(
      "_mean_field_backward(Tensor grad, Tensor states, Tensor[] terms, float[] weights, "
      "bool of_energies, bool of_corners) -> (Tensor grad_logits, Tensor energies, Tensor corners, "
      "Tensor scales)");
}

namespace atrousx {

std::tuple<std::string, std::string> cpu_build_info() {
  return {cpu_isa_name(cpu_isa()), ATROUSX_BUILT_WITH_TORCH};
}

std::tuple<std::string, std::string> no_cuda_build_info() { return {}; }

}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeExplicitAutograd, m) {
  m.impl("_cpu_build_info", TORCH_BOX(&atrousx::cpu_build_info));
}

// The CUDA library registers a kernel for CompositeExplicitAutograd, which the dispatcher prefers.
STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeImplicitAutograd, m) {
  m.impl("_cuda_build_info", TORCH_BOX(&atrousx::no_cuda_build_info));
}
