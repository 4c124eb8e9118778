"""The MAML gradient by learn2learn, higher and torch.func; `agree.py` runs this in the environment of the peers.

python torch_side.py PROBLEM.npz ANSWER.npz
"""

import json
import sys

import numpy as np

from harness import read_problem, versions_of
from torch_networks import gradient_in
from torch_peers import make_outer

PEERS = {"learn2learn": "learn2learn", "higher": "higher", "torch.func": "torch.func-loop"}


def main():
    problem_file, answer_file = sys.argv[1:]
    versions = versions_of("torch", "learn2learn", "higher", "numpy")
    answers = {"versions": json.dumps(versions)}
    for peer, name in PEERS.items():
        # A fresh problem and network for each, since they leave their gradients in it.
        network, outer = make_outer(name, read_problem(problem_file))
        answers[f"{peer}/loss"] = outer()
        answers.update({f"{peer}/{ours}": leaf for ours, leaf in gradient_in(network).items()})
    np.savez(answer_file, **answers)


if __name__ == "__main__":
    main()
