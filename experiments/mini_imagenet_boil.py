"""BOIL on mini-ImageNet: its paper has no table of Omniglot.

Paper     Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning", 2021, arXiv 2008.08882.
Command   python experiments/mini_imagenet_boil.py 5w1s --data-dir DIR     (also 5w5s, all)
Expected  49.61 +- 0.16, 66.45 +- 0.37 % (quoted from memory)
Setting   conv4 with 64 filters; one inner step of 0.5 on the body alone, at test too; 30,000 outer steps of 4 tasks (5
          shots: 2), Adam 1e-3.
Budget    30,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "boil",
        data="mini-imagenet",
        paper={"5w1s": 0.4961, "5w5s": 0.6645},
        changes=lambda setting: {
            "filters": 64,
            "inner_steps": 1,
            "eval_inner_steps": 1,
            "inner_lr": 0.5,
            "steps": 30000,
        },
    )
