// Every operator's schema: the table of contents. Kernels are registered next to their code, in
// <operator>/<operator>_cpu.cpp and <operator>/<operator>_cuda.cu; autograd, fake kernels and
// autocast in atrousx/ops/<operator>.py.
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"

STABLE_TORCH_LIBRARY(atrousx, m) {
  // What each library knows of itself: the instruction set in use and the PyTorch whose headers it
  // was compiled with; the GPUs that it was compiled for and the version of CUDA, both empty where
  // the CUDA library is not loaded.
  m.def("_cpu_build_info() -> (str instruction_set, str built_with_torch)");
  m.def("_cuda_build_info() -> (str architectures, str built_with_cuda)");

  // padding: top, left, bottom, right. allow_tf32: float32 may be rounded to TF32, on GPUs that
  // multiply it faster.
  m.def(
      "atrous_conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, "
      "SymInt[4] padding, SymInt[2] dilation, SymInt groups, bool allow_tf32=False) -> Tensor");
  // The same, each pass by atrousx's kernels or PyTorch's convolution, as the backend "measure" has
  // them: a function of other operators, in atrousx/ops.
  m.def(
      "_measured_conv2d(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, "
      "SymInt[4] padding, SymInt[2] dilation, SymInt groups, bool allow_tf32) -> Tensor");
  // The filters as the CPU's matrix products read them, for calls to come: what it holds depends on
  // the CPU. Empty on a GPU, and where groups are too narrow for a product. points: transformed for
  // minimal filtering (winograd_plan.h), for calls that it serves.
  m.def("_atrous_conv2d_pack_weight(Tensor weight, int groups, int[] points=[]) -> Tensor");
  // Which algorithm computes a pass (0 forward, 1 grad-input, 2 grad-weight) on the device of
  // `like` and in its dtype: a ConvAlgorithm of atrous_conv2d/algorithm.h, and the points of
  // minimal filtering.
  m.def(
      "_atrous_conv2d_algorithm(Tensor like, int pass_number, int[4] input_size, "
      "int[4] weight_size, int[2] stride, int[4] padding, int[2] dilation, int groups, "
      "bool channels_last, bool frozen, bool allow_tf32) -> int[]");
  // Whether the error stays small where 3x3 filters are transformed (operand_check.h).
  m.def("_atrous_conv2d_suits_filters(Tensor weight) -> bool");
  // A hash of a weight's bytes, by which a packed form finds that they have changed.
  m.def("_fingerprint(Tensor weight) -> int");
  // Whether the CPU never goes by minimal filtering, in the whole process.
  m.def("_set_highest_precision(bool highest) -> ()");
  // For inference: relu(convolution + residual), both where asked for, in one store. packed: by
  // the operator above, of the same weight.
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

  // Convolutions of one input at several dilations, stride 1, same size: their channels side by
  // side or, with sum, added up.
  m.def(
      "multi_rate_conv2d(Tensor input, Tensor[] weights, Tensor? bias, SymInt[] dilations, bool "
      "sum, bool allow_tf32) -> Tensor");
  m.def(
      "_multi_rate_conv2d_relu(Tensor input, Tensor[] weights, Tensor? bias, SymInt[] dilations, "
      "bool sum, bool allow_tf32, Tensor[] packed) -> Tensor");

  // scales: output size over input size as the caller gave them, or None to take it from the sizes.
  m.def(
      "upsample_bilinear2d(Tensor input, SymInt[2] output_size, bool align_corners, "
      "float? scale_h=None, float? scale_w=None) -> Tensor");
  m.def(
      "_upsample_bilinear2d_backward(Tensor grad_output, SymInt height, SymInt width, "
      "bool align_corners, float? scale_h=None, float? scale_w=None) -> Tensor");

  // labels, uint8 if `narrow`, and the winners' probabilities, empty unless asked for.
  m.def(
      "_upsample_argmax(Tensor logits, SymInt[2] output_size, bool align_corners, "
      "bool with_probability, bool narrow) -> (Tensor, Tensor)");

  // sum += alpha * softmax(upsampled logits), of their mirror image if `flip`.
  m.def(
      "_upsample_softmax_add_(Tensor(a!) sum, Tensor logits, float alpha, bool flip, "
      "bool align_corners) -> ()");

  // The loss, reduced as asked for (0 "none", 1 "mean", 2 "sum"), the total of the weights, and the
  // pixels' log-sums of exponentials; the backward needs the latter two. grad is like the loss.
  m.def(
      "_upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
      "float label_smoothing, bool align_corners, int reduction) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor? weight, "
      "Tensor total_weight, Tensor log_sum, int ignore_index, float label_smoothing, "
      "bool align_corners, int reduction) -> Tensor");

  // The lattice of a batch of images, [N, D, P] features: per corner its vertex and weight, per
  // vertex its points and their weights in compressed rows, per axis both neighbours. It checks the
  // features, then assembles: on the CPU one kernel, on CUDA the four operators below and torch's
  // sort, put together in atrousx/ops.
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
  // Slice(Blur(Splat(values))), values [N P, C]; the scales multiply points on their way in and
  // out.
  m.def(
      "_permutohedral_apply(Tensor values, Tensor corner_weights, Tensor corner_vertices, "
      "Tensor starts, Tensor entry_points, Tensor entry_weights, Tensor neighbours, "
      "Tensor? splat_scale, Tensor? slice_scale, bool transpose) -> Tensor");
  // Inner products of `rows` with Blur(Splat(values)) at each point's vertices.
  m.def(
      "_permutohedral_corner_product(Tensor rows, Tensor values, Tensor corner_weights, "
      "Tensor corner_vertices, Tensor starts, Tensor entry_points, Tensor entry_weights, "
      "Tensor neighbours, bool transpose) -> Tensor");

  // Mean-field inference over points, logits [N, L, P]. Of each term nine tensors: its lattice's
  // six, the two scales of its filter and its compatibility, the last three empty where there is
  // none. On CUDA a compatibility may be [L], a diagonal.
  m.def("_mean_field(Tensor logits, Tensor[] terms, float[] weights, int iterations) -> Tensor");
  // The same, and Q before and after each iteration, for its gradient: in rows, as the device likes
  // them. The gradient of the logits; per term [L, L], of which those of its weight and its
  // compatibility are made (for Potts' costs the diagonal alone); of all terms' corner weights, one
  // behind the other; per term of its scales [2, N P]. The latter two or three are empty where they
  // are not asked for.
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

// The dispatcher prefers a kernel for CompositeExplicitAutograd, which the CUDA library brings.
STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeImplicitAutograd, m) {
  m.impl("_cuda_build_info", TORCH_BOX(&atrousx::no_cuda_build_info));
}
