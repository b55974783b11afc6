import json

import pytest

from dgl_scale.bench.reader import main


@pytest.fixture(autouse=True)
def _all_cores_again():
    import os

    import torch

    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def test_all_contestants_run_and_are_compared(tmp_path, capsys):
    file = tmp_path / "figures.json"
    small = ["--clips", "16", "--stored-frames", "3", "--frames", "2", "--image-size", "32", "--rounds", "1"]
    assert main([*small, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["clips"] == 16 and figures["stored_frames_per_clip"] == 3.0
    assert figures["clips_per_cpu_second"].keys() == {"bare decoder", "our loader", "webdataset"}
    rates = figures["clips_per_cpu_second"]
    assert figures["ratios"]["of the bare decoder"] == pytest.approx(rates["our loader"] / rates["bare decoder"], rel=0.05)
    assert "against webdataset" in capsys.readouterr().out


def test_bad_arguments_are_one_line(tmp_path, capsys):
    assert main(["--shards", str(tmp_path / "none")]) == 1
    assert "no folder of shards" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--clips", "3"])
