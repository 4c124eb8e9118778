"""A classifier from a run and a folder, or from the file that one was kept in.

What opens a run takes a second to import, and is imported when one is opened.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxmeta.serve.classifier import Classifier


def adapt_run(
    run: Path | str, support: Path | str, *, queries: Sequence[Path] = (), inner_steps: int | None = None
) -> Classifier:
    """Adapt the best checkpoint of a run to the classes of a folder: `adapted = adapt(theta, support)`.

    Neither the data of training nor what reads it is needed.

    Args:
      run: The run's folder.
      support: A folder with one sub-folder for each class, any number of them, and in each any number of images.
      queries: Files and folders to be labelled later: where they lie inside the support folder, they are no class.
      inner_steps: Inner steps; None for as many as the run was evaluated with.

    Returns:
      A `Classifier`.

    Raises:
      ConfigError: if there is no run, it is one of regression, or its learner cannot tell so many classes apart.
      DataError: if the support folder is missing, has fewer than two classes, or one without an image.
      CheckpointError: if no checkpoint can be read.
      FloatingPointError: if the adaptation diverges.

    Example:
      >>> classifier = adapt_run("runs/omniglot", "letters/known")  # doctest: +SKIP
      >>> labels, probabilities = classifier.predict(["letters/new/1.png"])  # doctest: +SKIP
    """
    from jaxmeta.serve.adapting import adapt_to_support, open_run
    from jaxmeta.serve.files import read_support

    opened = open_run(Path(run))
    return adapt_to_support(opened, read_support(Path(support), opened.recipe, queries), inner_steps)


def load_classifier(path: Path | str) -> Classifier:
    """Read a classifier that `jaxmeta adapt --save` kept.

    Args:
      path: The file, or the folder that it is in.

    Returns:
      The `Classifier`; its labels are those that it gave before.

    Raises:
      DataError: if there is none, or it is damaged or of another version.

    Example:
      >>> classifier = load_classifier("letters/classifier.npz")  # doctest: +SKIP
      >>> labels, probabilities = classifier.predict(["letters/new/1.png"])  # doctest: +SKIP
    """
    from jaxmeta.serve.kept import read_classifier

    return read_classifier(Path(path))
