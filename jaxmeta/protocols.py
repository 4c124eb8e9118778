"""Protocols: everything that says how a number was got, as a value, and the tasks it was got on, as a hash.

A field is of the judging (which tasks, what is shown of them, how the values become one number) or of the learner
that is judged (what it was trained on, and the steps that it takes). The fingerprint covers the first: two learners
with one fingerprint met the same tasks under the same rules, whatever is inside them, and may be compared.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmeta.base import Key, MetaLearner
from jaxmeta.data import DataError, Dataset, EpisodeSpec, TaskSource, challenge_source, task_source
from jaxmeta.evaluate import draw_tasks

# Every run is judged on the same tasks, whatever seed it was trained with.
EVALUATION_SEED = 20240229
PARTS = ("train", "validation", "test")
INTERVALS = ("t-95 over tasks",)
CHECKPOINTS = ("best", "latest")
# Where episodes come from: drawn of the dataset's classes, or fixed ones of their own.
DRAWN = SAMPLED, VARYING = "sampled", "varying"
FIXED: dict[str, Callable[[Path], TaskSource]] = {"omniglot-challenge": challenge_source}
# Of the learner, not of the judging. The inner steps are here, since nobody who judges a learner by its predictions
# needs to know how many gradient steps it takes, or whether any; and the normalisation, of which the judge needs to
# know only whether a prediction sees the other queries: the setting.
OF_THE_LEARNER = frozenset({"trained_on", "train_inner_steps", "eval_inner_steps", "norm", "measured"})
_LEAST = {"ways": 1, "shots": 1, "queries": 1, "episodes": 2, "ensemble": 1, "eval_inner_steps": 0, "seed": 0}
# Numbers of a task source that are drawn and hashed at once.
_AT_ONCE = 2**23


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a learner was judged.

    Attributes:
      dataset: What the tasks are made of.
      split: Which division of its classes.
      part: "test", "validation" or "train".
      ways: Classes in a task.
      shots: Support examples of each class.
      queries: Query examples of each class.
      train_inner_steps: Inner steps in training. Of the learner.
      eval_inner_steps: Inner steps in evaluation. Of the learner.
      norm: Whose statistics normalise the query set; "none" if nothing is normalised. Of the learner.
      episodes: Number of tasks.
      ensemble: How many of the best checkpoints predict together.
      interval: What the interval is.
      seed: What the tasks are drawn from.
      episodes_from: "sampled"; "varying", see `sample_varying`; or the name of fixed episodes: a row of `FIXED`.
      checkpoint: "best" by validation, or "latest".
      within_alphabet: Whether the classes of a task are of one alphabet.
      trained_on: The dataset of training; "" if it is the one that is judged. Of the learner.
      measured: The setting that the leak test found; None before. Of the learner: `setting` is in the fingerprint.
    """

    dataset: str
    split: str
    part: str
    ways: int
    shots: int
    queries: int
    train_inner_steps: int
    eval_inner_steps: int
    norm: str
    episodes: int
    ensemble: int = 1
    interval: str = INTERVALS[0]
    seed: int = EVALUATION_SEED
    episodes_from: str = "sampled"
    checkpoint: str = "best"
    within_alphabet: bool = False
    trained_on: str = ""
    measured: str | None = None

    def __post_init__(self):
        """Refuse a protocol that nothing can be judged by."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"A protocol needs {name} of at least {least}; given {getattr(self, name)}.")
        known = {"part": PARTS, "interval": INTERVALS, "checkpoint": CHECKPOINTS, "episodes_from": (*DRAWN, *FIXED)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                listed = " or ".join(map(repr, values))
                raise ValueError(f"A protocol needs {name}={listed}; given {getattr(self, name)!r}.")

    @property
    def setting(self) -> str:
        """Whether a prediction sees the other query images: as was measured, else as the normalisation says."""
        return self.measured or ("transductive" if self.norm == "transductive" else "inductive")


def judged_by(protocol: Protocol) -> dict[str, Any]:
    """Give what the fingerprint covers: the fields of the judging, and the setting, by name.

    Args:
      protocol: The protocol.

    Returns:
      Plain values.

    Example:
      >>> own = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "transductive", 1000)
      >>> judged_by(own)["setting"], "norm" in judged_by(own)
      ('transductive', False)
    """
    fields = {name: value for name, value in vars(protocol).items() if name not in OF_THE_LEARNER}
    return {**fields, "setting": protocol.setting}


def fingerprint(protocol: Protocol) -> str:
    """Hash what decides the judged tasks and how they are judged: SHA-256 of canonical JSON, 12 hex digits.

    Args:
      protocol: The protocol.

    Returns:
      12 hex digits; the same for learners that are judged in the same way (see `OF_THE_LEARNER`).

    Example:
      >>> own = Protocol("glyphs", "vinyals", "test", 5, 1, 15, 1, 3, "inductive", 1000)
      >>> fingerprint(own) == fingerprint(dataclasses.replace(own, eval_inner_steps=10))
      True
      >>> fingerprint(own) == fingerprint(dataclasses.replace(own, norm="transductive"))
      False
    """
    text = json.dumps(judged_by(protocol), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """Tell in what two protocols differ that the fingerprint covers, with both values."""
    one, other = judged_by(first), judged_by(second)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def evaluation_key(part: str, seed: int = EVALUATION_SEED) -> Key:
    """Give the key of the evaluation tasks of a part."""
    return jax.random.fold_in(jax.random.key(seed), PARTS.index(part))


def episodes_of(protocol: Protocol, dataset: Dataset, data_dir: Path | None = None, pool: str = "device") -> TaskSource:
    """Make the source of a protocol's tasks.

    Args:
      protocol: The protocol.
      dataset: What tasks are drawn of.
      data_dir: Where fixed episodes are.
      pool: Where the images are kept, "device" or "host".

    Returns:
      A `TaskSource`.

    Raises:
      ValueError: if the data cannot serve them; says which number does not fit.
      DataError: if fixed episodes are missing or damaged.
    """
    if protocol.episodes_from in DRAWN:
        spec = EpisodeSpec(protocol.ways, protocol.shots, protocol.queries)
        within, varying = protocol.within_alphabet, protocol.episodes_from == VARYING
        return task_source(dataset, protocol.part, spec, within_group=within, varying=varying, pool=pool)
    if data_dir is None:
        raise DataError(f"The tasks of {protocol.episodes_from} are not downloaded: give their folder by --data-dir.")
    return FIXED[protocol.episodes_from](data_dir)


def episodes_hash(source: TaskSource, key: Key, num_tasks: int) -> str:
    """Hash the tasks that an evaluator meets: SHA-256 over inputs, targets and weights, 12 hex digits.

    Images are brought back to the bytes that they were made of, so that the hash does not depend on the last
    bit of a product; other inputs are hashed as they are.

    Args:
      source: Where tasks come from, with the size of the evaluation's episodes.
      key: That of the evaluator.
      num_tasks: Number of tasks.

    Returns:
      12 hex digits. One changed pixel gives others; in how many parts the tasks were drawn does not.

    Example:
      >>> from jaxmeta import load_sinusoid
      >>> source = task_source(load_sinusoid(), "test", EpisodeSpec(1, 5, 10))
      >>> len(episodes_hash(source, jax.random.key(0), 20))
      12
    """
    # As the evaluator does: the other key is for the learner.
    key = jax.random.split(key)[0]
    shapes = jax.eval_shape(lambda: source.sample(key, source.pool, source.spec, 1))
    at_once = max(1, min(num_tasks, _AT_ONCE // sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))))
    of_bytes = getattr(getattr(source.pool, "images", None), "dtype", None) == np.uint8
    described = [[leaf.dtype.name, *leaf.shape[1:]] for leaf in jax.tree.leaves(shapes)]
    digest = hashlib.sha256(json.dumps(described).encode())
    for first in range(0, num_tasks, at_once):
        episodes = jax.device_get(draw_tasks(source.sample, key, source.pool, source.spec, at_once, first))
        if of_bytes:
            episodes = episodes._replace(support=_as_bytes(episodes.support), query=_as_bytes(episodes.query))
        leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(episodes)]
        for task in range(min(at_once, num_tasks - first)):
            for leaf in leaves:
                digest.update(leaf[task])
    return digest.hexdigest()[:12]


def ensemble_learner(learner: MetaLearner, kind: str) -> MetaLearner:
    """Let several trained learners predict together: each adapts by itself, and their predictions are averaged.

        p(y | x) = 1 / K sum_k softmax(outputs_k(x))_y;  in regression the mean of the outputs

    Args:
      learner: The algorithm, of which there are K sets of meta-parameters.
      kind: "classification" or "regression".

    Returns:
      A `MetaLearner` whose meta-parameters and state have a leading axis `[K]`. Its outputs are
      log-probabilities, so that every loss and metric of logits serves. For judging, not for training.

    Raises:
      ValueError: for another kind.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxmeta import linear, maml
      >>> learner = maml(linear(3), inner_optimizer=optax.sgd(0.1))
      >>> keys, inputs = jax.random.split(jax.random.key(0), 4), jnp.ones([2, 8])
      >>> theta, state = jax.vmap(lambda key: learner.init(key, inputs))(keys)
      >>> theta["head"]["kernel"].shape, ensemble_learner(learner, "classification").adapt is None
      ((4, 8, 3), False)

    Source: Antoniou, Edwards and Storkey, 2019, arXiv 1810.09502, section 5: the five best of validation.
    """
    if kind not in ("classification", "regression"):
        raise ValueError(f"ensemble_learner needs kind='classification' or 'regression'; given {kind!r}.")

    def adapt(meta_params, state, support, key, *, num_steps=None):
        # One after the other: as much memory as one of them, and the same arithmetic as alone.
        return jax.lax.map(lambda one: learner.adapt(*one, support, key, num_steps=num_steps), (meta_params, state))

    def predict(adapted, batch, key):
        outputs = jax.lax.map(lambda one: learner.predict(one, batch, key), adapted)
        if kind == "regression":
            return outputs.mean(0)
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0) - math.log(outputs.shape[0])

    return learner._replace(adapt=adapt, predict=predict, unroll=None)


def _as_bytes(batch):
    return batch._replace(inputs=np.rint(batch.inputs * np.float32(255)).astype(np.uint8))


def _preset(**fields: Any) -> Callable[[Protocol], Protocol]:
    """Make `own -> Protocol`: what is judged is judged so, and all else stays the run's own."""

    def change(own: Protocol) -> Protocol:
        changes = {"episodes_from": SAMPLED, **fields}
        # A learner without statistics has nothing to change, and one that keeps averages is inductive already.
        if own.norm == "none" or (changes.get("norm"), own.norm) == ("inductive", "running"):
            changes.pop("norm", None)
        return dataclasses.replace(own, **changes)

    return change


def _maml_plus_plus(own: Protocol) -> Protocol:
    change = _preset(norm="transductive", episodes=600, ensemble=5)
    return dataclasses.replace(change(own), eval_inner_steps=own.train_inner_steps)


def _challenge(own: Protocol) -> Protocol:
    fixed = {"dataset": "omniglot-challenge", "split": "official", "part": "test", "trained_on": own.dataset}
    size = {"ways": 20, "shots": 1, "queries": 1, "episodes": 20, "within_alphabet": True}
    return dataclasses.replace(own, **fixed, **size, episodes_from="omniglot-challenge", ensemble=1)


# How the papers judge, by name. What a preset does not say (the dataset above all) stays as the run has it.
PROTOCOLS: dict[str, Callable[[Protocol], Protocol]] = {
    # This library's own: nothing is seen of the other queries.
    "default": _preset(norm="inductive", queries=15, episodes=1000, ensemble=1),
    # Finn et al. 2017, arXiv 1703.03400, Omniglot: 600 tasks, as many query images as shots.
    "maml": _preset(ways=5, shots=1, queries=1, norm="transductive", eval_inner_steps=3, episodes=600, ensemble=1),
    "maml-20way": _preset(ways=20, shots=1, queries=1, norm="transductive", eval_inner_steps=5, episodes=600),
    # Antoniou et al. 2019, arXiv 1810.09502: the five best of validation together.
    "maml++": _maml_plus_plus,
    # Snell et al. 2017, arXiv 1703.05175, Omniglot: 1000 tasks, 15 query images in the authors' code.
    "protonet": _preset(norm="inductive", queries=15, episodes=1000, ensemble=1),
    # Nichol et al. 2018, arXiv 1803.02999: both forms, 10000 tasks in the authors' code.
    "reptile": _preset(norm="transductive", queries=1, eval_inner_steps=50, episodes=10000, ensemble=1),
    "reptile-inductive": _preset(norm="inductive", queries=1, eval_inner_steps=50, episodes=10000, ensemble=1),
    # Lake et al. 2015, Science 350(6266): the 20 official runs. Error is 1 - accuracy; people err on 4.5 %.
    "omniglot-challenge": _challenge,
}
