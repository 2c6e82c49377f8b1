"""The pages do what they say: README.md and docs/, each from top to bottom.

The Python blocks and the commands of a page run in its order, in one folder and one namespace, on
random weights and small images. Commands that compile, measure or check a machine are only parsed.
"""

import argparse
import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import atrousx
from atrousx import cli, data
from tests.models import torchvision_reference as reference
from tests.models.checkpoints.published import coco_initialisation, port_with_base

ROOT = Path(__file__).resolve().parents[1]
# Made by docs/performance.py; tests/test_docs_performance.py looks at them.
GENERATED = ("docs/_build/", "docs/performance/machines/", "docs/performance/limits.md")
WRITTEN = [
    name
    for pattern in ("*.md", "csrc/*/*.md", "docs/**/*.md")
    for name in sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    if not name.startswith(GENERATED)
]
PAGES = [name for name in WRITTEN if name == "README.md" or name.startswith("docs/")]
TRAINING = "docs/tutorial/train.md"  # run by follow_training
HEIGHT, WIDTH = SIZE = (33, 41)
# What torchrun tells the only process of a group; port 0: any.
LAUNCHED = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Step(NamedTuple):
    line: int
    language: str
    text: str


def steps(page: str) -> list[Step]:
    text = (ROOT / page).read_text()
    blocks = [
        Step(text[: found.start(2)].count("\n") + 1, found[1], found[2])
        for found in FENCE.finditer(text)
    ]
    # Braces: a directive of MyST's.
    return [block for block in blocks if not block.language.startswith("{")]


def commands(block: Step) -> Iterator[list[str]]:
    for line in block.text.replace("\\\n", " ").splitlines():
        assert line.startswith("$ "), f"line {block.line}: not a command: {line}"
        yield shlex.split(line[2:])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The files that the pages name, with random weights, half as large as the published ones."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    third = atrousx.models.deeplab_v3(layout="torchvision", aux=True)
    second = atrousx.models.deeplab_v2()
    files = {
        "deeplabv3_resnet50_coco.pth": third.state_dict(),
        "deeplabv2_resnet101_msc-vocaug-20000.pth": port_with_base(second),
        "deeplabv1_resnet101-coco.pth": coco_initialisation(second),
    }
    for name, state in files.items():
        torch.save({key: value.half() for key, value in state.items()}, folder / name)
    return folder


def write_voc(root: Path, photo: data.Image, labels: data.Image) -> None:
    """One photograph for each split of PASCAL VOC, of which "test" has no labels."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    framed = labels.copy()
    framed[0] = 255
    for split in ("train", "val", "test"):
        data.write_image(root / "JPEGImages" / "x.png", photo)
        (root / "JPEGImages" / "x.png").rename(root / "JPEGImages" / f"{split}_1.jpg")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}_1\n")
        if split != "test":
            data.write_labels(root / "SegmentationClass" / f"{split}_1.png", framed)


@pytest.fixture
def folder(weights, tmp_path, monkeypatch):
    """The current folder, with the files that a reader has."""
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    photo = random.integers(256, size=(*SIZE, 3), dtype=np.uint8)
    for file in weights.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("photos", "logits", "truth"):
        (tmp_path / name).mkdir()
    for name in ("photo.jpg", "satellite.png", "photos/one.jpg"):
        cv2.imwrite(str(tmp_path / name), photo)
    labels = random.integers(3, size=SIZE, dtype=np.uint8)
    for name in ("coarse_labels.png", "truth/one.png"):
        cv2.imwrite(str(tmp_path / name), labels)
    write_voc(tmp_path / "VOC2012", photo, labels)
    np.save(tmp_path / "logits" / "one.npy", random.random((3, 5, 6), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings():
    """What pages set for the whole process is set back; small maps need no second thread."""
    backend, precision = atrousx.get_backend(), atrousx.get_precision()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    atrousx.set_backend(backend)
    atrousx.set_precision(precision)
    torch.use_deterministic_algorithms(False)


def given():
    """What the pages say that a reader has, beside the files."""
    image = torch.randint(256, (2, 3, *SIZE))
    return {
        "photograph": torch.randint(256, (3, *SIZE), dtype=torch.uint8),
        "large": torch.randint(256, (3, *SIZE), dtype=torch.uint8),
        "images": torch.randn(2, 3, *SIZE),
        "target": torch.randint(21, (2, *SIZE)),
        "image": image,
        "logits": torch.randn(2, 21, *SIZE),
        "mean": torch.zeros(2, 21, *SIZE),
        "features": torch.randn(1, 5, 100),
        "values": torch.randn(1, 2, 100),
        "height": HEIGHT,
        "width": WIDTH,
        "softmax": torch.randn(21, *SIZE).softmax(0).numpy(),
        "rgb": image[0].byte().permute(1, 2, 0).contiguous().numpy(),
    }


def lend_torchvision_weights(monkeypatch):
    """torchvision's networks load the reader's file in place of a download."""
    reference.segmentation()
    state = torch.load("deeplabv3_resnet50_coco.pth", weights_only=True)
    api = importlib.import_module("torchvision.models._api")
    monkeypatch.setattr(api, "load_state_dict_from_url", lambda *a, **options: state)


def run_python(page, block, names):
    # Empty lines before it, so that an error names the line of the page.
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
    exec(code, names)
    for name in ("labels", "before", "after", "probabilities"):
        assert name not in names or tuple(names[name].shape[-2:]) == SIZE
    for name in ("model", "fast", "layer", "crf"):
        assert name not in names or isinstance(names[name], torch.nn.Module)


def parse_atrousx(arguments):
    subcommands = argparse.ArgumentParser().add_subparsers()
    name, *rest = arguments
    importlib.import_module(f"atrousx.cli.{name.replace('-', '_')}").register(subcommands)
    subcommands.choices[name].parse_args(rest)


def parse_script(script, *arguments):
    """A benchmark's command line, read by the benchmark."""
    path = ROOT / script
    assert path.is_file(), script
    before = sys.path[:]
    sys.path.insert(0, str(path.parent))
    try:
        importlib.import_module(path.stem).parse(list(arguments))
    finally:
        sys.path[:] = before


def check_make(*arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in arguments if "=" not in word} <= set(targets)


def check_pip(action, *arguments):
    """Only this package, and what building it needs."""
    packages = {word for word in arguments if not word.startswith("-")}
    project = (ROOT / "pyproject.toml").read_text()
    assert action == "install"
    assert packages == {"."} or all(f'"{name}"' in project for name in packages)


def run_command(words):
    program, *arguments = words
    if program == "atrousx" and arguments[0] in ("doctor", "train"):
        parse_atrousx(arguments)
    elif program == "torchrun":
        parse_atrousx(arguments[arguments.index("atrousx") + 1 :])
    elif program == "atrousx":
        assert cli.main(arguments) == 0
    else:
        {"python": parse_script, "make": check_make, "pip": check_pip}[program](*arguments)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("page", [page for page in PAGES if steps(page) and page != TRAINING])
def test_a_page_runs_from_top_to_bottom(page, folder, monkeypatch):
    blocks = steps(page)
    text = "".join(block.text for block in blocks)
    if "torchvision.models" in text:
        lend_torchvision_weights(monkeypatch)
    if "skimage" in text:
        pytest.importorskip("skimage")
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    names = given()
    for block in blocks:
        if block.language == "python":
            run_python(page, block, names)
        else:
            assert block.language == "console", f"{page}, line {block.line}: {block.language}"
            for words in commands(block):
                run_command(words)
    for written in re.findall(r"`((?:results|search)/[\w.-]+)`", (ROOT / page).read_text()):
        assert (folder / written).is_file(), written


def follow_training(folder, monkeypatch, scenes=(), training=()):
    """Runs the tutorial about training in a folder. The training is stopped once, and goes on.

    ``scenes`` and ``training`` are options of the first two commands beside those of the page.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    *blocks, code, _ = steps(TRAINING)
    generate, train, resume, evaluate, segment = (
        words for block in blocks for words in commands(block)
    )
    assert resume == [*train, "--resume"]
    assert cli.main([*generate[1:], *scenes]) == 0
    stopped = subprocess.Popen([sys.executable, "-m", "atrousx", *train[1:], *training])
    while not list(Path("run").glob("iteration_*")) and stopped.poll() is None:
        time.sleep(0.1)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait() == 128 + signal.SIGINT
    for words in ([*resume, *training], evaluate, segment):
        assert cli.main(words[1:]) == 0
    run_python(TRAINING, code, {})


@pytest.mark.slow
def test_the_commands_of_the_tutorial_about_training(tmp_path, monkeypatch):
    fewer = ("--iterations", "12", "--save-every", "2")
    follow_training(tmp_path, monkeypatch, ("--train", "16", "--val", "3"), fewer)
    assert Path("results/evaluation.json").is_file()


@pytest.mark.long
def test_the_network_of_the_tutorial_becomes_good(tmp_path, monkeypatch):
    follow_training(tmp_path, monkeypatch)
    found = json.loads(Path("results/evaluation.json").read_text())
    assert found["with_crf"]["mean_iou"] > 0.8
    for name in ("log.jsonl", "best.pt", "iteration_00001500.pt", "curves.png"):
        assert Path("run", name).is_file(), name


def test_pages_are_found():
    assert {"README.md", "docs/index.md", "docs/howto/migrate.md"} <= set(PAGES)
    assert sum(len(steps(page)) for page in PAGES) > 40


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")


@pytest.mark.parametrize("page", WRITTEN)
def test_links_to_files_lead_somewhere(page):
    for target in LINK.findall((ROOT / page).read_text()):
        path = (ROOT / page).parent / target
        made = path.parent.name == "_generated" or path.name == "limits.md"
        if not made and not re.match(r"[a-z]+:", target):
            assert path.exists(), target


def is_code(value):
    """A function or a class, and not another name of a type, such as list[int]."""
    return callable(value) and hasattr(value, "__name__") and not hasattr(value, "__origin__")


@pytest.mark.parametrize(
    "package",
    ["atrousx"]
    + [
        f"atrousx.{name}"
        for name in ("ops", "models", "backend", "training", "metrics", "crf", "data")
    ],
)
def test_every_public_function_and_class_is_in_the_reference(package):
    pages = [page for page in PAGES if page.startswith("docs/reference/")]
    text = "\n".join((ROOT / page).read_text() for page in pages)
    module = importlib.import_module(package)
    public = {name for name in module.__all__ if is_code(getattr(module, name))}
    listed = set(re.findall(r"auto\w+:: atrousx(?:\.\w+)*\.(\w+)$", text, re.MULTILINE))
    assert public - listed == set()
