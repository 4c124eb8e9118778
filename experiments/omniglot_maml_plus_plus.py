"""MAML++ on Omniglot.

Paper     Antoniou, Edwards and Storkey, "How to Train Your MAML", 2019, arXiv 1810.09502.
Command   python experiments/omniglot_maml_plus_plus.py 20w1s --data-dir DIR     (also 5w1s, 5w5s, 20w5s, all)
Expected  99.47, 99.93, 97.65, 99.33 % (an ensemble of the best five checkpoints)
Setting   50,000 outer steps of 8 tasks, Adam 1e-3 with a cosine; 5 inner steps in training and at test,
          rates begin at 0.1; first-order gradients in the first half, multi-step loss over a tenth; one query a class.
Budget    50,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "maml++",
        paper={"5w1s": 0.9947, "5w5s": 0.9993, "20w1s": 0.9765, "20w5s": 0.9933},
        changes=lambda setting: {
            "tasks": 8,
            "steps": 50000,
            "outer_schedule": "cosine",
            "inner_steps": 5,
            "eval_inner_steps": 5,
            "queries": 1,
        },
        # The ensemble, which the paper's numbers are of; and the same rules as everybody's.
        protocols=lambda setting: ("maml++", "default"),
    )
