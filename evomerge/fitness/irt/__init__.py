"""Item response theory: mean scores over a whole task from a few chosen items, with an uncertainty that is checked."""

from evomerge.fitness.irt.ability import Abilities, AbilityPrior, map_abilities, population_prior
from evomerge.fitness.irt.audit import (
    Audit,
    Remedy,
    Residuals,
    audit_generation,
    audit_of,
    corrected,
    inclusion_of,
    residuals_of,
)
from evomerge.fitness.irt.bank import ItemBank, content_digest, load_bank, save_bank
from evomerge.fitness.irt.calibrate import PROMOTED_WEIGHT, dimensions_for, fit_bank
from evomerge.fitness.irt.design import (
    audit_order,
    audited,
    audited_batch,
    informative,
    kmeans_anchors,
    random_items,
    strata_of,
    stratified_items,
)
from evomerge.fitness.irt.estimators import (
    Aipw,
    Estimates,
    Estimator,
    MapAbility,
    PlainMean,
    Stratified,
    audit_z,
    model_score,
)
from evomerge.fitness.irt.prior import Family, family_prior
from evomerge.fitness.irt.published import GmpIrt, GpIrt, MpIrt, PIrt, gp_weight

__all__ = [
    "PROMOTED_WEIGHT",
    "Abilities",
    "AbilityPrior",
    "Aipw",
    "Audit",
    "Estimates",
    "Estimator",
    "Family",
    "GmpIrt",
    "GpIrt",
    "ItemBank",
    "MapAbility",
    "MpIrt",
    "PIrt",
    "PlainMean",
    "Remedy",
    "Residuals",
    "Stratified",
    "audit_generation",
    "audit_of",
    "audit_order",
    "audit_z",
    "audited",
    "audited_batch",
    "content_digest",
    "corrected",
    "dimensions_for",
    "family_prior",
    "fit_bank",
    "gp_weight",
    "inclusion_of",
    "informative",
    "kmeans_anchors",
    "load_bank",
    "map_abilities",
    "model_score",
    "population_prior",
    "random_items",
    "residuals_of",
    "save_bank",
    "strata_of",
    "stratified_items",
]
