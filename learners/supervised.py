"""Supervised fine-tuning by TRL's SFTTrainer, on conversations that Solon tokenises.

Only tokens of answers are trained, their end tokens included. With `num_workers` above 0 the trainer runs in workers of
Ray Train (see `cluster.align.ray_train`); here it runs in this process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from learners.core.config import CourseConfig, LoraConfig
from learners.data.reading import Demonstration
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.engines.model_writer import whole_model, write_model
from solon.engines.tokens import load_tokenizer
from solon.errors import InputError, RunFailedError

IGNORED = -100
"""Label of a token that is not trained."""


class SupervisedConfig(CourseConfig):
    """How a policy learns from demonstrations. `SupervisedConfig(learning_rate=1e-5, epochs=2)`"""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate (AdamW)."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    batch: int = Field(16, ge=1)
    """Conversations of one optimiser step, or packed rows."""
    max_tokens: int = Field(1024, ge=8)
    """Longest conversation; longer ones are left out."""
    packing: bool = False
    """Put several conversations into one row; none sees another."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    bfloat16: bool = False
    """Compute in bfloat16; weights and optimiser stay float32."""
    threads: int = Field(1, ge=1)
    """CPU threads of each worker."""
    num_workers: int = Field(0, ge=0)
    """Workers of Ray Train; 0: this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result of supervised fine-tuning."""

    steps: int
    first_loss: float
    """Mean over answer tokens at the first logged step, nats."""
    last_loss: float
    conversations: int


def as_columns(row: Demonstration) -> dict[str, list[int]]:
    """A conversation in the columns of a tokenised data set: ids, and labels of the answer alone."""
    return {
        "input_ids": [*row.prompt, *row.answer],
        "labels": [*[IGNORED] * len(row.prompt), *row.answer],
    }


def tune(
    model: str,
    rows: Sequence[Demonstration],
    config: SupervisedConfig,
    *,
    save_to: Path,
    folder: Path,
    tick: Callable[[float], None] = lambda _: None,
) -> Tuned:
    """Tune a model directory into another. folder: scratch for the trainer.

    Raises InputError without TRL, RunFailedError when the loss is not finite.
    """
    import torch

    torch.set_num_threads(config.threads)
    trainer = build_trainer(model, rows, config, folder=folder, callbacks=[_ticker(tick)])
    trainer.train()
    losses = losses_of(trainer)
    save(trainer, model, save_to)
    return Tuned(steps=trainer.state.global_step, first_loss=losses[0], last_loss=losses[-1], conversations=len(rows))


def losses_of(trainer: Any) -> list[float]:
    """The losses of all steps. Raises RunFailedError when one is not finite."""
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not all(map(math.isfinite, losses)):
        raise RunFailedError(f"the losses of fine-tuning are not finite: {losses[-3:]}; lower learning_rate")
    return losses


def build_trainer(
    model: str, rows: Sequence[Demonstration], config: SupervisedConfig, *, folder: Path, callbacks: Sequence[Any] = ()
) -> Any:
    """TRL's trainer on these conversations. Raises InputError when TRL is not installed or no row is left."""
    if not rows:
        raise InputError("got no demonstrations, expected some to imitate")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError:
        raise InputError(
            "the package trl is not installed, expected it for supervised fine-tuning; install it with: pip install "
            "'solon[align]'"
        ) from None
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(model)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(folder),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch,
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        max_length=config.max_tokens if config.packing else None,
        packing=config.packing,
        bf16=config.bfloat16,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    if not torch.distributed.is_initialized():
        arguments._n_gpu = min(1, arguments.n_gpu)  # several would train `batch` conversations each
    return SFTTrainer(
        model=network,
        args=arguments,
        train_dataset=Dataset.from_list([as_columns(row) for row in rows]),
        processing_class=tokenizer,
        peft_config=_adapters(config.lora),
        callbacks=list(callbacks),
    )


def save(trainer: Any, model: str, save_to: Path) -> None:
    """The tuned model as a Hugging Face directory with the tokenizer of the one it came from, adapters merged. Raises
    DiskFullError; what was there before stays."""
    network = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()
    warn_of_dropped(repair_generation_config(network))
    with whole_model(save_to) as folder:
        write_model(network, folder)
        if not copy_companions(Path(model), folder):
            trainer.processing_class.save_pretrained(folder)


def _adapters(lora: LoraConfig | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig as PeftConfig

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return PeftConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules, task_type="CAUSAL_LM")


def _ticker(tick: Callable[[float], None]) -> Any:
    from transformers import TrainerCallback

    class Ticker(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tick(state.global_step / max(1, state.max_steps))

    return Ticker()
