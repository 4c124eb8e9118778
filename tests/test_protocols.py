"""Protocols: what is judged alike has one fingerprint, meets the same tasks, and sees what the leak test says."""

import dataclasses
import hashlib
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import ttest_rel
from test_algorithms import CASES
from test_checkpoint import train_state

from conftest import REPO, flat_model
from jaxmeta import (
    ALGORITHMS,
    CRITERIA,
    DATASETS,
    PROTOCOLS,
    ClassPool,
    Criterion,
    Dataset,
    Episode,
    EpisodeSpec,
    MetaLearner,
    Protocol,
    checkpoint,
    ensemble_learner,
    episodes_hash,
    example_batch,
    fingerprint,
    judged_tasks,
    judgement,
    linear,
    load_sinusoid,
    make_evaluator,
    maml,
    options_of,
    paired_difference,
    protocol_hash,
    protocols,
    protonet,
    task_source,
)
from jaxmeta.candidate import Request, make_ready, open_run, with_protocol
from jaxmeta.check import Leak, leak_test
from jaxmeta.cli import main
from jaxmeta.config import Config, ConfigError
from jaxmeta.config_json import from_json, to_json
from jaxmeta.data import DataError
from jaxmeta.data.omniglot import alphabet_of
from jaxmeta.data.pools import with_rotations
from jaxmeta.evaluate import draw_tasks
from jaxmeta.folder import read_config, write_config
from jaxmeta.judged_tasks import episodes_of
from jaxmeta.judgement import judged, protocol_of, seen_classes
from jaxmeta.models import MODELS
from jaxmeta.presets import with_algorithm
from jaxmeta.workspace import make_state, open_workspace

OWN = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "inductive", 1000)


# Fingerprints and presets.


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("train_inner_steps", 9, True),
        ("eval_inner_steps", 9, True),
        ("trained_on", "omniglot", True),
        ("trained_split", "random", True),
        ("precision", "tf32", True),
        ("norm", "running", True),
        ("norm", "none", True),
        ("train_norm", "transductive", True),
        ("train_ways", 20, True),
        ("train_shots", 5, True),
        ("train_queries", 5, True),
        ("train_within_alphabet", True, True),
        ("train_episodes_from", "varying", True),
        ("augment", ("warp",), True),
        ("norm", "transductive", False),
        ("measured", "transductive", False),
        ("dataset", "omniglot", False),
        ("split", "random", False),
        ("part", "validation", False),
        ("ways", 20, False),
        ("shots", 5, False),
        ("queries", 1, False),
        ("episodes", 600, False),
        ("ensemble", 5, False),
        ("seed", 1, False),
        ("checkpoint", "latest", False),
        ("within_alphabet", True, False),
        ("turns", "by chance", False),
        ("image_size", 64, False),
    ],
)
def test_one_hash_covers_the_judging_and_the_other_everything(field, value, same):
    own = dataclasses.replace(OWN, trained_on="mnist", trained_split="vinyals")
    other = dataclasses.replace(own, **{field: value})
    assert (protocol_hash(other) == protocol_hash(own)) == same
    assert fingerprint(other) != fingerprint(own)
    name = "setting" if field == "measured" else field
    judging = "setting" if field in ("norm", "measured") else field
    assert set(protocols.differences(own, other)) == (set() if same else {judging})
    assert set(protocols.differences(own, other, protocols.everything_of)) >= {name}


def test_what_is_not_said_of_training_is_what_is_judged():
    """And a setting that was measured as it was expected changes nothing."""
    same = {"trained_on": "glyphs", "trained_split": "vinyals", "measured": "inductive", "train_norm": "inductive"}
    same |= {"train_ways": 5, "train_shots": 1, "train_queries": 15, "train_within_alphabet": False}
    for fields in ({name: value} for name, value in same.items()):
        other = dataclasses.replace(OWN, **fields)
        assert fingerprint(other) == fingerprint(OWN) and protocol_hash(other) == protocol_hash(OWN)


def test_the_protocol_hash_is_that_of_the_canonical_json():
    """It stands beside published numbers: it may not change unnoticed."""
    text = (
        '{"checkpoint":"best","dataset":"glyphs","ensemble":1,"episodes":1000,"episodes_from":"sampled",'
        '"interval":"t-95 over tasks","part":"test","queries":15,"seed":20240229,"setting":"inductive","shots":1,'
        '"split":"vinyals","ways":5,"within_alphabet":false}'
    )
    assert protocol_hash(OWN) == hashlib.sha256(text.encode()).hexdigest()[:12] == "c6a819892786"


def test_published_fingerprints_stand():
    """A field that is added must leave them: here those of MAML in experiments/results.jsonl."""
    rows = [json.loads(line) for line in (REPO / "experiments" / "results.jsonl").read_text().splitlines()]
    published = {row["fingerprint"] for row in rows if row["run"] == "omniglot_two_cores_maml_seed0"}
    trained = {"train_norm": "inductive", "train_ways": 5, "train_shots": 1, "train_queries": 1}
    trained |= {"train_within_alphabet": False, "train_episodes_from": "sampled", "measured": "inductive"}
    own = Protocol("omniglot", "vinyals", "test", 5, 1, 15, 1, 3, "inductive", 1000, **trained)
    assert fingerprint(own) == "a22fd9154890" and fingerprint(own) in published


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("episodes", 1, "episodes of at least 2; given 1"),
        ("part", "tset", "part='train' or 'validation' or 'test'; given 'tset'"),
        ("interval", "std", "interval='t-95 over tasks' or 't-95 over folds'; given 'std'"),
        (
            "episodes_from",
            "lake",
            "or 'omniglot-challenge' or 'pairs' or 'listed pairs'; given 'lake'",
        ),
        ("norm", "transductve", "norm='transductive' or 'inductive' or 'running' or 'none'; given 'transductve'"),
        ("turns", "upright", "turns='classes' or 'by chance' or 'none'; given 'upright'"),
        ("measured", "unsure", "measured=None or 'inductive' or 'transductive'; given 'unsure'"),
    ],
)
def test_a_protocol_that_nothing_can_be_judged_by_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OWN, **{field: value})


MAML = {"norm": "transductive", "queries": 2, "episodes": 600, "ensemble": 1, "within_alphabet": False}
REPTILE = {"queries": 1, "episodes": 10000, "ensemble": 1, "within_alphabet": False}
PRESETS = {
    "default": {"norm": "inductive", "queries": 15, "episodes": 1000, "ensemble": 1},
    "maml": {**MAML, "ways": 5},
    "maml-20way": {**MAML, "ways": 20},
    "maml++": {
        "norm": "transductive",
        "episodes": 600,
        "ensemble": 5,
        "within_alphabet": False,
    },
    "protonet": {"norm": "inductive", "queries": 15, "episodes": 1000, "ensemble": 1, "within_alphabet": False},
    "reptile": {**REPTILE, "norm": "transductive"},
    "reptile-inductive": {**REPTILE, "norm": "inductive"},
    "omniglot-challenge": {
        "dataset": "omniglot-challenge",
        "split": "official",
        "part": "test",
        "trained_on": "glyphs",
        "trained_split": "vinyals",
        "ways": 20,
        "shots": 1,
        "queries": 1,
        "episodes": 20,
        "ensemble": 1,
        "episodes_from": "omniglot-challenge",
        "norm": "inductive",
    },
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_preset_changes_what_the_paper_says_and_nothing_else(name):
    own = dataclasses.replace(OWN, ways=7, shots=2, queries=4, train_inner_steps=7, norm="transductive", seed=3)
    own = dataclasses.replace(own, ensemble=2, within_alphabet=True)
    assert PROTOCOLS[name](own, "protonet") == dataclasses.replace(own, **PRESETS[name])


@pytest.mark.parametrize(
    ("name", "algorithms", "steps"),
    [
        ("maml", ("maml", "fomaml"), 3),
        ("maml-20way", ("maml", "fomaml"), 5),
        ("maml++", ("maml++",), 1),
        ("reptile", ("reptile",), 50),
        ("reptile-inductive", ("reptile",), 50),
    ],
)
def test_a_preset_says_how_many_steps_its_own_algorithms_make_and_no_others(name, algorithms, steps):
    own = dataclasses.replace(OWN, eval_inner_steps=16)
    made = {row: PROTOCOLS[name](own, row).eval_inner_steps for row in ALGORITHMS}
    assert made == {row: steps if row in algorithms else 16 for row in ALGORITHMS}


def test_photographs_are_judged_with_the_numbers_for_mini_imagenet():
    own = dataclasses.replace(OWN, dataset="mini_imagenet", shots=5, queries=15, eval_inner_steps=7)
    drawings = dataclasses.replace(own, dataset="omniglot")
    numbers = {
        dataset: {
            name: (judged.queries, judged.eval_inner_steps, judged.episodes)
            for name, judged in (
                (name, PROTOCOLS[name](protocol, "maml")) for name in ("maml", "maml-20way", "protonet")
            )
        }
        for dataset, protocol in (("mini_imagenet", own), ("omniglot", drawings))
    }
    assert numbers["mini_imagenet"] == {"maml": (15, 10, 600), "maml-20way": (15, 10, 600), "protonet": (15, 7, 600)}
    assert numbers["omniglot"] == {"maml": (5, 3, 600), "maml-20way": (5, 5, 600), "protonet": (15, 7, 1000)}


TURNS = {
    "default": "classes",
    "maml": "by chance",
    "maml-20way": "by chance",
    "maml++": "none",
    "protonet": "classes",
    "reptile": "none",
    "reptile-inductive": "none",
    "omniglot-challenge": "classes",
}


@pytest.mark.parametrize(("name", "turns"), [(name, TURNS.get(name)) for name in PROTOCOLS])
def test_what_becomes_of_turned_characters_is_as_in_the_paper_and_nothing_to_other_data(name, turns):
    assert PROTOCOLS[name](dataclasses.replace(OWN, dataset="omniglot", split="background"), "maml").turns == turns
    assert PROTOCOLS[name](OWN, "maml").turns == OWN.turns == "classes"


def corners(protocol, dataset, num_tasks=40):
    """Draw tasks of characters with one bright corner, and tell of each class its character and its corner."""
    source = episodes_of(protocol, dataset)
    tasks = draw_tasks(source.sample, jax.random.key(0), source.pool, source.spec, num_tasks, 0)
    seen = []
    for batch in tasks:
        # Which image of which character is written in the middle, which no turn moves.
        middle = np.rint(255 * np.asarray(batch.inputs)[:, :, 1, 1, 0]).astype(int)
        bright = np.asarray(batch.inputs)[:, :, [0, 0, 2, 2], [0, 2, 2, 0], 0].argmax(-1)
        seen.append(
            {
                (task, int(way), middle[task, at] // 10, bright[task, at])
                for task in range(num_tasks)
                for at, way in enumerate(batch.targets[task])
            }
        )
    return seen


def test_turned_classes_are_drawn_as_the_protocol_says():
    images = np.zeros([6, 4, 3, 3, 1], np.uint8)
    images[:, :, 1, 1, 0] = 10 * np.arange(1, 7)[:, None] + np.arange(4)
    images[:, :, 0, 0, 0] = 255
    pool, names = with_rotations(ClassPool(images, np.full(6, 4, np.int32)), [f"A/{index}" for index in range(6)])
    groups = tuple(map(alphabet_of, names))
    dataset = Dataset("omniglot", "classification", {"test": pool}, {"test": names}, {"test": groups})
    own = dataclasses.replace(OWN, dataset="omniglot", ways=4, queries=2)
    turned = {}
    for turns in ("classes", "by chance", "none"):
        support, query = corners(dataclasses.replace(own, turns=turns), dataset)
        # A class is one character, and one turn of it, in support and query alike.
        assert support == query and len(support) == 40 * 4
        turned[turns] = {corner for *_, corner in support}
        characters = [len({row[2] for row in support if row[0] == task}) for task in range(40)]
        # Where turns are classes, two of a task may be of one character.
        assert (min(characters) == 4) == (turns != "classes")
    assert turned == {"classes": {0, 1, 2, 3}, "by chance": {0, 1, 2, 3}, "none": {0}}
    within = dataclasses.replace(own, turns="none", within_alphabet=True)
    assert episodes_of(within, dataset).pool.sizes.tolist() == [6]
    with pytest.raises(ValueError, match="6 classes"):
        episodes_of(dataclasses.replace(own, turns="none", ways=7), dataset)


def test_a_preset_leaves_what_needs_no_change():
    """Without statistics there is nothing to normalise; averages over training are inductive already."""
    for norm in ("none", "running"):
        own = dataclasses.replace(OWN, norm=norm)
        assert PROTOCOLS["default"](own, "maml").norm == PROTOCOLS["omniglot-challenge"](own, "maml").norm == norm
    assert PROTOCOLS["maml"](dataclasses.replace(OWN, norm="none"), "maml").setting == "inductive"
    assert PROTOCOLS["maml"](dataclasses.replace(OWN, norm="running"), "maml").norm == "transductive"


# The tasks and their hash.


def test_the_hash_is_of_the_tasks_however_they_are_drawn(source, pool, monkeypatch):
    key = jax.random.key(1)
    whole = episodes_hash(source, key, 10)
    monkeypatch.setattr(judged_tasks, "_AT_ONCE", 3 * 12 * 258)
    assert episodes_hash(source, key, 10) == whole
    images = np.array(pool.images)
    images[:, :, 8, 8] ^= 1
    others = {
        "key": episodes_hash(source, jax.random.key(2), 10),
        "number": episodes_hash(source, key, 9),
        "pixel": episodes_hash(source._replace(pool=ClassPool(jnp.asarray(images), source.pool.counts)), key, 10),
        "size": episodes_hash(source._replace(spec=EpisodeSpec(3, 2, 3)), key, 10),
    }
    assert len({whole, *others.values()}) == 5
    assert len(whole) == 12 and int(whole, 16) >= 0

    def nudged(*arguments, **options):
        """A product that rounds in another way, as on another machine."""
        episodes = source.sample(*arguments, **options)
        return jax.tree.map(lambda leaf: leaf * 1.000001 if leaf.ndim > 2 else leaf, episodes)

    assert episodes_hash(source._replace(sample=nudged), key, 10) == whole


def test_values_that_are_no_images_are_hashed_as_they_are():
    source, key = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10)), jax.random.key(0)

    def nudged(*arguments, **options):
        episodes = source.sample(*arguments, **options)
        return episodes._replace(query=episodes.query._replace(targets=episodes.query.targets + 1e-6))

    assert episodes_hash(source, key, 4) == episodes_hash(source, key, 4)
    assert episodes_hash(source, key, 4) != episodes_hash(source._replace(sample=nudged), key, 4)


def test_two_checkpoints_meet_the_same_tasks(source):
    """A learner that answers with sums of the images it was shown: each task has a number of its own."""

    def adapt(meta_params, state, support, key, *, num_steps=None):
        return jnp.tensordot(support.targets + 1.0, support.inputs.sum((1, 2, 3)), 1)

    def predict(adapted, batch, key):
        return adapted + batch.inputs.sum() * jnp.ones(batch.weights.shape)

    learner = MetaLearner(lambda key, inputs: ({}, {}), adapt, predict, lambda *arguments: None)
    criterion = Criterion(CRITERIA["regression"].loss, {"seen": lambda outputs, targets, weights: outputs[0]})
    key, seen = jax.random.key(5), []
    for meta_params, chunk in ((jnp.zeros(2), 4), (jnp.ones(2), 3)):
        evaluator = make_evaluator(learner, criterion, task_chunk=chunk)
        seen.append(evaluator(meta_params, {}, source, key, 10).metrics["seen"].per_task)
    np.testing.assert_array_equal(*seen)
    assert len(set(seen[0].tolist())) == 10
    # And the tasks that the hash is of are these.
    drawn = draw_tasks(source.sample, jax.random.split(key)[0], source.pool, source.spec, 10, 0)
    inputs = [np.asarray(batch.inputs) for batch in drawn]
    shown = np.einsum("te,tehwc->t", np.asarray(drawn.support.targets) + 1.0, inputs[0]) + inputs[1].sum((1, 2, 3, 4))
    np.testing.assert_allclose(seen[0], shown, rtol=1e-5)


# What a prediction sees.


@pytest.fixture(scope="module")
def episode(source):
    return jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(3), source.pool, source.spec, 1))


def leaks(learners, episode, *, num_steps=0):
    """Test several learners that begin alike in one program."""

    @jax.jit
    def both(meta_params, state, episode, key):
        return [leak_test(learner, meta_params, state, episode, key, num_steps=num_steps) for learner in learners]

    # Not compiled: what most learners draw is of the same shapes, and is compiled once for all.
    return both(*learners[0].init(jax.random.key(0), episode.support.inputs), episode, jax.random.key(0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_leaks_where_it_says_so_and_nowhere_else(name, episode):
    """After an inner step of those that take any, on a network that normalises."""
    factory, options = ALGORITHMS[name], dict(CASES[name].options)
    if "num_steps" in options:
        options["num_steps"] = 1
    model = flat_model(context=name == "cavia")
    if "norm" not in options_of(factory):
        (leak,) = leaks([factory(model, **options)], episode, num_steps=None)
        assert not leak.transductive, leak
        return
    learners = [factory(model, **options | {"norm": norm}) for norm in ("inductive", "transductive")]
    inductive, transductive = leaks(learners, episode, num_steps=None)
    assert not inductive.transductive and inductive.change <= 1e-5
    assert transductive.transductive and transductive.change > 1e-3


AVERAGED = ["protonet", "matching", "matching-fce", "relation", "siamese", "r2d2", "metaoptnet", "metaoptnet-ridge"]
AVERAGED += ["in-context", "cnp"]


@pytest.mark.parametrize("name", [*AVERAGED, "baseline", "baseline++"])
def test_averages_of_training_leak_nothing(name, episode):
    options = dict(CASES[name].options) | {"norm": "running"}
    (leak,) = leaks([ALGORITHMS[name](flat_model(), **options)], episode, num_steps=None)
    assert not leak.transductive


@pytest.mark.parametrize(("name", "model"), [("relation", "conv4-maps"), ("protonet", "conv4")])
def test_rounding_of_a_new_convolutional_network_is_no_leak(name, model):
    """A batch, and an image alone, are computed in programs of different shapes."""
    learner = ALGORITHMS[name](MODELS[model](5, filters=9), ways=5, norm="inductive")
    drawings = (jax.random.uniform(jax.random.key(0), [30, 28, 28, 1]) < 0.15).astype(jnp.float32)
    episode = Episode(example_batch(drawings[:5], jnp.arange(5)), example_batch(drawings[5:], jnp.arange(25) % 5))
    test = jax.jit(partial(leak_test, learner, episode=episode, key=jax.random.key(2)))
    for seed in range(2):
        leak = test(*jax.jit(learner.init)(jax.random.key(seed), drawings[:5]))
        assert leak.change <= 1e-5 and not leak.transductive


def secretive(spy):
    """A learner without statistics whose outputs pass through `spy(outputs, batch)`."""
    learner = maml(linear(3), inner_optimizer=optax.sgd(0.1), norm="inductive")

    def predict(adapted, batch, key):
        return spy(learner.predict(adapted, batch, key), batch)

    return learner._replace(predict=predict)


def one_each(outputs, batch):
    """Give each class to one image: all others that want it too change their mind."""
    wanted, sure = outputs.argmax(1), jnp.where(batch.weights > 0, outputs.max(1), -jnp.inf)
    surer = (wanted[:, None] == wanted) & (sure[:, None] < sure)
    return jnp.where(surer.any(1)[:, None], -outputs, outputs)


def from_the_middle(outputs, batch):
    """Know how far from the middle an image lies, on either side."""
    places = jnp.arange(outputs.shape[0]) - (outputs.shape[0] - 1) / 2
    return outputs + places[:, None]


SPIES = {
    "standardises its outputs": lambda outputs, batch: (outputs - outputs.mean(0)) / outputs.std(0),
    "looks back": lambda outputs, batch: jnp.cumsum(outputs, 0),
    "looks ahead": lambda outputs, batch: jnp.cumsum(outputs[::-1], 0)[::-1],
    "counts": lambda outputs, batch: outputs * jnp.sqrt(outputs.shape[0]),
    "counts by weight": lambda outputs, batch: outputs * batch.weights.sum(),
    "reads the label": lambda outputs, batch: outputs + jax.nn.one_hot(batch.targets, 3),
    "knows the place": lambda outputs, batch: outputs + jnp.arange(outputs.shape[0])[:, None],
    "knows the place from the middle": from_the_middle,
    "gives each class to one": one_each,
}


@pytest.mark.parametrize("name", SPIES)
def test_a_learner_that_secretly_looks_at_the_others_is_told(name, episode):
    honest, spying = leaks([secretive(lambda outputs, batch: outputs), secretive(SPIES[name])], episode)
    assert not honest.transductive and honest.change < 1e-5
    assert spying.transductive and spying.change > 1e-3


def test_a_place_is_told_of_an_odd_number_of_images_too(episode):
    """One in the middle stays there if the order is turned round."""
    odd = episode._replace(query=jax.tree.map(lambda leaf: leaf[:5], episode.query))
    honest, spying = leaks([secretive(lambda outputs, batch: outputs), secretive(from_the_middle)], odd)
    assert not honest.transductive and spying.transductive


def test_a_leak_to_a_single_image_is_told(episode):
    """Whichever: a class that two images want is lost by the other one, and the surest sees nothing of it."""
    plain = secretive(lambda outputs, batch: outputs)
    key = jax.random.key(0)
    adapted = plain.adapt(*plain.init(key, episode.support.inputs), episode.support, key, num_steps=0)
    outputs = plain.predict(adapted, episode.query, key)
    same = np.flatnonzero(outputs.argmax(1) == outputs.argmax(1)[outputs.max(1).argmax()])
    surest, other = same[np.argsort(-outputs.max(1)[same])][:2]
    rest = [place for place in np.flatnonzero(outputs.argmax(1) != outputs.argmax(1)[surest])][:1]
    for order in ([other, surest, *rest], [surest, other, *rest], [*rest, surest, other]):
        few = episode._replace(query=jax.tree.map(lambda leaf, order=order: leaf[np.array(order)], episode.query))
        honest, spying = leaks([plain, secretive(one_each)], few)
        assert not honest.transductive and spying.transductive


@pytest.mark.parametrize("ways", [2, 4, 5])
def test_a_label_that_is_read_is_told_whatever_the_ways(ways):
    targets = jnp.repeat(jnp.arange(ways), 3)
    batch = example_batch(jax.random.normal(jax.random.key(0), [3 * ways, 4]), targets)
    learner = maml(linear(ways), inner_optimizer=optax.sgd(0.1), norm="inductive")

    def predict(adapted, batch, key):
        return learner.predict(adapted, batch, key) + jax.nn.one_hot(batch.targets, ways)

    honest, reading = leaks([learner, learner._replace(predict=predict)], Episode(batch, batch))
    assert not honest.transductive and reading.transductive


def test_a_logit_of_never_hides_no_leak(episode):
    """More outputs than classes: those without an example are -1e9, beside which all else is small."""
    never = [
        secretive(lambda outputs, batch, spy=spy: spy(outputs, batch).at[:, 2].set(-1e9))
        for spy in (lambda outputs, batch: outputs, SPIES["standardises its outputs"])
    ]
    honest, spying = leaks(never, episode)
    assert not honest.transductive and spying.transductive


def test_what_is_large_is_not_taken_for_a_mask(episode):
    """An adaptation that has nearly diverged: all its outputs are large, and round as those do."""

    def large(outputs, batch):
        # What another order rounds: of the largest, whatever the output itself.
        noise = 1e-7 * (jnp.arange(outputs.shape[0])[:, None] % 3) * jnp.abs(outputs).max()
        return 1e12 * (outputs - outputs[:, :1] + 1e-3 * outputs + noise)

    (leak,) = leaks([secretive(large)], episode)
    assert not leak.transductive and leak.change > 0


def test_copies_are_of_real_images(episode):
    """What looks at how alike the images are, in a task of few real ones among much padding."""
    few = jnp.zeros(12).at[jnp.array([2, 5, 9])].set(1.0)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), episode.query)._replace(weights=few)
    spy = secretive(lambda outputs, batch: outputs + (jnp.ptp(batch.inputs, 0).max() == 0))
    honest, spying = leaks([secretive(lambda outputs, batch: outputs), spy], episode._replace(query=padded))
    assert not honest.transductive and spying.transductive


@pytest.mark.parametrize("norm", ["inductive", "transductive"])
def test_an_ensemble_with_a_class_that_is_missing_hides_no_leak(norm, source):
    """Its masks are not quite the same for all images: -1e9 less the logarithm of a sum."""
    few = EpisodeSpec(3, 2, 4)
    episode = jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(3), source.pool, few, 1))
    model = flat_model()

    def far(*arguments, **options):
        """Features so far apart that their distances reach the steps of a mask."""
        features, state = model.embed(*arguments, **options)
        return 50.0 * features, state

    learner = protonet(model._replace(embed=far), ways=5, norm=norm)
    theta, state = learner.init(jax.random.key(0), episode.support.inputs)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), (theta, state))
    key = jax.random.key(1)
    together = ensemble_learner(learner, "classification")
    adapted = together.adapt(*stacked, episode.support, key, num_steps=None)
    masks = together.predict(adapted, episode.query, key)[:, 4]
    assert (masks < -1e8).all() and masks.max() > masks.min()
    leak = leak_test(together, *stacked, episode, key)
    assert bool(leak.transductive) == (norm == "transductive"), leak


def test_one_query_has_no_others_and_what_is_no_number_is_not_trusted(episode):
    alone = episode._replace(query=jax.tree.map(lambda leaf: leaf[:1], episode.query))
    (leak,) = leaks([secretive(SPIES["standardises its outputs"])], alone)
    assert not leak.transductive
    (leak,) = leaks([secretive(lambda outputs, batch: outputs * jnp.nan)], episode)
    assert leak.transductive and np.isnan(leak.change)


# Differences, ensembles, checkpoints.


def test_the_paired_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    task = rng.normal(size=40)
    first, second = task + 0.1 * rng.normal(size=40), task + 0.1 * rng.normal(size=40) - 0.05
    result, interval = paired_difference(first, second), ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose((result.mean - result.ci95, result.mean + result.ci95), interval, rtol=1e-12)
    np.testing.assert_allclose(result.per_task, first - second)
    with pytest.raises(ValueError, match=r"given shapes \[40\] and \[39\]"):
        paired_difference(first, second[1:])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_an_ensemble_averages_predictions(kind, episode):
    """Probabilities by hand; and an ensemble of one is the one."""

    def predict(adapted, batch, key):
        return batch.inputs.reshape(len(batch.weights), -1) @ adapted

    learner = MetaLearner(lambda *_: None, lambda theta, *_, num_steps: theta, predict, lambda *_: None)
    theta, state, key = jax.random.normal(jax.random.key(0), [3, 256, 3]) / 16, {}, jax.random.key(1)

    def outputs_of(learner, theta):
        adapted = learner.adapt(theta, state, episode.support, key, num_steps=None)
        return learner.predict(adapted, episode.query, key)

    members, together = list(theta), ensemble_learner(learner, kind)
    alone = np.stack([outputs_of(learner, member) for member in members])
    weights = np.exp(alone - alone.max(-1, keepdims=True))
    mean = (weights / weights.sum(-1, keepdims=True)).mean(0) if kind == "classification" else alone.mean(0)
    given = outputs_of(together, theta)
    np.testing.assert_allclose(np.exp(given) if kind == "classification" else given, mean, rtol=1e-5, atol=1e-6)
    one = outputs_of(together, theta[:1])
    np.testing.assert_allclose(jax.nn.softmax(one), jax.nn.softmax(alone[0]), rtol=1e-5)


def test_as_many_of_the_best_checkpoints_are_kept_as_asked(tmp_path):
    for step, score in ((10, 0.5), (20, 0.9), (30, 0.8), (40, 0.1), (50, checkpoint.NOT_VALIDATED)):
        checkpoint.save(tmp_path, train_state(step), score=score, meta={}, keep_best=2)
    assert checkpoint.checkpoint_steps(tmp_path) == [20, 30, 40, 50]
    best = checkpoint.restore_best(tmp_path, train_state(0), 2)
    assert [one.step for one in best] == [int(one.train_state.step) for one in best] == [20, 30]
    shutil.rmtree(tmp_path / "20" / "state")
    assert [(one.step, one.damaged) for one in checkpoint.restore_best(tmp_path, train_state(0), 2)] == [
        (30, (20,)),
        (40, (20,)),
    ]
    with pytest.raises(checkpoint.CheckpointError, match="3 validated checkpoints were asked for.*there are 2"):
        checkpoint.restore_best(tmp_path, train_state(0), 3)


def test_a_run_of_an_earlier_version_kept_one():
    values = to_json(Config())
    del values["keep_best"]
    assert from_json(values) == Config()


@pytest.mark.parametrize(("algorithm", "scale"), [("matching", 1.0), ("matching-fce", 1.0), ("protonet", None)])
def test_a_run_of_an_earlier_version_keeps_its_cosines(algorithm, scale):
    """Matching networks have a factor since then: another loss, and other probabilities."""
    config = with_algorithm(Config(), algorithm)
    values = {name: value for name, value in to_json(config).items() if name != "scale"}
    assert from_json(values).scale == scale and from_json(to_json(config)).scale is None


# What does not fit.


def toy(size, classes=12):
    """Classes of drawings of noise, as a dataset."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, [classes, 20, size, size, 1]).astype(np.uint8)
    pool, names = ClassPool(images, np.full(classes, 20, np.int32)), tuple(map(str, range(classes)))
    parts = ("train", "validation", "test")
    return Dataset(f"toy{size}", "classification", dict.fromkeys(parts, pool), dict.fromkeys(parts, names))


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(DATASETS, "toy28", lambda *, data_dir=None: toy(28))
    monkeypatch.setitem(DATASETS, "toy16", lambda *, data_dir=None: toy(16))


def test_a_protocol_says_which_number_does_not_fit(toys):
    small = Config(dataset="toy16", model="mlp", algorithm="protonet", inner_steps=0, eval_inner_steps=0)
    own = open_workspace(small)
    protocol = protocol_of(own)
    with pytest.raises(ConfigError, match="20 ways were asked for, but split 'test' of toy16 has 12 classes"):
        with_protocol(own, PROTOCOLS["maml-20way"](protocol, "maml"))
    with pytest.raises(ConfigError, match="1 shots \\+ 99 queries were asked for"):
        with_protocol(own, dataclasses.replace(protocol, queries=99))
    # A learner without outputs takes any number of ways.
    assert with_protocol(own, dataclasses.replace(protocol, ways=12)).config.ways == 12
    assert with_protocol(own, protocol).evaluator is own.evaluator
    # The toys' test classes are those of training, as MNIST's are.
    assert seen_classes(own, protocol) is True


def test_a_protocol_may_have_its_own_episodes(source, monkeypatch, tmp_path):
    """Task i is the same whatever the key: a row of a table, and a field of the protocol."""

    def fixed(data_dir):
        def sample(key, pool, spec, num_tasks, *, first_task=0):
            return source.sample(jax.random.key(7), pool, spec, num_tasks, first_task=first_task)

        return source._replace(sample=sample)

    monkeypatch.setitem(protocols.FIXED, "fixed", fixed)
    own = dataclasses.replace(OWN, ways=3, shots=2, queries=2, episodes_from="fixed")
    assert protocol_hash(own) != protocol_hash(dataclasses.replace(own, episodes_from="sampled"))
    with pytest.raises(DataError, match="give their folder by --data-dir"):
        episodes_of(own, toy(16))
    tasks = episodes_of(own, toy(16), tmp_path)
    assert episodes_hash(tasks, jax.random.key(0), 5) == episodes_hash(tasks, jax.random.key(1), 5)


# The command line.


def make_run(out, seeds, **options):
    """A run as training leaves one, but that its checkpoints are initialisations."""
    config = Config(tasks=2, task_chunk=1, steps=2, **options)
    workspace = open_workspace(config)
    write_config(out, config, workspace.dataset)
    for step, seed in enumerate(seeds):
        state = make_state(workspace, jax.random.key(seed))._replace(step=jnp.int32(step))
        checkpoint.save(out / "checkpoints", state, score=-step, meta={}, keep_best=config.keep_best)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three of sinusoids, the last with more shots; two of glyphs, the last with normalisation."""
    folder = tmp_path_factory.mktemp("runs")
    sinusoid = {"dataset": "sinusoid", "model": "mlp", "ways": 1, "eval_episodes": 12, "eval_inner_steps": 1}
    make_run(folder / "one", [0, 1], keep_best=2, **sinusoid)
    make_run(folder / "two", [2], **sinusoid)
    make_run(folder / "shots", [2], **{**sinusoid, "shots": 7})
    glyphs = {"eval_inner_steps": 0, "eval_queries": 2, "eval_episodes": 4}
    make_run(folder / "glyphs", [0], model="mlp", **glyphs)
    make_run(folder / "normalised", [0], norm="transductive", filters=2, **glyphs)
    return folder


def told(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("jaxmeta: ") and len(error.splitlines()) == 1
    return error


def test_a_result_says_how_it_was_got(runs, capsys):
    one, shots = (told(capsys, "evaluate", runs / name) for name in ("one", "shots"))
    assert shots["protocol"] != one["protocol"] and shots["episodes_hash"] != one["episodes_hash"]
    assert (one["norm"], one["setting"]) == ("none", "inductive")
    own = make_ready(open_workspace(read_config(runs / "normalised")), runs / "normalised", Request()).protocol
    assert own.norm == own.measured == "transductive"
    result = told(capsys, "evaluate", runs / "normalised", "--protocol", "default", "--episodes", "4")
    assert (result["norm"], result["setting"], result["queries"], result["episodes"]) == ("inductive",) * 2 + (15, 4)
    assert result["protocol"] != protocol_hash(own) and result["trained_on"] == "glyphs"
    assert result["fingerprint"] not in (result["protocol"], fingerprint(own))
    # Glyphs have one division of their classes only, of which none is met twice; sinusoids have none.
    assert (result["trained_split"], result["seen_classes"], one["seen_classes"]) == (None, False, None)


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ([0.0, 0.0, 0.0], "inductive"),
        ([0.0, 0.0, 0.5], "transductive"),
        ([np.nan, 0.5], "transductive"),
        ([0.0, np.nan, 0.0], "inductive"),
        ([np.nan, np.nan, np.nan], None),
    ],
)
def test_three_tasks_are_looked_at(changes, measured, runs, monkeypatch):
    """One image may be told apart whatever the others are; of what are no numbers nothing is said."""
    own = open_workspace(read_config(runs / "one"))
    state, given, found = make_state(own, jax.random.key(0)), [], iter(changes)

    def test(meta_params, state, episode, key):
        given.append(np.asarray(episode.query.inputs))
        change = next(found)
        return Leak(not change <= 1e-5, change)

    monkeypatch.setattr(judgement, "_leak_tester", lambda *_: test)
    assert judgement.examine(own, state, protocol_of(own)).measured == measured
    assert len(given) == len(changes) == len({inputs.tobytes() for inputs in given})
    # Those that the number is of.
    source, key = own.sources["test"], jax.random.split(judged_tasks.evaluation_key("test"))[0]
    tasks = draw_tasks(source.sample, key, source.pool, source.spec, 3, 0)
    np.testing.assert_array_equal(np.stack(given), tasks.query.inputs[: len(given)])


def test_a_preset_that_does_not_fit_the_run(runs, capsys):
    assert "has 5 outputs, and the protocol asks for 20 ways" in refused(
        capsys, "evaluate", runs / "glyphs", "--protocol", "maml-20way"
    )
    assert "Did you mean 'default'?" in refused(capsys, "evaluate", runs / "glyphs", "--protocol", "defualt")
    assert "regression, without classes" in refused(capsys, "evaluate", runs / "one", "--protocol", "maml")


def test_another_dataset_of_the_same_size(runs, toys, capsys):
    options = ["evaluate", runs / "glyphs", "--episodes", "4", "--dataset"]
    result = told(capsys, *options, "toy28")
    assert (result["dataset"], result["trained_on"], result["seen_classes"]) == ("toy28", "glyphs", None)
    error = refused(capsys, *options, "toy16")
    assert "toy16 has images of 16x16x1, and the run was trained on 28x28x1 (glyphs)" in error
    assert "is regression, and the run was trained on classification" in refused(capsys, *options, "sinusoid")
    assert "Unknown dataset 'glyhps'. Did you mean 'glyphs'?" in refused(capsys, *options, "glyhps")


def test_an_ensemble_on_the_command_line(runs, capsys):
    result = told(capsys, "evaluate", runs / "one", "--ensemble", "2")
    own = told(capsys, "evaluate", runs / "one")
    assert result["ensemble"] == 2 and result["episodes_hash"] == own["episodes_hash"]
    assert result["protocol"] != own["protocol"] and result["mse"] != own["mse"]
    error = refused(capsys, "evaluate", runs / "two", "--ensemble", "2")
    assert "kept the best 1 only. Ask for --ensemble 1, or train a run with --keep-best 2" in error
    assert "leave one of them out" in refused(capsys, "evaluate", runs / "one", "--ensemble", "2", "--latest")
    assert "--ensemble must be at least 1" in refused(capsys, "evaluate", runs / "one", "--ensemble", "0")


def test_two_runs_are_compared_on_the_same_tasks(runs, capsys):
    result = told(capsys, "compare", runs / "one", runs / "two")
    first, second = result["first"], result["second"]
    assert result["metric"] == "mse" and result["paired"] and result["differs"] == {}
    alone = told(capsys, "evaluate", runs / "two")
    assert all(second[key] == alone[key] for key in ("mse", "ci95", "protocol", "episodes_hash", "run"))
    assert all(first[key] == second[key] for key in ("protocol", "episodes_hash")) and first["mse"] != second["mse"]
    assert result["difference"] == pytest.approx(first["mse"] - second["mse"])
    per_task = []
    for name in ("one", "two"):
        ready = make_ready(open_run(runs / name, Request()), runs / name, Request())
        per_task.append(judged(ready.workspace, ready.train_state, ready.protocol).metrics["mse"].per_task)
    interval = ttest_rel(*per_task).confidence_interval()
    assert result["difference_ci95"] == pytest.approx((interval.high - interval.low) / 2, rel=1e-4)
    # Which another order of the tasks would change.
    mispaired = ttest_rel(per_task[0], np.roll(per_task[1], 1)).confidence_interval()
    assert result["difference_ci95"] != pytest.approx((mispaired.high - mispaired.low) / 2, rel=1e-3)


def test_runs_that_are_judged_differently_are_refused_but_for_anyway(runs, capsys):
    pair = runs / "one", runs / "shots"
    error = refused(capsys, "compare", *pair)
    assert "are judged differently (shots 1 and 7, train_shots 1 and 7)" in error
    assert main(["compare", *map(str, pair), "--anyway", "--episodes", "5"]) == 0
    out, error = capsys.readouterr()
    result = json.loads(out)
    assert (
        result["differs"] == {"shots": [1, 7], "train_shots": [1, 7]}
        and not result["paired"]
        and "met different tasks" in error
    )
    assert result["difference"] is None and result["first"]["mse"] > 0 and result["second"]["episodes"] == 5


def test_learners_that_differ_are_compared_if_it_is_asked_for(runs, tmp_path, capsys):
    """They meet the same tasks, so that the difference is paired."""
    other = tmp_path / "other"
    shutil.copytree(runs / "one", other)
    path = other / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eval_inner_steps": 3}))
    error = refused(capsys, "compare", runs / "one", other)
    assert "the learners are not of one kind (eval_inner_steps" in error and "--anyway" in error
    result = told(capsys, "compare", runs / "one", other, "--anyway")
    assert result["paired"] and set(result["differs"]) == {"eval_inner_steps"} and result["difference"] != 0
    assert result["first"]["protocol"] == result["second"]["protocol"]
    assert result["first"]["fingerprint"] != result["second"]["fingerprint"]


def test_runs_that_cannot_be_compared(runs, tmp_path, capsys):
    assert "There is no run in nowhere" in refused(capsys, "compare", runs / "one", "nowhere")
    other_ways = refused(capsys, "compare", runs / "glyphs", runs / "normalised", "--protocol", "maml-20way")
    assert f"{runs / 'glyphs'}: The run's head has 5 outputs" in other_ways
    unknown = refused(capsys, "compare", runs / "glyphs", runs / "normalised", "--protocol", "defualt")
    assert unknown.startswith("jaxmeta: Unknown protocol 'defualt'")
    damaged = tmp_path / "damaged"
    shutil.copytree(runs / "one", damaged)
    for state in damaged.glob("checkpoints/*/state"):
        shutil.rmtree(state)
    assert "are damaged" in refused(capsys, "compare", damaged, runs / "two")
    (damaged / "config.json").write_text("{")
    assert "config.json is damaged" in refused(capsys, "compare", damaged, runs / "two")
    assert "--episodes must be at least 2" in refused(capsys, "compare", damaged, damaged, "--episodes", "1")
