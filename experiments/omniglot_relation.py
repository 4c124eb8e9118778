"""Relation networks on Omniglot.

Paper     Sung, Yang, Zhang, Xiang, Torr and Hospedales, "Learning to Compare: Relation Network for Few-Shot Learning",
          2018, arXiv 1711.06025.
Command   python experiments/omniglot_relation.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  99.6 +- 0.2, 99.8 +- 0.1, 97.6 +- 0.2, 99.1 +- 0.1 %, with a relation module that is normalised by batch, and
          so sees all queries of a task; ours normalises each pair by itself.
Setting   a task a step, as the paper's: 19 queries a class with 5 ways and 1 shot, 15 with 5 shots, 10 and 5 with 20
          ways; 500,000 outer steps, Adam 1e-3; maps of conv4 with 64 filters, statistics of training.
Budget    500,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

QUERIES = {"5w1s": 19, "5w5s": 15, "20w1s": 10, "20w5s": 5}

if __name__ == "__main__":
    run_settings(
        __doc__,
        "relation",
        paper={"5w1s": 0.996, "5w5s": 0.998, "20w1s": 0.976, "20w5s": 0.991},
        changes=lambda setting: {
            "norm": "running",
            "tasks": 1,
            "steps": 500000,
            "checkpoint_every": 10000,
            "queries": QUERIES[setting],
        },
    )
