from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import solon
from solon.cli.main import main
from solon.cli.terminal import visible
from solon.errors import InputError, RunFailedError
from tests.unit.run_files import make_run, write_run

ROOT = Path(__file__).parents[3]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code of `solon ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["solon", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def child(*arguments: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "solon", *map(str, arguments)]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


# -- help ------------------------------------------------------------------------------------------------------


def test_help_answers_in_half_a_second_of_cpu_and_loads_nothing_heavy():
    code = (
        "import resource, sys\n"
        "from solon.cli.main import main\n"
        "sys.argv = ['solon', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'datasets', 'pyarrow', 'numpy', 'pydantic'}\n"
        "print('CPU', used.ru_utime + used.ru_stime, sorted(heavy & set(sys.modules)))\n"
    )
    # A busy machine makes one run look slow; the work itself is that of the quickest.
    last_lines = [child(code=code).stdout.splitlines()[-1] for _ in range(2)]
    assert {line.split(maxsplit=2)[2] for line in last_lines} == {"[]"}
    assert min(float(line.split()[1]) for line in last_lines) <= 0.5


def test_help_names_every_command_in_a_whole_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for command in ("demo", "train", "check", "doctor"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(command)]
        assert line.endswith(".")
        assert not line.endswith("...")


def test_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == solon.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["check"], "RUN.toml"),
        (["check", "a.toml", "--sett", "x"], "--set"),
        (["train", "a.toml", "--steps", "0"], "--steps"),
        (["train", "a.toml", "--steps", "many"], "valid integer"),
        (["train", "a.toml", "--seed", str(2**31)], "--seed"),
        (["demo", "--steps", "-1"], "--steps"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_a_hint(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


# -- check -----------------------------------------------------------------------------------------------------


def test_check_accepts_a_good_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("cluster.config.fitting.machine_cpus", lambda: 4.0)
    assert call(monkeypatch, "check", make_run(tmp_path)) == 0
    captured = capsys.readouterr()
    assert "good. 3 prompts, 1 principles of 'core'; needs 3 CPU(s) and 0 GPU(s)" in captured.out
    assert captured.err == ""


def test_check_as_json_is_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("cluster.config.fitting.machine_cpus", lambda: 4.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = make_run(tmp_path)
    assert call(monkeypatch, "check", run, "--json", "--set", "rollout.num_gpus=1", "--set", "learn.num_gpus=1",
                "--set", "rollout.enforce_eager=false") == 0  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["run_file"] == str(run)
    assert result["principles"] == ["kind"]
    assert result["needs"] == {"cpus": 3.0, "gpus": 2.0}
    assert result["warnings"] == [
        "the run needs 2 GPU(s), this machine has 0: it is refused here, not on a larger cluster"
    ]


def test_check_shows_broken_rows_as_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path)
    rows = [json.dumps({"prompt": f"{n}"}) for n in range(100)]
    (tmp_path / "prompts.jsonl").write_text(
        "\n".join([*rows, '{"prompt": [{"role": "[red]\\u001b[31m", "content": ""}]}'])
    )
    assert call(monkeypatch, "check", run) == 0
    out = capsys.readouterr().out
    assert "warning: " in out
    assert "line 101" in out
    assert "[red]" in out
    assert "\x1b[31m" not in out


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        ("run.toml", "does not exist; check the path"),
        ("policy", "does not exist; expected a Hugging Face directory"),
        ("judge/tokenizer_config.json", "expected a Hugging Face directory"),
        ("prompts.jsonl", "does not exist; check the path"),
        ("constitution.yaml", "does not exist; check the path"),
    ],
)
def test_check_names_the_missing_input_and_exits_with_2(
    breakage: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path)
    (tmp_path / breakage).rename(tmp_path / "gone")
    assert call(monkeypatch, "check", run) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert str(tmp_path / breakage.partition("/")[0]) in captured.err
    assert captured.err.startswith("solon: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bad_run_file_gives_one_message_on_stderr_of_a_real_process(tmp_path: Path):
    result = child("check", write_run(tmp_path, "[learn]\nepoch = 2"))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"solon: run file {tmp_path / 'run.toml'}: unknown key `learn.epoch` (did you mean `epochs`?)"
    ]


def test_escape_codes_in_a_run_file_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "check", write_run(tmp_path, '"\\u001b[2J\\u0007" = 1')) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert "\\x1b[2J\\x07" in err


def test_a_misspelt_nursery_name_is_exit_2_and_grows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = write_run(tmp_path, 'policy = "nursery:polcy"', without=["policy"])
    assert call(monkeypatch, "check", run) == 2
    assert "`nursery:polcy`" in capsys.readouterr().err


def test_no_terminal_control_survives_being_made_visible():
    text = "".join(map(chr, range(0x250))) + "\u202e\u2066\u200b\ud800\x9b31m"
    shown = visible(text)
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert visible("plain é 漢 text\nnext") == "plain é 漢 text\nnext"


# -- how errors end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("got 3 GPUs"), 2, "solon: got 3 GPUs\n"),
        (RunFailedError("the engine died"), 1, "solon: the run failed: the engine died\n"),
        (KeyboardInterrupt(), 1, "solon: interrupted before training began; nothing was lost\n"),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_message(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("solon.cli.train.run_train", fails)
    assert call(monkeypatch, "train", "run.toml") == code
    assert capsys.readouterr().err == words


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("solon.cli.train.run_train", fails)
    monkeypatch.setattr(sys, "argv", ["solon", "train", "run.toml"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_full_disk_is_one_message_whatever_library_found_it_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: Any, **__: Any) -> Any:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("solon.cli.compress.run_compress", fails)
    assert call(monkeypatch, "compress", "model", "--pairs", "p", "--out", "o") == 1
    said = capsys.readouterr().err
    assert said.startswith("solon: the disk is full: Error while serializing")
    assert said.endswith("(os error 28); free some space, and start again\n")


def test_sigterm_says_what_was_kept_as_ctrl_c_does():
    code = (
        "import os, signal, sys, time\n"
        "import solon.cli.compress\n"
        "from solon.cli.main import main\n"
        "def ended(*_, **__):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(20)\n"
        "solon.cli.compress.run_compress = ended\n"
        "sys.argv = ['solon', 'compress', 'model', '--pairs', 'p', '--out', 'o']\n"
        "main()\n"
    )
    done = child(code=code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "solon: interrupted; finished sweeps and candidates stay finished, start again to continue"
    )


def test_the_result_of_a_run_is_printed_as_valid_json_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("solon.cli.train.run_train", lambda *_, **__: {"reward": float("nan"), "steps": 3})
    assert call(monkeypatch, "train", "run.toml", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"reward": None, "steps": 3}
    assert call(monkeypatch, "train", "run.toml") == 0
    assert capsys.readouterr().out == ""
