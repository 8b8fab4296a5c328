import numpy as np
import polars as pl
import pytest
import torch
import yaml

from seqkit import cli
from seqkit.backbones import Backbone, BackboneConfig, save_backbone
from seqkit.commands import embed
from seqkit.tasks.export import save_model
from seqkit.tasks.language_model import LanguageModel
from seqkit.tokenizers import DNATokenizer

SETTINGS = {"d_model": 16, "headdim": 8, "d_state": 6, "layout": "mamba2*2"}
KINDS = {
    "causal": {},
    "both sides": {"bidirectional": True},
    "strands": {"bidirectional": True, "rc_equivariant": True},
}
GENOME = {"one": "ACGTTGCANNNNACGATTACA" * 11 + "AC", "two": "NNNNN", "three": "acgt" * 30}


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in GENOME.items()))
    return path


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(embed, "PIECE", 64)
    monkeypatch.setattr(embed, "ROWS", 6)


@pytest.fixture(params=KINDS)
def backbone(request):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(**SETTINGS, **KINDS[request.param])).eval()


def run(folder, fasta, out, *options):
    return cli.main(
        ["embed", "--ckpt", str(folder), "--fasta", str(fasta), "--out", str(out), "--device", "cpu", *options]
    )


def expected(backbone, bases, width):
    with torch.no_grad():
        hidden = backbone(torch.from_numpy(DNATokenizer().encode(bases)).long()[None])[0][0]
    hidden = hidden.unflatten(-1, (-1, 16)).mean(1)
    return torch.stack([part.mean(0) for part in hidden.split(width)]).numpy()


def test_bins_of_every_contig_equal_the_full_pass(backbone, fasta, tmp_path):
    save_backbone(tmp_path / "model", backbone)
    assert run(tmp_path / "model", fasta, tmp_path / "x.parquet", "--bin", "10") == 0
    frame = pl.read_parquet(tmp_path / "x.parquet")
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 16)
    assert frame["contig"].unique(maintain_order=True).to_list() == list(GENOME)
    for name, bases in GENOME.items():
        own = frame.filter(contig=name)
        np.testing.assert_allclose(own["embedding"].to_numpy(), expected(backbone, bases, 10), rtol=1e-4, atol=1e-5)
        assert own["start"].to_list() == list(range(0, len(bases), 10))
        assert own["end"].to_list() == [min(start + 10, len(bases)) for start in own["start"]]
        parts = [bases[a:b].upper() for a, b in zip(own["start"], own["end"], strict=True)]
        np.testing.assert_allclose(own["known"], [1 - part.count("N") / len(part) for part in parts], rtol=1e-6)
    assert not (tmp_path / "x.parquet.partial").exists()


def test_regions_are_read_on_their_own(backbone, fasta, tmp_path):
    save_backbone(tmp_path / "model", backbone)
    assert (
        run(tmp_path / "model", fasta, tmp_path / "x.parquet", "--bin", "7", "--regions", "one:11-30 three:101-900")
        == 0
    )
    frame = pl.read_parquet(tmp_path / "x.parquet")
    assert frame["start"].to_list() == [10, 17, 24, 100, 107, 114]
    assert frame["end"].to_list() == [17, 24, 30, 107, 114, 120]
    first, second = (frame.filter(contig=name)["embedding"].to_numpy() for name in ("one", "three"))
    np.testing.assert_allclose(first, expected(backbone, GENOME["one"][10:30], 7), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, expected(backbone, GENOME["three"][100:], 7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bases", [1, 100, 230, 240])
def test_a_killed_run_goes_on_to_the_same_rows(backbone, fasta, tmp_path, monkeypatch, bases):
    save_backbone(tmp_path / "model", backbone)
    monkeypatch.setattr(embed, "SAVED_S", 0.0)
    options = tmp_path / "model", fasta
    assert run(*options, tmp_path / "whole.parquet", "--bin", "10") == 0
    read, fetch = [], embed.Fasta.fetch_array

    def failing(self, contig, start, end, **more):
        read.append(end - start)
        if sum(read) > 2 * bases:
            raise cli.Stopped(15)
        return fetch(self, contig, start, end, **more)

    with monkeypatch.context() as patch:
        patch.setattr(embed.Fasta, "fetch_array", failing)
        assert run(*options, tmp_path / "x.parquet", "--bin", "10") == 143
    assert not (tmp_path / "x.parquet").exists()
    read.clear()
    monkeypatch.setattr(
        embed.Fasta, "fetch_array", lambda self, *span, **more: read.append(span) or fetch(self, *span, **more)
    )
    assert run(*options, tmp_path / "x.parquet", "--bin", "10", "--resume") == 0
    assert pl.read_parquet(tmp_path / "x.parquet").equals(pl.read_parquet(tmp_path / "whole.parquet"))
    if backbone.is_causal and bases >= 100:
        assert read[0][:2] != ("one", 0)  # on from within the contig, or behind it


def test_a_resume_with_other_settings_is_refused(fasta, tmp_path, monkeypatch, capsys):
    save_backbone(tmp_path / "model", Backbone(BackboneConfig(**SETTINGS)))
    with monkeypatch.context() as patch:
        patch.setattr(embed, "embed_spans", lambda *_: (_ for _ in ()).throw(cli.Stopped(2)))
        assert run(tmp_path / "model", fasta, tmp_path / "x.parquet") == 130
    assert run(tmp_path / "model", fasta, tmp_path / "x.parquet", "--resume", "--bin", "7") == 2
    assert "--bin" in capsys.readouterr().err


def test_a_pretraining_run_is_a_checkpoint(fasta, tmp_path):
    torch.manual_seed(0)
    config = BackboneConfig(**SETTINGS)
    net = LanguageModel(config)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", net, {"task": "pretrain", "model": config})
    assert run(tmp_path / "run", fasta, tmp_path / "x.parquet", "--bin", "1000") == 0
    own = pl.read_parquet(tmp_path / "x.parquet")["embedding"].to_numpy()
    np.testing.assert_allclose(own[2], expected(net.backbone, GENOME["three"], 1000)[0], rtol=1e-4, atol=1e-5)


def test_a_preset_has_random_weights_of_a_seed_and_says_so(fasta, tmp_path, capsys):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(SETTINGS))
    found = []
    for seed in ("1", "1", "2"):
        options = ["--model", str(tmp_path / "model.yaml"), "--fasta", str(fasta), "--out", str(tmp_path / "x.parquet")]
        assert cli.main(["embed", *options, "--seed", seed, "--device", "cpu"]) == 0
        found.append(pl.read_parquet(tmp_path / "x.parquet"))
    assert "random weights" in capsys.readouterr().err
    assert found[0].equals(found[1])
    assert not found[0].equals(found[2])


def test_half_precision_is_near_float32(fasta, tmp_path):
    save_backbone(tmp_path / "model", Backbone(BackboneConfig(**SETTINGS)))
    values = []
    for precision in ("float32", "bfloat16"):
        assert run(tmp_path / "model", fasta, tmp_path / "x.parquet", "--precision", precision) == 0
        values.append(pl.read_parquet(tmp_path / "x.parquet")["embedding"].to_numpy())
    assert 0 < np.abs(values[1] - values[0]).mean() / np.abs(values[0]).mean() < 0.03


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--out", "x.parquet"], 2, "--fasta: expected a file"),
        (["--fasta", "genome.fa"], 2, "--out: expected a file"),
        (["--fasta", "genome.fa", "--out", "x.tsv"], 2, "ends in .parquet"),
        (["--fasta", "genome.fa", "--out", "x.parquet"], 2, "got neither"),
        (["--fasta", "genome.fa", "--out", "x.parquet", "--model", "dna-tini"], 2, "Did you mean dna-tiny"),
        (["--fasta", "genome.fa", "--out", "x.parquet", "--ckpt", "nowhere"], 3, "which is none"),
        (["--fasta", "genome.fa", "--out", "x.parquet", "--model", "dna-tiny", "--bin", "0"], 2, "at least 1 base"),
        (["--fasta", "genome.fa", "--out", "x.parquet", "--model", "dna-tiny", "--precision", "int8"], 2, "bfloat16"),
        (
            ["--fasta", "genome.fa", "--out", "x.parquet", "--model", "dna-tiny", "--regions", "four"],
            3,
            "which has none",
        ),
    ],
)
def test_what_does_not_work_is_said_in_a_line(options, code, message, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["embed", *options]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()
