"""Where a study comes from: versions, code, machine."""

import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmdistill.records.code import SOURCE, installed, this_code
from mmdistill.records.rows import StudyRow
from mmdistill.redaction import HIDDEN, is_secret, redacted
from mmdistill.settings import digest
from mmdistill.studies.arm import place_in_lattice
from mmdistill.studies.planned import planned
from mmdistill.studies.study import Study

# The libraries that decide results, or the form of the tables.
DECIDING = (
    "torch",
    "numpy",
    "scipy",
    "POT",
    "numba",
    "scikit-learn",
    "optuna",
    "cmaes",
    "ray",
    "pydantic",
    "safetensors",
    "pyarrow",
    "duckdb",
)
# What is recorded of the environment: it decides threads, devices, places and last bits.
_RECORDED = re.compile(
    r"(?:OMP|MKL|OPENBLAS|NUMEXPR|NUMBA|CUBLAS|TORCH|PYTORCH|RAY|MMDISTILL)_\w+"
    r"|CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|PYTHONHASHSEED"
)


def study_row(study: Study, command: Sequence[str]) -> StudyRow:
    """Return the record of a study that begins now."""
    file = study.file
    return StudyRow(
        name=file.name,
        created_at=datetime.now(UTC),
        dataset=study.dataset,
        task=study.task,
        score=study.score,
        baseline=study.baseline,
        reference=file.reference,
        margin=file.margin,
        contrasts_json=json.dumps([contrast.as_json() for contrast in file.contrasts]),
        arms_json=json.dumps(_arms(study)),
        trials=file.search.trials,
        tuning=_tuning(study),
        pairs=file.confirm.pairs * max(arm.run.data.fold_count for arm in study.arms),
        seed=file.seed,
        **this_code()._asdict(),
        ray=installed("ray"),
        constraints_hash=_constraints_hash(),
        versions_json=json.dumps({name: installed(name) for name in DECIDING}),
        hardware_json=json.dumps(hardware()),
        environment_json=json.dumps(environment()),
        data_fingerprint=digest(list(study.fingerprints)),
        command=redacted(shlex.join(command)),
        host=socket.gethostname(),
        cpu_count=os.cpu_count() or 1,
        threads=1,
    )


def _arms(study: Study) -> list[dict[str, Any]]:
    """Return what is declared of every arm, see the column ``arms_json``."""
    runs = planned(study)
    return [
        {
            "name": arm.name,
            "recipe": arm.recipe,
            "dimensions": len(arm.space),
            "digest": arm.digest,
            "note": arm.note,
            "baseline": arm.baseline,
            "frozen": arm.frozen,
            "base": arm.base,
            "change": arm.change,
            "folds": arm.run.data.folds.scheme,
            "tuning": arm.run.data.folds.tuning,
            "planned": runs[arm.name].runs,
            **place_in_lattice(arm),
            "prices": study.file.prices,
            "price_unit": study.file.price_unit,
        }
        for arm in study.arms
    ]


def hardware() -> dict[str, Any]:
    """Return model of the CPU, its cores, the memory in bytes and the models of the GPUs of this machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    # Not by torch: asking it begins a context on the device in this process.
    try:
        found = _run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError):
        return []
    return found.splitlines()


def environment() -> dict[str, str]:
    """Return the environment variables that decide threads, devices and places; secrets are ``***``."""
    return {
        name: HIDDEN if is_secret(name) else redacted(value)
        for name, value in sorted(os.environ.items())
        if _RECORDED.fullmatch(name)
    }


def _tuning(study: Study) -> str:
    """Return where the winners of all arms were searched, ``mixed`` where that is not one place."""
    found = {arm.run.data.folds.tuning for arm in study.arms}
    return found.pop() if len(found) == 1 else "mixed"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _constraints_hash() -> str | None:
    path = SOURCE / "constraints.txt"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None
