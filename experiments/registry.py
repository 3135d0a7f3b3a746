"""Every class that a gin file may name, in one explicit list.

A class that is missing here does not exist for gin. Verbs' roots come first, then
the rooms of the library in the order of CONTRIBUTING.md.
"""

from experiments.compare import CompareConfig
from experiments.convert_in import ConvertConfig
from experiments.curate import CurateConfig
from experiments.decontaminate import DecontaminateConfig
from experiments.dpo import DpoConfig
from experiments.evaluate import EvaluateConfig
from experiments.find_pivotal_tokens import FindPivotalTokensConfig
from experiments.materialize import DatasetConfig, MaterializeConfig
from experiments.midtrain import MidtrainConfig
from experiments.packed_training import ValidationConfig
from experiments.pipeline import PipelineConfig
from experiments.pretrain import PretrainConfig
from experiments.rejection_sampling import RejectionSamplingConfig
from experiments.rollouts_program import RolloutsConfig
from experiments.sample_program import SampleConfig
from experiments.sft import SftConfig
from experiments.sweep import SweepConfig
from experiments.train_quality import TrainQualityConfig
from experiments.train_tokenizer import TrainTokenizerConfig
from phi4_jax.common.mesh import MeshConfig
from phi4_jax.common.sampler import SamplingLaw
from phi4_jax.curation.agreement import AgreementConfig
from phi4_jax.curation.amplify import AmplifyConfig, FilterQualityByTopic
from phi4_jax.curation.basic_steps import DropDuplicateIds, SampleStep
from phi4_jax.curation.corrupt import DropCorruptText
from phi4_jax.curation.decontaminate import ContaminationRule, Decontaminate
from phi4_jax.curation.dedup import DropExactDuplicates, DropNearDuplicates
from phi4_jax.curation.executors import BeamExecutor, LocalExecutor
from phi4_jax.curation.extract import ExtractText
from phi4_jax.curation.extract_limits import ExtractLimits
from phi4_jax.curation.filters import FineWebQuality, GopherQuality, GopherRepetition
from phi4_jax.curation.filters_c4 import C4Lines
from phi4_jax.curation.language import IdentifyLanguage
from phi4_jax.curation.personal_data import MaskPersonalData
from phi4_jax.curation.quality import FilterQuality
from phi4_jax.curation.quality_annotations import AnnotationFile, GeneratedAnnotations
from phi4_jax.curation.quality_training import QualityTrainingConfig
from phi4_jax.data.curated import CuratedSource
from phi4_jax.data.data_config import DataConfig
from phi4_jax.data.fill_in_middle import FillInMiddleConfig
from phi4_jax.data.key_values import KeyValueSource
from phi4_jax.data.known_files import KnownTaskSource
from phi4_jax.data.packing import PackingConfig
from phi4_jax.data.planted import PlantedSource
from phi4_jax.data.preferences import PreferenceConfig
from phi4_jax.data.sources import ArithmeticSource, JsonlSource
from phi4_jax.data.sources_binary import ArrayRecordSource, TfdsSource, TFRecordSource
from phi4_jax.data.sources_folders import FolderSource
from phi4_jax.data.sources_tables import CsvSource, HuggingFaceSource, ParquetSource
from phi4_jax.data.tokenizer import VocabularyConfig
from phi4_jax.eval.tasks.arithmetic import ArithmeticTaskConfig
from phi4_jax.eval.tasks.gsm8k import Gsm8kConfig
from phi4_jax.eval.tasks.key_value import KeyValueTaskConfig
from phi4_jax.model.config import ModelConfig
from phi4_jax.model.lora import LoraConfig
from phi4_jax.model.rope_scaling import LinearRope, Llama3Rope, LongRope
from phi4_jax.pts.comb_config import CombConfig
from phi4_jax.pts.oracle_rules import (
  ChoiceRuleConfig,
  MathRuleConfig,
  NumberRuleConfig,
  PythonRuleConfig,
)
from phi4_jax.pts.question_files import QuestionFileConfig
from phi4_jax.pts.search import SearchConfig
from phi4_jax.sampling.remote import RemoteSamplerConfig
from phi4_jax.training.checkpoint import CheckpointConfig
from phi4_jax.training.guard import GuardConfig
from phi4_jax.training.optimizer import OptimizerConfig

CONFIG_CLASSES = (
  TrainTokenizerConfig,
  TrainQualityConfig,
  CurateConfig,
  MaterializeConfig,
  DecontaminateConfig,
  PretrainConfig,
  MidtrainConfig,
  SftConfig,
  DpoConfig,
  RejectionSamplingConfig,
  EvaluateConfig,
  FindPivotalTokensConfig,
  CompareConfig,
  ConvertConfig,
  PipelineConfig,
  SweepConfig,
  SampleConfig,
  RolloutsConfig,
  ValidationConfig,
  MeshConfig,
  SamplingLaw,
  DataConfig,
  PreferenceConfig,
  AgreementConfig,
  ContaminationRule,
  Decontaminate,
  DatasetConfig,
  PackingConfig,
  ArithmeticSource,
  JsonlSource,
  KeyValueSource,
  CuratedSource,
  PlantedSource,
  LocalExecutor,
  BeamExecutor,
  SampleStep,
  DropDuplicateIds,
  ParquetSource,
  CsvSource,
  HuggingFaceSource,
  ArrayRecordSource,
  TFRecordSource,
  TfdsSource,
  FolderSource,
  KnownTaskSource,
  FillInMiddleConfig,
  VocabularyConfig,
  ExtractText,
  ExtractLimits,
  IdentifyLanguage,
  DropCorruptText,
  GopherQuality,
  GopherRepetition,
  FineWebQuality,
  C4Lines,
  MaskPersonalData,
  AnnotationFile,
  GeneratedAnnotations,
  QualityTrainingConfig,
  AmplifyConfig,
  DropExactDuplicates,
  DropNearDuplicates,
  FilterQuality,
  FilterQualityByTopic,
  ArithmeticTaskConfig,
  Gsm8kConfig,
  KeyValueTaskConfig,
  ModelConfig,
  LoraConfig,
  LongRope,
  Llama3Rope,
  LinearRope,
  QuestionFileConfig,
  NumberRuleConfig,
  ChoiceRuleConfig,
  MathRuleConfig,
  PythonRuleConfig,
  RemoteSamplerConfig,
  SearchConfig,
  CombConfig,
  CheckpointConfig,
  GuardConfig,
  OptimizerConfig,
)
