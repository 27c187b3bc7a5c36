"""What there is to say about a study in plain words; for the terminal, the dashboard, the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.analysis.correlations import MIN_TRIALS_GAIN
from flatsearch.record import LeastAccuracy
from flatsearch.reports.text import count_of
from flatsearch.signals.table import SIGNALS
from flatsearch.spaces.words import short_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.analysis.correlations import FlatnessGain, SignalCorrelation
    from flatsearch.analysis.pruning import PruningEffect
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.retrain.result import FinalTraining

__all__ = [
    "NO_FRONT",
    "front_meaning",
    "headlines",
    "same_in_all",
    "searched",
    "shipped",
    "tested",
    "tested_before",
    "verdicts",
]

NO_FRONT = (
    "No trial keeps all constraints: none has learnt clearly more than to guess (see the setting"
    " min_accuracy)."
)

# What an objective says whose name does not say it.
_MEANINGS = {
    "flatness": "how sharply the loss reacts to small relative changes of the weights",
    "noise_loss": "by how much the loss rises when the last convolution's weights get 10% of noise",
    "noise_loss_all": "by how much the loss rises when all convolutions' weights get 10% of noise",
}
_FREE = [signal.label for signal in SIGNALS.values() if signal.group in {"training", "size"}]


def searched(summary: StudySummary) -> str:
    """Return what was searched, for what, and how many trials came of it, on one line."""
    settings = summary.settings or {}
    what = ""
    if settings:
        what = (
            f"Search space {settings.get('space')} on {settings.get('data')},"
            f" {settings.get('epochs')} epochs per trial. "
        )
    named = zip(summary.metric_names, summary.directions, strict=True)
    aims = ", ".join(f"{direction} {name}" for name, direction in named)
    return f"{what}Aim: {aims}. Trials: {summary.counted() or 'none'}."


def front_meaning(summary: StudySummary) -> str:
    """Return in a sentence what the points of a front are, and which trials are left out of it.

    Args:
        summary: The study.

    Returns:
        The sentence; empty where there is one objective.
    """
    names = summary.metric_names
    if len(names) == 1:
        return ""
    said = f"On the front are the trials that no other beats in {_listed(names)} at once"
    if meant := [f"{name} is {_MEANINGS[name]}" for name in names if name in _MEANINGS]:
        said += f" ({'; '.join(meant)}: smaller is better)"
    if summary.least_accuracy is not None:
        article = "an" if summary.accuracy[0] == "a" else "a"
        said += (
            f"; trials below {article} {summary.accuracy} of {summary.least_accuracy:.3f}, which is"
            f" {LeastAccuracy(0).share:.0%} of what the best one has learnt beyond the most that"
            " guessing reaches by chance, are left out"
        )
        if set(names) & set(_MEANINGS):
            said += ", since networks that know little are flat for that alone"
    return f"{said}."


def _listed(names: Sequence[str]) -> str:
    """Join words as a sentence does.

    Returns:
        One text.

    Example:
        >>> _listed(["accuracy", "flatness", "parameters"])
        'accuracy, flatness and parameters'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}"


def same_in_all(summary: StudySummary) -> str:
    """Return what is not said of every architecture, since it is the same in all; or nothing."""
    known = [t.architecture.values for t in summary.trials if t.architecture is not None]
    first = known[0] if known else {}
    said = short_form(first, set(first) - summary.varied)
    return f"The same in all architectures: {said}." if said else ""


def headlines(summary: StudySummary) -> list[str]:
    """Return in plain words whether stopping early and flatness were of use on a study.

    Args:
        summary: The study.

    Returns:
        A line each; none for what has not been tried.
    """
    found = []
    complete = sum(trial.complete and trial.own for trial in summary.trials)
    if summary.pruning is not None and complete:
        found.append(f"Stop early? {_stopping(summary.pruning)}")
    if summary.gain:
        found.append(f"Flatness: {_use(summary.gain[0])}")
    elif complete and any("flatness" in trial.metrics for trial in summary.trials):
        few = f"too few to say of what use it is; it takes {MIN_TRIALS_GAIN}"
        why = few if complete < MIN_TRIALS_GAIN else "no epoch of theirs shows of what use it is"
        found.append(f"Flatness: {count_of(complete, 'trial')} trained to the end: {why}.")
    return found


def _stopping(pruning: PruningEffect) -> str:
    if not pruning.pruned:
        return "Nothing was stopped: the pruner is still learning, or found none to stop."
    saved = pruning.epochs_saved / (pruning.epochs_spent + pruning.epochs_saved)
    if not pruning.audited:
        return f"It saved {saved:.0%} of the epochs; nothing was run on to see what it cost."
    checked = f"of the {pruning.audited} that were run on to check"
    if pruning.wrong:
        return f"It saved {saved:.0%} of the epochs, but {pruning.wrong} {checked} ended well."
    return f"Yes: it saved {saved:.0%} of the epochs, and none {checked} ended well."


def _use(gain: FlatnessGain) -> str:
    if gain.low > 0:
        return f"it helped to see after epoch {gain.epoch} which trials end well."
    if gain.high < 0:
        return f"it misled about which trials end well, after epoch {gain.epoch}."
    return "no clear use here for seeing early which trials end well."


def verdicts(summary: StudySummary) -> list[str]:
    """Return what flatness and pruning did, a sentence or two each; none with too few trials."""
    found = []
    if summary.correlations:
        # Parameters are known before the first epoch, at epoch 0.
        moments = {0, summary.correlations[0].epoch}
        first = {c.signal: c for c in summary.correlations if c.epoch in moments}
        found.append(_alone(first))
    if summary.gain:
        found.append(_gain(summary.gain[0]))
    if summary.pruning is not None:
        found += _pruning(summary.pruning)
    audited = summary.pruning is not None and summary.pruning.audited > 0
    if summary.correlations and summary.counts.get("PRUNED") and not audited:
        found.append(
            "Pruned trials are missing from these numbers, which makes them optimistic for the"
            " signal that pruned them."
        )
    return found


def _alone(first: dict[str, SignalCorrelation]) -> str:
    """Say what flatness alone told after the first epoch, beside the best free signal."""
    layers = "all convolutions" if "flatness_all" in first else "the last convolution"
    flatness = first.get("flatness_all", first.get("flatness"))
    free = [first[name] for name in _FREE if name in first]
    if flatness is None or not free:
        return "Flatness could not be compared on this study."
    when = f"After epoch {flatness.epoch}, the flatness of {layers}"
    if flatness.low <= 0 <= flatness.high:
        what = f"{when} does not tell good candidates from bad ones here"
    else:
        which = "a larger (sharper)" if flatness.tau > 0 else "a smaller (flatter)"
        what = f"{when} tells good from bad here: {which} value goes with a higher final accuracy"
    best = max(free, key=lambda found: found.tau)
    return (
        f"{what} (tau {flatness.tau:+.2f});"
        f" the best free signal, {best.signal}, has {best.tau:+.2f}."
    )


def _gain(gain: FlatnessGain) -> str:
    """Say what flatness adds to all other signals."""
    numbers = (
        f"tau {gain.tau:.2f} with flatness, {gain.tau_without:.2f} without:"
        f" {gain.gain:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    )
    if gain.low > 0:
        verdict = "Flatness helped"
    elif gain.high < 0:
        verdict = "Flatness did harm"
    else:
        verdict = "Flatness made no clear difference"
    return (
        f"{verdict} in predicting the final accuracy from everything known after epoch"
        f" {gain.epoch} ({numbers}, {gain.n_trials} trials)."
    )


def _pruning(pruning: PruningEffect) -> list[str]:
    """Say what pruning saved, and what the audit says that it cost."""
    total = pruning.epochs_spent + pruning.epochs_saved
    if not pruning.pruned and not pruning.audited:
        return ["No trial was pruned yet: the pruner is still learning, or found none to prune."]
    what = "Pruning stopped" if pruning.parked < pruning.pruned else "Parking stopped"
    found = [
        f"{what} {count_of(pruning.pruned, 'trial')} and saved {pruning.epochs_saved} of"
        f" {total} epochs ({pruning.epochs_saved / total:.0%})."
    ]
    if pruning.spared:
        found.append(
            f"Of {count_of(pruning.spared, 'trial')} that would have been parked after the first"
            f" rung but went on for the audit, {pruning.acquitted} were among the best of"
            " the next one."
        )
    if pruning.audited:
        best = "on the front"
        if pruning.best is not None:
            best = f"among the best {pruning.best:.0%}"
        found.append(
            f"Of {count_of(pruning.audited, 'trial')} that would have been pruned but went on,"
            f" {pruning.wrong} ended {best}: of the pruned ones,"
            f" {pruning.low:.0%} to {pruning.high:.0%} would have (95% interval)."
        )
    if pruning.suspended:
        found.append(
            f"Pruning was suspended for {count_of(pruning.suspended, 'trial')}: more audited ones"
            " were good than predicted."
        )
    return found


def tested(final: FinalTraining) -> str:
    """Return the test accuracy of a final training with its interval, and what it is of."""
    n = final.seeds[0].test.n_samples
    networks = sum(seed.trial == final.trial for seed in final.seeds)
    spread = "" if final.spread is None else f", standard deviation {final.spread:.4f}"
    trial = "" if networks == len(final.seeds) else f" of trial {final.trial}"
    of = f" (mean of {networks} networks{trial}{spread})" if networks > 1 else trial
    first = final.seeds[0].test
    balanced = ""
    if first.uneven:
        balanced = f"; mean over classes of uneven size {first.balanced_accuracy:.4f}"
    return (
        f"test accuracy {final.accuracy:.4f} [{final.low:.4f}, {final.high:.4f}]{of},"
        f" {n} images, {final.epochs} epochs{balanced}"
    )


def shipped(final: FinalTraining) -> str:
    """Say which of several networks is the model to ship, and why; empty of one."""
    if len(final.seeds) == 1:
        return ""
    best, second = final.seeds[:2]
    if final.criterion is None or best.validation is None or second.validation is None:
        return (
            "The model is the first network: all were trained on the images that could rank them."
        )
    text = (
        f"The model is seed {best.seed} of trial {best.trial}, by {final.criterion}"
        f" ({best.validation.loss.text} on images held out of the training)"
    )
    behind = second.validation.behind
    if behind is not None and behind.low <= 0 <= behind.high:
        return f"{text}; the second one's lies within the noise of so many images."
    return f"{text}."


def tested_before(final: FinalTraining) -> str:
    """Say that the test split has been read before."""
    looks = ", ".join(f"trial {number} {accuracy:.4f}" for number, accuracy in final.earlier)
    return (
        f"The test split has been read before on this study ({looks}): a choice among test"
        " results is tuned on the test split."
    )
