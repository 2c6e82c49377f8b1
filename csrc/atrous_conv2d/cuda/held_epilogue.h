// A convolution's epilogue as a launch takes it.
#pragma once

#include "atrous_conv2d/gather.h"
#include "cuda/launch.h"

namespace atrousx {

template <typename T>
using HeldEpilogue = Held<Epilogue<T>, std::array<std::optional<Tensor>, 2>>;

template <typename T>
HeldEpilogue<T> held_epilogue(const Tail& tail) {
  return {tail.epilogue<T>(), {tail.bias, tail.residual}};
}

}  // namespace atrousx
