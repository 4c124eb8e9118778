"""MetaOptNet with ridge regression on mini-ImageNet: its paper has no table of Omniglot.

Paper     Lee, Maji, Ravichandran and Soatto, "Meta-Learning with Differentiable Convex Optimization", 2019,
          arXiv 1904.03758 (RR, ResNet-12).
Command   python experiments/mini_imagenet_metaoptnet_ridge.py 5w1s --data-dir DIR     (also 5w5s, all)
Expected  61.41 +- 0.61, 77.88 +- 0.46 %; others' runs with conv4: 53.23, 69.51
Setting   ResNet-12, statistics of training; training images cropped, mirrored and changed in colour; 60,000 outer steps
          of 8 tasks with 6 queries a class, Adam 1e-3 with a cosine (the authors: SGD with momentum, steps of the
          rate, 15 shots in training whatever the test has; their ResNet-12 has DropBlock, and its maps go to the head
          unpooled, where ours are averaged to 640 features).
Budget    60,000 outer steps for each setting; fewer with --steps.
Hardware  meant for a GPU; experiments/README.md says what was reached, and on what.
"""

from settings import run_settings

if __name__ == "__main__":
    run_settings(
        __doc__,
        "metaoptnet-ridge",
        data="mini-imagenet",
        paper={"5w1s": 0.6141, "5w5s": 0.7788},
        changes=lambda setting: {
            "model": "resnet12",
            "norm": "running",
            "augment": ("crop", "flip", "colour"),
            "queries": 6,
            "tasks": 8,
            "outer_schedule": "cosine",
        },
    )
