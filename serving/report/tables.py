"""The rows of a run as Parquet tables, for data frames and databases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hqtl_common.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["check_parquet", "write_parquet"]

_ROWS = 5_000  # of a row group

_TEXTS = frozenset(
    {"path", "label", "backend", "calibration", "sha256", "taken", "duplicate_of", "error_code", "error_message", "part_kind"}
)
_NUMBERS = frozenset({"shots", "seed", "width", "height", "x", "y", "part"})


def check_parquet() -> None:
    """Make sure that tables can be written.

    Raises:
        ConfigError: The package pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError("Parquet needs the package pyarrow: pip install 'hqtl[report]'") from error


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> None:
    """One row per row; a name that is not UTF-8 is percent-encoded in ``path``, and its bytes stand in ``path_bytes``.

    Args:
        path: The file.
        rows: Values by column name.
        columns: Names as in the CSV.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("path_bytes", pyarrow.binary()), *((name, _kind(name)) for name in columns)])
    with path.open("wb") as file, pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:  # it takes no odd names
        remaining = iter(rows)
        for block in _blocks(remaining):
            writer.write_table(pyarrow.Table.from_pylist(block, schema=schema))


def _blocks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while block := [_storable(row) for row in islice(rows, _ROWS)]:
        yield block


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    name = row["path"].encode("utf-8", "surrogateescape")
    return {**{key: _text(value) for key, value in row.items()}, "path_bytes": name}


def _text(value: Any) -> Any:
    """Text as UTF-8; each byte that is not becomes %XX, and so does a percent sign in such a text."""
    if not isinstance(value, str) or not any("\udc80" <= letter <= "\udcff" for letter in value):
        return value
    return "".join(f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter.replace("%", "%25") for letter in value)


def _kind(name: str) -> pyarrow.DataType:
    import pyarrow

    if name in _TEXTS or name == "review":
        return pyarrow.string()
    return pyarrow.int64() if name in _NUMBERS or name.startswith("tiles_") else pyarrow.float64()
