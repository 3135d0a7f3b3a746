"""Every class that a gin file may name, in one explicit list, and the file it is in.

A class that is missing here does not exist for gin. A file is imported when a run
reaches one of its classes: a verb that prepares data need not wait for jax. Verbs'
roots come first, then the rooms of the library in the order of CONTRIBUTING.md.
"""

import importlib
from typing import Any

# The verbs' roots: where a field takes a StageConfig, it takes all of these.
STAGES = {
  "TrainTokenizerConfig": "experiments.train_tokenizer",
  "TrainQualityConfig": "experiments.train_quality",
  "CurateConfig": "experiments.curate",
  "MaterializeConfig": "experiments.materialize",
  "DecontaminateConfig": "experiments.decontaminate",
  "PretrainConfig": "experiments.pretrain",
  "MidtrainConfig": "experiments.midtrain",
  "SftConfig": "experiments.sft",
  "DpoConfig": "experiments.dpo",
  "RejectionSamplingConfig": "experiments.rejection_sampling",
  "EvaluateConfig": "experiments.evaluate",
  "FilterQuestionsConfig": "experiments.filter_questions",
  "FindPivotalTokensConfig": "experiments.find_pivotal_tokens",
  "CompareConfig": "experiments.compare",
  "ConvertConfig": "experiments.convert_in",
  "PipelineConfig": "experiments.pipeline",
  "SweepConfig": "experiments.sweep",
}

# Where a field takes a SourceConfig, it takes all of these.
SOURCES = {
  "ArithmeticSource": "phi4_jax.data.sources",
  "JsonlSource": "phi4_jax.data.sources",
  "KeyValueSource": "phi4_jax.data.key_values",
  "CuratedSource": "phi4_jax.data.curated",
  "PlantedSource": "phi4_jax.data.planted",
  "ParquetSource": "phi4_jax.data.sources_tables",
  "CsvSource": "phi4_jax.data.sources_tables",
  "HuggingFaceSource": "phi4_jax.data.sources_tables",
  "ArrayRecordSource": "phi4_jax.data.sources_binary",
  "TFRecordSource": "phi4_jax.data.sources_binary",
  "TfdsSource": "phi4_jax.data.sources_binary",
  "FolderSource": "phi4_jax.data.sources_folders",
  "KnownTaskSource": "phi4_jax.data.known_files",
}

PARTS = {
  "SampleConfig": "experiments.sample_program",
  "RolloutsConfig": "experiments.rollouts_program",
  "ValidationConfig": "experiments.packed_training",
  "DatasetConfig": "experiments.materialize",
  "MeshConfig": "phi4_jax.common.mesh",
  "SamplingLaw": "phi4_jax.common.sampler",
  "ModelConfig": "phi4_jax.model.config",
  "LoraConfig": "phi4_jax.model.lora",
  "LongRope": "phi4_jax.model.rope_scaling",
  "Llama3Rope": "phi4_jax.model.rope_scaling",
  "LinearRope": "phi4_jax.model.rope_scaling",
  "DataConfig": "phi4_jax.data.data_config",
  "PreferenceConfig": "phi4_jax.data.preferences",
  "PackingConfig": "phi4_jax.data.packing",
  "FillInMiddleConfig": "phi4_jax.data.fill_in_middle",
  "VocabularyConfig": "phi4_jax.data.tokenizer",
  "AgreementConfig": "phi4_jax.curation.agreement",
  "ContaminationRule": "phi4_jax.curation.decontaminate",
  "Decontaminate": "phi4_jax.curation.decontaminate",
  "LocalExecutor": "phi4_jax.curation.executors",
  "BeamExecutor": "phi4_jax.curation.executors",
  "SampleStep": "phi4_jax.curation.basic_steps",
  "DropDuplicateIds": "phi4_jax.curation.basic_steps",
  "ExtractText": "phi4_jax.curation.extract",
  "ExtractLimits": "phi4_jax.curation.extract_limits",
  "IdentifyLanguage": "phi4_jax.curation.language",
  "DropCorruptText": "phi4_jax.curation.corrupt",
  "GopherQuality": "phi4_jax.curation.filters",
  "GopherRepetition": "phi4_jax.curation.filters",
  "FineWebQuality": "phi4_jax.curation.filters",
  "C4Lines": "phi4_jax.curation.filters_c4",
  "MaskPersonalData": "phi4_jax.curation.personal_data",
  "AnnotationFile": "phi4_jax.curation.quality_annotations",
  "GeneratedAnnotations": "phi4_jax.curation.quality_annotations",
  "QualityTrainingConfig": "phi4_jax.curation.quality_training",
  "AmplifyConfig": "phi4_jax.curation.amplify",
  "DropExactDuplicates": "phi4_jax.curation.dedup",
  "DropNearDuplicates": "phi4_jax.curation.dedup",
  "FilterQuality": "phi4_jax.curation.quality",
  "FilterQualityByTopic": "phi4_jax.curation.amplify",
  "CheckpointConfig": "phi4_jax.training.checkpoint",
  "GuardConfig": "phi4_jax.training.guard",
  "OptimizerConfig": "phi4_jax.training.optimizer",
  "RemoteSamplerConfig": "phi4_jax.sampling.remote",
  "ArithmeticTaskConfig": "phi4_jax.eval.tasks.arithmetic",
  "Gsm8kConfig": "phi4_jax.eval.tasks.gsm8k",
  "KeyValueTaskConfig": "phi4_jax.eval.tasks.key_value",
  "QuestionFileConfig": "phi4_jax.pts.question_files",
  "NumberRuleConfig": "phi4_jax.pts.oracle_rules",
  "ChoiceRuleConfig": "phi4_jax.pts.oracle_rules",
  "MathRuleConfig": "phi4_jax.pts.oracle_rules",
  "PythonRuleConfig": "phi4_jax.pts.oracle_rules",
  "SearchConfig": "phi4_jax.pts.search",
  "CombConfig": "phi4_jax.pts.comb_config",
}

MODULES = {**STAGES, **SOURCES, **PARTS}
# A base class that fields take -> names of the classes that may stand there.
KINDS = {"StageConfig": STAGES, "SourceConfig": SOURCES}


def find_class(name: str) -> type[Any]:
  """Imports the class of that name; `name` is one of `MODULES`."""
  return getattr(importlib.import_module(MODULES[name]), name)
