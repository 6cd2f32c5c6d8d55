// The transformer kernel on clusters in float16.
#include "transformer_cluster_launch.cuh"

namespace mvk {

TransformerClusterInstances transformer_cluster_instances_float16() { return transformer_cluster_instances<Half>(); }

}  // namespace mvk
