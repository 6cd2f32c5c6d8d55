// Unfold and fold as index arithmetic.
//
// A map of H × W pixels is cut into patches of patch_height × patch_width. The pixels at one place of all patches are a
// sequence; image b has patch_height·patch_width of them. Token n of a sequence is its pixel in the n-th patch, row by
// row.
#pragma once

#include "types.cuh"

namespace mvk {

struct PatchMap {
  int height, width;
  int patch_height, patch_width;
  int patch_columns;  // width / patch_width
  int tokens;         // patches of an image
  int sequences;      // of all images

  // The pixel of a token, counted through all images.
  MVK_HOST_DEVICE int pixel_of(int sequence, int token) const {
    const int image = sequence / (patch_height * patch_width);
    const int place = sequence % (patch_height * patch_width);
    const int row = token / patch_columns * patch_height + place / patch_width;
    const int column = token % patch_columns * patch_width + place % patch_width;
    return (image * height + row) * width + column;
  }
};

inline PatchMap patch_map(int batch, int height, int width, int patch_height, int patch_width) {
  const int columns = width / patch_width;
  const int tokens = columns * (height / patch_height);
  return {height, width, patch_height, patch_width, columns, tokens, batch * patch_height * patch_width};
}

}  // namespace mvk
