// A stack of linear layers with ReLUs between them, forward and backward: x -> relu(x W^T + b).
// Called by cpp_layers.py and linear_layers.py.
//
// Shapes: B batch, I inputs and O outputs of a layer; W is (O, I). All arrays are contiguous.
//
// A matrix product reads both factors in units of 32 bits along the summed dimension: one float32,
// or two bfloat16 (BF16), for which AVX512_BF16 has one instruction. Activations and gradients
// between layers are float32 or bfloat16; weights, their gradients, and the inputs and outputs of
// the stack are float32.
//
// Every element of a product is one sum in a fixed order, whatever the number of threads, so the
// same inputs give the same bytes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t PANEL_DEPTH = 128;   // units of a panel of the right factor: it fits the L1 cache
constexpr int64_t ROWS_PER_TASK = 96;  // of the left factor; a multiple of the rows of a block
constexpr int64_t MIN_PARALLEL = 16384;  // loops with fewer steps run on one thread
constexpr int64_t SUCCESS = -1;

// How activations and gradients between layers are stored: as float32, or as bfloat16 (uint16_t) in
// rows that are padded to an even width, so that they consist of whole units.
template <bool BF16>
struct Format {
  using Element = typename std::conditional<BF16, uint16_t, float>::type;
  static constexpr int64_t PER_UNIT = BF16 ? 2 : 1;
  static int64_t num_units(int64_t n) { return (n + PER_UNIT - 1) / PER_UNIT; }
  static int64_t padded_width(int64_t n) { return num_units(n) * PER_UNIT; }
};

// What the scratch memory of a thread is used for.
enum class Scratch {
  OUT_TILE,       // in blocked_product: a task's rows of the result
  RIGHT_PANEL,    // in blocked_product: a panel of the right factor
  PACKED_WEIGHT,  // a layer's weight, packed as the right factor
  PADDED_BIAS,    // a layer's bias, with room for whole vectors
  GRAD,           // the gradient of a layer's output
  NEXT_GRAD,      // the gradient of a layer's input
  PAIRED_GRAD,    // GRAD with two rows in each unit
  COLUMN_SUMS,    // in column_sums: the sums of each task
};

// Returns memory for at least `size` elements that its thread keeps for the next call. New memory
// for large arrays costs more in page faults than the work that is done with it.
template <Scratch USE, typename T>
T* scratch(int64_t size) {
  static thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// sum + left * right in each lane; with BF16 a lane adds the products of both halves.
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

// out (G, V vectors) = left (G, K units) times right (K units, V vectors), added to what is in out
// unless it is the first panel. Unit (g, k) of left is left[g * row_stride + k * k_stride].
template <bool BF16, int64_t G, int64_t V>
inline void multiply_block(const uint32_t* left, int64_t row_stride, int64_t k_stride,
                           const uint32_t* right, float* out, int64_t K, bool first_panel) {
  Floats sums[G][V];  // stays in registers only if every loop over it is unrolled
#pragma GCC unroll 16
  for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++)
      sums[g][v] = first_panel
                       ? Floats{}
                       : *reinterpret_cast<const FloatsInMemory*>(out + (g * V + v) * LANES);
  for (int64_t k = 0; k < K; k++, left += k_stride, right += V * LANES) {
    Words units[V];
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++)
      units[v] = *reinterpret_cast<const WordsInMemory*>(right + v * LANES);
#pragma GCC unroll 16
    for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
      for (int64_t v = 0; v < V; v++)
        sums[g][v] = multiply_add<BF16>(sums[g][v], left[g * row_stride], units[v]);
  }
#pragma GCC unroll 16
  for (int64_t g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int64_t v = 0; v < V; v++)
      *reinterpret_cast<FloatsInMemory*>(out + (g * V + v) * LANES) = sums[g][v];
}

// left (M, K units) times right (K units, N). A task computes at most max_rows_per_task rows of a
// panel of V vectors of columns, in blocks of G rows.
//   get_panel(n, k, depth, memory) returns rows k .. k + depth of right, columns from n on, as
//     (depth, V * LANES) units with zeros after the last column; it may use `memory` for them.
//   write_row(m, n, columns, row) takes the first `columns` floats of row m of the result, from
//   column n.
template <bool BF16, int64_t G, int64_t V, typename GetPanel, typename WriteRow>
void blocked_product(const uint32_t* left, int64_t row_stride, int64_t k_stride, int64_t M,
                     int64_t N, int64_t K, int64_t max_rows_per_task, GetPanel get_panel,
                     WriteRow write_row) {
  constexpr int64_t WIDTH = V * LANES;
  // Tasks of nearly the same size: threads take the same number of them. A thread takes neighbours,
  // so that it reads few rows of left, and no two threads write to neighbouring cache lines.
  const int64_t num_row_tasks =
      std::max<int64_t>(1, (M + max_rows_per_task - 1) / max_rows_per_task);
  const int64_t rows_per_task = ((M + num_row_tasks - 1) / num_row_tasks + G - 1) / G * G;
#pragma omp parallel for collapse(2) schedule(static) if (M * N * K > MIN_PARALLEL)
  for (int64_t m = 0; m < M; m += rows_per_task)
    for (int64_t n = 0; n < N; n += WIDTH) {
      const int64_t rows = std::min(rows_per_task, M - m);
      float* tile = scratch<Scratch::OUT_TILE, float>(rows_per_task * WIDTH);
      uint32_t* memory = scratch<Scratch::RIGHT_PANEL, uint32_t>(PANEL_DEPTH * WIDTH);
      if (K == 0) std::fill_n(tile, rows * WIDTH, 0.0f);
      for (int64_t k = 0; k < K; k += PANEL_DEPTH) {
        const int64_t depth = std::min(PANEL_DEPTH, K - k);
        const uint32_t* right = get_panel(n, k, depth, memory);
        const uint32_t* from = left + m * row_stride + k * k_stride;
        int64_t r = 0;
        for (; r + G <= rows; r += G)
          multiply_block<BF16, G, V>(from + r * row_stride, row_stride, k_stride, right,
                                     tile + r * WIDTH, depth, k == 0);
        for (; r < rows; r++)
          multiply_block<BF16, 1, V>(from + r * row_stride, row_stride, k_stride, right,
                                     tile + r * WIDTH, depth, k == 0);
      }
      for (int64_t r = 0; r < rows; r++)
        write_row(m + r, n, std::min(WIDTH, N - n), tile + r * WIDTH);
    }
}

// The columns of a panel of a right factor with N columns.
constexpr int64_t panel_width(int64_t N) { return N <= LANES ? LANES : BLOCK_VECTORS * LANES; }

// blocked_product with the block size that fits panel_width(N).
template <bool BF16, typename... Args>
void product(const uint32_t* left, int64_t row_stride, int64_t k_stride, int64_t M, int64_t N,
             Args... args) {
  if (N <= LANES) {
    blocked_product<BF16, NARROW_BLOCK_ROWS, 1>(left, row_stride, k_stride, M, N, args...);
  } else {
    blocked_product<BF16, BLOCK_ROWS, BLOCK_VECTORS>(left, row_stride, k_stride, M, N, args...);
  }
}

// LANES units of a row of n floats, from unit k on; zeros after the last float.
template <bool BF16>
inline Words load_units(const float* row, int64_t k, int64_t n) {
  if (!BF16) return (Words)load(row + k, n - k);
  const int64_t left = n - 2 * k;
  return pack_bf16_pairs(load(row + 2 * k, left),
                         left > LANES ? load(row + 2 * k + LANES, left - LANES) : Floats{});
}

// Packs W (O, I) as the right factor of x W^T: panels of columns o, (ceil(O / width), K, width)
// units, with zeros after the last column.
template <bool BF16>
void pack_transposed(const float* weight, uint32_t* packed, int64_t O, int64_t I) {
  const int64_t width = panel_width(O), K = Format<BF16>::num_units(I);
#pragma omp parallel for collapse(2) schedule(static) if (O * K > MIN_PARALLEL)
  for (int64_t n = 0; n < O; n += width)
    for (int64_t k0 = 0; k0 < K; k0 += LANES)
      for (int64_t c = 0; c < width; c += LANES) {
        Floats square[LANES];
        for (int64_t o = 0; o < LANES; o++)
          square[o] =
              n + c + o < O ? (Floats)load_units<BF16>(weight + (n + c + o) * I, k0, I) : Floats{};
        transpose_square(square);
        for (int64_t k = k0; k < std::min(K, k0 + LANES); k++)
          *reinterpret_cast<FloatsInMemory*>(packed + n * K + k * width + c) = square[k - k0];
      }
}

// Packs W (O, I) as the right factor of grad W: panels of columns i, (ceil(I / width), K, width)
// units, with zeros after the last column.
template <bool BF16>
void pack(const float* weight, uint32_t* packed, int64_t O, int64_t I) {
  const int64_t width = panel_width(I), K = Format<BF16>::num_units(O);
  const auto words_at = [=](int64_t o, int64_t i) {
    return o < O && i < I ? (Words)load(weight + o * I + i, I - i) : Words{};
  };
#pragma omp parallel for collapse(2) schedule(static) if (O * I > MIN_PARALLEL)
  for (int64_t n = 0; n < I; n += width)
    for (int64_t k = 0; k < K; k++)
      for (int64_t c = 0; c < width; c += LANES) {
        const Words unit = BF16 ? round_to_bf16(words_at(2 * k, n + c)) >> 16 |
                                      (round_to_bf16(words_at(2 * k + 1, n + c)) & 0xffff0000u)
                                : words_at(k, n + c);
        *reinterpret_cast<WordsInMemory*>(packed + n * K + k * width + c) = unit;
      }
}

// Converts x (B, I) float32 to elements (B, padded_width(I)).
template <bool BF16>
void convert(const float* x, typename Format<BF16>::Element* to, int64_t B, int64_t I) {
  const int64_t width = Format<BF16>::padded_width(I);
#pragma omp parallel for schedule(static) if (B * I > MIN_PARALLEL)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t i = 0; i < I; i++) assign(to[b * width + i], x[b * I + i]);
    if (width > I) assign(to[b * width + I], 0);
  }
}

template <bool BF16>
void forward(int64_t num_layers, const int64_t* widths, int64_t B, const float* x,
             const float* const* weights, const float* const* biases, bool relu_last,
             typename Format<BF16>::Element* const* inputs, float* out) {
  using F = Format<BF16>;
  if (BF16) convert<BF16>(x, inputs[0], B, widths[0]);
  for (int64_t l = 0; l < num_layers; l++) {
    const int64_t I = widths[l], O = widths[l + 1], K = F::num_units(I);
    const int64_t width = panel_width(O), next_width = F::padded_width(O);
    uint32_t* packed = scratch<Scratch::PACKED_WEIGHT, uint32_t>((O + width) * K);
    pack_transposed<BF16>(weights[l], packed, O, I);
    const bool last = l == num_layers - 1, relu = relu_last || !last;
    float* bias = scratch<Scratch::PADDED_BIAS, float>(O + width);
    std::copy(biases[l], biases[l] + O, bias);
    auto* next_inputs = last ? nullptr : inputs[l + 1];
    const void* left = BF16 || l ? static_cast<const void*>(inputs[l]) : x;
    product<BF16>(
        static_cast<const uint32_t*>(left), K, 1, B, O, K, ROWS_PER_TASK,
        [=](int64_t n, int64_t k, int64_t, uint32_t*) { return packed + n * K + k * width; },
        [=](int64_t b, int64_t n, int64_t columns, const float* row) {
          for (int64_t o = 0; o < columns; o += LANES) {
            Floats y = load(row + o, LANES) + load(bias + n + o, LANES);
            if (relu) y = y < 0 ? Floats{} : y;  // NaN stays NaN
            if (last) {
              store(out + b * O + n + o, y, columns - o);
            } else {
              store(next_inputs + b * next_width + n + o, y, columns - o);
            }
          }
          if (!last && n + columns == O && next_width > O)
            assign(next_inputs[b * next_width + O], 0);
        });
  }
}

// sums (O) = the sums of the columns of x (B, O), whose rows have `width` elements. Each vector at
// row b and column o is replaced by transform(b, o, vector) before.
//
// A task sums some rows one after the other, which reads memory in order. The tasks do not depend
// on the number of threads, and neither do the sums.
template <typename Element, typename Transform>
void column_sums(const Element* x, float* sums, int64_t B, int64_t O, int64_t width,
                 Transform transform) {
  const int64_t num_tasks = (B + ROWS_PER_TASK - 1) / ROWS_PER_TASK, task_width = O + LANES;
  float* all_task_sums = scratch<Scratch::COLUMN_SUMS, float>(num_tasks * task_width);
#pragma omp parallel for schedule(static) if (B * O > MIN_PARALLEL)
  for (int64_t task = 0; task < num_tasks; task++) {
    float* task_sums = all_task_sums + task * task_width;
    std::fill_n(task_sums, task_width, 0.0f);
    const int64_t end = std::min(B, (task + 1) * ROWS_PER_TASK);
    for (int64_t b = task * ROWS_PER_TASK; b < end; b++)
      for (int64_t o = 0; o < O; o += LANES) {
        const Floats term = transform(b, o, load(x + b * width + o, O - o));
        store(task_sums + o, load(task_sums + o, LANES) + term, LANES);
      }
  }
  std::fill_n(sums, O, 0.0f);
  for (int64_t task = 0; task < num_tasks; task++)
    for (int64_t o = 0; o < O; o++) sums[o] += all_task_sums[task * task_width + o];
}

// Writes `columns` units of the product x^T y that sums over rows: unit k of rows of elements, from
// column n on. With bfloat16 a unit is made of rows 2 k and 2 k + 1. A row has `width` elements.
inline void pair_rows(const float* from, int64_t k, int64_t, int64_t width, int64_t n,
                      int64_t columns, uint32_t* to) {
  std::memcpy(to, from + k * width + n, columns * sizeof(float));
}
inline void pair_rows(const uint16_t* from, int64_t k, int64_t num_rows, int64_t width, int64_t n,
                      int64_t columns, uint32_t* to) {
  const uint16_t* first = from + 2 * k * width + n;
  const uint16_t* second = 2 * k + 1 < num_rows ? first + width : nullptr;
  for (int64_t c = 0; c < columns; c++)
    to[c] = first[c] | (second ? static_cast<uint32_t>(second[c]) << 16 : 0);
}

template <bool BF16>
void backward(int64_t num_layers, const int64_t* widths, int64_t B, const float* const* weights,
              bool relu_last, const typename Format<BF16>::Element* const* inputs, const float* out,
              const float* grad_out, float* const* weight_grads, float* const* bias_grads,
              float* grad_x) {
  using F = Format<BF16>;
  using Element = typename F::Element;
  const int64_t widest = F::padded_width(*std::max_element(widths, widths + num_layers + 1)) + 1;
  Element* grad = scratch<Scratch::GRAD, Element>(B * widest);
  Element* next_grad = scratch<Scratch::NEXT_GRAD, Element>(B * widest);
  const int64_t out_width = widths[num_layers], padded_out_width = F::padded_width(out_width);
#pragma omp parallel for schedule(static) if (B * out_width > MIN_PARALLEL)
  for (int64_t b = 0; b < B; b++) {
    for (int64_t o = 0; o < out_width; o++) {
      const bool blocked = relu_last && out[b * out_width + o] <= 0;
      assign(grad[b * padded_out_width + o], blocked ? 0 : grad_out[b * out_width + o]);
    }
    if (padded_out_width > out_width) assign(grad[b * padded_out_width + out_width], 0);
  }
  for (int64_t l = num_layers - 1; l >= 0; l--, std::swap(grad, next_grad)) {
    const int64_t I = widths[l], O = widths[l + 1], K = F::num_units(B);
    const int64_t padded_I = F::padded_width(I), padded_O = F::padded_width(O);
    const Element* x = inputs[l];
    column_sums(grad, bias_grads[l], B, O, padded_O, [](int64_t, int64_t, Floats x) { return x; });
    // the gradient of the weight (O, I) = grad^T x
    const uint32_t* left = reinterpret_cast<const uint32_t*>(grad);
    if (BF16) {
      uint32_t* paired = scratch<Scratch::PAIRED_GRAD, uint32_t>(K * padded_O);
#pragma omp parallel for schedule(static) if (B * O > MIN_PARALLEL)
      for (int64_t k = 0; k < K; k++)
        pair_rows(grad, k, B, padded_O, 0, padded_O, paired + k * padded_O);
      left = paired;
    }
    const int64_t width = panel_width(I);
    float* weight_grad = weight_grads[l];
    product<BF16>(
        left, 1, padded_O, O, I, K, std::max<int64_t>(ROWS_PER_TASK, (O + 1) / 2),
        [=](int64_t n, int64_t k, int64_t depth, uint32_t* memory) {
          const int64_t columns = std::min(width, I - n);
          for (int64_t d = 0; d < depth; d++) {
            pair_rows(x, k + d, B, padded_I, n, columns, memory + d * width);
            std::fill(memory + d * width + columns, memory + (d + 1) * width, 0);
          }
          return memory;
        },
        [=](int64_t o, int64_t n, int64_t columns, const float* row) {
          std::copy(row, row + columns, weight_grad + o * I + n);
        });
    if (l == 0 && !grad_x) break;
    // the gradient of the layer's input (B, I) = grad W, then back through the ReLU before the
    // layer
    const int64_t O_units = F::num_units(O);
    uint32_t* packed = scratch<Scratch::PACKED_WEIGHT, uint32_t>(O_units * (I + width));
    pack<BF16>(weights[l], packed, O, I);
    product<BF16>(
        reinterpret_cast<const uint32_t*>(grad), O_units, 1, B, I, O_units, ROWS_PER_TASK,
        [=](int64_t n, int64_t k, int64_t, uint32_t*) { return packed + n * O_units + k * width; },
        [=](int64_t b, int64_t n, int64_t columns, const float* row) {
          if (l == 0) {
            std::copy(row, row + columns, grad_x + b * I + n);
            return;
          }
          for (int64_t i = 0; i < columns; i += LANES) {
            const Floats activation = load(x + b * padded_I + n + i, columns - i);
            const Floats passed = activation <= 0 ? Floats{} : load(row + i, LANES);  // NaN passes
            store(next_grad + b * padded_I + n + i, passed, columns - i);
          }
          if (n + columns == I && padded_I > I) assign(next_grad[b * padded_I + I], 0);
        });
  }
}

}  // namespace

// Every function returns SUCCESS (-1); there is no other value.
extern "C" {

// The gradient of a ReLU in bfloat16, and the sums of its columns.
// grad: (B, O) bfloat16, updated: it becomes 0 where activations <= 0.
// activations: (B, O) bfloat16, what the ReLU returned; null if there is no ReLU, then grad stays.
// sums: (O) float32, written: the column sums of the updated grad.
int64_t relu_backward(uint16_t* grad, const uint16_t* activations, float* sums, int64_t B,
                      int64_t O) {
  column_sums(grad, sums, B, O, O, [=](int64_t b, int64_t o, Floats x) {
    if (!activations) return x;
    const Floats passed = load(activations + b * O + o, O - o) <= 0 ? Floats{} : x;
    store(grad + b * O + o, passed, O - o);
    return passed;
  });
  return SUCCESS;
}

// The forward pass of the stack.
// bf16: whether products and the values between layers are bfloat16. widths: (num_layers + 1).
// x: (B, widths[0]) float32. weights[l]: (widths[l + 1], widths[l]) float32.
// biases[l]: (widths[l + 1]) float32. relu_last: whether a ReLU follows the last layer.
// inputs[l]: (B, widths[l]) float32, or (B, widths[l] padded to an even number) bfloat16: the input
// of
//   each layer, written for the backward pass, except that without bf16 inputs[0] must be x itself.
// out: (B, widths[num_layers]) float32, written.
int64_t linear_stack_forward(int64_t bf16, int64_t num_layers, const int64_t* widths, int64_t B,
                             const float* x, const float* const* weights,
                             const float* const* biases, int64_t relu_last, void* const* inputs,
                             float* out) {
  if (bf16) {
    forward<true>(num_layers, widths, B, x, weights, biases, relu_last,
                  reinterpret_cast<uint16_t* const*>(inputs), out);
  } else {
    forward<false>(num_layers, widths, B, x, weights, biases, relu_last,
                   reinterpret_cast<float* const*>(inputs), out);
  }
  return SUCCESS;
}

// The backward pass of the stack. Arguments that linear_stack_forward has too mean the same here.
// out: what the forward pass wrote. grad_out: (B, widths[num_layers]) float32, the gradient of out.
// weight_grads[l], bias_grads[l]: float32 with the shapes of weights[l] and biases[l], written.
// grad_x: (B, widths[0]) float32, written; null if it is not needed.
int64_t linear_stack_backward(int64_t bf16, int64_t num_layers, const int64_t* widths, int64_t B,
                              const float* const* weights, int64_t relu_last,
                              const void* const* inputs, const float* out, const float* grad_out,
                              float* const* weight_grads, float* const* bias_grads, float* grad_x) {
  if (bf16) {
    backward<true>(num_layers, widths, B, weights, relu_last,
                   reinterpret_cast<const uint16_t* const*>(inputs), out, grad_out, weight_grads,
                   bias_grads, grad_x);
  } else {
    backward<false>(num_layers, widths, B, weights, relu_last,
                    reinterpret_cast<const float* const*>(inputs), out, grad_out, weight_grads,
                    bias_grads, grad_x);
  }
  return SUCCESS;
}

}  // extern "C"
