"""The class splits of Omniglot: which characters to train on, to validate with, and to test on.

A split is `(names, seed) -> positions in names` for "train", "validation" and "test"; names are
"Alphabet/characterNN". Two are for random episodes, three for the Omniglot challenge (Lake et al. 2015),
whose test alphabets are those of the published evaluation set.
"""

from collections.abc import Sequence

import numpy as np

# The split of Vinyals et al. 2016, as ProtoNet (Snell et al. 2017) published it, by alphabet.
VALIDATION_ALPHABETS = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
TEST_ALPHABETS = frozenset(
    {"Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"}
    | {"Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"}
)
# It cuts the characters at a number, which falls within one alphabet: from here on, test.
CUT_ALPHABET, CUT_CHARACTER = "Gurmukhi", 42

# The 20 alphabets of the published evaluation set; the other 30 are its background set.
EVALUATION_ALPHABETS = frozenset(
    {"Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi"}
    | TEST_ALPHABETS
)
# The two minimal background sets: about as many alphabets as a grown person has met.
SMALL1_ALPHABETS = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
SMALL2_ALPHABETS = ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog")
# Background alphabets that choose the checkpoint. In the minimal sets it is the smallest one that has the 20 characters
# of a challenge task (22 of 136 characters, 24 of 156), which leaves the most to train on.
HELD_OUT, SMALL1_HELD_OUT, SMALL2_HELD_OUT = 5, "Early_Aramaic", "Greek"


def vinyals_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split characters by alphabet, as Vinyals et al. 2016 (arXiv 1606.04080) did.

    Args:
      names: "Alphabet/characterNN" of every character.
      seed: Not used; every split takes one.

    Returns:
      Positions in `names` for "train", "validation" and "test".

    Example:
      >>> vinyals_split(("Gurmukhi/character41", "Gurmukhi/character42", "Hebrew/character01"))["test"]
      array([1])
    """
    del seed

    def part_of(name: str) -> str:
        alphabet, _, character = name.partition("/character")
        beyond = alphabet == CUT_ALPHABET and int(character) >= CUT_CHARACTER
        if alphabet in TEST_ALPHABETS or beyond:
            return "test"
        return "validation" if alphabet in VALIDATION_ALPHABETS else "train"

    return _positions([part_of(name) for name in names])


def random_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split characters by chance: 1100 to train, 100 to validate, the rest to test.

    Finn et al. 2017 (arXiv 1703.03400) train on 1200 characters irrespective of alphabet;
    100 of them choose the checkpoint.

    Args:
      names: Name of every character; only their number matters.
      seed: Of the permutation.

    Returns:
      Positions in `names` for "train", "validation" and "test".

    Example:
      >>> [len(part) for part in random_split(("",) * 1623, seed=0).values()]
      [1100, 100, 423]
    """
    # RandomState, because NumPy promises that its permutations never change.
    order = np.random.RandomState(seed).permutation(len(names))
    return {"train": order[:1100], "validation": order[1100:1200], "test": order[1200:]}


def background_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split as the Omniglot challenge does: the 20 evaluation alphabets test, the other 30 train.

    Five of the 30 background alphabets, drawn whole, are held out from training to choose the checkpoint: what
    is judged is learning the characters of a new alphabet. The evaluation alphabets choose nothing.

    Args:
      names: "Alphabet/characterNN" of every character.
      seed: Draws the five.

    Returns:
      Positions in `names` for "train", "validation" and "test".

    Example:
      >>> background_split(("Greek/character01", "Tengwar/character01"))["test"]
      array([1])

    Source: Lake, Salakhutdinov and Tenenbaum, 2015, Science 350(6266); 2019, arXiv 1902.03477.
    """
    background = sorted({_alphabet(name) for name in names} - EVALUATION_ALPHABETS)
    order = np.random.RandomState(seed).permutation(len(background))
    held_out = {background[index] for index in order[:HELD_OUT]}
    return _challenge(names, frozenset(background), held_out)


def small1_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split as `background_split`, with the first minimal set: four alphabets train, Early Aramaic validates.

    Args:
      names: "Alphabet/characterNN" of every character.
      seed: Not used; every split takes one.

    Returns:
      Positions in `names` for "train", "validation" and "test"; the other 25 background alphabets are in none.

    Example:
      >>> small1_split(("Greek/character01", "Hebrew/character01", "Tengwar/character01"))["train"]
      array([0])
    """
    del seed
    return _challenge(names, frozenset(SMALL1_ALPHABETS), {SMALL1_HELD_OUT})


def small2_split(names: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Split as `background_split`, with the second minimal set: four alphabets train, Greek validates.

    Args:
      names: "Alphabet/characterNN" of every character.
      seed: Not used; every split takes one.

    Returns:
      Positions in `names` for "train", "validation" and "test"; the other 25 background alphabets are in none.

    Example:
      >>> small2_split(("Greek/character01", "Latin/character01", "Tengwar/character01"))["validation"]
      array([0])
    """
    del seed
    return _challenge(names, frozenset(SMALL2_ALPHABETS), {SMALL2_HELD_OUT})


SPLITS = {
    "vinyals": vinyals_split,
    "random": random_split,
    "background": background_split,
    "small1": small1_split,
    "small2": small2_split,
}
# Those that train on no alphabet of the challenge. It shows characters upright: turned ones serve its training only.
CHALLENGE_SPLITS = ("background", "small1", "small2")


def _challenge(names: tuple[str, ...], background: frozenset[str], held_out: set[str]) -> dict[str, np.ndarray]:
    def part_of(name: str) -> str | None:
        alphabet = _alphabet(name)
        if alphabet in EVALUATION_ALPHABETS:
            return "test"
        if alphabet in background:
            return "validation" if alphabet in held_out else "train"
        return None

    return _positions([part_of(name) for name in names])


def _alphabet(name: str) -> str:
    return name.partition("/")[0]


def _positions(parts: Sequence[str | None]) -> dict[str, np.ndarray]:
    return {
        part: np.array([index for index, of in enumerate(parts) if of == part], np.int64)
        for part in ("train", "validation", "test")
    }
