"""Baseline++ on mini-ImageNet: its paper has no table of Omniglot.

Paper     Chen, Liu, Kira, Wang and Huang, "A Closer Look at Few-shot Classification", 2019, arXiv 1904.04232.
Command   python experiments/mini_imagenet_baseline_plus_plus.py 5w1s --data-dir DIR     (also 5w5s, all)
Expected  48.24 +- 0.75, 66.43 +- 0.63 % (quoted from memory)
Setting   pooled conv4 with 64 filters, statistics of training; training images cropped, mirrored and changed in colour;
          60,000 steps of two batches of images, Adam 1e-3. A head of a task takes 100 steps on the whole support set by
          momentum 0.9 and 0.01 (the authors: 100 passes in batches of 4, with dampening 0.9 and decay 0.001, and a
          learned length of each class in place of a fixed scale).
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "baseline++",
        data="mini-imagenet",
        paper={"5w1s": 0.4824, "5w5s": 0.6643},
        changes=lambda setting: {"filters": 64, "augment": ("crop", "flip", "colour"), "tasks": 2},
    )
