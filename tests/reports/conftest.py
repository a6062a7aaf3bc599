"""A small study made by hand, of any arms, seeds, folds and predictions."""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mmdistill.records.finals import Final
from mmdistill.records.rows import (
    AttemptRow,
    EpochRow,
    MatrixRow,
    OpeningRow,
    PredictionRow,
    StageRow,
    StudyRow,
    TrialRow,
    arrow_table,
)
from mmdistill.records.study import StudyFolder
from mmdistill.reports.importance import Search
from mmdistill.settings import Range

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def trial(arm, phase, *, number=None, seed_index=None, fold=0, metrics=None, **other):
    key = number if number is not None else seed_index
    row = TrialRow(
        trial_id=f"{arm}-{phase}-{key}-{fold}",
        order_id=f"{phase}-{key}-{fold}",
        arm=arm,
        phase=phase,
        number=number,
        seed_index=seed_index,
        seed=100 + (seed_index or 0),
        fold=fold,
        pair_id=f"f{fold}-s{seed_index or 0}",
        status="complete",
        split="test" if phase == "test" else "validation",
        epoch=3,
        metrics=metrics or {},
        parameters={},
        config_json="{}",
        run_digest="0" * 16,
        dataset="digits_views",
        teachers=[],
        selection={},
        cpu_s=1.0,
        stage_cpu_s=0.0,
        lanes=1,
        device="cpu",
        host="here",
        started_at=START,
        ended_at=START,
    )
    return replace(row, **other)


def declared(arm, *, trials=4, pairs=10, **_others):
    """Return what a study declares of an arm, given by its name or by what it has besides."""
    stated = {"name": arm} if isinstance(arm, str) else arm
    searched = 0 if stated.get("frozen") else trials
    planned = {"search": searched, "validate": 0, "confirm": pairs, "test": pairs}
    common = {"dimensions": 3, "digest": "0" * 16, "note": None, "planned": planned}
    return {"recipe": stated["name"], **common, **stated}


def study_row(arms, *, contrasts=(), **other):
    row = StudyRow(
        name="quick",
        created_at=START,
        dataset="digits_views",
        task="classification",
        score="accuracy",
        baseline="student_only",
        reference="hinton",
        margin=0.005,
        contrasts_json=json.dumps(
            [dict(zip(("question", "arm", "against"), c, strict=True)) for c in contrasts]
        ),
        arms_json=json.dumps([declared(arm, **other) for arm in arms]),
        trials=4,
        pairs=10,
        seed=7,
        package_version="0",
        python="3.11",
        torch="2",
        ray="2",
        data_fingerprint="0" * 16,
        command="mmdistill run quick.toml",
        host="here",
        cpu_count=2,
        threads=1,
    )
    return replace(row, **other)


def prediction(run, row, unit, label, outputs, targets=()):
    return PredictionRow(
        trial_id=run.trial_id,
        arm=run.arm,
        pair_id=run.pair_id,
        seed_index=run.seed_index,
        fold=run.fold,
        row=row,
        unit=unit,
        label=float(label),
        targets=list(targets),
        outputs=[float(output) for output in outputs],
    )


@dataclass
class MadeStudy:
    study: StudyRow
    trials: list = field(default_factory=list)
    predictions: list = field(default_factory=list)
    stages: list = field(default_factory=list)
    attempts: list = field(default_factory=list)
    openings: list = field(default_factory=list)

    def tables(self):
        return {
            "trials": arrow_table(TrialRow, self.trials),
            "stages": arrow_table(StageRow, self.stages),
            "epochs": arrow_table(EpochRow, []),
            "predictions": arrow_table(PredictionRow, self.predictions),
            "matrices": arrow_table(MatrixRow, []),
            "attempts": arrow_table(AttemptRow, self.attempts),
            "studies": arrow_table(StudyRow, [self.study]),
            "test_openings": arrow_table(OpeningRow, self.openings),
        }

    def add_search(self, arm, losses, **other):
        for number, loss in enumerate(losses):
            metrics = {"log_loss": loss, "accuracy": 1 - loss / 2}
            self.trials.append(trial(arm, "search", number=number, metrics=metrics, **other))

    def add_test(self, arm, seed_index, hit_U, *, fold=0, units=None, opening=1, pair=None, **metrics):
        """Add a confirmed run and its test reading, right on row u where ``hit_U[u]``."""
        found = {"accuracy": float(np.mean(hit_U)), "log_loss": 0.5, "ace": 0.05, "worst_class_accuracy": 0.4}
        shared = {"seed_index": seed_index, "fold": fold} | ({"pair_id": pair} if pair else {})
        self.trials.append(trial(arm, "confirm", **shared, metrics=found, stage_cpu_s=2.0))
        run = trial(arm, "test", **shared, metrics=found | metrics)
        self.trials.append(run)
        for u, hit in enumerate(hit_U):
            row = f"r{fold}-{u}"
            self.predictions.append(
                prediction(
                    run, row, units[u] if units else row, u % 2, np.eye(2)[u % 2 if hit else 1 - u % 2]
                )
            )
        self.openings.append(
            OpeningRow(
                opening=opening,
                opened_at=START,
                arm=arm,
                fold=fold,
                seed_index=seed_index,
                trial_id=run.trial_id,
                selection="1.json",
                order_id=run.order_id,
            )
        )

    def fill(self, accuracies, *, seeds=8, first=0, rows=60, **other):
        """Test each arm on the same pairs; an arm's hits follow from its place, pair and accuracy."""
        for place, (arm, accuracy) in enumerate(accuracies.items()):
            for seed in range(first, first + seeds):
                rng = np.random.default_rng([place, seed])
                self.add_test(arm, seed, rng.random(rows) < accuracy, **other)

    def add_attempt(self, order_id, seconds, number=1):
        end = None if seconds is None else START + timedelta(seconds=seconds)
        self.attempts.append(
            AttemptRow(
                order_id=order_id,
                attempt=number,
                started_at=START,
                ended_at=end,
                outcome=None if end is None else "complete",
                host="here",
                pid=1,
            )
        )


def hits(accuracy, arm_seed, rows=200):
    return np.random.default_rng(arm_seed).random(rows) < accuracy


@pytest.fixture
def made():
    """Three arms, ten pairs on one split: a baseline, a clearly better arm, and one between them."""
    arms = {"student_only": 0.70, "self_distillation": 0.72, "hinton": 0.85}
    contrasts = [
        ("Do privileged modalities help?", "hinton", "self_distillation"),
        ("Does distillation from oneself help?", "self_distillation", "student_only"),
    ]
    study = MadeStudy(study_row(arms, contrasts=contrasts))
    for position, (arm, accuracy) in enumerate(arms.items()):
        study.add_search(arm, [0.9, 0.8, 0.7, 0.75])
        for seed_index in range(10):
            study.add_test(arm, seed_index, hits(accuracy, 1000 * position + seed_index))
    return study


@pytest.fixture
def new_study():
    """Return a study without a row: ``new_study(["student_only", ...], **columns)``."""
    return lambda arms, **columns: MadeStudy(study_row(arms, **columns))


@pytest.fixture
def commit():
    """Return ``commit(root, made, order_id="all")``: write the trials of a hand-made study to its folder."""

    def write(root, made, order_id="all"):
        folder = StudyFolder.create(root, made.study, "", {})
        trials = [replace(row, trial_id=f"{order_id}.{row.trial_id}") for row in made.trials]
        folder.put_final(Final(order_id, "search", trials=trials, predictions=made.predictions))
        return folder

    return write


@pytest.fixture
def new_trial():
    return trial


@pytest.fixture
def new_prediction():
    return prediction


@pytest.fixture
def rows_of():
    """Return the rows of the Markdown table whose header begins with a word, by column."""

    def read(text, first):
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
        header, _, *rest = [
            [cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[start:]
        ]
        return [dict(zip(header, cells, strict=True)) for cells in rest[: lines[start:].index("") - 2]]

    return read


def curve_rows(run, name, values):
    return [
        EpochRow(trial_id=run.trial_id, arm=run.arm, phase=run.phase, epoch=e, name=name, value=v)
        for e, v in enumerate(values)
    ]


def large_search(arm, weight):
    """Return a search of 40 trials in which one hyperparameter decides."""
    space = {weight: Range(low=0.0, high=1.0), "learning_rate": Range(low=0.001, high=0.1, log=True)}
    rng = np.random.default_rng(5)
    points = [(w, float(np.exp(rng.uniform(-6.9, -2.31)))) for w in rng.uniform(0, 1, 40).tolist()]
    trials = [(dict(zip(space, point, strict=True)), (point[0] - 0.3) ** 2) for point in points]
    return Search(arm, space, trials, "random", 8, 1)


@dataclass
class ToldStudy:
    """Tables that answer every question the page asks, with names of one's choice."""

    names: dict
    tables: dict
    search: Search


def told(rename=lambda name: name):
    """Return a study with a lattice of two modalities, a label axis, curves, selection and a large search."""
    alone = {rename(f"alone@{share}"): share for share in (0.2, 0.5, 1.0)}
    base, audio, decoy, both = (rename(name) for name in ("student_only", "audio", "decoy", "both"))
    alone = {base: 0.1} | alone
    taught = {both: [rename("sound"), rename("noise")], audio: [rename("sound")], decoy: [rename("noise")]}
    arms = [{"name": arm, "recipe": "student_only"} for arm in alone]
    arms += [
        {"name": arm, "privileged": parts, "alike": {"privileged": "x", "teachers": arm}, "baseline": base}
        | ({} if arm == both else {"base": both, "change": f"without {other}"})
        for (arm, parts), other in zip(taught.items(), ("", "noise", "sound"), strict=True)
    ]
    arms[-3] |= {"prices": {rename("sound"): 2.0}, "price_unit": "minutes"}
    contrasts = [(f"Does {both} help?", both, base), (f"Does {decoy} harm?", decoy, base)]
    made = MadeStudy(
        study_row(
            arms,
            contrasts=contrasts,
            name=rename("told"),
            dataset=rename("a set"),
            baseline=base,
            reference=audio,
        )
    )
    accuracy = dict(zip(alone, (0.5, 0.56, 0.66, 0.75), strict=True)) | {both: 0.68, audio: 0.7, decoy: 0.3}
    made.fill(accuracy, rows=200)
    for arm in accuracy:
        made.add_search(arm, np.random.default_rng(len(arm)).uniform(0.5, 0.9, 40).tolist())
    shares = alone | dict.fromkeys(taught, 0.2)
    made.trials = [
        replace(run, config_json=json.dumps({"data": {"label_fraction": shares[run.arm]}}))
        for run in made.trials
    ]
    epochs = []
    for number, run in enumerate(run for run in made.trials if run.phase == "confirm"):
        epochs += curve_rows(
            run, "validation/log_loss", [1.4 - 0.1 * e + 0.01 * (number % 8) for e in range(9)]
        )
        if run.arm == both:
            for teacher, share in ((rename("sound"), 0.75), (rename("noise"), 0.25)):
                epochs += curve_rows(run, f"selection/{teacher}", [share] * 9)
    tables = made.tables() | {"epochs": arrow_table(EpochRow, epochs)}
    names = {"base": base, "audio": audio, "decoy": decoy, "both": both}
    return ToldStudy(names, tables, large_search(both, rename("weight")))


@pytest.fixture(scope="session")
def telling():
    """Return ``telling(rename)``: a :class:`ToldStudy` whose names went through a function."""
    return told
