"""Rules that promote, on networks made by hand."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from flatsearch import HalvingPromoter, OneRungPromoter, SettingsError, report, should_prune
from flatsearch.pruners.judge import Judge
from flatsearch.pruners.promoter import Board
from flatsearch.record import LeastAccuracy, Network, Promotion, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.pruners.promoter import Promoter

JUDGE = Judge(("loss",), ("accuracy",), (1.0,))


def network(
    number: int,
    losses: Sequence[float],
    *,
    parked: bool = True,
    busy: bool = False,
    final: tuple[float, ...] | None = None,
) -> Network:
    steps = {step: {"loss": loss} for step, loss in enumerate(losses)}
    waits = len(losses) if parked and not busy and final is None else None
    return Network(number, steps, parked=waits, busy=busy, final=final)


def told(
    rule: Promoter, networks: Sequence[Network], *, epochs: int = 12, ends: bool = False
) -> list[tuple[int, int, int]]:
    board = Board(networks, epochs, JUDGE)
    found = rule.promotions(board, ends=ends)
    return [(promotion.trial, promotion.after, promotion.until) for promotion in found]


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(1, ()), (2, (1,)), (3, (1,)), (4, (1,)), (8, (1, 3)), (12, (1, 3)), (50, (1, 4, 14))],
)
def test_rungs(epochs: int, rungs: tuple[int, ...]) -> None:
    assert HalvingPromoter().rungs(epochs) == rungs


def test_a_quarter_of_each_rung_goes_on_the_highest_first() -> None:
    rule = HalvingPromoter()
    low = [network(i, [1.0 + i]) for i in range(7)]
    assert told(rule, low[:3]) == []
    assert told(rule, low[:4]) == [(0, 1, 3)]
    assert told(rule, low) == [(0, 1, 3)]
    # Those that have gone on still count where they were; what is promoted already is no news.
    high = [network(10 + i, [0.5, 0.5, 0.1 * i]) for i in range(4)]
    assert told(rule, [*low, *high]) == [(10, 3, 12)]
    busy = [network(0, [1.0], busy=True), *low[1:]]
    assert told(rule, busy) == []
    assert told(rule, [*busy, network(20, [0.5])]) == [(20, 1, 3)]


def test_a_turn_is_over_unless_the_trial_is_among_the_best() -> None:
    rule = HalvingPromoter()
    networks = [network(i, [1.0 + i]) for i in range(7)]
    for loss, over in ((0.5, False), (1.5, False), (3.5, True)):
        board = Board([*networks, network(9, [loss], busy=True)], 12, JUDGE)
        assert rule.pauses(board, 9, 1) is over


def test_what_was_cut_off_and_replaced_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = OneRungPromoter(promote=0.25)
    lost = Network(9, {0: {"loss": 0.5}}, resumes=Promotion(9, 0, 0, "cut off"))
    board = Board([lost, *(network(i, [1.0 + i]) for i in range(4))], 12, JUDGE)
    monkeypatch.setattr(OneRungPromoter, "board", lambda *_: board)
    study = optuna.create_study()
    assert rule.next_promotions(study) == [lost.resumes]
    assert rule.next_promotions(study, ends=True) == [Promotion(0, 1, 12)]


def test_at_the_end_one_at_least_is_trained_to_the_end() -> None:
    rule = HalvingPromoter()
    networks = [network(0, [2.0]), network(1, [1.0]), network(2, [3.0, 1.0, 1.0])]
    assert told(rule, networks) == []
    assert told(rule, networks, ends=True) == [(2, 3, 12)]
    assert told(rule, [*networks[:2], network(3, [9.0], busy=True)], ends=True) == []
    whole = network(3, [0.5] * 12, final=(0.5,))
    assert told(rule, [*networks, whole], ends=True) == []
    assert told(rule, [], ends=True) == []


def test_one_rung_waits_for_all() -> None:
    networks = [network(i, [float(10 - i)]) for i in range(6)]
    rule = OneRungPromoter(promote=2)
    assert told(rule, networks) == []
    assert told(rule, networks, ends=True) == [(5, 1, 12), (4, 1, 12)]
    known = OneRungPromoter(promote=2, n_trials=6)
    assert told(known, networks[:5]) == []
    assert told(known, networks) == [(5, 1, 12), (4, 1, 12)]
    done = [*networks[:5], network(5, [1.0] * 12, final=(0.5,))]
    assert told(known, done) == [(4, 1, 12)]
    share = OneRungPromoter(promote=0.25)
    assert told(share, networks, ends=True) == [(5, 1, 12), (4, 1, 12)]
    assert told(share, networks[:1], ends=True) == [(0, 1, 12)]


def test_one_rung_may_promote_at_once() -> None:
    networks = [network(i, [float(10 - i)]) for i in range(6)]
    rule = OneRungPromoter(promote=0.25, at_once=True)
    assert told(rule, networks[:3]) == [(2, 1, 12)]  # a run that is cut short has a result
    assert told(rule, networks) == [(5, 1, 12)]
    assert told(rule, networks, ends=True) == [(5, 1, 12), (4, 1, 12)]
    for loss, over in ((0.5, False), (5.5, True)):
        board = Board([*networks, network(9, [loss], busy=True)], 12, JUDGE)
        assert rule.pauses(board, 9, 1) is over
    assert OneRungPromoter().pauses(board, 9, 1)


def test_the_first_may_go_on_at_once_and_rungs_be_few() -> None:
    rule = HalvingPromoter(factor=3, most_rungs=2, first=True)
    assert [rule.rungs(n) for n in (2, 5, 8, 12, 100)] == [(1,), (1,), (1, 3), (1, 3), (1, 10)]
    networks = [network(i, [float(10 - i)]) for i in range(6)]
    assert told(rule, networks[:1]) == [(0, 1, 3)]
    assert told(rule, networks) == [(5, 1, 3), (4, 1, 3)]
    assert told(rule, [network(0, [1.0] * 3)]) == [(0, 3, 12)]


def test_what_a_rule_with_other_rungs_parked_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [network(0, [1.0] * 3), *(network(i, [1.0 + i]) for i in range(1, 8))]
    assert told(OneRungPromoter(promote=0.25), networks, ends=True) == [(0, 3, 12), (1, 1, 12)]
    assert told(HalvingPromoter(factor=2.2, first=True), networks)[0] == (0, 3, 5)
    assert HalvingPromoter(factor=2.2).rungs(12) == (1, 2, 5)
    board = Board(networks, 12, JUDGE)
    monkeypatch.setattr(OneRungPromoter, "board", lambda *_: board)
    assert OneRungPromoter(keep=2).wanted(optuna.create_study()) == {0, 1}


def test_ranks_by_several_signals_and_what_is_not_there() -> None:
    def of(number: int, **metrics: float) -> Network:
        return Network(number, {0: metrics}, fixed={"parameters": 10.0 * number})

    networks = [of(0, loss=1.0, train_loss=3.0), of(1, loss=2.0, train_loss=1.0), of(2, loss=9.0)]

    def numbers(*signals: str) -> list[int]:
        return [n.number for n in Judge(signals).order(networks, 1)]

    assert numbers("loss") == [0, 1, 2]
    assert numbers("train_loss") == [1, 0, 2]  # not there is the worst
    assert numbers("loss", "train_loss") == [0, 1, 2]  # 1 + 2 and 2 + 1: the older one
    assert numbers("tse") == numbers("train_loss")
    assert numbers("parameters") == [2, 1, 0]
    assert numbers("-parameters") == [0, 1, 2]
    assert Judge(("loss",)).order(networks, 2) == []


def test_what_is_flat_for_knowing_nothing_comes_last() -> None:
    def of(number: int, accuracy: float, flatness: float) -> Network:
        steps = {0: {"loss": 1 - accuracy, "accuracy": accuracy, "flatness": flatness}}
        return Network(number, steps)

    networks = [of(0, 0.15, 0.1), of(1, 0.9, 9.0), of(2, 0.3, 0.2), of(3, 0.85, 8.0)]
    objectives = ("accuracy", "flatness"), (1.0, -1.0)
    before = Judge(("loss",), *objectives).order(networks, 1)
    assert [n.number for n in before] == [0, 1, 2, 3]
    judge = Judge(("loss",), *objectives, LeastAccuracy(0.1))
    assert [n.number for n in judge.order(networks, 1)] == [1, 3, 2, 0]


def test_in_turns_every_third_is_the_flattest_of_the_better_half() -> None:
    def of(number: int, flatness: float, size: float = 0.0) -> Network:
        values = {"loss": float(number), "accuracy": 0.5, "flatness": flatness, "size": size}
        return Network(number, {0: values})

    flatness = [9.0, 8.0, 7.0, 6.0, 5.0, 1.0, 0.3, 0.2, 0.1, 0.0]  # the best half: 0 to 4
    networks = [of(i, value) for i, value in enumerate(flatness)]
    two = Judge(("loss",), ("accuracy", "flatness"), (1.0, -1.0), LeastAccuracy(0.1), in_turns=True)
    assert [n.number for n in two.order(networks, 1)] == [0, 1, 4, 2, 3, *range(5, 10)]
    networks = [of(i, value, float(i != 3)) for i, value in enumerate(flatness)]
    three = Judge(("loss",), ("flatness", "accuracy", "size"), (-1.0, 1.0, -1.0), in_turns=True)
    assert [n.number for n in three.order(networks, 1)][:5] == [0, 1, 4, 2, 3]
    one = Judge(("loss",), ("accuracy",), in_turns=True)
    assert [n.number for n in one.order(networks, 1)] == list(range(10))


def test_later_epochs_have_signals_of_their_own() -> None:
    steps = [{0: {"loss": a}, 1: {"loss": 1.0, "train_loss": b}} for a, b in ((1, 9), (2, 3))]
    networks = [Network(i, of) for i, of in enumerate(steps)]
    judge = Judge(("loss",), later=("train_loss",))
    assert [[n.number for n in judge.order(networks, e)] for e in (1, 2)] == [[0, 1], [1, 0]]


def test_several_objectives_are_ranked_by_domination() -> None:
    def of(number: int, loss: float, flatness: float, *, feasible: bool = True) -> Network:
        return Network(number, {0: {"loss": loss, "flatness": flatness}}, feasible=feasible)

    judge = Judge(("loss",), ("accuracy", "flatness"), (1.0, -1.0))
    networks = [
        of(0, 1.0, 9.0),
        of(1, 2.0, 9.5),  # behind 0
        of(2, 5.0, 1.0),
        of(3, 6.0, 10.0),  # behind all
        of(4, 9.0, 0.1, feasible=False),  # has learnt nothing
    ]
    order = [n.number for n in judge.order(networks, 1)]
    assert set(order[:2]) == {0, 2}
    assert order[2:] == [1, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": ("nonsense",)}, "unknown signal 'nonsense'"),
        ({"signals": ("flatness",)}, "give '-flatness' if smaller"),
        ({"signals": ()}, "`signals` must be names"),
        ({"later": ("nonsense",)}, "unknown signal 'nonsense'"),
        ({"most_rungs": 0}, "`most_rungs` must be at least 1 but got 0"),
        ({"factor": 1}, "`factor` must be above 1 but got 1"),
        ({"audit": 1.0}, "`audit` must be at least 0 and below 1"),
        ({"keep": 0}, "`keep` must be at least 1 but got 0"),
        ({"promote": 0.0}, "`promote` must be above 0 and below 1 but got 0.0"),
        ({"promote": 1.5}, "`promote` must be .* but got 1.5"),
    ],
)
def test_arguments(options: dict[str, object], message: str) -> None:
    kind: Any = OneRungPromoter if "promote" in options else HalvingPromoter
    with pytest.raises(SettingsError, match=message):
        kind(**options)


def study_of(pruner: optuna.pruners.BasePruner, *names: str) -> optuna.Study:
    study = optuna.create_study(directions=["maximize"] * len(names), pruner=pruner)
    study.set_metric_names(list(names))
    return study


@pytest.mark.parametrize("names", [("accuracy",), ("accuracy", "speed")])
def test_without_an_objective_that_parks_it_prunes(names: tuple[str, ...]) -> None:
    study = study_of(pickle.loads(pickle.dumps(HalvingPromoter(epochs=4, audit=0.0))), *names)
    for loss, over in ((4.0, True), (3.0, True), (2.0, True), (1.0, False), (5.0, True)):
        trial = study.ask()
        report(trial, 0, loss=loss, speed=1.0)
        assert should_prune(trial) is over
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def test_it_has_to_know_the_epochs() -> None:
    study = study_of(HalvingPromoter(), "accuracy")
    trial = study.ask()
    report(trial, 0, loss=1.0)
    with pytest.raises(ValueError, match="give `epochs`"):
        should_prune(trial)


def test_a_share_of_those_whose_turn_is_over_is_audited() -> None:
    study = study_of(HalvingPromoter(epochs=12, audit=0.5), "accuracy")
    audited = 0
    for i in range(40):
        trial = study.ask()
        report(trial, 0, loss=float(i))
        over = should_prune(trial)
        found = TrialRecord(study.trials[-1])
        assert over is (found.audit is None)  # no later trial is among the best
        if not over:
            assert found.audit == (1, 3)
            audited += 1
            for step in (1, 2):
                report(trial, step, loss=float(i))
            assert should_prune(trial)  # once is enough
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert 10 <= audited <= 30


def test_more_go_on_while_the_audit_says_that_the_rule_is_wrong() -> None:
    def audited(number: int, epochs: int, *, busy: bool = False) -> Network:
        steps = {step: {"loss": 9.0} for step in range(epochs)}
        return Network(number, steps, parked=None if busy else epochs, busy=busy, audit=(1, 3))

    assert [audited(0, n).acquitted for n in (3, 4)] == [False, True]
    assert audited(0, 2, busy=True).acquitted is None
    low = [network(i, [1.0 + i]) for i in range(8)]
    rule = HalvingPromoter()
    bad = [audited(20 + i, 3) for i in range(4)]
    good = [audited(20 + i, 4) for i in range(4)]
    assert len(told(rule, [*low, *bad])) == 3 + 1  # and one of those audited, from the next rung
    assert [n for n, after, _ in told(rule, [*low, *good]) if after == 1] == [0, 1, 2, 3, 4, 5]


def test_a_promoted_trial_is_not_stopped_before_it_is_where_it_goes() -> None:
    study = study_of(HalvingPromoter(epochs=12, audit=0.0), "accuracy")
    for i in range(4):
        trial = study.ask()
        report(trial, 0, loss=float(i))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    attributes = {TrialRecord.promotion.key: Promotion(3, 1, 12, "last").to_dict()}
    study.enqueue_trial({}, user_attrs=attributes)
    trial = study.ask()
    for step in range(4):
        report(trial, step, loss=9.0)
        assert not should_prune(trial)
