"""The meta-step by PyTorch libraries: `python torch_peers.py NAME PROBLEM.npz`, see `harness.py`.

Every entry of `PEERS` is `(network, tasks, load, loss_of) -> outer`; `outer()` leaves the meta-gradient, averaged over
the tasks, in the network's `.grad` and returns the mean query loss. Adam is PyTorch's own for all.
"""

import importlib.util
import sys
import time
import types
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, mse_loss

from harness import MATMUL_SIZE, OUTER_RATE, Contender, cores, serve, versions_of
from torch_networks import gradient_in, make_network, make_tasks


def import_learn2learn_maml():
    """Import learn2learn's MAML and nothing else of it.

    Its `__init__` files import gym, torchvision and more, which MAML does not need: both packages are entered as
    bare ones, with their folders but without running those files.
    """
    found = importlib.util.find_spec("learn2learn")
    if found is None:
        raise ModuleNotFoundError("No module named 'learn2learn'", name="learn2learn")
    folder = Path(found.origin).parent
    for name, path in (("learn2learn", folder), ("learn2learn.algorithms", folder / "algorithms")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML

    return MAML


def task_loop(of_task, tasks, load):
    """Task by task, one `backward()` each, as in the libraries' own examples: it also keeps memory low."""

    def outer():
        total = 0.0
        for task in zip(*tasks, strict=True):
            loss = of_task(*task) / load.tasks
            loss.backward()
            total += loss.item()
        return total

    return outer


def by_learn2learn(network, tasks, load, loss_of):
    """`MAML(...).clone()`, `adapt`."""
    maml = import_learn2learn_maml()(network, lr=load.inner_rate, first_order=False)

    def of_task(support, support_targets, query, query_targets):
        learner = maml.clone()
        for _ in range(load.num_steps):
            learner.adapt(loss_of(learner(support), support_targets))
        return loss_of(learner(query), query_targets)

    return task_loop(of_task, tasks, load)


def by_higher(network, tasks, load, loss_of):
    """`innerloop_ctx` around PyTorch's own SGD."""
    import higher

    optimizer = torch.optim.SGD(network.parameters(), lr=load.inner_rate)

    def outer():
        total = 0.0
        for support, support_targets, query, query_targets in zip(*tasks, strict=True):
            with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (adapted, inner):
                for _ in range(load.num_steps):
                    inner.step(loss_of(adapted(support), support_targets))
                loss = loss_of(adapted(query), query_targets) / load.tasks
                loss.backward()
            total += loss.item()
        return total

    return outer


def by_torchopt(network, tasks, load, loss_of):
    """`MetaSGD` on the module itself, whose state is put back after each task."""
    import torchopt

    inner = torchopt.MetaSGD(network, lr=load.inner_rate)

    def outer():
        total = 0.0
        start = [torchopt.extract_state_dict(part, by="reference") for part in (network, inner)]
        for support, support_targets, query, query_targets in zip(*tasks, strict=True):
            for _ in range(load.num_steps):
                inner.step(loss_of(network(support), support_targets))
            loss = loss_of(network(query), query_targets) / load.tasks
            loss.backward()
            total += loss.item()
            for part, state in zip((network, inner), start, strict=True):
                torchopt.recover_state_dict(part, state)
        return total

    return outer


def by_betty(network, tasks, load, loss_of):
    """An unrolled `IterativeProblem` under an `ImplicitProblem`, the tasks by gradient accumulation."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem, IterativeProblem

    copy = type(network)(load.problem).to(tasks[0].device, tasks[0].dtype)
    now = {"task": 0, "loss": 0.0, "gradient": None}
    support, support_targets, query, query_targets = tasks

    class Outer(ImplicitProblem):
        def get_batch(self):
            return query[now["task"]], query_targets[now["task"]]

        def training_step(self, batch):
            outputs = self.inner.fmodule(self.inner.params, self.inner.buffers, batch[0])
            loss = loss_of(outputs, batch[1])
            now["loss"] += loss.item() / load.tasks
            return loss

        def optimizer_step(self, *_, **__):
            # Betty drops the gradient after this; the step itself is taken by the Adam that all share.
            now["gradient"] = [parameter.grad for parameter in network.parameters()]

    class Inner(IterativeProblem):
        def on_inner_loop_start(self):
            self.params = tuple(parameter.clone() for parameter in self.outer.module.parameters())
            # Betty's SGD keeps 0 * momentum_buffer, and with it the graph of the last task.
            for number in range(len(self.params)):
                self.optimizer.state[number]["momentum_buffer"] = None

        def get_batch(self):
            return support[now["task"]], support_targets[now["task"]]

        def training_step(self, batch):
            return loss_of(self.fmodule(self.params, self.buffers, batch[0]), batch[1])

    of_outer = Config(type="darts", first_order=False, retain_graph=False, gradient_accumulation=load.tasks)
    of_inner = Config(type="darts", unroll_steps=load.num_steps, first_order=False, retain_graph=True)
    # Neither optimiser moves anything here: the inner one is made differentiable, the outer one is passed over.
    outer_problem = Outer("outer", of_outer, network, torch.optim.Adam(network.parameters(), lr=OUTER_RATE))
    inner_problem = Inner("inner", of_inner, copy, torch.optim.SGD(copy.parameters(), lr=load.inner_rate))
    depends = {"u2l": {outer_problem: [inner_problem]}, "l2u": {inner_problem: [outer_problem]}}
    engine = Engine([outer_problem, inner_problem], EngineConfig(train_iters=1), depends)
    # Betty's own start of a run is one step on the first task; its accumulated gradient must not count.
    engine.train()
    network.zero_grad()

    def outer():
        now["loss"] = 0.0
        for task in range(load.tasks):
            now["task"] = task
            for _ in range(load.num_steps):
                engine.global_step += 1
                engine.train_step()
        for parameter, gradient in zip(network.parameters(), now["gradient"], strict=True):
            parameter.grad = gradient
        return now["loss"]

    return outer


def by_func_loop(network, tasks, load, loss_of):
    """No library: `functional_call` and `autograd.grad`, task by task."""
    theta = dict(network.named_parameters())

    def value(weights, inputs, targets):
        return loss_of(torch.func.functional_call(network, weights, (inputs,)), targets)

    def of_task(support, support_targets, query, query_targets):
        phi = theta
        for _ in range(load.num_steps):
            loss = value(phi, support, support_targets)
            gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: phi[name] - load.inner_rate * one for name, one in zip(phi, gradient, strict=True)}
        return value(phi, query, query_targets)

    return task_loop(of_task, tasks, load)


def by_func_vmap(network, tasks, load, loss_of, transform=lambda function: function):
    """`torch.func.vmap` of the gradient of a task.

    Not the gradient of the vmapped loss: with `batch_norm`, whose weight is adapted, that is wrong in torch 2.13.
    """
    parameters = dict(network.named_parameters())

    def value(weights, inputs, targets):
        return loss_of(torch.func.functional_call(network, weights, (inputs,)), targets)

    def of_task(theta, support, support_targets, query, query_targets):
        phi = theta
        for _ in range(load.num_steps):
            gradient = torch.func.grad(value)(phi, support, support_targets)
            phi = {name: phi[name] - load.inner_rate * gradient[name] for name in phi}
        return value(phi, query, query_targets)

    def meta_gradient(theta, *tasks):
        per_task = torch.func.vmap(torch.func.grad_and_value(of_task), in_dims=(None, 0, 0, 0, 0))
        gradient, loss = per_task(theta, *tasks)
        return {name: leaf.mean(0) for name, leaf in gradient.items()}, loss.mean()

    meta_gradient = transform(meta_gradient)

    def outer():
        theta = {name: parameter.detach() for name, parameter in parameters.items()}
        gradient, loss = meta_gradient(theta, *tasks)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name]
        return loss

    return outer


def by_func_compile(network, tasks, load, loss_of):
    return by_func_vmap(network, tasks, load, loss_of, transform=torch.compile)


PEERS = {
    "learn2learn": (by_learn2learn, ["learn2learn"]),
    "higher": (by_higher, ["higher"]),
    "torchopt": (by_torchopt, ["torchopt"]),
    "betty": (by_betty, ["betty-ml"]),
    "torch.func-loop": (by_func_loop, []),
    "torch.func-vmap": (by_func_vmap, []),
    "torch.func-compile": (by_func_compile, []),
}


def make_outer(name, problem, device="cpu"):
    """The network, and the peer's `outer()` on it."""
    network, tasks = make_network(problem, device), make_tasks(problem, device)
    loss_of = mse_loss if tasks[1].is_floating_point() else cross_entropy
    problem.load.problem, problem.load.tasks = problem, problem.support[0].shape[0]
    return network, PEERS[name][0](network, tasks, problem.load, loss_of)


def make(problem, options):
    torch.set_num_threads(cores())
    device = "cuda" if options.device == "gpu" else "cpu"
    tf32 = options.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    network, outer = make_outer(options.name, problem, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=OUTER_RATE)
    matrix = torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device)
    if options.precision == "bfloat16":
        # A cache would keep what was cast under a transformation of torch.func.
        cached = not options.name.startswith("torch.func")
        outer = torch.autocast(device, torch.bfloat16, cache_enabled=cached)(outer)
        matrix = matrix.bfloat16()

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def gradient():
        network.zero_grad()
        loss = float(outer())
        return loss, gradient_in(network)

    def step():
        optimizer.zero_grad()
        loss = float(outer())
        optimizer.step()
        wait()
        return loss

    def product():
        matrix @ matrix
        wait()

    def prepare():
        if options.name != "torch.func-compile":
            return {}
        begin = time.perf_counter()
        outer()
        wait()
        return {"compile_seconds": time.perf_counter() - begin}

    def device_peak():
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    versions = versions_of("torch", *PEERS[options.name][1])
    return Contender(gradient, prepare, step, product, {"versions": versions}, device_peak)


if __name__ == "__main__":
    serve(make, list(PEERS))
