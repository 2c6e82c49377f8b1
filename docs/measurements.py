"""Reads the CSV files of benchmarks/results, and writes numbers and tables."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, str]

# What makes two lines the same case, by kind of file.
CASES = {
    "atrous_conv2d": "device threads dtype memory_format batch name pass",
    "upsample": "device threads dtype memory_format shape n operator pass",
    "dense_crf": "device threads size iterations stage",
    "deeplab": "device threads dtype memory_format batch extent model",
    "deployment": "device threads dtype batch extent network",
    "training_step": "device threads dtype memory_format batch extent width",
    "training_loading": "device threads dtype memory_format batch extent width workers",
    "memory_of_loss": "device threads dtype memory_format batch extent width",
}
LAYOUTS = {"contiguous": "NCHW", "channels_last": "channels_last"}


def machines() -> list[str]:
    """Folders with measurements of operators or networks; what tune.py measures has no page."""
    return sorted(
        folder.name
        for folder in RESULTS.iterdir()
        if any(list(folder.glob(f"{kind}*.csv")) for kind in CASES)
    )


def measured(machine: str, kind: str) -> list[Row]:
    """The newest line of every case in a machine's files ``kind*.csv``, in the files' order."""
    newest: dict[tuple[str, ...], Row] = {}
    for path in sorted((RESULTS / machine).glob(f"{kind}*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                case = tuple(row[column] for column in CASES[kind].split())
                if case not in newest or newest[case]["date"] <= row["date"]:
                    newest[case] = row
    return list(newest.values())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; columns beyond the first ``words`` are numbers, aligned to the right."""
    lines = [header, [*["---"] * words, *["--:"] * (len(header) - words)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rounded(value: str | float) -> str:
    """A ratio as the tables give it."""
    number = float(value)
    return f"{number:.2f}" if number < 9.995 else f"{number:.0f}"


def is_slower(value: str | float) -> bool:
    """Whether PyTorch is the faster one, by the ratio that the tables give."""
    return float(rounded(value)) < 1


def ratio(value: str | float) -> str:
    """PyTorch's time over atrousx's; bold where PyTorch is the faster one."""
    return f"**{rounded(value)}**" if is_slower(value) else rounded(value)


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def names(rows: Iterable[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def threads(count: str) -> str:
    return f"{count} thread" + "s" * (count != "1")


def plot(machine: str, name: str, caption: str) -> str:
    """A picture that pictures.py draws."""
    return f"```{{picture}} {machine}-{name}\n{caption}\n```\n"
