#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

namespace ptx {

Warp::Warp(const Kernel& kernel, Block& block, int index)
    : kernel_(&kernel), block_(&block), index_(index), file_(kernel.registers) {}

void Warp::start(int block_x, int block_y, int rank, int blocks) {
  for (const auto& [special, place] : kernel_->specials) {
    std::uint32_t* const values = lanes<std::uint32_t>(place);
    for (int lane = 0; lane < kLanes; ++lane) {
      switch (special) {
        case Special::kThreadX:
          values[lane] = static_cast<std::uint32_t>(index_ * kLanes + lane);
          break;
        case Special::kBlockX:
          values[lane] = static_cast<std::uint32_t>(block_x);
          break;
        case Special::kBlockY:
          values[lane] = static_cast<std::uint32_t>(block_y);
          break;
        case Special::kClusterRank:
          values[lane] = static_cast<std::uint32_t>(rank);
          break;
        case Special::kClusterBlocks:
          values[lane] = static_cast<std::uint32_t>(blocks);
          break;
      }
    }
  }
  stop = Stop::kReady;
  cluster_phase = 0;
  arrived = false;
  polls_ = false;
  groups_.assign(1, {0, kAllLanes});
  waited_ = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    copies_[lane].clear();
    committed_[lane] = 0;
  }
}

std::string Warp::where() const {
  if (groups_.empty()) return "at its end";
  return kernel_->describe(kernel_->code[static_cast<std::size_t>(std::max(groups_.front().place - 1, 0))]);
}

Block& Warp::block_of(std::uint32_t cluster_address) {
  const int rank = static_cast<int>(cluster_address >> kRankShift) - 1;
  if (rank < 0 || rank == block_->rank) return *block_;
  const Cluster& cluster = *block_->cluster;
  if (cluster.phase == 0) {
    throw Fault(format("block %d of the cluster is accessed before any cluster barrier: it may not have begun", rank));
  }
  Block& other = cluster.blocks->at(static_cast<std::size_t>(rank));
  if (other.done == static_cast<int>(other.warps.size())) {
    throw Fault(format("block %d of the cluster is accessed after its end", rank));
  }
  return other;
}

void Warp::copy(int lane, std::uint32_t to, const void* from, int from_bytes) {
  block_->shared.begin_copy(to, 16);
  copies_[lane].push_back({to, from, from_bytes, committed_[lane]});
}

void Warp::commit_copies(Mask active) {
  for (int lane = 0; lane < kLanes; ++lane) committed_[lane] += active >> lane & 1u;
}

void Warp::wait_for_copies(Mask active, int pending) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((active >> lane & 1u) == 0) continue;
    std::vector<Copy>& copies = copies_[lane];
    std::size_t landed = 0;
    for (; landed < copies.size() && copies[landed].group < committed_[lane] - pending; ++landed) {
      block_->shared.land(copies[landed].to, copies[landed].from, copies[landed].from_bytes, 16);
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
  }
}

Mask Warp::active_of(const Group& group, const Instruction& instruction) {
  if (!instruction.has_guard) return group.lanes;
  const bool* const guard = lanes<bool>(instruction.guard);
  Mask mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= Mask{guard[lane] == instruction.guard_value} << lane;
  return group.lanes & mask;
}

// Whether the lanes that the instruction needs are all there.
bool Warp::may_execute(const Instruction& instruction, Mask active) {
  if (active == 0) return true;
  switch (instruction.operation->convergence) {
    case Convergence::kNone:
      return true;
    case Convergence::kAligned:
      return active == kAllLanes;
    case Convergence::kMemberMask: {
      const std::uint32_t* const mask = lanes<std::uint32_t>(instruction.operand[instruction.operands - 1]);
      for (int lane = 0; lane < kLanes; ++lane) {
        if ((active >> lane & 1u) != 0 && mask[lane] != active) return false;
      }
      return true;
    }
  }
  return false;
}

// The group that runs next: the lowest one that need not wait for others.
std::size_t Warp::choose() {
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const Instruction& instruction = kernel_->code[static_cast<std::size_t>(groups_[i].place)];
    if (may_execute(instruction, active_of(groups_[i], instruction))) return i;
  }
  std::string places = "lanes of a warp are not together where an instruction needs them:";
  for (const Group& group : groups_) {
    const Instruction& instruction = kernel_->code[static_cast<std::size_t>(group.place)];
    places += format(" lanes %#010x at %s;", active_of(group, instruction), kernel_->describe(instruction).c_str());
  }
  throw Fault(places);
}

// Puts groups in order and those that have met together.
void Warp::merge() {
  std::sort(groups_.begin(), groups_.end(), [](const Group& a, const Group& b) { return a.place < b.place; });
  std::size_t kept = 0;
  for (const Group& group : groups_) {
    if (group.lanes == 0) continue;
    if (kept > 0 && groups_[kept - 1].place == group.place) {
      groups_[kept - 1].lanes |= group.lanes;
    } else {
      groups_[kept++] = group;
    }
  }
  groups_.resize(kept);
}

void Warp::run(std::vector<std::uint64_t>& executed) {
  while (!groups_.empty()) {
    const std::size_t chosen = choose();
    Group& group = groups_[chosen];
    if (static_cast<std::size_t>(group.place) >= kernel_->code.size()) throw Fault("the code ends without a ret");
    const Instruction& instruction = kernel_->code[static_cast<std::size_t>(group.place)];
    const Mask active = active_of(group, instruction);
    ++group.place;
    if (active == 0) {
      if (groups_.size() > 1) merge();
      continue;
    }
    ++executed[static_cast<std::size_t>(group.place - 1)];
    try {
      if (instruction.operation->execute != nullptr) instruction.operation->execute(*this, instruction, active);
      if (instruction.operation->flow == Flow::kExit && (waited_ & active) != active) {
        throw Fault("the end of the kernel without griddepcontrol.wait");
      }
    } catch (const Fault& fault) {
      throw Fault(format("%s\n  at %s\n  lanes %#010x", fault.what(), kernel_->describe(instruction).c_str(), active));
    }
    switch (instruction.operation->flow) {
      case Flow::kNone:
        break;
      case Flow::kBranch: {
        const Group taken = {instruction.target, active};
        group.lanes &= ~active;
        groups_.push_back(taken);
        merge();
        continue;
      }
      case Flow::kExit:
        group.lanes &= ~active;
        merge();
        continue;
      case Flow::kBlockBarrier:
        stop = Stop::kBlockBarrier;
        return;
      case Flow::kPartBarrier:
        stop = Stop::kPartBarrier;
        return;
      case Flow::kPoll:
        if (!polls_) break;
        polls_ = false;
        stop = Stop::kPolling;
        seen = block_->events;
        return;
      case Flow::kClusterArrive: {
        if (arrived) throw Fault("a warp arrives at a cluster barrier twice: " + kernel_->describe(instruction));
        arrived = true;
        Cluster& cluster = *block_->cluster;
        if (++cluster.arrivals == cluster.warps) {
          cluster.arrivals = 0;
          ++cluster.phase;
        }
        break;
      }
      case Flow::kClusterWait:
        if (!arrived) throw Fault("a wait at a cluster barrier without an arrival: " + kernel_->describe(instruction));
        if (cluster_phase == block_->cluster->phase) {
          stop = Stop::kClusterBarrier;
          return;
        }
        arrived = false;
        ++cluster_phase;
        break;
    }
    if (groups_.size() > 1) merge();
  }
  stop = Stop::kDone;
}

void MemoryBarrier::end_phase() {
  if (arrived < expected || bytes != 0) return;
  arrived = 0;
  ++phase;
}

namespace {

// Lets the warps of a cluster run until all have ended.
void run_cluster(Kernel& kernel, Cluster& cluster, std::mt19937* random) {
  std::vector<Block>& blocks = *cluster.blocks;
  std::vector<Warp*> order;
  for (Block& block : blocks) {
    for (Warp& warp : block.warps) order.push_back(&warp);
  }
  const auto has_waited_enough = [&](const Warp& warp) {
    return warp.stop == Warp::Stop::kClusterBarrier && warp.cluster_phase < cluster.phase;
  };
  std::size_t done = 0;
  for (bool progress = true; progress;) {
    progress = false;
    if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
    for (Warp* const warp : order) {
      if (has_waited_enough(*warp)) {
        warp->arrived = false;
        ++warp->cluster_phase;
        warp->stop = Warp::Stop::kReady;
      }
      if (warp->stop == Warp::Stop::kPolling && warp->block().events != warp->seen) warp->stop = Warp::Stop::kReady;
      if (warp->stop != Warp::Stop::kReady) continue;
      progress = true;
      Block& block = warp->block();
      try {
        warp->run(kernel.executed);
      } catch (const Fault& fault) {
        throw Fault(format("%s, warp %d, rank %d of the cluster", fault.what(), warp->index(), block.rank));
      }
      if (warp->stop == Warp::Stop::kDone) {
        ++block.done;
        ++done;
      }
      if (warp->stop == Warp::Stop::kBlockBarrier && ++block.waiting == static_cast<int>(block.warps.size())) {
        block.waiting = 0;
        for (Warp& other : block.warps) other.stop = Warp::Stop::kReady;
      }
      if (warp->stop == Warp::Stop::kPartBarrier) {
        PartBarrier& part = block.parts[warp->part];
        if (++part.waiting == part.warps) {
          part.waiting = 0;
          for (Warp& other : block.warps) {
            if (other.stop == Warp::Stop::kPartBarrier && other.part == warp->part) other.stop = Warp::Stop::kReady;
          }
        }
      }
    }
  }
  if (done == order.size()) return;
  std::string text = "warps wait at a barrier that others never reach:";
  for (Block& block : blocks) {
    for (Warp& warp : block.warps) {
      text += format("\n  rank %d, warp %d: %s", block.rank, warp.index(), warp.where().c_str());
    }
  }
  throw Fault(text);
}

}  // namespace

void run(Kernel& kernel, const Grid& grid, const GlobalMemory& global, std::uint32_t seed) {
  Cluster cluster;
  std::vector<Block> blocks;
  blocks.reserve(static_cast<std::size_t>(grid.cluster));
  for (int rank = 0; rank < grid.cluster; ++rank) {
    Block& block = blocks.emplace_back(grid.shared_bytes);
    block.cluster = &cluster;
    block.rank = rank;
    block.global = &global;
    block.parameters = static_cast<const unsigned char*>(grid.parameters);
    block.parameter_bytes = kernel.parameter_bytes;
    for (int index = 0; index < grid.threads / kLanes; ++index) block.warps.emplace_back(kernel, block, index);
  }
  std::mt19937 random(seed);
  for (int y = 0; y < grid.blocks_y; ++y) {
    for (int x = 0; x < grid.blocks_x; x += grid.cluster) {
      cluster = {&blocks, grid.cluster * grid.threads / kLanes, 0, 0};
      for (Block& block : blocks) {
        block.shared.reset();
        block.waiting = 0;
        block.done = 0;
        std::fill(std::begin(block.parts), std::end(block.parts), PartBarrier{});
        block.barriers.clear();
        for (Warp& warp : block.warps) warp.start(x + block.rank, y, block.rank, grid.cluster);
      }
      try {
        run_cluster(kernel, cluster, seed == 0 ? nullptr : &random);
      } catch (const Fault& fault) {
        throw Fault(format("%s: %s, block (%d, %d)", kernel.name.c_str(), fault.what(), x, y));
      }
    }
  }
}

}  // namespace ptx
