"""Characters to digits: trained on Omniglot, judged on tasks of MNIST, whose classes were never seen.

Paper     none with these rules; Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image
          Recognition", 2015, ICML Deep Learning Workshop, judge characters on ten digits with one example each: 70.3 %
          by a Siamese network, 26.5 % by the nearest neighbour.
Command   python experiments/omniglot_to_mnist.py RUN --data-dir DIR     (RUN: of any experiment on Omniglot)
Expected  of ten ways and one shot more than 70.3 %
Setting   tasks of all ten digits of the test images, ten ways for learners whose head allows it, one example and 15
          queries a class, inductive; 1000 tasks. `jaxmeta evaluate RUN --dataset mnist` judges by the run's own ways.
Budget    none for training: the run is there; a minute to judge it.
Hardware  two CPU cores.
"""

import argparse
import json
from pathlib import Path

from jaxmeta.algorithms import ALGORITHMS, options_of
from jaxmeta.folder import read_config, write_atomically
from jaxmeta.run import evaluate_run
from settings import said_plainly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on Omniglot")
    parser.add_argument("--data-dir", type=Path, help="MNIST: the four files, or a prepared copy")
    options = parser.parse_args()
    with said_plainly(parser):
        algorithm = ALGORITHMS[read_config(options.run).algorithm]
        # A head with outputs of its own has as many as it was trained with.
        ways = 10 if "ways" in options_of(algorithm) else None
        asked = {"dataset": "mnist", "data_dir": options.data_dir, "protocol": "default"}
        result = evaluate_run(options.run, **asked, ways=ways, shots=1)
        write_atomically(options.run / "mnist.json", json.dumps(result, indent=2) + "\n")
        print(json.dumps(result))


if __name__ == "__main__":
    main()
