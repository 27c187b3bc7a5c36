"""Replay schedules with two rungs for two objectives, accuracy and flatness.

    python scripts/experiments/replay_fronts.py {choose,judge} [--kinds KIND ...] --out FILE

What FILE has of other kinds is kept.

Protocol, written before anything of it was run on a judged table. Studies, costs and regret are
those of `replay_parking.py` with two objectives and fronts with a least accuracy.

*What went before.* There 75 rules with one rung, after the first epoch, were tried, and the one
with the least mean on two tables failed on a third. So here there are more tables to choose on,
they are made harder, and a rule is judged by the upper ends of its intervals. What the rules are
was found by looking at the two tables to choose on (`cifar10-resnet`, `fashion-plain`), nothing
else; known of the others was what `docs/schedules.md` says. Seen there: validation accuracies after
an epoch are so noisy that "those that know too little for the front are last" puts the two or three
networks that happen to be ahead before all others (3 of 60, and 3 of 150). Rules without it ("sum",
"turns") are among those below.

*Tables to choose on.* These two, and one that was recorded for this: `choice/fashion-recipes`,
which `record_curves.py` and `tables.py` have always named as one to choose on; its first 60
networks, which follow from its name. It is kept apart, so that nothing else is chosen by it, and
has the space and the images of the judged table that failed, but other networks and varied recipes.
The tables of digits (`scripts/results/fronts`) have no validation loss and no parameters. Each of
the three is used in four ways: as it is; with the flatness of all convolutions as the second
objective; and twice *muddled*: noise is added to the ranks of the networks in every signal after
epoch e, with a standard deviation of 0.3 / e of their number (`replay_studies.MUDDLE`), so that the
first epoch says little and later ones more. Random halves, 100 studies each, other ones for each
way.

*Rules* (`front_rules`). After epoch 1 a share goes on to epoch 2, 3 or 4, of these a share to the
end; three rungs; one rung after 1 or 2. Ranked by loss+parameters after the first epoch, later by
loss+train_loss+parameters, or loss+train_loss. Each at once, as a network is among the best so far,
and in rounds, all at a rung before the best go on: the two kinds of `flatsearch run`.

*Choice.* For every rule, kind, table and way the upper end of the 95% interval of its share, 1
where that is "never"; of the rules whose mean over all of these is within .02 of the least, the
first in the order of `front_rules`, which begins with what there was and with fewer rungs. It is
one rule for both kinds. Once more among the rules with one rung, which is judged beside it.

*Judged* on the other three tables, once: random halves and whole tables (20, 40, 100 trials), 300
studies each, both kinds, beside the quarter that is the default, ranked as it is, and perfect eyes.
The chosen rule becomes the default of a kind with accuracy and flatness if its mean share on random
halves is smaller than the quarter's of the same kind with intervals that do not overlap, and on no
judged table it is worse (its value above the upper end of the quarter's interval); if it does not,
the one with one rung by the same condition. Asked for is at most .40 in the mean.

Added after that, and nothing is chosen by it: the quarter and the chosen rule at once, where the
best of a rung goes on however few have come there, as in `flatsearch run`, so that a run that is
cut short has a result.

Added when the rule had been chosen and judged, before this was run: where it becomes the default,
at once, a run ends by the clock. So random halves once more with processor time for epochs, as in
`replay_parking.py`; the default is changed only if the same condition holds there, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tables
from replay_parking import (
    OWN,
    PERFECT,
    Job,
    add_means,
    closely,
    interval,
    known,
    run,
    shares,
    trials_of,
)
from replay_rules import Perfect, Rule, Rung, Several

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST, LATER = "loss+parameters", "loss+train_loss+parameters"
DEFAULT = "(1,) 1/4; dominated"
CHOICE = ("cifar10-resnet", "fashion-plain", "choice/fashion-recipes")
# How each of them is used: the second objective, and what is muddled by which seed.
WAYS = (("kappa_last", 0), ("kappa_all", 0), ("kappa_last", 1), ("kappa_last", 2))
KINDS = {"at once": False, "rounds": True}
# What is judged on: whether random halves, in rounds, by processor time.
JUDGED = {
    "halves, at once": (True, False, False),
    "halves, rounds": (True, True, False),
    "whole, at once": (False, False, False),
    "whole, rounds": (False, True, False),
    "halves by time, at once": (True, False, True),
}
CHOICE_STUDIES, JUDGED_STUDIES = 100, 300


def front_rules() -> dict[str, Callable[[], Rule]]:
    """Return the rules by name, what there was and fewer rungs first."""
    plain, pairs = ("sum", "turns"), ((4, 2), (3, 3), (3, 2), (4, 3), (2, 4))
    tried: list[tuple[tuple[int, ...], tuple[int, ...], str, str]] = []
    for by, epoch in [(by, 1) for by in ("dominated", "accuracy", *plain)] + [
        (b, 2) for b in plain
    ]:
        tried += [((epoch,), (part,), by, LATER) for part in (4, 6, 8)]
    for by in (*plain, "sum, turns"):
        tried += [((1, 3), parts, by, LATER) for parts in pairs]
        tried += [((1, 3), parts, by, OWN) for parts in pairs if by in plain]
        tried += [((1, epoch), parts, by, LATER) for epoch in (2, 4) for parts in pairs]
    tried += [((1, 3), parts, by, LATER) for by in ("dominated", "accuracy") for parts in pairs[:3]]
    for by, epochs in [(by, epochs) for by in plain for epochs in ((1, 3, 6), (1, 2, 4))]:
        tried += [(epochs, parts, by, LATER) for parts in ((3, 2, 2), (2, 2, 2))]
    return {
        f"{epochs} {' '.join(f'1/{part}' for part in parts)}; {by}"
        f"{'' if later == LATER else f'; {later}'}": partial(
            Several,
            tuple(
                Rung(epoch, 1 / part, FIRST if epoch == 1 else later, look)
                for epoch, part, look in zip(
                    epochs, parts, by.split(", ") if ", " in by else [by] * len(parts), strict=True
                )
            ),
        )
        for epochs, parts, by, later in tried
    }


def upper_ends(
    pool: Any, name: str, way: int, kind: str, rules: dict[str, Any]
) -> dict[str, float]:
    """Return the upper ends of the intervals of all rules on a table, used in one of the ways."""
    flatness, muddle = WAYS[way]
    jobs = [
        Job(
            name,
            half=True,
            rule=rule,
            studies=CHOICE_STUDIES,
            several=True,
            least=True,
            flatness=flatness,
            muddle=muddle,
            seeds=10_000 * way,
            made=made,
            rounds=KINDS[kind] and made is not Rule,
        )
        for rule, made in ({"nothing stopped": Rule} | rules).items()
    ]
    results = dict(zip((job.rule for job in jobs), pool.map(run, jobs, chunksize=1), strict=True))
    unpruned = results["nothing stopped"]
    ends = {
        job.rule: interval(shares(job, results[job.rule], unpruned)["validation"])[2]
        for job in jobs[1:]
    }
    return {rule: 1.0 if end is None else end for rule, end in ends.items()}


def chosen(grid: dict[str, dict[str, float]], rules: list[str]) -> str:
    """Return the rule that the protocol chooses among some.

    Args:
        grid: By the kind and way of a table, the upper ends by rule.
        rules: In the order in which they are preferred.
    """
    mean = {rule: float(np.mean([ends[rule] for ends in grid.values()])) for rule in rules}
    return next(rule for rule in rules if mean[rule] <= min(mean.values()) + 0.02)


def one_rung(rule: str) -> bool:
    """Return whether a rule has one rung."""
    return rule.split(" ")[0].endswith(",)")


def choose(pool: Any) -> dict[str, Any]:
    """Return what is chosen, and by what."""
    rules, grid = front_rules(), {}
    for name in CHOICE:
        for way, (flatness, muddle) in enumerate(WAYS):
            for kind in KINDS:
                key = f"{kind}; {name}; {flatness}{f'; muddled {muddle}' if muddle else ''}"
                grid[key] = upper_ends(pool, name, way, kind, rules)
                print(key, flush=True)
    one = [rule for rule in rules if one_rung(rule)]
    return {
        "chosen": chosen(grid, list(rules)),
        "chosen with one rung": chosen(grid, one),
        "grid": grid,
    }


def judge(pool: Any, choice: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """Return the statistics of what was chosen on all tables, the judged ones among them."""
    rules = front_rules()
    names = [DEFAULT, choice["chosen"], choice["chosen with one rung"]]
    closer: dict[str, Callable[[], Rule]] = {"nothing stopped": Rule}
    closer |= {rule: rules[rule] for rule in names}
    perfect = {
        "a perfect eye for the quarter": PERFECT["1/4 at once; with a perfect eye"],
        "a perfect eye for the chosen": partial(Perfect, rules[choice["chosen"]]().rungs),
    }
    first = {f"{rule}; the first always": partial(rules[rule], first=True) for rule in names[:2]}
    found: dict[str, Any] = {}
    for key in kinds:
        half, rounds, timed = JUDGED[key]
        compared, found[key] = closer | ({} if rounds else first) | perfect, {}
        for name in tables.trained():
            counts = (trials_of(known(name), half=half),) if half else (20, 40, 100)
            jobs = [
                Job(
                    name,
                    half=half,
                    rule=rule,
                    studies=JUDGED_STUDIES,
                    counts=() if timed else counts,
                    several=True,
                    least=True,
                    timed=timed,
                    made=made,
                    rounds=rounds and made is not Rule,
                )
                for rule, made in compared.items()
            ]
            found[key][name] = closely(pool, jobs)
            print(key, name, flush=True)
        add_means(found[key])
    return found


def main() -> None:
    """Choose, or judge what was chosen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("choose", "judge"))
    parser.add_argument("--kinds", nargs="*", default=list(JUDGED), choices=JUDGED)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        if args.what == "choose":
            fields = choose(pool)
            print(fields["chosen"], "|", fields["chosen with one rung"])
        else:
            found = judge(pool, before, args.kinds)
            fields = before | {"found": before.get("found", {}) | found}
    args.out.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
