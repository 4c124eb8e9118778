"""The cache of prepared data: one process prepares it, large pools are mapped, and `jaxmeta data` keeps it in order."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from jaxmeta import DATASETS, EpisodeSpec, sample_episodes
from jaxmeta.cli import main
from jaxmeta.data import pool_file
from jaxmeta.data.cache import cached_dataset, is_full_disk, read_dataset, write_beside, write_dataset
from jaxmeta.data.pictured import draw_pictures
from jaxmeta.data.pool_file import read_header, verify_dataset
from jaxmeta.data.pools import ClassPool, DataError, Dataset, ImageRecipe
from jaxmeta.data_commands import NEEDS

REPO = Path(__file__).resolve().parents[1]
CLASSES, PER_CLASS = 50, 4


def toy(seed=0, name="glyphs"):
    """Three splits of images that are all different."""
    generator = np.random.default_rng(seed)
    splits, names = {}, {}
    for split in ("train", "validation", "test"):
        images = generator.integers(0, 256, [CLASSES, PER_CLASS, 6, 6, 1], np.uint8)
        splits[split] = ClassPool(images, np.full(CLASSES, PER_CLASS, np.int32))
        names[split] = tuple(f"{split} LETTER é{number}" for number in range(CLASSES))
    groups = {split: ("LATIN",) * CLASSES for split in splits}
    recipe = ImageRecipe(6, 6, 1, "pad", True)
    return Dataset(name, "classification", splits, names, groups, recipe, {"letters.zip": "ab" * 32})


def assert_same(one, other):
    assert one._replace(splits=None) == other._replace(splits=None)
    for split in other.splits:
        assert np.array_equal(one.splits[split].images, other.splits[split].images)
        assert np.array_equal(one.splits[split].counts, other.splits[split].counts)


def flip(path, image):
    """Flip a bit of an image `[6, 6, 1]` where it lies in the file; or flip it back."""
    content, rest = bytearray(path.read_bytes()), image.tobytes()[1:]
    assert content.count(rest) == 1
    content[content.index(rest) - 1] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A cache of this test's own, in which a toy stands for the glyphs."""
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    made = {"at": "2026-01-02T03:04:05", "seconds": 7, "source": "x"}
    write_dataset(tmp_path / "cache" / "glyphs-1.npz", toy(), made)
    return tmp_path / "cache"


# The file.


def test_everything_of_a_dataset_is_kept(tmp_path):
    write_dataset(tmp_path / "toy.npz", toy())
    assert_same(read_dataset(tmp_path / "toy.npz"), toy())
    verify_dataset(tmp_path / "toy.npz")


def test_how_it_came_about_is_kept(tmp_path):
    cached_dataset(tmp_path / "toy.npz", toy, source="a folder")
    header, _ = read_header(tmp_path / "toy.npz")
    assert header["made"]["source"] == "a folder" and header["origin"] == {"letters.zip": "ab" * 32}
    assert header["made"]["versions"]["numpy"] == np.__version__
    assert header["made"]["at"].endswith("+00:00") and header["made"]["seconds"] >= 0


def test_a_file_of_an_earlier_version_is_still_read(tmp_path):
    """Written here as version 0.1 did: neither samples nor groups, and the checksum counted by hand."""
    pool = toy().splits["train"]
    names = {"train": [str(number) for number in range(CLASSES)]}
    header = {"format": 1, "name": "old", "kind": "classification", "class_names": names, "recipe": None}
    arrays = {"train.images": pool.images, "train.counts": pool.counts}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    whole = b"".join(
        f"{key}|{arrays[key].dtype.str}|{arrays[key].shape}|".encode() + arrays[key].tobytes() for key in sorted(arrays)
    )
    stored = np.frombuffer(hashlib.sha256(whole).hexdigest().encode(), np.uint8)
    np.savez(tmp_path / "old.npz", **arrays, sha256=stored)
    dataset = read_dataset(tmp_path / "old.npz")
    assert np.array_equal(dataset.splits["train"].images, pool.images) and dataset.groups is None
    verify_dataset(tmp_path / "old.npz")


def test_a_part_of_a_larger_pool_is_written_alike(tmp_path):
    data = toy()
    pool = data.splits["train"]
    for name, images in (("view", pool.images[::2, 1:]), ("copy", pool.images[::2, 1:].copy())):
        part = ClassPool(images, np.full(CLASSES // 2, PER_CLASS - 1, np.int32))
        write_dataset(tmp_path / f"{name}.npz", Dataset("part", "classification", {"train": part}, {"train": ("a",)}))
    assert (tmp_path / "view.npz").read_bytes() == (tmp_path / "copy.npz").read_bytes()


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_file, "MAP_FROM", 1000)
    write_dataset(tmp_path / "toy.npz", toy())
    return tmp_path / "toy.npz"


def test_large_pools_are_mapped_and_give_the_same_images(mapped):
    dataset = read_dataset(mapped)
    assert_same(dataset, toy())
    images = dataset.splits["train"].images
    assert isinstance(images, np.memmap) and not images.flags.writeable
    assert isinstance(dataset.splits["train"].counts, np.ndarray)
    on_device = jax.device_put(dataset.splits["train"])
    assert np.array_equal(on_device.images, toy().splits["train"].images)
    # Who has it open keeps it when it is replaced or removed.
    write_dataset(mapped, toy(1))
    mapped.unlink()
    assert np.array_equal(images, toy().splits["train"].images)


def test_of_a_mapped_pool_a_sample_is_checked_at_opening_and_all_by_verify(mapped):
    images = toy().splits["test"].images.reshape(-1, 6, 6, 1)
    # 64 of the 200 images are looked at: not the second.
    flip(mapped, images[1])
    read_dataset(mapped)
    with pytest.raises(DataError, match=r"toy\.npz is damaged.*test\.images"):
        verify_dataset(mapped)
    flip(mapped, images[1])
    verify_dataset(mapped)
    flip(mapped, images[-1])
    with pytest.raises(DataError, match=r"toy\.npz is damaged.*test\.images does not match"):
        read_dataset(mapped)
    with pytest.warns(UserWarning, match="prepared again"):
        assert_same(cached_dataset(mapped, lambda: toy(1)), toy(1))
    os.truncate(mapped, mapped.stat().st_size - 5000)
    with pytest.raises(DataError, match=r"toy\.npz is damaged"):
        read_dataset(mapped)


# Several processes.

PREPARE = """
    import hashlib, os, pathlib, sys, time, types
    import numpy as np
    # The cache needs NumPy only: the packages around it, which take seconds to import, are left empty.
    for name in ("jaxmeta", "jaxmeta.data"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(pathlib.Path(sys.argv[2], *name.split(".")))]
    from jaxmeta.data.cache import cached_dataset
    from jaxmeta.data.pools import ClassPool, Dataset
    folder = pathlib.Path(sys.argv[1])

    def build():
        with open(folder / "built", "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not (folder / "go").exists():
            time.sleep(0.02)
        images = np.random.default_rng(os.getpid()).integers(0, 256, [9, 2, 6, 6, 1], np.uint8)
        pool = ClassPool(images, np.full(9, 2, np.int32))
        return Dataset("toy", "classification", {"train": pool}, {"train": ("a",) * 9})

    dataset = cached_dataset(folder / "cache" / "toy.npz", build)
    print(hashlib.sha256(dataset.splits["train"].images.tobytes()).hexdigest())
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PREPARE), str(folder), str(REPO)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    # Whoever comes second says so; only then may the first one finish.
    waiting = None
    while waiting is None:
        for process in processes:
            os.set_blocking(process.stderr.fileno(), False)
            assert process.poll() is None, process.communicate()
            if "waiting for it" in (process.stderr.readline() or ""):
                waiting = process
        time.sleep(0.02)
    (tmp_path / "go").touch()
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    builders = (tmp_path / "built").read_text().split()
    assert len(builders) == 1 and int(builders[0]) != waiting.pid
    assert os.listdir(tmp_path / "cache") == ["toy.npz"]


def test_a_killed_process_blocks_nobody_and_its_leavings_are_removed(tmp_path):
    process = start(tmp_path)
    while not (tmp_path / "built").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = tmp_path / "cache"
    assert os.listdir(folder) == [".toy.npz.lock"]
    (folder / f".toy.npz.{process.pid}-0123abcd.tmp").write_bytes(b"half")
    (folder / ".toy.npz.mine.tmp").write_bytes(b"of somebody else")
    assert_same(cached_dataset(folder / "toy.npz", toy), toy())
    assert sorted(os.listdir(folder)) == [".toy.npz.mine.tmp", "toy.npz"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_enough(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(cached_dataset(tmp_path / "deep" / "toy.npz", toy), toy())
    monkeypatch.undo()
    assert "toy.npz" in os.listdir(tmp_path / "deep")
    assert_same(cached_dataset(tmp_path / "deep" / "toy.npz", lambda: None), toy())


def test_who_does_not_let_go_is_not_waited_for_forever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jaxmeta.data.cache.PATIENCE", 0.1)
    with FileLock(tmp_path / ".toy.npz.lock"), caplog.at_level(logging.WARNING, "jaxmeta"):
        assert_same(cached_dataset(tmp_path / "toy.npz", toy), toy())
    assert "no longer waiting" in caplog.text
    assert_same(read_dataset(tmp_path / "toy.npz"), toy())


# The command line.


def run(capsys, *arguments):
    try:
        code = main(["data", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return code, said.out, " ".join((said.out + said.err).split())


def test_list_says_what_is_there_and_what_each_dataset_needs(own, capsys):
    (own / "omniglot-1-0123456789abcdef.npz").write_bytes(b"PK damaged")
    (own / ".mnist-1.npz.123-0123abcd.tmp").write_bytes(b"half")
    code, out, _ = run(capsys, "list")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0 and str(own) in lines["In"] and "3 prepared" in lines["In"]
    needed = ("150", "600", "6x6x1 pad, bright ink", "ready", "2026-01-02 from x")
    assert all(text in lines["glyphs-1"] for text in needed)
    assert "damaged" in lines["omniglot-1-0123456789abcdef"] and "unfinished" in lines["mnist-1"]
    assert set(NEEDS) == set(DATASETS)
    assert all(f"{name} " in out and needs in out for name, needs in NEEDS.items())


def test_an_empty_cache_is_no_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "nowhere"))
    assert run(capsys, "list")[:1] + run(capsys, "verify")[:1] + run(capsys, "clear", "--all")[:1] == (0, 0, 0)
    code, _, said = run(capsys, "clear", "glyphs")
    assert code == 2 and "nothing is in" in said
    assert not list(tmp_path.iterdir())


def test_prepare_says_where_it_came_from_and_how_long_it_took(own, capsys, monkeypatch):
    code, out, _ = run(capsys, "prepare", "glyphs")
    assert code == 0 and "150 classes (train 50, validation 50, test 50), 600 images" in out
    assert "prepared 2026-01-02" in out and "ready in" in out
    (own / "glyphs-1.npz").unlink()
    monkeypatch.setattr("jaxmeta.data.glyphs.render_glyphs", lambda: toy(1))
    code, out, _ = run(capsys, "prepare", "glyphs")
    assert code == 0 and "prepared now in 0." in out and "from the fonts of matplotlib" in out
    assert f"letters.zip sha256 {'ab' * 32}" in out and str(own / "glyphs-1.npz") in out
    assert_same(read_dataset(own / "glyphs-1.npz"), toy(1))
    code, out, _ = run(capsys, "prepare", "sinusoid")
    assert code == 0 and "not kept in the cache" in out


def test_verify_finds_a_flipped_bit_and_clear_is_the_remedy(own, capsys, monkeypatch):
    monkeypatch.setattr(pool_file, "MAP_FROM", 1000)
    write_dataset(own / "omniglot-1.npz", toy(2, "omniglot"))
    flip(own / "glyphs-1.npz", toy().splits["train"].images.reshape(-1, 6, 6, 1)[1])
    assert run(capsys, "verify", "omniglot-1")[:2] == (0, "omniglot-1: whole\n")
    code, _, said = run(capsys, "verify")
    assert code == 1 and "glyphs-1: damaged" in said and "train.images" in said and "omniglot-1: whole" in said
    assert "jaxmeta data clear glyphs-1" in said
    code, out, _ = run(capsys, "clear", "glyphs-1")
    assert code == 0 and f"removed {own / 'glyphs-1.npz'}" in out and "MB freed" in out
    assert os.listdir(own) == ["omniglot-1.npz"] and run(capsys, "verify")[0] == 0


def test_another_version_is_told_from_damage(own, capsys, monkeypatch):
    monkeypatch.setattr(pool_file, "FORMAT_VERSION", 0)
    write_dataset(own / "glyphs-1.npz", toy())
    monkeypatch.undo()
    monkeypatch.setenv("JAXMETA_CACHE", str(own))
    code, out, _ = run(capsys, "verify")
    assert code == 0 and "glyphs-1: other version" in out and "has format 0" in out


def test_clear_leaves_alone_what_is_not_ours(own, tmp_path, capsys):
    (own / "compiled").mkdir()
    (own / "lowerings-cpu.json").write_text("{}")
    np.savez(own / "holidays-2019.npz", photographs=np.zeros(3))
    (own / "omniglot-notes.npz").write_bytes(b"mine")
    write_dataset(tmp_path / "elsewhere.npz", toy(3))
    (own / "mnist-1.npz").symlink_to(tmp_path / "elsewhere.npz")
    foreign = sorted(os.listdir(own))
    foreign.remove("glyphs-1.npz")
    (own / "omniglot-1-0123456789abcdef.npz").write_bytes(b"")
    (own / "glyphs-1.json").write_text("[]")
    (own / ".glyphs-1.npz.123-0123abcd.tmp").write_bytes(b"half")
    (own / ".mnist-2.npz.lock").touch()
    code, out, _ = run(capsys, "clear", "--all")
    assert code == 0 and out.count("removed ") == 3
    assert sorted(os.listdir(own)) == foreign
    assert_same(read_dataset(tmp_path / "elsewhere.npz"), toy(3))


def test_clear_leaves_alone_what_is_being_prepared(own, capsys):
    with FileLock(own / ".glyphs-1.npz.lock"):
        code, out, _ = run(capsys, "clear", "--all")
    assert code == 0 and "being prepared, left alone" in out and "0.00 MB freed" in out
    assert (own / "glyphs-1.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs a command: list, prepare, verify, clear, show"),
        (["lst"], "Did you mean 'list'?"),
        (["list", "glyphs"], "takes no options"),
        (["prepare", "omniglt"], "Unknown dataset 'omniglt'. Did you mean 'omniglot'?"),
        (["prepare", "glyphs", "--split", "random"], "--split random is for --dataset omniglot"),
        (["prepare", "mnist", "--data-dir", "/no/such/folder"], "No mnist in data_dir /no/such/folder"),
        (["prepare"], "DATASET"),
        (["verify", "glyfs-1"], "Did you mean 'glyphs-1'?"),
        (["clear"], "either the NAME of a prepared dataset, or --all"),
        (["clear", "glyphs", "--all"], "either the NAME of a prepared dataset, or --all"),
        (["clear", "../glyphs-1"], "Unknown prepared dataset"),
        (["show", "glyps"], "Did you mean 'glyphs'?"),
        (["show", "glyphs", "--split", "tset"], "Did you mean 'test'?"),
        (["show", "glyphs", "--ways", "0"], "--ways must be at least 1"),
        (["prepare", "glyphs", "--ways", "5"], "--ways 5 is nothing to `jaxmeta data prepare glyphs`"),
        (["show", "glyphs", "--ways", "51"], "has 50 classes"),
        (["show", "glyphs", "--shots", "4"], "4 shots + 5 queries were asked for"),
        (["show", "glyphs", "--queries", "1", "--out", "."], "is a folder"),
        (["show", "sinusoid"], "has no images to show"),
    ],
)
def test_bad_input_is_refused_with_2(own, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = run(capsys, *arguments)
    assert code == 2 and message in said
    assert os.listdir(tmp_path) == ["cache"] and os.listdir(own) == ["glyphs-1.npz"]


def test_help_explains_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(f"\n  {name} " in out for name in ("list", "prepare", "verify", "clear", "show"))
    options = {
        "list": (),
        "prepare": ("DATASET", "--data-dir", "--split"),
        "verify": ("NAME",),
        "clear": ("NAME", "--all"),
        "show": ("DATASET", "--data-dir", "--split", "--ways", "--shots", "--queries", "--seed", "--out"),
    }
    for name, needed in options.items():
        code, out, _ = run(capsys, name, "--help")
        assert code == 0 and all(option in out for option in needed), name


def test_a_closed_pipe_is_no_crash(own):
    result = subprocess.run(
        f"{sys.executable} -m jaxmeta data list | head -c 1", shell=True, capture_output=True, text=True
    )
    assert result.stdout == "I" and "Traceback" not in result.stderr and "Exception" not in result.stderr


# Pictures.


def test_pictures_are_the_episode_that_would_be_sampled():
    data, spec = toy(), EpisodeSpec(3, 1, 2)
    pictures = draw_pictures(data, "test", spec, seed=5)
    pool = data.splits["test"]
    episode = sample_episodes(jax.random.key(5), pool, spec, 1)
    np.testing.assert_allclose(episode.support.inputs[0], pictures.support.reshape(-1, 6, 6, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(episode.query.inputs[0], pictures.query.reshape(-1, 6, 6, 1) / 255, atol=1e-6)
    for way, name in enumerate(pictures.names):
        of_class = pool.images[data.class_names["test"].index(name)]
        for image in (*pictures.support[way], *pictures.query[way]):
            assert any(np.array_equal(image, other) for other in of_class)


def test_show_draws_names_and_images_of_any_kind(own, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "show", "glyphs", "--split", "test", "--queries", "2", "--seed", "5")
    names = draw_pictures(toy(), "test", EpisodeSpec(5, 1, 2), seed=5).names
    assert code == 0 and out == f"glyphs-episode.png: {', '.join(names)}\n"
    small = Image.open(tmp_path / "glyphs-episode.png").size
    # In colour, with a name that could be taken for a formula.
    data = toy()
    pools = {split: pool._replace(images=pool.images.repeat(3, -1)) for split, pool in data.splits.items()}
    classes = {split: (r"5 $\frac$ a/b_c",) * CLASSES for split in pools}
    write_dataset(own / "glyphs-1.npz", data._replace(splits=pools, class_names=classes))
    code, _, said = run(capsys, "show", "glyphs", "--queries", "2", "--ways", "7", "--out", "colour.png")
    assert code == 0, said
    assert Image.open(tmp_path / "colour.png").size[1] > small[1]


# What lies beside a prepared data set.


def test_a_note_is_written_whole_or_not_at_all(tmp_path, caplog):
    pool = tmp_path / "cache" / "faces-1.npz"
    note = write_beside(pool, "-split0.json", {"train": ["a"]})
    assert note.name == "faces-1-split0.json" and json.loads(note.read_text()) == {"train": ["a"]}
    assert os.listdir(pool.parent) == [note.name]
    (tmp_path / "file").write_text("")
    write_beside(tmp_path / "file" / "faces-1.npz", ".json", {})
    assert "could not be written" in caplog.text and sorted(os.listdir(tmp_path)) == ["cache", "file"]


def test_notes_are_cleared_with_what_they_are_about(own, capsys):
    for seed in (0, 12):
        write_beside(own / "glyphs-1.npz", f"-split{seed}.json", {})
    (own / "glyphs-1-holidays.json").write_text("mine")
    assert run(capsys, "clear", "glyphs")[0] == 0
    assert os.listdir(own) == ["glyphs-1-holidays.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_known_by_number_and_by_words(number):
    assert is_full_disk(OSError(number, "anything")) and not is_full_disk(OSError(errno.EACCES, "denied"))
    # As a writer in another language says it.
    assert is_full_disk(RuntimeError(f"write() failed: {os.strerror(number)} [type.googleapis.com/...]"))
    try:
        try:
            raise OSError(number, "below")
        except OSError as error:
            raise RuntimeError("above") from error
    except RuntimeError as error:
        assert is_full_disk(error)


def test_preparing_for_a_cache_that_cannot_be_written_fails(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "file"))
    for place in range(15):
        (tmp_path / "things" / str(place)).mkdir(parents=True)
        for image in range(5):
            Image.new("L", (8, 8), 10 * place + image).save(tmp_path / "things" / str(place) / f"{image}.png")
    code, out, said = run(capsys, "prepare", f"folder:{tmp_path / 'things'}")
    assert code == 1 and "could not be kept in" in said and "Set JAXMETA_CACHE" in said
    assert "Warning" not in said and "read as fast" not in out and sorted(os.listdir(tmp_path)) == ["file", "things"]
