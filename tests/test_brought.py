"""ImageNet's subsets from the folders that users bring: the published splits, the same pool from each packing."""

import csv
import io
import json
import logging
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmeta import DATASETS, EpisodeSpec, load_mini_imagenet, load_tiered_imagenet, task_source
from jaxmeta.data import DataError, check_spec, memory
from jaxmeta.data.brought import ImageFiles, choose_names, pool_file, read_pool
from jaxmeta.data.imagenet_splits import MINI_IMAGENET, TIERED_IMAGENET
from jaxmeta.data.pickled import read_pickle
from jaxmeta.data.pools import ImageRecipe

ALL_MINI = [number for numbers in MINI_IMAGENET.values() for number in numbers]
SIZE = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(class_place, image_place, size=SIZE):
    """One colour: the class in red and green, the image in blue; PNG keeps it to the bit."""
    file = io.BytesIO()
    colour = (class_place // 100, class_place % 100, image_place)
    Image.new("RGB", (size, size), colour).save(file, "png")
    return file.getvalue()


def write_classes(folder, classes, per_class=2, size=SIZE):
    for place, number in enumerate(classes):
        (folder / number).mkdir(parents=True)
        for image in range(per_class):
            (folder / number / f"{number}_{image}.JPEG").write_bytes(picture(place, image, size))


def write_lists(folder, names=lambda number: [f"{number}0000000{image}.jpg" for image in range(2)]):
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        with open(folder / f"{file}.csv", "w", newline="") as out:
            rows = [(name, number) for number in MINI_IMAGENET[split] for name in names(number)]
            csv.writer(out).writerows([("filename", "label"), *rows])


@pytest.fixture
def listed(tmp_path):
    """The folder of Ravi and Larochelle's lists, with two images a class."""
    folder = tmp_path / "mini"
    (folder / "images").mkdir(parents=True)
    for place, number in enumerate(ALL_MINI):
        for image in range(2):
            (folder / "images" / f"{number}0000000{image}.jpg").write_bytes(picture(place, image))
    write_lists(folder)
    return folder


def check_colours(data, order, per_class=2):
    """Every class of every split has its own images, and all of them."""
    for split, pool in data.splits.items():
        assert pool.images.dtype == np.uint8 and pool.images.shape[1:] == (per_class, SIZE, SIZE, 3)
        assert (pool.counts == per_class).all()
        for name, images in zip(data.class_names[split], pool.images, strict=True):
            place = order.index(name)
            assert (images[..., 0] == place // 100).all() and (images[..., 1] == place % 100).all()
            assert sorted(images[:, 0, 0, 2].tolist()) == list(range(per_class))


def test_the_splits_are_the_published_ones(shared):
    published = json.loads((shared / "data" / "splits" / "mini_imagenet_ravi.json").read_text())
    for split, own in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert list(MINI_IMAGENET[own]) == published[split]


def test_the_tiers_share_no_category():
    classes = {split: set(of_split) for split, of_split in TIERED_IMAGENET.items()}
    categories = {split: set(of_split.values()) for split, of_split in TIERED_IMAGENET.items()}
    # As Ren et al. 2018 count them, table 1.
    assert [len(of_split) for of_split in classes.values()] == [351, 97, 160]
    assert [len(of_split) for of_split in categories.values()] == [20, 6, 8]
    assert len(set.union(*classes.values())) == 608 and len(set.union(*categories.values())) == 34
    # Every one is a class of ILSVRC 2012, as tensorflow-datasets lists them.
    tfds = pytest.importorskip("tensorflow_datasets")
    listed = Path(tfds.__file__).parent / "image_classification" / "imagenet_resized_labels.txt"
    assert set.union(*classes.values()) | set(ALL_MINI) <= set(listed.read_text().split())


def test_mini_imagenet_from_lists_to_episodes(listed, cache, caplog):
    data = load_mini_imagenet(data_dir=listed, image_size=SIZE)
    check_colours(data, ALL_MINI)
    assert [len(names) for names in data.class_names.values()] == [64, 16, 20]
    assert len(set(data.class_names["train"]) & {*data.class_names["validation"], *data.class_names["test"]}) == 0
    # Fewer than the published 600 of a class: the log says so.
    assert "100 (n01532829: 2, " in caplog.text
    check_spec(EpisodeSpec(5, 1, 1), data.splits["test"])
    # Again from the cache, without a look at the pixels; another image, another pool.
    stored = sorted(cache.iterdir())
    assert len(stored) == 1
    again = load_mini_imagenet(data_dir=listed, image_size=SIZE)
    assert sorted(cache.iterdir()) == stored and np.array_equal(again.splits["test"].images, data.splits["test"].images)
    (listed / "images" / f"{ALL_MINI[0]}00000000.jpg").write_bytes(picture(0, 77, 9))
    assert load_mini_imagenet(data_dir=listed, image_size=SIZE).splits["train"].images[0, 0, 0, 0, 2] == 77
    assert load_mini_imagenet(data_dir=listed).splits["test"].images.shape == (20, 2, 84, 84, 3)


def test_mini_imagenet_from_imagenet_in_any_packing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("jaxmeta.data.mini_imagenet.PER_CLASS", 2)
    folder = tmp_path / "ILSVRC2012"
    # As torchvision unpacks it: validation images in folders of the same names. One class more, and three images each.
    write_classes(folder / "train", [*ALL_MINI, "n01440764"], per_class=3)
    write_classes(folder / "val", [*ALL_MINI, "n01440764"], per_class=1)
    data = load_mini_imagenet(data_dir=folder, image_size=SIZE)
    assert "are others than theirs" in caplog.text
    for split, pool in data.splits.items():
        for name, images in zip(data.class_names[split], pool.images, strict=True):
            expected = [int(chosen[-6]) for chosen in choose_names([f"{name}_{i}.JPEG" for i in range(3)], 2)]
            assert images[:, 0, 0, 2].tolist() == expected and images[0, 0, 0, 1] == ALL_MINI.index(name)
    tars = tmp_path / "tars"
    tars.mkdir()
    for number in ALL_MINI:
        with tarfile.open(tars / f"{number}.tar", "w") as archive:
            for image in (2, 0, 1):
                archive.add(folder / "train" / number / f"{number}_{image}.JPEG", f"{number}_{image}.JPEG")
    by_split = tmp_path / "by_split"
    for split, own in (("train", "train"), ("validation", "val"), ("test", "test")):
        for number in MINI_IMAGENET[split]:
            shutil.copytree(folder / "train" / number, by_split / own / number)
    for other in (tars, by_split):
        packed = load_mini_imagenet(data_dir=other, image_size=SIZE)
        assert all(np.array_equal(pool.images, packed.splits[split].images) for split, pool in data.splits.items())
    # A class of another split in the folder of this one is a leak.
    (by_split / "test" / MINI_IMAGENET["test"][0]).rename(by_split / "train" / MINI_IMAGENET["test"][0])
    with pytest.raises(DataError, match=r"train holds 1 \(n01930112\) classes that are not of the train split"):
        load_mini_imagenet(data_dir=by_split, image_size=SIZE)


def test_tiered_imagenet_from_folders_to_episodes_within_a_category(tmp_path):
    classes = [number for of_split in TIERED_IMAGENET.values() for number in of_split]
    write_classes(tmp_path / "imagenet", classes)
    data = load_tiered_imagenet(data_dir=tmp_path / "imagenet", image_size=SIZE)
    check_colours(data, classes)
    again = load_tiered_imagenet(data_dir=tmp_path / "imagenet", image_size=SIZE)
    for loaded in (data, again):
        for split, categories in TIERED_IMAGENET.items():
            assert dict(zip(loaded.class_names[split], loaded.groups[split], strict=True)) == categories
    source = task_source(data, "test", EpisodeSpec(5, 1, 1), within_group=True)
    episode = jax.jit(source.sample, static_argnums=(2, 3))(jax.random.key(1), source.pool, source.spec, 1)
    colours = np.asarray(episode.support.inputs)[0, :, 0, 0, :2]
    drawn = [classes[int(100 * round(float(red) * 255) + round(float(green) * 255))] for red, green in colours]
    assert len({TIERED_IMAGENET["test"][number] for number in drawn}) == 1 and len(set(drawn)) == 5


def pickled(classes, per_class=2, protocol=4):
    images = np.zeros([per_class * len(classes), SIZE, SIZE, 3], np.uint8)
    images[..., 1] = np.repeat(np.arange(len(classes)), per_class)[:, None, None]
    images[..., 2] = np.tile(np.arange(per_class), len(classes))[:, None, None]
    places = {number: list(range(per_class * place, per_class * (place + 1))) for place, number in enumerate(classes)}
    return pickle.dumps({"image_data": images, "class_dict": places}, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_mini_imagenet_from_pickles(tmp_path, protocol):
    for split, own in (("train", "train"), ("validation", "val"), ("test", "test")):
        content = pickled(MINI_IMAGENET[split], protocol=protocol)
        (tmp_path / f"mini-imagenet-cache-{own}.pkl").write_bytes(content)
    data = load_mini_imagenet(data_dir=tmp_path, image_size=SIZE)
    for pool in data.splits.values():
        assert (pool.images[..., 1] == np.arange(len(pool.images))[:, None, None, None]).all()
        assert (pool.images[..., 2] == np.arange(2)[None, :, None, None]).all()
    if protocol == 4:
        assert load_mini_imagenet(data_dir=tmp_path, image_size=4).splits["test"].images.shape == (20, 2, 4, 4, 3)
        (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(pickled(MINI_IMAGENET["test"]))
        with pytest.raises(DataError, match="cache-val.pkl has 20 .* classes that are not of this split"):
            load_mini_imagenet(data_dir=tmp_path, image_size=SIZE)
        (tmp_path / "mini-imagenet-cache-val.pkl").unlink()
        with pytest.raises(DataError, match="but no mini-imagenet-cache-val.pkl beside it"):
            load_mini_imagenet(data_dir=tmp_path)


def test_pickles_of_arrays_are_read_as_numpy_reads_them(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": [np.array(3, ">i4"), {"c": np.ones([1, 2], np.uint8)}]}
    arrays["d"] = np.float64(2.5)
    for protocol in range(6):
        jax.tree.map(np.testing.assert_array_equal, read_pickle(pickle.dumps(arrays, protocol), "arrays"), arrays)
    # Python 2 wrote texts as bytes of no encoding, and the bytes of arrays as texts: S'...' of protocol 0.
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    filled = array + b"(I1\n(I2\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntRI00\nS'\\xff\\x07'\ntb"
    assert read_pickle(b"(dp0\nS'key'\np1\n" + filled + b"s.", "old")["key"].tolist() == [255, 7]


class Program:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        lambda target: pickle.dumps(Program(os.mkdir, str(target))),
        lambda target: pickle.dumps({"image_data": np.array([Program(os.mkdir, str(target))], object)}),
        lambda target: pickle.dumps(Program(eval, f"__import__('os').mkdir({str(target)!r})"), 0),
        lambda target: pickle.dumps(Program(np.load, str(target))),
        lambda target: pickle.dumps(np.array(["text"])),
        lambda target: pickle.dumps({"a": np.arange(3)})[:-9],
        lambda target: b"",
        # An array whose shape says more than its bytes.
        lambda target: pickle.dumps(np.arange(3, dtype=np.uint8), 2).replace(b"K\x03\x85", b"K\x09\x85"),
    ],
    ids=["call", "objects", "eval", "numpy's own", "texts", "cut", "empty", "shape"],
)
def test_programs_in_pickles_do_not_run(tmp_path, content):
    with pytest.raises(DataError, match="the file is (not read: it|damaged ).*Fetch it again"):
        read_pickle(content(tmp_path / "made"), "the file")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_named(listed, tmp_path):
    with pytest.raises(DataError, match="mini-ImageNet is not downloaded.*ILSVRC 2012 from image-net.org"):
        DATASETS["mini_imagenet"](data_dir=None)
    with pytest.raises(DataError, match="tiered-ImageNet is not downloaded"):
        DATASETS["tiered_imagenet"](data_dir=None)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_tiered_imagenet(data_dir=tmp_path / "nowhere")
    empty = tmp_path / "empty"
    write_classes(empty / "cats", ["n01440764"])
    (empty / "ILSVRC2012_img_train.tar").write_bytes(b"")
    with pytest.raises(DataError, match="no class of it. Unpack ILSVRC2012_img_train.tar first"):
        load_mini_imagenet(data_dir=empty)
    write_classes(empty, ALL_MINI[3:])
    with pytest.raises(DataError, match=r"lacks 3 \(n01532829, n01558993, n01704323\) of the 100 classes"):
        load_mini_imagenet(data_dir=empty)
    (listed / "images" / f"{ALL_MINI[5]}00000001.jpg").unlink()
    with pytest.raises(DataError, match=rf"images lacks 1 \({ALL_MINI[5]}00000001.jpg\) of the 200 images"):
        load_mini_imagenet(data_dir=listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("label", "class"), "train.csv cannot be read as a table with columns"),
        (lambda text: text.replace("\nn01532829", "\nn01930112"), None),
        (lambda text: text.replace(",n01532829", ",n01930112"), "train.csv lists 1 .n01930112. classes that are not"),
        (lambda text: "\n".join(text.split("\n")[:-3]), "train.csv lacks 1 .n13133613. classes that are"),
        (lambda text: text.replace("00000001.jpg", "00000000.jpg"), "name 64 images more than once"),
        (
            lambda text: text.replace("n0153282900000001.jpg", "../train.csv"),
            "lacks 1 .../train.csv. of the 200 images",
        ),
    ],
    ids=["columns", "leak", "class", "cut", "twice", "climbs"],
)
def test_wrong_lists_are_refused(listed, change, message):
    path = listed / "train.csv"
    path.write_text(change(path.read_text().replace("\r\n", "\n")))
    # The images of a test class under a training label are listed twice: in train.csv and in test.csv.
    with pytest.raises(DataError, match=message or "2 images more than once.*met in training and in test"):
        load_mini_imagenet(data_dir=listed)


def test_damaged_images_are_left_out_and_named(tmp_path, caplog):
    write_classes(tmp_path, ["a", "b"], per_class=3)
    (tmp_path / "a" / "a_1.JPEG").write_bytes(b"")
    (tmp_path / "b" / "b_2.JPEG").write_bytes(picture(1, 2)[:45])
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / ".hidden.jpg").write_text("not an image")
    classes, recipe = {name: ImageFiles(tmp_path / name) for name in "ab"}, ImageRecipe(SIZE, SIZE, 3)
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        pool = read_pool(classes, recipe)
    assert pool.counts.tolist() == [2, 2] and pool.images[:, :2, 0, 0, 2].tolist() == [[0, 2], [0, 1]]
    assert not pool.images[:, 2].any()
    assert "2 images cannot be read" in caplog.text and "a_1.JPEG is empty" in caplog.text
    with pytest.raises(DataError, match=r"Of 2 classes, 2 \(a: 2, b: 2\) have fewer than 3 images"):
        read_pool(classes, recipe, least=3)
    (tmp_path / "c.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="c.tar cannot be read"):
        read_pool({"c": ImageFiles(tmp_path / "c.tar")}, recipe)
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        archive.add(tmp_path / "a" / "a_0.JPEG", "a_0.JPEG")
    (tmp_path / "d.tar").write_bytes((tmp_path / "d.tar").read_bytes()[:530])
    with pytest.raises(DataError, match="d.tar"):
        read_pool({"d": ImageFiles(tmp_path / "d.tar")}, recipe)


def test_large_pools_are_built_in_a_file(tmp_path, cache, monkeypatch):
    write_classes(tmp_path, ["a", "b"])
    classes, recipe = {name: ImageFiles(tmp_path / name) for name in "ab"}, ImageRecipe(SIZE, SIZE, 3)
    small = read_pool(classes, recipe)
    monkeypatch.setattr(memory, "IN_MEMORY", 100)
    large = read_pool(classes, recipe)
    assert isinstance(large.images, np.memmap) and np.array_equal(large.images, small.images)
    assert list(cache.iterdir()) == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("JAXMETA_CACHE", str(blocked / "in_a_file"))
    with pytest.raises(DataError, match="no room for 0.0 GB of images in .*set JAXMETA_CACHE"):
        read_pool(classes, recipe)


def test_a_moved_folder_has_the_same_pool(tmp_path):
    write_classes(tmp_path / "here", ["a"])
    before = pool_file("x", {"a": ImageFiles(tmp_path / "here" / "a")})
    (tmp_path / "here").rename(tmp_path / "there")
    assert pool_file("x", {"a": ImageFiles(tmp_path / "there" / "a")}) == before
    assert pool_file("x", {"b": ImageFiles(tmp_path / "there" / "a")}) != before
    (tmp_path / "there" / "a" / "more.png").write_bytes(picture(0, 0))
    assert pool_file("x", {"a": ImageFiles(tmp_path / "there" / "a")}) != before
