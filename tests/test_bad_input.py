"""Bad input of every kind: one line that names place and remedy, exit code 2, nothing touched."""

from __future__ import annotations

import csv
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from agents.cli import main
from agents.training.run_folder import RunFolder
from tests import bad_inputs as bad
from tests.agents.tiny import TINY
from tests.bad_inputs import (
    Make,
    Words,
    cell,
    config,
    evaluate,
    info,
    npz,
    results,
    resume,
    sweep,
    train,
)

#: Command line, and parts of its message: the place, the remedy.
Case = tuple[Words, *tuple[str, ...]]

FILES: list[Case] = [
    (info("none/set.npz"), "none/set.npz does not exist", "Check the path"),
    (info("set.npz"), "No data file is there. Check the path"),
    (info("~nosuch.npz"), "~nosuch.npz does not exist", "Check the path"),
    (info(bad.folder("set.npz")), "set.npz is a folder", "Name the file in it"),
    (info(bad.content("set.csv", "1,2\n")), "unknown file type '.csv'", "expected one of .hdf5"),
    (info(bad.content("set.npz", "")), "set.npz: cannot be read", "copy or download it again"),
    (info(bad.content("set.npz", "text")), "set.npz: cannot be read", "copy or download it again"),
    (info(bad.content("set.hdf5", "text")), "set.hdf5: cannot be read", "copy or download"),
    (info(bad.half(npz())), "set.npz: cannot be read", "truncated", "copy or download it again"),
    (info(bad.half(bad.hdf5())), "set.hdf5: cannot be read", "truncated", "download it again"),
    (info(bad.content("set.npz", bad.hdf5_bytes())), "cannot be read as npz", "no zip archive"),
    (info(npz(rewards=None)), "set.npz: key 'rewards' is missing; found: actions", "Expected"),
    (info(npz(rewards=None, reward=[1.0])), "Rename 'reward'?"),
    (info(bad.hdf5(terminals=None)), "set.hdf5: key 'terminals' or 'terminations' is missing"),
    (info(npz(rewards=["a"] * 20)), "'rewards' has dtype <U1", "Convert it to float32"),
    (info(npz(rewards=np.ones(20, complex))), "'rewards' has dtype complex128", "Convert it"),
    (info(bad.hdf5(actions=np.zeros((20, 1), "f4,f4"))), "'actions' has dtype [('f0'", "Convert"),
    (info(npz(rewards=np.array([None] * 20))), "set.npz: holds pickled", "each column as float32"),
    (info(npz(env_id=np.array([{}]))), "set.npz: holds pickled", "each column as float32"),
    (info(npz(observations=np.zeros(20))), "'observations' has shape (20,)", "reshape(-1, 1)"),
    (
        info(npz(observations=np.zeros((20, 3, 2)))),
        "'observations' has shape (20, 3, 2)",
        "array.reshape(len(array), -1)",
    ),
    (info(npz(rewards=np.zeros((20, 2)))), "'rewards' has shape (20, 2)", "one number per row"),
    (info(npz(actions=np.zeros((19, 1)))), "'actions' has 19 rows", "one row per transition"),
    (info(npz(next_observations=np.zeros((20, 2)))), "2 dimensions per row", "must be equal"),
    (info(npz(**bad.first_rows(0))), "empty", "1 or more"),
    (info(npz(terminals=None, dones=[0])), "key 'terminals' or 'terminations' is missing"),
]
NUMBERS: list[Case] = [
    (
        info(npz(**cell("observations", 7, np.nan))),
        "'observations' row 7 dimension 0 is nan",
        "Repair or drop",
    ),
    (
        info(bad.hdf5(**cell("next_observations", 3, np.inf))),
        "'next_observations' row 3",
        "Repair or drop",
    ),
    (info(npz(**cell("rewards", 2, -np.inf))), "'rewards' row 2 is -inf", "Repair or drop"),
    (info(npz(**cell("rewards", 2, 1e39))), "'rewards' row 2 is 1e+39", "Repair or drop"),
    (info(npz(**cell("terminals", 4, 0.5))), "'terminals' row 4 is 0.5", "true or false"),
    (info(npz(**cell("terminals", 4, np.nan))), "'terminals' row 4 is nan", "true or false"),
    (
        info(npz(env_id="Pendulum-v1", **cell("actions", 5, 2.5))),
        "'actions' row 5 dimension 0 is 2.5, outside the bounds [-2, 2]",
        "Scale the actions into the bounds",
    ),
    (info(npz(actions=np.full((20, 1), 3.0))), "action dimension 0 never changes", "env_id="),
    (
        info(npz(next_observations=None, terminals=np.ones(20))),
        "every row ends its episode",
        "Add next_observations",
    ),
    (
        bad.train_on(npz(env_id="Pendulum-v1", **bad.first_rows(1))),
        "set.npz has 1 transition",
        "at least 2 are needed",
    ),
    (info("pendulum-random", "--reward-offset", "nan"), "reward_offset is nan", "finite number"),
    (
        info("pendulum-random", "--reward-offset", "1e39"),
        "reward_offset is 1e+39",
        "within float32",
    ),
    (info("pendulum-random", "--env", "Hopper-v5"), "Hopper-v5 has 11", "Name the environment"),
    (info("pendulum-random", "--env", "Pendulum-v7"), "Near ids: Pendulum-v1", "env_id="),
    (info("pendulum-random", "--env", "no_module:X-v0"), "no_module", "Name another one"),
    (train("data.reward_offset=1e39"), "reward_offset is 1e+39", "within float32"),
    (bad.train_on(npz()), "set.npz does not say which environment", "set data.env_id=ID"),
    (bad.train_on(npz(env_id="X-v0")), "'X-v0' is not registered", "module:ID"),
    (train("evaluation.env_id=Hopper-v5"), "cannot be evaluated in Hopper-v5", "Set data.env_id"),
    (train("evaluation.env_id=Pendulum-v9"), "'Pendulum-v9' is not registered", "Pendulum-v1"),
]
STORES: list[Case] = [
    (
        info(bad.hdf5(bad.linked(h5py.ExternalLink("other.hdf5", "/rewards")))),
        "set.hdf5: 'rewards' is a link",
        "write them into a new file",
    ),
    (info(bad.hdf5(bad.linked(h5py.SoftLink("/actions")))), "'rewards' is a link", "a new file"),
    (info(bad.hdf5(bad.stored_in_another_file)), "'rewards' lies in another file", "a new file"),
    (info(bad.hdf5(bad.in_groups)), "Minari's own storage", "Load it by its Minari id"),
    (info("pendulum-randm"), "'pendulum-randm' is no data set", "Did you mean pendulum-random"),
    (info("no-such-set"), "'no-such-set' is no data set", "Built in: pendulum-random"),
    (train("dataset=penulum-random"), "'penulum-random' is no data set", "mean pendulum-random"),
    (info("d4rl:hopper-medum-v2"), "d4rl:hopper-medum-v2", "Near ones: hopper-medium-v2"),
    (info("d4rl:hopper-medium-v2"), "d4rl/hopper_medium-v2.hdf5 does not exist", "Download http"),
    (bad.words("train", "hopper-medium"), "medium-v2.hdf5 does not exist", "D4RL_DATASET_DIR"),
    (
        info(bad.named("d4rl:hopper-medium-v2", bad.content("d4rl/hopper_medium-v2.hdf5", "x"))),
        "hopper_medium-v2.hdf5: cannot be read",
        "download it again",
    ),
    (info("minari:mine/absent-v0"), "minari:mine/absent-v0: not in", "MINARI_DATASETS_PATH"),
    (info("minari:../../x"), "no Minari id (such as"),
    (
        info(bad.minari_set(bad.removed("metadata.json"))),
        "minari:mine/set-v0: cannot be read",
        "fetch or make the data set again",
    ),
    (
        info(bad.minari_set(bad.rewritten("metadata.json", "[]"))),
        "minari:mine/set-v0: cannot be read",
        "fetch or make the data set again",
    ),
    (
        info(bad.minari_set(bad.cut("main_data.hdf5"))),
        "minari:mine/set-v0",
        "or make it again",
    ),
    (bad.words("data", "to-minari", npz(), "mine"), "'mine' is no Minari id", "such as"),
    (
        bad.words("data", "to-minari", bad.minari_set(lambda path: None), "mine/set-v0"),
        "exists already",
        "Choose another id or version",
    ),
]

CONFIGS: list[Case] = [
    (bad.words("train", "mine.yaml"), "no configuration 'mine.yaml'", "shipped are:"),
    (bad.words("train", "my-log.npz"), "my-log.npz is a data set: give fast dataset=my-log.npz"),
    (bad.words("train", "seed=1"), "seed=1 is a setting: CONFIG comes first"),
    (bad.words("train", "hoper-medium"), "no configuration 'hoper-medium'", "near names: hopper"),
    (bad.words("train", bad.folder("mine.yaml")), "mine.yaml is a folder; give a file"),
    (config("agent: {gama: 0.9}"), "mine.yaml: unknown key 'agent.gama'", "known: agent.gamma"),
    (config("agent: 5"), "mine.yaml: agent = 5", "expected a section, with keys below it"),
    (config("seed: 1\nseed: 2"), "mine.yaml: line 2", "'seed' stands twice"),
    (config("- a\n- b"), "mine.yaml: expected lines of 'key: value', found list"),
    (config("seed: [1"), "mine.yaml: line 1", "expected ',' or ']'"),
    (config(b"name: \xff"), "mine.yaml: cannot be read as a text file of YAML", "decode byte"),
    (
        config("seed: !!python/object/apply:os.system [ls]"),
        "mine.yaml: line 1",
        "os.system' is not read",
    ),
    (config("seed: !!int ''"), "mine.yaml: cannot be read as a text file of YAML"),
    (config("a: &a {seed: 1}\ndata:\n  <<: *a"), "mine.yaml: line 3", "merge", "write plain"),
    (config("[" * 999), "mine.yaml: cannot be read as a text file of YAML", "recursion"),
    (config("extends: mine.yaml"), "mine.yaml: extends itself"),
    (config("extends: [base]"), "mine.yaml: extends = ['base']: expected the name of one file"),
    (config("extends: bse"), "no configuration 'bse'"),
    (config("seed: 1"), "mine.yaml: no dataset; give one: dataset=NAME_OR_FILE"),
    (config(f"seed: {'9' * 5000}"), "mine.yaml: cannot be read", "limit"),
    (config("dataset: x\nseed: &a [*a]"), "seed = [[", "expected a whole number"),
    (train("agent.gama=0.9"), "'agent.gama=0.9': unknown key", "the nearest known: agent.gamma"),
    (train("seed"), "override 'seed': expected key=value"),
    (train("agent=1"), "agent is a section; set one of its keys"),
    (bad.words("train", "~nosuch/x.yaml"), "no configuration '~nosuch/x.yaml', neither a file"),
    (train("dataset=~nosuch.npz"), "~nosuch.npz does not exist", "Check the path"),
    (train("seed=-1"), "seed = -1: must be at least 0"),
    (train("seed=!!bool x"), "override 'seed=!!bool x': KeyError: 'x'"),
    (train("seed=" + "[" * 999), "override 'seed=[[", "recursion"),
    (train("seed=4294967295", "seeds=2"), "seeds = 2: from seed = 4294967295 on"),
    (train("iterations=many"), "iterations = 'many': expected a whole number"),
    (train("model.hidden_sizes=[]"), "model.hidden_sizes = []: expected at least one number"),
    (train("model.hidden_sizes=[1.5]"), "model.hidden_sizes = 1.5: expected a whole number"),
    (train("model.cache=1"), "model.cache = 1: expected true or false"),
    (train("rollout.horizon=0"), "rollout.horizon = 0: must be at least 1"),
    (train("agent.real_ratio=1.1"), "agent.real_ratio = 1.1: must be at most 1"),
    (train("agent.gamma=.nan"), "agent.gamma = nan: expected a finite number"),
    (train("model.n_elites=8"), "model.n_elites = 8: must be at most model.n_networks = 7"),
    (train("adversary.score=best"), "adversary.score = 'best': expected one of mixture, member"),
    (train("device=gpu"), "device = 'gpu': expected auto, cpu, cuda"),
    (train("device=cuda:99"), "'cuda:99' cannot be used here", "device=auto or device=cpu"),
    (train("model.termination=hoper"), "Unknown termination 'hoper'", "known: auto, never"),
    (train("model.termination=broken:f"), "model.termination = 'broken:f'", "module:function"),
    (train("evaluation.env_id=broken:X-v0"), "module 'broken' cannot be imported"),
    (train("out=a\0b"), "out = 'a\\x00b': expected a name", "zero byte"),
    (train(f"out={'x' * 300}"), "File name too long"),
    (train("seeds=2", "--overwrite"), "--overwrite replaces a single run: give seeds=null"),
    (train("seeds=2", "dataset=nowhere.npz"), "nowhere.npz does not exist", "Check the path"),
    (train("seeds=2", "evaluation.env_id=Pendulum-v99"), "is not registered", "Pendulum-v1"),
    (train("seeds=2", "device=cuda:99"), "cannot be used here", "device=auto or device=cpu"),
]
COMMANDS: list[Case] = [
    (bad.words(), "arguments are required: COMMAND"),
    (bad.words("fly"), "invalid choice: 'fly'"),
    (bad.words("train"), "give a CONFIG to train, or --resume RUN"),
    (train("--overwrite"), "--overwrite replaces the run in out=FOLDER: name it too"),
    (train("--overwrite", "out=x"), "out=x: settings (key=value) stand before the options"),
]
SWEEPS: list[Case] = [
    (bad.words("sweep", "no-such-config"), "no configuration 'no-such-config'"),
    (sweep("--grid", "agent.gamma=.9,"), "--grid agent.gamma=.9,: a value is missing between comm"),
    (sweep("--grid", "adversary.weight=0,,1"), "weight=0,,1: a value is missing between commas"),
    (sweep("--grid", "adversary.weight"), "override 'adversary.weight': expected key=value"),
    (sweep("--grid", "adversary.wieght=0"), "'adversary.wieght'; the nearest known: adversary.w"),
    (sweep("--grid", "adversary.weight=0,-1"), "adversary.weight = -1.0: must be at least 0"),
    (sweep("--grid", "seed=1,2"), "--grid seed", "give --seeds"),
    (sweep("--grid", "n_threads=1,2"), "--grid n_threads", "give n_threads=VALUE before --grid"),
    (sweep("--grid", "rollout.horizon=2", "--preset", "paper"), "rollout.horizon: stands twice"),
    (sweep("--preset", "mine"), "--preset: invalid choice: 'mine'", "paper"),
    (sweep("--seeds", "5:5"), "--seeds 5:5: holds no seed"),
    (sweep("--seeds", "5:0"), "--seeds 5:0: holds no seed"),
    (sweep("--seeds", "0:9999999"), "--seeds 0:9999999", "at most"),
    (sweep("--seeds", f"0:{10**20}"), "--seeds 0:1000000", "at most"),
    (sweep("seed=7", "--seeds", "0:2"), "seed= and --seeds both say which seeds"),
    (sweep("seeds=4", "--seeds", "0:2"), "seeds= and --seeds both say which seeds"),
    (sweep("--jobs", "0"), "--jobs: expected a whole number of"),
]
FINISHED = (*TINY, "iterations=2", "checkpoint_every=1")
OTHER_DATA = bad.changed("result.json", content_hash="0")
RUNS: list[Case] = [
    (bad.words("evaluate", "none"), "no run folder at none: give a folder that"),
    (
        bad.words("evaluate", "none", "--in-model", "fit"),
        "no run folder at none: give a folder that",
    ),
    (evaluate(bad.removed("result.json")), "run is not a run folder (it holds no result.json)"),
    (evaluate(bad.cut("result.json")), "result.json is not valid JSON", "train again"),
    (evaluate(bad.rewritten("result.json", "[]")), "result.json holds a list", "train again"),
    (evaluate(bad.changed("result.json", env_id=None)), "names no environment", "give --env ID"),
    (evaluate(bad.changed("result.json", env_id="X-v0")), "'X-v0' is not registered", "module:ID"),
    (evaluate(bad.unchanged, "--env", "Hopper-v5"), "not that of 'Hopper-v5'", "name the env"),
    (evaluate(bad.removed("policy")), "train again with"),
    (evaluate(bad.removed("policy/policy.json")), "policy: policy.json is missing; give the"),
    (evaluate(bad.cut("policy/policy.safetensors")), "policy is damaged", "save the policy again"),
    (evaluate(bad.flipped("policy/policy.safetensors")), "SHA-256", "copy the folder again"),
    (evaluate(bad.changed("policy/policy.json", format_version=2)), "install a newer adv-world"),
    (evaluate(bad.unchanged, "--render", "film.png"), "film.png", "has to end in .mp4 or .gif"),
    (evaluate(bad.unchanged, "--episodes", "0"), "--episodes: expected a whole number of at least"),
    (evaluate(bad.unchanged, "--seed", "-1"), "--seed: expected a whole number of at least 0"),
    (
        evaluate(bad.unchanged, "--seed", "18446744073709551616"),
        "--seed: expected a whole number of at most 4294967295",
    ),
    (bad.words("results", "none"), "no folder at none: give folders that"),
    (bad.words("select", bad.folder("none")), "none holds no run (no result.json", "give folders"),
    (results(bad.changed("result.json", status=None)), "has no key 'status'", "give the run"),
    (results(bad.changed("result.json", status=5)), "result.json: status is 5, expected a text"),
    (results(bad.changed("result.json", return_mean="1")), "return_mean is '1'", "leave the run"),
    (
        results(bad.changed("result.json", return_mean=np.nan)),
        "return_mean is nan",
        "leave the run",
    ),
    (results(bad.changed("result.json", score_reference=[1])), "score_reference is [1]", "train"),
    (results(bad.changed("result.json", wall_s=[])), "wall_s is []", "leave the run out"),
    (results(bad.removed("config.yaml")), "no config.yaml", "leave it out, or train again"),
    (results(bad.rewritten("config.yaml", "seed: x")), "config.yaml: no dataset"),
    (results(bad.unchanged, "--csv", "."), ". is a folder: give the name of a file"),
    (results(bad.unchanged, "--markdown", "run/result.json/a"), "lies below the file"),
    (
        results(bad.removed("evaluations.csv"), "--csv", "a.csv", "--plot", "a.png"),
        "No evaluations in 'run/evaluations.csv'",
    ),
    (
        results(bad.rewritten("evaluations.csv", "iteration\n1\n"), "--plot", "a.png"),
        "'run/evaluations.csv', line 2: cannot be read",
        "leave the run out",
    ),
    (bad.words("select", bad.run(bad.changed("result.json", q_avg="x"))), "q_avg is 'x'"),
    (bad.words("train", "--resume", "none"), "no run folder at none: give a folder that"),
    (resume(bad.removed("config.yaml")), "run cannot go on: it holds no config.yaml", "good copy"),
    (resume(bad.cut("config.yaml")), "config.yaml: "),
    (resume(OTHER_DATA), "its content has changed", "bring the"),
    (
        resume(bad.unchanged, "agent.gamma=0.9"),
        "agent.gamma cannot change where run goes on",
        "or resume",
    ),
    (resume(bad.unchanged, "iterations=1"), "has done 2 iterations already: give iterations=2"),
    (resume(bad.unchanged, "--overwrite"), "--resume goes on with a run", "give one of them"),
    (
        resume(bad.each_checkpoint(bad.flipped("state.safetensors"))),
        "no checkpoint in run/checkpoints can be read: train again with --overwrite",
        "is not what was written",
    ),
    (
        resume(bad.each_checkpoint(bad.flipped("state.json"))),
        "no checkpoint in run/checkpoints can be read: train again with --overwrite",
        "is not what was written",
    ),
    (
        resume(bad.each_checkpoint(bad.removed("state.json"))),
        "no checkpoint in run/checkpoints can be read",
        "state.json",
    ),
    (resume(bad.each_checkpoint(bad.changed("state.json", format=99))), "format 99, this version"),
    (
        resume(bad.removed("world_model")),
        "run/world_model holds no world model: model.safetensors is missing",
        "train again with --overwrite",
    ),
    (
        resume(bad.flipped("world_model/model.safetensors")),
        "run/world_model is damaged",
        "put a good copy there, or train again with --overwrite",
    ),
    (
        resume(bad.other_world_model),
        "run/world_model has 1-dimensional observations and 1-dimensional actions",
        "train again with --overwrite",
    ),
    (
        bad.words("train", "pendulum-random", bad.out(bad.run())),
        "holds a run",
        "--resume",
        "--over",
    ),
    (
        bad.words("train", "pendulum-random", bad.out(bad.content("mine.txt", "mine"))),
        "mine.txt is a file: give out=FOLDER",
    ),
    (
        bad.words("sweep", "pendulum-random", bad.out(bad.of_sweep(bad.unchanged))),
        "holds a finished run of other settings (",
        "give another out=FOLDER",
    ),
    (
        bad.words("sweep", "pendulum-random", *FINISHED, bad.out(bad.of_sweep(OTHER_DATA))),
        "seed-0 holds a finished run of other data (pendulum-random has changed since)",
        "give another out=FOLDER, or remove that folder",
    ),
]
RANDOM = ("data", "make", "Pendulum-v1", "--policy", "random", "--rows", "3")
MAKING: list[Case] = [
    (bad.words("data", "make", "Pendulum-v1", "--policy", "random"), "--rows N is missing"),
    (bad.words("data", "make", "CartPole-v1", *RANDOM[3:]), "Discrete", "use data with continuous"),
    (
        bad.words("data", "make", "X-v0", *RANDOM[3:], "--npz", "a/b.npz"),
        "'X-v0' is not registered",
    ),
    (bad.words(*RANDOM, "--policy", "sac:0"), "--policy sac:0", "such as sac:10000"),
    (bad.words(*RANDOM, "--policy", bad.content("a.zip", "x")), "a.zip cannot be read", "save()"),
    (bad.words(*RANDOM, "--npz", npz()), "set.npz exists already. Choose another name"),
    (bad.words(*RANDOM, "--npz", bad.below(npz())), "lies below the file", "give another file"),
    (bad.words(*RANDOM, "--seed", "-1"), "--seed: expected a whole number of at least 0"),
    (bad.words(*RANDOM, "--id", "mine"), "--id mine is no Minari id", "such as pendulum/random-v0"),
]
CASES = [*FILES, *NUMBERS, *STORES, *CONFIGS, *COMMANDS, *SWEEPS, *RUNS, *MAKING]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations with a checkpoint of each."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "pendulum-random", *FINISHED, f"out={out}"]) == 0
    return out


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bad.Place:
    """An empty current folder, in which data sets are looked for too; no network, no processes."""

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minari.download_dataset", no_network)
    monkeypatch.setattr(
        "agents.studies.processes.RunProcesses.run", lambda _: pytest.fail("processes were started")
    )
    monkeypatch.setenv("D4RL_DATASET_DIR", "d4rl")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken.py").write_text("def f(:\n")
    return bad.Place(Path(), finished)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all that is in a folder, and of the folder."""
    found = {str(path): path.stat() for path in (folder, *folder.rglob("*"))}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def label(case: Case) -> str:
    return re.sub(r"[^\w.=-]+", "-", case[1])[:50]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_one_line_and_nothing_written(
    case: Case, place: bad.Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, *parts = case
    words = line(place)
    before = listing(tmp_path)
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as shown:
        code = main(words)
    captured = capsys.readouterr()
    assert captured.err.startswith("adv-worldmodel: error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert [part for part in parts if part not in captured.err] == [], captured.err
    assert code == 2
    assert captured.out == ""
    assert [str(warning.message) for warning in shown] == []
    assert listing(tmp_path) == before


# --- unusual, but right --------------------------------------------------------------------------

CART = ("data.env_id=InvertedPendulum-v5", "model.termination=never")
UNUSUAL: dict[str, Make] = {
    "a constant dimension": npz(**bad.cart(observations=np.ones((20, 4)))),
    "a constant action": npz(**bad.cart(actions=np.ones((20, 1)))),
    "episodes of one step": npz(**bad.cart(terminals=np.ones(20))),
    "the same row again and again": npz(**{k: v[:1].repeat(20, 0) for k, v in bad.cart().items()}),
    "large numbers": npz(
        **{k: v * 1e8 if v.ndim == 2 and v.shape[1] == 4 else v for k, v in bad.cart().items()}
    ),
    "large rewards": npz(**bad.cart(rewards=1e8 * np.arange(20))),
    "two rows": npz(**{k: v[:2] for k, v in bad.cart().items()}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_works(
    name: str, place: bad.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    source = UNUSUAL[name](place)
    assert main(["data", "info", source]) == 0
    assert not re.search(r"\bnan\b|(?<!\[-)(?<!, )\binf\b", capsys.readouterr().out)
    assert main(["train", "base", f"dataset={source}", *TINY, *CART, "out=run"]) == 0
    run = RunFolder(Path("run"))
    with run.progress.open() as file:
        numbers = [float(cell) for row in csv.DictReader(file) for cell in row.values() if cell]
    assert len(numbers) > 10
    assert np.isfinite(numbers).all()
    result = run.read_result()
    assert None not in (result["return_mean"], result["q_avg"], result["fit"]["holdout_nll"])
