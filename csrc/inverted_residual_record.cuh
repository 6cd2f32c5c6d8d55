// Packed weights of the inverted residual, as both of its kernels read them: a record for every few hidden channels.
#pragma once

#include "common/types.cuh"

namespace mvk {

// One chunk's weights: offsets in bytes, each a multiple of 16. The row kernel's differ in two fields: its expand
// fragments are [n-tile][pair of k-steps][lane][4 words], an odd last k-step [lane][2 words]; and the expand biases are
// C fragments, [n-tile][t][channels 2t, 2t+1, twice], in the place of both biases.
struct InvertedResidualRecord {
  int expand;       // B fragments [k-step][pair of n-tiles][lane][4 words]; a last half k-step keeps its full size
  int depthwise;    // [16 channels][t][channels 2t.. | 2t+8..][10] pairs, the tenth the bias
  int expand_bias;  // float, halved
  int depthwise_bias;
  int project;  // B fragments [k-step][pair of n-tiles][lane][4 words]
  int bytes;
};

MVK_HOST_DEVICE constexpr InvertedResidualRecord inverted_residual_record(int in_channels, int chunk,
                                                                          int out_channels) {
  InvertedResidualRecord record{};
  record.expand = 0;
  record.depthwise = record.expand + ceil_div(in_channels, 16) * (chunk / 16) * 512;
  record.expand_bias = record.depthwise + chunk / 16 * 4 * 80;
  record.depthwise_bias = record.expand_bias + chunk * 4;
  record.project = record.depthwise_bias + chunk * 4;
  record.bytes = record.project + chunk / 16 * ceil_div(out_channels, 16) * 512;
  return record;
}

}  // namespace mvk
