"""A transformer that reads the support set, on Omniglot.

Paper     Mishra, Rohaninejad, Chen and Abbeel, "A Simple Neural Attentive Meta-Learner", 2018, arXiv 1707.03141, whose
          network interleaves convolutions and attention; ours is a transformer, so that the numbers are an aim.
Command   python experiments/omniglot_in_context.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  99.07 +- 0.16, 99.78 +- 0.09, 97.64 +- 0.30, 99.36 +- 0.18 % (quoted from memory)
Setting   pooled conv4 with 64 filters and statistics of the support set; 60,000 outer steps of 32 tasks (20 ways: 16),
          5 queries a class, Adam 1e-3 with a cosine.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "in-context",
        paper={"5w1s": 0.9907, "5w5s": 0.9978, "20w1s": 0.9764, "20w5s": 0.9936},
        changes=lambda setting: {"model": "conv4", "norm": "inductive", "outer_schedule": "cosine"},
    )
