"""The table of lowerings: what it decides, what is found in a program, how it is measured, kept and used again."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxmeta import Batch, Episode, LoweringTable, conv4, from_function, make_mesh, maml, resnet12, run, workspace
from jaxmeta.bench.lowerings import measure_lowerings
from jaxmeta.cli import main
from jaxmeta.config import Config
from jaxmeta.devices import on_each_device
from jaxmeta.folder import load_lowerings, save_lowerings
from jaxmeta.nn import LOWERINGS, Case, contractions_in, conv2d, lowerings, lowerings_used
from jaxmeta.nn.lowering_table import covering, lowering_of, this_platform
from jaxmeta.nn.lowerings import Geometry
from jaxmeta.nn.processor import device_name

GEOMETRY = Geometry((6, 6), (3, 3), padding=((1, 1), (1, 1)))
INPUTS, KERNEL = jnp.ones([4, 6, 6, 2]), jnp.ones([3, 3, 2, 3])
CASE = Case("output", GEOMETRY, INPUTS.shape, KERNEL.shape)
SMALL = {"model": "conv4-stride", "filters": 4, "tasks": 4, "log_every": 1, "checkpoint_every": 2, "task_chunk": 2}
SMALL |= {"validation_episodes": 2, "eval_episodes": 2, "eval_queries": 2, "outer_schedule": "constant", "steps": 2}
SMALL |= {"metagrad": "first_order"}


@pytest.fixture(autouse=True)
def narrow_vectors(monkeypatch):
    """The rule as on a processor without products of 512 bits, wherever the tests run."""
    monkeypatch.setattr(lowerings, "has_wide_vectors", lambda: False)


def table_with(name, *cases):
    return LoweringTable("cpu", tuple(("cpu", case, name) for case in cases))


def lowered(lowering, inputs=INPUTS, kernel=KERNEL):
    return jax.jit(partial(conv2d, lowering=lowering)).lower(inputs, kernel).as_text()


def test_a_table_decides_where_it_has_the_case():
    assert "stablehlo.convolution" in lowered(table_with("xla", CASE)) and "dot_general" in lowered("auto")
    # Where it has another, or names what does not cover the case, the rule decides.
    others = [CASE._replace(dtype="float64"), CASE._replace(precision="highest"), CASE._replace(first=(5, 6, 6, 2))]
    for table in (
        table_with("xla", *others),
        table_with("shifts", CASE),
        LoweringTable("cpu", (("tpu", CASE, "xla"),)),
    ):
        assert lowered(table) == lowered("auto")


@pytest.mark.parametrize("make", [conv4, resnet12])
def test_models_hand_a_table_to_every_convolution(make):
    size = {"filters" if make is conv4 else "width": 4}
    images = jnp.ones([2, 16, 16, 1])
    arguments = *jax.eval_shape(make(3, **size).init, jax.random.key(0), images), images

    def text(lowering):
        return jax.jit(make(3, lowering=lowering, **size).apply).lower(*arguments).as_text()

    cases = contractions_in(make(3, **size).apply, *arguments)
    assert sum(cases.values()) == (4 if make is conv4 else 16)
    assert "stablehlo.convolution" not in text("auto")
    assert text(table_with("xla", *cases)).count("stablehlo.convolution") == text("xla").count("stablehlo.convolution")


def test_derivatives_under_a_table_equal_those_by_xla(x64):
    """To second order, under vmap, with a way that is not the rule's for every contraction."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, kernels = jax.random.normal(keys[0], [2, 3, 6, 6, 2]), jax.random.normal(keys[1], [2, 3, 3, 2, 2])
    direction = jax.random.normal(keys[2], kernels.shape)

    def second(lowering, kernels):
        conv = jax.vmap(partial(conv2d, lowering=lowering))

        def loss(kernels):
            return jnp.sum(jnp.tanh(conv(jnp.tanh(conv(inputs, kernels)), kernels)) ** 2)

        return jax.grad(lambda kernels: jnp.vdot(jax.grad(loss)(kernels), direction))(kernels)

    cases = contractions_in(partial(second, "auto"), kernels)
    assert {case.missing for case in cases} == {"input", "kernel", "output"}
    table = LoweringTable("cpu", tuple(("cpu", case, covering(case, "cpu")[-1]) for case in cases))
    ours, theirs = (jax.jit(partial(second, lowering))(kernels) for lowering in (table, "xla"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_maml_is_the_same_by_either_rule(monkeypatch):
    """Of second order, tasks at once and one after another, with all digits of float32."""

    # Smooth: a maximum or a rectifier that rounding turns would change more than digits.
    def init(key, inputs):
        keys = jax.random.split(key, 3)
        shapes = {"first": (3, 3, 1, 32), "second": (3, 3, 32, 32), "head": (32, 3)}
        return {
            name: 0.1 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params, inputs):
        hidden = jnp.tanh(conv2d(inputs, params["first"]))
        return jnp.tanh(conv2d(hidden, params["second"])).mean((1, 2)) @ params["head"]

    learner = maml(from_function(init, apply), inner_optimizer=optax.sgd(0.1), num_steps=2)
    keys = jax.random.split(jax.random.key(0), 3)
    images, targets = jax.random.normal(keys[0], [4, 2, 6, 16, 16, 1]), jnp.tile(jnp.arange(3), [4, 2, 2])
    tasks = Episode(*(Batch(images[:, part], targets[:, part], jnp.ones([4, 6])) for part in range(2)))
    theta, state = learner.init(keys[1], images[0, 0])
    task_keys = jax.random.split(keys[2], 4)

    def gradient(chunk, theta):
        def of_task(theta, task):
            return jax.grad(lambda theta: learner.loss(theta, state, *task, jnp.int32(0))[0])(theta)

        return jax.lax.map(partial(of_task, theta), (tasks, task_keys), batch_size=chunk)

    gradients, ways = [], []
    for wide in (False, True):
        monkeypatch.setattr(lowerings, "has_wide_vectors", lambda wide=wide: wide)
        with jax.default_matmul_precision("highest"):
            for chunk in (1, 4):
                gradients.append(jax.jit(partial(gradient, chunk))(theta))
            cases = contractions_in(partial(gradient, 1), theta)
        ways.append({lowering_of(case, "cpu") for case in cases})
    assert "canonical" not in ways[0] and ways[1] == {"canonical"}
    one, *others = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in gradients)
    for other in others:
        assert jnp.linalg.norm(other - one) < 1e-5 * jnp.linalg.norm(one)


def test_contractions_are_found_wherever_they_are():
    def scanned(kernel, length=3):
        return jax.lax.scan(lambda carry, _: (carry + conv2d(INPUTS, kernel).sum(), None), 0.0, length=length)[0]

    assert contractions_in(scanned, KERNEL) == {CASE: 3}
    nested = jax.jit(lambda kernel: jax.lax.map(lambda _: scanned(kernel), jnp.arange(2)))
    assert contractions_in(nested, KERNEL) == {CASE: 6}
    mapped = on_each_device(conv2d, make_mesh(1), PartitionSpec(), PartitionSpec())
    branches = partial(jax.lax.cond, True, conv2d, lambda *args: conv2d(*args) + 1)
    looped = partial(jax.lax.while_loop, lambda k: k.sum() < 3, lambda k: k + conv2d(INPUTS, k).sum())
    assert contractions_in(mapped, INPUTS, KERNEL) == {CASE: 1}
    assert contractions_in(branches, INPUTS, KERNEL) == {CASE: 2}
    assert contractions_in(looped, jax.ShapeDtypeStruct(KERNEL.shape, KERNEL.dtype)) == {CASE: 1}
    # Computed once, and again for the gradient.
    remade = jax.grad(jax.checkpoint(lambda kernel: jnp.sum(conv2d(INPUTS, kernel) ** 2)))
    found = contractions_in(remade, KERNEL)
    assert found == {CASE: 2, CASE._replace(missing="kernel", second=(4, 6, 6, 3)): 1}
    own = contractions_in(jax.vmap(conv2d), jnp.ones([5, *INPUTS.shape]), jnp.ones([5, *KERNEL.shape]))
    assert [case.per_task for case in own] == [True]


def test_a_table_is_a_value():
    one, same, other = table_with("xla", CASE), table_with("xla", CASE), table_with("winograd", CASE)
    assert one == same and hash(one) == hash(same) and one != other
    assert one.extended(other) == one and other.extended(LoweringTable("tpu")) == other
    more = table_with("xla", CASE._replace(dtype="float64"))
    assert [row[1].dtype for row in one.extended(more).rows] == ["float32", "float64"]
    traces = []

    @partial(jax.jit, static_argnums=0)
    def traced(lowering, kernel):
        traces.append(lowering)
        return conv2d(INPUTS, kernel, lowering=lowering)

    for table in (one, same, other):
        traced(table, KERNEL)
    assert traces == [one, other]


def test_what_is_used_is_told_by_table_or_rule():
    other = CASE._replace(first=(8, 6, 6, 2))
    used = lowerings_used({CASE: 1, other: 2}, "cpu", table_with("winograd", CASE))
    assert [used.lookup("cpu", case) for case in (CASE, other)] == ["winograd", "patches"]
    assert lowerings_used([CASE], "cpu", "xla").lookup("cpu", CASE) == "xla"


def test_a_table_survives_json(tmp_path):
    depthwise = Case("kernel", GEOMETRY._replace(groups=2), (5, *INPUTS.shape), (5, 4, 6, 6, 4), "bfloat16", "highest")
    table = LoweringTable(
        "some device", (("cpu", CASE, "xla"), ("cuda", CASE, "patches"), ("cpu", depthwise, "shifts"))
    )
    path = tmp_path / "new" / "table.json"
    save_lowerings(path, table)
    assert load_lowerings(path) == table and [file.name for file in path.parent.iterdir()] == ["table.json"]
    assert load_lowerings(tmp_path / "other.json") is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values["rows"][0].update(lowering="magic"), "'magic' is no lowering; needed is one of: xla,"),
        (lambda values: values.update(format=0), "have format 0; 1 is needed"),
        (lambda values: values.pop("device_kind"), "a damaged one"),
        (lambda values: values["rows"].append(values["rows"][0]), "a damaged one"),
        (lambda values: values["rows"][0]["case"].update(missing="nothing"), "a damaged one"),
        (lambda values: values["rows"][0]["case"].update(first=[1, 2, "3", 4]), "a damaged one"),
        (lambda values: values["rows"][0]["case"].update(first=[1, 2, 3]), "a damaged one"),
        (lambda values: values["rows"][0]["case"]["geometry"].update(window=3.5), "a damaged one"),
        (lambda values: values["rows"][0]["case"]["geometry"].pop("size"), "a damaged one"),
    ],
)
def test_a_damaged_table_is_refused(damage, message):
    values = json.loads(json.dumps(table_with("xla", CASE).to_json()))
    damage(values)
    with pytest.raises(ValueError, match=message) as raised:
        LoweringTable.from_json(values)
    assert "Measure again with `jaxmeta plan --lowerings`" in str(raised.value)


def test_measuring_chooses_among_what_covers():
    own = CASE._replace(missing="kernel", first=(3, *INPUTS.shape), second=(3, 4, 6, 6, 3))
    depthwise = Case("output", GEOMETRY._replace(groups=2), INPUTS.shape, (3, 3, 1, 4))
    said = []
    table, timings = measure_lowerings({own: 1, depthwise: 2}, rounds=1, say=said.append)
    assert [(timing.case, timing.count) for timing in timings] == [(own, 1), (depthwise, 2)]
    assert [set(timing.seconds) for timing in timings] == [
        {"patches", "xla", "xla_in_turn", "canonical", "winograd"},
        {"shifts", "xla"},
    ]
    assert len(said) == 2
    for timing in timings:
        assert all(seconds > 0 for seconds in timing.seconds.values())
        assert LOWERINGS[timing.chosen].covers(timing.case.geometry, timing.case.channels, timing.case.dtype)
        assert table.lookup(this_platform(), timing.case) == timing.chosen in timing.seconds
    with pytest.raises(ValueError, match="given 0"):
        measure_lowerings({CASE: 1}, rounds=0)
    with pytest.raises(ValueError, match="needs float64 and JAX makes float32"):
        measure_lowerings({CASE._replace(dtype="float64"): 1})


@pytest.mark.slow
def test_a_run_keeps_its_lowerings(tmp_path, monkeypatch, capsys):
    """What the device's table says when a run begins holds for it, whatever becomes of that table."""
    cache, out = tmp_path / "cache.json", tmp_path / "run"
    monkeypatch.setattr(workspace, "lowerings_file", lambda device_kind: cache)
    opened, open_workspace = [], run.open_workspace

    def opening(*args, **options):
        opened.append(open_workspace(*args, **options))
        return opened[-1]

    monkeypatch.setattr(run, "open_workspace", opening)
    monkeypatch.setattr("jaxmeta.candidate.open_workspace", opening)
    config = Config(**SMALL)
    by_rule = open_workspace(config)
    step = workspace.trace_step(by_rule)
    assert {case.missing for case in step} == {"input", "kernel", "output"} and any(case.per_task for case in step)
    save_lowerings(cache, table_with("xla_in_turn", *step))
    run.train_run(config, out)
    kept = load_lowerings(out / "lowerings.json")
    assert kept is not None and kept.device_kind == device_name()
    # The step by the table, and what only the evaluation has by the rule.
    assert {case: name for _, case, name in kept.rows if case in step} == dict.fromkeys(step, "xla_in_turn")
    judgement = workspace.trace_judgement(by_rule)
    assert {case for _, case, _ in kept.rows} == {*step, *judgement}
    assert {kept.lookup("cpu", case) for case in judgement if case not in step} == {"patches"}
    cache.write_text("{}")
    # The run is finished, so that resuming it only opens it.
    run.train_run(config, out, resume=True)
    run.evaluate_run(out)
    assert load_lowerings(out / "lowerings.json") == kept
    assert [one.lowering for one in opened[1:]] == [kept, kept]
    assert main(["train", "glyphs-maml-5w1s", "--out", str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert str(cache) in message and "Measure again" in message and not (tmp_path / "new").exists()


def test_runs_without_a_table_or_without_convolutions(tmp_path):
    small = Config(dataset="sinusoid", model="mlp", ways=1)
    assert workspace.trace_step(workspace.open_workspace(small)) == {}
    workspace.keep_lowerings(tmp_path, {}, "auto")
    assert not list(tmp_path.iterdir()) and workspace.find_lowering(tmp_path) == "auto"


def test_members_of_a_population_are_more_tasks():
    opened = workspace.open_workspace(Config(**SMALL))
    alone, together = (workspace.trace_step(opened, members) for members in (None, 3))
    tasks = [{case.first[0] for case in cases if case.per_task} for cases in (alone, together)]
    assert alone and tasks[0] == {2} and tasks[1] <= {3, 6}


def test_a_run_that_goes_on_with_other_shapes_keeps_both(tmp_path):
    other = CASE._replace(first=(8, 6, 6, 2))
    workspace.keep_lowerings(tmp_path, [CASE], table_with("winograd", CASE))
    workspace.keep_lowerings(tmp_path, [CASE, other], "auto")
    kept = workspace.find_lowering(tmp_path)
    assert isinstance(kept, LoweringTable) and kept.device_kind == device_name()
    assert kept.rows == table_with("winograd", CASE).extended(table_with("patches", other)).rows
