"""Everything that docs/evidence.md says, computed from the recorded tables, in one command.

    python scripts/experiments/evidence.py [--page-only] [--studies 60]

Runs `correlate.py`, `early_score.py`, `replay.py` and `replay_samplers.py` on all tables in
scripts/results/curves, which takes about half an hour, and writes the page from their results.
With --page-only it writes the page from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tables
from correlate import kendall

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
    "none", "median", "percentile 25", "successive halving", "hyperband", "flatness, small pruned",
    "flatness, large pruned", "calibrated", "calibrated, last layer", "calibrated, no kappa",
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
        body.append([
            short(name), settings["space"], str(found["networks"]), str(found["diverged"]),
            f"{settings['image_size']}x{settings['image_size']}", f"{settings['train']:,}",
            str(found["epochs"]), "varied" if settings["tune_recipe"] else "fixed",
            found["target"], " to ".join(f"{v:.3g}" for v in found["range"]),
        ])  # fmt: skip
    return rows(
        ["table", "space", "networks", "diverged", "images", "trained on", "epochs", "recipe",
         "target", "range"], body,
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


def early(scores: dict, kind: str, epoch: str, names: list[str]) -> list[str]:
    """Return how sets of signals rank, beside the best single free signal."""
    body = []
    for name in names:
        found = scores[name][epoch]
        best = found["best free"]
        body.append([short(name), f"{best['best']} {best['tau'][0]:.3f}"])
        for label in ("free", "free, flatness last", "free, flatness all", "free, untrained",
                      "free, untrained, flatness all"):  # fmt: skip
            value = found.get(f"{kind}: {label}")
            body[-1].append(f"{value['tau'][0]:.3f} ({number(value['lead'])})" if value else "-")
    return rows(
        ["table", "best single free signal", "free", "+ flatness, last", "+ flatness, all",
         "free + untrained", "+ flatness, all"], body,
    )  # fmt: skip


def nasbench(scores: dict) -> list[str]:
    """Return the scores on NAS-Bench-201's published accuracies."""
    lines = []
    for name, epochs in scores.items():
        labels = [k for k in epochs["3"] if k.startswith("log ranks")]
        if not labels:
            continue
        chosen = [*labels, "best free", "own: free", "own: free, flatness all"]
        body = [
            [label.replace("own: ", "fitted, left out: "),
             *(number(epochs[e][label]["tau"], 3, "") for e in ("1", "2", "3"))]
            for label in chosen
        ]  # fmt: skip
        lines += [f"{name}:", "", *rows(["score", "1 epoch", "2 epochs", "3 epochs"], body)]
    return lines


def replays(results: dict, objectives: str, names: list[str]) -> list[str]:
    """Return the replays with given objectives."""
    lines = []
    for name in names:
        found = results["tables"].get(f"{name} {objectives}")
        if found is None:
            continue
        body = []
        for label in PRUNERS:
            row = found[label]
            body.append([
                label, number(row["epochs to the unpruned regret"], 2, ""),
                *(number(row[f"regret at {when}"], 4, "") for when in ("a third", "the end")),
                number(row["epochs of the same trials"], 2, ""),
                number(row["regret of the same trials"], 4, ""),
            ])  # fmt: skip
        header = ["pruner", "share of the epochs to the unpruned regret", "regret at a third",
                  "at the end", "same trials: share of epochs", "their regret"]  # fmt: skip
        lines += [f"**{short(name)}**{floor(name, objectives)}", "", *rows(header, body)]
    return lines


def floor(name: str, objectives: str) -> str:
    """Return what a study that trains every network of a table ends with."""
    if "," in objectives:
        return ""
    curves = tables.load(name)
    test, best = curves.target(), int(np.argmax(curves.column("accuracy")))
    return (
        f": a study that trains all of its {len(curves)} networks ends with a regret of"
        f" {test.max() - test[best]:.4f}, the best on the validation images not being the best on"
        " the test images"
    )


def differences(results: dict, objectives: str, names: list[str]) -> list[str]:
    """Return the calibrated rule's regret less that of others, paired by study."""
    others = ("successive halving", "hyperband", "calibrated, no kappa")
    body = []
    for name in names:
        row = results["tables"].get(f"{name} {objectives}", {}).get("calibrated")
        if row is not None:
            cells = [number(row[f"less {o} at {w}"], 4) for o in others
                     for w in ("a third", "the end")]  # fmt: skip
            body.append([short(name), *cells])
    header = ["table", *(f"less {o}, at {w}" for o in others for w in ("a third", "the end"))]
    return rows(header, body)


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
        ("replay_samplers.py", "samplers.json", ["--studies", "20"]),
    ):
        command = [sys.executable, str(HERE / script), "--out", str(RESULTS / out), *extra]
        print(" ".join([script, *extra]), flush=True)
        subprocess.run(command, check=True)


def main() -> None:
    """Compute, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--studies", type=int, default=60)
    args = parser.parse_args()
    if not args.page_only:
        compute(args.studies)
    read = {
        key: json.loads((RESULTS / f"{file}.json").read_text())
        for key, file in (
            ("correlations", "correlations"), ("scores", "early-scores"),
            ("replays", "replays"), ("samplers", "samplers"),
        )
    }  # fmt: skip
    correlations, scores, results = read["correlations"], read["scores"], read["replays"]
    names = [n for n in scores if not tables.load(n).published]
    judged = [n for n in names if n not in tables.TUNING]
    draw(list(scores))
    text = (HERE / "evidence.md.in").read_text()
    parts = {
        "recorded": recorded(correlations),
        "first": signals(correlations, 1, SHOWN, "tau")
        + signals(correlations, 0, UNTRAINED, "tau"),
        "third": signals(correlations, 3, SHOWN, "tau"),
        "gap": signals(correlations, 1, SHOWN, "tau_gap"),
        "top": signals(correlations, 1, SHOWN, "tau_top"),
        "matched": signals(correlations, None, MATCHED, "tau"),
        "matched_gap": signals(correlations, None, MATCHED, "tau_gap"),
        "sign_errors": sign_errors(correlations, 1),
        "others_1": early(scores, "others", "1", judged),
        "others_2": early(scores, "others", "2", judged),
        "own_1": early(scores, "own", "1", names),
        "nasbench": nasbench(scores),
        "replays_one": replays(results, "accuracy", names),
        "replays_two": replays(results, "accuracy,flatness", names),
        "differences_one": differences(results, "accuracy", names),
        "samplers": samplers(read["samplers"]),
        "differences_two": differences(results, "accuracy,flatness", names),
    }
    for key, lines in parts.items():
        text = text.replace("{{" + key + "}}", "\n".join(lines).rstrip())
    text = text.replace("{{trials}}", str(results["trials"]))
    text = text.replace("{{studies}}", str(results["studies"]))
    text = text.replace("{{sampler_studies}}", str(read["samplers"]["studies"]))
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
