import json

from seqkit import cli
from seqkit.data.encoded import open_genome
from seqkit.data.fasta import Fasta


def test_a_line_for_each_length(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "g.fa").write_text(">a\n" + "GATTACA" * 300 + "\n")
    arguments = ["--fasta", str(tmp_path / "g.fa"), "--length", "16", "200", "--bases", "400", "--repeats", "1"]
    assert cli.main(["bench", "genome", *arguments]) == 0
    first, *rows = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["genome"] == "g.fa"
    assert [(row["window"], row["windows_a_batch"]) for row in rows] == [(16, 25), (200, 2)]
    assert all(row["encoded_mbases_per_s"] > 0 and row["fasta_mbases_per_s"] > 0 for row in rows)
    assert len(open_genome(tmp_path / "g.fa")) == Fasta(tmp_path / "g.fa").records[0].length
