"""A Lightning trainer with seqkit's habits: quiet, resumable, progress only for people."""

from __future__ import annotations

import logging
import pickle
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar

from seqkit.environment import nvidia_devices
from seqkit.errors import ConfigError
from seqkit.files import write_text

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
HISTORY = "history.csv"


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and where to train.

    Attributes:
        max_epochs: Largest number of epochs.
        patience: Epochs without improvement of the monitored validation metric before training stops.
        device: auto, cpu, cuda, or cuda:N.
        precision: 32-true, bf16-mixed, bf16-true or 16-mixed, as Lightning names them.
        threads: CPU threads for torch; 0 leaves torch's choice.
    """

    max_epochs: int = 20
    patience: int = 5
    device: str = "auto"
    precision: str = "32-true"
    threads: int = 0

    def __post_init__(self):
        if self.max_epochs < 1 or self.patience < 1:
            raise ConfigError(
                "trainer",
                expected="max_epochs and patience of 1 or more",
                got=f"{self.max_epochs} and {self.patience}",
            )


class History(Callback):
    """Metrics of every epoch, kept in the checkpoint so that a resumed run still shows the whole curve.

    Args:
        path: CSV file, rewritten after each epoch.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Add the epoch and rewrite the file."""
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, **metrics})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [",".join(str(row.get(name, "")) for name in names) for row in self.rows]
        write_text(self.path, "\n".join([",".join(names), *lines]) + "\n")

    def state_dict(self) -> dict:
        """Plain rows, so that the checkpoint loads without running code."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from the rows of the checkpoint."""
        self.rows = list(state_dict["rows"])


def quiet_lightning() -> None:
    """Silence notices about hardware, workers and checkpoints that tell a user of the command nothing."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*Checkpoint directory.*exists.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module="lightning", message=".*(LeafSpec|treespec|isinstance).*")


def torch_device(name: str) -> torch.device:
    """Device by name: auto takes CUDA where there is one.

    Raises:
        ConfigError: The name is unknown, CUDA was asked for and is not there, or a machine has an NVIDIA device that
            torch cannot use: hours on its CPU would be a surprise.
    """
    if name == "auto" and not torch.cuda.is_available() and nvidia_devices():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ConfigError(
            "--device", expected=f"a torch that can use {nvidia_devices()[0]}", got=f"{torch.__version__}, {build}",
            remedy="See seqkit doctor, or say --device cpu.",
        )  # fmt: skip
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError("--device", expected="auto, cpu, cuda or cuda:N", got=name)
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} of them"
        raise ConfigError("--device", expected="a CUDA device torch can use", got=found, remedy="Use --device cpu.")
    return torch.device(name)


def accelerator(device: torch.device) -> dict[str, object]:
    """Lightning's ``accelerator`` and ``devices`` for a device."""
    if device.type == "cpu":
        return {"accelerator": "cpu", "devices": 1}
    return {"accelerator": "gpu", "devices": [device.index or 0]}


def make_trainer(
    folder: Path, config: TrainerConfig, *, monitor: str, mode: str, clip_norm: float, progress: bool = True
) -> lightning.Trainer:
    """Build the trainer of a run.

    Args:
        folder: Run folder; gets ``checkpoints/`` and ``history.csv``.
        config: Trainer settings.
        monitor: Validation metric that chooses the best checkpoint and stops training.
        mode: ``max`` or ``min``.
        clip_norm: Largest gradient norm.
        progress: Whether people see a progress bar.
    """
    quiet_lightning()
    if config.threads:
        torch.set_num_threads(config.threads)
    best = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS,
        filename="best",
        monitor=monitor,
        mode=mode,
        save_last=True,
        save_on_train_epoch_end=True,  # all callbacks have then seen the epoch, so a resumed run starts with the next
        enable_version_counter=False,
    )
    stopping = EarlyStopping(monitor=monitor, mode=mode, patience=config.patience, check_on_train_epoch_end=True)
    return quiet_trainer(
        folder,
        [History(folder / HISTORY), stopping, best],
        device=config.device,
        precision=config.precision,
        max_epochs=config.max_epochs,
        gradient_clip_val=clip_norm,
        progress=progress,
    )


def quiet_trainer(
    folder: Path, callbacks: list[Callback], *, device: str, precision: str, progress: bool = True, **limits
) -> lightning.Trainer:
    """A trainer that shows progress to people alone, repeats itself and is one process.

    Args:
        folder: Run folder.
        callbacks: Of the run; a progress bar joins them where stderr is a terminal.
        device: As :func:`torch_device` takes it.
        precision: As Lightning names it.
        progress: False shows none, to anyone.
        limits: Further arguments of Lightning's trainer.
    """
    people_watch = progress and sys.stderr.isatty()
    if people_watch:
        callbacks = [*callbacks, RichProgressBar(leave=False, console_kwargs={"stderr": True})]
    trainer = lightning.Trainer(
        **accelerator(torch_device(device)),
        precision=precision,
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=people_watch,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # Where CUDA has no deterministic form of an operation, a warning; on the CPU there is always one.
        deterministic=True if torch_device(device).type == "cpu" else "warn",
        # One process, whatever srun says about its tasks: Lightning would count them against its devices and stop.
        plugins=[LightningEnvironment()],
        **limits,
    )
    # Deterministic mode would fill every new tensor before a kernel writes it, which costs a pass over memory each.
    torch.utils.deterministic.fill_uninitialized_memory = False
    return trainer


def last_checkpoint(folder: Path) -> Path | None:
    """Checkpoint to resume from, or None when the run has none yet or a damaged one.

    Training is a pure function of config and seed, so starting over loses time and nothing else.
    """
    path = folder / CHECKPOINTS / LAST
    if not path.exists():
        return None
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        warnings.warn(f"{path} is damaged ({reason}): training starts over", stacklevel=2)
        return None
    return path
