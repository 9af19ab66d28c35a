"""Which runs a rule keeps, and why."""

import math
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.cleanup import CleanupPlan, CleanupRule, CleanupRun, Keep, plan_cleanup

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OLD_90 = CleanupRule.parse(experiment="e", max_age="90d")
TOP_2 = CleanupRule.parse(experiment="e", keep_top=2, by="metrics.ndcg:max")


def run(
    name: str, *, days: float | None = 100, parent: str | None = None, **fields: Any
) -> CleanupRun:
    """A run that ended, or was lost, so many days ago; None is running."""
    values = {
        "lost": False,
        "protected": False,
        "value": None,
        "has_children_elsewhere": False,
        **fields,
    }
    return CleanupRun(
        run_id=uuid.uuid5(uuid.NAMESPACE_OID, name),
        name=name,
        ended_at=None if days is None else NOW - timedelta(days=days),
        parent_run_id=None if parent is None else uuid.uuid5(uuid.NAMESPACE_OID, parent),
        **values,
    )


def gone(plan: CleanupPlan) -> list[str]:
    return [item.name for item in plan.gone]


def reasons(plan: CleanupPlan) -> dict[str, tuple[Keep, ...]]:
    return {kept.run.name: kept.reasons for kept in plan.kept}


def test_runs_go_by_age() -> None:
    plan = plan_cleanup([run("old", days=91), run("young", days=89)], OLD_90, now=NOW)
    assert gone(plan) == ["old"]
    assert reasons(plan) == {"young": (Keep.YOUNG,)}
    assert plan.kept[0].why == "it ended 89 days ago"


def test_the_best_stay() -> None:
    runs = [run(str(value), value=value) for value in (0.1, 0.9, 0.5)]
    runs += [run("without"), run("nan", value=math.nan)]
    plan = plan_cleanup(runs, TOP_2, now=NOW)
    assert sorted(gone(plan)) == ["0.1", "nan", "without"]
    assert reasons(plan) == {"0.9": (Keep.TOP,), "0.5": (Keep.TOP,)}
    assert plan.kept[0].why == "it is number 1 by metrics.ndcg:max"


def test_the_least_may_be_best() -> None:
    rule = CleanupRule.parse(experiment="e", keep_top=1, by="metrics.loss:min")
    plan = plan_cleanup([run("a", value=0.1), run("b", value=0.2)], rule, now=NOW)
    assert gone(plan) == ["b"]


def test_age_and_rank_both_keep() -> None:
    rule = CleanupRule.parse(experiment="e", max_age="90d", keep_top=1, by="metrics.ndcg:max")
    runs = [run("best", value=1.0), run("young", days=1, value=0.0), run("bad", value=0.5)]
    plan = plan_cleanup(runs, rule, now=NOW)
    assert gone(plan) == ["bad"]
    assert reasons(plan) == {"best": (Keep.TOP,), "young": (Keep.YOUNG,)}


def test_running_and_protected_runs_stay() -> None:
    plan = plan_cleanup([run("on", days=None), run("dear", protected=True)], OLD_90, now=NOW)
    assert not plan.gone
    assert reasons(plan) == {"on": (Keep.RUNNING,), "dear": (Keep.PROTECTED,)}


def test_a_lost_run_counts_as_running_for_a_day() -> None:
    rule = CleanupRule.parse(experiment="e", max_age="1h", keep_top=1, by="metrics.ndcg:max")
    runs = [
        run("best", value=1.0),
        run("cut off", days=1 / 1440, lost=True, value=0.5),
        run("ended", days=0.5, value=0.5),
        run("gone", days=2, lost=True),
        run("parent"),
        run("nested", days=0.99, lost=True, parent="parent"),
    ]
    plan = plan_cleanup(runs, rule, now=NOW)
    assert gone(plan) == ["ended", "gone"]
    assert reasons(plan) == {
        "best": (Keep.TOP,),
        "cut off": (Keep.LOST,),
        "parent": (Keep.PARENT,),
        "nested": (Keep.LOST,),
    }
    assert plan.kept[1].why == "it was lost less than a day ago and may come back"


def test_of_equals_the_best_is_one_that_has_ended() -> None:
    rule = CleanupRule.parse(experiment="e", keep_top=1, by="metrics.ndcg:max")
    runs = [run("ended", days=0, value=1.0), run("lost", days=0.5, lost=True, value=1.0)]
    plan = plan_cleanup(runs, rule, now=NOW)
    assert reasons(plan) == {"ended": (Keep.TOP,), "lost": (Keep.LOST,)}


def test_parents_of_what_is_kept_stay_at_any_depth() -> None:
    runs = [run("root"), run("middle", parent="root"), run("leaf", parent="middle", days=1)]
    plan = plan_cleanup([*runs, run("other", parent="root")], OLD_90, now=NOW)
    assert gone(plan) == ["other"]
    assert reasons(plan)["root"] == (Keep.PARENT,)
    assert plan.kept[0].why == "middle is nested in it"


def test_a_parent_of_another_experiments_run_stays() -> None:
    plan = plan_cleanup([run("root", has_children_elsewhere=True)], OLD_90, now=NOW)
    assert reasons(plan) == {"root": (Keep.PARENT,)}


def test_nested_runs_go_before_the_runs_they_are_nested_in() -> None:
    runs = [run("root"), run("leaf", parent="middle"), run("middle", parent="root")]
    assert gone(plan_cleanup(runs, OLD_90, now=NOW)) == ["leaf", "middle", "root"]


def test_runs_that_are_nested_in_each_other_end_no_plan_never() -> None:
    # Parents are said by clients, in any order: nobody can rule a ring out.
    runs = [run("a", parent="b"), run("b", parent="a")]
    assert len(plan_cleanup(runs, OLD_90, now=NOW).gone) == 2
    runs[0] = run("a", parent="b", days=1)
    assert not plan_cleanup(runs, OLD_90, now=NOW).gone


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(0, 20).map(lambda quarters: quarters / 4)),
            st.one_of(st.none(), st.integers(0, 11)),
            st.booleans(),
            st.one_of(st.none(), st.just(math.nan), st.integers(0, 5).map(float)),
            st.booleans(),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_every_run_is_kept_or_goes_and_no_kept_run_loses_a_parent(rows: list[Any]) -> None:
    rule = CleanupRule.parse(experiment="e", max_age="12h", keep_top=2, by="metrics.x:max")
    runs = [
        run(
            str(number),
            lost=lost,
            days=days,
            parent=None if parent is None else str(parent),
            protected=protected,
            value=value,
            has_children_elsewhere=elsewhere,
        )
        for number, (days, parent, protected, value, elsewhere, lost) in enumerate(rows)
    ]
    plan = plan_cleanup(runs, rule, now=NOW)
    kept = {item.run.run_id for item in plan.kept}
    assert sorted([*kept, *(item.run_id for item in plan.gone)]) == sorted(r.run_id for r in runs)
    for item in plan.gone:
        assert item.ended_at is not None
        assert not item.lost or item.ended_at <= NOW - timedelta(days=1)
        assert not item.protected
    parents = {item.run.parent_run_id for item in plan.kept}
    assert not parents & {item.run_id for item in plan.gone}
    values = {r.run_id: r.value for r in runs if r.value is not None and not math.isnan(r.value)}
    gone_values = [values[item.run_id] for item in plan.gone if item.run_id in values]
    assert all(value <= sorted(values.values())[-2] for value in gone_values)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "needs max_age or keep_top"),
        ({"max_age": "90"}, "'90' is no duration"),
        ({"max_age": "-1d"}, "'-1d' is no duration"),
        ({"keep_top": 3}, "go together"),
        ({"max_age": "1d", "by": "metrics.a:max"}, "go together"),
        ({"keep_top": 3, "by": "ndcg:max"}, "'ndcg:max' is no ranking"),
        ({"keep_top": 3, "by": "metrics.ndcg"}, "'metrics.ndcg' is no ranking"),
        ({"keep_top": 3, "by": "metrics.:max"}, "no ranking"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(texts: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CleanupRule.parse(experiment="e", **texts)
