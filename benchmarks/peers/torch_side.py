"""The MAML gradient by learn2learn, higher and torch.func; `agree.py` runs this in the environment of the peers.

    python torch_side.py PROBLEM.npz ANSWER.npz

The networks here are what a user of PyTorch would write. Weights come and gradients go in jaxmeta's names and
layouts: images NHWC, convolution kernels HWIO, dense kernels (inputs, outputs), features flattened as (H, W, C).
"""

import importlib.util
import json
import platform
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

BLOCKS = 4


def import_learn2learn_maml():
    """Import learn2learn's MAML and nothing else of it.

    Its `__init__` files import gym, torchvision and more, which MAML does not need: both packages are entered as
    bare ones, with their folders but without running those files.
    """
    folder = Path(importlib.util.find_spec("learn2learn").origin).parent
    for name, path in (("learn2learn", folder), ("learn2learn.algorithms", folder / "algorithms")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML

    return MAML


class Block(nn.Module):
    """Convolution, normalisation by the statistics of the batch, ReLU, and pooling unless strided."""

    def __init__(self, channels, filters, size, downsample):
        super().__init__()
        stride = 2 if downsample == "stride" else 1
        # SAME padding, written out: with stride 2 and an even size it is 0 before and 1 after, where `padding=1`
        # would put 1 on both sides and shift the image by a pixel.
        outputs = -(-size // stride)
        total = (outputs - 1) * stride + 3 - size
        before, after = total // 2, total - total // 2
        self.pad = nn.ZeroPad2d((before, after, before, after))
        self.conv = nn.Conv2d(channels, filters, 3, stride=stride, bias=False)
        self.norm = nn.BatchNorm2d(filters, eps=1e-5, track_running_stats=False)
        self.pool = nn.MaxPool2d(2) if downsample == "pool" else nn.Identity()
        self.output_size = size // 2 if downsample == "pool" else outputs

    def forward(self, images):
        return self.pool(torch.relu(self.norm(self.conv(self.pad(images)))))


class Conv4(nn.Module):
    """Four blocks and a head; strided, the last block is averaged over positions."""

    def __init__(self, channels, filters, size, ways, downsample):
        super().__init__()
        self.average = downsample == "stride"
        self.blocks = nn.Sequential()
        for _ in range(BLOCKS):
            self.blocks.append(Block(channels, filters, size, downsample))
            channels, size = filters, self.blocks[-1].output_size
        self.head = nn.Linear(filters if self.average else filters * size * size, ways)

    def forward(self, images):
        hidden = self.blocks(images)
        # NCHW to NHWC before flattening, so that the rows of the head are in jaxmeta's order.
        return self.head(hidden.mean((2, 3)) if self.average else hidden.permute(0, 2, 3, 1).flatten(1))


# jaxmeta's name of every parameter -> its name here.
NAMES = {"head/kernel": "head.weight", "head/bias": "head.bias"}
for block in range(BLOCKS):
    NAMES[f"body/Conv_{block}/kernel"] = f"blocks.{block}.conv.weight"
    NAMES[f"body/BatchNorm_{block}/scale"] = f"blocks.{block}.norm.weight"
    NAMES[f"body/BatchNorm_{block}/bias"] = f"blocks.{block}.norm.bias"


def to_torch(array):
    """HWIO to OIHW, (inputs, outputs) to (outputs, inputs)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T))


def from_torch(tensor):
    array = tensor.detach().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def make_network(problem):
    channels, filters = problem["weights/body/Conv_0/kernel"].shape[2:]
    ways = problem["weights/head/bias"].shape[0]
    size = problem["support/inputs"].shape[2]
    network = Conv4(channels, filters, size, ways, str(problem["downsample"])).double()
    # Strict: every parameter must be given and none is left over.
    network.load_state_dict({name: to_torch(problem[f"weights/{ours}"]) for ours, name in NAMES.items()})
    return network


def tasks_of(problem):
    """One `(support images, support labels, query images, query labels)` for each task."""

    def arrays(part):
        images = np.ascontiguousarray(problem[f"{part}/inputs"].transpose(0, 1, 4, 2, 3))
        return torch.from_numpy(images), torch.from_numpy(problem[f"{part}/targets"].astype(np.int64))

    return list(zip(*arrays("support"), *arrays("query"), strict=True))


def gradients_left_in(network):
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def by_learn2learn(network, tasks, rate, num_steps):
    """`MAML(...).clone()`, `adapt`, `backward`, as in learn2learn's own examples."""
    maml = import_learn2learn_maml()(network, lr=rate, first_order=False)
    total = 0.0
    for support, support_labels, query, query_labels in tasks:
        learner = maml.clone()
        for _ in range(num_steps):
            learner.adapt(cross_entropy(learner(support), support_labels))
        loss = cross_entropy(learner(query), query_labels) / len(tasks)
        loss.backward()
        total += loss.item()
    return total, gradients_left_in(network)


def by_higher(network, tasks, rate, num_steps):
    """`innerloop_ctx` around PyTorch's own SGD."""
    import higher

    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    total = 0.0
    for support, support_labels, query, query_labels in tasks:
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (adapted, inner):
            for _ in range(num_steps):
                inner.step(cross_entropy(adapted(support), support_labels))
            loss = cross_entropy(adapted(query), query_labels) / len(tasks)
            loss.backward()
        total += loss.item()
    return total, gradients_left_in(network)


def by_torch_func(network, tasks, rate, num_steps):
    """No library: `torch.func.grad` of the formula. Task by task, not vmapped."""
    theta = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss_of(weights, images, labels):
        return cross_entropy(torch.func.functional_call(network, weights, (images,)), labels)

    def meta_loss(theta, support, support_labels, query, query_labels):
        phi = theta
        for _ in range(num_steps):
            gradient = torch.func.grad(loss_of)(phi, support, support_labels)
            phi = {name: phi[name] - rate * gradient[name] for name in phi}
        return loss_of(phi, query, query_labels)

    total, sums = 0.0, {name: torch.zeros_like(weight) for name, weight in theta.items()}
    for task in tasks:
        gradient, loss = torch.func.grad_and_value(meta_loss)(theta, *task)
        total += loss.item() / len(tasks)
        sums = {name: sums[name] + gradient[name] / len(tasks) for name in sums}
    return total, sums


PEERS = {"learn2learn": by_learn2learn, "higher": by_higher, "torch.func": by_torch_func}


def main():
    problem_file, answer_file = sys.argv[1:]
    problem = dict(np.load(problem_file))
    tasks, rate, num_steps = tasks_of(problem), float(problem["inner_rate"]), int(problem["num_steps"])
    packages = ("torch", "learn2learn", "higher", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    answers = {"versions": json.dumps(versions)}
    for peer, gradient_by in PEERS.items():
        # A fresh network for each, since some leave their gradients in it.
        loss, gradient = gradient_by(make_network(problem), tasks, rate, num_steps)
        answers[f"{peer}/loss"] = loss
        answers.update({f"{peer}/{ours}": from_torch(gradient[name]) for ours, name in NAMES.items()})
    np.savez(answer_file, **answers)


if __name__ == "__main__":
    main()
