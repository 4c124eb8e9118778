"""Faces from a folder of people: splits by person, published pairs and their folds, and on to a curve."""

import itertools
import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmeta import (
    ClassPool,
    EpisodeSpec,
    area_under_roc,
    from_function,
    load_faces,
    load_pairs,
    roc,
    sample_pairs,
    siamese,
    verification_accuracy,
    verification_scores,
)
from jaxmeta.cli import main
from jaxmeta.data import DataError, check_spec
from jaxmeta.data.pools import ImageRecipe

SIZE = 8
TINY = ImageRecipe(SIZE, SIZE, 3)
PEOPLE = [f"Person_{letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photograph(path, person, image):
    """The person in red, the image in blue, as far as JPEG keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (10 + 12 * person, 128, 20 * image)).save(path, "jpeg", quality=95)


@pytest.fixture
def lfw(tmp_path):
    """Twenty people with two to five images, one with a single one; below `lfw`, as the archive unpacks."""
    for person, name in enumerate(PEOPLE):
        for image in range(1, 3 + person % 4):
            photograph(tmp_path / "data" / "lfw" / name / f"{name}_{image:04d}.jpg", person, image)
    photograph(tmp_path / "data" / "lfw" / "Only_Once" / "Only_Once_0001.jpg", 20, 1)
    return tmp_path / "data"


def person_of(images):
    return np.rint((np.asarray(images, float)[..., SIZE // 2, SIZE // 2, 0] - 10) / 12).astype(int)


def test_people_to_pools(lfw, cache, caplog):
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        data = load_faces(data_dir=lfw, image_size=SIZE, per_class=4)
    assert "1 of 21 people have fewer than two images" in caplog.text
    assert [len(data.class_names[split]) for split in ("train", "validation", "test")] == [13, 3, 4]
    assert sorted(name for names in data.class_names.values() for name in names) == PEOPLE
    for split, pool in data.splits.items():
        for name, images, count in zip(data.class_names[split], pool.images, pool.counts, strict=True):
            person = PEOPLE.index(name)
            # Of five images four are taken, and no one's are another's.
            assert count == min(2 + person % 4, 4) and (person_of(images[:count]) == person).all()
            assert not images[count:].any() and len(np.unique(images[:count, 4, 4, 2])) == count
    assert json.loads(next(cache.glob("*.json")).read_text()) == {s: list(n) for s, n in data.class_names.items()}
    # The folder itself will do, and the cached pool serves; another seed is another split of it.
    again = load_faces(data_dir=lfw / "lfw", image_size=SIZE, per_class=4, seed=1)
    assert len(list(cache.glob("*.npz"))) == 1 and again.class_names != data.class_names
    # Enough for tasks of as many people, with an image to ask for.
    check_spec(EpisodeSpec(3, 1, 1), data.splits["test"])


def test_damaged_photographs_leave_people_out(lfw, caplog):
    folder = lfw / "lfw" / "Person_A"
    (folder / "Person_A_0001.jpg").write_bytes(b"")
    (lfw / "lfw" / "Person_B" / "Person_B_0001.jpg").write_text("no photograph")
    data = load_faces(data_dir=lfw, image_size=SIZE)
    assert "2 images cannot be read" in caplog.text
    # Of A one image is left, of B two.
    names = {name for names in data.class_names.values() for name in names}
    assert "Person_A" not in names and "Person_B" in names


def write_pairs(path, folds=2):
    """Two folds of two and two pairs; person i of the same pairs has at least two images."""
    lines = [f"{folds}\t2"]
    for fold in range(folds):
        lines += [f"{PEOPLE[4 * fold + i]}\t1\t2" for i in range(2)]
        lines += [f"{PEOPLE[4 * fold + 2]}\t1\t{PEOPLE[4 * fold + 3]}\t2", f"{PEOPLE[fold]}\t2\tOnly_Once\t1"]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_published_pairs(lfw, tmp_path):
    pairs = load_pairs(write_pairs(tmp_path / "pairs.txt"), lfw, recipe=TINY)
    assert pairs.first.shape == (8, SIZE, SIZE, 3) and pairs.first.dtype == np.float32 and pairs.first.max() <= 1
    assert pairs.same.tolist() == [True, True, False, False] * 2 and pairs.fold.tolist() == [0] * 4 + [1] * 4
    assert person_of(pairs.first * 255).tolist() == [0, 1, 2, 0, 4, 5, 6, 1]
    assert person_of(pairs.second * 255).tolist() == [0, 1, 3, 20, 4, 5, 7, 20]
    blue = np.rint(np.stack([pairs.first, pairs.second])[:, :, 4, 4, 2] * 255 / 20)
    assert blue.tolist() == [[1, 1, 1, 2, 1, 1, 1, 2], [2, 2, 2, 1, 2, 2, 2, 1]]
    # Without the people of training; and a list of one fold.
    left = load_pairs(tmp_path / "pairs.txt", lfw, recipe=TINY, without=["Person_A", "Person_H", "Nobody"])
    assert person_of(left.first * 255).tolist() == [1, 2, 4, 5, 1] and left.fold.tolist() == [0, 0, 1, 1, 1]
    text = (tmp_path / "pairs.txt").read_text().splitlines()
    (tmp_path / "dev.txt").write_text("\n".join(["2", *text[1:5]]))
    assert load_pairs(tmp_path / "dev.txt", lfw, recipe=TINY).fold.tolist() == [0] * 4


def test_faces_to_pairs_to_a_curve(lfw, tmp_path):
    """A siamese head on the mean colour: by its sign the nearer pairs are the more alike ones."""
    embedding = from_function(lambda key, x: {}, lambda params, x: 40 * x.mean((1, 2)))
    learner = siamese(embedding, ways=2)
    params = {"body": {}, "head": {"alpha": -np.ones(3, np.float32) * [1, 0, 0], "beta": np.float32(0)}}
    test = load_faces(data_dir=lfw, image_size=SIZE).splits["test"]
    first, second, same = jax.jit(lambda key: sample_pairs(key, test, 40))(jax.random.key(0))
    scores = verification_scores(learner, params, {}, first, second)
    # People differ in red by 12 or more, images of one by what JPEG loses.
    assert area_under_roc(roc(scores, np.asarray(same))) == 1.0
    assert verification_accuracy(scores, np.asarray(same), folds=4).mean == 1.0
    pairs = load_pairs(write_pairs(tmp_path / "pairs.txt"), lfw, recipe=TINY)
    result = verification_accuracy(
        verification_scores(learner, params, {}, pairs.first, pairs.second), pairs.same, folds=pairs.fold
    )
    assert result.per_task.tolist() == [1.0, 1.0]


def test_a_run_is_verified_from_the_command_line(lfw, tmp_path, capsys):
    run = tmp_path / "run"
    options = "--dataset faces --image-size 8 --algorithm siamese --model mlp --norm running --ways 3 --queries 1"
    sizes = "--inner-steps 0 --eval-inner-steps 0 --eval-queries 1 --tasks 2 --steps 150 --outer-lr 0.003"
    chosen = f"{options} {sizes} --validation-episodes 4 --eval-episodes 4 --data-dir {lfw} --out {run}"
    assert main(["train", *chosen.split()]) == 0
    capsys.readouterr()

    def verified(*arguments):
        assert main(["verify", str(run), *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    drawn = verified("--pairs", "400")
    assert (run / "roc.png").stat().st_size > 0 and not drawn["damaged_checkpoints"]
    assert (drawn["pairs"], drawn["folds"], drawn["pairs_from"]) == (400, 10, "drawn from split test")
    assert drawn["seen_classes"] is False and verified("--pairs", "400", "--split", "train")["seen_classes"] is True
    # Colours that were never trained on: far from guessing, whatever the chip rounds.
    assert drawn["area_under_roc"] > 0.75 and drawn["verification_accuracy"] > 0.6 > 0.4 > drawn["equal_error_rate"]
    assert verified("--pairs", "400") == drawn
    other = verified("--pairs", "400", "--split", "validation")
    assert other["pairs_hash"] != drawn["pairs_hash"] and other["protocol"] != drawn["protocol"]
    fewer = verified("--pairs", "20")
    assert drawn["setting"] == "inductive" and fewer["fingerprint"] != drawn["fingerprint"]
    # Pairs with people of training are left out of a list: of those of test and validation at least one is.
    test = [name for split in ("test", "validation") for name in load_faces(data_dir=lfw).class_names[split]]
    kind = (
        [f"{name}\t1\t2\n" for name in test[:3]],
        [f"{one}\t1\t{other}\t2\n" for one, other in itertools.pairwise(test[:4])],
    )
    fold = "".join([*kind[0], "Person_A\t1\t2\n"][:4]) + "".join([*kind[1], "Person_A\t1\tPerson_B\t1\n"])
    (tmp_path / "pairs.txt").write_text("2\t4\n" + 2 * fold)
    listed = verified("--list", str(tmp_path / "pairs.txt"), "--picture", str(tmp_path / "listed.png"))
    assert listed["protocol"] not in (drawn["protocol"], other["protocol"])
    assert (listed["pairs_from"], listed["folds"]) == ("list pairs.txt", 2) and (tmp_path / "listed.png").is_file()
    known = load_faces(data_dir=lfw).class_names["train"]
    assert listed["pairs"] == 2 * (8 - ("Person_A" in known) - ("Person_A" in known or "Person_B" in known))
    for wrong, message in (
        (["--pairs", "41"], "--pairs is an even number, 20 at least"),
        (["--images", str(lfw)], "leave it out without --list"),
        (["--list", str(tmp_path / "none.txt")], "cannot be read"),
        (["--picture", str(tmp_path / "nowhere" / "roc.png")], "give the name of a PNG file in a folder that exists"),
    ):
        assert main(["verify", str(run), *wrong]) == 2
        assert message in capsys.readouterr().err
    # Whoever was trained on and is no longer in the data is left out of a list all the same.
    fold = f"{test[0]}\t1\t2\n{test[1]}\t1\t2\n{test[0]}\t1\t{test[1]}\t1\n{test[0]}\t1\tOnly_Once\t1\n"
    (tmp_path / "pairs.txt").write_text("2\t2\n" + 2 * fold)
    classes = json.loads((run / "classes.json").read_text())
    for known, left in (([], 8), (["Only_Once"], 6)):
        stored = {**classes, "splits": {**classes["splits"], "train": classes["splits"]["train"] + known}}
        (run / "classes.json").write_text(json.dumps(stored))
        assert verified("--list", str(tmp_path / "pairs.txt"))["pairs"] == left
    # The folder's people changed: some of training would be tested on.
    classes["splits"]["train"] += classes["splits"]["test"]
    (run / "classes.json").write_text(json.dumps(classes))
    assert main(["verify", str(run), "--pairs", "400"]) == 2
    assert "which would be tested on now" in capsys.readouterr().err


def test_folders_that_are_one_person_are_named(lfw, cache, caplog):
    (lfw / "lfw" / "Again").symlink_to(lfw / "lfw" / "Person_A")
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        names = load_faces(data_dir=lfw, image_size=SIZE).class_names
    assert "1 folders are links to those of other people" in caplog.text
    assert sorted(name for of_split in names.values() for name in of_split) == PEOPLE
    photograph(lfw / "lfw" / "person_b" / "1.jpg", 1, 1)
    with pytest.raises(DataError, match="'Person_B' and 'person_b' differ in upper and lower case"):
        load_faces(data_dir=lfw, image_size=SIZE)


def test_faces_are_shown_as_they_are_trained_on(lfw, tmp_path, capsys):
    """Of some people there are two images only: one to know them by, and one to ask for."""
    out = ["--image-size", "8", "--split", "train", "--out", str(tmp_path / "faces.png")]
    assert main(["data", "show", "faces", "--data-dir", str(lfw), *out, "--ways", "3"]) == 0
    assert (tmp_path / "faces.png").stat().st_size > 0


def test_a_file_of_pairs_is_read_as_far_as_it_is_drawn(tmp_path):
    """A pool that is mapped gives the pairs of one in memory, and is not copied to a device."""
    images = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 1, 1, 3)
    np.save(tmp_path / "images.npy", images)
    counts = np.full(5, 4, np.int32)
    mapped = ClassPool(np.load(tmp_path / "images.npy", mmap_mode="r"), counts)
    one = sample_pairs(jax.random.key(0), mapped, 20)
    other = jax.jit(lambda pool: sample_pairs(jax.random.key(0), pool, 20))(ClassPool(images, counts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_published_folds_are_kept():
    """Each fold is told apart by a threshold of its own, and each other's errs on half of it."""
    same = np.array([True, False, True, False])
    scores = np.array([0.9, 0.1, 0.4, -0.4])
    assert verification_accuracy(scores, same, folds=[5, 5, 7, 7]).per_task.tolist() == [0.5, 0.5]
    # Divided otherwise, one threshold serves.
    assert (
        verification_accuracy(scores, same, folds=[0, 1, 1, 0]).mean
        == verification_accuracy(scores, same, folds=np.array([1, 0, 0, 1])).mean
    )
    for folds in ([0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]):
        with pytest.raises(ValueError, match="needs the fold of each of 4 pairs, of two folds or more"):
            verification_accuracy(scores, same, folds=folds)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "first line should be two numbers"),
        ("name 1 2\n", "first line should be two numbers"),
        ("1 1\nPerson_A 1 2\n", "has 1 pairs; its first line says 2"),
        ("0 0\n", "has 0 pairs"),
        ("1 1\nPerson_A 1 2\nPerson_A 1 2\n", "Line 3 of .* should be a pair of two people"),
        ("1 1\nPerson_A 1 2\nPerson_A 1 Person_A 2\n", "Line 3 of .* should be a pair of two people"),
        ("1 1\nPerson_A one 2\nPerson_A 1 Person_B 2\n", "Line 2 of .* should be a pair of one person"),
        ("1 1\nPerson_A 1 9\nPerson_A 1 Person_B 2\n", r"lfw lacks 1 \(Person_A/Person_A_0009.jpg\) of the 3 images"),
    ],
    ids=["empty", "no numbers", "cut", "none", "kind", "one person", "number", "missing image"],
)
def test_wrong_lists_are_refused(lfw, tmp_path, lines, message):
    (tmp_path / "pairs.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        load_pairs(tmp_path / "pairs.txt", lfw, recipe=TINY)


def test_what_is_missing_is_named(lfw, tmp_path):
    with pytest.raises(DataError, match="Faces are not downloaded. Give as data_dir"):
        load_faces()
    with pytest.raises(DataError, match="No faces in .*nowhere: No such file"):
        load_faces(data_dir=tmp_path / "nowhere")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "lfw-funneled.tgz").write_bytes(b"")
    with pytest.raises(DataError, match="there is no folder in it. Unpack the archive"):
        load_faces(data_dir=tmp_path / "packed")
    for name in "ABCDE":
        (tmp_path / "few" / name).mkdir(parents=True)
        for image in range(2):
            photograph(tmp_path / "few" / name / f"{image}.jpg", 0, image)
    with pytest.raises(DataError, match="5 classes do not do: .* 6 in all"):
        load_faces(data_dir=tmp_path / "few")
    with pytest.raises(DataError, match="pairs.txt cannot be read"):
        load_pairs(tmp_path / "pairs.txt", lfw)
    pairs = write_pairs(tmp_path / "pairs.txt")
    with pytest.raises(DataError, match="0 pairs of one person and 0 of two, without those of 20 people"):
        load_pairs(pairs, lfw, without=PEOPLE)
    (lfw / "lfw" / "Person_A" / "Person_A_0001.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="Person_A_0001.jpg is empty. The list of pairs needs every image"):
        load_pairs(pairs, lfw)
