"""Supervised fine-tuning on workers of Ray Train."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.ray_session.session import cluster
from learners.data.reading import Demonstration
from learners.supervised import SupervisedConfig, Tuned
from solon.errors import RunFailedError

RESULT = "result.json"
"""What rank 0 found, in the folder that all workers share."""
MAX_FAILURES = 2
"""Times that the group of workers is started again."""


def tune_on_ray(
    model: str, rows: Sequence[Demonstration], config: SupervisedConfig, *, save_to: Path, folder: Path
) -> Tuned:
    """`learners.supervised.tune` on `config.num_workers` workers; the batch is divided among them.

    folder, save_to: on storage that all workers share. Raises RunFailedError when training fails.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if config.batch % config.num_workers:
        raise RunFailedError(
            f"learn.batch = {config.batch} cannot be divided among {config.num_workers} workers; choose a multiple"
        )
    with cluster():
        shared = ray.put([dataclasses.asdict(row) for row in rows])
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "model": str(Path(model).absolute()),
                "rows": [shared],
                "config": config.model_dump(mode="json"),
                "save_to": str(save_to.absolute()),
                "folder": str(folder.absolute()),
            },
            scaling_config=ScalingConfig(
                num_workers=config.num_workers, use_gpu=bool(ray.cluster_resources().get("GPU"))
            ),
            run_config=RunConfig(
                name="sft",
                storage_path=str((folder / "ray").absolute()),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise RunFailedError(f"Ray Train ended with {type(error).__name__}: {error}") from error
    # Ray Train returns metrics only beside a checkpoint.
    return Tuned(**json.loads((folder / RESULT).read_text(encoding="utf-8")))


def _train(given: dict[str, Any]) -> None:
    """On every worker."""
    import ray
    import torch
    from ray import train

    from learners.supervised import build_trainer, losses_of, save

    config = SupervisedConfig(**given["config"])
    context = train.get_context()
    torch.set_num_threads(config.threads)
    rows = [Demonstration(**row) for row in ray.get(given["rows"][0])]
    share = config.model_copy(update={"batch": config.batch // context.get_world_size()})
    folder = Path(given["folder"]) / f"rank-{context.get_world_rank()}"
    trainer = build_trainer(given["model"], rows, share, folder=folder)
    trainer.train()
    losses = losses_of(trainer)
    found = Tuned(steps=trainer.state.global_step, first_loss=losses[0], last_loss=losses[-1], conversations=len(rows))
    if context.get_world_rank() == 0:
        save(trainer, given["model"], Path(given["save_to"]))
        (Path(given["folder"]) / RESULT).write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    train.report(dataclasses.asdict(found))
