// What the simulator's wgmma keeps of each warp between issue and wait.
#include "wgmma.h"

#include <cmath>
#include <cstring>
#include <list>

namespace mvk::simt {

namespace {

struct Pending {
  std::unique_ptr<WgmmaProduct> product;
  WgmmaSums* sums;
};
using Group = std::vector<Pending>;

struct WarpProducts {
  bool fenced = false;
  std::list<WgmmaSums> sums;
  Group open;
  std::vector<Group> groups;
};

WarpProducts products[kMaxClusterBlocks][kMaxWarps];

WarpProducts& own() { return products[current.cluster_rank][current.thread / kWarpSize]; }

bool has_products(const Group& group, const WgmmaSums& sums) {
  for (const Pending& pending : group) {
    if (pending.sums == &sums) return true;
  }
  return false;
}

void check_unchanged(const WgmmaMatrix& matrix, const std::vector<std::uint16_t>& cores, Where issued, Where where) {
  if (read_wgmma_matrix(matrix, where) == cores) return;
  fault(where, "shared region '%s' was overwritten before this wait for the wgmma at line %d that reads it",
        matrix.region, issued.line);
}

void check_operands(const WgmmaProduct& product, Where where) {
  check_unchanged(product.b, product.b_cores, product.where, where);
  if (product.a_in_shared) {
    check_unchanged(product.a, product.a_cores, product.where, where);
    return;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (std::memcmp(product.a_registers[lane], product.a_words[lane], sizeof(product.a_words[lane])) != 0) {
      fault(where, "lane %d overwrote its fragment of A before this wait for the wgmma at line %d that reads it", lane,
            product.where.line);
    }
  }
}

float& register_of(const WgmmaSums& sums, int lane, int tile, int i) { return sums.lanes[lane][tile].value[i]; }

float& value_of(WgmmaSums& sums, int lane, int tile, int i) {
  const int row = lane / 4 + i / 2 * 8;
  return sums.values[static_cast<std::size_t>(row * sums.columns + 8 * tile + lane % 4 * 2 + i % 2)];
}

template <class Visit>
void visit_registers(const WgmmaSums& sums, const Visit& visit) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int tile = 0; tile < sums.columns / 8; ++tile) {
      for (int i = 0; i < 4; ++i) visit(lane, tile, i);
    }
  }
}

}  // namespace

void forget_wgmma_products() {
  for (auto& block : products) {
    for (WarpProducts& warp : block) warp = WarpProducts{};
  }
}

void check_no_wgmma_products() {
  if (!own().open.empty() || !own().groups.empty()) {
    const Group& group = own().open.empty() ? own().groups.front() : own().open;
    fault(group.empty() ? Where{"", 0} : group.front().product->where, "left the kernel while a wgmma is under way");
  }
}

std::vector<std::uint16_t> read_wgmma_matrix(const WgmmaMatrix& matrix, Where where) {
  if ((matrix.byte_begin + matrix.begin) % 16 != 0 || matrix.outer_step % 16 != 0 || matrix.depth_step % 16 != 0) {
    fault(where, "wgmma: cores of '%s' at byte %d in steps of %d and %d bytes: expected multiples of 16", matrix.region,
          matrix.byte_begin + matrix.begin, matrix.outer_step, matrix.depth_step);
  }
  std::vector<std::uint16_t> cores(static_cast<std::size_t>(matrix.outers) * 128);
  for (int outer = 0; outer < matrix.outers; ++outer) {
    for (int half = 0; half < 2; ++half) {
      for (int row = 0; row < 8; ++row) {
        const int offset = matrix.begin + outer * matrix.outer_step + half * matrix.depth_step + 16 * row;
        const void* bytes = published_row(matrix.region, matrix.byte_begin, matrix.byte_count, offset, where);
        std::memcpy(&cores[static_cast<std::size_t>((outer * 2 + half) * 64 + row * 8)], bytes, 16);
      }
    }
  }
  return cores;
}

WgmmaSums& take_wgmma_sums(FragmentC* const* lanes, int tiles, bool accumulate, Where where) {
  if (last_launch().threads % (4 * kWarpSize) != 0) {
    fault(where, "wgmma: expected whole warpgroups of 128 threads, the block has %d threads", last_launch().threads);
  }
  if (!own().fenced) fault(where, "wgmma: no wgmma_fence() since the kernel's begin or the last wait");
  for (WgmmaSums& known : own().sums) {
    if (known.lanes[0] != lanes[0]) continue;
    if (!accumulate) known.values.assign(known.values.size(), 0.0f);
    return known;
  }
  WgmmaSums& sums = own().sums.emplace_back();
  std::memcpy(sums.lanes, lanes, sizeof(sums.lanes));
  sums.columns = 8 * tiles;
  sums.values.resize(static_cast<std::size_t>(16 * sums.columns));
  visit_registers(sums, [&](int lane, int tile, int i) {
    float& held = register_of(sums, lane, tile, i);
    if (accumulate) value_of(sums, lane, tile, i) = held;
    held = NAN;
  });
  return sums;
}

void add_wgmma_product(WgmmaSums& sums, std::unique_ptr<WgmmaProduct> product) {
  counters().wgmma_m16n8k16 += static_cast<std::uint64_t>(sums.columns / 8);
  if (current.thread / kWarpSize % 4 == 0) {
    counters().wgmma_shared_bytes += static_cast<std::uint64_t>(32 * sums.columns + (product->a_in_shared ? 2048 : 0));
  }
  own().open.push_back({std::move(product), &sums});
}

void wgmma_fence(Where where) {
  if (!gather_warp("wgmma_fence", nullptr, where)) return;
  own().fenced = true;
  release_warp();
}

void wgmma_commit(Where where) {
  if (!gather_warp("wgmma_commit", nullptr, where)) return;
  own().groups.push_back(std::move(own().open));
  own().open.clear();
  release_warp();
}

void wgmma_wait(int pending, Where where) {
  if (!gather_warp("wgmma_wait", nullptr, where)) return;
  WarpProducts& warp = own();
  if (!warp.open.empty()) {
    fault(where, "wgmma_wait() without a wgmma_commit() behind the wgmma at line %d",
          warp.open.front().product->where.line);
  }
  warp.fenced = false;
  while (warp.groups.size() > static_cast<std::size_t>(pending)) {
    for (const Pending& done : warp.groups.front()) check_operands(*done.product, where);
    warp.groups.erase(warp.groups.begin());
  }
  warp.sums.remove_if([&](WgmmaSums& sums) {
    for (const Group& group : warp.groups) {
      if (has_products(group, sums)) return false;
    }
    visit_registers(
        sums, [&](int lane, int tile, int i) { register_of(sums, lane, tile, i) = value_of(sums, lane, tile, i); });
    return true;
  });
  release_warp();
}

}  // namespace mvk::simt
