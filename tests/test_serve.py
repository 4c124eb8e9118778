"""A run adapted to the classes of a folder: against the learner itself, and as a person meets it."""

import ast
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmeta import ALGORITHMS, adapt_run, checkpoint, example_batch, load_classifier, load_glyphs
from jaxmeta.algorithms import options_of
from jaxmeta.calibration import Calibration, calibrated
from jaxmeta.cli import main
from jaxmeta.config import Config, ConfigError
from jaxmeta.data import DataError
from jaxmeta.folder import read_data, write_calibration, write_config
from jaxmeta.parts import build
from jaxmeta.presets import with_algorithm
from jaxmeta.serve.classifier import AT_ONCE, serving_keys
from jaxmeta.serve.files import query_files, read_images, read_support
from jaxmeta.serve.outputs import mean_outputs, tells_apart, ways_to_serve
from jaxmeta.workspace import make_state, open_workspace

SMALL = Config(model="mlp", tasks=2, task_chunk=1, steps=2, eval_inner_steps=1, inner_lr=0.1)


def make_run(out, config, dataset=None):
    """A run as training leaves one, but that its checkpoint is the initialisation."""
    workspace = open_workspace(config, dataset=dataset)
    write_config(out, config, workspace.dataset)
    checkpoint.save(out / "checkpoints", make_state(workspace, jax.random.key(3)), score=0.0, meta={})
    return out


def draw(folder, number, count, start=0, name=None):
    """Write drawings of a held-out letter, black on white as on paper."""
    pool = load_glyphs().splits["test"]
    folder = folder / (name or f"letter {number}")
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(start, start + count):
        Image.fromarray(255 - pool.images[number, place, :, :, 0]).save(folder / f"{place:02d}.png")
    return pool.images[number, start : start + count]


@pytest.fixture(scope="module")
def maml(tmp_path_factory):
    out = make_run(tmp_path_factory.mktemp("runs") / "maml", SMALL)
    write_calibration(out, Calibration(2.0, 0.2, 0.1, 50))
    return out


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Five letters of two labelled images, and three more of each to label."""
    folder = tmp_path_factory.mktemp("letters")
    for number in range(5):
        draw(folder / "known", number, 2)
        draw(folder / "new", number, 3, start=2)
    return folder


def test_predictions_are_those_of_the_learner(maml, letters):
    """The same images as one episode of the pool, through the learner and the checkpoint, without the serving code."""
    classifier = adapt_run(maml, letters / "known")
    pool = load_glyphs().splits["test"].images[:5] / np.float32(255)
    support = example_batch(jnp.asarray(pool[:, :2]).reshape(10, 28, 28, 1), jnp.repeat(jnp.arange(5), 2))
    queries = example_batch(jnp.asarray(pool[:, 2:5]).reshape(15, 28, 28, 1), jnp.zeros(15, jnp.int32))
    workspace = open_workspace(SMALL)
    state, learner = make_state(workspace, jax.random.key(3)), workspace.parts.learner
    adapted = learner.adapt(state.meta_params, state.state, support, serving_keys()[0], num_steps=1)
    expected = np.asarray(learner.predict(adapted, queries, serving_keys()[1]))
    files = sorted((letters / "new").rglob("*.png"))
    labels, probabilities = classifier.predict(files)
    np.testing.assert_allclose(probabilities, calibrated(expected, 2.0), atol=1e-6)
    assert labels == [classifier.class_names[number] for number in expected.argmax(1)]
    # Pixels in the place of files; and more of them than go through the network at once.
    pixels = np.tile((pool[:, 2:5] * 255).round().astype(np.uint8).reshape(15, 28, 28, 1), (5, 1, 1, 1))
    assert len(pixels) > AT_ONCE
    np.testing.assert_allclose(classifier.predict(pixels)[1], np.tile(probabilities, (5, 1)), atol=1e-6)


def test_saved_exported_and_predicted_later(maml, letters, tmp_path, capsys):
    """The command line's whole way; and the exported program where this package cannot be imported."""
    export, new = tmp_path / "letters.jax", letters / "new"
    odd = '<b onload="x">&'
    draw(tmp_path / "known", 7, 3, name=odd)
    draw(tmp_path / "known", 8, 1)
    (tmp_path / "known" / "letter 8" / "notes.txt").write_text("not an image")
    broken = tmp_path / "broken.png"
    broken.write_bytes((new / "letter 0" / "02.png").read_bytes()[:200])
    arguments = ["--support", str(tmp_path / "known"), "--query", str(new), str(broken)]
    arguments += ["--out", str(tmp_path / "out"), "--save", "--export", str(export)]
    assert main(["adapt", str(maml), *arguments]) == 0
    out, error = capsys.readouterr()
    result = json.loads(out)
    assert result["images"] == 15 and result["classes"] == [odd, "letter 8"]
    assert len(result["skipped"]) == 2 and "notes.txt is no image" in error and "broken.png is damaged" in error
    assert "divided by 2.00" in error and "trained with 5 ways" in error
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open(newline="")))
    assert [row["file"] for row in rows] == [str(path) for path in sorted(new.rglob("*.png"))]
    for row in rows:
        chances = {name: float(row[f"probability of {name}"]) for name in result["classes"]}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(chances.values()) == chances[row["predicted"]]
    check_page((tmp_path / "out" / "predictions.html").read_text(), odd, images=15 + 4)

    assert main(["predict", str(tmp_path / "out"), "--query", str(new)]) == 0
    later = tmp_path / "out" / "predicted" / "predictions.csv"
    assert later.read_text() == (tmp_path / "out" / "predictions.csv").read_text()
    classifier = load_classifier(tmp_path / "out")
    pixels = draw(tmp_path / "again", 0, 3)
    expected = classifier.predict(pixels)[1]
    np.save(tmp_path / "pixels.npy", pixels)
    # As the README says, in the folder of the file; then with real images.
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (called,) = re.findall(r"^    import json, pathlib\n.*?^    print.*?\n", readme, re.DOTALL | re.MULTILINE)
    code = (
        "import sys; sys.modules['jaxmeta'] = None\n"
        f"{textwrap.dedent(called)}"
        "import jax, jax.export, numpy as np\n"
        f"program = jax.export.deserialize(open({str(export)!r}, 'rb').read())\n"
        f"print(np.asarray(program.call(np.load({str(tmp_path / 'pixels.npy')!r}))).tolist(), program.platforms)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    labels, said = process.stdout.split("\n", 1)
    assert len(ast.literal_eval(labels)) == 7 and set(ast.literal_eval(labels)) <= set(result["classes"])
    answer, platforms = said.split("] (")
    np.testing.assert_allclose(json.loads(answer + "]"), expected, atol=1e-6)
    assert platforms.strip() == "'cpu', 'cuda', 'tpu')"
    described = json.loads((tmp_path / "letters.jax.json").read_text())
    assert described["classes"] == [odd, "letter 8"] and described["temperature"] == 2.0
    assert described["recipe"]["bright_ink"] is True and described["pixels"] == ["batch", 28, 28, 1, "uint8"]

    damaged = bytearray((tmp_path / "out" / "classifier.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "bad.npz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"bad.npz is damaged"):
        load_classifier(tmp_path / "bad.npz")


def check_page(text, odd, images):
    """Everything is inside, nothing is fetched, names are text and no markup."""

    class Page(HTMLParser):
        tags, texts, sources, alternatives = [], [], [], []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            named = dict(attrs)
            assert not any(name.startswith("on") or name == "href" for name in named)
            if tag == "img":
                self.sources.append(named["src"])
                self.alternatives.append(named["alt"])

        def handle_data(self, data):
            self.texts.append(data)

    page = Page()
    page.feed(text)
    assert (
        odd in page.texts and "b" not in page.tags and "script" not in page.tags and "http" not in "".join(page.sources)
    )
    assert len(page.sources) == images == len(page.alternatives) and all(page.alternatives)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    # The least certain first.
    shares = [float(text[:-2]) for text in page.texts if text.endswith(" %") and text[:-2].replace(".", "").isdigit()]
    assert shares == sorted(shares) and len(shares) == 15


def test_more_classes_than_trained_and_ragged_ones(maml, tmp_path):
    """Made of the mean, outputs are alike for all classes: their order changes nothing. Padding neither."""
    counts = [1, 4, 2, 1, 3, 1, 2]
    for number, count in enumerate(counts):
        draw(tmp_path / "one", number, count)
        draw(tmp_path / "other", number, count, name=f"{9 - number}")
    pixels = draw(tmp_path, 3, 3, start=5)
    one, other = (adapt_run(maml, tmp_path / name) for name in ("one", "other"))
    assert one.origin["made"] == "mean" and one.adapted.params["head"]["bias"].shape == (7,)
    logits = one.logits(pixels)
    np.testing.assert_allclose(logits, other.logits(pixels)[:, ::-1], atol=1e-5)
    # The learner of seven classes itself, on the images without padding.
    learner = build(dataclasses.replace(SMALL, ways=7), load_glyphs()).learner
    state = make_state(open_workspace(SMALL), jax.random.key(3))
    head = {name: leaf.mean(-1, keepdims=True).repeat(7, -1) for name, leaf in state.meta_params["head"].items()}
    theta = {**state.meta_params, "head": head}
    images = one.support.images.pixels / np.float32(255)
    support = example_batch(jnp.asarray(images), jnp.repeat(jnp.arange(7), jnp.array(counts)))
    adapted = learner.adapt(theta, state.state, support, serving_keys()[0], num_steps=1)
    queries = example_batch(jnp.asarray(pixels / np.float32(255)), jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(logits, learner.predict(adapted, queries, serving_keys()[1]), atol=1e-5)


def test_a_head_that_is_not_adapted_cannot_grow(tmp_path):
    """BOIL leaves its head as it is: alike for all classes, it could not tell them apart."""
    run = make_run(tmp_path / "run", with_algorithm(SMALL, "boil"))
    for number in range(6):
        draw(tmp_path / "six", number, 1)
    with pytest.raises(ConfigError, match="has 6 classes.*boil.*can tell 5 apart at most"):
        adapt_run(run, tmp_path / "six")
    for number in range(3):
        draw(tmp_path / "three", number, 1)
    classifier = adapt_run(run, tmp_path / "three")
    assert classifier.origin["made"] == "first" and classifier.temperature is None
    assert classifier.predict(sorted((tmp_path / "six").rglob("*.png")))[1].shape == (6, 3)


# How each learner serves more classes than it was trained with, and fewer.
SERVES = {
    **dict.fromkeys(
        ["maml", "fomaml", "imaml", "reptile", "meta-sgd", "anil", "boil", "cavia", "maml++", "meta-curvature"],
        (["mean"], ["mean", "first"]),
    ),
    **dict.fromkeys(
        ["protonet", "matching", "matching-fce", "relation", "siamese", "nearest", "scratch"], (["free"],) * 2
    ),
    **dict.fromkeys(["baseline", "baseline++", "r2d2", "metaoptnet", "metaoptnet-ridge"], (["free"],) * 2),
    **dict.fromkeys(["in-context", "cnp"], ([], ["first"])),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_how_a_learner_serves_other_numbers_of_classes(name):
    config = dataclasses.replace(with_algorithm(SMALL, name), model="mlp", context=5)

    def make_learner(classes):
        return build(dataclasses.replace(config, ways=classes), load_glyphs()).learner

    example = jax.ShapeDtypeStruct((5, 28, 28, 1), np.float32)
    shapes = jax.eval_shape(make_learner(5).init, jax.random.key(0), example)
    numbers = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    for classes, expected in zip((7, 3), SERVES[name], strict=True):
        reads_labels = "ways" in options_of(ALGORITHMS[name])
        ways = list(ways_to_serve(make_learner, 5, classes, *numbers, example, reads_labels=reads_labels))
        assert [served.made for served in ways] == expected
        for served in ways if expected != ["free"] and not reads_labels else []:
            wanted = jax.eval_shape(served.learner.init, jax.random.key(0), example)
            given = jax.tree.map(np.shape, (served.meta_params, served.state))
            assert given == jax.tree.map(lambda leaf: leaf.shape, wanted)


def test_a_leaf_is_made_alike_for_every_class():
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=[5, 2, 5])
    made = mean_outputs(matrices, (7, 2, 7))
    order = rng.permutation(7)
    np.testing.assert_array_equal(made, made[order][:, :, order])
    np.testing.assert_allclose(made[0, :, 0], np.einsum("kik->i", matrices) / 5)
    off = matrices.sum((0, 2)) - np.einsum("kik->i", matrices)
    np.testing.assert_allclose(made[2, :, 6], off / 20)
    for shape in ((7, 7, 7), (7, 2, 6), (7, 2)):
        with pytest.raises(ValueError, match="at most two axes"):
            mean_outputs(np.zeros([5, 5, 5]) if shape == (7, 7, 7) else matrices, shape)
    assert tells_apart([[0.0, 1.0]]) and not tells_apart([[300.0, 300.0 + 1e-5]])


def test_queries_inside_the_support_folder(tmp_path):
    """They are no class and no labelled image; and what is labelled is not labelled again."""
    recipe = read_data(tmp_path, Config()).recipe
    for number in range(2):
        draw(tmp_path, number, 2)
    draw(tmp_path, 2, 3, name="unknown")
    draw(tmp_path / "letter 0", 3, 1, name="also unknown")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "letter 1" / "loop").symlink_to(tmp_path)
    (tmp_path / "back").symlink_to(tmp_path)
    (tmp_path / "letter 0" / "itself.png").symlink_to("itself.png")
    (tmp_path / "unknown" / "itself.png").symlink_to("itself.png")
    queries = [tmp_path / "unknown", tmp_path / "letter 0" / "also unknown", tmp_path / "unknown" / "00.png"]
    support = read_support(tmp_path, recipe, queries)
    assert support.class_names == ("letter 0", "letter 1") and support.targets.tolist() == [0, 0, 1, 1]
    files, links = query_files(queries, support.images.files)
    assert len(files) == 5 and not links
    assert any("itself.png" in text for text in support.images.skipped)
    assert any("itself.png" in text for text in read_images(files, recipe).skipped)
    for folder in ("letter 0", "unknown"):
        (tmp_path / folder / "itself.png").unlink()
    # Links back are no classes and are not gone into, and each is named.
    for name in ("letter 1/loop", "back"):
        assert f"{tmp_path / name} is a link to a folder, which is not followed." in support.images.skipped
    # The folder around: what is not labelled there.
    (tmp_path / "loose.png").write_bytes((tmp_path / "unknown" / "00.png").read_bytes())
    support = read_support(tmp_path, recipe, [tmp_path])
    files, links = query_files([tmp_path], support.images.files)
    assert files == [tmp_path / "loose.png"] and len(links) == 2
    with pytest.raises(DataError, match="nothing to label.*all files there are in the support folder"):
        query_files([tmp_path / "unknown"], support.images.files)
    assert any(
        "loose.png is in the folder of no class" in text for text in read_support(tmp_path, recipe).images.skipped
    )


def test_links_to_folders_are_named_once(maml, letters, tmp_path, capsys):
    """Among the queries and in a class, each with its sentence in the notes; nothing behind them is read."""
    shutil.copytree(letters / "known", tmp_path / "known")
    shutil.copytree(letters / "new" / "letter 0", tmp_path / "new")
    for link in (tmp_path / "new" / "more", tmp_path / "known" / "letter 1" / "more"):
        link.symlink_to(letters / "new" / "letter 3")
    (tmp_path / "new" / "round").symlink_to(tmp_path / "new")
    (tmp_path / "known" / "letter 2" / "broken.png").write_bytes(b"text")
    # The folder around both: what cannot be used in the support folder is met twice.
    arguments = ["--support", str(tmp_path / "known"), "--query", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["adapt", str(maml), *arguments]) == 0
    out, error = capsys.readouterr()
    result = json.loads(out)
    assert result["images"] == 3 and len(result["skipped"]) == 4
    for place in ("new/more", "new/round", "known/letter 1/more"):
        assert error.count(f"skipped: {tmp_path / place} is a link to a folder, which is not followed.") == 1
    assert error.count("broken.png is no image") == 1
    page = (tmp_path / "out" / "predictions.html").read_text()
    assert page.count("is a link to a folder, which is not followed.") == 3
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "link").symlink_to(letters / "new")
    with pytest.raises(DataError, match="the folders are empty. But .*only/link is a link .* Give the folder itself"):
        query_files([tmp_path / "only"])


@pytest.mark.parametrize("other", ["LETTER 0", "letter 0 "])
def test_two_spellings_of_a_class_are_refused(other, letters, tmp_path):
    shutil.copytree(letters / "known", tmp_path / "known")
    draw(tmp_path / "known", 6, 1, name=other)
    with pytest.raises(
        DataError, match=f"'letter 0' and '{other}'|'{other}' and 'letter 0'.* differ in upper and lower"
    ):
        read_support(tmp_path / "known", read_data(tmp_path, Config()).recipe)


def test_answers_by_another_folder_of_the_same_name_stay(maml, letters, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(maml, run)
    for number, place in enumerate(("here", "there")):
        for letter in (number, number + 2):
            draw(tmp_path / place / "known", letter, 1)

    def label(place):
        arguments = ["--support", str(tmp_path / place / "known"), "--query", str(letters / "new"), "--save"]
        assert main(["adapt", str(run), *arguments]) == 0
        out, error = capsys.readouterr()
        return json.loads(out), error

    first, said = label("here")
    assert first["predictions"] == str(run / "adapted" / "known" / "predictions.csv")
    assert "another support folder" not in said
    before = {path: path.read_bytes() for path in (run / "adapted" / "known").iterdir()}
    assert {path.name for path in before} == {"predictions.csv", "predictions.html", "result.json", "classifier.npz"}
    second, said = label("there")
    assert second["classifier"] == str(run / "adapted" / "known-2" / "classifier.npz")
    assert f"{run}/adapted/known is another support folder's: the answers are in {run}/adapted/known-2." in said
    assert {path: path.read_bytes() for path in before} == before
    # Each replaces its own, and what is there from an earlier version, which says of no folder, stays.
    assert label("there")[0] == second and label("here")[0] == first
    (run / "adapted" / "known" / "result.json").unlink()
    assert label("here")[0]["page"] == str(run / "adapted" / "known-3" / "predictions.html")
    assert json.loads((run / "adapted" / "known-3" / "result.json").read_text())["support"].endswith("here/known")


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory):
    config = Config(dataset="sinusoid", model="mlp", ways=1, tasks=2, task_chunk=1)
    return make_run(tmp_path_factory.mktemp("runs") / "sinusoid", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "nowhere"}, "There is no run in nowhere"),
        ({"run": "sinusoid"}, "is regression, without classes"),
        ({"support": "nowhere"}, "The support folder nowhere does not exist"),
        ({"support": "file"}, "is a file. The support folder has one sub-folder"),
        ({"support": "one class"}, "has one class, letter 0; at least two"),
        ({"support": "empty class"}, "The class nothing has no image that can be read"),
        ({"query": "nowhere"}, "There is no file or folder nowhere to label"),
        ({"query": "file"}, "None of the 1 files to label can be read"),
        ({"more": ["--out", "file"]}, "is a file, or in one. Choose another folder with --out"),
        ({"more": ["--out", "/proc/nope/deep"]}, "The folder /proc/nope/deep cannot be made"),
        ({"more": ["--out", "new/out", "--export", "one class"]}, "--export one class is a folder; needed is the name"),
        ({"more": ["--export", "/proc/nope/letters.jax"]}, "Choose another place with --export"),
        ({"more": ["--export", "file/letters.jax"]}, "file is a file, or in one. Choose another folder with --export"),
        ({"more": ["--export", "taken"]}, "taken.json is a folder, where a file is to be written. Remove it"),
        ({"more": ["--out", "full", "--save"]}, "full/classifier.npz is a folder, where a file is to be written"),
        ({"more": ["--out", "out", "--export", "out/result.json"]}, "would be written over out/result.json"),
        ({"more": ["--eval-inner-steps", "-1"]}, "must be at least 0; given -1"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    change, message, maml, sinusoid, letters, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    draw(tmp_path / "one class", 0, 1)
    draw(tmp_path / "empty class", 0, 1)
    (tmp_path / "empty class" / "nothing").mkdir()
    (tmp_path / "taken.json").mkdir()
    (tmp_path / "full" / "classifier.npz").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    runs = {"nowhere": "nowhere", "sinusoid": str(sinusoid)}
    arguments = [runs.get(change.get("run"), str(maml)), "--support", change.get("support", str(letters / "known"))]
    arguments += ["--query", change.get("query", str(letters / "new")), *change.get("more", [])]
    assert main(["adapt", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before and not (maml / "adapted").exists()


def test_runs_of_earlier_versions(maml, tmp_path):
    """What a run did not write down is known of the datasets that there were, but for a head over training classes."""
    assert read_data(tmp_path, Config()).recipe == read_data(maml, SMALL).recipe
    for config in (with_algorithm(SMALL, "baseline"), dataclasses.replace(SMALL, dataset="unheard of")):
        with pytest.raises(ConfigError, match="has no data.json.*train --resume"):
            read_data(tmp_path, config)
    assert read_data(tmp_path, Config(dataset="sinusoid", ways=1)).kind == "regression"
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(ConfigError, match="is damaged"):
        read_data(tmp_path, Config())


def test_predict_takes_files_or_pixels_only(maml, letters):
    classifier = adapt_run(str(maml), str(letters / "known"), inner_steps=0)
    assert classifier.predict([])[1].shape == (0, 5)
    with pytest.raises(DataError, match="Put it into a list"):
        classifier.predict(str(letters))
    with pytest.raises(DataError, match=r"pixels of \[28, 28, 1\] uint8; given \[28, 28\] float64"):
        classifier.predict(np.zeros([2, 28, 28]))
