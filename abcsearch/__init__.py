"""Search-based structured pruning: the smallest network that still does the job, for any CNN.

The public names, each imported from its module on first use, so that `import abcsearch` is instant and only what is
used is loaded (torch takes seconds).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abcsearch.baselines.registry import BASELINES as BASELINES
    from abcsearch.baselines.registry import Baseline as Baseline
    from abcsearch.budget import Budget as Budget
    from abcsearch.budget import Constraint as Constraint
    from abcsearch.channels.criteria import CRITERIA as CRITERIA
    from abcsearch.channels.gates import gate as gate
    from abcsearch.channels.gates import gated as gated
    from abcsearch.channels.graph import ChannelGraph as ChannelGraph
    from abcsearch.channels.group import Block as Block
    from abcsearch.channels.group import ChannelGroup as ChannelGroup
    from abcsearch.channels.groups import UnsupportedOpWarning as UnsupportedOpWarning
    from abcsearch.channels.groups import trace_channels as trace_channels
    from abcsearch.channels.options import LatencyOptions as LatencyOptions
    from abcsearch.channels.orders import Ranking as Ranking
    from abcsearch.channels.ranking import rank_channels as rank_channels
    from abcsearch.channels.repair import Repaired as Repaired
    from abcsearch.channels.sharing import share as share
    from abcsearch.channels.skipping import skipping as skipping
    from abcsearch.channels.slicing import slice_model as slice_model
    from abcsearch.channels.source import Sliced as Sliced
    from abcsearch.channels.source import Source as Source
    from abcsearch.data.registry import DATASETS as DATASETS
    from abcsearch.data.registry import load_data as load_data
    from abcsearch.data.split import Split as Split
    from abcsearch.data.splits import Data as Data
    from abcsearch.data.stream import Stream as Stream
    from abcsearch.errors import AbcSearchError as AbcSearchError
    from abcsearch.evaluation.adaptive_bn import AdaptiveBN as AdaptiveBN
    from abcsearch.evaluation.adaptive_bn import AdaptiveBNOptions as AdaptiveBNOptions
    from abcsearch.evaluation.cascade import Cascade as Cascade
    from abcsearch.evaluation.cascade import CascadeOptions as CascadeOptions
    from abcsearch.evaluation.registry import EVALUATORS as EVALUATORS
    from abcsearch.evaluation.short_training import ShortTraining as ShortTraining
    from abcsearch.evaluation.short_training import ShortTrainingOptions as ShortTrainingOptions
    from abcsearch.evaluation.sliced import ScoringOptions as ScoringOptions
    from abcsearch.evaluation.sliced import SlicedEvaluator as SlicedEvaluator
    from abcsearch.evaluation.tabular import Tabular as Tabular
    from abcsearch.example import Example as Example
    from abcsearch.execution.options import ExecutionOptions as ExecutionOptions
    from abcsearch.execution.ray_executor import RayExecutor as RayExecutor
    from abcsearch.execution.ray_training import RayTraining as RayTraining
    from abcsearch.exporting.files import Exported as Exported
    from abcsearch.exporting.files import export as export
    from abcsearch.exporting.files import load as load
    from abcsearch.exporting.quantizing import quantize as quantize
    from abcsearch.models.registry import MODELS as MODELS
    from abcsearch.preparation.base import Preparation as Preparation
    from abcsearch.preparation.base import Prepared as Prepared
    from abcsearch.preparation.base import Trainer as Trainer
    from abcsearch.results.chain import apply_chain as apply_chain
    from abcsearch.results.chain import chain_model as chain_model
    from abcsearch.results.links import Chain as Chain
    from abcsearch.results.rounds import populations as populations
    from abcsearch.runs.entry import search as search
    from abcsearch.runs.front import FrontResult as FrontResult
    from abcsearch.runs.result import SearchResult as SearchResult
    from abcsearch.runs.resuming import resume as resume
    from abcsearch.runs.seeds import SeedsResult as SeedsResult
    from abcsearch.runs.settings import SpaceOptions as SpaceOptions
    from abcsearch.searchers.base import Searcher as Searcher
    from abcsearch.searchers.bee_colony import BeeColony as BeeColony
    from abcsearch.searchers.bee_colony import BeeColonyOptions as BeeColonyOptions
    from abcsearch.searchers.bee_colony_official import BeeColonyOfficial as BeeColonyOfficial
    from abcsearch.searchers.ddpg import DDPG as DDPG
    from abcsearch.searchers.ddpg_options import DDPGOptions as DDPGOptions
    from abcsearch.searchers.evolution import Evolution as Evolution
    from abcsearch.searchers.evolution import EvolutionOptions as EvolutionOptions
    from abcsearch.searchers.greedy import Greedy as Greedy
    from abcsearch.searchers.greedy import GreedyOptions as GreedyOptions
    from abcsearch.searchers.nsga2 import NSGA2 as NSGA2
    from abcsearch.searchers.nsga2 import NSGA2Options as NSGA2Options
    from abcsearch.searchers.optuna_search import OptunaOptions as OptunaOptions
    from abcsearch.searchers.optuna_search import OptunaSearch as OptunaSearch
    from abcsearch.searchers.random_search import RandomSearch as RandomSearch
    from abcsearch.searchers.registry import SEARCHERS as SEARCHERS
    from abcsearch.searchers.registry import make_searcher as make_searcher
    from abcsearch.searchers.regularized_evolution import (
        RegularizedEvolution as RegularizedEvolution,
    )
    from abcsearch.searchers.regularized_evolution import (
        RegularizedEvolutionOptions as RegularizedEvolutionOptions,
    )
    from abcsearch.searchers.response_surface import ResponseSurface as ResponseSurface
    from abcsearch.searchers.response_surface import (
        ResponseSurfaceOptions as ResponseSurfaceOptions,
    )
    from abcsearch.searchers.sensitivity import Sensitivity as Sensitivity
    from abcsearch.searchers.sensitivity import SensitivityOptions as SensitivityOptions
    from abcsearch.searchers.sensitivity_map import SensitivityMap as SensitivityMap
    from abcsearch.searchers.sensitivity_map import sensitivity_map as sensitivity_map
    from abcsearch.space import Candidate as Candidate
    from abcsearch.space import Dimension as Dimension
    from abcsearch.space import SearchSpace as SearchSpace
    from abcsearch.training.collected import Metrics as Metrics
    from abcsearch.training.finetuning import FineTuned as FineTuned
    from abcsearch.training.finetuning import finetune as finetune
    from abcsearch.training.lesson import Lesson as Lesson
    from abcsearch.training.lesson import Supervised as Supervised
    from abcsearch.training.loop import train as train
    from abcsearch.training.objectives import METRICS as METRICS
    from abcsearch.training.objectives import OBJECTIVES as OBJECTIVES
    from abcsearch.training.objectives import OUTPUTS as OUTPUTS
    from abcsearch.training.objectives import Objective as Objective
    from abcsearch.training.recipe import PRESETS as PRESETS
    from abcsearch.training.recipe import Recipe as Recipe
    from abcsearch.training.refining import refine as refine
    from abcsearch.training.scoring import score as score
    from abcsearch.transforms.base import Applied as Applied
    from abcsearch.transforms.base import Transform as Transform
    from abcsearch.transforms.codebook import codebook as codebook
    from abcsearch.transforms.low_rank import LowRank as LowRank
    from abcsearch.transforms.low_rank import low_rank as low_rank
    from abcsearch.transforms.options import LinkOptions as LinkOptions
    from abcsearch.transforms.ranked import Ranked as Ranked
    from abcsearch.transforms.ranked import with_ranks as with_ranks
    from abcsearch.transforms.registry import TRANSFORMS as TRANSFORMS
    from abcsearch.transforms.sparse import sparsify as sparsify
    from abcsearch.trial import Evaluation as Evaluation
    from abcsearch.trial import Trial as Trial

__version__ = "0.1.0"

_HOME = {
    "BASELINES": "abcsearch.baselines.registry",
    "Baseline": "abcsearch.baselines.registry",
    "Budget": "abcsearch.budget",
    "Constraint": "abcsearch.budget",
    "Block": "abcsearch.channels.group",
    "Example": "abcsearch.example",
    "gate": "abcsearch.channels.gates",
    "gated": "abcsearch.channels.gates",
    "skipping": "abcsearch.channels.skipping",
    "ChannelGraph": "abcsearch.channels.graph",
    "ChannelGroup": "abcsearch.channels.group",
    "UnsupportedOpWarning": "abcsearch.channels.groups",
    "trace_channels": "abcsearch.channels.groups",
    "Ranking": "abcsearch.channels.orders",
    "rank_channels": "abcsearch.channels.ranking",
    "share": "abcsearch.channels.sharing",
    "Repaired": "abcsearch.channels.repair",
    "slice_model": "abcsearch.channels.slicing",
    "Sliced": "abcsearch.channels.source",
    "Source": "abcsearch.channels.source",
    "load_data": "abcsearch.data.registry",
    "Data": "abcsearch.data.splits",
    "Split": "abcsearch.data.split",
    "Stream": "abcsearch.data.stream",
    "AbcSearchError": "abcsearch.errors",
    "AdaptiveBN": "abcsearch.evaluation.adaptive_bn",
    "AdaptiveBNOptions": "abcsearch.evaluation.adaptive_bn",
    "Cascade": "abcsearch.evaluation.cascade",
    "CascadeOptions": "abcsearch.evaluation.cascade",
    "ShortTraining": "abcsearch.evaluation.short_training",
    "ShortTrainingOptions": "abcsearch.evaluation.short_training",
    "ScoringOptions": "abcsearch.evaluation.sliced",
    "SlicedEvaluator": "abcsearch.evaluation.sliced",
    "Tabular": "abcsearch.evaluation.tabular",
    "ExecutionOptions": "abcsearch.execution.options",
    "RayExecutor": "abcsearch.execution.ray_executor",
    "RayTraining": "abcsearch.execution.ray_training",
    "Exported": "abcsearch.exporting.files",
    "export": "abcsearch.exporting.files",
    "load": "abcsearch.exporting.files",
    "quantize": "abcsearch.exporting.quantizing",
    "Prepared": "abcsearch.preparation.base",
    "Preparation": "abcsearch.preparation.base",
    "Trainer": "abcsearch.preparation.base",
    "resume": "abcsearch.runs.resuming",
    "FrontResult": "abcsearch.runs.front",
    "SearchResult": "abcsearch.runs.result",
    "search": "abcsearch.runs.entry",
    "populations": "abcsearch.results.rounds",
    "apply_chain": "abcsearch.results.chain",
    "chain_model": "abcsearch.results.chain",
    "Chain": "abcsearch.results.links",
    "SeedsResult": "abcsearch.runs.seeds",
    "LatencyOptions": "abcsearch.channels.options",
    "SpaceOptions": "abcsearch.runs.settings",
    "Searcher": "abcsearch.searchers.base",
    "BeeColony": "abcsearch.searchers.bee_colony",
    "BeeColonyOptions": "abcsearch.searchers.bee_colony",
    "BeeColonyOfficial": "abcsearch.searchers.bee_colony_official",
    "Evolution": "abcsearch.searchers.evolution",
    "EvolutionOptions": "abcsearch.searchers.evolution",
    "Greedy": "abcsearch.searchers.greedy",
    "GreedyOptions": "abcsearch.searchers.greedy",
    "NSGA2": "abcsearch.searchers.nsga2",
    "NSGA2Options": "abcsearch.searchers.nsga2",
    "DDPG": "abcsearch.searchers.ddpg",
    "DDPGOptions": "abcsearch.searchers.ddpg_options",
    "OptunaOptions": "abcsearch.searchers.optuna_search",
    "OptunaSearch": "abcsearch.searchers.optuna_search",
    "RandomSearch": "abcsearch.searchers.random_search",
    "RegularizedEvolution": "abcsearch.searchers.regularized_evolution",
    "RegularizedEvolutionOptions": "abcsearch.searchers.regularized_evolution",
    "make_searcher": "abcsearch.searchers.registry",
    "ResponseSurface": "abcsearch.searchers.response_surface",
    "ResponseSurfaceOptions": "abcsearch.searchers.response_surface",
    "Sensitivity": "abcsearch.searchers.sensitivity",
    "SensitivityOptions": "abcsearch.searchers.sensitivity",
    "SensitivityMap": "abcsearch.searchers.sensitivity_map",
    "sensitivity_map": "abcsearch.searchers.sensitivity_map",
    "Candidate": "abcsearch.space",
    "Dimension": "abcsearch.space",
    "SearchSpace": "abcsearch.space",
    "FineTuned": "abcsearch.training.finetuning",
    "finetune": "abcsearch.training.finetuning",
    "Lesson": "abcsearch.training.lesson",
    "Supervised": "abcsearch.training.lesson",
    "train": "abcsearch.training.loop",
    "Metrics": "abcsearch.training.collected",
    "OBJECTIVES": "abcsearch.training.objectives",
    "OUTPUTS": "abcsearch.training.objectives",
    "Objective": "abcsearch.training.objectives",
    "PRESETS": "abcsearch.training.recipe",
    "Recipe": "abcsearch.training.recipe",
    "refine": "abcsearch.training.refining",
    "score": "abcsearch.training.scoring",
    "CRITERIA": "abcsearch.channels.criteria",
    "DATASETS": "abcsearch.data.registry",
    "EVALUATORS": "abcsearch.evaluation.registry",
    "MODELS": "abcsearch.models.registry",
    "SEARCHERS": "abcsearch.searchers.registry",
    "METRICS": "abcsearch.training.objectives",
    "Applied": "abcsearch.transforms.base",
    "Transform": "abcsearch.transforms.base",
    "codebook": "abcsearch.transforms.codebook",
    "LowRank": "abcsearch.transforms.low_rank",
    "low_rank": "abcsearch.transforms.low_rank",
    "Ranked": "abcsearch.transforms.ranked",
    "with_ranks": "abcsearch.transforms.ranked",
    "LinkOptions": "abcsearch.transforms.options",
    "TRANSFORMS": "abcsearch.transforms.registry",
    "sparsify": "abcsearch.transforms.sparse",
    "Evaluation": "abcsearch.trial",
    "Trial": "abcsearch.trial",
}


__all__ = [*_HOME]  # noqa: PLE0604 - strings  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Imports a public name from its module."""
    if name not in _HOME:
        msg = f"module 'abcsearch' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the public names."""
    return sorted([*_HOME, "__version__"])
