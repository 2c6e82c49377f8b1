"""The layout of PASCAL VOC 2012, with the additional labels of SBD ("train_aug")."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ._files import demand, read_classes, read_lines
from .dataset import DatasetError, Files, SegmentationDataset
from .palette import VOC_CLASSES

LISTS = PurePosixPath("ImageSets/Segmentation")
# Where people unpack the archive: the folder itself, or one that holds it.
PLACES = ("", "VOCdevkit/VOC2012", "VOC2012")


class VOC(SegmentationDataset):
    """PASCAL VOC 2012, or another dataset in its layout.

    ==========================================  ============================================
    ``JPEGImages/NAME.jpg``                     the photograph
    ``SegmentationClass/NAME.png``              its labels: an indexed, grey or colour PNG
    ``SegmentationClassAug/NAME.png``           the same, with the labels of SBD
    ``ImageSets/Segmentation/SPLIT.txt``        the names of a split
    ``classes.txt``                             names of classes, if they are not those of VOC
    ==========================================  ============================================

    A line of a list is a name, or two paths in ``root``: of the photograph and of its labels.
    The lists of "train_aug" often hold such pairs.

    Args:
        root: the folder VOC2012, or a folder that holds VOC2012 or VOCdevkit/VOC2012.
        split: "train", "val", "trainval", "train_aug", "trainval_aug", or the path of a list.
        labels: the folder of the labels in ``root``. By default it is SegmentationClassAug for
            lists whose name ends in "_aug", and SegmentationClass for all others.
        truth: whether the split has labels. The split "test" of VOC has none.

    Raises:
        DatasetError: a list, a folder or a file that a list names is missing.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/; SBD: Hariharan et al., ICCV 2011.

    Example:
        >>> import tempfile
        >>> from atrousx.data import VOC, generate_scenes
        >>> folder = tempfile.TemporaryDirectory()
        >>> generate_scenes(folder.name, train=2, val=1, size=(64, 96))
        >>> dataset = VOC(folder.name, "val")
        >>> name, image, labels = dataset[0]
        >>> name, image.shape, labels.shape
        ('val_000000', (64, 96, 3), (64, 96))
        >>> folder.cleanup()
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path = "train",
        *,
        labels: str | None = None,
        truth: bool = True,
    ) -> None:
        folder = _folder(Path(root))
        listed = _list(folder, str(split))
        # One rule for the lists of VOC and of SBD, wherever they lie.
        default = "SegmentationClassAug" if listed.stem.endswith("_aug") else "SegmentationClass"
        lines = read_lines(listed)
        files = [
            _files(folder, line, labels, default, f"{listed}, entry {number}")
            for number, line in enumerate(lines, 1)
        ]
        needed = 2 if truth else 1
        demand((path for pair in files for path in pair[:needed]), asked_by=listed)
        named = folder / "classes.txt"
        classes = read_classes(named) if named.is_file() else VOC_CLASSES
        super().__init__([pair.image.stem for pair in files], files, classes, truth=truth)


def _folder(root: Path) -> Path:
    for place in PLACES:
        if (root / place / "JPEGImages").is_dir():
            return root / place
    raise DatasetError(
        f"{root}: there is no folder JPEGImages in it, nor in its VOC2012 or VOCdevkit/VOC2012"
    )


def _list(folder: Path, split: str) -> Path:
    listed = folder / LISTS / f"{split}.txt"
    if listed.is_file():
        return listed
    if Path(split).is_file():
        return Path(split)
    raise DatasetError(f"{listed}: there is no such list, and {split} is not the path of one")


def _files(folder: Path, line: str, labels: str | None, default: str, where: str) -> Files:
    """Returns the files that one line of a list names."""
    image, *more = line.split()
    if len(more) > 1 or (more and not more[0].endswith(".png")):
        raise DatasetError(f"{where}: must be a name, or the paths of an image and a PNG: {line}")
    # Paths in such lists begin with "/", but mean files in the folder.
    photograph = image.lstrip("/")
    if "/" not in photograph and not more:
        photograph = f"JPEGImages/{photograph.removesuffix('.jpg')}.jpg"
    stem = PurePosixPath(photograph).stem
    if labels is None and more:
        return Files(folder / photograph, folder / more[0].lstrip("/"))
    return Files(folder / photograph, folder / (labels or default) / f"{stem}.png")
