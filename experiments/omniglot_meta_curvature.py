"""Meta-Curvature on Omniglot.

Paper     Park and Oliva, "Meta-Curvature", 2019, arXiv 1902.03356 (MC2).
Command   python experiments/omniglot_meta_curvature.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  99.97 +- 0.06, 99.89 +- 0.06, 99.12 +- 0.16, 99.65 +- 0.05 % (quoted from memory)
Setting   that of omniglot_maml.py, but one inner step of 20 ways too; 60,000 outer steps.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "meta-curvature",
        paper={"5w1s": 0.9997, "5w5s": 0.9989, "20w1s": 0.9912, "20w5s": 0.9965},
        changes=lambda setting: {"inner_steps": 1, "eval_inner_steps": 1},
        protocols=as_in_maml,
    )
