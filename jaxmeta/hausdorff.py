"""The modified Hausdorff distance between drawings: one-shot classification that learns nothing.

For drawings A and B, sets of ink pixels each centred by its mean:

    d(A, B) = max(mean_{a in A} min_{b in B} |a - b|,  mean_{b in B} min_{a in A} |a - b|)

A query gets the class of the nearest support drawing. It is the baseline that comes with the Omniglot challenge,
where it errs in 38.8 % (38.75 % of the 400 test drawings).

Source: Dubuisson and Jain, 1994, "A modified Hausdorff distance for object matching", ICPR; the demo of
github.com/brendenlake/omniglot (Lake et al. 2015).
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from jaxmeta.base import Episode, Estimate
from jaxmeta.metrics import estimate


class _Drawing(NamedTuple):
    """A drawing ready to be compared.

    Attributes:
      points: `[pixels, 2]`, the ink, from its mean.
      tree: Of the points.
      centre: `[2]`, where their mean is in `gaps`.
      gaps: How far each pixel of a frame three times as large is from the ink.
    """

    points: np.ndarray
    tree: KDTree
    centre: np.ndarray
    gaps: np.ndarray


def hausdorff_distance(first, second) -> float:
    """Measure the modified Hausdorff distance of two drawings, in pixels.

    `max(mean_a min_b |a - b|, mean_b min_a |a - b|)` over the ink pixels, each drawing centred by their mean.

    Args:
      first: `[height, width]` or `[height, width, 1]`, ink above 0.5.
      second: Another one; it may have another size.

    Returns:
      The distance; 0 for two drawings that differ by a shift only.

    Raises:
      ValueError: a drawing is not an image or has no ink.

    Example:
      >>> square = np.pad(np.ones([3, 3]), 2)
      >>> dot = np.pad(np.ones([1, 1]), 3)
      >>> hausdorff_distance(square, square), round(hausdorff_distance(square, dot), 4)
      (0.0, 1.073)

    Source: Dubuisson and Jain, 1994, ICPR, "A modified Hausdorff distance for object matching" (no arXiv).
    """
    return _distance(_drawing(first), _drawing(second))


def hausdorff_error(episodes: Episode) -> Estimate:
    """Classify queries by the nearest support drawing, and give the share of errors.

    Args:
      episodes: Tasks of drawings, inputs `[tasks, examples, height, width, 1]`, ink above 0.5. Examples of weight 0
        are left out.

    Returns:
      The error in [0, 1]: mean over tasks, half its 95 % interval, every task's.

    Raises:
      ValueError: a drawing has no ink.

    Example:
      >>> from jaxmeta import load_challenge_drawings
      >>> hausdorff_error(load_challenge_drawings("data/omniglot")).mean  # doctest: +SKIP
      0.3875

    Source: Dubuisson and Jain, 1994, ICPR; Lake, Salakhutdinov and Tenenbaum, 2015, Science 350(6266).
    """
    errors = []
    for task in range(np.shape(episodes.support.targets)[0]):
        (support, classes), (query, targets) = (_real_drawings(batch, task) for batch in episodes)
        chosen = [_nearest(drawing, support) for drawing in query]
        errors.append(np.mean(classes[chosen] != targets))
    return estimate(errors)


def _real_drawings(batch, task: int) -> tuple[list[_Drawing], np.ndarray]:
    real = np.asarray(batch.weights[task]) > 0
    return [_drawing(image) for image in np.asarray(batch.inputs[task])[real]], np.asarray(batch.targets[task])[real]


def _drawing(image) -> _Drawing:
    pixels = np.asarray(image)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    ink = pixels > 0.5
    if ink.ndim != 2 or not ink.any():
        raise ValueError(
            f"A drawing is [height, width] or [height, width, 1] with ink above 0.5; given {list(np.shape(image))} "
            f"with {ink.sum()} pixels of ink. Divide uint8 images by 255, and make the ink bright."
        )
    places = np.argwhere(ink).astype(np.float64)
    mean, margin = places.mean(0), max(ink.shape)
    gaps = distance_transform_edt(~np.pad(ink, margin))
    return _Drawing(places - mean, KDTree(places - mean), mean + margin, np.asarray(gaps))


def _distance(first: _Drawing, second: _Drawing) -> float:
    there, back = second.tree.query(first.points)[0], first.tree.query(second.points)[0]
    return float(max(there.mean(), back.mean()))


def _nearest(query: _Drawing, support: list[_Drawing]) -> int:
    """Find the least distance; most drawings are ruled out without measuring it."""
    bounds = np.array([max(_bound(query, drawing), _bound(drawing, query)) for drawing in support])
    best, chosen = np.inf, 0
    for index in np.argsort(bounds, kind="stable"):
        if bounds[index] >= best:
            break
        distance = _distance(query, support[index])
        if distance < best:
            best, chosen = distance, int(index)
    return chosen


def _bound(first: _Drawing, second: _Drawing) -> float:
    """Give a lower bound of `mean_{a in first} min_{b in second} |a - b|`.

    Rounding to the pixels of the second moves all points of the first alike, and none farther from, or nearer to,
    its ink than by that move.
    """
    points = first.points + second.centre
    pixels = np.rint(points)
    rows, columns = pixels.astype(int).T
    return float(second.gaps[rows, columns].mean() - np.linalg.norm(pixels[0] - points[0]))
