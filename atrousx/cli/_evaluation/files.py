"""The files that an evaluation writes, and checks before it that none of them is an input."""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path

from ...data import Image, SegmentationDataset, write_image
from .._shared import CommandError, one_line
from .page import page
from .pictures import Extremes
from .plots import confusion_plot, trimap_plot
from .results import Results, as_json, percent, trimap_curves


class Outputs:
    """Where the command writes: --out, --write and --report, each of them may be None.

    Raises:
        CommandError: a file or folder cannot be written, or holds what is read.
    """

    def __init__(self, args: argparse.Namespace, dataset: SegmentationDataset) -> None:
        self.out: Path | None = args.out
        self.labels: Path | None = args.write
        self.report: Path | None = args.report
        self.dataset = dataset
        self._check_folders()
        self._check_names()
        self._check_report()

    def _check_folders(self) -> None:
        files = [path for index in range(len(self.dataset)) for path in self.dataset.files(index)]
        inputs = {path.parent.resolve() for path in files}
        for option, folder in (("--out", self.out), ("--write", self.labels)):
            if folder is None:
                continue
            if folder.resolve() in inputs:
                raise CommandError(f"{option} {folder}: holds files of the dataset; take another")
            _make(folder, option)

    def _check_names(self) -> None:
        names = map(self.dataset.label_file_name, range(len(self.dataset)))
        for name, count in collections.Counter(names).most_common(1):
            if count > 1 and self.labels is not None:
                raise CommandError(f"--write {self.labels}: {count} images would write {name}")

    def _check_report(self) -> None:
        if self.report is None:
            return
        if self.report.suffix.lower() not in (".html", ".htm"):
            raise CommandError(f"--report must name a .html file, got {self.report}")
        if not self.report.parent.is_dir():
            raise CommandError(f"--report {self.report}: there is no folder {self.report.parent}")
        if self.report.is_dir():
            raise CommandError(f"--report {self.report}: is a folder")

    def write_labels(self, index: int, labels: Image) -> None:
        """Writes the labels of one image as the server of the benchmark wants them."""
        if self.labels is not None:
            path = self.labels / self.dataset.label_file_name(index)
            path.write_bytes(self.dataset.label_file(labels))

    def write_results(self, results: Results, extremes: Extremes) -> None:
        """Writes numbers, plots and page."""
        try:
            if self.out is not None:
                _write_folder(self.out, results)
            if self.report is not None:
                self.report.write_text(page(results, extremes), encoding="utf-8")
        except OSError as error:
            raise CommandError(one_line(error)) from error


def _make(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{option} {folder}: cannot make it: {error.strerror}") from error


def _write_folder(out: Path, results: Results) -> None:
    (out / "evaluation.json").write_text(json.dumps(as_json(results), indent=2) + "\n")
    final = results.evaluation.final.confusion
    title = f"% of the true class's pixels; mean IoU {percent(final.mean_iou())} %"
    write_image(out / "confusion.png", confusion_plot(final, results.classes, title))
    curves = trimap_curves(results.evaluation)
    if any(curve for _, curve in curves):
        title = "mean IoU in % near the truth's ignored pixels"
        write_image(out / "trimap.png", trimap_plot(curves, title))
