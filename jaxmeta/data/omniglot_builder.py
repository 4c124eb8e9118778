"""A tensorflow-datasets builder of Omniglot that prepares it without TensorFlow.

The stock builder lists and reads files through TensorFlow. This one reads the archives
as they are and hands over the PNG bytes; what it writes (array_record) reads like what
the stock builder writes: the same features, the same numbers, the same split names.

The only module that imports tensorflow-datasets at its top: import it inside functions.
"""

import contextlib
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from jaxmeta.data.omniglot import ARCHIVES, HOME
from jaxmeta.data.prepared import compare_checksum, read_records

_SOURCE = HOME + "raw/master/python/"
ALPHABETS, CHARACTERS = 50, 1623
_MEMBER = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/character(?P<character>\d+)/(?P<file>(?P<label>\d+)_\d+\.png)")


class JaxmetaOmniglot(tfds.core.GeneratorBasedBuilder):
    """Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al. 2015).

    Args:
      archives: Folder with the archives as published (`small1` and `small2` may be
        missing); None to download them. Archives with another checksum are accepted
        from a folder, and the log says so; a download must match.
      **options: What every builder takes, such as `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As the stock builder's 3.0.0, prepared without TensorFlow."}
    # In place of a checksums file beside the module.
    url_infos = {
        _SOURCE + name: checksums.UrlInfo(size=checksums.utils.Size(size), checksum=sha256, filename=name)
        for name, size, sha256 in ARCHIVES.values()
    }

    def __init__(self, *, archives: Path | None = None, **options):
        """See the class."""
        self._archives = archives
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten characters of 50 alphabets, 20 drawings each, for one-shot learning.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(105, 105, 3), encoding_format="png"),
                    "alphabet": tfds.features.ClassLabel(num_classes=ALPHABETS),
                    "alphabet_char_id": np.int64,
                    "label": tfds.features.ClassLabel(num_classes=CHARACTERS),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOME,
            citation=(
                "Lake, Salakhutdinov and Tenenbaum. Human-level concept learning through "
                "probabilistic program induction. Science 350(6266), 1332-1338, 2015."
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        if self._archives is None:
            downloads = dl_manager.download({split: _SOURCE + name for split, (name, _, _) in ARCHIVES.items()})
            paths = {split: Path(path) for split, path in downloads.items()}
        else:
            paths = {split: Path(self._archives) / name for split, (name, _, _) in ARCHIVES.items()}
            paths = {split: path for split, path in paths.items() if path.is_file()}
            for split, path in paths.items():
                compare_checksum(path, path.read_bytes(), ARCHIVES[split][2])
        members = [member for path in paths.values() for member in _members(path)]
        # Characters carry their number in the whole set in their file names; the small
        # sets repeat some of the background set.
        labels = {int(match["label"]) - 1: _label(match) for match in members}
        if sorted(labels) != list(range(len(labels))):
            raise ValueError(f"the archives hold {len(labels)} characters, with gaps in their numbers")
        self._name("label", [labels[number] for number in sorted(labels)])
        self._name("alphabet", sorted({match["alphabet"] for match in members}))
        return {split: self._generate_examples(path) for split, path in paths.items()}

    def _name(self, feature: str, names: list[str]) -> None:
        features: Any = self.info.features
        expected = features[feature].num_classes
        if len(names) != expected:
            raise ValueError(f"the archives hold {len(names)} values of {feature!r}, Omniglot has {expected}")
        features[feature].names = names

    def _generate_examples(self, path: Path) -> Iterator[tuple[str, dict]]:
        """Yield `key, example` for every drawing of an archive."""
        with zipfile.ZipFile(path) as archive:
            for match in _members(path):
                character = int(match["character"]) - 1
                yield (
                    f"{match['alphabet']}_{character}_{match['file']}",
                    {
                        "image": io.BytesIO(archive.read(match.string)),
                        "alphabet": match["alphabet"],
                        "alphabet_char_id": character,
                        "label": _label(match),
                    },
                )


def prepare(archives: Path | None, folder: Path) -> Path:
    """Prepare the archives of a folder, or downloaded ones, below another folder.

    Args:
      archives: See `JaxmetaOmniglot`.
      folder: Where downloads and the prepared data set go.

    Returns:
      The folder of the prepared version.

    Raises:
      ConnectionError: the site of the archives cannot be reached.
    """
    if archives is None:
        _check_network()
    builder = JaxmetaOmniglot(archives=archives, data_dir=folder)
    config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
    # It prints; standard output belongs to the caller.
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
    return Path(builder.data_dir)


def _check_network() -> None:
    """Fail at once where there is no network: the downloader would try again for minutes."""
    import requests  # It comes with tensorflow-datasets, which downloads with it.

    try:
        requests.head(HOME, timeout=20)
    except requests.RequestException as error:
        raise ConnectionError(f"{HOME} cannot be reached: {type(error).__name__}") from error


def read_drawings(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Read a prepared copy, ours or the stock builder's, whose files are array_record.

    Args:
      folder: The folder of the prepared version.

    Yields:
      "Alphabet/characterNN" and the PNG file of every drawing, in the order they are stored.
    """
    builder: Any = tfds.builder_from_directory(folder)
    alphabets = builder.info.features["alphabet"]
    for record in read_records(builder, ("train", "test")):
        alphabet = alphabets.int2str(int(record["alphabet"]))
        yield f"{alphabet}/character{int(record['alphabet_char_id']) + 1:02d}", record["image"]


def _label(match: re.Match) -> str:
    return f"{match['alphabet']}_{int(match['character']) - 1}"


def _members(path: Path) -> list[re.Match]:
    """Return the drawings of an archive, by name."""
    with zipfile.ZipFile(path) as archive:
        matches = [_MEMBER.fullmatch(name) for name in sorted(archive.namelist())]
    return [match for match in matches if match]
