// Matrix products of rows that stay in a warp's registers with packed weights in shared memory.
//
// A warp owns kRowTiles tiles of 16 rows. Rows are kept as A fragments, in 16 bits, two 8-channel tiles to a fragment;
// sums are C fragments. Because a C fragment of two neighbouring 8-column tiles is, rounded, the A fragment of the 16
// columns, one product's result is the next one's operand without a shuffle.
//
// Two shapes of weights, both of B fragments in the order of lanes (mobilevit_kernels/native/fragments.py):
//   panel  all K rows × 16 columns: [k-step of 16][lane][4 words], then [lane][2 words] for a last k-step of 8;
//          or × 8 columns: [k-step of 16][lane][2 words];
//          or × 4 columns: the same for lanes 0 … 15 alone, whose columns these are
//   slab   16 rows × all N columns: [pair of 8-column tiles][lane][4 words], then [lane][2 words] for a last tile alone
#pragma once

#include "math.cuh"
#include "mma.cuh"
#include "warp.cuh"

namespace mvk {

// Elements of a panel's B fragments for 8·tiles rows, and of a slab's for 8·tiles columns.
MVK_HOST_DEVICE constexpr int panel_elements(int tiles, int columns = 16) { return tiles * columns * 8; }
MVK_HOST_DEVICE constexpr int slab_elements(int tiles) { return tiles * 128; }

// Rows of a warp, 8·kTiles channels each, as A operands.
template <class T, int kRowTiles, int kTiles>
struct RowFragments {
  FragmentA<T> fragment[kRowTiles][(kTiles + 1) / 2];

  // Tile j of row tile m: half 0 is row g, half 1 row g + 8, channels 8j + 2t and the next.
  MVK_DEVICE Pair<T>& at(int m, int tile, int half) { return fragment[m][tile / 2].reg[tile % 2 * 2 + half]; }
  MVK_DEVICE Pair<T> at(int m, int tile, int half) const { return fragment[m][tile / 2].reg[tile % 2 * 2 + half]; }
  MVK_DEVICE void round(int m, int tile, const FragmentC& sums) {
    at(m, tile, 0) = make_pair<T>(sums.value[0], sums.value[1]);
    at(m, tile, 1) = make_pair<T>(sums.value[2], sums.value[3]);
  }
};

template <int kRowTiles, int kCount>
MVK_DEVICE void add_sums(FragmentC (&sums)[kRowTiles][kCount], const FragmentC (&more)[kRowTiles][kCount]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][j].value[i] += more[m][j].value[i];
    }
  }
}

// sums[m][j] += rows · panel for its kColumns columns, with 8·kTiles channels a row; fragment_of(m, step) is the A
// fragment of a k-step.
//
// One tile of wide rows is two chains of dependent products, each waiting for the one before it: there every second
// k-step adds to sums of its own (at 19 to 30 tiles; narrower rows come in two tiles too, whose sums have to be the
// same bits, and 32 leave no registers).
template <int kTiles, int kColumns, int kRowTiles, class T, class FragmentOf>
MVK_DEVICE void multiply_panel(FragmentC (&sums)[kRowTiles][2], Shared<T> panel, const FragmentOf& fragment_of) {
  static_assert(kColumns == 16 || ((kColumns == 8 || kColumns == 4) && kTiles % 2 == 0),
                "a panel of fewer than 16 columns has whole k-steps only");
  using Words = typename Select<kColumns == 16, Words4, Words2>::Type;
  constexpr int kColumnTiles = ceil_div(kColumns, 8);
  constexpr bool kTwoChains = kTiles > 18 && kTiles <= 30;
  const int lane = lane_index();
  FragmentC odd_steps[kRowTiles][2] = {};
#pragma unroll
  for (int step = 0; step < kTiles / 2; ++step) {
    Words words{};
    if (kColumns >= 8 || lane < 4 * kColumns) {
      words = panel.template load<Words>(panel_elements(2, kColumns) * step + lane * (kColumns == 16 ? 8 : 4));
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const FragmentA<T> a = fragment_of(m, step);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        FragmentC& to = kTwoChains && step % 2 != 0 ? odd_steps[m][j] : sums[m][j];
        mma_m16n8k16(to, a, FragmentB<T>{{{words.word[2 * j]}, {words.word[2 * j + 1]}}});
      }
    }
  }
  if constexpr (kTiles % 2 != 0) {
    const Words2 words = panel.template load<Words2>(kTiles / 2 * 256 + lane * 4);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const FragmentA<T> a = fragment_of(m, kTiles / 2);
      mma_m16n8k8(sums[m][0], a, FragmentB<T>{{{words.word[0]}, {}}});
      mma_m16n8k8(sums[m][1], a, FragmentB<T>{{{words.word[1]}, {}}});
    }
  }
  if constexpr (kTwoChains) add_sums(sums, odd_steps);
}

// sums[m][tile] += a[m] · slab for all kTiles 8-column tiles.
template <int kRowTiles, int kTiles, class T>
MVK_DEVICE void multiply_slab(FragmentC (&sums)[kRowTiles][kTiles], const FragmentA<T> (&a)[kRowTiles],
                              Shared<T> slab) {
  const int lane = lane_index();
#pragma unroll
  for (int tile = 0; tile + 1 < kTiles; tile += 2) {
    const Words4 words = slab.template load<Words4>((tile / 2 * 32 + lane) * 8);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      mma_m16n8k16(sums[m][tile], a[m], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
      mma_m16n8k16(sums[m][tile + 1], a[m], FragmentB<T>{{{words.word[2]}, {words.word[3]}}});
    }
  }
  if constexpr (kTiles % 2 != 0) {
    const Words2 words = slab.template load<Words2>(kTiles / 2 * 256 + lane * 4);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      mma_m16n8k16(sums[m][kTiles - 1], a[m], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
    }
  }
}

// LayerNorm as a line: row · scale + shift, scale = 1/σ, shift = −μ/σ, for the two rows of each row tile.
template <int kRowTiles>
struct RowLines {
  float scale[kRowTiles][2];
  float shift[kRowTiles][2];
};

// The sum over a row: its channels lie with the four lanes of a quad.
MVK_DEVICE float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

// The line of one row, from mean and variance in two passes: value_of(tile, i) is this lane's channel i of two in each
// of kTiles tiles. kPadded: channels from `channels` on are padding and zero; else there are none.
template <bool kPadded, int kTiles, class ValueOf>
MVK_DEVICE void layer_norm_line(float& scale, float& shift, const ValueOf& value_of, int channels, float epsilon) {
  const float per_channel = 1.0f / static_cast<float>(channels);
  float sum = 0.0f;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) sum += value_of(tile, 0) + value_of(tile, 1);
  const float mean = quad_sum(sum) * per_channel;
  float squares = 0.0f;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (!kPadded || 8 * tile < channels) {
      const float first = value_of(tile, 0) - mean;
      const float second = value_of(tile, 1) - mean;
      squares += multiply_add(first, first, second * second);
    }
  }
  scale = rsqrt_approx(multiply_add(quad_sum(squares), per_channel, epsilon));
  shift = -mean * scale;
}

template <bool kPadded, class T, int kRowTiles, int kTiles>
MVK_DEVICE void layer_norm_lines(RowLines<kRowTiles>& lines, const RowFragments<T, kRowTiles, kTiles>& rows,
                                 int channels, float epsilon) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto value_of = [&](int tile, int i) {
        return i == 0 ? low(rows.at(m, tile, half)) : high(rows.at(m, tile, half));
      };
      layer_norm_line<kPadded, kTiles>(lines.scale[m][half], lines.shift[m][half], value_of, channels, epsilon);
    }
  }
}

// A panel behind a LayerNorm holds, after its fragments, the biases and then the sums of the weights of its columns
// (floats; 8 of each where it has 4 columns): with x̂ = scale·x + shift, x̂·W + b = scale·(x·W) + shift·Σₖ Wₖ + b. The
// product takes the rows as they are.
template <int kColumns>
struct PanelEnds {
  static constexpr int kTiles = ceil_div(kColumns, 8);
  Floats2 bias[kTiles];  // of this lane's two columns in each 8-column tile
  Floats2 column_sum[kTiles];

  template <class T>
  MVK_DEVICE PanelEnds(Shared<T> panel, int tiles) {
    const int first = panel_elements(tiles, kColumns) + lane_index() % 4 * 4;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      bias[j] = panel.template load<Floats2>(first + 16 * j);
      column_sum[j] = panel.template load<Floats2>(first + 16 * (kTiles + j));
    }
  }

  // line: scale of rows g and g + 8, then their shift.
  MVK_DEVICE void apply(FragmentC& sums, int j, const Floats4& line) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float offset = multiply_add(line.value[2 + i / 2], column_sum[j].value[i % 2], bias[j].value[i % 2]);
      sums.value[i] = multiply_add(sums.value[i], line.value[i / 2], offset);
    }
  }
};
// Elements of a panel of 16 columns with its ends.
MVK_HOST_DEVICE constexpr int norm_panel_elements(int tiles) { return panel_elements(tiles) + 64; }

}  // namespace mvk
