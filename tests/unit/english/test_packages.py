"""Models from packages: found where installed, else fetched into the cache, and used only with the right digest."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from english import packages
from english.packages import GEMMA, SMOLLM2, PackagedModel, gguf_of, packaged
from solon.errors import InputError
from tests.gguf_files import tiny_network, write_gguf


def describe(content: bytes, *, parts: int = 1, package: str = "solon_test_absent") -> PackagedModel:
    return PackagedModel(
        title="Tiny",
        requirements=tuple(f"{package.replace('_', '-')}-{number}==1.0" for number in range(parts)),
        parts=tuple(f"{package}_{number}/data/tiny.gguf.part{number:02}" for number in range(parts)),
        sha256=hashlib.sha256(content).hexdigest(),
        mib=1,
        licence="Apache-2.0",
    )


def put(root: Path, model: PackagedModel, content: bytes) -> None:
    """The content, in the files that the model's packages hold."""
    size = -(-len(content) // len(model.parts))
    for number, part in enumerate(model.parts):
        path = root / part
        path.parent.mkdir(parents=True)
        path.write_bytes(content[number * size : (number + 1) * size])
        (path.parents[1] / "__init__.py").write_text("raise ImportError('a package of a model was imported')\n")


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of the installer; each entry put there is what the next call does with its target folder."""
    calls: list[Any] = []
    steps: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        calls.append(command)
        if not steps:
            return subprocess.CompletedProcess(command, 1, "", "line\nERROR: no connection")
        steps.pop(0)(Path(command[command.index("--target") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return [calls, steps]


def test_a_package_is_fetched_checked_imported_once_and_its_folder_removed(
    tmp_path: Path, installer: list[Any], capsys: pytest.CaptureFixture[str]
):
    content = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied")).read_bytes()
    model, cache = describe(content, parts=3), tmp_path / "cache"
    installer[1].append(lambda folder: put(folder, model, content))
    place = packaged(model, cache=cache)
    assert (place / "config.json").is_file()
    assert packaged(model, cache=cache) == place
    (command,) = installer[0]
    assert command[-3:] == list(model.requirements)
    assert {"--no-deps", "--only-binary", "--target"} <= set(command)
    assert list((cache / "packages").iterdir()) == []
    said = capsys.readouterr().out
    assert "your environment is not changed" in said
    assert said.count("licence Apache-2.0") == 1


def test_offline_there_is_one_message_and_the_next_call_works(tmp_path: Path, installer: list[Any]):
    content = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied")).read_bytes()
    model, cache = describe(content), tmp_path / "cache"
    with pytest.raises(InputError, match=r"neither installed nor could it be fetched .*no connection.*pip install"):
        packaged(model, cache=cache, progress=False)
    installer[1].append(lambda folder: put(folder, model, content))
    assert packaged(model, cache=cache, progress=False).is_dir()


def test_a_wrong_digest_is_refused_and_nothing_of_it_stays(tmp_path: Path, installer: list[Any]):
    content = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied")).read_bytes()
    model, cache = describe(content), tmp_path / "cache"
    installer[1].append(lambda folder: put(folder, model, content + b"x"))
    with pytest.raises(InputError, match=rf"has the sha256 [0-9a-f]{{64}}, expected {model.sha256}; it was not used"):
        packaged(model, cache=cache, progress=False)
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    installer[1].append(lambda folder: put(folder, model, content))
    assert packaged(model, cache=cache, progress=False).is_dir()


def test_an_installed_package_is_read_in_place_and_never_imported(
    tmp_path: Path, installer: list[Any], monkeypatch: pytest.MonkeyPatch
):
    model = describe(b"GGUF of a model", package="solon_test_present")
    put(tmp_path / "site", model, b"GGUF of a model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with gguf_of(model, cache=tmp_path / "cache") as file:
        assert file == tmp_path / "site" / model.parts[0]
        assert file.read_bytes() == b"GGUF of a model"
    assert installer[0] == []
    assert "solon_test_present_0" not in sys.modules
    with pytest.raises(InputError, match="install it again: pip install --force-reinstall"):  # noqa: SIM117
        with gguf_of(replace(model, sha256="0" * 64), cache=tmp_path / "cache"):
            pass


def test_pip_puts_a_wheel_into_the_folder_and_nowhere_else(tmp_path: Path):
    content, model = b"GGUF of a wheel", describe(b"GGUF of a wheel", package="solon_test_wheel")
    name = "solon_test_wheel_0-1.0"
    wheel = tmp_path / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(model.parts[0], content)
        archive.writestr("solon_test_wheel_0/__init__.py", "raise ImportError\n")
        archive.writestr(
            f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: solon-test-wheel-0\nVersion: 1.0\n"
        )
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    with gguf_of(replace(model, requirements=(str(wheel),)), cache=tmp_path / "cache", progress=False) as file:
        assert file.read_bytes() == content
        assert file.is_relative_to(tmp_path / "cache")
    assert packages._installed(model.parts[0]) is None


def test_the_packages_are_pinned_with_digests_and_licences():
    assert SMOLLM2.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert GEMMA.file_name == "gemma-3-270m-q4_k_m.gguf"
    for model in (SMOLLM2, GEMMA):
        assert len(model.requirements) == len(model.parts)
        assert all("==" in requirement for requirement in model.requirements)
        assert len(model.sha256) == 64
        assert model.licence
