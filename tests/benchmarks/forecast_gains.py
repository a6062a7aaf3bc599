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
import math
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

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
Array = npt.NDArray[np.float64]
QUICKSTART = ROOT / "search_spaces" / "quickstart.toml"
FORECAST = ("beyond label R2", "label supply")
AGAINST = ("student_only", "self_distillation")


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
    """What was forecast for a context with a share of labels and one seed, and what was gained there."""

    context: Context
    labels: float
    seed: int
    beyond_label: float
    label_supply: float
    over_student: float
    over_itself: float
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
    """Return the forecast of a context and what a study of it, in process and without Ray, gained."""
    import torch

    from mmdistill.cluster.inline import run_inline
    from mmdistill.cluster.proposals import propose
    from mmdistill.pipeline.cache import StageCache
    from mmdistill.pipeline.fold import opened
    from mmdistill.pipeline.forecast import forecast
    from mmdistill.records.study import StudyFolder
    from mmdistill.reports.ablation import summarise
    from mmdistill.studies.provenance import study_row
    from mmdistill.studies.session import Session
    from mmdistill.studies.study import open_study

    torch.set_num_threads(1)
    began = time.process_time()
    study = open_study(QUICKSTART, study_edits(context, labels, seed))
    (run,) = (arm.run for arm in study.arms if arm.name == "hinton")
    found = forecast(run, opened(run.data, 0, with_test=False, device="cpu"), seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "study"
        row = study_row(study, [])
        folder = StudyFolder.create(root, row, QUICKSTART.read_text("utf-8"), study.resolved())
        run_inline(Session(study, folder, propose), StageCache(Path(name) / "cache"))
        gains = {claim.against: claim.seeds.mean for claim in summarise(root).contrasts}
    cpu_s = time.process_time() - began
    over_student, over_itself = (gains[arm] for arm in AGAINST)
    said = found.beyond_label, found.label_supply
    return Outcome(context, labels, seed, *said, over_student, over_itself, cpu_s)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes of one share of labels and their rank correlations as Markdown."""
    columns = [*FORECAST, *(f"over {arm}" for arm in AGAINST)]
    lines = [f"| context | {' | '.join(columns)} | CPU-s |", "|---|--:|--:|--:|--:|--:|"]
    found = {one.context: np.array([o[3:] for o in outcomes if o.context == one.context]) for one in outcomes}
    means = {context: values.mean(axis=0) for context, values in found.items()}
    for context in sorted(means, key=lambda context: -means[context][0]):
        values, mean = found[context], means[context]
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(mean[:4], error[:4], strict=True)]
        lines.append(f"| {context} | {' | '.join(cells)} | {mean[4]:.0f} |")
    if len(means) < 3:
        return "\n".join([*lines, "", "Too few contexts for a rank correlation."])
    of_contexts = dict(zip(columns, np.array(list(means.values()))[:, :4].T, strict=True))
    for forecast, gain in product(FORECAST, columns[2:]):
        if np.ptp(of_contexts[forecast]) > 0:
            rho, p = rank_correlation(of_contexts[forecast], of_contexts[gain])
            lines += ["", f"{forecast} and gain {gain}: {rho:+.2f} (n = {len(means)}, p = {p:.3f})"]
    return "\n".join(lines)


def rank_correlation(forecasts: Array, gains: Array) -> tuple[float, float]:
    """Return Spearman's rho of C contexts, and its two-sided p by permutation."""

    def rho(shuffled: Array) -> float:
        return float(stats.spearmanr(shuffled, gains).statistic)

    test = stats.permutation_test((forecasts,), rho, permutation_type="pairings", rng=0)
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
            outcomes = []
            for one in pool.imap(
                _outcome, [(context, labels, seed) for context in present for seed in seeds]
            ):
                outcomes.append(one)
                print(f"{one.context}, {labels:.0%} of the labels, seed {one.seed}: done", file=sys.stderr)
            print(f"## {labels:.0%} of the labels, {options.seeds} seeds\n\n{table(outcomes)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
