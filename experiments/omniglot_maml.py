"""MAML on Omniglot, the four settings of the paper.

Paper     Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
          Networks", 2017, arXiv 1703.03400, table 1 (convolutional MAML) and appendix A.1.
Command   python experiments/omniglot_maml.py 5w1s --data-dir DIR     (also 5w5s, 20w1s, 20w5s, all)
Expected  98.7 +- 0.4, 99.9 +- 0.1, 95.8 +- 0.3, 98.9 +- 0.2 %
Setting   60,000 outer steps, Adam 1e-3; 1 inner step of 0.4 (3 at test) and 32 tasks for 5-way,
          5 inner steps of 0.1 and 16 tasks for 20-way; 64 filters, stride 2, statistics of the query
          batch; as many query images as shots; random split, 1200 training characters
          (of which 100 choose the checkpoint here).
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import as_in_maml, run_settings

if __name__ == "__main__":
    paper = {"5w1s": 0.987, "5w5s": 0.999, "20w1s": 0.958, "20w5s": 0.989}
    run_settings(__doc__, "maml", paper=paper, protocols=as_in_maml)
