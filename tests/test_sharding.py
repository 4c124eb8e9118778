"""Two devices: tasks sharded over a mesh give the meta-gradient of one device, without gathering the tasks."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxmeta import METAGRADS
from jaxmeta.check import meta_loss_of, quadratic

assert len(jax.devices()) == 2
mesh = jax.make_mesh((2,), ("tasks",))
for name in ("unrolled", "mixed_mode", "forward", "implicit", "truncated"):
    factory = METAGRADS[name]
    case = quadratic(jax.random.key(0), proximal=2.0, learn_start=name != "truncated")

    def mean_loss(theta, targets):
        def of_task(target):
            return meta_loss_of(case.problem._replace(outer_data=target), factory())(theta)

        return jnp.mean(jax.vmap(of_task)(targets))

    targets = jax.random.normal(jax.random.key(1), [8, 4])
    gradient = jax.jit(jax.grad(mean_loss))
    alone = gradient(case.problem.theta, targets)
    sharded = jax.device_put(targets, NamedSharding(mesh, PartitionSpec("tasks")))
    theta = jax.device_put(case.problem.theta, NamedSharding(mesh, PartitionSpec()))
    compiled = gradient.lower(theta, sharded).compile()
    both = compiled(theta, sharded)
    for leaf in alone:
        np.testing.assert_allclose(alone[leaf], both[leaf], rtol=1e-5, atol=1e-6)
    # Written out for each device: without check_vma, which would sum the gradients by the shared theta over devices.
    of_task = lambda theta, target: jax.grad(mean_loss)(theta, target[None])
    per_task = jax.vmap(of_task, (None, 0))
    mapped = jax.shard_map(
        per_task, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("tasks")), out_specs=PartitionSpec("tasks"),
        check_vma=False,
    )
    given = jax.jit(mapped)(theta, sharded)
    for leaf, expected in jax.jit(per_task)(case.problem.theta, targets).items():
        np.testing.assert_allclose(given[leaf], expected, rtol=1e-5, atol=1e-6)
    program = compiled.as_text()
    assert "all-reduce" in program and "all-gather" not in program, name
print("ok")
"""


def test_every_strategy_on_a_mesh_of_two_devices():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("ok")
