// Host-executed passes of multi_rate_conv2d, in the order of branches.h.
#include "multi_rate_conv2d/plan.h"

#include "arrays.h"
#include "atrous_conv2d/atrous_conv2d_direct_kernels.cuh"
#include "atrous_conv2d/atrous_conv2d_kernels.cuh"

namespace {

namespace py = pybind11;
using atrousx::Epilogue;
using atrousx::RatePass;
using emulator::Tensor4;

template <typename T>
void run(const RatePass& pass, Tensor4<T>& input, Tensor4<T>& weight, const Epilogue<T>& epilogue,
         Tensor4<T>& output, bool direct) {
  const T* from = weight.data() + weight.strides().offset(0, 0, pass.first_row, pass.first_column);
  if (direct)
    return emulator::launch(2, 64, 0, atrousx::atrous_conv2d_gather_direct_kernel<T>, input.data(),
                            from, epilogue, output.data(), pass.shape, input.strides(),
                            pass.weight_strides, output.strides());
  for (const auto& plan :
       atrousx::tap_plans(pass.shape.rows, pass.shape.columns, pass.shape.batch, atrousx::kTile))
    emulator::launch(2, atrousx::kProductThreads, 0, atrousx::atrous_conv2d_gather_kernel<T>,
                     input.data(), from, epilogue, output.data(), plan, pass.shape, input.strides(),
                     pass.weight_strides, output.strides());
}

// relu(residual + every tap of the weight but its centre): the residual is added by the first pass,
// the others add to the output itself.
py::array off_centre(const py::array& input, const py::array& weight, const py::array& residual,
                     int64_t dilation, bool relu, bool channels_last, bool direct) {
  return emulator::dispatch_floating(input, [&](auto zero) {
    using T = decltype(zero);
    // The residual comes in the other memory format.
    Tensor4<T> x(input, channels_last), w(weight, false), r(residual, !channels_last);
    Tensor4<T> y({x.size(0), w.size(0), x.size(2), x.size(3)}, channels_last);
    const int64_t rows = dilation * (w.size(2) / 2), columns = dilation * (w.size(3) / 2);
    const atrousx::ConvGeometry g{x.size(0), x.size(1), x.size(2), x.size(3), w.size(0), w.size(2),
                                  w.size(3), 1,         x.size(2), x.size(3), 1,         1,
                                  rows,      columns,   dilation,  dilation};
    const auto passes = atrousx::off_centre_passes(g, w.strides());
    for (size_t i = 0; i < passes.size(); ++i) {
      Epilogue<T> epilogue{nullptr, r.data(), r.strides(), relu && i + 1 == passes.size()};
      if (i > 0) epilogue = {nullptr, y.data(), y.strides(), epilogue.relu};
      run(passes[i], x, w, epilogue, y, direct);
    }
    return y.to_array(input.dtype());
  });
}

}  // namespace

void bind_multi_rate_conv2d(py::module_& m) { m.def("multi_rate_off_centre", &off_centre); }
