"""The command line: quick help, pure JSON, exit codes, every form of --resume."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from hqtl_common import __version__
from hqtl_common.errors import BudgetExceededError, HqtlError
from training.cli import main
from training.verify import Check

HEAVY = {"torch", "torchvision", "numpy", "PIL", "pydantic", "rich", "onnx", "onnxruntime", "sklearn", "matplotlib", "pennylane", "qiskit"}
HELP = """
import sys
from training.cli import main
main(sys.argv[1:], standalone_mode=False)
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def cache(feature_cache: Path) -> list[str]:
    return ["--cache-dir", str(feature_cache)]


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(argument) for argument in arguments])


def commands(group: click.Group = main, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]], ids=" ".join)
def test_help_is_quick_and_loads_nothing_heavy(arguments: list[str]) -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)  # of the CPU: the machine may be busy
        assert answer.stdout.startswith(("Usage: ", f"hqtl-train, version {__version__}"))
        assert not HEAVY & set(answer.stderr.split())
    assert min(seconds) < 0.5


def test_every_command_and_option_has_help() -> None:
    found = dict(commands())
    assert {"fit", "evaluate", "export", "verify", "inspect"} <= {name[0] for name in found}
    for name, command in found.items():
        assert (command.help or "").strip(), name
        text = call(*name, "--help").stdout
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.hidden:
                continue
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)
                assert parameter.opts[0] in text
            else:
                assert str(parameter.human_readable_name) in text


def test_fit_has_an_option_for_everything_in_the_configuration() -> None:
    from training.config import FitConfig

    options = {parameter.name for parameter in main.commands["fit"].params}
    assert set(FitConfig.model_fields) <= options
    for name, field in FitConfig.model_fields.items():
        if isinstance(field.default, str | int | float) and field.default is not False:  # what a flag switches on
            text = next(p for p in main.commands["fit"].params if p.name == name).help  # type: ignore[attr-defined]
            shown = text.rpartition("[default: ")[2].rstrip("]")
            assert str(field.default) == shown or float(field.default) == float(shown), name


def document(answer: Result, code: int = 0) -> dict[str, Any]:
    """The one JSON document on standard output."""
    assert answer.exit_code == code, answer.output
    assert answer.stdout.count("\n") == 1
    found = json.loads(answer.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def fitted(photographs: Path, cache: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    run = tmp_path_factory.mktemp("cli") / "run"
    return run, call("fit", photographs, "--out", run, "--weights", "none", "--epochs", 2, "--json", *cache)


def test_fit_json(fitted: tuple[Path, Result]) -> None:
    run, answer = fitted
    found = document(answer)
    assert found.pop("run") == str(run)
    assert found == json.loads((run / "result.json").read_text())
    assert "head on statevector" in answer.stderr


def test_evaluate_json(finished_run: Path, photographs: Path, cache: list[str]) -> None:
    found = document(call("evaluate", finished_run, photographs, "--json", *cache))
    assert 0 <= found["accuracy_interval"][0] <= found["accuracy"] <= found["accuracy_interval"][1] <= 1
    assert len(found["confusion"]) == 2
    assert found["execution"]["backend_used"] == "statevector"


def test_export_json(finished_run: Path, exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.export
    from hqtl_common import ModelBundle

    bundle = ModelBundle.load(exported_bundle)
    names = ("backbone.onnx", "pre_net.onnx", "post_net.onnx")
    monkeypatch.setattr(training.export, "_onnx_files", lambda run, *, fused: {name: bundle.read(name) for name in names})
    found = document(call("export", finished_run, tmp_path / "bundle", "--json"))
    assert found["bundle"] == str(tmp_path / "bundle")
    assert {name: entry["size"] for name, entry in found["files"].items()} == {
        path.name: path.stat().st_size for path in (tmp_path / "bundle").iterdir() if path.name != "manifest.json"
    }


def test_verify_json_and_text(exported_bundle: Path) -> None:
    found = document(call("verify", exported_bundle, "--json"))
    assert found["passed"] is True
    assert all(check["passed"] and check["difference"] <= check["tolerance"] for check in found["checks"])


def test_failed_verification_is_exit_1_and_still_json(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("good", 0.0, 1.0),
        Check("bad", 2.0, 1.0),
        Check("undefined", float("nan"), 1.0),
        Check("other shape", float("inf"), 1.0),
    ]
    monkeypatch.setattr("training.verify.verify_bundle", lambda path, images: checks)
    found = document(call("verify", exported_bundle, "--json"), code=1)
    assert found["passed"] is False
    assert [(check["passed"], check["difference"]) for check in found["checks"]] == [
        (True, 0.0),
        (False, 2.0),
        (False, None),
        (False, None),
    ]
    answer = call("verify", exported_bundle)
    assert answer.exit_code == 1
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["passed", "passed", "FAILED", "FAILED", "FAILED"]


def test_inspect_json_and_drawing(finished_run: Path, exported_bundle: Path, photographs: Path) -> None:
    run, bundle = (document(call("inspect", path, "--json")) for path in (finished_run, exported_bundle))
    assert (run["epochs_done"], run["config"]["num_layers"], run["result"]["best_epoch"]) == (6, 2, run["result"]["best_epoch"])
    assert bundle == {
        key: value for key, value in json.loads((exported_bundle / "manifest.json").read_text()).items() if key != "manifest_sha256"
    }
    for path in (finished_run, exported_bundle):
        text = call("inspect", path).stdout
        values, end = json.JSONDecoder().raw_decode(text)
        assert values
        assert text[end:].count("Ry(") >= 12, "a circuit of two layers on four qubits"
    assert call("inspect", photographs).exit_code == 1


def test_inspect_an_unfinished_run(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for name in ("result.json", "data.json", "metrics.jsonl"):
        (run / name).unlink()
    found = document(call("inspect", run, "--json"))
    assert (found["epochs_done"], found["counts"], found["result"]) == (0, None, None)


def test_tables_for_people(finished_run: Path, photographs: Path, cache: list[str]) -> None:
    answer = call("evaluate", finished_run, photographs, *cache)
    assert answer.exit_code == 0
    for part in ("test (6 images)", "balanced accuracy", "95 % interval", "truth \\ answer", "no_crack"):
        assert part in answer.stdout
    assert all(line.rstrip() == line or len(line) <= 120 for line in answer.stdout.splitlines())


def test_verbose_tells_where_the_cache_is(finished_run: Path, photographs: Path, cache: list[str]) -> None:
    answer = call("evaluate", finished_run, photographs, "--verbose", "--json", *cache)
    document(answer)
    assert f"feature cache: {cache[1]}" in answer.stderr
    assert "MB), 6 of 6 features were there" in answer.stderr


USAGE = [
    ["fit"],
    ["fit", "DATA"],
    ["fit", "--out", "NEW"],
    ["fit", "nowhere", "--out", "NEW"],
    ["fit", "DATA", "--out", "NEW", "--epochs", "0"],
    ["fit", "DATA", "--out", "NEW", "--lr", "fast"],
    ["fit", "DATA", "--out", "NEW", "--device", "tpu"],
    ["fit", "DATA", "--out", "NEW", "--learning-rate", "1"],
    ["fit", "DATA", "--out", "NEW", "--backbone-lr", "1e-4"],
    ["fit", "DATA", "--out", "NEW", "--augment-variants", "4"],
    ["fit", "--resume"],
    ["evaluate", "DATA"],
    ["evaluate", "nowhere", "DATA"],
    ["evaluate", "DATA", "DATA", "--subset", "half"],
    ["export", "DATA"],
    ["verify"],
    ["verify", "nowhere"],
    ["inspect", "nowhere"],
    ["data", "synth"],
    ["train"],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage_errors_are_exit_2(arguments: list[str], photographs: Path, tmp_path: Path) -> None:
    places = {"DATA": str(photographs), "NEW": str(tmp_path / "new")}
    answer = call(*(places.get(argument, argument) for argument in arguments))
    assert answer.exit_code == 2, answer.output
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "new").exists()


FAILURES = [
    (["fit", "EMPTY", "--out", "NEW", "--weights", "none"], "expected one folder per class"),
    (["fit", "DATA", "--out", "NEW", "--lr", "-1"], "lr: Input should be greater than 0; got -1.0"),
    (["fit", "DATA", "--out", "NEW", "--weights", "nowhere.pth"], "there is no file"),
    (["fit", "DATA", "--out", "NEW", "--backbone", "resnet19"], "did you mean resnet18"),
    (["fit", "DATA", "--out", "NEW", "--weights", "none", "--split", "70/20"], "three positive numbers"),
    (["fit", "DATA", "--out", "NEW", "--weights", "none", "--group-by", "("], "group-by must be none, source or a regular expression"),
    (["fit", "DATA", "--out", "NEW", "--weights", "none", "--positive", "rust"], "positive must be one of the classes"),
    (["fit", "DATA", "--out", "NEW", "--backend", "moon"], "unknown backend 'moon'"),
    (["fit", "DATA", "--out", "NEW", "--shots", "5", "--diff-method", "backprop"], "'backprop' cannot be used"),
    (["fit", "DATA", "--out", "EMPTY/../DATA"], "exists already"),
    (["evaluate", "DATA", "DATA"], "manifest.json"),
    (["evaluate", "RUN", "EMPTY"], "expected one folder per class"),
    (["export", "DATA", "NEW"], "is not a run"),
    (["export", "RUN", "DATA"], "exists already"),
    (["verify", "DATA"], "manifest.json"),
    (["inspect", "EMPTY"], "manifest.json"),
    (["data", "synth", "--out", "DATA"], "must be a new or empty folder"),
]


@pytest.mark.parametrize(("arguments", "says"), FAILURES, ids=[" ".join(arguments) for arguments, _ in FAILURES])
def test_errors_are_one_line_and_exit_1(
    arguments: list[str], says: str, photographs: Path, finished_run: Path, cache: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"DATA": photographs, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty", "RUN": finished_run, "EMPTY/../DATA": photographs}
    answer = call(*(places.get(argument, argument) for argument in arguments), *(cache if arguments[0] in ("fit", "evaluate") else []))
    assert answer.exit_code == 1, answer.output
    assert answer.stdout == ""
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]
    assert answer.stderr.splitlines()[-1] == errors[0]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (HqtlError("two\n  lines"), 1, "error: two lines\n"),
        (BudgetExceededError("enough"), 4, "error: enough\n"),
        (OSError(28, "No space left on device", "run/x"), 1, "error: [Errno 28] No space left on device: 'run/x'\n"),
        (KeyboardInterrupt(), 130, "interrupted; what was recorded is kept (hqtl-train fit --resume RUN goes on)\n"),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, says: str) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("training.inspection.describe", fail)
    answer = call("inspect", tmp_path)
    assert (answer.exit_code, answer.stdout, answer.stderr) == (code, "", says)


def test_missing_imagenet_weights_are_one_line(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    answer = call("fit", photographs, "--out", tmp_path / "run")
    assert (answer.exit_code, answer.stdout) == (1, ""), "torch announces a download; that does not belong to the results"
    assert answer.stderr.splitlines()[-1].startswith("error: the published weights of resnet18 cannot be had: ")
    assert "Traceback" not in answer.stderr


@pytest.fixture
def begun(photographs: Path, cache: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[object]]:
    """A run of two epochs stopped by Ctrl-C in the second, and the words that began it."""
    from training.runs import RunFolder

    append = RunFolder.append_metrics

    def stop_in_second(run: RunFolder, line: dict[str, Any]) -> None:
        append(run, line)
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    words: list[object] = [photographs, "--weights", "none", "--epochs", 2, *cache]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", stop_in_second)
        answer = call("fit", *words, "--out", tmp_path / "run")
    assert answer.exit_code == 130, answer.output
    return tmp_path / "run", words


def forms(run: Path, words: list[object]) -> dict[str, list[object]]:
    return {
        "--resume RUN": ["--resume", run, *words[5:]],
        "--out RUN --resume": ["--out", run, *words[5:], "--resume"],
        "--out RUN --resume --json": ["--out", run, "--resume", *words[5:]],
        "DATA … --out RUN --resume": [*words, "--out", run, "--resume"],
        "DATA … --resume RUN": [*words, "--resume", run],
        "DATA … --resume=RUN": [*words, f"--resume={run}"],
        "--resume RUN --device": ["--resume", run, "--device", "cpu", *words[5:]],
    }


def test_every_form_of_resume_ends_the_run(begun: tuple[Path, list[object]], fitted: tuple[Path, Result], tmp_path: Path) -> None:
    run, words = begun
    for number, (name, arguments) in enumerate(forms(Path("COPY"), words).items()):
        copy = Path(shutil.copytree(run, tmp_path / f"copy{number}"))
        answer = call("fit", *(str(word).replace("COPY", str(copy)) for word in arguments), "--json")
        found = document(answer)
        assert found.pop("run") == str(copy), name
        assert found == {key: value for key, value in json.loads(fitted[1].stdout).items() if key != "run"}, name
        assert "going on after epoch 1 of 2" in answer.stderr


def test_resume_that_swallowed_the_data_is_a_clear_error(begun: tuple[Path, list[object]]) -> None:
    run, words = begun
    data, *rest = words
    answer = call("fit", "--resume", data, "--out", run, *rest)
    assert answer.exit_code == 2
    assert f"--resume took {str(data)!r} as the run folder, but --out names {str(run)!r}; put --resume last or name one" in answer.stderr
    answer = call("fit", "--resume", data, *rest[4:])
    assert answer.exit_code == 1
    assert "is not a run: there is no config.json" in answer.stderr
    assert not (data / "config.json").exists()  # type: ignore[operator]


def test_resume_without_data_takes_no_other_options(begun: tuple[Path, list[object]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, words = begun
    answer = call("fit", "--resume", run, "--lr", 0.1, "--seed", 3, "--device", "cpu", *words[5:])
    assert answer.exit_code == 1
    assert "takes every option from the run; leave out lr, seed\n" in answer.stderr
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answer = call("fit", "--resume", run, "--device", "cuda", *words[5:])
    assert answer.exit_code == 1
    assert "torch finds no CUDA device" in answer.stderr, "the device that was asked for must count"


def test_resume_with_other_options_names_them(begun: tuple[Path, list[object]]) -> None:
    run, words = begun
    answer = call("fit", *words, "--out", run, "--resume", "--lr", 0.1)
    assert answer.exit_code == 1
    assert "was begun with other options (lr: 0.0004 here, 0.1 there as given now)" in answer.stderr
    answer = call("fit", *words, "--out", run)
    assert answer.exit_code == 1
    assert "exists already; go on with it by --resume" in answer.stderr


def test_synth(tmp_path: Path) -> None:
    answer = call("data", "synth", "--out", tmp_path / "data", "--num-images", 4, "--seed", 2, "--masks", tmp_path / "masks")
    assert answer.exit_code == 0
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    parts = itertools.product(("data", "masks"), ("crack", "no_crack"))
    assert sorted({name.rpartition("/")[0] for name in files}) == sorted("/".join(part) for part in parts)
    assert len(files) == 8
