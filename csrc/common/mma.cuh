// Matrix fragments, mma.sync and ldmatrix (PTX ISA, "Matrix fragments for mma.m16n8k16 / .m16n8k8", "ldmatrix").
//
// With g = lane / 4 and t = lane % 4:
//   A, 16×16 row-major: reg[0] row g,   columns 2t, 2t+1      reg[2] row g,   columns 2t+8, 2t+9
//                       reg[1] row g+8, columns 2t, 2t+1      reg[3] row g+8, columns 2t+8, 2t+9
//      16×8: reg[0], reg[1] alone
//   B, 16×8 (k × n):    reg[0] rows k = 2t, 2t+1, column g    reg[1] rows k = 2t+8, 2t+9, column g
//      8×8: reg[0] alone
//   C, 16×8:            value[0], value[1] row g, columns 2t, 2t+1      value[2], value[3] row g+8, the same columns
#pragma once

#include "memory.cuh"

namespace mvk {

template <class T>
struct FragmentA {
  Pair<T> reg[4];
};
template <class T>
struct FragmentB {
  Pair<T> reg[2];
};
struct FragmentC {
  float value[4];
};
// Accumulators in float16: reg[0] row g, reg[1] row g+8, columns 2t, 2t+1 each.
struct FragmentCHalf {
  Pair<Half> reg[2];
};

}  // namespace mvk

#ifdef MVK_SIMT
#include "../simt/mma.h"
#else

namespace mvk {

// c += a · b with a 16×16, b 16×8. Operands c of the instruction, before and after, are registers of their own: the
// compiler may then start several sums from one set of biases.
template <class T>
MVK_DEVICE void mma_m16n8k16(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  if constexpr (IsSame<T, Half>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};\n"
        : "=f"(c.value[0]), "=f"(c.value[1]), "=f"(c.value[2]), "=f"(c.value[3])
        : "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(a.reg[2].bits), "r"(a.reg[3].bits), "r"(b.reg[0].bits),
          "r"(b.reg[1].bits), "f"(c.value[0]), "f"(c.value[1]), "f"(c.value[2]), "f"(c.value[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};\n"
        : "=f"(c.value[0]), "=f"(c.value[1]), "=f"(c.value[2]), "=f"(c.value[3])
        : "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(a.reg[2].bits), "r"(a.reg[3].bits), "r"(b.reg[0].bits),
          "r"(b.reg[1].bits), "f"(c.value[0]), "f"(c.value[1]), "f"(c.value[2]), "f"(c.value[3]));
  }
}

// c += a · b with float16 accumulators: half the registers, one rounding to float16 an instruction.
MVK_DEVICE void mma_m16n8k16(FragmentCHalf& c, const FragmentA<Half>& a, const FragmentB<Half>& b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};\n"
               : "+r"(c.reg[0].bits), "+r"(c.reg[1].bits)
               : "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(a.reg[2].bits), "r"(a.reg[3].bits), "r"(b.reg[0].bits),
                 "r"(b.reg[1].bits));
}

// c += a · b over the first eight k only: a 16×8 in a.reg[0..1], b 8×8 in b.reg[0].
template <class T>
MVK_DEVICE void mma_m16n8k8(FragmentC& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  if constexpr (IsSame<T, Half>::value) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};\n"
                 : "=f"(c.value[0]), "=f"(c.value[1]), "=f"(c.value[2]), "=f"(c.value[3])
                 : "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(b.reg[0].bits), "f"(c.value[0]), "f"(c.value[1]),
                   "f"(c.value[2]), "f"(c.value[3]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};\n"
                 : "=f"(c.value[0]), "=f"(c.value[1]), "=f"(c.value[2]), "=f"(c.value[3])
                 : "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(b.reg[0].bits), "f"(c.value[0]), "f"(c.value[1]),
                   "f"(c.value[2]), "f"(c.value[3]));
  }
}

// Four 8×8 matrices: lane l passes the offset of row l % 8 of matrix l / 8 (8 elements, 16-byte aligned); reg[m] of
// lane l receives row l / 4, columns 2·(l % 4) and the next, of matrix m.
template <class T>
MVK_DEVICE void load_matrix_x4(Pair<T> (&reg)[4], Shared<T> region, int row_offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(reg[0].bits), "=r"(reg[1].bits), "=r"(reg[2].bits), "=r"(reg[3].bits)
               : "r"(region.address(row_offset))
               : "memory");
}
// The same, each matrix transposed: lane l receives rows 2·(l % 4) and the next of column l / 4.
template <class T>
MVK_DEVICE void load_matrix_x4_transposed(Pair<T> (&reg)[4], Shared<T> region, int row_offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(reg[0].bits), "=r"(reg[1].bits), "=r"(reg[2].bits), "=r"(reg[3].bits)
               : "r"(region.address(row_offset))
               : "memory");
}
// Two 8×8 matrices into reg[0] and reg[1]; the offsets of lanes 16 … 31 are not used but have to be valid.
template <class T>
MVK_DEVICE void load_matrix_x2(Pair<T>& first, Pair<T>& second, Shared<T> region, int row_offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(first.bits), "=r"(second.bits)
               : "r"(region.address(row_offset))
               : "memory");
}

}  // namespace mvk

#endif
