// Launchers of the translation units that a build leaves out; those that it has take their place.
#include "launchers.h"
#include "testing/testing.h"

#define ABSENT(launcher, Arguments)                                               \
  __attribute__((weak)) Status launcher(const Arguments&, Stream) {               \
    return fail(Status::kUnsupported, "%s is not part of this build", #launcher); \
  }
#define ABSENT_SIZE(function, ...) \
  __attribute__((weak)) int function(__VA_ARGS__) { return 0; }

namespace mvk {

ABSENT(inverted_residual, InvertedResidualArguments)
ABSENT(inverted_residual_cluster, InvertedResidualArguments)
ABSENT(inverted_residual_rows, InvertedResidualArguments)
ABSENT(transformer, TransformerArguments)
ABSENT(resize, ResizeArguments)
ABSENT(transformer_cluster, TransformerClusterArguments)
ABSENT(transformer_wgmma, TransformerWgmmaArguments)
ABSENT(unfold_attention_fold, UnfoldAttentionFoldArguments)
ABSENT(conv3x3, Conv3x3Arguments)
ABSENT(conv3x3_wgmma, Conv3x3Arguments)
ABSENT(stem, StemArguments)
ABSENT(head_features, HeadFeaturesArguments)
ABSENT(head_classifier, HeadClassifierArguments)

ABSENT_SIZE(inverted_residual_shared_bytes, int, int, int, int)
ABSENT_SIZE(inverted_residual_cluster_shared_bytes, int, int, int, int, int)
ABSENT_SIZE(inverted_residual_rows_shared_bytes, int, int, int, int, int)
ABSENT_SIZE(inverted_residual_rows_dealt_pixels, int, int, int, int, int)
__attribute__((weak)) long long inverted_residual_rows_workspace_bytes(int, int, int, int, int, int) { return 0; }
ABSENT_SIZE(transformer_shared_bytes, int, int, int, int)
ABSENT_SIZE(transformer_cluster_shared_bytes, int, int, bool)
ABSENT_SIZE(transformer_wgmma_shared_bytes, int, int)

}  // namespace mvk
