// The products of a decoder layer, for weights W that stay in their quantised blocks: y = norm(x) W^T + b.
//
// A weight row is a sequence of blocks in one of GGUF's formats. Each group of 32 values is unpacked to floats in
// registers and used for up to eight rows of x. Activations and sums are float32.
//
// Bit for bit: one output element is one chain of fused multiply-adds in the order of the columns, whatever the number
// of rows or threads. Tiles change which elements are computed together, never the order within one.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "formats.h"
#include "vector.h"

namespace justright {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t ROWS = 64;  // rows of x at a time
constexpr int TILE = 8;  // output elements per tile: as many accumulators as hide the latency of a multiply-add

struct Product {
  const float* x;  // [rows, columns]
  const uint8_t* weight;  // [outputs, row_bytes]
  const float* bias;  // [outputs] or null
  const float* residual;  // [rows, stride] or null: added last
  float* y;  // [rows, stride]
  int64_t columns, outputs, row_bytes, stride;
};

// Where a tile reads its weights: the blocks, unpacked group by group, or rows that `expand` has unpacked.
template <class Format>
struct Blocks {
  const uint8_t* weight;
  int64_t row_bytes;
  Group group;
  void seek(int64_t output, int64_t index) {
    const uint8_t* block = weight + output * row_bytes + index / Format::groups * Format::bytes;
    __builtin_prefetch(block + TILE * row_bytes);  // the same place in the next tile
    Format::unpack(block, index % Format::groups, group);
  }
  V8 part(int index) const { return values<Format>(group, index); }
};

struct Floats {
  const float* weight;
  int64_t columns;
  const float* group;
  void seek(int64_t output, int64_t index) { group = weight + output * columns + index * GROUP; }
  V8 part(int index) const { return load(group + 8 * index); }
};

// Outputs `first` to `first + Outputs` of `source` for Rows rows of x from `row`; `output` is the source's place in p.
template <int Outputs, int Rows, class Source>
void tile(const Product& p, Source source, int64_t first, int64_t row, int64_t output) {
  const float* x = p.x + row * p.columns;
  V8 total[Outputs][Rows];
  for (auto& line : total) {
    for (V8& one : line) one = zero();
  }
  for (int64_t group = 0; group < p.columns / GROUP; ++group) {
    UNROLL for (int o = 0; o < Outputs; ++o) {
      source.seek(first + o, group);
      UNROLL for (int part = 0; part < 4; ++part) {
        const V8 w = source.part(part);
        UNROLL for (int r = 0; r < Rows; ++r) {
          total[o][r] = fma(w, load(x + r * p.columns + group * GROUP + 8 * part), total[o][r]);
        }
      }
    }
  }
  for (int o = 0; o < Outputs; ++o) {
    const int64_t at = output + first + o;
    for (int r = 0; r < Rows; ++r) {
      float value = sum(total[o][r]);
      if (p.bias) value += p.bias[at];
      if (p.residual) value += p.residual[(row + r) * p.stride + at];
      p.y[(row + r) * p.stride + at] = value;
    }
  }
}

// `many` outputs, at most TILE, for Rows rows: as many at once as there are accumulators.
template <int Rows, class Source>
void column(const Product& p, Source source, int64_t many, int64_t row, int64_t output) {
  constexpr int together = TILE / Rows;
  int64_t o = 0;
  for (; o + together <= many; o += together) tile<together, Rows>(p, source, o, row, output);
  for (; o < many; ++o) tile<1, Rows>(p, source, o, row, output);
}

template <class Format>
void unpack_rows(const uint8_t* weight, int64_t row_bytes, int64_t columns, int64_t rows, float* to) {
  Blocks<Format> source{weight, row_bytes, {}};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < columns / GROUP; ++group) {
      source.seek(row, group);
      for (int part = 0; part < 4; ++part) store(to + row * columns + group * GROUP + 8 * part, source.part(part));
    }
  }
}

template <class Format>
void multiply(const Product& p, int64_t rows) {
  const int64_t tiles = (p.outputs + TILE - 1) / TILE;
  const int64_t grain = std::max<int64_t>(1, 32768 / (TILE * p.columns));
  for (int64_t top = 0; top < rows; top += ROWS) {  // x stays in the second-level cache
    const int64_t bottom = std::min(rows, top + ROWS);
    at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> floats(bottom - top > TILE ? TILE * p.columns : 0);
      for (int64_t index = begin; index < end; ++index) {
        const int64_t output = index * TILE, many = std::min<int64_t>(TILE, p.outputs - output);
        const uint8_t* weight = p.weight + output * p.row_bytes;
        const auto rest = [&](auto source) {
          int64_t row = top;
          const auto take = [&](auto count) {
            for (; bottom - row >= count(); row += count()) column<count()>(p, source, many, row, output);
          };
          if constexpr (std::is_same_v<decltype(source), Blocks<Format>>) take(std::integral_constant<int, 8>{});
          take(std::integral_constant<int, 4>{});
          take(std::integral_constant<int, 2>{});
          take(std::integral_constant<int, 1>{});
        };
        if (floats.empty()) {
          rest(Blocks<Format>{weight, p.row_bytes, {}});
        } else {  // many rows: unpack once for all of them
          unpack_rows<Format>(weight, p.row_bytes, p.columns, many, floats.data());
          rest(Floats{floats.data(), p.columns, nullptr});
        }
      }
    });
  }
}

template <class Format>
void expand(const at::Tensor& weight, int64_t columns, float* to) {
  const uint8_t* from = weight.const_data_ptr<uint8_t>();
  const int64_t row_bytes = weight.size(1);
  at::parallel_for(0, weight.size(0), 16, [&](int64_t begin, int64_t end) {
    unpack_rows<Format>(from + begin * row_bytes, row_bytes, columns, end - begin, to + begin * columns);
  });
}

// y = x scaled to a root mean square of 1, times `weight` (RMSNorm), for each row of `columns`.
at::Tensor normalised(const at::Tensor& x, const at::Tensor& weight, float eps) {
  const int64_t columns = x.size(1);
  TORCH_CHECK(weight.numel() == columns && weight.is_contiguous() && weight.scalar_type() == at::kFloat,
              "norm must be contiguous float32 [", columns, "]");
  at::Tensor y = at::empty({x.size(0), columns}, x.options());
  const float* w = weight.const_data_ptr<float>();
  for (int64_t row = 0; row < x.size(0); ++row) {
    const float* from = x.const_data_ptr<float>() + row * columns;
    float* to = y.mutable_data_ptr<float>() + row * columns;
    const V8 scale = all(inverse_rms(from, columns, eps));
    for (int64_t i = 0; i < columns; i += 8) store(to + i, mul(mul(load(from + i), scale), load(w + i)));
  }
  return y;
}

// silu(gate) * up of rows [gate, up].
at::Tensor gated(const at::Tensor& x) {
  const int64_t columns = x.size(1) / 2;
  at::Tensor y = at::empty({x.size(0), columns}, x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  at::parallel_for(0, y.numel() / 8, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = 8 * begin; i < 8 * end; i += 8) {
      const float* gate = from + i / columns * 2 * columns + i % columns;
      const V8 g = load(gate), e = exp(mul(g, all(-1.0f)));
      store(to + i, mul(divide(g, add(all(1.0f), e)), load(gate + columns)));
    }
  });
  return y;
}

void check(const at::Tensor& weight, int64_t columns, int64_t groups, int64_t bytes) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kByte,
              "weight must be contiguous uint8 [outputs, row_bytes]");
  TORCH_CHECK(columns > 0 && columns % (GROUP * groups) == 0 && weight.size(1) == columns / (GROUP * groups) * bytes,
              "a row of ", columns, " columns does not take ", weight.size(1), " bytes in this format");
}

void check_float(const OptionalTensor& x, int64_t size, const char* name) {
  TORCH_CHECK(!x || (x->is_contiguous() && x->scalar_type() == at::kFloat && x->numel() == size), name,
              " must be contiguous float32 of ", size, " values");
}

// The products of x [rows, columns] with several weights, side by side: [rows, all outputs].
at::Tensor linear(const at::Tensor& x, at::TensorList weights, at::IntArrayRef types, const OptionalTensor& bias,
                  const OptionalTensor& norm, double eps, const OptionalTensor& residual, bool swiglu) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat, "x must be float32 [rows, columns]");
  TORCH_CHECK(weights.size() == types.size(), "every weight needs its type");
  const int64_t rows = x.size(0), columns = x.size(1);
  int64_t outputs = 0;
  for (const at::Tensor& weight : weights) outputs += weight.size(0);
  check_float(bias, outputs, "bias");
  check_float(residual, rows * outputs, "residual");
  TORCH_CHECK(!swiglu || outputs % (2 * GROUP) == 0, "gate and up must have equally many outputs, a multiple of 32");
  at::Tensor input = x.contiguous();
  if (norm) input = normalised(input, *norm, static_cast<float>(eps));
  at::Tensor y = at::empty({rows, outputs}, x.options());
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    with_format(types[i], [&](auto format) {
      using Format = decltype(format);
      check(weight, columns, Format::groups, Format::bytes);
      multiply<Format>({input.const_data_ptr<float>(), weight.const_data_ptr<uint8_t>(),
                        bias ? bias->const_data_ptr<float>() + first : nullptr,
                        residual ? residual->const_data_ptr<float>() + first : nullptr,
                        y.mutable_data_ptr<float>() + first, columns, weight.size(0), weight.size(1), outputs},
                       rows);
    });
    first += weight.size(0);
  }
  return swiglu ? gated(y) : y;
}

at::Tensor swiglu(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == at::kFloat && x.size(1) % 16 == 0,
              "x must be contiguous float32 [rows, 16 n]");
  return gated(x);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat && x.size(1) % 8 == 0, "x must be float32 [rows, 8 n]");
  return normalised(x.contiguous(), weight, static_cast<float>(eps));
}

at::Tensor dequantise(const at::Tensor& weight, int64_t columns, int64_t type) {
  at::Tensor y = at::empty({weight.size(0), columns}, weight.options().dtype(at::kFloat));
  with_format(type, [&](auto format) {
    using Format = decltype(format);
    check(weight, columns, Format::groups, Format::bytes);
    expand<Format>(weight, columns, y.mutable_data_ptr<float>());
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(justright, library) {
  library.def(
      "linear(Tensor x, Tensor[] weights, int[] types, Tensor? bias=None, Tensor? norm=None, float eps=0.0, "
      "Tensor? residual=None, bool swiglu=False) -> Tensor");
  library.def("swiglu(Tensor x) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("dequantise(Tensor weight, int columns, int type) -> Tensor");
  library.def(
      "attend(Tensor qkv, Tensor cos, Tensor sin, Tensor? q_norm, Tensor? k_norm, float eps, Tensor[] keys, "
      "Tensor[] values, Tensor runs, Tensor first, Tensor counts, Tensor paths, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(justright, CPU, library) {
  library.impl("linear", &linear);
  library.impl("swiglu", &swiglu);
  library.impl("rms_norm", &rms_norm);
  library.impl("dequantise", &dequantise);
}

}  // namespace justright
