"""`make gpu`: build, test, measure and sanitize on a machine with a GPU, within a budget of seconds.

    python tools/gpu.py            quick benchmarks, within MVK_BUDGET_S seconds (default 540), the table included
    python tools/gpu.py --full     the whole suite, without a budget unless MVK_BUDGET_S is set
    python tools/gpu.py --check    only says whether there is a GPU

The steps run in order of worth. Each has a time limit of its own that leaves the later ones their share, so that a slow
or failing step never loses the rest. At most eight files of logs and results go to RESULTS_DIR (default ./out); a short
table comes last. Needs nothing but the standard library: it runs before anything is built.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

FILES = (
    "build.log",
    "tests.log",
    "bench.log",
    "bench.json",
    "sanitizer.log",
    "report.html",
    "summary.json",
    "summary.txt",
)

QUICK_BUDGET_S = 540.0
# Long by design: only the full run has them.
LONG_TESTS = ("tests/test_examples.py", "tests/test_fuzz.py", "tests/test_soak.py")
# What compute-sanitizer runs: primitives and one small case of every kernel, few launches, no other library's kernels.
SANITIZED = ("tests/test_primitives.py", "tests/test_sanitize.py")
MAX_DETAILS = 10  # lines below a step's row, such as the names of failing tests
SANITIZER_EXIT_CODE = 86  # of compute-sanitizer where it found something; pytest's own codes are below 6

OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"


# --- steps -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a step's output says: one line, up to ``MAX_DETAILS`` more, and whether it failed despite its exit code."""

    headline: str
    details: tuple[str, ...] = ()
    failed: bool = False


def last_line(text: str) -> Report:
    """The last line that says something; the report of a step that has no better one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Report(lines[-1][:160] if lines else "no output")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: in the table.
        log: the file in RESULTS_DIR that its output is appended to.
        command: the command for a time limit in seconds.
        report: what its output says.
        cap: it gets at most so many seconds, even where more are left.
        share: seconds that the steps before it leave for it.
        obstacle: why it cannot run; None: it can. Asked when its turn comes.
        excused: where it cannot run, that is no failure.
        environment: variables on top of the runner's.
    """

    name: str
    log: str
    command: Callable[[float], Sequence[str]]
    report: Callable[[str], Report] = last_line
    cap: float = math.inf
    share: float = 0.0
    obstacle: Callable[[], str | None] = lambda: None
    excused: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step went. ``passed``: it does not stand in the way of exit code 0."""

    name: str
    status: str
    headline: str
    details: tuple[str, ...] = ()
    seconds: float = 0.0
    limit_s: float | None = None
    passed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dict(self.__dict__)


class Runner:
    """Runs steps one after the other, each in a process group of its own, within a budget."""

    def __init__(
        self,
        folder: Path,
        budget: float | None,
        environment: Mapping[str, str],
        *,
        reserve: float = 10.0,
        grace: float = 5.0,
        minimum: float = 5.0,
        heartbeat: float = 30.0,
    ) -> None:
        """
        Args:
            folder: where the logs go.
            budget: seconds from now until the last step has ended and the table is printed; None: no end.
            environment: of the steps.
            reserve: seconds of the budget kept for the table and for what is slow to die.
            grace: seconds between SIGTERM and SIGKILL.
            minimum: a step that would get less is skipped.
            heartbeat: seconds between two lines on a step that is running.
        """
        self.folder = folder
        self.environment = environment
        self.begin = time.monotonic()
        self.end = math.inf if budget is None else self.begin + budget - reserve
        self.grace = grace
        self.minimum = minimum
        self.heartbeat = heartbeat

    def say(self, text: str) -> None:
        """One line of progress on stdout."""
        print(f"[{time.monotonic() - self.begin:4.0f} s] {text}", flush=True)

    def run(self, steps: Sequence[Step], after_each: Callable[[list[Outcome]], None] = lambda _: None) -> list[Outcome]:
        """Runs the steps; an interrupt (SIGINT, SIGTERM) ends the one that runs and skips the rest.

        Args:
            steps: in order of worth.
            after_each: is given the outcomes so far.

        Returns:
            An outcome for each step, in their order.
        """
        outcomes: list[Outcome] = []
        interrupted = False
        for i, step in enumerate(steps):
            if interrupted:
                outcomes.append(Outcome(step.name, SKIPPED, "interrupted"))
                continue
            left = self.end - time.monotonic() - self.grace - sum(later.share for later in steps[i + 1 :])
            try:
                outcomes.append(self._run_step(step, min(step.cap, left)))
            except KeyboardInterrupt:
                interrupted = True
                outcomes.append(Outcome(step.name, FAILED, "interrupted"))
            self.say(f"{step.name}: {outcomes[-1].status}: {outcomes[-1].headline}")
            after_each(outcomes)
        return outcomes

    def _run_step(self, step: Step, limit: float) -> Outcome:
        if reason := step.obstacle():
            return Outcome(step.name, SKIPPED, reason, passed=step.excused)
        if limit < self.minimum:
            return Outcome(step.name, SKIPPED, "no time left")
        command = list(step.command(limit))
        self.say(f"{step.name}: running" + ("" if math.isinf(limit) else f", {limit:.0f} s at most"))
        log = self.folder / step.log
        begin = time.monotonic()
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            first = file.tell()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**self.environment, **step.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return Outcome(step.name, FAILED, f"{command[0]}: {error.strerror}")
            try:
                timed_out = not self._wait(step, process, begin + limit, log)
            finally:
                self._end(process)
        with log.open("rb") as output:
            output.seek(first)
            report = step.report(output.read().decode(errors="replace"))
        if timed_out:
            status, headline = TIMED_OUT, f"ended after {limit:.0f} s: {report.headline}"
        else:
            code = process.returncode
            status, headline = (FAILED if code or report.failed else OK), report.headline
            if code:
                headline += f" (exit code {code})"
        details = report.details[:MAX_DETAILS]
        if len(report.details) > MAX_DETAILS:
            details = (*details[:-1], f"and {len(report.details) - MAX_DETAILS + 1} more, in {step.log}")
        seconds = round(time.monotonic() - begin, 1)
        limit_s = None if math.isinf(limit) else round(limit, 1)
        return Outcome(step.name, status, headline, details, seconds, limit_s, status == OK)

    def _wait(self, step: Step, process: subprocess.Popen[bytes], end: float, log: Path) -> bool:
        """Waits for the process with a line now and then; False where it outran its time."""
        while (left := end - time.monotonic()) > 0:
            try:
                process.wait(min(left, self.heartbeat))
                return True
            except subprocess.TimeoutExpired:
                if left > self.heartbeat:
                    self.say(f"{step.name}: … {_tail(log)}")
        return False

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM to a group whose first process still runs, then SIGKILL to all that is left of it."""
        patience = self.grace
        for number in (signal.SIGTERM, signal.SIGKILL):
            if number == signal.SIGTERM and process.poll() is not None:
                continue
            try:
                os.killpg(process.pid, number)
                process.wait(patience)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue  # gone, or in the driver's hands: nothing more can be done to it


def _tail(log: Path) -> str:
    """The last line of a log that is being written."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 1000))
        return last_line(file.read().decode(errors="replace")).headline[:100]


# --- what the outputs say --------------------------------------------------------------------------------------------

_SUMMARY = re.compile(r"^=+ (.*\b(?:passed|failed|skipped|deselected|errors?|no tests ran)\b.*) in [\d.]+s.*=+$", re.M)
_RESULT = re.compile(
    r"^\[gw\d+\] \[ *\d+%\] (?P<status>[A-Z]+) (?P<name>.+?) *$"  # under pytest-xdist
    r"|^(?P<name1>\S+::.*) (?P<status1>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*\[ *\d+%\]$",
    re.M,
)


def report_build(text: str) -> Report:
    """What CMakeLists.txt says it builds; the error where pip failed."""
    said = re.findall(r"-- mobilevit_kernels: (.*)", text)
    errors = re.findall(r"^.*\berror\b.*$", text, re.M | re.I)
    if "Successfully installed" in text and said:
        return Report(said[-1].strip())
    return Report(last_line(text).headline, tuple(line.strip()[:160] for line in errors))


def report_tune(text: str) -> Report:
    """How many problems were measured, and which are served faster by another alternative than the rules'."""
    begin = text.find("{\n")
    try:
        tuned = json.JSONDecoder().raw_decode(text[max(begin, 0) :])[0]["cuda"]
    except (ValueError, KeyError):
        return last_line(text)
    better = [entry for entry in tuned["entries"] if entry["best"] != entry["default"]]
    better.sort(key=lambda entry: entry["us"][entry["best"]] - entry["us"][entry["default"]])
    lines = [
        f"{entry['problem']}: {entry['best']} {entry['us'][entry['best']]:.1f} µs, "
        f"{entry['default']} {entry['us'][entry['default']]:.1f}"
        for entry in better
    ]
    count = len(tuned["entries"])
    return Report(f"{count} problems in {tuned['seconds']:.0f} s, {len(better)} of them faster than by rule", (*lines,))


def report_tests(text: str) -> Report:
    """pytest's last line, or a count of what it had done; the names of failing tests."""
    results = [(m["status"] or m["status1"], m["name"] or m["name1"]) for m in _RESULT.finditer(text)]
    failing = tuple(f"{status} {name}" for status, name in results if status in ("FAILED", "ERROR"))
    if summaries := _SUMMARY.findall(text):
        return Report(summaries[-1], failing)
    if not results:
        return last_line(text)
    counts = Counter(status for status, _ in results)
    return Report(", ".join(f"{n} {status.lower()}" for status, n in counts.items()) + " so far", failing)


def report_gpu_tests(text: str) -> Report:
    """The same where there is a GPU: it is a failure where every test was skipped."""
    report = report_tests(text)
    return replace(report, failed=re.search(r"\b\d+ passed\b", report.headline) is None)


def report_sanitizer(text: str) -> Report:
    """compute-sanitizer's error count, beside what pytest says."""
    counted = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", text, re.M)
    tests = report_gpu_tests(text)
    # The first line of each finding; what follows it is indented.
    found = re.findall(r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY)(\S.*)$", text, re.M)
    headline = f"{counted[-1]}; {tests.headline}" if counted else f"no summary; {tests.headline}"
    return Report(headline, (*dict.fromkeys(found), *tests.details), tests.failed or not counted)


def report_bench(path: Path) -> Report:
    """Records of a result file by status, and the names of those that failed their check."""
    records = _records(path)
    counts = Counter(record["status"] for record in records)
    by_status = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    wrong = tuple(
        f"{record['status']}: {record['job']} {_label(record)} {record['reason']}".strip()
        for record in records
        if record["status"] in ("parity failed", "failed")
    )
    return Report(f"{len(records)} records" + (f": {by_status}" if records else ""), wrong)


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of a result file; none where it is not there or was not written to the end."""
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["records"]
    except (OSError, ValueError, KeyError):
        return []
    return records


def _label(record: Mapping[str, Any]) -> str:
    if record["impl"] != "ours":
        return str(record["impl"])
    return f"ours ({record['backend']}{', graph' if record['graph'] else ''})"


def figures(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures that matter: a row for each job of a whole model.

    Args:
        records: of a result file.

    Returns:
        For each job with ours in it that was reached: the fastest torch.compile mode and the fastest of ours among
        those whose result passed its check, their ratio (None where either is missing), ours' error beside stock's, and
        the share of the floor. ``note`` says why a ratio is missing.
    """
    jobs: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["model"]:
            jobs.setdefault(record["job"], []).append(record)

    def fastest(candidates: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        return min((r for r in candidates if r["status"] == "ok"), key=lambda r: r["ms"], default=None)

    rows = []
    for job in jobs.values():
        ours = [record for record in job if record["impl"] == "ours"]
        compiled = [record for record in job if record["impl"].startswith("compile-")]
        if not ours:
            continue
        best, peer = fastest(ours), fastest(compiled)
        shown = best or next((record for record in ours if record["rel_l2_err"] is not None), ours[0])
        if peer is None and shown["status"] == "left out":
            continue  # the time was over
        note = ""
        if best is None:
            note = f"ours: {shown['status']}"
        elif peer is None:
            note = f"torch.compile: {compiled[0]['status'] if compiled else 'not run'}"
        rows.append(
            {
                "model": shown["model"],
                "batch": shown["batch"],
                "height": shown["height"],
                "width": shown["width"],
                "dtype": shown["dtype"],
                "compile": peer and peer["impl"].removeprefix("compile-"),
                "compile_ms": peer and peer["ms"],
                "ours": _label(shown),
                "ours_ms": best and best["ms"],
                "ratio": peer["ms"] / best["ms"] if best and peer else None,
                "rel_l2_err": shown["rel_l2_err"],
                "stock_rel_l2_err": shown["stock_rel_l2_err"],
                "floor_fraction": best and best["floor_fraction"],
                "note": note,
            }
        )
    return rows


# --- the table -------------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> list[str]:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, *rows]:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


FIGURES = (
    "model",
    "batch",
    "size",
    "dtype",
    "torch.compile",
    "ms",
    "ours",
    "ms",
    "ratio",
    "error",
    "stock",
    "floor",
    "",
)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def render(outcomes: Sequence[Outcome], rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The short table: the steps, then the figures."""
    steps = _table(
        ["step", "status", "seconds", "limit", "result"],
        [[o.name, o.status, f"{o.seconds:.0f}", _number(o.limit_s, ".0f"), o.headline] for o in outcomes],
        frozenset((2, 3)),
    )
    lines = [title, "", steps[0]]
    for outcome, line in zip(outcomes, steps[1:], strict=True):
        lines.append(line)
        lines += [f"    {detail}" for detail in outcome.details]
    if rows:
        lines.append("")
        lines += _table(
            FIGURES,
            [
                [
                    row["model"],
                    str(row["batch"]),
                    f"{row['height']}x{row['width']}",
                    row["dtype"],
                    row["compile"] or "-",
                    _number(row["compile_ms"], ".3f"),
                    row["ours"],
                    _number(row["ours_ms"], ".3f"),
                    "-" if row["ratio"] is None else f"{row['ratio']:.2f}x",
                    _number(row["rel_l2_err"], ".1e"),
                    _number(row["stock_rel_l2_err"], ".1e"),
                    _number(row["floor_fraction"], ".0%"),
                    row["note"],
                ]
                for row in rows
            ],
            frozenset((1, 5, 7, 8, 9, 10, 11)),
        )
        lines.append("ratio: torch.compile's time over ours; floor: the physical limit's time over ours")
    return "\n".join(lines) + "\n"


# --- this project's steps --------------------------------------------------------------------------------------------


def find_gpu(python: str) -> str | None:
    """The GPU's name: torch's word where ``python`` has torch, else nvidia-smi's; None: there is none."""
    probe = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    smi = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    for command in ([python, "-c", probe], smi):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip().partition("\n")[0] or None
    return None


def find_sanitizer() -> str | None:
    """compute-sanitizer: on the PATH, under CUDA_HOME, or where CUDA's installer puts it."""
    folders = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    search = os.pathsep.join([os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"])
    return shutil.which("compute-sanitizer", path=search)


def pytest_command(python: str, *arguments: str) -> list[str]:
    """The tests that need a GPU; each with its result on a line, so that the log of a killed run has them too."""
    options = ["-v", "-rs", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-m", "gpu"]
    return [python, "-m", "pytest", *options, *arguments]


def parallel_options() -> list[str]:
    """Several processes, where pytest-xdist is there: most of the tests' time is Triton's compiler."""
    workers = min(8, (os.cpu_count() or 1) // 2)
    if workers < 2 or importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(workers), "--dist", "worksteal"]


def sanitizer_command(python: str, sanitizer: str, tool: str) -> list[str]:
    """The small set in one process under compute-sanitizer.

    Only our own kernels are checked where this version can choose them: their mangled names hold the namespace. API
    errors are not findings: PyTorch provokes and handles some, and our launchers check every call themselves.
    """
    try:
        known = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        known = ""
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_EXIT_CODE), "--target-processes", "application-only"]
    wanted = [("--launch-timeout", "0"), ("--kernel-name", "kns=mvk")]
    if tool == "memcheck":
        wanted.append(("--report-api-errors", "no"))
    for option, value in wanted:
        if option in known:
            options += [option, value]
    return [sanitizer, *options, *pytest_command(python, "-p", "no:xdist", *SANITIZED)]


def plan(folder: Path, *, full: bool, budget: float | None, gpu: str | None, offline: bool) -> list[Step]:
    """The steps in order of worth; caps and shares are for the default budget and go with it."""
    python = sys.executable
    sanitizer = find_sanitizer() if gpu else None
    results = folder / "bench.json"

    def bench(limit: float) -> list[str]:
        command = [python, "-m", "benchmarks", *([] if full else ["--quick"]), "--output", str(results)]
        # It ends by itself before it is ended.
        return command if math.isinf(limit) else [*command, "--budget-s", str(max(1, int(limit - 25)))]

    def peers(limit: float) -> list[str]:
        impls = ("eager", "eager-channels_last", "compile-default", "compile-reduce-overhead")
        return [*bench(limit), "--resume", *(part for impl in impls for part in ("--impl", impl))]

    def peers_are_measured() -> str | None:
        """One illegal access ends a process, and a hung kernel its step: peers must not be lost to a kernel of ours."""
        records = _records(results)
        lost = not records or any("the GPU was lost" in record["reason"] for record in records)
        return None if gpu and lost else "not needed: they were measured beside ours"

    def report_of_bench(text: str) -> Report:
        if not results.exists():
            return last_line(text)
        report = report_bench(results)
        errors = re.findall(r"^mobilevit-kernels: error: .*", text, re.M)
        return Report(report.headline, (*errors, *report.details))

    def not_built() -> str | None:
        if gpu is None:
            return "no GPU"
        log = folder / "build.log"
        built = report_build(log.read_text(encoding="utf-8", errors="replace")).headline if log.exists() else ""
        return None if built.startswith("CUDA kernels for") else "the extension was not built"

    def no_sanitizer() -> str | None:
        if gpu is not None and sanitizer is None:
            return "no compute-sanitizer on the PATH, under CUDA_HOME or /usr/local/cuda"
        return not_built()

    scale = 1.0 if budget is None else budget / QUICK_BUDGET_S

    def cap(quick: float, whole: float) -> float:
        return whole if full else quick * max(1.0, scale)

    def share(seconds: float) -> float:
        return seconds * min(1.0, scale)

    def sanitize(tool: str, quick_cap: float, seconds: float) -> Step:
        return Step(
            tool,
            "sanitizer.log",
            lambda _: sanitizer_command(python, str(sanitizer), tool),
            report_sanitizer,
            cap=cap(quick_cap, 600),
            share=share(seconds) if sanitizer else 0.0,
            obstacle=no_sanitizer,
            excused=gpu is None,
            # PyTorch's caching allocator would hide what lies outside of a tensor.
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )

    quick_only = [f"--ignore={path}" for path in LONG_TESTS]
    isolation = ["--no-build-isolation"] if offline else []
    warm = Step(
        "warm",
        "bench.log",
        lambda _: [python, str(ROOT / "tools" / "warm.py")],
        cap=cap(50, 60),
        obstacle=lambda: None if gpu else "no GPU",
        excused=gpu is None,
    )
    return [
        Step(
            "build",
            "build.log",
            lambda _: [python, "-m", "pip", "install", "-v", *isolation, "--no-deps", "-e", "."],
            report_build,
            cap=cap(110, 1800),
        ),
        Step(
            "tests",
            "tests.log",
            lambda _: pytest_command(python, *parallel_options(), *([] if full else quick_only)),
            report_gpu_tests if gpu else report_tests,
            cap=cap(150, 3600),
            share=share(60),
        ),
        Step(
            "tune",
            "bench.log",
            # --json: with the time of every alternative. Large batches of the largest network first.
            lambda limit: [
                *(python, "-m", "mobilevit_kernels", "tune", "--backend", "cuda", "--json"),
                *("--budget-s", str(limit - 5), "--batch", "256", "--batch", "1"),
                *(part for size in ("s", "xs", "xxs") for part in ("--model", f"mobilevit_{size}")),
            ],
            report_tune,
            cap=cap(25, 600),
            obstacle=not_built,
            excused=gpu is None,
        ),
        *([] if full else [warm]),
        Step("bench", "bench.log", bench, report_of_bench, share=share(120)),
        Step("peers", "bench.log", peers, report_of_bench, obstacle=peers_are_measured, excused=True),
        sanitize("memcheck", 60, 45),
        sanitize("racecheck", 60, 30),
        Step(
            "report",
            "bench.log",
            lambda _: [python, "-m", "benchmarks", "report", str(results), "--output", str(folder / "report.html")],
            cap=cap(30, 300),
            share=share(15),
            obstacle=lambda: None if results.exists() else "no bench.json",
        ),
    ]


def commit() -> str:
    """The checkout's commit; MVK_COMMIT where this is no checkout, else "unknown"."""
    found = ""
    if (ROOT / ".git").exists():
        try:
            done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=20)
            found = done.stdout.strip() if done.returncode == 0 else ""
        except (OSError, subprocess.TimeoutExpired):
            pass
    return found or os.environ.get("MVK_COMMIT") or "unknown"


def children_environment() -> dict[str, str]:
    """The environment of the steps: this one's, unbuffered, with long lines and with kernels that run on the GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "160"}


def read_budget(full: bool) -> float | None:
    """MVK_BUDGET_S, or its default.

    Raises:
        ValueError: it is no positive number.
    """
    text = os.environ.get("MVK_BUDGET_S", "")
    if not text:
        return None if full else QUICK_BUDGET_S
    try:
        budget = float(text)
    except ValueError:
        budget = 0.0
    if not 0 < budget < math.inf:
        raise ValueError(f"MVK_BUDGET_S: expected a number of seconds, got {text!r}")
    return budget


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def drive(runner: Runner, steps: Sequence[Step], title: str, meta: Mapping[str, Any]) -> int:
    """Runs the steps, keeps summary.json and summary.txt in step with them, prints the table last.

    Returns:
        The exit code: 0 where every step passed.
    """
    folder = runner.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    text = ""

    def write(outcomes: list[Outcome]) -> None:
        nonlocal text
        for leftover in folder.glob("bench.json?*"):  # of an atomic write that was killed
            leftover.unlink()
        rows = figures(_records(folder / "bench.json"))
        seconds = round(time.monotonic() - runner.begin, 1)
        passed = len(outcomes) == len(steps) and all(outcome.passed for outcome in outcomes)
        summary = {**meta, "seconds": seconds, "passed": passed, "steps": [o.to_dict() for o in outcomes]}
        summary_text = json.dumps({**summary, "figures": rows}, indent=1, ensure_ascii=False) + "\n"
        (folder / "summary.json").write_text(summary_text, encoding="utf-8")
        text = render(outcomes, rows, f"{title}, {seconds:.0f} s")
        (folder / "summary.txt").write_text(text, encoding="utf-8")

    outcomes = runner.run(steps, write)
    write(outcomes)
    print("\n" + text, end="", flush=True)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the driver; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole benchmark suite")
    parser.add_argument("--check", action="store_true", help="only say whether there is a GPU")
    options = parser.parse_args(arguments)
    try:
        budget = read_budget(options.full)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    folder = Path(os.environ.get("RESULTS_DIR") or "out").resolve()
    known_commit = commit()
    runner = Runner(folder, budget, children_environment())
    gpu = find_gpu(sys.executable)
    if gpu is None and os.environ.get("MVK_ALLOW_CPU") != "1":
        print("no GPU found: neither torch nor nvidia-smi sees one (MVK_ALLOW_CPU=1 runs the steps on the CPU)")
        return 1
    if options.check:
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    offline = os.environ.get("MVK_OFFLINE") == "1"
    steps = plan(folder, full=options.full, budget=budget, gpu=gpu, offline=offline)
    meta = {
        "gpu": gpu,
        "commit": known_commit,
        "suite": "full" if options.full else "quick",
        "budget_s": budget,
        "python": sys.executable,
    }
    title = f"{gpu or 'CPU'}, commit {known_commit[:12]}, {meta['suite']} suite"
    return drive(runner, steps, title, meta)


if __name__ == "__main__":
    sys.exit(main())
