// The products of a decoder layer, for weights W that stay in their quantised blocks: y = norm(x) W^T + b.
//
// A weight row is a sequence of blocks in one of GGUF's formats: groups of 32 integers with a scale (and a shift). The
// activations are rounded to 16 bits with a scale for each group of 32, so a group's product is a sum of integers,
// which is exact. Rounding them costs 1.5e-5 of a group's largest value at most; sums of groups are float32.
//
// Bit for bit: one output element is one chain of sums in the order of the columns, whatever the number of rows or
// threads: these only change which elements are computed together.

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

constexpr int64_t AHEAD = 1024;  // bytes of weights that are prefetched: a row's blocks are read in one stream

// Rows of activations in 16 bits: x[row][group] = 32 words * scale.
struct Activations {
  at::Tensor words;  // [groups, rows, 32] int16
  at::Tensor scales;  // [groups, rows, 2]: the scale, and the sum of the 32 values
};

void round_group(const float* x, int16_t* words, float* scale) {
  V8 most = zero(), invalid = zero();
  for (int i = 0; i < GROUP; i += 8) {
    const V8 part = load(x + i);
    most = larger(most, larger(part, mul(part, all(-1.0f))));
    invalid = fma(part, zero(), invalid);  // 0, or NaN where a value is not finite
  }
  float lanes[8];
  store(lanes, most);
  const float largest = *std::max_element(lanes, lanes + 8);
  const float inverse = largest > 1e-30f ? 32767.0f / largest : 0.0f;
  int32_t total = 0;
  for (int i = 0; i < GROUP; ++i) {
    const auto word = static_cast<int16_t>(std::lrintf(std::clamp(x[i] * inverse, -32767.0f, 32767.0f)));
    words[i] = word;
    total += word;
  }
  scale[0] = largest / 32767.0f + sum(invalid);
  scale[1] = scale[0] * static_cast<float>(total);
}

Activations rounded(const at::Tensor& x) {
  const int64_t rows = x.size(0), groups = x.size(1) / GROUP;
  Activations out{at::empty({groups, rows, GROUP}, x.options().dtype(at::kShort)),
                  at::empty({groups, rows, 2}, x.options())};
  const float* from = x.const_data_ptr<float>();
  auto* words = out.words.mutable_data_ptr<int16_t>();
  auto* scales = out.scales.mutable_data_ptr<float>();
  at::parallel_for(0, groups * rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      round_group(from + (i % rows * groups + i / rows) * GROUP, words + i * GROUP, scales + 2 * i);
    }
  });
  return out;
}

struct Product {
  const int16_t* words;  // [groups, rows, 32]
  const float* scales;  // [groups, rows, 2]
  const uint8_t* weight;  // [outputs, row_bytes]
  const float* bias;  // [outputs] or null
  const float* residual;  // [rows, stride] or null: added last
  float* y;  // [rows, stride]
  int64_t rows, groups, outputs, row_bytes, stride;
};

// One output of Rows rows from `row` on.
template <class Format, int Rows>
void multiply_rows(const Product& p, int64_t output, int64_t row) {
  V8 total[Rows];
  for (V8& one : total) one = zero();
  const uint8_t* block = p.weight + output * p.row_bytes;
  const int16_t* words = p.words + row * GROUP;
  const float* scales = p.scales + row * 2;
  for (int64_t index = 0; index < p.groups; index += Format::groups, block += Format::bytes) {
    for (int64_t part = 0; part < Format::groups; ++part, words += p.rows * GROUP, scales += p.rows * 2) {
      __builtin_prefetch(block + AHEAD + part * (Format::bytes / Format::groups));
      Group group;
      Format::unpack(block, part, group);
      const V8 scale = all(group.scale[0]);
      UNROLL for (int r = 0; r < Rows; ++r) {
        const int16_t* x = words + r * GROUP;
        const V8 own = all(scales[2 * r]);
        if constexpr (Format::halves) {
          total[r] = fma(products(group.q[0], x), mul(scale, own), total[r]);
          total[r] = fma(products(group.q[1], x + 16), mul(all(group.scale[1]), own), total[r]);
        } else {
          total[r] = fma(products(group.q, x), mul(scale, own), total[r]);
        }
        if constexpr (Format::shifted) total[r] = fma(all(group.shift), first_lane(scales[2 * r + 1]), total[r]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const int64_t at = (row + r) * p.stride + output;
    float value = sum(total[r]);
    if (p.bias) value += p.bias[output];
    if (p.residual) value += p.residual[at];
    p.y[at] = value;
  }
}

template <class Format>
void multiply(const Product& p) {
  at::parallel_for(0, p.outputs, std::max<int64_t>(1, 1024 / p.groups), [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output) {
      int64_t row = 0;
      for (; p.rows - row >= 8; row += 8) multiply_rows<Format, 8>(p, output, row);
      for (; p.rows - row >= 4; row += 4) multiply_rows<Format, 4>(p, output, row);
      for (; p.rows - row >= 2; row += 2) multiply_rows<Format, 2>(p, output, row);
      for (; row < p.rows; ++row) multiply_rows<Format, 1>(p, output, row);
    }
  });
}

template <class Format>
void expand(const at::Tensor& weight, int64_t columns, float* to) {
  const uint8_t* from = weight.const_data_ptr<uint8_t>();
  const int64_t groups = columns / GROUP, row_bytes = weight.size(1);
  at::parallel_for(0, weight.size(0) * groups, 512, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = i % groups;
      Group group;
      Format::unpack(from + i / groups * row_bytes + index / Format::groups * Format::bytes, index % Format::groups, group);
      values<Format>(group, to + i * GROUP);
    }
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
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kFloat && x.size(1) > 0 && x.size(1) % GROUP == 0,
              "x must be float32 [rows, columns], with a multiple of 32 columns");
  TORCH_CHECK(weights.size() == types.size(), "every weight needs its type");
  const int64_t rows = x.size(0), columns = x.size(1);
  int64_t outputs = 0;
  for (const at::Tensor& weight : weights) outputs += weight.size(0);
  check_float(bias, outputs, "bias");
  check_float(residual, rows * outputs, "residual");
  TORCH_CHECK(!swiglu || outputs % (2 * GROUP) == 0, "gate and up must have equally many outputs, a multiple of 32");
  at::Tensor input = x.contiguous();
  if (norm) input = normalised(input, *norm, static_cast<float>(eps));
  const Activations activations = rounded(input);
  at::Tensor y = at::empty({rows, outputs}, x.options());
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    with_format(types[i], [&](auto format) {
      using Format = decltype(format);
      check(weight, columns, Format::groups, Format::bytes);
      multiply<Format>({activations.words.const_data_ptr<int16_t>(), activations.scales.const_data_ptr<float>(),
                        weight.const_data_ptr<uint8_t>(),
                        bias ? bias->const_data_ptr<float>() + first : nullptr,
                        residual ? residual->const_data_ptr<float>() + first : nullptr,
                        y.mutable_data_ptr<float>() + first, rows, columns / GROUP, weight.size(0), weight.size(1),
                        outputs});
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
