// softmax(Q·Kᵀ)·V of one head for the rows of a warp, over keys in shared memory, in steps of 32 keys.
//
//   Q       A fragments in registers; with scale · log2 e in them, scores are exponents of 2
//   K, V    one row a key: [K, 8·kHeadTiles channels | V, the same], pitch an odd number of 16-byte units
//   scores  C fragments; their exponentials, rounded, are the A fragments of P·V
//
// The running maximum and sum of a row (online softmax, Milakov and Gimelshein, arXiv 1805.02867) are float32. A row's
// scores lie with the four lanes of a quad; sums are put together only at the end.
//
// Sequences begin at multiples of 16 keys and rows, so that a tile of 16 rows and a group of 16 keys belong to one
// sequence each. A group of another sequence is skipped: whatever a neighbour holds, NaN too, leaves no trace.
#pragma once

#include "common/linear.cuh"

namespace mvk {

constexpr int kKeyStep = 32;

// The keys that a tile of 16 rows attends to: rows [begin, begin + count) of the region, begin a multiple of 16.
struct KeyRange {
  int begin;
  int count;

  // Whether the group of 16 keys from `key` on (a multiple of 16) holds any.
  MVK_DEVICE bool has_group(int key) const { return key >= begin && key < begin + count; }
};

// In elements: keys as an odd number of 16-byte units.
MVK_HOST_DEVICE constexpr int key_pitch(int head_tiles) { return (2 * head_tiles + 1) * 8; }

// Of the head's kHeadTiles tiles of V, kValueTiles from first_value_tile on: wide heads take several passes.
template <class T, int kRowTiles, int kHeadTiles, int kValueTiles>
struct Attention {
  int first_value_tile;
  float scale;  // of the scores, positive; 1 where it is in Q
  FragmentC sums[kRowTiles][kValueTiles];
  float maximum[kRowTiles][2];
  float weight[kRowTiles][2];  // this lane's part of the sum of exponentials

  MVK_DEVICE void start(int value_tile, float score_scale) {
    first_value_tile = value_tile;
    scale = score_scale;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kValueTiles; ++j) sums[m][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[m][half] = -kInfinity;
        weight[m][half] = 0.0f;
      }
    }
  }

  // All keys of the ranges; region_rows is the number of rows in `keys_values`, a multiple of 32.
  MVK_DEVICE void attend(const RowFragments<T, kRowTiles, kHeadTiles>& queries, Shared<T> keys_values, int region_rows,
                         const KeyRange (&ranges)[kRowTiles]) {
    int begin = ranges[0].begin;
    int end = begin + ranges[0].count;
#pragma unroll
    for (int m = 1; m < kRowTiles; ++m) {
      begin = ranges[m].begin < begin ? ranges[m].begin : begin;
      end = ranges[m].begin + ranges[m].count > end ? ranges[m].begin + ranges[m].count : end;
    }
#pragma unroll 1
    for (int key = begin; key < end; key += kKeyStep) {
      // Lane l addresses row l of the step. A last half step reads its keys twice and uses the first ones.
      const int lane_key = key + lane_index();
      const int lane_row = (lane_key < region_rows ? lane_key : lane_key - 16) * key_pitch(kHeadTiles);
      FragmentC scores[kRowTiles][kKeyStep / 8];
      multiply_keys(scores, queries, keys_values, lane_row);
      FragmentA<T> exponentials[kRowTiles][kKeyStep / 16];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) softmax_step(exponentials[m], scores[m], m, key, ranges[m]);
      multiply_values(exponentials, keys_values, lane_row, key, ranges);
    }
  }

  // The weighted means, rounded: A fragments.
  MVK_DEVICE RowFragments<T, kRowTiles, kValueTiles> finish() {
    RowFragments<T, kRowTiles, kValueTiles> means;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float inverse[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) inverse[half] = reciprocal_approx(quad_sum(weight[m][half]));
#pragma unroll
      for (int j = 0; j < kValueTiles; ++j) {
        FragmentC mean;
#pragma unroll
        for (int i = 0; i < 4; ++i) mean.value[i] = sums[m][j].value[i] * inverse[i / 2];
        means.round(m, j, mean);
      }
    }
    return means;
  }

 private:
  static constexpr float kInfinity = __builtin_huge_valf();

  MVK_DEVICE static void multiply_keys(FragmentC (&scores)[kRowTiles][kKeyStep / 8],
                                       const RowFragments<T, kRowTiles, kHeadTiles>& queries, Shared<T> keys_values,
                                       int lane_row) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) scores[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
#pragma unroll
    for (int step = 0; step < kHeadTiles / 2; ++step) {
      Pair<T> lower[4];  // channels 16·step … + 7 of four groups of eight keys
      Pair<T> upper[4];
      load_matrix_x4(lower, keys_values, lane_row + 16 * step);
      load_matrix_x4(upper, keys_values, lane_row + 16 * step + 8);
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16(scores[m][n], queries.fragment[m][step], FragmentB<T>{{lower[n], upper[n]}});
        }
      }
    }
    if constexpr (kHeadTiles % 2 != 0) {
      Pair<T> rest[4];
      load_matrix_x4(rest, keys_values, lane_row + 8 * (kHeadTiles - 1));
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k8(scores[m][n], queries.fragment[m][kHeadTiles / 2], FragmentB<T>{{rest[n], {}}});
        }
      }
    }
  }

  MVK_DEVICE void softmax_step(FragmentA<T> (&exponentials)[kKeyStep / 16], FragmentC (&scores)[kKeyStep / 8], int m,
                               int key, const KeyRange& range) {
    const int t = lane_index() % 4;
    const bool has_group[2] = {range.has_group(key), range.has_group(key + 16)};
#pragma unroll
    for (int group = 0; group < 2; ++group) exponentials[group] = FragmentA<T>{};
    if (!has_group[0] && !has_group[1]) return;
    if (key < range.begin || key + kKeyStep > range.begin + range.count) {
#pragma unroll
      for (int i = 0; i < kKeyStep / 2; ++i) {
        const int own_key = key + i / 4 * 8 + 2 * t + i % 2;
        if (own_key < range.begin || own_key >= range.begin + range.count) scores[i / 4].value[i % 4] = -kInfinity;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[m][half];
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) {
        largest = max_of(largest, max_of(scores[n].value[2 * half], scores[n].value[2 * half + 1]));
      }
      largest = max_of(largest, shuffle_xor(largest, 1));
      largest = max_of(largest, shuffle_xor(largest, 2));
      const float correction = exp2_approx((maximum[m][half] - largest) * scale);
      maximum[m][half] = largest;
      weight[m][half] *= correction;
#pragma unroll
      for (int j = 0; j < kValueTiles; ++j) {
        sums[m][j].value[2 * half] *= correction;
        sums[m][j].value[2 * half + 1] *= correction;
      }
    }
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      if (!has_group[group]) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // register i: row half i % 2, keys 8·(i / 2) + 2t and the next
        const FragmentC& from = scores[2 * group + i / 2];
        const float first = exp2_approx((from.value[2 * (i % 2)] - maximum[m][i % 2]) * scale);
        const float second = exp2_approx((from.value[2 * (i % 2) + 1] - maximum[m][i % 2]) * scale);
        weight[m][i % 2] += first + second;
        exponentials[group].reg[i] = make_pair<T>(first, second);
      }
    }
  }

  MVK_DEVICE void multiply_values(const FragmentA<T> (&exponentials)[kRowTiles][kKeyStep / 16], Shared<T> keys_values,
                                  int lane_row, int key, const KeyRange (&ranges)[kRowTiles]) {
#pragma unroll
    for (int j = 0; j < kValueTiles; ++j) {
      Pair<T> values[4];  // channels 8j … 8j + 7 of four groups of eight keys, keys along k
      load_matrix_x4_transposed(values, keys_values, lane_row + 8 * (kHeadTiles + first_value_tile + j));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          if (ranges[m].has_group(key + 16 * group)) {
            mma_m16n8k16(sums[m][j], exponentials[m][group], FragmentB<T>{{values[2 * group], values[2 * group + 1]}});
          }
        }
      }
    }
  }
};

}  // namespace mvk
