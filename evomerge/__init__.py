"""evomerge: evolutionary search over model-merge recipes.

Importing the package is cheap: nothing here loads torch, transformers, ray or lm-eval.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
