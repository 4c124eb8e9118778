"""One image file, of whatever kind, made into the pixels that a network was trained on."""

import io
import warnings
from pathlib import Path

import numpy as np

from jaxmeta.data.pools import DataError, ImageRecipe

# More pixels than any camera's; a small file may claim to hold more than memory does.
MAX_PIXELS = 250_000_000


class ImageError(DataError):
    """A file that is not a usable image, and why."""


def read_image(source: Path | bytes, recipe: ImageRecipe) -> np.ndarray:
    """Read an image of any common format into the pixels of a recipe.

    Turned as its EXIF data say; the first frame of several; 16 bits scaled to 8; what is transparent becomes white.
    Shrunk by Lanczos filtering.

    Args:
      source: A file, or its contents. The kind of image is told from the contents, not from the name.
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
    name = source if isinstance(source, Path) else "the image"
    image = _decoded(source, name)
    image = _fitted(image.convert("L" if recipe.channels == 1 else "RGB"), recipe)
    pixels = np.asarray(image).reshape(recipe.height, recipe.width, recipe.channels)
    # The border is asked before anything is added to it: `_fitted` pads with what is there.
    if recipe.bright_ink and _border(pixels).mean() >= 128:
        return 255 - pixels
    return pixels.copy()


def _decoded(source: Path | bytes, name: object):
    """Open, decode, turn upright and bring to 8 bits without transparency."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        contents = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}.") from error
    if not contents:
        raise ImageError(f"{name} is empty.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, of odd metadata and of palettes; what matters is raised here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(contents)) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height}"
                    raise ImageError(f"{name} has {size} pixels; at most {MAX_PIXELS:,} are read. Shrink it.")
                image.seek(0)
                image.load()
                return ImageOps.exif_transpose(_eight_bits(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is no image that can be read: {_kind(contents)}.") from error
    except ImageError:
        raise
    except Exception as error:  # A damaged image fails in a dozen ways, none of them named.
        if isinstance(error, MemoryError):
            raise
        raise ImageError(f"{name} is damaged ({error or type(error).__name__}).") from error


def _kind(contents: bytes) -> str:
    if contents[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        return "it is a HEIC photograph; save it as JPEG"
    try:
        contents.decode("utf-8")
        return "it is text"
    except UnicodeDecodeError:
        return "of an unknown kind, or damaged at its beginning"


def _eight_bits(image):
    """Bring any mode of Pillow's to L or RGB."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        # What holds 16 bits is scaled; a file of 8 bits in a wide mode is taken as it is.
        wide = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        values = values / 257 if wide and values.max(initial=0.0) <= 65535 else values
        exif = image.getexif()
        image = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8), "L")
        image.getexif().update(exif)
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        white.alpha_composite(layered)
        white.getexif().update(image.getexif())
        return white.convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _fitted(image, recipe: ImageRecipe):
    from PIL import Image, ImageOps

    size, method = (recipe.width, recipe.height), Image.Resampling.LANCZOS
    if recipe.fit == "crop":
        return ImageOps.fit(image, size, method)
    if recipe.fit == "pad":
        around = [int(value) for value in np.median(_border(np.asarray(image)), axis=0).reshape(-1)]
        return ImageOps.pad(image, size, method, color=around[0] if image.mode == "L" else tuple(around))
    return image.resize(size, method)


def _border(pixels: np.ndarray) -> np.ndarray:
    """Give the outermost pixels `[pixels, ...]`."""
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return np.concatenate(sides)
