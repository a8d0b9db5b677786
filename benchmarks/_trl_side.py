"""TRL's side of `against_trl.py`, in a process of its own: `GRPOTrainer` with Solon's judge as its reward.

The judge is built by Solon's own classes, runs in this process on the same engine as Solon's judge lane, and gets all
groups of a batch at once: it sends the same token ids, reads one-token verdicts, and uses the prefix cache and the
cache of answers. So the rewards are Solon's, and cost what Solon's cost.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._peer_work import Course, group_of, load, lora_settings, prompts_of
from cluster.config.run_file import RunFile

GENERATIONS = ("transformers", "vllm", "continuous")
"""How TRL samples: `model.generate`, a vLLM engine in the same process, or Transformers' continuous batching."""


def grpo_settings(run: RunFile, *, micro_batch: int, generation: str, bf16: bool, out: str) -> dict[str, Any]:
    """Arguments of `GRPOConfig` for the work of a run file.

    micro_batch: rollouts of one forward pass; the batch of an optimiser step is always the run's.
    """
    learn, rollouts = run.learn, run.ledger.batch_groups * run.rollout.group_size
    micro_batch = min(micro_batch, rollouts)
    if rollouts % micro_batch:
        raise ValueError(f"{rollouts} rollouts a step are not divisible by micro batches of {micro_batch}")
    sampling = run.rollout.sampling()
    settings: dict[str, Any] = {
        "output_dir": out,
        "max_steps": run.steps,
        "seed": run.seed,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rollouts // micro_batch,
        "num_generations": run.rollout.group_size,
        "max_completion_length": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.filters.top_p,
        "top_k": sampling.filters.top_k,
        "beta": 0.0,
        "num_iterations": 1,
        "epsilon": learn.clip_low,
        "epsilon_high": learn.clip_high,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "learning_rate": learn.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "adam_beta1": learn.adam_beta1,
        "adam_beta2": learn.adam_beta2,
        "weight_decay": learn.weight_decay,
        "max_grad_norm": learn.max_grad_norm,
        "optim": "adamw_torch_fused",
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": bf16,
        "model_init_kwargs": {"dtype": "float32"},
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 10,
        "disable_tqdm": True,
    }
    if generation == "vllm":
        length = run.rollout.max_model_len
        settings |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": length}
    elif generation == "continuous":
        settings |= {"use_transformers_continuous_batching": True}
    return settings


class JudgeReward:
    """The reward function: Solon's judge, whose engine and event loop live in a thread of this process."""

    def __init__(self, run: RunFile, prompts: Any, *, threads: int) -> None:
        from solon.constitution.constitution import Constitution
        from solon.feedback.worker import JudgeWorker

        self.__name__ = "judge"
        self._prompts = prompts
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()
        engine = run.judging.engine(run.judge, seed=run.seed).model_copy(update={"threads": threads})
        self._worker = JudgeWorker(engine, run.feedback, Constitution.load(run.constitution), name="judge-0")
        self._run(self._worker.start())

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float | None]:
        groups = []
        ordinals: Sequence[int] = columns["ordinal"]
        size = next((i for i, ordinal in enumerate(ordinals) if ordinal != ordinals[0]), len(ordinals))
        for start in range(0, len(ordinals), size):
            chosen = slice(start, start + size)
            texts = [completion[0]["content"] for completion in completions[chosen]]
            cut = [len(ids) == 0 or ids[-1] not in self.ends for ids in completion_ids[chosen]]
            groups.append(group_of(ordinals[start], self._prompts[ordinals[start]], texts, cut))
        return [reward for feedback in self._run(self._label(groups)) for reward in feedback.rewards_G]

    ends: frozenset[int] = frozenset()
    """Tokens that end an answer."""

    async def _label(self, groups: Sequence[Any]) -> list[Any]:
        return [feedback for _, feedback in await asyncio.gather(*map(self._worker.label, groups))]

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._run(self._worker.close())


def free_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward that costs nothing: what is left is TRL itself."""
    return [-abs(len(completion[0]["content"]) - 50) / 50 for completion in completions]


def follower(course: Course, out: Path, *, seconds: float, snapshot_s: float, source: str) -> Any:
    """A callback that notes the times of the steps, saves the policy after `snapshot_s`, and stops after `seconds`."""
    from transformers import TrainerCallback

    class Follower(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            course.began_s = time.time()

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            course.steps_s.append(time.time())
            if snapshot_s and "snapshot" not in course.policies and course.trained_s >= snapshot_s:
                start_s = time.time()
                course.policies["snapshot"] = save(given["model"], out / "snapshot", source)
                course.paused_s.append((start_s, time.time()))
            if seconds and course.trained_s >= seconds:
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "reward" in (logs or {}):
                course.rewards.append(float(logs["reward"]))

    return Follower()


def save(model: Any, folder: Path, source: str) -> str:
    """The policy as a directory that engines load, with the tokenizer of the model it began as."""
    if hasattr(model, "peft_config"):
        import copy

        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)
    for path in Path(source).iterdir():
        if path.is_file() and not (folder / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    return str(folder)


def train(options: argparse.Namespace) -> Course:
    """One run of TRL; returns its course."""
    run = load(options.run, options.set)
    prompts, _ = prompts_of(run)
    reward: Any = free_reward
    if not options.free_reward:
        reward = JudgeReward(run, prompts, threads=options.judge_threads)
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    count = run.steps * run.ledger.batch_groups
    rows = [
        {"prompt": [{"role": m.role, "content": m.content} for m in prompts[i].messages], "ordinal": i}
        for i in range(count)
    ]
    settings = grpo_settings(
        run, micro_batch=options.micro_batch, generation=options.generation, bf16=options.bf16, out=str(options.out)
    )
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    course, lora = Course(), lora_settings(run)
    snapshots = follower(course, options.out, seconds=options.seconds, snapshot_s=options.snapshot, source=run.policy)
    trainer = GRPOTrainer(
        model=run.policy,
        reward_funcs=reward,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
        callbacks=[snapshots],
    )
    if not options.free_reward:
        reward.ends = frozenset(trainer.eos_token_ids)
    trainer.train()
    course.notes.append(f"torch threads {torch.get_num_threads()}")
    course.policies["final"] = save(trainer.model, options.out / "final", run.policy)
    return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generation", choices=GENERATIONS, default="transformers")
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--judge-threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--free-reward", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--snapshot", type=float, default=0.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options).write(options.out / "course.json")


if __name__ == "__main__":
    main()
