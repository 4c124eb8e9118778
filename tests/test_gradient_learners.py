"""The learners by gradient steps against their equations, on a line y = w x whose steps are written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from conftest import flat_model, tiny_model
from jaxmeta import (
    ALGORITHMS,
    CRITERIA,
    METAGRADS,
    Batch,
    Episode,
    anil,
    boil,
    cavia,
    conv4,
    example_batch,
    fomaml,
    from_function,
    from_linen,
    from_nnx,
    imaml,
    linear,
    maml,
    maml_plus_plus,
    meta_curvature,
    meta_sgd,
    mlp,
    options_of,
    reptile,
)
from jaxmeta.algorithms.adapted import cycled_batch
from jaxmeta.nn import BatchNorm
from jaxmeta.presets import PRESETS, with_algorithm

KEY = jax.random.key(0)
REGRESSION = {"criterion": CRITERIA["regression"]}
SGD = {"inner_optimizer": optax.sgd(0.1), **REGRESSION}
# Mean squared inputs of the two sets: the support loss is 2 (w - 3)^2, the query loss 8 (w - 3)^2.
SUPPORT_M, QUERY_M, SLOPE = 2.0, 8.0, 3.0


def line():
    return from_function(lambda key, inputs: jnp.ones(()), lambda w, inputs: w * inputs)


def line_episode():
    x = jnp.array([[1.0], [2.0], [-1.0]])
    return Episode(example_batch(x, SLOPE * x), example_batch(2.0 * x, 2.0 * SLOPE * x))


def params(w):
    return {"body": jnp.float64(w), "head": {}}


def meta_gradient(learner, theta, step=0):
    return jax.value_and_grad(lambda one: learner.loss(one, {}, line_episode(), KEY, step)[0])(theta)


def after(w, rate, m=SUPPORT_M):
    """Give the slope after one step of gradient descent on m (w - 3)^2."""
    return w - rate * 2 * m * (w - SLOPE)


def test_first_order_takes_the_gradient_where_the_steps_end(x64):
    _, grads = meta_gradient(fomaml(line(), num_steps=2, **SGD), params(1.0))
    phi = after(after(1.0, 0.1), 0.1)
    np.testing.assert_allclose(grads["body"], 2 * QUERY_M * (phi - SLOPE), rtol=1e-12)


def test_meta_sgd_learns_its_rates(x64):
    """loss = 8 (phi - 3)^2 with phi = w - 4 a (w - 3), so that d loss / d a = -64 (phi - 3) (w - 3)."""
    learner = meta_sgd(line(), inner_lr=0.1, num_steps=1, **REGRESSION)
    theta = {"params": params(1.0), "rates": params(0.1)}
    _, grads = meta_gradient(learner, theta)
    phi = after(1.0, 0.1)
    np.testing.assert_allclose(grads["rates"]["body"], -64 * (phi - SLOPE) * (1.0 - SLOPE), rtol=1e-12)
    np.testing.assert_allclose(grads["params"]["body"], 16 * (phi - SLOPE) * (1 - 0.4), rtol=1e-12)


def test_imaml_is_the_derivative_of_the_solution(x64):
    """phi* = (4 * 3 + lambda w) / (4 + lambda), whatever the number of steps that reached it."""
    learner = imaml(line(), proximal=2.0, num_steps=200, **SGD)
    loss, grads = meta_gradient(learner, params(1.0))
    phi = (4 * SLOPE + 2.0) / 6.0
    np.testing.assert_allclose(loss, QUERY_M * (phi - SLOPE) ** 2, rtol=1e-9)
    np.testing.assert_allclose(grads["body"], 2 * QUERY_M * (phi - SLOPE) * 2.0 / 6.0, rtol=1e-9)


def test_imaml_may_be_damped(x64):
    """d phi* / d theta = lambda / (4 + lambda + damping): phi* itself stays."""
    learner = imaml(line(), proximal=2.0, num_steps=200, damping=0.5 * 2.0, **SGD)
    _, grads = meta_gradient(learner, params(1.0))
    phi = (4 * SLOPE + 2.0) / 6.0
    exact, damped = 2 * QUERY_M * (phi - SLOPE) * 2.0 / 6.0, 2 * QUERY_M * (phi - SLOPE) * 2.0 / 7.0
    assert abs(exact - damped) > 0.1
    np.testing.assert_allclose(grads["body"], damped, rtol=1e-9)


def test_imaml_solves_in_as_many_steps_as_there_are_curvatures(x64):
    """Loss mean_i d_i^2 (w_i - 3)^2: three curvatures need three conjugate gradients, and one is not enough."""
    scale = np.array([1.0, 2.0, 3.0])
    model = from_function(lambda key, inputs: jnp.ones(3), lambda w, inputs: inputs @ w[:, None])
    support, query = (example_batch(jnp.diag(s), jnp.array(SLOPE * s)[:, None]) for s in (scale, 2.0 * scale))

    def gradient(**options):
        learner = imaml(model, proximal=2.0, num_steps=200, **options, **SGD)
        loss = jax.grad(lambda one: learner.loss(one, {}, Episode(support, query), KEY, 0)[0])
        return loss({"body": jnp.ones(3), "head": {}})["body"]

    pull = 2.0 / (2.0 * scale**2 / 3 + 2.0)
    phi = SLOPE + pull * (1.0 - SLOPE)
    exact = 2.0 * (2.0 * scale) ** 2 / 3 * (phi - SLOPE) * pull
    np.testing.assert_allclose(gradient(), exact, rtol=1e-9)
    np.testing.assert_allclose(gradient(solver_steps=3), exact, rtol=1e-9)
    assert np.abs(gradient(solver_steps=1) - exact).max() > 0.1


def test_reptile_moves_towards_what_training_on_the_whole_task_leads_to(x64):
    learner = reptile(line(), batch_size=10, num_steps=2, **SGD)
    _, grads = meta_gradient(learner, params(1.0))
    phi = after(after(1.0, 0.1, 5.0), 0.1, 5.0)  # The mean over both sets of x^2 is 5.
    np.testing.assert_allclose(grads["body"], 1.0 - phi, rtol=1e-12)


def test_reptile_walks_through_the_shuffled_task(x64):
    """A step of 0.5 on one example jumps onto it: after each whole walk every example was met once."""
    x = jnp.ones([4, 1])
    task = Episode(example_batch(x[:2], jnp.array([[1.0], [2.0]])), example_batch(x[:2], jnp.array([[3.0], [4.0]])))

    def met(num_steps, seed):
        learner = reptile(line(), batch_size=1, num_steps=num_steps, inner_optimizer=optax.sgd(0.5), **REGRESSION)
        return -float(
            jax.grad(lambda one: learner.loss(one, {}, task, jax.random.key(seed), 0)[0])(params(0.0))["body"]
        )

    walks = {seed: [met(number, seed) for number in range(1, 9)] for seed in range(3)}
    for walk in walks.values():
        assert set(walk[:4]) == set(walk[4:]) == {1.0, 2.0, 3.0, 4.0}
    assert any(walk[:4] != walk[4:] for walk in walks.values()) and len({tuple(walk) for walk in walks.values()}) > 1


def test_reptile_may_be_judged_by_other_batches(x64):
    """With one example at a time it jumps from one to the next; with all, to their mean."""
    support = example_batch(jnp.ones([4, 1]), jnp.array([[1.0], [2.0], [3.0], [4.0]]))
    options = {"inner_optimizer": optax.sgd(0.5), "num_steps": 1, **REGRESSION}
    for size, ends in ((1, {1.0, 2.0, 3.0, 4.0}), (4, {2.5})):
        learner = reptile(line(), batch_size=5 - size, eval_batch_size=size, **options)
        seen = {
            float(learner.adapt(params(0.0), {}, support, jax.random.key(seed)).params["body"]) for seed in range(8)
        }
        assert seen <= ends and (len(seen) > 1) == (size == 1)
    with pytest.raises(ValueError, match="eval_batch_size"):
        reptile(line(), eval_batch_size=0, **SGD)


@pytest.mark.parametrize(("real", "size"), [(7, 3), (3, 3), (2, 3), (7, 9)])
def test_a_batch_has_each_real_example_as_often_as_the_others(real, size):
    """Over whole walks, whatever divides what; padding is met only where there are not enough."""
    batch = Batch(jnp.arange(8.0), jnp.arange(8), (jnp.arange(8) < real).astype(jnp.float32))
    drawn = [cycled_batch(jax.random.key(1), batch, size, index) for index in range(real)]
    if size >= 8:
        assert all(one is batch for one in drawn)
        return
    for one in drawn:
        met = one.targets[one.weights > 0]
        assert len(set(met.tolist())) >= min(real, 2) and len(met) == min(real, size)
    counts = np.bincount(np.concatenate([one.targets[one.weights > 0] for one in drawn]), minlength=8)
    assert counts.tolist() == [min(real, size)] * real + [0] * (8 - real)


@pytest.mark.parametrize("name", ["maml", "imaml", "reptile", "anil", "cavia", "maml++"])
def test_an_algorithm_begins_with_the_steps_that_its_runs_have(name, source):
    """The number is in the algorithm's own file, and what the command line begins with is the same."""
    takes = {"inner_optimizer": optax.sgd(0.1)} if "inner_optimizer" in options_of(ALGORITHMS[name]) else {}
    learner = ALGORITHMS[name](conv4(3, filters=2, context=2), log_grad_norms=True, **takes)
    episode = tiny_task(source)

    def metrics():
        theta, state = learner.init(KEY, episode.support.inputs)
        return learner.loss(theta, state, episode, KEY, jnp.int32(0))[1][1]

    steps = sum(metric.startswith("inner_grad_norm_") for metric in jax.eval_shape(metrics))
    assert steps == with_algorithm(PRESETS["glyphs-maml-5w1s"], name).inner_steps > 0


def tiny_task(source):
    return jax.tree.map(lambda leaf: leaf[0], source.sample(jax.random.key(3), source.pool, source.spec, 1))


@pytest.mark.parametrize(("factory", "still", "moved"), [(anil, "body", "head"), (boil, "head", "body")])
def test_half_of_the_network_moves(factory, still, moved, source):
    learner = factory(tiny_model(), inner_optimizer=optax.sgd(0.1))
    support = tiny_task(source).support
    theta, state = learner.init(KEY, support.inputs)
    adapted = learner.adapt(theta, state, support, KEY).params
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, adapted[still], theta[still])))
    assert not any(jax.tree.leaves(jax.tree.map(jnp.array_equal, adapted[moved], theta[moved])))


@pytest.mark.parametrize("strategy", ["unrolled", "mixed_mode", "first_order", "forward"])
@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_anil_embeds_the_support_set_once_and_learns_as_if_it_did_at_every_step(strategy, norm, source):
    model, episode, calls = flat_model(), tiny_task(source), []
    small = [batch._replace(inputs=batch.inputs[:, :2, :2]) for batch in episode]
    episode = Episode(*small)

    def counted(name):
        def count(*arguments, key, **options):
            calls.append((name, key is not None))
            return getattr(model, name)(*arguments, key=key, **options)

        return count

    def gradient(model):
        learner = anil(model, inner_optimizer=optax.sgd(0.1), num_steps=3, metagrad=METAGRADS[strategy](), norm=norm)
        theta, state = model.init(KEY, episode.support.inputs)
        return jax.grad(lambda theta: learner.loss(theta, state, episode, KEY, 0)[0])(theta)

    once = gradient(model._replace(embed=counted("embed"), apply=counted("apply")))
    # The whole network is for the query set, which has no key, and for the statistics after the last step.
    assert calls == [("embed", True)] + [("apply", True)] * (norm == "inductive") + [("apply", False)]
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        once,
        gradient(model._replace(head=None)),
    )


def test_a_half_needs_two():
    with pytest.raises(ValueError, match="needs a model with a body and a head"):
        anil(line(), **SGD).init(KEY, jnp.ones([2, 1]))
    # All of it is the head: nothing is left for the inner loop.
    with pytest.raises(ValueError, match="boil needs a model with a body and a head"):
        boil(linear(3), **SGD).init(KEY, jnp.ones([2, 1]))
    anil(linear(3), **SGD).init(KEY, jnp.ones([2, 1]))


def test_cavia_moves_its_context_from_zero_and_learns_the_rest():
    points = example_batch(jnp.linspace(-1, 1, 8)[:, None], jnp.ones([8, 1]))
    learner = cavia(mlp(1, context=3), num_steps=1, **SGD)
    theta, state = learner.init(KEY, points.inputs)
    # Whatever is stored as the context: it begins at zero.
    theta["body"]["context"] = jnp.full(3, 7.0)
    adapted = learner.adapt(theta, state, points, KEY).params
    one_step = jax.grad(
        lambda context: jnp.mean(
            (
                mlp(1, context=3).apply({**theta, "body": {**theta["body"], "context": context}}, state, points.inputs)[
                    0
                ]
                - 1.0
            )
            ** 2
        )
    )(jnp.zeros(3))
    np.testing.assert_allclose(adapted["body"]["context"], -0.1 * one_step, rtol=1e-5)
    assert float(jnp.abs(one_step).max()) > 0
    np.testing.assert_array_equal(adapted["head"]["kernel"], theta["head"]["kernel"])
    grads = jax.grad(lambda one: learner.loss(one, state, Episode(points, points), KEY, 0)[0])(theta)
    np.testing.assert_array_equal(grads["body"]["context"], jnp.zeros(3))
    assert float(jnp.abs(grads["head"]["kernel"]).max()) > 0


def test_cavia_needs_a_context():
    with pytest.raises(ValueError, match="parameters called `context`"):
        cavia(mlp(1), **SGD).init(KEY, jnp.ones([2, 1]))


def test_meta_curvature_turns_each_axis(x64):
    """One step with random matrices against the product written out in NumPy."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=[4, 3]))
    model = from_function(lambda key, inputs: kernel, lambda matrix, inputs: inputs @ matrix)
    learner = meta_curvature(model, inner_lr=0.1, **REGRESSION)
    theta, state = learner.init(KEY, jnp.ones([2, 4]))
    (name,) = theta["curvature"]
    assert [matrix.shape for matrix in theta["curvature"][name]] == [(4, 4), (3, 3)]
    of_inputs, of_outputs = rng.normal(size=[4, 4]), rng.normal(size=[3, 3])
    theta["curvature"][name] = [jnp.asarray(of_inputs), jnp.asarray(of_outputs)]
    inputs, targets = rng.normal(size=[5, 4]), rng.normal(size=[5, 3])
    adapted = learner.adapt(theta, state, example_batch(jnp.asarray(inputs), jnp.asarray(targets)), KEY)
    gradient = inputs.T @ (2 * (inputs @ kernel - targets)) / targets.size
    expected = kernel - 0.1 * of_inputs @ gradient @ of_outputs.T
    np.testing.assert_allclose(adapted.params["body"], expected, rtol=1e-10)


def test_meta_curvature_turns_the_positions_of_a_kernel(x64):
    """A kernel `[height, width, inputs, outputs]`: the positions are one axis, in reading order."""
    rng = np.random.default_rng(0)
    start, gradient = rng.normal(size=[3, 2, 4, 5]), rng.normal(size=[3, 2, 4, 5])
    # A loss that is linear in the kernel has the gradient that is wanted; the inputs count for nothing.
    model = from_function(
        lambda key, inputs: jnp.asarray(start),
        lambda kernel, inputs: jnp.full([len(inputs), 1], jnp.vdot(kernel, gradient)),
    )
    criterion = CRITERIA["regression"]._replace(loss=lambda outputs, targets, weights: outputs.mean())
    learner = meta_curvature(model, inner_lr=0.1, criterion=criterion)
    theta, state = learner.init(KEY, jnp.ones([2, 1]))
    (name,) = theta["curvature"]
    matrices = [rng.normal(size=[size, size]) for size in (6, 4, 5)]
    assert [matrix.shape for matrix in theta["curvature"][name]] == [matrix.shape for matrix in matrices]
    theta["curvature"][name] = [jnp.asarray(matrix) for matrix in matrices]
    adapted = learner.adapt(theta, state, example_batch(jnp.ones([2, 1]), jnp.ones([2, 1])), KEY)
    turned = np.einsum("pq,ij,ok,qjk->pio", *matrices, gradient.reshape(6, 4, 5)).reshape(start.shape)
    np.testing.assert_allclose(adapted.params["body"], start - 0.1 * turned, rtol=1e-10)


def test_meta_curvature_begins_as_maml(source):
    support = tiny_task(source).support
    learner, plain = meta_curvature(tiny_model(), inner_lr=0.1), maml(tiny_model(), inner_optimizer=optax.sgd(0.1))
    theta, state = learner.init(KEY, support.inputs)
    turned = learner.adapt(theta, state, support, KEY)
    straight = plain.adapt(theta["params"], state, support, KEY)
    for one, other in zip(jax.tree.leaves(turned), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_multi_step_loss_goes_from_the_mean_to_the_last(x64):
    learner = maml_plus_plus(line(), inner_lr=0.1, num_steps=3, multi_step_until=10, **REGRESSION)
    theta, _ = learner.init(KEY, jnp.ones([2, 1]))
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta)
    phis, w = [], 1.0
    for _ in range(3):
        w = after(w, 0.1)
        phis.append(w)
    losses = QUERY_M * (np.array(phis) - SLOPE) ** 2
    for step, shares in ((0, [1 / 3] * 3), (5, [1 / 6, 1 / 6, 2 / 3]), (10, [0, 0, 1]), (99, [0, 0, 1])):
        loss, _ = meta_gradient(learner, theta, step)
        np.testing.assert_allclose(loss, np.dot(shares, losses), rtol=1e-6)


def test_the_order_of_the_gradient_is_annealed(x64):
    options = {"inner_lr": 0.1, "num_steps": 2, **REGRESSION}
    learner = maml_plus_plus(line(), first_order_until=5, **options)
    theta, _ = learner.init(KEY, jnp.ones([2, 1]))
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta)
    twice = (1 - 0.4) ** 2
    phi = SLOPE + (1.0 - SLOPE) * twice
    for step, slope in ((0, 1.0), (4, 1.0), (5, twice), (9, twice)):
        _, grads = meta_gradient(learner, theta, step)
        np.testing.assert_allclose(grads["params"]["body"], 2 * QUERY_M * (phi - SLOPE) * slope, rtol=1e-6)
        # The rates are learned at either order.
        assert all(abs(rate) > 1e-3 for rate in grads["rates"]["['body']"])


def test_every_step_has_its_own_normalisation(source):
    """With all rows alike it is MAML; a row changed for the last step changes what the last step gives."""
    episode = tiny_task(source)
    learner = maml_plus_plus(tiny_model(), inner_lr=0.1, num_steps=2)
    theta, state = learner.init(KEY, episode.support.inputs)
    assert sorted(theta["norms"]) == ["['body']['BatchNorm_0']['bias']", "['body']['BatchNorm_0']['scale']"]
    assert not any("Norm" in path for path in theta["rates"])

    def outputs(theta):
        adapted = learner.adapt(theta, state, episode.support, KEY)
        return learner.predict(adapted, episode.query, KEY)

    scale = theta["norms"]["['body']['BatchNorm_0']['scale']"]
    assert scale.shape == (2, 4)
    with_rows = [
        outputs({**theta, "norms": {**theta["norms"], "['body']['BatchNorm_0']['scale']": scale.at[row].set(2.0)}})
        for row in (0, 1)
    ]
    assert all(np.abs(changed - outputs(theta)).max() > 1e-4 for changed in with_rows)
    assert np.abs(with_rows[0] - with_rows[1]).max() > 1e-4


class NamedByOthers(nnx.Module):
    """Normalisations of either kind, with and without statistics, whose names say nothing."""

    def __init__(self, rngs):
        self.first, self.bn = nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, momentum=0.0, rngs=rngs)
        self.ln = nnx.LayerNorm(3, rngs=rngs)

    def __call__(self, inputs):
        return self.ln(self.bn(self.first(inputs)))


class NamedInLinen(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.BatchNorm(use_running_average=not train, use_scale=False, momentum=0.0, name="bn")(
            nn.Dense(3)(inputs)
        )
        return nn.GroupNorm(num_groups=1, name="gn")(hidden)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            from_nnx(NamedByOthers, lambda rngs: nnx.Linear(3, 2, rngs=rngs)),
            {"bn.scale", "bn.bias", "ln.scale", "ln.bias"},
        ),
        (from_linen(NamedInLinen(), nn.Dense(2)), {"bn.bias", "gn.scale", "gn.bias"}),
        (from_linen(BatchNorm(), nn.Dense(2)), {"scale", "bias"}),
        (mlp(2), set()),
    ],
    ids=["nnx", "linen", "by itself", "none"],
)
def test_normalisations_are_told_by_what_they_are_and_not_by_name(model, expected, recwarn):
    theta, _ = jax.eval_shape(maml_plus_plus(model, num_steps=2).init, KEY, jnp.ones([5, 4]))
    assert set(theta["norms"]) == {"['body']" + "".join(f"['{name}']" for name in path.split(".")) for path in expected}
    assert not set(theta["norms"]) & set(theta["rates"])
    assert len(theta["norms"]) + len(theta["rates"]) == len(jax.tree.leaves(theta["params"])) and not recwarn.list


def test_a_state_without_a_scale_or_shift_is_warned_of():
    model = from_nnx(
        lambda rngs: nnx.BatchNorm(4, use_scale=False, use_bias=False, momentum=0.0, rngs=rngs),
        lambda rngs: nnx.Linear(4, 2, rngs=rngs),
    )
    with pytest.warns(UserWarning, match="finds no scale or shift of a normalisation"):
        jax.eval_shape(maml_plus_plus(model).init, KEY, jnp.ones([5, 4]))


def test_queries_are_judged_after_every_step_only_while_it_counts():
    """Three support losses and the last query loss; while the loss is of all steps, three more of the queries."""
    sizes = []

    def apply(w, inputs):
        jax.debug.callback(lambda: sizes.append(len(inputs)))
        return w * inputs

    model = from_function(lambda key, inputs: jnp.ones(()), apply)
    learner = maml_plus_plus(model, num_steps=3, multi_step_until=10, **REGRESSION)
    support, query = line_episode()
    task = Episode(support, jax.tree.map(lambda leaf: leaf[:2], query))
    theta, state = learner.init(KEY, support.inputs)
    for step, judged in ((0, 4), (9, 4), (10, 1), (99, 1)):
        sizes.clear()
        learner.loss(theta, state, task, KEY, step)
        jax.effects_barrier()
        assert sorted(sizes) == [2] * judged + [3] * 3
