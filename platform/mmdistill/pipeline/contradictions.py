"""What settings of a run must not ask for together, how far they may go, and which change nothing."""

from collections.abc import Iterator

from mmdistill.pipeline.parts import Parts
from mmdistill.terms import TERMS

RESERVED = ("each", "joint", "student", "privileged")


def contradictions(run: Parts) -> list[str]:
    """Return why the settings of a run do not fit together, all reasons; none where they do."""
    return [
        *_pool_problems(run),
        *_teaching_problems(run),
        *_hallucinator_problems(run),
        *_term_problems(run),
        *_teacher_problems(run),
    ]


def _pool_problems(run: Parts) -> list[str]:
    data, problems = run.data, []
    for name in run.teachers.pool:
        foreign = set() if name in RESERVED else set(name.split("+")) - set(data.modalities)
        if foreign:
            mend = f"name modalities of data.student or data.privileged, or one of {', '.join(RESERVED)}"
            problems.append(f"teachers.pool: {name!r} is no teacher of this run ({mend})")
        if name in {"each", "joint", "privileged"} and not data.privileged:
            needs = "needs privileged modalities, and data.privileged is empty"
            problems.append(f"teachers.pool: {name!r} {needs}")
    return problems


def _teaching_problems(run: Parts) -> list[str]:
    problems = []
    if run.trains_teacher() and len(run.networks()) != 1:
        only = "a jointly trained teacher must be the only one"
        problems.append(f"{only}, but the pool is {list(run.networks())}")
    if run.alignment.kind != "none" and "joint" not in run.teachers.pool:
        missing = "which is not in teachers.pool"
        problems.append(f"alignment pulls the other teachers to the `joint` one, {missing}")
    alignment, networks = run.alignment, run.networks()
    if alignment.kind == "raw" and alignment.detach_joint and alignment.loss != "kl":
        nothing = "nothing would move: without adapters only the joint teacher's features can"
        problems.append(f'alignment.detach_joint with alignment.kind = "raw": {nothing}')
    name = run.selection.fixed_to
    if run.selection.policy == "fixed" and len(networks) > 1 and name not in networks:
        problems.append(f"selection.fixed_to: {name!r} is none of the teachers {', '.join(networks)}")
    return problems


def _hallucinator_problems(run: Parts) -> list[str]:
    problems, kind = [], f'hallucinator.kind = "{run.hallucinator.kind}"'
    if run.missing() is not None and not run.data.privileged:
        problems.append(f"{kind} needs privileged modalities, and data.privileged is empty")
    if run.hallucinates() and (run.trains_teacher() or "joint" not in run.networks()):
        problems.append(f"{kind} learns from a frozen `joint` teacher, and the run has none")
    return problems


def _term_problems(run: Parts) -> list[str]:
    terms, problems = run.active_terms(), []
    needy = [name for name in terms if TERMS[name].needs & {"teacher", "pool"}]
    if needy and not run.teachers.pool:
        problems.append(f"terms.{needy[0]} needs a teacher, and teachers.pool is empty")
    problems += _auxiliary_problems(run)
    if run.needs_auxiliary() and not run.data.privileged:
        problems.append("an auxiliary network needs privileged modalities, and data.privileged is empty")
    pooled = [name for name in terms if "pool" in TERMS[name].needs]
    if pooled and run.trains_teacher():
        frozen = 'and with `teachers.training = "joint"` none is frozen'
        problems.append(f"terms.{pooled[0]} needs every frozen teacher, {frozen}")
    for path, most in greatest(run).items():
        _, name, field = path.split(".")
        value = getattr(terms[name], field)
        if value > most:
            limit = f"at most {most} with batch_size {run.batch_size}"
            problems.append(f"{path} must be {limit}, but is {value}")
    return problems


def _teacher_problems(run: Parts) -> list[str]:
    """Return what terms ask of teachers that these cannot do."""
    problems = []
    blind = [name for name, seen in run.networks().items() if not set(seen) & set(run.data.student)]
    if run.looks_at("masked") and blind:
        needed = "where a term masks modalities, each must see one of the student's"
        problems.append(f"teachers.pool: {blind[0]!r} sees none of data.student ({needed})")
    own = tuple(sorted(run.data.student))
    are_alike = run.trains_teacher() and set(run.networks().values()) == {own} and run.missing() is None
    if run.looks_at("average") and not are_alike:
        peer = 'a peer on the student\'s modalities: `training = "joint"` and `pool = ["student"]`'
        problems.append(f"teachers: a term averages two students and needs {peer}")
    return problems


def _auxiliary_problems(run: Parts) -> Iterator[str]:
    is_frozen = run.teachers.auxiliary == "frozen"
    for name, settings in run.active_terms().items():
        if "auxiliary" not in TERMS[name].needs:
            continue
        if not run.trains_teacher() and is_frozen:
            mend = "let one of them train along, or set its weight to 0"
            yield f"terms.{name} has no gradient: teacher and auxiliary are both frozen ({mend})"
        elif not run.trains_teacher():
            yield 'an auxiliary network needs `teachers.training = "joint"`'
        elif is_frozen and not getattr(settings, "teacher_gradient", True):
            mend = "set teacher_gradient, or its weight to 0"
            yield f"terms.{name} moves neither teacher nor auxiliary, which is frozen ({mend})"


def greatest(run: Parts) -> dict[str, int]:
    """Return the greatest values of the live settings that the batch size limits, by dotted path."""
    return {
        f"terms.{name}.{field}": most
        for name, settings in run.active_terms().items()
        for field, most in settings.most(run.batch_size).items()
        if field not in dead_fields(run, name)
    }


def dead_fields(run: Parts, name: str) -> frozenset[str]:
    """Return the fields of a term that change nothing in a run."""
    to_teacher = frozenset() if run.trains_teacher() else frozenset({"teacher_gradient"})
    return run.terms[name].dead() | (to_teacher & set(type(run.terms[name]).model_fields))
