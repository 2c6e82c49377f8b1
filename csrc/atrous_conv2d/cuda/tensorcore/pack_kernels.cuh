// Packs maps and weights for the tensor-core kernels: a general kernel, and a faster one for NCHW
// maps, which are packed most often.
#pragma once

#include "cuda/device.cuh"

namespace atrousx {

// Copies matrices into rows of contiguous columns, padded with zeros to whole vectors. Element
// `column` of row (a, b) of matrix (m, g) comes from
// m * from_m + g * from_g + a * from_a + b * from_b + column * from_column.
struct PackShape {
  using HoldsNoAddress = void;
  int64_t count_m, count_g, count_a, count_b, columns;
  int64_t from_m, from_g, from_a, from_b, from_column;
  int64_t to_m, to_g, to_a, to_b;
  int64_t padded_columns;
};

constexpr int kPackTile = 64;
constexpr int kPackThreads = 256;

// Packs any layout. Who: a block owns kPackTile rows times kPackTile columns of a matrix; blocks
// take such tiles in turn. Reads: its tile, along rows or columns, whichever are closer together.
// Writes: its tile, along columns. Synchronisation: three barriers per tile.
template <typename T>
__global__ void __launch_bounds__(kPackThreads, 4)
    atrous_conv2d_pack_kernel(const T* from, T* to, PackShape s) {
  ATROUSX_SHARED(T, tile, kPackTile * (kPackTile + 1));
  ATROUSX_SHARED(int64_t, from_rows, kPackTile);
  ATROUSX_SHARED(int64_t, to_rows, kPackTile);
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
    const int tile_rows = static_cast<int>(min_of<int64_t>(kPackTile, rows - first_row));
    const int present = static_cast<int>(min_of<int64_t>(kPackTile, s.columns - first_column));
    const int padded =
        static_cast<int>(min_of<int64_t>(kPackTile, s.padded_columns - first_column));
    if (threadIdx.x < kPackTile) {
      const int64_t a = (first_row + threadIdx.x) / s.count_b;
      const int64_t b = (first_row + threadIdx.x) % s.count_b;
      from_rows[threadIdx.x] = m * s.from_m + g * s.from_g + a * s.from_a + b * s.from_b;
      to_rows[threadIdx.x] = m * s.to_m + g * s.to_g + a * s.to_a + b * s.to_b;
    }
    __syncthreads();  // the rows' offsets are known
    const T* tile_from = from + first_column * s.from_column;
    for (int i = threadIdx.x; i < kPackTile * kPackTile; i += kPackThreads) {
      const int r = along_rows ? i % kPackTile : i / kPackTile;
      const int c = along_rows ? i / kPackTile : i % kPackTile;
      tile[r * (kPackTile + 1) + c] =
          r < tile_rows && c < present ? tile_from[from_rows[r] + c * s.from_column] : T(0);
    }
    __syncthreads();  // the tile is complete
    for (int i = threadIdx.x; i < kPackTile * kPackTile; i += kPackThreads) {
      const int r = i / kPackTile, c = i % kPackTile;
      if (r < tile_rows && c < padded)
        to[to_rows[r] + first_column + c] = tile[r * (kPackTile + 1) + c];
    }
    __syncthreads();  // all threads have stored; the next job overwrites the tile and the offsets
  }
}

// A map whose planes are dense: [images, groups, channels, pixels] with contiguous pixels. It is
// copied to [images, pixels, groups, padded_channels].
struct TransposeShape {
  using HoldsNoAddress = void;
  int64_t images, groups, channels, pixels;
  int64_t from_image, from_group, from_channel;
  int64_t padded_channels;
};

template <typename T>
struct alignas(16) PackVector {
  T values[16 / sizeof(T)];
};

// A block's tile of a transposed map: 128 bytes of channels, each with a row of 64 pixels.
template <typename T>
struct TransposeTile {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kChannels = 8 * kVector;
  static constexpr int kPixels = 64;
  // A row has room for one vector more, because it may start within a vector. Eight neighbouring
  // threads read rows that are eight apart. One further vector per eight rows avoids bank
  // conflicts.
  static constexpr int kPitch = kPixels + 8;
  static constexpr int kElements = kChannels * kPitch + 8 * kVector;
  static_assert(kVector <= 8, "a row holds a vector more than its pixels");

  static __device__ __forceinline__ int row(int channel) {
    return channel * kPitch + channel / kVector * kVector;
  }
};

// Transposes NCHW maps with 16-byte accesses on both sides, although rows of an odd number of
// pixels may start at any alignment. A row is read from the vector that contains its first pixel.
// The pixel's position in that vector is added when the tile is read back. Who: a block owns a
// TransposeTile; blocks take these in turn. Reads: its tile, in whole vectors except where they
// cross the plane's end. Writes: the channels of its pixels, in whole vectors, with zeros beyond
// the last channel. Synchronisation: two barriers a tile.
template <typename T>
__global__ void __launch_bounds__(kPackThreads)
    atrous_conv2d_transpose_kernel(const T* from, T* to, TransposeShape s) {
  using Tile = TransposeTile<T>;
  constexpr int kVector = Tile::kVector;
  constexpr int kRowVectors = Tile::kPixels / kVector + 1;
  ATROUSX_SHARED(PackVector<T>, memory, Tile::kElements / kVector);
  T* tile = reinterpret_cast<T*>(memory);
  const int64_t pixel_tiles = ceil_div<int64_t>(s.pixels, Tile::kPixels);
  const int64_t channel_tiles = ceil_div<int64_t>(s.padded_channels, Tile::kChannels);
  const int64_t jobs = s.images * s.groups * channel_tiles * pixel_tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t first_pixel = job % pixel_tiles * Tile::kPixels;
    const int64_t first_channel = job / pixel_tiles % channel_tiles * Tile::kChannels;
    const int64_t plane = job / pixel_tiles / channel_tiles;
    const int64_t image = plane / s.groups, group = plane % s.groups;
    const T* corner = from + image * s.from_image + group * s.from_group +
                      first_channel * s.from_channel + first_pixel;
    const int channels =
        static_cast<int>(min_of<int64_t>(Tile::kChannels, s.channels - first_channel));
    const int padded =
        static_cast<int>(min_of<int64_t>(Tile::kChannels, s.padded_channels - first_channel));
    // How many pixels of the plane lie before the tile's first pixel, and how many from it on.
    const int before = static_cast<int>(min_of<int64_t>(first_pixel, kVector));
    const int behind = static_cast<int>(min_of<int64_t>(s.pixels - first_pixel, 2 * Tile::kPixels));
    const int first_place =
        static_cast<int>(reinterpret_cast<uintptr_t>(corner) / sizeof(T) % kVector);
    const int place_step = static_cast<int>(s.from_channel & (kVector - 1));
    for (int i = threadIdx.x; i < Tile::kChannels * kRowVectors; i += kPackThreads) {
      const int c = i / kRowVectors, v = i % kRowVectors;
      if (c >= channels) break;
      const int first = v * kVector - (first_place + c * place_step) % kVector;
      if (first >= min_of(behind, Tile::kPixels)) continue;
      const T* vector = corner + c * s.from_channel + first;
      PackVector<T> x{};
      if (first >= -before && first + kVector <= behind) {
        x = *reinterpret_cast<const PackVector<T>*>(vector);
      } else {
        ATROUSX_UNROLL
        for (int e = 0; e < kVector; ++e)
          if (first + e >= -before && first + e < behind) x.values[e] = vector[e];
      }
      *reinterpret_cast<PackVector<T>*>(tile + Tile::row(c) + v * kVector) = x;
    }
    __syncthreads();  // the tile is complete
    for (int i = threadIdx.x; i < Tile::kPixels * 8; i += kPackThreads) {
      const int p = i / 8, c = i % 8 * kVector;
      if (p >= behind || c >= padded) continue;
      PackVector<T> x{};
      ATROUSX_UNROLL
      for (int e = 0; e < kVector; ++e)
        if (c + e < channels)
          x.values[e] = tile[Tile::row(c + e) + (first_place + (c + e) * place_step) % kVector + p];
      const int64_t row = (image * s.pixels + first_pixel + p) * s.groups + group;
      *reinterpret_cast<PackVector<T>*>(to + row * s.padded_channels + first_channel + c) = x;
    }
    __syncthreads();  // all threads have stored; the next job overwrites the tile
  }
}

}  // namespace atrousx
