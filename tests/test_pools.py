"""The pool of images and the file it is cached in: whole, checked, replaced at once."""

import json
import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from conftest import small_files
from jaxmeta.data import cache, pool_file, pools
from jaxmeta.data.cache import cached_dataset, read_dataset, write_dataset
from jaxmeta.data.pools import ClassPool, DataError, Dataset


def toy(seed=0, classes=3):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, [classes, 4, 6, 6, 1], np.uint8)
    pool = ClassPool(images, np.array([4, 2, 3][:classes], np.int32))
    names = tuple(f"letter {index} é" for index in range(classes))
    return Dataset("toy", "classification", {"train": pool, "test": pool}, {"train": names, "test": names})


def assert_same(one, other):
    assert (one.name, one.kind, one.class_names) == (other.name, other.kind, other.class_names)
    assert one.splits.keys() == other.splits.keys()
    for split in one.splits:
        for field, left, right in zip(ClassPool._fields, one.splits[split], other.splits[split], strict=True):
            assert left.dtype == right.dtype and np.array_equal(left, right), (split, field)


def never():
    raise AssertionError("prepared again although a whole file was there")


def test_second_opening_reads_the_file(tmp_path):
    path = tmp_path / "deep" / "toy.npz"
    assert_same(cached_dataset(path, toy), toy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(cached_dataset(path, never), toy())
    assert os.listdir(path.parent) == ["toy.npz"]


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "own"))
    assert cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("JAXMETA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "jaxmeta"


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def flip_one_bit_of_an_image(path):
    """Within the zip's own checksum, so that only ours can notice."""
    with np.load(path) as loaded:
        arrays = {key: loaded[key].copy() for key in loaded.files}
    arrays["train.images"][0, 0, 0, 0, 0] ^= 1
    np.savez(path, **arrays)


def flip_one_byte_of_the_file(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"train.images") + 200] ^= 1
    path.write_bytes(bytes(content))


def put_another_archive_there(path):
    np.savez(path, something=np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [cut, empty, flip_one_bit_of_an_image, flip_one_byte_of_the_file, put_another_archive_there],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_is_named_and_rebuilt(tmp_path, damage):
    path = tmp_path / "toy.npz"
    write_dataset(path, toy())
    damage(path)
    with pytest.raises(DataError, match=r"toy\.npz is damaged"):
        read_dataset(path)
    with pytest.warns(UserWarning, match=r"prepared again: .*toy\.npz") as caught:
        assert_same(cached_dataset(path, lambda: toy(1)), toy(1))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert_same(read_dataset(path), toy(1))


def test_another_format_is_named_and_rebuilt(tmp_path, monkeypatch):
    path = tmp_path / "toy.npz"
    monkeypatch.setattr(pool_file, "FORMAT_VERSION", 0)
    write_dataset(path, toy())
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="has format 0; this version reads 1"):
        assert_same(cached_dataset(path, lambda: toy(1)), toy(1))
    assert_same(cached_dataset(path, never), toy(1))


def test_a_failed_build_leaves_the_folder_as_it_was(tmp_path):
    def fail():
        raise DataError("no such data")

    with pytest.raises(DataError, match="no such data"):
        cached_dataset(tmp_path / "toy.npz", fail)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be kept.*JAXMETA_CACHE") as caught:
        assert_same(cached_dataset(tmp_path / "file" / "toy.npz", toy), toy())
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_only_a_warning(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert_same(cached_dataset(tmp_path / "toy.npz", toy), toy())
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def run_python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_leaves_no_half_file(tmp_path):
    """A limit on the size of a file stands for the disk: the write fails half way."""
    path, before = tmp_path / "toy.npz", toy()
    pool = ClassPool(np.ones([50, 4, 28, 28, 1], np.uint8), np.full(50, 4, np.int32))
    large = Dataset("toy", "classification", {"train": pool}, {"train": ("a",) * 50})
    for existing in (False, True):
        with warnings.catch_warnings(record=True) as caught, small_files(50_000):
            warnings.simplefilter("always")
            assert cached_dataset(path, lambda: large) is large
        # What was there is damaged on purpose, so that it would have been replaced.
        assert len(caught) == (2 if existing else 1) and "could not be kept" in str(caught[-1].message)
        assert os.listdir(tmp_path) == (["toy.npz"] if existing else [])
        write_dataset(path, before)
        cut(path)


def test_writers_at_once_leave_one_whole_file(tmp_path):
    code = """
        import sys, numpy as np
        from pathlib import Path
        from jaxmeta.data.cache import read_dataset, write_dataset
        from jaxmeta.data.pools import ClassPool, Dataset
        path, value = Path(sys.argv[1]), int(sys.argv[2])
        pool = ClassPool(np.full([200, 4, 28, 28, 1], value, np.uint8), np.full(200, 4, np.int32))
        for _ in range(10):
            write_dataset(path, Dataset("toy", "classification", {"train": pool}, {"train": ("a",) * 200}))
            images = read_dataset(path).splits["train"].images
            assert images.min() == images.max(), "a mixture of two writers"
    """
    path = tmp_path / "toy.npz"
    writers = [run_python(code, path, value) for value in (1, 2)]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    assert os.listdir(tmp_path) == ["toy.npz"]
    assert read_dataset(path).splits["train"].images.max() in (1, 2)


def test_rotations_are_classes_of_their_own():
    pool, names = toy().splits["train"], toy().class_names["train"]
    turned, turned_names = pools.with_rotations(pool, names)
    assert turned.images.shape == (12, 4, 6, 6, 1)
    assert turned.counts.tolist() == [4, 2, 3] * 4
    assert len(set(turned_names)) == 12
    for index, name in enumerate(turned_names):
        original, degrees = name.split("/rot")
        image = pool.images[names.index(original), 1, :, :, 0]
        assert np.array_equal(turned.images[index, 1, :, :, 0], np.rot90(image, int(degrees) // 90))


def test_rotations_need_square_images():
    pool = ClassPool(np.zeros([2, 3, 4, 5, 1], np.uint8), np.ones(2, np.int32))
    with pytest.raises(DataError, match=r"\[2, 3, 4, 5, 1\].*square"):
        pools.with_rotations(pool, ("a", "b"))


def test_importing_the_loaders_loads_nothing_heavy():
    code = """
        import json, sys
        import jaxmeta.data.glyphs, jaxmeta.data.omniglot
        heavy = ("tensorflow", "tensorflow_datasets", "matplotlib", "PIL", "fontTools")
        print(json.dumps([name for name in heavy if name in sys.modules]))
    """
    output, errors = run_python(code).communicate(timeout=60)
    assert json.loads(output) == [], errors
