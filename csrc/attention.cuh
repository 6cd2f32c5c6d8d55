// softmax(Q·Kᵀ)·V of one head for the rows of a warp, over keys in shared memory, in steps of 32 keys.
//
//   Q       A fragments in registers; with scale · log2 e in them, scores are exponents of 2
//   K, V    one row a key: [K, 8·kHeadTiles channels | V, the same], pitch an odd number of 16-byte units
//   scores  C fragments; their exponentials, rounded, are the A fragments of P·V
//
// Online softmax (Milakov and Gimelshein, arXiv 1805.02867) in float32, but with a reference that follows the running
// maximum only where a row outgrows it by 2^kMargin: exponentials are then at most 2^kMargin, which 16 bits hold as
// exactly as those of at most 1, and all other steps need neither the maximum over the quad nor a correction of the
// sums. Whether a row's reference moves depends on that row alone. A row's scores lie with the four lanes of a quad;
// sums of weights are put together only at the end.
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

// The softmax of kRowTiles tiles of rows over keys that come step by step, and what it does to the sums of P · V.
template <int kRowTiles>
struct OnlineSoftmax {
  static constexpr float kMargin = 8.0f;  // in exponents of 2

  float scale;                    // of the scores, positive; 1 where it is in Q
  float reference[kRowTiles][2];  // exponent of 2 that a row's exponentials are relative to
  float weight[kRowTiles][2];     // this lane's part of the sum of exponentials

  MVK_DEVICE void start(float score_scale) {
    scale = score_scale;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        reference[m][half] = kLowest;
        weight[m][half] = 0.0f;
      }
    }
  }

  // The exponentials of the scores of a step, as A fragments. Sums that the steps before have made are corrected where
  // a reference moves. has_group(m, group): whether row tile m attends to this group of 16 keys.
  template <class T, int kKeyTiles, int kValueTiles, class HasGroup>
  MVK_DEVICE void step(FragmentA<T> (&exponentials)[kRowTiles][kKeyTiles / 2],
                       FragmentC (&sums)[kRowTiles][kValueTiles], const FragmentC (&scores)[kRowTiles][kKeyTiles],
                       const HasGroup& has_group) {
    float largest[kRowTiles][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[m][half] = max_of(scores[m][0].value[2 * half], scores[m][0].value[2 * half + 1]);
#pragma unroll
        for (int n = 1; n < kKeyTiles; ++n) {
          largest[m][half] =
              max_of(largest[m][half], max_of(scores[m][n].value[2 * half], scores[m][n].value[2 * half + 1]));
        }
        outgrown = outgrown || outgrows(largest[m][half], m, half);
      }
    }
    if (any_lane(outgrown)) raise_references(sums, largest);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int group = 0; group < kKeyTiles / 2; ++group) {
        exponentials[m][group] = FragmentA<T>{};
        if (!has_group(m, group)) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // register i: row half i % 2, keys 8·(i / 2) + 2t and the next
          const FragmentC& from = scores[m][2 * group + i / 2];
          const float offset = -reference[m][i % 2];
          const float first = exp2_approx(multiply_add(from.value[2 * (i % 2)], scale, offset));
          const float second = exp2_approx(multiply_add(from.value[2 * (i % 2) + 1], scale, offset));
          weight[m][i % 2] += first + second;
          exponentials[m][group].reg[i] = make_pair<T>(first, second);
        }
      }
    }
  }

  // The weighted means, rounded: A fragments.
  template <class T, int kValueTiles>
  MVK_DEVICE RowFragments<T, kRowTiles, kValueTiles> means(const FragmentC (&sums)[kRowTiles][kValueTiles]) const {
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
  // Before the first score. Not −∞: of masked scores alone that would make a NaN.
  static constexpr float kLowest = -3.0e38f;

  MVK_DEVICE bool outgrows(float score, int m, int half) const {
    return multiply_add(score, scale, -reference[m][half]) > kMargin;
  }

  // The reference of each row that has outgrown its own becomes the row's largest score so far.
  template <int kValueTiles>
  MVK_DEVICE void raise_references(FragmentC (&sums)[kRowTiles][kValueTiles], const float (&largest)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float row_largest = max_of(largest[m][half], shuffle_xor(largest[m][half], 1));
        row_largest = max_of(row_largest, shuffle_xor(row_largest, 2));
        const float raised = row_largest * scale;
        const bool outgrown = outgrows(row_largest, m, half);
        const float correction = exp2_approx(reference[m][half] - raised);
        if (!outgrown) continue;
        reference[m][half] = raised;
        weight[m][half] *= correction;
#pragma unroll
        for (int j = 0; j < kValueTiles; ++j) {
          sums[m][j].value[2 * half] *= correction;
          sums[m][j].value[2 * half + 1] *= correction;
        }
      }
    }
  }
};

// Of the head's kHeadTiles tiles of V, kValueTiles from first_value_tile on: wide heads take several passes.
template <class T, int kRowTiles, int kHeadTiles, int kValueTiles>
struct Attention {
  int first_value_tile;
  FragmentC sums[kRowTiles][kValueTiles];
  OnlineSoftmax<kRowTiles> softmax;

  MVK_DEVICE void start(int value_tile, float score_scale) {
    first_value_tile = value_tile;
    softmax.start(score_scale);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kValueTiles; ++j) sums[m][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
  }

  // All keys of the ranges; region_rows is the number of rows in `keys_values`, a multiple of 16.
  MVK_DEVICE void attend(const RowFragments<T, kRowTiles, kHeadTiles>& queries, Shared<T> keys_values, int region_rows,
                         const KeyRange (&ranges)[kRowTiles]) {
    int begin = ranges[0].begin;
    int end = begin + ranges[0].count;
    int whole_end = end;  // [begin, whole_end): keys of all row tiles
#pragma unroll
    for (int m = 1; m < kRowTiles; ++m) {
      const int range_end = ranges[m].begin + ranges[m].count;
      whole_end = ranges[m].begin != begin ? 0 : range_end < whole_end ? range_end : whole_end;
      begin = ranges[m].begin < begin ? ranges[m].begin : begin;
      end = range_end > end ? range_end : end;
    }
#pragma unroll 1
    for (int key = begin; key < end; key += kKeyStep) {
      // Of a last half step the second 16 keys are the first ones again, and masked.
      const int second_group = key + 16 < region_rows ? 16 : 0;
      FragmentC scores[kRowTiles][kKeyStep / 8];
      multiply_keys(scores, queries, keys_values, key, second_group);
      FragmentA<T> exponentials[kRowTiles][kKeyStep / 16];
      // Most steps are whole: one straight line of code for all row tiles, whose latencies hide each other.
      if (key + kKeyStep <= whole_end) {
        const auto all = [](int, int) { return true; };
        softmax.step(exponentials, sums, scores, all);
        multiply_values(exponentials, keys_values, key, second_group, all);
      } else {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) mask(scores[m], key, ranges[m]);
        const auto has_group = [&](int m, int group) { return ranges[m].has_group(key + 16 * group); };
        softmax.step(exponentials, sums, scores, has_group);
        multiply_values(exponentials, keys_values, key, second_group, has_group);
      }
    }
  }

  // The weighted means, rounded: A fragments.
  MVK_DEVICE RowFragments<T, kRowTiles, kValueTiles> finish() const { return softmax.template means<T>(sums); }

 private:
  static constexpr float kInfinity = __builtin_huge_valf();

  MVK_DEVICE static void multiply_keys(FragmentC (&scores)[kRowTiles][kKeyStep / 8],
                                       const RowFragments<T, kRowTiles, kHeadTiles>& queries, Shared<T> keys_values,
                                       int key, int second_group) {
    constexpr int kPitch = key_pitch(kHeadTiles);
    const int lane = lane_index();
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) scores[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
    // 16 keys × 16 channels a load, in the order that leaves the two registers of a B fragment side by side:
    // matrices are keys 0 … 7 with channels 0 … 7, the same with channels 8 … 15, then keys 8 … 15.
    const int row = (key + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kHeadTiles / 2; ++step) {
#pragma unroll
      for (int group = 0; group < kKeyStep / 16; ++group) {
        Pair<T> keys[4];
        load_matrix_x4(keys, keys_values, row + group * second_group * kPitch + 16 * step);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            mma_m16n8k16(scores[m][2 * group + n], queries.fragment[m][step],
                         FragmentB<T>{{keys[2 * n], keys[2 * n + 1]}});
          }
        }
      }
    }
    if constexpr (kHeadTiles % 2 != 0) {
      Pair<T> rest[4];  // eight channels of four groups of eight keys
      load_matrix_x4(rest, keys_values, key_row(key, second_group) * kPitch + 8 * (kHeadTiles - 1));
#pragma unroll
      for (int n = 0; n < kKeyStep / 8; ++n) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k8(scores[m][n], queries.fragment[m][kHeadTiles / 2], FragmentB<T>{{rest[n], {}}});
        }
      }
    }
  }

  // The key of a step whose row this lane addresses where all 32 are loaded at once.
  MVK_DEVICE static int key_row(int key, int second_group) {
    const int lane = lane_index();
    return key + lane % 16 + lane / 16 * second_group;
  }

  MVK_DEVICE static void mask(FragmentC (&scores)[kKeyStep / 8], int key, const KeyRange& range) {
    const int t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < kKeyStep / 2; ++i) {
      const int own_key = key + i / 4 * 8 + 2 * t + i % 2;
      if (own_key < range.begin || own_key >= range.begin + range.count) scores[i / 4].value[i % 4] = -kInfinity;
    }
  }

  template <class HasGroup>
  MVK_DEVICE void multiply_values(const FragmentA<T> (&exponentials)[kRowTiles][kKeyStep / 16], Shared<T> keys_values,
                                  int key, int second_group, const HasGroup& has_group) {
    const int row = key_row(key, second_group) * key_pitch(kHeadTiles);
#pragma unroll
    for (int j = 0; j < kValueTiles; ++j) {
      Pair<T> values[4];  // channels 8j … 8j + 7 of four groups of eight keys, keys along k
      load_matrix_x4_transposed(values, keys_values, row + 8 * (kHeadTiles + first_value_tile + j));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          if (has_group(m, group)) {
            mma_m16n8k16(sums[m][j], exponentials[m][group], FragmentB<T>{{values[2 * group], values[2 * group + 1]}});
          }
        }
      }
    }
  }
};

}  // namespace mvk
