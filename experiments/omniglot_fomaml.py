"""First-order MAML on Omniglot, as the authors of Reptile ran it.

Paper     Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018,
          arXiv 1803.02999 (first-order MAML, transductive).
Command   python experiments/omniglot_fomaml.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.3 +- 0.5, 99.2 +- 0.2, 89.4 +- 0.5, 97.9 +- 0.1 %
Setting   that of omniglot_maml.py, with the gradient of first order.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

if __name__ == "__main__":
    paper = {"5w1s": 0.983, "5w5s": 0.992, "20w1s": 0.894, "20w5s": 0.979}
    run_settings(__doc__, "fomaml", paper=paper, protocols=as_in_maml)
