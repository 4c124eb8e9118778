"""The controller: the training of a classifier as an environment, and what is learned in it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import load_experiment
from jaxmeta.base import Episode, example_batch
from jaxmeta.models import mlp
from jaxmeta.tuning import (
    Hypers,
    Network,
    Range,
    afterstate_values,
    bandit,
    chain,
    conv_net,
    dqn,
    keep_action,
    outputs_in_parts,
    rollout,
    share_moves,
    shares_of,
    training_environment,
    training_objective,
    values_at,
)

RANGES = {
    "learning_rate": Range(1e-3, 1.0),
    "momentum": Range(0.0, 0.9, "linear"),
    "weight_decay": Range(1e-5, 1e-1),
}
CLASSES = 3
# A linear classifier: what is tested here is not the network, and it compiles in no time.
LINEAR = Network(
    lambda key, inputs: {"head": jnp.zeros([inputs[0].size, CLASSES])},
    lambda params, inputs, *, key=None, dropout=0.0: inputs.reshape(inputs.shape[0], -1) @ params["head"],
)


def images(seed: int, number: int = 60):
    """Noise of 2x2 pixels about a centre for each class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number)
    centres = np.random.default_rng(9).normal(0, 1, [CLASSES, 2, 2, 1])
    return example_batch(
        jnp.asarray(centres[labels] + rng.normal(0, 1, [number, 2, 2, 1]), jnp.float32), jnp.asarray(labels, jnp.int32)
    )


DATA = Episode(images(0), images(1, 90))
make_training = partial(training_environment, LINEAR, RANGES, steps_between=2, batch_size=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bandit([]), "arms"),
        (lambda: chain(0), "length"),
        (lambda: chain(3, slip=1.0), "slip"),
        (lambda: training_environment(LINEAR, {}), "one or more of learning_rate"),
        (lambda: training_environment(LINEAR, {"example_weights": Range(0.1, 1.0)}), "given"),
        (lambda: training_environment(LINEAR, {"momentum": Range(0.0, 0.9)}), "logarithmic"),
        (lambda: make_training(start={"learning_rate": 0.1}), "same hyper-parameters"),
        (lambda: make_training(start={"learning_rate": 2.0, "momentum": 0.5, "weight_decay": 0.01}), "learning_rate"),
        (lambda: make_training(num_decisions=0), "num_decisions"),
        (lambda: make_training(levels=0), "levels"),
    ],
)
def test_refuses_environments_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_actions_move_hyper_parameters_jointly():
    """Every action of 27 is another triple of factors, and the middle one moves nothing."""
    environment = make_training(start={"learning_rate": 0.03, "momentum": 0.45, "weight_decay": 1e-3}, levels=4)
    assert environment.num_actions == 27 and keep_action(environment) == 13
    state = jax.jit(environment.reset)(jax.random.key(0), DATA)
    states, _ = jax.jit(jax.vmap(environment.step, (None, 0, None)))(state, jnp.arange(27), DATA)
    values = values_at(RANGES, states.shares)
    # A quarter of three and of four powers of ten, and of 0.9.
    triples = np.stack([(np.arange(27) // 3**place) % 3 - 1 for place in (2, 1, 0)], 1)
    np.testing.assert_allclose(values["learning_rate"], 0.03 * 10 ** (0.75 * triples[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(values["momentum"], 0.45 + 0.225 * triples[:, 1], rtol=1e-4)
    np.testing.assert_allclose(values["weight_decay"], 1e-3 * 10.0 ** triples[:, 2], rtol=1e-4)


def test_many_validation_examples_are_looked_at_in_parts():
    """The same outputs, with the hidden features of few examples at a time."""
    network = conv_net(3, widths=(4,), hidden=8)
    images = jax.random.normal(jax.random.key(0), [70, 8, 8, 1])
    params = network.init(jax.random.key(1), images)
    whole, parts = (jax.jit(partial(outputs_in_parts, network, part=part)) for part in (70, 8))
    np.testing.assert_allclose(parts(params, images), whole(params, images), rtol=1e-5, atol=1e-6)
    # What is beside inputs and outputs: a tenth of the examples at a time, and the rest at the end.
    memory = [one.lower(params, images).compile().memory_analysis().temp_size_in_bytes for one in (parts, whole)]
    assert memory[0] < memory[1] / 2


def test_hyper_parameters_never_leave_their_ranges():
    """Thirty times the same action, from anywhere: what is moved stands at an end by then, and never beyond it."""
    environment = make_training(num_decisions=30, levels=7)

    @jax.jit
    def run(key, action):
        state = environment.reset(key, DATA)
        return rollout(environment, lambda observation, key: action, state, DATA, key, 30)[1]

    trace = jax.vmap(run)(jax.random.split(jax.random.key(0), 6), jnp.array([0, 26, 5, 0, 26, 5]))
    shares = np.asarray(trace.observation[..., -3:])
    assert shares.min() >= 0 and shares.max() <= 1 and np.isfinite(trace.observation).all()
    for name, value in values_at(RANGES, jnp.asarray(shares)).items():
        assert (value >= np.float32(RANGES[name].low)).all() and (value <= np.float32(RANGES[name].high)).all()
    np.testing.assert_array_equal(shares[:, -1, 0], [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(shares[:, -1, 2], [0, 1, 1, 0, 1, 1])
    # Action 5 is 0 nines, 1 three and 2: it keeps the second.
    np.testing.assert_array_equal(shares[[2, 5], -1, 1], shares[[2, 5], 0, 1])


def test_an_episode_trains_as_a_plain_loop_of_optax_would():
    """Two decisions that keep everything, with the mini-batches of the same keys; rewards add up to what was gained."""
    start = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    environment = make_training(start=start, num_decisions=2)
    state = jax.jit(environment.reset)(jax.random.key(3), DATA)
    keep = lambda observation, key: keep_action(environment)  # noqa: E731
    last, trace = jax.jit(lambda s: rollout(environment, keep, s, DATA, jax.random.key(0), 5))(state)
    optimizer = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.5))
    params, opt_state = state.params, optimizer.init(state.params)
    grad = jax.jit(jax.grad(training_objective(LINEAR, 4), has_aux=True))
    for step in range(4):
        grads, _ = grad(params, Hypers(0.1), (), DATA.support, jax.random.fold_in(state.key, step))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(last.params["head"], params["head"], rtol=1e-4, atol=1e-6)
    right = np.mean(np.argmax(LINEAR.apply(params, DATA.query.inputs), -1) == DATA.query.targets)
    np.testing.assert_allclose(trace.reward.sum(), right - 1 / CLASSES, atol=1e-6)
    # It ended after two decisions, and nothing counts after that.
    assert trace.real.tolist() == [True, True, False, False, False] and int(last.decisions) == 2
    assert trace.reward[2:].tolist() == [0, 0, 0]


def test_episodes_are_a_function_of_their_key_and_vmap_is_one_by_one():
    environment = make_training(num_decisions=3)
    keys = jax.random.split(jax.random.key(5), 4)

    def live(key, data):
        state = environment.reset(key, data)
        return rollout(environment, lambda o, k: jax.random.randint(k, [], 0, 27), state, data, key, 3)

    together, again = (jax.jit(jax.vmap(live, (0, None)))(keys, DATA) for _ in range(2))
    one = jax.jit(live)
    for place, key in enumerate(keys):
        alone = one(key, DATA)
        of_many = jax.tree.map(lambda leaf, place=place: leaf[place], together)
        for left, right in zip(*(jax.tree.leaves(tree[1]) for tree in (alone, of_many)), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone[0].params["head"], of_many[0].params["head"], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, together[1], again[1])
    # Other keys, other beginnings and other mini-batches.
    assert len({tuple(shares) for shares in together[1].observation[:, 0, -3:].tolist()}) == 4


def exploding(num_decisions: int = 6):
    """Training whose very first step leaves what floats can hold."""
    return training_environment(
        LINEAR,
        {"momentum": Range(0.0, 0.9, "linear")},
        fixed=Hypers(1e38, weight_decay=1e3),
        num_decisions=num_decisions,
        steps_between=4,
        batch_size=4,
    )


def test_divergence_ends_the_episode_with_the_reward_of_guessing():
    environment = exploding()
    state = jax.jit(environment.reset)(jax.random.key(0), DATA)
    # It had learned something before.
    state = state._replace(now=state.now._replace(accuracy=jnp.float32(0.8)))
    last, (reward, done, failed) = jax.jit(environment.step)(state, 1, DATA)
    assert bool(done) and bool(failed) and bool(last.diverged)
    np.testing.assert_allclose(reward, 1 / CLASSES - 0.8, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((last.params, last.opt_state, last.now)))
    assert np.isfinite(environment.observe(last)).all()
    np.testing.assert_array_equal(last.params["head"], state.params["head"])


@pytest.mark.slow
def test_divergence_is_counted_and_training_begins_anew():
    """Every episode breaks at once: the learner counts each, begins it again, and stays finite."""
    learner = dqn(exploding(), mlp(3, hidden=()), optax.sgd(0.1), num_environments=3, capacity=60)
    start = jax.jit(learner.init)(jax.random.key(0), DATA)
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.iterate(s, DATA), s, length=4))(start)
    assert int(np.sum(metrics["failed"])) == 12 == int(np.sum(metrics["done"]))
    np.testing.assert_allclose(metrics["return"], 0.0, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    fresh = state.environments
    assert fresh.decisions.tolist() == [0, 0, 0] and not fresh.diverged.any() and not fresh.params["head"].any()
    # Each with a key of its own, which is not the first one's.
    keys = {tuple(key) for part in (start, state) for key in jax.random.key_data(part.environments.key).tolist()}
    assert len(keys) == 6


def test_shares_and_values_are_inverse():
    values = {"learning_rate": 0.02, "momentum": 0.3, "weight_decay": 0.05}
    found = values_at(RANGES, shares_of(RANGES, values))
    np.testing.assert_allclose([found[name] for name in values], list(values.values()), rtol=1e-4)
    low, high = (values_at(RANGES, jnp.full([3], share)) for share in (0.0, 1.0))
    for name, given in RANGES.items():
        np.testing.assert_allclose([low[name], high[name]], given[:2], rtol=1e-6)


def test_an_action_is_worth_what_the_place_is_that_it_leads_to():
    environment = training_environment(LINEAR, RANGES, num_decisions=3, steps_between=2, levels=5)
    body, moves = mlp(1, hidden=(8,)), share_moves(3, 5)
    model = afterstate_values(body, moves)
    state = environment.reset(jax.random.key(0), DATA)._replace(shares=jnp.array([0.0, 0.5, 0.95]))
    observation = environment.observe(state)
    params, model_state = model.init(jax.random.key(1), observation[None])
    (values,), _ = model.apply(params, model_state, observation[None])
    assert values.shape == (27,)
    # Each is what V says of the shares that the environment itself goes to, put on [-2, 2].
    step = jax.jit(environment.step)
    for action in (0, 5, 13, 26):
        shares = step(state, action, DATA)[0].shares
        (value,), _ = body.apply(params, model_state, observation.at[-3:].set(4 * shares - 2)[None])
        np.testing.assert_allclose(values[action], value[0], rtol=1e-5)
    # The first cannot be lowered: to lower it is to keep it. The last two differ from one another.
    np.testing.assert_array_equal(values[:9], values[9:18])
    assert len(set(values[9:].tolist())) == 18


def test_refuses_what_no_action_could_move():
    with pytest.raises(ValueError, match="the last 3 features of an observation; given 2"):
        afterstate_values(mlp(1), share_moves(3, 10)).init(jax.random.key(0), jnp.ones([1, 2]))
    model = afterstate_values(mlp(2), share_moves(1, 10))
    with pytest.raises(ValueError, match="a model of one output"):
        model.apply(*model.init(jax.random.key(0), jnp.ones([1, 2])), jnp.ones([1, 2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steps_ahead"),
    [(mlp(3, hidden=(32,)), 1), (afterstate_values(mlp(1, hidden=(32,)), share_moves(1, 5)), 3)],
    ids=["by action", "by place"],
)
def test_the_controller_learns_to_train(model, steps_ahead):
    """From learning rates that are mostly too small for a start that is far off: raising them is what pays."""
    far_off = LINEAR._replace(init=lambda key, inputs: {"head": 3 * jax.random.normal(key, [4, CLASSES])})
    ranges = {"learning_rate": Range(1e-4, 10.0)}
    environment = training_environment(far_off, ranges, num_decisions=8, steps_between=2, batch_size=16, levels=5)
    learner = dqn(
        environment,
        model,
        optax.adam(3e-3),
        steps_ahead=steps_ahead,
        discount=0.95,
        temperature=optax.exponential_decay(0.3, 240, 0.03),
        num_environments=16,
        updates=4,
    )
    start = jax.jit(learner.init)(jax.random.key(0), DATA)
    state, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.iterate(s, DATA), s, length=240))(start)
    returns = np.asarray(metrics["return"])[np.asarray(metrics["done"])]
    assert len(returns) == 480

    @jax.jit
    def play(keys, params):
        def one(key, policy):
            _, trace = rollout(environment, policy, environment.reset(key, DATA), DATA, key, 8)
            return trace.reward.sum()

        def at_random(observation, key):
            return jax.random.randint(key, [], 0, 3)

        return [jax.vmap(partial(one, policy=policy))(keys) for policy in (learner.policy(params), at_random)]

    learned, at_random = (np.asarray(gained) for gained in play(jax.random.split(jax.random.key(9), 64), state.params))
    gap = learned - at_random
    assert gap.mean() > 3 * gap.std(ddof=1) / 8 and gap.mean() > 0.02
    assert returns[-120:].mean() > returns[:120].mean() + 0.02


@pytest.mark.slow
def test_the_experiment_runs(tmp_path, capsys):
    experiment = load_experiment("cifar10_controller")
    few = "--random-data --seeds 2 --image-size 4 --train 40 --validation 16 --test 30 --num-decisions 3"
    experiment.main([*few.split(), *f"--steps-between 1 --episodes 40 --jobs 2 --out {tmp_path}".split()])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["seeds"]) == 2 and "default: learned controller" in printed
    for record in result["seeds"]:
        assert len(record["curve"]["return"]) == 40 and len(record["judged"]) == 9
        for row in record["judged"].values():
            assert len(row["accuracy"]) == 8 and all(0 <= value <= 1 for value in row["accuracy"])
            assert len(row["hyper_parameters"]["learning_rate"]) == 3
    spent = {name: row["gradient_steps_before"] for name, row in result["seeds"][0]["judged"].items()}
    # Trainings of three steps each; random actions cost nothing beforehand.
    assert spent["default: learned controller"] == 120 == spent["default: random search, 40 trainings"]
    # One step of two starts, each at the price of six, and three candidates tried in eight trainings each.
    assert spent["default: hypergradient"] == 3 * (2 * 6 + 3 * 8)
    for episodes in ("32", "41"):
        with pytest.raises(SystemExit):
            experiment.main([*few.split(), "--episodes", episodes])
        assert "--episodes must be a multiple of 8" in capsys.readouterr().err
    assert spent["default: random search, 16 trainings"] == 48
    assert spent["anywhere: random actions"] == 0
