"""One run, from its settings to what its folder holds: `experiment.run` is the way through.

* settings: `config` (the dataclasses), `settings` (their fields), `config_files` (YAML, overrides);
* before and in training: `preparation` (data, environment, fit), `assembly` (agent and callback),
  `experiment`, `evaluation` in `real_env`, `rendering`, `progress`, `divergence`, `signals`;
* what lies in the folder: `run_folder`, `results`, `plots`, `atomic_files`, `checkpoints`, and
  `resumption` from them.
"""
