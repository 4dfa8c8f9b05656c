"""A plan as tables for the terminal."""

from __future__ import annotations

from mil.plan import Need, Plan
from mil.plan_trial import Precision

__all__ = ["Table", "tables"]

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(plan: Plan) -> list[Table]:
    """The plan as tables for :func:`mil.terminal.print_table`: title, columns, rows."""
    now, naive = plan.now, plan.naive
    tested = f"{plan.test_slides} test slides of {plan.test_patients} patients"
    rows: list[tuple[str, ...]] = [
        ("width of the 95 % interval", _points(now.width), _points(naive.width)),
        ("  in 90 % of cohorts", _span(now), _span(naive)),
        ("interval holds the truth", _percent(now.coverage), _percent(naive.coverage)),
        (
            "smallest difference seen (power 0.8)",
            _points(now.smallest_difference),
            _points(naive.smallest_difference),
        ),
        ("differences seen where none is", _percent(now.false_alarm), _percent(naive.false_alarm)),
        ("slides that count", f"{plan.effective_slides:.0f}", str(plan.test_slides)),
        ("design effect", f"{plan.design_effect:.2f}", "1.00"),
        (
            f"width, sensitivity of class {plan.smallest_class} ({plan.smallest_class_slides})",
            _points(plan.smallest_class_width),
            "",
        ),
    ]
    if plan.fold_sd is not None:
        rows.append((f"SD between {plan.folds} folds by chance", _points(plan.fold_sd), ""))
    found: list[Table] = [
        (
            f"Accuracy {plan.accuracy:.3g}, {tested}",
            ("", "patients drawn", "slides taken for independent"),
            rows,
        ),
        (
            "Power of the paired test",
            ("difference", "power"),
            [(_points(d), f"{power:.2f}") for d, power in now.power],
        ),
        (
            "What helps",
            ("", "slides", "patients", "width", "smallest difference"),
            [
                (
                    what,
                    str(one.slides),
                    str(one.patients),
                    _points(one.width),
                    _points(one.smallest_difference),
                )
                for what, one in (
                    ("as planned", now),
                    ("twice the slides a patient", plan.doubled_slides),
                    ("twice the patients", plan.doubled_patients),
                )
            ],
        ),
    ]
    if plan.needs:
        columns = ("goal", "patients", "slides", "or slides of the same patients", "simulated")
        found.append(("What reaches the goal", columns, [_need_row(need) for need in plan.needs]))
    return found


def _need_row(need: Need) -> tuple[str, ...]:
    alone = need.slides_of_same_patients
    if need.simulated is None:
        simulated = "too large to simulate"
    elif need.goal == "width":
        simulated = f"width {_points(need.simulated)}"
    else:
        simulated = f"power {need.simulated:.2f}"
    return (
        f"{need.goal} {need.wanted:g}",
        str(need.patients),
        str(need.slides),
        "no number is enough" if alone is None else str(alone),
        simulated,
    )


def _points(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _span(one: Precision) -> str:
    return f"{one.width_low:.3f} to {one.width_high:.3f}"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
