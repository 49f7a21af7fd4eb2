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
#include <utility>
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
  int64_t num_rows(int64_t f) const { return (f + 1 < F ? offsets[f + 1] : R) - offsets[f]; }
  bool valid(int64_t b, int64_t f) const {
    return static_cast<uint64_t>(local(b, f)) < static_cast<uint64_t>(num_rows(f));
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

// The update of one row by row-wise Adagrad; total (D) is the sum of its gradients.
template <int64_t FIXED_D>
inline void update_by_adagrad(float* weight, float* squares, int64_t row, const float* total,
                              float lr, float eps, int64_t D) {
  float square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t d = 0; d < (FIXED_D ? FIXED_D : D); d++) square += total[d] * total[d];
  float& accumulator = squares[row];
  accumulator += square / D;
  add<FIXED_D>(weight + row * D, total, -lr / (std::sqrt(accumulator) + eps), D);
}

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
        update_by_adagrad<FIXED_D>(weight, squares, sums.rows[u], &sums.totals[u * D], lr, eps, D);
      }
    }
  }
}

// How the rows of a list are combined, as in torch.nn.EmbeddingBag.
enum Pooling : int64_t { SUM, MEAN, MAX };

// What one categorical feature reads from its table: N lists of ids or, without `starts`, N ids.
// Vector n is the row of id n, or the rows of the ids starts[n] .. starts[n + 1] - 1 pooled.
// Its fields are integers of 64 bits, so that Python passes an array of them.
struct Read {
  const void* values;        // (V): the ids from 0 in the table, every `stride`-th element
  int64_t id_bytes, stride;  // bytes of an id, 4 or 8
  const int64_t* starts;     // (N + 1), rising from 0 to V; null if V is N
  const float* weights;      // (V): the factor of each row, with SUM only; null for 1
  int64_t pooling;
  int64_t first_row, num_rows;  // of the table, in the concatenation of all tables
  int64_t N;
  float* vectors;  // (N, D): the result or its gradient; vector n begins at element n * width
  int64_t width;

  int64_t num_values() const { return starts ? starts[N] : N; }
  int64_t local(int64_t v) const {
    return id_bytes == 8 ? static_cast<const int64_t*>(values)[v * stride]
                         : static_cast<const int32_t*>(values)[v * stride];
  }
  int64_t row(int64_t v) const { return first_row + local(v); }
  float* vector(int64_t n) const { return vectors + n * width; }
  // the factor of value v, of list n, in a vector that is a sum or a mean
  float factor(int64_t n, int64_t v) const {
    if (weights) return weights[v];
    return starts && pooling == MEAN ? 1.0f / static_cast<float>(starts[n + 1] - starts[n]) : 1.0f;
  }
  bool takes_max() const { return starts && pooling == MAX; }
};
static_assert(sizeof(Read) == 11 * sizeof(int64_t), "embedding_ops.py passes 11 integers");

constexpr int64_t READ_SHIFT = 40;   // an invalid id is reported as read << READ_SHIFT | value
constexpr int64_t CHUNK_ROWS = 256;  // vectors or distinct rows that a thread takes at a time
constexpr int64_t FLOATS_OF_LINE = 16;

int64_t first_invalid(const Read* reads, int64_t num_reads) {
  for (int64_t r = 0; r < num_reads; r++) {
    const int64_t V = reads[r].num_values();
    int64_t first = V;
#pragma omp parallel for schedule(static) reduction(min : first) if (V > 4096)
    for (int64_t v = 0; v < V; v++)
      if (static_cast<uint64_t>(reads[r].local(v)) >= static_cast<uint64_t>(reads[r].num_rows))
        first = std::min(first, v);
    if (first < V) return r << READ_SHIFT | first;
  }
  return ALL_VALID;
}

inline void prefetch_row(const float* row, int64_t D) {
  for (int64_t d = 0; d < D; d += FLOATS_OF_LINE) __builtin_prefetch(row + d);
}

// A part of the work of a read or a table: begin .. end - 1.
struct Chunk {
  int64_t of, begin, end;
};

// Cuts 0 .. sizes[k] - 1, for each k, into chunks.
std::vector<Chunk> chunks_of(const std::vector<int64_t>& sizes) {
  std::vector<Chunk> chunks;
  for (size_t k = 0; k < sizes.size(); k++)
    for (int64_t begin = 0; begin < sizes[k]; begin += CHUNK_ROWS)
      chunks.push_back({static_cast<int64_t>(k), begin, std::min(begin + CHUNK_ROWS, sizes[k])});
  return chunks;
}

// Returns whether `value` takes the place of the largest value before it. A NaN does, and stays.
inline bool is_new_max(float value, float max) { return value > max || value != value; }

// Pools list n of a read into out (D). Writes to winners (D), unless it is null, the value whose row
// has the maximum of each element, or EMPTY.
template <int64_t FIXED_D>
void pool(const float* weight, const Read& read, int64_t n, float* out, int32_t* winners,
          int64_t V, int64_t D) {
  const int64_t width = FIXED_D ? FIXED_D : D;
  const int64_t begin = read.starts ? read.starts[n] : n;
  const int64_t end = read.starts ? read.starts[n + 1] : n + 1;
  if (begin == end || !read.takes_max()) std::fill(out, out + width, 0.0f);
  if (winners) std::fill(winners, winners + width, static_cast<int32_t>(EMPTY));
  for (int64_t v = begin; v < end; v++) {
    if (v + PREFETCH_ROWS < V) prefetch_row(weight + read.row(v + PREFETCH_ROWS) * D, D);
    const float* row = weight + read.row(v) * D;
    if (!read.takes_max()) {
      add<FIXED_D>(out, row, read.weights ? read.weights[v] : 1.0f, D);
    } else if (v == begin) {
      std::memcpy(out, row, width * sizeof(float));
      if (winners) std::fill(winners, winners + width, static_cast<int32_t>(v));
    } else if (winners) {
      for (int64_t d = 0; d < width; d++)
        if (is_new_max(row[d], out[d])) out[d] = row[d], winners[d] = static_cast<int32_t>(v);
    } else {
      for (int64_t d = 0; d < width; d++) out[d] = is_new_max(row[d], out[d]) ? row[d] : out[d];
    }
  }
  if (read.starts && read.pooling == MEAN && end - begin > 1)
    for (int64_t d = 0; d < width; d++) out[d] /= static_cast<float>(end - begin);
}

template <int64_t FIXED_D>
void look_up_pooled(const float* weight, const Read* reads, int64_t num_reads, int64_t D) {
  std::vector<int64_t> sizes, num_values;
  for (int64_t r = 0; r < num_reads; r++) {
    sizes.push_back(reads[r].N);
    num_values.push_back(reads[r].num_values());
  }
  const std::vector<Chunk> chunks = chunks_of(sizes);
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t c = 0; c < chunks.size(); c++) {
    const Read& read = reads[chunks[c].of];
    for (int64_t n = chunks[c].begin; n < chunks[c].end; n++)
      pool<FIXED_D>(weight, read, n, read.vector(n), nullptr, num_values[chunks[c].of], D);
  }
}

// A value: which row it selects, and its place among the values.
struct Entry {
  uint32_t row, place;
};

// Sorts entries by row, from 0 to num_rows - 1: a radix sort, which keeps the order of equal rows.
void sort_by_row(std::vector<Entry>& entries, int64_t num_rows) {
  const int64_t digit_bits = entries.size() > 4096 ? 11 : 8;
  const uint32_t mask = (1u << digit_bits) - 1;
  std::vector<Entry> sorted(entries.size());
  std::vector<size_t> places(mask + 1);
  for (int64_t shift = 0; (num_rows - 1) >> shift; shift += digit_bits) {
    std::fill(places.begin(), places.end(), 0);
    for (const Entry& entry : entries) places[entry.row >> shift & mask]++;
    size_t first = 0;
    for (size_t& place : places) first += std::exchange(place, first);
    for (const Entry& entry : entries) sorted[places[entry.row >> shift & mask]++] = entry;
    entries.swap(sorted);
  }
}

// Writes the distinct rows of each column, ascending, one column after the other, to rows; and to
// positions (B, F) where in rows the row of each id is. Returns the number of rows.
int64_t find_distinct(const Ids& ids, int64_t B, int64_t* rows, int64_t* positions) {
  std::vector<std::vector<Entry>> columns(ids.F);
  std::vector<int64_t> ends(ids.F);  // (F): of the rows of each column
#pragma omp parallel for schedule(dynamic, 1) if (B * ids.F > 1024)
  for (int64_t f = 0; f < ids.F; f++) {
    std::vector<Entry>& entries = columns[f];
    entries.reserve(B);
    for (int64_t b = 0; b < B; b++)
      entries.push_back({static_cast<uint32_t>(ids.local(b, f)), static_cast<uint32_t>(b)});
    sort_by_row(entries, ids.num_rows(f));
    for (size_t e = 0; e < entries.size(); e++)
      ends[f] += !e || entries[e].row != entries[e - 1].row;
  }
  for (int64_t f = 1; f < ids.F; f++) ends[f] += ends[f - 1];
#pragma omp parallel for schedule(dynamic, 1) if (B * ids.F > 1024)
  for (int64_t f = 0; f < ids.F; f++) {
    int64_t u = f ? ends[f - 1] : 0;
    const std::vector<Entry>& entries = columns[f];
    for (size_t e = 0; e < entries.size(); e++) {
      if (e && entries[e].row != entries[e - 1].row) u++;
      rows[u] = ids.offsets[f] + entries[e].row;
      positions[entries[e].place * ids.F + f] = u;
    }
  }
  return ids.F ? ends.back() : 0;
}

// Where a value is: value v of list n of a read.
struct Source {
  uint32_t read, n, v;
};

// All values that select rows of one table, sorted by row. The values of a row stay in the order of
// the reads and of the values, so that its gradients are always summed in the same order.
struct ReadsOfTable {
  int64_t first_row, num_rows;
  std::vector<uint32_t> reads;
  std::vector<Source> sources;
  std::vector<Entry> entries;
  std::vector<uint32_t> ends;  // (U): where the entries of each distinct row end

  void collect(const Read* all_reads) {
    size_t num_values = 0;
    for (uint32_t r : reads) num_values += all_reads[r].num_values();
    sources.reserve(num_values);
    entries.reserve(num_values);
    for (uint32_t r : reads) {
      const Read& read = all_reads[r];
      for (int64_t n = 0; n < read.N; n++) {
        const int64_t begin = read.starts ? read.starts[n] : n;
        const int64_t end = read.starts ? read.starts[n + 1] : n + 1;
        for (int64_t v = begin; v < end; v++) {
          entries.push_back({static_cast<uint32_t>(read.local(v)),
                             static_cast<uint32_t>(sources.size())});
          sources.push_back({r, static_cast<uint32_t>(n), static_cast<uint32_t>(v)});
        }
      }
    }
    sort_by_row(entries, num_rows);
    for (size_t e = 1; e <= entries.size(); e++)
      if (e == entries.size() || entries[e].row != entries[e - 1].row)
        ends.push_back(static_cast<uint32_t>(e));
  }
};

// Calls update(row, total) for each distinct row of the reads, where total (D) is the sum of the
// gradients of the row: of all values of all reads that select it.
template <int64_t FIXED_D, typename Update>
void update_rows(const float* weight, const Read* reads, int64_t num_reads, int64_t D,
                 Update update) {
  // The winners are found before any row changes.
  std::vector<std::vector<int32_t>> winners(num_reads);
  for (int64_t r = 0; r < num_reads; r++) {
    if (!reads[r].takes_max()) continue;
    winners[r].resize(reads[r].N * D);
    const int64_t V = reads[r].num_values();
#pragma omp parallel
    {
      std::vector<float> maxima(D);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < reads[r].N; n++)
        pool<FIXED_D>(weight, reads[r], n, maxima.data(), &winners[r][n * D], V, D);
    }
  }
  std::vector<ReadsOfTable> tables;
  for (int64_t r = 0; r < num_reads; r++) {
    if (!reads[r].num_values()) continue;
    auto table = std::find_if(tables.begin(), tables.end(), [&](const ReadsOfTable& other) {
      return other.first_row == reads[r].first_row;
    });
    if (table == tables.end())
      table = tables.insert(table, {reads[r].first_row, reads[r].num_rows, {}, {}, {}, {}});
    table->reads.push_back(static_cast<uint32_t>(r));
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t t = 0; t < tables.size(); t++) tables[t].collect(reads);
  std::vector<int64_t> sizes;
  for (const ReadsOfTable& table : tables) sizes.push_back(table.ends.size());
  const std::vector<Chunk> chunks = chunks_of(sizes);
#pragma omp parallel
  {
    std::vector<float> total(D);
#pragma omp for schedule(dynamic, 1)
    for (size_t c = 0; c < chunks.size(); c++) {
      const ReadsOfTable& table = tables[chunks[c].of];
      const size_t num_entries = table.entries.size();
      for (int64_t u = chunks[c].begin; u < chunks[c].end; u++) {
        const size_t begin = u ? table.ends[u - 1] : 0, end = table.ends[u];
        if (u + 1 < chunks[c].end)
          prefetch_row(weight + (table.first_row + table.entries[end].row) * D, D);
        std::fill(total.begin(), total.end(), 0.0f);
        for (size_t e = begin; e < end; e++) {
          if (e + PREFETCH_ROWS < num_entries) {
            const Source& next = table.sources[table.entries[e + PREFETCH_ROWS].place];
            prefetch_row(reads[next.read].vector(next.n), D);
          }
          const Source& source = table.sources[table.entries[e].place];
          const Read& read = reads[source.read];
          const float* grad = read.vector(source.n);
          if (read.takes_max()) {
            const int32_t* winner = &winners[source.read][source.n * D];
            const int32_t v = static_cast<int32_t>(source.v);
            for (int64_t d = 0; d < (FIXED_D ? FIXED_D : D); d++)
              total[d] += winner[d] == v ? grad[d] : 0.0f;
          } else {
            add<FIXED_D>(total.data(), grad, read.factor(source.n, source.v), D);
          }
        }
        update(table.first_row + table.entries[begin].row, total.data());
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

// The distinct rows of a batch. ids, offsets: as in embedding_lookup.
// rows: (B F) int64, of which the first U are written: the rows of each column, ascending, one
// column after the other. positions: (B, F) int64, written: where in rows the row of each id is.
// num_rows: (1) int64, written: U.
int64_t distinct_rows(const void* id_values, int64_t id_bytes, const int64_t* offsets, int64_t R,
                      int64_t* rows, int64_t* positions, int64_t* num_rows, int64_t B, int64_t F) {
  const Ids ids{id_values, id_bytes, F, offsets, R};
  if (const int64_t position = first_invalid(ids, B); position != ALL_VALID) return position;
  *num_rows = find_distinct(ids, B, rows, positions);
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

// Writes the vectors of each read, pooled where it has lists.
// weight: (R, D) float32. reads: (num_reads) as in `Read`; their vectors are written.
// Returns ALL_VALID, or read << READ_SHIFT | value for the first id that is outside its table.
int64_t pooled_lookup(const float* weight, const void* all_reads, int64_t num_reads, int64_t D) {
  const Read* reads = static_cast<const Read*>(all_reads);
  if (const int64_t place = first_invalid(reads, num_reads); place != ALL_VALID) return place;
  with_fixed_dim(D, [&](auto fixed_dim) { look_up_pooled<fixed_dim>(weight, reads, num_reads, D); });
  return ALL_VALID;
}

// step_sgd for reads, whose vectors are the gradients of what pooled_lookup wrote. Reads of one table
// may share rows. Returns what pooled_lookup returns.
int64_t pooled_step_sgd(float* weight, const void* all_reads, int64_t num_reads, float lr,
                        int64_t D) {
  const Read* reads = static_cast<const Read*>(all_reads);
  if (const int64_t place = first_invalid(reads, num_reads); place != ALL_VALID) return place;
  with_fixed_dim(D, [&](auto fixed_dim) {
    update_rows<fixed_dim>(weight, reads, num_reads, D, [&](int64_t row, const float* total) {
      add<fixed_dim>(weight + row * D, total, -lr, D);
    });
  });
  return ALL_VALID;
}

// step_rowwise_adagrad for reads, as pooled_step_sgd.
int64_t pooled_step_rowwise_adagrad(float* weight, float* squares, const void* all_reads,
                                    int64_t num_reads, float lr, float eps, int64_t D) {
  const Read* reads = static_cast<const Read*>(all_reads);
  if (const int64_t place = first_invalid(reads, num_reads); place != ALL_VALID) return place;
  with_fixed_dim(D, [&](auto fixed_dim) {
    update_rows<fixed_dim>(weight, reads, num_reads, D, [&](int64_t row, const float* total) {
      update_by_adagrad<fixed_dim>(weight, squares, row, total, lr, eps, D);
    });
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
