// Attention of few queries over the KV cache, read in place: rotary embedding, writing the new keys and values, and
// attention, for all sequences of a step in one call.
//
// A query sees the cached keys of its sequence and, of the step's own tokens, its ancestors in the draft tree. They have
// logical indices 0, 1, 2, ...: the cached ones, then the ancestors by depth. A query's keys are cut into chunks of CHUNK
// logical indices, chunks are computed in parallel (arXiv:2311.01282, 2.2), and merged in order.
//
// Bit for bit: the operations of one query and their order depend on its logical indices alone. A token has the same
// result alone, in a chain, in a tree, and beside other sequences, with any number of threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "vector.h"

namespace justright {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr int64_t CHUNK = 256;
constexpr int64_t BLOCK = 32;  // keys that stay in the first-level cache
constexpr int64_t QUERIES = 8;  // that read them there
constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

struct Shape {
  int64_t heads, kv_heads, size;  // size: of a head, a multiple of 8
  int64_t groups() const { return heads / kv_heads; }
  int64_t width() const { return (heads + 2 * kv_heads) * size; }
};

// A sequence: its rows in the step, its cached tokens, and its part of the partial results.
template <class T>
struct Run {
  int64_t row, count, past, chunks, partial;
  T *keys, *values;  // [kv_heads, capacity, size]
  int64_t capacity;
};

// What each row of the step sees: keys from logical index `first` on, and `counts` of the run's own rows, `paths`.
struct Visible {
  const int64_t *first, *counts, *paths;
  int64_t longest;
};

// One chunk of one query: the largest score, the sum of exponentials, and the weighted values.
struct Partial {
  float largest, total;
};

// RMSNorm (if `norm`) and rotary embedding of one head: x cos + rotate_half(x) sin.
template <class T>
void rotate(const float* x, const float* norm, float eps, const float* cos, const float* sin, int64_t size, T* to) {
  const float scale = norm ? inverse_rms(x, size, eps) : 1.0f;
  const auto at = [&](int64_t i) {
    return norm ? mul(mul(load(x + i), all(scale)), load(norm + i)) : load(x + i);
  };
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += 8) {
    const V8 low = at(i), high = at(i + half);
    store(to + i, fma(mul(high, all(-1.0f)), load(sin + i), mul(low, load(cos + i))));
    store(to + i + half, fma(low, load(sin + i + half), mul(high, load(cos + i + half))));
  }
}

template <class T>
float dot(const float* query, const T* key, int64_t size) {
  V8 total = zero();
  for (int64_t i = 0; i < size; i += 8) total = fma(load(query + i), load(key + i), total);
  return sum(total);
}

template <class T>
V8 dots(const float* query, const T* keys, int64_t size) {  // of eight keys
  V8 total[8];
  for (V8& one : total) one = zero();
  for (int64_t i = 0; i < size; i += 8) {
    const V8 q = load(query + i);
    UNROLL for (int key = 0; key < 8; ++key) total[key] = fma(q, load(keys + key * size + i), total[key]);
  }
  return sums(total);
}

// One query in one chunk. Its keys have the logical indices `begin` to `end`: below `past` they are cached, and from
// there on they are the rows path[0], path[1], ... of the step, which lie after the cached ones.
template <class T>
struct Query {
  int64_t begin, end, past;
  const int64_t* path;
  const float* query;
  float* out;
  Partial* partial;
  int64_t cached() const { return std::min(past, end); }
  const T* own(const T* base, int64_t index, int64_t size) const { return base + (past + path[index - past]) * size; }
};

// Adds weighted values to `Parts` vectors of `out`, in the order of the keys.
template <int Parts, class T>
void weigh(const float* weights, const T* values, int64_t count, int64_t stride, float* out) {
  V8 total[Parts];
  for (int part = 0; part < Parts; ++part) total[part] = load(out + 8 * part);
  for (int64_t i = 0; i < count; ++i) {
    const V8 weight = all(weights[i]);
    UNROLL for (int part = 0; part < Parts; ++part) {
      total[part] = fma(weight, load(values + i * stride + 8 * part), total[part]);
    }
  }
  for (int part = 0; part < Parts; ++part) store(out + 8 * part, total[part]);
}

template <class T>
void weigh(const float* weights, const T* values, int64_t count, int64_t size, float* out) {
  int64_t part = 0;
  for (; part + 64 <= size; part += 64) weigh<8>(weights, values + part, count, size, out + part);
  for (; part + 32 <= size; part += 32) weigh<4>(weights, values + part, count, size, out + part);
  for (; part < size; part += 8) weigh<1>(weights, values + part, count, size, out + part);
}

// Scores become weights: exponentials relative to the largest. `count` is a multiple of 8.
inline Partial softmax(float* scores, int64_t count, float scale) {
  V8 most = all(HIDDEN), total = zero();
  for (int64_t i = 0; i < count; i += 8) {
    const V8 scaled = mul(load(scores + i), all(scale));
    store(scores + i, scaled);
    most = larger(most, scaled);
  }
  float lanes[8];
  store(lanes, most);
  const float largest = *std::max_element(lanes, lanes + 8);
  for (int64_t i = 0; i < count; i += 8) {
    const V8 weight = exp(add(load(scores + i), all(-largest)));
    store(scores + i, weight);
    total = add(total, weight);
  }
  return {largest, sum(total)};
}

// Some queries in the chunk that begins at index `chunk`. Blocks of keys stay in the first-level cache for all of them.
template <class T>
void attend_chunk(const Query<T>* queries, int64_t count, int64_t chunk, const T* keys, const T* values, int64_t size,
                  float scale) {
  alignas(32) float scores[QUERIES][CHUNK];
  std::fill(&scores[0][0], &scores[0][0] + count * CHUNK, HIDDEN);
  const auto blocks = [&](auto&& work) {  // of cached keys that a query sees
    for (int64_t block = chunk; block < chunk + CHUNK; block += BLOCK) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t from = std::max(block, queries[i].begin), to = std::min(block + BLOCK, queries[i].cached());
        if (from < to) work(queries[i], scores[i] - chunk, from, to);
      }
    }
  };
  const auto own = [&](auto&& work) {
    for (int64_t i = 0; i < count; ++i) {
      const Query<T>& one = queries[i];
      for (int64_t index = std::max(one.begin, one.past); index < one.end; ++index) work(one, scores[i] - chunk, index);
    }
  };
  blocks([&](const Query<T>& one, float* score, int64_t index, int64_t to) {
    for (; index + 8 <= to; index += 8) store(score + index, dots(one.query, keys + index * size, size));
    for (; index < to; ++index) score[index] = dot(one.query, keys + index * size, size);
  });
  own([&](const Query<T>& one, float* score, int64_t index) {
    score[index] = dot(one.query, one.own(keys, index, size), size);
  });
  for (int64_t i = 0; i < count; ++i) {
    *queries[i].partial = softmax(scores[i], (queries[i].end - chunk + 7) / 8 * 8, scale);
    std::fill(queries[i].out, queries[i].out + size, 0.0f);
  }
  blocks([&](const Query<T>& one, const float* weights, int64_t from, int64_t to) {
    weigh(weights + from, values + from * size, to - from, size, one.out);
  });
  own([&](const Query<T>& one, const float* weights, int64_t index) {
    weigh(weights + index, one.own(values, index, size), 1, size, one.out);
  });
}

// Merges the chunks of one query, in order.
void merge(const Partial* partial, const float* outs, int64_t chunks, int64_t stride, int64_t size, float* to) {
  float largest = HIDDEN, total = 0.0f;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) largest = std::max(largest, partial[chunk * stride].largest);
  std::fill(to, to + size, 0.0f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Partial& one = partial[chunk * stride];
    if (one.largest == HIDDEN) continue;  // the window hides all of it
    const float weight = std::exp(one.largest - largest);
    total = std::fma(weight, one.total, total);
    const float* out = outs + chunk * stride * size;
    for (int64_t i = 0; i < size; i += 8) store(to + i, fma(all(weight), load(out + i), load(to + i)));
  }
  for (int64_t i = 0; i < size; i += 8) store(to + i, divide(load(to + i), all(total)));
}

template <class T>
struct Step {
  Shape shape;
  std::vector<Run<T>> runs;
  Visible visible;
  float scale;
  std::vector<int64_t> run_of;  // of each row

  // Rotates the queries into `queries` [rows, heads, size], and writes keys and values into the cache.
  void rotate_all(const float* qkv, const float* cos, const float* sin, const float* q_norm, const float* k_norm,
                  float eps, float* queries) const {
    const int64_t size = shape.size;
    at::parallel_for(0, static_cast<int64_t>(run_of.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float *x = qkv + row * shape.width(), *c = cos + row * size, *s = sin + row * size;
        for (int64_t head = 0; head < shape.heads; ++head, x += size) {
          rotate(x, q_norm, eps, c, s, size, queries + (row * shape.heads + head) * size);
        }
        const Run<T>& run = runs[run_of[row]];
        const int64_t place = run.past + row - run.row;
        for (int64_t head = 0; head < shape.kv_heads; ++head, x += size) {
          rotate(x, k_norm, eps, c, s, size, run.keys + (head * run.capacity + place) * size);
        }
        for (int64_t head = 0; head < shape.kv_heads; ++head, x += size) {
          T* to = run.values + (head * run.capacity + place) * size;
          for (int64_t i = 0; i < size; i += 8) store(to + i, load(x + i));
        }
      }
    });
  }

  // All queries of one key head against one chunk. Partial results lie as [run][chunk][row][head].
  void attend(const Run<T>& run, int64_t kv_head, int64_t chunk, const float* queries, Partial* partial, float* outs) const {
    const int64_t size = shape.size, begin = chunk * CHUNK, groups = shape.groups(), offset = kv_head * run.capacity * size;
    Query<T> some[QUERIES];
    int64_t count = 0;
    const auto flush = [&] {
      attend_chunk(some, count, begin, run.keys + offset, run.values + offset, size, scale);
      count = 0;
    };
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t row = run.row + i;
      const int64_t from = std::max(begin, visible.first[row]);
      const int64_t to = std::min(begin + CHUNK, run.past + visible.counts[row]);
      for (int64_t head = kv_head * groups; head < (kv_head + 1) * groups; ++head) {
        const int64_t place = run.partial + (chunk * run.count + i) * shape.heads + head;
        if (from >= to) {
          partial[place] = {HIDDEN, 0.0f};
          continue;
        }
        some[count++] = {from, to, run.past, visible.paths + row * visible.longest,
                         queries + (row * shape.heads + head) * size, outs + place * size, partial + place};
        if (count == QUERIES) flush();
      }
    }
    flush();
  }

  void run(const float* queries, float* out) const {
    std::vector<int64_t> first{0};  // unit of work of each run
    int64_t partials = 0;
    for (const Run<T>& one : runs) {
      first.push_back(first.back() + one.chunks * shape.kv_heads);
      partials += one.chunks * one.count * shape.heads;
    }
    std::vector<Partial> partial(partials);
    std::vector<float> outs(partials * shape.size);
    at::parallel_for(0, first.back(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const auto index = std::upper_bound(first.begin(), first.end(), unit) - first.begin() - 1;
        const int64_t own = unit - first[index];
        attend(runs[index], own % shape.kv_heads, own / shape.kv_heads, queries, partial.data(), outs.data());
      }
    });
    at::parallel_for(0, static_cast<int64_t>(run_of.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Run<T>& one = runs[run_of[row]];
        for (int64_t head = 0; head < shape.heads; ++head) {
          const int64_t from = one.partial + (row - one.row) * shape.heads + head;
          merge(partial.data() + from, outs.data() + from * shape.size, one.chunks, one.count * shape.heads, shape.size,
                out + (row * shape.heads + head) * shape.size);
        }
      }
    });
  }
};

const float* floats(const OptionalTensor& x, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(!x || (x->is_contiguous() && x->scalar_type() == at::kFloat && x->sizes() == shape), name,
              " must be contiguous float32 ", shape);
  return x ? x->const_data_ptr<float>() : nullptr;
}

const int64_t* integers(const at::Tensor& x, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kLong && x.sizes() == shape, name,
              " must be contiguous int64 ", shape);
  return x.const_data_ptr<int64_t>();
}

template <class T>
at::Tensor attend_as(
    const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, const OptionalTensor& q_norm,
    const OptionalTensor& k_norm, float eps, at::TensorList keys, at::TensorList values, const at::Tensor& runs,
    const at::Tensor& first, const at::Tensor& counts, const at::Tensor& paths, float scale) {
  const int64_t rows = qkv.size(0), kv_heads = keys[0].size(0), size = keys[0].size(2), sequences = runs.size(0);
  TORCH_CHECK(size % 16 == 0, "the head size must be a multiple of 16, and it is ", size);
  const Shape shape{qkv.size(1) / size - 2 * kv_heads, kv_heads, size};
  TORCH_CHECK(shape.heads > 0 && shape.heads % kv_heads == 0 && shape.width() == qkv.size(1),
              "qkv has ", qkv.size(1), " columns, which ", kv_heads, " key heads of ", size, " do not divide");
  const int64_t* run = integers(runs, {sequences, 2}, "runs");
  TORCH_CHECK(static_cast<int64_t>(keys.size()) == sequences && static_cast<int64_t>(values.size()) == sequences,
              "every run needs its keys and values");
  const Visible visible{integers(first, {rows}, "first"), integers(counts, {rows}, "counts"),
                        integers(paths, {rows, paths.size(-1)}, "paths"), paths.size(-1)};
  Step<T> step{shape, {}, visible, scale, {}};
  int64_t row = 0, partial = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t count = run[2 * i], past = run[2 * i + 1], capacity = keys[i].size(1);
    for (const at::Tensor& store : {keys[i], values[i]}) {
      TORCH_CHECK(store.is_contiguous() && store.sizes() == at::IntArrayRef({kv_heads, capacity, size}) &&
                      store.scalar_type() == c10::CppTypeToScalarType<T>::value,
                  "keys and values must be contiguous [kv_heads, capacity, size] of one dtype");
    }
    TORCH_CHECK(count > 0 && past >= 0 && past + count <= capacity && row + count <= rows, "run ", i, " does not fit");
    int64_t longest = 0;
    for (int64_t r = row; r < row + count; ++r) {
      TORCH_CHECK(visible.counts[r] > 0 && visible.counts[r] <= std::min(count, visible.longest) &&
                      visible.first[r] >= 0 && visible.first[r] < past + visible.counts[r],
                  "row ", r, " sees no key");
      for (int64_t k = 0; k < visible.counts[r]; ++k) {
        const int64_t other = visible.paths[r * visible.longest + k];
        TORCH_CHECK(other >= 0 && other < count, "row ", r, " sees a row of another run");
      }
      longest = std::max(longest, visible.counts[r]);
      step.run_of.push_back(i);
    }
    const int64_t chunks = (past + longest + CHUNK - 1) / CHUNK;
    step.runs.push_back({row, count, past, chunks, partial, keys[i].mutable_data_ptr<T>(),
                         values[i].mutable_data_ptr<T>(), capacity});
    row += count;
    partial += chunks * count * shape.heads;
  }
  TORCH_CHECK(row == rows, "the runs have ", row, " rows, and qkv has ", rows);
  at::Tensor queries = at::empty({rows, shape.heads * size}, qkv.options());
  step.rotate_all(floats(qkv, {rows, shape.width()}, "qkv"), floats(cos, {rows, size}, "cos"),
                  floats(sin, {rows, size}, "sin"), floats(q_norm, {size}, "q_norm"), floats(k_norm, {size}, "k_norm"),
                  eps, queries.mutable_data_ptr<float>());
  at::Tensor out = at::empty({rows, shape.heads * size}, qkv.options());
  step.run(queries.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

at::Tensor attend(
    const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, const OptionalTensor& q_norm,
    const OptionalTensor& k_norm, double eps, at::TensorList keys, at::TensorList values, const at::Tensor& runs,
    const at::Tensor& first, const at::Tensor& counts, const at::Tensor& paths, double scale) {
  TORCH_CHECK(qkv.dim() == 2 && runs.dim() == 2 && paths.dim() == 2 && !keys.empty() && keys[0].dim() == 3,
              "qkv must be [rows, columns], runs [sequences, 2], paths [rows, longest], and keys [kv_heads, capacity, size]");
  const auto with = [&](auto kind) {
    return attend_as<decltype(kind)>(qkv, cos, sin, q_norm, k_norm, static_cast<float>(eps), keys, values, runs, first,
                                     counts, paths, static_cast<float>(scale));
  };
  return keys[0].scalar_type() == at::kHalf ? with(at::Half()) : with(float());
}

}  // namespace

TORCH_LIBRARY_IMPL(justright, CPU, library) { library.impl("attend", &attend); }

}  // namespace justright
