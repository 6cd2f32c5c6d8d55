// Operands of wgmma for D of 1 to 30 C fragments, `sums[0]` to `sums[n − 1]`: inline PTX has no loops, so that each
// number of registers is text of its own. MVK_D_n: the registers of D; MVK_SUMS_n: what they are bound to. Behind them
// come A and B, two descriptors (MVK_SHARED_n) or four registers and a descriptor (MVK_REGISTERS_n), and whether D is
// added to (MVK_ADD_SHARED_n, MVK_ADD_REGISTERS_n).
#pragma once

#define MVK_SUM(j) "+f"(sums[j].value[0]), "+f"(sums[j].value[1]), "+f"(sums[j].value[2]), "+f"(sums[j].value[3])

#define MVK_D_1 "%0, %1, %2, %3"
#define MVK_D_2 MVK_D_1 ", %4, %5, %6, %7"
#define MVK_D_3 MVK_D_2 ", %8, %9, %10, %11"
#define MVK_D_4 MVK_D_3 ", %12, %13, %14, %15"
#define MVK_D_5 MVK_D_4 ", %16, %17, %18, %19"
#define MVK_D_6 MVK_D_5 ", %20, %21, %22, %23"
#define MVK_D_7 MVK_D_6 ", %24, %25, %26, %27"
#define MVK_D_8 MVK_D_7 ", %28, %29, %30, %31"
#define MVK_D_9 MVK_D_8 ", %32, %33, %34, %35"
#define MVK_D_10 MVK_D_9 ", %36, %37, %38, %39"
#define MVK_D_11 MVK_D_10 ", %40, %41, %42, %43"
#define MVK_D_12 MVK_D_11 ", %44, %45, %46, %47"
#define MVK_D_13 MVK_D_12 ", %48, %49, %50, %51"
#define MVK_D_14 MVK_D_13 ", %52, %53, %54, %55"
#define MVK_D_15 MVK_D_14 ", %56, %57, %58, %59"
#define MVK_D_16 MVK_D_15 ", %60, %61, %62, %63"
#define MVK_D_17 MVK_D_16 ", %64, %65, %66, %67"
#define MVK_D_18 MVK_D_17 ", %68, %69, %70, %71"
#define MVK_D_19 MVK_D_18 ", %72, %73, %74, %75"
#define MVK_D_20 MVK_D_19 ", %76, %77, %78, %79"
#define MVK_D_21 MVK_D_20 ", %80, %81, %82, %83"
#define MVK_D_22 MVK_D_21 ", %84, %85, %86, %87"
#define MVK_D_23 MVK_D_22 ", %88, %89, %90, %91"
#define MVK_D_24 MVK_D_23 ", %92, %93, %94, %95"
#define MVK_D_25 MVK_D_24 ", %96, %97, %98, %99"
#define MVK_D_26 MVK_D_25 ", %100, %101, %102, %103"
#define MVK_D_27 MVK_D_26 ", %104, %105, %106, %107"
#define MVK_D_28 MVK_D_27 ", %108, %109, %110, %111"
#define MVK_D_29 MVK_D_28 ", %112, %113, %114, %115"
#define MVK_D_30 MVK_D_29 ", %116, %117, %118, %119"

#define MVK_SUMS_1 MVK_SUM(0)
#define MVK_SUMS_2 MVK_SUMS_1, MVK_SUM(1)
#define MVK_SUMS_3 MVK_SUMS_2, MVK_SUM(2)
#define MVK_SUMS_4 MVK_SUMS_3, MVK_SUM(3)
#define MVK_SUMS_5 MVK_SUMS_4, MVK_SUM(4)
#define MVK_SUMS_6 MVK_SUMS_5, MVK_SUM(5)
#define MVK_SUMS_7 MVK_SUMS_6, MVK_SUM(6)
#define MVK_SUMS_8 MVK_SUMS_7, MVK_SUM(7)
#define MVK_SUMS_9 MVK_SUMS_8, MVK_SUM(8)
#define MVK_SUMS_10 MVK_SUMS_9, MVK_SUM(9)
#define MVK_SUMS_11 MVK_SUMS_10, MVK_SUM(10)
#define MVK_SUMS_12 MVK_SUMS_11, MVK_SUM(11)
#define MVK_SUMS_13 MVK_SUMS_12, MVK_SUM(12)
#define MVK_SUMS_14 MVK_SUMS_13, MVK_SUM(13)
#define MVK_SUMS_15 MVK_SUMS_14, MVK_SUM(14)
#define MVK_SUMS_16 MVK_SUMS_15, MVK_SUM(15)
#define MVK_SUMS_17 MVK_SUMS_16, MVK_SUM(16)
#define MVK_SUMS_18 MVK_SUMS_17, MVK_SUM(17)
#define MVK_SUMS_19 MVK_SUMS_18, MVK_SUM(18)
#define MVK_SUMS_20 MVK_SUMS_19, MVK_SUM(19)
#define MVK_SUMS_21 MVK_SUMS_20, MVK_SUM(20)
#define MVK_SUMS_22 MVK_SUMS_21, MVK_SUM(21)
#define MVK_SUMS_23 MVK_SUMS_22, MVK_SUM(22)
#define MVK_SUMS_24 MVK_SUMS_23, MVK_SUM(23)
#define MVK_SUMS_25 MVK_SUMS_24, MVK_SUM(24)
#define MVK_SUMS_26 MVK_SUMS_25, MVK_SUM(25)
#define MVK_SUMS_27 MVK_SUMS_26, MVK_SUM(26)
#define MVK_SUMS_28 MVK_SUMS_27, MVK_SUM(27)
#define MVK_SUMS_29 MVK_SUMS_28, MVK_SUM(28)
#define MVK_SUMS_30 MVK_SUMS_29, MVK_SUM(29)

#define MVK_SHARED_1 "%4, %5"
#define MVK_SHARED_2 "%8, %9"
#define MVK_SHARED_3 "%12, %13"
#define MVK_SHARED_4 "%16, %17"
#define MVK_SHARED_5 "%20, %21"
#define MVK_SHARED_6 "%24, %25"
#define MVK_SHARED_7 "%28, %29"
#define MVK_SHARED_8 "%32, %33"
#define MVK_SHARED_9 "%36, %37"
#define MVK_SHARED_10 "%40, %41"
#define MVK_SHARED_11 "%44, %45"
#define MVK_SHARED_12 "%48, %49"
#define MVK_SHARED_13 "%52, %53"
#define MVK_SHARED_14 "%56, %57"
#define MVK_SHARED_15 "%60, %61"
#define MVK_SHARED_16 "%64, %65"
#define MVK_SHARED_17 "%68, %69"
#define MVK_SHARED_18 "%72, %73"
#define MVK_SHARED_19 "%76, %77"
#define MVK_SHARED_20 "%80, %81"
#define MVK_SHARED_21 "%84, %85"
#define MVK_SHARED_22 "%88, %89"
#define MVK_SHARED_23 "%92, %93"
#define MVK_SHARED_24 "%96, %97"
#define MVK_SHARED_25 "%100, %101"
#define MVK_SHARED_26 "%104, %105"
#define MVK_SHARED_27 "%108, %109"
#define MVK_SHARED_28 "%112, %113"
#define MVK_SHARED_29 "%116, %117"
#define MVK_SHARED_30 "%120, %121"

#define MVK_ADD_SHARED_1 "%6"
#define MVK_ADD_SHARED_2 "%10"
#define MVK_ADD_SHARED_3 "%14"
#define MVK_ADD_SHARED_4 "%18"
#define MVK_ADD_SHARED_5 "%22"
#define MVK_ADD_SHARED_6 "%26"
#define MVK_ADD_SHARED_7 "%30"
#define MVK_ADD_SHARED_8 "%34"
#define MVK_ADD_SHARED_9 "%38"
#define MVK_ADD_SHARED_10 "%42"
#define MVK_ADD_SHARED_11 "%46"
#define MVK_ADD_SHARED_12 "%50"
#define MVK_ADD_SHARED_13 "%54"
#define MVK_ADD_SHARED_14 "%58"
#define MVK_ADD_SHARED_15 "%62"
#define MVK_ADD_SHARED_16 "%66"
#define MVK_ADD_SHARED_17 "%70"
#define MVK_ADD_SHARED_18 "%74"
#define MVK_ADD_SHARED_19 "%78"
#define MVK_ADD_SHARED_20 "%82"
#define MVK_ADD_SHARED_21 "%86"
#define MVK_ADD_SHARED_22 "%90"
#define MVK_ADD_SHARED_23 "%94"
#define MVK_ADD_SHARED_24 "%98"
#define MVK_ADD_SHARED_25 "%102"
#define MVK_ADD_SHARED_26 "%106"
#define MVK_ADD_SHARED_27 "%110"
#define MVK_ADD_SHARED_28 "%114"
#define MVK_ADD_SHARED_29 "%118"
#define MVK_ADD_SHARED_30 "%122"

#define MVK_REGISTERS_1 "{%4, %5, %6, %7}, %8"
#define MVK_REGISTERS_2 "{%8, %9, %10, %11}, %12"
#define MVK_REGISTERS_3 "{%12, %13, %14, %15}, %16"
#define MVK_REGISTERS_4 "{%16, %17, %18, %19}, %20"
#define MVK_REGISTERS_5 "{%20, %21, %22, %23}, %24"
#define MVK_REGISTERS_6 "{%24, %25, %26, %27}, %28"
#define MVK_REGISTERS_7 "{%28, %29, %30, %31}, %32"
#define MVK_REGISTERS_8 "{%32, %33, %34, %35}, %36"
#define MVK_REGISTERS_9 "{%36, %37, %38, %39}, %40"
#define MVK_REGISTERS_10 "{%40, %41, %42, %43}, %44"
#define MVK_REGISTERS_11 "{%44, %45, %46, %47}, %48"
#define MVK_REGISTERS_12 "{%48, %49, %50, %51}, %52"
#define MVK_REGISTERS_13 "{%52, %53, %54, %55}, %56"
#define MVK_REGISTERS_14 "{%56, %57, %58, %59}, %60"
#define MVK_REGISTERS_15 "{%60, %61, %62, %63}, %64"
#define MVK_REGISTERS_16 "{%64, %65, %66, %67}, %68"
#define MVK_REGISTERS_17 "{%68, %69, %70, %71}, %72"
#define MVK_REGISTERS_18 "{%72, %73, %74, %75}, %76"
#define MVK_REGISTERS_19 "{%76, %77, %78, %79}, %80"
#define MVK_REGISTERS_20 "{%80, %81, %82, %83}, %84"
#define MVK_REGISTERS_21 "{%84, %85, %86, %87}, %88"
#define MVK_REGISTERS_22 "{%88, %89, %90, %91}, %92"
#define MVK_REGISTERS_23 "{%92, %93, %94, %95}, %96"
#define MVK_REGISTERS_24 "{%96, %97, %98, %99}, %100"
#define MVK_REGISTERS_25 "{%100, %101, %102, %103}, %104"
#define MVK_REGISTERS_26 "{%104, %105, %106, %107}, %108"
#define MVK_REGISTERS_27 "{%108, %109, %110, %111}, %112"
#define MVK_REGISTERS_28 "{%112, %113, %114, %115}, %116"
#define MVK_REGISTERS_29 "{%116, %117, %118, %119}, %120"
#define MVK_REGISTERS_30 "{%120, %121, %122, %123}, %124"

#define MVK_ADD_REGISTERS_1 "%9"
#define MVK_ADD_REGISTERS_2 "%13"
#define MVK_ADD_REGISTERS_3 "%17"
#define MVK_ADD_REGISTERS_4 "%21"
#define MVK_ADD_REGISTERS_5 "%25"
#define MVK_ADD_REGISTERS_6 "%29"
#define MVK_ADD_REGISTERS_7 "%33"
#define MVK_ADD_REGISTERS_8 "%37"
#define MVK_ADD_REGISTERS_9 "%41"
#define MVK_ADD_REGISTERS_10 "%45"
#define MVK_ADD_REGISTERS_11 "%49"
#define MVK_ADD_REGISTERS_12 "%53"
#define MVK_ADD_REGISTERS_13 "%57"
#define MVK_ADD_REGISTERS_14 "%61"
#define MVK_ADD_REGISTERS_15 "%65"
#define MVK_ADD_REGISTERS_16 "%69"
#define MVK_ADD_REGISTERS_17 "%73"
#define MVK_ADD_REGISTERS_18 "%77"
#define MVK_ADD_REGISTERS_19 "%81"
#define MVK_ADD_REGISTERS_20 "%85"
#define MVK_ADD_REGISTERS_21 "%89"
#define MVK_ADD_REGISTERS_22 "%93"
#define MVK_ADD_REGISTERS_23 "%97"
#define MVK_ADD_REGISTERS_24 "%101"
#define MVK_ADD_REGISTERS_25 "%105"
#define MVK_ADD_REGISTERS_26 "%109"
#define MVK_ADD_REGISTERS_27 "%113"
#define MVK_ADD_REGISTERS_28 "%117"
#define MVK_ADD_REGISTERS_29 "%121"
#define MVK_ADD_REGISTERS_30 "%125"

#define MVK_COLUMNS_1 "8"
#define MVK_COLUMNS_2 "16"
#define MVK_COLUMNS_3 "24"
#define MVK_COLUMNS_4 "32"
#define MVK_COLUMNS_5 "40"
#define MVK_COLUMNS_6 "48"
#define MVK_COLUMNS_7 "56"
#define MVK_COLUMNS_8 "64"
#define MVK_COLUMNS_9 "72"
#define MVK_COLUMNS_10 "80"
#define MVK_COLUMNS_11 "88"
#define MVK_COLUMNS_12 "96"
#define MVK_COLUMNS_13 "104"
#define MVK_COLUMNS_14 "112"
#define MVK_COLUMNS_15 "120"
#define MVK_COLUMNS_16 "128"
#define MVK_COLUMNS_17 "136"
#define MVK_COLUMNS_18 "144"
#define MVK_COLUMNS_19 "152"
#define MVK_COLUMNS_20 "160"
#define MVK_COLUMNS_21 "168"
#define MVK_COLUMNS_22 "176"
#define MVK_COLUMNS_23 "184"
#define MVK_COLUMNS_24 "192"
#define MVK_COLUMNS_25 "200"
#define MVK_COLUMNS_26 "208"
#define MVK_COLUMNS_27 "216"
#define MVK_COLUMNS_28 "224"
#define MVK_COLUMNS_29 "232"
#define MVK_COLUMNS_30 "240"
