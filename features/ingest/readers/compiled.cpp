// The loops over a block of delimited text: the positions of its fields, and the numbers in them.
// They give what the NumPy functions of fields.py and digits.py give; see there for the technique
// and the meaning of arguments. All words are little-endian.
//
// Every parser returns whether it could read all fields. A block has R lines with `stride` fields
// each, of which C neighbouring ones are read. `before` and `ends` (R, stride) begin with the first
// of the C fields; `values` and `present` are (C, R).
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

constexpr int64_t WORD_BYTES = 8;
constexpr int64_t MAX_DECIMAL_DIGITS = 16;
constexpr uint64_t ALL_BITS = ~0ull, BYTES_OF_1 = ALL_BITS / 0xFF, HIGH_BITS = 0x80 * BYTES_OF_1;

// Returns the last `length` (0 to 8) bytes before `end`, XOR "0"; the other bytes are 0.
uint64_t load_digits(const uint8_t* end, int64_t length) {
  if (length == 0) return 0;
  uint64_t word;
  std::memcpy(&word, end - WORD_BYTES, WORD_BYTES);
  return (word ^ ('0' * BYTES_OF_1)) & (ALL_BITS << (8 * (WORD_BYTES - length)));
}

// Sets the high bit of each byte that is at least `limit` and below 0x80.
uint64_t high_bit_if_at_least(uint64_t limit, uint64_t word) {
  return word + (0x80 - limit) * BYTES_OF_1;
}

// Eight decimal digits, one per byte, as a number. Sets the high bit of a byte of `wrong` if it is
// not a digit.
uint64_t decimal_value(uint64_t digits, uint64_t& wrong) {
  wrong |= digits | high_bit_if_at_least(10, digits);
  const uint64_t pairs = (digits * 10 + (digits >> 8)) & 0x00FF00FF00FF00FF;
  const uint64_t fours = (pairs * 100 + (pairs >> 16)) & 0x0000FFFF0000FFFF;
  return (fours * 10000 + (fours >> 32)) & 0x00000000FFFFFFFF;
}

// Eight hex digits, one per byte, as a number.
uint32_t hex_value(uint64_t digits, uint64_t& wrong) {
  const uint64_t without_case = digits & (0xDF * BYTES_OF_1);
  const uint64_t is_letter =
      high_bit_if_at_least(0x51, without_case) & ~high_bit_if_at_least(0x57, without_case);
  wrong |= digits | (high_bit_if_at_least(10, digits) & ~is_letter);
  const uint64_t nibbles = (digits & (0x0F * BYTES_OF_1)) + ((digits >> 6) & BYTES_OF_1) * 9;
  const uint64_t pairs = (nibbles << 4 | nibbles >> 8) & 0x00FF00FF00FF00FF;
  const uint64_t fours = (pairs | pairs >> 8) & 0x0000FFFF0000FFFF;
  return __builtin_bswap32(static_cast<uint32_t>(fours | fours >> 16));
}

// Calls parse(field, end, length, c * R + r) for each field, until it returns false.
template <typename Parse>
int64_t for_each_field(const uint8_t* data, const int64_t* before, const int64_t* ends, int64_t R,
                       int64_t stride, int64_t C, Parse parse) {
  for (int64_t r = 0; r < R; r++)
    for (int64_t c = 0; c < C; c++) {
      const int64_t first = before[r * stride + c] + 1, end = ends[r * stride + c];
      if (!parse(data + first, data + end, end - first, c * R + r)) return 0;
    }
  return 1;
}

}  // namespace

extern "C" {

// Finds the bytes from `start` on that are `separator` or LF, and writes their positions.
// Returns their number; more than `capacity` of them are not written.
int64_t find_delimiters(const uint8_t* data, int64_t start, int64_t size, int64_t separator,
                        int64_t* positions, int64_t capacity) {
  int64_t found = 0, at = start;
#if defined(__SSE2__)
  const __m128i separators = _mm_set1_epi8(static_cast<char>(separator));
  const __m128i line_ends = _mm_set1_epi8('\n');
  for (; at + 16 <= size; at += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at));
    const __m128i hits =
        _mm_or_si128(_mm_cmpeq_epi8(bytes, separators), _mm_cmpeq_epi8(bytes, line_ends));
    unsigned bits = static_cast<unsigned>(_mm_movemask_epi8(hits));
    if (found + 16 > capacity) break;  // the loop below checks each one
    for (; bits; bits &= bits - 1) positions[found++] = at + __builtin_ctz(bits);
  }
#endif
  for (; at < size; at++)
    if (data[at] == separator || data[at] == '\n') {
      if (found < capacity) positions[found] = at;
      found++;
    }
  return found;
}

int64_t parse_labels(const uint8_t* data, const int64_t* before, const int64_t* ends, int64_t R,
                     int64_t stride, int64_t C, uint8_t* values, uint8_t* present) {
  return for_each_field(data, before, ends, R, stride, C,
                        [&](const uint8_t* field, const uint8_t*, int64_t length, int64_t at) {
                          values[at] = static_cast<uint8_t>(field[0] - '0');
                          present[at] = 1;
                          return length == 1 && values[at] <= 1;
                        });
}

int64_t parse_hex32(const uint8_t* data, const int64_t* before, const int64_t* ends, int64_t R,
                    int64_t stride, int64_t C, uint32_t* values, uint8_t* present) {
  uint64_t wrong = 0;
  const int64_t fit =
      for_each_field(data, before, ends, R, stride, C,
                     [&](const uint8_t*, const uint8_t* end, int64_t length, int64_t at) {
                       if (length > WORD_BYTES) return false;
                       values[at] = hex_value(load_digits(end, length), wrong);
                       present[at] = length > 0;
                       return true;
                     });
  return fit && !(wrong & HIGH_BITS);
}

int64_t parse_integers(const uint8_t* data, const int64_t* before, const int64_t* ends, int64_t R,
                       int64_t stride, int64_t C, int64_t* values, uint8_t* present) {
  uint64_t wrong = 0;
  const int64_t fit = for_each_field(
      data, before, ends, R, stride, C,
      [&](const uint8_t* field, const uint8_t* end, int64_t length, int64_t at) {
        const bool negative = length > 0 && field[0] == '-';
        const int64_t digits = length - negative;
        if (digits > MAX_DECIMAL_DIGITS || (negative && digits == 0)) return false;
        const int64_t low_digits = digits < WORD_BYTES ? digits : WORD_BYTES;
        uint64_t value = decimal_value(load_digits(end, low_digits), wrong);
        if (digits > WORD_BYTES)
          value +=
              100000000 * decimal_value(load_digits(end - WORD_BYTES, digits - WORD_BYTES), wrong);
        values[at] = negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
        present[at] = length > 0;
        return true;
      });
  return fit && !(wrong & HIGH_BITS);
}
}
