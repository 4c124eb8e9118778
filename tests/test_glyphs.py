"""The rendered letters: enough of them, legible, distinct, and the same every time."""

import os
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from jaxmeta.data import glyphs
from jaxmeta.data.pools import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def dataset(folder):
    return glyphs.load_glyphs(data_dir=folder)


@pytest.fixture(scope="module")
def letters():
    return glyphs._draw_letters()


def test_sizes_and_types(dataset):
    assert (dataset.name, dataset.kind) == ("glyphs", "classification")
    assert tuple(dataset.splits) == tuple(dataset.class_names) == ("train", "validation", "test")
    for split, least in (("train", 500), ("validation", 80), ("test", 150)):
        images, counts = dataset.splits[split]
        classes = len(dataset.class_names[split])
        assert classes >= least
        assert images.shape == (classes, 20, 28, 28, 1) and images.dtype == np.uint8
        assert counts.tolist() == [20] * classes and counts.dtype == np.int32


def test_splits_are_by_script_and_hold_letters_only(dataset):
    scripts = {split: {name.split()[0] for name in names} for split, names in dataset.class_names.items()}
    assert scripts == {split: set(names) for split, names in glyphs.SCRIPTS.items()}
    assert not scripts["train"] & scripts["test"] and not scripts["train"] & scripts["validation"]
    assert not scripts["validation"] & scripts["test"]
    every = sum(dataset.class_names.values(), ())
    assert len(set(every)) == len(every)
    assert {unicodedata.category(unicodedata.lookup(name)) for name in every} <= {"Lu", "Ll", "Lo", "Lt"}


def test_every_image_shows_a_letter_inside_the_frame(dataset):
    for images, _ in dataset.splits.values():
        ink = images[..., 0].astype(np.float32) / 255
        amount = ink.sum((2, 3))
        assert amount.min() > 5 and amount.max() < 300  # Neither blank nor a filled box.
        assert ink.max((2, 3)).min() > 0.5
        border = np.concatenate([ink[:, :, [0, -1]].ravel(), ink[:, :, :, [0, -1]].ravel()])
        assert border.max() < 0.3 and (border > 0.1).mean() < 1e-3


def test_images_of_a_class_differ_and_no_two_classes_share_one(dataset):
    seen = {}
    for split, pool in dataset.splits.items():
        for name, images in zip(dataset.class_names[split], pool.images, strict=True):
            own = {image.tobytes() for image in images}
            assert len(own) == 20, name
            for image in own:
                assert seen.setdefault(image, name) == name
    # The letters are drawn in several styles, not only moved about.
    letter = dataset.splits["train"].images[dataset.class_names["train"].index("LATIN CAPITAL LETTER A")]
    amount = letter.sum((1, 2, 3)) / 255
    assert amount.max() > 1.5 * amount.min()


def test_letters_that_look_alike_are_one_class(dataset, letters):
    train = dataset.class_names["train"]
    assert "LATIN CAPITAL LETTER A" in train and "LATIN SMALL LETTER O" in train
    for twin in ("GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A", "CYRILLIC SMALL LETTER O"):
        assert twin not in train
    pair = [letter for letter in letters if letter.name in ("LATIN SMALL LETTER O", twin)]
    assert glyphs._alike_to_earlier(pair).tolist() == [False, True]


def test_a_shape_of_training_is_left_out_of_the_test_split(dataset, letters):
    shapes = {split: [] for split in dataset.splits}
    for letter in letters:
        for split, names in dataset.class_names.items():
            if letter.name in names and "DejaVuSans.ttf" in letter.inks:
                shapes[split].append(glyphs._plain(letter.inks["DejaVuSans.ttf"]))
    train = np.stack(shapes["train"])
    assert len(train) > 0.9 * len(dataset.class_names["train"])
    for shape in shapes["validation"] + shapes["test"]:
        assert np.abs(train - shape).max(1).min() >= glyphs._ALIKE


def test_an_image_depends_on_its_character_only(dataset, letters):
    by_name = {letter.name: letter for letter in letters}
    for split in ("test", "train"):
        for index in (40, 7):
            letter = by_name[dataset.class_names[split][index]]
            assert np.array_equal(glyphs._images(letter), dataset.splits[split].images[index])


def test_a_nearest_neighbour_finds_it_a_real_but_solvable_problem(dataset):
    """5-way 1-shot by pixel distance: far above chance (20 %), and far from solved."""
    images = dataset.splits["test"].images.reshape(-1, 20, 28 * 28) / 255.0
    generator = np.random.default_rng(0)
    right = []
    for _ in range(400):
        classes = generator.choice(len(images), 5, replace=False)
        support, query = generator.choice(20, 2, replace=False)
        distance = ((images[classes, query][:, None] - images[classes, support]) ** 2).sum(-1)
        right.append((distance.argmin(1) == np.arange(5)).mean())
    assert 0.4 < np.mean(right) < 0.9, np.mean(right)


def test_the_second_opening_draws_nothing(dataset, folder, monkeypatch):
    monkeypatch.setattr(glyphs, "render_glyphs", lambda: pytest.fail("drawn again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = glyphs.load_glyphs(data_dir=folder)
    assert np.array_equal(again.splits["test"].images, dataset.splits["test"].images)


def test_cached_letters_open_without_the_libraries_that_drew_them(dataset, folder):
    code = (
        "import sys; blocked = ('matplotlib', 'PIL', 'fontTools', 'tensorflow', 'tensorflow_datasets');"
        "sys.modules.update(dict.fromkeys(blocked));"
        "from jaxmeta.data.glyphs import load_glyphs; print(len(load_glyphs().class_names['test']))"
    )
    environment = os.environ | {"JAXMETA_CACHE": str(folder)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(dataset.class_names["test"])


def test_a_file_as_data_dir_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; give a folder"):
        glyphs.load_glyphs(data_dir=tmp_path / "file")
