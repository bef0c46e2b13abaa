"""Scorers of the user's own and of texts, on the shipped tiny family."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.config import FitnessConfig, FunctionConfig, ItemsConfig, ObjectiveConfig
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.scorers import FunctionScorer, load_scorers, responses_of
from evomerge.engines.texts import KEPT, _divergence, _likeliest
from evomerge.errors import TaskError
from evomerge.merging.pool import ModelPool
from evomerge.outcome import ItemSet, Responses
from evomerge.recipe import uniform

ROOT = Path(__file__).parents[2]
REV = ROOT / "fitness" / "tasks" / "quickstart" / "rev.jsonl"
FitnessMaker = Callable[..., FitnessConfig]


def blocks(language: str) -> dict[str, str]:
    """What the documentation shows in a language: by the file that it names, or by number."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "fitness.md").read_text(), flags=re.S)
    return {(re.match(r"# (\w+)\.py", text) or ["", f"block {n}"])[1]: text for n, text in enumerate(found)}


def scorer(folder: Path, engine: TransformersEngine, code: str, **more: Any) -> FunctionScorer:
    (folder / "mine.py").write_text(code)
    settings: dict[str, Any] = {"kind": "function", "function": "mine:f", "items": 4, "folder": folder, **more}
    return FunctionScorer("own", FunctionConfig(**settings), engine)


def answers(folder: Path, engine: TransformersEngine, code: str, **more: Any) -> tuple[Responses, ...]:
    own = scorer(folder, engine, code, **more)
    return tuple(responses_of("own", own, (1, 3), own.score((1, 3))))


def measure(*objectives: dict[str, Any], **scorers: Any) -> FitnessConfig:
    return FitnessConfig(
        tasks=(ROOT / "fitness" / "tasks" / "quickstart",),
        scorers=scorers,
        objectives=tuple(ObjectiveConfig(**{"name": f"o{i}", **o}) for i, o in enumerate(objectives)),
        items=ItemsConfig(search=4, confirm=4),
    )


def model(name: str, dtype: Any = "float32") -> Any:
    return uniform((name,), layers=4, dtype=dtype)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    lines = [json.loads(line) for line in REV.read_text().splitlines()]
    file = tmp_path / "text.txt"
    file.write_text("".join(line["prompt"] + line["answer"] for line in lines[:200]))
    return file


def test_the_documented_example_tells_experts_apart(exact_engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "answers.py").write_text(blocks("python")["answers"])
    answers = FunctionConfig(
        kind="function", function="answers:probability", items=REV, metrics=("probability",), folder=tmp_path
    )
    runner = EvalRunner(exact_engine, measure({"task": "answers", "metric": "probability"}, answers=answers), seed=0)
    count = len(REV.read_text().splitlines())
    assert runner.sizes() == {"answers": count}
    means = {}
    for name in ("sort", "rev"):
        exact_engine.load(model(name))
        ((response,), seconds) = runner.score(ItemSet.of({"answers": tuple(range(0, 40, 2))}))
        assert (response.task, response.metric) == ("answers", "probability")
        assert response.items == tuple(range(0, 40, 2))
        assert seconds["forward"] > 0
        means[name] = sum(response.values) / len(response.values)
    assert means["rev"] > 0.8 > means["sort"] + 0.3


def documented(part: str, **more: Any) -> FitnessConfig:
    written = yaml.safe_load(blocks("yaml")[part])
    return FitnessConfig.model_validate_json(json.dumps(more | written), strict=True)


def test_the_documented_fitness_is_valid() -> None:
    fitness = documented("block 0")
    assert {measured.task for measured in fitness.metrics} > fitness.scorers.keys()


def test_the_documented_objectives_are_valid() -> None:
    items = {"search": 8, "confirm": 8}
    (reasoning,) = documented("block 1", items=items).objectives
    assert [metric.share for metric in reasoning.metrics] == pytest.approx([2 / 3, 1 / 3])
    costed = documented("block 2", items=items)
    assert [measured.cost for measured in costed.measured] == [None, "layers", "parameters"]


def test_the_documented_limits_on_replies_hold_what_they_say(exact_engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "replies.py").write_text(blocks("python")["replies"])
    fitness = documented("block 3")
    prompts = [json.loads(line) for line in REV.read_text().splitlines()[:6]]
    prompts[0]["script"] = "GREEK"
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(prompt | {"most": 8}) for prompt in prompts))
    own: Any = fitness.scorers["replies"]
    own = own.model_copy(update={"folder": tmp_path, "items": tmp_path / "prompts.jsonl"})
    asked = fitness.model_copy(update={"scorers": {"replies": own}, "objectives": ()})
    exact_engine.load(model("rev"))
    responses, _ = EvalRunner(exact_engine, asked, seed=0).score(ItemSet.of({"replies": tuple(range(6))}))
    found = {response.metric: response.values for response in responses}
    assert found == {"json": (0.0,) * 6, "script": (0.0, *[1.0] * 5), "answers": (1.0,) * 6}


@pytest.mark.parametrize(
    ("reply", "script", "verdict"),
    [
        ('{"a": [1]}', "LATIN", (1, 1, 1)),
        ("12", "LATIN", (0, 0, 1)),
        ("I'm sorry, but I cannot.", "LATIN", (0, 1, 0)),
        ("Καλημέρα", "GREEK", (0, 1, 1)),
        ("Good morning", "GREEK", (0, 0, 1)),
        ("  ", "LATIN", (0, 0, 0)),
    ],
)
def test_the_documented_judge_of_replies(reply: str, script: str, verdict: tuple[int, ...]) -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")["replies"], names)
    assert names["judge"](reply, script) == dict(zip(("json", "script", "answers"), verdict, strict=True))


def test_lm_eval_tasks_and_scorers_stand_side_by_side(exact_engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(engine, items):\n    return {'b': items, 'a': [-i for i in items]}\n")
    own = FunctionConfig(kind="function", function="mine:f", items=12, metrics=("b", "a"), folder=tmp_path)
    fitness = measure({"task": "zz", "metric": "b"}, {"task": "quickstart_rev"}, zz=own)
    runner = EvalRunner(exact_engine, fitness, seed=0)
    assert sorted(runner.digests()) == sorted(runner.sizes()) == ["quickstart_rev", "zz"]
    exact_engine.load(model("rev"))
    responses, _ = runner.score(ItemSet.of({"zz": (2, 7), "quickstart_rev": (0, 1, 2)}))
    assert [(r.task, r.metric, len(r.items)) for r in responses] == [
        ("quickstart_rev", "acc", 3),
        ("zz", "a", 2),
        ("zz", "b", 2),
    ]
    assert responses[2].values == (2.0, 7.0)
    (alone,), _ = runner.score(ItemSet.of({"quickstart_rev": (0, 1, 2)}))
    assert alone == responses[0]
    with pytest.raises(TaskError, match=r"expected item ids from 0 to 11; got 12"):
        runner.score(ItemSet.of({"zz": (12,)}))


@pytest.mark.parametrize(
    "result",
    ["[0.5, 2]", "(0.5, 2.0)", "torch.tensor([0.5, 2.0])", "numpy.array([0.5, 2.0])", "[numpy.float32(0.5), 2]"],
)
def test_numbers_of_any_kind(engine: TransformersEngine, tmp_path: Path, result: str) -> None:
    code = f"import numpy, torch\n\ndef f(engine, items):\n    return {result}\n"
    (response,) = answers(tmp_path, engine, code)
    assert response == Responses(task="own", metric="acc", items=(1, 3), values=(0.5, 2.0))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("[1.0]", "expected 2 numbers, one per item; got 1"),
        ("[1.0, 2.0, 3.0]", "expected 2 numbers, one per item; got 3"),
        ("[1.0, float('nan')]", "item 3: expected 'acc' to be a finite number; got nan"),
        ("[float('-inf'), 0]", "item 1: expected 'acc' to be a finite number; got -inf"),
        ("[1.0, '2']", "item 3: expected 'acc' to be a finite number; got '2'"),
        ("[1.0, None]", "item 3: expected 'acc' to be a finite number; got None"),
        ("[[1.0], [2.0]]", "item 1: expected 'acc' to be a finite number"),
        ("'12'", "expected a list of numbers for 'acc'; got str"),
        ("None", "expected a list of numbers for 'acc'; got NoneType"),
        ("3.0", "expected a list of numbers for 'acc'; got float"),
        ("{'accuracy': [1, 2]}", r"expected the metric 'acc'; got \['accuracy'\]"),
        ("[1.0 / 0, 2]", r"scorer 'own' \(mine:f\): ZeroDivisionError: float division by zero"),
        ("engine.no_such_thing", r"scorer 'own' \(mine:f\): AttributeError"),
    ],
)
def test_what_is_no_number_per_item_is_refused(
    engine: TransformersEngine, tmp_path: Path, result: str, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        answers(tmp_path, engine, f"def f(engine, items):\n    return {result}\n")


def test_several_metrics_need_a_mapping(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"expected a mapping of \['a', 'b'\]; got list"):
        answers(tmp_path, engine, "def f(engine, items):\n    return [1, 2]\n", metrics=("a", "b"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def g(engine, items):\n    return []\n", "expected a function 'f'"),
        ("f = 3\n", "got a int"),
        ("import no_such_package\n", "cannot be imported: ModuleNotFoundError"),
        ("def f(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_module_that_cannot_serve_is_refused_at_once(
    engine: TransformersEngine, tmp_path: Path, code: str, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        scorer(tmp_path, engine, code)


def test_bad_items_are_refused_at_once(engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    code = "def f(engine, items):\n    return [1.0 for _ in items]\n"
    with pytest.raises(TaskError, match="line 3: expected JSON"):
        scorer(tmp_path, engine, code, items=tmp_path / "items.jsonl")
    with pytest.raises(TaskError, match="expected items in"):
        scorer(tmp_path, engine, code, items=tmp_path / "nothing.jsonl")


def test_every_fault_of_every_scorer_comes_at_once(engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("f = 3\n")
    scorers = {
        name: FunctionConfig(kind="function", function=function, items=4, folder=tmp_path)
        for name, function in {"one": "mine:f", "two": "mine:g", "three": "no_such_module:f"}.items()
    }
    with pytest.raises(TaskError, match="3 faults"):
        load_scorers(engine, measure(*({"task": name} for name in scorers), **scorers))


def test_a_function_cannot_spoil_its_items(engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n{"a": 5}\n')
    code = "def f(engine, items):\n    return [item.pop('a') for item in items]\n"
    own = scorer(tmp_path, engine, code, items=tmp_path / "items.jsonl")
    assert own.score((0, 1)) == own.score((0, 1)) == {"acc": [1, 5]}


def test_the_digest_covers_items_and_source(engine: TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n{"a": 5}\n')
    code = "def f(engine, items):\n    return [1.0 for _ in items]\n"
    items = {"items": tmp_path / "items.jsonl"}
    first = scorer(tmp_path, engine, code, **items).digest
    assert scorer(tmp_path, engine, code, **items).digest == first
    assert scorer(tmp_path, engine, code + "# changed\n", **items).digest != first
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n{"a": 6}\n')
    assert scorer(tmp_path, engine, code, **items).digest != first


def test_an_installed_module_serves_too(engine: TransformersEngine) -> None:
    config = FunctionConfig(kind="function", function="operator:contains", items=3)
    assert FunctionScorer("own", config, engine).size == 3


def test_loss_is_the_models_own(exact_engine: TransformersEngine, text: Path) -> None:
    wiki = {"kind": "loss", "text": text, "tokens": 640, "block": 32}
    fitness = measure({"task": "wiki", "metric": "loss", "goal": "min"}, wiki=wiki)
    own = load_scorers(exact_engine, fitness)["wiki"]
    assert own.size == 20
    exact_engine.load(model("rev"))
    losses = own.score((0, 7, 19))["loss"]
    ids = exact_engine.tokenizer(text.read_text())["input_ids"]
    for item, loss in zip((0, 7, 19), losses, strict=True):
        block = torch.tensor([ids[32 * item : 32 * (item + 1)]])
        assert loss == pytest.approx(float(exact_engine.model(block, labels=block).loss), abs=1e-4)
    expert = sum(losses)
    exact_engine.load(model("sort"))
    assert sum(own.score((0, 7, 19))["loss"]) > expert


def test_kl_is_zero_at_the_reference_and_exact_for_a_small_vocabulary(
    exact_engine: TransformersEngine, text: Path
) -> None:
    drift = {"kind": "kl", "text": text, "tokens": 640, "block": 32, "reference": "rev"}
    own = load_scorers(exact_engine, measure({"task": "drift", "metric": "kl", "goal": "min"}, drift=drift))["drift"]
    exact_engine.load(model("rev"))
    assert own.score(range(20))["kl"] == [0.0] * 20
    block = torch.tensor([exact_engine.tokenizer(text.read_text())["input_ids"][32 * 4 : 32 * 5]])
    reference = exact_engine.model(block).logits[0].log_softmax(-1)
    exact_engine.load(model("sort"))
    candidate = exact_engine.model(block).logits[0].log_softmax(-1)
    whole = float((reference.exp() * (reference - candidate)).sum(-1).mean())
    assert own.score((4,))["kl"] == [pytest.approx(whole, rel=1e-4)]


def test_a_large_vocabulary_gives_a_lower_bound() -> None:
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(50, 4 * KEPT, generator=random) * 3
    candidate = reference + torch.randn(50, 4 * KEPT, generator=random) * 0.5
    kept = _likeliest(reference)
    p, q = reference.log_softmax(-1), candidate.log_softmax(-1)
    whole = float((p.exp() * (p - q)).sum(-1).mean())
    assert 0.8 * whole < _divergence(kept[0].long(), kept[1], candidate) < whole
    assert _divergence(kept[0].long(), kept[1], reference) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 40, "block": 32}, "expected at least 2 blocks of 32 tokens"),
        ({"block": 5000}, "expected blocks of at"),
    ],
)
def test_texts_that_make_no_blocks(
    engine: TransformersEngine, text: Path, change: dict[str, int], message: str
) -> None:
    wiki = {"kind": "loss", "text": text, **change}
    with pytest.raises(TaskError, match=message):
        load_scorers(engine, measure({"task": "wiki", "metric": "loss", "goal": "min"}, wiki=wiki))


def test_digests_of_texts_tell_settings_apart(exact_engine: TransformersEngine, text: Path, pool: ModelPool) -> None:
    base = {"text": text, "tokens": 640, "block": 32}
    scorers: dict[str, dict[str, Any]] = {
        "a": {**base, "kind": "loss"},
        "b": {**base, "kind": "loss", "block": 16},
        "c": {**base, "kind": "kl"},
        "d": {**base, "kind": "kl", "reference": "sort"},
    }
    fitness = measure(*({"task": name, "metric": s["kind"], "goal": "min"} for name, s in scorers.items()), **scorers)
    assert len({s.digest for s in load_scorers(exact_engine, fitness).values()}) == 4
