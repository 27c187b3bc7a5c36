"""The tables of the documentation that are made from the code and from recorded results.

    python scripts/docs_tables.py

Writes each table into the pages that have a line ``<!-- table: NAME -->`` for it, between that line
and ``<!-- end -->``: pages of docs/, and CONTRIBUTING.md. A test tells when one is not up to date.
"""

from __future__ import annotations

import ast
import csv
import inspect
import json
import math
import re
import statistics
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.analysis.frames import TRIAL_KEYS
from flatsearch.settings import settings_table
from flatsearch.signals.table import signals_table
from flatsearch.spaces.registry import load_space, space_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "scripts" / "results"
BLOCK = re.compile(r"(<!-- table: ([\w -]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def result(name: str) -> Any:
    """Return what a benchmark or an experiment has recorded."""
    return json.loads((RESULTS / f"{name}.json").read_text())


# What is not in the package; the order of the package is that of the import test.
AROUND = {
    "search_spaces": "One file a space; the first plug-in, by the same door as anyone's.",
    "examples": "Programs to begin with.",
    "docs": "The guide, the formulas, the evidence; see mkdocs.yml.",
    "scripts": "Set up and start, check, docs.",
    "scripts/experiments": "Recorded curves, replays, the evidence.",
    "scripts/benchmarks": "What the measure, a decision and a study with many workers cost.",
    "scripts/results": "What they have found, as JSON.",
    "tests": "Mirror the package; stand-ins in fakes, studies in cases.",
    "optunahub": "The pruner as a package of OptunaHub.",
}


def described(path: Path) -> str:
    """Return the first line of the description of a module or a package."""
    file = path / "__init__.py" if path.is_dir() else path
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def tree() -> str:
    """Return the folders and files of the repository, with what they are for."""
    order = re.search(r'LINES = """(.*?)"""', (ROOT / "tests/test_imports.py").read_text(), re.S)
    lines = ["flatsearch/"]
    for name in re.split(r"[,\s]+", order[1].strip()) if order else ():
        path = ROOT / "flatsearch" / name
        if path.is_dir():
            lines.append(f"  {name + '/':<12} {described(path)}")
            modules = " ".join(file.stem for file in sorted(path.glob("[!_]*.py")))
            indent = " " * 15
            lines += textwrap.wrap(modules, 96, initial_indent=indent, subsequent_indent=indent)
        else:
            lines.append(f"  {name + '.py':<12} {described(path.with_suffix('.py'))}")
    lines.append(f"  {'testing.py':<12} {described(ROOT / 'flatsearch/testing.py')}")
    lines += [f"{name + '/':<20} {what}" for name, what in AROUND.items()]
    return "```\n" + "\n".join(lines) + "\n```\n"


def pages() -> list[Path]:
    """Return the files that may have tables."""
    return [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def signals() -> str:
    """Return the signals that a trial can be judged by."""
    rows = signals_table()
    return markdown(rows[0], ([f"`{row.pop('signal')}`", *row.values()] for row in rows))


def spaces() -> str:
    """Return the search spaces with the first lines of their descriptions."""
    described = ((name, inspect.getdoc(load_space(name)) or "") for name in space_names())
    return markdown(
        ("name", "networks"), ([f"`{name}`", text.splitlines()[0]] for name, text in described)
    )


def ratio(row: dict[str, Any] | None, key: str = "over_forward") -> str:
    """Return how many forward passes something takes."""
    if row is None or "Unsuitable" in row.get("note", ""):
        return "-"
    if "note" in row:
        return str(row["note"])
    digits = 0 if row[key] >= 20 else 1
    error = row.get("trace_relative_error") or 0
    return f"{row[key]:.{digits}f}" + (f" ({error:.0%} off)" if error > 0.01 else "")


def measure(layers: str) -> Callable[[], str]:
    """Return a function for the table of what measuring costs."""

    def table() -> str:
        found = [row for row in result("measure-cpu")["rows"] if row["layers"] == layers]
        nets = list(dict.fromkeys(row["net"] for row in found))
        by = {(row["method"], row["net"]): row for row in found}
        ours = [by["flatsearch", net] for net in nets]
        rows = [["multiply-adds, the floor", *(ratio(row, "floor_over_forward") for row in ours)]]
        for method in dict.fromkeys(row["method"] for row in found):
            name = f"**{method}**" if method == "flatsearch" else method
            rows.append([name, *(ratio(by.get((method, net))) for net in nets)])
        return markdown(["", *nets], rows)

    return table


def decisions() -> str:
    """Return the milliseconds of a pruner's decision by the number of finished trials."""
    found = result("pruning-cpu")["decision_ms"]
    rows = [
        [name, *(f"{ms:.0f}" if ms >= 10 else f"{ms:.2g}" for ms in times.values())]
        for name, times in found.items()
    ]
    return markdown(["", *(f"{int(n):,}" for n in next(iter(found.values())))], rows)


def share(value: float) -> str:
    """Return a share of the time, or that it was not reached."""
    return f"{value:.2f}" if math.isfinite(value) else "never"


def replays() -> str:
    """Return how soon pruned studies are as good as unpruned ones, on the recorded curves."""
    names = (
        "median",
        "median, training loss",
        "successive halving, training loss",
        "hyperband",
        "calibrated",
        "calibrated, no flatness",
    )
    rows = []
    for table, entry in result("replays")["tables"].items():
        found = entry["pruners"]
        reached = [share(found[name]["time to the unpruned regret"][0]) for name in names]
        spent, regret = (
            found["calibrated"][f"{what} of the same trials"][0] for what in ("time", "regret")
        )
        unpruned = found["none"]["regret of the same trials"][0]
        rows.append([table, *reached, f"{spent:.2f}", f"{regret:.3g}", f"{unpruned:.3g}"])
    same = ("calibrated, same trials: time", "its regret", "unpruned regret")
    return markdown(("table and objectives", *names, *same), rows)


def fronts(least: str) -> Callable[[], str]:
    """Return the table of what is on fronts with a least accuracy."""

    def table() -> str:
        judged = result("fronts/judged")
        names = dict.fromkeys(
            label.rpartition(", ")[0] for found in judged.values() for label in found["definitions"]
        )
        rows = []
        for name in names:
            cells = []
            for found in judged.values():
                row = found["definitions"].get(f"{name}, {least}")
                cells.append(f"{row['points']:.1f}, {row['share_shippable']:.0%}" if row else "-")
            rows.append([f"`{name}`", *cells])
        return markdown(("objective", *(name.partition("/")[2] for name in judged)), rows)

    return table


def trial_columns() -> str:
    """Return the columns of `flatsearch.study_frame`."""
    others = {
        "accuracy, flatness, ...": "the objectives, and what was measured at the end",
        "architecture.NAME": "a value of the architecture",
        "recipe.NAME": "a setting that was searched with it (`--tune-recipe`)",
        "params.NAME": "Optuna's parameters, in studies of others",
    }
    return markdown(("column", "what"), ((f"`{k}`", v) for k, v in (TRIAL_KEYS | others).items()))


def bracketed(value: list[float | None]) -> str:
    """Return a value with its interval; "never" where it was not reached."""
    shown = ["never" if v is None else f"{v:.2f}" for v in value]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def schedule_shares(*kinds: str, of: str = "parking") -> Callable[[], str]:
    """Return a table of the epochs to the regret without pruning, of studies of some kinds.

    Args:
        kinds: Of which the rules are; with several of them the row of a rule says which.
        of: The file of results.
    """

    def table() -> str:
        names = [name for name in result(of)["found"][kinds[0]] if name != "mean of the judged"]
        tuned = ("fashion-plain", "cifar10-resnet")  # `TUNING` of scripts/experiments/tables.py
        names.sort(key=lambda name: name in tuned)
        head = ["rule; what it ranks by", "mean of the judged"]
        rows = []
        for kind in kinds:
            found = result(of)["found"][kind]
            which = f"{kind.split(', ')[-1]}: " if len(kinds) > 1 else ""
            rows += [
                [
                    which + rule,
                    bracketed(mean),
                    *(bracketed(found[name][rule]["share"]) for name in names),
                ]
                for rule, mean in found["mean of the judged"].items()
                if not which or rule != "nothing stopped"
            ]
        return markdown([*head, *(f"{n} (t)" if n in tuned else n for n in names)], rows)

    return table


def in_trials(of: str, kind: str, count: str, rule: str) -> tuple[float, float]:
    """Return the share of the epochs and how much larger the regret is, of the judged tables."""
    judged = ("cifar10-plain", "cifar10-recipes", "fashion-resnet")
    each = [result(of)["found"][kind][name][rule]["same trials"][count] for name in judged]
    share, more = (sum(e[what][0] for e in each) / len(each) for what in ("share", "more regret"))
    return share, more


def schedule_trials() -> str:
    """Return what rules do with the same numbers of trials, in the mean of the judged tables."""
    counts = [("whole", "20"), ("whole", "40"), ("whole", "100"), ("whole, 4 workers", "40")]
    points = {
        rule: [in_trials("parking", kind, count, rule) for kind, count in counts]
        for rule in result("parking")["found"]["whole"]["mean of the judged"]
    }
    rows = []
    for rule, own in points.items():
        row = [rule]
        for place, (spent, regret) in enumerate(own):
            others = [other[place] for other in points.values()]
            beaten = any(
                a <= spent and b <= regret and (a, b) != (spent, regret) for a, b in others
            )
            row.append(
                f"{'' if beaten else '**'}{spent:.2f}, {regret:+.2f}{'' if beaten else '**'}"
            )
        rows.append(row)
    head = [f"{count} trials" + kind.removeprefix("whole") for kind, count in counts]
    return markdown(["rule; what it ranks by", *head], rows)


def front_trials() -> str:
    """Return the same of two objectives, where regret is a share of the area of a front."""
    found, counts = result("parking-fronts")["found"], ("20", "40", "100")
    rows = []
    for kind in ("at once", "rounds"):
        for rule in found[f"whole, {kind}"]["mean of the judged"]:
            if rule != "nothing stopped":
                points = [
                    in_trials("parking-fronts", f"whole, {kind}", count, rule) for count in counts
                ]
                rows.append([f"{kind}: {rule}", *(f"{a:.2f}, {b:+.1f}%" for a, b in points)])
    return markdown(["rule; what it ranks by", *(f"{count} trials" for count in counts)], rows)


STORAGES = {
    "sqlite": "SQLite",
    "journal": "journal file",
    "postgres": "PostgreSQL",
    "grpc": "gRPC proxy before SQLite",
    "grpc-postgres": "gRPC proxy before PostgreSQL",
    "grpc-journal": "gRPC proxy before a journal file",
}


def storage_seconds(run: dict[str, Any]) -> float:
    """Return what a trial costs the process that serves the storage, or the file."""
    served = run["server_ms"] or run["client_ms"]
    return float(served) / 1000


def scaling() -> str:
    """What a trial costs a storage, by the number of workers."""
    rows = [
        [
            STORAGES[run["kind"]],
            str(run["workers"]),
            f"{run['trials_per_second']:.2f}",
            f"{1000 * storage_seconds(run):.0f} ms",
            f"{run['client_ms']:.0f} ms",
        ]
        for run in result("scaling")["runs"]
    ]
    return markdown(
        ["storage", "workers", "trials a second", "storage, a trial", "worker, a trial"], rows
    )


def carries() -> str:
    """The shortest trials that a storage carries, estimated."""
    runs = result("scaling")["runs"]
    rows = []
    for kind, name in STORAGES.items():
        known = [run for run in runs if run["kind"] == kind]
        if not known:
            continue
        each, base = statistics.linear_regression(
            [run["workers"] for run in known], [storage_seconds(run) for run in known]
        )
        # Noise must not make many workers cheaper than one.
        each, base = max(each, 0.0), max(base, 0.0)
        counts = (10, 100, 1000)
        rows.append([name, *(duration(2 * n * (base + each * n)) for n in counts)])
    return markdown(["storage", "10 workers", "100 workers", "1,000 workers"], rows)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def soak() -> str:
    """Whether memory and times stay the same over many trials."""
    rows = []
    for run in result("soak")["runs"]:
        cells = [
            f"{run[key][-9:][0]:.0f}, {run[key][-1]:.0f} {unit}"
            for key, unit in (("memory_mb", "MB"), ("decision_ms", "ms"), ("storage_cpu_ms", "ms"))
        ]
        verdict = run.get("verdict", {}).items()
        grow = [key.partition("_")[0] for key, said in verdict if "GROWS" in said]
        rate = f"{run['trials_per_second']:.1f}"
        size = [STORAGES[run["kind"]], str(run["workers"]), str(run["trials"]), rate]
        rows.append([*size, *cells, ", ".join(grow) or ("nothing" if verdict else "")])
    head = ["storage", "workers", "trials", "a second", "memory", "decisions", "storage", "grows"]
    return markdown(head, rows)


def parked_faults() -> str:
    """What killing workers costs while trials are parked and promoted."""
    keys = ("workers", "networks", "promoted", "stopped", "epochs", "epochs_lost", "most_files")
    rows = [
        [STORAGES[run["kind"]], *(str(run[key]) for key in keys), str(len(run["faults"]))]
        for run in result("parked-faults")["rounds"]
    ]
    head = ["storage", "workers", "networks", "promotions", "killed or stopped", "epochs"]
    return markdown([*head, "epochs lost", "files at most", "faults"], rows)


def samplers() -> str:
    """Return what samplers propose and find with parked trials, and without any."""
    names = ["tpe", "nsga2", "gp", "random"]
    rows = [
        [
            row["sampler"],
            row["mode"],
            str(row["studies"]),
            *(f"{row[name][0]:.2f} ± {row[name][1]:.2f}" for name in ("proposed", "found")),
            f"{row['epochs'][0]:.2f}",
        ]
        for row in sorted(result("samplers-parked"), key=lambda row: names.index(row["sampler"]))
    ]
    head = (
        "sampler",
        "networks are",
        "studies",
        "best proposed",
        "best trained to the end",
        "epochs",
    )
    return markdown(head, rows)


def best_by_the_clock(curve: str, seconds: int = 360) -> list[float]:
    """Return the best accuracy so far at every second, from pairs of seconds and a new best."""
    steps = [(0.0, 0.1), *json.loads(curve)]
    return [max(best for at, best in steps if at <= second) for second in range(seconds + 1)]


def equal_time() -> str:
    """Return what pruners find in the same time, beside no pruner, paired by seed."""
    with (RESULTS / "equal-time.csv").open(newline="") as file:
        runs = {(row["pruner"], int(row["seed"])): row for row in csv.DictReader(file)}
    pruners = {pruner for pruner, _ in runs}
    seeds = {seed for _, seed in runs if all((pruner, seed) in runs for pruner in pruners)}

    def values(pruner: str, column: str) -> list[float]:
        own = [runs[pruner, seed] for seed in sorted(seeds)]
        if column == "area":  # of the best accuracy so far; a tenth, guessing, before the first
            return [100 * statistics.mean(best_by_the_clock(row["curve"])) for row in own]
        return [100 * float(row[column]) for row in own]

    def cells(pruner: str, column: str) -> tuple[str, str]:
        own = values(pruner, column)
        more = [a - b for a, b in zip(own, values("none", column), strict=True)]
        error = statistics.stdev(more) / math.sqrt(len(more))
        apart = "" if pruner == "none" else f"{statistics.mean(more):+.1f} ± {error:.1f}"
        return f"{statistics.mean(own):.1f}", apart

    rows: list[list[str]] = []
    for pruner in sorted(pruners, key=lambda name: (-sum(values(name, "validation")), name)):
        counts = [values(pruner, column) for column in ("begun", "finished")]
        found = (cells(pruner, column) for column in ("validation", "area", "test"))
        own = (f"{statistics.mean(count) / 100:.0f}" for count in counts)
        rows.append([pruner, *own, *(cell for pair in found for cell in pair)])
    head = [
        "pruner", "begun", "finished", "validation", "less none's", "mean over the time",
        "less none's", "test", "less none's",
    ]  # fmt: skip
    return markdown(head, rows)


WAYS = {
    "plain": "Optuna, a `DataLoader`, an eager loop",
    "tuned": "the same, bfloat16, channels last, workers",
    "flatsearch": "flatsearch",
}


# How the files of the search benchmark's results call a processor.
PROCESSORS = {"avx2": "AVX2", "avx512": "AVX-512, bfloat16"}


def search_runs() -> list[tuple[list[str], dict[str, Any]]]:
    """Return data and processor of every run of the search benchmark on a CPU, and its summary."""
    runs = []
    for processor, words in PROCESSORS.items():
        for file in sorted(RESULTS.glob(f"search-*-{processor}.json")):
            data = file.stem.split("-")[1]
            runs.append(([data, words], json.loads(file.read_text())["summary"]))
    return runs


def search_speed() -> str:
    """Return how many candidates plain loops and flatsearch train in the same processor time."""
    rows = []
    for where, summary in search_runs():
        for way in [way for way in WAYS if way in summary]:
            found, words = summary[way], WAYS[way]
            more, error = found["accuracy_minus_plain"], found["standard_error"]
            rows.append([
                *where,
                words,
                f"{found['candidates_per_processor_hour']:.0f}",
                f"{found['over_plain']:.2f}",
                f"{100 * found['accuracy']:.1f}",
                "" if way == "plain" else f"{100 * more:+.1f} ± {100 * error:.1f}",
            ])
    head = ["data", "processor", "loop", "an hour", "over plain", "accuracy", "less plain's"]
    return markdown(head, rows)


def two_cores() -> str:
    """Return how many candidates plain loops and flatsearch train in an hour on two cores."""
    rows = []
    for file in sorted(RESULTS.glob("two-cores-*.json")):
        summary = json.loads(file.read_text())["summary"]
        for way in [way for way in WAYS if way in summary]:
            found = summary[way]
            hour, over = found["candidates_per_hour"], found["over_plain_wall"]
            rows.append([file.stem.split("-")[2], WAYS[way], f"{hour:.0f}", f"{over:.2f}"])
    return markdown(["data", "loop", "an hour", "over plain"], rows)


def search_phases() -> str:
    """Return where the processor time of a candidate of flatsearch goes."""
    rows = []
    names = ["build", "train", "validate", "measure", "storage", "rest"]
    for where, summary in search_runs():
        phases = summary["phases"]
        whole = sum(phases[name] for name in names)
        shares = (f"{phases[name] / whole:.1%}" for name in names)
        rows.append([*where, f"{whole:.1f} s", *shares])
    return markdown(["data", "processor", "a candidate", *names], rows)


def gpu_search() -> str:
    """Return the candidates that plain loops and flatsearch train in an hour on a GPU."""
    summary = result("gpu")["search"]["summary"]
    rows = [
        [
            WAYS[way],
            f"{found['candidates_per_hour']:.0f}",
            f"{found['over_plain_wall']:.1f}",
            f"{summary['flatsearch']['candidates_per_hour'] / found['candidates_per_hour']:.1f}",
            f"{100 * found['accuracy']:.1f}",
        ]
        for way, found in summary.items()
    ]
    return markdown(["loop", "an hour", "over plain", "flatsearch over it", "accuracy"], rows)


def gpu_steps() -> str:
    """Return the images a second in training, with and without graphs."""
    found = result("gpu")["step"]["rows"]
    by_way: dict[tuple[str, str, bool], dict[str, float]] = {}
    for row in found:
        way = (row["precision"], row["memory_format"], row["graphs"])
        by_way.setdefault(way, {})[row["candidate"]] = row["images_per_second"]
    rows = [
        [precision, layout, "yes" if graphs else "no", f"{r['good']:,.0f}", f"{r['drawn']:,.0f}"]
        for (precision, layout, graphs), r in by_way.items()
    ]
    return markdown(["precision", "layout", "graphs", "a wide candidate", "a narrow one"], rows)


def gpu_measure() -> str:
    """Return what the measure takes on a GPU, beside its peers."""
    rows = []
    for row in result("gpu")["measure"]["rows"]:
        forward = row["forward_seconds"]
        times = (forward, row["floor"] * forward, row["first"] * forward, row["again"] * forward)
        peers = [row["torch.func vmap(jacrev)"], row["BackPACK DiagGGNExact"]]
        rows.append([
            row["net"],
            row["layers"],
            *(f"{1000 * seconds:.3g}" for seconds in times),
            *("" if isinstance(peer, str) else f"{1000 * peer['seconds']:.3g}" for peer in peers),
        ])
    images = max(peer["images"] for peer in peers if not isinstance(peer, str))
    others = (f"{name}, {images} images" for name in ("torch.func", "BackPACK"))
    return markdown(["network", "layers", "forward", "floor", "first", "again", *others], rows)


TABLES: dict[str, Callable[[], str]] = {
    "trial columns": trial_columns,
    "fronts guessing": fronts("guessing"),
    "fronts relative": fronts("0.9"),
    "tree": tree,
    "settings": settings_table,
    "signals": signals,
    "spaces": spaces,
    "measure last": measure("last"),
    "measure all": measure("all"),
    "decisions": decisions,
    "replays": replays,
    "schedules halves": schedule_shares("halves"),
    "schedules time": schedule_shares("halves, by time"),
    "schedules whole": schedule_shares("whole"),
    "schedules workers": schedule_shares("whole, 4 workers"),
    "schedules TPE": schedule_shares("whole, in TPE's order"),
    "schedules two objectives": schedule_shares("halves, 2 objectives"),
    "schedules least accuracy": schedule_shares("halves, 2 objectives, least accuracy"),
    "schedules trials": schedule_trials,
    "schedules fronts": schedule_shares("halves, at once", "halves, rounds", of="parking-fronts"),
    "schedules fronts whole": schedule_shares(
        "whole, at once", "whole, rounds", of="parking-fronts"
    ),
    "schedules fronts time": schedule_shares("halves by time, at once", of="parking-fronts"),
    "schedules fronts trials": front_trials,
    "scaling": scaling,
    "carries": carries,
    "soak": soak,
    "samplers": samplers,
    "equal time": equal_time,
    "search speed": search_speed,
    "gpu search": gpu_search,
    "gpu steps": gpu_steps,
    "gpu measure": gpu_measure,
    "search phases": search_phases,
    "two cores": two_cores,
    "parked faults": parked_faults,
}


def filled(text: str) -> str:
    """Return a page with its tables as they are now."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n", text)


if __name__ == "__main__":
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)
            print(f"updated {page.relative_to(ROOT)}")
