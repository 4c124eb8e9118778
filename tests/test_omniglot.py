"""Omniglot from every kind of copy: the same pixels, the published splits, clear refusals."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxmeta import (
    CRITERIA,
    EpisodeSpec,
    conv4,
    evaluate,
    fit,
    init_train_state,
    make_train_step,
    maml,
    task_source,
)
from jaxmeta.data import omniglot
from jaxmeta.data.omniglot import load_omniglot
from jaxmeta.data.pools import DataError

SHARED = Path(os.environ.get("JAXMETA_SHARED") or Path(__file__).parents[2] / "shared") / "data"
STOCK = SHARED / "tfds"
VERSION = STOCK / "omniglot" / "3.0.0"
ARCHIVES = SHARED / "omniglot"


def needs(path):
    if not path.exists():
        pytest.skip(f"needs {path}, which is not on this machine (set JAXMETA_SHARED)")


def start(data_dir, cache, before=""):
    """Load in a process of its own."""
    code = before + (
        "import sys; from pathlib import Path; from jaxmeta.data.omniglot import load_omniglot;"
        "data = load_omniglot(data_dir=Path(sys.argv[1]), rotations=False);"
        "assert data.splits['train'].images.shape == (1028, 20, 28, 28, 1);"
        "print(*sys.modules, file=sys.stderr)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        env=os.environ | {"JAXMETA_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait for such a process and return the modules it loaded."""
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert output == "", "standard output belongs to the caller"
    return errors.split("\n")[-2].split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache for this module, filled from the stock builder's copy."""
    needs(VERSION)
    folder = tmp_path_factory.mktemp("cache")
    modules = finish(start(STOCK, folder))
    assert "jaxmeta.data.omniglot_builder" in modules and "tensorflow" not in modules
    assert len(list(folder.iterdir())) == 1
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cached(cache, monkeypatch):
    """As the second and every later use: warnings would mean that it is prepared again."""
    monkeypatch.setenv("JAXMETA_CACHE", str(cache))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_second_opening_prepares_nothing_from_every_level_of_the_folder(cached, monkeypatch):
    monkeypatch.setattr(omniglot, "_builder_module", lambda: pytest.fail("prepared again"))
    for folder in (STOCK, STOCK / "omniglot", VERSION, str(VERSION)):
        assert load_omniglot(data_dir=folder, rotations=False).splits["test"].images.shape == (423, 20, 28, 28, 1)


@pytest.mark.slow
def test_real_episodes_can_be_learned_from(cached):
    """A few outer steps on real tasks: held-out characters are then told apart better than by chance."""
    dataset = load_omniglot(data_dir=STOCK)
    train, test = (task_source(dataset, split, EpisodeSpec(5, 1, 2)) for split in ("train", "test"))
    learner = maml(conv4(5, filters=8, downsample="stride"), inner_optimizer=optax.sgd(0.4))
    optimizer, key = optax.adam(1e-2), jax.random.key(0)
    train_state = init_train_state(key, learner, optimizer, train, num_tasks=8)
    train_step = make_train_step(learner, optimizer, task_chunk=4)
    train_state = fit(train_step, train_state, train, key, num_tasks=8, num_steps=40)
    accuracy = evaluate(
        learner,
        train_state.meta_params,
        train_state.state,
        test,
        key,
        criterion=CRITERIA["classification"],
        num_tasks=100,
        task_chunk=4,
    ).metrics["accuracy"]
    assert accuracy.mean - accuracy.ci95 > 0.4


def test_the_vinyals_rule_is_the_published_split(cached):
    needs(SHARED / "splits")
    published = json.loads((SHARED / "splits" / "omniglot_vinyals.json").read_text())
    data = load_omniglot(data_dir=STOCK, rotations=False)
    for split, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert sorted(data.class_names[split]) == sorted(published[theirs])
        assert data.splits[split].images.shape == (len(published[theirs]), 20, 28, 28, 1)


@pytest.mark.parametrize(("split", "sizes"), [("vinyals", (1028, 172, 423)), ("random", (1100, 100, 423))])
def test_splits_share_no_class_and_no_image(cached, split, sizes):
    data = load_omniglot(data_dir=STOCK, split=split)
    assert tuple(len(names) for names in data.class_names.values()) == tuple(4 * size for size in sizes)
    characters, images = [], []
    for part in ("train", "validation", "test"):
        pool = data.splits[part]
        assert pool.images.dtype == np.uint8 and set(pool.counts.tolist()) == {20}
        characters.append({name.rpartition("/")[0] for name in data.class_names[part]})
        images.append({image.tobytes() for image in pool.images.reshape(-1, 28 * 28)})
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not characters[one] & characters[other]
        assert not images[one] & images[other]
    assert len(set.union(*characters)) == 1623


def test_the_random_split_is_a_function_of_its_seed(cached):
    def names(seed):
        return load_omniglot(data_dir=STOCK, split="random", seed=seed, rotations=False).class_names

    assert names(1) == names(1)
    assert names(1) != names(2)


def test_ink_is_bright_on_black(cached):
    images = load_omniglot(data_dir=STOCK, rotations=False).splits["test"].images
    assert np.median(images) == 0 and images.max() == 255
    assert 0.03 < images.mean() / 255 < 0.15
    assert (images.reshape(len(images), 20, -1).max(-1) > 100).all()


@pytest.mark.slow
def test_our_builder_gives_the_same_pixels_from_the_archives(cached, monkeypatch, tmp_path):
    needs(ARCHIVES / "images_background.zip")
    shutil.copytree(os.environ["JAXMETA_CACHE"], tmp_path / "cache")
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    modules = finish(start(ARCHIVES, tmp_path / "cache"))
    assert "tensorflow" not in modules and len(list((tmp_path / "cache").iterdir())) == 2
    ours, stock = load_omniglot(data_dir=ARCHIVES), load_omniglot(data_dir=STOCK)
    assert ours.class_names == stock.class_names
    for split in ours.splits:
        assert np.array_equal(ours.splits[split].images, stock.splits[split].images)


def test_a_prepared_pool_opens_without_tfds(cache, tmp_path):
    blocked = "('tensorflow_datasets', 'tensorflow', 'array_record', 'PIL')"
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
    # From the cache of this machine, and from a file carried over from another one.
    finish(start(STOCK, cache, before=block))
    (tmp_path / "carried").mkdir()
    shutil.copy(next(cache.glob("*.npz")), tmp_path / "carried")
    finish(start(tmp_path / "carried", tmp_path / "empty", before=block))


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_copy_is_named_even_with_a_whole_one_in_the_cache(cached, cache, tmp_path, damage):
    copy = tmp_path / "omniglot" / "3.0.0"
    shutil.copytree(VERSION, copy, copy_function=shutil.copyfile)
    copy.chmod(0o700)  # The original may be read-only.
    records = copy / "omniglot-train.array_record-00000-of-00001"
    before = sorted(cache.iterdir())
    if damage == "truncated":
        os.truncate(records, records.stat().st_size // 2)
    else:
        records.unlink()
    with pytest.raises(DataError, match="cannot be read.*again") as caught:
        load_omniglot(data_dir=tmp_path)
    assert str(copy) in str(caught.value)
    assert sorted(cache.iterdir()) == before


# What follows needs no data: archives of a few characters in the original layout.

CHARACTERS = {
    "images_background": (("Greek", 2), ("Hebrew", 1)),
    "images_evaluation": (("Tengwar", 2), ("Gurmukhi", 1)),
}


def drawing(number, drawer):
    """A one-bit PNG: white, with a black bar whose place tells the character and the drawer."""
    from PIL import Image

    pixels = np.full([105, 105], 255, np.uint8)
    pixels[10 * number + 5 : 10 * number + 12, drawer : drawer + 60] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from jaxmeta.data import omniglot_builder

    monkeypatch.setattr(omniglot_builder, "ALPHABETS", 4)
    monkeypatch.setattr(omniglot_builder, "CHARACTERS", 6)
    monkeypatch.setattr(omniglot, "NUM_CHARACTERS", 6)
    folder, number = tmp_path / "archives", 0
    folder.mkdir()
    for archive, alphabets in CHARACTERS.items():
        with zipfile.ZipFile(folder / f"{archive}.zip", "w") as file:
            for alphabet, characters in alphabets:
                for character in range(1, characters + 1):
                    number += 1
                    for drawer in range(1, 21):
                        path = f"{archive}/{alphabet}/character{character:02d}/{number:04d}_{drawer:02d}.png"
                        file.writestr(path, drawing(number, drawer))
    return folder


def test_archives_to_builder_to_pool(tiny, own_cache, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_omniglot(data_dir=tiny, rotations=False)
    assert data.class_names == {
        "train": ("Greek/character01", "Greek/character02", "Gurmukhi/character01"),
        "validation": ("Hebrew/character01",),
        "test": ("Tengwar/character01", "Tengwar/character02"),
    }
    # The bar of the fourth character, from row 45 of 105, is found at that height of 28.
    for image in data.splits["test"].images[0, :, :, :, 0]:
        height = image.sum(1) @ np.arange(28) / image.sum()
        assert abs(height - (48 + 0.5) * 28 / 105) < 0.6
    assert sum("sha256" in record.getMessage() for record in caplog.records) == 2
    assert len(list(own_cache.iterdir())) == 1
    # Other archives in the same place are not answered from the cache.
    with zipfile.ZipFile(tiny / "images_background.zip", "a") as file:
        file.writestr("images_background/README", "")
    load_omniglot(data_dir=tiny, rotations=False)
    assert len(list(own_cache.iterdir())) == 2


def test_a_damaged_archive_is_named(tiny, own_cache):
    path = tiny / "images_evaluation.zip"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"archives in .*archives cannot be read.*Fetch"):
        load_omniglot(data_dir=tiny)
    path.unlink()
    with pytest.raises(DataError, match=r"only images_background\.zip.*images_evaluation\.zip"):
        load_omniglot(data_dir=tiny)
    assert not own_cache.exists()


def test_an_incomplete_set_is_refused(tiny, own_cache, monkeypatch):
    monkeypatch.setattr(omniglot, "NUM_CHARACTERS", 1623)
    with pytest.raises(DataError, match="6 characters.*should have 1623"):
        load_omniglot(data_dir=tiny)
    assert not own_cache.exists()


def test_without_network_the_download_fails_in_one_sentence(own_cache, monkeypatch):
    requests = pytest.importorskip("requests")
    pytest.importorskip("tensorflow_datasets")

    def head(*args, **kwargs):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(DataError, match=r"could not be downloaded.*data_dir"):
        load_omniglot()
    assert not own_cache.exists()


def test_without_tfds_the_message_says_what_to_install(tiny, own_cache, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxmeta.data.omniglot_builder")
    monkeypatch.delattr("jaxmeta.data.omniglot_builder")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="pip install tensorflow-datasets"):
        load_omniglot(data_dir=tiny)


def test_wrong_folders_and_splits_are_refused(tmp_path, own_cache):
    with pytest.raises(DataError, match=r"no split 'vinyal'; choose one of 'vinyals', 'random'"):
        load_omniglot(split="vinyal")
    with pytest.raises(DataError, match="none of this.*dataset_info.json.*images_background.zip.*npz"):
        load_omniglot(data_dir=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_omniglot(data_dir=tmp_path / "nowhere")
    (tmp_path / "omniglot-1.npz").write_bytes(b"not a pool")
    with pytest.raises(DataError, match=r"omniglot-1\.npz is damaged"):
        load_omniglot(data_dir=tmp_path)
    (tmp_path / "omniglot-2.npz").touch()
    with pytest.raises(DataError, match="several prepared pools"):
        load_omniglot(data_dir=tmp_path)
