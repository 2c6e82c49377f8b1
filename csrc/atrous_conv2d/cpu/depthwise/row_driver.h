// Which walks (row_kernel.h) a depthwise call in channels_last consists of, and their order.
//
// The rows of a task also lie the dilation apart. The task goes through them with a part of the
// channels. So two of the three lines of a row are still in L2, whatever the dilation. The third is
// prefetched while the row before is summed.
#pragma once

#include <vector>

#include "atrous_conv2d/cpu/depthwise/row_kernel.h"
#include "tensor.h"

namespace atrousx {

// Row number i in an order in which rows that lie `step` apart follow one another.
inline int64_t row_of_phase(int64_t i, int64_t rows, int64_t step) {
  const int64_t least = rows / step, longer = rows % step;  // `longer` phases have one row more
  const int64_t in_longer = longer * (least + 1);
  if (i < in_longer) return i % (least + 1) * step + i / (least + 1);
  return (i - in_longer) % least * step + longer + (i - in_longer) / least;
}

// What all tasks of a call share.
template <typename T>
class PixelWalks {
  using A = Accumulate<T>;
  // Bytes of a pixel in a chunk. A row of a task needs four lines; with 65 pixels they fill a third
  // of L2.
  static constexpr int64_t kChunkBytes = 1536;

 public:
  PixelWalks(const GatherShape& shape, const T* source, const T* weight, const WeightStrides& ws,
             Epilogue<T> epilogue, T* destination)
      : shape_(shape),
        source_(source),
        weight_(weight),
        ws_(ws),
        epilogue_(epilogue),
        destination_(destination),
        phases_(phases_of(shape.columns)),
        row_step_(min_of(std::abs(shape.rows.step), shape.rows.destinations)) {
    const int64_t whole = shape.groups / channels_ * channels_;
    chunks_ = ceil_div<int64_t>(whole * sizeof(T), kChunkBytes);
  }

  static bool fit(const GatherShape& shape) {
    const auto unit = [](const TapAxis& axis) { return axis.scale == 1 && axis.divisor == 1; };
    // A walk also makes products at its ends that it drops: two of three if it has one destination.
    // For half types the conversions that it saves outweigh them.
    const bool pays =
        sizeof(T) < sizeof(float) || shape.columns.destinations >= 5 * std::abs(shape.columns.step);
    return unit(shape.rows) && unit(shape.columns) && shape.columns.taps == 3 &&
           shape.rows.taps <= 3 && pays && shape.groups >= WalkWidth<T>(vector_bytes()).channels();
  }

  // The order is image after image. If threads went through one image together, they would cause
  // page faults on the same fresh pages and clear them twice.
  void run() const {
    const int64_t rows = shape_.rows.destinations;
    const int64_t work = shape_.columns.destinations * shape_.groups / chunks_ * shape_.taps();
    torch::stable::parallel_for(0, shape_.batch * chunks_ * rows, rows_per_task(work),
                                [&](int64_t begin, int64_t end) {
                                  std::vector<A> packed;
                                  for (int64_t i = begin; i < end; ++i) {
                                    const Chunk own = chunk(i / rows % chunks_);
                                    if (i == begin || (i % rows == 0 && chunks_ > 1))
                                      pack(own, packed);
                                    sum_row(own, i / rows / chunks_, i % rows, packed.data());
                                  }
                                });
  }

 private:
  // Channels [first, first + count).
  struct Chunk {
    int64_t first, count;
  };

  Chunk chunk(int64_t i) const {
    const int64_t all = shape_.groups / channels_, first = i * all / chunks_ * channels_;
    const int64_t end = i + 1 < chunks_ ? (i + 1) * all / chunks_ * channels_ : shape_.groups;
    return {first, end - first};
  }
  int64_t walks(const Chunk& chunk) const { return ceil_div(chunk.count, channels_); }
  // The first channel of walk w. The last walk may overlap the one before it.
  int64_t walk(const Chunk& chunk, int64_t w) const {
    return chunk.first + min_of(w * channels_, chunk.count - channels_);
  }

  // Packs weights and biases to [walks][taps and a bias][vectors][lanes].
  void pack(const Chunk& chunk, std::vector<A>& packed) const {
    packed.resize(walks(chunk) * (shape_.taps() + 1) * channels_);
    A* to = packed.data();
    const auto each = [&](auto value) {
      for (int part = 0; part < width_.parts; ++part)
        for (int v = 0; v < width_.vectors; ++v)
          for (int lane = 0; lane < width_.lanes; ++lane)
            *to++ = value((part * width_.lanes + lane) * width_.vectors + v);
    };
    const bool mirrored = shape_.columns.step < 0;
    for (int64_t w = 0; w < walks(chunk); ++w) {
      const int64_t c = walk(chunk, w);
      for (int64_t kh = 0; kh < shape_.rows.taps; ++kh)
        for (int64_t kw = 0; kw < 3; ++kw) {
          const T* from = weight_ + c * ws_.group + kh * ws_.h + (mirrored ? 2 - kw : kw) * ws_.w;
          each([&](int64_t i) { return static_cast<A>(from[i * ws_.group]); });
        }
      each([&](int64_t i) { return first_sum(epilogue_, c + i); });
    }
  }

  // The last row of the map that destination row `row` reads, or -1.
  int64_t last_line(int64_t row) const {
    int64_t last = -1;
    for (int64_t kh = 0; kh < shape_.rows.taps; ++kh)
      last = max_of(last, shape_.rows.source(row, kh));
    return last;
  }

  void sum_row(const Chunk& chunk, int64_t n, int64_t i, const A* packed) const {
    const TapAxis &rows = shape_.rows, &columns = shape_.columns;
    const int64_t row = row_of_phase(i, rows.destinations, row_step_);
    const int64_t next_row =
        row_of_phase((i + 1) % rows.destinations, rows.destinations, row_step_);
    const int64_t line_size = columns.sources * shape_.groups;
    const int64_t row_size = columns.destinations * shape_.groups;
    int64_t kh = 0, live = 0;
    while (kh < rows.taps && rows.source(row, kh) < 0) ++kh;
    while (kh + live < rows.taps && rows.source(row, kh + live) >= 0) ++live;
    const int64_t line = live > 0 ? rows.source(row, kh) : 0;
    for (int64_t w = 0; w < walks(chunk); ++w, packed += (shape_.taps() + 1) * channels_) {
      const int64_t c = walk(chunk, w);
      const bool last = w + 1 == walks(chunk);
      const int64_t next_out =
          last ? (next_row - row) * row_size + chunk.first - c : walk(chunk, w + 1) - c;
      run_with_lanes<WalkColumns>(
          WalkRow<T>{source_ + (n * rows.sources + line) * line_size + c,
                     destination_ + (n * rows.destinations + row) * row_size + c, shape_.groups,
                     std::abs(columns.step), live, rows.step * line_size,
                     (last_line(next_row) - line) * line_size, next_out, epilogue_.relu},
          WalkWeights<A>{packed + kh * 3 * channels_, packed + shape_.taps() * channels_},
          phases_.data(), static_cast<int64_t>(phases_.size()));
    }
  }

  const WalkWidth<T> width_{vector_bytes()};
  const int64_t channels_ = width_.channels();  // per walk
  const GatherShape& shape_;
  const T *source_, *weight_;
  const WeightStrides& ws_;
  const Epilogue<T> epilogue_;
  T* const destination_;
  const std::vector<Phase> phases_;
  const int64_t row_step_;
  int64_t chunks_;
};

}  // namespace atrousx
