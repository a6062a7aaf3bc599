"""`mmdistill run`: from a study file to a table; run again, only what is missing is computed."""

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmdistill.cli.folders import cache_folder, made_folder, study_folder
from mmdistill.cli.printing import command_line, print_json, say
from mmdistill.cli.progress import progress_of
from mmdistill.cli.reading import readable
from mmdistill.cli.report import write_readables
from mmdistill.cluster.joining import LOCAL, checked_address
from mmdistill.cluster.progress import Listener
from mmdistill.cluster.proposals import propose
from mmdistill.errors import StudyError
from mmdistill.pipeline.prices import Bill, bill, device_kind, recorded_prices
from mmdistill.records.lease import Lease
from mmdistill.records.study import StudyFolder
from mmdistill.records.tables import compact, latest
from mmdistill.reports.answers import answers_of
from mmdistill.reports.query import query
from mmdistill.reports.render_curves import with_curves
from mmdistill.studies.lanes import lanes_on_record, with_lanes
from mmdistill.studies.provenance import study_row
from mmdistill.studies.session import Session, why_failed
from mmdistill.studies.study import Study, open_study

DONE, SOME_FAILED, INTERRUPTED = 0, 3, 130
MOST_REASONS = 5
_BEFORE_SELECTION = {"search", "validate"}
_PRICE = """
    SELECT median(cpu_s) AS median_cpu_s, max(cpu_s) AS most_cpu_s, arg_max(arm, cpu_s) AS dearest_arm
    FROM trials WHERE phase <> 'test' AND status = 'complete'
"""

Executor = Callable[[Session, Path, Listener], None]


def on_ray(session: Session, cache: Path, listen: Listener, address: str = LOCAL) -> None:
    """Execute what is left of a study on Ray: ``local``, or a running cluster by ``HOST:PORT``.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after everything has ended cleanly.
    """
    # Not before there is work: importing and starting Ray takes seconds.
    from mmdistill.cluster.launch import Interrupted, launch

    try:
        launch(session, cache, listen, address)
    except Interrupted as error:
        raise KeyboardInterrupt from error


def run_study(
    file: Path,
    edits: Sequence[str] = (),
    *,
    output: Path | None = None,
    cache: Path | None = None,
    takeover: bool = False,
    retry_failed: bool = False,
    address: str = LOCAL,
    as_json: bool = False,
    executor: Executor | None = None,
) -> int:
    """Run what is left of a study, print its table and return the exit code.

    Args:
        file: the study file.
        edits: ``key=value``, laid on top of the file.
        output: folder of the study; ``results/<name>`` by default.
        cache: folder of the stage cache; ``cache/`` in the study's folder by default.
        takeover: take the study from a driver that may still run; it ends before its next commit.
        retry_failed: try orders again that were given up.
        address: the Ray to run on: ``local``, ``auto`` (inside a Ray job) or ``HOST:PORT``.
        as_json: print the table and the paths as JSON.
        executor: executes the orders; on Ray by default.

    Raises:
        InputError: with every problem of the file; nothing was written then.
        LockedError: if another driver runs the study.
    """
    address = checked_address(address)
    study = open_study(readable(file), edits)
    root = made_folder(study_folder(output, study.file.name), "--output")
    cache = cache_folder(cache, root) if cache is None else made_folder(cache_folder(cache, root), "--cache")
    with Lease(root, takeover=takeover) as lease:
        study = _with_lanes(study, lanes_on_record(root), address)
        folder = _folder(study, root, file, lease)
        if retry_failed:
            _withdraw_failed(folder)
        session = Session(study, folder, propose)
        session.show_missing()
        before, prices = (
            folder.final_ids(),
            recorded_prices(root.parent, device_kind(study.file.resources.device)),
        )
        try:
            _execute(session, cache, executor or _on_ray_at(address))
        except KeyboardInterrupt:
            say(f"Stopped; {len(folder.final_ids())} orders are on record. The same command resumes:")
            say(f"  {shlex.join(command_line())}")
            return INTERRUPTED
        compact(folder)
    folder = StudyFolder.open(root)
    if folder.final_ids() != before:
        say(_bill_text(bill(folder, before, prices)))
    failed = _failed_orders(folder)
    _print(root, failed, as_json=as_json)
    return SOME_FAILED if failed else DONE


def _with_lanes(study: Study, on_record: int | None, address: str) -> Study:
    settled = with_lanes(study, on_record)
    if on_record is None and settled is not study:
        # The data and a core are here; that a cluster has the same cores is for its user to know.
        where = "this machine" if address == LOCAL else f"this machine and not on the nodes of {address}"
        say(f'resources.lanes = "auto": up to {settled.lanes} runs train together, measured on {where}')
    return settled


def _on_ray_at(address: str) -> Executor:
    return on_ray if address == LOCAL else functools.partial(on_ray, address=address)


def _folder(study: Study, root: Path, file: Path, lease: Lease) -> StudyFolder:
    text = file.read_text("utf-8-sig")
    row = study_row(study, command_line())
    return StudyFolder.create(root, row, text, study.resolved(), lease.check)


def _withdraw_failed(folder: StudyFolder) -> None:
    """Take back what was given up; what a frozen selection was made from stays."""
    # Of an extension that is still searched, the arms before it have their winners already.
    tuned = {winner["arm"] for winner in (folder.selection() or {"winners": ()})["winners"]}
    failed = [final for final in folder.finals() if final.is_given_up]
    again = [
        final
        for final in failed
        if final.kind not in _BEFORE_SELECTION or tuned.isdisjoint(row.arm for row in final.trials)
    ]
    for final in again:
        folder.withdraw(final.order_id)
    say(f"{len(again)} of {len(failed)} failed orders are tried again")
    if len(again) < len(failed):
        say("The others are of the search, and the winners were selected without them.")


def _execute(session: Session, cache: Path, executor: Executor) -> None:
    if session.is_finished:
        say(f"Nothing left to do: {len(session.folder.final_ids())} orders are on record")
        return
    with progress_of(session) as listen:
        executor(session, cache, listen)
    if not session.is_finished:
        raise StudyError(f"{session.folder.root}: the study did not finish; run it again to go on")


def _failed_orders(folder: StudyFolder) -> dict[str, str]:
    """Return why orders were given up: those on record without a stage or a run that got anywhere."""
    # By what is on record: an attempt whose process died has no outcome, nor has one that was killed as
    # soon as its result was there.
    given_up = [final.order_id for final in folder.finals() if final.is_given_up]
    return {order_id: why_failed(folder, order_id) for order_id in given_up}


def _say_failures(failed: Mapping[str, str]) -> None:
    say(f"{len(failed)} order{'s' * (len(failed) > 1)} failed for good:")
    for reason, count in Counter(failed.values()).most_common(MOST_REASONS):
        say(f"  {count} x {reason}")
    say("They stay on record; mend the cause and run again with --retry-failed.")


def _bill_text(found: Bill) -> str:
    used = f"used {found.used:.0f} CPU-s, {found.trained / max(found.used, 1e-9):.0%} of it to train"
    if not found.predicted:
        return f"Nothing like it was timed before; {used}"
    return f"Predicted {found.predicted:.0f} CPU-s ({found.recorded:.0%} of it from recorded timings), {used}"


class _Price(NamedTuple):
    """CPU seconds of one student training, without shared stages."""

    median_cpu_s: float
    most_cpu_s: float
    dearest_arm: str


def _price(root: Path) -> _Price | None:
    (row,) = query(root, _PRICE).to_pylist()
    return None if row["median_cpu_s"] is None else _Price(**row)


def _print(root: Path, failed: Mapping[str, str], *, as_json: bool) -> None:
    answers, price = answers_of(latest(StudyFolder.open(root))), _price(root)
    written = write_readables(root, answers)
    if failed:
        _say_failures(failed)
    if as_json:
        paths = {"study": root, "tables": root / "compact", "tensorboard": root / "tensorboard", **written}
        print_json({"table": answers.ablation, "price": price, "failed_orders": dict(failed), "paths": paths})
        return
    print(with_curves(answers.ablation, answers.curves))
    if price is not None:
        median, most, arm = price
        print(f"One training costs a median of {median:.2f} and at most {most:.2f} CPU-s ({arm}).\n")
    _print_paths([*((name, str(path)) for name, path in written.items()), *_paths(root)])


def _paths(root: Path) -> list[tuple[str, str]]:
    place = shlex.quote(str(root))
    return [
        ("tables", f"{root / 'compact'} (Parquet)"),
        ("ask", f'mmdistill query {place} "SELECT arm, count(*) FROM trials GROUP BY arm"'),
        ("curves", f"mmdistill tensorboard {place}"),
    ]


def _print_paths(lines: Iterable[tuple[str, str]]) -> None:
    for name, text in lines:
        print(f"{name:<8}{text}")
