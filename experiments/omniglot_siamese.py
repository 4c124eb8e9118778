"""Siamese networks on Omniglot, as few-shot classifiers.

Paper     Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", 2015, ICML Deep
          Learning Workshop; the numbers are those that Vinyals et al., 2016, arXiv 1606.04080, list for them.
Command   python experiments/omniglot_siamese.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  97.3, 98.4, 88.2, 97.0 % (20 ways: quoted from memory)
Setting   trained on pairs of same and other characters, which the classes of a task make; pooled conv4 with 64 filters
          and statistics of training; 60,000 outer steps of 32 tasks (20 ways: 16), 5 queries a class, Adam 1e-3.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "siamese",
        paper={"5w1s": 0.973, "5w5s": 0.984, "20w1s": 0.882, "20w5s": 0.970},
        changes=lambda setting: {"model": "conv4", "norm": "running", "queries": 5},
    )
