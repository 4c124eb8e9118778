"""Archives of images in any packing: the same pool, its origin recorded, what is dangerous or damaged refused."""

import errno
import logging
import random
import re
import resource
import stat
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from archive_files import image_file, pack, real_images, same_pools

from jaxmeta.data import DataError
from jaxmeta.data.archive_pools import PoolPlan, photographs, pool_dataset, train_on_the_rest
from jaxmeta.data.archives import ArchiveFile, ArchiveSource, Example, read_members
from jaxmeta.data.images import read_image
from jaxmeta.data.pickled import read_pickle
from jaxmeta.data.pool_file import write_dataset
from jaxmeta.data.pools import ImageRecipe

RECIPE = ImageRecipe(8, 8, 3)
IMAGE = re.compile(r"toy/(?P<label>\w+)/[^/]*\.jpg")
EVERYTHING = re.compile(".*")


def source(file=None, class_names=("ant", "bee", "cat", "dog"), **fields):
    """A data set of four classes in one archive, `toy.tar.gz`."""
    file = ArchiveFile("toy.tar.gz") if file is None else file

    def examples(paths):
        for match, contents in read_members(paths[file.name], IMAGE):
            yield Example("images", match["label"], match.string, contents)

    toy = ArchiveSource(
        "toy", "1.0.0", "Toy.", "https://toy.invalid/", "Us.", (file,), 14, lambda paths: class_names, examples
    )
    return toy._replace(**fields)


def plan(**fields):
    return PoolPlan(
        "toy", (source(**fields),), RECIPE, lambda names: train_on_the_rest(names, {"test": ("cat", "dog")})
    )


@pytest.fixture(scope="module")
def members():
    """Images of several sizes, from two to five of a class."""
    rng = np.random.default_rng(0)
    counts = {"ant": 2, "bee": 3, "cat": 4, "dog": 5}
    return {
        f"toy/{name}/{place}.jpg": image_file(rng.integers(0, 255, (20 + place, 30, 3)))
        for name, count in counts.items()
        for place in range(count)
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("JAXMETA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def test_every_packing_and_order_gives_the_pool_of_its_files(members, folder, own_cache, caplog):
    expected = {}
    for name, contents in members.items():
        expected.setdefault(name.split("/")[1], set()).add(read_image(contents, RECIPE).tobytes())
    shuffled = dict(random.Random(0).sample(sorted(members.items()), len(members)))
    first = None
    for packing in (".tar.gz", ".zip", ".tar.xz", ".tar"):
        path = pack(folder / f"toy{packing}", shuffled if packing == ".zip" else members)
        with caplog.at_level(logging.WARNING, logger="jaxmeta"):
            data = pool_dataset(plan(), folder)
        path.unlink()
        first = first or data
        assert same_pools(data, first) and data.recipe == RECIPE
        # Its own hash is said, and kept with the pool.
        assert data.origin is not None and data.origin["toy.tar.gz"] in caplog.text
    assert first is not None and first.class_names == {"train": ("ant", "bee"), "test": ("cat", "dog")}
    for split, names in first.class_names.items():
        for images, name in zip(real_images(first.splits[split]), names, strict=True):
            assert {image.tobytes() for image in images} == expected[name]
            assert [image.tobytes() for image in images] == sorted(image.tobytes() for image in images)
    assert len(list(own_cache.iterdir())) == 4


def test_the_second_opening_prepares_nothing_and_knows_the_origin(members, folder, caplog):
    pack(folder / "toy.tar.gz", members)
    first = pool_dataset(plan(), folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        again = pool_dataset(plan(examples=lambda paths: pytest.fail("prepared again")), folder)
    assert not caplog.records and same_pools(again, first) and again.origin == first.origin


def test_a_prepared_copy_and_a_pool_from_elsewhere_give_the_same(members, folder, tmp_path):
    from jaxmeta.data.archive_builder import prepare

    path = pack(folder / "toy.tar.gz", members)
    first = pool_dataset(plan(), folder)
    prepared = prepare(source(), {"toy.tar.gz": path}, tmp_path / "tfds")
    assert (prepared / "dataset_info.json").is_file() and "tensorflow" not in sys.modules
    stored = pool_dataset(plan(), tmp_path / "tfds")
    assert same_pools(stored, first) and stored.origin == first.origin
    write_dataset(tmp_path / "pool" / "toy-8-1.npz", first)
    assert same_pools(pool_dataset(plan(), tmp_path / "pool"), first)
    write_dataset(tmp_path / "pool" / "toy-8-1.npz", first._replace(name="other"))
    with pytest.raises(DataError, match="holds 'other'"):
        pool_dataset(plan(), tmp_path / "pool")
    write_dataset(tmp_path / "pool" / "toy-8-1-b.npz", first)
    with pytest.raises(DataError, match="several prepared pools"):
        pool_dataset(plan(), tmp_path / "pool")
    next(prepared.glob("*array_record*")).write_bytes(b"cut")
    with pytest.raises(DataError, match=r"copy of toy in .*1\.0\.0 cannot be read"):
        pool_dataset(plan(), tmp_path / "tfds")


def test_a_published_file_is_known_and_another_is_named(members, folder, caplog):
    path = pack(folder / "toy.tar.gz", members)
    with caplog.at_level(logging.WARNING, logger="jaxmeta"):
        published = pool_dataset(plan(), folder).origin["toy.tar.gz"]
        caplog.clear()
        known = ArchiveFile(path.name, "https://toy.invalid/toy.tar.gz", path.stat().st_size, published)
        pack(folder / "toy.zip", members)
        (folder / "toy.tar.gz").rename(folder / "toy.tgz")
        # The name as published comes first, then other packings in a fixed order.
        pool_dataset(plan(file=known)._replace(name="again"), folder)
        assert not caplog.records
        (folder / "toy.tgz").unlink()
        pool_dataset(plan(file=known, num_images=99)._replace(name="again"), folder)
    assert "is not byte for byte the published toy.tar.gz" in caplog.text and published in caplog.text
    assert "has 14 images; as published it has 99" in caplog.text


def link(path, name, target, kind=tarfile.SYMTYPE):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)


def zip_link(path, name, target):
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: pack(folder / "toy.zip", {"toy/../../evil.jpg": b"x"}), "outside of the folder"),
        (lambda folder: pack(folder / "toy.tar.gz", {"../evil.jpg": b"x"}), "outside of the folder"),
        (lambda folder: pack(folder / "toy.tar", {"/tmp/evil.jpg": b"x"}), "outside of the folder"),
        (lambda folder: pack(folder / "toy.tar", {"toy\\..\\..\\evil.jpg": b"x"}), "outside of the folder"),
        (lambda folder: pack(folder / "toy.tar", {"C:/evil.jpg": b"x"}), "outside of the folder"),
        (lambda folder: link(folder / "toy.tar", "toy/README", "../../secret"), "outside of the folder"),
        (lambda folder: link(folder / "toy.tar", "toy/README", "/etc/passwd"), "outside of the folder"),
        (lambda folder: link(folder / "toy.tar", "toy/README", "../secret", tarfile.LNKTYPE), "outside of the folder"),
        (lambda folder: link(folder / "toy.tar", "toy/ant/0.jpg", "1.jpg"), "a link, 'toy/ant/0.jpg', where a file"),
        (lambda folder: zip_link(folder / "toy.zip", "toy/README", "../../secret"), "outside of the folder"),
        (lambda folder: zip_link(folder / "toy.zip", "toy/ant/0.jpg", "1.jpg"), "a link, 'toy/ant/0.jpg'"),
    ],
)
def test_members_that_climb_out_are_refused(make, message, folder, own_cache):
    make(folder)
    with pytest.raises(DataError, match=message):
        pool_dataset(plan(), folder)
    assert not own_cache.exists() and len(list(folder.parent.rglob("*evil*"))) == 0


def test_links_of_no_interest_are_passed_over(tmp_path):
    link(tmp_path / "one.tar", "toy/LATEST", "README")
    assert not list(read_members(tmp_path / "one.tar", IMAGE))


@pytest.mark.parametrize("packing", [".tar.gz", ".zip", ".tar.xz", ".tar"])
@pytest.mark.parametrize("kept", [0, 3, 0.3, 0.9])
def test_archives_that_are_cut_off_are_refused(packing, kept, members, folder, own_cache):
    path = pack(folder / f"toy{packing}", members)
    contents = path.read_bytes()
    path.write_bytes(contents[: int(kept * len(contents)) if kept < 1 else kept])
    with pytest.raises(DataError, match=rf"toy{packing} is damaged or cut off .*Fetch it again"):
        pool_dataset(plan(), folder)
    assert not own_cache.exists()


def test_an_archive_cut_between_two_members_is_refused(members, folder):
    """tarfile itself takes what is left for the whole."""
    path = pack(folder / "toy.tar", members)
    with tarfile.open(path) as archive:
        start = archive.getmembers()[5].offset
    for end in (start, start + 100):
        path.write_bytes(path.read_bytes()[:end])
        with tarfile.open(path) as archive:
            assert len(archive.getmembers()) == 5
        with pytest.raises(DataError, match="its end is missing"):
            list(read_members(path, EVERYTHING))


def test_damaged_bytes_are_found(members, folder):
    path = pack(folder / "toy.zip", members)
    contents = bytearray(path.read_bytes())
    contents[200] ^= 255
    path.write_bytes(contents)
    with pytest.raises(DataError, match="damaged or cut off .*CRC"):
        pool_dataset(plan(), folder)


def test_a_damaged_image_is_named(members, folder, own_cache):
    pack(folder / "toy.tar.gz", members | {"toy/bee/1.jpg": members["toy/bee/1.jpg"][:300], "toy/bee/notes.txt": b""})
    with pytest.raises(DataError, match=r"bee, toy/bee/1\.jpg: the image is damaged"):
        pool_dataset(plan(), folder)
    assert not own_cache.exists()


def test_missing_and_unknown_classes_are_named(members, folder):
    pack(folder / "toy.tar.gz", {name: contents for name, contents in members.items() if "/dog/" not in name})
    with pytest.raises(DataError, match="no image of 1 of the 2 classes of split 'test': dog. Fetch it again"):
        pool_dataset(plan(), folder)
    pack(folder / "toy.tar.gz", members)
    with pytest.raises(DataError, match="of the class 'ant', which jaxmeta_toy has not"):
        pool_dataset(plan(class_names=("cat", "dog")), folder)
    pack(folder / "toy.tar.gz", {"README": b"nothing"})
    with pytest.raises(DataError, match="toy.tar.gz in .* cannot be prepared"):
        pool_dataset(plan(), folder)


def test_wrong_folders_and_sizes_are_refused(folder):
    with pytest.raises(DataError, match=r"No toy in data_dir .*none of this.*toy\.tar\.gz.*zip.*https://toy"):
        pool_dataset(plan(), folder)
    with pytest.raises(DataError, match="no such folder"):
        pool_dataset(plan(), folder / "nowhere")
    for size in (0, -3, 2.5, True):
        with pytest.raises(DataError, match="image_size is a number of pixels"):
            photographs(size, 84)
    assert photographs(None, 84) == ImageRecipe(84, 84, 3) and photographs(32, 84).height == 32


def test_downloads_are_refused_without_a_checksum_or_a_network(own_cache, monkeypatch):
    with pytest.raises(DataError, match="cannot be downloaded and checked: no checksum"):
        pool_dataset(plan())
    requests = pytest.importorskip("requests")

    def head(*args, **kwargs):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", head)
    known = ArchiveFile("toy.tar.gz", "https://toy.invalid/toy.tar.gz", 3, "0" * 64)
    with pytest.raises(DataError, match=r"could not be downloaded \(https://toy.invalid/toy.tar.gz cannot be reached"):
        pool_dataset(plan(file=known))
    assert not own_cache.exists()


def test_a_full_disk_names_the_remedy(members, folder, own_cache, monkeypatch):
    from jaxmeta.data import archive_builder

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    pack(folder / "toy.tar.gz", members)
    monkeypatch.setattr(archive_builder.tfds.core.GeneratorBasedBuilder, "download_and_prepare", no_space)
    with pytest.raises(DataError, match="no space in .* to prepare toy.*TMPDIR"):
        pool_dataset(plan(), folder)
    assert not own_cache.exists()


def test_a_writer_that_finds_no_space_is_understood(members, folder, own_cache, tmp_path, monkeypatch):
    """A limit on the size of a file stands in for a full disk: the error is that of the library that writes."""
    pack(folder / "toy.tar.gz", members)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(DataError, match="no space in .* to prepare toy.*TMPDIR"):
            pool_dataset(plan(), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not own_cache.exists()


def test_without_tfds_the_message_says_what_to_install(members, folder, monkeypatch):
    import jaxmeta.data.archive_builder  # noqa: F401

    pack(folder / "toy.tar.gz", members)
    pool_dataset(plan(), folder)
    monkeypatch.delitem(sys.modules, "jaxmeta.data.archive_builder")
    monkeypatch.delattr("jaxmeta.data.archive_builder")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    # What is in the cache needs none.
    pool_dataset(plan(), folder)
    with pytest.raises(DataError, match="pip install tensorflow-datasets"):
        pool_dataset(plan()._replace(recipe=ImageRecipe(9, 9, 3)), folder)


def test_pickles_that_run_something_are_refused(tmp_path):
    mark = tmp_path / "ran"
    # What pickle itself makes of an object that asks for `os.mkdir(mark)` when it is read.
    program = b"cposix\nmkdir\n(V" + str(mark).encode() + b"\ntR."
    with pytest.raises(DataError, match=r"data_batch_1 is not read: it asks to run posix\.mkdir"):
        read_pickle(program, "data_batch_1")
    assert not mark.exists()
    with pytest.raises(DataError, match=r"data_batch_1 is damaged"):
        read_pickle(b"\x80\x02}q\x01U", "data_batch_1")
