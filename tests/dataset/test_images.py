"""Image files of every kind as 8-bit RGB."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from edkd.dataset.images import check_scale, read_image, readable_extensions

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (4, 1))
GRAY = (RAMP >> 8).astype(np.uint8)
COLOUR = Image.fromarray(np.stack([GRAY, 255 - GRAY, GRAY // 2], -1))
GREEN_ON_NOTHING = [[(0, 200, 0, 255), (9, 9, 9, 0)]]


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(tmp_path, image, name="image.png", **settings):
    path = tmp_path / name
    image.save(path, **settings)
    return path


def deep_png(rows, kind, transparent=b""):
    """A PNG of 16 bits a channel; PIL writes only gray ones."""
    height, width = len(rows), len(rows[0])
    lines = [b"\0" + b"".join(struct.pack(f">{len(p)}H", *p) for p in row) for row in rows]

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if transparent:
        parts.append(chunk(b"tRNS", transparent))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(b"".join(lines))), chunk(b"IEND", b"")])


# Depth.


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.png", "<u2"),
        ("a.tif", "<u2"),
        ("a.tiff", ">u2"),
        ("a.pgm", "<u2"),
        ("a.jp2", "<u2"),
    ],
)
def test_16_bit_gray_keeps_its_scale(tmp_path, name, dtype):
    path = saved(tmp_path, Image.fromarray(RAMP.astype(dtype)), name)
    assert np.array_equal(pixels(path), np.repeat(GRAY[..., None], 3, 2))


def test_16_bit_colours_keep_their_scale(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(deep_png([[(65535, 0, 0x8080), (256, 255, 0x7F00)]], kind=2))
    assert pixels(path).tolist() == [[[255, 0, 128], [1, 0, 127]]]


def test_12_bit_gray_keeps_its_scale(tmp_path):
    """As a microscope stores it: two pixels in three bytes."""
    path = tmp_path / "a.tif"
    tags = [
        *((256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, 3)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = bytes([0xFF, 0xF8, 0x00])  # 4095, 2048
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + data + b"\0" + directory)
    assert pixels(path).tolist() == [[[255] * 3, [128] * 3]]


def test_16_bit_gray_where_zero_is_white(tmp_path):
    path = saved(tmp_path, Image.fromarray(RAMP), "a.tif", tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(pixels(path)[..., 0], 255 - GRAY)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.int32, "32-bit or signed integers have no fixed scale; convert it to 8-bit"),
        (np.float32, "floating-point pixels have no fixed scale; convert it to 8-bit or 16-bit"),
    ],
)
def test_pixels_without_a_scale_are_refused(tmp_path, dtype, message):
    path = saved(tmp_path, Image.fromarray(RAMP.astype(dtype)), "a.tif")
    with pytest.raises(ValueError, match=message):
        read_image(path)


def test_signed_bytes_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(GRAY), "a.tif", tiffinfo={339: 2})
    with pytest.raises(ValueError, match="signed integers have no fixed scale"):
        read_image(path)


# Modes.


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA"])
def test_modes_are_read_alike(tmp_path, mode):
    """Losslessly stored; the reference is PIL's own conversion of the opaque image."""
    source = COLOUR.convert("L").convert("LA") if mode == "LA" else COLOUR
    source = COLOUR.convert("P") if mode == "PA" else source
    image = source.convert(mode)
    path = saved(tmp_path, image, "a.tif")
    expected = image.convert("RGBA") if mode in ("LA", "PA") else image
    assert np.array_equal(pixels(path), np.asarray(expected.convert("RGB")))


def test_cielab_is_refused(tmp_path):
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(COLOUR, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    with pytest.raises(ValueError, match="CIELAB; convert it to RGB"):
        read_image(saved(tmp_path, image, "a.tif"))


@pytest.mark.parametrize("mode", ["I", "F", "I;16S", "LAB"])
def test_refused_modes_are_known_from_the_header(mode):
    image = type("Opened", (), {"mode": mode, "format": "TIFF"})
    with pytest.raises(ValueError, match="convert it to"):
        check_scale(image)


# Transparency.


@pytest.mark.parametrize(
    ("name", "transparency"),
    [("a.png", 1), ("a.png", bytes([255, 0])), ("a.gif", 1)],
    ids=["one colour", "each colour", "gif"],
)
def test_transparent_palettes_and_rgba_are_alike(tmp_path, name, transparency):
    rgba = Image.fromarray(np.array(GREEN_ON_NOTHING, np.uint8))
    image = Image.new("P", (2, 1))
    image.putpalette([0, 200, 0, 9, 9, 9])
    image.putdata([0, 1])

    expected = [[[0, 200, 0], [255, 255, 255]]]
    assert pixels(saved(tmp_path, rgba)).tolist() == expected
    assert pixels(saved(tmp_path, image, name, transparency=transparency)).tolist() == expected


@pytest.mark.parametrize(
    ("mode", "hidden", "shown", "settings"),
    [
        ("L", 0, 70, {"transparency": 0}),
        ("RGB", (0, 0, 0), (70, 70, 70), {"transparency": (0, 0, 0)}),
        ("LA", (0, 0), (70, 255), {}),
    ],
)
def test_transparent_gray_and_colours_show_white(tmp_path, mode, hidden, shown, settings):
    image = Image.new(mode, (2, 1), hidden)
    image.putpixel((1, 0), shown)
    assert pixels(saved(tmp_path, image, **settings)).tolist() == [[[255] * 3, [70] * 3]]


def test_an_image_that_is_transparent_everywhere_keeps_its_colours(tmp_path):
    image = Image.new("RGBA", (2, 1), (1, 2, 3, 0))
    assert pixels(saved(tmp_path, image)).tolist() == [[[1, 2, 3]] * 2]


def test_transparency_of_16_bit_colours(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(
        deep_png([[(65535, 0, 0), (0, 65535, 0)]], 2, struct.pack(">HHH", 65535, 0, 0))
    )
    assert pixels(path).tolist() == [[[255, 255, 255], [0, 255, 0]]]


# Orientation, frames, names.


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_the_exif_orientation_is_applied(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 6
    path = saved(tmp_path, COLOUR, name, exif=exif)
    assert read_image(path).size == (4, 64)
    assert pixels(path)[0, 0, 0] < pixels(path)[-1, 0, 0]


def test_unreadable_exif_data_do_not_count(tmp_path):
    path = saved(tmp_path, COLOUR, "a.jpg", exif=b"Exif\0\0nonsense")
    assert read_image(path).size == COLOUR.size


def test_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        red, _, blue = pixels(path)[0, 0].astype(int)
        assert red > 240 > 15 > blue


def test_extensions():
    common = {".jpg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".tiff", ".bmp", ".mpo"}
    assert common <= readable_extensions()
    assert not {".pdf", ".mpeg", ".h5", ".txt", ""} & readable_extensions()


def test_reading_draws_no_random_numbers(tmp_path):
    path = saved(tmp_path, COLOUR)
    state = torch.get_rng_state()
    read_image(path)
    assert torch.equal(torch.get_rng_state(), state)
