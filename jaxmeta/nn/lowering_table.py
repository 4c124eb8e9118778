"""Which way a contraction is computed: as it is asked for, by a table of what was measured, or by the rule.

A table is a value. It is part of what is static of a contraction, so that a program compiled under one table
is never used under another, and it goes where the model goes: `conv4(5, lowering=table)`.
"""

import dataclasses
import functools
import operator
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from jaxmeta.nn.lowerings import LOWERINGS, ROLES, Geometry, choose_lowering

FORMAT_VERSION = 1
AGAIN = "Measure again with `jaxmeta plan --lowerings`."


class Case(NamedTuple):
    """What decides how fast a contraction is.

    Attributes:
      missing: The role that is computed: "input", "kernel" or "output".
      geometry: Window, strides, padding, dilation, groups.
      first: Shape of the first of the two that are given, in the order of `ROLES`. The shapes have a leading
        task axis where every task has a kernel of its own.
      second: Shape of the other.
      dtype: Name of their type.
      precision: Of matrix products, as `jax.default_matmul_precision` takes it; None for the backend's own.
    """

    missing: str
    geometry: Geometry
    first: tuple[int, ...]
    second: tuple[int, ...]
    dtype: str = "float32"
    precision: str | None = None

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.first[-2] * self.geometry.groups if self.missing == "input" else self.first[-1]

    @property
    def features(self) -> int:
        """Channels of the output."""
        return self.second[-1]

    @property
    def per_task(self) -> bool:
        """Whether every task has a kernel of its own."""
        return len(self.first) == 5


@dataclasses.dataclass(frozen=True, repr=False)
class LoweringTable:
    """Which lowering was fastest, for every case that was measured.

    Attributes:
      device_kind: What it was measured on, from `device_name`.
      rows: `(platform, case, name of the lowering)`, no case twice; platforms as for `choose_lowering`.

    Example:
      >>> case = Case("output", Geometry((8, 8), (3, 3)), (4, 8, 8, 3), (3, 3, 3, 5))
      >>> table = LoweringTable("cpu", (("cpu", case, "xla"),))
      >>> table.lookup("cpu", case), table.lookup("tpu", case), table
      ('xla', None, LoweringTable('cpu', 1 rows))
    """

    device_kind: str
    rows: tuple[tuple[str, Case, str], ...] = ()

    def __hash__(self) -> int:
        """Hash the rows once: it is asked for whenever a contraction is traced."""
        return self._hash

    def __repr__(self) -> str:
        """Tell the number of rows only: programs print what is static of each operation."""
        return f"LoweringTable({self.device_kind!r}, {len(self.rows)} rows)"

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.device_kind, self.rows))

    @functools.cached_property
    def _names(self) -> dict[tuple[str, Case], str]:
        return {(platform, case): name for platform, case, name in self.rows}

    def lookup(self, platform: str, case: Case) -> str | None:
        """Give the name of a case's lowering, or None if the table does not have it."""
        return self._names.get((platform, case))

    def extended(self, other: "LoweringTable") -> "LoweringTable":
        """Add the rows of another table for the cases that this one does not have."""
        new = (row for row in other.rows if row[:2] not in self._names)
        return LoweringTable(self.device_kind, (*self.rows, *new))

    def to_json(self) -> dict[str, Any]:
        """Turn the table into plain values."""
        rows = []
        for platform, case, name in self.rows:
            geometry = {field: _plain(value) for field, value in case.geometry._asdict().items()}
            sizes = {"geometry": geometry, "first": _plain(case.first), "second": _plain(case.second)}
            rows.append({"platform": platform, "lowering": name, "case": {**case._asdict(), **sizes}})
        return {"format": FORMAT_VERSION, "device_kind": self.device_kind, "rows": rows}

    @classmethod
    def from_json(cls, values: Any) -> "LoweringTable":
        """Rebuild a table from plain values.

        Args:
          values: From `to_json`.

        Returns:
          The table.

        Raises:
          ValueError: if they are damaged, of another version, or name a lowering that there is not.
        """
        try:
            version = values["format"]
            if version != FORMAT_VERSION:
                raise ValueError(f"The lowerings have format {version!r}; {FORMAT_VERSION} is needed. {AGAIN}")
            named = {row["lowering"] for row in values["rows"]}
            if unknown := sorted(named - set(LOWERINGS)):
                raise ValueError(f"{unknown[0]!r} is no lowering; needed is one of: {', '.join(LOWERINGS)}. {AGAIN}")
            rows = {(row["platform"], _case(row["case"])): row["lowering"] for row in values["rows"]}
            table = cls(values["device_kind"], tuple((*key, name) for key, name in rows.items()))
            whole = table.to_json() == values and isinstance(table.device_kind, str) and all(map(_is_sound, table.rows))
        except (KeyError, TypeError, AttributeError):
            table, whole = cls("unknown"), False
        if not whole:
            raise ValueError(f"Given was no table of lowerings, or a damaged one; `to_json` makes one. {AGAIN}")
        return table


def _plain(value):
    """Turn tuples into lists, and whatever counts as a whole number into one."""
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else operator.index(value)


def _case(values: dict[str, Any]) -> Case:
    of_geometry = {name: _tuples(value) for name, value in values["geometry"].items()}
    return Case(**{**{name: _tuples(value) for name, value in values.items()}, "geometry": Geometry(**of_geometry)})


def _tuples(value) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_sound(row) -> bool:
    """Tell whether a row has the numbers of axes that a contraction has."""
    platform, case, _ = row
    texts = all(isinstance(text, str) for text in (platform, case.missing, case.dtype))
    return texts and case.missing in ROLES and len(case.first) == len(case.second) in (4, 5)


def this_platform() -> str:
    """Give the name that lowerings know the default devices by: "cpu", "cuda", "rocm", "tpu" or "other"."""
    device = jax.devices()[0]
    if device.platform == "gpu":
        return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return device.platform if device.platform in ("cpu", "tpu") else "other"


def covering(case: Case, platform: str) -> list[str]:
    """List the lowerings that compute a case, that of the rule first, none that is the same program as another.

    Args:
      case: What is computed.
      platform: As for `choose_lowering`.

    Returns:
      Keys of `LOWERINGS`.

    Example:
      >>> geometry = Geometry((8, 8), (3, 3), padding=((1, 1), (1, 1)))
      >>> covering(Case("output", geometry, (4, 8, 8, 3), (3, 3, 3, 5)), "cuda")
      ['xla', 'canonical', 'patches', 'winograd']
    """
    first, names = lowering_of(case, platform), []
    for name in dict.fromkeys([first, *LOWERINGS]):
        way = LOWERINGS[name]
        # Without tasks, how tasks go through it makes no difference.
        same = not case.per_task and any(LOWERINGS[other].contract is way.contract for other in names)
        if _covers(name, case) and not same:
            names.append(name)
    return names


def lowering_of(case: Case, platform: str, lowering: str | LoweringTable = "auto") -> str:
    """Tell which way a case takes.

    Args:
      case: What is computed.
      platform: As for `choose_lowering`.
      lowering: A key of `LOWERINGS`; "auto", the rule; a table, which decides where it has the case.

    Returns:
      A key of `LOWERINGS` that covers the case.
    """
    geometry, channels = case.geometry, case.channels
    if isinstance(lowering, LoweringTable):
        name = lowering.lookup(platform, case)
        lowering = name if name is not None and _covers(name, case) else "auto"
    if lowering == "auto":
        lowering = choose_lowering(platform, geometry, channels, case.features, case.per_task, dtype=case.dtype)
    if not _covers(lowering, case):
        _say_once(lowering, geometry, case.dtype)
        return "xla_in_turn" if platform == "cpu" else "xla"
    return lowering


def _covers(name: str, case: Case) -> bool:
    return LOWERINGS[name].covers(case.geometry, case.channels, case.dtype)


@functools.cache
def _say_once(lowering, geometry, dtype):
    warnings.warn(
        f"The lowering {lowering!r} does not cover {geometry} in {dtype}; XLA's own convolution is used.", stacklevel=2
    )


def lowerings_used(
    cases: Iterable[Case], platform: str, lowering: str | LoweringTable = "auto", *, device_kind: str = "unknown"
) -> LoweringTable:
    """Tell which way each case takes, by table or by rule: what a run stores.

    Args:
      cases: From `contractions_in`.
      platform: As for `choose_lowering`.
      lowering: As given to the model. Layers with a lowering of their own take that instead.
      device_kind: What it is computed on.

    Returns:
      A table with every case, which decides as `lowering` does.

    Example:
      >>> case = Case("output", Geometry((8, 8), (3, 3)), (4, 8, 8, 3), (3, 3, 3, 5))
      >>> lowerings_used([case], "cuda").lookup("cuda", case)
      'xla'
    """
    rows = tuple((platform, case, lowering_of(case, platform, lowering)) for case in dict.fromkeys(cases))
    return LoweringTable(device_kind, rows)
