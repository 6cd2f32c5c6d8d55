// mma.sync and ldmatrix of the simulator, from the fragment layouts of the PTX ISA.
//
// Products are exact, sums are float32 in ascending k. A GPU adds in another order and truncates some low bits: results
// agree to float32 rounding, not bit for bit.
#pragma once

#include "../common/mma.cuh"
#include "runtime.h"

namespace mvk {

namespace simt {

template <class T, int kDepth>
struct MmaTiles {
  float a[16][kDepth];
  float b[kDepth][8];

  void set(int lane, const Pair<T>* a_reg, const Pair<T>* b_reg) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int half = 0; half < kDepth / 8; ++half) {
      for (int lower = 0; lower < 2; ++lower) {
        a[g + 8 * lower][8 * half + 2 * t] = low(a_reg[2 * half + lower]);
        a[g + 8 * lower][8 * half + 2 * t + 1] = high(a_reg[2 * half + lower]);
      }
      b[8 * half + 2 * t][g] = low(b_reg[half]);
      b[8 * half + 2 * t + 1][g] = high(b_reg[half]);
    }
  }

  void accumulate(float (&c)[16][8]) const {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < kDepth; ++k) {
        for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
    }
  }
};

template <class T>
struct MmaArgument {
  FragmentC* c;
  const FragmentA<T>* a;
  const FragmentB<T>* b;
};

template <class T, int kDepth>
void mma(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b, const char* primitive, Where where) {
  MmaArgument<T> own{&c, &a, &b};
  if (!gather_warp(primitive, &own, where)) return;
  void** lanes = warp_arguments();
  MmaTiles<T, kDepth> tiles;
  float sums[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* argument = static_cast<MmaArgument<T>*>(lanes[lane]);
    tiles.set(lane, argument->a->reg, argument->b->reg);
    for (int i = 0; i < 4; ++i) sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = argument->c->value[i];
  }
  tiles.accumulate(sums);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* argument = static_cast<MmaArgument<T>*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) argument->c->value[i] = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
  if (kDepth == 16) {
    ++counters().mma_m16n8k16;
  } else {
    ++counters().mma_m16n8k8;
  }
  release_warp();
}

template <class T, int kMatrices, bool kTransposed>
void load_matrix(Pair<T>** reg, const Shared<T>& region, int row_offset, const char* primitive, Where where) {
  struct Argument {
    Pair<T>** reg;
    const char* name;
    int byte_begin;
    int byte_count;
    int byte_offset;
  };
  Argument own{reg, region.name(), region.byte_begin(), region.byte_count(), row_offset * static_cast<int>(sizeof(T))};
  if (!gather_warp(primitive, &own, where)) return;
  void** lanes = warp_arguments();
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    std::uint16_t values[8][8];
    int addresses[8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * matrix + row;
      const auto* argument = static_cast<Argument*>(lanes[lane]);
      addresses[row] = argument->byte_begin + argument->byte_offset;
      std::memcpy(values[row],
                  matrix_row(argument->name, argument->byte_begin, argument->byte_count, argument->byte_offset, where),
                  16);
    }
    count_matrix_rows(addresses, 8);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4;
      const int t = lane % 4;
      const std::uint16_t first = kTransposed ? values[2 * t][g] : values[g][2 * t];
      const std::uint16_t second = kTransposed ? values[2 * t + 1][g] : values[g][2 * t + 1];
      static_cast<Argument*>(lanes[lane])->reg[matrix]->bits = first | static_cast<std::uint32_t>(second) << 16;
    }
  }
  release_warp();
}

}  // namespace simt

template <class T>
void mma_m16n8k16(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b, simt::Where where = simt::Where::here()) {
  simt::mma<T, 16>(c, a, b, "mma_m16n8k16", where);
}
template <class T>
void mma_m16n8k8(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b, simt::Where where = simt::Where::here()) {
  simt::mma<T, 8>(c, a, b, "mma_m16n8k8", where);
}
inline void mma_m16n8k16(FragmentCHalf& c, const FragmentA<Half>& a, const FragmentB<Half>& b,
                         simt::Where where = simt::Where::here()) {
  FragmentC wide{{low(c.reg[0]), high(c.reg[0]), low(c.reg[1]), high(c.reg[1])}};
  simt::mma<Half, 16>(wide, a, b, "mma_m16n8k16 with float16 accumulators", where);
  c.reg[0] = make_pair<Half>(wide.value[0], wide.value[1]);
  c.reg[1] = make_pair<Half>(wide.value[2], wide.value[3]);
}

template <class T>
void load_matrix_x4(Pair<T> (&reg)[4], Shared<T> region, int row_offset, simt::Where where = simt::Where::here()) {
  Pair<T>* targets[4] = {&reg[0], &reg[1], &reg[2], &reg[3]};
  simt::load_matrix<T, 4, false>(targets, region, row_offset, "load_matrix_x4", where);
}
template <class T>
void load_matrix_x4_transposed(Pair<T> (&reg)[4], Shared<T> region, int row_offset,
                               simt::Where where = simt::Where::here()) {
  Pair<T>* targets[4] = {&reg[0], &reg[1], &reg[2], &reg[3]};
  simt::load_matrix<T, 4, true>(targets, region, row_offset, "load_matrix_x4_transposed", where);
}
template <class T>
void load_matrix_x2(Pair<T>& first, Pair<T>& second, Shared<T> region, int row_offset,
                    simt::Where where = simt::Where::here()) {
  Pair<T>* targets[2] = {&first, &second};
  simt::load_matrix<T, 2, false>(targets, region, row_offset, "load_matrix_x2", where);
}

}  // namespace mvk
