"""What `jaxmeta adapt` and `jaxmeta predict` do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmeta.data import DataError
from jaxmeta.folder import write_atomically
from jaxmeta.serve.adapting import adapt_to_support, open_run
from jaxmeta.serve.classifier import Classifier
from jaxmeta.serve.exported import export_classifier
from jaxmeta.serve.files import Images, query_files, read_images, read_support, shown
from jaxmeta.serve.kept import NAME, read_classifier, write_classifier
from jaxmeta.serve.page import Answers, answers_page, answers_table
from jaxmeta.serve.places import PAGE, RESULT, TABLE, check_places, place_of, support_name


def adapt(
    run: Path,
    support: Path,
    query: Sequence[Path],
    out: Path | None = None,
    *,
    save: bool = False,
    export: Path | None = None,
    eval_inner_steps: int | None = None,
) -> dict[str, Any]:
    """Adapt a run to the classes of a folder, label other images, and write what came out.

    Args:
      run: The run's folder.
      support: A folder with one sub-folder for each class.
      query: Files and folders to label.
      out: Where `predictions.csv`, `predictions.html` and `result.json` go; None for a folder in the run's, named as
        the support's, and numbered where the answers by another support folder of that name are.
      save: Also write `classifier.npz` there, for `predict`.
      export: Also write the classifier to this file as a program that needs jax alone.
      eval_inner_steps: Inner steps; None for as many as the run was evaluated with.

    Returns:
      The result, as `jaxmeta adapt` prints it.

    Raises:
      ConfigError: if the run cannot serve such classes, or `out` or `export` cannot be written.
      DataError: if there is nothing to adapt to, or nothing to label.
      CheckpointError: if no checkpoint can be read.
      FloatingPointError: if the adaptation diverges.
    """
    opened = open_run(run)
    labelled = read_support(support, opened.recipe, query)
    notes, out = ([], out) if out is not None else _place(run, support)
    check_places(out, (TABLE, PAGE, RESULT, *([NAME] if save else [])), export)
    images = _to_label(query, opened.recipe, labelled.images.files)
    classifier = adapt_to_support(opened, labelled, eval_inner_steps)
    files = {"support": support_name(support)}
    if export is not None:
        export_classifier(classifier, export)
        files["export"] = str(export)
    if save:
        write_classifier(out / NAME, classifier)
        files["classifier"] = str(out / NAME)
    images = images._replace(skipped=tuple(dict.fromkeys((*labelled.images.skipped, *images.skipped))))
    return _write(classifier, images, out, files, notes)


def predict(saved: Path, query: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Label images with a classifier that `adapt` kept.

    Args:
      saved: The classifier's file, or its folder.
      query: Files and folders to label.
      out: Where `predictions.csv` and `predictions.html` go; None for a folder `predicted` beside the classifier.

    Returns:
      The result, as `jaxmeta predict` prints it.

    Raises:
      ConfigError: if `out` cannot be written.
      DataError: if there is no such classifier, or nothing to label.
    """
    classifier = read_classifier(saved)
    out = (saved if saved.is_dir() else saved.parent) / "predicted" if out is None else out
    check_places(out, (TABLE, PAGE, RESULT))
    return _write(classifier, _to_label(query, classifier.recipe), out)


def notes_on(classifier: Classifier) -> list[str]:
    """Say in a few sentences where a classifier is from, and how far it can be believed."""
    origin, classes = classifier.origin, len(classifier.class_names)
    config, calibration = origin["config"], origin["calibration"]
    examples, steps = len(classifier.support.targets), origin["inner_steps"]
    looped = f" by {steps} inner step{'' if steps == 1 else 's'}" if steps else ""
    said = [
        f"{origin['run']}: {config['algorithm']}, trained on {origin['data']['name']}, checkpoint of step "
        f"{origin['checkpoint_step']}; adapted to {classes} classes with {examples} labelled images{looped}."
    ]
    trained = max(config["ways"], config["train_ways"] or 0)
    if origin["made"] == "mean":
        said.append(
            f"It was trained with {trained} ways: the outputs for {classes} were made of the mean over those {trained}."
        )
    elif origin["made"] == "first":
        said.append(f"It was trained with {trained} ways, of which the first {classes} are used.")
    if origin["norm"] == "transductive":
        said.append(
            "It normalises the images to label together, up to 64 at once: a prediction depends on the other images, "
            "and one of a few is poor. A run trained with --norm inductive labels each for itself."
        )
    if calibration is None:
        said.append("Not calibrated: how often a confidence is right was never measured. Train a run anew for that.")
        return said
    before, after = (100 * calibration[name] for name in ("error_before", "error_after"))
    said.append(
        f"Calibrated: logits are divided by {calibration['temperature']:.2f}, fitted on {calibration['tasks']} "
        f"validation tasks of {config['ways']} ways and {config['shots']} shots with {config['eval_inner_steps']} "
        f"inner steps, where confidence and accuracy differed by {before:.1f} % before and {after:.1f} % after. On "
        "other images they may differ more."
    )
    return said


def _place(run: Path, support: Path) -> tuple[list[str], Path]:
    """Find the folder for the answers, and say so if it is not of the name that is expected."""
    out, name = place_of(run, support), support.resolve().name
    if out.name == name:
        return [], out
    return [f"{shown(run / 'adapted' / name)} is another support folder's: the answers are in {shown(out)}."], out


def _to_label(query: Sequence[Path], recipe, labelled: Sequence[Path] = ()) -> Images:
    """Find and read the images to label; refuse before anything is computed."""
    files, links = query_files(query, labelled)
    images = read_images(files, recipe)
    if not images.files:
        raise DataError(f"None of the {len(images.skipped)} files to label can be read. {images.skipped[0]}")
    return images._replace(skipped=(*images.skipped, *links))


def _write(
    classifier: Classifier, images: Images, out: Path, files: Mapping[str, str] = {}, more_notes: Sequence[str] = ()
) -> dict[str, Any]:
    labels, probabilities = classifier.predict(images.pixels)
    answers = Answers(classifier.class_names, images, labels, probabilities)
    notes = [*notes_on(classifier), *more_notes]
    result = {
        "images": len(labels),
        "classes": [shown(name) for name in classifier.class_names],
        "mean_confidence": float(probabilities.max(1).mean()),
        "temperature": classifier.temperature,
        "notes": notes,
        "skipped": [shown(sentence) for sentence in images.skipped],
        "predictions": shown(out / TABLE),
        "page": shown(out / PAGE),
        **files,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / TABLE, answers_table(answers))
    write_atomically(out / PAGE, answers_page(answers, classifier.support, notes))
    write_atomically(out / RESULT, json.dumps(result, indent=2) + "\n")
    return result
