"""Configuration: schema, YAML with lines, shipped names."""

from evomerge.config.coefficients import Coefficient
from evomerge.config.fitness import (
    ConfirmConfig,
    ConstraintConfig,
    FitnessConfig,
    ItemsConfig,
    Measured,
    ObjectiveConfig,
)
from evomerge.config.loader import (
    dump,
    find,
    load_experiment,
    load_fitness,
    load_space,
    recorded_experiment,
    shipped_folder,
    shipped_names,
)
from evomerge.config.models import (
    Algorithm,
    Budget,
    CmaConfig,
    EngineConfig,
    ExecutorConfig,
    Experiment,
    Nsga2Config,
    PoolConfig,
    RandomConfig,
    RayConfig,
    SerialConfig,
)
from evomerge.config.space import GeneRange, OperatorConfig, ParameterSpaceConfig

__all__ = [
    "Algorithm",
    "Budget",
    "CmaConfig",
    "Coefficient",
    "ConfirmConfig",
    "ConstraintConfig",
    "EngineConfig",
    "ExecutorConfig",
    "Experiment",
    "FitnessConfig",
    "GeneRange",
    "ItemsConfig",
    "Measured",
    "Nsga2Config",
    "ObjectiveConfig",
    "OperatorConfig",
    "ParameterSpaceConfig",
    "PoolConfig",
    "RandomConfig",
    "RayConfig",
    "SerialConfig",
    "dump",
    "find",
    "load_experiment",
    "load_fitness",
    "load_space",
    "recorded_experiment",
    "shipped_folder",
    "shipped_names",
]
