"""The Omniglot challenge: its 20 runs, its baseline, its background sets, and tasks within one alphabet."""

import io
import logging
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxmeta import (
    CRITERIA,
    ClassPool,
    Dataset,
    Episode,
    EpisodeSpec,
    MetaLearner,
    TaskSource,
    challenge_source,
    check_episode,
    evaluate,
    example_batch,
    fixed_source,
    hausdorff_distance,
    hausdorff_error,
    load_challenge,
    load_challenge_drawings,
    load_glyphs,
    sample_episodes,
    task_source,
    within_groups,
)
from jaxmeta.data import DataError
from jaxmeta.data.omniglot import load_omniglot, read_drawing
from jaxmeta.data.omniglot_splits import CHALLENGE_SPLITS, EVALUATION_ALPHABETS, SPLITS

ARCHIVE = "one_shot_all_runs.zip"


def drawing(run, character, drawer):
    """A one-bit PNG: a bar whose place tells the run and the character, a little elsewhere for each drawer."""
    from PIL import Image

    pixels = np.full([105, 105], 255, np.uint8)
    pixels[4 * character + 6 : 4 * character + 6 + run // 2 + 3, 20 + drawer : 20 + drawer + 30 + character] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, format="png")
    return buffer.getvalue()


def classes_of(run):
    """The class of each test image of a run of the test's own archive."""
    return np.random.RandomState(run).permutation(20)


@pytest.fixture(scope="module")
def members():
    """The archive in the original layout, as name: contents."""
    files = {}
    for run in range(1, 21):
        lines = []
        for item, cls in enumerate(classes_of(run), 1):
            training, test = f"run{run:02d}/training/class{item:02d}.png", f"run{run:02d}/test/item{item:02d}.png"
            files[training], files[test] = drawing(run, item - 1, 0), drawing(run, cls, 3)
            lines.append(f"{test} run{run:02d}/training/class{cls + 1:02d}.png")
        files[f"run{run:02d}/class_labels.txt"] = ("\n".join(lines) + "\n").encode()
    return files


def write(folder, members):
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return folder


@pytest.fixture(scope="module")
def runs(members, tmp_path_factory):
    return write(tmp_path_factory.mktemp("runs"), members)


def test_runs_are_read_as_the_drawings_of_omniglot_are(runs, members, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        source = challenge_source(runs)
    episodes = source.pool
    assert source.spec == EpisodeSpec(ways=20, shots=1, queries=1)
    assert sum("sha256" in record.getMessage() for record in caplog.records) == 1
    check_episode(episodes, num_task_axes=1)
    assert episodes.support.inputs.shape == episodes.query.inputs.shape == (20, 20, 28, 28, 1)
    np.testing.assert_array_equal(episodes.support.targets, np.tile(np.arange(20), (20, 1)))
    np.testing.assert_array_equal(episodes.query.targets, [classes_of(run) for run in range(1, 21)])
    # What the pool of Omniglot would hold of this file, and what an episode makes of that.
    image = read_drawing(members["run03/test/item07.png"])[1]
    np.testing.assert_array_equal(episodes.query.inputs[2, 6, :, :, 0], jnp.asarray(image) * jnp.float32(1 / 255))
    drawings = load_challenge_drawings(runs / ARCHIVE)
    assert drawings.query.inputs.shape == (20, 20, 105, 105, 1)
    # Run 3 has bars of four rows; character c begins at row 4 c + 6 and is 30 + c wide.
    cls = int(classes_of(3)[6])
    expected = np.zeros([105, 105])
    expected[4 * cls + 6 : 4 * cls + 10, 23 : 53 + cls] = 1
    np.testing.assert_array_equal(drawings.query.inputs[2, 6, :, :, 0], expected)


def without(name):
    return lambda members: {key: value for key, value in members.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("run20/test/item20.png"), "800 drawings; it holds 799, first amiss: run20/test/item20.png"),
        (lambda members: members | {"run21/test/item01.png": b""}, "it holds 801, first amiss: run21"),
        (lambda members: members | {"run01/../../evil.txt": b""}, "'run01/../../evil.txt' leads out"),
        (lambda members: members | {"/etc/evil": b""}, "'/etc/evil' leads out"),
        (lambda members: members | {"run02/test/item01.png": b"no image"}, "UnidentifiedImageError"),
        (without("run07/class_labels.txt"), "run07/class_labels.txt"),
        (
            lambda members: members | {"run01/class_labels.txt": b"run01/test/item01.png ../../../etc/passwd\n" * 20},
            "run01/class_labels.txt should name a training image for each of the 20 test images",
        ),
    ],
    ids=["too few", "too many", "climbing", "absolute", "no image", "no labels", "labels elsewhere"],
)
def test_damaged_archives_are_named(members, change, message, tmp_path):
    write(tmp_path, change(members))
    with pytest.raises(DataError, match=f"{ARCHIVE} cannot be used .*{message}.*Fetch") as caught:
        load_challenge(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_and_cut_archives_are_named(runs, tmp_path):
    with pytest.raises(DataError, match=f"No .*{ARCHIVE}. Give the folder"):
        load_challenge(tmp_path)
    whole = (runs / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="BadZipFile"):
        load_challenge_drawings(tmp_path)


def nearest():
    """A learner that learns nothing, and compiles in no time: the class of the nearest support image."""

    def predict(support, batch, key):
        apart = ((batch.inputs[:, None] - support.inputs) ** 2).mean((2, 3, 4))
        near = jnp.where(jnp.arange(3)[:, None] == support.targets, -apart[:, None], -jnp.inf)
        return near.max(-1)

    def adapt(meta_params, state, support, key, *, num_steps=None):
        return support

    def init(key, inputs):
        return (), ()

    def loss(*arguments):
        raise AssertionError("nothing is trained here")

    return MetaLearner(init, adapt, predict, loss)


def test_an_evaluator_judges_fixed_tasks_whatever_key_and_chunk(source):
    """Each task is judged once and in order, also where the chunks do not divide their number."""
    tasks = source.sample(jax.random.key(3), source.pool, source.spec, 5)
    fixed = fixed_source(tasks)
    assert fixed.spec == source.spec
    judged = partial(evaluate, nearest(), (), (), criterion=CRITERIA["classification"])
    by_chunk = [judged(fixed, jax.random.key(seed), num_tasks=5, task_chunk=chunk) for seed, chunk in ((1, 5), (2, 2))]
    one, other = (evaluation.metrics["loss"].per_task for evaluation in by_chunk)
    assert one.shape == other.shape == (5,) and np.ptp(one) > 0
    np.testing.assert_allclose(one, other, rtol=1e-4)
    # The same as drawing them from the source that they are from, task by task.
    last = jax.jit(lambda first: fixed.sample(jax.random.key(9), fixed.pool, fixed.spec, 3, first_task=first))(4)
    for given, leaf in zip(jax.tree.leaves(last), jax.tree.leaves(tasks), strict=True):
        np.testing.assert_array_equal(given, jnp.stack([leaf[4]] * 3))
    with pytest.raises(ValueError, match=r"one number of tasks; given \[4, 5\]"):
        fixed_source(tasks._replace(query=jax.tree.map(lambda leaf: leaf[:4], tasks.query)))
    with pytest.raises(ValueError, match="6 tasks were asked for, and there are 5"):
        judged(fixed, jax.random.key(1), num_tasks=6, task_chunk=5)


def test_only_the_background_splits_keep_the_alphabets_of_the_challenge_from_training():
    alphabets = sorted(EVALUATION_ALPHABETS | {f"Background{number:02d}" for number in range(30)})
    names = tuple(f"{alphabet}/character{number:02d}" for alphabet in alphabets for number in range(1, 33))
    for split, positions in SPLITS.items():
        trained = {names[index].split("/")[0] for index in positions(names, 0)["train"]}
        assert trained.isdisjoint(EVALUATION_ALPHABETS) == (split in CHALLENGE_SPLITS)


def ink(*places, size=9):
    image = np.zeros([size, size], np.float32)
    image[tuple(np.transpose(places))] = 1
    return image


def test_hausdorff_distance_by_hand():
    """Three pixels in a row are at -1, 0, 1 from their mean; two, two apart, at -1 and 1; a dot at 0."""
    row, pair, dot = ink((2, 2), (2, 3), (2, 4)), ink((5, 1), (5, 3)), ink((8, 8))
    assert hausdorff_distance(row, dot) == pytest.approx(2 / 3)
    assert hausdorff_distance(pair, dot) == hausdorff_distance(dot, pair) == 1
    assert hausdorff_distance(row, pair) == pytest.approx(1 / 3)
    # The same shape elsewhere, and in a frame of another size.
    assert hausdorff_distance(row, ink((7, 5), (7, 6), (7, 7), size=12)[..., None]) == 0
    with pytest.raises(ValueError, match=r"given \[9, 9\] with 0 pixels of ink"):
        hausdorff_distance(np.zeros([9, 9]), row)


def test_hausdorff_error_is_that_of_all_distances():
    """Against the plain table of distances, on drawings of which many are alike; padding counts for nothing."""
    rng = np.random.default_rng(0)
    images = (rng.random([2, 3, 6, 12, 12, 1]) < 0.2).astype(np.float32)
    images[1] = np.where(rng.random(images[1].shape) < 0.9, images[0], images[1])
    targets = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    support, query = (jax.vmap(example_batch)(jnp.asarray(part), jnp.asarray(targets)) for part in images)
    support = support._replace(weights=support.weights.at[:, 0].set(0.0))

    def plain(one, other):
        one, other = (np.argwhere(image[..., 0] > 0.5) for image in (one, other))
        distances = cdist(one - one.mean(0), other - other.mean(0))
        return max(distances.min(0).mean(), distances.min(1).mean())

    result = hausdorff_error(Episode(support, query))
    for task, error in enumerate(result.per_task):
        table = np.array([[plain(one, other) for other in images[0, task, 1:]] for one in images[1, task]])
        assert error == np.mean(1 + table.argmin(1) != np.arange(6))
    assert result.mean == np.mean(result.per_task) and 0 < result.mean < 1


def test_the_official_runs(shared, caplog):
    """The published error of the baseline; and drawings that carry the labels' classes in the evaluation set."""
    folder = shared / "data" / "omniglot"
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        drawings, episodes = load_challenge_drawings(folder), load_challenge(folder)
    assert not caplog.records
    assert abs(hausdorff_error(drawings).mean - 0.3875) < 0.0005
    # Runs 1 and 20 are of Atlantean and Tibetan: the same pixels are there, by character, at both sizes.
    with zipfile.ZipFile(folder / "images_evaluation.zip") as archive:
        for run, alphabet in ((0, "Atlantean"), (19, "Tibetan")):
            characters = {}
            for name in archive.namelist():
                if f"/{alphabet}/" in name and name.endswith(".png"):
                    full, small = read_drawing(archive.read(name))
                    characters[full.tobytes()] = name.split("/")[2], small
            found = []
            for whole, small in zip(drawings, episodes, strict=True):
                keys = [(image > 0.5).tobytes() for image in np.asarray(whole.inputs[run, ..., 0])]
                pixels = np.stack([characters[key][1] for key in keys])
                np.testing.assert_array_equal(np.rint(np.asarray(small.inputs[run, ..., 0]) * 255), pixels)
                found.append(np.array([characters[key][0] for key in keys]))
            assert len(set(found[0])) == 20
            assert (found[0][np.asarray(episodes.query.targets[run])] == found[1]).all()


def names_in(path):
    with zipfile.ZipFile(path) as archive:
        drawn = [name.split("/") for name in archive.namelist() if name.endswith(".png")]
    return sorted({f"{alphabet}/{character}" for _, alphabet, character, _ in drawn})


def test_background_sets_are_the_published_ones(shared):
    folder = shared / "data" / "omniglot"
    sets = ("background", "background_small1", "background_small2", "evaluation")
    background, small1, small2, evaluation = (names_in(folder / f"images_{name}.zip") for name in sets)
    names = tuple(sorted(background + evaluation))
    for split, of_split, sizes in (
        ("background", background, (803, 161, 659)),
        ("small1", small1, (114, 22, 659)),
        ("small2", small2, (132, 24, 659)),
    ):
        parts = {part: [names[index] for index in chosen] for part, chosen in SPLITS[split](names, 0).items()}
        assert tuple(map(len, parts.values())) == sizes
        assert sorted(parts["train"] + parts["validation"]) == of_split
        assert sorted(parts["test"]) == evaluation
        # Whole alphabets choose the checkpoint, one of them with enough characters for a challenge task.
        alphabets = {part: {name.split("/")[0] for name in of_part} for part, of_part in parts.items()}
        assert not alphabets["train"] & alphabets["validation"] and len(alphabets["test"]) == 20
        counts = [sum(name.startswith(f"{one}/") for name in names) for one in alphabets["validation"]]
        assert max(counts) >= 20 and len(counts) == (5 if split == "background" else 1)


def test_background_is_a_function_of_its_seed():
    names = tuple(f"{letter}/character01" for letter in "ABCDEFGHIJ") + ("Tengwar/character01",)
    drawn = {seed: tuple(SPLITS["background"](names, seed)["validation"]) for seed in range(6)}
    assert drawn[1] == tuple(SPLITS["background"](names, 1)["validation"])
    assert len(set(drawn.values())) > 1 and all(len(held) == 5 and 10 not in held for held in drawn.values())


@pytest.fixture
def small_omniglot(tmp_path, monkeypatch):
    """A prepared pool of characters of seven alphabets, as a folder."""
    from jaxmeta.data.cache import write_dataset

    sizes = {"Balinese": 3, "Early_Aramaic": 2, "Greek": 4, "Hebrew": 3, "Latin": 2, "Tagalog": 2, "Tengwar": 3}
    names = tuple(f"{alphabet}/character{n:02d}" for alphabet, size in sizes.items() for n in range(1, size + 1))
    images = np.random.default_rng(0).integers(0, 256, [len(names), 4, 8, 8, 1], np.uint8)
    pool = ClassPool(images, np.full(len(names), 4, np.int32))
    write_dataset(tmp_path / "omniglot-1.npz", Dataset("omniglot", "classification", {"all": pool}, {"all": names}))
    return tmp_path


def test_only_training_turns_the_characters_of_the_challenge(small_omniglot):
    data = load_omniglot(data_dir=small_omniglot, split="small1")
    turns = tuple(f"rot{degrees:03d}" for degrees in (0, 90, 180, 270))
    assert set(data.class_names["train"]) == {
        f"{alphabet}/character{n:02d}/{turn}"
        for alphabet, size in (("Balinese", 3), ("Greek", 4), ("Latin", 2))
        for n in range(1, size + 1)
        for turn in turns
    }
    assert data.class_names["validation"] == ("Early_Aramaic/character01", "Early_Aramaic/character02")
    assert data.groups is not None and data.groups["test"] == ("Tengwar",) * 3
    # A turned alphabet is another one.
    assert set(data.groups["train"]) == {f"{name}/{turn}" for name in ("Balinese", "Greek", "Latin") for turn in turns}
    vinyals = load_omniglot(data_dir=small_omniglot, split="vinyals")
    assert vinyals.class_names["test"][-1] == "Tengwar/character03/rot270"
    small2 = load_omniglot(data_dir=small_omniglot, split="small2", rotations=False)
    assert small2.class_names["validation"] == tuple(f"Greek/character{n:02d}" for n in range(1, 5))


def traced_pool(groups):
    """Images whose first two pixels tell their class and their number."""
    images = np.zeros([len(groups), 5, 2, 2, 1], np.uint8)
    images[:, :, 0, 0, 0], images[:, :, 0, 1, 0] = np.arange(len(groups))[:, None], np.arange(5)
    return ClassPool(images, np.full(len(groups), 5, np.int32))


def test_tasks_within_groups():
    """Distinct classes of one group that has enough of them, such groups alike often, f(key, task) alone."""
    groups = list("abcabcabcabbb") + ["d"] * 12
    spec = EpisodeSpec(ways=4, shots=2, queries=2)
    source = within_groups(TaskSource(sample_episodes, traced_pool(groups), spec), groups)
    draw = jax.jit(lambda key, first: source.sample(key, source.pool, spec, 300, first_task=first))
    episodes = draw(jax.random.key(0), 0)
    drawn = [np.rint(np.asarray(batch.inputs).reshape(300, 8, 4) * 255).astype(int) for batch in episodes]
    counts = dict.fromkeys("abcd", 0)
    for support, query, targets in zip(*drawn, np.asarray(episodes.support.targets), strict=True):
        classes = [support[targets == way, 0] for way in range(4)]
        assert all(len(set(of_way)) == 1 for of_way in classes) and (query[:, 0] == support[:, 0]).all()
        assert len(set(support[:, 0])) == 4
        assert len({(cls, number) for cls, number, *_ in (*support, *query)}) == 16
        (group,) = {groups[cls] for cls in support[:, 0]}
        counts[group] += 1
    # a has 4 classes, b 6, d 12: each is drawn about 100 times, with a standard deviation of 8; c has too few.
    assert counts.pop("c") == 0 and all(abs(count - 100) < 41 for count in counts.values())
    again = jax.jit(lambda key: source.sample(key, source.pool, spec, 3, first_task=7))(jax.random.key(0))
    np.testing.assert_array_equal(again.query.inputs, episodes.query.inputs[7:10])
    assert not np.array_equal(draw(jax.random.key(1), 0).query.inputs, episodes.query.inputs)


def test_groups_that_cannot_serve_are_refused(pool):
    source = TaskSource(sample_episodes, pool, EpisodeSpec(5, 1, 1))
    with pytest.raises(
        ValueError, match="5 ways within one group .* of the pool has 4 classes. Ask for at most 4 ways"
    ):
        within_groups(source, ["a", "b", "c"] * 4)
    with pytest.raises(ValueError, match="the pool has 12 classes, each of one group; given 3 groups"):
        within_groups(source, ["a", "b", "c"])
    bare = Dataset("bare", "classification", {"test": pool}, {"test": ("",) * 12})
    with pytest.raises(ValueError, match="The classes of bare are in no groups"):
        task_source(bare, "test", EpisodeSpec(5, 1, 1), within_group=True)


def test_glyphs_are_grouped_by_script():
    glyphs = load_glyphs()
    assert glyphs.groups is not None and set(glyphs.groups["test"]) == {"GEORGIAN", "ARMENIAN", "TIFINAGH", "NKO"}
    source = task_source(glyphs, "test", EpisodeSpec(20, 1, 1), within_group=True)
    tasks = jax.jit(lambda key: source.sample(key, source.pool, source.spec, 4))(jax.random.key(0))
    places = {
        image.tobytes(): name.split()[0]
        for name, of_class in zip(glyphs.class_names["test"], glyphs.splits["test"].images, strict=True)
        for image in of_class
    }
    for images in np.rint(np.asarray(tasks.support.inputs) * 255).astype(np.uint8):
        assert len({places[image.tobytes()] for image in images}) == 1
