"""The performance pages say what the CSV files hold, and the page of limits what the rule reads."""

import csv
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import atrousx
from atrousx.backend import rule

ROOT = Path(__file__).resolve().parents[1]
CONVOLUTION = (
    "date,commit,device,machine,torch,library,threads,dtype,memory_format,batch,name,in_channels,"
    "out_channels,kernel,dilation,extent,groups,pass,live_fraction,ratio,auto_ratio,wrong"
)


@pytest.fixture
def docs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    names = ("measurements", "performance", "networks", "deployment", "training_speed", "limits")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def results(docs, monkeypatch, tmp_path):
    """A folder of results in place of the project's, with an empty folder of one machine."""
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(docs.measurements, "RESULTS", tmp_path)
    return tmp_path


def convolution(name, ratio, date="2026-01-02", run="forward", wrong=""):
    start = f"{date},abc,cpu,A CPU,2.13,oneDNN,2,float32,contiguous,1,{name}"
    return f"{start},512,256,3,12,33,1,{run},0.574,{ratio},1.01,{wrong}"


def write(path, header, *lines):
    path.write_text("\n".join((header, *lines)) + "\n")


def tables(text):
    """Each table of a page, as a list of rows of cells, the header first."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells = [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in lines.splitlines()]
        for lines in found
    ]
    return [[table[0], *table[2:]] for table in cells]


def table_under(text, heading):
    return tables(text[text.index(heading) :])[0]


def test_the_newest_measurement_of_a_case_counts(docs, results):
    old = convolution("a", "9.00", date="2026-01-01")
    write(results / "small" / "atrous_conv2d-new.csv", CONVOLUTION, convolution("a", "2.50"))
    write(results / "small" / "atrous_conv2d-old.csv", CONVOLUTION, old)
    page = docs.performance.page("small")
    assert table_under(page, "### float32, batch 1, 2 threads, NCHW") == [
        ["layer", "forward"],
        ["`a`", "2.50"],
    ]
    assert "9.00" not in page


def test_a_ratio_is_slower_exactly_where_it_is_printed_so(docs, results):
    ratios = {"a": "0.994", "b": "0.996", "c": "1.004", "d": "9.994", "e": "9.996", "f": "123.4"}
    lines = [convolution(name, ratio) for name, ratio in ratios.items()]
    write(results / "small" / "atrous_conv2d.csv", CONVOLUTION, *lines)
    page = docs.performance.page("small")
    cells = {
        row[0]: row[1] for row in table_under(page, "### float32, batch 1, 2 threads, NCHW")[1:]
    }
    expected = {"a": "**0.99**", "b": "1.00", "c": "1.00", "d": "9.99", "e": "10", "f": "123"}
    assert cells == {f"`{name}`": text for name, text in expected.items()}
    assert "PyTorch is faster in 1 of 6 measured lines." in page
    slower = table_under(page, "## Where PyTorch is faster")
    assert slower[1:] == [["`a`, forward, float32, NCHW, batch 1, 2 threads", "**0.99**", "1.01"]]


def test_a_wrong_result_has_no_ratio(docs, results):
    lines = [convolution("a", "0.5", wrong="torch"), convolution("b", "2.0", wrong="atrousx")]
    write(results / "small" / "atrous_conv2d.csv", CONVOLUTION, *lines)
    page = docs.performance.page("small")
    cells = dict(table_under(page, "### float32, batch 1, 2 threads, NCHW")[1:])
    assert cells == {"`a`": "PyTorch wrong", "`b`": "atrousx wrong"}
    assert "PyTorch is faster in 0 of 0 measured lines." in page
    assert "1 more line is left out: there PyTorch's result was wrong." in page
    assert "1 more line is left out: there atrousx's result was wrong." in page
    assert "## Summary" not in page


UPSAMPLING = (
    "date,commit,device,machine,torch,library,threads,dtype,memory_format,shape,n,c,h,w,oh,ow,"
    "operator,pass,ratio"
)


def test_batches_of_one_shape_have_lines_of_their_own(docs, results):
    start = "2026-01-02,abc,cpu,A CPU,2.13,oneDNN,2,float32,contiguous,voc_x8"
    lines = [f"{start},{n},21,65,65,513,513,cross_entropy,forward,{n}.50" for n in (1, 2)]
    write(results / "small" / "upsample.csv", UPSAMPLING, *lines)
    assert table_under(docs.performance.page("small"), "### float32, NCHW, 2 threads") == [
        ["maps", "cross-entropy, forward"],
        ["`voc_x8` 1x21x65x65 to 513x513", "1.50"],
        ["`voc_x8` 2x21x65x65 to 513x513", "2.50"],
    ]


def test_a_folder_without_measurements_of_operators_has_no_page(docs, results):
    write(results / "small" / "limits-avx2.csv", "instruction_set,date", "avx2,2026-01-01")
    assert docs.measurements.machines() == []
    write(results / "small" / "atrous_conv2d.csv", CONVOLUTION, convolution("a", "2.0"))
    assert docs.measurements.machines() == ["small"]


TRAINED = "2026-01-02,abc,cpu,A CPU,2.13,oneDNN,2,bfloat16"
TRAINING = "date,commit,device,machine,torch,library,threads,dtype,memory_format,batch,extent,width"
STEPS = (
    f"{TRAINING},atrousx_s,recomputed_s,torchvision_s,ratio,ratio_to_best_layout,"
    "atrousx_peak_mib,recomputed_peak_mib,torchvision_peak_mib"
)


def test_training_steps_are_listed_beside_torchvisions(docs, results):
    lines = [
        f"{TRAINED},contiguous,4,513,1.0,2.0,2.5,5.0,2.5,1.5,1000.4,800.2,2000.6",
        f"{TRAINED},channels_last,4,513,1.0,4.0,4.5,3.0,0.75,0.75,,,",
    ]
    write(results / "small" / "training_step.csv", STEPS, *lines)
    page = docs.performance.page("small")
    assert table_under(page, "### Training step, bfloat16, batch 4, crop 513x513, 2 threads")[
        1:
    ] == [
        ["NCHW", "2.000", "2.500", "5.000", "2.50", "1.50", "1000", "800", "2001", "2026-01-02"],
        [
            "channels_last",
            "4.000",
            "4.500",
            "3.000",
            "**0.75**",
            "**0.75**",
            "",
            "",
            "",
            "2026-01-02",
        ],
    ]
    name = "training step, bfloat16, batch 4, crop 513x513, 2 threads, channels_last"
    assert table_under(page, "## Where PyTorch is faster")[1:] == [[name, "**0.75**", ""]]
    assert "PyTorch is faster in 1 of 2 measured lines." in page
    summary = table_under(page, "## Summary")
    assert summary[1] == ["training steps", "bfloat16", "2", "**0.75**", "1.62", "2.50"]


def test_training_steps_without_torchvision_have_no_ratio(docs, results):
    line = f"{TRAINED},contiguous,2,65,0.1,2.0,2.1,,,,1000.4,800.2,"
    write(results / "small" / "training_step.csv", STEPS, line)
    page = docs.performance.page("small")
    heading = "### Training step, bfloat16, batch 2, crop 65x65, width 0.1, 2 threads"
    assert table_under(page, heading)[1][:6] == ["NCHW", "2.000", "2.100", "", "", ""]
    assert "## Where PyTorch is faster" not in page
    assert "## Summary" not in page


def test_loading_and_memory_of_the_loss_are_listed(docs, results):
    case = "bfloat16, batch 4, crop 513x513, 2 threads"
    write(
        results / "small" / "training_loading.csv",
        f"{TRAINING},workers,loaded_images_per_s,trained_images_per_s,ratio",
        f"{TRAINED},channels_last,4,513,1.0,1,80.04,0.5,160.08",
        f"{TRAINED},channels_last,4,513,1.0,2,150.0,0.5,300",
    )
    write(
        results / "small" / "memory_of_loss.csv",
        f"{TRAINING},atrousx_peak_mib,full_size_logits_peak_mib",
        f"{TRAINED},channels_last,4,513,1.0,1000.2,1200.7",
    )
    page = docs.performance.page("small")
    assert table_under(page, "### Reading and augmenting images")[1:] == [
        [case, "1", "80.0", "0.500", "160.1"],
        [case, "2", "150.0", "0.500", "300.0"],
    ]
    expected = [f"{case}, channels_last", "1000", "1201"]
    assert table_under(page, "### Memory of the loss")[1:] == [expected]


def newest(machine, kind, *case):
    """The CSV files read once more, without the generator."""
    found = {}
    for path in sorted((ROOT / "benchmarks" / "results" / machine).glob(f"{kind}*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = tuple(row[column] for column in case)
                if key not in found or found[key]["date"] <= row["date"]:
                    found[key] = row
    return found


def test_speeds_of_networks_are_those_of_the_files(docs):
    case = ("dtype", "memory_format", "batch", "threads", "model", "extent")
    layouts = {"contiguous": "NCHW", "channels_last": "channels_last"}
    counted = 0
    for machine in docs.measurements.machines():
        page = docs.performance.page(machine)
        for row in newest(machine, "deeplab", *case).values():
            run = f"{row['dtype']}, {layouts[row['memory_format']]}, batch {row['batch']}"
            header, *lines = table_under(page, f"### Networks, {run}, {row['threads']} thread")
            cells = next(line for line in lines if line[0] == f"`{row['model']}`")
            line = dict(zip(header, cells, strict=True))
            optimized = float(row["optimized_images_per_s"])
            assert abs(float(line["optimized"]) - optimized) < 0.00501
            ratio = optimized / float(row["torch_images_per_s"])
            shown = float(line["ratio to PyTorch's layers"].strip("*"))
            assert abs(shown - ratio) < 0.00501
            counted += 1
    assert counted >= 20


def test_builders_make_the_networks_that_were_measured(docs, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    bench = importlib.import_module("bench_deeplab")
    assert set(docs.networks.BUILDERS) == set(bench.MODELS)
    machines = docs.measurements.machines()
    rows = [row for name in machines for row in newest(name, "deeplab", "model").values()]
    for row in rows:
        with torch.device("meta"):
            model = eval(docs.networks.BUILDERS[row["model"]], vars(atrousx.models)).eval()
            image = torch.empty(1, 3, int(row["extent"]), int(row["extent"]))
        assert sum(p.numel() for p in model.parameters()) == int(row["parameters"]), row["model"]
        found = [round(count * 1e-9, 2) for count in bench.operations(model, image)]
        assert found == [float(row["gflop"]), float(row["live_gflop"])], row["model"]
    assert len(rows) >= 17


def test_speeds_beside_other_runtimes_are_those_of_the_files(docs):
    counted = 0
    for machine in docs.measurements.machines():
        rows = docs.measurements.measured(machine, "deployment")
        text = docs.deployment.section(machine)
        assert bool(text) == bool(rows)
        for row in rows:
            speeds = {side: row[f"{side}_images_per_s"] for side in docs.deployment.SIDES}
            others = [float(v) for side, v in speeds.items() if v and side != "atrousx"]
            assert float(row["ratio"]) == pytest.approx(
                float(speeds["atrousx"]) / max(others), abs=1e-3
            )
            assert all(value in text for value in speeds.values())
            counted += 1
    assert counted >= 2


SHOWN = {"training": "trains", "forward": "infers", "optimized": "packed"}
SHOWN["optimized, ReLU"] = "packed, ReLU"


@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"])
def test_limits_are_those_that_the_rule_reads(docs, instruction_set):
    page, limits = docs.limits.page(), rule.limits_of(instruction_set)
    for dtype in ("float32", "bfloat16"):
        for layout, name in (("contiguous", "NCHW"), ("channels_last", "channels_last")):
            header, *lines = table_under(page, f"### {instruction_set}, {dtype}, {name}")
            assert [line[0] for line in lines] == list(limits.torch_from)
            for kind, *cells in lines:
                for use, cell in zip(header[1:], cells, strict=True):
                    used = SHOWN[use]
                    if used == rule.PACKED_RELU and not kind.startswith("depthwise"):
                        used = rule.PACKED
                    limit = rule.limit_at(limits, (kind, f"{dtype} {layout}", used))
                    assert cell == {None: "never", 0.0: "always"}.get(limit, cell)
                    if limit:
                        assert abs(float(cell.removesuffix(" % live")) - 100 * limit) < 0.501
