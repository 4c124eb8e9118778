"""Matching networks with full contexts on mini-ImageNet: their paper's table of Omniglot is without.

Paper     Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning", 2016,
          arXiv 1606.04080.
Command   python experiments/mini_imagenet_matching_fce.py 5w1s --data-dir DIR     (also 5w5s, all)
Expected  44.2, 57.0 % without fine-tuning, on the authors' own choice of classes (quoted from memory)
Setting   pooled conv4 with 64 filters and statistics of training; 60,000 outer steps of 4 tasks (5 shots: 2), 15
          queries a class, Adam 1e-3.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "matching-fce",
        data="mini-imagenet",
        paper={"5w1s": 0.442, "5w5s": 0.570},
        changes=lambda setting: {"filters": 64, "norm": "running"},
    )
