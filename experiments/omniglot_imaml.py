"""iMAML on Omniglot, with gradient descent in the inner loop.

Paper     Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", 2019,
          arXiv 1909.04630 (iMAML, GD). Others' runs reached
          98.2 and 96.7 % (5-way 1-shot).
Command   python experiments/omniglot_imaml.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  99.16 +- 0.35, 99.67 +- 0.12, 94.46 +- 0.42, 98.69 +- 0.10 %
Setting   16 inner steps of 0.1 (20 ways: 25), lambda 2, 5 steps of conjugate gradients damped by 10; at test too;
          otherwise that of omniglot_maml.py.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

STEPS = {"20w1s": 25, "20w5s": 25}

if __name__ == "__main__":
    run_settings(
        __doc__,
        "imaml",
        paper={"5w1s": 0.9916, "5w5s": 0.9967, "20w1s": 0.9446, "20w5s": 0.9869},
        changes=lambda setting: {name: STEPS.get(setting, 16) for name in ("inner_steps", "eval_inner_steps")},
        protocols=as_in_maml,
    )
