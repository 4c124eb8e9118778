"""Letters of many scripts, rendered offline from the fonts that matplotlib ships.

The default source of tasks: a real few-shot recognition problem that needs no network.
A class is a character; its images come from the families, weights and slants that have
it (DejaVu and STIX), each under a small affine change. The splits are by Unicode script,
so that no script of a test task was seen in training.
"""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe, cache_dir, cached_dataset

# Scripts by split: the first words of a character's Unicode name. Latin, Greek, Cyrillic
# and Coptic share letters and so share a split. Lisu (turned Latin capitals) and Old
# Italic (the ancestor of Latin, nearly its shapes) are left out.
SCRIPTS = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "CANADIAN"),
    "validation": ("HEBREW", "LAO", "OGHAM"),
    "test": ("GEORGIAN", "ARMENIAN", "TIFINAGH", "NKO"),
}
# By name, because the same folder holds LastResort (a placeholder box for every
# character) and TeX fonts whose tables do not follow Unicode.
FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)
SIZE = 28
PER_CLASS = 20
LETTERS = ImageRecipe(SIZE, SIZE, 1, fit="pad", bright_ink=True)
RECIPE = 1  # Part of the name of the cached file: raise it when the images change.
_FINE = 2 * SIZE  # Letters are drawn and turned at twice the size, then halved.
_POINTS = 36  # One size for all letters, in pixels of the fine frame.
_ALIKE = 40  # Renderings of two characters closer than this (of 255) at every pixel are one class.


class _Letter(NamedTuple):
    """A character, and its ink (0-255, cropped to its own box) in every font that has it."""

    code: int
    inks: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return unicodedata.name(chr(self.code))


def load_glyphs(*, data_dir: Path | None = None) -> Dataset:
    """Load the letters, rendering them at the first call (seconds) and caching them.

    Args:
      data_dir: Folder of the cache; None for `cache_dir()`.

    Returns:
      Images `[classes, 20, 28, 28, 1]` uint8 with ink 255 on 0, and Unicode names, for
      training (Latin, Greek, Cyrillic, Coptic, Canadian syllabics), validation (Hebrew,
      Lao, Ogham) and test (Georgian, Armenian, Tifinagh, N'Ko); groups are the scripts.

    Raises:
      DataError: matplotlib's fonts cannot be found.

    Example:
      >>> glyphs = load_glyphs()  # doctest: +SKIP
      >>> glyphs.class_names["train"][0]  # doctest: +SKIP
      'LATIN CAPITAL LETTER A'
    """
    folder = cache_dir() if data_dir is None else Path(data_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"data_dir {folder} is a file; give a folder to keep the glyphs in.")
    glyphs = cached_dataset(folder / f"glyphs-{RECIPE}.npz", render_glyphs)
    # A name begins with its script.
    scripts = {split: tuple(name.split()[0] for name in names) for split, names in glyphs.class_names.items()}
    return glyphs._replace(groups=scripts, recipe=LETTERS)


def render_glyphs() -> Dataset:
    """Render all splits; the images of a character depend on nothing but its code point.

    Returns:
      See `load_glyphs`.

    Raises:
      DataError: matplotlib's fonts cannot be found.
    """
    letters = _draw_letters()
    # In the order of the splits: what looks like a letter of training is left out of the others.
    ordered = [
        (split, letter) for split, scripts in SCRIPTS.items() for letter in letters if _in_scripts(letter.code, scripts)
    ]
    alike = _alike_to_earlier([letter for _, letter in ordered])
    splits, names = {}, {}
    for split in SCRIPTS:
        kept = [letter for (of, letter), left_out in zip(ordered, alike, strict=True) if of == split and not left_out]
        images = np.stack([_images(letter) for letter in kept])
        splits[split] = ClassPool(images, np.full(len(kept), PER_CLASS, np.int32))
        names[split] = tuple(letter.name for letter in kept)
    return Dataset("glyphs", "classification", splits, names)


def _in_scripts(code: int, scripts: tuple[str, ...]) -> bool:
    name = unicodedata.name(chr(code), "")
    is_letter = unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo", "Lt")
    # An accented letter is another letter and a mark of a few pixels: not a class of its own.
    is_letter = is_letter and not unicodedata.decomposition(chr(code))
    return is_letter and any(name.startswith(script + " ") for script in scripts)


def _draw_letters() -> list[_Letter]:
    """Draw every letter of every script in every font that has it, by code point."""
    import matplotlib
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    scripts = sum(SCRIPTS.values(), ())
    letters: dict[int, dict[str, np.ndarray]] = {}
    for name in FONTS:
        if not (folder / name).is_file():
            raise DataError(
                f"The glyphs are drawn from the fonts of matplotlib, but {name} is not in {folder}. "
                "Reinstall matplotlib with its data files."
            )
        # The basic layout engine is in every Pillow; the other one depends on the machine.
        font = ImageFont.truetype(folder / name, _POINTS, layout_engine=ImageFont.Layout.BASIC)
        with TTFont(folder / name, lazy=True) as table:
            codes = [code for code in table.getBestCmap() or () if _in_scripts(code, scripts)]
        for code in codes:
            mask = font.getmask(chr(code), mode="L")
            ink = np.array(mask, np.uint8).reshape(mask.size[::-1])
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            if not rows.size:
                continue
            cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            # A few of the letters are mere dots, which nothing but their place tells apart.
            if max(cropped.shape) > _POINTS / 3:
                letters.setdefault(code, {})[name] = cropped
    return [_Letter(code, letters[code]) for code in sorted(letters)]


def _alike_to_earlier(letters: list[_Letter]) -> np.ndarray:
    """Tell which letters look, in some font, like one before them: `[letters]` bool.

    Letters that are left out count as well: looking alike is passed on.
    """
    alike = np.zeros(len(letters), bool)
    for font in FONTS:
        having = [index for index, letter in enumerate(letters) if font in letter.inks]
        inks = [letters[index].inks[font] for index in having]
        sides = np.array([ink.shape for ink in inks])
        plain = np.stack([_plain(ink) for ink in inks])
        for at, index in enumerate(having):
            # Boxes that differ by more than a fine pixel cannot hold the same letter.
            near = np.flatnonzero((np.abs(sides[:at] - sides[at]) <= 1).all(1))
            if near.size and not alike[index]:
                alike[index] = np.abs(plain[near] - plain[at]).max(1).min() < _ALIKE
    return alike


def _plain(ink: np.ndarray) -> np.ndarray:
    """Centre a letter without any change and halve it: `[pixels]` int16."""
    side = 4 * _POINTS  # Wide enough for any letter: here none is shrunk to fit.
    frame = np.zeros((side, side), np.uint8)
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    frame[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return _halved(frame).astype(np.int16).ravel()


def _halved(fine: np.ndarray) -> np.ndarray:
    """Average squares of four pixels: `[..., size, size]` to `[..., size / 2, size / 2]`, uint8."""
    rows = fine[..., ::2, :].astype(np.uint16) + fine[..., 1::2, :]
    return ((rows[..., ::2] + rows[..., 1::2]) // 4).astype(np.uint8)


def _images(letter: _Letter) -> np.ndarray:
    """Draw one class `[20, 28, 28, 1]`: its fonts in turn, each under a small affine change."""
    generator = np.random.default_rng([RECIPE, letter.code])
    fonts = generator.permutation(sorted(letter.inks))
    angle = np.radians(generator.uniform(-10, 10, PER_CLASS))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    shear = np.tile(np.eye(2), (PER_CLASS, 1, 1))
    shear[:, 0, 1] = generator.uniform(-0.12, 0.12, PER_CLASS)
    scale = generator.uniform(0.85, 1.1, (PER_CLASS, 1, 1))
    shift = generator.uniform(-1.5, 1.5, (PER_CLASS, 2)) * _FINE / SIZE
    fine = np.empty((PER_CLASS, _FINE, _FINE), np.uint8)
    for start, font in enumerate(fonts[:PER_CLASS]):
        mine = slice(start, None, len(fonts))
        fine[mine] = _placed(letter.inks[font], (turn @ shear * scale)[mine], shift[mine])
    return _halved(fine)[..., None]


def _placed(ink: np.ndarray, matrices: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Put a letter into fine frames, moved and shrunk as little as keeps all of it inside.

    Args:
      ink: `[height, width]`, the letter cropped to its box.
      matrices: `[images, 2, 2]`, act on (x, y) about the centre of the box.
      shifts: `[images, 2]`, of the letter from the centre of the frame, in fine pixels.

    Returns:
      Frames `[images, 56, 56]`.
    """
    from PIL import Image

    height, width = ink.shape
    points = matrices @ _row_ends(ink)
    low, high = points.min(2), points.max(2)
    room = (_FINE - 4) / 2  # Half the frame, less a margin of one final pixel.
    shrink = np.minimum(1, 2 * room / (high - low).max(1))[:, None]
    limit = room - shrink * (high - low) / 2
    offset = np.clip(shifts, -limit, limit) - shrink * (high + low) / 2
    # PIL asks where each pixel of the frame comes from: the inverse map. The border is
    # there because bilinear sampling cuts off the outermost half pixel of an image.
    inverse = np.linalg.inv(matrices * shrink[..., None])
    start = [width / 2 + 1, height / 2 + 1] - (inverse @ (offset + _FINE / 2)[..., None])[..., 0]
    coefficients = np.concatenate([inverse, start[..., None]], axis=2).reshape(-1, 6).tolist()
    bordered = Image.fromarray(np.pad(ink, 1))
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.stack([np.asarray(bordered.transform((_FINE, _FINE), affine, row, bilinear)) for row in coefficients])


def _row_ends(ink: np.ndarray) -> np.ndarray:
    """Return the first and last inked pixel of every row, which bound all of them: (x, y) `[2, ends]`."""
    height, width = ink.shape
    marked = ink > 0
    first, last = marked.argmax(1), width - 1 - marked[:, ::-1].argmax(1)
    rows = np.flatnonzero(marked.any(1))
    columns = np.concatenate([first[rows], last[rows]])
    return np.stack([columns - (width - 1) / 2, np.tile(rows, 2) - (height - 1) / 2])
