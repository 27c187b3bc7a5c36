"""The page docs/generalisation.md and its figure, from the numbers of `analyse.py`."""

from __future__ import annotations

from pathlib import Path

from design import FACTORS

__all__ = ["DOCS", "verdict", "write"]

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEMPLATE = Path(__file__).with_name("page.md.in")
TITLES = {"fashion": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}
NETWORKS, LEVEL, MARGIN, LITTLE = 384, 0.05, 0.3, 0.2


def number(values: list | None, digits: int = 2) -> str:
    """Return a value with its interval."""
    if not values or values[0] is None:
        return "-"
    value, low, high = (f"{v:+.{digits}f}" for v in values)
    return f"{value} [{low}, {high}]"


def rows(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def _both(names: list[str]) -> str:
    return " and ".join(TITLES[name] for name in names)


def verdict(results: dict) -> str:
    """Return the first paragraph: what the protocol's table of conclusions says."""
    tested = {
        name: found["hypotheses"] for name, found in results.items() if found.get("hypotheses")
    }
    count = {name: found["networks"]["rows"] for name, found in results.items()}
    partial = len(count) < len(TITLES) or any(n < NETWORKS for n in count.values())
    text = ""
    if partial:
        of = " and ".join(f"{n} of {NETWORKS} networks on {TITLES[k]}" for k, n in count.items())
        text = f"**Partial and provisional: {of or 'no network yet'}.** "
    if len(tested) < len(TITLES):
        return text + "Not answered: nothing is tested with fewer than 48 configurations of each."
    text += _first(tested) + " " + _second(tested) + " " + _third(tested)
    ends = [
        found["end"]["nu all"]["given all factors"] for found in results.values() if "end" in found
    ]
    if ends:
        text += f" Given all ten factors of the design it is {', '.join(map(number, ends))}."
    for rival in next(iter(tested.values()))["rivals"]:
        better = [k for k, found in tested.items() if found["rivals"][rival][1] > 0]
        if better:
            leads = ", ".join(number(tested[k]["rivals"][rival]) for k in better)
            text += f" {rival} ranks the test error better than nu on {_both(better)} ({leads})."
    return text


def _first(tested: dict) -> str:
    """Say what came out of H1."""
    found = {name: tests["H1"] for name, tests in tested.items()}
    shown = ", ".join(f"{TITLES[k]} {number(t['estimate'])}" for k, t in found.items())
    sure = {k: t["estimate"][0] for k, t in found.items() if t["adjusted"] < LEVEL}
    given = "given size, depth and training loss the rank correlation of nu with the test error is"
    if any(value < 0 for value in sure.values()):
        wrong = [k for k, value in sure.items() if value < 0]
        answer = f"No: it has the wrong sign on {_both(wrong)};"
    elif len(sure) == len(found):
        answer = "Yes, nu tracks generalisation, as strongly as these correlations are:"
    elif sure:
        answer = f"On one of two data sets, {_both(list(sure))}:"
    elif all(abs(v) < LITTLE for t in found.values() for v in t["estimate"][1:]):
        answer = "No, or too little to use:"
    else:
        answer = "Not shown:"
    return f"{answer} {given} {shown}."


def _second(tested: dict) -> str:
    """Say what came out of H2."""
    found = {name: tests["H2"] for name, tests in tested.items()}
    sure = {k: t["estimate"][0] for k, t in found.items() if t["adjusted"] < LEVEL}
    shown = ", ".join(number(t["estimate"]) for t in found.values())
    if not sure:
        return f"That nu does better than kappa, or worse, is not shown (difference {shown})."
    parts = (f"{'nu' if v > 0 else 'kappa'} does better on {TITLES[k]}" for k, v in sure.items())
    return f"Of nu and kappa, {' and '.join(parts)} (difference {shown})."


def _third(tested: dict) -> str:
    """Say what came out of H3."""
    found = {name: tests["H3"] for name, tests in tested.items()}
    shown = ", ".join(f"{TITLES[k]} {number(t['estimate'])}" for k, t in found.items())
    good = all(t["estimate"][2] < MARGIN for t in found.values())
    answer = "costs no more than" if good else "is not shown to cost no more than"
    text = (
        f"Choosing one of 20 finished networks by nu, without validation images, {answer} choosing"
        f" by 50 validation images (points of test accuracy more: {shown})"
    )
    dearer = [k for k, t in found.items() if t["adjusted"] < LEVEL and t["estimate"][0] > 0]
    return f"{text}; on {_both(dearer)} it costs more." if dearer and not good else f"{text}."


def _side_by_side(results: dict, key: str, columns: dict[str, str]) -> str:
    """Return a table of signals with columns for each data set."""
    tables = {name: found[key] for name, found in results.items() if found.get(key)}
    names = list(dict.fromkeys(n for t in tables.values() for n in t))
    header = ["signal", *(f"{TITLES[k]}: {text}" for k in tables for text in columns.values())]
    body = [
        [n, *(number(t.get(n, {}).get(c)) for t in tables.values() for c in columns)] for n in names
    ]
    return rows(header, body)


def _networks(results: dict) -> str:
    body = []
    for name, found in results.items():
        n = found["networks"]
        error = " / ".join(f"{100 * v:.1f}" for v in n["error"]) if n["error"] else "-"
        ceiling = "-" if n["ceiling"] is None else f"{n['ceiling']:+.2f}"
        hours = f"{n['seconds'] / 3600:.1f}"
        body.append([
            TITLES[name],
            str(n["rows"]),
            str(n["finished"]),
            str(n["diverged"]),
            str(n["configurations"]),
            error,
            ceiling,
            hours,
        ])
    return rows(
        [
            "data",
            "networks",
            "finished",
            "diverged",
            "configurations",
            "test error, %: least / median / largest",
            "tau of it between seeds",
            "processor hours",
        ],
        body,
    )


def _unfinished(results: dict) -> str:
    body = [
        [
            factor,
            *(
                ", ".join(
                    f"{level}: {n}" for level, n in found["networks"]["unfinished"][factor].items()
                )
                for found in results.values()
            ),
        ]
        for factor in FACTORS
    ]
    return rows(["factor", *(TITLES[k] for k in results)], body)


def _hypotheses(results: dict) -> str:
    texts = {
        "H1": "nu given size, depth, loss",
        "H2": "nu less kappa, given the same",
        "H3": "points that choosing by nu costs more than 50 validation images",
    }
    body = []
    for name, found in results.items():
        for key, text in texts.items():
            test = found.get("hypotheses", {}).get(key)
            if test:
                p = [f"{test[k]:.4f}" for k in ("p", "adjusted")]
                body.append([key, TITLES[name], text, number(test["estimate"]), *p])
    return rows(["", "data", "what", "estimate", "p", "Holm"], body)


def _granulated(results: dict) -> str:
    body = []
    for name, found in results.items():
        for signal, row in found.get("granulated", {}).items():
            cells = [TITLES[name], signal, number(row.get("psi")), f"{row['information']:.3f}"]
            for key in ("worst", "worst of all"):
                w = row.get(key)
                cells.append(f"{w['environment']}: {w['error']:.2f} of {w['pairs']}" if w else "-")
            body.append(cells)
    return rows(
        [
            "data",
            "signal",
            "psi",
            "conditional information",
            "largest sign error, a factor",
            "with another factor fixed",
        ],
        body,
    )


def _factors(results: dict) -> str:
    body = [
        [TITLES[name], signal, *(number(v) for v in row["factors"].values())]
        for name, found in results.items()
        for signal, row in found.get("granulated", {}).items()
        if "factors" in row
    ]
    return rows(["data", "signal", *FACTORS], body)


def _choosing(results: dict, key: str) -> str:
    tables = {name: found[key] for name, found in results.items() if found.get(key)}
    names = list(next(iter(tables.values()), {}))
    body = [[n, *(number(t[n]) for t in tables.values())] for n in names]
    return rows(["the smallest of 20 by", *(TITLES[k] for k in tables)], body)


def _probes(results: dict) -> str:
    body = []
    for name, found in results.items():
        probes = found.get("probes", {})
        for signal in ("trace all", "nu all"):
            for count, row in probes.get(signal, {}).items():
                exact = "1" if count == "exact" else f"{row['exact']:.3f}"
                each = probes["seconds"]
                time = each["flatness"] if count == "exact" else each["probes"] * int(count)
                body.append([
                    TITLES[name],
                    signal,
                    count,
                    exact,
                    number(row["error"]),
                    f"{time:.2f}",
                ])
    return rows(
        [
            "data",
            "number",
            "probes",
            "tau with the exact number",
            "tau with the test error",
            "seconds",
        ],
        body,
    )


def _rescaled(results: dict) -> str:
    tables = {name: found["rescaled"] for name, found in results.items() if found.get("rescaled")}
    names = list(next(iter(tables.values()), {}))
    body = [
        [
            n,
            *(
                f"{t[n]['largest']:.2g}, {t[n]['tau']:+.2f}" if t[n]["tau"] is not None else "-"
                for t in tables.values()
            ),
        ]
        for n in names
    ]
    header = ["signal", *(f"{TITLES[k]}: largest relative change, tau" for k in tables)]
    return rows(header, body)


def draw(results: dict, file: Path) -> None:
    """Draw tau and the partial correlation of H1 of every signal, a panel per data set."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "flatsearch"
    tables = {name: found["end"] for name, found in results.items() if found.get("end")}
    if not tables:
        return
    names = sorted({n for t in tables.values() for n in t}, reverse=True)
    figure = Figure(figsize=(4.5 * len(tables) + 1, 0.24 * len(names) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    shown = {
        "tau test error": ("#cc3311", 0.13, "tau with the test error"),
        "given loss, size, depth": ("#4477aa", -0.13, "rank correlation given loss, size, depth"),
    }
    for panel, (dataset, found) in zip(panels, tables.items(), strict=True):
        for key, (colour, shift, label) in shown.items():
            known = [
                (i, found[n][key])
                for i, n in enumerate(names)
                if found.get(n, {}).get(key, [None])[0] is not None
            ]
            panel.hlines(
                [i + shift for i, _ in known],
                [v[1] for _, v in known],
                [v[2] for _, v in known],
                color=colour,
                lw=1,
            )
            panel.plot(
                [v[0] for _, v in known],
                [i + shift for i, _ in known],
                "o",
                color=colour,
                ms=3,
                label=label,
            )
        rows_ = results[dataset]["networks"]["rows"]
        panel.set(title=f"{TITLES[dataset]} ({rows_} networks)", yticks=range(len(names)))
        panel.set_yticklabels(names, fontsize=8)
        panel.axvline(0, color="black", lw=0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(file, metadata={"Date": None})


def write(results: dict, docs: Path) -> None:
    """Write the page and its figure into a folder."""
    four = {
        "tau test error": "tau",
        "given loss": "given loss",
        "given loss, size, depth": "given loss, size, depth",
        "given all factors": "given all factors",
    }
    gaps = {
        "tau accuracy gap": "accuracy gap",
        "tau loss gap": "loss gap",
        "given nothing": "rho",
    }
    two = {key: four[key] for key in ("tau test error", "given loss, size, depth")}
    half = {k: {**found, **found.get("checkpoints", {})} for k, found in results.items()}
    parts = {
        "verdict": verdict(results),
        "networks": _networks(results),
        "unfinished": _unfinished(results),
        "hypotheses": _hypotheses(results),
        "end": _side_by_side(results, "end", four),
        "gaps": _side_by_side(results, "end", gaps),
        "all": _side_by_side(results, "end, unfinished too", two),
        "half": _side_by_side(half, "0.5", two),
        "tenth": _side_by_side(half, "0.1", two),
        "brief": _side_by_side(results, "brief", two),
        "granulated": _granulated(results),
        "factors": _factors(results),
        "choosing": _choosing(results, "choosing"),
        "choosing_brief": _choosing(results, "choosing, brief"),
        "probes": _probes(results),
        "rescaled": _rescaled(results),
    }
    text = TEMPLATE.read_text()
    for key, value in parts.items():
        text = text.replace("{{" + key + "}}", value)
    (docs / "generalisation.md").write_text(text)
    draw(results, docs / "generalisation.svg")
