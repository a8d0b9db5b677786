"""GGUF files become Hugging Face directories that compute what Transformers computes from the file."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from compression.gguf.importing import cached_import, import_gguf
from solon.errors import InputError
from tests.gguf_files import CHAT, GEMMA_CHAT, ROWS, llama3_divisors, tiny_network, write_gguf

TEXT = "hello world 12 and  more\n\nof it: 3.14"


def logprobs(model: Any) -> Any:
    import torch

    ids_1T = torch.arange(6, 40)[None]
    return model(input_ids=ids_1T, use_cache=False).logits[0].float().log_softmax(-1)


def loaded(path: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval().requires_grad_(False)


def tokenizer_of(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["llama_tied", "llama", "qwen3", "gemma3"])
def test_an_import_computes_the_log_probs_of_the_file_and_keeps_ties(tmp_path: Path, name: str):
    # Transformers takes Qwen3's heads to be as wide as in the published models.
    network = tiny_network(name, **({"head_dim": 128} if name == "qwen3" else {}))
    template = GEMMA_CHAT if name == "gemma3" else CHAT
    source = write_gguf(tmp_path / "tiny.gguf", network, template=template, quantised=True)
    report = import_gguf(source, tmp_path / "model")
    ours = loaded(tmp_path / "model")
    theirs = loaded(tmp_path, gguf_file="tiny.gguf")
    assert (logprobs(ours) - logprobs(theirs)).abs().max() < 1e-6
    assert (logprobs(ours) - logprobs(network)).abs().max() < 0.2  # eight bits
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert tied == network.config.tie_word_embeddings == report.tied
    assert "quantization_config" not in json.loads((tmp_path / "model/config.json").read_text())
    assert (report.licence, report.encoding, report.vocabulary) == ("apache-2.0", "Q8_0", ROWS)
    assert report.parameters == sum(one.numel() for one in network.parameters())


def test_scaled_positions_of_llama_3_are_read_from_their_divisors(tmp_path: Path):
    network = tiny_network("llama3_rope")
    divisors = llama3_divisors(network.config)
    assert divisors.max() > 1
    source = write_gguf(
        tmp_path / "tiny.gguf",
        network,
        change=lambda writer: (
            writer.add_rope_scaling_orig_ctx_len(16),
            writer.add_tensor("rope_freqs.weight", divisors),
        ),
    )
    import_gguf(source, tmp_path / "model")
    assert (logprobs(loaded(tmp_path / "model")) - logprobs(network)).abs().max() < 1e-5
    other = write_gguf(
        tmp_path / "other.gguf",
        network,
        change=lambda writer: writer.add_tensor("rope_freqs.weight", divisors[::-1].copy()),
    )
    with pytest.raises(InputError, match=r"divisors of its own .*expected those of Llama 3"):
        import_gguf(other, tmp_path / "not")
    yarn = write_gguf(
        tmp_path / "yarn.gguf",
        network,
        change=lambda writer: writer.add_rope_scaling_type(__import__("gguf").RopeScalingType.YARN),
    )
    with pytest.raises(InputError, match="scales positions by the rule 'yarn'"):
        import_gguf(yarn, tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_bfloat16_halves_the_weights_and_records_where_they_come_from(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    wide = import_gguf(source, tmp_path / "wide")
    import_gguf(source, tmp_path / "narrow", dtype="bfloat16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]
    assert json.loads((tmp_path / "narrow/config.json").read_text())["dtype"] == "bfloat16"
    record = json.loads((tmp_path / "wide/import.json").read_text())
    assert (record["source"], record["sha256"]) == ("tiny.gguf", wide.sha256)


def test_the_template_decides_what_ends_an_answer(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))  # its file says <|endoftext|>
    report = import_gguf(source, tmp_path / "model")
    assert (report.eos, report.pad, report.bos) == ("<|im_end|>", "<|pad|>", None)
    tokenizer = tokenizer_of(tmp_path / "model")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|pad|>", None)
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]  # the file's own end of text still ends generation
    assert json.loads((tmp_path / "model/config.json").read_text())["eos_token_id"] == 2
    assert (tmp_path / "model/chat_template.jinja").read_text() == CHAT


def test_a_text_begins_with_a_token_only_where_the_file_adds_it(tmp_path: Path):
    network = tiny_network("gemma3")
    source = write_gguf(tmp_path / "tiny.gguf", network, template=GEMMA_CHAT, add_bos=True)
    report = import_gguf(source, tmp_path / "gemma")
    tokenizer = tokenizer_of(tmp_path / "gemma")
    assert (report.eos, report.bos, report.pad) == ("<end_of_turn>", "<bos>", "<pad>")
    assert tokenizer.encode("hello")[0] == tokenizer.bos_token_id == 2
    assert tokenizer.encode("hello", add_special_tokens=False)[0] != 2
    llama = write_gguf(tmp_path / "llama.gguf", tiny_network("llama_tied"))
    import_gguf(llama, tmp_path / "llama")
    assert tokenizer_of(tmp_path / "llama").encode("hello") == tokenizer_of(tmp_path / "llama").encode(
        "hello", add_special_tokens=False
    )


@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "gemma3"])
def test_every_text_comes_back_from_its_tokens(tmp_path: Path, name: str):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network(name), template=None)
    import_gguf(source, tmp_path / "model")
    tokenizer = tokenizer_of(tmp_path / "model")
    for text in (TEXT, "naïve café 日本語 🙂\ttab"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    words = tokenizer.convert_ids_to_tokens(tokenizer.encode("hello world 12", add_special_tokens=False))
    assert words[:2] == ["hello", "▁w" if name == "gemma3" else "Ġw"]
    assert words[-2:] == ["1", "2"] if name != "gemma3" else words[-1] == "<0x32>"  # digits are words of their own


def test_a_file_without_a_template_is_imported_as_a_base_model_with_a_remark(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"), template=None)
    report = import_gguf(source, tmp_path / "model")
    assert not report.chat_template
    assert "no chat template" in report.remarks[0]
    assert report.eos == "<|endoftext|>"


def test_a_template_that_cannot_be_rendered_leaves_the_files_own_end(tmp_path: Path):
    source = write_gguf(
        tmp_path / "tiny.gguf", tiny_network("llama_tied"), template="{{ raise_exception('only with tools') }}"
    )
    report = import_gguf(source, tmp_path / "model")
    assert report.eos == "<|endoftext|>"
    assert "cannot render" in report.remarks[0]


# ---- bad input


def test_what_is_no_gguf_file_is_refused_with_what_it_is(tmp_path: Path):
    (tmp_path / "text.gguf").write_text("PK: not a model")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, words in (
        ("text", r"no GGUF file: it begins with b'PK: ', expected b'GGUF'"),
        ("pointer", "pointer to a large file"),
        ("missing", "does not exist, expected a GGUF file"),
    ):
        with pytest.raises(InputError, match=words):
            import_gguf(tmp_path / f"{name}.gguf", tmp_path / "model")
    assert names(tmp_path) == ["pointer.gguf", "text.gguf"]


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"), architecture="lama")
    with pytest.raises(InputError, match=r"the architecture 'lama', expected one of .*qwen3.*did you mean `llama`"):
        import_gguf(source, tmp_path / "model")
    assert names(tmp_path) == ["tiny.gguf"]


def test_a_file_cut_anywhere_is_refused_and_its_whole_is_imported_afterwards(tmp_path: Path):
    whole = write_gguf(tmp_path / "whole.gguf", tiny_network("llama_tied"))
    content, cut = whole.read_bytes(), tmp_path / "cut.gguf"
    for kept in (6, 20, 100, 3000, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"cut\.gguf is truncated"):
            import_gguf(cut, tmp_path / "model")
    cut.write_bytes(content)
    import_gguf(cut, tmp_path / "model")
    assert names(tmp_path) == ["cut.gguf", "model", "whole.gguf"]


def test_a_vocabulary_larger_than_the_embedding_is_refused_and_a_smaller_one_is_padding(tmp_path: Path):
    network = tiny_network("llama_tied", vocab_size=ROWS - 10)
    source = write_gguf(tmp_path / "small.gguf", network)
    with pytest.raises(InputError, match=rf"vocabulary has {ROWS} tokens and its embedding {ROWS - 10} rows"):
        import_gguf(source, tmp_path / "model")
    padded = write_gguf(tmp_path / "padded.gguf", tiny_network("llama_tied", vocab_size=ROWS + 20))
    report = import_gguf(padded, tmp_path / "model")
    assert report.vocabulary == ROWS
    assert loaded(tmp_path / "model").get_input_embeddings().weight.shape[0] == ROWS + 20


def test_a_lost_weight_an_unknown_tensor_and_an_unknown_word_rule_are_refused(tmp_path: Path):
    import numpy as np

    network = tiny_network("llama_tied")
    lost = write_gguf(tmp_path / "lost.gguf", network, keep=lambda name: name != "blk.1.ffn_up.weight")
    with pytest.raises(InputError, match=r"lacks 1 of \d+ weights .*mlp\.up_proj"):
        import_gguf(lost, tmp_path / "model")
    more = write_gguf(
        tmp_path / "more.gguf",
        network,
        change=lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.zeros(64, np.float32)),
    )
    with pytest.raises(InputError, match=r"has \d+ tensors, of which the architecture llama of Transformers takes"):
        import_gguf(more, tmp_path / "model")
    rule = write_gguf(tmp_path / "rule.gguf", network, pre="runes")
    with pytest.raises(InputError, match="cuts text into words by the rule 'runes', expected one of gpt-2"):
        import_gguf(rule, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_room_nothing_begins_and_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
        with pytest.raises(InputError, match=r"needs \d+ MiB in .*got 1 MiB; free some space"):
            import_gguf(source, tmp_path / "model")

    from transformers import PreTrainedTokenizerFast

    def full(self: Any, folder: Path, **options: Any) -> None:
        assert (Path(folder) / "model.safetensors").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(InputError, match=r"became full during the import.*nothing was kept"):
            import_gguf(source, tmp_path / "model")
    assert names(tmp_path) == ["tiny.gguf"]
    import_gguf(source, tmp_path / "model")
    assert names(tmp_path) == ["model", "tiny.gguf"]


def test_an_existing_target_stays_unless_it_is_a_model_and_force_is_given(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    target = tmp_path / "model"
    import_gguf(source, target)
    (target / "old").touch()
    with pytest.raises(InputError, match=r"exists, expected a new directory; .*--force"):
        import_gguf(source, target)
    assert (target / "old").exists()
    import_gguf(source, target, force=True)
    assert not (target / "old").exists()
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "config.json").touch()  # as in a run directory, which is no model
    (papers / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"no earlier import .*so --force does not replace it"):
        import_gguf(source, papers, force=True)
    assert names(papers) == ["config.json", "thesis.txt"]
    inside = write_gguf(target / "inside.gguf", tiny_network("llama_tied"))
    with pytest.raises(InputError, match=r"holds the file inside.gguf itself"):
        import_gguf(inside, target, force=True)
    assert inside.exists()


def test_the_same_content_is_imported_once_into_the_cache_whatever_its_name(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    told: list[str] = []
    first = cached_import(source, cache=tmp_path / "cache", tell=lambda report: told.append(report.name))
    source.rename(tmp_path / "renamed.gguf")
    again = cached_import(
        tmp_path / "renamed.gguf", cache=tmp_path / "cache", tell=lambda report: told.append(report.name)
    )
    assert first == again
    assert told == ["Tiny llama"]
    assert cached_import(tmp_path / "renamed.gguf", cache=tmp_path / "cache", dtype="bfloat16") != first


def test_two_that_want_the_same_import_at_once_make_it_once(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    told: list[str] = []
    found: list[Path] = []

    def use() -> None:
        found.append(cached_import(source, cache=tmp_path / "cache", tell=lambda report: told.append(report.name)))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert told == ["Tiny llama"]


def changed(**values: Any) -> Any:
    """A function that sets keys of a file; None removes one. Two underscores stand for a dot."""

    def change(writer: Any) -> None:
        found = writer.kv_data[0]
        for name, value in values.items():
            key = name.replace("__", ".")
            if value is None:
                del found[key]
            else:
                found[key].value = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer__ggml__merges": None}, r"has no tokenizer.ggml.merges"),
        ({"tokenizer__ggml__pre": None}, r"cuts text into words by the rule None"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, r"layer_norm_rms_epsilon = None, expected a positive"),
        ({"llama__context_length": None}, r"llama.context_length = None, expected a positive number"),
        ({"llama__block_count": 1_000_000}, r"tensors of \d layers, expected 1000000"),
        ({"tokenizer__ggml__eos_token_id": 100_000}, r"eos_token_id = 100000, expected an id of its \d+ tokens"),
        ({"tokenizer__ggml__token_type": [1, 1]}, r"kinds of 2 tokens for \d+ tokens"),
    ],
)
def test_a_file_without_what_decides_tokens_or_numbers_is_refused(tmp_path: Path, change: dict[str, Any], told: str):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"), change=changed(**change))
    with pytest.raises(InputError, match=told):
        import_gguf(source, tmp_path / "model")
    assert names(tmp_path) == ["tiny.gguf"]


def test_an_array_that_a_damaged_header_calls_endless_ends_with_the_file(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    data = bytearray(source.read_bytes())
    place = data.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    data[place : place + 8] = (2**40).to_bytes(8, "little")
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"truncated or damaged.*after its end"):
        import_gguf(source, tmp_path / "model")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_weights_that_are_none_are_refused(tmp_path: Path, value: float):
    network = tiny_network("llama_tied")
    network.model.layers[0].mlp.up_proj.weight.data.fill_(value)
    source = write_gguf(tmp_path / "tiny.gguf", network)
    with pytest.raises(InputError, match=r"is all zeros, or holds numbers that are not finite"):
        import_gguf(source, tmp_path / "model")


def test_a_file_that_changes_during_its_import_is_not_kept_under_the_old_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from compression.gguf import importing

    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    other = write_gguf(tmp_path / "other.gguf", tiny_network("llama_tied"), template=None)
    read = importing.read_gguf
    monkeypatch.setattr(importing, "read_gguf", lambda path: read(shutil.copyfile(other, path)))
    with pytest.raises(InputError, match=r"changed while it was imported; nothing was kept"):
        cached_import(source, cache=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache/imports").iterdir() if path.is_dir()] == []


def test_a_cached_import_that_lost_a_file_is_made_again(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    place = cached_import(source, cache=tmp_path / "cache")
    (place / "model.safetensors").write_bytes(b"")
    assert cached_import(source, cache=tmp_path / "cache") == place
    assert (place / "model.safetensors").stat().st_size > 0


def test_a_target_that_cannot_be_made_does_not_blame_the_file(tmp_path: Path):
    source = write_gguf(tmp_path / "tiny.gguf", tiny_network("llama_tied"))
    with pytest.raises(InputError, match=r"cannot be written.*choose another path"):
        import_gguf(source, source / "below")
    with pytest.raises(InputError, match=r"cannot be used: File name too long"):
        import_gguf(source, tmp_path / ("x" * 300))


def test_a_chat_template_that_loops_is_remarked_on_and_does_not_hang(monkeypatch: pytest.MonkeyPatch):
    from compression.gguf import special_tokens

    class Loops:
        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            threading.Event().wait()
            return ""

    monkeypatch.setattr(special_tokens, "RENDER_S", 0.1)
    token, remark = special_tokens.end_of_turn(Loops(), {})
    assert token is None
    assert "it did not end within 0 s" in remark
