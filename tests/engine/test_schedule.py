"""The learning rate as a function of the steps done."""

from edkd.engine.schedule import learning_rate
from tests.small import config


def rates(*opts, at):
    """The rates after so many epochs, of 100 steps each."""
    cfg = config("SOLVER.EPOCHS", 12, "SOLVER.LR", 1, *opts)
    return [round(learning_rate(cfg, round(100 * epochs), 100), 6) for epochs in at]


def test_the_step_schedule_falls_after_its_stages():
    """As published: with stages 7, 9 the rate of epoch 7 is whole, that of epoch 8 a tenth."""
    stages = ["SOLVER.LR_DECAY_STAGES", "[7,9]"]
    epochs = [0, 6, 6.99, 7, 8.5, 9, 11.9]
    assert rates(*stages, at=epochs) == [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates(*stages, "SOLVER.LR_DECAY_RATE", "0.5", at=[8]) == [0.5]


def test_the_cosine_schedule_and_the_warmup():
    cosine = ["SOLVER.SCHEDULE", "cosine"]
    assert rates(*cosine, at=[0, 6, 12]) == [1, 0.5, 0]

    warm = [*cosine, "SOLVER.WARMUP_EPOCHS", "2"]
    assert rates(*warm, at=[0, 0.5, 1.99, 2, 7, 12]) == [0.005, 0.255, 1, 1, 0.5, 0]

    step = ["SOLVER.WARMUP_EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]"]
    assert rates(*step, at=[0.49, 1.49, 5]) == [0.25, 0.075, 0.1]
