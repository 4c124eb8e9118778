"""CAVIA on mini-ImageNet: its paper has no table of Omniglot.

Paper     Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, "Fast Context Adaptation via Meta-Learning", 2019,
          arXiv 1810.03642.
Command   python experiments/mini_imagenet_cavia.py 5w1s --data-dir DIR     (also 5w5s, all)
Expected  47.24 +- 0.65, 59.05 +- 0.54 % with 32 filters (128: 49.84, 64.63; 512: 51.82, 65.85)
Setting   conv4 with 32 filters; 100 context parameters, two inner steps of 1.0 on them alone, at test too; 60,000 outer
          steps of 4 tasks (5 shots: 2), Adam 1e-3.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "cavia",
        data="mini-imagenet",
        paper={"5w1s": 0.4724, "5w5s": 0.5905},
        changes=lambda setting: {"inner_steps": 2, "eval_inner_steps": 2, "inner_lr": 1.0, "context": 100},
    )
