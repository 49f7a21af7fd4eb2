// The operations of a training step on embedding rows: lookup, dot products of all pairs, updates.
// float32, any sizes; called by embedding_ops.py.
//
// Shapes: B batch, F columns, D embedding dim, R rows of all tables, V vectors (F, or F + 1 with
// the bottom MLP's vector first), U distinct rows of one column in a batch. All arrays are
// contiguous.
//
// Every sum is taken in a fixed order, whatever the number of threads, so the same inputs give the
// same bytes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t PREFETCH_ROWS = 16;  // rows are anywhere in memory: fetched that early
constexpr int64_t GROUP = 8;       // rows that `multiply` computes together, to hide its latency
constexpr int64_t TILE = 4;        // side of a square of pairs that stays in registers
constexpr int64_t ALL_VALID = -1;  // what the exported functions return if every id has a row
constexpr int64_t EMPTY = -1;      // key of a free slot of the hash table

int64_t padded_to(int64_t multiple, int64_t n) { return (n + multiple - 1) / multiple * multiple; }
int64_t padded_to_lanes(int64_t n) { return padded_to(LANES, n); }

// The ids (B, F) of a batch, from 0 in each column: integers of `id_bytes` bytes, 4 or 8.
struct Ids {
  const void* values;
  int64_t id_bytes, F;
  const int64_t* offsets;  // (F): the first row of each column's table
  int64_t R;

  int64_t local(int64_t b, int64_t f) const {
    return id_bytes == 8 ? static_cast<const int64_t*>(values)[b * F + f]
                         : static_cast<const int32_t*>(values)[b * F + f];
  }
  int64_t row(int64_t b, int64_t f) const { return offsets[f] + local(b, f); }
  bool valid(int64_t b, int64_t f) const {
    const int64_t end = f + 1 < F ? offsets[f + 1] : R;
    return static_cast<uint64_t>(local(b, f)) < static_cast<uint64_t>(end - offsets[f]);
  }
};

// Returns the position b * F + f of the first id that is outside its table, or ALL_VALID.
int64_t first_invalid(const Ids& ids, int64_t B) {
  int64_t position = B * ids.F;
#pragma omp parallel for schedule(static) reduction(min : position) if (B * ids.F > 4096)
  for (int64_t b = 0; b < B; b++)
    for (int64_t f = 0; f < ids.F; f++)
      if (!ids.valid(b, f)) position = std::min(position, b * ids.F + f);
  return position == B * ids.F ? ALL_VALID : position;
}

// target (D) += factor * source (D). FIXED_D is D if the compiler knows it, else 0.
template <int64_t FIXED_D>
inline void add(float* target, const float* source, float factor, int64_t D) {
  for (int64_t d = 0; d < (FIXED_D ? FIXED_D : D); d++) target[d] += factor * source[d];
}

template <int64_t FIXED_D>
void sgd(float* weight, const Ids& ids, const float* grad, float lr, int64_t B, int64_t D) {
#pragma omp parallel for schedule(dynamic, 1) if (B * ids.F > 1024)
  for (int64_t f = 0; f < ids.F; f++)  // no two columns share a row
    for (int64_t b = 0; b < B; b++) {
      if (b + PREFETCH_ROWS < B) {
        __builtin_prefetch(weight + ids.row(b + PREFETCH_ROWS, f) * D, 1);
        __builtin_prefetch(grad + ((b + PREFETCH_ROWS) * ids.F + f) * D);
      }
      add<FIXED_D>(weight + ids.row(b, f) * D, grad + (b * ids.F + f) * D, -lr, D);
    }
}

// Sums the gradients of each distinct row of a column. A hash table with open addressing finds the
// sum of a row; `collect` empties it after use.
struct GradientSums {
  std::vector<int64_t> keys;       // of the hash table: a row, or EMPTY
  std::vector<int32_t> positions;  // of the hash table: where the row is in `rows` and `totals`
  std::vector<size_t> used_slots;  // of the hash table
  std::vector<int64_t> rows;       // (U): the distinct rows in order of appearance
  std::vector<float> totals;       // (U, D)

  GradientSums(int64_t B, int64_t D) : rows(B), totals(B * D) {
    size_t num_slots = 64;
    while (num_slots < 2 * static_cast<size_t>(B)) num_slots *= 2;
    keys.assign(num_slots, EMPTY);
    positions.resize(num_slots);
    used_slots.reserve(B);
  }
  size_t hash(int64_t row) const {
    return (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15ull >> 32) & (keys.size() - 1);
  }

  // Fills rows and totals from column f of grad (B, F, D) and returns U.
  template <int64_t FIXED_D>
  int64_t collect(const Ids& ids, int64_t f, const float* grad, int64_t B, int64_t D) {
    int64_t U = 0;
    for (int64_t b = 0; b < B; b++) {
      if (b + PREFETCH_ROWS < B) {
        __builtin_prefetch(grad + ((b + PREFETCH_ROWS) * ids.F + f) * D);
        __builtin_prefetch(&keys[hash(ids.row(b + PREFETCH_ROWS, f))]);
      }
      const int64_t row = ids.row(b, f);
      const float* row_grad = grad + (b * ids.F + f) * D;
      size_t slot = hash(row);
      while (keys[slot] != EMPTY && keys[slot] != row) slot = (slot + 1) & (keys.size() - 1);
      if (keys[slot] == row) {
        add<FIXED_D>(&totals[positions[slot] * D], row_grad, 1, D);
      } else {
        keys[slot] = row;
        positions[slot] = static_cast<int32_t>(U);
        used_slots.push_back(slot);
        rows[U] = row;
        std::memcpy(&totals[U * D], row_grad, D * sizeof(float));
        U++;
      }
    }
    for (size_t slot : used_slots) keys[slot] = EMPTY;
    used_slots.clear();
    return U;
  }
};

template <int64_t FIXED_D>
void rowwise_adagrad(float* weight, float* squares, const Ids& ids, const float* grad, float lr,
                     float eps, int64_t B, int64_t D) {
#pragma omp parallel if (B * ids.F > 1024)
  {
    GradientSums sums(B, D);
#pragma omp for schedule(dynamic, 1)
    for (int64_t f = 0; f < ids.F; f++) {  // no two columns share a row
      const int64_t U = sums.collect<FIXED_D>(ids, f, grad, B, D);
      for (int64_t u = 0; u < U; u++) {
        if (u + PREFETCH_ROWS < U) {
          __builtin_prefetch(weight + sums.rows[u + PREFETCH_ROWS] * D, 1);
          __builtin_prefetch(squares + sums.rows[u + PREFETCH_ROWS], 1);
        }
        const float* total = &sums.totals[u * D];
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t d = 0; d < (FIXED_D ? FIXED_D : D); d++) square += total[d] * total[d];
        float& accumulator = squares[sums.rows[u]];
        accumulator += square / D;
        add<FIXED_D>(weight + sums.rows[u] * D, total, -lr / (std::sqrt(accumulator) + eps), D);
      }
    }
  }
}

// Calls f with the embedding dim as a compile-time constant if it is a usual one, else with 0.
template <typename F>
void with_fixed_dim(int64_t D, F f) {
  switch (D) {
    case 8:
      return f(std::integral_constant<int64_t, 8>());
    case 16:
      return f(std::integral_constant<int64_t, 16>());
    case 32:
      return f(std::integral_constant<int64_t, 32>());
    case 64:
      return f(std::integral_constant<int64_t, 64>());
    case 128:
      return f(std::integral_constant<int64_t, 128>());
    default:
      return f(std::integral_constant<int64_t, 0>());
  }
}

// out (M, K) = the transpose of in (K, M). K and M are multiples of LANES.
void transpose(const float* in, float* out, int64_t K, int64_t M) {
  for (int64_t k = 0; k < K; k += LANES)
    for (int64_t m = 0; m < M; m += LANES) {
      Floats block[LANES];
      for (int64_t r = 0; r < LANES; r++)
        block[r] = *reinterpret_cast<const FloatsInMemory*>(in + (k + r) * M + m);
      transpose_square(block);
      for (int64_t r = 0; r < LANES; r++)
        *reinterpret_cast<FloatsInMemory*>(out + (m + r) * K + k) = block[r];
    }
}

// The first LANES columns of out (GROUP, width) = left (GROUP, K) times right (K, width). A row of
// left has left_width floats.
inline void multiply(const float* left, int64_t left_width, const float* right, float* out,
                     int64_t width, int64_t K) {
  Floats sums[GROUP] = {};
  for (int64_t k = 0; k < K; k++) {
    const Floats row = *reinterpret_cast<const FloatsInMemory*>(right + k * width);
    for (int64_t g = 0; g < GROUP; g++) sums[g] += left[g * left_width + k] * row;
  }
  for (int64_t g = 0; g < GROUP; g++) *reinterpret_cast<FloatsInMemory*>(out + g * width) = sums[g];
}

// sums[i] = the sum over j of pairs(i, j) * vectors[j], for LANES floats of each vector. `pairs` is
// the strict lower triangle, row by row, of a symmetric matrix whose diagonal is zero. Each square
// of TILE x TILE pairs is read once: it contributes to the sums of its rows and to those of its
// columns. A row of vectors and sums has `width` floats.
inline void add_pairs(const float* pairs, const float* vectors, float* sums, int64_t V,
                      int64_t width) {
  for (int64_t i = 0; i < V; i += TILE) {
    Floats row_vectors[TILE], row_sums[TILE] = {};
    const float* row_pairs[TILE];
    for (int64_t r = 0; r < TILE; r++) {
      row_vectors[r] = load(vectors + (i + r) * width, LANES);
      row_pairs[r] = pairs + (i + r) * (i + r - 1) / 2;
    }
    for (int64_t j = 0; j < i; j += TILE)
#pragma GCC unroll 4
      for (int64_t c = 0; c < TILE; c++) {
        const Floats column_vector = load(vectors + (j + c) * width, LANES);
        Floats column_sum = load(sums + (j + c) * width, LANES);
#pragma GCC unroll 4
        for (int64_t r = 0; r < TILE; r++) {
          const float pair = row_pairs[r][j + c];
          row_sums[r] += pair * column_vector;
          column_sum += pair * row_vectors[r];
        }
        store(sums + (j + c) * width, column_sum, LANES);
      }
#pragma GCC unroll 4
    for (int64_t r = 1; r < TILE; r++)
#pragma GCC unroll 4
      for (int64_t c = 0; c < r; c++) {
        const float pair = row_pairs[r][i + c];
        row_sums[r] += pair * row_vectors[c];
        row_sums[c] += pair * row_vectors[r];
      }
    for (int64_t r = 0; r < TILE; r++) store(sums + (i + r) * width, row_sums[r], LANES);
  }
}

// Copies the V vectors of sample b, the bottom MLP's first, to vectors (V, padded_to_lanes(D)).
// What lies around them in `vectors` stays as it is: zeros.
void gather_vectors(const float* bottom, const float* rows, float* vectors, int64_t b, int64_t F,
                    int64_t D) {
  const int64_t padded_D = padded_to_lanes(D);
  if (bottom) {
    std::memcpy(vectors, bottom + b * D, D * sizeof(float));
    vectors += padded_D;
  }
  if (D == padded_D) {
    std::memcpy(vectors, rows + b * F * D, F * D * sizeof(float));
    return;
  }
  for (int64_t f = 0; f < F; f++)
    std::memcpy(vectors + f * padded_D, rows + (b * F + f) * D, D * sizeof(float));
}

// The sizes of the dot interaction.
struct DotShape {
  int64_t bottom_width;        // D with a bottom MLP, else 0
  int64_t V;                   // vectors
  int64_t padded_V, padded_D;  // multiples of LANES; padded_V of GROUP as well
  int64_t out_width;           // bottom_width + V (V - 1) / 2

  DotShape(bool has_bottom, int64_t F, int64_t D)
      : bottom_width(has_bottom ? D : 0),
        V(has_bottom ? F + 1 : F),
        padded_V(padded_to(std::max(LANES, GROUP), V)),
        padded_D(padded_to_lanes(D)),
        out_width(bottom_width + V * (V - 1) / 2) {}
};

}  // namespace

// Every function returns ALL_VALID (-1) on success. One that takes ids returns the position b * F +
// f of the first id that is outside its table instead, if there is one, and then writes nothing.
extern "C" {

// rows[b, f] = weight[offsets[f] + ids[b, f]].
// weight: (R, D) float32. ids: (B, F) integers of id_bytes bytes. offsets: (F) int64.
// rows: (B, F, D) float32, written.
int64_t embedding_lookup(const float* weight, const void* id_values, int64_t id_bytes,
                         const int64_t* offsets, int64_t R, float* rows, int64_t B, int64_t F,
                         int64_t D) {
  const Ids ids{id_values, id_bytes, F, offsets, R};
  if (const int64_t position = first_invalid(ids, B); position != ALL_VALID) return position;
#pragma omp parallel for schedule(static) if (B * F > 1024)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t f = 0; f < F && b + 1 < B; f++) __builtin_prefetch(weight + ids.row(b + 1, f) * D);
    for (int64_t f = 0; f < F; f++)
      std::memcpy(rows + (b * F + f) * D, weight + ids.row(b, f) * D, D * sizeof(float));
  }
  return ALL_VALID;
}

// weight[r] -= lr * g_r, where g_r is the sum of the gradients of row r.
// weight: (R, D) float32, updated. ids, offsets: as in embedding_lookup. grad: (B, F, D) float32.
int64_t step_sgd(float* weight, const void* id_values, int64_t id_bytes, const int64_t* offsets,
                 int64_t R, const float* grad, float lr, int64_t B, int64_t F, int64_t D) {
  const Ids ids{id_values, id_bytes, F, offsets, R};
  if (const int64_t position = first_invalid(ids, B); position != ALL_VALID) return position;
  with_fixed_dim(D, [&](auto fixed_dim) { sgd<fixed_dim>(weight, ids, grad, lr, B, D); });
  return ALL_VALID;
}

// squares[r] += mean(g_r^2); weight[r] -= lr * g_r / (sqrt(squares[r]) + eps), where g_r is the sum
// of the gradients of row r. weight: (R, D) float32, updated. squares: (R) float32, updated.
// Others: as in step_sgd.
int64_t step_rowwise_adagrad(float* weight, float* squares, const void* id_values, int64_t id_bytes,
                             const int64_t* offsets, int64_t R, const float* grad, float lr,
                             float eps, int64_t B, int64_t F, int64_t D) {
  const Ids ids{id_values, id_bytes, F, offsets, R};
  if (const int64_t position = first_invalid(ids, B); position != ALL_VALID) return position;
  with_fixed_dim(D, [&](auto fixed_dim) {
    rowwise_adagrad<fixed_dim>(weight, squares, ids, grad, lr, eps, B, D);
  });
  return ALL_VALID;
}

// The dot interaction: the bottom MLP's vector, then the dot products of all pairs (i, j < i), row
// by row. bottom: (B, D) float32, or null. rows: (B, F, D) float32. out: (B, D + V (V - 1) / 2)
// float32, or (B, V (V - 1) / 2) without bottom; written.
int64_t pair_dots(const float* bottom, const float* rows, float* out, int64_t B, int64_t F,
                  int64_t D) {
  const DotShape s(bottom != nullptr, F, D);
#pragma omp parallel if (B > 32)
  {
    std::vector<float> vectors(s.padded_V * s.padded_D), transposed(s.padded_D * s.padded_V);
    std::vector<float> products(s.padded_V * s.padded_V), out_row(s.out_width + LANES);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
      gather_vectors(bottom, rows, vectors.data(), b, F, D);
      transpose(vectors.data(), transposed.data(), s.padded_V, s.padded_D);
      for (int64_t i = 0; i < s.V; i += GROUP)
        for (int64_t j = 0; j < i + GROUP - 1; j += LANES)
          multiply(&vectors[i * s.padded_D], s.padded_D, &transposed[j],
                   &products[i * s.padded_V + j], s.padded_V, s.padded_D);
      if (bottom) std::memcpy(out_row.data(), bottom + b * D, D * sizeof(float));
      // whole vectors are copied: the next row overwrites what is too much
      for (int64_t i = 1; i < s.V; i++)
        for (int64_t j = 0; j < i; j += LANES)
          *reinterpret_cast<FloatsInMemory*>(&out_row[s.bottom_width + i * (i - 1) / 2 + j]) =
              *reinterpret_cast<FloatsInMemory*>(&products[i * s.padded_V + j]);
      std::memcpy(out + b * s.out_width, out_row.data(), s.out_width * sizeof(float));
    }
  }
  return ALL_VALID;
}

// The gradients of pair_dots.
// grad: (B, width of out) float32, the gradient of out. bottom, rows: as in pair_dots.
// bottom_grad: (B, D) float32, written; null without bottom. rows_grad: (B, F, D) float32, written.
int64_t pair_dots_backward(const float* grad, const float* bottom, const float* rows,
                           float* bottom_grad, float* rows_grad, int64_t B, int64_t F, int64_t D) {
  const DotShape s(bottom != nullptr, F, D);
#pragma omp parallel if (B > 32)
  {
    // zeros follow the gradient of a sample: a square of pairs may reach beyond V
    std::vector<float> grad_row(s.bottom_width + s.padded_V * (s.padded_V - 1) / 2);
    std::vector<float> vectors(s.padded_V * s.padded_D), sums(s.padded_V * s.padded_D);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
      gather_vectors(bottom, rows, vectors.data(), b, F, D);
      std::memcpy(grad_row.data(), grad + b * s.out_width, s.out_width * sizeof(float));
      for (int64_t d = 0; d < s.padded_D; d += LANES)
        add_pairs(grad_row.data() + s.bottom_width, vectors.data() + d, sums.data() + d, s.V,
                  s.padded_D);
      const float* sum = sums.data();
      if (bottom) {
        for (int64_t d = 0; d < D; d++) bottom_grad[b * D + d] = sum[d] + grad_row[d];
        sum += s.padded_D;
      }
      if (D == s.padded_D) {
        std::memcpy(rows_grad + b * F * D, sum, F * D * sizeof(float));
      } else {
        for (int64_t f = 0; f < F; f++)
          std::memcpy(rows_grad + (b * F + f) * D, sum + f * s.padded_D, D * sizeof(float));
      }
    }
  }
  return ALL_VALID;
}

}  // extern "C"
