"""Bad calls: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import EXPERIMENT, ROOT, Bench

from bench import cli, speed

WRONG = [
    ([], "run EXPERIMENT"),
    (["lits"], "unknown command 'lits' (did you mean list?)"),
    (["list", "algorithm"], "algorithms"),
    (["run", "qick"], "unknown experiment 'qick' (did you mean quick?)"),
    (["run", "nowhere.toml"], "unknown experiment"),
    (["run", "quick", "--sedes", "3"], "unknown argument '--sedes' (did you mean --seeds"),
    (["run", "quick", "--seeds", "0"], "'0' must be a positive number of seeds"),
    (["run", "quick", "--seeds", "-4"], "--seeds"),
    (["run", "quick", "--seeds", "5..2"], "must be a positive number of seeds"),
    (["run", "quick", "--steps", "0"], "'0' must be a whole number of at least 1"),
    (["run", "quick", "--steps", "1.5"], "'1.5' must be a whole number of at least 1"),
    (["run", "quick", "--workers", "none"], "'none' must be a whole number"),
    (["run", "quick", "--tasks", "CartPole-v2"], "CartPole-v1"),
    (["run", "quick", "--tasks", "Acrobot-v1"], "Acrobot-v1 is none of quick's tasks"),
    (["run", "off_policy", "--variant", "random"], "--variant: random is none of off_policy's; they are default, rand"),
    (["run", "quick", "--algorithms", "trpo"], "trpo is none of quick's; they are dqn, ppo"),
    (["run", "quick", "--engine", "ray"], "ray is not built yet"),
    (["run", "quick", "--engine", "lcal"], "unknown engine 'lcal' (did you mean local?)"),
    (["run", "quick", "--device", "tpu"], "invalid choice: 'tpu'"),
    (["status", "qick"], "did you mean quick"),
    (["train"], "train needs an algorithm"),
    (["train", "ppoo"], "unknown algorithm 'ppoo' (did you mean ppo"),
    (["train", "ppo"], "--task"),
    (["train", "ppo", "--task", "CartPol-v1"], "did you mean CartPole-v1"),
    (["train", "ppo", "--task", "CartPole-v1", "--clip-cof", "1"], "did you mean --clip-coef"),
    (
        ["train", "ppo", "--task", "CartPole-v1", "--clip-coef", "much"],
        "--clip-coef is 'much'; it must be of type float",
    ),
    (["train", "ppo", "--task", "CartPole-v1", "--preset", "papr"], "ppo has no preset 'papr' (did you mean paper"),
    (["train", "ppo", "--task", "CartPole-v1", "--num-envs", "0"], "num_envs"),
    (["train", "ppo", "--task", "CartPole-v1", "--initialization", "magic"], "initialization is 'magic'"),
    (["train", "dqn", "--task", "Pendulum-v1"], "dqn is for discrete actions, Pendulum-v1 has continuous actions"),
    (["train", "dqn", "--task", "Taxi-v4"], "dqn is for discrete actions, Taxi-v4 has numbered states; algorithms for"),
    (["train", "value_iteration", "--task", "CartPole-v1"], "for numbered states, CartPole-v1 has discrete actions"),
    (["speed", "ppo", "--task", "Nothing-v1"], "Nothing-v1"),
    (["speed", "dqn", "--task", "Pendulum-v1"], "discrete"),
    (["speed", "ppo", "--task", "CartPole-v1", "--runs", "0"], "at least 1"),
    (["speed", "ppo", "--task", "CartPole-v1", "--against", "ackr"], "did you mean acktr"),
    (["speed", "ppo", "--task", "CartPole-v1", "--against", "ddpg"], "discrete"),
    (["speed", "ppo", "--task", "CartPole-v1", "--against", "a2c", "--against-preset", "baseline"], "baselines"),
    (["speed", "ppo", "--task", "CartPole-v1", "--against-preset", "baselines"], "name one with --against"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(call) for call, _ in WRONG])
def test_wrong_calls(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trains = arguments[:1] in (["run"], ["train"]) and arguments[1:]
    code = cli.main([*arguments, *(["--out", str(tmp_path / "out")] if trains else [])])
    output = "".join(capsys.readouterr())
    assert message in output
    assert code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "message"), WRONG[1::7])
def test_wrong_calls_in_a_process(bench: Bench, arguments: list[str], message: str) -> None:
    code, output = bench(*arguments)
    assert message in output
    assert code == 2


def test_no_cuda_when_asked_for(bench: Bench) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    code, output = bench.run(bench.write(), "--device", "cuda")
    assert code == 2
    assert "torch sees no CUDA device" in output
    assert not bench.out.exists()


def test_places_that_are_not_ours(bench: Bench) -> None:
    path = bench.write()
    (bench.place / "file").write_text("a file")
    code, output = bench("run", path, "--out", str(bench.place / "file"))
    assert code == 1
    assert "cannot write results" in output
    code, output = bench("run", path, "--out", "/proc/nowhere")
    assert code == 1
    assert "cannot write results" in output
    (bench.out / "exp").mkdir(parents=True)
    (bench.out / "exp" / "precious.txt").write_text("not ours")
    code, output = bench.run(path)
    assert code == 1
    assert "is no results folder" in output


def test_experiment_files_that_are_wrong(bench: Bench) -> None:
    for text, message in (
        ("title = ", "is not valid TOML"),
        (EXPERIMENT.replace("steps = 400", 'steps = "many"'), "steps is 'many'; it must be of type int"),
        (EXPERIMENT.replace("seeds = 3", ""), "seeds is missing"),
        (EXPERIMENT.replace('name = "fake"', 'name = "fake"\noverrides = {scael = 1.0}'), "scale"),
    ):
        path = bench.write(text)
        code, output = bench.run(path)
        assert code == 2
        assert message in output
        assert path in output
    assert not bench.out.exists()


def test_debug_shows_the_traceback(bench: Bench) -> None:
    process = bench.start("run", "nothing", "--debug")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" in errors


def test_list_is_complete_and_needs_no_torch(bench: Bench) -> None:
    look = "import sys; from bench.cli import main; main(['list', '--json']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["algorithms"]["ppo"].startswith("Proximal policy optimization")
    assert "CartPole-v1" in found["suites"]["classic"]
    assert found["experiments"]["quick"].endswith("(no shipped results)")
    assert not found["experiments"]["ppo_table1"].endswith("(no shipped results)")
    assert "ppo_table1" in found["published"]
    assert bench("list", "suites")[1].startswith("suites")


def test_speed(bench: Bench) -> None:
    given = ["--task", "CartPole-v1", "--runs", "1,3", "--seconds", "0.05", "--repetitions", "2", "--num-steps", "64"]
    code, output = bench("speed", "ppo", *given, "--json")
    assert code == 0, output
    rows = json.loads(output)["rows"]
    assert [row["name"] for row in rows] == ["R = 1", "R = 3"]
    for row in rows:
        assert row["low"] <= row["env_steps_per_second"] <= row["high"]
        assert set(row["us"]) == {"env", "act", "learn", "rest"}
        # The median of two turns' times is not that of their speeds; of one turn see `test_speed_of_two_of_ours`.
        assert sum(row["us"].values()) * 1e-6 * row["high"] > 1 - 1e-6


def test_speed_by_operators(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--task", "CartPole-v1", "--runs", "2", "--seconds", "0.05", "--repetitions", "1", "--num-steps", "64"]
    code, output = bench("speed", "ppo", *given, "--operators", "--json")
    assert code == 0, output
    found, _ = json.JSONDecoder().raw_decode(output)  # the profiler adds lines on stderr
    assert found["product_gflops"] > 0
    (row,) = found["rows"]
    assert 0 < row["operators"]["matrix products"] < 1 and 0 < sum(row["operators"].values()) < 1
    speed.show(found)
    assert f"R = 2  matrix products {row['operators']['matrix products']:.0%}, aten::" in capsys.readouterr().out


def test_speed_refuses_what_its_own_process_finds(bench: Bench) -> None:
    code, output = bench("speed", "nac", "--task", "CartPole-v1", "--runs", "1", "--against", "sb3")
    assert "--against sb3 knows ppo, a2c" in output and code == 2


def test_speed_of_two_of_ours(bench: Bench) -> None:
    given = ["--task", "CartPole-v1", "--runs", "1,2", "--seconds", "0.05", "--repetitions", "1"]
    given += ["--num-envs", "2", "--num-steps", "10", "--num-value-steps", "3"]  # A2C has no such number
    code, output = bench("speed", "acktr", *given, "--against", "a2c", "--against-preset", "sb3", "--json")
    assert code == 0, output
    found = json.loads(output)
    for row in found["rows"]:
        assert sum(row["us"].values()) == pytest.approx(1e6 / row["env_steps_per_second"], rel=1e-6)
    assert [row["name"] for row in found["rows"]] == ["R = 1", "R = 2", "a2c R = 1", "a2c R = 2"]
    both = {key: (found["config"][key], found["against_config"][key]) for key in ("num_envs", "num_steps", "ent_coef")}
    assert both == {"num_envs": (2, 2), "num_steps": (10, 10), "ent_coef": (0.0, 0.0)}
    assert found["against_config"]["initialization"] == "orthogonal"  # its own preset's
    for row, its in zip(found["rows"][:2], found["rows"][2:], strict=True):
        assert row["times"] == pytest.approx(row["env_steps_per_second"] / its["env_steps_per_second"])
        assert row["learn_times"] == pytest.approx(row["us"]["learn"] / its["us"]["learn"])
        assert "times" not in its
