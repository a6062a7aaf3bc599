"""What each teacher contributes, against slow definitions and planted truth."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from mmdistill.cli.printing import plain
from mmdistill.reports.ablation import summarise_tables
from mmdistill.reports.arms import Declared
from mmdistill.reports.contributions import contributions, interaction_weights, shapley_weights
from mmdistill.reports.evidence import Arm, Scheme, contrasted
from mmdistill.reports.lattices import games_of
from mmdistill.reports.readings import readings_of
from mmdistill.reports.render import markdown
from mmdistill.reports.render_contributions import harm_table
from mmdistill.statistics import t_interval

PARTS = ("audio", "decoy", "static")


def subsets(parts):
    return [frozenset(s) for n in range(len(parts) + 1) for s in itertools.combinations(parts, n)]


def name_of(parts):
    return f"hinton@{'+'.join(p for p in PARTS if p in parts)}" if parts else "student_only"


def declared(parts, *, name=None, **other):
    """Return an arm as the study declares it, by the modalities its teachers see."""
    kept = [part for part in PARTS if part in parts]
    arm = {"name": name or name_of(parts), "recipe": "hinton", "baseline": "student_only"}
    taught = {
        "privileged": kept,
        "teachers": ["joint"],
        "alike": {"privileged": "0", "teachers": "".join(kept)},
    }
    return arm | (taught if parts else {}) | other


def sum_of(weights, value):
    return sum(weight * value[parts] for parts, weight in weights.items())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_shapley_value_is_the_mean_gain_over_all_orders(n):
    parts = "abcde"[:n]
    value = dict(zip(subsets(parts), np.random.default_rng(n).normal(size=2**n), strict=True))
    for part in parts:
        gains = [
            value[frozenset(order[: order.index(part) + 1])] - value[frozenset(order[: order.index(part)])]
            for order in itertools.permutations(parts)
        ]
        assert sum_of(shapley_weights(parts, part), value) == pytest.approx(np.mean(gains))
    total = sum(sum_of(shapley_weights(parts, part), value) for part in parts)
    assert total == pytest.approx(value[frozenset(parts)] - value[frozenset()])


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_interaction_is_the_mean_second_difference_over_orders_with_both_as_one(n):
    parts = "abcd"[:n]
    value = dict(zip(subsets(parts), np.random.default_rng(n).normal(size=2**n), strict=True))
    for first, second in itertools.combinations(parts, 2):
        found = []
        for order in itertools.permutations([first + second, *(set(parts) - {first, second})]):
            rest = frozenset("".join(order[: order.index(first + second)]))
            found.append(
                value[rest | {first, second}] - value[rest | {first}] - value[rest | {second}] + value[rest]
            )
        assert sum_of(interaction_weights(parts, first, second), value) == pytest.approx(np.mean(found))


def test_a_part_that_never_changes_anything_has_no_value_and_no_interaction():
    value = {parts: float(len(parts - {"c"}) ** 2) for parts in subsets("abc")}
    assert sum_of(shapley_weights("abc", "c"), value) == pytest.approx(0)
    assert sum_of(interaction_weights("abc", "a", "c"), value) == pytest.approx(0)
    assert sum_of(interaction_weights("abc", "a", "b"), value) == pytest.approx(2)


@pytest.fixture
def planted(new_study):
    """Every subset of a teacher that helps, one that harms and one that does nothing, on eight pairs."""
    made = new_study([declared(parts) for parts in subsets(PARTS)], reference=None, margin=0.02)
    for parts in subsets(PARTS):
        for seed in range(8):
            rng = np.random.default_rng(seed)
            share = 0.70 + 0.10 * ("audio" in parts) - 0.15 * ("decoy" in parts)
            # One draw per row for all arms: static changes not one row.
            made.add_test(name_of(parts), seed, rng.random(120) < share + rng.normal(0, 0.005))
    return made


def scores(made, parts):
    runs = [run for run in made.trials if run.arm == name_of(parts) and run.phase == "test"]
    return np.array([run.metrics["accuracy"] for run in runs])


def test_contributions_are_those_of_the_scores_of_each_pair(planted):
    (lattice,) = summarise_tables(planted.tables()).lattices
    value = {parts: scores(planted, parts) for parts in subsets(PARTS)}
    everything = frozenset(PARTS)
    for part in lattice.parts:
        alone, rest = frozenset({part.name}), everything - {part.name}
        expected = [
            (part.add_one, value[alone] - value[frozenset()]),
            (part.leave_one_out, value[everything] - value[rest]),
            (part.shapley, sum_of(shapley_weights(PARTS, part.name), value)),
        ]
        for effect, per_pair in expected:
            assert effect.claim.seeds == pytest.approx(t_interval(per_pair))
            assert effect.claim.crossed.mean == pytest.approx(per_pair.mean())
            assert effect.claim.crossed.low <= per_pair.mean() <= effect.claim.crossed.high
    total = sum(part.shapley.claim.seeds.mean for part in lattice.parts)
    assert total == pytest.approx(lattice.whole.claim.seeds.mean)
    for found in lattice.interactions:
        per_pair = sum_of(interaction_weights(PARTS, *found.parts), value)
        assert found.effect.claim.seeds.mean == pytest.approx(per_pair.mean(), abs=1e-12)
        assert found.averaged == "all"
    assert [cell.arm for cell in lattice.cells] == [name_of(parts) for parts in subsets(PARTS)]


def test_helpful_harmful_and_useless_teachers_are_named_as_such(planted):
    ablation = summarise_tables(planted.tables())
    (lattice,) = ablation.lattices
    verdicts = {
        part.name: {part.add_one.claim.verdict, part.leave_one_out.claim.verdict, part.shapley.claim.verdict}
        for part in lattice.parts
    }
    assert verdicts == {"audio": {"helps"}, "decoy": {"harms"}, "static": {"equivalent"}}
    begun = [text.split(":")[0] for text in lattice.sentences]
    assert begun == [
        "audio helps alone and in company",
        "decoy harms alone and in company",
        "static is useless alone and in company (margin 0.02)",
    ]
    text = " ".join(markdown(ablation).split())
    for sentence in lattice.sentences:
        assert f"- {sentence}" in text
    loaded = plain(ablation)["lattices"][0]
    assert loaded["parts"][1]["add_one"]["claim"]["verdict"] == "harms"


def test_the_sections_show_what_was_computed(planted, rows_of):
    ablation = summarise_tables(planted.tables())
    (lattice,) = ablation.lattices
    shown = rows_of(markdown(ablation), "modality")
    assert [next(iter(row.values())) for row in shown] == [*PARTS, "all together"]
    alone = lattice.parts[1].add_one.claim.seeds
    assert shown[1]["alone, minus student_only"].startswith(f"{alone.mean:+.3f} [{alone.low:.3f}, ")
    assert "Harm sets are empty: no row turns in at least 80 % of the pairs." in markdown(ablation)
    header, lines, _ = harm_table(ablation.harm)
    harm = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert harm["hinton@static"]["rows to wrong"] == harm["hinton@static"]["by chance"].split(".")[0] == "0"
    assert max(map(len, markdown(ablation).splitlines())) <= 200


def test_a_study_without_a_lattice_has_no_such_section(made):
    ablation = summarise_tables(made.tables())
    assert ablation.lattices == ()
    assert "harm set" not in markdown(ablation).lower()


def without(made, *gone):
    """Return the study as if some subsets had never been asked for."""
    names = {name_of(frozenset(parts)) for parts in gone}
    arms = [arm for arm in json.loads(made.study.arms_json) if arm["name"] not in names]
    made.study = dataclasses.replace(made.study, arms_json=json.dumps(arms))
    for rows in (made.trials, made.predictions, made.openings):
        rows[:] = [row for row in rows if row.arm not in names]
    return contributions(readings_of(made.tables()))


def test_what_a_study_did_not_run_is_said_and_not_invented(planted):
    (lattice,) = without(planted, {"audio"}, {"audio", "decoy"})
    audio, decoy, _static = lattice.parts
    assert audio.add_one == (None, "no arm with audio")
    assert audio.leave_one_out.claim.arm == "hinton@audio+decoy+static"
    assert decoy.shapley == (None, "no arm with audio, audio+decoy")
    averaged = {found.parts: found.averaged for found in lattice.interactions}
    assert averaged["decoy", "static"] == "alone"
    assert averaged["audio", "decoy"] == "in company"
    assert lattice.interactions[1].effect == (None, "no arm with audio, audio+decoy")
    assert [cell.parts for cell in lattice.cells if cell.arm is None] == [("audio",), ("audio", "decoy")]


def test_leaving_out_alone_makes_a_lattice_too(planted):
    (lattice,) = without(planted, *({part} for part in PARTS))
    assert all(part.add_one.claim is None and part.leave_one_out.claim for part in lattice.parts)
    assert {found.averaged for found in lattice.interactions} == {"all"}
    assert lattice.parts[0].shapley.reason == "no arm with audio, decoy, static"
    assert "no arm with audio, decoy, static" in markdown(summarise_tables(planted.tables()))


def test_arms_without_a_finished_pair_have_a_reason(new_study):
    made = new_study([declared(parts) for parts in subsets(PARTS)], reference=None)
    made.fill({"student_only": 0.5})
    (lattice,) = contributions(readings_of(made.tables()))
    assert lattice.parts[0].shapley == (None, "no pair yet that all its arms finished")
    assert lattice.sentences == ()


def test_before_the_test_nothing_is_judged(planted):
    for rows in (planted.predictions, planted.openings):
        rows.clear()
    planted.trials = [run for run in planted.trials if run.phase != "test"]
    (lattice,) = summarise_tables(planted.tables()).lattices
    assert lattice.parts[0].shapley.claim.verdict is None
    assert lattice.sentences == ()


def test_a_planned_contrast_stays_what_it_was_planned_as_either_way_round(planted):
    everything = name_of(PARTS)
    contrasts = [
        {"question": "Audio?", "arm": everything, "against": name_of({"decoy", "static"})},
        {"question": "Decoy?", "arm": name_of({"audio", "static"}), "against": everything},
    ]
    planted.study = dataclasses.replace(planted.study, contrasts_json=json.dumps(contrasts))
    ablation = summarise_tables(planted.tables())
    audio, decoy, _static = ablation.lattices[0].parts
    assert audio.leave_one_out.claim == ablation.contrasts[0]
    turned, claim = ablation.contrasts[1], decoy.leave_one_out.claim
    assert (turned.verdict, claim.verdict) == ("helps", "harms")
    assert (claim.seeds.low, claim.seeds.high) == (-turned.seeds.high, -turned.seeds.low)
    assert claim.adjusted_p == turned.adjusted_p
    assert claim.seeds == readings_of(planted.tables()).compare(claim.arm, claim.against).seeds


def test_what_was_planned_after_an_opening_is_marked_wherever_it_stands(planted, rows_of):
    everything = name_of(PARTS)
    late = {"question": "Audio?", "arm": everything, "against": name_of({"decoy", "static"}), "revision": 2}
    arms = [
        arm | {"prices": {"audio": 2.0}} | ({"revision": 2} if arm["name"] == everything else {})
        for arm in json.loads(planted.study.arms_json)
    ]
    planted.study = dataclasses.replace(
        planted.study, contrasts_json=json.dumps([late]), arms_json=json.dumps(arms), revision=2
    )
    planted.openings = [
        dataclasses.replace(row, opening=1 + (row.arm == everything)) for row in planted.openings
    ]
    # Without the parts alone there is no Shapley value, and a price counts the planned contrast.
    without(planted, *({part} for part in PARTS))
    text = markdown(summarise_tables(planted.tables()))
    assert rows_of(text, "modality")[0]["verdict"] == "helps ^1"
    assert rows_of(text, "price list")[0]["verdict on the gain"] == "helps ^1"


def test_add_one_is_the_very_claim_of_the_table(planted):
    ablation = summarise_tables(planted.tables())
    against = {arm.name: arm.against_baseline for arm in ablation.arms}
    for part in ablation.lattices[0].parts:
        assert part.add_one.claim == against[name_of({part.name})]


def arms_of(*entries):
    return [
        Declared(name, baseline="student_only", alike={"privileged": "p", "teachers": "t"}, **other)
        for name, other in entries
    ]


def test_controls_make_no_lattice():
    teachers = [("hinton", {"teachers": ["joint"]}), ("hinton.same_modality", {"teachers": ["student"]})]
    assert games_of(arms_of(*teachers)) == []
    assert games_of([Declared("a", privileged=("x",)), Declared("b", privileged=("x", "y"))]) == []


def test_what_all_networks_stand_beside_is_no_part_where_it_teaches_alone():
    pools = [("joint", "a"), ("joint",), ("joint", "b"), ("joint", "a", "b")]
    entries = [("+".join(pool), {"teachers": pool}) for pool in pools]
    (game,) = games_of(arms_of(*entries))
    assert (game.parts, game.beside, game.full) == (("a", "b"), ("joint",), "joint+a+b")
    assert game.arms[frozenset()] == "joint"
    (wider,) = games_of(arms_of(*entries[:1], *entries[2:]))
    assert (wider.parts, wider.beside) == (("joint", "a", "b"), ())
    assert wider.arms[frozenset()] == "student_only"


def test_frozen_readings_are_a_lattice_of_their_own_below_the_arm_they_take_their_settings_from():
    frozen = [(f"full@{part}.frozen", {"privileged": (part,), "frozen": "full"}) for part in "ab"]
    tuned = [("full", {"privileged": ("a", "b")}), ("full@a", {"privileged": ("a",)})]
    first, second = games_of(arms_of(*tuned, *frozen))
    assert (first.frozen, set(first.arms.values())) == (None, {"full", "full@a", "student_only"})
    assert (second.frozen, second.full) == ("full", "full")
    assert second.arms[frozenset("b")] == "full@b.frozen"


def test_intervals_of_shapley_values_cover_as_often_as_they_say():
    generator, seeds = np.random.default_rng(3), 6
    cells = subsets("ab")
    truth = dict(zip(cells, (0.5, 0.6, 0.55, 0.7), strict=True))
    weights = shapley_weights("ab", "a")
    target, covered, rounds = sum_of(weights, truth), 0, 600
    for _ in range(rounds):
        noise = {parts: generator.normal(0, 0.02, seeds) for parts in cells}
        shared = generator.normal(0, 0.1, seeds)
        arms = [
            Arm(
                {
                    f"s{s}": {"metrics": {"accuracy": truth[c] + shared[s] + noise[c][s]}}
                    for s in range(seeds)
                },
                None,
            )
            for c in cells
        ]
        row = [[weights[parts] for parts in cells]]
        scheme = Scheme("seeds", 0.0, "rows")
        (found,) = contrasted(arms, row, score="accuracy", scheme=scheme, seed=0)
        covered += found.seeds.low <= target <= found.seeds.high
        assert math.isnan(found.crossed.low)
    # Three standard errors of a share of .95 in 600 rounds.
    assert abs(covered / rounds - 0.95) < 0.027


@pytest.mark.parametrize(
    ("prices", "order", "measure", "unpriced"),
    [
        ({"decoy": 1.0, "audio": 400.0, "static": 3.0}, ["audio", "static", "decoy"], "shapley", ()),
        ({"audio": 400.0}, ["audio"], "shapley", ("decoy", "static")),
    ],
)
def test_the_price_list_divides_gain_by_cost_best_first(planted, prices, order, measure, unpriced):
    arms = [arm | {"prices": prices, "price_unit": "EUR"} for arm in json.loads(planted.study.arms_json)]
    planted.study = dataclasses.replace(planted.study, arms_json=json.dumps(arms))
    ablation = summarise_tables(planted.tables())
    found = ablation.lattices[0].prices
    assert (found.unit, found.measure, found.unpriced) == ("EUR", measure, unpriced)
    assert [price.part for price in found.prices] == order
    part = next(part for part in ablation.lattices[0].parts if part.name == "audio")
    audio = next(price for price in found.prices if price.part == "audio")
    assert audio.seeds.low == pytest.approx(part.shapley.claim.seeds.low / 400)
    assert audio.crossed.high == pytest.approx(part.shapley.claim.crossed.high / 400)
    assert f"{audio.seeds.mean:+.2g} [" in markdown(ablation)
    assert "gain per EUR (Shapley value)" in markdown(ablation)


def test_without_every_subset_prices_count_what_is_known_of_all(planted):
    arms = [arm | {"prices": {"audio": 2.0, "decoy": 1.0}} for arm in json.loads(planted.study.arms_json)]
    planted.study = dataclasses.replace(planted.study, arms_json=json.dumps(arms))
    (lattice,) = without(planted, {"audio"})
    assert lattice.prices.measure == "leave_one_out"
    (lattice,) = without(planted, {"decoy", "static"})
    assert (lattice.prices.measure, lattice.prices.prices) == (None, ())
