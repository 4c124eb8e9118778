"""MNIST from its own files and from tensorflow-datasets: the same images, as bright as Omniglot's, clear refusals."""

import gzip
import hashlib
import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxmeta import EpisodeSpec, load_mnist
from jaxmeta.cli import main
from jaxmeta.data import DataError, check_spec
from jaxmeta.data.archives import check_hashes, find_source
from jaxmeta.data.mnist import DIGITS, FILES, NAMES, SOURCE


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))


def numbered(labels):
    """Images whose first pixels tell the digit and the place in the file, on black."""
    images = np.zeros([len(labels), 28, 28], np.uint8)
    images[:, 0, 0], images[:, 0, 1] = labels, np.arange(len(labels))
    images[:, 9:19, 12:16] = 255
    return images


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


# In the original files, too, digits come in no order and not equally often.
LABELS = {"train": np.tile([5, 0, 4, 1, 9, 2, 3, 7, 8, 6, 0], 4), "test": np.tile([7, 2, 1, 0, 4, 9, 5, 6, 3, 8, 8], 3)}


@pytest.fixture
def tiny(tmp_path):
    """The four files, of a few images, in the original layout."""
    for part, (images, labels) in FILES.items():
        (tmp_path / images.name).write_bytes(gzip.compress(idx(numbered(LABELS[part]))))
        (tmp_path / labels.name).write_bytes(gzip.compress(idx(LABELS[part].astype(np.uint8))))
    return tmp_path


def test_files_become_pools_by_digit(tiny, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_mnist(data_dir=tiny)
    # They are not the published ones, and the log says so of each.
    assert sum("is not byte for byte the published" in record.getMessage() for record in caplog.records) == 4
    assert data.class_names == {"train": tuple("01234"), "validation": tuple("56789"), "test": tuple("0123456789")}
    assert data.groups is None
    for split, part in (("train", "train"), ("validation", "train"), ("test", "test")):
        pool, names = data.splits[split], data.class_names[split]
        assert pool.images.dtype == np.uint8 and pool.images.shape[2:] == (28, 28, 1)
        for images, count, name in zip(pool.images, pool.counts, names, strict=True):
            # Every image of the digit, in the order of the file, and zeros where there is none.
            places = np.flatnonzero(LABELS[part] == int(name))
            assert images[:count, 0, 1, 0].tolist() == places.tolist()
            assert (images[:count, 0, 0] == int(name)).all() and not images[count:].any()
    decompressed = tiny / "plain"
    decompressed.mkdir()
    for name in NAMES:
        (decompressed / name.removesuffix(".gz")).write_bytes(gzip.decompress((tiny / name).read_bytes()))
    again = load_mnist(data_dir=decompressed)
    assert all(np.array_equal(again.splits[split].images, pool.images) for split, pool in data.splits.items())
    # The second time from the cache, which says what it was made of: nothing is read anew, and nothing said.
    caplog.clear()
    opened = load_mnist(data_dir=tiny)
    assert not caplog.records and set(opened.origin) == set(NAMES)
    assert opened.origin[NAMES[0]] == hashlib.sha256((tiny / NAMES[0]).read_bytes()).hexdigest()
    assert all(np.array_equal(opened.splits[split].images, pool.images) for split, pool in data.splits.items())


def test_prepared_on_the_command_line(tiny, capsys):
    """Ten digits are ten classes, though each is in two splits."""
    assert main(["data", "prepare", "mnist", "--data-dir", str(tiny)]) == 0
    out = capsys.readouterr().out
    assert "mnist: 10 classes (train 5, validation 5, test 10), 77 images of 28x28x1 pad, bright ink\n" in out
    assert all(f"  {name} sha256 " in out for name in NAMES)
    assert main(["data", "list"]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mnist-")]
    assert "10" in row and "77" in row


def test_what_is_downloaded_is_checked():
    """By size and checksum, which are those that tensorflow-datasets itself publishes."""
    tfds = pytest.importorskip("tensorflow_datasets")
    table = (Path(tfds.__file__).parent / "url_checksums" / "mnist.txt").read_text().splitlines()
    ours = {(file.url, str(file.size), file.sha256, file.name) for files in FILES.values() for file in files}
    assert ours == {tuple(line.split("\t")) for line in table}


def test_a_copy_of_tensorflow_datasets_gives_the_same(tiny, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    from PIL import Image

    def png(image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png")
        buffer.seek(0)
        return buffer

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        name = "mnist"

        def _info(self):
            image, label = tfds.features.Image(shape=(28, 28, 1)), tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, description="Digits.", features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(labels) for part, labels in LABELS.items()}

        def _generate_examples(self, labels):
            for place, (image, label) in enumerate(zip(numbered(labels), labels, strict=True)):
                yield place, {"image": png(image), "label": label}

    Mnist(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    data, stored = load_mnist(data_dir=tiny), load_mnist(data_dir=tmp_path / "tfds")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert stored.class_names == data.class_names
    for split, pool in data.splits.items():
        # A prepared copy is shuffled: the same images of each digit, in another order.
        assert np.array_equal(stored.splits[split].counts, pool.counts)
        for ours, theirs, count in zip(pool.images, stored.splits[split].images, pool.counts, strict=True):
            assert {image.tobytes() for image in ours[:count]} == {image.tobytes() for image in theirs[:count]}
    # A damaged copy is named.
    next((tmp_path / "tfds").rglob("mnist-test*")).write_bytes(b"cut")
    with pytest.raises(DataError, match="copy of mnist in .*3.0.1 cannot be read.*array_record"):
        load_mnist(data_dir=tmp_path / "tfds")


def swap_in(path, contents):
    path.write_bytes(gzip.compress(contents))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "only train-labels-idx1-ubyte.gz, t10k-.* or not.*copy"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"train-images-idx3-ubyte.gz is damaged \(EOFError"),
        (lambda path: path.write_bytes(b"<html>"), r"is damaged \(BadGzipFile"),
        (lambda path: swap_in(path, idx(numbered(LABELS["train"]))[:-1]), "bytes that are not an IDX file of 3 axes"),
        (lambda path: swap_in(path, idx(LABELS["train"].astype(np.uint8))), "not an IDX file of 3 axes"),
        (lambda path: swap_in(path, b""), "it holds 0 bytes"),
        (lambda path: swap_in(path, idx(numbered(LABELS["test"]))), r"images \[33, 28, 28\] .* 44 labels up to 9"),
        (lambda path: swap_in(path, idx(np.zeros([44, 8, 8], np.uint8))), r"images \[44, 8, 8\] .*not those of MNIST"),
    ],
    ids=["missing", "cut", "no gzip", "short", "labels", "empty", "other part", "other size"],
)
def test_damaged_files_are_named(tiny, damage, message):
    damage(tiny / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=message):
        load_mnist(data_dir=tiny)


def test_missing_digits_and_folders_are_named(tiny):
    swap_in(tiny / "t10k-labels-idx1-ubyte.gz", idx(np.full(33, 3, np.uint8)))
    with pytest.raises(DataError, match="has no image of 9 of the 10 classes of split 'test': 0, 1, 2, 4, 5, "):
        load_mnist(data_dir=tiny)
    with pytest.raises(DataError, match="no such folder. It should hold train-images-idx3-ubyte.gz and"):
        load_mnist(data_dir=tiny / "nowhere")


TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def published_digits(shared):
    """Images by part and digit, as the builder is given them."""
    source, paths = find_source((SOURCE,), shared / "data" / "mnist")
    digits = {part: {name: [] for name in DIGITS} for part in FILES}
    for example in source.examples(paths):
        digits[example.part][example.class_name].append(example.image)
    return source, paths, digits


def test_what_the_published_files_hold(shared, caplog):
    """The official counts, and no word of another checksum, though their gzip is not that of the download."""
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        source, paths, digits = published_digits(shared)
        hashes = check_hashes(source, paths)
    assert not caplog.records and len(hashes) == 4
    assert [len(images) for images in digits["test"].values()] == TEST_COUNTS
    assert [len(images) for images in digits["train"].values()] == TRAIN_COUNTS


# Seventy thousand images through the builder take a minute.
@pytest.mark.slow
def test_the_published_files(shared, caplog):
    """Every image where it should be, enough for ten-way tasks, and ink as bright as Omniglot's."""
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_mnist(data_dir=shared / "data" / "mnist")
    assert not caplog.records
    _, _, digits = published_digits(shared)
    for split, part in (("train", "train"), ("validation", "train"), ("test", "test")):
        for name, images, count in zip(data.class_names[split], *data.splits[split], strict=True):
            np.testing.assert_array_equal(images[:count, ..., 0], digits[part][name])
    assert data.splits["test"].counts.tolist() == TEST_COUNTS
    counts = np.concatenate([data.splits[split].counts for split in ("train", "validation")])
    assert counts.tolist() == TRAIN_COUNTS
    # As test_omniglot.py measures Omniglot: black in the middle of it, ink up to 255, a few per cent of the area.
    images = data.splits["test"].images[:, :800]
    assert np.median(images) == 0 and images.max() == 255
    assert 0.03 < images.mean() / 255 < 0.15
    for ways, split in ((5, "train"), (5, "validation"), (10, "test")):
        check_spec(EpisodeSpec(ways, 5, 800), data.splits[split])
