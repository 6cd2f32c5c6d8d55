// The transformer kernel in bfloat16.
#include "transformer_launch.cuh"

namespace mvk {

TransformerInstances transformer_instances_bfloat16() { return transformer_instances<BFloat16>(); }

}  // namespace mvk
