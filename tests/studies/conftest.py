import random
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmdistill.pipeline.execute import failed_final
from mmdistill.randomness import derive_seed, numpy_generator
from mmdistill.settings import merged
from mmdistill.studies.file import StudyFile, read_study_file
from mmdistill.studies.protocol import State, StudyProtocol
from mmdistill.studies.study import assemble

TINY = """
name = "tiny"
seed = 3

[run]
epochs = 2
batch_size = 16

[run.data]
dataset = "planted"
options = { rows = [64, 32, 32] }
student = ["face"]
privileged = ["audio", "decoy"]

[run.teachers]
epochs = 2
out_of_fold = 2

[[arms]]
name = "student_only"
recipe = "student_only"

[[arms]]
name = "hinton"
recipe = "hinton"

[[arms]]
name = "several"
recipe = "hinton"
edits = { "teachers.pool" = ["each", "joint"] }

[search]
trials = 3
startup = 2
generation = 1
top = 1
seeds = 2

[confirm]
pairs = 2
"""


@pytest.fixture(scope="session")
def tiny():
    """Return the text of a small sound study: three arms, three trials, two pairs."""
    return TINY


@pytest.fixture
def read(tmp_path):
    """Return a function from a text, and edits, to the study file; its path is ``s.toml``."""

    def from_text(text=TINY, *edits):
        path = tmp_path / "s.toml"
        path.write_text(text, encoding="utf-8")
        return read_study_file(path, edits)

    return from_text


@pytest.fixture
def put_together(read):
    """Return a function from a text, and edits, to the assembled study; problems begin with ``s.toml``."""

    def from_text(text=TINY, *edits):
        return assemble(read(text, *edits), "s.toml")

    return from_text


def luck(*parts):
    """Return a number in [0, 1) that depends on the parts alone."""
    return derive_seed(*parts) / 2**63


def propose(request):
    """Propose at random, in a way that depends on everything the proposer is told."""
    told = str([request.sampler, request.first, request.seed, sorted(request.columns), list(request.past)])
    generator = numpy_generator(told)
    return [
        {path: found.at(float(generator.random())) for path, found in sorted(request.space.items())}
        for _ in range(request.count)
    ]


def result(order, *, failing=0.15):
    """Return made-up rows: what a run scores depends on its settings and its seed, some fail or diverge."""
    final = failed_final(order, "made up")
    trials = []
    for row in final.trials:
        chance = luck("chance", str(dict(row.parameters)), row.seed)
        status = "failed" if chance < failing / 2 else "diverged" if chance < failing else "complete"
        value = luck("value", str(dict(row.parameters)), row.seed)
        metrics = {"log_loss": value} if status == "complete" else {}
        trials.append(replace(row, status=status, metrics=metrics, error=None))
    return replace(final, trials=trials)


class World:
    """What is on record of one study, and somebody who executes orders."""

    def __init__(self, study, *, failing=0.15):
        self.study, self.failing = study, failing
        self.decisions, self.finals, self.selections = {}, {}, []
        self.log, self.drafts, self.revisions = [], {}, {}

    def protocol(self):
        return StudyProtocol(self.study, propose, self.revisions)

    def take(self, protocol):
        """Execute the most urgent order."""
        step = self.step(protocol)
        order = step.orders[0]
        if order.lanes:
            self.drafts[order.order_id] = step.agenda.draft(order.order_id)
        self.finish(order)

    def step(self, protocol):
        while True:
            step = protocol.next_step(State(dict(self.decisions), dict(self.finals), list(self.selections)))
            for decision in step.decisions:
                assert decision.name not in self.decisions
                self.decisions[decision.name] = decision.value
                self.log.append(decision.name)
            if step.selection is not None:
                self.selections.append(step.selection)
                self.log.append("selection")
            if not step.decisions and step.selection is None:
                return step

    def finish(self, order):
        assert order.order_id not in self.finals
        self.finals[order.order_id] = result(order, failing=self.failing)
        self.log.append(order)

    def play(self, *, workers=1, dice=None, kills=0.0):
        """Execute until the study is finished: some orders in flight, ending in any order, some killed."""
        dice = dice or random.Random(0)
        protocol, flying = self.protocol(), {}
        for _ in range(10_000):
            step = self.step(protocol)
            if step.is_finished:
                assert not flying
                return self
            waiting = list(step.agenda.ready(flying))
            assert {order.order_id for order in waiting}.isdisjoint(flying)
            lanes = [order for order in waiting if order.lanes]
            self.drafts |= {order.order_id: step.agenda.draft(order.order_id) for order in lanes}
            while waiting and len(flying) < workers:
                order = waiting.pop(dice.randrange(len(waiting)))
                flying[order.order_id] = order
            assert flying, "nothing is running and nothing is ready"
            if dice.random() < kills:
                protocol, flying = self.protocol(), {}
                continue
            self.finish(flying.pop(dice.choice(sorted(flying))))
        raise AssertionError("the protocol does not come to an end")

    @property
    def selection(self):
        (only,) = self.selections
        return only

    @property
    def rows(self):
        return [row for final in self.finals.values() for row in final.trials]

    @property
    def told(self):
        """Return what every run gave."""
        return {row.trial_id: (row.parameters, row.metrics, row.status) for row in self.rows}


@pytest.fixture(scope="session")
def made_up():
    """Return who plays a study on made-up results: ``World``, ``propose``, ``result``."""
    return SimpleNamespace(World=World, propose=propose, result=result)


@pytest.fixture(scope="session")
def study(tiny):
    """Return a study of three arms with three generations each."""
    changes = {
        "search": {"trials": 7, "startup": 3, "generation": 2, "top": 3},
        "confirm": {"pairs": 5},
        "resources": {"lanes": 4},
    }
    return assemble(StudyFile.model_validate(merged(tomllib.loads(tiny), changes)), "s.toml")


@pytest.fixture(scope="session")
def played(study):
    """Return the study played to its end by one worker."""
    return World(study).play()
