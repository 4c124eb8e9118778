"""R2-D2 on Omniglot: ridge regression on learned features.

Paper     Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with Differentiable Closed-form Solvers", 2019,
          arXiv 1805.08136.
Command   python experiments/omniglot_r2d2.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.91 +- 0.05, 99.74 +- 0.02, 96.24 +- 0.05, 99.20 +- 0.02 % (quoted from memory), with a network of 96 to 512
          filters; ours is the one of 64 that everybody has.
Setting   pooled conv4 with 64 filters and statistics of training; 60,000 outer steps of two tasks of 20 ways, 5 queries
          a class, Adam 1e-3 with a cosine.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "r2d2",
        paper={"5w1s": 0.9891, "5w5s": 0.9974, "20w1s": 0.9624, "20w5s": 0.9920},
        changes=lambda setting: {
            "model": "conv4",
            "norm": "running",
            "train_ways": 20,
            "queries": 5,
            "tasks": 2,
            "outer_schedule": "cosine",
        },
    )
