"""Live models that recipes are written into, and the benchmark runner on top of them.

torch, transformers and lm-eval are imported when an engine or a runner is made, not with this package.
"""

from evomerge.engines.base import Engine, LoadStats, Scorer
from evomerge.engines.reference import reference_scores
from evomerge.engines.runner import EvalRunner
from evomerge.engines.transformers_engine import TransformersEngine

__all__ = ["Engine", "EvalRunner", "LoadStats", "Scorer", "TransformersEngine", "reference_scores"]
