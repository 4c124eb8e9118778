"""`python -m jaxmeta.bench REQUEST`: measure one load and print its row, a line of JSON."""

import json
import sys

import jax

from jaxmeta.bench.loads import LOADS, tiny, worth_dividing
from jaxmeta.bench.measure import measure
from jaxmeta.cores import split_cpu
from jaxmeta.models import PRECISIONS

request = json.loads(sys.argv[1])
# Compilation is one of the figures: nothing may come from an earlier run.
jax.config.update("jax_enable_compilation_cache", False)
precision = request.get("precision", "float32")
# The product that a step is measured by is in its precision too.
jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])
load = LOADS[request["load"]]
load = tiny(load) if request.get("quick") else load
# A curve is made by changing one field of a load at a time (`benchmarks/scaling.py`).
load = load._replace(**request.get("changes", {}))
devices = request.get("devices")
if worth_dividing(load):
    split_cpu(load.tasks if devices is None else devices)
how = {"task_chunk": request.get("task_chunk"), "precision": precision, "devices": devices}
print(json.dumps(measure(load, rounds=request["rounds"], **how)))
