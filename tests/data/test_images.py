"""Label maps and photographs in files."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from atrousx.data import (
    VOC_CLASSES,
    ImageError,
    overlay,
    png,
    read_image,
    read_labels,
    voc_palette,
    write_image,
    write_labels,
)


def test_palette_is_pascal_vocs():
    palette = voc_palette()
    named = dict(zip(VOC_CLASSES, palette.tolist(), strict=False))
    assert len(VOC_CLASSES) == 21
    assert named["background"] == [0, 0, 0]
    assert named["aeroplane"] == [128, 0, 0]
    assert named["bicycle"] == [0, 128, 0]
    assert named["bird"] == [128, 128, 0]
    assert named["boat"] == [0, 0, 128]
    assert named["cat"] == [64, 0, 0]
    assert named["person"] == [192, 128, 128]
    assert named["tvmonitor"] == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in palette.tolist()}) == 256


def test_indexed_png_written_and_read(tmp_path: Path):
    labels = np.arange(7 * 37, dtype=np.int64).reshape(7, 37).astype(np.uint8)
    write_labels(tmp_path / "labels.png", labels)
    assert np.array_equal(read_labels(tmp_path / "labels.png"), labels)
    # Other readers see the colours.
    assert np.array_equal(read_image(tmp_path / "labels.png"), voc_palette()[labels])


def test_one_pixel_png_byte_by_byte():
    file = png.encode_indexed(np.array([[7]], np.uint8), voc_palette())
    parts = dict(png.chunks(file))
    assert list(parts) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert parts[b"IHDR"] == bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0])
    assert parts[b"PLTE"][3:6] == bytes([128, 0, 0])
    assert zlib.decompress(parts[b"IDAT"]) == bytes([0, 7])
    assert file[-12:] == bytes.fromhex("0000000049454e44ae426082")


@pytest.mark.parametrize("colour_type", [png.GREY, png.PALETTE])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits(tmp_path: Path, bits: int, colour_type: int):
    labels = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1]]) * (2**bits - 1)
    # A row has one byte or less, three samples from the highest bit down; or one byte per sample.
    rows = b""
    for row in labels:
        if bits == 8:
            rows += b"\0" + bytes(row.tolist())
        else:
            packed = sum(int(v) << (16 - bits * (i + 1)) for i, v in enumerate(row))
            rows += b"\0" + packed.to_bytes(2, "big")[: -(-3 * bits // 8)]
    header = (3).to_bytes(4, "big") * 2 + bytes([bits, colour_type, 0, 0, 0])
    # All entries of the palette have one colour, so only the indices distinguish the labels.
    palette = [png.chunk(b"PLTE", bytes([9, 9, 9] * 2**bits))] if colour_type else []
    body = png.chunk(b"IDAT", zlib.compress(rows))
    file = [png.SIGNATURE, png.chunk(b"IHDR", header), *palette, body, png.chunk(b"IEND", b"")]
    (tmp_path / "few.png").write_bytes(b"".join(file))
    assert read_labels(tmp_path / "few.png").tolist() == labels.tolist()


def test_grey_and_coloured_labels(tmp_path: Path):
    labels = np.array([[0, 1, 15], [255, 20, 0]], np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), labels)
    cv2.imwrite(str(tmp_path / "grey16.png"), labels.astype(np.uint16))
    write_image(tmp_path / "colour.png", voc_palette()[labels])
    for name in ("grey", "grey16", "colour"):
        assert np.array_equal(read_labels(tmp_path / f"{name}.png"), labels), name


@pytest.mark.parametrize("order", [1, -1])
def test_every_colour_of_the_palette_is_read(tmp_path: Path, order: int):
    labels = np.arange(256, dtype=np.uint8)[::order].reshape(16, 16)
    write_image(tmp_path / "colour.png", voc_palette()[labels])
    assert np.array_equal(read_labels(tmp_path / "colour.png"), labels)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("bit", range(5))
def test_colours_beside_the_palette_are_refused(tmp_path: Path, channel: int, bit: int):
    colours = voc_palette()[np.arange(256).reshape(16, 16)]
    colours[3, 5, channel] ^= 1 << bit
    write_image(tmp_path / "colour.png", colours)
    with pytest.raises(ImageError, match="palette of PASCAL VOC; 1 pixels do not"):
        read_labels(tmp_path / "colour.png")


def test_unusable_labels(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "large.png"), np.full((2, 2), 300, np.uint16))
    with pytest.raises(ImageError, match=r"large\.png: labels must be at most 255, found 300"):
        read_labels(tmp_path / "large.png")
    write_image(tmp_path / "photo.png", np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8))
    with pytest.raises(ImageError, match="palette of PASCAL VOC; 1 pixels do not"):
        read_labels(tmp_path / "photo.png")
    cv2.imwrite(str(tmp_path / "labels.jpg"), np.zeros((2, 2), np.uint8))
    with pytest.raises(ImageError, match="must be a PNG"):
        read_labels(tmp_path / "labels.jpg")
    with pytest.raises(ImageError, match=r"none\.png: No such file"):
        read_labels(tmp_path / "none.png")


def test_broken_files_raise_and_say_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture):
    write_labels(tmp_path / "good.png", np.arange(100, dtype=np.uint8).reshape(10, 10))
    good = (tmp_path / "good.png").read_bytes()
    for name, content in (("text", b"hello"), ("empty", b""), ("cut", good[:60])):
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}.png: "):
            read_image(tmp_path / f"{name}.png")
        with pytest.raises(ImageError, match=f"{name}.png: "):
            read_labels(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)
    assert capfd.readouterr().err == ""


def test_image_is_red_green_blue(tmp_path: Path):
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    write_image(tmp_path / "rgb.png", image)
    assert np.array_equal(read_image(tmp_path / "rgb.png"), image)
    read = cv2.imread(str(tmp_path / "rgb.png"))
    assert read is not None
    assert read[0, 0].tolist() == [0, 0, 255]
    cv2.imwrite(str(tmp_path / "grey.png"), np.array([[5]], np.uint8))
    assert read_image(tmp_path / "grey.png").tolist() == [[[5, 5, 5]]]


def test_overlay_tints_objects_and_draws_borders():
    image = np.full((2, 4, 3), 100, np.uint8)
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
    result = overlay(image, labels)
    assert result[:, 0].tolist() == [[100, 100, 100]] * 2
    assert result[:, 1].tolist() == [[255, 255, 255]] * 2
    assert result[:, 3].tolist() == [[114, 50, 50]] * 2
