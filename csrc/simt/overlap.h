// Overlapping launches on the simulator, where launches never overlap: a thread that touches anything but constants
// before it has waited is a fault.
#pragma once

#include "runtime.h"

namespace mvk {

inline void let_next_launch_begin() {}
inline void wait_for_earlier_launches() { simt::wait_for_earlier_launches(); }

}  // namespace mvk
