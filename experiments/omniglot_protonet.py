"""Prototypical networks on Omniglot.

Paper     Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017,
          arXiv 1703.05175.
Command   python experiments/omniglot_protonet.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.8, 99.7, 96.0, 98.9 %
Setting   the split of Vinyals et al., as in the paper; trained with 60 ways and 5 queries a class, one task a step;
          pooled conv4 with 64 filters and statistics of the training tasks at test; Adam 1e-3 with a cosine.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "protonet",
        paper={"5w1s": 0.988, "5w5s": 0.997, "20w1s": 0.960, "20w5s": 0.989},
        changes=lambda setting: {
            "split": "vinyals",
            "model": "conv4",
            "norm": "running",
            "train_ways": 60,
            "queries": 5,
            "eval_queries": 5,
            "tasks": 1,
            "outer_schedule": "cosine",
        },
        protocols=lambda setting: ("protonet",),
    )
