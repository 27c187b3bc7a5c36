"""The experiment on generalisation: its design, its statistics on known answers, its rows."""

from __future__ import annotations

import copy
import csv
import gzip
import math
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import flatsearch

SCRIPTS = Path(__file__).parents[2] / "scripts" / "experiments" / "generalisation"
MODULES = (
    "design",
    "images",
    "networks",
    "training",
    "signals",
    "run",
    "ranks",
    "table",
    "analyse",
    "choosing",
    "page",
)


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two folders with the same images of noise, in another order."""
    generator, folders = np.random.default_rng(0), []
    parts = {"train": 1520, "t10k": 50}
    pixels = {k: generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for k, n in parts.items()}
    classes = {k: (np.arange(n) % 10).astype(np.uint8) for k, n in parts.items()}
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        for part, n in parts.items():
            order = np.arange(n) if name == "one" else generator.permutation(n)
            for kind, values in (("images-idx3", pixels[part]), ("labels-idx1", classes[part])):
                shape = np.array(values.shape, ">i4").tobytes()
                content = bytes([0, 0, 8, values.ndim]) + shape + values[order].tobytes()
                (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        folders.append(folder)
    return folders


def test_design_is_balanced_at_any_time() -> None:
    import design
    import ranks

    every, order = design.configurations(), design.order()
    signs = np.array([c.signs for c in every])
    assert len({c.signs for c in every}) == 128
    assert [c.index for c in every] == list(range(128))
    assert len(set(order)) == len(order) == 384
    running = np.cumsum([c.signs for c, _ in order], axis=0)
    assert not running[15::16].any()
    assert np.abs(np.triu(signs.T @ signs, 1)).max() / 128 <= 0.25
    first, _, factor = ranks.neighbours(signs)
    assert len(first) == 192
    assert set(np.bincount(factor)) == {16, 24}
    # No main effect is mixed up with the product of two factors.
    products = np.column_stack([signs[:, i] * signs[:, j] for i, j in combinations(range(10), 2)])
    assert not (signs.T @ products).any()


def test_images_do_not_depend_on_their_order(fashion: list[Path]) -> None:
    import images

    one, other = (images.load("fashion", folder, per_class=4) for folder in fashion)
    assert one.digest == other.digest
    assert one.train[0].shape == (40, 1, 14, 14)
    assert one.train[1].bincount().tolist() == [4] * 10
    assert len(one.validation[1]) == 1000
    assert len(one.test[1]) == 50
    assert float(one.train[0].mean()) == pytest.approx(0, abs=1e-5)
    held_out = {x.numpy().tobytes() for x in one.validation[0]}
    assert not held_out & {x.numpy().tobytes() for x in one.train[0]}
    assert images.load("fashion", fashion[0], per_class=4, first=1).digest != one.digest


def test_jpeg_folders_are_read(tmp_path: Path) -> None:
    import images
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, each in (("train", 101), ("test", 2)):
        for name in "abcdefghij":
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(each):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{index}.jpg")
    found = images.load("cifar10", tmp_path, per_class=1)
    assert found.train[0].shape == (10, 3, 16, 16)
    # In another layout of memory the same network would not be proven piecewise linear.
    assert found.train[0].is_contiguous()
    assert found.test[1].bincount().tolist() == [2] * 10


def test_label_noise() -> None:
    import images

    y = torch.arange(10).repeat(20)
    noisy = images.with_noise(y, 0.1, seed=1)
    assert int((noisy != y).sum()) == 20
    assert 0 <= int(noisy.min()) <= int(noisy.max()) <= 9
    assert torch.equal(noisy, images.with_noise(y, 0.1, seed=1))
    assert torch.equal(y, images.with_noise(y, 0.0, seed=1))


@pytest.fixture
def trained(fashion: list[Path]) -> Any:
    """Return a network after two epochs, its images and where it started."""
    import images
    import networks
    import training

    x, y = images.load("fashion", fashion[0], per_class=4).train
    torch.manual_seed(0)
    net = networks.build("residual", 4, 5, 1)
    start = [w.detach().clone() for w in training.weights(net)]
    levels = {
        "optimiser": "sgd",
        "learning_rate": "low",
        "weight_decay": "some",
        "batch_size": 16,
        "augmentation": "mirror",
        "sam": "yes",
    }
    losses = [loss for _, loss, _ in training.train(net, x, y, levels, 0, 2)]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    return net, x, y, start


def test_weight_noise_has_the_size_of_its_filter(trained: Any) -> None:
    import signals

    for w in signals.kernels(trained[0]):
        (noise,) = signals._noise_sizes([w], [torch.ones_like(w)])
        assert torch.allclose(noise.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))


def test_signals(trained: Any) -> None:
    import signals

    net, x, y, start = trained
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = signals.measure(net, x, y, start, 0) | signals.costly(net, x, y, 0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert found.keys() >= {*signals.SIGNALS, *signals.COSTLY}
    exact = flatsearch.relative_flatness(net, (x, y), layers="all")
    for name, value in (
        ("kappa_all", exact.relative_flatness),
        ("trace_all", exact.hessian_trace),
        ("nu_all", exact.nu),
    ):
        assert found[name] == pytest.approx(value, rel=1e-4)
    last = flatsearch.relative_flatness(net, (x, y), normalize="input")
    assert found["kappa_input_last"] == pytest.approx(last.relative_flatness, rel=1e-4)
    # The probes' means, within four standard errors of the numbers that they estimate.
    for name in ("trace", "nu"):
        probes = np.array(found[f"{name}_probes"].split(), dtype=float)
        error = probes.std() / math.sqrt(len(probes))
        assert len(probes) >= 50
        assert abs(probes.mean() - found[f"{name}_all"]) < 4 * error
    assert found["sam"] > 0
    assert found["adaptive_sam"] > 0
    assert found["distance"] > 0
    assert found["margin"] * found["normalised_margin"] > 0


def test_largest_eigenvalue_and_path_norm_by_hand() -> None:
    import networks
    import signals
    import training

    torch.manual_seed(0)
    net = networks.build("plain", 1, 5, 1).eval()
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6)
    wanted = training.weights(net)
    gradient = torch.autograd.grad(signals._loss(net, x, y), wanted, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    rows = [torch.autograd.grad(v, wanted, retain_graph=True) for v in flat]
    hessian = torch.stack([torch.cat([p.flatten() for p in row]) for row in rows])
    largest = torch.linalg.eigvalsh(hessian.double()).max()
    assert signals.largest_eigenvalue(net, x, y, 0) == pytest.approx(float(largest), rel=0.02)
    # One input, one path: the product of the squares.
    chain = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 1, bias=False),
        torch.nn.BatchNorm2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(1, 1, bias=False),
    )
    with torch.no_grad():
        chain[0].weight.fill_(2), chain[1].weight.fill_(3), chain[3].weight.fill_(-5)
        chain[1].running_var.fill_(4 - chain[1].eps)
    assert signals.log_path_norm(chain, 1, 1) == pytest.approx(math.log((2 * 3 / 2 * 5) ** 2))


def test_rescaling_moves_the_trace_alone(trained: Any) -> None:
    import signals

    net, x, y, start = trained
    other = signals.rescaled(net, 1)
    assert torch.allclose(net(x), other(x), atol=1e-4)
    before, after = (signals.measure(n, x, y, start, 0) for n in (net, other))
    for name in ("kappa_last", "kappa_all", "nu_last", "nu_all", "adaptive_sam", "log_path_norm"):
        assert after[name] == pytest.approx(before[name], rel=1e-3), name
    for name in ("trace_last", "trace_all", "weight_norm", "sam"):
        assert after[name] != pytest.approx(before[name], rel=0.05), name


def test_rows_are_the_same_again_and_outlive_a_kill(
    fashion: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import design
    import images
    import run
    import signals

    monkeypatch.setattr(signals, "PROBES", {"trace_probes": 10, "nu_probes": 10})

    found = images.load("fashion", fashion[0], per_class=4)
    one = next(c for c in design.configurations() if c.levels["sam"] == "yes")
    row, again = (run.run(one, 2, found, limit=2) for _ in range(2))
    same = [c for c in run.COLUMNS if "seconds" not in c]
    assert {c: row.get(c) for c in same} == {c: again.get(c) for c in same}
    assert set(row) <= set(run.COLUMNS)
    assert row["status"] == "limit"
    assert row["epochs"] == row["epoch@end"] == "2"
    assert row["kind"] == "hessian"
    assert len(row["validation_hits@end"].split()) == images.GROUPS
    other = run.run(one, 1, found, limit=2)
    assert other["loss@end"] != row["loss@end"]
    file = tmp_path / "fashion.csv"
    run.append(file, row)
    run.append(file, other)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[-100:-1])  # killed while it wrote
    assert [r["seed"] for r in run.recorded(file)] == ["2", "1"]
    assert file.read_bytes() == whole


def test_the_command_goes_on_where_it_was(
    fashion: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import design
    import run

    def quick(configuration: Any, seed: int, images: Any) -> dict:
        row = dict.fromkeys(run.COLUMNS, "1")
        return row | {"configuration": str(configuration.index), "seed": str(seed)}

    monkeypatch.setattr(run, "run", quick)
    arguments = [
        "run.py",
        "--dataset",
        "fashion",
        "--data",
        str(fashion[0]),
        "--out",
        str(tmp_path),
    ]
    for count in (2, 1):
        monkeypatch.setattr(sys, "argv", [*arguments, "--networks", str(count)])
        run.main()
    rows = list(csv.DictReader((tmp_path / "fashion.csv").open()))
    have = [(int(row["configuration"]), int(row["seed"])) for row in rows]
    assert have == [(c.index, seed) for c, seed in design.order()[:3]]
    only = ["--only", rows[1]["configuration"], "--seed", "0"]
    monkeypatch.setattr(sys, "argv", [*arguments, *only])
    run.main()
    assert "0 of " in capsys.readouterr().out
    assert len(run.recorded(tmp_path / "fashion.csv")) == 3
    torch.use_deterministic_algorithms(False)


def test_partial_correlation() -> None:
    import ranks

    generator = np.random.default_rng(0)
    z, noise, other = generator.normal(size=(3, 300))
    weights = ranks.resample(300, 200)
    # Both follow z, and nothing else: nothing is left given z.
    x, y = z + 0.3 * noise, z + 0.3 * other
    plain = ranks.Partial(y, np.empty((300, 0)), weights)
    assert plain(x)[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    low, high = ranks.interval(ranks.Partial(y, z[:, None], weights)(x))[1:]
    assert low < 0 < high
    # x decides y beside z, however often z is given.
    found = ranks.Partial(z + noise, np.column_stack([z, z]), weights)(noise)
    assert ranks.interval(found)[1] > 0.8
    assert ranks.probability(found) == pytest.approx(2 / 201)
    assert math.isnan(ranks.Partial(y, z[:, None], weights[:1])(z)[0])
    # Twice the weight is as good as rows that are there twice.
    rows = slice(50)
    double = ranks.Partial(y[rows], other[rows, None], np.full((1, 50), 2.0))(x[rows])
    twice = [np.tile(v[rows], 2) for v in (x, y, other)]
    again = ranks.Partial(twice[1], twice[2][:, None], np.ones((1, 100)))(twice[0])
    assert double == pytest.approx(again)


def test_psi_information_and_sign_errors() -> None:
    import design
    import ranks

    signs = np.array([c.signs for c in design.configurations()])
    generator = np.random.default_rng(0)
    error = signs @ generator.normal(size=10) + 0.01 * generator.normal(size=128)
    weights = ranks.resample(128, 20)
    mean, factors = ranks.psi(error, error, signs, weights)
    assert mean[0] == 1
    assert np.nanmin(factors) == 1
    assert ranks.psi(-error, error, signs, weights)[0][0] == -1
    # Right about nine factors, wrong about the first: .8 on the mean, found as the worst.
    sign = -np.sign(ranks.psi(signs[:, 0], error, signs, weights)[1][0, 0])
    lies = error + sign * 100 * signs[:, 0]
    mean, factors = ranks.psi(lies, error, signs, weights)
    assert mean[0] == pytest.approx(0.8)
    assert factors[0, 0] == -1
    found = ranks.sign_errors(lies[None], error[None], signs, 0.0)
    assert found[0, -1, 0][0] == 1
    assert all(share == 0 for (f, _, _), (share, _) in found.items() if f)
    assert not ranks.sign_errors(lies[None], error[None], signs, 1e9)
    assert ranks.conditional_information(error, error, signs) == pytest.approx(1)
    assert ranks.conditional_information(generator.random(128), error, signs) < 0.05
    # What only knows the first factor knows nothing given it.
    assert ranks.conditional_information(signs[:, 0] + 0.0, error, signs) == pytest.approx(0)


def test_holm() -> None:
    import ranks

    assert ranks.holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert ranks.holm([]) == []


def test_regret() -> None:
    import ranks

    generator = np.random.default_rng(0)
    outcome = generator.random((3, 40))
    outcome[2, 5:] = np.nan
    criteria = {
        "best": lambda chosen, _: -outcome.ravel()[chosen],
        "worst": lambda chosen, _: outcome.ravel()[chosen],
        "random": lambda chosen, generator: generator.random(chosen.shape),
    }
    found = ranks.regrets(criteria, outcome, ranks.resample(40, 10))
    assert not found["best"].any()
    assert (found["random"] > 0.2).all()
    assert (found["worst"] > found["random"]).all()
    few = np.zeros((1, 40))
    few[0, :9] = 1
    assert np.isnan(ranks.regrets(criteria, outcome[:1], few)["best"]).all()


def made(of_nu: float, seed: int, configurations: int = 128) -> dict:
    """Return rows of finished networks whose test error follows nu, size, depth and chance."""
    import design
    import run
    import signals

    generator, rows = np.random.default_rng(seed), {}
    for c in design.configurations()[:configurations]:
        size, own = 1000 * c.levels["width"] * c.levels["depth"], generator.normal(size=3)
        for number in design.SEEDS:
            row = dict.fromkeys(run.COLUMNS, "")
            nu = math.exp(own[0] + 0.1 * generator.normal() - 0.2 * c.signs[1])
            error = 0.4 + 0.02 * (of_nu * math.log(nu) + own[1] - 0.5 * c.signs[1])
            error += 0.002 * generator.normal()
            row |= {
                "configuration": str(c.index),
                "seed": str(number),
                "status": "done",
                "parameters": str(size),
            }
            for checkpoint in run.CHECKPOINTS:
                for name in [*run.SCORES, *signals.SIGNALS]:
                    row[f"{name}@{checkpoint}"] = f"{abs(generator.normal()) + 0.1:.6g}"
                hits = generator.binomial(25, 1 - error, 40)
                row |= {
                    f"layers@{checkpoint}": "1:2:3:4 2:3:4:5 1:1:1:1",
                    f"loss@{checkpoint}": f"{0.005 + 0.001 * generator.random():.6g}",
                    f"accuracy@{checkpoint}": "1.0",
                    f"test_accuracy@{checkpoint}": f"{1 - error}",
                    f"nu_all@{checkpoint}": f"{nu}",
                    f"kappa_all@{checkpoint}": f"{math.exp(own[2])}",
                    f"validation_hits@{checkpoint}": " ".join(map(str, hits)),
                    f"validation_losses@{checkpoint}": " ".join(f"{1 - h / 25}" for h in hits),
                }
            for name in signals.COSTLY:
                row[f"{name}@end"] = f"{abs(generator.normal()) + 0.1:.6g}"
            noise = generator.normal(size=100)
            row["trace_probes@end"] = " ".join(map(str, float(row["trace_all@end"]) + noise))
            row["nu_probes@end"] = " ".join(map(str, nu + 0.1 * noise[:50]))
            for name in signals.SIGNALS:
                row[f"{name}@rescaled"] = row[f"{name}@end"]
            row["trace_all@rescaled"] = f"{abs(generator.normal())}"
            row |= {f"seconds.{k}": "1" for k in ("training", "measuring", "costly")}
            rows[c.index, number] = row
    return rows


@pytest.fixture
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    import analyse
    import choosing

    monkeypatch.setattr(analyse, "SAMPLES", 30)
    monkeypatch.setattr(choosing, "SETS", 50)
    monkeypatch.setattr(analyse, "MORE_SAMPLES", 400)


def test_analysis_of_known_answers(fewer: None, tmp_path: Path) -> None:
    import analyse
    import page
    import table

    rows = made(1.0, seed=1)
    rows[0, 0]["status"] = "limit"
    data = table.table(rows)
    found = analyse.analyse(data)
    tests = found["hypotheses"]
    assert tests["H1"]["estimate"][1] > 0.5
    assert tests["H2"]["estimate"][1] > 0.2
    assert tests["H1"]["p"] < 0.02
    assert found["networks"]["finished"] == 383
    assert found["networks"]["unfinished"]["family"] in (
        {"plain": 1, "residual": 0},
        {"plain": 0, "residual": 1},
    )
    assert found["networks"]["ceiling"] > 0.8
    row = found["end"]["nu all"]
    assert row["tau test error"][0] == pytest.approx(row["tau accuracy gap"][0])
    assert found["granulated"]["nu all"]["psi"][0] > found["granulated"]["kappa all"]["psi"][2]
    information = {k: v["information"] for k, v in found["granulated"].items()}
    assert information["nu all"] > 4 * information["random numbers"]
    regret = {k: v[0] for k, v in found["choosing"].items()}
    assert regret["nu all"] < regret["at random"] / 2
    assert regret["accuracy, 1000"] < regret["accuracy, 50"] < regret["at random"]
    assert found["probes"]["nu all"]["50"]["exact"] > found["probes"]["nu all"]["1"]["exact"] > 0.8
    assert found["rescaled"]["nu all"] == {"largest": 0.0, "tau": 1.0}
    assert found["rescaled"]["trace all"]["tau"] < 0.5
    assert "largest eigenvalue" in found["end"]
    assert "largest eigenvalue" not in found["brief"]

    results = {"fashion": found, "cifar10": copy.deepcopy(found)}
    analyse.adjust(results)
    assert results["fashion"]["hypotheses"]["H1"]["adjusted"] >= tests["H1"]["p"]
    text = page.verdict(analyse.known(results))
    assert text.startswith("Yes, nu tracks generalisation")
    assert "nu does better on Fashion-MNIST and nu does better on CIFAR-10" in text
    assert "costs no more than choosing" in text
    results["cifar10"]["networks"]["rows"] = 200
    page.write(analyse.known(results), tmp_path)
    written = (tmp_path / "generalisation.md").read_text()
    assert "**Partial and provisional: 384 of 384 networks on Fashion-MNIST and 200" in written
    assert "{{" not in written
    assert "| nu all |" in written
    assert (tmp_path / "generalisation.svg").exists()


def test_verdict_on_nothing(fewer: None) -> None:
    import analyse
    import page
    import table

    results = {}
    for seed, name in ((3, "fashion"), (4, "cifar10")):
        data = table.table(made(0.0, seed))
        results[name] = {"networks": analyse.describe(data), "hypotheses": analyse.hypotheses(data)}
    analyse.adjust(results)
    text = page.verdict(results)
    assert text.startswith(("Not shown", "No, or too little"))
    assert "or worse, is not shown" in text
    assert "is not shown to cost no more" in text


def test_nothing_is_tested_on_few_rows(fewer: None) -> None:
    import analyse
    import page
    import table

    found = analyse.analyse(table.table(made(1.0, 5, configurations=32)))
    assert found["hypotheses"] == {}
    assert found["end"]["nu all"]["tau test error"][0] > 0
    text = page.verdict({"fashion": found})
    assert "Partial and provisional: 96 of 384 networks on Fashion-MNIST" in text
    assert "Not answered" in text
    assert "Not answered" in page.verdict({})


def test_sign_of_the_verdict() -> None:
    import page

    def tests(estimate: list[float], p: float) -> dict:
        return {"estimate": estimate, "adjusted": p}

    def first(*found: dict) -> str:
        return page._first({k: {"H1": t} for k, t in zip(page.TITLES, found, strict=True)})

    plus, minus = tests([0.4, 0.3, 0.5], 0.01), tests([-0.4, -0.5, -0.3], 0.01)
    nothing, unknown = tests([0.0, -0.1, 0.1], 1.0), tests([0.2, -0.1, 0.5], 0.3)
    assert first(plus, plus).startswith("Yes")
    assert first(plus, unknown).startswith("On one of two data sets, Fashion-MNIST:")
    assert first(plus, minus).startswith("No: it has the wrong sign on CIFAR-10")
    assert first(nothing, nothing).startswith("No, or too little")
    assert first(nothing, unknown).startswith("Not shown")
