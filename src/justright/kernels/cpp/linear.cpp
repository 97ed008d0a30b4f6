// y = x W^T + b for a weight W that stays in its quantised blocks.
//
// A weight row is a sequence of blocks in one of GGUF's formats. Each group of 32 values is unpacked to floats in
// registers and used for up to eight rows of x. Activations and sums are float32.
//
// Bit for bit: one output element is one chain of fused multiply-adds in the order of the columns, whatever the number
// of rows or threads. Tiles change which elements are computed together, never the order within one.
//
// Block layouts: ggml-common.h and ggml-quants.c of github.com/ggml-org/ggml.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define JUSTRIGHT_AVX2 1
#endif

// Sums stay in registers only where the loops over them are unrolled.
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

namespace {

constexpr int64_t GROUP = 32;
constexpr int64_t ROWS = 64;  // rows of x at a time
constexpr int TILE = 8;  // output elements per tile: as many accumulators as hide the latency of a multiply-add

// Sixteen bytes, with the operators of their elements.
typedef uint8_t Bytes __attribute__((vector_size(16)));
inline Bytes bytes_at(const uint8_t* from) {
  Bytes v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Eight floats.
#ifdef JUSTRIGHT_AVX2
using V8 = __m256;
inline V8 zero() { return _mm256_setzero_ps(); }
inline V8 all(float value) { return _mm256_set1_ps(value); }
inline V8 load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, V8 value) { _mm256_storeu_ps(to, value); }
inline V8 fma(V8 a, V8 b, V8 c) { return _mm256_fmadd_ps(a, b, c); }
inline V8 mul(V8 a, V8 b) { return _mm256_mul_ps(a, b); }
inline V8 widen(Bytes from, int half) {
  const auto bytes = reinterpret_cast<__m128i>(from);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half ? _mm_srli_si128(bytes, 8) : bytes));
}
inline float half(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return _cvtsh_ss(bits);
}
#else
struct V8 {
  float lane[8];
};
inline V8 zero() { return {}; }
inline V8 all(float value) {
  V8 v;
  for (float& lane : v.lane) lane = value;
  return v;
}
inline V8 load(const float* from) {
  V8 v;
  std::memcpy(v.lane, from, sizeof v.lane);
  return v;
}
inline void store(float* to, V8 value) { std::memcpy(to, value.lane, sizeof value.lane); }
inline V8 fma(V8 a, V8 b, V8 c) {
  for (int i = 0; i < 8; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}
inline V8 mul(V8 a, V8 b) {
  for (int i = 0; i < 8; ++i) a.lane[i] *= b.lane[i];
  return a;
}
inline V8 widen(Bytes from, int half) {
  V8 v;
  for (int i = 0; i < 8; ++i) v.lane[i] = static_cast<int8_t>(from[8 * half + i]);
  return v;
}
inline float half(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}
#endif

// One group of 32 weights: w[i] = q[i] * scale[i / 16] + shift, with q signed. The product is exact: q has at most 8 bits
// and a scale at most 17, so a fused multiply-add rounds as the separate steps of the reference do.
struct Group {
  Bytes q[2];
  float scale[2];
  float shift;
};

inline void one_scale(Group& group, float scale, float shift = 0.0f) {
  group.scale[0] = group.scale[1] = scale;
  group.shift = shift;
}

// The lower four bits of 16 bytes, then the upper four.
inline void nibbles(const uint8_t* from, Group& out) {
  const Bytes both = bytes_at(from);
  out.q[0] = both & 15;
  out.q[1] = both >> 4;
}

// Bit i of four bytes becomes bit 4 of value i.
inline void fifth_bits(const uint8_t* from, Group& out) {
  uint8_t bits[GROUP];
  for (int i = 0; i < GROUP; ++i) bits[i] = static_cast<uint8_t>((from[i / 8] >> i % 8 & 1) << 4);
  out.q[0] |= bytes_at(bits);
  out.q[1] |= bytes_at(bits + 16);
}

// A format: bytes and groups of a block, whether values have a shift, and how a group is unpacked.
struct Q8_0 {
  static constexpr int64_t bytes = 34, groups = 1;
  static constexpr bool shifted = false, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    out.q[0] = bytes_at(block + 2);
    out.q[1] = bytes_at(block + 18);
    one_scale(out, half(block));
  }
};

struct Q4_0 {
  static constexpr int64_t bytes = 18, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 2, out);
    one_scale(out, half(block), -8.0f * half(block));
  }
};

struct Q4_1 {
  static constexpr int64_t bytes = 20, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 4, out);
    one_scale(out, half(block), half(block + 2));
  }
};

struct Q5_0 {
  static constexpr int64_t bytes = 22, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 6, out);
    fifth_bits(block + 2, out);
    one_scale(out, half(block), -16.0f * half(block));
  }
};

struct Q5_1 {
  static constexpr int64_t bytes = 24, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 8, out);
    fifth_bits(block + 4, out);
    one_scale(out, half(block), half(block + 2));
  }
};

// Scale and minimum of a group in Q4_K and Q5_K: six bits each, packed into twelve bytes.
inline void six_bits(const uint8_t* from, int64_t index, uint8_t& scale, uint8_t& least) {
  if (index < 4) {
    scale = from[index] & 63;
    least = from[index + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((from[index + 4] & 15) | (from[index - 4] >> 6) << 4);
    least = static_cast<uint8_t>((from[index + 4] >> 4) | (from[index] >> 6) << 4);
  }
}

inline void k_scale(const uint8_t* block, int64_t index, Group& out) {
  uint8_t scale, least;
  six_bits(block + 4, index, scale, least);
  one_scale(out, half(block) * scale, -(half(block + 2) * least));
}

// The lower or the upper four bits of 32 bytes.
inline void half_bytes(const uint8_t* from, bool upper, Group& out) {
  for (int side = 0; side < 2; ++side) {
    const Bytes both = bytes_at(from + 16 * side);
    out.q[side] = upper ? both >> 4 : both & 15;
  }
}

struct Q4_K {
  static constexpr int64_t bytes = 144, groups = 8;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t index, Group& out) {
    half_bytes(block + 16 + 32 * (index / 2), index % 2, out);
    k_scale(block, index, out);
  }
};

struct Q5_K {
  static constexpr int64_t bytes = 176, groups = 8;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t index, Group& out) {
    half_bytes(block + 48 + 32 * (index / 2), index % 2, out);
    const auto bit = static_cast<uint8_t>(index);
    for (int i = 0; i < 2; ++i) out.q[i] |= (bytes_at(block + 16 + 16 * i) >> bit & 1) << 4;
    k_scale(block, index, out);
  }
};

struct Q6_K {
  static constexpr int64_t bytes = 210, groups = 8;
  static constexpr bool shifted = false, halves = true;
  static void unpack(const uint8_t* block, int64_t index, Group& out) {
    const int64_t side = index / 4, part = index % 4;  // 128 values a side; four groups share its bytes
    half_bytes(block + 64 * side + 32 * (part % 2), part / 2, out);
    const auto bit = static_cast<uint8_t>(2 * part);
    for (int i = 0; i < 2; ++i) {
      const Bytes upper = bytes_at(block + 128 + 32 * side + 16 * i) >> bit & 3;
      out.q[i] = (out.q[i] | upper << 4) - 32;
    }
    const auto* scales = reinterpret_cast<const int8_t*>(block + 192 + 8 * side + 2 * part);
    const float scale = half(block + 208);
    out.scale[0] = scale * scales[0];
    out.scale[1] = scale * scales[1];
    out.shift = 0.0f;
  }
};

template <class Format>
inline V8 values(const Group& group, int part) {
  const V8 scale = all(group.scale[Format::halves ? part / 2 : 0]);
  const V8 q = widen(group.q[part / 2], part % 2);
  return Format::shifted ? fma(q, scale, all(group.shift)) : mul(q, scale);
}

inline float sum(V8 value) {
  float lanes[8];
  store(lanes, value);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

struct Product {
  const float* x;  // [rows, columns]
  const uint8_t* weight;  // [outputs, row_bytes]
  const float* bias;  // [outputs] or null
  float* y;  // [rows, outputs]
  int64_t columns, outputs, row_bytes;
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

// Outputs 0 to Outputs of `source` for Rows rows of x; y is that of the first.
template <int Outputs, int Rows, class Source>
void tile(const Product& p, Source source, int64_t first, const float* x, const float* bias, float* y) {
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
    for (int r = 0; r < Rows; ++r) y[r * p.outputs + first + o] = sum(total[o][r]) + (bias ? bias[first + o] : 0.0f);
  }
}

// `many` outputs, at most TILE, for Rows rows: as many at once as there are accumulators.
template <int Rows, class Source>
void column(const Product& p, Source source, int64_t many, const float* x, const float* bias, float* y) {
  constexpr int together = TILE / Rows;
  int64_t o = 0;
  for (; o + together <= many; o += together) tile<together, Rows>(p, source, o, x, bias, y);
  for (; o < many; ++o) tile<1, Rows>(p, source, o, x, bias, y);
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
            for (; bottom - row >= count(); row += count()) {
              column<count()>(
                  p, source, many, p.x + row * p.columns, p.bias ? p.bias + output : nullptr,
                  p.y + row * p.outputs + output);
            }
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
void expand(const Product& p) {  // y [outputs, columns]
  at::parallel_for(0, p.outputs, 16, [&](int64_t begin, int64_t end) {
    unpack_rows<Format>(
        p.weight + begin * p.row_bytes, p.row_bytes, p.columns, end - begin, p.y + begin * p.columns);
  });
}

// Calls `work` with the format of a GGUF type number.
template <class Work>
void with_format(int64_t type, Work&& work) {
  switch (type) {
    case 2: return work(Q4_0{});
    case 3: return work(Q4_1{});
    case 6: return work(Q5_0{});
    case 7: return work(Q5_1{});
    case 8: return work(Q8_0{});
    case 12: return work(Q4_K{});
    case 13: return work(Q5_K{});
    case 14: return work(Q6_K{});
    default: TORCH_CHECK(false, "no kernel for GGUF type ", type);
  }
}

void check(const at::Tensor& weight, int64_t columns, int64_t groups, int64_t bytes) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && weight.scalar_type() == at::kByte,
              "weight must be contiguous uint8 [outputs, row_bytes]");
  TORCH_CHECK(columns > 0 && columns % (GROUP * groups) == 0 && weight.size(1) == columns / (GROUP * groups) * bytes,
              "a row of ", columns, " columns does not take ", weight.size(1), " bytes in this format");
}

at::Tensor linear(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t columns, int64_t type) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == columns && x.scalar_type() == at::kFloat, "x must be float32 [rows, ", columns, "]");
  TORCH_CHECK(!bias || (bias->is_contiguous() && bias->scalar_type() == at::kFloat && bias->numel() == weight.size(0)),
              "bias must be contiguous float32 [outputs]");
  const at::Tensor input = x.contiguous();
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  with_format(type, [&](auto format) {
    using Format = decltype(format);
    check(weight, columns, Format::groups, Format::bytes);
    multiply<Format>({input.const_data_ptr<float>(), weight.const_data_ptr<uint8_t>(),
                      bias ? bias->const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>(), columns,
                      weight.size(0), weight.size(1)},
                     x.size(0));
  });
  return y;
}

at::Tensor dequantise(const at::Tensor& weight, int64_t columns, int64_t type) {
  at::Tensor y = at::empty({weight.size(0), columns}, weight.options().dtype(at::kFloat));
  with_format(type, [&](auto format) {
    using Format = decltype(format);
    check(weight, columns, Format::groups, Format::bytes);
    expand<Format>({nullptr, weight.const_data_ptr<uint8_t>(), nullptr, y.mutable_data_ptr<float>(), columns,
                    weight.size(0), weight.size(1)});
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(justright, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias, int columns, int type) -> Tensor");
  library.def("dequantise(Tensor weight, int columns, int type) -> Tensor");
}

TORCH_LIBRARY_IMPL(justright, CPU, library) {
  library.impl("linear", &linear);
  library.impl("dequantise", &dequantise);
}
