"""Meta-SGD on Omniglot.

Paper     Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
          arXiv 1707.09835.
Command   python experiments/omniglot_meta_sgd.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  99.53 +- 0.26, 99.93 +- 0.09, 95.93 +- 0.38, 98.97 +- 0.19 % (20-way: quoted from memory)
Setting   that of omniglot_maml.py with one inner step in training and at test; rates begin at 0.4.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "meta-sgd",
        paper={"5w1s": 0.9953, "5w5s": 0.9993, "20w1s": 0.9593, "20w5s": 0.9897},
        changes=lambda setting: {"inner_steps": 1, "eval_inner_steps": 1, "inner_lr": 0.4},
        protocols=as_in_maml,
    )
