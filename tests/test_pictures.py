"""The picture of a task: which classes it names, and that it is there before training."""

import dataclasses
import re

import jax
import matplotlib
import numpy as np
import pytest

from jaxmeta.base import Batch, Episode
from jaxmeta.config import Config
from jaxmeta.plots import BAD, GOOD, plot_image_episode
from jaxmeta.workspace import classes_of_task, draw, one_task, open_workspace

SMALL = Config(model="mlp", tasks=2, task_chunk=1, steps=2, eval_queries=2)


@pytest.mark.parametrize(
    ("change", "pool"),
    [({}, "device"), ({"episodes": "varying", "shots": 3}, "host"), ({"within_alphabet": True}, "device")],
    ids=["fixed", "varying", "within an alphabet"],
)
def test_the_classes_that_are_named_are_those_of_the_images(change, pool):
    workspace = open_workspace(dataclasses.replace(SMALL, **change), pool=pool)
    key = jax.random.key(5)
    names, episode = classes_of_task(workspace, "test", key), one_task(workspace.sources["test"], key)
    images, of_class = workspace.dataset.splits["test"].images, workspace.dataset.class_names["test"]
    for batch in episode:
        real = np.asarray(batch.weights) > 0
        assert len(names) == np.asarray(batch.targets)[real].max() + 1
        for image, target in zip(np.asarray(batch.inputs)[real], np.asarray(batch.targets)[real], strict=True):
            pixels = np.rint(255 * image).astype(np.uint8)
            assert (images[of_class.index(names[target])] == pixels).all((1, 2, 3)).any()
    assert len(set(names)) == len(names)


def test_regression_has_no_classes():
    assert (
        classes_of_task(open_workspace(Config(dataset="sinusoid", model="mlp", ways=1)), "test", jax.random.key(0))
        == []
    )


def test_a_first_picture_stays_until_there_is_another(tmp_path):
    workspace = open_workspace(SMALL)
    draw(workspace, tmp_path)
    first = (tmp_path / "episode.png").read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 5000 and len(list(tmp_path.iterdir())) == 1
    # A run that goes on keeps what it has, which may be the last one.
    (tmp_path / "episode.png").write_bytes(b"the last")
    draw(workspace, tmp_path)
    assert (tmp_path / "episode.png").read_bytes() == b"the last"


def test_what_is_written_in_a_picture(tmp_path):
    """Each class by its name, and above each query image what it was taken for, in the colour of right or wrong."""
    images, targets = np.zeros([3, 8, 8, 1]), np.arange(3)
    episode = Episode(*[Batch(images, targets, np.ones(3))] * 2)
    names = ["Greek/character01/rot090", "$dog$"]

    def written(outputs):
        # As an SVG with its text as text.
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            plot_image_episode(tmp_path / "task.svg", episode, outputs, "a task", names)
        return (tmp_path / "task.svg").read_text()

    def colours(text):
        return re.findall(r"fill: (#\w+)[^>]*>([^<]*)</text>", text)

    first = written(None)
    for text in ("a task", "Greek/character01/", "rot090", "$dog$", "class 2", "query"):
        assert f">{text}</text>" in first
    assert not {GOOD, BAD} & {colour for colour, _ in colours(first)}
    # Right, wrong, right; of a long name the end.
    last = colours(written(np.eye(3)[[0, 0, 2]]))
    assert [text for colour, text in last if colour == GOOD] == ["...character01/", "rot090", "class 2"]
    assert [text for colour, text in last if colour == BAD] == ["...character01/", "rot090"]
