"""Models imported from GGUF files generate, are published to, attested and trained like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from compression.gguf.importing import import_gguf
from solon.engines.base import Engine
from tests.e2e.models.stages import EXACT, published, read_by
from tests.e2e.models.subject import LENGTH, Subject
from tests.gguf_files import CHAT, GEMMA_CHAT, tiny_network, write_gguf

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


class Imported(Subject):
    """`Imported("qwen3", tmp_path)` writes a GGUF file and imports it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.path, self.length = name, folder / name, LENGTH
        self._engines: dict[str, Engine] = {}
        source = folder / f"{name}.gguf"
        template = GEMMA_CHAT if name == "gemma3" else CHAT
        write_gguf(source, tiny_network(name), template=template, quantised=name != "qwen3")
        import_gguf(source, self.path)


@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "gemma3"])
def test_an_imported_model_is_read_exactly_generates_is_published_attested_and_trained(tmp_path: Path, name: str):
    subject = Imported(name, tmp_path)
    try:
        assert read_by("vllm")(subject) <= EXACT
        assert published("vllm", None)(subject) <= EXACT
    finally:
        subject.close()
