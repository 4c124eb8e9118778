"""How the papers judge, by name: a preset turns the own protocol of a run into the paper's.

What a preset does not name stays as the run has it: the dataset, its split and part, the seed, and, where nothing else
is said, also ways, shots, queries and checkpoints. So a run of five shots is judged with five. Inner steps are those of
the paper for its own algorithms only: 50 steps of Reptile are no number of steps for others. The classes of a task are
drawn from all alphabets, as in the papers; only "default" keeps what the run does. Numbers are those for Omniglot, or
those for mini-ImageNet if photographs are judged.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxmeta.protocols import CHALLENGE, SAMPLED, TURNED_BY_CHANCE, TURNED_CLASSES, UPRIGHT, Protocol

# What is judged with a paper's numbers for Omniglot; all else with those for mini-ImageNet.
DRAWINGS = ("omniglot", "glyphs", "mnist", "quickdraw")

# `(own, algorithm) -> Protocol`: of a run's own protocol, and the row of `ALGORITHMS` that it was trained by.
Preset = Callable[[Protocol, str], Protocol]


def _preset(
    *,
    queries: int | None = None,
    steps: int | None = None,
    algorithms: tuple[str, ...] = (),
    turns: str = TURNED_CLASSES,
    of_photographs: Mapping[str, int] = types.MappingProxyType({}),
    **fields: Any,
) -> Preset:
    """Make a `Preset`; with as many queries as the run has shots, where none are given.

    `of_photographs` takes the place of `queries`, `steps` and `episodes` where the paper has other numbers for
    mini-ImageNet than for Omniglot.
    """

    def change(own: Protocol, algorithm: str) -> Protocol:
        sizes = {"queries": own.shots if queries is None else queries, "episodes_from": SAMPLED, "steps": steps}
        changes = {**sizes, **fields}
        if own.dataset not in DRAWINGS:
            changes |= of_photographs
        of_paper = changes.pop("steps")
        # A learner without statistics has nothing to change, and one that keeps averages is inductive already.
        if own.norm == "none" or (changes.get("norm"), own.norm) == ("inductive", "running"):
            changes.pop("norm", None)
        if of_paper is not None and algorithm in algorithms:
            changes["eval_inner_steps"] = of_paper
        # The classes of other datasets are not turned.
        if own.dataset == "omniglot":
            changes["turns"] = turns
        return dataclasses.replace(own, **changes)

    return change


def _maml_plus_plus(own: Protocol, algorithm: str) -> Protocol:
    steps = {"steps": own.train_inner_steps, "algorithms": ("maml++",)}
    fixed = {**_TRANSDUCTIVE, "turns": UPRIGHT, "episodes": 600, "ensemble": 5}
    return _preset(queries=own.queries, **fixed, **steps)(own, algorithm)


def _challenge(own: Protocol, algorithm: str) -> Protocol:
    del algorithm
    trained = {"trained_on": own.trained_on or own.dataset, "trained_split": own.trained_split or own.split}
    fixed = {"dataset": CHALLENGE, "split": "official", "part": "test", "episodes_from": CHALLENGE, "ensemble": 1}
    fixed["image_size"] = None
    size = {"ways": 20, "shots": 1, "queries": 1, "episodes": 20, "within_alphabet": True}
    # Each of the 20 drawings is judged as people judge it, without a look at the other 19.
    norm = own.norm if own.norm in ("none", "running") else "inductive"
    return dataclasses.replace(own, **trained, **fixed, **size, norm=norm)


_TRANSDUCTIVE: dict[str, Any] = {"norm": "transductive", "within_alphabet": False}
_INDUCTIVE: dict[str, Any] = {"norm": "inductive", "within_alphabet": False}

_MAML: dict[str, Any] = {**_TRANSDUCTIVE, "turns": TURNED_BY_CHANCE, "algorithms": ("maml", "fomaml")}
_MAML["of_photographs"] = {"queries": 15, "steps": 10}
_REPTILE: dict[str, Any] = {"turns": UPRIGHT, "algorithms": ("reptile",), "steps": 50}

PROTOCOLS: dict[str, Preset] = {
    # This library's own: nothing is seen of the other queries.
    "default": _preset(queries=15, norm="inductive", episodes=1000, ensemble=1),
    # Finn et al. 2017, arXiv 1703.03400, Omniglot: 600 tasks, as many query images as shots, be it one or five; each
    # class of a task is a character, turned by chance. Photographs: 15 query images and ten steps.
    "maml": _preset(**_MAML, ways=5, steps=3, episodes=600, ensemble=1),
    "maml-20way": _preset(**_MAML, ways=20, steps=5, episodes=600, ensemble=1),
    # Antoniou et al. 2019, arXiv 1810.09502: the five best of validation together; in the authors' code characters are
    # turned in training alone.
    "maml++": _maml_plus_plus,
    # Snell et al. 2017, arXiv 1703.05175, Omniglot: 1000 tasks, 15 query images in the authors' code; turned characters
    # are classes of their own. Photographs: 600 tasks.
    "protonet": _preset(queries=15, **_INDUCTIVE, episodes=1000, ensemble=1, of_photographs={"episodes": 600}),
    # Nichol et al. 2018, arXiv 1803.02999: both forms, 10000 tasks in the authors' code; upright characters.
    "reptile": _preset(queries=1, **_TRANSDUCTIVE, **_REPTILE, episodes=10000, ensemble=1),
    "reptile-inductive": _preset(queries=1, **_INDUCTIVE, **_REPTILE, episodes=10000, ensemble=1),
    # Lake et al. 2015, Science 350(6266): the 20 official runs. Error is 1 - accuracy; people err on 4.5 %.
    "omniglot-challenge": _challenge,
}
