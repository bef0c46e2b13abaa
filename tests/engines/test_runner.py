from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from evomerge.config import FitnessConfig
from evomerge.engines import EvalRunner, TransformersEngine, reference_scores
from evomerge.engines.runner import number
from evomerge.errors import MergeError, TaskError
from evomerge.outcome import ItemSet, Responses
from evomerge.recipe import Recipe, uniform

FitnessMaker = Callable[..., FitnessConfig]
SEED = 3
COUNT = 40

EVERY_KIND: tuple[dict[str, Any], ...] = (
    {"task": "rev_exact"},
    {"task": "sort_exact", "goal": "min"},
    {"task": "rev_empty_prompt"},
    {"task": "rev_shots", "few_shot": 2},
    {"task": "rev_choice"},
    {"task": "rev_choice", "metric": "acc_norm"},
    {"task": "rev_write", "metric": "exact_match", "filter": "letters"},
)


def average(*names: str) -> Recipe:
    return uniform(names, layers=4, dtype="bfloat16")


@pytest.fixture(scope="module")
def fitness(make_fitness: FitnessMaker) -> FitnessConfig:
    return make_fitness(*EVERY_KIND)


@pytest.fixture(scope="module")
def runner(exact_engine: TransformersEngine, fitness: FitnessConfig) -> EvalRunner:
    return EvalRunner(exact_engine, fitness, SEED)


@pytest.fixture(scope="module")
def chosen(runner: EvalRunner) -> ItemSet:
    return ItemSet.of({name: (17, 2, 39, 8, 0) for name in runner.sizes()})


def by_metric(responses: tuple[Responses, ...]) -> dict[tuple[str, str], dict[int, float]]:
    return {(r.task, r.metric): dict(zip(r.items, r.values, strict=True)) for r in responses}


def test_sizes(runner: EvalRunner) -> None:
    assert runner.sizes() == dict.fromkeys(sorted({o["task"] for o in EVERY_KIND}), COUNT)


@pytest.mark.parametrize("names", [("base",), ("rev",), ("rev", "sort", "ciph")])
def test_agrees_with_lm_eval_item_by_item(
    runner: EvalRunner,
    exact_engine: TransformersEngine,
    fitness: FitnessConfig,
    chosen: ItemSet,
    names: tuple[str, ...],
) -> None:
    exact_engine.load(average(*names))
    responses, _ = runner.score(chosen)
    assert responses == reference_scores(exact_engine, fitness, SEED, chosen)
    assert [(r.task, r.metric) for r in responses] == sorted({(o["task"], o.get("metric", "acc")) for o in EVERY_KIND})


def test_the_expert_knows_its_skill_in_every_form(runner: EvalRunner, exact_engine: TransformersEngine) -> None:
    exact_engine.load(average("rev"))
    responses, _ = runner.score(ItemSet.of({name: tuple(range(COUNT)) for name in runner.sizes()}))
    mean = {key: sum(values.values()) / COUNT for key, values in by_metric(responses).items()}
    assert mean["rev_exact", "acc"] > 0.85
    assert mean["rev_choice", "acc"] > 0.85
    assert mean["rev_write", "exact_match"] == mean["rev_exact", "acc"]  # greedy text is the answer, or is not
    assert mean["sort_exact", "acc"] < 0.5


def test_an_item_scores_the_same_in_any_company(
    runner: EvalRunner, exact_engine: TransformersEngine, chosen: ItemSet
) -> None:
    exact_engine.load(average("rev", "sort"))
    few = by_metric(runner.score(chosen)[0])
    every = by_metric(runner.score(ItemSet.of({name: tuple(range(COUNT)) for name in runner.sizes()}))[0])
    assert few == {key: {i: every[key][i] for i in values} for key, values in few.items()}


def test_tasks_without_chosen_items_are_left_out(
    runner: EvalRunner, exact_engine: TransformersEngine, fitness: FitnessConfig
) -> None:
    exact_engine.load(average("base"))
    only = ItemSet.of({"rev_exact": (9, 4)})
    (response,), _ = runner.score(only)
    assert (response.task, response.items) == ("rev_exact", (4, 9))
    assert reference_scores(exact_engine, fitness, SEED, only) == (response,)


def test_new_weights_are_scored_on_a_kept_layout(
    runner: EvalRunner, exact_engine: TransformersEngine, chosen: ItemSet
) -> None:
    exact_engine.load(average("rev"))
    first, _ = runner.score(chosen)
    exact_engine.load(average("sort"))
    assert runner.score(chosen)[0] != first
    exact_engine.load(average("rev"))
    assert runner.score(chosen)[0] == first


def test_seconds_by_stage(runner: EvalRunner, chosen: ItemSet) -> None:
    _, seconds = runner.score(chosen)
    assert seconds.keys() == {"forward", "evaluate"}
    assert min(seconds.values()) > 0


def test_tokens_are_those_of_the_prompts_and_of_what_is_answered(
    runner: EvalRunner, exact_engine: TransformersEngine
) -> None:
    exact_engine.load(average("rev"))
    taken: dict[str, int] = {}
    for task in ("rev_exact", "rev_choice", "rev_write"):
        runner.score(ItemSet.of({task: (3,)}))
        taken |= runner.tokens
    docs = {name: runner._items[name][3].doc for name in taken}

    def length(*texts: str) -> int:
        return sum(len(exact_engine.tokenizer.encode(text)) for text in texts)

    prompt = docs["rev_exact"]["prompt"]
    assert taken["rev_exact"] == length(prompt, docs["rev_exact"]["answer"])
    assert taken["rev_choice"] == length(prompt, *docs["rev_choice"]["choices"])  # the prompt once
    assert length(prompt) < taken["rev_write"] <= length(prompt) + 10
    runner.score(ItemSet.of(dict.fromkeys(taken, (3,))))
    assert runner.tokens == taken


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"rev_exact": (1, 40)}, r"'rev_exact': expected item ids from 0 to 39; got 40"),
        ({"rev_exakt": (1,)}, r"did you mean 'rev_exact'"),
    ],
)
def test_items_that_do_not_exist(runner: EvalRunner, items: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        runner.score(ItemSet.of(items))


@pytest.fixture
def broken(exact_engine: TransformersEngine) -> Iterator[TransformersEngine]:
    exact_engine.load(average("base"))
    weight = exact_engine.model.model.layers[0].mlp.up_proj.weight
    kept = weight.clone()
    weight[3, 5] = torch.nan
    yield exact_engine
    weight.copy_(kept)


@pytest.mark.parametrize("task", ["rev_exact", "rev_choice", "rev_write"])
def test_a_model_that_computes_nan_is_told(runner: EvalRunner, broken: TransformersEngine, task: str) -> None:
    with pytest.raises(MergeError, match="expected finite logits"):
        runner.score(ItemSet.of({task: (0, 1)}))


def test_the_next_model_is_judged_afresh(runner: EvalRunner, exact_engine: TransformersEngine, chosen: ItemSet) -> None:
    exact_engine.load(average("base"))
    assert len(runner.score(chosen)[0]) == len(EVERY_KIND)


def test_an_item_cannot_be_asked_for_twice() -> None:
    with pytest.raises(ValueError, match="distinct"):
        ItemSet.of({"rev_exact": (2, 2, 9)})


@pytest.mark.parametrize("verdict", [{"acc": float("nan")}, {"acc": float("inf")}, {"acc": (1, 2)}, {"f1": 1.0}])
def test_metric_values_must_be_finite_numbers(verdict: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"task 't', item 7: expected .*'acc'"):
        number("t", "acc", 7, verdict)


def test_metric_values_become_plain_floats() -> None:
    value = number("t", "acc", 7, {"acc": torch.tensor(1)})
    assert type(value) is float


def test_an_answer_without_tokens_is_refused(
    exact_engine: TransformersEngine, make_fitness: FitnessMaker, tasks: Any, tmp_path: Any
) -> None:
    (tmp_path / "hollow.jsonl").write_text('{"prompt": "#>_abc=", "answer": "cba."}\n{"prompt": "#>_", "answer": ""}\n')
    text = (tasks / "rev_exact.yaml").read_text().replace("rev_exact", "hollow").replace("rev.jsonl", "hollow.jsonl")
    (tmp_path / "hollow.yaml").write_text(text)
    with pytest.raises(TaskError, match="task 'hollow', item 1: expected a prompt and an answer"):
        EvalRunner(exact_engine, make_fitness({"task": "hollow"}, tasks=(tmp_path,)), SEED)


def test_chat_templates(
    exact_engine: TransformersEngine, make_fitness: FitnessMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitness = make_fitness({"task": "rev_exact"}, {"task": "rev_choice"}, chat_template=True)
    with pytest.raises(TaskError, match="expected a tokenizer with a chat template"):
        EvalRunner(exact_engine, fitness, SEED)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}_{% endif %}"
    monkeypatch.setattr(exact_engine.tokenizer, "chat_template", template)
    exact_engine.load(average("rev"))
    items = ItemSet.of({"rev_exact": (3, 1), "rev_choice": (0, 5)})
    templated = EvalRunner(exact_engine, fitness, SEED)
    responses, _ = templated.score(items)
    assert responses == reference_scores(exact_engine, fitness, SEED, items)
    assert templated._items["rev_exact"][0].requests[0].args[0].endswith("=_")


def test_tokens_are_counted_item_by_item(exact_engine: TransformersEngine, make_fitness: FitnessMaker) -> None:
    fitness = make_fitness(
        {"task": "rev_write", "metric": "exact_match", "filter": "letters"},
        {"task": "rev_write", "metric": "tokens", "filter": "letters", "goal": "min"},
    )
    exact_engine.load(average("rev"))
    runner = EvalRunner(exact_engine, fitness, SEED)
    items = ItemSet.of({"rev_write": tuple(range(COUNT))})
    found = by_metric(runner.score(items)[0])
    tokens = found["rev_write", "tokens"]
    answers = {i: item.doc["answer"] for i, item in enumerate(runner._items["rev_write"])}
    right = [i for i, value in found["rev_write", "exact_match"].items() if value]
    assert len(right) > 0.85 * COUNT
    assert [tokens[i] for i in right] == [len(answers[i]) for i in right], "a token for each letter, one for the stop"
    assert max(tokens.values()) <= 10


def test_a_cap_beyond_the_models_positions_is_refused_at_once(
    exact_engine: TransformersEngine, make_fitness: FitnessMaker, tasks: Any, tmp_path: Any
) -> None:
    text = (tasks / "rev_write.yaml").read_text().replace("max_gen_toks: 10", "max_gen_toks: 128")
    (tmp_path / "long.yaml").write_text(
        text.replace("rev_write", "long").replace("rev.jsonl", str(tasks / "rev.jsonl"))
    )
    objective = {"task": "long", "metric": "exact_match", "filter": "whole"}
    with pytest.raises(TaskError, match="generation_kwargs: expected max_gen_toks from 1 to 127"):
        EvalRunner(exact_engine, make_fitness(objective, tasks=(tmp_path,)), SEED)


def test_only_tasks_that_write_have_tokens(exact_engine: TransformersEngine, make_fitness: FitnessMaker) -> None:
    with pytest.raises(TaskError, match="has no metric 'tokens'"):
        EvalRunner(exact_engine, make_fitness({"task": "rev_exact", "metric": "tokens"}), SEED)
