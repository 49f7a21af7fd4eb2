// Vectors of LANES lanes of 32 bits, as wide as a register of the target, and how they are loaded
// from and stored to memory as float32 or bfloat16.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// A block of BLOCK_ROWS x BLOCK_VECTORS sums of a matrix product stays in registers, with the
// factors.
#if defined(__AVX512F__)  // 32 registers of 512 bits
constexpr int64_t LANES = 16, BLOCK_ROWS = 6, BLOCK_VECTORS = 4;
#elif defined(__AVX2__)  // 16 registers of 256 bits
constexpr int64_t LANES = 8, BLOCK_ROWS = 6, BLOCK_VECTORS = 2;
#else                    // NEON: 32 registers of 128 bits
constexpr int64_t LANES = 4, BLOCK_ROWS = 6, BLOCK_VECTORS = 4;
#endif
constexpr int64_t NARROW_BLOCK_ROWS = 12;  // of a block that is one vector wide

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
// The same types for memory of any alignment that also holds other types.
typedef Floats FloatsInMemory __attribute__((aligned(4), may_alias));
typedef Words WordsInMemory __attribute__((aligned(4), may_alias));

// Rounds the bits of a float32, or of a vector of them, to the nearest bfloat16, ties to even. The
// result is in the upper 16 bits; the lower 16 bits have no meaning. A NaN stays NaN: the sum would
// carry some of them over to 0 or infinity.
template <typename T>
T round_to_bf16(T bits) {
  const T rounded = bits + 0x7fff + (bits >> 16 & 1);
  return (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x00400000 : rounded;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// Assigns a float to an element that is float32 or bfloat16.
inline void assign(float& to, float x) { to = x; }
inline void assign(uint16_t& to, float x) {
  to = static_cast<uint16_t>(round_to_bf16(bits_of(x)) >> 16);
}

// Stores the first n lanes, or all of them if n >= LANES.
inline void store(float* to, Floats x, int64_t n) {
  if (n >= LANES) {
    *reinterpret_cast<FloatsInMemory*>(to) = x;
  } else {
    std::memcpy(to, &x, n * sizeof(float));
  }
}
inline void store(uint16_t* to, Floats x, int64_t n) {
#ifdef __AVX512BF16__
  const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const Halves halves = __builtin_convertvector(round_to_bf16((Words)x) >> 16, Halves);
#endif
  if (n >= LANES) {
    std::memcpy(to, &halves, sizeof(halves));  // a constant size compiles to one instruction
  } else {
    std::memcpy(to, &halves, n * sizeof(uint16_t));
  }
}

// Loads n elements into the first lanes, or LANES elements if n >= LANES. The other lanes are zero.
inline Floats load(const float* from, int64_t n) {
  Floats x{};
  if (n >= LANES) return *reinterpret_cast<const FloatsInMemory*>(from);
  std::memcpy(&x, from, n * sizeof(float));
  return x;
}
inline Floats load(const uint16_t* from, int64_t n) {
  Halves halves{};
  if (n >= LANES) {
    std::memcpy(&halves, from, sizeof(halves));
  } else {
    std::memcpy(&halves, from, n * sizeof(uint16_t));
  }
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// Rounds 2 * LANES floats, LANES of each argument in order, to bfloat16 and puts two neighbours
// into each word.
inline Words pack_bf16_pairs(Floats first, Floats second) {
#ifdef __AVX512BF16__
  return (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  uint16_t both[2 * LANES];
  store(both, first, LANES);
  store(both + LANES, second, LANES);
  return *reinterpret_cast<const WordsInMemory*>(both);
#endif
}

// One step of the transposition of LANES x LANES: in each square of 2 * DISTANCE rows and lanes,
// swaps the two quarters off the diagonal.
template <int64_t DISTANCE>
inline void swap_quarters(Floats (&block)[LANES]) {
  Words low, high;
  for (uint32_t lane = 0; lane < LANES; lane++) {
    low[lane] = lane & DISTANCE ? lane - DISTANCE + LANES : lane;
    high[lane] = lane & DISTANCE ? lane + LANES : lane + DISTANCE;
  }
  for (int64_t r = 0; r < LANES; r++) {
    if (r & DISTANCE) continue;
    const Floats first = block[r], second = block[r + DISTANCE];
    block[r] = __builtin_shuffle(first, second, low);
    block[r + DISTANCE] = __builtin_shuffle(first, second, high);
  }
}

// Transposes a block of LANES rows of LANES floats in place.
inline void transpose_square(Floats (&block)[LANES]) {
  swap_quarters<1>(block);
  swap_quarters<2>(block);
  if constexpr (LANES > 4) swap_quarters<4>(block);
  if constexpr (LANES > 8) swap_quarters<8>(block);
}
