"""The command line: results, JSON, exit codes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import bench_fixtures
import pytest
import torch
from conftest import skip_unless_available
from PIL import Image
from safetensors.torch import save_file
from stock import timm_model

from mobilevit_kernels.bench import results as bench_results
from mobilevit_kernels.cli import main


@pytest.fixture
def run(capsys):
    """Runs the command line: (exit code, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(part) for part in argv])
        captured = capsys.readouterr()
        return int(caught.value.code), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photograph.png"
    pixels = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.mark.parametrize("command", ["", "info", "verify", "bench", "tune", "classify", "evaluate", "demo"])
def test_help(run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out
    assert len(out) > 200


def test_info(run) -> None:
    code, out, _ = run("info", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["backends"]["torch"]["available"] is True
    assert set(data["backends"]) == {"cuda", "triton", "torch", "simt"}
    assert all(status["reason"] for status in data["backends"].values())
    code, out, _ = run("info")
    assert code == 0
    assert torch.__version__.split("+")[0] in out


def test_verify(run) -> None:
    options = ("--model", "mobilevit_xxs", "--dtype", "float32", "--size", 32, "--backend", "torch")
    code, out, _ = run("verify", "--json", *options)
    data = json.loads(out)
    assert code == 0
    assert data["passed"]
    names = {row["name"].split()[0] for row in data["rows"]}
    assert names == {"stem", "conv3x3", "inverted_residual", "transformer", "head", "mobilevit_xxs"}
    assert all(0 < row["rel_l2_err"] <= 1e-5 for row in data["rows"])
    code, out, _ = run("verify", *options)
    assert "0 failed" in out


def test_verify_fails_on_a_wrong_result(run, monkeypatch) -> None:
    import mobilevit_kernels.torch.head as head

    right = head.run
    monkeypatch.setattr(head, "run", lambda *args, **kwargs: right(*args, **kwargs) * 1.001)
    options = ("--model", "mobilevit_xxs", "--dtype", "float32", "--size", 32, "--backend", "torch")
    code, out, _ = run("verify", "--json", *options)
    assert code == 1
    failed = {row["name"].split()[0] for row in json.loads(out)["rows"] if not row["passed"]}
    assert failed == {"head", "mobilevit_xxs"}


def test_classify_with_random_weights_prints_no_names(run, photograph: Path) -> None:
    code, out, _ = run("classify", photograph, "--model", "mobilevit_xxs")
    assert code == 0
    assert "random weights" in out
    code, out, _ = run("classify", photograph, photograph, "--model", "mobilevit_xxs", "--json", "--top", 3)
    data = json.loads(out)
    assert code == 0
    assert len(data["images"]) == 2
    assert data["images"][0]["classes"] == data["images"][1]["classes"]
    assert len(data["images"][0]["classes"]) == 3
    assert not any("name" in entry for entry in data["images"][0]["classes"])


def test_classify_with_a_checkpoint(run, photograph: Path, tmp_path: Path) -> None:
    from mobilevit_kernels.cli._common import read_image

    stock = timm_model("mobilevit_xxs")
    save_file(stock.state_dict(), tmp_path / "xxs.safetensors")
    code, out, _ = run(
        "classify", photograph, "--model", "mobilevit_xxs", "--checkpoint", tmp_path / "xxs.safetensors", "--json"
    )
    assert code == 0
    best = json.loads(out)["images"][0]["classes"]
    with torch.inference_mode():
        logits = stock(read_image(photograph).permute(2, 0, 1).unsqueeze(0) / 255)
    expected = logits.softmax(-1)[0].topk(5)
    assert [entry["index"] for entry in best] == expected.indices.tolist()
    assert [entry["probability"] for entry in best] == pytest.approx(expected.values.tolist(), rel=1e-3)
    assert all(entry["name"] for entry in best)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Weights of a network of three classes, xxs.pt, and six labelled images in data/."""
    folder = tmp_path_factory.mktemp("labelled")
    torch.save(timm_model("mobilevit_xxs", num_classes=3).state_dict(), folder / "xxs.pt")
    for name in "abc":
        (folder / "data" / name).mkdir(parents=True)
        for i in range(2):
            generator = torch.Generator().manual_seed(10 * ord(name) + i)
            pixels = torch.randint(0, 256, (260, 260, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / "data" / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluate(run, labelled: Path, workers: int) -> None:
    options = ("--model", "mobilevit_xxs", "--checkpoint", labelled / "xxs.pt", "--batch", 4, "--workers", workers)
    code, out, _ = run("evaluate", labelled / "data", *options, "--json")
    data = json.loads(out)
    assert code == 0
    assert data["images"] == 6
    assert data["unreadable"] == []
    assert data["stock"] == data["fused"]
    assert data["top1_agreement"] == data["top5_agreement"] == 1.0
    assert data["fused"]["top5"] == 1.0  # three classes
    assert 0 < data["mean_abs_error"] <= data["max_abs_error"] < 1e-4
    assert data["relative_l2_error"] <= 1e-5
    code, out, _ = run("evaluate", labelled / "data", *options, "--dtype", "bfloat16")
    assert code == 0
    assert "6 images, bfloat16 against the stock model in float32 on cpu: max error" in out
    assert "top-5 agreement 100.00 %" in out
    assert run("evaluate", labelled / "data", "--model", "mobilevit_xxs")[0] == 2  # 1000 classes, 3 folders


def test_evaluate_sees_a_wrong_result(run, labelled: Path, monkeypatch) -> None:
    import mobilevit_kernels.torch.head as head

    right = head.run
    monkeypatch.setattr(head, "run", lambda *args, **kwargs: -right(*args, **kwargs))
    options = ("--model", "mobilevit_xxs", "--checkpoint", labelled / "xxs.pt", "--json")
    code, out, _ = run("evaluate", labelled / "data", *options)
    data = json.loads(out)
    assert code == 0
    assert data["relative_l2_error"] == pytest.approx(2, rel=1e-3)
    assert data["top1_agreement"] == 0
    assert data["top5_agreement"] == 1.0  # three classes


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluate_leaves_out_unreadable_images(run, labelled: Path, tmp_path: Path, workers: int) -> None:
    data = tmp_path / "data"
    shutil.copytree(labelled / "data", data)
    (data / "b" / "0.png").write_bytes((data / "b" / "1.png").read_bytes()[:2000])
    (data / "c" / "notes.jpg").write_text("not a picture")
    options = ("--model", "mobilevit_xxs", "--checkpoint", labelled / "xxs.pt", "--batch", 1, "--workers", workers)
    code, out, err = run("evaluate", data, *options, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["images"] == 5
    assert [Path(entry["image"]).name for entry in result["unreadable"]] == ["0.png", "notes.jpg"]
    assert [line.split(": ")[1] for line in err.splitlines()] == [entry["image"] for entry in result["unreadable"]]
    code, out, _ = run("evaluate", data, *options)
    assert code == 0
    assert "2 of 7 images could not be read and were left out" in out
    for path in data.rglob("*.png"):
        path.write_text("not a picture")
    code, _, err = run("evaluate", data, *options)
    assert code == 2
    assert err.splitlines()[-1] == f"mobilevit-kernels: error: FOLDER: none of the 7 images below {data} can be read"


BENCH = ("bench", "--model", "mobilevit_xxs", "--batch", 1, "--size", 64, "--rounds", 3, "--suite", "models")


def test_bench(run, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    code, out, err = run(*BENCH, "--output", file, "--json")
    assert code == 0
    assert json.loads(out)["meta"]["gpu"] is None
    content = bench_results.load(file)
    assert [record.label for record in content.records] == ["eager", "eager-channels_last", "ours (torch)"]
    assert content.records[0].speedup == pytest.approx(1.0)
    assert all(record.ms_p20 <= record.ms <= record.ms_p80 for record in content.records)
    assert "no GPU" in " ".join(content.meta["left_out"])
    assert err.count("model/mobilevit_xxs/b1/64x64/float32") == 3, "a line a record, for logs"
    code, out, _ = run(*BENCH, "--output", file, "--resume")
    assert code == 0
    assert bench_results.load(file) == content, "nothing was run again"
    assert "ours (torch)" in out
    assert f"written: {file}" in out


def test_bench_withholds_the_ratio_of_a_wrong_result(run, monkeypatch, tmp_path: Path) -> None:
    import mobilevit_kernels.torch.head as head

    right = head.run
    monkeypatch.setattr(head, "run", lambda *args, **kwargs: right(*args, **kwargs) * 1.001)
    code, out, _ = run(*BENCH, "--output", tmp_path / "out.json", "--json")
    assert code == 1
    ours = json.loads(out)["records"][-1]
    assert ours["speedup"] is None
    assert ours["status"] == "parity failed"


def test_bench_list_runs_nothing(run) -> None:
    code, out, _ = run("bench", "--list", "--quick")
    assert code == 0
    assert out.splitlines()[0].startswith("model/mobilevit_s/b1/256x256/float32  eager, eager-channels_last, ours")


def test_bench_commands(run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    content = bench_fixtures.gpu_results()
    bench_results.write(old, bench_fixtures.gpu_meta(), ())
    bench_results.write(new, content.meta, content.records)
    code, out, _ = run("bench", "compare", old, new)
    assert code == 0
    assert "new" in out
    code, out, _ = run("bench", "compare", old, new, "--json")
    assert {row["verdict"] for row in json.loads(out)} == {"new"}
    code, out, _ = run("bench", "plot", new, "--output", tmp_path / "plots")
    assert code == 0
    assert "throughput: " in out
    assert (tmp_path / "plots" / "throughput.svg").exists()
    code, _, _ = run("bench", "report", new, "--output", tmp_path / "report.html")
    assert code == 0
    assert "NVIDIA H200" in (tmp_path / "report.html").read_text()


def test_bench_readme(run, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# x\n\n<!-- benchmarks:begin -->\n\n<!-- benchmarks:end -->\n")
    assert run("bench", "readme", "--path", readme, "--check")[0] == 1
    assert run("bench", "readme", "--path", readme)[:2] == (0, f"{readme}: updated\n")
    assert run("bench", "readme", "--path", readme, "--check")[:2] == (0, f"{readme}: in step\n")


def test_demo_names_a_checkpoint_it_cannot_take(run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("timm")
    from stock import transformers_model

    other = tmp_path / "transformers.pt"
    torch.save(transformers_model("mobilevit_xxs").state_dict(), other)
    readme = Path(__file__).parent.parent / "README.md"
    for checkpoint, message in (
        (tmp_path / "nope.safetensors", "nope.safetensors: no such checkpoint file"),
        (readme, "README.md: is damaged, incomplete, or no file of plain tensors"),
        (other, "--checkpoint: expected timm's weights, .*transformers.pt has those of another code base"),
    ):
        code, out, err = run("demo", "--model", "mobilevit_xxs", "--checkpoint", checkpoint)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert re.search(message, err), err


def test_labels_are_read_without_a_checkpoint_too(run, tmp_path: Path) -> None:
    image = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(image)
    code, _, err = run("classify", image, "--model", "mobilevit_xxs", "--labels", tmp_path / "nope.txt")
    assert code == 2
    assert "--labels: " in err
    code, out, _ = run("classify", image, "--model", "mobilevit_xxs")
    assert code == 0
    assert str(image) in out  # in one piece, however long


def test_demo(run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plots" / "demo.png"
    options = ("--model", "mobilevit_xxs", "--rounds", 3, "--output", plot)
    code, out, _ = run("demo", "--json", *options)
    data = json.loads(out)
    assert code == 0
    assert data["parity"]["passed"]
    assert data["image"] == "grace_hopper.jpg"
    assert data["top5"]["stock"]["index"] == data["top5"]["fused"]["index"]
    with Image.open(plot) as image:
        assert image.size[0] > 500


@pytest.mark.parametrize(
    "argv",
    [
        "frobnicate",
        "classify",
        "classify nowhere.jpg",
        "classify {text}",
        "classify {image} --checkpoint {text}",
        "classify {image} --checkpoint nowhere.pt",
        "classify {image} --model mobilevit_m",
        "classify {image} --device cuda:99",
        "classify {image} --device gpu",
        "classify {image} --top 0",
        "classify {folder}",
        "evaluate nowhere",
        "evaluate {folder}",
        "evaluate {folder} --workers -1",
        "bench --batch 0",
        "bench --only nonsense",
        "bench --suite all",
        "bench compare nowhere.json {text}",
        "bench report {text}",
        "bench plot nowhere.json",
        "bench compare {folder} {image}",
        "bench readme --path {text}",
        "verify --dtype int8",
        "verify --backend cuda --device cpu",
        "demo --image {text}",
    ],
)
def test_wrong_arguments(run, photograph: Path, tmp_path: Path, argv: str) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a picture, not a checkpoint\n")
    code, out, err = run(*argv.format(text=text, image=photograph, folder=tmp_path).split())
    assert code == 2, out + err
    assert err.count("\n") == 1, err
    assert err.startswith("mobilevit-kernels: error: ")
    assert "Traceback" not in err


def test_a_half_dtype_is_hinted_at(run, photograph: Path) -> None:
    code, _, err = run("classify", str(photograph), "--backend", "simt", "--model", "mobilevit_xxs")
    assert code == 2
    assert "not in float32; --dtype float16 chooses another" in err


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevit_kernels.simt import _build

    skip_unless_available("simt")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MVK_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match=r"MVK_CACHE_DIR: expected a folder that can be written to, .*/file/simt"):
        _build.build()
    assert not _build.is_built()


def test_cuda_without_an_index_is_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tensors on it say: what is packed for "cuda" serves them, and torch.cuda.set_device() wants a number."""
    from mobilevit_kernels import machine

    assert machine.indexed("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.indexed("cuda") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert machine.indexed("cuda") == torch.device("cuda:1")
    assert machine.indexed("cuda:0") == torch.device("cuda:0")
