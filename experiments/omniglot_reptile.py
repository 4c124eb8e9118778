"""Reptile on Omniglot, transductive as in the first row of the paper's table.

Paper     Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018,
          arXiv 1803.02999. The setting is that of the authors' code as remembered, but for two things: there the
          second moments of the inner Adam go on from task to task (here they begin anew, so that its first step is
          one of signs), and the inductive form normalises a query image by the support set and itself (here by the
          support set).
Command   python experiments/omniglot_reptile.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  97.68 +- 0.04, 99.48 +- 0.06, 89.43 +- 0.14, 97.12 +- 0.32 %
          (inductive: 95.39, 98.90, 88.14, 96.65)
Setting   outer steps of 5 tasks, outer rate from 1 to 0; inner Adam without first moment, 1e-3;
          5 steps of 10 images (10 steps of 20 and 5e-4 for 20-way), 50 at test
          of 5 images (20-way: 10); 10 images of a class, of which the
          test shows `shots`; 64 filters, stride 2; one query a class.
Budget    100,000 outer steps with 5 ways, 200,000 with 20; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from typing import Any

from settings import run_settings


def changes(setting: str) -> dict[str, Any]:
    shots = {"1s": 1, "5s": 5}[setting[-2:]]
    shared = {"tasks": 5, "outer_lr": 1.0, "outer_schedule": "linear", "queries": 10 - shots, "eval_queries": 1}
    if setting.startswith("20w"):
        return shared | {
            "steps": 200000,
            "inner_steps": 10,
            "inner_lr": 5e-4,
            "inner_batch": 20,
            "eval_inner_batch": 10,
        }
    return shared | {"steps": 100000, "eval_inner_batch": 5}


if __name__ == "__main__":
    run_settings(
        __doc__,
        "reptile",
        paper={"5w1s": 0.9768, "5w5s": 0.9948, "20w1s": 0.8943, "20w5s": 0.9712},
        changes=changes,
        protocols=lambda setting: ("reptile", "reptile-inductive"),
    )
