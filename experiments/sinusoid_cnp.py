"""A conditional neural process on sine waves: mean squared error after five points, beside MAML's.

Paper     Garnelo et al., "Conditional Neural Processes", 2018, arXiv 1807.01613, which has none of sine waves; those
          of Finn, Abbeel and Levine, 2017, arXiv 1703.03400, with MAML's numbers, stand in for one.
Command   python experiments/sinusoid_cnp.py
Expected  no number of its own; MAML 0.67, 0.38 and 0.35 after 1, 5 and 10 gradient steps on five points
Setting   70,000 outer steps of 25 tasks of ten points, Adam 1e-3 with a cosine; an encoder and a decoder of two hidden
          layers.
Budget    70,000 outer steps; a minute or two.
Hardware  two CPU cores.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from jaxmeta.presets import PRESETS, with_algorithm
from jaxmeta.run import evaluate_run, train_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sinusoid_cnp"))
    options = parser.parse_args()
    config = with_algorithm(dataclasses.replace(PRESETS["sinusoid-maml"], shots=10), "cnp")
    train_run(config, options.out)
    result = evaluate_run(options.out, shots=5)
    (options.out / "five.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
