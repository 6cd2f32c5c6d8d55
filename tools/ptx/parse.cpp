// PTX text into kernels.
#include <cctype>
#include <cstdlib>
#include <map>

#include "program.h"

namespace ptx {

namespace {

struct Token {
  std::string text;
  int line;
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  int line = 1;
  std::size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    std::size_t end = i + 1;
    if (c == '\n') {
      ++line;
    } else if (c == '\0' || std::isspace(static_cast<unsigned char>(c))) {
    } else if (text.compare(i, 2, "//") == 0) {
      end = text.find('\n', i);
    } else if (c == '"') {
      end = text.find('"', i + 1) + 1;
      tokens.push_back({text.substr(i, end - i), line});
    } else if (is_word(c) || (c == '-' && end < text.size() && std::isdigit(static_cast<unsigned char>(text[end])))) {
      // "::" is part of a word (shared::cluster); a single colon ends a label.
      while (end < text.size() && (is_word(text[end]) || (text.compare(end, 2, "::") == 0 && ++end != 0))) ++end;
      tokens.push_back({text.substr(i, end - i), line});
    } else {
      tokens.push_back({std::string(1, c), line});
    }
    i = end;
  }
  return tokens;
}

int width_of(const std::string& type, int line) {
  static const std::map<std::string, int> kWidths = {{".pred", 1}, {".b16", 2}, {".f16", 2}, {".b32", 4},
                                                     {".f32", 4},  {".b64", 8}, {".f64", 8}};
  const auto found = kWidths.find(type);
  if (found == kWidths.end())
    throw Fault(format("line %d: registers of type %s are not implemented", line, type.c_str()));
  return found->second;
}

struct Place {
  std::uint32_t offset;
  int width;
};

// An operand before the operation's widths are known.
struct Parsed {
  enum Kind { kRegister, kImmediate } kind;
  Place place;          // of a register
  std::uint64_t value;  // of an immediate
};

class Parser {
 public:
  explicit Parser(const std::string& text) : module_(std::make_unique<Module>()), tokens_(tokens_of(text)) {
    std::size_t begin = 0;
    while (begin <= text.size()) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      module_->text.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
  }

  std::unique_ptr<Module> module() {
    while (next_ < tokens_.size()) {
      const std::string word = take();
      if (word == ".version" || word == ".address_size") {
        take();
      } else if (word == ".target") {
        module_->target = std::atoi(take().c_str() + 3);  // sm_90a
      } else if (word == ".extern") {
        dynamic_shared();
      } else if (word == ".visible" || word == ".weak") {
      } else if (word == ".entry") {
        kernel();
      } else {
        fail("is not implemented at the outermost level: " + word);
      }
    }
    return std::move(module_);
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    const int line = tokens_[std::min(next_ == 0 ? 0 : next_ - 1, tokens_.size() - 1)].line;
    throw Fault(format("PTX line %d: %s: %s", line, problem.c_str(), module_->text[line - 1].c_str()));
  }
  const std::string& peek() const {
    static const std::string kEnd = "end of text";
    return next_ < tokens_.size() ? tokens_[next_].text : kEnd;
  }
  std::string take() {
    if (next_ >= tokens_.size()) fail("the text ends too early");
    return tokens_[next_++].text;
  }
  bool accept(const char* word) {
    if (peek() != word) return false;
    ++next_;
    return true;
  }
  void expect(const char* word) {
    if (!accept(word)) fail(format("expected '%s', found '%s'", word, peek().c_str()));
  }
  long long number() {
    const std::string word = take();
    char* end = nullptr;
    const long long value = static_cast<long long>(word[0] == '-' ? std::strtoll(word.c_str(), &end, 0)
                                                                  : std::strtoull(word.c_str(), &end, 0));
    if (*end != '\0' && std::string(end) != "U") fail("expected a number, found '" + word + "'");
    return value;
  }

  // .extern .shared .align 128 .b8 NAME[];
  void dynamic_shared() {
    expect(".shared");
    expect(".align");
    if (kSharedBase % number() != 0) fail("dynamic shared memory is not aligned as much as that");
    expect(".b8");
    symbols_[take()] = kSharedBase;
    expect("[");
    expect("]");
    expect(";");
  }

  void kernel() {
    module_->kernels.push_back(std::make_unique<Kernel>());
    kernel_ = module_->kernels.back().get();
    kernel_->name = take();
    kernel_->text = &module_->text;
    labels_.clear();
    branches_.clear();
    immediates_.clear();
    specials_.clear();
    parameters_.clear();
    scopes_.assign(1, {});
    expect("(");
    while (!accept(")")) parameter();
    while (peek() != "{") {
      const std::string directive = take();
      if (directive == ".maxntid") {
        kernel_->max_threads = static_cast<int>(number());
        while (accept(",")) kernel_->max_threads *= static_cast<int>(number());
      } else if (directive == ".minnctapersm") {
        number();
      } else {
        fail("this directive of a kernel is not implemented");
      }
    }
    expect("{");
    while (!scopes_.empty()) statement();
    for (const auto& [instruction, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) fail("there is no label " + label);
      kernel_->code[instruction].target = found->second;
    }
    kernel_->executed.assign(kernel_->code.size(), 0);
  }

  // .param .align 8 .b8 NAME[16]  or  .param .u64 NAME
  void parameter() {
    accept(",");
    expect(".param");
    const int alignment = accept(".align") ? static_cast<int>(number()) : 8;
    if (take() != ".b8") fail("a parameter that is no struct is not implemented");
    int& bytes = kernel_->parameter_bytes;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    parameters_[take()] = static_cast<std::uint64_t>(bytes);
    expect("[");
    bytes += static_cast<int>(number());
    expect("]");
  }

  void statement() {
    if (accept("{")) {
      scopes_.emplace_back();
    } else if (accept("}")) {
      scopes_.pop_back();
    } else if (accept(".reg")) {
      declaration();
    } else if (accept(".pragma")) {
      take();
      expect(";");
    } else if (next_ + 1 < tokens_.size() && tokens_[next_ + 1].text == ":") {
      labels_[take()] = static_cast<int>(kernel_->code.size());
      expect(":");
    } else if (!accept(";")) {
      instruction();
    }
  }

  std::uint32_t allocate(int width) {
    std::vector<unsigned char>& file = kernel_->registers;
    const std::size_t offset = (file.size() + 63) / 64 * 64;
    // All ones: a NaN, and no small number.
    file.resize(offset + static_cast<std::size_t>(width) * kLanes, width == 1 ? 0 : 0xff);
    return static_cast<std::uint32_t>(offset);
  }

  // .reg .b32 %r<33>;  or  .reg .f16 low,high;
  void declaration() {
    const int width = width_of(take(), tokens_[next_].line);
    do {
      const std::string name = take();
      if (accept("<")) {
        const long long count = number();
        expect(">");
        for (long long i = 0; i < count; ++i) scopes_.back()[name + std::to_string(i)] = {allocate(width), width};
      } else {
        scopes_.back()[name] = {allocate(width), width};
      }
    } while (accept(","));
    expect(";");
  }

  const Place* find_register(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(name);
      if (found != scope->end()) return &found->second;
    }
    return nullptr;
  }

  Place special(const std::string& name) {
    static const std::map<std::string, Special> kSpecials = {{"%tid.x", Special::kThreadX},
                                                             {"%ctaid.x", Special::kBlockX},
                                                             {"%ctaid.y", Special::kBlockY},
                                                             {"%cluster_ctarank", Special::kClusterRank},
                                                             {"%cluster_nctarank", Special::kClusterBlocks}};
    const auto found = kSpecials.find(name);
    if (found == kSpecials.end()) fail("there is no register " + name + " that is known");
    const auto [entry, is_new] = specials_.try_emplace(found->second, 0);
    if (is_new) {
      entry->second = allocate(4);
      kernel_->specials.emplace_back(found->second, entry->second);
    }
    return {entry->second, 4};
  }

  Parsed operand() {
    const std::string& word = peek();
    if (word == "_") {  // a result that nobody wants
      take();
      return {Parsed::kRegister, {allocate(8), 8}, 0};
    }
    if (word[0] == '%' || find_register(word) != nullptr) {
      const std::string name = take();
      const Place* const found = find_register(name);
      return {Parsed::kRegister, found != nullptr ? *found : special(name), 0};
    }
    if (std::isdigit(static_cast<unsigned char>(word[0])) || word[0] == '-') {
      if (word.compare(0, 2, "0f") == 0)
        return {Parsed::kImmediate, {}, std::strtoull(take().c_str() + 2, nullptr, 16)};
      return {Parsed::kImmediate, {}, static_cast<std::uint64_t>(number())};
    }
    const std::string name = take();
    if (const auto found = symbols_.find(name); found != symbols_.end()) return {Parsed::kImmediate, {}, found->second};
    if (const auto found = parameters_.find(name); found != parameters_.end()) {
      return {Parsed::kImmediate, {}, found->second};
    }
    fail("there is nothing called " + name);
  }

  // A place whose lanes all hold an immediate.
  Place constant(std::uint64_t value, int width) {
    const auto [entry, is_new] = immediates_.try_emplace({value, width}, 0);
    if (is_new) {
      entry->second = allocate(width);
      for (int lane = 0; lane < kLanes; ++lane) {
        const unsigned char* const bytes = reinterpret_cast<const unsigned char*>(&value);
        std::copy(bytes, bytes + width, &kernel_->registers[entry->second + static_cast<std::size_t>(lane * width)]);
      }
    }
    return {entry->second, width};
  }

  void instruction() {
    Instruction decoded;
    decoded.line = tokens_[next_].line;
    if (accept("@")) {
      decoded.has_guard = true;
      decoded.guard_value = !accept("!");
      const Place* const guard = find_register(take());
      if (guard == nullptr || guard->width != 1) fail("the guard is no predicate");
      decoded.guard = guard->offset;
    }
    std::string opcode = take();
    const bool is_branch = opcode == "bra" || opcode == "bra.uni";
    std::vector<Parsed> parsed;
    int addresses = 0;
    while (!accept(";")) {
      if (is_branch) {
        branches_.emplace_back(kernel_->code.size(), take());
      } else if (accept("{")) {
        if (opcode.compare(0, 4, "mov.") == 0) opcode += parsed.empty() ? " unpack" : " pack";
        if (opcode.compare(0, 6, "wgmma.") == 0 && !parsed.empty()) opcode += " registers";
        do {
          parsed.push_back(operand());
        } while (accept(","));
        expect("}");
      } else if (accept("[")) {
        parsed.push_back(operand());
        if (addresses >= 3) fail("more than three addresses");
        decoded.displacement[addresses++] = accept("+") ? number() : 0;
        expect("]");
      } else {
        parsed.push_back(operand());
      }
      if (peek() != ";" && !accept("|")) expect(",");
    }

    if (opcode == "bar.sync" && parsed.size() == 2) opcode += " part";
    const auto found = instruction_table().find(opcode);
    if (found == instruction_table().end()) fail("the instruction '" + opcode + "' is not implemented");
    decoded.operation = &found->second;
    const std::vector<int>& widths = found->second.widths;
    if (parsed.size() != widths.size()) {
      fail(format("'%s' with %zu operands, where %zu are implemented", opcode.c_str(), parsed.size(), widths.size()));
    }
    decoded.operands = static_cast<int>(parsed.size());
    for (std::size_t i = 0; i < parsed.size(); ++i) {
      const bool any = widths[i] == 0;
      if (parsed[i].kind == Parsed::kImmediate) parsed[i].place = constant(parsed[i].value, any ? 8 : widths[i]);
      if (!any && parsed[i].place.width != widths[i]) {
        fail(format("operand %zu has %d bytes, where '%s' takes %d", i + 1, parsed[i].place.width, opcode.c_str(),
                    widths[i]));
      }
      decoded.operand.push_back(parsed[i].place.offset);
      decoded.width.push_back(static_cast<std::uint8_t>(parsed[i].place.width));
    }
    kernel_->code.push_back(std::move(decoded));
  }

  std::unique_ptr<Module> module_;
  std::vector<Token> tokens_;
  std::size_t next_ = 0;
  std::map<std::string, std::uint64_t> symbols_;  // shared memory
  // Of the kernel that is being parsed:
  Kernel* kernel_ = nullptr;
  std::vector<std::unordered_map<std::string, Place>> scopes_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<std::size_t, std::string>> branches_;
  std::map<std::pair<std::uint64_t, int>, std::uint32_t> immediates_;
  std::map<Special, std::uint32_t> specials_;
  std::map<std::string, std::uint64_t> parameters_;
};

}  // namespace

std::unique_ptr<Module> parse(const std::string& text) { return Parser(text).module(); }

std::string Kernel::describe(const Instruction& instruction) const {
  return format("PTX line %d: %s", instruction.line, (*text)[static_cast<std::size_t>(instruction.line - 1)].c_str());
}

}  // namespace ptx
