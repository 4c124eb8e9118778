"""Matching networks on Omniglot.

Paper     Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning", 2016,
          arXiv 1606.04080.
Command   python experiments/omniglot_matching.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.1, 98.9, 93.8, 98.5 % (20 ways: quoted from memory)
Setting   without full contexts, as in the paper's Omniglot table; pooled conv4 with 64 filters and statistics of
          training; 60,000 outer steps of 32 tasks (20 ways: 16), 5 queries a class, Adam 1e-3.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "matching",
        paper={"5w1s": 0.981, "5w5s": 0.989, "20w1s": 0.938, "20w5s": 0.985},
        changes=lambda setting: {"model": "conv4", "norm": "running", "queries": 5},
    )
