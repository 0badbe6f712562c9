"""What several processes must find in the same step, though one of them alone knows it: signals, and the time."""

import time

import torch
from torch import distributed

from dltrain.launch import Processes


class Agreement:
    """What all processes must find in the same step: signals, which any may get, and the clock of the first one.

    To ask all costs half a millisecond: it is done about every 20 ms, after each step where steps take longer.
    """

    SECONDS, MOST_STEPS = 0.02, 64

    def __init__(self, processes: Processes, noted: list[int]) -> None:
        self.processes, self.noted = processes, noted
        self.signals = noted if processes.world == 1 else []  # those that all know of
        self.due = False
        self.steps, self.interval, self.met = 0, 1, time.perf_counter()

    def __call__(self, seconds: float = 0.0, due: bool = False, *, at_once: bool = False) -> tuple[float, bool]:
        """Seconds since the start, and whether to save, as the first process has them.

        After steps where it is not asked, nothing is due and no time has passed.
        """
        if self.processes.world == 1:
            return seconds, due
        self.steps += 1
        self.due |= due
        if self.steps < self.interval and not at_once:
            return 0.0, False
        now = time.perf_counter()
        pace = self.steps * self.SECONDS / max(now - self.met, 1e-6)
        own = [float(self.noted[0]) if self.noted else 0.0, 0.0, 0.0, 0.0]
        if self.processes.rank == 0:
            own[1:] = [seconds, float(self.due), max(1.0, min(pace, self.MOST_STEPS))]
        told = torch.tensor(own, dtype=torch.float64)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        number, seconds, save, interval = told.tolist()
        if number and not self.signals:
            self.signals.append(int(number))
        self.due, self.steps, self.interval, self.met = False, 0, int(interval), time.perf_counter()
        return seconds, bool(save)
