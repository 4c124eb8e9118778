"""`jaxmeta data`: what is in the cache, and what the data looks like."""

import contextlib
import dataclasses
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxmeta.config import Config, ConfigError, check_config, check_name, options_of_dataset
from jaxmeta.data import DATASETS, Dataset, EpisodeSpec
from jaxmeta.data.cache import cache_dir
from jaxmeta.data.cache_entries import CacheEntry, cache_entries, dataset_name, entries_named, remove_entry
from jaxmeta.data.pictured import draw_pictures
from jaxmeta.data.pool_file import VersionError, read_header, verify_dataset
from jaxmeta.data.pools import DataError
from jaxmeta.options import ClearOptions, PrepareOptions, ShowOptions, VerifyOptions, parse_options
from jaxmeta.parts import load_dataset
from jaxmeta.start import split_preset

USAGE = """\
usage: jaxmeta data COMMAND [OPTIONS]

Prepared data sets: each is prepared once and kept in the cache ($JAXMETA_CACHE).

commands:
  list             what is in the cache, and what each dataset needs
  prepare DATASET  make a dataset ready, so that nothing waits for it later
  verify [NAME]    check every byte of what is in the cache
  clear NAME       remove a prepared dataset (--all: all of them)
  show DATASET     draw an episode as a picture

`jaxmeta data COMMAND --help` explains every option with its default.
"""
# What loaders that divide classes for the tasks call it.
SIZES_OF_TASKS = {"ways": "ways", "shots": "least_images", "queries": "least_images"}
# What a dataset is read from, for `jaxmeta data list`.
NEEDS = {
    "glyphs": "nothing: drawn from the fonts of matplotlib",
    "omniglot": "a network, or --data-dir with the published archives or a copy of tensorflow-datasets",
    "mnist": "a network, or --data-dir with the four original files or a copy of tensorflow-datasets",
    "cifar10": "a network, or --data-dir with an archive of it or a copy of tensorflow-datasets",
    "cifar_fs": "a network, or --data-dir with an archive of CIFAR-100 or a copy of tensorflow-datasets",
    "fc100": "the same as cifar_fs",
    "cub": "a network, or --data-dir with CUB_200_2011.tgz",
    "vgg_flowers": "a network, or --data-dir with 102flowers.tgz and imagelabels.mat",
    "fgvc_aircraft": "--data-dir with fgvc-aircraft-2013b.tar.gz",
    "mini_imagenet": "--data-dir with its images and lists, or the training images of ILSVRC 2012",
    "tiered_imagenet": "--data-dir with the training images of ILSVRC 2012",
    "quickdraw": "--data-dir with the 28x28 bitmaps, an .npy file for each category",
    "faces": "--data-dir with a folder of images for each person",
    "sinusoid": "nothing: made as it is used",
    "folder": "folder:PATH, with a folder for each class, or a CSV of path and label",
}


def run_data_command(arguments: list[str]) -> None:
    """Run `jaxmeta data` with what follows it.

    Args:
      arguments: The sub-command and its options.

    Raises:
      ConfigError: they ask for something that is not there.
      DataError: data that is missing or damaged.
      OSError: a file of the cache is damaged, or could not be written or removed.
    """
    commands = {"list": _list, "prepare": _prepare, "verify": _verify, "clear": _clear, "show": _show}
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if not arguments:
        raise ConfigError(f"`jaxmeta data` needs a command: {', '.join(commands)}.")
    check_name("command of `jaxmeta data`", arguments[0], commands)
    commands[arguments[0]](arguments[1:])


def _list(arguments: list[str]) -> None:
    if arguments in (["--help"], ["-h"]):
        print("usage: jaxmeta data list\n\nPrint what is in the cache, and what each dataset needs.")
        return
    if arguments:
        raise ConfigError(f"`jaxmeta data list` takes no options; given {' '.join(arguments)}.")
    entries = cache_entries(DATASETS)
    total = sum(entry.size for entry in entries)
    print(f"In {cache_dir()}: {len(entries)} prepared, {_megabytes(total)}")
    if entries:
        _print_table([("file", "size", "classes", "images", "pixels", "state", "prepared"), *map(_row, entries)])
    print("\nDatasets, and what they need to be prepared:")
    _print_table([(f"  {name}", NEEDS[name]) for name in DATASETS])


def _row(entry: CacheEntry) -> tuple[str, ...]:
    if entry.dataset is None:
        return (entry.path.stem, _megabytes(entry.size), "", "", "", entry.state, "")
    classes, images, pixels = _sizes(entry.dataset)
    made = entry.header.get("made") or {}
    prepared = f"{made['at'][:10]} from {made['source'] or 'its source'}" if made else "by an earlier version"
    return entry.path.stem, _megabytes(entry.size), f"{classes:,}", f"{images:,}", pixels, entry.state, prepared


def _sizes(dataset: Dataset) -> tuple[int, int, str]:
    """Count classes, each once whatever splits it is in, and images, and describe the images."""
    pools = dataset.splits.values()
    height, width, channels = next(iter(pools)).images.shape[2:]
    recipe = dataset.recipe
    pixels = f"{height}x{width}x{channels}"
    if recipe is not None:
        pixels += f" {recipe.fit}{', bright ink' if recipe.bright_ink else ''}"
    classes = {name for names in dataset.class_names.values() for name in names}
    return len(classes), sum(int(pool.counts.sum()) for pool in pools), pixels


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _prepare(arguments: list[str]) -> None:
    options = parse_options(PrepareOptions, arguments, "jaxmeta data prepare")
    config = _config(options.dataset, options)
    began = time.perf_counter()
    with _watched() as opened:
        dataset = load_dataset(config)
    seconds = time.perf_counter() - began
    if dataset.kind == "classification":
        sizes = ", ".join(f"{split} {len(pool.counts):,}" for split, pool in dataset.splits.items())
        classes, images, pixels = _sizes(dataset)
        print(f"{dataset.name}: {classes:,} classes ({sizes}), {images:,} images of {pixels}")
    if opened.problem:
        raise OSError(
            f"{dataset.name} was prepared, and could not be kept in {cache_dir()} ({opened.problem}): it would be "
            "prepared again for every run. Set JAXMETA_CACHE to a folder with space that you may write to."
        )
    if not opened.paths:
        print(f"read in {seconds:.1f} s; it is not kept in the cache, since it is read as fast without")
    for path in dict.fromkeys(opened.paths):
        header, _ = read_header(path)
        made = header.get("made") or {"source": "", "seconds": None, "at": "by an earlier version"}
        how = f"prepared now in {made['seconds']:.1f} s" if path in opened.prepared else f"prepared {made['at']}"
        print(f"{how} from {made['source'] or 'its source'}")
        for name, sha256 in (header.get("origin") or {}).items():
            print(f"  {name}{f' sha256 {sha256}' if sha256 else ''}")
        print(f"kept in {path} ({_megabytes(path.stat().st_size)}), ready in {seconds:.1f} s")


class _Opened(logging.Filter):
    """Notes which cached files were opened, and which were prepared; of the log only warnings pass."""

    def __init__(self):
        super().__init__()
        self.paths: list[Path] = []
        self.prepared: set[Path] = set()
        self.problem = ""

    def filter(self, record: logging.LogRecord) -> bool:
        path, problem = getattr(record, "cached", None), getattr(record, "problem", "")
        self.problem = problem or self.problem
        if path is not None and not problem:
            self.paths.append(path)
            if getattr(record, "prepared", False):
                self.prepared.add(path)
        return record.levelno >= logging.WARNING


@contextlib.contextmanager
def _watched() -> Iterator[_Opened]:
    """Watch the log of the cache while data is loaded."""
    opened, log = _Opened(), logging.getLogger("jaxmeta.data.cache")
    level = log.level
    log.addFilter(opened)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # Said as an error.
            warnings.filterwarnings("ignore", message="The prepared data could not be kept")
            yield opened
    finally:
        log.removeFilter(opened)
        log.setLevel(level)


def _verify(arguments: list[str]) -> None:
    options = parse_options(VerifyOptions, arguments, "jaxmeta data verify")
    entries = cache_entries(DATASETS)
    chosen = entries if options.name is None else _named(entries, options.name)
    damaged = []
    for entry in chosen:
        problem = entry.problem
        if entry.state == "ready":
            try:
                verify_dataset(entry.path)
            except VersionError as error:
                problem = str(error)
            except DataError as error:
                entry, problem = entry._replace(state="damaged"), str(error)
        print(f"{entry.path.stem}: {'whole' if not problem else f'{entry.state}: {problem}'}", flush=True)
        if entry.state == "damaged":
            damaged.append(entry.path.stem)
    if not chosen:
        print(f"nothing is in {cache_dir()}")
    if damaged:
        remedy = " && ".join(f"jaxmeta data clear {name}" for name in damaged)
        raise OSError(f"damaged: {', '.join(damaged)}. Remove it ({remedy}): it is prepared again when it is needed.")


def _clear(arguments: list[str]) -> None:
    options = parse_options(ClearOptions, arguments, "jaxmeta data clear")
    if (options.name is None) != options.all:
        raise ConfigError("`jaxmeta data clear` needs either the NAME of a prepared dataset, or --all.")
    entries = cache_entries(DATASETS)
    chosen = entries if options.name is None else _named(entries, options.name)
    freed = 0
    for entry in chosen:
        size = remove_entry(entry)
        print(f"{'removed' if size is not None else 'being prepared, left alone:'} {entry.path}", flush=True)
        freed += size or 0
    print(f"{_megabytes(freed)} freed in {cache_dir()}" if chosen else f"nothing to remove in {cache_dir()}")


def _named(entries: list[CacheEntry], name: str) -> list[CacheEntry]:
    chosen = entries_named(entries, name)
    if not chosen and not entries:
        raise ConfigError(f"{name!r} is not in the cache: nothing is in {cache_dir()}.")
    if not chosen:
        check_name("prepared dataset", name, [*{dataset_name(entry): 0 for entry in entries}, *_stems(entries)])
    return chosen


def _stems(entries: list[CacheEntry]) -> list[str]:
    return [entry.path.stem for entry in entries]


def _show(arguments: list[str]) -> None:
    from jaxmeta.plots import plot_task

    options = parse_options(ShowOptions, arguments, "jaxmeta data show")
    check_name("split", options.split, ("train", "validation", "test"))
    config = _config(options.dataset, options)
    own = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
    # Where classes are divided for the tasks, those of a run: others may not fit.
    usual = own if "train_ways" in options_of_dataset(config) else {"ways": 5, "shots": 1, "queries": 5}
    sizes = {name: usual[name] if getattr(options, name) is None else getattr(options, name) for name in usual}
    if options.out is not None and options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a folder; give the name of a PNG file.")
    dataset = load_dataset(config)
    if dataset.kind != "classification":
        raise ConfigError(f"--dataset {dataset.name} is regression and has no images to show; choose another dataset.")
    if options.split not in dataset.splits:
        raise ConfigError(f"{dataset.name} has no split {options.split!r}; it has {', '.join(dataset.splits)}.")
    spec = EpisodeSpec(*sizes.values())
    try:
        pictures = draw_pictures(dataset, options.split, spec, options.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    size = f"{spec.ways}-way {spec.shots}-shot, seed {options.seed}"
    slug = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in dataset.name)
    out = options.out or Path(f"{slug}-episode.png")
    plot_task(out, pictures.support, pictures.query, pictures.names, f"{dataset.name}, {options.split}: {size}")
    print(f"{out}: {', '.join(pictures.names)}")


def _config(dataset: str, options: PrepareOptions | ShowOptions) -> Config:
    """Make a configuration that names the data, to load it as a run would."""
    _, config, _ = split_preset(["--dataset", dataset])
    sizes = {name: getattr(options, name) for name in SIZES_OF_TASKS if getattr(options, name) is not None}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1; given {value}.")
    # How the classes of some are divided, and which have images enough, depends on the tasks.
    divided_by = options_of_dataset(config)
    of_loader = {name: value for name, value in sizes.items() if SIZES_OF_TASKS[name] in divided_by}
    if isinstance(options, PrepareOptions) and (idle := sorted(sizes.keys() - of_loader.keys())):
        raise ConfigError(
            f"--{idle[0]} {sizes[idle[0]]} is nothing to `jaxmeta data prepare {dataset}`: the same is made ready for "
            "tasks of every size. Leave it out."
        )
    config = dataclasses.replace(config, **of_loader)
    if "queries" in of_loader:
        config = dataclasses.replace(config, eval_queries=of_loader["queries"])
    config = dataclasses.replace(config, dataset=dataset, data_dir=options.data_dir, image_size=options.image_size)
    if isinstance(options, PrepareOptions):
        config = dataclasses.replace(config, split=options.split)
    check_config(config)
    return config


def _megabytes(size: int) -> str:
    return f"{np.ceil(size / 1e4) / 100:,.2f} MB" if size < 1e7 else f"{size / 1e6:,.1f} MB"
