"""With the silos elsewhere a run is the run that `local` makes: the same draws, integers and weights, where a seed fixes the draws."""

import numpy as np
import pytest
from builders.parties import DISTRIBUTED, GAUSSIAN, THREE, parties
from builders.tiny import quiet, trained_weights

from tff_pipeline import config as configuration


def locally(folder, made):
    """The same process and data with everybody in one process."""
    from beam_jobs.prepare_silo import prepare
    from tff_pipeline.training.run import train

    tables = "".join(
        f'[[silos]]\nname = "{name}"\nformat = "csv"\nclient = "client"\ninput = {{ train = "{name}/rows.csv" }}\n'
        for name in THREE
    )
    path = folder / "together.toml"
    process = (folder / "process.toml").read_text()
    path.write_text(process[process.index("[pipeline]") :] + tables)
    config = configuration.load(path)
    for name in THREE:
        prepare(config, name, progress=quiet())
    return train(config, progress=quiet())


@pytest.mark.parametrize("privacy", [GAUSSIAN, DISTRIBUTED], ids=["gaussian", "distributed"])
def test_the_weights_are_those_of_the_local_runtime(tmp_path, privacy):
    made = parties(tmp_path, privacy=privacy)
    with made.link() as link:
        with pytest.raises(Exception, match=r"is not approved here; it is the turn of"):
            made.coordinate(link)
        assert len(set(made.approve())) == 1
        run = made.coordinate(link)

    for ours, theirs in zip(trained_weights(run), trained_weights(locally(tmp_path, made)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
