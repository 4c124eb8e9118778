"""The options of each command, with their help."""

import dataclasses
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from jaxmeta.bench import LOADS
from jaxmeta.config import Config
from jaxmeta.data import DATASET_NAMES
from jaxmeta.machine import Machine
from jaxmeta.models import PRECISIONS
from jaxmeta.paper_protocols import PROTOCOLS

Options = TypeVar("Options")


def parse_options(kind: type[Options], arguments: list[str], prog: str) -> Options:
    """Parse the arguments of a command into its options; `--help` and mistakes end the process."""
    return tyro.cli(kind, args=arguments, prog=prog)


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Judge a run's best checkpoint on held-out tasks."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The run's folder.", metavar="RUN")]
    protocol: Annotated[
        str | None, tyro.conf.arg(help=f"Judge as a paper did; None: as in training. One of: {', '.join(PROTOCOLS)}.")
    ] = None
    episodes: Annotated[int | None, tyro.conf.arg(help="Number of tasks; None: as in training.")] = None
    eval_inner_steps: Annotated[int | None, tyro.conf.arg(help="Inner steps; None: as in training.")] = None
    split: Annotated[str, tyro.conf.arg(help="One of: test, validation, train.")] = "test"
    latest: Annotated[bool, tyro.conf.arg(help="Judge the latest checkpoint, not the best.")] = False
    ensemble: Annotated[
        int | None, tyro.conf.arg(help="Average the predictions of so many of the best checkpoints; None: of one.")
    ] = None
    dataset: Annotated[
        str | None,
        tyro.conf.arg(help=f"Judge on another dataset; None: as in training. One of: {', '.join(DATASET_NAMES)}."),
    ] = None
    data_dir: Annotated[
        Path | None, tyro.conf.arg(help="Where the data that is judged is now; None: as in training.")
    ] = None
    ways: Annotated[
        int | None,
        tyro.conf.arg(help="Classes in a task, for learners without an output for each; None: as in training."),
    ] = None
    shots: Annotated[int | None, tyro.conf.arg(help="Support examples of each class; None: as in training.")] = None


@dataclasses.dataclass(frozen=True)
class PairsOptions:
    """Judge a run by verification: are two images of one class? With its curve, area and equal error rate."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The run's folder.", metavar="RUN")]
    pairs: Annotated[int, tyro.conf.arg(help="How many are drawn, half of one class and half of two.")] = 3000
    list: Annotated[
        Path | None,
        tyro.conf.arg(help="A published list of pairs instead, such as pairs.txt; None: drawn.", metavar="FILE"),
    ] = None
    split: Annotated[str, tyro.conf.arg(help="Where they are drawn. One of: test, validation, train.")] = "test"
    data_dir: Annotated[Path | None, tyro.conf.arg(help="Where the run's data is now; None: as in training.")] = None
    images: Annotated[
        Path | None, tyro.conf.arg(help="Folder of the list's images; None: that of the run's data.", metavar="FOLDER")
    ] = None
    latest: Annotated[bool, tyro.conf.arg(help="Judge the latest checkpoint, not the best.")] = False
    picture: Annotated[
        Path | None, tyro.conf.arg(help="Where to draw the curve; None: roc.png in the run's folder.", metavar="PNG")
    ] = None


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Judge the best checkpoints of two runs on the same tasks, and estimate the difference between them."""

    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The folder of a run.", metavar="RUN")]
    second: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The folder of another.", metavar="RUN")]
    protocol: Annotated[
        str | None,
        tyro.conf.arg(help=f"Judge both as a paper did; None: each as in training. One of: {', '.join(PROTOCOLS)}."),
    ] = None
    anyway: Annotated[bool, tyro.conf.arg(help="Also compare runs of different fingerprints.")] = False
    episodes: Annotated[int | None, tyro.conf.arg(help="Number of tasks; None: as in training.")] = None
    dataset: Annotated[
        str | None,
        tyro.conf.arg(help=f"Judge both on this dataset; None: as in training. One of: {', '.join(DATASET_NAMES)}."),
    ] = None
    data_dir: Annotated[
        Path | None, tyro.conf.arg(help="Where the data that is judged is now; None: as in training.")
    ] = None


_QUERY = tyro.conf.arg(help="Images to label: files, and folders with all below them.", metavar="DIR_OR_FILE")
_ANSWERS = "Folder for predictions.csv, predictions.html and result.json; None: "


@dataclasses.dataclass(frozen=True)
class AdaptOptions:
    """Adapt a run's best checkpoint to the classes of a folder, and label other images."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The run's folder.", metavar="RUN")]
    support: Annotated[
        Path, tyro.conf.arg(help="A folder with one sub-folder for each class, with a few images of it.", metavar="DIR")
    ]
    query: Annotated[tuple[Path, ...], _QUERY]
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            help=f"{_ANSWERS}RUN/adapted/NAME by the support folder's name; NAME-2 and so on where the answers by "
            "another support folder of that name are. The same support folder again replaces its own."
        ),
    ] = None
    save: Annotated[bool, tyro.conf.arg(help="Also keep the classifier there, for `jaxmeta predict`.")] = False
    export: Annotated[
        Path | None,
        tyro.conf.arg(
            help="Also write the classifier to this file, a program that needs jax alone; FILE.json says how it is "
            "called.",
            metavar="FILE",
        ),
    ] = None
    eval_inner_steps: Annotated[int | None, tyro.conf.arg(help="Inner steps; None: as in training.")] = None


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Label images with a classifier that `jaxmeta adapt --save` kept."""

    saved: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Its file, or its folder.", metavar="SAVED")]
    query: Annotated[tuple[Path, ...], _QUERY]
    out: Annotated[Path | None, tyro.conf.arg(help=f"{_ANSWERS}the folder `predicted` beside the classifier.")] = None


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Measure what a meta-step costs here: time, memory, and how much of the machine's peak it reaches."""

    loads: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"Of: {', '.join(LOADS)}; none: all.", metavar="LOAD")
    ] = ()
    rounds: Annotated[int, tyro.conf.arg(help="Figures for each load, whose median is shown.")] = 5
    quick: Annotated[bool, tyro.conf.arg(help="The tiny form of each load: does it run?")] = False
    json: Annotated[Path | None, tyro.conf.arg(help="Also write the figures to this file.", metavar="FILE")] = None
    chunk: Annotated[int | None, tyro.conf.arg(help="Tasks computed at once; None: chosen for the machine.")] = None
    precision: Annotated[
        str, tyro.conf.arg(help=f"How exactly the network computes. One of: {', '.join(PRECISIONS)}.")
    ] = "float32"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run goes."""

    out: Annotated[Path | None, tyro.conf.arg(help="Run folder; None: runs/DATASET-ALGORITHM-...-seedN.")] = None
    resume: Annotated[bool, tyro.conf.arg(help="Continue the run in that folder.")] = False


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Several runs as one program, each in a folder of its own, and a table of them."""

    seeds: Annotated[int, tyro.conf.arg(help="Train with so many seeds, from --seed on.")] = 1
    inner_lrs: Annotated[tuple[float, ...], tyro.conf.arg(help="Inner learning rates, each with every seed.")] = ()


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Meta-train into a run folder, then judge the best checkpoint on held-out classes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    place: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions()
    machine: tyro.conf.OmitArgPrefixes[Machine] = Machine()
    sweep: tyro.conf.OmitArgPrefixes[SweepOptions] = SweepOptions()


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Time the ways of computing a step of a run here, and show which is chosen; nothing is trained."""

    config: tyro.conf.OmitArgPrefixes[Config]
    machine: tyro.conf.OmitArgPrefixes[Machine] = Machine(plan="auto")
    lowerings: Annotated[
        bool, tyro.conf.arg(help="First measure how each convolution is computed best here, for all later runs.")
    ] = False


_DATA_DIR = tyro.conf.arg(help="Folder with the data; None: the cache, or a download.")
_DATASET = tyro.conf.arg(help=f"One of: {', '.join(DATASET_NAMES)}.", metavar="DATASET")
_IMAGE_SIZE = tyro.conf.arg(help="Side of the images, as of `jaxmeta train`; None: as usual for each dataset.")
_OF_FOLDER = tyro.conf.arg(help="Where classes are divided by it, as those of a folder: as of `jaxmeta train`.")
_SPLIT = tyro.conf.arg(help="Class split of omniglot, as of `jaxmeta train`.")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Make a dataset ready in the cache, and say where it came from and how long it took."""

    dataset: Annotated[tyro.conf.Positional[str], _DATASET]
    data_dir: Annotated[Path | None, _DATA_DIR] = None
    split: Annotated[str, _SPLIT] = Config.split
    image_size: Annotated[int | None, _IMAGE_SIZE] = None
    ways: Annotated[int | None, _OF_FOLDER] = None
    shots: Annotated[int | None, _OF_FOLDER] = None
    queries: Annotated[int | None, _OF_FOLDER] = None


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Check every byte of what is in the cache against its checksum; exit code 1 if something is damaged."""

    name: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(help="A file or a dataset, as in `jaxmeta data list`; none: all.", metavar="NAME"),
    ] = None


@dataclasses.dataclass(frozen=True)
class ClearOptions:
    """Remove prepared datasets from the cache, at once and without asking; other files there are left alone."""

    name: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(help="A file or a dataset, as in `jaxmeta data list`.", metavar="NAME"),
    ] = None
    all: Annotated[bool, tyro.conf.arg(help="Remove all of them.")] = False


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """Draw an episode as a picture: support and query images of each class, with its name."""

    dataset: Annotated[tyro.conf.Positional[str], _DATASET]
    data_dir: Annotated[Path | None, _DATA_DIR] = None
    split: Annotated[str, tyro.conf.arg(help="One of: train, validation, test.")] = "train"
    ways: Annotated[int | None, tyro.conf.arg(help="Classes; None: 5.")] = None
    shots: Annotated[int | None, tyro.conf.arg(help="Support images of each class; None: 1.")] = None
    queries: Annotated[int | None, tyro.conf.arg(help="Query images of each class; None: 5, or as in training.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Which episode.")] = 0
    image_size: Annotated[int | None, _IMAGE_SIZE] = None
    out: Annotated[Path | None, tyro.conf.arg(help="The picture; None: DATASET-episode.png.", metavar="PNG")] = None
