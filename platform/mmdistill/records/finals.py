"""What one order leaves: rows in a JSON record; curves, predictions and matrices beside it as Parquet."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmdistill.errors import StudyError
from mmdistill.records.rows import EpochRow, MatrixRow, PredictionRow, Row, StageRow, TrialRow, arrow_table
from mmdistill.records.schema import OLDEST_VERSION, SCHEMA_VERSION, AnyRow, from_json, to_json
from mmdistill.records.shelf import file_stem
from mmdistill.records.store import put_named, read_verified

_SIDES: dict[str, type[Row]] = {"curves": EpochRow, "predictions": PredictionRow, "matrices": MatrixRow}


class SideFile(NamedTuple):
    """A Parquet file that belongs to a final.

    Attributes:
        folder: ``curves``, ``predictions`` or ``matrices``.
        file: its name.
        sha256: of its content.
        rows: how many rows it holds.
    """

    folder: str
    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Final:
    """The result of one order.

    Attributes:
        order_id: the order.
        kind: ``stages``, ``search``, ``validate``, ``confirm`` or ``test``.
        trials: one row per lane.
        stages: one row per stage used.
        epochs: the curves; empty when read back unless asked for.
        predictions: the predictions; empty when read back unless asked for.
        matrices: what confirmed runs are looked at by; empty when read back unless asked for.
        sides: the files that hold the three, once committed.
    """

    order_id: str
    kind: str
    trials: Sequence[TrialRow] = ()
    stages: Sequence[StageRow] = ()
    epochs: Sequence[EpochRow] = ()
    predictions: Sequence[PredictionRow] = ()
    matrices: Sequence[MatrixRow] = ()
    sides: Sequence[SideFile] = ()

    @property
    def is_given_up(self) -> bool:
        """Return whether nothing in the order got anywhere, so that it may be tried again."""
        return not self.stages and all(trial.status == "failed" for trial in self.trials)


def write_sides(root: Path, final: Final) -> list[SideFile]:
    """Write what stands beside the record of a final below ``root``, durably; return where it is."""
    sides = []
    for folder, table in (
        ("curves", arrow_table(EpochRow, final.epochs)),
        ("predictions", arrow_table(PredictionRow, final.predictions)),
        ("matrices", arrow_table(MatrixRow, final.matrices)),
    ):
        if table.num_rows:
            named = put_named(root / folder, file_stem(final.order_id), ".parquet", parquet_bytes(table))
            sides.append(SideFile(folder, named.name, named.sha256, table.num_rows))
    return sides


def read_side(root: Path, final: Final, folder: str) -> pa.Table:
    """Return a side of a committed final as a table, verified; no rows if it has none.

    Raises:
        StudyError: if the file is missing, damaged, or has another number of rows than the final says.
    """
    for side in final.sides:
        if side.folder == folder:
            path = root / folder / side.file
            table = parquet_table(read_verified(path, side.sha256))
            if table.num_rows != side.rows:
                raise StudyError(f"{path} has {table.num_rows} rows, but its final says {side.rows}")
            return table
    return arrow_table(_SIDES[folder], [])


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd", write_page_checksum=True)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def parquet_table(content: bytes) -> pa.Table:
    """Return the table that :func:`parquet_bytes` was given; page checksums are verified."""
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    # Reading adds a number to the metadata of every field; the schema that was written has none.
    written = base64.b64decode(file.metadata.metadata[b"ARROW:schema"])
    return file.read(use_threads=False).cast(pa.ipc.read_schema(pa.py_buffer(written)))


def final_body(final: Final, sides: Sequence[SideFile]) -> dict[str, Any]:
    """Return the record of a final whose side files are written."""
    return {
        "schema_version": SCHEMA_VERSION,
        "order_id": final.order_id,
        "kind": final.kind,
        "trials": [to_json(row) for row in final.trials],
        "stages": [to_json(row) for row in final.stages],
        "sides": [side._asdict() for side in sides],
    }


def parsed_final(path: Path, order_id: str, body: Mapping[str, Any]) -> Final:
    """Return the final in a record, without curves and predictions.

    Raises:
        StudyError: naming the file, if the record is no final, or that of another order.
    """
    try:
        is_known = OLDEST_VERSION <= body["schema_version"] <= SCHEMA_VERSION
        if not is_known or body["order_id"] != order_id:
            raise ValueError(f"schema version {body['schema_version']}, order {body['order_id']!r}")
        return Final(
            order_id=order_id,
            kind=body["kind"],
            trials=_rows(TrialRow, body["trials"]),
            stages=_rows(StageRow, body["stages"]),
            sides=tuple(SideFile(**side) for side in body["sides"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is no final of order {order_id!r}: {error}") from error


def _rows(kind: type[AnyRow], values: Sequence[Mapping[str, Any]]) -> tuple[AnyRow, ...]:
    return tuple(from_json(kind, value) for value in values)
