"""Stages, their keys, and which stages a run is made of.

A key is the digest of the stage's own settings, the version of its code, the data, the fold, the label
rows, the seed and the keys of the stages before it. So only what changed is computed again, and two runs
that need the same stage share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from mmdistill.pipeline.parts import network_modalities
from mmdistill.pipeline.run import RunSettings, canonical
from mmdistill.settings import digest
from mmdistill.training.race import RaceSettings

Kind = Literal["teacher", "alignment", "teacher_outputs", "student"]

# Raise a number when a change to that stage's code changes what it writes.
VERSIONS: dict[str, int] = {"teacher": 3, "alignment": 4, "teacher_outputs": 4, "student": 6}


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
        """Return a stage per network that is trained before the student."""
        return tuple(self.teacher(name) for name in self.run.frozen_networks())

    def teacher(self, name: str) -> Stage:
        """Return the stage that trains the network of that name, with its out-of-fold copies."""
        settings = self.run.teachers.as_json()
        of_students = {"pool", "training", "auxiliary", "task_weight"}
        own = {key: settings[key] for key in settings if key not in of_students}
        modalities = network_modalities(name, self.run.data)
        own |= {"modalities": list(modalities), "network": self.run.network.as_json()}
        own |= {"batch_size": self.run.batch_size}
        return Stage("teacher", "+".join(modalities), own | self._context)

    @cached_property
    def first_network(self) -> Stage | None:
        """Return the stage of the network whose encoders the student begins with; None if it begins anew."""
        first = self.run.first_network()
        return None if first is None else Pipeline(first, str(self._context["data"])).teacher("student")

    @cached_property
    def alignment(self) -> Stage | None:
        """Return the stage that aligns the set, where the run asks for it."""
        if not self.teachers or self.run.alignment.kind == "none":
            return None
        own = {"alignment": self.run.alignment.as_json(), "pool": list(self.run.networks()), **self._context}
        return Stage("alignment", ",".join(self.run.networks()), own, self.teachers)

    @cached_property
    def outputs(self) -> Stage | None:
        """Return the stage of the frozen networks' outputs on the training rows."""
        if not self.teachers:
            return None
        names = list(self.run.frozen_networks())
        own = {"pool": names, **self._context}
        own["streams"] = self._missing() if self.run.hallucinates() else []
        if "layers" in self.run.further():
            own["layers"] = True
        if "masked" in self.run.further():
            own["masked"] = sorted(self.run.data.student)
        upstream = self.teachers if self.alignment is None else (self.alignment,)
        return Stage("teacher_outputs", ",".join(names), own, upstream)

    @cached_property
    def student(self) -> Stage:
        """Return the stage that trains the student."""
        own = self.run.as_json()
        # The data is in the context. What frozen teachers are is in the key of their outputs.
        own["data"] = {"student": sorted(self.run.data.student), "missing": self._missing()}
        first = () if self.first_network is None else (self.first_network,)
        upstream = () if self.outputs is None else (self.outputs,)
        if upstream and not self.run.trains_teacher():
            del own["teachers"], own["alignment"]
            return Stage("student", "student", own | self._context, (*upstream, *first))
        own["networks"] = self.run.networks()
        own["auxiliary"] = sorted(self.run.data.privileged) if self.run.needs_auxiliary() else []
        return Stage("student", "student", own | self._context, (*upstream, *first))

    def _missing(self) -> list[str]:
        missing = self.run.missing()
        return [] if missing is None else list(missing.modalities)
