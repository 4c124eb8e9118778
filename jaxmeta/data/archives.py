"""Published archives of images: which files they are, and what is in them.

Nothing is extracted to the disk: the members of an archive are read where they are. This module needs no
tensorflow-datasets; what prepares an archive with it is `archive_builder`.
"""

import contextlib
import gzip
import hashlib
import logging
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmeta.data.pools import DataError
from jaxmeta.data.prepared import file_hashes

_LOG = logging.getLogger(__name__)
# Other packings of the same files: what a name may end in.
_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar", ".zip")


class ArchiveFile(NamedTuple):
    """A published file, as far as it is known; it is downloaded only if all is.

    Attributes:
      name: Its name.
      url: Where it is published.
      size: Bytes.
      sha256: Of its contents.
      unpacked_sha256: Of what a single file that is packed as .gz holds: others pack the same bytes in another way.
    """

    name: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    unpacked_sha256: str | None = None


class Example(NamedTuple):
    """An image of an archive.

    Attributes:
      part: The part of the data that its publishers put it in; one of the source's `parts`.
      class_name: One of the source's class names.
      key: Tells it from all others of its part and class: its name in the archive.
      image: An image file's contents as they are, or pixels `[height, width, 3]` uint8.
    """

    part: str
    class_name: str
    key: str
    image: Any


class ArchiveSource(NamedTuple):
    """A published data set of labelled images in one of its packings.

    Attributes:
      name: Of the data set; packings of the same images share it.
      version: "1.0.0"; of the prepared form.
      description: One line.
      homepage: Where it is published.
      citation: Who made it.
      files: What it consists of.
      num_images: How many images it has as published.
      class_names: `(paths) -> names`, all of them in order.
      examples: `(paths) -> Iterator[Example]`; paths by the names of `files`.
      parts: What `Example.part` may be.
      remark: What is different about this packing, to be said in the log.
    """

    name: str
    version: str
    description: str
    homepage: str
    citation: str
    files: tuple[ArchiveFile, ...]
    num_images: int
    class_names: Callable[[Mapping[str, Path]], Sequence[str]]
    examples: Callable[[Mapping[str, Path]], Iterator[Example]]
    parts: tuple[str, ...] = ("images",)
    remark: str = ""


def find_source(sources: Sequence[ArchiveSource], folder: Path) -> tuple[ArchiveSource, dict[str, Path]] | None:
    """Find the first packing whose files are all in a folder; an archive may be packed in another way.

    Args:
      sources: The packings of a data set.
      folder: Where to look.

    Returns:
      The packing and the paths of its files by their published names; None if there is none.

    Example:
      >>> find_source((), Path("nowhere")) is None
      True
    """
    for source in sources:
        paths = {file.name: path for file in source.files if (path := find_file(folder, file.name))}
        if len(paths) == len(source.files):
            return source, paths
    return None


def find_file(folder: Path, name: str) -> Path | None:
    """Find a published file in a folder: an archive may be packed in another way, a single file not at all.

    Args:
      folder: Where to look.
      name: Of the file as published.

    Returns:
      Its path; None if it is not there.
    """
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            others = [name.removesuffix(suffix) + other for other in _SUFFIXES]
            return next((folder / found for found in (name, *others) if (folder / found).is_file()), None)
    return next((folder / found for found in (name, name.removesuffix(".gz")) if (folder / found).is_file()), None)


def check_hashes(source: ArchiveSource, paths: Mapping[str, Path]) -> dict[str, str]:
    """Hash the files of a source, and say in the log which are not the published ones; they are used all the same.

    Args:
      source: What is published.
      paths: The files by their published names; a folder in place of an archive has no hash.

    Returns:
      The SHA-256 of each file by its published name.
    """
    hashes = {}
    if source.remark:
        _LOG.warning("%s: %s", " and ".join(str(paths[file.name]) for file in source.files), source.remark)
    for published in source.files:
        path = paths[published.name]
        if not path.is_file():
            continue
        hashes[published.name] = found = file_hashes([path])[path.name]
        if published.sha256 is None:
            _LOG.warning("%s: sha256 %s; the published one is not known here.", path, found)
        elif found not in (published.sha256, published.unpacked_sha256) and not _holds_published(path, published):
            _LOG.warning(
                "%s is not byte for byte the published %s: its sha256 is %s, published is %s. It is used all the same.",
                path,
                published.name,
                found,
                published.sha256,
            )
    return hashes


def _holds_published(path: Path, published: ArchiveFile) -> bool:
    """Tell whether a file that was packed by others holds the published bytes; what is damaged does not."""
    if published.unpacked_sha256 is None:
        return False
    with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == published.unpacked_sha256
    return False


def read_members(path: Path, pattern: re.Pattern) -> Iterator[tuple[re.Match, bytes]]:
    """Read the members of a zip or tar archive (plain, gz, xz) whose whole name matches, in the order they are stored.

    Args:
      path: The archive; what it is is told from its contents.
      pattern: Of names such as "folder/file.jpg".

    Yields:
      The match of a name, and the contents of the file.

    Raises:
      DataError: a member, wanted or not, that would lie outside of the folder, a link that is wanted or leads there,
        or an archive that is cut off or damaged.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    try:
        yield from (_zip_members if start.startswith(b"PK") else _tar_members)(path, pattern)
    except DataError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        # What the system says, such as no permission, is no damage.
        if isinstance(error, OSError) and error.errno:
            raise
        raise damaged(path, error) from error
    except Exception as error:
        # zlib and lzma raise errors of their own, derived from Exception alone.
        if type(error).__module__ not in ("zlib", "_lzma", "lzma"):
            raise
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> DataError:
    """Make the error that says that an archive is damaged.

    Args:
      path: The archive.
      reason: What is wrong with it.

    Returns:
      The error, to be raised.
    """
    why = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return DataError(f"{path} is damaged or cut off ({why}). Fetch it again.")


def _zip_members(path: Path, pattern: re.Pattern) -> Iterator[tuple[re.Match, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            match = pattern.fullmatch(_inside(path, member.filename))
            if stat.S_ISLNK(member.external_attr >> 16):
                _check_link(path, member.filename, archive.read(member).decode(errors="replace"), match)
            elif match and not member.is_dir():
                yield match, archive.read(member)


def _tar_members(path: Path, pattern: re.Pattern) -> Iterator[tuple[re.Match, bytes]]:
    try:
        archive = tarfile.open(path, "r:*")
    except tarfile.ReadError as error:
        # What tarfile says of each packing that it tried takes five lines.
        size = path.stat().st_size
        raise damaged(path, f"its {size:,} bytes are no zip and no tar archive" if size else "it is empty") from error
    with archive:
        for member in archive:
            match = pattern.fullmatch(_inside(path, member.name))
            if member.issym() or member.islnk():
                # A hard link names a member, a symbolic link what lies beside it.
                base = "" if member.islnk() else posixpath.dirname(member.name)
                _check_link(path, member.name, member.linkname, match, base)
            elif match and (file := archive.extractfile(member)):
                contents = file.read()
                if len(contents) != member.size:
                    raise damaged(path, f"{member.name} is cut off")
                yield match, contents
        # A tar archive ends in a block of zeros, which has then been read; tarfile itself is content without.
        if archive.fileobj is not None and archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
            raise damaged(path, "its end is missing")


def _inside(path: Path, name: str) -> str:
    """Return a member's name in its plain form; refuse one that would lie outside of the folder."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    if plain.startswith(("/", "../")) or plain == ".." or re.match("[A-Za-z]:", plain):
        raise DataError(
            f"{path} has a member {name!r}, which would lie outside of the folder it is extracted to: that is no "
            "published archive. Nothing of it was written. Delete it and fetch it again from where it is published."
        )
    return plain


def _check_link(path: Path, name: str, target: str, match: re.Match | None, base: str | None = None) -> None:
    """Refuse a link that leads out of the folder or stands where a file should be; others are of no interest."""
    base = posixpath.dirname(name) if base is None else base
    _inside(path, target if target.startswith("/") else posixpath.join(base, target))
    if match:
        raise DataError(f"{path} has a link, {name!r}, where a file should be. Pack the files themselves.")
