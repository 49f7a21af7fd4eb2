// Hash tables of integers: the positions of values in a vocabulary, and the counts of values; see
// hash_tables.py.
//
// A table has 2^bits slots, at least twice as many as values. A value is in the first free slot
// from its hash on.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr int32_t FREE = -1;
constexpr int64_t AHEAD = 16;       // lookups that are in flight: a large table is not in the cache
constexpr int64_t FIRST_BITS = 12;  // of a table of counts, which grows
constexpr int64_t TOO_MANY = -1;

template <typename Value>
struct Slot {
  Value value;
  int32_t position;
};

// Fibonacci hashing: the upper bits of the product depend on all bits of the value.
template <typename Value>
uint64_t hash(Value value, int64_t bits) {
  return (static_cast<uint64_t>(value) * 0x9E3779B97F4A7C15) >> (64 - bits);
}

template <typename Value>
void build(const Value* values, int64_t n, int64_t bits, Slot<Value>* slots) {
  const uint64_t last = (1ull << bits) - 1;
  for (uint64_t s = 0; s <= last; s++) slots[s] = {0, FREE};
  for (int64_t i = 0; i < n; i++) {
    uint64_t s = hash(values[i], bits);
    while (slots[s].position != FREE) s = (s + 1) & last;
    slots[s] = {values[i], static_cast<int32_t>(i)};
  }
}

template <typename Value>
void look_up(const Value* values, int64_t n, int64_t bits, const Slot<Value>* slots,
             int64_t num_known, int64_t first_id, int64_t unseen_id, int32_t* ids) {
  const uint64_t last = (1ull << bits) - 1;
  for (int64_t start = 0; start < n; start += AHEAD) {
    const int64_t size = std::min(AHEAD, n - start);
    uint64_t hashes[AHEAD];
    for (int64_t i = 0; i < size; i++) {
      hashes[i] = hash(values[start + i], bits);
      __builtin_prefetch(slots + hashes[i]);
    }
    for (int64_t i = 0; i < size; i++) {
      const Value value = values[start + i];
      uint64_t s = hashes[i];
      while (slots[s].position != FREE && slots[s].value != value) s = (s + 1) & last;
      const int64_t position = slots[s].position;
      const bool is_known = position != FREE && position < num_known;
      ids[start + i] = static_cast<int32_t>(is_known ? first_id + position : unseen_id);
    }
  }
}

template <typename Value>
struct Count {
  Value value;
  uint32_t rows;  // 0: the slot is free
};

template <typename Value>
class Counts {
 public:
  Counts() : slots_(1ull << FIRST_BITS) {}

  int64_t num_values() const { return num_values_; }
  const std::vector<Count<Value>>& slots() const { return slots_; }
  uint64_t slot_of(Value value) const { return hash(value, bits_); }
  void prefetch(uint64_t s) const { __builtin_prefetch(slots_.data() + s); }

  void add(Value value, uint32_t rows, uint64_t s) {
    const uint64_t last = slots_.size() - 1;
    while (slots_[s].rows && slots_[s].value != value) s = (s + 1) & last;
    if (!slots_[s].rows) num_values_++;
    slots_[s].value = value;
    slots_[s].rows += rows;
  }

  // Doubles the table until another `num_new` values leave half of it free.
  void make_room(int64_t num_new) {
    while (2 * (num_values_ + num_new) > static_cast<int64_t>(slots_.size())) {
      std::vector<Count<Value>> old(2 * slots_.size());
      old.swap(slots_);
      bits_++;
      num_values_ = 0;
      for (const Count<Value>& count : old)
        if (count.rows) add(count.value, count.rows, slot_of(count.value));
    }
  }

 private:
  std::vector<Count<Value>> slots_;
  int64_t bits_ = FIRST_BITS, num_values_ = 0;
};

template <typename Value>
int64_t count(const Value* values, int64_t n, int64_t limit, Value* distinct, uint64_t* rows) {
  Counts<Value> counts;
  for (int64_t start = 0; start < n; start += AHEAD) {
    const int64_t size = std::min(AHEAD, n - start);
    counts.make_room(size);
    uint64_t slots[AHEAD];
    for (int64_t i = 0; i < size; i++) {
      slots[i] = counts.slot_of(values[start + i]);
      counts.prefetch(slots[i]);
    }
    for (int64_t i = 0; i < size; i++) counts.add(values[start + i], 1, slots[i]);
    if (counts.num_values() > limit) return TOO_MANY;
  }
  int64_t found = 0;
  for (const Count<Value>& count : counts.slots())
    if (count.rows) {
      distinct[found] = count.value;
      rows[found++] = count.rows;
    }
  return found;
}

}  // namespace

extern "C" {

// Writes the distinct values, in no order, and the number of rows of each. Returns the number of
// distinct values, or TOO_MANY if there are more than `limit`; the results have `limit` places.
int64_t count_values(int64_t value_bytes, const void* values, int64_t n, int64_t limit,
                     void* distinct, uint64_t* rows) {
  if (value_bytes == 4)
    return count(static_cast<const uint32_t*>(values), n, limit, static_cast<uint32_t*>(distinct),
                 rows);
  return count(static_cast<const uint64_t*>(values), n, limit, static_cast<uint64_t*>(distinct),
               rows);
}

int64_t slot_bytes(int64_t value_bytes) {
  return value_bytes == 4 ? sizeof(Slot<uint32_t>) : sizeof(Slot<uint64_t>);
}

int64_t build_table(int64_t value_bytes, const void* values, int64_t n, int64_t bits, void* slots) {
  if (value_bytes == 4)
    build(static_cast<const uint32_t*>(values), n, bits, static_cast<Slot<uint32_t>*>(slots));
  else
    build(static_cast<const uint64_t*>(values), n, bits, static_cast<Slot<uint64_t>*>(slots));
  return 0;
}

// Only the first `num_known` values of the vocabulary are known.
int64_t look_up_ids(int64_t value_bytes, const void* values, int64_t n, int64_t bits,
                    const void* slots, int64_t num_known, int64_t first_id, int64_t unseen_id,
                    int32_t* ids) {
  if (value_bytes == 4)
    look_up(static_cast<const uint32_t*>(values), n, bits,
            static_cast<const Slot<uint32_t>*>(slots), num_known, first_id, unseen_id, ids);
  else
    look_up(static_cast<const uint64_t*>(values), n, bits,
            static_cast<const Slot<uint64_t>*>(slots), num_known, first_id, unseen_id, ids);
  return 0;
}
}
