"""Quick, Draw! from a folder of bitmaps: the published split or one of a seed, the drawings of the files."""

import io
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmeta import EpisodeSpec, load_quickdraw, task_source
from jaxmeta.data import DataError
from jaxmeta.data.quickdraw import CATEGORIES, HELD_OUT

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_category(path, category, drawings=10):
    """Drawings whose first pixels tell the category and the row of the file."""
    rows = np.zeros([drawings, 784], np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, -1] = category // 100, category % 100, np.arange(drawings), 255
    np.save(path, rows)


def archived(drawings):
    """What `numpy.savez` writes, which begins as no array does."""
    file = io.BytesIO()
    np.savez(file, np.zeros(drawings, np.uint8))
    return file.getvalue()


@pytest.fixture
def bitmaps(tmp_path):
    """Ten categories, named as the bucket, a mirror and a downloader name them."""
    folder = tmp_path / "bitmaps"
    folder.mkdir()
    names = ["cat", "full_numpy_bitmap_hot dog", "sea%20turtle", "flying_saucer", *(f"thing {i}" for i in range(6))]
    for category, name in enumerate(names):
        write_category(folder / f"{name}.npy", category)
    return folder


def test_bitmaps_to_episodes(bitmaps, cache, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_quickdraw(data_dir=bitmaps, per_class=4)
    assert "10 of the 345 categories" in caplog.text
    names = [name for split in SPLITS for name in data.class_names[split]]
    assert sorted(names) == ["cat", "flying saucer", "hot dog", "sea turtle", *(f"thing {i}" for i in range(6))]
    numbers = {"cat": 0, "hot dog": 1, "sea turtle": 2, "flying saucer": 3, **{f"thing {i}": 4 + i for i in range(6)}}
    for split in SPLITS:
        pool = data.splits[split]
        assert pool.images.shape[1:] == (4, 28, 28, 1) and pool.images.dtype == np.uint8
        for name, images in zip(data.class_names[split], pool.images, strict=True):
            # Evenly spread over the ten of the file, and upright: the last pixel is the last one.
            assert images[:, 0, 1, 0].tolist() == [numbers[name]] * 4
            assert images[:, 0, 2, 0].tolist() == [0, 2, 5, 7] and (images[:, -1, -1] == 255).all()
    (written,) = cache.glob("*.json")
    assert str(written) in caplog.text
    assert json.loads(written.read_text()) == {split: list(names) for split, names in data.class_names.items()}
    source = task_source(data, "train", EpisodeSpec(5, 1, 2))
    episode = jax.jit(source.sample, static_argnums=(2, 3))(jax.random.key(0), source.pool, source.spec, 3)
    assert episode.query.inputs.shape == (3, 10, 28, 28, 1)
    # One pool for all seeds; another seed is another split of it.
    other = load_quickdraw(data_dir=bitmaps, per_class=4, seed=1)
    assert len(list(cache.glob("*.npz"))) == 1 and other.class_names != data.class_names
    assert load_quickdraw(data_dir=bitmaps, per_class=4).class_names == data.class_names


def test_all_categories_are_split_as_meta_dataset_splits_them(tmp_path, caplog):
    tfds = pytest.importorskip("tensorflow_datasets")
    listed = Path(tfds.__file__).parent / "datasets" / "quickdraw_bitmap" / "labels.txt"
    categories = listed.read_text().splitlines()
    assert len(categories) == CATEGORIES
    for place, name in enumerate(categories):
        write_category(tmp_path / f"{name}.npy", place, drawings=2)
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_quickdraw(data_dir=tmp_path, per_class=2)
    assert not caplog.records and not list(tmp_path.glob("cache/*.json"))
    assert [len(data.class_names[split]) for split in SPLITS] == [241, 52, 52]
    assert {split: data.class_names[split] for split in HELD_OUT} == HELD_OUT
    assert len({name for names in data.class_names.values() for name in names}) == CATEGORIES
    for split in SPLITS:
        numbers = 100 * data.splits[split].images[:, 0, 0, 0, 0].astype(int) + data.splits[split].images[:, 0, 0, 1, 0]
        assert [categories[number] for number in numbers] == list(data.class_names[split])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "cat.npy is damaged"),
        (lambda path: path.write_bytes(b""), "cat.npy is damaged"),
        (lambda path: path.write_text("<html>"), "cat.npy is damaged"),
        (lambda path: path.write_bytes(archived(9 * 784)), "cat.npy is damaged"),
        (lambda path: path.write_bytes(archived(9 * 784)[:300]), "cat.npy is damaged"),
        (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "cat.npy is damaged .*Python objects"),
        (lambda path: np.save(path, np.zeros([9, 28, 28], np.uint8)), r"uint8\[9, 28, 28\]; it should be uint8\[draw"),
        (lambda path: np.save(path, np.zeros([9, 784])), r"float64\[9, 784\]"),
        (lambda path: write_category(path, 0, drawings=1), "cat.npy has 1 drawings, a class needs two or more"),
        (lambda path: write_category(path.with_name("full_numpy_bitmap_cat.npy"), 0), "holds 'cat' twice"),
    ],
    ids=["cut", "empty", "page", "archive", "cut archive", "objects", "shape", "type", "few", "twice"],
)
def test_bad_files_are_named(bitmaps, cache, damage, message):
    damage(bitmaps / "cat.npy")
    with pytest.raises(DataError, match=message):
        load_quickdraw(data_dir=bitmaps, per_class=4)
    # Nothing is left of what was not prepared.
    assert not list(cache.glob("*.json"))


def test_categories_with_few_drawings_keep_what_they_have(bitmaps, caplog):
    write_category(bitmaps / "cat.npy", 0, drawings=3)
    data = load_quickdraw(data_dir=bitmaps, per_class=4)
    assert "1 (cat: 3) categories have fewer than 4 drawings" in caplog.text
    counts = {
        name: n for split in SPLITS for name, n in zip(data.class_names[split], data.splits[split].counts, strict=True)
    }
    assert counts.pop("cat") == 3 and set(counts.values()) == {4}


def test_missing_folders_are_named(bitmaps, tmp_path):
    with pytest.raises(DataError, match="not downloaded .*gsutil"):
        load_quickdraw()
    with pytest.raises(DataError, match="no such folder"):
        load_quickdraw(data_dir=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .npy file"):
        load_quickdraw(data_dir=tmp_path / "empty")
    with pytest.raises(DataError, match="at least 2 drawings"):
        load_quickdraw(data_dir=bitmaps, per_class=1)
    for path in sorted(bitmaps.iterdir())[5:]:
        path.unlink()
    with pytest.raises(DataError, match="5 classes do not do: .* need 2 to train on"):
        load_quickdraw(data_dir=bitmaps, per_class=4)
