"""Your own images as a dataset: any layout, any mixture of files, splits that hold, and what is wrong said by name."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmeta import EpisodeSpec, divide_classes, load_folder
from jaxmeta.candidate import Request, own_config
from jaxmeta.cli import main
from jaxmeta.config import Config, ConfigError, check_config
from jaxmeta.config_json import from_json, to_json
from jaxmeta.data import DataError, check_spec, folder_pool, memory
from jaxmeta.data.images import read_image
from jaxmeta.data.pools import ImageRecipe
from jaxmeta.folder import check_classes, read_config
from jaxmeta.parts import is_own_dataset, load_dataset
from jaxmeta.start import default_out


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("JAXMETA_CACHE", str(path))
    return path


def photograph(seed, size=(60, 45), mode="RGB"):
    """Colours of the class, each image with a grain of its own."""
    rng = np.random.default_rng(seed)
    pixels = np.random.default_rng(seed // 100).integers(40, 200, 3) + rng.integers(-40, 40, [*size[::-1], 3])
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def make_classes(root, names, count=4, **options):
    for place, name in enumerate(names):
        for index in range(count):
            save(root / name / f"{index}.png", photograph(100 * place + index, **options))
    return root


def record_of(cache):
    (path,) = cache.glob("folder-*.json")
    return json.loads(path.read_text())


NAMES = [f"class {number}" for number in range(8)]


def phone(root):
    """Sixteen classes of photographs as they come from phones, one broken, and a text file."""
    for place in range(16):
        for index in range(5 + place % 3):
            exif = Image.Exif()
            exif[0x0112] = (1, 6, 8, 3)[index % 4]
            size = ((400, 300), (640, 360), (300, 300))[index % 3]
            name = f"IMG_{index:04d}.{('jpg', 'JPG', 'jpeg')[index % 3]}"
            save(root / f"thing {place:02d}" / name, photograph(100 * place + index, size), exif=exif)
        (root / f"thing {place:02d}" / ".DS_Store").write_bytes(b"x")
    broken = root / "thing 00" / "IMG_0009.jpg"
    broken.write_bytes((root / "thing 00" / "IMG_0000.jpg").read_bytes()[:900])
    (root / "thing 03" / "notes.txt").write_text("which of these is it?")
    return root


# A new user.


TINY = ["--algorithm", "protonet", "--model", "linear", "--image-size", "8", "--queries", "4"]
TINY += ["--tasks", "2", "--steps", "2", "--log-every", "2", "--checkpoint-every", "2"]
TINY += ["--eval-episodes", "8", "--validation-episodes", "4"]


def test_photographs_of_a_phone_work_the_first_time(tmp_path, cache, capsys, caplog, monkeypatch):
    """Train, evaluate on another folder, refuse to judge on a class that was trained on."""
    monkeypatch.chdir(tmp_path)
    phone(tmp_path / "my photos")
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        assert main(["train", "--dataset", "folder:my photos", *TINY]) == 0
    result = json.loads(capsys.readouterr().out)
    run = Path("runs/folder-my-photos-protonet-5w1s-seed0")
    assert result["run"] == str(run) and 0 <= result["accuracy"] <= 1
    assert result["dataset"].startswith("folder:my photos-") and result["trained_on"] == result["dataset"]
    said = [record.getMessage() for record in caplog.records]
    assert any("skipped thing 00/IMG_0009.jpg, which is damaged" in line for line in said)
    assert any("skipped thing 03/notes.txt, which is no image that can be read: it is text" in line for line in said)
    assert any("classes to train on 6 " in line and "test on 5" in line and "images 8x8x3" in line for line in said)
    assert sorted(reason for _, reason in record_of(cache)["skipped"])[1].endswith("it is text")
    # The folder may move, and its path be written in another way: it is the same dataset.
    splits = record_of(cache)["splits"]
    shutil.move("my photos", "elsewhere")
    moved = own_config(read_config(run), Request(data_dir=Path("elsewhere")))
    assert load_dataset(moved).name.rpartition("-")[2] == result["dataset"].rpartition("-")[2]
    assert is_own_dataset(moved, f"folder:{tmp_path}/x/../elsewhere") and not is_own_dataset(moved, "folder:other")
    shutil.move("elsewhere", "my photos")
    # Other images, made as the run's own were.
    make_classes(tmp_path / "more", [f"kind {number}" for number in range(15)], count=5)
    assert main(["evaluate", str(run), "--dataset", "folder:more"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["dataset"].startswith("folder:more-") and other["trained_on"] == result["dataset"]
    assert other["protocol"] != result["protocol"] and other["episodes_hash"] != result["episodes_hash"]
    # A class that was trained on is not tested on, whatever became of the folder since.
    for now, before in (("train", "test"), ("validation", "validation"), ("test", "train")):
        for name in splits[before]:
            shutil.move(f"my photos/{name}", f"my photos/{now}/{name}")
    assert main(["evaluate", str(run)]) == 2
    assert "would be tested on now (6 such classes)" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert "its images changed" in capsys.readouterr().err


# Layouts.


def test_mixed_files_become_the_pixels_of_the_recipe(tmp_path):
    """Whatever the format: each image of the pool is that of `read_image`, in the order of the names."""
    for place, name in enumerate(NAMES):
        for index, (kind, mode) in enumerate(
            [("png", "RGBA"), ("jpg", "CMYK"), ("gif", "P"), ("tif", "L"), ("bmp", "RGB")]
        ):
            save(tmp_path / name / f"{index}.{kind}", photograph(100 * place + index, (50 + index, 40), mode))
    data = load_folder(tmp_path, image_size=16)
    assert data.recipe == ImageRecipe(16, 16, 3) and data.kind == "classification" and data.groups is None
    for split, pool in data.splits.items():
        assert pool.images.dtype == np.uint8 and pool.counts.tolist() == [5] * len(pool.counts)
        for images, name in zip(pool.images, data.class_names[split], strict=True):
            files = sorted((tmp_path / name).iterdir())
            assert (images == np.stack([read_image(file, data.recipe) for file in files])).all()
    check_spec(EpisodeSpec(2, 1, 4), data.splits["test"])


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("Train", "val", "TEST")])
def test_named_splits_are_kept(tmp_path, names):
    parts = dict(zip(names, (NAMES[:4], NAMES[4:6], NAMES[6:]), strict=True))
    for split, classes in parts.items():
        make_classes(tmp_path / split, classes)
    (tmp_path / "unlabelled").mkdir()
    data = load_folder(tmp_path, image_size=8, ways=5)
    assert [data.class_names[split] for split in ("train", "validation", "test")] == [*map(tuple, parts.values())]


def test_validation_is_made_where_there_is_none(tmp_path):
    make_classes(tmp_path / "train", NAMES)
    make_classes(tmp_path / "test", ["x", "y"])
    names = load_folder(tmp_path, image_size=8, ways=2).class_names
    assert len(names["validation"]) == 2 and set(names["train"]) | set(names["validation"]) == set(NAMES)
    assert names["test"] == ("x", "y") and not set(names["train"]) & set(names["validation"])
    with pytest.raises(DataError, match="8 classes to train on are too few to validate with some of them: 5 to train"):
        load_folder(tmp_path, image_size=8, ways=5)
    shutil.rmtree(tmp_path / "test")
    # One split is none: its classes are divided.
    names = load_folder(tmp_path, image_size=8).class_names
    assert sorted(name for of_split in names.values() for name in of_split) == NAMES
    make_classes(tmp_path / "val", ["x", "y"])
    with pytest.raises(
        DataError, match="usable classes 8 in train, 2 in validation; there must be some in train and in"
    ):
        load_folder(tmp_path, image_size=8)


def test_groups_are_a_level_above_the_classes(tmp_path):
    make_classes(tmp_path, [f"{alphabet}/character{number}" for alphabet in ("Greek", "Latin") for number in range(4)])
    data = load_folder(tmp_path, image_size=8)
    assert data.groups is not None
    for split, names in data.class_names.items():
        assert data.groups[split] == tuple(name.split("/")[0] for name in names)


def test_a_class_may_be_called_train(tmp_path):
    make_classes(tmp_path, ["bus", "car", "train", "tram", "ship", "test"])
    names = load_folder(tmp_path, image_size=8).class_names
    assert {"train", "test", "ship"} <= {name for of_split in names.values() for name in of_split}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, cache, delimiter):
    """Paths from its own folder on; a byte order mark, capitals and spaces in the header, rows that do not serve."""
    make_classes(tmp_path / "images", NAMES)
    rows = [["Label", " PATH"]] + [[name, f"images/{name}/{index}.png"] for name in NAMES for index in range(4)]
    rows += [
        ["gone", "images/gone.png"],
        ["", "images/class 0/0.png"],
        ["class 1", "images/class 1/0.png"],
        ["class 1"],
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(delimiter.join(row) for row in rows) + "\n\n", encoding="utf-8-sig")
    data = load_folder(table, image_size=8)
    folder = load_folder(tmp_path / "images", image_size=8)
    assert data.class_names == folder.class_names and data.name.rpartition("-")[2] == folder.name.rpartition("-")[2]
    assert all((data.splits[split].images == pool.images).all() for split, pool in folder.splits.items())
    reasons = sorted(r for path in cache.glob("*.json") for _, r in json.loads(path.read_text())["skipped"])
    expected = ["has no label in its row", "has no path in its row", "is listed twice", "is not there (No such file"]
    assert [reason.startswith(start) for reason, start in zip(reasons, expected, strict=True)] == [True] * 4


def test_csv_with_splits(tmp_path):
    make_classes(tmp_path, NAMES)
    parts = {name: ("train", "val", "test")[min(place // 3, 2)] for place, name in enumerate(NAMES)}
    rows = [f"{name}/{index}.png,{name},{parts[name]}" for name in NAMES for index in range(4)]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    assert load_folder(table, image_size=8).class_names["validation"] == tuple(NAMES[3:6])
    # A class in two splits, also by one row of one image.
    table.write_text("\n".join(["path,label,split", *rows, "class 7/0.png,Class 0,test"]))
    with pytest.raises(
        DataError, match="class 7/0.png is listed twice .* 'class 7' in row 30 and as 'Class 0' in row 34"
    ):
        load_folder(table)
    table.write_text("\n".join(["path,label,split", *rows[:-1], "class 7/3.png,CLASS 0 ,test"]))
    with pytest.raises(DataError, match="the class 'CLASS 0' is in the test split, and as 'class 0' in the train"):
        load_folder(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has nothing. It needs the columns path and label"),
        (b"file,class\na,b\n", "has file, class. It needs the columns path and label, and may have split"),
        (b"path,label\n", "lists no file that is there. Paths begin"),
        (b"path,label\nno.png,a\n", r"The first: .*no.png is not there \(No such file or directory\)"),
        (b"path,label,split\na.png,a,holdout\n", "Row 2 of .* has the split 'holdout'. Use train, validation or test"),
        (b"\xff\xfe\x00", "is no CSV in UTF-8"),
        (b"path,label\n" + b"\0,a\n", "is not there"),
    ],
)
def test_a_bad_csv_is_named(tmp_path, text, message):
    (tmp_path / "labels.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        load_folder(tmp_path / "labels.csv")


# What is wrong with folders.


def test_a_class_in_two_splits_is_a_leak(tmp_path):
    make_classes(tmp_path / "train", ["cat", "dog"])
    make_classes(tmp_path / "test", ["Dog ", "cow"])
    with pytest.raises(DataError, match="the class 'dog' is in the train split, and as 'Dog' in the test split"):
        load_folder(tmp_path)


@pytest.mark.parametrize("twin", ["Class 3", "class 3 ", "CLASS 3"])
def test_two_spellings_of_a_class_are_refused(tmp_path, twin):
    make_classes(tmp_path, [*NAMES, twin])
    with pytest.raises(DataError, match="differ in upper and lower case, or in spaces, only. Put them into one"):
        load_folder(tmp_path)


def test_small_classes_are_left_out_by_name(tmp_path, cache, caplog):
    make_classes(tmp_path, NAMES)
    make_classes(tmp_path, ["one"], count=1)
    make_classes(tmp_path, ["three"], count=3)
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        assert "one" not in str(load_folder(tmp_path, image_size=8).class_names)
    assert "Left out for having fewer than 2 usable images, support and query together: one (1)." in caplog.text
    with pytest.raises(DataError, match=r"0 classes do not do: .*class 0 \(4\), .*one \(1\), three \(3\)"):
        load_folder(tmp_path, image_size=8, least_images=5)


def test_too_few_classes_are_counted(tmp_path):
    make_classes(tmp_path, NAMES)
    with pytest.raises(DataError, match="8 classes do not do: .* 15 in all. Use at most 2 ways, or more classes"):
        load_folder(tmp_path, image_size=8, ways=5)
    with pytest.raises(DataError, match="need 6 to train on, 2 others to validate with and 2 to test on, 10 in all"):
        load_folder(tmp_path, image_size=8, ways=2, train_ways=6)


def test_links_and_odd_places_are_skipped(tmp_path, cache):
    root = make_classes(tmp_path / "root", NAMES)
    (root / "class 0" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "class 1")
    (root / "class 1" / "broken.png").symlink_to("nowhere.png")
    (root / "class 1" / "round.png").symlink_to("round.png")
    os.mkfifo(root / "class 2" / "pipe")
    (root / "empty").mkdir()
    save(root / "class 3" / "deeper" / "0.png", photograph(0))
    save(root / "loose.png", photograph(0))
    (root / ".hidden").mkdir()
    (root / "class 4" / "Thumbs.db").write_bytes(b"x")
    # A class may be a link to a folder elsewhere, and an image to a file.
    make_classes(tmp_path / "other", ["linked"])
    (root / "linked").symlink_to(tmp_path / "other" / "linked")
    (root / "class 5" / "9.png").symlink_to(tmp_path / "other" / "linked" / "0.png")
    data = load_folder(root, image_size=8)
    names = sorted(name for of_split in data.class_names.values() for name in of_split)
    # The first of two names of one folder is taken: no class is there twice.
    assert names == ["again", "class 0", *NAMES[2:], "linked"]
    skipped = {Path(path).relative_to(root).as_posix(): reason for path, reason in record_of(cache)["skipped"]}
    assert skipped == {
        "loose.png": "lies beside the folders of the classes",
        "class 0/loop": "is a link to a folder that is listed already",
        "class 1": "is a link to a folder that is listed already",
        "again/broken.png": "leads nowhere (No such file or directory)",
        "again/round.png": "leads nowhere (Too many levels of symbolic links)",
        "class 2/pipe": "is neither a file nor a folder",
        "class 3/deeper": "is a folder within the folder of a class",
        "empty": "holds no files",
    }


@contextlib.contextmanager
def unprivileged():
    """Root reads everything: be somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_folders_and_files_are_skipped(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        root = make_classes(Path(folder) / "root", NAMES)
        root.parent.chmod(0o755)
        # Where nothing can be cached, the data is there all the same.
        monkeypatch.setenv("JAXMETA_CACHE", str(root / "class 1"))
        (root / "class 0").chmod(0)
        (root / "class 2" / "0.png").chmod(0)
        with unprivileged(), pytest.warns(UserWarning, match="could not be kept"):
            data = load_folder(root, image_size=8)
        (root / "class 0").chmod(0o755)
        counts = {n: c for s, of in data.class_names.items() for n, c in zip(of, data.splits[s].counts, strict=True)}
        assert counts == {name: 3 if name == "class 2" else 4 for name in NAMES[1:]}
        assert not list(root.rglob("*.json")) and not list(root.rglob("*.tmp"))


def test_names_that_are_no_utf8(tmp_path, cache):
    make_classes(tmp_path, [*NAMES, os.fsdecode(b"caf\xe9")])
    save(tmp_path / "class 0" / os.fsdecode(b"\xff.png"), photograph(7))
    data = load_folder(tmp_path, image_size=8)
    names = [name for of_split in data.class_names.values() for name in of_split]
    assert r"caf\xe9" in names and all(name.encode() for name in [*names, data.name])
    assert load_folder(tmp_path, image_size=8).name == data.name


def test_places_without_images_are_named(tmp_path):
    with pytest.raises(DataError, match="There is no folder .*nowhere, and no CSV"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no sub-folder with files. Make one for each class"):
        load_folder(tmp_path)
    save(tmp_path / "a.png", photograph(0))
    (tmp_path / "labels.csv").write_text("path,label\na.png,a\n")
    with pytest.raises(DataError, match="There is a CSV in it: try .*labels.csv"):
        load_folder(tmp_path)
    with pytest.raises(DataError, match="needs its path: --dataset folder:PATH"):
        load_folder()
    with pytest.raises(DataError, match="The first file skipped: .*a.txt is no image that can be read: it is text"):
        (tmp_path / "a.png").unlink()
        (tmp_path / "labels.csv").unlink()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "a.txt").write_text("a")
        load_folder(tmp_path, image_size=8)


def test_large_classes_and_large_folders_have_a_limit(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(folder_pool, "MOST_OF_A_CLASS", 3)
    make_classes(tmp_path, NAMES)
    data = load_folder(tmp_path, image_size=8)
    assert all(set(pool.counts.tolist()) == {3} for pool in data.splits.values())
    assert {reason for _, reason in record_of(cache)["skipped"]} == {"is beyond 3 of its class"}
    monkeypatch.undo()
    monkeypatch.setenv("JAXMETA_CACHE", str(cache))
    with pytest.raises(
        DataError, match=r"32 images in 8 classes, .*has the most, 4: .* GiB of memory, and .* are free"
    ):
        load_folder(tmp_path, image_size=100_000)


def test_a_large_folder_is_prepared_in_a_file(tmp_path, cache, monkeypatch):
    """Larger than the memory that is free would be: the same pools, and nothing left in the cache but them."""
    root = make_classes(tmp_path / "things", NAMES)
    (root / NAMES[0] / "broken.png").write_bytes(b"no image")
    small = load_folder(root, ways=2)
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.setattr(memory, "IN_MEMORY", 1000)
    large = load_folder(root, ways=2)
    assert all(isinstance(pool.images, np.memmap) for pool in large.splits.values())
    assert large.name == small.name and large.class_names == small.class_names
    assert all(np.array_equal(large.splits[split].images, pool.images) for split, pool in small.splits.items())
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npz"]
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setenv("JAXMETA_CACHE", str(root / NAMES[1] / "0.png"))
    with pytest.raises(DataError, match="no room for 0.0 GB of images"):
        load_folder(root, ways=2, image_size=20)


def test_prepared_and_shown_in_the_size_that_is_asked_for(tmp_path, capsys):
    root = make_classes(tmp_path / "things", [f"thing {number}" for number in range(15)], count=6)
    sized = [f"folder:{root}", "--image-size", "24"]
    assert main(["data", "prepare", *sized]) == 0
    assert "90 images of 24x24x3" in capsys.readouterr().out
    assert main(["data", "show", *sized, "--queries", "2", "--out", str(tmp_path / "small.png")]) == 0
    assert main(["data", "show", "glyphs", "--image-size", "24"]) == 2
    assert "its size is fixed" in capsys.readouterr().err and (tmp_path / "small.png").stat().st_size > 0


def test_the_sizes_of_tasks_decide_on_the_classes_that_are_shown(tmp_path, cache, capsys):
    """Of nine classes of five images tasks of two ways can be made, and none of five."""
    root = make_classes(tmp_path / "nine", [f"thing {number}" for number in range(9)], count=5)
    shown = ["data", "show", f"folder:{root}", "--out", str(tmp_path / "episode.png")]
    assert main(shown) == 2 and "15 in all" in capsys.readouterr().err
    assert main([*shown, "--ways", "2"]) == 0
    assert main(["data", "prepare", f"folder:{root}", "--ways", "2"]) == 0
    # The pool of the picture is that of the training.
    assert len(list(cache.glob("folder-*.npz"))) == 1
    assert main([*shown, "--ways", "2", "--queries", "5"]) == 2
    assert "With fewer shots and queries" in capsys.readouterr().err
    assert main(["data", "list"]) == 0 and str(root) in capsys.readouterr().out
    assert main(["data", "verify", f"folder:{root}"]) == 0
    assert main(["data", "clear", f"folder:{tmp_path}/nowhere/../nine"]) == 0
    assert not list(cache.iterdir())


def test_the_same_image_in_training_and_in_test_is_named(tmp_path, caplog):
    root = make_classes(tmp_path / "things", NAMES)
    parts = divide_classes(NAMES)
    train, test = parts["train"][0], parts["test"][0]
    copied = (root / train / "0.png").read_bytes()
    (root / test / "copy.png").write_bytes(copied)
    # Twice in one class, or in two of one split, is nothing that a test could gain from.
    (root / train / "copy.png").write_bytes(copied)
    load_folder(root, ways=2)
    said = [record.getMessage() for record in caplog.records if "the same image" in record.getMessage()]
    assert len(said) == 1 and f"in {train} (train) and in {test} (test)" in said[0]
    caplog.clear()
    load_folder(make_classes(tmp_path / "others", NAMES), ways=2)
    assert "the same image" not in caplog.text


# Splits.


def test_splits_are_disjoint_stable_and_large_enough(tmp_path):
    names = [f"class {number}" for number in range(100)]
    parts = divide_classes(names)
    assert {split: len(of_split) for split, of_split in parts.items()} == {"train": 64, "validation": 16, "test": 20}
    assert sorted(name for of_split in parts.values() for name in of_split) == sorted(names)
    assert divide_classes(names[::-1]) == parts and divide_classes(names, seed=1) != parts
    assert [len(of_split) for of_split in divide_classes(names[:15], ways=5).values()] == [5, 5, 5]
    assert [len(of_split) for of_split in divide_classes(names[:30], ways=5, train_ways=20).values()] == [20, 5, 5]
    # A class more: at most one goes over each cut.
    more = divide_classes([*names, "another"])
    assert sum(len(set(of_split) - set(more[split])) for split, of_split in parts.items()) <= 2
    # Known by heart: splits must never change under a run.
    assert divide_classes(NAMES)["test"] == ("class 6", "class 7")


def test_files_and_places_do_not_move_classes(tmp_path):
    make_classes(tmp_path / "here", NAMES)
    before = load_folder(tmp_path / "here", image_size=8)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.move(tmp_path / "here", tmp_path / "deep" / "here")
    for place in (tmp_path / "deep" / "here", tmp_path / "there"):
        after = load_folder(place, image_size=8)
        assert after.class_names == before.class_names
        assert after.name.rpartition("-")[2] == before.name.rpartition("-")[2]
    save(tmp_path / "there" / "class 3" / "new.png", photograph(5))
    grown = load_folder(tmp_path / "there", image_size=8)
    assert grown.class_names == before.class_names and grown.name != after.name


# The cache.


def test_the_second_opening_reads_no_image_and_a_change_is_noticed(tmp_path, cache, caplog):
    make_classes(tmp_path, NAMES)
    (tmp_path / "class 0" / "notes.txt").write_text("text")
    first = load_folder(tmp_path, image_size=8)
    assert len(list(cache.glob("folder-*"))) == 2
    # Contents that changed behind an equal size and time are not read: nothing is.
    file = tmp_path / "class 1" / "0.png"
    status, whole = file.stat(), file.read_bytes()
    file.write_bytes(bytes(len(whole)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        again = load_folder(tmp_path, image_size=8)
    assert again.name == first.name and again.recipe == first.recipe and again.class_names == first.class_names
    assert all((again.splits[split].images == pool.images).all() for split, pool in first.splits.items())
    # What was skipped is said again.
    assert "notes.txt, which is no image" in caplog.text and "classes to train on" not in caplog.text
    os.utime(file)
    changed = load_folder(tmp_path, image_size=8)
    assert changed.name != first.name and len(list(cache.glob("folder-*"))) == 4
    # Other options, another pool; without its list a pool is made anew.
    assert load_folder(tmp_path, image_size=9).splits["test"].images.shape[2:] == (9, 9, 3)
    for path in cache.glob("folder-*.json"):
        path.unlink()
    load_folder(tmp_path, image_size=8)
    assert len(list(cache.glob("folder-*.json"))) == 1


# The recipe.


def drawing(seed, size=(60, 60)):
    rng = np.random.default_rng(seed)
    pixels = np.full(size, 255, np.uint8)
    row, column = rng.integers(10, 40, 2)
    pixels[row : row + 6, 10:50] = pixels[10:50, column : column + 6] = 0
    return Image.fromarray(pixels)


def test_recipes_follow_the_images(tmp_path):
    def recipe(name, make, **options):
        for place in range(6):
            for index in range(2):
                save(tmp_path / name / str(place) / f"{index}.png", make(100 * place + index))
        data = load_folder(tmp_path / name, **options)
        assert all(pool.images.shape[2:] == data.recipe[:3] for pool in data.splits.values())
        return data

    assert recipe("colour", photograph).recipe == ImageRecipe(84, 84, 3)
    # Grey by its pixels, whatever the mode.
    assert recipe("grey", lambda seed: photograph(seed, mode="L").convert("RGB")).recipe == ImageRecipe(84, 84, 1)
    assert recipe("large", lambda seed: photograph(seed, (90, 90))).recipe.height == 84
    assert recipe("small", lambda seed: photograph(seed, (24, 24))).recipe == ImageRecipe(24, 24, 3)
    assert recipe("oblong", lambda seed: photograph(seed, (24, 25))).recipe.height == 84
    assert recipe("asked", photograph, image_size=20, channels=1).recipe == ImageRecipe(20, 20, 1)
    drawn = recipe("drawn", drawing)
    assert drawn.recipe == ImageRecipe(60, 60, 1, fit="pad", bright_ink=True)
    assert np.median(drawn.splits["test"].images) == 0 and drawn.splits["test"].images.max() == 255
    paper = load_folder(tmp_path / "drawn", bright_ink=False)
    assert paper.recipe == ImageRecipe(60, 60, 1) and np.median(paper.splits["test"].images) == 255
    # One photograph among twelve is too many to be clear; bright ink on black stays as it is.
    save(tmp_path / "drawn" / "0" / "0.png", photograph(1, (60, 60)))
    assert load_folder(tmp_path / "drawn").recipe == ImageRecipe(60, 60, 3)
    inverse = recipe("inverse", lambda seed: Image.eval(drawing(seed), lambda value: 255 - value))
    assert inverse.recipe == ImageRecipe(60, 60, 1) and np.median(inverse.splits["test"].images) == 0
    like = ImageRecipe(28, 28, 1, fit="pad", bright_ink=True)
    assert load_folder(tmp_path / "drawn", recipe=like).recipe == like
    with pytest.raises(DataError, match="leave out those options, or the recipe"):
        load_folder(tmp_path / "drawn", recipe=like, image_size=28)
    with pytest.raises(DataError, match="channels must be 1"):
        load_folder(tmp_path / "drawn", channels=4)


# The configuration.


def test_names_of_folders_in_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, message in (
        ("floder:photos", "Unknown dataset 'floder'. Did you mean 'folder'"),
        ("photos", "It is a path: did you mean 'folder:photos'"),
        ("glyphs:photos", "--dataset glyphs takes no path; given glyphs:photos. Use --data-dir photos"),
        ("folder:", "needs the path of a folder or a CSV"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_config(Config(dataset=name))
    with pytest.raises(ConfigError, match="--image-size 84 is nothing to --dataset glyphs: its size is fixed"):
        check_config(Config(image_size=84))
    with pytest.raises(ConfigError, match="--image-size must be at least 8; given 4"):
        check_config(Config(dataset="folder:photos", image_size=4))
    config = Config(dataset="folder:photos", image_size=84)
    assert from_json(to_json(config)) == config
    # A run of an earlier version has no size.
    assert from_json({name: value for name, value in to_json(Config()).items() if name != "image_size"}) == Config()
    for name, folder in (("folder:photos", "photos"), ("folder:./photos/", "photos"), ("folder:a b/ü:c.csv", "c")):
        out = default_out(dataclasses.replace(config, dataset=name))
        assert out.parent == Path("runs") and out.name.startswith("folder-") and folder in out.name
        assert not set(out.name) & set(":/\\ ")
    with pytest.raises(DataError, match="There is no folder nowhere"):
        load_dataset(dataclasses.replace(config, dataset="folder:nowhere"))


def test_images_a_class_needs_are_those_of_the_tasks(tmp_path):
    make_classes(tmp_path, NAMES)
    options = {"dataset": f"folder:{tmp_path}", "image_size": 8, "ways": 2, "shots": 1}
    assert len(load_dataset(Config(**options, queries=1, eval_queries=3)).class_names["train"]) == 4
    with pytest.raises(DataError, match="fewer than 5 usable images"):
        load_dataset(Config(**options, queries=1, eval_queries=4))
    like = ImageRecipe(12, 12, 1)
    assert load_dataset(Config(**options, queries=1, eval_queries=3), like=like).recipe == like


def test_a_damaged_list_of_classes_is_named(tmp_path):
    make_classes(tmp_path / "images", NAMES)
    data = load_folder(tmp_path / "images", image_size=8)
    check_classes(tmp_path, data)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ConfigError, match="classes.json is damaged"):
        check_classes(tmp_path, data)
