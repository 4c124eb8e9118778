"""How much memory a meta-gradient needs under each strategy, and what that costs in time.

    python benchmarks/memory.py [--rounds 3] [--json FILE] [--quick]

Three set-ups, float32: MAML of a transformer with 6 and with 12 layers (2 inner Adam steps), and of conv4
(5 inner steps of gradient descent, 2 tasks side by side). Memory is what XLA sets aside for one compiled meta-gradient
beside its arguments and results (`memory_analysis().temp_size_in_bytes`). Less of it is more arithmetic, and not free
in general: the seconds (rounds are interleaved, medians are shown) and the time to compile stand beside it, and how
far the meta-gradient is from that of plain `unrolled()`, in the 2-norm and relative to it. For conv4 that can be more
than rounding: its maxima and rectifiers have kinks, and five large steps amplify what side of one a value is on. In
float64 the same variants agree to 1e-14.

The baseline of each set-up is `unrolled()`, nothing rematerialised, of the same model. The layers of the
transformer are a `jax.lax.scan`, as checkpointing them needs it: XLA drops on a CPU the barriers that protect
rematerialised code outside of a loop. One row shows what a Python loop over the layers needs instead: without
any rematerialisation that is the thriftier form.

Writes `memory.json` beside this script; with --quick (small sizes, one round, a smoke test) only a FILE that is named.
"""

import json
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from costs import compile_meta_gradient, machine, parse, time_in_turn
from jaxmeta import (
    Batch,
    Episode,
    conv4,
    exact,
    first_order,
    inner_adam,
    inner_loop,
    inner_sgd,
    maml,
    meta_grad,
    mixed_mode,
    unrolled,
)

FULL = {
    "width": 128,
    "heads": 4,
    "length": 256,
    "batch": 4,
    "vocabulary": 64,
    "filters": 64,
    "shots": 5,
    "queries": 15,
    "tasks": 2,
}
QUICK = FULL | {"width": 32, "length": 32, "batch": 2, "filters": 4, "shots": 1, "queries": 2}

STRATEGIES = {
    "unrolled()": unrolled(),
    'unrolled(remat="step")': unrolled(remat="step"),
    "mixed_mode(remat=None)": mixed_mode(remat=None),
    "mixed_mode(save_gradients=False)": mixed_mode(save_gradients=False),
    "mixed_mode()": mixed_mode(),
}
# The ends of the range, where the whole table would be minutes of compiling.
BASELINE, IN_PYTHON, STACK = "unrolled()", "unrolled(), layers in a Python loop", "mixed_mode(), layers checkpointed"
SOME = [BASELINE, IN_PYTHON, "mixed_mode()", "unrolled(), layers checkpointed", STACK]


def init_transformer(key, layers, sizes):
    width = sizes["width"]
    shapes = {
        "embed": (sizes["vocabulary"], width),
        "position": (sizes["length"], width),
        "project": (layers, width, 3 * width),
        "mix": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
        "output": (width, sizes["vocabulary"]),
    }
    keys = jax.random.split(key, len(shapes))
    return {name: 0.02 * jax.random.normal(one, shapes[name]) for name, one in zip(shapes, keys, strict=True)}


def normalise(hidden):
    hidden = hidden - hidden.mean(-1, keepdims=True)
    return hidden * jax.lax.rsqrt(jnp.square(hidden).mean(-1, keepdims=True) + 1e-5)


def block(heads, hidden, layer):
    """One pre-norm layer: causal self-attention, then two dense layers."""
    batch, length, width = hidden.shape
    projected = (normalise(hidden) @ layer["project"]).reshape(batch, length, heads, 3 * width // heads)
    query, key, value = jnp.split(projected, 3, axis=-1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // heads) ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones([length, length], bool)), scores, -1e30)
    attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    hidden = hidden + attended.reshape(batch, length, width) @ layer["mix"]
    return hidden + jax.nn.gelu(normalise(hidden) @ layer["up"]) @ layer["down"]


def next_token_loss(params, tokens, heads, remat_blocks, python_loop):
    hidden = params["embed"][tokens[:, :-1]] + params["position"]
    layers = {name: params[name] for name in ("project", "mix", "up", "down")}
    # prevent_cse is for code outside of a scan.
    step = jax.checkpoint(partial(block, heads), prevent_cse=False) if remat_blocks else partial(block, heads)
    if python_loop:
        for number in range(len(layers["mix"])):
            hidden = step(hidden, {name: leaf[number] for name, leaf in layers.items()})
    else:
        hidden, _ = jax.lax.scan(lambda hidden, layer: (step(hidden, layer), None), hidden, layers)
    log_probabilities = jax.nn.log_softmax(normalise(hidden) @ params["output"])
    return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1).mean()


def transformer_variants(layers, some, sizes):
    def variant(metagrad, *, remat_blocks=False, python_loop=False):
        def objective(phi, theta, state, tokens, key):
            return next_token_loss(phi, tokens, sizes["heads"], remat_blocks, python_loop), ()

        # A larger eps than usual, or Adam's first step is a sign, whose derivative is rounding noise.
        solve = inner_loop(objective, inner_adam(1e-3, eps=1e-5), 2, metagrad)
        return meta_grad(objective, solve)

    key_init, key_inner, key_outer = jax.random.split(jax.random.key(0), 3)
    shape = [sizes["batch"], sizes["length"] + 1]
    tokens = [jax.random.randint(key, shape, 0, sizes["vocabulary"]) for key in (key_inner, key_outer)]
    args = (init_transformer(key_init, layers, sizes), (), *tokens, jax.random.key(1))
    variants = {name: variant(metagrad) for name, metagrad in STRATEGIES.items()}
    variants[IN_PYTHON] = variant(unrolled(), python_loop=True)
    for name, metagrad in STRATEGIES.items():
        variants[f"{name}, layers checkpointed"] = variant(metagrad, remat_blocks=True)
    return {name: function for name, function in variants.items() if not some or name in some}, args


def conv4_variants(some, sizes):
    def variant(metagrad, *, remat_network=False):
        model = conv4(5, filters=sizes["filters"])
        if remat_network:
            model = checkpointed(model)
        learner = maml(model, inner_optimizer=inner_sgd(0.4), num_steps=5, metagrad=metagrad)

        def value_and_grad(theta, state, episodes, keys):
            value, grads, _ = exact().value_and_grad(learner, theta, state, (), episodes, keys, 0)
            return value, grads

        return value_and_grad

    rng = np.random.default_rng(0)

    def batch_of(examples):
        count = 5 * examples
        images = rng.random([sizes["tasks"], count, 28, 28, 1], np.float32)
        targets = np.tile(np.arange(count, dtype=np.int32) % 5, [sizes["tasks"], 1])
        return Batch(images, targets, np.ones([sizes["tasks"], count], np.float32))

    episodes = jax.device_put(Episode(batch_of(sizes["shots"]), batch_of(sizes["queries"])))
    theta, state = conv4(5, filters=sizes["filters"]).init(jax.random.key(0), episodes.support.inputs[0])
    args = (theta, state, episodes, jax.random.split(jax.random.key(1), sizes["tasks"]))
    variants = {name: variant(metagrad) for name, metagrad in STRATEGIES.items()}
    variants['unrolled(remat="group")'] = variant(unrolled(remat="group"))
    for name in ("unrolled()", 'unrolled(remat="step")'):
        variants[f"{name}, network checkpointed in both losses"] = variant(STRATEGIES[name], remat_network=True)
    # No second derivatives at all: what the query loss alone needs, below which no strategy gets.
    variants["first_order(), another gradient"] = variant(first_order())
    return {name: function for name, function in variants.items() if not some or name in some}, args


def checkpointed(model):
    def apply(params, state, inputs, *, key=None, train=True, weights=None):
        def run(params, state, inputs, weights):
            return model.apply(params, state, inputs, key=key, train=train, weights=weights)

        return jax.checkpoint(run)(params, state, inputs, weights)

    return model._replace(apply=apply)


def measure(name, variants, args, rounds):
    """Compile every variant, compare their meta-gradients, time them in turn: one row each, the first the baseline."""
    rows, compiled, expected = [], [], None
    for variant, function in variants.items():
        row, call, grads = compile_meta_gradient(function, args, expected)
        expected = grads if expected is None else expected
        rows.append({"setup": name, "variant": variant, **row})
        compiled.append(call)
    time_in_turn(rows, compiled, args, rounds)
    return rows


def show(rows):
    baseline = rows[0]
    print(f"\n{baseline['setup']}\n")
    titles = ["strategy", "temporary MiB", "plain / this", "median s", "min s", "median / plain", "compile s"]
    print(f"| {' | '.join(titles)} | gradient difference |")
    print("|---" * (len(titles) + 1) + "|")
    for row in rows:
        median = statistics.median(row["seconds"])
        less = baseline["temp_bytes"] / row["temp_bytes"]
        slower = median / statistics.median(baseline["seconds"])
        print(
            f"| {row['variant']} | {row['temp_bytes'] / 2**20:.1f} | {less:.1f} | {median:.2f} | "
            f"{min(row['seconds']):.2f} | {slower:.2f} | {row['compile_seconds']:.1f} | "
            f"{row['gradient_difference']:.1e} |"
        )


def main():
    options = parse(__doc__, __file__, 3, "small sizes and one round: does it run?")
    sizes, about = QUICK if options.quick else FULL, machine()
    if options.quick:
        setups = {"transformer, 2 layers": partial(transformer_variants, 2, [BASELINE, STACK])}
    else:
        setups = {
            "transformer, 6 layers": partial(transformer_variants, 6, None),
            "transformer, 12 layers": partial(transformer_variants, 12, SOME),
        }
    setups["conv4, 5-way"] = partial(conv4_variants, [BASELINE, "mixed_mode()"] if options.quick else None)
    rows = []
    for name, make in setups.items():
        rows.append(measure(name, *make(sizes), options.rounds))
        show(rows[-1])
        jax.clear_caches()
    if options.json:
        record = {**about, "sizes": sizes, "rows": [row for group in rows for row in group]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
