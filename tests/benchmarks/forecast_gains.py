"""Does `forecast` tell where soft labels gain something? Over the data sets at hand: ``make forecast``.

For every context below, with all labels and with one in four, and with several seeds: the forecast, in
seconds, and what `hinton` gains in a study that is searched, confirmed on 10 pairs and tested: over
`student_only`, and over `self_distillation`, whose teacher sees what the student sees, so that what is left
is the privileged modalities' part. Prints their means over the seeds per context as a Markdown table, and
their rank correlations (Spearman; p by permutation). Two things are forecast:

beyond label R2  what the student can predict of what the privileged modalities know beyond the label
label supply     the share of rows without a label, times what the joint teacher scores above a plain student

Scores are accuracy, and CCC for the regression; ranks do not mind.

    OMP_NUM_THREADS=1 python tests/benchmarks/forecast_gains.py [--labels SHARE ...] [--seeds N] [--jobs N]

Contexts whose data do not lie in ``../shared/data`` are left out, and named.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
from in_process import run_in_process

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.toml"
SHARED = Path(__file__).parents[3] / "shared" / "data"
AGAINST = ("student_only", "self_distillation")
FORECASTS = ("beyond label R2", "label supply")
GAINS = tuple(f"over {arm}" for arm in AGAINST)

Array = npt.NDArray[np.float64]


class Context(NamedTuple):
    """What the student sees, and what its teacher sees beside that."""

    dataset: str
    student: str
    privileged: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dataset}, {self.student} from {'+'.join(self.privileged)}"


CONTEXTS = (
    Context("digits_views", "rows", ("pixels", "fourier", "gradients")),
    Context("digits_views", "cols", ("pixels", "fourier", "gradients")),
    Context("digits_views", "coarse", ("pixels", "fourier", "gradients")),
    Context("mfeat", "zernike", ("pixels", "fourier")),
    Context("mfeat", "fourier", ("pixels", "karhunen")),
    Context("mfeat", "morphology", ("pixels", "fourier")),
    Context("utd_mhad", "inertial", ("skeleton", "depth")),
    Context("av_digits", "audio", ("image",)),
    Context("av_digits", "image_degraded", ("image",)),
    Context("ceap_behaviour", "head", ("gaze",)),
    Context("ceap_behaviour", "gaze", ("head",)),
)


class Outcome(NamedTuple):
    """What was forecast for a context with one seed, and what was gained there: a value per column."""

    context: Context
    values: dict[str, float]
    cpu_s: float


def dataset_of(context: Context) -> str | None:
    """Return how a study file names the data of a context; None where they are absent."""
    if context.dataset == "digits_views":
        return context.dataset
    folder = SHARED / context.dataset
    return str(folder) if folder.is_dir() else None


def study_edits(context: Context, labels: float, seed: int) -> list[str]:
    """Return the edits that make the default study one of `hinton` and what it is compared with."""
    arms = ", ".join(f'{{name = "{arm}", recipe = "{arm}"}}' for arm in (*AGAINST, "hinton"))
    asked = (f'{{question = "More?", arm = "hinton", against = "{arm}"}}' for arm in AGAINST)
    privileged = ", ".join(f'"{modality}"' for modality in context.privileged)
    data = [
        f"run.data.dataset={dataset_of(context)}",
        f'run.data.student=["{context.student}"]',
        f"run.data.privileged=[{privileged}]",
        f"run.data.label_fraction={labels}",
    ]
    rest = ["designs=[]", "search.space={}", f"seed={seed}"]
    return [*data, f"arms=[{arms}]", f"contrasts=[{', '.join(asked)}]", *rest]


def outcome(context: Context, labels: float, seed: int) -> Outcome:
    """Return the forecast of a context and what a study of it gained."""
    from mmdistill.pipeline.fold import opened
    from mmdistill.pipeline.forecast import forecast
    from mmdistill.records.tables import latest
    from mmdistill.reports.ablation import summarise_tables
    from mmdistill.studies.study import open_study

    began = time.process_time()
    edits = study_edits(context, labels, seed)
    with tempfile.TemporaryDirectory() as root:
        found = summarise_tables(latest(run_in_process(QUICKSTART, edits, Path(root))))
    gains = {f"over {claim.against}": claim.seeds.mean for claim in found.contrasts}
    (run,) = (arm.run for arm in open_study(QUICKSTART, edits).arms if arm.name == "hinton")
    said = forecast(run, opened(run.data, 0, with_test=False, device="cpu"), seed)
    forecasts = dict(zip(FORECASTS, (said.beyond_label, said.label_supply), strict=True))
    return Outcome(context, forecasts | gains, time.process_time() - began)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes of one share of labels and their rank correlations as Markdown."""
    columns = (*FORECASTS, *GAINS)
    lines = [f"| context | {' | '.join(columns)} | CPU-s |", "|---|--:|--:|--:|--:|--:|"]
    means: dict[str, list[float]] = {column: [] for column in columns}
    for context in dict.fromkeys(one.context for one in outcomes):
        studies = [one for one in outcomes if one.context == context]
        cells = []
        for column in columns:
            values = np.array([one.values[column] for one in studies])
            means[column].append(float(values.mean()))
            cells.append(f"{values.mean():+.3f} ± {stats.sem(values):.3f}")
        cells.append(f"{np.mean([one.cpu_s for one in studies]):.0f}")
        lines.append(f"| {context} | {' | '.join(cells)} |")
    count = len(lines) - 2
    if count < 3:
        return "\n".join([*lines, "", "Too few contexts for a rank correlation."])
    for forecast, gain in product(FORECASTS, GAINS):
        # With all labels nothing is supplied.
        if np.ptp(means[forecast]) > 0:
            rho, p = rank_correlation(means[forecast], means[gain])
            lines += ["", f"{forecast} and gain {gain}: {rho:+.2f} (n = {count}, p = {p:.3f})"]
    return "\n".join(lines)


def rank_correlation(forecasts: Sequence[float], gains: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's rho of C contexts, and its two-sided p by permutation."""

    def rho(shuffled: Array) -> float:
        return float(stats.spearmanr(shuffled, gains).statistic)

    test = stats.permutation_test((np.array(forecasts),), rho, permutation_type="pairings", rng=0)
    return float(test.statistic), float(test.pvalue)


def _outcome(job: tuple[Context, float, int]) -> Outcome:
    return outcome(*job)


def main() -> int:
    """Run the contexts and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", nargs="+", type=float, default=[1.0, 0.25], help="shares of labels")
    parser.add_argument("--first", type=int, default=31, help="seed of the first study of a context")
    parser.add_argument("--seeds", type=int, default=3, help="studies of each context")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: at least two, for an error of the mean")
    present = [context for context in CONTEXTS if dataset_of(context)]
    for context in CONTEXTS:
        if context not in present:
            print(f"left out, no data: {context}", file=sys.stderr)
    seeds = range(options.first, options.first + options.seeds)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for labels in options.labels:
            jobs = [(context, labels, seed) for context in present for seed in seeds]
            outcomes = []
            for found in pool.imap(_outcome, jobs):
                outcomes.append(found)
                print(f"{len(outcomes)} of {len(jobs)}: {found.context}", file=sys.stderr)
            print(f"## {labels:.0%} of the labels, {options.seeds} seeds\n\n{table(outcomes)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
