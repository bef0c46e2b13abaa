"""Configuration: schema, YAML with lines, shipped names."""

from evomerge.config.algorithms import (
    Acquisition,
    AlgorithmConfig,
    CatCmaConfig,
    CmaConfig,
    IslandsConfig,
    MapConfig,
    Nsga2Config,
    Nsga3Config,
    RandomConfig,
    SepCmaConfig,
    SmsEmoaConfig,
)
from evomerge.config.baselines import FrankWolfeConfig, GridConfig, KinshipConfig, QdConfig, ReinforcedConfig
from evomerge.config.breeding import M2n2Config, SoupConfig, SplitPointConfig
from evomerge.config.children import ChildConfig
from evomerge.config.coefficients import Coefficient
from evomerge.config.engines import EngineConfig, OpenaiConfig, TransformersConfig, VllmConfig, transformers_config
from evomerge.config.executors import ExecutorConfig, RayConfig, SerialConfig, WorkerRange
from evomerge.config.fitness import (
    ConfirmConfig,
    FitnessConfig,
    IrtConfig,
    ItemsConfig,
    MeanConfig,
    RaceConfig,
)
from evomerge.config.loader import (
    dump,
    find,
    load_experiment,
    load_fitness,
    load_space,
    recorded_experiment,
)
from evomerge.config.measured import ConstraintConfig, Measured, Metric, ObjectiveConfig, PartConfig
from evomerge.config.models import Budget, CalibrationConfig, Experiment, PoolConfig
from evomerge.config.plugins import load_plugins, plugin_digests
from evomerge.config.refined import RefinedConfig, StageConfig
from evomerge.config.routing import GraftConfig, IndicatorSpaceConfig, PathSpaceConfig, RoutingSpaceConfig, ScaleRange
from evomerge.config.scorers import FunctionConfig, KlConfig, LossConfig, ScorerConfig, TextConfig
from evomerge.config.screening import ScreenConfig
from evomerge.config.space import GeneRange, OperatorConfig, ParameterSpaceConfig, SpaceConfig
from evomerge.shipped import shipped_folder, shipped_names

__all__ = [
    "Acquisition",
    "AlgorithmConfig",
    "Budget",
    "CalibrationConfig",
    "CatCmaConfig",
    "ChildConfig",
    "CmaConfig",
    "Coefficient",
    "ConfirmConfig",
    "ConstraintConfig",
    "EngineConfig",
    "ExecutorConfig",
    "Experiment",
    "FitnessConfig",
    "FrankWolfeConfig",
    "FunctionConfig",
    "GeneRange",
    "GraftConfig",
    "GridConfig",
    "IndicatorSpaceConfig",
    "IrtConfig",
    "IslandsConfig",
    "ItemsConfig",
    "KinshipConfig",
    "KlConfig",
    "LossConfig",
    "M2n2Config",
    "MapConfig",
    "MeanConfig",
    "Measured",
    "Metric",
    "Nsga2Config",
    "Nsga3Config",
    "ObjectiveConfig",
    "OpenaiConfig",
    "OperatorConfig",
    "ParameterSpaceConfig",
    "PartConfig",
    "PathSpaceConfig",
    "PoolConfig",
    "QdConfig",
    "RaceConfig",
    "RandomConfig",
    "RayConfig",
    "RefinedConfig",
    "ReinforcedConfig",
    "RoutingSpaceConfig",
    "ScaleRange",
    "ScorerConfig",
    "ScreenConfig",
    "SepCmaConfig",
    "SerialConfig",
    "SmsEmoaConfig",
    "SoupConfig",
    "SpaceConfig",
    "SplitPointConfig",
    "StageConfig",
    "TextConfig",
    "TransformersConfig",
    "VllmConfig",
    "WorkerRange",
    "dump",
    "find",
    "load_experiment",
    "load_fitness",
    "load_plugins",
    "load_space",
    "plugin_digests",
    "recorded_experiment",
    "shipped_folder",
    "shipped_names",
    "transformers_config",
]
