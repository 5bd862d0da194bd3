"""graftwork: adapter layers for any frozen Hugging Face transformer. Train, compose, package and serve them.

Public names load on first use, so `import graftwork` needs neither torch nor transformers.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftwork.compose.answer import AdapterOutput as AdapterOutput
    from graftwork.compose.grammar import parse as parse
    from graftwork.compose.lower import Lanes as Lanes
    from graftwork.compose.tree import Average as Average
    from graftwork.compose.tree import BatchSplit as BatchSplit
    from graftwork.compose.tree import Fuse as Fuse
    from graftwork.compose.tree import Parallel as Parallel
    from graftwork.compose.tree import Split as Split
    from graftwork.compose.tree import Stack as Stack
    from graftwork.core.bottleneck import BottleneckConfig as BottleneckConfig
    from graftwork.core.dora import DoRAConfig as DoRAConfig
    from graftwork.core.ia3 import IA3Config as IA3Config
    from graftwork.core.kinds import AdapterConfig as AdapterConfig
    from graftwork.core.kinds import AdapterPlusConfig as AdapterPlusConfig
    from graftwork.core.kinds import BnConfig as BnConfig
    from graftwork.core.kinds import CompacterConfig as CompacterConfig
    from graftwork.core.kinds import CompacterPlusPlusConfig as CompacterPlusPlusConfig
    from graftwork.core.kinds import ConfigUnion as ConfigUnion
    from graftwork.core.kinds import DiReftConfig as DiReftConfig
    from graftwork.core.kinds import DoubleSeqBnConfig as DoubleSeqBnConfig
    from graftwork.core.kinds import DoubleSeqBnInvConfig as DoubleSeqBnInvConfig
    from graftwork.core.kinds import LoReftConfig as LoReftConfig
    from graftwork.core.kinds import MAMConfig as MAMConfig
    from graftwork.core.kinds import NoReftConfig as NoReftConfig
    from graftwork.core.kinds import ParBnConfig as ParBnConfig
    from graftwork.core.kinds import SeqBnConfig as SeqBnConfig
    from graftwork.core.kinds import SeqBnInvConfig as SeqBnInvConfig
    from graftwork.core.kinds import UniPELTConfig as UniPELTConfig
    from graftwork.core.lora import LoRAConfig as LoRAConfig
    from graftwork.core.prefix import PrefixTuningConfig as PrefixTuningConfig
    from graftwork.core.prompt import PromptTuningConfig as PromptTuningConfig
    from graftwork.core.vera import VeraConfig as VeraConfig
    from graftwork.errors import AdapterError as AdapterError
    from graftwork.errors import BackboneError as BackboneError
    from graftwork.errors import CompositionError as CompositionError
    from graftwork.errors import Conflict as Conflict
    from graftwork.errors import DataError as DataError
    from graftwork.errors import GoalMissed as GoalMissed
    from graftwork.errors import GraftworkError as GraftworkError
    from graftwork.errors import InputTooLong as InputTooLong
    from graftwork.errors import NotFound as NotFound
    from graftwork.errors import PackageError as PackageError
    from graftwork.errors import RecipeError as RecipeError
    from graftwork.errors import RoutingError as RoutingError
    from graftwork.errors import UserError as UserError
    from graftwork.model import AdapterModel as AdapterModel
    from graftwork.model import AutoAdapterModel as AutoAdapterModel
    from graftwork.recipe import Recipe as Recipe
    from graftwork.registry.package import Package as Package
    from graftwork.registry.store import Registry as Registry
    from graftwork.serve.engine import Engine as Engine
    from graftwork.train.trainer import AdapterTrainer as AdapterTrainer

    __version__: str

# Public name -> the file that defines it. The imports above say the same to type checkers; a test compares the two.
DEFINED_IN = {
    "AdapterConfig": "graftwork.core.kinds",
    "AdapterError": "graftwork.errors",
    "AdapterModel": "graftwork.model",
    "AdapterOutput": "graftwork.compose.answer",
    "AdapterPlusConfig": "graftwork.core.kinds",
    "AdapterTrainer": "graftwork.train.trainer",
    "AutoAdapterModel": "graftwork.model",
    "Average": "graftwork.compose.tree",
    "BackboneError": "graftwork.errors",
    "BatchSplit": "graftwork.compose.tree",
    "BnConfig": "graftwork.core.kinds",
    "BottleneckConfig": "graftwork.core.bottleneck",
    "CompacterConfig": "graftwork.core.kinds",
    "CompacterPlusPlusConfig": "graftwork.core.kinds",
    "CompositionError": "graftwork.errors",
    "ConfigUnion": "graftwork.core.kinds",
    "Conflict": "graftwork.errors",
    "DataError": "graftwork.errors",
    "DiReftConfig": "graftwork.core.kinds",
    "DoRAConfig": "graftwork.core.dora",
    "DoubleSeqBnConfig": "graftwork.core.kinds",
    "DoubleSeqBnInvConfig": "graftwork.core.kinds",
    "Engine": "graftwork.serve.engine",
    "Fuse": "graftwork.compose.tree",
    "GoalMissed": "graftwork.errors",
    "GraftworkError": "graftwork.errors",
    "IA3Config": "graftwork.core.ia3",
    "InputTooLong": "graftwork.errors",
    "Lanes": "graftwork.compose.lower",
    "LoRAConfig": "graftwork.core.lora",
    "LoReftConfig": "graftwork.core.kinds",
    "MAMConfig": "graftwork.core.kinds",
    "NoReftConfig": "graftwork.core.kinds",
    "NotFound": "graftwork.errors",
    "Package": "graftwork.registry.package",
    "PackageError": "graftwork.errors",
    "ParBnConfig": "graftwork.core.kinds",
    "Parallel": "graftwork.compose.tree",
    "PrefixTuningConfig": "graftwork.core.prefix",
    "PromptTuningConfig": "graftwork.core.prompt",
    "Recipe": "graftwork.recipe",
    "RecipeError": "graftwork.errors",
    "Registry": "graftwork.registry.store",
    "RoutingError": "graftwork.errors",
    "SeqBnConfig": "graftwork.core.kinds",
    "SeqBnInvConfig": "graftwork.core.kinds",
    "Split": "graftwork.compose.tree",
    "Stack": "graftwork.compose.tree",
    "UniPELTConfig": "graftwork.core.kinds",
    "UserError": "graftwork.errors",
    "VeraConfig": "graftwork.core.vera",
    "parse": "graftwork.compose.grammar",
}
__all__ = sorted([*DEFINED_IN, "__version__"])


def __getattr__(name: str) -> object:
    """Load a public name from the file that defines it (PEP 562). Raises AttributeError for any other name."""
    if name == "__version__":
        return version("graftwork")
    if name not in DEFINED_IN:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}; the public names are in graftwork.__all__")
    return getattr(import_module(DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return __all__
