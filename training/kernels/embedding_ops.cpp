// What a training step does with embedding rows: look them up, dot them with each other, update them. fp32, any D, F and B; called by rows.py.
// Shapes: B batch, F columns, D embedding dim, V vectors (F, and the bottom MLP's in front if there is one). All arrays are contiguous.
// Sums are taken in a fixed order whatever the number of threads, so that the same inputs give the same bytes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t AHEAD = 16;  // so many rows are fetched before they are needed: they lie anywhere in memory
constexpr int64_t GROUP = 8;   // rows of a small product computed together, which hides the latency of one multiply-add
constexpr int64_t TILE = 4;    // vectors at each side of a square of pairs: they and their sums are in registers

int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// The ids of a batch, (B, F), local to each column: integers of `bytes` bytes, 4 or 8.
struct Ids {
  const void* values;
  int64_t bytes, F;
  const int64_t* offsets;  // (F): the first row of each column
  int64_t num_rows;        // of all columns

  int64_t local(int64_t b, int64_t f) const {
    return bytes == 8 ? static_cast<const int64_t*>(values)[b * F + f] : static_cast<const int32_t*>(values)[b * F + f];
  }
  int64_t row(int64_t b, int64_t f) const { return offsets[f] + local(b, f); }
  bool valid(int64_t b, int64_t f) const {
    const int64_t end = f + 1 < F ? offsets[f + 1] : num_rows;
    return static_cast<uint64_t>(local(b, f)) < static_cast<uint64_t>(end - offsets[f]);
  }
};

// The place b * F + f of the first id that has no row; -1 if all have.
int64_t first_invalid(const Ids& ids, int64_t B) {
  int64_t found = B * ids.F;
#pragma omp parallel for schedule(static) reduction(min : found) if (B * ids.F > 4096)
  for (int64_t b = 0; b < B; b++)
    for (int64_t f = 0; f < ids.F; f++)
      if (!ids.valid(b, f)) found = std::min(found, b * ids.F + f);
  return found == B * ids.F ? -1 : found;
}

// target += factor * source, D floats. D is a constant where the caller's is.
template <int64_t FIXED>
inline void add(float* target, const float* source, float factor, int64_t D) {
  for (int64_t d = 0; d < (FIXED ? FIXED : D); d++) target[d] += factor * source[d];
}

template <int64_t FIXED>
void sgd(float* weight, const Ids& ids, const float* grad, float lr, int64_t B, int64_t D) {
#pragma omp parallel for schedule(dynamic, 1) if (B * ids.F > 1024)
  for (int64_t f = 0; f < ids.F; f++)  // no two columns share a row
    for (int64_t b = 0; b < B; b++) {
      if (b + AHEAD < B) {
        __builtin_prefetch(weight + ids.row(b + AHEAD, f) * D, 1);
        __builtin_prefetch(grad + ((b + AHEAD) * ids.F + f) * D);
      }
      add<FIXED>(weight + ids.row(b, f) * D, grad + (b * ids.F + f) * D, -lr, D);
    }
}

// The sums of a column's gradients by row: a hash table from id to place, open addressing, emptied after use.
struct Sums {
  std::vector<int64_t> keys, rows;  // keys: of the hash table; rows: U distinct ones in order of appearance
  std::vector<int32_t> places;
  std::vector<size_t> used;
  std::vector<float> totals;  // (U, D)

  Sums(int64_t B, int64_t D) : rows(B), totals(B * D) {
    size_t size = 64;
    while (size < 2 * static_cast<size_t>(B)) size *= 2;
    keys.assign(size, -1);
    places.resize(size);
    used.reserve(B);
  }
  size_t hash(int64_t row) const { return (static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15ull >> 32) & (keys.size() - 1); }

  template <int64_t FIXED>
  int64_t collect(const Ids& ids, int64_t f, const float* grad, int64_t B, int64_t D) {
    int64_t U = 0;
    for (int64_t b = 0; b < B; b++) {
      if (b + AHEAD < B) {
        __builtin_prefetch(grad + ((b + AHEAD) * ids.F + f) * D);
        __builtin_prefetch(&keys[hash(ids.row(b + AHEAD, f))]);
      }
      const int64_t row = ids.row(b, f);
      const float* mine = grad + (b * ids.F + f) * D;
      size_t at = hash(row);
      while (keys[at] != -1 && keys[at] != row) at = (at + 1) & (keys.size() - 1);
      if (keys[at] == row) {
        add<FIXED>(&totals[places[at] * D], mine, 1, D);
      } else {
        keys[at] = row;
        places[at] = static_cast<int32_t>(U);
        used.push_back(at);
        rows[U] = row;
        std::memcpy(&totals[U++ * D], mine, D * sizeof(float));
      }
    }
    for (size_t at : used) keys[at] = -1;
    used.clear();
    return U;
  }
};

template <int64_t FIXED>
void rowwise_adagrad(float* weight, float* squares, const Ids& ids, const float* grad, float lr, float eps, int64_t B, int64_t D) {
#pragma omp parallel if (B * ids.F > 1024)
  {
    Sums sums(B, D);
#pragma omp for schedule(dynamic, 1)
    for (int64_t f = 0; f < ids.F; f++) {
      const int64_t U = sums.collect<FIXED>(ids, f, grad, B, D);
      for (int64_t u = 0; u < U; u++) {
        if (u + AHEAD < U) {
          __builtin_prefetch(weight + sums.rows[u + AHEAD] * D, 1);
          __builtin_prefetch(squares + sums.rows[u + AHEAD], 1);
        }
        const float* total = &sums.totals[u * D];
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t d = 0; d < (FIXED ? FIXED : D); d++) square += total[d] * total[d];
        float& sum = squares[sums.rows[u]];
        sum += square / D;
        add<FIXED>(weight + sums.rows[u] * D, total, -lr / (std::sqrt(sum) + eps), D);
      }
    }
  }
}

// Calls f with the embedding dim as a constant for the usual ones, 0 for others.
template <typename F>
void for_dim(int64_t D, F f) {
  switch (D) {
    case 8: return f(std::integral_constant<int64_t, 8>());
    case 16: return f(std::integral_constant<int64_t, 16>());
    case 32: return f(std::integral_constant<int64_t, 32>());
    case 64: return f(std::integral_constant<int64_t, 64>());
    case 128: return f(std::integral_constant<int64_t, 128>());
    default: return f(std::integral_constant<int64_t, 0>());
  }
}

// A (K, M) padded, K and M multiples of LANES: its transpose, (M, K).
void transpose(const float* in, float* out, int64_t K, int64_t M) {
  for (int64_t k = 0; k < K; k += LANES)
    for (int64_t m = 0; m < M; m += LANES) {
      Floats block[LANES];
      for (int64_t r = 0; r < LANES; r++) block[r] = *reinterpret_cast<const FloatsInMemory*>(in + (k + r) * M + m);
      transpose_square(block);
      for (int64_t r = 0; r < LANES; r++) *reinterpret_cast<FloatsInMemory*>(out + (m + r) * K + k) = block[r];
    }
}

// out (GROUP, width) = left (GROUP, K) times right (K, width), one vector of columns: out[:, :LANES].
inline void multiply(const float* left, int64_t left_width, const float* right, float* out, int64_t width, int64_t K) {
  Floats sums[GROUP] = {};
  for (int64_t k = 0; k < K; k++) {
    const Floats row = *reinterpret_cast<const FloatsInMemory*>(right + k * width);
    for (int64_t g = 0; g < GROUP; g++) sums[g] += left[g * left_width + k] * row;
  }
  for (int64_t g = 0; g < GROUP; g++) *reinterpret_cast<FloatsInMemory*>(out + g * width) = sums[g];
}

// sums[i] = the sum over j of pair (i, j) times vectors[j], one vector of columns: pairs are the strict lower triangle, row by row, of a
// symmetric matrix without a diagonal. A square of it, read once, adds to the sums of its rows and to those of its columns.
inline void add_pairs(const float* pairs, const float* vectors, float* sums, int64_t V, int64_t width) {
  for (int64_t i = 0; i < V; i += TILE) {
    Floats of_rows[TILE], row_sums[TILE] = {};
    const float* row[TILE];
    for (int64_t r = 0; r < TILE; r++) of_rows[r] = load(vectors + (i + r) * width, LANES), row[r] = pairs + (i + r) * (i + r - 1) / 2;
    for (int64_t j = 0; j < i; j += TILE)
#pragma GCC unroll 4
      for (int64_t c = 0; c < TILE; c++) {
        const Floats of_column = load(vectors + (j + c) * width, LANES);
        Floats sum = load(sums + (j + c) * width, LANES);
#pragma GCC unroll 4
        for (int64_t r = 0; r < TILE; r++) {
          const float pair = row[r][j + c];
          row_sums[r] += pair * of_column;
          sum += pair * of_rows[r];
        }
        store(sums + (j + c) * width, sum, LANES);
      }
#pragma GCC unroll 4
    for (int64_t r = 1; r < TILE; r++)
#pragma GCC unroll 4
      for (int64_t c = 0; c < r; c++) {
        const float pair = row[r][i + c];
        row_sums[r] += pair * of_rows[c];
        row_sums[c] += pair * of_rows[r];
      }
    for (int64_t r = 0; r < TILE; r++) store(sums + (i + r) * width, row_sums[r], LANES);
  }
}

// The V vectors of sample b, the bottom's first, as (VP, DP) with zeros around them.
void gather_vectors(const float* bottom, const float* rows, float* vectors, int64_t b, int64_t F, int64_t D) {
  const int64_t DP = padded(D);
  if (bottom) std::memcpy(vectors, bottom + b * D, D * sizeof(float)), vectors += DP;
  if (D == DP) std::memcpy(vectors, rows + b * F * D, F * D * sizeof(float));
  else for (int64_t f = 0; f < F; f++) std::memcpy(vectors + f * DP, rows + (b * F + f) * D, D * sizeof(float));
}

}  // namespace

extern "C" {  // each returns -1, or as look_up does

// rows (B, F, D) <- weight (num_rows, D). Returns the place of the first id without a row, else -1; then nothing is written.
int64_t look_up(const float* weight, const void* ids_, int64_t bytes, const int64_t* offsets, int64_t num_rows, float* rows, int64_t B,
                int64_t F, int64_t D) {
  const Ids ids{ids_, bytes, F, offsets, num_rows};
  if (const int64_t bad = first_invalid(ids, B); bad >= 0) return bad;
#pragma omp parallel for schedule(static) if (B * F > 1024)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t f = 0; f < F && b + 1 < B; f++) __builtin_prefetch(weight + ids.row(b + 1, f) * D);
    for (int64_t f = 0; f < F; f++) std::memcpy(rows + (b * F + f) * D, weight + ids.row(b, f) * D, D * sizeof(float));
  }
  return -1;
}

// weight[row] -= lr * sum of the row's gradients. Returns as look_up.
int64_t step_sgd(float* weight, const void* ids_, int64_t bytes, const int64_t* offsets, int64_t num_rows, const float* grad, float lr,
                 int64_t B, int64_t F, int64_t D) {
  const Ids ids{ids_, bytes, F, offsets, num_rows};
  if (const int64_t bad = first_invalid(ids, B); bad >= 0) return bad;
  for_dim(D, [&](auto fixed) { sgd<fixed>(weight, ids, grad, lr, B, D); });
  return -1;
}

// g = sum of the row's gradients; squares[row] += mean(g^2); weight[row] -= lr * g / (sqrt(squares[row]) + eps). Returns as look_up.
int64_t step_rowwise_adagrad(float* weight, float* squares, const void* ids_, int64_t bytes, const int64_t* offsets, int64_t num_rows,
                             const float* grad, float lr, float eps, int64_t B, int64_t F, int64_t D) {
  const Ids ids{ids_, bytes, F, offsets, num_rows};
  if (const int64_t bad = first_invalid(ids, B); bad >= 0) return bad;
  for_dim(D, [&](auto fixed) { rowwise_adagrad<fixed>(weight, squares, ids, grad, lr, eps, B, D); });
  return -1;
}

// out (B, [D +] V (V - 1) / 2): the bottom's vector if there is one (bottom is null else), then the dots of all pairs (i, j < i) row by row.
int64_t dots(const float* bottom, const float* rows, float* out, int64_t B, int64_t F, int64_t D) {
  const int64_t H = bottom ? D : 0, V = F + !!bottom, VP = padded(V), DP = padded(D), W = H + V * (V - 1) / 2;
#pragma omp parallel if (B > 32)
  {
    std::vector<float> vectors(VP * DP), transposed(DP * VP), products(VP * VP), line(W + LANES);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
      gather_vectors(bottom, rows, vectors.data(), b, F, D);
      transpose(vectors.data(), transposed.data(), VP, DP);
      for (int64_t i = 0; i < V; i += GROUP)
        for (int64_t j = 0; j < i + GROUP - 1; j += LANES)
          multiply(&vectors[i * DP], DP, &transposed[j], &products[i * VP + j], VP, D);
      if (H) std::memcpy(line.data(), bottom + b * D, D * sizeof(float));
      for (int64_t i = 1; i < V; i++)  // whole vectors: what is too much, the next row overwrites
        for (int64_t j = 0; j < i; j += LANES)
          *reinterpret_cast<FloatsInMemory*>(&line[H + i * (i - 1) / 2 + j]) = *reinterpret_cast<FloatsInMemory*>(&products[i * VP + j]);
      std::memcpy(out + b * W, line.data(), W * sizeof(float));
    }
  }
  return -1;
}

// From the gradient of dots' output, (B, W): those of the bottom's vectors (B, D) and of the rows (B, F, D).
int64_t dots_backward(const float* grad, const float* bottom, const float* rows, float* bottom_grad, float* rows_grad, int64_t B, int64_t F,
                   int64_t D) {
  const int64_t H = bottom ? D : 0, V = F + !!bottom, VP = padded(V), DP = padded(D), W = H + V * (V - 1) / 2;
#pragma omp parallel if (B > 32)
  {
    std::vector<float> vectors(VP * DP), sums(VP * DP), line(H + VP * (VP - 1) / 2);  // zeros behind: a square may reach beyond V
#pragma omp for schedule(static)
    for (int64_t b = 0; b < B; b++) {
      gather_vectors(bottom, rows, vectors.data(), b, F, D);
      std::memcpy(line.data(), grad + b * W, W * sizeof(float));
      for (int64_t d = 0; d < DP; d += LANES) add_pairs(line.data() + H, vectors.data() + d, sums.data() + d, V, DP);
      const float* row = sums.data();
      if (H) {
        for (int64_t d = 0; d < D; d++) bottom_grad[b * D + d] = row[d] + line[d];
        row += DP;
      }
      if (D == DP) std::memcpy(rows_grad + b * F * D, row, F * D * sizeof(float));
      else for (int64_t f = 0; f < F; f++) std::memcpy(rows_grad + (b * F + f) * D, row + f * DP, D * sizeof(float));
    }
  }
  return -1;
}

}  // extern "C"
