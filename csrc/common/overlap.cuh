// Overlapping launches (programmatic dependent launch, sm_90 and newer): where its launcher's Stream allows it, a
// kernel may begin while the one before it in the stream still runs. What it does until it waits must not touch
// anything that an earlier launch writes, or reads and this one overwrites: only packed weights may be fetched.
//
// Every kernel of the library calls both words, at once:
//
//   let_next_launch_begin();        the next kernel may be scheduled as soon as all blocks of this one have begun
//   … fetch weights …
//   wait_for_earlier_launches();    all threads; earlier kernels have ended, what they wrote is there
//
// A kernel that has waited ends after the one before it has ended: so a wait covers all earlier launches and not only
// the last.
#pragma once

#include "types.cuh"

#ifdef MVK_SIMT
#include "../simt/overlap.h"
#else

namespace mvk {

MVK_DEVICE void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

MVK_DEVICE void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace mvk

#endif
