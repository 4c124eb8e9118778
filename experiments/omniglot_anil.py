"""ANIL on Omniglot, the two settings of the paper.

Paper     Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse?", 2020, arXiv 1909.09157.
Command   python experiments/omniglot_anil.py 20w1s --data-dir DIR     (also 20w5s, all)
Expected  96.2 +- 0.5, 98.0 +- 0.3 %
Setting   that of omniglot_maml.py, the inner loop on the head alone.
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

if __name__ == "__main__":
    run_settings(__doc__, "anil", paper={"20w1s": 0.962, "20w5s": 0.980}, protocols=as_in_maml)
