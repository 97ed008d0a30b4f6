// Eight floats at a time: AVX2 where the processor has it, else plain loops that the compiler vectorises.

#pragma once

#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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

namespace justright {

// Sixteen words, with the operators of their elements.
typedef int16_t Words __attribute__((vector_size(32)));
#ifdef JUSTRIGHT_AVX2
inline Words unsigned_words(const uint8_t* from) {  // from sixteen bytes
  return reinterpret_cast<Words>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline Words signed_words(const uint8_t* from) {
  return reinterpret_cast<Words>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
#else
inline Words unsigned_words(const uint8_t* from) {
  Words v;
  for (int i = 0; i < 16; ++i) v[i] = from[i];
  return v;
}
inline Words signed_words(const uint8_t* from) {
  Words v;
  for (int i = 0; i < 16; ++i) v[i] = static_cast<int8_t>(from[i]);
  return v;
}
#endif

// Eight floats.
#ifdef JUSTRIGHT_AVX2
using V8 = __m256;
inline V8 zero() { return _mm256_setzero_ps(); }
inline V8 all(float value) { return _mm256_set1_ps(value); }
inline V8 load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, V8 value) { _mm256_storeu_ps(to, value); }
inline V8 fma(V8 a, V8 b, V8 c) { return _mm256_fmadd_ps(a, b, c); }
inline V8 mul(V8 a, V8 b) { return _mm256_mul_ps(a, b); }
inline V8 add(V8 a, V8 b) { return _mm256_add_ps(a, b); }
inline V8 divide(V8 a, V8 b) { return _mm256_div_ps(a, b); }
inline V8 larger(V8 a, V8 b) { return _mm256_max_ps(a, b); }
inline V8 load(const c10::Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline void store(c10::Half* to, V8 value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
inline V8 first_lane(float value) { return _mm256_zextps128_ps256(_mm_set_ss(value)); }
inline V8 floats(Words words, int half) {
  const auto all = reinterpret_cast<__m256i>(words);
  const __m128i eight = half ? _mm256_extracti128_si256(all, 1) : _mm256_castsi256_si128(all);
  return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight));
}
inline __m256i pairs(Words a, const int16_t* b) {  // a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]
  return _mm256_madd_epi16(reinterpret_cast<__m256i>(a), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
}
inline V8 products(Words a, const int16_t* b) { return _mm256_cvtepi32_ps(pairs(a, b)); }
inline V8 products(const Words (&a)[2], const int16_t* b) {
  return _mm256_cvtepi32_ps(_mm256_add_epi32(pairs(a[0], b), pairs(a[1], b + 16)));
}
inline float half(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return _cvtsh_ss(bits);
}
inline void two_halves(const uint8_t* from, float& first, float& second) {
  int bits;
  std::memcpy(&bits, from, 4);
  const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
  first = _mm_cvtss_f32(both);
  second = _mm_cvtss_f32(_mm_movehdup_ps(both));
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
inline V8 add(V8 a, V8 b) {
  for (int i = 0; i < 8; ++i) a.lane[i] += b.lane[i];
  return a;
}
inline V8 divide(V8 a, V8 b) {
  for (int i = 0; i < 8; ++i) a.lane[i] /= b.lane[i];
  return a;
}
inline V8 larger(V8 a, V8 b) {
  for (int i = 0; i < 8; ++i) a.lane[i] = std::max(a.lane[i], b.lane[i]);
  return a;
}
inline V8 load(const c10::Half* from) {
  V8 v;
  for (int i = 0; i < 8; ++i) v.lane[i] = from[i];
  return v;
}
inline void store(c10::Half* to, V8 value) {
  for (int i = 0; i < 8; ++i) to[i] = value.lane[i];
}
inline V8 first_lane(float value) { return {{value}}; }
inline V8 floats(Words words, int half) {
  V8 v;
  for (int i = 0; i < 8; ++i) v.lane[i] = words[8 * half + i];
  return v;
}
inline V8 products(Words a, const int16_t* b) {
  V8 v;
  for (int i = 0; i < 8; ++i) v.lane[i] = static_cast<float>(a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
  return v;
}
inline V8 products(const Words (&a)[2], const int16_t* b) {  // sums of integers below 2^24, so exact
  return add(products(a[0], b), products(a[1], b + 16));
}
inline float half(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}
inline void two_halves(const uint8_t* from, float& first, float& second) {
  first = half(from);
  second = half(from + 2);
}
#endif

inline float sum(V8 value) {
  float lanes[8];
  store(lanes, value);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// The sum of each of eight vectors, with the additions of `sum` in the same order.
inline V8 sums(const V8 (&v)[8]) {
#ifdef JUSTRIGHT_AVX2
  V8 four[4];
  UNROLL for (int i = 0; i < 4; ++i) {
    four[i] = add(_mm256_permute2f128_ps(v[i], v[i + 4], 0x20), _mm256_permute2f128_ps(v[i], v[i + 4], 0x31));
  }
  return _mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
#else
  V8 out;
  for (int i = 0; i < 8; ++i) out.lane[i] = sum(v[i]);
  return out;
#endif
}

// e to the power of each lane, relative error 2e-7; exactly 0 below -87, where the result would not be normal.
inline V8 exp(V8 x) {
#ifdef JUSTRIGHT_AVX2
  const V8 normal = _mm256_cmp_ps(x, all(-87.0f), _CMP_GE_OQ);
  x = _mm256_min_ps(larger(x, all(-87.0f)), all(88.0f));
  const V8 n = _mm256_round_ps(mul(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V8 r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), x));  // x - n ln 2
  V8 p = all(1.9875691500e-4f);  // Cephes' polynomial
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = fma(p, r, all(c));
  }
  p = add(fma(mul(r, r), p, r), all(1.0f));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(mul(p, _mm256_castsi256_ps(power)), normal);
#else
  for (float& lane : x.lane) lane = lane < -87.0f ? 0.0f : std::exp(lane);
  return x;
#endif
}

// The scale of RMSNorm: 1 / sqrt(mean of squares + eps); `size` is a multiple of 8.
inline float inverse_rms(const float* x, int64_t size, float eps) {
  V8 squares = zero();
  for (int64_t i = 0; i < size; i += 8) squares = fma(load(x + i), load(x + i), squares);
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
}

}  // namespace justright
