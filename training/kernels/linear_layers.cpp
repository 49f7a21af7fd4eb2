// A stack of linear layers with ReLUs between them, forwards and backwards: x -> relu(x W^T + b). Called by compiled.py.
// Shapes: B batch, I inputs and O outputs of a layer; W is (O, I). All arrays are contiguous.
//
// Products are made of units of 32 bits along the summed dimension: one float, or two bfloat16 (BF16), which one instruction multiplies with
// two others and adds to a float where the machine has it. Activations and gradients between layers are kept as such units; weights,
// their gradients and what leaves the stack are float. Each element is one sum in one order: the same bytes with any number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t DEPTH = 128;  // units along the summed dimension taken at a time: so much of the right factor stays in the first cache
constexpr int64_t ROWS = 96;    // of the left factor in a task; a multiple of the rows that a block computes

// What lies between layers: float, or bfloat16 as uint16_t in rows of even length.
template <bool BF16>
struct Format {
  using Element = typename std::conditional<BF16, uint16_t, float>::type;
  static constexpr int64_t PER_UNIT = BF16 ? 2 : 1;
  static int64_t units(int64_t n) { return (n + PER_UNIT - 1) / PER_UNIT; }
  static int64_t width(int64_t n) { return units(n) * PER_UNIT; }
};

// Memory that stays with its thread: a fresh large array costs more in page faults than what is done with it.
template <typename T, int N>
T* scratch(int64_t size) {
  static thread_local std::vector<T> kept;
  if (static_cast<int64_t>(kept.size()) < size) kept.resize(size);
  return kept.data();
}

template <bool BF16>
inline Floats multiply_add(Floats sum, uint32_t left, Words right) {
  const Words repeated = left - Words{};
  if (!BF16) return sum + (Floats)repeated * (Floats)right;
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)repeated, (__m512bh)right);
#else
  sum += (Floats)(repeated << 16) * (Floats)(right << 16);
  return sum + (Floats)(repeated & 0xffff0000u) * (Floats)(right & 0xffff0000u);
#endif
}

// out (G, V vectors) = or += left (G, K) times right (K, V vectors). left's unit (g, k) stands at left[g * row + k * step].
template <bool BF16, int64_t G, int64_t V>
inline void block(const uint32_t* left, int64_t row, int64_t step, const uint32_t* right, float* out, int64_t K, bool first) {
  Floats sums[G][V];  // in registers, if every loop over it is unrolled
#pragma GCC unroll 16
  for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++) sums[g][v] = first ? Floats{} : *reinterpret_cast<const FloatsInMemory*>(out + (g * V + v) * LANES);
  for (int64_t k = 0; k < K; k++, left += step, right += V * LANES) {
    Words units[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++) units[v] = *reinterpret_cast<const WordsInMemory*>(right + v * LANES);
#pragma GCC unroll 16
    for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; v++) sums[g][v] = multiply_add<BF16>(sums[g][v], left[g * row], units[v]);
  }
#pragma GCC unroll 16
  for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++) *reinterpret_cast<FloatsInMemory*>(out + (g * V + v) * LANES) = sums[g][v];
}

// left (M, K units) times right (K units, N), a task for each panel of V vectors of columns and each rows_per_task rows.
// panel(n, k, K, scratch) gives K rows of right from k on, columns from n on, as (K, V * LANES), zeros behind the last column;
// finish(m, n, columns, row) takes a row of the result, `columns` floats.
template <bool BF16, int64_t G, int64_t V, typename Panel, typename Finish>
void panels(const uint32_t* left, int64_t row, int64_t step, int64_t M, int64_t N, int64_t K, int64_t rows_per_task, Panel panel, Finish finish) {
  constexpr int64_t WIDTH = V * LANES;
#pragma omp parallel for collapse(2) schedule(static, 1) if (M * N * K > 16384)  // in turns: the last rows make smaller tasks
  for (int64_t m = 0; m < M; m += rows_per_task)
    for (int64_t n = 0; n < N; n += WIDTH) {
      const int64_t rows = std::min(rows_per_task, M - m);
      float* tile = scratch<float, 0>(rows_per_task * WIDTH);
      uint32_t* packed = scratch<uint32_t, 1>(DEPTH * WIDTH);
      if (K == 0) std::fill_n(tile, rows * WIDTH, 0.0f);
      for (int64_t k = 0; k < K; k += DEPTH) {
        const int64_t depth = std::min(DEPTH, K - k);
        const uint32_t* right = panel(n, k, depth, packed);
        const uint32_t* from = left + m * row + k * step;
        int64_t r = 0;
        for (; r + G <= rows; r += G) block<BF16, G, V>(from + r * row, row, step, right, tile + r * WIDTH, depth, k == 0);
        for (; r < rows; r++) block<BF16, 1, V>(from + r * row, row, step, right, tile + r * WIDTH, depth, k == 0);
      }
      for (int64_t r = 0; r < rows; r++) finish(m + r, n, std::min(WIDTH, N - n), tile + r * WIDTH);
    }
}

constexpr int64_t panel_width(int64_t N) { return N <= LANES ? LANES : 4 * LANES; }

template <bool BF16, typename... Args>
void product(const uint32_t* left, int64_t row, int64_t step, int64_t M, int64_t N, Args... args) {
  if (N <= LANES) panels<BF16, 12, 1>(left, row, step, M, N, args...);
  else panels<BF16, 6, 4>(left, row, step, M, N, args...);
}

// The units of a row of n floats from unit k on, as many as there are lanes; zeros behind the last.
template <bool BF16>
inline Words units(const float* row, int64_t k, int64_t n) {
  if (!BF16) return (Words)load(row + k, n - k);
  const int64_t left = n - 2 * k;
  return pairs(load(row + 2 * k, left), left > LANES ? load(row + 2 * k + LANES, left - LANES) : Floats{});
}

// W (O, I), as the right factor of x W^T: panels of columns o, (ceil(O / width), K, width) units, zeros behind the last column.
template <bool BF16>
void pack_transposed(const float* weight, uint32_t* packed, int64_t O, int64_t I) {
  const int64_t width = panel_width(O), K = Format<BF16>::units(I);
#pragma omp parallel for collapse(2) schedule(static) if (O * K > 16384)
  for (int64_t n = 0; n < O; n += width)
    for (int64_t k0 = 0; k0 < K; k0 += LANES)
      for (int64_t c = 0; c < width; c += LANES) {
        Floats square[LANES];
        for (int64_t o = 0; o < LANES; o++) square[o] = n + c + o < O ? (Floats)units<BF16>(weight + (n + c + o) * I, k0, I) : Floats{};
        transpose_square(square);
        for (int64_t k = k0; k < std::min(K, k0 + LANES); k++) *reinterpret_cast<FloatsInMemory*>(packed + n * K + k * width + c) = square[k - k0];
      }
}

// W (O, I), as the right factor of grad W: panels of columns i, (ceil(I / width), K, width) units, zeros behind the last column.
template <bool BF16>
void pack(const float* weight, uint32_t* packed, int64_t O, int64_t I) {
  const int64_t width = panel_width(I), K = Format<BF16>::units(O);
  const auto at = [=](int64_t o, int64_t i) { return o < O && i < I ? (Words)load(weight + o * I + i, I - i) : Words{}; };
#pragma omp parallel for collapse(2) schedule(static) if (O * I > 16384)
  for (int64_t n = 0; n < I; n += width)
    for (int64_t k = 0; k < K; k++)
      for (int64_t c = 0; c < width; c += LANES) {
        const Words unit = BF16 ? rounded(at(2 * k, n + c)) >> 16 | (rounded(at(2 * k + 1, n + c)) & 0xffff0000u) : at(k, n + c);
        *reinterpret_cast<WordsInMemory*>(packed + n * K + k * width + c) = unit;
      }
}

// x (B, I) float -> rows of elements.
template <bool BF16>
void convert(const float* x, typename Format<BF16>::Element* to, int64_t B, int64_t I) {
  const int64_t width = Format<BF16>::width(I);
#pragma omp parallel for schedule(static) if (B * I > 16384)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t i = 0; i < I; i++) put(to[b * width + i], x[b * I + i]);
    if (width > I) put(to[b * width + I], 0);
  }
}

template <bool BF16>
void forward(int64_t num_layers, const int64_t* widths, int64_t B, const float* x, const float* const* weights, const float* const* biases,
             bool relu_last, typename Format<BF16>::Element* const* inputs, float* out) {
  using F = Format<BF16>;
  if (BF16) convert<BF16>(x, inputs[0], B, widths[0]);
  for (int64_t l = 0; l < num_layers; l++) {
    const int64_t I = widths[l], O = widths[l + 1], K = F::units(I), width = panel_width(O), next = F::width(O);
    uint32_t* packed = scratch<uint32_t, 3>((O + width) * K);
    pack_transposed<BF16>(weights[l], packed, O, I);
    const bool last = l == num_layers - 1, relu = relu_last || !last;
    float* bias = scratch<float, 7>(O + width);
    std::copy(biases[l], biases[l] + O, bias);
    auto* to = last ? nullptr : inputs[l + 1];
    const void* left = BF16 || l ? static_cast<const void*>(inputs[l]) : x;
    product<BF16>(
        static_cast<const uint32_t*>(left), K, 1, B, O, K, ROWS,
        [=](int64_t n, int64_t k, int64_t, uint32_t*) { return packed + n * K + k * width; },
        [=](int64_t b, int64_t n, int64_t columns, const float* row) {
          for (int64_t o = 0; o < columns; o += LANES) {
            Floats y = load(row + o, LANES) + load(bias + n + o, LANES);
            if (relu) y = y < 0 ? Floats{} : y;  // what is no number stays so
            if (last) store(out + b * O + n + o, y, columns - o);
            else store(to + b * next + n + o, y, columns - o);
          }
          if (!last && n + columns == O && next > O) put(to[b * next + O], 0);
        });
  }
}

// Row k of the units that rows of elements make when the summed dimension is that of the rows: its columns from n on.
inline void pair_rows(const float* from, int64_t k, int64_t, int64_t width, int64_t n, int64_t columns, uint32_t* to) {
  std::memcpy(to, from + k * width + n, columns * sizeof(float));
}
inline void pair_rows(const uint16_t* from, int64_t k, int64_t rows, int64_t width, int64_t n, int64_t columns, uint32_t* to) {
  const uint16_t *first = from + 2 * k * width + n, *second = 2 * k + 1 < rows ? first + width : nullptr;
  for (int64_t c = 0; c < columns; c++) to[c] = first[c] | (second ? static_cast<uint32_t>(second[c]) << 16 : 0);
}

template <bool BF16>
void backward(int64_t num_layers, const int64_t* widths, int64_t B, const float* const* weights, bool relu_last,
              const typename Format<BF16>::Element* const* inputs, const float* out, const float* grad_out, float* const* weight_grads,
              float* const* bias_grads, float* grad_x) {
  using F = Format<BF16>;
  using Element = typename F::Element;
  const int64_t widest = F::width(*std::max_element(widths, widths + num_layers + 1)) + 1;
  Element *grad = scratch<Element, 4>(B * widest), *next_grad = scratch<Element, 5>(B * widest);
  const int64_t last = widths[num_layers];
#pragma omp parallel for schedule(static) if (B * last > 16384)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t o = 0; o < last; o++) put(grad[b * F::width(last) + o], relu_last && out[b * last + o] <= 0 ? 0 : grad_out[b * last + o]);
    if (F::width(last) > last) put(grad[b * F::width(last) + last], 0);
  }
  for (int64_t l = num_layers - 1; l >= 0; l--, std::swap(grad, next_grad)) {
    const int64_t I = widths[l], O = widths[l + 1], IW = F::width(I), OW = F::width(O), K = F::units(B);
    const Element* x = inputs[l];
    // the bias's gradient: sums of columns
#pragma omp parallel for schedule(static) if (B * O > 16384)
    for (int64_t n = 0; n < O; n += LANES) {
      Floats sum{};
      for (int64_t b = 0; b < B; b++) sum += load(grad + b * OW + n, O - n);
      store(bias_grads[l] + n, sum, O - n);
    }
    // the weight's gradient (O, I) = grad^T x, summed over rows
    const uint32_t* left = reinterpret_cast<const uint32_t*>(grad);
    if (BF16) {
      uint32_t* paired = scratch<uint32_t, 6>(K * OW);
#pragma omp parallel for schedule(static) if (B * O > 16384)
      for (int64_t k = 0; k < K; k++) pair_rows(grad, k, B, OW, 0, OW, paired + k * OW);
      left = paired;
    }
    const int64_t width = panel_width(I);
    float* weight_grad = weight_grads[l];
    product<BF16>(
        left, 1, OW, O, I, K, std::max<int64_t>(ROWS, (O + 1) / 2),
        [=](int64_t n, int64_t k, int64_t depth, uint32_t* packed) {
          const int64_t columns = std::min(width, I - n);
          for (int64_t d = 0; d < depth; d++) {
            pair_rows(x, k + d, B, IW, n, columns, packed + d * width);
            std::fill(packed + d * width + columns, packed + (d + 1) * width, 0);
          }
          return packed;
        },
        [=](int64_t o, int64_t n, int64_t columns, const float* row) { std::copy(row, row + columns, weight_grad + o * I + n); });
    if (l == 0 && !grad_x) break;
    // the gradient of what came in, (B, I) = grad W, through the ReLU that made it
    const int64_t KO = F::units(O);
    uint32_t* packed = scratch<uint32_t, 3>(KO * (I + width));
    pack<BF16>(weights[l], packed, O, I);
    product<BF16>(
        reinterpret_cast<const uint32_t*>(grad), KO, 1, B, I, KO, ROWS,
        [=](int64_t n, int64_t k, int64_t, uint32_t*) { return packed + n * KO + k * width; },
        [=](int64_t b, int64_t n, int64_t columns, const float* row) {
          if (l == 0) {
            std::copy(row, row + columns, grad_x + b * I + n);
            return;
          }
          for (int64_t i = 0; i < columns; i += LANES) {
            const Floats made = load(x + b * IW + n + i, columns - i), grad = load(row + i, LANES);
            store(next_grad + b * IW + n + i, made > 0 ? grad : Floats{}, columns - i);
          }
          if (n + columns == I && IW > I) put(next_grad[b * IW + I], 0);
        });
  }
}

}  // namespace

extern "C" {  // each returns -1: nothing was wrong

// The way back through a ReLU, bfloat16: in place, what of grad (B, O) was not above 0 in made (B, O) becomes 0; where made is null nothing
// does. sums (O): float32, of what is left, by column.
int64_t relu_backward(uint16_t* grad, const uint16_t* made, float* sums, int64_t B, int64_t O) {
  const int64_t tasks = (B + ROWS - 1) / ROWS, width = O + LANES;
  float* partial = scratch<float, 7>(tasks * width);
#pragma omp parallel for schedule(static) if (B * O > 16384)
  for (int64_t task = 0; task < tasks; task++) {
    float* mine = partial + task * width;
    std::fill_n(mine, width, 0.0f);
    for (int64_t b = task * ROWS; b < std::min(B, (task + 1) * ROWS); b++)
      for (int64_t o = 0; o < O; o += LANES) {
        Floats passed = load(grad + b * O + o, O - o);
        if (made) {
          passed = load(made + b * O + o, O - o) <= 0 ? Floats{} : passed;
          store(grad + b * O + o, passed, O - o);
        }
        store(mine + o, load(mine + o, LANES) + passed, LANES);
      }
  }
  std::fill_n(sums, O, 0.0f);
  for (int64_t task = 0; task < tasks; task++)
    for (int64_t o = 0; o < O; o++) sums[o] += partial[task * width + o];
  return -1;
}

int64_t layers_forward(int64_t bf16, int64_t num_layers, const int64_t* widths, int64_t B, const float* x, const float* const* weights,
                    const float* const* biases, int64_t relu_last, void* const* inputs, float* out) {
  if (bf16) forward<true>(num_layers, widths, B, x, weights, biases, relu_last, reinterpret_cast<uint16_t* const*>(inputs), out);
  else forward<false>(num_layers, widths, B, x, weights, biases, relu_last, reinterpret_cast<float* const*>(inputs), out);
  return -1;
}

int64_t layers_backward(int64_t bf16, int64_t num_layers, const int64_t* widths, int64_t B, const float* const* weights, int64_t relu_last,
                     const void* const* inputs, const float* out, const float* grad_out, float* const* weight_grads, float* const* bias_grads,
                     float* grad_x) {
  if (bf16)
    backward<true>(num_layers, widths, B, weights, relu_last, reinterpret_cast<const uint16_t* const*>(inputs), out, grad_out, weight_grads,
                   bias_grads, grad_x);
  else
    backward<false>(num_layers, widths, B, weights, relu_last, reinterpret_cast<const float* const*>(inputs), out, grad_out, weight_grads,
                    bias_grads, grad_x);
  return -1;
}

}  // extern "C"
