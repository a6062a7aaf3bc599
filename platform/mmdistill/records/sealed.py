"""JSON records that carry their own SHA-256, so a torn or altered one is noticed."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdistill.errors import StudyError

_SEAL = "record_sha256"
_FLOAT = "$float"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def seal(body: Mapping[str, Any]) -> bytes:
    """Return a record as JSON with the additional key ``record_sha256``; equal bodies give equal bytes.

    Numbers that are not finite are written as :func:`pack` says; tuples become lists.

    Raises:
        ValueError: if the body has a key ``record_sha256``.
    """
    if _SEAL in body:
        raise ValueError(f"a record may not have a key {_SEAL!r}")
    packed = pack(body)
    text = json.dumps({**packed, _SEAL: _hash(packed)}, sort_keys=True, indent=1, allow_nan=False)
    return f"{text}\n".encode()


def unseal(path: Path, content: bytes) -> dict[str, Any]:
    """Return the body of a record read from ``path``.

    Raises:
        StudyError: naming the file, if it is torn, altered, or no record of a study.
    """
    try:
        packed = json.loads(content)
        written = packed.pop(_SEAL)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise StudyError(f"{path} is torn or is no record of this study; restore it or remove it") from None
    if _hash(packed) != written:
        raise StudyError(f"{path} was altered after it was written; restore it or remove it")
    body: dict[str, Any] = unpack(packed)
    return body


def pack(value: Any) -> Any:
    """Return JSON values in which a number that is not finite is, e.g., ``{"$float": "NaN"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: pack(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [pack(entry) for entry in value]
    return value


def unpack(value: Any) -> Any:
    """Return what :func:`pack` was given, from parsed JSON; tuples come back as lists."""
    if isinstance(value, dict):
        if len(value) == 1 and _FLOAT in value:
            return _NOT_FINITE[value[_FLOAT]]
        return {key: unpack(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [unpack(entry) for entry in value]
    return value


def _hash(packed: Any) -> str:
    text = json.dumps(packed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
