"""Which splits a search should not optimize on."""

from typing import Any

import pytest

from evomerge.fitness import public_split


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ({"dataset_path": "openai/gsm8k", "test_split": "test"}, "the split test of openai/gsm8k"),
        ({"dataset_path": "openai/gsm8k", "training_split": "train", "test_split": "test"}, "the split test of"),
        ({"dataset_path": "openai/gsm8k", "test_split": "train"}, None),
        ({"dataset_path": "openai/gsm8k", "test_split": "train[:500]"}, None),
        ({"dataset_path": "openai/gsm8k", "test_split": "test[:50%]"}, "the split test[:50%] of openai/gsm8k"),
        ({"dataset_path": "cais/mmlu", "validation_split": "validation", "test_split": "test"}, "the split test of"),
        ({"dataset_path": "cais/mmlu", "test_split": "validation"}, None),
        ({"dataset_path": "cais/mmlu", "test_split": "dev"}, None),
        ({"dataset_path": "Rowan/hellaswag", "test_split": "validation"}, "the split validation of Rowan/hellaswag"),
        ({"dataset_path": "Rowan/hellaswag", "validation_split": "validation"}, "the split validation of"),
        ({"dataset_path": "Rowan/hellaswag", "validation_split": "train"}, None),
        ({"dataset_path": "someone/own", "training_split": "train", "validation_split": "validation"}, "the split"),
        ({"dataset_path": "facebook/flores", "test_split": "devtest"}, None),
        ({"dataset_path": "json", "test_split": "test"}, None),
        ({"dataset_path": "csv", "test_split": "test"}, None),
        ({"dataset_path": "parquet", "test_split": "test"}, None),
        ({"dataset_path": "arrow", "test_split": "test"}, None),
        ({"dataset_path": "/data/mine", "test_split": "test"}, None),
        ({"dataset_path": "./mine", "test_split": "test"}, None),
        ({"custom_dataset": "f", "dataset_path": "x", "test_split": "test"}, None),
        ({"test_split": "test"}, None),
        ({"dataset_path": "openai/gsm8k"}, None),
        ({"dataset_path": 3, "test_split": ["test"]}, None),
    ],
)
def test_public_splits(task: dict[str, Any], found: str | None) -> None:
    text = public_split(task)
    assert (text is None) if found is None else str(text).startswith(found)
