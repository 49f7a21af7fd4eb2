// Vectors of 16 lanes of 32 bits, and their way to and from memory as floats or bfloat16. The compiler splits them where the machine's
// registers are narrower.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef Floats FloatsInMemory __attribute__((aligned(4), may_alias));  // anywhere, as part of an array
typedef Words WordsInMemory __attribute__((aligned(4), may_alias));

// The bits of a float, or of many: to the nearest bfloat16, even if in doubt, in the upper half.
template <typename T>
T rounded(T bits) {
  return bits + 0x7fff + (bits >> 16 & 1);
}
inline uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline void put(float& to, float x) { to = x; }
inline void put(uint16_t& to, float x) { to = static_cast<uint16_t>(rounded(bits(x)) >> 16); }

// The first n lanes to and from memory.
inline void store(float* to, Floats x, int64_t n) {
  if (n >= LANES) *reinterpret_cast<FloatsInMemory*>(to) = x;
  else std::memcpy(to, &x, n * sizeof(float));
}
inline void store(uint16_t* to, Floats x, int64_t n) {
#ifdef __AVX512BF16__
  const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const Halves halves = __builtin_convertvector(rounded((Words)x) >> 16, Halves);
#endif
  if (n >= LANES) std::memcpy(to, &halves, sizeof(halves));  // of a size that is known: one instruction
  else std::memcpy(to, &halves, n * sizeof(uint16_t));
}
// The lanes of both as bfloat16, two and two of them in a word, those of the first in front.
inline Words pairs(Floats first, Floats second) {
#ifdef __AVX512BF16__
  return (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  uint16_t both[2 * LANES];
  store(both, first, LANES), store(both + LANES, second, LANES);
  return *reinterpret_cast<const WordsInMemory*>(both);
#endif
}
inline Floats load(const float* from, int64_t n) {
  Floats x{};
  if (n >= LANES) return *reinterpret_cast<const FloatsInMemory*>(from);
  std::memcpy(&x, from, n * sizeof(float));
  return x;
}
inline Floats load(const uint16_t* from, int64_t n) {
  Halves halves{};
  if (n >= LANES) std::memcpy(&halves, from, sizeof(halves));
  else std::memcpy(&halves, from, n * sizeof(uint16_t));
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

// Exchanges, in each square of 2 * DISTANCE lanes, the two corners off the diagonal: four such steps transpose LANES x LANES.
template <int64_t DISTANCE>
inline void swap_lanes(Floats (&block)[LANES]) {
  Words low, high;
  for (uint32_t l = 0; l < LANES; l++) {
    low[l] = l & DISTANCE ? l - DISTANCE + LANES : l;
    high[l] = l & DISTANCE ? l + LANES : l + DISTANCE;
  }
  for (int64_t r = 0; r < LANES; r++)
    if (!(r & DISTANCE)) {
      const Floats first = block[r], second = block[r + DISTANCE];
      block[r] = __builtin_shuffle(first, second, low);
      block[r + DISTANCE] = __builtin_shuffle(first, second, high);
    }
}

inline void transpose_square(Floats (&block)[LANES]) { swap_lanes<1>(block), swap_lanes<2>(block), swap_lanes<4>(block), swap_lanes<8>(block); }
