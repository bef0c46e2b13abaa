"""The quickstart family: its files fit together, its landscape is worth searching, its script repeats itself."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "experiments" / "quickstart"
TASKS = ROOT / "fitness" / "tasks" / "quickstart"
MODELS = ("base", "rev", "sort", "ciph")
EXPERTS = ("rev", "sort", "ciph")
SKILLS = ("rev", "sort", "ciph", "rc")
SCORED_ITEMS = 128  # of each skill

Weights = dict[str, torch.Tensor]


def load_script() -> ModuleType:
    """Load make_family.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("quickstart_make_family", QUICKSTART / "make_family.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


family = load_script()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def records(skill: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()]


def stored_weights(name: str) -> Weights:
    weights: Weights = load_file(QUICKSTART / "models" / name / "model.safetensors")
    return weights


@pytest.fixture(scope="module")
def accuracy() -> dict[str, dict[str, float]]:
    """Exact-match accuracy by model and skill, scored in float32; 'uniform' is the mean of the experts."""
    weights = {name: {key: value.float() for key, value in stored_weights(name).items()} for name in MODELS}
    weights["uniform"] = {
        key: torch.stack([weights[expert][key] for expert in EXPERTS]).mean(dim=0) for key in weights["base"]
    }
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "models" / "base", local_files_only=True)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(QUICKSTART / "models" / "base")).float()
    texts = [record["prompt"] + record["answer"] for skill in SKILLS for record in records(skill)[:SCORED_ITEMS]]
    lines = torch.tensor(tokenizer(texts)["input_ids"])  # [4 * 128, 17]: a prompt of 10 characters, an answer of 7
    scores: dict[str, dict[str, float]] = {}
    for name, state in weights.items():
        model.load_state_dict(state)
        with torch.inference_mode():
            guessed = model(lines[:, :-1], use_cache=False).logits[:, 9:].argmax(dim=-1)
        right = (guessed == lines[:, 10:]).all(dim=1).view(len(SKILLS), -1)
        scores[name] = dict(zip(SKILLS, right.float().mean(dim=1).tolist(), strict=True))
    return scores


class TestShippedModels:
    def test_all_four_have_the_same_tokenizer(self) -> None:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert len({(QUICKSTART / "models" / name / file).read_bytes() for name in MODELS}) == 1

    def test_the_tokenizer_gives_one_id_a_character(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "models" / "rev", local_files_only=True)
        ids = tokenizer("#>_abcfed=")["input_ids"]
        assert ids == [family.CHARACTERS.index(character) for character in "#>_abcfed="]
        assert tokenizer.decode(ids) == "#>_abcfed="
        assert len(tokenizer) == 32
        assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("%", "#", ".")

    def test_all_four_have_the_same_bfloat16_tensors(self) -> None:
        shapes = {name: {key: tuple(t.shape) for key, t in stored_weights(name).items()} for name in MODELS}
        assert all(shapes[name] == shapes["base"] for name in MODELS)
        assert shapes["base"]["model.layers.3.mlp.gate_proj.weight"] == (192, 64)
        assert shapes["base"]["lm_head.weight"] == shapes["base"]["model.embed_tokens.weight"] == (32, 64)
        for name in MODELS:
            weights = stored_weights(name)
            assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
            assert sum(tensor.numel() for tensor in weights.values()) == 217_664

    def test_all_four_have_the_same_configuration(self) -> None:
        for file in ("config.json", "generation_config.json"):
            assert len({(QUICKSTART / "models" / name / file).read_bytes() for name in MODELS}) == 1


class TestShippedItems:
    @pytest.mark.parametrize("skill", SKILLS)
    def test_they_are_what_the_script_writes(self, skill: str) -> None:
        expected = [(item.prompt, item.answer) for item in family.shipped_items(skill)]
        shipped = records(skill)
        assert [(record["prompt"], record["answer"]) for record in shipped] == expected
        assert len({record["id"] for record in shipped}) == len(set(expected)) == 512

    @pytest.mark.parametrize("skill", SKILLS)
    def test_none_was_trained_on_or_decided_when_to_stop(self, skill: str) -> None:
        shipped = {record["prompt"] for record in records(skill)}
        assert {family.split(prompt) for prompt in shipped} == {"test"}
        for split, count in (("train", family.TRAIN_ITEMS), ("validation", family.VALIDATION_ITEMS)):
            used = {item.prompt for item in family.draw_items(skill, split, count, family.DEFAULT_SEED)}
            assert {family.split(prompt) for prompt in used} == {split}
            assert not used & shipped

    def test_the_splits_have_their_shares(self) -> None:
        words = [
            f"{number:06d}".translate(str.maketrans("0123456789", family.LETTERS)) for number in range(0, 10**6, 99)
        ]
        splits = [family.split(family.make_item("rev", word).prompt) for word in words]
        assert splits.count("test") / len(splits) == pytest.approx(1 / 16, abs=0.01)
        assert splits.count("validation") / len(splits) == pytest.approx(1 / 16, abs=0.01)

    @pytest.mark.parametrize("skill", SKILLS)
    def test_the_task_file_names_them(self, skill: str) -> None:
        task = yaml.safe_load((TASKS / f"quickstart_{skill}.yaml").read_text(encoding="utf-8"))
        assert task["task"] == f"quickstart_{skill}"
        assert task["dataset_kwargs"]["data_files"] == {"test": f"{skill}.jsonl"}
        assert task["output_type"] == "loglikelihood"
        assert task["target_delimiter"] == ""
        assert [metric["metric"] for metric in task["metric_list"]] == ["acc"]


class TestSkills:
    @pytest.mark.parametrize(
        ("skill", "prompt", "answer"),
        [
            ("rev", "#>_abcfed=", "defcba."),
            ("sort", "#^_abcfed=", "abcdef."),
            ("ciph", "#_*abcfed=", "fhabdj."),
            ("rc", "#>*abcfed=", "jdbahf."),
        ],
    )
    def test_answers(self, skill: str, prompt: str, answer: str) -> None:
        assert family.make_item(skill, "abcfed") == family.Item(prompt=prompt, answer=answer)

    def test_the_cipher_is_a_permutation_without_fixed_letters(self) -> None:
        image = family.LETTERS.translate(family.CIPHER)
        assert sorted(image) == sorted(family.LETTERS)
        assert all(a != b for a, b in zip(image, family.LETTERS, strict=True))

    def test_no_expert_is_trained_on_the_composite_skill(self) -> None:
        assert all("rc" not in course.mixture for course in family.EXPERT_COURSES.values())


class TestLandscape:
    def test_every_expert_is_good_at_its_own_skill(self, accuracy: dict[str, dict[str, float]]) -> None:
        assert {skill: accuracy[skill][skill] for skill in EXPERTS if accuracy[skill][skill] < 0.85} == {}

    def test_the_uniform_average_beats_every_parent_in_the_mean(self, accuracy: dict[str, dict[str, float]]) -> None:
        mean = {name: sum(scores[skill] for skill in EXPERTS) / 3 for name, scores in accuracy.items()}
        assert mean["uniform"] > max(mean[parent] for parent in MODELS) + 0.05

    def test_the_uniform_average_beats_every_parent_in_the_composite_skill(
        self, accuracy: dict[str, dict[str, float]]
    ) -> None:
        assert accuracy["uniform"]["rc"] > max(accuracy[parent]["rc"] for parent in MODELS) + 0.05

    def test_the_readme_table_is_about_these_weights(self) -> None:
        text = (QUICKSTART / "README.md").read_text(encoding="utf-8")
        rows_of = {skill: family.encode(family.shipped_items(skill)) for skill in SKILLS}
        models = {name: LlamaForCausalLM.from_pretrained(QUICKSTART / "models" / name) for name in MODELS}
        checked = {"base": models["base"], "uniform average": family.uniform_average(models)}
        for label, model in checked.items():
            row = re.search(rf"^\| {label} \|((?: \d\.\d+ \|)+)$", text, re.MULTILINE)
            assert row is not None
            stated = [float(cell) for cell in row[1].strip(" |").split("|")]
            scores = list(family.score(model, rows_of).values())
            assert [*scores, sum(scores[:3]) / 3] == pytest.approx(stated, abs=0.01)  # processors round differently


class TestScript:
    def test_equal_seeds_give_equal_bytes(self, tmp_path: Path) -> None:
        course = replace(family.BASE_COURSE, max_steps=3)
        for run in ("first", "second"):
            model = family.new_model(7)
            assert family.train(model, course, 7) == (3, 0.0)
            family.write_models({"base": model.to(torch.bfloat16)}, tmp_path / run)
        files = sorted(path.name for path in (tmp_path / "first" / "base").iterdir())
        assert files == sorted(path.name for path in (QUICKSTART / "models" / "base").iterdir())
        for file in files:
            assert (tmp_path / "first" / "base" / file).read_bytes() == (
                tmp_path / "second" / "base" / file
            ).read_bytes()

    def test_training_changes_the_weights_and_another_seed_changes_them_otherwise(self) -> None:
        course = replace(family.BASE_COURSE, max_steps=2)
        heads = []
        for seed in (0, 1):
            model = family.new_model(0)
            heads.append(model.lm_head.weight.detach().clone())
            family.train(model, course, seed)
            heads.append(model.lm_head.weight.detach())
        assert torch.equal(heads[0], heads[2])
        assert not torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[1], heads[3])

    def test_making_a_model_leaves_the_global_random_state_alone(self) -> None:
        before = torch.random.get_rng_state()
        family.new_model(3)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_training_stops_at_its_target(self) -> None:
        course = replace(family.BASE_COURSE, target=0.0)
        assert family.train(family.new_model(0), course, 0)[0] == family.CHECK_EVERY

    def test_batches_hold_training_items_of_the_mixture_only(self) -> None:
        for rows in islice(family.batches(family.EXPERT_COURSES["sort"], 0), 3):
            for row in rows.tolist():
                prompt = "".join(family.CHARACTERS[token] for token in row[: family.PROMPT])
                assert prompt.startswith("#^_")
                assert family.split(prompt) == "train"

    def test_a_base_that_never_learns_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(family, "BASE_COURSE", replace(family.BASE_COURSE, max_steps=1))
        with pytest.raises(RuntimeError, match="try another --seed"):
            family.make_family(0)

    def test_items_are_written_as_shipped(self, tmp_path: Path) -> None:
        family.write_items(tmp_path / "items")
        for skill in SKILLS:
            assert (tmp_path / "items" / f"{skill}.jsonl").read_bytes() == (TASKS / f"{skill}.jsonl").read_bytes()
