// The transformer kernel in float16.
#include "transformer_launch.cuh"

namespace mvk {

TransformerInstances transformer_instances_float16() { return transformer_instances<Half>(); }

}  // namespace mvk
