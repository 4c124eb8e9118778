"""The networks in PyTorch, as a user would write them, filled with weights in jaxmeta's names and layouts.

Images are NHWC there and NCHW here, convolution kernels HWIO and OIHW, dense kernels (inputs, outputs) and the other
way round; features are flattened as (H, W, C). Every network has `names`: jaxmeta's name of each parameter -> its own.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu, leaky_relu

BLOCKS = 4
HEADS = 4


def block_names(ours, torchs, *, bias):
    """Names of a convolution and its normalisation: pairs of paths without the last part."""
    names = {}
    for (our_conv, our_norm), (conv, norm) in zip(ours, torchs, strict=True):
        names[f"{our_conv}/kernel"] = f"{conv}.weight"
        if bias:
            names[f"{our_conv}/bias"] = f"{conv}.bias"
        names |= {f"{our_norm}/scale": f"{norm}.weight", f"{our_norm}/bias": f"{norm}.bias"}
    return names


HEAD = {"head/kernel": "head.weight", "head/bias": "head.bias"}


class Mlp(nn.Module):
    names = HEAD | {
        f"body/Dense_{number}/{ours}": f"body.{2 * number}.{theirs}"
        for number in range(2)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    }

    def __init__(self, problem):
        super().__init__()
        inputs, width = problem.weights["body/Dense_0/kernel"].shape
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, problem.load.outputs)

    def forward(self, inputs):
        return self.head(self.body(inputs))


class Block(nn.Module):
    """Convolution, normalisation by the statistics of the batch, ReLU, and pooling unless strided."""

    def __init__(self, channels, filters, size, downsample, bias):
        super().__init__()
        stride = 2 if downsample == "stride" else 1
        self.output_size = size // 2 if downsample == "pool" else -(-size // stride)
        # SAME padding: with stride 2 and an even size it is 0 before and 1 after, where `padding=1`
        # would put 1 on both sides and shift the image by a pixel.
        total = (-(-size // stride) - 1) * stride + 3 - size
        before, after = total // 2, total - total // 2
        even = before == after
        self.pad = nn.Identity() if even else nn.ZeroPad2d((before, after, before, after))
        self.conv = nn.Conv2d(channels, filters, 3, stride=stride, padding=before if even else 0, bias=bias)
        self.norm = nn.BatchNorm2d(filters, eps=1e-5, track_running_stats=False)
        self.pool = nn.MaxPool2d(2) if downsample == "pool" else nn.Identity()

    def forward(self, images):
        return self.pool(torch.relu(self.norm(self.conv(self.pad(images)))))


class Conv4(nn.Module):
    """Four blocks and a head; strided, the last block is averaged over positions."""

    def __init__(self, problem):
        super().__init__()
        channels, filters = problem.weights["body/Conv_0/kernel"].shape[2:]
        size, bias = problem.support[0].shape[2], "body/Conv_0/bias" in problem.weights
        downsample = getattr(problem.load, "downsample", "pool")
        self.average = downsample == "stride"
        self.blocks = nn.Sequential()
        for _ in range(BLOCKS):
            self.blocks.append(Block(channels, filters, size, downsample, bias))
            channels, size = filters, self.blocks[-1].output_size
        self.head = nn.Linear(filters if self.average else filters * size * size, problem.load.outputs)
        ours = [(f"body/Conv_{number}", f"body/BatchNorm_{number}") for number in range(BLOCKS)]
        theirs = [(f"blocks.{number}.conv", f"blocks.{number}.norm") for number in range(BLOCKS)]
        self.names = HEAD | block_names(ours, theirs, bias=bias)

    def forward(self, images):
        hidden = self.blocks(images)
        # NCHW to NHWC before flattening, so that the rows of the head are in jaxmeta's order.
        return self.head(hidden.mean((2, 3)) if self.average else hidden.permute(0, 2, 3, 1).flatten(1))


class ResidualBlock(nn.Module):
    def __init__(self, channels, filters):
        super().__init__()
        sizes = [(channels, 3), (filters, 3), (filters, 3), (channels, 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, filters, kernel, padding=kernel // 2, bias=False) for inputs, kernel in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(filters, eps=1e-5, track_running_stats=False) for _ in sizes)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images):
        hidden = images
        for layer in range(3):
            hidden = self.norms[layer](self.convs[layer](hidden))
            hidden = leaky_relu(hidden, 0.1) if layer < 2 else hidden
        return self.pool(leaky_relu(hidden + self.norms[3](self.convs[3](images)), 0.1))


class ResNet12(nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.blocks, self.names = nn.Sequential(), dict(HEAD)
        for number in range(BLOCKS):
            ours = f"body/ResidualBlock_{number}"
            channels, filters = problem.weights[f"{ours}/Conv_0/kernel"].shape[2:]
            self.blocks.append(ResidualBlock(channels, filters))
            self.names |= block_names(
                [(f"{ours}/Conv_{layer}", f"{ours}/BatchNorm_{layer}") for layer in range(4)],
                [(f"blocks.{number}.convs.{layer}", f"blocks.{number}.norms.{layer}") for layer in range(4)],
                bias=False,
            )
        self.head = nn.Linear(filters, problem.load.outputs)

    def forward(self, images):
        return self.head(self.blocks(images).mean((2, 3)))


class Transformer(nn.Module):
    """Its matrices are kept as jaxmeta has them: (inputs, outputs), those of all layers in one array."""

    names = {f"body/{name}": name for name in ("embed", "position", "project", "mix", "up", "down", "output")}

    def __init__(self, problem):
        super().__init__()
        for ours, name in self.names.items():
            self.register_parameter(name, nn.Parameter(torch.empty(problem.weights[ours].shape)))

    def forward(self, inputs):
        hidden = inputs @ self.embed + self.position
        for layer in range(self.mix.shape[0]):
            hidden = self.attend(hidden, layer)
            hidden = hidden + gelu(normalise(hidden) @ self.up[layer], approximate="tanh") @ self.down[layer]
        return normalise(hidden).mean(1) @ self.output

    def attend(self, hidden, layer):
        examples, length, width = hidden.shape
        projected = (normalise(hidden) @ self.project[layer]).reshape(examples, length, HEADS, 3 * width // HEADS)
        query, key, value = projected.permute(0, 2, 1, 3).chunk(3, dim=-1)
        # Written out: the fused attention of PyTorch has no second derivative.
        scores = query @ key.transpose(-1, -2) * (width // HEADS) ** -0.5
        attended = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).reshape(examples, length, width)
        return hidden + attended @ self.mix[layer]


def normalise(hidden):
    hidden = hidden - hidden.mean(-1, keepdim=True)
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-5)


NETWORKS = {"mlp": Mlp, "conv4": Conv4, "resnet12": ResNet12, "transformer": Transformer}


def reordered(ours, array):
    """HWIO to OIHW, (inputs, outputs) to (outputs, inputs); only what jaxmeta calls a kernel."""
    if not ours.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def ordered_back(ours, array):
    if not ours.endswith("kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def make_network(problem, device="cpu"):
    network = NETWORKS[problem.load.network](problem)
    dtype = torch.from_numpy(problem.support[0]).dtype
    weights = {
        name: torch.from_numpy(np.ascontiguousarray(reordered(ours, problem.weights[ours])))
        for ours, name in network.names.items()
    }
    # Strict: every parameter must be given and none is left over.
    network.to(dtype).load_state_dict(weights)
    if set(network.names) != set(problem.weights):
        raise ValueError(f"weights without a place: {sorted(set(network.names) ^ set(problem.weights))}")
    return network.to(device)


def make_tasks(problem, device="cpu"):
    """`(support inputs, support targets, query inputs, query targets)`, each with a leading task axis."""
    tensors = []
    for inputs, targets in (problem.support, problem.query):
        inputs = inputs.transpose(0, 1, 4, 2, 3) if inputs.ndim == 5 else inputs
        targets = targets if targets.ndim == 3 else targets.astype(np.int64)
        tensors += [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (inputs, targets)]
    return tensors


def gradient_in(network):
    """What was left in `.grad`, in jaxmeta's names and layouts."""
    parameters = dict(network.named_parameters())
    return {ours: ordered_back(ours, parameters[name].grad.cpu().numpy()) for ours, name in network.names.items()}
