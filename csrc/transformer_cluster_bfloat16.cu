// The transformer kernel on clusters in bfloat16.
#include "transformer_cluster_launch.cuh"

namespace mvk {

TransformerClusterInstances transformer_cluster_instances_bfloat16() {
  return transformer_cluster_instances<BFloat16>();
}

}  // namespace mvk
