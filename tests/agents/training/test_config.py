"""The configuration: shipped files against the paper's tables, round trips, and each error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agents.training.config import (
    AdversaryConfig,
    ModelConfig,
    RolloutConfig,
    TrainConfig,
    config_names,
    dump_config,
    load_config,
)

# (horizon, lambda), RAMBO-RL Table 5.
TABLE_5 = {
    "halfcheetah-random": (5, 0.0),
    "halfcheetah-medium": (5, 3e-4),
    "halfcheetah-medium-replay": (5, 3e-4),
    "halfcheetah-medium-expert": (5, 3e-4),
    "hopper-random": (2, 3e-4),
    "hopper-medium": (5, 3e-4),
    "hopper-medium-replay": (2, 3e-4),
    "hopper-medium-expert": (5, 3e-4),
    "walker2d-random": (5, 0.0),
    "walker2d-medium": (5, 0.0),
    "walker2d-medium-replay": (5, 0.0),
    "walker2d-medium-expert": (2, 3e-4),
}
# (lambda, rollout policy); horizon 5 throughout.
ANTMAZE = {
    "antmaze-umaze": (3e-4, "current"),
    "antmaze-umaze-diverse": (0.0, "random"),
    "antmaze-medium-play": (0.0, "random"),
    "antmaze-medium-diverse": (0.0, "random"),
    "antmaze-large-play": (3e-4, "random"),
    "antmaze-large-diverse": (0.0, "random"),
}


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# What ships


@pytest.mark.parametrize("name", TABLE_5)
def test_mujoco_files_have_the_settings_of_table_5(name: str) -> None:
    config = load_config(name)
    assert (config.rollout.horizon, config.adversary.weight) == TABLE_5[name]
    assert config.dataset == f"d4rl:{name}-v2"
    assert config.rollout.policy == "current"
    assert config.cloning.epochs == 50


@pytest.mark.parametrize("name", ANTMAZE)
def test_antmaze_files_have_the_settings_of_table_5(name: str) -> None:
    config = load_config(name)
    assert (config.adversary.weight, config.rollout.policy) == ANTMAZE[name]
    assert config.dataset == f"d4rl:{name}-v0"
    assert config.rollout.horizon == 5
    assert config.data.reward_offset == -1.0
    assert config.cloning.epochs == 0
    assert config.model.termination == "never"


def test_the_shipped_names_are_the_18_benchmark_sets_two_built_in_and_a_preset() -> None:
    built_in = {"pendulum-random", "halfcheetah-medium-replay-cpu"}
    assert set(config_names()) == {*TABLE_5, *ANTMAZE, *built_in, "fast"}
    assert config_names() == sorted(config_names())


def test_benchmark_files_change_nothing_but_the_data_set_and_table_5() -> None:
    """All else is Table 4's, which is also what a TrainConfig has by default."""
    changed = {"dataset", "name", "rollout", "adversary"}
    default = TrainConfig(dataset="any")
    for name in TABLE_5:
        config = load_config(name)
        for field in dataclasses.fields(TrainConfig):
            if field.name not in changed:
                assert getattr(config, field.name) == getattr(default, field.name)


def test_base_spells_out_the_defaults() -> None:
    assert load_config("base", ["dataset=any"]) == TrainConfig(dataset="any", name="base")


def test_base_alone_asks_for_a_data_set() -> None:
    with pytest.raises(ValueError, match=r"no dataset; give one: dataset="):
        load_config("base")


def test_the_cpu_file_is_the_paper_with_a_smaller_budget() -> None:
    config = load_config("halfcheetah-medium-replay-cpu")
    assert config.dataset == "halfcheetah-medium-replay"
    assert config.model.hidden_sizes == (200, 200, 200, 200)
    assert config.agent.hidden_sizes == (256, 256)
    assert (config.rollout.horizon, config.adversary.weight) == (5, 3e-4)
    assert (config.adversary.score, config.adversary.updates) == ("member", 200)


# Reading and writing


@pytest.mark.parametrize("name", [*TABLE_5, *ANTMAZE, "pendulum-random"])
def test_what_is_written_reads_back_as_the_same(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["seed=7"])
    path = write(tmp_path, dump_config(config), "config.yaml")
    assert load_config(path) == config


@pytest.mark.parametrize(
    "text",
    [
        "1e-4",
        "12",
        "null",
        "on",
        "~",
        "a: b # c",
        "Übung",
        "2024-01-01",
        "1:3",
        "010",
        "-.5",
        "+.5e1",
    ],
)
def test_texts_that_look_like_something_else_survive(text: str, tmp_path: Path) -> None:
    config = TrainConfig(dataset=text, out=text)
    path = write(tmp_path, dump_config(config))
    assert load_config(path, ["name=train"]) == config


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", "+3e-04", "30e-5", ".3e-3"])
def test_every_way_to_write_a_number_is_a_number(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"dataset: d\nadversary:\n  weight: {text}\n")
    from_file = load_config(path).adversary.weight
    from_override = load_config("base", ["dataset=d", f"adversary.weight={text}"]).adversary.weight
    assert from_file == from_override == pytest.approx(3e-4)


@pytest.mark.parametrize("text", ["1:3", "010", "0x10", "0b11", "1:40", "-1:30"])
def test_a_whole_number_is_decimal_or_refused(text: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 63, 8, 16, 3, 100 and -90."""
    path = write(tmp_path, f"dataset: d\niterations: {text}\n")
    message = f"iterations = '{text}': expected a whole number"
    with pytest.raises(ValueError, match=message):
        load_config(path)
    with pytest.raises(ValueError, match=message):
        load_config("pendulum-random", [f"iterations={text}"])


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("+7", 7), ("1_000", 1000), ("20", 20)])
def test_decimal_whole_numbers_stay_numbers(text: str, number: int) -> None:
    assert load_config("pendulum-random", [f"seed={text}"]).seed == number


@pytest.mark.parametrize("text", ["1:30.5", "-1:30.0"])
def test_a_number_with_a_point_has_no_colon(text: str) -> None:
    with pytest.raises(ValueError, match=f"reward_offset = '{text}': expected a number"):
        load_config("pendulum-random", [f"data.reward_offset={text}"])


def test_fields_have_their_declared_types() -> None:
    config = load_config(
        "base", ["dataset=d", "iterations=1e3", "data.reward_offset=-1", "agent.ent_coef=1"]
    )
    assert config.iterations == 1000
    assert isinstance(config.iterations, int)
    assert isinstance(config.data.reward_offset, float)
    assert isinstance(config.agent.ent_coef, float)
    assert config.agent.hidden_sizes == (256, 256)


def test_later_overrides_win_and_null_is_a_value() -> None:
    config = load_config(
        "pendulum-random",
        ["seed=1", "seed=2", "n_threads=null", "agent.hidden_sizes=[8, 16]", "model.cache=false"],
    )
    assert config.seed == 2
    assert config.n_threads is None
    assert config.agent.hidden_sizes == (8, 16)
    assert config.model.cache is False


def test_a_text_override_is_taken_as_it_stands() -> None:
    overrides = ["dataset=d4rl:a=b # c", "out=2024", "evaluation.env_id='mod:Env-v0'"]
    config = load_config("base", overrides)
    assert config.dataset == "d4rl:a=b # c"
    assert config.out == "2024"
    assert config.evaluation.env_id == "mod:Env-v0"


def test_a_data_set_beside_the_file_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.npz").write_bytes(b"")
    path = write(tmp_path, "extends: base\ndataset: log.npz\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_config(path).dataset == str(tmp_path / "log.npz")
    (elsewhere / "log.npz").write_bytes(b"")  # one configuration means one file
    assert load_config(path).dataset == str(tmp_path / "log.npz")


def test_a_file_extends_one_beside_it_and_that_one_a_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, "extends: hopper-random\nseed: 3\nrollout: {starts: 10}\n", "parent.yaml")
    path = write(tmp_path, "extends: parent.yaml\nrollout:\n  policy: random\nmodel:\n")
    config = load_config(path)
    assert config.dataset == "d4rl:hopper-random-v2"
    assert (config.seed, config.name) == (3, "mine")
    assert config.rollout == RolloutConfig(starts=10, horizon=2, policy="random")


def test_a_key_may_be_dotted_and_replaces_that_of_an_extended_file(tmp_path: Path) -> None:
    write(tmp_path, "dataset: d\nagent: {updates: 6}\n", "parent.yaml")
    path = write(tmp_path, "extends: parent.yaml\nagent.updates: 5\nagent: {tau: 0.1}\n")
    config = load_config(path)
    assert (config.agent.updates, config.agent.tau) == (5, 0.1)


def test_names_and_paths_find_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("hopper-medium") == load_config("hopper-medium.yaml")
    write(tmp_path, "dataset: own\n", "hopper-medium.yaml")
    assert load_config("hopper-medium.yaml").dataset == "own"
    assert load_config("hopper-medium").dataset == "d4rl:hopper-medium-v2"


def test_the_name_of_the_run_comes_from_the_file(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "dataset: d\n", "my run (2).yaml")).name == "my-run-2-"
    assert load_config("hopper-medium").name == "hopper-medium"


# Errors


BAD_OVERRIDES = [
    ("rollout.horizon=0", r"rollout\.horizon = 0: must be at least 1"),
    ("rollout.horizon=2.5", r"rollout\.horizon = 2\.5: expected a whole number"),
    ("rollout.starts=ten", r"rollout\.starts = 'ten': expected a whole number"),
    ("rollout.policy=greedy", r"rollout\.policy = 'greedy': expected one of current, random"),
    ("rollout.member_per=row", r"member_per = 'row': expected one of step, rollout"),
    ("agent.real_ratio=1.5", r"agent\.real_ratio = 1\.5: must be at most 1"),
    ("agent.real_ratio=-0.1", r"agent\.real_ratio = -0\.1: must be at least 0"),
    ("agent.tau=0", r"agent\.tau = 0\.0: must be greater than 0"),
    ("agent.gamma=.nan", r"agent\.gamma = nan: expected a finite number"),
    ("agent.gamma=.inf", r"agent\.gamma = inf: expected a finite number"),
    ("agent.gamma=true", r"agent\.gamma = True: expected a number"),
    ("agent.ent_coef=-1", r"agent\.ent_coef = -1\.0: must be at least 0"),
    ("agent.ent_coef=auto_high", r"agent\.ent_coef = 'auto_high': expected auto, auto_X"),
    ("agent.ent_coef=auto_0", r"agent\.ent_coef = 'auto_0': expected a start value above 0; .*=0"),
    ("agent.ent_coef=auto_0.0e3", r"agent\.ent_coef = 'auto_0\.0e3': expected a start value"),
    ("agent.ent_coef=auto_1e999", r"agent\.ent_coef = 'auto_1e999': expected a start value"),
    ("agent.target_entropy=low", r"agent\.target_entropy = 'low': expected auto"),
    ("agent.hidden_sizes=256", r"hidden_sizes = 256: expected a list of whole numbers"),
    ("agent.hidden_sizes=[]", r"hidden_sizes = \[\]: expected at least one number"),
    ("agent.hidden_sizes=[8, 0]", r"hidden_sizes = 0: must be at least 1"),
    ("agent.layer_norm=1", r"agent\.layer_norm = 1: expected true or false"),
    ("model.n_elites=8", r"model\.n_elites = 8: must be at most model\.n_networks = 7"),
    ("model.termination=a b", r"model\.termination = 'a b': expected auto, never"),
    ("model.max_steps=0", r"model\.max_steps = 0: must be at least 1"),
    ("adversary.score=both", r"score = 'both': expected one of mixture, member, pathwise"),
    ("adversary.weight=-1e-4", r"adversary\.weight = -0\.0001: must be at least 0"),
    ("cloning.epochs=-1", r"cloning\.epochs = -1: must be at least 0"),
    ("evaluation.every=0", r"evaluation\.every = 0: must be at least 1"),
    ("seed=null", r"seed = null: expected a whole number"),
    ("seed=4294967296", r"seed = 4294967296: must be at most 4294967295"),
    ("seeds=1:3", r"seeds = '1:3': expected a whole number or null; a range is .* --seeds A:B"),
    ("seeds=0", r"seeds = 0: must be at least 1"),
    ("seeds=20240101", r"seeds = 20240101: must be at most 10000"),
    ("device=gpu", r"device = 'gpu': expected auto, cpu, cuda"),
    ("dataset=' '", r"dataset = ' ': expected a name"),
    ("name=../x", r"name = '\.\./x': expected letters"),
    ("seed", r"override 'seed': expected key=value"),
    ("rollout=5", r"rollout is a section; set one of its keys"),
    ("rollout.horizn=5", r"unknown key 'rollout\.horizn'; the nearest known: rollout\.horizon"),
    ("horizon=5", r"unknown key 'horizon'; the nearest known: rollout\.horizon"),
    ("sede=5", r"unknown key 'sede'; the nearest known: seed"),
    ("batch_size=5", r"the nearest known: agent\.batch_size, adversary\.batch_size"),
    ("agent.hidden_sizes=[1", r"override 'agent\.hidden_sizes=\[1': line 1"),
    ("seed=!!python/name:os.system", r"is not read here: write plain values"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_a_bad_override_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config("pendulum-random", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", ["0", "1e-3"])  # 1e-3 of the 256 rows is none
def test_a_clone_is_not_kept_without_rows_of_data(ratio: str) -> None:
    words = [f"agent.real_ratio={ratio}"]
    assert load_config("pendulum-random", words).agent.cloning_weight == 0.0
    with pytest.raises(ValueError, match=r"agent\.cloning_weight = 0\.1: needs rows of data"):
        load_config("pendulum-random", [*words, "agent.cloning_weight=0.1"])


BAD_FILES = [
    ("dataset: [d\n", r"mine\.yaml: line \d+, column \d+: "),
    ("- dataset\n", r"mine\.yaml: expected lines of 'key: value', found list"),
    ("dataset: d\nrolout:\n  horizon: 1\n", r"mine\.yaml: unknown key 'rolout'"),
    ("dataset: d\nrollout:\n  horizn: 1\n", r"the nearest known: rollout\.horizon"),
    ("dataset: d\nrollout: 3\n", r"mine\.yaml: rollout = 3: expected a section"),
    (
        "dataset: d\nagent.updates: 5\nagent: {updates: 6}\n",
        r"mine\.yaml: the key 'agent\.updates' stands twice, once as updates below agent: leave",
    ),
    ("agent: {updates: 6}\ndataset: d\nagent.updates: 5\n", r"'agent\.updates' stands twice"),
    ("dataset: d\nseed: 1\nseed: 2\n", r"line 3, column 1: the key 'seed' stands twice"),
    ("dataset: !!python/object/apply:os.getcwd []\n", r"line 1, column 10: .*is not read here"),
    ("extends: mine.yaml\n", r"mine\.yaml: extends itself"),
    ("extends: [a, b]\n", r"extends = \['a', 'b'\]: expected the name of one file"),
    ("dataset: 3\n", r"dataset = 3: expected a text"),
    ("seed: 3\n", r"mine\.yaml: no dataset"),
    ("", r"mine\.yaml: no dataset"),
    ("dataset: d\nagent: {gamma: '0.9'}\n", r"agent\.gamma = '0\.9': expected a number"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_one_line_that_names_the_place(
    text: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as a text file of YAML"):
        load_config(path)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"near names: pendulum-random"):
        load_config("pendulum-randm")
    with pytest.raises(FileNotFoundError, match=r"near names: hopper-medium,"):
        load_config("elsewhere/hopper-medium.yaml")
    with pytest.raises(FileNotFoundError, match=r"near names: base"):
        load_config("bse")
    with pytest.raises(FileNotFoundError, match=r"shipped are: antmaze-large-diverse, "):
        load_config("zzz")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"is a folder; give a file, such as .*config\.yaml"
    ):
        load_config(tmp_path)


def test_an_extended_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration 'bas\.yml'"):
        load_config(write(tmp_path, "extends: bas.yml\n"))


def test_configurations_made_in_code_are_checked_alike() -> None:
    with pytest.raises(ValueError, match=r"rollout\.horizon = 0: must be at least 1"):
        RolloutConfig(horizon=0)
    with pytest.raises(ValueError, match=r"model\.n_elites = 3: must be at most .* = 2"):
        ModelConfig(n_networks=2, n_elites=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdversaryConfig().weight = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("ent_coef", "alpha"), [("auto", 1.0), ("auto_0.05", 0.05), ("0.2", 0.2)])
def test_where_alpha_starts(ent_coef: str, alpha: float) -> None:
    config = load_config("pendulum-random", [f"agent.ent_coef={ent_coef}"])
    assert config.agent.first_alpha == alpha


def test_a_tilde_without_a_home_stands_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nosuch.yaml").write_text("dataset: pendulum-random")
    config = load_config("~nosuch.yaml", ["out=~nosuch/run"])
    assert config.out == "~nosuch/run"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_config("pendulum-random", ["out=~/run"]).out == str(tmp_path / "home" / "run")
