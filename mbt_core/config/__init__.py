"""Configuration: what an experiment may say, the recipes that say it, and the files that belong to it."""

from mbt_core.config.experiment import DEFAULT_TASK as DEFAULT_TASK
from mbt_core.config.experiment import BackboneConfig as BackboneConfig
from mbt_core.config.experiment import DataConfig as DataConfig
from mbt_core.config.experiment import EvaluateConfig as EvaluateConfig
from mbt_core.config.experiment import Experiment as Experiment
from mbt_core.config.experiment import FusionConfig as FusionConfig
from mbt_core.config.experiment import HeadConfig as HeadConfig
from mbt_core.config.experiment import MBTConfig as MBTConfig
from mbt_core.config.experiment import Modalities as Modalities
from mbt_core.config.experiment import ModelConfig as ModelConfig
from mbt_core.config.experiment import TaskKind as TaskKind
from mbt_core.config.experiment import check_name as check_name
from mbt_core.config.experiment import parse_modalities as parse_modalities
from mbt_core.config.training import TrainConfig as TrainConfig
