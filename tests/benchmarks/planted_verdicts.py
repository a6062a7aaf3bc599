"""Simulation of verdicts on data whose truth is known: ``make planted``.

Each study is one of ``search_spaces/planted_*.toml`` from file to verdict, in process and without Ray. The
seeds of the data and of the study both change from study to study, so that luck of any kind is averaged over.

==========  ==================  ==============================================  ==========================
kind        study file          truth of its planned contrasts                  counted
==========  ==================  ==============================================  ==========================
helps       planted_helpful     the privileged modality shows the class, and    right: `helps`
                                labels are scarce
harms       planted_harmful     the teacher is sure of itself and wrong on      right: `harms`
                                the rows it labels
equivalent  planted_equivalent  networks of 64 against 65 hidden units, and     right: `equivalent`
                                the margin is .04
null        planted_equivalent  the same studies read again with the margin     false positive: `helps` or
                                .005, far below what they can resolve           `harms`
==========  ==================  ==============================================  ==========================

Every planned contrast counts once. Prints a Markdown table; exits with 1 unless at least 95 % of the
contrasts of helps, harms and equivalent are right and at most 5 % of those of null are false positives. The
intervals are those of Clopper and Pearson; they take contrasts as independent, which two of a study are not.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from in_process import run_in_process

SEARCH_SPACES = Path(__file__).parents[2] / "search_spaces"
RIGHT_AT_LEAST, FALSE_AT_MOST = 0.95, 0.05


class Kind(NamedTuple):
    """A kind of question: its study file, the margin (None: the file's), and what is counted as what."""

    file: str
    margin: float | None
    counted: frozenset[str]
    is_right: bool


KINDS = {
    "helps": Kind("planted_helpful", None, frozenset({"helps"}), True),
    "harms": Kind("planted_harmful", None, frozenset({"harms"}), True),
    "equivalent": Kind("planted_equivalent", None, frozenset({"equivalent"}), True),
    "null": Kind("planted_equivalent", 0.005, frozenset({"helps", "harms"}), False),
}


class Outcome(NamedTuple):
    """What one study said of its planned contrasts, and the CPU seconds it took."""

    kind: str
    seed: int
    verdicts: tuple[str, ...]
    sentences: tuple[str, ...]
    cpu_s: float


def run_study(file: str, seed: int) -> list[Outcome]:
    """Return what a study file says to each kind of question, data and study drawn from ``seed``."""
    from mmdistill.randomness import derive_seed
    from mmdistill.records.tables import latest

    began = time.process_time()
    keys = ("seed", "run.data.options.seed")
    drawn = [f"{key}={derive_seed(seed, 'planted verdicts', file, key) % 2**31}" for key in keys]
    with tempfile.TemporaryDirectory() as root:
        tables = latest(run_in_process(SEARCH_SPACES / f"{file}.toml", drawn, Path(root)))
    kinds = [kind for kind in KINDS if KINDS[kind].file == file]
    cpu_s = (time.process_time() - began) / len(kinds)
    return [_outcome(kind, seed, tables, cpu_s) for kind in kinds]


def _outcome(kind: str, seed: int, tables: Mapping[str, pa.Table], cpu_s: float) -> Outcome:
    from mmdistill.reports.ablation import summarise_tables

    studies, margin = tables["studies"], KINDS[kind].margin
    if margin is not None:
        place = studies.column_names.index("margin")
        studies = studies.set_column(place, "margin", pa.array([margin] * len(studies)))
    found = summarise_tables({**tables, "studies": studies})
    verdicts = tuple(claim.verdict or "none" for claim in found.contrasts)
    return Outcome(kind, seed, verdicts, found.sentences, cpu_s)


def table(outcomes: Sequence[Outcome]) -> tuple[str, bool]:
    """Return the results as a Markdown table, and whether every goal is reached."""
    lines = [
        "| kind | studies | contrasts | share | 95 % interval | goal | verdicts | CPU-s per study |",
        "|---|--:|--:|--:|---|---|---|--:|",
    ]
    reached = True
    for name, kind in KINDS.items():
        found = [outcome for outcome in outcomes if outcome.kind == name]
        if not found:
            continue
        said = Counter(verdict for outcome in found for verdict in outcome.verdicts)
        counted = sum(said[word] for word in kind.counted)
        share = counted / said.total()
        low, high = stats.binomtest(counted, said.total()).proportion_ci()
        reached &= share >= RIGHT_AT_LEAST if kind.is_right else share <= FALSE_AT_MOST
        cells = [
            name,
            len(found),
            said.total(),
            f"{share:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"right >= {RIGHT_AT_LEAST:.0%}" if kind.is_right else f"false positive <= {FALSE_AT_MOST:.0%}",
            ", ".join(f"{number} {word}" for word, number in said.most_common()),
            f"{sum(outcome.cpu_s for outcome in found) / len(found):.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n", reached


def _run(job: tuple[str, int]) -> list[Outcome]:
    return run_study(*job)


def main() -> int:
    """Run the studies and print the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40, help="studies of each file")
    parser.add_argument("--first", type=int, default=0, help="seed of the first study")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    files = list(dict.fromkeys(kind.file for kind in KINDS.values()))
    parser.add_argument("--files", nargs="+", choices=files, default=files)
    options = parser.parse_args()
    jobs = [(file, options.first + n) for n in range(options.seeds) for file in options.files]
    outcomes = []
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for found in pool.imap_unordered(_run, jobs):
            outcomes += found
            lines = [f"{one.kind} {one.seed}: {said}\n" for one in found for said in one.sentences]
            sys.stderr.writelines(lines)
    text, reached = table(outcomes)
    sys.stdout.write(text)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
