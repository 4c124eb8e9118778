"""Each data set of published archives, from small ones in the original layout to an episode: archive, builder, pool."""

import io
import itertools
import json
import logging
import pickle

import jax
import numpy as np
import pytest
from archive_files import image_file, pack, real_images, same_pools

from jaxmeta import DATASETS, EpisodeSpec, load_cifar10, load_cifar10_arrays, load_cifar_fs, load_fc100, sample_episode
from jaxmeta.data import DataError, cifar10, cifar100, fgvc_aircraft, load_cub, load_fgvc_aircraft, load_vgg_flowers
from jaxmeta.data.archives import find_source
from jaxmeta.data.cifar_files import cifar_sources
from jaxmeta.data.vgg_flowers import SPLITS as FLOWER_SPLITS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))


def cifar_arrays(classes, seed=0):
    """By part, images and labels: three and two of each class, in no order."""
    rng = np.random.default_rng(seed)
    return {
        part: (rng.integers(0, 256, [count * classes, 32, 32, 3], np.uint8), rng.permutation(count * classes) % classes)
        for part, count in (("train", 3), ("test", 2))
    }


def rows(images):
    """Red, green and blue planes, by rows: as CIFAR keeps an image."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def batches(arrays):
    """The training images of CIFAR-10 are in five files."""
    images, labels = arrays["train"]
    for number in range(5):
        yield f"data_batch_{number + 1}", images[number::5], labels[number::5]
    yield ("test_batch", *arrays["test"])


def cifar10_binary(folder):
    members = {
        f"cifar-10-batches-bin/{name}.bin": np.hstack([labels[:, None], rows(images)]).astype(np.uint8).tobytes()
        for name, images, labels in batches(cifar_arrays(10))
    }
    meta = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(cifar10.CLASSES).encode()}
    return pack(folder / "cifar-10-binary.tar.gz", meta | members)


def cifar10_python(folder):
    members = {
        f"cifar-10-batches-py/{name}": pickle.dumps(
            {"batch_label": name, "labels": labels.tolist(), "data": rows(images), "filenames": []}, protocol=2
        )
        for name, images, labels in batches(cifar_arrays(10))
    }
    meta = {"cifar-10-batches-py/batches.meta": pickle.dumps({"label_names": list(cifar10.CLASSES)})}
    return pack(folder / "cifar-10-python.tar.gz", meta | members | {"cifar-10-batches-py/readme.html": b""})


def cifar10_images(folder):
    """As PNG here, so that the pixels are those of the other packings."""
    members = {}
    for part, (images, labels) in cifar_arrays(10).items():
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            members[f"{part}/{cifar10.CLASSES[label]}/{place:04d}.png"] = image_file(image, "png")
    return pack(folder / "cifar10_images.tar.xz", members)


def cifar100_binary(folder):
    members = {}
    for part, (images, labels) in cifar_arrays(100).items():
        records = np.hstack([labels[:, None] % 20, labels[:, None], rows(images)]).astype(np.uint8)
        members[f"cifar-100-binary/{part}.bin"] = records.tobytes()
    return pack(folder / "cifar-100-binary.tar.gz", members)


def cifar100_python(folder):
    members = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": list(cifar100.CLASSES)})}
    for part, (images, labels) in cifar_arrays(100).items():
        batch = {"fine_labels": labels.tolist(), "coarse_labels": (labels % 20).tolist(), "data": rows(images)}
        members[f"cifar-100-python/{part}"] = pickle.dumps(batch, protocol=2)
    return pack(folder / "cifar-100-python.tar.gz", members)


def photograph(seed, height=24, width=30):
    return np.random.default_rng(seed).integers(0, 256, [height, width, 3], np.uint8)


def cub_archive(folder):
    names = [f"{number:03d}.Bird_{number}" for number in range(1, 201)]
    classes = "".join(f"{number} {name}\n" for number, name in enumerate(names, 1))
    members = {"CUB_200_2011/images/._001.Bird_1": b"", "CUB_200_2011/README": b""}
    for seed, (name, place) in enumerate(itertools.product(names, range(2))):
        file = f"{name[4:]}_{place:04d}_{seed}.jpg"
        members[f"CUB_200_2011/images/{name}/{file}"] = image_file(photograph(seed))
        members[f"CUB_200_2011/images/{name}/._{file}"] = b"what another system leaves"
    return pack(folder / "CUB_200_2011.tgz", members | {"CUB_200_2011/classes.txt": classes.encode()})


def flowers_archive(folder):
    from scipy.io import savemat

    # Each label twice, in no order; images are numbered from 1.
    labels = np.random.default_rng(0).permutation(204) % 102 + 1
    members = {f"jpg/image_{place + 1:05d}.jpg": image_file(photograph(place)) for place in range(204)}
    file = io.BytesIO()
    savemat(file, {"labels": labels[None].astype(np.uint8)})
    (folder / "imagelabels.mat").write_bytes(file.getvalue())
    return pack(folder / "102flowers.tgz", members)


def aircraft_archive(folder):
    lines, members = {"trainval": [], "test": []}, {}
    for seed, (name, place) in enumerate(itertools.product(fgvc_aircraft.CLASSES, range(2))):
        image = photograph(seed, 44) // 4
        # The banner is bright, the rest is not.
        image[-20:] = 255
        members[f"fgvc-aircraft-2013b/data/images/{seed:07d}.jpg"] = image_file(image)
        lines["test" if place else "trainval"].append(f"{seed:07d} {name}\n")
    lists = {
        f"fgvc-aircraft-2013b/data/images_variant_{part}.txt": "".join(of_part).encode()
        for part, of_part in lines.items()
    }
    # After the images: the order in an archive is nobody's promise.
    return pack(folder / "fgvc-aircraft-2013b.tar.gz", members | lists)


# Of a data set: how its archive is made, how many classes its splits have, and the size of its images.
CASES = {
    "cifar10": (cifar10_binary, (4, 3, 3), 32),
    "cifar_fs": (cifar100_binary, (64, 16, 20), 32),
    "fc100": (cifar100_binary, (60, 20, 20), 32),
    "cub": (cub_archive, (100, 50, 50), 84),
    "vgg_flowers": (flowers_archive, (71, 15, 16), 84),
    "fgvc_aircraft": (aircraft_archive, (70, 15, 15), 84),
}


def classes_with(pool, image):
    """The classes of a pool that have an image."""
    return {place for place, images in enumerate(real_images(pool)) if (image == images).all((1, 2, 3)).any()}


@pytest.mark.parametrize("name", CASES)
def test_from_the_archive_to_an_episode(name, tmp_path, caplog):
    """The whole path; no class and no image is in two splits, and the second opening gives the same."""
    make, sizes, size = CASES[name]
    make(tmp_path)
    image_size = 12 if size == 84 else None
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = DATASETS[name](data_dir=tmp_path, image_size=image_size)
    assert "is not byte for byte the published" in caplog.text or "is not known here" in caplog.text
    assert data.name == name and data.kind == "classification" and data.origin
    assert tuple(len(data.class_names[split]) for split in ("train", "validation", "test")) == sizes
    all_names = [class_name for names in data.class_names.values() for class_name in names]
    assert len(set(all_names)) == sum(sizes)
    seen = [image.tobytes() for pool in data.splits.values() for images in real_images(pool) for image in images]
    assert len(set(seen)) == len(seen)
    for pool in data.splits.values():
        assert pool.images.dtype == np.uint8 and pool.images.shape[2:] == (image_size or size, image_size or size, 3)
        assert pool.counts.min() >= 2
    pool = data.splits["test"]
    episode = sample_episode(jax.random.key(0), pool, EpisodeSpec(ways=3, shots=1, queries=1))
    for inputs, target in zip(episode.query.inputs, episode.query.targets, strict=True):
        # Each query is an image of the pool, of the class of the support image with its target.
        query, support = (np.round(np.asarray(image) * 255) for image in (inputs, episode.support.inputs[target]))
        homes = [classes_with(pool, image) for image in (query, support)]
        assert homes[0] == homes[1] and len(homes[0]) == 1
    again = DATASETS[name](data_dir=tmp_path, image_size=image_size)
    assert same_pools(again, data) and again.origin == data.origin and again.recipe == data.recipe
    if name == "fgvc_aircraft":
        assert DATASETS[name](data_dir=tmp_path).splits["test"].images.shape[2:] == (84, 84, 3)


def labelled(images, labels):
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def test_every_packing_of_cifar10_gives_its_pixels(tmp_path, caplog):
    expected = cifar_arrays(10)
    first = None
    for make in (cifar10_binary, cifar10_python, cifar10_images):
        path = make(tmp_path)
        caplog.clear()
        data, arrays = load_cifar10(data_dir=tmp_path), load_cifar10_arrays(data_dir=tmp_path)
        assert ("encoded anew" in caplog.text) == (make is cifar10_images)
        path.unlink()
        first = first or data
        assert same_pools(data, first)
        for part, (images, labels) in expected.items():
            assert arrays[part][1].tolist() == sorted(labels)
            # The very pixels, with their labels.
            found, known = (labelled(*both) for both in (arrays[part], (images, labels)))
            assert found == known
    assert first is not None and first.class_names == {
        "train": ("airplane", "automobile", "bird", "cat"),
        "validation": ("deer", "dog", "frog"),
        "test": ("horse", "ship", "truck"),
    }
    # Training and validation are of the official training images, the test of the others.
    images, labels = expected["test"]
    assert {image.tobytes() for image in first.splits["test"].images[1]} == {x.tobytes() for x in images[labels == 8]}


def test_both_packings_of_cifar100_give_the_same(tmp_path):
    path = cifar100_binary(tmp_path)
    first = load_cifar_fs(data_dir=tmp_path)
    path.unlink()
    cifar100_python(tmp_path)
    assert same_pools(load_cifar_fs(data_dir=tmp_path), first)
    images = np.concatenate([images for images, _ in cifar_arrays(100).values()])
    labels = np.concatenate([labels for _, labels in cifar_arrays(100).values()])
    for split, names in first.class_names.items():
        for name, of_class in zip(names, first.splits[split].images, strict=True):
            expected = images[labels == cifar100.CLASSES.index(name)]
            assert {image.tobytes() for image in of_class} == {image.tobytes() for image in expected}


def test_a_stock_copy_of_cifar10_gives_the_same(tmp_path):
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")
        name = "cifar10"

        def _info(self):
            image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
            label = tfds.features.ClassLabel(names=list(cifar10.CLASSES))
            features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, description="Photographs.", features=features)

        def _split_generators(self, dl_manager):
            return {part: self._generate_examples(part, *both) for part, both in cifar_arrays(10).items()}

        def _generate_examples(self, part, images, labels):
            for place, (image, label) in enumerate(zip(images, labels, strict=True)):
                file = io.BytesIO(image_file(image, "png"))
                yield f"{part}_{place}", {"id": f"{part}_{place}", "image": file, "label": label}

    Cifar10(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    stored = load_cifar10(data_dir=tmp_path / "tfds")
    assert stored.origin == {"cifar10 3.0.2": None}
    cifar10_binary(tmp_path)
    assert same_pools(stored, load_cifar10(data_dir=tmp_path))


@pytest.mark.parametrize(("load", "file"), [(load_cifar_fs, "cifar_fs.json"), (load_fc100, "fc100.json")])
def test_the_splits_of_cifar100_are_the_published_ones(load, file, shared, tmp_path):
    published = json.loads((shared / "data" / "splits" / file).read_text())
    cifar100_binary(tmp_path)
    data = load(data_dir=tmp_path)
    for split, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(data.class_names[split]) == sorted(published[theirs])
    if load is load_fc100:
        # No superclass is in two splits.
        assert [len(set(data.groups[split])) for split in data.splits] == [12, 4, 4]
        assert len(set().union(*data.groups.values())) == 20
    assert all(len(data.groups[split]) == len(names) for split, names in data.class_names.items())
    assert data.groups["test"][data.class_names["test"].index("whale")] == "aquatic_mammals"


def test_images_that_fit_in_no_memory_are_refused_before_they_are_read(tmp_path):
    cub_archive(tmp_path)
    with pytest.raises(DataError, match=r"cub at 99999x99999 needs .* GB are free. Take a smaller image size"):
        load_cub(data_dir=tmp_path, image_size=99999)


def test_birds_are_split_by_their_place(tmp_path):
    cub_archive(tmp_path)
    names = load_cub(data_dir=tmp_path, image_size=8).class_names
    numbers = {split: [int(name[:3]) - 1 for name in of_split] for split, of_split in names.items()}
    assert all(number % 2 == 0 for number in numbers["train"])
    assert all(number % 4 == 1 for number in numbers["validation"])
    assert all(number % 4 == 3 for number in numbers["test"])


def test_flowers_have_their_labels(tmp_path):
    flowers_archive(tmp_path)
    data = load_vgg_flowers(data_dir=tmp_path, image_size=8)
    assert "rose" in data.class_names["train"] and "foxglove" in data.class_names["test"]
    taken = FLOWER_SPLITS["validation"] + FLOWER_SPLITS["test"]
    assert len(set(taken)) == 31 and min(taken) >= 1 and max(taken) <= 102
    from scipy.io import savemat

    savemat(tmp_path / "imagelabels.mat", {"labels": np.ones([1, 100], np.uint8)})
    with pytest.raises(DataError, match="has an image 101, but .*imagelabels.mat has 100 labels"):
        load_vgg_flowers(data_dir=tmp_path, image_size=8)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.full([1, 204], 103, np.uint8)})
    with pytest.raises(DataError, match="imagelabels.mat is damaged .*not those of 102 classes"):
        load_vgg_flowers(data_dir=tmp_path, image_size=8)
    (tmp_path / "imagelabels.mat").write_bytes(b"<html>")
    with pytest.raises(DataError, match="imagelabels.mat is damaged"):
        load_vgg_flowers(data_dir=tmp_path, image_size=8)
    (tmp_path / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"only 102flowers\.tgz\. It should hold 102flowers\.tgz and imagelabels\.mat"):
        load_vgg_flowers(data_dir=tmp_path, image_size=8)


def test_aircraft_lose_their_banner(tmp_path):
    aircraft_archive(tmp_path)
    data = load_fgvc_aircraft(data_dir=tmp_path, image_size=24)
    assert max(pool.images.max() for pool in data.splits.values()) < 150
    assert {"F-16A/B", "707-320", "Embraer Legacy 600"} <= set(data.class_names["train"])


def test_files_in_another_layout_are_refused(tmp_path):
    def refused(message, load, file, members):
        pack(tmp_path / file, members)
        with pytest.raises(DataError, match=message):
            load(data_dir=tmp_path)
        (tmp_path / file).unlink()

    refused("no classes.txt", load_cub, "CUB_200_2011.tgz", {"CUB_200_2011/images/001.A/a.jpg": b""})
    one_class = {"classes.txt": b"1 001.A\n", "images/001.A/a.jpg": image_file(photograph(0))}
    refused("has 1 classes; it should have 200", load_cub, "CUB_200_2011.tgz", one_class)
    refused("no data/images_variant", load_fgvc_aircraft, "fgvc-aircraft-2013b.tar.gz", {"data/images/1.jpg": b""})
    other = {"data/images/1.jpg": b"", "data/images_variant_test.txt": b"2 Spitfire\n"}
    refused("image 1 is of no variant", load_fgvc_aircraft, "fgvc-aircraft-2013b.tar.gz", other)
    refused("test.bin has 3000 bytes", load_fc100, "cifar-100-binary.tar.gz", {"test.bin": bytes(3000)})
    record = bytes([0, 100]) + bytes(3072)
    refused("labels up to 100; there are 100", load_fc100, "cifar-100-binary.tar.gz", {"test.bin": record})
    batch = pickle.dumps({"fine_labels": [1, 2], "data": np.zeros([1, 3072], np.uint8)})
    refused("train does not hold rows", load_fc100, "cifar-100-python.tar.gz", {"cifar-100-python/train": batch})
    refused("train does not hold rows", load_fc100, "cifar-100-python.tar.gz", {"train": pickle.dumps([1])})


@pytest.mark.slow
def test_the_real_cifar10(shared, caplog):
    """60,000 images, encoded anew as JPEG, and said so; half a minute or two."""
    folder = shared / "data" / "cifar10"
    assert find_source(cifar_sources("cifar10", cifar10.CLASSES), folder)
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_cifar10(data_dir=folder)
    assert "encoded anew" in caplog.text and "sha256" in caplog.text and "published it has" not in caplog.text
    assert [pool.counts.tolist() for pool in data.splits.values()] == [[5000] * 4, [5000] * 3, [1000] * 3]
    arrays = load_cifar10_arrays(data_dir=folder)
    assert {part: (images.shape, np.bincount(labels).tolist()) for part, (images, labels) in arrays.items()} == {
        "train": ((50000, 32, 32, 3), [5000] * 10),
        "test": ((10000, 32, 32, 3), [1000] * 10),
    }
    # The mean of each channel of the training images, well known.
    means = arrays["train"][0].mean((0, 1, 2)) / 255
    assert np.abs(means - [0.4914, 0.4822, 0.4465]).max() < 0.003
