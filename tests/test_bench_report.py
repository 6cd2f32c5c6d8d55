"""What benchmark results become: files, tables, the README's section, plots and the HTML report."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import bench_fixtures as fixtures
import pytest

from mobilevit_kernels.bench import html, plots, results, tables
from mobilevit_kernels.bench.results import OK, Record, Results

ROOT = Path(__file__).parent.parent
NAMES = ["throughput", "image-size", "latency", "roofline", "stages"]


@pytest.fixture(scope="module")
def gpu() -> Results:
    return fixtures.gpu_results()


@pytest.fixture(scope="module")
def cpu() -> Results:
    return fixtures.cpu_results()


@pytest.fixture(scope="module")
def figures(gpu: Results) -> dict[str, Any]:
    return plots.draw(gpu, work=fixtures.work(), breakdown=fixtures.breakdown())


@pytest.fixture(scope="module")
def svgs(figures: dict[str, Any]) -> dict[str, str]:
    return {name: plots.to_svg(figure) for name, figure in figures.items()}


@pytest.fixture(scope="module")
def report(gpu: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    html.write_report(gpu, path, work=fixtures.work(), breakdown=fixtures.breakdown())
    return path.read_text(encoding="utf-8")


def section(*devices: Results) -> str:
    files = {name: (Path("benchmarks/results", name, "run.json"), r) for name, r in zip("abc", devices, strict=False)}
    return tables.readme_section(files)


def row(table: tables.Table, *start: str) -> dict[str, str]:
    """The one row whose first cells are ``start``, by column."""
    (found,) = [line for line in table.rows if line[: len(start)] == list(start)]
    return dict(zip(table.columns, found, strict=True))


def only(model: str, impl: str, **fields: Any) -> Results:
    """A GPU's file with one record."""
    return Results(fixtures.gpu_meta(), (fixtures.network(model, impl, fields.pop("batch", 1), **fields),))


# Files


def test_a_result_file_comes_back_as_it_was_written(gpu: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "new" / "run.json", gpu.meta, gpu.records)
    assert results.load(tmp_path / "new" / "run.json") == gpu


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=0), "expected a result file with schema 1, got 0"),
        (lambda d: d["meta"].pop("gpu"), "run: meta: lacks gpu"),
        (lambda d: d["meta"].update(threads="two"), "run: meta: threads: expected int, got 'two'"),
        (lambda d: d.update(records={}), "run: records: expected a list, got dict"),
        (lambda d: d["records"][1].pop("ms_p99"), r"run: records\[1\]: lacks ms_p99"),
        (lambda d: d["records"][1].update(speed=1), r"run: records\[1\]: has unknown fields speed"),
        (lambda d: d["records"][1].update(batch=True), r"run: records\[1\]: batch: expected int, got True"),
        (
            lambda d: d["records"][1].update(ms="fast"),
            r"run: records\[1\]: ms: expected float or int or null, got 'fast'",
        ),
        (lambda d: d["records"][1].update(status="fine"), r"run: records\[1\]: status: expected one of .* got 'fine'"),
        (lambda d: d["records"][1].update(ms=None), r"run: records\[1\]: ms: expected a time, since status is 'ok'"),
        (lambda d: d["records"].append(d["records"][0]), "run: records: .*'eager'.* is there twice"),
    ],
)
def test_schema_errors_name_the_field(cpu: Results, change: Any, message: str) -> None:
    data = fixtures.as_json(cpu)
    change(data)
    with pytest.raises(ValueError, match=message):
        results.read(data, "run")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file(
    cpu: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "run.json"
    results.write(path, cpu.meta, cpu.records[:1])

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="no space"):
        results.write(path, cpu.meta, cpu.records)
    with pytest.raises(OSError, match="no space"):
        html.write_report(cpu, path, work={}, breakdown={})
    assert len(results.load(path).records) == 1
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_figure_that_json_has_not_keeps_the_old_file(cpu: Results, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    results.write(path, cpu.meta, cpu.records[:1])
    with pytest.raises(ValueError, match="JSON"):
        results.write(path, cpu.meta, [dataclasses.replace(cpu.records[0], ms=float("nan"))])
    assert len(results.load(path).records) == 1


def test_newest_file_of_each_device_by_its_date_gpus_first(tmp_path: Path) -> None:
    for i, date in enumerate(["2026-12-03T09:00:00", "2026-12-03T11:00:00", "2026-11-30T10:00:00"]):
        for name, meta in (("nvidia-h200", fixtures.gpu_meta), ("cpu", fixtures.cpu_meta)):
            results.write(tmp_path / name / f"{'bca'[i]}.json", meta(date=date), [])
    found = results.newest(tmp_path)
    assert list(found) == ["nvidia-h200", "cpu"]
    assert [path.name for path, _ in found.values()] == ["c.json", "c.json"]
    assert {content.meta["date"] for _, content in found.values()} == {"2026-12-03T11:00:00"}


# Comparison


def changed(ms: float, **fields: Any) -> Record:
    return fixtures.record("job", "eager", ms, model="mobilevit_s", **fields)


@pytest.mark.parametrize(
    ("after", "verdict", "ratio"),
    [
        (changed(5.0), "faster", 2.0),
        (changed(20.0), "slower", 0.5),
        (changed(10.3), "same", 10 / 10.3),
        (dataclasses.replace(changed(5.0), status="parity failed"), "not comparable", None),
        (fixtures.record("job", "eager", None, status="out of memory", model="m"), "not comparable", None),
    ],
)
def test_verdicts(after: Record, verdict: str, ratio: float | None) -> None:
    before = Results(fixtures.gpu_meta(), (changed(10.0),))
    (change,) = results.compare(before, Results(fixtures.gpu_meta(), (after,)))
    assert change.verdict == verdict
    assert change.ratio == (pytest.approx(ratio) if ratio else None)


def test_comparison_says_what_was_added_and_lost_and_sums_up() -> None:
    both = [fixtures.record(job, "eager", 10.0, model=job) for job in ("kept", "lost", "added")]
    before = Results(fixtures.gpu_meta(), (both[0], both[1]))
    after = Results(fixtures.gpu_meta(), (dataclasses.replace(both[0], ms=5.0, ms_p20=4.9, ms_p80=5.1), both[2]))
    head, table = tables.comparison(before, after)
    assert "warning" not in head
    assert "1 faster, 1 new, 1 gone" in head
    assert "geometric mean of before/after over 1 comparable: 2.000×" in head
    assert row(table, "kept")["before/after"] == "2.000×"
    assert row(table, "lost")["after ms"] == row(table, "added")["before ms"] == "not in the file"


def test_comparison_warns_where_the_runs_differ(gpu: Results, cpu: Results) -> None:
    head, _ = tables.comparison(Results(cpu.meta | {"torch": "2.14.0"}, cpu.records), gpu)
    assert "warning: not the same device: AMD EPYC, 2 cores before, NVIDIA H200 after" in head
    assert "warning: not the same torch: 2.14.0 before, 2.15.0 after" in head
    assert "warning: not the same dtypes: float32 before, bfloat16, float16 after" in head


def test_comparison_gives_no_ratio_and_the_reason_where_a_check_failed(gpu: Results) -> None:
    table = tables.comparison(gpu, gpu)[1]
    failed = [line for line in table.rows if "parity failed" in line]
    assert len(failed) == sum(record.status == "parity failed" for record in gpu.records)
    for line in failed:
        cells = dict(zip(table.columns, line, strict=True))
        assert (cells["before/after"], cells["verdict"]) == ("–", "not comparable")
        assert fixtures.PARITY_REASON in cells["note"]


# Tables


def test_summary_has_a_line_a_record_with_its_figures(gpu: Results) -> None:
    table = tables.summary(gpu)
    assert len(table.rows) == len(gpu.records)
    assert {len(line) for line in table.rows} == {len(table.columns)}
    line = row(table, "mobilevit_s", "8", "256×256", "float16", "ours (triton, graph)")
    assert line == {
        "job": "mobilevit_s",
        "batch": "8",
        "size": "256×256",
        "dtype": "float16",
        "implementation": "ours (triton, graph)",
        "median ms": "0.650",
        "p20–p80 ms": "0.637–0.663",
        "images/s": "12,308",
        "× eager": "12.92",
        "% of floor": "12.5",
        "error": "1.1e-03",
        "note": "",
    }


def test_summary_gives_status_and_reason_in_the_place_of_figures(gpu: Results) -> None:
    table = tables.summary(gpu)
    line = row(table, "mobilevit_s", "1024", "256×256", "float16", "eager")
    assert (line["median ms"], line["images/s"], line["note"]) == ("out of memory", "", fixtures.MEMORY_REASON)
    line = row(table, "mobilevit_xxs", "256", "256×256", "float16", "ours (triton)")
    assert (line["median ms"], line["× eager"], line["% of floor"]) == ("0.01230", "parity failed", "")
    assert line["note"] == fixtures.PARITY_REASON
    for record in gpu.records:
        notes = [line[-1] for line in table.rows if line[0] == tables.job_name(record)]
        assert tables.why(record) in notes


def test_summary_says_where_times_had_not_settled() -> None:
    table = tables.summary(only("mobilevit_s", "eager", stable=False))
    assert table.rows[0][-1] == "times had not settled"


def test_a_record_without_a_reason_gets_its_status_explained() -> None:
    record = fixtures.record("job", "eager", None, status="left out", model="m")
    assert tables.why(record) == results.STATUSES["left out"]


def test_peers_that_replayed_a_graph_say_so() -> None:
    record = fixtures.record("job", "sdpa", 1.0, stage="transformer", graph=True)
    assert record.label == "sdpa (graph)"
    assert dataclasses.replace(record, impl="ours", backend="cuda").label == "ours (cuda, graph)"


def test_models_table(gpu: Results) -> None:
    table = tables.models_table(gpu, "float16")
    assert list(row(table, "mobilevit_s", "8").values())[2:] == [
        "1,067",
        "5,333 (max-autotune)",
        "12,308 (triton, graph)",
        "2.31×",
        "12.92×",
        "12.5 %",
    ]
    assert row(table, "mobilevit_xxs", "8")["eager channels_last"] == "not measured"
    out_of_memory = row(table, "mobilevit_s", "32")
    assert out_of_memory["best torch.compile"] == "out of memory"
    assert out_of_memory["ours / best compile"] == "not measured"
    failed = row(table, "mobilevit_xxs", "256")
    assert failed["ours"] == failed["ours / stock eager"] == failed["of the floor"] == "parity failed"
    assert failed["ours / best compile"] == "withheld"
    assert len(table.rows) == 3 * 4, "batch 1024 belongs to the sweep alone"


def test_models_table_is_of_one_dtype(gpu: Results) -> None:
    table = tables.models_table(gpu, "bfloat16")
    assert [line[:2] for line in table.rows] == [[model, batch] for model in fixtures.MODELS for batch in ("1", "8")]
    assert row(table, "mobilevit_s", "1")["best torch.compile"] == "not measured"


def test_latency_and_neighbours(gpu: Results) -> None:
    latency = row(tables.latency_table(gpu, "float16"), "mobilevit_s")
    assert latency["ours"] == "0.300 / 0.360 (triton, graph)"
    assert latency["best torch.compile"] == "0.800 / 0.960 (max-autotune)"
    assert tables.neighbours_table(gpu, "float16").rows == [
        ["DeiT-Tiny", "224×224", "1,923 (compile-max-autotune)", "12,121 (compile-max-autotune)"],
        ["ResNet-50", "256×256", "1,923 (compile-max-autotune)", "12,121 (compile-max-autotune)"],
        ["MobileNetV2", "not measured", "not measured", "not measured"],
    ]


def test_stages_table(gpu: Results) -> None:
    table = tables.stages_table(gpu, "float16")
    assert len(table.rows) == 2 * len(fixtures.STAGES)
    line = row(table, "conv3x3 96→96 32×32", "32")
    assert (line["× best peer"], line["of the floor"]) == ("3.60×", "12.5 %")
    line = row(table, "transformer 96→144×2 32×32", "32")
    assert (line["ours, ms"], line["× best peer"]) == ("parity failed", "withheld")


# README


def test_readme_has_a_part_a_device_gpus_first(gpu: Results, cpu: Results) -> None:
    text = section(cpu, gpu)
    assert text.index("### NVIDIA H200") < text.index("### CPU: AMD EPYC, 2 cores")
    assert (
        "2026-12-01, torch 2.15.0, commit `0123456`, [`benchmarks/results/b/run.json`](benchmarks/results/b/run.json)"
        in text
    )
    assert "| mobilevit_s | 8 | 1,067 | 5,333 (max-autotune) | 12,308 (triton, graph) | 2.31× |" in text
    assert "| mobilevit_s | 1 | 164 | not measured | 239 (torch) | not measured | 1.51× |" in text
    assert "10 parity failed, 4 out of memory, 15 unsupported, 1 failed, 1 left out" in text
    assert "ours (cuda, graph) of mobilevit_xs at batch 1, 8, 32, 256." in text
    assert text == section(cpu, gpu)


def test_readme_without_measurements_says_so(cpu: Results) -> None:
    empty = "| mobilevit_s | any | not measured | not measured | not measured | not measured |"
    gpu_part, cpu_part = section(cpu).split("### CPU")
    assert gpu_part.startswith("### GPU\n")
    assert empty in gpu_part
    assert empty not in cpu_part
    assert section().count(empty) == 2
    assert section(Results(fixtures.gpu_meta(dirty=True), ())).count(empty) == 2
    assert "commit `0123456` with uncommitted changes" in section(Results(fixtures.gpu_meta(dirty=True), ()))


def test_readme_paths_are_relative_to_its_folder(cpu: Results, tmp_path: Path) -> None:
    files = {"cpu": (tmp_path / "benchmarks" / "results" / "cpu" / "run.json", cpu)}
    text = tables.readme_section(files, base=tmp_path)
    assert "(benchmarks/results/cpu/run.json)" in text
    assert str(tmp_path) not in text


def test_readme_cells_cannot_break_out_of_the_table() -> None:
    part = section(Results(fixtures.gpu_meta(device="a <b>| \n## c"), ()))
    assert "### a &lt;b>\\| ## c\n" in part


def test_update_readme(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    assert tables.update_readme(path, "new", check=True)
    assert "old" in path.read_text()
    assert tables.update_readme(path, "new")
    assert path.read_text() == f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n"
    assert not tables.update_readme(path, "new", check=True)
    assert not tables.update_readme(path, "new")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", f"README.md: expected the marker {tables.BEGIN} once, found it 0 times"),
        (tables.BEGIN, f"expected the marker {tables.END} once, found it 0 times"),
        (tables.BEGIN * 2 + tables.END, f"expected the marker {tables.BEGIN} once, found it 2 times"),
        (tables.END + tables.BEGIN, f"expected the marker {tables.BEGIN} before"),
    ],
)
def test_update_readme_refuses_wrong_markers(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        tables.update_readme(path, "new")
    assert path.read_text() == text


def test_the_readme_is_in_step_with_the_result_files() -> None:
    files = results.newest(ROOT / "benchmarks" / "results")
    assert not tables.update_readme(ROOT / "README.md", tables.readme_section(files, base=ROOT), check=True)


# Results that failed their check


def everything(content: Results, folder: Path) -> dict[str, str]:
    """All that a reader sees of a run, as text."""
    html.write_report(content, folder / "report.html", work=fixtures.work(), breakdown=fixtures.breakdown())
    head, changes = tables.comparison(content, content)
    return {
        "summary": "\n".join("|".join(line) for line in tables.summary(content).rows),
        "comparison": head + "\n".join("|".join(line) for line in changes.rows),
        "readme": section(content),
        "html with its plots": (folder / "report.html").read_text(),
    }


def withheld(content: Results) -> set[str]:
    """Every derived figure of the records that failed, as the reports would print it."""
    found = {f"{fixtures.WITHHELD_SPEEDUP:.2f}", f"{fixtures.WITHHELD_SPEEDUP:.3f}", str(fixtures.WITHHELD_SPEEDUP)}
    found |= {f"{100 * fixtures.WITHHELD_FRACTION:.1f}", str(fixtures.WITHHELD_FRACTION)}
    for record in content.records:
        if record.ms == fixtures.WITHHELD_MS:
            rivals = [r for r in content.records if r.job == record.job and r.impl != "ours" and r.ms]
            found |= {f"{r.ms / record.ms:.2f}×" for r in rivals if r.ms}
            rate = record.batch / record.ms * 1e3
            found |= {f"{rate:,.0f}", f"{rate:,.1f}", str(record.images_per_s)}
    return found


def test_nothing_is_derived_from_a_result_that_failed_its_check(gpu: Results, tmp_path: Path) -> None:
    figures = withheld(gpu)
    for place, text in everything(gpu, tmp_path).items():
        numbers = set(re.findall(r"\d[\d.,]*\d×?", text))
        shown = figures & (numbers | {number.rstrip("×") for number in numbers})
        assert not shown, place


def test_the_same_figures_show_where_the_check_passed(gpu: Results, tmp_path: Path) -> None:
    passed = Results(gpu.meta, tuple(dataclasses.replace(r, status=OK) if r.ms else r for r in gpu.records))
    text = everything(passed, tmp_path)
    assert "777.70" in text["summary"]
    assert "777.70×" in text["readme"]
    assert "777.700" in text["html with its plots"]
    assert "ours (cuda, graph)</text>" in text["html with its plots"]


# Plots


def test_every_plot_is_a_png_and_an_svg(gpu: Results, tmp_path: Path) -> None:
    drawn = plots.draw_all(gpu, tmp_path / "new", work=fixtures.work(), breakdown=fixtures.breakdown())
    assert list(drawn) == NAMES
    for name, paths in drawn.items():
        assert [Path(path).name for path in paths] == [f"{name}.png", f"{name}.svg"]
        png, svg = (Path(path).read_bytes() for path in paths)
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png[12:16] == b"IHDR"
        assert min(int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) > 300
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "NVIDIA H200, 2026-12-01" in svg.decode()


def test_plots_without_their_records_say_why(cpu: Results, tmp_path: Path) -> None:
    drawn = plots.draw_all(cpu, tmp_path, work={}, breakdown={})
    assert {name: text for name, text in drawn.items() if isinstance(text, str)} == {
        "image-size": "not drawn: the file has no records of networks over the image size (suite size-sweep)",
        "roofline": "not drawn: the file has no records of stages",
        "stages": "not drawn: no network has a time for each of its stages",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latency.png",
        "latency.svg",
        "throughput.png",
        "throughput.svg",
    ]


def test_a_plot_of_failures_alone_counts_them() -> None:
    record = fixtures.record("job", "eager", None, model="mobilevit_s", status="out of memory")
    drawn = plots.draw(Results(fixtures.gpu_meta(), (record,)), work={}, breakdown={})
    assert drawn["throughput"] == "not drawn: nothing was measured of networks at 256×256 (1 out of memory)"


@pytest.mark.parametrize(
    ("ceilings", "message"),
    [
        ({"bandwidth": None, "matrix_flops": {"float16": 1e14}, "special": None}, "the bandwidth"),
        ({"bandwidth": 1e12, "matrix_flops": {"float16": None}, "special": None}, "float16 matrix products"),
        ({}, "the bandwidth and float16 matrix products"),
    ],
)
def test_no_roofline_without_roofs(gpu: Results, ceilings: dict[str, Any], message: str) -> None:
    drawn = plots.draw(Results(gpu.meta | {"ceilings": ceilings}, gpu.records), work=fixtures.work(), breakdown={})
    assert drawn["roofline"] == f"not drawn: no ceiling was measured of {message}"


def words(svg: str) -> str:
    """The text of an SVG, unwrapped."""
    return " ".join(re.sub(r"<[^>]+>", " ", svg).split())


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_throughput_has_the_measured_points_and_a_gap_for_the_others(figures: dict[str, Any]) -> None:
    xxs, xs, s = figures["throughput"].axes
    assert [axes.get_title() for axes in (xxs, xs, s)] == list(fixtures.MODELS)
    assert lines(s)["ours (triton, graph)"][1] == pytest.approx((8, 8 / 0.65 * 1e3))
    assert (s.get_xscale(), s.get_xlabel(), xxs.get_ylabel()) == ("log", "batch", "images/s")
    batches, rates = zip(*lines(xxs)["ours (triton)"], strict=True)
    assert batches == (1, 8, 32, 256, 1024)
    assert [rate != rate for rate in rates] == [False, False, False, True, False]
    assert "ours (cuda, graph)" not in lines(xs)
    assert "tensorrt" not in lines(s)


def test_image_size_is_milliseconds_an_image(figures: dict[str, Any]) -> None:
    s = figures["image-size"].axes[2]
    assert s.get_title() == "mobilevit_s, batch 32"
    expected = (0.25 + 0.05 * 32 * 4) / 32
    assert lines(s)["ours (triton, graph)"][-1] == pytest.approx((512, expected))


def test_latency_spans_p20_to_p99(figures: dict[str, Any]) -> None:
    axes = figures["latency"].axes[2]
    spans = [line.get_segments()[0] for line in axes.collections]
    assert [0.98 * 0.3, 1.2 * 0.3] in [[pytest.approx(x) for x in span[:, 0]] for span in spans]
    labels = [label.get_text() for label in figures["latency"].axes[0].get_yticklabels()]
    assert labels[0] == "ours (triton, graph)"
    assert labels[-1] == "eager"


def test_roofline_points_and_roof(figures: dict[str, Any]) -> None:
    (axes,) = figures["roofline"].axes
    points = [(line.get_marker(), *line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]
    stage, case, flops, values = fixtures.STAGES[3]
    floor = 32 * flops / 7.0e14 * 1e3
    assert (stage, case) == ("conv3x3", "96→96 32×32")
    for times in (2.5, 9):
        assert any(
            point[1:] == pytest.approx((flops / (2 * values), 32 * flops / (times * floor) / 1e9)) for point in points
        )
    assert sum(marker == "_" for marker, *_ in points) == len(fixtures.STAGES)
    assert sum(marker == "D" for marker, *_ in points) == 1, "ours failed its check in the transformer"
    (roof,) = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 3]
    assert roof[1] == pytest.approx((7.0e14 / 4.1e12, 700))
    assert roof[0][1] / roof[0][0] == pytest.approx(4.1)


def test_roofline_counts_jobs_of_unknown_work(gpu: Results) -> None:
    work = fixtures.work()
    del work[fixtures.stage_job(*fixtures.STAGES[0][:2], 32)]
    figure = plots.draw(gpu, work=work, breakdown={})["roofline"]
    assert "1 jobs whose operations and bytes are not known" in words(plots.to_svg(figure))
    assert "no operations and bytes" in str(plots.draw(gpu, work={}, breakdown={})["roofline"])


def test_breakdown_counts_a_repeated_stage_twice_and_draws_no_partial_sum(
    gpu: Results, figures: dict[str, Any], svgs: dict[str, str]
) -> None:
    s, xxs = figures["stages"].axes
    floors = [next(gpu.select(job=fixtures.stage_job(stage, case, 32))).floor_ms for stage, case, *_ in fixtures.STAGES]

    def tops(axes: Any) -> dict[int, float]:
        found: dict[int, float] = {}
        for bar in axes.patches:
            x = round(bar.get_x() + bar.get_width() / 2)
            found[x] = max(found.get(x, 0.0), bar.get_y() + bar.get_height())
        return found

    assert tops(s) == {0: pytest.approx(9 * (sum(floors) + floors[1])), 2: pytest.approx(sum(floors) + floors[1])}
    rest = sum(floors) - floors[4]
    assert tops(xxs) == {0: pytest.approx(9 * rest), 1: pytest.approx(2.5 * rest), 2: pytest.approx(rest)}
    assert "mobilevit_s, ours: no time for 1 of 7 stages" in words(svgs["stages"])


def test_plots_name_what_they_do_not_show(gpu: Results, svgs: dict[str, str]) -> None:
    text = words(svgs["throughput"])
    for phrase in (
        "Not shown: tensorrt unsupported (mobilevit_xxs batch 1 256×256 and 14 more)",
        "ours (cuda, graph) parity failed (mobilevit_xs batch 1 256×256 and 4 more)",
        "eager out of memory (mobilevit_s batch 1024 256×256)",
        "compile-default failed (mobilevit_s batch 256 256×256)",
    ):
        assert phrase in text


def test_an_implementation_looks_the_same_in_every_plot(figures: dict[str, Any]) -> None:
    looks: dict[str, set[tuple[str, str]]] = {}
    for name in ("throughput", "image-size"):
        for axes in figures[name].axes:
            for line in axes.lines:
                looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_marker()))
    assert {len(look) for look in looks.values()} == {1}
    assert looks["ours (triton)"] == looks["ours (triton, graph)"]
    assert len(set().union(*looks.values())) == len(looks) - 1


def test_plots_of_the_only_dtype_there_is() -> None:
    figure = plots.draw(only("mobilevit_s", "eager", dtype="bfloat16"), work={}, breakdown={})["throughput"]
    assert "Throughput by batch, 256×256, bfloat16" in plots.to_svg(figure)


def test_a_long_sweep_labels_what_there_is_room_for() -> None:
    records = [fixtures.network("mobilevit_s", "eager", 2**i, suites=("batch-sweep",)) for i in range(11)]
    figure = plots.draw(Results(fixtures.gpu_meta(), tuple(records)), work={}, breakdown={})["throughput"]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["1", "", "4", "", "16", "", "64", "", "256", "", "1024"]


def test_plots_are_deterministic(gpu: Results, svgs: dict[str, str]) -> None:
    again = plots.draw(gpu, work=fixtures.work(), breakdown=fixtures.breakdown())
    assert plots.to_svg(again["stages"]) == svgs["stages"]


def test_without_matplotlib(cpu: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'mobilevit-kernels\[bench\]'"):
        plots.draw_all(cpu, tmp_path, work={}, breakdown={})
    html.write_report(cpu, tmp_path / "report.html", work={}, breakdown={})
    assert Page((tmp_path / "report.html").read_text()).text.count("not drawn: plots need matplotlib") == len(NAMES)


# The HTML report


class Page(HTMLParser):
    """A page's text, attributes and rows; AssertionError where tags do not nest."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.sortable_rows = 0
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        self.sortable_rows += tag == "tr" and ("table", "class", "sortable") in self.attributes

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.words.append(" " * (tag in ("td", "th")))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_is_well_formed_and_asks_for_nothing(report: str) -> None:
    page = Page(report)
    assert "http:" not in report
    assert "https:" not in report
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action", "data")]
    assert "@import" not in report
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    links += [f"#{target}" for target in re.findall(r"url\(#([^)]+)\)", report)]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    assert "default-src 'none'" in report


def test_report_escapes_what_comes_from_the_run(report: str) -> None:
    assert "<script>alert" not in report
    assert report.count("<script") == 1
    assert fixtures.FAILED_REASON in Page(report).text


def test_report_has_every_record_and_reason(gpu: Results, report: str) -> None:
    page = Page(report)
    records, method = page.text.split("All records")[-1].split("A time is the median")
    assert page.sortable_rows == 1 + len(gpu.records)
    for reason in fixtures.REASONS:
        assert reason in page.text.split("What was not measured")[1].split("All records")[0]
        assert reason in records
    for label in {record.label for record in gpu.records}:
        assert label in records
    assert "quantiles" in method


def test_report_has_meta_ceilings_tables_and_plots(report: str) -> None:
    text = Page(report).text
    for phrase in (
        "NVIDIA H200",
        "commit 0123456789abcdef",
        "copy bandwidth 4,100.0 GB/s",
        "matrix products, float16 700.0 TFLOP/s",
        "special functions 4,400.0 G/s",
        "Networks, images a second, 256×256, bfloat16",
        "12,308 (triton, graph)",
        "Roofline of the stages, batch 32, float16",
    ):
        assert phrase in text
    assert report.count("<svg") == len(NAMES)
    assert "prefers-color-scheme: dark" in report
    for fixed in (plots.INK, plots.PAPER, plots.GRID):
        assert fixed not in report.split("</style>")[1], "plots take the page's colours"


def test_report_of_a_cpu_says_what_was_not_measured(cpu: Results, tmp_path: Path) -> None:
    html.write_report(cpu, tmp_path / "report.html", work={}, breakdown={})
    text = Page((tmp_path / "report.html").read_text()).text
    assert "special functions not measured" in text
    assert "not drawn: the file has no records of stages" in text
    assert "Nothing: every record of this run was measured" in text
    assert "gpu none" in text


def test_results_are_plain_json(gpu: Results) -> None:
    assert results.read(json.loads(json.dumps(fixtures.as_json(gpu)))) == gpu


def test_files_from_before_draws_were_counted(gpu: Results) -> None:
    data = json.loads(json.dumps(fixtures.as_json(gpu)))
    for values in data["records"]:
        assert values.pop("draws") == 1
    assert results.read(data) == gpu


def test_errors_over_several_draws_are_marked(gpu: Results) -> None:
    record = fixtures.record("job", "ours", 1.0, model="mobilevit_xs", draws=8)
    table = tables.summary(dataclasses.replace(gpu, records=(record,)))
    assert [line[-1] for line in table.rows] == ["error over 8 draws of weights"]
