"""One image file, of whatever kind, made into the pixels that a network was trained on."""

import codecs
import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from jaxmeta.data.pools import DataError, ImageRecipe

# A small file may claim to hold more pixels than memory does: this is where Pillow, too, refuses by default.
MAX_PIXELS = 178_956_970
# More than any photograph; what is larger is a video or an archive, and is not read into memory to find out.
MAX_BYTES = 2**30
# Of Pillow's, those that hold pixels and are told by their first bytes. PostScript would be run, so it is not among
# them. Phones' MPO is read as the JPEG that it begins with.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class ImageError(DataError):
    """A file that is not a usable image, and why."""


def read_image(source: Path | bytes, recipe: ImageRecipe) -> np.ndarray:
    """Read an image of any common format into the pixels of a recipe.

    Turned as its EXIF data say; the first frame of several; 16 bits scaled to 8; what is transparent becomes white.
    Shrunk by Lanczos filtering; of a large JPEG a reduced form is decoded, at least twice as large as asked for.

    Args:
      source: A file, or its contents. The kind of image is told from the contents, not from the name. HEIC is read
        where pillow-heif is installed.
      recipe: Size, channels and polarity.

    Returns:
      `[height, width, channels]` uint8.

    Raises:
      ImageError: the file cannot be read, is no image, is cut off, or is larger than any camera's; says which.

    Example:
      >>> from PIL import Image
      >>> file = io.BytesIO()
      >>> Image.new("RGB", (30, 20), "white").save(file, "png")
      >>> pixels = read_image(file.getvalue(), ImageRecipe(28, 28, 1, fit="pad", bright_ink=True))
      >>> pixels.shape, int(pixels.max())
      ((28, 28, 1), 0)
    """
    from PIL import ImageOps

    with _opened(source) as image:
        image.draft(None, (2 * max(recipe[:2]),) * 2)
        image.seek(0)
        image.load()
        # Turned before anything else: what is converted has lost its EXIF data.
        image = _eight_bits(ImageOps.exif_transpose(image))
    image = _fitted(image.convert("L" if recipe.channels == 1 else "RGB"), recipe)
    pixels = np.asarray(image).reshape(recipe.height, recipe.width, recipe.channels)
    return with_bright_ink(pixels) if recipe.bright_ink else pixels.copy()


def measure_image(source: Path | bytes) -> tuple[int, int]:
    """Tell the width and height of an image, before it is turned; only the beginning of a file is decoded.

    Args:
      source: As for `read_image`.

    Returns:
      Pixels: width and height.

    Raises:
      ImageError: as of `read_image`, but for what comes to light in decoding.
    """
    with _opened(source) as image:
        return image.size


def with_bright_ink(pixels: np.ndarray) -> np.ndarray:
    """Invert an image whose border is bright: the ink of a drawing on paper becomes bright on black.

    Args:
      pixels: `[height, width, channels]` uint8.

    Returns:
      The image, a copy.

    Example:
      >>> with_bright_ink(np.full([2, 2, 1], 250, np.uint8)).max()
      np.uint8(5)
    """
    return 255 - pixels if _border(pixels).mean() >= 128 else pixels.copy()


@cache
def reads_heic() -> bool:
    """Tell whether the photographs of phones that are HEIC can be read: pillow-heif is installed."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator:
    """Open an image; whatever goes wrong with it while it is open is an ImageError that names the file."""
    from PIL import Image, UnidentifiedImageError

    name = source if isinstance(source, Path) else "the image"
    contents = _contents(source, name)
    reads_heic()
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, of odd metadata and of palettes; what matters is raised here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(contents), formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                yield image
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image that can be read: {_kind(contents)}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels: at most {MAX_PIXELS:,} are read. Shrink it.") from error
    except Exception as error:  # A damaged image fails in a dozen ways, none of them named.
        if isinstance(error, MemoryError):
            raise
        raise ImageError(f"{name} is damaged ({error or type(error).__name__}).") from error


def _contents(source: Path | bytes, name: object) -> bytes:
    if isinstance(source, Path):
        try:
            size = source.stat().st_size
            # A pipe would be waited for.
            if not source.is_file():
                raise ImageError(f"{name} is no file.")
            if size > MAX_BYTES:
                raise ImageError(f"{name} has {size / 2**30:.1f} GiB, more than any image; it is not read.")
            source = source.read_bytes()
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}.") from error
    if not source:
        raise ImageError(f"{name} is empty.")
    return source


def _kind(contents: bytes) -> str:
    """Tell of contents that are no image what they are, and what to do about it."""
    if contents[4:8] == b"ftyp":
        if contents[8:12] not in _HEIC_BRANDS:
            return "it is a video"
        if reads_heic():
            return "it is a HEIC photograph, and damaged"
        return "it is a HEIC photograph; save it as JPEG, or install pillow-heif (pip install 'jaxmeta[heic]')"
    if contents.startswith(b"%PDF"):
        return "it is a PDF document; save its pages as PNG"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(contents[:4096])
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return "of an unknown kind, or damaged at its beginning"
    return "it is an SVG drawing; save it as PNG" if "<svg" in text else "it is text"


def _eight_bits(image):
    """Bring any mode of Pillow's to L or RGB."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, np.float64))
        largest = values.max(initial=0.0)
        # What holds 16 bits is scaled, and beyond them by the largest value; a file of 8 bits in a wide mode is taken
        # as it is. Floats are from 0 to 1, unless there are larger ones.
        if image.mode.startswith("I;16") or 255 < largest <= 65535:
            values = values / 257
        elif largest > 65535 or (image.mode == "F" and largest <= 1):
            values = values * (255 / max(largest, 1.0))
        return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8), "L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        white.alpha_composite(layered)
        return white.convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _fitted(image, recipe: ImageRecipe):
    from PIL import Image, ImageOps

    size, method = (recipe.width, recipe.height), Image.Resampling.LANCZOS
    if recipe.fit == "crop":
        return ImageOps.fit(image, size, method)
    if recipe.fit == "pad":
        around = [int(value) for value in np.median(_border(np.asarray(image)), axis=0).reshape(-1)]
        shrink = min(recipe.width / image.width, recipe.height / image.height)
        # A line of an image, a thousand times as wide as high, keeps a pixel of its height.
        inner = image.resize([max(1, round(side * shrink)) for side in image.size], method)
        padded = Image.new(image.mode, size, around[0] if image.mode == "L" else tuple(around))
        padded.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
        return padded
    return image.resize(size, method)


def _border(pixels: np.ndarray) -> np.ndarray:
    """Give the outermost pixels `[pixels, ...]`."""
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return np.concatenate(sides)
