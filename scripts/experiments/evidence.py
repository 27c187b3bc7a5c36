"""Everything that docs/evidence.md says, computed from the recorded tables, in one command.

    python scripts/experiments/evidence.py [--page-only] [--studies 20]

Runs `correlate.py`, `early_score.py`, `replay.py` and `replay_samplers.py` on all tables in
scripts/results/curves, which takes about half an hour, and writes the page from their results.
With --page-only it writes the page from the results that are there, and draws no figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tables

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE.parent / "results", HERE.parents[1] / "docs" / "evidence.md"
FIGURE = HERE.parents[1] / "docs" / "evidence-tau.svg"
SHOWN = (
    "validation accuracy", "-validation loss", "-training loss", "gradient norm",
    "kappa last", "trace last", "kappa all", "trace all", "mean log kappa",
)  # fmt: skip
UNTRAINED = ("parameters", "FLOPs", "nwot", "synflow", "snip", "ZiCo")
MATCHED = ("kappa last", "trace last", "kappa all")
PRUNERS = (
    "none", "median", "percentile 25", "successive halving", "hyperband", "median, training loss",
    "successive halving, training loss", "hyperband, training loss", "flattest quarter pruned",
    "sharpest quarter pruned", "calibrated", "calibrated, no flatness",
)  # fmt: skip


# Whose regret the calibrated rule's is compared with, in the order of `replay.OTHERS`.
OTHERS = (
    "median", "median, training loss", "successive halving, training loss", "hyperband",
    "calibrated, no flatness",
)  # fmt: skip


def number(values: list | None, digits: int = 2, sign: str = "+") -> str:
    """Return a value with its interval."""
    if not values or values[0] is None:
        return "-"
    if values[0] == np.inf:
        return "never"
    value, low, high = values
    high_text = "never" if high == np.inf else f"{high:{sign}.{digits}f}"
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high_text}]"


def rows(header: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body), ""]


def short(name: str) -> str:
    """Return a table's name, marked if it was tuned on."""
    return f"{name} (t)" if name in tables.TUNING else name


def recorded(correlations: dict) -> list[str]:
    """Return what the tables are."""
    body = []
    for name, found in correlations.items():
        settings = found["environment"]["settings"]
        fit = tables.load(name).column("fit_accuracy")
        body.append([
            short(name), settings["space"], str(found["networks"]), str(found["diverged"]),
            f"{settings['image_size']}x{settings['image_size']}", f"{settings['train']:,}",
            str(found["epochs"]), "varied" if settings["tune_recipe"] else "fixed",
            found["target"], " to ".join(f"{v:.3g}" for v in found["range"]),
            f"{np.median(fit):.2f}, {fit.max():.3f}",
        ])  # fmt: skip
    return rows(
        ["table", "space", "networks", "diverged", "images", "trained on", "epochs", "recipe",
         "target", "range", "training accuracy: median, largest"], body,
    )  # fmt: skip


def signals(correlations: dict, epoch: int | None, names: tuple[str, ...], key: str) -> list[str]:
    """Return tau of signals by table."""
    body = []
    for name in names:
        label = name if epoch is not None else f"{name} at matched loss"
        cells = [name]
        for found in correlations.values():
            row = [r for r in found["signals"] if (r["signal"], r["epoch"]) == (label, epoch)]
            cells.append(number(row[0][key]) if row else "-")
        body.append(cells)
    return rows(["signal", *map(short, correlations)], body)


def leads(correlations: dict) -> list[str]:
    """Return kappa of all convolutions beside its rivals, after the first epoch."""
    body = []
    for table, found in correlations.items():
        rows_of = {r["signal"]: r for r in found["signals"] if r["epoch"] in {0, 1}}
        own = [n for n in tables.SIGNALS if n in rows_of and "kappa" not in n and "trace" not in n]
        best = max(own, key=lambda name: rows_of[name]["tau"][0])
        body.append([
            short(table), number(rows_of["kappa all"]["tau"]),
            f"{best} {number(rows_of[best]['tau'])}", number(rows_of["parameters"]["tau"]),
            number(found["learnt"]),
        ])  # fmt: skip
    return rows(
        ["table", "kappa all", "best other signal of the trained network", "parameters",
         "kappa all with -training loss"], body,
    )  # fmt: skip


def sign_errors(correlations: dict, epoch: int) -> list[str]:
    """Return, per table, the parameter on which kappa of all convolutions fails most."""
    body = []
    for table, found in correlations.items():
        cells = [short(table)]
        for signal in ("-training loss", "kappa last", "kappa all"):
            row = next(r for r in found["signals"] if (r["signal"], r["epoch"]) == (signal, epoch))
            worst = sorted(row["sign_error"].items(), key=lambda item: -item[1])[:2]
            cells.append(", ".join(f"{name} {error:+.2f}" for name, error in worst) or "-")
        body.append(cells)
    return rows(["table", "-training loss", "kappa last", "kappa all"], body)


def early(scores: dict, epoch: str, names: list[str]) -> list[str]:
    """Return how sets of coefficients from other tables rank, beside the best free signal."""
    body = []
    labels = ("free", "free, flatness", "cheap", "cheap, flatness", "cheap, untrained")
    for name in names:
        found = scores[name][epoch]
        best = found["best free"]
        body.append([short(name), f"{best['best']} {best['tau'][0]:.3f}"])
        for label in labels:
            value = found[f"others: {label}"]
            body[-1].append(f"{value['tau'][0]:.3f} ({number(value['lead'])})")
    return rows(["table", "best single free signal", *labels], body)


def gains(scores: dict, epoch: str) -> list[str]:
    """Return what flatness and its rivals add to what a study learns from its own trials."""
    columns = {
        "flatness": "own: free, flatness",
        "depth": "own: with depth",
        "flatness, on top of depth": "own: with depth, flatness",
        "depth, gradient norm, weight movement": "own: cheap",
        "flatness, on top of these": "own: cheap, flatness",
        "flatness, on top of these and untrained": "own: cheap, untrained, flatness",
    }
    body = []
    for name, epochs in scores.items():
        found = epochs[epoch]
        body.append([
            short(name), f"{found['own: free']['tau'][0]:.3f}",
            *(number(found[label]["gain"], 3) for label in columns.values()),
        ])  # fmt: skip
    return rows(["table", "free", *(f"+ {name}" for name in columns)], body)


def nasbench(scores: dict) -> list[str]:
    """Return the scores on NAS-Bench-201's published accuracies."""
    lines = []
    for name, epochs in scores.items():
        labels = [k for k in epochs["3"] if k.startswith("log ranks")]
        if not labels:
            continue
        chosen = [*labels, "best free", "own: free", "own: cheap", "own: cheap, flatness"]
        body = [
            [label.replace("own: ", "fitted to half, the other half: "),
             *(number(epochs[e][label]["tau"], 3, "") for e in ("1", "2", "3"))]
            for label in chosen
        ]  # fmt: skip
        lines += [f"{name}:", "", *rows(["score", "1 epoch", "2 epochs", "3 epochs"], body)]
    return lines


WHEN = ("a third", "the end")
HEADER = (
    "pruner", "share of the time to the unpruned regret", "regret at a third", "at the end",
    "same trials: share of the time", "of the epochs", "their regret",
)  # fmt: skip
COLUMNS = {  # digits
    "time to the unpruned regret": 2, "regret at a third": 4, "regret at the end": 4,
    "time of the same trials": 2, "epochs of the same trials": 2, "regret of the same trials": 4,
}  # fmt: skip


def replays(results: dict, objectives: str, names: list[str]) -> list[str]:
    """Return the replays with given objectives, of all tables together first."""
    found = {name: results["tables"][f"{name} {objectives}"] for name in names}
    lines: list[str] = []
    if len(names) > 1:
        lines = [f"**All {len(names)} tables**, mean over the tables (least to largest):", ""]
        lines += rows([*HEADER], [
            [label, *(over_tables(found, label, key, digits) for key, digits in COLUMNS.items())]
            for label in PRUNERS
        ])  # fmt: skip
    for name, entry in found.items():
        lines += [f"**{short(name)}**, {entry['studies']} studies{ties(name, objectives)}", ""]
        lines += rows([*HEADER], [
            [label, *(number(entry["pruners"][label][k], d, "") for k, d in COLUMNS.items())]
            for label in PRUNERS
        ])  # fmt: skip
    return lines


def over_tables(found: dict, label: str, key: str, digits: int) -> str:
    """Return the mean of the tables' values with the least and the largest."""
    values = [entry["pruners"][label][key][0] for entry in found.values()]
    if not np.isfinite(values).all():
        never = sum(not np.isfinite(v) for v in values)
        return f"never on {never} of {len(values)}"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ties(name: str, objectives: str) -> str:
    """Return how many networks of a table share its best validation accuracy."""
    if "," in objectives:
        return ""
    accuracy = tables.load(name).column("accuracy")
    top = int((accuracy == accuracy.max()).sum())
    return f"; {top} networks share the best validation accuracy" if top > 1 else ""


def differences(results: dict, objectives: str, names: list[str]) -> list[str]:
    """Return the calibrated rule's regret less that of others, paired by study."""
    body = []
    for name in names:
        row = results["tables"][f"{name} {objectives}"]["pruners"]["calibrated"]
        body.append([short(name), *(number(row[f"less {o} at {w}"], 4)
                                    for o in OTHERS for w in WHEN)])  # fmt: skip
    return rows(["table", *(f"less {o}, at {w}" for o in OTHERS for w in WHEN)], body)


def samplers(results: dict) -> list[str]:
    """Return the replays of samplers."""
    body = [
        [short(name), sampler, *(number(v, 4, "") for v in row.values())]
        for name, found in results["tables"].items()
        for sampler, row in found.items()
    ]
    return rows(["table", "sampler", "after 10 trials", "after 20", "after 40"], body)


def draw(names: list[str]) -> None:
    """Draw tau with the final accuracy by epoch, a panel per table."""
    import matplotlib as mpl
    from correlate import kendall
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "flatsearch"
    names = [name for name in names if not tables.load(name).published]
    figure = Figure(figsize=(3.2 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    shown = {"validation accuracy": "#999999", "-training loss": "#333333", "kappa last": "#4477aa",
             "kappa all": "#cc3311"}  # fmt: skip
    for panel, name in zip(panels, names, strict=True):
        curves = tables.load(name)
        y, epochs = curves.target(), range(1, curves.epochs + 1)
        for signal, colour in shown.items():
            taus = [kendall(curves.signal(signal, epoch), y) for epoch in epochs]
            panel.plot(epochs, taus, color=colour, label=signal)
        size = kendall(curves.signal("parameters", 1), y)
        panel.axhline(size, color="#999999", ls=":", label="parameters")
        ticks = [1, *range(3, curves.epochs + 1, 3)]
        panel.set(title=f"{name} ({len(curves)})", xlabel="epoch", xticks=ticks)
        panel.axhline(0, color="black", lw=0.5)
    panels[0].set_ylabel("Kendall tau with the final test accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(FIGURE, metadata={"Date": None})


def compute(studies: int) -> None:
    """Run the analyses."""
    for script, out, extra in (
        ("correlate.py", "correlations.json", []),
        ("early_score.py", "early-scores.json", []),
        ("replay.py", "replays.json", ["--studies", str(studies)]),
        ("replay_samplers.py", "samplers.json", ["--studies", "10"]),
    ):
        command = [sys.executable, str(HERE / script), "--out", str(RESULTS / out), *extra]
        print(" ".join([script, *extra]), flush=True)
        subprocess.run(command, check=True)


def page() -> str:
    """Return the page that the recorded results make."""
    read = {
        key: json.loads((RESULTS / f"{key}.json").read_text())
        for key in ("correlations", "early-scores", "replays", "samplers")
    }
    correlations, scores = read["correlations"], read["early-scores"]
    results = read["replays"]
    names = [n for n in scores if not tables.load(n).published]
    judged = [n for n in names if n not in tables.TUNING]
    both = [n for n in names if f"{n} accuracy,flatness" in results["tables"]]
    parts = {
        "recorded": recorded(correlations),
        "first": signals(correlations, 1, SHOWN, "tau")
        + signals(correlations, 0, UNTRAINED, "tau"),
        "third": signals(correlations, 3, SHOWN, "tau"),
        "gap": signals(correlations, 1, SHOWN, "tau_gap"),
        "top": signals(correlations, 1, SHOWN, "tau_top"),
        "matched": signals(correlations, None, MATCHED, "tau"),
        "matched_size": signals(correlations, None, MATCHED, "tau_given_size"),
        "matched_gap": signals(correlations, None, MATCHED, "tau_gap"),
        "matched_gap_size": signals(correlations, None, MATCHED, "tau_gap_given_size"),
        "leads": leads(correlations),
        "sign_errors": sign_errors(correlations, 1),
        "others_1": early(scores, "1", judged),
        "gains_1": gains(scores, "1"),
        "gains_3": gains(scores, "3"),
        "nasbench": nasbench(scores),
        "replays_one": replays(results, "accuracy", names),
        "replays_two": replays(results, "accuracy,flatness", both),
        "differences_one": differences(results, "accuracy", names),
        "samplers": samplers(read["samplers"]),
        "differences_two": differences(results, "accuracy,flatness", both),
        "trials": [str(results["trials"])],
        "probe": [str(results["probe"])],
        "sampler_studies": [str(read["samplers"]["studies"])],
    }
    text = (HERE / "evidence.md.in").read_text()
    for key, lines in parts.items():
        text = text.replace("{{" + key + "}}", "\n".join(lines).rstrip())
    return text


def main() -> None:
    """Compute, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--studies", type=int, default=20)
    args = parser.parse_args()
    if not args.page_only:
        compute(args.studies)
        draw(tables.names())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
