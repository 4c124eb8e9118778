"""A tensorflow-datasets builder of archives of labelled images that prepares them without TensorFlow.

It reads the archives as they are and hands over the files of their images; what it writes (array_record) reads like
what a stock builder writes.

It imports tensorflow-datasets at its top: import it inside functions.
"""

import concurrent.futures
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from jaxmeta.data.archives import ArchiveSource, Example, check_hashes
from jaxmeta.data.images import ImageError, read_image
from jaxmeta.data.pools import DataError, ImageRecipe
from jaxmeta.data.prepared import read_records


class JaxmetaArchive(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The images of a source: their files as they are, or PNG files of their pixels, and their classes.

    Args:
      source: What is prepared.
      paths: Its files by their published names; None to download them, which then must match.
      **options: What every builder takes, such as `data_dir`.
    """

    # Those of the source take their place.
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: ArchiveSource, paths: Mapping[str, Path] | None = None, **options):
        """See the class."""
        self._source, self._paths = source, paths
        # Of a builder's class elsewhere; here one class serves all sources.
        own: Any = self
        own.name, own.VERSION = f"jaxmeta_{source.name}", tfds.core.Version(source.version)
        super().__init__(file_format="array_record", **options)

    @property
    def url_infos(self) -> dict[str, checksums.UrlInfo]:
        """In place of a checksums file beside the module."""
        return {
            file.url: checksums.UrlInfo(checksums.utils.Size(file.size), file.sha256, file.name)
            for file in self._source.files
            if file.url and file.size and file.sha256
        }

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=None)
        features = {"image": tfds.features.Image(), "label": label, "key": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._source.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self._source.homepage,
            citation=self._source.citation,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source = self._source
        if self._paths is None:
            urls: Any = {file.name: file.url for file in source.files}
            downloads: Any = dl_manager.download(urls)
            paths = {name: Path(path) for name, path in downloads.items()}
        else:
            paths = self._paths
        features: Any = self.info.features
        metadata: Any = self.info.metadata
        # Which copy this was made of.
        metadata["sha256"] = check_hashes(source, paths)
        names = list(source.class_names(paths))
        features["label"].names = names
        return {part: self._generate_examples(paths, part, set(names)) for part in source.parts}

    def _generate_examples(self, paths: Mapping[str, Path], part: str, known: set[str]) -> Iterator[tuple[str, dict]]:
        """Yield `key, example` for every image of a part, of known classes."""
        for example in self._source.examples(paths):
            if example.class_name not in known:
                raise DataError(f"{example.key} is of the class {example.class_name!r}, which {self.name} has not.")
            if example.part == part:
                yield (
                    f"{example.class_name}/{example.key}",
                    {"image": io.BytesIO(_contents(example)), "label": example.class_name, "key": example.key},
                )


def _contents(example: Example) -> bytes:
    from PIL import Image

    if isinstance(example.image, bytes):
        return example.image
    file = io.BytesIO()
    # Fast rather than small: it is read once.
    Image.fromarray(example.image).save(file, "png", compress_level=1)
    return file.getvalue()


def prepare(source: ArchiveSource, paths: Mapping[str, Path] | None, folder: Path) -> Path:
    """Prepare a source, from files that are there or downloaded ones, below a folder.

    Args:
      source: What to prepare.
      paths: See `JaxmetaArchive`.
      folder: Where downloads and the prepared data set go.

    Returns:
      The folder of the prepared version.

    Raises:
      DataError: what an archive holds cannot be used, or its checksum is not known, so that it is not downloaded.
      ConnectionError: the site of the archives cannot be reached.
    """
    if paths is None:
        unknown = [file.name for file in source.files if not (file.url and file.size and file.sha256)]
        if unknown:
            raise DataError(f"{' and '.join(unknown)} cannot be downloaded and checked: no checksum is published.")
        check_network(source.files[0].url or source.homepage)
    return run_builder(JaxmetaArchive(source, paths, data_dir=folder), folder)


def run_builder(builder: tfds.core.DatasetBuilder, folder: Path) -> Path:
    """Let a builder of ours prepare its data below a folder, and say nothing on standard output.

    Args:
      builder: The builder.
      folder: Where downloads go.

    Returns:
      The folder of the prepared version.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
    # It prints; standard output belongs to the caller.
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
    return Path(builder.data_dir)


def check_network(url: str) -> None:
    """Fail at once where there is no network: the downloader would try again for minutes.

    Args:
      url: Of what is to be downloaded.

    Raises:
      ConnectionError: it cannot be reached.
    """
    import requests  # It comes with tensorflow-datasets, which downloads with it.

    try:
        requests.head(url, timeout=20)
    except requests.RequestException as error:
        raise ConnectionError(f"{url} cannot be reached: {type(error).__name__}") from error


class Prepared(NamedTuple):
    """What is in a prepared copy.

    Attributes:
      class_names: Of all classes, in order.
      images: By part and class name, a list of images `[height, width, channels]` uint8 each, sorted by their pixels.
      origin: The SHA-256 of each file it was made of, as far as it is recorded.
    """

    class_names: tuple[str, ...]
    images: dict[str, dict[str, list[np.ndarray]]]
    origin: dict[str, str | None]


def read_examples(
    folder: Path, recipe: ImageRecipe, edit: Callable[[bytes], bytes] | None = None, *, by_key: bool = False
) -> Prepared:
    """Read a prepared copy, ours or a stock builder's, whose files are array_record, into the pixels of a recipe.

    Args:
      folder: The folder of the prepared version.
      recipe: What the images are made into.
      edit: What is done to a file before, such as cutting off a margin.
      by_key: Sort the images by their keys, where they have some.

    Returns:
      The images; their order depends on their pixels only, or their keys, not on that of the records.

    Raises:
      ImageError: names the image that cannot be read.
    """
    builder: Any = tfds.builder_from_directory(folder)
    names = tuple(builder.info.features["label"].names)
    parts: dict[str, dict[str, list[np.ndarray]]] = {}

    def place(keyed: tuple[bytes, np.ndarray]) -> tuple[bytes, bytes]:
        return keyed[0], keyed[1].tobytes()

    def read(record: dict) -> np.ndarray:
        try:
            return read_image(record["image"] if edit is None else edit(record["image"]), recipe)
        except ImageError as error:
            key = record.get("key", b"?")
            raise ImageError(f"{names[record['label']]}, {getattr(key, 'decode', key.__str__)()}: {error}") from error

    # Pillow works in several threads; read_image sets the filters of warnings, which belong to all threads, so what
    # they were is restored here.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in builder.info.splits:
            by_class: dict[str, list[tuple[bytes, np.ndarray]]] = {}
            for records in _batches(read_records(builder, (part,), at_once=256), 256):
                for record, pixels in zip(records, pool.map(read, records), strict=True):
                    key = record.get("key", b"") if by_key else b""
                    by_class.setdefault(names[int(record["label"])], []).append((key, pixels))
            parts[part] = {name: [pixels for _, pixels in sorted(keyed, key=place)] for name, keyed in by_class.items()}
    metadata = builder.info.metadata or {}
    return Prepared(names, parts, metadata.get("sha256") or {f"{builder.name} {builder.version}": None})


def _batches(records: Iterator[dict], size: int) -> Iterator[list[dict]]:
    batch = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
