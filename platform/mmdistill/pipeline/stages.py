"""Stages, their keys, and which stages a run is made of.

A key is the digest of the stage's own settings, the version of its code, the data, the fold, the label
rows, the seed and the keys of the stages before it. So only what changed is computed again, and two runs
that need the same stage share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from mmdistill.pipeline.run import RunSettings, canonical, network_modalities
from mmdistill.settings import digest
from mmdistill.training.race import RaceSettings

Kind = Literal["teacher", "alignment", "teacher_outputs", "student"]

# Raise a number when a change to that stage's code changes what it writes.
VERSIONS: dict[str, int] = {"teacher": 1, "alignment": 1, "teacher_outputs": 1, "student": 3}


@dataclass(frozen=True)
class Stage:
    """A cacheable step of a run.

    Attributes:
        kind: what is done.
        name: the network for a teacher, the teachers joined by ``,`` for a set, ``student``.
        own: the stage's own settings and inputs, plain JSON.
        upstream: the stages it reads.
    """

    kind: Kind
    name: str
    own: dict[str, Any]
    upstream: tuple["Stage", ...] = ()

    @cached_property
    def key(self) -> str:
        """Return 32 hexadecimal digits that identify what the stage writes."""
        content = [self.kind, VERSIONS[self.kind], self.own, [stage.key for stage in self.upstream]]
        return digest(content) + digest(["second half", *content])


def raced(students: Sequence[Stage], race: RaceSettings) -> list[Stage]:
    """Return the stages of students that race each other: what becomes of one depends on all."""
    cohort = digest(list(dict.fromkeys(stage.key for stage in students)))
    rules = {"race": race.as_json(), "cohort": cohort}
    return [replace(stage, own=stage.own | rules) for stage in students]


class Pipeline:
    """The stages of one run, first to last."""

    def __init__(self, run: RunSettings, fingerprint: str) -> None:
        """Lay out the stages.

        Args:
            run: the run.
            fingerprint: of the data the run's fold was cut from.
        """
        self.run = canonical(run)
        self._context = {
            "data": fingerprint,
            "folds": run.data.folds.identity,
            "fold": run.fold,
            "label_fraction": run.data.label_fraction,
            "seed": run.seed,
        }

    @cached_property
    def teachers(self) -> tuple[Stage, ...]:
        """Return a stage per network of the pool; none where the teacher trains along with the student."""
        if self.run.trains_teacher():
            return ()
        return tuple(self.teacher(name) for name in self.run.networks())

    def teacher(self, name: str) -> Stage:
        """Return the stage that trains the network of that name, with its out-of-fold copies."""
        settings = self.run.teachers.as_json()
        own = {key: settings[key] for key in settings if key not in {"pool", "training", "task_weight"}}
        modalities = network_modalities(name, self.run.data)
        own |= {"modalities": list(modalities), "network": self.run.network.as_json()}
        own |= {"batch_size": self.run.batch_size}
        return Stage("teacher", "+".join(modalities), own | self._context)

    @cached_property
    def alignment(self) -> Stage | None:
        """Return the stage that aligns the set, where the run asks for it."""
        if not self.teachers or self.run.alignment.kind == "none":
            return None
        own = {"alignment": self.run.alignment.as_json(), "pool": list(self.run.networks()), **self._context}
        return Stage("alignment", ",".join(self.run.networks()), own, self.teachers)

    @cached_property
    def outputs(self) -> Stage | None:
        """Return the stage of the frozen teachers' outputs on the training rows."""
        if not self.teachers:
            return None
        own = {"pool": list(self.run.networks()), **self._context}
        if self.run.looks_at("layers"):
            own["layers"] = True
        if self.run.looks_at("masked"):
            own["masked"] = sorted(self.run.data.student)
        upstream = self.teachers if self.alignment is None else (self.alignment,)
        return Stage("teacher_outputs", ",".join(self.run.networks()), own, upstream)

    @cached_property
    def student(self) -> Stage:
        """Return the stage that trains the student."""
        own = self.run.as_json()
        # The data is in the context. What frozen teachers are is in the key of their outputs.
        own["data"] = {"student": sorted(self.run.data.student)}
        if self.outputs is not None:
            del own["teachers"], own["alignment"]
            return Stage("student", "student", own | self._context, (self.outputs,))
        own["networks"] = self.run.networks()
        own["auxiliary"] = sorted(self.run.data.privileged) if self.run.needs_auxiliary() else []
        return Stage("student", "student", own | self._context)
