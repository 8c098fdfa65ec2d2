"""What each link of a chain is worth, in a tiny mode."""

from experiments.chain import links

TINY = """
n_trials = 2
baselines = []
model = {name = "small_resnet", widths = [4, 6], depths = [1, 1]}
data = {name = "digits"}
pretrain = {epochs = 1, batch_size = 256}
budget = {macs = 0.5}
evaluator = {name = "adaptive_bn", calibration_images = 64, batch_size = 64}
finetune = {epochs = 1, batch_size = 256, lr = 0.02}
"""


def test_a_chain_is_rehearsed_and_what_is_wrong_is_said(tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY)
    places = ["--config", str(tmp_path / "tiny.toml"), "--run-dir", str(tmp_path / "runs")]
    assert links.main([*places, "--chains", "deep", "--epochs", "2"]) == 0
    printed = capsys.readouterr()
    assert "### deep" in printed.out
    assert printed.out.count("| sparsify") == 2
    assert "link 1" in printed.err or "sparsify" in printed.err
    assert links.main(["--config", str(tmp_path / "none.toml"), *places[2:]]) == 2
    assert "none.toml" in capsys.readouterr().err
