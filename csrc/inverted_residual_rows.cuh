// Inverted residual, second kernel: warps slide down the image and keep the hidden tensor in registers.
//
//   x (B, H, W, C_in) NHWC → y (B, OH, OW, C_out) NHWC, dilation 1; the formula is that of inverted_residual.cuh
//
// A block is persistent: it copies all packed weights to shared memory once, and that is its only barrier. From then on
// every warp works alone. A warp owns a strip of 16·kColumnTiles columns and takes kStepRows input rows a step,
// downwards. Within a step it walks over the hidden channels, 16 at a time:
//
//     expand     tensor cores: x (A fragments in registers, loaded once a step) × weights (shared) → SiLU → registers
//     depthwise  on those rows and the one or two above, which wait in shared memory where this lane left them
//     project    tensor cores: what the depthwise step computes is the A fragment; sums stay in registers for the step
//
// so that shared memory moves weights and the window's old rows, and no hidden value crosses from warp to warp.
//
// The chain of one chunk is long (products, SiLU, nine sums, SiLU, products), and there are two or three warps a
// scheduler to fill the waits. So halves of chunks overlap: the products of the next 8 hidden channels stand between the
// depthwise sums of these 8, as independent instructions of the same warp.
//
// Which lane owns which pixel: the rows of an m16 tile are pixels, and which pixel is which row is free to choose. Lane
// group g = lane / 4 holds rows g and g + 8 of each tile. They are made neighbours, here with kColumnTiles = 2:
//
//     column of the strip     0    1    2    3  |  4    5    6    7  | …  28   29   30   31
//     m-tile, fragment row   0,0  0,8  1,0  1,8 | 0,1  0,9  1,1  1,9 | … 0,7  0,15 1,7  1,15
//     lane group                    g = 0       |        g = 1       | …        g = 7
//
// and lane t = lane % 4 of a group holds channels 2t, 2t+1, 2t+8, 2t+9 of 16 of them all. The depthwise step needs one
// or two columns of the next group: a shuffle each a row and channel pair. Output k of a strip takes its columns
// stride·k … stride·k + 2, all to the right; the last lane group lacks neighbours, so that of 16·kColumnTiles columns
// two (stride 1) or one output (stride 2) are lost to the overlap of strips.
//
// Strips run over all images of a batch side by side, a zero column before each: a map of 64 columns need not be a
// multiple of the strip's width. Input column c of image b is virtual column b·stride·(OW + 1) + c + 1, output column c
// is b·(OW + 1) + c.
//
// To fill a GPU, the steps of all strips are laid end to end and cut into runs (choose_runs() in the .cu file). A run
// begins with a step that only fills the window, and so does every strip in it. What an output pixel is computed from,
// and in which order, depends neither on strip nor run: results are bitwise the same at every batch size.
//
// Dealt (kDealt): a few images are too few strips and steps to fill a GPU, and a warp's walk over all hidden
// channels is what they wait for. Then a block takes one run at a time, all of its warps the same strip and rows, and
// warp w the chunks w, w + warps, …: a fraction of the walk. Their sums meet in shared memory after each step, added up
// in the order of the warps; the (tile, pair of n-tiles) number i of a step is added up and stored by warp i % warps.
// Two barriers a step; weights, x and the filling steps as before. Bitwise the same at every place and batch size too,
// but not the same as undealt.
//
// In two passes (Config::kPasses): where the weights of all hidden channels do not fit into shared memory beside the
// old rows, those of a half do. A first launch takes the first half of the chunks and leaves its sums in device memory,
// in float, each lane's in its own place; a second one begins with them.
//
// Output channels are reordered when the weights are packed (mobilevit_kernels/native/inverted_residual.py), so that
// lane t stores 4 neighbouring channels 4t … 4t+3 of 16: whole sectors, straight from registers.
//
// The residual is added from registers: x of the step, and of the row before it, which waits in shared memory.
//
// Bytes: x (strips overlap by 2 columns of 16 or 32), y, the weights once a block. MUFU: hidden · (input pixels +
// output pixels). Shared memory moves, for 16 hidden channels of a step with M m-tiles of input and N of output pixels,
// which are 2·M·⌈C_in/16⌉ + N·C_out/8 mma:
//
//     B fragments 512·(⌈C_in/16⌉ + ⌈C_out/16⌉) bytes      taps and biases 3,584      shuffles 256·(3 − stride)·rows
//     old rows, read and written, 2,048·kColumnTiles / stride
//
// Expected to bind: MUFU, with shared memory and issue slots close behind (docs/design.md has the counts).
#pragma once

#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"
#include "inverted_residual_record.cuh"

namespace mvk {

// Sizes that the kernel and its launcher share; everything in them is known before the launch.
template <class T, int kStrideOf, int kInChannelsOf, int kOutChannelsOf, int kColumnTilesOf, int kStepRowsOf,
          int kMaxWarpsOf, int kPassesOf = 1>
struct InvertedResidualRowsConfig {
  using Type = T;
  static constexpr int kStride = kStrideOf;
  static constexpr int kInChannels = kInChannelsOf;
  static constexpr int kOutChannels = kOutChannelsOf;
  static constexpr int kColumnTiles = kColumnTilesOf;  // m16 tiles side by side in a strip
  static constexpr int kStepRows = kStepRowsOf;        // input rows of a step
  static constexpr int kMaxWarps = kMaxWarpsOf;        // of a block; there is one block an SM
  static constexpr int kPasses = kPassesOf;            // over x, each with its share of the hidden channels

  static constexpr int kChunk = 16;                      // hidden channels
  static constexpr int kLaneColumns = 2 * kColumnTiles;  // of a lane group
  static constexpr int kLaneOutputs = kLaneColumns / kStride;
  static constexpr int kStripOutputs = 8 * kLaneOutputs - 3 + kStride;  // that have all their columns
  static constexpr int kOutRows = kStepRows / kStride;                  // of a step
  static constexpr int kTilesAcross = kLaneOutputs / 2;                 // m16 tiles of output pixels in a row
  static constexpr int kOutTiles = kOutRows * kTilesAcross;
  static constexpr int kOldRows = 3 - kStride;  // of the window, from the step before
  static constexpr int kWindowRows = kOldRows + kStepRows;
  static constexpr int kWindowColumns = kLaneColumns + 3 - kStride;
  static constexpr int kFullSteps = kInChannels / 16;  // k-steps of the expand product
  static constexpr bool kHalfStep = kInChannels % 16 != 0;
  static constexpr int kSteps = kFullSteps + kHalfStep;
  static constexpr int kOutColumnTiles = kOutChannels / 8;  // n8 tiles of the project product
  static constexpr int kOutPairs = ceil_div(kOutChannels, 16);
  static constexpr InvertedResidualRecord kRecord = inverted_residual_record(kInChannels, kChunk, kOutChannels);
  static constexpr int kWindowVectors = kOldRows * kLaneColumns / 4;     // 16-byte vectors a lane for 8 hidden channels
  static constexpr int kWindowBytes = 2 * kWindowVectors * 512;          // of a warp for a chunk
  static constexpr int kPartialBytes = kOutTiles * 2 * kOutPairs * 512;  // dealt: the sums of a warp
  static constexpr int kStepSums = kOutTiles * kOutColumnTiles * 128;    // of a step, between two passes
  static constexpr bool kCanAddInput = kStride == 1 && kInChannels == kOutChannels && kPasses == 1;
  static constexpr int kLastRowBytes = kCanAddInput ? kColumnTiles * kSteps * 512 : 0;  // of a warp: a row of x

  static_assert(kStepRows >= 2 && kStepRows % kStride == 0, "a step makes whole output rows and leaves its old rows");
  static_assert(kStride == 1 || kColumnTiles % 2 == 0, "at stride 2 two m-tiles of input columns give one of outputs");
  static_assert(kInChannels % 8 == 0 && kOutChannels % 8 == 0, "channels come in groups of 8");
  static_assert(kWindowVectors * 4 == kOldRows * kLaneColumns, "the window moves in vectors of 16 bytes");
};

// Which hidden channels a warp walks over, and where its sums begin and go.
enum class RowsForm {
  kWhole,      // all of them
  kDealt,      // a share of them, beside the other warps of the block
  kFirstPass,  // the first half, with sums to memory
  kLastPass,   // the second half, with sums from there
};

template <class T>
struct InvertedResidualRowsParams {
  Global<const T> x;
  Global<const T> weights;   // [chunk] records, those of a pass
  Global<const float> bias;  // (C_out,), of the project
  Global<T> y;
  Global<float> sums;        // between two passes: [strip][step][tile][n-tile][lane][4]
  int batch, height, width;  // of x
  int out_height, out_width;
  int chunks;
  int strips;
  int strip_steps;  // of a strip; those behind its last row are empty
  int run_steps;    // that a warp (dealt: a block) takes at a time, of all strips' laid end to end
  int runs;
  int blocks, block_warps;
  bool residual;
};

template <class Config, RowsForm kForm>
__global__ void __launch_bounds__(32 * Config::kMaxWarps, 1)
    inverted_residual_rows_kernel(const InvertedResidualRowsParams<typename Config::Type> params) {
  using T = typename Config::Type;
  constexpr bool kDealt = kForm == RowsForm::kDealt;
  constexpr int kStride = Config::kStride;
  constexpr int kLaneColumns = Config::kLaneColumns;
  constexpr int kLaneOutputs = Config::kLaneOutputs;
  constexpr int kStepRows = Config::kStepRows;
  constexpr InvertedResidualRecord kRecord = Config::kRecord;
  let_next_launch_begin();

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;

  constexpr int kRecordCount = kRecord.bytes / 2;  // elements
  const int weight_count = params.chunks * kRecordCount;
  const Shared<T> weights = shared_region<T>("weights", 0, weight_count);
  // Of the chunks, those that this warp takes.
  const int first_chunk = kDealt ? warp : 0;
  const int chunk_step = kDealt ? params.block_warps : 1;
  const int warp_chunks = kDealt ? ceil_div(params.chunks, params.block_warps) : params.chunks;
  // A warp's own: a row of x for the residual, then the window's old rows of each of its chunks.
  const int warp_bytes = Config::kLastRowBytes + warp_chunks * Config::kWindowBytes;
  const int own_begin = weight_count * 2 + warp * warp_bytes;
  const Shared<T> last_row = shared_region<T>("last row", own_begin, Config::kLastRowBytes / 2);
  const Shared<T> old_rows =
      shared_region<T>("old rows", own_begin + Config::kLastRowBytes, warp_chunks * (Config::kWindowBytes / 2));
  for (int i = thread_index() * 8; i < weight_count; i += params.block_warps * 32 * 8) {
    copy_async_16(weights, i, params.weights, i);
  }
  copy_async_commit();
  wait_for_earlier_launches();
  copy_async_wait<0>();
  sync_block();

  // What this lane holds of its strip, fixed while it slides: the pixel index of (image, row 0, column), −1 outside.
  int in_pixel[kLaneColumns];
  int out_pixel[kLaneOutputs];
  const auto take_strip = [&](int strip) {
    const int image_columns = params.out_width + 1;
#pragma unroll
    for (int j = 0; j < kLaneColumns; ++j) {
      const int column = kStride * strip * Config::kStripOutputs + g * kLaneColumns + j;
      const int image = column / (kStride * image_columns);
      const int in_image = column - image * kStride * image_columns - 1;
      const bool inside = image < params.batch && in_image >= 0 && in_image < params.width;
      in_pixel[j] = inside ? image * params.height * params.width + in_image : -1;
    }
#pragma unroll
    for (int j = 0; j < kLaneOutputs; ++j) {
      const int in_strip = g * kLaneOutputs + j;
      const int column = strip * Config::kStripOutputs + in_strip;
      const int image = column / image_columns;
      const int in_image = column - image * image_columns;
      const bool inside = in_strip < Config::kStripOutputs && image < params.batch && in_image < params.out_width;
      out_pixel[j] = inside ? image * params.out_height * params.out_width + in_image : -1;
    }
  };

  // x of a step's rows as A fragments [row][m-tile][k-step]; the half step of 8 channels fills two registers.
  FragmentA<T> x[kStepRows][Config::kColumnTiles][Config::kSteps];
  // The rows of a later step on their way to L2: a lane fetches 64 bytes of a pixel in each.
  const auto prefetch_x = [&](int first_row) {
    if constexpr (!kDealt) {  // few images are in L2 anyway
      constexpr int kUnits = ceil_div(Config::kInChannels, 32);
      int pixel = in_pixel[0];
#pragma unroll
      for (int j = 1; j < kLaneColumns; ++j) {  // by masks: of a choice the compiler makes an array in local memory
        const int mask = t % kLaneColumns == j ? -1 : 0;
        pixel = (pixel & ~mask) | (in_pixel[j] & mask);
      }
#pragma unroll
      for (int i = 0; i < kStepRows; ++i) {
        const int row = first_row + i;
        if (pixel < 0 || row < 0 || row >= params.height) continue;
        const std::int64_t offset = static_cast<std::int64_t>(pixel + row * params.width) * Config::kInChannels;
#pragma unroll
        for (int unit = 0; unit < kUnits; unit += 4 / kLaneColumns) {
          const int own = unit + t / kLaneColumns;
          if (kUnits % (4 / kLaneColumns) == 0 || own < kUnits) params.x.prefetch(offset + 32 * own);
        }
      }
    }
  };
  // fetch_x() asks for the rows of a step, while the step before still computes; take_x() makes them x. Lane t's
  // channels of k-step s are 16·s + 4t … 4t + 3, one load of 8 bytes (the weights' rows are packed in that order), or
  // 16·s + 2t and the next of a half step. The words that a load puts side by side belong to different halves of a
  // fragment; computed() says that moving them there is worth a register each, once a step. Else the compiler leaves
  // them where they are, and moves all of them in every chunk.
  Words2 fetched[kStepRows][kLaneColumns][Config::kSteps];
  const auto fetch_x = [&](int first_row) {
#pragma unroll
    for (int i = 0; i < kStepRows; ++i) {
      const int row = first_row + i;
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const bool inside = in_pixel[j] >= 0 && row >= 0 && row < params.height;
        const std::int64_t offset = static_cast<std::int64_t>(in_pixel[j] + row * params.width) * Config::kInChannels;
#pragma unroll
        for (int step = 0; step < Config::kSteps; ++step) {
          Words2 words{};
          if (inside && step < Config::kFullSteps) words = params.x.template load<Words2>(offset + step * 16 + 4 * t);
          if (inside && step >= Config::kFullSteps) {
            words.word[0] = params.x.template load<Pair<T>>(offset + step * 16 + 2 * t).bits;
          }
          fetched[i][j][step] = words;
        }
      }
    }
  };
  const auto take_x = [&] {
#pragma unroll
    for (int i = 0; i < kStepRows; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
#pragma unroll
        for (int step = 0; step < Config::kSteps; ++step) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            x[i][j / 2][step].reg[2 * half + j % 2] = computed(Pair<T>{fetched[i][j][step].word[half]});
          }
        }
      }
    }
  };

  // The expand product, for 8 hidden channels (half a chunk) at a time: start_expand() is the products,
  // finish_expand() makes hidden values [row][column] of them; zero outside of the map, and not silu(bias). Between the
  // two lies the depthwise step of the half before: independent instructions, with which the compiler fills the
  // products' latencies. Both without the step's first `skipped` rows.
  FragmentC products[kStepRows][Config::kColumnTiles];
  Pair<T> hidden[kStepRows][kLaneColumns];
  const auto start_expand = [&](int record, int half, int skipped) {
    const Floats4 bias = weights.template load<Floats4>(record + kRecord.expand_bias / 2 + (half * 4 + t) * 8);
    FragmentB<T> b[Config::kSteps];
    const int first = record + kRecord.expand / 2 + half * Config::kSteps * 128;
#pragma unroll
    for (int step = 0; step < Config::kSteps; step += 2) {
      if (step + 1 < Config::kSteps) {
        const Words4 words = weights.template load<Words4>(first + step * 128 + lane * 8);
        b[step] = {{{words.word[0]}, {words.word[1]}}};
        b[step + 1] = {{{words.word[2]}, {words.word[3]}}};
      } else {
        const Words2 words = weights.template load<Words2>(first + step * 128 + lane * 4);
        b[step] = {{{words.word[0]}, {words.word[1]}}};
      }
    }
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kStepRows; ++i) {
        if (i < skipped) continue;
#pragma unroll
        for (int m = 0; m < Config::kColumnTiles; ++m) {
          FragmentC& sum = products[i][m];
          if (step == 0) sum = FragmentC{{bias.value[0], bias.value[1], bias.value[2], bias.value[3]}};
          if (step < Config::kFullSteps) {
            mma_m16n8k16(sum, x[i][m][step], b[step]);
          } else {
            mma_m16n8k8(sum, x[i][m][step], b[step]);
          }
        }
      }
    }
  };
  const auto finish_expand = [&](int first_row, int skipped) {
#pragma unroll
    for (int i = 0; i < kStepRows; ++i) {
      if (i < skipped) continue;
      const bool row_inside = first_row + i >= 0 && first_row + i < params.height;
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) {
        const std::uint32_t inside = row_inside && in_pixel[j] >= 0 ? 0xffffffffu : 0u;
        const FragmentC& sum = products[i][j / 2];
        const Pair<T> value =
            make_pair<T>(silu_of_half(sum.value[2 * (j % 2)]), silu_of_half(sum.value[2 * (j % 2) + 1]));
        hidden[i][j].bits = value.bits & inside;
      }
    }
  };

  const auto clear_hidden = [&] {
#pragma unroll
    for (int i = 0; i < kStepRows; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) hidden[i][j].bits = 0;
    }
  };

  // The window of 8 hidden channels: the last rows of the step before, this step's, and of all of them the columns that
  // the next lane group holds. keep_rows() leaves behind what the next step's window begins with.
  Pair<T> window[Config::kWindowRows][Config::kWindowColumns];
  const auto vector_of = [&](int chunk, int q, int v) {
    const int own = kDealt ? chunk / params.block_warps : chunk;
    return (((own * 2 + q) * Config::kWindowVectors + v) * 32 + lane) * 8;
  };
  const auto fill_window = [&](int chunk, int q) {
#pragma unroll
    for (int v = 0; v < Config::kWindowVectors; ++v) {
      const Words4 words = old_rows.template load<Words4>(vector_of(chunk, q, v));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        window[(4 * v + i) / kLaneColumns][(4 * v + i) % kLaneColumns] = Pair<T>{words.word[i]};
      }
    }
#pragma unroll
    for (int i = 0; i < kStepRows; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneColumns; ++j) window[Config::kOldRows + i][j] = hidden[i][j];
    }
#pragma unroll
    for (int i = 0; i < Config::kWindowRows; ++i) {
#pragma unroll
      for (int j = kLaneColumns; j < Config::kWindowColumns; ++j) {
        window[i][j] = shuffle_down(window[i][j - kLaneColumns], 4);
      }
    }
  };
  const auto keep_rows = [&](int chunk, int q) {
#pragma unroll
    for (int v = 0; v < Config::kWindowVectors; ++v) {
      Words4 words;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = kStepRows - Config::kOldRows + (4 * v + i) / kLaneColumns;
        words.word[i] = hidden[row][(4 * v + i) % kLaneColumns].bits;
      }
      old_rows.store(vector_of(chunk, q, v), words);
    }
  };

  // Nine taps and the bias of the channels 2t, 2t+1 (half 0) or 2t+8, 2t+9 (half 1).
  const auto load_taps = [&](int record, int half, Pair<T>(&taps)[10]) {
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const Words2 words = weights.template load<Words2>(record + kRecord.depthwise / 2 + (t * 10 + half * 5 + i) * 4);
      taps[2 * i] = Pair<T>{words.word[0]};
      taps[2 * i + 1] = Pair<T>{words.word[1]};
    }
  };

  // Half of the project step's A fragments (8 hidden channels): the depthwise sums of this lane's outputs after SiLU.
  FragmentA<T> a[Config::kOutTiles];
  // Lane (g, t) holds a B fragment's elements (2t, g) and (2t + 1, g): which of them lie on a diagonal matrix.
  const std::uint32_t diagonal = g == 2 * t ? 0x0000ffffu : g == 2 * t + 1 ? 0xffff0000u : 0u;
  const auto depthwise = [&](int q, const Pair<T>* taps) {
#pragma unroll
    for (int tile = 0; tile < Config::kOutTiles; ++tile) {
      const int first_row = kStride * (tile / Config::kTilesAcross);
      const int first_column = kStride * 2 * (tile % Config::kTilesAcross);
      if constexpr (IsSame<T, Half>::value) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Pair<T> sum = taps[9];
#pragma unroll
          for (int tap = 0; tap < 9; ++tap) {
            sum = fma(window[first_row + tap / 3][first_column + kStride * j + tap % 3], taps[tap], sum);
          }
          a[tile].reg[2 * q + j] = silu_of_half(sum);
        }
      } else {
        // bf16 needs float sums, and unpacking pairs costs more than the tensor cores' idle slots: two taps a product
        // with a diagonal matrix each, one above the other; the tenth tap is 1 · bias.
        // At stride 1 the taps 0 and 2 of a row take four columns in a row, one fragment for all output rows.
        constexpr int kTapOrder[10] = {0, 2, 3, 5, 6, 8, 1, 4, 7, 9};
        FragmentC sum{{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
        for (int two = 0; two < 5; ++two) {
          FragmentA<T> shifted;
          FragmentB<T> b;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int tap = kTapOrder[2 * two + i];
            b.reg[i].bits = taps[tap].bits & diagonal;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              shifted.reg[2 * i + j] = tap < 9 ? window[first_row + tap / 3][first_column + kStride * j + tap % 3]
                                               : make_pair<T>(1.0f, 1.0f);
            }
          }
          mma_m16n8k16(sum, shifted, b);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          a[tile].reg[2 * q + j] = make_pair<T>(silu_of_half(sum.value[2 * j]), silu_of_half(sum.value[2 * j + 1]));
        }
      }
    }
  };

  FragmentC sums[Config::kOutTiles][Config::kOutColumnTiles];
  const auto project = [&](int record) {
#pragma unroll
    for (int pair = 0; pair < Config::kOutPairs; ++pair) {
      const Words4 words = weights.template load<Words4>(record + kRecord.project / 2 + (pair * 32 + lane) * 8);
#pragma unroll
      for (int tile = 0; tile < Config::kOutTiles; ++tile) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (2 * pair + n < Config::kOutColumnTiles) {
            const FragmentB<T> b{{{words.word[2 * n]}, {words.word[2 * n + 1]}}};
            mma_m16n8k16(sums[tile][2 * pair + n], a[tile], b);
          }
        }
      }
    }
  };

  // Calls visit(tile, j, inside, offset) for each output pixel of this lane; inside: it is to be written.
  const auto for_each_place = [&](int first_row, int end_row, const auto& visit) {
#pragma unroll
    for (int tile = 0; tile < Config::kOutTiles; ++tile) {
      const int row = first_row + tile / Config::kTilesAcross;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int pixel = out_pixel[2 * (tile % Config::kTilesAcross) + j];
        visit(tile, j, pixel >= 0 && row < end_row,
              static_cast<std::int64_t>(pixel + row * params.out_width) * Config::kOutChannels);
      }
    }
  };
  // Calls visit(tile, j, offset) for each output pixel of this lane that is to be written: fragment row g + 8j of the
  // tile, at `offset` in y.
  const auto for_each_output = [&](int first_row, int end_row, const auto& visit) {
    for_each_place(first_row, end_row, [&](int tile, int j, bool inside, std::int64_t offset) {
      if (inside) visit(tile, j, offset);
    });
  };
  // Lane t's channels of n-tiles 2·pair and 2·pair + 1 are 16·pair + 4t … 4t + 3; those of a last single tile are
  // 16·pair + 2t and the next.
  constexpr int kFullPairs = Config::kOutChannels / 16;
  constexpr bool kHalfPair = Config::kOutChannels % 16 != 0;
  const auto bias_of = [&](int pair) {  // of lane t's channels
    Floats4 bias{};
    if (kDealt && warp != 0) return bias;  // of a step's sums only the first warp's begin with it, and the residual
    if (pair < kFullPairs) return params.bias.template load<Floats4>(pair * 16 + 4 * t);
    const Floats2 two = params.bias.template load<Floats2>(pair * 16 + 2 * t);
    bias.value[0] = two.value[0];
    bias.value[1] = two.value[1];
    return bias;
  };
  const auto start_sums = [&] {
#pragma unroll
    for (int pair = 0; pair < Config::kOutPairs; ++pair) {
      const Floats4 bias = bias_of(pair);
#pragma unroll
      for (int tile = 0; tile < Config::kOutTiles; ++tile) {
#pragma unroll
        for (int n = 0; n < 2 && 2 * pair + n < Config::kOutColumnTiles; ++n) {
          const float first = bias.value[2 * n];
          const float second = bias.value[2 * n + 1];
          sums[tile][2 * pair + n] = FragmentC{{computed(first), computed(second), computed(first), computed(second)}};
        }
      }
    }
  };
  // The residual comes from registers: output pixel (row, column) has its input pixel a column further right, in the
  // same lane or the first of the next group, and row i of a step in row i − 1 of this step's x. The last row of the
  // step before waits in shared memory, each lane's in its own place.
  const auto keep_last_row = [&] {
    if constexpr (Config::kCanAddInput) {
      if (!params.residual || (kDealt && warp != 0)) return;
#pragma unroll
      for (int m = 0; m < Config::kColumnTiles; ++m) {
#pragma unroll
        for (int step = 0; step < Config::kSteps; ++step) {
          Words4 words;
#pragma unroll
          for (int i = 0; i < 4; ++i) words.word[i] = x[kStepRows - 1][m][step].reg[i].bits;
          last_row.store(((m * Config::kSteps + step) * 32 + lane) * 8, words);
        }
      }
    }
  };
  const auto start_sums_with_residual = [&] {
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      const Floats4 bias = bias_of(step);
#pragma unroll
      for (int i = 0; i < kStepRows; ++i) {
        Pair<T> row[2][kLaneColumns + 1];  // [half of the k-step][column]
#pragma unroll
        for (int m = 0; m < Config::kColumnTiles; ++m) {
          Words4 words;
          if (i == 0) words = last_row.template load<Words4>(((m * Config::kSteps + step) * 32 + lane) * 8);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            row[k / 2][2 * m + k % 2] = i == 0 ? Pair<T>{words.word[k]} : x[i == 0 ? 0 : i - 1][m][step].reg[k];
          }
        }
#pragma unroll
        for (int n = 0; n < 2 && 2 * step + n < Config::kOutColumnTiles; ++n) {
          row[n][kLaneColumns] = shuffle_down(row[n][0], 4);
#pragma unroll
          for (int j = 0; j < kLaneColumns; ++j) {
            FragmentC& sum = sums[i * Config::kTilesAcross + j / 2][2 * step + n];
            sum.value[2 * (j % 2)] = bias.value[2 * n] + low(row[n][j + 1]);
            sum.value[2 * (j % 2) + 1] = bias.value[2 * n + 1] + high(row[n][j + 1]);
          }
        }
      }
    }
  };
  const auto store_pair = [&](const FragmentC& first, const FragmentC& second, int pair, int j, std::int64_t offset) {
    const auto rounded = [&](const FragmentC& sum) { return make_pair<T>(sum.value[2 * j], sum.value[2 * j + 1]); };
    if (pair < kFullPairs) {
      params.y.store(offset + pair * 16 + 4 * t, Words2{{rounded(first).bits, rounded(second).bits}});
    } else {
      params.y.store(offset + pair * 16 + 2 * t, rounded(first));
    }
  };
  // Calls visit(sum, offset) for each of this lane's sums: where it waits for the last pass.
  const auto for_each_sum = [&](std::int64_t step, const auto& visit) {
#pragma unroll
    for (int tile = 0; tile < Config::kOutTiles; ++tile) {
#pragma unroll
      for (int n = 0; n < Config::kOutColumnTiles; ++n) {
        visit(sums[tile][n], step * Config::kStepSums + (tile * Config::kOutColumnTiles + n) * 128 + lane * 4);
      }
    }
  };
  const auto store_output = [&](int tile, int j, std::int64_t offset) {
#pragma unroll
    for (int pair = 0; pair < Config::kOutPairs; ++pair) {
      store_pair(sums[tile][2 * pair], sums[tile][2 * pair + (pair < kFullPairs ? 1 : 0)], pair, j, offset);
    }
  };

  // Dealt: the sums of all warps of the block, added up and stored, each (tile, pair) by one warp.
  const int partial_begin = weight_count * 2 + params.block_warps * warp_bytes;
  const auto store_dealt = [&](int first_row, int end_row) {
    const Shared<float> partial =
        shared_region<float>("partial", partial_begin, params.block_warps * (Config::kPartialBytes / 4));
    const auto slot_of = [&](int of_warp, int tile, int n) {
      return ((of_warp * Config::kOutTiles + tile) * 2 * Config::kOutPairs + n) * 128 + lane * 4;
    };
#pragma unroll
    for (int tile = 0; tile < Config::kOutTiles; ++tile) {
#pragma unroll
      for (int n = 0; n < Config::kOutColumnTiles; ++n) {
        const FragmentC& sum = sums[tile][n];
        partial.store(slot_of(warp, tile, n), Floats4{{sum.value[0], sum.value[1], sum.value[2], sum.value[3]}});
      }
    }
    sync_block();
    // Not unrolled: a warp takes one or two of these, and at one image every instruction is fetched for the first time.
#pragma unroll 1
    for (int place = warp; place < Config::kOutTiles * Config::kOutPairs; place += params.block_warps) {
      const int tile = place / Config::kOutPairs;
      const int pair = place - tile * Config::kOutPairs;
      FragmentC total[2] = {FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}}, FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}}};
      for (int of_warp = 0; of_warp < params.block_warps; ++of_warp) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (2 * pair + n >= Config::kOutColumnTiles) continue;
          const Floats4 part = partial.template load<Floats4>(slot_of(of_warp, tile, 2 * pair + n));
#pragma unroll
          for (int i = 0; i < 4; ++i) total[n].value[i] += part.value[i];
        }
      }
      for_each_output(first_row, end_row, [&](int of_tile, int j, std::int64_t offset) {
        if (of_tile == tile) store_pair(total[0], total[1], pair, j, offset);
      });
    }
    sync_block();  // the sums of the next step come in the same place
  };

  const auto take_rows = [&](int strip, int begin_row, int end_row) {
    const auto step_of = [&](int row) {
      return static_cast<std::int64_t>(strip) * ceil_div(params.out_height, Config::kOutRows) + row / Config::kOutRows;
    };
    // The first step only fills the window, with its last rows; a loop of its own rather than a branch in the inner
    // one.
    const auto in_row_of = [](int row) { return kStride * row + Config::kOldRows - 1; };  // the step's first
    const int fill_row = in_row_of(begin_row) - kStepRows;
    fetch_x(fill_row);
    prefetch_x(fill_row + kStepRows);
    take_x();
    for (int chunk = first_chunk; chunk < params.chunks; chunk += chunk_step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (fill_row + kStepRows > 0) {
          start_expand(chunk * kRecordCount, half, kStepRows - Config::kOldRows);
          finish_expand(fill_row, kStepRows - Config::kOldRows);
        } else {
          clear_hidden();  // at stride 2 this row lies above the image
        }
        keep_rows(chunk, half);
      }
    }
    keep_last_row();
    fetch_x(fill_row + kStepRows);
    for (int row = begin_row; row < end_row; row += Config::kOutRows) {
      const int in_row = in_row_of(row);
      prefetch_x(in_row + kStepRows);
      take_x();
      if constexpr (kForm == RowsForm::kLastPass) {
        for_each_sum(step_of(row), [&](FragmentC& sum, std::int64_t offset) {
          const Floats4 four = params.sums.template load<Floats4>(offset);
          sum = FragmentC{{four.value[0], four.value[1], four.value[2], four.value[3]}};
        });
      } else if (Config::kCanAddInput && params.residual && (!kDealt || warp == 0)) {
        if constexpr (Config::kCanAddInput) start_sums_with_residual();
      } else {
        start_sums();
      }
      start_expand(first_chunk * kRecordCount, 0, 0);
      finish_expand(in_row, 0);
      const auto take_chunk = [&](int chunk, auto last) {
        constexpr bool kLast = decltype(last)::value != 0;
        const int record = chunk * kRecordCount;
        Pair<T> taps[10];
        load_taps(record, 0, taps);
        fill_window(chunk, 0);
        keep_rows(chunk, 0);
        start_expand(record, 1, 0);
        depthwise(0, taps);
        finish_expand(in_row, 0);
        if constexpr (kLast) {  // x is free
          keep_last_row();
          fetch_x(row + Config::kOutRows < end_row ? in_row + kStepRows : params.height);
        }
        load_taps(record, 1, taps);
        fill_window(chunk, 1);
        keep_rows(chunk, 1);
        if constexpr (!kLast) start_expand(record + chunk_step * kRecordCount, 0, 0);
        depthwise(1, taps);
        if constexpr (!kLast) finish_expand(in_row, 0);
        project(record);
      };
      int chunk = first_chunk;
      for (; chunk + chunk_step < params.chunks; chunk += chunk_step) take_chunk(chunk, Constant<0>{});
      take_chunk(chunk, Constant<1>{});
      if constexpr (kDealt) {
        store_dealt(row, end_row);
      } else if constexpr (kForm == RowsForm::kFirstPass) {
        for_each_sum(step_of(row), [&](const FragmentC& sum, std::int64_t offset) {
          params.sums.store(offset, Floats4{{sum.value[0], sum.value[1], sum.value[2], sum.value[3]}});
        });
      } else {
        for_each_output(row, end_row, store_output);
      }
    }
  };

  // Worked out anew each time: the registers are needed for other things.
  const auto end_of = [&](int run) {
    const int all_steps = params.strips * params.strip_steps;
    const int end = (run + 1) * params.run_steps;
    return end < all_steps ? end : all_steps;
  };
  const int first_run = kDealt ? block_index_x() : warp * params.blocks + block_index_x();
  const int run_stride = kDealt ? params.blocks : params.block_warps * params.blocks;
  for (int run = first_run; run < params.runs; run += run_stride) {
    int step = run * params.run_steps;
    while (step < end_of(run)) {
      const int strip = step / params.strip_steps;
      const int begin_row = (step - strip * params.strip_steps) * Config::kOutRows;
      const int end_row = begin_row + (end_of(run) - step) * Config::kOutRows;
      take_strip(strip);
      if (begin_row < params.out_height)
        take_rows(strip, begin_row, end_row < params.out_height ? end_row : params.out_height);
      step = (step / params.strip_steps + 1) * params.strip_steps;
    }
  }
}

}  // namespace mvk
