import pytest
import torch

from seqkit.commands.trainer import History, TrainerConfig, accelerator, last_checkpoint, torch_device
from seqkit.errors import ConfigError


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "gpu"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        torch_device(name)


def test_a_missing_gpu_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torch_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="--device cpu"):
        torch_device("cuda:1")


def test_devices_as_lightning_names_them():
    assert accelerator(torch.device("cpu")) == {"accelerator": "cpu", "devices": 1}
    assert accelerator(torch.device("cuda:1")) == {"accelerator": "gpu", "devices": [1]}


@pytest.mark.parametrize("values", [{"max_epochs": 0}, {"patience": 0}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match="1 or more"):
        TrainerConfig(**values)


def test_history_survives_its_own_state(tmp_path):
    def epoch(number, **metrics):
        values = {name: torch.tensor(value) for name, value in metrics.items()}
        return type("Trainer", (), {"callback_metrics": values, "current_epoch": number})()

    first = History(tmp_path / "history.csv")
    first.on_train_epoch_end(epoch(0, loss=1.0), None)
    again = History(tmp_path / "history.csv")
    again.load_state_dict(first.state_dict())
    again.on_train_epoch_end(epoch(1, loss=0.5, auroc=0.75), None)
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,auroc\n0,1.0,\n1,0.5,0.75\n"


def test_no_checkpoint_and_a_damaged_one_both_start_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.warns(UserWarning, match="starts over"):
        assert last_checkpoint(tmp_path) is None
    torch.save({"a": torch.ones(1)}, path)
    assert last_checkpoint(tmp_path) == path
