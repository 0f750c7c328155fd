"""Many runs: several seeds or settings trained, then gathered, compared and chosen from.

* training: `sweep`, `planned_runs` (what it was to train), `seeds` (of one configuration),
  `processes` (which train both);
* afterwards: `run_groups` (folders as groups of seeds), `aggregate` (tables), `intervals` (their
  statistics), `curves`, `provenance` (what a table was made from), `selection` (RAMBO-OFF, or by
  `episodes_in_fit`).
"""
