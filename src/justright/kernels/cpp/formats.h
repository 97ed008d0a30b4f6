// GGUF's block formats: how 32 weights lie in bytes, and how they become floats.
//
// Block layouts: ggml-common.h and ggml-quants.c of github.com/ggml-org/ggml.

#pragma once

#include <c10/util/Exception.h>

#include "vector.h"

namespace justright {

constexpr int64_t GROUP = 32;

// One group of 32 weights: w[i] = q[i] * scale[i / 16] + shift, with q signed. The product is exact: q has at most 8 bits
// and a scale at most 17, so a fused multiply-add rounds as the separate steps of the reference do.
struct Group {
  Words q[2];
  float scale[2];
  float shift;
};

inline void one_scale(Group& group, float scale, float shift = 0.0f) {
  group.scale[0] = group.scale[1] = scale;
  group.shift = shift;
}

// The lower four bits of 16 bytes, then the upper four.
inline void nibbles(const uint8_t* from, Group& out) {
  const Words bytes = unsigned_words(from);
  out.q[0] = bytes & 15;
  out.q[1] = bytes >> 4;
}

// Bit i of four bytes is bit 4 of value i.
inline void fifth_bits(const uint8_t* from, Group& out) {
  const Words bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768};
  for (int i = 0; i < 2; ++i) {
    const Words all = Words{} + static_cast<int16_t>(from[2 * i] | from[2 * i + 1] << 8);
    out.q[i] |= ((all & bit) == bit) & 16;
  }
}

// A format: bytes and groups of a block, whether values have a shift, whether each half of a group has its own scale,
// and how a group is unpacked.
struct Q8_0 {
  static constexpr int64_t bytes = 34, groups = 1;
  static constexpr bool shifted = false, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    for (int i = 0; i < 2; ++i) out.q[i] = signed_words(block + 2 + 16 * i);
    one_scale(out, half(block));
  }
};

struct Q4_0 {
  static constexpr int64_t bytes = 18, groups = 1;
  static constexpr bool shifted = false, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 2, out);
    for (Words& q : out.q) q -= 8;
    one_scale(out, half(block));
  }
};

struct Q4_1 {
  static constexpr int64_t bytes = 20, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 4, out);
    two_halves(block, out.scale[0], out.shift);
    out.scale[1] = out.scale[0];
  }
};

struct Q5_0 {
  static constexpr int64_t bytes = 22, groups = 1;
  static constexpr bool shifted = false, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 6, out);
    fifth_bits(block + 2, out);
    for (Words& q : out.q) q -= 16;
    one_scale(out, half(block));
  }
};

struct Q5_1 {
  static constexpr int64_t bytes = 24, groups = 1;
  static constexpr bool shifted = true, halves = false;
  static void unpack(const uint8_t* block, int64_t, Group& out) {
    nibbles(block + 8, out);
    fifth_bits(block + 4, out);
    two_halves(block, out.scale[0], out.shift);
    out.scale[1] = out.scale[0];
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
  float of_scales, of_least;
  six_bits(block + 4, index, scale, least);
  two_halves(block, of_scales, of_least);
  one_scale(out, of_scales * scale, -(of_least * least));
}

// The lower or the upper four bits of 32 bytes.
inline void half_bytes(const uint8_t* from, bool upper, Group& out) {
  for (int i = 0; i < 2; ++i) {
    const Words bytes = unsigned_words(from + 16 * i);
    out.q[i] = upper ? bytes >> 4 : bytes & 15;
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
    for (int i = 0; i < 2; ++i) out.q[i] |= (unsigned_words(block + 16 + 16 * i) >> static_cast<int16_t>(index) & 1) << 4;
    k_scale(block, index, out);
  }
};

struct Q6_K {
  static constexpr int64_t bytes = 210, groups = 8;
  static constexpr bool shifted = false, halves = true;
  static void unpack(const uint8_t* block, int64_t index, Group& out) {
    const int64_t side = index / 4, part = index % 4;  // 128 values a side; four groups share its bytes
    half_bytes(block + 64 * side + 32 * (part % 2), part / 2, out);
    const auto bit = static_cast<int16_t>(2 * part);
    for (int i = 0; i < 2; ++i) {
      const Words upper = unsigned_words(block + 128 + 32 * side + 16 * i) >> bit & 3;
      out.q[i] = (out.q[i] | upper << 4) - 32;
    }
    const auto* scales = reinterpret_cast<const int8_t*>(block + 192 + 8 * side + 2 * part);
    const float scale = half(block + 208);
    out.scale[0] = scale * scales[0];
    out.scale[1] = scale * scales[1];
    out.shift = 0.0f;
  }
};

// The 32 values of a group.
template <class Format>
inline void values(const Group& group, float* to) {
  for (int part = 0; part < 4; ++part) {
    const V8 q = floats(group.q[part / 2], part % 2), scale = all(group.scale[part / 2]);
    store(to + 8 * part, Format::shifted ? fma(q, scale, all(group.shift)) : mul(q, scale));
  }
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

}  // namespace justright
