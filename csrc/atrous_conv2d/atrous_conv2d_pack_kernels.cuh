// Packing of maps and weights for the tensor-core kernels.
#pragma once

#include "../device.cuh"

namespace atrousx {

// A copy of matrices into rows whose columns lie side by side, padded with zeros to whole vectors.
// Row (a, b) of matrix (m, g): element `column` comes from
// m * from_m + g * from_g + a * from_a + b * from_b + column * from_column.
struct PackShape {
  int64_t count_m, count_g, count_a, count_b, columns;
  int64_t from_m, from_g, from_a, from_b, from_column;
  int64_t to_m, to_g, to_a, to_b;
  int64_t padded_columns;
};

constexpr int kPackTile = 64;
constexpr int kPackThreads = 256;

// Packs maps to channels_last and weights to rows. Who: a block owns kPackTile rows times
// kPackTile columns of a matrix; blocks take such tiles in turn. Reads: its tile, along rows or
// columns, whichever lie closer together. Writes: its tile, along columns. Synchronisation: two
// barriers per tile.
template <typename T>
__global__ void __launch_bounds__(kPackThreads)
    atrous_conv2d_pack_kernel(const T* from, T* to, PackShape s) {
  ATROUSX_SHARED(T, tile, kPackTile * (kPackTile + 1));
  const int64_t rows = s.count_a * s.count_b;
  const int64_t row_tiles = ceil_div<int64_t>(rows, kPackTile);
  const int64_t column_tiles = ceil_div<int64_t>(s.padded_columns, kPackTile);
  const int64_t jobs = s.count_m * s.count_g * row_tiles * column_tiles;
  const bool along_rows = s.from_b < s.from_column;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first_column = job % column_tiles * kPackTile;
    const int64_t first_row = job / column_tiles % row_tiles * kPackTile;
    const int64_t matrix = job / column_tiles / row_tiles;
    const int64_t g = matrix % s.count_g, m = matrix / s.count_g;
    for (int i = threadIdx.x; i < kPackTile * kPackTile; i += kPackThreads) {
      const int r = along_rows ? i % kPackTile : i / kPackTile;
      const int c = along_rows ? i / kPackTile : i % kPackTile;
      const int64_t row = first_row + r, column = first_column + c;
      T value(0);
      if (row < rows && column < s.columns)
        value = from[m * s.from_m + g * s.from_g + row / s.count_b * s.from_a +
                     row % s.count_b * s.from_b + column * s.from_column];
      tile[r * (kPackTile + 1) + c] = value;
    }
    __syncthreads();  // the tile is complete
    for (int i = threadIdx.x; i < kPackTile * kPackTile; i += kPackThreads) {
      const int r = i / kPackTile, c = i % kPackTile;
      const int64_t row = first_row + r, column = first_column + c;
      if (row < rows && column < s.padded_columns)
        to[m * s.to_m + g * s.to_g + row / s.count_b * s.to_a + row % s.count_b * s.to_b + column] =
            tile[r * (kPackTile + 1) + c];
    }
    __syncthreads();  // everyone has stored; the next job overwrites the tile
  }
}

}  // namespace atrousx
