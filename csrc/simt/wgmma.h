// wgmma of the simulator.
//
// A warp computes its own 16 rows: another warp of its warpgroup changes nothing in them. It reads all of A, as far as
// order is concerned. The sums of a product are
// computed when it is issued and kept aside; the lanes' registers hold NaN until the wait that delivers them. At that
// wait the operands are looked at again: what has changed meanwhile a GPU might have read.
#pragma once

#include <memory>

#include "../common/wgmma.cuh"
#include "runtime.h"

namespace mvk {

namespace simt {

// The cores of an operand in shared memory, in bytes: two of k for each eight rows or columns.
struct WgmmaMatrix {
  const char* region;
  int byte_begin, byte_count;  // of the region
  int begin, outer_step, depth_step;
  int outers;  // cores along the rows or columns
};

// All of A or B.
template <class T, bool kTransposed>
WgmmaMatrix wgmma_matrix(const MatrixInShared<T, kTransposed>& matrix, int outers) {
  return {matrix.region.name(),
          matrix.region.byte_begin(),
          matrix.region.byte_count(),
          2 * matrix.begin,
          2 * matrix.outer_step,
          2 * matrix.depth_step,
          outers};
}

// A product that a warp has issued. The sums' values lie in rows of `columns` floats.
struct WgmmaProduct {
  Where where;
  WgmmaMatrix b;
  std::vector<std::uint16_t> b_cores;  // as they were when it was issued
  bool a_in_shared = false;
  WgmmaMatrix a{};
  std::vector<std::uint16_t> a_cores;
  const std::uint32_t* a_registers[kWarpSize] = {};  // else
  std::uint32_t a_words[kWarpSize][4] = {};
};

// All lanes' sums, and what the products on the way have made of them: 16 rows.
struct WgmmaSums {
  FragmentC* lanes[kWarpSize];
  int columns;
  std::vector<float> values;
};

// The numbers of an operand's cores: [outer][k / 8][8][8].
std::vector<std::uint16_t> read_wgmma_matrix(const WgmmaMatrix& matrix, Where where);
// Checks that products may be issued here, and takes the sums of the running warp out of its registers.
WgmmaSums& take_wgmma_sums(FragmentC* const* lanes, int tiles, bool accumulate, Where where);
void add_wgmma_product(WgmmaSums& sums, std::unique_ptr<WgmmaProduct> product);
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);

template <class T>
float to_float(std::uint16_t bits) {
  return low(Pair<T>{bits});
}

// Either `a` or `a_matrix`.
template <int kTiles, class T, bool kTransposed>
void wgmma(FragmentC* sums, const FragmentA<T>* a, const MatrixInShared<T>* a_matrix,
           const MatrixInShared<T, kTransposed>& b, bool accumulate, Where where) {
  constexpr int kColumns = 8 * kTiles;
  struct Argument {
    FragmentC* sums;
    const FragmentA<T>* a;
  };
  Argument own{sums, a};
  if (!gather_warp("wgmma", &own, where)) return;
  FragmentC* lanes[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = static_cast<Argument*>(warp_arguments()[lane])->sums;
  WgmmaSums& into = take_wgmma_sums(lanes, kTiles, accumulate, where);
  auto product = std::make_unique<WgmmaProduct>();
  product->where = where;
  product->b = wgmma_matrix(b, kTiles);
  product->b_cores = read_wgmma_matrix(product->b, where);
  float right[16][kColumns];
  for (int n = 0; n < kColumns; ++n) {
    for (int k = 0; k < 16; ++k) {
      const int inside = kTransposed ? k % 8 * 8 + n % 8 : n % 8 * 8 + k % 8;
      right[k][n] = to_float<T>(product->b_cores[static_cast<std::size_t>((n / 8 * 2 + k / 8) * 64 + inside)]);
    }
  }
  float left[16][16];
  if (a_matrix != nullptr) {
    const int warp_in_group = current.thread / kWarpSize % 4;
    product->a_in_shared = true;
    product->a = wgmma_matrix(*a_matrix, 8);  // all 64 rows have to be there: nothing says who reads which
    product->a_cores = read_wgmma_matrix(product->a, where);
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        const int place = ((2 * warp_in_group + row / 8) * 2 + k / 8) * 64 + row % 8 * 8 + k % 8;
        left[row][k] = to_float<T>(product->a_cores[static_cast<std::size_t>(place)]);
      }
    }
  } else {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const Pair<T>* reg = static_cast<Argument*>(warp_arguments()[lane])->a->reg;
      product->a_registers[lane] = &reg[0].bits;
      for (int i = 0; i < 4; ++i) {
        product->a_words[lane][i] = reg[i].bits;
        const int row = lane / 4 + i % 2 * 8;
        const int k = lane % 4 * 2 + i / 2 * 8;
        left[row][k] = low(reg[i]);
        left[row][k + 1] = high(reg[i]);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    float* value = &into.values[static_cast<std::size_t>(row * kColumns)];
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < kColumns; ++n) value[n] += left[row][k] * right[k][n];
    }
  }
  add_wgmma_product(into, std::move(product));
  release_warp();
}

}  // namespace simt

MVK_DEVICE constexpr bool wgmma_exists() { return true; }

inline void wgmma_fence(simt::Where where = simt::Where::here()) { simt::wgmma_fence(where); }
inline void wgmma_commit(simt::Where where = simt::Where::here()) { simt::wgmma_commit(where); }
template <int kPending>
void wgmma_wait(simt::Where where = simt::Where::here()) {
  simt::wgmma_wait(kPending, where);
}
inline void publish_matrices() { simt::publish_matrices(); }

template <int kTiles, class T, bool kTransposed>
void wgmma(FragmentC (&sums)[kTiles], const MatrixInShared<T>& a, const MatrixInShared<T, kTransposed>& b,
           bool accumulate = true, simt::Where where = simt::Where::here()) {
  simt::wgmma<kTiles, T, kTransposed>(sums, nullptr, &a, b, accumulate, where);
}
template <int kTiles, class T, bool kTransposed>
void wgmma(FragmentC (&sums)[kTiles], const FragmentA<T>& a, const MatrixInShared<T, kTransposed>& b,
           bool accumulate = true, simt::Where where = simt::Where::here()) {
  simt::wgmma<kTiles, T, kTransposed>(sums, &a, nullptr, b, accumulate, where);
}

}  // namespace mvk
