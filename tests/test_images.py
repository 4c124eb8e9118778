"""Image files of every kind become the pixels of a recipe, or are named with the reason."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxmeta.data.images import MAX_BYTES, MAX_PIXELS, ImageError, measure_image, read_image, reads_heic
from jaxmeta.data.pools import ImageRecipe

STRETCHED = ImageRecipe(20, 20, 3, fit="stretch")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters():
    """30 x 20 pixels, each quarter of another colour, so that every turn gives another image."""
    pixels = np.zeros([20, 30, 3], np.uint8)
    pixels[:10, :15], pixels[:10, 15:], pixels[10:, :15], pixels[10:, 15:] = [250, 9, 9], [9, 250, 9], [9, 9, 250], 240
    return Image.fromarray(pixels)


def wide(image):
    """The same grey levels in 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def apart(one, other):
    return np.abs(one.astype(int) - other).mean()


# What EXIF's orientation asks for, by the corner that row 0 and column 0 show.
TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


@pytest.mark.parametrize(
    ("kind", "convert", "options"),
    [
        ("jpeg", lambda image: image, {"quality": 95}),
        ("jpeg", lambda image: image.convert("CMYK"), {"quality": 95}),
        ("png", lambda image: image, {}),
        ("png", lambda image: image.convert("RGBA"), {}),
        ("png", lambda image: image.convert("LA"), {}),
        ("png", lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE), {}),
        ("png", wide, {}),
        ("tiff", lambda image: image, {}),
        ("tiff", lambda image: image.convert("CMYK"), {}),
        ("tiff", wide, {}),
        ("webp", lambda image: image.convert("RGBA"), {"lossless": True}),
    ],
    ids="jpeg jpeg-cmyk png png-rgba png-la png-palette png-16 tiff tiff-cmyk tiff-16 webp-rgba".split(),
)
def test_images_are_turned_as_their_exif_says(kind, convert, options):
    upright = convert(quarters())
    expected = np.asarray(upright if upright.mode.startswith("I") else upright.convert("RGB"))
    expected = (expected // 257)[..., None].repeat(3, 2) if expected.ndim == 2 else expected
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = read_image(encoded(upright, kind, exif=exif, **options), STRETCHED)
        turned = Image.fromarray(np.ascontiguousarray(turn(expected)).astype(np.uint8))
        # JPEG blurs colours; a wrong turn is 50 or more apart.
        assert apart(pixels, np.asarray(turned.resize((20, 20), Image.Resampling.LANCZOS))) < 12, orientation


def test_depths_and_palettes_keep_their_brightness():
    ramp = np.linspace(0, 255, 20 * 20).reshape(20, 20).astype(np.uint8)
    recipe = ImageRecipe(20, 20, 1)
    grey = Image.fromarray(ramp)
    for kind in ("png", "tiff"):
        assert (read_image(encoded(wide(grey), kind), recipe)[..., 0] == ramp).all()
    # A 16-bit file stays dark where it is dark, however little of its range it uses.
    assert read_image(encoded(Image.fromarray(ramp.astype(np.uint16)), "png"), recipe).max() <= 1
    for values in (ramp.astype(np.int32), ramp / np.float32(255), ramp.astype(np.float32)):
        assert (read_image(encoded(Image.fromarray(values), "tiff"), recipe)[..., 0] == ramp).all()
    huge = Image.fromarray(ramp.astype(np.int32) * 2**22)
    assert apart(read_image(encoded(huge, "tiff"), recipe)[..., 0], ramp) < 1
    palette = grey.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    assert apart(read_image(encoded(palette, "png"), recipe)[..., 0], ramp) < 1
    bilevel = grey.point(lambda value: 255 * (value > 99)).convert("1")
    assert (read_image(encoded(bilevel, "png"), recipe)[..., 0] == np.where(ramp > 99, 255, 0)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_becomes_white(mode):
    """Of the left half nothing is to be seen, whatever colour lies under it."""
    layered = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    layered.paste((60, 60, 60, 255), (10, 0, 20, 20))
    if mode == "P":
        image = layered.convert("P")
        image.putpalette([0, 0, 0, 60, 60, 60])
        image.putdata([0 if column < 10 else 1 for _ in range(20) for column in range(20)])
        contents = encoded(image, "png", transparency=0)
    elif mode == "RGB":
        contents = encoded(layered.convert("RGB"), "png", transparency=(0, 0, 0))
    else:
        contents = encoded(layered.convert(mode), "png")
    for channels in (1, 3):
        pixels = read_image(contents, ImageRecipe(20, 20, channels))
        assert (pixels[:, :10] == 255).all() and (pixels[:, 10:] == 60).all()


@pytest.mark.parametrize(("kind", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})])
def test_the_first_frame_of_several_is_taken(kind, options):
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    contents = encoded(red, kind, save_all=True, append_images=[blue], **options)
    assert (read_image(contents, STRETCHED) == [255, 0, 0]).all()
    # Two pictures in one file, as phones write them.
    assert apart(read_image(encoded(red, "mpo", save_all=True, append_images=[blue]), STRETCHED), [255, 0, 0]) < 2


def test_fits():
    """Black with a white middle, twice as wide as high."""
    pixels = np.zeros([20, 40], np.uint8)
    pixels[5:15, 15:25] = 255
    contents = encoded(Image.fromarray(pixels), "png")
    size = dict(height=20, width=20, channels=1)
    assert (read_image(contents, ImageRecipe(**size, fit="crop"))[..., 0] == pixels[:, 10:30]).all()
    padded = read_image(contents, ImageRecipe(**size, fit="pad"))[..., 0]
    assert padded[:5].max() == 0 == padded[15:].max() and padded[10, 10] > 240
    assert read_image(contents, ImageRecipe(**size, fit="stretch"))[10, 9, 0] > 240
    # On paper, what is added is paper; a drawing is inverted, a bright one on black is not.
    paper = read_image(encoded(Image.fromarray(255 - pixels), "png"), ImageRecipe(**size, fit="pad"))
    assert paper[:5].min() == 255
    for drawing in (pixels, 255 - pixels):
        inked = read_image(encoded(Image.fromarray(drawing), "png"), ImageRecipe(**size, fit="pad", bright_ink=True))
        assert inked[10, 10] > 240 and inked[0, 0] == 0
    for shape in ((1, 1000), (1000, 1), (1, 1)):
        line = encoded(Image.new("RGB", shape, (9, 99, 199)), "png")
        for fit in ("crop", "pad", "stretch"):
            assert (read_image(line, ImageRecipe(28, 28, 3, fit=fit)) == [9, 99, 199]).all()


def test_a_reduced_jpeg_is_the_same_picture():
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, [12, 16, 3], dtype=np.uint8)).resize((1600, 1200))
    recipe = ImageRecipe(84, 84, 3)
    whole = ImageOps.fit(Image.open(io.BytesIO(encoded(large, "jpeg"))), (84, 84), Image.Resampling.LANCZOS)
    assert apart(read_image(encoded(large, "jpeg"), recipe), np.asarray(whole)) < 2


def bomb(width, height):
    """A PNG of 70 bytes that claims to be large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


WHOLE = encoded(quarters(), "png")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (WHOLE[:-40], r"is damaged \(.*truncated"),
        (WHOLE[:60], "is damaged"),
        (encoded(quarters(), "jpeg")[:-60], r"is damaged \(image file is truncated"),
        (b"my notes\n" * 999, "it is text"),
        ("größer".encode() * 999, "it is text"),
        (bytes(1000), "of an unknown kind, or damaged at its beginning"),
        (WHOLE[9:], "of an unknown kind, or damaged at its beginning"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "an SVG drawing; save it as PNG"),
        (b"%PDF-1.7 ...", "a PDF document; save its pages as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is text"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "it is a video"),
        (bomb(20000, 20000), f"too many pixels: at most {MAX_PIXELS:,} are read. Shrink it"),
        (bomb(2**31 - 1, 2**31 - 1), "too many pixels"),
        (bomb(13000, 13700), "is damaged"),
    ],
)
def test_what_is_no_image_is_said(contents, message, tmp_path):
    with pytest.raises(ImageError, match=f"^the image.*{message}"):
        read_image(contents, STRETCHED)
    path = tmp_path / "photo.jpg"
    path.write_bytes(contents)
    with pytest.raises(ImageError, match=f"^{path} .*{message}"):
        read_image(path, STRETCHED)


def test_the_contents_tell_the_kind_and_not_the_name(tmp_path):
    for name in ("photo.jpg", "photo.txt", "photo"):
        (tmp_path / name).write_bytes(WHOLE)
        assert (read_image(tmp_path / name, STRETCHED) == read_image(WHOLE, STRETCHED)).all()
        assert measure_image(tmp_path / name) == (30, 20)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ImageError, match="nowhere.png cannot be read: No such file"):
        read_image(tmp_path / "nowhere.png", STRETCHED)
    with pytest.raises(ImageError, match="is no file"):
        read_image(tmp_path, STRETCHED)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="pipe.png is no file"):
        read_image(tmp_path / "pipe.png", STRETCHED)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match="loop.png cannot be read"):
        measure_image(tmp_path / "loop.png")
    # Of holes: it takes no room on the disk.
    with open(tmp_path / "video.mov", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="has 1.0 GiB, more than any image"):
        read_image(tmp_path / "video.mov", STRETCHED)


def test_heic():
    head = b"\0\0\0\x18ftypheic" + bytes(99)
    if not reads_heic():
        with pytest.raises(ImageError, match=r"HEIC photograph; save it as JPEG, or install pillow-heif \(pip install"):
            read_image(head, STRETCHED)
        return
    with pytest.raises(ImageError, match="HEIC photograph, and damaged|is damaged"):
        read_image(head, STRETCHED)
    pixels = read_image(encoded(quarters().resize((300, 200)), "heif", quality=95), STRETCHED)
    assert apart(pixels, np.asarray(quarters().resize((20, 20), Image.Resampling.LANCZOS))) < 8


def test_drawings_are_those_of_omniglot(shared):
    """Pixel for pixel as `read_drawing` shrinks them, which stays apart so that its pool stays the same."""
    import zipfile

    from jaxmeta.data.omniglot import DRAWINGS, read_drawing

    archives = sorted((shared / "data").rglob("images_background_small1.zip"))
    if not archives:
        pytest.skip("no archive of Omniglot in shared/data")
    with zipfile.ZipFile(archives[0]) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        for name in names[::40]:
            png = archive.read(name)
            assert (read_image(png, DRAWINGS)[..., 0] == read_drawing(png)[1]).all()
