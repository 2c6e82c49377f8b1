// The epilogue of a convolution in the form that a launch accepts.
#pragma once

#include "atrous_conv2d/gather.h"
#include "cuda/launch.h"

namespace atrousx {

template <typename T>
auto held_epilogue(const Tail& tail) {
  const auto make = [&](const T* bias, const T* residual) {
    return Epilogue<T>{bias, residual,
                       tail.residual.has_value() ? strides4(*tail.residual) : Strides4{},
                       tail.relu};
  };
  return combine(make, reads<T>(tail.bias), reads<T>(tail.residual));
}

template <typename T>
using HeldEpilogue = decltype(held_epilogue<T>(Tail{}));

}  // namespace atrousx
