"""What is asked for of a run that is judged: what fits it, what it may not have seen, and where the data lies."""

import dataclasses
import shutil

import numpy as np
import pytest
from test_challenge import members, write  # noqa: F401  (a fixture)
from test_protocols import make_run, refused, told

from jaxmeta import ALGORITHMS, PROTOCOLS, ClassPool, Dataset, Protocol
from jaxmeta.candidate import Request, open_run, with_protocol
from jaxmeta.config import Config, ConfigError
from jaxmeta.data.archive_pools import photographs
from jaxmeta.data.cache import write_dataset
from jaxmeta.data.episodes import sample_episodes
from jaxmeta.judgement import protocol_of, source_of, tasks_hash
from jaxmeta.parts import unusual_size
from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.request import requested
from jaxmeta.workspace import open_workspace, state_like

NO_LOOP = {"inner_steps": 0, "eval_inner_steps": 0}
OWN = Protocol("omniglot", "background", "test", 20, 1, 15, 0, 0, "running", 1000)
CONFIG = Config(dataset="omniglot", split="background", algorithm="protonet", norm="running", ways=20, **NO_LOOP)
CHALLENGE = Request(preset="omniglot-challenge")


def test_the_challenge_is_refused_to_runs_that_have_seen_its_alphabets():
    for split in ("background", "small1", "small2"):
        protocol = requested(dataclasses.replace(OWN, split=split), CONFIG, CHALLENGE)
        assert (protocol.trained_on, protocol.trained_split) == ("omniglot", split)
    for split in ("random", "vinyals"):
        with pytest.raises(ConfigError, match=f"split '{split}' trains on.*--split background or small1 or small2"):
            requested(dataclasses.replace(OWN, split=split), CONFIG, CHALLENGE)
    # Another dataset has other classes; and a protocol made by hand is as strict.
    assert requested(dataclasses.replace(OWN, dataset="glyphs"), CONFIG, CHALLENGE).trained_on == "glyphs"
    with pytest.raises(ValueError, match="split 'random' trains on"):
        dataclasses.replace(PROTOCOLS["omniglot-challenge"](OWN, "protonet"), trained_split="random")


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({"episodes": 100}, "--episodes 100"),
        ({"episodes": 10}, "--episodes 10"),
        ({"part": "train"}, "--split train"),
        ({"dataset": "mnist"}, "--dataset mnist"),
        ({"ways": 5}, "--ways 5"),
        ({"shots": 5}, "--shots 5"),
    ],
)
def test_fixed_tasks_are_what_they_are(fields, left_out):
    with pytest.raises(ConfigError, match=f"tasks of its own \\(20 of 20 ways and 1 shots\\): leave out {left_out}"):
        requested(OWN, CONFIG, CHALLENGE._replace(**fields))
    assert requested(OWN, CONFIG, CHALLENGE._replace(episodes=20, ways=20)).episodes == 20


def test_inner_steps_of_a_learner_without_a_loop_are_refused():
    with pytest.raises(ConfigError, match="protonet has no inner loop: leave out --eval-inner-steps 7"):
        requested(OWN, CONFIG, Request(inner_steps=7))
    # What a paper says of inner steps is nothing to it either.
    assert requested(OWN, CONFIG, Request(inner_steps=0)).eval_inner_steps == 0
    assert requested(OWN, CONFIG, Request("maml")).eval_inner_steps == 0


@pytest.mark.parametrize(
    ("preset", "algorithm", "queries"),
    [
        ("omniglot-maml-5w1s", "maml", 1),
        ("omniglot-maml-5w1s", "protonet", 5),
        ("omniglot-maml-5w1s", "reptile", 9),
        ("omniglot-maml-5w1s", "baseline", 15),
        ("omniglot-maml-5w5s", "baseline", 15),  # All that a class has.
        ("glyphs-maml-5w1s", "relation", 5),
        ("mini-imagenet-maml-5w1s", "protonet", 15),  # The dataset's, which is more.
        ("faces-maml-5w1s", "protonet", 1),  # A face may have two images.
    ],
)
def test_an_algorithm_is_trained_with_the_queries_of_its_paper(preset, algorithm, queries):
    """What MAML needs is not what others do."""
    assert with_algorithm(PRESETS[preset], algorithm).queries == queries


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_the_kin_of_maml_begin_transductive(algorithm):
    """As their papers have it on Omniglot; a learner that puts a head on features sees no other query."""
    adapts = {"maml", "fomaml", "imaml", "reptile", "meta-sgd", "anil", "boil", "cavia", "maml++", "meta-curvature"}
    norm = with_algorithm(PRESETS["omniglot-maml-5w1s"], algorithm).norm
    expected = "transductive" if algorithm in {*adapts, "nearest"} else "inductive"
    assert norm == ("running" if algorithm.startswith("baseline") else expected)


def test_ways_and_shots_are_asked_for_beside_a_preset():
    protocol = requested(OWN, CONFIG, Request("maml-20way", ways=5, shots=3))
    assert (protocol.ways, protocol.shots, protocol.episodes) == (5, 3, 600)


@pytest.mark.parametrize(
    ("algorithm", "fits", "message"),
    [
        ("protonet", (3, 7), None),
        ("cnp", (3,), "cnp was made for 5 ways at most, and 7 are asked for"),
        ("maml", (), "head has 5 outputs, and the protocol asks for 7 ways"),
    ],
)
def test_a_learner_is_judged_with_as_many_classes_as_it_can_tell_apart(algorithm, fits, message):
    """A network whose shape depends on the most classes in a task keeps that of its training."""
    loop = {} if algorithm == "maml" else NO_LOOP
    own = open_workspace(Config(algorithm=algorithm, model="mlp", task_chunk=1, **loop))
    protocol = protocol_of(own)
    for ways in fits:
        workspace = with_protocol(own, dataclasses.replace(protocol, ways=ways, shots=2))
        assert workspace.config.ways == ways and workspace.sources["test"].spec[:2] == (ways, 2)
        assert state_like(workspace).meta_params == state_like(own).meta_params
    if message:
        with pytest.raises(ConfigError, match=message):
            with_protocol(own, dataclasses.replace(protocol, ways=7))
    with pytest.raises(ConfigError, match="--ways must be at least 2"):
        with_protocol(own, dataclasses.replace(protocol, ways=1))


def test_a_papers_tasks_are_of_all_alphabets_whatever_the_run_did():
    within, across = (
        open_workspace(Config(model="mlp", within_alphabet=within, task_chunk=1, eval_episodes=3, eval_queries=2))
        for within in (True, False)
    )
    protocols = [
        dataclasses.replace(PROTOCOLS["maml"](protocol_of(workspace), "maml"), episodes=3)
        for workspace in (within, across)
    ]
    told = [dataclasses.replace(protocol, train_within_alphabet=None) for protocol in protocols]
    assert told[0] == told[1] and PROTOCOLS["default"](protocol_of(within), "maml").within_alphabet
    judged = with_protocol(within, protocols[0])
    assert source_of(judged, protocols[0]).sample is sample_episodes and not judged.config.within_alphabet
    assert tasks_hash(judged, protocols[0]) == tasks_hash(across, protocols[0])
    assert tasks_hash(within, protocol_of(within)) != tasks_hash(across, protocol_of(across))


def test_what_a_classifier_of_all_classes_was_trained_on_is_said():
    tasks = protocol_of(open_workspace(Config(model="mlp", task_chunk=1, queries=2)))
    assert (tasks.train_episodes_from, tasks.train_ways, tasks.train_queries) == ("sampled", 5, 2)
    config = dataclasses.replace(with_algorithm(Config(), "baseline"), model="mlp", task_chunk=1)
    assert protocol_of(open_workspace(config)).train_episodes_from == "classification"


def test_images_of_the_usual_size_are_of_one_protocol():
    """Whether it was asked for or not, and whatever the run was trained on."""
    usual, other = (photographs(size, 84) for size in (84, 28))
    for name, recipe, size in (
        ("cub", usual, None),
        ("cub", other, 28),
        ("mini_imagenet", usual, None),
        ("folder:photos", usual, 84),
        # Theirs is fixed.
        ("mnist", other, None),
        ("glyphs", other, None),
        ("sinusoid", None, None),
    ):
        assert unusual_size(Config(dataset=name), recipe) == size, name
    own = dataclasses.replace(OWN, image_size=84, dataset="cub")
    assert PROTOCOLS["omniglot-challenge"](own, "protonet").image_size is None


@pytest.mark.parametrize(("protocol", "turns", "classes"), [("reptile", "none", 5), ("maml", "by chance", 5)])
def test_characters_of_another_runs_choice_are_turned_as_its_paper_says(protocol, turns, classes, omniglot, tmp_path):
    """The run knows the names of its own classes, and the tasks are drawn of those that are judged."""
    config = Config(model="mlp", task_chunk=1, eval_queries=1, eval_episodes=3, ways=5)
    own = open_workspace(config)
    request = Request(preset=protocol, dataset="omniglot", data_dir=omniglot, episodes=3)
    asked = requested(protocol_of(own), config, request)
    assert asked.turns == turns
    source = with_protocol(own, asked, data_dir=omniglot).sources["test"]
    assert len(source.pool.counts) == classes
    as_classes = dataclasses.replace(asked, turns="classes")
    assert len(with_protocol(own, as_classes, data_dir=omniglot).sources["test"].pool.counts) == 4 * classes


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory):
    """A prepared pool of five characters of each of a few alphabets."""
    folder = tmp_path_factory.mktemp("omniglot")
    alphabets = ("Balinese", "Early_Aramaic", "Greek", "Latin", "Tengwar")
    names = tuple(f"{alphabet}/character{number:02d}" for alphabet in alphabets for number in range(1, 6))
    images = np.random.default_rng(0).integers(0, 256, [len(names), 4, 28, 28, 1], np.uint8)
    pool = ClassPool(images, np.full(len(names), 4, np.int32))
    write_dataset(folder / "omniglot-1.npz", Dataset("omniglot", "classification", {"all": pool}, {"all": names}))
    return folder


def test_the_challenge_needs_the_runs_and_not_the_data_of_training(omniglot, members, tmp_path, capsys):  # noqa: F811
    """Two runs meet the 20 tasks; the data that one was trained on is gone."""
    proto = {"algorithm": "protonet", "model": "mlp", "eval_queries": 1, "queries": 1, "ways": 3, **NO_LOOP}
    data = {"dataset": "omniglot", "split": "small1", "within_alphabet": True}
    shutil.copytree(omniglot, tmp_path / "data")
    make_run(tmp_path / "small1", [0], data_dir=tmp_path / "data", **data, **proto)
    make_run(tmp_path / "glyphs", [1], **proto)
    shutil.rmtree(tmp_path / "data")
    runs = write(tmp_path, members)
    pair = tmp_path / "small1", tmp_path / "glyphs"
    asked = "compare", *pair, "--protocol", "omniglot-challenge", "--data-dir", runs
    assert "trained_on omniglot and glyphs" in refused(capsys, *asked)
    result = told(capsys, *asked, "--anyway")
    first, second = result["first"], result["second"]
    # The question is that of the recorded numbers; what was trained on is told beside it.
    assert result["paired"] and first["protocol"] == second["protocol"] == "f03a881b721e"
    assert first["fingerprint"] != second["fingerprint"]
    data = {"trained_on": ["omniglot", "glyphs"], "trained_split": ["small1", "vinyals"]}
    assert result["differs"] == {**data, "train_within_alphabet": [True, False]}
    assert (first["trained_on"], first["trained_split"], first["seen_classes"]) == ("omniglot", "small1", False)
    assert (second["trained_on"], second["trained_split"], second["seen_classes"]) == ("glyphs", None, None)
    assert first["error"] == pytest.approx(1 - first["accuracy"]) and first["episodes"] == 20
    # The archive is looked for where the run was trained from, too.
    alone = "evaluate", pair[0], "--protocol", "omniglot-challenge"
    assert "give their folder by --data-dir" in refused(capsys, *alone)
    write(shutil.copytree(omniglot, tmp_path / "data"), members)
    assert told(capsys, *alone)["accuracy"] == first["accuracy"]
    shutil.rmtree(tmp_path / "data")
    # Its own tasks cannot be drawn of data that is gone; another dataset is judged where that is now.
    assert "data_dir" in refused(capsys, "evaluate", pair[0])
    request = Request(dataset="omniglot", data_dir=omniglot)
    assert open_run(pair[0], request).config.data_dir == omniglot
    workspace = open_run(pair[1], request)
    assert workspace.dataset.name == "glyphs" and not workspace.dataset.splits["train"].images.any()


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        (["--algorithm", "fomaml", "--norm", "running"], "jaxmeta: --algorithm fomaml: "),
        (["--dataset", "sinusoid", "--metagrad", "implicit"], "jaxmeta: --algorithm maml --metagrad implicit: "),
    ],
)
def test_an_error_names_the_algorithm_and_no_strategy_that_it_has_not(options, begin, tmp_path, capsys):
    error = refused(capsys, "train", *options, "--out", tmp_path / "run")
    assert error.startswith(begin)
