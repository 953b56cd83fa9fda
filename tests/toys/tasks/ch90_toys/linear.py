"""A linear classifier with dropout, Adam, a schedule and three random generators."""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from suite.space import Choice, Range
from suite.task import Claim, Target, Task

FAULTS = (
    "raise",
    "memory",
    "kill",
    "kill_once",
    "segfault",
    "hang",
    "exit",
    "nan",
    "wait",
    "meet",
    "second",
    "pace",
)


@dataclass(frozen=True)
class Config:
    lr: float = 0.05
    steps: int = 8
    fault: str = ""
    fault_at: int = 3
    data: str = "generated"
    sign: str = ""


def fail(fault: str, sign: str) -> float:
    """Do to this process what ``fault`` names; return the loss to report."""
    if fault == "wait":
        first = not Path(sign).exists()
        Path(sign).touch()
        time.sleep(3.0 * first)
        return 0.0
    if fault == "meet":
        Path(sign, str(os.getpid())).touch()
        while len(os.listdir(sign)) < 2:
            time.sleep(0.01)
        return 0.0
    if fault == "second":
        time.sleep(1.0)
        return 0.0
    if fault == "kill_once" and not Path(sign).exists():
        Path(sign).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise RuntimeError("planted")
    if fault == "memory":
        raise MemoryError("planted")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "segfault":
        print("about to fall over", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(600)
    if fault == "pace":
        time.sleep(3.0)
    if fault == "exit":
        os._exit(7)
    return float("nan") if fault == "nan" else 0.0


def run(cfg, ctx):
    x_BD = torch.randn(64, 6)
    y_B = (x_BD.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.7)
    own, history = np.random.default_rng(ctx.seed), []
    start = ctx.keep(model=model, optimizer=optimizer, schedule=schedule, own=own, history=history)
    yield
    for step in range(start + 1, cfg.steps + 1):
        noise = random.gauss(0, 0.01) + float(own.normal(0, 0.01))
        loss = F.cross_entropy(model(x_BD + noise + 0.01 * torch.randn_like(x_BD)), y_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append(loss.item())
        value = fail(cfg.fault, cfg.sign) if cfg.fault and step == cfg.fault_at else loss.item()

        def metrics(step=step, value=value):
            torch.rand(3)
            accuracy = (model.eval()(x_BD).argmax(1) == y_B).float().mean()
            model.train()
            return {"step": step, "loss": value, "accuracy": accuracy, "mean": np.mean(history)}

        yield metrics


TASK = Task(
    config=Config(),
    run=run,
    sections=("Toys",),
    profiles={"smoke": {"steps": 4}, "laptop": {"steps": 8}, "paper": {}},
    variants={
        "quick": {},
        "slow": {"lr": 1e-4},
        **{fault: {"fault": fault} for fault in FAULTS},
    },
    targets={
        p: {"quick": Target("accuracy", 0.8, "max", "a toy's own bound")}
        for p in ("smoke", "laptop", "paper")
    },
    claims=(
        Claim("a learning rate learns", "accuracy", "quick", "slow", "max", "a toy's own claim"),
    ),
    sweep={"lr": Range(1e-4, 0.1, log=True), "steps": Choice((6, 8, 10))},
)
