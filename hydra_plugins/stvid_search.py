"""Where Hydra looks for plugins: `hydra/sweeper=stvid`, behind `python train.py -m`.

Every Hydra program of the environment loads this file, so it imports nothing large before a sweep begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Search(Sweeper):
    """Hands a sweep to `stvid.sweep.sweep`.

    Args:
        settings: the keys below `sweep`.
    """

    def __init__(self, *, settings: Mapping[str, object]) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from stvid.sweep.jobs import Jobs
        from stvid.sweep.settings import read_settings
        from stvid.sweep.sweep import Sweep

        jobs = Jobs(context=self.hydra_context, task=self.task_function, config=self.config)
        Sweep(jobs=jobs, settings=read_settings(self.settings), overrides=arguments).run()
